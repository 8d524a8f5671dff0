//! `outbox send`.

use crate::cli::{Cli, feed, parse};
use crate::kit::{OUTBOX_DIR, json, path};
use crate::strace::stopped_after;
use crate::upstream::Upstream;
use serde_json::json;
use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

#[test]
fn every_option_of_send_reaches_the_entry_on_disk() {
    let cli = Cli::new();
    let body = cli.root.path().join("note.txt");
    std::fs::write(&body, "hello").unwrap();
    let printed = cli.json([
        "send",
        "PATCH",
        "/notes/a%20b?x=1&y=<2>",
        "--json",
        "--body",
        body.to_str().unwrap(),
        "--content-type",
        "text/plain; charset=utf-8",
        "--header",
        "X-Trace: 7",
        "--header",
        "Destination:/b",
        "--base-mod-time",
        "2024-05-01T10:00:00.123456789+02:00",
        "--base-etag",
        "\"v1\"",
    ]);
    let id = printed["id"].as_str().unwrap();
    let meta = json(&path(cli.root.path(), id).join("meta.json"));
    let expected = json!({
        "id": id, "method": "PATCH", "raw_uri": "/notes/a%20b?x=1&y=<2>",
        "content_type": "text/plain; charset=utf-8", "base_mod_time": "2024-05-01T10:00:00.123456789+02:00",
        "base_etag": "\"v1\"", "headers": [["X-Trace", "7"], ["Destination", "/b"]],
    });
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(&meta[key], value, "meta.json: {key}");
        assert_eq!(&printed[key], value, "--json: {key}");
    }
    assert_eq!((&meta["format"], &meta["body_len"]), (&json!(1), &json!(5)));
    assert!(meta["body_digest"].as_str().unwrap().starts_with("xxh3:"), "{meta}");
    assert_eq!(printed["queued_at"], meta["queued_at"]);
    assert_eq!(std::fs::read(path(cli.root.path(), id).join("body.bin")).unwrap(), b"hello");
    assert_eq!(cli.tree(), [id.to_owned(), format!("{id}/body.bin"), format!("{id}/meta.json")]);
}

#[tokio::test]
async fn a_write_that_a_daemon_delivers_at_once_is_queued_all_the_same() {
    let cli = Cli::new();
    let server = Upstream::start(|_| 204);
    let daemon = cli.daemon(&server.url(), &[]);
    for n in 0..30 {
        let printed = cli.json(["send", "PUT", &format!("/{n}"), "--json"]);
        assert!(printed["id"].is_string(), "{printed}");
    }
    daemon.stop();
}

#[test]
fn create_is_noted_and_absent_options_leave_no_keys() {
    let cli = Cli::new();
    let id = cli.send(&["PUT", "/new", "--create"]);
    let meta = json(&path(cli.root.path(), &id).join("meta.json"));
    assert_eq!(meta["create"], json!(true));
    for key in ["content_type", "base_mod_time", "base_etag", "headers"] {
        assert!(meta.get(key).is_none(), "{key}: {meta}");
    }
}

#[test]
fn the_body_is_a_file_or_stdin_or_empty() {
    let cli = Cli::new();
    // Longer than any buffer on the way, and not text.
    let bytes: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    let file = cli.root.path().join("big");
    std::fs::write(&file, &bytes).unwrap();
    let stored = |id: &str| std::fs::read(path(cli.root.path(), id).join("body.bin")).unwrap();
    assert!(stored(&cli.send(&["PUT", "/file", "--body", file.to_str().unwrap()])) == bytes);
    let piped = cli.run_with_stdin(&["send", "PUT", "/stdin", "--body", "-", "--json"], &bytes).expect(0);
    assert!(stored(parse(piped)["id"].as_str().unwrap()) == bytes);
    let unread = cli.run_with_stdin(&["send", "PUT", "/none", "--json"], b"not asked for").expect(0);
    assert_eq!(stored(parse(unread)["id"].as_str().unwrap()), b"");
}

#[test]
fn what_is_queued_is_private_whatever_the_umask() {
    let cli = Cli::new();
    let root = cli.root.path().join("made");
    let script = r#"umask 022; exec "$0" "$@""#;
    let args = ["-c", script, env!("CARGO_BIN_EXE_outbox"), "send", "POST", "/x", "--body", "-", "--root"];
    let mut command = cli.clean("sh", args);
    command.arg(&root);
    let printed = feed(command, b"secret").expect(0);
    let id = printed.trim_end().strip_prefix("queued ").unwrap();
    let mode = |path: &str| {
        std::fs::metadata(root.join(path)).unwrap_or_else(|e| panic!("{path}: {e}")).permissions().mode()
            & 0o777
    };
    for (file, expected) in [
        ("", 0o700),
        ("/.staging", 0o700),
        (&format!("/{id}"), 0o700),
        (&format!("/{id}/meta.json"), 0o600),
        (&format!("/{id}/body.bin"), 0o600),
    ] {
        assert_eq!(mode(&format!("{OUTBOX_DIR}{file}")), expected, "{file}");
    }
}

