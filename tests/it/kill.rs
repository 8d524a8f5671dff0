//! Processes that die by SIGKILL at moments that nobody chose: an acknowledged write arrives in the end, whole,
//! in order, and under one id; one that was not acknowledged arrives whole or not at all. The kernel survives
//! here, so that the page cache does too; what a power failure does is the simulator's to show.

use crate::cli::{Cli, Daemon};
use crate::kit::{self, OUTBOX_DIR};
use crate::rng::Rng;
use crate::upstream::{Act, Reply, Seen, Upstream};
use outbox_host::{Durability, Write as QueuedWrite};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, File, FileTimes};
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

/// Repeats a run.
const SEED: &str = "OUTBOX_KILL_SEED";
/// Kills of `outbox send`, over all threads; and of `outbox run`. At least 200 together.
const SENDS: usize = 120;
const RUNS: usize = 100;
/// Threads that send at the same time, each to a path of its own.
const WRITERS: usize = 3;
/// What a pipe takes before somebody reads: who has written more knows that somebody does.
const PIPE: usize = 64 * 1024;
/// Requests that a daemon has in flight at most: each may be repeated after a kill.
const CONCURRENCY: usize = 4;

/// One write that was tried.
#[derive(Debug)]
struct Sent {
    writer: usize,
    n: usize,
    len: usize,
    /// The id, where it was acknowledged.
    id: Option<String>,
    /// Whether its body was given to its end: only then may it ever arrive.
    whole: bool,
}

impl Sent {
    fn target(&self) -> String {
        target(self.writer, self.n)
    }

    fn body(&self) -> Vec<u8> {
        body(self.writer, self.n, self.len)
    }
}

/// All writes of a writer are to one path, so that their order counts.
fn target(writer: usize, n: usize) -> String {
    format!("/path/{writer}?n={n}")
}

/// A body that no other write has.
fn body(writer: usize, n: usize, len: usize) -> Vec<u8> {
    Rng::new((writer * 1_000_000 + n) as u64).bytes(len)
}

/// Mostly small; some larger than the buffers on the way.
fn length(rng: &mut Rng) -> usize {
    match rng.below(6) {
        0 => 0,
        1 => 200_000 + rng.below(300_000),
        _ => 1 + rng.below(5_000),
    }
}

/// Waits by computing: sleeping is not exact to the microsecond.
fn spin(micros: usize) {
    let started = Instant::now();
    while started.elapsed() < Duration::from_micros(micros as u64) {
        std::hint::spin_loop();
    }
}

/// A server that tells of every request when its head has come, in that order, and notes it.
struct Server {
    upstream: Upstream,
    heads: Arc<Mutex<Vec<String>>>,
    came: Receiver<()>,
}

impl Server {
    fn start() -> Server {
        let heads = Arc::new(Mutex::new(Vec::new()));
        let (sender, came): (Sender<()>, _) = channel();
        let noted = heads.clone();
        let upstream = Upstream::start(move |seen: &Seen| {
            noted.lock().unwrap().push(seen.target.clone());
            let _ = sender.send(());
            let long = seen.header("content-length").is_some_and(|len| len.len() > 5);
            match long {
                // Time to be killed in the middle of it.
                true => Act::ReadSlowly(Duration::from_millis(1), Reply::new(204)),
                false => Act::from(204),
            }
        });
        Server { upstream, heads, came }
    }

    /// What must hold in the end, when everything that was queued has been delivered. How many requests came
    /// a second time, and how many came torn.
    fn assert_kept(&self, sent: &[Sent]) -> (usize, usize) {
        let by_target: BTreeMap<String, &Sent> = sent.iter().map(|sent| (sent.target(), sent)).collect();
        let seen = self.upstream.seen();
        let mut arrived: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for request in &seen {
            let sent = by_target[&request.target];
            assert!(sent.whole, "{sent:?} was sent, though its body was never given to its end");
            let key = request.header("idempotency-key").unwrap();
            let keys = arrived.entry(&request.target).or_default();
            keys.insert(key);
            assert_eq!(keys.len(), 1, "{sent:?} came under several ids: {keys:?}");
            if let Some(id) = &sent.id {
                assert_eq!(key, id, "{sent:?}");
            }
            if request.complete {
                assert!(request.body == sent.body(), "{sent:?} came with another body");
            }
        }
        for sent in sent.iter().filter(|sent| sent.id.is_some()) {
            let whole = seen.iter().filter(|request| request.complete && request.target == sent.target());
            assert!(whole.count() >= 1, "{sent:?} was acknowledged and never arrived");
        }
        // In order per path, by the arrival of the heads. A repeat comes before the next one.
        let mut last: BTreeMap<usize, usize> = BTreeMap::new();
        let heads = self.heads.lock().unwrap();
        for head in heads.iter() {
            let sent = by_target[head];
            let last = last.entry(sent.writer).or_default();
            assert!(*last <= sent.n, "{sent:?} came after number {last} of its path: {heads:#?}");
            *last = sent.n;
        }
        (heads.len() - arrived.len(), seen.iter().filter(|request| !request.complete).count())
    }
}

