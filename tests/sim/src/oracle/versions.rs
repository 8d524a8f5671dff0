//! What must hold of versions: whose is replaced, who conflicts with whom; and of how often a write is sent.

use super::{Facts, jumps};
use crate::bindings::exports::zddc::outbox::replayer::Outcome;
use crate::ledger::{Act, Attempt, Base, Told};
use crate::peer::{Change, Seen};
use crate::view::Place;
use crate::world::Op;
use std::collections::BTreeSet;

fn path(uri: &str) -> &str {
    uri.split('?').next().unwrap_or_default()
}

impl Facts<'_> {
    fn attempt(&self, seen: &Seen) -> Option<&Attempt> {
        seen.mark.and_then(|mark| self.world.ledger.attempts.get(mark))
    }

    /// An operator has done this to an entry that came of an attempt.
    fn operated(&self, attempt: &Attempt, acts: &[Act]) -> bool {
        let ids: BTreeSet<&str> = attempt
            .acknowledged
            .iter()
            .map(|(id, _)| id.as_str())
            .chain(
                self.writes
                    .values()
                    .flatten()
                    .filter(|s| s.mark == Some(attempt.number))
                    .filter_map(|s| s.key.as_deref()),
            )
            .collect();
        self.world.ledger.deeds.iter().any(|deed| acts.contains(&deed.act) && ids.contains(deed.id.as_str()))
    }

    /// Questions that were answered: about a path, before an event.
    fn questions<'f>(&'f self, about: &'f str, before: u64) -> impl Iterator<Item = &'f Seen> {
        let all = self.world.peer.seen.iter();
        all.filter(move |q| {
            !q.is_write() && path(&q.uri) == about && q.answered.is_some_and(|at| at < before)
        })
    }
}

/// A write with a base never replaces a version that somebody else made and that is newer than this base. (A write
/// without one may, and so may one that an operator put on top of what is there.)
pub(super) fn foreign(facts: &Facts<'_>, wrong: &mut Vec<String>) {
    let peer = &facts.world.peer;
    for (place, change) in peer.changes.iter().enumerate() {
        let Some(write) = change.by.and_then(|by| peer.seen.get(by)) else { continue };
        let Some(attempt) = facts.attempt(write) else { continue };
        let replaced = peer.changes[..place].iter().rfind(|before| before.path == change.path);
        let Some(replaced) = replaced.filter(|before| before.by.is_none() && before.exists) else { continue };
        let known = matches!(&attempt.base, Base::Etag(tag) if Some(tag) == replaced.etag.as_ref());
        let exempt = known
            || attempt.base == Base::None
            || !peer.is_strong(&change.path)
            || facts.operated(attempt, &[Act::Mine, Act::Retry])
            || unnamed(facts, write)
            || taken_for_ours(facts, write, replaced)
            || facts.kept_base(attempt, write);
        if !exempt {
            wrong.push(format!(
                "{} {} (attempt {}, {:?}, sent with {:?}) replaced {:?} of somebody else",
                write.method, write.uri, attempt.number, attempt.base, write.conditions, replaced.etag
            ));
        }
    }
}

/// A write went without a precondition, since the server had named no version when it was asked, or had refused the
/// question.
fn unnamed(facts: &Facts<'_>, write: &Seen) -> bool {
    let silent =
        |q: &Seen| q.validators.is_empty() && !q.cut && q.status.is_some_and(|s| (200..500).contains(&s));
    write.conditions.is_empty() && facts.questions(path(&write.uri), write.at).any(silent)
}

/// After a method other than PUT, what HEAD shows is taken for ours, also if it came in between.
fn taken_for_ours(facts: &Facts<'_>, write: &Seen, replaced: &Change) -> bool {
    let shown = facts.questions(&replaced.path, write.at).any(|q| {
        q.method == "HEAD"
            && q.at > replaced.at
            && q.validators.iter().any(|v| Some(v) == replaced.etag.as_ref())
    });
    let earlier = |s: &&Seen| s.is_write() && s.method != "PUT" && s.uri == write.uri && s.key != write.key;
    shown
        && facts.world.peer.seen.iter().filter(earlier).any(|s| s.applied.is_some_and(|at| at < replaced.at))
}