#[test]
fn an_outbox_that_was_open_to_others_is_closed_to_them() {
    let cli = Cli::new();
    let dir = path(cli.root.path(), "");
    std::fs::create_dir(&dir).unwrap();
    std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o755)).unwrap();
    cli.send(&["PUT", "/x"]);
    assert_eq!(std::fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn an_outbox_that_is_made_is_told_of_once() {
    let cli = Cli::new();
    let mut said = Vec::new();
    for _ in 0..2 {
        let mut command = cli.command(["send", "PUT", "/x"]);
        let output = command.env("OUTBOX_ROOT", "new").current_dir(cli.root.path()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        said.push(String::from_utf8(output.stderr).unwrap());
    }
    let made = cli.root.path().canonicalize().unwrap().join("new");
    assert_eq!(said, [format!("made a new outbox in {}\n", made.display()), String::new()]);
}

#[cfg(target_os = "linux")]
#[test]
fn what_was_done_is_not_done_again_because_it_cannot_be_printed() {
    let cli = Cli::new();
    let server = Upstream::start(crate::cli_replay::answers);
    let conflict = cli.send(&["PUT", "/conflict", "--base-etag", "\"v1\""]);
    cli.replay(&server.url(), &[]);
    let [first, second] = ["/a", "/b"].map(|uri| cli.send(&["PUT", uri]));
    for (args, done) in [
        (&["send", "PUT", "/c"][..], 1),
        (&["send", "PUT", "/d", "--json"], 1),
        (&["resolve", &conflict, "--keep", "theirs"], 1),
        (&["retry", &first, &second], 2),
        (&["drop", &first, &second], 2),
    ] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let ran = cli.command(args).stdout(full).output().unwrap();
        let said = String::from_utf8(ran.stderr).unwrap();
        assert_eq!((ran.status.code(), said.lines().count()), (Some(0), done), "{args:?}: {said}");
        assert!(said.lines().all(|line| line.contains("; stdout cannot be written: ")), "{args:?}: {said}");
        assert_eq!(said.starts_with("queued "), args[0] == "send", "{said}");
    }
    let left = cli.json(["list", "--json"]);
    let left: Vec<_> = left.as_array().unwrap().iter().map(|entry| &entry["raw_uri"]).collect();
    assert_eq!(left, ["/c", "/d"]);
    cli.run(["conflicts"]).expect(0);
}

#[test]
fn a_date_may_be_written_as_the_server_wrote_it() {
    let cli = Cli::new();
    for date in ["Wed, 01 May 2024 08:00:00 GMT", "Wednesday, 01-May-24 08:00:00 GMT"] {
        let id = cli.send(&["PUT", "/x", "--base-mod-time", date]);
        let meta = json(&path(cli.root.path(), &id).join("meta.json"));
        assert_eq!(meta["base_mod_time"], "2024-05-01T08:00:00Z", "{date}");
    }
}

#[test]
fn the_root_is_outbox_data_here_unless_the_environment_or_the_option_names_another() {
    let cli = Cli::new();
    let here = cli.root.path().join("here");
    std::fs::create_dir(&here).unwrap();
    let mut plain = cli.command(["send", "PUT", "/x"]);
    assert!(plain.env_remove("OUTBOX_ROOT").current_dir(&here).status().unwrap().success());
    assert!(here.join("outbox-data").join(OUTBOX_DIR).is_dir());
    cli.send(&["PUT", "/x"]);
    assert!(path(cli.root.path(), "").is_dir());
    let named = cli.root.path().join("named/deeply");
    cli.ok(["send", "PUT", "/x", "--root", named.to_str().unwrap()]);
    assert!(named.join(OUTBOX_DIR).is_dir());
    assert_eq!(cli.json(["list", "--json"]).as_array().unwrap().len(), 1);
}

#[test]
fn many_processes_queue_at_once_and_every_write_is_there_under_an_id_of_its_own() {
    let cli = Cli::new();
    let children: Vec<_> = (0..12)
        .map(|i| {
            let mut command =
                cli.command(["send".to_owned(), "PUT".into(), format!("/{i}"), "--json".into()]);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    let mut ids = BTreeSet::new();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        ids.insert(parse(String::from_utf8(output.stdout).unwrap())["id"].as_str().unwrap().to_owned());
    }
    assert_eq!(ids.len(), 12);
    let listed = cli.json(["list", "--json"]);
    let listed: Vec<_> =
        listed.as_array().unwrap().iter().map(|entry| entry["id"].as_str().unwrap()).collect();
    assert_eq!(listed, ids.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn a_write_of_the_longest_allowed_body_is_taken() {
    let cli = Cli::new();
    let ran = cli.run_with_stdin(&["send", "PUT", "/x", "--body", "-", "--max-body", "5"], b"12345");
    assert!(ran.expect(0).starts_with("queued "));
}

#[test]
fn a_slow_look_at_the_names_is_no_reason_for_a_smaller_id() {
    let cli = Cli::new();
    cli.send(&["PUT", "/a"]);
    let notes = path(cli.root.path(), ".newest");
    std::fs::remove_file(&notes).unwrap();
    let mut other = String::new();
    // The names have just been listed.
    let meanwhile = || {
        other = cli.send(&["PUT", "/other"]);
    };
    let queue = path(cli.root.path(), "");
    let Some(ran) = stopped_after(&cli, "getdents64", Some(&queue), &["send", "PUT", "/b"], meanwhile) else {
        return;
    };
    let id = ran.stdout.trim().strip_prefix("queued ").unwrap();
    assert!(id > other.as_str(), "{id} after {other}");
    let noted = std::fs::read_to_string(&notes).unwrap();
    assert!(noted.contains(id), "{noted:?}");
}
