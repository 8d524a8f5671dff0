//! Which entry is sent next, and making it ready.

use super::settle::Settled;
use super::{LONGEST_WAIT, Pass, Prepared};
use crate::ahead::{Ahead, Loaded};
use crate::bindings::exports::zddc::outbox::replayer::Outcome;
use crate::entry::Entry;
use crate::exchange::{Body, Draft, Request};
use crate::failure::Failure;
use crate::id::EntryId;
use crate::key::Key;
use crate::meta::Meta;
use crate::schedule::{Offered, Turn};
use crate::unloadable::Unloadable;
use crate::{Result, chain, error, headers};
use std::borrow::Cow;
use std::time::SystemTime;
use wasi::clocks::monotonic_clock;

impl Pass {
    /// The next entry to send, which is in flight from here on.
    pub(super) fn next_entry(&mut self) -> Result<Option<Prepared>> {
        if let Some(id) = self.probe.take() {
            self.probed = Some(id);
            let loaded = self.queue.load(id);
            if let Some(next) = self.offer(id, loaded) {
                return Ok(Some(next));
            }
        }
        self.hold_for_overtaken();
        while let Some((turn, id)) = self.schedule.ready() {
            match self.ahead.as_mut().and_then(|ahead| ahead.take(id)) {
                Some(entry) if self.is_due(&entry) => return Ok(Some(self.prepare(turn, entry))),
                Some(entry) => {
                    self.schedule.finished(turn, true);
                    self.leave(entry);
                }
                None => self.schedule.finished(turn, false),
            }
        }
        while self.events.is_empty()
            && !self.schedule.is_full()
            && !self.schedule.is_shut()
            && self.has_room()
        {
            if let Some(lease) = &self.lease {
                lease.keep()?;
            }
            self.list()?;
            let Pass { ahead, queue, .. } = self;
            let Some((id, loaded)) = ahead.as_mut().and_then(|ahead| ahead.next(queue)) else { break };
            if let Some(next) = self.offer(id, loaded) {
                return Ok(Some(next));
            }
        }
        Ok(None)
    }

    fn has_room(&self) -> bool {
        self.ahead.as_ref().is_none_or(Ahead::has_room)
    }

    /// What was queued or put back before some entry that had its turn already is for the next pass. Nothing of its
    /// resource is sent before it from now on.
    pub(super) fn hold_for_overtaken(&mut self) {
        let overtaken = self.ahead.as_mut().map(Ahead::overtaken).unwrap_or_default();
        for (id, meta) in overtaken {
            let keys = meta.map_or_else(|| vec![Key::everything()], |meta| self.keys(&meta));
            if let Some(next) = self.next.take_if(|next| next.entry.id > id && next.turn.is_related(&keys)) {
                self.schedule.finished(next.turn, true);
                self.leave(next.entry);
            }
            self.schedule.stick_late(keys, |waiting| *waiting > id);
        }
    }

    /// Lists the queue, once.
    pub(super) fn list(&mut self) -> Result<()> {
        if self.ahead.is_none() {
            // What a crash left behind takes space only; it must not keep entries from being sent.
            let _ = self.queue.sweep();
            let mut ahead = Ahead::list(&self.queue)?;
            self.report.remaining = ahead.count() as u64;
            if let Some(probed) = self.probed
                && !ahead.skip(probed)
            {
                // It was dropped, and is counted until its turn is over.
                self.report.remaining += 1;
            }
            self.ahead = Some(ahead);
        }
        Ok(())
    }

    /// Takes an entry, if it is sound and due and nothing holds it back.
    pub(super) fn offer(&mut self, id: EntryId, loaded: Loaded) -> Option<Prepared> {
        let mut entry = match loaded {
            Ok(entry) => entry,
            Err(unloadable) => {
                // What it concerns is not known, so nothing later may overtake it in this pass.
                if matches!(unloadable, Unloadable::Io(_)) && !self.config.original {
                    self.schedule.stick(vec![Key::everything()]);
                }
                self.unloadable(id, unloadable);
                return None;
            }
        };
        if !self.is_due(&entry) || self.is_held(&mut entry) {
            self.schedule.stick(self.keys(&entry.meta));
            self.leave(entry);
            return None;
        }
        match self.schedule.offer(self.keys(&entry.meta), id) {
            Offered::Go(turn, _) => Some(self.prepare(turn, entry)),
            Offered::Stuck => {
                self.leave(entry);
                None
            }
            Offered::Waits => {
                if let Some(ahead) = &mut self.ahead {
                    ahead.put_back(entry);
                }
                None
            }
        }
    }

