//! 412 is first a question: was it us? What a lost reply, somebody else's version, and a server that does not
//! answer make of it.

use crate::kit::{Base, builder, json, open, path, replay, root, send_on, set_aside, tree};
use crate::resources::{Names, Resources, now};
use crate::upstream::{Act, Reply, Seen, Upstream};
use outbox_host::{Body, Builder, Delivery, Health, Limits, Outbox, Outcome, Report, Write};
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

/// A script that does what requests ask for, and closes the connection instead of the first reply to a write.
fn losing_one_reply(resources: &Resources) -> impl Fn(&Seen) -> Act + Send + Sync + 'static {
    let lost = std::sync::Arc::new(Mutex::new(false));
    let resources = resources.clone();
    move |_| {
        let (resources, lost) = (resources.clone(), lost.clone());
        Act::decide(move |seen| {
            let reply = resources.act(seen, now());
            match std::mem::replace(&mut *lost.lock().unwrap(), true) {
                true => reply.into(),
                false => Act::Cut,
            }
        })
    }
}

/// One write whose reply is lost, and the pass after that.
async fn after_a_lost_reply(
    names: Names,
    method: &str,
    based: bool,
    between: impl FnOnce(&Resources),
) -> (tempfile::TempDir, Resources, Upstream, Report, Vec<Delivery>) {
    let (root, resources) = (root(), Resources::named(names));
    let written = now() - 1_000;
    let base = match based {
        true => {
            let etag = resources.write("/doc", "before", written);
            if names == Names::Strong { Base::Etag(etag) } else { Base::Date(written) }
        }
        false => Base::Absent,
    };
    let server = Upstream::start(losing_one_reply(&resources));
    let outbox = open(root.path(), &server.url());
    send_on(&outbox, &base, method, "/doc", if method == "DELETE" { "" } else { "mine" }).await;
    let (report, deliveries) = replay(&outbox).await;
    assert_eq!((report.deferred, report.remaining, report.upstream), (1, 1, Health::Down), "{deliveries:?}");
    between(&resources);
    let (report, deliveries) = replay(&outbox).await;
    (root, resources, server, report, deliveries)
}

#[tokio::test]
async fn a_lost_reply_never_becomes_a_conflict() {
    for (names, method, based) in [
        (Names::Strong, "PUT", true),
        (Names::Strong, "PUT", false),
        (Names::Strong, "DELETE", true),
        (Names::Date, "PUT", true),
        (Names::Nothing, "PUT", true),
    ] {
        let (root, resources, server, report, deliveries) =
            after_a_lost_reply(names, method, based, |_| {}).await;
        assert_eq!((report.delivered, report.conflicts, report.remaining), (1, 0, 0), "{deliveries:?}");
        let delivery = &deliveries[0];
        assert_eq!(delivery.outcome, Outcome::Delivered);
        // A DELETE with a base meets 404 or 412, as the server likes; here the version is checked first.
        assert!(delivery.detail.as_deref().unwrap().starts_with("already-applied"), "{delivery:?}");
        assert_eq!(delivery.status, Some(412));
        let write = format!("{method} /doc");
        assert_eq!(server.lines(), [write.as_str(), &write, "GET /doc"], "one request more");
        let question = server.seen().pop().unwrap();
        assert_eq!(question.header("accept-encoding"), Some("identity"));
        assert_eq!((question.header("idempotency-key"), question.body_len), (None, 0));
        assert_eq!(resources.content("/doc").as_deref(), (method == "PUT").then_some("mine"));
        assert!(tree(root.path()).is_empty());
    }
}

