//! Which entry may be sent now. Entries come in queue order; one waits for every earlier one that concerns the
//! same resource ([`crate::key`]) and is still in the queue, be it in flight, waiting itself, or stuck: tried
//! in vain or not yet due. Independent ones go ahead.

use crate::key::{Key, Keys};
use std::collections::VecDeque;

/// Entries that may wait at once for others in flight. When so many do, nothing further is looked at: memory
/// stays bounded, and a queue of edits of one file need not be read to its end to send the first.
const WINDOW: usize = 256;

/// What stuck entries' keys may take, in bytes: those of some 150,000. With more, all that comes later waits for the
/// next pass, too.
const MOST_STUCK: usize = 16 * 1024 * 1024;

/// An entry's place in the line: what it concerns, and how many were offered before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    keys: Vec<Key>,
    number: u64,
}

impl Turn {
    /// What it concerns.
    pub fn keys(&self) -> &[Key] {
        &self.keys
    }

    /// Whether one of these equals one of its own, or is above or below it.
    pub fn is_related(&self, keys: &[Key]) -> bool {
        let mut own = Keys::default();
        self.enter(&mut own);
        keys.iter().any(|key| own.related(key))
    }

    fn enter(&self, keys: &mut Keys) {
        self.keys.iter().for_each(|key| _ = keys.insert(key.clone(), self.number));
    }

    fn leave(&self, keys: &mut Keys) {
        self.keys.iter().for_each(|key| keys.remove(key));
    }

    fn concerns(&self, keys: &Keys) -> bool {
        self.keys.iter().any(|key| keys.related(key))
    }
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
    /// About how many bytes those take.
    stuck_bytes: usize,
}

impl<T> Default for Schedule<T> {
    fn default() -> Self {
        Schedule {
            offered: 0,
            in_flight: Keys::default(),
            waiting: VecDeque::new(),
            waiting_keys: Keys::default(),
            stuck: Keys::default(),
            stuck_bytes: 0,
        }
    }
}

impl<T> Schedule<T> {
    /// Takes the next entry in queue order and hands it back if it may be sent at once.
    pub fn offer(&mut self, keys: Vec<Key>, entry: T) -> Offered<T> {
        let turn = self.next_turn(keys);
        if turn.concerns(&self.stuck) {
            self.hold(&turn);
            return Offered::Stuck;
        }
        if turn.concerns(&self.in_flight) || turn.concerns(&self.waiting_keys) {
            turn.enter(&mut self.waiting_keys);
            self.waiting.push_back((turn, entry));
            return Offered::Waits;
        }
        turn.enter(&mut self.in_flight);
        Offered::Go(turn, entry)
    }

    /// A waiting entry that may be sent by now.
    pub fn ready(&mut self) -> Option<(Turn, T)> {
        let mut ahead = Keys::default();
        let mut index = 0;
        while let Some((turn, _)) = self.waiting.get(index) {
            // Only what is stuck before it holds it back: later ones may have got stuck meanwhile.
            let held = turn.keys.iter().any(|key| self.stuck.related_before(key, turn.number));
            if !held && (turn.concerns(&self.in_flight) || turn.concerns(&ahead)) {
                turn.enter(&mut ahead);
                index += 1;
                continue;
            }
            let (turn, entry) = self.waiting.remove(index)?;
            turn.leave(&mut self.waiting_keys);
            if !held {
                turn.enter(&mut self.in_flight);
                return Some((turn, entry));
            }
            self.hold(&turn);
        }
        None
    }

    /// Whether nothing that comes later can be sent in this pass.
    pub fn is_shut(&self) -> bool {
        self.stuck.has_everything()
    }

    /// Whether no further entry can be offered for now.
    pub fn is_full(&self) -> bool {
        self.waiting.len() >= WINDOW
    }

    /// An entry that was handed out is done with; `stays` where it is still in the queue.
    pub fn finished(&mut self, turn: Turn, stays: bool) {
        turn.leave(&mut self.in_flight);
        if stays {
            self.hold(&turn);
        }
    }

    /// The next entry in queue order is not to be sent in this pass, nor any later one that it concerns.
    pub fn stick(&mut self, keys: Vec<Key>) {
        let turn = self.next_turn(keys);
        self.hold(&turn);
    }

    /// An entry that was found after some that come `later` had been offered is not to be sent in this pass, nor any of
    /// those that it concerns but what is in flight.
    pub fn stick_late(&mut self, keys: Vec<Key>, later: impl Fn(&T) -> bool) {
        match self.waiting.iter().find(|(_, entry)| later(entry)) {
            Some((overtaking, _)) => {
                let number = overtaking.number.saturating_sub(1);
                self.hold(&Turn { keys, number });
            }
            None => self.stick(keys),
        }
    }

