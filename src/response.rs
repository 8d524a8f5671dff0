//! response.json: why an entry was set aside, in the server's words and in ours. docs/format.md has its keys.

use crate::bindings::types::Reply as WitReply;
use crate::clock;
use crate::exchange::Reply;
use crate::precondition::{Base, Validator};
use serde::{Deserialize, Serialize};
use std::time::SystemTime;

/// response.json: the reply that ended an entry's way.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Why, in a sentence.
    pub reason: String,
    /// When the reply came: RFC 3339, UTC.
    received_at: String,
    /// The server's present version, where it told it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    etag: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_modified: Option<String>,
    /// The header fields, without those that set cookies.
    pub headers: Vec<(String, String)>,
    /// At most 4 KiB; bytes that are not UTF-8 are replaced.
    pub body_start: String,
    /// What the resource was when the server was asked, after a 412.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<Answer>,
}

/// A reply to the question what a resource is now.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    /// At most 4 KiB.
    body_start: String,
}

impl Answer {
    fn new(reply: &Reply) -> Answer {
        Answer { status: reply.status, headers: kept_headers(reply), body_start: text(&reply.body_start) }
    }
}

impl From<Answer> for WitReply {
    fn from(answer: Answer) -> WitReply {
        WitReply { status: answer.status, headers: answer.headers, body_start: answer.body_start }
    }
}

/// What is known of a resource after a 412.
pub enum Current<'a> {
    /// There is a version, and it is not ours.
    Version(&'a Reply),
    /// There is nothing.
    Absent(&'a Reply),
    /// The server was asked and does not say: the status.
    Untold(u16),
    /// It was not asked: after this method, the answer would tell nothing.
    Unasked,
}

impl Current<'_> {
    /// The answer, where there was one that tells something.
    pub fn reply(&self) -> Option<&Reply> {
        match self {
            Current::Version(reply) | Current::Absent(reply) => Some(reply),
            Current::Untold(_) | Current::Unasked => None,
        }
    }

    /// What happened, for a person.
    pub fn sentence(&self, base: &Base) -> String {
        let named = |base: &Base| match base {
            Base::Any => "no version in particular".to_owned(),
            Base::Etag(tag) => format!("version {tag}"),
            Base::Modified(at) => format!("the version of {}", clock::http_date(*at)),
            Base::Absent => "there being none".to_owned(),
        };
        let yours = named(base);
        match self {
            Current::Version(reply) => match Validator::of(reply).base() {
                Base::Any => {
                    format!(
                        "somebody else changed it: your write was based on {yours}, and the server has another now"
                    )
                }
                theirs => format!(
                    "somebody else changed it: your write was based on {yours}, and the server has {} now",
                    named(&theirs)
                ),
            },
            Current::Absent(_) => {
                format!(
                    "somebody else removed it: your write was based on {yours}, and the server has none now"
                )
            }
            Current::Untold(status) => format!(
                "the server's version is not the one that your write was based on ({yours}); asked for its own, it answered {status}"
            ),
            Current::Unasked => {
                format!("the server's version is not the one that your write was based on ({yours})")
            }
        }
    }
}

/// Headers of a reply that are not put on disk.
const SECRET: [&str; 2] = ["set-cookie", "set-cookie2"];

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn kept_headers(reply: &Reply) -> Vec<(String, String)> {
    let secret = |name: &str| SECRET.iter().any(|secret| name.eq_ignore_ascii_case(secret));
    let kept = reply.headers.iter().filter(|(name, _)| !secret(name));
    kept.map(|(name, value)| (name.clone(), text(value))).collect()
}

impl Response {
    /// The record of a reply, and of what the server has now.
    pub fn new(reply: &Reply, current: Option<&Reply>, reason: &str) -> Response {
        let version = current.unwrap_or(reply);
        Response {
            status: reply.status,
            reason: reason.into(),
            received_at: clock::rfc3339(SystemTime::now()),
            etag: version.header("etag").map(Into::into),
            last_modified: version.header("last-modified").map(Into::into),
            headers: kept_headers(reply),
            body_start: text(&reply.body_start),
            current: current.map(Answer::new),
        }
    }

    /// The server's present version, as far as it was told.
    pub fn validator(&self) -> Validator {
        match &self.current {
            Some(Answer { status: 404 | 410, .. }) => Validator::Absent,
            _ => Validator::among(self.etag.as_deref(), self.last_modified.as_deref()),
        }
    }
}
