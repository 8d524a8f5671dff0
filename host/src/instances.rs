//! Instances for calls into the queue. A call takes an idle one, or a fresh one, and runs on the thread that
//! asks for it: handing it to another thread and back would cost as much as queueing a small write. Calls
//! that come together run side by side, each in its own instance on the same directory. That is how durable writes
//! of many callers become fast: the file system makes those durable together that are synced at the same time
//! ([`crate::gather`] does the rest).

use crate::Error;
use crate::pace::PLACES;
use crate::recipe::Recipe;
use crate::sandbox::Instance;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;

/// Idle instances that are kept, of some 0.4 MiB each. More than 32 syncs at once brought nothing on the disks that were
/// measured.
pub(crate) const KEPT: usize = 32;

/// Bodies that are read at once. Each has a thread and an instance; further ones wait for their turn.
const BODIES: usize = 1024;

/// How long instances are kept that nobody uses.
const IDLE: Duration = if cfg!(test) { Duration::from_millis(20) } else { Duration::from_secs(10) };

/// Makes and keeps instances.
#[derive(Clone)]
pub(crate) struct Instances(Arc<Inner>);

struct Inner {
    recipe: Recipe,
    idle: Mutex<Vec<Instance>>,
    /// Goes up with each call.
    calls: AtomicU64,
    /// Turns to read a body.
    apart: Arc<Semaphore>,
    /// A task is waiting to let go of what is idle.
    letting_go: AtomicBool,
    /// Stages places ahead in some instance, or removes them.
    staging: Mutex<Option<JoinHandle<()>>>,
}

impl Instances {
    pub(crate) fn new(recipe: Recipe) -> Instances {
        Instances(Arc::new(Inner {
            recipe,
            idle: Mutex::default(),
            calls: AtomicU64::new(0),
            apart: Arc::new(Semaphore::new(BODIES)),
            letting_go: AtomicBool::new(false),
            staging: Mutex::default(),
        }))
    }

