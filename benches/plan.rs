//! What is measured: the table's lines, in order.

use crate::process;
use std::time::Duration;
use tempfile::TempDir;

/// The body of the entries that are queued and replayed by the thousand.
pub const SMALL: usize = 1024;
/// The body whose memory is measured: the longest that is taken.
pub const LARGE: u64 = 256 * 1024 * 1024;
/// Outboxes of one process.
pub const MANY: u32 = 1_000;
/// What a server that is some way off adds to every reply.
pub const LATENCY: Duration = Duration::from_millis(20);

/// How much work is done.
pub struct Scale {
    pub rounds: u16,
    enqueued: u32,
    synced: u32,
    replayed: u32,
    /// Over a line with latency, one at a time: fifty a second.
    far: u32,
    /// The same, many at a time: some two seconds of it, so that it is not the start that is measured.
    far_many: u32,
}

impl Scale {
    pub const FULL: Scale =
        Scale { rounds: 5, enqueued: 5_000, synced: 1_000, replayed: 2_000, far: 75, far_many: 5_000 };
    pub const QUICK: Scale =
        Scale { rounds: 3, enqueued: 2_000, synced: 200, replayed: 500, far: 20, far_many: 1_000 };
}

/// A directory to work in.
pub struct Place {
    pub name: &'static str,
    pub dir: TempDir,
}

impl Work {
    /// The entries among which the processor's time is divided.
    pub fn entries(&self, original: bool) -> Option<u32> {
        match *self {
            Work::Enqueue { entries, .. } => Some(entries),
            Work::Replay { original_entries, .. } if original => Some(original_entries),
            Work::Replay { entries, .. } => Some(entries),
            Work::Start | Work::SendLarge | Work::ReplayLarge => Some(1),
            Work::Idle => None,
        }
    }

    /// How often it is done. What takes a while and always gives the same is done once.
    pub fn rounds(&self, wanted: usize) -> usize {
        if matches!(self, Work::Idle) { 1 } else { wanted }
    }
}

/// A line of the table.
pub struct Row<'a> {
    pub name: String,
    pub place: &'a Place,
    pub unit: Unit,
    pub target: Option<Target>,
    pub work: Work,
}

/// What is done.
pub enum Work {
    /// Entries of [`SMALL`] are queued by so many callers at once; the original may be spared its syncs.
    Enqueue { entries: u32, callers: u32, sync: bool, original_sync: bool },
    /// Entries of [`SMALL`] are replayed. The original sends one at a time, so it is given fewer where
    /// many would take it minutes.
    Replay { entries: u32, original_entries: u32, concurrency: usize, latency: Duration },
    /// A process is started, to the arrival of its first request at the server.
    Start,
    /// A process queues a body of [`LARGE`] from a pipe.
    SendLarge,
    /// A process replays a body of [`LARGE`].
    ReplayLarge,
    /// A process has [`MANY`] outboxes, all idle.
    Idle,
}

/// What a figure is of.
#[derive(Clone, Copy)]
pub enum Unit {
    EntriesPerSecond,
    Milliseconds,
    Mebibytes,
    Kibibytes,
}

impl Unit {
    pub fn name(self) -> &'static str {
        match self {
            Unit::EntriesPerSecond => "entries/s",
            Unit::Milliseconds => "ms",
            Unit::Mebibytes => "MiB",
            Unit::Kibibytes => "KiB",
        }
    }
}

/// What is wanted.
#[derive(Clone, Copy)]
pub enum Target {
    /// At least so many times the original.
    TimesOriginal(f64),
    /// Less than this.
    Below(f64),
}

/// The lines that contain one of the filters, or all.
pub fn rows<'a>(scale: &Scale, places: &'a [Place], filters: &[String]) -> Vec<Row<'a>> {
    use Target::{Below, TimesOriginal};
    let mut rows = Vec::new();
    let mut add = |name: &str, on: &[&str], unit, target, work: fn(&Scale) -> Work| {
        for place in places.iter().filter(|place| on.contains(&place.name)) {
            let text = format!("{name}, {}", place.name);
            if filters.is_empty() || filters.iter().any(|filter| text.contains(filter.as_str())) {
                rows.push(Row { name: name.into(), place, unit, target, work: work(scale) });
            }
        }
    };
    // What makes files comes before what removes some; see the crate's documentation.
    let both = ["memory", "disk"];
    let rate = Unit::EntriesPerSecond;
    add("enqueue 1 KiB, no fsync, 1 caller", &both, rate, Some(TimesOriginal(1.3)), |scale| Work::Enqueue {
        entries: scale.enqueued,
        callers: 1,
        sync: false,
        original_sync: false,
    });
    add("enqueue 1 KiB, fsync, 1 caller", &["disk"], rate, None, |scale| Work::Enqueue {
        entries: scale.synced,
        callers: 1,
        sync: true,
        original_sync: true,
    });
    add(
        "enqueue 1 KiB, fsync, 64 callers (original: no fsync)",
        &["disk"],
        rate,
        Some(TimesOriginal(1.0)),
        |scale| Work::Enqueue { entries: scale.enqueued, callers: 64, sync: true, original_sync: false },
    );
    if process::can_tell_memory() {
        // The file system's own pages are not the process's.
        add("send 256 MiB: peak memory", &both, Unit::Mebibytes, Some(Below(96.0)), |_| Work::SendLarge);
    }
    add("start to first request, warm", &both, Unit::Milliseconds, Some(Below(50.0)), |_| Work::Start);
    add("replay 1 KiB, 1 at a time", &both, rate, Some(TimesOriginal(1.0)), |scale| Work::Replay {
        entries: scale.replayed,
        original_entries: scale.replayed,
        concurrency: 1,
        latency: Duration::ZERO,
    });
    add("replay 1 KiB, 16 at once", &both, rate, Some(TimesOriginal(3.0)), |scale| Work::Replay {
        entries: scale.replayed,
        original_entries: scale.replayed,
        concurrency: 16,
        latency: Duration::ZERO,
    });
    add("replay 1 KiB, server 20 ms away, 1 at a time", &["disk"], rate, None, |scale| Work::Replay {
        entries: scale.far,
        original_entries: scale.far,
        concurrency: 1,
        latency: LATENCY,
    });
    add("replay 1 KiB, server 20 ms away, 64 at once", &["disk"], rate, Some(TimesOriginal(50.0)), |scale| {
        Work::Replay {
            entries: scale.far_many,
            original_entries: scale.far,
            concurrency: 64,
            latency: LATENCY,
        }
    });
    if process::can_tell_memory() {
        add("replay 256 MiB: peak memory", &both, Unit::Mebibytes, Some(Below(96.0)), |_| Work::ReplayLarge);
    }
    if process::can_tell_memory() {
        add("1,000 idle outboxes: memory of each", &["memory"], Unit::Kibibytes, Some(Below(100.0)), |_| {
            Work::Idle
        });
    }
    rows
}
