//! What an operator does about conflicts and rejected writes.

use crate::cli::{Cli, Ran, parse};
use crate::kit::{Base, builder, edit_meta, open, path, replay, root, send, send_on, set_aside, soon, tree};
use crate::resources::{Names, Resources, now};
use crate::strace::{READ, RENAME, SYNC, with_failing};
use crate::upstream::{Act, Reply, Upstream};
use outbox_host::{Body, Error, Keep, Limits, Outbox};
use std::io::Read;
use std::path::Path;
use std::sync::mpsc;
use tokio::sync::oneshot;

/// A conflict on `/doc`, which somebody else has changed since, or removed.
async fn conflict(
    root: &Path,
    names: Names,
    method: &str,
    removed: bool,
) -> (Resources, Upstream, Outbox, String) {
    let resources = Resources::named(names);
    let base = match names {
        Names::Date => Base::Date(now() - 1_000),
        _ => Base::Etag("\"stale\"".into()),
    };
    if !removed {
        resources.write("/doc", "theirs", now() - 500);
    }
    let server = Upstream::start(resources.script());
    let outbox = open(root, &server.url());
    let id = send_on(&outbox, &base, method, "/doc", if method == "DELETE" { "" } else { "mine" }).await;
    assert_eq!(replay(&outbox).await.0.conflicts, 1);
    (resources, server, outbox, id)
}

#[tokio::test]
async fn keeping_mine_goes_on_top_of_what_the_conflict_showed_whatever_names_it() {
    for (names, removed, header, value) in [
        (Names::Strong, false, "if-match", Some("\"v1\"")),
        (Names::Date, false, "if-unmodified-since", None),
        (Names::Strong, true, "if-none-match", Some("*")),
    ] {
        let root = root();
        let (resources, server, outbox, id) = conflict(root.path(), names, "PUT", removed).await;
        outbox.resolve(&id, Keep::Mine).await.unwrap();
        assert_eq!(replay(&outbox).await.0.delivered, 1, "{names:?}");
        let sent = server.seen().pop().unwrap();
        let sent = sent.header(header).unwrap_or_else(|| panic!("{names:?}: {sent:?}"));
        assert!(value.is_none_or(|value| sent == value), "{sent}");
        assert_eq!(resources.content("/doc").as_deref(), Some("mine"));
        assert!(tree(root.path()).is_empty());
    }
}

#[tokio::test]
async fn a_version_newer_than_the_one_shown_is_a_new_conflict_also_where_there_was_none() {
    for removed in [false, true] {
        let root = root();
        let (resources, _server, outbox, id) = conflict(root.path(), Names::Strong, "PUT", removed).await;
        let queued = outbox.resolve(&id, Keep::Mine).await.unwrap().unwrap();
        resources.write("/doc", "newer", now());
        let (report, _) = replay(&outbox).await;
        assert_eq!((report.delivered, report.conflicts), (0, 1));
        assert_eq!(resources.content("/doc").as_deref(), Some("newer"));
        outbox.resolve(&queued, Keep::Mine).await.unwrap();
        assert_eq!(replay(&outbox).await.0.delivered, 1);
        assert_eq!(resources.content("/doc").as_deref(), Some("mine"));
    }
}

#[tokio::test]
async fn a_merged_body_goes_on_top_of_the_servers_version() {
    let root = root();
    let (resources, server, outbox, id) = conflict(root.path(), Names::Strong, "PUT", false).await;
    let queued = outbox.resolve(&id, Keep::Merged(Body::from("both"))).await.unwrap();
    assert!(queued.is_some_and(|queued| queued > id));
    assert_eq!(outbox.count().await.unwrap().conflicts, 0);
    assert_eq!(replay(&outbox).await.0.delivered, 1);
    assert_eq!(server.seen().pop().unwrap().header("if-match"), Some("\"v1\""));
    assert_eq!(resources.content("/doc").as_deref(), Some("both"));
    // Only a conflict can be merged.
    let pending = send_on(&outbox, &Base::Nothing, "PUT", "/doc", "x").await;
    let refused = outbox.resolve(&pending, Keep::Merged(Body::from("both"))).await;
    assert!(matches!(refused, Err(Error::WrongPlace(_))), "{refused:?}");
}

