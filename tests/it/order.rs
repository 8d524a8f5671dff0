//! What is sent after what, what at once, and what an outage, a restart, a wake or a shutdown does to it.

use crate::kit::{Base, builder, cache_dir, open, path, replay, root, send, send_on, soon, tree};
use crate::upstream::{Act, Gate, Reply, ReservedPort, Upstream};
use outbox_host::{
    Body, Delivery, Durability, Error, Event, Health, Order, Outbox, Outcome, Runtime, RuntimeOptions, Write,
};
use std::collections::HashMap;
use std::time::{Duration, SystemTime};
use tokio::sync::broadcast::Receiver;

/// The next event that fits.
async fn next<T>(events: &mut Receiver<Event>, what: &str, fits: impl Fn(Event) -> Option<T>) -> T {
    soon(what, async {
        loop {
            if let Some(found) = fits(events.recv().await.unwrap()) {
                return found;
            }
        }
    })
    .await
}

async fn next_delivery(events: &mut Receiver<Event>) -> Delivery {
    next(events, "a delivery", |event| match event {
        Event::Delivery(delivery) => Some(delivery),
        _ => None,
    })
    .await
}

#[tokio::test]
async fn writes_to_one_path_arrive_in_queue_order_whatever_the_concurrency() {
    for concurrency in [1, 4, 16] {
        let (root, server) = (root(), Upstream::start(|_| 204));
        let outbox = builder(root.path()).upstream(server.url()).concurrency(concurrency).open().unwrap();
        for n in 0..60 {
            let body: &'static str = Box::leak(n.to_string().into_boxed_str());
            send(&outbox, "PUT", &format!("/{}?n={n}", n % 6), body).await;
        }
        let (report, _) = replay(&outbox).await;
        assert_eq!((report.delivered, report.remaining), (60, 0));
        let mut by_path: HashMap<String, Vec<usize>> = HashMap::new();
        for seen in server.seen() {
            let path = seen.target.split('?').next().unwrap().to_owned();
            by_path.entry(path).or_default().push(String::from_utf8(seen.body).unwrap().parse().unwrap());
        }
        assert_eq!(by_path.len(), 6);
        assert!(
            by_path.values().all(|order| order.len() == 10 && order.is_sorted()),
            "{concurrency}: {by_path:?}"
        );
        assert!(server.max_in_flight() <= concurrency);
    }
}

#[tokio::test]
async fn a_deferred_entry_holds_back_its_path_and_those_above_and_below_but_no_other() {
    for concurrency in [1, 16] {
        let root = root();
        let server = Upstream::start(|seen| if seen.target == "/a/b?first" { 503 } else { 204 });
        let outbox = builder(root.path()).upstream(server.url()).concurrency(concurrency).open().unwrap();
        let uris = ["/a/b?first", "/a/c", "/ab", "/a/b?second", "/a/%62/", "/a/b/c", "/a", "/a/d", "/x/a/b"];
        for uri in uris {
            send(&outbox, "PUT", uri, uri).await;
        }
        let (report, _) = replay(&outbox).await;
        assert_eq!((report.delivered, report.deferred, report.remaining), (3, 1, 6));
        let mut sent = server.lines();
        sent.sort();
        // What comes after a held-back /a is held back with it: /a/d.
        assert_eq!(sent, ["PUT /a/b?first", "PUT /a/c", "PUT /ab", "PUT /x/a/b"]);

        server.script(|_| 204);
        let first = outbox.pending(None, 1).await.unwrap().remove(0);
        outbox.retry(first.id).await.unwrap();
        let (report, deliveries) = replay(&outbox).await;
        assert_eq!((report.delivered, report.remaining), (6, 0));
        assert_eq!(deliveries[0].raw_uri, "/a/b?first");
        let position = |uri| server.lines().iter().rposition(|line| line == &format!("PUT {uri}")).unwrap();
        assert!(position("/a/b?second") < position("/a/%62/"));
        assert!(position("/a/b/c") < position("/a") && position("/a") < position("/a/d"));
    }
}

