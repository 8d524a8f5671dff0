//! Setting entries aside: conflicts, rejected and corrupt entries; and what is done about them afterwards.

use crate::ahead::Ahead;
use crate::bindings::exports::zddc::outbox::queue::Keep;
use crate::bindings::types::{Item, Place, Reply as WitReply, Request};
use crate::clock;
use crate::config::Config;
use crate::dir::{DescriptorType, Dir};
use crate::enqueue::{self, Body};
use crate::exchange::Reply;
use crate::id::EntryId;
use crate::layout::{
    self, BODY, CONFLICT, CORRUPT, MAX_RECORD, META, Name, REASON, REJECTED, RESPONSE, STATE, parse_aside,
};
use crate::meta::{Meta, reason_in, to_json};
use crate::pass::Pass;
use crate::precondition::{Base, Validator};
use crate::queue::{self, Entry, PAGE, Queue};
use crate::response::Response;
use crate::state::State;
use crate::unloadable::Unloadable;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::time::SystemTime;
use wasi::io::streams::InputStream;
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
    queue.sync_dir().inspect_err(|_| put_back(queue, &queue.dir, &to, id))
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
        let _ = sync_entry(queue, &queue.dir, &name);
        return aside(queue, id, CORRUPT);
    }
    let corrupt = queue.dir.open_or_create(CORRUPT)?;
    let wrapper = wrapper(&corrupt, id)?;
    let path = format!("{wrapper}/{REASON}");
    corrupt.remove(&path)?;
    corrupt.write(&path, reason.as_bytes(), queue.sync)?;
    // It must not be durably gone from the queue before there is durably a place for it.
    sync_entry(queue, &corrupt, &wrapper)?;
    sync_both(queue, &corrupt, &queue.dir)?;
    let moved = corrupt.open(&wrapper)?;
    queue.dir.rename(&name, &moved, FOUND)?;
    sync_both(queue, &moved, &queue.dir).inspect_err(|_| {
        let _ = moved.rename(FOUND, &queue.dir, &name);
    })
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

/// Makes the names in an entry's directory durable.
fn sync_entry(queue: &Queue, dir: &Dir, name: &str) -> Result<()> {
    match queue.sync {
        true => Ok(dir.open(name)?.sync()?),
        false => Ok(()),
    }
}

/// Undoes [`move_aside`] after a failed sync: which of both places is durable is not known, and either is a right one,
/// but here and now the entry is in one place, the one that the caller is told.
fn put_back(queue: &Queue, from: &Dir, name: &str, id: EntryId) {
    let _ = from.rename(name, &queue.dir, &id.to_string());
}

fn aside(queue: &Queue, id: EntryId, place: &str) -> Result<()> {
    let to = queue.dir.open_or_create(place)?;
    let name = move_aside(&queue.dir, &id.to_string(), &to, &format!("{id}."))?;
    sync_both(queue, &to, &queue.dir).inspect_err(|_| put_back(queue, &to, &name, id))
}

