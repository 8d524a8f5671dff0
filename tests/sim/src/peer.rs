//! The server at the other end: resources with versions and validators, preconditions as RFC 9110 section 13
//! has them, and a mood. It records everything that it sees, and that record is what the oracles go by.

use crate::ledger::MARK;
use crate::mood::{Fate, Mood};
use crate::rng::Rng;
use crate::world::{BEGINNING, Shared, World};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};
use tokio::sync::oneshot;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

/// The upstream's authority.
pub const AUTHORITY: &str = "server.test:8080";
/// Where redirects point to; nobody is to go there.
pub const ELSEWHERE: &str = "elsewhere.test";

/// A version of a resource.
#[derive(Debug, Clone)]
pub struct Version {
    /// Its content.
    pub body: Vec<u8>,
    /// Its ETag, if the server gives any for this path.
    pub etag: Option<String>,
    /// When it came to be, in Unix seconds, if the server says so.
    pub modified: Option<u64>,
}

/// A request, as the server saw it.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Its head came in: an event's number.
    pub at: u64,
    /// Whose it is.
    pub process: usize,
    /// The client waits for its reply no more: an event's number.
    pub closed: Option<u64>,
    /// It was told that there will be none.
    pub failed: bool,
    /// The host asked for.
    pub authority: String,
    /// The method.
    pub method: String,
    /// The path and query, without the upstream's prefix.
    pub uri: String,
    /// The Idempotency-Key.
    pub key: Option<String>,
    /// The mark of the attempt.
    pub mark: Option<usize>,
    /// The preconditions, as header and value.
    pub conditions: Vec<(String, String)>,
    /// The body came in whole.
    pub whole: bool,
    /// It changed something: an event's number.
    pub applied: Option<u64>,
    /// What was answered; the event at which the client got the head.
    pub status: Option<u16>,
    /// The client got the reply's head: an event's number.
    pub answered: Option<u64>,
    /// The validators in the reply.
    pub validators: Vec<String>,
    /// The status was the server's mood, whatever the request was.
    pub moody: bool,
    /// The reply's content broke off.
    pub cut: bool,
    /// There was no connection: the request has not arrived, and the client can know that.
    pub unconnected: bool,
}

impl Seen {
    /// Whether this request is of a kind that changes something.
    pub fn is_write(&self) -> bool {
        !matches!(self.method.as_str(), "GET" | "HEAD" | "OPTIONS")
    }
}

/// The server.
#[derive(Debug, Default)]
pub struct Peer {
    seed: u64,
    /// What paths start with; "" or such as "/dav".
    pub prefix: String,
    /// What is there.
    pub resources: BTreeMap<String, Version>,
    /// Numbers versions.
    versions: u64,
    /// How it treats requests.
    pub mood: Mood,
    /// Everything it saw.
    pub seen: Vec<Seen>,
    /// Changes of resources, in their order.
    pub changes: Vec<Change>,
}

/// A resource was made, replaced or removed.
#[derive(Debug, Clone)]
pub struct Change {
    /// The event.
    pub at: u64,
    /// The resource.
    pub path: String,
    /// The request that did it, as a place in [`Peer::seen`]; none where it was somebody else.
    pub by: Option<usize>,
    /// The ETag of what is there now; none where nothing is, or where that has none.
    pub etag: Option<String>,
    /// Something is there now.
    pub exists: bool,
}

impl Peer {
    /// A server without resources. The seed decides which paths have validators.
    pub fn new(seed: u64, prefix: &str) -> Peer {
        Peer { seed, prefix: prefix.to_owned(), ..Peer::default() }
    }

    /// How the versions of a resource are named.
    fn style(&self, path: &str) -> u64 {
        let mut style = self.seed;
        for byte in path.bytes() {
            style = style.wrapping_mul(31).wrapping_add(u64::from(byte));
        }
        Rng::new(style).below(5)
    }

    /// Whether all versions of a resource have strong ETags.
    pub fn is_strong(&self, path: &str) -> bool {
        self.style(path) > 2
    }

    /// Takes down that a resource has just changed.
    pub fn changed(&mut self, at: u64, path: &str, by: Option<usize>) {
        let version = self.resources.get(path);
        let (exists, etag) = (version.is_some(), version.and_then(|v| v.etag.clone()));
        self.changes.push(Change { at, path: path.to_owned(), by, etag, exists });
    }