/// With several requests at once, the host deletes beside the pass, all but the last few.
#[tokio::test]
async fn nothing_of_what_was_delivered_is_left_whoever_deletes_it() {
    for concurrency in [1, 8] {
        let (root, server) = (root(), Upstream::start(|_| 204));
        let outbox = builder(root.path()).upstream(server.url()).concurrency(concurrency).open().unwrap();
        for n in 0..200 {
            send(&outbox, "PUT", &format!("/{n}"), "x").await;
        }
        assert_eq!(replay(&outbox).await.0.delivered, 200);
        // What was staged ahead goes.
        outbox.shutdown().await;
        let left = std::fs::read_dir(path(root.path(), ".staging")).unwrap().count();
        assert_eq!(left, 0, "at concurrency {concurrency}");
    }
}

/// A COPY or MOVE concerns where it leads, too, however that is spelt.
#[tokio::test]
async fn a_move_and_a_write_to_its_destination_keep_their_order() {
    for destination in ["/dav@x/b", "http://elsewhere.example:8080/dav@x/%62/", "/dav%40x/b", "//dav%40x//b"]
    {
        let root = root();
        let server = Upstream::start(|seen| if seen.method == "MOVE" { 503 } else { 204 });
        let outbox =
            builder(root.path()).upstream(format!("{}/dav@x", server.url())).concurrency(16).open().unwrap();
        let mut write = Write::new("MOVE", "/a");
        write.headers.push(("Destination".into(), destination.into()));
        outbox.enqueue_write(write, Body::empty()).await.unwrap();
        send(&outbox, "PUT", "/b/c", "x").await;
        send(&outbox, "PUT", "/c", "x").await;
        let (report, _) = replay(&outbox).await;
        assert_eq!((report.delivered, report.deferred, report.remaining), (1, 1, 2), "{destination}");
        assert_eq!(server.lines(), ["MOVE /dav@x/a", "PUT /dav@x/c"]);

        server.script(|_| 204);
        outbox.retry(outbox.pending(None, 1).await.unwrap().remove(0).id).await.unwrap();
        replay(&outbox).await;
        assert_eq!(server.lines()[2..], ["MOVE /dav@x/a", "PUT /dav@x/b/c"]);
    }
}

#[tokio::test]
async fn strict_order_holds_back_everything_and_sends_one_at_a_time() {
    let root = root();
    let server = Upstream::start(|seen| if seen.target == "/2" { 503 } else { 204 });
    let strict = builder(root.path()).upstream(server.url()).order(Order::Strict).concurrency(16);
    let outbox = strict.open().unwrap();
    for uri in ["/1", "/2", "/3", "/4"] {
        send(&outbox, "POST", uri, "x").await;
    }
    let (report, _) = replay(&outbox).await;
    assert_eq!((report.delivered, report.deferred, report.remaining), (1, 1, 3));
    assert_eq!(server.lines(), ["POST /1", "POST /2"]);
    server.script(|_| 204);
    outbox.retry(outbox.pending(None, 1).await.unwrap().remove(0).id).await.unwrap();
    replay(&outbox).await;
    assert_eq!(server.lines()[2..], ["POST /2", "POST /3", "POST /4"]);
    assert_eq!(server.max_in_flight(), 1);
}

#[tokio::test]
async fn independent_writes_fly_together_once_the_first_was_answered() {
    let root = root();
    let (first, others) = (Gate::new(), Gate::new());
    let (hold_first, hold_others) = (first.clone(), others.clone());
    let server = Upstream::start(move |seen| {
        let gate = if seen.target == "/0" { &hold_first } else { &hold_others };
        Act::ReplyAfter(gate.clone(), Reply::new(204))
    });
    let outbox = builder(root.path()).upstream(server.url()).concurrency(4).open().unwrap();
    for n in 0..9 {
        send(&outbox, "PUT", &format!("/{n}"), "x").await;
    }
    tokio::join!(
        async {
            let (report, _) = replay(&outbox).await;
            assert_eq!((report.delivered, report.remaining), (9, 0));
        },
        async {
            server.wait_for(1).await;
            first.open();
            // Four are being dealt with at once, none of which is answered.
            server.wait_for(1 + 4).await;
            others.open();
        }
    );
    assert_eq!(server.max_in_flight(), 4);
}

#[tokio::test]
async fn the_first_request_of_a_pass_goes_alone() {
    // Each of these answers ends the pass: whatever was sent beside the first would be seen.
    for act in [Act::Cut, Act::from(401), Act::from(511)] {
        let root = root();
        let server = Upstream::start(move |_| act.clone());
        let outbox = builder(root.path()).upstream(server.url()).concurrency(16).open().unwrap();
        for n in 0..20 {
            send(&outbox, "PUT", &format!("/{n}"), "x").await;
        }
        let (report, _) = replay(&outbox).await;
        assert_eq!((report.remaining, report.deferred + report.held), (20, 1));
        assert_eq!((server.lines(), server.max_in_flight()), (vec!["PUT /0".to_owned()], 1));
    }
}

