//! Instances for calls into the queue. A call takes an idle one, or a fresh one, and runs on the thread that
//! asks for it: handing it to another thread and back would cost as much as queueing a small write. Calls
//! that come together run side by side, each in its own instance on the same directory. That is how durable writes
//! of many callers become fast: the file system makes those durable together that are synced at the same time
//! ([`crate::gather`] does the rest).

use crate::Error;
use crate::recipe::Recipe;
use crate::sandbox::Instance;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::runtime::{Handle, RuntimeFlavor};

/// Idle instances that are kept, of some 0.4 MiB each. More than 32 syncs at once brought nothing on the disks that were
/// measured.
pub(crate) const KEPT: usize = 32;

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
    /// A task is waiting to let go of what is idle.
    letting_go: AtomicBool,
}

impl Instances {
    pub(crate) fn new(recipe: Recipe) -> Instances {
        Instances(Arc::new(Inner {
            recipe,
            idle: Mutex::default(),
            calls: AtomicU64::new(0),
            letting_go: AtomicBool::new(false),
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
                tokio::task::spawn_blocking(run).await.map_err(|_| Error::ShutDown)?
            }
        }
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
        let spent = matches!(result, Err(Error::Trapped(_)));
        self.0.calls.fetch_add(1, Ordering::Relaxed);
        {
            let mut idle = self.0.idle();
            if !spent && idle.len() < KEPT {
                idle.push(instance);
            }
        }
        if !self.0.letting_go.swap(true, Ordering::AcqRel) {
            tokio::spawn(let_go(Arc::downgrade(&self.0)));
        }
        result
    }
}

#[cfg(test)]
impl Instances {
    pub(crate) fn are_kept(&self) -> bool {
        !self.0.idle().is_empty()
    }
}

impl Inner {
    fn idle(&self) -> MutexGuard<'_, Vec<Instance>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Drops the instances once there was no call for a while.
async fn let_go(instances: Weak<Inner>) {
    let mut seen = None;
    loop {
        tokio::time::sleep(IDLE).await;
        let Some(inner) = instances.upgrade() else { return };
        let calls = inner.calls.load(Ordering::Relaxed);
        if seen.replace(calls) == Some(calls) {
            inner.letting_go.store(false, Ordering::Release);
            // Taken first, dropped then: a call that comes now does not wait for that. One that ends now may lose its
            // instance, too.
            let gone = std::mem::take(&mut *inner.idle());
            drop(gone);
            return;
        }
    }
}
