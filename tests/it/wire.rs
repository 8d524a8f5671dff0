//! What goes over the wire: request lines, header fields, connections.

use crate::kit::{builder, edit_meta, open, replay, root, send};
use crate::upstream::{Act, Reply, Seen, Upstream};
use outbox_host::{Body, Error, Outcome, Write};
use std::io::{Read, Write as _};
use std::net::TcpListener;
use std::sync::mpsc;

/// Queues one write after the other, replays them, and shows what the server saw, in order.
async fn over_the_wire(writes: Vec<(Write, &'static str)>) -> Vec<Seen> {
    let (root, server) = (root(), Upstream::start(|_| 204));
    let outbox = builder(root.path()).upstream(server.url()).concurrency(1).open().unwrap();
    let count = writes.len();
    for (write, body) in writes {
        outbox.enqueue_write(write, body.into()).await.unwrap();
    }
    let (report, deliveries) = replay(&outbox).await;
    assert_eq!(report.delivered as usize, count, "{deliveries:?}");
    let seen = server.seen();
    assert!(seen.iter().all(|seen| seen.complete));
    seen
}

fn to(uri: &str) -> Write {
    Write::new("PUT", uri)
}

#[tokio::test]
async fn a_request_is_method_target_headers_and_body_as_they_were_queued() {
    let write = Write {
        content_type: Some("text/plain; charset=utf-8".into()),
        headers: vec![("X-Trace".into(), "a b\tc".into()), ("X-Name".into(), "J\u{fc}rgen".into())],
        ..Write::new("PATCH", "/a/b?x=1&y=2")
    };
    let seen = over_the_wire(vec![(write, "hello")]).await.remove(0);
    assert_eq!((seen.method.as_str(), seen.target.as_str()), ("PATCH", "/a/b?x=1&y=2"));
    assert_eq!(seen.body, b"hello");
    for (name, value) in [
        ("content-length", "5"),
        ("content-type", "text/plain; charset=utf-8"),
        ("x-trace", "a b\tc"),
        ("x-name", "J\u{fc}rgen"),
        ("user-agent", concat!("outbox/", env!("CARGO_PKG_VERSION"))),
    ] {
        assert_eq!(seen.header(name), Some(value), "{name}");
    }
    let mut names: Vec<&str> = seen.headers.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    let all =
        ["content-length", "content-type", "host", "idempotency-key", "user-agent", "x-name", "x-trace"];
    assert_eq!(names, all);
}

#[tokio::test]
async fn the_authors_user_agent_and_repeated_headers_are_kept() {
    let headers = [("User-Agent", "till/7"), ("X-Tag", "a"), ("X-Tag", "b")];
    let headers = headers.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect();
    let seen = over_the_wire(vec![(Write { headers, ..to("/a") }, "x")]).await.remove(0);
    let all = |name: &str| {
        seen.headers.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str()).collect::<Vec<_>>()
    };
    assert_eq!((all("user-agent"), all("x-tag")), (vec!["till/7"], vec!["a", "b"]));
}

#[tokio::test]
async fn the_upstreams_path_prefix_comes_first_and_its_host_is_the_host() {
    for prefix in ["/dav/files", "/dav/files/"] {
        let (root, server) = (root(), Upstream::start(|_| 204));
        let outbox = open(root.path(), &format!("{}{prefix}", server.url()));
        send(&outbox, "PUT", "/a?b", "x").await;
        replay(&outbox).await;
        assert_eq!(server.lines(), ["PUT /dav/files/a?b"]);
        assert_eq!(server.seen()[0].header("host").unwrap(), server.addr().to_string());
    }
}

#[tokio::test]
async fn a_length_is_always_said_where_there_is_content_and_nothing_is_chunked() {
    static LARGE: [u8; 300_000] = [b'x'; 300_000];
    let large = std::str::from_utf8(&LARGE).unwrap();
    let cases = [
        ("PUT", "", Some("0")),
        ("POST", "", Some("0")),
        ("PATCH", "", Some("0")),
        ("DELETE", "", None),
        ("MKCOL", "", None),
        ("DELETE", "why", Some("3")),
        ("PUT", "x", Some("1")),
        ("PUT", large, Some("300000")),
    ];
    let writes = cases.iter().map(|(method, body, _)| (Write::new(*method, "/a"), *body)).collect();
    for (seen, (method, body, length)) in over_the_wire(writes).await.iter().zip(cases) {
        assert_eq!((seen.method.as_str(), seen.header("content-length")), (method, length));
        assert_eq!(seen.header("transfer-encoding"), None);
        assert_eq!(seen.body, body.as_bytes());
    }
}

#[tokio::test]
async fn a_retry_carries_the_same_idempotency_key() {
    let root = root();
    let server = Upstream::sequence(vec![Act::Cut, Act::Reply(Reply::new(503)), Act::from(200)]);
    let outbox = open(root.path(), &server.url());
    let id = send(&outbox, "POST", "/a", "1").await;
    let other = send(&outbox, "POST", "/a", "2").await;
    for _ in 0..3 {
        replay(&outbox).await;
        let _ = outbox.retry(&id).await;
    }
    let keys: Vec<_> =
        server.seen().iter().map(|s| s.header("idempotency-key").unwrap().to_owned()).collect();
    assert_eq!(keys, [&id, &id, &id, &other].map(String::as_str));
}

