//! The right to replay, where the host takes no lock: a file with its holder's name and an expiry, renewed while
//! the holder lives. docs/wasmtime.md says what it guarantees and what it cannot.
//!
//! - It is taken by creating the file, which only one can do. Where it has expired it is first moved away, which
//!   only one can do, too; whoever finds that he has moved a fresh one puts it back.
//! - It is renewed in place, through the descriptor that it was written with: one who was suspended and lost his
//!   lease meanwhile renews a file that nobody reads, rather than his successor's.
//! - The holder looks every 20 s whether it is still his, and stops where it is not.
//!
//! The bundled host holds one beside its lock (host/src/lease.rs), so that both kinds of hosts see each other.

use crate::bindings::types::Lease as Held;
use crate::dir::{Dir, ErrorCode, File};
use crate::layout::{LEASE, OUTBOX_DIR, STAGING};
use crate::{Error, Result, clock};
use serde::{Deserialize, Serialize};
use std::cell::{Cell, RefCell};
use std::time::{Duration, SystemTime};
use wasi::clocks::monotonic_clock;
use wasi::random::random::get_random_bytes;

/// How long a lease lasts: a holder that died is in the way for no longer.
const LASTS: Duration = Duration::from_secs(60);

/// How often it is renewed: two renewals may fail or come late.
const RENEW: Duration = Duration::from_secs(20);

/// The longest lease file that is read, in bytes; ours have about a hundred.
const MAX_FILE: u64 = 4096;

/// By how much the clocks of two who share a lease may differ, and more.
const SKEW: Duration = Duration::from_secs(60);

/// How often a lease is tried to be had while others come and go.
const TRIES: u32 = 4;

/// The file. Its length is always the same, so that a renewal overwrites all of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    owner: String,
    /// RFC 3339, UTC, whole seconds.
    expires: String,
}

impl Record {
    fn new(owner: &str, now: SystemTime) -> Record {
        Record { owner: owner.into(), expires: clock::rfc3339(now + LASTS) }
    }

    fn text(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec(self).unwrap_or_default();
        text.push(b'\n');
        text
    }

    /// Whether its time is over. One that lasts much longer than any was written before the clock was set back.
    fn is_over(&self, now: SystemTime) -> bool {
        let expires = clock::parse_rfc3339(&self.expires).ok().flatten();
        !expires.is_some_and(|expires| expires > now && expires <= now + LASTS + SKEW)
    }
}

/// A lease that is held. Given back when dropped.
#[derive(Debug)]
pub struct Lease {
    dir: Dir,
    owner: String,
    file: RefCell<File>,
    /// When to look after it: monotonic, in nanoseconds, and by the wall clock, since the former stands still
    /// while a machine sleeps.
    due: Cell<(u64, SystemTime)>,
}

impl Lease {
    /// Takes the lease of the queue in ROOT, which must be there, or says who has it.
    pub fn take() -> Result<Lease> {
        let dir = Dir::root()?.open(OUTBOX_DIR)?;
        let owner = hex::encode(get_random_bytes(8));
        let file = create(&dir, &owner)?;
        Ok(Lease { dir, owner, file: RefCell::new(file), due: Cell::new(next_look()) })
    }

    /// Renews it when that is due; an error where another has it.
    pub fn keep(&self) -> Result<()> {
        let (due, wall) = self.due.get();
        let now = SystemTime::now();
        // Before `wall` by more than an interval: the clock was set back.
        if monotonic_clock::now() < due && now < wall && wall <= now + RENEW {
            return Ok(());
        }
        let next = next_look();
        match look(&self.dir, LEASE) {
            Look::At(found) if found.owner == self.owner => {
                // What cannot be written now is tried again before the lease ends.
                let _ = self.file.borrow().write(&Record::new(&self.owner, now).text(), 0);
            }
            Look::At(found) => return Err(refusal(found)),
            // Removed by hand, or by one who held it while this one slept.
            Look::Missing => match create(&self.dir, &self.owner) {
                Ok(file) => *self.file.borrow_mut() = file,
                Err(error @ Error::AnotherReplays(_)) => return Err(error),
                // A full disk, say. Sending is what makes room.
                Err(_) => {}
            },
            Look::Unreadable => {}
        }
        self.due.set(next);
        Ok(())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if matches!(look(&self.dir, LEASE), Look::At(found) if found.owner == self.owner) {
            let _ = self.dir.unlink(LEASE);
        }
    }
}

fn next_look() -> (u64, SystemTime) {
    let nanos = u64::try_from(RENEW.as_nanos()).unwrap_or(u64::MAX);
    (monotonic_clock::now().saturating_add(nanos), SystemTime::now() + RENEW)
}