/// Whatever is visible in the queue is a whole entry. Nobody may be at work.
fn assert_no_half_entry(root: &Path) {
    for entry in fs::read_dir(root.join(OUTBOX_DIR)).unwrap() {
        let dir = entry.unwrap().path();
        let name = dir.file_name().unwrap().to_str().unwrap();
        if name.starts_with('.') {
            continue;
        }
        let meta = kit::json(&dir.join("meta.json"));
        let len = fs::metadata(dir.join("body.bin")).unwrap_or_else(|e| panic!("{name}: {e}")).len();
        assert_eq!((meta["id"].as_str(), meta["body_len"].as_u64()), (Some(name), Some(len)));
    }
}

/// Ends a story: everything is sound, is delivered by one pass, and nothing is left, nor in `.staging` once
/// what is there is old.
fn assert_drains(cli: &Cli, server: &Server) {
    let root = cli.root.path();
    assert_no_half_entry(root);
    // 3: entries wait.
    let verified = cli.run(["verify"]);
    assert!([0, 3].contains(&verified.code) && verified.stderr.is_empty(), "{verified:?}");
    let staging = kit::path(root, ".staging");
    let an_hour_ago = FileTimes::new().set_modified(SystemTime::now() - Duration::from_secs(2 * 3600));
    for left in fs::read_dir(&staging).unwrap().map(|entry| entry.unwrap().path()) {
        let _ = File::open(left.join("body.bin")).map(|body| body.set_times(an_hour_ago).unwrap());
        File::open(&left).unwrap().set_times(an_hour_ago).unwrap();
    }
    let (code, outcomes, report) = cli.replay(&server.upstream.url(), &[]);
    assert_eq!(code, 0, "{report}: {outcomes:#?}");
    assert!(cli.tree().is_empty(), "{:?}", cli.tree());
    assert_eq!(fs::read_dir(&staging).unwrap().count(), 0, "what was left in .staging is never swept");
    cli.ok(["verify"]);
}

/// What is visible in the queue.
fn visible(root: &Path) -> BTreeSet<OsString> {
    let names =
        fs::read_dir(root.join(OUTBOX_DIR)).into_iter().flatten().map(|entry| entry.unwrap().file_name());
    names.filter(|name| !name.as_encoded_bytes().starts_with(b".")).collect()
}

/// When a `send` is killed.
#[derive(Debug)]
enum Moment {
    /// So many microseconds after its start, with nothing on its stdin.
    Starting(usize),
    /// After so many bytes of its body, and so many microseconds.
    Fed(usize, usize),
    /// So many microseconds after the end of its body, which it was reading before.
    Closed(usize),
    /// So many microseconds after something new was in the queue: published, and not acknowledged yet.
    Published(usize),
    /// As soon as it has printed something.
    Acknowledged,
}

impl Moment {
    fn choose(rng: &mut Rng, len: &mut usize) -> Moment {
        match rng.below(8) {
            0 => Moment::Starting(rng.below(80_000)),
            1 | 2 => {
                *len += 1;
                Moment::Fed(rng.below(*len), rng.below(80_000))
            }
            3 => Moment::Closed(rng.below(80_000)),
            4 => Moment::Acknowledged,
            5 => {
                *len += 2 * PIPE;
                Moment::Closed(rng.below(50_000))
            }
            _ => Moment::Published(rng.below(1_500)),
        }
    }
}

/// One `outbox send` that is killed, unless it has ended before. Whether it was, and what is known of its write.
fn killed_send(cli: &Cli, rng: &mut Rng, writer: usize, n: usize) -> (bool, Sent) {
    let mut len = length(rng);
    let moment = Moment::choose(rng, &mut len);
    let body = body(writer, n, len);
    let root = cli.root.path();
    let before = visible(root);
    let mut command = cli.command(["send", "PUT", &target(writer, n), "--body", "-"]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut printed = Vec::new();
    let mut feed = |bytes: &[u8]| stdin.write_all(bytes).unwrap_or_else(|e| panic!("{moment:?}: {e}"));
    let whole = match &moment {
        Moment::Starting(micros) => {
            spin(*micros);
            false
        }
        Moment::Fed(bytes, micros) => {
            feed(&body[..*bytes]);
            spin(*micros);
            false
        }
        Moment::Closed(micros) => {
            feed(&body);
            drop(stdin);
            spin(*micros);
            true
        }
        Moment::Published(micros) => {
            feed(&body);
            drop(stdin);
            let patience = Instant::now();
            while visible(root).is_subset(&before) && patience.elapsed() < Duration::from_secs(1) {}
            spin(*micros);
            true
        }
        Moment::Acknowledged => {
            feed(&body);
            drop(stdin);
            printed.resize(1, 0);
            stdout.read_exact(&mut printed).unwrap();
            true
        }
    };
    kill_process(Pid::from_child(&child), Signal::KILL).unwrap();
    stdout.read_to_end(&mut printed).unwrap();
    let output = child.wait_with_output().unwrap();
    let killed = output.status.signal() == Some(Signal::KILL.as_raw());
    assert!(killed || output.status.success(), "{moment:?}: {output:?}");
    let printed = String::from_utf8(printed).unwrap();
    let id = printed.strip_suffix('\n').map(|line| line.strip_prefix("queued ").unwrap().to_owned());
    assert!(killed || id.is_some(), "{moment:?}: success without an id: {printed:?}");
    assert!(whole || id.is_none(), "{moment:?}: acknowledged before its body's end");
    (killed, Sent { writer, n, len, id, whole })
}

/// Several threads of sends, until there were this many kills; what was sent is added.
fn kill_sends(cli: &Cli, rng: &mut Rng, kills: usize, sent: &mut Vec<Sent>) {
    let first = sent.len();
    let each = kills.div_ceil(WRITERS);
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let mut rng = rng.fork();
                scope.spawn(move || {
                    let mut sent = Vec::new();
                    let mut killed = 0;
                    while killed < each {
                        let (was_killed, write) = killed_send(cli, &mut rng, writer, first + sent.len());
                        killed += usize::from(was_killed);
                        sent.push(write);
                    }
                    sent
                })
            })
            .collect();
        sent.extend(writers.into_iter().flat_map(|writer| writer.join().unwrap()));
    });
}

