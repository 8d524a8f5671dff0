//! The lease that this host holds beside its lock, so that stock hosts, which see no lock, keep away; and theirs,
//! from which it keeps away itself. The format and the rules are those of the component's `lease` module.
//!
//! One that was suspended for long, or whose clock stood wrong, may lose it to a stock host. It then makes no pass until it has
//! it again, and stops the one under way.
//!
//! The lock decides among bundled hosts. So a lease of one of them counts for nothing here once the lock
//! was had: its holder is dead.

use crate::Error;
use crate::dir::{Access, Dir, OUTBOX_DIR, unusable};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The lease, and a new one until it is complete.
const LEASE: &str = ".lease";
const NEW: &str = ".lease.new";

/// The longest lease that is read, in bytes; ours have about a hundred.
const MAX_FILE: u64 = 4096;

/// How long a lease lasts, and how often it is renewed.
const LASTS: Duration = Duration::from_secs(60);
const RENEW: Duration = Duration::from_secs(20);
/// By how much the clocks of two who share a lease may differ, and more: one that lasts longer was written before the
/// clock was set back.
const SKEW: Duration = Duration::from_secs(60);

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    owner: String,
    /// RFC 3339, UTC, whole seconds: always of the same length, so that a renewal overwrites all of it.
    expires: String,
    /// Its owner holds the lock, too.
    #[serde(default)]
    locked: bool,
}

impl Record {
    fn of_this_process() -> Record {
        let expires = humantime::format_rfc3339_seconds(SystemTime::now() + LASTS).to_string();
        Record { owner: format!("process {}", std::process::id()), expires, locked: true }
    }

    /// Somebody's, who began it at this time.
    fn unknown(changed: SystemTime) -> Record {
        // Whoever can write there can give it any time, also one that has no text. Beyond this, it is over at once.
        let latest = SystemTime::now() + LASTS + SKEW;
        let expires = changed.clamp(SystemTime::UNIX_EPOCH, latest) + LASTS;
        let expires = humantime::format_rfc3339_seconds(expires).to_string();
        Record { owner: "unknown".into(), expires, locked: false }
    }

    fn is_over(&self, now: SystemTime) -> bool {
        let expires = humantime::parse_rfc3339(&self.expires);
        !expires.is_ok_and(|expires| expires > now && expires <= now + LASTS + SKEW)
    }

    /// It is a stock host's, and has not expired.
    fn refusal(&self) -> Option<Error> {
        let is_foreign = !self.locked && !self.is_over(SystemTime::now());
        is_foreign.then(|| Error::Leased { owner: self.owner.clone(), expires: self.expires.clone() })
    }

    fn write(&self, file: &mut File) -> std::io::Result<()> {
        let text = serde_json::to_string(self).map_err(std::io::Error::from)?;
        file.seek(SeekFrom::Start(0))?;
        writeln!(file, "{text}")
    }
}

/// What is there. A file that is no record is being written, or was torn, and one that may not be read was another user's:
/// its time begins with its last change.
fn look(root: &Path) -> std::io::Result<Option<Record>> {
    let file = match Dir::of(root).and_then(|dir| dir.open(LEASE, Access::Read)) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) if e.kind() == ErrorKind::PermissionDenied => {
            let found = std::fs::symlink_metadata(root.join(OUTBOX_DIR).join(LEASE))?;
            return Ok(Some(Record::unknown(found.modified()?)));
        }
        Err(e) => return Err(e),
    };
    let mut json = Vec::new();
    (&file).take(MAX_FILE).read_to_end(&mut json)?;
    if let Ok(record) = serde_json::from_slice(&json) {
        return Ok(Some(record));
    }
    Ok(Some(Record::unknown(file.metadata()?.modified()?)))
}

/// An error where a stock host has a lease that has not expired.
pub(crate) fn refuse_foreign(root: &Path) -> Result<(), Error> {
    let found = look(root).map_err(|e| unusable(root, LEASE, &e))?;
    found.and_then(|found| found.refusal()).map_or(Ok(()), Err)
}

/// A lease that is held, renewed in the background, and given back when dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    held: Arc<Held>,
    renewing: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Held {
    root: PathBuf,
    owner: String,
    state: Mutex<State>,
    /// Why it is not ours any more. Stays until it is taken again, so that a pass under way sees it.
    lost: watch::Sender<Option<Error>>,
}

