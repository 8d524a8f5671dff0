//! What is to happen in a run: plain data, made from a seed. Each step has a salt of its own, so that it does the
//! same when others are taken out: that is what makes a failing plan shrink.

use crate::durable::{Loss, Odds};
use crate::mood::{Mood, Trouble};
use crate::peer::Peer;
use crate::rng::Rng;
use crate::world::{Crash, Faults, Op, Point};

/// A run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where it comes from.
    pub seed: u64,
    /// The component's configuration and the server's.
    pub setting: Setting,
    /// What happens, before the end that every run has.
    pub steps: Vec<Step>,
    /// The power fails at the end, before the queue is drained.
    pub lights_out: Option<Loss>,
}

/// How everything is set up.
#[derive(Debug, Clone)]
pub struct Setting {
    /// Requests in flight at once.
    pub concurrency: u64,
    /// The whole queue is one line.
    pub strict: bool,
    /// The upstream is below a path.
    pub prefix: bool,
    /// So many entries may be pending.
    pub max_entries: Option<u64>,
    /// Two processes replay, and a lease keeps them apart, as under hosts that take no lock.
    pub lease: bool,
    /// What of the component's choices is not the default. By the seed alone, so that other seeds keep their plans.
    pub mode: Mode,
}

/// A choice of how to replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The defaults.
    Default,
    /// A POST or PATCH that may have been applied waits for an operator.
    Hold,
    /// A PUT that a later write replaces is left out.
    Coalesce,
    /// What is refused, for whatever it is or for want of credentials, is removed.
    Drop,
}

impl Mode {
    /// Seeds that had failed before there were modes have none, so that they show the same as ever.
    fn of(seed: u64) -> Mode {
        match (seed % 32, seed % 64) {
            (9 | 17, _) => Mode::Hold,
            (1 | 11, _) | (_, 55) => Mode::Coalesce,
            (6 | 16, _) => Mode::Drop,
            _ => Mode::Default,
        }
    }
}

/// One thing that happens.
#[derive(Debug, Clone)]
pub struct Step {
    /// The seed of what is random in it.
    pub salt: u64,
    /// What it is.
    pub what: What,
}

/// What can happen.
#[derive(Debug, Clone)]
pub enum What {
    /// Processes call the component, all at once.
    Calls {
        /// One each.
        calls: Vec<Call>,
        /// One of them dies.
        crash: Option<Crash>,
        /// The file system fails.
        faults: Option<Faults>,
        /// The wall clock is set, before the so many-th file system call, by so many seconds.
        jump: Option<(u64, i64)>,
    },
    /// The server's mood changes.
    Mood(Mood),
    /// Somebody else changes a resource.
    Foreign {
        /// Which.
        path: &'static str,
        /// Removes it.
        remove: bool,
    },
    /// Time passes, in seconds.
    Wait(u64),
    /// The wall clock is set, by so many seconds.
    Jump(i64),
    /// The monotonic clock jumps ahead, by so many seconds, as after a suspension.
    Suspend(u64),
    /// Something on the disk is damaged.
    Damage(Damage),
    /// The power fails while nothing runs.
    PowerFailure(Loss),
}

/// A call.
#[derive(Debug, Clone)]
pub struct Call {
    /// Which process makes it: 0 replays and does nothing else.
    pub process: usize,
    /// What.
    pub does: Does,
}

/// What a process can do.
#[derive(Debug, Clone)]
pub enum Does {
    /// Queues a write.
    Enqueue(Write),
    /// Queues writes whose bodies are at hand, in one call.
    Batch(Vec<Write>),
    /// The same in two, between which the host makes all that is written durable.
    BatchAtOnce(Vec<Write>),
    /// Has so many places staged ahead.
    StageAhead(u32),
    /// Makes a pass.
    Replay {
        /// At once.
        wake: bool,
        /// Told what the last pass said.
        resume: bool,
        /// For so long.
        budget_ms: Option<u64>,
    },
    /// Lists what is pending.
    Pending,
    /// Lists what was set aside.
    Quarantined,
    /// Counts, and sweeps.
    Count,
    /// Checks everything.
    Verify,
    /// Looks at an entry, picked by a number.
    Get(u64),
    /// Reads an entry's body.
    ReadBody(u64),
    /// Ends a conflict, keeping mine or theirs.
    Resolve(u64, bool),
    /// Makes an entry due, or puts it back.
    Retry(u64),
    /// Has everything sent again that may have been applied.
    Release,
    /// Removes an entry.
    Drop(u64),
}