    /// Runs a job on an instance. Its file calls block the thread, which tokio is told.
    pub(crate) async fn call<T, F>(&self, job: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: AsyncFnOnce(&mut Instance) -> Result<T, Error> + Send + 'static,
    {
        let tokio = Handle::current();
        match tokio.runtime_flavor() {
            RuntimeFlavor::MultiThread => tokio::task::block_in_place(|| tokio.block_on(self.run(job))),
            // The only thread of the others must not be blocked.
            _ => {
                let this = self.clone();
                let run = move || tokio.block_on(this.run(job));
                match tokio::task::spawn_blocking(run).await {
                    Ok(done) => done,
                    // Of something that the caller gave it: his, as on his own thread.
                    Err(error) => match error.try_into_panic() {
                        Ok(panic) => std::panic::resume_unwind(panic),
                        Err(_) => Err(Error::ShutDown),
                    },
                }
            }
        }
    }

    /// The same on a thread of its own, for jobs that wait for a body. Of the threads that tokio keeps for what
    /// blocks, slow bodies could take all, and nothing would be left to fetch them. Whoever no longer waits for the result
    /// ends the job.
    pub(crate) async fn call_apart<T, F>(&self, job: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: AsyncFnOnce(&mut Instance) -> Result<T, Error> + Send + 'static,
    {
        let turn = self.0.apart.clone().acquire_owned().await.map_err(|_| Error::ShutDown)?;
        let (mut answer, result) = oneshot::channel();
        let (this, tokio) = (self.clone(), Handle::current());
        let run = move || {
            tokio.block_on(async move {
                let _turn = turn;
                let done = tokio::select! {
                    biased;
                    () = answer.closed() => return,
                    done = this.run(job) => done,
                };
                let _ = answer.send(done);
            });
        };
        std::thread::Builder::new()
            .name("outbox-body".into())
            .spawn(run)
            .map_err(|e| Error::Io(format!("no thread can be started for a body: {e}")))?;
        result.await.map_err(|_| Error::Trapped("its thread ended in a panic".into()))?
    }

    async fn run<T, F>(&self, job: F) -> Result<T, Error>
    where
        F: AsyncFnOnce(&mut Instance) -> Result<T, Error>,
    {
        let idle = self.0.idle().pop();
        let mut instance = match idle {
            Some(instance) => instance,
            None => self.0.recipe.instance().await?,
        };
        let result = job(&mut instance).await;
        self.0.calls.fetch_add(1, Ordering::Relaxed);
        if matches!(result, Err(Error::Trapped(_))) {
            return result;
        }
        match std::mem::take(&mut instance.wants_staging) {
            true => self.stage(instance),
            false => self.put_back(instance),
        }
        result
    }

    /// Keeps an instance for the next call.
    fn put_back(&self, instance: Instance) {
        {
            let mut idle = self.0.idle();
            if idle.len() < KEPT {
                idle.push(instance);
            }
        }
        if !self.0.letting_go.swap(true, Ordering::AcqRel) {
            tokio::spawn(let_go(LettingGo(Arc::downgrade(&self.0))));
        }
    }

    /// Stages places ahead in an instance, on another thread. Meanwhile, calls take another instance.
    fn stage(&self, mut instance: Instance) {
        let mut staging = self.0.staging();
        if staging.as_ref().is_some_and(|other| !other.is_finished()) {
            return self.put_back(instance);
        }
        let (this, tokio) = (self.clone(), Handle::current());
        *staging = Some(tokio::task::spawn_blocking(move || {
            if tokio.block_on(stage_ahead(&mut instance, PLACES)).is_ok() {
                this.put_back(instance);
            }
        }));
    }

    /// Removes what was staged ahead and is not used; whether that, or an attempt to stage, may have made room.
    pub(crate) async fn unstage(&self) -> bool {
        let staging = self.0.staging().take();
        let tried = staging.is_some();
        if let Some(staging) = staging {
            let _ = staging.await;
        }
        let idle = std::mem::take(&mut *self.0.idle());
        let removing = remove_staged(idle);
        let removed = removing.is_some();
        if let Some(removing) = removing {
            let _ = removing.await;
        }
        tried || removed
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let idle = std::mem::take(&mut *self.idle());
        remove_staged(idle);
    }
}

/// Makes or removes places in an instance until there are so many. An error means that it is spent.
async fn stage_ahead(instance: &mut Instance, count: u32) -> Result<(), Error> {
    let call = instance
        .guard(async |exports, store| exports.zddc_outbox_queue().call_stage_ahead(store, count).await);
    // What cannot be made now, a write makes itself, or says why not.
    instance.staged = call.await?.unwrap_or(0);
    Ok(())
}

/// Ends instances, on another thread where some have staged ahead: these remove that first, which takes some file calls.
fn remove_staged(mut instances: Vec<Instance>) -> Option<JoinHandle<()>> {
    instances.retain(|instance| instance.staged > 0);
    let tokio = Handle::try_current().ok().filter(|_| !instances.is_empty())?;
    let remove = async move {
        for mut instance in instances {
            // What stays is swept an hour later.
            let _ = stage_ahead(&mut instance, 0).await;
        }
    };
    Some(tokio.clone().spawn_blocking(move || tokio.block_on(remove)))
}

#[cfg(test)]
impl Instances {
    pub(crate) fn are_kept(&self) -> bool {
        !self.0.idle().is_empty()
    }

    fn is_staging(&self) -> bool {
        self.0.staging().as_ref().is_some_and(|staging| !staging.is_finished())
    }
}

impl Inner {
    fn idle(&self) -> MutexGuard<'_, Vec<Instance>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn staging(&self) -> MutexGuard<'_, Option<JoinHandle<()>>> {
        self.staging.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// As long as a task waits to let go, which may be ended with its runtime.
struct LettingGo(Weak<Inner>);

impl Drop for LettingGo {
    fn drop(&mut self) {
        if let Some(inner) = self.0.upgrade() {
            inner.letting_go.store(false, Ordering::Release);
        }
    }
}

/// Drops the instances once there was no call for a while.
async fn let_go(instances: LettingGo) {
    let mut seen = None;
    loop {
        tokio::time::sleep(IDLE).await;
        let Some(inner) = instances.0.upgrade() else { return };
        let calls = inner.calls.load(Ordering::Relaxed);
        if seen.replace(calls) == Some(calls) {
            drop(instances);
            // Taken first, dropped then: a call that comes now does not wait for that. One that ends now may lose its
            // instance, too.
            let gone = std::mem::take(&mut *inner.idle());
            if let Some(removing) = remove_staged(gone) {
                inner.staging().replace(removing);
            }
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{Durability, Outbox, Write};
    use std::path::{Path, PathBuf};
    use std::time::{Duration, Instant};

    fn outbox(root: &Path) -> Outbox {
        Outbox::builder(root).durability(Durability::None).open().unwrap()
    }

    fn staged(root: &Path) -> Vec<PathBuf> {
        let Ok(names) = std::fs::read_dir(root.join(".zddc-outbox/.staging")) else { return Vec::new() };
        names.map(|name| name.unwrap().path()).collect()
    }

    async fn queue(outbox: &Outbox, number: usize) {
        outbox.enqueue_write(Write::new("PUT", format!("/{number}")), "body".into()).await.unwrap();
    }

    /// Queues until places are staged ahead; how many writes that took, and one of the places.
    async fn queue_until_staged(outbox: &Outbox, root: &Path) -> (usize, PathBuf) {
        let until = Instant::now() + Duration::from_secs(60);
        for number in 0.. {
            assert!(Instant::now() < until, "nothing is staged ahead");
            queue(outbox, number).await;
            // Not asked for again later: idle instances soon remove theirs.
            if let [place, _, ..] = &staged(root)[..] {
                return (number + 1, place.clone());
            }
        }
        unreachable!()
    }

    async fn is_in_order(outbox: &Outbox, count: usize) {
        let entries = outbox.pending(None, u32::MAX).await.unwrap();
        let found: Vec<String> = entries.into_iter().map(|entry| entry.raw_uri).collect();
        assert_eq!(found, (0..count).map(|number| format!("/{number}")).collect::<Vec<_>>());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_caller_who_writes_on_and_on_has_places_staged_ahead_which_are_used_and_removed() {
        let root = tempfile::tempdir().unwrap();
        let outbox = outbox(root.path());
        let (before, first) = queue_until_staged(&outbox, root.path()).await;
        assert!(before > 16, "after {before} writes");
        let mut count = before;
        while first.exists() {
            queue(&outbox, count).await;
            count += 1;
            assert!(count < before + 1000, "{} is not used", first.display());
        }
        is_in_order(&outbox, count).await;
        assert_eq!(outbox.verify().await.unwrap(), []);
        // Those that are left go with the instances that nobody uses.
        let until = Instant::now() + Duration::from_secs(60);
        while !staged(root.path()).is_empty() {
            assert!(Instant::now() < until, "places stay");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[test]
    fn a_handle_may_outlive_the_runtime_that_it_was_made_in() {
        let root = tempfile::tempdir().unwrap();
        let runtime = || tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let outbox = runtime().block_on(async {
            let outbox = Outbox::builder(root.path()).upstream("http://127.0.0.1:9").start().unwrap();
            queue(&outbox, 0).await;
            assert!(outbox.status().await.unwrap().replaying);
            outbox
        });
        runtime().block_on(async {
            queue(&outbox, 1).await;
            let until = Instant::now() + Duration::from_secs(60);
            // A pass that was under way has the lock until its request has ended.
            while outbox.status().await.unwrap().replaying {
                assert!(Instant::now() < until, "it is said to be replayed");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            while outbox.0.queue.are_kept() {
                assert!(Instant::now() < until, "instances are kept");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            outbox.start().unwrap();
            assert!(outbox.status().await.unwrap().replaying);
            outbox.shutdown().await;
        });
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn shutdown_removes_what_was_staged_ahead() {
        let root = tempfile::tempdir().unwrap();
        let outbox = outbox(root.path());
        queue_until_staged(&outbox, root.path()).await;
        outbox.shutdown().await;
        assert_eq!(staged(root.path()), Vec::<PathBuf>::new());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_place_that_somebody_removed_costs_no_write() {
        let root = tempfile::tempdir().unwrap();
        let outbox = outbox(root.path());
        let (mut count, _) = queue_until_staged(&outbox, root.path()).await;
        while outbox.0.queue.is_staging() {
            tokio::task::yield_now().await;
        }
        for place in staged(root.path()) {
            std::fs::remove_dir_all(place).unwrap();
        }
        for _ in 0..100 {
            queue(&outbox, count).await;
            count += 1;
        }
        is_in_order(&outbox, count).await;
    }
}
