//! The same component in a stock host: wasmtime's command line, from OUTBOX_WASMTIME or the PATH.
//! docs/wasmtime.md has the recipes that are tried here.

use crate::cli::{Cli, Daemon, Ran, feed, parse};
use crate::kit::{OUTBOX_DIR, path};
use crate::upstream::{Act, Gate, Reply, ReservedPort, Seen, Upstream};
use outbox_host::Runtime;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// A root, and a wasmtime that runs the component on it.
struct Stock {
    wasmtime: String,
    cli: Cli,
    component: PathBuf,
    _dir: tempfile::TempDir,
}

impl Stock {
    /// None, with a word about it, where there is no wasmtime.
    fn find() -> Option<Stock> {
        let named = std::env::var("OUTBOX_WASMTIME").ok().filter(|name| !name.is_empty());
        let wasmtime = named.clone().unwrap_or_else(|| "wasmtime".into());
        match Command::new(&wasmtime).arg("--version").output() {
            Ok(version) if version.status.success() => {}
            found if named.is_some() => panic!("OUTBOX_WASMTIME={wasmtime} does not run: {found:?}"),
            _ => {
                println!(
                    "skipped: no wasmtime on the PATH, and OUTBOX_WASMTIME is not set; see docs/wasmtime.md"
                );
                return None;
            }
        }
        let dir = crate::kit::root();
        let component = dir.path().join("outbox.wasm");
        std::fs::write(&component, Runtime::component()).unwrap();
        Some(Stock { wasmtime, cli: Cli::new(), component, _dir: dir })
    }

    /// The recipe of docs/wasmtime.md.
    fn command(&self, env: &[(&str, &str)], args: &[&str]) -> Command {
        let dir = format!("{}::/data", self.cli.root.path().display());
        let mut command = self.cli.clean(&self.wasmtime, ["run", "-S", "http", "--dir", &dir]);
        for (name, value) in env {
            command.args(["--env", &format!("{name}={value}")]);
        }
        command.arg(&self.component).args(args);
        command
    }

    fn run(&self, args: &[&str], stdin: &[u8]) -> Ran {
        feed(self.command(&[], args), stdin)
    }

    /// Queues a write; its id.
    fn send(&self, args: &[&str], body: &[u8]) -> String {
        let fixed: &[&str] = if body.is_empty() { &["send"] } else { &["send", "--body", "-"] };
        // METHOD and URI come first.
        let args = [&fixed[..1], args, &fixed[1..]].concat();
        parse(self.run(&args, body).expect(0))["id"].as_str().unwrap().to_owned()
    }

    /// One pass: its outcomes and its report.
    fn replay(&self, upstream: &str, env: &[(&str, &str)]) -> (Vec<Value>, Value) {
        let env = [&[("OUTBOX_UPSTREAM", upstream)], env].concat();
        let printed = feed(self.command(&env, &["replay"]), b"").expect(0);
        let mut lines: Vec<Value> = printed.lines().map(parse).collect();
        let report = lines.pop().unwrap();
        (lines, report)
    }
}

