//! What follows a delivery, and every other way out of the queue: the next edit of the resource learns which version
//! it is put on top of, before the entry is removed.

use super::Pass;
use super::settle::{Settled, Step};
use crate::ahead::Ahead;
use crate::bindings::exports::zddc::outbox::replayer::Outcome;
use crate::cached::Cached;
use crate::entry::Entry;
use crate::exchange::Reply;
use crate::precondition::{Base, Validator};
use crate::response::Current;
use crate::{chain, clock, error, quarantine};
use std::time::{Duration, SystemTime};

impl Pass {
    /// The server took a write. What version that made, the next edit needs to know.
    pub(super) fn taken(&mut self, entry: &Entry, reply: &Reply) -> Step {
        let detail = (reply.status >= 400).then(|| "it was not there".to_owned());
        if self.config.original {
            return self.remove(entry, Outcome::Delivered, detail).into();
        }
        let validator = match entry.meta.method.as_str() {
            "DELETE" | "MOVE" => Validator::Absent,
            // What is copied is as it was. Without a base, nothing is known of it that an edit could be put on top of.
            "COPY" if entry.base() == Base::Any => {
                return self.remove(entry, Outcome::Delivered, detail).into();
            }
            "COPY" => Validator::from_base(&entry.base()),
            // A reply's validator is about what was PUT (RFC 9110 section 9.3.4) or PATCHed (RFC 5789 section
            // 2.1); after other methods it may be about something else.
            "PUT" | "PATCH" => Validator::of(reply),
            _ => Validator::Unknown,
        };
        match validator {
            Validator::Unknown => self.learn(entry, reply.status, detail),
            validator => self.delivered(entry, &validator, Some(reply), detail).into(),
        }
    }

    /// The write is done. The next edit gets the new version's name before this one is removed.
    pub(super) fn delivered(
        &mut self,
        entry: &Entry,
        validator: &Validator,
        about: Option<&Reply>,
        mut detail: Option<String>,
    ) -> Settled {
        let continued = self.hand_on(entry, validator, about);
        if continued && *validator == Validator::Unknown {
            self.report.unprotected += 1;
            let note =
                "unprotected: the server names no version, so the next edit goes without a precondition";
            detail = Some(detail.map_or_else(|| note.into(), |detail| format!("{detail}; {note}")));
        }
        // Going without a precondition is remembered only where it was said.
        if continued || *validator != Validator::Unknown {
            let unread = self.ahead.as_ref().is_none_or(Ahead::has_unreadable);
            chain::remember(entry, validator, self.ahead.as_ref().and_then(Ahead::latest), unread);
        }
        self.remove(entry, Outcome::Delivered, detail)
    }

    pub(super) fn is_continued(&mut self, entry: &Entry) -> bool {
        let _ = self.list();
        let Pass { ahead, queue, report, .. } = self;
        // What cannot be listed now may continue it, like what cannot be read.
        let Some(ahead) = ahead else { return true };
        let (next, added) = ahead.successors(queue, entry);
        report.remaining += added;
        !next.is_empty() || ahead.has_unreadable()
    }

    /// Gives the next edits of the resource the version that this one made; whether there are any.
    fn hand_on(&mut self, entry: &Entry, validator: &Validator, about: Option<&Reply>) -> bool {
        // What cannot be listed now has been seen before, or is remembered by the chain.
        let _ = self.list();
        let Pass { ahead, queue, report, lease, .. } = self;
        let Some(ahead) = ahead else { return false };
        let (ids, added) = ahead.successors(queue, entry);
        report.remaining += added;
        for id in &ids {
            let Some(next) = ahead.entry(*id) else { continue };
            // Where several replay, another may have handed on something newer.
            if lease.is_some()
                && let Ok(now) = queue.load(*id)
                && now.state.validator != next.state.validator
            {
                next.state.validator = now.state.validator;
                continue;
            }
            next.state.validator = Some(validator.clone());
            if let (Validator::LastModified(date), Some(about)) = (validator, about) {
                let at = clock::parse_http_date(date);
                if about.header("date").and_then(clock::parse_http_date).is_none_or(|now| Some(now) <= at) {
                    // A date has whole seconds: our own next version must not get the same one.
                    let pause = SystemTime::now() + Duration::from_secs(1);
                    let due = next.state.not_before().map_or(pause, |due| due.max(pause));
                    next.state.not_before = Some(clock::rfc3339_up(due));
                }
            }
            // Known in memory also where it cannot be written; then a crash makes a conflict of it at worst.
            let _ = queue.save_state_durably(next.id, &next.state);
        }
        !ids.is_empty()
    }

    /// An entry that leaves the queue undelivered leaves the version that it inherited to the next one.
    pub(super) fn pass_on(&mut self, entry: &Entry) {
        if let Some(validator) = entry.state.validator.clone() {
            self.hand_on(entry, &validator, None);
        }
    }

    pub(super) fn conflict(&mut self, entry: &Entry, refusal: &Reply, current: &Current<'_>) -> Settled {
        self.pass_on(entry);
        let reason = current.sentence(&entry.base());
        match quarantine::conflict(&self.queue, entry, refusal, current.reply(), &reason) {
            Ok(()) => Settled::gone(Outcome::Conflict, Some(reason)),
            Err(error) => self.deferred(entry, Outcome::Deferred, error::describe(&error), None),
        }
    }

    /// Somebody else has taken it out of the queue.
    pub(super) fn removed(&mut self, entry: &Entry) -> Settled {
        self.pass_on(entry);
        Settled::gone(Outcome::Dropped, Some("it was removed from the queue meanwhile".into()))
    }

    pub(super) fn dropped(&mut self, entry: &Entry) -> Settled {
        self.pass_on(entry);
        self.remove(entry, Outcome::Dropped, Some("the configuration drops refused writes".into()))
    }

    pub(super) fn remove(&mut self, entry: &Entry, outcome: Outcome, detail: Option<String>) -> Settled {
        let stale = match entry.meta.method.as_str() {
            "PUT" | "DELETE" => true,
            "PATCH" => !self.config.original,
            _ => false,
        };
        match outcome == Outcome::Delivered && stale {
            true if self.config.original => Cached::remove_always(&self.queue, &entry.meta.raw_uri),
            true => self.cached.remove(&self.queue, entry.id, &entry.meta.raw_uri),
            false => {}
        }
        match self.removals.remove(&self.queue, entry.id) {
            Ok(()) => Settled::gone(outcome, detail),
            Err(_) if self.queue.is_gone(entry.id) => {
                let note = "it was removed from the queue meanwhile";
                Settled::gone(outcome, Some(detail.map_or_else(|| note.into(), |d| format!("{d}; {note}"))))
            }
            // It will be sent again, with the same Idempotency-Key; nothing later may overtake it.
            Err(error) => {
                Settled::stays(outcome, format!("but it cannot be removed: {}", error::describe(&error)))
            }
        }
    }
}
