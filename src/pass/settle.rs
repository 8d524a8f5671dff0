//! What is done about a reply, or about none: the table of docs/semantics.md.

use super::question::UNASKED;
use super::{Flight, Pass, Task};
use crate::bindings::exports::zddc::outbox::replayer::{Event, Outcome};
use crate::config::Refused;
use crate::entry::Entry;
use crate::exchange::{Content, Reply};
use crate::failure::Failure;
use crate::id::EntryId;
use crate::outcome::{Verdict, originals, verdict};
use crate::quarantine;
use crate::{Result, error};
use wasi::clocks::monotonic_clock;

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
        if result.is_ok() {
            self.unprocessed = 0;
            if !self.answered {
                self.answered = true;
                self.upstream_is_there();
            }
        }
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
                Err(error) => Settled::stays(Outcome::Deferred, error::describe(&error)).into(),
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
                        self.deferred(entry, Outcome::Deferred, error::describe(&error), None).into()
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

    pub(super) fn set_corrupt(&mut self, id: EntryId, reason: &str) -> Settled {
        match quarantine::corrupt(&self.queue, id, reason) {
            Ok(()) => Settled::gone(Outcome::Corrupt, Some(reason.into())),
            Err(error) => {
                let why = format!("{reason}; it cannot be set aside: {}", error::describe(&error));
                Settled::stays(Outcome::Deferred, why)
            }
        }
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