#[test]
fn a_stock_host_queues_lists_counts_and_replays() {
    let Some(stock) = Stock::find() else { return };
    let args =
        ["PUT", "/a?x=1", "--content-type", "text/plain", "--header", "X-Trace: 7", "--base-etag", "\"v1\""];
    let put = stock.send(&args, b"from stdin");
    let post = stock.send(&["POST", "/b", "--base-mod-time", "2024-05-01T10:00:00+02:00"], b"");
    let lines: Vec<Value> = stock.run(&["list"], b"").expect(0).lines().map(parse).collect();
    assert_eq!(lines.len(), 2);
    for (line, (id, uri, len)) in lines.iter().zip([(&put, "/a?x=1", 10), (&post, "/b", 0)]) {
        assert_eq!(
            (&line["id"], &line["raw_uri"], &line["body_len"]),
            (&json!(id), &json!(uri), &json!(len))
        );
    }
    let counts = parse(stock.run(&["count"], b"").expect(0));
    assert_eq!((&counts["pending"], &counts["oldest"]), (&json!(2), &json!(put)));
    // It is one outbox, whoever hosts it.
    assert_eq!(stock.cli.json(["list", "--json"]).as_array().unwrap().len(), 2);
    let ours = stock.cli.send(&["DELETE", "/c"]);

    let server = Upstream::start(|_| 204);
    let (outcomes, report) = stock.replay(&server.url(), &[("OUTBOX_CONCURRENCY", "1")]);
    let ids: Vec<&str> = outcomes.iter().map(|o| o["id"].as_str().unwrap()).collect();
    assert_eq!(ids, [put.as_str(), &post, &ours]);
    assert!(outcomes.iter().all(|o| o["outcome"] == "delivered"), "{outcomes:?}");
    assert_eq!(
        (&report["delivered"], &report["remaining"], &report["upstream"]),
        (&json!(3), &json!(0), &json!("up"))
    );
    assert!(report["next_delay_ms"].is_u64());
    let seen = server.seen();
    assert_eq!(server.lines(), ["PUT /a?x=1", "POST /b", "DELETE /c"]);
    assert_eq!(seen[0].body, b"from stdin");
    for (name, value) in [
        ("if-match", "\"v1\""),
        ("x-trace", "7"),
        ("content-type", "text/plain"),
        ("content-length", "10"),
        ("idempotency-key", &put),
    ] {
        assert_eq!(seen[0].header(name), Some(value), "{name}");
    }
    assert_eq!(seen[1].header("if-unmodified-since"), Some("Wed, 01 May 2024 08:00:00 GMT"));
    assert_eq!(stock.run(&["list"], b"").expect(0), "");
}

#[test]
fn a_stock_host_keeps_what_is_refused_and_waits_for_what_is_away() {
    let Some(stock) = Stock::find() else { return };
    let large: Vec<u8> = (0..5_000_000u32).map(|i| (i % 251) as u8).collect();
    let id = stock.send(&["PUT", "/large"], &large);
    let port = ReservedPort::new();
    let (outcomes, report) = stock.replay(&port.url(), &[]);
    assert_eq!((&outcomes[0]["outcome"], &outcomes[0]["id"]), (&json!("deferred"), &json!(id)));
    assert_eq!((&report["upstream"], &report["remaining"]), (&json!("down"), &json!(1)));
    // Closed in the middle of the body.
    let server = Upstream::start_on(port, |_| Act::CutAfter(100_000));
    let (outcomes, report) = stock.replay(&server.url(), &[]);
    assert_eq!((&outcomes[0]["status"], &report["upstream"]), (&json!(null), &json!("down")), "{outcomes:?}");
    // Read slowly, and not all of it before the reply: neither is a reason to give up.
    server.script(|_: &Seen| {
        Act::ReadSlowly(Duration::from_millis(2), Reply::new(503).header("Retry-After", "3600"))
    });
    let (outcomes, _) = stock.replay(&server.url(), &[]);
    assert_eq!((&outcomes[0]["status"], &outcomes[0]["outcome"]), (&json!(503), &json!("deferred")));
    assert_eq!(server.seen().last().unwrap().body_len, large.len() as u64);
    assert!(stock.replay(&server.url(), &[]).0.is_empty(), "it is not due");
    stock.cli.ok(["retry", &id]);
    // An answer before the body was read is a race that wasmtime's HTTP client may lose; the entry is kept either way.
    server.script(|_: &Seen| Act::ReplyUnread(Reply::new(413)));
    let (outcomes, report) = stock.replay(&server.url(), &[]);
    assert_eq!(
        report["rejected"].as_u64().unwrap() + report["remaining"].as_u64().unwrap(),
        1,
        "{outcomes:?}"
    );
    // After the body it is none.
    stock.cli.ok(["retry", &id]);
    server.script(|_: &Seen| Act::Reply(Reply::new(413).body("too much")));
    let (outcomes, report) = stock.replay(&server.url(), &[]);
    assert_eq!((&outcomes[0]["status"], &report["rejected"]), (&json!(413), &json!(1)), "{outcomes:?}");
    let rejected = stock.cli.json(["rejected", "--json"]);
    assert_eq!(rejected[0]["reply"]["body_start"], "too much");
    let counts = parse(stock.run(&["count"], b"").expect(0));
    assert_eq!((&counts["pending"], &counts["rejected"]), (&json!(0), &json!(1)));
}

