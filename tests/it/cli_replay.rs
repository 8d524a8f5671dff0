//! `outbox replay`: what it prints, its exit codes, and the credential's way.

use crate::cli::{Cli, Daemon, Ran, everything_in, parse};
use crate::kit;
use crate::upstream::{Act, Gate, Reply, ReservedPort, Seen, Upstream};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Answers by the path: /conflict, /rejected, /later, /login; everything else is taken.
pub fn answers(seen: &Seen) -> Act {
    match seen.target.as_str() {
        "/conflict" if seen.method == "GET" => Reply::new(200).header("ETag", "\"v9\"").body("theirs").into(),
        "/conflict" => Reply::new(412).header("ETag", "\"v9\"").body("somebody was faster").into(),
        "/rejected" => Reply::new(422).body("no such field").into(),
        "/later" => Reply::new(503).header("Retry-After", "3600").into(),
        "/login" => 401.into(),
        _ => 204.into(),
    }
}

#[test]
fn each_outcome_is_a_json_line_and_the_last_line_reports_on_the_pass() {
    let cli = Cli::new();
    let server = Upstream::start(answers);
    let ids = ["/ok", "/conflict", "/rejected", "/later"].map(|uri| cli.send(&["PUT", uri]));
    let (code, lines, report) = cli.replay(&server.url(), &[]);
    assert_eq!(code, 4, "conflicts and rejected entries come before remaining ones");
    let expected = [("delivered", 204), ("conflict", 412), ("rejected", 422), ("deferred", 503)];
    assert_eq!(lines.len(), 4);
    for (id, (outcome, status)) in ids.iter().zip(expected) {
        let line = lines.iter().find(|line| line["id"] == json!(id)).unwrap();
        assert_eq!((&line["outcome"], &line["status"]), (&json!(outcome), &json!(status)));
        assert_eq!(line["method"], "PUT");
        assert!(line["raw_uri"].is_string() && line["elapsed_ms"].is_u64(), "{line}");
    }
    let counts = json!({
        "delivered": 1, "conflicts": 1, "rejected": 1, "dropped": 0, "deferred": 1, "held": 0, "corrupt": 0,
        "remaining": 1, "upstream": "up",
    });
    for (key, value) in counts.as_object().unwrap() {
        assert_eq!(&report[key], value, "{key}: {report}");
    }
    assert!(report["next_delay_ms"].as_u64().unwrap() > 0, "{report}");
}

#[test]
fn a_pass_in_text_has_a_line_for_each_outcome_and_a_summary() {
    let cli = Cli::new();
    let server = Upstream::start(answers);
    let [ok, later] = ["/ok", "/later"].map(|uri| cli.send(&["PUT", uri]));
    let ran = cli.run(["replay", "--upstream", &server.url()]);
    assert_eq!((ran.code, ran.stderr.as_str()), (3, ""), "{ran:?}");
    let line = |id: &str| ran.stdout.lines().find(|line| line.contains(id)).unwrap().to_owned();
    assert!(line(&ok).starts_with("delivered") && line(&ok).contains("PUT /ok 204"), "{ran:?}");
    assert!(line(&later).starts_with("deferred") && line(&later).contains("PUT /later 503"), "{ran:?}");
    assert_eq!(ran.stdout.lines().last(), Some("1 delivered, 1 deferred, 1 remaining; upstream up"));
}

