//! Damage on disk: a damaged entry harms only itself, is kept with the reason, and what is not ours is left alone.

use crate::cli::{Cli, Ran, parse};
use crate::kit::{builder, edit_meta, json, open, path, replay, root, send, set_aside, tree};
use crate::upstream::{Reply, Upstream};
use outbox_host::{Limits, Outbox, Outcome, Place};
use std::fs::{self, File, FileTimes, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Something that happens to a queued entry: what to call it, and what is done to its directory.
pub type Damage = (&'static str, Box<dyn Fn(&Path)>);

/// A [`Damage`].
pub fn damage(name: &'static str, to: impl Fn(&Path) + 'static) -> Damage {
    (name, Box::new(to))
}

/// Damages one entry in each of these ways, and others not at all. Every damaged entry must be set aside with a
/// reason and never reach the server whole; all others must arrive.
pub async fn assert_each_is_set_aside_alone(root: &Path, cases: Vec<Damage>) {
    let server = Upstream::start(|_| 204);
    let outbox = open(root, &server.url());
    send(&outbox, "PUT", "/sound/first", "sound").await;
    let mut ids = Vec::new();
    for (n, (_, harm)) in cases.iter().enumerate() {
        let id = send(&outbox, "PUT", &format!("/damaged/{n}"), "0123456789").await;
        harm(&path(root, &id));
        ids.push(id);
    }
    send(&outbox, "PUT", "/sound/last", "sound").await;
    let found = outbox.verify().await.unwrap().into_iter().map(|finding| finding.name).collect::<Vec<_>>();

    let (report, deliveries) = replay(&outbox).await;
    assert_eq!((report.delivered, report.remaining), (2, 0), "{deliveries:?}");
    assert_eq!(report.corrupt, cases.len() as u64, "{deliveries:?}");
    for (id, (name, _)) in ids.iter().zip(&cases) {
        let said = deliveries.iter().find(|d| d.id == *id).unwrap();
        assert_eq!(said.outcome, Outcome::Corrupt, "{name}");
        let kept = set_aside(root, "corrupt", id);
        let reason = fs::read_to_string(kept.join("reason.txt")).unwrap();
        assert_eq!(reason.trim_end(), said.detail.as_deref().unwrap(), "{name}");
        assert!(!reason.trim().is_empty(), "{name}");
        assert!(found.contains(id), "verify did not find {name}: {found:?}");
        let item = outbox.get(id).await.unwrap();
        assert_eq!((item.place, item.reason.as_deref()), (Place::Corrupt, Some(reason.trim_end())), "{name}");
    }
    let whole: Vec<String> = server.seen().into_iter().filter(|s| s.complete).map(|s| s.target).collect();
    assert_eq!(whole, ["/sound/first", "/sound/last"]);
    // The paths are free again.
    for n in 0..cases.len() {
        send(&outbox, "PUT", &format!("/damaged/{n}"), "mended").await;
    }
    assert_eq!(replay(&outbox).await.0.delivered, cases.len() as u64);
}

fn meta_is(name: &'static str, content: impl AsRef<[u8]> + 'static) -> Damage {
    damage(name, move |entry| fs::write(entry.join("meta.json"), &content).unwrap())
}

#[tokio::test]
async fn a_body_that_is_not_what_was_queued_is_set_aside_and_never_delivered() {
    let body = |name, change: fn(&Path)| damage(name, move |entry| change(&entry.join("body.bin")));
    let cases = vec![
        body("missing", |body| fs::remove_file(body).unwrap()),
        body("short", |body| fs::write(body, "012345678").unwrap()),
        body("empty", |body| fs::write(body, "").unwrap()),
        body("long", |body| OpenOptions::new().append(true).open(body).unwrap().write_all(b"x").unwrap()),
        body("first byte flipped", |body| fs::write(body, "1123456789").unwrap()),
        body("last byte flipped", |body| fs::write(body, "0123456788").unwrap()),
        body("a directory", |body| {
            fs::remove_file(body).unwrap();
            fs::create_dir(body).unwrap();
        }),
    ];
    assert_each_is_set_aside_alone(root().path(), cases).await;
}

#[tokio::test]
async fn a_flipped_byte_in_a_large_body_never_arrives_whole() {
    let (root, server) = (root(), Upstream::start(|_| 204));
    let outbox = open(root.path(), &server.url());
    let mut bytes = vec![7; 3_000_000];
    let large = outbox_host::Write::new("PUT", "/large");
    let id = outbox.enqueue_write(large, bytes.clone().into()).await.unwrap();
    send(&outbox, "PUT", "/other", "x").await;
    bytes[10] ^= 1;
    fs::write(path(root.path(), &format!("{id}/body.bin")), &bytes).unwrap();
    let (report, _) = replay(&outbox).await;
    assert_eq!((report.corrupt, report.delivered, report.remaining), (1, 1, 0));
    assert!(server.seen().iter().all(|seen| seen.target == "/other" || !seen.complete));
    assert_eq!(fs::read(set_aside(root.path(), "corrupt", &id).join("body.bin")).unwrap(), bytes);
}

#[tokio::test]
async fn a_record_that_cannot_be_read_is_set_aside() {
    let nested = "[".repeat(200_000);
    let deep = format!("{{\"id\": {}", "{\"a\":".repeat(200_000));
    let mut garbage = vec![b'x'; 2 * 1024 * 1024];
    garbage[0] = b'{';
    let directory = |file: &'static str| {
        move |entry: &Path| {
            let _ = fs::remove_file(entry.join(file));
            fs::create_dir(entry.join(file)).unwrap();
        }
    };
    let cases = vec![
        meta_is("empty", ""),
        meta_is("truncated", "{\"id\": \"18ea4ba2"),
        meta_is("no UTF-8", b"{\"id\": \"\xff\xfe\"}"),
        meta_is("NULs", [0; 512]),
        meta_is("nested", nested),
        meta_is("deep", deep),
        meta_is("garbage", garbage),
        meta_is("another type", "[1, 2, 3]"),
        meta_is("null", "null"),
        meta_is("no keys", "{}"),
        damage("meta.json is a directory", directory("meta.json")),
        damage("state.json is garbage", |entry| fs::write(entry.join("state.json"), "\u{0}{").unwrap()),
        damage("state.json is another type", |entry| fs::write(entry.join("state.json"), "7").unwrap()),
        damage("state.json is a directory", directory("state.json")),
        damage("the entry is a file", |entry| {
            fs::remove_dir_all(entry).unwrap();
            fs::write(entry, "surprise").unwrap();
        }),
    ];
    assert_each_is_set_aside_alone(root().path(), cases).await;
}

#[cfg(unix)]
#[tokio::test]
async fn links_in_place_of_files_and_entries_are_set_aside_and_not_followed() {
    use std::os::unix::fs::symlink;
    let parent = root();
    let root = parent.path().join("root");
    let secret = parent.path().join("secret");
    fs::write(&secret, "0123456789").unwrap();
    let (outside, inside) = (parent.path().join("entries"), root.join("entries"));
    fs::create_dir_all(&outside).unwrap();
    fs::create_dir_all(&inside).unwrap();
    let link = |file: &'static str, to: &Path| {
        let to = to.to_owned();
        move |entry: &Path| {
            let _ = fs::remove_file(entry.join(file));
            symlink(&to, entry.join(file)).unwrap();
        }
    };
    // The whole entry is elsewhere, under its own name, and sound.
    let moved = |to: &Path| {
        let to = to.to_owned();
        move |entry: &Path| {
            let there = to.join(entry.file_name().unwrap());
            fs::rename(entry, &there).unwrap();
            symlink(&there, entry).unwrap();
        }
    };
    let relative = |entry: &Path| {
        let name = entry.file_name().unwrap();
        fs::rename(entry, entry.parent().unwrap().parent().unwrap().join("entries").join(name)).unwrap();
        symlink(Path::new("../entries").join(name), entry).unwrap();
    };
    let cases = vec![
        damage("body.bin links to a file outside with the same content", link("body.bin", &secret)),
        damage("body.bin links to nothing", link("body.bin", Path::new("nothing"))),
        damage("meta.json links outside", link("meta.json", &secret)),
        damage("meta.json links to a sibling", link("meta.json", Path::new("body.bin"))),
        damage("state.json links outside", link("state.json", &secret)),
        damage("the entry links outside", moved(&outside)),
        damage("the entry links elsewhere in ROOT", relative),
    ];
    assert_each_is_set_aside_alone(&root, cases).await;
    assert_eq!(fs::read(&secret).unwrap(), b"0123456789");
    for elsewhere in [outside, inside] {
        let entry = fs::read_dir(elsewhere).unwrap().next().unwrap().unwrap().path();
        assert!(entry.join("meta.json").exists() && entry.join("body.bin").exists());
    }
}

