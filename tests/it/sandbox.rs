//! What the component cannot do or see: other servers, the credential, more memory; and TLS to the one server.

use crate::cli::Cli;
use crate::damage::{Damage, assert_each_is_set_aside_alone, damage};
use crate::kit::{builder, edit_meta, open, path, replay, root, send, tree};
use crate::upstream::{Act, Upstream};
use http::HeaderValue;
use outbox_host::{Body, Credential, Error, Health, Limits, Outcome, Write};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A certificate authority of our own.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Authority(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Its certificate in a file.
    pub fn file(&self, dir: &Path) -> PathBuf {
        let file = dir.join("ca.pem");
        std::fs::write(&file, self.0.pem()).unwrap();
        file
    }

    /// A server with a certificate for this name.
    fn server(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Upstream {
        Upstream::start_tls(Arc::new(self.config(name, change)), |_| Act::from(204))
    }

    /// The TLS of such a server.
    pub fn config(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> ServerConfig {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        change(&mut params);
        let certificate = params.signed_by(&key, &self.0).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap()
    }
}

#[tokio::test]
async fn a_server_with_a_private_certificate_is_trusted_with_the_ca_file() {
    let root = root();
    let authority = Authority::new();
    for name in ["127.0.0.1", "localhost"] {
        let server = authority.server(name, |_| {});
        let url = server.url().replace("127.0.0.1", name);
        let outbox = builder(root.path()).upstream(url).ca(authority.file(root.path())).open().unwrap();
        send(&outbox, "PUT", "/a", "x").await;
        let (report, deliveries) = replay(&outbox).await;
        assert_eq!(report.delivered, 1, "{deliveries:?}");
        assert_eq!(server.lines(), ["PUT /a"]);
    }
}

#[tokio::test]
async fn a_ca_file_that_was_replaced_is_read_by_the_next_outbox() {
    let dir = root();
    for authority in [Authority::new(), Authority::new()] {
        let (root, server) = (root(), authority.server("127.0.0.1", |_| {}));
        let outbox =
            builder(root.path()).upstream(server.url()).ca(authority.file(dir.path())).open().unwrap();
        send(&outbox, "PUT", "/a", "x").await;
        let (report, deliveries) = replay(&outbox).await;
        assert_eq!(report.delivered, 1, "{deliveries:?}");
    }
}

#[tokio::test]
async fn nothing_is_sent_to_a_server_that_cannot_be_trusted() {
    let authority = Authority::new();
    let other = Authority::new();
    let expired = |params: &mut CertificateParams| params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let cases = [
        ("no CA", authority.server("127.0.0.1", |_| {}), None),
        ("another CA", authority.server("127.0.0.1", |_| {}), Some(&other)),
        ("another name", authority.server("example.org", |_| {}), Some(&authority)),
        ("expired", authority.server("127.0.0.1", expired), Some(&authority)),
    ];
    for (case, server, trusted) in cases {
        let root = root();
        let mut builder = builder(root.path()).upstream(server.url());
        builder = builder.credential(Credential::bearer("s3cret").unwrap());
        if let Some(authority) = trusted {
            builder = builder.ca(authority.file(root.path()));
        }
        let outbox = builder.open().unwrap();
        send(&outbox, "PUT", "/a", "x").await;
        let (report, deliveries) = replay(&outbox).await;
        assert_eq!((report.deferred, report.remaining, report.upstream), (1, 1, Health::Down), "{case}");
        let why = deliveries[0].detail.as_deref().unwrap();
        assert_eq!(why, "the server's certificate is not trusted", "{case}");
        assert!(server.seen().is_empty(), "{case}");
    }
}

#[test]
fn why_a_certificate_is_not_trusted_is_told() {
    let (cli, authority) = (Cli::new(), Authority::new());
    let ca = authority.file(cli.root.path());
    let ca = ["--ca", ca.to_str().unwrap()];
    let expired = |params: &mut CertificateParams| params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let is_authority =
        |params: &mut CertificateParams| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let cases = [
        (authority.server("127.0.0.1", |_| {}), &[][..], "--ca"),
        (authority.server("example.org", |_| {}), &ca, "only valid for"),
        (authority.server("127.0.0.1", expired), &ca, "it has expired"),
        (authority.server("127.0.0.1", is_authority), &ca, "an authority's own"),
    ];
    cli.send(&["PUT", "/a"]);
    for (server, args, wanted) in cases {
        let ran = cli.run(["replay", "--upstream", &server.url()].iter().chain(args));
        assert_eq!(ran.stderr.lines().count(), 1, "{ran:?}");
        assert!(ran.stderr.contains(wanted) && ran.stderr.contains(&server.addr().to_string()), "{ran:?}");
        // It would be of no use with the others.
        assert_eq!(ran.stderr.contains("--ca"), wanted == "--ca", "{ran:?}");
    }
}

#[tokio::test]
async fn a_server_that_does_not_speak_tls_is_an_outage() {
    let (root, server) = (root(), Upstream::start(|_| 204));
    let outbox = open(root.path(), &server.url().replace("http:", "https:"));
    send(&outbox, "PUT", "/a", "x").await;
    let (report, _) = replay(&outbox).await;
    assert_eq!((report.remaining, report.upstream, server.seen().len()), (1, Health::Down, 0));
}

/// Changes one key of an entry's meta.json.
fn meta(name: &'static str, key: &'static str, value: impl Into<serde_json::Value>) -> Damage {
    let value = value.into();
    damage(name, move |entry| {
        let root = entry.parent().unwrap().parent().unwrap();
        edit_meta(root, entry.file_name().unwrap().to_str().unwrap(), |meta| meta[key] = value.clone());
    })
}

#[tokio::test]
async fn an_entry_on_disk_cannot_choose_its_host_or_smuggle_a_request() {
    let other = Upstream::start(|_| 204);
    let at = other.addr();
    let uri = |name, uri: String| meta(name, "raw_uri", uri);
    let header = |name: &'static str, value: &str| meta(name, "headers", serde_json::json!([[name, value]]));
    let cases = vec![
        uri("userinfo", format!("@{at}/x")),
        uri("two slashes", format!("//{at}/x")),
        uri("absolute", format!("http://{at}/x")),
        uri("subdomain", ".evil/x".into()),
        uri("port", format!(":{}/x", at.port())),
        uri("empty", String::new()),
        uri("asterisk", "*".into()),
        uri("backslash", format!("/\\{at}/x")),
        uri("line break", format!("/x HTTP/1.1\r\nHost: {at}\r\n\r\nPUT /y")),
        uri("line feed", "/x\nX-Evil: 1".into()),
        uri("NUL", "/x\0".into()),
        uri("fragment", "/x#frag".into()),
        uri("too long", format!("/{}", "x".repeat(20_000))),
        header("X-Fine", "a\r\nX-Evil: 1"),
        header("X-Fine", "a\nb"),
        header("X-Fine", "a\0"),
        header("X Evil", "1"),
        header("X-Evil: 1\r\nX-More", "2"),
        header("", "1"),
        header("Host", "evil"),
        header("hOsT", "evil"),
        header("Authorization", "Bearer stolen"),
        header("Proxy-Authorization", "Basic x"),
        header("Cookie", "session=1"),
        header("Transfer-Encoding", "chunked"),
        header("Content-Length", "5"),
        header("Connection", "close"),
        header("Expect", "100-continue"),
        header("If-Match", "*"),
        header("Idempotency-Key", "another"),
        meta("content type", "content_type", "text/plain\r\nX-Evil: 1"),
        meta("etag", "base_etag", "\"a\"\r\nX-Evil: 1"),
        meta("weak etag", "base_etag", "W/\"a\""),
        meta("base time", "base_mod_time", "yesterday"),
        meta("method with a blank", "method", "PUT /y"),
        meta("method with a line break", "method", "PUT / HTTP/1.1\r\n"),
        meta("no method", "method", ""),
    ];
    assert_each_is_set_aside_alone(root().path(), cases).await;
    assert_eq!((other.connections(), other.seen().len()), (0, 0));
}

/// Its request would come back with all that it carries.
#[tokio::test]
async fn an_entry_on_disk_cannot_have_the_credential_sent_back_and_does_not_stop_the_queue() {
    for method in ["TRACE", "CONNECT"] {
        let (root, server) = (root(), Upstream::start(|_| 204));
        let outbox = builder(root.path()).upstream(server.url());
        let outbox = outbox.credential(Credential::bearer("s3cret").unwrap()).open().unwrap();
        let tampered = send(&outbox, "PUT", "/a", "").await;
        edit_meta(root.path(), &tampered, |meta| meta["method"] = method.into());
        send(&outbox, "PUT", "/b", "x").await;
        for _ in 0..2 {
            let (report, deliveries) = replay(&outbox).await;
            assert_eq!((report.deferred, report.remaining), (1, 2), "{deliveries:?}");
        }
        // The third time it is suspected, and another has its turn.
        assert_eq!(replay(&outbox).await.0.delivered, 1);
        assert_eq!(server.lines(), ["PUT /b"]);
    }
}

/// Whether any file below a directory has these bytes in it.
fn on_disk(dir: &Path, needle: &str) -> bool {
    std::fs::read_dir(dir).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => on_disk(&path, needle),
            false => {
                std::fs::read(path).unwrap().windows(needle.len()).any(|found| found == needle.as_bytes())
            }
        }
    })
}

