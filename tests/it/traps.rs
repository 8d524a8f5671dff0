//! Traps and limits of the guest, hit on purpose: the host goes on, nothing is lost, and the log says what
//! happened. The component is the one that ships, with one of its exports made to trap or to compute for ever.

use crate::cli::{Cli, parse};
use crate::kit::{self, builder, open, replay, root, send, soon};
use crate::upstream::{Act, Seen, Upstream};
use outbox_host::{Error, Event, Limits, Outbox, Runtime, RuntimeOptions, Write};
use std::io::Write as _;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};
use tempfile::NamedTempFile;
use wasmparser::{Encoding, ExternalKind, Imports, Parser, Payload, TypeRef};

/// What is put in place of a function's code.
#[derive(Debug, Clone, Copy)]
enum Spoilt {
    Traps,
    /// Computes without end and without a host call.
    Spins,
    /// Makes host calls without end, and waits in none.
    Chatters,
}

impl Spoilt {
    /// With the function that tells the time.
    fn code(self, now: u8) -> Vec<u8> {
        match self {
            Spoilt::Traps => vec![],
            Spoilt::Spins => vec![0x03, 0x40, 0x0c, 0x00, 0x0b],
            // It is called, and what it says is dropped.
            Spoilt::Chatters => vec![0x03, 0x40, 0x10, now, 0x1a, 0x0c, 0x00, 0x0b],
        }
    }
}

/// The component with the function of this export spoilt. No length changes, so that nothing else does.
fn component(export: &str, how: Spoilt) -> NamedTempFile {
    const UNREACHABLE: u8 = 0x00;
    const NOP: u8 = 0x01;
    const END: u8 = 0x0b;
    let mut bytes = Runtime::component().to_vec();
    let (range, now) = code_of(&bytes, export);
    let code = &mut bytes[range];
    let (last, rest) = code.split_last_mut().unwrap();
    assert_eq!(*last, END);
    // Behind the declaration of no locals.
    let mut spoilt = vec![0];
    spoilt.extend(how.code(now));
    spoilt.push(UNREACHABLE);
    assert!(spoilt.len() <= rest.len(), "the function of {export} is too short for this");
    rest.fill(NOP);
    rest[..spoilt.len()].copy_from_slice(&spoilt);
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(&bytes).unwrap();
    file
}

/// Where the code is of the only core function that is exported under a name with this end, and which function tells its
/// module the time.
fn code_of(component: &[u8], export: &str) -> (Range<usize>, u8) {
    let mut found = Vec::new();
    let mut imported = 0;
    let mut now = 0;
    let mut wanted = Vec::new();
    let mut bodies = 0;
    for payload in Parser::new(0).parse_all(component) {
        match payload.unwrap() {
            Payload::Version { encoding: Encoding::Module, .. } => {
                (imported, bodies) = (0, 0);
                wanted.clear();
            }
            Payload::ImportSection(section) => {
                for imports in section {
                    match imports.unwrap() {
                        Imports::Single(_, import) if matches!(import.ty, TypeRef::Func(_)) => {
                            if import.module.contains("monotonic-clock@") && import.name == "now" {
                                now = u8::try_from(imported).unwrap();
                            }
                            imported += 1;
                        }
                        Imports::Single(..) => {}
                        other => panic!("compact imports: {other:?}"),
                    }
                }
            }
            Payload::ExportSection(section) => {
                let functions =
                    section.into_iter().map(Result::unwrap).filter(|e| e.kind == ExternalKind::Func);
                // What frees a result has the same end.
                let functions =
                    functions.filter(|e| e.name.ends_with(export) && !e.name.starts_with("cabi_post"));
                wanted.extend(functions.map(|e| e.index));
            }
            Payload::CodeSectionEntry(body) => {
                if wanted.contains(&(imported + bodies)) {
                    found.push((body.range(), now));
                }
                bodies += 1;
            }
            _ => {}
        }
    }
    assert_eq!(found.len(), 1, "exports that end in {export}");
    found.remove(0)
}

