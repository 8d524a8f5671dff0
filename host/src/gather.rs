//! Small writes of many callers. One that comes alone is queued at once, on its caller's thread. Where more callers
//! come than calls run side by side, those that wait are queued together by the next caller whose turn it is: they
//! share a call, the sync of the queue's directory and, where [`crate::disk`] knows how, that of all their files.

use crate::Error;
use crate::bindings::exports::zddc::outbox::queue::Write;
use crate::bindings::zddc::outbox::types::{self as wit, Request};
use crate::disk::{Disk, Unsynced};
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

/// Calls that run side by side where the disk is synced as a whole: while it is at one batch, others are staged. With half
/// or twice as many, 64 callers were a tenth slower.
const AT_ONCE: usize = 4;

/// The callers of one outbox.
pub(crate) struct Gather {
    /// As many calls run side by side as instances are kept: a fresh one must look through the queue's names before it
    /// gives out its first id.
    turns: Turns,
    /// The same where the disk is synced as a whole.
    at_once: Turns,
    /// Where what is queued together is made durable at once.
    disk: Option<Arc<Disk>>,
    waiting: Mutex<VecDeque<Waiting>>,
    /// Those that have no answer yet.
    callers: AtomicUsize,
    pace: Pace,
}

/// Calls that run side by side.
struct Turns {
    free: Semaphore,
    count: usize,
}

impl Turns {
    fn new(count: usize) -> Turns {
        Turns { free: Semaphore::new(count), count }
    }
}

/// A write whose caller waits for its turn, or for somebody who takes it along.
struct Waiting {
    write: Write,
    answer: oneshot::Sender<Result<String, Error>>,
}

/// A caller, as long as it lives.
struct Caller<'a>(&'a Gather);

impl<'a> Caller<'a> {
    fn new(gather: &'a Gather) -> Caller<'a> {
        gather.callers.fetch_add(1, Ordering::Relaxed);
        Caller(gather)
    }
}

impl Drop for Caller<'_> {
    fn drop(&mut self) {
        if self.0.callers.fetch_sub(1, Ordering::Relaxed) == 1 {
            forget_gone(&mut self.0.waiting());
        }
    }
}

/// Lets go of the writes of callers who wait no more.
fn forget_gone(waiting: &mut VecDeque<Waiting>) {
    waiting.retain(|waiting| !waiting.answer.is_closed());
}

