//! One pass through the queue: entries are sent in order per resource, several at once where they are
//! independent, and each reply is acted on. docs/semantics.md says what means what.
//!
//! - The first request of a pass goes alone. Only when the upstream has answered are others started: an
//!   outage costs one request, whatever waits. After a pass that found the upstream away, the next one
//!   sends a probe, and looks at the queue only if that is answered.
//! - An entry leaves the queue only after its outcome is known, and is on disk where it is kept.
//! - Trouble with one entry's files concerns that entry only; the pass goes on.
//! - While requests are under way, the next entry is read and what was delivered is deleted: at the disk's
//!   speed, that work takes as long as a near server's reply.

use crate::backoff;
use crate::bindings::exports::zddc::outbox::replayer::{Event, Health, Options, Outcome, Report, Resume};
use crate::cached::Cached;
use crate::clock;
use crate::config::{Config, Refused};
use crate::exchange::{Body, Exchange, Failure, Reply, Request, Timeouts};
use crate::headers;
use crate::id::EntryId;
use crate::key::Key;
use crate::lease::Lease;
use crate::outcome::{Verdict, verdict};
use crate::quarantine;
use crate::queue::{Entry, Queue, Unloadable};
use crate::removal::Removals;
use crate::schedule::{Schedule, Turn};
use crate::upstream::Upstream;
use crate::{Result, guest};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, SystemTime};
use wasi::clocks::monotonic_clock;
use wasi::io::poll::{Pollable, poll};
use wasi::random::random::get_random_u64;

/// A time to wait that is further away than this was written before the clock was set back; it is ignored.
const LONGEST_WAIT: Duration = Duration::from_secs(25 * 3600);

/// How often a request may break the connection off before it has to wait like one that is deferred.
const PATIENCE: u32 = 3;

/// How long the guest sleeps at most, in nanoseconds: a host that watches over it sees that it lives.
const HEARTBEAT: u64 = 5_000_000_000;

/// A pass under way.
pub struct Pass {
    config: Config,
    upstream: Upstream,
    queue: Queue,
    /// Ids not yet looked at; none before the queue was listed.
    ids: Option<std::vec::IntoIter<EntryId>>,
    schedule: Schedule<Entry>,
    flights: Vec<Flight>,
    events: VecDeque<Event>,
    report: Report,
    /// To be tried first, alone, before the queue is listed.
    probe: Option<EntryId>,
    /// The upstream has answered in this pass.
    answered: bool,
    /// Nothing further is started.
    stopping: bool,
    /// Monotonic, in nanoseconds: nothing further is started after this.
    ends_at: Option<u64>,
    /// When the first entry that is not yet due will be.
    soonest: Option<SystemTime>,
    removals: Removals,
    cached: Cached,
    /// The right to replay, where the host does not see to it.
    lease: Option<Rc<Lease>>,
    /// The next to be sent, read while others are under way.
    next: Option<Prepared>,
}

/// An entry whose turn it is, with its body open.
struct Prepared {
    entry: Entry,
    turn: Turn,
    body: Result<Body, Failure>,
}

struct Flight {
    entry: Entry,
    turn: Turn,
    exchange: Exchange,
    started: u64,
}

/// What came of an entry, and whether it stays in the queue.
struct Settled {
    outcome: Outcome,
    stays: bool,
    detail: Option<String>,
}

impl Settled {
    fn gone(outcome: Outcome, detail: Option<String>) -> Settled {
        Settled { outcome, stays: false, detail }
    }

    fn stays(outcome: Outcome, detail: impl Into<String>) -> Settled {
        Settled { outcome, stays: true, detail: Some(detail.into()) }
    }
}

