//! What the component's work costs, in instructions and file system calls: exact figures, which need no clock and
//! no quiet machine. They are compared with tests/costs.txt, so that a regression shows as a failure.

use outbox_sim::guest::Guest;
use outbox_sim::plan::{BaseWish, Call, Does, Mode, Plan, Setting, Step, What, Write};
use outbox_sim::run::{Cost, run};

/// Other compilers count a little differently.
const TOLERANCE: f64 = 0.05;

const BOOK: &str = include_str!("../costs.txt");

fn call(process: usize, does: Does) -> What {
    What::Calls { calls: vec![Call { process, does }], crash: None, faults: None, jump: None }
}

/// Queues so many entries of 1 KiB one after the other, in one process.
fn queue(entries: usize) -> impl Iterator<Item = What> {
    // A file each, which concern each other no more than files in a directory do.
    let uris = (0..entries).map(|n| &*Box::leak(format!("/x/{n:08}").into_boxed_str()));
    uris.map(|uri| queue_one(1, uri))
}

fn queue_one(process: usize, uri: &'static str) -> What {
    call(process, Does::Enqueue(write(uri)))
}

fn write(uri: &'static str) -> Write {
    Write { method: "PUT", uri, len: 1024, base: BaseWish::None, stream: None }
}

/// The costs of these, one after the other.
fn costs(guest: &Guest, calls: impl Iterator<Item = What>) -> Vec<Cost> {
    // With another one, the disk gives out some notes in two reads.
    let steps: Vec<Step> = calls.map(|what| Step { salt: 2, what }).collect();
    let count = steps.len();
    let mode = Mode::Default;
    let setting =
        Setting { concurrency: 4, strict: false, prefix: false, max_entries: None, lease: false, mode };
    let plan = Plan { seed: 1, setting, steps, lights_out: None };
    let outcome = run(guest, &plan, false);
    assert_eq!(outcome.violations, []);
    outcome.costs[..count].to_vec()
}

#[test]
fn the_costs_of_queueing_and_replaying_are_as_in_the_book() {
    let guest = Guest::shipped().unwrap();
    let pass = || call(0, Does::Replay { wake: true, resume: false, budget_ms: None });
    let [short, long] = [40, 140].map(|entries| costs(&guest, queue(entries).chain([pass()])));
    // What grows with the queue: what a pass costs whatever waits is left out.
    let each = |long: u64, short: u64| (long - short) / 100;
    let enqueue = long[139];
    let replay =
        Cost { fuel: each(long[140].fuel, short[40].fuel), files: each(long[140].files, short[40].files) };
    let eight = || ["/a", "/b", "/c", "/d", "/e", "/f", "/g", "/h"].map(write).to_vec();
    let batch = costs(&guest, queue(1).chain([call(1, Does::Batch(eight()))]))[1];
    let at_once = costs(&guest, queue(1).chain([call(1, Does::BatchAtOnce(eight()))]))[1];
    let ahead = costs(&guest, queue(1).chain([call(1, Does::StageAhead(1)), queue_one(1, "/y")]))[2];
    let found = [
        ("enqueue", enqueue),
        ("staged-ahead", ahead),
        ("eight-in-a-batch", batch),
        ("eight-at-once", at_once),
        ("replay", replay),
    ];
    let lines: Vec<String> =
        found.iter().map(|(name, cost)| format!("{name} {} {}", cost.fuel, cost.files)).collect();
    let book: Vec<&str> = BOOK.lines().filter(|line| !line.starts_with('#')).collect();
    let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let holds = book.len() == lines.len()
        && book.iter().zip(&lines).all(|(book, line)| {
            let (book, line) = (words(book), words(line));
            let (expected, fuel): (f64, f64) = (book[1].parse().unwrap(), line[1].parse().unwrap());
            book[0] == line[0] && book[2] == line[2] && (fuel / expected - 1.0).abs() <= TOLERANCE
        });
    assert!(holds, "tests/costs.txt says {book:#?}, now it is {lines:#?}; if that is meant, change the file");
}

#[test]
fn the_first_write_of_a_process_costs_the_same_in_a_long_queue() {
    let guest = Guest::shipped().unwrap();
    let [short, long] = [1, 200].map(|entries| {
        let costs = costs(&guest, queue(entries).chain([queue_one(2, "/y")]));
        costs[entries]
    });
    assert_eq!(short.files, long.files);
    let more = long.fuel as f64 / short.fuel as f64;
    assert!(
        more < 1.0 + TOLERANCE,
        "{} instructions with one entry waiting, {} with 200",
        short.fuel,
        long.fuel
    );
}

#[test]
fn an_id_that_was_given_out_and_is_not_in_the_queue_makes_no_delivery_dearer() {
    let guest = Guest::shipped().unwrap();
    let pass = || call(0, Does::Replay { wake: true, resume: false, budget_ms: None });
    let [without, with] = [false, true].map(|dropped| {
        let last = dropped.then(|| [queue_one(1, "/y"), call(1, Does::Drop(300))]);
        let costs = costs(&guest, queue(300).chain(last.into_iter().flatten()).chain([pass()]));
        costs.last().unwrap().files
    });
    assert!(with < without + 100, "{without} file system calls, {with} after something was dropped");
}
