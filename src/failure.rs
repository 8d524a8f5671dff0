//! Why there is no reply, in words for the operator.

use wasi::http::types::ErrorCode;

/// Why there is no reply.
#[derive(Debug)]
pub enum Failure {
    /// The upstream could not be reached.
    Unreachable(String),
    /// The upstream has said that it has not looked at the request, or takes no more just now. It is there.
    Unprocessed(String),
    /// The upstream did not answer. What it did with the request is unknown, and so is whether the request
    /// is to blame.
    NoReply(String),
    /// The entry's body is not what was queued. The server has not seen its end.
    Damaged(String),
    /// The entry's body cannot be read now.
    Unreadable(String),
}

impl Failure {
    /// The same, with what went before.
    pub fn after(self, what: &str) -> Failure {
        match self {
            Failure::Unreachable(why) => Failure::Unreachable(format!("{what}: {why}")),
            Failure::Unprocessed(why) => Failure::Unprocessed(format!("{what}: {why}")),
            Failure::NoReply(why) => Failure::NoReply(format!("{what}: {why}")),
            other => other,
        }
    }
}

/// What a host's error means: whether the request can have left at all.
pub fn no_reply(code: &ErrorCode) -> Failure {
    use ErrorCode as Code;
    let unreachable = matches!(
        code,
        Code::ConnectionRefused
            | Code::ConnectionTimeout
            | Code::DnsTimeout
            | Code::DnsError(_)
            | Code::DestinationNotFound
            | Code::DestinationUnavailable
            | Code::DestinationIpProhibited
            | Code::DestinationIpUnroutable
            | Code::TlsProtocolError
            | Code::TlsCertificateError
            | Code::TlsAlertReceived(_)
            | Code::HttpRequestDenied
    );
    let text = match code {
        ErrorCode::ConnectionRefused => "connection refused".into(),
        ErrorCode::ConnectionTimeout => "no connection within the timeout".into(),
        ErrorCode::ConnectionTerminated => "connection closed without a reply".into(),
        ErrorCode::ConnectionReadTimeout | ErrorCode::HttpResponseTimeout => {
            "no reply within the timeout".into()
        }
        ErrorCode::DnsTimeout => "no answer from DNS within the timeout".into(),
        ErrorCode::DnsError(payload) => {
            format!(
                "host name not found{}",
                payload.rcode.as_deref().map(|c| format!(" ({c})")).unwrap_or_default()
            )
        }
        ErrorCode::DestinationNotFound => "host not found".into(),
        ErrorCode::DestinationUnavailable | ErrorCode::DestinationIpUnroutable => "host unreachable".into(),
        ErrorCode::TlsCertificateError => "the server's certificate is not trusted".into(),
        ErrorCode::TlsProtocolError => "TLS handshake failed".into(),
        ErrorCode::HttpRequestDenied => "the sandbox's host does not let this request out".into(),
        ErrorCode::InternalError(Some(text)) => first_line(text),
        ErrorCode::HttpProtocolError => "the connection broke off, or the reply was no HTTP".into(),
        // That of the bundled host for what RFC 9113 says in sections 6.8 and 8.7.
        ErrorCode::ConnectionLimitReached => {
            return Failure::Unprocessed("the server has not looked at this request".into());
        }
        other => format!("{other:?}").trim_start_matches("ErrorCode::").to_owned(),
    };
    match unreachable {
        true => Failure::Unreachable(text),
        false => Failure::NoReply(text),
    }
}

/// The first line of a host's debug text, at most 200 characters: it may carry a whole backtrace.
pub fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().take(200).collect()
}
