//! What the library shows of entries and passes: the WIT's records as plain types, with JSON.

use crate::bindings::exports::zddc::outbox::{queue, replayer};
use crate::bindings::zddc::outbox::types as wit;
use serde::Serialize;
use std::fmt;

/// A pending entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Its name: 16 hex digits of Unix nanoseconds, `-`, 6 random ones.
    pub id: String,
    /// The method.
    pub method: String,
    /// Path and query.
    pub raw_uri: String,
    /// The body's Content-Type.
    pub content_type: Option<String>,
    /// Further headers.
    pub headers: Vec<(String, String)>,
    /// The base version's modification time, RFC 3339.
    pub base_mod_time: Option<String>,
    /// The base version's ETag.
    pub base_etag: Option<String>,
    /// Whether the resource must not exist yet.
    pub create: bool,
    /// When it was queued: RFC 3339, UTC.
    pub queued_at: String,
    /// Bytes in the body; none where it is missing.
    pub body_len: Option<u64>,
    /// The body's digest: two bodies of one digest are the same. None in entries of the original.
    pub body_digest: Option<String>,
    /// Attempts that ended without a final answer.
    pub attempts: u32,
    /// Not to be sent before: RFC 3339, UTC.
    pub not_before: Option<String>,
    /// Why the last attempt did not deliver it.
    pub last_error: Option<String>,
    /// The version that an earlier edit in the queue made, on which this one will be put: an ETag or a
    /// Last-Modified, or `absent` where it removed the resource.
    pub rebased: Option<String>,
}

impl From<wit::Entry> for Entry {
    fn from(e: wit::Entry) -> Entry {
        Entry {
            id: e.id,
            method: e.method,
            raw_uri: e.raw_uri,
            content_type: e.content_type,
            headers: e.headers,
            base_mod_time: e.base_mod_time,
            base_etag: e.base_etag,
            create: e.create,
            queued_at: e.queued_at,
            body_len: e.body_len,
            body_digest: e.body_digest,
            attempts: e.attempts,
            not_before: e.not_before,
            last_error: e.last_error,
            rebased: e.rebased.and_then(version),
        }
    }
}

/// Where an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// Waiting to be delivered.
    Pending,
    /// Set aside after 412.
    Conflict,
    /// Refused for good.
    Rejected,
    /// Damaged.
    Corrupt,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Place::Pending => "pending",
            Place::Conflict => "conflict",
            Place::Rejected => "rejected",
            Place::Corrupt => "corrupt",
        })
    }
}

/// The reply that ended an entry's way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// The header fields.
    pub headers: Vec<(String, String)>,
    /// The start of the content.
    pub body_start: String,
}

/// An entry, wherever it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Item {
    /// What to call it: the id while pending, the directory's name once set aside.
    pub name: String,
    /// Where it is.
    pub place: Place,
    /// When it was set aside: RFC 3339, UTC.
    pub since: Option<String>,
    /// Why it was set aside.
    pub reason: Option<String>,
    /// The ETag or else the Last-Modified of the server's present version, where it told it; `absent` where
    /// there is none.
    pub validator: Option<String>,
    /// The entry, where it can be read.
    pub entry: Option<Entry>,
    /// The server's reply, where one was the cause.
    pub reply: Option<Reply>,
    /// What the resource was when the server was asked, after a conflict.
    pub current: Option<Reply>,
}

impl From<wit::Reply> for Reply {
    fn from(r: wit::Reply) -> Reply {
        Reply { status: r.status, headers: r.headers, body_start: r.body_start }
    }
}

fn version(validator: wit::Validator) -> Option<String> {
    match validator {
        wit::Validator::Etag(tag) => Some(tag),
        wit::Validator::LastModified(date) => Some(date),
        wit::Validator::Absent => Some("absent".into()),
        wit::Validator::Unknown => None,
    }
}

