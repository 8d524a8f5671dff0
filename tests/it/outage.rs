//! What a wake changes in an outage, and what it leaves alone.

use crate::kit::{builder, json, open, path, replay, root, send, soon};
use crate::upstream::{Act, Gate, Reply, ReservedPort, Seen, Upstream};
use outbox_host::{Event, Health, Outbox, Outcome};

#[tokio::test]
async fn a_wake_resets_the_upstreams_backoff_but_not_a_servers_retry_after() {
    let root = root();
    let server = Upstream::start(|seen| match seen.target.as_str() {
        "/wait" => Act::from(Reply::new(503).header("Retry-After", "3600")),
        _ => Act::Cut,
    });
    // What is queued here wakes the driver; the directory's watch might once more, for a pass that nobody expects.
    let one_at_a_time = builder(root.path()).upstream(server.url()).concurrency(1);
    let outbox = one_at_a_time.watch(false).start().unwrap();
    let mut events = outbox.subscribe();
    let mut passes = async || {
        soon("a pass", async {
            loop {
                if let Event::Pass(report) = events.recv().await.unwrap() {
                    return report;
                }
            }
        })
        .await
    };
    while passes().await.remaining > 0 {}
    send(&outbox, "PUT", "/wait", "x").await;
    while passes().await.deferred == 0 {}
    send(&outbox, "PUT", "/a", "x").await;
    let report = loop {
        let report = passes().await;
        if report.upstream == Health::Down {
            break report;
        }
    };
    // The first pause of an outage; further passes without a wake would double it.
    assert_eq!((report.remaining, report.next_delay_ms), (2, 30_000));
    let sent = server.lines().len();
    outbox.wake();
    let report = passes().await;
    assert_eq!((report.upstream, report.next_delay_ms), (Health::Down, 30_000), "forgotten, so not doubled");
    assert_eq!(server.lines().len(), sent + 1);
    server.script(|_| 204);
    outbox.wake();
    let report = passes().await;
    assert_eq!((report.delivered, report.remaining), (1, 1));
    let lines = server.lines();
    assert_eq!(lines.iter().filter(|line| *line == "PUT /wait").count(), 1, "{lines:?}");
    outbox.shutdown().await;
}

#[tokio::test]
async fn what_is_held_for_want_of_credentials_goes_on_with_a_token_that_was_put_in_its_place() {
    for refusal in [401, 403] {
        let (root, secrets) = (root(), crate::kit::root());
        let file = secrets.path().join("token");
        std::fs::write(&file, "old").unwrap();
        let server = Upstream::start(move |seen| match seen.header("authorization") {
            Some("Bearer new") => 204,
            _ => refusal,
        });
        let credential = outbox_host::Credential::from_file(&file).unwrap();
        let outbox = builder(root.path()).upstream(server.url()).credential(credential).open().unwrap();
        for uri in ["/a", "/b", "/c"] {
            send(&outbox, "PUT", uri, "x").await;
        }
        let (report, deliveries) = replay(&outbox).await;
        assert_eq!((report.held, report.remaining, report.upstream), (1, 3, Health::Auth));
        assert_eq!(deliveries[0].outcome, Outcome::Held);
        let asked = server.lines().len();
        std::fs::write(&file, "new").unwrap();
        // The refusal made the host look again, so the next pass has the new one at once.
        assert_eq!((replay(&outbox).await.0.delivered, server.lines().len()), (3, asked + 3));
    }
}

/// Passes in an outage, the first on demand and the others at ticks: the pauses after them in seconds, and what was
/// tried.
async fn passes_in_an_outage(outbox: &Outbox, health: Health) -> (Vec<u64>, Vec<String>) {
    let mut events = outbox.subscribe();
    let (mut pauses, mut tried) = (Vec::new(), Vec::new());
    let mut report = outbox.replay().await.unwrap();
    loop {
        assert_eq!((report.upstream, report.remaining), (health, 3));
        pauses.push(report.next_delay_ms / 1_000);
        if pauses.len() == 6 {
            break;
        }
        report = outbox.tick(&report).await.unwrap();
    }
    while let Ok(event) = events.try_recv() {
        if let Event::Delivery(delivery) = event {
            tried.push(delivery.id);
        }
    }
    (pauses, tried)
}

#[tokio::test]
async fn the_pause_of_an_outage_doubles_to_five_minutes_and_each_tick_tries_the_oldest_entry_alone() {
    let port = ReservedPort::new();
    let server = Upstream::start(|_| 401);
    for (url, health) in [(port.url(), Health::Down), (server.url(), Health::Auth)] {
        let root = root();
        let outbox = open(root.path(), &url);
        let oldest = send(&outbox, "PUT", "/a", "x").await;
        for uri in ["/b", "/c"] {
            send(&outbox, "PUT", uri, "x").await;
        }
        let (pauses, tried) = passes_in_an_outage(&outbox, health).await;
        assert_eq!(pauses, [30, 60, 120, 240, 300, 300], "{health}");
        assert_eq!(tried, [const { "" }; 6].map(|_| oldest.clone()), "{health}");
    }
    assert_eq!(server.lines(), ["PUT /a"; 6]);
}

