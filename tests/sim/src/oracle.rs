//! What must hold after every run, from the server's record, from what the clients were told and from the tree.
//! One function a property; `PROPERTIES` lists them. Those that can only be seen while something happens
//! (what a listing shows, that a call succeeds) are noted on the spot, in `act.rs`, `peer.rs` and `run.rs`.

mod modes;
mod versions;

use crate::ledger::{Act, Attempt, Base, Told};
use crate::peer::{AUTHORITY, Change, Seen};
use crate::plan::{Plan, Step, What};
use crate::view::{self, Found, Place};
use crate::world::{Op, World};
use std::collections::{BTreeMap, BTreeSet};

type Judge = fn(&Facts<'_>, &mut Vec<String>);

/// What must hold.
const PROPERTIES: [(&str, Judge); 22] = [
    ("an acknowledged write ends in one named place", ends),
    ("a write is there once", once),
    ("corrupt is only what was damaged", corrupt),
    ("what was set aside is kept with the reason", reasons),
    ("what was set aside was refused", refused),
    ("a lost reply never becomes a conflict", lost_replies),
    ("writes to one resource arrive in order", order),
    ("nothing is repeated after what was queued later", stragglers),
    ("what is done with is not sent again", repeats),
    ("an answer is heeded", heeded),
    ("an entry is sent once at a time", one_at_a_time),
    ("an outage costs one request a pass", outage),
    ("what was dropped is not sent", dropped),
    ("a request names its entry", names),
    ("a request carries its precondition", preconditions),
    ("nothing is sent elsewhere", elsewhere),
    ("no foreign version is overwritten", versions::foreign),
    ("our own chain never conflicts", versions::own),
    ("sends are bounded", versions::sends),
    ("what may have been applied waits for somebody", modes::ambiguous),
    ("what is left out is replaced whole", modes::left_out),
    ("what is to be dropped is not kept", modes::not_kept),
];

/// What a run left behind.
struct Facts<'a> {
    world: &'a World,
    plan: &'a Plan,
    /// Entries on disk.
    found: Vec<Found>,
    /// Writes that the server saw, by their key.
    writes: BTreeMap<&'a str, Vec<&'a Seen>>,
}

impl Facts<'_> {
    fn of(&self, id: &str) -> &[&Seen] {
        self.writes.get(id).map_or(&[], Vec::as_slice)
    }

    fn on_disk(&self, id: &str) -> impl Iterator<Item = &Found> {
        self.found.iter().filter(move |entry| entry.id == id)
    }

    /// The server has it, and said so, or is known to have it.
    fn delivered(&self, id: &str) -> bool {
        self.of(id).iter().any(|seen| seen.applied.is_some() || (seen.answered.is_some() && success(seen)))
            || self.found_done(id)
    }

    /// A write was refused with 412, and a question told that the resource is as was wanted: not there, empty, or what the
    /// same write had made of it under an earlier id. (No other contents are equal: each has its mark.)
    fn found_done(&self, id: &str) -> bool {
        let made = |again: &Seen| {
            let mut all = self.writes.values().flatten();
            all.any(|seen| seen.mark.is_some() && seen.mark == again.mark && seen.applied.is_some())
        };
        self.of(id).iter().filter(|seen| seen.status == Some(412)).any(|seen| {
            let attempt = seen.mark.and_then(|mark| self.world.ledger.attempts.get(mark));
            let wanted: &[u16] = match seen.method.as_str() {
                "DELETE" => &[404, 410],
                "PUT" if attempt.is_some_and(|attempt| attempt.body.is_empty()) || made(seen) => &[200],
                _ => &[],
            };
            let asked = |question: &Seen| {
                !question.is_write()
                    && question.at > seen.at
                    && question.uri == seen.uri
                    && question.answered.is_some()
                    && question.status.is_some_and(|status| wanted.contains(&status))
            };
            self.world.peer.seen.iter().any(asked)
        })
    }

    /// The question that was asked after a 412, and answered.
    fn question_after(&self, refusal: &Seen) -> Option<&Seen> {
        let refused = refusal.answered?;
        self.world.peer.seen.iter().find(|question| {
            let about = !question.is_write() && question.uri == refusal.uri;
            about
                && question.process == refusal.process
                && question.at > refused
                && question.answered.is_some()
        })
    }

    /// When an entry's way may have ended: the first event that says so.
    fn ended(&self, id: &str) -> Option<u64> {
        let answers = self.of(id).iter().filter(|seen| self.is_final(seen)).filter_map(|seen| seen.answered);
        let ledger = &self.world.ledger;
        let deeds = ledger.deeds.iter().filter(|deed| deed.id == id).map(|deed| deed.begun);
        answers.chain(deeds).chain(ledger.planted.get(id).copied()).chain(self.replaced(id)).min()
    }

    /// Whether a reply ends an entry's way, one way or the other.
    fn is_final(&self, seen: &Seen) -> bool {
        match seen.status {
            Some(401 | 403 | 407) => self.drops(seen),
            Some(408 | 423 | 425 | 429) | None => false,
            Some(status) => (200..300).contains(&status) || (400..500).contains(&status),
        }
    }

    fn acknowledged(&self) -> impl Iterator<Item = (&Attempt, &str, u64)> + Clone {
        self.world
            .ledger
            .attempts
            .iter()
            .flat_map(|attempt| attempt.acknowledged.iter().map(move |(id, at)| (attempt, id.as_str(), *at)))
    }
}

