//! Connections that fail, stall or crawl.

use crate::kit::{builder, open, path, replay, root, send, soon, tree};
use crate::upstream::{Act, Checksum, Gate, Reply, ReservedPort, Seen, Upstream};
use outbox_host::{Body, Health, Outbox, Outcome, Write};
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

pub const MIB: u64 = 1024 * 1024;
const IDLE: Duration = Duration::from_millis(300);

/// A body that is never held in memory: a block of bytes over and over, numbered.
pub struct Generated {
    block: Vec<u8>,
    at: u64,
    len: u64,
}

impl Generated {
    pub fn new(len: u64) -> Generated {
        Generated { block: (0..64 * 1024).map(|n: u32| (n % 251) as u8).collect(), at: 0, len }
    }

    pub fn checksum(len: u64) -> Checksum {
        let (mut checksum, mut reader, mut chunk) =
            (Checksum::default(), Generated::new(len), vec![0; 64 * 1024]);
        loop {
            match reader.read(&mut chunk).unwrap() {
                0 => return checksum,
                n => checksum.add(&chunk[..n]),
            }
        }
    }
}

impl Read for Generated {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let (number, offset) =
            (self.at / self.block.len() as u64, (self.at % self.block.len() as u64) as usize);
        self.block[..8].copy_from_slice(&number.to_le_bytes());
        let left = (self.len - self.at).min(buffer.len() as u64) as usize;
        let piece = &self.block[offset..self.block.len().min(offset + left)];
        buffer[..piece.len()].copy_from_slice(piece);
        self.at += piece.len() as u64;
        Ok(piece.len())
    }
}

pub async fn send_large(outbox: &Outbox, uri: &str, len: u64) -> String {
    outbox.enqueue_write(Write::new("PUT", uri), Body::reader(Generated::new(len))).await.unwrap()
}

/// Cuts what stalls soon.
fn impatient(root: &Path, server: &Upstream) -> Outbox {
    builder(root).upstream(server.url()).idle_timeout(IDLE).open().unwrap()
}

/// Nothing is left of an attempt to queue.
pub fn assert_nothing_behind(root: &Path) {
    assert!(tree(root).is_empty(), "{:?}", tree(root));
    let staging = std::fs::read_dir(path(root, ".staging")).map_or(0, Iterator::count);
    assert_eq!(staging, 0);
}

