//! meta.json: what to send. Written once, read by us and by the Go original; keys that either does not know
//! are ignored by the other.

use crate::bindings::types::Request;
use crate::id::EntryId;
use crate::layout::{FORMAT, META};
use crate::{clock, request};
use serde::{Deserialize, Serialize};
use std::time::SystemTime;

/// The record. The first six keys are the original's, the others ours; all of ours are optional.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// The entry's id; equal to its directory's name.
    pub id: String,
    /// The method.
    pub method: String,
    /// Path and query, origin-form.
    pub raw_uri: String,
    /// The body's Content-Type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// RFC 3339; absent, empty, or Go's zero time mean none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_mod_time: Option<String>,
    /// RFC 3339, UTC, whole seconds.
    #[serde(default)]
    pub queued_at: String,
    /// The format of the entry; absent means the original's, which is read as 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<u32>,
    /// Bytes in body.bin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_len: Option<u64>,
    /// `xxh3:` and 32 hex digits: XXH3-128 of body.bin. Other algorithms are not checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_digest: Option<String>,
    /// The base version's ETag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_etag: Option<String>,
    /// The resource must not exist yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub create: bool,
    /// Further headers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<(String, String)>,
}

/// Why a meta.json cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub enum Unusable {
    /// It was written by a newer program: left untouched.
    Newer(u64),
    /// It is damaged, for this reason.
    Damaged(String),
}

/// Reads only the format, from a record whose other keys may have changed their meaning.
#[derive(Deserialize)]
struct Versioned {
    #[serde(default)]
    format: Option<u64>,
}

impl Meta {
    /// The first value of one of the author's own header fields.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(field, _)| field.eq_ignore_ascii_case(name))?;
        Some(value)
    }

    /// About how many bytes it takes in memory.
    pub fn weight(&self) -> usize {
        let headers = self.headers.iter().map(|(name, value)| name.len() + value.len() + 48).sum::<usize>();
        let texts = [&self.content_type, &self.base_etag, &self.base_mod_time];
        let texts = texts.into_iter().flatten().map(String::len).sum::<usize>();
        512 + self.raw_uri.len() + texts + headers
    }

    /// The record of a new entry.
    pub fn new(id: EntryId, request: &Request, queued_at: String, body_len: u64, digest: String) -> Meta {
        Meta {
            id: id.to_string(),
            method: request.method.clone(),
            raw_uri: request.uri.clone(),
            content_type: request.content_type.clone(),
            base_mod_time: request
                .base_mod_time
                .as_deref()
                .map(|text| clock::respell_rfc3339(text).unwrap_or_else(|| text.to_owned())),
            queued_at,
            format: Some(FORMAT),
            body_len: Some(body_len),
            body_digest: Some(digest),
            base_etag: request.base_etag.clone(),
            create: request.create,
            headers: request.headers.clone(),
        }
    }

    /// Reads and checks the record of the entry `id`.
    pub fn parse(id: EntryId, json: &[u8]) -> Result<Meta, Unusable> {
        let damaged = |reason: String| Unusable::Damaged(reason_in(META, &reason));
        let versioned: Versioned = serde_json::from_slice(json).map_err(|e| damaged(e.to_string()))?;
        if let Some(format) = versioned.format.filter(|f| *f > FORMAT.into()) {
            return Err(Unusable::Newer(format));
        }
        let mut meta: Meta = serde_json::from_slice(json).map_err(|e| damaged(e.to_string()))?;
        if meta.id != id.to_string() {
            return Err(damaged(format!("its id is {:?}, the directory's name is another", meta.id)));
        }
        meta.content_type = meta.content_type.filter(|t| !t.is_empty());
        meta.base_mod_time = meta.base_mod_time.filter(|t| !t.is_empty());
        meta.check().map_err(|e| damaged(crate::error::describe(&e)))?;
        Ok(meta)
    }

    fn check(&self) -> crate::Result<()> {
        request::method(&self.method)?;
        request::raw_uri(&self.raw_uri)?;
        if let Some(value) = &self.content_type {
            request::field_value("content type", value)?;
        }
        if let Some(tag) = &self.base_etag {
            request::etag(tag)?;
        }
        self.base_time()?;
        let texts =
            [("queued_at", Some(&self.queued_at), 64), ("body_digest", self.body_digest.as_ref(), 128)];
        for (key, text, longest) in texts {
            // They are what they are; but nobody writes longer ones, and many would not fit in memory.
            if let Some(text) = text.filter(|text| text.len() > longest) {
                return request::invalid(key, text, format!("it is longer than {longest} bytes"));
            }
        }
        request::headers(&self.headers)
    }

    /// The base version's modification time, if there is one.
    pub fn base_time(&self) -> crate::Result<Option<SystemTime>> {
        self.base_mod_time.as_deref().map_or(Ok(None), request::base_mod_time)
    }

    /// The body's digest, where it is of the algorithm that we check.
    pub fn known_digest(&self) -> Option<&str> {
        self.body_digest.as_deref().filter(|digest| digest.starts_with("xxh3:"))
    }

    /// What is wrong with a body of this length and digest, as far as the record says what it must be.
    pub fn damage_in_body(&self, len: u64, digest: &str) -> Option<String> {
        if let Some(expected) = self.body_len.filter(|expected| *expected != len) {
            return Some(format!("body.bin has {len} bytes where meta.json says {expected}"));
        }
        let expected = self.known_digest().filter(|expected| *expected != digest)?;
        Some(format!("body.bin has digest {digest} where meta.json says {expected}"))
    }

    /// The record's text: indented by one blank, as the original's is.
    pub fn to_json(&self) -> Vec<u8> {
        to_json(self)
    }
}

