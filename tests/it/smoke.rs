//! The main job, end to end.

use crate::kit::{builder, open, replay, root, send, soon, tree};
use crate::upstream::{ReservedPort, Upstream};
use outbox_host::{Event, Health};

#[tokio::test]
async fn writes_queued_while_the_server_is_away_arrive_in_order_when_it_is_back() {
    let root = root();
    let port = ReservedPort::new();
    let outbox = open(root.path(), &port.url());
    for (uri, body) in [("/a", "1"), ("/b", "2"), ("/a", "3")] {
        send(&outbox, "PUT", uri, body).await;
    }
    let (report, deliveries) = replay(&outbox).await;
    assert_eq!(
        (report.delivered, report.deferred, report.remaining, report.upstream),
        (0, 1, 3, Health::Down)
    );
    assert_eq!(deliveries[0].detail.as_deref(), Some("connection refused"));
    let server = Upstream::start_on(port, |_| 204);
    let (report, _) = replay(&outbox).await;
    assert_eq!((report.delivered, report.remaining, report.upstream), (3, 0, Health::Up));
    let to_a: Vec<_> = server.seen().into_iter().filter(|s| s.target == "/a").map(|s| s.body).collect();
    assert_eq!(to_a, [b"1", b"3"]);
    assert!(tree(root.path()).is_empty());
}

#[tokio::test]
async fn a_started_outbox_delivers_without_being_asked() {
    let root = root();
    let server = Upstream::start(|_| 201);
    let outbox = builder(root.path()).upstream(server.url()).start().unwrap();
    let mut events = outbox.subscribe();
    let id = send(&outbox, "POST", "/messages", "hello").await;
    server.wait_for(1).await;
    assert_eq!(server.seen()[0].header("idempotency-key"), Some(id.as_str()));
    soon("the delivery's event", async {
        loop {
            if let Event::Delivery(delivery) = events.recv().await.unwrap() {
                assert_eq!((delivery.id.as_str(), delivery.status), (id.as_str(), Some(201)));
                break;
            }
        }
    })
    .await;
    outbox.shutdown().await;
}
