//! A scripted HTTP server on port 0 of the loopback, on a runtime of its own, that records what it saw.

use bytes::Bytes;
use http::{Request, Response, Version};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;

/// A request as the server saw it.
#[derive(Debug, Clone)]
pub struct Seen {
    pub version: Version,
    pub method: String,
    /// The request target, as it stood in the request line; path and query over HTTP/2.
    pub target: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// The whole body, if it was read to its end.
    pub body: Vec<u8>,
    /// Bytes of the body that arrived.
    pub body_len: u64,
    /// Of all that arrived, also where it was not kept.
    pub checksum: Checksum,
    /// Whether the body arrived whole.
    pub complete: bool,
    /// Which connection it came over, from 0.
    pub connection: usize,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

/// What to do about a request.
#[derive(Debug, Clone)]
pub enum Act {
    /// Read the body, then reply.
    Reply(Reply),
    /// Reply at once and do not read the body.
    ReplyUnread(Reply),
    /// Read the body, then close the connection without a reply.
    Cut,
    /// Read the body, and close the connection without a reply once the gate is open.
    CutLater(Gate),
    /// Close the connection after some bytes of the body.
    CutAfter(u64),
    /// Read the body, send the head and half of this content, then close the connection.
    CutReply(Reply),
    /// Read the body, send the head and half of this content, then nothing more.
    StallReply(Reply),
    /// Read the body, send the head, and then a byte of this content after each pause.
    Trickle(Duration, Reply),
    /// Read the body and never reply.
    Stall,
    /// Read the body, and reply once the gate is open.
    ReplyAfter(Gate, Reply),
    /// Read the body with a pause after each piece, then reply.
    ReadSlowly(Duration, Reply),
    /// Read the body, then decide.
    Decide(Decision),
}

/// What is to be done about a request whose body was read.
#[derive(Clone)]
pub struct Decision(Arc<dyn Fn(&Seen) -> Act + Send + Sync>);

impl std::fmt::Debug for Decision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Decision")
    }
}

impl Act {
    /// Read the body, then decide.
    pub fn decide<A: Into<Act>>(decide: impl Fn(&Seen) -> A + Send + Sync + 'static) -> Act {
        Act::Decide(Decision(Arc::new(move |seen| decide(seen).into())))
    }
}

/// Holds replies back until a test opens it.
#[derive(Debug, Clone)]
pub struct Gate(watch::Sender<bool>);

impl Gate {
    pub fn new() -> Gate {
        Gate(watch::Sender::new(false))
    }

    pub fn open(&self) {
        self.0.send_replace(true);
    }

    async fn passed(&self) {
        let _ = self.0.subscribe().wait_for(|open| *open).await;
    }
}

/// A running checksum that is cheap also without optimisation, and that a lost, moved or changed piece changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checksum {
    sum: u64,
    rest: Vec<u8>,
}

impl Checksum {
    pub fn add(&mut self, data: &[u8]) {
        self.rest.extend_from_slice(data);
        let (words, rest) = self.rest.as_chunks::<8>();
        for word in words {
            self.sum =
                (self.sum.rotate_left(5) ^ u64::from_le_bytes(*word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
        self.rest = rest.to_vec();
    }
}

/// A reply.
#[derive(Debug, Clone, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn new(status: u16) -> Reply {
        Reply { status, ..Reply::default() }
    }

    pub fn header(mut self, name: &str, value: &str) -> Reply {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Reply {
        self.body = body.into();
        self
    }
}

impl From<u16> for Act {
    fn from(status: u16) -> Act {
        Act::Reply(Reply::new(status))
    }
}

impl From<Reply> for Act {
    fn from(reply: Reply) -> Act {
        Act::Reply(reply)
    }
}

/// Decides on a request from its head; the body has not been read then.
type Script = dyn Fn(&Seen) -> Act + Send + Sync;

/// A running server. Dropping it closes its port and its connections.
pub struct Upstream {
    addr: SocketAddr,
    https: bool,
    shared: Arc<Shared>,
    runtime: Option<tokio::runtime::Runtime>,
}

struct Shared {
    script: Mutex<Arc<Script>>,
    seen: Mutex<Vec<Seen>>,
    /// Counts requests that were seen, for those who wait.
    count: watch::Sender<usize>,
    connections: AtomicUsize,
    /// Counts connections that have ended, for those who wait.
    ended: watch::Sender<usize>,
    in_flight: AtomicUsize,
    max_in_flight: AtomicUsize,
    /// Bodies are kept only up to this size; longer ones are counted.
    keep: usize,
}

/// A port that refuses connections until a server is started on it.
pub struct ReservedPort(TcpSocket, SocketAddr);

impl ReservedPort {
    /// Takes a free port. Bound but not listening, it refuses connections, and nobody else gets it.
    pub fn new() -> ReservedPort {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let addr = socket.local_addr().unwrap();
        ReservedPort(socket, addr)
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.1)
    }
}

impl Upstream {
    /// A server that does with every request what the script says.
    pub fn start<A: Into<Act>>(script: impl Fn(&Seen) -> A + Send + Sync + 'static) -> Upstream {
        Upstream::start_on(ReservedPort::new(), script)
    }