fn success(seen: &Seen) -> bool {
    match seen.status {
        Some(200..=299) => true,
        Some(404 | 410) => seen.method == "DELETE",
        _ => false,
    }
}

/// Judges a run: the properties that do not hold.
pub fn judge(world: &World, plan: &Plan) -> Vec<(&'static str, String)> {
    let mut writes: BTreeMap<&str, Vec<&Seen>> = BTreeMap::new();
    for seen in world.peer.seen.iter().filter(|seen| seen.is_write()) {
        writes.entry(seen.key.as_deref().unwrap_or_default()).or_default().push(seen);
    }
    let facts = Facts { world, plan, found: view::entries(&world.tree), writes };
    let mut wrong = Vec::new();
    for (property, judge) in PROPERTIES {
        let mut details = Vec::new();
        judge(&facts, &mut details);
        wrong.extend(details.into_iter().map(|detail| (property, detail)));
    }
    wrong
}

fn ends(facts: &Facts<'_>, wrong: &mut Vec<String>) {
    for (attempt, id, _) in facts.acknowledged() {
        let deed = |acts: &[Act]| {
            facts.world.ledger.deeds.iter().any(|deed| deed.id == id && acts.contains(&deed.act))
        };
        let elsewhere = || {
            let mark = Some(attempt.number);
            let stored = facts.found.iter().any(|entry| view::mark(&facts.world.tree, entry) == mark);
            let sent = facts
                .writes
                .values()
                .flatten()
                .any(|seen| seen.mark == mark && seen.key.as_deref() != Some(id));
            let dropped = attempt.acknowledged.iter().any(|(other, _)| other != id);
            // It died before it could tell the new id, and that was dropped.
            let told = |id: &str| facts.acknowledged().any(|(_, told, _)| told == id);
            let unknown =
                facts.world.ledger.deeds.iter().any(|deed| deed.act == Act::Drop && !told(&deed.id));
            stored || sent || dropped || unknown
        };
        let ended = facts.on_disk(id).next().is_some()
            || facts.delivered(id)
            || deed(&[Act::Drop, Act::Theirs])
            || (deed(&[Act::Mine]) && elsewhere())
            || facts.of(id).iter().any(|seen| seen.answered.is_some() && facts.drops(seen))
            || facts.replaced(id).is_some();
        if !ended {
            wrong.push(format!("{id} (attempt {}) was acknowledged and is nowhere", attempt.number));
        }
    }
}

fn once(facts: &Facts<'_>, wrong: &mut Vec<String>) {
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    let mut ids: BTreeMap<usize, BTreeSet<String>> = BTreeMap::new();
    for entry in &facts.found {
        *places.entry(&entry.id).or_default() += 1;
        if let Some(mark) = view::mark(&facts.world.tree, entry) {
            ids.entry(mark).or_default().insert(entry.id.clone());
        }
    }
    for (id, count) in places.into_iter().filter(|(_, count)| *count > 1) {
        wrong.push(format!("{id} is in {count} places"));
    }
    for seen in facts.world.peer.seen.iter() {
        if let (Some(mark), Some(key)) = (seen.mark, &seen.key) {
            ids.entry(mark).or_default().insert(key.clone());
        }
    }
    for attempt in &facts.world.ledger.attempts {
        let mut known = ids.remove(&attempt.number).unwrap_or_default();
        known.extend(attempt.acknowledged.iter().map(|(id, _)| id.clone()));
        if known.len() > 1 + attempt.resolved_mine {
            wrong.push(format!("attempt {} became {known:?}", attempt.number));
        }
    }
}