#[tokio::test]
async fn an_outage_costs_one_attempt_a_pass_whatever_waits() {
    let root = root();
    let server = Upstream::start(|_| Act::Cut);
    let outbox = builder(root.path()).upstream(server.url()).concurrency(16).open().unwrap();
    for n in 0..50 {
        send(&outbox, "PUT", &format!("/{n}"), "x").await;
    }
    for pass in 1..=2 {
        let (report, deliveries) = replay(&outbox).await;
        assert_eq!((report.remaining, report.deferred, report.upstream), (50, 1, Health::Down));
        assert_eq!((deliveries.len(), server.seen().len(), server.connections()), (1, pass, pass));
        assert_eq!((deliveries[0].raw_uri.as_str(), deliveries[0].outcome), ("/0", Outcome::Deferred));
        assert_eq!(report.next_delay_ms, 30_000);
    }
    // No backoff of its own: the upstream was away, and so far nothing is wrong with the entry.
    assert_eq!(outbox.pending(None, 1).await.unwrap()[0].not_before, None);
    server.script(|_| 204);
    assert_eq!(replay(&outbox).await.0.delivered, 50);
}

#[tokio::test]
async fn a_connection_lost_in_mid_pass_stops_it_and_loses_nothing() {
    let root = root();
    let server = Upstream::start(|seen| if seen.target == "/3" { Act::Cut } else { 204.into() });
    let outbox = builder(root.path()).upstream(server.url()).concurrency(1).open().unwrap();
    for n in 0..8 {
        send(&outbox, "PUT", &format!("/{n}"), "x").await;
    }
    let (report, _) = replay(&outbox).await;
    assert_eq!(
        (report.delivered, report.deferred, report.remaining, report.upstream),
        (3, 1, 5, Health::Down)
    );
    assert_eq!(server.lines(), ["PUT /0", "PUT /1", "PUT /2", "PUT /3"]);
}

#[tokio::test]
async fn entries_with_long_headers_are_read_ahead_as_far_as_there_is_room() {
    let (root, server) = (root(), Upstream::start(|_| 204));
    let outbox = builder(root.path()).upstream(server.url()).durability(Durability::None).open().unwrap();
    for n in 0..3_000 {
        let headers = ["X-One", "X-Two"].map(|name| (name.to_owned(), "x".repeat(12_000))).to_vec();
        let write = Write { headers, base_etag: Some("\"v1\"".into()), ..Write::new("PUT", format!("/{n}")) };
        outbox.enqueue_write(write, Body::empty()).await.unwrap();
    }
    assert_eq!(replay(&outbox).await.0.delivered, 3_000);
}

#[tokio::test]
async fn what_was_queued_outlives_the_host_and_is_replayed_by_another() {
    let (root, server) = (root(), Upstream::start(|_| 204));
    let fresh = || {
        let options = RuntimeOptions { component: None, cache_dir: Some(cache_dir()) };
        let builder = Outbox::builder(root.path()).runtime(Runtime::new(&options).unwrap());
        builder.upstream(server.url()).open().unwrap()
    };
    let outbox = fresh();
    let ids = [send(&outbox, "PUT", "/a", "1").await, send(&outbox, "PUT", "/a", "2").await];
    drop(outbox);
    let (report, deliveries) = replay(&fresh()).await;
    assert_eq!((report.delivered, report.remaining), (2, 0));
    assert_eq!(deliveries.iter().map(|d| &d.id).collect::<Vec<_>>(), ids.iter().collect::<Vec<_>>());
    let (report, _) = replay(&fresh()).await;
    assert_eq!((report.delivered, server.seen().len()), (0, 2));
}

