//! How much the outbox may hold. At a limit a new write is refused; nothing old is dropped to make room, and what is
//! in the outbox already may always move (`retry`, `resolve`).
//!
//! - *Entries* are the pending ones: they are what a pass has to work through. What was set aside waits for
//!   somebody's decision, and must not keep new writes out by its number.
//! - *Bytes* are those on disk of everything kept, pending and set aside, about as `du` counts them: files in
//!   whole blocks, and a block for each directory. Lengths alone would say a tenth of what small entries take.
//!
//! Without limits, nothing here costs anything. With limits an instance counts once, and from then on adds up what it
//! queues itself. The directories' times, and how many directories are in the queue's, tell whether others are at
//! work, too; then it counts again before it refuses, when it has used a part of the room that it last found, or when its count has become old. So
//! several who queue at the same time may overrun a limit by what they have in flight.

use crate::bindings::exports::zddc::outbox::queue::Extent;
use crate::bindings::types::{Limit, Measure};
use crate::clock;
use crate::dir::{DEEPEST, DescriptorStat, DescriptorType, Dir};
use crate::id::EntryId;
use crate::layout::{self, BODY, CORRUPT, MAX_RECORD, META, Name, REJECTED, STATE};
use crate::meta::{Meta, Unusable};
use crate::queue::Queue;
use crate::{Error, Result, enqueue, locate};
use std::cell::Cell;
use std::time::SystemTime;
use wasi::clocks::monotonic_clock;

/// What a file takes at least, and a directory: the block of most file systems, in bytes.
const BLOCK: u64 = 4096;

/// An instance that is not alone counts again once it has used this part of the room that it found: so many
/// may queue side by side and still stay below the limit together.
const PART: u64 = 32;

/// A count by one who is not alone is trusted for this long, in nanoseconds, or so many times as long as it took,
/// whichever is longer: counting costs a hundredth of the time at most.
const TRUSTED: u64 = 1_000_000_000;
const TRUSTED_FOR_TIMES: u64 = 100;

/// Where a directory changed less than this before it was counted, in nanoseconds, a later change may not show
/// in its time: file systems' clocks tick in milliseconds, FAT's in two seconds.
const TICK: u64 = 2_000_000_000;

/// The limits; none means that there is none.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    /// Pending entries.
    pub entries: Option<u64>,
    /// Bytes on disk.
    pub bytes: Option<u64>,
}

/// What is used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Totals {
    entries: u64,
    bytes: u64,
}

/// What changes when somebody is at work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Look {
    /// Modification times of the queue's directory and of those for what was set aside, Unix nanoseconds.
    times: [Option<u64>; 3],
    /// Links to the queue's directory: one more for each directory in it, but on file systems that do not count them.
    links: u64,
}

/// What this instance knows.
#[derive(Debug, Clone, Copy)]
struct Known {
    totals: Totals,
    /// As it was counted.
    counted: Totals,
    /// Monotonic, in nanoseconds: when it was counted, and for how long.
    at: u64,
    took: u64,
    look: Look,
    /// The times had been the same for long enough when it was counted, so that any change since would show.
    settled: bool,
    /// Others are at work, too. Once seen it is taken for granted: what they do between a look at the times and a
    /// change of one's own does not show.
    others: bool,
    /// Since it was counted, somebody changed something, oneself or others.
    changed: bool,
}

impl Totals {
    fn and(self, other: Totals) -> Totals {
        Totals {
            entries: self.entries.saturating_add(other.entries),
            bytes: self.bytes.saturating_add(other.bytes),
        }
    }
}

thread_local! {
    static KNOWN: Cell<Option<Known>> = const { Cell::new(None) };
    /// What this instance has staged in a batch that is not published yet.
    static RESERVED: Cell<Totals> = const { Cell::new(Totals { entries: 0, bytes: 0 }) };
}

/// Room that is kept for an entry which is to be published with others, as long as this lives.
pub struct Reserved(Totals);

/// Keeps room for an entry of this size.
pub fn reserve(size: u64) -> Reserved {
    let reserved = Totals { entries: 1, bytes: size };
    RESERVED.set(RESERVED.get().and(reserved));
    Reserved(reserved)
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let all = RESERVED.get();
        RESERVED.set(Totals {
            entries: all.entries.saturating_sub(self.0.entries),
            bytes: all.bytes.saturating_sub(self.0.bytes),
        });
    }
}

/// Bytes on disk of an entry with this body and this meta.json.
pub fn entry_size(body_len: u64, meta_len: u64) -> u64 {
    blocks(body_len).saturating_add(blocks(meta_len)).saturating_add(BLOCK)
}

fn blocks(len: u64) -> u64 {
    len.div_ceil(BLOCK).saturating_mul(BLOCK)
}

