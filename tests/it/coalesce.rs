//! `--coalesce`: a PUT that a later write replaces whole is not sent.

use crate::cli::Cli;
use crate::kit::{Base, builder, path, replay, root, send_on, soon, tree};
use crate::resources::{Resources, now};
use crate::upstream::{Act, Seen, Upstream};
use outbox_host::{Delivery, Event, Order, Outbox, Outcome, Profile};
use std::path::Path;

fn coalescing(root: &Path, server: &Upstream) -> Outbox {
    builder(root).upstream(server.url()).coalesce(true).open().unwrap()
}

fn outcomes(deliveries: &[Delivery]) -> Vec<Outcome> {
    deliveries.iter().map(|delivery| delivery.outcome).collect()
}

/// A root, and a server with a `/doc` at "v1".
fn doc() -> (tempfile::TempDir, Resources, Upstream) {
    let resources = Resources::default();
    resources.write("/doc", "before", now() - 1_000);
    let server = Upstream::start(resources.script());
    (root(), resources, server)
}

fn v1() -> Base {
    Base::Etag("\"v1\"".into())
}

#[tokio::test]
async fn only_the_last_of_several_puts_is_sent_and_it_keeps_the_first_base() {
    for last in [v1(), Base::Nothing] {
        let (root, resources, server) = doc();
        let outbox = coalescing(root.path(), &server);
        let mut ids = Vec::new();
        for (base, body) in [(&v1(), "one"), (&v1(), "two"), (&last, "three")] {
            ids.push(send_on(&outbox, base, "PUT", "/doc", body).await);
        }
        let (report, deliveries) = replay(&outbox).await;
        assert_eq!((report.superseded, report.delivered, report.remaining), (2, 1, 0), "{deliveries:?}");
        assert_eq!(outcomes(&deliveries), [Outcome::Superseded, Outcome::Superseded, Outcome::Delivered]);
        assert_eq!(deliveries[0].detail.as_deref(), Some(format!("{} replaces it", ids[1]).as_str()));
        assert_eq!(server.lines(), ["PUT /doc"]);
        assert_eq!(server.seen()[0].header("if-match"), Some("\"v1\""));
        assert_eq!(server.seen()[0].header("idempotency-key"), Some(ids[2].as_str()));
        assert_eq!(resources.content("/doc").as_deref(), Some("three"));
        assert!(tree(root.path()).is_empty());
    }
}

#[tokio::test]
async fn somebody_elses_version_still_conflicts() {
    let (root, resources, server) = doc();
    let outbox = coalescing(root.path(), &server);
    for body in ["one", "two"] {
        send_on(&outbox, &v1(), "PUT", "/doc", body).await;
    }
    resources.write("/doc", "theirs", now());
    let (report, deliveries) = replay(&outbox).await;
    assert_eq!((report.superseded, report.conflicts), (1, 1), "{deliveries:?}");
    assert_eq!(resources.content("/doc").as_deref(), Some("theirs"));
}

#[tokio::test]
async fn a_removal_replaces_the_puts_before_it_but_for_one_that_must_create() {
    let (root, resources, server) = doc();
    let outbox = coalescing(root.path(), &server);
    send_on(&outbox, &v1(), "PUT", "/doc", "one").await;
    send_on(&outbox, &v1(), "DELETE", "/doc", "").await;
    let (report, _) = replay(&outbox).await;
    assert_eq!((report.superseded, report.delivered), (1, 1));
    assert_eq!((server.lines(), resources.content("/doc")), (vec!["DELETE /doc".to_owned()], None));
    // That there was nothing is for the PUT to find out: a DELETE cannot.
    send_on(&outbox, &Base::Absent, "PUT", "/doc", "two").await;
    send_on(&outbox, &Base::Absent, "DELETE", "/doc", "").await;
    let (report, deliveries) = replay(&outbox).await;
    assert_eq!((report.superseded, report.delivered), (0, 2), "{deliveries:?}");
}

