//! Who inherits the version of an edit that leaves the queue undelivered, is dropped, or is followed by one that comes late.

use crate::chain::{doc, edits, outcomes, preconditions};
use crate::cli::Cli;
use crate::kit::{Base, edit_meta, json, open, path, replay, root, send_on};
use crate::resources::{Names, now};
use crate::strace::stopped_after;
use crate::upstream::{Act, Gate, Reply};
use outbox_host::{Durability, Outbox, Outcome, Refused};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Delivers the first of three edits and ends the second in some other way; the third must follow the first.
async fn without_the_second(
    prepare: impl AsyncFnOnce(&Path, &Outbox, &str),
    configure: impl FnOnce(outbox_host::Builder) -> outbox_host::Builder,
) -> Vec<Outcome> {
    let (root, (resources, server, base)) = (root(), doc(Names::Strong));
    let outbox = configure(crate::kit::builder(root.path()).upstream(server.url())).open().unwrap();
    // Once this one is answered, all three are looked at before the first is delivered.
    send_on(&outbox, &Base::Nothing, "PUT", "/elsewhere", "x").await;
    let [_, second, _] = edits(&outbox, &base, ["one", "two", "three"]).await;
    let refused = second.clone();
    let script = resources.script();
    server.script(move |seen| match seen.header("idempotency-key") == Some(&refused) {
        true => 422.into(),
        false => script(seen),
    });
    prepare(root.path(), &outbox, &second).await;
    let (report, deliveries) = replay(&outbox).await;
    assert_eq!((report.delivered, report.conflicts, report.remaining), (3, 0, 0), "{deliveries:?}");
    assert_eq!(resources.content("/doc").as_deref(), Some("three"));
    assert_eq!(preconditions(&server).last().unwrap().as_deref(), Some("\"v3\""));
    outcomes(&deliveries.into_iter().filter(|d| d.raw_uri != "/elsewhere").collect::<Vec<_>>())
}

#[tokio::test]
async fn an_edit_that_leaves_the_queue_undelivered_leaves_its_version_to_the_next_one() {
    use Outcome::{Corrupt, Delivered, Dropped, Rejected};
    let nothing = async |_: &Path, _: &Outbox, _: &str| {};
    assert_eq!(without_the_second(nothing, |b| b).await, [Delivered, Rejected, Delivered]);
    let drop = |b: outbox_host::Builder| b.rejected(Refused::Drop);
    assert_eq!(without_the_second(nothing, drop).await, [Delivered, Dropped, Delivered]);
    let damage = async |root: &Path, _: &Outbox, id: &str| {
        std::fs::write(path(root, id).join("body.bin"), "TWO").unwrap();
    };
    assert_eq!(without_the_second(damage, |b| b).await, [Delivered, Corrupt, Delivered]);
    let no_meta = async |root: &Path, _: &Outbox, id: &str| {
        std::fs::write(path(root, id).join("meta.json"), "{").unwrap();
    };
    let found = without_the_second(no_meta, |b| b).await;
    assert!(found.contains(&Corrupt), "{found:?}");
}

#[tokio::test]
async fn an_edit_that_the_operator_drops_leaves_its_version_to_the_next_one() {
    for restart in [false, true] {
        let (root, (resources, server, base)) = (root(), doc(Names::Strong));
        let mut outbox = open(root.path(), &server.url());
        send_on(&outbox, &Base::Nothing, "PUT", "/elsewhere", "x").await;
        let [_, second, third] = edits(&outbox, &base, ["one", "two", "three"]).await;
        let (script, put_off) = (resources.script(), second.clone());
        server.script(move |seen| match seen.header("idempotency-key") == Some(&put_off) {
            true => 503.into(),
            false => script(seen),
        });
        assert_eq!(replay(&outbox).await.0.delivered, 2);
        if restart {
            outbox = open(root.path(), &server.url());
        }
        outbox.drop_entry(&second).await.unwrap();
        let (report, deliveries) = replay(&outbox).await;
        assert_eq!((report.delivered, report.conflicts), (1, 0), "{deliveries:?}");
        assert_eq!((&deliveries[0].id, resources.content("/doc").as_deref()), (&third, Some("three")));
    }
}

