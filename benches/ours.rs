//! This project: rates through the library in this process, start and memory with the binary.

use crate::long;
use crate::plan::{BODIES, BODY, LARGE, MANY, SMALL, Work};
use crate::process::{self, Servers};
use crate::{Run, Side};
use anyhow::{Result, ensure};
use outbox_host::{Body, Builder, Durability, Outbox, Runtime, RuntimeOptions, Write};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// The file with a long body, in a root that is made for it.
pub const SOURCE: &str = "source";

const BINARY: &str = env!("CARGO_BIN_EXE_outbox");

pub struct Ours {
    runtime: Runtime,
    cache_dir: PathBuf,
    tokio: tokio::runtime::Runtime,
}

impl Ours {
    /// With this component or the one that is built in, and an empty cache, which this fills.
    pub fn new(component: Option<PathBuf>, cache_dir: &Path) -> Result<Ours> {
        let options = RuntimeOptions { component: component.clone(), cache_dir: Some(cache_dir.into()) };
        // As many threads as the binary has.
        let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        Ok(Ours { runtime: Runtime::new(&options)?, cache_dir: cache_dir.into(), tokio })
    }

    fn builder(&self, root: &Path) -> Builder {
        Outbox::builder(root).runtime(self.runtime.clone())
    }

    fn command(&self, args: &[&str], root: &Path) -> Command {
        let mut command = Command::new(BINARY);
        command.args(args).arg("--root").arg(root).env("OUTBOX_CACHE_DIR", &self.cache_dir);
        command
    }

    fn enqueue(&self, root: &Path, entries: u32, callers: u32, durability: Durability) -> Result<f64> {
        self.tokio.block_on(async {
            let outbox = self.builder(root).durability(durability).open()?;
            // The instance is there before the clock starts, as the original's state is.
            outbox.count().await?;
            let body: Vec<u8> = (0..SMALL).map(|n| n as u8).collect();
            let started = Instant::now();
            // The only caller is this thread, as in a program that queues now and then.
            if callers == 1 {
                queue_each(&outbox, &body, 0..entries).await?;
            } else {
                let mut tasks = tokio::task::JoinSet::new();
                for caller in 0..callers {
                    let (outbox, body) = (outbox.clone(), body.clone());
                    let numbers = (caller..entries).step_by(callers as usize);
                    tasks.spawn(async move { queue_each(&outbox, &body, numbers).await });
                }
                while let Some(done) = tasks.join_next().await {
                    done??;
                }
            }
            Ok(f64::from(entries) / started.elapsed().as_secs_f64())
        })
    }

    fn queue_one(&self, root: &Path, write: Write, body: Body) -> Result<()> {
        self.tokio.block_on(async {
            let outbox = self.builder(root).durability(Durability::None).open()?;
            outbox.enqueue_write(write, body).await?;
            Ok(())
        })
    }

    /// MiB a second at which a file is queued durably.
    fn enqueue_file(&self, root: &Path) -> Result<f64> {
        self.tokio.block_on(async {
            let outbox = self.builder(root).open()?;
            outbox.count().await?;
            let started = Instant::now();
            let body = Body::reader(File::open(root.join(SOURCE))?);
            outbox.enqueue_write(Write::new("PUT", "/x"), body).await?;
            Ok(mebibytes(LARGE) / started.elapsed().as_secs_f64())
        })
    }

    fn replay(&self, root: &Path, entries: u32, concurrency: usize, upstream: &str) -> Result<f64> {
        self.tokio.block_on(async {
            let outbox = self.builder(root).upstream(upstream).concurrency(concurrency).open()?;
            let started = Instant::now();
            let report = outbox.replay().await?;
            let elapsed = started.elapsed().as_secs_f64();
            ensure!(report.delivered == u64::from(entries), "{} of {entries} delivered", report.delivered);
            Ok(f64::from(entries) / elapsed)
        })
    }
}

/// Makes a root with [`SOURCE`] in it.
pub fn make_source(root: &Path) -> Result<()> {
    std::fs::create_dir(root)?;
    std::io::copy(&mut noise(LARGE), &mut File::create(root.join(SOURCE))?)?;
    Ok(())
}

pub fn noise(len: u64) -> impl Read + Send {
    std::io::repeat(b'x').take(len)
}

pub fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1024 * 1024)
}