#[tokio::test]
async fn a_removal_can_be_put_on_top_too() {
    let root = root();
    let (resources, server, outbox, id) = conflict(root.path(), Names::Strong, "DELETE", false).await;
    outbox.resolve(&id, Keep::Mine).await.unwrap();
    assert_eq!(replay(&outbox).await.0.delivered, 1);
    assert_eq!(server.lines().last().map(String::as_str), Some("DELETE /doc"));
    assert_eq!(resources.content("/doc"), None);
}

/// A root with conflicts of these writes; their ids.
fn conflicts(cli: &Cli, writes: &[(&str, &str, &str)]) -> Vec<String> {
    let resources = Resources::default();
    for (_, uri, _) in writes {
        resources.write(uri.split('?').next().unwrap(), "theirs", now());
    }
    let server = Upstream::start(resources.script());
    let mut ids = Vec::new();
    for (method, uri, body) in writes {
        let args = ["send", method, uri, "--base-etag", "\"stale\"", "--body", "-", "--json"];
        let sent = parse(cli.run_with_stdin(&args, body.as_bytes()).expect(0));
        ids.push(sent["id"].as_str().unwrap().to_owned());
    }
    assert_eq!(cli.replay(&server.url(), &[]).0, 4);
    ids
}

#[test]
fn conflicts_of_one_path_are_shown_together_newest_first_and_identical_ones_once() {
    let cli = Cli::new();
    let writes = [
        ("PUT", "/a", "one"),
        ("PUT", "/b", "x"),
        ("PUT", "/a", "same"),
        ("PUT", "/a", "same"),
        ("DELETE", "/a", ""),
        ("PUT", "/a", "same"),
        ("PUT", "/a?v=2", "same"),
    ];
    let ids = conflicts(&cli, &writes);
    let text = cli.ok(["conflicts"]);
    let at = |n: usize| text.find(&format!("\n{}.conflict-", ids[n])).unwrap_or(usize::MAX);
    assert!(text.starts_with("/a: 6 conflicts, newest first\n"), "{text}");
    // Another query is another resource of the same path; the equal ones stand beside the newest of them.
    assert!(at(6) < at(5) && at(5) < at(4) && at(4) < at(0) && at(0) < at(1) && at(1) < usize::MAX, "{text}");
    assert_eq!((at(2), at(3)), (usize::MAX, usize::MAX), "{text}");
    let same = text.lines().find(|line| line.contains("the same write")).unwrap();
    assert!(same.contains("3 times: also ") && same.contains(&ids[2]) && same.contains(&ids[3]), "{text}");
    assert_eq!(text.matches("the same write").count(), 1, "{text}");
    let all = cli.json(["conflicts", "--json"]);
    assert_eq!(all.as_array().unwrap().len(), 7, "JSON has them all");
    assert!(!text.contains("/b: "), "one conflict needs no heading: {text}");
}

#[test]
fn a_merged_file_is_queued_from_the_command_line() {
    let cli = Cli::new();
    let ids = conflicts(&cli, &[("PUT", "/a", "mine")]);
    let merged = cli.root.path().join("merged.txt");
    std::fs::write(&merged, "both").unwrap();
    let queued = cli.json(["resolve", &ids[0], "--keep", merged.to_str().unwrap(), "--json"]);
    let shown = cli.json(["show", queued["id"].as_str().unwrap(), "--json"]);
    assert_eq!((&shown["entry"]["base_etag"], &shown["place"]), (&"\"v1\"".into(), &"pending".into()));
    assert_eq!(cli.ok(["show", queued["id"].as_str().unwrap(), "--body"]), "both");
    assert_eq!(cli.ok(["conflicts"]), "no conflicts\n");
    let ran = cli.run(["resolve", &ids[0], "--keep", "no-such-file"]);
    assert!(ran.code == 2 && ran.stderr.contains("neither 'mine' nor 'theirs'"), "{ran:?}");
}

