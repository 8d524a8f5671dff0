//! How an operator has an entry sent again: now, where it waits, or after all, where it was set aside.

use crate::bindings::types::Place;
use crate::entry;
use crate::error::undo_failed;
use crate::id::EntryId;
use crate::layout::{MAX_RECORD, RESPONSE, STATE};
use crate::locate::locate;
use crate::queue::Queue;
use crate::state::State;
use crate::unloadable::Unloadable;
use crate::{Error, Result};

/// How often a pending entry's state is tried to be changed while a pass changes it, too.
const TRIES: u32 = 4;

/// Makes a pending entry due now.
fn release(queue: &Queue, id: EntryId, name: &str) -> Result<()> {
    for _ in 0..TRIES {
        let was = match queue.load(id) {
            Ok(entry) => entry.state,
            Err(Unloadable::Gone) => return Err(Error::NoSuchEntry(name.into())),
            Err(Unloadable::Io(error)) => return Err(error),
            Err(_) => return Err(Error::WrongPlace(format!("{name} cannot be read"))),
        };
        let mut state = State { not_before: None, ..was.clone() };
        // It is ambiguous no longer; that it may have been sent stays known. What is under way for the first time is not
        // ambiguous yet: nobody was asked.
        if state.is_ambiguous() {
            state.last_error = None;
            state.in_flight = false;
            state.asked = false;
            state.attempts = state.attempts.max(1);
        }
        if queue.swap_state(id, &was, &state)? {
            return queue.sync_entry(&queue.dir, &id.to_string());
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
            let validator = match entry::state(dir, &at.name) {
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
            queue.sync_entry(dir, &at.name)?;
            let refusal = dir.read(&at.path(RESPONSE), MAX_RECORD).ok();
            let id = at.id.to_string();
            dir.rename(&at.name, &queue.dir, &id)?;
            let synced = match &at.dir {
                Some(place) => queue.sync_move(&queue.dir, place),
                None => queue.sync_dir(),
            };
            if let Err(error) = synced {
                let back = queue.dir.rename(&id, dir, &at.name);
                return Err(undo_failed(error, back.is_err(), || {
                    format!("{id} waits to be sent all the same")
                }));
            }
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