impl From<wit::Item> for Item {
    fn from(i: wit::Item) -> Item {
        Item {
            name: i.name,
            place: match i.place {
                wit::Place::Pending => Place::Pending,
                wit::Place::Conflict => Place::Conflict,
                wit::Place::Rejected => Place::Rejected,
                wit::Place::Corrupt => Place::Corrupt,
            },
            since: i.since,
            reason: i.reason,
            validator: i.validator.and_then(version),
            entry: i.entry.map(Into::into),
            reply: i.reply.map(Into::into),
            current: i.current.map(Into::into),
        }
    }
}

/// How many entries are where.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Counts {
    /// Waiting to be delivered.
    pub pending: u64,
    /// Set aside after 412.
    pub conflicts: u64,
    /// Refused for good.
    pub rejected: u64,
    /// Damaged.
    pub corrupt: u64,
    /// The oldest pending entry's id.
    pub oldest: Option<String>,
}

impl From<queue::Counts> for Counts {
    fn from(c: queue::Counts) -> Counts {
        Counts {
            pending: c.pending,
            conflicts: c.conflicts,
            rejected: c.rejected,
            corrupt: c.corrupt,
            oldest: c.oldest,
        }
    }
}

/// What an outbox takes up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Usage {
    /// Bytes on disk, as [`Builder::max_bytes`](crate::Builder::max_bytes) counts them.
    pub bytes: u64,
    /// Pending entries of a higher format, which a newer outbox wrote; they are left untouched.
    pub newer: u64,
}

impl From<queue::Extent> for Usage {
    fn from(e: queue::Extent) -> Usage {
        Usage { bytes: e.bytes, newer: e.newer }
    }
}

/// Something that `verify` found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The directory or file, relative to the outbox's directory.
    pub name: String,
    /// What is wrong with it.
    pub reason: String,
}

impl From<queue::Finding> for Finding {
    fn from(f: queue::Finding) -> Finding {
        Finding { name: f.name, reason: f.reason }
    }
}

/// What came of one entry in a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The server took it.
    Delivered,
    /// 412: kept as a conflict.
    Conflict,
    /// Refused for good and kept.
    Rejected,
    /// Refused for good and removed, as configured; or somebody else has taken it out of the queue meanwhile.
    Dropped,
    /// Not now.
    Deferred,
    /// The upstream wants other credentials.
    Held,
    /// It was damaged, and kept.
    Corrupt,
    /// It may have been applied, and is not sent again before somebody says so.
    Ambiguous,
    /// A later write of the same resource made it superfluous.
    Superseded,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Outcome::Delivered => "delivered",
            Outcome::Conflict => "conflict",
            Outcome::Rejected => "rejected",
            Outcome::Dropped => "dropped",
            Outcome::Deferred => "deferred",
            Outcome::Held => "held",
            Outcome::Corrupt => "corrupt",
            Outcome::Ambiguous => "ambiguous",
            Outcome::Superseded => "superseded",
        })
    }
}

/// One entry's outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Delivery {
    /// What came of it.
    pub outcome: Outcome,
    /// The entry.
    pub id: String,
    /// Its method; empty where it could not be read.
    pub method: String,
    /// Its path and query; empty where it could not be read.
    pub raw_uri: String,
    /// The status code, where there was a reply.
    pub status: Option<u16>,
    /// More, in words.
    pub detail: Option<String>,
    /// From the first byte sent to the verdict.
    pub elapsed_ms: u64,
}

impl From<replayer::Event> for Delivery {
    fn from(e: replayer::Event) -> Delivery {
        Delivery {
            outcome: match e.outcome {
                replayer::Outcome::Delivered => Outcome::Delivered,
                replayer::Outcome::Conflict => Outcome::Conflict,
                replayer::Outcome::Rejected => Outcome::Rejected,
                replayer::Outcome::Dropped => Outcome::Dropped,
                replayer::Outcome::Deferred => Outcome::Deferred,
                replayer::Outcome::Held => Outcome::Held,
                replayer::Outcome::Corrupt => Outcome::Corrupt,
                replayer::Outcome::Ambiguous => Outcome::Ambiguous,
                replayer::Outcome::Superseded => Outcome::Superseded,
            },
            id: e.id,
            method: e.method,
            raw_uri: e.raw_uri,
            status: e.status,
            detail: e.detail,
            elapsed_ms: e.elapsed_ms,
        }
    }
}

