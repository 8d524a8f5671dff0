//! `outbox verify` finds every kind of damage, changes nothing, and what is sound is delivered beside it.

use crate::cli::{Cli, parse};
use crate::damage::{Damage, OLD, age, damage};
use crate::kit::{OUTBOX_DIR, edit_meta, json, path};
use crate::upstream::{Reply, Seen, Upstream};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

/// Everything below a directory, its names, kinds, contents and times, in one text.
fn picture(dir: &Path) -> String {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    let mut text = String::new();
    for path in names {
        let found = fs::symlink_metadata(&path).unwrap();
        text +=
            &format!("{path:?} {:o} {} {}.{}", found.mode(), found.len(), found.mtime(), found.mtime_nsec());
        if found.is_symlink() {
            text += &format!(" -> {:?}", fs::read_link(&path).unwrap());
        } else if found.is_file() {
            text += &format!(" {:?}", fs::read(&path).unwrap());
        }
        text.push('\n');
        if found.is_dir() {
            text += &picture(&path);
        }
    }
    text
}

fn file(name: &'static str, file: &'static str, content: impl AsRef<[u8]> + 'static) -> Damage {
    damage(name, move |entry| fs::write(entry.join(file), &content).unwrap())
}

fn replaced(name: &'static str, file: &'static str, by: fn(&Path)) -> Damage {
    damage(name, move |entry| {
        let _ = fs::remove_file(entry.join(file));
        by(&entry.join(file));
    })
}

fn directory(at: &Path) {
    fs::create_dir(at).unwrap();
}

fn pipe(at: &Path) {
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, at, rustix::fs::FileType::Fifo, mode, 0).unwrap();
}

fn link(at: &Path) {
    symlink("/etc/passwd", at).unwrap();
}

fn edited(name: &'static str, edit: fn(&mut serde_json::Value)) -> Damage {
    damage(name, move |entry| {
        let mut meta = json(&entry.join("meta.json"));
        edit(&mut meta);
        fs::write(entry.join("meta.json"), serde_json::to_vec(&meta).unwrap()).unwrap();
    })
}

/// What can happen to an entry wherever it is.
fn to_an_entry() -> Vec<Damage> {
    vec![
        file("a truncated meta.json", "meta.json", "{\"id\": \"18ea4ba2"),
        file("an empty meta.json", "meta.json", ""),
        file("a meta.json that is not UTF-8", "meta.json", b"{\"id\": \"\xff\xfe\"}"),
        file("a huge meta.json", "meta.json", vec![b' '; 2 << 20]),
        file("a deeply nested meta.json", "meta.json", "[".repeat(200_000)),
        file("a meta.json of NULs", "meta.json", [0; 300]),
        replaced("a directory for a meta.json", "meta.json", directory),
        replaced("a link for a meta.json", "meta.json", link),
        damage("no meta.json", |entry| {
            fs::remove_file(entry.join("meta.json")).unwrap();
            age(entry, OLD);
        }),
        edited("another id", |meta| meta["id"] = "18ea4ba277c322d7-873e00".into()),
        edited("an id that leads elsewhere", |meta| meta["id"] = "../../x".into()),
        edited("another length", |meta| meta["body_len"] = 11.into()),
        edited("another digest", |meta| meta["body_digest"] = format!("xxh3:{:032x}", 7).into()),
        edited("a URI that leads elsewhere", |meta| meta["raw_uri"] = "@evil/x".into()),
        file("a changed body", "body.bin", "0123456780"),
        file("a short body", "body.bin", "012345678"),
        file("a long body", "body.bin", "0123456789x"),
        file("an empty body", "body.bin", ""),
        damage("no body", |entry| fs::remove_file(entry.join("body.bin")).unwrap()),
        replaced("a directory for a body", "body.bin", directory),
        replaced("a link for a body", "body.bin", link),
        file("a broken state.json", "state.json", "{\"attempts\": "),
        file("a state.json of another type", "state.json", "7"),
        replaced("a directory for a state.json", "state.json", directory),
        replaced("a link for a state.json", "state.json", link),
    ]
}

