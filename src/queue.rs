//! The queue on disk: what is in it, and how entries are read, annotated and removed.

use crate::bindings::exports::zddc::outbox::queue::Counts;
use crate::bindings::types;
use crate::clock;
use crate::config::Config;
use crate::dir::{CHUNK, DescriptorType, Dir, ErrorCode, Fault, File, kind_name};
use crate::enqueue;
use crate::exchange::Content;
use crate::id::EntryId;
use crate::layout::{
    self, ABANDONED_AFTER, BODY, CORRUPT, MAX_RECORD, META, Name, REJECTED, STAGING, STATE, SWEPT,
};
use crate::meta::{Meta, Unusable, to_json};
use crate::precondition::{Base, Validator};
use crate::staged::Ahead;
use crate::state::State;
use crate::unloadable::Unloadable;
use crate::{Error, Result};
use std::cell::{Cell, OnceCell};
use std::time::{Duration, SystemTime};
use wasi::clocks::monotonic_clock;
use wasi::random::random::get_random_bytes;
use xxhash_rust::xxh3::Xxh3;

/// How long a sweep does not look again for what a crash has left, in nanoseconds.
const LOOK_AGAIN: u64 = 60_000_000_000;

/// The queue.
#[derive(Debug)]
pub struct Queue {
    /// ROOT, where cached files may be.
    pub root: Dir,
    /// `.zddc-outbox`.
    pub dir: Dir,
    /// Whether writes are synced.
    pub sync: bool,
    /// What is staged ahead.
    pub ahead: Ahead,
    staging: OnceCell<Dir>,
    newest: OnceCell<File>,
    /// When a sweep last looked for what a crash has left. Monotonic, in nanoseconds.
    looked_at: Cell<Option<u64>>,
}

/// Bytes of records that a page of entries has at most, unless its first alone has more: all of them at once would not fit
/// in memory.
pub const PAGE: u64 = 2 * 1024 * 1024;

/// A pending entry, read and found sound. Its body is looked at when it is opened.
#[derive(Debug)]
pub struct Entry {
    /// Its id.
    pub id: EntryId,
    /// What to send.
    pub meta: Meta,
    /// What happened so far.
    pub state: State,
}

impl Entry {
    /// About how many bytes it takes in memory.
    pub fn weight(&self) -> usize {
        let State { not_before, last_error, validator, .. } = &self.state;
        let version = match validator {
            Some(Validator::Etag(text) | Validator::LastModified(text)) => text.len(),
            _ => 0,
        };
        let texts = [not_before, last_error].into_iter().flatten().map(String::len).sum::<usize>();
        self.meta.weight() + texts + version
    }

    /// The version that it is to replace: what an earlier edit of ours made, or else what its author had seen.
    pub fn base(&self) -> Base {
        self.state.validator.as_ref().map_or_else(|| Base::of(&self.meta), |validator| validator.base())
    }

    /// Whether it adds something to its resource, whatever that is: a POST without a base.
    pub fn is_addition(&self) -> bool {
        self.meta.method == "POST" && self.base() == Base::Any
    }
}

impl Queue {
    /// Opens the queue, making its directory where it is missing. (The bundled host has made it before, with
    /// mode 0700, which a guest cannot set.)
    pub fn open(config: &Config) -> Result<Queue> {
        // As early as can be: the clock may be set before an id is given out.
        let _ = enqueue::forward(SystemTime::now());
        let root = Dir::root()?;
        let dir = match root.open(layout::OUTBOX_DIR) {
            Err(fault) if fault.is_missing() => {
                let dir = root.open_or_create(layout::OUTBOX_DIR)?;
                if config.sync {
                    root.sync()?;
                }
                dir
            }
            opened => opened?,
        };
        Ok(Queue {
            root,
            dir,
            sync: config.sync,
            ahead: Ahead::default(),
            staging: OnceCell::new(),
            newest: OnceCell::new(),
            looked_at: Cell::new(None),
        })
    }

    /// Calls `each` with every name in the queue's directory that is UTF-8; how many are not.
    pub fn names(&self, mut each: impl FnMut(&str, DescriptorType)) -> Result<usize> {
        Ok(self.dir.list(|name, kind| each(&name, kind))?)
    }

    /// The names that stand for pending entries, in queue order. Whatever has such a name counts, a file
    /// or a link too: [`Queue::load`] finds it damaged.
    pub fn ids(&self) -> Result<Vec<EntryId>> {
        let mut ids = Vec::new();
        self.names(|name, _| {
            if let Name::Pending(id) = layout::parse(name) {
                ids.push(id);
            }
        })?;
        ids.sort_unstable();
        Ok(ids)
    }

