//! state.json: what happened to a pending entry so far. Replaced whole, by rename; absent until needed.

use crate::layout::STATE;
use crate::meta::reason_in;
use crate::precondition::Validator;
use crate::{Error, clock};
use serde::{Deserialize, Serialize};
use std::time::SystemTime;

/// How somebody is asked whether a write that may have been applied is sent again.
pub const AMBIGUOUS: &str =
    "it may have been applied; 'outbox retry' sends it again, 'outbox drop' removes it";

/// The record. Every key is optional.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// How many times it was sent, or tried, without a final answer.
    #[serde(default)]
    pub attempts: u32,
    /// How many of those were in vain since there was no connection. They are the upstream's, and do not make the entry wait.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unreached: u32,
    /// RFC 3339, UTC: not to be sent before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<String>,
    /// Why the last attempt did not deliver it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// The version that an earlier write of ours made, on which this one is to be put. It takes the place of the
    /// base in meta.json.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validator: Option<Validator>,
    /// The server took it, with this status. Only which version that made is still to be asked, for the next edit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken: Option<u16>,
    /// It was, or may have been, sent, and what the server did with it is not known. Noted before the first
    /// byte leaves, and only where somebody asks for it: `--ambiguous hold`, `--coalesce`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_flight: bool,
    /// And somebody is being asked whether it is to be sent again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub asked: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "what serde wants")]
fn is_zero(count: &u32) -> bool {
    *count == 0
}

impl State {
    /// How many attempts reached the upstream.
    pub fn tries(&self) -> u32 {
        self.attempts.saturating_sub(self.unreached)
    }

    /// Whether somebody is being asked if it is to be sent again.
    pub fn is_ambiguous(&self) -> bool {
        self.in_flight && self.asked
    }

    /// Reads the record.
    pub fn parse(json: &[u8]) -> Result<State, Error> {
        let reason = |why: &str| Error::Io(reason_in(STATE, why));
        let state: State = serde_json::from_slice(json).map_err(|e| reason(&e.to_string()))?;
        if let Some(validator) = &state.validator {
            validator.check().map_err(|e| reason(&crate::error::describe(&e)))?;
        }
        Ok(state)
    }

    /// When it may be sent, if not at once. A time that cannot be read is none: sending early is harmless.
    pub fn not_before(&self) -> Option<SystemTime> {
        self.not_before.as_deref().and_then(|text| clock::parse_rfc3339(text).ok()).flatten()
    }
}
