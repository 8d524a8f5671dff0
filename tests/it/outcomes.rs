//! What becomes of an entry after each kind of reply: the table of docs/semantics.md, and what an operator can do then.

use crate::kit::{Base, builder, json, open, path, replay, root, send, send_on, set_aside, tree};
use crate::resources::{Names, Resources, date, now};
use crate::upstream::{Act, Reply, ReservedPort, Seen, Upstream};
use outbox_host::{Delivery, Error, Health, Keep, Outbox, Outcome, Place, Refused, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

/// A reply with the status that the path ends with: a whole table in one pass.
fn by_path(seen: &Seen) -> Reply {
    Reply::new(seen.target.rsplit('/').next().unwrap().parse().unwrap())
}

/// Queues a write for each status.
async fn send_all(outbox: &Outbox, method: &str, statuses: &[u16]) -> Vec<String> {
    let mut ids = Vec::new();
    for status in statuses {
        ids.push(send(outbox, method, &format!("/{method}/{status}"), "body").await);
    }
    ids
}

fn of<'a>(deliveries: &'a [Delivery], id: &str) -> &'a Delivery {
    deliveries.iter().find(|d| d.id == id).unwrap_or_else(|| panic!("no outcome of {id} in {deliveries:?}"))
}

fn assert_all(outcome: Outcome, deliveries: &[Delivery], ids: &[String], statuses: &[u16]) {
    assert_eq!(deliveries.len(), ids.len(), "{deliveries:?}");
    for (id, status) in ids.iter().zip(statuses) {
        let delivery = of(deliveries, id);
        assert_eq!((delivery.outcome, delivery.status), (outcome, Some(*status)), "{delivery:?}");
    }
}

/// How many seconds from `since` the entry's not_before is.
fn wait_of(root: &Path, id: &str, since: SystemTime) -> f64 {
    let state = json(&path(root, &format!("{id}/state.json")));
    let due = humantime::parse_rfc3339(state["not_before"].as_str().unwrap()).unwrap();
    due.duration_since(since).map_or(-1.0, |d| d.as_secs_f64())
}

#[tokio::test]
async fn every_2xx_is_delivered_and_leaves_nothing() {
    let (root, server) = (root(), Upstream::start(by_path));
    let outbox = open(root.path(), &server.url());
    let statuses = [200, 201, 202, 203, 204, 206, 207, 299];
    let ids = send_all(&outbox, "PUT", &statuses).await;
    let (report, deliveries) = replay(&outbox).await;
    assert_all(Outcome::Delivered, &deliveries, &ids, &statuses);
    assert_eq!((report.delivered, report.remaining, report.upstream), (8, 0, Health::Up));
    assert_eq!(report.next_delay_ms, 300_000);
    assert!(tree(root.path()).is_empty());
}

#[tokio::test]
async fn deleting_what_is_not_there_is_delivered_but_writing_to_it_is_rejected() {
    let (root, server) = (root(), Upstream::start(by_path));
    let outbox = open(root.path(), &server.url());
    let deletes = send_all(&outbox, "DELETE", &[404, 410]).await;
    let puts = send_all(&outbox, "PUT", &[404, 410]).await;
    let (report, deliveries) = replay(&outbox).await;
    assert_eq!((report.delivered, report.rejected, report.remaining), (2, 2, 0));
    assert!(deletes.iter().all(|id| of(&deliveries, id).outcome == Outcome::Delivered));
    assert!(puts.iter().all(|id| of(&deliveries, id).outcome == Outcome::Rejected));
    assert_eq!(of(&deliveries, &deletes[0]).detail.as_deref(), Some("it was not there"));
}

