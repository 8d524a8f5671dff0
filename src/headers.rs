//! The header fields of a replayed request.

use crate::clock;
use crate::queue::Entry;

/// Who is asking, where the author did not say.
const USER_AGENT: &str = concat!("outbox/", env!("CARGO_PKG_VERSION"));

/// All header fields of a request: the author's, and the replay's own.
pub fn of(entry: &Entry, body_len: u64) -> Vec<(String, Vec<u8>)> {
    let meta = &entry.meta;
    let mut headers: Vec<(String, Vec<u8>)> = Vec::new();
    let mut add = |name: &str, value: &str| headers.push((name.into(), value.as_bytes().to_vec()));
    // A length of zero is said only where content is expected (RFC 9110 section 8.6).
    if body_len > 0 || matches!(meta.method.as_str(), "PUT" | "POST" | "PATCH" | "PROPPATCH") {
        add("Content-Length", &body_len.to_string());
    }
    if let Some(value) = &meta.content_type {
        add("Content-Type", value);
    }
    if !meta.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("user-agent")) {
        add("User-Agent", USER_AGENT);
    }
    for (name, value) in &meta.headers {
        add(name, value);
    }
    add("Idempotency-Key", &meta.id);
    // RFC 9110 section 13.1: an ETag says more than a date, which has whole seconds only.
    if let Some(tag) = &meta.base_etag {
        add("If-Match", tag);
    } else if meta.create {
        add("If-None-Match", "*");
    } else if let Ok(Some(at)) = meta.base_time() {
        add("If-Unmodified-Since", &clock::http_date(at));
    }
    headers
}
