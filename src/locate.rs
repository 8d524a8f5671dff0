//! Finds an entry by what an operator calls it, wherever it is.

use crate::bindings::types::Place;
use crate::dir::Dir;
use crate::id::EntryId;
use crate::layout::{self, CORRUPT, Name, REJECTED};
use crate::queue::Queue;
use crate::{Error, Result};

/// An entry wherever it is: the directory that holds it, its name there, and what that means.
pub struct Located {
    /// The directory that holds it, unless that is the queue's own.
    pub dir: Option<Dir>,
    /// Its name there.
    pub name: String,
    /// Its id.
    pub id: EntryId,
    /// What being there means.
    pub place: Place,
    /// When it was set aside, as its name says.
    pub stamp: Option<String>,
}

impl Located {
    /// The directory that holds it.
    pub fn dir<'a>(&'a self, queue: &'a Queue) -> &'a Dir {
        self.dir.as_ref().unwrap_or(&queue.dir)
    }

    /// A file of it, from there.
    pub fn path(&self, file: &str) -> String {
        format!("{}/{file}", self.name)
    }
}

/// Where entries are set aside, but for conflicts.
pub const ASIDE: [(&str, Place); 2] = [(REJECTED, Place::Rejected), (CORRUPT, Place::Corrupt)];

/// The greatest id in `rejected/` and `corrupt/`: what is put back is in the queue under its old one.
pub fn newest(queue: &Queue) -> Result<Option<EntryId>> {
    let mut newest = None;
    for (place, _) in ASIDE {
        queue.each_aside(place, |_, id, _| newest = newest.max(Some(id)))?;
    }
    Ok(newest)
}

/// Finds an entry by its name, or by its id wherever it is: pending, then set aside, the newest first.
pub fn locate(queue: &Queue, wanted: &str) -> Result<Located> {
    let missing = || Error::NoSuchEntry(wanted.into());
    // rejected/<id>.<ts> and corrupt/<id>.<ts> are names too: that is how the directories read.
    let (only, bare) = match wanted.split_once('/') {
        Some((place, bare)) if ASIDE.iter().any(|(aside, _)| *aside == place) => (Some(place), bare),
        Some(_) => return Err(missing()),
        None => (None, wanted),
    };
    if only.is_none()
        && let Some(id) = EntryId::parse(bare)
    {
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
        if (only.is_none() || only == sub)
            && matches(name, id)
            && best.as_ref().is_none_or(|b| b.4.as_str() < stamp)
        {
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
