//! What the queue shows of itself: how many entries are where, and each of them as the WIT describes it.

use crate::bindings::exports::zddc::outbox::queue::Counts;
use crate::bindings::types::{self, Item, Place, Reply};
use crate::clock;
use crate::dir::words;
use crate::id::EntryId;
use crate::layout::{
    self, BODY, CORRUPT, MAX_RECORD, META, Name, REASON, REJECTED, RESPONSE, STATE, parse_aside,
};
use crate::locate::{ASIDE, Located, locate};
use crate::meta::{Meta, reason_in};
use crate::precondition::Validator;
use crate::queue::Queue;
use crate::response::Response;
use crate::state::State;
use crate::unloadable::Unloadable;
use crate::{Error, Result};
use std::collections::BTreeMap;
use wasi::io::streams::InputStream;

/// Bytes of records that a page of entries has at most, unless its first alone has more: all of them at once would not fit
/// in memory.
const PAGE: u64 = 2 * 1024 * 1024;

impl Queue {
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

/// What was set aside, oldest first: at most `limit` of it, what comes after the name `after` where that is given.
pub fn page(queue: &Queue, after: Option<&str>, limit: u32) -> Result<Vec<Item>> {
    let after =
        after.map(|name| position(name).ok_or_else(|| Error::NoSuchEntry(name.into()))).transpose()?;
    // The first by time, then by id; the names tell both.
    let mut first = BTreeMap::new();
    let mut offer = |name: &str, id, stamp: &str, sub: Option<&'static str>, place| {
        let at = (stamp.to_owned(), id);
        if after.as_ref().is_none_or(|after| at > *after) {
            first.insert((at, sub), (name.to_owned(), place));
            if first.len() > limit as usize {
                first.pop_last();
            }
        }
    };
    queue.names(|name, _| {
        if let Name::Conflict(id, stamp) = layout::parse(name) {
            offer(name, id, stamp, None, Place::Conflict);
        }
    })?;
    for (sub, place) in ASIDE {
        queue.each_aside(sub, |name, id, stamp| offer(name, id, stamp, Some(sub), place))?;
    }
    let (mut items, mut len) = (Vec::new(), 0);
    for (((stamp, id), sub), (name, place)) in first {
        let dir = sub.map(|sub| queue.dir.open(sub)).transpose()?;
        let at = Located { dir, name, id, place, stamp: Some(stamp) };
        let records = [META, RESPONSE, STATE, REASON].map(|file| at.dir(queue).stat(&at.path(file)));
        len += records.into_iter().flatten().map(|stat| stat.size).sum::<u64>();
        if len > PAGE && !items.is_empty() {
            break;
        }
        items.push(item(queue, &at));
    }
    Ok(items)
}

/// Where a name that was set aside stands among the others: when that was, and its id.
fn position(name: &str) -> Option<(String, EntryId)> {
    let (id, stamp) = match layout::parse(name) {
        Name::Conflict(id, stamp) => (id, stamp),
        _ => parse_aside(name)?,
    };
    Some((stamp.to_owned(), id))
}

/// An entry as the WIT shows it, with as much as can be read.
pub fn item(queue: &Queue, at: &Located) -> Item {
    let dir = at.dir(queue);
    let meta = dir.read(&at.path(META), MAX_RECORD).ok().and_then(|json| Meta::parse(at.id, &json).ok());
    let unreadable = match meta {
        Some(_) => None,
        None => Queue::load_at(dir, &at.name, at.id).err().and_then(|why| why.reason()),
    };
    let state = dir.read(&at.path(STATE), MAX_RECORD).ok().and_then(|json| State::parse(&json).ok());
    let body_len = dir.stat(&at.path(BODY)).ok().map(|stat| stat.size);
    let mut response = response(queue, at).ok().flatten();
    let reason = || {
        let text = dir.read(&at.path(REASON), MAX_RECORD).ok()?;
        Some(String::from_utf8_lossy(&text).trim().to_owned())
    };
    Item {
        name: at.name.clone(),
        place: at.place,
        entry: meta.map(|meta| describe(at.id, meta, state.unwrap_or_default(), body_len)),
        since: at.stamp.as_deref().and_then(clock::expand_compact),
        reason: response.as_ref().map(|r| r.reason.clone()).or_else(reason).or(unreadable),
        validator: response.as_ref().map(|r| name(&r.validator())),
        reply: response.as_mut().map(|r| Reply {
            status: r.status,
            headers: std::mem::take(&mut r.headers),
            body_start: std::mem::take(&mut r.body_start),
        }),
        current: response.and_then(|r| r.current).map(Into::into),
    }
}

/// A stream of an entry's body.
pub fn read_body(queue: &Queue, name: &str) -> Result<InputStream> {
    let at = locate(queue, name)?;
    let path = at.path(BODY);
    let (file, _) = at.dir(queue).open_file(&path)?;
    file.stream().map_err(|code| Error::Io(format!("cannot read {path}: {}", words(code))))
}

/// The reply that ended an entry's way; none where there is none, as in an entry that was put back by `retry`.
pub fn response(queue: &Queue, at: &Located) -> Result<Option<Response>> {
    let json = match at.dir(queue).read(&at.path(RESPONSE), MAX_RECORD) {
        Ok(json) => json,
        Err(fault) if fault.is_missing() => return Ok(None),
        Err(fault) => return Err(fault.into()),
    };
    serde_json::from_slice(&json).map(Some).map_err(|error| {
        let why = reason_in(RESPONSE, &error.to_string());
        Error::Io(format!("{}: {why}; 'outbox retry' sends the write as it was queued", at.name))
    })
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
