//! Pending entries in queue order, read some way ahead of what is sent: a delivered edit must find the next one
//! of its resource before it is removed ([`crate::chain`]). Further ahead than `WINDOW`, memory and the first
//! reply's handling would grow with the queue; there, the chain rests on what this process remembers, and if it
//! dies in the wrong moment, there is a conflict, which is kept. The same holds for what waits for its time,
//! where that is more than twice as much, and for what is queued while a queue that is slow to list (`CHEAP`)
//! is replayed.

use crate::Result;
use crate::chain::{Link, Resource};
use crate::enqueue;
use crate::id::EntryId;
use crate::key::{Key, Keys};
use crate::precondition::Base;
use crate::queue::{Entry, Queue};
use crate::unloadable::Unloadable;
use crate::upstream::Upstream;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use wasi::clocks::monotonic_clock;

/// Entries that are read ahead at most.
const WINDOW: usize = 4096;

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
    entries: BTreeMap<EntryId, Entry>,
    /// Those with a precondition.
    chained: BTreeMap<Resource, BTreeSet<EntryId>>,
    /// Some entry that stays in the queue is in none of these: there were too many.
    forgotten: bool,
    /// Some entry could not be read now.
    unreadable: bool,
    /// The greatest that was listed.
    newest: Option<EntryId>,
    /// The greatest that is known to have been given out.
    latest: Option<EntryId>,
    /// The last ids given out, one a writer.
    noted: Vec<EntryId>,
    opened_at: u64,
    listed_at: u64,
    listing_took: u64,
    late: bool,
}

impl Ahead {
    /// Lists the queue.
    pub fn list(queue: &Queue) -> Result<Ahead> {
        let opened_at = monotonic_clock::now();
        let unread: VecDeque<EntryId> = queue.ids()?.into();
        let listed_at = monotonic_clock::now();
        Ok(Ahead {
            newest: unread.back().copied(),
            latest: unread.back().copied(),
            noted: Vec::new(),
            unread,
            read: VecDeque::new(),
            entries: BTreeMap::new(),
            chained: BTreeMap::new(),
            forgotten: false,
            unreadable: false,
            opened_at,
            listed_at,
            listing_took: listed_at.saturating_sub(opened_at),
            late: false,
        })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.unread.len() + self.read.len()
    }

    /// Leaves out an entry that had its turn before the queue was listed.
    pub fn skip(&mut self, id: EntryId) {
        self.unread.retain(|unread| *unread != id);
    }

    /// The next entry in queue order.
    pub fn next(&mut self, queue: &Queue) -> Option<(EntryId, Loaded)> {
        if self.read.is_empty() {
            self.read_one(queue);
        }
        let (id, unloadable) = self.read.pop_front()?;
        match (unloadable, self.take(id)) {
            (Some(unloadable), _) => Some((id, Err(unloadable))),
            (None, Some(entry)) => Some((id, Ok(entry))),
            (None, None) => Some((id, Err(Unloadable::Gone))),
        }
    }

    /// Keeps an entry that must wait for another.
    pub fn put_back(&mut self, entry: Entry) {
        if entry.base() != Base::Any {
            let resource = Resource::of(&entry.meta.raw_uri);
            self.chained.entry(resource).or_default().insert(entry.id);
        }
        self.entries.insert(entry.id, entry);
    }

    /// Keeps an entry that is not to be sent in this pass, as far as there is room: an earlier one may still be
    /// delivered and hand its version on.
    pub fn leave(&mut self, entry: Entry) {
        match self.entries.len() < 2 * WINDOW {
            true => self.put_back(entry),
            false => self.forgotten = true,
        }
    }

    /// Takes such an entry.
    pub fn take(&mut self, id: EntryId) -> Option<Entry> {
        let entry = self.entries.remove(&id)?;
        let resource = Resource::of(&entry.meta.raw_uri);
        if let Some(ids) = self.chained.get_mut(&resource) {
            ids.remove(&id);
            if ids.is_empty() {
                self.chained.remove(&resource);
            }
        }
        Some(entry)
    }

    /// The edits of the same resource that are to get the name of what this one makes: the next one that continues
    /// it, of each base, and those that have inherited a version which is gone with this write. What was queued
    /// meanwhile is looked at too; how many entries that adds is returned beside. `busy` says what is in flight.
    pub fn successors(
        &mut self,
        queue: &Queue,
        of: &Entry,
        busy: impl Fn(EntryId) -> bool,
    ) -> (Vec<EntryId>, u64) {
        let added = self.refresh(queue, |id| id == of.id || busy(id));
        while self.read.len() < WINDOW && self.read_one(queue) {}
        let mut next = self.continuing(of);
        if next.is_empty() && self.find_overtaken(queue, of, busy) {
            next = self.continuing(of);
        }
        (next, added)
    }

    fn continuing(&self, of: &Entry) -> Vec<EntryId> {
        let link = Link::of(of);
        let ids = self.chained.get(&Resource::of(&of.meta.raw_uri)).into_iter().flatten();
        let later = ids.filter_map(|id| self.entries.get(id)).filter(|entry| link.continues(entry));
        let (mut next, mut authors) = (Vec::new(), Vec::new());
        for entry in later {
            let author = Base::of(&entry.meta);
            let same = link.is_of(&author);
            if entry.state.validator.is_some() || !authors.contains(&author) {
                next.push(entry.id);
                authors.push(author);
            }
            // Whoever comes after that one gets its version from it.
            if same {
                break;
            }
        }
        next
    }

