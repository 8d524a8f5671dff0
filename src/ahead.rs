//! Pending entries in queue order, read some way ahead of what is sent: a delivered edit must find the next one
//! of its resource before it is removed ([`crate::chain`]). Further ahead than `WINDOW` or `WEIGHT`, memory and the first
//! reply's handling would grow with the queue; there, the chain rests on what this process remembers, and if it
//! dies in the wrong moment, there is a conflict, which is kept. The same holds for what waits for its time,
//! where that is more than twice as much, and for what is queued while a queue that is slow to list (`arrivals::CHEAP`)
//! is replayed.

mod arrivals;
mod kept;

use crate::Result;
use crate::chain::Link;
use crate::entry::Entry;
use crate::id::EntryId;
use crate::key::{Key, Keys};
use crate::listing;
use crate::precondition::Base;
use crate::queue::Queue;
use crate::unloadable::Unloadable;
use crate::upstream::Upstream;
use arrivals::Arrivals;
use kept::Kept;
use std::collections::{BTreeSet, VecDeque};
use wasi::clocks::monotonic_clock;

/// Entries that are read ahead at most, and about how many bytes of them: one may have headers of 48 KiB.
const WINDOW: usize = 4096;
const WEIGHT: usize = 4 * 1024 * 1024;

/// What was read of an entry.
pub type Loaded = std::result::Result<Entry, Unloadable>;

/// The pending entries of a pass.
#[derive(Debug)]
pub struct Ahead {
    /// Not yet read.
    unread: VecDeque<EntryId>,
    /// Read, not yet taken.
    read: VecDeque<(EntryId, Option<Unloadable>)>,
    /// The entries of those, and of those that were put back.
    kept: Kept,
    /// Some entry that stays in the queue is in none of these: there were too many.
    forgotten: bool,
    /// Some entry could not be read now.
    unreadable: bool,
    /// The last that was given out by [`Ahead::next`].
    offered: Option<EntryId>,
    /// Given out, and neither back nor gone: in flight, or tried in vain.
    handed: BTreeSet<EntryId>,
    arrivals: Arrivals,
}

impl Ahead {
    /// Lists the queue.
    pub fn list(queue: &Queue) -> Result<Ahead> {
        let opened_at = monotonic_clock::now();
        let unread: VecDeque<EntryId> = listing::ids(queue)?.into();
        Ok(Ahead {
            arrivals: Arrivals::since(opened_at, unread.back().copied()),
            unread,
            read: VecDeque::new(),
            kept: Kept::default(),
            forgotten: false,
            unreadable: false,
            offered: None,
            handed: BTreeSet::new(),
        })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.unread.len() + self.read.len()
    }

    /// Leaves out an entry that had its turn before the queue was listed; whether it is there.
    pub fn skip(&mut self, id: EntryId) -> bool {
        self.handed.insert(id);
        let place = self.unread.binary_search(&id);
        place.is_ok_and(|place| self.unread.remove(place).is_some())
    }

    /// Leaves out what comes before an entry, and that.
    pub fn skip_to(&mut self, id: EntryId) {
        self.unread.drain(..self.unread.partition_point(|unread| *unread <= id));
        self.offered = Some(id);
        self.forgotten = true;
    }

    /// An entry that was given out has left the queue.
    pub fn gone(&mut self, id: EntryId) {
        self.handed.remove(&id);
    }

    fn hand(&mut self, id: EntryId) {
        match self.handed.len() < 2 * WINDOW {
            true => _ = self.handed.insert(id),
            false => self.forgotten = true,
        }
    }

    /// The next entry in queue order.
    pub fn next(&mut self, queue: &Queue) -> Option<(EntryId, Loaded)> {
        if self.read.is_empty() {
            self.read_one(queue);
        }
        let (id, unloadable) = self.read.pop_front()?;
        self.offered = self.offered.max(Some(id));
        match (unloadable, self.take(id)) {
            (Some(unloadable), _) => {
                self.hand(id);
                Some((id, Err(unloadable)))
            }
            (None, Some(entry)) => Some((id, Ok(entry))),
            (None, None) => Some((id, Err(Unloadable::Gone))),
        }
    }

    /// Keeps an entry that must wait for another.
    pub fn put_back(&mut self, entry: Entry) {
        self.handed.remove(&entry.id);
        self.kept.put(entry);
    }

