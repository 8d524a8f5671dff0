//! Files that other programs, or earlier versions of this one, have written: tests/fixtures/original holds
//! entries of the Go original (two of them edited by hand), tests/fixtures/format1 an outbox of format 1. And
//! the other way round, where the original is at hand: what we queue, the original replays (docs/original.md).

use crate::cli::{Cli, parse};
use crate::kit::{OUTBOX_DIR, builder, json, path, replay, root, tree};
use crate::upstream::{Act, Reply, ReservedPort, Seen, Upstream};
use outbox_host::{Health, Keep, Place};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A root with a copy of these fixtures as its outbox.
fn root_with(fixtures: &str) -> TempDir {
    fn copy(from: &Path, to: &Path) {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let to = to.join(entry.file_name());
            match entry.file_type().unwrap().is_dir() {
                true => copy(&entry.path(), &to),
                false => drop(std::fs::copy(entry.path(), to).unwrap()),
            }
        }
    }
    let root = root();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(fixtures);
    copy(&from, &root.path().join(OUTBOX_DIR));
    root
}

/// What stands in an entry of the original, and what is sent for it.
struct Original {
    id: &'static str,
    method: &'static str,
    raw_uri: &'static str,
    /// Where the request line may not have what raw_uri has.
    target: Option<&'static str>,
    content_type: Option<&'static str>,
    base_mod_time: Option<&'static str>,
    if_unmodified_since: Option<&'static str>,
    queued_at: &'static str,
    body: &'static [u8],
}

const QUEUED_AT: &str = "2026-11-22T09:47:09Z";

/// In queue order.
const ORIGINAL: [Original; 7] = [
    // The zero time means none.
    Original {
        id: "18ea54f8d2b8d465-80980f",
        method: "PUT",
        raw_uri: "/notes/plain.txt",
        target: None,
        content_type: None,
        base_mod_time: None,
        if_unmodified_since: None,
        queued_at: QUEUED_AT,
        body: b"hello, original\n",
    },
    // Nanoseconds, an offset, and what Go escapes in JSON.
    Original {
        id: "18ea54f8d3c9b13b-79b5d2",
        method: "PUT",
        raw_uri: "/a%20b/%C3%BC?x=1&y=<2>",
        target: Some("/a%20b/%C3%BC?x=1&y=%3C2%3E"),
        content_type: Some("text/plain; charset=utf-8"),
        base_mod_time: Some("2024-05-01T10:00:00.123456789+02:00"),
        if_unmodified_since: Some("Wed, 01 May 2024 08:00:00 GMT"),
        queued_at: QUEUED_AT,
        body: b"hello, original\n",
    },
    Original {
        id: "18ea54f8d4132ba5-0da943",
        method: "POST",
        raw_uri: "/messages",
        target: None,
        content_type: Some("application/octet-stream"),
        base_mod_time: None,
        if_unmodified_since: None,
        queued_at: QUEUED_AT,
        body: b"\x00\x01\xff binary \x80",
    },
    Original {
        id: "18ea54f8d468b3c5-825f0e",
        method: "DELETE",
        raw_uri: "/notes/old.txt",
        target: None,
        content_type: None,
        base_mod_time: Some("2024-05-01T08:00:00Z"),
        if_unmodified_since: Some("Wed, 01 May 2024 08:00:00 GMT"),
        queued_at: QUEUED_AT,
        body: b"",
    },
    Original {
        id: "18ea54f8d4b0f83b-3034e6",
        method: "PUT",
        raw_uri: "/notes/empty.txt",
        target: None,
        content_type: None,
        base_mod_time: None,
        if_unmodified_since: None,
        queued_at: QUEUED_AT,
        body: b"",
    },
    // Edited by hand: unknown keys, other blanks, an empty content type, a queued_at with fraction and offset.
    Original {
        id: "18ea54f8d5000000-aaaaaa",
        method: "PATCH",
        raw_uri: "/notes/plain.txt",
        target: None,
        content_type: None,
        base_mod_time: Some("2024-05-01T08:00:00.999Z"),
        if_unmodified_since: Some("Wed, 01 May 2024 08:00:00 GMT"),
        queued_at: "2026-11-22T09:47:10.5+01:00",
        body: b"queued by a later version\n",
    },
    // Edited by hand: only what cannot be done without.
    Original {
        id: "18ea54f8d6000000-bbbbbb",
        method: "MKCOL",
        raw_uri: "/notes/new/",
        target: None,
        content_type: None,
        base_mod_time: None,
        if_unmodified_since: None,
        queued_at: "",
        body: b"x",
    },
];