#[derive(Debug)]
struct State {
    /// What was written last; none where that failed.
    file: Option<File>,
    /// When to look after it.
    due: SystemTime,
    given_back: bool,
}

impl Lease {
    /// Takes it, unless a stock host has it. The caller holds the lock, and calls from within a tokio runtime for it
    /// to be renewed. That it cannot be written, for want of space, keeps nobody from replaying.
    pub(crate) fn take(root: PathBuf) -> Result<Lease, Error> {
        let state = State { file: None, due: SystemTime::UNIX_EPOCH, given_back: false };
        let owner = Record::of_this_process().owner;
        let held = Arc::new(Held { root, owner, state: Mutex::new(state), lost: watch::Sender::new(None) });
        if let Err(error) = held.hold()? {
            tracing::warn!("no lease can be written, so stock hosts do not see this one: {error}");
        }
        let renewing = Handle::try_current().ok().map(|tokio| tokio.spawn(renew(held.clone())));
        Ok(Lease { held, renewing })
    }

    /// Renews it, or takes it again where it was lost; an error where a stock host has it.
    pub(crate) fn keep(&self) -> Result<(), Error> {
        self.held.hold().map(drop)
    }

    /// Why it is not ours any more. Looks first where the renewal is late: timers stand still while a machine sleeps.
    pub(crate) fn lost(&self) -> Option<Error> {
        if self.held.is_due() {
            self.held.renew();
        }
        self.held.lost.borrow().clone()
    }

    /// Returns when it is found to be lost.
    pub(crate) async fn until_lost(&self) {
        let _ = self.held.lost.subscribe().wait_for(Option::is_some).await;
    }
}

impl Held {
    /// Takes or renews it; an error where a stock host has it, and what came of writing it where none has.
    fn hold(&self) -> Result<std::io::Result<()>, Error> {
        let mut state = self.state();
        if state.given_back {
            return Ok(Ok(()));
        }
        state.due = SystemTime::now() + RENEW;
        let record = Record::of_this_process();
        let written = loop {
            let found = match look(&self.root) {
                // Of one that is held, what cannot be seen now is looked at again before it ends.
                Err(error) if state.file.is_some() => return Ok(Err(error)),
                found => found.map_err(|e| unusable(&self.root, LEASE, &e))?,
            };
            if let Some(refusal) = found.as_ref().and_then(Record::refusal) {
                self.lost.send_replace(Some(refusal.clone()));
                return Err(refusal);
            }
            let is_ours = found.as_ref().is_some_and(|found| self.is_ours(found));
            break match &mut state.file {
                // Into this very file: one who loses it at this moment does not write over his successor's.
                Some(file) if is_ours => record.write(file),
                _ => match put(&self.root, &record, found.is_some()) {
                    Ok(None) => continue,
                    put => put.map(|file| state.file = file),
                },
            };
        };
        self.lost.send_replace(None);
        Ok(written)
    }

    /// What cannot be written now is tried again before the lease ends. One that is lost stays so until somebody asks for
    /// it ([`Lease::keep`]).
    fn renew(&self) {
        if self.lost.borrow().is_none() {
            let _ = self.hold();
        }
    }

    /// One that is due in more than an interval was looked after before the clock was set back.
    fn is_due(&self) -> bool {
        let (due, now) = (self.state().due, SystemTime::now());
        now >= due || due > now + RENEW
    }

    fn is_ours(&self, found: &Record) -> bool {
        found.locked && found.owner == self.owner
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(renewing) = &self.renewing {
            renewing.abort();
        }
        // It may be at work just now, or about to be.
        let mut state = self.held.state();
        state.given_back = true;
        if matches!(look(&self.held.root), Ok(Some(found)) if self.held.is_ours(&found)) {
            let _ = Dir::of(&self.held.root).and_then(|dir| dir.remove(LEASE));
        }
    }
}