#[tokio::test]
async fn what_was_delivered_makes_room_while_the_next_reply_is_waited_for() {
    let (root, gate) = (root(), Gate::new());
    let held = gate.clone();
    let server = Upstream::start(move |seen: &Seen| match seen.target.as_str() {
        "/0" => Act::from(204),
        _ => Act::ReplyAfter(held.clone(), Reply::new(204)),
    });
    let outbox = open(root.path(), &server.url());
    for uri in ["/0", "/1"] {
        send(&outbox, "PUT", uri, "x").await;
    }
    let replaying = outbox.clone();
    let pass = tokio::spawn(async move { replaying.replay().await });
    soon("the second request", server.wait_for(2)).await;
    let staged = || std::fs::read_dir(path(root.path(), ".staging")).unwrap().count();
    soon("the first one's deletion", async {
        while staged() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    gate.open();
    assert_eq!(pass.await.unwrap().unwrap().delivered, 2);
}

#[tokio::test]
async fn an_outbox_that_ends_takes_no_connection_of_another_along() {
    let (roots, gate) = ([root(), root()], Gate::new());
    let held = gate.clone();
    let server = Upstream::start(move |seen: &Seen| match seen.target.as_str() {
        "/held" => Act::ReplyAfter(held.clone(), Reply::new(204)),
        _ => Act::from(204),
    });
    let [first, second] = roots
        .each_ref()
        .map(|root| builder(root.path()).upstream(server.url()).concurrency(1).open().unwrap());
    // Leaves a connection idle.
    send(&first, "PUT", "/a", "x").await;
    assert_eq!(replay(&first).await.0.delivered, 1);
    send(&second, "PUT", "/held", "x").await;
    let pass = tokio::spawn(async move { replay(&second).await });
    server.wait_for(2).await;
    first.shutdown().await;
    drop(first);
    server.wait_for_end_of(1).await;
    gate.open();
    let (report, deliveries) = pass.await.unwrap();
    assert_eq!((report.delivered, report.remaining), (1, 0), "{deliveries:?}");
    assert_eq!(server.lines(), ["PUT /a", "PUT /held"]);
}

#[tokio::test]
async fn a_server_that_accepts_and_says_nothing_of_tls_has_the_time_of_a_connection() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    for concurrency in [1, 4] {
        let root = root();
        let url = format!("https://{}", silent.local_addr().unwrap());
        let outbox = builder(root.path()).upstream(url).concurrency(concurrency);
        let outbox = outbox.connect_timeout(IDLE).idle_timeout(10 * IDLE).open().unwrap();
        send(&outbox, "PUT", "/a", "x").await;
        let (report, deliveries) = replay(&outbox).await;
        assert_eq!((report.deferred, report.remaining, report.upstream), (1, 1, Health::Down));
        assert_eq!(deliveries[0].detail.as_deref(), Some("no connection within the timeout"));
    }
}

#[tokio::test]
async fn a_refused_connection_defers_small_and_large_bodies_alike() {
    let (root, port) = (root(), ReservedPort::new());
    let outbox = open(root.path(), &port.url());
    let small = send(&outbox, "PUT", "/small", "x").await;
    for (len, remaining) in [(0, 1), (8 * MIB, 1)] {
        if len > 0 {
            outbox.drop_entry(&small).await.unwrap();
            send_large(&outbox, "/large", len).await;
        }
        let (report, deliveries) = replay(&outbox).await;
        assert_eq!((report.deferred, report.remaining, report.upstream), (1, remaining, Health::Down));
        assert_eq!(deliveries[0].detail.as_deref(), Some("connection refused"));
    }
    let server = Upstream::start_on(port, |_| 204);
    assert_eq!(replay(&outbox).await.0.delivered, 1);
    assert_eq!(server.seen()[0].checksum, Generated::checksum(8 * MIB));
}

#[tokio::test]
async fn a_connection_cut_without_a_reply_defers_and_the_whole_body_is_sent_again() {
    for (cut, len, complete) in
        [(Act::Cut, 1024, true), (Act::Cut, 8 * MIB, true), (Act::CutAfter(100_000), 8 * MIB, false)]
    {
        let root = root();
        let server = Upstream::sequence(vec![cut.clone(), Act::from(204)]);
        let outbox = open(root.path(), &server.url());
        send_large(&outbox, "/a", len).await;
        let (report, deliveries) = replay(&outbox).await;
        assert_eq!((report.deferred, report.remaining, report.upstream), (1, 1, Health::Down), "{cut:?}");
        assert_eq!(deliveries[0].detail.as_deref(), Some("connection closed without a reply"), "{cut:?}");
        assert_eq!(replay(&outbox).await.0.delivered, 1);
        let seen = server.seen();
        assert_eq!((seen.len(), seen[0].complete, seen[1].complete), (2, complete, true));
        assert_eq!((seen[1].body_len, &seen[1].checksum), (len, &Generated::checksum(len)));
    }
}

#[tokio::test]
async fn a_reply_counts_by_its_status_line_also_where_its_content_breaks_off_or_stalls_or_trickles() {
    let reply = |status| Reply::new(status).body("0123456789");
    let trickle = |status| Act::Trickle(IDLE / 6, Reply::new(status).body("0123456789".repeat(1_000)));
    for (act, outcome) in [
        (Act::CutReply(reply(200)), Outcome::Delivered),
        (Act::StallReply(reply(200)), Outcome::Delivered),
        (Act::CutReply(reply(422)), Outcome::Rejected),
        (Act::StallReply(reply(422)), Outcome::Rejected),
        (Act::CutReply(reply(503)), Outcome::Deferred),
        // For minutes, and never as long as the idle timeout without a byte.
        (trickle(200), Outcome::Delivered),
        (trickle(422), Outcome::Rejected),
        (trickle(503), Outcome::Deferred),
    ] {
        let root = root();
        let said = format!("{act:?}");
        let server = Upstream::start(move |_| act.clone());
        // Long enough for the head to come in time on a busy machine.
        let patience = Duration::from_secs(2);
        let outbox = builder(root.path()).upstream(server.url()).idle_timeout(patience).open().unwrap();
        send(&outbox, "PUT", "/a", "x").await;
        let (report, deliveries) = soon("the pass", replay(&outbox)).await;
        assert_eq!((deliveries[0].outcome, report.upstream), (outcome, Health::Up), "{said}: {deliveries:?}");
    }
}

#[tokio::test]
async fn a_server_that_stalls_is_cut_and_the_outage_noticed() {
    // One never replies; the other stops reading long before the end.
    for (act, len) in
        [(Act::Stall, 5), (Act::ReadSlowly(Duration::from_secs(3600), Reply::new(204)), 32 * MIB)]
    {
        let root = root();
        let server = Upstream::start(move |_| act.clone());
        let outbox = impatient(root.path(), &server);
        send_large(&outbox, "/a", len).await;
        send(&outbox, "PUT", "/b", "x").await;
        let started = Instant::now();
        let (report, deliveries) = soon("the cut", replay(&outbox)).await;
        assert!(started.elapsed() >= IDLE);
        assert_eq!((report.deferred, report.remaining, report.upstream), (1, 2, Health::Down));
        let why = deliveries[0].detail.as_deref().unwrap();
        assert!(why.contains("nothing moved for 0.3 s") || why.contains("timeout"), "{why}");
        assert_eq!(server.connections(), 1);
    }
}

#[tokio::test]
async fn an_upload_that_is_slow_but_moves_is_not_cut() {
    let (pause, len) = (Duration::from_millis(40), 24 * MIB);
    let (root, server) = (root(), Upstream::start(move |_| Act::ReadSlowly(pause, Reply::new(204))));
    let patience = Duration::from_millis(1500);
    let outbox = builder(root.path()).upstream(server.url()).idle_timeout(patience).open().unwrap();
    send_large(&outbox, "/a", len).await;
    let started = Instant::now();
    let (report, deliveries) = replay(&outbox).await;
    assert_eq!((report.delivered, report.remaining, report.upstream), (1, 0, Health::Up), "{deliveries:?}");
    assert!(started.elapsed() > patience, "it took {:?} only, which shows nothing", started.elapsed());
    assert_eq!(server.seen()[0].checksum, Generated::checksum(len));
}

#[tokio::test]
async fn a_refusal_before_the_body_was_read_is_never_a_delivery() {
    let (root, server) = (root(), Upstream::start(|_| Act::ReplyUnread(Reply::new(413))));
    let outbox = open(root.path(), &server.url());
    let id = send_large(&outbox, "/a", 8 * MIB).await;
    let (report, deliveries) = replay(&outbox).await;
    assert_eq!(report.delivered, 0);
    // Whether the reply survives the reset that follows it is the network's to decide.
    assert!(matches!(deliveries[0].outcome, Outcome::Rejected | Outcome::Deferred), "{deliveries:?}");
    assert_eq!(outbox.get(&id).await.unwrap().entry.unwrap().body_len, Some(8 * MIB));
}

#[tokio::test]
async fn a_success_before_the_body_was_sent_is_no_delivery() {
    let (root, server) = (root(), Upstream::start(|_| Act::ReplyUnread(Reply::new(201))));
    let outbox = open(root.path(), &server.url());
    send_large(&outbox, "/a", 32 * MIB).await;
    let (report, deliveries) = replay(&outbox).await;
    assert_eq!((report.delivered, report.deferred, report.remaining), (0, 1, 1), "{deliveries:?}");
    server.script(|_| 201);
    assert_eq!(replay(&outbox).await.0.delivered, 1);
    assert_eq!(server.seen()[1].checksum, Generated::checksum(32 * MIB));
}