/// An edit whose base was there when it was queued, and whose resource was since changed only by edits queued before
/// it with the same base or with none, or after it with the same base, is no conflict.
pub(super) fn own(facts: &Facts<'_>, wrong: &mut Vec<String>) {
    let (ledger, peer) = (&facts.world.ledger, &facts.world.peer);
    let told =
        ledger.told.iter().filter(|told| told.outcome == Outcome::Conflict).map(|told| told.id.as_str());
    let found =
        facts.found.iter().filter(|entry| entry.place == Place::Conflict).map(|entry| entry.id.as_str());
    let conflicts: BTreeSet<&str> = told.chain(found).collect();
    for (attempt, id, acknowledged) in facts.acknowledged().filter(|(_, id, _)| conflicts.contains(id)) {
        let about = path(&attempt.uri);
        let Some(refused) = facts.of(id).iter().rfind(|s| s.status == Some(412)) else { continue };
        // Nor does one that was left out though a disk had refused the note that it was sent: docs/semantics.md.
        let mut others = facts.acknowledged().filter(|(other, key, _)| other.uri == attempt.uri && *key < id);
        let unnoted = others
            .any(|(_, key, _)| facts.of(key).iter().any(|seen| seen.whole) && facts.replaced(key).is_some());
        if facts.kept_base(attempt, refused) || unnoted {
            continue;
        }
        let last = refused.answered.unwrap_or(refused.at);
        // The question that follows may be refused whatever it is, too.
        let judged = facts.question_after(refused).and_then(|question| question.answered).unwrap_or(last);
        let then = peer.changes.iter().rfind(|change| change.path == about && change.at < attempt.begun);
        let based = match &attempt.base {
            Base::None | Base::Time(..) => false,
            Base::Create => then.is_none_or(|change| !change.exists),
            Base::Etag(tag) => then.is_some_and(|change| change.etag.as_ref() == Some(tag)),
        };
        if !based || !peer.is_strong(about) || disturbed(facts, attempt, judged) {
            continue;
        }
        let since = peer.changes.iter().filter(|c| c.path == about && c.at > attempt.begun && c.at < last);
        let mut failures = ledger.failures.iter();
        let unsynced = failures.any(|f| f.op == Op::Sync && f.on == ".zddc-outbox" && f.at < last);
        let fine = |change: &Change| {
            let Some(write) = change.by.and_then(|by| peer.seen.get(by)) else { return false };
            let Some(other) = facts.attempt(write) else { return false };
            let repeatable = matches!(write.method.as_str(), "PUT" | "DELETE");
            let itself = other.number == attempt.number;
            let before = write.key.as_deref() < Some(id)
                && write.at > acknowledged
                && (other.base == attempt.base || other.base == Base::None);
            // Of other methods, a lost reply is a conflict.
            let told = repeatable || !repeated(facts, write);
            // Such a one is sent only once this one has durably left the queue, unless the disk refuses that, and this
            // one never again.
            let after = !unsynced && write.key.as_deref() > Some(id) && other.begun > acknowledged;
            other.uri == attempt.uri
                && (itself || before || after)
                && told
                && !straggled(facts, write, change)
        };
        if since.clone().all(fine) && !cut_off(facts, attempt, id, refused) {
            let since: Vec<_> = since.map(|change| change.by).collect();
            wrong.push(format!(
                "{id} (attempt {}, {:?}) conflicts, and only requests {since:?} changed {about}",
                attempt.number, attempt.base
            ));
        }
    }
}

/// What this edit was to inherit could not be put down in it, and then nobody knew it any more, which docs/semantics.md
/// grants: while the edit before it was delivered, a file of this one (or of one between them) could not be read or
/// written, or the queue could not be looked through for it; and before it was sent, the process that had the version in
/// memory ended. A failure of any other file, before or after, excuses nothing, nor does one whose process lives on.
fn cut_off(facts: &Facts<'_>, attempt: &Attempt, id: &str, refused: &Seen) -> bool {
    let (ledger, peer) = (&facts.world.ledger, &facts.world.peer);
    let about = path(&attempt.uri);
    let earlier = peer.changes.iter().filter(|change| change.path == about && change.at < refused.at);
    let mut writes = earlier.filter_map(|change| peer.seen.get(change.by?)?.key.as_deref());
    let Some(before) = writes.rfind(|key| *key < id) else { return false };
    let Some(last) = facts.of(before).iter().rfind(|seen| seen.answered.is_some()) else { return false };
    let forgets = ledger.deaths.iter().filter(|(process, _)| *process == last.process).map(|(_, at)| *at);
    let forgets = forgets.chain(ledger.power_failures.iter().copied()).chain([ledger.finale]);
    let forgotten = forgets.filter(|at| (last.at..refused.at).contains(at)).min();
    let Some(forgotten) = forgotten else { return false };
    // Entries are read some way ahead: from the beginning of that pass on.
    let begun = ledger.quiet.iter().copied().filter(|at| *at < last.at).max().unwrap_or(0);
    // What was put off then was asked about later.
    let stays = [Outcome::Deferred, Outcome::Held, Outcome::Ambiguous];
    let gone = |told: &&Told| told.id == before && told.at > last.at && !stays.contains(&told.outcome);
    let left = ledger.told.iter().find(gone).map_or(forgotten, |told| told.at);
    let between: Vec<(&str, u64)> = facts
        .acknowledged()
        .filter(|(other, key, _)| other.uri == attempt.uri && (before..=id).contains(key) && *key != before)
        .map(|(_, key, at)| (key, at))
        .collect();
    // Only what was queued meanwhile is looked for.
    let new = between.iter().any(|(_, at)| *at > begun);
    ledger.failures.iter().any(|failure| {
        let whole = format!("{} {}", failure.what, failure.on);
        let its = between.iter().any(|(key, _)| whole.contains(key));
        let search = (failure.op == Op::List && failure.on == ".zddc-outbox") || whole.contains(".newest");
        failure.process == last.process && (begun..left).contains(&failure.at) && (its || (new && search))
    })
}

