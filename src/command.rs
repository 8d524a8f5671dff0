//! The component on a command line, for hosts that only run commands (`wasmtime run`): docs/wasmtime.md has
//! the recipes. Results go to stdout as one JSON object a line, errors to stderr. The bundled host's `outbox`
//! is the comfortable one.

use crate::backoff::SOON;
use crate::bindings::exports::zddc::outbox::queue::Guest as _;
use crate::bindings::exports::zddc::outbox::replayer::{Event, Health, Options, Outcome, Report, Resume};
use crate::bindings::types::Request;
use crate::config::Config;
use crate::dir::Dir;
use crate::error::describe;
use crate::guest::Guest;
use crate::lease::Lease;
use crate::pass::Pass;
use crate::queue::Queue;
use crate::{Error, Result, layout, request};
use serde_json::{Value, json};
use std::io::Write;
use std::rc::Rc;
use std::time::Duration;
use wasi::clocks::monotonic_clock;

const HELP: &str = "\
usage: outbox.wasm COMMAND
  send METHOD URI [--body -] [--content-type T] [--header 'N: V']...
       [--base-mod-time RFC3339] [--base-etag E] [--create]
                   queue a write; --body - reads the body from stdin
  list             print what waits
  count            print how many entries are where
  replay           make one pass and print each outcome and a report
  run              make passes until killed
The directory is the preopen /data; OUTBOX_UPSTREAM and other OUTBOX_*
variables configure it.";

/// Runs the command that the arguments name.
pub fn run_arguments() -> Result<()> {
    let args: Vec<String> = wasi::cli::environment::get_arguments();
    let words: Vec<&str> = args.iter().skip(1).map(String::as_str).collect();
    match words.as_slice() {
        ["send", rest @ ..] => send(rest),
        ["list"] => list(),
        ["count"] => count(),
        ["replay"] | ["replay", "--once"] => replay(),
        ["run"] | ["replay", "--loop"] => run(),
        [] | ["help" | "--help" | "-h"] => {
            say(HELP);
            Ok(())
        }
        [command, ..] => {
            request::invalid("command", command, "it is not known or takes no such arguments; see 'help'")
        }
    }
}

/// Tells of a failure.
pub fn complain(error: &Error) {
    let _ = writeln!(std::io::stderr(), "outbox: {}", describe(error));
}