/// A write to be queued.
#[derive(Debug, Clone)]
pub struct Write {
    /// The method.
    pub method: &'static str,
    /// Path and query.
    pub uri: &'static str,
    /// The body's length.
    pub len: usize,
    /// What it is based on.
    pub base: BaseWish,
    /// As a stream; none for bytes at hand.
    pub stream: Option<Stream>,
}

/// What a write is to be based on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BaseWish {
    /// Nothing.
    None,
    /// It must not exist.
    Create,
    /// The version that is there now, by ETag if it has one that can be used, else by time.
    Current,
    /// A version that is there no more.
    Stale,
}

/// How a body comes.
#[derive(Debug, Clone)]
pub struct Stream {
    /// In pieces of so many bytes.
    pub piece: usize,
    /// With such pauses.
    pub pause_ms: u64,
    /// Breaking off after so many bytes.
    pub breaks_at: Option<usize>,
}

/// Damage to an entry or to the queue's directory. The number picks the entry.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Damage {
    BodyShort(u64),
    BodyFlipped(u64),
    BodyGone(u64),
    BodyDirectory(u64),
    MetaGone(u64),
    MetaEmpty(u64),
    MetaGarbage(u64),
    MetaNested(u64),
    MetaDirectory(u64),
    StateGarbage(u64),
    EntryFile(u64),
    EntryLink(u64),
    StrayFile,
    StrayInStaging,
}

/// Paths that concern each other, and some that do not.
pub const PATHS: [&str; 8] = ["/a", "/a/b", "/a/b/c.txt", "/a/d", "/e", "/f?x=1", "/f", "/g%20h"];

impl Plan {
    /// The plan of a seed.
    pub fn new(seed: u64) -> Plan {
        let mut rng = Rng::new(seed);
        let setting = Setting {
            concurrency: rng.pick(&[1, 2, 4, 4, 8]),
            strict: rng.percent(10),
            prefix: rng.percent(25),
            max_entries: rng.percent(10).then(|| rng.range(1, 4)),
            lease: rng.percent(15),
            mode: Mode::of(seed),
        };
        // What a run is about: without this, every run would be a little of everything and deep in nothing.
        let theme = Theme {
            faults: rng.percent(40),
            crashes: rng.percent(70),
            damage: rng.percent(15),
            clock: rng.percent(30),
            together: rng.percent(40),
            trouble: rng.percent(70),
            replayers: if setting.lease { 2 } else { 1 },
            chain: (seed % 8 == 7)
                .then(|| {
                    let peer = Peer::new(seed, "");
                    ["/a", "/e", "/a/b", "/a/d", "/a/b/c.txt", "/f"]
                        .into_iter()
                        .find(|path| peer.is_strong(path))
                })
                .flatten(),
            batches: matches!(seed % 16, 2 | 12) || seed % 32 == 24,
            at_once: seed % 16 == 12 || seed % 64 == 24,
            ahead: matches!(seed % 32, 4 | 24),
            mode: setting.mode,
        };
        let count = rng.range(4, 14);
        let steps = (0..count).map(|_| Step { salt: rng.word(), what: theme.what(&mut rng) }).collect();
        let lights_out = rng.percent(50).then(|| loss(&mut rng));
        Plan { seed, setting, steps, lights_out }
    }
}

