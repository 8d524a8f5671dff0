//! Any number of processes may queue at the same time, beside the one that replays.

use crate::cli::Cli;
use crate::kit;
use crate::upstream::Upstream;
use outbox_host::{Error, Write};
use std::collections::HashSet;

#[tokio::test]
async fn processes_that_queue_at_once_beside_a_replaying_one_get_ids_of_their_own_and_all_is_delivered() {
    const SENDERS: usize = 4;
    const EACH: usize = 6;
    let cli = Cli::new();
    let server = Upstream::start(|_| 204);
    let daemon = cli.daemon(&server.url(), &[]);
    let ids: Vec<String> = std::thread::scope(|scope| {
        let sender = |sender: usize| {
            let cli = &cli;
            move || -> Vec<String> {
                (0..EACH)
                    .map(|n| cli.send(&["PUT", &format!("/{sender}/x"), "--header", &format!("X-N: {n}")]))
                    .collect()
            }
        };
        let running: Vec<_> = (0..SENDERS).map(|n| scope.spawn(sender(n))).collect();
        running.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(ids.iter().collect::<HashSet<_>>().len(), SENDERS * EACH);
    server.wait_for(SENDERS * EACH).await;
    daemon.stop();
    let seen = server.seen();
    let keys: HashSet<_> = seen.iter().filter_map(|request| request.header("idempotency-key")).collect();
    assert_eq!((seen.len(), keys.len()), (ids.len(), ids.len()));
    assert!(ids.iter().all(|id| keys.contains(id.as_str())));
    // Each sender's writes in its own order.
    for sender in 0..SENDERS {
        let path = format!("/{sender}/x");
        let order: Vec<&str> =
            seen.iter().filter(|s| s.target == path).filter_map(|s| s.header("x-n")).collect();
        assert_eq!(order, (0..EACH).map(|n| n.to_string()).collect::<Vec<_>>());
    }
    assert!(cli.tree().is_empty());
}

/// Each instance notes the ids it gives out in a place of its own in `.newest`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_callers_share_a_bounded_number_of_instances() {
    const CALLERS: usize = 64;
    const EACH: usize = 4;
    let root = kit::root();
    let outbox = kit::builder(root.path()).open().unwrap();
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..CALLERS {
        let outbox = outbox.clone();
        callers.spawn(async move {
            for _ in 0..EACH {
                let write = Write::new("PUT", format!("/{caller}"));
                outbox.enqueue_write(write, "body".into()).await.unwrap();
            }
        });
    }
    callers.join_all().await;
    assert_eq!(outbox.count().await.unwrap().pending, (CALLERS * EACH) as u64);
    let notes = std::fs::read(root.path().join(kit::OUTBOX_DIR).join(".newest")).unwrap();
    let instances = notes.chunks(24).filter(|note| note[0].is_ascii_hexdigit()).count();
    assert!(instances <= 32, "{instances} instances were made for {CALLERS} callers");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_callers_each_is_told_what_became_of_its_own_write() {
    const CALLERS: usize = 96;
    let root = kit::root();
    let outbox = kit::builder(root.path()).max_body(2_000).open().unwrap();
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..CALLERS {
        let outbox = outbox.clone();
        callers.spawn(async move {
            let (uri, len) = match caller % 3 {
                0 => (format!("/{caller}"), 10),
                1 => (format!("//{caller}"), 10),
                _ => (format!("/{caller}"), 2_001),
            };
            (uri.clone(), len, outbox.enqueue_write(Write::new("PUT", uri), vec![b'x'; len].into()).await)
        });
    }
    let mut queued = Vec::new();
    for (uri, len, result) in callers.join_all().await {
        match result {
            Ok(id) => queued.push((id, uri)),
            Err(Error::Invalid { value, .. }) => assert_eq!((value, &uri[..2]), (uri.clone(), "//")),
            Err(Error::BodyTooLarge(2_000)) => assert_eq!(len, 2_001),
            Err(error) => panic!("{uri}: {error}"),
        }
    }
    queued.sort();
    let pending = outbox.pending(None, u32::MAX).await.unwrap();
    assert_eq!(pending.into_iter().map(|entry| (entry.id, entry.raw_uri)).collect::<Vec<_>>(), queued);
    assert_eq!(queued.len(), CALLERS / 3);
    assert_eq!(std::fs::read_dir(root.path().join(kit::OUTBOX_DIR).join(".staging")).unwrap().count(), 0);
}

/// On a runtime with one thread, calls run on others, and a caller may go while its write waits.
#[tokio::test]
async fn a_caller_that_goes_away_keeps_no_other_from_its_answer() {
    const CALLERS: usize = 96;
    let root = kit::root();
    let outbox = kit::builder(root.path()).open().unwrap();
    let mut callers = tokio::task::JoinSet::new();
    let mut fickle = tokio::task::JoinSet::new();
    for caller in 0..CALLERS {
        let outbox = outbox.clone();
        let work =
            async move { outbox.enqueue_write(Write::new("PUT", format!("/{caller}")), "x".into()).await };
        if caller % 2 == 0 {
            callers.spawn(work)
        } else {
            fickle.spawn(work)
        };
    }
    tokio::task::yield_now().await;
    fickle.abort_all();
    let stayed = kit::soon("those that stayed", callers.join_all()).await;
    assert_eq!(stayed.into_iter().filter(Result::is_ok).count(), CALLERS / 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outboxes_of_one_process_are_each_woken_by_what_others_queue_in_theirs() {
    let server = Upstream::start(|_| 204);
    let roots = [kit::root(), kit::root(), kit::root()];
    let mut passes = Vec::new();
    let mut outboxes = Vec::new();
    for root in &roots {
        let outbox = kit::builder(root.path()).upstream(server.url()).open().unwrap();
        let mut events = outbox.subscribe();
        outbox.start().unwrap();
        // The pass at the start is over: the next one is due in 5 minutes.
        kit::soon("the first pass", events.recv()).await.unwrap();
        passes.push(events);
        outboxes.push(outbox);
    }
    for (n, root) in roots.iter().enumerate().rev() {
        // Another handle, as another process has.
        kit::send(&kit::open(root.path(), &server.url()), "PUT", &format!("/{n}"), "body").await;
        kit::soon("its delivery", passes[n].recv()).await.unwrap();
        assert_eq!(server.seen().last().map(|seen| seen.target.clone()), Some(format!("/{n}")));
        // One that has shut down is watched no more, and the others still are.
        outboxes[n].shutdown().await;
    }
    assert_eq!(server.seen().len(), roots.len());
}
