//! `outbox replay`: one pass.

use super::args::{Global, ReplayArgs};
use super::run::Stops;
use super::{builder, code_of, say_aside, stdout, text};
use indicatif::{ProgressBar, ProgressStyle};
use outbox_host::{Delivery, Error, Event, Outbox, Report};
use std::io::{self, IsTerminal, Write};
use tokio::sync::broadcast::error::RecvError;

/// Below this, a pass is over before a progress bar is read.
const WORTH_A_BAR: u64 = 50;

pub async fn replay(global: &Global, args: ReplayArgs) -> anyhow::Result<u8> {
    let builder = args.durability.apply(args.upstream.apply(builder(global))?);
    let outbox = builder.open()?;
    let json = args.json;
    let bar = match json || !io::stderr().is_terminal() {
        true => None,
        false => progress(outbox.count().await?.pending)?,
    };
    let mut events = outbox.subscribe();
    // On a thread of its own: stdout may be slow.
    let printer = tokio::task::spawn_blocking(move || -> anyhow::Result<()> {
        let handle = tokio::runtime::Handle::current();
        loop {
            match handle.block_on(events.recv()) {
                Ok(Event::Delivery(delivery)) => print(&delivery, json, bar.as_ref())?,
                Ok(Event::Pass(_)) | Err(RecvError::Closed) => break,
                Ok(_) => {}
                Err(RecvError::Lagged(n)) => say_aside(format_args!("warning: {n} outcomes are not shown")),
            }
        }
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        Ok(())
    });
    let report = match interruptible(&outbox).await {
        Ok(report) => report,
        Err(error) => {
            // What was done until then is printed, too: to the end of the events, which is that of the outbox.
            drop(outbox);
            let _ = printer.await;
            return Err(error.into());
        }
    };
    printer.await??;
    let counts = outbox.count().await?;
    let mut out = stdout();
    match json {
        true => writeln!(out, "{}", serde_json::to_string(&report)?)?,
        false => {
            writeln!(out, "{}", text::report(&report))?;
            for (n, what, command) in text::kept(&counts).into_iter().filter(|(n, ..)| *n > 0) {
                writeln!(out, "{n} {what} kept: see 'outbox {command}'")?;
            }
        }
    }
    Ok(code_of(&counts))
}

/// A pass that ends in good order on Ctrl-C: the requests in flight are awaited.
async fn interruptible(outbox: &Outbox) -> Result<Report, Error> {
    let mut stops = Stops::listen();
    let pass = outbox.replay();
    tokio::pin!(pass);
    let done = tokio::select! {
        report = &mut pass => Some(report),
        _ = stops.next() => None,
    };
    // Also after the pass: what is left is to print, which takes as long as its reader does.
    stops.insist();
    if let Some(report) = done {
        return report;
    }
    // In this order: whoever has read that it stops sees nothing further started.
    let (_, report, ()) = tokio::join!(biased; outbox.shutdown(), pass, async {
        say_aside("stopping; the request in flight may take up to 10 s");
    });
    report
}

fn progress(pending: u64) -> anyhow::Result<Option<ProgressBar>> {
    if pending < WORTH_A_BAR {
        return Ok(None);
    }
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {per_sec}, {eta} left")?;
    Ok(Some(ProgressBar::new(pending).with_style(style)))
}

fn print(delivery: &Delivery, json: bool, bar: Option<&ProgressBar>) -> anyhow::Result<()> {
    if json {
        writeln!(stdout(), "{}", serde_json::to_string(delivery)?)?;
        return Ok(());
    }
    match bar {
        // With many entries, only what did not go well is worth a line.
        Some(bar) => {
            bar.inc(1);
            if delivery.outcome != outbox_host::Outcome::Delivered {
                bar.suspend(|| writeln!(stdout(), "{}", text::delivery(delivery)))?;
            }
        }
        None => writeln!(stdout(), "{}", text::delivery(delivery))?,
    }
    Ok(())
}
