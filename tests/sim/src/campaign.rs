//! Many seeds, on as many threads as are wanted; each run has a runtime and a world of its own.

use crate::guest::Guest;
use crate::plan::Plan;
use crate::run::{Outcome, run};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A seed whose run broke a property.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// The first property that did not hold.
    pub property: &'static str,
    /// The details.
    pub details: String,
}

/// What came of it all.
#[derive(Debug, Default)]
pub struct Summary {
    /// Runs made.
    pub seeds: u64,
    /// In this time.
    pub elapsed: Duration,
    /// File system calls made in them.
    pub calls: u64,
    /// Requests sent in them.
    pub requests: u64,
    /// Processes that died in them.
    pub deaths: u64,
    /// Failures by seed.
    pub failures: Vec<Failure>,
}

impl Summary {
    /// Runs per second.
    pub fn rate(&self) -> f64 {
        self.seeds as f64 / self.elapsed.as_secs_f64().max(0.001)
    }
}

/// What to run.
#[derive(Debug, Clone, Copy)]
pub struct Campaign {
    /// The first seed.
    pub from: u64,
    /// How many.
    pub count: u64,
    /// On so many threads.
    pub threads: usize,
    /// Not longer than this.
    pub limit: Option<Duration>,
    /// Go on after a failure.
    pub keep_going: bool,
}

impl Campaign {
    /// Seeds on all the machine's processors, until one fails.
    pub fn new(from: u64, count: u64) -> Campaign {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Campaign { from, count, threads, limit: None, keep_going: false }
    }

    /// Runs them.
    pub fn run(&self, guest: &Guest) -> Summary {
        let started = Instant::now();
        let next = AtomicU64::new(0);
        let stop = AtomicBool::new(false);
        let summary = Mutex::new(Summary::default());
        std::thread::scope(|scope| {
            for _ in 0..self.threads.max(1) {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let offset = next.fetch_add(1, Ordering::Relaxed);
                        let late = self.limit.is_some_and(|limit| started.elapsed() >= limit);
                        if offset >= self.count || late {
                            return;
                        }
                        let seed = self.from + offset;
                        let outcome = run(guest, &Plan::new(seed), false);
                        let failed = !outcome.violations.is_empty();
                        summary.lock().unwrap().add(seed, outcome);
                        if failed && !self.keep_going {
                            stop.store(true, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        let mut summary = summary.into_inner().unwrap();
        summary.failures.sort_by_key(|failure| failure.seed);
        summary.elapsed = started.elapsed();
        summary
    }
}

impl Summary {
    fn add(&mut self, seed: u64, outcome: Outcome) {
        self.seeds += 1;
        self.calls += outcome.calls;
        self.requests += outcome.requests as u64;
        self.deaths += outcome.deaths;
        if let Some((property, details)) = outcome.violations.into_iter().next() {
            self.failures.push(Failure { seed, property, details });
        }
    }
}
