//! Commands that look at what is on disk and act on single entries.

use super::args::{Global, KeepArg, LimitArgs, NamesArgs, OutputArgs, ResolveArgs, ShowArgs, StatusArgs};
use super::{ATTENTION, DONE, FAILED, builder, code_of, existing, say_aside, stdout, tell, text};
use bytes::Bytes;
use outbox_host::{Counts, Entry, Error, Item, Keep, Outbox, Place};
use serde_json::json;
use std::io::{self, BufWriter, Write};
use std::sync::{Arc, Mutex, PoisonError};

/// Entries per call while listing: as many as fit, for each call lists the directory.
const PAGE: u32 = u32::MAX;

pub async fn list(global: &Global, args: &OutputArgs) -> anyhow::Result<u8> {
    let outbox = existing(global)?;
    let before = outbox.count().await?.pending;
    let mut out = BufWriter::new(io::stdout().lock());
    let mut after = None;
    let mut any = false;
    let mut listed = 0;
    loop {
        let page = outbox.pending(after.take(), PAGE).await?;
        if args.json {
            for entry in &page {
                write!(out, "{}", if any { "," } else { "[" })?;
                serde_json::to_writer(&mut out, entry).map_err(io::Error::from)?;
                any = true;
            }
        } else {
            text::entry_table(&mut out, &page)?;
        }
        match page.last() {
            Some(last) => after = Some(last.id.clone()),
            None => break,
        }
        any = true;
        listed += page.len() as u64;
    }
    // Meanwhile some may have come or gone.
    let unlisted = before.min(outbox.count().await?.pending).saturating_sub(listed);
    match (args.json, any) {
        (true, true) => writeln!(out, "]")?,
        (true, false) => writeln!(out, "[]")?,
        (false, false) if unlisted == 0 => writeln!(out, "nothing waits")?,
        (false, _) => {}
    }
    if !args.json && unlisted > 0 {
        writeln!(out, "{unlisted} that cannot be read, or that a newer outbox wrote (see 'outbox verify')")?;
    }
    out.flush()?;
    Ok(DONE)
}

pub async fn show(global: &Global, args: ShowArgs) -> anyhow::Result<u8> {
    let outbox = existing(global)?;
    if args.body {
        return copy_body(&outbox, args.name).await;
    }
    let item = outbox.get(args.name).await?;
    let mut out = io::stdout().lock();
    match args.json {
        true => writeln!(out, "{}", serde_json::to_string(&item)?)?,
        false => text::item(&mut out, &item)?,
    }
    Ok(DONE)
}

async fn copy_body(outbox: &Outbox, name: String) -> anyhow::Result<u8> {
    // That stdout takes no more is no trouble with the entry, so it is told apart from it.
    let trouble: Arc<Mutex<Option<io::Error>>> = Arc::default();
    let slot = trouble.clone();
    let write = move |chunk: Bytes| {
        io::stdout().write_all(&chunk).map_err(|error| {
            let kind = error.kind();
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            kind.into()
        })
    };
    let copied = outbox.read_body(name, write).await;
    if let Some(error) = trouble.lock().unwrap_or_else(PoisonError::into_inner).take() {
        return Err(error.into());
    }
    copied?;
    io::stdout().flush()?;
    Ok(DONE)
}

pub async fn conflicts(global: &Global, args: &OutputArgs) -> anyhow::Result<u8> {
    set_aside(global, args, Place::Conflict, "no conflicts").await
}

pub async fn rejected(global: &Global, args: &OutputArgs) -> anyhow::Result<u8> {
    set_aside(global, args, Place::Rejected, "nothing was rejected").await
}

pub async fn corrupt(global: &Global, args: &OutputArgs) -> anyhow::Result<u8> {
    set_aside(global, args, Place::Corrupt, "nothing is corrupt").await
}

async fn set_aside(global: &Global, args: &OutputArgs, place: Place, none: &str) -> anyhow::Result<u8> {
    let items = of_place(&existing(global)?, place).await?;
    let mut out = io::stdout().lock();
    match place {
        _ if args.json => writeln!(out, "{}", serde_json::to_string(&items)?)?,
        _ if items.is_empty() => writeln!(out, "{none}")?,
        Place::Conflict => text::conflicts(&mut out, items)?,
        _ => items.iter().try_for_each(|item| text::item(&mut out, item))?,
    }
    Ok(DONE)
}

async fn of_place(outbox: &Outbox, place: Place) -> Result<Vec<Item>, Error> {
    let mut items = outbox.quarantined().await?;
    items.retain(|item| item.place == place);
    Ok(items)
}

/// Entries that `status` looks at without being told to: a fraction of a second.
const QUICK: u64 = 10_000;

fn entries(counts: &Counts) -> u64 {
    counts.pending + counts.conflicts + counts.rejected + counts.corrupt
}

