//! The component's exports: glue between the WIT and the modules.

use crate::batch::{self, Batch};
use crate::bindings::exports::wasi::cli::run::Guest as RunGuest;
use crate::bindings::exports::zddc::outbox::queue::{
    Batch as BatchHandle, Counts, Extent, Finding, Guest as QueueGuest, GuestBatch, Keep, Write,
};
use crate::bindings::exports::zddc::outbox::replayer::{
    Event, Guest as ReplayerGuest, GuestPass, Options, Pass as PassHandle, Report,
};
use crate::bindings::types::{Entry, EntryId as WitId, Item, Request};
use crate::config::Config;
use crate::drop::drop_entry;
use crate::enqueue::{Body, enqueue};
use crate::id::EntryId;
use crate::locate::locate;
use crate::pass::Pass;
use crate::queue::Queue;
use crate::{Error, Result, command, inspect, limits, resolve, retry, verify};
use std::cell::RefCell;
use std::rc::Rc;
use wasi::io::streams::InputStream;

/// What the exports are implemented on.
pub struct Guest;

/// The configuration and the open queue. Neither changes while an instance lives.
struct Opened {
    config: Config,
    queue: Queue,
}

thread_local! {
    static OPENED: RefCell<Option<Rc<Opened>>> = const { RefCell::new(None) };
}

/// Does something with the queue, which stays open for the next call. After an I/O error it is opened
/// anew: its directory may have been replaced.
fn with_queue<T>(work: impl FnOnce(&Config, &Queue) -> Result<T>) -> Result<T> {
    let cached = OPENED.with_borrow(Clone::clone);
    let opened = match cached {
        Some(opened) => opened,
        None => {
            let config = Config::from_env()?;
            let queue = Queue::open(&config)?;
            Rc::new(Opened { config, queue })
        }
    };
    let done = work(&opened.config, &opened.queue);
    let keep = (!matches!(done, Err(Error::Io(_)))).then_some(opened);
    OPENED.set(keep);
    done
}

/// The results of a batch, after which the queue is opened anew where one failed.
fn each(done: Vec<Result<EntryId>>) -> Vec<Result<WitId>> {
    if done.iter().any(|done| matches!(done, Err(Error::Io(_)))) {
        OPENED.take();
    }
    done.into_iter().map(|done| done.map(|id| id.to_string())).collect()
}

impl QueueGuest for Guest {
    type Batch = SharedBatch;

    fn enqueue(request: Request, body: InputStream) -> Result<WitId> {
        with_queue(|config, queue| enqueue(config, queue, &request, Body::Stream(&body)))
            .map(|id| id.to_string())
    }

    fn enqueue_bytes(request: Request, body: Vec<u8>) -> Result<WitId> {
        with_queue(|config, queue| enqueue(config, queue, &request, Body::Bytes(&body)))
            .map(|id| id.to_string())
    }

    fn enqueue_batch(writes: Vec<Write>) -> Result<Vec<Result<WitId>>> {
        with_queue(|config, queue| Ok(batch::enqueue(config, queue, &writes))).map(each)
    }

    fn stage_ahead(count: u32) -> Result<u32> {
        with_queue(|_, queue| queue.ahead.prepare(queue, count))
    }

    fn pending(after: Option<WitId>, limit: u32) -> Result<Vec<Entry>> {
        let after = match after {
            Some(text) => Some(EntryId::parse(&text).ok_or(Error::NoSuchEntry(text))?),
            None => None,
        };
        with_queue(|_, queue| queue.pending(after, limit))
    }

    fn count() -> Result<Counts> {
        with_queue(|_, queue| queue.count())
    }

    fn usage() -> Result<Extent> {
        with_queue(|_, queue| limits::usage(queue))
    }

    fn quarantined(after: Option<String>, limit: u32) -> Result<Vec<Item>> {
        with_queue(|_, queue| inspect::page(queue, after.as_deref(), limit))
    }

    fn get(name: String) -> Result<Item> {
        with_queue(|_, queue| Ok(inspect::item(queue, &locate(queue, &name)?)))
    }

    fn read_body(name: String) -> Result<InputStream> {
        with_queue(|_, queue| inspect::read_body(queue, &name))
    }

    fn resolve(name: String, keep: Keep) -> Result<Option<WitId>> {
        with_queue(|config, queue| resolve::resolve(config, queue, &name, keep))
            .map(|id| id.map(|id| id.to_string()))
    }

    fn resolve_with(name: String, body: InputStream) -> Result<WitId> {
        with_queue(|config, queue| resolve::resolve_with(config, queue, &name, &body))
            .map(|id| id.to_string())
    }

    fn retry(name: String) -> Result<()> {
        with_queue(|_, queue| retry::retry(queue, &name))
    }

    fn drop(name: String) -> Result<()> {
        with_queue(|_, queue| drop_entry(queue, &name))
    }

    fn verify() -> Result<Vec<Finding>> {
        with_queue(|_, queue| verify::verify(queue))
    }

    fn sweep() -> Result<()> {
        with_queue(|_, queue| queue.sweep())
    }
}

/// A batch behind its handle, until it is published.
pub struct SharedBatch(RefCell<Option<Batch>>);

impl GuestBatch for SharedBatch {
    fn stage(writes: Vec<Write>) -> Result<BatchHandle> {
        with_queue(|config, queue| Ok(Batch::stage(config, queue, &writes)))
            .map(|batch| BatchHandle::new(SharedBatch(RefCell::new(Some(batch)))))
    }

    fn publish(&self) -> Result<Vec<Result<WitId>>> {
        match self.0.take() {
            Some(batch) => with_queue(|_, queue| Ok(batch.publish(queue))).map(each),
            None => Ok(Vec::new()),
        }
    }
}

impl Drop for SharedBatch {
    fn drop(&mut self) {
        if let Some(batch) = self.0.take() {
            // What cannot be removed now is swept later.
            let _ = with_queue(|_, queue| {
                batch.discard(queue);
                Ok(())
            });
        }
    }
}

/// A pass behind its handle. No call is made into it while another is under way.
pub struct SharedPass(RefCell<Pass>);

impl GuestPass for SharedPass {
    fn start(options: Options) -> Result<PassHandle> {
        let pass = Pass::start(Config::from_env()?, options)?;
        Ok(PassHandle::new(SharedPass(RefCell::new(pass))))
    }

    fn next(&self) -> Result<Option<Event>> {
        self.0.borrow_mut().advance()
    }

    fn stop(&self) {
        self.0.borrow_mut().stop();
    }

    fn report(&self) -> Report {
        self.0.borrow().report()
    }
}

impl ReplayerGuest for Guest {
    type Pass = SharedPass;

    fn replay(options: Options) -> Result<Report> {
        let mut pass = Pass::start(Config::from_env()?, options)?;
        while pass.advance()?.is_some() {}
        Ok(pass.report())
    }
}

impl RunGuest for Guest {
    fn run() -> Result<(), ()> {
        command::run_arguments().map_err(|error| command::complain(&error))
    }
}
