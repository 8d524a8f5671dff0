//! One pass on the replayer's thread, what ends it before its time, and what is learnt from it.

use crate::Error;
use crate::bindings::exports::zddc::outbox::replayer;
use crate::model::{Delivery, Event, Health, Report, Resume};
use crate::outbox::Inner;
use crate::root::Lock;
use crate::sandbox::Instance;
use crate::sweep;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{broadcast, watch};
use tokio::time::timeout;

/// Events that a slow subscriber may be behind before it loses the oldest.
const EVENT_BACKLOG: usize = 4096;

/// How long the requests in flight may take to finish after a stop, and what is only tidying up at any time.
pub(crate) const GRACE: Duration = Duration::from_secs(10);

/// Tells subscribers what happens. The backlog takes a megabyte, so it is made for the first of them.
#[derive(Clone, Default)]
pub(crate) struct Events(Arc<OnceLock<broadcast::Sender<Event>>>);

impl Events {
    /// Whether anybody was told: all of them may have gone.
    pub(crate) fn tell(&self, event: impl FnOnce() -> Event) -> bool {
        self.0.get().is_some_and(|sender| sender.send(event()).is_ok())
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.0.get_or_init(|| broadcast::channel(EVENT_BACKLOG).0).subscribe()
    }
}

/// What is known of the upstream from the passes of this process.
#[derive(Debug, Clone, Default)]
pub(crate) struct Known {
    pub(crate) upstream: Option<Health>,
    pub(crate) last: Option<Report>,
    pub(crate) next_pass: Option<std::time::Instant>,
}

impl Inner {
    /// One pass. It holds the lock, too: it goes on for a while where its caller does not ([`Ends`]).
    pub(crate) async fn pass(
        &self,
        lock: &Arc<Lock>,
        wake: bool,
        resume: Option<Resume>,
    ) -> Result<Report, Error> {
        let (resume, sweep_every) = (resume.map(Into::into), Some(sweep::EVERY));
        let options = replayer::Options { wake, resume, budget_ms: None, sweep_every };
        let events = self.events.clone();
        let (_waiting, waited_for) = watch::channel(());
        let ends = Ends { shut_down: self.stop.subscribe(), waited_for, lock: lock.clone() };
        let (gone, sweeping) = sweep::beside(self.sweeper.clone());
        let job = async move |instance: &mut Instance| {
            tokio::select! {
                biased;
                done = pass(instance, options, events, gone, &ends) => done,
                () = ends.abandoned() => Err(Error::Abandoned),
            }
        };
        // Of one that failed, it is not known whether something waits.
        let waits = |report: &_| !matches!(report, Ok(Report { remaining: 0, .. }));
        let held = (lock.clone(), self.passes.subscribe());
        let report = self.replayer.call(job, waits, held).await;
        // Deleting goes on where it takes longer.
        let _ = timeout(GRACE, sweeping).await;
        if let Ok(report) = &report {
            self.events.tell(|| Event::Pass(report.clone()));
            let mut known = self.known();
            if report.asked() && known.upstream != Some(report.upstream) {
                known.upstream = Some(report.upstream);
                self.events.tell(|| Event::Upstream(report.upstream));
            }
            known.last = Some(report.clone());
        }
        report
    }
}

/// What ends a pass before its time. It then starts nothing further, and is abandoned a while later.
struct Ends {
    shut_down: watch::Receiver<bool>,
    /// Closed when nobody waits for its report any more.
    waited_for: watch::Receiver<()>,
    /// Its lease may be lost to a stock host.
    lock: Arc<Lock>,
}

impl Ends {
    fn is_stopped(&self) -> bool {
        *self.shut_down.borrow() || self.waited_for.has_changed().is_err() || self.lock.lease.lost().is_some()
    }

    /// Returns when the requests in flight have had their time since the stop.
    async fn abandoned(&self) {
        let (mut shut_down, mut waited_for) = (self.shut_down.clone(), self.waited_for.clone());
        tokio::select! {
            _ = shut_down.wait_for(|stop| *stop) => {}
            _ = waited_for.changed() => {}
            () = self.lock.lease.until_lost() => {}
        }
        tokio::time::sleep(GRACE).await;
    }
}

/// A pass from its first outcome to its report, on the instance's thread.
async fn pass(
    instance: &mut Instance,
    options: replayer::Options,
    events: Events,
    gone: impl Fn(),
    ends: &Ends,
) -> Result<Report, Error> {
    let pass = instance
        .guard(async |exports, store| exports.zddc_outbox_replayer().pass().call_start(store, &options).await)
        .await??;
    let (mut stopped, mut answered) = (false, false);
    loop {
        if !stopped && ends.is_stopped() {
            stopped = true;
            instance
                .guard(async |exports, store| {
                    exports.zddc_outbox_replayer().pass().call_stop(store, pass).await
                })
                .await?;
        }
        let next = instance
            .guard(async |exports, store| exports.zddc_outbox_replayer().pass().call_next(store, pass).await);
        match next.await? {
            Ok(Some(event)) => {
                answered |= event.status.is_some();
                if leaves(event.outcome) {
                    gone();
                }
                events.tell(|| Event::Delivery(Delivery::from(event)));
            }
            Ok(None) => break,
            Err(error) => {
                release(instance, pass).await?;
                return Err(error.into());
            }
        }
    }
    let report = instance
        .guard(async |exports, store| exports.zddc_outbox_replayer().pass().call_report(store, pass).await)
        .await?;
    release(instance, pass).await?;
    match ends.lock.lease.lost() {
        Some(leased) if stopped => Err(leased),
        _ => Ok(Report { answered, ..report.into() }),
    }
}

/// Whether an entry's files are deleted then.
fn leaves(outcome: replayer::Outcome) -> bool {
    use replayer::Outcome;
    matches!(outcome, Outcome::Delivered | Outcome::Dropped | Outcome::Superseded)
}

async fn release(instance: &mut Instance, pass: wasmtime::component::ResourceAny) -> Result<(), Error> {
    instance.guard(async |_, store| pass.resource_drop_async(store).await).await
}
