//! What cannot be done: one or two lines that name the value and the remedy, the right exit code, and nothing
//! left on disk.

use crate::cli::{Cli, Ran};
use crate::kit;
use std::path::Path;

/// What a message must have in it.
fn check(ran: &Ran, code: i32, wanted: &[&str], what: &str) {
    assert_eq!(ran.code, code, "{what}: {ran:?}");
    assert_eq!(ran.stdout, "", "{what}: {ran:?}");
    // clap's own messages add the usage line and a hint.
    let lines: Vec<&str> = ran.stderr.lines().filter(|line| !line.trim().is_empty()).collect();
    let most = if ran.stderr.contains("For more information, try '--help'") { 4 } else { 2 };
    assert!(lines.len() <= most && lines[0].starts_with("error: "), "{what}: {ran:?}");
    for text in wanted {
        assert!(ran.stderr.contains(text), "{what}: no {text:?} in {ran:?}");
    }
}

/// No entry, and nothing half-written.
fn check_empty(root: &Path, what: &str) {
    let dir = root.join(kit::OUTBOX_DIR);
    if dir.exists() {
        assert!(kit::tree(root).is_empty(), "{what}: {:?}", kit::tree(root));
        let staging = dir.join(".staging");
        assert!(
            !staging.exists() || staging.read_dir().unwrap().next().is_none(),
            "{what}: .staging is not empty"
        );
    }
}

#[test]
fn a_write_that_cannot_be_queued_is_refused_by_name_and_leaves_nothing() {
    const USE: &str = "use one of PUT";
    let cases: &[(&[&str], &[&str])] = &[
        (&["put", "/x"], &["method \"put\"", "use PUT"]),
        (&["FROB", "/x"], &["method \"FROB\"", USE]),
        (&["GET", "/x"], &["method \"GET\"", USE]),
        (&["CONNECT", "/x"], &["method \"CONNECT\"", USE]),
        (&["P T", "/x"], &["method \"P T\"", "token"]),
        (&["PUT\r\nX: y", "/x"], &["method \"PUT\\r\\nX: y\"", "token"]),
        (&["", "/x"], &["method", "token"]),
        (&["PUT", ""], &["URI", "starts with '/'"]),
        (&["PUT", "x"], &["URI \"x\"", "starts with '/'"]),
        (&["PUT", "http://other.test/x"], &["URI \"http://other.test/x\"", "starts with '/'"]),
        (&["PUT", "other.test:80"], &["URI \"other.test:80\"", "starts with '/'"]),
        (&["PUT", "@other.test/x"], &["URI \"@other.test/x\"", "starts with '/'"]),
        (&["PUT", "*"], &["URI \"*\"", "starts with '/'"]),
        (&["PUT", "//other.test/x"], &["URI \"//other.test/x\"", "start it with one"]),
        (&["PUT", "/a\r\nHost: x"], &["URI \"/a\\r\\nHost: x\"", "percent-encode"]),
        (&["PUT", "/a\u{7f}"], &["URI", "percent-encode"]),
        (&["PUT", "/a\u{85}"], &["URI", "percent-encode"]),
        (&["PUT", "/a#b"], &["URI \"/a#b\"", "%23"]),
        (&["PUT", "/a\\b"], &["URI \"/a\\\\b\"", "%5C"]),
        (&["PUT", "/x", "--header", "X-A"], &["header \"X-A\"", "'Name: value'"]),
        (&["PUT", "/x", "--header", "X A: b"], &["header \"X A\"", "token"]),
        (&["PUT", "/x", "--header", ": b"], &["header", "token"]),
        (&["PUT", "/x", "--header", "X-A: b\r\nX-B: c"], &["header \"b\\r\\nX-B: c\"", "control characters"]),
        (&["PUT", "/x", "--content-type", "a\nb"], &["content type \"a\\nb\"", "control characters"]),
        (
            &["PUT", "/x", "--base-mod-time", "yesterday"],
            &["base mod time \"yesterday\"", "2026-05-01T10:00:00Z"],
        ),
        (&["PUT", "/x", "--base-mod-time", "2024-05-01"], &["\"2024-05-01\"", "RFC 3339"]),
        (&["PUT", "/x", "--base-mod-time", "2024-05-01T10:00:00"], &["offset"]),
        (&["PUT", "/x", "--base-etag", "v1"], &["ETag \"v1\"", "quoted"]),
        (&["PUT", "/x", "--base-etag", "*"], &["ETag \"*\"", "quoted"]),
        (&["PUT", "/x", "--base-etag", "W/\"v1\""], &["ETag \"W/\\\"v1\\\"\"", "weak", "modification time"]),
        (&["PUT", "/x", "--create", "--base-etag", "\"v1\""], &["--create", "--base-etag"]),
        (
            &["PUT", "/x", "--create", "--base-mod-time", "2024-05-01T10:00:00Z"],
            &["--create", "--base-mod-time"],
        ),
        (&["PUT", "/x", "--frob"], &["--frob"]),
        (&["PUT"], &["<URI>"]),
        (&["PUT", "/x", "/y"], &["/y"]),
        (&["PUT", "/x", "--max-body", "many"], &["--max-body", "many"]),
        (&["PUT", "/x", "--durability", "some"], &["--durability", "some", "full"]),
    ];
    let cli = Cli::new();
    for (args, wanted) in cases {
        let ran = cli.run(["send"].iter().chain(*args));
        check(&ran, 2, wanted, &format!("{args:?}"));
        check_empty(cli.root.path(), &format!("{args:?}"));
    }
}

