//! Pooled HTTP connections, shared by all outboxes of a runtime where a thread of the pool carries them. No redirect is
//! followed, no proxy is used.

use crate::Error;
use http::uri::{Authority, Scheme};
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::{CaptureConnection, HttpConnector, capture_connection};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{CertificateError, ClientConfig, RootCertStore};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinHandle;
use tower_service::Service;
use wasmtime_wasi_http::{Error as HttpError, WasiBody};

/// How long an idle connection is kept: less than the 60 s after which common servers close theirs, so that a
/// request seldom meets a connection that is being closed.
const IDLE: Duration = Duration::from_secs(50);

/// What connections differ in.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Dial {
    /// TLS is wanted: roots are loaded.
    pub(crate) tls: bool,
    /// Further roots.
    pub(crate) ca: Option<Ca>,
    /// Until a connection is there.
    pub(crate) connect_timeout: Duration,
    /// How long data may stay unacknowledged.
    pub(crate) idle_timeout: Duration,
    /// Several requests are under way at once.
    pub(crate) many: bool,
}

/// A file of certificates, in PEM, as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Ca {
    path: PathBuf,
    pem: Vec<u8>,
}

impl Ca {
    pub(crate) fn read(path: &Path) -> Result<Ca, Error> {
        let pem = std::fs::read(path).map_err(|e| unusable_ca(path, &e.to_string()))?;
        Ok(Ca { path: path.into(), pem })
    }
}

/// Clients by what they differ in. Where several requests are under way at once, a thread of the pool carries the
/// connections, beside the outbox's own, which is busy with files. Where there is one at a time, the outbox's
/// thread carries its connection: that spares each request several hand-overs, and the thread would only wait. Such a
/// connection ends with its thread, so that nobody else may use it ([`Client::for_instance`]).
#[derive(Default)]
pub(crate) struct Pool {
    clients: Mutex<HashMap<Dial, Client>>,
    carrier: Mutex<Option<Runtime>>,
}

impl Pool {
    pub(crate) fn client(&self, dial: &Dial) -> Result<Client, Error> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(dial) {
            return Ok(client.clone());
        }
        let carrier = if dial.many { Some(self.carrier()?) } else { None };
        let connector = connector(dial)?;
        let client = Client { http: http(connector.clone()), connector, carrier };
        clients.insert(dial.clone(), client.clone());
        Ok(client)
    }

    fn carrier(&self) -> Result<Handle, Error> {
        let mut carrier = self.carrier.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(runtime) = &*carrier {
            return Ok(runtime.handle().clone());
        }
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("outbox-network")
            .enable_all()
            .build()
            .map_err(|e| Error::Component(format!("no thread for the network can be started: {e}")))?;
        Ok(carrier.insert(runtime).handle().clone())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let carrier = self.carrier.get_mut().unwrap_or_else(PoisonError::into_inner);
        // Waiting for it would be an error where this is dropped by a task.
        if let Some(runtime) = carrier.take() {
            runtime.shutdown_background();
        }
    }
}

/// Makes connections, each within the timeout: the name's address, TCP and TLS together. Its clones share what is
/// expensive: the configuration of TLS.
#[derive(Clone)]
struct Connector {
    https: HttpsConnector<HttpConnector>,
    timeout: Duration,
}

impl Service<Uri> for Connector {
    type Response = <HttpsConnector<HttpConnector> as Service<Uri>>::Response;
    type Error = <HttpsConnector<HttpConnector> as Service<Uri>>::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.https.poll_ready(context)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let connection = tokio::time::timeout(self.timeout, self.https.call(to));
        Box::pin(async { connection.await.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))? })
    }
}

/// Sends requests.
#[derive(Clone)]
pub(crate) struct Client {
    http: legacy::Client<Connector, WasiBody>,
    connector: Connector,
    carrier: Option<Handle>,
}

/// A request that ends when nobody waits for its reply any more.
struct Sent(JoinHandle<Result<Response<Incoming>, legacy::Error>>);

