//! Questions to the server: what is there now? They write nothing, and cost one request an entry.
//!
//! A 412 is first a question. The write may have been applied before, and only the reply was lost: so the server
//! is asked what it has now, and if that is what we sent, the write is delivered. And where a reply names no
//! version that the next edit needs, the server is asked for it. The content is compared while it streams and is
//! never stored.

use super::Pass;
use super::settle::{Doing, Settled, Step};
use crate::bindings::exports::zddc::outbox::replayer::Outcome;
use crate::entry::Entry;
use crate::exchange::{Content, Draft, Exchange, Reply, Request};
use crate::failure::Failure;
use crate::headers;
use crate::outcome::{Verdict, verdict};
use crate::precondition::Validator;
use crate::response::Current;
use crate::state::State;
use crate::unloadable::Unloadable;

/// Why a question could not be asked, and what it was about.
pub(super) const UNASKED: &str = "412, and whether that was us could not be asked";
const UNLEARNT: &str = "it was taken, but which version that made could not be asked";

impl Pass {
    /// Sends a question.
    pub(super) fn question(
        &self,
        entry: &Entry,
        method: &str,
        compare: Option<Content>,
    ) -> Result<Exchange, Failure> {
        let request = Request {
            method,
            raw_uri: &entry.meta.raw_uri,
            headers: headers::question(entry),
            body: None,
            compare,
        };
        Draft::new(&self.upstream, request, self.timeouts())?.send()
    }

    /// Asks which version a write has made that the server took, if the next edit needs to know.
    pub(super) fn learn(&mut self, entry: &Entry, status: u16, detail: Option<String>) -> Step {
        if !self.is_continued(entry) {
            return self.remove(entry, Outcome::Delivered, detail).into();
        }
        let doing = Doing::Learning(status);
        if entry.meta.method != "PUT" {
            // It was taken: whatever becomes of the question, it is not written again. (A PUT may be.)
            if entry.state.taken.is_none() {
                let state = State { taken: Some(status), in_flight: false, ..entry.state.clone() };
                let _ = self.queue.save_state_durably(entry.id, &state);
            }
            return Step::Ask(doing, "HEAD", None);
        }
        // Somebody else may have been faster than a HEAD: only the content proves that the version is ours.
        match self.queue.content(entry) {
            Ok(content) => Step::Ask(doing, "GET", Some(content)),
            // Then nothing can be compared: the next edit keeps its base, and the server decides.
            Err(_) => {
                let detail = "which version that made is not known: body.bin cannot be read".to_owned();
                self.remove(entry, Outcome::Delivered, Some(detail)).into()
            }
        }
    }

    /// The answer to what a write has made.
    pub(super) fn learned(&mut self, entry: &Entry, answer: Result<Reply, Failure>) -> Settled {
        let put = entry.meta.method == "PUT";
        match answer {
            Ok(reply) if let Some(why) = self.portal(&reply) => {
                self.backed_off(entry, format!("{UNLEARNT}: {why}"), &reply)
            }
            Ok(reply) if reply.same || (!put && (200..300).contains(&reply.status)) => {
                self.delivered(entry, &Validator::of(&reply), Some(&reply), None)
            }
            // Not ours any more, or not as we sent it: the next edit keeps its base, and the server decides.
            Ok(reply) if put && matches!(reply.status, 200..=299 | 404 | 410) => {
                let detail = "what the server has now is not what was sent".to_owned();
                self.remove(entry, Outcome::Delivered, Some(detail))
            }
            Ok(Reply { status: 404 | 410, .. }) => self.delivered(entry, &Validator::Absent, None, None),
            // Asked again later, and nothing is written again: state.json says that it was taken.
            Ok(reply) => match verdict("GET", reply.status) {
                Verdict::Held if reply.status != 403 => self.held(entry, reply.status, UNLEARNT),
                // It is kept elsewhere, where nobody goes on the word of a reply: asked for ever, its path would be stuck.
                Verdict::Deferred if (300..400).contains(&reply.status) && self.is_suspect(entry) => {
                    let detail = format!("{UNLEARNT}: the server answered {}", reply.status);
                    self.remove(entry, Outcome::Delivered, Some(detail))
                }
                Verdict::Deferred => {
                    let why = format!("{UNLEARNT}: the server answered {}", reply.status);
                    self.backed_off(entry, why, &reply)
                }
                _ => self.delivered(entry, &Validator::Unknown, None, None),
            },
            Err(failure) => self.failed(entry, failure.after(UNLEARNT)),
        }
    }

    /// 412: asks what the resource is now, where the answer can tell something.
    pub(super) fn ask(&mut self, entry: &Entry, refusal: Reply) -> Step {
        match entry.meta.method.as_str() {
            "PUT" => match self.queue.content(entry) {
                Ok(content) => Step::Ask(Doing::Asking(refusal), "GET", Some(content)),
                Err(Unloadable::Damaged(reason)) => self.failed(entry, Failure::Damaged(reason)).into(),
                Err(_) => {
                    let why = "412, and body.bin cannot be read for the question whether that was us";
                    self.deferred(entry, Outcome::Deferred, why.into(), None).into()
                }
            },
            "PATCH" | "DELETE" => Step::Ask(Doing::Asking(refusal), "GET", None),
            _ => self.conflict(entry, &refusal, &Current::Unasked).into(),
        }
    }

    /// The answer to what the resource is, after 412.
    pub(super) fn explained(&mut self, entry: &Entry, refusal: &Reply, now: &Reply) -> Step {
        let already = || Some("already-applied: the server has just this".to_owned());
        let status = now.status;
        if let Some(why) = self.portal(now) {
            return self.backed_off(entry, format!("{UNASKED}: {why}"), now).into();
        }
        match (entry.meta.method.as_str(), status) {
            ("DELETE", 404 | 410) => self.delivered(entry, &Validator::Absent, None, already()).into(),
            (_, 404 | 410) => self.conflict(entry, refusal, &Current::Absent(now)).into(),
            (_, 200..=299) if now.same => {
                self.delivered(entry, &Validator::of(now), Some(now), already()).into()
            }
            (_, 200..=299) => self.conflict(entry, refusal, &Current::Version(now)).into(),
            _ => match verdict("GET", status) {
                Verdict::Held if status != 403 => self.held(entry, status, UNASKED).into(),
                Verdict::Deferred => {
                    let why = format!("{UNASKED}: the server answered {status}");
                    self.backed_off(entry, why, now).into()
                }
                _ => self.conflict(entry, refusal, &Current::Untold(status)).into(),
            },
        }
    }
}
