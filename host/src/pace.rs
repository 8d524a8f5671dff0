//! Whether writes come so quickly, one after the other, that it pays to have places for the next ones staged ahead
//! (`stage-ahead` in the WIT): on another thread, in another instance, while this one's are used up.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Places that are staged at a time: so many that handing them over costs little, and each holds two files open.
pub(crate) const PLACES: u32 = 16;

/// From the end of one write to the beginning of the next, at most.
const QUICK: Duration = if cfg!(test) { Duration::from_secs(10) } else { Duration::from_millis(1) };

/// When writes came.
#[derive(Default)]
pub(crate) struct Pace(Mutex<Row>);

#[derive(Default)]
struct Row {
    last: Option<Instant>,
    /// How many came quickly, one after the other.
    len: u32,
}

impl Pace {
    /// Notes the beginning of a write; whether it is one of many that come quickly.
    pub(crate) fn begin(&self) -> bool {
        let mut row = self.row();
        if row.last.is_none_or(|last| last.elapsed() >= QUICK) {
            row.len = 0;
        }
        row.len >= PLACES && has_another_processor()
    }

    /// Notes the end of a write. One that failed ends the row.
    pub(crate) fn end(&self, queued: bool) {
        let mut row = self.row();
        row.last = Some(Instant::now());
        row.len = if queued { row.len.saturating_add(1) } else { 0 };
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
