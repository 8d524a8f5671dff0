//! What a process does in one call, and what it then knows.

mod enqueue;

use crate::bindings::exports::zddc::outbox::queue::{Finding, Keep};
use crate::bindings::exports::zddc::outbox::replayer::{Event, Options, Outcome, Resume as WitResume};
use crate::bindings::zddc::outbox::types::{Entry, Error};
use crate::guest::Process;
use crate::ledger::{Act, Deed, MARK, Told};
use crate::plan::{Does, Setting, Write};
use crate::view::{self, Found, Place};
use crate::world::{Shared, World};

/// A delivery is durable after a second, and here is another for the pass to come by, in nanoseconds.
const SETTLED: u64 = 2_000_000_000;

/// What a pass said, for the next one.
#[derive(Debug, Clone)]
pub struct Resume {
    /// As it is handed on.
    pub wit: WitResume,
    /// When to come again.
    pub next_delay_ms: u64,
}

/// The circumstances of a call.
pub struct Errand {
    /// The world.
    pub world: Shared,
    /// What the last pass said.
    pub resume: Option<Resume>,
    /// Nobody else is at it.
    pub alone: bool,
    /// How everything is set up.
    pub setting: Setting,
}

/// How often a pass is swept: passes of the simulator are short.
const SWEEP_EVERY: u32 = 2;

/// Processes that may queue at once beside the one that is looked at.
const IN_FLIGHT: u64 = 3;

impl Errand {
    /// Makes a call and notes its result. An error is a trap.
    pub async fn perform(&self, process: &mut Process, does: &Does) -> wasmtime::Result<Option<Resume>> {
        let number = process.number;
        self.world.lock().say(|| format!("[{number}] {does:?}"));
        let result = match does {
            Does::Enqueue(write) => self.enqueue(process, write).await?,
            Does::Batch(writes) | Does::BatchAtOnce(writes) => {
                return self.batch(process, writes, does).await;
            }
            Does::StageAhead(count) => {
                let Process { store, exports, .. } = process;
                let staged = exports.zddc_outbox_queue().call_stage_ahead(store, *count).await?;
                self.staged(*count, &staged);
                staged.map(|_| ())
            }
            Does::Replay { wake, resume, budget_ms } => {
                return self.replay(process, *wake, *resume, *budget_ms).await;
            }
            Does::Pending => self.pending(process).await?,
            Does::Verify => self.verify(process).await?,
            Does::Count => {
                let Process { store, exports, .. } = process;
                let queue = exports.zddc_outbox_queue();
                match queue.call_count(&mut *store).await? {
                    // A host sweeps at any time, also while another process replays.
                    Ok(_) => queue.call_sweep(store).await?,
                    Err(error) => Err(error),
                }
            }
            Does::Quarantined => {
                let Process { store, exports, .. } = process;
                exports.zddc_outbox_queue().call_quarantined(store, None, 100).await?.map(|_| ())
            }
            Does::Get(pick) => match self.pick(*pick, |_| true) {
                Some(entry) => {
                    let Process { store, exports, .. } = process;
                    let item = exports.zddc_outbox_queue().call_get(store, &entry.name).await?;
                    return self.note(number, item.map(|_| ()), does);
                }
                None => return Ok(None),
            },
            Does::ReadBody(pick) => self.read_body(process, *pick).await?,
            Does::Resolve(pick, mine) => self.resolve(process, *pick, *mine).await?,
            Does::Retry(pick) => self.operate(process, *pick, Act::Retry).await?,
            Does::Release => self.release(process).await?,
            Does::Drop(pick) => self.operate(process, *pick, Act::Drop).await?,
        };
        self.note(number, result, does)
    }

