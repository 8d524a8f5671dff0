//! What is done about a reply, or about none: the table of docs/semantics.md.

use super::before::AMBIGUOUS;
use super::question::UNASKED;
use super::{Flight, Pass, Task};
use crate::ahead::Ahead;
use crate::bindings::exports::zddc::outbox::replayer::{Event, Health, Outcome};
use crate::cached::Cached;
use crate::chain;
use crate::config::Refused;
use crate::exchange::{Content, Reply};
use crate::failure::Failure;
use crate::id::EntryId;
use crate::outcome::{Verdict, originals, verdict};
use crate::precondition::{Base, Validator};
use crate::quarantine;
use crate::queue::Entry;
use crate::response::Current;
use crate::state::State;
use crate::{Result, backoff, clock, guest};
use std::time::{Duration, SystemTime};
use wasi::clocks::monotonic_clock;
use wasi::random::random::get_random_u64;

/// How often a request may get no reply, or 403, before it has to wait like one that is deferred.
const PATIENCE: u32 = 3;

/// What a request is for.
pub(super) enum Doing {
    /// The write itself.
    Writing,
    /// It was answered with this 412: what is there now?
    Asking(Reply),
    /// It was taken with this status, and the next edit needs to know: what is there now?
    Learning(u16),
}

impl Doing {
    fn status(&self) -> Option<u16> {
        match self {
            Doing::Writing => None,
            Doing::Asking(refusal) => Some(refusal.status),
            Doing::Learning(status) => Some(*status),
        }
    }
}

/// What came of an entry, and whether it stays in the queue.
pub(super) struct Settled {
    outcome: Outcome,
    stays: bool,
    detail: Option<String>,
}

impl Settled {
    pub(super) fn gone(outcome: Outcome, detail: Option<String>) -> Settled {
        Settled { outcome, stays: false, detail }
    }

    pub(super) fn stays(outcome: Outcome, detail: impl Into<String>) -> Settled {
        Settled { outcome, stays: true, detail: Some(detail.into()) }
    }
}

/// What follows a reply.
pub(super) enum Step {
    /// The entry's turn is over.
    Done(Settled),
    /// A question, with what the answer is compared with.
    Ask(Doing, &'static str, Option<Content>),
}

impl From<Settled> for Step {
    fn from(settled: Settled) -> Step {
        Step::Done(settled)
    }
}

impl Pass {
    /// Acts on the end of an exchange.
    pub(super) fn settle(&mut self, mut task: Task, result: Result<Reply, Failure>) {
        let status = task.doing.status().or(result.as_ref().ok().map(|reply| reply.status));
        self.answered |= result.is_ok();
        let doing = std::mem::replace(&mut task.doing, Doing::Writing);
        // A question is asked only when it is known what the server did with the write.
        task.entry.state.in_flight &= matches!(doing, Doing::Writing);
        let step = match (doing, result) {
            (Doing::Writing, Ok(reply)) => self.answer(&task.entry, reply),
            (Doing::Writing, Err(failure)) => self.failed(&task.entry, failure).into(),
            (Doing::Asking(refusal), Ok(reply)) => self.explained(&task.entry, &refusal, &reply),
            (Doing::Asking(_), Err(failure)) => self.failed(&task.entry, failure.after(UNASKED)).into(),
            (Doing::Learning(status), answer) => {
                task.entry.state.taken = Some(status);
                self.learned(&task.entry, answer).into()
            }
        };
        self.follow(task, status, step);
    }

    /// Does what follows a reply.
    pub(super) fn follow(&mut self, mut task: Task, status: Option<u16>, step: Step) {
        match step {
            Step::Done(settled) => self.close(task, status, settled),
            Step::Ask(doing, method, compare) => {
                task.doing = doing;
                match self.question(&task.entry, method, compare) {
                    Ok(exchange) => self.flights.push(Flight { task, exchange }),
                    Err(failure) => self.settle(task, Err(failure)),
                }
            }
        }
    }

