//! The handle of an outbox.

use crate::Error;
use crate::bindings::exports::zddc::outbox::queue as wit_queue;
use crate::bindings::zddc::outbox::types as wit;
use crate::body::{self, Body, Kind};
use crate::builder::Builder;
use crate::disk::Disk;
use crate::driver::{self, Driver};
use crate::egress;
use crate::gather::Gather;
use crate::instances::Instances;
use crate::model::{Counts, Entry, Event, Finding, Health, Item, Report, Usage};
use crate::pass::{Events, GRACE, Known};
use crate::recipe::Recipe;
use crate::root::{self, Lock};
use crate::sandbox::{Instance, State};
use crate::watch::Watches;
use crate::worker::Worker;
use crate::write::Write;
use bytes::Bytes;
use serde::Serialize;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, broadcast, watch};
use tokio::time::timeout;

/// Entries that were set aside, per call: more than their replies let a page have.
const ITEMS: u32 = 4096;

/// An outbox. Cheap to clone; all clones are the same outbox. With the last of them it stops, as by [`Outbox::shutdown`],
/// which nobody waits for then. [`Outbox::start`] and what is awaited here are to be called within a tokio runtime that has
/// its timer.
#[derive(Clone)]
pub struct Outbox(pub(crate) Arc<Inner>, Arc<Handles>);

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Outbox").field(&self.0.root()).finish()
    }
}

/// What all handles share, and nothing else: a driver at work holds the rest, too.
struct Handles(watch::Sender<bool>);

impl Handles {
    fn stop(&self) {
        self.0.send_replace(true);
    }
}

impl Drop for Handles {
    fn drop(&mut self) {
        self.stop();
    }
}

pub(crate) struct Inner {
    recipe: Recipe,
    /// The queue's directory, as it was opened.
    place: Option<(u64, u64)>,
    pub(crate) queue: Instances,
    pub(crate) gather: Gather,
    pub(crate) replayer: Worker,
    pub(crate) sweeper: Arc<Worker>,
    pub(crate) events: Events,
    pub(crate) wake: Arc<Notify>,
    /// Set once, when the outbox shuts down, or its last handle goes.
    pub(crate) stop: watch::Sender<bool>,
    pub(crate) known: Mutex<Known>,
    pub(crate) driver: Mutex<Option<Driver>>,
    /// Each pass has a receiver until it has let go of its lock.
    pub(crate) passes: watch::Sender<()>,
}

/// How an outbox is.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// How many entries are where.
    #[serde(flatten)]
    pub counts: Counts,
    /// Whether some host is replaying this root: this process, or another.
    pub replaying: bool,
    /// That host's process id, where known.
    pub pid: Option<u32>,
    /// How the last pass of this process found the upstream.
    pub upstream: Option<Health>,
    /// When the next pass of this process is due at the latest, in milliseconds.
    pub next_pass_ms: Option<u64>,
    /// The last pass of this process.
    pub last: Option<Report>,
}

/// What to keep of a conflict.
#[derive(Debug)]
pub enum Keep {
    /// The write: it is queued again on top of the server's version.
    Mine,
    /// The server's version: the write is dropped.
    Theirs,
    /// This body, merged from both: it is queued on top of the server's version.
    Merged(Body),
}

impl Outbox {
    /// Configures the outbox in a directory.
    pub fn builder(root: impl AsRef<Path>) -> Builder {
        Builder::new(root.as_ref())
    }

    pub(crate) fn of(recipe: Recipe, disk: Option<Disk>) -> Outbox {
        let stop = watch::Sender::new(false);
        let handles = Arc::new(Handles(stop.clone()));
        let inner = Inner {
            queue: Instances::new(recipe.clone()),
            gather: Gather::new(disk),
            replayer: Worker::new("replay", recipe.clone()),
            sweeper: Arc::new(Worker::in_background("sweep", recipe.clone())),
            place: root::id(&recipe.root),
            recipe,
            events: Events::default(),
            wake: Arc::default(),
            stop,
            known: Mutex::default(),
            driver: Mutex::default(),
            passes: watch::Sender::new(()),
        };
        Outbox(Arc::new(inner), handles)
    }

    /// Queues the write that a request asks for; its If-Match, If-None-Match: * or If-Unmodified-Since say
    /// which version the author had seen. The id is returned once everything is synced.
    pub async fn enqueue(&self, request: http::Request<Body>) -> Result<String, Error> {
        let (parts, body) = request.into_parts();
        self.enqueue_write(Write::from_http(&parts)?, body).await
    }

