//! A start and a tick with a long queue. How long they take is printed, not judged, because machines differ.

use crate::cli::Cli;
use crate::kit::{open, path, root};
use crate::strace;
use crate::upstream::{Reply, Upstream};
use std::fs;
use std::sync::{Arc, Mutex};
use std::time::Instant;

const ENTRIES: u64 = 100_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_entries_do_not_keep_the_first_request_waiting() {
    let root = root();
    // The host makes the outbox's directory.
    drop(open(root.path(), "http://127.0.0.1:9"));
    for n in 0..ENTRIES {
        let id = format!("{:016x}-{:06x}", 0x18ea_4ba2_77c3_22d7 + n, n & 0x00ff_ffff);
        let entry = path(root.path(), &id);
        fs::create_dir(&entry).unwrap();
        let meta = format!(
            r#"{{"id":"{id}","method":"PUT","raw_uri":"/x/{n}","queued_at":"2026-11-22T06:56:02Z"}}"#
        );
        fs::write(entry.join("meta.json"), meta).unwrap();
        fs::write(entry.join("body.bin"), "x").unwrap();
    }
    let first: Arc<Mutex<Option<Instant>>> = Arc::default();
    let seen = first.clone();
    // Want of credentials ends the pass at its first request.
    let server = Upstream::start(move |_| {
        seen.lock().unwrap().get_or_insert_with(Instant::now);
        Reply::new(401)
    });
    let started = Instant::now();
    let outbox = open(root.path(), &server.url());
    let report = outbox.replay().await.unwrap();
    let waited = first.lock().unwrap().unwrap() - started;
    println!(
        "{ENTRIES} entries waiting: the first request came {:.2} s after the start",
        waited.as_secs_f64()
    );
    assert_eq!((report.held, report.remaining), (1, ENTRIES));
    assert_eq!(server.lines(), ["PUT /x/0"]);

    // A tick while the upstream stays away: one request, and the directory is not looked through, or else it would
    // be noticed that an entry is gone.
    fs::remove_dir_all(path(root.path(), &format!("{:016x}-{:06x}", 0x18ea_4ba2_77c3_22d7_u64 + 7, 7)))
        .unwrap();
    let started = Instant::now();
    let report = outbox.tick(&report).await.unwrap();
    println!("a tick in an outage took {:.1} ms", started.elapsed().as_secs_f64() * 1e3);
    assert_eq!((report.held, report.remaining), (1, ENTRIES));
    assert_eq!(server.lines(), ["PUT /x/0", "PUT /x/0"]);
}

/// The host puts its lease there just before, so that a listing cannot tell whether something else came meanwhile.
#[test]
fn a_long_queue_is_listed_once_before_the_first_request() {
    const ENTRIES: u64 = 60_000;
    let cli = Cli::new();
    let first = cli.send(&["PUT", "/x"]);
    let sent = u64::from_str_radix(&first[..16], 16).unwrap();
    // Only the first is looked at.
    for n in 1..ENTRIES {
        fs::create_dir(path(cli.root.path(), &format!("{:016x}-000000", sent + n))).unwrap();
    }
    let listed = |calls: &[String]| -> u64 {
        let bytes = calls.iter().filter(|call| call.contains("getdents64"));
        bytes.map(|call| call.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    };
    let Some(once) = strace::calls(&cli, "getdents64", &["status"]) else { return };
    let once = listed(&once);
    let nobody = ["replay", "--upstream", "http://127.0.0.1:9"];
    let calls = strace::calls(&cli, "getdents64,connect", &nobody).unwrap();
    let asked = calls.iter().position(|call| call.contains("htons(9)")).unwrap();
    let listed = listed(&calls[..asked]);
    // A part of it before it was known to be long.
    assert!(once < listed && listed < once * 7 / 4, "{listed} bytes of names, where a listing has {once}");
}