    /// Reads a pending entry.
    pub fn load(&self, id: EntryId) -> std::result::Result<Entry, Unloadable> {
        Self::load_at(&self.dir, &id.to_string(), id)
    }

    /// Reads an entry wherever it is.
    pub fn load_at(dir: &Dir, name: &str, id: EntryId) -> std::result::Result<Entry, Unloadable> {
        let meta = match dir.read(&format!("{name}/{META}"), MAX_RECORD) {
            Ok(json) => Meta::parse(id, &json).map_err(|unusable| match unusable {
                Unusable::Newer(format) => Unloadable::Newer(format),
                Unusable::Damaged(reason) => Unloadable::Damaged(reason),
            })?,
            Err(fault) => return Err(without_meta(dir, name, fault)),
        };
        let state = state(dir, name)?;
        Ok(Entry { id, meta, state })
    }

    /// Whether a pending entry was removed or set aside by somebody else.
    pub fn is_gone(&self, id: EntryId) -> bool {
        self.dir.stat(&id.to_string()).is_err_and(|fault| fault.is_missing())
    }

    /// Opens an entry's body and checks its length; its digest is for whoever reads it.
    pub fn open_body(&self, entry: &Entry) -> std::result::Result<(File, u64), Unloadable> {
        Self::open_body_at(&self.dir, &entry.id.to_string(), entry)
    }

    /// The same wherever the entry is.
    pub fn open_body_at(
        dir: &Dir,
        name: &str,
        entry: &Entry,
    ) -> std::result::Result<(File, u64), Unloadable> {
        let damaged = |reason: String| Err(Unloadable::Damaged(reason));
        let path = format!("{name}/{BODY}");
        let (file, size) = match dir.open_file(&path) {
            Ok(opened) => opened,
            // It may have left the queue meanwhile, whole.
            Err(fault) if fault.is_missing() && dir.stat(name).is_err_and(|gone| gone.is_missing()) => {
                return Err(Unloadable::Gone);
            }
            Err(fault) if fault.is_missing() => return damaged("body.bin is missing".into()),
            Err(fault) => return Err(unreadable(fault)),
        };
        match entry.meta.body_len {
            Some(len) if len != size => {
                damaged(format!("body.bin has {size} bytes where meta.json says {len}"))
            }
            _ => Ok((file, size)),
        }
    }

    /// What an entry's body is: as meta.json says, or else by reading it.
    pub fn content(&self, entry: &Entry) -> std::result::Result<Content, Unloadable> {
        let coding = entry.meta.header("content-encoding").map(Into::into);
        // What is sent is checked against these: the file, which may have become unreadable, says nothing more.
        if let (Some(len), Some(digest)) = (entry.meta.body_len, entry.meta.known_digest()) {
            return Ok(Content { len, digest: digest.to_owned(), coding });
        }
        let (file, len) = self.open_body(entry)?;
        let digest = match entry.meta.known_digest() {
            Some(digest) => digest.to_owned(),
            None => digest_of(&entry.id.to_string(), &file)?,
        };
        Ok(Content { len, digest, coding })
    }

    /// Whether an entry's body can be read, and is as it was queued.
    pub fn is_whole(&self, entry: &Entry) -> bool {
        self.open_body(entry).is_ok_and(|(file, _)| {
            let intact = |known: &str| digest_of(&entry.id.to_string(), &file).is_ok_and(|d| d == known);
            entry.meta.known_digest().is_none_or(intact)
        })
    }

    /// Replaces an entry's state.json. A power failure may bring the old one back.
    pub fn save_state(&self, id: EntryId, state: &State) -> Result<()> {
        self.replace_state(&self.dir, &format!("{id}/{STATE}"), state)
    }

    /// The same wherever the entry is.
    pub fn replace_state(&self, dir: &Dir, path: &str, state: &State) -> Result<()> {
        self.put_state(dir, path, state, || true).map(|_| ())
    }

    /// The same for a pending entry, unless somebody else has changed it since it was this, or taken the entry; whether it
    /// was replaced.
    pub fn swap_state(&self, id: EntryId, was: &State, state: &State) -> Result<bool> {
        let same = || self.load(id).is_ok_and(|now| now.state == *was);
        self.put_state(&self.dir, &format!("{id}/{STATE}"), state, same)
    }

