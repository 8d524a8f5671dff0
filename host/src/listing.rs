//! Directory listings, in place of wasmtime's: that one looks at every entry (a `statx` each) and keeps all of them
//! before it gives out the first. A pass over a million entries would wait seconds for it. Here names and types come as
//! the kernel hands them out. Same errors, with one fewer: an entry that is unlinked meanwhile is not noticed.
//!
//! Only on Unix; elsewhere wasmtime's stays.

use crate::sandbox::State;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, statat};
use rustix::io::Errno;
use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource, ResourceType};
use wasmtime_wasi::WasiView;
use wasmtime_wasi::filesystem::Descriptor;
use wasmtime_wasi::p2::bindings::filesystem::types::{DescriptorType, DirectoryEntry, ErrorCode};

/// Where wasmtime links what is replaced. Under another version's name, nothing would be.
const INTERFACE: &str = "wasi:filesystem/types@0.2.12";

/// A `directory-entry-stream`.
struct Listing(Dir);

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
                Ok(dir) => Ok(table.push(Listing(dir))?),
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
    type Item = Result<DirectoryEntry, ErrorCode>;

    fn next(&mut self) -> Option<Self::Item> {
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

impl Listing {
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
