//! Errors in words.

use crate::Error;
use crate::bindings::types::Measure;

/// An error in words that fit after "failed:".
pub fn describe(error: &Error) -> String {
    match error {
        Error::InvalidRequest(invalid) | Error::Configuration(invalid) if invalid.value.is_empty() => {
            format!("{}: {}", invalid.what, invalid.reason)
        }
        Error::InvalidRequest(invalid) | Error::Configuration(invalid) => {
            format!("{} {:?}: {}", invalid.what, invalid.value, invalid.reason)
        }
        Error::BodyTooLarge(limit) => {
            format!("the body is longer than {limit} bytes, the limit that OUTBOX_MAX_BODY sets")
        }
        Error::QueueFull(limit) => {
            let (what, variable) = match limit.measure {
                Measure::Bytes => ("bytes", "OUTBOX_MAX_BYTES"),
                Measure::Entries => ("entries", "OUTBOX_MAX_ENTRIES"),
            };
            format!(
                "the outbox is full: {} {what} are used of the {} that {variable} allows, and this write does not fit; \
                 replay what waits, drop or resolve what was set aside, or raise the limit",
                limit.used, limit.max
            )
        }
        Error::AnotherReplays(lease) => {
            format!(
                "another replays this directory: {}, whose lease ends at {} unless it is renewed",
                lease.owner, lease.expires
            )
        }
        Error::BodyFailed(why) => format!("the body cannot be read: {why}"),
        Error::NoSuchEntry(name) => format!("no entry is called {name:?}"),
        Error::WrongPlace(why) | Error::NoValidator(why) | Error::Io(why) => why.clone(),
        Error::NoSpace => "no space left on the device".into(),
    }
}

/// An error; where what had been done before it could not be undone (`stays`), it says `what` holds, too.
pub fn undo_failed(error: Error, stays: bool, what: impl FnOnce() -> String) -> Error {
    match stays {
        true => Error::Io(format!("{}; {}", describe(&error), what())),
        false => error,
    }
}
