//! The simulator on a command line: seeds without end, one seed with its trace, the mutants.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test kit that finds itself wrong must stop")]

use outbox_sim::campaign::{Campaign, Failure};
use outbox_sim::guest::Guest;
use outbox_sim::plan::Plan;
use outbox_sim::run::run;
use outbox_sim::{mutants, shrink};
use std::process::ExitCode;
use std::time::Duration;

const USAGE: &str = "\
usage: cargo run -p outbox-sim -- [--from S] [--seeds N] [--hours H] [--threads T] [--keep-going]
       cargo run -p outbox-sim -- --seed S [--shrink]
       cargo run -p outbox-sim -- --mutants

  --seeds N       this many seeds; 2000, or without end with --hours
  --from S        the first seed; 0
  --hours H       for so long, a fraction too
  --threads T     side by side; as many as there are processors
  --keep-going    go on after a failure
  --seed S        one seed, with its plan and trace
  --shrink        and make it smaller first
  --mutant NAME   of the component with this mutant
  --mutants       catch every mutant and print the table of docs/testing.md";

#[derive(Default)]
struct Options {
    from: u64,
    seeds: Option<u64>,
    hours: Option<f64>,
    threads: Option<usize>,
    keep_going: bool,
    seed: Option<u64>,
    shrink: bool,
    mutant: Option<String>,
    mutants: bool,
}

fn main() -> ExitCode {
    let done = options().and_then(|options| carry_out(&options));
    done.unwrap_or_else(|message| {
        eprintln!("outbox-sim: {message}");
        ExitCode::from(2)
    })
}

fn options() -> Result<Options, String> {
    let mut options = Options::default();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} wants a value"));
        let bad = |_| format!("{argument} wants a number");
        match argument.as_str() {
            "--from" => options.from = value()?.parse().map_err(bad)?,
            "--seeds" => options.seeds = Some(value()?.parse().map_err(bad)?),
            "--threads" => options.threads = Some(value()?.parse().map_err(bad)?),
            "--seed" => options.seed = Some(value()?.parse().map_err(bad)?),
            "--hours" => {
                options.hours = Some(value()?.parse().map_err(|_| "--hours wants a number".to_owned())?);
            }
            "--mutant" => options.mutant = Some(value()?),
            "--mutants" => options.mutants = true,
            "--shrink" => options.shrink = true,
            "--keep-going" => options.keep_going = true,
            _ => return Err(format!("{argument} is not known\n{USAGE}")),
        }
    }
    Ok(options)
}

fn carry_out(options: &Options) -> Result<ExitCode, String> {
    if options.mutants {
        return catch_all(options);
    }
    let guest = guest(options.mutant.as_deref())?;
    if let Some(seed) = options.seed {
        let plan = Plan::new(seed);
        let first = run(&guest, &plan, false).violations.into_iter().next();
        let plan = match &first {
            Some((property, _)) if options.shrink => shrink::shrink(&guest, &plan, property),
            _ => plan,
        };
        return Ok(show(&guest, &plan));
    }
    let limit = options.hours.map(|hours| Duration::from_secs_f64(hours * 3600.0));
    let count = options.seeds.unwrap_or(if limit.is_some() { u64::MAX - options.from } else { 2000 });
    let default = Campaign::new(options.from, count);
    let threads = options.threads.unwrap_or(default.threads);
    let summary = Campaign { threads, limit, keep_going: options.keep_going, ..default }.run(&guest);
    println!(
        "{} seeds in {:.1} s: {:.1} seeds/s on {threads} threads; {} file system calls, {} requests, {} deaths",
        summary.seeds,
        summary.elapsed.as_secs_f64(),
        summary.rate(),
        summary.calls,
        summary.requests,
        summary.deaths,
    );
    for Failure { seed, property, details } in &summary.failures {
        println!("seed {seed} breaks \"{property}\": {details}");
    }
    let Some(failure) = summary.failures.first() else { return Ok(ExitCode::SUCCESS) };
    if !options.keep_going {
        let plan = shrink::shrink(&guest, &Plan::new(failure.seed), failure.property);
        show(&guest, &plan);
        println!("again: cargo run -p outbox-sim -- --seed {} [--shrink]", failure.seed);
    }
    Ok(ExitCode::FAILURE)
}

fn guest(mutant: Option<&str>) -> Result<Guest, String> {
    let unusable = |e| format!("the component cannot be compiled: {e:#}");
    match mutant {
        None => Guest::shipped().map_err(unusable),
        Some(name) => {
            let all = mutants::all()?;
            if !all.iter().any(|mutant| mutant.name == name) {
                let names: Vec<&str> = all.iter().map(|mutant| mutant.name.as_str()).collect();
                return Err(format!("no mutant is called {name}; there are {}", names.join(", ")));
            }
            let guest = Guest::new(&mutants::build(&all)?).map_err(unusable)?;
            Ok(guest.with_env("OUTBOX_MUTANT", name))
        }
    }
}

/// Prints a plan, its trace and the properties that it breaks.
fn show(guest: &Guest, plan: &Plan) -> ExitCode {
    let outcome = run(guest, plan, true);
    println!("{plan:#?}");
    for line in &outcome.trace {
        println!("{line}");
    }
    for (property, details) in &outcome.violations {
        println!("broken: {property}: {details}");
    }
    if outcome.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn catch_all(options: &Options) -> Result<ExitCode, String> {
    let all = mutants::all()?;
    let built = mutants::build(&all)?;
    let guest = Guest::new(&built).map_err(|e| format!("the mutants cannot be compiled: {e:#}"))?;
    let threads = options.threads.unwrap_or(Campaign::new(0, 0).threads);
    println!("| mutant | what is wrong | caught by | after seeds | bound |\n|---|---|---|---|---|");
    let mut escaped = false;
    for mutant in &all {
        let caught = mutants::catch(&guest, mutant, options.from, threads);
        escaped |= caught.is_none();
        let (property, seeds) = match &caught {
            Some(caught) => (caught.failure.property, caught.seeds.to_string()),
            None => ("**nothing**", "-".to_owned()),
        };
        println!("| {} | {} | {property} | {seeds} | {} |", mutant.name, mutant.about, mutant.seeds);
    }
    Ok(if escaped { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
