//! Making durable at once all that was written to a file system, rather than file by file (Linux's syncfs(2)): for a hundred
//! files that takes hardly longer than for one. It writes what other programs have left to be written, too; where that
//! takes long, files are synced by themselves for a while.

use std::path::Path;

pub(crate) use imp::{Disk, Unsynced};

/// What a test sees of it, and wants of it.
#[cfg(all(test, target_os = "linux"))]
#[derive(Default)]
pub(crate) struct Test {
    pub(crate) syncs: std::sync::atomic::AtomicUsize,
    pub(crate) fails: std::sync::atomic::AtomicBool,
}

#[cfg(all(test, target_os = "linux"))]
impl Test {
    fn asked(&self) -> std::io::Result<()> {
        use std::sync::atomic::Ordering::Relaxed;
        self.syncs.fetch_add(1, Relaxed);
        match self.fails.load(Relaxed) {
            true => Err(std::io::Error::other("it is to fail")),
            false => Ok(()),
        }
    }
}

#[cfg(target_os = "linux")]
mod imp {
    use super::Path;
    use rustix::fs::{FsWord, fstatfs, syncfs};
    use std::fs::File;
    use std::io;
    use std::path::PathBuf;
    use std::sync::{Mutex, PoisonError};
    use std::time::{Duration, Instant};

    /// Magic numbers of statfs(2): ext2 to ext4, XFS, Btrfs, F2FS; tmpfs, where nothing is durable either way. Others may pass
    /// fsync on to somebody (FUSE, network file systems), and not this.
    const KNOWN: [FsWord; 5] = [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010, 0x0102_1994];

    /// Since this version, a failure to write something is told here, too.
    const LINUX: (u32, u32) = (5, 8);

    /// A sync that takes longer is not worth it: some sixty small files by themselves take about as long.
    const LONG: Duration = Duration::from_millis(100);
    /// And files are synced by themselves for so long.
    const PAUSE: Duration = Duration::from_secs(10);

    /// The file system that a directory is on, of which it is known that its sync leaves nothing out.
    pub(crate) struct Disk {
        dir: PathBuf,
        /// Not to be synced as a whole before this.
        not_before: Mutex<Option<Instant>>,
        #[cfg(test)]
        pub(crate) test: super::Test,
    }

    impl Disk {
        /// That of a directory; none where its kind is not known.
        pub(crate) fn of(dir: &Path) -> Option<Disk> {
            open(dir)?;
            tells_failures().then(|| Disk {
                dir: dir.to_owned(),
                not_before: Mutex::default(),
                #[cfg(test)]
                test: super::Test::default(),
            })
        }

        /// To be called before anything is written: each who has it open by then is told of a failure, once. None where files
        /// are better synced by themselves.
        pub(crate) fn begin(&self) -> Option<Unsynced<'_>> {
            let not_before = *self.not_before.lock().unwrap_or_else(PoisonError::into_inner);
            match not_before.is_some_and(|at| Instant::now() < at) {
                true => None,
                false => Some(Unsynced { disk: self, dir: open(&self.dir)? }),
            }
        }
    }

    /// Opens a directory on a file system of a known kind: something else may be mounted there since.
    fn open(dir: &Path) -> Option<File> {
        let dir = File::open(dir).ok()?;
        KNOWN.contains(&fstatfs(&dir).ok()?.f_type).then_some(dir)
    }

    /// A file system to which something is being written.
    pub(crate) struct Unsynced<'a> {
        disk: &'a Disk,
        dir: File,
    }

    impl Unsynced<'_> {
        /// Makes all that was written durable, files and names.
        pub(crate) fn sync(self) -> io::Result<()> {
            #[cfg(test)]
            self.disk.test.asked()?;
            let begun = Instant::now();
            let synced = syncfs(&self.dir);
            if begun.elapsed() > LONG {
                let mut not_before = self.disk.not_before.lock().unwrap_or_else(PoisonError::into_inner);
                *not_before = Some(Instant::now() + PAUSE);
            }
            Ok(synced?)
        }
    }

    fn tells_failures() -> bool {
        let name = rustix::system::uname();
        let release = name.release().to_string_lossy();
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|text| text.parse::<u32>().ok());
        let (major, minor) = (numbers.next().flatten(), numbers.next().flatten());
        major.zip(minor).is_some_and(|version| version >= LINUX)
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn after_a_long_sync_files_are_synced_by_themselves_for_a_while() {
            // Memory, or else a directory of the build's.
            let dirs = [Path::new("/dev/shm"), Path::new(env!("CARGO_MANIFEST_DIR"))];
            let Some(disk) = dirs.into_iter().find_map(Disk::of) else { return };
            assert!(disk.begin().is_some());
            *disk.not_before.lock().unwrap() = Some(Instant::now() + PAUSE);
            assert!(disk.begin().is_none());
            *disk.not_before.lock().unwrap() = Instant::now().checked_sub(PAUSE);
            assert!(disk.begin().is_some_and(|unsynced| unsynced.sync().is_ok()));
        }

        #[test]
        fn a_file_system_that_is_not_known_is_left_alone() {
            assert!(Disk::of(Path::new("/proc")).is_none());
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod imp {
    use super::Path;
    use std::io;
    use std::marker::PhantomData;

    pub(crate) enum Disk {}

    impl Disk {
        pub(crate) fn of(_: &Path) -> Option<Disk> {
            None
        }

        pub(crate) fn begin(&self) -> Option<Unsynced<'_>> {
            match *self {}
        }
    }

    pub(crate) struct Unsynced<'a>(std::convert::Infallible, PhantomData<&'a ()>);

    impl Unsynced<'_> {
        pub(crate) fn sync(self) -> io::Result<()> {
            match self.0 {}
        }
    }
}
