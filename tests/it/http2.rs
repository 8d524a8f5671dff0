//! A server that speaks HTTP/2, which is agreed on when TLS is set up.

use crate::kit::{builder, replay, root, send, soon, tree};
use crate::sandbox::Authority;
use crate::upstream::{Act, Gate, Reply, Seen, Upstream};
use http::Version;
use outbox_host::{Health, Outbox, Outcome};
use std::path::Path;
use std::sync::Arc;

/// A server that prefers HTTP/2, and an outbox that trusts it.
fn server(root: &Path, script: impl Fn(&Seen) -> Act + Send + Sync + 'static) -> (Upstream, Outbox) {
    let authority = Authority::new();
    let mut config = authority.config("127.0.0.1", |_| {});
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let server = Upstream::start_tls(Arc::new(config), script);
    let builder = builder(root).upstream(server.url()).ca(authority.file(root));
    (server, builder.concurrency(4).open().unwrap())
}

#[tokio::test]
async fn writes_share_one_http2_connection_and_arrive_as_over_http1() {
    let (root, gate) = (root(), Gate::new());
    let held = gate.clone();
    let (server, outbox) = server(root.path(), move |seen| match seen.target.as_str() {
        "/0?x=1" => Act::from(204),
        _ => Act::ReplyAfter(held.clone(), Reply::new(204)),
    });
    let mut ids = Vec::new();
    for n in 0..6 {
        ids.push(send(&outbox, "PUT", &format!("/{n}?x=1"), "0123456789").await);
    }
    let replaying = outbox.clone();
    let pass = tokio::spawn(async move { replay(&replaying).await });
    server.wait_for(5).await;
    gate.open();
    let (report, deliveries) = soon("the pass", pass).await.unwrap();
    assert_eq!((report.delivered, report.remaining), (6, 0), "{deliveries:?}");
    assert_eq!((server.connections(), server.max_in_flight()), (1, 4));
    let mut seen = server.seen();
    seen.sort_by(|a, b| a.target.cmp(&b.target));
    for (n, (seen, id)) in seen.iter().zip(&ids).enumerate() {
        assert_eq!((seen.version, seen.method.as_str()), (Version::HTTP_2, "PUT"));
        assert_eq!((seen.target.as_str(), seen.body.as_slice()), (&*format!("/{n}?x=1"), &b"0123456789"[..]));
        assert_eq!(seen.header("content-length"), Some("10"));
        assert_eq!(seen.header("idempotency-key"), Some(id.as_str()));
    }
    assert!(tree(root.path()).is_empty());
}

#[tokio::test]
async fn a_stream_that_is_reset_leaves_its_write_in_the_queue() {
    let root = root();
    let (server, outbox) = server(root.path(), |_| Act::Cut);
    send(&outbox, "PUT", "/a", "0123456789").await;
    let (report, deliveries) = replay(&outbox).await;
    assert_eq!((report.deferred, report.remaining, report.upstream), (1, 1, Health::Down), "{deliveries:?}");
    assert_eq!(deliveries[0].outcome, Outcome::Deferred);
    server.script(|_| 204);
    assert_eq!(replay(&outbox).await.0.delivered, 1);
    let seen = server.seen();
    assert_eq!((seen[1].version, seen[1].body.as_slice()), (Version::HTTP_2, &b"0123456789"[..]));
    assert_eq!(seen[0].header("idempotency-key"), seen[1].header("idempotency-key"));
    // The stream alone was given up, not the connection.
    assert_eq!(server.connections(), 1);
}
