//! Queueing in the simulator: what an author asks for, and what can be checked at once when it was taken.

use super::{Errand, IN_FLIGHT, Process, Resume};
use crate::bindings::exports::zddc::outbox::queue::Write as WitWrite;
use crate::bindings::zddc::outbox::types::{Error, Request};
use crate::ledger::{Attempt, Base, MARK};
use crate::plan::{BaseWish, Does, Stream, Write, path_of};
use crate::time::Clock;
use crate::view::{self, Place};
use crate::world::World;
use bytes::Bytes;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use wasmtime_wasi::async_trait;
use wasmtime_wasi::p2::{DynInputStream, InputStream, Pollable, StreamError};

impl Errand {
    pub(super) async fn enqueue(
        &self,
        process: &mut Process,
        write: &Write,
    ) -> wasmtime::Result<Result<(), Error>> {
        let (request, body, number, newest) = prepare(&mut self.world.lock(), write);
        let Process { store, exports, .. } = process;
        let queue = exports.zddc_outbox_queue();
        let result = match &write.stream {
            None => queue.call_enqueue_bytes(&mut *store, &request, &body).await?,
            Some(stream) => {
                let clock = self.world.lock().clock.clone();
                let stream: DynInputStream = Box::new(BodyStream::new(clock, body, stream));
                let stream = store.data_mut().table.push(stream)?;
                queue.call_enqueue(&mut *store, &request, stream).await?
            }
        };
        if let Ok(id) = &result {
            self.acknowledged(write, number, newest, id);
        }
        Ok(result.map(|_| ()))
    }

    pub(super) async fn batch(
        &self,
        process: &mut Process,
        writes: &[Write],
        does: &Does,
    ) -> wasmtime::Result<Option<Resume>> {
        let prepared: Vec<_> = writes.iter().map(|write| prepare(&mut self.world.lock(), write)).collect();
        let given: Vec<_> = prepared
            .iter()
            .map(|(request, body, ..)| WitWrite { request: request.clone(), body: body.to_vec() })
            .collect();
        let number = process.number;
        let at_once = match does {
            Does::BatchAtOnce(_) => self.at_once(process, &given).await?,
            _ => None,
        };
        let Process { store, exports, .. } = process;
        let results = match at_once {
            Some(results) => results,
            None => exports.zddc_outbox_queue().call_enqueue_batch(store, &given).await?,
        };
        let results = match results {
            Ok(results) => results,
            Err(error) => return self.note(number, Err(error), does),
        };
        if results.len() != writes.len() {
            let text = format!("{} results for {} writes", results.len(), writes.len());
            self.world.lock().ledger.wrong("each write of a batch gets its result", text);
        }
        for ((write, (_, _, attempt, newest)), result) in writes.iter().zip(prepared).zip(results) {
            match result {
                Ok(id) => self.acknowledged(write, attempt, newest, &id),
                Err(error) => _ = self.note(number, Err(error), does)?,
            }
        }
        Ok(None)
    }

    /// What the host does where it can sync all at once. None where that failed, and nothing is queued.
    async fn at_once(
        &self,
        process: &mut Process,
        writes: &[WitWrite],
    ) -> wasmtime::Result<Option<Result<Vec<Result<String, Error>>, Error>>> {
        let Process { store, exports, .. } = process;
        let batches = exports.zddc_outbox_queue().batch();
        let batch = match batches.call_stage(&mut *store, writes).await? {
            Ok(batch) => batch,
            Err(error) => return Ok(Some(Err(error))),
        };
        let published = match store.data_mut().sync_all().await? {
            Ok(()) => Some(batches.call_publish(&mut *store, batch).await?),
            Err(_) => None,
        };
        batch.resource_drop_async(store).await?;
        Ok(published)
    }

    /// Notes that a write was taken, and checks what can be checked at once.
    fn acknowledged(&self, write: &Write, number: usize, newest: Option<String>, id: &str) {
        let mut world = self.world.lock();
        let event = world.event();
        world.say(|| format!("        attempt {number} is acknowledged as {id}"));
        world.ledger.attempts[number].acknowledged.push((id.to_owned(), event));
        let still = |newest: &String| view::entries(&world.tree).iter().any(|e| e.name == *newest);
        if newest.as_ref().is_some_and(|newest| newest.as_str() >= id && still(newest)) {
            let text = format!("{id} was given out while {newest:?} was there");
            world.ledger.wrong("a new id is greater than every id already there", text);
        }
        let pending = view::entries(&world.tree).iter().filter(|e| e.place == Place::Pending).count() as u64;
        let taken_in = pending.saturating_sub(world.ledger.put_back());
        // But for what others had in flight when it was last counted: docs/operations.md.
        if self.alone && self.setting.max_entries.is_some_and(|max| taken_in > max + IN_FLIGHT) {
            let text = format!("{pending} entries are pending, {:?} may be", self.setting.max_entries);
            world.ledger.wrong("a limit is kept", text);
        }
        if write.stream.as_ref().is_some_and(|s| s.breaks_at.is_some()) {
            let text = format!("attempt {number}, whose body broke off, is acknowledged as {id}");
            world.ledger.wrong("only what was queued reaches the server", text);
        }
    }
}

