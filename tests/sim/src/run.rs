//! A plan, carried out: steps, then the end that every run has. The faults stop, the server is well, and
//! everything must come to rest within bounded virtual time.

use crate::act::{self, Errand};
use crate::durable::{Loss, Odds};
use crate::guest::{Guest, PLENTY, Process};
use crate::mood::Mood;
use crate::oracle;
use crate::peer::{AUTHORITY, Peer};
use crate::plan::{Call, Does, Mode, Plan, Step, What};
use crate::rng::Rng;
use crate::time::Clock;
use crate::trace::Trace;
use crate::view::{self, Place};
use crate::world::{Crash, Faults, Point, Shared, World};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

/// How long a healthy server may take to drain the queue: the longest Retry-After is a day, and so is the
/// furthest that the clock jumps.
const DRAIN: Duration = Duration::from_secs(60 * 3600);
/// And in how many passes.
const DRAIN_PASSES: usize = 600;
/// What is in `.staging` for longer is left over.
const ABANDONED: Duration = Duration::from_secs(2 * 3600);
/// After so many seconds the kernel has written what was not synced.
const WRITTEN_BACK: u64 = 60;
/// How far the clock is beyond everything that it ever showed when the queue is drained.
const CAUGHT_UP: i64 = 26 * 3600 * 1_000_000_000;

/// What came of a run.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The properties that did not hold, with details; the first is where to look.
    pub violations: Vec<(&'static str, String)>,
    /// What happened, if it was to be recorded.
    pub trace: Vec<String>,
    /// File system calls made.
    pub calls: u64,
    /// Requests made.
    pub requests: usize,
    /// Processes that died.
    pub deaths: u64,
    /// What the calls cost that were made alone, in order.
    pub costs: Vec<Cost>,
}

/// What a call costs. Both are exact: the same on any machine, for one build of the component.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// Instructions of the guest, as wasmtime counts them.
    pub fuel: u64,
    /// File system calls.
    pub files: u64,
}

/// Carries out a plan.
pub fn run(guest: &Guest, plan: &Plan, tracing: bool) -> Outcome {
    let clock = Clock::default();
    let idle = clock.clone();
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.on_thread_park(move || idle.idle()).build().expect("a runtime needs nothing");
    let prefix = if plan.setting.prefix { "/dav" } else { "" };
    let peer = Peer::new(plan.seed, prefix);
    let world = Shared::new(World::new(clock.clone(), plan.seed, peer, Trace::new(tracing)));
    let mut run = Run {
        guest,
        plan,
        env: environment(plan),
        clock: clock.clone(),
        world: world.clone(),
        processes: (0..4).map(|_| None).collect(),
        resume: None,
        calls: 0,
        deaths: 0,
        costs: Vec::new(),
    };
    let finished = runtime.block_on(clock.watch(run.all()));
    let (calls, deaths, costs) = (run.calls, run.deaths, std::mem::take(&mut run.costs));
    drop(run);
    drop(runtime);
    let mut world = world.lock();
    if finished.is_none() {
        world.ledger.wrong("every call ends", "nothing can ever happen again, and calls are open".into());
    }
    let mut violations = std::mem::take(&mut world.ledger.violations);
    if finished.is_some() {
        violations.extend(oracle::judge(&world, plan));
    }
    Outcome { violations, trace: world.trace.take(), calls, requests: world.peer.seen.len(), deaths, costs }
}