struct Theme {
    faults: bool,
    crashes: bool,
    damage: bool,
    clock: bool,
    together: bool,
    trouble: bool,
    /// How many processes replay: the first ones. All but the first do anything.
    replayers: u64,
    /// Edits of one resource that has strong ETags, on top of each other, and passes that die. By the seed alone,
    /// so that other seeds keep their plans.
    chain: Option<&'static str>,
    /// Writes come in batches. By the seed alone, too.
    batches: bool,
    /// These are made durable at once.
    at_once: bool,
    /// Places are staged ahead of writes. By the seed alone, too.
    ahead: bool,
    /// What writes are mostly about.
    mode: Mode,
}

impl Theme {
    fn what(&self, rng: &mut Rng) -> What {
        match rng.below(100) {
            0..8 if self.trouble => {
                let percent = rng.pick(&[20, 50, 100]);
                What::Mood(Mood { trouble: Trouble::any(rng), percent })
            }
            8..12 => What::Foreign {
                path: self.chain.unwrap_or_else(|| path_of(rng.pick(&PATHS))),
                remove: rng.percent(25),
            },
            12..17 => What::Wait(rng.pick(&[1, 31, 300, 4000, 90_000])),
            17..22 if self.clock => What::Jump(jump(rng)),
            22..24 if self.clock => What::Suspend(rng.range(1, 86_400)),
            24..31 if self.damage => What::Damage(damage(rng)),
            31..34 if self.crashes => What::PowerFailure(loss(rng)),
            _ => self.calls(rng),
        }
    }

    fn write(&self, rng: &mut Rng) -> Write {
        let any = write(rng);
        match (self.chain, self.mode) {
            (None, Mode::Hold) => Write { method: rng.pick(&["POST", "POST", "PATCH", "PUT"]), ..any },
            (None, Mode::Coalesce) => Write {
                method: rng.pick(&["PUT", "PUT", "PUT", "PUT", "DELETE", "POST"]),
                uri: PATHS[rng.below(2) as usize],
                ..any
            },
            (None, _) => any,
            (Some(uri), _) => Write {
                method: rng.pick(&["PUT", "PUT", "PUT", "PATCH", "DELETE"]),
                uri,
                len: any.len % 3000,
                base: rng.pick(&[BaseWish::Current, BaseWish::Current, BaseWish::Current, BaseWish::None]),
                stream: None,
            },
        }
    }

    fn calls(&self, rng: &mut Rng) -> What {
        let mut calls = Vec::new();
        let count = if self.together && rng.percent(60) { rng.range(2, 3) as usize } else { 1 };
        for process in 0..count {
            let does = match rng.below(100) {
                0..10 if self.ahead => Does::StageAhead(rng.below(5) as u32),
                0..45 if self.batches => {
                    let count = rng.range(1, 4);
                    let writes = (0..count).map(|_| Write { stream: None, ..self.write(rng) }).collect();
                    if self.at_once { Does::BatchAtOnce(writes) } else { Does::Batch(writes) }
                }
                0..45 => Does::Enqueue(self.write(rng)),
                45..80 => Does::Replay {
                    wake: rng.percent(50),
                    resume: rng.percent(70),
                    budget_ms: rng.percent(10).then(|| rng.range(1, 5000)),
                },
                _ => operator(rng),
            };
            // One process replays, all the others do the rest.
            let process = match does {
                Does::Replay { .. } => rng.below(self.replayers) as usize,
                _ => process + 1,
            };
            let taken = calls.iter().any(|call: &Call| call.process == process);
            if !taken {
                calls.push(Call { process, does });
            }
        }
        let crash = ((self.crashes || self.chain.is_some()) && rng.percent(45)).then(|| {
            let power = rng.percent(65).then(|| loss(rng));
            Crash { victim: rng.below(calls.len() as u64) as usize, at: point(rng), power }
        });
        let faults = (self.faults && rng.percent(50)).then(|| faults(rng));
        let jump = (self.clock && rng.percent(20)).then(|| (rng.range(1, 40), jump(rng)));
        What::Calls { calls, crash, faults, jump }
    }
}

/// A clock's correction, mostly backwards: that is what hurts.
fn jump(rng: &mut Rng) -> i64 {
    let most = rng.pick(&[1, 3600, 86_400]);
    let size = rng.range(1, most) as i64;
    if rng.percent(60) { -size } else { size }
}

