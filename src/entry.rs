//! A pending entry, and how it is read: what can be sent, and why the rest cannot.

use crate::dir::{CHUNK, DescriptorType, Dir, ErrorCode, Fault, File, kind_name};
use crate::exchange::Content;
use crate::id::EntryId;
use crate::layout::{ABANDONED_AFTER, BODY, MAX_RECORD, META, STATE};
use crate::meta::{Meta, Unusable};
use crate::precondition::{Base, Validator};
use crate::queue::Queue;
use crate::state::State;
use crate::unloadable::Unloadable;
use crate::{clock, enqueue, error};
use xxhash_rust::xxh3::Xxh3;

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

    /// Whether its author named a version, or it inherited one: then it may continue an earlier edit.
    pub fn is_based(&self) -> bool {
        Base::of(&self.meta) != Base::Any || self.base() != Base::Any
    }

    /// Whether it adds something to its resource, whatever that is: a POST without a base.
    pub fn is_addition(&self) -> bool {
        self.meta.method == "POST" && self.base() == Base::Any
    }
}

impl Queue {
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
    match clock::age(stat.data_modification_timestamp) {
        Some(age) if age < ABANDONED_AFTER => Unloadable::InProgress(age),
        _ => Unloadable::Damaged("meta.json is missing".into()),
    }
}

/// Reads an entry's state.json.
pub fn state(dir: &Dir, name: &str) -> std::result::Result<State, Unloadable> {
    match dir.read(&format!("{name}/{STATE}"), MAX_RECORD) {
        Ok(json) => State::parse(&json).map_err(|e| Unloadable::Damaged(error::describe(&e))),
        Err(fault) if fault.is_missing() => Ok(State::default()),
        Err(fault) => Err(unreadable(fault)),
    }
}

/// A fault in reading an entry's file: damage where trying again is pointless, else trouble of the machine.
fn unreadable(fault: Fault) -> Unloadable {
    match fault.code {
        ErrorCode::Access => Unloadable::Denied(fault.to_string()),
        ErrorCode::Loop
        // How wasmtime says that what was to be read is a directory.
        | ErrorCode::BadDescriptor
        | ErrorCode::IsDirectory
        | ErrorCode::NotDirectory
        | ErrorCode::Invalid
        | ErrorCode::NotPermitted
        | ErrorCode::FileTooLarge => Unloadable::Damaged(fault.to_string()),
        _ => Unloadable::Io(fault.into()),
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
            return Ok(enqueue::digest(&hash));
        }
    }
}