#[tokio::test]
async fn the_base_version_becomes_the_strongest_precondition_there_is() {
    let time = |text: &str| Some(text.to_owned());
    let since = "Wed, 01 May 2024 08:00:00 GMT";
    let base = |base_mod_time: Option<String>, tag: Option<&str>, create| Write {
        base_mod_time,
        base_etag: tag.map(Into::into),
        create,
        ..Write::default()
    };
    let cases: [(Write, [Option<&str>; 3]); 8] = [
        (base(None, None, false), [None, None, None]),
        (base(None, Some("\"v1\""), false), [Some("\"v1\""), None, None]),
        (base(time("2024-05-01T08:00:00Z"), Some("\"v1\""), false), [Some("\"v1\""), None, None]),
        (base(None, None, true), [None, Some("*"), None]),
        (base(time("2024-05-01T08:00:00Z"), None, false), [None, None, Some(since)]),
        // The fraction is cut off, not rounded, and the zone is converted.
        (base(time("2024-05-01T10:00:00.999999999+02:00"), None, false), [None, None, Some(since)]),
        (base(time("2024-04-30T23:30:00-08:30"), None, false), [None, None, Some(since)]),
        // Go's zero time means that there is none.
        (base(time("0001-01-01T00:00:00Z"), None, false), [None, None, None]),
    ];
    // A path each: several edits of one would be a chain.
    let to_its_own =
        |n: usize, write: &Write| Write { method: "PUT".into(), uri: format!("/{n}"), ..write.clone() };
    let writes = cases.iter().enumerate().map(|(n, (write, _))| (to_its_own(n, write), "x")).collect();
    for (seen, (write, expected)) in over_the_wire(writes).await.iter().zip(cases) {
        let found = ["if-match", "if-none-match", "if-unmodified-since"].map(|name| seen.header(name));
        assert_eq!(found, expected, "{write:?}");
    }
}

#[tokio::test]
async fn what_may_not_stand_in_a_request_line_is_escaped_and_escapes_stay() {
    let cases = [
        ("/a b", "/a%20b"),
        ("/a?q=<1>&r=\"x\"", "/a?q=%3C1%3E&r=%22x%22"),
        ("/\u{fc}/\u{1f980}?\u{e4}", "/%C3%BC/%F0%9F%A6%80?%C3%A4"),
        ("/a%20b%2Fc%3f?%41", "/a%20b%2Fc%3f?%41"),
        ("/{a}|b^`", "/%7Ba%7D%7Cb%5E%60"),
        ("/a;b=c,d:e@f!$&'()*+~-._[]?x=y?z/w", "/a;b=c,d:e@f!$&'()*+~-._[]?x=y?z/w"),
        ("/a/../b/./c//d/", "/a/../b/./c//d/"),
        ("/?", "/?"),
        ("/", "/"),
        ("/100%", "/100%"),
    ];
    let writes = cases.iter().map(|(uri, _)| (to(uri), "x")).collect();
    let seen = over_the_wire(writes).await;
    let targets: Vec<_> = seen.iter().map(|seen| seen.target.as_str()).collect();
    assert_eq!(targets, cases.map(|(_, target)| target));
}

#[tokio::test]
async fn webdav_verbs_go_out_with_their_headers() {
    let methods = ["MKCOL", "COPY", "MOVE", "PROPPATCH", "MKCALENDAR", "ACL"];
    let headers = vec![("Destination".to_owned(), "/b".to_owned()), ("Overwrite".into(), "F".into())];
    let writes = methods
        .iter()
        .map(|m| (Write { headers: headers.clone(), ..Write::new(*m, "/a") }, "<x/>"))
        .collect();
    for (seen, method) in over_the_wire(writes).await.iter().zip(methods) {
        assert_eq!((seen.method.as_str(), seen.body.as_slice()), (method, b"<x/>".as_slice()));
        assert_eq!((seen.header("destination"), seen.header("overwrite")), (Some("/b"), Some("F")));
    }
}

#[tokio::test]
async fn an_http_request_is_queued_with_its_conditional_headers_as_base() {
    let (root, server) = (root(), Upstream::start(|_| 204));
    let outbox = builder(root.path()).upstream(server.url()).concurrency(1).open().unwrap();
    let date = "Wed, 01 May 2024 08:00:00 GMT";
    for (name, value) in [("If-Match", "\"v7\""), ("If-None-Match", "*"), ("If-Unmodified-Since", date)] {
        let request = http::Request::put("/doc?x=1").header(name, value).header("X-Mine", "yes");
        let request = request.header("Content-Type", "text/plain").header("Content-Length", "5");
        outbox.enqueue(request.body(Body::from("hello")).unwrap()).await.unwrap();
    }
    let entries = outbox.pending(None, 9).await.unwrap();
    assert_eq!(entries[0].base_etag.as_deref(), Some("\"v7\""));
    assert!(entries[1].create);
    assert_eq!(entries[2].base_mod_time.as_deref(), Some("2024-05-01T08:00:00Z"));
    replay(&outbox).await;
    for (seen, (name, value)) in server.seen().iter().zip([
        ("if-match", "\"v7\""),
        ("if-none-match", "*"),
        ("if-unmodified-since", date),
    ]) {
        assert_eq!(seen.header(name), Some(value));
        assert_eq!((seen.target.as_str(), seen.body.as_slice()), ("/doc?x=1", b"hello".as_slice()));
        assert_eq!((seen.header("content-type"), seen.header("x-mine")), (Some("text/plain"), Some("yes")));
    }
}

