//! One instance of the component and the limits around it.
//!
//! The guest is given one directory (ROOT as `/data`), its configuration as environment variables, clocks,
//! randomness, and HTTP to one origin. It cannot use more memory than its limit, compute without end, or
//! hang: a guest that neither makes a host call nor returns from one for the deadline is stopped. There is
//! no limit on how long a call takes as a whole, because a large body on a slow line takes long; but one that is not
//! awaited any more ends at the next epoch, if not before. After a trap, a limit or a deadline the instance is thrown
//! away; the queue on disk is what counts.

use crate::Error;
use crate::bindings::Outbox;
use crate::egress::Egress;
use crate::runtime::{EPOCH, Runtime};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use wasmtime::component::ResourceTable;
use wasmtime::{Store, StoreLimits, StoreLimitsBuilder, UpdateDeadline};
use wasmtime_wasi::p2::pipe::MemoryOutputPipe;
use wasmtime_wasi::{FsPerms, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

/// How much of a guest's last words is kept: enough for a panic's message.
const LAST_WORDS: usize = 4 * 1024;

/// What the guest may have beside its memory, which the host keeps for it. The component has one memory, two tables of less
/// than 200 elements, and three modules, of each of which there is one instance. A request takes some ten handles, and 256
/// may be under way.
const TABLES: usize = 16;
const TABLE_ELEMENTS: usize = 100_000;
const INSTANCES: usize = 64;
const HANDLES: usize = 8192;

/// What a guest may use.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of linear memory, at least 2 MiB; 64 MiB.
    pub memory: usize,
    /// How long a guest may go without a host call, or stay in one, and a body may pause; 2 min. One that waits for a server makes
    /// a call every 5 s, so that less than 10 s stops healthy ones.
    pub deadline: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { memory: 64 * 1024 * 1024, deadline: Duration::from_secs(120) }
    }
}

/// What a store holds.
pub(crate) struct State {
    wasi: WasiCtx,
    http: WasiHttpCtx,
    pub(crate) table: ResourceTable,
    egress: Egress,
    limits: StoreLimits,
    /// [`Limits::deadline`].
    pub(crate) deadline: Duration,
    /// Counts host calls: a guest that makes some is alive.
    activity: Arc<AtomicU64>,
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        self.activity.fetch_add(1, Ordering::Relaxed);
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for State {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        self.activity.fetch_add(1, Ordering::Relaxed);
        WasiHttpCtxView { ctx: &mut self.http, table: &mut self.table, hooks: &mut self.egress }
    }
}

/// An instance and its store.
pub(crate) struct Instance {
    pub(crate) store: Store<State>,
    pub(crate) exports: Outbox,
    /// Places that were staged ahead in it, as far as is known.
    pub(crate) staged: u32,
    /// Some are to be staged before it is used again.
    pub(crate) wants_staging: bool,
    stderr: MemoryOutputPipe,
    activity: Arc<AtomicU64>,
    runtime: Runtime,
}

