//! The loop that replays in the background: a pass at the start, then at ticks and wakes. The component says
//! when the next tick is due; the driver only sleeps.

use crate::Error;
use crate::model::{Event, Report};
use crate::outbox::{Inner, Outbox};
use crate::root::Lock;
use crate::watch::Watch;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// The pause after a pass that failed as a whole, and the shortest one after any.
const AFTER_FAILURE: Duration = Duration::from_secs(30);
const SHORTEST: Duration = Duration::from_millis(100);

/// The running loop. It ends with the last handle of its outbox.
pub(crate) struct Driver {
    task: JoinHandle<()>,
    _watch: Option<Watch>,
}

impl Driver {
    pub(crate) async fn join(self) {
        let _ = self.task.await;
    }
}

/// Starts the loop for an outbox, if no other host has this root.
pub(crate) fn start(outbox: &Outbox, watched: bool) -> Result<(), Error> {
    let inner = &outbox.0;
    let lock = Arc::new(Lock::take(inner.root())?);
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
    let task = tokio::spawn(drive(Arc::downgrade(inner), inner.stop.subscribe(), lock));
    *inner.driver() = Some(Driver { task, _watch: watch });
    Ok(())
}

/// Ends when it is told to, or when nobody holds the outbox any more.
async fn drive(outbox: Weak<Inner>, mut stop: tokio::sync::watch::Receiver<bool>, lock: Arc<Lock>) {
    let mut last: Option<Report> = None;
    let mut woken = true;
    while let Some(inner) = outbox.upgrade() {
        let resume = last.take().map(|report| report.resume);
        let result = inner.pass(&lock, woken, resume).await;
        let delay = match &result {
            Ok(report) => Duration::from_millis(report.next_delay_ms).max(SHORTEST),
            Err(error) => {
                tracing::error!("pass failed: {error}");
                inner.events.tell(|| Event::Failed(error.to_string()));
                AFTER_FAILURE
            }
        };
        last = result.ok();
        if *stop.borrow() {
            return;
        }
        inner.known().next_pass = Some(Instant::now() + delay);
        // Not held while asleep, so that the last handle's drop is noticed: it closes `stop`.
        let wake = inner.wake.clone();
        drop(inner);
        woken = tokio::select! {
            () = tokio::time::sleep(delay) => false,
            () = wake.notified() => true,
            _ = stop.changed() => return,
        };
    }
}
