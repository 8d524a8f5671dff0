//! One request and its reply, over `wasi:http` and `wasi:io/poll`. All polling of the component is here and in
//! [`crate::pass`], so that a move to WASI 0.3 stays local.
//!
//! The body is read from disk as it is sent, and its digest is checked before the last byte is released: a
//! damaged body never reaches the server whole. The body's stream and the reply are polled together, because
//! a server may answer early, and because some hosts never report a broken stream on the stream itself.
//!
//! An exchange is cut when no byte moved either way for the idle timeout, never because it is long. Content that
//! nobody compares is no part of it: that is read for one idle timeout at most.

mod draft;

pub use draft::Draft;

use crate::dir::{File, words};
use crate::failure::{Failure, no_reply};
use crate::headers;
use std::cell::OnceCell;
use std::time::Duration;
use wasi::clocks::monotonic_clock;
use wasi::http::types::{ErrorCode, FutureIncomingResponse, IncomingBody, OutgoingBody};
use wasi::io::poll::Pollable;
use wasi::io::streams::{InputStream, OutputStream, StreamError};
use xxhash_rust::xxh3::Xxh3;

/// How much of a reply's content is kept.
const KEPT: usize = 4 * 1024;
/// How much of a reply's content is read, so that the connection can be used again; beyond it, a new
/// connection is cheaper.
const DRAINED: u64 = 4 * 1024 * 1024;
/// Bytes that the system may have taken from us while they are still on their way, and the slowest rate at
/// which they are assumed to get there: the wait for a reply grows by this, since their progress is invisible.
const IN_FLIGHT: u64 = 4 * 1024 * 1024;
const SLOWEST_BYTES_PER_SECOND: u64 = 4 * 1024;

/// A request to send.
pub struct Request<'a> {
    /// The method.
    pub method: &'a str,
    /// Path and query, as queued.
    pub raw_uri: &'a str,
    /// All header fields.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The body, where there is one.
    pub body: Option<Body>,
    /// What the reply's content is compared with while it is read; it is not stored.
    pub compare: Option<Content>,
}

/// What some content is, without the content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// Bytes in it.
    pub len: u64,
    /// Its digest, as meta.json spells it.
    pub digest: String,
    /// Its Content-Encoding, if it has one (RFC 9110 section 8.4): the bytes are those of the coded content.
    pub coding: Option<String>,
}

/// A body on disk.
pub struct Body {
    /// The open file.
    pub file: File,
    /// Its length: the request's Content-Length.
    pub len: u64,
    /// What meta.json says about it, where it is of an algorithm that we know.
    pub digest: Option<String>,
}

/// How long to wait.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// For a connection.
    pub connect: Duration,
    /// For any byte to move.
    pub idle: Duration,
}

/// A reply, its content read to the end.
#[derive(Debug)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// The header fields.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The start of the content.
    pub body_start: Vec<u8>,
    /// The content is what the request was to compare it with.
    pub same: bool,
}

impl Reply {
    /// The first value of a header, if it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(value).ok()
    }

    /// Whether it is a 2xx.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Whether anything follows the head (RFC 9110 section 8.6, RFC 9112 section 6.3).
    fn has_content(&self) -> bool {
        !matches!(self.status, 204 | 304) && self.header("content-length") != Some("0")
    }

    /// Whether the header fields leave it open that the content is this one.
    fn may_be(&self, content: &Content) -> bool {
        let length = self.header("content-length").and_then(|text| text.trim().parse::<u64>().ok());
        // A server that was given it coded may keep it as it came, and say so or not.
        let as_sent = self.header("content-encoding").is_none_or(|coding| {
            let sent = content.coding.as_deref().unwrap_or("identity");
            coding.eq_ignore_ascii_case("identity") || coding.eq_ignore_ascii_case(sent)
        });
        self.status == 200 && as_sent && length.is_none_or(|length| length == content.len)
    }
}

/// An exchange under way. Dropping it aborts the request.
pub struct Exchange {
    sending: Option<Sending>,
    waiting: Option<Waiting>,
    reading: Option<Reading>,
    compare: Option<Content>,
    timeouts: Timeouts,
    body_len: u64,
    /// The server did not take the whole body.
    cut_short: bool,
    /// Monotonic, in nanoseconds.
    last_progress: u64,
}

// In each of these, fields are dropped in order, and WASI wants children dropped before their parents. What is
// there at once, as a small body's room and a short reply's end are, is never polled for.
struct Sending {
    ready: OnceCell<Pollable>,
    stream: OutputStream,
    outgoing: OutgoingBody,
    body: Body,
    offset: u64,
    hash: Box<Xxh3>,
}

struct Waiting {
    ready: Pollable,
    future: FutureIncomingResponse,
}

