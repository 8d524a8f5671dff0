//! One pass through the queue: entries are sent in order per resource, several at once where they are
//! independent, and each reply is acted on. docs/semantics.md says what means what.
//!
//! - The first request of a pass goes alone. Only when the upstream has answered are others started: an
//!   outage costs one request, whatever waits (but for some that were tried in vain often). After a pass that found the upstream away, the next one
//!   sends a probe, and looks at the queue only if that is answered.
//! - An entry leaves the queue only after its outcome is known, and is on disk where it is kept.
//! - Trouble with one entry's files concerns that entry only; the pass goes on.
//! - While requests are under way, the next entry is read and what was delivered is deleted: at the disk's
//!   speed, that work takes as long as a near server's reply.

mod before;
mod delivered;
mod failed;
mod next;
mod question;
mod settle;

use crate::ahead::Ahead;
use crate::bindings::exports::zddc::outbox::replayer::{Event, Health, Options, Report, Resume};
use crate::cached::Cached;
use crate::config::Config;
use crate::entry::Entry;
use crate::exchange::{Draft, Exchange, Reply, Timeouts};
use crate::failure::Failure;
use crate::id::EntryId;
use crate::lease::Lease;
use crate::precondition::Validator;
use crate::queue::Queue;
use crate::removal::Removals;
use crate::schedule::{Schedule, Turn};
use crate::upstream::Upstream;
use crate::{Error, Result, backoff, error};
use settle::Doing;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, SystemTime};
use wasi::clocks::monotonic_clock;
use wasi::io::poll::{Pollable, poll};

/// A time to wait that is further away than this was written before the clock was set back; it is ignored.
const LONGEST_WAIT: Duration = Duration::from_secs(25 * 3600);

/// Where one request is under way at a time, a server that answers sooner than this, in nanoseconds, gets the next one
/// before that reply is acted on. For a slower one, the time that this takes is nothing, and a stop, of which a pass learns
/// with an outcome, is to be obeyed.
const QUICK: u64 = 10_000_000;

/// An entry that was made ready longer ago than this, in nanoseconds, is looked for again before it is sent: somebody may
/// have dropped it. For one that was read just now, the look would cost more than it is worth.
const FRESH: u64 = 10_000_000;

/// How long the guest sleeps at most, in nanoseconds: a host that watches over it sees that it lives.
const HEARTBEAT: u64 = 5_000_000_000;

/// A pass under way.
pub struct Pass {
    config: Config,
    upstream: Upstream,
    queue: Queue,
    /// What waits; none before the queue was listed.
    ahead: Option<Ahead>,
    schedule: Schedule<EntryId>,
    flights: Vec<Flight>,
    events: VecDeque<Event>,
    report: Report,
    /// To be tried first, alone, before the queue is listed.
    probe: Option<EntryId>,
    /// The same, once it was tried, as long as it has not left the queue.
    probed: Option<EntryId>,
    /// The upstream has answered in this pass.
    answered: bool,
    /// How many were tried before that whose failure says little about the upstream.
    passed_over: u32,
    /// How many the upstream has not looked at, it says, since it last answered.
    unprocessed: usize,
    /// Nothing further is started.
    stopping: bool,
    /// Why not, where the pass ends with an error.
    trouble: Option<Error>,
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

/// An entry whose turn it is, with its request put together.
struct Prepared {
    entry: Entry,
    turn: Turn,
    draft: Result<Draft, Failure>,
    /// Monotonic, in nanoseconds.
    at: u64,
}

struct Flight {
    task: Task,
    exchange: Exchange,
}

/// An entry in flight and what is being done about it.
struct Task {
    entry: Entry,
    turn: Turn,
    doing: Doing,
    /// Monotonic, in nanoseconds.
    started: u64,
}

impl Pass {
    /// Begins a pass; sends nothing yet.
    pub fn start(config: Config, options: Options) -> Result<Pass> {
        let upstream = config.upstream()?;
        let queue = Queue::open(&config)?;
        let lease = match config.lease {
            Some(true) => match Lease::take() {
                // Sending is what makes room.
                Err(Error::NoSpace) => None,
                lease => Some(Rc::new(lease?)),
            },
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
            ahead: None,
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
                ambiguous: 0,
                superseded: 0,
                unprotected: 0,
                remaining: resume.remaining,
                upstream: Health::Up,
                next_delay_ms: 0,
                resume: Resume { outages, probe: None, remaining: 0 },
            },
            probe,
            probed: None,
            answered: false,
            passed_over: 0,
            unprocessed: 0,
            stopping: false,
            trouble: None,
            ends_at: options.budget_ms.map(nanos),
            soonest: None,
            removals: Removals::new(options.sweep_every),
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

    /// Waits for the next outcome; none when the pass is over. An error ends it, but what is under way is waited for
    /// first: its outcome must not be lost.
    pub fn advance(&mut self) -> Result<Option<Event>> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            let more = match self.go_on() {
                Ok(more) => more,
                Err(error) => {
                    self.trouble.get_or_insert(error);
                    self.stopping = true;
                    false
                }
            };
            if self.events.is_empty() {
                if self.flights.is_empty() {
                    self.finish()?;
                    return Ok(None);
                }
                self.wait(more);
            }
        }
    }