    /// Changes a resource, as anybody might.
    pub fn put(&mut self, path: &str, body: Vec<u8>, now: u64) {
        self.versions += 1;
        let (etag, dated) = match self.style(path) {
            0 => (None, false),
            1 => (None, true),
            2 => (Some(format!("W/\"v{}\"", self.versions)), true),
            3 => (Some(format!("\"v{}\"", self.versions)), false),
            _ => (Some(format!("\"v{}\"", self.versions)), true),
        };
        let modified = dated.then_some((BEGINNING + now) / 1_000_000_000);
        self.resources.insert(path.to_owned(), Version { body, etag, modified });
    }

    /// Whether the preconditions hold, in the order of RFC 9110 section 13.2.2.
    fn conditions_hold(&self, path: &str, headers: &HeaderMap) -> bool {
        let text = |name: header::HeaderName| headers.get(name).and_then(|v| v.to_str().ok());
        let version = self.resources.get(path);
        let etag = version.and_then(|v| v.etag.as_deref());
        let listed = |list: &str, tag: &str| list.split(',').any(|item| item.trim() == tag);
        if let Some(list) = text(header::IF_MATCH) {
            let strong = etag.filter(|tag| !tag.starts_with("W/"));
            let holds = match list {
                "*" => version.is_some(),
                list => strong.is_some_and(|tag| listed(list, tag)),
            };
            if !holds {
                return false;
            }
        } else if let Some(date) = text(header::IF_UNMODIFIED_SINCE) {
            let date = httpdate::parse_http_date(date).ok();
            let date = date.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
            let modified = version.and_then(|v| v.modified);
            if let (Some(date), Some(modified)) = (date, modified)
                && modified > date.as_secs()
            {
                return false;
            }
        }
        match text(header::IF_NONE_MATCH) {
            Some("*") => version.is_none(),
            Some(list) => !etag.is_some_and(|tag| {
                let opaque = tag.trim_start_matches("W/");
                list.split(',').any(|item| item.trim().trim_start_matches("W/") == opaque)
            }),
            None => true,
        }
    }

    /// Carries out a request whose body came in whole: the status.
    fn serve(&mut self, method: &str, path: &str, headers: &HeaderMap, body: &[u8], now: u64) -> u16 {
        let exists = self.resources.contains_key(path);
        if matches!(method, "GET" | "HEAD") {
            return if exists { 200 } else { 404 };
        }
        if !self.conditions_hold(path, headers) {
            return 412;
        }
        match method {
            "DELETE" if !exists => 404,
            "DELETE" => {
                self.resources.remove(path);
                204
            }
            _ => {
                self.put(path, body.to_vec(), now);
                if exists { 200 } else { 201 }
            }
        }
    }
}

/// The client's end: what `wasi:http` sends requests through.
pub struct Wire {
    /// The world.
    pub world: Shared,
    /// Whose requests these are.
    pub process: usize,
}

type Io = Box<dyn Future<Output = Result<(), Error>> + Send>;
type Reply = Result<Response<WasiBody>, Error>;

impl WasiHttpHooks for Wire {
    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _: Io,
    ) -> Box<dyn Future<Output = Result<(Response<WasiBody>, Io), Error>> + Send> {
        let world = self.world.clone();
        let patience = options.and_then(|o| o.connect_timeout).unwrap_or(Duration::from_secs(600));
        let number = arrive(&world, self.process, &request);
        let (answer, reply) = oneshot::channel();
        // The server goes on also when the client has died.
        tokio::task::spawn(handle(world.clone(), number, request, patience, answer));
        let open = Open { world: world.clone(), number };
        Box::new(async move {
            let _open = open;
            let reply = reply.await.unwrap_or(Err(Error::ConnectionTerminated));
            let mut world = world.lock();
            if let Ok(response) = &reply {
                let status = response.status().as_u16();
                let event = world.event();
                world.peer.seen[number].answered = Some(event);
                world.say(|| format!("        request {number} is answered {status}"));
            } else {
                world.peer.seen[number].failed = true;
                world.say(|| format!("        request {number} is not answered"));
            }
            reply.map(|response| (response, Box::new(async { Ok(()) }) as Io))
        })
    }
}