#[tokio::test]
async fn a_started_outbox_delivers_once_the_server_appears_and_it_is_woken() {
    let (root, port) = (root(), ReservedPort::new());
    let outbox = builder(root.path()).upstream(port.url()).start().unwrap();
    let mut events = outbox.subscribe();
    let id = send(&outbox, "PUT", "/a", "1").await;
    let deferral = next_delivery(&mut events).await;
    assert_eq!((deferral.id.as_str(), deferral.outcome), (id.as_str(), Outcome::Deferred));
    let down = |event| matches!(event, Event::Upstream(Health::Down)).then_some(());
    next(&mut events, "the outage's event", down).await;
    let server = Upstream::start_on(port, |_| 204);
    outbox.wake();
    let up = |event| matches!(event, Event::Upstream(Health::Up)).then_some(());
    next(&mut events, "the recovery's event", up).await;
    assert_eq!(server.lines(), ["PUT /a"]);
    let status = outbox.status().await.unwrap();
    assert_eq!((status.counts.pending, status.upstream, status.replaying), (0, Some(Health::Up), true));
    outbox.shutdown().await;
}

#[tokio::test]
async fn a_burst_of_wakes_is_few_passes() {
    let (root, gate) = (root(), Gate::new());
    let held = gate.clone();
    let server = Upstream::start(move |seen| match seen.target.as_str() {
        "/last" => Act::from(204),
        _ => Act::ReplyAfter(held.clone(), Reply::new(204)),
    });
    let outbox = builder(root.path()).upstream(server.url()).watch(false).start().unwrap();
    let mut events = outbox.subscribe();
    send(&outbox, "PUT", "/first", "1").await;
    server.wait_for(1).await;
    for _ in 0..1000 {
        outbox.wake();
    }
    gate.open();
    while next_delivery(&mut events).await.raw_uri != "/first" {}
    send(&outbox, "PUT", "/last", "2").await;
    let mut passes = 0;
    loop {
        match soon("the last delivery", events.recv()).await.unwrap() {
            Event::Pass(_) => passes += 1,
            Event::Delivery(_) => break,
            _ => {}
        }
    }
    // The one that was under way, one for the whole burst, and at most one more before the last write was seen.
    assert!(passes <= 3, "{passes} passes for a burst of wakes");
    outbox.shutdown().await;
}

#[tokio::test]
async fn a_shutdown_lets_the_request_in_flight_finish_and_starts_no_other() {
    let (root, gate) = (root(), Gate::new());
    let held = gate.clone();
    let server = Upstream::start(move |_| Act::ReplyAfter(held.clone(), Reply::new(204)));
    let outbox = builder(root.path()).upstream(server.url()).concurrency(1).open().unwrap();
    let first = send(&outbox, "PUT", "/1", "1").await;
    let second = send(&outbox, "PUT", "/2", "2").await;
    let running = builder(root.path()).upstream(server.url()).concurrency(1).start().unwrap();
    server.wait_for(1).await;
    // The shutdown is polled first, so that it is under way when the reply comes.
    tokio::join!(biased; soon("the shutdown", running.shutdown()), async { gate.open() });
    assert_eq!(server.lines(), ["PUT /1"]);
    let pending = outbox.pending(None, 9).await.unwrap();
    assert_eq!((pending.len(), pending[0].id.as_str()), (1, second.as_str()));
    assert!(!tree(root.path()).iter().any(|name| name.contains(&first)));
}

#[tokio::test]
async fn one_host_replays_a_root_at_a_time_and_the_next_one_takes_over() {
    let (root, server) = (root(), Upstream::start(|_| 204));
    let start = || builder(root.path()).upstream(server.url()).start();
    let first = start().unwrap();
    assert!(matches!(start(), Err(Error::Locked(Some(pid))) if pid == std::process::id()));
    let other = open(root.path(), &server.url());
    assert!(matches!(other.replay().await, Err(Error::Locked(_))));
    // Queueing needs no lock, and the one who has it is told.
    send(&other, "PUT", "/a", "1").await;
    server.wait_for(1).await;
    first.shutdown().await;
    let second = start().unwrap();
    send(&second, "PUT", "/b", "2").await;
    server.wait_for(2).await;
    second.shutdown().await;
    other.replay().await.unwrap();
    assert_eq!(server.lines(), ["PUT /a", "PUT /b"]);
}

