//! What may be queued, and what may stand in a meta.json: the same rules, so that what is refused at the
//! door is corrupt on disk. They keep a queued write from choosing its host (an origin-form path only), from
//! smuggling a second request (no control characters) and from carrying what is the connection's or the
//! host's (RFC 9110 section 7.6.1, credentials).

use crate::bindings::types::Request;
use crate::{Error, Invalid, Result, clock};

/// The methods that are writes (RFC 9110 section 9.3, RFC 5789, RFC 4918, RFC 4791, RFC 3744).
const WRITES: [&str; 10] =
    ["PUT", "POST", "PATCH", "DELETE", "MKCOL", "COPY", "MOVE", "PROPPATCH", "MKCALENDAR", "ACL"];

/// Longest path and query, in bytes; RFC 9112 section 3 asks for at least 8,000 to be supported.
const MAX_URI: usize = 16 * 1024;
/// Longest Content-Type, ETag, header name or header value, in bytes.
const MAX_FIELD: usize = 16 * 1024;
/// All further headers together, in bytes: hosts cap the section (wasmtime at 128 KiB of memory).
const MAX_HEADERS: usize = 48 * 1024;
/// And so many of them, each of which takes some 70 bytes more there. (At the door only: more were taken once.)
const MOST_HEADERS: usize = 512;

/// Headers that a queued write may not carry, with the reason.
const REFUSED: [(&str, &str); 26] = {
    const CREDENTIAL: &str =
        "credentials are never put on disk; give them to the host (--bearer-env, --bearer-file)";
    const CONNECTION: &str = "it belongs to one connection, not to the request (RFC 9110 section 7.6.1)";
    const FRAMING: &str = "it describes the message's framing or target, which the replay decides";
    const PRECONDITION: &str = "the replay sets preconditions; give base-etag, base-mod-time or create";
    const OWN: &str = "the replay sets it itself";
    [
        ("authorization", CREDENTIAL),
        ("cookie", CREDENTIAL),
        ("proxy-authorization", CREDENTIAL),
        ("proxy-authenticate", CONNECTION),
        ("connection", CONNECTION),
        ("keep-alive", CONNECTION),
        ("proxy-connection", CONNECTION),
        ("te", CONNECTION),
        ("trailer", CONNECTION),
        ("transfer-encoding", CONNECTION),
        ("upgrade", CONNECTION),
        ("http2-settings", CONNECTION),
        ("host", FRAMING),
        ("content-length", FRAMING),
        ("content-range", FRAMING),
        ("expect", FRAMING),
        ("range", FRAMING),
        ("if-match", PRECONDITION),
        ("if-none-match", PRECONDITION),
        ("if-modified-since", PRECONDITION),
        ("if-unmodified-since", PRECONDITION),
        ("if-range", PRECONDITION),
        ("content-type", "give it as content-type, not among the headers"),
        ("idempotency-key", OWN),
        ("date", OWN),
        ("set-cookie", "it is a response's"),
    ]
};

/// Checks a whole request at the door.
pub fn check(request: &Request) -> Result<()> {
    method(&request.method)?;
    if !WRITES.contains(&request.method.as_str()) {
        let upper = request.method.to_ascii_uppercase();
        let reason = if WRITES.contains(&upper.as_str()) {
            format!("methods are case-sensitive; use {upper}")
        } else {
            format!("it is no write that can be queued; use one of {}", WRITES.join(", "))
        };
        return invalid("method", &request.method, reason);
    }
    raw_uri(&request.uri)?;
    if let Some(value) = &request.content_type {
        field_value("content type", value)?;
    }
    headers(&request.headers)?;
    if request.headers.len() > MOST_HEADERS {
        let count = request.headers.len().to_string();
        return invalid("headers", &count, "there are more than 512 of them");
    }
    if let Some(text) = &request.base_mod_time {
        base_mod_time(text)?;
    }
    if let Some(tag) = &request.base_etag {
        etag(tag)?;
    }
    if request.create && (request.base_etag.is_some() || request.base_mod_time.is_some()) {
        return invalid(
            "create",
            "true",
            "what must not exist yet has no base version; give one or the other",
        );
    }
    Ok(())
}

/// A method is a token (RFC 9110 section 9.1).
pub fn method(value: &str) -> Result<()> {
    match is_token(value) && value.len() <= 64 {
        true => Ok(()),
        false => invalid("method", value, "it is no HTTP method token"),
    }
}

/// A path and query in origin-form (RFC 9112 section 3.2.1).
pub fn raw_uri(value: &str) -> Result<()> {
    let reason = if value.len() > MAX_URI {
        "it is longer than 16 KiB"
    } else if value.starts_with("//") {
        "it starts with two slashes, which some servers read as a host; start it with one"
    } else if !value.starts_with('/') {
        "it must be a path that starts with '/'; scheme and host come from the upstream"
    } else if value.chars().any(char::is_control) {
        "it has control characters; percent-encode them"
    } else if value.contains('#') {
        "it has a fragment, which is never sent; leave it out, or write '#' as %23"
    } else if value.contains('\\') {
        "it has a backslash, which some servers read as a slash; write it as %5C"
    } else {
        return Ok(());
    };
    invalid("URI", value, reason)
}