pub async fn queue_each(outbox: &Outbox, body: &[u8], numbers: impl Iterator<Item = u32>) -> Result<()> {
    for n in numbers {
        let mut write = Write::new("PUT", format!("/x/{n:08}"));
        write.content_type = Some("application/octet-stream".into());
        outbox.enqueue_write(write, body.to_vec().into()).await?;
    }
    Ok(())
}

impl Side for Ours {
    fn prepare(&self, work: &Work, root: &Path) -> Result<()> {
        match work {
            Work::Enqueue { .. } | Work::Trickle { .. } | Work::SendLarge | Work::Idle => {}
            Work::Long { waiting, .. } | Work::First { waiting } | Work::Tick { waiting } => {
                self.tokio.block_on(long::fill(self.builder(root), root, *waiting))?;
            }
            Work::EnqueueLarge => make_source(root)?,
            Work::ReplayBodies => {
                for n in 0..BODIES {
                    self.queue_one(root, Write::new("PUT", format!("/x/{n}")), Body::reader(noise(BODY)))?;
                }
            }
            Work::Replay { entries, .. } => {
                self.enqueue(root, *entries, 1, Durability::None)?;
            }
            Work::Start => self.queue_one(root, Write::new("DELETE", "/x"), Body::empty())?,
            Work::ReplayLarge => {
                self.queue_one(root, Write::new("PUT", "/x"), Body::reader(noise(LARGE)))?;
            }
        }
        Ok(())
    }

    fn run(&self, work: &Work, root: &Path, servers: &Servers) -> Result<Run> {
        match work {
            Work::Enqueue { entries, callers, sync, .. } => {
                let durability = if *sync { Durability::Full } else { Durability::None };
                Ok(self.enqueue(root, *entries, *callers, durability)?.into())
            }
            Work::Replay { entries, concurrency, latency, .. } => {
                Ok(self.replay(root, *entries, *concurrency, &servers.url(*latency)?)?.into())
            }
            Work::ReplayBodies => {
                let entries = self.replay(root, BODIES, 4, &servers.near()?)?;
                Ok((entries * mebibytes(BODY)).into())
            }
            Work::EnqueueLarge => Ok(self.enqueue_file(root)?.into()),
            Work::Trickle { entries } => {
                Ok(self.tokio.block_on(long::trickle(self.builder(root), *entries))?.into())
            }
            Work::Long { entries, .. } => {
                let ratio = long::enqueue(|root| self.builder(root), root, *entries);
                Ok(self.tokio.block_on(ratio)?.into())
            }
            Work::Tick { .. } => Ok(self.tokio.block_on(long::tick(self.builder(root)))?.into()),
            Work::Start | Work::First { .. } => {
                let more = matches!(work, Work::First { waiting } if *waiting > 1);
                process::first_request(|url| self.command(&["replay", "--upstream", url], root), more)
            }
            Work::Idle => process::figure_of(&["--idle", &root.to_string_lossy()], &self.cache_dir),
            Work::SendLarge => {
                process::peak_memory(self.command(&["send", "PUT", "/x", "--body", "-"], root), LARGE)
            }
            Work::ReplayLarge => {
                let upstream = servers.near()?;
                process::peak_memory(self.command(&["replay", "--upstream", &upstream], root), 0)
            }
        }
    }
}

/// In a process of its own: starts [`MANY`] outboxes below a directory, waits until nothing runs any more, and prints the
/// KiB that each has added to what is resident.
pub fn idle(root: &Path) -> Result<()> {
    let options =
        RuntimeOptions { component: None, cache_dir: std::env::var_os("OUTBOX_CACHE_DIR").map(Into::into) };
    let runtime = Runtime::new(&options)?;
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    tokio.block_on(async {
        let before = process::resident_kib()?;
        let mut outboxes = Vec::new();
        for n in 0..MANY {
            let root = root.join(n.to_string());
            // Nothing is queued, so nothing is sent.
            let builder = Outbox::builder(&root).runtime(runtime.clone()).upstream("http://127.0.0.1:9");
            outboxes.push(builder.durability(Durability::None).start()?);
        }
        let deadline = Instant::now() + Duration::from_secs(120);
        while process::threads("outbox-replay")? > 0 {
            ensure!(Instant::now() < deadline, "outboxes that have nothing to do keep threads");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        println!("{}", (process::resident_kib()? - before) / f64::from(MANY));
        Ok(())
    })
}