fn environment(plan: &Plan) -> Vec<(String, String)> {
    let prefix = if plan.setting.prefix { "/dav" } else { "" };
    let order = if plan.setting.strict { "strict" } else { "path" };
    let max_entries = plan.setting.max_entries.map(|max| max.to_string());
    // None is the default.
    let word = |mode, word: &str| if plan.setting.mode == mode { word.to_owned() } else { String::new() };
    [
        ("OUTBOX_UPSTREAM", format!("http://{AUTHORITY}{prefix}")),
        ("OUTBOX_CONCURRENCY", plan.setting.concurrency.to_string()),
        ("OUTBOX_ORDER", order.to_owned()),
        ("OUTBOX_MAX_ENTRIES", max_entries.unwrap_or_default()),
        ("OUTBOX_LEASE", if plan.setting.lease { "hold" } else { "none" }.to_owned()),
        ("OUTBOX_AMBIGUOUS", word(Mode::Hold, "hold")),
        ("OUTBOX_COALESCE", word(Mode::Coalesce, "on")),
        ("OUTBOX_REJECTED", word(Mode::Drop, "drop")),
        ("OUTBOX_AUTH", word(Mode::Drop, "drop")),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .to_vec()
}

struct Run<'a> {
    guest: &'a Guest,
    plan: &'a Plan,
    env: Vec<(String, String)>,
    clock: Clock,
    world: Shared,
    processes: Vec<Option<Process>>,
    /// What the last pass said.
    resume: Option<act::Resume>,
    calls: u64,
    deaths: u64,
    costs: Vec<Cost>,
}