#[tokio::test]
async fn an_id_that_is_not_the_directorys_name_removes_nothing() {
    let parent = root();
    let root = parent.path().join("root");
    let victims = [parent.path().join("victim"), root.join("victim"), root.join(".zddc-outbox/victim")];
    for victim in &victims {
        fs::create_dir_all(victim.join("precious")).unwrap();
    }
    let id_is = |id: &'static str| {
        damage(id, move |entry| {
            let name = entry.file_name().unwrap().to_str().unwrap();
            let root = entry.parent().unwrap().parent().unwrap();
            edit_meta(root, name, |meta| meta["id"] = id.into());
        })
    };
    let ids = ["../../victim", "../victim", "victim", "", ".", "..", "/", "18ea4ba277c322d7-873e00"];
    assert_each_is_set_aside_alone(&root, ids.map(id_is).into()).await;
    assert!(victims.iter().all(|victim| victim.join("precious").is_dir()));
}

/// Makes a file or directory look as old as this.
pub fn age(path: &Path, age: Duration) {
    let times = FileTimes::new().set_modified(SystemTime::now() - age);
    File::open(path).unwrap().set_times(times).unwrap();
}

pub const OLD: Duration = Duration::from_secs(3700);
const RECENT: Duration = Duration::from_secs(3500);

