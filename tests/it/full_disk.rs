//! Real small file systems that fill up, by bytes and by inodes. Each test runs once more in a mount namespace
//! of its own, where it may mount; it says so where that is not possible.

use crate::cli::{Cli, parse};
use crate::kit::{self, OUTBOX_DIR};
use crate::plain_host::{Clocks, run as run_plain};
use crate::upstream::{Act, Gate, Reply, Seen, Upstream};
use outbox_host::{Body, Error, Outbox, Place, Write as QueuedWrite};
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// Set in the namespace.
const INSIDE: &str = "OUTBOX_TEST_IN_NAMESPACE";

/// The options of unshare(1) for a mount namespace: as root, and as anybody else where that is allowed.
const NAMESPACES: [&str; 2] = ["-m", "-Urm"];

/// Runs a test of this module, if need be by starting it again in a namespace of its own.
fn in_namespace(test: &str, story: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return story();
    }
    let probe = kit::root();
    let mut refusals = Vec::new();
    for namespace in NAMESPACES {
        let mount = ["mount", "-t", "tmpfs", "none"];
        let tried = Command::new("unshare").arg(namespace).args(mount).arg(probe.path()).output();
        match tried {
            Ok(output) if output.status.success() => {
                let mut inside = Command::new("unshare");
                inside.arg(namespace).arg(std::env::current_exe().unwrap());
                inside.args(["--exact", "--nocapture", &format!("full_disk::{test}")]).env(INSIDE, "1");
                let ran = inside.output().unwrap();
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                println!("{}{}", text(&ran.stdout), text(&ran.stderr));
                assert!(ran.status.success(), "in its namespace, it failed");
                assert!(text(&ran.stdout).contains("1 passed"), "in its namespace, it did not run");
                return;
            }
            Ok(output) => refusals.push(String::from_utf8_lossy(&output.stderr).into_owned()),
            Err(error) => refusals.push(error.to_string()),
        }
    }
    eprintln!("skipped {test}: nothing can be mounted here: {refusals:?}");
}

/// What there is too little of.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Scarce {
    Bytes,
    Inodes,
}

/// A small file system.
struct Disk {
    at: TempDir,
    /// The file that it is in, if any; beside it, not on it.
    _image: Option<TempDir>,
    scarce: Scarce,
}

impl Disk {
    fn tmpfs(scarce: Scarce) -> Disk {
        let options = match scarce {
            Scarce::Bytes => "size=1m",
            Scarce::Inodes => "size=16m,nr_inodes=100",
        };
        let at = kit::root();
        run(Command::new("mount").args(["-t", "tmpfs", "-o", options, "outbox"]).arg(at.path())).unwrap();
        Disk { at, _image: None, scarce }
    }

    /// An ext4 in a file; why not, where there are no loop devices.
    fn ext4(scarce: Scarce) -> Result<Disk, String> {
        let (at, beside) = (kit::root(), kit::root());
        let image = beside.path().join("image");
        File::create(&image).unwrap().set_len(2 << 20).unwrap();
        let inodes = if scarce == Scarce::Inodes { "128" } else { "512" };
        let options = ["-q", "-F", "-m", "0", "-O", "^has_journal", "-N", inodes];
        run(Command::new("mkfs.ext4").args(options).arg(&image))?;
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(at.path()))?;
        Ok(Disk { at, _image: Some(beside), scarce })
    }

    /// What is free of what is scarce, once everything is written.
    fn free(&self) -> u64 {
        let dir = File::open(self.at.path()).unwrap();
        rustix::fs::syncfs(&dir).unwrap();
        let stat = rustix::fs::fstatvfs(&dir).unwrap();
        match self.scarce {
            Scarce::Bytes => stat.f_bfree,
            Scarce::Inodes => stat.f_ffree,
        }
    }

    fn filler(&self) -> PathBuf {
        self.at.path().join("filler")
    }

    /// Takes all that is left, and says what the system still calls free: ext4 keeps a reserve for itself.
    fn fill(&self) -> u64 {
        let full = |error: &std::io::Error| assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
        if let Err(error) = fs::create_dir_all(self.filler()) {
            full(&error);
            return self.free();
        }
        // What was promised to data not yet written is free again once it is.
        let mut left = u64::MAX;
        for n in 0.. {
            let taken =
                File::create(self.filler().join(n.to_string())).and_then(|mut file| match self.scarce {
                    Scarce::Inodes => Ok(()),
                    Scarce::Bytes => loop {
                        file.write_all(&[1; 512])?;
                    },
                });
            if let Err(error) = taken {
                full(&error);
                match std::mem::replace(&mut left, self.free()) {
                    before if before == left => return left,
                    _ => {}
                }
            }
        }
        unreachable!()
    }

    fn make_room(&self) {
        if self.filler().exists() {
            fs::remove_dir_all(self.filler()).unwrap();
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = run(Command::new("umount").arg("-l").arg(self.at.path()));
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr))),
        Err(error) => Err(format!("{command:?}: {error}")),
    }
}