#[test]
fn headers_of_the_connection_of_credentials_and_of_framing_are_refused() {
    let cli = Cli::new();
    for (header, wanted) in [
        ("Authorization: Bearer s3cret", "--bearer-env"),
        ("cookie: a=s3cret", "--bearer-env"),
        ("Proxy-Authorization: Basic s3cret", "--bearer-env"),
        ("Connection: close", "connection"),
        ("Keep-Alive: 5", "connection"),
        ("TE: trailers", "connection"),
        ("Trailer: X", "connection"),
        ("Transfer-Encoding: chunked", "connection"),
        ("Upgrade: h2c", "connection"),
        ("Host: other.test", "target"),
        ("content-length: 3", "framing"),
        ("Content-Range: bytes 0-1/2", "framing"),
        ("Expect: 100-continue", "framing"),
        ("If-Match: *", "base-etag"),
        ("If-None-Match: *", "or create"),
        ("If-Unmodified-Since: Wed, 01 May 2024 08:00:00 GMT", "base-mod-time"),
        ("Content-Type: text/plain", "give it as content-type"),
        ("Idempotency-Key: 1", "replay sets it"),
    ] {
        let ran = cli.run(["send", "PUT", "/x", "--header", header]);
        let name = header.split(':').next().unwrap();
        check(&ran, 2, &[&format!("header \"{name}\""), wanted], header);
        assert!(!ran.stderr.contains("s3cret"), "{ran:?}");
        check_empty(cli.root.path(), header);
    }
}

#[test]
fn a_body_that_cannot_be_taken_is_refused_and_nothing_of_it_stays() {
    let cli = Cli::new();
    let send = |body: &str| cli.run(["send", "PUT", "/x", "--max-body", "1000", "--body", body]);
    let large = cli.root.path().join("large");
    std::fs::write(&large, vec![b'x'; 100_000]).unwrap();
    let limit = ["1000 bytes", "--max-body", "OUTBOX_MAX_BODY"];
    check(&send(large.to_str().unwrap()), 1, &limit, "too large");
    let piped = ["send", "PUT", "/x", "--max-body", "1000", "--body", "-"];
    check(&cli.run_with_stdin(&piped, &[b'x'; 1001]), 1, &limit, "too large from stdin");
    let missing = cli.root.path().join("missing");
    check(&send(missing.to_str().unwrap()), 1, &[missing.to_str().unwrap(), "No such file"], "missing");
    let dir = cli.root.path().to_str().unwrap();
    check(&send(dir), 1, &[dir, "is a directory", "stdin"], "a directory");
    // A file that opens and then fails to read.
    check(&send("/proc/self/mem"), 1, &["body", "cannot be read"], "unreadable");
    check_empty(cli.root.path(), "bodies");
}