fn refusal(found: Record) -> Error {
    Error::AnotherReplays(Held { owner: found.owner, expires: found.expires })
}

/// What is at the lease's name.
enum Look {
    Missing,
    Unreadable,
    At(Record),
}

fn look(dir: &Dir, name: &str) -> Look {
    match dir.read(name, MAX_FILE) {
        Ok(json) => read(dir, name, &json),
        Err(fault) if fault.is_missing() => Look::Missing,
        // Another user's: its time is all that can be seen.
        Err(fault) if fault.code == ErrorCode::Access => read(dir, name, &[]),
        Err(_) => Look::Unreadable,
    }
}

/// A file that is no record is being written, was torn by a power failure, or may not be read: its time begins with its last
/// change.
fn read(dir: &Dir, name: &str, json: &[u8]) -> Look {
    if let Ok(record) = serde_json::from_slice(json) {
        return Look::At(record);
    }
    let Ok(stat) = dir.stat(name) else { return Look::Missing };
    let changed = stat.data_modification_timestamp.and_then(|at| {
        // With room for what is added: a time that has none is as good as none.
        let since =
            Duration::from_secs(at.seconds).checked_add(Duration::from_nanos(at.nanoseconds.into()))?;
        SystemTime::UNIX_EPOCH.checked_add(since).filter(|at| at.checked_add(LASTS).is_some())
    });
    Look::At(Record::new("unknown", changed.unwrap_or(SystemTime::UNIX_EPOCH)))
}

fn create(dir: &Dir, owner: &str) -> Result<File> {
    for _ in 0..TRIES {
        let now = SystemTime::now();
        match dir.create(LEASE) {
            Ok(file) => match file.write(&Record::new(owner, now).text(), 0) {
                Ok(()) => return Ok(file),
                // It could be made: what is lacking is space, also where a quota is told as an I/O error, as by wasmtime.
                Err(_) => {
                    let _ = dir.unlink(LEASE);
                    return Err(Error::NoSpace);
                }
            },
            Err(fault) if fault.code == ErrorCode::Exist => match look(dir, LEASE) {
                Look::At(found) if found.is_over(now) => move_away(dir, owner, &found)?,
                Look::At(found) => return Err(refusal(found)),
                Look::Missing => {}
                Look::Unreadable => return Err(fault.into()),
            },
            Err(fault) => return Err(fault.into()),
        }
    }
    match look(dir, LEASE) {
        Look::At(found) => Err(refusal(found)),
        Look::Missing | Look::Unreadable => Err(Error::Io(format!("{LEASE} cannot be taken"))),
    }
}

/// Moves an expired lease away. Where it was renewed or replaced since it was looked at, it is put back.
fn move_away(dir: &Dir, owner: &str, seen: &Record) -> Result<()> {
    let staging = dir.open_or_create(STAGING)?;
    let name = format!("{owner}{LEASE}");
    match dir.rename(LEASE, &staging, &name) {
        Ok(()) => {}
        // Somebody else was quicker.
        Err(fault) if fault.is_missing() => return Ok(()),
        Err(fault) => return Err(fault.into()),
    }
    // A fresh one may still be empty; what tells it from a torn one is its time.
    if !matches!(look(&staging, &name), Look::At(moved) if moved == *seen) {
        // Where a third has taken it in between, the one who is put off by this finds out at his next look.
        let _ = staging.link(&name, dir, LEASE);
    }
    let _ = staging.unlink(&name);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_over_at_its_end_and_where_it_lasts_longer_than_any() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let lease = Record::new("a", now);
        assert!(!lease.is_over(now) && !lease.is_over(now + Duration::from_secs(59)));
        assert!(lease.is_over(now + LASTS));
        assert!(!lease.is_over(now - SKEW), "its owner's clock is ahead");
        assert!(lease.is_over(now - SKEW - Duration::from_secs(1)), "the clock was set back");
        for expires in ["", "soon", "0001-01-01T00:00:00Z"] {
            assert!(Record { owner: "a".into(), expires: expires.into() }.is_over(now), "{expires}");
        }
    }

    #[test]
    fn a_renewal_overwrites_all_of_the_file() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_nanos(1_795_000_000_123_456_789);
        let (first, second) = (Record::new("ab", now), Record::new("ab", now + RENEW));
        assert_eq!(first.text().len(), second.text().len());
        assert_eq!(serde_json::from_slice::<Record>(&second.text()).unwrap(), second);
    }
}
