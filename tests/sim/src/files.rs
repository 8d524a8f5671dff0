//! `wasi:filesystem` on the virtual tree. Every call is a place where the process may die, where another
//! may get its turn, and where the file system may fail.

use crate::bindings::wasi::clocks::wall_clock::Datetime;
use crate::bindings::wasi::filesystem::{preopens, types};
use crate::guest::State;
use crate::ledger::Failure;
use crate::tree::{Errno, Ino, Kind, ROOT};
use crate::world::{Died, Op, Point, Shared, World};
use bytes::Bytes;
use std::collections::BTreeMap;
use types::{DescriptorFlags, DescriptorStat, DescriptorType, DirectoryEntry, ErrorCode, OpenFlags};
use wasmtime::component::Resource;
use wasmtime_wasi::async_trait;
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream, InputStream, Pollable, StreamError};

type Outcome<T> = wasmtime::Result<std::result::Result<T, ErrorCode>>;

/// Bytes per read; wasmtime has the same.
const MAX_READ: usize = 64 * 1024;

/// An open file or directory.
#[derive(Debug, Clone, Copy)]
pub struct Descriptor {
    ino: Ino,
    /// Failed syncs of it that this descriptor knows about.
    seen: u32,
    writable: bool,
}

/// A directory's entries, in any order.
pub struct Listing(std::vec::IntoIter<std::result::Result<DirectoryEntry, ErrorCode>>);

fn code(errno: Errno) -> ErrorCode {
    match errno {
        Errno::NoEntry => ErrorCode::NoEntry,
        Errno::Exist => ErrorCode::Exist,
        Errno::NotDirectory => ErrorCode::NotDirectory,
        Errno::IsDirectory => ErrorCode::IsDirectory,
        Errno::NotEmpty => ErrorCode::NotEmpty,
        Errno::Loop => ErrorCode::Loop,
        Errno::NotPermitted => ErrorCode::NotPermitted,
        Errno::BadDescriptor => ErrorCode::BadDescriptor,
        Errno::NoSpace => ErrorCode::InsufficientSpace,
        Errno::Io => ErrorCode::Io,
    }
}

fn type_of(kind: &Kind) -> DescriptorType {
    match kind {
        Kind::Dir(_) => DescriptorType::Directory,
        Kind::File(_) => DescriptorType::RegularFile,
        Kind::Link(_) => DescriptorType::SymbolicLink,
    }
}

fn stat(world: &World, ino: Ino) -> DescriptorStat {
    let node = world.tree.node(ino);
    let size = match &node.kind {
        Kind::Dir(_) => 4096,
        Kind::File(bytes) => bytes.len() as u64,
        Kind::Link(to) => to.len() as u64,
    };
    let at = Datetime {
        seconds: node.modified / 1_000_000_000,
        nanoseconds: (node.modified % 1_000_000_000) as u32,
    };
    DescriptorStat {
        type_: type_of(&node.kind),
        link_count: 1,
        size,
        data_access_timestamp: Some(at),
        data_modification_timestamp: Some(at),
        status_change_timestamp: None,
    }
}

impl State {
    /// A call into the file system, on `ino` or something below it: `work` does it, told whether it is to fail.
    async fn call<T>(
        &mut self,
        op: Op,
        ino: Ino,
        name: impl Fn() -> String,
        work: impl FnOnce(&mut World, Option<Errno>) -> Result<T, Errno>,
    ) -> Outcome<T> {
        let turns = {
            let mut world = self.world.lock();
            // System calls take time; sometimes less than the clock can tell.
            let spent = world.rng.below(40) * 1000;
            world.clock.spend(spent);
            if world.running > 1 { world.rng.below(5) } else { 0 }
        };
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
        let mut world = self.world.lock();
        if world.dark {
            return Err(Died.into());
        }
        world.count_call();
        let point = world.crash.as_ref().filter(|crash| crash.victim == self.turn).map(|crash| crash.at);
        let mut dies_after = false;
        if let Some(point) = point {
            world.victim_calls += 1;
            let calls = world.victim_calls;
            if point == Point::Before(calls) {
                self.died = true;
                world.say(|| format!("[{}] dies before {}", self.process, name()));
                return Err(Died.into());
            }
            dies_after = point == Point::After(calls);
        }
        world.tree.now = world.wall();
        let fault = world.fault(op);
        let done = work(&mut world, fault);
        if let (Err(Errno::Io | Errno::NoSpace), Some(at)) =
            (&done, world.ledger.disturbances.last().copied())
        {
            let on = world.tree.path_of(ino).unwrap_or_default();
            let failure = Failure { at, process: self.process, op, what: name(), on };
            world.ledger.failures.push(failure);
        }
        world.say(|| {
            let end = match &done {
                Ok(_) => String::new(),
                Err(errno) => format!(" -> {errno:?}"),
            };
            format!("[{}] {}{end}", self.process, name())
        });
        if dies_after {
            self.died = true;
            world.say(|| format!("[{}] dies after that", self.process));
            return Err(Died.into());
        }
        Ok(done.map_err(code))
    }