#[tokio::test]
async fn requests_that_cannot_be_replayed_as_they_are_meant_are_refused_and_leave_nothing() {
    let root = root();
    let outbox = open(root.path(), "http://127.0.0.1:9");
    let put = || http::Request::put("/a");
    let requests = [
        http::Request::get("/a"),
        http::Request::put("http://127.0.0.1:9/a"),
        http::Request::put("*"),
        put().header("If-Match", "W/\"weak\""),
        put().header("If-Match", "\"a\", \"b\""),
        put().header("If-None-Match", "\"a\""),
        put().header("If-Unmodified-Since", "yesterday"),
        put().header("If-Modified-Since", "Wed, 01 May 2024 08:00:00 GMT"),
        put().header("If-None-Match", "*").header("If-Match", "\"a\""),
        put().header("Cookie", "session=1"),
        put().header("Proxy-Authorization", "Basic x"),
        put().header("Range", "bytes=0-1"),
        put().header("Upgrade", "h2c"),
        put().header("Idempotency-Key", "mine"),
    ];
    for request in requests {
        let request = request.body(Body::from("x")).unwrap();
        let said = format!("{:?} {:?}", request.uri(), request.headers());
        let refused = outbox.enqueue(request).await;
        assert!(matches!(refused, Err(Error::Invalid { .. })), "{said}: {refused:?}");
    }
    assert!(crate::kit::tree(root.path()).is_empty());
}

#[tokio::test]
async fn an_entry_of_the_original_is_sent_as_it_is() {
    let (root, server) = (root(), Upstream::start(|_| 204));
    let outbox = open(root.path(), &server.url());
    let id = send(&outbox, "PUT", "/x", "body").await;
    edit_meta(root.path(), &id, |meta| {
        *meta = serde_json::json!({
            "id": id, "method": "PUT", "raw_uri": "/a%20b?q=<2>", "content_type": "",
            "base_mod_time": "2024-05-01T08:00:00.5Z", "queued_at": "2026-11-22T06:56:02Z", "unknown": [1],
        });
    });
    let (report, _) = replay(&outbox).await;
    assert_eq!(report.delivered, 1);
    let seen = server.seen().remove(0);
    assert_eq!((seen.target.as_str(), seen.body.as_slice()), ("/a%20b?q=%3C2%3E", b"body".as_slice()));
    assert_eq!((seen.header("content-type"), seen.header("content-length")), (None, Some("4")));
    assert_eq!(seen.header("if-unmodified-since"), Some("Wed, 01 May 2024 08:00:00 GMT"));
}

#[tokio::test]
async fn many_writes_share_one_connection_and_so_do_passes() {
    let server = Upstream::start(|_| Reply::new(200).body("some content"));
    let root = root();
    let outbox = builder(root.path()).upstream(server.url()).concurrency(1).open().unwrap();
    for pass in 1..=3 {
        for n in 0..20 {
            send(&outbox, "PUT", &format!("/{n}"), "x").await;
        }
        assert_eq!(replay(&outbox).await.0.delivered, 20);
        assert_eq!((server.seen().len(), server.connections()), (20 * pass, 1));
        assert!(server.seen().iter().all(|seen| seen.connection == 0));
    }
}

/// A server that answers one request per connection and then closes it without having said so, and that tells
/// each time when it has.
fn forgetful() -> (String, mpsc::Receiver<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (closed, when_closed) = mpsc::channel();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut request = Vec::new();
            let mut chunk = [0; 4096];
            while !request.ends_with(b"\r\n\r\nbody") {
                match stream.read(&mut chunk) {
                    Ok(n) if n > 0 => request.extend_from_slice(&chunk[..n]),
                    _ => break,
                }
            }
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
            drop(stream);
            if closed.send(()).is_err() {
                return;
            }
        }
    });
    (url, when_closed)
}

#[tokio::test]
async fn a_pooled_connection_that_the_server_has_closed_is_replaced() {
    let (root, (url, closed)) = (root(), forgetful());
    let outbox = open(root.path(), &url);
    for n in 0..5 {
        send(&outbox, "PUT", "/a", "body").await;
        let (report, deliveries) = replay(&outbox).await;
        assert_eq!((report.delivered, deliveries[0].outcome), (1, Outcome::Delivered), "{n}: {deliveries:?}");
        closed.recv().unwrap();
    }
}