#[tokio::test]
async fn entries_of_the_original_are_listed_with_all_that_it_wrote() {
    let root = root_with("original");
    let outbox = builder(root.path()).open().unwrap();
    let entries = outbox.pending(None, 100).await.unwrap();
    assert_eq!(entries.len(), ORIGINAL.len());
    for (entry, expected) in entries.iter().zip(&ORIGINAL) {
        let id = expected.id;
        assert_eq!((entry.id.as_str(), entry.method.as_str()), (id, expected.method));
        assert_eq!(entry.raw_uri, expected.raw_uri, "{id}");
        assert_eq!(entry.content_type.as_deref(), expected.content_type, "{id}");
        assert_eq!(entry.base_mod_time.as_deref(), expected.base_mod_time, "{id}");
        assert_eq!(entry.queued_at, expected.queued_at, "{id}");
        assert_eq!(entry.body_len, Some(expected.body.len() as u64), "{id}");
        assert_eq!((entry.attempts, &entry.base_etag, entry.create), (0, &None, false), "{id}");
        assert!(entry.headers.is_empty(), "{id}");
    }
    assert_eq!(outbox.verify().await.unwrap(), []);
}

#[tokio::test]
async fn entries_of_the_original_are_replayed_in_its_order_and_leave_nothing() {
    let root = root_with("original");
    let server = Upstream::start(|_| 204);
    let outbox = builder(root.path()).upstream(server.url()).concurrency(1).open().unwrap();
    let (report, deliveries) = replay(&outbox).await;
    assert_eq!((report.delivered, report.remaining, report.upstream), (7, 0, Health::Up), "{deliveries:?}");
    // The PATCH has a base and the PUT of the same path before it none: what that made had to be asked.
    let (asked, seen): (Vec<Seen>, _) = server.seen().into_iter().partition(|seen| seen.method == "GET");
    assert_eq!(asked.iter().map(|seen| seen.target.as_str()).collect::<Vec<_>>(), [ORIGINAL[0].raw_uri]);
    assert_eq!(seen.len(), ORIGINAL.len());
    for (request, expected) in seen.iter().zip(&ORIGINAL) {
        let id = expected.id;
        assert_eq!(request.method, expected.method, "{id}");
        assert_eq!(request.target, expected.target.unwrap_or(expected.raw_uri), "{id}");
        assert_eq!(request.header("content-type"), expected.content_type, "{id}");
        assert_eq!(request.header("if-unmodified-since"), expected.if_unmodified_since, "{id}");
        assert_eq!(request.header("idempotency-key"), Some(id));
        assert_eq!(request.body, expected.body, "{id}");
        let length = (expected.method != "DELETE").then(|| expected.body.len().to_string());
        assert_eq!(request.header("content-length"), length.as_deref(), "{id}");
        for absent in ["transfer-encoding", "if-match", "if-none-match", "authorization"] {
            assert_eq!(request.header(absent), None, "{id}");
        }
    }
    assert!(tree(root.path()).is_empty());
}

#[tokio::test]
async fn what_the_original_queued_may_conflict_be_refused_or_wait_like_our_own() {
    let root = root_with("original");
    let server = Upstream::start(|seen: &Seen| match (seen.method.as_str(), seen.target.as_str()) {
        ("PUT", "/notes/plain.txt") => Act::from(503),
        ("POST", _) => Act::from(400),
        (_, "/notes/old.txt") => {
            Reply::new(412).header("Last-Modified", "Wed, 01 May 2024 09:00:00 GMT").into()
        }
        _ => Act::from(200),
    });
    let outbox = builder(root.path()).upstream(server.url()).open().unwrap();
    let (report, _) = replay(&outbox).await;
    // The PATCH waits behind the PUT of the same path that the server put off.
    assert_eq!((report.delivered, report.conflicts, report.rejected, report.deferred), (3, 1, 1, 1));
    let left: Vec<String> = outbox.pending(None, 100).await.unwrap().into_iter().map(|e| e.id).collect();
    assert_eq!(left, [ORIGINAL[0].id, ORIGINAL[5].id]);
    let queued_again = outbox.resolve(ORIGINAL[3].id, Keep::Mine).await.unwrap().unwrap();
    let meta = json(&path(root.path(), &queued_again).join("meta.json"));
    assert_eq!((&meta["method"], &meta["base_mod_time"]), (&"DELETE".into(), &"2024-05-01T09:00:00Z".into()));
}

