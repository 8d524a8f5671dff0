//! Where a write is put together before it is published: a directory of its own in `.staging`, with an entry's two
//! files. Making these takes half of the time of a small write, and syncing their names one of the four syncs of a
//! durable one. A host may have it done ahead, on another thread, for a caller who queues one write after the other.
//! Nothing depends on that: what is made ahead and never used is removed, or swept an hour later.

use crate::Result;
use crate::dir::{Dir, Fault, File};
use crate::layout::{BODY, META};
use crate::queue::Queue;
use std::cell::RefCell;
use wasi::random::random::get_random_bytes;

/// How many are made ahead at most: each holds two files open.
const MOST: u32 = 64;

/// A directory in `.staging` with an entry's files, which are empty.
#[derive(Debug)]
pub struct Staged {
    /// The directory's name.
    pub name: String,
    /// `body.bin`, open for writing.
    pub body: File,
    /// `meta.json`, open for writing.
    pub meta: File,
    /// The files' names are durable.
    pub named: bool,
}

impl Staged {
    /// Makes one. On an error nothing is left but what cannot be removed either.
    pub fn create(staging: &Dir) -> Result<Staged> {
        let name = hex::encode(get_random_bytes(8));
        staging.create_dir(&name)?;
        match files(staging, &name) {
            Ok((body, meta)) => Ok(Staged { name, body, meta, named: false }),
            Err(fault) => {
                let _ = staging.remove(&name);
                Err(fault.into())
            }
        }
    }
}

fn files(staging: &Dir, name: &str) -> Result<(File, File), Fault> {
    let create = |file| staging.create(&format!("{name}/{file}"));
    Ok((create(BODY)?, create(META)?))
}

/// Those that were made ahead.
#[derive(Debug, Default)]
pub struct Ahead(RefCell<Vec<Staged>>);

impl Ahead {
    /// Takes one, if there is one.
    pub fn take(&self) -> Option<Staged> {
        self.0.borrow_mut().pop()
    }

    /// Makes some, or removes some, until there are so many; how many there are. Where one cannot be made, all go: they may
    /// be what fills the disk.
    pub fn prepare(&self, queue: &Queue, count: u32) -> Result<u32> {
        let (staging, count) = (queue.staging()?, count.min(MOST) as usize);
        let mut ready = self.0.borrow_mut();
        let made = make(&mut ready, queue.sync, staging, count);
        let kept = if made.is_ok() { count.min(ready.len()) } else { 0 };
        for Staged { name, body, meta, .. } in ready.drain(kept..) {
            // Some systems do not remove what is open.
            drop((body, meta));
            // What cannot be removed now is swept later.
            let _ = staging.remove(&name);
        }
        made.map(|()| kept as u32)
    }
}

/// Makes as many as are missing. All first, then their names are synced: the first sync does most of the work for the others.
fn make(ready: &mut Vec<Staged>, sync: bool, staging: &Dir, count: usize) -> Result<()> {
    while ready.len() < count {
        ready.push(Staged::create(staging)?);
    }
    for staged in ready.iter_mut().filter(|staged| sync && !staged.named) {
        staging.open(&staged.name)?.sync()?;
        staged.named = true;
    }
    Ok(())
}