/// Every write that was acknowledged: id, target and body.
type Acknowledged = Vec<(String, String, Vec<u8>)>;

async fn queue(outbox: &Outbox, target: &str, body: Vec<u8>, sent: &mut Acknowledged) -> Result<(), Error> {
    let id = outbox.enqueue_write(QueuedWrite::new("PUT", target), body.clone().into()).await?;
    sent.push((id, target.into(), body));
    Ok(())
}

fn staged(root: &Path) -> Vec<String> {
    let names = fs::read_dir(kit::path(root, ".staging")).unwrap();
    names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// The refusal that is wanted, after which nothing is left of the attempt.
fn assert_refused<T: std::fmt::Debug>(refused: Result<T, Error>, disk: &Disk, root: &Path, free: u64) {
    assert!(matches!(refused, Err(Error::NoSpace)), "{refused:?}");
    assert_eq!(staged(root), [""; 0]);
    assert_eq!(disk.free(), free, "a refused write keeps space");
}

/// The server of these stories: paths say what becomes of them, unless everything is fine by now.
fn answers(seen: &Seen) -> Act {
    match seen.target.as_str() {
        "/later" | "/later/again" => Reply::new(503).header("Retry-After", "60").body("not now").into(),
        "/conflict" => Reply::new(412).header("ETag", "\"theirs\"").body("clash").into(),
        "/rejected" => Reply::new(422).body("never").into(),
        _ => 204.into(),
    }
}

/// The story of one disk, from empty to full and back.
async fn fills_up(disk: Disk) {
    let cli = Cli { root: TempDir::new_in(disk.at.path()).unwrap() };
    let root = cli.root.path();
    let server = Upstream::start(answers);
    let outbox = kit::open(root, &server.url());
    let mut sent = Vec::new();

    // Entries that a pass will want to write something about. One of them it has written about before.
    for target in ["/later/again", "/later", "/conflict", "/rejected", "/damaged"] {
        queue(&outbox, target, b"0123456789".to_vec(), &mut sent).await.unwrap();
        if sent.len() == 1 {
            assert_eq!(outbox.replay().await.unwrap().deferred, 1);
            outbox.retry(&sent[0].0).await.unwrap();
            // From here on as if nobody had ever replayed: what replaying writes has no room yet.
            File::create(kit::path(root, ".lock")).unwrap();
            let _ = fs::remove_file(kit::path(root, ".lease"));
        }
    }
    let again = kit::path(root, &format!("{}/state.json", sent[0].0));
    let noted = fs::read(&again).unwrap();
    fs::write(kit::path(root, &format!("{}/body.bin", sent[4].0)), "012345678X").unwrap();
    let specials = sent.len();

    // Until nothing more fits. The sizes are such that a write fails sometimes early, sometimes late.
    let refused = loop {
        let body = vec![sent.len() as u8; 3_000 + 1_700 * (sent.len() % 7)];
        let target = format!("/sound/{}", sent.len());
        let queued = queue(&outbox, &target, body, &mut sent).await;
        if queued.is_err() {
            break queued;
        }
    };
    assert!(sent.len() > specials + 5, "it was full too soon: {}", sent.len());
    let free = disk.free();
    assert_refused(refused, &disk, root, free);
    for len in [5_000, 20_000, 200_000] {
        if disk.scarce == Scarce::Inodes || len > 15_000 {
            assert_refused(queue(&outbox, "/x", vec![1; len], &mut sent).await, &disk, root, free);
        }
    }
    if disk.scarce == Scarce::Bytes {
        let endless = Body::reader(std::io::repeat(7));
        assert_refused(outbox.enqueue_write(QueuedWrite::new("PUT", "/x"), endless).await, &disk, root, free);
    }

    // Not a byte, or not an inode, is left.
    let free = disk.fill();
    assert_refused(queue(&outbox, "/x", vec![1; 5_000], &mut sent).await, &disk, root, free);
    let ran = cli.run_with_stdin(&["send", "PUT", "/x", "--body", "-"], &[1; 5_000]);
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.lines().count()), (1, "", 1), "{ran:?}");
    assert!(
        ran.stderr.contains("no space") && ran.stderr.contains("nothing was queued or changed"),
        "{ran:?}"
    );
    assert_eq!((disk.free(), staged(root)), (free, vec![]));
    let pending: Vec<String> =
        outbox.pending(None, 10_000).await.unwrap().into_iter().map(|entry| entry.id).collect();
    assert_eq!(pending, sent.iter().map(|(id, ..)| id.clone()).collect::<Vec<_>>());
    let damaged = |findings: Vec<outbox_host::Finding>| -> Vec<String> {
        findings.into_iter().map(|finding| finding.name).collect()
    };
    assert_eq!(damaged(outbox.verify().await.unwrap()), [sent[4].0.clone()]);

    // What is sound is delivered all the same. One at a time: what is noted is noted on the full disk.
    let ran = cli.run(["replay", "--json", "--upstream", &server.url(), "--concurrency", "1"]);
    assert!([3, 4].contains(&ran.code), "{ran:?}");
    assert!(ran.stderr.lines().all(|line| line.contains("WARN no lease can be written")), "{ran:?}");
    let report = parse(ran.stdout.lines().last().unwrap());
    assert_eq!(report["delivered"], sent.len() - specials, "{ran:?}");
    let seen = server.seen();
    for (id, target, body) in sent.iter().skip(specials) {
        let whole: Vec<&Seen> = seen.iter().filter(|seen| seen.target == *target && seen.complete).collect();
        assert_eq!(whole.len(), 1, "{target}");
        assert!(whole[0].body == *body && whole[0].header("idempotency-key") == Some(id), "{target}");
    }
    assert!(seen.iter().all(|seen| seen.target != "/damaged" || !seen.complete));
    // The others are still there: where they were, or where they are kept.
    for (id, target, _) in sent.iter().take(specials) {
        let item = outbox.get(id).await.unwrap();
        let aside = match target.as_str() {
            "/conflict" => Place::Conflict,
            "/rejected" => Place::Rejected,
            "/damaged" => Place::Corrupt,
            _ => Place::Pending,
        };
        assert!([Place::Pending, aside].contains(&item.place), "{target}: {item:?}");
    }
    assert_eq!(fs::read(&again).unwrap(), noted, "what was known of an entry is gone");
    for path in cli.tree().iter().map(|path| kit::path(root, path)).filter(|path| path.is_file()) {
        let name = path.file_name().unwrap().to_str().unwrap();
        match name {
            "meta.json" | "state.json" | "response.json" => drop(kit::json(&path)),
            // The reason is a help, not a must.
            "body.bin" | "reason.txt" => {}
            other => panic!("{other} is left in an entry"),
        }
    }

    // Room again.
    disk.make_room();
    queue(&outbox, "/room/again", b"x".to_vec(), &mut sent).await.unwrap();
    let (_, outcomes, report) = cli.replay(&server.url(), &[]);
    let counts = ["conflicts", "rejected", "corrupt"].map(|place| outcomes_of(&cli, place));
    assert_eq!((counts, &report["delivered"]), ([1, 1, 1], &1.into()), "{outcomes:#?}");
    server.script(|_| 204);
    for (id, ..) in &sent[..2] {
        cli.ok(["retry", id]);
    }
    let (code, outcomes, report) = cli.replay(&server.url(), &[]);
    assert_eq!(
        (code, &report["delivered"], &report["remaining"]),
        (4, &2.into(), &0.into()),
        "{outcomes:#?}"
    );
    assert_eq!(staged(root), [""; 0]);
    let left: Vec<String> = fs::read_dir(root.join(OUTBOX_DIR))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.starts_with('.') && !["rejected", "corrupt"].contains(&name.as_str()))
        .collect();
    assert!(left.len() == 1 && left[0].starts_with(&format!("{}.conflict-", sent[2].0)), "{left:?}");
}

