//! What the outbox may hold: at a limit new writes are refused, by name and with the way out, and nothing old goes.

use crate::cli::Cli;
use crate::kit::{builder, path, replay, root, tree};
use crate::upstream::{Reply, Seen, Upstream};
use outbox_host::{Body, Builder, Error, Keep, Limits, Measure, Outbox, Write};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A block: what files and directories are counted in.
const BLOCK: u64 = 4096;

fn outbox(root: &Path, limit: impl FnOnce(Builder) -> Builder) -> Outbox {
    limit(builder(root)).open().unwrap()
}

async fn put(outbox: &Outbox, uri: &str, len: usize) -> Result<String, Error> {
    outbox.enqueue_write(Write::new("PUT", uri), vec![b'x'; len].into()).await
}

/// The limit that refused it: its value and what is used.
fn full(result: Result<String, Error>, wanted: Measure) -> (u64, u64) {
    match result {
        Err(Error::QueueFull { measure, max, used }) if measure == wanted => (max, used),
        other => panic!("not full of {wanted:?}: {other:?}"),
    }
}

#[tokio::test]
async fn at_the_limit_of_entries_writes_are_refused_until_some_are_gone() {
    let (root, server) = (root(), Upstream::start(|_| 204));
    let outbox = outbox(root.path(), |b| b.max_entries(3).upstream(server.url()));
    let mut ids = Vec::new();
    for n in 0..3 {
        ids.push(put(&outbox, &format!("/{n}"), 1).await.unwrap());
    }
    let before = tree(root.path());
    for _ in 0..3 {
        assert_eq!(full(put(&outbox, "/more", 1).await, Measure::Entries), (3, 3));
    }
    assert_eq!(tree(root.path()), before);
    assert_eq!(path(root.path(), ".staging").read_dir().unwrap().count(), 0);
    // One goes, one may come: whoever took it away.
    let other = builder(root.path()).open().unwrap();
    other.drop_entry(&ids[1]).await.unwrap();
    put(&outbox, "/3", 1).await.unwrap();
    full(put(&outbox, "/more", 1).await, Measure::Entries);
    assert_eq!(replay(&outbox).await.0.delivered, 3);
    put(&outbox, "/4", 1).await.unwrap();
    let mut sent = server.lines();
    sent.sort();
    assert_eq!(sent, ["PUT /0", "PUT /2", "PUT /3"]);
}

#[tokio::test]
async fn bytes_are_those_on_disk_of_everything_that_is_kept() {
    let root = root();
    let server = Upstream::start(|seen: &Seen| if seen.target == "/no" { 422 } else { 204 });
    let limit = |blocks: u64| outbox(root.path(), |b| b.max_bytes(blocks * BLOCK).upstream(server.url()));
    // A directory, meta.json and a body: three blocks, or two without a body.
    put(&limit(3), "/no", 1).await.unwrap();
    put(&limit(6), "/a", 4096).await.unwrap();
    let outbox = limit(8);
    assert_eq!(outbox.usage().await.unwrap().bytes, 6 * BLOCK);
    assert_eq!(full(put(&outbox, "/b", 1).await, Measure::Bytes), (8 * BLOCK, 6 * BLOCK));
    put(&outbox, "/b", 0).await.unwrap();
    assert_eq!(full(put(&outbox, "/c", 0).await, Measure::Bytes), (8 * BLOCK, 8 * BLOCK));
    // What was refused is still there, with the reply.
    let (report, _) = replay(&outbox).await;
    assert_eq!((report.delivered, report.rejected), (2, 1));
    assert_eq!(outbox.usage().await.unwrap().bytes, 4 * BLOCK);
    put(&outbox, "/d", 4097).await.unwrap();
    assert_eq!(full(put(&outbox, "/e", 0).await, Measure::Bytes), (8 * BLOCK, 8 * BLOCK));
    let rejected = &outbox.quarantined().await.unwrap()[0].name;
    outbox.drop_entry(rejected).await.unwrap();
    put(&outbox, "/e", 4096 + 1).await.unwrap();
    assert_eq!(outbox.usage().await.unwrap().bytes, 8 * BLOCK);
}

