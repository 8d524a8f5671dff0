//! Which entry may be sent now. Entries come in queue order; one waits for every earlier one that concerns the
//! same resource ([`crate::key`]) and is still in the queue, be it in flight, waiting itself, or stuck: tried
//! in vain or not yet due. Independent ones go ahead.

use crate::key::{Key, Keys};
use std::collections::VecDeque;

/// Entries that may wait at once for others in flight. When so many do, nothing further is looked at: memory
/// stays bounded, and a queue of edits of one file need not be read to its end to send the first.
const WINDOW: usize = 256;

/// The entries under consideration.
pub struct Schedule<T> {
    in_flight: Keys,
    waiting: VecDeque<(Key, T)>,
    waiting_keys: Keys,
    stuck: Keys,
}

impl<T> Default for Schedule<T> {
    fn default() -> Self {
        Schedule {
            in_flight: Keys::default(),
            waiting: VecDeque::new(),
            waiting_keys: Keys::default(),
            stuck: Keys::default(),
        }
    }
}

impl<T> Schedule<T> {
    /// Takes the next entry in queue order and hands it back if it may be sent at once. Otherwise it waits
    /// for [`Schedule::ready`], or is dropped because an earlier one is stuck.
    pub fn offer(&mut self, key: Key, entry: T) -> Option<(Key, T)> {
        if self.stuck.related(&key) {
            self.stuck.insert(key);
            return None;
        }
        if self.in_flight.related(&key) || self.waiting_keys.related(&key) {
            self.waiting_keys.insert(key.clone());
            self.waiting.push_back((key, entry));
            return None;
        }
        self.in_flight.insert(key.clone());
        Some((key, entry))
    }

    /// A waiting entry that may be sent by now.
    pub fn ready(&mut self) -> Option<(Key, T)> {
        let mut ahead = Keys::default();
        let mut index = 0;
        while let Some((key, _)) = self.waiting.get(index) {
            if self.stuck.related(key) {
                if let Some((key, _)) = self.waiting.remove(index) {
                    self.waiting_keys.remove(&key);
                    self.stuck.insert(key);
                }
                continue;
            }
            if !self.in_flight.related(key) && !ahead.related(key) {
                let (key, entry) = self.waiting.remove(index)?;
                self.waiting_keys.remove(&key);
                self.in_flight.insert(key.clone());
                return Some((key, entry));
            }
            ahead.insert(key.clone());
            index += 1;
        }
        None
    }

    /// Whether no further entry can be offered for now.
    pub fn is_full(&self) -> bool {
        self.waiting.len() >= WINDOW
    }

    /// An entry that was handed out is done with; `stays` where it is still in the queue.
    pub fn finished(&mut self, key: Key, stays: bool) {
        self.in_flight.remove(&key);
        if stays {
            self.stuck.insert(key);
        }
    }

    /// An entry is not to be sent in this pass, nor any later one that it concerns.
    pub fn stick(&mut self, key: Key) {
        self.stuck.insert(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(schedule: &mut Schedule<u32>, path: &str, n: u32) -> Option<u32> {
        schedule.offer(Key::of(path), n).map(|(_, n)| n)
    }

    #[test]
    fn related_entries_wait_for_each_other_and_others_do_not() {
        let mut schedule = Schedule::default();
        assert_eq!(offer(&mut schedule, "/a/b", 1), Some(1));
        assert_eq!(offer(&mut schedule, "/c", 2), Some(2));
        assert_eq!(offer(&mut schedule, "/a", 3), None);
        // Not related to anything in flight but /a/b through /a, which is ahead of it.
        assert_eq!(offer(&mut schedule, "/a/x", 4), None);
        assert_eq!(offer(&mut schedule, "/d", 5), Some(5));
        assert_eq!(schedule.ready(), None);
        schedule.finished(Key::of("/a/b"), false);
        assert_eq!(schedule.ready(), Some((Key::of("/a"), 3)));
        assert_eq!(schedule.ready(), None);
        schedule.finished(Key::of("/a"), false);
        assert_eq!(schedule.ready(), Some((Key::of("/a/x"), 4)));
    }

    #[test]
    fn a_stuck_entry_holds_back_all_that_is_related_also_through_others() {
        let mut schedule = Schedule::default();
        assert_eq!(offer(&mut schedule, "/a/b", 1), Some(1));
        assert_eq!(offer(&mut schedule, "/a", 2), None);
        schedule.finished(Key::of("/a/b"), true);
        assert_eq!(schedule.ready(), None);
        // /a/c is not related to /a/b, but to /a, which must go first.
        assert_eq!(offer(&mut schedule, "/a/c", 3), None);
        assert_eq!(schedule.ready(), None);
        assert_eq!(offer(&mut schedule, "/e", 4), Some(4));
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
            let mut flying: Vec<usize> = Vec::new();
            let handed = |n: usize, all: &mut Vec<(Key, bool, bool)>| {
                for earlier in 0..n {
                    let mut set = Keys::default();
                    set.insert(all[earlier].0.clone());
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
                        if let Some((_, n)) = schedule.offer(key, n) {
                            handed(n, &mut all);
                            flying.push(n);
                        }
                    }
                    1 if !flying.is_empty() => {
                        let n = flying.swap_remove(random(flying.len()));
                        let stays = random(8) == 0;
                        all[n].1 = !stays;
                        schedule.finished(all[n].0.clone(), stays);
                    }
                    _ => {
                        if let Some((_, n)) = schedule.ready() {
                            handed(n, &mut all);
                            flying.push(n);
                        }
                    }
                }
            }
            // Liveness: with everything in flight delivered, all goes but what is behind a stuck entry.
            loop {
                while let Some((_, n)) = schedule.ready() {
                    handed(n, &mut all);
                    flying.push(n);
                }
                let Some(n) = flying.pop() else { break };
                all[n].1 = true;
                schedule.finished(all[n].0.clone(), false);
            }
            let mut held = Keys::default();
            for (key, gone, out) in &all {
                if !gone {
                    assert!(
                        *out || held.related(key),
                        "seed {seed}: an entry that nothing holds back was left"
                    );
                    held.insert(key.clone());
                }
            }
        }
    }
}