    /// Starts what may be started, and does some of what can be done while requests are under way; whether there is more of
    /// that.
    fn go_on(&mut self) -> Result<bool> {
        if let Some(lease) = &self.lease {
            lease.keep()?;
        }
        self.fill()?;
        match self.events.is_empty() && !self.flights.is_empty() {
            true => self.work_ahead(),
            false => Ok(false),
        }
    }

    /// Does some of what can be done while requests are under way; whether there is more.
    fn work_ahead(&mut self) -> Result<bool> {
        if self.next.is_none() && self.answered && !self.stopping {
            self.next = self.next_entry()?;
        }
        self.removals.sync_when_due(&self.queue);
        Ok(self.removals.erase_some(&self.queue))
    }

    /// Starts what may be started.
    fn fill(&mut self) -> Result<()> {
        self.hold_for_overtaken();
        loop {
            let limit = if self.answered { self.config.concurrency } else { 1 };
            // What has ended without a request is told first: there may be no end of it.
            if !self.events.is_empty() || self.must_stop() || self.flights.len() >= limit {
                return Ok(());
            }
            let next = match self.next.take() {
                Some(next) => next,
                None => match self.next_entry()? {
                    Some(next) => next,
                    None => return Ok(()),
                },
            };
            self.launch(next);
        }
    }

    /// Starts the entry that is ready already, if the last request, which was started then, was answered soon. It concerns
    /// another resource than the one whose reply has just come, or it would not be ready.
    fn launch_next(&mut self, task: &Task, reply: &Reply) {
        let quick = monotonic_clock::now().saturating_sub(task.started) < QUICK;
        let may = quick
            && self.flights.is_empty()
            && !self.may_ask(&task.entry, reply)
            && !self.must_stop()
            && self.lease.as_ref().is_none_or(|lease| lease.keep().is_ok());
        if may && let Some(next) = self.next.take() {
            self.launch(next);
            if let Some(flight) = self.flights.last() {
                flight.exchange.hand_over();
            }
        }
    }

    /// Whether a question may follow this success: that is the one request then.
    fn may_ask(&self, entry: &Entry, reply: &Reply) -> bool {
        let told = matches!(entry.meta.method.as_str(), "DELETE" | "MOVE" | "COPY")
            || Validator::of(reply) != Validator::Unknown;
        !told && self.ahead.as_ref().is_none_or(|ahead| ahead.may_continue(entry))
    }

    /// Requests go one at a time.
    fn is_single_file(&self) -> bool {
        self.config.concurrency == 1
    }

    fn must_stop(&mut self) -> bool {
        self.stopping |= self.ends_at.is_some_and(|end| monotonic_clock::now() >= end);
        self.stopping
    }

