//! The names on disk, format 1. docs/format.md is the same for readers of other programs.
//!
//! ```text
//! ROOT/.zddc-outbox/
//!   <id>/meta.json             what to send: immutable
//!   <id>/body.bin              the body: immutable
//!   <id>/state.json            what happened so far: replaced whole; absent until needed
//!   <id>.conflict-<ts>/        set aside after 412, with response.json
//!   rejected/<id>.<ts>/        refused for good by the server, with response.json
//!   corrupt/<id>.<ts>/         damaged, with reason.txt
//!   .staging/<anything>/       invisible: being written (swept when old), or out of the queue
//!   .lock                      held by the host that replays; no matter of the component's
//!   .wake                      touched to wake that host; nor is this
//!   .lease                     who replays, and until when, where there is no lock
//!   .newest                    the last ids given out, one a writer, so that all give out greater ones
//! ```
//!
//! Invariants:
//! - An entry appears in the queue's directory by one rename, after everything in it was synced, and leaves
//!   it by one rename (into `.staging` when it was delivered or dropped). No half of an entry is ever visible.
//! - The lexical order of ids is the order of the queue; a directory's name is its entry's id.
//! - `meta.json` and `body.bin` never change. Whatever happens to an entry is in `state.json`, in
//!   `response.json` or in the directory's place.
//! - Names that are none of these are left alone: they are somebody else's.

use crate::id::EntryId;
use std::time::Duration;

/// The outbox's directory below ROOT, as the Go original calls it.
pub const OUTBOX_DIR: &str = ".zddc-outbox";
/// What to send.
pub const META: &str = "meta.json";
/// The body to send.
pub const BODY: &str = "body.bin";
/// What happened so far.
pub const STATE: &str = "state.json";
/// The reply that ended an entry's way.
pub const RESPONSE: &str = "response.json";
/// Why an entry is in `corrupt/`.
pub const REASON: &str = "reason.txt";
/// Entries being written or removed.
pub const STAGING: &str = ".staging";
/// What the names of things in `.staging` end with that are being deleted.
pub const SWEPT: &str = ".swept";
/// Entries that the server refused for good.
pub const REJECTED: &str = "rejected";
/// Entries that cannot be read.
pub const CORRUPT: &str = "corrupt";
/// The last ids given out: [`NOTE_PLACES`] of [`NOTE_LEN`] bytes. In the first place is a mark instead: for which start of
/// the machine (`OUTBOX_BOOT`) the others are complete, so that they need not be looked for among the names.
pub const NEWEST: &str = ".newest";
/// Bytes of a note in it: an id and a line's end.
pub const NOTE_LEN: usize = 24;
/// How many there may be: so many that two instances which queue at the same moment seldom share one.
pub const NOTE_PLACES: u64 = 64;
/// Its length, which it has from the start, so that one read gets all of it.
pub const NOTES_LEN: u64 = NOTE_PLACES * NOTE_LEN as u64;
/// The right to replay, of one who takes no lock; also held by one who does.
pub const LEASE: &str = ".lease";
/// What separates id and time in the name of a conflict.
pub const CONFLICT: &str = ".conflict-";

/// The format that this program writes; entries of a higher one are left untouched.
pub const FORMAT: u32 = 1;

/// A directory without meta.json, or anything in `.staging`, that is older than this was left by a crash.
pub const ABANDONED_AFTER: Duration = Duration::from_secs(3600);

/// Longest meta.json, state.json or response.json that is read. Ours stay far below: headers are capped.
pub const MAX_RECORD: u64 = 1024 * 1024;

/// What a name in the queue's directory stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name<'a> {
    /// A pending entry.
    Pending(EntryId),
    /// A conflict: the entry and when it was set aside, as the Go original writes it.
    Conflict(EntryId, &'a str),
    /// One of ours, but no entry: `.staging`, `rejected`, `corrupt` and the like.
    Ours,
    /// Not ours.
    Foreign,
}

/// Reads a name in the queue's directory. The original takes every name with `.conflict-` in it for a conflict.
pub fn parse(name: &str) -> Name<'_> {
    if let Some(id) = EntryId::parse(name) {
        return Name::Pending(id);
    }
    if let Some((id, stamp)) = name.split_once(CONFLICT) {
        return match EntryId::parse(id) {
            Some(id) => Name::Conflict(id, stamp),
            None => Name::Foreign,
        };
    }
    // Dot-names are for bookkeeping of the component and of its hosts (.staging, .lock, .wake).
    if name.starts_with('.') || name == REJECTED || name == CORRUPT {
        return Name::Ours;
    }
    Name::Foreign
}

/// Reads a name in `rejected/` or `corrupt/`: the id and the time.
pub fn parse_aside(name: &str) -> Option<(EntryId, &str)> {
    let (id, stamp) = name.split_once('.')?;
    Some((EntryId::parse(id)?, stamp))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_apart() {
        let id = EntryId::parse("18ea4ba277c322d7-873e00").unwrap();
        assert_eq!(parse("18ea4ba277c322d7-873e00"), Name::Pending(id));
        assert_eq!(
            parse("18ea4ba277c322d7-873e00.conflict-20261122T065602Z-ab12"),
            Name::Conflict(id, "20261122T065602Z-ab12")
        );
        for ours in [".staging", ".lock", "rejected", "corrupt"] {
            assert_eq!(parse(ours), Name::Ours);
        }
        for foreign in ["18EA4BA277C322D7-873e00", "notes.txt", "x.conflict-y", "18ea4ba277c322d7", ""] {
            assert_eq!(parse(foreign), Name::Foreign, "{foreign}");
        }
        assert_eq!(parse_aside("18ea4ba277c322d7-873e00.20261122T065602Z"), Some((id, "20261122T065602Z")));
        assert_eq!(parse_aside("notes.txt"), None);
    }
}
