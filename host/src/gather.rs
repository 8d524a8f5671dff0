//! Small writes of many callers. One that comes alone is queued at once, on its caller's thread. Where more callers
//! come than calls run side by side, those that wait are queued together by the next caller whose turn it is: they
//! share a call, and the sync of the queue's directory.

use crate::Error;
use crate::bindings::exports::zddc::outbox::queue::Write;
use crate::bindings::zddc::outbox::types::Request;
use crate::instances::{Instances, KEPT};
use crate::pace::Pace;
use crate::sandbox::Instance;
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{Semaphore, oneshot};

/// Bytes of a body that is queued together with others, at most: all of them are in the component's memory.
const SMALL: usize = 64 * 1024;

/// Writes that are queued in one call, at most.
const TOGETHER: usize = 64;

/// The callers of one outbox.
pub(crate) struct Gather {
    /// As many calls run side by side as instances are kept: a fresh one must look through the queue's names before it
    /// gives out its first id.
    turns: Semaphore,
    waiting: Mutex<VecDeque<Waiting>>,
    /// Those that have no answer yet.
    callers: AtomicUsize,
    pace: Pace,
}

/// A write whose caller waits for its turn, or for somebody who takes it along.
struct Waiting {
    write: Write,
    answer: oneshot::Sender<Result<String, Error>>,
}

/// A caller, as long as it lives.
struct Caller<'a>(&'a AtomicUsize);

impl<'a> Caller<'a> {
    fn new(callers: &'a AtomicUsize) -> Caller<'a> {
        callers.fetch_add(1, Ordering::Relaxed);
        Caller(callers)
    }
}

impl Drop for Caller<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Gather {
    pub(crate) fn new() -> Gather {
        Gather {
            turns: Semaphore::new(KEPT),
            waiting: Mutex::default(),
            callers: AtomicUsize::new(0),
            pace: Pace::default(),
        }
    }

    /// Queues a write; its id.
    pub(crate) async fn enqueue(
        &self,
        queue: &Instances,
        request: Request,
        body: Bytes,
    ) -> Result<String, Error> {
        let _caller = Caller::new(&self.callers);
        if body.len() > SMALL {
            let _turn = self.turns.acquire().await.map_err(|_| Error::ShutDown)?;
            return alone(queue, request, body, false).await;
        }
        if let Ok(_turn) = self.turns.try_acquire() {
            // What several callers do keeps the processors busy, or the disk.
            let quick = self.pace.begin() && self.callers.load(Ordering::Relaxed) == 1;
            let queued = alone(queue, request, body, quick).await;
            self.pace.end(queued.is_ok());
            return queued;
        }
        let (answer, mut answered) = oneshot::channel();
        self.waiting().push_back(Waiting { write: Write { request, body: body.into() }, answer });
        loop {
            let turn = tokio::select! {
                biased;
                answer = &mut answered => return answer.unwrap_or(Err(Error::ShutDown)),
                turn = self.turns.acquire() => turn.map_err(|_| Error::ShutDown)?,
            };
            let share = self.share();
            if share.is_empty() {
                // Somebody has taken it along.
                drop(turn);
                return answered.await.unwrap_or(Err(Error::ShutDown));
            }
            together(queue, share).await;
        }
    }

    /// What the next call takes along: with all calls at work, everybody has the same share.
    fn share(&self) -> Vec<Waiting> {
        let count = self.callers.load(Ordering::Relaxed).div_ceil(KEPT).clamp(1, TOGETHER);
        let mut waiting = self.waiting();
        let mut share = Vec::new();
        while share.len() < count
            && let Some(next) = waiting.pop_front()
        {
            // Not what nobody waits for any more.
            if !next.answer.is_closed() {
                share.push(next);
            }
        }
        share
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, VecDeque<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Queues one. With `quick`, others come soon.
async fn alone(queue: &Instances, request: Request, body: Bytes, quick: bool) -> Result<String, Error> {
    let write = Arc::new((request, body));
    let job = || {
        let write = write.clone();
        async move |instance: &mut Instance| {
            let call = instance.guard(async |exports, store| {
                exports.zddc_outbox_queue().call_enqueue_bytes(store, &write.0, &write.1).await
            });
            let id = call.await??;
            instance.used(1, quick);
            Ok(id)
        }
    };
    match queue.call(job()).await {
        // There may be some now.
        Err(Error::NoSpace) if queue.unstage().await => queue.call(job()).await,
        queued => queued,
    }
}

/// Queues these in one call, and answers each caller.
async fn together(queue: &Instances, share: Vec<Waiting>) {
    let share = Arc::new(Mutex::new(share));
    let taken = share.clone();
    let job = async move |instance: &mut Instance| {
        let (writes, answers): (Vec<_>, Vec<_>) =
            take(&taken).into_iter().map(|waiting| (waiting.write, waiting.answer)).unzip();
        let call = instance.guard(async |exports, store| {
            exports.zddc_outbox_queue().call_enqueue_batch(store, &writes).await
        });
        let done = call.await.and_then(|done| Ok(done?));
        match done {
            Ok(results) if results.len() == answers.len() => {
                instance.used(answers.len() as u32, false);
                for (answer, result) in answers.into_iter().zip(results) {
                    // Its caller may have gone.
                    let _ = answer.send(result.map_err(Error::from));
                }
                Ok(())
            }
            done => {
                let why = done.err().unwrap_or_else(|| Error::Trapped("it did not answer each write".into()));
                for answer in answers {
                    let _ = answer.send(Err(why.clone()));
                }
                // An instance that trapped is not used again.
                Err(why)
            }
        }
    };
    if let Err(error) = queue.call(job).await {
        // No instance could be had.
        for waiting in take(&share) {
            let _ = waiting.answer.send(Err(error.clone()));
        }
    }
}

fn take(share: &Mutex<Vec<Waiting>>) -> Vec<Waiting> {
    std::mem::take(&mut *share.lock().unwrap_or_else(PoisonError::into_inner))
}