pub async fn status(global: &Global, args: &StatusArgs) -> anyhow::Result<u8> {
    let outbox = existing(global)?;
    let status = outbox.status().await?;
    let usage = match args.full || entries(&status.counts) <= QUICK {
        true => Some(outbox.usage().await?),
        false => None,
    };
    let LimitArgs { max_bytes, max_entries } = args.limits;
    let code = code_of(&status.counts);
    let oldest = match &status.counts.oldest {
        Some(id) => outbox.get(id).await.ok().and_then(|item| item.entry),
        None => None,
    };
    let mut out = stdout();
    let c = &status.counts;
    if args.output.json {
        let value = json!({
            "pending": c.pending, "conflicts": c.conflicts, "rejected": c.rejected, "corrupt": c.corrupt,
            "newer": usage.map(|u| u.newer), "bytes": usage.map(|u| u.bytes), "max_bytes": max_bytes, "max_entries": max_entries,
            "oldest": oldest, "replaying": status.replaying, "pid": status.pid,
        });
        writeln!(out, "{value}")?;
        return Ok(code);
    }
    let of = |max: Option<u64>| max.map_or(String::new(), |max| format!(" of at most {max}"));
    writeln!(out, "{:>7}  pending{}", c.pending, of(max_entries))?;
    if let Some(n) = usage.map(|usage| usage.newer).filter(|n| *n > 0) {
        writeln!(out, "{n:>7}  of them written by a newer outbox, and left to it (see 'outbox verify')")?;
    }
    for (n, what, how) in text::kept(c) {
        let hint = if n > 0 { format!(" (see 'outbox {how}')") } else { String::new() };
        writeln!(out, "{n:>7}  {what}{hint}")?;
    }
    match usage {
        Some(usage) => writeln!(out, "{:>7}  bytes on disk{}", usage.bytes, of(max_bytes))?,
        None => {
            writeln!(out, "bytes on disk are not counted with so many entries; 'outbox status --full' does")?
        }
    }
    if let Some(oldest) = oldest {
        let Entry { method, raw_uri, queued_at, .. } = &oldest;
        text::line(&mut out, format_args!("oldest: {method} {raw_uri}, queued {queued_at}"))?;
        if let Some(why) = &oldest.last_error {
            let tried = text::attempts(oldest.attempts);
            text::line(&mut out, format_args!("        {tried} so far; last: {why}"))?;
        }
    }
    match (status.replaying, status.pid) {
        (true, Some(pid)) => writeln!(out, "replayed by process {pid}")?,
        (true, None) => writeln!(out, "replayed by some process")?,
        (false, _) => writeln!(out, "nobody replays it; start 'outbox run'")?,
    }
    Ok(code)
}

pub async fn verify(global: &Global, args: &OutputArgs) -> anyhow::Result<u8> {
    let outbox = existing(global)?;
    let findings = outbox.verify().await?;
    let mut out = stdout();
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&findings)?)?;
    } else if findings.is_empty() {
        writeln!(out, "all is well")?;
    } else {
        for finding in &findings {
            text::line(&mut out, format_args!("{}: {}", finding.name, finding.reason))?;
        }
    }
    Ok(if findings.is_empty() { DONE } else { ATTENTION })
}

pub async fn resolve(global: &Global, args: ResolveArgs) -> anyhow::Result<u8> {
    let outbox = args.storage.apply(builder(global)).create(false).open()?;
    let keep = match args.keep {
        KeepArg::Mine => Keep::Mine,
        KeepArg::Theirs => Keep::Theirs,
        KeepArg::Merged(path) => Keep::Merged(super::send::open(Some(&path), args.json)?),
    };
    let id = outbox.resolve(&args.name, keep).await?;
    let done = match &id {
        Some(id) => format!("queued again as {id}"),
        None => format!("dropped {}", args.name),
    };
    match args.json {
        true => tell(&done, json!({ "resolved": args.name, "id": id })),
        false => tell(&done, &done),
    }
    Ok(DONE)
}

pub async fn retry(global: &Global, args: NamesArgs) -> anyhow::Result<u8> {
    let outbox = existing(global)?;
    let json = args.output.json;
    let mut code = DONE;
    for name in names(&outbox, args).await? {
        code = code.max(say(&name, "due now", outbox.retry(&name).await, json));
    }
    Ok(code)
}

pub async fn drop(global: &Global, args: NamesArgs) -> anyhow::Result<u8> {
    let outbox = existing(global)?;
    let json = args.output.json;
    let mut code = DONE;
    for name in names(&outbox, args).await? {
        code = code.max(say(&name, "dropped", outbox.drop_entry(&name).await, json));
    }
    Ok(code)
}

/// Those that were named; with `--all`, those that were rejected.
async fn names(outbox: &Outbox, args: NamesArgs) -> anyhow::Result<Vec<String>> {
    if !args.all {
        return Ok(args.names);
    }
    let rejected = of_place(outbox, Place::Rejected).await?;
    if rejected.is_empty() && !args.output.json {
        writeln!(stdout(), "nothing was rejected")?;
    }
    Ok(rejected.into_iter().map(|item| item.name).collect())
}

/// One of several: a failure is told and does not keep the others from being done.
fn say(name: &str, done: &str, result: Result<(), Error>, json: bool) -> u8 {
    if let Err(error) = result {
        say_aside(format_args!("error: {error}"));
        return FAILED;
    }
    let said = format!("{name}: {done}");
    match json {
        true => tell(&said, json!({ "name": name, "done": done })),
        false => tell(&said, &said),
    }
    DONE
}

pub fn wake(global: &Global, args: &OutputArgs) -> anyhow::Result<u8> {
    let mut out = stdout();
    match (args.json, existing(global)?.wake_host()?) {
        (true, pid) => writeln!(out, "{}", json!({ "woke": pid }))?,
        (false, Some(pid)) => writeln!(out, "asked process {pid} for a pass")?,
        (false, None) => writeln!(out, "asked for a pass")?,
    }
    Ok(DONE)
}