impl Drop for Sent {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The connection of a request whose reply somebody waits for. Whoever gives that up takes it out of the pool: one of
/// HTTP/2 would otherwise be used again and again, though nothing may get through any more. Other requests over it go on.
struct Silent(Option<CaptureConnection>);

impl Drop for Silent {
    fn drop(&mut self) {
        let Some(captured) = &self.0 else { return };
        if let Some(connected) = captured.connection_metadata().as_ref() {
            connected.poison();
        }
    }
}

impl Client {
    /// The same for an instance, which stays on its thread: with connections of its own where that thread carries them.
    pub(crate) fn for_instance(&self) -> Client {
        match self.carrier {
            Some(_) => self.clone(),
            None => Client { http: http(self.connector.clone()), ..self.clone() },
        }
    }

    /// Sends a request. A connection that turns out to be closed is replaced only where none of the request
    /// had been sent.
    pub(crate) async fn send(&self, mut request: Request<WasiBody>) -> Result<Response<Incoming>, HttpError> {
        let to = request.uri().clone();
        // Without TLS it is HTTP/1.1, whose connections end with a request that is given up.
        let may_stay = to.scheme() == Some(&Scheme::HTTPS);
        let mut silent = Silent(may_stay.then(|| capture_connection(&mut request)));
        let reply = self.http.request(request);
        let reply = match &self.carrier {
            None => reply.await,
            Some(carrier) => {
                (&mut Sent(carrier.spawn(reply)).0).await.map_err(|_| HttpError::ConnectionTerminated)?
            }
        };
        silent.0 = None;
        reply.map_err(|error| classify(&error, &to))
    }
}

/// Header fields of a reply, and how long they are together over HTTP/2 (over HTTP/1.1 it is some 400 KiB). More of either
/// counts as no reply.
const MOST_FIELDS: usize = 512;
const LONGEST_HEAD: u32 = 256 * 1024;

fn http(connector: Connector) -> legacy::Client<Connector, WasiBody> {
    legacy::Client::builder(TokioExecutor::new())
        .pool_idle_timeout(IDLE)
        .pool_timer(TokioTimer::new())
        .http1_max_headers(MOST_FIELDS)
        .http2_max_header_list_size(LONGEST_HEAD)
        .build(connector)
}

fn connector(dial: &Dial) -> Result<Connector, Error> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    // Without it, a request of two segments waits 40 ms for a delayed acknowledgement.
    tcp.set_nodelay(true);
    // Of a name with several addresses, each has its part of it.
    tcp.set_connect_timeout(Some(dial.connect_timeout));
    tcp.set_keepalive(Some(IDLE));
    #[cfg(any(target_os = "android", target_os = "linux"))]
    tcp.set_tcp_user_timeout(Some(dial.idle_timeout));
    let https = HttpsConnectorBuilder::new()
        .with_tls_config(tls(dial)?)
        .https_or_http()
        .enable_all_versions()
        .wrap_connector(tcp);
    Ok(Connector { https, timeout: dial.connect_timeout })
}

fn tls(dial: &Dial) -> Result<ClientConfig, Error> {
    let mut roots = RootCertStore::empty();
    if dial.tls {
        let platform = rustls_native_certs::load_native_certs();
        for error in &platform.errors {
            tracing::debug!("platform's roots: {error}");
        }
        roots.add_parsable_certificates(platform.certs);
    }
    if let Some(ca) = &dial.ca {
        for certificate in certificates(ca)? {
            roots.add(certificate).map_err(|e| unusable_ca(&ca.path, &e.to_string()))?;
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::Component(format!("TLS: {e}")))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}

fn unusable_ca(path: &Path, reason: &str) -> Error {
    Error::invalid("CA file", &path.display().to_string(), reason)
}

fn certificates(Ca { path, pem }: &Ca) -> Result<Vec<CertificateDer<'static>>, Error> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match certificates {
        Ok(certificates) if certificates.is_empty() => Err(unusable_ca(path, "it has no certificate in PEM")),
        Ok(certificates) => Ok(certificates),
        Err(e) => Err(unusable_ca(path, &e.to_string())),
    }
}

/// What the guest is told of a failed request. It takes some codes to mean that nothing was sent: those are for connections
/// that did not come about, and no others are.
fn classify(error: &legacy::Error, to: &Uri) -> HttpError {
    match error.is_connect() {
        true => unconnected(error, to),
        false => unanswered(error),
    }
}

