//! The header fields of a replayed request.

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
    if let Some((name, value)) = entry.base().header() {
        add(name, &value);
    }
    headers
}

/// All header fields of the question what a write's resource is now. The author's own go along, because the
/// server may need them to find it (a tenant, say); those about the body do not.
pub fn question(entry: &Entry) -> Vec<(String, Vec<u8>)> {
    let of_the_body = |name: &str| {
        let name = name.to_ascii_lowercase();
        name.starts_with("content-")
            || matches!(&*name, "accept" | "accept-encoding" | "cache-control" | "expect")
    };
    let theirs = entry.meta.headers.iter().filter(|(name, _)| !of_the_body(name));
    let named = theirs.clone().any(|(name, _)| name.eq_ignore_ascii_case("user-agent"));
    let ours = [
        ("Accept", "*/*"),
        // Compared byte by byte with what was sent.
        ("Accept-Encoding", "identity"),
        // A cache in between may still have the version before.
        ("Cache-Control", "no-cache"),
    ];
    let agent = (!named).then_some(("User-Agent", USER_AGENT));
    let ours =
        ours.into_iter().chain(agent).map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()));
    ours.chain(theirs.map(|(name, value)| (name.clone(), value.as_bytes().to_vec()))).collect()
}
