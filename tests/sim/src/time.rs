//! Virtual time. It stands still while anything can run, and jumps to the next timer when nothing can: the
//! runtime says so by going to park its thread.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// A clock of a run, from 0 nanoseconds on. Cheap to clone.
#[derive(Clone, Default)]
pub struct Clock(Arc<Mutex<Timers>>);

#[derive(Default)]
struct Timers {
    now: u64,
    next: u64,
    /// By time, then in the order in which they were set: waking is in the same order in every run.
    waiting: BTreeMap<(u64, u64), Waker>,
    root: Option<Waker>,
    stuck: bool,
}

impl Clock {
    fn timers(&self) -> MutexGuard<'_, Timers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nanoseconds since the run began.
    pub fn now(&self) -> u64 {
        self.timers().now
    }

    /// Lets a little time pass while something is computed. Timers that are due by then fire when the
    /// runtime is idle.
    pub fn spend(&self, nanos: u64) {
        self.timers().now += nanos;
    }

    /// Waits.
    pub fn sleep(&self, duration: Duration) -> Sleep {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Sleep { clock: self.clone(), until: self.now().saturating_add(nanos), key: None }
    }

    /// To be called when nothing can run: moves on to the next timer. Without one, the run is stuck, and its
    /// root is woken to see that.
    pub fn idle(&self) {
        let mut timers = self.timers();
        let Some((until, _)) = timers.waiting.keys().next().copied() else {
            timers.stuck = true;
            let root = timers.root.take();
            drop(timers);
            if let Some(root) = root {
                root.wake();
            }
            return;
        };
        timers.now = timers.now.max(until);
        let mut due = Vec::new();
        while let Some(entry) = timers.waiting.first_entry() {
            if entry.key().0 > until {
                break;
            }
            due.push(entry.remove());
        }
        drop(timers);
        for waker in due {
            waker.wake();
        }
    }

    /// Runs to the end, or to where nothing can ever happen again.
    pub async fn watch<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = std::pin::pin!(work);
        std::future::poll_fn(|cx| {
            if let Poll::Ready(done) = work.as_mut().poll(cx) {
                return Poll::Ready(Some(done));
            }
            let mut timers = self.timers();
            timers.root = Some(cx.waker().clone());
            match timers.stuck {
                true => Poll::Ready(None),
                false => Poll::Pending,
            }
        })
        .await
    }
}

/// A timer.
pub struct Sleep {
    clock: Clock,
    until: u64,
    key: Option<(u64, u64)>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let clock = self.clock.clone();
        let mut timers = clock.timers();
        if let Some(key) = self.key.take() {
            timers.waiting.remove(&key);
        }
        if timers.now >= self.until {
            return Poll::Ready(());
        }
        timers.next += 1;
        let key = (self.until, timers.next);
        timers.waiting.insert(key, cx.waker().clone());
        self.key = Some(key);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.clock.timers().waiting.remove(&key);
        }
    }
}