    /// Keeps an entry that is not to be sent in this pass, as far as there is room: an earlier one may still be
    /// delivered and hand its version on.
    pub fn leave(&mut self, entry: Entry) {
        match self.kept.len() < 2 * WINDOW && self.kept.weight < 2 * WEIGHT {
            true => self.put_back(entry),
            false => self.forgotten = true,
        }
    }

    /// Whether there is room for more that must wait.
    pub fn has_room(&self) -> bool {
        self.kept.weight < 5 * WEIGHT
    }

    /// Takes such an entry.
    pub fn take(&mut self, id: EntryId) -> Option<Entry> {
        let entry = self.kept.take(id)?;
        self.hand(id);
        Some(entry)
    }

    /// The edits of the same resource that are to get the name of what this one makes: the next one that continues
    /// it, of each base, and those that have inherited a version which is gone with this write. What was queued
    /// meanwhile is looked at too; how many entries that adds is returned beside.
    pub fn successors(&mut self, queue: &Queue, of: &Entry) -> (Vec<EntryId>, u64) {
        let mut added = self.refresh(queue);
        self.read_on(queue);
        let mut next = self.kept.continuing(of);
        if next.is_empty() && self.refresh_by_notes(queue, of, &mut added) {
            next = self.kept.continuing(of);
        }
        (next, added)
    }

    /// An entry that was read ahead.
    pub fn entry(&mut self, id: EntryId) -> Option<&mut Entry> {
        self.kept.entry(id)
    }

    /// A later entry that makes this PUT superfluous: a PUT or DELETE of the very same path and query that is
    /// based on no other version, with nothing in between that concerns what this one does.
    pub fn superseder(
        &mut self,
        queue: &Queue,
        upstream: &Upstream,
        of: &Entry,
        concerns: Vec<Key>,
    ) -> (Option<&mut Entry>, u64) {
        let added = self.refresh(queue);
        self.read_on(queue);
        // What is not known may concern it.
        if self.forgotten || self.unreadable {
            return (None, added);
        }
        let unread = self.unread.front().copied();
        let link = Link::of(of);
        let mut keys = Keys::default();
        concerns.into_iter().for_each(|key| _ = keys.insert(key, 0));
        let mut later = self.kept.after(of.id);
        let next = later.find(|entry| upstream.keys(&entry.meta).iter().any(|key| keys.related(key)));
        let next = next.filter(|next| {
            let whole = matches!(next.meta.method.as_str(), "PUT" | "DELETE");
            let undone = next.meta.method == "DELETE" && of.base() == Base::Absent;
            let based = match (Base::of(&next.meta), Base::of(&of.meta)) {
                (Base::Any, _) => true,
                // Who named a version has seen it, and not what this one replaces.
                (_, Base::Any) => next.base() == of.base(),
                _ => link.continues(next),
            };
            let known = unread.is_none_or(|unread| next.id < unread);
            known && whole && !undone && based && next.meta.raw_uri == of.meta.raw_uri
        });
        (next, added)
    }

    /// Reads as far ahead as there is room.
    fn read_on(&mut self, queue: &Queue) {
        while self.read.len() < WINDOW && self.kept.weight < 3 * WEIGHT && self.read_one(queue) {}
    }

    fn read_one(&mut self, queue: &Queue) -> bool {
        let Some(id) = self.unread.pop_front() else { return false };
        let unloadable = self.keep(queue.load(id));
        self.read.push_back((id, unloadable));
        true
    }

    /// Keeps what was read; why it could not be.
    fn keep(&mut self, loaded: Loaded) -> Option<Unloadable> {
        match loaded {
            Ok(entry) => {
                self.put_back(entry);
                None
            }
            Err(unloadable) => {
                self.unreadable |= matches!(unloadable, Unloadable::Io(_));
                Some(unloadable)
            }
        }
    }

    /// Whether something that was read continues an edit, or something that could not be may.
    pub fn may_continue(&self, of: &Entry) -> bool {
        self.unreadable || !self.kept.continuing(of).is_empty()
    }

    /// Whether some entry could not be read now: it may continue any edit.
    pub fn has_unreadable(&self) -> bool {
        self.unreadable
    }

    /// Whether something was queued that the next pass is to send.
    pub fn has_late(&self) -> bool {
        self.arrivals.has_late()
    }
}