impl Run<'_> {
    async fn all(&mut self) {
        for (number, step) in self.plan.steps.iter().enumerate() {
            self.say(|| format!("-- step {number}: {:?}", step.what));
            self.step(step).await;
        }
        self.finish().await;
    }

    fn say(&self, text: impl FnOnce() -> String) {
        self.world.lock().say(text);
    }

    async fn step(&mut self, step: &Step) {
        self.world.lock().rng = Rng::new(step.salt);
        let now = self.clock.now();
        match &step.what {
            What::Calls { calls, crash, faults, jump } => {
                self.world.lock().jump = *jump;
                self.calls(calls, crash.as_ref(), faults.as_ref()).await;
                self.world.lock().jump = None;
            }
            What::Mood(mood) => self.world.lock().peer.mood = *mood,
            What::Foreign { path, remove } => {
                let mut world = self.world.lock();
                let body = format!("foreign {}", world.rng.word()).into_bytes();
                let event = world.event();
                match remove {
                    true => drop(world.peer.resources.remove(*path)),
                    false => world.peer.put(path, body, now),
                }
                world.peer.changed(event, path, None);
            }
            What::Wait(seconds) => {
                self.clock.sleep(Duration::from_secs(*seconds)).await;
                if *seconds > WRITTEN_BACK {
                    self.world.lock().tree.write_back();
                }
            }
            What::Jump(seconds) => self.world.lock().wall_offset += seconds * 1_000_000_000,
            What::Suspend(seconds) => self.world.lock().monotonic_offset += seconds * 1_000_000_000,
            What::Damage(damage) => crate::damage::plant(&mut self.world.lock(), *damage),
            What::PowerFailure(loss) => self.power_failure(*loss),
        }
        let mut world = self.world.lock();
        let event = world.event();
        world.ledger.quiet.push(event);
    }

    /// Several processes call the component at once; one may die, or all of them.
    async fn calls(&mut self, calls: &[Call], crash: Option<&Crash>, faults: Option<&Faults>) {
        let mut going = Vec::new();
        for (turn, call) in calls.iter().enumerate() {
            let Some(mut process) = self.process(call.process).await else { return };
            process.store.data_mut().turn = turn;
            let here = crash.filter(|crash| crash.victim == turn).map(|crash| crash.at);
            let fuel = match here {
                Some(Point::Fuel(fuel)) => fuel,
                _ => PLENTY,
            };
            process.store.set_fuel(fuel).expect("fuel is on");
            let mortal = match here {
                Some(Point::Time(millis)) => Some(self.clock.sleep(Duration::from_millis(millis))),
                _ => None,
            };
            let errand = Errand {
                world: self.world.clone(),
                resume: self.resume.clone(),
                alone: calls.len() == 1,
                setting: self.plan.setting.clone(),
            };
            going.push((process, call, errand, here.is_some(), mortal));
        }
        {
            let mut world = self.world.lock();
            world.calls = 0;
            world.victim_calls = 0;
            world.faulted = false;
            world.jumped = false;
            world.crash = crash.cloned();
            world.faults = faults.cloned();
            world.running = calls.len();
        }
        let power = crash.and_then(|crash| crash.power);
        let futures = going.into_iter().map(|(process, call, errand, victim, mortal)| {
            let life = live(process, &call.does, errand, victim, mortal);
            Box::pin(life) as Pin<Box<dyn Future<Output = Life> + '_>>
        });
        let lives = self.together(futures.collect(), power.is_some()).await;
        for life in lives {
            if let Life::Over(_) = life {
                self.deaths += 1;
            }
            if let Life::Goes(process, resume) = life {
                if calls.len() == 1 {
                    let left = process.store.get_fuel().expect("fuel is on");
                    let files = self.world.lock().calls;
                    self.costs.push(Cost { fuel: PLENTY.saturating_sub(left), files });
                }
                self.resume = resume.or(self.resume.take());
                let number = process.number;
                self.processes[number] = Some(*process);
            }
        }
        {
            let mut world = self.world.lock();
            self.calls += world.calls;
            world.crash = None;
            world.faults = None;
        }
        // A power failure that nobody waited for comes after everything was acknowledged.
        if let Some(loss) = power {
            self.power_failure(loss);
        }
        // Connections of the dead are closed.
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
    }

    /// Lets all go on in turn, until all are done, or the power fails.
    async fn together<'f>(
        &self,
        futures: Vec<Pin<Box<dyn Future<Output = Life> + 'f>>>,
        power: bool,
    ) -> Vec<Life> {
        let mut open: Vec<_> = futures.into_iter().map(Some).collect();
        let mut lives = Vec::new();
        std::future::poll_fn(|cx| {
            let count = open.len();
            let first = self.world.lock().rng.below(count as u64) as usize;
            for k in 0..count {
                let slot = &mut open[(first + k) % count];
                let Some(future) = slot else { continue };
                let Poll::Ready(life) = future.as_mut().poll(cx) else { continue };
                *slot = None;
                let mut world = self.world.lock();
                world.running -= 1;
                if let Life::Over(number) = life {
                    let event = world.event();
                    world.ledger.disturbances.push(event);
                    world.ledger.deaths.push((number, event));
                }
                if power && matches!(life, Life::Over(_)) {
                    world.dark = true;
                    return Poll::Ready(());
                }
                lives.push(life);
            }
            match open.iter().all(Option::is_none) {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
        .await;
        lives
    }

    async fn process(&mut self, number: usize) -> Option<Process> {
        if let Some(process) = self.processes[number].take() {
            return Some(process);
        }
        let mut env = self.env.clone();
        let boots = self.world.lock().ledger.power_failures.len();
        env.push(("OUTBOX_BOOT".into(), boots.to_string()));
        match Process::start(self.guest, &self.world, number, &env).await {
            Ok(process) => Some(process),
            Err(error) => {
                let mut world = self.world.lock();
                world.ledger.wrong("the component never traps", format!("at its start: {error:#}"));
                None
            }
        }
    }

    fn power_failure(&mut self, loss: Loss) {
        self.processes.iter_mut().for_each(|process| *process = None);
        self.resume = None;
        let mut world = self.world.lock();
        let world = &mut *world;
        world.show_tree(|| format!("the power fails ({loss:?}); the tree before:"));
        world.tree.power_failure(loss, &mut world.rng);
        world.show_tree(|| "and after:".into());
        let event = world.event();
        world.ledger.power_failures.push(event);
        world.ledger.disturbances.push(event);
        world.dark = false;
    }

    /// The end of every run.
    async fn finish(&mut self) {
        self.say(|| "-- the end: no more faults, the server is well".into());
        self.world.lock().rng = Rng::new(self.plan.seed ^ 0xf1a1);
        if let Some(loss) = self.plan.lights_out {
            self.power_failure(loss);
        }
        self.processes.iter_mut().for_each(|process| *process = None);
        self.resume = None;
        {
            let mut world = self.world.lock();
            world.peer.mood = Mood::default();
            let now = world.wall();
            let behind = world.wall_high - now;
            world.wall_offset += behind as i64 + CAUGHT_UP;
            world.faulted = false;
            world.ledger.finale = world.event();
        }
        self.drain().await;
        self.clock.sleep(ABANDONED).await;
        self.world.lock().tree.write_back();
        self.alone(0, Does::Replay { wake: true, resume: false, budget_ms: None }).await;
        let left = view::staging(&self.world.lock().tree);
        if !left.is_empty() {
            self.wrong("staging does not leak", format!("{left:?} is in .staging two hours later"));
        }
        for does in [Does::Verify, Does::Quarantined, Does::Count, Does::Pending] {
            self.alone(1, does).await;
        }
        // What was done is durable: the worst power failure changes nothing any more.
        let names = |run: &Run<'_>| -> Vec<String> {
            view::entries(&run.world.lock().tree).into_iter().map(|entry| entry.name).collect()
        };
        let before = names(self);
        self.power_failure(Loss { names: Odds::Never, data: Odds::Never });
        let after = names(self);
        // Where a sync had failed, a removal that it was to make durable may be undone. Nothing may vanish.
        let undone = self.world.lock().failed_syncs > 0;
        let kept = |name: &String| after.iter().any(|other| other[..23] == name[..23]);
        if before != after && !(undone && before.iter().all(kept)) {
            let text = format!("with the queue at rest, a power failure makes {after:?} of {before:?}");
            self.wrong("what a pass has done is durable at its end", text);
        }
    }

    fn wrong(&self, property: &'static str, details: String) {
        self.world.lock().ledger.wrong(property, details);
    }

    async fn drain(&mut self) {
        let started = self.clock.now();
        let mut wake = true;
        for _ in 0..DRAIN_PASSES {
            if self.plan.setting.mode == Mode::Hold {
                self.alone(1, Does::Release).await;
            }
            self.alone(0, Does::Replay { wake, resume: true, budget_ms: None }).await;
            wake = false;
            let pending = self.pending();
            if pending.is_empty() || self.clock.now() - started > DRAIN.as_nanos() as u64 {
                break;
            }
            let delay = self.resume.as_ref().map_or(1000, |resume| resume.next_delay_ms).max(1000);
            self.clock.sleep(Duration::from_millis(delay)).await;
        }
        let pending = self.pending();
        if !pending.is_empty() {
            let hours = (self.clock.now() - started) / 3_600_000_000_000;
            self.wrong("a healthy server drains the queue", format!("{pending:?} wait after {hours} h"));
        }
    }

    fn pending(&self) -> Vec<String> {
        let entries = view::entries(&self.world.lock().tree);
        entries.into_iter().filter(|e| e.place == Place::Pending).map(|e| e.id).collect()
    }

    async fn alone(&mut self, process: usize, does: Does) {
        self.calls(&[Call { process, does }], None, None).await;
    }
}

/// What became of a process in a step.
enum Life {
    /// It goes on; what a pass said.
    Goes(Box<Process>, Option<act::Resume>),
    /// It died, as it was to: which it was.
    Over(usize),
    /// It trapped.
    Trapped,
}

/// A process makes its call, if it lives so long.
async fn live(
    mut process: Process,
    does: &Does,
    errand: Errand,
    victim: bool,
    mortal: Option<crate::time::Sleep>,
) -> Life {
    let world = errand.world.clone();
    let result = {
        let mut work = std::pin::pin!(errand.perform(&mut process, does));
        let mut mortal = mortal.map(Box::pin);
        std::future::poll_fn(|cx| {
            if let Poll::Ready(result) = work.as_mut().poll(cx) {
                return Poll::Ready(Some(result));
            }
            match mortal.as_mut().map(|sleep| sleep.as_mut().poll(cx)) {
                Some(Poll::Ready(())) => Poll::Ready(None),
                _ => Poll::Pending,
            }
        })
        .await
    };
    let number = process.number;
    let Some(result) = result else {
        world.lock().say(|| format!("[{number}] dies while it waits"));
        return Life::Over(number);
    };
    match result {
        Ok(resume) => Life::Goes(Box::new(process), resume),
        Err(_) if process.store.data().died => Life::Over(number),
        Err(trap) => {
            let out = trap.downcast_ref::<wasmtime::Trap>() == Some(&wasmtime::Trap::OutOfFuel);
            let mut world = world.lock();
            if out && victim {
                world.say(|| format!("[{number}] dies while it computes"));
                return Life::Over(number);
            }
            let said = process.last_words();
            let text = format!("{does:?}: {said} {}", trap.root_cause());
            world.say(|| text.clone());
            world.ledger.wrong("the component never traps", text);
            Life::Trapped
        }
    }
}
