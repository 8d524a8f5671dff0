//! Making durable at once all that was written to a file system, rather than file by file (Linux's syncfs(2)): for a hundred
//! files that takes hardly longer than for one. It writes what other programs have left to be written, too; where that
//! is much, or took long, files are synced by themselves.

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
    use rustix::fs::{fstatfs, syncfs};
    use std::fs::File;
    use std::io;
    use std::path::PathBuf;
    use std::sync::{Mutex, MutexGuard, PoisonError};
    use std::time::{Duration, Instant};

    /// Magic numbers of statfs(2): ext2 to ext4, XFS, Btrfs, F2FS; tmpfs, where nothing is durable either way. Others may pass
    /// fsync on to somebody (FUSE, network file systems), and not this.
    const KNOWN: [u32; 5] = [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010, 0x0102_1994];

    /// Since this version, a failure to write something is told here, too.
    const LINUX: (u32, u32) = (5, 8);

    /// Where more KiB wait to be written, those of all programs, the sync would take long.
    const MUCH: u64 = if cfg!(test) { 1 << 40 } else { 64 * 1024 };

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

        /// Whether it is worth while to sync it as a whole, as far as is known.
        pub(crate) fn is_quick(&self) -> bool {
            self.not_before().is_none_or(|at| Instant::now() >= at)
        }

        /// To be called before anything is written: each who has it open by then is told of a failure, once. None where files
        /// are better synced by themselves.
        pub(crate) fn begin(&self) -> Option<Unsynced<'_>> {
            if !self.is_quick() {
                return None;
            }
            let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
            if dirty(&meminfo)? > MUCH {
                self.pause();
                return None;
            }
            Some(Unsynced { disk: self, dir: open(&self.dir)? })
        }

        fn pause(&self) {
            *self.not_before() = Some(Instant::now() + PAUSE);
        }

        fn not_before(&self) -> MutexGuard<'_, Option<Instant>> {
            self.not_before.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }

    /// Opens a directory on a file system of a known kind: something else may be mounted there since.
    fn open(dir: &Path) -> Option<File> {
        let dir = File::open(dir).ok()?;
        KNOWN.contains(&(fstatfs(&dir).ok()?.f_type as u32)).then_some(dir)
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
                self.disk.pause();
            }
            Ok(synced?)
        }
    }

    /// KiB that wait to be written, from proc(5)'s meminfo.
    fn dirty(meminfo: &str) -> Option<u64> {
        let line = meminfo.lines().find_map(|line| line.strip_prefix("Dirty:"))?;
        line.trim().strip_suffix("kB")?.trim().parse().ok()
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
        fn what_waits_to_be_written_is_told() {
            let text = "MemFree:  1 kB\nDirty:             17344 kB\nWriteback:             5 kB\n";
            assert_eq!(dirty(text), Some(17344));
            assert_eq!(dirty("Writeback: 5 kB\n"), None);
        }

        #[test]
        fn after_a_long_sync_files_are_synced_by_themselves_for_a_while() {
            // Memory, or else a directory of the build's.
            let dirs = [Path::new("/dev/shm"), Path::new(env!("CARGO_MANIFEST_DIR"))];
            let Some(disk) = dirs.into_iter().find_map(Disk::of) else { return };
            assert!(disk.is_quick() && disk.begin().is_some());
            disk.pause();
            assert!(!disk.is_quick() && disk.begin().is_none());
            *disk.not_before() = Instant::now().checked_sub(PAUSE);
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

        pub(crate) fn is_quick(&self) -> bool {
            match *self {}
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
