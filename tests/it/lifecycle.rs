//! Passes that are stopped, or that nobody waits for any more, and what is left of an outbox then.

use crate::kit::{open, replay, root, send, soon};
use crate::upstream::{Act, Gate, Reply, Seen, Upstream};
use outbox_host::{Error, Event, Outbox, Report, Runtime, RuntimeOptions};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tempfile::TempDir;

/// A server that holds its replies back until the gate is open, and an outbox in which some entries wait.
async fn held(entries: usize) -> (TempDir, Upstream, Gate, Outbox) {
    let (root, gate) = (root(), Gate::new());
    let closed = gate.clone();
    let server = Upstream::start(move |_: &Seen| Act::ReplyAfter(closed.clone(), Reply::new(204)));
    let outbox = open(root.path(), &server.url());
    for number in 0..entries {
        send(&outbox, "POST", &format!("/{number}"), "").await;
    }
    (root, server, gate, outbox)
}

/// Makes a pass as soon as nobody else does.
async fn replay_when_free(outbox: &Outbox) -> Report {
    let free = async {
        loop {
            match outbox.replay().await {
                Err(Error::Locked(_)) => tokio::time::sleep(Duration::from_millis(10)).await,
                other => return other.unwrap(),
            }
        }
    };
    soon("a pass", free).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pass_that_nobody_waits_for_ends_after_the_request_in_flight_and_keeps_the_lock_until_then() {
    let (root, server, gate, outbox) = held(2).await;
    let other = open(root.path(), &server.url());
    tokio::select! {
        report = outbox.replay() => panic!("{report:?}"),
        () = server.wait_for(1) => {}
    }
    assert!(matches!(other.replay().await, Err(Error::Locked(_))));
    assert!(matches!(outbox.replay().await, Err(Error::Locked(_))));
    assert!(other.status().await.unwrap().replaying);
    gate.open();
    assert_eq!(replay_when_free(&other).await.delivered, 1);
    assert_eq!(server.lines(), ["POST /0", "POST /1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_does_not_end_after_a_stop_is_abandoned_before_another_may_replay() {
    let (root, server, _gate, outbox) = held(1).await;
    let other = open(root.path(), &server.url());
    let mut events = outbox.subscribe();
    outbox.start().unwrap();
    server.wait_for(1).await;
    outbox.shutdown().await;
    let failed = std::iter::from_fn(|| events.try_recv().ok()).find_map(|event| match event {
        Event::Failed(why) => Some(why),
        _ => None,
    });
    assert!(failed.is_some_and(|why| why.contains("stays in the queue")));
    // The first one is not delivered behind the second one's back.
    server.script(|_: &Seen| 204);
    assert_eq!(other.replay().await.unwrap().delivered, 1);
    soon("the end of the first request", async {
        while server.in_flight() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert_eq!(server.lines(), ["POST /0", "POST /0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outbox_that_was_shut_down_replays_no_more_and_says_so() {
    let (_root, _server, gate, outbox) = held(1).await;
    gate.open();
    let report = outbox.replay().await.unwrap();
    outbox.shutdown().await;
    assert!(matches!(outbox.replay().await, Err(Error::ShutDown)));
    assert!(matches!(outbox.tick(&report).await, Err(Error::ShutDown)));
    assert!(matches!(outbox.start(), Err(Error::ShutDown)));
    assert!(!outbox.status().await.unwrap().replaying);
}

#[cfg(target_os = "linux")]
#[test]
fn a_pass_that_no_thread_can_be_started_for_does_not_end_the_driver() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    // The limit binds nobody who is root. So this is done by another user, in a process of its own.
    const ALONE: &str = "OUTBOX_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        let name = "lifecycle::a_pass_that_no_thread_can_be_started_for_does_not_end_the_driver";
        let as_nobody = |program: &Path, args: &[&str]| {
            let mut other = Command::new("setpriv");
            other.args(["--reuid=64123", "--regid=64123", "--clear-groups"]).arg(program).args(args);
            other.env(ALONE, "1").current_dir("/").output()
        };
        let itself = std::env::current_exe().unwrap();
        if !as_nobody(&itself, &["--list"]).is_ok_and(|listed| listed.status.success()) {
            return println!("skipped: it takes root, setpriv, and a directory that others may enter");
        }
        let done = as_nobody(&itself, &["--exact", name, "--nocapture"]).unwrap();
        let said = String::from_utf8_lossy(&done.stdout) + String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    tokio.block_on(async {
        let (root, server) = (root(), Upstream::start(|_: &Seen| 204));
        let runtime = Runtime::new(&RuntimeOptions::default()).unwrap();
        let outbox = Outbox::builder(root.path()).runtime(runtime).upstream(server.url());
        // No thread for connections.
        let outbox = outbox.concurrency(1).open().unwrap();
        send(&outbox, "PUT", "/a", "x").await;
        let mut events = outbox.subscribe();
        let all = getrlimit(Resource::Nproc);
        setrlimit(Resource::Nproc, Rlimit { current: Some(1), ..all }).unwrap();
        outbox.start().unwrap();
        let failed = soon("the pass", events.recv()).await.unwrap();
        setrlimit(Resource::Nproc, all).unwrap();
        assert!(matches!(&failed, Event::Failed(why) if why.contains("no thread")), "{failed:?}");
        outbox.wake();
        server.wait_for(1).await;
        outbox.shutdown().await;
    });
}

#[test]
fn a_panic_of_a_callers_own_closure_is_the_callers() {
    let current = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let several = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    for runtime in [current, several] {
        runtime.block_on(async {
            let root = root();
            let outbox = open(root.path(), "http://127.0.0.1:9");
            let id = send(&outbox, "PUT", "/a", "x").await;
            let reader = outbox.clone();
            let read = async move { reader.read_body(id, |_| panic!("the caller's own")).await };
            assert!(tokio::spawn(read).await.is_err_and(|error| error.is_panic()));
            assert_eq!(outbox.count().await.unwrap().pending, 1);
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_shutdown_waits_until_the_driver_has_ended() {
    let (root, server, gate, outbox) = held(1).await;
    outbox.start().unwrap();
    server.wait_for(1).await;
    // The first is cancelled.
    for _ in 0..2 {
        assert!(tokio::time::timeout(Duration::ZERO, outbox.shutdown()).await.is_err());
    }
    gate.open();
    tokio::join!(outbox.shutdown(), async {
        outbox.shutdown().await;
        // Whoever comes next need not try twice.
        assert_eq!(open(root.path(), &server.url()).replay().await.unwrap().remaining, 0);
    });
    assert_eq!(server.lines(), ["POST /0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_gives_a_pass_on_demand_its_time_too() {
    let (root, server, gate, outbox) = held(2).await;
    let other = outbox.clone();
    let pass = tokio::spawn(async move { other.replay().await });
    server.wait_for(1).await;
    assert!(tokio::time::timeout(Duration::from_millis(100), outbox.shutdown()).await.is_err());
    gate.open();
    outbox.shutdown().await;
    assert_eq!(server.in_flight(), 0);
    assert_eq!(pass.await.unwrap().unwrap().delivered, 1);
    assert_eq!(open(root.path(), &server.url()).replay().await.unwrap().delivered, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_its_last_handle_an_outbox_starts_nothing_further() {
    let (root, server, gate, outbox) = held(3).await;
    let other = open(root.path(), &server.url());
    outbox.start().unwrap();
    server.wait_for(1).await;
    drop(outbox);
    gate.open();
    assert_eq!(replay_when_free(&other).await.delivered, 2);
    assert_eq!(server.seen().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_asks_who_replays_is_in_nobodys_way() {
    let (root, _server, _gate, outbox) = held(0).await;
    let over = Arc::new(AtomicBool::new(false));
    let ask = {
        let (other, over) = (open(root.path(), "http://127.0.0.1:9"), over.clone());
        move || {
            while !over.load(Ordering::Relaxed) {
                let _ = other.wake_host();
            }
        }
    };
    let asking = std::thread::spawn(ask);
    for _ in 0..200 {
        outbox.replay().await.unwrap();
    }
    over.store(true, Ordering::Relaxed);
    asking.join().unwrap();
}

#[cfg(unix)]
#[tokio::test]
async fn an_outbox_whose_directory_was_replaced_replays_neither_the_one_nor_the_other() {
    let (parent, server) = (root(), Upstream::start(|_| 204));
    let (at, away) = (parent.path().join("root"), parent.path().join("away"));
    let outbox = open(&at, &server.url());
    send(&outbox, "PUT", "/old", "x").await;
    outbox.count().await.unwrap();
    std::fs::rename(&at, &away).unwrap();
    let other = open(&at, &server.url());
    send(&other, "PUT", "/new", "x").await;
    assert!(matches!(outbox.replay().await, Err(Error::Replaced(_))));
    assert!(matches!(outbox.start(), Err(Error::Replaced(_))));
    assert_eq!(server.lines(), [""; 0]);
    // The lock was given back.
    assert_eq!(replay(&other).await.0.delivered, 1);
    assert_eq!(replay(&open(&away, &server.url())).await.0.delivered, 1);
    assert_eq!(server.lines(), ["PUT /new", "PUT /old"]);
}