/// Puts a whole new file there, rather than writing into one whose owner may be asleep. Where none was seen, and one has
/// come meanwhile, that stays, and nothing is returned. Only whoever has the lock writes the temporary one.
fn put(root: &Path, record: &Record, seen: bool) -> std::io::Result<Option<File>> {
    let dir = Dir::of(root)?;
    // Left by one who died.
    let _ = dir.remove(NEW);
    let mut file = dir.open(NEW, Access::New)?;
    let replace = || dir.rename(NEW, LEASE).map(|()| true);
    // Before it has its name: a power failure would leave an empty one, which may be a stock host's.
    let put = record.write(&mut file).and_then(|()| file.sync_data()).and_then(|()| match seen {
        true => replace(),
        false => match dir.link(NEW, LEASE) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(false),
            // Not every file system has links.
            Err(_) => replace(),
        },
    });
    let _ = dir.remove(NEW);
    Ok(put?.then_some(file))
}

async fn renew(held: Arc<Held>) {
    loop {
        tokio::time::sleep(RENEW).await;
        held.renew();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dir::OUTBOX_DIR;
    use std::fs;

    fn write(root: &Path, owner: &str, expires: SystemTime, locked: bool) {
        let expires = humantime::format_rfc3339_seconds(expires).to_string();
        put(root, &Record { owner: owner.into(), expires, locked }, true).unwrap();
    }

    #[test]
    fn only_a_stock_hosts_lease_that_lasts_is_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir(root.join(OUTBOX_DIR)).unwrap();
        let path = root.join(OUTBOX_DIR).join(LEASE);
        let now = SystemTime::now();
        let soon = now + Duration::from_secs(30);
        for (expires, locked, refused) in [
            (soon, false, true),
            (soon, true, false),
            (now - Duration::from_secs(1), false, false),
            // Written before the clock was set back.
            (now + Duration::from_secs(3600), false, false),
        ] {
            write(root, "somebody", expires, locked);
            assert_eq!(refuse_foreign(root).is_err(), refused, "{expires:?} {locked}");
            assert_eq!(Lease::take(root.into()).is_err(), refused, "{expires:?} {locked}");
            assert_eq!(path.exists(), refused);
        }
        assert!(fs::write(&path, "torn").is_ok());
        assert!(matches!(Lease::take(root.into()), Err(Error::Leased { .. })));
        for seconds in [0, 1 << 40] {
            let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            fs::File::options().write(true).open(&path).unwrap().set_modified(changed).unwrap();
            assert!(Lease::take(root.into()).is_ok(), "{seconds}");
            fs::write(&path, "torn").unwrap();
        }
    }

    #[test]
    fn a_lease_that_comes_after_none_was_seen_stays() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir(root.join(OUTBOX_DIR)).unwrap();
        let ours = Record::of_this_process();
        for seen in [false, true] {
            write(root, "somebody", SystemTime::now() + Duration::from_secs(30), false);
            assert_eq!(put(root, &ours, seen).unwrap().is_some(), seen);
            assert_eq!(look(root).unwrap().unwrap().owner == ours.owner, seen);
            assert_eq!(fs::read_dir(root.join(OUTBOX_DIR)).unwrap().count(), 1);
        }
        fs::remove_file(root.join(OUTBOX_DIR).join(LEASE)).unwrap();
        assert!(put(root, &ours, false).unwrap().is_some());
        assert_eq!(look(root).unwrap(), Some(ours));
    }

    #[test]
    fn a_renewal_writes_what_is_missing_and_finds_out_what_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let path = root.join(OUTBOX_DIR).join(LEASE);
        // It cannot be written yet.
        let lease = Lease::take(root.into()).unwrap();
        fs::create_dir(root.join(OUTBOX_DIR)).unwrap();
        let ours = || matches!(look(root), Ok(Some(found)) if lease.held.is_ours(&found));
        lease.held.renew();
        assert!(ours());
        fs::remove_file(&path).unwrap();
        lease.held.renew();
        assert!(ours() && lease.lost().is_none());
        write(root, "somebody", SystemTime::now() + Duration::from_secs(30), false);
        lease.held.renew();
        assert!(!ours() && matches!(lease.lost(), Some(Error::Leased { .. })));
        assert!(matches!(lease.keep(), Err(Error::Leased { .. })));
        fs::remove_file(&path).unwrap();
        lease.held.renew();
        assert!(!path.exists() && lease.lost().is_some(), "until it is asked for");
        lease.keep().unwrap();
        assert!(ours() && lease.lost().is_none());
        let held = lease.held.clone();
        drop(lease);
        held.renew();
        assert!(!path.exists(), "it was given back");
    }
}