/// The path of a path and query.
pub fn path_of(uri: &'static str) -> &'static str {
    uri.split('?').next().unwrap_or(uri)
}

fn write(rng: &mut Rng) -> Write {
    let len = match rng.below(20) {
        0 => 0,
        1 | 2 => rng.below(200 * 1024) as usize,
        3 => 64 * 1024,
        _ => rng.below(3000) as usize,
    };
    let stream = rng.percent(35).then(|| Stream {
        piece: rng.range(1, 70_000) as usize,
        pause_ms: if rng.percent(30) { rng.below(5000) } else { 0 },
        breaks_at: rng.percent(20).then(|| rng.below(len as u64 + 1) as usize),
    });
    Write {
        method: rng.pick(&["PUT", "PUT", "PUT", "POST", "PATCH", "DELETE", "MKCOL"]),
        // Mostly few paths, so that they meet.
        uri: if rng.percent(60) { PATHS[rng.below(3) as usize] } else { rng.pick(&PATHS) },
        len,
        base: rng.pick(&[
            BaseWish::None,
            BaseWish::None,
            BaseWish::Create,
            BaseWish::Current,
            BaseWish::Current,
            BaseWish::Stale,
        ]),
        stream,
    }
}

fn operator(rng: &mut Rng) -> Does {
    let pick = rng.word();
    match rng.below(12) {
        0 => Does::Pending,
        1 => Does::Quarantined,
        2 => Does::Count,
        3 | 4 => Does::Verify,
        5 => Does::Get(pick),
        6 => Does::ReadBody(pick),
        7 | 8 => Does::Resolve(pick, rng.percent(70)),
        9 | 10 => Does::Retry(pick),
        _ => Does::Drop(pick),
    }
}

/// Any loss, mostly of everything that can be lost: that finds most.
pub fn loss(rng: &mut Rng) -> Loss {
    let odds = [Odds::Never, Odds::Never, Odds::Even, Odds::Always];
    Loss { names: rng.pick(&odds), data: rng.pick(&odds) }
}

fn point(rng: &mut Rng) -> Point {
    let calls = rng.pick(&[8, 20, 60]);
    match rng.below(10) {
        0..4 => Point::Before(rng.range(1, calls)),
        4..7 => Point::After(rng.range(1, calls)),
        7..9 => {
            // From a few instructions to a whole pass: any order of magnitude.
            let most = 10u64.pow(rng.range(3, 7) as u32);
            Point::Fuel(rng.range(1, most))
        }
        _ => Point::Time(rng.below(20_000)),
    }
}

fn faults(rng: &mut Rng) -> Faults {
    use Op::{Create, List, MakeDir, Open, Read, Remove, Rename, Stat, Sync, Write};
    let all = [Open, Create, MakeDir, Read, Write, Sync, Rename, Stat, List, Remove];
    let ops = match rng.below(8) {
        0 => vec![Create, MakeDir, Write, Sync, Rename],
        1 | 2 => vec![Sync],
        3 => vec![Read, Open, Stat, List],
        4 => vec![Rename],
        5 => vec![Write],
        6 => vec![rng.pick(&all)],
        _ => all.to_vec(),
    };
    Faults {
        ops,
        percent: rng.pick(&[15, 50, 100, 100]),
        from: if rng.percent(60) { rng.below(40) } else { 0 },
        length: rng.pick(&[1, 5, 30, 1000]),
        full: rng.percent(60),
    }
}

fn damage(rng: &mut Rng) -> Damage {
    use Damage::*;
    let pick = rng.word();
    match rng.below(14) {
        0 => BodyShort(pick),
        1 => BodyFlipped(pick),
        2 => BodyGone(pick),
        3 => BodyDirectory(pick),
        4 => MetaGone(pick),
        5 => MetaEmpty(pick),
        6 => MetaGarbage(pick),
        7 => MetaNested(pick),
        8 => MetaDirectory(pick),
        9 => StateGarbage(pick),
        10 => EntryFile(pick),
        11 => EntryLink(pick),
        12 => StrayFile,
        _ => StrayInStaging,
    }
}
