//! The outbox's directory, as the host opens files in it. The guest can put links there that lead anywhere (wasmtime
//! refuses absolute ones only). None of them is followed. (ROOT itself may be a link: that is not the guest's.)

use crate::Error;
use std::io;
use std::path::Path;

pub(crate) use imp::{Dir, id};

/// The outbox's directory below ROOT.
pub(crate) const OUTBOX_DIR: &str = ".zddc-outbox";

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// To be read.
    Read,
    /// To be read and written; made where it is missing.
    Write,
    /// The same, emptied.
    Empty,
    /// To be written; it must not be there yet.
    New,
}

/// Why a file in it cannot be used.
pub(crate) fn unusable(root: &Path, name: &str, error: &io::Error) -> Error {
    Error::Root { path: root.join(OUTBOX_DIR).join(name), reason: error.to_string() }
}

#[cfg(unix)]
mod imp {
    use super::{Access, OUTBOX_DIR, Path, io};
    use rustix::fs::{AtFlags, Mode, OFlags, fchmod, fstat, linkat, open, openat, renameat, unlinkat};
    use rustix::io::Errno;
    use std::fs::{File, Metadata};
    use std::os::fd::OwnedFd;
    use std::os::unix::fs::MetadataExt;

    /// Tells a file from another one that has its name later.
    pub(crate) fn id(found: &Metadata) -> (u64, u64) {
        (found.dev(), found.ino())
    }

    pub(crate) struct Dir(OwnedFd);

    impl Dir {
        pub(crate) fn of(root: &Path) -> io::Result<Dir> {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            Ok(Dir(open(root.join(OUTBOX_DIR), flags, Mode::empty())?))
        }

        /// Narrows one that an earlier program made with a wider mode.
        pub(crate) fn restrict(&self) -> io::Result<()> {
            match Mode::from_raw_mode(fstat(&self.0)?.st_mode) & Mode::from_raw_mode(0o777) {
                Mode::RWXU => Ok(()),
                _ => Ok(fchmod(&self.0, Mode::RWXU)?),
            }
        }

        pub(crate) fn open(&self, name: &str, access: Access) -> io::Result<File> {
            let flags = match access {
                Access::Read => OFlags::RDONLY,
                Access::Write => OFlags::RDWR | OFlags::CREATE,
                Access::Empty => OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC,
                Access::New => OFlags::RDWR | OFlags::CREATE | OFlags::EXCL,
            };
            let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match openat(&self.0, name, flags, Mode::from_raw_mode(0o666)) {
                Err(Errno::LOOP) => {
                    Err(io::Error::other("it is a symbolic link, which is not followed; remove it"))
                }
                opened => Ok(opened?.into()),
            }
        }

        pub(crate) fn remove(&self, name: &str) -> io::Result<()> {
            Ok(unlinkat(&self.0, name, AtFlags::empty())?)
        }

        pub(crate) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
            Ok(renameat(&self.0, from, &self.0, to)?)
        }

        pub(crate) fn link(&self, from: &str, to: &str) -> io::Result<()> {
            Ok(linkat(&self.0, from, &self.0, to, AtFlags::empty())?)
        }
    }
}

#[cfg(not(unix))]
mod imp {
    use super::{Access, OUTBOX_DIR, Path, io};
    use std::fs::{self, File, Metadata, OpenOptions};
    use std::path::PathBuf;

    /// Nothing tells a file from another one that has its name later.
    pub(crate) fn id(_: &Metadata) -> (u64, u64) {
        (0, 0)
    }

    pub(crate) struct Dir(PathBuf);

    impl Dir {
        pub(crate) fn of(root: &Path) -> io::Result<Dir> {
            Ok(Dir(root.join(OUTBOX_DIR)))
        }

        pub(crate) fn open(&self, name: &str, access: Access) -> io::Result<File> {
            OpenOptions::new()
                .read(true)
                .write(access != Access::Read)
                .create(matches!(access, Access::Write | Access::Empty))
                .truncate(access == Access::Empty)
                .create_new(access == Access::New)
                .open(self.0.join(name))
        }

        pub(crate) fn remove(&self, name: &str) -> io::Result<()> {
            fs::remove_file(self.0.join(name))
        }

        pub(crate) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
            fs::rename(self.0.join(from), self.0.join(to))
        }

        pub(crate) fn link(&self, from: &str, to: &str) -> io::Result<()> {
            fs::hard_link(self.0.join(from), self.0.join(to))
        }
    }
}
