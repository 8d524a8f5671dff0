//! Bodies that are large, slow or broken.

use crate::connections::{Generated, MIB, assert_nothing_behind, send_large};
use crate::kit::{builder, open, replay, root, send, soon};
use crate::upstream::{Checksum, Upstream};
use bytes::Bytes;
use http_body::Frame;
use outbox_host::{Body, Error, Limits, Write};
use std::io::Read;
use std::pin::Pin;
use std::sync::mpsc;
use std::task::{Context, Poll};
use std::time::Duration;

/// The peak of this process's memory in MiB; counted anew from here on where the system lets us.
#[cfg(target_os = "linux")]
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak = line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024;
    let _ = std::fs::write("/proc/self/clear_refs", "5");
    peak
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn the_longest_body_passes_through_whole_in_little_memory() {
    // Memory is counted by process, so this test has one of its own.
    const ALONE: &str = "OUTBOX_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        let name = "bodies::the_longest_body_passes_through_whole_in_little_memory";
        let mut itself = std::process::Command::new(std::env::current_exe().unwrap());
        let done = itself.args(["--exact", name, "--nocapture"]).env(ALONE, "1").output().unwrap();
        let said = String::from_utf8_lossy(&done.stdout) + String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    let len = 256 * MIB;
    let (root, server) = (root(), Upstream::start(|_| 204));
    let outbox =
        builder(root.path()).upstream(server.url()).durability(outbox_host::Durability::None).open().unwrap();
    // All that is needed for any body is there from here on.
    send(&outbox, "PUT", "/small", "x").await;
    assert_eq!(replay(&outbox).await.0.delivered, 1);
    peak();
    let before = peak();
    send_large(&outbox, "/large", len).await;
    let (report, deliveries) = replay(&outbox).await;
    assert_eq!(report.delivered, 1, "{deliveries:?}");
    let seen = &server.seen()[1];
    assert_eq!((seen.body_len, seen.complete), (len, true));
    assert_eq!(seen.checksum, Generated::checksum(len));
    let growth = peak().saturating_sub(before);
    assert!(growth < 96, "the process grew by {growth} MiB");
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_and_leaves_nothing() {
    let root = root();
    let outbox = builder(root.path()).max_body(100_000).open().unwrap();
    let bodies = [Body::from(vec![0; 100_001]), Body::reader(Generated::new(8 * MIB))];
    for body in bodies {
        let refused = outbox.enqueue_write(Write::new("PUT", "/a"), body).await;
        assert!(matches!(refused, Err(Error::BodyTooLarge(100_000))), "{refused:?}");
        assert_nothing_behind(root.path());
    }
    outbox.enqueue_write(Write::new("PUT", "/a"), vec![0; 100_000].into()).await.unwrap();
}

/// A body that breaks off.
struct Broken(Option<Bytes>);

impl http_body::Body for Broken {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<std::io::Result<Frame<Bytes>>>> {
        let broken = || std::io::Error::other("the phone rang");
        Poll::Ready(Some(self.0.take().map(Frame::data).ok_or_else(broken)))
    }
}

impl Read for Broken {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let data = self.0.take().ok_or_else(|| std::io::Error::other("the phone rang"))?;
        buffer[..data.len()].copy_from_slice(&data);
        Ok(data.len())
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_is_refused_and_leaves_nothing() {
    let root = root();
    let outbox = open(root.path(), "http://127.0.0.1:9");
    let broken = || Broken(Some(Bytes::from_static(b"the start")));
    for body in [Body::stream(broken()), Body::reader(broken())] {
        match outbox.enqueue_write(Write::new("PUT", "/a"), body).await {
            Err(Error::BodyFailed(why)) => assert!(why.contains("the phone rang"), "{why}"),
            other => panic!("{other:?}"),
        }
        assert_nothing_behind(root.path());
    }
}

#[tokio::test]
async fn a_body_given_as_a_stream_arrives_whole() {
    let (root, server) = (root(), Upstream::start(|_| 204));
    let outbox = open(root.path(), &server.url());
    let body = http_body_util::Full::new(Bytes::from(vec![7; 3 * MIB as usize + 1]));
    outbox.enqueue_write(Write::new("PUT", "/a"), Body::stream(body)).await.unwrap();
    assert_eq!(replay(&outbox).await.0.delivered, 1);
    let seen = server.seen().remove(0);
    let mut whole = Checksum::default();
    whole.add(&vec![7; 3 * MIB as usize + 1]);
    assert_eq!((seen.body_len, seen.checksum), (3 * MIB + 1, whole));
}

/// A body that comes piece by piece, and that tells when it is first asked for one.
struct Trickle(Option<mpsc::Sender<()>>, mpsc::Receiver<Vec<u8>>);

impl Read for Trickle {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if let Some(asked) = self.0.take() {
            asked.send(()).unwrap();
        }
        let piece = self.1.recv().unwrap_or_default();
        buffer[..piece.len()].copy_from_slice(&piece);
        Ok(piece.len())
    }
}

#[tokio::test]
async fn a_body_that_does_not_go_on_is_named_as_what_stands_still() {
    let root = root();
    let limits = Limits { deadline: Duration::from_secs(1), ..Limits::default() };
    let outbox = builder(root.path()).limits(limits).open().unwrap();
    for begins in [true, false] {
        let (pieces, fed) = tokio::sync::mpsc::channel(1);
        if begins {
            pieces.send(Bytes::from("begun")).await.unwrap();
        }
        let stalled = Body::stream(Fed(fed));
        let refused = soon("the refusal", outbox.enqueue_write(Write::new("PUT", "/a"), stalled)).await;
        assert!(matches!(&refused, Err(Error::BodyFailed(why)) if why.contains("for 1s")), "{refused:?}");
        assert_nothing_behind(root.path());
    }
}

#[tokio::test]
async fn a_write_whose_caller_has_gone_is_not_queued_when_its_body_ends() {
    let root = root();
    let outbox = open(root.path(), "http://127.0.0.1:9");
    let ((asked, when_asked), (pieces, source)) = (mpsc::channel(), mpsc::channel());
    let (held, gone) = mpsc::channel::<()>();
    let body = Held(Trickle(Some(asked), source), held);
    let writer = outbox.clone();
    let write = async move { writer.enqueue_write(Write::new("PUT", "/a"), Body::reader(body)).await };
    let writing = tokio::spawn(write);
    soon("the write", tokio::task::spawn_blocking(move || when_asked.recv())).await.unwrap().unwrap();
    writing.abort();
    assert!(writing.await.unwrap_err().is_cancelled());
    pieces.send(b"complete".to_vec()).unwrap();
    drop(pieces);
    let ended = soon("the end of the body", tokio::task::spawn_blocking(move || gone.recv())).await;
    assert_eq!(ended.unwrap(), Err(mpsc::RecvError));
    assert_eq!(outbox.count().await.unwrap().pending, 0);
}

/// A body, and what goes with it.
struct Held(Trickle, #[expect(dead_code, reason = "its drop is what tells")] mpsc::Sender<()>);

impl Read for Held {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buffer)
    }
}