/// A request whose reply is awaited. Dropped with the process when that dies.
struct Open {
    world: Shared,
    number: usize,
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut world = self.world.lock();
        let event = world.event();
        world.peer.seen[self.number].closed = Some(event);
    }
}

/// Takes a request's head down.
fn arrive(world: &Shared, process: usize, request: &Request<WasiBody>) -> usize {
    let mut world = world.lock();
    let text = |name: &str| {
        let value = request.headers().get(name)?;
        Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    let target = request.uri().path_and_query().map_or("", |target| target.as_str());
    let prefix = world.peer.prefix.clone();
    let seen = Seen {
        at: world.event(),
        process,
        closed: None,
        failed: false,
        authority: match target.strip_prefix(prefix.as_str()) {
            Some(_) => request.uri().authority().map_or(String::new(), ToString::to_string),
            None => format!("a path outside of {prefix}"),
        },
        method: request.method().to_string(),
        uri: target.strip_prefix(prefix.as_str()).unwrap_or(target).to_owned(),
        key: text("idempotency-key"),
        mark: text(MARK).and_then(|mark| mark.parse().ok()),
        conditions: ["if-match", "if-none-match", "if-unmodified-since"]
            .iter()
            .filter_map(|name| Some(((*name).to_owned(), text(name)?)))
            .collect(),
        whole: false,
        applied: None,
        status: None,
        answered: None,
        validators: Vec::new(),
        moody: false,
        cut: false,
        unconnected: false,
    };
    let number = world.peer.seen.len();
    world.say(|| {
        let key = seen.key.as_deref().unwrap_or("no key");
        format!("[{process}] request {number}: {} {} {key} {:?}", seen.method, seen.uri, seen.conditions)
    });
    world.peer.seen.push(seen);
    number
}

/// The server's side of a request.
async fn handle(
    world: Shared,
    number: usize,
    request: Request<WasiBody>,
    patience: Duration,
    answer: oneshot::Sender<Reply>,
) {
    let (fate, clock) = {
        let mut world = world.lock();
        let world = &mut *world;
        (world.peer.mood.fate(&mut world.rng), world.clock.clone())
    };
    world.lock().say(|| format!("        request {number}: {fate:?}"));
    let (head, mut body) = request.into_parts();
    clock.sleep(Duration::from_micros(fate.latency_us)).await;
    world.lock().peer.seen[number].unconnected = fate.refuse || fate.black_hole;
    if fate.refuse {
        let _ = answer.send(Err(Error::ConnectionRefused));
        return;
    }
    if fate.black_hole {
        clock.sleep(patience).await;
        let _ = answer.send(Err(Error::ConnectionTimeout));
        return;
    }
    if let (true, Some(status)) = (fate.early, fate.status) {
        let response = reply(&world, number, status, &fate);
        let _ = answer.send(response);
        return;
    }

    let expected = head.headers.get(header::CONTENT_LENGTH);
    let expected: usize = expected.and_then(|v| v.to_str().ok()?.parse().ok()).unwrap_or(0);
    let mut received: Vec<u8> = Vec::new();
    while received.len() < expected {
        if fate.cut_body_at.is_some_and(|cut| received.len() >= cut) {
            drop(body);
            let _ = answer.send(Err(Error::ConnectionTerminated));
            return;
        }
        match body.frame().await {
            Some(Ok(frame)) => {
                let data = frame.data_ref().map_or(&[][..], |data| data);
                received.extend_from_slice(data);
                let takes = fate.rate.map_or(0, |rate| data.len() as u64 * 1_000 / rate);
                clock.sleep(Duration::from_millis(takes)).await;
            }
            // The client has gone, or given up.
            Some(Err(_)) | None => {
                let _ = answer.send(Err(Error::ConnectionTerminated));
                return;
            }
        }
        if fate.slow_body_ms > 0 {
            clock.sleep(Duration::from_millis(fate.slow_body_ms)).await;
        }
    }
    // Whoever waits for a reply first has not seen whether the client is still there.
    clock.sleep(Duration::from_millis(fate.think_ms)).await;
    let response = {
        let mut world = world.lock();
        take(&mut world, number, &head, &received);
        match fate.status {
            Some(status) => Err(status),
            None => Ok(serve(&mut world, number, &head, &received)),
        }
    };
    clock.sleep(Duration::from_millis(fate.reply_after_ms)).await;
    if fate.lose_reply {
        let _ = answer.send(Err(Error::ConnectionTerminated));
        return;
    }
    let (Ok(status) | Err(status)) = response;
    let response = reply(&world, number, status, &fate);
    let _ = answer.send(response);
}

/// The body is there as a whole: is it what was queued?
fn take(world: &mut World, number: usize, head: &http::request::Parts, received: &[u8]) {
    let seen = &mut world.peer.seen[number];
    seen.whole = true;
    if !seen.is_write() {
        return;
    }
    let expected = seen.mark.and_then(|mark| world.ledger.attempts.get(mark));
    let problem = match expected {
        None => Some("nobody queued it".to_owned()),
        Some(attempt) if attempt.method != seen.method || attempt.uri != seen.uri => {
            Some(format!("queued was {} {}", attempt.method, attempt.uri))
        }
        Some(attempt) if *attempt.body != received => {
            Some(format!("{} bytes came, {} other ones were queued", received.len(), attempt.body.len()))
        }
        Some(_) => None,
    };
    if let Some(problem) = problem {
        let text = format!("request {number}, {} {}: {problem}", head.method, head.uri);
        world.ledger.wrong("only what was queued reaches the server", text);
    }
}

fn serve(world: &mut World, number: usize, head: &http::request::Parts, received: &[u8]) -> u16 {
    let now = world.clock.now();
    let event = world.event();
    let uri = world.peer.seen[number].uri.clone();
    let path = uri.split('?').next().unwrap_or_default();
    let status = world.peer.serve(head.method.as_str(), path, &head.headers, received, now);
    let seen = &mut world.peer.seen[number];
    if seen.is_write() && (200..300).contains(&status) {
        seen.applied = Some(event);
        world.peer.changed(event, path, Some(number));
        world.say(|| format!("        request {number} is applied"));
    }
    status
}

fn reply(world: &Shared, number: usize, status: u16, fate: &Fate) -> Reply {
    let mut world = world.lock();
    let seen = &world.peer.seen[number];
    let (method, path) = (seen.method.clone(), seen.uri.split('?').next().unwrap_or_default().to_owned());
    let mut response = Response::builder().status(StatusCode::from_u16(status).unwrap_or(StatusCode::OK));
    for (name, value) in &fate.headers {
        response = response.header(*name, value);
    }
    let version = world.peer.resources.get(&path).cloned();
    // A server's own answer about a version names it; a gateway's refusal does not.
    let own = fate.status.is_none() && (status < 400 || status == 412);
    let mut validators = Vec::new();
    if let (true, Some(version)) = (own && !fate.mute, &version) {
        if let Some(tag) = &version.etag {
            response = response.header(header::ETAG, tag);
            validators.push(tag.clone());
        }
        if let Some(at) = version.modified {
            let date = httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(at));
            response = response.header(header::LAST_MODIFIED, &date);
            validators.push(date);
        }
    }
    let content = match (method.as_str(), version) {
        ("HEAD", _) => Vec::new(),
        ("GET", Some(version)) if status == 200 => version.body,
        _ if status == 204 || status == 304 => Vec::new(),
        _ => format!("{status} says the server\n").into_bytes(),
    };
    let seen = &mut world.peer.seen[number];
    seen.status = Some(status);
    seen.validators = validators;
    seen.moody = fate.status.is_some();
    seen.cut = fate.cut_reply;
    let chunks = content.chunks(16 * 1024).map(Bytes::copy_from_slice).collect();
    let body = Content { chunks, cut: fate.cut_reply };
    response.body(body.boxed_unsync()).map_err(|e| Error::InternalError(Some(e.to_string())))
}

/// A reply's content, whole or cut.
struct Content {
    chunks: VecDeque<Bytes>,
    cut: bool,
}

impl Body for Content {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match self.chunks.pop_front() {
            // The last chunk is what gets lost.
            Some(_) if self.cut && self.chunks.is_empty() => {
                Poll::Ready(Some(Err(Error::HttpResponseIncomplete)))
            }
            Some(chunk) => Poll::Ready(Some(Ok(Frame::data(chunk)))),
            None => Poll::Ready(None),
        }
    }
}