    /// Queues a write given in parts.
    pub async fn enqueue_write(&self, write: Write, body: Body) -> Result<String, Error> {
        let request: wit::Request = write.into();
        let queued = match body.0.whole() {
            Ok(bytes) => self.0.gather.enqueue(&self.0.queue, request, bytes).await,
            Err(Kind::Bytes(bytes)) => {
                let again = (request.clone(), Kind::Bytes(bytes.clone()));
                match self.enqueue_stream(request, Kind::Bytes(bytes)).await {
                    // There may be some now.
                    Err(Error::NoSpace) if self.0.queue.unstage().await => {
                        self.enqueue_stream(again.0, again.1).await
                    }
                    queued => queued,
                }
            }
            Err(stream) => self.enqueue_stream(request, stream).await,
        };
        match &queued {
            Ok(_) => self.0.wake.notify_one(),
            // What is staged ahead takes some.
            Err(Error::NoSpace) => _ = self.0.queue.unstage().await,
            Err(_) => {}
        }
        queued
    }

    async fn enqueue_stream(&self, request: wit::Request, stream: Kind) -> Result<String, Error> {
        let call = async move |queue: &wit_queue::Guest, store: &mut wasmtime::Store<State>| {
            let body = body::input_stream(stream, store.data().deadline);
            let body = store.data_mut().table.push(body)?;
            queue.call_enqueue(store, &request, body).await
        };
        self.0.queue.call_apart(job(call)).await
    }

    /// Pending entries in queue order: at most `limit`, those after the id `after`. Fewer where records are long: only an
    /// empty list means that there are no more.
    pub async fn pending(&self, after: Option<String>, limit: u32) -> Result<Vec<Entry>, Error> {
        let entries = self
            .queue(async move |queue, store| queue.call_pending(store, after.as_ref(), limit).await)
            .await?;
        Ok(entries.into_iter().map(Into::into).collect())
    }

    /// How many entries are where.
    pub async fn count(&self) -> Result<Counts, Error> {
        self.queue(async |queue, store| queue.call_count(store).await).await.map(Into::into)
    }

    /// What the outbox takes up. Looks at every entry: with 100,000 of them this takes a second or more.
    pub async fn usage(&self) -> Result<Usage, Error> {
        self.queue(async |queue, store| queue.call_usage(store).await).await.map(Into::into)
    }

    /// Everything that was set aside, oldest first.
    pub async fn quarantined(&self) -> Result<Vec<Item>, Error> {
        let mut items: Vec<Item> = Vec::new();
        loop {
            let after = items.last().map(|item| item.name.clone());
            let page = self
                .queue(async move |queue, store| queue.call_quarantined(store, after.as_deref(), ITEMS).await)
                .await?;
            if page.is_empty() {
                return Ok(items);
            }
            items.extend(page.into_iter().map(Into::into));
        }
    }

    /// An entry by its name, or by its id wherever it is.
    pub async fn get(&self, name: impl Into<String>) -> Result<Item, Error> {
        let name = name.into();
        self.queue(async move |queue, store| queue.call_get(store, &name).await).await.map(Into::into)
    }

    /// Reads an entry's body, giving each chunk to `each`, which may not use tokio's blocking calls (they panic): async code is
    /// given the chunks through a channel without a limit, or one of `std`.
    pub async fn read_body(
        &self,
        name: impl Into<String>,
        mut each: impl FnMut(Bytes) -> std::io::Result<()> + Send + 'static,
    ) -> Result<(), Error> {
        let name = name.into();
        let job = async move |instance: &mut Instance| {
            let stream = instance
                .guard(async |exports, store| exports.zddc_outbox_queue().call_read_body(store, &name).await)
                .await??;
            let unusable = |e: String| Error::Trapped(format!("the body's stream: {e}"));
            let table = &mut instance.store.data_mut().table;
            let mut stream = table.delete(stream).map_err(|e| unusable(e.to_string()))?;
            loop {
                use wasmtime_wasi::p2::StreamError;
                match stream.blocking_read(64 * 1024).await {
                    Ok(chunk) => each(chunk).map_err(|e| Error::BodyFailed(e.to_string()))?,
                    Err(StreamError::Closed) => return Ok(()),
                    Err(e) => return Err(Error::Io(format!("cannot read the body: {e}"))),
                }
            }
        };
        self.0.queue.call(job).await
    }

    /// Ends a conflict; the new entry's id where the write was queued again.
    pub async fn resolve(&self, name: impl Into<String>, keep: Keep) -> Result<Option<String>, Error> {
        let name = name.into();
        let keep = match keep {
            Keep::Mine => wit_queue::Keep::Mine,
            Keep::Theirs => wit_queue::Keep::Theirs,
            Keep::Merged(body) => {
                let merged = async move |queue: &wit_queue::Guest, store: &mut wasmtime::Store<State>| {
                    let body = body::input_stream(body.0, store.data().deadline);
                    let body = store.data_mut().table.push(body)?;
                    queue.call_resolve_with(store, &name, body).await
                };
                let id = self.0.queue.call_apart(job(merged)).await?;
                self.0.wake.notify_one();
                return Ok(Some(id));
            }
        };
        let id = self.queue(async move |queue, store| queue.call_resolve(store, &name, keep).await).await?;
        self.0.wake.notify_one();
        Ok(id)
    }

