//! Why an entry cannot be read.

use crate::{Error, error};
use std::time::Duration;

/// Why an entry cannot be read.
#[derive(Debug)]
pub enum Unloadable {
    /// It is no longer there.
    Gone,
    /// Somebody is still writing it, and has been for this long.
    InProgress(Duration),
    /// A newer program wrote it, in this format.
    Newer(u64),
    /// It is damaged, for this reason.
    Damaged(String),
    /// Reading it is not allowed, for this reason: until somebody sees to that, and not just now.
    Denied(String),
    /// It could not be read now.
    Io(Error),
}

impl Unloadable {
    /// The same in words; none where it is no longer there.
    pub fn reason(&self) -> Option<String> {
        Some(match self {
            Unloadable::Gone => return None,
            Unloadable::InProgress(_) => "meta.json is missing".into(),
            Unloadable::Newer(format) => format!("it has format {format}, which a newer outbox wrote"),
            Unloadable::Damaged(reason) | Unloadable::Denied(reason) => reason.clone(),
            Unloadable::Io(error) => error::describe(error),
        })
    }
}