#[test]
fn a_pass_that_asked_nobody_does_not_say_that_the_upstream_is_up() {
    // One that may have been applied, and one of a newer outbox.
    for (held, outcome) in [(true, "ambiguous"), (false, "deferred")] {
        let (cli, port) = (Cli::new(), ReservedPort::new());
        let args = ["--upstream", &port.url(), "--ambiguous", "hold"];
        let id = cli.send(&["POST", "/a"]);
        match held {
            true => {
                std::fs::write(kit::path(cli.root.path(), &id).join("state.json"), r#"{"in_flight":true}"#)
                    .unwrap()
            }
            false => kit::edit_meta(cli.root.path(), &id, |meta| meta["format"] = json!(2)),
        }
        let mut daemon = cli.daemon(args[1], &args[2..]);
        daemon.wait_for(outcome);
        let log = daemon.stop();
        assert!(!log.iter().any(|line| line["message"] == "upstream is up"), "{log:#?}");
        for _ in 0..2 {
            let ran = cli.run(["replay"].iter().chain(&args));
            let said = ran.stdout.lines().last().unwrap();
            assert!(said.contains("1 remaining") && !said.contains("upstream"), "{ran:?}");
        }
    }
}

#[test]
fn what_a_pass_leaves_to_somebody_is_told_with_the_command_that_shows_it() {
    let cli = Cli::new();
    let server = Upstream::start(answers);
    for uri in ["/rejected", "/conflict"] {
        cli.send(&["PUT", uri]);
    }
    for delivered in
        ["0 delivered, 1 in conflict, 1 rejected, 0 remaining; upstream up", "0 delivered, 0 remaining"]
    {
        let ran = cli.run(["replay", "--upstream", &server.url()]);
        let lines: Vec<&str> = ran.stdout.lines().rev().take(3).collect();
        let kept = ["1 rejected kept: see 'outbox rejected'", "1 in conflict kept: see 'outbox conflicts'"];
        assert_eq!((ran.code, lines), (4, vec![kept[0], kept[1], delivered]), "{ran:?}");
    }
}

#[test]
fn exit_codes_tell_scripts_what_is_left_to_do() {
    for (uris, args, code, left) in [
        (&[][..], &[][..], 0, 0),
        (&["/ok"], &[], 0, 0),
        (&["/later"], &[], 3, 1),
        (&["/login"], &[], 3, 1),
        (&["/conflict"], &[], 4, 0),
        (&["/rejected"], &[], 4, 0),
        (&["/later", "/rejected"], &[], 4, 1),
        (&["/rejected"], &["--rejected", "drop"], 0, 0),
        (&["/login"], &["--auth", "drop"], 0, 0),
        (&["/login"], &["--rejected", "drop"], 3, 1),
        (&["/conflict"], &["--rejected", "drop", "--auth", "drop"], 4, 0),
    ] {
        let cli = Cli::new();
        let server = Upstream::start(answers);
        for uri in uris {
            cli.send(&["PUT", uri]);
        }
        let (got, lines, report) = cli.replay(&server.url(), args);
        assert_eq!((got, &report["remaining"]), (code, &json!(left)), "{uris:?} {args:?}: {report}");
        // A conflict costs one request more: the question whether that was us.
        let requests = uris.len() + uris.iter().filter(|uri| **uri == "/conflict").count();
        assert_eq!((lines.len(), server.seen().len()), (uris.len(), requests), "{uris:?} {args:?}");
        let dropped = u64::from(code == 0 && args.len() == 2);
        assert_eq!(report["dropped"], json!(dropped), "{uris:?} {args:?}");
        // The code is about the outbox, not about the pass: it stays until somebody acts.
        assert_eq!(cli.run(["status"]).code, code, "{uris:?} {args:?}");
        let upstream = if left == 1 && uris == ["/login"] { "auth" } else { "up" };
        assert_eq!(report["upstream"], upstream, "{uris:?} {args:?}");
    }
}

#[test]
fn exit_codes_tell_what_is_left_also_where_nobody_reads_what_is_printed() {
    let cli = Cli::new();
    let server = Upstream::start(answers);
    for uri in ["/ok", "/later"] {
        cli.send(&["PUT", uri]);
    }
    let [first, second] = ["/later", "/later"].map(|uri| cli.send(&["PUT", uri]));
    for (args, code) in [
        (&["replay", "--json", "--upstream", &server.url()][..], 3),
        (&["replay", "--upstream", &server.url()], 3),
        (&["status"], 3),
        (&["status", "--json"], 3),
        (&["retry", &first, "nobody", &second], 1),
        (&["drop", &first, &second], 0),
    ] {
        let (unread, stdout) = std::io::pipe().unwrap();
        drop(unread);
        let ran = cli.command(args).stdout(stdout).stderr(Stdio::null()).status().unwrap();
        assert_eq!(ran.code(), Some(code), "{args:?}");
    }
    assert_eq!(cli.json(["list", "--json"]).as_array().unwrap().len(), 1, "both were dropped");
}

#[test]
fn a_server_that_is_down_leaves_everything_and_the_exit_code_is_3() {
    let cli = Cli::new();
    let port = ReservedPort::new();
    for uri in ["/a", "/b", "/c"] {
        cli.send(&["PUT", uri]);
    }
    let (code, lines, report) = cli.replay(&port.url(), &[]);
    assert_eq!((code, lines.len()), (3, 1), "an outage costs one request");
    assert_eq!(lines[0]["detail"], "connection refused");
    assert_eq!(lines[0]["status"], json!(null));
    assert_eq!((&report["remaining"], &report["upstream"]), (&json!(3), &json!("down")));
    assert_eq!(report["next_delay_ms"], json!(30_000));
    // Entries that were set aside come before those that remain.
    let server = Upstream::start(answers);
    cli.send(&["PUT", "/rejected"]);
    assert_eq!(cli.replay(&server.url(), &[]).0, 4);
    cli.send(&["PUT", "/d"]);
    assert_eq!(cli.replay(&port.url(), &[]).0, 4);
}

#[test]
fn the_upstream_may_come_from_the_environment_and_have_a_prefix() {
    let cli = Cli::new();
    let server = Upstream::start(answers);
    cli.send(&["PUT", "/a?x=1"]);
    let mut command = cli.command(["replay"]);
    assert!(
        command.env("OUTBOX_UPSTREAM", format!("{}/dav/", server.url())).output().unwrap().status.success()
    );
    assert_eq!(server.lines(), ["PUT /dav/a?x=1"]);
}

#[test]
fn the_token_reaches_the_server_and_nothing_else() {
    let secrets = kit::root();
    let file = secrets.path().join("token");
    std::fs::write(&file, "s3cret-from-file\n").unwrap();
    for (token, args) in [
        ("s3cret-from-env", ["--bearer-env", "MY_TOKEN"]),
        ("s3cret-from-file", ["--bearer-file", file.to_str().unwrap()]),
    ] {
        let cli = Cli::new();
        let server = Upstream::start(answers);
        for uri in ["/ok", "/rejected", "/conflict", "/later", "/login"] {
            cli.send(&["PUT", uri]);
        }
        let mut printed = String::new();
        // The first pass meets everything, the second one the entry that is held.
        for format in ["--json", "--order=path"] {
            let url = server.url();
            let mut command = cli.command(["replay", "--upstream", &url, args[0], args[1], format]);
            let output = command.env("MY_TOKEN", "s3cret-from-env").output().unwrap();
            assert_eq!(output.status.code(), Some(4), "{output:?}");
            printed.push_str(&format!("{output:?}"));
        }
        let seen = server.seen();
        assert_eq!(seen.len(), 7, "five writes, one of them again, and the question after 412");
        for request in &seen {
            assert_eq!(request.header("authorization"), Some(format!("Bearer {token}").as_str()));
        }
        for command in [&["list"][..], &["conflicts", "--json"], &["rejected", "--json"], &["status"]] {
            printed.push_str(&format!("{:?}", cli.run(command)));
        }
        assert!(!printed.contains("s3cret"), "{printed}");
        assert!(!everything_in(cli.root.path()).contains("s3cret"));
    }
    assert!(!everything_in(&kit::cache_dir()).contains("s3cret"));
}

#[tokio::test]
async fn concurrency_is_how_many_requests_are_in_flight_at_once() {
    for concurrency in [1, 3] {
        let cli = Cli::new();
        let gate = Gate::new();
        let held = gate.clone();
        let server = Upstream::start(move |seen: &Seen| match seen.target.as_str() {
            "/0" => Act::from(204),
            _ => Act::ReplyAfter(held.clone(), Reply::new(204)),
        });
        for i in 0..7 {
            cli.send(&["PUT", &format!("/{i}")]);
        }
        let n = concurrency.to_string();
        let mut command = cli.command(["replay", "--json", "--upstream", &server.url(), "--concurrency", &n]);
        let child = command.stdout(Stdio::piped()).spawn().unwrap();
        server.wait_for(1 + concurrency).await;
        gate.open();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        let report = String::from_utf8(output.stdout).unwrap().lines().last().map(parse).unwrap();
        assert_eq!(report["delivered"], json!(7));
        assert_eq!(server.max_in_flight(), concurrency);
    }
}

#[tokio::test]
async fn a_pass_that_is_interrupted_abandons_a_request_that_does_not_end_and_says_so() {
    let cli = Cli::new();
    let server = Upstream::start(|seen: &Seen| match seen.target.as_str() {
        "/taken" => Act::from(204),
        _ => Act::Stall,
    });
    let taken = cli.send(&["PUT", "/taken"]);
    cli.send(&["PUT", "/stalled"]);
    let mut command = cli.command(["replay", "--json", "--upstream", &server.url()]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    server.wait_for(2).await;
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let started = Instant::now();
    let ran = Ran::from(child.wait_with_output().unwrap());
    // Well before the time-out of the transfer.
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.starts_with("stopping") && ran.stderr.contains("it stays in the queue"), "{ran:?}");
    assert_eq!(parse(&ran.stdout)["id"], json!(taken), "what was done is printed");
    assert_eq!(parse(cli.run(["status", "--json"]).expect(3))["replaying"], json!(false));
}

#[tokio::test]
async fn an_interrupt_ends_one_whose_output_nobody_takes() {
    let cli = Cli::new();
    let server = Upstream::start(|_| 204);
    // A pipe takes 64 KiB.
    for i in 0..20 {
        cli.send(&["PUT", &format!("/{i}/{}", "x".repeat(8000))]);
    }
    let (_unread, stdout) = std::io::pipe().unwrap();
    let mut command = cli.command(["replay", "--json", "--upstream", &server.url()]);
    let mut child = command.stdout(stdout).spawn().unwrap();
    server.wait_for(20).await;
    let pass = async {
        while parse(cli.run(["status", "--json"]).stdout)["replaying"] == json!(true) {
            tokio::task::yield_now().await;
        }
    };
    kit::soon("the end of the pass", pass).await;
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let ended = tokio::task::spawn_blocking(move || child.wait().unwrap());
    assert_eq!(kit::soon("its end", ended).await.unwrap().code(), Some(1));
}

#[tokio::test]
async fn a_second_interrupt_ends_at_once() {
    for command in ["replay", "run"] {
        let cli = Cli::new();
        let server = Upstream::start(|_: &Seen| Act::Stall);
        cli.send(&["PUT", "/x"]);
        let mut replaying = Daemon::spawn(cli.command([command, "--upstream", &server.url()]));
        server.wait_for(1).await;
        let started = Instant::now();
        replaying.signal(Signal::INT);
        replaying.wait_for_text("stopping");
        replaying.signal(Signal::INT);
        let (status, log) = replaying.end();
        assert_eq!(status.code(), Some(1), "{log:#?}");
        assert!(started.elapsed() < Duration::from_secs(9), "{command}: {:?}", started.elapsed());
        assert!(log.concat().contains("stays in the queue"), "{log:#?}");
    }
}