/// Why there is no connection. What the guest cannot be told is logged.
fn unconnected(error: &legacy::Error, to: &Uri) -> HttpError {
    use std::io::ErrorKind as Kind;
    let server = to.authority().map(Authority::as_str);
    let mut text = String::new();
    for cause in causes(error) {
        text = cause.to_string();
        if let Some(rustls::Error::InvalidCertificate(why)) = cause.downcast_ref() {
            tracing::warn!(server, "the server's certificate is not trusted: {}", untrusted(why));
            return HttpError::TlsCertificateError;
        }
        if text == "dns error" {
            let why = cause.source().map(ToString::to_string);
            return HttpError::DnsError { rcode: why, info_code: None };
        }
        match cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind) {
            Some(Kind::ConnectionRefused) => return HttpError::ConnectionRefused,
            Some(Kind::TimedOut) => return HttpError::ConnectionTimeout,
            Some(Kind::HostUnreachable | Kind::NetworkUnreachable) => {
                return HttpError::DestinationUnavailable;
            }
            _ => {}
        }
    }
    // The last cause says most: the system's error, or what is wrong with the handshake.
    tracing::warn!(server, "there is no connection: {text}");
    let handshake = causes(error).any(|cause| {
        let io = cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        let ended = matches!(
            io,
            Some(Kind::UnexpectedEof | Kind::ConnectionReset | Kind::ConnectionAborted | Kind::BrokenPipe)
        );
        cause.is::<rustls::Error>() || ended
    });
    match handshake && to.scheme() == Some(&Scheme::HTTPS) {
        true => HttpError::TlsProtocolError,
        false => HttpError::DestinationUnavailable,
    }
}

/// Why a certificate is not trusted, with the remedy where it is the host's.
fn untrusted(why: &CertificateError) -> String {
    match why {
        CertificateError::UnknownIssuer => {
            format!("{why}; an authority besides the platform's is trusted with --ca")
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            format!("it has expired, or this machine's clock is wrong ({why})")
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            format!("it is not valid yet, or this machine's clock is wrong ({why})")
        }
        // What else there is comes in the checker's own words.
        CertificateError::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => {
            format!("it is an authority's own, and a server needs one that an authority made for it ({why})")
        }
        _ => why.to_string(),
    }
}

/// Why there is no reply over a connection that was there.
fn unanswered(error: &legacy::Error) -> HttpError {
    use std::io::ErrorKind as Kind;
    let mut text = String::new();
    for cause in causes(error) {
        text = cause.to_string();
        if let Some(why) = cause.downcast_ref().and_then(unprocessed) {
            tracing::warn!("{why}: nothing of it was processed");
            return HttpError::ConnectionLimitReached;
        }
        if let Some(tls) = cause.downcast_ref::<rustls::Error>() {
            return HttpError::InternalError(Some(format!("TLS: {tls}")));
        }
        match cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind) {
            Some(Kind::TimedOut) => return HttpError::HttpResponseTimeout,
            Some(
                Kind::ConnectionRefused
                | Kind::ConnectionReset
                | Kind::BrokenPipe
                | Kind::UnexpectedEof
                | Kind::HostUnreachable
                | Kind::NetworkUnreachable,
            ) => return HttpError::ConnectionTerminated,
            _ => {}
        }
        if let Some(hyper) = cause.downcast_ref::<hyper::Error>() {
            if hyper.is_incomplete_message() || hyper.is_closed() || hyper.is_canceled() {
                return HttpError::ConnectionTerminated;
            }
            if hyper.is_parse() {
                return HttpError::InternalError(Some(format!("the reply is no HTTP: {hyper}")));
            }
        }
    }
    HttpError::InternalError(Some(text))
}

/// Over HTTP/2, a server says which requests it has not begun to process (RFC 9113 sections 6.8 and 8.7).
fn unprocessed(error: &h2::Error) -> Option<&'static str> {
    match error.reason() {
        _ if !error.is_remote() => None,
        _ if error.is_go_away() => Some("the server ended the connection before it had looked at a request"),
        Some(h2::Reason::REFUSED_STREAM) => Some("the server refused a request over HTTP/2"),
        _ => None,
    }
}

/// An error and its causes. The layers of TLS wrap theirs in errors of I/O, some twice, which do not name those as their
/// sources.
fn causes<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |cause| {
        let wrapped = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        match wrapped {
            Some(inner) => Some(inner),
            None => cause.source(),
        }
    })
}