impl Limits {
    /// Refuses an entry that has so many bytes on disk so far, or says how many it may have.
    pub fn admit(&self, queue: &Queue, size: u64) -> Result<u64> {
        if self.entries.is_none() && self.bytes.is_none() {
            return Ok(u64::MAX);
        }
        let look = self.look(queue);
        let known = match KNOWN.get() {
            Some(mut known) => {
                if known.look != look {
                    (known.others, known.changed, known.look) = (true, true, look);
                }
                let again = match self.crossed(known.totals.and(RESERVED.get()), size) {
                    Some(_) => known.others && known.changed || !known.settled,
                    None => known.others && (self.used_its_part(&known) || known.is_old()),
                };
                if again { self.count(queue, known.others)? } else { known }
            }
            None => self.count(queue, false)?,
        };
        KNOWN.set(Some(known));
        let used = known.totals.and(RESERVED.get());
        match self.crossed(used, size) {
            Some(limit) => Err(Error::QueueFull(limit)),
            None => Ok(self.bytes.map_or(u64::MAX, |max| max.saturating_sub(used.bytes))),
        }
    }

    /// Takes note of an entry that this instance has queued.
    pub fn queued(&self, queue: &Queue, size: u64) {
        let Some(mut known) = KNOWN.get() else { return };
        known.totals.entries += 1;
        known.totals.bytes = known.totals.bytes.saturating_add(size);
        let look = self.look(queue);
        // Its own change hides in the times whatever else happened since it last looked, but not in the links.
        known.others |= look.links != known.look.links && look.links != known.look.links.saturating_add(1);
        (known.look, known.settled, known.changed) = (look, false, true);
        KNOWN.set(Some(known));
    }

    fn crossed(&self, used: Totals, size: u64) -> Option<Limit> {
        if let Some(max) = self.entries.filter(|max| used.entries >= *max) {
            return Some(Limit { measure: Measure::Entries, max, used: used.entries });
        }
        let max = self.bytes.filter(|max| used.bytes.saturating_add(size) > *max)?;
        Some(Limit { measure: Measure::Bytes, max, used: used.bytes })
    }

    fn used_its_part(&self, known: &Known) -> bool {
        let part = |max: Option<u64>, counted: u64, now: u64| {
            max.is_some_and(|max| now.saturating_sub(counted) > max.saturating_sub(counted) / PART)
        };
        part(self.entries, known.counted.entries, known.totals.entries.saturating_add(1))
            || part(self.bytes, known.counted.bytes, known.totals.bytes)
    }

    fn count(&self, queue: &Queue, others: bool) -> Result<Known> {
        let at = monotonic_clock::now();
        let look = self.look(queue);
        let totals = count(queue, self.bytes.is_some())?;
        let took = monotonic_clock::now().saturating_sub(at);
        let now = clock::unix_nanos(SystemTime::now());
        let latest = look.times.iter().flatten().max();
        let settled = latest.is_some_and(|at| at.saturating_add(TICK).saturating_add(took) < now);
        Ok(Known { totals, counted: totals, at, took, look, settled, others, changed: false })
    }

    /// Entries come and go in the queue's directory; bytes go where something that was set aside is dropped, too.
    fn look(&self, queue: &Queue) -> Look {
        let of = |stat: Option<&DescriptorStat>| {
            let at = stat?.data_modification_timestamp?;
            Some(at.seconds.saturating_mul(1_000_000_000).saturating_add(at.nanoseconds.into()))
        };
        let aside = |place| self.bytes.and_then(|_| of(queue.dir.stat(place).ok().as_ref()));
        let own = queue.dir.stat_self().ok();
        let times = [of(own.as_ref()), aside(REJECTED), aside(CORRUPT)];
        Look { times, links: own.map_or(0, |stat| stat.link_count) }
    }
}

impl Known {
    fn is_old(&self) -> bool {
        let trusted = TRUSTED.max(self.took.saturating_mul(TRUSTED_FOR_TIMES));
        monotonic_clock::now().saturating_sub(self.at) > trusted
    }
}

/// Forgets what was counted: the directory may be another by now.
pub fn forget() {
    KNOWN.set(None);
}

/// What the outbox takes up, looked at afresh.
pub fn usage(queue: &Queue) -> Result<Extent> {
    let mut newer = 0;
    let bytes = count_each(queue, true, |id| {
        let path = format!("{id}/{META}");
        let json = queue.dir.read(&path, MAX_RECORD).ok();
        newer +=
            u64::from(json.is_some_and(|json| matches!(Meta::parse(id, &json), Err(Unusable::Newer(_)))));
    })?
    .bytes;
    Ok(Extent { bytes, newer })
}