    /// All that was written becomes durable: what a host can do, and a guest cannot.
    pub async fn sync_all(&mut self) -> Outcome<()> {
        self.call(
            Op::Sync,
            ROOT,
            || "sync all".into(),
            |world, fault| {
                if let Some(errno) = fault {
                    world.failed_syncs += 1;
                    return Err(errno);
                }
                world.tree.write_back();
                Ok(())
            },
        )
        .await
    }

    fn open(&self, descriptor: &Resource<Descriptor>) -> wasmtime::Result<Descriptor> {
        Ok(*self.table.get(descriptor)?)
    }
}

/// Fails where that is wanted, before anything is done.
fn healthy(fault: Option<Errno>) -> Result<(), Errno> {
    fault.map_or(Ok(()), Err)
}

impl preopens::Host for State {
    async fn get_directories(&mut self) -> wasmtime::Result<Vec<(Resource<Descriptor>, String)>> {
        let seen = self.world.lock().tree.node(ROOT).failures;
        let root = self.table.push(Descriptor { ino: ROOT, seen, writable: false })?;
        Ok(vec![(root, "/data".into())])
    }
}

impl types::Host for State {
    async fn filesystem_error_code(
        &mut self,
        _: Resource<wasmtime::Error>,
    ) -> wasmtime::Result<Option<ErrorCode>> {
        Ok(None)
    }
}

impl types::HostDirectoryEntryStream for State {
    async fn read_directory_entry(&mut self, stream: Resource<Listing>) -> Outcome<Option<DirectoryEntry>> {
        Ok(self.table.get_mut(&stream)?.0.next().transpose())
    }

    async fn drop(&mut self, stream: Resource<Listing>) -> wasmtime::Result<()> {
        self.table.delete(stream)?;
        Ok(())
    }
}

impl types::HostDescriptor for State {
    async fn read(&mut self, fd: Resource<Descriptor>, length: u64, offset: u64) -> Outcome<(Vec<u8>, bool)> {
        let fd = self.open(&fd)?;
        let name = || format!("read {} at {offset}", fd.ino);
        self.call(Op::Read, fd.ino, name, |world, fault| {
            healthy(fault)?;
            let bytes = world.tree.bytes(fd.ino)?;
            let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
            let left = bytes.len() - start;
            let mut take = left.min(usize::try_from(length).unwrap_or(usize::MAX)).min(MAX_READ);
            if take > 1 && world.rng.percent(10) {
                take = world.rng.range(1, take as u64) as usize;
            }
            let bytes = world.tree.bytes(fd.ino)?;
            Ok((bytes[start..start + take].to_vec(), take == 0))
        })
        .await
    }

    async fn write(&mut self, fd: Resource<Descriptor>, buffer: Vec<u8>, offset: u64) -> Outcome<u64> {
        let fd = self.open(&fd)?;
        let name = || format!("write {} bytes to {} at {offset}", buffer.len(), fd.ino);
        self.call(Op::Write, fd.ino, name, |world, fault| {
            if !fd.writable {
                return Err(Errno::BadDescriptor);
            }
            let mut take = buffer.len();
            if take > 1 && (fault.is_some() || world.rng.percent(10)) {
                take = world.rng.range(1, take as u64) as usize;
            }
            // A disk that becomes full, or breaks, in the middle of a write has taken the start of it.
            if fault.is_some() && world.rng.percent(50) {
                world.tree.write(fd.ino, offset as usize, &buffer[..take])?;
            }
            healthy(fault)?;
            world.tree.write(fd.ino, offset as usize, &buffer[..take])?;
            Ok(take as u64)
        })
        .await
    }

