//! `outbox run`: the daemon, its signals and its log.

use crate::cli::{Cli, Daemon, parse};
use crate::kit;
use crate::upstream::{Act, Gate, Reply, ReservedPort, Seen, Upstream};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Below the first pause of an outage: what happens sooner, a wake has done.
const BEFORE_ANY_TICK: Duration = Duration::from_secs(20);

/// A server that replies only once the gate is open.
fn held() -> (Upstream, Gate) {
    let gate = Gate::new();
    let held = gate.clone();
    (Upstream::start(move |_: &Seen| Act::ReplyAfter(held.clone(), Reply::new(204))), gate)
}

/// The ids of the log's lines about this outcome.
fn ids<'a>(log: &'a [Value], outcome: &str) -> Vec<&'a str> {
    let lines = log.iter().filter(|line| line["message"] == outcome);
    lines.map(|line| line["id"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn it_delivers_what_waited_and_what_others_queue_and_logs_each_outcome_once() {
    let cli = Cli::new();
    let server = Upstream::start(crate::cli_replay::answers);
    let before = cli.send(&["PUT", "/before"]);
    let mut daemon = cli.daemon(&server.url(), &[]);
    server.wait_for(1).await;
    let started = Instant::now();
    let during = cli.send(&["PUT", "/during"]);
    server.wait_for(2).await;
    let refused = cli.send(&["PUT", "/rejected"]);
    daemon.wait_for("rejected");
    assert!(started.elapsed() < BEFORE_ANY_TICK, "the directory watch did not wake it");
    let log = daemon.stop();
    assert_eq!(ids(&log, "delivered"), [before, during]);
    assert_eq!(ids(&log, "rejected"), [refused]);
    assert_eq!(server.seen().len(), 3);
    for line in &log {
        assert!(line["timestamp"].is_string() && line["level"].is_string(), "{line}");
    }
    let running = log.iter().find(|line| line["message"] == "running").unwrap();
    assert_eq!(running["upstream"], json!(server.url()));
    let warned = log.iter().find(|line| line["message"] == "rejected").unwrap();
    assert_eq!(
        (&warned["level"], &warned["status"], &warned["uri"]),
        (&json!("WARN"), &json!(422), &json!("/rejected"))
    );
}

#[test]
fn the_log_names_the_root_so_that_it_is_found_from_elsewhere() {
    let cli = Cli::new();
    let here = cli.root.path().canonicalize().unwrap();
    let mut command = cli.command(["run", "--log", "json", "--upstream", &ReservedPort::new().url()]);
    command.env_remove("OUTBOX_ROOT").current_dir(&here);
    let mut daemon = Daemon::spawn(command);
    assert_eq!(daemon.wait_for("running")["root"], json!(here.join("outbox-data")));
    daemon.stop();
}

#[tokio::test]
async fn a_wake_or_a_hang_up_ends_the_pause_of_an_outage() {
    for by_signal in [true, false] {
        let cli = Cli::new();
        let port = ReservedPort::new();
        let id = cli.send(&["PUT", "/x"]);
        let mut daemon = cli.daemon(&port.url(), &[]);
        daemon.wait_for("upstream is down");
        let server = Upstream::start_on(port, |_| 204);
        let started = Instant::now();
        if by_signal {
            daemon.signal(Signal::HUP);
        } else {
            assert_eq!(cli.ok(["wake"]), format!("asked process {} for a pass\n", daemon.pid()));
        }
        let delivered = daemon.wait_for("delivered");
        assert!(started.elapsed() < BEFORE_ANY_TICK);
        assert_eq!(delivered["id"], json!(id));
        let log = daemon.stop();
        assert_eq!(ids(&log, "deferred"), [id.as_str()]);
        assert!(log.iter().any(|line| line["message"] == "upstream is up"), "{log:#?}");
        assert_eq!(server.seen().len(), 1);
    }
}

#[tokio::test]
async fn a_retry_or_a_drop_wakes_whoever_replays() {
    for (command, left) in [("retry", 2), ("drop", 1)] {
        let cli = Cli::new();
        let put_off = Reply::new(503).header("Retry-After", "300");
        let server = Upstream::sequence(vec![put_off.into(), 204.into()]);
        let id = cli.send(&["PUT", "/x"]);
        // It waits for the first one.
        cli.send(&["PUT", "/x"]);
        let mut daemon = cli.daemon(&server.url(), &[]);
        daemon.wait_for("deferred");
        let started = Instant::now();
        cli.ok([command, &id]);
        for _ in 0..left {
            daemon.wait_for("delivered");
        }
        assert!(started.elapsed() < BEFORE_ANY_TICK);
        daemon.stop();
        assert_eq!(cli.run(["wake", "--json"]).code, 1);
    }
}

#[tokio::test]
async fn an_entry_that_the_server_puts_off_is_sent_when_it_is_due_without_a_wake() {
    let cli = Cli::new();
    let put_off = Reply::new(503).header("Retry-After", "1");
    let server = Upstream::sequence(vec![put_off.into(), 204.into()]);
    cli.send(&["PUT", "/x"]);
    let mut daemon = cli.daemon(&server.url(), &[]);
    let started = Instant::now();
    daemon.wait_for("delivered");
    assert!(started.elapsed() < BEFORE_ANY_TICK);
    daemon.stop();
    assert_eq!(server.seen().len(), 2);
}

#[tokio::test]
async fn a_stop_lets_the_request_in_flight_finish_and_starts_no_other() {
    for signal in [Signal::TERM, Signal::INT] {
        let cli = Cli::new();
        let (server, gate) = held();
        let first = cli.send(&["PUT", "/first"]);
        let second = cli.send(&["PUT", "/second"]);
        let mut daemon = cli.daemon(&server.url(), &[]);
        server.wait_for(1).await;
        daemon.signal(signal);
        daemon.wait_for("stopping");
        gate.open();
        let (status, log) = daemon.end();
        assert_eq!(status.code(), Some(0), "{log:#?}");
        let log: Vec<Value> = log.iter().map(parse).collect();
        assert_eq!(ids(&log, "delivered"), [first], "the last outcome is logged, too");
        assert_eq!(log.last().unwrap()["message"], "stopped");
        let left = cli.json(["list", "--json"]);
        assert_eq!((left.as_array().unwrap().len(), &left[0]["id"]), (1, &json!(second)));
        assert_eq!(server.lines(), ["PUT /first"]);
    }
}

#[tokio::test]
async fn a_stop_starts_no_other_one_at_a_time_though_one_is_ready() {
    let cli = Cli::new();
    let gate = Gate::new();
    let held = gate.clone();
    let server = Upstream::start(move |seen: &Seen| match seen.target.as_str() {
        "/first" => Act::from(204),
        _ => Act::ReplyAfter(held.clone(), Reply::new(204)),
    });
    for path in ["/first", "/second", "/third"] {
        cli.send(&["PUT", path]);
    }
    let mut daemon = cli.daemon(&server.url(), &["--concurrency", "1"]);
    server.wait_for(2).await;
    // A server that takes less may get one more.
    tokio::time::sleep(Duration::from_millis(20)).await;
    daemon.signal(Signal::TERM);
    daemon.wait_for("stopping");
    gate.open();
    let (status, log) = daemon.end();
    assert_eq!(status.code(), Some(0), "{log:#?}");
    assert_eq!(server.lines(), ["PUT /first", "PUT /second"]);
}

#[tokio::test]
async fn a_stop_does_not_wait_for_ever_and_what_was_in_flight_stays() {
    let cli = Cli::new();
    let server = Upstream::start(|_: &Seen| Act::Stall);
    let id = cli.send(&["PUT", "/x"]);
    let daemon = cli.daemon(&server.url(), &[]);
    server.wait_for(1).await;
    let started = Instant::now();
    daemon.stop();
    let took = started.elapsed();
    assert!(took > Duration::from_secs(5) && took < Duration::from_secs(20), "{took:?}");
    assert_eq!(cli.json(["list", "--json"])[0]["id"], json!(id));
}

#[tokio::test]
async fn a_root_has_one_replayer_and_the_others_are_told_which() {
    let cli = Cli::new();
    let server = Upstream::start(|_| 204);
    let daemon = cli.daemon(&server.url(), &[]);
    let pid = daemon.pid().to_string();
    for command in ["run", "replay"] {
        let ran = cli.run([command, "--upstream", &server.url()]);
        assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{ran:?}");
        assert!(
            ran.stderr.contains(&format!("process {pid}")) && ran.stderr.contains("outbox wake"),
            "{ran:?}"
        );
        assert_eq!(ran.stderr.lines().count(), 1, "{ran:?}");
    }
    let status = cli.json(["status", "--json"]);
    assert_eq!((&status["replaying"], status["pid"].to_string()), (&json!(true), pid));
    // Everything that is no replaying works beside it.
    assert_eq!(cli.ok(["list"]), "nothing waits\n");
    cli.send(&["PUT", "/x"]);
    server.wait_for(1).await;
    daemon.stop();
    assert_eq!(cli.json(["status", "--json"])["replaying"], json!(false));
    assert_eq!(cli.run(["wake"]).code, 1);
}

#[tokio::test]
async fn it_ends_when_its_directory_is_not_the_one_that_it_has_the_lock_of() {
    for made_anew in [true, false] {
        let cli = Cli::new();
        let server = Upstream::start(|_| 204);
        cli.send(&["PUT", "/x"]);
        let mut daemon = cli.daemon(&server.url(), &[]);
        daemon.wait_for("delivered");
        std::fs::remove_dir_all(cli.root.path()).unwrap();
        if made_anew {
            cli.send(&["PUT", "/y"]);
        }
        daemon.signal(Signal::HUP);
        let (status, log) = daemon.end();
        assert_eq!(status.code(), Some(1), "{log:#?}");
        let last = log.last().unwrap();
        assert!(last.starts_with("error: root ") && last.contains("start this program again"), "{log:#?}");
        assert_eq!(server.lines(), ["PUT /x"]);
        if made_anew {
            let mut daemon = cli.daemon(&server.url(), &[]);
            daemon.wait_for("delivered");
            daemon.stop();
        }
    }
}

#[tokio::test]
async fn a_kill_while_the_server_holds_its_reply_loses_nothing() {
    let cli = Cli::new();
    let (server, gate) = held();
    let first = cli.send(&["PUT", "/first", "--content-type", "text/plain"]);
    let second = cli.send(&["PUT", "/second"]);
    let daemon = cli.daemon(&server.url(), &[]);
    server.wait_for(1).await;
    daemon.signal(Signal::KILL);
    assert_eq!(daemon.end().0.code(), None);
    let left = cli.json(["list", "--json"]);
    assert_eq!((&left[0]["id"], &left[1]["id"]), (&json!(first), &json!(second)));
    gate.open();
    let mut daemon = cli.daemon(&server.url(), &[]);
    daemon.wait_for("delivered");
    daemon.wait_for("delivered");
    daemon.stop();
    let seen = server.seen();
    assert_eq!(server.lines(), ["PUT /first", "PUT /first", "PUT /second"]);
    let keys: Vec<_> = seen.iter().map(|request| request.header("idempotency-key").unwrap()).collect();
    assert_eq!(keys, [first.as_str(), &first, &second]);
    assert!(cli.tree().is_empty());
}

#[tokio::test]
async fn a_rotated_token_is_taken_up_and_no_token_is_ever_logged() {
    let cli = Cli::new();
    let secrets = kit::root();
    let file = secrets.path().join("token");
    std::fs::write(&file, "s3cret-old").unwrap();
    let server = Upstream::start(|seen: &Seen| match seen.header("authorization") {
        Some("Bearer s3cret-new") => 204,
        _ => 401,
    });
    cli.send(&["PUT", "/x"]);
    let mut daemon =
        cli.daemon(&server.url(), &["--bearer-file", file.to_str().unwrap(), "--log-level", "debug"]);
    daemon.wait_for("upstream wants other credentials");
    std::fs::write(&file, "s3cret-new\n").unwrap();
    daemon.signal(Signal::HUP);
    daemon.wait_for("delivered");
    let log = daemon.stop();
    assert!(!format!("{log:?}").contains("s3cret"), "{log:#?}");
    assert_eq!(server.seen().len(), 2);
}

#[tokio::test]
async fn the_text_log_has_a_line_for_each_outcome_and_no_colours_in_a_file() {
    let cli = Cli::new();
    let server = Upstream::start(|_| 204);
    let id = cli.send(&["PUT", "/x"]);
    let daemon = Daemon::spawn(cli.command(["run", "--upstream", &server.url()]));
    server.wait_for(1).await;
    daemon.signal(Signal::TERM);
    let (status, log) = daemon.end();
    assert_eq!(status.code(), Some(0), "{log:#?}");
    assert_eq!(
        log.iter().filter(|line| line.contains(&id) && line.contains("delivered")).count(),
        1,
        "{log:#?}"
    );
    assert!(!log.concat().contains('\u{1b}'), "{log:#?}");
}

#[tokio::test]
async fn a_log_that_cannot_be_written_stops_nothing() {
    let mut logs = vec![Stdio::piped()];
    if cfg!(target_os = "linux") {
        logs.push(std::fs::File::options().write(true).open("/dev/full").unwrap().into());
    }
    for log in logs {
        let cli = Cli::new();
        let server = Upstream::sequence(vec![204.into(), Act::Cut, 204.into()]);
        let daemon = Daemon::unheard(cli.command(["run", "--upstream", &server.url()]), log);
        cli.send(&["PUT", "/a"]);
        server.wait_for(1).await;
        cli.send(&["PUT", "/b"]);
        server.wait_for(2).await;
        let started = Instant::now();
        daemon.signal(Signal::HUP);
        server.wait_for(3).await;
        assert!(started.elapsed() < BEFORE_ANY_TICK);
        daemon.signal(Signal::TERM);
        assert_eq!(daemon.end().0.code(), Some(0));
        assert_eq!(server.lines(), ["PUT /a", "PUT /b", "PUT /b"]);
    }
}

#[tokio::test]
async fn a_second_stop_ends_at_once_though_nobody_takes_the_log() {
    let cli = Cli::new();
    let server = Upstream::start(|_| 204);
    // A pipe takes 64 KiB.
    for i in 0..20 {
        cli.send(&["PUT", &format!("/{i}/{}", "x".repeat(8000))]);
    }
    let (unread, stderr) = std::io::pipe().unwrap();
    let mut daemon = cli.command(["run", "--upstream", &server.url()]).stderr(stderr).spawn().unwrap();
    server.wait_for(20).await;
    // Of its pages, not all are full.
    let full = async {
        while rustix::io::ioctl_fionread(&unread).unwrap() < 32 * 1024 {
            tokio::task::yield_now().await;
        }
    };
    kit::soon("a log that takes no more", full).await;
    let asked = tokio::task::spawn_blocking(move || {
        let started = Instant::now();
        // One that comes before another was heard is the same.
        while daemon.try_wait().unwrap().is_none() && started.elapsed() < BEFORE_ANY_TICK {
            for signal in [Signal::HUP, Signal::TERM] {
                kill_process(Pid::from_child(&daemon), signal).unwrap();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = daemon.kill();
        daemon.wait().unwrap()
    });
    assert_eq!(asked.await.unwrap().code(), Some(1));
}
