//! Setting entries aside: conflicts, rejected and corrupt entries.

use crate::clock;
use crate::dir::{DescriptorType, Dir};
use crate::entry::Entry;
use crate::exchange::Reply;
use crate::id::EntryId;
use crate::layout::{CONFLICT, CORRUPT, META, REASON, REJECTED, RESPONSE, parse_aside};
use crate::meta::to_json;
use crate::queue::Queue;
use crate::response::Response;
use crate::{Error, Result};
use std::time::SystemTime;
use wasi::random::random::get_random_u64;

/// Sets an entry aside after 412. On an error it is where it was.
pub fn conflict(
    queue: &Queue,
    entry: &Entry,
    refusal: &Reply,
    current: Option<&Reply>,
    reason: &str,
) -> Result<()> {
    write_response(queue, entry.id, refusal, current, reason)?;
    as_original(queue, entry.id)
}

/// The same as the original does it: by its name alone.
pub fn as_original(queue: &Queue, id: EntryId) -> Result<()> {
    let to = move_aside(&queue.dir, &id.to_string(), &queue.dir, &format!("{id}{CONFLICT}"))?;
    queue.sync_dir().or_else(|error| put_back(&queue.dir, &to, queue, &id.to_string(), error))
}

/// Sets an entry aside that the server refused for good. On an error it is where it was.
pub fn reject(queue: &Queue, id: EntryId, reply: &Reply, reason: &str) -> Result<()> {
    write_response(queue, id, reply, None, reason)?;
    aside(queue, id, REJECTED)
}

/// Sets a damaged entry aside. Whatever has its name is kept, be it a file or a link.
pub fn corrupt(queue: &Queue, id: EntryId, reason: &str) -> Result<()> {
    let name = id.to_string();
    let kind = queue.dir.stat(&name)?.type_;
    let reason = format!("{reason}\n");
    if kind == DescriptorType::Directory {
        // Best effort: the entry must get out of the way also where nothing can be written in it.
        let path = format!("{name}/{REASON}");
        let _ = queue.dir.remove(&path).and_then(|()| queue.dir.write(&path, reason.as_bytes(), queue.sync));
        let _ = queue.sync_entry(&queue.dir, &name);
        return aside(queue, id, CORRUPT);
    }
    let corrupt = queue.dir.open_or_create(CORRUPT)?;
    let wrapper = wrapper(&corrupt, id)?;
    let path = format!("{wrapper}/{REASON}");
    corrupt.remove(&path)?;
    corrupt.write(&path, reason.as_bytes(), queue.sync)?;
    // It must not be durably gone from the queue before there is durably a place for it.
    queue.sync_entry(&corrupt, &wrapper)?;
    queue.sync_move(&corrupt, &queue.dir)?;
    let moved = corrupt.open(&wrapper)?;
    queue.dir.rename(&name, &moved, FOUND)?;
    queue.sync_move(&moved, &queue.dir).or_else(|error| put_back(&moved, FOUND, queue, &name, error))
}

/// What a damaged entry that is no directory is called in its place in `corrupt/`.
const FOUND: &str = "found";

/// A directory in `corrupt/` for something that is none itself: the one that was made for it when the process died.
fn wrapper(corrupt: &Dir, id: EntryId) -> Result<String> {
    let mut made = Vec::new();
    corrupt.list(|name, _| {
        made.extend(parse_aside(&name).is_some_and(|(of, _)| of == id).then_some(name.clone()))
    })?;
    let empty = |name: &String| {
        [META, FOUND]
            .iter()
            .all(|file| corrupt.stat(&format!("{name}/{file}")).is_err_and(|f| f.is_missing()))
    };
    if let Some(name) = made.into_iter().find(empty) {
        return Ok(name);
    }
    let name = free_name(corrupt, &format!("{id}."));
    corrupt.create_dir(&name)?;
    Ok(name)
}

/// Undoes a move after a failed sync: which of both places is durable is not known, and either is a right one, but here and
/// now the entry is in one place, the one that the caller is told. If it stays where it was moved, it is there.
fn put_back(from: &Dir, name: &str, queue: &Queue, id: &str, error: Error) -> Result<()> {
    match from.rename(name, &queue.dir, id) {
        Ok(()) => Err(error),
        Err(_) => Ok(()),
    }
}

fn aside(queue: &Queue, id: EntryId, place: &str) -> Result<()> {
    let to = queue.dir.open_or_create(place)?;
    let name = move_aside(&queue.dir, &id.to_string(), &to, &format!("{id}."))?;
    queue.sync_move(&to, &queue.dir).or_else(|error| put_back(&to, &name, queue, &id.to_string(), error))
}

fn write_response(
    queue: &Queue,
    id: EntryId,
    reply: &Reply,
    current: Option<&Reply>,
    reason: &str,
) -> Result<()> {
    let path = format!("{id}/{RESPONSE}");
    // A file whose sync failed is not synced again, but written anew.
    queue.dir.remove(&path)?;
    let json = to_json(&Response::new(reply, current, reason));
    let written = queue.dir.write(&path, &json, queue.sync).map_err(Error::from);
    written.and_then(|()| queue.sync_entry(&queue.dir, &id.to_string())).inspect_err(|_| {
        let _ = queue.dir.remove(&path);
    })
}

/// Renames to `prefix` and the time; the new name.
fn move_aside(from_dir: &Dir, from: &str, to_dir: &Dir, prefix: &str) -> Result<String> {
    let to = free_name(to_dir, prefix);
    from_dir.rename(from, to_dir, &to)?;
    Ok(to)
}

/// `prefix` and the time, with 4 random hex digits on a clash.
fn free_name(dir: &Dir, prefix: &str) -> String {
    let mut name = format!("{prefix}{}", clock::compact(SystemTime::now()));
    while dir.stat(&name).is_ok() {
        name = format!("{prefix}{}-{:04x}", clock::compact(SystemTime::now()), get_random_u64() & 0xffff);
    }
    name
}