fn corrupt(facts: &Facts<'_>, wrong: &mut Vec<String>) {
    for entry in facts.found.iter().filter(|entry| entry.place == Place::Corrupt) {
        if !facts.world.ledger.planted.contains_key(&entry.id) {
            let reason = view::file(&facts.world.tree, entry, "reason.txt").unwrap_or_default();
            wrong.push(format!("{}: {}", entry.name, String::from_utf8_lossy(reason).trim()));
        }
    }
}

fn reasons(facts: &Facts<'_>, wrong: &mut Vec<String>) {
    for entry in &facts.found {
        let retried = facts.world.ledger.deeds.iter().any(|d| d.id == entry.id && d.act == Act::Retry);
        if retried || !matches!(entry.place, Place::Conflict | Place::Rejected) {
            continue;
        }
        let response = view::json(&facts.world.tree, entry, "response.json");
        let reason = response.as_ref().and_then(|r| r.get("reason")).and_then(|r| r.as_str());
        if reason.is_none_or(str::is_empty) {
            wrong.push(format!("{} has no reason in its response.json", entry.name));
        }
    }
}

fn refused(facts: &Facts<'_>, wrong: &mut Vec<String>) {
    for entry in &facts.found {
        let said = |wanted: &dyn Fn(u16) -> bool| {
            facts.of(&entry.id).iter().any(|seen| seen.answered.is_some() && seen.status.is_some_and(wanted))
        };
        let fine = match entry.place {
            Place::Conflict => said(&|status| status == 412),
            Place::Rejected => said(&|status| (400..500).contains(&status) && status != 412),
            Place::Pending | Place::Corrupt => true,
        };
        if !fine {
            wrong.push(format!("{} was set aside, and the server never said that", entry.name));
        }
    }
}

/// A PUT or DELETE that the server had carried out, and whose resource nobody has changed since, is no conflict: the
/// component asks before it calls it one. (Of other methods, nothing that can be asked tells.)
fn lost_replies(facts: &Facts<'_>, wrong: &mut Vec<String>) {
    for entry in facts.found.iter().filter(|entry| entry.place == Place::Conflict) {
        let sent = facts.of(&entry.id);
        let refused = |seen: &&&Seen| seen.status == Some(412) && seen.answered.is_some();
        let Some(refusal) = sent.iter().rfind(refused) else { continue };
        // A request that was given up may be carried out long after: what had not happened when the component asked,
        // no question can tell.
        let asked = facts.question_after(refusal).unwrap_or(refusal).at;
        let before = |seen: &&&Seen| seen.applied.is_some_and(|at| at < asked);
        let Some(done) = sent.iter().rfind(before) else { continue };
        if !matches!(done.method.as_str(), "PUT" | "DELETE") {
            continue;
        }
        // A server that refuses the question tells nothing, and one that answers any status may lie.
        let refused = |question: &Seen| {
            let status = question.answered.and(question.status).unwrap_or_default();
            let later = [401, 407, 408, 423, 425, 429].contains(&status);
            !question.is_write() && question.uri == done.uri && (400..500).contains(&status) && !later
        };
        if facts.world.peer.seen.iter().any(refused) {
            continue;
        }
        let path = done.uri.split('?').next().unwrap_or_default();
        let changed = |change: &Change| change.path == path && Some(change.at) > done.applied;
        if !facts.world.peer.changes.iter().any(changed) {
            wrong.push(format!("{} is a conflict with itself", entry.name));
        }
    }
}

/// Whether one path is the other, or above it. Those of the plans need no decoding for that.
fn related(a: &str, b: &str) -> bool {
    let path = |uri: &str| uri.split('?').next().unwrap_or_default().to_owned();
    let (a, b) = (path(a), path(b));
    a == b || a.starts_with(&format!("{b}/")) || b.starts_with(&format!("{a}/"))
}

/// An entry is not sent while an earlier one that concerns it has not ended.
fn order(facts: &Facts<'_>, wrong: &mut Vec<String>) {
    for (earlier, id, acknowledged) in facts.acknowledged() {
        let ended = facts.ended(id).unwrap_or(u64::MAX);
        for later in &facts.world.ledger.attempts {
            let concerns = facts.plan.setting.strict || related(&earlier.uri, &later.uri);
            if later.number == earlier.number || later.begun < acknowledged || !concerns {
                continue;
            }
            let sent =
                facts.writes.values().flatten().find(|seen| {
                    seen.mark == Some(later.number) && seen.at < ended && seen.at > acknowledged
                });
            if let Some(seen) = sent {
                wrong.push(format!(
                    "{} {} (attempt {}) was sent while {id}, {} {} (attempt {}), waited",
                    seen.method, seen.uri, later.number, earlier.method, earlier.uri, earlier.number
                ));
            }
        }
    }
}

