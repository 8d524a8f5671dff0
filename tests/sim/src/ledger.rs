//! What the clients of the queue know: what they asked for and what they were told. The oracles compare it
//! with what the server saw and with what is on disk.

use crate::world::Op;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The header that names the attempt in a request: its number.
pub const MARK: &str = "x-sim";

/// The precondition that a write was queued with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Base {
    /// None.
    None,
    /// It must not exist yet.
    Create,
    /// This ETag.
    Etag(String),
    /// This time, RFC 3339, and as an HTTP date.
    Time(String, String),
}

/// A write that somebody tried to queue.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// Its number, which is its mark.
    pub number: usize,
    /// The method.
    pub method: String,
    /// The path and query.
    pub uri: String,
    /// The body.
    pub body: Arc<Vec<u8>>,
    /// Its precondition.
    pub base: Base,
    /// When it was begun: an event's number.
    pub begun: u64,
    /// Its ids, each with the event of its acknowledgement. Keeping `mine` of a conflict gives it another.
    pub acknowledged: Vec<(String, u64)>,
    /// How often `resolve --keep mine` was tried on it.
    pub resolved_mine: usize,
}

/// Something that an operator did to an entry, by name or id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Removed it.
    Drop,
    /// Kept theirs.
    Theirs,
    /// Kept mine.
    Mine,
    /// Made it due, or put it back.
    Retry,
}

/// An act: what, on which id, from when to when it was acknowledged, if it was.
#[derive(Debug, Clone)]
pub struct Deed {
    /// What.
    pub act: Act,
    /// The entry.
    pub id: String,
    /// The event of its beginning.
    pub begun: u64,
    /// The event of its success.
    pub done: Option<u64>,
}

/// What a pass said became of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The event.
    pub at: u64,
    /// Who said it.
    pub process: usize,
    /// The entry.
    pub id: String,
    /// The outcome.
    pub outcome: crate::bindings::exports::zddc::outbox::replayer::Outcome,
    /// When, in virtual time.
    pub time: u64,
    /// The event from which on it was durable: the end of the pass, or soon after it was told; none where
    /// something had failed.
    pub sealed: Option<u64>,
}

/// A call into the file system that failed.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The event.
    pub at: u64,
    /// Who made it.
    pub process: usize,
    /// What kind of call.
    pub op: Op,
    /// What it was to do, with the path in it, if it was given one.
    pub what: String,
    /// The path of what was open, the file or directory that it was made on.
    pub on: String,
}

/// All of it.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Writes, by number.
    pub attempts: Vec<Attempt>,
    /// What operators did.
    pub deeds: Vec<Deed>,
    /// What passes said.
    pub told: Vec<Told>,
    /// Ids in which damage was planted, and what was planted beside entries; with the event.
    pub planted: BTreeMap<String, u64>,
    /// Names of things planted that are no entries.
    pub foreign: BTreeSet<String>,
    /// What was seen to be wrong while it happened: the property and the details.
    pub violations: Vec<(&'static str, String)>,
    /// Passes: who made them, and the events of their beginning and end.
    pub passes: Vec<(usize, u64, u64)>,
    /// The events at which the power failed.
    pub power_failures: Vec<u64>,
    /// The events at which a process died, the power failed or the file system did.
    pub disturbances: Vec<u64>,
    /// Calls into the file system that failed.
    pub failures: Vec<Failure>,
    /// Processes that died, with the event.
    pub deaths: Vec<(usize, u64)>,
    /// The events at which nothing ran.
    pub quiet: Vec<u64>,
    /// The event at which the end began.
    pub finale: u64,
}

impl Ledger {
    /// How many entries operators may have put back, which limits do not prevent.
    pub fn put_back(&self) -> u64 {
        let put = |deed: &&Deed| matches!(deed.act, Act::Retry | Act::Mine);
        self.deeds.iter().filter(put).count() as u64
    }

    /// Notes something wrong.
    pub fn wrong(&mut self, property: &'static str, details: String) {
        self.violations.push((property, details));
    }
}
