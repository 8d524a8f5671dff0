//! Which system calls an acknowledged write costs, and in which order. What they are good for after a power
//! failure is the simulator's to show; that they are made is shown here. Needs strace; says so where it is
//! missing.

use crate::kit::{OUTBOX_DIR, cache_dir, root};
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
