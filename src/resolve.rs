//! How an operator ends a conflict: with the server's version, or by queueing ours again on top of it.

use crate::bindings::exports::zddc::outbox::queue::Keep;
use crate::bindings::types::{Place, Request};
use crate::clock;
use crate::config::Config;
use crate::enqueue::{self, Body};
use crate::id::EntryId;
use crate::inspect::response;
use crate::layout::{BODY, MAX_RECORD, META};
use crate::locate::{Located, locate};
use crate::meta::Meta;
use crate::precondition::{Base, Validator};
use crate::queue::Queue;
use crate::{Error, Result};
use wasi::io::streams::InputStream;

/// Ends a conflict. `mine` queues the write again on top of the version that the conflict shows.
pub fn resolve(config: &Config, queue: &Queue, name: &str, keep: Keep) -> Result<Option<EntryId>> {
    let at = conflict_named(queue, name)?;
    let queued = match keep {
        Keep::Theirs => None,
        Keep::Mine => Some(requeue(config, queue, &at, None)?),
    };
    end(queue, &at, queued)?;
    Ok(queued)
}

/// Ends a conflict with a merged body.
pub fn resolve_with(config: &Config, queue: &Queue, name: &str, body: &InputStream) -> Result<EntryId> {
    let at = conflict_named(queue, name)?;
    let queued = requeue(config, queue, &at, Some(body))?;
    end(queue, &at, Some(queued))?;
    Ok(queued)
}

/// Removes a conflict whose write was queued again. A crash before this leaves it beside the new entry, and so does a disk
/// that fails: shown twice, lost never.
fn end(queue: &Queue, at: &Located, queued: Option<EntryId>) -> Result<()> {
    let ended = queue.discard(&queue.dir, &at.name);
    if let (Err(Error::NoSuchEntry(_)), Some(id)) = (&ended, queued) {
        // Somebody else has ended it meanwhile, and what he decided holds. Where a pass has sent the new entry by now, that
        // cannot be helped.
        let _ = queue.discard(&queue.dir, &id.to_string());
    }
    ended
}

fn conflict_named(queue: &Queue, name: &str) -> Result<Located> {
    let at = locate(queue, name)?;
    match at.place {
        Place::Conflict => Ok(at),
        _ => Err(Error::WrongPlace(format!("{name} is no conflict"))),
    }
}

/// Queues a conflict again, with this body in place of its own.
fn requeue(config: &Config, queue: &Queue, at: &Located, body: Option<&InputStream>) -> Result<EntryId> {
    let meta = at.dir(queue).read(&at.path(META), MAX_RECORD).ok();
    let meta = meta.and_then(|json| Meta::parse(at.id, &json).ok());
    let meta = meta.ok_or_else(|| Error::Io(format!("{}: meta.json cannot be read", at.name)))?;
    let mut request = Request {
        method: meta.method.clone(),
        uri: meta.raw_uri.clone(),
        content_type: meta.content_type.clone(),
        headers: meta.headers.clone(),
        base_mod_time: None,
        base_etag: None,
        create: false,
    };
    match response(queue, at)?.map_or(Validator::Unknown, |response| response.validator()).base() {
        Base::Etag(tag) => request.base_etag = Some(tag),
        Base::Modified(at) => request.base_mod_time = Some(clock::rfc3339(at)),
        Base::Absent => request.create = true,
        Base::Any => {
            return Err(Error::NoValidator(format!(
                "{}: the server named no version, so nothing can be put on top of it safely; 'outbox retry' sends the write as it was queued",
                at.name
            )));
        }
    }
    let stored = at.path(BODY);
    let body = body.map_or(Body::Stored(at.dir(queue), &stored, &meta), Body::Stream);
    enqueue::enqueue(config, queue, &request, body)
}
