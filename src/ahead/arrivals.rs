//! What is queued or put back while a pass runs, and what a slower writer publishes with an id that had been given out
//! before: found by listing the queue again, or by the writers' notes, and taken in at its place.

use super::Ahead;
use crate::enqueue;
use crate::entry::Entry;
use crate::id::EntryId;
use crate::listing;
use crate::meta::Meta;
use crate::queue::Queue;
use crate::unloadable::Unloadable;
use wasi::clocks::monotonic_clock;

/// The queue is listed again for what was queued meanwhile when so many times the last listing's cost has
/// passed: that keeps it under 2 % of a pass however long the queue is.
const LISTING_SHARE: u64 = 50;
/// And not before this, in nanoseconds: a coarse clock may say that a listing takes no time.
const LISTING_PAUSE: u64 = 100_000_000;

/// A listing that takes no longer, in nanoseconds, is made whenever a writer has noted a new id.
const CHEAP: u64 = 5_000_000;

/// Entries queued while a pass runs belong to it for so long, in nanoseconds; later ones to the next, so that
/// what waits for its time gets its turn.
const OPEN_FOR: u64 = 30_000_000_000;

/// What is known of them.
#[derive(Debug)]
pub(super) struct Arrivals {
    /// The greatest that was listed.
    newest: Option<EntryId>,
    /// The greatest that is known to have been given out to a writer.
    latest: Option<EntryId>,
    /// The same when the queue was last listed, and when it was listed before that.
    listed_after: Option<EntryId>,
    listed_before: Option<EntryId>,
    /// The last ids given out, one a writer.
    noted: Vec<EntryId>,
    /// The first that is for the next pass, with all after it.
    late: Option<EntryId>,
    /// Found after one that had been queued later had its turn; without what it is where it cannot be read.
    overtaken: Vec<(EntryId, Option<Meta>)>,
    /// There was some.
    overtook: bool,
    opened_at: u64,
    listed_at: u64,
    listing_took: u64,
}

impl Arrivals {
    /// After the first listing, which was begun then and ended with this id.
    pub(super) fn since(opened_at: u64, newest: Option<EntryId>) -> Arrivals {
        let listed_at = monotonic_clock::now();
        Arrivals {
            newest,
            latest: newest,
            listed_after: newest,
            listed_before: None,
            noted: Vec::new(),
            late: None,
            overtaken: Vec::new(),
            overtook: false,
            opened_at,
            listed_at,
            listing_took: listed_at.saturating_sub(opened_at),
        }
    }

    /// The next pass is to send something.
    pub(super) fn has_late(&self) -> bool {
        self.late.is_some() || self.overtook
    }
}

impl Ahead {
    /// Looks for what was queued or put back meanwhile; how much of it there is.
    pub(super) fn refresh(&mut self, queue: &Queue) -> u64 {
        let now = monotonic_clock::now();
        if self.arrivals.listing_took <= CHEAP {
            self.arrivals.noted = enqueue::noted(&enqueue::notes(queue).unwrap_or_default()).collect();
            self.arrivals.latest = self.arrivals.latest.max(self.arrivals.noted.iter().max().copied());
        }
        let pause = self.arrivals.listing_took.saturating_mul(LISTING_SHARE).max(LISTING_PAUSE);
        let due = self.arrivals.listed_at.saturating_add(pause);
        if now < due && self.arrivals.latest <= self.arrivals.listed_after {
            return 0;
        }
        let listed = queue.ids().and_then(|listed| {
            match listed.iter().any(|id| Some(*id) > self.arrivals.newest || !self.knows(*id)) {
                true => listing::complete(queue, listed),
                false => Ok(listed),
            }
        });
        // What cannot be listed now is listed at the next delivery, or in the next pass.
        let Ok(mut listed) = listed else { return 0 };
        self.arrivals.listed_before =
            std::mem::replace(&mut self.arrivals.listed_after, self.arrivals.latest);
        let count = listed.partition_point(|id| Some(*id) <= self.arrivals.newest);
        let mut fresh = listed.split_off(count);
        let newest = fresh.last().copied();
        fresh.retain(|id| !self.knows(*id));
        let mut added = 0;
        for id in listed {
            if !self.knows(id) {
                added += self.catch_up(queue, id);
            }
        }
        self.arrivals.newest = newest.or(self.arrivals.newest);
        self.arrivals.latest = self.arrivals.latest.max(self.arrivals.newest);
        self.arrivals.listed_after = self.arrivals.listed_after.max(self.arrivals.newest);
        self.arrivals.listed_at = monotonic_clock::now();
        self.arrivals.listing_took = self.arrivals.listed_at.saturating_sub(now);
        added += fresh.len() as u64;
        if self.arrivals.late.is_none() && now.saturating_sub(self.arrivals.opened_at) <= OPEN_FOR {
            self.unread.extend(fresh);
        } else {
            self.arrivals.late = self.arrivals.late.or(fresh.first().copied());
            for entry in fresh.into_iter().filter_map(|id| queue.load(id).ok()) {
                self.leave(entry);
            }
        }
        added
    }

