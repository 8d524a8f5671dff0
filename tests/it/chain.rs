//! Several queued edits of one resource: each is put on top of what the one before it made, and on nothing else.

use crate::cli::Cli;
use crate::kit::{Base, json, open, path, replay, root, send_on, set_aside, tree};
use crate::resources::{Names, Resources, now};
use crate::upstream::{Act, Reply, Seen, Upstream};
use outbox_host::{Delivery, Outbox, Outcome, Write};
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

/// A server with a `/doc` that has been there for a while; what names its version for the author of an edit.
pub fn doc(names: Names) -> (Resources, Upstream, Base) {
    let resources = Resources::named(names);
    let written = now() - 1_000;
    let etag = resources.write("/doc", "before", written);
    let base = match names {
        Names::Strong | Names::WhenRead => Base::Etag(etag),
        Names::WeakAndDate | Names::Date | Names::Nothing => Base::Date(written),
    };
    let server = Upstream::start(resources.script());
    (resources, server, base)
}

/// Queues edits of `/doc` on one version.
pub async fn edits<const N: usize>(outbox: &Outbox, base: &Base, bodies: [&'static str; N]) -> [String; N] {
    let mut ids = [const { String::new() }; N];
    for (id, body) in ids.iter_mut().zip(bodies) {
        *id = send_on(outbox, base, "PUT", "/doc", body).await;
    }
    ids
}

pub fn outcomes(deliveries: &[Delivery]) -> Vec<Outcome> {
    deliveries.iter().map(|delivery| delivery.outcome).collect()
}

/// The preconditions of all writes so far: the value of whichever of the three there was.
pub fn preconditions(server: &Upstream) -> Vec<Option<String>> {
    let names = ["if-match", "if-none-match", "if-unmodified-since"];
    let writes = server.seen().into_iter().filter(|seen| !matches!(seen.method.as_str(), "GET" | "HEAD"));
    writes.map(|seen| names.iter().find_map(|name| seen.header(name).map(Into::into))).collect()
}

#[tokio::test]
async fn several_edits_on_one_version_are_delivered_in_one_pass_without_a_conflict() {
    for base in [None, Some(Base::Nothing), Some(Base::Absent)] {
        let (root, (resources, server, seen)) = (root(), doc(Names::Strong));
        let base = base.unwrap_or(seen);
        if let Base::Absent = base {
            server.script(Resources::default().script());
        }
        let outbox = open(root.path(), &server.url());
        edits(&outbox, &base, ["one", "two", "three", "four"]).await;
        let (report, deliveries) = replay(&outbox).await;
        assert_eq!((report.delivered, report.unprotected, report.remaining), (4, 0, 0), "{deliveries:?}");
        assert_eq!(server.lines(), ["PUT /doc"; 4], "a reply that names the version needs no question");
        let sent = preconditions(&server);
        match base {
            Base::Nothing => assert_eq!(sent, [const { None }; 4]),
            Base::Absent => assert_eq!(sent, ["*", "\"v1\"", "\"v2\"", "\"v3\""].map(|v| Some(v.into()))),
            _ => {
                assert_eq!(sent, ["\"v1\"", "\"v2\"", "\"v3\"", "\"v4\""].map(|v| Some(v.into())));
                assert_eq!(resources.content("/doc").as_deref(), Some("four"));
            }
        }
        assert!(tree(root.path()).is_empty());
    }
}

#[tokio::test]
async fn several_edits_on_one_version_are_delivered_over_passes_and_restarts_without_a_conflict() {
    for restart in [false, true] {
        let (root, (resources, server, base)) = (root(), doc(Names::Strong));
        let mut outbox = open(root.path(), &server.url());
        let ids = edits(&outbox, &base, ["one", "two", "three"]).await;
        for (n, id) in ids.iter().enumerate() {
            // Every second request is put off, so each pass delivers one edit.
            let (script, turn) = (resources.script(), Mutex::new(0));
            server.script(move |seen| {
                let mut turn = turn.lock().unwrap();
                *turn += 1;
                if *turn == 2 { 503.into() } else { script(seen) }
            });
            let (report, deliveries) = replay(&outbox).await;
            assert_eq!((report.delivered, report.conflicts), (1, 0), "{deliveries:?}");
            assert_eq!((deliveries[0].id == *id, deliveries[0].outcome), (true, Outcome::Delivered));
            if restart {
                outbox = open(root.path(), &server.url());
            }
            if let Some(next) = ids.get(n + 1) {
                let state = json(&path(root.path(), &format!("{next}/state.json")));
                assert_eq!(state["validator"]["etag"], format!("\"v{}\"", n + 2));
                let shown = outbox.get(next).await.unwrap().entry.unwrap();
                assert_eq!(shown.rebased, Some(format!("\"v{}\"", n + 2)));
                outbox.retry(next).await.unwrap();
            }
        }
        assert_eq!(resources.content("/doc").as_deref(), Some("three"));
        assert!(tree(root.path()).is_empty());
    }
}

#[tokio::test]
async fn a_copy_without_a_base_names_no_version_that_the_next_edit_may_replace() {
    let (root, (resources, server, base)) = (root(), doc(Names::Strong));
    let outbox = open(root.path(), &server.url());
    let headers = vec![("Destination".to_owned(), "/copy".to_owned())];
    let copy = Write { headers, ..Write::new("COPY", "/doc") };
    outbox.enqueue_write(copy, "".into()).await.unwrap();
    edits(&outbox, &base, ["mine"]).await;
    resources.write("/doc", "somebody's", now());
    let (report, _) = replay(&outbox).await;
    assert_eq!((report.delivered, report.conflicts), (1, 1));
    assert_eq!(resources.content("/doc").as_deref(), Some("somebody's"));
}

#[tokio::test]
async fn an_edit_without_a_base_is_continued_by_the_next_one_of_each_base() {
    for inherited in [true, false] {
        let (root, (resources, server, base)) = (root(), doc(Names::Strong));
        let outbox = open(root.path(), &server.url());
        if inherited {
            // What it makes is handed on to the last, and then replaced by the one that has no base.
            send_on(&outbox, &base, "PUT", "/doc", "one").await;
        }
        send_on(&outbox, &Base::Nothing, "PUT", "/doc", "two").await;
        send_on(&outbox, &Base::Etag("\"other\"".into()), "PUT", "/doc", "three").await;
        send_on(&outbox, &base, "PUT", "/doc", "four").await;
        let (report, deliveries) = replay(&outbox).await;
        assert_eq!((report.conflicts, report.remaining), (0, 0), "{deliveries:?}");
        let all = [Some("\"v1\""), None, Some("\"v3\""), Some("\"v4\"")];
        let expected = if inherited { all.to_vec() } else { vec![None, Some("\"v2\""), Some("\"v3\"")] };
        assert_eq!(preconditions(&server).iter().map(Option::as_deref).collect::<Vec<_>>(), expected);
        assert_eq!(resources.content("/doc").as_deref(), Some("four"));
    }
}

#[tokio::test]
async fn a_version_that_somebody_else_puts_between_two_edits_is_a_conflict_for_the_later_ones() {
    for names in [Names::Strong, Names::WhenRead] {
        let (root, (resources, server, base)) = (root(), doc(names));
        let outbox = open(root.path(), &server.url());
        let [first, second, third] = edits(&outbox, &base, ["one", "two", "three"]).await;
        let is_second = |seen: &Seen| seen.method == "PUT" && seen.header("if-match") == Some("\"v2\"");
        server.script(resources.script_with_a_rival("/doc", is_second));
        let (report, deliveries) = replay(&outbox).await;
        assert_eq!((report.delivered, report.conflicts, report.remaining), (1, 2, 0), "{deliveries:?}");
        assert_eq!(deliveries.iter().map(|d| &d.id).collect::<Vec<_>>(), [&first, &second, &third]);
        assert_eq!(resources.content("/doc").as_deref(), Some("somebody's"));
        // The third was put on top of the second's base, not on the rival's version.
        assert_eq!(preconditions(&server), ["\"v1\"", "\"v2\"", "\"v2\""].map(|v| Some(v.into())));
        let response = json(&set_aside(root.path(), "", &second).join("response.json"));
        assert_eq!(response["etag"], "\"v3\"");
    }
}

#[tokio::test]
async fn an_edit_whose_author_had_seen_another_version_keeps_its_own_base() {
    let (root, (resources, server, base)) = (root(), doc(Names::Strong));
    let outbox = open(root.path(), &server.url());
    // The second's author has seen what the server will call v3: somebody else's.
    edits(&outbox, &base, ["one"]).await;
    let own = send_on(&outbox, &Base::Etag("\"v3\"".into()), "PUT", "/doc", "two").await;
    let (report, _) = replay(&outbox).await;
    assert_eq!((report.delivered, report.conflicts), (1, 1));
    assert_eq!(preconditions(&server), ["\"v1\"", "\"v3\""].map(|v| Some(v.into())));
    assert_eq!(resources.content("/doc").as_deref(), Some("one"));
    assert!(set_aside(root.path(), "", &own).exists());
}

#[tokio::test]
async fn with_a_date_only_edits_keep_a_second_apart_and_a_later_foreign_version_conflicts() {
    for (names, rival) in [(Names::Date, false), (Names::WeakAndDate, false), (Names::Date, true)] {
        let (root, (resources, server, base)) = (root(), doc(names));
        let outbox = open(root.path(), &server.url());
        edits(&outbox, &base, ["one", "two"]).await;
        let (report, deliveries) = replay(&outbox).await;
        assert_eq!((report.delivered, report.conflicts, report.remaining), (1, 0, 1), "{deliveries:?}");
        assert_eq!(server.lines(), ["PUT /doc"], "not within the same second");
        assert!((1_000..=2_000).contains(&report.next_delay_ms), "{}", report.next_delay_ms);
        let first = resources.get("/doc").unwrap();
        tokio::time::sleep(Duration::from_millis(report.next_delay_ms)).await;
        if rival {
            resources.write("/doc", "somebody's", now());
        }
        let (report, deliveries) = replay(&outbox).await;
        let expected = if rival { Outcome::Conflict } else { Outcome::Delivered };
        assert_eq!((outcomes(&deliveries), report.remaining), (vec![expected], 0), "{deliveries:?}");
        assert_eq!(preconditions(&server)[1], Some(crate::resources::date(first.modified)));
        let second = resources.get("/doc").unwrap();
        assert!(second.modified > first.modified);
        assert_eq!(second.content, if rival { "somebody's" } else { "two" });
    }
}

#[tokio::test]
async fn a_put_whose_reply_names_no_version_is_read_back_and_compared() {
    let (root, (resources, server, base)) = (root(), doc(Names::WhenRead));
    let outbox = open(root.path(), &server.url());
    edits(&outbox, &base, ["one", "two"]).await;
    let (report, deliveries) = replay(&outbox).await;
    assert_eq!((report.delivered, report.unprotected), (2, 0), "{deliveries:?}");
    // The last one has no successor, so nobody needs to know.
    assert_eq!(server.lines(), ["PUT /doc", "GET /doc", "PUT /doc"]);
    assert_eq!(preconditions(&server), ["\"v1\"", "\"v2\""].map(|v| Some(v.into())));
    assert_eq!(deliveries[0].status, Some(204), "the write's own status");
    assert_eq!(resources.content("/doc").as_deref(), Some("two"));
}

#[tokio::test]
async fn what_is_read_back_and_is_not_ours_is_never_taken_for_ours() {
    let (root, (resources, server, base)) = (root(), doc(Names::WhenRead));
    let outbox = open(root.path(), &server.url());
    let [first, second] = edits(&outbox, &base, ["one", "two"]).await;
    server.script(resources.script_with_a_rival("/doc", |seen| seen.method == "GET"));
    let (report, deliveries) = replay(&outbox).await;
    assert_eq!((report.delivered, report.conflicts, report.remaining), (1, 1, 0), "{deliveries:?}");
    assert_eq!((&deliveries[0].id, &deliveries[1].id), (&first, &second));
    let detail = deliveries[0].detail.as_deref().unwrap();
    assert!(detail.contains("not what was sent"), "{detail}");
    assert_eq!(resources.content("/doc").as_deref(), Some("somebody's"));
}

#[tokio::test]
async fn after_other_methods_the_new_version_is_asked_for_with_head() {
    for (method, content) in [("POST", "beforexy"), ("PROPPATCH", "y"), ("PATCH", "y")] {
        let names = if method == "PATCH" { Names::WhenRead } else { Names::Strong };
        let (root, (resources, server, base)) = (root(), doc(names));
        let outbox = open(root.path(), &server.url());
        send_on(&outbox, &base, method, "/doc", "x").await;
        let then = if method == "POST" { "PATCH" } else { "PUT" };
        send_on(&outbox, &base, then, "/doc", "y").await;
        let (report, deliveries) = replay(&outbox).await;
        assert_eq!((report.delivered, report.unprotected), (2, 0), "{method}: {deliveries:?}");
        let lines = [format!("{method} /doc"), "HEAD /doc".into(), format!("{then} /doc")];
        assert_eq!(server.lines(), lines);
        assert_eq!(preconditions(&server), ["\"v1\"", "\"v2\""].map(|v| Some(v.into())), "{method}");
        assert_eq!(resources.content("/doc").as_deref(), Some(content), "{method}");
    }
}

#[tokio::test]
async fn a_write_that_nobody_continues_is_not_asked_about() {
    let (root, (_, server, base)) = (root(), doc(Names::WhenRead));
    let outbox = open(root.path(), &server.url());
    edits(&outbox, &base, ["one"]).await;
    // No precondition, and another resource: neither wants to know.
    send_on(&outbox, &Base::Nothing, "PUT", "/doc", "two").await;
    send_on(&outbox, &base, "PUT", "/doc?view=2", "other").await;
    let (report, _) = replay(&outbox).await;
    assert_eq!((report.delivered, report.unprotected), (2, 0));
    assert_eq!(server.lines()[..2], ["PUT /doc", "PUT /doc"]);
}

#[tokio::test]
async fn where_the_server_names_no_version_at_all_the_next_edit_goes_without_and_that_is_said() {
    let (root, (resources, server, base)) = (root(), doc(Names::Nothing));
    let outbox = open(root.path(), &server.url());
    edits(&outbox, &base, ["one", "two"]).await;
    let (report, deliveries) = replay(&outbox).await;
    assert_eq!((report.delivered, report.conflicts, report.unprotected), (2, 0, 1), "{deliveries:?}");
    assert!(deliveries[0].detail.as_deref().unwrap().starts_with("unprotected: "), "{deliveries:?}");
    assert_eq!(deliveries[1].detail, None);
    assert_eq!(preconditions(&server)[1], None);
    assert_eq!(resources.content("/doc").as_deref(), Some("two"));
}

#[tokio::test]
async fn after_a_removal_the_next_edit_is_put_where_nothing_is() {
    for (method, destination) in [("DELETE", None), ("MOVE", Some("/elsewhere"))] {
        for then in [None, Some(Base::Absent)] {
            let (root, (resources, server, base)) = (root(), doc(Names::Strong));
            let outbox = open(root.path(), &server.url());
            let headers = destination.map(|to| ("Destination".to_owned(), to.to_owned()));
            let removal = crate::kit::write_on(&base, method, "/doc");
            let removal = outbox_host::Write { headers: headers.into_iter().collect(), ..removal };
            outbox.enqueue_write(removal, "".into()).await.unwrap();
            send_on(&outbox, then.as_ref().unwrap_or(&base), "PUT", "/doc", "anew").await;
            let (report, deliveries) = replay(&outbox).await;
            assert_eq!((report.delivered, report.conflicts), (2, 0), "{method}: {deliveries:?}");
            assert_eq!(preconditions(&server), ["\"v1\"", "*"].map(|v| Some(v.into())), "{method}");
            assert_eq!(resources.content("/doc").as_deref(), Some("anew"));
            assert_eq!(resources.content("/elsewhere").is_some(), destination.is_some());
        }
    }
}

#[tokio::test]
async fn a_kill_between_the_delivery_and_the_question_about_it_makes_no_conflict() {
    let (resources, server, base) = doc(Names::WhenRead);
    let Base::Etag(tag) = base else { unreachable!() };
    let cli = Cli::new();
    let ids = ["one", "two"].map(|body| {
        let args = ["send", "PUT", "/doc", "--base-etag", &tag, "--body", "-"];
        cli.run_with_stdin(&args, body.as_bytes()).expect(0)
    });
    let script = resources.script();
    server.script(move |seen| if seen.method == "GET" { Act::Stall } else { script(seen) });
    let daemon = cli.daemon(&server.url(), &[]);
    server.wait_for(2).await;
    daemon.signal(rustix::process::Signal::KILL);
    daemon.end();
    // It was applied, and it is still in the queue: nobody knows yet.
    assert_eq!(resources.content("/doc").as_deref(), Some("one"));
    assert_eq!(cli.json(["list", "--json"]).as_array().unwrap().len(), ids.len());
    server.script(resources.script());
    let (code, lines, _) = cli.replay(&server.url(), &[]);
    assert_eq!((code, lines.len()), (0, 2), "{lines:?}");
    assert!(lines[0]["detail"].as_str().unwrap().starts_with("already-applied"), "{lines:?}");
    assert_eq!(resources.content("/doc").as_deref(), Some("two"));
    assert!(cli.tree().is_empty());
}

#[tokio::test]
async fn a_write_that_was_taken_is_not_sent_again_when_the_question_about_it_fails() {
    for restart in [false, true] {
        for method in ["POST", "PATCH", "PROPPATCH", "PUT"] {
            for answer in [Act::Cut, Act::from(503), Act::from(401)] {
                let said = format!("{method}, {answer:?}");
                let names = if method == "PROPPATCH" { Names::Strong } else { Names::WhenRead };
                let (root, (resources, server, base)) = (root(), doc(names));
                let script = resources.script();
                server.script(move |seen| match matches!(seen.method.as_str(), "GET" | "HEAD") {
                    true => answer.clone(),
                    false => script(seen),
                });
                let hold = |root: &Path| {
                    let builder = crate::kit::builder(root).upstream(server.url());
                    builder.ambiguous(outbox_host::Ambiguous::Hold).open().unwrap()
                };
                let mut outbox = hold(root.path());
                // Also where the first has no base of its own.
                let first_base = if restart { base.clone() } else { Base::Nothing };
                let first = send_on(&outbox, &first_base, method, "/doc", "x").await;
                send_on(&outbox, &base, "PUT", "/doc", "y").await;
                let (report, deliveries) = replay(&outbox).await;
                assert_eq!((report.delivered, report.remaining), (0, 2), "{said}: {deliveries:?}");
                let kept = outbox.get(&first).await.unwrap().entry.unwrap();
                assert!(kept.last_error.as_deref().unwrap().starts_with("it was taken"), "{said}: {kept:?}");
                if restart {
                    outbox = hold(root.path());
                }
                server.script(resources.script());
                outbox.retry(&first).await.unwrap();
                let (report, deliveries) = replay(&outbox).await;
                assert_eq!((report.delivered, report.conflicts), (2, 0), "{said}: {deliveries:?}");
                let question = if method == "PUT" { "GET" } else { "HEAD" };
                let writes = [method, question, question, "PUT"].map(|m| format!("{m} /doc"));
                assert_eq!(server.lines(), writes, "{said}");
                assert_eq!(resources.content("/doc").as_deref(), Some("y"));
            }
        }
    }
}

#[tokio::test]
async fn edits_that_are_thousands_of_entries_apart_do_not_conflict_either() {
    let (root, (resources, server, base)) = (root(), doc(Names::Strong));
    let builder = crate::kit::builder(root.path()).durability(outbox_host::Durability::None);
    let outbox = builder.upstream(server.url()).concurrency(16).open().unwrap();
    let [first] = edits(&outbox, &base, ["one"]).await;
    // Between them, more than is read ahead, and more than the deliveries of a minute.
    let start = u64::from_str_radix(&first[..16], 16).unwrap();
    for n in 1..=5_000 {
        let id = format!("{:016x}-000000", start + n);
        let meta = serde_json::json!({ "id": id, "method": "PUT", "raw_uri": format!("/{n}") });
        std::fs::create_dir(path(root.path(), &id)).unwrap();
        std::fs::write(path(root.path(), &id).join("meta.json"), meta.to_string()).unwrap();
        std::fs::write(path(root.path(), &id).join("body.bin"), "x").unwrap();
    }
    edits(&outbox, &base, ["two"]).await;
    let (report, _) = replay(&outbox).await;
    assert_eq!((report.delivered, report.conflicts, report.remaining), (5_002, 0, 0));
    assert_eq!(resources.content("/doc").as_deref(), Some("two"));
}

/// A server may take them for one resource or for two; a version of one is never taken for one of the other.
#[tokio::test]
async fn edits_of_paths_that_are_spelt_differently_inherit_nothing_from_each_other() {
    for [one, other] in [["/a/b", "/a%2Fb"], ["/a/b", "/a//b"], ["/a", "/a/"]] {
        let (root, resources) = (root(), Resources::named(Names::Date));
        let base = now() - 10_000;
        resources.write(one, "before", base);
        resources.write(other, "somebody's", base + 500);
        let server = Upstream::start(resources.script());
        let outbox = open(root.path(), &server.url());
        for uri in [one, other] {
            send_on(&outbox, &Base::Date(base), "PUT", uri, "mine").await;
        }
        let (report, deliveries) = replay(&outbox).await;
        assert_eq!((report.delivered, report.conflicts), (1, 1), "{other}: {deliveries:?}");
        assert_eq!(resources.content(other).as_deref(), Some("somebody's"));
    }
}

/// Where content is kept is the server's affair; nobody goes there on the word of a reply.
#[tokio::test]
async fn a_question_that_is_redirected_for_good_ends_after_some_tries() {
    let root = root();
    let server = Upstream::start(|seen| match seen.method.as_str() {
        "GET" => Reply::new(302).header("Location", "https://store.example/1"),
        _ => Reply::new(201),
    });
    let outbox = open(root.path(), &server.url());
    let first = send_on(&outbox, &Base::Absent, "PUT", "/doc", "one").await;
    send_on(&outbox, &Base::Absent, "PUT", "/doc", "two").await;
    for _ in 0..2 {
        assert_eq!(replay(&outbox).await.0.delivered, 0);
        outbox.retry(&first).await.unwrap();
    }
    assert_eq!(replay(&outbox).await.0.delivered, 2);
    assert_eq!(server.lines(), ["PUT /doc", "GET /doc", "GET /doc", "GET /doc", "PUT /doc"]);
    // It keeps its base, and the server decides.
    assert_eq!(server.seen()[4].header("if-none-match"), Some("*"));
}

#[tokio::test]
async fn a_kill_during_the_question_about_a_post_does_not_send_it_again() {
    let cli = Cli::new();
    let server = Upstream::start(|seen: &Seen| match seen.method.as_str() {
        "HEAD" => Act::Stall,
        _ => Act::from(204),
    });
    for method in ["POST", "PUT"] {
        cli.run_with_stdin(&["send", method, "/doc", "--base-etag", "\"v1\"", "--body", "-"], b"x").expect(0);
    }
    let daemon = cli.daemon(&server.url(), &[]);
    server.wait_for(2).await;
    daemon.signal(rustix::process::Signal::KILL);
    daemon.end();
    server.script(|_: &Seen| Reply::new(204).header("etag", "\"v2\""));
    let (code, lines, _) = cli.replay(&server.url(), &[]);
    assert_eq!((code, lines.len()), (0, 2), "{lines:?}");
    assert_eq!(server.lines(), ["POST /doc", "HEAD /doc", "HEAD /doc", "PUT /doc"]);
    assert_eq!(server.seen()[3].header("if-match"), Some("\"v2\""));
}
