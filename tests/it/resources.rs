//! Resources with versions, for scripts of an upstream that honours preconditions (RFC 9110 section 13).

use crate::upstream::{Act, Reply, Seen};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What a server tells of a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Names {
    /// A strong ETag and a date, in every reply.
    #[default]
    Strong,
    /// A weak ETag, which If-Match cannot use, and a date.
    WeakAndDate,
    /// A date only.
    Date,
    /// A strong ETag, but only in replies to GET and HEAD.
    WhenRead,
    /// Nothing; preconditions are honoured all the same.
    Nothing,
}

/// Resources that can be written, removed and moved. Clone it into a script.
#[derive(Clone, Default)]
pub struct Resources {
    names: Names,
    all: Arc<Mutex<HashMap<String, Resource>>>,
    versions: Arc<Mutex<u64>>,
}

#[derive(Debug, Clone)]
pub struct Resource {
    /// A strong one.
    pub etag: String,
    /// Seconds since 1970.
    pub modified: u64,
    pub content: String,
}

/// The present time in seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A time as HTTP spells it.
pub fn date(at: u64) -> String {
    httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(at))
}

impl Resources {
    /// Resources of a server that tells this much of their versions.
    pub fn named(names: Names) -> Resources {
        Resources { names, ..Resources::default() }
    }

    /// Somebody writes a resource beside the outbox; its new ETag.
    pub fn write(&self, path: &str, content: &str, modified: u64) -> String {
        let mut versions = self.versions.lock().unwrap();
        *versions += 1;
        let etag = format!("\"v{versions}\"");
        let resource = Resource { etag: etag.clone(), modified, content: content.into() };
        self.all.lock().unwrap().insert(path.into(), resource);
        etag
    }

    pub fn get(&self, path: &str) -> Option<Resource> {
        self.all.lock().unwrap().get(path).cloned()
    }

    /// What a resource holds.
    pub fn content(&self, path: &str) -> Option<String> {
        self.get(path).map(|resource| resource.content)
    }

    /// A script that does what requests ask for.
    pub fn script(&self) -> impl Fn(&Seen) -> Act + Send + Sync + 'static {
        let resources = self.clone();
        move |_: &Seen| {
            let resources = resources.clone();
            Act::decide(move |seen| {
                let at = now();
                // Said here: a Date that is put in later may be that of the next second.
                resources.act(seen, at).header("date", &date(at))
            })
        }
    }

    /// The same, but first somebody writes `path`, once, when this request comes.
    pub fn script_with_a_rival(
        &self,
        path: &'static str,
        when: impl Fn(&Seen) -> bool + Send + Sync + 'static,
    ) -> impl Fn(&Seen) -> Act + Send + Sync + 'static {
        let resources = self.clone();
        let written = Mutex::new(false);
        let script = self.script();
        move |seen: &Seen| {
            let mut written = written.lock().unwrap();
            if !*written && when(seen) {
                *written = true;
                resources.write(path, "somebody's", now());
            }
            script(seen)
        }
    }

    /// Does what a request asks for, if its preconditions hold. Writes get the date `at`.
    pub fn act(&self, seen: &Seen, at: u64) -> Reply {
        let path = seen.target.split('?').next().unwrap().to_owned();
        let found = self.get(&path);
        let matches = match (seen.header("if-match"), seen.header("if-unmodified-since")) {
            (Some("*"), _) => found.is_some(),
            (Some(tag), _) => found.as_ref().is_some_and(|r| r.etag == tag),
            (None, Some(since)) => {
                let since = httpdate::parse_http_date(since).unwrap();
                let since = since.duration_since(UNIX_EPOCH).unwrap().as_secs();
                found.as_ref().is_none_or(|r| r.modified <= since)
            }
            (None, None) => true,
        };
        let free = seen.header("if-none-match") != Some("*") || found.is_none();
        if !matches || !free {
            return self.present(Reply::new(412).body("precondition failed"), seen, &found);
        }
        let body = String::from_utf8(seen.body.clone()).unwrap();
        match (seen.method.as_str(), &found) {
            ("GET" | "HEAD" | "DELETE" | "MOVE" | "COPY" | "PROPPATCH" | "PATCH", None) => Reply::new(404),
            ("GET" | "HEAD", Some(r)) => self.present(Reply::new(200).body(r.content.as_str()), seen, &found),
            ("DELETE", _) => {
                self.all.lock().unwrap().remove(&path);
                Reply::new(204)
            }
            ("MOVE" | "COPY", Some(r)) => {
                self.write(seen.header("destination").unwrap(), &r.content, at);
                if seen.method == "MOVE" {
                    self.all.lock().unwrap().remove(&path);
                }
                Reply::new(201)
            }
            // Properties are part of the version.
            ("PROPPATCH", Some(r)) => {
                self.write(&path, &r.content, at);
                Reply::new(207)
            }
            ("PATCH" | "POST", r) => {
                let before = r.as_ref().map_or("", |r| r.content.as_str());
                self.write(&path, &format!("{before}{body}"), at);
                self.present(Reply::new(200), seen, &self.get(&path))
            }
            (_, r) => {
                self.write(&path, &body, at);
                self.present(Reply::new(if r.is_some() { 204 } else { 201 }), seen, &self.get(&path))
            }
        }
    }

    /// Names the version in a reply.
    fn present(&self, reply: Reply, seen: &Seen, resource: &Option<Resource>) -> Reply {
        let Some(r) = resource else { return reply };
        let read = matches!(seen.method.as_str(), "GET" | "HEAD");
        match self.names {
            Names::Strong => reply.header("etag", &r.etag).header("last-modified", &date(r.modified)),
            Names::WeakAndDate => {
                let weak = format!("W/{}", r.etag);
                reply.header("etag", &weak).header("last-modified", &date(r.modified))
            }
            Names::Date => reply.header("last-modified", &date(r.modified)),
            Names::WhenRead if read => reply.header("etag", &r.etag),
            Names::WhenRead | Names::Nothing => reply,
        }
    }
}