#[tokio::test]
async fn what_a_lost_reply_would_have_said_is_handed_on_after_the_question() {
    let (root, resources) = (root(), Resources::default());
    let base = Base::Etag(resources.write("/doc", "before", now() - 1_000));
    let server = Upstream::start(losing_one_reply(&resources));
    let outbox = open(root.path(), &server.url());
    for body in ["one", "two", "three"] {
        send_on(&outbox, &base, "PUT", "/doc", body).await;
    }
    assert_eq!(replay(&outbox).await.0.delivered, 0);
    let (report, deliveries) = replay(&outbox).await;
    assert_eq!((report.delivered, report.conflicts, report.remaining), (3, 0, 0), "{deliveries:?}");
    assert_eq!(resources.content("/doc").as_deref(), Some("three"));
    assert_eq!(server.lines(), ["PUT /doc", "PUT /doc", "GET /doc", "PUT /doc", "PUT /doc"]);
}

#[tokio::test]
async fn a_version_that_is_not_ours_is_a_conflict_that_shows_what_the_server_has() {
    let theirs = "their version\n".repeat(1_000);
    for method in ["PUT", "DELETE", "PATCH"] {
        let (root, resources) = (root(), Resources::default());
        resources.write("/doc", "before", now() - 1_000);
        let server = Upstream::start(resources.script());
        let outbox = open(root.path(), &server.url());
        let id = send_on(&outbox, &Base::Etag("\"v1\"".into()), method, "/doc", "mine").await;
        let at = now() - 500;
        resources.write("/doc", &theirs, at);
        let (report, _) = replay(&outbox).await;
        assert_eq!((report.conflicts, report.remaining), (1, 0));
        assert_eq!(server.lines(), [&format!("{method} /doc"), "GET /doc"]);
        let response = json(&set_aside(root.path(), "", &id).join("response.json"));
        assert_eq!(
            response["reason"],
            "somebody else changed it: your write was based on version \"v1\", and the server has version \"v2\" now"
        );
        assert_eq!((&response["status"], &response["current"]["status"]), (&412.into(), &200.into()));
        let date = crate::resources::date(at);
        assert_eq!((&response["etag"], &response["last_modified"]), (&"\"v2\"".into(), &date.into()));
        assert_eq!(response["current"]["body_start"], theirs[..4096]);
        let item = outbox.get(&id).await.unwrap();
        assert_eq!(item.current.unwrap().body_start, theirs[..4096]);
        assert_eq!(resources.content("/doc"), Some(theirs.clone()));
    }
}

#[tokio::test]
async fn a_resource_that_somebody_removed_is_a_conflict_that_says_so() {
    let (root, resources) = (root(), Resources::default());
    let server = Upstream::start(resources.script());
    let outbox = open(root.path(), &server.url());
    let id = send_on(&outbox, &Base::Etag("\"v1\"".into()), "PUT", "/doc", "mine").await;
    assert_eq!(replay(&outbox).await.0.conflicts, 1);
    let item = outbox.get(&id).await.unwrap();
    assert_eq!(item.validator.as_deref(), Some("absent"));
    assert!(item.reason.unwrap().starts_with("somebody else removed it: "));
}

#[tokio::test]
async fn what_was_changed_and_what_was_lost_are_told_apart_by_every_byte() {
    for theirs in ["Mine", "min", "mine ", ""] {
        let (_root, resources, _server, report, deliveries) =
            after_a_lost_reply(Names::Strong, "PUT", true, |r| {
                r.write("/doc", theirs, now());
            })
            .await;
        assert_eq!((report.delivered, report.conflicts), (0, 1), "{deliveries:?}");
        assert_eq!(resources.content("/doc").as_deref(), Some(theirs));
    }
}

const MIB: usize = 1024 * 1024;

/// A write of `/large`, and what the server has there.
async fn large(configure: impl FnOnce(Builder) -> Builder, mine: Vec<u8>, theirs: Vec<u8>) -> Vec<Delivery> {
    fn size(dir: &Path) -> u64 {
        let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
        entries.map(|e| if e.path().is_dir() { size(&e.path()) } else { e.metadata().unwrap().len() }).sum()
    }
    let root = root();
    let len = mine.len() as u64;
    let server = Upstream::start(move |seen| match seen.method.as_str() {
        "GET" => Act::from(Reply::new(200).header("ETag", "\"v2\"").body(theirs.clone())),
        _ => Act::from(412),
    });
    let outbox = configure(builder(root.path()).upstream(server.url())).open().unwrap();
    let write = Write { base_etag: Some("\"v1\"".into()), ..Write::new("PUT", "/large") };
    outbox.enqueue_write(write, Body::reader(std::io::Cursor::new(mine))).await.unwrap();
    let (_, deliveries) = replay(&outbox).await;
    assert!(size(root.path()) < len + 64 * 1024, "the answer was stored");
    deliveries
}

