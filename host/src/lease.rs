//! The lease that this host holds beside its lock, so that stock hosts, which see no lock, keep away; and theirs,
//! from which it keeps away itself. The format and the rules are those of the component's `lease` module.
//!
//! One that was suspended for long, or whose clock stood wrong, may lose it to a stock host. It then makes no pass until it has
//! it again, and stops the one under way.
//!
//! The lock decides among bundled hosts. So a lease of one of them counts for nothing here once the lock
//! was had: its holder is dead.

use crate::Error;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How long a lease lasts, and how often it is renewed.
const LASTS: Duration = Duration::from_secs(60);
const RENEW: Duration = Duration::from_secs(20);

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

    fn is_over(&self, now: SystemTime) -> bool {
        let expires = humantime::parse_rfc3339(&self.expires);
        !expires.is_ok_and(|expires| expires > now && expires <= now + LASTS)
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

/// What is at a path. A file that is no record is being written, or was torn: its time begins with its last change.
fn look(path: &Path) -> Option<Record> {
    let json = fs::read(path).ok()?;
    if let Ok(record) = serde_json::from_slice(&json) {
        return Some(record);
    }
    let changed = fs::metadata(path).and_then(|found| found.modified()).ok()?;
    let expires = humantime::format_rfc3339_seconds(changed + LASTS).to_string();
    Some(Record { owner: "unknown".into(), expires, locked: false })
}

/// A stock host's lease that has not expired.
pub(crate) fn foreign(path: &Path) -> Option<Error> {
    look(path)?.refusal()
}

/// A lease that is held, renewed in the background, and given back when dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    held: Arc<Held>,
    renewing: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Held {
    path: PathBuf,
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
    pub(crate) fn take(path: PathBuf) -> Result<Lease, Error> {
        let state = State { file: None, due: SystemTime::UNIX_EPOCH, given_back: false };
        let owner = Record::of_this_process().owner;
        let held = Arc::new(Held { path, owner, state: Mutex::new(state), lost: watch::Sender::new(None) });
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
        let found = look(&self.path);
        if let Some(refusal) = found.as_ref().and_then(Record::refusal) {
            self.lost.send_replace(Some(refusal.clone()));
            return Err(refusal);
        }
        let record = Record::of_this_process();
        let is_ours = found.is_some_and(|found| self.is_ours(&found));
        let written = match &mut state.file {
            // Into this very file: one who loses it at this moment does not write over his successor's.
            Some(file) if is_ours => record.write(file),
            _ => replace(&self.path, &record).map(|file| state.file = Some(file)),
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
        if look(&self.held.path).is_some_and(|found| self.held.is_ours(&found)) {
            let _ = fs::remove_file(&self.held.path);
        }
    }
}

/// Puts a whole new file there, rather than writing into one whose owner may be asleep. Only whoever has the lock
/// writes the temporary one.
fn replace(path: &Path, record: &Record) -> std::io::Result<File> {
    let new = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&new)?;
    let replaced = record.write(&mut file).and_then(|()| fs::rename(&new, path));
    replaced.inspect_err(|_| _ = fs::remove_file(&new))?;
    Ok(file)
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

    fn write(path: &Path, owner: &str, expires: SystemTime, locked: bool) {
        let expires = humantime::format_rfc3339_seconds(expires).to_string();
        replace(path, &Record { owner: owner.into(), expires, locked }).map(drop).unwrap_or_default();
    }

    #[test]
    fn only_a_stock_hosts_lease_that_lasts_is_in_the_way() {
        let Ok(dir) = tempfile::tempdir() else { return };
        let path = dir.path().join(".lease");
        let now = SystemTime::now();
        let soon = now + Duration::from_secs(30);
        for (expires, locked, refused) in [
            (soon, false, true),
            (soon, true, false),
            (now - Duration::from_secs(1), false, false),
            // Written before the clock was set back.
            (now + Duration::from_secs(3600), false, false),
        ] {
            write(&path, "somebody", expires, locked);
            assert_eq!(foreign(&path).is_some(), refused, "{expires:?} {locked}");
            assert_eq!(Lease::take(path.clone()).is_err(), refused, "{expires:?} {locked}");
            assert_eq!(path.exists(), refused);
        }
        assert!(fs::write(&path, "torn").is_ok());
        assert!(matches!(Lease::take(path.clone()), Err(Error::Leased { .. })));
    }

    #[test]
    fn a_renewal_writes_what_is_missing_and_finds_out_what_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("later/.lease");
        // It cannot be written yet.
        let lease = Lease::take(path.clone()).unwrap();
        fs::create_dir(dir.path().join("later")).unwrap();
        let ours = || look(&path).is_some_and(|found| lease.held.is_ours(&found));
        lease.held.renew();
        assert!(ours());
        fs::remove_file(&path).unwrap();
        lease.held.renew();
        assert!(ours() && lease.lost().is_none());
        write(&path, "somebody", SystemTime::now() + Duration::from_secs(30), false);
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
