//! Commands that look at what is there and act on single entries; completions and help.

use crate::cli::{Cli, code, feed};
use crate::cli_replay::answers;
use crate::kit::{self, edit_meta, json, path, set_aside};
use crate::upstream::{Reply, ReservedPort, Upstream};
use outbox_host::Durability;
use serde_json::{Value, json};
use std::io::Read;
use std::process::{Command, Stdio};

const COMMANDS: [&str; 16] = [
    "run",
    "replay",
    "send",
    "list",
    "show",
    "conflicts",
    "rejected",
    "corrupt",
    "resolve",
    "retry",
    "drop",
    "verify",
    "status",
    "wake",
    "demo",
    "completions",
];

/// An outbox with a conflict, a rejected and a deferred entry; their ids.
fn three_kinds() -> (Cli, [String; 3]) {
    let cli = Cli::new();
    let server = Upstream::start(answers);
    let ids = ["/conflict", "/rejected", "/later"].map(|uri| {
        let mut args = vec!["send", "PUT", uri, "--body", "-", "--json", "--content-type", "text/plain"];
        args.extend((uri == "/conflict").then_some(["--base-etag", "\"v1\""]).into_iter().flatten());
        let printed = cli.run_with_stdin(&args, format!("body of {uri}").as_bytes()).expect(0);
        crate::cli::parse(printed)["id"].as_str().unwrap().to_owned()
    });
    assert_eq!(cli.replay(&server.url(), &[]).0, 4);
    (cli, ids)
}

#[test]
fn list_shows_what_waits_in_order_and_what_happened_to_it() {
    let cli = Cli::new();
    cli.ok(["drop", &cli.send(&["PUT", "/gone"])]);
    assert_eq!(cli.ok(["list"]), "nothing waits\n");
    assert_eq!(cli.ok(["list", "--json"]), "[]\n");
    let ids = ["/a", "/b"].map(|uri| cli.send(&["PUT", uri]));
    cli.replay(&ReservedPort::new().url(), &[]);
    let list = cli.json(["list", "--json"]);
    assert_eq!(list.as_array().unwrap().len(), 2);
    for (entry, (id, uri)) in list.as_array().unwrap().iter().zip(ids.iter().zip(["/a", "/b"])) {
        let tried = uri == "/a";
        let last_error = if tried { json!("connection refused") } else { json!(null) };
        assert_eq!(
            (&entry["id"], &entry["method"], &entry["raw_uri"]),
            (&json!(id), &json!("PUT"), &json!(uri))
        );
        assert_eq!((&entry["attempts"], &entry["last_error"]), (&json!(u32::from(tried)), &last_error));
        let queued_at = entry["queued_at"].as_str().unwrap();
        assert!(queued_at.len() == 20 && queued_at.ends_with('Z'), "{queued_at}");
    }
    let text = cli.ok(["list"]);
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].contains(&ids[0]) && lines[0].contains("PUT") && lines[0].ends_with("/a"), "{text}");
    assert!(lines[1].contains("1 attempt: connection refused"), "{text}");
    assert!(lines[2].contains(&ids[1]) && lines[2].ends_with("/b"), "{text}");
}

/// Fills a root with more than any page or pipe holds; the ids.
async fn fill(cli: &Cli, entries: usize) -> Vec<String> {
    let outbox = kit::builder(cli.root.path()).durability(Durability::None).open().unwrap();
    let mut ids = Vec::new();
    for i in 0..entries {
        ids.push(
            outbox.enqueue_write(outbox_host::Write::new("PUT", format!("/{i}")), "x".into()).await.unwrap(),
        );
    }
    ids
}

#[tokio::test]
async fn a_long_list_is_whole_and_a_reader_that_goes_away_is_no_failure() {
    let cli = Cli::new();
    let ids = fill(&cli, 1_100).await;
    let list = cli.json(["list", "--json"]);
    let listed: Vec<&str> = list.as_array().unwrap().iter().map(|e| e["id"].as_str().unwrap()).collect();
    assert_eq!(listed, ids);
    assert_eq!(cli.ok(["list"]).lines().count(), ids.len());
    let server = Upstream::start(|_| 204);
    let url = server.url();
    let replay = ["replay", "--upstream", &url, "--durability", "none"];
    for args in [&["list"][..], &["list", "--json"], &["completions", "bash"], &["--help"], &replay] {
        let mut child = cli.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut first = [0];
        child.stdout.take().unwrap().read_exact(&mut first).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{args:?}");
        assert_eq!(output.status.code(), Some(0), "{args:?}");
    }
}

