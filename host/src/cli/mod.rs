//! The command line: arguments in [`args`], one module per group of commands, exit codes here.

mod args;
mod demo;
mod inspect;
mod replay;
mod run;
mod send;
mod text;

use args::{Cli, Command, Global};
use clap::builder::Resettable;
use clap::{CommandFactory, FromArgMatches};
use outbox_host::{Builder, Counts, Error, Outbox, RuntimeOptions, default_cache_dir};
use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Done, and nothing is left to do.
pub const DONE: u8 = 0;
/// It failed.
pub const FAILED: u8 = 1;
/// The command or a value in it cannot be used.
pub const USAGE: u8 = 2;
/// Done, but entries remain in the queue.
pub const REMAIN: u8 = 3;
/// Done, but conflicts, rejected or corrupt entries need somebody. Before [`REMAIN`] where both hold.
pub const ATTENTION: u8 = 4;

/// The whole program.
pub fn main() -> ExitCode {
    // What is queued is nobody else's business: files 0600, directories 0700.
    #[cfg(unix)]
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let matches = without_empty(Cli::command()).get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error.into()),
    };
    match runtime.block_on(dispatch(cli)) {
        Ok(code) => ExitCode::from(code),
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

/// An empty variable is like none, as for the component: `OUTBOX_MAX_BYTES=` in a file of settings.
fn without_empty(command: clap::Command) -> clap::Command {
    let is_empty = |name: &std::ffi::OsStr| std::env::var_os(name).is_some_and(|value| value.is_empty());
    let command = command.mut_args(|arg| match arg.get_env().is_some_and(is_empty) {
        true => arg.env(Resettable::Reset),
        false => arg,
    });
    command.mut_subcommands(without_empty)
}

async fn dispatch(cli: Cli) -> anyhow::Result<u8> {
    let Cli { global, command } = cli;
    if !matches!(command, Command::Run(_)) {
        run::log_warnings();
    }
    match command {
        Command::Run(args) => run::run(&global, args).await,
        Command::Replay(args) => replay::replay(&global, args).await,
        Command::Send(args) => send::send(&global, args).await,
        Command::List(args) => inspect::list(&global, &args).await,
        Command::Show(args) => inspect::show(&global, args).await,
        Command::Conflicts(args) => inspect::conflicts(&global, &args).await,
        Command::Rejected(args) => inspect::rejected(&global, &args).await,
        Command::Corrupt(args) => inspect::corrupt(&global, &args).await,
        Command::Status(args) => inspect::status(&global, &args).await,
        Command::Verify(args) => inspect::verify(&global, &args).await,
        Command::Resolve(args) => inspect::resolve(&global, args).await,
        Command::Retry(args) => inspect::retry(&global, args).await,
        Command::Drop(args) => inspect::drop(&global, args).await,
        Command::Wake(args) => inspect::wake(&global, &args),
        Command::Demo(args) => demo::demo(&global, args).await,
        Command::Completions { shell } => {
            // Not straight to stdout: it panics where that cannot be written to.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "outbox", &mut script);
            io::stdout().write_all(&script)?;
            Ok(DONE)
        }
    }
}

/// A builder with what every command shares.
fn builder(global: &Global) -> Builder {
    let component = global.component.clone();
    let cache_dir = default_cache_dir();
    if cache_dir.is_none() && std::env::var_os("OUTBOX_CACHE_DIR").is_none() {
        tracing::warn!(
            "no directory for compiled code is known, so each start compiles; name one with OUTBOX_CACHE_DIR (empty for none)"
        );
    }
    Outbox::builder(&global.root).runtime_options(RuntimeOptions { component, cache_dir })
}

/// The outbox of a command that is about what is there: it makes none, so that a directory misspelt does not look like an
/// outbox in which all is well.
fn existing(global: &Global) -> Result<Outbox, Error> {
    builder(global).create(false).open()
}

/// Where a root is, seen from anywhere.
fn absolute(root: &Path) -> PathBuf {
    std::fs::canonicalize(root).unwrap_or_else(|_| root.into())
}

/// What the state of an outbox means for the exit code.
fn code_of(counts: &Counts) -> u8 {
    if counts.conflicts + counts.rejected + counts.corrupt > 0 {
        ATTENTION
    } else if counts.pending > 0 {
        REMAIN
    } else {
        DONE
    }
}

/// Says something on stderr; where nobody reads that, the exit code says enough.
fn say_aside(text: impl Display) {
    // Some of it may come from a file that the component or another host wrote.
    text.to_string().lines().for_each(|line| _ = text::line(&mut io::stderr(), line));
}

/// Stdout for commands whose exit code says more than that they have printed it all. It takes what is printed also when its
/// reader has gone.
struct Heedless(io::Stdout);

impl Write for Heedless {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.0.write(bytes) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(bytes.len()),
            done => done,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self.0.flush() {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
            done => done,
        }
    }
}

fn stdout() -> impl Write {
    Heedless(io::stdout())
}

/// Prints what was done. That it cannot be printed is said aside and is no failure: whoever took it for one would do it
/// again.
fn tell(done: &str, printed: impl Display) {
    let mut out = stdout();
    if let Err(error) = writeln!(out, "{printed}").and_then(|()| out.flush()) {
        say_aside(format_args!("{done}; stdout cannot be written: {error}"));
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    say_aside(format_args!("error: {error:#}"));
    match error.downcast_ref::<Error>() {
        Some(Error::Invalid { .. }) => ExitCode::from(USAGE),
        _ => ExitCode::from(FAILED),
    }
}

/// A reader that went away, as `head` does, is no failure: where all is done once it is printed.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<io::Error>();
    io.is_some_and(|e| e.kind() == ErrorKind::BrokenPipe)
}
