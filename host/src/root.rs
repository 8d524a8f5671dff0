//! The root directory on the host's side: its modes, which a guest cannot set, and the lock of the one
//! replaying host, which a guest cannot take.

use crate::Error;
use crate::dir::{self, Access, Dir, OUTBOX_DIR, unusable};
use crate::lease::{self, Lease};
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Held by the one replaying host; has its process id in it.
const LOCK: &str = ".lock";
/// The longest of it that is read: a process id and a line's end.
const MAX_DIGITS: u64 = 16;
/// Changed by whoever wants the replaying host to make a pass now.
pub(crate) const WAKE: &str = ".wake";

/// Makes ROOT and the outbox's directory where they are missing, unless that is not wanted. Bodies and headers are nobody else's
/// business: the directory's mode is 0700. Who makes nothing leaves it as it is: it may be another's. The path returned is
/// absolute.
pub(crate) fn prepare(root: &Path, create: bool) -> Result<PathBuf, Error> {
    let refuse = |reason: String| Error::Root { path: root.into(), reason };
    if fs::metadata(root).is_ok_and(|found| !found.is_dir()) {
        return Err(refuse("it is not a directory; give a directory with --root or OUTBOX_ROOT".into()));
    }
    let outbox = root.join(OUTBOX_DIR);
    if fs::symlink_metadata(&outbox).is_ok_and(|found| !found.is_dir()) {
        return Err(refuse(format!("{OUTBOX_DIR} in it is not a directory")));
    }
    match (create, fs::metadata(&outbox)) {
        (true, _) => make(root, &outbox).map_err(|e| {
            refuse(format!("it cannot be made or written to ({e}); give another with --root"))
        })?,
        (false, Ok(_)) => {}
        (false, Err(e)) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Err(refuse(
                "there is no outbox in it; give its directory with --root or OUTBOX_ROOT, or queue something"
                    .into(),
            ));
        }
        (false, Err(e)) => return Err(refuse(format!("it cannot be looked into ({e})"))),
    }
    #[cfg(unix)]
    if create {
        Dir::of(root)
            .and_then(|dir| dir.restrict())
            .map_err(|e| refuse(format!("{OUTBOX_DIR} in it cannot be made private ({e})")))?;
    }
    fs::canonicalize(root).map_err(|e| refuse(e.to_string()))
}

/// The lock's file comes last: where it is, all names above it are on the disk, whoever made them.
fn make(root: &Path, outbox: &Path) -> std::io::Result<()> {
    if fs::symlink_metadata(outbox.join(LOCK)).is_ok() {
        return Ok(());
    }
    let is_new = !outbox.is_dir();
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    builder.create(root)?;
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(outbox)?;
    // What is queued in them is worth no more than their own names. (Directories cannot be opened for that
    // on Windows, whose file systems see to it themselves.)
    if cfg!(unix) {
        // All of them: whoever made one may have died before it was synced.
        fs::canonicalize(root)?.ancestors().try_for_each(sync_name)?;
    }
    // There before anything is queued: a disk without inodes could not be emptied if replaying needed one.
    match Dir::of(root)?.open(LOCK, Access::Write) {
        Err(error) if is_new => Err(error),
        _ => Ok(()),
    }
}

/// Makes the names in a directory durable. One that this user may not read or change is somebody else's to care for.
fn sync_name(dir: &Path) -> std::io::Result<()> {
    match File::open(dir).and_then(|dir| dir.sync_all()) {
        Err(e) if matches!(e.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) => Ok(()),
        synced => synced,
    }
}

/// What tells a root's queue from another one that is in its place later.
pub(crate) fn id(root: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(root.join(OUTBOX_DIR)).ok().map(|found| dir::id(&found))
}

/// How long the lock is waited for, in several tries: whoever asks who has it ([`Lock::holder`]) has it for a moment.
const PAUSES_MS: [u64; 5] = [1, 2, 5, 12, 30];

/// The right to replay. The kernel gives the lock back on any death; the lease ends by itself.
#[derive(Debug)]
pub(crate) struct Lock {
    // Given back first: whoever has the lock may have the lease.
    pub(crate) lease: Lease,
    lock: Locked,
}

/// A locked file.
#[derive(Debug)]
struct Locked(File);

impl Drop for Locked {
    fn drop(&mut self) {
        // Said, not left to the closing of the file: a child that was forked meanwhile has it open, too, until it
        // runs its program.
        let _ = self.0.unlock();
    }
}

impl Lock {
    /// Takes the lock, or says who has it.
    pub(crate) fn take(root: &Path) -> Result<Lock, Error> {
        let trouble = |e: std::io::Error| unusable(root, LOCK, &e);
        let mut file = Dir::of(root).and_then(|dir| dir.open(LOCK, Access::Write)).map_err(trouble)?;
        let mut pauses = PAUSES_MS.into_iter();
        loop {
            match (file.try_lock(), pauses.next()) {
                (Ok(()), _) => break,
                (Err(TryLockError::WouldBlock), Some(pause)) => {
                    std::thread::sleep(Duration::from_millis(pause))
                }
                (Err(TryLockError::WouldBlock), None) => return Err(Error::Locked(pid(&mut file))),
                (Err(TryLockError::Error(e)), _) => return Err(trouble(e)),
            }
        }
        // The number is for people and messages only. A full disk, which may have no room for it, is emptied by
        // replaying.
        let _ = file
            .set_len(0)
            .and_then(|()| file.seek(SeekFrom::Start(0)))
            .and_then(|_| writeln!(file, "{}", std::process::id()));
        Ok(Lock { lease: Lease::take(root.into())?, lock: Locked(file) })
    }

    /// An error where the locked file is not at its place any more, so that it locks nobody out: the directory was removed or
    /// made anew, or another disk is mounted there.
    pub(crate) fn in_place(&self, root: &Path) -> Result<(), Error> {
        let there = fs::symlink_metadata(root.join(OUTBOX_DIR).join(LOCK));
        let is_other = match (there, self.lock.0.metadata()) {
            (Ok(there), Ok(ours)) => dir::id(&there) != dir::id(&ours),
            // What cannot be seen now is taken to be there.
            (Err(e), _) => e.kind() == ErrorKind::NotFound,
            (_, Err(_)) => false,
        };
        if is_other { Err(Error::Replaced(root.into())) } else { Ok(()) }
    }

    /// The process that replays this root now, if there is one.
    pub(crate) fn holder(root: &Path) -> Result<Option<Option<u32>>, Error> {
        let mut file = match Dir::of(root).and_then(|dir| dir.open(LOCK, Access::Read)) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(unusable(root, LOCK, &e)),
        };
        match file.try_lock_shared() {
            Err(TryLockError::WouldBlock) => Ok(Some(pid(&mut file))),
            Ok(()) => {
                drop(Locked(file));
                Ok(None)
            }
            Err(TryLockError::Error(_)) => Ok(None),
        }
    }
}

/// A stock host that replays this root now, if there is one.
pub(crate) fn leased(root: &Path) -> bool {
    matches!(lease::refuse_foreign(root), Err(Error::Leased { .. }))
}

fn pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(MAX_DIGITS).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// Asks the replaying host for a pass now; the process that was asked.
pub(crate) fn wake(root: &Path) -> Result<Option<u32>, Error> {
    let Some(holder) = Lock::holder(root)? else {
        lease::refuse_foreign(root)?;
        return Err(Error::NotRunning);
    };
    let changed = Dir::of(root).and_then(|dir| dir.open(WAKE, Access::Empty));
    changed.map_err(|e| unusable(root, WAKE, &e))?;
    Ok(holder)
}
