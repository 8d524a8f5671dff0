//! The binary under strace(1), which makes a system call fail, or stops the process at one. Where there is no strace,
//! that is said, and nothing is run.

use crate::cli::{Cli, Ran};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

fn command(cli: &Cli, options: &[&str], args: &[&str]) -> Option<Command> {
    if let Err(error) = Command::new("strace").arg("-V").output() {
        eprintln!("skipped: strace: {error}");
        return None;
    }
    // It says first what its process is.
    let script = "echo $$; exec \"$0\" \"$@\"";
    let traced = ["sh", "-c", script, env!("CARGO_BIN_EXE_outbox")];
    Some(cli.clean("strace", ["-f", "-qq"].iter().chain(options).chain(&traced).chain(args)))
}

/// Calls that make something durable, that rename, and that read.
pub const SYNC: &str = "fsync,fdatasync";
pub const RENAME: &str = "rename,renameat,renameat2";
pub const READ: &str = "read,readv,pread64,preadv,preadv2";

/// Runs a command for which such calls with this path fail, each kind from the `from`th on.
pub fn with_failing(cli: &Cli, path: &Path, calls: &[(&str, u32)], args: &[&str]) -> Option<Ran> {
    let path = path.canonicalize().unwrap();
    let inject = |(calls, from): &(&str, u32)| format!("inject={calls}:error=EIO:when={from}+");
    let injects: Vec<String> = calls.iter().map(inject).collect();
    let mut options = vec!["-o", "/dev/null", "-P", path.to_str().unwrap()];
    options.extend(injects.iter().flat_map(|inject| ["-e", inject]));
    Some(Ran::from(command(cli, &options, args)?.output().unwrap()))
}

/// Runs a command and returns these calls of it, a line each, in order.
pub fn calls(cli: &Cli, calls: &str, args: &[&str]) -> Option<Vec<String>> {
    let (log, trace) = (tempfile::NamedTempFile::new().unwrap(), format!("trace={calls}"));
    let options = ["-o", log.path().to_str().unwrap(), "-e", &trace];
    command(cli, &options, args)?.output().unwrap();
    Some(std::fs::read_to_string(log.path()).unwrap().lines().map(str::to_owned).collect())
}

/// Runs a command that is stopped after its first such call (of this path, where one is given), until something else
/// was done.
pub fn stopped_after(
    cli: &Cli,
    call: &str,
    path: Option<&Path>,
    args: &[&str],
    meanwhile: impl FnOnce(),
) -> Option<Ran> {
    let (trace, inject) = (format!("trace={call}"), format!("inject={call}:signal=STOP:when=1"));
    let path = path.map(|path| path.canonicalize().unwrap());
    let mut options = vec!["-e", &trace, "-e", &inject];
    options.extend(path.iter().flat_map(|path| ["-P", path.to_str().unwrap()]));
    let mut child =
        command(cli, &options, args)?.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut pid = String::new();
    stdout.read_line(&mut pid).unwrap();
    let pid = Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
    let (mut meanwhile, mut log) = (Some(meanwhile), String::new());
    for line in BufReader::new(child.stderr.take().unwrap()).lines() {
        let line = line.unwrap();
        if line.contains("--- stopped by SIGSTOP ---") {
            if let Some(meanwhile) = meanwhile.take() {
                meanwhile();
            }
            // Each thread counts its own calls, and each tells that it has stopped.
            let _ = kill_process(pid, Signal::CONT);
        }
        log.push_str(&line);
        log.push('\n');
    }
    assert!(meanwhile.is_none(), "it never stopped: {log}");
    let code = child.wait().unwrap().code().unwrap();
    let mut printed = String::new();
    std::io::Read::read_to_string(&mut stdout, &mut printed).unwrap();
    Some(Ran { code, stdout: printed, stderr: log })
}