/// Makes a move from one directory to another durable.
fn sync_both(queue: &Queue, new: &Dir, old: &Dir) -> Result<()> {
    if queue.sync {
        // The new name first: a crash in between then shows the entry twice rather than nowhere.
        new.sync()?;
        old.sync()?;
    }
    Ok(())
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
    written.and_then(|()| sync_entry(queue, &queue.dir, &id.to_string())).inspect_err(|_| {
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

/// An entry wherever it is: the directory that holds it, its name there, and what that means.
pub struct Located {
    dir: Option<Dir>,
    name: String,
    id: EntryId,
    place: Place,
    stamp: Option<String>,
}

impl Located {
    fn dir<'a>(&'a self, queue: &'a Queue) -> &'a Dir {
        self.dir.as_ref().unwrap_or(&queue.dir)
    }

    fn path(&self, file: &str) -> String {
        format!("{}/{file}", self.name)
    }
}

/// Where entries are set aside, but for conflicts.
const ASIDE: [(&str, Place); 2] = [(REJECTED, Place::Rejected), (CORRUPT, Place::Corrupt)];

/// The greatest id in `rejected/` and `corrupt/`: what is put back is in the queue under its old one.
pub fn newest(queue: &Queue) -> Result<Option<EntryId>> {
    let mut newest = None;
    for (place, _) in ASIDE {
        queue.each_aside(place, |_, id, _| newest = newest.max(Some(id)))?;
    }
    Ok(newest)
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

/// Finds an entry by its name, or by its id wherever it is: pending, then set aside, the newest first.
pub fn locate(queue: &Queue, wanted: &str) -> Result<Located> {
    let missing = || Error::NoSuchEntry(wanted.into());
    // rejected/<id>.<ts> and corrupt/<id>.<ts> are names too: that is how the directories read.
    let bare = wanted.rsplit_once('/').map_or(wanted, |(_, bare)| bare);
    if let Some(id) = EntryId::parse(bare) {
        match queue.dir.stat(bare) {
            Ok(_) => {
                return Ok(Located { dir: None, name: bare.into(), id, place: Place::Pending, stamp: None });
            }
            Err(fault) if fault.is_missing() => {}
            Err(fault) => return Err(fault.into()),
        }
    }
    let matches = |name: &str, id: EntryId| name == bare || id.to_string() == bare;
    let mut best: Option<(Option<&str>, String, EntryId, Place, String)> = None;
    let mut offer = |sub, name: &str, id, place, stamp: &str| {
        if matches(name, id) && best.as_ref().is_none_or(|b| b.4.as_str() < stamp) {
            best = Some((sub, name.to_owned(), id, place, stamp.to_owned()));
        }
    };
    queue.names(|name, _| {
        if let Name::Conflict(id, stamp) = layout::parse(name) {
            offer(None, name, id, Place::Conflict, stamp);
        }
    })?;
    let mut listed = Ok(());
    for (sub, place) in ASIDE {
        let each = queue.each_aside(sub, |name, id, stamp| offer(Some(sub), name, id, place, stamp));
        listed = listed.and(each);
    }
    let Some((sub, name, id, place, stamp)) = best else {
        // It may be where nothing can be listed.
        return listed.and_then(|()| Err(missing()));
    };
    let dir = sub.map(|sub| queue.dir.open(sub)).transpose()?;
    Ok(Located { dir, name, id, place, stamp: Some(stamp) })
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
        entry: meta.map(|meta| queue::describe(at.id, meta, state.unwrap_or_default(), body_len)),
        since: at.stamp.as_deref().and_then(clock::expand_compact),
        reason: response.as_ref().map(|r| r.reason.clone()).or_else(reason).or(unreadable),
        validator: response.as_ref().map(|r| queue::name(&r.validator())),
        reply: response.as_mut().map(|r| WitReply {
            status: r.status,
            headers: std::mem::take(&mut r.headers),
            body_start: std::mem::take(&mut r.body_start),
        }),
        current: response.and_then(|r| r.current).map(Into::into),
    }
}

/// What is wrong with an entry's response.json, if anything. That there is none is for the caller to judge.
pub fn check_response(dir: &Dir, name: &str) -> Option<String> {
    let wrong = |what: &dyn std::fmt::Display| Some(format!("{RESPONSE}: {what}"));
    match dir.read(&format!("{name}/{RESPONSE}"), MAX_RECORD) {
        Ok(json) => wrong(&serde_json::from_slice::<Response>(&json).err()?),
        Err(fault) if fault.is_missing() => None,
        Err(fault) => wrong(&fault.code.name()),
    }
}

/// The reply that ended an entry's way; none where there is none, as in an entry that was put back by `retry`.
fn response(queue: &Queue, at: &Located) -> Result<Option<Response>> {
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

/// A stream of an entry's body.
pub fn read_body(queue: &Queue, name: &str) -> Result<wasi::io::streams::InputStream> {
    let at = locate(queue, name)?;
    let path = at.path(BODY);
    let (file, _) = at.dir(queue).open_file(&path)?;
    file.stream().map_err(|code| Error::Io(format!("cannot read {path}: {}", code.name())))
}

/// Ends a conflict. `mine` queues the write again on top of the version that the conflict shows.
pub fn resolve(config: &Config, queue: &Queue, name: &str, keep: Keep) -> Result<Option<EntryId>> {
    let at = conflict_named(queue, name)?;
    let queued = match keep {
        Keep::Theirs => None,
        Keep::Mine => Some(requeue(config, queue, &at, None)?),
    };
    end(queue, &at, queued)?;
    Ok(queued)
}

/// Ends a conflict with a merged body.
pub fn resolve_with(config: &Config, queue: &Queue, name: &str, body: &InputStream) -> Result<EntryId> {
    let at = conflict_named(queue, name)?;
    let queued = requeue(config, queue, &at, Some(body))?;
    end(queue, &at, Some(queued))?;
    Ok(queued)
}

/// Removes a conflict whose write was queued again. A crash before this leaves it beside the new entry, and so does a disk
/// that fails: shown twice, lost never.
fn end(queue: &Queue, at: &Located, queued: Option<EntryId>) -> Result<()> {
    let ended = queue.discard(&queue.dir, &at.name);
    if let (Err(Error::NoSuchEntry(_)), Some(id)) = (&ended, queued) {
        // Somebody else has ended it meanwhile, and what he decided holds. Where a pass has sent the new entry by now, that
        // cannot be helped.
        let _ = queue.discard(&queue.dir, &id.to_string());
    }
    ended
}

fn conflict_named(queue: &Queue, name: &str) -> Result<Located> {
    let at = locate(queue, name)?;
    match at.place {
        Place::Conflict => Ok(at),
        _ => Err(Error::WrongPlace(format!("{name} is no conflict"))),
    }
}

/// Queues a conflict again, with this body in place of its own.
fn requeue(config: &Config, queue: &Queue, at: &Located, body: Option<&InputStream>) -> Result<EntryId> {
    let meta = at.dir(queue).read(&at.path(META), MAX_RECORD).ok();
    let meta = meta.and_then(|json| Meta::parse(at.id, &json).ok());
    let meta = meta.ok_or_else(|| Error::Io(format!("{}: meta.json cannot be read", at.name)))?;
    let mut request = Request {
        method: meta.method.clone(),
        uri: meta.raw_uri.clone(),
        content_type: meta.content_type.clone(),
        headers: meta.headers.clone(),
        base_mod_time: None,
        base_etag: None,
        create: false,
    };
    match response(queue, at)?.map_or(Validator::Unknown, |response| response.validator()).base() {
        Base::Etag(tag) => request.base_etag = Some(tag),
        Base::Modified(at) => request.base_mod_time = Some(clock::rfc3339(at)),
        Base::Absent => request.create = true,
        Base::Any => {
            return Err(Error::NoValidator(format!(
                "{}: the server named no version, so nothing can be put on top of it safely; 'outbox retry' sends the write as it was queued",
                at.name
            )));
        }
    }
    let stored = at.path(BODY);
    let body = body.map_or(Body::Stored(at.dir(queue), &stored, &meta), Body::Stream);
    enqueue::enqueue(config, queue, &request, body)
}

/// How often a pending entry's state is tried to be changed while a pass changes it, too.
const TRIES: u32 = 4;

/// Makes a pending entry due now.
fn release(queue: &Queue, id: EntryId, name: &str) -> Result<()> {
    for _ in 0..TRIES {
        let was = match queue.load(id) {
            Ok(entry) => entry.state,
            Err(Unloadable::Gone) => return Err(Error::NoSuchEntry(name.into())),
            Err(_) => return Err(Error::WrongPlace(format!("{name} cannot be read"))),
        };
        let mut state = State { not_before: None, ..was.clone() };
        // It is ambiguous no longer; that it may have been sent stays known. What is under way for the first time is not
        // ambiguous yet: nobody was asked.
        if state.in_flight && state.last_error.take_if(|why| why.ends_with(Pass::AMBIGUOUS)).is_some() {
            state.in_flight = false;
            state.attempts = state.attempts.max(1);
        }
        if queue.swap_state(id, &was, &state)? {
            return Ok(());
        }
    }
    Err(Error::Io(format!("{name} is being sent just now; try again")))
}

/// Makes an entry due now, or puts a conflict or a rejected entry back in its old place.
pub fn retry(queue: &Queue, name: &str) -> Result<()> {
    let at = locate(queue, name)?;
    let dir = at.dir(queue);
    match at.place {
        Place::Pending => release(queue, at.id, name),
        Place::Corrupt => Err(Error::WrongPlace(format!("{name} is corrupt; show it, mend or drop it"))),
        Place::Conflict | Place::Rejected => {
            let validator = match queue::state(dir, &at.name) {
                Ok(state) => state.validator,
                // Where it is damaged, nothing is known of it.
                Err(Unloadable::Damaged(_)) => None,
                Err(why) => {
                    let why = why.reason().unwrap_or_default();
                    return Err(Error::Io(format!("{name} cannot be put back: {why}")));
                }
            };
            if validator.is_some() {
                // The version that it inherited from an edit before it.
                let state = State { validator, ..State::default() };
                queue.replace_state(dir, &at.path(STATE), &state)?;
            } else {
                dir.remove(&at.path(STATE))?;
            }
            sync_entry(queue, dir, &at.name)?;
            let refusal = dir.read(&at.path(RESPONSE), MAX_RECORD).ok();
            let id = at.id.to_string();
            dir.rename(&at.name, &queue.dir, &id)?;
            let synced = match &at.dir {
                Some(place) => sync_both(queue, &queue.dir, place),
                None => queue.sync_dir(),
            };
            synced.inspect_err(|_| _ = queue.dir.rename(&id, dir, &at.name))?;
            // Not before: a conflict that is back in its place would have lost the server's version. A pass may have written
            // another one meanwhile.
            let path = format!("{id}/{RESPONSE}");
            if queue.dir.read(&path, MAX_RECORD).ok() == refusal {
                let _ = queue.dir.remove(&path);
            }
            Ok(())
        }
    }
}

/// A pending entry that inherits a version from one that is dropped.
struct Heir {
    id: EntryId,
    was: State,
    now: State,
}

impl Heir {
    fn save(&self, queue: &Queue) -> Result<()> {
        match queue.swap_state(self.id, &self.was, &self.now)? {
            true => sync_entry(queue, &queue.dir, &self.id.to_string()),
            // Something newer was handed on to it meanwhile, or it has gone.
            false => Ok(()),
        }
    }
}

/// The edits that would have followed this pending one, and follow the one before it when it is dropped.
fn heirs(queue: &Queue, id: EntryId) -> Result<Vec<Heir>> {
    let Ok(entry) = queue.load(id) else { return Ok(Vec::new()) };
    let Some(validator) = &entry.state.validator else { return Ok(Vec::new()) };
    let mut ahead = Ahead::list(queue)?;
    ahead.skip_to(id);
    let (ids, _) = ahead.successors(queue, &entry);
    let heir = |id| {
        let was = ahead.entry(id)?.state.clone();
        Some(Heir { id, now: State { validator: Some(validator.clone()), ..was.clone() }, was })
    };
    Ok(ids.into_iter().filter_map(heir).collect())
}

/// Removes an entry for good.
pub fn drop_entry(queue: &Queue, name: &str) -> Result<()> {
    let at = locate(queue, name)?;
    let heirs = match at.place {
        Place::Pending => heirs(queue, at.id)?,
        _ => Vec::new(),
    };
    let mut later = Vec::new();
    for heir in heirs {
        // Whoever has delivered it meanwhile has handed on what that made.
        if queue.is_gone(at.id) {
            break;
        }
        match heir.save(queue) {
            // What is dropped makes room. If the process dies in between, there is a conflict at worst.
            Err(Error::NoSpace) => later.push(heir),
            done => done?,
        }
    }
    queue.discard(at.dir(queue), &at.name)?;
    for heir in later {
        let _ = heir.save(queue);
    }
    Ok(())
}