#[tokio::test]
async fn the_credential_is_on_every_request_and_never_on_disk() {
    let token = "s3cret-t0ken";
    let dir = root();
    let file = dir.path().join("token");
    std::fs::write(&file, format!("{token}\n")).unwrap();
    let value = HeaderValue::from_static("Bearer s3cret-t0ken");
    let credentials = [
        Credential::bearer(token).unwrap(),
        Credential::from_file(&file).unwrap(),
        Credential::from_fn(move || Some(value.clone())),
    ];
    for credential in credentials {
        let root = root();
        let server = Upstream::start(|seen| match seen.target.as_str() {
            "/conflict" => 412,
            "/rejected" => 400,
            "/later" => 503,
            _ => 204,
        });
        let outbox = builder(root.path()).upstream(server.url()).credential(credential).open().unwrap();
        for uri in ["/a", "/conflict", "/rejected", "/later"] {
            send(&outbox, "PUT", uri, "x").await;
        }
        replay(&outbox).await;
        assert!(server.seen().len() >= 4);
        for seen in server.seen() {
            let values: Vec<_> = seen.headers.iter().filter(|(n, _)| n == "authorization").collect();
            assert_eq!(values.len(), 1);
            assert_eq!(values[0].1, format!("Bearer {token}"));
        }
        assert!(!tree(root.path()).is_empty() && !on_disk(root.path(), token));
    }
}

