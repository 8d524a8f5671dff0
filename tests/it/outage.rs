//! What a wake changes in an outage, and what it leaves alone.

use crate::kit::{builder, replay, root, send, soon};
use crate::upstream::{Act, Reply, Upstream};
use outbox_host::{Event, Health, Outcome};

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
