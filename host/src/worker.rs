//! A thread that owns an instance and makes passes: file calls of the guest block it, and its connections live
//! on it. Whoever wants something of the instance sends a job. A job that ends in a trap costs the instance: the next job gets
//! a fresh one. With nothing left to do, instance and thread end after a while: a process may have a thousand outboxes, most of
//! them idle.

use crate::Error;
use crate::recipe::Recipe;
use crate::sandbox::Instance;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

type Finished = Pin<Box<dyn Future<Output = Left>>>;
/// Is given an instance, or why none could be had.
type Job = Box<dyn FnOnce(Result<Instance, Error>) -> Finished + Send>;

/// What a job leaves behind of its instance.
enum Left {
    /// Nothing: it trapped, or was abandoned, or there was none.
    Spent,
    /// An instance that knows what is needed again.
    Needed(Instance),
    /// An instance like any other.
    Idle(Instance),
}

/// How long such a one is kept. Longer than anybody may need from an entry's id to its publication: what the pass has
/// delivered meanwhile is known to its instance alone (the component's `chain` module).
const IDLE: Duration = if cfg!(test) { Duration::from_millis(20) } else { Duration::from_secs(60) };

/// Sends jobs to the thread, which is started when there is one, and ends at the latest when this is dropped and its jobs
/// are done.
pub(crate) struct Worker {
    name: &'static str,
    recipe: Recipe,
    /// Its work can wait for that of others.
    background: bool,
    jobs: Mutex<Option<Jobs>>,
}

type Jobs = mpsc::UnboundedSender<Job>;

impl Worker {
    /// Without a thread yet.
    pub(crate) fn new(name: &'static str, recipe: Recipe) -> Worker {
        Worker { name, recipe, background: false, jobs: Mutex::default() }
    }

    /// The same for work that can wait for that of others.
    pub(crate) fn in_background(name: &'static str, recipe: Recipe) -> Worker {
        Worker { background: true, ..Worker::new(name, recipe) }
    }

    /// Hands a job to the thread that runs, or to a fresh one.
    fn send(&self, mut job: Job) -> Result<(), Error> {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = &*jobs {
            match running.send(job) {
                Ok(()) => return Ok(()),
                // It has just ended.
                Err(refused) => job = refused.0,
            }
        }
        let fresh = self.start()?;
        let _ = fresh.send(job);
        *jobs = Some(fresh);
        Ok(())
    }

    #[cfg(test)]
    pub(crate) fn is_running(&self) -> bool {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.as_ref().is_some_and(|jobs| !jobs.is_closed())
    }

    fn start(&self) -> Result<Jobs, Error> {
        let (jobs, inbox) = mpsc::unbounded_channel();
        let (recipe, background) = (self.recipe.clone(), self.background);
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        match recipe.many {
            // Another thread carries the connections ([`crate::pool`]). With none of its own to watch over, this one is
            // woken without a system call while it runs.
            true => runtime.enable_time(),
            false => runtime.enable_all(),
        };
        let runtime =
            runtime.build().map_err(|e| Error::Component(format!("no runtime for a thread: {e}")))?;
        // Handed over once the thread is there: dropped here, where others may be waited for, it would panic.
        let (give, given) = std::sync::mpsc::channel::<tokio::runtime::Runtime>();
        let thread = std::thread::Builder::new().name(format!("outbox-{}", self.name)).spawn(move || {
            if background {
                step_back();
            }
            if let Ok(runtime) = given.recv() {
                runtime.block_on(work(recipe, inbox));
                // A credential's callback may hang.
                runtime.shutdown_background();
            }
        });
        if let Err(e) = thread {
            runtime.shutdown_background();
            return Err(Error::Component(format!("no thread can be started: {e}")));
        }
        let _ = give.send(runtime);
        Ok(jobs)
    }

    /// Runs a job on the thread and awaits its result, which says whether its instance will be needed again. The job runs to
    /// its end also where nobody awaits that any more. `held` is let go of then, and not before an instance that is spent is
    /// gone. No request of that sends anything new from then on, but its connection may be open for a moment longer, and
    /// what was handed to the system still arrives.
    pub(crate) async fn call<T, F>(
        &self,
        job: F,
        needed: fn(&Result<T, Error>) -> bool,
        held: impl Send + 'static,
    ) -> Result<T, Error>
    where
        T: Send + 'static,
        F: AsyncFnOnce(&mut Instance) -> Result<T, Error> + Send + 'static,
    {
        let (answer, result) = oneshot::channel();
        self.send(Box::new(move |instance| {
            Box::pin(async move {
                let (result, left) = match instance {
                    Ok(mut instance) => {
                        let result = job(&mut instance).await;
                        let left = match &result {
                            Err(Error::Trapped(_) | Error::Abandoned) => {
                                drop(instance);
                                Left::Spent
                            }
                            result if needed(result) => Left::Needed(instance),
                            _ => Left::Idle(instance),
                        };
                        (result, left)
                    }
                    Err(error) => (Err(error), Left::Spent),
                };
                drop(held);
                // Nobody may wait any more: the caller was cancelled.
                let _ = answer.send(result);
                left
            })
        }))?;
        match result.await {
            Ok(result) => result,
            Err(_) => {
                // Its inbox may still be there for a moment: what comes next is not for that.
                *self.jobs.lock().unwrap_or_else(PoisonError::into_inner) = None;
                let why =
                    "its thread ended in a panic, which stderr shows; a credential's callback may not panic";
                Err(Error::Trapped(why.into()))
            }
        }
    }
}

/// Gives this thread a processor when nobody else wants it, and little of one where all are busy.
fn step_back() {
    // Elsewhere, this is the whole process's.
    #[cfg(target_os = "linux")]
    {
        const LOWEST: i32 = 19;
        let _ = rustix::process::setpriority_process(None, LOWEST);
    }
}

async fn work(recipe: Recipe, mut inbox: mpsc::UnboundedReceiver<Job>) {
    let mut instance: Option<Instance> = None;
    let mut needed = false;
    loop {
        let next = match needed {
            true => inbox.recv().await,
            false => match tokio::time::timeout(IDLE, inbox.recv()).await {
                Ok(next) => next,
                // No further one is taken; one that came just now is done.
                Err(_) => {
                    inbox.close();
                    inbox.recv().await
                }
            },
        };
        let Some(job) = next else { return };
        let current = match instance.take() {
            Some(current) => Ok(current),
            None => recipe.instance().await,
        };
        (instance, needed) = match job(current).await {
            Left::Spent => (None, false),
            Left::Needed(instance) => (Some(instance), true),
            Left::Idle(instance) => (Some(instance), false),
        };
    }
}