#[tokio::test]
async fn a_directory_without_meta_json_is_somebodys_write_in_progress_for_an_hour() {
    let (root, server) = (root(), Upstream::start(|_| 204));
    let outbox = open(root.path(), &server.url());
    let mut ids = Vec::new();
    for (uri, since) in [("/fresh", Duration::ZERO), ("/recent", RECENT), ("/old", OLD)] {
        let id = send(&outbox, "PUT", uri, "x").await;
        let entry = path(root.path(), &id);
        fs::remove_file(entry.join("meta.json")).unwrap();
        age(&entry, since);
        ids.push(id);
    }
    send(&outbox, "PUT", "/sound", "x").await;
    let (report, _) = replay(&outbox).await;
    assert_eq!((report.delivered, report.corrupt, report.remaining), (1, 1, 2));
    assert!(ids[..2].iter().all(|id| path(root.path(), id).join("body.bin").exists()));
    let kept = set_aside(root.path(), "corrupt", &ids[2]);
    assert_eq!(fs::read_to_string(kept.join("reason.txt")).unwrap(), "meta.json is missing\n");
}

#[tokio::test]
async fn what_is_not_ours_is_left_alone_and_a_newer_format_is_left_untouched() {
    let (root, server) = (root(), Upstream::start(|_| 204));
    let outbox = open(root.path(), &server.url());
    let newer = send(&outbox, "PUT", "/newer", "x").await;
    edit_meta(root.path(), &newer, |meta| {
        meta["format"] = 2.into();
        meta["method"] = serde_json::json!({"now": "an object"});
    });
    let meta = json(&path(root.path(), &format!("{newer}/meta.json")));
    let directories = [
        "backup",
        "18EA4BA277C322D7-873E00",
        "18ea4ba277c322d7",
        "18ea4ba277c322d7-873e00.bak",
        "x.conflict-y",
    ];
    for name in directories {
        fs::create_dir(path(root.path(), name)).unwrap();
        fs::write(path(root.path(), name).join("meta.json"), "{").unwrap();
        age(&path(root.path(), name), OLD);
    }
    fs::write(path(root.path(), "notes.txt"), "mine").unwrap();
    let before = tree(root.path());
    send(&outbox, "PUT", "/sound", "x").await;
    let (report, deliveries) = replay(&outbox).await;
    assert_eq!((report.delivered, report.corrupt, report.remaining), (1, 0, 1));
    let said = deliveries.iter().find(|d| d.id == newer).unwrap();
    assert_eq!((said.outcome, server.lines()), (Outcome::Deferred, vec!["PUT /sound".to_owned()]));
    assert!(said.detail.as_deref().unwrap().contains("format 2"), "{said:?}");
    assert_eq!(tree(root.path()), before);
    assert_eq!(json(&path(root.path(), &format!("{newer}/meta.json"))), meta);
    let found: Vec<_> = outbox.verify().await.unwrap().into_iter().map(|finding| finding.name).collect();
    let strangers = directories.iter().copied().chain(["notes.txt", &newer]);
    assert!(
        strangers.clone().count() == found.len() && strangers.clone().all(|n| found.iter().any(|f| f == n)),
        "{found:?}"
    );
}