    /// A server that gives these answers in turn, then the last one for ever.
    pub fn sequence(acts: Vec<Act>) -> Upstream {
        let next = AtomicUsize::new(0);
        Upstream::start(move |_| acts[next.fetch_add(1, Ordering::Relaxed).min(acts.len() - 1)].clone())
    }

    /// The same on a port that was taken before.
    pub fn start_on<A: Into<Act>>(
        port: ReservedPort,
        script: impl Fn(&Seen) -> A + Send + Sync + 'static,
    ) -> Upstream {
        Upstream::serve(port, None, Arc::new(move |seen: &Seen| script(seen).into()))
    }

    /// The same over TLS.
    pub fn start_tls(
        config: Arc<rustls::ServerConfig>,
        script: impl Fn(&Seen) -> Act + Send + Sync + 'static,
    ) -> Upstream {
        Upstream::serve(ReservedPort::new(), Some(config), Arc::new(script))
    }

    fn serve(port: ReservedPort, tls: Option<Arc<rustls::ServerConfig>>, script: Arc<Script>) -> Upstream {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let shared = Arc::new(Shared {
            script: Mutex::new(script),
            seen: Mutex::default(),
            count: watch::channel(0).0,
            connections: AtomicUsize::new(0),
            ended: watch::channel(0).0,
            in_flight: AtomicUsize::new(0),
            max_in_flight: AtomicUsize::new(0),
            keep: 1024 * 1024,
        });
        let ReservedPort(socket, addr) = port;
        let listener = {
            let _guard = runtime.enter();
            socket.listen(128).unwrap()
        };
        let https = tls.is_some();
        runtime.spawn(accept(listener, tls, shared.clone()));
        Upstream { addr, https, shared, runtime: Some(runtime) }
    }

    pub fn url(&self) -> String {
        let scheme = if self.https { "https" } else { "http" };
        format!("{scheme}://{}", self.addr)
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Changes the script from now on.
    pub fn script<A: Into<Act>>(&self, script: impl Fn(&Seen) -> A + Send + Sync + 'static) {
        *self.shared.script.lock().unwrap() = Arc::new(move |seen: &Seen| script(seen).into());
    }

    /// All requests so far, in the order in which they were dealt with.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }

    /// "METHOD target" of all requests so far.
    pub fn lines(&self) -> Vec<String> {
        self.seen().iter().map(|seen| format!("{} {}", seen.method, seen.target)).collect()
    }

    /// Waits until so many requests were seen.
    pub async fn wait_for(&self, requests: usize) {
        let mut count = self.shared.count.subscribe();
        let reached = count.wait_for(|count| *count >= requests);
        super::kit::soon("a request", reached).await.unwrap();
    }

    /// How many connections were opened.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Waits until so many connections have ended.
    pub async fn wait_for_end_of(&self, connections: usize) {
        let mut ended = self.shared.ended.subscribe();
        let reached = ended.wait_for(|ended| *ended >= connections);
        super::kit::soon("the end of a connection", reached).await.unwrap();
    }

    /// How many requests are being dealt with now.
    pub fn in_flight(&self) -> usize {
        self.shared.in_flight.load(Ordering::Relaxed)
    }

    /// How many requests were being dealt with at once, at most.
    pub fn max_in_flight(&self) -> usize {
        self.shared.max_in_flight.load(Ordering::Relaxed)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn accept(listener: TcpListener, tls: Option<Arc<rustls::ServerConfig>>, shared: Arc<Shared>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let _ = stream.set_nodelay(true);
        let connection = shared.connections.fetch_add(1, Ordering::Relaxed);
        let (shared, tls) = (shared.clone(), tls.clone());
        tokio::spawn(async move {
            match tls {
                None => http1(TokioIo::new(stream), shared.clone(), connection).await,
                Some(config) => {
                    // A client that does not trust us goes away here.
                    if let Ok(stream) = tokio_rustls::TlsAcceptor::from(config).accept(stream).await {
                        match stream.get_ref().1.alpn_protocol() {
                            Some(b"h2") => http2(TokioIo::new(stream), shared.clone(), connection).await,
                            _ => http1(TokioIo::new(stream), shared.clone(), connection).await,
                        }
                    }
                }
            }
            shared.ended.send_modify(|ended| *ended += 1);
        });
    }
}

async fn http1<I>(io: I, shared: Arc<Shared>, connection: usize)
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let service = service_fn(move |request| answer(request, shared.clone(), connection));
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
}

async fn http2<I>(io: I, shared: Arc<Shared>, connection: usize)
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let service = service_fn(move |request| answer(request, shared.clone(), connection));
    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    let _ = server.serve_connection(io, service).await;
}

/// Makes hyper close the connection; over HTTP/2, reset the stream.
#[derive(Debug)]
struct Closed;

impl std::fmt::Display for Closed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("closed by the script")
    }
}

impl std::error::Error for Closed {}