    /// Says how a call ended, and objects to an error that nothing explains.
    fn note(
        &self,
        number: usize,
        result: Result<(), Error>,
        does: &Does,
    ) -> wasmtime::Result<Option<Resume>> {
        let mut world = self.world.lock();
        world.say(|| format!("[{number}] = {result:?}"));
        let Err(error) = result else { return Ok(None) };
        let broken = matches!(does, Does::Enqueue(Write { stream: Some(s), .. }) if s.breaks_at.is_some());
        let batch = matches!(does, Does::Batch(_) | Does::BatchAtOnce(_));
        let stages = matches!(does, Does::Enqueue(_) | Does::StageAhead(_));
        let acceptable = match error {
            // A descriptor that was open when some sync failed learns of it later.
            Error::NoSpace => world.faulted,
            // A write takes an hour by the wall clock when that is set meanwhile, and may be swept away.
            Error::Io(_) if world.jumped && (batch || stages) => true,
            Error::Io(_) => world.faulted || world.failed_syncs > 0,
            Error::BodyFailed(_) => broken,
            // Those before it in a batch counted, and may have been taken out again when their sync failed.
            Error::QueueFull(_) if batch && world.failed_syncs > 0 => true,
            Error::QueueFull(_) => self.full(&world),
            // What is picked may be damaged, or have gone meanwhile, or have no validator.
            Error::NoSuchEntry(_) | Error::WrongPlace(_) | Error::NoValidator(_) => true,
            _ => false,
        };
        let picked = matches!(
            does,
            Does::Get(_)
                | Does::ReadBody(_)
                | Does::Resolve(..)
                | Does::Retry(_)
                | Does::Release
                | Does::Drop(_)
        );
        // One that is picked may go at any moment when somebody else is at it, and may be damaged.
        let moving = picked && (!self.alone || !world.ledger.planted.is_empty());
        if !acceptable && !moving {
            world.ledger.wrong("a call succeeds where nothing fails", format!("{does:?}: {error:?}"));
        }
        Ok(None)
    }

    /// As many are ready as were asked for.
    fn staged(&self, count: u32, staged: &Result<u32, Error>) {
        if staged.as_ref().is_ok_and(|staged| *staged != count) {
            let text = format!("{staged:?} where {count} were asked for");
            self.world.lock().ledger.wrong("a call succeeds where nothing fails", text);
        }
    }

    /// Whether a limit may have been reached: it is where nobody else was at it.
    fn full(&self, world: &World) -> bool {
        let Some(max) = self.setting.max_entries else { return false };
        let pending = view::entries(&world.tree).iter().filter(|e| e.place == Place::Pending).count();
        !self.alone || world.faulted || pending as u64 >= max
    }

