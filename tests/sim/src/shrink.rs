//! A smaller plan that fails the same way. Steps are taken out, first many at once, then what is left is
//! simplified; whatever still breaks the same property is kept.

use crate::guest::Guest;
use crate::mood::Mood;
use crate::plan::{BaseWish, Call, Does, Plan, What, Write};
use crate::run::run;

/// Runs that shrinking may cost.
const PATIENCE: usize = 1500;

/// Shrinks a plan that breaks `property`.
pub fn shrink(guest: &Guest, plan: &Plan, property: &str) -> Plan {
    let mut shrinker = Shrinker { guest, property, left: PATIENCE, best: plan.clone() };
    while shrinker.left > 0 {
        let before = size(&shrinker.best);
        shrinker.take_steps_out();
        shrinker.simplify();
        if size(&shrinker.best) >= before {
            break;
        }
    }
    shrinker.best
}

/// How much there is to read in a plan.
fn size(plan: &Plan) -> usize {
    format!("{plan:?}").len()
}

struct Shrinker<'a> {
    guest: &'a Guest,
    property: &'a str,
    left: usize,
    best: Plan,
}

impl Shrinker<'_> {
    /// Whether a plan fails the same way; the best is replaced if so.
    fn try_plan(&mut self, plan: Plan) -> bool {
        if self.left == 0 || size(&plan) >= size(&self.best) {
            return false;
        }
        self.left -= 1;
        let same = run(self.guest, &plan, false).violations.iter().any(|(p, _)| *p == self.property);
        if same {
            self.best = plan;
        }
        same
    }

    fn take_steps_out(&mut self) {
        let mut width = self.best.steps.len();
        while width > 0 {
            let mut from = 0;
            while from < self.best.steps.len() {
                let mut plan = self.best.clone();
                let to = (from + width).min(plan.steps.len());
                plan.steps.drain(from..to);
                if !self.try_plan(plan) {
                    from += width;
                }
            }
            width /= 2;
        }
    }

    fn simplify(&mut self) {
        let edit = |this: &mut Self, change: &dyn Fn(&mut Plan)| {
            let mut plan = this.best.clone();
            change(&mut plan);
            this.try_plan(plan);
        };
        edit(self, &|plan| plan.lights_out = None);
        edit(self, &|plan| plan.setting.strict = false);
        edit(self, &|plan| plan.setting.prefix = false);
        for step in 0..self.best.steps.len() {
            edit(self, &|plan| {
                if let What::Calls { crash, .. } = &mut plan.steps[step].what {
                    *crash = None;
                }
            });
            edit(self, &|plan| {
                if let What::Calls { faults, .. } = &mut plan.steps[step].what {
                    *faults = None;
                }
            });
            edit(self, &|plan| {
                if let What::Calls { jump, .. } = &mut plan.steps[step].what {
                    *jump = None;
                }
            });
            edit(self, &|plan| {
                if let What::Mood(mood) = &mut plan.steps[step].what {
                    *mood = Mood { percent: 100, ..*mood };
                }
            });
            let count = |plan: &Plan| match &plan.steps[step].what {
                What::Calls { calls, .. } => calls.len(),
                _ => 0,
            };
            for call in (0..count(&self.best)).rev() {
                edit(self, &|plan| take_call_out(&mut plan.steps[step].what, call));
            }
            for call in 0..count(&self.best) {
                for change in [shorter, plainer, at_hand, fewer] {
                    edit(self, &|plan| {
                        if let What::Calls { calls, .. } = &mut plan.steps[step].what {
                            change(&mut calls[call]);
                        }
                    });
                }
            }
        }
    }
}

fn take_call_out(what: &mut What, call: usize) {
    let What::Calls { calls, crash, .. } = what else { return };
    if calls.len() < 2 {
        return;
    }
    calls.remove(call);
    match crash {
        Some(dying) if dying.victim == call => *crash = None,
        Some(dying) if dying.victim > call => dying.victim -= 1,
        _ => {}
    }
}

fn shorter(call: &mut Call) {
    for write in writes(call) {
        write.len = write.len.min(9);
    }
}

fn plainer(call: &mut Call) {
    for write in writes(call) {
        write.base = BaseWish::None;
        write.method = "PUT";
    }
}

fn at_hand(call: &mut Call) {
    for write in writes(call) {
        write.stream = None;
    }
}

fn writes(call: &mut Call) -> &mut [Write] {
    match &mut call.does {
        Does::Enqueue(write) => std::slice::from_mut(write),
        Does::Batch(writes) | Does::BatchAtOnce(writes) => writes,
        _ => &mut [],
    }
}

/// A batch without its last write.
fn fewer(call: &mut Call) {
    if let Does::Batch(writes) | Does::BatchAtOnce(writes) = &mut call.does
        && writes.len() > 1
    {
        writes.pop();
    }
}