fn count(queue: &Queue, with_bytes: bool) -> Result<Totals> {
    count_each(queue, with_bytes, |_| {})
}

fn count_each(queue: &Queue, with_bytes: bool, mut each_pending: impl FnMut(EntryId)) -> Result<Totals> {
    let mut totals = Totals::default();
    let mut pending = Vec::new();
    let mut conflicts = Vec::new();
    let mut newest = None;
    queue.names(|name, kind| match layout::parse(name) {
        Name::Pending(id) => {
            totals.entries += 1;
            newest = newest.max(Some(id));
            pending.extend(with_bytes.then_some((id, kind)));
        }
        Name::Conflict(id, _) => {
            newest = newest.max(Some(id));
            conflicts.extend(with_bytes.then(|| name.to_owned()));
        }
        Name::Ours | Name::Foreign => {}
    })?;
    // Who gives out the next id need not list the same names once more.
    enqueue::seen(newest.max(locate::newest(queue)?));
    let mut add = |bytes| totals.bytes = totals.bytes.saturating_add(bytes);
    for (id, kind) in pending {
        add(pending_size(&queue.dir, id, kind));
        each_pending(id);
    }
    for name in conflicts {
        add(size(&queue.dir, &name, DEEPEST));
    }
    if with_bytes {
        for place in [REJECTED, CORRUPT] {
            // The directory itself is not counted: it does not go.
            let Ok(dir) = queue.dir.open(place) else { continue };
            let mut names = Vec::new();
            dir.list(|name, _| names.push(name))?;
            for name in names {
                add(size(&dir, &name, DEEPEST));
            }
        }
    }
    Ok(totals)
}

/// The size of a pending entry, whose files are known by name.
fn pending_size(dir: &Dir, id: EntryId, kind: DescriptorType) -> u64 {
    if kind != DescriptorType::Directory {
        return size(dir, &id.to_string(), DEEPEST);
    }
    let files = [BODY, META, STATE].iter().filter_map(|file| dir.stat(&format!("{id}/{file}")).ok());
    files.map(|stat| blocks(stat.size)).fold(BLOCK, u64::saturating_add)
}

/// The size of whatever is at a path. What cannot be looked at counts nothing.
fn size(dir: &Dir, path: &str, deepest: u32) -> u64 {
    let Ok(stat) = dir.stat(path) else { return 0 };
    if stat.type_ != DescriptorType::Directory {
        return blocks(stat.size);
    }
    let mut names = Vec::new();
    let Some(inner) = dir.open(path).ok().filter(|_| deepest > 0) else { return BLOCK };
    let _ = inner.list(|name, _| names.push(name));
    let sizes = names.iter().map(|name| size(&inner, name, deepest - 1));
    sizes.fold(BLOCK, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(counted: u64, now: u64) -> Known {
        let totals = |entries| Totals { entries, bytes: 0 };
        Known {
            totals: totals(now),
            counted: totals(counted),
            at: 0,
            took: 0,
            look: Look { times: [None; 3], links: 0 },
            settled: false,
            others: true,
            changed: true,
        }
    }

    #[test]
    fn an_entry_takes_whole_blocks() {
        assert_eq!(entry_size(0, 300), 2 * BLOCK);
        assert_eq!(entry_size(1, 300), 3 * BLOCK);
        assert_eq!(entry_size(4096, 4097), 4 * BLOCK);
        assert_eq!(entry_size(u64::MAX, 1), u64::MAX);
    }

    #[test]
    fn a_limit_is_crossed_by_the_entry_after_the_last_and_by_the_first_byte_too_many() {
        let limits = Limits { entries: Some(10), bytes: Some(20_000) };
        let used = |entries, bytes| Totals { entries, bytes };
        assert_eq!(limits.crossed(used(9, 10_000), 10_000), None);
        let limit = limits.crossed(used(10, 0), 1).unwrap();
        assert_eq!((limit.measure, limit.max, limit.used), (Measure::Entries, 10, 10));
        let limit = limits.crossed(used(9, 10_000), 10_001).unwrap();
        assert_eq!((limit.measure, limit.max, limit.used), (Measure::Bytes, 20_000, 10_000));
        assert_eq!(Limits::default().crossed(used(u64::MAX, u64::MAX), u64::MAX), None);
    }

    #[test]
    fn who_is_not_alone_counts_again_after_a_part_of_the_room_and_at_the_end_each_time() {
        let limits = Limits { entries: Some(1000), bytes: None };
        assert!(!limits.used_its_part(&known(200, 224)));
        assert!(limits.used_its_part(&known(200, 225)));
        assert!(!limits.used_its_part(&known(968, 968)));
        assert!(limits.used_its_part(&known(969, 969)));
    }
}