#[tokio::test]
async fn a_slow_body_holds_up_no_other_write_and_is_queued_when_it_is_complete() {
    let (root, server) = (root(), Upstream::start(|_| 204));
    let outbox = open(root.path(), &server.url());
    let ((asked, when_asked), (pieces, source)) = (mpsc::channel(), mpsc::channel());
    let writer = outbox.clone();
    let slow = tokio::spawn(async move {
        writer.enqueue_write(Write::new("PUT", "/a"), Body::reader(Trickle(Some(asked), source))).await
    });
    soon("the slow write", tokio::task::spawn_blocking(move || when_asked.recv())).await.unwrap().unwrap();
    pieces.send(b"slow ".to_vec()).unwrap();
    let quick = send(&outbox, "PUT", "/a", "quick").await;
    assert_eq!(outbox.count().await.unwrap().pending, 1);
    pieces.send(b"and complete".to_vec()).unwrap();
    drop(pieces);
    let slow = soon("the slow write", slow).await.unwrap().unwrap();
    assert!(quick < slow);
    assert_eq!(replay(&outbox).await.0.delivered, 2);
    let bodies: Vec<_> = server.seen().into_iter().map(|seen| seen.body).collect();
    assert_eq!(bodies, [b"quick".as_slice(), b"slow and complete"]);
}

/// A body that somebody feeds.
struct Fed(tokio::sync::mpsc::Receiver<Bytes>);

impl http_body::Body for Fed {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0.poll_recv(context).map(|chunk| chunk.map(|chunk| Ok(Frame::data(chunk))))
    }
}

#[test]
fn slow_bodies_hold_up_neither_other_writes_nor_whoever_feeds_them() {
    const SLOW: usize = 8;
    // Fewer than there are slow bodies.
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).max_blocking_threads(2).enable_all().build().unwrap();
    let (done, ended) = std::sync::mpsc::channel();
    let work = runtime.spawn(async move {
        let root = root();
        let outbox = open(root.path(), "http://127.0.0.1:9");
        let (mut feeders, mut slow) = (Vec::new(), Vec::new());
        for n in 0..SLOW {
            let (feed, fed) = tokio::sync::mpsc::channel(1);
            feeders.push(feed);
            let outbox = outbox.clone();
            slow.push(tokio::spawn(async move {
                outbox.enqueue_write(Write::new("PUT", format!("/{n}")), Body::stream(Fed(fed))).await
            }));
        }
        for feed in &feeders {
            // The second is taken once the first is read.
            feed.send(Bytes::from_static(b"a")).await.unwrap();
            feed.send(Bytes::from_static(b"b")).await.unwrap();
        }
        outbox.enqueue_write(Write::new("PUT", "/quick"), "".into()).await.unwrap();
        drop(feeders);
        for slow in slow {
            slow.await.unwrap().unwrap();
        }
        assert_eq!(outbox.count().await.unwrap().pending, SLOW as u64 + 1);
        done.send(()).unwrap();
    });
    let ended = ended.recv_timeout(std::time::Duration::from_secs(60));
    runtime.shutdown_background();
    drop(work);
    assert_eq!(ended, Ok(()));
}

#[tokio::test]
async fn a_body_at_hand_may_be_longer_than_the_sandboxs_memory() {
    let (root, server) = (root(), Upstream::start(|_| 204));
    let outbox =
        builder(root.path()).upstream(server.url()).durability(outbox_host::Durability::None).open().unwrap();
    let mut whole = Vec::new();
    Generated::new(100 * MIB).read_to_end(&mut whole).unwrap();
    outbox.enqueue_write(Write::new("PUT", "/a"), whole.into()).await.unwrap();
    let (report, deliveries) = replay(&outbox).await;
    assert_eq!(report.delivered, 1, "{deliveries:?}");
    assert_eq!(server.seen()[0].checksum, Generated::checksum(100 * MIB));
}
