//! `--profile original` beside the original: random scripts of queued entries and of replies, passes of either,
//! and a comparison of requests, outcomes and what is on disk. Where the original is at hand (OUTBOX_ORIGINAL),
//! it runs; else what it did is read from tests/fixtures/traces, which OUTBOX_RECORD=1 writes anew.

use crate::kit::{OUTBOX_DIR, builder, path, replay, send, tree};
use crate::upstream::{Act, Reply, ReservedPort, Upstream};
use outbox_host::{Health, Outcome, Profile};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// Scripts that are compared with the running original (OUTBOX_SCRIPTS for more), and how many of them are in the
/// repository.
const SCRIPTS: u64 = 60;
const RECORDED: u64 = 24;

/// What is queued, and how the server replies, request by request, in each pass.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Script {
    entries: Vec<Entry>,
    /// Cached files below the root.
    cached: Vec<String>,
    passes: Vec<Vec<Answer>>,
}

/// An entry's directory, as the original leaves it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Entry {
    id: String,
    /// The text of meta.json; none where there is none.
    meta: Option<String>,
    body: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Answer {
    Status(u16),
    /// With a Location on the same server.
    Redirect(u16),
    /// The connection is closed without one.
    Nothing,
}

/// What one pass did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Done {
    requests: Vec<Sent>,
    /// Gone from the queue, delivered or deleted: the original does not tell them apart.
    replayed: u64,
    conflicts: u64,
    /// The outbox's directory and the cached files.
    disk: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Sent {
    method: String,
    target: String,
    body: String,
    content_type: Option<String>,
    if_unmodified_since: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Trace {
    script: Script,
    done: Vec<Done>,
}

struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        Random(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 11) % limit as u64) as usize
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

const METHODS: [&str; 8] = ["PUT", "PUT", "PUT", "DELETE", "POST", "PATCH", "MKCOL", "PROPPATCH"];
const URIS: [&str; 8] =
    ["/a", "/a", "/a/b", "/a/b?x=1&y=%3C2%3E", "/c%20d/%C3%BC.txt", "/e", "/e/", "/f.txt?download"];
const TYPES: [Option<&str>; 3] = [None, Some("text/plain; charset=utf-8"), Some("")];
const BASES: [&str; 4] = [
    "0001-01-01T00:00:00Z",
    "2024-05-01T08:00:00Z",
    "2024-05-01T10:00:00.999999999+02:00",
    "2016-02-29T23:59:59-11:30",
];
const BODIES: [&str; 4] = ["", "x", "some text\nin lines\n", "{\"a\": 1}"];
/// Every class of reply that either side may act on differently; redirects that the original follows (301, 302,
/// 303 with a Location) are the difference that stays.
const ANSWERS: [Answer; 24] = [
    Answer::Status(200),
    Answer::Status(200),
    Answer::Status(201),
    Answer::Status(204),
    Answer::Status(204),
    Answer::Status(207),
    Answer::Status(400),
    Answer::Status(401),
    Answer::Status(403),
    Answer::Status(404),
    Answer::Status(409),
    Answer::Status(410),
    Answer::Status(412),
    Answer::Status(412),
    Answer::Status(422),
    Answer::Status(429),
    Answer::Status(500),
    Answer::Status(503),
    Answer::Status(302),
    Answer::Status(304),
    Answer::Status(511),
    Answer::Redirect(307),
    Answer::Redirect(308),
    Answer::Nothing,
];

fn script(seed: u64) -> Script {
    let mut random = Random::new(seed);
    let count = 1 + random.below(10);
    let entry = |n: usize, random: &mut Random| {
        let id = format!("{:016x}-{:06x}", 0x18ea_54f8_d2b8_d465_u64 + n as u64, random.below(1 << 24));
        let mut meta = serde_json::json!({
            "id": id, "method": random.of(&METHODS), "raw_uri": random.of(&URIS),
            "base_mod_time": random.of(&BASES), "queued_at": "2026-11-22T09:47:09Z",
        });
        if let Some(content_type) = random.of(&TYPES) {
            meta["content_type"] = content_type.into();
        }
        let mut entry = Entry {
            id,
            meta: Some(serde_json::to_string_pretty(&meta).unwrap()),
            body: Some(random.of(&BODIES).into()),
        };
        match random.below(12) {
            0 => entry.body = None,
            1 => entry.meta = None,
            2 => entry.meta = Some("{\"id\": ".into()),
            _ => {}
        }
        entry
    };
    let entries: Vec<Entry> = (0..count).map(|n| entry(n, &mut random)).collect();
    let cached = ["a/b", "c d/\u{fc}.txt", "e", "f.txt"];
    let cached = cached.iter().filter(|_| random.below(2) == 0).map(|c| (*c).into()).collect();
    let passes = (0..1 + random.below(3))
        .map(|_| (0..count).map(|_| ANSWERS[random.below(ANSWERS.len())].clone()).collect())
        .collect();
    Script { entries, cached, passes }
}