struct Reading {
    /// None where the head says that nothing follows: that is not read.
    content: Option<Arriving>,
    reply: Reply,
    drained: u64,
    /// All of it was read.
    over: bool,
    /// Its content broke off.
    broken: bool,
    comparison: Option<Comparison>,
}

struct Arriving {
    ready: OnceCell<Pollable>,
    stream: InputStream,
    _body: IncomingBody,
}

/// A comparison under way; given up as soon as there is a difference.
struct Comparison {
    expected: Content,
    hash: Box<Xxh3>,
}

impl Exchange {
    /// What to poll for.
    pub fn pollables(&self) -> impl Iterator<Item = &Pollable> {
        let sending = self.sending.as_ref().map(|s| s.ready.get_or_init(|| s.stream.subscribe()));
        let waiting = self.waiting.as_ref().map(|w| &w.ready);
        // A stream at its end is ready for ever.
        let arriving = self.reading.as_ref().filter(|r| !r.over).and_then(|r| r.content.as_ref());
        let arriving = arriving.map(|a| a.ready.get_or_init(|| a.stream.subscribe()));
        sending.into_iter().chain(waiting).chain(arriving)
    }

    /// Lets the host see to what it was given. One that carries connections on the component's own thread does so only
    /// while that waits, or asks.
    pub fn hand_over(&self) {
        if let Some(waiting) = &self.waiting {
            let _ = waiting.ready.ready();
        }
    }

    /// When it will have been idle for too long: monotonic, in nanoseconds.
    pub fn deadline(&self) -> u64 {
        let mut patience = self.timeouts.idle;
        if self.sending.is_none() && self.reading.is_none() {
            let unseen = self.body_len.min(IN_FLIGHT);
            patience += Duration::from_secs(unseen / SLOWEST_BYTES_PER_SECOND);
        }
        self.last_progress.saturating_add(u64::try_from(patience.as_nanos()).unwrap_or(u64::MAX))
    }

    /// Goes on as far as that is possible without waiting; the reply, or why there is none, at the end.
    pub fn step(&mut self) -> Option<Result<Reply, Failure>> {
        match self.try_step() {
            Ok(None) if monotonic_clock::now() >= self.deadline() => {
                let idle = self.timeouts.idle.as_secs_f32();
                self.cut_short |= self.sending.is_some();
                Some(match self.reading.take() {
                    // The status line is what counts, and there is one.
                    Some(reading) => self.judge(reading),
                    None => Err(Failure::NoReply(format!("nothing moved for {idle} s"))),
                })
            }
            stepped => stepped.transpose(),
        }
    }

    fn try_step(&mut self) -> Result<Option<Reply>, Failure> {
        let moved = self.send()? | self.receive_head()? | self.read();
        let unsent = self.sending.is_some();
        let over = self.reading.take_if(|reading| {
            let unsent_success = unsent && reading.reply.is_success();
            reading.over && !unsent_success
        });
        if over.is_none() && moved {
            self.last_progress = monotonic_clock::now();
        }
        over.map(|reading| self.judge(reading)).transpose()
    }

    /// Whether any content came in that matters. What is not compared is read for the connection's sake only: it may
    /// trickle for ever, and must not hold up what waits.
    fn read(&mut self) -> bool {
        let Some(reading) = &mut self.reading else { return false };
        let before = reading.drained;
        reading.over = reading.over || reading.drain();
        reading.comparison.is_some() && reading.drained > before
    }

    /// A success counts only once the server has been given the whole body; a comparison, once it was given us.
    fn judge(&self, reading: Reading) -> Result<Reply, Failure> {
        let Reading { mut reply, comparison, broken, over, .. } = reading;
        match comparison {
            Some(_) if broken || !over => {
                return Err(Failure::NoReply("the reply's content broke off".into()));
            }
            Some(comparison) => {
                reply.same = crate::enqueue::digest(&comparison.hash) == comparison.expected.digest;
            }
            None => {}
        }
        match self.cut_short && reply.is_success() {
            true => {
                Err(Failure::NoReply(format!("answered {} without reading the whole body", reply.status)))
            }
            false => Ok(reply),
        }
    }