/// A write as the WIT has it, its body, its number, and the greatest id that is pending and acknowledged.
fn prepare(world: &mut World, write: &Write) -> (Request, Arc<Vec<u8>>, usize, Option<String>) {
    let number = world.ledger.attempts.len();
    let body = Arc::new(world.rng.bytes(write.len));
    let version = world.peer.resources.get(path_of(write.uri)).cloned();
    let base = match (write.base, version) {
        (BaseWish::None, _) => Base::None,
        (BaseWish::Create, _) | (BaseWish::Current, None) => Base::Create,
        (BaseWish::Stale, _) => Base::Etag("\"stale\"".into()),
        (BaseWish::Current, Some(version)) => {
            let strong = version.etag.filter(|tag| !tag.starts_with("W/"));
            match (strong, version.modified) {
                (Some(tag), _) => Base::Etag(tag),
                (None, Some(at)) => {
                    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(at);
                    Base::Time(humantime::format_rfc3339_seconds(at).to_string(), httpdate::fmt_http_date(at))
                }
                (None, None) => Base::None,
            }
        }
    };
    let request = Request {
        method: write.method.into(),
        uri: write.uri.into(),
        content_type: number.is_multiple_of(2).then(|| "text/plain".into()),
        headers: vec![(MARK.into(), number.to_string())],
        base_mod_time: match &base {
            Base::Time(text, _) => Some(text.clone()),
            _ => None,
        },
        base_etag: match &base {
            Base::Etag(tag) => Some(tag.clone()),
            _ => None,
        },
        create: base == Base::Create,
    };
    let begun = world.event();
    world.ledger.attempts.push(Attempt {
        number,
        method: write.method.into(),
        uri: write.uri.into(),
        body: body.clone(),
        base,
        begun,
        acknowledged: Vec::new(),
        resolved_mine: 0,
    });
    world.say(|| format!("        attempt {number}"));
    let attempts = &world.ledger.attempts;
    let known = |id: &String| attempts.iter().any(|a| a.acknowledged.iter().any(|(other, _)| other == id));
    let entries = view::entries(&world.tree);
    let pending = entries.into_iter().filter(|e| e.place == Place::Pending);
    let newest = pending.map(|e| e.id).filter(known).max();
    (request, body, number, newest)
}

/// A body on its way in.
struct BodyStream {
    clock: Clock,
    body: Arc<Vec<u8>>,
    offset: usize,
    piece: usize,
    pause: Duration,
    breaks_at: Option<usize>,
    /// The next piece is there.
    ready: bool,
}

impl BodyStream {
    fn new(clock: Clock, body: Arc<Vec<u8>>, stream: &Stream) -> BodyStream {
        let pause = Duration::from_millis(stream.pause_ms);
        let ready = pause.is_zero();
        // A slow body comes in not too many pieces.
        let piece = if ready { stream.piece.max(64) } else { stream.piece.max(body.len() / 20 + 1) };
        let breaks_at = stream.breaks_at.map(|at| at.min(body.len()));
        BodyStream { clock, body, offset: 0, piece, pause, breaks_at, ready }
    }
}

#[async_trait]
impl Pollable for BodyStream {
    async fn ready(&mut self) {
        if !self.ready {
            self.clock.sleep(self.pause).await;
            self.ready = true;
        }
    }
}

impl InputStream for BodyStream {
    fn read(&mut self, size: usize) -> Result<Bytes, StreamError> {
        if !self.ready {
            return Ok(Bytes::new());
        }
        let end = self.breaks_at.unwrap_or(self.body.len());
        let take = size.min(self.piece).min(end - self.offset);
        if take == 0 {
            return Err(match self.breaks_at {
                Some(_) => StreamError::LastOperationFailed(wasmtime::format_err!("the caller went away")),
                None => StreamError::Closed,
            });
        }
        let chunk = Bytes::copy_from_slice(&self.body[self.offset..self.offset + take]);
        self.offset += take;
        self.ready = self.pause.is_zero();
        Ok(chunk)
    }
}
