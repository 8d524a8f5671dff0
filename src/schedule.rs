//! Which entry may be sent now. Entries come in queue order; one waits for every earlier one that concerns the
//! same resource ([`crate::key`]) and is still in the queue, be it in flight, waiting itself, or stuck: tried
//! in vain or not yet due. Independent ones go ahead.

use crate::key::{Key, Keys};
use std::collections::VecDeque;

/// Entries that may wait at once for others in flight. When so many do, nothing further is looked at: memory
/// stays bounded, and a queue of edits of one file need not be read to its end to send the first.
const WINDOW: usize = 256;

/// An entry's place in the line: what it concerns, and how many were offered before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    key: Key,
    number: u64,
}

/// What becomes of an entry that is offered.
#[derive(Debug, PartialEq, Eq)]
pub enum Offered<T> {
    /// It may be sent now.
    Go(Turn, T),
    /// It waits for [`Schedule::ready`].
    Waits,
    /// An earlier one is stuck: not in this pass.
    Stuck,
}

/// The entries under consideration.
pub struct Schedule<T> {
    offered: u64,
    in_flight: Keys,
    waiting: VecDeque<(Turn, T)>,
    waiting_keys: Keys,
    stuck: Keys,
}

impl<T> Default for Schedule<T> {
    fn default() -> Self {
        Schedule {
            offered: 0,
            in_flight: Keys::default(),
            waiting: VecDeque::new(),
            waiting_keys: Keys::default(),
            stuck: Keys::default(),
        }
    }
}

impl<T> Schedule<T> {
    /// Takes the next entry in queue order and hands it back if it may be sent at once.
    pub fn offer(&mut self, key: Key, entry: T) -> Offered<T> {
        let turn = self.next_turn(key);
        if self.stuck.related(&turn.key) {
            self.stuck.insert(turn.key, turn.number);
            return Offered::Stuck;
        }
        if self.in_flight.related(&turn.key) || self.waiting_keys.related(&turn.key) {
            self.waiting_keys.insert(turn.key.clone(), turn.number);
            self.waiting.push_back((turn, entry));
            return Offered::Waits;
        }
        self.in_flight.insert(turn.key.clone(), turn.number);
        Offered::Go(turn, entry)
    }

    /// A waiting entry that may be sent by now.
    pub fn ready(&mut self) -> Option<(Turn, T)> {
        let mut ahead = Keys::default();
        let mut index = 0;
        while let Some((turn, _)) = self.waiting.get(index) {
            // Only what is stuck before it holds it back: later ones may have got stuck meanwhile.
            let held = self.stuck.related_before(&turn.key, turn.number);
            if !held && (self.in_flight.related(&turn.key) || ahead.related(&turn.key)) {
                ahead.insert(turn.key.clone(), turn.number);
                index += 1;
                continue;
            }
            let (turn, entry) = self.waiting.remove(index)?;
            self.waiting_keys.remove(&turn.key);
            if !held {
                self.in_flight.insert(turn.key.clone(), turn.number);
                return Some((turn, entry));
            }
            self.stuck.insert(turn.key, turn.number);
        }
        None
    }

    /// Whether no further entry can be offered for now.
    pub fn is_full(&self) -> bool {
        self.waiting.len() >= WINDOW
    }

    /// An entry that was handed out is done with; `stays` where it is still in the queue.
    pub fn finished(&mut self, turn: Turn, stays: bool) {
        self.in_flight.remove(&turn.key);
        if stays {
            self.stuck.insert(turn.key, turn.number);
        }
    }

    /// The next entry in queue order is not to be sent in this pass, nor any later one that it concerns.
    pub fn stick(&mut self, key: Key) {
        let turn = self.next_turn(key);
        self.stuck.insert(turn.key, turn.number);
    }

