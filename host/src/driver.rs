//! The loop that replays in the background: a pass at the start, then at ticks and wakes. The component says
//! when the next tick is due; the driver only sleeps.

use crate::Error;
use crate::model::{Event, Report};
use crate::outbox::{Inner, Outbox};
use crate::root::Lock;
use crate::watch::Watch;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// The pause after a pass that failed as a whole, and the shortest one after any.
const AFTER_FAILURE: Duration = Duration::from_secs(30);
const SHORTEST: Duration = Duration::from_millis(100);

/// The running loop. It ends when its outbox is stopped: by a shutdown, or with the last handle. And by itself where its
/// directory was replaced: another host may replay that.
#[derive(Clone)]
pub(crate) struct Driver {
    /// Closed at its end; then why, where it ended by itself.
    running: watch::Receiver<Option<Error>>,
}

impl Driver {
    /// Whether it goes on. It ends without being asked to where its runtime does.
    pub(crate) fn is_running(&self) -> bool {
        self.running.has_changed().is_ok()
    }

    /// Returns when it has ended, to everybody who waits for that: why, where it ended by itself.
    pub(crate) async fn ended(mut self) -> Option<Error> {
        while self.running.changed().await.is_ok() {}
        self.running.borrow().clone()
    }
}

/// Starts the loop for an outbox, if no other host has this root.
pub(crate) fn start(outbox: &Outbox, watched: bool) -> Result<(), Error> {
    let inner = outbox.0.clone();
    // Held meanwhile, so that a shutdown either is seen here or sees the driver.
    let mut driver = outbox.0.driver();
    let lock = inner.lock()?;
    let watch = watched.then(|| inner.watches().watch(inner.root(), inner.wake.clone()));
    let watch = match watch.transpose() {
        Ok(watch) => watch,
        Err(error) => {
            tracing::warn!(
                "the directory cannot be watched, so other processes' entries wait for a tick: {error}"
            );
            None
        }
    };
    let (ending, running) = watch::channel(None);
    tokio::spawn(drive(inner, Holds { _watch: watch, lock, ending }));
    *driver = Some(Driver { running });
    Ok(())
}

/// What a driver holds, given back in this order, also where its runtime ends it.
struct Holds {
    /// Before the lock: whoever has that watches the same directory.
    _watch: Option<Watch>,
    lock: Arc<Lock>,
    ending: watch::Sender<Option<Error>>,
}

async fn drive(inner: Arc<Inner>, holds: Holds) {
    let lock = &holds.lock;
    let mut stop = inner.stop.subscribe();
    let mut last: Option<Report> = None;
    let mut woken = true;
    while !*stop.borrow() {
        let resume = last.take().map(|report| report.resume);
        // Without the lease, a stock host is at work.
        let result = match lock.in_place(inner.root()).and_then(|()| lock.lease.keep()) {
            Ok(()) => inner.pass(lock, woken, resume).await,
            Err(refused) => Err(refused),
        };
        // What fails for this reason does not say it.
        let result = result.map_err(|error| lock.in_place(inner.root()).err().unwrap_or(error));
        let delay = match &result {
            Ok(report) => Duration::from_millis(report.next_delay_ms).max(SHORTEST),
            Err(error) => {
                // Whoever listens logs it as he likes.
                if !inner.events.tell(|| Event::Failed(error.to_string())) {
                    tracing::error!("pass failed: {error}");
                }
                AFTER_FAILURE
            }
        };
        if let Err(replaced @ Error::Replaced(_)) = result {
            holds.ending.send_replace(Some(replaced));
            return;
        }
        last = result.ok();
        inner.known().next_pass = Some(Instant::now() + delay);
        woken = tokio::select! {
            () = tokio::time::sleep(delay) => false,
            () = inner.wake.notified() => true,
            _ = stop.wait_for(|stop| *stop) => return,
        };
    }
}
