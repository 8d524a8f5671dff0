//! Removing delivered entries. An entry leaves the queue by a rename, which is made durable together with others:
//! after a tenth of a second, on a slow disk after a second, and at the end of the pass. A power failure in between
//! repeats at most the deliveries of that time, with the same Idempotency-Key. Its files are deleted after that. A write
//! that concerns the same resource is sent only after that: the repeat would come after it, and undo what it did, or not
//! find the version that it was based on.

use crate::id::EntryId;
use crate::key::{HashedKeys, Key};
use crate::queue::Queue;
use crate::{Error, Result};
use std::collections::VecDeque;
use wasi::clocks::monotonic_clock;

/// How long a removal may stay volatile, in nanoseconds: as long as so many syncs take, and in these bounds.
const SYNC_SHARE: u64 = 20;
const SYNC_SOONEST: u64 = 100_000_000;
const SYNC_LATEST: u64 = 1_000_000_000;

/// How long files are deleted in one go, in nanoseconds: a reply may come in meanwhile.
const STEP: u64 = 500_000;

/// Entries on their way out.
#[derive(Debug, Default)]
pub struct Removals {
    /// How many are deleted here at the end; somebody else sweeps the others ([`Queue::sweep`]). None: all are, and
    /// meanwhile.
    last: Option<usize>,
    /// Out of the queue's directory, not yet deleted.
    retired: VecDeque<EntryId>,
    /// How many of those, from the front, are durably out.
    durable: usize,
    /// Monotonic: when the others must be. None when there are none.
    due: Option<u64>,
    /// What the others concern: those that are no additions, and the additions.
    keys: HashedKeys,
    additions: HashedKeys,
    /// Why some could not be made durable.
    failed: Option<Error>,
    /// How long the last sync took, in nanoseconds.
    sync_took: u64,
}

impl Removals {
    /// None yet.
    pub fn new(sweep_every: Option<u32>) -> Removals {
        Removals { last: sweep_every.map(|every| every as usize), ..Removals::default() }
    }

    /// Takes a pending entry out of the queue.
    pub fn remove(&mut self, queue: &Queue, id: EntryId) -> Result<()> {
        queue.retire(&queue.dir, &id.to_string())?;
        self.retired.push_back(id);
        if self.last.is_some_and(|last| self.retired.len() > last) {
            self.retired.pop_front();
            self.durable = self.durable.saturating_sub(1);
        }
        let wait = self.sync_took.saturating_mul(SYNC_SHARE).clamp(SYNC_SOONEST, SYNC_LATEST);
        self.due.get_or_insert_with(|| monotonic_clock::now().saturating_add(wait));
        Ok(())
    }

    /// Notes what an entry concerns that was removed, or found to be.
    pub fn concern(&mut self, keys: &[Key], adds: bool) {
        if self.due.is_some() {
            let known = if adds { &mut self.additions } else { &mut self.keys };
            keys.iter().for_each(|key| known.insert(key));
        }
    }

    /// Before an entry is sent, makes those durable now of which one concerns the same: but for an addition before another,
    /// which undoes nothing.
    pub fn settle_before(&mut self, queue: &Queue, keys: &[Key], adds: bool) {
        if keys.iter().any(|key| self.keys.related(key) || (!adds && self.additions.related(key))) {
            self.settle(queue);
        }
    }

    /// When [`Removals::sync_when_due`] has something to do next; monotonic, in nanoseconds.
    pub fn sync_due(&self) -> Option<u64> {
        self.due
    }

    /// Makes the removals durable if the first has waited long enough.
    pub fn sync_when_due(&mut self, queue: &Queue) {
        if self.due.is_some_and(|due| monotonic_clock::now() >= due) {
            self.settle(queue);
        }
    }

    /// Deletes files of entries that are durably out, for a moment; whether there are more.
    pub fn erase_some(&mut self, queue: &Queue) -> bool {
        if self.last.is_some() {
            return false;
        }
        if self.durable > 0 {
            let until = monotonic_clock::now().saturating_add(STEP);
            while self.erase_one(queue) && monotonic_clock::now() < until {}
        }
        self.durable > 0
    }

    fn erase_one(&mut self, queue: &Queue) -> bool {
        if self.durable > 0
            && let Some(id) = self.retired.pop_front()
        {
            self.durable -= 1;
            queue.erase(&id.to_string());
        }
        self.durable > 0
    }

    /// Ends the removals of a pass. An error where some of them could not be made durable.
    pub fn finish(&mut self, queue: &Queue) -> Result<()> {
        self.settle(queue);
        while self.erase_one(queue) {}
        self.failed.take().map_or(Ok(()), Err)
    }

    /// Makes them durable now. What fails is told at the end: it is no reason to give up the requests that are under way.
    fn settle(&mut self, queue: &Queue) {
        if self.due.take().is_none() {
            return;
        }
        self.keys = HashedKeys::default();
        self.additions = HashedKeys::default();
        let volatile = self.retired.split_off(self.durable);
        let started = monotonic_clock::now();
        match queue.sync_dir() {
            Ok(()) => {
                self.sync_took = monotonic_clock::now().saturating_sub(started);
                self.retired.extend(volatile);
                self.durable = self.retired.len();
            }
            // Not tried again: a second sync could succeed without what the first one lost. The files stay for the sweep.
            Err(error) => _ = self.failed.get_or_insert(error),
        }
    }
}