    fn put_state(&self, dir: &Dir, path: &str, state: &State, may: impl FnOnce() -> bool) -> Result<bool> {
        let staging = self.staging()?;
        // Under a name of its own: a pass and an operator may write the same entry's at once.
        let new = format!("{STATE}.{}", hex::encode(get_random_bytes(8)));
        let written = staging.write(&new, &to_json(state), self.sync);
        // As late as can be: writing takes the longest.
        let put = written.and_then(|()| match may() {
            true => staging.rename(&new, dir, path).map(|()| true),
            false => Ok(false),
        });
        if !matches!(put, Ok(true)) {
            // Half a file helps nobody, least of all on a full disk.
            let _ = staging.unlink(&new);
        }
        Ok(put?)
    }

    /// The same, durable when it returns.
    pub fn save_state_durably(&self, id: EntryId, state: &State) -> Result<()> {
        self.save_state(id, state)?;
        match self.sync {
            true => Ok(self.dir.open(&id.to_string())?.sync()?),
            false => Ok(()),
        }
    }

    /// Takes something out of the queue: one rename into `.staging`, so that no half of it is ever visible.
    /// What is left takes space only. [`Queue::erase`] frees that once the rename is durable, or the sweep
    /// after a crash.
    pub fn retire(&self, from: &Dir, name: &str) -> Result<()> {
        let staging = self.staging()?;
        match from.rename(name, staging, name) {
            // A removal that failed half-way has left the name.
            Err(fault) if matches!(fault.code, ErrorCode::NotEmpty | ErrorCode::Exist) => {
                staging.remove(name)?;
                Ok(from.rename(name, staging, name)?)
            }
            // Somebody else was quicker.
            Err(fault) if fault.is_missing() && from.stat(name).is_err_and(|gone| gone.is_missing()) => {
                Err(Error::NoSuchEntry(name.into()))
            }
            renamed => Ok(renamed?),
        }
    }

    /// Deletes what was retired; what cannot be deleted now is left to the sweep. Before the rename is durable
    /// this would be wrong: after a power failure the name could be back in the queue, without its files.
    pub fn erase(&self, name: &str) {
        let Ok(staging) = self.staging() else { return };
        // The files of a common entry are known by name, which spares a listing.
        for file in [META, BODY] {
            let _ = staging.unlink(&format!("{name}/{file}"));
        }
        if staging.remove_dir(name).is_err() {
            let _ = staging.remove(name);
        }
    }

    /// Removes something for good, durably. Where that fails, it is where it was: which of both is durable is not known then,
    /// and either is a right one.
    pub fn discard(&self, from: &Dir, name: &str) -> Result<()> {
        self.retire(from, name)?;
        if self.sync
            && let Err(fault) = from.sync()
        {
            let _ = self.staging()?.rename(name, from, name);
            return Err(fault.into());
        }
        self.erase(name);
        Ok(())
    }

    /// Makes renames in the queue's directory durable.
    pub fn sync_dir(&self) -> Result<()> {
        match self.sync {
            true => Ok(self.dir.sync()?),
            false => Ok(()),
        }
    }

    /// `.staging`, made where it is missing.
    pub fn staging(&self) -> Result<&Dir> {
        if let Some(staging) = self.staging.get() {
            return Ok(staging);
        }
        let opened = self.dir.open_or_create(STAGING)?;
        Ok(self.staging.get_or_init(|| opened))
    }

    /// `.newest`, open for reading and writing; none where something else is in its place.
    pub fn newest(&self) -> Result<Option<&File>> {
        if let Some(file) = self.newest.get() {
            return Ok(Some(file));
        }
        let opened = match self.dir.open_or_create_file(layout::NEWEST) {
            Err(fault) if matches!(fault.code, ErrorCode::IsDirectory | ErrorCode::Loop) => return Ok(None),
            opened => opened?,
        };
        let fault = |code| Fault { doing: format!("cannot prepare {}", layout::NEWEST), code };
        let stat = opened.stat().map_err(fault)?;
        if stat.type_ != DescriptorType::RegularFile {
            return Ok(None);
        }
        if stat.size < layout::NOTES_LEN {
            opened.write(b"\n", layout::NOTES_LEN - 1).map_err(fault)?;
        }
        Ok(Some(self.newest.get_or_init(|| opened)))
    }