    /// Ends an entry's turn.
    pub(super) fn close(&mut self, task: Task, status: Option<u16>, mut settled: Settled) {
        let Task { entry, turn, started, .. } = task;
        // Somebody may have dropped it while it was tried in vain: then it holds back nothing.
        if settled.stays && self.queue.is_gone(entry.id) {
            settled = self.removed(&entry);
        }
        if !settled.stays {
            let keys = self.concerns(&turn, &entry.meta);
            self.removals.concern(&keys, entry.is_addition());
        }
        // In the original, nothing holds back what comes after it.
        self.schedule.finished(turn, settled.stays && !self.config.original);
        let elapsed_ms = monotonic_clock::now().saturating_sub(started) / 1_000_000;
        self.record(entry.id, &entry.meta.method, &entry.meta.raw_uri, status, elapsed_ms, settled);
    }

    /// The reply to a write.
    fn answer(&mut self, entry: &Entry, reply: Reply) -> Step {
        let (id, status, method) = (entry.id, reply.status, entry.meta.method.as_str());
        let meaning = match (verdict(method, status), self.config.original) {
            // Unless somebody asks for holding, want of credentials is a refusal like any other there.
            (Verdict::Held, true) if self.config.auth == Refused::Keep => Verdict::Held,
            (_, true) => originals(status),
            (meaning, false) => meaning,
        };
        match meaning {
            Verdict::Delivered => match self.portal(&reply) {
                Some(why) => self.backed_off(entry, why, &reply).into(),
                None => self.taken(entry, &reply),
            },
            Verdict::Conflict if self.config.original => match quarantine::as_original(&self.queue, id) {
                Ok(()) => Settled::gone(Outcome::Conflict, None).into(),
                Err(error) => Settled::stays(Outcome::Deferred, guest::describe(&error)).into(),
            },
            Verdict::Conflict => self.ask(entry, reply),
            // The original deletes what is refused with 4xx, for want of credentials too.
            Verdict::Held if self.config.auth == Refused::Drop && status < 500 => self.dropped(entry).into(),
            Verdict::Held => self.held(entry, status, "").into(),
            Verdict::Deferred => {
                let why = match reply.header("location") {
                    Some(to) if (300..400).contains(&status) => {
                        format!("the server answered {status} to {to:.200}, and redirects are not followed")
                    }
                    _ => format!("the server answered {status}"),
                };
                self.backed_off(entry, why, &reply).into()
            }
            Verdict::Rejected if self.config.rejected == Refused::Drop => self.dropped(entry).into(),
            Verdict::Rejected => {
                let reason =
                    format!("the server refused it with {status}: sent as it is, it would be refused again");
                self.pass_on(entry);
                match quarantine::reject(&self.queue, id, &reply, &reason) {
                    Ok(()) => Settled::gone(Outcome::Rejected, Some(reason)).into(),
                    Err(error) => {
                        self.deferred(entry, Outcome::Deferred, guest::describe(&error), None).into()
                    }
                }
            }
        }
    }

    /// Why a success is not believed, nor that there is nothing: it lacks what the upstream's replies always have.
    pub(super) fn portal(&self, reply: &Reply) -> Option<String> {
        let (name, value) = self.config.expect_header.as_ref()?;
        if !matches!(reply.status, 200..=299 | 404 | 410) {
            return None;
        }
        let has = |(field, found): &(String, Vec<u8>)| {
            field.eq_ignore_ascii_case(name) && found.trim_ascii() == value.as_bytes()
        };
        (!reply.headers.iter().any(has)).then(|| {
            format!("the server answered {} without {name}: {value}; is this a captive portal?", reply.status)
        })
    }