#[tokio::test]
async fn a_412_becomes_a_conflict_that_keeps_the_body_and_the_servers_reply() {
    let date = "Wed, 01 May 2024 08:00:00 GMT";
    let server = Upstream::start(move |seen| match seen.method.as_str() {
        "PUT" => Reply::new(412)
            .header("ETag", "\"theirs\"")
            .header("Last-Modified", date)
            .header("Set-Cookie", "session=s3cret")
            .body("changed by somebody"),
        _ => Reply::new(200)
            .header("ETag", "\"theirs\"")
            .header("Last-Modified", date)
            .header("Set-Cookie", "session=s3cret")
            .body("their version"),
    });
    let root = root();
    let outbox = open(root.path(), &server.url());
    let write = Write { base_etag: Some("\"mine\"".into()), ..Write::new("PUT", "/doc") };
    let id = outbox.enqueue_write(write, "my version".into()).await.unwrap();
    let (report, deliveries) = replay(&outbox).await;
    assert_eq!((report.conflicts, report.remaining, report.upstream), (1, 0, Health::Up));
    assert_eq!((deliveries[0].outcome, deliveries[0].status), (Outcome::Conflict, Some(412)));

    let kept = set_aside(root.path(), "", &id);
    assert!(kept.file_name().unwrap().to_str().unwrap().starts_with(&format!("{id}.conflict-2")), "{kept:?}");
    assert_eq!(std::fs::read(kept.join("body.bin")).unwrap(), b"my version");
    assert_eq!(json(&kept.join("meta.json"))["id"], id.as_str());
    let response = json(&kept.join("response.json"));
    assert_eq!(response["status"], 412);
    assert_eq!(response["body_start"], "changed by somebody");
    assert_eq!((&response["etag"], &response["last_modified"]), (&"\"theirs\"".into(), &date.into()));
    assert_eq!(
        response["reason"],
        "somebody else changed it: your write was based on version \"mine\", and the server has version \"theirs\" now"
    );
    assert_eq!(
        (&response["current"]["status"], &response["current"]["body_start"]),
        (&200.into(), &"their version".into())
    );
    assert!(!response.to_string().contains("s3cret"), "{response}");

    let item = outbox.get(&id).await.unwrap();
    assert_eq!((item.place, item.validator.as_deref()), (Place::Conflict, Some("\"theirs\"")));
    assert_eq!(outbox.count().await.unwrap().conflicts, 1);
}

#[tokio::test]
async fn want_of_credentials_holds_everything_and_asks_once() {
    for status in [401, 403, 407, 511] {
        let (root, server) = (root(), Upstream::start(move |_| status));
        let outbox = open(root.path(), &server.url());
        let held = send(&outbox, "PUT", "/a", "1").await;
        send(&outbox, "PUT", "/b", "2").await;
        let (report, deliveries) = replay(&outbox).await;
        assert_eq!((report.held, report.remaining, report.upstream), (1, 2, Health::Auth), "{status}");
        assert_eq!(report.next_delay_ms, 30_000);
        assert_eq!((deliveries.len(), deliveries[0].outcome), (1, Outcome::Held));
        assert_eq!(server.lines(), ["PUT /a"]);
        let state = json(&path(root.path(), &format!("{held}/state.json")));
        assert_eq!((&state["attempts"], &state["not_before"]), (&1.into(), &serde_json::Value::Null));
        assert_eq!(state["last_error"], format!("the server answered {status}"));

        server.script(|_| 204);
        let (report, _) = replay(&outbox).await;
        assert_eq!((report.delivered, report.remaining, report.upstream), (2, 0, Health::Up));
    }
}

