//! How an operator gives an entry up. What it had inherited goes to the edit that would have followed it.

use crate::ahead::Ahead;
use crate::bindings::types::Place;
use crate::id::EntryId;
use crate::locate::locate;
use crate::queue::Queue;
use crate::state::State;
use crate::unloadable::Unloadable;
use crate::{Error, Result};

/// A pending entry that inherits a version from one that is dropped.
struct Heir {
    id: EntryId,
    was: State,
    now: State,
}

impl Heir {
    fn save(&self, queue: &Queue) -> Result<()> {
        match queue.swap_state(self.id, &self.was, &self.now)? {
            true => queue.sync_entry(&queue.dir, &self.id.to_string()),
            // Something newer was handed on to it meanwhile, or it has gone.
            false => Ok(()),
        }
    }
}

/// The edits that would have followed this pending one, and follow the one before it when it is dropped.
fn heirs(queue: &Queue, id: EntryId) -> Result<Vec<Heir>> {
    let entry = match queue.load(id) {
        Ok(entry) => entry,
        Err(Unloadable::Io(error)) => return Err(error),
        // What it had inherited cannot be known, and is not for who wants it gone to wait for.
        Err(_) => return Ok(Vec::new()),
    };
    let Some(validator) = &entry.state.validator else { return Ok(Vec::new()) };
    let mut ahead = Ahead::list(queue)?;
    ahead.skip_to(id);
    let (ids, _) = ahead.successors(queue, &entry);
    if ahead.has_unreadable() {
        return Err(Error::Io(format!(
            "what was queued after {id} cannot be read, and may be its next edit; try again"
        )));
    }
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
