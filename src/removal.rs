//! Removing delivered entries. An entry leaves the queue by a rename, which is made durable once a second and at
//! the end of the pass rather than for each entry: a power failure in between repeats at most the deliveries of
//! that second, with the same Idempotency-Key. Its files are deleted after that.

use crate::Result;
use crate::id::EntryId;
use crate::queue::Queue;
use std::collections::VecDeque;
use wasi::clocks::monotonic_clock;

/// How long a removal may stay volatile, in nanoseconds.
const SYNC_EVERY: u64 = 1_000_000_000;

/// Entries on their way out.
#[derive(Debug, Default)]
pub struct Removals {
    /// Out of the queue's directory, not yet deleted.
    retired: VecDeque<EntryId>,
    /// How many of those, from the front, are durably out.
    durable: usize,
    /// Monotonic: when the others must be. None when there are none.
    due: Option<u64>,
}

impl Removals {
    /// Takes a pending entry out of the queue.
    pub fn remove(&mut self, queue: &Queue, id: EntryId) -> Result<()> {
        queue.retire(&queue.dir, &id.to_string())?;
        self.retired.push_back(id);
        self.due.get_or_insert_with(|| monotonic_clock::now().saturating_add(SYNC_EVERY));
        Ok(())
    }

    /// When [`Removals::sync_when_due`] has something to do next; monotonic, in nanoseconds.
    pub fn sync_due(&self) -> Option<u64> {
        self.due
    }

    /// Makes the removals durable if the first has waited for a second.
    pub fn sync_when_due(&mut self, queue: &Queue) -> Result<()> {
        match self.due {
            Some(due) if monotonic_clock::now() >= due => self.sync(queue),
            _ => Ok(()),
        }
    }

    /// Deletes the files of one entry that is durably out.
    pub fn erase_one(&mut self, queue: &Queue) {
        if self.durable > 0
            && let Some(id) = self.retired.pop_front()
        {
            self.durable -= 1;
            queue.erase(&id.to_string());
        }
    }

    /// Ends the removals of a pass.
    pub fn finish(&mut self, queue: &Queue) -> Result<()> {
        if self.due.is_some() {
            self.sync(queue)?;
        }
        while self.durable > 0 {
            self.erase_one(queue);
        }
        Ok(())
    }

    fn sync(&mut self, queue: &Queue) -> Result<()> {
        // Not tried again after a failure: a second sync could succeed without what the first one lost. The
        // files stay for the sweep.
        self.due = None;
        let volatile = self.retired.split_off(self.durable);
        queue.sync_dir()?;
        self.retired.extend(volatile);
        self.durable = self.retired.len();
        Ok(())
    }
}
