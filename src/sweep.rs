//! What is removed from `.staging`: entries that have left the queue, and what a crash left of those that were to enter it.

use crate::Result;
use crate::clock;
use crate::dir::Dir;
use crate::id::EntryId;
use crate::layout::{ABANDONED_AFTER, BODY, STAGING, SWEPT};
use crate::queue::Queue;
use std::cell::Cell;
use wasi::clocks::monotonic_clock;

/// How long a sweep does not look again for what a crash has left, in nanoseconds.
const LOOK_AGAIN: u64 = 60_000_000_000;

/// When it was last looked for what a crash has left. Monotonic, in nanoseconds.
#[derive(Debug, Default)]
pub struct Looked(Cell<Option<u64>>);

impl Looked {
    /// Whether it is time to look again; if so, this is the time.
    fn is_time(&self) -> bool {
        let now = monotonic_clock::now();
        let is_time = self.0.get().is_none_or(|at| now.saturating_sub(at) >= LOOK_AGAIN);
        if is_time {
            self.0.set(Some(now));
        }
        is_time
    }
}

impl Queue {
    /// Removes from `.staging` what has left the queue, and what a crash left of what was to enter it; of the latter, an
    /// instance that sweeps on and on looks for some once a minute.
    pub fn sweep(&self) -> Result<()> {
        let opened = match self.dir.open(STAGING) {
            Ok(staging) => staging,
            Err(fault) if fault.is_missing() => return Ok(()),
            Err(fault) => return Err(fault.into()),
        };
        let (mut retired, mut others) = (Vec::new(), Vec::new());
        opened.list(|name, _| match EntryId::parse(&name) {
            Some(_) => retired.push(name),
            None => others.push(name),
        })?;
        if others.is_empty() || !self.looked.is_time() {
            others.clear();
        } else {
            others.retain(|name| is_abandoned(&opened, name));
        }
        if retired.is_empty() && others.is_empty() {
            return Ok(());
        }
        // Some were taken out of the queue by somebody who has not made that durable yet, or did not live to.
        self.sync_dir()?;
        for name in retired {
            self.erase(&name);
        }
        for name in &others {
            // By one rename first: whoever still writes it (the clock may have been set forward) then fails to
            // publish it, rather than publishing what is left of it.
            let swept = match name.ends_with(SWEPT) {
                true => name.clone(),
                false => format!("{name}{SWEPT}"),
            };
            // One that cannot be removed keeps no others from it.
            let _ = opened.remove(&swept);
            if swept != *name && opened.rename(name, &opened, &swept).is_ok() {
                let _ = opened.remove(&swept);
            }
        }
        Ok(())
    }
}

/// Whether something in `.staging` was left by a crash. A body that is still growing is being written, however
/// long ago it was begun.
pub fn is_abandoned(staging: &Dir, name: &str) -> bool {
    let mut youngest = None;
    for path in [format!("{name}/{BODY}"), name.to_owned()] {
        match staging.stat(&path) {
            Ok(stat) => {
                youngest =
                    [youngest, clock::age(stat.data_modification_timestamp)].into_iter().flatten().min()
            }
            Err(fault) if fault.is_no_directory() => {}
            // What cannot be looked at now is left for another time.
            Err(_) => return false,
        }
    }
    youngest.is_some_and(|age| age >= ABANDONED_AFTER)
}
