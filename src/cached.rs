//! The locally cached file of a path. A program may keep, below ROOT, copies of what the upstream serves, at
//! the upstream's paths; a delivered write makes the copy of its path stale, and it is removed.
//!
//! The file's place is the percent-decoded path. It is never above ROOT, never in the outbox's own
//! directory, never a directory, and never behind a link: each directory on the way is opened by itself,
//! without following links.

use crate::dir::{DescriptorType, Dir};
use crate::id::EntryId;
use crate::layout::OUTBOX_DIR;
use crate::queue::Queue;
use crate::unloadable::Unloadable;
use percent_encoding::percent_decode_str;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

/// The names from ROOT to the cached file; none where a path has no place.
pub fn place(raw_uri: &str) -> Option<Vec<String>> {
    let path = raw_uri.split_once('?').map_or(raw_uri, |(path, _)| path);
    let decoded = percent_decode_str(path).decode_utf8().ok()?;
    if decoded.contains(['\0', '\\']) || decoded.ends_with('/') {
        return None;
    }
    let names: Vec<String> =
        decoded.split('/').filter(|name| !name.is_empty() && *name != ".").map(Into::into).collect();
    // Case-insensitively: that is how some file systems compare.
    let reserved = names.first()?.eq_ignore_ascii_case(OUTBOX_DIR);
    (!reserved && names.iter().all(|name| name != "..")).then_some(names)
}

/// How often the queue is looked through for later writes, at most; and for how much of the time.
const REFRESH: Duration = Duration::from_secs(1);
const SHARE: u32 = 50;

/// Places whose last write is known at most, some 50 bytes each. Of what waits further back in the queue, a cached file
/// may be removed too early, as the original does.
const MOST: usize = 65_536;

/// Removes stale files in the course of one pass.
#[derive(Default)]
pub struct Cached {
    hasher: RandomState,
    /// The last known write to each place, by its hash. Filled only when the first cached file shows up: most roots have
    /// none.
    last_writes: HashMap<u64, EntryId>,
    seen: Option<EntryId>,
    /// What was queued later could not all be read: then each file may be that of a later write.
    unsure: bool,
    /// When the queue is looked through for them again.
    due: Option<Instant>,
}

impl Cached {
    /// Removes the cached file of a path that the entry `id` has just changed on the server, unless a later
    /// write to it waits: then the file may well be that write's.
    pub fn remove(&mut self, queue: &Queue, id: EntryId, raw_uri: &str) {
        let Some(names) = place(raw_uri) else { return };
        let Some((parent, name)) = find(&queue.root, &names) else { return };
        if !self.later_write_waits(queue, id, &names) {
            // A stale copy that cannot be removed is no reason to keep a delivered entry.
            let _ = parent.unlink(&name);
        }
    }

    /// The same as the original does it: whatever waits, and with a slash at the end, too.
    pub fn remove_always(queue: &Queue, raw_uri: &str) {
        let path = raw_uri.split_once('?').map_or(raw_uri, |(path, _)| path);
        if let Some((parent, name)) =
            place(path.trim_end_matches('/')).and_then(|names| find(&queue.root, &names))
        {
            let _ = parent.unlink(&name);
        }
    }

    fn later_write_waits(&mut self, queue: &Queue, id: EntryId, names: &[String]) -> bool {
        if self.due.is_none_or(|due| Instant::now() >= due) {
            self.refresh(queue);
        }
        match self.last_writes.get(&self.hasher.hash_one(names)) {
            Some(last) if *last > id => !queue.is_gone(*last),
            _ => self.unsure,
        }
    }

    fn refresh(&mut self, queue: &Queue) {
        let started = Instant::now();
        let ids = queue.ids();
        self.unsure = ids.is_err();
        if let Ok(ids) = &ids {
            self.last_writes.retain(|_, last| ids.binary_search(last).is_ok());
        }
        for later in ids.unwrap_or_default() {
            if self.seen.is_some_and(|seen| later <= seen) {
                continue;
            }
            if self.last_writes.len() >= MOST {
                break;
            }
            let names = match queue.load(later) {
                Ok(entry) => place(&entry.meta.raw_uri),
                Err(Unloadable::Io(_) | Unloadable::InProgress(_)) => {
                    self.unsure = true;
                    break;
                }
                Err(_) => None,
            };
            self.seen = Some(later);
            if let Some(names) = names {
                self.last_writes.insert(self.hasher.hash_one(names.as_slice()), later);
            }
        }
        let took = started.elapsed();
        self.due = Some(Instant::now() + REFRESH.max(took.saturating_mul(SHARE)));
    }
}

/// The directory and the name of a cached file that is there.
fn find(root: &Dir, names: &[String]) -> Option<(Dir, String)> {
    let (name, parents) = names.split_last()?;
    // Mostly there is none, nor a directory where it would be: one look tells, and two at most.
    root.stat(names.first()?).ok()?;
    root.stat(&names.join("/")).ok()?;
    let mut dir = root.open(".").ok()?;
    for parent in parents {
        dir = dir.open(parent).ok()?;
    }
    let found = dir.stat(name).ok()?.type_;
    (found != DescriptorType::Directory).then(|| (dir, name.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_always_below_root_and_never_in_the_outbox() {
        assert_eq!(place("/a%20b//c.txt?x").unwrap(), ["a b", "c.txt"]);
        assert_eq!(place("/a/./b").unwrap(), ["a", "b"]);
        for none in [
            "/",
            "/a/",
            "/..",
            "/../x",
            "/a/../../x",
            "/%2e%2e/x",
            "/a%2f..%2f..%2fx",
            "/%2E./x",
            "/a%00b",
            "/a\\..\\b",
            "/.zddc-outbox/x",
            "/%2ezddc-outbox/x",
            "/.ZDDC-Outbox/x",
            "//.zddc-outbox/x",
            "/./.zddc-outbox/x",
            "/%ff",
        ] {
            assert_eq!(place(none), None, "{none}");
        }
    }
}