    /// Makes an entry due now, or puts a conflict or a rejected entry back into the queue.
    pub async fn retry(&self, name: impl Into<String>) -> Result<(), Error> {
        let name = name.into();
        self.queue(async move |queue, store| queue.call_retry(store, &name).await).await?;
        self.wake_whoever_replays();
        Ok(())
    }

    /// Removes an entry for good. What waited for it may go then.
    pub async fn drop_entry(&self, name: impl Into<String>) -> Result<(), Error> {
        let name = name.into();
        self.queue(async move |queue, store| queue.call_drop(store, &name).await).await?;
        self.wake_whoever_replays();
        Ok(())
    }

    /// After something that nobody sees who watches the directory: nothing new is in it.
    fn wake_whoever_replays(&self) {
        self.0.wake.notify_one();
        // Where nobody replays, nobody is to be told.
        if !self.0.is_driven() {
            let _ = self.wake_host();
        }
    }

    /// Reads everything, bodies too, and changes nothing.
    pub async fn verify(&self) -> Result<Vec<Finding>, Error> {
        let findings = self.queue(async |queue, store| queue.call_verify(store).await).await?;
        Ok(findings.into_iter().map(Into::into).collect())
    }

    /// Replays in the background from now on: at once, then at ticks and wakes. Whoever wants to see everything that
    /// happens subscribes before. Fails where another host replays this root.
    pub fn start(&self) -> Result<(), Error> {
        driver::start(self, self.0.recipe.watch)
    }

    /// Returns when what [`Outbox::start`] began has ended, at once where nothing was begun. It ends by itself, with an error
    /// ([`Error::Replaced`]), where its directory was removed or replaced: the next one is for a new outbox.
    pub async fn ended(&self) -> Result<(), Error> {
        let driver = self.0.driver().clone();
        match driver {
            Some(driver) => driver.ended().await.map_or(Ok(()), Err),
            None => Ok(()),
        }
    }

    /// Makes one pass now, on demand. Fails where some host is already replaying this root. Where this future is dropped, the
    /// pass starts nothing further, and has the lock until the request in flight has ended, or its 10 s are over.
    pub async fn replay(&self) -> Result<Report, Error> {
        self.0.pass(&self.0.lock()?, true, None).await
    }

    /// Makes one pass as the driver does at a tick, on what the last one said: after one that found the upstream away,
    /// one request, and nothing is looked at. For programs with a timer of their own. Fails as
    /// [`Outbox::replay`] does.
    pub async fn tick(&self, last: &Report) -> Result<Report, Error> {
        self.0.pass(&self.0.lock()?, false, Some(last.resume.clone())).await
    }

    /// Asks the driver for a pass now; forgets the upstream's backoff. Wakes that come together are one.
    pub fn wake(&self) {
        self.0.wake.notify_one();
    }

    /// Asks whichever process replays this root for a pass now; its id, where known. One that makes a single pass
    /// ([`Outbox::replay`]) does not hear it.
    pub fn wake_host(&self) -> Result<Option<u32>, Error> {
        root::wake(&self.0.recipe.root)
    }

    /// How the outbox is.
    pub async fn status(&self) -> Result<Status, Error> {
        let counts = self.count().await?;
        let known = self.0.known().clone();
        let is_driven = self.0.is_driven();
        let holder = match is_driven {
            true => Some(Some(std::process::id())),
            // Where that may not be looked at, it is not known.
            false => Lock::holder(&self.0.recipe.root).unwrap_or_default(),
        };
        let next_pass = known.next_pass.filter(|_| is_driven);
        let left = next_pass.map(|at| at.saturating_duration_since(std::time::Instant::now()));
        Ok(Status {
            counts,
            replaying: holder.is_some() || root::leased(&self.0.recipe.root),
            pid: holder.flatten(),
            upstream: known.upstream,
            next_pass_ms: left.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
            last: known.last,
        })
    }