#[tokio::test]
async fn a_put_is_sent_where_anything_but_a_whole_write_of_the_same_resource_follows() {
    for (base, between, uri) in [
        (v1(), "POST", "/doc"),
        (v1(), "PATCH", "/doc"),
        (Base::Nothing, "PROPPATCH", "/doc"),
        (Base::Nothing, "MOVE", "/doc"),
        (Base::Nothing, "COPY", "/doc"),
        (Base::Nothing, "PUT", "/doc/child"),
        (Base::Nothing, "DELETE", "/"),
        (Base::Nothing, "PUT", "/doc?view=2"),
        (Base::Nothing, "PUT", "/doc/"),
        // Based on another version: its author had seen something else.
        (Base::Etag("\"v9\"".into()), "PUT", "/doc"),
    ] {
        let (root, _, server) = doc();
        let outbox = coalescing(root.path(), &server);
        send_on(&outbox, &v1(), "PUT", "/doc", "one").await;
        let mut write = crate::kit::write_on(&base, between, uri);
        write.headers.push(("Destination".into(), "/elsewhere".into()));
        outbox.enqueue_write(write, "x".into()).await.unwrap();
        send_on(&outbox, &Base::Nothing, "PUT", "/doc", "two").await;
        let (report, deliveries) = replay(&outbox).await;
        let first = &deliveries[0];
        assert_eq!((first.outcome, first.raw_uri.as_str()), (Outcome::Delivered, "/doc"), "{between} {uri}");
        // The second may be replaced by the third.
        assert!(report.superseded <= 1, "{between} {uri}: {deliveries:?}");
        assert_eq!(server.seen()[0].body, b"one", "{between} {uri}");
    }
}

#[tokio::test]
async fn a_put_that_may_have_been_sent_is_not_left_out() {
    for restart in [false, true] {
        let (root, resources, server) = doc();
        let mut outbox = coalescing(root.path(), &server);
        server.script(|_| Act::Cut);
        send_on(&outbox, &v1(), "PUT", "/doc", "one").await;
        assert_eq!(replay(&outbox).await.0.deferred, 1);
        send_on(&outbox, &v1(), "PUT", "/doc", "two").await;
        server.script(resources.script());
        if restart {
            outbox = coalescing(root.path(), &server);
        }
        let (report, _) = replay(&outbox).await;
        assert_eq!((report.superseded, report.delivered), (0, 2));
        assert_eq!(server.lines().len(), 3);
    }
}

#[tokio::test]
async fn a_kill_while_a_put_is_under_way_counts_as_sent_also_after_a_retry() {
    for retried in [false, true] {
        let (_, resources, server) = doc();
        let cli = Cli::new();
        let base = ["--base-etag", "\"v1\""];
        let id = cli.send(&["PUT", "/doc", base[0], base[1]]);
        server.script(|_| Act::Stall);
        let daemon = cli.daemon(&server.url(), &["--coalesce"]);
        server.wait_for(1).await;
        daemon.signal(rustix::process::Signal::KILL);
        daemon.end();
        if retried {
            cli.ok(["retry", &id]);
        }
        cli.send(&["PUT", "/doc", base[0], base[1]]);
        server.script(resources.script());
        let (code, _, report) = cli.replay(&server.url(), &["--coalesce"]);
        let counts = [&report["superseded"], &report["delivered"]];
        assert_eq!((code, counts), (0, [&0.into(), &2.into()]), "{retried}: {report}");
    }
}

#[tokio::test]
async fn nothing_is_left_out_unless_somebody_asks_for_it() {
    let (root, _, server) = doc();
    let outbox = crate::kit::open(root.path(), &server.url());
    for body in ["one", "two"] {
        send_on(&outbox, &v1(), "PUT", "/doc", body).await;
    }
    let (report, _) = replay(&outbox).await;
    assert_eq!((report.superseded, report.delivered, server.lines().len()), (0, 2, 2));
}

#[tokio::test]
async fn in_strict_order_only_the_very_next_write_replaces_one() {
    let (root, _, server) = doc();
    let strict = || builder(root.path()).upstream(server.url()).order(Order::Strict);
    let outbox = strict().coalesce(true).open().unwrap();
    for (uri, body) in [("/data", "1"), ("/flag", "1"), ("/data", "2"), ("/data", "3")] {
        send_on(&outbox, &Base::Nothing, "PUT", uri, body).await;
    }
    let (report, deliveries) = replay(&outbox).await;
    assert_eq!((report.superseded, report.delivered, report.remaining), (1, 3, 0), "{deliveries:?}");
    // Whoever sees the flag finds the data.
    assert_eq!(server.lines(), ["PUT /data", "PUT /flag", "PUT /data"]);
}