/// Plays a script in a root of its own; `pass` makes one against an upstream and says what it counted.
async fn play(script: &Script, pass: impl AsyncFn(&Path, &str) -> (u64, u64)) -> Vec<Done> {
    let root = crate::kit::root();
    let queue = root.path().join(OUTBOX_DIR);
    for entry in &script.entries {
        let dir = queue.join(&entry.id);
        std::fs::create_dir_all(&dir).unwrap();
        for (name, text) in [("meta.json", &entry.meta), ("body.bin", &entry.body)] {
            if let Some(text) = text {
                std::fs::write(dir.join(name), text).unwrap();
            }
        }
    }
    for file in &script.cached {
        let file = root.path().join(file);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, "cached").unwrap();
    }
    let mut done = Vec::new();
    for answers in &script.passes {
        let (answers, next) = (answers.clone(), AtomicUsize::new(0));
        let server = Upstream::start(move |_| {
            // One more than there are entries would be a bug; it shows in the comparison.
            match answers.get(next.fetch_add(1, Ordering::Relaxed)) {
                Some(Answer::Status(status)) => Act::from(*status),
                Some(Answer::Redirect(status)) => Reply::new(*status).header("Location", "/elsewhere").into(),
                Some(Answer::Nothing) | None => Act::Cut,
            }
        });
        let (replayed, conflicts) = pass(root.path(), &server.url()).await;
        let sent = server.seen().into_iter().map(|seen| Sent {
            content_type: seen.header("content-type").map(Into::into),
            if_unmodified_since: seen.header("if-unmodified-since").map(Into::into),
            method: seen.method,
            target: seen.target,
            body: String::from_utf8(seen.body).unwrap(),
        });
        done.push(Done { requests: sent.collect(), replayed, conflicts, disk: disk(root.path(), script) });
    }
    done
}

/// What is in the outbox's directory, without the times in names, and which cached files are left.
fn disk(root: &Path, script: &Script) -> Vec<String> {
    let untimed = |name: String| match name.split_once(".conflict-") {
        Some((id, rest)) => {
            format!("{id}.conflict-*{}", rest.find('/').map_or("", |at| &rest[at..]))
        }
        None => name,
    };
    let cached = script.cached.iter().filter(|file| root.join(file).exists());
    tree(root).into_iter().map(untimed).chain(cached.map(|file| format!("cached {file}"))).collect()
}

async fn ours(root: &Path, url: &str) -> (u64, u64) {
    let outbox = builder(root).upstream(url).profile(Profile::Original).open().unwrap();
    let report = outbox.replay().await.unwrap();
    (report.delivered + report.dropped, report.conflicts)
}

async fn originals(binary: &Path, root: &Path, url: &str) -> (u64, u64) {
    let mut command = std::process::Command::new(binary);
    let output = command.args(["replay", "-upstream", url, "-root"]).arg(root).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    (result["replayed"].as_u64().unwrap(), result["conflicts"].as_u64().unwrap())
}

fn traces() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/traces")
}

fn compare(what: &str, script: &Script, original: &[Done], ours: &[Done]) {
    for (pass, (original, ours)) in original.iter().zip(ours).enumerate() {
        assert_eq!(original, ours, "{what}, pass {pass}; the original is on the left; {script:#?}");
    }
    assert_eq!(original.len(), ours.len());
}

