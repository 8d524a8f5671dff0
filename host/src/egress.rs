//! What the guest's HTTP requests are allowed to be. Each is checked first, for the upstream's origin and its method, then
//! given the credential, then sent over the shared pool. The order matters: nothing secret is added to a
//! request that might go elsewhere.

use crate::Error;
use crate::credential::Credential;
use crate::pool::Client;
use http::uri::{Authority, Scheme, Uri};
use http::{HeaderName, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use std::fmt;
use std::sync::Arc;
use wasmtime_wasi_http::{
    DEFAULT_FORBIDDEN_HEADERS, Error as HttpError, ForbiddenHeaderFilter, RequestOptions, WasiBody,
    WasiHttpHooks,
};

/// An upstream's URL as it was given. It may have a password in it, until [`Origin::of_upstream`] has refused that.
#[derive(Clone)]
pub(crate) struct UpstreamUrl(pub(crate) String);

impl fmt::Debug for UpstreamUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.contains('@') { ".." } else { &self.0 })
    }
}

/// Scheme, host and port: all that the guest may talk to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origin {
    scheme: Scheme,
    host: String,
    port: u16,
}

/// Why nothing can be replayed where no upstream was given.
pub(crate) fn no_upstream() -> Error {
    Error::invalid("upstream", "", "none is set; give its URL with --upstream or OUTBOX_UPSTREAM")
}

impl Origin {
    /// Reads an upstream's URL: http or https, a host, optionally a port and a path prefix.
    pub(crate) fn of_upstream(url: &str) -> Result<Origin, Error> {
        if url.is_empty() {
            return Err(no_upstream());
        }
        let refuse = |reason: &str| {
            let value = if url.contains('@') { "" } else { url };
            Error::invalid("upstream", value, reason)
        };
        let has_credentials = url.split_once("://").is_some_and(|(_, rest)| {
            rest.split(['/', '?', '#']).next().is_some_and(|authority| authority.contains('@'))
        });
        if has_credentials {
            return Err(refuse("it has credentials in it; give them with --bearer-env or --bearer-file"));
        }
        if url.contains(['?', '#']) {
            return Err(refuse("it has a query or a fragment; give scheme, host, port and a path at most"));
        }
        let uri: Uri =
            url.parse().map_err(|_| refuse("it is no http or https URL, such as https://example.org"))?;
        Origin::of(&uri).ok_or_else(|| refuse("it is no http or https URL, such as https://example.org"))
    }

    fn of(uri: &Uri) -> Option<Origin> {
        let scheme = uri.scheme()?.clone();
        let default_port = match scheme.as_str() {
            "http" => 80,
            "https" => 443,
            _ => return None,
        };
        let authority: &Authority = uri.authority().filter(|authority| !authority.as_str().contains('@'))?;
        let host = authority.host().to_ascii_lowercase();
        let port = match authority.port() {
            Some(port) => Some(port.as_u16()),
            // A colon without a number that is a port would otherwise read as the default.
            None => authority.as_str().ends_with(authority.host()).then_some(default_port),
        };
        let port = port.filter(|port| *port != 0)?;
        (!host.is_empty()).then_some(Origin { scheme, host, port })
    }

    /// Whether requests go over TLS.
    pub(crate) fn is_https(&self) -> bool {
        self.scheme == Scheme::HTTPS
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}:{}", self.scheme, self.host, self.port)
    }
}

/// The way out of the sandbox. Without an upstream there is none.
#[derive(Clone, Default)]
pub(crate) struct Egress(Option<Arc<Way>>);

#[derive(Clone)]
struct Way {
    origin: Origin,
    credential: Option<Credential>,
    client: Client,
}

impl Egress {
    pub(crate) fn to(origin: Origin, credential: Option<Credential>, client: Client) -> Egress {
        Egress(Some(Arc::new(Way { origin, credential, client })))
    }

    /// The same for an instance: [`Client::for_instance`].
    pub(crate) fn for_instance(&self) -> Egress {
        let with_client =
            |way: &Arc<Way>| Arc::new(Way { client: way.client.for_instance(), ..(**way).clone() });
        Egress(self.0.as_ref().map(with_client))
    }

    /// Whether there is an upstream.
    pub(crate) fn leads_out(&self) -> bool {
        self.0.is_some()
    }

    fn holds_credential(&self) -> bool {
        self.0.as_ref().is_some_and(|way| way.credential.is_some())
    }
}

impl Way {
    async fn send(&self, mut request: Request<WasiBody>) -> Result<Response<WasiBody>, HttpError> {
        if Origin::of(request.uri()).as_ref() != Some(&self.origin) {
            tracing::warn!(
                to = request.uri().authority().map(Authority::as_str),
                "request refused: the sandbox lets out requests to {} only",
                self.origin
            );
            return Err(HttpError::HttpRequestDenied);
        }
        // What a TRACE carries, the server sends back: no client may put a secret into one (RFC 9110 section 9.3.8). The guest
        // takes this for a fault of the one request; one that is denied, for an upstream that is away.
        if let Method::TRACE | Method::CONNECT = *request.method() {
            tracing::warn!("request refused: the sandbox lets out no {}", request.method());
            return Err(HttpError::HttpRequestMethodInvalid);
        }
        let value = match &self.credential {
            Some(credential) => credential.value().await,
            None => None,
        };
        if self.credential.is_some() {
            request.headers_mut().remove(header::AUTHORIZATION);
            if let Some(value) = value.clone() {
                request.headers_mut().insert(header::AUTHORIZATION, value);
            }
        }
        let response = self.client.send(request).await?;
        // 403 too: an expired token is not always told apart from one that does not suffice.
        if let (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, Some(credential)) =
            (response.status(), &self.credential)
        {
            credential.refused(&value);
        }
        Ok(response.map(|body| body.map_err(HttpError::from).boxed_unsync()))
    }
}

