//! Several queued edits of one resource. Each was written by somebody who knew the local state, not the
//! versions that the server will make of the edits before. So when one is delivered, the next that was based
//! on the same version inherits the server's name for the new one, durably, before the delivered one is
//! removed: the chain never conflicts with itself, also after a crash, and a version that somebody else put in
//! between still does conflict.
//!
//! An edit whose base differs from its predecessor's keeps it: its author had seen something else. But an
//! edit without a base replaces whatever each of those after it had seen, so all of these continue it.

use crate::entry::Entry;
use crate::precondition::{Base, Validator};
use crate::{clock, id::EntryId};
use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::time::SystemTime;

/// What an ETag is about: a path with its query, as they are spelt. A server may take two spellings for one resource, or
/// for two: in their order, related ones wait for each other ([`crate::key`]), but what one inherits must be its own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Resource(String);

impl Resource {
    /// The resource of a request's path and query.
    pub fn of(raw_uri: &str) -> Resource {
        Resource(raw_uri.into())
    }
}

/// What is known of an edit when the next one is judged.
#[derive(Debug, Clone)]
pub struct Link {
    id: EntryId,
    /// What its author had seen.
    author: Base,
    /// What it was sent with.
    sent: Base,
}

impl Link {
    /// An entry as a link of its chain.
    pub fn of(entry: &Entry) -> Link {
        Link { id: entry.id, author: Base::of(&entry.meta), sent: entry.base() }
    }

    /// Whether `later` continues this edit: it has a base, and the same one.
    pub fn continues(&self, later: &Entry) -> bool {
        let inherited = || self.sent != Base::Any && self.sent == later.base();
        later.id > self.id
            && later.is_based()
            && (self.author == Base::Any || self.is_of(&Base::of(&later.meta)) || inherited())
    }

    /// Whether this is what its author had seen.
    pub fn is_of(&self, base: &Base) -> bool {
        self.author == *base
    }
}

/// How many deliveries back a resource's last one is remembered: for edits that were being queued at that moment, and for those
/// that are further ahead than entries are read. Some 200 bytes each.
const REMEMBERED: usize = 65_536;

struct Delivered {
    link: Link,
    validator: Validator,
    /// Unix nanoseconds, as ids have them: ahead of the clock where that was set back.
    removed_at: u64,
    /// Some entry could not be read then. It may be one that should have inherited this rather than what it had.
    unread: bool,
    number: u64,
}

/// The last delivery to each resource. Resources are known by their hash alone: were two to share one, the bases
/// would have to be equal, too.
#[derive(Default)]
struct Memory {
    hasher: RandomState,
    last: HashMap<u64, Delivered>,
    /// Hash and number, oldest first.
    order: VecDeque<(u64, u64)>,
    count: u64,
}

thread_local! {
    /// What this instance has delivered.
    static MEMORY: RefCell<Memory> = RefCell::default();
}

/// Remembers an edit that is about to be removed, for those that the pass has not seen. `latest` is the greatest id
/// that is known, and `unread` whether some entry could not be read.
pub fn remember(entry: &Entry, validator: &Validator, latest: Option<EntryId>, unread: bool) {
    MEMORY.with_borrow_mut(|memory| {
        let hash = memory.hasher.hash_one(Resource::of(&entry.meta.raw_uri));
        memory.count += 1;
        let delivered = Delivered {
            link: Link::of(entry),
            validator: validator.clone(),
            removed_at: clock::unix_nanos(SystemTime::now()).max(latest.map_or(0, EntryId::nanos)),
            unread,
            number: memory.count,
        };
        memory.last.insert(hash, delivered);
        memory.order.push_back((hash, memory.count));
        if memory.order.len() > REMEMBERED
            && let Some((hash, number)) = memory.order.pop_front()
            && memory.last.get(&hash).is_some_and(|delivered| delivered.number == number)
        {
            memory.last.remove(&hash);
        }
    });
}

/// What an entry inherits from an edit that was removed after it had been queued: somebody who queues an edit
/// later could have looked.
pub fn recall(entry: &Entry) -> Option<Validator> {
    if Base::of(&entry.meta) == Base::Any {
        return None;
    }
    MEMORY.with_borrow(|memory| {
        let found = memory.last.get(&memory.hasher.hash_one(Resource::of(&entry.meta.raw_uri)))?;
        let inherits = found.removed_at >= entry.id.nanos() && found.link.continues(entry);
        let new = entry.state.validator.is_none() || found.unread;
        (inherits && new).then(|| found.validator.clone())
    })
}
