//! A thread that owns an instance and makes passes: file calls of the guest block it, and its connections live
//! on it. Whoever wants something of the instance sends a job. A job that ends in a trap costs the instance: the next job gets
//! a fresh one.

use crate::Error;
use crate::recipe::Recipe;
use crate::sandbox::Instance;
use std::pin::Pin;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

type Finished<'a> = Pin<Box<dyn Future<Output = Spent> + 'a>>;
type Job = Box<dyn for<'a> FnOnce(&'a mut Instance) -> Finished<'a> + Send>;

/// Whether a job has used its instance up.
pub(crate) struct Spent(bool);

/// Sends jobs to the thread, which ends when this is dropped and its jobs are done.
pub(crate) struct Worker {
    jobs: mpsc::UnboundedSender<(Job, Refuse)>,
}

/// Tells the sender of a job that no instance could be had for it.
type Refuse = Box<dyn FnOnce(Error) + Send>;

impl Worker {
    /// Starts the thread. The first instance is made with the first job.
    pub(crate) fn start(name: &str, recipe: Recipe) -> Result<Worker, Error> {
        let (jobs, inbox) = mpsc::unbounded_channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| Error::Component(format!("no runtime for a thread: {e}")))?;
        std::thread::Builder::new()
            .name(format!("outbox-{name}"))
            .spawn(move || runtime.block_on(work(recipe, inbox)))
            .map_err(|e| Error::Component(format!("no thread can be started: {e}")))?;
        Ok(Worker { jobs })
    }

    /// Runs a job on the thread and awaits its result.
    pub(crate) async fn call<T, F>(&self, job: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: AsyncFnOnce(&mut Instance) -> Result<T, Error> + Send + 'static,
    {
        let (answer, result) = oneshot::channel();
        let answer = Arc::new(std::sync::Mutex::new(Some(answer)));
        let take = move |answer: &std::sync::Mutex<Option<oneshot::Sender<_>>>| {
            answer.lock().ok().and_then(|mut slot| slot.take())
        };
        let on_refusal = answer.clone();
        let refuse = move |error: Error| {
            if let Some(answer) = take(&on_refusal) {
                let _ = answer.send(Err(error));
            }
        };
        let run: Job = Box::new(move |instance| {
            Box::pin(async move {
                let result = job(instance).await;
                let spent = matches!(result, Err(Error::Trapped(_)));
                if let Some(answer) = take(&answer) {
                    // Nobody waits any more: the caller was cancelled.
                    let _ = answer.send(result);
                }
                Spent(spent)
            })
        });
        self.jobs.send((run, Box::new(refuse))).map_err(|_| Error::ShutDown)?;
        result.await.map_err(|_| Error::ShutDown)?
    }
}

async fn work(recipe: Recipe, mut inbox: mpsc::UnboundedReceiver<(Job, Refuse)>) {
    let mut instance: Option<Instance> = None;
    while let Some((job, refuse)) = inbox.recv().await {
        let mut current = match instance.take() {
            Some(current) => current,
            None => match recipe.instance().await {
                Ok(fresh) => fresh,
                Err(error) => {
                    refuse(error);
                    continue;
                }
            },
        };
        let Spent(spent) = job(&mut current).await;
        instance = (!spent).then_some(current);
    }
}