type Io = Box<dyn Future<Output = Result<(), HttpError>> + Send>;

impl WasiHttpHooks for Egress {
    /// A guest may not speak for itself where the host has a credential.
    fn forbidden_header_filter(&mut self) -> ForbiddenHeaderFilter {
        let holds_credential = self.holds_credential();
        Arc::new(move |name: &HeaderName| {
            DEFAULT_FORBIDDEN_HEADERS.contains(name) || (holds_credential && *name == header::AUTHORIZATION)
        })
    }

    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        _timeouts: Option<RequestOptions>,
        _body_read: Io,
    ) -> Box<dyn Future<Output = Result<(Response<WasiBody>, Io), HttpError>> + Send> {
        let way = self.0.clone();
        Box::new(async move {
            let way = way.ok_or(HttpError::HttpRequestDenied)?;
            let response = way.send(request).await?;
            // The pool drives its connections itself.
            Ok((response, Box::new(async { Ok(()) }) as Io))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_scheme_host_and_port_and_nothing_else() {
        let origin = Origin::of_upstream("http://Example.org/dav").unwrap();
        let same = |url: &str| Origin::of(&url.parse().unwrap()) == Some(origin.clone());
        assert!(same("http://example.org:80/x") && same("http://EXAMPLE.ORG/"));
        for other in [
            "https://example.org/",
            "http://example.org:81/",
            "http://example.org.evil/",
            "http://evil/example.org",
            "http://sub.example.org/",
            "http://somebody@example.org/",
            "http://somebody:s3cret@example.org:80/",
        ] {
            assert!(!same(other), "{other}");
        }
    }

    /// What the guest cannot be made to try from outside, by way of the hook: a request to somebody else, and one that would
    /// bring the credential back.
    #[tokio::test]
    async fn a_request_that_would_carry_the_credential_away_is_refused_before_anything_is_sent_or_added() {
        use http_body_util::Full;
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/x", server.local_addr().unwrap());
        let dial = crate::pool::Dial {
            tls: false,
            ca: None,
            connect_timeout: std::time::Duration::from_secs(5),
            idle_timeout: std::time::Duration::from_secs(5),
            many: false,
        };
        let client = crate::pool::Pool::default().client(&dial).unwrap();
        let asked = Arc::new(std::sync::atomic::AtomicBool::new(false));
        for (upstream, method) in [
            // The same host and another port, which is another origin.
            ("http://127.0.0.1:9", Method::PUT),
            (&url, Method::TRACE),
            (&url, Method::CONNECT),
        ] {
            let noted = asked.clone();
            let credential = Credential::from_fn(move || {
                noted.store(true, std::sync::atomic::Ordering::Relaxed);
                None
            });
            let origin = Origin::of_upstream(upstream).unwrap();
            let mut egress = Egress::to(origin, Some(credential), client.clone());
            let body = Full::new(bytes::Bytes::new()).map_err(|never| match never {}).boxed_unsync();
            let request = Request::builder().method(method.clone()).uri(&url).body(body).unwrap();
            let sent = Box::into_pin(egress.send_request(request, None, Box::new(async { Ok(()) })));
            // One that was sent would wait for a reply for ever.
            let sent = tokio::time::timeout(std::time::Duration::from_secs(10), sent).await;
            let Ok(Err(refused)) = sent else { panic!("{method} was sent to {url}") };
            match method {
                Method::PUT => assert!(matches!(refused, HttpError::HttpRequestDenied)),
                _ => assert!(matches!(refused, HttpError::HttpRequestMethodInvalid)),
            }
            assert!(!asked.load(std::sync::atomic::Ordering::Relaxed));
            let nothing = tokio::time::timeout(std::time::Duration::ZERO, server.accept()).await;
            assert!(nothing.is_err(), "somebody connected");
            assert!(egress.is_forbidden_header(&header::AUTHORIZATION));
        }
        assert!(!Egress::default().is_forbidden_header(&header::AUTHORIZATION));
    }

    #[test]
    fn other_upstreams_are_refused_without_showing_a_password() {
        for url in [
            "",
            "example.org",
            "/x",
            "ftp://h/",
            "http://",
            "http:///x",
            "http://h?x",
            "http://h#x",
            "http://:80/",
            "http://u:secret@h/",
            "http://a b/",
            "http://h:99999/",
            "http://h:/",
            "http://h:0/",
            "file:///etc",
        ] {
            let error = Origin::of_upstream(url).unwrap_err().to_string();
            let builder = crate::Outbox::builder("root").upstream(url);
            assert!(!format!("{error} {builder:?}").contains("secret"), "{url}");
        }
        for url in ["https://[::1]:8443/a/b/", "http://127.0.0.1:1", "http://h/with@at"] {
            Origin::of_upstream(url).unwrap();
        }
    }
}
