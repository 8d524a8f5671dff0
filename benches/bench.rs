//! Measures this project, beside the Go original where its binary is given and beside the floor, which is the same
//! work in plain native code, and prints one table.
//!
//! ```text
//! cargo bench -- [--baseline PATH] [--rounds N] [--quick] [--depth N] [--json FILE] [FILTER]...
//! cargo bench -- --plots DIR [--baseline PATH] [--quick] [--depth N]
//! ```
//!
//! Both sides work in turn, round by round, each in a fresh directory, so that a busy machine troubles both.
//! What makes files comes before what removes some, and the directories go at the very end: some file
//! systems (ext4 without a journal, for one) are several times slower at making files for minutes after files
//! were removed. So leave a few minutes between two runs, too.

#[cfg(unix)]
mod floor;
mod long;
mod original;
mod ours;
mod plan;
mod plots;
mod process;
mod table;

use anyhow::{Context, Result, bail};
use clap::Parser;
use original::Original;
use ours::Ours;
use plan::{Place, Scale, Work};
use process::Servers;
use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;
use table::{Line, Measured, Who};

#[derive(Debug, Parser)]
#[command(name = "cargo bench --", about = "Measures the outbox, beside the original where that is given")]
struct Options {
    /// The original's binary (`oracle`), to be measured too
    #[arg(long, value_name = "PATH")]
    baseline: Option<PathBuf>,
    /// How often everything is measured
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    rounds: Option<u16>,
    /// Less work and fewer rounds: a minute rather than several
    #[arg(long)]
    quick: bool,
    /// The longest queue, in entries: a million take some 10 GB of memory and a few minutes
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    depth: Option<u32>,
    /// Write the table to this file too, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The component to measure, rather than the one that is built in
    #[arg(long, value_name = "FILE")]
    component: Option<PathBuf>,
    /// Draw curves over depth, concurrency and latency into this directory (SVG), rather than print the table
    #[arg(long, value_name = "DIR", conflicts_with_all = ["json", "filters"])]
    plots: Option<PathBuf>,
    /// Only the lines whose text contains one of these, such as 'enqueue' or 'disk'
    #[arg(value_name = "FILTER")]
    filters: Vec<String>,
    /// What `cargo bench` passes on
    #[arg(long, hide = true)]
    bench: bool,
    /// Be a server for a measurement: wait this many milliseconds, then answer 200
    #[arg(long, hide = true, value_name = "MS")]
    serve: Option<u64>,
    /// Be a process with many idle outboxes below this directory
    #[arg(long, hide = true, value_name = "DIR")]
    idle: Option<PathBuf>,
    /// The directory for what is measured on a disk, on another file system perhaps; cargo's target directory if not given
    #[arg(long, value_name = "DIR")]
    disk: Option<PathBuf>,
}

/// One side of the comparison.
trait Side {
    /// Whether it does this work at all.
    fn measures(&self, _: &Work) -> bool {
        true
    }
    /// Puts into a fresh root what the work needs there.
    fn prepare(&self, work: &Work, root: &Path) -> Result<()>;
    /// Does the work and measures it.
    fn run(&self, work: &Work, root: &Path, servers: &Servers) -> Result<Run>;
}

/// What doing the work once gave.
struct Run {
    /// In the row's unit.
    figure: f64,
    /// The peak memory of the process that did it, in MiB, where that was not this one.
    peak: Option<f64>,
}