/// The component, and beside its own modules this one, which starts after them.
fn component_with(module: &[u8]) -> NamedTempFile {
    let mut bytes = Runtime::component().to_vec();
    let modules = Parser::new(0).parse_all(&bytes);
    let modules = modules.filter(|payload| matches!(payload, Ok(Payload::ModuleSection { .. }))).count();
    bytes.extend([0x01, module.len() as u8]);
    bytes.extend(module);
    // An instance of it, which is given nothing.
    bytes.extend([0x02, 0x04, 0x01, 0x00, modules as u8, 0x00]);
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(&bytes).unwrap();
    file
}

fn runtime_of(component: &NamedTempFile) -> Runtime {
    let component = Some(component.path().to_owned());
    Runtime::new(&RuntimeOptions { component, cache_dir: Some(kit::cache_dir()) }).unwrap()
}

/// Queues writes to paths of their own.
async fn queue(outbox: &Outbox, names: Range<usize>) -> Vec<String> {
    let mut ids = Vec::new();
    for name in names {
        ids.push(send(outbox, "PUT", &format!("/{name}"), "0123456789").await);
    }
    ids
}

/// The sound component delivers all of these, in order and each once, and leaves nothing.
async fn assert_delivered_after_all(root: &Path, server: &Upstream, ids: &[String]) {
    let before = server.seen().len();
    let (report, deliveries) = replay(&open(root, &server.url())).await;
    assert_eq!((report.delivered, report.remaining), (ids.len() as u64, 0), "{deliveries:?}");
    let seen = &server.seen()[before..];
    let keys: Vec<&str> = seen.iter().map(|seen| seen.header("idempotency-key").unwrap()).collect();
    assert_eq!(keys.iter().copied().collect::<std::collections::BTreeSet<_>>().len(), ids.len());
    assert!(ids.iter().all(|id| keys.contains(&id.as_str())));
    assert!(seen.iter().all(|seen| seen.complete && seen.body == b"0123456789"));
    assert!(kit::tree(root).is_empty());
}

/// The text of the next failed pass.
async fn failed(events: &mut tokio::sync::broadcast::Receiver<Event>) -> String {
    let failed = async {
        loop {
            if let Event::Failed(why) = events.recv().await.unwrap() {
                return why;
            }
        }
    };
    soon("a failed pass", failed).await
}

#[tokio::test]
async fn a_replay_that_traps_or_never_ends_is_stopped_and_the_host_goes_on() {
    let cases = [
        (Spoilt::Traps, "unreachable"),
        // By the epoch: no host call is made that could be looked at.
        (Spoilt::Spins, "it computed for 500ms without a host call"),
    ];
    for (how, why) in cases {
        let (root, server) = (root(), Upstream::start(|_| 204));
        let spoilt = component("#[method]pass.next", how);
        let limits = Limits { deadline: Duration::from_millis(500), ..Limits::default() };
        let outbox = builder(root.path()).runtime(runtime_of(&spoilt)).limits(limits);
        let outbox = outbox.upstream(server.url()).start().unwrap();
        let mut events = outbox.subscribe();
        let mut ids = queue(&outbox, 0..3).await;
        // Again and again, and meanwhile everything else is done as ever.
        for round in 1..=3 {
            outbox.wake();
            let said = failed(&mut events).await;
            assert!(said.starts_with("the component was stopped: ") && said.contains(why), "{said}");
            ids.extend(queue(&outbox, 3 * round..3 * round + 3).await);
            assert_eq!(outbox.count().await.unwrap().pending, ids.len() as u64);
        }
        soon("the shutdown", outbox.shutdown()).await;
        drop(outbox);
        assert!(server.seen().is_empty());
        assert_delivered_after_all(root.path(), &server, &ids).await;
    }
}