#[tokio::test]
async fn what_a_crash_left_in_staging_is_swept_after_an_hour() {
    let (root, server) = (root(), Upstream::start(|_| 204));
    let outbox: Outbox = open(root.path(), &server.url());
    send(&outbox, "PUT", "/sound", "x").await;
    let staged = |name: &str, dir_age, body_age: Option<Duration>| {
        let dir = path(root.path(), ".staging").join(name);
        fs::create_dir_all(&dir).unwrap();
        if let Some(body_age) = body_age {
            fs::write(dir.join("body.bin"), "x").unwrap();
            age(&dir.join("body.bin"), body_age);
        }
        age(&dir, dir_age);
        dir
    };
    let left = [staged("a", OLD, Some(OLD)), staged("b", OLD, None)];
    // Begun long ago, and still growing: that is no leftover.
    let busy = [
        staged("c", RECENT, None),
        staged("d", OLD, Some(Duration::ZERO)),
        staged("e", RECENT, Some(RECENT)),
    ];
    assert_eq!(replay(&outbox).await.0.delivered, 1);
    assert!(left.iter().all(|dir| !dir.exists()));
    assert!(busy.iter().all(|dir| dir.exists()));
}

/// The binary without the right to read what its mode forbids; none where that cannot be had.
#[cfg(unix)]
fn unprivileged(cli: &Cli, args: &[&str]) -> Option<Ran> {
    let binary = env!("CARGO_BIN_EXE_outbox");
    // To root, no mode forbids anything.
    let without = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"];
    let first = if rustix::process::geteuid().is_root() { without.as_slice() } else { &[] };
    let all: Vec<&str> = first.iter().chain(&[binary]).chain(args).copied().collect();
    match cli.clean(all[0], &all[1..]).output() {
        Ok(output) => Some(Ran::from(output)),
        Err(error) => {
            eprintln!("skipped: {}: {error}", all[0]);
            None
        }
    }
}

#[cfg(unix)]
#[test]
fn what_may_not_be_read_is_reported_and_left_and_holds_back_nothing_else() {
    use std::os::unix::fs::PermissionsExt;
    let (cli, server) = (Cli::new(), Upstream::start(|_| 204));
    let mut delivered = 0;
    for denied in ["", "/meta.json", "/state.json", "/body.bin"] {
        let id = cli.send(&["PUT", "/denied"]);
        let file = path(cli.root.path(), &format!("{id}{denied}"));
        if denied == "/state.json" {
            fs::write(&file, "{}").unwrap();
        }
        let allow = |mode| fs::set_permissions(&file, PermissionsExt::from_mode(mode)).unwrap();
        let usual = fs::metadata(&file).unwrap().permissions().mode();
        cli.send(&["PUT", "/a"]);
        cli.send(&["PUT", "/b"]);
        allow(0);
        let url = server.url();
        let Some(ran) = unprivileged(&cli, &["replay", "--json", "--upstream", &url]) else { return };
        let lines: Vec<_> = ran.stdout.lines().map(parse).collect();
        let (report, said) = (lines.last().unwrap(), lines.iter().find(|line| line["id"] == *id).unwrap());
        assert_eq!(
            (ran.code, &report["delivered"], &report["remaining"]),
            (3, &2.into(), &1.into()),
            "{ran:?}"
        );
        let why = said["detail"].as_str().unwrap();
        assert!(said["outcome"] == "deferred" && why.contains("cannot open"), "{denied}: {said}");
        let listed = unprivileged(&cli, &["list"]).unwrap();
        assert_eq!(listed.code, 0, "{denied}: {listed:?}");
        // Where it was, and as it was.
        allow(usual);
        assert_eq!(cli.replay(&url, &[]).2["delivered"], 1, "{denied}");
        delivered += 3;
    }
    assert_eq!(server.lines().len(), delivered);
}

#[cfg(unix)]
#[test]
fn what_cannot_be_read_is_not_taken_for_missing() {
    use std::os::unix::fs::PermissionsExt;
    let cli = Cli::new();
    let server = Upstream::start(|seen| match seen.target.as_str() {
        "/conflict" => Reply::new(412).header("ETag", "\"v2\""),
        _ => Reply::new(422),
    });
    let ids = ["/rejected", "/conflict"].map(|uri| cli.send(&["PUT", uri, "--base-etag", "\"v1\""]));
    cli.replay(&server.url(), &[]);
    let rejected = set_aside(cli.root.path(), "rejected", &ids[0]);
    let conflict = set_aside(cli.root.path(), "", &ids[1]);
    let inherited = r#"{"validator":{"etag":"\"v7\""}}"#;
    fs::write(rejected.join("state.json"), inherited).unwrap();
    for (denied, args, wanted) in [
        (path(cli.root.path(), "rejected"), &["show", &ids[0]][..], "rejected: permission denied"),
        (rejected.join("state.json"), &["retry", &ids[0]], "state.json: "),
        (
            conflict.join("response.json"),
            &["resolve", &ids[1], "--keep", "mine"],
            "response.json: permission denied",
        ),
    ] {
        let allow = |mode| fs::set_permissions(&denied, PermissionsExt::from_mode(mode)).unwrap();
        let usual = fs::metadata(&denied).unwrap().permissions().mode();
        allow(0);
        let Some(ran) = unprivileged(&cli, args) else { return };
        let told = ran.stderr.contains("cannot open") && ran.stderr.contains(wanted);
        assert!(ran.code == 1 && told, "{ran:?}");
        allow(usual);
    }
    assert_eq!(fs::read_to_string(rejected.join("state.json")).unwrap(), inherited);
    cli.ok(["retry", &ids[0]]);
    let state = json(&path(cli.root.path(), &format!("{}/state.json", ids[0])));
    assert_eq!(state["validator"]["etag"], "\"v7\"");
    cli.ok(["resolve", &ids[1], "--keep", "mine"]);
}

