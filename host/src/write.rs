//! A write to be queued, from parts or from an HTTP request.

use crate::Error;
use crate::bindings::zddc::outbox::types::Request;
use http::{HeaderName, header};

/// A write to be queued: everything but its body. The component checks it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Write {
    /// The method.
    pub method: String,
    /// Path and query, starting with one `/`.
    pub uri: String,
    /// The body's Content-Type.
    pub content_type: Option<String>,
    /// Further headers.
    pub headers: Vec<(String, String)>,
    /// The Last-Modified of the version that the author had seen, RFC 3339.
    pub base_mod_time: Option<String>,
    /// The ETag of the version that the author had seen.
    pub base_etag: Option<String>,
    /// The resource must not exist yet.
    pub create: bool,
}

impl Write {
    /// A write without headers or base.
    pub fn new(method: impl Into<String>, uri: impl Into<String>) -> Write {
        Write { method: method.into(), uri: uri.into(), ..Write::default() }
    }

    /// The write that a request asks for. If-Match, If-None-Match and If-Unmodified-Since become the base;
    /// headers of the connection, those that Connection names among them, and Content-Length, which is the body's own, are left out.
    pub fn from_http(parts: &http::request::Parts) -> Result<Write, Error> {
        let uri = &parts.uri;
        if uri.authority().is_some() {
            return Err(Error::invalid(
                "URI",
                &uri.to_string(),
                "it names a host; give a path, the upstream is the host",
            ));
        }
        let path = uri.path_and_query().map_or("", |path| path.as_str());
        for name in [header::CONTENT_TYPE, header::IF_MATCH, header::IF_UNMODIFIED_SINCE] {
            if parts.headers.get_all(&name).iter().nth(1).is_some() {
                return Err(Error::invalid("header", name.as_str(), "it is there more than once"));
            }
        }
        // It names further fields that are the connection's (RFC 9110 section 7.6.1).
        let is_hop_by_hop = |name: &HeaderName| {
            let values = parts.headers.get_all(header::CONNECTION).iter();
            let mut options =
                values.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
            options.any(|option| option.trim().eq_ignore_ascii_case(name.as_str()))
        };
        let mut write = Write::new(parts.method.as_str(), path);
        for (name, value) in &parts.headers {
            let text = || {
                let text = std::str::from_utf8(value.as_bytes());
                text.map(str::to_owned)
                    .map_err(|_| Error::invalid("header", name.as_str(), "its value is not UTF-8"))
            };
            match *name {
                header::HOST | header::CONTENT_LENGTH | header::TRANSFER_ENCODING | header::CONNECTION => {}
                header::CONTENT_TYPE => write.content_type = Some(text()?),
                header::IF_MATCH => write.base_etag = Some(text()?),
                header::IF_NONE_MATCH if value.as_bytes() == b"*" => write.create = true,
                header::IF_UNMODIFIED_SINCE => write.base_mod_time = Some(date(&text()?)?),
                _ if is_hop_by_hop(name) => {}
                _ => write.headers.push((name.as_str().to_owned(), text()?)),
            }
        }
        Ok(write)
    }
}

/// An HTTP date as RFC 3339.
fn date(text: &str) -> Result<String, Error> {
    let at = httpdate::parse_http_date(text)
        .map_err(|_| Error::invalid("If-Unmodified-Since", text, "it is no HTTP date"))?;
    Ok(humantime::format_rfc3339_seconds(at).to_string())
}

impl From<Write> for Request {
    fn from(w: Write) -> Request {
        Request {
            method: w.method,
            uri: w.uri,
            content_type: w.content_type,
            headers: w.headers,
            base_mod_time: w.base_mod_time,
            base_etag: w.base_etag,
            create: w.create,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn preconditions_of_a_request_become_the_base() {
        let request = http::Request::put("/a?b")
            .header("If-Match", "\"v1\"")
            .header("If-Unmodified-Since", "Wed, 01 May 2024 08:00:00 GMT")
            .header("Content-Type", "text/plain")
            .header("Content-Length", "3")
            .header("X-Mine", "1")
            .body(())
            .unwrap();
        let write = Write::from_http(&request.into_parts().0).unwrap();
        assert_eq!((write.method.as_str(), write.uri.as_str()), ("PUT", "/a?b"));
        assert_eq!(write.base_etag.as_deref(), Some("\"v1\""));
        assert_eq!(write.base_mod_time.as_deref(), Some("2024-05-01T08:00:00Z"));
        assert_eq!(write.content_type.as_deref(), Some("text/plain"));
        assert_eq!(write.headers, [("x-mine".to_owned(), "1".to_owned())]);
        for (name, value) in [
            ("If-Match", "\"v1\""),
            ("If-Unmodified-Since", "Wed, 01 May 2024 08:00:00 GMT"),
            ("Content-Type", "text/plain"),
        ] {
            let twice = http::Request::put("/a").header(name, value).header(name, value).body(()).unwrap();
            let refused = Write::from_http(&twice.into_parts().0).unwrap_err().to_string();
            assert!(
                refused.contains(&name.to_lowercase()) && refused.contains("more than once"),
                "{refused}"
            );
        }
        let hops = http::Request::put("/a").header("Connection", "close, X-Hop").header("X-Hop", "1");
        let write = Write::from_http(&hops.body(()).unwrap().into_parts().0).unwrap();
        assert_eq!(write, Write::new("PUT", "/a"));
        let absolute = http::Request::put("http://evil/x").body(()).unwrap();
        assert!(Write::from_http(&absolute.into_parts().0).is_err());
    }
}