#[tokio::test]
async fn a_guest_that_never_waits_is_abandoned_at_a_shutdown() {
    let abandoned = async |export: &str| {
        let root = root();
        let spoilt = component(export, Spoilt::Chatters);
        let outbox = builder(root.path()).runtime(runtime_of(&spoilt)).upstream("http://127.0.0.1:9");
        let outbox = outbox.start().unwrap();
        let mut events = outbox.subscribe();
        // The driver, which shares this thread, begins its pass.
        tokio::task::yield_now().await;
        let started = Instant::now();
        soon("the shutdown", outbox.shutdown()).await;
        assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
        let why = failed(&mut events).await;
        assert!(why.contains("abandoned"), "{export}: {why}");
        assert!(!outbox.status().await.unwrap().replaying);
    };
    tokio::join!(
        abandoned("[static]pass.start"),
        abandoned("[method]pass.next"),
        abandoned("[method]pass.report")
    );
}

#[tokio::test]
async fn a_trap_after_the_deliveries_undoes_none_of_them() {
    let (root, server) = (root(), Upstream::start(|_| 204));
    let spoilt = component("#[method]pass.report", Spoilt::Traps);
    let outbox = builder(root.path()).runtime(runtime_of(&spoilt)).upstream(server.url()).open().unwrap();
    for round in 1..=2 {
        queue(&outbox, 0..4).await;
        let report = outbox.replay().await;
        assert!(matches!(report, Err(Error::Trapped(_))), "{report:?}");
        assert_eq!(server.seen().len(), 4 * round);
    }
    assert_delivered_after_all(root.path(), &server, &[]).await;
}

#[tokio::test]
async fn an_enqueue_that_traps_or_never_ends_leaves_nothing_and_harms_no_other() {
    for how in [Spoilt::Traps, Spoilt::Spins] {
        let (root, server) = (root(), Upstream::start(|_| 204));
        let ids = queue(&open(root.path(), &server.url()), 0..3).await;
        let before = kit::tree(root.path());
        let spoilt = component("#enqueue-bytes", how);
        let limits = Limits { deadline: Duration::from_millis(500), ..Limits::default() };
        let outbox = builder(root.path()).runtime(runtime_of(&spoilt)).limits(limits).open().unwrap();
        let (first, second) = tokio::join!(
            outbox.enqueue_write(Write::new("PUT", "/x"), "1".into()),
            outbox.enqueue_write(Write::new("PUT", "/x"), "2".into())
        );
        for refused in [first, second] {
            assert!(matches!(refused, Err(Error::Trapped(_))), "{refused:?}");
        }
        assert_eq!((outbox.count().await.unwrap().pending, kit::tree(root.path())), (3, before));
        assert_delivered_after_all(root.path(), &server, &ids).await;
    }
}

#[tokio::test]
async fn a_component_that_never_starts_is_stopped() {
    // A function that loops, and that it is to be called at the start.
    const LOOPS: &[u8] = b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x03\x02\x01\0\x08\x01\0\
        \x0a\x09\x01\x07\0\x03\x40\x0c\0\x0b\x0b";
    let (root, never) = (root(), component_with(LOOPS));
    let limits = Limits { deadline: Duration::from_millis(500), ..Limits::default() };
    let outbox = builder(root.path()).runtime(runtime_of(&never)).limits(limits);
    let outbox = outbox.upstream("http://127.0.0.1:9").open().unwrap();
    let failures =
        [soon("the count", outbox.count()).await.err(), soon("the pass", outbox.replay()).await.err()];
    for failure in failures {
        let said = failure.unwrap().to_string();
        assert!(said.contains("it computed for 500ms without a host call"), "{said}");
    }
}

/// What is not in its memory is the host's all the same.
#[tokio::test]
async fn a_component_that_asks_for_more_than_its_share_beside_its_memory_does_not_start() {
    // A function that grows an empty table by 20 million, and traps where it is refused; it is called at the start.
    const TABLE: &[u8] = b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x03\x02\x01\0\x04\x04\x01\x70\0\0\x08\x01\0\
        \x0a\x15\x01\x13\0\xd0\x70\x41\x80\xda\xc4\x09\xfc\x0f\0\x41\x7f\x46\x04\x40\0\x0b\x0b";
    // A memory of its own.
    const MEMORY: &[u8] = b"\0asm\x01\0\0\0\x05\x03\x01\0\x01";
    for (module, why) in [(TABLE, "unreachable"), (MEMORY, "memory count too high")] {
        let (root, greedy) = (root(), component_with(module));
        let outbox = builder(root.path()).runtime(runtime_of(&greedy)).open().unwrap();
        let refused = outbox.count().await;
        assert!(matches!(&refused, Err(Error::Component(said)) if said.contains(why)), "{refused:?}");
    }
}

