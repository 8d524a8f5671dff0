//! The binary under strace(1), which makes a system call fail. Where there is no strace, that is said, and nothing is run.

use crate::cli::{Cli, Ran};
use std::path::Path;
use std::process::Command;

fn command(cli: &Cli, options: &[&str], args: &[&str]) -> Option<Command> {
    if let Err(error) = Command::new("strace").arg("-V").output() {
        eprintln!("skipped: strace: {error}");
        return None;
    }
    let binary = env!("CARGO_BIN_EXE_outbox");
    Some(cli.clean("strace", ["-f", "-qq"].iter().chain(options).chain(&[binary]).chain(args)))
}

/// Runs a command for which syncs of this path fail, from the `from`th on.
pub fn with_failing_syncs(cli: &Cli, path: &Path, from: u32, args: &[&str]) -> Option<Ran> {
    let inject = format!("inject=fsync,fdatasync:error=EIO:when={from}+");
    let path = path.canonicalize().unwrap();
    let options = ["-o", "/dev/null", "-P", path.to_str().unwrap(), "-e", "trace=fsync,fdatasync"];
    let options = [&options[..], &["-e", &inject]].concat();
    Some(Ran::from(command(cli, &options, args)?.output().unwrap()))
}
