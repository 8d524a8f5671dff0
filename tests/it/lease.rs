//! Who replays where there is no lock: hosts that know nothing of each other share a lease, and the bundled host
//! heeds it and holds one itself.

use crate::kit::{builder, json, open, path, replay, root, send};
use crate::plain_host::{Clocks, Ended, run};
use crate::upstream::{Act, Gate, Reply, Seen, Upstream};
use outbox_host::{Durability, Error, Event, Outbox};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tempfile::TempDir;
use tokio::sync::broadcast::Receiver;
use tokio::task::JoinHandle;

/// Within the timeouts of a request, also where the clock goes faster.
const PATIENT: (&str, &str) = ("OUTBOX_IDLE_TIMEOUT_MS", "86400000");

async fn plain(root: &Path, clocks: Clocks, upstream: &str, command: &str) -> Ended {
    run(root, clocks, &[("OUTBOX_UPSTREAM", upstream), PATIENT], &[command]).await
}

/// A pass of a plain host whose request is at the server, which holds its reply back.
struct Held {
    root: TempDir,
    server: Upstream,
    gate: Gate,
    outbox: Outbox,
    first: JoinHandle<Ended>,
}

impl Held {
    async fn start(clocks: Clocks) -> Held {
        let (root, gate) = (root(), Gate::new());
        let held = gate.clone();
        let server = Upstream::start(move |_: &Seen| Act::ReplyAfter(held.clone(), Reply::new(204)));
        let outbox = open(root.path(), &server.url());
        send(&outbox, "PUT", "/x", "1").await;
        let (dir, url) = (root.path().to_owned(), server.url());
        let first = tokio::spawn(async move { plain(&dir, clocks, &url, "replay").await });
        server.wait_for(1).await;
        Held { root, server, gate, outbox, first }
    }

    fn lease(&self) -> PathBuf {
        path(self.root.path(), ".lease")
    }
}

