//! Pending entries in queue order, read some way ahead of what is sent: a delivered edit must find the next one
//! of its resource before it is removed ([`crate::chain`]). Further ahead than `WINDOW` or `WEIGHT`, memory and the first
//! reply's handling would grow with the queue; there, the chain rests on what this process remembers, and if it
//! dies in the wrong moment, there is a conflict, which is kept. The same holds for what waits for its time,
//! where that is more than twice as much, and for what is queued while a queue that is slow to list (`CHEAP`)
//! is replayed.

use crate::Result;
use crate::chain::{Link, Resource};
use crate::enqueue;
use crate::id::EntryId;
use crate::key::{Key, Keys};
use crate::listing;
use crate::meta::Meta;
use crate::precondition::Base;
use crate::queue::{Entry, Queue};
use crate::unloadable::Unloadable;
use crate::upstream::Upstream;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use wasi::clocks::monotonic_clock;

/// Entries that are read ahead at most, and about how many bytes of them: one may have headers of 48 KiB.
const WINDOW: usize = 4096;
const WEIGHT: usize = 4 * 1024 * 1024;

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
    /// About how many bytes those take.
    weight: usize,
    /// Those with a precondition.
    chained: BTreeMap<Resource, BTreeSet<EntryId>>,
    /// Some entry that stays in the queue is in none of these: there were too many.
    forgotten: bool,
    /// Some entry could not be read now.
    unreadable: bool,
    /// The last that was given out by [`Ahead::next`].
    offered: Option<EntryId>,
    /// Given out, and neither back nor gone: in flight, or tried in vain.
    handed: BTreeSet<EntryId>,
    /// Found after one that had been queued later had its turn; without what it is where it cannot be read.
    overtaken: Vec<(EntryId, Option<Meta>)>,
    /// There was some.
    overtook: bool,
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
    opened_at: u64,
    listed_at: u64,
    listing_took: u64,
}