    fn next_turn(&mut self, key: Key) -> Turn {
        self.offered += 1;
        Turn { key, number: self.offered }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(schedule: &mut Schedule<u32>, path: &str, n: u32) -> Option<Turn> {
        match schedule.offer(Key::of(path), n) {
            Offered::Go(turn, _) => Some(turn),
            Offered::Waits | Offered::Stuck => None,
        }
    }

    fn ready(schedule: &mut Schedule<u32>) -> Option<(u32, Turn)> {
        schedule.ready().map(|(turn, n)| (n, turn))
    }

    #[test]
    fn related_entries_wait_for_each_other_and_others_do_not() {
        let mut schedule = Schedule::default();
        let first = offer(&mut schedule, "/a/b", 1).unwrap();
        assert!(offer(&mut schedule, "/c", 2).is_some());
        assert!(offer(&mut schedule, "/a", 3).is_none());
        // Not related to anything in flight but through /a, which is ahead of it.
        assert!(offer(&mut schedule, "/a/x", 4).is_none());
        assert!(offer(&mut schedule, "/d", 5).is_some());
        assert_eq!(ready(&mut schedule), None);
        schedule.finished(first, false);
        let (n, third) = ready(&mut schedule).unwrap();
        assert_eq!((n, ready(&mut schedule)), (3, None));
        schedule.finished(third, false);
        assert_eq!(ready(&mut schedule).unwrap().0, 4);
    }

    #[test]
    fn a_stuck_entry_holds_back_all_later_ones_that_are_related_also_through_others() {
        let mut schedule = Schedule::default();
        let first = offer(&mut schedule, "/a/b", 1).unwrap();
        assert!(offer(&mut schedule, "/a", 2).is_none());
        schedule.finished(first, true);
        assert_eq!(ready(&mut schedule), None);
        // /a/c is not related to /a/b, but to /a, which must go first.
        assert!(offer(&mut schedule, "/a/c", 3).is_none());
        assert_eq!(ready(&mut schedule), None);
        assert!(offer(&mut schedule, "/e", 4).is_some());
    }

    #[test]
    fn a_stuck_entry_holds_back_no_earlier_one() {
        let mut schedule = Schedule::default();
        let first = offer(&mut schedule, "/a/b/c", 1).unwrap();
        assert!(offer(&mut schedule, "/a/b", 2).is_none());
        schedule.stick(Key::of("/a/b/d"));
        schedule.finished(first, false);
        assert_eq!(ready(&mut schedule).unwrap().0, 2);
    }

    /// The whole of it against the rule as it is written: an entry may go when no earlier one that is
    /// related and still in the queue exists. Entries, completions and their fates are random.
    #[test]
    fn it_agrees_with_the_rule_on_random_histories() {
        let paths = ["/", "/a", "/a/b", "/a/b/c", "/a/d", "/e", "/e/f", "/g"];
        for seed in 1..2_000u64 {
            let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mut random = |below: usize| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state % below as u64) as usize
            };
            let mut schedule = Schedule::default();
            // The model: (path, gone, handed out) of all offered so far.
            let mut all: Vec<(Key, bool, bool)> = Vec::new();
            let mut flying: Vec<(Turn, usize)> = Vec::new();
            let handed = |n: usize, all: &mut Vec<(Key, bool, bool)>| {
                for earlier in 0..n {
                    let mut set = Keys::default();
                    set.insert(all[earlier].0.clone(), 0);
                    assert!(all[earlier].1 || !set.related(&all[n].0), "seed {seed}: {n} before {earlier}");
                }
                assert!(!all[n].2);
                all[n].2 = true;
            };
            for _ in 0..60 {
                match random(3) {
                    0 => {
                        let (key, n) = (Key::of(paths[1 + random(paths.len() - 1)]), all.len());
                        all.push((key.clone(), false, false));
                        if let Offered::Go(turn, n) = schedule.offer(key, n) {
                            handed(n, &mut all);
                            flying.push((turn, n));
                        }
                    }
                    1 if !flying.is_empty() => {
                        let (turn, n) = flying.swap_remove(random(flying.len()));
                        let stays = random(8) == 0;
                        all[n].1 = !stays;
                        schedule.finished(turn, stays);
                    }
                    _ => {
                        if let Some((turn, n)) = schedule.ready() {
                            handed(n, &mut all);
                            flying.push((turn, n));
                        }
                    }
                }
            }
            // Liveness: with everything in flight delivered, all goes but what is behind a stuck entry.
            loop {
                while let Some((turn, n)) = schedule.ready() {
                    handed(n, &mut all);
                    flying.push((turn, n));
                }
                let Some((turn, n)) = flying.pop() else { break };
                all[n].1 = true;
                schedule.finished(turn, false);
            }
            let mut held = Keys::default();
            for (key, gone, out) in &all {
                if !gone {
                    assert!(
                        *out || held.related(key),
                        "seed {seed}: an entry that nothing holds back was left"
                    );
                    held.insert(key.clone(), 0);
                }
            }
        }
    }
}