#[tokio::test]
async fn a_large_body_is_compared_as_it_streams_and_is_never_stored() {
    let mine: Vec<u8> = (0..20 * MIB).map(|i| (i % 251) as u8).collect();
    // Less memory than the body is long.
    let bounded = |b: Builder| b.limits(Limits { memory: 12 * MIB, ..Limits::default() });
    let deliveries = large(bounded, mine.clone(), mine.clone()).await;
    assert_eq!(deliveries[0].outcome, Outcome::Delivered, "{deliveries:?}");
    let mut changed = mine.clone();
    *changed.last_mut().unwrap() ^= 1;
    let deliveries = large(bounded, mine, changed).await;
    assert_eq!(deliveries[0].outcome, Outcome::Conflict, "{deliveries:?}");
}

/// A PUT that gets 412, and a question that is answered like this.
async fn asked(answer: Act) -> (tempfile::TempDir, Upstream, Outbox, String, Report, Vec<Delivery>) {
    let root = root();
    let server = Upstream::start(move |seen| if seen.method == "GET" { answer.clone() } else { 412.into() });
    // Long enough for a whole answer to come in time on a busy machine.
    let outbox =
        builder(root.path()).upstream(server.url()).idle_timeout(Duration::from_secs(2)).open().unwrap();
    let id = send_on(&outbox, &Base::Etag("\"v1\"".into()), "PUT", "/doc", "0123456789").await;
    let (report, deliveries) = replay(&outbox).await;
    (root, server, outbox, id, report, deliveries)
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_no_verdict() {
    let whole = Reply::new(200).header("ETag", "\"v2\"").body("0123456789");
    for answer in [Act::Cut, Act::Stall, Act::CutReply(whole.clone()), Act::StallReply(whole.clone())] {
        let said = format!("{answer:?}");
        let (root, server, outbox, id, report, deliveries) = asked(answer).await;
        assert_eq!((report.deferred, report.conflicts), (1, 0), "{said}: {deliveries:?}");
        assert_eq!(report.remaining, 1);
        assert!(path(root.path(), &id).exists());
        let whole = whole.clone();
        server.script(move |seen| if seen.method == "GET" { whole.clone().into() } else { Act::from(412) });
        let (report, deliveries) = replay(&outbox).await;
        assert_eq!((report.delivered, report.remaining), (1, 0), "{said}: {deliveries:?}");
    }
}

#[tokio::test]
async fn a_question_that_cannot_be_answered_now_is_asked_again_later() {
    for (status, outcome, upstream) in [
        (503, Outcome::Deferred, Health::Up),
        (429, Outcome::Deferred, Health::Up),
        (302, Outcome::Deferred, Health::Up),
        (401, Outcome::Held, Health::Auth),
        (511, Outcome::Held, Health::Auth),
    ] {
        let (root, server, outbox, id, report, deliveries) = asked(status.into()).await;
        assert_eq!((deliveries[0].outcome, report.upstream), (outcome, upstream), "{status}: {deliveries:?}");
        assert_eq!((report.conflicts, report.remaining), (0, 1));
        assert!(path(root.path(), &id).exists());
        server.script(|seen| match seen.method.as_str() {
            "GET" => Reply::new(200).header("ETag", "\"v2\"").body("0123456789"),
            _ => Reply::new(412),
        });
        outbox.retry(&id).await.unwrap();
        assert_eq!(replay(&outbox).await.0.delivered, 1, "{status}");
    }
}

#[tokio::test]
async fn a_server_that_does_not_tell_what_it_has_leaves_a_conflict_without_a_version() {
    // Who may write but not read is refused with 403: no other credentials would be found by waiting.
    for status in [403, 405, 406, 501] {
        let (_root, server, outbox, id, report, deliveries) = asked(status.into()).await;
        if status == 501 {
            assert_eq!((report.conflicts, report.deferred), (0, 1), "{deliveries:?}");
            continue;
        }
        assert_eq!((report.conflicts, report.remaining), (1, 0), "{status}: {deliveries:?}");
        assert_eq!(server.seen().len(), 2);
        let reason = outbox.get(&id).await.unwrap().reason.unwrap();
        assert!(reason.ends_with(&format!("asked for its own, it answered {status}")), "{reason}");
    }
}

#[tokio::test]
async fn the_question_carries_what_the_write_said_of_itself_and_nothing_of_its_body() {
    let (root, resources) = (root(), Resources::default());
    let server = Upstream::start(resources.script());
    let outbox = open(root.path(), &server.url());
    let headers = [("X-Tenant", "7"), ("Content-Language", "de"), ("User-Agent", "till/7")];
    let write = Write {
        base_etag: Some("\"v1\"".into()),
        content_type: Some("text/plain".into()),
        headers: headers.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect(),
        ..Write::new("PUT", "/doc?x=1")
    };
    outbox.enqueue_write(write, "mine".into()).await.unwrap();
    replay(&outbox).await;
    let question = server.seen().pop().unwrap();
    assert_eq!((question.method.as_str(), question.target.as_str()), ("GET", "/doc?x=1"));
    assert_eq!((question.header("x-tenant"), question.header("user-agent")), (Some("7"), Some("till/7")));
    let absent = ["content-language", "content-type", "content-length", "if-match", "idempotency-key"];
    assert!(absent.iter().all(|name| question.header(name).is_none()), "{question:?}");
    assert_eq!(question.header("cache-control"), Some("no-cache"));
}

#[tokio::test]
async fn an_answer_that_is_compared_is_waited_for_as_long_as_it_moves() {
    // Ten bytes, longer in all than the idle timeout.
    let answer = Reply::new(200).header("ETag", "\"v2\"").body("0123456789");
    let (.., report, deliveries) = asked(Act::Trickle(Duration::from_millis(50), answer)).await;
    assert_eq!((report.delivered, report.remaining), (1, 0), "{deliveries:?}");
}

/// What was sent coded comes back coded; and a lock that was held for the write is over by now.
#[tokio::test]
async fn the_question_is_about_the_content_as_it_was_sent_and_not_about_its_lock() {
    let (root, resources) = (root(), Resources::default());
    let etag = resources.write("/doc", "before", now() - 1_000);
    let lossy = losing_one_reply(&resources);
    let server = Upstream::start(move |seen| {
        let act = lossy(seen);
        match (seen.method.as_str(), seen.header("if")) {
            ("GET", Some(_)) => Act::from(412),
            ("GET", None) => {
                let found = resources.get("/doc").unwrap();
                let reply = Reply::new(200).body(found.content).header("etag", &found.etag);
                reply.header("content-encoding", "gzip").into()
            }
            _ => act,
        }
    });
    let outbox = open(root.path(), &server.url());
    let mut write = Write::new("PUT", "/doc");
    write.base_etag = Some(etag);
    write.headers.push(("Content-Encoding".into(), "GZIP".into()));
    write.headers.push(("If".into(), "(<urn:uuid:1>)".into()));
    outbox.enqueue_write(write, Body::from("not really")).await.unwrap();
    assert_eq!(replay(&outbox).await.0.deferred, 1);
    let (report, deliveries) = replay(&outbox).await;
    assert_eq!((report.delivered, report.conflicts), (1, 0), "{deliveries:?}");
    let question = server.seen().pop().unwrap();
    assert_eq!(question.header("accept-encoding"), Some("GZIP, identity"));
}