#[tokio::test]
async fn a_streamed_body_that_would_cross_a_limit_stops_in_the_middle_and_leaves_nothing() {
    let root = root();
    let outbox = outbox(root.path(), |b| b.max_bytes(1_000_000).max_body(2_000_000));
    put(&outbox, "/a", 500_000).await.unwrap();
    let before = tree(root.path());
    /// As long as it takes, and counted.
    struct Endless(Arc<AtomicU64>);
    impl Read for Endless {
        fn read(&mut self, chunk: &mut [u8]) -> std::io::Result<usize> {
            self.0.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            chunk.fill(b'x');
            Ok(chunk.len())
        }
    }
    for (limit, wanted) in [(1_000_000, 500_000..1_500_000), (u64::MAX, 2_000_000..3_000_000)] {
        let read = Arc::<AtomicU64>::default();
        let outbox = self::outbox(root.path(), |b| b.max_bytes(limit).max_body(2_000_000));
        let sent = outbox.enqueue_write(Write::new("PUT", "/b"), Body::reader(Endless(read.clone()))).await;
        match sent {
            Err(Error::QueueFull { measure: Measure::Bytes, max: 1_000_000, .. }) if limit == 1_000_000 => {}
            Err(Error::BodyTooLarge(2_000_000)) if limit > 1_000_000 => {}
            other => panic!("{other:?}"),
        }
        let read = read.load(Ordering::Relaxed);
        assert!(wanted.contains(&read), "{read}");
        assert_eq!(tree(root.path()), before);
        assert_eq!(path(root.path(), ".staging").read_dir().unwrap().count(), 0);
    }
}

