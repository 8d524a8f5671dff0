//! Several queued edits of one resource. Each was written by somebody who knew the local state, not the
//! versions that the server will make of the edits before. So when one is delivered, the next that was based
//! on the same version inherits the server's name for the new one, durably, before the delivered one is
//! removed: the chain never conflicts with itself, also after a crash, and a version that somebody else put in
//! between still does conflict.
//!
//! An edit whose base differs from its predecessor's keeps it: its author had seen something else.

use crate::key::Key;
use crate::precondition::{Base, Validator};
use crate::queue::Entry;
use crate::{clock, id::EntryId};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::time::SystemTime;

/// What an ETag is about: a path with its query.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Resource(Key, String);

impl Resource {
    /// The resource of a request's path and query.
    pub fn of(raw_uri: &str) -> Resource {
        let query = raw_uri.split_once('?').map_or("", |(_, query)| query);
        Resource(Key::of(raw_uri), query.into())
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

    /// Whether `later` continues this edit: it has a precondition, and the same one.
    pub fn continues(&self, later: &Entry) -> bool {
        let sent = later.base();
        later.id > self.id
            && sent != Base::Any
            && (self.author == Base::Any || self.author == Base::of(&later.meta) || self.sent == sent)
    }
}

/// Delivered edits that are remembered. Only those matter that were delivered while the next was being queued.
const REMEMBERED: usize = 1024;

struct Delivered {
    resource: Resource,
    link: Link,
    validator: Validator,
    /// Unix nanoseconds.
    removed_at: u64,
}

thread_local! {
    /// Edits that were delivered by this instance, the latest last.
    static DELIVERED: RefCell<VecDeque<Delivered>> = const { RefCell::new(VecDeque::new()) };
}

/// Remembers an edit that is about to be removed, for those that are being queued at this moment and that the
/// pass has not seen.
pub fn remember(entry: &Entry, validator: &Validator) {
    let delivered = Delivered {
        resource: Resource::of(&entry.meta.raw_uri),
        link: Link::of(entry),
        validator: validator.clone(),
        removed_at: clock::unix_nanos(SystemTime::now()),
    };
    DELIVERED.with_borrow_mut(|all| {
        if all.len() >= REMEMBERED {
            all.pop_front();
        }
        all.push_back(delivered);
    });
}

/// What an entry inherits from an edit that was removed after it had been queued: somebody who queues an edit
/// later could have looked.
pub fn recall(entry: &Entry) -> Option<Validator> {
    if entry.state.validator.is_some() || Base::of(&entry.meta) == Base::Any {
        return None;
    }
    DELIVERED.with_borrow(|all| {
        if all.is_empty() {
            return None;
        }
        let resource = Resource::of(&entry.meta.raw_uri);
        all.iter()
            .rev()
            .find(|d| d.resource == resource && d.removed_at >= entry.id.nanos() && d.link.continues(entry))
            .map(|d| d.validator.clone())
    })
}