#[tokio::test]
async fn the_oldest_of_those_that_were_in_flight_is_tried_at_the_next_tick() {
    let (root, gates) = (root(), [0; 4].map(|_| Gate::new()));
    let held = gates.clone();
    let server = Upstream::start(move |seen: &Seen| match seen.target[1..].parse::<usize>().unwrap() {
        0 => Act::from(204),
        n => Act::CutLater(held[n - 1].clone()),
    });
    let outbox = builder(root.path()).upstream(server.url()).concurrency(4).open().unwrap();
    let mut ids = Vec::new();
    for n in 0..6 {
        ids.push(send(&outbox, "PUT", &format!("/{n}"), "x").await);
    }
    let mut events = outbox.subscribe();
    let mut next = async || match soon("an outcome", events.recv()).await.unwrap() {
        Event::Delivery(delivery) => (delivery.id, delivery.outcome),
        other => panic!("{other:?}"),
    };
    let replaying = outbox.clone();
    let pass = tokio::spawn(async move { replaying.replay().await.unwrap() });
    server.wait_for(5).await;
    assert_eq!(next().await, (ids[0].clone(), Outcome::Delivered));
    for n in (1..=4).rev() {
        gates[n - 1].open();
        assert_eq!(next().await, (ids[n].clone(), Outcome::Deferred));
    }
    let last = soon("the pass", pass).await.unwrap();
    assert_eq!((last.deferred, last.remaining, last.upstream), (4, 5, Health::Down));
    server.script(|_| Act::Cut);
    outbox.tick(&last).await.unwrap();
    assert_eq!(server.lines()[5..], ["PUT /1"]);
}

/// Whoever replays by a timer starts anew each time, and waits of an hour are over by then.
#[tokio::test]
async fn requests_that_the_server_cannot_bear_do_not_starve_the_others_of_a_timer_either() {
    let root = root();
    let server = Upstream::start(|seen| if seen.target == "/bad" { Act::Cut } else { 204.into() });
    let mut ids = Vec::new();
    for uri in ["/bad", "/good", "/fine"] {
        ids.push(send(&open(root.path(), &server.url()), "PUT", uri, "x").await);
    }
    let state = path(root.path(), &ids[0]).join("state.json");
    for attempt in 1..=4 {
        let (report, deliveries) = replay(&open(root.path(), &server.url())).await;
        let expected = match attempt {
            1 | 2 => (0, 3, Health::Down),
            3 => (2, 1, Health::Up),
            _ => (0, 1, Health::Down),
        };
        let found = (report.delivered, report.remaining, report.upstream);
        assert_eq!(found, expected, "{attempt}: {deliveries:?}");
        let mut noted = json(&state);
        noted.as_object_mut().unwrap().remove("not_before");
        std::fs::write(&state, noted.to_string()).unwrap();
    }
    assert_eq!(server.lines(), ["PUT /bad", "PUT /bad", "PUT /bad", "PUT /good", "PUT /fine", "PUT /bad"]);
}

#[tokio::test]
async fn where_all_were_tried_in_vain_often_a_pass_in_an_outage_costs_four_requests() {
    let root = root();
    let server = Upstream::start(|_| Act::Cut);
    for n in 0..6 {
        let id = send(&open(root.path(), &server.url()), "PUT", &format!("/{n}"), "x").await;
        std::fs::write(path(root.path(), &id).join("state.json"), r#"{"attempts":2}"#).unwrap();
    }
    let (report, _) = replay(&open(root.path(), &server.url())).await;
    assert_eq!((report.deferred, report.remaining, report.upstream), (4, 6, Health::Down));
    assert_eq!(server.lines().len(), 4);
}

#[tokio::test]
async fn an_outage_after_an_answer_is_a_first_one() {
    let (root, server) =
        (root(), Upstream::sequence(vec![204.into(), Act::Cut, 204.into(), Act::Cut, Act::Cut]));
    let outbox = builder(root.path()).upstream(server.url()).concurrency(1).open().unwrap();
    for uri in ["/a", "/b", "/c"] {
        send(&outbox, "PUT", uri, "x").await;
    }
    let first = outbox.replay().await.unwrap();
    let second = outbox.tick(&first).await.unwrap();
    assert_eq!([&first, &second].map(|report| (report.delivered, report.next_delay_ms)), [(1, 30_000); 2]);
    let third = outbox.tick(&second).await.unwrap();
    assert_eq!((third.delivered, third.next_delay_ms), (0, 60_000));
    assert_eq!(server.lines(), ["PUT /a", "PUT /b", "PUT /b", "PUT /c", "PUT /c"]);
}
