//! Which writes concern the same resource. An entry's key is the path of its request without the query;
//! two entries are related when one's key is the other's, or an ancestor or descendant of it: deleting a
//! collection concerns all that is in it.

use percent_encoding::percent_decode_str;
use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::ops::Bound;

/// A path, decoded and without empty and dot segments, so that spellings that a server may take for one
/// resource (`/a%62`, `/ab/`, `/x/../ab`) are one key. The root is the empty key, related to all.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Vec<Vec<u8>>);

impl Key {
    /// The key of a request's path and query.
    pub fn of(raw_uri: &str) -> Key {
        let path = raw_uri.split_once('?').map_or(raw_uri, |(path, _)| path);
        let decoded: Vec<u8> = percent_decode_str(path).collect();
        let mut segments: Vec<Vec<u8>> = Vec::new();
        for segment in decoded.split(|b| *b == b'/') {
            match segment {
                b"" | b"." => {}
                b".." => {
                    segments.pop();
                }
                name => segments.push(name.to_vec()),
            }
        }
        Key(segments)
    }

    /// The key to which every other is related.
    pub fn everything() -> Key {
        Key(Vec::new())
    }
}

/// Keys are ordered as their segments are.
impl Borrow<[Vec<u8>]> for Key {
    fn borrow(&self) -> &[Vec<u8>] {
        &self.0
    }
}

/// A multiset of keys, each with a number, that tells whether some key is related to any in it.
#[derive(Debug, Default)]
pub struct Keys(BTreeMap<Key, Held>);

#[derive(Debug)]
struct Held {
    count: usize,
    /// The smallest number that came with it.
    first: u64,
}

impl Keys {
    /// Adds a key.
    pub fn insert(&mut self, key: Key, number: u64) {
        let held = self.0.entry(key).or_insert(Held { count: 0, first: number });
        held.count += 1;
        held.first = held.first.min(number);
    }

    /// Takes one of this key out.
    pub fn remove(&mut self, key: &Key) {
        if let Some(held) = self.0.get_mut(key) {
            held.count -= 1;
            if held.count == 0 {
                self.0.remove(key);
            }
        }
    }

    /// Whether a key in here equals `key`, or is above or below it.
    pub fn related(&self, key: &Key) -> bool {
        self.related_before(key, u64::MAX)
    }

    /// Whether such a key came with a number below `limit`.
    pub fn related_before(&self, key: &Key, limit: u64) -> bool {
        if self.0.is_empty() {
            return false;
        }
        // Descendants, and the key itself, follow it immediately in the order of segments.
        let mut below = self.0.range::<Key, _>(key..).take_while(|(found, _)| found.0.starts_with(&key.0));
        below.any(|(_, held)| held.first < limit) || self.above_before(key, limit)
    }

    /// Whether a key above `key` came with a number below `limit`. A path may have thousands of segments; so the
    /// lengths that a key above may have are not tried one by one: what comes last before one says how many
    /// of them cannot be there.
    fn above_before(&self, key: &Key, limit: u64) -> bool {
        let mut shorter_than = key.0.len();
        while let Some(above) = shorter_than.checked_sub(1).and_then(|len| key.0.get(..len)) {
            let up_to = (Bound::Unbounded, Bound::Included(above));
            let Some((found, held)) = self.0.range::<[Vec<u8>], _>(up_to).next_back() else { return false };
            let common = found.0.iter().zip(above).take_while(|(a, b)| a == b).count();
            shorter_than = match common == found.0.len() {
                true if held.first < limit => return true,
                true => common,
                false => common + 1,
            };
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_path_are_one_key() {
        for same in ["/a/b", "/a/b/", "/a//b?x=1", "/%61/b", "/a/./b", "/a/c/../b", "/a%2Fb"] {
            assert_eq!(Key::of(same), Key::of("/a/b"), "{same}");
        }
        assert_ne!(Key::of("/a/B"), Key::of("/a/b"));
        assert_eq!(Key::of("/.."), Key::everything());
    }

    #[test]
    fn relations_are_equality_ancestry_and_descent() {
        let mut keys = Keys::default();
        keys.insert(Key::of("/a/b"), 1);
        for related in ["/a/b", "/a/b/c", "/a", "/"] {
            assert!(keys.related(&Key::of(related)), "{related}");
        }
        for other in ["/a/bc", "/a/b2", "/a/a", "/a/c", "/b", "/ab"] {
            assert!(!keys.related(&Key::of(other)), "{other}");
        }
        keys.insert(Key::of("/a/b"), 1);
        keys.remove(&Key::of("/a/b"));
        assert!(keys.related(&Key::of("/a/b")));
        keys.remove(&Key::of("/a/b"));
        assert!(!keys.related(&Key::of("/a/b")));
        keys.insert(Key::everything(), 1);
        assert!(keys.related(&Key::of("/z")));
    }
}