    /// The server took a write. What version that made, the next edit needs to know.
    fn taken(&mut self, entry: &Entry, reply: &Reply) -> Step {
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

    pub(super) fn conflict(&mut self, entry: &Entry, refusal: &Reply, current: &Current<'_>) -> Settled {
        self.pass_on(entry);
        let reason = current.sentence(&entry.base());
        match quarantine::conflict(&self.queue, entry, refusal, current.reply(), &reason) {
            Ok(()) => Settled::gone(Outcome::Conflict, Some(reason)),
            Err(error) => self.deferred(entry, Outcome::Deferred, guest::describe(&error), None),
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
    fn pass_on(&mut self, entry: &Entry) {
        if let Some(validator) = entry.state.validator.clone() {
            self.hand_on(entry, &validator, None);
        }
    }

    /// Somebody else has taken it out of the queue.
    pub(super) fn removed(&mut self, entry: &Entry) -> Settled {
        self.pass_on(entry);
        Settled::gone(Outcome::Dropped, Some("it was removed from the queue meanwhile".into()))
    }

    fn dropped(&mut self, entry: &Entry) -> Settled {
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
                Settled::stays(outcome, format!("but it cannot be removed: {}", guest::describe(&error)))
            }
        }
    }

    /// There was no reply, or no request.
    pub(super) fn failed(&mut self, entry: &Entry, failure: Failure) -> Settled {
        match failure {
            Failure::Unreachable(why) => {
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
                let _ = self.queue.save_state(entry.id, &state);
                Settled::stays(Outcome::Ambiguous, format!("{why}; {AMBIGUOUS}"))
            }
            Failure::NoReply(why) => {
                self.upstream_away(Health::Down, entry.id);
                let due = self.due_if_suspect(entry);
                self.noted(entry, Outcome::Deferred, why, due, |_| {})
            }
            // What somebody has dropped is not damaged.
            Failure::Damaged(_) if self.queue.is_gone(entry.id) => self.removed(entry),
            Failure::Damaged(_) if self.config.original => {
                match quarantine::as_original(&self.queue, entry.id) {
                    Ok(()) => Settled::gone(Outcome::Conflict, None),
                    Err(error) => Settled::stays(Outcome::Deferred, guest::describe(&error)),
                }
            }
            Failure::Damaged(reason) => {
                self.pass_on(entry);
                self.set_corrupt(entry.id, &reason)
            }
            Failure::Unreadable(why) => Settled::stays(Outcome::Deferred, why),
        }
    }

    pub(super) fn set_corrupt(&mut self, id: EntryId, reason: &str) -> Settled {
        match quarantine::corrupt(&self.queue, id, reason) {
            Ok(()) => Settled::gone(Outcome::Corrupt, Some(reason.into())),
            Err(error) => {
                let why = format!("{reason}; it cannot be set aside: {}", guest::describe(&error));
                Settled::stays(Outcome::Deferred, why)
            }
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
            Err(error) => Settled::stays(outcome, format!("{why}; not noted: {}", guest::describe(&error))),
        }
    }

    fn upstream_away(&mut self, health: Health, id: EntryId) {
        self.report.upstream = health;
        if self.config.original {
            return;
        }
        self.stopping = true;
        // With several in flight, the oldest is the next probe.
        let probe = self.report.resume.probe.as_deref().and_then(EntryId::parse);
        self.report.resume.probe = Some(probe.map_or(id, |p| p.min(id)).to_string());
    }

    pub(super) fn record(
        &mut self,
        id: EntryId,
        method: &str,
        uri: &str,
        status: Option<u16>,
        elapsed_ms: u64,
        settled: Settled,
    ) {
        if !settled.stays {
            self.left(id);
        }
        let report = &mut self.report;
        let count = match settled.outcome {
            Outcome::Delivered => &mut report.delivered,
            Outcome::Conflict => &mut report.conflicts,
            Outcome::Rejected => &mut report.rejected,
            Outcome::Dropped => &mut report.dropped,
            Outcome::Deferred => &mut report.deferred,
            Outcome::Held => &mut report.held,
            Outcome::Corrupt => &mut report.corrupt,
            Outcome::Ambiguous => &mut report.ambiguous,
            Outcome::Superseded => &mut report.superseded,
        };
        *count += 1;
        self.events.push_back(Event {
            id: id.to_string(),
            method: method.into(),
            raw_uri: uri.into(),
            outcome: settled.outcome,
            status,
            detail: settled.detail,
            elapsed_ms,
        });
    }
}