/// The further headers of a request.
pub fn headers(headers: &[(String, String)]) -> Result<()> {
    let mut total = 0usize;
    for (name, value) in headers {
        if !is_token(name) || name.len() > MAX_FIELD {
            return invalid("header", name, "its name is no HTTP token");
        }
        let lower = name.to_ascii_lowercase();
        if let Some((_, reason)) = REFUSED.iter().find(|(refused, _)| *refused == lower) {
            return invalid("header", name, *reason);
        }
        field_value("header", value)?;
        total = total.saturating_add(name.len()).saturating_add(value.len());
    }
    match total > MAX_HEADERS {
        true => invalid("headers", &format!("{total} bytes"), "together they are longer than 48 KiB"),
        false => Ok(()),
    }
}

/// A header's value: visible characters, blanks between them, and bytes above ASCII (RFC 9110 section 5.5).
pub fn field_value(what: &str, value: &str) -> Result<()> {
    if value.len() > MAX_FIELD {
        return invalid(what, value, "it is longer than 16 KiB");
    }
    if value.chars().any(|c| c.is_control() && c != '\t') {
        return invalid(what, value, "it has control characters");
    }
    if value.trim() != value {
        return invalid(what, value, "it starts or ends with a blank");
    }
    Ok(())
}

/// A modification time, RFC 3339.
pub fn base_mod_time(text: &str) -> Result<Option<std::time::SystemTime>> {
    clock::parse_rfc3339(text).or_else(|_| {
        invalid("base mod time", text, "it is no RFC 3339 time with offset, such as 2026-05-01T10:00:00Z")
    })
}

/// An entity tag (RFC 9110 section 8.8.3). A weak one never matches in If-Match.
pub fn etag(tag: &str) -> Result<()> {
    let opaque = tag.strip_prefix('"').and_then(|t| t.strip_suffix('"'));
    let fine = opaque
        .is_some_and(|t| t.len() <= MAX_FIELD && t.chars().all(|c| !c.is_control() && c != '"' && c != ' '));
    if fine {
        return Ok(());
    }
    let reason = if tag.starts_with("W/") {
        "it is weak, and a weak ETag never matches in If-Match (RFC 9110 section 13.1.1); \
         use the modification time"
    } else {
        "it is no entity tag; it is quoted as the server sent it, such as '\"a1b2\"'"
    };
    invalid("ETag", tag, reason)
}

fn is_token(value: &str) -> bool {
    !value.is_empty() && value.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

/// The error for a value that is refused. Long values are cut for the message.
pub fn invalid<T>(what: &str, value: &str, reason: impl Into<String>) -> Result<T> {
    let value = match value.char_indices().nth(200) {
        Some((end, _)) => format!("{}...", value.get(..end).unwrap_or_default()),
        None => value.to_owned(),
    };
    Err(Error::InvalidRequest(Invalid { what: what.into(), value, reason: reason.into() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(uri: &str) -> Request {
        Request {
            method: "PUT".into(),
            uri: uri.into(),
            content_type: None,
            headers: vec![],
            base_mod_time: None,
            base_etag: None,
            create: false,
        }
    }

    #[test]
    fn a_uri_can_never_choose_the_host() {
        for uri in [
            "",
            "x",
            "@evil/x",
            ".evil/x",
            "//evil/x",
            "http://evil/x",
            "evil:80",
            "*",
            "/a\r\nHost: evil",
            "/a#b",
            "/\\evil",
            "/\u{0}",
        ] {
            assert!(check(&put(uri)).is_err(), "{uri:?}");
        }
        for uri in ["/", "/a%20b/%C3%BC?x=1&y=<2>", "/a//b", "/ü", "/a/../b"] {
            assert!(check(&put(uri)).is_ok(), "{uri:?}");
        }
    }

    #[test]
    fn only_writes_are_queued() {
        for method in ["", "GET", "put", "PU T", "CONNECT", "TRACE", "FROB", "PUT\r\n"] {
            assert!(check(&Request { method: method.into(), ..put("/x") }).is_err(), "{method:?}");
        }
    }

    #[test]
    fn headers_that_are_not_the_authors_are_refused() {
        for (name, value) in [
            ("Authorization", "Bearer x"),
            ("Connection", "close"),
            ("HOST", "evil"),
            ("Content-Length", "5"),
            ("If-Match", "*"),
            ("a b", "x"),
            ("x", "a\r\nb: c"),
            ("x", " padded"),
        ] {
            let request = Request { headers: vec![(name.into(), value.into())], ..put("/x") };
            assert!(check(&request).is_err(), "{name}: {value}");
        }
        let many = |n| Request { headers: vec![("x".into(), "1".into()); n], ..put("/x") };
        assert!(check(&many(512)).is_ok() && check(&many(513)).is_err());
        let fine = vec![("X-Trace".into(), "a\tb".into()), ("Destination".into(), "/b".into())];
        assert!(check(&Request { headers: fine, ..put("/x") }).is_ok());
    }

    #[test]
    fn bases_are_checked() {
        let with = |time: Option<&str>, tag: Option<&str>, create| Request {
            base_mod_time: time.map(Into::into),
            base_etag: tag.map(Into::into),
            create,
            ..put("/x")
        };
        assert!(check(&with(Some("2026-05-01T10:00:00Z"), Some("\"a\""), false)).is_ok());
        assert!(check(&with(Some("yesterday"), None, false)).is_err());
        assert!(check(&with(None, Some("a"), false)).is_err());
        assert!(check(&with(None, Some("W/\"a\""), false)).is_err());
        assert!(check(&with(None, Some("\"a\""), true)).is_err());
    }
}
