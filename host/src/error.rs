//! What can go wrong, as an embedder sees it.

use crate::bindings::zddc::outbox::types as wit;
use std::fmt;
use std::path::PathBuf;

/// What of an outbox can be limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// Bytes on disk of everything that is kept.
    Bytes,
    /// Pending entries.
    Entries,
}

/// Why a call failed. Displayed in lower case and without a full stop, to fit after "error: ".
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Error {
    /// A value cannot be used: what it is, the value, and what is wrong with it.
    Invalid {
        /// What it is: `URI`, `header`, `upstream` and so on.
        what: String,
        /// The value.
        value: String,
        /// What is wrong and what would do.
        reason: String,
    },
    /// The body is longer than this many bytes.
    BodyTooLarge(u64),
    /// The outbox holds as much as a limit allows; nothing old was dropped to make room.
    QueueFull {
        /// What is limited.
        measure: Measure,
        /// The limit.
        max: u64,
        /// How much of it is used.
        used: u64,
    },
    /// The body could not be read to its end.
    BodyFailed(String),
    /// No entry has this name.
    NoSuchEntry(String),
    /// The entry is not in a place where this can be done to it.
    WrongPlace(String),
    /// The server's present version is not known.
    NoValidator(String),
    /// No space left on the device.
    NoSpace,
    /// A file operation in the outbox failed.
    Io(String),
    /// The root directory cannot be used.
    Root {
        /// The directory.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// This root's directory was removed, or another one is in its place: it is replayed no more.
    Replaced(PathBuf),
    /// Another host is replaying this outbox; its process id, where known.
    Locked(Option<u32>),
    /// A stock host is replaying this outbox, by a lease in its directory.
    Leased {
        /// Who holds it: a random name.
        owner: String,
        /// Until when, unless it is renewed: RFC 3339, UTC.
        expires: String,
    },
    /// Nobody is replaying this outbox.
    NotRunning,
    /// The component cannot be compiled or linked.
    Component(String),
    /// The sandbox stopped the component: a trap, a limit or a deadline. Nothing is lost by it.
    Trapped(String),
    /// A request did not finish within the 10 s that it is given where a pass is stopped. Its entry stays in the queue.
    Abandoned,
    /// The outbox was shut down.
    ShutDown,
}

impl Error {
    pub(crate) fn invalid(what: &str, value: &str, reason: &str) -> Error {
        Error::Invalid { what: what.into(), value: value.into(), reason: reason.into() }
    }
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Invalid { what, value, reason } if value.is_empty() => write!(f, "{what}: {reason}"),
            Error::Invalid { what, value, reason } => write!(f, "{what} {value:?}: {reason}"),
            Error::BodyTooLarge(limit) => {
                write!(f, "the body is longer than the limit of {limit} bytes; raise it with --max-body or OUTBOX_MAX_BODY")
            }
            Error::QueueFull { measure, max, used } => {
                let (what, name) = match measure {
                    Measure::Bytes => ("bytes", "max-bytes"),
                    Measure::Entries => ("entries", "max-entries"),
                };
                let variable = name.to_uppercase().replace('-', "_");
                let room = match measure {
                    Measure::Bytes => "'outbox drop' or 'resolve' what 'outbox conflicts' and 'rejected' show",
                    Measure::Entries => "'outbox drop' some of it",
                };
                write!(f, "the outbox is full: {used} {what} are used of the {max} that --{name} or OUTBOX_{variable} allows, and this write does not fit\n\
                    make room: 'outbox replay' what waits, {room}, or raise the limit")
            }
            Error::BodyFailed(why) => write!(f, "the body cannot be read: {why}"),
            Error::NoSuchEntry(name) => write!(f, "no entry is called {name:?}; 'outbox list', 'conflicts', 'rejected' and 'corrupt' show what there is"),
            Error::WrongPlace(why) | Error::NoValidator(why) | Error::Io(why) => f.write_str(why),
            Error::NoSpace => f.write_str("no space left on the outbox's device; nothing was queued or changed"),
            Error::Root { path, reason } => write!(f, "root {}: {reason}", path.display()),
            Error::Replaced(path) => {
                write!(f, "root {}: its directory was removed or replaced, so it is replayed no more; open the outbox anew, or start this program again", path.display())
            }
            Error::Locked(Some(pid)) => {
                write!(f, "another outbox (process {pid}) is replaying this root; if it is 'outbox run', 'outbox wake' makes it replay now")
            }
            Error::Locked(None) => f.write_str("another outbox is replaying this root; if it is 'outbox run', 'outbox wake' makes it replay now"),
            Error::Leased { owner, expires } => {
                write!(f, "a stock host ({owner}) is replaying this root; its lease ends at {expires} unless it is renewed")
            }
            Error::NotRunning => f.write_str("no outbox is replaying this root; start one with 'outbox run', or make one pass with 'outbox replay'"),
            Error::Component(why) => write!(f, "the component cannot be used: {why}"),
            Error::Trapped(why) => write!(f, "the component was stopped: {why}"),
            Error::Abandoned => f.write_str("the request in flight did not finish within 10 s of the stop and was abandoned; it stays in the queue (sent again, or held with --ambiguous hold)"),
            Error::ShutDown => f.write_str("the outbox was shut down"),
        }
    }
}

impl From<wit::Error> for Error {
    fn from(error: wit::Error) -> Error {
        match error {
            wit::Error::InvalidRequest(i) | wit::Error::Configuration(i) => {
                Error::Invalid { what: i.what, value: i.value, reason: i.reason }
            }
            wit::Error::BodyTooLarge(limit) => Error::BodyTooLarge(limit),
            wit::Error::QueueFull(limit) => {
                let measure = match limit.measure {
                    wit::Measure::Bytes => Measure::Bytes,
                    wit::Measure::Entries => Measure::Entries,
                };
                Error::QueueFull { measure, max: limit.max, used: limit.used }
            }
            wit::Error::AnotherReplays(lease) => Error::Leased { owner: lease.owner, expires: lease.expires },
            wit::Error::BodyFailed(why) => Error::BodyFailed(why),
            wit::Error::NoSuchEntry(name) => Error::NoSuchEntry(name),
            wit::Error::WrongPlace(why) => Error::WrongPlace(why),
            wit::Error::NoValidator(why) => Error::NoValidator(why),
            wit::Error::NoSpace => Error::NoSpace,
            wit::Error::Io(why) => Error::Io(why),
        }
    }
}