    /// Whether the head came in.
    fn receive_head(&mut self) -> Result<bool, Failure> {
        let Some(waiting) = &self.waiting else { return Ok(false) };
        let response = match waiting.future.get() {
            None => return Ok(false),
            Some(Ok(Ok(response))) => response,
            Some(Ok(Err(code))) => return Err(no_reply(&code)),
            Some(Err(())) => return Err(Failure::NoReply("the reply was taken twice".into())),
        };
        self.waiting = None;
        let status = response.status();
        let headers = headers::kept(response.headers().entries());
        let reply = Reply { status, headers, body_start: Vec::new(), same: false };
        let content = match reply.has_content() {
            true => {
                let lost = || Failure::NoReply("the reply has no content".into());
                let body = response.consume().map_err(|()| lost())?;
                let stream = body.stream().map_err(|()| lost())?;
                Some(Arriving { ready: OnceCell::new(), stream, _body: body })
            }
            false => None,
        };
        let comparison = self.compare.take().filter(|content| reply.may_be(content));
        self.reading = Some(Reading {
            content,
            reply,
            drained: 0,
            over: false,
            broken: false,
            comparison: comparison.map(|expected| Comparison { expected, hash: Box::new(Xxh3::new()) }),
        });
        if !(200..300).contains(&status) {
            // The server has decided without the rest of the body; sending on would be for nothing.
            self.sending = None;
        }
        Ok(true)
    }

    /// Whether anything was sent, or the end of it.
    fn send(&mut self) -> Result<bool, Failure> {
        let Some(sending) = &mut self.sending else { return Ok(false) };
        let before = sending.offset;
        let sent = sending.send()?;
        let moved = sending.offset > before;
        match sent {
            Sent::Waiting => Ok(moved),
            Sent::All => match self.sending.take().map(Sending::finish) {
                Some(Err(code)) if self.waiting.is_none() => Err(no_reply(&code)),
                // The reply, or the failure to get one, says more.
                _ => Ok(true),
            },
            Sent::Broken => {
                // The peer reads no further. If it has not answered yet, its reply or its absence follows.
                self.sending = None;
                self.cut_short = true;
                Ok(moved)
            }
        }
    }
}

/// How far sending came.
enum Sent {
    /// The host takes no more for now.
    Waiting,
    /// Everything was handed over.
    All,
    /// The host takes no more for good.
    Broken,
}

impl Sending {
    fn send(&mut self) -> Result<Sent, Failure> {
        while self.offset < self.body.len {
            let room = match self.stream.check_write() {
                Ok(0) => return Ok(Sent::Waiting),
                Ok(room) => room,
                Err(_) => return Ok(Sent::Broken),
            };
            let (chunk, _) = self
                .body
                .file
                .read(self.offset, room.min(self.body.len - self.offset))
                .map_err(|code| Failure::Unreadable(format!("cannot read body.bin: {}", words(code))))?;
            if chunk.is_empty() {
                return Err(Failure::Damaged(format!("body.bin ends at byte {}", self.offset)));
            }
            self.hash.update(&chunk);
            let next = self.offset + chunk.len() as u64;
            if next == self.body.len {
                verify(&self.hash, &self.body)?;
            }
            if self.stream.write(&chunk).is_err() {
                return Ok(Sent::Broken);
            }
            self.offset = next;
        }
        Ok(Sent::All)
    }

    fn finish(self) -> Result<(), ErrorCode> {
        let Sending { ready, stream, outgoing, .. } = self;
        drop(ready);
        drop(stream);
        OutgoingBody::finish(outgoing, None)
    }
}

/// Checks that what was read is what was queued.
fn verify(hash: &Xxh3, body: &Body) -> Result<(), Failure> {
    let found = crate::enqueue::digest(hash);
    match &body.digest {
        Some(digest) if *digest != found => {
            Err(Failure::Damaged(format!("body.bin has digest {found} where meta.json says {digest}")))
        }
        _ => Ok(()),
    }
}

impl Reading {
    /// Reads what is there; whether that was all.
    fn drain(&mut self) -> bool {
        loop {
            let read = match &self.content {
                Some(arriving) => arriving.stream.read(crate::dir::CHUNK as u64),
                None => Err(StreamError::Closed),
            };
            match read {
                Ok(chunk) if chunk.is_empty() => return false,
                Ok(chunk) => {
                    let wanted = KEPT.saturating_sub(self.reply.body_start.len()).min(chunk.len());
                    self.reply.body_start.extend(chunk.iter().take(wanted));
                    self.drained += chunk.len() as u64;
                    match &mut self.comparison {
                        Some(comparison) if self.drained <= comparison.expected.len => {
                            comparison.hash.update(&chunk);
                        }
                        _ => self.comparison = None,
                    }
                    if self.comparison.is_none() && self.drained > DRAINED {
                        return true;
                    }
                }
                Err(StreamError::Closed) => {
                    self.comparison.take_if(|comparison| self.drained != comparison.expected.len);
                    return true;
                }
                // The status line is what counts. A reply whose content breaks off is still a reply.
                Err(StreamError::LastOperationFailed(_)) => {
                    self.broken = true;
                    return true;
                }
            }
        }
    }
}
