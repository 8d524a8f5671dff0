//! What is measured: the table's lines, in order.

use crate::process;
use std::time::Duration;
use tempfile::TempDir;

/// The body of the entries that are queued and replayed by the thousand.
pub const SMALL: usize = 1024;
/// The body whose memory is measured: the longest that is taken.
pub const LARGE: u64 = 256 * 1024 * 1024;
/// The bodies of the long entries that are replayed together, and how many there are.
pub const BODY: u64 = 64 * 1024 * 1024;
pub const BODIES: u32 = 10;
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
    /// The longest queue.
    pub depth: u32,
}

impl Scale {
    pub const FULL: Scale = Scale {
        rounds: 5,
        enqueued: 5_000,
        synced: 1_000,
        replayed: 2_000,
        far: 75,
        far_many: 5_000,
        depth: 100_000,
    };
    pub const QUICK: Scale = Scale {
        rounds: 3,
        enqueued: 2_000,
        synced: 200,
        replayed: 500,
        far: 20,
        far_many: 1_000,
        depth: 10_000,
    };
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
            Work::Start | Work::SendLarge | Work::ReplayLarge | Work::EnqueueLarge => Some(1),
            Work::ReplayBodies => Some(BODIES),
            Work::First { .. } => Some(1),
            Work::Trickle { .. } | Work::Long { .. } | Work::Tick { .. } | Work::Idle => None,
        }
    }

    /// How often it is done. What takes a while and always gives the same is done once.
    pub fn rounds(&self, wanted: usize) -> usize {
        match self {
            Work::Idle | Work::Tick { .. } => 1,
            Work::First { .. } | Work::Long { .. } => wanted.min(3),
            _ => wanted,
        }
    }
}

/// A line of the table.
pub struct Row<'a> {
    pub name: String,
    pub place: &'a Place,
    pub unit: Unit,
    pub targets: &'static [Target],
    pub work: Work,
}

/// What is done.
#[derive(Clone, Copy)]
pub enum Work {
    /// Entries of [`SMALL`] are queued by so many callers at once; the original may be spared its syncs.
    Enqueue { entries: u32, callers: u32, sync: bool, original_sync: bool },
    /// Entries of [`SMALL`] are queued one after the other, with and without another body trickling in: the 99th
    /// percentile of their times, the one in terms of the other.
    Trickle { entries: u32 },
    /// Entries of [`SMALL`] are queued one after the other where so many wait, and where none does: the time of one, the
    /// one in terms of the other.
    Long { entries: u32, waiting: u32 },
    /// A body of [`LARGE`] in a file is queued durably; the floor copies the file.
    EnqueueLarge,
    /// Entries of [`SMALL`] are replayed. The original sends one at a time, so it is given fewer where
    /// many would take it minutes.
    Replay { entries: u32, original_entries: u32, concurrency: usize, latency: Duration },
    /// So many entries with [`BODY`] are replayed.
    ReplayBodies,
    /// The processor's time for a tick while so many wait, or none: then the server is not reached.
    Tick { waiting: u32 },
    /// A process is started, to the arrival of its first request at the server.
    Start,
    /// The same with so many entries waiting.
    First { waiting: u32 },
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
    MebibytesPerSecond,
    Milliseconds,
    Mebibytes,
    Kibibytes,
    Times,
}

impl Unit {
    pub fn name(self) -> &'static str {
        match self {
            Unit::EntriesPerSecond => "entries/s",
            Unit::MebibytesPerSecond => "MiB/s",
            Unit::Milliseconds => "ms",
            Unit::Mebibytes => "MiB",
            Unit::Kibibytes => "KiB",
            Unit::Times => "times",
        }
    }
}

/// What is wanted.
#[derive(Clone, Copy)]
pub enum Target {
    /// At least so many times the original.
    TimesOriginal(f64),
    /// At least so many times the floor.
    TimesFloor(f64),
    /// Less than this.
    Below(f64),
}