#[test]
fn a_send_that_is_killed_has_queued_its_write_whole_or_not_at_all() {
    let cli = Cli::new();
    let mut rng = Rng::seeded(SEED);
    let server = Server::start();
    let mut sent = Vec::new();
    kill_sends(&cli, &mut rng, SENDS / 2, &mut sent);
    assert_no_half_entry(cli.root.path());
    // And with a daemon that takes away what they queue.
    let daemon = cli.daemon(&server.upstream.url(), &[]);
    kill_sends(&cli, &mut rng, SENDS / 2, &mut sent);
    daemon.stop();
    assert_drains(&cli, &server);
    let (repeats, torn) = server.assert_kept(&sent);
    assert_eq!((repeats, torn), (0, 0), "whoever sends was never killed");
    let count = |wanted: fn(&Sent) -> bool| sent.iter().filter(|sent| wanted(sent)).count();
    let arrived = server.upstream.seen().len();
    let acknowledged = count(|sent| sent.id.is_some());
    println!(
        "{} sends, {SENDS} killed: {acknowledged} acknowledged, {} more arrived, {} cut off in their body",
        sent.len(),
        arrived - acknowledged,
        count(|sent| !sent.whole),
    );
}

/// Queues some writes from this process: what is killed here is the daemon.
fn queue(outbox: &outbox_host::Outbox, rng: &mut Rng, count: usize, sent: &mut Vec<Sent>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for _ in 0..count {
        let (writer, n, len) = (rng.below(6), sent.len(), length(rng));
        let write = QueuedWrite::new("PUT", target(writer, n));
        let id = runtime.block_on(outbox.enqueue_write(write, body(writer, n, len).into())).unwrap();
        sent.push(Sent { writer, n, len, id: Some(id), whole: true });
    }
}

#[test]
fn a_daemon_that_is_killed_in_mid_replay_loses_nothing_and_repeats_only_what_was_in_flight() {
    let cli = Cli::new();
    let mut rng = Rng::seeded(SEED);
    let server = Server::start();
    // Only processes die here, not the machine: what this one queues need not be synced.
    let outbox = kit::builder(cli.root.path()).durability(Durability::None).open().unwrap();
    let mut sent = Vec::new();
    let mut in_mid_replay = 0;
    for _ in 0..RUNS {
        let waiting = 2 + rng.below(8);
        queue(&outbox, &mut rng, waiting, &mut sent);
        while server.came.try_recv().is_ok() {}
        let daemon = Daemon::spawn(cli.command(["run", "--upstream", &server.upstream.url()]));
        // Others are queued while it runs.
        let more = rng.below(4);
        queue(&outbox, &mut rng, more, &mut sent);
        if rng.one_in(5) {
            spin(rng.below(100_000));
        } else {
            for _ in 0..=rng.below(waiting) {
                server.came.recv_timeout(Duration::from_secs(30)).expect("a request for an entry that waits");
            }
            in_mid_replay += 1;
            spin(rng.below(4_000));
        }
        daemon.signal(Signal::KILL);
        let (status, log) = daemon.end();
        assert_eq!(status.signal(), Some(Signal::KILL.as_raw()), "it ended by itself: {log:#?}");
        assert_no_half_entry(cli.root.path());
    }
    assert_drains(&cli, &server);
    let (repeats, torn) = server.assert_kept(&sent);
    assert!(repeats <= RUNS * CONCURRENCY, "{repeats} repeats after {RUNS} kills");
    assert!(torn > 0, "no kill hit a body: the test has lost its teeth");
    println!(
        "{} writes, {RUNS} kills, {in_mid_replay} of them in mid-replay: {repeats} repeats, {torn} torn bodies",
        sent.len()
    );
}