#[tokio::test]
async fn the_originals_profile_does_what_the_running_original_does() {
    let Some(binary) = crate::fixtures::original() else { return };
    let record = std::env::var_os("OUTBOX_RECORD").is_some_and(|value| !value.is_empty());
    let scripts = std::env::var("OUTBOX_SCRIPTS").ok().and_then(|n| n.parse().ok()).unwrap_or(SCRIPTS);
    for seed in 0..scripts {
        let script = script(seed);
        let original = play(&script, async |root, url| originals(&binary, root, url).await).await;
        if record && seed < RECORDED {
            let trace = Trace { script: script.clone(), done: original.clone() };
            std::fs::create_dir_all(traces()).unwrap();
            let text = serde_json::to_string_pretty(&trace).unwrap() + "\n";
            std::fs::write(traces().join(format!("{seed:02}.json")), text).unwrap();
        }
        compare(&format!("script {seed}"), &script, &original, &play(&script, ours).await);
    }
}

#[tokio::test]
async fn the_originals_profile_does_what_the_original_was_recorded_doing() {
    let mut played = 0;
    for file in std::fs::read_dir(traces()).unwrap() {
        let path = file.unwrap().path();
        let trace: Trace = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        compare(&path.display().to_string(), &trace.script, &trace.done, &play(&trace.script, ours).await);
        played += 1;
    }
    assert_eq!(played, RECORDED);
}

#[tokio::test]
async fn the_originals_profile_still_follows_no_redirect() {
    for status in [301, 302, 303] {
        let script = Script { passes: vec![vec![Answer::Redirect(status); 3]], ..script(0) };
        let done = play(&script, ours).await;
        assert!(done[0].requests.iter().all(|sent| sent.target != "/elsewhere"), "{done:?}");
        assert_eq!(done[0].replayed, 0);
    }
}

#[tokio::test]
async fn the_originals_profile_still_lets_no_entry_choose_its_host() {
    let reached = Arc::new(Mutex::new(Vec::new()));
    let seen_there = reached.clone();
    let elsewhere = Upstream::start(move |seen| {
        seen_there.lock().unwrap().push(seen.target.clone());
        Act::from(200)
    });
    let authority = elsewhere.addr().to_string();
    let mut script = Script { passes: vec![vec![Answer::Status(200); 3]], ..script(1) };
    script.entries.truncate(1);
    for uri in [format!("@{authority}/x"), format!("//{authority}/x"), format!("http://{authority}/x")] {
        let meta = serde_json::json!({ "id": script.entries[0].id, "method": "PUT", "raw_uri": uri });
        script.entries[0].meta = Some(meta.to_string());
        script.entries[0].body = Some("x".into());
        let done = play(&script, ours).await;
        assert_eq!((done[0].requests.len(), done[0].replayed), (0, 0), "{uri}");
    }
    assert!(reached.lock().unwrap().is_empty());
}

#[tokio::test]
async fn the_originals_profile_comes_again_after_30_seconds_or_5_minutes_whatever_happened() {
    let (root, port) = (crate::kit::root(), ReservedPort::new());
    let outbox = builder(root.path()).upstream(port.url()).profile(Profile::Original).open().unwrap();
    send(&outbox, "PUT", "/a", "x").await;
    send(&outbox, "PUT", "/b", "x").await;
    let mut report = outbox.replay().await.unwrap();
    for _ in 0..3 {
        // All are tried each time, and none has a backoff.
        assert_eq!((report.deferred, report.remaining, report.upstream), (2, 2, Health::Down));
        assert_eq!(report.next_delay_ms, 30_000);
        report = outbox.tick(&report).await.unwrap();
    }
    let _server = Upstream::start_on(port, |_| 204);
    let report = outbox.tick(&report).await.unwrap();
    assert_eq!((report.delivered, report.remaining, report.next_delay_ms), (2, 0, 300_000));
}

#[tokio::test]
async fn the_originals_profile_compares_no_checksum() {
    for (profile, outcome) in [(Profile::Original, Outcome::Delivered), (Profile::Outbox, Outcome::Corrupt)] {
        let (root, server) = (crate::kit::root(), Upstream::start(|_| 204));
        let outbox = builder(root.path()).upstream(server.url()).profile(profile).open().unwrap();
        let id = send(&outbox, "PUT", "/a", "0123456789").await;
        std::fs::write(path(root.path(), &format!("{id}/body.bin")), "0123456780").unwrap();
        let (_, deliveries) = replay(&outbox).await;
        assert_eq!(deliveries[0].outcome, outcome, "{deliveries:?}");
        if profile == Profile::Original {
            assert_eq!(server.seen()[0].body, b"0123456780");
        }
    }
}
