//! Deleting the files of what has left the queue in a pass, while that goes on: on another thread, which steps back behind
//! all others. Each time costs a sync, so many go together; but large bodies are to make room soon.

use crate::sandbox::Instance;
use crate::worker::Worker;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Entries that are deleted together. The last ones of a pass are its own.
pub(crate) const EVERY: u32 = 256;
/// How long fewer wait for others.
const AFTER: Duration = Duration::from_secs(1);

/// Sweeps beside a pass. What is returned is to be called for each entry that has left; with it dropped, the task ends.
pub(crate) fn beside(sweeper: Arc<Worker>) -> (impl Fn() + Send + 'static, JoinHandle<()>) {
    let (full, many_left) = mpsc::unbounded_channel();
    let left = Arc::new(AtomicU32::new(0));
    let sweeping = tokio::spawn(sweep(sweeper, left.clone(), many_left));
    let gone = move || {
        if left.fetch_add(1, Ordering::Relaxed) + 1 == EVERY {
            let _ = full.send(());
        }
    };
    (gone, sweeping)
}

async fn sweep(sweeper: Arc<Worker>, left: Arc<AtomicU32>, mut many_left: mpsc::UnboundedReceiver<()>) {
    while !matches!(timeout(AFTER, many_left.recv()).await, Ok(None)) {
        if left.swap(0, Ordering::Relaxed) == 0 {
            continue;
        }
        let job = async |instance: &mut Instance| {
            let swept = instance
                .guard(async |exports, store| exports.zddc_outbox_queue().call_sweep(store).await)
                .await?;
            Ok(swept?)
        };
        // What stays takes space only, until the next sweep.
        if let Err(error) = sweeper.call(job, |_| false, ()).await {
            tracing::debug!("sweep: {error}");
        }
    }
}