#[test]
fn a_body_is_shown_byte_for_byte_and_its_reader_may_go_away() {
    let cli = Cli::new();
    let bytes: Vec<u8> = (0..1_000_000u32).map(|i| (i % 253) as u8).collect();
    let sent = feed(cli.command(["send", "PUT", "/x", "--body", "-"]), &bytes).expect(0);
    let id = sent.trim_end().strip_prefix("queued ").unwrap();
    let shown = cli.command(["show", id, "--body"]).output().unwrap();
    assert!(shown.status.success() && shown.stdout == bytes && shown.stderr.is_empty());
    let mut child =
        cli.command(["show", id, "--body"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(0), ""));
}

#[test]
fn show_tells_everything_about_an_entry_wherever_it_is() {
    let (cli, [conflict, rejected, later]) = three_kinds();
    let shown = cli.json(["show", &later, "--json"]);
    assert_eq!((&shown["place"], &shown["name"]), (&json!("pending"), &json!(later)));
    assert_eq!(shown["entry"]["last_error"], "the server answered 503");
    assert!(shown["entry"]["not_before"].is_string(), "{shown}");
    let shown = cli.json(["show", &conflict, "--json"]);
    assert_eq!((&shown["place"], &shown["validator"]), (&json!("conflict"), &json!("\"v9\"")));
    assert_eq!(shown["reply"]["status"], 412);
    assert_eq!(shown["reply"]["body_start"], "somebody was faster");
    assert_eq!(shown["entry"]["base_etag"], "\"v1\"");
    let name = shown["name"].as_str().unwrap();
    assert!(name.starts_with(&format!("{conflict}.conflict-")), "{name}");
    assert_eq!(cli.json(["show", name, "--json"]), shown);
    assert_eq!(cli.ok(["show", name, "--body"]), "body of /conflict");
    let shown = cli.json(["show", &rejected, "--json"]);
    assert_eq!(shown["place"], "rejected");
    let in_place = format!("rejected/{}", shown["name"].as_str().unwrap());
    assert_eq!(cli.json(["show", &in_place, "--json"]), shown);
    let text = cli.ok(["show", &rejected]);
    for wanted in ["rejected, since ", "PUT /rejected", "text/plain", "422", "no such field"] {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
}

#[test]
fn conflicts_and_rejected_entries_are_listed_apart() {
    let empty = Cli::new();
    empty.send(&["PUT", "/waits"]);
    assert_eq!(empty.ok(["conflicts"]), "no conflicts\n");
    assert_eq!(empty.ok(["rejected"]), "nothing was rejected\n");
    assert_eq!(empty.ok(["conflicts", "--json"]), "[]\n");
    let (cli, [conflict, rejected, _]) = three_kinds();
    for (command, id, status, reason) in [
        ("conflicts", &conflict, 412, "somebody else changed it: your write was based on version"),
        ("rejected", &rejected, 422, "refused it"),
    ] {
        let listed = cli.json([command, "--json"]);
        assert_eq!(listed.as_array().unwrap().len(), 1, "{listed}");
        assert_eq!(listed[0]["entry"]["id"], json!(id));
        assert_eq!(listed[0]["reply"]["status"], json!(status));
        assert!(listed[0]["reason"].as_str().unwrap().contains(reason), "{listed}");
        assert!(listed[0]["since"].is_string(), "{listed}");
        let text = cli.ok([command]);
        assert!(text.contains(id.as_str()) && text.contains(reason), "{text}");
    }
}

#[test]
fn what_a_server_says_cannot_command_the_terminal() {
    let cli = Cli::new();
    let server = Upstream::start(|_| Reply::new(422).header("x-a", "\u{9b}2J").body("\u{1b}[2Jgone\u{7}"));
    let id = cli.send(&["PUT", "/x"]);
    let replayed = cli.run(["replay", "--upstream", &server.url()]);
    for text in [replayed.stdout, cli.ok(["show", &id]), cli.ok(["rejected"])] {
        assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
    }
}

#[test]
fn status_counts_and_its_exit_code_says_who_is_needed() {
    let cli = Cli::new();
    cli.ok(["drop", &cli.send(&["PUT", "/gone"])]);
    let status = cli.json(["status", "--json"]);
    let zero = json!({
        "pending": 0, "conflicts": 0, "rejected": 0, "corrupt": 0, "oldest": null, "replaying": false, "pid": null,
        "bytes": 0, "newer": 0, "max_bytes": null, "max_entries": null,
    });
    assert_eq!(status, zero);
    let id = cli.send(&["PUT", "/x"]);
    let ran = cli.run(["status", "--json"]);
    let status: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((ran.code, &status["pending"], &status["oldest"]["id"]), (3, &json!(1), &json!(id)));
    let (cli, _) = three_kinds();
    let ran = cli.run(["status", "--json"]);
    let status: Value = serde_json::from_str(&ran.stdout).unwrap();
    let counts = ["pending", "conflicts", "rejected", "corrupt"].map(|key| status[key].as_u64().unwrap());
    assert_eq!((ran.code, counts), (4, [1, 1, 1, 0]));
    let text = cli.run(["status"]);
    assert_eq!(text.code, 4);
    for wanted in ["1  pending", "outbox conflicts", "outbox rejected", "oldest: PUT /later", "outbox run"] {
        assert!(text.stdout.contains(wanted), "{wanted}: {text:?}");
    }
}

#[test]
fn retry_makes_entries_due_now_wherever_they_were() {
    let (cli, ids) = three_kinds();
    let server = Upstream::start(|_| 204);
    // Not yet due: a pass leaves it.
    assert_eq!(cli.replay(&server.url(), &[]).2["delivered"], json!(0));
    let mut args = vec!["retry"];
    args.extend(ids.iter().map(String::as_str));
    let printed = cli.ok(&args);
    assert_eq!(printed.lines().count(), 3, "{printed}");
    let (code, lines, _) = cli.replay(&server.url(), &[]);
    assert_eq!((code, lines.len()), (0, 3));
    let mut lines = server.lines();
    lines.sort();
    assert_eq!(lines, ["PUT /conflict", "PUT /later", "PUT /rejected"]);
    assert_eq!(cli.run(["status"]).code, 0);
}

#[test]
fn drop_removes_what_is_named_and_all_means_all_rejected_ones() {
    let (cli, [conflict, rejected, later]) = three_kinds();
    // Where the name says it is, and nowhere else.
    for elsewhere in ["rejected", "corrupt", "no/such"] {
        let ran = cli.run(["drop", &format!("{elsewhere}/{later}")]);
        assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{ran:?}");
    }
    let ran = cli.run(["drop", "18ea4ba277c322d7-873e00", &later]);
    assert_eq!((ran.code, ran.stdout.as_str()), (1, format!("{later}: dropped\n").as_str()), "{ran:?}");
    assert!(ran.stderr.contains("18ea4ba277c322d7-873e00"), "{ran:?}");
    let printed = cli.ok(["drop", "--all"]);
    assert!(printed.starts_with(&rejected) && printed.lines().count() == 1, "{printed}");
    assert_eq!(cli.run(["status"]).code, 4, "conflicts are not dropped by --all");
    cli.ok(["drop", &conflict]);
    assert_eq!(cli.run(["status"]).code, 0);
    assert_eq!(cli.tree(), ["rejected"]);
    assert_eq!(path(cli.root.path(), ".staging").read_dir().unwrap().count(), 0);
}

#[test]
fn keeping_mine_queues_the_write_again_on_top_of_the_servers_version() {
    let (cli, [conflict, ..]) = three_kinds();
    let resolved = cli.json(["resolve", &conflict, "--keep", "mine", "--json"]);
    let id = resolved["id"].as_str().unwrap();
    assert!(id > conflict.as_str());
    let server = Upstream::start(|_| 204);
    cli.replay(&server.url(), &[]);
    let seen = server.seen();
    assert_eq!(server.lines(), ["PUT /conflict"]);
    assert_eq!(seen[0].header("if-match"), Some("\"v9\""));
    assert_eq!(seen[0].header("content-type"), Some("text/plain"));
    assert_eq!(seen[0].body, b"body of /conflict");
    assert_eq!(cli.ok(["conflicts"]), "no conflicts\n");
}

#[test]
fn keeping_theirs_drops_the_write() {
    let (cli, [conflict, ..]) = three_kinds();
    let name = set_aside(cli.root.path(), "", &conflict).file_name().unwrap().to_str().unwrap().to_owned();
    assert_eq!(cli.ok(["resolve", &name, "--keep", "theirs"]), format!("dropped {name}\n"));
    assert_eq!(cli.ok(["conflicts"]), "no conflicts\n");
}

#[test]
fn a_conflict_without_a_known_version_cannot_be_put_on_top_and_stays() {
    let cli = Cli::new();
    let server = Upstream::start(|_| 412);
    let id = cli.send(&["PUT", "/x"]);
    cli.replay(&server.url(), &[]);
    let ran = cli.run(["resolve", &id, "--keep", "mine"]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains(&id) && ran.stderr.contains("named no version"), "{ran:?}");
    assert_eq!(cli.json(["conflicts", "--json"]).as_array().unwrap().len(), 1);
}

#[test]
fn verify_finds_damage_and_changes_nothing() {
    let cli = Cli::new();
    let [whole, changed, short] = ["/a", "/b", "/c"].map(|uri| {
        let sent = cli.run_with_stdin(&["send", "PUT", uri, "--body", "-"], b"body").expect(0);
        sent.trim_end().strip_prefix("queued ").unwrap().to_owned()
    });
    assert_eq!(cli.ok(["verify"]), "all is well\n");
    assert_eq!(cli.ok(["verify", "--json"]), "[]\n");
    std::fs::write(path(cli.root.path(), &changed).join("body.bin"), "BODY").unwrap();
    std::fs::write(path(cli.root.path(), &short).join("body.bin"), "bod").unwrap();
    std::fs::write(path(cli.root.path(), "stray.txt"), "").unwrap();
    let before = cli.tree();
    let ran = cli.run(["verify", "--json"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (4, ""));
    let found: Value = serde_json::from_str(&ran.stdout).unwrap();
    let reason = |name: &str| {
        let all = found.as_array().unwrap();
        all.iter().find(|f| f["name"] == json!(name)).map(|f| f["reason"].as_str().unwrap().to_owned())
    };
    assert!(reason(&changed).unwrap().contains("digest"), "{found}");
    assert!(reason(&short).unwrap().contains("3 bytes"), "{found}");
    assert!(reason("stray.txt").is_some() && reason(&whole).is_none(), "{found}");
    let text = cli.run(["verify"]);
    assert!(text.code == 4 && text.stdout.contains(&changed), "{text:?}");
    assert_eq!(cli.tree(), before);
}

#[test]
fn a_damaged_entry_can_be_looked_at_and_dropped() {
    let cli = Cli::new();
    let server = Upstream::start(|_| 204);
    let id = cli.send(&["PUT", "/x"]);
    std::fs::write(path(cli.root.path(), &id).join("meta.json"), "{").unwrap();
    let (code, lines, _) = cli.replay(&server.url(), &[]);
    assert_eq!((code, &lines[0]["outcome"]), (4, &json!("corrupt")));
    let shown = cli.json(["show", &id, "--json"]);
    assert_eq!((&shown["place"], &shown["entry"]), (&json!("corrupt"), &json!(null)));
    assert!(shown["reason"].as_str().unwrap().contains("meta.json"), "{shown}");
    assert_eq!(cli.run(["retry", &id]).code, 1);
    cli.ok(["drop", &id]);
    assert_eq!(cli.run(["status"]).code, 0);
    assert!(server.seen().is_empty());
}

#[test]
fn state_is_kept_beside_what_was_queued_and_not_in_it() {
    let (cli, [.., later]) = three_kinds();
    let entry = path(cli.root.path(), &later);
    let state = json(&entry.join("state.json"));
    assert_eq!((&state["attempts"], &state["last_error"]), (&json!(1), &json!("the server answered 503")));
    assert!(json(&entry.join("meta.json")).get("attempts").is_none());
}

#[test]
fn completions_name_every_command_and_bash_can_read_its_own() {
    let cli = Cli::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = cli.ok(["completions", shell]);
        for command in COMMANDS {
            assert!(script.contains(command), "{shell}: {command}");
        }
        if shell == "bash" && code(cli.clean("bash", ["--version"])) == Some(0) {
            let mut check = Command::new("bash");
            check.arg("-n");
            assert_eq!(feed(check, script.as_bytes()).expect(0), "");
        }
    }
    assert!(!path(cli.root.path(), "").exists(), "completions need no outbox");
}

#[test]
fn every_command_explains_itself() {
    let cli = Cli::new();
    for command in COMMANDS {
        let help = cli.ok([command, "--help"]);
        assert!(help.contains("Usage: outbox ") && help.len() > 120, "{command}: {help}");
        for line in help.lines() {
            assert!(line.chars().count() <= 100, "{command}: {line}");
        }
    }
    for command in ["run", "replay", "send", "show", "resolve", "completions"] {
        assert!(cli.ok([command, "--help"]).contains("Example"), "{command}");
    }
    let help = cli.ok(["--help"]);
    assert!(help.contains("Exit codes:") && help.contains("Examples:"), "{help}");
    assert!(COMMANDS.iter().all(|command| help.contains(command)), "{help}");
    assert!(cli.ok(["--version"]).starts_with("outbox 0."));
    assert!(cli.tree().is_empty());
}

/// The story has to be true: what the server has in the end is what was decided, on top of what it had.
#[test]
fn the_demo_tells_a_story_that_adds_up() {
    let told = Cli::new().run(["demo"]).expect(0);
    assert!(told.contains("\"milk is sold out\" becomes \"v3\""), "{told}");
    assert!(told.contains(r#"the server has version \"v3\" now"#), "{told}");
    assert!(told.contains("/notes/monday.txt    \"v4\"  \"buy milk, bread and tea\""), "{told}");
    assert_eq!(told.matches("delivered  ").count(), 4, "{told}");
}

#[test]
fn a_directory_without_an_outbox_is_no_outbox_in_which_all_is_well() {
    let cli = Cli::new();
    for command in ["list", "status", "verify", "conflicts", "rejected", "corrupt", "wake"] {
        let ran = cli.run([command]);
        assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{command}: {ran:?}");
        for text in ["there is no outbox in it", "--root", "OUTBOX_ROOT"] {
            assert!(ran.stderr.contains(text), "{command}: no {text:?} in {ran:?}");
        }
    }
    assert_eq!(std::fs::read_dir(cli.root.path()).unwrap().count(), 0, "one was made");
}

#[test]
fn what_cannot_be_read_is_in_the_list_and_shown_with_the_reason() {
    let cli = Cli::new();
    let ids = ["/a", "/b", "/c"].map(|uri| cli.send(&["PUT", uri]));
    std::fs::write(path(cli.root.path(), &ids[0]).join("meta.json"), "torn").unwrap();
    kit::edit_meta(cli.root.path(), &ids[1], |meta| meta["format"] = json!(2));
    let text = cli.ok(["list"]);
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines.len() == 2 && lines[0].starts_with(&ids[2]), "{text}");
    assert!(lines[1].starts_with("2 that cannot be read") && lines[1].contains("outbox verify"), "{text}");
    for (id, reason) in [(&ids[0], "meta.json"), (&ids[1], "it has format 2")] {
        let shown = cli.json(["show", id, "--json"]);
        assert_eq!((&shown["place"], &shown["entry"]), (&json!("pending"), &json!(null)));
        assert!(shown["reason"].as_str().unwrap().contains(reason), "{shown}");
    }
}

#[test]
fn what_is_damaged_is_shown_with_the_reason() {
    let cli = Cli::new();
    assert!(!cli.ok(["drop", &cli.send(&["PUT", "/gone"])]).is_empty());
    assert_eq!(cli.ok(["corrupt"]), "nothing is corrupt\n");
    let ids = ["/a", "/b"].map(|uri| cli.send(&["PUT", uri]));
    std::fs::write(path(cli.root.path(), &ids[0]).join("meta.json"), "torn").unwrap();
    std::fs::write(path(cli.root.path(), &ids[1]).join("body.bin"), "longer").unwrap();
    let ran = cli.run(["replay", "--upstream", &ReservedPort::new().url()]);
    // Of the first, neither method nor path is known.
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert!(lines[0].starts_with(&format!("corrupt    {}: ", ids[0])), "{ran:?}");
    assert!(lines[1].starts_with(&format!("corrupt    {}  PUT /b: ", ids[1])), "{ran:?}");
    assert_eq!((ran.code, lines.last()), (4, Some(&"2 corrupt kept: see 'outbox corrupt'")), "{ran:?}");
    let status = cli.run(["status"]);
    assert!(status.stdout.contains("2  corrupt (see 'outbox corrupt')"), "{status:?}");
    let shown = cli.ok(["corrupt"]);
    assert!(ids.iter().all(|id| shown.contains(id)) && shown.contains("PUT /b"), "{shown}");
    let items = cli.json(["corrupt", "--json"]);
    for (item, id) in items.as_array().unwrap().iter().zip(&ids) {
        assert!(item["name"].as_str().unwrap().starts_with(id) && item["reason"].is_string(), "{items}");
    }
    assert_eq!(items.as_array().unwrap().len(), 2);
}

#[cfg(unix)]
#[test]
fn who_looks_changes_no_mode() {
    use std::os::unix::fs::PermissionsExt;
    let cli = Cli::new();
    cli.send(&["PUT", "/a"]);
    let dir = path(cli.root.path(), "");
    std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o750)).unwrap();
    for (command, code) in [("list", 0), ("status", 3), ("verify", 0)] {
        cli.run([command]).expect(code);
        let mode = std::fs::metadata(&dir).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o750, "{command}");
    }
}

