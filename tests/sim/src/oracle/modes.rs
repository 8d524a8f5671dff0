//! What must hold where the component is told to treat something in another way than by default: what that changes of the other
//! properties, and what it promises itself.

use super::{Facts, conditions, related};
use crate::bindings::exports::zddc::outbox::replayer::Outcome;
use crate::ledger::{Act, Attempt, Base};
use crate::peer::Seen;
use crate::plan::Mode;
use crate::view::Place;

impl Facts<'_> {
    /// A reply after which a write is removed, where what is refused is dropped.
    pub(super) fn drops(&self, seen: &Seen) -> bool {
        let refusal = seen.status.is_some_and(|status| (400..500).contains(&status));
        let other = matches!(seen.status, Some(408 | 412 | 423 | 425 | 429));
        self.plan.setting.mode == Mode::Drop && seen.is_write() && refusal && !other
    }

    /// From when on a PUT may have been left out: a later write that replaces it whole was sent, or has ended otherwise. One
    /// that was sent whole is not left out, unless an operator put it back.
    pub(super) fn replaced(&self, id: &str) -> Option<u64> {
        let ledger = &self.world.ledger;
        if self.plan.setting.mode != Mode::Coalesce {
            return None;
        }
        if self.of(id).iter().any(|seen| seen.whole) && self.noted(id, u64::MAX) {
            return None;
        }
        let (of, _) = self.known().find(|(_, key)| *key == id)?;
        let gone = self.replacers(of, id).filter_map(|(_, later)| {
            let sent = self.of(later).first().map(|seen| seen.at);
            sent.into_iter().chain(self.ended(later)).min()
        });
        let told = ledger.told.iter().filter(|told| told.id == id && told.outcome == Outcome::Superseded);
        told.map(|told| told.at).chain(gone).min()
    }

    /// Whether a PUT was sent by then, with a note of that in it, which outlives crashes and power failures. It leaves
    /// without one where the disk refuses that.
    fn noted(&self, id: &str, by: u64) -> bool {
        let ledger = &self.world.ledger;
        let refused = |seen: &Seen| {
            ledger.failures.iter().any(|failure| {
                let whole = format!("{} {}", failure.what, failure.on);
                let its = whole.contains(id) || whole.contains(".staging");
                failure.process == seen.process && failure.at <= seen.at && its
            })
        };
        let put_back = ledger.deeds.iter().any(|deed| deed.id == id && deed.act == Act::Retry);
        let sent = self.of(id).iter().any(|seen| seen.at < by && !refused(seen));
        sent && !put_back && !ledger.planted.contains_key(id)
    }

    /// Writes that replace a PUT whole, with their ids.
    fn replacers<'f>(&'f self, of: &'f Attempt, id: &'f str) -> impl Iterator<Item = (&'f Attempt, &'f str)> {
        // What an earlier one has handed on, any later one may be based on, too.
        let first = self.known().filter(|(other, key)| other.uri == of.uri && *key <= id).count() == 1;
        let replaces = move |later: &Attempt| {
            let whole = match later.method.as_str() {
                "PUT" => true,
                // What was never made need not be removed, and must not be taken for somebody else's.
                "DELETE" => of.base != Base::Create || !first,
                _ => false,
            };
            let operated = later.resolved_mine + of.resolved_mine > 0;
            let based = later.base == of.base || later.base == Base::None || of.base == Base::None;
            let based = based || operated || !first;
            whole && later.uri == of.uri && based
        };
        self.known().filter(move |(later, key)| of.method == "PUT" && *key > id && replaces(later))
    }

    /// Writes with their ids: those that were acknowledged, and those that were sent although whoever queued them had died
    /// before.
    fn known(&self) -> impl Iterator<Item = (&Attempt, &str)> + Clone {
        let sent = self.writes.iter().filter_map(|(key, sent)| {
            let attempt = self.world.ledger.attempts.get(sent.first()?.mark?)?;
            Some((attempt, *key))
        });
        self.acknowledged().map(|(attempt, id, _)| (attempt, id)).chain(sent)
    }

    /// A write carries the precondition of one that it replaces, and that is not its own.
    pub(super) fn kept_base(&self, attempt: &Attempt, seen: &Seen) -> bool {
        let coalesces = self.plan.setting.mode == Mode::Coalesce && seen.conditions != conditions(attempt);
        let mut attempts = self.world.ledger.attempts.iter();
        coalesces
            && attempts.any(|earlier| {
                let put = earlier.number != attempt.number && earlier.method == "PUT";
                put && earlier.uri == attempt.uri && conditions(earlier) == seen.conditions
            })
    }
}

/// A POST or PATCH that may have arrived, and that no reply was had to, is not sent again unless an operator says so.
pub(super) fn ambiguous(facts: &Facts<'_>, wrong: &mut Vec<String>) {
    if facts.plan.setting.mode != Mode::Hold {
        return;
    }
    let ledger = &facts.world.ledger;
    for (id, sent) in &facts.writes {
        for (first, again) in sent.iter().zip(sent.iter().skip(1)) {
            let repeatable = !matches!(first.method.as_str(), "POST" | "PATCH");
            let known = repeatable || first.unconnected || first.answered.is_some();
            let mut deeds = ledger.deeds.iter().filter(|deed| deed.id == *id && deed.act == Act::Retry);
            let released =
                deeds.any(|deed| deed.begun < again.at && deed.done.is_none_or(|done| done > first.at));
            // Garbage in the place of what was noted tells nothing.
            if !known && !released && !ledger.planted.contains_key(*id) {
                wrong.push(format!("{} {id} may have been applied, and was sent again", first.method));
            }
        }
    }
}

/// What was left out had not been sent, and the next write that concerns it replaces it whole.
pub(super) fn left_out(facts: &Facts<'_>, wrong: &mut Vec<String>) {
    let ledger = &facts.world.ledger;
    for told in ledger.told.iter().filter(|told| told.outcome == Outcome::Superseded) {
        let Some((of, ..)) = facts.acknowledged().find(|(_, key, _)| *key == told.id) else { continue };
        let between = |replacer: &str| {
            facts.acknowledged().any(|(other, key, at)| {
                let concerns = facts.plan.setting.strict || related(&other.uri, &of.uri);
                let waits = at < told.at && facts.ended(key).is_none_or(|ended| ended > told.at);
                told.id.as_str() < key && key < replacer && concerns && waits
            })
        };
        if !facts.replacers(of, &told.id).any(|(_, later)| !between(later)) {
            wrong.push(format!("{} {} was left out, and nothing replaces it", of.method, told.id));
        }
        if facts.noted(&told.id, told.at) {
            wrong.push(format!("{} was left out after it had been sent", told.id));
        }
    }
}

/// Nothing is kept in rejected/ where that is not wanted.
pub(super) fn not_kept(facts: &Facts<'_>, wrong: &mut Vec<String>) {
    let rejected = facts.found.iter().filter(|entry| entry.place == Place::Rejected);
    for entry in rejected.filter(|_| facts.plan.setting.mode == Mode::Drop) {
        wrong.push(format!("{} was to be dropped", entry.name));
    }
}