/// Why a record cannot be used, on one line and short: messages quote what they found, which may be long.
pub fn reason_in(file: &str, reason: &str) -> String {
    const LONGEST: usize = 200;
    let reason = reason.replace(char::is_control, " ");
    match reason.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{file}: {}...", reason.get(..end).unwrap_or_default()),
        None => format!("{file}: {reason}"),
    }
}

/// A record's text: JSON, indented by one blank.
pub fn to_json(record: &impl Serialize) -> Vec<u8> {
    // A common meta.json fits.
    let mut text = Vec::with_capacity(512);
    let indent = serde_json::ser::PrettyFormatter::with_indent(b" ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, indent);
    // Our records have string keys only and a Vec takes every write, so this cannot fail.
    let _ = record.serialize(&mut serializer);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "18ea4ba277c322d7-873e00";

    fn parse(json: &str) -> Result<Meta, Unusable> {
        Meta::parse(EntryId::parse(ID).unwrap(), json.as_bytes())
    }

    #[test]
    fn an_entry_of_the_original_is_read() {
        let json = r#"{
 "id": "18ea4ba277c322d7-873e00",
 "method": "PUT",
 "raw_uri": "/a%20b/%C3%BC?x=1\u0026y=\u003c2\u003e",
 "base_mod_time": "0001-01-01T00:00:00Z",
 "queued_at": "2026-11-22T06:56:02Z",
 "later": {"keys": ["are", "ignored"]}
}"#;
        let meta = parse(json).unwrap();
        assert_eq!(meta.raw_uri, "/a%20b/%C3%BC?x=1&y=<2>");
        assert_eq!(meta.base_time(), Ok(None));
        assert_eq!(meta.content_type, None);
    }

    #[test]
    fn a_newer_format_is_told_from_damage_whatever_else_it_holds() {
        assert_eq!(parse(r#"{"format": 2, "method": {"now": "an object"}}"#), Err(Unusable::Newer(2)));
        assert_eq!(parse(r#"{"format": 5000000000}"#), Err(Unusable::Newer(5_000_000_000)));
    }

    #[test]
    fn damage_is_named() {
        let deep = "[".repeat(100_000);
        let cases = [
            "",
            "null",
            "{}",
            "[]",
            "\u{0}\u{0}",
            &deep,
            r#"{"id":"../../victim","method":"PUT","raw_uri":"/x","queued_at":""}"#,
            r#"{"id":"18ea4ba277c322d7-873e00","method":"PUT","raw_uri":"@evil/x","queued_at":""}"#,
            r#"{"id":"18ea4ba277c322d7-873e00","method":"P T","raw_uri":"/x","queued_at":""}"#,
            r#"{"id":"18ea4ba277c322d7-873e00","method":"PUT","raw_uri":"/x","headers":[["Host","evil"]]}"#,
            r#"{"id":"18ea4ba277c322d7-873e00","method":"PUT","raw_uri":"/x","base_mod_time":"soon"}"#,
        ];
        for json in cases {
            assert!(matches!(parse(json), Err(Unusable::Damaged(_))), "{:.80}", json);
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let request = Request {
            method: "PATCH".into(),
            uri: "/a?b=<c>".into(),
            content_type: Some("text/plain".into()),
            headers: vec![("X-A".into(), "\u{fc}\"\\".into())],
            base_mod_time: Some("2024-05-01T10:00:00.123456789+02:00".into()),
            base_etag: Some("\"v1\"".into()),
            create: false,
        };
        let id = EntryId::parse(ID).unwrap();
        let meta = Meta::new(id, &request, "2026-11-22T06:56:02Z".into(), 3, "xxh3:00".into());
        assert_eq!(Meta::parse(id, &meta.to_json()).unwrap(), meta);
    }
}
