//! Which writes concern the same resource. An entry's key is the path of its request without the query;
//! two entries are related when one's key is the other's, or an ancestor or descendant of it: deleting a
//! collection concerns all that is in it. A COPY or MOVE has its destination as a second key.

use percent_encoding::percent_decode_str;
use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

/// A path, decoded and without empty and dot segments, so that spellings that a server may take for one
/// resource (`/a%62`, `/ab/`, `/x/../ab`) are one key. Each segment ends with a slash, so that a key above is a
/// prefix. The root is the empty key, related to all.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Vec<u8>);

impl Key {
    /// The key of a request's path and query.
    pub fn of(raw_uri: &str) -> Key {
        let path = raw_uri.split_once('?').map_or(raw_uri, |(path, _)| path);
        let decoded: Vec<u8> = percent_decode_str(path).collect();
        let mut key: Vec<u8> = Vec::with_capacity(decoded.len() + 1);
        for segment in decoded.split(|b| *b == b'/') {
            match segment {
                b"" | b"." => {}
                b".." => key.truncate(above(&key).map_or(0, <[u8]>::len)),
                name => {
                    key.extend_from_slice(name);
                    key.push(b'/');
                }
            }
        }
        Key(key)
    }

    /// What it is below a prefix, or as it is where that is not its beginning.
    pub fn below(self, prefix: &Key) -> Key {
        match self.0.strip_prefix(&*prefix.0) {
            Some(below) => Key(below.to_vec()),
            None => self,
        }
    }

    /// About how many bytes it takes in [`Keys`].
    pub fn weight(&self) -> usize {
        self.0.len() + 64
    }

    /// The key to which every other is related.
    pub fn everything() -> Key {
        Key(Vec::new())
    }
}

/// The key above; none above the root.
fn above(key: &[u8]) -> Option<&[u8]> {
    let (_, inner) = key.split_last()?;
    let end = inner.iter().rposition(|b| *b == b'/').map_or(0, |slash| slash + 1);
    key.get(..end)
}

/// Keys are ordered as their bytes are.
impl Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
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
    /// Adds a key; whether there was none like it.
    pub fn insert(&mut self, key: Key, number: u64) -> bool {
        let held = self.0.entry(key).or_insert(Held { count: 0, first: number });
        held.count += 1;
        held.first = held.first.min(number);
        held.count == 1
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

    /// Whether the key to which every other is related is among them.
    pub fn has_everything(&self) -> bool {
        self.0.contains_key([].as_slice())
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
        // Descendants, and the key itself, follow it immediately.
        let mut below = self.0.range::<Key, _>(key..).take_while(|(found, _)| found.0.starts_with(&key.0));
        below.any(|(_, held)| held.first < limit) || self.above_before(key, limit)
    }

    /// Whether a key above `key` came with a number below `limit`. A path may have thousands of segments; so the
    /// keys above are not tried one by one: what comes last before one says how many of them cannot be there.
    fn above_before(&self, key: &Key, limit: u64) -> bool {
        let mut next = above(&key.0);
        while let Some(candidate) = next {
            let up_to = (Bound::Unbounded, Bound::Included(candidate));
            let Some((found, held)) = self.0.range::<[u8], _>(up_to).next_back() else { return false };
            let common = found.0.iter().zip(candidate).take_while(|(a, b)| a == b).count();
            let is_above = common == found.0.len();
            if is_above && held.first < limit {
                return true;
            }
            // The longest key above that is no longer than what they share, or shorter than what was found.
            next = match candidate.get(..common) {
                Some(shared) if !is_above && (shared.is_empty() || shared.ends_with(b"/")) => Some(shared),
                Some(shared) => above(shared),
                None => None,
            };
        }
        false
    }
}

/// Keys by their hashes: quicker than [`Keys`], but some that are not related may, very rarely, be taken for such.
#[derive(Debug, Default)]
pub struct HashedKeys {
    keys: BTreeSet<u64>,
    above: BTreeSet<u64>,
}

impl HashedKeys {
    /// So many keys above others are known; with more, everything is taken for related.
    const MOST: usize = 65_536;

    /// Adds a key.
    pub fn insert(&mut self, key: &Key) {
        if self.above.len() >= Self::MOST {
            return self.keys.extend(hashes(&Key::everything()));
        }
        let mut last = None;
        for hash in hashes(key) {
            self.above.extend(last.replace(hash));
        }
        self.keys.extend(last);
    }

    /// Whether a key in here equals `key`, or is above or below it.
    pub fn related(&self, key: &Key) -> bool {
        if self.keys.is_empty() {
            return false;
        }
        let mut last = None;
        for hash in hashes(key) {
            if self.keys.contains(&hash) {
                return true;
            }
            last = Some(hash);
        }
        last.is_some_and(|hash| self.above.contains(&hash))
    }
}

/// The hashes (FNV-1a) of the keys above this one, from the top, and of itself.
fn hashes(key: &Key) -> impl Iterator<Item = u64> {
    const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let within = key.0.iter().scan(BASIS, |hash, byte| {
        *hash = (*hash ^ u64::from(*byte)).wrapping_mul(PRIME);
        Some((*byte == b'/').then_some(*hash))
    });
    std::iter::once(BASIS).chain(within.flatten())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashed_keys_are_related_as_keys_are() {
        let paths = ["/", "/a", "/a/b", "/a/b/c", "/ab", "/a/bc", "/b", "/b/a", "/b/a/c"];
        for one in paths {
            let (mut keys, mut hashed) = (Keys::default(), HashedKeys::default());
            keys.insert(Key::of(one), 1);
            hashed.insert(&Key::of(one));
            for other in paths {
                assert_eq!(hashed.related(&Key::of(other)), keys.related(&Key::of(other)), "{one} {other}");
            }
        }
        assert!(!HashedKeys::default().related(&Key::everything()));
    }

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

    #[test]
    fn a_set_answers_as_its_keys_do_one_by_one() {
        let mut state = 1u64;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        for _ in 0..20_000 {
            // Names of which some start as others do.
            let mut path = |depth: u64| {
                let names = ["a", "ab", "b", "a.", "a0"];
                (0..random(depth)).map(|_| format!("/{}", names[random(5) as usize])).collect::<String>()
            };
            let paths: Vec<String> = (0..6).map(|_| path(5)).collect();
            let asked = Key::of(&path(6));
            let mut keys = Keys::default();
            let mut found = false;
            for (number, path) in paths.iter().enumerate() {
                let key = Key::of(path);
                let near = key.0.starts_with(&asked.0) || asked.0.starts_with(&key.0);
                found |= near && number < 3;
                keys.insert(key, number as u64);
            }
            assert_eq!(keys.related_before(&asked, 3), found, "{asked:?} in {paths:?}");
        }
    }
}
