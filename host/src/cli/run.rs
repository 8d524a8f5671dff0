//! `outbox run`: the daemon. And what is the process's: its log and its signals.

use super::args::{Global, LogFormat, LogLevel, RunArgs};
use super::{DONE, builder, text};
use outbox_host::{Delivery, Event, Health, Outbox, Outcome};
use std::io::{self, IsTerminal};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::oneshot;
use tracing::{Level, debug, error, info, warn};

pub async fn run(global: &Global, args: RunArgs) -> anyhow::Result<u8> {
    log(args.log, args.log_level);
    // From here on no signal ends the process by itself.
    let (stopped, hang_ups) = (stopped(), HangUps::listen());
    let upstream = args.upstream.upstream.clone().unwrap_or_default();
    let builder = args.durability.apply(args.upstream.apply(builder(global))?);
    let outbox = builder.open()?;
    // Before anything can happen.
    let events = outbox.subscribe();
    let waiting = outbox.count().await?.pending;
    outbox.start()?;
    info!(root = %global.root.display(), upstream, waiting, "running");
    let (end, ended) = oneshot::channel();
    let log = tokio::spawn(log_events(events, ended));
    tokio::spawn(hang_ups.wake(outbox.clone()));
    let signal = stopped.await;
    info!(signal, "stopping; the request in flight may take up to 10 s");
    outbox.shutdown().await;
    drop(end);
    let _ = log.await;
    let counts = outbox.count().await?;
    info!(remaining = counts.pending, "stopped");
    Ok(DONE)
}

/// One line per outcome, until it has ended and all that happened is logged.
async fn log_events(mut events: broadcast::Receiver<Event>, mut ended: oneshot::Receiver<()>) {
    loop {
        let event = tokio::select! {
            biased;
            event = events.recv() => event,
            _ = &mut ended => return,
        };
        match event {
            Ok(Event::Delivery(delivery)) => log_delivery(&delivery),
            Ok(Event::Pass(report)) => {
                debug!(next_pass_ms = report.next_delay_ms, "{}", text::report(&report))
            }
            Ok(Event::Upstream(Health::Up)) => info!("upstream is up"),
            Ok(Event::Upstream(Health::Down)) => {
                warn!("upstream is down; one probe per tick until it answers")
            }
            Ok(Event::Upstream(Health::Auth)) => {
                warn!("upstream wants other credentials; entries are held, one probe per tick");
            }
            Ok(Event::Failed(why)) => error!("{why}"),
            Ok(_) => {}
            Err(RecvError::Lagged(n)) => warn!("{n} events were not logged"),
            Err(RecvError::Closed) => return,
        }
    }
}

fn log_delivery(d: &Delivery) {
    let (id, method, uri, status, ms) = (&d.id, &d.method, &d.raw_uri, d.status, d.elapsed_ms);
    let detail = d.detail.as_deref();
    macro_rules! line {
        ($level:ident) => {
            $level!(id, method, uri, status, ms, detail, "{}", d.outcome)
        };
    }
    match d.outcome {
        Outcome::Delivered => line!(info),
        Outcome::Deferred | Outcome::Held | Outcome::Superseded => line!(info),
        Outcome::Conflict | Outcome::Rejected | Outcome::Dropped | Outcome::Corrupt | Outcome::Ambiguous => {
            line!(warn)
        }
    }
}

fn log(format: LogFormat, level: LogLevel) {
    let level = match level {
        LogLevel::Error => Level::ERROR,
        LogLevel::Warn => Level::WARN,
        LogLevel::Info => Level::INFO,
        LogLevel::Debug => Level::DEBUG,
    };
    let log = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_target(false)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr);
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}

/// The log of commands that end by themselves: warnings on stderr.
pub fn log_warnings() {
    log(LogFormat::Text, LogLevel::Warn);
}

/// Listens from now on; returns when the process is asked to end: the signal's name.
#[cfg(unix)]
pub fn stopped() -> impl Future<Output = &'static str> {
    use tokio::signal::unix::{SignalKind, signal};
    let signals = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
    async move {
        let (Ok(mut interrupt), Ok(mut terminate)) = signals else {
            // Without handlers, the signals end the process by themselves.
            return std::future::pending().await;
        };
        tokio::select! {
            _ = interrupt.recv() => "SIGINT",
            _ = terminate.recv() => "SIGTERM",
        }
    }
}

/// Returns when the process is asked to end.
#[cfg(not(unix))]
pub async fn stopped() -> &'static str {
    match tokio::signal::ctrl_c().await {
        Ok(()) => "Ctrl-C",
        Err(_) => std::future::pending().await,
    }
}

/// SIGHUP, listened for from the beginning on.
struct HangUps {
    #[cfg(unix)]
    signals: io::Result<tokio::signal::unix::Signal>,
}

impl HangUps {
    fn listen() -> HangUps {
        #[cfg(unix)]
        let signals = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup());
        HangUps {
            #[cfg(unix)]
            signals,
        }
    }

    /// Returns at the next one, never where there are none.
    async fn next(&mut self) {
        #[cfg(unix)]
        if let Ok(signals) = &mut self.signals
            && signals.recv().await.is_some()
        {
            return;
        }
        std::future::pending().await
    }

    /// Makes a pass at once at each.
    async fn wake(mut self, outbox: Outbox) {
        loop {
            self.next().await;
            info!("SIGHUP: replaying now");
            outbox.wake();
        }
    }
}