#[tokio::test]
async fn an_edit_that_is_dropped_far_back_in_the_queue_leaves_its_version_to_the_next_one() {
    let (root, (resources, server, base)) = (root(), doc(Names::Strong));
    let open = || {
        let builder = crate::kit::builder(root.path()).upstream(server.url());
        builder.durability(Durability::None).open().unwrap()
    };
    let outbox = open();
    // More than are read ahead.
    for n in 0..4_200 {
        send_on(&outbox, &Base::Nothing, "DELETE", &format!("/stuck/{n}"), "").await;
    }
    let [_, second, third] = edits(&outbox, &base, ["one", "two", "three"]).await;
    let (script, put_off) = (resources.script(), second.clone());
    server.script(move |seen| {
        let stuck = seen.target.starts_with("/stuck") || seen.header("idempotency-key") == Some(&put_off);
        if stuck { Reply::new(503).header("retry-after", "3600").into() } else { script(seen) }
    });
    assert_eq!(replay(&outbox).await.0.delivered, 1);
    drop(outbox);
    let outbox = open();
    outbox.drop_entry(&second).await.unwrap();
    let (report, deliveries) = replay(&outbox).await;
    assert_eq!((report.delivered, report.conflicts), (1, 0), "{deliveries:?}");
    assert_eq!((&deliveries[0].id, resources.content("/doc").as_deref()), (&third, Some("three")));
}

#[tokio::test]
async fn an_edit_that_is_dropped_after_it_was_read_ahead_inherits_nothing() {
    let (root, (resources, server, base)) = (root(), doc(Names::Strong));
    let outbox = open(root.path(), &server.url());
    // Once this one is answered, all three are read.
    send_on(&outbox, &Base::Nothing, "PUT", "/elsewhere", "x").await;
    let [first, second, third] = edits(&outbox, &base, ["one", "two", "three"]).await;
    let (gate, known) = (Gate::new(), resources.clone());
    let held = gate.clone();
    server.script(move |_| {
        let (known, held, first) = (known.clone(), held.clone(), first.clone());
        Act::decide(move |seen| match seen.header("idempotency-key") == Some(&first) {
            true => Act::ReplyAfter(held.clone(), known.act(seen, now())),
            false => known.act(seen, now()).into(),
        })
    });
    let pass = {
        let outbox = outbox.clone();
        tokio::spawn(async move { replay(&outbox).await })
    };
    server.wait_for(2).await;
    outbox.drop_entry(&second).await.unwrap();
    gate.open();
    let (report, deliveries) = pass.await.unwrap();
    assert_eq!((report.delivered, report.deferred, report.remaining), (3, 0, 0), "{deliveries:?}");
    assert_eq!(
        (&deliveries.last().unwrap().id, resources.content("/doc").as_deref()),
        (&third, Some("three"))
    );
}

#[tokio::test]
async fn an_edit_queued_while_the_one_before_it_is_under_way_inherits_too() {
    // Also where the directory is so slow to list that it is not listed again at each reply.
    for (pause, strangers) in [(Duration::ZERO, 0), (Duration::from_millis(200), 0), (Duration::ZERO, 20_000)]
    {
        let (root, (resources, server, base)) = (root(), doc(Names::Strong));
        std::fs::create_dir(path(root.path(), "")).unwrap();
        for n in 0..strangers {
            std::fs::write(path(root.path(), &format!("stranger-{n}")), "").unwrap();
        }
        let (gate, held) = (Gate::new(), Arc::new(Mutex::new(true)));
        let (waits, first_only) = (gate.clone(), held.clone());
        let known = resources.clone();
        server.script(move |_| {
            let (known, waits, first_only) = (known.clone(), waits.clone(), first_only.clone());
            Act::decide(move |seen| match std::mem::take(&mut *first_only.lock().unwrap()) {
                true => Act::ReplyAfter(waits.clone(), known.act(seen, now())),
                false => known.act(seen, now()).into(),
            })
        });
        let outbox = open(root.path(), &server.url());
        edits(&outbox, &base, ["one"]).await;
        let queueing = open(root.path(), &server.url());
        tokio::join!(
            async {
                let (mut delivered, mut conflicts) = (0, 0);
                while delivered + conflicts < 3 {
                    let (report, _) = replay(&outbox).await;
                    (delivered, conflicts) = (delivered + report.delivered, conflicts + report.conflicts);
                }
                assert_eq!((delivered, conflicts), (3, 0));
            },
            async {
                server.wait_for(1).await;
                edits(&queueing, &base, ["two", "three"]).await;
                tokio::time::sleep(pause).await;
                gate.open();
            }
        );
        assert_eq!(resources.content("/doc").as_deref(), Some("three"));
    }
}

