//! The header fields of a replayed request.

use crate::entry::Entry;

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
    if meta.header("user-agent").is_none() {
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

/// Bytes of a reply's header fields that are kept: a record on disk has its limit, and so has memory.
const KEPT: usize = 64 * 1024;

/// Those that something is done with.
const READ: [&str; 7] =
    ["etag", "last-modified", "date", "retry-after", "location", "content-length", "content-encoding"];

/// What is kept of a reply's header fields, those that are read before others.
pub fn kept(mut fields: Vec<(String, Vec<u8>)>) -> Vec<(String, Vec<u8>)> {
    let size = |(name, value): &(String, Vec<u8>)| name.len() + value.len();
    if fields.iter().map(size).sum::<usize>() > KEPT {
        fields.sort_by_key(|(name, _)| !READ.iter().any(|read| name.eq_ignore_ascii_case(read)));
        let mut room = KEPT;
        fields.retain(|field| {
            let fits = size(field) <= room;
            room -= if fits { size(field) } else { 0 };
            fits
        });
    }
    fields
}

/// All header fields of the question what a write's resource is now. The author's own go along, because the
/// server may need them to find it (a tenant, say); those about the body do not.
pub fn question(entry: &Entry) -> Vec<(String, Vec<u8>)> {
    let of_the_body = |name: &str| {
        let name = name.to_ascii_lowercase();
        name.starts_with("content-")
            || matches!(&*name, "accept" | "accept-encoding" | "cache-control" | "expect")
            // And what WebDAV says of a write: a lock may be over by now (RFC 4918 section 10).
            || matches!(&*name, "if" | "lock-token" | "destination" | "overwrite" | "depth")
    };
    let theirs = entry.meta.headers.iter().filter(|(name, _)| !of_the_body(name));
    // Compared byte by byte with what was sent.
    let codings = match entry.meta.header("content-encoding") {
        Some(coding) => format!("{coding}, identity"),
        None => "identity".into(),
    };
    let ours = [
        ("Accept", "*/*"),
        ("Accept-Encoding", &codings),
        // A cache in between may still have the version before.
        ("Cache-Control", "no-cache"),
    ];
    let agent = entry.meta.header("user-agent").is_none().then_some(("User-Agent", USER_AGENT));
    let ours =
        ours.into_iter().chain(agent).map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()));
    ours.chain(theirs.map(|(name, value)| (name.clone(), value.as_bytes().to_vec()))).collect()
}
