//! A host that knows nothing of the outbox and takes no lock: the component as a command, as `wasmtime run` has
//! it, or its interfaces, in this process. tests/it/stock.rs has the real one, where there is one. Clocks can be bent.

use crate::kit::cache_dir;
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use outbox_host::Runtime;
use outbox_sim::bindings::exports::zddc::outbox::replayer::{Options, Report};
use outbox_sim::bindings::{Outbox, OutboxPre};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use wasmtime::component::{Component, Linker, ResourceTable};
use wasmtime::{Cache, CacheConfig, Config, Engine, Store};
use wasmtime_wasi::p2::bindings::{Command, CommandPre};
use wasmtime_wasi::p2::pipe::MemoryOutputPipe;
use wasmtime_wasi::{
    FsPerms, HostMonotonicClock, HostWallClock, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView,
};
use wasmtime_wasi_http::{
    Error as HttpError, RequestOptions, WasiBody, WasiHttpCtx, WasiHttpCtxView, WasiHttpHooks, WasiHttpView,
};

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    pub ok: bool,
    pub stdout: String,
    pub stderr: String,
}

/// Clocks of a host.
#[derive(Debug, Clone)]
pub struct Clocks {
    /// How far the wall clock is ahead.
    pub ahead: Duration,
    /// How much faster the monotonic clock goes.
    pub times: u32,
    /// How many milliseconds it is put forward.
    pub forward: Arc<AtomicU64>,
}

impl Default for Clocks {
    fn default() -> Clocks {
        Clocks { ahead: Duration::ZERO, times: 1, forward: Arc::default() }
    }
}

/// Runs a command of the component to its end.
pub async fn run(root: &Path, clocks: Clocks, env: &[(&str, &str)], args: &[&str]) -> Ended {
    let (pre, engine) = shared();
    let (stdout, stderr) = (MemoryOutputPipe::new(1 << 20), MemoryOutputPipe::new(1 << 20));
    let mut wasi = WasiCtxBuilder::new();
    wasi.arg("outbox.wasm").args(args).envs(env).stdout(stdout.clone()).stderr(stderr.clone());
    let mut store = Store::new(engine, State::new(wasi, root, clocks));
    let command: Command = pre.instantiate_async(&mut store).await.unwrap();
    let ok = command.wasi_cli_run().call_run(&mut store).await.unwrap().is_ok();
    let text = |pipe: MemoryOutputPipe| String::from_utf8(pipe.contents().to_vec()).unwrap();
    Ended { ok, stdout: text(stdout), stderr: text(stderr) }
}

/// An instance whose interfaces are called.
pub struct Instance(Outbox, Store<State>);

impl Instance {
    pub async fn new(root: &Path, clocks: Clocks, env: &[(&str, &str)]) -> Instance {
        let (pre, engine) = shared();
        let mut wasi = WasiCtxBuilder::new();
        wasi.envs(env);
        let mut store = Store::new(engine, State::new(wasi, root, clocks));
        let pre = OutboxPre::new(pre.instance_pre().clone()).unwrap();
        Instance(pre.instantiate_async(&mut store).await.unwrap(), store)
    }

    /// A whole pass in one call.
    pub async fn replay(&mut self, options: &Options) -> Report {
        let Instance(outbox, store) = self;
        outbox.zddc_outbox_replayer().call_replay(store, options).await.unwrap().unwrap()
    }

    /// A pass step by step.
    pub async fn step(&mut self, options: &Options) -> Report {
        let Instance(outbox, store) = self;
        let passes = outbox.zddc_outbox_replayer().pass();
        let pass = passes.call_start(&mut *store, options).await.unwrap().unwrap();
        while passes.call_next(&mut *store, pass).await.unwrap().unwrap().is_some() {}
        passes.call_report(&mut *store, pass).await.unwrap()
    }
}

/// What the component needs of its host.
pub fn imports() -> Vec<String> {
    let (pre, engine) = shared();
    let component = pre.instance_pre().component().component_type();
    component.imports(engine).map(|(name, _)| name.to_owned()).collect()
}

fn shared() -> (&'static CommandPre<State>, &'static Engine) {
    static SHARED: OnceLock<(CommandPre<State>, Engine)> = OnceLock::new();
    let (pre, engine) = SHARED.get_or_init(|| {
        let mut config = Config::new();
        let mut cache = CacheConfig::new();
        cache.with_directory(cache_dir());
        config.cache(Some(Cache::new(cache).unwrap()));
        let engine = Engine::new(&config).unwrap();
        let component = Component::new(&engine, Runtime::component()).unwrap();
        let mut linker: Linker<State> = Linker::new(&engine);
        wasmtime_wasi::p2::add_to_linker_async(&mut linker).unwrap();
        wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker).unwrap();
        (CommandPre::new(linker.instantiate_pre(&component).unwrap()).unwrap(), engine)
    });
    (pre, engine)
}

struct State {
    wasi: WasiCtx,
    http: WasiHttpCtx,
    table: ResourceTable,
    way: Way,
}

impl State {
    fn new(mut wasi: WasiCtxBuilder, root: &Path, clocks: Clocks) -> State {
        let Clocks { ahead, times, forward } = clocks;
        wasi.wall_clock(Wall(ahead)).monotonic_clock(Monotonic(Instant::now(), times, forward));
        wasi.preopened_dir(root, "/data", FsPerms::ReadWrite).unwrap();
        State { wasi: wasi.build(), http: WasiHttpCtx::new(), table: ResourceTable::new(), way: Way }
    }
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for State {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { ctx: &mut self.http, table: &mut self.table, hooks: &mut self.way }
    }
}

/// Lets everything out.
struct Way;

type Io = Box<dyn Future<Output = Result<(), HttpError>> + Send>;

impl WasiHttpHooks for Way {
    fn send_request(
        &mut self,
        request: http::Request<WasiBody>,
        _timeouts: Option<RequestOptions>,
        _body_read: Io,
    ) -> Box<dyn Future<Output = Result<(http::Response<WasiBody>, Io), HttpError>> + Send> {
        Box::new(async move {
            let client: Client<HttpConnector, WasiBody> = Client::builder(TokioExecutor::new()).build_http();
            let sent = client.request(request).await;
            let response = sent.map_err(|_| HttpError::ConnectionRefused)?;
            let response = response.map(|body| body.map_err(HttpError::from).boxed_unsync());
            Ok((response, Box::new(async { Ok(()) }) as Io))
        })
    }
}

struct Wall(Duration);

impl HostWallClock for Wall {
    fn resolution(&self) -> Duration {
        Duration::from_nanos(1)
    }

    fn now(&self) -> Duration {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + self.0
    }
}

struct Monotonic(Instant, u32, Arc<AtomicU64>);

impl HostMonotonicClock for Monotonic {
    fn resolution(&self) -> u64 {
        1
    }

    fn now(&self) -> u64 {
        let forward = Duration::from_millis(self.2.load(Ordering::Relaxed));
        (self.0.elapsed() * self.1 + forward).as_nanos() as u64
    }
}