impl Ahead {
    /// Lists the queue.
    pub fn list(queue: &Queue) -> Result<Ahead> {
        let opened_at = monotonic_clock::now();
        let unread: VecDeque<EntryId> = listing::ids(queue)?.into();
        let listed_at = monotonic_clock::now();
        Ok(Ahead {
            newest: unread.back().copied(),
            latest: unread.back().copied(),
            listed_after: unread.back().copied(),
            listed_before: None,
            noted: Vec::new(),
            late: None,
            unread,
            read: VecDeque::new(),
            entries: BTreeMap::new(),
            weight: 0,
            offered: None,
            handed: BTreeSet::new(),
            overtaken: Vec::new(),
            overtook: false,
            chained: BTreeMap::new(),
            forgotten: false,
            unreadable: false,
            opened_at,
            listed_at,
            listing_took: listed_at.saturating_sub(opened_at),
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
        if entry.base() != Base::Any {
            let resource = Resource::of(&entry.meta.raw_uri);
            self.chained.entry(resource).or_default().insert(entry.id);
        }
        self.weight += entry.meta.weight();
        self.handed.remove(&entry.id);
        self.entries.insert(entry.id, entry);
    }

    /// Keeps an entry that is not to be sent in this pass, as far as there is room: an earlier one may still be
    /// delivered and hand its version on.
    pub fn leave(&mut self, entry: Entry) {
        match self.entries.len() < 2 * WINDOW && self.weight < 2 * WEIGHT {
            true => self.put_back(entry),
            false => self.forgotten = true,
        }
    }

    /// Whether there is room for more that must wait.
    pub fn has_room(&self) -> bool {
        self.weight < 5 * WEIGHT
    }

    /// Takes such an entry.
    pub fn take(&mut self, id: EntryId) -> Option<Entry> {
        let entry = self.entries.remove(&id)?;
        self.hand(id);
        self.weight = self.weight.saturating_sub(entry.meta.weight());
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
    /// meanwhile is looked at too; how many entries that adds is returned beside.
    pub fn successors(&mut self, queue: &Queue, of: &Entry) -> (Vec<EntryId>, u64) {
        let mut added = self.refresh(queue);
        self.read_on(queue);
        let mut next = self.continuing(of);
        if next.is_empty() && self.refresh_by_notes(queue, of, &mut added) {
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

    /// Looks for what was published after the queue had been listed although its id had been given out before: its writer
    /// was slower. Whether there is any. What was not there twice is not looked for again.
    fn refresh_by_notes(&mut self, queue: &Queue, of: &Entry, added: &mut u64) -> bool {
        let mut found = false;
        for id in std::mem::take(&mut self.noted) {
            if id > of.id && Some(id) > self.listed_before && !self.knows(id) {
                let more = self.catch_up(queue, id);
                *added += more;
                found |= more > 0;
                // What is published later with a smaller id has its place before this one.
                self.newest = self.newest.max((more > 0).then_some(id));
            }
        }
        self.read_on(queue);
        found
    }

    /// Whether one that was listed has its place: it waits to be read or sent, was given out, or is for the next pass.
    fn knows(&self, id: EntryId) -> bool {
        self.entries.contains_key(&id)
            || self.handed.contains(&id)
            || self.unread.binary_search(&id).is_ok()
            || self.read.binary_search_by_key(&id, |(id, _)| *id).is_ok()
            || self.forgotten && Some(id) <= self.offered
            || self.late.is_some_and(|late| id >= late)
    }

    /// Takes in one that appeared among those that were listed: one more that waits. If none of those after it had its turn,
    /// it gets its own in this pass.
    fn catch_up(&mut self, queue: &Queue, id: EntryId) -> u64 {
        match queue.load(id) {
            Err(Unloadable::Gone | Unloadable::InProgress) => 0,
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
                self.overtaken.push((id, Some(entry.meta.clone())));
                self.overtook = true;
                self.leave(entry);
                1
            }
            loaded => {
                if let Err(Unloadable::Io(_)) = loaded {
                    self.overtaken.push((id, None));
                }
                self.overtook = true;
                self.keep(loaded);
                self.hand(id);
                1
            }
        }
    }

    /// What has been found since this was last asked although something queued later had its turn. The next pass sends it,
    /// but it may inherit in this one. None for what it is where it cannot be read.
    pub fn overtaken(&mut self) -> Vec<(EntryId, Option<Meta>)> {
        std::mem::take(&mut self.overtaken)
    }

    /// An entry that was read ahead.
    pub fn entry(&mut self, id: EntryId) -> Option<&mut Entry> {
        self.entries.get_mut(&id)
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
        let mut later = self.entries.range_mut(of.id..).filter(|(id, _)| **id > of.id);
        let next = later.find(|(_, entry)| upstream.keys(&entry.meta).iter().any(|key| keys.related(key)));
        let next = next.map(|(_, entry)| entry).filter(|next| {
            let whole = matches!(next.meta.method.as_str(), "PUT" | "DELETE");
            let undone = next.meta.method == "DELETE" && of.base() == Base::Absent;
            let based = Base::of(&next.meta) == Base::Any || link.continues(next);
            let known = unread.is_none_or(|unread| next.id < unread);
            known && whole && !undone && based && next.meta.raw_uri == of.meta.raw_uri
        });
        (next, added)
    }

    /// Reads as far ahead as there is room.
    fn read_on(&mut self, queue: &Queue) {
        while self.read.len() < WINDOW && self.weight < 3 * WEIGHT && self.read_one(queue) {}
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

    /// Looks for what was queued or put back meanwhile; how much of it there is.
    fn refresh(&mut self, queue: &Queue) -> u64 {
        let now = monotonic_clock::now();
        if self.listing_took <= CHEAP {
            self.noted = enqueue::noted(&enqueue::notes(queue).unwrap_or_default()).collect();
            self.latest = self.latest.max(self.noted.iter().max().copied());
        }
        let pause = self.listing_took.saturating_mul(LISTING_SHARE).max(LISTING_PAUSE);
        let due = self.listed_at.saturating_add(pause);
        if now < due && self.latest <= self.listed_after {
            return 0;
        }
        let listed = queue.ids().and_then(|listed| {
            match listed.iter().any(|id| Some(*id) > self.newest || !self.knows(*id)) {
                true => listing::complete(queue, listed),
                false => Ok(listed),
            }
        });
        // What cannot be listed now is listed at the next delivery, or in the next pass.
        let Ok(mut listed) = listed else { return 0 };
        self.listed_before = std::mem::replace(&mut self.listed_after, self.latest);
        let count = listed.partition_point(|id| Some(*id) <= self.newest);
        let mut fresh = listed.split_off(count);
        let newest = fresh.last().copied();
        fresh.retain(|id| !self.knows(*id));
        let mut added = 0;
        for id in listed {
            if !self.knows(id) {
                added += self.catch_up(queue, id);
            }
        }
        self.newest = newest.or(self.newest);
        self.latest = self.latest.max(self.newest);
        self.listed_after = self.listed_after.max(self.newest);
        self.listed_at = monotonic_clock::now();
        self.listing_took = self.listed_at.saturating_sub(now);
        added += fresh.len() as u64;
        if self.late.is_none() && now.saturating_sub(self.opened_at) <= OPEN_FOR {
            self.unread.extend(fresh);
        } else {
            self.late = self.late.or(fresh.first().copied());
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
        self.late.is_some() || self.overtook
    }
}
