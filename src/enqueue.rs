//! Putting a write on disk: staged, synced, then published by one rename.

use crate::bindings::types::Request;
use crate::clock;
use crate::config::Config;
use crate::dir::{CHUNK, Dir, Fault};
use crate::id::EntryId;
use crate::layout::{self, BODY, META, Name};
use crate::meta::Meta;
use crate::queue::Queue;
use crate::{Error, Result, request};
use std::cell::Cell;
use std::time::SystemTime;
use wasi::io::streams::{InputStream, StreamError};
use wasi::random::random::{get_random_bytes, get_random_u64};
use xxhash_rust::xxh3::Xxh3;

/// Where a body comes from.
pub enum Body<'a> {
    /// A stream, read to its end.
    Stream(&'a InputStream),
    /// Bytes at hand.
    Bytes(&'a [u8]),
    /// The body.bin of an entry that was set aside: the directory, and the file's path in it.
    Stored(&'a Dir, &'a str),
}

/// Queues a write. On any error nothing is left behind.
pub fn enqueue(config: &Config, queue: &Queue, request: &Request, body: Body<'_>) -> Result<EntryId> {
    request::check(request)?;
    let staging = queue.staging()?;
    let name = hex::encode(get_random_bytes(8));
    staging.create_dir(&name)?;
    let published = stage(config, queue, request, body, staging, &name);
    if published.is_err() {
        // What cannot be removed now is swept later.
        let _ = staging.remove(&name);
    }
    published
}

fn stage(
    config: &Config,
    queue: &Queue,
    request: &Request,
    body: Body<'_>,
    staging: &Dir,
    name: &str,
) -> Result<EntryId> {
    let path = format!("{name}/{BODY}");
    let mut writer = Writer::create(config, staging, &path)?;
    match body {
        Body::Bytes(bytes) => writer.write(bytes)?,
        Body::Stream(stream) => {
            while let Some(chunk) = next_chunk(stream)? {
                writer.write(&chunk)?;
            }
        }
        Body::Stored(dir, path) => {
            let file = dir.open_file(path)?;
            loop {
                let doing = || format!("cannot read {path}");
                let (chunk, end) = file.read(writer.len).map_err(|code| Fault { doing: doing(), code })?;
                writer.write(&chunk)?;
                if end || chunk.is_empty() {
                    break;
                }
            }
        }
    }
    let (len, digest) = writer.finish(queue.sync)?;

    // The id is given out now, not before the body was read: a slow body must not be sorted, and later
    // sent, before a write that was acknowledged while it trickled in.
    let now = SystemTime::now();
    let id = next_id(queue, now)?;
    let meta = Meta::new(id, request, clock::rfc3339(now), len, digest);
    staging.write(&format!("{name}/{META}"), &meta.to_json(), queue.sync)?;
    if queue.sync {
        staging.open(name)?.sync()?;
    }
    staging.rename(name, &queue.dir, &id.to_string())?;
    if let Err(error) = queue.sync_dir() {
        // Not acknowledged, so it must not be sent either.
        let _ = queue.dir.rename(&id.to_string(), staging, name);
        return Err(error);
    }
    Ok(id)
}

/// Writes body.bin, counting and hashing.
struct Writer<'a> {
    file: crate::dir::File,
    path: &'a str,
    len: u64,
    limit: u64,
    hash: Box<Xxh3>,
}

impl<'a> Writer<'a> {
    fn create(config: &Config, dir: &Dir, path: &'a str) -> Result<Writer<'a>> {
        let file = dir.create(path)?;
        Ok(Writer { file, path, len: 0, limit: config.max_body, hash: Box::new(Xxh3::new()) })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if self.len.saturating_add(bytes.len() as u64) > self.limit {
            return Err(Error::BodyTooLarge(self.limit));
        }
        self.file.write(bytes, self.len).map_err(|code| self.fault("write", code))?;
        self.hash.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    fn finish(self, sync: bool) -> Result<(u64, String)> {
        if sync {
            self.file.sync().map_err(|code| self.fault("sync", code))?;
        }
        Ok((self.len, digest(&self.hash)))
    }

    fn fault(&self, doing: &str, code: crate::dir::ErrorCode) -> Fault {
        Fault { doing: format!("cannot {doing} {}", self.path), code }
    }
}

/// How meta.json spells a body's digest.
pub fn digest(hash: &Xxh3) -> String {
    format!("xxh3:{:032x}", hash.digest128())
}

fn next_chunk(stream: &InputStream) -> Result<Option<Vec<u8>>> {
    match stream.blocking_read(CHUNK as u64) {
        Ok(chunk) => Ok(Some(chunk)),
        Err(StreamError::Closed) => Ok(None),
        Err(StreamError::LastOperationFailed(error)) => {
            Err(Error::BodyFailed(crate::exchange::first_line(&error.to_debug_string())))
        }
    }
}

thread_local! {
    /// The greatest id that this instance knows of.
    static NEWEST: Cell<Option<EntryId>> = const { Cell::new(None) };
}

/// An id greater than every one in the queue. As a rule the clock gives it. The names are looked through when
/// this instance does not know them yet, and whenever the clock may have been set back: when it is behind
/// the greatest id known, or behind the directory's last change. Whoever has to give out an id that is ahead
/// of the clock says so in [`layout::NEWEST`], for instances that know no better.
fn next_id(queue: &Queue, now: SystemTime) -> Result<EntryId> {
    let now = clock::unix_nanos(now);
    let ahead = queue.dir.read(layout::NEWEST, layout::MAX_RECORD).ok();
    let ahead = ahead.and_then(|text| EntryId::parse(std::str::from_utf8(&text).ok()?));
    let mut newest = NEWEST.get().max(ahead);
    let changed_later = || -> Result<bool> {
        let changed = queue.dir.stat_self()?.data_modification_timestamp;
        Ok(changed.is_some_and(|at| at.seconds.saturating_mul(1_000_000_000) > now))
    };
    if newest.is_none_or(|id| id.nanos() >= now) || changed_later()? {
        queue.names(|name, _| {
            if let Name::Pending(id) | Name::Conflict(id, _) = layout::parse(name) {
                newest = newest.max(Some(id));
            }
        })?;
    }
    let id = EntryId::after(newest, now, get_random_u64() as u32);
    if id.nanos() > now {
        let staging = queue.staging()?;
        let temporary = format!("{id}.newest");
        staging.write(&temporary, id.to_string().as_bytes(), false)?;
        staging.rename(&temporary, &queue.dir, layout::NEWEST)?;
    } else if ahead.is_some() {
        // The clock has caught up.
        queue.dir.remove(layout::NEWEST)?;
    }
    NEWEST.set(Some(id));
    Ok(id)
}