#[tokio::test]
async fn a_rotated_token_is_taken_up_after_a_401_and_only_then() {
    let root = root();
    let file = root.path().join("token");
    std::fs::write(&file, "old").unwrap();
    let server = Upstream::start(|seen| match seen.header("authorization") {
        Some("Bearer new") => 204,
        _ => 401,
    });
    let credential = Credential::from_file(&file).unwrap();
    let outbox = builder(root.path()).upstream(server.url()).credential(credential).open().unwrap();
    send(&outbox, "PUT", "/a", "1").await;
    let (report, deliveries) = replay(&outbox).await;
    assert_eq!((report.held, report.upstream, deliveries[0].outcome), (1, Health::Auth, Outcome::Held));
    std::fs::write(&file, "new\n").unwrap();
    let (report, _) = replay(&outbox).await;
    assert_eq!((report.delivered, report.upstream), (1, Health::Up));

    // Whoever is asked for a credential each time may have to ask a person.
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let credential = Credential::from_fn(move || match count.fetch_add(1, Ordering::Relaxed) {
        0 => None,
        _ => Some(HeaderValue::from_static("Bearer new")),
    });
    let outbox = builder(root.path()).upstream(server.url()).credential(credential).open().unwrap();
    for n in 0..5 {
        send(&outbox, "PUT", &format!("/{n}"), "x").await;
    }
    assert_eq!(replay(&outbox).await.0.held, 1);
    assert_eq!(server.seen().last().unwrap().header("authorization"), None);
    assert_eq!(replay(&outbox).await.0.delivered, 5);
    assert_eq!(asked.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn an_author_cannot_put_credentials_into_a_write() {
    let root = root();
    for credential in [None, Some(Credential::bearer("s3cret").unwrap())] {
        let mut builder = builder(root.path()).upstream("http://127.0.0.1:9");
        if let Some(credential) = credential {
            builder = builder.credential(credential);
        }
        let outbox = builder.open().unwrap();
        for name in ["Authorization", "authorization", "Proxy-Authorization", "Cookie"] {
            let headers = vec![(name.to_owned(), "Bearer mine".to_owned())];
            let in_parts = Write { headers, ..Write::new("PUT", "/a") };
            let refused = outbox.enqueue_write(in_parts, "x".into()).await;
            assert!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
            let request = http::Request::put("/a").header(name, "Bearer mine").body(Body::from("x")).unwrap();
            assert!(matches!(outbox.enqueue(request).await, Err(Error::Invalid { .. })));
        }
    }
    assert!(tree(root.path()).is_empty());
}

#[tokio::test]
async fn an_upstream_url_with_credentials_is_refused_without_showing_them() {
    let root = root();
    for url in ["http://user:s3cret@127.0.0.1:9/", "https://s3cret@example.org"] {
        let Err(error) = builder(root.path()).upstream(url).open() else { panic!("{url} was taken") };
        assert!(!format!("{error} {error:?}").contains("s3cret"), "{error}");
    }
}

#[tokio::test]
async fn a_guest_out_of_memory_is_stopped_and_loses_nothing() {
    let (root, server) = (root(), Upstream::start(|_| 204));
    // Room for itself, and not for the longest body that is handed over whole.
    let limits = Limits { memory: 2 * 1024 * 1024, ..Limits::default() };
    let outbox = builder(root.path()).limits(limits).open().unwrap();
    send(&outbox, "PUT", "/a", "1").await;
    let large = outbox.enqueue_write(Write::new("PUT", "/large"), vec![0; 1024 * 1024].into()).await;
    assert!(matches!(large, Err(Error::Trapped(_) | Error::Component(_))), "{large:?}");
    // The next call gets a fresh instance.
    send(&outbox, "PUT", "/b", "2").await;
    assert_eq!(outbox.count().await.unwrap().pending, 2);
    let (report, _) = replay(&open(root.path(), &server.url())).await;
    assert_eq!((report.delivered, report.remaining), (2, 0));
    let bodies: Vec<_> = server.seen().into_iter().map(|seen| seen.body).collect();
    assert_eq!(bodies, [b"1", b"2"]);
}

#[tokio::test]
async fn a_callback_that_panics_costs_one_pass() {
    for concurrency in [1, 4] {
        let (root, server) = (root(), Upstream::start(|_| 204));
        let asked = AtomicUsize::new(0);
        let credential = Credential::from_fn(move || {
            assert!(asked.fetch_add(1, Ordering::Relaxed) > 0, "no credential yet");
            None
        });
        let outbox = builder(root.path()).upstream(server.url()).concurrency(concurrency);
        let outbox = outbox.credential(credential).open().unwrap();
        send(&outbox, "PUT", "/a", "x").await;
        let failed = outbox.replay().await;
        assert!(matches!(&failed, Err(Error::Trapped(why)) if why.contains("panic")), "{failed:?}");
        assert_eq!(replay(&outbox).await.0.delivered, 1);
        assert_eq!(server.lines(), ["PUT /a"]);
    }
}

#[cfg(unix)]
#[tokio::test]
async fn a_link_in_the_outboxs_directory_leads_its_host_nowhere() {
    for name in [".lock", ".lease", ".lease.new", ".wake"] {
        for precious in ["precious", ""] {
            let dir = root();
            let (root, victim) = (dir.path().join("root"), dir.path().join("victim"));
            let server = Upstream::start(|_| 204);
            let outbox = open(&root, &server.url());
            if name == ".wake" {
                outbox.start().unwrap();
            }
            std::fs::write(&victim, precious).unwrap();
            let _ = std::fs::remove_file(path(&root, name));
            std::os::unix::fs::symlink("../../victim", path(&root, name)).unwrap();
            let before = std::fs::metadata(&victim).unwrap().modified().unwrap();
            let told = match name {
                ".wake" => outbox.wake_host().map(drop),
                _ => outbox.replay().await.map(drop),
            };
            match told {
                // This one is replaced.
                Ok(()) if name == ".lease.new" => {}
                Err(Error::Root { path, reason }) => {
                    assert!(path.ends_with(name) && reason.contains("link"), "{path:?}: {reason}");
                }
                other => panic!("{name}: {other:?}"),
            }
            if let ".lock" | ".lease" = name {
                assert!(matches!(outbox.wake_host(), Err(Error::Root { .. })), "{name}");
                assert!(matches!(outbox.start(), Err(Error::Root { .. })), "{name}");
            }
            assert_eq!(std::fs::read_to_string(&victim).unwrap(), precious, "{name}");
            assert_eq!(std::fs::metadata(&victim).unwrap().modified().unwrap(), before, "{name}");
            outbox.shutdown().await;
        }
    }
}

#[cfg(unix)]
#[tokio::test]
async fn a_root_may_be_a_link_itself() {
    let (dir, server) = (root(), Upstream::start(|_| 204));
    let (real, link) = (dir.path().join("real"), dir.path().join("link"));
    std::fs::create_dir(&real).unwrap();
    std::os::unix::fs::symlink("real", &link).unwrap();
    let outbox = open(&link, &server.url());
    send(&outbox, "PUT", "/a", "x").await;
    assert_eq!(replay(&outbox).await.0.delivered, 1);
    assert!(path(&real, ".lock").exists());
}

#[tokio::test]
async fn without_the_tokens_file_the_old_one_is_sent_until_there_is_a_new_one() {
    for gone in [None, Some("")] {
        let root = root();
        let file = root.path().join("token");
        std::fs::write(&file, "old").unwrap();
        // To whoever has no credentials, it shows nothing.
        let server = Upstream::start(|seen| match seen.header("authorization") {
            Some("Bearer new") => 204,
            Some(_) => 401,
            None => 404,
        });
        let credential = Credential::from_file(&file).unwrap();
        match gone {
            None => std::fs::remove_file(&file).unwrap(),
            Some(text) => std::fs::write(&file, text).unwrap(),
        }
        let outbox = builder(root.path()).upstream(server.url()).credential(credential).open().unwrap();
        send(&outbox, "PUT", "/a", "x").await;
        for _ in 0..2 {
            let (report, deliveries) = replay(&outbox).await;
            assert_eq!((report.held, report.remaining), (1, 1), "{deliveries:?}");
        }
        std::fs::write(&file, "new").unwrap();
        assert_eq!(replay(&outbox).await.0.delivered, 1);
        let sent: Vec<_> =
            server.seen().iter().map(|seen| seen.header("authorization").unwrap().to_owned()).collect();
        assert_eq!(sent, ["Bearer old", "Bearer old", "Bearer new"]);
    }
}