#[tokio::test]
async fn a_stock_host_runs_as_a_daemon_that_sees_what_others_queue() {
    let Some(stock) = Stock::find() else { return };
    let gate = Gate::new();
    let held = gate.clone();
    let server = Upstream::start(move |seen: &Seen| match seen.target.as_str() {
        "/held" => Act::ReplyAfter(held.clone(), Reply::new(204)),
        _ => Act::from(204),
    });
    let before = stock.send(&["PUT", "/before"], b"1");
    let url = server.url();
    let daemon = Daemon::spawn(stock.command(&[("OUTBOX_UPSTREAM", &url)], &["run"]));
    server.wait_for(1).await;
    let during = stock.cli.send(&["PUT", "/during"]);
    server.wait_for(2).await;
    let last = stock.send(&["PUT", "/held"], b"3");
    server.wait_for(3).await;
    // Such a host ends at once. Its lease is in the way for a while, unless it is known that it is gone; what was in
    // flight is sent again.
    drop(daemon);
    gate.open();
    let ran = feed(stock.command(&[("OUTBOX_UPSTREAM", &url)], &["replay"]), b"");
    assert!(ran.code == 1 && ran.stderr.contains("another replays"), "{ran:?}");
    let (outcomes, _) = stock.replay(&url, &[("OUTBOX_LEASE", "none")]);
    assert_eq!(outcomes.len(), 1);
    let keys: Vec<_> =
        server.seen().iter().map(|s| s.header("idempotency-key").unwrap().to_owned()).collect();
    assert_eq!(keys, [before, during, last.clone(), last]);
}

#[test]
fn a_stock_host_is_told_what_is_wrong_in_a_line_and_leaves_nothing() {
    let Some(stock) = Stock::find() else { return };
    stock.send(&["PUT", "/x"], b"");
    let tree = stock.cli.tree();
    type Texts = &'static [&'static str];
    type Env = &'static [(&'static str, &'static str)];
    let cases: &[(Env, Texts, Texts)] = &[
        (&[], &["frob"], &["\"frob\"", "help"]),
        (&[], &["send", "put", "/x"], &["\"put\"", "use PUT"]),
        (&[], &["send", "PUT"], &["method and a URI"]),
        (&[], &["send", "PUT", "http://other.test/"], &["\"http://other.test/\"", "path"]),
        (&[], &["send", "PUT", "/x", "--body", "file"], &["\"file\"", "stdin"]),
        (&[], &["send", "PUT", "/x", "--header", "Authorization: Bearer s3cret"], &["\"Authorization\""]),
        (&[], &["send", "PUT", "/x", "--frob", "1"], &["\"--frob\""]),
        (&[], &["send", "PUT", "/x", "--content-type"], &["\"--content-type\"", "value"]),
        (&[("OUTBOX_MAX_BODY", "3")], &["send", "PUT", "/x", "--body", "-"], &["3 bytes", "OUTBOX_MAX_BODY"]),
        (&[], &["replay"], &["OUTBOX_UPSTREAM", "https://example.org"]),
        (&[], &["run"], &["OUTBOX_UPSTREAM", "https://example.org"]),
        (&[("OUTBOX_UPSTREAM", "ftp://h")], &["replay"], &["\"ftp://h\""]),
        (&[("OUTBOX_UPSTREAM", "http://me:s3cret@h")], &["run"], &["credentials"]),
        (&[("OUTBOX_UPSTREAM", "me:s3cret@h")], &["replay"], &["http"]),
        (&[("OUTBOX_CONCURRENCY", "0")], &["count"], &["OUTBOX_CONCURRENCY \"0\"", "1 to 256"]),
    ];
    for (env, args, wanted) in cases {
        let ran = feed(stock.command(env, args), b"too long");
        assert_eq!(
            (ran.code, ran.stdout.as_str(), ran.stderr.lines().count()),
            (1, "", 1),
            "{args:?}: {ran:?}"
        );
        assert!(ran.stderr.starts_with("outbox: ") && !ran.stderr.contains("s3cret"), "{args:?}: {ran:?}");
        for text in *wanted {
            assert!(ran.stderr.contains(text), "{args:?}: no {text:?} in {ran:?}");
        }
    }
    assert_eq!(stock.cli.tree(), tree);
    assert_eq!(path(stock.cli.root.path(), ".staging").read_dir().unwrap().count(), 0);
    let ran = feed(
        {
            let upstream = "OUTBOX_UPSTREAM=http://h";
            let mut command = stock.cli.clean(&stock.wasmtime, ["run", "-S", "http", "--env", upstream]);
            command.arg(&stock.component).arg("run");
            command
        },
        b"",
    );
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("--dir DIR::/data"), "{ran:?}");
}

