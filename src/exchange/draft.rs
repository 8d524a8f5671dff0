//! A request before it is sent: with one at a time, it is put together while the last one is under way.

use super::{Content, Exchange, Request, Sending, Sent, Timeouts, Waiting, verify};
use crate::failure::{Failure, no_reply};
use crate::upstream::Upstream;
use std::cell::OnceCell;
use std::time::Duration;
use wasi::clocks::monotonic_clock;
use wasi::http::outgoing_handler;
use wasi::http::types::{Fields, Method, OutgoingRequest, RequestOptions};
use xxhash_rust::xxh3::Xxh3;

/// A request that is put together. Dropping it sends nothing.
pub struct Draft {
    sending: Option<Sending>,
    outgoing: OutgoingRequest,
    options: RequestOptions,
    compare: Option<Content>,
    timeouts: Timeouts,
    body_len: u64,
}

impl Draft {
    /// Puts a request together.
    pub fn new(upstream: &Upstream, request: Request<'_>, timeouts: Timeouts) -> Result<Draft, Failure> {
        let refused = |what: &str| Failure::NoReply(format!("the host refuses the request's {what}"));
        let headers = Fields::from_list(&request.headers).map_err(|_| refused("headers"))?;
        let outgoing = OutgoingRequest::new(headers);
        outgoing.set_method(&method(request.method)).map_err(|()| refused("method"))?;
        outgoing.set_scheme(Some(&upstream.scheme)).map_err(|()| refused("scheme"))?;
        outgoing.set_authority(Some(&upstream.authority)).map_err(|()| refused("authority"))?;
        outgoing
            .set_path_with_query(Some(&upstream.target(request.raw_uri)))
            .map_err(|()| refused("path"))?;
        let body_len = request.body.as_ref().map_or(0, |body| body.len);
        let sending = match request.body {
            None => None,
            Some(body) if body.len == 0 => {
                verify(&Xxh3::new(), &body)?;
                None
            }
            // Only with a body: a host would send an unfinished, empty one in chunks.
            Some(body) => {
                let into = outgoing.body().map_err(|()| refused("body"))?;
                let stream = into.write().map_err(|()| refused("body"))?;
                let (ready, hash) = (OnceCell::new(), Box::new(Xxh3::new()));
                Some(Sending { ready, stream, outgoing: into, body, offset: 0, hash })
            }
        };
        let Request { compare, .. } = request;
        Ok(Draft { sending, outgoing, options: options(timeouts), compare, timeouts, body_len })
    }

    /// Gives the host what it takes of the body before the request.
    pub fn fill(&mut self) -> Result<(), Failure> {
        let Some(sending) = &mut self.sending else { return Ok(()) };
        if let Sent::All = sending.send()?
            && let Some(whole) = self.sending.take()
        {
            whole.finish().map_err(|code| no_reply(&code))?;
        }
        Ok(())
    }

    /// Hands it to the host.
    pub fn send(self) -> Result<Exchange, Failure> {
        let Draft { sending, outgoing, options, compare, timeouts, body_len } = self;
        let future = outgoing_handler::handle(outgoing, Some(options)).map_err(|code| no_reply(&code))?;
        let mut exchange = Exchange {
            body_len,
            cut_short: false,
            sending,
            waiting: Some(Waiting { ready: future.subscribe(), future }),
            reading: None,
            compare,
            timeouts,
            last_progress: 0,
        };
        exchange.send()?;
        exchange.last_progress = monotonic_clock::now();
        Ok(exchange)
    }
}

fn options(timeouts: Timeouts) -> RequestOptions {
    /// The host's wait for the first byte may include the sending of the body, so it must never be the
    /// limit; ours is [`Exchange::deadline`].
    const NEVER: u64 = 7 * 24 * 3600 * 1_000_000_000;
    let nanos = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(NEVER);
    let options = RequestOptions::new();
    let set = options
        .set_connect_timeout(Some(nanos(timeouts.connect)))
        .and_then(|()| options.set_first_byte_timeout(Some(NEVER)))
        .and_then(|()| options.set_between_bytes_timeout(Some(nanos(timeouts.idle))));
    // A host that knows no such timeouts is served by ours.
    let _ = set;
    options
}

fn method(name: &str) -> Method {
    match name {
        "PUT" => Method::Put,
        "POST" => Method::Post,
        "DELETE" => Method::Delete,
        "PATCH" => Method::Patch,
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        "OPTIONS" => Method::Options,
        other => Method::Other(other.into()),
    }
}
