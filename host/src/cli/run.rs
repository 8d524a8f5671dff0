//! `outbox run`: the daemon. And what is the process's: its log and its signals.

use super::args::{Global, LogFormat, LogLevel, RunArgs};
use super::{DONE, FAILED, absolute, builder, text};
use outbox_host::{Delivery, Event, Health, Outbox, Outcome};
use std::io::{self, IsTerminal};
use std::time::Duration;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::oneshot;
use tokio::task::block_in_place;
use tokio::time::timeout;
use tracing::{Level, debug, error, info, warn};

/// How long the last line of the log may take.
const LOGGED: Duration = Duration::from_millis(200);

pub async fn run(global: &Global, args: RunArgs) -> anyhow::Result<u8> {
    log(args.log, args.log_level);
    // From here on no signal ends the process by itself.
    let (mut stops, hang_ups) = (Stops::listen(), HangUps::listen());
    let upstream = args.upstream.upstream.clone().unwrap_or_default();
    let builder = args.durability.apply(args.upstream.apply(builder(global))?);
    let outbox = builder.open()?;
    // Before anything can happen.
    let events = outbox.subscribe();
    let waiting = outbox.count().await?.pending;
    outbox.start()?;
    info!(root = %absolute(&global.root).display(), upstream, waiting, "running");
    let (end, ended) = oneshot::channel();
    let log = tokio::spawn(log_events(events, ended));
    tokio::spawn(hang_ups.wake(outbox.clone()));
    let signal = tokio::select! {
        signal = stops.next() => signal,
        // By itself, which whoever supervises it is to see.
        ended = outbox.ended() => {
            outbox.shutdown().await;
            drop(end);
            let _ = log.await;
            return Ok(ended.map(|()| DONE)?);
        }
    };
    stops.insist();
    // In this order: whoever has read that it stops sees nothing further started.
    tokio::join!(biased; outbox.shutdown(), async {
        info!(signal, "stopping; the request in flight may take up to 10 s");
    });
    drop(end);
    let _ = log.await;
    let counts = outbox.count().await?;
    info!(remaining = counts.pending, "stopped");
    Ok(DONE)
}

/// One line per outcome, until it has ended and all that happened is logged. Where nobody reads them, the thread stands
/// still, and the signals are left to others.
async fn log_events(mut events: broadcast::Receiver<Event>, mut ended: oneshot::Receiver<()>) {
    loop {
        let event = tokio::select! {
            biased;
            event = events.recv() => event,
            _ = &mut ended => return,
        };
        match event {
            Ok(event) => block_in_place(|| log_event(&event)),
            Err(RecvError::Lagged(n)) => block_in_place(|| warn!("{n} events were not logged")),
            Err(RecvError::Closed) => return,
        }
    }
}

fn log_event(event: &Event) {
    match event {
        Event::Delivery(delivery) => log_delivery(delivery),
        Event::Pass(report) => debug!(next_pass_ms = report.next_delay_ms, "{}", text::report(report)),
        Event::Upstream(Health::Up) => info!("upstream is up"),
        Event::Upstream(Health::Down) => warn!("upstream is down; one probe per tick until it answers"),
        Event::Upstream(Health::Auth) => {
            warn!("upstream wants other credentials; entries are held, one probe per tick");
        }
        Event::Failed(why) => error!("pass failed: {why}"),
        _ => {}
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
        // A line that cannot be written is lost. To say so on the same stderr would panic.
        .log_internal_errors(false)
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

/// What asks the process to end, listened for from the beginning on.
pub struct Stops {
    #[cfg(unix)]
    signals: io::Result<[tokio::signal::unix::Signal; 2]>,
}

impl Stops {
    pub fn listen() -> Stops {
        #[cfg(unix)]
        use tokio::signal::unix::{SignalKind, signal};
        Stops {
            #[cfg(unix)]
            signals: signal(SignalKind::interrupt())
                .and_then(|interrupt| Ok([interrupt, signal(SignalKind::terminate())?])),
        }
    }

    /// Returns at the next one: its name.
    pub async fn next(&mut self) -> &'static str {
        #[cfg(unix)]
        if let Ok([interrupt, terminate]) = &mut self.signals {
            return tokio::select! {
                _ = interrupt.recv() => "SIGINT",
                _ = terminate.recv() => "SIGTERM",
            };
        }
        #[cfg(not(unix))]
        if tokio::signal::ctrl_c().await.is_ok() {
            return "Ctrl-C";
        }
        // Without handlers, the signals end the process by themselves.
        std::future::pending().await
    }

    /// Whoever asks once more need not wait for anything.
    pub fn insist(mut self) {
        tokio::spawn(async move {
            let signal = self.next().await;
            // Nobody may be reading the log.
            let log = move || warn!(signal, "ending at once; a request in flight stays in the queue");
            let _ = timeout(LOGGED, tokio::task::spawn_blocking(log)).await;
            std::process::exit(FAILED.into());
        });
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
            block_in_place(|| info!("SIGHUP: replaying now"));
            outbox.wake();
        }
    }
}
