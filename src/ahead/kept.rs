//! Entries that were read and are kept until they leave, with which edits there are of each resource.

use crate::chain::{Link, Resource};
use crate::entry::Entry;
use crate::id::EntryId;
use crate::precondition::Base;
use std::collections::{BTreeMap, BTreeSet};

/// Such entries.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// Each with what it weighed when it came: what it inherits meanwhile may weigh something else.
    entries: BTreeMap<EntryId, (Entry, usize)>,
    /// About how many bytes they take.
    pub(super) weight: usize,
    /// Those that may continue an edit.
    chained: BTreeMap<Resource, BTreeSet<EntryId>>,
}

impl Kept {
    pub(super) fn put(&mut self, entry: Entry) {
        if entry.is_based() {
            let resource = Resource::of(&entry.meta.raw_uri);
            self.chained.entry(resource).or_default().insert(entry.id);
        }
        let weight = entry.weight();
        self.weight += weight;
        if let Some((_, before)) = self.entries.insert(entry.id, (entry, weight)) {
            self.weight -= before;
        }
    }

    pub(super) fn take(&mut self, id: EntryId) -> Option<Entry> {
        let (entry, weight) = self.entries.remove(&id)?;
        self.weight -= weight;
        let resource = Resource::of(&entry.meta.raw_uri);
        if let Some(ids) = self.chained.get_mut(&resource) {
            ids.remove(&id);
            if ids.is_empty() {
                self.chained.remove(&resource);
            }
        }
        Some(entry)
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn has(&self, id: EntryId) -> bool {
        self.entries.contains_key(&id)
    }

    pub(super) fn entry(&mut self, id: EntryId) -> Option<&mut Entry> {
        self.entries.get_mut(&id).map(|(entry, _)| entry)
    }

    /// Those after an entry, in queue order.
    pub(super) fn after(&mut self, id: EntryId) -> impl Iterator<Item = &mut Entry> {
        self.entries.range_mut(id..).filter(move |(later, _)| **later > id).map(|(_, (entry, _))| entry)
    }

    /// The next edit of each base that continues this one, and those that have inherited what is gone with it.
    pub(super) fn continuing(&self, of: &Entry) -> Vec<EntryId> {
        let link = Link::of(of);
        let ids = self.chained.get(&Resource::of(&of.meta.raw_uri)).into_iter().flatten();
        let later = ids
            .filter_map(|id| self.entries.get(id))
            .map(|(entry, _)| entry)
            .filter(|entry| link.continues(entry));
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
}