    fn hold(&mut self, turn: &Turn) {
        for key in &turn.keys {
            if self.stuck.insert(key.clone(), turn.number) {
                self.stuck_bytes += key.weight();
            }
        }
        if self.stuck_bytes > MOST_STUCK && !self.is_shut() {
            self.stuck.insert(Key::everything(), self.offered);
        }
    }

    fn next_turn(&mut self, keys: Vec<Key>) -> Turn {
        self.offered += 1;
        Turn { keys, number: self.offered }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(schedule: &mut Schedule<u32>, path: &str, n: u32) -> Option<Turn> {
        match schedule.offer(path.split(' ').map(Key::of).collect(), n) {
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
    fn one_that_is_found_late_holds_back_those_that_wait_and_were_queued_later() {
        let mut schedule = Schedule::default();
        let first = offer(&mut schedule, "/a", 1).unwrap();
        for (path, n) in [("/a", 2), ("/a/b", 4), ("/a", 5)] {
            assert!(offer(&mut schedule, path, n).is_none());
        }
        schedule.stick_late(vec![Key::of("/a/b")], |waiting| *waiting > 3);
        schedule.finished(first, false);
        let (n, second) = ready(&mut schedule).unwrap();
        schedule.finished(second, false);
        assert_eq!((n, ready(&mut schedule)), (2, None));
    }

    #[test]
    fn where_very_many_are_stuck_all_that_comes_later_is() {
        let mut schedule = Schedule::<u32>::default();
        let mut stuck = 0;
        while !schedule.is_shut() {
            assert!(stuck < 1_000_000);
            schedule.stick(vec![Key::of(&format!("/path/to/some/file/{stuck}"))]);
            stuck += 1;
        }
        assert!(stuck > 100_000, "{stuck}");
        assert!(offer(&mut schedule, "/another", 1).is_none());
    }

    #[test]
    fn what_is_stuck_behind_one_resource_takes_no_room() {
        let mut schedule = Schedule::<u32>::default();
        for _ in 0..1_000_000 {
            schedule.stick(vec![Key::of("/path/to/one/file")]);
        }
        assert!(offer(&mut schedule, "/another", 1).is_some());
    }

    #[test]
    fn a_stuck_entry_holds_back_no_earlier_one() {
        let mut schedule = Schedule::default();
        let first = offer(&mut schedule, "/a/b/c", 1).unwrap();
        assert!(offer(&mut schedule, "/a/b", 2).is_none());
        schedule.stick(vec![Key::of("/a/b/d")]);
        schedule.finished(first, false);
        assert_eq!(ready(&mut schedule).unwrap().0, 2);
    }

    /// The whole of it against the rule as it is written: an entry may go when no earlier one that is
    /// related and still in the queue exists. Entries, completions and their fates are random.
    #[test]
    fn it_agrees_with_the_rule_on_random_histories() {
        // A COPY or MOVE has two.
        let paths = ["/a", "/a/b", "/a/b/c", "/a/d", "/e", "/e/f", "/g", "/a/d /g", "/e/f /a/b/c"];
        let related = |all: &[Key], others: &[Key]| {
            let mut set = Keys::default();
            all.iter().for_each(|key| _ = set.insert(key.clone(), 0));
            others.iter().any(|key| set.related(key))
        };
        for seed in 1..2_000u64 {
            let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mut random = |below: usize| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state % below as u64) as usize
            };
            let mut schedule = Schedule::default();
            // The model: (keys, gone, handed out) of all offered so far.
            let mut all: Vec<(Vec<Key>, bool, bool)> = Vec::new();
            let mut flying: Vec<(Turn, usize)> = Vec::new();
            let handed = |n: usize, all: &mut Vec<(Vec<Key>, bool, bool)>| {
                for earlier in 0..n {
                    let free = all[earlier].1 || !related(&all[earlier].0, &all[n].0);
                    assert!(free, "seed {seed}: {n} before {earlier}");
                }
                assert!(!all[n].2);
                all[n].2 = true;
            };
            for _ in 0..60 {
                match random(3) {
                    0 => {
                        let path = paths[random(paths.len())];
                        let (keys, n): (Vec<Key>, _) = (path.split(' ').map(Key::of).collect(), all.len());
                        all.push((keys.clone(), false, false));
                        if let Offered::Go(turn, n) = schedule.offer(keys, n) {
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
            let mut held: Vec<Key> = Vec::new();
            for (keys, gone, out) in &all {
                if !gone {
                    let excused = *out || related(&held, keys);
                    assert!(excused, "seed {seed}: an entry that nothing holds back was left");
                    held.extend(keys.iter().cloned());
                }
            }
        }
    }
}
