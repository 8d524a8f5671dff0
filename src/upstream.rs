//! Where requests go: one origin, optionally with a path prefix.

use crate::key::Key;
use crate::meta::Meta;
use crate::{Error, Invalid, Result};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use wasi::http::types::Scheme;

/// Characters that must not stand in a request target (RFC 3986 section 2); '%' may, as it starts an escape.
const ESCAPED: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'<')
    .add(b'>')
    .add(b'\\')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

/// The upstream.
#[derive(Debug)]
pub struct Upstream {
    /// http or https.
    pub scheme: Scheme,
    /// Host and port.
    pub authority: String,
    /// What every path starts with; no slash at its end.
    prefix: String,
}

impl Upstream {
    /// Reads `http(s)://host[:port][/prefix]`.
    pub fn parse(url: &str) -> Result<Upstream> {
        let refuse = |reason: &str| {
            let (what, value) = ("OUTBOX_UPSTREAM".into(), without_credentials(url));
            Err(Error::Configuration(Invalid { what, value, reason: reason.into() }))
        };
        let (scheme, rest) = match url.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (Scheme::Http, rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (Scheme::Https, rest),
            _ => return refuse("the upstream is no http or https URL, such as https://example.org"),
        };
        if rest.contains(['?', '#']) {
            return refuse(
                "the upstream has a query or a fragment; give scheme, host, port and a path at most",
            );
        }
        let (authority, prefix) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, ""),
        };
        if authority.contains('@') {
            return refuse(
                "the upstream has credentials in it; give them with --bearer-env or --bearer-file",
            );
        }
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
        if host.is_empty() || rest.chars().any(|c| c.is_control() || c.is_whitespace() || c == '\\') {
            return refuse("the upstream has no usable host");
        }
        Ok(Upstream { scheme, authority: authority.into(), prefix: prefix.trim_end_matches('/').into() })
    }

    /// The request target for an entry's path and query. What a raw URI may hold but a request line may not
    /// (the original stores queries unescaped) is percent-encoded, which names the same resource.
    pub fn target(&self, raw_uri: &str) -> String {
        let mut target = utf8_percent_encode(&self.prefix, ESCAPED).to_string();
        target.extend(utf8_percent_encode(raw_uri, ESCAPED));
        target
    }

    /// What a write concerns: its own path, and that to which it copies or moves (RFC 4918 section 10.3). The latter
    /// is the server's spelling, with the prefix, and may be a whole URL.
    pub fn keys(&self, meta: &Meta) -> Vec<Key> {
        let path = meta.header("destination").map(|value| match value.split_once("://") {
            Some((_, rest)) => rest.find('/').map_or("/", |slash| rest.get(slash..).unwrap_or("/")),
            None => value,
        });
        let destination = path.map(|path| Key::of(path).below(&Key::of(&self.prefix)));
        std::iter::once(Key::of(&meta.raw_uri)).chain(destination).collect()
    }
}

/// What may be shown of a URL: nothing before the last '@', however the rest is mangled.
fn without_credentials(url: &str) -> String {
    match url.rsplit_once('@') {
        Some((_, rest)) => format!("...@{rest}"),
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstream_is_an_origin_with_an_optional_prefix() {
        let upstream = Upstream::parse("HTTP://127.0.0.1:8080/dav/").unwrap();
        assert_eq!(upstream.authority, "127.0.0.1:8080");
        assert_eq!(upstream.target("/a b?x=<1>&y=%20"), "/dav/a%20b?x=%3C1%3E&y=%20");
        assert_eq!(Upstream::parse("https://[::1]:8443").unwrap().authority, "[::1]:8443");
        assert_eq!(Upstream::parse("http://h").unwrap().target("/"), "/");
    }

    #[test]
    fn a_move_concerns_its_destination_too() {
        let upstream = Upstream::parse("http://h/dav").unwrap();
        let keys = |destination: &str| {
            let json = format!(
                r#"{{"id": "18ea4ba277c322d7-873e00", "method": "MOVE", "raw_uri": "/a?x", "queued_at": "2026-05-01T10:00:00Z",
                    "headers": [["destination", "{destination}"]]}}"#
            );
            let id = crate::id::EntryId::parse("18ea4ba277c322d7-873e00").unwrap();
            upstream.keys(&Meta::parse(id, json.as_bytes()).ok().unwrap())
        };
        for destination in ["/dav/b", "http://h:80/dav/b/", "/b"] {
            assert_eq!(keys(destination), [Key::of("/a"), Key::of("/b")], "{destination}");
        }
        assert_eq!(keys("http://h")[1], Key::everything());
    }

    #[test]
    fn other_urls_are_refused_without_showing_a_password() {
        for url in [
            "",
            "h",
            "ftp://h/",
            "http://",
            "http:///x",
            "http://:80",
            "http://h?x",
            "http://h#x",
            "http://u:secret@h/",
            "u:secret@h",
            "http:/u:secret@h",
            "http://a b/",
        ] {
            match Upstream::parse(url) {
                Err(Error::Configuration(invalid)) => assert!(!invalid.value.contains("secret")),
                other => panic!("{url}: {other:?}"),
            }
        }
    }
}