#[cfg(unix)]
#[test]
fn an_outbox_that_may_not_be_entered_is_not_taken_for_missing() {
    use std::os::unix::fs::PermissionsExt;
    let cli = Cli::new();
    cli.send(&["PUT", "/a"]);
    for denied in [cli.root.path().to_owned(), path(cli.root.path(), "")] {
        let allow = |mode| fs::set_permissions(&denied, PermissionsExt::from_mode(mode)).unwrap();
        for command in ["list", "status", "verify"] {
            allow(0);
            let ran = unprivileged(&cli, &[command]);
            allow(0o700);
            let Some(ran) = ran else { return };
            assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{command}: {ran:?}");
            let told = ran.stderr.to_lowercase().contains("permission denied");
            assert!(told && !ran.stderr.contains("there is no outbox"), "{command}: {ran:?}");
        }
    }
}

#[tokio::test]
async fn records_of_any_length_fit_in_memory() {
    let (root, server) = (root(), Upstream::start(|_| 204));
    let limits = Limits { memory: 8 * 1024 * 1024, ..Limits::default() };
    let outbox = builder(root.path()).upstream(server.url()).limits(limits).open().unwrap();
    let long = "x".repeat(1_000_000);
    let mut states = Vec::new();
    for n in 0..12 {
        let id = send(&outbox, "PUT", &format!("/{n}"), "x").await;
        let state = serde_json::json!({ "last_error": long });
        fs::write(path(root.path(), &format!("{id}/state.json")), state.to_string()).unwrap();
        states.push(id);
    }
    // The rest comes in further pages.
    let listed = outbox.pending(None, 1_000).await.unwrap();
    let listed: Vec<_> = listed.into_iter().map(|entry| entry.id).collect();
    assert!(!listed.is_empty() && states.starts_with(&listed), "{listed:?}");
    for id in &states {
        fs::remove_file(path(root.path(), &format!("{id}/state.json"))).unwrap();
    }
    for (key, text) in [("queued_at", long.clone()), ("body_digest", format!("other:{long}"))] {
        for n in 0..12 {
            let id = send(&outbox, "PUT", &format!("/{n}"), "x").await;
            edit_meta(root.path(), &id, |meta| meta[key] = text.clone().into());
        }
    }
    assert_eq!(outbox.verify().await.unwrap().len(), 24);
    let (report, _) = replay(&outbox).await;
    assert_eq!((report.delivered, report.corrupt, report.remaining), (12, 24, 0));
}

#[cfg(unix)]
#[tokio::test]
async fn directories_in_directories_without_end_are_no_end_of_a_pass() {
    use rustix::fs::{Mode, OFlags, mkdirat, openat};
    let (root, server) = (root(), Upstream::start(|_| 204));
    let outbox = open(root.path(), &server.url());
    send(&outbox, "PUT", "/a", "x").await;
    let top = path(root.path(), ".staging/deep");
    fs::create_dir(&top).unwrap();
    let mut deepest = std::os::fd::OwnedFd::from(File::open(&top).unwrap());
    for _ in 0..20_000 {
        mkdirat(&deepest, "a", Mode::RWXU).unwrap();
        deepest = openat(&deepest, "a", OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
    age(&top, OLD);
    let report = outbox.replay().await;
    // Level by level, which takes no file open for each.
    let (mut top, spare) = (path(root.path(), ".staging/deep"), root.path().join("spare"));
    if !top.exists() {
        top = path(root.path(), ".staging/deep.swept");
    }
    while fs::rename(top.join("a"), &spare).is_ok() {
        fs::remove_dir(&top).unwrap();
        fs::rename(&spare, &top).unwrap();
    }
    assert_eq!(report.unwrap().delivered, 1);
}
