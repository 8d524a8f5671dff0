//! What of the tree is on the disk, and what a power failure leaves. Deliberately weaker than any file system
//! in use, so that what holds here holds there:
//!
//! - A change of names is one operation on one or two slots, a slot being a directory and a name in it. It
//!   is pending until some sync makes it durable. A rename is one operation on two slots.
//! - A sync of a directory makes all pending operations on its slots durable, together with what they need:
//!   earlier operations on the same slots, the existence of the directories that they are in, and, where a
//!   directory was removed, everything that had emptied it. Nothing else: operations in other directories
//!   may be reordered freely around it.
//! - A sync of a file makes its content and size durable, not its name.
//! - After a sync that failed, what it was to make durable is forgotten: later syncs do not include it
//!   (the kernel has marked the pages clean), unless a later change of names needs it.
//! - What is not synced is written after a while all the same (by the world, when minutes pass).
//! - A power failure keeps or loses each pending operation whose needs are met, and each unsynced write: as a
//!   whole, a prefix of it, zeros in its place, or not at all.

use crate::rng::Rng;
use crate::tree::{Ino, overwrite};
use std::collections::{BTreeMap, BTreeSet};

/// A name in a directory, and what it is to stand for.
#[derive(Debug, Clone)]
pub struct Slot {
    /// The directory.
    pub dir: Ino,
    /// The name.
    pub name: String,
    /// What is there afterwards.
    pub ino: Option<Ino>,
}

impl Slot {
    /// A slot's new content.
    pub fn new(dir: Ino, name: &str, ino: Option<Ino>) -> Slot {
        Slot { dir, name: name.to_owned(), ino }
    }
}

/// A change of names.
#[derive(Debug, Clone)]
pub struct Op {
    number: u64,
    slots: Vec<Slot>,
    removed_dir: Option<Ino>,
    /// Numbers of the operations without which this one makes no sense.
    needs: Vec<u64>,
    /// A sync of it failed.
    doomed: bool,
}

impl Op {
    /// An operation; the disk numbers it and finds out what it needs.
    pub fn new(slots: Vec<Slot>, removed_dir: Option<Ino>) -> Op {
        Op { number: 0, slots, removed_dir, needs: Vec::new(), doomed: false }
    }

    fn touches(&self, dir: Ino) -> bool {
        self.slots.iter().any(|slot| slot.dir == dir)
    }
}

#[derive(Debug, Clone, Default)]
struct Content {
    /// What is on the disk.
    bytes: Vec<u8>,
    /// Writes that are not: the offset and the bytes.
    dirty: Vec<(usize, Vec<u8>)>,
}

/// The chance that something unsynced outlives a power failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Odds {
    /// Nothing does.
    Never,
    /// Everything does.
    Always,
    /// Each by itself, one time in two; writes also torn.
    Even,
}

impl Odds {
    fn roll(self, rng: &mut Rng) -> bool {
        match self {
            Odds::Never => false,
            Odds::Always => true,
            Odds::Even => rng.percent(50),
        }
    }
}

/// What a power failure spares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loss {
    /// Changes of names that were not synced.
    pub names: Odds,
    /// Writes that were not synced.
    pub data: Odds,
}

/// The disk.
#[derive(Debug, Clone, Default)]
pub struct Disk {
    dirs: BTreeMap<Ino, BTreeMap<String, Ino>>,
    files: BTreeMap<Ino, Content>,
    pending: Vec<Op>,
    next: u64,
}

impl Disk {
    /// The names on the disk.
    pub fn names(&self, dir: Ino) -> BTreeMap<String, Ino> {
        self.dirs.get(&dir).cloned().unwrap_or_default()
    }

    /// The bytes on the disk.
    pub fn bytes(&self, file: Ino) -> Vec<u8> {
        self.files.get(&file).map(|content| content.bytes.clone()).unwrap_or_default()
    }