#[test]
fn retry_and_drop_say_what_they_did_also_in_json() {
    let (cli, [_, rejected, later]) = three_kinds();
    let said = cli.json(["retry", "--all", "--json"]);
    assert!(said["name"].as_str().unwrap().starts_with(&rejected) && said["done"] == "due now", "{said}");
    assert_eq!(cli.ok(["retry", "--all"]), "nothing was rejected\n");
    assert_eq!(cli.ok(["drop", "--all", "--json"]), "");
    assert_eq!(cli.json(["drop", &later, "--json"]), json!({ "name": later, "done": "dropped" }));
}

#[test]
fn what_is_on_disk_cannot_command_the_terminal() {
    let cli = Cli::new();
    let id = cli.send(&["PUT", "/a"]);
    cli.replay(&ReservedPort::new().url(), &[]);
    let file = path(cli.root.path(), &format!("{id}/state.json"));
    let mut state = json(&file);
    state["last_error"] = json!("\u{1b}[2Jgone");
    state["not_before"] = json!("\u{1b}[2Jsoon");
    std::fs::write(&file, serde_json::to_vec(&state).unwrap()).unwrap();
    edit_meta(cli.root.path(), &id, |meta| meta["queued_at"] = json!("\u{1b}[2Jlong ago"));
    for (command, waits) in [("list", true), ("status", false), ("show", true)] {
        let args = [command, &id];
        let ran = cli.run(&args[..if command == "show" { 2 } else { 1 }]);
        assert!(!ran.stdout.contains('\u{1b}'), "{ran:?}");
        for (said, there) in [("gone", true), ("long ago", true), ("soon", waits)] {
            assert_eq!(ran.stdout.contains(&format!("\u{fffd}[2J{said}")), there, "{said}: {ran:?}");
        }
    }
}