    /// Every event from now on. A subscriber that is slow loses the oldest ones.
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.0.events.subscribe()
    }

    /// Starts nothing further (one at most, where requests go one at a time and the server takes less than 10 ms), gives
    /// the request in flight 10 s to finish, also that of [`Outbox::replay`] and [`Outbox::tick`], ends the driver, and removes
    /// what was staged ahead. Whoever calls it a second time waits as well. What is queued afterwards stays for another outbox: this one replays no more
    /// ([`Error::ShutDown`]).
    pub async fn shutdown(&self) {
        self.1.stop();
        let driver = self.0.driver().clone();
        if let Some(driver) = driver {
            driver.ended().await;
            self.0.driver().take();
        }
        // Those on demand. One whose request does not end is abandoned after the same time.
        let _ = timeout(2 * GRACE, self.0.passes.closed()).await;
        // What stays is swept an hour later.
        let _ = timeout(GRACE, self.0.queue.unstage()).await;
    }

    /// A call into the `queue` interface.
    async fn queue<T, F>(&self, call: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: AsyncFnOnce(
                &wit_queue::Guest,
                &mut wasmtime::Store<State>,
            ) -> wasmtime::Result<Result<T, wit::Error>>
            + Send
            + 'static,
    {
        self.0.queue.call(job(call)).await
    }
}

/// A call into the `queue` interface, for an instance.
fn job<T, F>(call: F) -> impl AsyncFnOnce(&mut Instance) -> Result<T, Error> + Send + 'static
where
    F: AsyncFnOnce(&wit_queue::Guest, &mut wasmtime::Store<State>) -> wasmtime::Result<Result<T, wit::Error>>
        + Send
        + 'static,
{
    async move |instance: &mut Instance| {
        let result =
            instance.guard(async |exports, store| call(exports.zddc_outbox_queue(), store).await).await?;
        Ok(result?)
    }
}

impl Inner {
    pub(crate) fn root(&self) -> &Path {
        &self.recipe.root
    }

    pub(crate) fn watches(&self) -> &Watches {
        &self.recipe.runtime.0.watches
    }

    /// The right to replay, where there is an upstream, and before the outbox is stopped.
    pub(crate) fn lock(&self) -> Result<Arc<Lock>, Error> {
        if !self.recipe.egress.leads_out() {
            return Err(egress::no_upstream());
        }
        if *self.stop.borrow() {
            return Err(Error::ShutDown);
        }
        let lock = Lock::take(self.root())?;
        // What is here now is another's, or a new outbox's; the instances go on with what was.
        match root::id(self.root()) == self.place {
            true => Ok(Arc::new(lock)),
            false => Err(Error::Replaced(self.root().into())),
        }
    }

    pub(crate) fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn driver(&self) -> MutexGuard<'_, Option<Driver>> {
        self.driver.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_driven(&self) -> bool {
        self.driver().as_ref().is_some_and(Driver::is_running)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[tokio::test(flavor = "multi_thread")]
    async fn an_idle_outbox_keeps_neither_thread_nor_instance_and_goes_on_when_it_is_needed() {
        let root = tempfile::tempdir().unwrap();
        // Nothing is sent: nothing is queued.
        let outbox = Outbox::builder(root.path()).upstream("http://127.0.0.1:9").open().unwrap();
        for _ in 0..2 {
            outbox.count().await.unwrap();
            assert_eq!(outbox.replay().await.unwrap().remaining, 0);
            let until = Instant::now() + Duration::from_secs(60);
            while outbox.0.replayer.is_running() || outbox.0.sweeper.is_running() || outbox.0.queue.are_kept()
            {
                assert!(Instant::now() < until, "something is kept");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        // What a pass has learnt is needed as long as something waits. (Nobody listens there.)
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let root = tempfile::tempdir().unwrap();
        let outbox = Outbox::builder(root.path()).upstream(format!("http://{closed}")).open().unwrap();
        outbox.enqueue_write(Write::new("PUT", "/x"), Body::empty()).await.unwrap();
        assert_eq!(outbox.replay().await.unwrap().remaining, 1);
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(outbox.0.replayer.is_running());
        // A sweep that failed leaves nothing to remember.
        let fails = async |_: &mut Instance| Err::<(), _>(Error::NoSpace);
        outbox.0.sweeper.call(fails, |_| false, ()).await.unwrap_err();
        let until = Instant::now() + Duration::from_secs(60);
        while outbox.0.sweeper.is_running() {
            assert!(Instant::now() < until, "the sweeper is kept");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[cfg(target_os = "linux")]
    #[tokio::test(flavor = "multi_thread")]
    async fn only_the_thread_that_sweeps_steps_back() {
        let root = tempfile::tempdir().unwrap();
        let outbox = Outbox::builder(root.path()).upstream("http://127.0.0.1:9").open().unwrap();
        let own = rustix::process::getpriority_process(None).unwrap();
        for (worker, expected) in [(&*outbox.0.sweeper, 19), (&outbox.0.replayer, own)] {
            let job = async |_: &mut Instance| Ok(rustix::process::getpriority_process(None).unwrap());
            assert_eq!(worker.call(job, |_| false, ()).await.unwrap(), expected);
        }
    }
}
