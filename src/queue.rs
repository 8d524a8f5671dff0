//! The queue on disk: its directories, what is in it by name, and how entries are annotated and removed.

use crate::config::Config;
use crate::dir::{DescriptorType, Dir, ErrorCode, Fault, File};
use crate::enqueue;
use crate::error::undo_failed;
use crate::id::EntryId;
use crate::layout::{self, BODY, META, Name, STAGING, STATE};
use crate::meta::to_json;
use crate::staged::Ahead;
use crate::state::State;
use crate::sweep::Looked;
use crate::unloadable::Unloadable;
use crate::{Error, Result};
use std::cell::OnceCell;
use std::time::SystemTime;
use wasi::random::random::get_random_bytes;

/// The queue.
#[derive(Debug)]
pub struct Queue {
    /// ROOT, where cached files may be.
    pub root: Dir,
    /// `.zddc-outbox`.
    pub dir: Dir,
    /// Whether writes are synced.
    pub sync: bool,
    /// What is staged ahead.
    pub ahead: Ahead,
    staging: OnceCell<Dir>,
    newest: OnceCell<File>,
    /// When [`Queue::sweep`] last looked for what a crash has left.
    pub looked: Looked,
}

impl Queue {
    /// Opens the queue, making its directory where it is missing. (The bundled host has made it before, with
    /// mode 0700, which a guest cannot set.)
    pub fn open(config: &Config) -> Result<Queue> {
        // As early as can be: the clock may be set before an id is given out.
        let _ = enqueue::forward(SystemTime::now());
        let root = Dir::root()?;
        let dir = match root.open(layout::OUTBOX_DIR) {
            Err(fault) if fault.is_missing() => {
                let dir = root.open_or_create(layout::OUTBOX_DIR)?;
                if config.sync {
                    root.sync()?;
                }
                dir
            }
            opened => opened?,
        };
        Ok(Queue {
            root,
            dir,
            sync: config.sync,
            ahead: Ahead::default(),
            staging: OnceCell::new(),
            newest: OnceCell::new(),
            looked: Looked::default(),
        })
    }

    /// Calls `each` with every name in the queue's directory that is UTF-8; how many are not.
    pub fn names(&self, mut each: impl FnMut(&str, DescriptorType)) -> Result<usize> {
        Ok(self.dir.list(|name, kind| each(&name, kind))?)
    }

    /// The names that stand for pending entries, in queue order. Whatever has such a name counts, a file
    /// or a link too: [`Queue::load`] finds it damaged.
    pub fn ids(&self) -> Result<Vec<EntryId>> {
        let mut ids = Vec::new();
        self.names(|name, _| {
            if let Name::Pending(id) = layout::parse(name) {
                ids.push(id);
            }
        })?;
        ids.sort_unstable();
        Ok(ids)
    }

    /// Whether a pending entry was removed or set aside by somebody else.
    pub fn is_gone(&self, id: EntryId) -> bool {
        self.dir.stat(&id.to_string()).is_err_and(|fault| fault.is_missing())
    }

    /// Replaces an entry's state.json. A power failure may bring the old one back.
    pub fn save_state(&self, id: EntryId, state: &State) -> Result<()> {
        self.replace_state(&self.dir, &format!("{id}/{STATE}"), state)
    }

    /// The same wherever the entry is.
    pub fn replace_state(&self, dir: &Dir, path: &str, state: &State) -> Result<()> {
        self.put_state(dir, path, state, || Ok(true)).map(|_| ())
    }

    /// The same for a pending entry, unless somebody else has changed it since it was this, or taken the entry; whether it
    /// was replaced.
    pub fn swap_state(&self, id: EntryId, was: &State, state: &State) -> Result<bool> {
        let same = || match self.load(id) {
            Ok(now) => Ok(now.state == *was),
            Err(Unloadable::Io(error)) => Err(error),
            Err(_) => Ok(false),
        };
        match self.put_state(&self.dir, &format!("{id}/{STATE}"), state, same) {
            Err(_) if self.is_gone(id) => Ok(false),
            put => put,
        }
    }

    fn put_state(
        &self,
        dir: &Dir,
        path: &str,
        state: &State,
        may: impl FnOnce() -> Result<bool>,
    ) -> Result<bool> {
        let staging = self.staging()?;
        // Under a name of its own: a pass and an operator may write the same entry's at once.
        let new = format!("{STATE}.{}", hex::encode(get_random_bytes(8)));
        let written = staging.write(&new, &to_json(state), self.sync);
        // As late as can be: writing takes the longest.
        let put = written.map_err(Error::from).and_then(|()| match may()? {
            true => Ok(staging.rename(&new, dir, path).map(|()| true)?),
            false => Ok(false),
        });
        if !matches!(put, Ok(true)) {
            // Half a file helps nobody, least of all on a full disk.
            let _ = staging.unlink(&new);
        }
        put
    }