/// What can happen only to one that was set aside.
fn to_one_set_aside() -> Vec<Damage> {
    let mut cases = to_an_entry();
    cases.push(file("a broken response.json", "response.json", "{\"status\": 4"));
    cases.push(file("a response.json of another type", "response.json", "[]"));
    cases.push(replaced("a directory for a response.json", "response.json", directory));
    cases
}

/// An entry with a body of ten bytes.
fn queue(cli: &Cli, uri: &str) -> String {
    let ran = cli.run_with_stdin(&["send", "PUT", uri, "--body", "-", "--durability", "none"], b"0123456789");
    ran.expect(0).trim_end().strip_prefix("queued ").unwrap().to_owned()
}

/// The findings, made sure that finding them changed nothing.
fn verify(cli: &Cli) -> Vec<(String, String)> {
    let before = picture(cli.root.path());
    let ran = cli.run(["verify", "--json"]);
    assert_eq!(picture(cli.root.path()), before, "verify changed something");
    let findings = parse(&ran.stdout);
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let findings: Vec<_> =
        findings.as_array().unwrap().iter().map(|f| (text(&f["name"]), text(&f["reason"]))).collect();
    assert_eq!(
        (ran.code, ran.stderr.as_str()),
        (if findings.is_empty() { 0 } else { 4 }, ""),
        "{findings:?}"
    );
    assert!(findings.iter().all(|(_, reason)| !reason.is_empty()), "{findings:?}");
    let plain = cli.run(["verify"]);
    assert_eq!(plain.stdout.lines().count(), findings.len().max(1), "{plain:?}");
    findings
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// Many entries with other ids, made from one.
fn multiply(dir: &Path, name: &str, count: usize) -> Vec<String> {
    let (id, rest) = name.split_at(23);
    let names = (0..count).map(|n| {
        let new_id =
            format!("{:016x}{}", u64::from_str_radix(&id[..16], 16).unwrap() + 1 + n as u64, &id[16..]);
        let new = format!("{new_id}{rest}");
        copy(&dir.join(name), &dir.join(&new));
        let mut meta = json(&dir.join(&new).join("meta.json"));
        meta["id"] = new_id.into();
        meta["raw_uri"] = format!("/damaged/{n}").into();
        fs::write(dir.join(&new).join("meta.json"), serde_json::to_vec(&meta).unwrap()).unwrap();
        new
    });
    names.collect()
}

#[test]
fn a_sound_outbox_is_well_wherever_its_entries_are() {
    let cli = Cli::new();
    let server = Upstream::start(answers);
    for uri in ["/conflict", "/rejected"] {
        queue(&cli, uri);
    }
    cli.replay(&server.url(), &[]);
    queue(&cli, "/sound");
    assert_eq!(verify(&cli), []);
}

#[test]
fn a_pipe_in_place_of_a_file_does_not_make_it_wait_for_ever() {
    let cli = Cli::new();
    let files = ["meta.json", "body.bin", "state.json"];
    let ids = files.map(|file| {
        let id = queue(&cli, "/x");
        replaced("", file, pipe).1(&path(cli.root.path(), &id));
        id
    });
    assert_eq!(verify(&cli).into_iter().map(|(name, _)| name).collect::<Vec<_>>(), ids);
    let server = Upstream::start(answers);
    let sound = queue(&cli, "/sound");
    assert!(cli.ok(["list"]).contains(&sound));
    cli.replay(&server.url(), &[]);
    assert_eq!(server.lines(), ["PUT /sound"]);
    let kept = std::fs::read_dir(path(cli.root.path(), "corrupt")).unwrap();
    assert_eq!(kept.count(), ids.len());
}

fn answers(seen: &Seen) -> Reply {
    match seen.target.as_str() {
        "/conflict" => Reply::new(412).header("ETag", "\"v2\""),
        "/rejected" => Reply::new(422),
        _ => Reply::new(204),
    }
}

#[test]
fn every_damage_to_a_pending_entry_is_found_and_the_next_replay_sets_each_aside_and_delivers_the_rest() {
    let cli = Cli::new();
    let root = cli.root.path();
    let server = Upstream::start(answers);
    let sound = [queue(&cli, "/sound/first")];
    let cases = to_an_entry();
    let ids = multiply(&root.join(OUTBOX_DIR), &sound[0], cases.len());
    for (id, (_, harm)) in ids.iter().zip(&cases) {
        harm(&path(root, id));
    }
    type Plant = (&'static str, fn(&Path));
    let whole_entries: [Plant; 2] = [("a file", |at| fs::write(at, "x").unwrap()), ("a link", link)];
    let mut others = Vec::new();
    for (n, (_, plant)) in whole_entries.iter().enumerate() {
        others.push(format!("18ea4ba277c322d7-87000{n}"));
        plant(&path(root, &others[n]));
    }
    let last = queue(&cli, "/sound/last");
    let found = verify(&cli);
    for (id, name) in
        ids.iter().zip(cases.iter().map(|c| c.0)).chain(others.iter().zip(whole_entries.map(|w| w.0)))
    {
        assert_eq!(found.iter().filter(|(n, _)| n == id).count(), 1, "{name} ({id}) in {found:#?}");
    }
    assert_eq!(found.len(), cases.len() + others.len(), "{found:#?}");

    let (code, _, report) = cli.replay(&server.url(), &[]);
    assert_eq!(code, 4);
    assert_eq!((&report["delivered"], &report["remaining"]), (&2.into(), &0.into()), "{report}");
    assert_eq!(report["corrupt"], found.len());
    let whole: Vec<_> = server.seen().into_iter().filter(|s| s.complete).map(|s| s.target).collect();
    assert_eq!(whole, ["/sound/first", "/sound/last"]);
    assert_ne!(sound[0], last);
    // Kept, each with its reason, and told of again.
    let kept = verify(&cli);
    assert_eq!(kept.len(), found.len());
    for (id, reason) in &found {
        let kept = kept.iter().find(|(name, _)| name.starts_with(&format!("corrupt/{id}."))).unwrap();
        assert_eq!(&kept.1, reason, "{id}");
    }
    assert_eq!(parse(cli.run(["status", "--json"]).stdout)["corrupt"], found.len());
}

#[test]
fn damage_to_what_was_set_aside_is_found_too_and_keeps_nothing_from_being_delivered() {
    let cli = Cli::new();
    let root = cli.root.path();
    let server = Upstream::start(answers);
    let set_aside = [("", queue(&cli, "/conflict")), ("rejected", queue(&cli, "/rejected"))];
    cli.replay(&server.url(), &[]);
    let cases = to_one_set_aside();
    let mut names = Vec::new();
    for (place, id) in &set_aside {
        let dir = root.join(OUTBOX_DIR).join(place);
        let entry = crate::kit::set_aside(root, place, id);
        let made = multiply(&dir, entry.file_name().unwrap().to_str().unwrap(), cases.len());
        for (name, (_, harm)) in made.iter().zip(&cases) {
            harm(&dir.join(name));
        }
        let shown = |name: &String| if place.is_empty() { name.clone() } else { format!("{place}/{name}") };
        names.extend(made.iter().map(shown));
    }
    let planted = [
        format!("18ea4ba277c322d7-870001.conflict-{}", "20260101T000000Z"),
        format!("rejected/18ea4ba277c322d7-870001.{}", "20260101T000000Z"),
    ];
    for name in &planted {
        fs::write(path(root, name), "x").unwrap();
    }
    fs::write(path(root, "rejected/notes.txt"), "mine").unwrap();
    queue(&cli, "/sound");
    let found = verify(&cli);
    for (name, case) in names.iter().zip(cases.iter().chain(&cases).map(|case| case.0)) {
        assert_eq!(found.iter().filter(|(n, _)| n == name).count(), 1, "{case} ({name}) in {found:#?}");
    }
    for name in planted.iter().map(String::as_str).chain(["rejected/notes.txt"]) {
        assert!(found.iter().any(|(n, _)| n == name), "{name} in {found:#?}");
    }
    assert_eq!(found.len(), names.len() + 3);
    let (_, _, report) = cli.replay(&server.url(), &[]);
    assert_eq!(
        (&report["delivered"], &report["remaining"], &report["corrupt"]),
        (&1.into(), &0.into(), &0.into())
    );
    assert_eq!(verify(&cli), found);
    // What can still be shown is shown.
    assert_eq!(cli.run(["conflicts", "--json"]).code, 0);
    assert_eq!(cli.run(["rejected"]).code, 0);
}

#[test]
fn what_is_not_an_entry_is_named_and_hinders_nothing() {
    let cli = Cli::new();
    let root = cli.root.path();
    let server = Upstream::start(answers);
    let newer = queue(&cli, "/newer");
    edit_meta(root, &newer, |meta| meta["format"] = 7.into());
    for name in ["backup", "18EA4BA277C322D7-873E00", "18ea4ba277c322d7", "x.conflict-y"] {
        fs::create_dir(path(root, name)).unwrap();
    }
    fs::write(path(root, "notes.txt"), "mine").unwrap();
    symlink("/etc", path(root, "link")).unwrap();
    fs::write(root.join(OUTBOX_DIR).join(std::ffi::OsStr::from_bytes(b"caf\xe9")), "").unwrap();
    fs::write(path(root, "corrupt"), "in the way").unwrap();
    let abandoned = path(root, ".staging/0123456789abcdef");
    fs::create_dir_all(&abandoned).unwrap();
    fs::write(abandoned.join("body.bin"), "half").unwrap();
    fs::create_dir(path(root, ".staging/now")).unwrap();
    age(&abandoned.join("body.bin"), OLD);
    age(&abandoned, OLD);
    // In a rejected/ of its own, what cannot be told does not hide the rest either.
    fs::create_dir(path(root, "rejected")).unwrap();
    fs::write(path(root, "rejected").join(std::ffi::OsStr::from_bytes(b"\xff")), "").unwrap();
    queue(&cli, "/sound");
    let found = verify(&cli);
    let mut names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    let mut wanted = vec![
        ".staging/0123456789abcdef",
        ".zddc-outbox",
        "18EA4BA277C322D7-873E00",
        "18ea4ba277c322d7",
        "backup",
        "corrupt",
        "link",
        "notes.txt",
        "rejected",
        "x.conflict-y",
        newer.as_str(),
    ];
    wanted.sort_unstable();
    assert_eq!(names, wanted);
    let (code, outcomes, report) = cli.replay(&server.url(), &[]);
    assert_eq!((code, &report["delivered"], &report["remaining"]), (3, &1.into(), &1.into()), "{outcomes:?}");
    assert_eq!(server.lines(), ["PUT /sound"]);
    assert!(!abandoned.exists());
    // A newer format is left as it is, counted and told of.
    assert_eq!(json(&path(root, &format!("{newer}/meta.json")))["format"], 7);
    let status = parse(cli.run(["status", "--json"]).stdout);
    assert_eq!((&status["pending"], &status["newer"]), (&1.into(), &1.into()));
    assert!(cli.run(["status"]).stdout.contains("1  of them written by a newer outbox"));
    names.retain(|name| *name != ".staging/0123456789abcdef");
    let mut after: Vec<String> = verify(&cli).into_iter().map(|(name, _)| name).collect();
    after.sort_unstable();
    assert_eq!(after, names);
}

#[test]
fn what_has_just_left_the_queue_is_not_called_a_crashs_leftover() {
    let cli = Cli::new();
    let id = queue(&cli, "/a");
    // Delivered or dropped, and not yet deleted: its directory is as old as it was.
    for name in [id.clone(), format!("{id}.20261122T065602Z"), format!("{id}.conflict-20261122T065602Z")] {
        let left = path(cli.root.path(), &format!(".staging/{name}"));
        copy(&path(cli.root.path(), &id), &left);
        age(&left.join("body.bin"), OLD);
        age(&left, OLD);
    }
    assert_eq!(verify(&cli), []);
}