    /// Removes from `.staging` what has left the queue, and what a crash left of what was to enter it; of the latter, an
    /// instance that sweeps on and on looks for some once a minute.
    pub fn sweep(&self) -> Result<()> {
        let opened = match self.dir.open(STAGING) {
            Ok(staging) => staging,
            Err(fault) if fault.is_missing() => return Ok(()),
            Err(fault) => return Err(fault.into()),
        };
        let (mut retired, mut others) = (Vec::new(), Vec::new());
        opened.list(|name, _| match EntryId::parse(&name) {
            Some(_) => retired.push(name),
            None => others.push(name),
        })?;
        let now = monotonic_clock::now();
        if self.looked_at.get().is_some_and(|at| now.saturating_sub(at) < LOOK_AGAIN) {
            others.clear();
        } else if !others.is_empty() {
            self.looked_at.set(Some(now));
            others.retain(|name| is_abandoned(&opened, name));
        }
        if retired.is_empty() && others.is_empty() {
            return Ok(());
        }
        // Some were taken out of the queue by somebody who has not made that durable yet, or did not live to.
        self.sync_dir()?;
        for name in retired {
            self.erase(&name);
        }
        for name in &others {
            // By one rename first: whoever still writes it (the clock may have been set forward) then fails to
            // publish it, rather than publishing what is left of it.
            let swept = match name.ends_with(SWEPT) {
                true => name.clone(),
                false => format!("{name}{SWEPT}"),
            };
            // One that cannot be removed keeps no others from it.
            let _ = opened.remove(&swept);
            if swept != *name && opened.rename(name, &opened, &swept).is_ok() {
                let _ = opened.remove(&swept);
            }
        }
        Ok(())
    }

    /// How many entries are where, by their names.
    pub fn count(&self) -> Result<Counts> {
        let mut counts = Counts { pending: 0, conflicts: 0, rejected: 0, corrupt: 0, oldest: None };
        let mut oldest = None;
        self.names(|name, _| match layout::parse(name) {
            Name::Pending(id) => {
                counts.pending += 1;
                oldest = Some(oldest.map_or(id, |o: EntryId| o.min(id)));
            }
            Name::Conflict(..) => counts.conflicts += 1,
            Name::Ours | Name::Foreign => {}
        })?;
        counts.oldest = oldest.map(|id| id.to_string());
        self.each_aside(REJECTED, |_, _, _| counts.rejected += 1)?;
        self.each_aside(CORRUPT, |_, _, _| counts.corrupt += 1)?;
        Ok(counts)
    }

    /// Calls `each` with the name, id and time of everything in `rejected/` or `corrupt/`.
    pub fn each_aside(&self, place: &str, mut each: impl FnMut(&str, EntryId, &str)) -> Result<()> {
        let dir = match self.dir.open(place) {
            Err(fault) if fault.is_no_directory() => return Ok(()),
            opened => opened?,
        };
        dir.list(|name, _| {
            if let Some((id, stamp)) = layout::parse_aside(&name) {
                each(&name, id, stamp);
            }
        })?;
        Ok(())
    }

    /// Pending entries as the WIT shows them, at most `limit` of those after `after`.
    pub fn pending(&self, after: Option<EntryId>, limit: u32) -> Result<Vec<types::Entry>> {
        let ids = self.ids()?;
        let rest = ids.into_iter().filter(|id| after.is_none_or(|after| *id > after));
        let (mut entries, mut weight, mut failed) = (Vec::new(), 0, None);
        for id in rest {
            if entries.len() >= limit as usize || weight > PAGE {
                break;
            }
            match self.load(id) {
                Ok(entry) => {
                    weight += entry.weight() as u64;
                    let body_len = self.dir.stat(&format!("{id}/{BODY}")).ok().map(|stat| stat.size);
                    entries.push(describe(id, entry.meta, entry.state, body_len));
                }
                Err(Unloadable::Io(error)) => _ = failed.get_or_insert(error),
                Err(_) => {}
            }
        }
        // An empty page would say that there are no more.
        match failed {
            Some(error) if entries.is_empty() => Err(error),
            _ => Ok(entries),
        }
    }
}

/// What an entry is whose meta.json cannot be read.
fn without_meta(dir: &Dir, name: &str, fault: Fault) -> Unloadable {
    let stat = match dir.stat(name) {
        Ok(stat) => stat,
        Err(gone) if gone.is_missing() => return Unloadable::Gone,
        Err(other) => return Unloadable::Io(other.into()),
    };
    if stat.type_ != DescriptorType::Directory {
        return Unloadable::Damaged(format!("it is no directory but a {}", kind_name(stat.type_)));
    }
    if !fault.is_missing() {
        return unreadable(fault);
    }
    // Publishing is one rename, but the original makes the directory first and meta.json last.
    match age(stat.data_modification_timestamp) {
        Some(age) if age < ABANDONED_AFTER => Unloadable::InProgress,
        _ => Unloadable::Damaged("meta.json is missing".into()),
    }
}

