//! `outbox demo`: the whole story in a terminal, with a server of its own.

use super::args::{DemoArgs, Global};
use super::{DONE, builder, text};
use anyhow::Context;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use outbox_host::{Event, Keep, Outbox, Write as QueuedWrite};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::net::{TcpListener, TcpSocket};

pub async fn demo(global: &Global, args: DemoArgs) -> anyhow::Result<u8> {
    let dir = tempfile::Builder::new().prefix("outbox-demo-").tempdir().context("no temporary directory")?;
    // Bound, but not listening: it refuses connections, as a server that is away does.
    let socket = TcpSocket::new_v4()?;
    socket.bind(([127, 0, 0, 1], 0).into())?;
    let upstream = format!("http://{}", socket.local_addr()?);
    let demo_root = Global { root: dir.path().into(), component: global.component.clone() };
    let outbox = builder(&demo_root).upstream(&upstream).concurrency(1).open()?;

    let out = &mut io::stdout().lock();
    writeln!(out, "An outbox in {}, for a server at {upstream}.\n", dir.path().display())?;
    writeln!(
        out,
        "1. The server is away. Writes are queued; each is on the disk before it is acknowledged.\n"
    )?;
    let writes = [
        ("PUT", "/notes/monday.txt", "buy milk"),
        ("PUT", "/notes/tuesday.txt", "call Ada"),
        ("PUT", "/notes/monday.txt", "buy milk and bread"),
    ];
    for (method, uri, body) in writes {
        let id = outbox.enqueue_write(QueuedWrite::new(method, uri), body.into()).await?;
        writeln!(out, "   queued     {id}  {method} {uri}  {body:?}")?;
    }
    pass(out, &outbox).await?;

    writeln!(out, "\n2. The server is back. What waits is replayed, in order.\n")?;
    let server = Server::default();
    let listener = socket.listen(16)?;
    let serving = tokio::spawn(server.clone().serve(listener));
    pass(out, &outbox).await?;
    server.show(out)?;

    writeln!(
        out,
        "\n3. We read /notes/monday.txt, which is \"v2\", and edit it. Meanwhile somebody else does too.\n"
    )?;
    let edit =
        QueuedWrite { base_etag: Some("\"v2\"".into()), ..QueuedWrite::new("PUT", "/notes/monday.txt") };
    let id = outbox.enqueue_write(edit, "buy milk, bread and tea".into()).await?;
    writeln!(out, "   queued     {id}  PUT /notes/monday.txt  \"buy milk, bread and tea\", based on \"v2\"")?;
    server.write("/notes/monday.txt", "milk is sold out");
    writeln!(out, "   elsewhere  \"milk is sold out\" becomes \"v3\"")?;
    pass(out, &outbox).await?;
    writeln!(out, "\n   The other's version stands, and ours is kept, with the server's reply:\n")?;
    show_tree(out, &dir.path().join(".zddc-outbox"))?;

    writeln!(out, "\n4. Somebody decides, here with 'outbox resolve {id} --keep mine'.\n")?;
    let again = outbox.resolve(&id, Keep::Mine).await?.unwrap_or_default();
    writeln!(out, "   queued     {again}  the same text, now based on \"v3\"")?;
    pass(out, &outbox).await?;
    server.show(out)?;

    serving.abort();
    if args.keep {
        let kept = dir.keep();
        writeln!(
            out,
            "\nThe directory is kept: {}\nLook around with: outbox --root {0} status",
            kept.display()
        )?;
    } else {
        writeln!(out, "\nNothing is left behind. Now yours: outbox send --help, outbox run --help")?;
    }
    Ok(DONE)
}

/// One pass, as the daemon makes them, and what came of it.
async fn pass(out: &mut impl Write, outbox: &Outbox) -> anyhow::Result<()> {
    let mut events = outbox.subscribe();
    let report = outbox.replay().await?;
    while let Ok(event) = events.try_recv() {
        if let Event::Delivery(delivery) = event {
            writeln!(out, "   {}", text::delivery(&delivery))?;
        }
    }
    writeln!(out, "   = {}", text::report(&report))?;
    Ok(())
}

fn show_tree(out: &mut impl Write, outbox: &Path) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(outbox)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        writeln!(out, "   .zddc-outbox/{name}/")?;
        let mut files: Vec<_> = std::fs::read_dir(entry.path())?.collect::<Result<_, _>>()?;
        files.sort_by_key(std::fs::DirEntry::file_name);
        for file in files {
            writeln!(out, "     {:<14} {}", file.file_name().to_string_lossy(), summary(&file.path())?)?;
        }
    }
    Ok(())
}

/// The start of a file: of JSON, its most telling keys.
fn summary(path: &Path) -> anyhow::Result<String> {
    let content = std::fs::read_to_string(path)?;
    let Ok(serde_json::Value::Object(json)) = serde_json::from_str(&content) else {
        return Ok(format!("{content:?}"));
    };
    let telling = ["method", "raw_uri", "base_etag", "status", "etag", "reason"];
    let parts = telling.iter().filter_map(|key| json.get(*key).map(|value| format!("{key}: {value}")));
    Ok(parts.collect::<Vec<_>>().join(", "))
}

/// A server that keeps texts and numbers their versions.
#[derive(Clone, Default)]
struct Server(Arc<Mutex<BTreeMap<String, (u32, String)>>>);

impl Server {
    fn write(&self, path: &str, text: &str) -> u32 {
        let mut texts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let version = texts.get(path).map_or(1, |(version, _)| version + 1);
        texts.insert(path.into(), (version, text.into()));
        version
    }

    fn read(&self, path: &str) -> Option<(u32, String)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(path).cloned()
    }

    fn show(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "\n   The server now has:")?;
        for (path, (version, text)) in self.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            writeln!(out, "     {path:<20} \"v{version}\"  {text:?}")?;
        }
        Ok(())
    }

    async fn serve(self, listener: TcpListener) {
        while let Ok((stream, _)) = listener.accept().await {
            let server = self.clone();
            let service = service_fn(move |request| server.clone().answer(request));
            let connection =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            tokio::spawn(connection);
        }
    }

    /// GET, and PUT with If-Match.
    async fn answer(self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
        let path = request.uri().path().to_owned();
        let is_question = request.method() == http::Method::GET;
        let expected = request.headers().get("if-match").cloned();
        let body = request.into_body().collect().await?.to_bytes();
        let (present, text) =
            self.read(&path).map(|(version, text)| (format!("\"v{version}\""), text)).unzip();
        let matches =
            expected.is_none_or(|tag| present.as_ref().is_some_and(|present| tag == present.as_str()));
        let (status, etag, content) = match (is_question, matches) {
            (true, _) if present.is_none() => (404, None, None),
            (true, _) => (200, present, text),
            (false, true) => {
                let version = self.write(&path, &String::from_utf8_lossy(&body));
                (200, Some(format!("\"v{version}\"")), None)
            }
            (false, false) => (412, present, None),
        };
        let mut response = Response::new(Full::from(content.unwrap_or_default()));
        *response.status_mut() = http::StatusCode::from_u16(status).unwrap_or_default();
        if let Some(value) = etag.and_then(|tag| tag.parse().ok()) {
            response.headers_mut().insert(http::header::ETAG, value);
        }
        Ok(response)
    }
}
