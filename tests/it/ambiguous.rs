//! A POST or PATCH of which it is not known what the server did with it.

use crate::cli::Cli;
use crate::kit::{builder, json, open, path, replay, root, send};
use crate::upstream::{Act, ReservedPort, Upstream};
use outbox_host::{Ambiguous, Body, Health, Outbox, Outcome, Write};
use serde_json::json;
use std::io::{Read, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

fn holding(root: &Path, url: &str) -> Outbox {
    builder(root).upstream(url).ambiguous(Ambiguous::Hold).open().unwrap()
}

#[tokio::test]
async fn a_write_whose_reply_was_lost_is_held_until_somebody_releases_it() {
    for method in ["POST", "PATCH"] {
        let (root, server) = (root(), Upstream::start(|_| Act::Cut));
        let outbox = holding(root.path(), &server.url());
        let id = send(&outbox, method, "/a", "x").await;
        let (report, deliveries) = replay(&outbox).await;
        assert_eq!((report.ambiguous, report.deferred, report.remaining), (1, 0, 1));
        assert_eq!((deliveries[0].outcome, report.upstream), (Outcome::Ambiguous, Health::Down));
        let detail = deliveries[0].detail.as_deref().unwrap();
        assert!(detail.contains("may have been applied") && detail.contains("outbox retry"), "{detail}");

        // Neither in later passes, nor after a restart; it is counted each time and told of once.
        server.script(|_| 204);
        let after_a_restart = holding(root.path(), &server.url());
        for outbox in [&outbox, &after_a_restart] {
            let (report, deliveries) = replay(outbox).await;
            assert_eq!((report.ambiguous, report.remaining, deliveries.len()), (1, 1, 0));
        }
        assert_eq!(server.lines(), [format!("{method} /a")]);
        let kept = outbox.get(&id).await.unwrap().entry.unwrap();
        assert!(kept.last_error.unwrap().contains("may have been applied"));

        outbox.retry(&id).await.unwrap();
        let (report, _) = replay(&after_a_restart).await;
        assert_eq!((report.delivered, report.ambiguous, report.remaining), (1, 0, 0));
        let keys: Vec<_> =
            server.seen().iter().map(|s| s.header("idempotency-key").unwrap().to_owned()).collect();
        assert_eq!(keys, [id.as_str(), &id]);
    }
}

#[tokio::test]
async fn what_is_held_holds_back_its_own_path_only() {
    let root = root();
    let server = Upstream::start(|seen| if seen.target == "/a" { Act::Cut } else { 204.into() });
    let outbox = holding(root.path(), &server.url());
    for (method, uri) in [("POST", "/a"), ("PUT", "/a/b"), ("PUT", "/c")] {
        send(&outbox, method, uri, "x").await;
    }
    assert_eq!(replay(&outbox).await.0.ambiguous, 1);
    let (report, _) = replay(&outbox).await;
    assert_eq!((report.delivered, report.ambiguous, report.remaining), (1, 1, 2));
    assert_eq!(server.lines(), ["POST /a", "PUT /c"]);
}

#[tokio::test]
async fn the_mark_is_on_disk_before_the_first_byte_leaves_and_outlives_a_kill() {
    let cli = Cli::new();
    let id = cli.send(&["POST", "/a"]);
    let state = path(cli.root.path(), &format!("{id}/state.json"));
    let marked = state.clone();
    let server = Upstream::start(move |_| {
        assert_eq!(json(&marked)["in_flight"], json!(true));
        Act::Stall
    });
    let daemon = cli.daemon(&server.url(), &["--ambiguous", "hold"]);
    server.wait_for(1).await;
    daemon.signal(rustix::process::Signal::KILL);
    daemon.end();
    server.script(|_| 204);
    let (code, lines, report) = cli.replay(&server.url(), &["--ambiguous", "hold"]);
    assert_eq!((code, &report["ambiguous"], lines.len()), (3, &json!(1), 1), "{lines:?}");
    assert_eq!((&lines[0]["outcome"], &lines[0]["id"]), (&json!("ambiguous"), &json!(id)));
    let (_, lines, report) = cli.replay(&server.url(), &["--ambiguous", "hold"]);
    assert_eq!((lines.len(), &report["ambiguous"]), (0, &json!(1)), "told of once");
    assert_eq!(server.seen().len(), 1);
    let listed = cli.ok(["list"]);
    assert!(listed.contains("may have been applied"), "{listed}");
    cli.ok(["retry", &id]);
    assert_eq!(cli.replay(&server.url(), &["--ambiguous", "hold"]).0, 0);
    assert_eq!(server.seen().len(), 2);
}

#[tokio::test]
async fn what_never_reached_the_server_or_was_answered_is_not_ambiguous() {
    let (root, port) = (root(), ReservedPort::new());
    let outbox = holding(root.path(), &port.url());
    let id = send(&outbox, "POST", "/a", "x").await;
    let (report, deliveries) = replay(&outbox).await;
    assert_eq!((report.ambiguous, report.deferred), (0, 1), "{deliveries:?}");
    let server = Upstream::start_on(port, |_| 503);
    assert_eq!(replay(&outbox).await.0.deferred, 1);
    server.script(|_| 401);
    outbox.retry(&id).await.unwrap();
    assert_eq!(replay(&outbox).await.0.held, 1);
    server.script(|_| 204);
    assert_eq!(replay(&outbox).await.0.delivered, 1);
    assert_eq!(server.seen().len(), 3);
}

/// What a server, or a system, does to a connection before any request.
#[tokio::test]
async fn what_no_connection_came_about_for_is_neither_ambiguous_nor_suspect() {
    const ALERT: &[u8] = &[0x15, 3, 3, 0, 2, 2, 40];
    let cut = Listening::start(|stream| _ = stream.read(&mut [0; 4096]));
    // What was not read by then, the system answers with a reset.
    let reset = Listening::start(|stream| _ = stream.peek(&mut [0]));
    let alert = Listening::start(|stream| {
        let _ = stream.read(&mut [0; 4096]);
        let _ = stream.write_all(ALERT);
    });
    let plain = Listening::start(|stream| {
        let _ = stream.read(&mut [0; 4096]);
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    });
    let cases = [
        (cut.url(), "TLS handshake failed"),
        (reset.url(), "TLS handshake failed"),
        (alert.url(), "TLS handshake failed"),
        (plain.url(), "TLS handshake failed"),
        // No system connects to that: it does not say which of its interfaces is meant.
        ("http://[fe80::1]:9".into(), "host unreachable"),
    ];
    for (url, why) in cases {
        for concurrency in [1, 4] {
            let root = root();
            let outbox = builder(root.path()).upstream(&url).concurrency(concurrency);
            let outbox = outbox.ambiguous(Ambiguous::Hold).open().unwrap();
            let id = send(&outbox, "POST", "/a", "x").await;
            for _ in 0..3 {
                let (report, deliveries) = replay(&outbox).await;
                assert_eq!((report.deferred, report.upstream), (1, Health::Down), "{url}: {deliveries:?}");
                assert_eq!(deliveries[0].detail.as_deref(), Some(why), "{url}");
            }
            assert_eq!(outbox.get(&id).await.unwrap().entry.unwrap().not_before, None, "{url}");
        }
    }
}

/// A port where each connection meets the same, and is closed then.
struct Listening(SocketAddr);

impl Listening {
    fn start(act: impl Fn(&mut TcpStream) + Send + 'static) -> Listening {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        // Until the tests end.
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                act(&mut stream);
            }
        });
        Listening(at)
    }

    fn url(&self) -> String {
        format!("https://{}", self.0)
    }
}

