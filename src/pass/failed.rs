//! What follows an attempt in vain: the entry waits, and where it is the upstream that is away, so does the pass.

use super::Pass;
use super::settle::Settled;
use crate::bindings::exports::zddc::outbox::replayer::{Health, Outcome};
use crate::entry::Entry;
use crate::exchange::Reply;
use crate::failure::Failure;
use crate::id::EntryId;
use crate::state::{AMBIGUOUS, State};
use crate::{backoff, clock, error, quarantine};
use std::time::SystemTime;
use wasi::random::random::get_random_u64;

/// How often a request may be tried in vain before it is suspected itself: with no reply, or 403, it waits then like one that
/// is deferred. So many of them may be passed over in a pass before another one is answered.
const PATIENCE: u32 = 3;

impl Pass {
    /// There was no reply, or no request.
    pub(super) fn failed(&mut self, entry: &Entry, failure: Failure) -> Settled {
        match failure {
            // The next one may go over a new connection. It is no outage, unless there is no end of it.
            Failure::Unprocessed(why) if self.answered && self.unprocessed < self.config.concurrency => {
                self.unprocessed += 1;
                let note = |state: &mut State| {
                    state.in_flight = false;
                    state.unreached = state.unreached.saturating_add(1);
                };
                self.not_due_before(SystemTime::now());
                self.noted(entry, Outcome::Deferred, why, None, note)
            }
            Failure::Unreachable(why) | Failure::Unprocessed(why) => {
                self.upstream_away(Health::Down, entry.id);
                self.noted(entry, Outcome::Deferred, why, None, |state| {
                    state.in_flight = false;
                    state.unreached = state.unreached.saturating_add(1);
                })
            }
            Failure::NoReply(why) if self.is_ambiguous(entry) => {
                self.upstream_away(Health::Down, entry.id);
                let mut state = entry.state.clone();
                state.attempts = state.attempts.saturating_add(1);
                state.last_error = Some(format!("{why}; {AMBIGUOUS}"));
                state.asked = true;
                let _ = self.queue.save_state(entry.id, &state);
                Settled::stays(Outcome::Ambiguous, format!("{why}; {AMBIGUOUS}"))
            }
            Failure::NoReply(why) => {
                // It says little about the upstream, so as long as nothing else does, another is asked.
                if !self.answered && self.is_suspect(entry) && self.passed_over < PATIENCE {
                    self.passed_over += 1;
                    self.doubt_upstream(Health::Down, entry.id);
                } else {
                    self.upstream_away(Health::Down, entry.id);
                }
                let due = self.due_if_suspect(entry);
                self.noted(entry, Outcome::Deferred, why, due, |_| {})
            }
            // What somebody has dropped is not damaged.
            Failure::Damaged(_) if self.queue.is_gone(entry.id) => self.removed(entry),
            Failure::Damaged(_) if self.config.original => {
                match quarantine::as_original(&self.queue, entry.id) {
                    Ok(()) => Settled::gone(Outcome::Conflict, None),
                    Err(error) => Settled::stays(Outcome::Deferred, error::describe(&error)),
                }
            }
            Failure::Damaged(reason) => {
                self.pass_on(entry);
                self.set_corrupt(entry.id, &reason)
            }
            Failure::Unreadable(why) => Settled::stays(Outcome::Deferred, why),
        }
    }

    /// When an entry is due that was tried in vain so often that it may be this request, and not the upstream, with which
    /// something is wrong: after the next pass, so that another gets its turn as the probe.
    fn due_if_suspect(&self, entry: &Entry) -> Option<SystemTime> {
        let tries = entry.state.tries().checked_sub(PATIENCE - 1)?.saturating_add(1);
        let pause = backoff::outage(self.report.resume.outages.saturating_add(1)) + backoff::SOON;
        Some(SystemTime::now() + backoff::entry(tries, get_random_u64() as u32).max(pause))
    }

    /// Whether an entry was tried so often that this is no passing trouble.
    pub(super) fn is_suspect(&self, entry: &Entry) -> bool {
        entry.state.tries() >= PATIENCE - 1
    }

    /// The server wants other credentials; with 403, maybe for this resource only.
    pub(super) fn held(&mut self, entry: &Entry, status: u16, before: &str) -> Settled {
        let due = if status == 403 { self.due_if_suspect(entry) } else { None };
        // One that is suspected waits by itself.
        if due.is_none() {
            self.upstream_away(Health::Auth, entry.id);
        }
        let separator = if before.is_empty() { "" } else { ": " };
        let why = format!("{before}{separator}the server answered {status}");
        self.deferred(entry, Outcome::Held, why, due)
    }

    /// Not now: after the server's own Retry-After, or else after the entry's backoff.
    pub(super) fn backed_off(&mut self, entry: &Entry, why: String, reply: &Reply) -> Settled {
        let now = SystemTime::now();
        let wish = reply.header("retry-after").and_then(|value| backoff::retry_after(value, now));
        let tries = entry.state.tries().saturating_add(1);
        let wait = wish.unwrap_or_else(|| backoff::entry(tries, get_random_u64() as u32));
        self.deferred(entry, Outcome::Deferred, why, Some(now + wait))
    }

    /// Notes an attempt that was in vain.
    pub(super) fn deferred(
        &mut self,
        entry: &Entry,
        outcome: Outcome,
        why: String,
        due: Option<SystemTime>,
    ) -> Settled {
        self.noted(entry, outcome, why, due, |state| state.in_flight = false)
    }

    /// If that cannot be written, the entry is merely tried sooner.
    fn noted(
        &mut self,
        entry: &Entry,
        outcome: Outcome,
        why: String,
        due: Option<SystemTime>,
        note: impl FnOnce(&mut State),
    ) -> Settled {
        if self.config.original {
            return Settled::stays(outcome, why);
        }
        if let Some(due) = due {
            self.not_due_before(due);
        }
        let mut state = entry.state.clone();
        state.attempts = state.attempts.saturating_add(1);
        state.not_before = due.map(clock::rfc3339_up);
        state.last_error = Some(why.clone());
        note(&mut state);
        // That it was taken must not be forgotten, or it is written again.
        let saved = match state.taken {
            Some(_) => self.queue.save_state_durably(entry.id, &state),
            None => self.queue.save_state(entry.id, &state),
        };
        match saved {
            Ok(()) => Settled::stays(
                outcome,
                match state.not_before {
                    Some(due) => format!("{why}; not before {due}"),
                    None => why,
                },
            ),
            Err(error) => Settled::stays(outcome, format!("{why}; not noted: {}", error::describe(&error))),
        }
    }

    /// Something was answered after all.
    pub(super) fn upstream_is_there(&mut self) {
        if self.passed_over > 0 && !self.config.original {
            self.report.upstream = Health::Up;
            self.report.resume.probe = None;
        }
    }

    /// The pass has nothing further to start.
    fn upstream_away(&mut self, health: Health, id: EntryId) {
        self.doubt_upstream(health, id);
        self.stopping |= !self.config.original;
    }

    /// The upstream counts as away, unless something is answered yet.
    fn doubt_upstream(&mut self, health: Health, id: EntryId) {
        self.report.upstream = health;
        if self.config.original {
            return;
        }
        // With several in flight, the oldest is the next probe.
        let probe = self.report.resume.probe.as_deref().and_then(EntryId::parse);
        self.report.resume.probe = Some(probe.map_or(id, |p| p.min(id)).to_string());
    }
}