impl Pass {
    /// Begins a pass; sends nothing yet.
    pub fn start(config: Config, options: Options) -> Result<Pass> {
        let upstream = config.upstream()?;
        let queue = Queue::open(&config)?;
        let lease = match config.lease {
            Some(true) => Some(Rc::new(Lease::take()?)),
            Some(false) | None => None,
        };
        let resume = options.resume.unwrap_or(Resume { outages: 0, probe: None, remaining: 0 });
        let (outages, probe) = match options.wake {
            true => (0, None),
            false => (resume.outages, resume.probe.as_deref().and_then(EntryId::parse)),
        };
        let nanos = |ms: u64| monotonic_clock::now().saturating_add(ms.saturating_mul(1_000_000));
        Ok(Pass {
            config,
            upstream,
            queue,
            ids: None,
            schedule: Schedule::default(),
            flights: Vec::new(),
            events: VecDeque::new(),
            report: Report {
                delivered: 0,
                conflicts: 0,
                rejected: 0,
                dropped: 0,
                deferred: 0,
                held: 0,
                corrupt: 0,
                remaining: resume.remaining,
                upstream: Health::Up,
                next_delay_ms: 0,
                resume: Resume { outages, probe: None, remaining: 0 },
            },
            probe,
            answered: false,
            stopping: false,
            ends_at: options.budget_ms.map(nanos),
            soonest: None,
            removals: Removals::default(),
            cached: Cached::default(),
            lease,
            next: None,
        })
    }

    /// Goes on only as long as this lease is held.
    pub fn under(mut self, lease: Option<Rc<Lease>>) -> Pass {
        self.lease = self.lease.or(lease);
        self
    }

    /// Starts no further entry.
    pub fn stop(&mut self) {
        self.stopping = true;
    }

    /// What was done so far.
    pub fn report(&self) -> Report {
        self.report.clone()
    }