#[tokio::test]
async fn an_outbox_of_format_1_is_read_in_all_its_places() {
    let root = root_with("format1");
    let outbox = builder(root.path()).open().unwrap();
    let counts = outbox.count().await.unwrap();
    assert_eq!((counts.pending, counts.conflicts, counts.rejected, counts.corrupt), (1, 1, 1, 1));
    assert_eq!(counts.oldest.as_deref(), Some("18ea5500822c363e-0e5f4e"));

    let pending = outbox.get("18ea5500822c363e-0e5f4e").await.unwrap().entry.unwrap();
    assert_eq!(pending.raw_uri, "/later?x=1&y=<2>");
    assert_eq!(pending.content_type.as_deref(), Some("text/plain; charset=utf-8"));
    assert_eq!(pending.base_mod_time.as_deref(), Some("2024-05-01T10:00:00.123456789+02:00"));
    assert_eq!(pending.headers, [("X-Trace".to_owned(), "\u{fc} \"7\"".to_owned())]);
    assert_eq!((pending.attempts, pending.last_error.as_deref()), (1, Some("the server answered 503")));
    assert_eq!(pending.not_before.as_deref(), Some("2026-11-22T09:48:43Z"));
    assert_eq!(pending.body_len, Some(16));

    let items = outbox.quarantined().await.unwrap();
    let by_place = |place: Place| items.iter().find(|item| item.place == place).unwrap();
    assert!(items.iter().all(|item| item.since.as_deref() == Some("2026-11-22T09:47:42Z")), "{items:?}");
    let conflict = by_place(Place::Conflict);
    assert_eq!(conflict.name, "18ea55008612b39d-6fdb3a.conflict-20261122T094742Z");
    assert_eq!(conflict.validator.as_deref(), Some("\"v7\""));
    assert_eq!(conflict.entry.as_ref().unwrap().base_etag.as_deref(), Some("\"v6\""));
    let reply = conflict.reply.as_ref().unwrap();
    assert_eq!((reply.status, reply.body_start.as_str()), (412, "somebody was faster\n"));
    let rejected = by_place(Place::Rejected);
    assert!(rejected.entry.as_ref().unwrap().create);
    assert_eq!(rejected.reply.as_ref().unwrap().status, 422);
    let corrupt = by_place(Place::Corrupt);
    assert!(corrupt.reason.as_ref().unwrap().starts_with("body.bin has digest xxh3:"), "{corrupt:?}");

    let findings = outbox.verify().await.unwrap();
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert_eq!(findings[0].name, format!("corrupt/{}", corrupt.name));
}

#[tokio::test]
async fn an_outbox_of_format_1_is_brought_to_its_end() {
    let root = root_with("format1");
    let server = Upstream::start(|_| 204);
    let outbox = builder(root.path()).upstream(server.url()).concurrency(1).open().unwrap();
    outbox.retry("18ea550089d59166-70a246").await.unwrap();
    outbox.resolve("18ea55008612b39d-6fdb3a", Keep::Mine).await.unwrap();
    outbox.drop_entry("18ea55008db44440-dd61e6").await.unwrap();
    outbox.retry("18ea5500822c363e-0e5f4e").await.unwrap();
    let (report, deliveries) = replay(&outbox).await;
    assert_eq!((report.delivered, report.remaining), (3, 0), "{deliveries:?}");
    assert_eq!(server.lines(), ["PUT /later?x=1&y=%3C2%3E", "PUT /rejected", "PUT /conflict"]);
    let seen = server.seen();
    assert_eq!(seen[0].header("if-unmodified-since"), Some("Wed, 01 May 2024 08:00:00 GMT"));
    assert_eq!(seen[0].header("x-trace").map(str::len), Some("\u{fc} \"7\"".len()));
    assert_eq!(seen[1].header("if-none-match"), Some("*"));
    assert_eq!(seen[2].header("if-match"), Some("\"v7\""));
    assert_eq!(tree(root.path()), ["corrupt", "rejected"]);
}