    /// The same, durable when it returns.
    pub fn save_state_durably(&self, id: EntryId, state: &State) -> Result<()> {
        self.save_state(id, state)?;
        self.sync_entry(&self.dir, &id.to_string())
    }

    /// Takes something out of the queue: one rename into `.staging`, so that no half of it is ever visible.
    /// What is left takes space only. [`Queue::erase`] frees that once the rename is durable, or the sweep
    /// after a crash.
    pub fn retire(&self, from: &Dir, name: &str) -> Result<()> {
        let staging = self.staging()?;
        match from.rename(name, staging, name) {
            // A removal that failed half-way has left the name.
            Err(fault) if matches!(fault.code, ErrorCode::NotEmpty | ErrorCode::Exist) => {
                staging.remove(name)?;
                Ok(from.rename(name, staging, name)?)
            }
            // Somebody else was quicker.
            Err(fault) if fault.is_missing() && from.stat(name).is_err_and(|gone| gone.is_missing()) => {
                Err(Error::NoSuchEntry(name.into()))
            }
            renamed => Ok(renamed?),
        }
    }

    /// Deletes what was retired; what cannot be deleted now is left to the sweep. Before the rename is durable
    /// this would be wrong: after a power failure the name could be back in the queue, without its files.
    pub fn erase(&self, name: &str) {
        let Ok(staging) = self.staging() else { return };
        // The files of a common entry are known by name, which spares a listing.
        for file in [META, BODY] {
            let _ = staging.unlink(&format!("{name}/{file}"));
        }
        if staging.remove_dir(name).is_err() {
            let _ = staging.remove(name);
        }
    }

    /// Removes something for good, durably. Where that fails, it is where it was, unless the error says otherwise: which of
    /// both is durable is not known then, and either is a right one.
    pub fn discard(&self, from: &Dir, name: &str) -> Result<()> {
        self.retire(from, name)?;
        if self.sync
            && let Err(fault) = from.sync()
        {
            let back = self.staging()?.rename(name, from, name);
            return Err(undo_failed(fault.into(), back.is_err(), || {
                format!("{name} is out of the queue all the same, and a power failure may bring it back")
            }));
        }
        self.erase(name);
        Ok(())
    }

    /// Makes renames in the queue's directory durable.
    pub fn sync_dir(&self) -> Result<()> {
        match self.sync {
            true => Ok(self.dir.sync()?),
            false => Ok(()),
        }
    }

    /// Makes the names in an entry's directory durable.
    pub fn sync_entry(&self, dir: &Dir, name: &str) -> Result<()> {
        match self.sync {
            true => Ok(dir.open(name)?.sync()?),
            false => Ok(()),
        }
    }

    /// Makes a move from one directory to another durable.
    pub fn sync_move(&self, new: &Dir, old: &Dir) -> Result<()> {
        if self.sync {
            // The new name first: a crash in between then shows the entry twice rather than nowhere.
            new.sync()?;
            old.sync()?;
        }
        Ok(())
    }

    /// `.staging`, made where it is missing.
    pub fn staging(&self) -> Result<&Dir> {
        if let Some(staging) = self.staging.get() {
            return Ok(staging);
        }
        let opened = self.dir.open_or_create(STAGING)?;
        Ok(self.staging.get_or_init(|| opened))
    }

    /// `.newest`, open for reading and writing; none where something else is in its place.
    pub fn newest(&self) -> Result<Option<&File>> {
        if let Some(file) = self.newest.get() {
            return Ok(Some(file));
        }
        let opened = match self.dir.open_or_create_file(layout::NEWEST) {
            Err(fault) if matches!(fault.code, ErrorCode::IsDirectory | ErrorCode::Loop) => return Ok(None),
            opened => opened?,
        };
        let fault = |code| Fault { doing: format!("cannot prepare {}", layout::NEWEST), code };
        let stat = opened.stat().map_err(fault)?;
        if stat.type_ != DescriptorType::RegularFile {
            return Ok(None);
        }
        if stat.size < layout::NOTES_LEN {
            // The first write of all: who made the queue's directory may have died before its name was durable.
            if self.sync {
                self.root.sync()?;
            }
            opened.write(b"\n", layout::NOTES_LEN - 1).map_err(fault)?;
        }
        Ok(Some(self.newest.get_or_init(|| opened)))
    }

    /// Calls `each` with the name, id and time of everything in `rejected/` or `corrupt/`.
    pub fn each_aside(&self, place: &str, mut each: impl FnMut(&str, EntryId, &str)) -> Result<()> {
        let dir = match self.dir.open(place) {
            Err(fault) if fault.is_no_directory() => return Ok(()),
            opened => opened?,
        };
        dir.list(|name, _| {
            if let Some((id, stamp)) = layout::parse_aside(&name) {
                each(&name, id, stamp);
            }
        })?;
        Ok(())
    }
}
