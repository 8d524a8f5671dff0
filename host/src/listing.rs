//! Directory listings, in place of wasmtime's: that one looks at every entry (a `statx` each) and keeps all of them
//! before it gives out the first. A pass over a million entries would wait seconds for it. Here names and types come as
//! the kernel hands them out. Same errors, with one fewer: an entry that is unlinked meanwhile is not noticed. A long
//! directory is read by another thread from `LONG` entries on, while the component takes in what it has: either takes
//! about half of the time.
//!
//! Only on Unix; elsewhere wasmtime's stays.

use crate::sandbox::State;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, statat};
use rustix::io::Errno;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SendError, sync_channel};
use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource, ResourceType};
use wasmtime_wasi::WasiView;
use wasmtime_wasi::filesystem::Descriptor;
use wasmtime_wasi::p2::bindings::filesystem::types::{DescriptorType, DirectoryEntry, ErrorCode};

/// Where wasmtime links what is replaced. Under another version's name, nothing would be.
const INTERFACE: &str = "wasi:filesystem/types@0.2.12";

/// Entries after which a directory is long, which a thread is worth, and how many are handed over at once, and wait at most.
const LONG: usize = 10_000;
const BATCH: usize = 1_000;
const BATCHES: usize = 8;

/// Such threads in this process, and how many there may be: a component that opens listing after listing has no more.
static READERS: AtomicUsize = AtomicUsize::new(0);
const MOST: usize = 16;

type Item = Result<DirectoryEntry, ErrorCode>;

/// A `directory-entry-stream`.
enum Listing {
    /// Read by who asks, with how many were read so far.
    Here(Names, usize),
    /// What came from another thread, and where more comes from.
    Elsewhere(std::vec::IntoIter<Item>, Receiver<Vec<Item>>),
    Ended,
}

/// The entries of a directory as the kernel gives them.
struct Names(Dir);

/// Replaces wasmtime's listings in a linker that allows shadowing.
pub(crate) fn link(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    let mut types = linker.instance(INTERFACE)?;
    types.resource("directory-entry-stream", ResourceType::host::<Listing>(), |mut store, handle| {
        store.data_mut().ctx().table.delete(Resource::<Listing>::new_own(handle))?;
        Ok(())
    })?;
    types.func_wrap(
        "[method]descriptor.read-directory",
        |mut store: StoreContextMut<'_, State>, (dir,): (Resource<Descriptor>,)| {
            let table = store.data_mut().ctx().table;
            let opened = match table.get(&dir)? {
                Descriptor::Dir(dir) => {
                    openat(&dir.dir, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                        .and_then(Dir::new)
                        .map_err(code)
                }
                Descriptor::File(_) => Err(ErrorCode::NotDirectory),
            };
            Ok((match opened {
                Ok(dir) => Ok(table.push(Listing::Here(Names(dir), 0))?),
                Err(code) => Err(code),
            },))
        },
    )?;
    types.func_wrap(
        "[method]directory-entry-stream.read-directory-entry",
        |mut store: StoreContextMut<'_, State>, (listing,): (Resource<Listing>,)| {
            let listing = store.data_mut().ctx().table.get_mut(&listing)?;
            Ok((listing.next().transpose(),))
        },
    )?;
    Ok(())
}

impl Iterator for Listing {
    type Item = Item;

    fn next(&mut self) -> Option<Item> {
        if let Listing::Here(_, LONG) = self
            && let Listing::Here(names, given) = std::mem::replace(self, Listing::Ended)
        {
            *self = match read_elsewhere(names) {
                Ok(batches) => Listing::Elsewhere(Vec::new().into_iter(), batches),
                Err(names) => Listing::Here(names, given),
            };
        }
        let (batch, batches) = match self {
            Listing::Here(names, given) => {
                *given += 1;
                return names.next();
            }
            Listing::Elsewhere(batch, batches) => (batch, batches),
            Listing::Ended => return None,
        };
        if batch.len() == 0 {
            match batches.recv() {
                Ok(next) => *batch = next.into_iter(),
                // It ended before it said so.
                Err(_) => {
                    *self = Listing::Ended;
                    return Some(Err(ErrorCode::Io));
                }
            }
        }
        let item = batch.next();
        if item.is_none() {
            *self = Listing::Ended;
        }
        item
    }
}

/// Reads the rest in a thread of its own, which ends with that, after an empty batch, or with the receiver.
fn read_elsewhere(names: Names) -> Result<Receiver<Vec<Item>>, Names> {
    let readers = READERS.fetch_update(Relaxed, Relaxed, |readers| (readers < MOST).then_some(readers + 1));
    if readers.is_err() {
        return Err(names);
    }
    let (give, given) = sync_channel::<Names>(1);
    let (send, batches) = sync_channel(BATCHES);
    let work = move || {
        for mut names in given {
            loop {
                let batch: Vec<Item> = names.by_ref().take(BATCH).collect();
                let is_last = batch.is_empty();
                if send.send(batch).is_err() || is_last {
                    break;
                }
            }
        }
        READERS.fetch_sub(1, Relaxed);
    };
    match std::thread::Builder::new().name("outbox-listing".into()).spawn(work) {
        Ok(_) => give.send(names).map(|()| batches).map_err(|SendError(names)| names),
        Err(_) => {
            READERS.fetch_sub(1, Relaxed);
            Err(names)
        }
    }
}

impl Iterator for Names {
    type Item = Item;

    fn next(&mut self) -> Option<Item> {
        loop {
            let entry = match self.0.read()? {
                Ok(entry) => entry,
                Err(errno) => return Some(Err(code(errno))),
            };
            if matches!(entry.file_name().to_bytes(), b"." | b"..") {
                continue;
            }
            return Some(self.describe(entry.file_name(), entry.file_type()));
        }
    }
}

impl Names {
    fn describe(&self, name: &std::ffi::CStr, kind: FileType) -> Result<DirectoryEntry, ErrorCode> {
        // Some file systems do not say.
        let kind = match kind {
            FileType::Unknown => {
                let stat = self.0.fd().and_then(|dir| statat(dir, name, AtFlags::SYMLINK_NOFOLLOW));
                FileType::from_raw_mode(stat.map_err(code)?.st_mode)
            }
            kind => kind,
        };
        let name = name.to_str().map_err(|_| ErrorCode::IllegalByteSequence)?.to_owned();
        Ok(DirectoryEntry { type_: wasi(kind), name })
    }
}

fn wasi(kind: FileType) -> DescriptorType {
    match kind {
        FileType::RegularFile => DescriptorType::RegularFile,
        FileType::Directory => DescriptorType::Directory,
        FileType::Symlink => DescriptorType::SymbolicLink,
        FileType::Fifo => DescriptorType::Fifo,
        FileType::Socket => DescriptorType::Socket,
        FileType::CharacterDevice => DescriptorType::CharacterDevice,
        FileType::BlockDevice => DescriptorType::BlockDevice,
        FileType::Unknown => DescriptorType::Unknown,
    }
}

fn code(errno: Errno) -> ErrorCode {
    std::io::Error::from(errno).into()
}