#[test]
fn a_root_that_cannot_be_used_is_named_by_every_command() {
    let cli = Cli::new();
    let file = cli.root.path().join("file");
    std::fs::write(&file, "mine").unwrap();
    let below = file.join("below");
    let occupied = cli.root.path().join("occupied");
    std::fs::create_dir(&occupied).unwrap();
    std::fs::write(occupied.join(kit::OUTBOX_DIR), "mine").unwrap();
    for (root, wanted) in [
        (file.to_str().unwrap(), "--root"),
        (below.to_str().unwrap(), "--root"),
        // Root may write nearly everywhere, but not here.
        ("/proc/outbox", "--root"),
        (occupied.to_str().unwrap(), "not a directory"),
    ] {
        for command in [
            vec!["send", "PUT", "/x"],
            vec!["list"],
            vec!["status"],
            vec!["replay", "--upstream", "http://127.0.0.1:9"],
            vec!["run", "--upstream", "http://127.0.0.1:9"],
        ] {
            let ran = cli.run(command.iter().chain(&["--root", root]));
            check(&ran, 1, &[root, wanted], &format!("{command:?} {root}"));
        }
    }
    assert_eq!(std::fs::read(&file).unwrap(), b"mine");
    assert_eq!(std::fs::read(occupied.join(kit::OUTBOX_DIR)).unwrap(), b"mine");
}

#[test]
fn an_upstream_that_cannot_be_used_is_refused_without_showing_a_password() {
    let cli = Cli::new();
    let id = cli.send(&["PUT", "/x"]);
    let cases: &[(&str, &[&str])] = &[
        ("", &["--upstream or OUTBOX_UPSTREAM"]),
        ("example.org", &["\"example.org\"", "https://example.org"]),
        ("/x", &["\"/x\"", "https://example.org"]),
        ("ftp://example.org", &["\"ftp://example.org\"", "https://example.org"]),
        ("http://", &["\"http://\"", "https://example.org"]),
        ("http:///x", &["\"http:///x\"", "https://example.org"]),
        ("http://example.org:99999", &["\"http://example.org:99999\"", "https://example.org"]),
        ("http://a b", &["\"http://a b\"", "https://example.org"]),
        ("http://example.org/?x=1", &["\"http://example.org/?x=1\"", "query"]),
        ("http://example.org/#x", &["\"http://example.org/#x\"", "fragment"]),
        ("http://me:s3cret@example.org/", &["credentials", "--bearer-env"]),
        ("http://s3cret@example.org/", &["credentials", "--bearer-env"]),
        ("me:s3cret@example.org", &["https://example.org"]),
        ("http:/me:s3cret@example.org", &["https://example.org"]),
    ];
    for (url, wanted) in cases {
        for command in ["replay", "run"] {
            let ran = cli.run([command, "--upstream", url]);
            check(&ran, 2, &["upstream"], url);
            check(&ran, 2, wanted, url);
            assert!(!ran.stderr.contains("s3cret"), "{ran:?}");
            let mut from_env = cli.command([command]);
            let output = from_env.env("OUTBOX_UPSTREAM", url).output().unwrap();
            assert_eq!(output.status.code(), Some(2), "{command} {url}");
            assert!(!String::from_utf8_lossy(&output.stderr).contains("s3cret"), "{output:?}");
        }
    }
    for command in ["replay", "run"] {
        check(&cli.run([command]), 2, &["upstream", "--upstream", "OUTBOX_UPSTREAM"], "none");
    }
    // Nothing was tried.
    assert_eq!(cli.tree(), [id.clone(), format!("{id}/body.bin"), format!("{id}/meta.json")]);
}

#[test]
fn options_of_replay_and_run_that_cannot_be_used_are_named() {
    let cli = Cli::new();
    let garbage = cli.root.path().join("garbage.pem");
    std::fs::write(&garbage, "no certificate").unwrap();
    let empty = cli.root.path().join("empty");
    std::fs::write(&empty, "\n").unwrap();
    let lines = cli.root.path().join("lines");
    std::fs::write(&lines, "s3cret\nsecond").unwrap();
    let missing = cli.root.path().join("missing");
    let [garbage, empty, lines, missing] = [&garbage, &empty, &lines, &missing].map(|p| p.to_str().unwrap());
    let cases: &[(&[&str], &[&str])] = &[
        (&["--bearer-env", "OUTBOX_NO_SUCH"], &["\"OUTBOX_NO_SUCH\"", "not set"]),
        (&["--bearer-file", missing], &[missing, "No such file"]),
        (&["--bearer-file", empty], &[empty, "empty"]),
        (&["--bearer-file", lines], &[lines, "characters"]),
        (&["--bearer-file", empty, "--bearer-env", "PATH"], &["--bearer-file", "--bearer-env"]),
        (&["--ca", missing], &[missing, "No such file"]),
        (&["--ca", garbage], &[garbage, "no certificate"]),
        (&["--concurrency", "0"], &["--concurrency", "0", "1..=256"]),
        (&["--concurrency", "257"], &["--concurrency", "257"]),
        (&["--idle-timeout", "-1"], &["-1"]),
        (&["--idle-timeout", "never"], &["--idle-timeout", "never", "number of seconds"]),
        (&["--expect-header", ""], &["--expect-header", "Name: value"]),
        (&["--rejected", "maybe"], &["--rejected", "maybe", "keep", "drop"]),
        (&["--auth", "keep"], &["--auth", "keep", "hold", "drop"]),
        (&["--frob"], &["--frob"]),
    ];
    for (args, wanted) in cases {
        for command in ["replay", "run"] {
            let ran = cli.run([command, "--upstream", "https://127.0.0.1:9"].iter().chain(*args));
            check(&ran, 2, wanted, &format!("{command} {args:?}"));
            assert!(!ran.stderr.contains("s3cret"), "{ran:?}");
        }
    }
}