impl Instance {
    /// Starts an instance on this thread, which its file calls block.
    pub(crate) async fn new(
        runtime: &Runtime,
        root: &Path,
        env: &[(String, String)],
        egress: Egress,
        limits: Limits,
    ) -> Result<Instance, Error> {
        let unusable = |e: wasmtime::Error| Error::Component(format!("{e:#}"));
        let stderr = MemoryOutputPipe::new(LAST_WORDS);
        let mut wasi = WasiCtxBuilder::new();
        // Before the directory, which copies it: file calls stay on this thread, which is several times
        // faster than handing each to another.
        wasi.allow_blocking_current_thread(true);
        wasi.envs(env).stderr(stderr.clone());
        wasi.preopened_dir(root, "/data", FsPerms::ReadWrite)
            .map_err(|e| Error::Root { path: root.into(), reason: format!("it cannot be opened: {e:#}") })?;
        let activity = Arc::new(AtomicU64::new(0));
        let state = State {
            wasi: wasi.build(),
            http: WasiHttpCtx::new(),
            table: ResourceTable::new(),
            egress,
            limits: StoreLimitsBuilder::new()
                .memories(1)
                .memory_size(limits.memory)
                .tables(TABLES)
                .table_elements(TABLE_ELEMENTS)
                .instances(INSTANCES)
                .build(),
            deadline: limits.deadline,
            activity: activity.clone(),
        };
        let mut store = Store::new(&runtime.0.engine, state);
        store.limiter(|state| &mut state.limits);
        store.set_max_component_handles(HANDLES);
        interrupt_when_stuck(&mut store, limits.deadline);
        let starting = runtime.0.pre.instantiate_async(&mut store);
        let exports = within(runtime, &activity, limits.deadline, starting).await?.map_err(unusable)?;
        let runtime = runtime.clone();
        Ok(Instance { store, exports, staged: 0, wants_staging: false, stderr, activity, runtime })
    }

    /// Notes writes that were queued. With `quick`, others come soon.
    pub(crate) fn used(&mut self, places: u32, quick: bool) {
        self.staged = self.staged.saturating_sub(places);
        self.wants_staging = quick && self.staged == 0;
    }

    /// Awaits a call into the guest. An error means that the instance is spent.
    pub(crate) async fn guard<T>(
        &mut self,
        call: impl AsyncFnOnce(&Outbox, &mut Store<State>) -> wasmtime::Result<T>,
    ) -> Result<T, Error> {
        let deadline = self.store.data().deadline;
        let call = call(&self.exports, &mut self.store);
        within(&self.runtime, &self.activity, deadline, call).await?.map_err(|trap| {
            let said = self.stderr.contents();
            let said = String::from_utf8_lossy(&said);
            match said.trim() {
                "" => Error::Trapped(format!("{:#}", trap)),
                said => Error::Trapped(format!("{said}: {}", trap.root_cause())),
            }
        })
    }
}

/// Awaits guest code, within the deadline between its host calls.
async fn within<T>(
    runtime: &Runtime,
    activity: &AtomicU64,
    deadline: Duration,
    call: impl Future<Output = wasmtime::Result<T>>,
) -> Result<wasmtime::Result<T>, Error> {
    let _ticking = runtime.0.clock.guard();
    tokio::select! {
        // A call that never waits, as most into the queue, then needs no timer.
        biased;
        result = call => Ok(result),
        () = inactive(activity, deadline) => {
            Err(Error::Trapped(format!("a call made no progress for {deadline:?}")))
        }
    }
}

/// Stops a guest that computes without a host call, and gives whoever awaits one that makes them without ever waiting a turn
/// to end it. The epoch is looked at only while guest code runs.
fn interrupt_when_stuck(store: &mut Store<State>, deadline: Duration) {
    let patience = (deadline.as_millis() / EPOCH.as_millis()).max(1);
    let mut last = 0;
    let mut stuck = 0;
    store.epoch_deadline_callback(move |context| {
        let now = context.data().activity.load(Ordering::Relaxed);
        stuck = if now == last { stuck + 1 } else { 0 };
        last = now;
        match stuck >= patience {
            true => Err(wasmtime::format_err!("it computed for {deadline:?} without a host call")),
            false => Ok(UpdateDeadline::Yield(1)),
        }
    });
    store.set_epoch_deadline(1);
}

/// Returns when no host call was made for the deadline: the guest is waiting for one that does not return.
async fn inactive(activity: &AtomicU64, deadline: Duration) {
    let mut last = activity.load(Ordering::Relaxed);
    // What the host gives up at the deadline itself, as a body that pauses, is for the guest to hear of.
    let patience = deadline.saturating_add(EPOCH);
    loop {
        tokio::time::sleep(patience).await;
        let now = activity.load(Ordering::Relaxed);
        if now == last {
            return;
        }
        last = now;
    }
}