#[tokio::test]
async fn a_request_that_the_server_cannot_bear_does_not_stop_the_queue() {
    let root = root();
    let server = Upstream::start(|seen| if seen.target == "/poison" { Act::Cut } else { Act::from(200) });
    let outbox = open(root.path(), &server.url());
    let poison = send(&outbox, "PUT", "/poison", "x").await;
    send(&outbox, "PUT", "/fine", "y").await;
    for _ in 0..2 {
        assert_eq!(replay(&outbox).await.0.delivered, 0);
    }
    // From the third time on, it waits, and another has its turn.
    assert_eq!(replay(&outbox).await.0.delivered, 1);
    let left = outbox.get(&poison).await.unwrap().entry.unwrap();
    assert_eq!(left.attempts, 3);
    assert!(left.not_before.is_some());
    assert_eq!(server.lines().last().map(String::as_str), Some("PUT /fine"));
}

#[tokio::test]
async fn a_resource_that_is_forbidden_holds_back_itself_and_not_the_queue() {
    for (status, upstream) in [(403, Health::Up), (401, Health::Auth)] {
        let root = root();
        let server =
            Upstream::start(move |seen| if seen.target.starts_with("/secret") { status } else { 200 });
        let outbox = open(root.path(), &server.url());
        let secret = send(&outbox, "PUT", "/secret", "x").await;
        for uri in ["/secret/below", "/fine"] {
            send(&outbox, "PUT", uri, "y").await;
        }
        let mut next_pass = SystemTime::now();
        for time in 1..=3 {
            let started = SystemTime::now();
            let (report, _) = replay(&outbox).await;
            // For the third time, it is the resource with which something is wrong, and the others go.
            let expected = if time == 3 && status == 403 { (2, Health::Up) } else { (3, Health::Auth) };
            assert_eq!((report.remaining, report.upstream), expected, "{status}");
            assert_eq!(report.held, 1);
            next_pass = started + Duration::from_millis(report.next_delay_ms);
        }
        // It waits at least until the next pass.
        let waits_until = outbox.get(&secret).await.unwrap().entry.unwrap().not_before;
        let waits_until = waits_until.map(|at| humantime::parse_rfc3339(&at).unwrap());
        assert_eq!(waits_until.map(|at| at >= next_pass), (status == 403).then_some(true), "{waits_until:?}");
        assert_eq!(replay(&outbox).await.0.upstream, upstream, "{status}");
        // 401 is about who asks, not about what for: there the next probe is the same.
        let left = outbox.get(&secret).await.unwrap().entry.unwrap();
        assert_eq!(
            (left.attempts, left.not_before.is_some()),
            if status == 403 { (3, true) } else { (4, false) }
        );
        let last = if status == 403 { "PUT /fine" } else { "PUT /secret" };
        assert_eq!(server.lines().last().map(String::as_str), Some(last));
        // What it was held for may be granted at any time.
        server.script(|_| 200);
        outbox.retry(&secret).await.unwrap();
        assert_eq!(replay(&outbox).await.0.remaining, 0);
    }
}

#[tokio::test]
async fn one_at_a_time_means_questions_too() {
    let root = root();
    let server = Upstream::start(|seen| if seen.method == "PUT" { 204 } else { 404 });
    let outbox = builder(root.path()).upstream(server.url()).concurrency(1).open().unwrap();
    for edit in ["one", "two"] {
        for n in 0..8 {
            send_on(&outbox, &Base::Etag("\"v\"".into()), "PUT", &format!("/{n}"), edit).await;
        }
    }
    assert_eq!(replay(&outbox).await.0.delivered, 16);
    // The question comes before any other write.
    let firsts: Vec<String> = (0..8).flat_map(|n| [format!("PUT /{n}"), format!("GET /{n}")]).collect();
    assert_eq!(server.lines()[..16], firsts);
}

#[tokio::test]
async fn many_forbidden_resources_do_not_keep_the_others_waiting() {
    let root = root();
    let server = Upstream::start(|seen| if seen.target.starts_with("/secret") { 403 } else { 200 });
    let outbox = open(root.path(), &server.url());
    let mut secrets = Vec::new();
    for n in 0..3 {
        secrets.push(send(&outbox, "PUT", &format!("/secret/{n}"), "x").await);
    }
    // Each is suspected once it was tried three times.
    for _ in 0..9 {
        replay(&outbox).await;
    }
    for secret in &secrets {
        assert!(outbox.get(secret).await.unwrap().entry.unwrap().not_before.is_some());
        outbox.retry(secret).await.unwrap();
    }
    send(&outbox, "PUT", "/fine", "y").await;
    let (report, _) = replay(&outbox).await;
    assert_eq!((report.held, report.delivered, report.remaining), (3, 1, 3));
}