impl Gather {
    /// For callers whose writes are made durable, on this disk at once where it is known.
    pub(crate) fn new(disk: Option<Disk>) -> Gather {
        Gather {
            turns: Turns::new(KEPT),
            at_once: Turns::new(AT_ONCE),
            disk: disk.map(Arc::new),
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
        let _caller = Caller::new(self);
        if body.len() > SMALL {
            let _turn = self.turns.free.acquire().await.map_err(|_| Error::ShutDown)?;
            return alone(queue, request, body, false).await;
        }
        let turns = match &self.disk {
            Some(disk) if disk.is_quick() => &self.at_once,
            _ => &self.turns,
        };
        if let Ok(_turn) = turns.free.try_acquire() {
            // What several callers do keeps the processors busy, or the disk.
            let quick = self.pace.begin() && self.callers.load(Ordering::Relaxed) == 1;
            let queued = alone(queue, request, body, quick).await;
            self.pace.end(queued.is_ok());
            return queued;
        }
        let (answer, mut answered) = oneshot::channel();
        let waits = Waiting { write: Write { request, body: body.into() }, answer };
        {
            let mut waiting = self.waiting();
            // While nobody has a turn, callers may come and go: of those who have gone, no more are kept than there are.
            if waiting.len() >= 2 * self.callers.load(Ordering::Relaxed) {
                forget_gone(&mut waiting);
            }
            waiting.push_back(waits);
        }
        loop {
            let turn = tokio::select! {
                biased;
                answer = &mut answered => return answer.unwrap_or_else(|_| Err(not_answered())),
                turn = turns.free.acquire() => turn.map_err(|_| Error::ShutDown)?,
            };
            let share = self.share(turns);
            if share.is_empty() {
                // Somebody has taken it along.
                drop(turn);
                return answered.await.unwrap_or_else(|_| Err(not_answered()));
            }
            together(queue, self.disk.clone(), share).await;
        }
    }

    /// What the next call takes along: with all calls at work, everybody has the same share.
    fn share(&self, turns: &Turns) -> Vec<Waiting> {
        let count = self.callers.load(Ordering::Relaxed).div_ceil(turns.count).clamp(1, TOGETHER);
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

/// Of a write that somebody has taken along.
fn not_answered() -> Error {
    Error::Trapped("the thread that queued it ended in a panic".into())
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
async fn together(queue: &Instances, disk: Option<Arc<Disk>>, share: Vec<Waiting>) {
    let share = Arc::new(Mutex::new(share));
    let taken = share.clone();
    let job = async move |instance: &mut Instance| {
        let (writes, answers): (Vec<_>, Vec<_>) =
            take(&taken).into_iter().map(|waiting| (waiting.write, waiting.answer)).unzip();
        match enqueue_batch(instance, disk.as_deref(), &writes).await {
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

/// Queues these, in one call or two.
async fn enqueue_batch(
    instance: &mut Instance,
    disk: Option<&Disk>,
    writes: &[Write],
) -> Result<Vec<Result<String, wit::Error>>, Error> {
    if writes.len() > 1
        && let Some(unsynced) = disk.and_then(Disk::begin)
        && let Some(results) = at_once(instance, unsynced, writes).await?
    {
        return Ok(results);
    }
    let call = instance
        .guard(async |exports, store| exports.zddc_outbox_queue().call_enqueue_batch(store, writes).await);
    Ok(call.await??)
}

/// Queues these, made durable at once. Where that fails none is queued, and nothing returned.
async fn at_once(
    instance: &mut Instance,
    unsynced: Unsynced<'_>,
    writes: &[Write],
) -> Result<Option<Vec<Result<String, wit::Error>>>, Error> {
    let staged = instance
        .guard(async |exports, store| exports.zddc_outbox_queue().batch().call_stage(store, writes).await);
    let batch = staged.await??;
    let published = match unsynced.sync() {
        Ok(()) => {
            let published = instance.guard(async |exports, store| {
                exports.zddc_outbox_queue().batch().call_publish(store, batch).await
            });
            Some(published.await?)
        }
        Err(error) => {
            tracing::warn!("the disk cannot be synced as a whole: {error}");
            None
        }
    };
    instance.guard(async |_, store| batch.resource_drop_async(store).await).await?;
    Ok(published.transpose()?)
}

fn take(share: &Mutex<Vec<Waiting>>) -> Vec<Waiting> {
    std::mem::take(&mut *share.lock().unwrap_or_else(PoisonError::into_inner))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::Outbox;
    use std::path::Path;
    use tempfile::TempDir;

    /// An outbox on a file system that is known: in memory, where there is such a directory.
    fn outbox(max_entries: Option<u64>) -> Option<(TempDir, Outbox, Arc<Disk>)> {
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let root = tempfile::tempdir_in(parent).ok()?;
        let outbox = Outbox::builder(root.path()).max_entries(max_entries).open().ok()?;
        let disk = outbox.0.gather.disk.clone()?;
        Some((root, outbox, disk))
    }

    fn staged(root: &TempDir) -> usize {
        std::fs::read_dir(root.path().join(".zddc-outbox/.staging")).map_or(0, Iterator::count)
    }

    /// Queues three writes at once; what became of each.
    async fn three(outbox: &Outbox, disk: &Arc<Disk>) -> Option<Vec<Result<String, wit::Error>>> {
        let disk = disk.clone();
        let job = async move |instance: &mut Instance| {
            let request: Request = crate::Write::new("PUT", "/x").into();
            let writes = vec![Write { request, body: b"x".to_vec() }; 3];
            let unsynced = disk.begin().ok_or(Error::ShutDown)?;
            at_once(instance, unsynced, &writes).await
        };
        outbox.0.queue.call(job).await.ok()?
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn where_the_disk_cannot_be_synced_nothing_is_queued_at_once() {
        let Some((root, outbox, disk)) = outbox(None) else { return };
        for (fails, queued) in [(true, None), (false, Some(3))] {
            disk.test.fails.store(fails, Ordering::Relaxed);
            let results = three(&outbox, &disk).await;
            assert_eq!(results.map(|results| results.iter().flatten().count()), queued);
            assert_eq!(outbox.count().await.unwrap().pending as usize, queued.unwrap_or(0));
            assert_eq!(staged(&root), 0);
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn callers_that_have_gone_leave_nothing_behind_though_nobody_has_a_turn() {
        let root = tempfile::tempdir().unwrap();
        let outbox = Outbox::builder(root.path()).durability(crate::Durability::None).open().unwrap();
        // All calls hang, as on a network disk that is away.
        let gather = &outbox.0.gather;
        let _all = gather.turns.free.acquire_many(KEPT as u32).await.unwrap();
        for n in 0..100 {
            let write = crate::Write::new("PUT", format!("/{n}"));
            let write = outbox.enqueue_write(write, vec![0; SMALL].into());
            assert!(tokio::time::timeout(std::time::Duration::ZERO, write).await.is_err());
        }
        assert!(gather.waiting().is_empty());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_limit_holds_within_what_is_queued_at_once_and_after_it_failed() {
        let Some((_root, outbox, disk)) = outbox(Some(2)) else { return };
        disk.test.fails.store(true, Ordering::Relaxed);
        assert!(three(&outbox, &disk).await.is_none());
        disk.test.fails.store(false, Ordering::Relaxed);
        let results = three(&outbox, &disk).await.unwrap();
        assert!(matches!(&results[..], [Ok(_), Ok(_), Err(wit::Error::QueueFull(_))]), "{results:?}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_many_queue_is_made_durable_at_once_and_else_by_itself() {
        for fails in [false, true] {
            let Some((root, outbox, disk)) = outbox(None) else { return };
            disk.test.fails.store(fails, Ordering::Relaxed);
            let mut queued = 0;
            while disk.test.syncs.load(Ordering::Relaxed) == 0 {
                let write = |n| {
                    let outbox = outbox.clone();
                    let write = crate::Write::new("PUT", format!("/{n}"));
                    tokio::spawn(async move { outbox.enqueue_write(write, "x".into()).await })
                };
                let callers: Vec<_> = (0..64).map(write).collect();
                for caller in callers {
                    caller.await.unwrap().unwrap();
                    queued += 1;
                }
            }
            assert_eq!(outbox.count().await.unwrap().pending, queued);
            assert_eq!(outbox.verify().await.unwrap(), []);
            // What may have been staged ahead goes, too.
            outbox.shutdown().await;
            assert_eq!(staged(&root), 0);
        }
    }
}
