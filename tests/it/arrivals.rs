//! The place of what is queued or put back while a pass runs, or after the clock was set.

use crate::kit::{builder, edit_meta, open, path, replay, root, send};
use crate::upstream::{Act, Gate, Reply, Seen, Upstream};
use outbox_host::{Order, Outbox, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Queues a write and makes it look as if the clock had been an hour ahead then; its new id.
async fn send_from_the_future(outbox: &Outbox, root: &Path, uri: &str, body: &'static str) -> String {
    let id = send(outbox, "PUT", uri, body).await;
    let ahead = SystemTime::now() + Duration::from_secs(3600);
    let nanos = ahead.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos();
    let future = format!("{nanos:016x}-000000");
    edit_meta(root, &id, |meta| meta["id"] = future.as_str().into());
    std::fs::rename(path(root, &id), path(root, &future)).unwrap();
    let notes = path(root, ".newest");
    let noted = std::fs::read_to_string(&notes).unwrap();
    std::fs::write(&notes, noted.replace(&id, &future)).unwrap();
    future
}

#[tokio::test]
async fn a_write_queued_after_the_clock_went_back_is_sent_after_the_earlier_one() {
    let (root, server) = (root(), Upstream::start(|_| 204));
    let earlier = send_from_the_future(&open(root.path(), &server.url()), root.path(), "/a", "earlier").await;
    let outbox = open(root.path(), &server.url());
    let ids =
        [earlier, send(&outbox, "PUT", "/a", "second").await, send(&outbox, "PUT", "/a", "third").await];
    assert!(ids.is_sorted(), "{ids:?}");
    assert_eq!(replay(&outbox).await.0.delivered, 3);
    let bodies: Vec<_> = server.seen().into_iter().map(|seen| seen.body).collect();
    assert_eq!(bodies, [b"earlier".as_slice(), b"second", b"third"]);
}

#[tokio::test]
async fn a_write_put_back_after_the_clock_went_back_is_sent_before_the_later_one() {
    for limit in [None, Some(100)] {
        let (root, server) = (root(), Upstream::sequence(vec![422.into(), 204.into(), 204.into()]));
        let open = || builder(root.path()).upstream(server.url()).max_entries(limit).open().unwrap();
        let earlier = send_from_the_future(&open(), root.path(), "/a", "earlier").await;
        assert_eq!(replay(&open()).await.0.rejected, 1);
        // A power failure takes the notes along.
        std::fs::remove_file(path(root.path(), ".newest")).unwrap();
        let outbox = open();
        let later = send(&outbox, "PUT", "/a", "later").await;
        assert!(earlier < later, "{earlier} {later}");
        outbox.retry(&earlier).await.unwrap();
        assert_eq!(replay(&outbox).await.0.delivered, 2);
        let bodies: Vec<_> = server.seen().into_iter().map(|seen| seen.body).collect();
        assert_eq!(bodies, [b"earlier".as_slice(), b"earlier", b"later"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_queued_while_the_queue_is_listed_overtakes_nothing() {
    let (root, server) = (root(), Upstream::start(|_| 204));
    let outbox = open(root.path(), &server.url());
    // With these, it takes longer to list it than to queue something.
    for n in 0..5_000 {
        std::fs::create_dir(path(root.path(), &format!("foreign-{n}"))).unwrap();
    }
    let writer = open(root.path(), &server.url());
    let writing = tokio::spawn(async move {
        for n in 0..1_500 {
            writer.enqueue_write(Write::new("PUT", "/hot"), n.to_string().into()).await.unwrap();
        }
    });
    while !writing.is_finished() {
        replay(&outbox).await;
    }
    replay(&outbox).await;
    let bodies = server.seen().into_iter().map(|seen| String::from_utf8(seen.body).unwrap());
    let numbers: Vec<u32> = bodies.map(|body| body.parse().unwrap()).collect();
    let first = numbers.windows(2).position(|pair| pair[0] > pair[1]);
    assert_eq!((numbers.len(), first.map(|at| &numbers[at..at + 2])), (1_500, None));
}

/// A pass looks for what was put back ten times a second at most, and after 50 times what the last look took, which a busy
/// machine makes long.
const LISTED_AGAIN: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_write_put_back_in_mid_pass_goes_before_those_queued_later() {
    for (order, concurrency) in [(Order::Path, 1), (Order::Path, 4), (Order::Strict, 1)] {
        let gate = Gate::new();
        let held = gate.clone();
        let refused = std::sync::atomic::AtomicBool::new(false);
        let server = Upstream::start(move |seen: &Seen| match seen.target.as_str() {
            "/hot" if !refused.swap(true, std::sync::atomic::Ordering::Relaxed) => Act::from(422),
            target if target.starts_with("/slow") => Act::ReplyAfter(held.clone(), Reply::new(204)),
            _ => Act::from(204),
        });
        let root = root();
        let builder = || builder(root.path()).upstream(server.url()).order(order).concurrency(concurrency);
        let outbox = builder().open().unwrap();
        let old = send(&outbox, "PUT", "/hot", "old").await;
        assert_eq!(replay(&outbox).await.0.rejected, 1);
        // Some that have had their turn by then, one that is under way, and some that are read ahead.
        for uri in ["/quick/1", "/quick/2"] {
            send(&outbox, "PUT", uri, "").await;
        }
        for n in 0..8 {
            send(&outbox, "PUT", &format!("/slow/{n}"), "").await;
        }
        send(&outbox, "PUT", "/hot", "new").await;
        let pass = tokio::spawn({
            let outbox = outbox.clone();
            async move { outbox.replay().await }
        });
        server.wait_for(1 + 2 + concurrency).await;
        builder().open().unwrap().retry(&old).await.unwrap();
        tokio::time::sleep(LISTED_AGAIN).await;
        gate.open();
        pass.await.unwrap().unwrap();
        replay(&outbox).await;
        let hot = server.seen().into_iter().filter(|seen| seen.target == "/hot").skip(1);
        let hot: Vec<_> = hot.map(|seen| seen.body).collect();
        assert_eq!(hot, [b"old", b"new"], "{order:?} {concurrency}");
    }
}

#[tokio::test]
async fn a_write_put_back_after_a_later_one_was_sent_waits_for_the_next_pass_which_comes_soon() {
    // The later one has been sent by then, or is ready to be.
    for sent in [true, false] {
        let gate = Gate::new();
        let held = gate.clone();
        let server = Upstream::start(move |seen: &Seen| match seen.target.as_str() {
            "/slow" => Act::ReplyAfter(held.clone(), Reply::new(204)),
            _ => Act::decide(|seen| if seen.body == b"old" { 422 } else { 204 }),
        });
        let root = root();
        let builder = || builder(root.path()).upstream(server.url()).concurrency(1);
        let outbox = builder().open().unwrap();
        let old = send(&outbox, "PUT", "/hot", "old").await;
        assert_eq!(replay(&outbox).await.0.rejected, 1);
        let uris = if sent { ["/hot", "/slow"] } else { ["/slow", "/hot"] };
        for uri in ["/first"].into_iter().chain(uris) {
            send(&outbox, "PUT", uri, "new").await;
        }
        let pass = {
            let outbox = outbox.clone();
            tokio::spawn(async move { replay(&outbox).await.0 })
        };
        server.wait_for(if sent { 4 } else { 3 }).await;
        builder().open().unwrap().retry(&old).await.unwrap();
        tokio::time::sleep(LISTED_AGAIN).await;
        gate.open();
        let report = pass.await.unwrap();
        assert_eq!(report.remaining, if sent { 1 } else { 2 }, "{report:?}");
        assert!(report.next_delay_ms <= 1_000, "{report:?}");
        replay(&outbox).await;
        let hot = server.seen().into_iter().filter(|seen| seen.target == "/hot").skip(1);
        let hot: Vec<_> = hot.map(|seen| seen.body).collect();
        assert_eq!(hot, if sent { [b"new", b"old"] } else { [b"old", b"new"] });
    }
}

#[tokio::test]
async fn a_long_lived_instance_takes_notice_of_ids_that_others_gave_out_while_the_clock_was_ahead() {
    let root = root();
    let outbox = open(root.path(), "http://127.0.0.1:9");
    let first = send(&outbox, "PUT", "/a", "first").await;
    // Another process, and then a third one after the clock went back.
    let ahead =
        send_from_the_future(&open(root.path(), "http://127.0.0.1:9"), root.path(), "/a", "ahead").await;
    let third = send(&open(root.path(), "http://127.0.0.1:9"), "PUT", "/a", "third").await;
    let ids = [first, ahead, third, send(&outbox, "PUT", "/a", "last").await];
    assert!(ids.is_sorted(), "{ids:?}");
}

#[tokio::test]
async fn what_is_dropped_while_another_is_under_way_is_not_sent_after_it() {
    for concurrency in [1, 2] {
        let (root, gate) = (root(), Gate::new());
        let held = gate.clone();
        let server = Upstream::start(move |seen| match seen.target.as_str() {
            "/first" => Act::from(204),
            _ => Act::ReplyAfter(held.clone(), Reply::new(204)),
        });
        let outbox = builder(root.path()).upstream(server.url()).concurrency(concurrency).open().unwrap();
        send(&outbox, "PUT", "/first", "x").await;
        for n in 0..concurrency {
            send(&outbox, "PUT", &format!("/slow/{n}"), "x").await;
        }
        let dropped = send(&outbox, "PUT", "/dropped", "x").await;
        let pass = {
            let outbox = outbox.clone();
            tokio::spawn(async move { replay(&outbox).await.0 })
        };
        server.wait_for(1 + concurrency).await;
        outbox.drop_entry(&dropped).await.unwrap();
        // Only what was made ready some time ago is looked at again.
        tokio::time::sleep(Duration::from_millis(20)).await;
        gate.open();
        let report = pass.await.unwrap();
        assert_eq!((report.delivered, report.remaining), (1 + concurrency as u64, 0), "{report:?}");
        assert!(server.seen().iter().all(|seen| seen.target != "/dropped"), "{:?}", server.lines());
    }
}

#[tokio::test]
async fn what_the_original_is_just_writing_is_looked_for_soon() {
    let (root, server) = (root(), Upstream::start(|_| 204));
    let outbox = open(root.path(), &server.url());
    let id = send(&outbox, "PUT", "/a", "x").await;
    // It makes the directory first, and this last.
    let (meta, aside) = (path(root.path(), &format!("{id}/meta.json")), root.path().join("meta.json"));
    std::fs::rename(&meta, &aside).unwrap();
    let report = replay(&outbox).await.0;
    assert_eq!((report.remaining, report.next_delay_ms), (1, 1_000));
    std::fs::rename(&aside, &meta).unwrap();
    assert_eq!(replay(&outbox).await.0.delivered, 1);
}