    pub(super) fn keys(&self, meta: &Meta) -> Vec<Key> {
        // The original's order: one at a time, and nothing is ever stuck.
        match self.config.strict_order || self.config.original {
            true => vec![Key::everything()],
            false => self.upstream.keys(meta),
        }
    }

    /// What an entry concerns, whatever the order.
    pub(super) fn concerns<'t>(&self, turn: &'t Turn, meta: &Meta) -> Cow<'t, [Key]> {
        match self.config.strict_order {
            true => self.upstream.keys(meta).into(),
            false => turn.keys().into(),
        }
    }

    fn is_due(&mut self, entry: &Entry) -> bool {
        let Some(due) = entry.state.not_before() else { return true };
        let now = SystemTime::now();
        let waits = due > now && due < now + LONGEST_WAIT;
        if waits {
            self.not_due_before(due);
        }
        !waits || self.config.original
    }

    pub(super) fn not_due_before(&mut self, due: SystemTime) {
        self.soonest = Some(self.soonest.map_or(due, |s| s.min(due)));
    }

    fn unloadable(&mut self, id: EntryId, why: Unloadable) {
        let settled = match (&why, why.reason()) {
            // The original is just writing it. The longer it has been, the less likely it is that it goes on.
            (Unloadable::InProgress(since), _) => return self.not_due_before(SystemTime::now() + *since),
            (Unloadable::Gone, _) | (_, None) => return self.left(id),
            // The original passes over what it cannot read.
            (Unloadable::Damaged(_), _) if self.config.original => return,
            (Unloadable::Damaged(reason), _) => self.set_corrupt(id, reason),
            (Unloadable::Newer(_) | Unloadable::Denied(_) | Unloadable::Io(_), Some(reason)) => {
                Settled::stays(Outcome::Deferred, reason)
            }
        };
        self.record(id, "", "", None, 0, settled);
    }

    /// Leaves an entry for a later pass. It may still inherit in this one.
    pub(super) fn leave(&mut self, entry: Entry) {
        if let Some(ahead) = &mut self.ahead {
            ahead.leave(entry);
        }
    }

    /// Makes an entry ready to be sent. Its turn has come: those before it of its resource have had theirs, so what
    /// was delivered last is what it continues.
    fn prepare(&mut self, turn: Turn, mut entry: Entry) -> Prepared {
        if !self.config.original
            && let Some(validator) = chain::recall(&entry)
        {
            entry.state.validator = Some(validator);
            // Without it on disk, a crash makes a conflict of it at worst.
            let _ = self.queue.save_state_durably(entry.id, &entry.state);
        }
        // What it inherits may be known in memory only, so it does not wait where that fails.
        if !self.config.original {
            let keys = self.concerns(&turn, &entry.meta);
            self.removals.settle_before(&self.queue, &keys, entry.is_addition());
        }
        let draft = self.body(&entry).and_then(|body| self.draft(&entry, body));
        Prepared { entry, turn, draft, at: monotonic_clock::now() }
    }

    fn body(&self, entry: &Entry) -> Result<Body, Failure> {
        match self.queue.open_body(entry) {
            Ok((file, len)) => {
                let digest = entry.meta.known_digest().filter(|_| !self.config.original);
                Ok(Body { file, len, digest: digest.map(Into::into) })
            }
            Err(Unloadable::Damaged(reason)) => Err(Failure::Damaged(reason)),
            Err(Unloadable::Denied(why)) => Err(Failure::Unreadable(why)),
            Err(Unloadable::Io(error)) => Err(Failure::Unreadable(error::describe(&error))),
            Err(Unloadable::Gone | Unloadable::InProgress(_) | Unloadable::Newer(_)) => {
                Err(Failure::Unreadable("body.bin cannot be opened".into()))
            }
        }
    }

    fn draft(&self, entry: &Entry, body: Body) -> Result<Draft, Failure> {
        let request = Request {
            method: &entry.meta.method,
            raw_uri: &entry.meta.raw_uri,
            headers: headers::of(entry, body.len),
            body: Some(body),
            compare: None,
        };
        let mut draft = Draft::new(&self.upstream, request, self.timeouts())?;
        // With several at once, a host's thread for connections may have to be woken: it is, by the request, before the body.
        if self.is_single_file() {
            draft.fill()?;
        }
        Ok(draft)
    }
}