/// Once a later write to a resource was sent, an earlier one is not sent again: it has durably left the queue by then. Not
/// held against it: a disk that refuses to make that durable, an operator, two who replay while a clock jumps.
fn stragglers(facts: &Facts<'_>, wrong: &mut Vec<String>) {
    let ledger = &facts.world.ledger;
    if facts.plan.setting.lease && facts.plan.steps.iter().any(jumps) {
        return;
    }
    let refused = ledger.failures.iter().find(|failure| failure.op == Op::Sync && failure.on == view::QUEUE);
    let refused = refused.map_or(u64::MAX, |failure| failure.at);
    for (earlier, id, acknowledged) in facts.acknowledged() {
        let Some(last) = facts.of(id).last().map(|seen| seen.at).filter(|at| *at < refused) else { continue };
        let operated = ledger.deeds.iter().any(|deed| deed.id == id);
        let overtakes = |seen: &&Seen| {
            let later = seen.mark.and_then(|mark| ledger.attempts.get(mark));
            let concerns = |later: &Attempt| later.begun > acknowledged && related(&earlier.uri, &later.uri);
            seen.at < last && seen.key.as_deref() > Some(id) && later.is_some_and(concerns)
        };
        let overtaking = facts.writes.values().flatten().copied().find(overtakes);
        if let Some(seen) = overtaking.filter(|_| !operated && !ledger.planted.contains_key(id)) {
            wrong.push(format!("{} {id} was sent after {} {:?}", earlier.method, seen.method, seen.key));
        }
    }
}

/// A clock jumps in this step.
fn jumps(step: &Step) -> bool {
    matches!(step.what, What::Jump(_) | What::Suspend(_) | What::Calls { jump: Some(_), .. })
}

/// What a pass reported as delivered or set aside, and made durable, is not sent again, unless an operator says so.
fn repeats(facts: &Facts<'_>, wrong: &mut Vec<String>) {
    use crate::bindings::exports::zddc::outbox::replayer::Outcome::*;
    let ledger = &facts.world.ledger;
    let done = |told: &&Told| matches!(told.outcome, Delivered | Conflict | Rejected | Dropped | Superseded);
    for told in ledger.told.iter().filter(done) {
        let Some(sealed) = told.sealed else { continue };
        let retried = |at: u64| {
            let mut deeds = ledger.deeds.iter().filter(|deed| deed.id == told.id && deed.act == Act::Retry);
            deeds.any(|deed| deed.begun < at)
        };
        if facts.of(&told.id).iter().any(|seen| seen.at > sealed && !retried(seen.at)) {
            wrong.push(format!("{} was {:?}, durably, and sent again", told.id, told.outcome));
        }
    }
}

/// After the client had a success, the entry is sent again only where something went wrong in between.
fn heeded(facts: &Facts<'_>, wrong: &mut Vec<String>) {
    let ledger = &facts.world.ledger;
    for (id, sent) in &facts.writes {
        for first in sent.iter().filter(|seen| success(seen)) {
            let Some(answered) = first.answered else { continue };
            for again in sent.iter().filter(|seen| seen.at > answered) {
                let between = |at: &u64| (first.at..again.at).contains(at);
                if !ledger.disturbances.iter().any(between) {
                    wrong.push(format!("{id} was answered {:?}, and sent again for no reason", first.status));
                }
            }
        }
    }
}

/// No two requests of an entry are open at the same time, also where two processes replay, unless a clock that
/// jumps makes one outlive its lease.
fn one_at_a_time(facts: &Facts<'_>, wrong: &mut Vec<String>) {
    if facts.plan.setting.lease && facts.plan.steps.iter().any(jumps) {
        return;
    }
    for (id, sent) in &facts.writes {
        for (first, second) in sent.iter().zip(sent.iter().skip(1)) {
            if first.closed.is_none_or(|closed| closed > second.at) {
                wrong.push(format!("{id} was sent by {} and by {} at once", first.process, second.process));
            }
        }
    }
}