#[test]
fn all_rejected_writes_can_be_tried_again_or_dropped_at_once() {
    for command in ["retry", "drop"] {
        let cli = Cli::new();
        let server = Upstream::start(|_| Act::from(422));
        let ids = ["/a", "/b", "/c"].map(|uri| cli.send(&["PUT", uri]));
        assert_eq!(cli.replay(&server.url(), &[]).2["rejected"], 3);
        assert_eq!(cli.ok([command, "--all"]).lines().count(), ids.len());
        assert_eq!(cli.ok(["rejected"]), "nothing was rejected\n");
        server.script(|_| 204);
        let delivered = cli.replay(&server.url(), &[]).2["delivered"].clone();
        assert_eq!(delivered, if command == "retry" { 3 } else { 0 });
    }
}

#[tokio::test]
async fn a_damaged_body_is_not_queued_again_as_a_sound_one() {
    for damaged in ["mind", "min", "mine and more", ""] {
        let root = root();
        let (resources, _server, outbox, id) = conflict(root.path(), Names::Strong, "PUT", false).await;
        let body = set_aside(root.path(), "", &id).join("body.bin");
        std::fs::write(&body, damaged).unwrap();
        let before = tree(root.path());
        match outbox.resolve(&id, Keep::Mine).await {
            Err(Error::Io(why)) => {
                let named = ["body.bin", "meta.json says", "--keep FILE", "outbox drop"];
                assert!(named.iter().all(|part| why.contains(part)), "{why}");
            }
            other => panic!("{damaged:?}: {other:?}"),
        }
        assert_eq!((tree(root.path()), std::fs::read_to_string(&body).unwrap()), (before, damaged.into()));
        // What it says can be done can be.
        outbox.resolve(&id, Keep::Merged(Body::from("mended"))).await.unwrap();
        assert_eq!(replay(&outbox).await.0.delivered, 1);
        assert_eq!(resources.content("/doc").as_deref(), Some("mended"));
    }
}

#[tokio::test]
async fn more_may_be_set_aside_than_fits_in_memory() {
    let root = root();
    let server = Upstream::start(|_| Reply::new(422).body("never".repeat(1_000)));
    let outbox = open(root.path(), &server.url());
    let first = send(&outbox, "PUT", "/a", "x").await;
    assert_eq!(replay(&outbox).await.0.rejected, 1);
    let first = set_aside(root.path(), "rejected", &first);
    let (nanos, rest) = first.file_name().unwrap().to_str().unwrap().split_once('-').unwrap();
    let nanos = u64::from_str_radix(nanos, 16).unwrap();
    let mut names = Vec::new();
    for n in 1..=2_500 {
        let name = format!("{:016x}-{rest}", nanos + n);
        let id = name.split_once('.').unwrap().0;
        let copy = path(root.path(), &format!("rejected/{name}"));
        std::fs::create_dir(&copy).unwrap();
        for file in ["meta.json", "body.bin", "response.json"] {
            std::fs::copy(first.join(file), copy.join(file)).unwrap();
        }
        edit_meta(root.path(), &format!("rejected/{name}"), |meta| meta["id"] = id.into());
        names.push(name);
    }
    std::fs::remove_dir_all(first).unwrap();
    // All replies together have more.
    let limits = Limits { memory: 8 * 1024 * 1024, ..Limits::default() };
    let small = builder(root.path()).limits(limits).open().unwrap();
    let items = small.quarantined().await.unwrap();
    assert!(items.iter().all(|item| item.reply.as_ref().unwrap().body_start.len() == 4096));
    assert_eq!(items.into_iter().map(|item| item.name).collect::<Vec<_>>(), names);
}