/// The lines that contain one of the filters, or all.
pub fn rows<'a>(scale: &Scale, places: &'a [Place], filters: &[String]) -> Vec<Row<'a>> {
    use Target::{Below, TimesFloor, TimesOriginal};
    let mut rows = Vec::new();
    let mut add = |name: &str, on: &[&str], unit, targets, work| {
        for place in places.iter().filter(|place| on.contains(&place.name)) {
            let text = format!("{name}, {}", place.name);
            if filters.is_empty() || filters.iter().any(|filter| text.contains(filter.as_str())) {
                rows.push(Row { name: name.into(), place, unit, targets, work });
            }
        }
    };
    let both = ["memory", "disk"];
    let (memory, disk) = (["memory"], ["disk"]);
    let rate = Unit::EntriesPerSecond;
    let depths = || {
        let mut depths = [100, 10_000, 1_000_000].map(|depth| scale.depth.min(depth)).to_vec();
        depths.dedup();
        depths
    };
    let enqueue = Work::Enqueue { entries: scale.enqueued, callers: 1, sync: false, original_sync: false };
    let synced = Work::Enqueue { entries: scale.synced, callers: 1, sync: true, original_sync: true };
    let many = Work::Enqueue { entries: scale.enqueued, callers: 64, sync: true, original_sync: false };
    let replay = |concurrency| Work::Replay {
        entries: scale.replayed,
        original_entries: scale.replayed,
        concurrency,
        latency: Duration::ZERO,
    };
    let far = |entries, concurrency| Work::Replay {
        entries,
        original_entries: scale.far,
        concurrency,
        latency: LATENCY,
    };

    // What makes files comes before what removes some; see the crate's documentation.
    add("enqueue 1 KiB, no fsync, 1 caller", &both, rate, &[TimesOriginal(1.5), TimesFloor(0.7)], enqueue);
    add("enqueue 1 KiB, fsync, 1 caller", &disk, rate, &[TimesFloor(0.9)], synced);
    add("enqueue 1 KiB, fsync, 64 callers (original: no fsync)", &disk, rate, &[TimesOriginal(1.0)], many);
    add(
        "enqueue 1 KiB while another body trickles in: p99",
        &both,
        Unit::Times,
        &[Below(2.0)],
        Work::Trickle { entries: scale.replayed },
    );
    for waiting in depths() {
        let name = format!("enqueue 1 KiB, {waiting} waiting, against none");
        add(&name, &memory, Unit::Times, &[Below(1.2)], Work::Long { entries: scale.replayed, waiting });
    }
    if process::can_tell_memory() {
        // The file system's own pages are not the process's.
        add("send 256 MiB: peak memory", &both, Unit::Mebibytes, &[Below(96.0)], Work::SendLarge);
    }
    add("start to first request, warm", &both, Unit::Milliseconds, &[Below(30.0)], Work::Start);
    for waiting in depths() {
        let name = format!("start to first request, {waiting} waiting");
        add(&name, &memory, Unit::Milliseconds, &[Below(1_000.0)], Work::First { waiting });
    }
    add("tick, nothing waits: CPU", &memory, Unit::Milliseconds, &[Below(1.0)], Work::Tick { waiting: 0 });
    for waiting in depths() {
        let name = format!("tick in an outage, {waiting} waiting: CPU");
        add(&name, &memory, Unit::Milliseconds, &[Below(5.0)], Work::Tick { waiting });
    }
    add("replay 1 KiB, 1 at a time", &both, rate, &[TimesOriginal(1.2), TimesFloor(0.7)], replay(1));
    add("replay 1 KiB, 16 at once", &both, rate, &[TimesOriginal(3.0), TimesFloor(0.7)], replay(16));
    add("replay 1 KiB, server 20 ms away, 1 at a time", &disk, rate, &[], far(scale.far, 1));
    add(
        "replay 1 KiB, server 20 ms away, 64 at once",
        &disk,
        rate,
        &[TimesOriginal(50.0)],
        far(scale.far_many, 64),
    );
    // Disks are slower for a while after this.
    add(
        "enqueue 256 MiB, fsync (floor: cp)",
        &disk,
        Unit::MebibytesPerSecond,
        &[TimesFloor(0.8)],
        Work::EnqueueLarge,
    );
    add("replay ten of 64 MiB", &both, Unit::MebibytesPerSecond, &[TimesFloor(0.8)], Work::ReplayBodies);
    if process::can_tell_memory() {
        add("replay 256 MiB: peak memory", &both, Unit::Mebibytes, &[Below(96.0)], Work::ReplayLarge);
        add("1,000 idle outboxes: memory of each", &memory, Unit::Kibibytes, &[Below(100.0)], Work::Idle);
    }
    rows
}
