//! The ids of pending entries in queue order, none without those that were queued before it. A directory is not listed
//! in one moment: of two names that appear meanwhile, the later may be seen and the earlier not, though that
//! was acknowledged before the later was queued. Sent without it, the later one would overtake it.

use crate::Result;
use crate::clock;
use crate::id::EntryId;
use crate::layout::{self, Name};
use crate::queue::Queue;
use std::time::Duration;
use wasi::clocks::monotonic_clock;
use wasi::clocks::wall_clock::Datetime;

/// A file system's time may stand still for so long: of two changes in that time, the second may not show. Where times
/// have whole seconds, as on FAT, it does for two.
const TICK: Duration = Duration::from_millis(50);
const COARSE_TICK: Duration = Duration::from_secs(2);

/// Listings after which what was seen must do: each further one is due to somebody who queued or put back something
/// meanwhile, whose id had been given out before.
const ROUNDS: usize = 10;

/// More entries than this take longer to list than a tick lasts.
const LONG: usize = 20_000;

/// Lists them.
pub fn ids(queue: &Queue) -> Result<Vec<EntryId>> {
    let mut before = changed(queue).filter(is_past);
    let mut seen = Vec::new();
    queue.dir.list_while(|name, _| {
        if let Name::Pending(id) = layout::parse(&name) {
            seen.push(id);
        }
        before.is_some() || seen.len() < LONG
    })?;
    if before.is_none() && seen.len() == LONG {
        // Whoever replays has just put his lease there. To wait for it to be past is sooner done than to list all twice.
        monotonic_clock::subscribe_duration(TICK.as_nanos() as u64).block();
        before = changed(queue).filter(is_past);
        seen = queue.ids()?;
    }
    seen.sort_unstable();
    match before.is_some_and(|before| changed(queue).is_some_and(|after| same(before, after))) {
        // Nothing came or went.
        true => Ok(seen),
        false => complete(queue, seen),
    }
}

/// Adds what a listing has missed. Whatever was queued before something that it shows was there when it ended. So
/// the next one shows it; and where that shows nothing else, there was nothing.
pub fn complete(queue: &Queue, mut seen: Vec<EntryId>) -> Result<Vec<EntryId>> {
    let Some(newest) = seen.last().copied() else { return Ok(seen) };
    for _ in 0..ROUNDS {
        let mut missed = Vec::new();
        queue.names(|name, _| {
            if let Name::Pending(id) = layout::parse(name)
                && id <= newest
                && seen.binary_search(&id).is_err()
            {
                missed.push(id);
            }
        })?;
        if missed.is_empty() {
            break;
        }
        seen.extend(missed);
        seen.sort_unstable();
    }
    Ok(seen)
}

fn same(a: Datetime, b: Datetime) -> bool {
    (a.seconds, a.nanoseconds) == (b.seconds, b.nanoseconds)
}

/// Whether what changes now would show beside a change that was made then.
fn is_past(changed: &Datetime) -> bool {
    let tick = if changed.nanoseconds == 0 { COARSE_TICK } else { TICK };
    clock::age(Some(*changed)).is_some_and(|age| age >= tick)
}

/// When something last came or went; none where the host does not say.
fn changed(queue: &Queue) -> Option<Datetime> {
    queue.dir.stat_self().ok()?.data_modification_timestamp
}