#[test]
fn a_reader_that_goes_away_does_not_trap_a_stock_host() {
    let Some(stock) = Stock::find() else { return };
    stock.send(&["PUT", "/x"], b"");
    let mut child =
        stock.command(&[], &["list"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(0), ""));
}

#[test]
fn under_a_private_umask_a_stock_host_makes_private_files() {
    let Some(stock) = Stock::find() else { return };
    use std::os::unix::fs::PermissionsExt;
    let dir = format!("{}::/data", stock.cli.root.path().display());
    let script = r#"umask 077; exec "$0" "$@""#;
    let args = [
        "-c",
        script,
        &stock.wasmtime,
        "run",
        "-S",
        "http",
        "--dir",
        &dir,
        stock.component.to_str().unwrap(),
        "send",
        "PUT",
        "/x",
    ];
    let id = parse(feed(stock.cli.clean("sh", args), b"").expect(0))["id"].as_str().unwrap().to_owned();
    let mode = |path: String| {
        std::fs::metadata(stock.cli.root.path().join(path)).unwrap().permissions().mode() & 0o777
    };
    assert_eq!(mode(OUTBOX_DIR.into()), 0o700);
    assert_eq!(mode(format!("{OUTBOX_DIR}/{id}/meta.json")), 0o600);
}

#[tokio::test]
async fn the_recipes_in_the_documentation_run_as_they_stand_there() {
    let Some(stock) = Stock::find() else { return };
    let doc = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/wasmtime.md");
    let doc = std::fs::read_to_string(doc).unwrap();
    let recipes: Vec<&str> = doc.lines().filter(|line| line.starts_with("wasmtime run")).collect();
    assert_eq!(recipes.len(), 6);
    let here = stock.cli.root.path();
    std::fs::create_dir(here.join("outbox-data")).unwrap();
    std::fs::write(here.join("today.txt"), "buy milk").unwrap();
    std::fs::copy(&stock.component, here.join("outbox.wasm")).unwrap();
    let server = Upstream::start(|_| 204);
    let shell = |recipe: &str| {
        let recipe = recipe
            .replacen("wasmtime", "exec \"$WASMTIME\"", 1)
            .replace("https://example.org", &server.url());
        let mut command = stock.cli.clean("sh", ["-euc", &recipe]);
        command.current_dir(here).env("WASMTIME", &stock.wasmtime);
        command
    };
    for recipe in recipes {
        if recipe.ends_with(" run") {
            let root = here.join("outbox-data");
            stock.cli.send(&["PUT", "/later", "--root", root.to_str().unwrap()]);
            let daemon = Daemon::spawn(shell(recipe));
            server.wait_for(3).await;
            drop(daemon);
        } else {
            let ran = Ran::from(shell(recipe).output().unwrap());
            assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{recipe}: {ran:?}");
        }
    }
    let mut lines = server.lines();
    lines.sort();
    assert_eq!(lines, ["DELETE /notes/old.txt", "PUT /later", "PUT /notes/today.txt"]);
}