    /// Looks for what was published after the queue had been listed although its id had been given out before: its writer
    /// was slower. Whether there is any. What was not there twice is not looked for again.
    pub(super) fn refresh_by_notes(&mut self, queue: &Queue, of: &Entry, added: &mut u64) -> bool {
        let mut found = false;
        for id in std::mem::take(&mut self.arrivals.noted) {
            if id > of.id && Some(id) > self.arrivals.listed_before && !self.knows(id) {
                let more = self.catch_up(queue, id);
                *added += more;
                found |= more > 0;
                // What is published later with a smaller id has its place before this one.
                self.arrivals.newest = self.arrivals.newest.max((more > 0).then_some(id));
            }
        }
        self.read_on(queue);
        found
    }

    /// Whether one that was listed has its place: it waits to be read or sent, was given out, or is for the next pass.
    fn knows(&self, id: EntryId) -> bool {
        self.kept.has(id)
            || self.handed.contains(&id)
            || self.unread.binary_search(&id).is_ok()
            || self.read.binary_search_by_key(&id, |(id, _)| *id).is_ok()
            || self.forgotten && Some(id) <= self.offered
            || self.arrivals.late.is_some_and(|late| id >= late)
    }

    /// Takes in one that appeared among those that were listed: one more that waits. If none of those after it had its turn,
    /// it gets its own in this pass.
    fn catch_up(&mut self, queue: &Queue, id: EntryId) -> u64 {
        match queue.load(id) {
            Err(Unloadable::Gone | Unloadable::InProgress(_)) => 0,
            loaded if Some(id) > self.offered => {
                let place = self.read.partition_point(|(read, _)| *read < id);
                if place < self.read.len() {
                    let unloadable = self.keep(loaded);
                    self.read.insert(place, (id, unloadable));
                } else {
                    let place = self.unread.partition_point(|unread| *unread < id);
                    self.unread.insert(place, id);
                }
                1
            }
            Ok(entry) => {
                self.arrivals.overtaken.push((id, Some(entry.meta.clone())));
                self.arrivals.overtook = true;
                self.leave(entry);
                1
            }
            loaded => {
                if let Err(Unloadable::Io(_)) = loaded {
                    self.arrivals.overtaken.push((id, None));
                }
                self.arrivals.overtook = true;
                self.keep(loaded);
                self.hand(id);
                1
            }
        }
    }

    /// What has been found since this was last asked although something queued later had its turn. The next pass sends it,
    /// but it may inherit in this one. None for what it is where it cannot be read.
    pub fn overtaken(&mut self) -> Vec<(EntryId, Option<Meta>)> {
        std::mem::take(&mut self.arrivals.overtaken)
    }

    /// The greatest id that is known to have been given out.
    pub fn latest(&self) -> Option<EntryId> {
        self.arrivals.latest
    }
}