    /// Reads what was published after the queue had been listed although its id is smaller than another's that was
    /// listed: its writer was slower. The next pass sends it, but it may inherit in this one. Whether there is any.
    fn find_overtaken(&mut self, queue: &Queue, of: &Entry, busy: impl Fn(EntryId) -> bool) -> bool {
        let mut found = false;
        for id in std::mem::take(&mut self.noted) {
            let listed = Some(id) > self.newest
                || busy(id)
                || self.entries.contains_key(&id)
                || self.unread.binary_search(&id).is_ok();
            if id > of.id
                && !listed
                && let Ok(entry) = queue.load(id)
            {
                self.leave(entry);
                found = true;
            }
        }
        found
    }

    /// An entry that was read ahead.
    pub fn entry(&mut self, id: EntryId) -> Option<&mut Entry> {
        self.entries.get_mut(&id)
    }

    /// A later entry that makes this PUT superfluous: a PUT or DELETE of the very same path and query that is
    /// based on no other version, with nothing in between that concerns the resource.
    pub fn superseder(
        &mut self,
        queue: &Queue,
        upstream: &Upstream,
        of: &Entry,
        busy: impl Fn(EntryId) -> bool,
    ) -> (Option<&mut Entry>, u64) {
        let added = self.refresh(queue, |id| id == of.id || busy(id));
        while self.read.len() < WINDOW && self.read_one(queue) {}
        if self.forgotten {
            return (None, added);
        }
        let link = Link::of(of);
        let mut keys = Keys::default();
        keys.insert(Key::of(&of.meta.raw_uri), 0);
        let mut later = self.entries.range_mut(of.id..).filter(|(id, _)| **id > of.id);
        let next = later.find(|(_, entry)| upstream.keys(&entry.meta).iter().any(|key| keys.related(key)));
        let next = next.map(|(_, entry)| entry).filter(|next| {
            let whole = matches!(next.meta.method.as_str(), "PUT" | "DELETE");
            let undone = next.meta.method == "DELETE" && of.base() == Base::Absent;
            let based = next.base() == Base::Any || link.continues(next);
            whole && !undone && based && next.meta.raw_uri == of.meta.raw_uri
        });
        (next, added)
    }

    fn read_one(&mut self, queue: &Queue) -> bool {
        let Some(id) = self.unread.pop_front() else { return false };
        let unloadable = match queue.load(id) {
            Ok(entry) => {
                self.put_back(entry);
                None
            }
            Err(unloadable) => {
                self.unreadable |= matches!(unloadable, Unloadable::Io(_));
                Some(unloadable)
            }
        };
        self.read.push_back((id, unloadable));
        true
    }

    /// Looks for what was queued meanwhile; how much that is. What is `known` is not read again.
    fn refresh(&mut self, queue: &Queue, known: impl Fn(EntryId) -> bool) -> u64 {
        let now = monotonic_clock::now();
        if self.listing_took <= CHEAP {
            self.noted = enqueue::noted(&enqueue::notes(queue).unwrap_or_default()).collect();
            self.latest = self.latest.max(self.noted.iter().max().copied());
        }
        let pause = self.listing_took.saturating_mul(LISTING_SHARE).max(LISTING_PAUSE);
        let due = self.listed_at.saturating_add(pause);
        if now < due && self.latest <= self.newest {
            return 0;
        }
        // What cannot be listed now is left to the next pass.
        let mut earlier = queue.ids().unwrap_or_default();
        let count = earlier.partition_point(|id| self.newest.is_some_and(|newest| *id <= newest));
        let fresh = earlier.split_off(count);
        // One that was published late is not sent in this pass, but may inherit. Its writer may have noted a later id since.
        for id in earlier {
            let is_known = self.forgotten
                || self.entries.contains_key(&id)
                || self.unread.binary_search(&id).is_ok()
                || known(id);
            if !is_known && let Ok(entry) = queue.load(id) {
                self.leave(entry);
            }
        }
        self.newest = fresh.last().copied().or(self.newest);
        self.latest = self.latest.max(self.newest);
        self.listed_at = monotonic_clock::now();
        self.listing_took = self.listed_at.saturating_sub(now);
        let added = fresh.len() as u64;
        if now.saturating_sub(self.opened_at) <= OPEN_FOR {
            self.unread.extend(fresh);
        } else if added > 0 {
            self.late = true;
            for entry in fresh.into_iter().filter_map(|id| queue.load(id).ok()) {
                self.leave(entry);
            }
        }
        added
    }

    /// Whether some entry could not be read now: it may continue any edit.
    pub fn has_unreadable(&self) -> bool {
        self.unreadable
    }

    /// The greatest id that is known to have been given out.
    pub fn latest(&self) -> Option<EntryId> {
        self.latest
    }

    /// Whether something was queued that the next pass is to send.
    pub fn has_late(&self) -> bool {
        self.late
    }
}