#[tokio::test]
async fn what_is_in_the_outbox_may_move_though_it_is_full() {
    let root = root();
    let server = Upstream::start(|seen: &Seen| match seen.target.as_str() {
        "/conflict" => Reply::new(412).header("ETag", "\"v2\""),
        _ => Reply::new(422),
    });
    let outbox = outbox(root.path(), |b| b.max_entries(2).max_bytes(12 * BLOCK).upstream(server.url()));
    let conflict = put(&outbox, "/conflict", 1).await.unwrap();
    let rejected = put(&outbox, "/rejected", 1).await.unwrap();
    let (report, _) = replay(&outbox).await;
    assert_eq!((report.conflicts, report.rejected), (1, 1));
    // They do not count as entries, but take eight blocks.
    put(&outbox, "/x", 1).await.unwrap();
    full(put(&outbox, "/y", 1).await, Measure::Bytes);
    outbox.retry(&rejected).await.unwrap();
    assert!(outbox.resolve(&conflict, Keep::Mine).await.unwrap().is_some());
    assert_eq!(outbox.count().await.unwrap().pending, 3);
    assert_eq!(full(put(&outbox, "/y", 0).await, Measure::Entries), (2, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_overrun_a_limit_by_no_more_than_what_they_have_in_flight() {
    let root = root();
    let outbox = outbox(root.path(), |b| b.max_entries(100).durability(outbox_host::Durability::None));
    let callers = 6;
    let mut tasks = Vec::new();
    for caller in 0..callers {
        let outbox = outbox.clone();
        tasks.push(tokio::spawn(async move {
            let mut queued = 0;
            for n in 0..40 {
                match put(&outbox, &format!("/{caller}/{n}"), 10).await {
                    Ok(_) => queued += 1,
                    refused => drop(full(refused, Measure::Entries)),
                }
            }
            queued
        }));
    }
    let mut queued = 0;
    for task in tasks {
        queued += task.await.unwrap();
    }
    assert!((100..100 + callers).contains(&queued), "{queued}");
    assert_eq!(outbox.count().await.unwrap().pending, queued);
}

#[test]
fn the_command_line_says_which_limit_it_was_and_how_to_make_room() {
    let cli = Cli::new();
    cli.send(&["PUT", "/a", "--max-entries", "1"]);
    let make_room = ["outbox replay", "outbox drop", "raise"];
    for (args, env, wanted) in [
        (
            &["--max-entries", "1"][..],
            None,
            ["1 entries", "of the 1 ", "--max-entries", "OUTBOX_MAX_ENTRIES"],
        ),
        (
            &[],
            Some(("OUTBOX_MAX_ENTRIES", "1")),
            ["1 entries", "of the 1 ", "--max-entries", "OUTBOX_MAX_ENTRIES"],
        ),
        (&["--max-bytes", "9000"], None, ["8192 bytes", "of the 9000 ", "--max-bytes", "OUTBOX_MAX_BYTES"]),
        (
            &[],
            Some(("OUTBOX_MAX_BYTES", "9000")),
            ["8192 bytes", "of the 9000 ", "--max-bytes", "OUTBOX_MAX_BYTES"],
        ),
    ] {
        let mut command = cli.command(["send", "PUT", "/b"].iter().chain(args));
        command.envs(env);
        let ran = crate::cli::Ran::from(command.output().unwrap());
        assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.lines().count()), (1, "", 2), "{ran:?}");
        for text in wanted.iter().chain(&make_room) {
            assert!(ran.stderr.contains(text), "no {text:?} in {ran:?}");
        }
        // What was set aside takes bytes, and does not count as an entry.
        let aside = ran.stderr.contains("'resolve' what 'outbox conflicts' and 'rejected' show");
        assert_eq!(aside, wanted[0].ends_with("bytes"), "{ran:?}");
    }
    let mut command = cli.command(["send", "PUT", "/b", "--body", "-"]);
    command.env("OUTBOX_MAX_BODY", "3");
    let ran = crate::cli::feed(command, b"four");
    assert!(ran.code == 1 && ran.stderr.contains("--max-body"), "{ran:?}");
    for (name, value) in [("--max-entries", "0"), ("--max-bytes", "0"), ("--max-bytes", "1G")] {
        assert_eq!(cli.run(["send", "PUT", "/b", name, value]).code, 2);
    }
    // What is used, beside what is allowed.
    let ran = cli.run(["status", "--max-entries", "5", "--max-bytes", "100000"]);
    assert!(ran.stdout.contains("1  pending of at most 5\n"), "{ran:?}");
    assert!(ran.stdout.contains("8192  bytes on disk of at most 100000\n"), "{ran:?}");
    let status = crate::cli::parse(cli.run(["status", "--json"]).stdout);
    assert_eq!((&status["bytes"], &status["newer"]), (&8192.into(), &0.into()));
}

#[tokio::test]
async fn what_can_never_work_is_refused_before_anything_is_made() {
    let root = root();
    let outbox = root.path().join("new");
    type Set = fn(Builder) -> Builder;
    const LONG: Duration = Duration::from_millis(86_400_001);
    let cases: [(Set, &str, &str); 14] = [
        (|b| b.concurrency(0), "concurrency", "0"),
        (|b| b.concurrency(257), "concurrency", "257"),
        (|b| b.max_entries(0), "max_entries", "0"),
        (|b| b.max_bytes(0), "max_bytes", "0"),
        (|b| b.connect_timeout(Duration::ZERO), "connect_timeout", "0"),
        (|b| b.idle_timeout(Duration::ZERO), "idle_timeout", "0"),
        (|b| b.connect_timeout(LONG), "connect_timeout", "86400.001s"),
        (|b| b.idle_timeout(LONG), "idle_timeout", "86400.001s"),
        (|b| b.expect_header(""), "--expect-header", ""),
        (|b| b.expect_header("X-Served-By"), "--expect-header", "X-Served-By"),
        (|b| b.expect_header("X Served: dav7"), "--expect-header", "X Served: dav7"),
        (|b| b.expect_header("X-Served-By: "), "--expect-header", "X-Served-By: "),
        (|b| b.limits(Limits { deadline: Duration::ZERO, ..Limits::default() }), "deadline", "0"),
        (|b| b.limits(Limits { memory: 2_097_151, ..Limits::default() }), "memory", "2097151"),
    ];
    for (set, name, given) in cases {
        match set(builder(&outbox).upstream("http://127.0.0.1:9")).start() {
            Err(Error::Invalid { what, value, .. }) => assert_eq!((&*what, &*value), (name, given)),
            other => panic!("{name} {given}: {:?}", other.err()),
        }
        assert!(!outbox.exists());
    }
    let nowhere = builder(root.path()).open().unwrap();
    for refused in [nowhere.start(), nowhere.replay().await.map(drop)] {
        assert!(matches!(&refused, Err(Error::Invalid { what, .. }) if what == "upstream"), "{refused:?}");
    }
}