#[test]
fn other_commands_name_what_they_cannot_use() {
    let cli = Cli::new();
    let id = cli.send(&["PUT", "/x"]);
    let nobody = "18ea4ba277c322d7-873e00";
    let cases: &[(&[&str], i32, &[&str])] = &[
        (&["frob"], 2, &["frob"]),
        (&["show"], 2, &["<ID>"]),
        (&["show", nobody], 1, &[nobody, "outbox list"]),
        (&["show", "../../etc/passwd"], 1, &["../../etc/passwd"]),
        (&["show", nobody, "--body"], 1, &[nobody]),
        (&["show", nobody, "--body", "--json"], 2, &["--body", "--json"]),
        (&["retry"], 2, &["ID"]),
        (&["drop"], 2, &["ID"]),
        (&["drop", nobody], 1, &[nobody]),
        (&["drop", "--all", nobody], 2, &["--all"]),
        (&["retry", nobody], 1, &[nobody]),
        (&["resolve", nobody], 2, &["--keep"]),
        (&["resolve", nobody, "--keep", "both"], 2, &["both", "mine", "theirs"]),
        (&["resolve", nobody, "--keep", "mine"], 1, &[nobody]),
        (&["resolve", &id, "--keep", "mine"], 1, &[&id, "no conflict"]),
        (&["wake"], 1, &["outbox run"]),
        (&["completions", "cobol"], 2, &["cobol", "bash"]),
        (&["list", "--component", "/nowhere.wasm"], 1, &["/nowhere.wasm", "No such file"]),
        (&["list", "--component", "/dev/null"], 1, &["component"]),
    ];
    for (args, code, wanted) in cases {
        check(&cli.run(*args), *code, wanted, &format!("{args:?}"));
    }
    assert_eq!(cli.tree().len(), 3);
}

#[test]
fn an_empty_variable_is_like_none() {
    let cli = Cli::new();
    let names = [
        "OUTBOX_ROOT",
        "OUTBOX_MAX_BYTES",
        "OUTBOX_MAX_ENTRIES",
        "OUTBOX_MAX_BODY",
        "OUTBOX_DURABILITY",
        "OUTBOX_UPSTREAM",
        "OUTBOX_CONCURRENCY",
        "OUTBOX_ORDER",
        "OUTBOX_COALESCE",
        "OUTBOX_CA",
    ];
    let root = cli.root.path().to_str().unwrap();
    cli.send(&["PUT", "/x"]);
    for args in [&["send", "PUT", "/x"][..], &["replay", "--upstream", "http://127.0.0.1:9"]] {
        let mut command = cli.command(args.iter().chain(&["--root", root]));
        command.envs(names.map(|name| (name, "")));
        let ran = crate::cli::Ran::from(command.output().unwrap());
        assert!(ran.code != 2 && ran.stderr.is_empty(), "{ran:?}");
    }
    let mut command = cli.command(["status"]);
    command.env("OUTBOX_ROOT", "").current_dir(cli.root.path());
    assert!(crate::cli::Ran::from(command.output().unwrap()).stderr.contains("./outbox-data"));
}

#[test]
fn who_reads_may_go_away() {
    let cli = Cli::new();
    let gone = || std::io::pipe().unwrap().1;
    let demo = cli.command(["demo"]).stdout(gone()).output().unwrap();
    assert_eq!((demo.status.code(), String::from_utf8(demo.stderr).unwrap()), (Some(0), String::new()));
    for (args, code) in [(["show", "nothing"], 1), (["send", "PUT"], 2)] {
        assert_eq!(cli.command(args).stderr(gone()).status().unwrap().code(), Some(code), "{args:?}");
    }
}