#[tokio::test]
async fn a_successor_that_is_put_off_or_stuck_inherits_all_the_same() {
    // The first goes back to its old place, before a second that waits for its time.
    let (root, (resources, server, base)) = (root(), doc(Names::Strong));
    let outbox = open(root.path(), &server.url());
    // Once this one is answered, the next entries are looked at while the first edit is under way.
    send_on(&outbox, &Base::Nothing, "PUT", "/elsewhere", "x").await;
    let [first, second] = edits(&outbox, &base, ["one", "two"]).await;
    let refused = first.clone();
    let script = resources.script();
    server.script(move |seen| match seen.header("idempotency-key") == Some(&refused) {
        true => Act::from(422),
        false if seen.target == "/doc" => Reply::new(503).header("Retry-After", "3600").into(),
        false => script(seen),
    });
    let (report, _) = replay(&outbox).await;
    assert_eq!((report.delivered, report.rejected, report.deferred), (1, 1, 1));
    outbox.retry(&first).await.unwrap();
    let earlier = send_on(&outbox, &Base::Nothing, "PUT", "/elsewhere", "x").await;
    // Made the oldest of all.
    let oldest = format!("0{}", &earlier[1..]);
    edit_meta(root.path(), &earlier, |meta| meta["id"] = oldest.as_str().into());
    std::fs::rename(path(root.path(), &earlier), path(root.path(), &oldest)).unwrap();
    server.script(resources.script());
    let (report, _) = replay(&outbox).await;
    assert_eq!((report.delivered, report.remaining), (2, 1));
    let state = json(&path(root.path(), &format!("{second}/state.json")));
    assert_eq!(state["validator"]["etag"], resources.get("/doc").unwrap().etag);
    assert!(state["not_before"].is_string(), "the server's wish stays: {state}");
    let outbox = open(root.path(), &server.url());
    outbox.retry(&second).await.unwrap();
    assert_eq!(replay(&outbox).await.0.delivered, 1);
}

/// Two edits, the first of which has inherited a version.
async fn with_an_heir(cli: &Cli) -> [String; 2] {
    let (resources, server, base) = doc(Names::Strong);
    let outbox = open(cli.root.path(), &server.url());
    send_on(&outbox, &Base::Nothing, "PUT", "/elsewhere", "x").await;
    let [_, second, third] = edits(&outbox, &base, ["one", "two", "three"]).await;
    let (script, put_off) = (resources.script(), second.clone());
    server.script(move |seen| match seen.header("idempotency-key") == Some(&put_off) {
        true => 503.into(),
        false => script(seen),
    });
    assert_eq!(replay(&outbox).await.0.delivered, 2);
    [second, third]
}

#[tokio::test]
async fn a_drop_that_comes_too_late_takes_no_newer_version_from_the_next_edit() {
    let cli = Cli::new();
    let [second, third] = with_an_heir(&cli).await;
    let (root, state) = (cli.root.path(), path(cli.root.path(), &format!("{third}/state.json")));
    let newer = r#"{"validator":{"etag":"\"newer\""}}"#;
    // While the version of the one to be dropped is put on disk for the next one, a pass delivers it.
    let delivered = || {
        std::fs::write(&state, newer).unwrap();
        std::fs::remove_dir_all(path(root, &second)).unwrap();
    };
    let Some(ran) = stopped_after(&cli, "fsync,fdatasync", None, &["drop", &second], delivered) else {
        return;
    };
    assert!(ran.code == 1 && ran.stderr.contains("no entry is called"), "{ran:?}");
    assert_eq!(std::fs::read_to_string(&state).unwrap(), newer);
}

#[tokio::test]
async fn a_retry_takes_back_nothing_that_was_noted_meanwhile() {
    let cli = Cli::new();
    let [second, _] = with_an_heir(&cli).await;
    let file = path(cli.root.path(), &format!("{second}/state.json"));
    let mut state = json(&file);
    assert!(state["not_before"].is_string());
    state["in_flight"] = true.into();
    let under_way = || std::fs::write(&file, state.to_string()).unwrap();
    let Some(ran) = stopped_after(&cli, "fsync,fdatasync", None, &["retry", &second], under_way) else {
        return;
    };
    assert_eq!(ran.code, 0, "{ran:?}");
    let state = json(&file);
    assert_eq!((&state["in_flight"], &state["not_before"]), (&true.into(), &serde_json::Value::Null));
}
