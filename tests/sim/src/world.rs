//! The world around the component: its file tree, its clocks, the server, what goes wrong and when, and the
//! record of what happened.

use crate::durable::Loss;
use crate::ledger::Ledger;
use crate::peer::Peer;
use crate::rng::Rng;
use crate::time::Clock;
use crate::trace::Trace;
use crate::tree::{Errno, Tree};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// When every run begins: 2026-05-01T08:00:00Z, in Unix nanoseconds.
pub const BEGINNING: u64 = 1_777_622_400 * 1_000_000_000;

/// The world, shared by the processes, the server and the run.
#[derive(Clone)]
pub struct Shared(Arc<Mutex<World>>);

impl Shared {
    /// A world of one's own.
    pub fn new(world: World) -> Shared {
        Shared(Arc::new(Mutex::new(world)))
    }

    /// A look at it. Not to be held while waiting.
    pub fn lock(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All of it.
pub struct World {
    /// Virtual time.
    pub clock: Clock,
    /// Seeded anew for each step, so that a step does the same when others are left out.
    pub rng: Rng,
    /// The file system.
    pub tree: Tree,
    /// What the wall clock is off by, in nanoseconds.
    pub wall_offset: i64,
    /// The latest time that the wall clock ever showed.
    pub wall_high: u64,
    /// What the monotonic clock is ahead by.
    pub monotonic_offset: u64,
    /// What goes wrong in the file system.
    pub faults: Option<Faults>,
    /// The crash to come.
    pub crash: Option<Crash>,
    /// When the wall clock is to be set, and by how many seconds.
    pub jump: Option<(u64, i64)>,
    /// It was set in this step.
    pub jumped: bool,
    /// The power has failed: nobody gets anything done any more.
    pub dark: bool,
    /// Calls into the file system, in this step, of all processes.
    pub calls: u64,
    /// Calls into the file system of the process that is to crash.
    pub victim_calls: u64,
    /// Processes in a call.
    pub running: usize,
    /// Some call was made to fail in this step.
    pub faulted: bool,
    /// A sync of a directory was made to fail, so many times.
    pub failed_syncs: u64,
    /// The server.
    pub peer: Peer,
    /// What the clients know.
    pub ledger: Ledger,
    /// For people.
    pub trace: Trace,
    /// Numbers what happens.
    next: u64,
}

/// What kind of file system call something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Op {
    Open,
    Create,
    MakeDir,
    Read,
    Write,
    Sync,
    Rename,
    Stat,
    List,
    Remove,
}

/// Calls that are made to fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults {
    /// Which.
    pub ops: Vec<Op>,
    /// How many in a hundred of those.
    pub percent: u64,
    /// From the so many-th call of the step on.
    pub from: u64,
    /// For so many calls.
    pub length: u64,
    /// Because the disk is full, where that can be; else it is broken.
    pub full: bool,
}

/// A crash to come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crash {
    /// Which of the step's calls dies.
    pub victim: usize,
    /// Where.
    pub at: Point,
    /// The power fails, with this loss, which ends all processes; else only this process dies.
    pub power: Option<Loss>,
}

/// Where a process dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// Before the effect of its so many-th file system call.
    Before(u64),
    /// After it.
    After(u64),
    /// When it has computed so much, in units of fuel.
    Fuel(u64),
    /// After so many milliseconds.
    Time(u64),
}

/// The process has died: not an error of the component.
#[derive(Debug)]
pub struct Died;

impl std::fmt::Display for Died {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the process died here")
    }
}

impl std::error::Error for Died {}

impl World {
    /// The world at its beginning.
    pub fn new(clock: Clock, seed: u64, peer: Peer, trace: Trace) -> World {
        World {
            clock,
            rng: Rng::new(seed),
            tree: Tree::default(),
            wall_offset: 0,
            wall_high: BEGINNING,
            monotonic_offset: 0,
            faults: None,
            crash: None,
            jump: None,
            jumped: false,
            dark: false,
            calls: 0,
            victim_calls: 0,
            running: 0,
            faulted: false,
            failed_syncs: 0,
            peer,
            ledger: Ledger::default(),
            trace,
            next: 0,
        }
    }

    /// The wall clock: Unix nanoseconds.
    pub fn wall(&mut self) -> u64 {
        let now = (BEGINNING + self.clock.now()).saturating_add_signed(self.wall_offset);
        self.wall_high = self.wall_high.max(now);
        now
    }

    /// The number of the event that happens now: later ones have greater numbers.
    pub fn event(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Counts a call into the file system, and sets the clock if that is due.
    pub fn count_call(&mut self) {
        self.calls += 1;
        if let Some((_, seconds)) = self.jump.take_if(|(call, _)| *call <= self.calls) {
            self.wall_offset += seconds * 1_000_000_000;
            self.jumped = true;
            self.say(|| format!("-- the wall clock is set by {seconds} s"));
        }
    }

    /// Adds to the trace, if anybody wants to see it.
    pub fn say(&mut self, text: impl FnOnce() -> String) {
        let now = self.clock.now();
        self.trace.say(now, text);
    }

    /// Adds the whole tree to the trace.
    pub fn show_tree(&mut self, title: impl FnOnce() -> String) {
        let now = self.clock.now();
        self.trace.say(now, || format!("-- {}\n{}", title(), self.tree.dump().trim_end()));
    }

    /// Whether this call is made to fail.
    pub fn fault(&mut self, op: Op) -> Option<Errno> {
        let call = self.calls;
        let faults = self.faults.as_ref()?;
        let here = call >= faults.from && call < faults.from.saturating_add(faults.length);
        if !here || !faults.ops.contains(&op) {
            return None;
        }
        let (percent, full) = (faults.percent, faults.full);
        if !self.rng.percent(percent) {
            return None;
        }
        self.faulted = true;
        let event = self.event();
        self.ledger.disturbances.push(event);
        let takes_space = matches!(op, Op::Create | Op::MakeDir | Op::Write | Op::Sync | Op::Rename);
        Some(if full && takes_space { Errno::NoSpace } else { Errno::Io })
    }
}