#[tokio::test]
async fn what_has_just_been_answered_is_not_taken_for_one_that_was_put_back() {
    let (root, server) = (root(), Upstream::start(|_| 204));
    let outbox = builder(root.path()).upstream(server.url()).coalesce(true).concurrency(1).open().unwrap();
    // For longer than the tenth of a second after which a pass looks for such.
    for n in 0..400 {
        send_on(&outbox, &Base::Nothing, "PATCH", "/doc", "x").await;
        send_on(&outbox, &Base::Nothing, "PUT", &format!("/{n}"), "x").await;
    }
    let (report, _) = replay(&outbox).await;
    assert_eq!((report.delivered, report.remaining), (800, 0));
}

#[tokio::test]
async fn the_originals_profile_leaves_nothing_out() {
    let (root, _, server) = doc();
    let original = builder(root.path()).upstream(server.url()).profile(Profile::Original);
    let outbox = original.coalesce(true).open().unwrap();
    for body in ["one", "two"] {
        send_on(&outbox, &Base::Nothing, "PUT", "/doc", body).await;
    }
    let (report, _) = replay(&outbox).await;
    assert_eq!((report.superseded, report.delivered, server.lines().len()), (0, 2, 2));
}

#[tokio::test]
async fn a_damaged_write_replaces_no_sound_one() {
    let (root, resources, server) = doc();
    let outbox = coalescing(root.path(), &server);
    send_on(&outbox, &v1(), "PUT", "/doc", "sound").await;
    let damaged = send_on(&outbox, &v1(), "PUT", "/doc", "other").await;
    std::fs::write(path(root.path(), &damaged).join("body.bin"), "otter").unwrap();
    let (report, deliveries) = replay(&outbox).await;
    assert_eq!((report.delivered, report.corrupt), (1, 1), "{deliveries:?}");
    assert_eq!(resources.content("/doc").as_deref(), Some("sound"));
}

/// Hundreds of drafts of one document: each is told as it is left out, not all at the end.
#[tokio::test]
async fn a_stop_is_heard_while_writes_are_left_out() {
    let (root, _, server) = doc();
    let outbox = coalescing(root.path(), &server);
    for n in 0..400 {
        send_on(&outbox, &Base::Nothing, "PUT", "/doc", if n % 2 == 0 { "even" } else { "odd" }).await;
    }
    let mut events = outbox.subscribe();
    let stop = async {
        while !matches!(events.recv().await, Ok(Event::Delivery(_))) {}
        outbox.shutdown().await;
    };
    let (report, ()) = soon("the end of the pass", async { tokio::join!(outbox.replay(), stop) }).await;
    let report = report.unwrap();
    assert!((1..399).contains(&report.superseded), "{report:?}");
    assert!(server.lines().is_empty());
}

/// Its author has seen a version, and not what somebody put in the place of the one that was written without looking.
#[tokio::test]
async fn a_put_without_a_base_is_not_left_out_for_one_with_a_base() {
    for died_half_way in [false, true] {
        let (root, resources, server) = doc();
        let outbox = coalescing(root.path(), &server);
        send_on(&outbox, &Base::Nothing, "PUT", "/doc", "one").await;
        let second = send_on(&outbox, &v1(), "PUT", "/doc", "two").await;
        if died_half_way {
            // As an earlier build left it that was killed while it left the first out.
            let state = path(root.path(), &second).join("state.json");
            std::fs::write(state, r#"{"attempts":0,"validator":"unknown"}"#).unwrap();
        }
        let outbox = match died_half_way {
            true => builder(root.path()).upstream(server.url()).open().unwrap(),
            false => outbox,
        };
        // Somebody who has seen the first puts his own there before the second.
        let comes = move |seen: &Seen| seen.header("idempotency-key") == Some(&second);
        server.script(resources.script_with_a_rival("/doc", comes));
        let (report, deliveries) = replay(&outbox).await;
        assert_eq!((report.delivered, report.conflicts, report.remaining), (1, 1, 0), "{deliveries:?}");
        assert_eq!(resources.content("/doc").as_deref(), Some("somebody's"));
    }
}

#[tokio::test]
async fn what_inherits_a_base_is_not_left_out_for_one_with_another() {
    let (root, resources, server) = doc();
    let outbox = coalescing(root.path(), &server);
    let stale = Base::Etag("\"v0\"".into());
    for (base, body) in [(&stale, "one"), (&Base::Nothing, "two"), (&v1(), "three")] {
        send_on(&outbox, base, "PUT", "/doc", body).await;
    }
    let (report, deliveries) = replay(&outbox).await;
    assert_eq!((report.superseded, report.conflicts, report.remaining), (1, 2, 0), "{deliveries:?}");
    assert_eq!(resources.content("/doc").as_deref(), Some("before"));
}