#[tokio::test]
async fn a_second_replayer_is_told_who_replays_and_sends_nothing() {
    let mut held = Held::start(Clocks::default()).await;
    let lease = json(&held.lease());
    let (owner, expires) = (lease["owner"].as_str().unwrap(), lease["expires"].as_str().unwrap());
    for command in ["replay", "run"] {
        let ended = plain(held.root.path(), Clocks::default(), &held.server.url(), command).await;
        assert!(!ended.ok && ended.stdout.is_empty(), "{ended:?}");
        assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
        assert!(ended.stderr.contains("another replays") && ended.stderr.contains(owner), "{ended:?}");
    }
    // The bundled host keeps away from it, too.
    match held.outbox.replay().await {
        Err(Error::Leased { owner: by, expires: until }) => {
            assert_eq!((by.as_str(), until.as_str()), (owner, expires));
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(builder(held.root.path()).upstream("http://h").start(), Err(Error::Leased { .. })));
    assert!(held.outbox.status().await.unwrap().replaying);
    // Queueing is for everybody.
    send(&held.outbox, "PUT", "/y", "2").await;
    held.gate.open();
    let ended = (&mut held.first).await.unwrap();
    assert!(ended.ok, "{ended:?}");
    assert_eq!(held.server.lines()[0], "PUT /x");
    assert!(!held.lease().exists(), "it is given back at the end");
    assert!(!held.outbox.status().await.unwrap().replaying);
    assert_eq!(replay(&held.outbox).await.0.remaining, 0);
    assert_eq!(held.server.lines(), ["PUT /x", "PUT /y"]);
}

#[tokio::test]
async fn a_lease_is_renewed_while_the_pass_runs_and_one_who_has_lost_it_stops() {
    // Twenty seconds pass in a fifth of one.
    let mut held = Held::start(Clocks { times: 100, ..Clocks::default() }).await;
    let first = json(&held.lease());
    let renewed = async {
        while json(&held.lease())["expires"] == first["expires"] {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    crate::kit::soon("a renewal", renewed).await;
    assert_eq!(json(&held.lease())["owner"], first["owner"]);
    // To one whose clock is far ahead, it has expired.
    held.server.script(|_: &Seen| Act::from(204));
    let ahead = Clocks { ahead: Duration::from_secs(600), ..Clocks::default() };
    let url = held.server.url();
    let first = tokio::select! {
        first = &mut held.first => first.unwrap(),
        thief = plain(held.root.path(), ahead, &url, "run") => panic!("it goes on: {thief:?}"),
    };
    assert!(!first.ok && first.stderr.contains("another replays"), "{first:?}");
    assert_eq!(held.server.lines(), ["PUT /x", "PUT /x"]);
    let keys: Vec<_> =
        held.server.seen().iter().map(|s| s.header("idempotency-key").map(str::to_owned)).collect();
    assert_eq!(keys[0], keys[1], "what was in flight is repeated as such");
}

#[tokio::test]
async fn a_lease_whose_holder_died_is_in_the_way_until_it_expires_and_no_longer() {
    let (root, server) = (root(), Upstream::start(|_| 204));
    let outbox = open(root.path(), &server.url());
    send(&outbox, "PUT", "/x", "1").await;
    let lease = path(root.path(), ".lease");
    let at = |seconds| format!("{{\"owner\":\"0123456789abcdef\",\"expires\":\"{}\"}}\n", time(seconds));
    for (text, free) in [
        (at(30), false),
        // Of one whose clock is half a minute ahead.
        (at(90), false),
        (at(-1), true),
        // Written before the clock was set back.
        (at(3600), true),
        // Torn, or being written: it counts from its last change.
        (String::new(), false),
        ("{\"owner\":".into(), false),
    ] {
        std::fs::write(&lease, &text).unwrap();
        let ended = plain(root.path(), Clocks::default(), &server.url(), "replay").await;
        assert_eq!(ended.ok, free, "{text}: {ended:?}");
        assert_eq!(lease.exists(), !free, "{text}");
        let ahead = Clocks { ahead: Duration::from_secs(180), ..Clocks::default() };
        assert!(plain(root.path(), ahead, &server.url(), "replay").await.ok, "{text}");
        assert!(!lease.exists(), "{text}");
    }
    let staging = path(root.path(), ".staging");
    assert_eq!(staging.read_dir().unwrap().count(), 0);
    assert_eq!(server.lines(), ["PUT /x"]);
}

#[tokio::test]
async fn a_loop_sees_soon_what_was_queued_while_a_pass_ended() {
    let (root, gate) = (root(), Gate::new());
    let held = gate.clone();
    // The next pass for its sake would come after half a minute.
    let server = Upstream::start(move |seen: &Seen| match seen.target.as_str() {
        "/first" => Act::ReplyAfter(held.clone(), Reply::new(503).header("retry-after", "3600")),
        _ => Act::from(204),
    });
    let outbox = open(root.path(), &server.url());
    send(&outbox, "PUT", "/first", "1").await;
    let url = server.url();
    tokio::select! {
        ended = plain(root.path(), Clocks::default(), &url, "run") => panic!("{ended:?}"),
        () = async {
            server.wait_for(1).await;
            send(&outbox, "PUT", "/second", "2").await;
            gate.open();
            server.wait_for(2).await;
        } => {}
    }
    assert_eq!(server.lines(), ["PUT /first", "PUT /second"]);
}

#[tokio::test]
async fn the_bundled_host_holds_a_lease_beside_its_lock() {
    let (root, gate) = (root(), Gate::new());
    let held = gate.clone();
    let server = Upstream::start(move |_: &Seen| Act::ReplyAfter(held.clone(), Reply::new(204)));
    let lease = path(root.path(), ".lease");
    let outbox = builder(root.path()).upstream(server.url()).start().unwrap();
    send(&outbox, "PUT", "/x", "1").await;
    server.wait_for(1).await;
    let ended = plain(root.path(), Clocks::default(), &server.url(), "replay").await;
    assert!(!ended.ok && ended.stderr.contains(&format!("process {}", std::process::id())), "{ended:?}");
    // Told to, it does not look.
    let env = [("OUTBOX_UPSTREAM", server.url()), ("OUTBOX_LEASE", "none".into())];
    let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
    gate.open();
    assert!(run(root.path(), Clocks::default(), &env, &["replay"]).await.ok);
    outbox.shutdown().await;
    drop(outbox);
    assert!(!lease.exists());
    // Whoever has the lock knows that a lease that goes with the lock is of one who died.
    let expires = time(30);
    let dead = format!("{{\"owner\":\"process 1\",\"expires\":\"{expires}\",\"locked\":true}}\n");
    std::fs::write(&lease, dead).unwrap();
    replay(&open(root.path(), &server.url())).await;
    assert!(!lease.exists());
}

/// A stock host's lease, as one makes it that finds the present one expired: in a file of its own.
fn steal(lease: &Path) {
    std::fs::remove_file(lease).unwrap();
    std::fs::write(lease, format!("{{\"owner\":\"0123456789abcdef\",\"expires\":\"{}\"}}\n", time(50)))
        .unwrap();
}

/// Why the next pass fails.
async fn failure(events: &mut Receiver<Event>) -> String {
    let failed = async {
        loop {
            match events.recv().await.unwrap() {
                Event::Failed(why) => return why,
                Event::Pass(report) => panic!("{report:?}"),
                _ => {}
            }
        }
    };
    crate::kit::soon("a failure", failed).await
}

#[tokio::test]
async fn a_bundled_host_that_has_lost_its_lease_sends_nothing_until_it_is_free_again() {
    let (root, server) = (root(), Upstream::start(|_| 204));
    let outbox = builder(root.path()).upstream(server.url()).open().unwrap();
    let lease = path(root.path(), ".lease");
    let mut events = outbox.subscribe();
    outbox.start().unwrap();
    let first = async { while !matches!(events.recv().await, Ok(Event::Pass(_))) {} };
    crate::kit::soon("the first pass", first).await;
    steal(&lease);
    send(&outbox, "PUT", "/x", "1").await;
    assert!(failure(&mut events).await.contains("a stock host (0123456789abcdef) is replaying"));
    assert_eq!(server.lines(), [""; 0]);
    // It is given back.
    std::fs::remove_file(&lease).unwrap();
    outbox.wake();
    server.wait_for(1).await;
    assert_eq!(json(&lease)["owner"], format!("process {}", std::process::id()));
    outbox.shutdown().await;
    assert!(!lease.exists());
}

#[tokio::test]
async fn a_pass_of_a_bundled_host_that_has_lost_its_lease_is_stopped() {
    let (root, pause) = (root(), Duration::from_millis(100));
    let server = Upstream::start(move |_: &Seen| Act::ReadSlowly(pause, Reply::new(204)));
    // More than a lease would last.
    let outbox = builder(root.path()).upstream(server.url()).concurrency(1);
    let outbox = outbox.durability(Durability::None).open().unwrap();
    for number in 0..600 {
        send(&outbox, "PUT", &format!("/{number}"), "1").await;
    }
    let mut events = outbox.subscribe();
    outbox.start().unwrap();
    server.wait_for(1).await;
    steal(&path(root.path(), ".lease"));
    assert!(failure(&mut events).await.contains("a stock host (0123456789abcdef) is replaying"));
    let sent = server.seen().len();
    assert!(sent < 300, "{sent} were sent");
    assert_eq!(outbox.count().await.unwrap().pending, 600 - sent as u64);
    outbox.shutdown().await;
    assert_eq!(server.seen().len(), sent);
}

/// RFC 3339, so many seconds from now.
fn time(seconds: i64) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(now.saturating_add_signed(seconds));
    humantime::format_rfc3339_seconds(at).to_string()
}

/// Set in a process that was started for one test of this module: its root.
const INSIDE: &str = "OUTBOX_TEST_INSIDE";

/// Runs a test of this module in a process of its own, which a command starts.
#[cfg(unix)]
fn inside(test: &str, command: impl FnOnce(&Path) -> Vec<String>, story: impl AsyncFnOnce(&Path)) {
    if let Some(root) = std::env::var_os(INSIDE) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        return runtime.block_on(story(Path::new(&root)));
    }
    let root = root();
    let command = command(root.path());
    let mut again = std::process::Command::new(&command[0]);
    again.args(&command[1..]).arg(std::env::current_exe().unwrap()).env(INSIDE, root.path());
    again.args(["--exact", "--nocapture", &format!("lease::{test}")]);
    match again.output() {
        Ok(ran) => {
            let said = String::from_utf8_lossy(&[ran.stdout, ran.stderr].concat()).into_owned();
            assert!(ran.status.success() && said.contains("1 passed"), "{said}");
        }
        Err(error) => eprintln!("skipped {test}: {}: {error}", command[0]),
    }
}

#[cfg(unix)]
#[test]
fn a_lease_that_cannot_be_written_keeps_nothing_from_being_sent() {
    let at_a_quota = |root: &Path| {
        let lease = path(&root.canonicalize().unwrap(), ".lease").to_str().unwrap().to_owned();
        let calls = "write,pwrite64,pwritev,pwritev2";
        let (trace, inject) = (format!("trace={calls}"), format!("inject={calls}:error=EDQUOT"));
        let strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-P", &lease, "-e", &trace, "-e", &inject];
        strace.map(str::to_owned).to_vec()
    };
    inside("a_lease_that_cannot_be_written_keeps_nothing_from_being_sent", at_a_quota, async |root| {
        let server = Upstream::start(|_| 204);
        send(&open(root, &server.url()), "PUT", "/x", "1").await;
        let ended = plain(root, Clocks::default(), &server.url(), "replay").await;
        assert!(ended.ok && ended.stderr.contains("no space"), "{ended:?}");
        assert_eq!(server.lines(), ["PUT /x"]);
        assert!(!path(root, ".lease").exists());
    });
}

#[cfg(unix)]
#[test]
fn a_lease_that_may_not_be_read_counts_from_its_last_change() {
    use std::os::unix::fs::PermissionsExt;
    // To root, no mode forbids anything.
    let unprivileged = |_: &Path| {
        let without = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"].map(str::to_owned);
        if rustix::process::geteuid().is_root() { without.to_vec() } else { vec!["env".into()] }
    };
    inside("a_lease_that_may_not_be_read_counts_from_its_last_change", unprivileged, async |root| {
        let server = Upstream::start(|_| 204);
        send(&open(root, &server.url()), "PUT", "/x", "1").await;
        let lease = path(root, ".lease");
        for (changed, free) in [(30, false), (90, true)] {
            std::fs::write(&lease, "somebody else's").unwrap();
            crate::damage::age(&lease, Duration::from_secs(changed));
            std::fs::set_permissions(&lease, PermissionsExt::from_mode(0o000)).unwrap();
            let ended = plain(root, Clocks::default(), &server.url(), "replay").await;
            assert_eq!(ended.ok, free, "{ended:?}");
            assert!(free || ended.stderr.contains("another replays"), "{ended:?}");
            assert_eq!(lease.exists(), !free);
            let _ = std::fs::remove_file(&lease);
        }
        assert_eq!(server.lines(), ["PUT /x"]);
    });
}

#[tokio::test]
async fn a_torn_lease_of_the_farthest_future_is_in_nobodys_way() {
    // Where there is a file system that has such times.
    let root = TempDir::new_in("/dev/shm").unwrap_or_else(|_| root());
    let server = Upstream::start(|_| 204);
    send(&open(root.path(), &server.url()), "PUT", "/x", "1").await;
    let lease = std::fs::File::create(path(root.path(), ".lease")).unwrap();
    lease.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(i64::MAX as u64)).unwrap();
    let ended = plain(root.path(), Clocks::default(), &server.url(), "replay").await;
    assert!(ended.ok, "{ended:?}");
    assert_eq!(server.lines(), ["PUT /x"]);
}
