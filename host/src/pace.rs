//! Whether writes come so quickly, one after the other, that it pays to have places for the next ones staged ahead
//! (`stage-ahead` in the WIT): on another thread, in a second instance, while this one's are used up.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Places that are staged at a time: so many that handing them over costs little, and each holds two files open.
pub(crate) const PLACES: u32 = 16;

/// From the end of one write to that of the next, at most. One that is synced takes longer: what staging saves does not
/// matter there.
const QUICK: Duration = if cfg!(test) { Duration::from_secs(10) } else { Duration::from_millis(1) };

/// When a caller's writes came.
#[derive(Default)]
pub(crate) struct Pace(Mutex<Row>);

#[derive(Default)]
struct Row {
    last: Option<Instant>,
    /// How many came quickly, one after the other.
    len: u32,
}

impl Pace {
    /// Notes the end of a write. One that was slow or failed ends the row.
    pub(crate) fn note(&self, queued: bool) {
        let now = Instant::now();
        let mut row = self.row();
        let quick = row.last.replace(now).is_some_and(|last| now.duration_since(last) < QUICK);
        row.len = if queued && quick { row.len.saturating_add(1) } else { 0 };
    }

    /// Whether many have come quickly.
    pub(crate) fn is_quick(&self) -> bool {
        self.row().len >= PLACES && has_another_processor()
    }

    fn row(&self) -> MutexGuard<'_, Row> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// On a single one, another thread brings nothing.
fn has_another_processor() -> bool {
    static COUNT: OnceLock<usize> = OnceLock::new();
    cfg!(test) || *COUNT.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from)) > 1
}
