//! Putting a write on disk: staged, synced, then published by one rename, which is synced in turn.
//! Several at once: [`crate::batch`].

use crate::bindings::exports::zddc::outbox::queue::Write;
use crate::bindings::types::Request;
use crate::clock;
use crate::config::Config;
use crate::dir::{CHUNK, Dir, ErrorCode, Fault, File};
use crate::error::undo_failed;
use crate::id::EntryId;
use crate::layout::{self, BODY, META, Name};
use crate::limits::{self, Limits};
use crate::meta::Meta;
use crate::queue::Queue;
use crate::staged::Staged;
use crate::{Error, Result, locate, request};
use std::cell::{Cell, OnceCell};
use std::time::SystemTime;
use wasi::clocks::monotonic_clock;
use wasi::io::streams::{InputStream, StreamError};
use wasi::random::random::get_random_u64;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// Where a body comes from.
#[derive(Clone, Copy)]
pub enum Body<'a> {
    /// A stream, read to its end.
    Stream(&'a InputStream),
    /// Bytes at hand.
    Bytes(&'a [u8]),
    /// The body.bin of an entry that was set aside: the directory, the file's path in it, and what it must be.
    Stored(&'a Dir, &'a str, &'a Meta),
}

/// An entry in `.staging`, whole.
pub struct Ready {
    /// The id that it is to have.
    pub id: EntryId,
    /// Its name in `.staging`.
    name: String,
    /// Bytes on disk, as they are counted for the limits.
    pub size: u64,
}

/// An entry that is in the queue, which is not durable yet.
pub struct Published {
    /// Its id.
    pub id: EntryId,
    /// Its name in `.staging`.
    name: String,
}

/// What is to be staged, and under which limits.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    config: &'a Config,
    limits: Limits,
    /// Bytes on disk that the entry may have, as far as is known.
    room: u64,
    queue: &'a Queue,
    request: &'a Request,
    body: Body<'a>,
    /// Its files are synced here.
    sync: bool,
}

/// Queues a write. On any error it is not in the queue, unless that says so, and nothing is left behind but, after a failed
/// sync of the queue's directory, files for the sweep.
pub fn enqueue(config: &Config, queue: &Queue, request: &Request, body: Body<'_>) -> Result<EntryId> {
    let published = publish(config, queue, request, body)?;
    let id = published.id;
    settle(queue, [published])?;
    Ok(id)
}

/// Makes entries in the queue durable, or takes them out again: what is not acknowledged must not be sent either. Which
/// of both is durable is not known then, so their files stay until the sweep: after a power failure a name may be in the
/// queue, and the entry must then be whole.
pub fn settle(queue: &Queue, published: impl IntoIterator<Item = Published>) -> Result<()> {
    let Err(error) = queue.sync_dir() else { return Ok(()) };
    let mut stay = Vec::new();
    for Published { id, name } in published {
        if queue.dir.rename(&id.to_string(), queue.staging()?, &name).is_err() {
            stay.push(id.to_string());
        }
    }
    limits::forget();
    let stays =
        || format!("{} could not be taken back, and will be sent unless it is dropped", stay.join(", "));
    Err(undo_failed(error, !stay.is_empty(), stays))
}

/// Stages a write and moves it into the queue.
pub fn publish(config: &Config, queue: &Queue, request: &Request, body: Body<'_>) -> Result<Published> {
    let wanted = wanted(config, queue, request, body)?;
    if let Body::Bytes(_) = body
        && let Some(ready) = queue.ahead.take()
    {
        match fill(wanted, ready).and_then(|ready| ready.publish(wanted.limits, queue)) {
            // It was made a while ago: somebody may have removed it since.
            Err(Error::Io(_)) => {}
            // What may never be used is in the way.
            Err(Error::NoSpace) => _ = queue.ahead.prepare(queue, 0),
            done => return done,
        }
    }
    fill(wanted, Staged::create(queue.staging()?)?)?.publish(wanted.limits, queue)
}

/// Stages a write of a batch. None of it is synced.
pub fn stage_unsynced(config: &Config, queue: &Queue, write: &Write) -> Result<Ready> {
    let wanted = wanted(config, queue, &write.request, Body::Bytes(&write.body))?;
    fill(Wanted { sync: false, ..wanted }, Staged::create(queue.staging()?)?)
}

/// Checks a write as far as that is possible before its body is read.
fn wanted<'a>(
    config: &'a Config,
    queue: &'a Queue,
    request: &'a Request,
    body: Body<'a>,
) -> Result<Wanted<'a>> {
    request::check(request)?;
    let limits = match body {
        // It is in the outbox already.
        Body::Stored(..) => Limits::default(),
        Body::Stream(_) | Body::Bytes(_) => config.limits,
    };
    let room = limits.admit(queue, limits::entry_size(0, 1))?;
    Ok(Wanted { config, limits, room, queue, request, body, sync: queue.sync })
}

