//! Resources with versions, for scripts of an upstream that honours preconditions.

use crate::upstream::{Act, Reply, Seen};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// Resources with ETags and dates, which understand preconditions (RFC 9110 section 13). Clone it into a script.
#[derive(Clone, Default)]
pub struct Resources(Arc<Mutex<HashMap<String, Resource>>>);

#[derive(Clone)]
pub struct Resource {
    pub etag: String,
    /// Seconds since 1970.
    pub modified: u64,
    pub writer: String,
}

impl Resources {
    /// Somebody writes a resource beside the outbox; its new ETag.
    pub fn write(&self, path: &str, writer: &str, modified: u64) -> String {
        let mut all = self.0.lock().unwrap();
        let version =
            all.get(path).map_or(1, |r| r.etag.trim_matches(['"', 'v']).parse::<u64>().unwrap() + 1);
        let etag = format!("\"v{version}\"");
        all.insert(path.into(), Resource { etag: etag.clone(), modified, writer: writer.into() });
        etag
    }

    pub fn get(&self, path: &str) -> Option<Resource> {
        self.0.lock().unwrap().get(path).cloned()
    }

    /// Does what a request asks for, if its preconditions hold. Writes get the date `now`.
    pub fn act(&self, seen: &Seen, now: u64) -> Act {
        let path = seen.target.split('?').next().unwrap().to_owned();
        let found = self.get(&path);
        let date =
            |at: u64| httpdate::fmt_http_date(std::time::UNIX_EPOCH + std::time::Duration::from_secs(at));
        let matches = match (seen.header("if-match"), seen.header("if-unmodified-since")) {
            (Some("*"), _) => found.is_some(),
            (Some(tag), _) => found.as_ref().is_some_and(|r| r.etag == tag),
            (None, Some(since)) => {
                let since = httpdate::parse_http_date(since).unwrap();
                let since = since.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
                found.as_ref().is_none_or(|r| r.modified <= since)
            }
            (None, None) => true,
        };
        let free = seen.header("if-none-match") != Some("*") || found.is_none();
        let present = |reply: Reply, r: &Option<Resource>| match r {
            Some(r) => reply.header("etag", &r.etag).header("last-modified", &date(r.modified)),
            None => reply,
        };
        if !matches || !free {
            return present(Reply::new(412).body("precondition failed"), &found).into();
        }
        match seen.method.as_str() {
            "GET" | "HEAD" => match &found {
                Some(r) => present(Reply::new(200).body(r.writer.as_str()), &found).into(),
                None => 404.into(),
            },
            "DELETE" => match self.0.lock().unwrap().remove(&path) {
                Some(_) => 204.into(),
                None => 404.into(),
            },
            _ => {
                self.write(&path, "outbox", now);
                present(Reply::new(if found.is_some() { 200 } else { 201 }), &self.get(&path)).into()
            }
        }
    }
}