#[test]
fn a_merged_file_is_held_to_the_limits() {
    let cli = Cli::new();
    let ids = conflicts(&cli, &[("PUT", "/a", "mine")]);
    let merged = cli.root.path().join("merged.txt");
    std::fs::write(&merged, "eleven byte").unwrap();
    let resolve = ["resolve", &ids[0], "--keep", merged.to_str().unwrap()];
    for (name, value, wanted) in [
        ("OUTBOX_MAX_BODY", "10", "--max-body"),
        ("OUTBOX_MAX_BYTES", "4096", "--max-bytes"),
        ("OUTBOX_DURABILITY", "some", "--durability"),
    ] {
        let ran = Ran::from(cli.command(resolve).env(name, value).output().unwrap());
        assert!(ran.code != 0 && ran.stderr.contains(wanted), "{ran:?}");
    }
    assert_eq!(cli.json(["conflicts", "--json"]).as_array().unwrap().len(), 1);
    // What the error advises works.
    let mut command = cli.command(resolve.iter().chain(&["--max-body", "11"]));
    let ran = Ran::from(command.env("OUTBOX_MAX_BODY", "10").output().unwrap());
    assert!(ran.expect(0).starts_with("queued again as "));
}

/// A body that says when it is asked for, and comes when it is told to.
struct Late(Option<(oneshot::Sender<()>, mpsc::Receiver<()>)>);

impl Read for Late {
    fn read(&mut self, chunk: &mut [u8]) -> std::io::Result<usize> {
        let Some((asked, come)) = self.0.take() else { return Ok(0) };
        asked.send(()).unwrap();
        come.recv().unwrap();
        chunk[..4].copy_from_slice(b"both");
        Ok(4)
    }
}

#[tokio::test]
async fn of_two_who_end_one_conflict_the_later_one_is_told_and_queues_nothing() {
    for first in ["mine", "theirs", "retry", "drop"] {
        let root = root();
        let (resources, _server, outbox, id) = conflict(root.path(), Names::Strong, "PUT", false).await;
        let ((asked, is_asked), (go, come)) = (oneshot::channel(), mpsc::channel());
        let other = open(root.path(), "http://127.0.0.1:9");
        let late = Keep::Merged(Body::reader(Late(Some((asked, come)))));
        let second = tokio::spawn({
            let id = id.clone();
            async move { other.resolve(&id, late).await }
        });
        soon("the second one's body", is_asked).await.unwrap();
        match first {
            "mine" => drop(outbox.resolve(&id, Keep::Mine).await.unwrap()),
            "theirs" => drop(outbox.resolve(&id, Keep::Theirs).await.unwrap()),
            "retry" => outbox.retry(&id).await.unwrap(),
            _ => outbox.drop_entry(&id).await.unwrap(),
        }
        let before = tree(root.path());
        go.send(()).unwrap();
        let told = soon("the second one's end", second).await.unwrap();
        assert!(matches!(told, Err(Error::NoSuchEntry(_))), "{first}: {told:?}");
        assert_eq!(tree(root.path()), before, "{first}");
        let left = if let "mine" | "retry" = first { 1 } else { 0 };
        assert_eq!(outbox.count().await.unwrap().pending, left, "{first}");
        assert_eq!(resources.content("/doc").as_deref(), Some("theirs"));
    }
}