    /// Notes a change of names.
    pub fn change(&mut self, mut op: Op) {
        self.next += 1;
        op.number = self.next;
        for slot in &op.slots {
            let same = |s: &Slot| s.dir == slot.dir && s.name == slot.name;
            let before = self.pending.iter().rev().find(|p| p.slots.iter().any(same));
            op.needs.extend(before.map(|p| p.number));
            // What first gave the directory a name made it.
            let made = self.pending.iter().find(|p| p.slots.iter().any(|s| s.ino == Some(slot.dir)));
            op.needs.extend(made.map(|p| p.number));
        }
        if let Some(dir) = op.removed_dir {
            op.needs.extend(self.pending.iter().filter(|p| p.touches(dir)).map(|p| p.number));
        }
        self.pending.push(op);
    }

    /// Notes a write.
    pub fn write(&mut self, file: Ino, offset: usize, bytes: &[u8]) {
        self.files.entry(file).or_default().dirty.push((offset, bytes.to_vec()));
    }

    /// Cuts a file, at once: the component truncates nothing, so this need not be subtle.
    pub fn truncate(&mut self, file: Ino) {
        self.files.insert(file, Content::default());
    }

    /// A file's content and size become durable.
    pub fn sync_file(&mut self, file: Ino) {
        if let Some(content) = self.files.get_mut(&file) {
            for (offset, bytes) in std::mem::take(&mut content.dirty) {
                overwrite(&mut content.bytes, offset, &bytes);
            }
        }
    }

    /// A file's unsynced writes are forgotten.
    pub fn doom_file(&mut self, file: Ino) {
        if let Some(content) = self.files.get_mut(&file) {
            content.dirty.clear();
        }
    }

    /// A directory's names become durable.
    pub fn sync_dir(&mut self, dir: Ino) {
        let mut wanted = BTreeSet::new();
        for op in self.pending.iter().rev() {
            if (op.touches(dir) && !op.doomed) || wanted.contains(&op.number) {
                wanted.insert(op.number);
                wanted.extend(op.needs.iter().copied());
            }
        }
        let pending = std::mem::take(&mut self.pending);
        for op in pending {
            match wanted.contains(&op.number) {
                true => self.apply(&op),
                false => self.pending.push(op),
            }
        }
    }

    /// A directory's pending names are forgotten by later syncs.
    pub fn doom_dir(&mut self, dir: Ino) {
        for op in self.pending.iter_mut().filter(|op| op.touches(dir)) {
            op.doomed = true;
        }
    }

    fn apply(&mut self, op: &Op) {
        for slot in &op.slots {
            let names = self.dirs.entry(slot.dir).or_default();
            match slot.ino {
                Some(ino) => names.insert(slot.name.clone(), ino),
                None => names.remove(&slot.name),
            };
        }
    }

    /// Time has passed, and the kernel has written what was dirty; not what a failed sync has dropped.
    pub fn write_back(&mut self) {
        let dirs: BTreeSet<Ino> = self.pending.iter().flat_map(|op| op.slots.iter().map(|s| s.dir)).collect();
        dirs.into_iter().for_each(|dir| self.sync_dir(dir));
        let files: Vec<Ino> = self.files.keys().copied().collect();
        files.into_iter().for_each(|file| self.sync_file(file));
    }

    /// Everything becomes durable.
    pub fn settle(&mut self) {
        for op in std::mem::take(&mut self.pending) {
            self.apply(&op);
        }
        let files: Vec<Ino> = self.files.keys().copied().collect();
        files.into_iter().for_each(|file| self.sync_file(file));
    }

