//! The virtual file system: what was written. What of it would outlive a power failure is in [`crate::durable`].

use crate::durable::{Disk, Op, Slot};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// A file or directory, by number. Numbers are not used again within a run.
pub type Ino = usize;

/// The root directory.
pub const ROOT: Ino = 0;

/// How a call fails. The names are those of POSIX.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Errno {
    /// Not there.
    NoEntry,
    /// Taken.
    Exist,
    /// No directory.
    NotDirectory,
    /// A directory.
    IsDirectory,
    /// Not empty.
    NotEmpty,
    /// A link where none is followed.
    Loop,
    /// Out of the sandbox.
    NotPermitted,
    /// No such use of this descriptor.
    BadDescriptor,
    /// The disk is full.
    NoSpace,
    /// The disk is broken.
    Io,
}

type Result<T> = std::result::Result<T, Errno>;

/// Something in the tree.
#[derive(Debug, Clone)]
pub struct Node {
    /// What it is, and what is in it.
    pub kind: Kind,
    /// When it was last changed: wall clock, Unix nanoseconds.
    pub modified: u64,
    /// Syncs of it that failed. Whoever opened it before learns of each once, as on Linux since 4.13.
    pub failures: u32,
}

/// What a node is.
#[derive(Debug, Clone)]
pub enum Kind {
    /// Names.
    Dir(BTreeMap<String, Ino>),
    /// Bytes.
    File(Vec<u8>),
    /// A symbolic link.
    Link(String),
}

/// The tree, with its disk.
#[derive(Debug, Clone)]
pub struct Tree {
    nodes: Vec<Node>,
    disk: Disk,
    /// What the wall clock says: set by the world before each call.
    pub now: u64,
}

impl Default for Tree {
    fn default() -> Tree {
        let root = Node { kind: Kind::Dir(BTreeMap::new()), modified: 0, failures: 0 };
        Tree { nodes: vec![root], disk: Disk::default(), now: 0 }
    }
}

impl Tree {
    /// A node.
    pub fn node(&self, ino: Ino) -> &Node {
        &self.nodes[ino]
    }

    fn names(&self, dir: Ino) -> Result<&BTreeMap<String, Ino>> {
        match &self.nodes[dir].kind {
            Kind::Dir(names) => Ok(names),
            _ => Err(Errno::NotDirectory),
        }
    }

