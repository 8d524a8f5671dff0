//! The shipped component in the deterministic simulator: docs/testing.md.

use outbox_sim::campaign::Campaign;
use outbox_sim::guest::Guest;
use outbox_sim::mood::{Mood, Trouble};
use outbox_sim::mutants;
use outbox_sim::plan::{BaseWish, Call, Does, Plan, Step, What, Write};
use outbox_sim::run::run;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Seeds per `cargo test`: about a minute on two processors.
const SEEDS: u64 = 3000;

fn guest() -> &'static Guest {
    static GUEST: OnceLock<Guest> = OnceLock::new();
    GUEST.get_or_init(|| Guest::shipped().unwrap())
}

fn regressions() -> Vec<u64> {
    let lines = include_str!("../sim/regressions.txt").lines().map(str::trim);
    let seeds = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    seeds.map(|line| line.split_whitespace().next().unwrap().parse().unwrap()).collect()
}

#[test]
fn seeds_that_once_failed_hold() {
    for seed in regressions() {
        let outcome = run(guest(), &Plan::new(seed), false);
        assert_eq!(outcome.violations, [], "cargo run -p outbox-sim -- --seed {seed}");
    }
}

#[test]
fn every_property_holds_for_thousands_of_seeds() {
    let summary = Campaign::new(0, SEEDS).run(guest());
    println!(
        "{} seeds at {:.1} seeds/s: {} file system calls, {} requests, {} deaths",
        summary.seeds,
        summary.rate(),
        summary.calls,
        summary.requests,
        summary.deaths
    );
    if let Some(failure) = summary.failures.first() {
        panic!(
            "{}: {}\ncargo run -p outbox-sim -- --seed {} --shrink",
            failure.property, failure.details, failure.seed
        );
    }
}

/// The original gives up a pass after two minutes. Here nothing is cut that moves, however long it takes; in the
/// simulator's time.
#[test]
fn a_body_that_crawls_for_minutes_arrives_in_one_request() {
    let write = Write { method: "PUT", uri: "/a", len: 4 << 20, base: BaseWish::None, stream: None };
    let call = |process, does| What::Calls {
        calls: vec![Call { process, does }],
        crash: None,
        faults: None,
        jump: None,
    };
    let steps = [
        What::Mood(Mood { trouble: Trouble::Crawling, percent: 100 }),
        call(1, Does::Enqueue(write)),
        call(0, Does::Replay { wake: true, resume: false, budget_ms: None }),
    ];
    let steps = steps.into_iter().map(|what| Step { salt: 1, what }).collect();
    let plan = Plan { steps, lights_out: None, ..Plan::new(1) };
    let outcome = run(guest(), &plan, true);
    assert_eq!((&outcome.violations[..], outcome.requests), (&[][..], 1));
    // Each line starts with the time in seconds.
    let applied = outcome.trace.iter().find(|line| line.ends_with("is applied")).unwrap();
    let at: f64 = applied.split_whitespace().next().unwrap().parse().unwrap();
    assert!(at > 300.0, "{applied}");
}

#[test]
fn a_seed_gives_the_same_run_byte_for_byte() {
    for seed in 0..40 {
        let plan = Plan::new(seed);
        let (first, again) = (run(guest(), &plan, true), run(guest(), &plan, true));
        assert!(!first.trace.is_empty());
        for (line, other) in first.trace.iter().zip(&again.trace) {
            assert_eq!(line, other, "seed {seed}");
        }
        assert_eq!(first.trace.len(), again.trace.len(), "seed {seed}");
        // A run that is not watched is the same run.
        let unseen = run(guest(), &plan, false);
        assert_eq!((first.calls, first.requests), (unseen.calls, unseen.requests), "seed {seed}");
    }
}

#[test]
fn every_mutant_is_caught_within_its_number_of_seeds() {
    let all = mutants::all().unwrap();
    let guest = Guest::new(&mutants::build(&all).unwrap()).unwrap();
    let next = AtomicUsize::new(0);
    let escaped = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..Campaign::new(0, 0).threads {
            scope.spawn(|| {
                while let Some(mutant) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match mutants::catch(&guest, mutant, 0, 1) {
                        Some(caught) => {
                            println!("{}: {} ({} seeds)", mutant.name, caught.failure.property, caught.seeds);
                        }
                        None => escaped.lock().unwrap().push(mutant.name.clone()),
                    }
                }
            });
        }
    });
    assert_eq!(escaped.into_inner().unwrap(), Vec::<String>::new(), "not caught");
}