    /// Decides what of the unsynced is on the disk.
    pub fn power_failure(&mut self, loss: Loss, rng: &mut Rng) {
        let mut lost = BTreeSet::new();
        for op in std::mem::take(&mut self.pending) {
            let possible = !op.needs.iter().any(|need| lost.contains(need));
            match possible && loss.names.roll(rng) {
                true => self.apply(&op),
                false => {
                    lost.insert(op.number);
                }
            }
        }
        for content in self.files.values_mut() {
            for (offset, bytes) in std::mem::take(&mut content.dirty) {
                if loss.data.roll(rng) {
                    overwrite(&mut content.bytes, offset, &bytes);
                } else if loss.data == Odds::Even {
                    match rng.below(3) {
                        0 => {
                            let kept = rng.below(bytes.len() as u64 + 1) as usize;
                            overwrite(&mut content.bytes, offset, &bytes[..kept]);
                        }
                        1 => overwrite(&mut content.bytes, offset, &vec![0; bytes.len()]),
                        _ => {}
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{Kind, ROOT, Tree};

    fn dir() -> Kind {
        Kind::Dir(BTreeMap::new())
    }

    fn file() -> Kind {
        Kind::File(Vec::new())
    }

    const NOTHING: Loss = Loss { names: Odds::Never, data: Odds::Never };

    fn after(tree: &Tree, loss: Loss) -> Tree {
        let mut tree = tree.clone();
        tree.power_failure(loss, &mut Rng::new(1));
        tree
    }

    #[test]
    fn a_name_and_its_content_are_durable_by_different_syncs() {
        let mut tree = Tree::default();
        let f = tree.create(ROOT, "f", file()).unwrap();
        tree.write(f, 0, b"abc").unwrap();
        tree.sync(f);
        assert_eq!(after(&tree, NOTHING).find(ROOT, "f"), Err(crate::tree::Errno::NoEntry));
        tree.sync(ROOT);
        let synced = after(&tree, NOTHING);
        assert_eq!(synced.bytes(synced.find(ROOT, "f").unwrap()).unwrap(), b"abc");
    }

    #[test]
    fn a_synced_rename_brings_what_it_needs_and_nothing_else() {
        let mut tree = Tree::default();
        tree.create(ROOT, "s", dir()).unwrap();
        let x = tree.create(ROOT, "s/x", dir()).unwrap();
        tree.create(x, "body", file()).unwrap();
        tree.create(x, "meta", file()).unwrap();
        tree.rename(ROOT, "s/x", ROOT, "q").unwrap();
        tree.sync(ROOT);
        let after = after(&tree, NOTHING);
        let q = after.find(ROOT, "q").unwrap();
        assert!(after.list(q).unwrap().is_empty(), "the names in it were not synced");
        assert!(after.find(ROOT, "s").is_ok());
    }

    #[test]
    fn what_a_failed_sync_dropped_is_not_in_the_next_one() {
        let mut tree = Tree::default();
        let f = tree.create(ROOT, "f", file()).unwrap();
        tree.write(f, 0, b"abc").unwrap();
        tree.fail_sync(f);
        tree.sync(f);
        tree.sync(ROOT);
        assert_eq!(after(&tree, NOTHING).bytes(f).unwrap(), b"");
        tree.create(ROOT, "g", file()).unwrap();
        tree.fail_sync(ROOT);
        tree.sync(ROOT);
        assert!(after(&tree, NOTHING).find(ROOT, "g").is_err());
        assert!(tree.find(ROOT, "g").is_ok());
    }

    #[test]
    fn a_rename_is_lost_or_kept_as_a_whole() {
        for seed in 0..64 {
            let mut tree = Tree::default();
            tree.create(ROOT, "a", dir()).unwrap();
            tree.create(ROOT, "b", dir()).unwrap();
            tree.create(ROOT, "a/x", dir()).unwrap();
            tree.settle();
            tree.rename(ROOT, "a/x", ROOT, "b/y").unwrap();
            tree.remove_dir(ROOT, "a").unwrap();
            tree.power_failure(Loss { names: Odds::Even, data: Odds::Even }, &mut Rng::new(seed));
            let places = [tree.find(ROOT, "a/x"), tree.find(ROOT, "b/y")];
            assert_eq!(places.iter().filter(|p| p.is_ok()).count(), 1, "{}", tree.dump());
        }
    }
}