#[test]
fn what_cannot_be_made_durable_is_not_done_and_that_is_said() {
    let cli = Cli::new();
    let rejecting = Upstream::start(|_| Act::from(422));
    let rejected = cli.send(&["PUT", "/rejected"]);
    cli.replay(&rejecting.url(), &[]);
    let conflict = &conflicts(&cli, &[("PUT", "/a", "mine")])[0];
    let pending = cli.send(&["PUT", "/pending"]);
    let (root, before) = (cli.root.path(), cli.tree());
    let queue = path(root, "");
    let aside = set_aside(root, "rejected", &rejected);
    let conflicting = set_aside(root, "", conflict);
    for (failing, from, args) in [
        (&queue, 1, &["drop", &pending][..]),
        (&queue, 1, &["drop", conflict]),
        (&queue, 1, &["retry", conflict]),
        (&conflicting, 1, &["retry", conflict]),
        (&queue, 1, &["retry", &rejected]),
        (&path(root, "rejected"), 1, &["drop", &rejected]),
        (&path(root, "rejected"), 1, &["retry", &rejected]),
        (&aside, 1, &["retry", &rejected]),
        (&queue, 1, &["resolve", conflict, "--keep", "theirs"]),
        (&queue, 1, &["resolve", conflict, "--keep", "mine"]),
    ] {
        let Some(ran) = with_failing(&cli, failing, &[(SYNC, from)], args) else { return };
        assert!(ran.code == 1 && ran.stderr.contains("sync"), "{args:?}: {ran:?}");
        assert_eq!(cli.tree(), before, "{args:?}");
    }
    // Once the new entry is durable, the conflict stays beside it: twice rather than not at all.
    let ran = with_failing(&cli, &queue, &[(SYNC, 2)], &["resolve", conflict, "--keep", "mine"]).unwrap();
    assert!(ran.code == 1 && ran.stderr.contains("sync"), "{ran:?}");
    assert!(before.iter().all(|name| cli.tree().contains(name)), "{:?}", cli.tree());
}

#[test]
fn where_nothing_can_be_undone_either_the_error_says_where_the_write_is() {
    let cli = Cli::new();
    let server = Upstream::start(|_| Act::from(422));
    let pending = cli.send(&["PUT", "/pending"]);
    let queue = path(cli.root.path(), "");
    // The disk takes the first rename, and nothing after that.
    let broken = [(SYNC, 1), (RENAME, 2)];
    let Some(ran) = with_failing(&cli, &queue, &broken, &["drop", &pending]) else { return };
    assert!(ran.code == 1 && ran.stderr.contains("is out of the queue all the same"), "{ran:?}");
    assert!(!cli.tree().contains(&pending), "{:?}", cli.tree());

    let ran = with_failing(&cli, &queue, &broken, &["send", "PUT", "/rejected"]).unwrap();
    let rejected = cli.json(["list", "--json"])[0]["id"].as_str().unwrap().to_owned();
    let said = format!("{rejected} could not be taken back, and will be sent");
    assert!(ran.code == 1 && ran.stderr.contains(&said), "{ran:?}");

    // A pass has no more to say of it than where it is.
    let replay = ["replay", "--upstream", &server.url()];
    let ran = with_failing(&cli, &queue, &broken, &replay).unwrap();
    assert!(ran.stdout.contains("rejected") && !ran.stdout.contains("dropped"), "{ran:?}");
    let aside = set_aside(cli.root.path(), "rejected", &rejected);
    assert!(aside.exists());

    let ran = with_failing(&cli, &queue, &broken, &["retry", &rejected]).unwrap();
    assert!(ran.code == 1 && ran.stderr.contains("waits to be sent all the same"), "{ran:?}");
    assert!(cli.tree().contains(&rejected), "{:?}", cli.tree());
}

#[test]
fn nothing_is_dropped_while_it_cannot_be_read_what_inherits_from_it() {
    let cli = Cli::new();
    let [first, second] = ["one", "two"]
        .map(|body| cli.send(&["PUT", "/h", "--base-etag", "\"v1\"", "--header", &format!("X-N: {body}")]));
    let state = path(cli.root.path(), &first).join("state.json");
    std::fs::write(&state, r#"{"attempts":0,"validator":{"etag":"\"v2\""}}"#).unwrap();
    for failing in [
        path(cli.root.path(), &first).join("meta.json"),
        state,
        path(cli.root.path(), &second).join("meta.json"),
    ] {
        let Some(ran) = with_failing(&cli, &failing, &[(READ, 1)], &["drop", &first]) else { return };
        assert!(ran.code == 1 && cli.tree().contains(&first), "{failing:?}: {ran:?}");
    }
    cli.ok(["drop", &first]);
    let kept = cli.json(["show", &second, "--json"]);
    assert!(kept.to_string().contains("v2"), "{kept}");
}