    async fn sync(&mut self, fd: Resource<Descriptor>) -> Outcome<()> {
        let mut open = self.open(&fd)?;
        let name = || format!("sync {}", open.ino);
        let (ino, seen) = (open.ino, open.seen);
        let done = self
            .call(Op::Sync, ino, name, |world, fault| {
                if let Some(errno) = fault {
                    world.tree.fail_sync(ino);
                    world.failed_syncs += 1;
                    return Err(errno);
                }
                world.tree.sync(ino);
                match world.tree.node(ino).failures > seen {
                    // Late news of a sync that failed for somebody else.
                    true => {
                        let event = world.event();
                        world.ledger.disturbances.push(event);
                        Err(Errno::Io)
                    }
                    false => Ok(()),
                }
            })
            .await?;
        open.seen = self.world.lock().tree.node(ino).failures;
        *self.table.get_mut(&fd)? = open;
        Ok(done)
    }

    async fn sync_data(&mut self, fd: Resource<Descriptor>) -> Outcome<()> {
        self.sync(fd).await
    }

    async fn read_directory(&mut self, fd: Resource<Descriptor>) -> Outcome<Resource<Listing>> {
        let fd = self.open(&fd)?;
        let name = || format!("list {}", fd.ino);
        let names = self
            .call(Op::List, fd.ino, name, |world, fault| {
                healthy(fault)?;
                let mut names = world.tree.list(fd.ino)?;
                world.rng.shuffle(&mut names);
                Ok(names)
            })
            .await?;
        let mut names = match names {
            Ok(names) => names,
            Err(code) => return Ok(Err(code)),
        };
        // A directory is not read in one moment: what comes meanwhile is seen or not, by its place. And wasmtime looks at
        // each entry, which may be gone by then.
        let turns = {
            let mut world = self.world.lock();
            let salt = if world.running > 1 { world.rng.below(u64::MAX) } else { 0 };
            (salt != 0).then(|| (salt, if world.rng.percent(30) { 400 } else { 1 }))
        };
        if let Some((salt, turns)) = turns {
            let is_late = |name: &str| {
                let place = name
                    .bytes()
                    .fold(salt, |sum, byte| (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
                place >> 32 & 1 == 1
            };
            names.retain(|(name, _)| !is_late(name));
            for _ in 0..turns {
                tokio::task::yield_now().await;
            }
            let mut late = self.world.lock().tree.list(fd.ino).unwrap_or_default();
            late.retain(|(name, _)| is_late(name));
            names.extend(late);
        }
        let entries: Vec<_> = {
            let world = self.world.lock();
            let look = |name: String| {
                let ino = world.tree.find(fd.ino, &name).map_err(code)?;
                Ok(DirectoryEntry { type_: type_of(&world.tree.node(ino).kind), name })
            };
            names.into_iter().map(|(name, _)| look(name)).collect()
        };
        Ok(Ok(self.table.push(Listing(entries.into_iter()))?))
    }

    async fn create_directory_at(&mut self, fd: Resource<Descriptor>, path: String) -> Outcome<()> {
        let fd = self.open(&fd)?;
        let name = || format!("mkdir {}/{path}", fd.ino);
        self.call(Op::MakeDir, fd.ino, name, |world, fault| {
            healthy(fault)?;
            world.tree.create(fd.ino, &path, Kind::Dir(BTreeMap::new())).map(|_| ())
        })
        .await
    }

    async fn stat(&mut self, fd: Resource<Descriptor>) -> Outcome<DescriptorStat> {
        let fd = self.open(&fd)?;
        let name = || format!("stat {}", fd.ino);
        self.call(Op::Stat, fd.ino, name, |world, fault| {
            healthy(fault)?;
            Ok(stat(world, fd.ino))
        })
        .await
    }

    async fn stat_at(
        &mut self,
        fd: Resource<Descriptor>,
        _: types::PathFlags,
        path: String,
    ) -> Outcome<DescriptorStat> {
        let fd = self.open(&fd)?;
        let name = || format!("stat {}/{path}", fd.ino);
        self.call(Op::Stat, fd.ino, name, |world, fault| {
            let ino = world.tree.find(fd.ino, &path)?;
            healthy(fault)?;
            Ok(stat(world, ino))
        })
        .await
    }

    async fn open_at(
        &mut self,
        fd: Resource<Descriptor>,
        _: types::PathFlags,
        path: String,
        how: OpenFlags,
        flags: DescriptorFlags,
    ) -> Outcome<Resource<Descriptor>> {
        let fd = self.open(&fd)?;
        let creating = how.contains(OpenFlags::CREATE);
        let writable = flags.contains(DescriptorFlags::WRITE);
        let name = || format!("{} {}/{path}", if creating { "create" } else { "open" }, fd.ino);
        let opened = self
            .call(if creating { Op::Create } else { Op::Open }, fd.ino, name, |world, fault| {
                let found = world.tree.find(fd.ino, &path);
                if fault.is_some() && (creating || found.is_ok()) {
                    healthy(fault)?;
                }
                let ino = match found {
                    Ok(_) if creating && how.contains(OpenFlags::EXCLUSIVE) => return Err(Errno::Exist),
                    Ok(ino) => ino,
                    Err(Errno::NoEntry) if creating => {
                        world.tree.create(fd.ino, &path, Kind::File(Vec::new()))?
                    }
                    Err(errno) => return Err(errno),
                };
                let node = world.tree.node(ino);
                match node.kind {
                    Kind::Link(_) => return Err(Errno::Loop),
                    Kind::Dir(_) if writable => return Err(Errno::IsDirectory),
                    Kind::File(_) if how.contains(OpenFlags::DIRECTORY) => return Err(Errno::NotDirectory),
                    _ => {}
                }
                let seen = node.failures;
                if how.contains(OpenFlags::TRUNCATE) {
                    world.tree.truncate(ino)?;
                }
                Ok(Descriptor { ino, seen, writable })
            })
            .await?;
        match opened {
            Ok(opened) => Ok(Ok(self.table.push(opened)?)),
            Err(code) => Ok(Err(code)),
        }
    }

    async fn rename_at(
        &mut self,
        fd: Resource<Descriptor>,
        path: String,
        to: Resource<Descriptor>,
        to_path: String,
    ) -> Outcome<()> {
        let (fd, to) = (self.open(&fd)?, self.open(&to)?);
        let name = || format!("rename {}/{path} to {}/{to_path}", fd.ino, to.ino);
        self.call(Op::Rename, fd.ino, name, |world, fault| {
            healthy(fault)?;
            world.tree.rename(fd.ino, &path, to.ino, &to_path)
        })
        .await
    }

    async fn link_at(
        &mut self,
        fd: Resource<Descriptor>,
        _: types::PathFlags,
        path: String,
        to: Resource<Descriptor>,
        to_path: String,
    ) -> Outcome<()> {
        let (fd, to) = (self.open(&fd)?, self.open(&to)?);
        let name = || format!("link {}/{path} as {}/{to_path}", fd.ino, to.ino);
        self.call(Op::Create, fd.ino, name, |world, fault| {
            healthy(fault)?;
            world.tree.link(fd.ino, &path, to.ino, &to_path)
        })
        .await
    }

    async fn unlink_file_at(&mut self, fd: Resource<Descriptor>, path: String) -> Outcome<()> {
        let fd = self.open(&fd)?;
        let name = || format!("unlink {}/{path}", fd.ino);
        self.call(Op::Remove, fd.ino, name, |world, fault| {
            world.tree.find(fd.ino, &path)?;
            healthy(fault)?;
            world.tree.unlink(fd.ino, &path)
        })
        .await
    }

    async fn remove_directory_at(&mut self, fd: Resource<Descriptor>, path: String) -> Outcome<()> {
        let fd = self.open(&fd)?;
        let name = || format!("rmdir {}/{path}", fd.ino);
        self.call(Op::Remove, fd.ino, name, |world, fault| {
            world.tree.find(fd.ino, &path)?;
            healthy(fault)?;
            world.tree.remove_dir(fd.ino, &path)
        })
        .await
    }

    async fn read_via_stream(
        &mut self,
        fd: Resource<Descriptor>,
        offset: u64,
    ) -> Outcome<Resource<DynInputStream>> {
        let fd = self.open(&fd)?;
        let stream = FileStream { world: self.world.clone(), ino: fd.ino, offset: offset as usize };
        let stream: DynInputStream = Box::new(stream);
        Ok(Ok(self.table.push(stream)?))
    }

    async fn drop(&mut self, fd: Resource<Descriptor>) -> wasmtime::Result<()> {
        self.table.delete(fd)?;
        Ok(())
    }

    async fn get_type(&mut self, fd: Resource<Descriptor>) -> Outcome<DescriptorType> {
        let fd = self.open(&fd)?;
        Ok(Ok(type_of(&self.world.lock().tree.node(fd.ino).kind)))
    }

    // The component uses none of the rest; when it does, what it gets says so.

    async fn write_via_stream(
        &mut self,
        _: Resource<Descriptor>,
        _: u64,
    ) -> Outcome<Resource<DynOutputStream>> {
        unsupported()
    }

    async fn append_via_stream(&mut self, _: Resource<Descriptor>) -> Outcome<Resource<DynOutputStream>> {
        unsupported()
    }

    async fn advise(&mut self, _: Resource<Descriptor>, _: u64, _: u64, _: types::Advice) -> Outcome<()> {
        unsupported()
    }

    async fn get_flags(&mut self, _: Resource<Descriptor>) -> Outcome<DescriptorFlags> {
        unsupported()
    }

    async fn set_size(&mut self, _: Resource<Descriptor>, _: u64) -> Outcome<()> {
        unsupported()
    }

    async fn set_times(
        &mut self,
        _: Resource<Descriptor>,
        _: types::NewTimestamp,
        _: types::NewTimestamp,
    ) -> Outcome<()> {
        unsupported()
    }

    async fn set_times_at(
        &mut self,
        _: Resource<Descriptor>,
        _: types::PathFlags,
        _: String,
        _: types::NewTimestamp,
        _: types::NewTimestamp,
    ) -> Outcome<()> {
        unsupported()
    }

    async fn readlink_at(&mut self, _: Resource<Descriptor>, _: String) -> Outcome<String> {
        unsupported()
    }

    async fn symlink_at(&mut self, _: Resource<Descriptor>, _: String, _: String) -> Outcome<()> {
        unsupported()
    }

    async fn is_same_object(
        &mut self,
        a: Resource<Descriptor>,
        b: Resource<Descriptor>,
    ) -> wasmtime::Result<bool> {
        Ok(self.open(&a)?.ino == self.open(&b)?.ino)
    }

    async fn metadata_hash(&mut self, fd: Resource<Descriptor>) -> Outcome<types::MetadataHashValue> {
        let fd = self.open(&fd)?;
        Ok(Ok(types::MetadataHashValue { lower: fd.ino as u64, upper: 0 }))
    }

    async fn metadata_hash_at(
        &mut self,
        _: Resource<Descriptor>,
        _: types::PathFlags,
        _: String,
    ) -> Outcome<types::MetadataHashValue> {
        unsupported()
    }
}

/// A call that the simulator has not: an ordinary file system would answer it.
fn unsupported<T>() -> Outcome<T> {
    Err(wasmtime::format_err!("the simulator lacks this call of wasi:filesystem; see tests/sim/src/files.rs"))
}

/// A file, read as a stream.
struct FileStream {
    world: Shared,
    ino: Ino,
    offset: usize,
}

#[async_trait]
impl Pollable for FileStream {
    async fn ready(&mut self) {}
}

impl InputStream for FileStream {
    fn read(&mut self, size: usize) -> Result<Bytes, StreamError> {
        let world = self.world.lock();
        let bytes = match world.tree.bytes(self.ino) {
            Ok(bytes) => bytes,
            Err(errno) => {
                return Err(StreamError::LastOperationFailed(wasmtime::format_err!("{errno:?}")));
            }
        };
        let start = self.offset.min(bytes.len());
        let take = size.min(bytes.len() - start).min(MAX_READ);
        if take == 0 {
            return Err(StreamError::Closed);
        }
        self.offset = start + take;
        Ok(Bytes::copy_from_slice(&bytes[start..start + take]))
    }
}