    /// Waits for the next outcome; none when the pass is over.
    pub fn advance(&mut self) -> Result<Option<Event>> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            if let Some(lease) = &self.lease {
                lease.keep()?;
            }
            self.fill()?;
            if !self.events.is_empty() {
                continue;
            }
            if self.flights.is_empty() {
                self.finish()?;
                return Ok(None);
            }
            self.work_ahead()?;
            if self.events.is_empty() {
                self.wait();
            }
        }
    }

    /// Does what can be done while requests are under way.
    fn work_ahead(&mut self) -> Result<()> {
        self.removals.sync_when_due(&self.queue)?;
        self.removals.erase_one(&self.queue);
        if self.next.is_none() && self.answered && !self.stopping {
            self.next = self.next_entry()?.map(|(turn, entry)| self.prepare(turn, entry));
        }
        Ok(())
    }

    /// Starts what may be started.
    fn fill(&mut self) -> Result<()> {
        loop {
            let limit = if self.answered { self.config.concurrency } else { 1 };
            let over = self.ends_at.is_some_and(|end| monotonic_clock::now() >= end);
            self.stopping |= over;
            if self.stopping || self.flights.len() >= limit {
                return Ok(());
            }
            let next = match self.next.take() {
                Some(next) => next,
                None => match self.next_entry()? {
                    Some((turn, entry)) => self.prepare(turn, entry),
                    None => return Ok(()),
                },
            };
            self.launch(next);
        }
    }

    /// The next entry to send, which is in flight from here on.
    fn next_entry(&mut self) -> Result<Option<(Turn, Entry)>> {
        let probe = self.probe.take();
        if let Some(entry) = probe.and_then(|id| self.load(id)) {
            return Ok(self.schedule.offer(self.key(&entry), entry));
        }
        if let Some(ready) = self.schedule.ready() {
            return Ok(Some(ready));
        }
        if self.ids.is_none() {
            // What a crash left behind takes space only; it must not keep entries from being sent.
            let _ = self.queue.sweep();
            let ids = self.queue.ids()?;
            self.report.remaining = ids.len() as u64;
            self.ids = Some(ids.into_iter());
        }
        while !self.schedule.is_full() {
            let Some(id) = self.ids.as_mut().and_then(Iterator::next) else { break };
            let Some(entry) = self.load(id) else { continue };
            if let Some(ready) = self.schedule.offer(self.key(&entry), entry) {
                return Ok(Some(ready));
            }
        }
        Ok(None)
    }

    fn key(&self, entry: &Entry) -> Key {
        match self.config.strict_order {
            true => Key::everything(),
            false => Key::of(&entry.meta.raw_uri),
        }
    }

    /// Reads an entry, if it is sound and due.
    fn load(&mut self, id: EntryId) -> Option<Entry> {
        let entry = match self.queue.load(id) {
            Ok(entry) => entry,
            Err(unloadable) => {
                self.unloadable(id, unloadable);
                return None;
            }
        };
        let now = SystemTime::now();
        match entry.state.not_before().filter(|due| *due > now && *due < now + LONGEST_WAIT) {
            None => Some(entry),
            Some(due) => {
                self.not_due_before(due);
                self.schedule.stick(self.key(&entry));
                None
            }
        }
    }

    fn not_due_before(&mut self, due: SystemTime) {
        self.soonest = Some(self.soonest.map_or(due, |s| s.min(due)));
    }

    fn unloadable(&mut self, id: EntryId, why: Unloadable) {
        let settled = match why {
            Unloadable::Gone | Unloadable::InProgress => {
                self.report.remaining = self.report.remaining.saturating_sub(1);
                return;
            }
            Unloadable::Newer(format) => Settled::stays(
                Outcome::Deferred,
                format!("it has format {format}, which a newer outbox wrote"),
            ),
            Unloadable::Io(error) => Settled::stays(Outcome::Deferred, guest::describe(&error)),
            Unloadable::Damaged(reason) => self.set_corrupt(id, &reason),
        };
        self.record(id, "", "", None, 0, settled);
    }

    fn prepare(&self, turn: Turn, entry: Entry) -> Prepared {
        let body = match self.queue.open_body(&entry) {
            Ok((file, len)) => Ok(Body { file, len, digest: entry.meta.known_digest().map(Into::into) }),
            Err(Unloadable::Damaged(reason)) => Err(Failure::Damaged(reason)),
            Err(Unloadable::Io(error)) => Err(Failure::Unreadable(guest::describe(&error))),
            Err(Unloadable::Gone | Unloadable::InProgress | Unloadable::Newer(_)) => {
                Err(Failure::Unreadable("body.bin cannot be opened".into()))
            }
        };
        Prepared { entry, turn, body }
    }

    fn launch(&mut self, next: Prepared) {
        let Prepared { entry, turn, body } = next;
        let started = monotonic_clock::now();
        match body.and_then(|body| self.exchange(&entry, body)) {
            Ok(exchange) => self.flights.push(Flight { entry, turn, exchange, started }),
            Err(failure) => self.settle(turn, &entry, started, Err(failure)),
        }
    }

    fn exchange(&self, entry: &Entry, body: Body) -> Result<Exchange, Failure> {
        let request = Request {
            method: &entry.meta.method,
            raw_uri: &entry.meta.raw_uri,
            headers: headers::of(entry, body.len),
            body,
        };
        let timeouts = Timeouts { connect: self.config.connect_timeout, idle: self.config.idle_timeout };
        Exchange::start(&self.upstream, request, timeouts)
    }

    /// Waits until something moves, and follows it up.
    fn wait(&mut self) {
        let now = monotonic_clock::now();
        let deadline = self.flights.iter().map(|f| f.exchange.deadline()).min().unwrap_or(now);
        let until = self.removals.sync_due().map_or(deadline, |due| due.min(deadline));
        let timer = monotonic_clock::subscribe_duration(until.saturating_sub(now).min(HEARTBEAT));
        let mut owners: Vec<usize> = Vec::new();
        let mut pollables: Vec<&Pollable> = Vec::new();
        for (index, flight) in self.flights.iter().enumerate() {
            for pollable in flight.exchange.pollables() {
                owners.push(index);
                pollables.push(pollable);
            }
        }
        pollables.push(&timer);
        // Indices come in no particular order. That of the timer has no owner: everyone is late then.
        let ready = poll(&pollables);
        let mut moved: Vec<usize> = Vec::new();
        for index in ready {
            match owners.get(index as usize) {
                Some(owner) => moved.push(*owner),
                None => moved.extend(0..self.flights.len()),
            }
        }
        moved.sort_unstable();
        moved.dedup();
        // From the back, so that removing one leaves the earlier indices as they are.
        for index in moved.into_iter().rev() {
            let Some(result) = self.flights.get_mut(index).and_then(|f| f.exchange.step()) else { continue };
            let Flight { entry, turn, exchange, started } = self.flights.remove(index);
            drop(exchange);
            self.settle(turn, &entry, started, result);
        }
    }

    /// Acts on the end of an exchange.
    fn settle(&mut self, turn: Turn, entry: &Entry, started: u64, result: Result<Reply, Failure>) {
        let status = result.as_ref().ok().map(|reply| reply.status);
        let settled = match result {
            Ok(reply) => {
                self.answered = true;
                self.act(entry, &reply)
            }
            Err(Failure::Unreachable(why)) => {
                self.upstream_away(Health::Down, entry.id);
                self.deferred(entry, Outcome::Deferred, why, None)
            }
            Err(Failure::NoReply(why)) => {
                self.upstream_away(Health::Down, entry.id);
                // It may be this request that the server cannot bear: another must get its turn as a probe.
                let suspect =
                    entry.state.attempts.checked_sub(PATIENCE - 1).map(|tries| tries.saturating_add(1));
                let wait = suspect.map(|tries| backoff::entry(tries, get_random_u64() as u32));
                self.deferred(entry, Outcome::Deferred, why, wait.map(|wait| SystemTime::now() + wait))
            }
            Err(Failure::Damaged(reason)) => self.set_corrupt(entry.id, &reason),
            Err(Failure::Unreadable(why)) => Settled::stays(Outcome::Deferred, why),
        };
        self.schedule.finished(turn, settled.stays);
        let elapsed_ms = monotonic_clock::now().saturating_sub(started) / 1_000_000;
        self.record(entry.id, &entry.meta.method, &entry.meta.raw_uri, status, elapsed_ms, settled);
    }

    fn act(&mut self, entry: &Entry, reply: &Reply) -> Settled {
        let (id, status) = (entry.id, reply.status);
        match verdict(&entry.meta.method, status) {
            Verdict::Delivered => self.delivered(entry, status),
            Verdict::Conflict => {
                let reason = "the server's version is not the one that this write was based on (412)";
                match quarantine::conflict(&self.queue, id, reply, reason) {
                    Ok(()) => Settled::gone(Outcome::Conflict, None),
                    Err(error) => self.deferred(entry, Outcome::Deferred, guest::describe(&error), None),
                }
            }
            // The original deletes what is refused with 4xx, for want of credentials too.
            Verdict::Held if self.config.auth == Refused::Drop && status < 500 => self.dropped(entry),
            Verdict::Held => {
                self.upstream_away(Health::Auth, id);
                self.deferred(entry, Outcome::Held, format!("the server answered {status}"), None)
            }
            Verdict::Deferred => {
                let why = match reply.header("location") {
                    Some(to) if (300..400).contains(&status) => {
                        format!("the server answered {status} to {to:.200}, and redirects are not followed")
                    }
                    _ => format!("the server answered {status}"),
                };
                let now = SystemTime::now();
                let wish = reply.header("retry-after").and_then(|value| backoff::retry_after(value, now));
                let attempts = entry.state.attempts.saturating_add(1);
                let wait = wish.unwrap_or_else(|| backoff::entry(attempts, get_random_u64() as u32));
                self.deferred(entry, Outcome::Deferred, why, Some(now + wait))
            }
            Verdict::Rejected if self.config.rejected == Refused::Drop => self.dropped(entry),
            Verdict::Rejected => {
                let reason = format!("the server refused it with {status}, which retrying does not change");
                match quarantine::reject(&self.queue, id, reply, &reason) {
                    Ok(()) => Settled::gone(Outcome::Rejected, None),
                    Err(error) => self.deferred(entry, Outcome::Deferred, guest::describe(&error), None),
                }
            }
        }
    }

    fn delivered(&mut self, entry: &Entry, status: u16) -> Settled {
        if matches!(entry.meta.method.as_str(), "PUT" | "PATCH" | "DELETE") {
            self.cached.remove(&self.queue, entry.id, &entry.meta.raw_uri);
        }
        let detail = (status >= 400).then(|| "it was not there".to_owned());
        self.remove(entry, Outcome::Delivered, detail)
    }

    fn dropped(&mut self, entry: &Entry) -> Settled {
        self.remove(entry, Outcome::Dropped, Some("the configuration drops refused writes".into()))
    }

    fn remove(&mut self, entry: &Entry, outcome: Outcome, detail: Option<String>) -> Settled {
        match self.removals.remove(&self.queue, entry.id) {
            Ok(()) => Settled::gone(outcome, detail),
            // It will be sent again, with the same Idempotency-Key; nothing later may overtake it.
            Err(error) => {
                Settled::stays(outcome, format!("but it cannot be removed: {}", guest::describe(&error)))
            }
        }
    }

    fn set_corrupt(&mut self, id: EntryId, reason: &str) -> Settled {
        match quarantine::corrupt(&self.queue, id, reason) {
            Ok(()) => Settled::gone(Outcome::Corrupt, Some(reason.into())),
            Err(error) => {
                let why = format!("{reason}; it cannot be set aside: {}", guest::describe(&error));
                Settled::stays(Outcome::Deferred, why)
            }
        }
    }

    /// Notes an attempt that was in vain. If that cannot be written, the entry is merely tried sooner.
    fn deferred(&mut self, entry: &Entry, outcome: Outcome, why: String, due: Option<SystemTime>) -> Settled {
        if let Some(due) = due {
            self.not_due_before(due);
        }
        let mut state = entry.state.clone();
        state.attempts = state.attempts.saturating_add(1);
        state.not_before = due.map(clock::rfc3339_up);
        state.last_error = Some(why.clone());
        match self.queue.save_state(entry.id, &state) {
            Ok(()) => Settled::stays(outcome, why),
            Err(error) => Settled::stays(outcome, format!("{why}; not noted: {}", guest::describe(&error))),
        }
    }

    fn upstream_away(&mut self, health: Health, id: EntryId) {
        self.stopping = true;
        self.report.upstream = health;
        // With several in flight, the oldest is the next probe.
        let probe = self.report.resume.probe.as_deref().and_then(EntryId::parse);
        self.report.resume.probe = Some(probe.map_or(id, |p| p.min(id)).to_string());
    }

    fn record(
        &mut self,
        id: EntryId,
        method: &str,
        uri: &str,
        status: Option<u16>,
        elapsed_ms: u64,
        settled: Settled,
    ) {
        let report = &mut self.report;
        let count = match settled.outcome {
            Outcome::Delivered => &mut report.delivered,
            Outcome::Conflict => &mut report.conflicts,
            Outcome::Rejected => &mut report.rejected,
            Outcome::Dropped => &mut report.dropped,
            Outcome::Deferred => &mut report.deferred,
            Outcome::Held => &mut report.held,
            Outcome::Corrupt => &mut report.corrupt,
        };
        *count += 1;
        if !settled.stays {
            report.remaining = report.remaining.saturating_sub(1);
        }
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

    /// Makes removals durable and says when to come again.
    fn finish(&mut self) -> Result<()> {
        self.removals.finish(&self.queue)?;
        let report = &mut self.report;
        let away = report.upstream != Health::Up;
        report.resume.outages = if away { report.resume.outages.saturating_add(1) } else { 0 };
        report.resume.remaining = report.remaining;
        let delay = if away {
            backoff::outage(report.resume.outages)
        } else if self.stopping {
            Duration::ZERO
        } else if report.remaining == 0 {
            backoff::IDLE_TICK
        } else {
            let due = self.soonest.map(|due| due.duration_since(SystemTime::now()).unwrap_or_default());
            due.unwrap_or(backoff::TICK).clamp(backoff::SOON, backoff::TICK)
        };
        report.next_delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        Ok(())
    }
}
