//! The component under the simulator: compiled once, with fuel, and instantiated as often as it dies.

use crate::bindings::{Outbox, OutboxPre};
use crate::peer::Wire;
use crate::world::Shared;
use std::path::{Path, PathBuf};
use wasmtime::component::{Component, HasSelf, Linker, ResourceTable};
use wasmtime::{Cache, CacheConfig, Config, Engine, Store};
use wasmtime_wasi::p2::pipe::MemoryOutputPipe;
use wasmtime_wasi::{WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

/// How much of a guest's last words is kept: enough for a panic's message.
const LAST_WORDS: usize = 4 * 1024;

/// Fuel for a call that is not to die: far more than any takes, so that one that computes without end stops.
pub const PLENTY: u64 = 20_000_000_000;

/// What a store holds.
pub struct State {
    wasi: WasiCtx,
    http: WasiHttpCtx,
    wire: Wire,
    /// Resources.
    pub table: ResourceTable,
    /// The world.
    pub world: Shared,
    /// Which process this is, for the trace.
    pub process: usize,
    /// Which of the step's calls it carries out.
    pub turn: usize,
    /// It died because it was to.
    pub died: bool,
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for State {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { ctx: &mut self.http, table: &mut self.table, hooks: &mut self.wire }
    }
}

/// A compiled component. Cheap to clone, shared by threads.
#[derive(Clone)]
pub struct Guest {
    engine: Engine,
    pre: OutboxPre<State>,
    /// Handed to each instance beside its configuration: a mutant's name.
    env: Vec<(String, String)>,
}

impl Guest {
    /// Compiles the component that ships.
    pub fn shipped() -> wasmtime::Result<Guest> {
        Guest::new(outbox_host::Runtime::component())
    }

    /// Compiles a component, or takes it from the cache.
    pub fn new(bytes: &[u8]) -> wasmtime::Result<Guest> {
        let mut config = Config::new();
        config.consume_fuel(true);
        let mut cache = CacheConfig::new();
        cache.with_directory(scratch().join("compiled"));
        // A cache that cannot be had costs time only.
        config.cache(Cache::new(cache).ok());
        let engine = Engine::new(&config)?;
        let component = Component::new(&engine, bytes)?;
        let mut linker: Linker<State> = Linker::new(&engine);
        wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
        wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
        linker.allow_shadowing(true);
        type Own = HasSelf<State>;
        use crate::bindings::wasi::{clocks, filesystem, random};
        filesystem::types::add_to_linker::<State, Own>(&mut linker, |state| state)?;
        filesystem::preopens::add_to_linker::<State, Own>(&mut linker, |state| state)?;
        clocks::monotonic_clock::add_to_linker::<State, Own>(&mut linker, |state| state)?;
        clocks::wall_clock::add_to_linker::<State, Own>(&mut linker, |state| state)?;
        random::random::add_to_linker::<State, Own>(&mut linker, |state| state)?;
        let pre = OutboxPre::new(linker.instantiate_pre(&component)?)?;
        Ok(Guest { engine, pre, env: Vec::new() })
    }

    /// The same with this variable in the guest's environment.
    pub fn with_env(&self, name: &str, value: &str) -> Guest {
        let mut guest = self.clone();
        guest.env.push((name.to_owned(), value.to_owned()));
        guest
    }
}

/// Where the simulator keeps what it builds: below the workspace's target directory.
pub fn scratch() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let workspace = manifest.ancestors().nth(2).unwrap_or(manifest);
    workspace.join("target").join("sim")
}

/// A running instance: a process of an operating system, as it were.
pub struct Process {
    /// Its number.
    pub number: usize,
    /// Its store.
    pub store: Store<State>,
    /// What it exports.
    pub exports: Outbox,
    stderr: MemoryOutputPipe,
}

impl Process {
    /// Starts one.
    pub async fn start(
        guest: &Guest,
        world: &Shared,
        number: usize,
        env: &[(String, String)],
    ) -> wasmtime::Result<Process> {
        let stderr = MemoryOutputPipe::new(LAST_WORDS);
        let mut wasi = WasiCtxBuilder::new();
        // HashMaps of the guest must have the same order in every run.
        wasi.insecure_random_seed(0x0b5e_55ed_0b5e_55ed);
        wasi.envs(env).envs(&guest.env).stderr(stderr.clone());
        let state = State {
            wasi: wasi.build(),
            http: WasiHttpCtx::new(),
            wire: Wire { world: world.clone(), process: number },
            table: ResourceTable::new(),
            world: world.clone(),
            process: number,
            turn: usize::MAX,
            died: false,
        };
        let mut store = Store::new(&guest.engine, state);
        store.set_fuel(PLENTY)?;
        let exports = guest.pre.instantiate_async(&mut store).await?;
        Ok(Process { number, store, exports, stderr })
    }

    /// What it wrote to stderr: a panic's message, when there was one.
    pub fn last_words(&self) -> String {
        String::from_utf8_lossy(&self.stderr.contents()).trim().to_owned()
    }
}
