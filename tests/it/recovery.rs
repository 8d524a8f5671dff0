//! How long a start and a tick take with a long queue: printed, not judged, because machines differ.

use crate::kit::{open, path, root};
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