#[tokio::test]
async fn what_may_succeed_later_is_deferred_with_a_backoff_and_no_redirect_is_followed() {
    let server = Upstream::start(|seen| match by_path(seen) {
        reply if (300..400).contains(&reply.status) => reply.header("Location", "/elsewhere/200"),
        reply => reply,
    });
    let root = root();
    let outbox = open(root.path(), &server.url());
    let statuses = [
        408, 423, 425, 429, 500, 501, 502, 503, 504, 507, 599, 300, 301, 302, 303, 304, 305, 307, 308, 399,
        600,
    ];
    let ids = send_all(&outbox, "PUT", &statuses).await;
    let before = SystemTime::now();
    let (report, deliveries) = replay(&outbox).await;
    assert_all(Outcome::Deferred, &deliveries, &ids, &statuses);
    let count = statuses.len() as u64;
    assert_eq!((report.deferred, report.remaining, report.upstream), (count, count, Health::Up));
    assert!((1_000..=30_000).contains(&report.next_delay_ms), "{}", report.next_delay_ms);
    for (id, status) in ids.iter().zip(statuses) {
        let entry = outbox.get(id).await.unwrap().entry.unwrap();
        assert_eq!(entry.attempts, 1);
        let why = entry.last_error.unwrap();
        assert!(why.contains(&format!("answered {status}")), "{why}");
        assert_eq!(why.contains("redirects are not followed"), (300..400).contains(&status), "{why}");
        let wait = wait_of(root.path(), id, before);
        assert!((1.0..=40.0).contains(&wait), "{status}: {wait} s");
    }
    let seen = server.lines();
    assert_eq!(seen.len(), statuses.len());
    assert!(!seen.iter().any(|line| line.contains("elsewhere")), "{seen:?}");
}

#[tokio::test]
async fn retry_after_in_seconds_or_as_a_date_wins_between_a_second_and_a_day() {
    let cases: [(fn() -> String, f64); 8] = [
        (|| "0".into(), 1.0),
        (|| "5".into(), 5.0),
        (|| "120".into(), 120.0),
        (|| "999999".into(), 86_400.0),
        (|| "99999999999999999999".into(), 86_400.0),
        (|| date(now() + 600), 600.0),
        (|| date(now() - 600), 1.0),
        (|| date(now() + 9_999_999), 86_400.0),
    ];
    for (value, seconds) in cases {
        // Asked for when the server replies: a date is as far away then as it says here.
        let server = Upstream::start(move |_| Reply::new(503).header("Retry-After", &value()));
        let root = root();
        let outbox = open(root.path(), &server.url());
        let id = send(&outbox, "PUT", "/a", "1").await;
        let before = SystemTime::now();
        let (report, _) = replay(&outbox).await;
        let wait = wait_of(root.path(), &id, before);
        // not_before is rounded up to the second, and an HTTP date down. The pass itself takes a while.
        assert!((seconds - 2.0..seconds + 8.0).contains(&wait), "{seconds}: {wait} s");
        assert!((1.0..=86_408.0).contains(&wait), "{seconds}: {wait} s");
        // The next pass is made when the entry is due, at the latest at the tick.
        let delay = report.next_delay_ms as f64 / 1_000.0;
        let expected = seconds.min(30.0);
        assert!((expected - 3.0..expected + 1.5).contains(&delay), "{seconds}: next pass in {delay} s");
    }
}

#[tokio::test]
async fn a_deferred_entry_is_not_sent_before_its_time_unless_retry_makes_it_due() {
    let root = root();
    let server = Upstream::sequence(vec![Reply::new(503).header("Retry-After", "3600").into(), 204.into()]);
    let outbox = open(root.path(), &server.url());
    let id = send(&outbox, "PUT", "/a", "1").await;
    replay(&outbox).await;
    let (report, deliveries) = replay(&outbox).await;
    assert_eq!((report.remaining, deliveries.len(), server.seen().len()), (1, 0, 1));
    assert_eq!(report.next_delay_ms, 30_000);
    outbox.retry(&id).await.unwrap();
    let (report, _) = replay(&outbox).await;
    assert_eq!((report.delivered, report.remaining, server.seen().len()), (1, 0, 2));
}