/// How the upstream was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// It answered.
    Up,
    /// It could not be reached.
    Down,
    /// It wants other credentials.
    Auth,
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Health::Up => "up",
            Health::Down => "down",
            Health::Auth => "auth",
        })
    }
}

/// What a pass did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Entries that the server took.
    pub delivered: u64,
    /// Entries that became conflicts.
    pub conflicts: u64,
    /// Entries that were refused and kept.
    pub rejected: u64,
    /// Entries that were refused and removed, or that somebody else has taken out of the queue meanwhile.
    pub dropped: u64,
    /// Entries that were tried and stay.
    pub deferred: u64,
    /// Entries that were tried and stay for want of credentials.
    pub held: u64,
    /// Entries that were found damaged.
    pub corrupt: u64,
    /// Entries that may have been applied and are kept.
    pub ambiguous: u64,
    /// Entries that were not sent because a later one superseded them.
    pub superseded: u64,
    /// Deliveries after which the server named no version, so that the next edit goes without a precondition.
    pub unprotected: u64,
    /// Entries that wait now; those of the report before where the pass ended before it had listed the queue.
    pub remaining: u64,
    /// How the upstream was found; up where nothing had to be sent ([`Report::asked`]).
    pub upstream: Health,
    /// When the next pass is due, in milliseconds.
    pub next_delay_ms: u64,
    /// The server answered some request.
    #[serde(skip)]
    pub(crate) answered: bool,
    /// What the next pass wants to know of this one.
    #[serde(skip)]
    pub(crate) resume: Resume,
}

impl Report {
    /// Whether the pass has learnt how the upstream is. One that had nothing to send, or could not, says that it is up.
    pub fn asked(&self) -> bool {
        self.answered || self.upstream != Health::Up
    }

    /// Entries that were tried, whatever came of it. Some may not have been sent: they are held as ambiguous, or cannot be
    /// read.
    pub fn sent(&self) -> u64 {
        self.delivered
            + self.conflicts
            + self.rejected
            + self.dropped
            + self.deferred
            + self.held
            + self.ambiguous
    }
}

/// What one pass hands to the next.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Resume {
    outages: u32,
    probe: Option<String>,
    remaining: u64,
}

impl From<Resume> for replayer::Resume {
    fn from(r: Resume) -> replayer::Resume {
        replayer::Resume { outages: r.outages, probe: r.probe, remaining: r.remaining }
    }
}

impl From<replayer::Report> for Report {
    fn from(r: replayer::Report) -> Report {
        Report {
            delivered: r.delivered,
            conflicts: r.conflicts,
            rejected: r.rejected,
            dropped: r.dropped,
            deferred: r.deferred,
            held: r.held,
            corrupt: r.corrupt,
            ambiguous: r.ambiguous,
            superseded: r.superseded,
            unprotected: r.unprotected,
            remaining: r.remaining,
            upstream: match r.upstream {
                replayer::Health::Up => Health::Up,
                replayer::Health::Down => Health::Down,
                replayer::Health::Auth => Health::Auth,
            },
            next_delay_ms: r.next_delay_ms,
            // The outcomes say it.
            answered: false,
            resume: Resume {
                outages: r.resume.outages,
                probe: r.resume.probe,
                remaining: r.resume.remaining,
            },
        }
    }
}

/// What happens in an outbox: sent to everyone who subscribed.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Event {
    /// An entry was tried.
    Delivery(Delivery),
    /// A pass is over.
    Pass(Report),
    /// The upstream was found in another state than before.
    Upstream(Health),
    /// A background pass failed as a whole; the next one is made all the same, unless the directory was replaced
    /// ([`Outbox::ended`](crate::Outbox::ended)). Logged where nobody listens.
    Failed(String),
}