#[tokio::test]
async fn a_method_that_may_be_repeated_is_never_held() {
    for method in ["PUT", "DELETE"] {
        let (root, server) = (root(), Upstream::sequence(vec![Act::Cut, 204.into()]));
        let outbox = holding(root.path(), &server.url());
        send(&outbox, method, "/a", "").await;
        assert_eq!(replay(&outbox).await.0.deferred, 1);
        assert_eq!(replay(&outbox).await.0.delivered, 1);
    }
}

#[tokio::test]
async fn by_default_it_is_sent_again_with_the_same_idempotency_key() {
    let (root, server) = (root(), Upstream::sequence(vec![Act::Cut, 204.into()]));
    let outbox = open(root.path(), &server.url());
    let id = send(&outbox, "POST", "/a", "x").await;
    assert_eq!(replay(&outbox).await.0.deferred, 1);
    let state = json(&path(root.path(), &format!("{id}/state.json")));
    assert_eq!(state.get("in_flight"), None);
    assert_eq!(replay(&outbox).await.0.delivered, 1);
    assert!(server.seen().iter().all(|seen| seen.header("idempotency-key") == Some(&id)));
}

/// The system gives up a connection whose other end takes nothing more, before the component does.
#[cfg(any(target_os = "android", target_os = "linux"))]
#[tokio::test]
async fn what_was_on_its_way_when_the_system_gave_up_the_connection_is_held() {
    for concurrency in [1, 4] {
        let root = root();
        // Accepted by the system, and never read from.
        let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        server.set_nonblocking(true).unwrap();
        let outbox = builder(root.path())
            .upstream(format!("http://{}", server.local_addr().unwrap()))
            .concurrency(concurrency)
            .idle_timeout(Duration::from_secs(1))
            .ambiguous(Ambiguous::Hold)
            .open()
            .unwrap();
        let body = Body::from(vec![7; 1024 * 1024]);
        outbox.enqueue_write(Write::new("POST", "/a"), body).await.unwrap();
        let (report, deliveries) = replay(&outbox).await;
        assert_eq!((report.ambiguous, report.deferred), (1, 0), "{deliveries:?}");
        let why = deliveries[0].detail.as_deref().unwrap();
        assert!(!why.contains("nothing moved"), "the component gave up first: {why}");
        assert_eq!(replay(&outbox).await.0.ambiguous, 1);
        let connections = std::iter::from_fn(|| server.accept().ok()).count();
        assert_eq!(connections, 1);
    }
}