/// A request that was given up was carried out after its repeat had been answered: nobody can know of that version.
fn straggled(facts: &Facts<'_>, write: &Seen, change: &Change) -> bool {
    let given_up = write.answered.is_none() && write.closed.is_some_and(|at| at < change.at);
    let repeats = write.key.as_deref().map_or(&[][..], |key| facts.of(key));
    let answered = |again: &&Seen| again.at > write.at && again.answered.is_some_and(|at| at < change.at);
    given_up && repeats.iter().any(answered)
}

/// A write that was applied was sent again.
fn repeated(facts: &Facts<'_>, write: &Seen) -> bool {
    write.key.as_deref().is_some_and(|key| facts.of(key).iter().any(|again| again.at > write.at))
}

/// Something befell an edit or one of the same resource that no chain can bear: damage, an operator, a server that
/// refuses a write or a question whatever it is.
fn disturbed(facts: &Facts<'_>, attempt: &Attempt, until: u64) -> bool {
    let ledger = &facts.world.ledger;
    let mut chain = ledger.attempts.iter().filter(|other| other.uri == attempt.uri);
    let befell = |other: &Attempt| {
        let mut ids = other.acknowledged.iter().map(|(id, _)| id);
        ids.any(|id| ledger.planted.contains_key(id))
            || facts.operated(other, &[Act::Drop, Act::Theirs, Act::Mine, Act::Retry])
    };
    let refused = |seen: &Seen| {
        let later: &[u16] = if facts.drops(seen) {
            &[]
        } else if seen.is_write() {
            &[401, 403, 407, 408, 423, 425, 429]
        } else {
            &[401, 407, 408, 423, 425, 429]
        };
        let about = seen.uri == attempt.uri && seen.at < until && seen.moody && seen.answered.is_some();
        about && seen.status.is_some_and(|status| (400..500).contains(&status) && !later.contains(&status))
    };
    chain.any(befell) || facts.world.peer.seen.iter().any(refused)
}

/// An entry's write is sent once, and once more for each reply that was lost or settled nothing, for each death and
/// failure of the file system, and for each time that an operator put it back.
pub(super) fn sends(facts: &Facts<'_>, wrong: &mut Vec<String>) {
    let ledger = &facts.world.ledger;
    // A lease that a clock ends takes the answers with it.
    if facts.plan.setting.lease && facts.plan.steps.iter().any(jumps) {
        return;
    }
    for (id, sent) in &facts.writes {
        let settled: Vec<&&Seen> =
            sent.iter().filter(|seen| seen.answered.is_some() && facts.is_final(seen)).collect();
        let (Some(first), Some(last)) = (settled.first(), sent.last()) else { continue };
        let during = |at: u64| (first.at..=last.at).contains(&at);
        let disturbances = ledger.disturbances.iter().filter(|at| during(**at)).count();
        let retries =
            ledger.deeds.iter().filter(|d| d.id == *id && d.act == Act::Retry && d.begun <= last.at).count();
        // After a 412, the question may be what was lost, or deferred.
        let unclear = |q: &&Seen| {
            !q.is_write()
                && q.uri == first.uri
                && during(q.at)
                && (q.cut || q.answered.is_none() || !facts.is_final(q))
        };
        let questions = facts.world.peer.seen.iter().filter(unclear).count();
        let refused = settled.iter().filter(|seen| seen.status == Some(412)).count();
        let may = 1 + disturbances + retries + questions.min(refused);
        // What came after the last that settled something is lost, or settled nothing.
        if settled.len() > may {
            wrong.push(format!(
                "{id} was sent {} times and answered for good {} times; {disturbances} disturbances, {retries} \
                 retries, {questions} unclear questions",
                sent.len(),
                settled.len()
            ));
        }
    }
}
