//! Reading everything and changing nothing.

use crate::Result;
use crate::bindings::exports::zddc::outbox::queue::Finding;
use crate::dir::{DescriptorType, Dir, kind_name, words};
use crate::entry::{Entry, digest_of};
use crate::id::EntryId;
use crate::layout::{self, CORRUPT, Name, OUTBOX_DIR, REASON, REJECTED, RESPONSE, STAGING, parse_aside};
use crate::queue::Queue;
use crate::response::Response;
use crate::sweep::is_abandoned;
use crate::unloadable::Unloadable;

/// What was found so far.
#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, name: impl Into<String>, reason: impl Into<String>) {
        self.0.push(Finding { name: name.into(), reason: reason.into() });
    }

    fn add_damage(&mut self, name: String, why: Unloadable) {
        if let Some(reason) = why.reason() {
            self.add(name, reason);
        }
    }

    fn add_unspeakable(&mut self, name: &str, count: usize) {
        if count > 0 {
            self.add(name, format!("{count} names in it are not UTF-8, and none of the outbox's"));
        }
    }
}

/// What is not as it should be.
pub fn verify(queue: &Queue) -> Result<Vec<Finding>> {
    let mut found = Findings::default();
    let mut conflicts = Vec::new();
    let unspeakable = queue.names(|name, kind| match layout::parse(name) {
        Name::Foreign => found.add(name, "it is neither an entry nor anything else of the outbox's"),
        Name::Conflict(id, _) => conflicts.push((name.to_owned(), id, kind)),
        Name::Pending(_) | Name::Ours => {}
    })?;
    found.add_unspeakable(OUTBOX_DIR, unspeakable);
    for id in queue.ids()? {
        let name = id.to_string();
        match Queue::load_at(&queue.dir, &name, id).and_then(|entry| check_body(&queue.dir, &name, &entry)) {
            // Somebody is still writing it.
            Ok(()) | Err(Unloadable::InProgress(_)) => {}
            Err(why) => found.add_damage(name, why),
        }
    }
    conflicts.sort();
    for (name, id, kind) in conflicts {
        check_aside(&mut found, &queue.dir, &name, id, kind, &name);
    }
    check_rejected(&mut found, queue)?;
    check_corrupt(&mut found, queue)?;
    check_staging(&mut found, queue)?;
    Ok(found.0)
}

/// An entry that was set aside, with its reply.
fn check_aside(found: &mut Findings, dir: &Dir, name: &str, id: EntryId, kind: DescriptorType, shown: &str) {
    if kind != DescriptorType::Directory {
        return found.add(shown, format!("it is no directory but a {}", kind_name(kind)));
    }
    if let Err(why) = Queue::load_at(dir, name, id).and_then(|entry| check_body(dir, name, &entry)) {
        return found.add_damage(shown.into(), why);
    }
    if let Some(reason) = check_response(dir, name) {
        found.add(shown, reason);
    }
}

/// What is wrong with an entry's response.json, if anything. The original leaves none.
fn check_response(dir: &Dir, name: &str) -> Option<String> {
    let wrong = |what: &dyn std::fmt::Display| Some(format!("{RESPONSE}: {what}"));
    match dir.read(&format!("{name}/{RESPONSE}"), layout::MAX_RECORD) {
        Ok(json) => wrong(&serde_json::from_slice::<Response>(&json).err()?),
        Err(fault) if fault.is_missing() => None,
        Err(fault) => wrong(&words(fault.code)),
    }
}

/// What is in a directory of the outbox.
struct Ours {
    dir: Dir,
    names: Vec<(String, DescriptorType)>,
}

/// A directory of the outbox, if it is there and is one.
fn open_ours(found: &mut Findings, queue: &Queue, name: &str) -> Result<Option<Ours>> {
    let kind = match queue.dir.stat(name) {
        Ok(stat) => stat.type_,
        Err(fault) if fault.is_missing() => return Ok(None),
        Err(fault) => return Err(fault.into()),
    };
    if kind != DescriptorType::Directory {
        found.add(name, format!("it is no directory but a {}", kind_name(kind)));
        return Ok(None);
    }
    let dir = queue.dir.open(name)?;
    let mut names = Vec::new();
    let unspeakable = dir.list(|name, kind| names.push((name, kind)))?;
    found.add_unspeakable(name, unspeakable);
    names.sort();
    Ok(Some(Ours { dir, names }))
}

fn check_rejected(found: &mut Findings, queue: &Queue) -> Result<()> {
    let Some(Ours { dir, names }) = open_ours(found, queue, REJECTED)? else { return Ok(()) };
    for (name, kind) in names {
        let shown = format!("{REJECTED}/{name}");
        match parse_aside(&name) {
            Some((id, _)) => check_aside(found, &dir, &name, id, kind, &shown),
            None => found.add(shown, "it is no entry"),
        }
    }
    Ok(())
}

/// What is in there is damaged, with the reason.
fn check_corrupt(found: &mut Findings, queue: &Queue) -> Result<()> {
    let Some(Ours { dir, names }) = open_ours(found, queue, CORRUPT)? else { return Ok(()) };
    for (name, _) in names {
        let shown = format!("{CORRUPT}/{name}");
        if parse_aside(&name).is_none() {
            found.add(shown, "it is no entry");
            continue;
        }
        match dir.read(&format!("{name}/{REASON}"), layout::MAX_RECORD) {
            Ok(reason) => found.add(shown, String::from_utf8_lossy(&reason).trim()),
            Err(_) => found.add(shown, format!("it was set aside as damaged; {REASON} cannot be read")),
        }
    }
    Ok(())
}

fn check_staging(found: &mut Findings, queue: &Queue) -> Result<()> {
    let Some(Ours { dir, names }) = open_ours(found, queue, STAGING)? else { return Ok(()) };
    for (name, _) in names {
        // What has left the queue, or the place where it was set aside, is deleted just now, however old it is.
        let left = EntryId::parse(name.split('.').next().unwrap_or_default()).is_some();
        if !left && is_abandoned(&dir, &name) {
            let shown = format!("{STAGING}/{name}");
            found.add(shown, "it was left by a crash more than an hour ago; the next replay removes it");
        }
    }
    Ok(())
}

/// What is wrong with a body, if anything.
fn check_body(dir: &Dir, name: &str, entry: &Entry) -> std::result::Result<(), Unloadable> {
    let (file, len) = Queue::open_body_at(dir, name, entry)?;
    if entry.meta.known_digest().is_none() {
        return Ok(());
    }
    let damage = entry.meta.damage_in_body(len, &digest_of(name, &file)?);
    damage.map_or(Ok(()), |damage| Err(Unloadable::Damaged(damage)))
}