/// Puts a write into its place.
fn fill(wanted: Wanted<'_>, staged: Staged) -> Result<Ready> {
    let name = staged.name.clone();
    match stage(wanted, staged) {
        Ok((id, size)) => Ok(Ready { id, name, size }),
        Err(error) => Err(failed(wanted.queue, &name, error)),
    }
}

impl Ready {
    /// Moves it into the queue.
    pub fn publish(self, limits: Limits, queue: &Queue) -> Result<Published> {
        let Ready { id, name, size } = self;
        match queue.staging()?.rename(&name, &queue.dir, &id.to_string()) {
            Ok(()) => {
                limits.queued(queue, size);
                Ok(Published { id, name })
            }
            Err(fault) => Err(failed(queue, &name, fault.into())),
        }
    }

    /// Removes it instead. What cannot be removed now is swept later.
    pub fn discard(self, queue: &Queue) {
        if let Ok(staging) = queue.staging() {
            let _ = staging.remove(&self.name);
        }
    }
}

/// Clears away what a failure has left.
fn failed(queue: &Queue, name: &str, error: Error) -> Error {
    if let Ok(staging) = queue.staging() {
        // What cannot be removed now is swept later.
        let _ = staging.remove(name);
    }
    if matches!(error, Error::Io(_)) {
        limits::forget();
    }
    error
}

fn stage(wanted: Wanted<'_>, staged: Staged) -> Result<(EntryId, u64)> {
    let Wanted { config, limits, room, queue, request, body, sync } = wanted;
    let Staged { name, body: file, meta: record, named } = staged;
    let longest = if matches!(body, Body::Stored(..)) { u64::MAX } else { config.max_body };
    let mut writer = Writer { file, name: &name, len: 0, longest, room, hash: Box::new(Xxh3::new()) };
    let admit = |len| limits.admit(queue, limits::entry_size(len, 1));
    match body {
        Body::Bytes(bytes) => writer.write(bytes, admit)?,
        Body::Stream(stream) => {
            while let Some(chunk) = next_chunk(stream)? {
                writer.write(&chunk, admit)?;
            }
        }
        Body::Stored(dir, path, _) => {
            let (file, _) = dir.open_file(path)?;
            loop {
                let doing = || format!("cannot read {path}");
                let (chunk, end) =
                    file.read(writer.len, CHUNK as u64).map_err(|code| Fault { doing: doing(), code })?;
                writer.write(&chunk, admit)?;
                if end || chunk.is_empty() {
                    break;
                }
            }
        }
    }
    let (len, digest) = writer.finish(sync)?;
    // With a digest of its own, a damaged body would pass for a sound one from here on.
    if let Body::Stored(_, path, was) = body
        && let Some(damage) = was.damage_in_body(len, &digest)
    {
        return Err(Error::Io(format!(
            "{path} is damaged, so it is not queued again: {damage}; 'outbox resolve --keep FILE' sends another in its place, 'outbox drop' removes it"
        )));
    }

    // The id is given out now, not before the body was read: a slow body must not be sorted, and later
    // sent, before a write that was acknowledged while it trickled in.
    let now = SystemTime::now();
    let id = next_id(queue, config.boot.as_deref(), now)?;
    let meta = Meta::new(id, request, clock::rfc3339(now), len, digest).to_json();
    let size = limits::entry_size(len, meta.len() as u64);
    // Others may have queued something meanwhile.
    limits.admit(queue, size)?;
    let fault = |doing: &str, code| Fault { doing: format!("cannot {doing} {name}/{META}"), code };
    record.write(&meta, 0).map_err(|code| fault("write", code))?;
    if sync {
        record.sync().map_err(|code| fault("sync", code))?;
    }
    // Some systems do not rename a directory in which a file is open.
    drop(record);
    if sync && !named {
        queue.staging()?.open(&name)?.sync()?;
    }
    Ok((id, size))
}

/// Writes body.bin, counting and hashing.
struct Writer<'a> {
    file: File,
    /// Its directory.
    name: &'a str,
    len: u64,
    /// Bytes that a body may have.
    longest: u64,
    /// Bytes on disk that the entry may have, as far as is known.
    room: u64,
    hash: Box<Xxh3>,
}

impl Writer<'_> {
    /// Writes a chunk. Where the room is used up, `admit` is asked for more.
    fn write(&mut self, bytes: &[u8], admit: impl Fn(u64) -> Result<u64>) -> Result<()> {
        let len = self.len.saturating_add(bytes.len() as u64);
        if len > self.longest {
            return Err(Error::BodyTooLarge(self.longest));
        }
        if limits::entry_size(len, 1) > self.room {
            self.room = admit(len)?;
        }
        self.file.write(bytes, self.len).map_err(|code| self.fault("write", code))?;
        self.hash.update(bytes);
        self.len = len;
        Ok(())
    }

    fn finish(self, sync: bool) -> Result<(u64, String)> {
        if sync {
            self.file.sync().map_err(|code| self.fault("sync", code))?;
        }
        Ok((self.len, digest(&self.hash)))
    }

    fn fault(&self, doing: &str, code: ErrorCode) -> Fault {
        Fault { doing: format!("cannot {doing} {}/{BODY}", self.name), code }
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
            Err(Error::BodyFailed(crate::failure::first_line(&error.to_debug_string())))
        }
    }
}