type Answered = Result<Response<UnsyncBoxBody<Bytes, Closed>>, Closed>;

async fn answer(request: Request<Incoming>, shared: Arc<Shared>, connection: usize) -> Answered {
    let now = shared.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
    shared.max_in_flight.fetch_max(now, Ordering::Relaxed);
    let _in_flight = InFlight(&shared.in_flight);
    act(request, &shared, connection).await
}

/// Counts a request until it is answered, or its client gone.
struct InFlight<'a>(&'a AtomicUsize);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn act(request: Request<Incoming>, shared: &Shared, connection: usize) -> Answered {
    let (parts, mut body) = request.into_parts();
    let mut seen = Seen {
        version: parts.version,
        method: parts.method.to_string(),
        target: match parts.version {
            Version::HTTP_2 => parts.uri.path_and_query().unwrap().to_string(),
            _ => parts.uri.to_string(),
        },
        headers: parts
            .headers
            .iter()
            .map(|(n, v)| (n.to_string(), String::from_utf8_lossy(v.as_bytes()).into_owned()))
            .collect(),
        body: Vec::new(),
        body_len: 0,
        checksum: Checksum::default(),
        complete: false,
        connection,
    };
    let script = shared.script.lock().unwrap().clone();
    let mut act = script(&seen);
    let limit = match &act {
        Act::ReplyUnread(_) => 0,
        Act::CutAfter(bytes) => *bytes,
        _ => u64::MAX,
    };
    while seen.body_len < limit {
        match body.frame().await {
            Some(Ok(frame)) => {
                let Ok(data) = frame.into_data() else { continue };
                seen.body_len += data.len() as u64;
                seen.checksum.add(&data);
                if seen.body.len() + data.len() <= shared.keep {
                    seen.body.extend_from_slice(&data);
                }
                if let Act::ReadSlowly(pause, _) = &act {
                    tokio::time::sleep(*pause).await;
                }
            }
            Some(Err(_)) => break,
            None => {
                seen.complete = true;
                break;
            }
        }
    }
    while let Act::Decide(Decision(decide)) = act {
        act = decide(&seen);
    }
    let complete = seen.complete;
    shared.seen.lock().unwrap().push(seen);
    shared.count.send_modify(|count| *count += 1);
    if let Act::ReplyAfter(gate, _) | Act::CutLater(gate) = &act {
        gate.passed().await;
    }
    match act {
        Act::Reply(_) | Act::CutReply(_) if !complete => Err(Closed),
        Act::Reply(reply)
        | Act::ReplyUnread(reply)
        | Act::ReplyAfter(_, reply)
        | Act::ReadSlowly(_, reply) => {
            let content = http_body_util::Full::new(Bytes::from(reply.body.clone()));
            Ok(response(&reply, content.map_err(|never: Infallible| match never {}).boxed_unsync()))
        }
        Act::CutReply(ref reply) | Act::StallReply(ref reply) => {
            let half = Bytes::from(reply.body[..reply.body.len() / 2].to_vec());
            let reply = reply.clone().header("content-length", &reply.body.len().to_string());
            let then = if matches!(act, Act::CutReply(_)) { Then::Flush } else { Then::Stall };
            Ok(response(&reply, Half(Some(half), then).boxed_unsync()))
        }
        Act::Trickle(pause, ref reply) => {
            let trickle = Trickle(tokio::time::interval(pause), reply.body.clone().into_iter());
            Ok(response(reply, trickle.boxed_unsync()))
        }
        Act::Cut | Act::CutLater(_) | Act::CutAfter(_) | Act::Decide(_) => Err(Closed),
        Act::Stall => std::future::pending().await,
    }
}

fn response<B>(reply: &Reply, body: B) -> Response<B> {
    let mut response = Response::builder().status(reply.status);
    for (name, value) in &reply.headers {
        response = response.header(name, value);
    }
    response.body(body).unwrap()
}

/// Some content, and what follows instead of the rest.
struct Half(Option<Bytes>, Then);

enum Then {
    /// Let what was said go out first.
    Flush,
    Cut,
    Stall,
}

impl hyper::body::Body for Half {
    type Data = Bytes;
    type Error = Closed;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Closed>>> {
        match (self.0.take(), &self.1) {
            (Some(half), _) => Poll::Ready(Some(Ok(Frame::data(half)))),
            (None, Then::Flush) => {
                self.1 = Then::Cut;
                context.waker().wake_by_ref();
                Poll::Pending
            }
            (None, Then::Cut) => Poll::Ready(Some(Err(Closed))),
            (None, Then::Stall) => Poll::Pending,
        }
    }
}

/// Content that comes byte by byte.
struct Trickle(tokio::time::Interval, std::vec::IntoIter<u8>);

impl hyper::body::Body for Trickle {
    type Data = Bytes;
    type Error = Closed;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Closed>>> {
        std::task::ready!(self.0.poll_tick(context));
        Poll::Ready(self.1.next().map(|byte| Ok(Frame::data(Bytes::from(vec![byte])))))
    }
}
