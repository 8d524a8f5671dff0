//! The real binary as tests use it: one command at a time, or as a daemon whose log is read line by line.

use crate::kit;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;
use tempfile::TempDir;

/// How long anything may take before a test gives up.
const PATIENCE: Duration = Duration::from_secs(30);

/// The binary with a root of its own.
pub struct Cli {
    pub root: TempDir,
}

/// How a command ended.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// Of a program that has ended.
    pub fn from(output: std::process::Output) -> Ran {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let code = output.status.code().unwrap_or_else(|| panic!("ended by {}", output.status));
        Ran { code, stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// What a command printed that must have ended with this exit code. It may have made the outbox.
    pub fn expect(self, code: i32) -> String {
        assert_eq!(self.code, code, "{self:?}");
        let said = self.stderr.lines().find(|line| !line.starts_with("made a new outbox in "));
        assert_eq!(said, None, "{self:?}");
        self.stdout
    }
}

impl Cli {
    pub fn new() -> Cli {
        Cli { root: kit::root() }
    }

    /// The command, not yet run: nothing of the caller's `OUTBOX_*` reaches it.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        self.clean(env!("CARGO_BIN_EXE_outbox"), args)
    }

    /// Another program with the environment that the binary would get.
    pub fn clean<S: AsRef<OsStr>>(&self, program: &str, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("OUTBOX_")) {
                command.env_remove(name);
            }
        }
        command.args(args).env("OUTBOX_CACHE_DIR", kit::cache_dir()).env("OUTBOX_ROOT", self.root.path());
        command.stdin(Stdio::null());
        command
    }

    /// Runs a command to its end.
    pub fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Ran {
        Ran::from(self.command(args).output().unwrap())
    }

    /// Runs a command with this on its stdin.
    pub fn run_with_stdin(&self, args: &[&str], stdin: &[u8]) -> Ran {
        feed(self.command(args), stdin)
    }

    /// What a command prints that succeeds and says nothing else.
    pub fn ok<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> String {
        self.run(args).expect(0)
    }

    /// The same, as JSON.
    pub fn json<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Value {
        parse(self.ok(args))
    }

    /// Queues a write; its id.
    pub fn send(&self, args: &[&str]) -> String {
        let printed = self.ok(["send"].iter().chain(args));
        printed.trim_end().strip_prefix("queued ").unwrap().to_owned()
    }

    /// One pass: its exit code, its outcomes and its report.
    pub fn replay(&self, upstream: &str, args: &[&str]) -> (i32, Vec<Value>, Value) {
        let ran = self.run(["replay", "--json", "--upstream", upstream].iter().chain(args));
        assert_eq!(ran.stderr, "", "{ran:?}");
        let mut lines: Vec<Value> = ran.stdout.lines().map(parse).collect();
        let report = lines.pop().unwrap_or_else(|| panic!("{ran:?}"));
        (ran.code, lines, report)
    }

    /// The paths in the outbox's directory; none where it does not exist.
    pub fn tree(&self) -> Vec<String> {
        match self.root.path().join(kit::OUTBOX_DIR).exists() {
            true => kit::tree(self.root.path()),
            false => Vec::new(),
        }
    }

    /// Starts `outbox run` with a JSON log, and waits until it runs.
    pub fn daemon(&self, upstream: &str, args: &[&str]) -> Daemon {
        let fixed = ["run", "--log", "json", "--upstream", upstream];
        let mut daemon = Daemon::spawn(self.command(fixed.iter().chain(args)));
        daemon.wait_for("running");
        daemon
    }
}

/// JSON from text.
pub fn parse(text: impl AsRef<str>) -> Value {
    serde_json::from_str(text.as_ref()).unwrap_or_else(|e| panic!("{e}: {}", text.as_ref()))
}

/// Runs a program to its end with this on its stdin.
pub fn feed(mut command: Command, stdin: &[u8]) -> Ran {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut pipe = child.stdin.take().unwrap();
    let bytes = stdin.to_vec();
    // On a thread of its own: the child may print before it has read everything, or read nothing at all.
    let writer = std::thread::spawn(move || pipe.write_all(&bytes));
    let ran = Ran::from(child.wait_with_output().unwrap());
    let _ = writer.join().unwrap();
    ran
}

/// The code that a program, whose output nobody wants, exits with.
pub fn code(mut command: Command) -> Option<i32> {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().code()
}

/// Everything readable in a directory, in one text: for what must never be on disk.
pub fn everything_in(dir: &Path) -> String {
    let mut text = String::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        text.push_str(&path.to_string_lossy());
        match path.is_dir() {
            true => text.push_str(&everything_in(&path)),
            false => text.push_str(&String::from_utf8_lossy(&std::fs::read(&path).unwrap())),
        }
    }
    text
}

/// A program that runs until it is stopped. Killed when dropped.
pub struct Daemon {
    child: Child,
    lines: Receiver<String>,
    /// Every line read so far.
    pub log: Vec<String>,
}

impl Daemon {
    /// Starts a program whose stderr is its log.
    pub fn spawn(mut command: Command) -> Daemon {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Daemon { child, lines, log: Vec::new() }
    }

    /// Starts a program whose log goes there; nobody reads on after its first line.
    pub fn unheard(mut command: Command, stderr: Stdio) -> Daemon {
        let mut child = command.stdout(Stdio::null()).stderr(stderr).spawn().unwrap();
        let mut first = String::new();
        if let Some(stderr) = child.stderr.take() {
            BufReader::new(stderr).read_line(&mut first).unwrap();
        }
        Daemon { child, lines: channel().1, log: vec![first] }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line of the log; none when it has ended.
    fn line(&mut self) -> Option<String> {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => {
                self.log.push(line.clone());
                Some(line)
            }
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => {
                panic!("no further line within {PATIENCE:?} after {:#?}", self.log)
            }
        }
    }

    /// Waits for a line of the JSON log whose message starts like this.
    pub fn wait_for(&mut self, message: &str) -> Value {
        while let Some(line) = self.line() {
            let line = parse(line);
            if line["message"].as_str().is_some_and(|text| text.starts_with(message)) {
                return line;
            }
        }
        panic!("it ended without {message:?}: {:#?}", self.log);
    }

    /// Waits for a line with this in it, of a program that logs no JSON.
    pub fn wait_for_text(&mut self, text: &str) {
        while let Some(line) = self.line() {
            if line.contains(text) {
                return;
            }
        }
        panic!("it ended without {text:?}: {:#?}", self.log);
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for its end: how it ended, and its whole log.
    pub fn end(mut self) -> (ExitStatus, Vec<String>) {
        while self.line().is_some() {}
        (self.child.wait().unwrap(), std::mem::take(&mut self.log))
    }

    /// Asks it to stop and waits until it has: its log.
    pub fn stop(self) -> Vec<Value> {
        self.signal(Signal::TERM);
        let (status, log) = self.end();
        assert_eq!(status.code(), Some(0), "{log:#?}");
        log.iter().map(parse).collect()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