impl From<f64> for Run {
    fn from(figure: f64) -> Run {
        Run { figure, peak: None }
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    if let Some(latency) = options.serve {
        return code(process::serve(std::time::Duration::from_millis(latency)));
    }
    if let Some(root) = &options.idle {
        return code(ours::idle(root));
    }
    if !options.bench {
        // `cargo test --all-targets` starts benchmarks too.
        println!("nothing is measured; use `cargo bench`");
        return ExitCode::SUCCESS;
    }
    code(bench(&options))
}

fn code(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench(options: &Options) -> Result<()> {
    let started = Instant::now();
    let mut scale = if options.quick { Scale::QUICK } else { Scale::FULL };
    scale.depth = options.depth.unwrap_or(scale.depth);
    let rounds = usize::from(options.rounds.unwrap_or(scale.rounds));
    let places = places(options.disk.as_deref())?;
    let baseline = match &options.baseline {
        None => None,
        Some(path) => Some(path.canonicalize().with_context(|| format!("--baseline {}", path.display()))?),
    };
    let ours = Ours::new(options.component.clone(), &cache_dir(&places)?)?;
    let original = baseline.as_deref().map(Original::new);
    let mut sides: Vec<(Who, &dyn Side)> = vec![(Who::Ours, &ours)];
    sides.extend(original.iter().map(|original| (Who::Original, original as &dyn Side)));
    #[cfg(unix)]
    sides.push((Who::Floor, &floor::Floor));

    let bench = Bench { sides, servers: Servers::new(baseline.clone()), started, done: Cell::new(0) };

    if let Some(dir) = &options.plots {
        let place = places.first().context("no directory")?;
        return plots::draw(&bench, &scale, place, dir);
    }
    let rows = plan::rows(&scale, &places, &options.filters);
    if rows.is_empty() {
        bail!("no line contains {}", options.filters.join(" or "));
    }
    let mut lines = Vec::new();
    for row in &rows {
        let mut line = Line::new(row);
        bench.measure(&row.name, &row.work, row.place, row.work.rounds(rounds), |round| line.add(round))?;
        lines.push(line);
    }
    let notes = notes(&places, options.baseline.is_some(), rounds, started);
    print!("{}", table::text(&lines, &notes));
    if let Some(path) = &options.json {
        let json = serde_json::to_string_pretty(&table::json(&lines, &notes))?;
        std::fs::write(path, json + "\n").with_context(|| format!("--json {}", path.display()))?;
    }
    Ok(())
}

/// Everything that measuring takes.
struct Bench<'a> {
    sides: Vec<(Who, &'a dyn Side)>,
    servers: Servers,
    started: Instant,
    /// Measurements so far; each has a root of its own.
    done: Cell<u32>,
}

impl Bench<'_> {
    /// Does some work as often as this, all sides in turn.
    fn measure(
        &self,
        name: &str,
        work: &Work,
        place: &Place,
        rounds: usize,
        mut add: impl FnMut(Measured),
    ) -> Result<()> {
        eprintln!("{:>4} s  {name}, {}", self.started.elapsed().as_secs(), place.name);
        for _ in 0..rounds {
            for (who, side) in self.sides.iter().filter(|(_, side)| side.measures(work)) {
                add(self
                    .once(*who, *side, work, place)
                    .with_context(|| format!("{name}, {}", place.name))?);
            }
        }
        Ok(())
    }

    fn once(&self, who: Who, side: &dyn Side, work: &Work, place: &Place) -> Result<Measured> {
        self.done.set(self.done.get() + 1);
        let root = place.dir.path().join(self.done.get().to_string());
        settle();
        side.prepare(work, &root)?;
        let usage = process::Usage::begin();
        let run = side.run(work, &root, &self.servers)?;
        let cpu = usage.cpu_micros().zip(work.entries(who == Who::Original));
        Ok(Measured {
            who,
            figure: run.figure,
            cpu: cpu.map(|(micros, entries)| micros / f64::from(entries)),
            peak: run.peak.or_else(|| usage.peak_mebibytes()),
        })
    }
}

/// The directories to work in; all in them goes away with them.
fn places(disk: Option<&Path>) -> Result<Vec<Place>> {
    let mut places = Vec::new();
    let memory = Path::new("/dev/shm");
    let disk = disk.unwrap_or(Path::new(env!("CARGO_TARGET_TMPDIR")));
    for (name, parent) in [("memory", memory), ("disk", disk)] {
        if name == "memory" && !parent.is_dir() {
            continue;
        }
        let dir = tempfile::Builder::new()
            .prefix("outbox-bench-")
            .tempdir_in(parent)
            .with_context(|| format!("no directory can be made in {}", parent.display()))?;
        // On ext4: spread the roots over the disk, away from what earlier runs removed. Elsewhere it fails.
        let spread = Command::new("chattr").arg("+T").arg(dir.path()).stderr(Stdio::null()).status();
        drop(spread);
        places.push(Place { name, dir });
    }
    Ok(places)
}

/// Compiled code is cached for this run only, so that a user's cache stays as it is.
fn cache_dir(places: &[Place]) -> Result<PathBuf> {
    let place = places.last().context("no directory")?;
    let dir = place.dir.path().join("cache");
    std::fs::create_dir(&dir)?;
    Ok(dir.canonicalize()?)
}

/// What earlier work left to be written is written before the next begins. Not so what is queued only to be
/// replayed: on a disk mounted with `discard`, removing what is on it measures the disk and nothing else.
fn settle() {
    #[cfg(unix)]
    rustix::fs::sync();
}

fn notes(places: &[Place], with_original: bool, rounds: usize, started: Instant) -> Vec<String> {
    let mut notes = vec![format!(
        "Medians of {rounds} rounds, in brackets the least and the greatest; {} s in all.",
        started.elapsed().as_secs()
    )];
    for place in places {
        notes.push(format!(
            "{}: {}",
            place.name,
            place.dir.path().parent().unwrap_or(Path::new("")).display()
        ));
    }
    if !places.iter().any(|place| place.name == "memory") {
        notes.push("memory: left out, there is no /dev/shm".into());
    }
    notes.push(
        "CPU us, peak MiB: an entry's processor time and the process's memory; ours / original / floor"
            .into(),
    );
    notes.push("floor: the same work in plain native code, without the sandbox and its promises".into());
    if !with_original {
        notes.push("original: not measured; give its binary with --baseline".into());
    }
    if let Ok(load) = std::fs::read_to_string("/proc/loadavg") {
        let minutes = load.split(' ').next().unwrap_or_default();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        notes.push(format!("machine: {cores} cores, {minutes} threads busy on average over the last minute"));
    }
    notes
}