    /// An entry has left the queue.
    fn left(&mut self, id: EntryId) {
        self.probed.take_if(|probed| *probed == id);
        self.report.remaining = self.report.remaining.saturating_sub(1);
        if let Some(ahead) = &mut self.ahead {
            ahead.gone(id);
        }
    }

    fn launch(&mut self, next: Prepared) {
        let Prepared { mut entry, turn, draft, at } = next;
        let started = monotonic_clock::now();
        if started.saturating_sub(at) > FRESH && self.queue.is_gone(entry.id) {
            let settled = self.removed(&entry);
            return self.close(Task { entry, turn, doing: Doing::Writing, started }, None, settled);
        }
        if let Some(status) = entry.state.taken {
            let step = self.learn(&entry, status, None);
            return self.follow(Task { entry, turn, doing: Doing::Writing, started }, Some(status), step);
        }
        if let Some(settled) = self.supersede(&entry) {
            return self.close(Task { entry, turn, doing: Doing::Writing, started }, None, settled);
        }
        let exchange = draft.and_then(|draft| {
            // What could not be taken out of the queue afterwards would be sent again and again.
            self.queue.staging().map_err(|error| Failure::Unreadable(error::describe(&error)))?;
            self.mark(&mut entry)?;
            draft.send()
        });
        let task = Task { entry, turn, doing: Doing::Writing, started };
        match exchange {
            Ok(exchange) => self.flights.push(Flight { task, exchange }),
            Err(failure) => self.settle(task, Err(failure)),
        }
    }

    fn timeouts(&self) -> Timeouts {
        Timeouts { connect: self.config.connect_timeout, idle: self.config.idle_timeout }
    }

    /// Waits until something moves, and follows it up; with `busy`, only looks.
    fn wait(&mut self, busy: bool) {
        let now = monotonic_clock::now();
        let deadline = self.flights.iter().map(|f| f.exchange.deadline()).min().unwrap_or(now);
        let until = self.removals.sync_due().map_or(deadline, |due| due.min(deadline));
        let patience = if busy { 0 } else { until.saturating_sub(now).min(HEARTBEAT) };
        let timer = monotonic_clock::subscribe_duration(patience);
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
                None if busy && now < deadline => {}
                None => moved.extend(0..self.flights.len()),
            }
        }
        moved.sort_unstable();
        moved.dedup();
        // From the back, so that removing one leaves the earlier indices as they are.
        for index in moved.into_iter().rev() {
            let Some(result) = self.flights.get_mut(index).and_then(|f| f.exchange.step()) else { continue };
            let Flight { task, exchange } = self.flights.remove(index);
            drop(exchange);
            if let Ok(reply) = &result
                && self.is_single_file()
                && reply.is_success()
            {
                self.launch_next(&task, reply);
            }
            self.settle(task, result);
        }
    }

    /// Makes removals durable and says when to come again.
    fn finish(&mut self) -> Result<()> {
        self.removals.finish(&self.queue)?;
        if let Some(error) = self.trouble.take() {
            return Err(error);
        }
        let report = &mut self.report;
        let away = report.upstream != Health::Up;
        let found = match report.upstream {
            Health::Up => true,
            Health::Down => self.answered,
            Health::Auth => report.delivered > 0,
        };
        // One that was there until just now is away for the first time.
        let before = if found { 0 } else { report.resume.outages };
        report.resume.outages = if away { before.saturating_add(1) } else { 0 };
        report.resume.remaining = report.remaining;
        let delay = if self.config.original && report.remaining > 0 {
            backoff::TICK
        } else if away {
            backoff::outage(report.resume.outages)
        } else if self.stopping {
            Duration::ZERO
        } else if report.remaining == 0 {
            backoff::IDLE_TICK
        } else {
            let due = self.soonest.map(|due| due.duration_since(SystemTime::now()).unwrap_or_default());
            let late = self.ahead.as_ref().is_some_and(Ahead::has_late);
            let longest = if late { backoff::SOON } else { backoff::TICK };
            due.unwrap_or(longest).clamp(backoff::SOON, longest)
        };
        report.next_delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        Ok(())
    }
}