#[tokio::test]
async fn a_retry_of_what_is_under_way_for_the_first_time_does_not_allow_a_repeat() {
    let cli = Cli::new();
    let id = cli.send(&["POST", "/a"]);
    let server = Upstream::start(|_| Act::Stall);
    let hold = ["--ambiguous", "hold"];
    // Nobody was asked yet, so nobody can have said that it may be sent again; then somebody does, and it is cut off anew.
    for (sent, retries) in [(1, true), (2, false)] {
        let daemon = cli.daemon(&server.url(), &hold);
        server.wait_for(sent).await;
        if retries {
            cli.ok(["retry", &id]);
        }
        daemon.signal(rustix::process::Signal::KILL);
        daemon.end();
        for told in [1, 0] {
            let (code, lines, report) = cli.replay(&server.url(), &hold);
            assert_eq!((code, &report["ambiguous"], lines.len()), (3, &json!(1), told), "{sent}: {lines:?}");
        }
        assert_eq!(server.lines().len(), sent);
        cli.ok(["retry", &id]);
    }
    server.script(|_| 204);
    assert_eq!(cli.replay(&server.url(), &hold).2["delivered"], 1);
}

#[tokio::test]
async fn what_somebody_was_asked_about_waits_for_him_also_in_a_replay_that_would_not_ask() {
    let (root, server) = (root(), Upstream::start(|_| Act::Cut));
    let id = {
        let outbox = holding(root.path(), &server.url());
        let id = send(&outbox, "POST", "/a", "x").await;
        assert_eq!(replay(&outbox).await.0.ambiguous, 1);
        id
    };
    server.script(|_| 204);
    let outbox = open(root.path(), &server.url());
    let (report, _) = replay(&outbox).await;
    assert_eq!((report.ambiguous, report.delivered, report.remaining), (1, 0, 1));
    outbox.retry(&id).await.unwrap();
    assert_eq!(replay(&outbox).await.0.delivered, 1);
}
