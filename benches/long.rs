//! Work beside a long queue.

use crate::process;
use anyhow::{Context, Result};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::ours::queue_each;
use crate::plan::SMALL;
use outbox_host::{Body, Builder, Durability, Write};

/// Where nobody answers.
const NOWHERE: &str = "http://127.0.0.1:9";
/// Ticks that are measured together.
const TICKS: u32 = 20;

/// Makes a queue of so many entries without a body: one by the outbox, the others after its example, since a million
/// by the outbox take a while.
pub async fn fill(builder: Builder, root: &Path, entries: u32) -> Result<()> {
    if entries == 0 {
        return Ok(());
    }
    let outbox = builder.durability(Durability::None).open()?;
    let id = outbox.enqueue_write(Write::new("DELETE", "/x"), Body::empty()).await?;
    let queue = root.join(".zddc-outbox");
    let meta = std::fs::read_to_string(queue.join(&id).join("meta.json"))?;
    let (time, rest) = id.split_once('-').context("the id has no time")?;
    let time = u64::from_str_radix(time, 16)?;
    for n in 1..u64::from(entries) {
        let next = format!("{:016x}-{rest}", time + n);
        let dir = queue.join(&next);
        std::fs::create_dir(&dir)?;
        std::fs::write(dir.join("meta.json"), meta.replace(&id, &next))?;
        std::fs::write(dir.join("body.bin"), "")?;
    }
    Ok(())
}

/// How long it takes to queue an entry beside those that wait, in terms of the same where none does.
pub async fn enqueue(builder: impl Fn(&Path) -> Builder, root: &Path, entries: u32) -> Result<f64> {
    let mut took = Vec::new();
    for root in [root.to_owned(), root.join("empty")] {
        let outbox = builder(&root).durability(Durability::None).open()?;
        let body = vec![b'x'; SMALL];
        queue_each(&outbox, &body, 0..1).await?;
        let started = Instant::now();
        queue_each(&outbox, &body, 1..entries).await?;
        took.push(started.elapsed());
    }
    ratio(&took)
}

/// The 99th percentile of the times to queue an entry while another body trickles in, in terms of the same without.
pub async fn trickle(builder: Builder, entries: u32) -> Result<f64> {
    let outbox = builder.durability(Durability::None).open()?;
    let body = vec![b'x'; SMALL];
    queue_each(&outbox, &body, 0..100).await?;
    let mut p99 = Vec::new();
    for trickles in [true, false] {
        let (give, given) = std::sync::mpsc::channel::<()>();
        let slow = trickles.then(|| {
            let outbox = outbox.clone();
            tokio::spawn(async move {
                outbox.enqueue_write(Write::new("PUT", "/slow"), Body::reader(Trickle(given))).await
            })
        });
        let mut times = Vec::new();
        for n in 0..entries {
            let started = Instant::now();
            queue_each(&outbox, &body, n..n + 1).await?;
            times.push(started.elapsed());
        }
        drop(give);
        if let Some(slow) = slow {
            slow.await??;
        }
        times.sort_unstable();
        p99.push(*times.get(times.len() * 99 / 100).context("no times")?);
    }
    ratio(&p99)
}

/// A byte every millisecond, until nobody gives any more.
struct Trickle(std::sync::mpsc::Receiver<()>);

impl std::io::Read for Trickle {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        use std::sync::mpsc::RecvTimeoutError::Timeout;
        let more = self.0.recv_timeout(Duration::from_millis(1)) == Err(Timeout);
        Ok(usize::from(more).min(into.len()))
    }
}

/// Processor time of one tick, in milliseconds, of this whole process. The server is away where anything waits.
pub async fn tick(builder: Builder) -> Result<f64> {
    let outbox = builder.upstream(NOWHERE).open()?;
    let mut last = outbox.replay().await?;
    let before = process::cpu_ms();
    for _ in 0..TICKS {
        last = outbox.tick(&last).await?;
    }
    Ok((process::cpu_ms() - before) / f64::from(TICKS))
}

fn ratio(took: &[Duration]) -> Result<f64> {
    match took {
        [this, that] => Ok(this.as_secs_f64() / that.as_secs_f64()),
        _ => anyhow::bail!("two times make a ratio"),
    }
}