/// The original's binary, where it is at hand; says so where it is not.
pub fn original() -> Option<PathBuf> {
    let found = std::env::var_os("OUTBOX_ORIGINAL").filter(|name| !name.is_empty());
    if found.is_none() {
        println!("skipped: OUTBOX_ORIGINAL is not set; docs/original.md says how to run this");
    }
    found.map(PathBuf::from)
}

#[test]
fn the_running_original_reads_and_replays_what_we_queue() {
    let Some(original) = original() else { return };
    let original = original.to_str().unwrap();
    let cli = Cli::new();
    let root = cli.root.path().to_str().unwrap();
    let send = |args: &[&str], body: &str| {
        let fixed = ["send", "--json", "--body", "-"];
        let printed = cli.run_with_stdin(&[&fixed, args].concat(), body.as_bytes()).expect(0);
        parse(printed)["id"].as_str().unwrap().to_owned()
    };
    // Request, and If-Unmodified-Since as the original sends it.
    const MAY: &str = "Wed, 01 May 2024 08:00:00 GMT";
    let writes: &[(&[&str], Option<&str>)] = &[
        (&["PUT", "/plain"], None),
        (&["PUT", "/a%20b/%C3%BC?x=1&y=%3C2%3E", "--content-type", "text/plain; charset=utf-8"], None),
        (&["POST", "/messages?a=%26", "--header", "X-Trace: \u{fc}\"\\"], None),
        (&["PATCH", "/created", "--create"], None),
        (&["DELETE", "/tagged", "--base-etag", "\"v1\""], None),
        (&["PROPPATCH", "/dav"], None),
        (&["PUT", "/t/1", "--base-mod-time", "2024-05-01T10:00:00.123456789+02:00"], Some(MAY)),
        (&["PUT", "/t/2", "--base-mod-time", "2024-05-01T08:00:00Z"], Some(MAY)),
        (&["PUT", "/t/3", "--base-mod-time", "2024-05-01t08:00:00z"], Some(MAY)),
        (&["PUT", "/t/4", "--base-mod-time", "2024-05-01 03:00:00.5-05:00"], Some(MAY)),
        (&["PUT", "/t/5", "--base-mod-time", "2024-05-01T08:00:00.1234567891234-00:00"], Some(MAY)),
        (&["PUT", "/t/6", "--base-mod-time", "2016-12-31T23:59:60Z"], Some("Sat, 31 Dec 2016 23:59:59 GMT")),
        (&["PUT", "/t/7", "--base-mod-time", "0001-01-01T00:00:00Z"], None),
        (&["PUT", "/conflict", "--base-mod-time", "2024-05-01T08:00:00Z"], Some(MAY)),
        (&["PUT", "/later"], None),
    ];
    let ids: Vec<String> =
        writes.iter().enumerate().map(|(i, (args, _))| send(args, &format!("body {i}"))).collect();
    // Beside them, everything else that we put there: it is none of the original's business.
    let server = Upstream::start(|seen: &Seen| match seen.target.as_str() {
        "/refused" => Reply::new(412).header("ETag", "\"v2\"").into(),
        _ => Act::from(422),
    });
    for uri in ["/refused", "/rejected", "/damaged"] {
        let beside = Cli::new();
        let id = beside.send(&["PUT", uri]);
        if uri == "/damaged" {
            std::fs::write(path(beside.root.path(), &id).join("meta.json"), "{").unwrap();
        }
        assert_eq!(beside.replay(&server.url(), &[]).0, 4);
        for name in beside.tree().iter().filter(|name| name.contains('.') && !name.ends_with(".json")) {
            let (from, to) = (path(beside.root.path(), name), path(cli.root.path(), name));
            if from.is_dir() {
                std::fs::create_dir_all(to.parent().unwrap()).unwrap();
                std::fs::rename(from, to).unwrap();
            }
        }
    }
    // An attempt in vain notes it in state.json, and takes .lock.
    cli.replay(&ReservedPort::new().url(), &[]);
    assert!(path(cli.root.path(), &ids[0]).join("state.json").exists());
    std::fs::write(path(cli.root.path(), ".wake"), "").unwrap();
    let kept = |cli: &Cli| -> Vec<String> {
        let all = cli.tree();
        all.into_iter().filter(|name| !ids.iter().any(|id| name.starts_with(id.as_str()))).collect()
    };
    let before = kept(&cli);
    assert!(before.len() > 8, "{before:?}");

    let run = |args: &[&str]| {
        let output = cli.clean(original, args).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        (parse(String::from_utf8(output.stdout).unwrap()), String::from_utf8(output.stderr).unwrap())
    };
    let (count, list) = run(&["pending", "-root", root, "-list"]);
    let expected: Vec<String> =
        ids.iter().zip(writes).map(|(id, (args, _))| format!("{id} {} {}", args[0], args[1])).collect();
    assert_eq!(list.lines().collect::<Vec<_>>(), expected);
    assert_eq!(count["count"], writes.len());

    let server = Upstream::start(|seen: &Seen| match seen.target.as_str() {
        "/conflict" => 412,
        "/later" => 503,
        _ => 200,
    });
    let (result, _) = run(&["replay", "-root", root, "-upstream", &server.url()]);
    assert_eq!(
        (&result["replayed"], &result["conflicts"]),
        (&(writes.len() - 2).into(), &1.into()),
        "{result}"
    );
    let seen = server.seen();
    assert_eq!(seen.len(), writes.len());
    for (i, (request, (args, since))) in seen.iter().zip(writes).enumerate() {
        assert_eq!((request.method.as_str(), request.target.as_str()), (args[0], args[1]), "{args:?}");
        assert_eq!(request.header("if-unmodified-since"), *since, "{args:?}");
        assert_eq!(request.body, format!("body {i}").as_bytes(), "{args:?}");
        let content_type = args.iter().position(|arg| *arg == "--content-type").map(|at| args[at + 1]);
        assert_eq!(request.header("content-type"), content_type, "{args:?}");
    }

    for ours in [".lock", ".wake", ".staging"] {
        assert!(path(cli.root.path(), ours).exists(), "{ours}");
    }
    // What the original left, we read: an entry that waits, and a conflict of its making.
    assert_eq!(kept(&cli).iter().filter(|name| !before.contains(name)).count(), 0);
    assert!(before.iter().all(|name| kept(&cli).contains(name)));
    let left = cli.json(["list", "--json"]);
    assert_eq!((left.as_array().unwrap().len(), left[0]["id"].as_str()), (1, ids.last().map(String::as_str)));
    let conflicts = cli.json(["conflicts", "--json"]);
    let theirs = &ids[ids.len() - 2];
    let conflict =
        conflicts.as_array().unwrap().iter().find(|c| c["entry"]["id"] == theirs.as_str()).unwrap();
    assert_eq!((&conflict["reply"], &conflict["validator"]), (&parse("null"), &parse("null")));
    let ran = cli.run(["resolve", theirs, "--keep", "mine"]);
    assert!(ran.code == 1 && ran.stderr.contains("named no version"), "{ran:?}");
    cli.ok(["retry", theirs]);
    assert_eq!(cli.json(["list", "--json"]).as_array().unwrap().len(), 2);
}

