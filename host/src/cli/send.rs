//! `outbox send`.

use super::args::{Global, SendArgs};
use super::{DONE, absolute, builder, say_aside, tell};
use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use outbox_host::{Body, Error, Write as QueuedWrite};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::Path;

/// Below this, a body is written faster than a progress bar is read.
const WORTH_A_BAR: u64 = 32 * 1024 * 1024;

pub async fn send(global: &Global, args: SendArgs) -> anyhow::Result<u8> {
    let body = open(args.body.as_deref(), args.output.json)?;
    let write = QueuedWrite {
        method: args.method,
        uri: args.uri,
        content_type: args.content_type,
        headers: args.headers.iter().map(|text| header(text)).collect::<Result<_, _>>()?,
        base_mod_time: args.base_mod_time.map(mod_time),
        base_etag: args.base_etag,
        create: args.create,
    };
    let is_new = !global.root.join(".zddc-outbox").exists();
    let outbox = args.storage.apply(builder(global)).open()?;
    let id = outbox.enqueue_write(write, body).await?;
    if is_new {
        // A root misspelt is seen here.
        say_aside(format_args!("made a new outbox in {}", absolute(&global.root).display()));
    }
    let queued = format!("queued {id}");
    if args.output.json {
        // It is queued. A daemon may have delivered it already: then the id is all there is to say.
        let entry = outbox.get(&id).await.ok().and_then(|item| item.entry);
        let entry = entry.map_or_else(|| Ok(serde_json::json!({ "id": id })), serde_json::to_value)?;
        tell(&queued, entry);
    } else {
        tell(&queued, &queued);
    }
    Ok(DONE)
}

fn header(text: &str) -> Result<(String, String), Error> {
    match text.split_once(':') {
        Some((name, value)) => Ok((name.trim_end().into(), value.trim().into())),
        None => Err(Error::Invalid {
            what: "header".into(),
            value: text.into(),
            reason: "write it as 'Name: value'".into(),
        }),
    }
}

/// An HTTP date, as Last-Modified has it, in RFC 3339. What is none goes as it is, to be judged there.
fn mod_time(text: String) -> String {
    let Ok(at) = httpdate::parse_http_date(&text) else { return text };
    let mut spelt = String::new();
    match write!(spelt, "{}", humantime::format_rfc3339_seconds(at)) {
        Ok(()) => spelt,
        Err(_) => text,
    }
}

pub fn open(path: Option<&Path>, quiet: bool) -> anyhow::Result<Body> {
    let Some(path) = path else { return Ok(Body::empty()) };
    if path.as_os_str() == "-" {
        return Ok(Body::reader(io::stdin()));
    }
    let unreadable = || format!("the body {} cannot be read", path.display());
    let file = File::open(path).with_context(unreadable)?;
    let found = file.metadata().with_context(unreadable)?;
    if found.is_dir() {
        anyhow::bail!("the body {} is a directory; give a file, or - for stdin", path.display());
    }
    if quiet || found.len() < WORTH_A_BAR || !io::stderr().is_terminal() {
        return Ok(Body::reader(file));
    }
    let style = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {bytes_per_sec}")?;
    let bar = ProgressBar::new(found.len()).with_style(style);
    Ok(Body::reader(Watched { file, bar }))
}

/// A file whose reading moves a progress bar.
struct Watched {
    file: File,
    bar: ProgressBar,
}

impl Read for Watched {
    fn read(&mut self, chunk: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(chunk)?;
        self.bar.inc(n as u64);
        if n == 0 {
            self.bar.finish_and_clear();
        }
        Ok(n)
    }
}
