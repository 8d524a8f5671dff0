//! Which system calls an acknowledged write costs, and in which order. What they are good for after a power
//! failure is the simulator's to show; that they are made is shown here. Needs strace; says so where it is
//! missing.

use crate::cli::Cli;
use crate::kit::{OUTBOX_DIR, cache_dir, path, root};
use crate::strace::{SYNC, with_failing};
use crate::upstream::{Reply, Upstream};
use std::fs;
use std::path::Path;
use std::process::Command;

#[test]
fn everything_is_synced_before_a_write_is_acknowledged() {
    let Some(calls) = traced("full") else { return };
    let names: Vec<&str> = calls.iter().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "fsync root",
            "fsync body.bin",
            // The component's own, at the first write of all.
            "fsync root",
            "fsync meta.json",
            "fsync staged",
            "rename",
            "fsync queue",
            "acknowledge"
        ]
    );
}

#[test]
fn without_durability_nothing_of_an_entry_is_synced() {
    let Some(calls) = traced("none") else { return };
    assert_eq!(calls, ["fsync root", "rename", "acknowledge"]);
}

#[test]
fn the_names_above_a_queue_are_synced_whoever_made_them() {
    // Its maker died before they were.
    let cli = Cli::new();
    let root = cli.root.path().join("above/root");
    fs::create_dir_all(root.join(OUTBOX_DIR)).unwrap();
    let above = root.parent().unwrap();
    let send = ["--root", root.to_str().unwrap(), "send", "PUT", "/a"];
    let Some(ran) = with_failing(&cli, above, &[(SYNC, 1)], &send) else { return };
    assert_eq!(ran.code, 1, "{ran:?}");
    cli.ok(send);
    // Once is enough.
    assert_eq!(with_failing(&cli, above, &[(SYNC, 1)], &send).unwrap().code, 0);
}

#[test]
fn what_is_sent_again_is_so_after_a_power_failure_too() {
    let cli = Cli::new();
    let id = cli.send(&["PUT", "/a"]);
    let entry = path(cli.root.path(), &id);
    let Some(ran) = with_failing(&cli, &entry, &[(SYNC, 1)], &["retry", &id]) else { return };
    assert_eq!(ran.code, 1, "{ran:?}");
    cli.ok(["retry", &id]);
}

#[test]
fn the_next_edit_has_its_version_durably_before_the_delivered_one_leaves_the_queue() {
    let cli = Cli::new();
    let server = Upstream::start(|seen| match seen.method.as_str() {
        "PUT" => Reply::new(204).header("ETag", "\"v2\""),
        _ => Reply::new(404),
    });
    let [first, second] = ["one", "two"]
        .map(|tag| cli.send(&["PUT", "/doc", "--header", &format!("X-N: {tag}"), "--base-etag", "\"v1\""]));
    let Some(text) = traced_replay(&cli, &server) else { return };
    let steps: Vec<&str> = text.lines().filter_map(|line| handing_on(line, &first, &second)).collect();
    assert_eq!(
        steps.get(..4).unwrap_or(&steps),
        ["state synced", "state in place", "its directory synced", "delivered removed"],
        "{text}"
    );
}

#[test]
fn a_lease_is_whole_on_disk_before_it_is_one() {
    let (cli, server) = (Cli::new(), Upstream::start(|_| 204));
    let Some(text) = traced_replay(&cli, &server) else { return };
    let steps: Vec<&str> = text.lines().filter(|line| line.contains(".lease.new")).collect();
    let [synced, linked] = steps[..] else { panic!("{text}") };
    assert!(synced.contains("sync(") && linked.contains("link"), "{text}");
}

/// Syncs, links and renames of one `outbox replay`.
fn traced_replay(cli: &Cli, server: &Upstream) -> Option<String> {
    let log = cli.root.path().join("strace.log");
    let mut command = Command::new("strace");
    command
        .args(["-f", "-y", "-qq", "-e", "trace=fsync,fdatasync,link,linkat,rename,renameat,renameat2", "-o"])
        .arg(&log)
        .arg(env!("CARGO_BIN_EXE_outbox"))
        .args(["replay", "--upstream", &server.url()])
        .arg("--root")
        .arg(cli.root.path())
        .env("OUTBOX_CACHE_DIR", cache_dir())
        .stdout(std::process::Stdio::null());
    let Ok(status) = command.status() else {
        eprintln!("skipped: strace is not installed");
        return None;
    };
    assert!(status.success());
    Some(std::fs::read_to_string(&log).unwrap())
}

/// Which step of handing a version on a system call is.
fn handing_on(line: &str, first: &str, second: &str) -> Option<&'static str> {
    let rename = line.contains(" rename");
    let sync = line.contains(" fsync") || line.contains(" fdatasync");
    match line {
        _ if rename && line.contains("\"state.json\"") => Some("state in place"),
        _ if rename && line.contains(first) && line.contains(".staging") => Some("delivered removed"),
        _ if sync && line.contains("/.staging/") => Some("state synced"),
        _ if sync && line.contains(&format!("/{second}>")) => Some("its directory synced"),
        _ => None,
    }
}

/// Syncs, the publishing rename and the acknowledgement of one `outbox send` to a new outbox, in order.
fn traced(durability: &str) -> Option<Vec<String>> {
    let root = root();
    let log = root.path().join("strace.log");
    // The path ends the line, so that what follows the last '/' names what was synced.
    let status = Command::new("strace")
        .args(["-f", "-y", "-qq", "-e", "trace=fsync,fdatasync,rename,renameat,renameat2,write", "-o"])
        .arg(&log)
        .arg(env!("CARGO_BIN_EXE_outbox"))
        .arg("--root")
        .arg(root.path())
        .args(["send", "POST", "/x", "--durability", durability])
        .env("OUTBOX_CACHE_DIR", cache_dir())
        .stdout(std::process::Stdio::null())
        .status();
    let Ok(status) = status else {
        eprintln!("skipped: strace is not installed");
        return None;
    };
    assert!(status.success());
    let queue = std::fs::canonicalize(root.path()).unwrap().join(OUTBOX_DIR);
    let text = std::fs::read_to_string(&log).unwrap();
    Some(text.lines().filter_map(|line| name(line, &queue)).collect())
}

fn name(line: &str, queue: &Path) -> Option<String> {
    let call = line.split_once(' ')?.1.trim_start();
    if call.starts_with("write(1") && call.contains("queued ") {
        return Some("acknowledge".into());
    }
    if call.starts_with("rename") {
        return call.contains("/.staging>").then(|| "rename".into());
    }
    if !call.starts_with("fsync") && !call.starts_with("fdatasync") {
        return None;
    }
    let path = call.split_once('<')?.1.split_once('>')?.0;
    let staging = format!("{}/.staging/", queue.display());
    let what = match path {
        _ if Path::new(path) == queue => "queue",
        _ if Some(Path::new(path)) == queue.parent() => "root",
        _ => match path.strip_prefix(&staging)?.split_once('/') {
            Some((_, file)) => file,
            None => "staged",
        },
    };
    Some(format!("fsync {what}"))
}