#[test]
fn the_running_original_queues_what_we_replay() {
    let Some(original) = original() else { return };
    let cli = Cli::new();
    let root = cli.root.path().to_str().unwrap();
    let queue = |args: &[&str]| {
        let fixed = ["enqueue-one", "-root", root, "-body", "-"];
        let command = cli.clean(original.to_str().unwrap(), fixed.iter().chain(args));
        let printed = crate::cli::feed(command, b"theirs");
        assert_eq!(printed.code, 0, "{printed:?}");
        parse(printed.stdout)["id"].as_str().unwrap().to_owned()
    };
    // Both queue in turn; the order holds across them.
    let first = queue(&["-method", "PUT", "-uri", "/x", "-base", "2024-05-01T10:00:00.123456789+02:00"]);
    let second = cli.send(&["PUT", "/x"]);
    let third = queue(&["-method", "DELETE", "-uri", "/x", "-content-type", "text/plain"]);
    let server = Upstream::start(|_| 204);
    let (code, lines, _) = cli.replay(&server.url(), &[]);
    let ids: Vec<&str> = lines.iter().map(|line| line["id"].as_str().unwrap()).collect();
    assert_eq!((code, ids), (0, vec![first.as_str(), &second, &third]));
    let seen = server.seen();
    assert_eq!(seen[0].header("if-unmodified-since"), Some("Wed, 01 May 2024 08:00:00 GMT"));
    assert_eq!((seen[0].body.as_slice(), seen[2].body.as_slice()), (&b"theirs"[..], &b"theirs"[..]));
    assert_eq!(seen[2].header("content-type"), Some("text/plain"));
    assert!(cli.tree().is_empty());
}