    /// The directory of a path's last component, and that component; "." for the directory itself.
    pub fn parent<'a>(&self, dir: Ino, path: &'a str) -> Result<(Ino, &'a str)> {
        if path.starts_with('/') {
            return Err(Errno::NotPermitted);
        }
        let mut at = dir;
        let mut parts = path.split('/').filter(|part| !part.is_empty() && *part != ".").peekable();
        while let Some(part) = parts.next() {
            if part == ".." {
                return Err(Errno::NotPermitted);
            }
            if parts.peek().is_none() {
                self.names(at)?;
                return Ok((at, part));
            }
            at = *self.names(at)?.get(part).ok_or(Errno::NoEntry)?;
        }
        Ok((at, "."))
    }

    /// What is at a path; links are not followed.
    pub fn find(&self, dir: Ino, path: &str) -> Result<Ino> {
        match self.parent(dir, path)? {
            (at, ".") => Ok(at),
            (at, name) => self.names(at)?.get(name).copied().ok_or(Errno::NoEntry),
        }
    }

    /// The names in a directory.
    pub fn list(&self, dir: Ino) -> Result<Vec<(String, Ino)>> {
        Ok(self.names(dir)?.iter().map(|(name, ino)| (name.clone(), *ino)).collect())
    }

    fn add(&mut self, kind: Kind) -> Ino {
        self.nodes.push(Node { kind, modified: self.now, failures: 0 });
        self.nodes.len() - 1
    }

    fn set(&mut self, dir: Ino, name: &str, ino: Option<Ino>) {
        let now = self.now;
        let node = &mut self.nodes[dir];
        if let Kind::Dir(names) = &mut node.kind {
            match ino {
                Some(ino) => names.insert(name.to_owned(), ino),
                None => names.remove(name),
            };
            node.modified = now;
        }
    }

    fn apply(&mut self, slots: Vec<Slot>, removed_dir: Option<Ino>) {
        for slot in &slots {
            self.set(slot.dir, &slot.name, slot.ino);
        }
        self.disk.change(Op::new(slots, removed_dir));
    }

    /// Makes a file, directory or link; an error where the name is taken.
    pub fn create(&mut self, dir: Ino, path: &str, kind: Kind) -> Result<Ino> {
        let (at, name) = self.parent(dir, path)?;
        if name == "." || self.names(at)?.contains_key(name) {
            return Err(Errno::Exist);
        }
        let ino = self.add(kind);
        self.apply(vec![Slot::new(at, name, Some(ino))], None);
        Ok(ino)
    }

    /// Removes a file or a link.
    pub fn unlink(&mut self, dir: Ino, path: &str) -> Result<()> {
        let (at, name) = self.parent(dir, path)?;
        let ino = *self.names(at)?.get(name).ok_or(Errno::NoEntry)?;
        if matches!(self.nodes[ino].kind, Kind::Dir(_)) {
            return Err(Errno::IsDirectory);
        }
        self.apply(vec![Slot::new(at, name, None)], None);
        Ok(())
    }

    /// Removes an empty directory.
    pub fn remove_dir(&mut self, dir: Ino, path: &str) -> Result<()> {
        let (at, name) = self.parent(dir, path)?;
        let ino = *self.names(at)?.get(name).ok_or(Errno::NoEntry)?;
        if !self.names(ino)?.is_empty() {
            return Err(Errno::NotEmpty);
        }
        self.apply(vec![Slot::new(at, name, None)], Some(ino));
        Ok(())
    }

    /// Moves something, replacing what can be replaced.
    pub fn rename(&mut self, dir: Ino, path: &str, to_dir: Ino, to_path: &str) -> Result<()> {
        let (from_at, from) = self.parent(dir, path)?;
        let (to_at, to) = self.parent(to_dir, to_path)?;
        let ino = *self.names(from_at)?.get(from).ok_or(Errno::NoEntry)?;
        let mut removed_dir = None;
        if let Some(target) = self.names(to_at)?.get(to).copied() {
            match (&self.nodes[ino].kind, &self.nodes[target].kind) {
                (Kind::Dir(_), Kind::Dir(names)) if !names.is_empty() => return Err(Errno::NotEmpty),
                (Kind::Dir(_), Kind::Dir(_)) => removed_dir = Some(target),
                (Kind::Dir(_), _) => return Err(Errno::NotDirectory),
                (_, Kind::Dir(_)) => return Err(Errno::IsDirectory),
                _ => {}
            }
            if target == ino {
                return Ok(());
            }
        }
        self.apply(vec![Slot::new(from_at, from, None), Slot::new(to_at, to, Some(ino))], removed_dir);
        Ok(())
    }

    /// Gives a file another name.
    pub fn link(&mut self, dir: Ino, path: &str, to_dir: Ino, to_path: &str) -> Result<()> {
        let ino = self.find(dir, path)?;
        let (at, name) = self.parent(to_dir, to_path)?;
        match self.nodes[ino].kind {
            Kind::Dir(_) => Err(Errno::NotPermitted),
            _ if self.names(at)?.contains_key(name) => Err(Errno::Exist),
            _ => {
                self.apply(vec![Slot::new(at, name, Some(ino))], None);
                Ok(())
            }
        }
    }

    /// The bytes of a file.
    pub fn bytes(&self, ino: Ino) -> Result<&[u8]> {
        match &self.nodes[ino].kind {
            Kind::File(bytes) => Ok(bytes),
            Kind::Dir(_) => Err(Errno::BadDescriptor),
            Kind::Link(_) => Err(Errno::Loop),
        }
    }

    /// Writes into a file.
    pub fn write(&mut self, ino: Ino, offset: usize, new: &[u8]) -> Result<()> {
        let now = self.now;
        let node = &mut self.nodes[ino];
        let Kind::File(bytes) = &mut node.kind else { return Err(Errno::BadDescriptor) };
        overwrite(bytes, offset, new);
        node.modified = now;
        self.disk.write(ino, offset, new);
        Ok(())
    }

    /// Cuts a file to nothing.
    pub fn truncate(&mut self, ino: Ino) -> Result<()> {
        let node = &mut self.nodes[ino];
        let Kind::File(bytes) = &mut node.kind else { return Err(Errno::BadDescriptor) };
        bytes.clear();
        self.disk.truncate(ino);
        Ok(())
    }

    /// Makes a file's content, or a directory's names, durable.
    pub fn sync(&mut self, ino: Ino) {
        match self.nodes[ino].kind {
            Kind::Dir(_) => self.disk.sync_dir(ino),
            _ => self.disk.sync_file(ino),
        }
    }

    /// A sync that fails: what was to become durable may be lost, and no later sync brings it back.
    pub fn fail_sync(&mut self, ino: Ino) {
        self.nodes[ino].failures += 1;
        match self.nodes[ino].kind {
            Kind::Dir(_) => self.disk.doom_dir(ino),
            _ => self.disk.doom_file(ino),
        }
    }

    /// The power fails, and comes back: what is on the disk is what there is.
    pub fn power_failure(&mut self, loss: crate::durable::Loss, rng: &mut crate::rng::Rng) {
        self.disk.power_failure(loss, rng);
        for (ino, node) in self.nodes.iter_mut().enumerate() {
            match &mut node.kind {
                Kind::Dir(names) => *names = self.disk.names(ino),
                Kind::File(bytes) => *bytes = self.disk.bytes(ino),
                Kind::Link(_) => {}
            }
        }
    }

    /// The kernel writes what is dirty, as it does after half a minute.
    pub fn write_back(&mut self) {
        self.disk.write_back();
    }

    /// Everything is made durable, what failed syncs dropped too.
    pub fn settle(&mut self) {
        self.disk.settle();
    }

    /// Planted from outside, durably: anything.
    pub fn plant(&mut self, dir: Ino, path: &str, kind: Kind) -> Result<()> {
        let bytes = match &kind {
            Kind::File(bytes) => Some(bytes.clone()),
            _ => None,
        };
        self.remove_all(dir, path)?;
        let ino = self.create(dir, path, kind)?;
        if let Some(bytes) = bytes {
            self.disk.write(ino, 0, &bytes);
        }
        self.settle();
        Ok(())
    }

    /// Removes something from outside, with all that is below it.
    pub fn remove_all(&mut self, dir: Ino, path: &str) -> Result<()> {
        let Ok(ino) = self.find(dir, path) else { return Ok(()) };
        if let Ok(names) = self.list(ino) {
            for (name, _) in names {
                self.remove_all(ino, &name)?;
            }
            return self.remove_dir(dir, path);
        }
        self.unlink(dir, path)
    }

    /// The path of something that has a name, from the root on.
    pub fn path_of(&self, ino: Ino) -> Option<String> {
        self.path_below(ROOT, "", ino)
    }

    fn path_below(&self, dir: Ino, prefix: &str, ino: Ino) -> Option<String> {
        self.list(dir).unwrap_or_default().into_iter().find_map(|(name, found)| {
            let path = format!("{prefix}{name}");
            match found == ino {
                true => Some(path),
                false => self.path_below(found, &format!("{path}/"), ino),
            }
        })
    }

    /// All paths with sizes, for people.
    pub fn dump(&self) -> String {
        let mut text = String::new();
        self.dump_dir(ROOT, "", &mut text);
        text
    }

    fn dump_dir(&self, dir: Ino, prefix: &str, text: &mut String) {
        for (name, ino) in self.list(dir).unwrap_or_default() {
            let path = format!("{prefix}{name}");
            // Writing to a string cannot fail.
            let _ = match &self.nodes[ino].kind {
                Kind::Dir(_) => writeln!(text, "    {path}/"),
                Kind::File(bytes) => writeln!(text, "    {path}  {} bytes", bytes.len()),
                Kind::Link(to) => writeln!(text, "    {path} -> {to}"),
            };
            self.dump_dir(ino, &format!("{path}/"), text);
        }
    }
}

/// Writes into bytes, with zeros in the gap if there is one.
pub fn overwrite(bytes: &mut Vec<u8>, offset: usize, new: &[u8]) {
    let end = offset + new.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[offset..end].copy_from_slice(new);
}
