//! Options of `run` and `replay` that are handed on to the outbox: what each of them changes.

use crate::cli::{Cli, Ran};
use crate::kit;
use crate::sandbox::Authority;
use crate::upstream::{Act, Reply, Upstream};
use serde_json::json;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Replays a write of each path with these options; the outcomes and the report.
fn replayed(server: &Upstream, uris: &[&str], args: &[&str]) -> (Vec<serde_json::Value>, serde_json::Value) {
    let cli = Cli::new();
    for uri in uris {
        cli.send(&["PUT", uri]);
    }
    let (_, outcomes, report) = cli.replay(&server.url(), args);
    (outcomes, report)
}

#[test]
fn in_strict_order_one_write_that_is_put_off_holds_all_others_back() {
    for (args, sent) in [
        (&[][..], &["PUT /a", "PUT /b"][..]),
        (&["--order", "path"], &["PUT /a", "PUT /b"]),
        (&["--order", "strict"], &["PUT /a"]),
    ] {
        let server = Upstream::start(|seen| if seen.target == "/a" { 503 } else { 204 });
        let (_, report) = replayed(&server, &["/a", "/b"], args);
        assert_eq!(server.lines(), sent, "{args:?}: {report}");
    }
}

#[test]
fn a_success_without_the_header_that_is_expected_is_none() {
    for (args, outcome) in [
        (&[][..], "delivered"),
        (&["--expect-header", "X-Served-By: dav7"], "delivered"),
        (&["--expect-header", "X-Served-By: dav8"], "deferred"),
    ] {
        let server = Upstream::start(|_| Reply::new(204).header("X-Served-By", "dav7"));
        let (outcomes, report) = replayed(&server, &["/a"], args);
        assert_eq!(outcomes[0]["outcome"], outcome, "{args:?}: {report}");
    }
}

#[test]
fn the_originals_profile_drops_what_is_refused_unless_it_is_told_otherwise() {
    let original = ["--profile", "original"];
    for (args, outcomes) in [
        (&[][..], ["rejected", "held"]),
        (&original, ["dropped", "dropped"]),
        // Want of credentials is a refusal like any other there.
        (&[&original[..], &["--rejected", "keep"]].concat(), ["rejected", "rejected"]),
        (&[&original[..], &["--auth", "hold"]].concat(), ["dropped", "held"]),
    ] {
        let server = Upstream::start(|seen| if seen.target == "/a" { 422 } else { 401 });
        let (found, report) = replayed(&server, &["/a", "/b"], args);
        let found: Vec<_> = found.iter().map(|line| line["outcome"].as_str().unwrap()).collect();
        assert_eq!(found, outcomes, "{args:?}: {report}");
    }
}

#[test]
fn a_certificate_authority_is_trusted_that_is_named() {
    let dir = kit::root();
    let authority = Authority::new();
    let file = authority.file(dir.path());
    let config = Arc::new(authority.config("127.0.0.1", |_| {}));
    let server = Upstream::start_tls(config, |_| Act::from(204));
    let (outcomes, report) = replayed(&server, &["/a"], &["--ca", file.to_str().unwrap()]);
    assert_eq!(outcomes[0]["outcome"], "delivered", "{report}");
    let cli = Cli::new();
    cli.send(&["PUT", "/a"]);
    let ran = cli.run(["replay", "--upstream", &server.url()]);
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(ran.stdout.contains("the server's certificate is not trusted"), "{ran:?}");
    assert!(ran.stderr.contains("UnknownIssuer") && ran.stderr.contains("--ca"), "{ran:?}");
}

#[test]
fn a_transfer_that_pauses_for_longer_than_it_may_is_cut() {
    let server = Upstream::start(|_| Act::Stall);
    let started = Instant::now();
    let (outcomes, report) = replayed(&server, &["/a"], &["--idle-timeout", "0.5"]);
    assert_eq!((&outcomes[0]["outcome"], &report["upstream"]), (&json!("deferred"), &json!("down")));
    assert!((Duration::from_millis(500)..Duration::from_secs(40)).contains(&started.elapsed()));
}

/// Whether compiled code was put there.
fn is_filled(dir: &Path) -> bool {
    dir.read_dir().is_ok_and(|mut entries| entries.next().is_some())
}

#[test]
fn compiled_code_is_kept_also_in_a_directory_with_a_relative_name() {
    let cli = Cli::new();
    cli.send(&["PUT", "/a"]);
    let mut command = cli.command(["list"]);
    let ran =
        Ran::from(command.env("OUTBOX_CACHE_DIR", "compiled").current_dir(cli.root.path()).output().unwrap());
    assert!(ran.expect(0).contains("/a"));
    assert!(is_filled(&cli.root.path().join("compiled")));
}

#[test]
fn that_compiled_code_cannot_be_kept_is_told_with_the_remedy() {
    let cli = Cli::new();
    cli.send(&["PUT", "/a"]);
    // One that cannot be made, and one in which nothing can be written, whoever tries.
    let occupied = cli.root.path().join("occupied");
    std::fs::create_dir(&occupied).unwrap();
    std::fs::write(occupied.join("modules"), "mine").unwrap();
    for named in [Some("/proc/compiled"), occupied.to_str(), None, Some("")] {
        let mut command = cli.command(["list"]);
        match named {
            Some(dir) => command.env("OUTBOX_CACHE_DIR", dir),
            None => ["OUTBOX_CACHE_DIR", "HOME", "XDG_CACHE_HOME", "LOCALAPPDATA"]
                .into_iter()
                .fold(&mut command, |command, name| command.env_remove(name)),
        };
        let ran = Ran::from(command.output().unwrap());
        assert!(ran.code == 0 && ran.stdout.contains("/a"), "{ran:?}");
        let said = ran.stderr.contains("WARN") && ran.stderr.contains("OUTBOX_CACHE_DIR");
        assert_eq!(
            (said, ran.stderr.lines().count()),
            (named != Some(""), usize::from(said)),
            "{named:?}: {ran:?}"
        );
        assert!(named.is_none_or(|dir| ran.stderr.contains(dir)), "{named:?}: {ran:?}");
    }
}
