//! The lease that this host holds beside its lock, so that stock hosts, which see no lock, keep away; and theirs,
//! from which it keeps away itself. The format and the rules are those of the component's `lease` module.
//!
//! The lock decides among bundled hosts. So a lease of one of them counts for nothing here once the lock
//! was had: its holder is dead.

use crate::Error;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tokio::runtime::Handle;
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
    let found = look(path).filter(|found| !found.locked && !found.is_over(SystemTime::now()))?;
    Some(Error::Leased { owner: found.owner, expires: found.expires })
}

/// A lease that is held, renewed in the background, and given back when dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    path: PathBuf,
    owner: String,
    renewing: Option<JoinHandle<()>>,
}

impl Lease {
    /// Takes it, unless a stock host has it. The caller holds the lock, and calls from within a tokio runtime for it
    /// to be renewed. That it cannot be written, for want of space, keeps nobody from replaying.
    pub(crate) fn take(path: PathBuf) -> Result<Lease, Error> {
        if let Some(refusal) = foreign(&path) {
            return Err(refusal);
        }
        let record = Record::of_this_process();
        let owner = record.owner.clone();
        let written = replace(&path, &record).inspect_err(|error| {
            tracing::warn!("no lease can be written, so stock hosts do not see this one: {error}");
        });
        let renewing = written.ok().and_then(|file| Some(Handle::try_current().ok()?.spawn(renew(file))));
        Ok(Lease { path, owner, renewing })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(renewing) = &self.renewing {
            renewing.abort();
        }
        if look(&self.path).is_some_and(|found| found.locked && found.owner == self.owner) {
            let _ = fs::remove_file(&self.path);
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

async fn renew(mut file: File) {
    loop {
        tokio::time::sleep(RENEW).await;
        // What cannot be written now is tried again before the lease ends.
        let _ = Record::of_this_process().write(&mut file);
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
}