/// Reads an entry's state.json.
pub fn state(dir: &Dir, name: &str) -> std::result::Result<State, Unloadable> {
    match dir.read(&format!("{name}/{STATE}"), MAX_RECORD) {
        Ok(json) => State::parse(&json).map_err(|e| Unloadable::Damaged(crate::guest::describe(&e))),
        Err(fault) if fault.is_missing() => Ok(State::default()),
        Err(fault) => Err(unreadable(fault)),
    }
}

/// A fault in reading an entry's file: damage where trying again is pointless, else trouble of the machine.
fn unreadable(fault: Fault) -> Unloadable {
    match fault.code {
        ErrorCode::Access => Unloadable::Denied(format!("{}: {}", fault.doing, fault.code.name())),
        ErrorCode::Loop
        // How wasmtime says that what was to be read is a directory.
        | ErrorCode::BadDescriptor
        | ErrorCode::IsDirectory
        | ErrorCode::NotDirectory
        | ErrorCode::Invalid
        | ErrorCode::NotPermitted
        | ErrorCode::FileTooLarge => Unloadable::Damaged(format!("{}: {}", fault.doing, fault.code.name())),
        _ => Unloadable::Io(fault.into()),
    }
}

/// An entry as the WIT shows it.
pub fn describe(id: EntryId, meta: Meta, state: State, body_len: Option<u64>) -> types::Entry {
    types::Entry {
        id: id.to_string(),
        // Go's zero time means none, and is not shown.
        base_mod_time: match meta.base_time() {
            Ok(Some(_)) => meta.base_mod_time,
            _ => None,
        },
        method: meta.method,
        raw_uri: meta.raw_uri,
        content_type: meta.content_type,
        headers: meta.headers,
        base_etag: meta.base_etag,
        create: meta.create,
        queued_at: meta.queued_at,
        body_len,
        body_digest: meta.body_digest,
        attempts: state.attempts,
        not_before: state.not_before,
        last_error: state.last_error,
        rebased: state.validator.as_ref().map(name),
    }
}

/// A version as the WIT names it.
pub fn name(validator: &Validator) -> types::Validator {
    match validator {
        Validator::Etag(tag) => types::Validator::Etag(tag.clone()),
        Validator::LastModified(date) => types::Validator::LastModified(date.clone()),
        Validator::Absent => types::Validator::Absent,
        Validator::Unknown => types::Validator::Unknown,
    }
}

/// The digest of a body, read from its file; `name` is its entry's.
pub fn digest_of(name: &str, file: &File) -> std::result::Result<String, Unloadable> {
    let mut hash = Xxh3::new();
    let mut offset = 0;
    loop {
        let doing = || format!("cannot read {name}/{BODY}");
        let (chunk, end) = file
            .read(offset, CHUNK as u64)
            .map_err(|code| Unloadable::Io(Fault { doing: doing(), code }.into()))?;
        hash.update(&chunk);
        offset += chunk.len() as u64;
        if end || chunk.is_empty() {
            return Ok(crate::enqueue::digest(&hash));
        }
    }
}

/// Whether something in `.staging` was left by a crash. A body that is still growing is being written, however
/// long ago it was begun.
pub fn is_abandoned(staging: &Dir, name: &str) -> bool {
    let mut youngest = None;
    for path in [format!("{name}/{BODY}"), name.to_owned()] {
        match staging.stat(&path) {
            Ok(stat) => {
                youngest = [youngest, age(stat.data_modification_timestamp)].into_iter().flatten().min()
            }
            Err(fault) if fault.is_no_directory() => {}
            // What cannot be looked at now is left for another time.
            Err(_) => return false,
        }
    }
    youngest.is_some_and(|age| age >= ABANDONED_AFTER)
}

/// How long ago something was modified, by the wall clock; zero where that is in the future.
pub fn age(modified: Option<wasi::clocks::wall_clock::Datetime>) -> Option<Duration> {
    let modified = modified?;
    let now = clock::unix_nanos(SystemTime::now());
    let then = modified.seconds.saturating_mul(1_000_000_000).saturating_add(modified.nanoseconds.into());
    Some(Duration::from_nanos(now.saturating_sub(then)))
}