/// The first request of a pass goes alone; when it gets no answer, no other follows, unless that write was tried in vain
/// often before, which says little about the upstream. After three of those, none does.
fn outage(facts: &Facts<'_>, wrong: &mut Vec<String>) {
    for (process, begun, ended) in &facts.world.ledger.passes {
        let during = |seen: &&Seen| seen.process == *process && (*begun..*ended).contains(&seen.at);
        let requests: Vec<&Seen> = facts.world.peer.seen.iter().filter(during).collect();
        for (passed_over, pair) in requests.windows(2).enumerate() {
            let (first, second) = (pair[0], pair[1]);
            let tried = || {
                let before = facts.world.peer.seen.iter().filter(|seen| seen.at <= first.at);
                before.filter(|seen| seen.key == first.key).count()
            };
            if first.failed && passed_over < 3 && tried() >= 3 {
                continue;
            }
            // One that neither failed nor was answered was the client's own doing: the body turned out to be damaged, or
            // could not be read.
            if first.failed || first.answered.is_some_and(|at| at > second.at) {
                wrong.push(format!(
                    "{} {} followed {} {}, which had no answer yet",
                    second.method, second.uri, first.method, first.uri
                ));
            }
            break;
        }
    }
}

/// What an operator has removed is not sent after the step in which that was acknowledged.
fn dropped(facts: &Facts<'_>, wrong: &mut Vec<String>) {
    let ledger = &facts.world.ledger;
    for deed in ledger.deeds.iter().filter(|deed| matches!(deed.act, Act::Drop | Act::Theirs)) {
        let Some(done) = deed.done else { continue };
        let quiet = ledger.quiet.iter().copied().find(|at| *at > done).unwrap_or(u64::MAX);
        if facts.of(&deed.id).iter().any(|seen| seen.at > quiet) {
            wrong.push(format!("{} was dropped, and sent later", deed.id));
        }
    }
}

fn names(facts: &Facts<'_>, wrong: &mut Vec<String>) {
    for seen in facts.world.peer.seen.iter().filter(|seen| seen.is_write()) {
        let known = seen.key.as_deref().is_some_and(view::is_id) && seen.mark.is_some();
        if !known {
            wrong.push(format!("{} {} has Idempotency-Key {:?}", seen.method, seen.uri, seen.key));
        }
    }
}

/// The precondition that a write was queued with.
fn conditions(attempt: &Attempt) -> Vec<(String, String)> {
    match &attempt.base {
        Base::None => Vec::new(),
        Base::Create => vec![("if-none-match".to_owned(), "*".to_owned())],
        Base::Etag(tag) => vec![("if-match".to_owned(), tag.clone())],
        Base::Time(_, date) => vec![("if-unmodified-since".to_owned(), date.clone())],
    }
}

/// The base that a write was queued with; or a newer version that the server itself has named to us; or, after an
/// earlier write of ours to the same resource, what that has left: a version named, nothing, or one unnamed.
fn preconditions(facts: &Facts<'_>, wrong: &mut Vec<String>) {
    let all = &facts.world.peer.seen;
    let path = |seen: &Seen| seen.uri.split('?').next().unwrap_or_default().to_owned();
    for seen in all.iter().filter(|seen| seen.is_write()) {
        let Some(attempt) = seen.mark.and_then(|mark| facts.world.ledger.attempts.get(mark)) else {
            continue;
        };
        let own = conditions(attempt);
        let continues = all.iter().any(|earlier| {
            let ours = earlier.is_write() && earlier.key != seen.key && earlier.at < seen.at;
            let known = earlier.applied.is_some()
                || (earlier.answered.is_some() && success(earlier))
                || earlier.key.as_deref().is_some_and(|key| facts.found_done(key));
            ours && known && path(earlier) == path(seen)
        });
        let named = |value: &String| {
            let before = |s: &&Seen| s.at < seen.at && s.answered.is_some();
            all.iter().filter(before).any(|s| s.validators.contains(value))
        };
        let rebased = match seen.conditions.as_slice() {
            [] => continues,
            // Or an operator has put it on top of what the server has now, which is nothing.
            [(name, value)] if name == "if-none-match" && value == "*" => {
                continues || attempt.resolved_mine > 0
            }
            conditions => conditions.iter().all(|(_, value)| named(value)),
        };
        if seen.conditions != own && !rebased && !facts.kept_base(attempt, seen) {
            wrong.push(format!(
                "{} {} came with {:?} instead of {own:?}",
                seen.method, seen.uri, seen.conditions
            ));
        }
    }
}

fn elsewhere(facts: &Facts<'_>, wrong: &mut Vec<String>) {
    for seen in facts.world.peer.seen.iter().filter(|seen| seen.authority != AUTHORITY) {
        wrong.push(format!("{} {} went to {}", seen.method, seen.uri, seen.authority));
    }
}
