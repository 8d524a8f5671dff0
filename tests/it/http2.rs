//! A server that speaks HTTP/2, which is agreed on when TLS is set up.

use crate::kit::{builder, replay, root, send, soon, tree};
use crate::sandbox::Authority;
use crate::upstream::{Act, Gate, Reply, Seen, Upstream};
use http::Version;
use outbox_host::{Ambiguous, Health, Outbox, Outcome};
use rustls::ServerConfig;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// The TLS of a server that prefers HTTP/2.
fn prefers_http2(authority: &Authority) -> Arc<ServerConfig> {
    let mut config = authority.config("127.0.0.1", |_| {});
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Arc::new(config)
}

/// Such a server, and an outbox that trusts it.
fn server(root: &Path, script: impl Fn(&Seen) -> Act + Send + Sync + 'static) -> (Upstream, Outbox) {
    let authority = Authority::new();
    let server = Upstream::start_tls(prefers_http2(&authority), script);
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

#[tokio::test]
async fn a_connection_over_which_no_reply_came_is_not_used_again() {
    let (root, authority) = (root(), Authority::new());
    // The first connection has gone silent; further ones are fine.
    let server = Upstream::start_tls(prefers_http2(&authority), |seen| match seen.connection {
        0 => Act::Stall,
        _ => Act::from(204),
    });
    let outbox = builder(root.path()).upstream(server.url()).ca(authority.file(root.path()));
    let outbox = outbox.idle_timeout(Duration::from_secs(1)).open().unwrap();
    send(&outbox, "PUT", "/a", "x").await;
    let (report, deliveries) = soon("the cut", replay(&outbox)).await;
    assert_eq!((report.deferred, report.upstream), (1, Health::Down), "{deliveries:?}");
    let (report, deliveries) = soon("the pass", replay(&outbox)).await;
    assert_eq!((report.delivered, server.connections()), (1, 2), "{deliveries:?}");
}

// Frames of HTTP/2, for what no server does when told to (RFC 9113 section 6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
/// In the flags of the last frame of a request or a reply.
const END_STREAM: u8 = 1;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A reply of 204.
fn no_content(stream: u32) -> Vec<u8> {
    frame(HEADERS, 4 | END_STREAM, stream, &[0x89])
}

/// Of each connection and request (the streams 1, 3, 5 and so on), what is sent once the request is complete.
type Answer = fn(usize, u32) -> Vec<u8>;

/// Speaks to a client until that goes.
async fn speak(
    stream: TcpStream,
    config: Arc<ServerConfig>,
    connection: usize,
    answer: Answer,
) -> Option<()> {
    let mut stream = tokio_rustls::TlsAcceptor::from(config).accept(stream).await.ok()?;
    stream.read_exact(&mut [0; 24]).await.ok()?;
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.ok()?;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.ok()?;
        let [_, a, b, kind, flags, id @ ..] = head;
        let mut payload = vec![0; u16::from_be_bytes([a, b]).into()];
        stream.read_exact(&mut payload).await.ok()?;
        let said = match kind {
            SETTINGS if flags == 0 => frame(SETTINGS, 1, 0, &[]),
            DATA | HEADERS if flags & END_STREAM != 0 => answer(connection, u32::from_be_bytes(id)),
            _ => continue,
        };
        stream.write_all(&said).await.ok()?;
        stream.flush().await.ok()?;
    }
}

#[tokio::test]
async fn what_a_server_says_it_has_not_looked_at_is_not_ambiguous() {
    const REFUSED_STREAM: u32 = 7;
    // The first of a pass goes alone.
    let refuses: Answer = |_, stream| match stream {
        3 => frame(RST_STREAM, 0, 3, &REFUSED_STREAM.to_be_bytes()),
        _ => no_content(stream),
    };
    let goes_away: Answer = |connection, stream| match (connection, stream) {
        (0, 3 | 5) => Vec::new(),
        (0, 7) => [frame(GOAWAY, 0, 0, &[0, 0, 0, 3, 0, 0, 0, 0]), no_content(3)].concat(),
        _ => no_content(stream),
    };
    for answer in [refuses, goes_away] {
        let (root, authority) = (root(), Authority::new());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let config = prefers_http2(&authority);
        tokio::spawn(async move {
            for connection in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(speak(stream, config.clone(), connection, answer));
            }
        });
        let outbox = builder(root.path()).upstream(url).ca(authority.file(root.path()));
        let outbox = outbox.ambiguous(Ambiguous::Hold).open().unwrap();
        for n in 0..4 {
            send(&outbox, "POST", &format!("/{n}"), "x").await;
        }
        let (report, deliveries) = soon("the pass", replay(&outbox)).await;
        // Another one was answered, and it may go over a new connection.
        assert_eq!((report.ambiguous, report.upstream), (0, Health::Up), "{deliveries:?}");
        assert!(report.remaining > 0 && report.next_delay_ms <= 1_000, "{report:?}");
        let (report, deliveries) = soon("the next pass", replay(&outbox)).await;
        assert_eq!((report.ambiguous, report.remaining), (0, 0), "{deliveries:?}");
    }
}

#[tokio::test]
async fn a_reply_with_long_or_many_header_fields_is_a_reply() {
    let root = root();
    let (server, outbox) = server(root.path(), |_| {
        (0..15).fold(Reply::new(204), |reply, n| reply.header(&format!("x-{n}"), &"x".repeat(8_000))).into()
    });
    send(&outbox, "PUT", "/long", "x").await;
    assert_eq!(replay(&outbox).await.0.delivered, 1);
    assert_eq!(server.seen()[0].version, Version::HTTP_2);
    let server = Upstream::start(|_| (0..300).fold(Reply::new(204), |r, n| r.header(&format!("x-{n}"), "x")));
    let outbox = builder(root.path()).upstream(server.url()).open().unwrap();
    send(&outbox, "PUT", "/many", "x").await;
    assert_eq!(replay(&outbox).await.0.delivered, 1);
}
