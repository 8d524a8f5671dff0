//! The queue's directory as it is in the tree: who is where.

use crate::tree::{Ino, Kind, ROOT, Tree};
use serde_json::Value;

/// The queue's directory.
pub const QUEUE: &str = ".zddc-outbox";

/// Where an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Place {
    Pending,
    Conflict,
    Rejected,
    Corrupt,
}

/// An entry found on disk.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its id.
    pub id: String,
    /// Its directory's name.
    pub name: String,
    /// Where it is.
    pub place: Place,
    /// Whatever has that name.
    pub ino: Ino,
}

/// Whether this is an entry's id.
pub fn is_id(text: &str) -> bool {
    let hex = |s: &str, len| s.len() == len && s.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    text.split_once('-').is_some_and(|(nanos, random)| hex(nanos, 16) && hex(random, 6))
}

/// The id at the start of a name of something set aside: at least 16 + 1 + 6 characters.
pub fn id_in(name: &str) -> Option<&str> {
    name.get(..23).filter(|id| is_id(id))
}

/// All entries, in the order of their names.
pub fn entries(tree: &Tree) -> Vec<Found> {
    let mut found = Vec::new();
    let list = |path: &str| tree.find(ROOT, path).and_then(|dir| tree.list(dir)).unwrap_or_default();
    for (name, ino) in list(QUEUE) {
        let Some(id) = id_in(&name).map(ToOwned::to_owned) else { continue };
        let place = match &name[23..] {
            "" => Place::Pending,
            rest if rest.starts_with(".conflict-") => Place::Conflict,
            _ => continue,
        };
        found.push(Found { id, name, place, ino });
    }
    for (sub, place) in [("rejected", Place::Rejected), ("corrupt", Place::Corrupt)] {
        for (name, ino) in list(&format!("{QUEUE}/{sub}")) {
            if let Some(id) = id_in(&name).map(ToOwned::to_owned) {
                found.push(Found { id, name, place, ino });
            }
        }
    }
    found
}

/// What is left in `.staging`.
pub fn staging(tree: &Tree) -> Vec<String> {
    let dir = tree.find(ROOT, &format!("{QUEUE}/.staging"));
    let names = dir.and_then(|dir| tree.list(dir)).unwrap_or_default();
    names.into_iter().map(|(name, _)| name).collect()
}

/// A file of an entry.
pub fn file<'a>(tree: &'a Tree, entry: &Found, name: &str) -> Option<&'a [u8]> {
    let ino = tree.find(entry.ino, name).ok()?;
    match &tree.node(ino).kind {
        Kind::File(bytes) => Some(bytes),
        _ => None,
    }
}

/// A file of an entry, as JSON.
pub fn json(tree: &Tree, entry: &Found, name: &str) -> Option<Value> {
    serde_json::from_slice(file(tree, entry, name)?).ok()
}

/// The mark of the attempt that an entry comes from, as its meta.json has it.
pub fn mark(tree: &Tree, entry: &Found) -> Option<usize> {
    let meta = json(tree, entry, "meta.json")?;
    let headers = meta.get("headers")?.as_array()?;
    headers.iter().find_map(|pair| {
        let pair = pair.as_array()?;
        (pair.first()?.as_str()? == crate::ledger::MARK).then(|| pair.get(1)?.as_str()?.parse().ok())?
    })
}