/// Prints a line. A reader that went away is no reason to trap.
fn say(line: impl std::fmt::Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn send(args: &[&str]) -> Result<()> {
    let [method, uri, options @ ..] = args else {
        return request::invalid("arguments", &args.join(" "), "send wants a method and a URI; see 'help'");
    };
    let mut wanted = Request {
        method: (*method).into(),
        uri: (*uri).into(),
        content_type: None,
        headers: Vec::new(),
        base_mod_time: None,
        base_etag: None,
        create: false,
    };
    let mut stdin = false;
    let mut options = options.iter().copied();
    while let Some(option) = options.next() {
        if option == "--create" {
            wanted.create = true;
            continue;
        }
        let Some(value) = options.next() else {
            return request::invalid("option", option, "it is not known or lacks its value; see 'help'");
        };
        match option {
            "--body" if value == "-" => stdin = true,
            "--body" => return request::invalid("body", value, "only '-' for stdin can be read in here"),
            "--content-type" => wanted.content_type = Some(value.into()),
            "--base-mod-time" => wanted.base_mod_time = Some(value.into()),
            "--base-etag" => wanted.base_etag = Some(value.into()),
            "--header" => match value.split_once(':') {
                Some((name, value)) => wanted.headers.push((name.trim().into(), value.trim().into())),
                None => return request::invalid("header", value, "write it as 'Name: value'"),
            },
            _ => return request::invalid("option", option, "it is not known; see 'help'"),
        }
    }
    let id = match stdin {
        true => Guest::enqueue(wanted, wasi::cli::stdin::get_stdin()),
        false => Guest::enqueue_bytes(wanted, Vec::new()),
    }?;
    say(json!({ "id": id }));
    Ok(())
}

/// Entries per call while listing: as many as fit, for each call lists the directory.
const PAGE: u32 = u32::MAX;

fn list() -> Result<()> {
    let mut after = None;
    loop {
        let page = Guest::pending(after.take(), PAGE)?;
        after = page.last().map(|entry| entry.id.clone());
        for e in &page {
            say(json!({
                "id": e.id, "method": e.method, "raw_uri": e.raw_uri, "content_type": e.content_type,
                "queued_at": e.queued_at, "body_len": e.body_len, "attempts": e.attempts,
                "not_before": e.not_before, "last_error": e.last_error,
            }));
        }
        if after.is_none() {
            return Ok(());
        }
    }
}

fn count() -> Result<()> {
    let c = Guest::count()?;
    say(json!({
        "pending": c.pending, "conflicts": c.conflicts, "rejected": c.rejected, "corrupt": c.corrupt,
        "oldest": c.oldest,
    }));
    Ok(())
}

/// Replaying is for one at a time; only with `OUTBOX_LEASE=none` does somebody else see to that. The lease is given
/// back when dropped.
fn lease(config: &Config) -> Result<Option<Rc<Lease>>> {
    if config.lease == Some(false) {
        return Ok(None);
    }
    match Lease::take() {
        Ok(lease) => Ok(Some(Rc::new(lease))),
        // What waits must get out also where there is no space for a lease: that is what makes room.
        Err(error @ Error::NoSpace) => {
            complain(&error);
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Takes the lease, at the first time or because there was no space for it before.
fn take(config: &Config, held: &mut Option<Rc<Lease>>) -> Result<()> {
    if held.is_none() {
        *held = lease(config)?;
    }
    Ok(())
}

/// The configuration of a replay, and a queue's directory that is there: for the lease, too.
fn ready() -> Result<Config> {
    let config = Config::from_env()?;
    config.upstream()?;
    Queue::open(&config)?;
    Ok(config)
}

fn replay() -> Result<()> {
    let lease = lease(&ready()?)?;
    pass(true, None, true, lease).map(|_| ())
}

/// One pass, with its outcomes printed; its report too, unless it is a tick at which nothing happened.
fn pass(wake: bool, resume: Option<Resume>, always: bool, lease: Option<Rc<Lease>>) -> Result<Report> {
    // Ours is the lease; the pass needs none of its own.
    let mut config = Config::from_env()?;
    config.lease = None;
    let mut pass =
        Pass::start(config, Options { wake, resume, budget_ms: None, sweep_every: None })?.under(lease);
    let mut eventful = always;
    while let Some(event) = pass.advance()? {
        say(event_json(&event));
        eventful = true;
    }
    let report = pass.report();
    if eventful {
        say(report_json(&report));
    }
    Ok(report)
}

/// How often the loop looks whether something was queued meanwhile.
const LOOK: Duration = Duration::from_secs(2);

fn run() -> Result<()> {
    // A directory that is not there now will not be there later; other trouble may pass.
    let config = ready()?;
    let mut held = None;
    let mut wake = true;
    let mut resume = None;
    loop {
        let noted = notes();
        let done = take(&config, &mut held);
        let report = match done.and_then(|()| pass(wake, resume.take(), false, held.clone())) {
            Ok(report) => report,
            // Nothing that is set wrong in the environment gets better by waiting; and who has lost the lease has
            // been asleep for long, or shares the directory with a machine whose clock differs.
            Err(error @ (Error::Configuration(_) | Error::AnotherReplays(_))) => return Err(error),
            Err(error) => {
                complain(&error);
                wake = sleep(crate::backoff::TICK, held.as_deref(), &noted)?;
                continue;
            }
        };
        wake = sleep(Duration::from_millis(report.next_delay_ms).max(SOON), held.as_deref(), &noted)?;
        resume = Some(report.resume);
    }
}

/// What writers have noted: each id that they gave out.
fn notes() -> Option<Vec<u8>> {
    let name = format!("{}/{}", layout::OUTBOX_DIR, layout::NEWEST);
    Dir::root().ok()?.read(&name, layout::NOTES_LEN).ok()
}

/// Waits, but not longer than until the queue's directory changes, or what is noted differs from what was before the pass
/// (which changes the directory, too, so that its time does not tell what came meanwhile); whether it did.
fn sleep(delay: Duration, lease: Option<&Lease>, noted: &Option<Vec<u8>>) -> Result<bool> {
    let changed = || -> Option<(u64, u32)> {
        let at = Dir::root().ok()?.stat(layout::OUTBOX_DIR).ok()?.data_modification_timestamp?;
        Some((at.seconds, at.nanoseconds))
    };
    let before = changed();
    let nanos = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
    let end = monotonic_clock::now().saturating_add(nanos(delay));
    while monotonic_clock::now() < end {
        let left = end.saturating_sub(monotonic_clock::now()).min(nanos(LOOK));
        monotonic_clock::subscribe_duration(left).block();
        if let Some(lease) = lease {
            lease.keep()?;
        }
        if changed() != before || notes() != *noted {
            return Ok(true);
        }
    }
    Ok(false)
}

fn event_json(event: &Event) -> Value {
    let outcome = match event.outcome {
        Outcome::Delivered => "delivered",
        Outcome::Conflict => "conflict",
        Outcome::Rejected => "rejected",
        Outcome::Dropped => "dropped",
        Outcome::Deferred => "deferred",
        Outcome::Held => "held",
        Outcome::Corrupt => "corrupt",
        Outcome::Ambiguous => "ambiguous",
        Outcome::Superseded => "superseded",
    };
    json!({
        "outcome": outcome, "id": event.id, "method": event.method, "raw_uri": event.raw_uri,
        "status": event.status, "detail": event.detail, "elapsed_ms": event.elapsed_ms,
    })
}

fn report_json(r: &Report) -> Value {
    let upstream = match r.upstream {
        Health::Up => "up",
        Health::Down => "down",
        Health::Auth => "auth",
    };
    json!({
        "delivered": r.delivered, "conflicts": r.conflicts, "rejected": r.rejected, "dropped": r.dropped,
        "deferred": r.deferred, "held": r.held, "corrupt": r.corrupt, "ambiguous": r.ambiguous,
        "superseded": r.superseded, "unprotected": r.unprotected, "remaining": r.remaining,
        "upstream": upstream, "next_delay_ms": r.next_delay_ms,
    })
}