/// What writers have noted, for [`noted`]; nothing where something else is in the file's place.
pub fn notes(queue: &Queue) -> Result<Vec<u8>> {
    let Some(file) = queue.newest()? else { return Ok(Vec::new()) };
    let fault = |code| Fault { doing: format!("cannot read {}", layout::NEWEST), code };
    Ok(file.read_all(layout::NOTES_LEN).map_err(fault)?)
}

/// The last ids that were given out, one a writer.
pub fn noted(notes: &[u8]) -> impl Iterator<Item = EntryId> {
    let notes = notes.chunks(layout::NOTE_LEN).filter(|note| !note.starts_with(&[0]));
    let ids = notes.map(|note| std::str::from_utf8(note.trim_ascii_end()));
    ids.filter_map(|note| EntryId::parse(note.ok()?))
}

thread_local! {
    /// The greatest id that this instance knows of.
    static NEWEST: Cell<Option<EntryId>> = const { Cell::new(None) };
    /// What [`forward`] last said, and when that was by the monotonic clock.
    static FORWARD: Cell<Option<(u64, u64)>> = const { Cell::new(None) };
    /// Where this instance notes the ids that it gives out.
    static PLACE: OnceCell<u64> = const { OnceCell::new() };
}

/// Takes note of the greatest id of all, in the queue and set aside.
pub fn seen(newest: Option<EntryId>) {
    NEWEST.set(NEWEST.get().max(newest));
}

/// The wall clock's time in Unix nanoseconds, or what it would be had nobody set the clock back since this instance
/// first asked. Two that queue at the same moment do not see each other's notes, and where they share a place, one note
/// overwrites the other: as long as nobody's time goes back, whatever comes after them is greater than both.
pub fn forward(now: SystemTime) -> u64 {
    let (wall, monotonic) = (clock::unix_nanos(now), monotonic_clock::now());
    let moved_on = |(time, at): (u64, u64)| time.saturating_add(monotonic.saturating_sub(at));
    let time = FORWARD.get().map_or(wall, |last| wall.max(moved_on(last)));
    FORWARD.set(Some((time, monotonic)));
    time
}

/// An id greater than every one in the queue or set aside, also when the clock went back. The first instance since the machine was
/// started looks through the names (each does, where the host does not say when that was); [`layout::NEWEST`]
/// tells what was given out since. Each has a place of its own in there, so that nobody overwrites a greater one. (The
/// directory's time would not do: whatever changes in there after the clock went back hides that a later id was given out.)
fn next_id(queue: &Queue, boot: Option<&str>, now: SystemTime) -> Result<EntryId> {
    let now = forward(now);
    // An id without a note is not given out: who comes later believes the notes.
    let written = notes(queue)?;
    let last = noted(&written).max();
    let mut newest = NEWEST.get().max(last);
    let mark = || boot.map(|boot| format!("boot {:018x}\n", xxh3_64(boot.as_bytes())));
    let complete = || mark().is_some_and(|mark| written.starts_with(mark.as_bytes()));
    let look = last.is_none() || NEWEST.get().is_none() && !complete();
    if look {
        queue.names(|name, _| {
            if let Name::Pending(id) | Name::Conflict(id, _) = layout::parse(name) {
                newest = newest.max(Some(id));
            }
        })?;
        newest = newest.max(locate::newest(queue)?);
        // That may have taken long. What others have noted meanwhile may stand in this one's place, and is not to be lost.
        newest = newest.max(noted(&notes(queue)?).max());
    }
    let id = EntryId::after(newest, now, get_random_u64() as u32);
    // The first is the mark's.
    let place = PLACE.with(|place| *place.get_or_init(|| 1 + get_random_u64() % (layout::NOTE_PLACES - 1)));
    // Not synced: after a power failure somebody looks through the names before anything else is believed.
    if let Some(file) = queue.newest()? {
        let doing = || format!("cannot write {}", layout::NEWEST);
        file.write(format!("{id}\n").as_bytes(), place * layout::NOTE_LEN as u64)
            .map_err(|code| Fault { doing: doing(), code })?;
        // After the note. Without it, the next instance looks through the names too, and no more.
        if look && let Some(mark) = mark() {
            let _ = file.write(mark.as_bytes(), 0);
        }
    }
    NEWEST.set(Some(id));
    Ok(id)
}
