//! The Go original, through the command line around it.

use crate::plan::{LARGE, SMALL, Work};
use crate::process::{self, Servers};
use crate::{Run, Side};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

pub struct Original {
    binary: PathBuf,
}

impl Original {
    pub fn new(binary: &Path) -> Original {
        Original { binary: binary.into() }
    }

    fn command(&self, args: &[&str], root: &Path) -> Command {
        let (first, rest) = args.split_first().unwrap_or((&"", &[]));
        let mut command = Command::new(&self.binary);
        command.arg(first).arg("-root").arg(root).args(rest);
        command
    }

    /// Runs a command that prints its own figures; these, and its peak memory.
    fn figures(&self, args: &[&str], root: &Path) -> Result<(Value, Option<f64>)> {
        let (printed, peak) = process::output(self.command(args, root))?;
        let figures = serde_json::from_slice(&printed);
        Ok((figures.with_context(|| format!("what the original prints for {args:?}"))?, peak))
    }

    fn enqueue(&self, root: &Path, entries: u32, callers: u32, sync: bool) -> Result<Run> {
        let (entries, size, callers) = (entries.to_string(), SMALL.to_string(), callers.to_string());
        let mut args = vec!["enqueue", "-n", &entries, "-size", &size, "-conc", &callers];
        if sync {
            args.push("-fsync");
        }
        rate(self.figures(&args, root)?)
    }
}

fn rate((figures, peak): (Value, Option<f64>)) -> Result<Run> {
    let figure = figures.get("per_sec").and_then(Value::as_f64).context("the original printed no rate")?;
    Ok(Run { figure, peak })
}

impl Side for Original {
    fn measures(&self, work: &Work) -> bool {
        matches!(
            work,
            Work::Enqueue { .. } | Work::Replay { .. } | Work::Start | Work::SendLarge | Work::ReplayLarge
        )
    }

    fn prepare(&self, work: &Work, root: &Path) -> Result<()> {
        match work {
            Work::Replay { original_entries, .. } => {
                self.enqueue(root, *original_entries, 1, false)?;
            }
            Work::Start => {
                self.figures(&["enqueue-one", "-method", "DELETE", "-uri", "/x"], root)?;
            }
            Work::ReplayLarge => {
                let body = format!("noise:{LARGE}");
                self.figures(&["enqueue-one", "-uri", "/x", "-body", &body], root)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn run(&self, work: &Work, root: &Path, servers: &Servers) -> Result<Run> {
        match work {
            Work::Enqueue { entries, callers, original_sync, .. } => {
                self.enqueue(root, *entries, *callers, *original_sync)
            }
            Work::Replay { original_entries, latency, .. } => {
                let (figures, peak) =
                    self.figures(&["replay", "-upstream", &servers.url(*latency)?], root)?;
                let replayed = figures.get("replayed").and_then(Value::as_u64);
                ensure!(replayed == Some(u64::from(*original_entries)), "not all was replayed: {figures}");
                rate((figures, peak))
            }
            Work::Start => {
                process::first_request(|url| self.command(&["replay", "-upstream", url], root), false)
            }
            Work::SendLarge => {
                process::peak_memory(self.command(&["enqueue-one", "-uri", "/x", "-body", "-"], root), LARGE)
            }
            Work::ReplayLarge => {
                process::peak_memory(self.command(&["replay", "-upstream", &servers.near()?], root), 0)
            }
            _ => bail!("not measured"),
        }
    }
}