#[tokio::test]
async fn memory_that_runs_out_in_mid_replay_loses_nothing() {
    let (root, server) = (root(), Upstream::start(|_| 204));
    let outbox = open(root.path(), &server.url());
    let mut ids = queue(&outbox, 0..3).await;
    // Behind the first of them the others wait, in memory: too many for this little.
    for _ in 0..200 {
        let headers = ["X-A", "X-B", "X-C"].map(|name| (name.to_owned(), "x".repeat(15_000)));
        let write = Write { headers: headers.into(), ..Write::new("PUT", "/same") };
        ids.push(outbox.enqueue_write(write, "0123456789".into()).await.unwrap());
    }
    let limits = Limits { memory: 6 * 1024 * 1024, ..Limits::default() };
    let starved = builder(root.path()).upstream(server.url()).limits(limits).open().unwrap();
    let report = soon("the trap", starved.replay()).await;
    assert!(matches!(report, Err(Error::Trapped(_))), "{report:?}");
    let done = server.seen().len();
    assert!((1..100).contains(&done), "{done}");
    // At most those that were under way are sent again.
    let (report, _) = replay(&outbox).await;
    assert_eq!(report.remaining, 0);
    let arrived: Vec<String> =
        server.seen().iter().map(|seen| seen.header("idempotency-key").unwrap().to_owned()).collect();
    assert!(arrived.len() <= ids.len() + 4 && ids.iter().all(|id| arrived.contains(id)), "{}", arrived.len());
    assert!(kit::tree(root.path()).is_empty());
}

#[tokio::test]
async fn a_host_call_that_never_returns_is_cut_off_and_its_entry_sent_again() {
    let (root, server) = (root(), Upstream::start(|_: &Seen| Act::Stall));
    // Below the heartbeat of a guest that waits: for the host, this one hangs.
    let limits = Limits { deadline: Duration::from_secs(1), ..Limits::default() };
    let outbox = builder(root.path()).upstream(server.url()).limits(limits).open().unwrap();
    let id = send(&outbox, "PUT", "/a", "0123456789").await;
    let started = Instant::now();
    let report = outbox.replay().await;
    assert!(matches!(&report, Err(Error::Trapped(why)) if why.contains("no progress for 1s")), "{report:?}");
    assert!(started.elapsed() < Duration::from_secs(30));
    server.script(|_| 204);
    assert_delivered_after_all(root.path(), &server, &[id]).await;
}

#[tokio::test]
async fn the_daemons_log_says_what_stopped_a_pass_and_the_daemon_goes_on() {
    let cli = Cli::new();
    let server = Upstream::start(|_| 204);
    let spoilt = component("#[method]pass.next", Spoilt::Traps);
    let ids = [cli.send(&["PUT", "/a"]), cli.send(&["PUT", "/b"])];
    let mut daemon = cli.daemon(&server.url(), &["--component", spoilt.path().to_str().unwrap()]);
    for _ in 0..2 {
        let line = daemon.wait_for("pass failed");
        let message = line["message"].as_str().unwrap();
        assert!(message.contains("the component was stopped") && message.contains("unreachable"), "{line}");
        assert_eq!(line["level"], "ERROR");
        cli.ok(["wake"]);
    }
    let listed = parse(cli.ok(["list", "--json"]));
    assert_eq!(listed.as_array().unwrap().len(), 2);
    let log = daemon.stop();
    let errors = log.iter().filter(|line| line["level"] == "ERROR").count();
    assert!(
        errors <= 3,
        "one for each pass, of which there are two or, after the last wake, three: {log:#?}"
    );
    let (code, _, report) = cli.replay(&server.url(), &[]);
    assert_eq!((code, &report["delivered"]), (0, &2.into()));
    let seen = server.seen();
    let keys: Vec<_> = seen.iter().map(|seen| seen.header("idempotency-key").unwrap()).collect();
    assert_eq!(keys, ids);
}
