//! Several writes in one call. They share the sync of the queue's directory.
//!
//! Their files are synced one by one ([`enqueue`]), or by the caller, all at once, between staging and publishing
//! ([`Batch`]). A component has no call for that; a host has, and a disk takes hardly longer for a hundred files than
//! for one.

use crate::Result;
use crate::bindings::exports::zddc::outbox::queue::Write;
use crate::config::Config;
use crate::enqueue::{Body, Published, Ready, publish, settle, stage_unsynced};
use crate::id::EntryId;
use crate::limits::{self, Limits, Reserved};
use crate::queue::Queue;

/// Queues writes in this order, each by itself: one that is refused or fails does not keep the others out.
pub fn enqueue(config: &Config, queue: &Queue, writes: &[Write]) -> Vec<Result<EntryId>> {
    let publish = |write: &Write| publish(config, queue, &write.request, Body::Bytes(&write.body));
    settle_each(queue, writes.iter().map(publish).collect())
}

/// Writes that are staged, or why not, in order.
pub struct Batch {
    limits: Limits,
    staged: Vec<Result<(Ready, Reserved)>>,
}

impl Batch {
    /// Stages writes in this order, each by itself, without a sync.
    pub fn stage(config: &Config, queue: &Queue, writes: &[Write]) -> Batch {
        let stage = |write| {
            let ready = stage_unsynced(config, queue, write)?;
            let reserved = limits::reserve(ready.size);
            Ok((ready, reserved))
        };
        Batch { limits: config.limits, staged: writes.iter().map(stage).collect() }
    }

    /// Moves them into the queue, which is made durable.
    pub fn publish(self, queue: &Queue) -> Vec<Result<EntryId>> {
        let Batch { limits, staged } = self;
        let publish = |(ready, reserved): (Ready, Reserved)| {
            drop(reserved);
            ready.publish(limits, queue)
        };
        let published: Vec<_> = staged.into_iter().map(|staged| staged.and_then(publish)).collect();
        settle_each(queue, published)
    }

    /// Removes what was staged.
    pub fn discard(self, queue: &Queue) {
        for (ready, _) in self.staged.into_iter().flatten() {
            ready.discard(queue);
        }
    }
}

/// Makes those durable that are in the queue.
fn settle_each(queue: &Queue, published: Vec<Result<Published>>) -> Vec<Result<EntryId>> {
    let ids: Vec<Result<EntryId>> =
        published.iter().map(|done| done.as_ref().map(|done| done.id).map_err(Clone::clone)).collect();
    // For nothing, no sync: one that failed would undo what was taken out again before, and is not durably out yet.
    if published.iter().all(Result::is_err) {
        return ids;
    }
    match settle(queue, published.into_iter().flatten()) {
        Ok(()) => ids,
        Err(error) => ids.into_iter().map(|done| done.and(Err(error.clone()))).collect(),
    }
}
