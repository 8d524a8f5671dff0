//! What is looked at before a write leaves: whether it may have left before, and whether it need not leave at all.

use super::Pass;
use super::settle::Settled;
use crate::bindings::exports::zddc::outbox::replayer::Outcome;
use crate::entry::Entry;
use crate::error;
use crate::failure::Failure;
use crate::id::EntryId;
use crate::precondition::Validator;
use crate::state::AMBIGUOUS;
use std::cell::Cell;

thread_local! {
    /// The greatest id of a PUT that left without a note of that. No earlier one is left out by this instance, either.
    static UNNOTED: Cell<Option<EntryId>> = const { Cell::new(None) };
}

impl Pass {
    /// Whether it is not known if this write was applied, and a repeat could apply it twice (RFC 9110 section
    /// 9.2.2), and somebody wants to be asked. Once asked, he is waited for, also by who would not have asked.
    pub(super) fn is_ambiguous(&self, entry: &Entry) -> bool {
        (self.config.hold_ambiguous || entry.state.is_ambiguous())
            && entry.state.in_flight
            && matches!(entry.meta.method.as_str(), "POST" | "PATCH")
    }

    /// Whether an entry is not sent again before somebody says so.
    pub(super) fn is_held(&mut self, entry: &mut Entry) -> bool {
        if !self.is_ambiguous(entry) {
            return false;
        }
        match entry.state.is_ambiguous() {
            true => self.report.ambiguous += 1,
            // It was under way when the process died.
            false => {
                entry.state.attempts = entry.state.attempts.saturating_add(1);
                entry.state.last_error = Some(AMBIGUOUS.into());
                entry.state.asked = true;
                let _ = self.queue.save_state(entry.id, &entry.state);
                let Entry { id, meta, .. } = &*entry;
                let settled = Settled::stays(Outcome::Ambiguous, AMBIGUOUS);
                self.record(*id, &meta.method, &meta.raw_uri, None, 0, settled);
            }
        }
        true
    }

    /// Notes durably that a write leaves, where somebody asks for it. A PUT leaves without the note, too: to send it
    /// twice does no harm, and it frees space on a full disk.
    pub(super) fn mark(&self, entry: &mut Entry) -> Result<(), Failure> {
        let wanted = match entry.meta.method.as_str() {
            "POST" | "PATCH" => self.config.hold_ambiguous,
            "PUT" => self.config.coalesce,
            _ => false,
        };
        if wanted && !entry.state.in_flight {
            entry.state.in_flight = true;
            // Why it was tried in vain before says nothing of this time.
            entry.state.last_error = None;
            let noted = self.queue.save_state_durably(entry.id, &entry.state);
            match noted {
                Err(_) if entry.meta.method == "PUT" => UNNOTED.set(UNNOTED.get().max(Some(entry.id))),
                noted => noted.map_err(|error| Failure::Unreadable(error::describe(&error)))?,
            }
        }
        Ok(())
    }

    /// Leaves a PUT out that a later write makes superfluous, unless it may have been sent already. The later one
    /// keeps this one's base: that is the version which its author had seen.
    pub(super) fn supersede(&mut self, entry: &Entry) -> Option<Settled> {
        let noted = Some(entry.id) > UNNOTED.get();
        let fresh = entry.state.attempts == 0 && !entry.state.in_flight && noted;
        if !self.config.coalesce || entry.meta.method != "PUT" || !fresh {
            return None;
        }
        self.list().ok()?;
        let keys = self.keys(&entry.meta);
        let Pass { ahead, queue, upstream, report, .. } = self;
        let (next, added) = ahead.as_mut()?.superseder(queue, upstream, entry, keys);
        report.remaining += added;
        // One that proves to be damaged replaces nothing.
        let next = next.filter(|next| queue.is_whole(next))?;
        if entry.is_based() {
            next.state.validator = Some(Validator::from_base(&entry.base()));
            queue.save_state_durably(next.id, &next.state).ok()?;
        }
        let detail = format!("{} replaces it", next.id);
        Some(self.remove(entry, Outcome::Superseded, Some(detail)))
    }
}
