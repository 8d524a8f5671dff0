//! Which version of a resource a write may replace (RFC 9110 section 13.1), and how a version is named.
//!
//! The author's own knowledge is in meta.json and never changes. When an earlier write of ours to the same
//! resource is delivered, the server's name for what it made is handed on to the next one, in state.json
//! ([`crate::chain`]); from then on that counts.

use crate::clock;
use crate::exchange::Reply;
use crate::meta::Meta;
use crate::request;
use serde::{Deserialize, Serialize};
use std::time::SystemTime;

/// The version that a write is based on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Base {
    /// None in particular: it replaces whatever is there.
    Any,
    /// The one with this entity tag.
    Etag(String),
    /// The one with this Last-Modified date; whole seconds.
    Modified(SystemTime),
    /// There must be none.
    Absent,
}

impl Base {
    /// What the author of a write had seen.
    pub fn of(meta: &Meta) -> Base {
        if let Some(tag) = &meta.base_etag {
            Base::Etag(tag.clone())
        } else if meta.create {
            Base::Absent
        } else {
            match meta.base_time() {
                Ok(Some(at)) => Base::Modified(whole_seconds(at)),
                _ => Base::Any,
            }
        }
    }

    /// The header field that says so: If-Match, If-None-Match or If-Unmodified-Since. An ETag says more than a
    /// date, which has whole seconds only.
    pub fn header(&self) -> Option<(&'static str, String)> {
        match self {
            Base::Any => None,
            Base::Etag(tag) => Some(("If-Match", tag.clone())),
            Base::Absent => Some(("If-None-Match", "*".into())),
            Base::Modified(at) => Some(("If-Unmodified-Since", clock::http_date(*at))),
        }
    }
}

fn whole_seconds(at: SystemTime) -> SystemTime {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(since.as_secs())
}

/// How the server names the version that is there now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Validator {
    /// A strong entity tag, quoted. A weak one is of no use: If-Match compares strongly (RFC 9110 section 13.1.1).
    Etag(String),
    /// A Last-Modified date, as sent.
    LastModified(String),
    /// Nothing is there.
    Absent,
    /// The server has no name for it that a precondition could use.
    Unknown,
}

impl Validator {
    /// What a reply says about the version that it is about.
    pub fn of(reply: &Reply) -> Validator {
        Validator::among(reply.header("etag"), reply.header("last-modified"))
    }

    /// An ETag that If-Match can use, else a date, else neither.
    pub fn among(etag: Option<&str>, last_modified: Option<&str>) -> Validator {
        let strong = etag.filter(|tag| request::etag(tag).is_ok());
        let date = || last_modified.filter(|date| clock::parse_http_date(date).is_some());
        match (strong, date()) {
            (Some(tag), _) => Validator::Etag(tag.into()),
            (None, Some(date)) => Validator::LastModified(date.into()),
            (None, None) => Validator::Unknown,
        }
    }

    /// What a write is based on whose author knows this version.
    pub fn base(&self) -> Base {
        match self {
            Validator::Etag(tag) => Base::Etag(tag.clone()),
            Validator::LastModified(date) => clock::parse_http_date(date).map_or(Base::Any, Base::Modified),
            Validator::Absent => Base::Absent,
            Validator::Unknown => Base::Any,
        }
    }

    /// The name of a version for which there is a base.
    pub fn from_base(base: &Base) -> Validator {
        match base {
            Base::Any => Validator::Unknown,
            Base::Etag(tag) => Validator::Etag(tag.clone()),
            Base::Modified(at) => Validator::LastModified(clock::http_date(*at)),
            Base::Absent => Validator::Absent,
        }
    }

    /// Whether it may stand in a header field: what is on disk may be damaged.
    pub fn check(&self) -> crate::Result<()> {
        match self {
            Validator::Etag(tag) => request::etag(tag),
            Validator::LastModified(date) if clock::parse_http_date(date).is_none() => {
                request::invalid("validator", date, "it is no HTTP date")
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_etag_wins_a_weak_one_does_not_count_and_a_date_is_the_second_best() {
        let date = "Sun, 22 Nov 2026 11:00:00 GMT";
        assert_eq!(Validator::among(Some("\"a\""), Some(date)), Validator::Etag("\"a\"".into()));
        assert_eq!(Validator::among(Some("W/\"a\""), Some(date)), Validator::LastModified(date.into()));
        assert_eq!(Validator::among(Some("W/\"a\""), Some("soon")), Validator::Unknown);
        assert_eq!(Validator::among(None, None).base(), Base::Any);
        let at = Validator::LastModified(date.into()).base();
        assert_eq!(at.header(), Some(("If-Unmodified-Since", date.into())));
        assert_eq!(Validator::from_base(&at), Validator::LastModified(date.into()));
        assert!(Validator::Etag("\"a\r\nX: y\"".into()).check().is_err());
    }
}