    async fn replay(
        &self,
        process: &mut Process,
        wake: bool,
        resume: bool,
        budget_ms: Option<u64>,
    ) -> wasmtime::Result<Option<Resume>> {
        let number = process.number;
        let (begun, told_before, failed_before) = {
            let mut world = self.world.lock();
            (world.event(), world.ledger.told.len(), world.failed_syncs)
        };
        let resume = self.resume.as_ref().filter(|_| resume).map(|resume| resume.wit.clone());
        // Every other pass leaves most of the deleting to a sweep.
        let sweep_every = (begun % 2 == 0).then_some(SWEEP_EVERY);
        let options = Options { wake, resume, budget_ms, sweep_every };
        let mut gone = 0;
        let Process { store, exports, .. } = process;
        let passes = exports.zddc_outbox_replayer().pass();
        let pass = match passes.call_start(&mut *store, &options).await? {
            Ok(pass) => pass,
            Err(error) => return self.failed_pass(number, &error),
        };
        let ended = loop {
            match passes.call_next(&mut *store, pass).await? {
                Ok(Some(event)) => {
                    let left =
                        matches!(event.outcome, Outcome::Delivered | Outcome::Dropped | Outcome::Superseded);
                    self.tell(number, event, told_before, failed_before);
                    gone += u32::from(left);
                    if sweep_every == Some(gone) {
                        gone = 0;
                        // It may fail as the pass may.
                        let _ = exports.zddc_outbox_queue().call_sweep(&mut *store).await?;
                    }
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        let report = passes.call_report(&mut *store, pass).await?;
        pass.resource_drop_async(&mut *store).await?;
        {
            let mut world = self.world.lock();
            let event = world.event();
            world.ledger.passes.push((number, begun, event));
        }
        if let Err(error) = ended {
            return self.failed_pass(number, &error);
        }
        let mut world = self.world.lock();
        world.say(|| format!("[{number}] = {report:?}"));
        let event = world.event();
        let clean = !world.faulted && world.failed_syncs == failed_before;
        for told in world.ledger.told[told_before..].iter_mut().filter(|t| t.process == number) {
            told.sealed = told.sealed.or(clean.then_some(event));
        }
        Ok(Some(Resume { wit: report.resume, next_delay_ms: report.next_delay_ms }))
    }

    /// Notes an outcome, and which of the earlier ones are final by now.
    fn tell(&self, number: usize, event: Event, told_before: usize, failed_before: u64) {
        let mut world = self.world.lock();
        world.say(|| {
            let detail = event.detail.as_deref().unwrap_or_default();
            format!("[{number}] {} {:?} {:?} {detail}", event.id, event.outcome, event.status)
        });
        let at = world.event();
        let clean = !world.faulted && world.failed_syncs == failed_before;
        // Removals are synced within a second, what is set aside at once.
        let now = world.clock.now();
        let aside = matches!(event.outcome, Outcome::Conflict | Outcome::Rejected);
        let (id, outcome) = (event.id, event.outcome);
        world.ledger.told.push(Told { at, id, outcome, time: now, process: number, sealed: None });
        for told in world.ledger.told[told_before..].iter_mut().filter(|t| t.process == number) {
            let settled = now > told.time + SETTLED || (told.at == at && aside);
            if clean && settled && told.sealed.is_none() {
                told.sealed = Some(at);
            }
        }
    }

    fn failed_pass(&self, number: usize, error: &Error) -> wasmtime::Result<Option<Resume>> {
        let mut world = self.world.lock();
        world.say(|| format!("[{number}] = {error:?}"));
        let kept_apart = self.setting.lease && matches!(error, Error::AnotherReplays(_));
        let explained =
            kept_apart || world.faulted || (world.failed_syncs > 0 && matches!(error, Error::Io(_)));
        if !explained {
            world.ledger.wrong("a call succeeds where nothing fails", format!("a pass: {error:?}"));
        }
        Ok(None)
    }

    async fn pending(&self, process: &mut Process) -> wasmtime::Result<Result<(), Error>> {
        let Process { store, exports, .. } = process;
        let listed = exports.zddc_outbox_queue().call_pending(store, None, 1000).await?;
        let mut world = self.world.lock();
        for entry in listed.iter().flatten() {
            if let Some(problem) = mismatch(&world, entry, self.alone) {
                world.ledger.wrong("what is shown is what was queued", format!("{}: {problem}", entry.id));
            }
        }
        Ok(listed.map(|_| ()))
    }

    async fn verify(&self, process: &mut Process) -> wasmtime::Result<Result<(), Error>> {
        let Process { store, exports, .. } = process;
        let findings = exports.zddc_outbox_queue().call_verify(store).await?;
        let mut world = self.world.lock();
        if !world.faulted {
            let explained = |finding: &Finding| {
                let ledger = &world.ledger;
                let planted = ledger.planted.keys().any(|id| finding.name.contains(id.as_str()));
                // What a crash or a failure has left there is swept in the end.
                let swept = ledger.finale == 0 && finding.name.starts_with(".staging/");
                planted || swept || ledger.foreign.contains(&finding.name)
            };
            let found: Vec<_> = findings.iter().flatten().filter(|f| !explained(f)).cloned().collect();
            for finding in found {
                world.ledger.wrong("verify finds nothing that was not planted", format!("{finding:?}"));
            }
        }
        Ok(findings.map(|_| ()))
    }

    async fn read_body(&self, process: &mut Process, pick: u64) -> wasmtime::Result<Result<(), Error>> {
        let Some(entry) = self.pick(pick, |_| true) else { return Ok(Ok(())) };
        let Process { store, exports, .. } = process;
        let stream = match exports.zddc_outbox_queue().call_read_body(&mut *store, &entry.name).await? {
            Ok(stream) => stream,
            Err(error) => return Ok(Err(error)),
        };
        let mut stream = store.data_mut().table.delete(stream)?;
        let mut body = Vec::new();
        // Damage may have put something unreadable there.
        while let Ok(chunk) = stream.read(64 * 1024) {
            body.extend_from_slice(&chunk);
        }
        let mut world = self.world.lock();
        let expected = view::mark(&world.tree, &entry).and_then(|mark| world.ledger.attempts.get(mark));
        let differs = expected.is_some_and(|attempt| *attempt.body != body);
        if differs && !world.ledger.planted.contains_key(&entry.id) {
            world.ledger.wrong("what is shown is what was queued", format!("the body of {}", entry.name));
        }
        Ok(Ok(()))
    }

    async fn resolve(
        &self,
        process: &mut Process,
        pick: u64,
        mine: bool,
    ) -> wasmtime::Result<Result<(), Error>> {
        let Some(entry) = self.pick(pick, |entry| entry.place == Place::Conflict) else { return Ok(Ok(())) };
        let (deed, mark) = {
            let mut world = self.world.lock();
            let mark = view::mark(&world.tree, &entry);
            if let (true, Some(mark)) = (mine, mark) {
                world.ledger.attempts[mark].resolved_mine += 1;
            }
            (begin(&mut world, if mine { Act::Mine } else { Act::Theirs }, &entry), mark)
        };
        let Process { store, exports, .. } = process;
        let keep = if mine { Keep::Mine } else { Keep::Theirs };
        let result = exports.zddc_outbox_queue().call_resolve(store, &entry.name, keep).await?;
        let mut world = self.world.lock();
        if let Ok(new) = &result {
            let event = world.event();
            world.ledger.deeds[deed].done = Some(event);
            if let (Some(new), Some(mark)) = (new, mark) {
                world.say(|| format!("        attempt {mark} is acknowledged again as {new}"));
                world.ledger.attempts[mark].acknowledged.push((new.clone(), event));
            }
        }
        Ok(result.map(|_| ()))
    }

    async fn operate(
        &self,
        process: &mut Process,
        pick: u64,
        act: Act,
    ) -> wasmtime::Result<Result<(), Error>> {
        match self.pick(pick, |_| true) {
            Some(entry) => self.operate_on(process, &entry, act).await,
            None => Ok(Ok(())),
        }
    }

    async fn release(&self, process: &mut Process) -> wasmtime::Result<Result<(), Error>> {
        let ambiguous: Vec<Found> = {
            let tree = &self.world.lock().tree;
            let under_way = |entry: &Found| {
                let state = view::json(tree, entry, "state.json");
                state.is_some_and(|state| state.get("in_flight").is_some_and(|flag| flag == true))
            };
            let pending = view::entries(tree).into_iter().filter(|entry| entry.place == Place::Pending);
            pending.filter(under_way).collect()
        };
        for entry in ambiguous {
            if let Err(error) = self.operate_on(process, &entry, Act::Retry).await? {
                return Ok(Err(error));
            }
        }
        Ok(Ok(()))
    }

    async fn operate_on(
        &self,
        process: &mut Process,
        entry: &Found,
        act: Act,
    ) -> wasmtime::Result<Result<(), Error>> {
        let deed = begin(&mut self.world.lock(), act, entry);
        let Process { store, exports, .. } = process;
        let queue = exports.zddc_outbox_queue();
        let result = match act {
            Act::Retry => queue.call_retry(store, &entry.name).await?,
            _ => queue.call_drop(store, &entry.name).await?,
        };
        let mut world = self.world.lock();
        if result.is_ok() {
            let event = world.event();
            world.ledger.deeds[deed].done = Some(event);
        }
        Ok(result)
    }

    fn pick(&self, pick: u64, wanted: impl Fn(&Found) -> bool) -> Option<Found> {
        let entries: Vec<_> = view::entries(&self.world.lock().tree).into_iter().filter(wanted).collect();
        let index = pick.checked_rem(entries.len() as u64)?;
        entries.into_iter().nth(index as usize)
    }
}

fn begin(world: &mut World, act: Act, entry: &Found) -> usize {
    let begun = world.event();
    world.say(|| format!("        {act:?} {}", entry.name));
    world.ledger.deeds.push(Deed { act, id: entry.id.clone(), begun, done: None });
    world.ledger.deeds.len() - 1
}

/// What is wrong with an entry as it is shown.
fn mismatch(world: &World, entry: &Entry, alone: bool) -> Option<String> {
    if world.ledger.planted.contains_key(&entry.id) {
        return None;
    }
    let mark = entry.headers.iter().find(|(name, _)| name == MARK);
    let attempt = mark.and_then(|(_, mark)| world.ledger.attempts.get(mark.parse::<usize>().ok()?));
    let Some(attempt) = attempt else { return Some("nobody queued it".into()) };
    let len = attempt.body.len() as u64;
    // It may have been delivered, or its file may have failed, while it was being listed.
    let unknown = entry.body_len.is_none() && (!alone || world.faulted);
    let same = attempt.method == entry.method && attempt.uri == entry.raw_uri;
    (!same || !(unknown || entry.body_len == Some(len)))
        .then(|| format!("{entry:?} where {} {} {len} bytes were queued", attempt.method, attempt.uri))
}