#[tokio::test]
async fn attempts_add_up_and_no_backoff_is_longer_than_they_allow() {
    let (root, server) = (root(), Upstream::start(|_| 500));
    let outbox = open(root.path(), &server.url());
    let id = send(&outbox, "PUT", "/a", "1").await;
    for attempts in 1..=4u32 {
        let before = SystemTime::now();
        replay(&outbox).await;
        let entry = outbox.get(&id).await.unwrap().entry.unwrap();
        assert_eq!(entry.attempts, attempts);
        let wait = wait_of(root.path(), &id, before);
        assert!((1.0..=f64::from(30 << (attempts - 1)) + 5.0).contains(&wait), "{attempts}: {wait} s");
        outbox.retry(&id).await.unwrap();
    }
}

#[tokio::test]
async fn after_many_attempts_entries_wait_long_and_not_all_alike() {
    let (root, server) = (root(), Upstream::start(|_| 500));
    let outbox = open(root.path(), &server.url());
    let mut ids = Vec::new();
    for n in 0..20 {
        let id = send(&outbox, "PUT", &format!("/{n}"), "x").await;
        std::fs::write(path(root.path(), &format!("{id}/state.json")), r#"{"attempts": 7}"#).unwrap();
        ids.push(id);
    }
    let before = SystemTime::now();
    assert_eq!(replay(&outbox).await.0.deferred, 20);
    let mut waits: Vec<u64> = ids.iter().map(|id| wait_of(root.path(), id, before).round() as u64).collect();
    waits.sort_unstable();
    // Each takes any part of an hour: none of 20 is over 10 minutes once in 4 * 10^15 runs.
    assert!((600..=3_610).contains(waits.last().unwrap()), "{waits:?}");
    waits.dedup();
    assert!(waits.len() > 3, "{waits:?}");
}

#[tokio::test]
async fn what_the_server_refuses_for_good_is_kept_in_rejected_with_its_reply() {
    let server = Upstream::start(|seen| {
        by_path(seen).header("X-Why", "policy").header("Set-Cookie", "session=s3cret").body("no, thanks")
    });
    let root = root();
    let outbox = open(root.path(), &server.url());
    let statuses =
        [400, 402, 404, 405, 406, 409, 411, 413, 414, 415, 417, 418, 421, 422, 426, 428, 431, 451, 499];
    let ids = send_all(&outbox, "PUT", &statuses).await;
    let (report, deliveries) = replay(&outbox).await;
    assert_all(Outcome::Rejected, &deliveries, &ids, &statuses);
    let count = statuses.len() as u64;
    assert_eq!((report.rejected, report.remaining, report.upstream), (count, 0, Health::Up));
    assert_eq!(outbox.count().await.unwrap().rejected, count);
    for (id, status) in ids.iter().zip(statuses) {
        let kept = set_aside(root.path(), "rejected", id);
        assert_eq!(std::fs::read(kept.join("body.bin")).unwrap(), b"body");
        assert_eq!(json(&kept.join("meta.json"))["raw_uri"], format!("/PUT/{status}"));
        let response = json(&kept.join("response.json"));
        assert_eq!((&response["status"], &response["body_start"]), (&status.into(), &"no, thanks".into()));
        assert!(response["reason"].as_str().unwrap().contains(&status.to_string()), "{response}");
        let headers = response["headers"].to_string().to_lowercase();
        assert!(headers.contains("x-why") && !headers.contains("set-cookie"), "{headers}");
    }
}

#[tokio::test]
async fn what_is_set_aside_takes_no_name_that_is_taken() {
    for (status, place, middle) in [(422, "rejected", "."), (412, "", ".conflict-")] {
        let root = root();
        let server = Upstream::start(move |seen| if seen.method == "PUT" { status } else { 405 });
        let outbox = open(root.path(), &server.url());
        let id = send(&outbox, "PUT", "/a", "mine").await;
        let parent = path(root.path(), place);
        // Which second it will be is not known, so the names of a minute are taken.
        let taken: Vec<_> = (0..60)
            .map(|second| {
                let at = SystemTime::now() + Duration::from_secs(second);
                let at = humantime::format_rfc3339_seconds(at).to_string().replace(['-', ':'], "");
                parent.join(format!("{id}{middle}{at}"))
            })
            .collect();
        for older in &taken {
            std::fs::create_dir_all(older).unwrap();
            std::fs::write(older.join("body.bin"), "older").unwrap();
        }
        replay(&outbox).await;
        let kept = |dir: &Path| std::fs::read(dir.join("body.bin")).unwrap();
        assert!(taken.iter().all(|older| kept(older) == b"older"));
        let items = outbox.quarantined().await.unwrap();
        let names: Vec<&str> = items.iter().map(|item| item.name.as_str()).collect();
        let is_new = |name: &&&str| !taken.iter().any(|older| older.ends_with(name));
        let [name] = names.iter().filter(is_new).collect::<Vec<_>>()[..] else { panic!("{names:?}") };
        assert_eq!((names.len(), kept(&parent.join(name)).as_slice()), (61, &b"mine"[..]));
        let (of, hex) = name.rsplit_once('-').unwrap();
        assert!(taken.iter().any(|older| older.ends_with(of)), "{name}");
        assert!(hex.len() == 4 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')), "{name}");
        let reason = outbox.get(*name).await.unwrap().reason.unwrap();
        assert!(reason.contains(&status.to_string()) || reason.contains("405"), "{reason}");
    }
}

#[tokio::test]
async fn refused_writes_are_dropped_where_that_is_configured_but_a_captive_portal_drops_nothing() {
    type Case = (u16, Refused, Refused, Outcome, bool);
    let (keep, drop) = (Refused::Keep, Refused::Drop);
    let cases: [Case; 7] = [
        (400, drop, keep, Outcome::Dropped, false),
        (422, drop, keep, Outcome::Dropped, false),
        (401, keep, drop, Outcome::Dropped, false),
        (403, keep, drop, Outcome::Dropped, false),
        (407, keep, drop, Outcome::Dropped, false),
        (511, drop, drop, Outcome::Held, true),
        (503, drop, drop, Outcome::Deferred, true),
    ];
    for (status, rejected, auth, outcome, stays) in cases {
        let (root, server) = (root(), Upstream::start(move |_| status));
        let outbox =
            builder(root.path()).upstream(server.url()).rejected(rejected).auth(auth).open().unwrap();
        let id = send(&outbox, "PUT", "/a", "1").await;
        let (report, deliveries) = replay(&outbox).await;
        assert_eq!(of(&deliveries, &id).outcome, outcome, "{status}");
        assert_eq!((report.dropped, report.remaining), (u64::from(!stays), u64::from(stays)), "{status}");
        assert_eq!(tree(root.path()).iter().any(|name| name.contains(&id)), stays, "{status}");
    }
}

#[tokio::test]
async fn retry_puts_rejected_and_conflicting_entries_back_and_they_are_sent() {
    for (status, place) in [(400, "rejected"), (412, "")] {
        let root = root();
        let server = Upstream::start(move |seen| if seen.method == "PUT" { status } else { 404 });
        let outbox = open(root.path(), &server.url());
        let id = send(&outbox, "PUT", "/a", "mine").await;
        replay(&outbox).await;
        let name = set_aside(root.path(), place, &id).file_name().unwrap().to_str().unwrap().to_owned();
        outbox.retry(name).await.unwrap();
        assert_eq!(outbox.pending(None, 9).await.unwrap()[0].id, id);
        server.script(|_| 204);
        let (report, deliveries) = replay(&outbox).await;
        assert_eq!((report.delivered, report.remaining, deliveries[0].id == id), (1, 0, true));
        assert_eq!(server.seen().last().unwrap().body, b"mine");
        assert!(!tree(root.path()).iter().any(|name| name.contains(&id)));
    }
}

#[tokio::test]
async fn an_entry_can_be_dropped_wherever_it_is() {
    let root = root();
    let server = Upstream::start(|seen| if seen.method == "PUT" { by_path(seen) } else { Reply::new(404) });
    let outbox = open(root.path(), &server.url());
    let ids = send_all(&outbox, "PUT", &[503, 400, 412]).await;
    let damaged = send(&outbox, "PUT", "/damaged", "x").await;
    std::fs::write(path(root.path(), &format!("{damaged}/meta.json")), "{").unwrap();
    replay(&outbox).await;
    let counts = outbox.count().await.unwrap();
    assert_eq!((counts.pending, counts.conflicts, counts.rejected, counts.corrupt), (1, 1, 1, 1));
    for id in ids.iter().chain([&damaged]) {
        outbox.drop_entry(id).await.unwrap();
        assert!(matches!(outbox.get(id).await, Err(Error::NoSuchEntry(_))));
    }
    assert_eq!(tree(root.path()), ["corrupt", "rejected"]);
    assert!(matches!(outbox.drop_entry(&ids[0]).await, Err(Error::NoSuchEntry(_))));
}

const BASE: u64 = 1_700_000_000;

/// A conflict on `/doc`, where somebody wrote between the base and the replay. Replies lose their ETags on demand.
async fn conflicting(root: &Path, with_etags: bool) -> (Upstream, Resources, Outbox, String) {
    let resources = Resources::named(if with_etags { Names::Strong } else { Names::Date });
    let base_etag = resources.write("/doc", "author", BASE);
    let known = resources.clone();
    let server = Upstream::start(move |_| {
        let known = known.clone();
        Act::decide(move |seen| known.act(seen, BASE + 60))
    });
    let outbox = open(root, &server.url());
    let base_mod_time = humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + Duration::from_secs(BASE));
    let write = Write {
        base_etag: with_etags.then_some(base_etag),
        base_mod_time: (!with_etags).then(|| base_mod_time.to_string()),
        ..Write::new("PUT", "/doc")
    };
    let id = outbox.enqueue_write(write, "mine".into()).await.unwrap();
    resources.write("/doc", "somebody", BASE + 30);
    let (report, _) = replay(&outbox).await;
    assert_eq!((report.conflicts, resources.content("/doc").unwrap().as_str()), (1, "somebody"));
    (server, resources, outbox, id)
}

#[tokio::test]
async fn keeping_mine_puts_the_write_on_top_of_the_servers_version_and_of_no_later_one() {
    for with_etags in [true, false] {
        let root = root();
        let (server, resources, outbox, id) = conflicting(root.path(), with_etags).await;
        let requeued = outbox.resolve(&id, Keep::Mine).await.unwrap().unwrap();
        assert!(requeued > id);
        assert_eq!(outbox.count().await.unwrap().conflicts, 0);
        // Somebody is faster once more: that version must not be overwritten either.
        resources.write("/doc", "somebody else", BASE + 45);
        let (report, _) = replay(&outbox).await;
        assert_eq!((report.conflicts, resources.content("/doc").unwrap().as_str()), (1, "somebody else"));
        outbox.resolve(&requeued, Keep::Mine).await.unwrap();
        let (report, _) = replay(&outbox).await;
        assert_eq!((report.delivered, resources.content("/doc").unwrap().as_str()), (1, "mine"));
        assert_eq!(server.seen().last().unwrap().header("if-match").is_some(), with_etags);
        assert!(tree(root.path()).is_empty());
    }
}

#[tokio::test]
async fn keeping_theirs_drops_the_write() {
    let root = root();
    let (_server, resources, outbox, id) = conflicting(root.path(), true).await;
    assert_eq!(outbox.resolve(&id, Keep::Theirs).await.unwrap(), None);
    let (report, _) = replay(&outbox).await;
    assert_eq!((report.delivered, resources.content("/doc").unwrap().as_str()), (0, "somebody"));
    assert!(tree(root.path()).is_empty());
}

#[tokio::test]
async fn a_conflict_whose_version_is_unknown_stays_and_only_conflicts_are_resolved() {
    let root = root();
    let server = Upstream::start(|seen| if seen.method == "PUT" { 412 } else { 405 });
    let outbox = open(root.path(), &server.url());
    let pending = send(&outbox, "PUT", "/a", "1").await;
    assert!(matches!(outbox.resolve(&pending, Keep::Mine).await, Err(Error::WrongPlace(_))));
    replay(&outbox).await;
    assert!(matches!(outbox.resolve(&pending, Keep::Mine).await, Err(Error::NoValidator(_))));
    assert_eq!(outbox.count().await.unwrap().conflicts, 1);
}

/// RFC 4918 says with 207 that part of a DELETE, COPY or MOVE was not done; to a PROPPATCH it is the usual reply.
#[tokio::test]
async fn what_was_done_in_part_only_is_kept_with_the_reply() {
    let root = root();
    let server = Upstream::start(|_| Reply::new(207).body("<multistatus>423 Locked</multistatus>"));
    let outbox = open(root.path(), &server.url());
    let delete = send(&outbox, "DELETE", "/dir/", "").await;
    send(&outbox, "PROPPATCH", "/a", "<x/>").await;
    let (report, deliveries) = replay(&outbox).await;
    assert_eq!((report.rejected, report.delivered, report.remaining), (1, 1, 0), "{deliveries:?}");
    let response = json(&set_aside(root.path(), "rejected", &delete).join("response.json"));
    assert!(response["body_start"].as_str().unwrap().contains("423 Locked"), "{response}");
}

#[tokio::test]
async fn an_outage_does_not_make_an_entry_wait_longer_afterwards() {
    let (root, port) = (root(), ReservedPort::new());
    let outbox = open(root.path(), &port.url());
    let id = send(&outbox, "PUT", "/a", "x").await;
    for _ in 0..9 {
        assert_eq!(replay(&outbox).await.0.upstream, Health::Down);
    }
    assert_eq!(outbox.get(&id).await.unwrap().entry.unwrap().attempts, 9);
    // Cut once, it is under no suspicion yet; deferred then, it waits for two minutes at most, by chance for less.
    let server = Upstream::start_on(port, |_| Act::Cut);
    assert_eq!(replay(&outbox).await.0.upstream, Health::Down);
    assert_eq!(outbox.get(&id).await.unwrap().entry.unwrap().not_before, None);
    server.script(|_| 503);
    let started = SystemTime::now();
    assert_eq!(replay(&outbox).await.0.deferred, 1);
    let wait = wait_of(root.path(), &id, started);
    assert!((0.0..=121.0).contains(&wait), "{wait}");
}

/// What is kept of a reply has a limit, and what is read comes first.
#[tokio::test]
async fn a_reply_with_very_many_header_fields_is_kept_as_far_as_there_is_room() {
    let root = root();
    let server = Upstream::start(|seen| {
        let status = if seen.method == "PUT" { 412 } else { 200 };
        let many = Reply::new(status).body("theirs");
        let many = (0..66).fold(many, |reply, n| reply.header(&format!("x-{n}"), &"\"".repeat(5_000)));
        many.header("etag", "\"theirs\"")
    });
    let outbox = open(root.path(), &server.url());
    send_on(&outbox, &Base::Etag("\"mine\"".into()), "PUT", "/a", "x").await;
    assert_eq!(replay(&outbox).await.0.conflicts, 1);
    let conflict = outbox.quarantined().await.unwrap().remove(0);
    assert_eq!(conflict.validator.as_deref(), Some("\"theirs\""));
    let reply = outbox.get(conflict.name).await.unwrap().current.unwrap();
    assert!(reply.headers.iter().any(|(name, value)| name == "etag" && value == "\"theirs\""));
    assert!(outbox.verify().await.unwrap().is_empty());
}