fn outcomes_of(cli: &Cli, place: &str) -> u64 {
    parse(cli.run(["status", "--json"]).stdout)[place].as_u64().unwrap()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn a_tmpfs_without_bytes_refuses_writes_and_delivers_what_it_has() {
    in_namespace("a_tmpfs_without_bytes_refuses_writes_and_delivers_what_it_has", || {
        runtime().block_on(fills_up(Disk::tmpfs(Scarce::Bytes)));
    });
}

#[test]
fn a_tmpfs_without_inodes_refuses_writes_and_delivers_what_it_has() {
    in_namespace("a_tmpfs_without_inodes_refuses_writes_and_delivers_what_it_has", || {
        runtime().block_on(fills_up(Disk::tmpfs(Scarce::Inodes)));
    });
}

#[test]
fn an_ext4_without_bytes_or_inodes_refuses_writes_and_delivers_what_it_has() {
    in_namespace("an_ext4_without_bytes_or_inodes_refuses_writes_and_delivers_what_it_has", || {
        for scarce in [Scarce::Bytes, Scarce::Inodes] {
            match Disk::ext4(scarce) {
                Ok(disk) => runtime().block_on(fills_up(disk)),
                Err(why) => println!("skipped: no ext4 can be made here: {why}"),
            }
        }
    });
}

#[test]
fn what_is_to_replace_what_is_delivered_also_on_a_full_disk() {
    in_namespace("what_is_to_replace_what_is_delivered_also_on_a_full_disk", || {
        let disk = Disk::tmpfs(Scarce::Bytes);
        let cli = Cli { root: TempDir::new_in(disk.at.path()).unwrap() };
        let server = Upstream::start(answers);
        for uri in ["/a", "/b", "/a"] {
            cli.send(&["PUT", uri, "--base-etag", "\"v1\""]);
        }
        disk.fill();
        let url = server.url();
        let ran = cli.run(["replay", "--json", "--upstream", &url, "--coalesce", "--concurrency", "1"]);
        let report = parse(ran.stdout.lines().last().unwrap());
        let counts = ["delivered", "superseded", "remaining"].map(|count| report[count].as_u64().unwrap());
        // What cannot be handed over is not left out either.
        assert_eq!((ran.code, counts), (0, [3, 0, 0]), "{ran:?}");
    });
}

#[test]
fn an_entry_can_be_dropped_on_a_full_disk_and_leaves_its_version_to_the_next_one() {
    in_namespace("an_entry_can_be_dropped_on_a_full_disk_and_leaves_its_version_to_the_next_one", || {
        let disk = Disk::tmpfs(Scarce::Bytes);
        let cli = Cli { root: TempDir::new_in(disk.at.path()).unwrap() };
        // The second of three edits is not taken now; it has inherited what the first one made.
        let server = Upstream::start(|seen| match seen.header("if-match") {
            Some("\"v1\"") if seen.method == "PUT" => Act::from(Reply::new(204).header("ETag", "\"v2\"")),
            _ => Act::from(503),
        });
        let edits = ["1", "2", "3"]
            .map(|n| cli.send(&["PUT", "/doc", "--base-etag", "\"v1\"", "--header", &format!("X-N: {n}")]));
        cli.replay(&server.url(), &[]);
        disk.fill();
        let ran = cli.run(["drop", &edits[1]]);
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{ran:?}");
        let state = kit::json(&kit::path(cli.root.path(), &format!("{}/state.json", edits[2])));
        assert_eq!(state["validator"]["etag"], "\"v2\"");
    });
}

#[test]
fn a_stock_hosts_loop_takes_a_lease_once_there_is_room_for_one() {
    in_namespace("a_stock_hosts_loop_takes_a_lease_once_there_is_room_for_one", || {
        runtime().block_on(async {
            let disk = Disk::tmpfs(Scarce::Bytes);
            let root = TempDir::new_in(disk.at.path()).unwrap();
            let gate = Gate::new();
            let acts = vec![Act::Cut, Act::ReplyAfter(gate.clone(), Reply::new(204)), 204.into()];
            let server = Upstream::sequence(acts);
            let outbox = kit::open(root.path(), &server.url());
            kit::send(&outbox, "PUT", "/a", "x").await;
            disk.fill();
            let url = server.url();
            let env = [("OUTBOX_UPSTREAM", url.as_str())];
            tokio::select! {
                ended = run_plain(root.path(), Clocks::default(), &env, &["run"]) => panic!("{ended:?}"),
                () = async {
                    // The first pass has no lease, and ends with this.
                    server.wait_for(1).await;
                    disk.make_room();
                    kit::send(&outbox, "PUT", "/b", "x").await;
                    server.wait_for(2).await;
                    assert!(kit::path(root.path(), ".lease").exists());
                    gate.open();
                } => {}
            }
        });
    });
}

#[test]
fn nothing_is_sent_that_could_not_be_taken_out_of_the_queue() {
    in_namespace("nothing_is_sent_that_could_not_be_taken_out_of_the_queue", || {
        runtime().block_on(async {
            let disk = Disk::tmpfs(Scarce::Inodes);
            let root = TempDir::new_in(disk.at.path()).unwrap();
            let server = Upstream::start(|_| 204);
            kit::send(&kit::open(root.path(), &server.url()), "POST", "/a", "x").await;
            // As where only the original has queued anything.
            fs::remove_dir_all(kit::path(root.path(), ".staging")).unwrap();
            disk.fill();
            let (url, clocks) = (server.url(), Clocks::default());
            let env = [("OUTBOX_UPSTREAM", url.as_str())];
            let ended = run_plain(root.path(), clocks.clone(), &env, &["replay"]).await;
            assert!(ended.ok && ended.stdout.contains(r#""deferred":1"#), "{ended:?}");
            let (report, _) = kit::replay(&kit::open(root.path(), &url)).await;
            assert_eq!((report.deferred, report.remaining), (1, 1));
            assert_eq!(server.lines(), [""; 0]);
            disk.make_room();
            assert!(run_plain(root.path(), clocks, &env, &["replay"]).await.ok);
            assert_eq!(server.lines(), ["POST /a"]);
        });
    });
}
