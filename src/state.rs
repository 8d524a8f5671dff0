//! state.json: what happened to a pending entry so far. Replaced whole, by rename; absent until needed.

use crate::layout::STATE;
use crate::meta::reason_in;
use crate::{Error, clock};
use serde::{Deserialize, Serialize};
use std::time::SystemTime;

/// The record. Every key is optional.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// How many times it was sent, or tried, without a final answer.
    #[serde(default)]
    pub attempts: u32,
    /// RFC 3339, UTC: not to be sent before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<String>,
    /// Why the last attempt did not deliver it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

impl State {
    /// Reads the record.
    pub fn parse(json: &[u8]) -> Result<State, Error> {
        serde_json::from_slice(json).map_err(|e| Error::Io(reason_in(STATE, &e.to_string())))
    }

    /// When it may be sent, if not at once. A time that cannot be read is none: sending early is harmless.
    pub fn not_before(&self) -> Option<SystemTime> {
        self.not_before.as_deref().and_then(|text| clock::parse_rfc3339(text).ok()).flatten()
    }
}
