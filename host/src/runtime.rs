//! What any number of outboxes in a process share: one engine, one compiled component, one connection pool, one
//! watcher of directories.

use crate::Error;
use crate::bindings::OutboxPre;
use crate::pool::Pool;
use crate::sandbox::State;
use crate::watch::Watches;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use wasmtime::component::{Component, Linker};
use wasmtime::{Cache, CacheConfig, Config, Engine};

/// The component that this build carries.
const COMPONENT: &[u8] = include_bytes!(env!("OUTBOX_WASM"));

/// How often a running guest is looked at. See [`crate::sandbox`] for what is looked for.
pub(crate) const EPOCH: Duration = Duration::from_millis(100);

/// Shared by outboxes. Cheap to clone.
#[derive(Clone)]
pub struct Runtime(pub(crate) Arc<Shared>);

impl std::fmt::Debug for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Runtime(..)")
    }
}

pub(crate) struct Shared {
    pub(crate) engine: Engine,
    pub(crate) pre: OutboxPre<State>,
    pub(crate) pool: Pool,
    pub(crate) watches: Watches,
    pub(crate) clock: EpochClock,
}

/// Where the component comes from and where its compiled code is kept.
#[derive(Debug, Clone, Default)]
pub struct RuntimeOptions {
    /// The component's file; none for the one that this build carries.
    pub component: Option<PathBuf>,
    /// The directory for compiled code; none to compile at every start (about a second).
    pub cache_dir: Option<PathBuf>,
}

impl Runtime {
    /// Compiles the component, or takes it from the cache.
    pub fn new(options: &RuntimeOptions) -> Result<Runtime, Error> {
        let bytes = match &options.component {
            None => None,
            Some(path) => Some(
                std::fs::read(path)
                    .map_err(|e| Error::Component(format!("{} cannot be read: {e}", path.display())))?,
            ),
        };
        Runtime::compile(bytes.as_deref().unwrap_or(COMPONENT), options.cache_dir.as_ref())
            .map_err(|e| Error::Component(format!("{e:#}")))
    }

    fn compile(bytes: &[u8], cache_dir: Option<&PathBuf>) -> wasmtime::Result<Runtime> {
        let mut config = Config::new();
        config.epoch_interruption(true);
        let cache = cache_dir.and_then(|dir| match cache_in(dir) {
            Ok(cache) => Some(cache),
            // That costs time only.
            Err(why) => {
                warn_uncached(dir, &format!("{why:#}"));
                None
            }
        });
        config.cache(cache.clone());
        let engine = Engine::new(&config)?;
        let component = Component::new(&engine, bytes)?;
        // What was neither found nor put there is not counted. Why, only a debug log says.
        if let Some(cache) = cache.filter(|cache| cache.cache_hits() + cache.cache_misses() == 0) {
            let probed = tempfile::tempfile_in(cache.directory());
            let why = probed.err().map_or("nothing can be written there".into(), |error| error.to_string());
            warn_uncached(cache.directory(), &why);
        }
        let mut linker: Linker<State> = Linker::new(&engine);
        wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
        wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
        linker.allow_shadowing(true);
        crate::ready::link(&mut linker)?;
        #[cfg(unix)]
        crate::listing::link(&mut linker)?;
        let pre = OutboxPre::new(linker.instantiate_pre(&component)?)?;
        let clock = EpochClock::start(&engine)?;
        Ok(Runtime(Arc::new(Shared {
            engine,
            pre,
            pool: Pool::default(),
            watches: Watches::default(),
            clock,
        })))
    }

    /// The component that this build carries, for hosts of another kind.
    pub fn component() -> &'static [u8] {
        COMPONENT
    }
}

/// wasmtime wants an absolute directory.
fn cache_in(dir: &Path) -> wasmtime::Result<Cache> {
    let mut config = CacheConfig::new();
    config.with_directory(std::path::absolute(dir)?);
    Cache::new(config)
}

fn warn_uncached(dir: &Path, why: &str) {
    tracing::warn!(
        "compiled code cannot be kept in {}, so each start compiles: {why}; name another directory with OUTBOX_CACHE_DIR",
        dir.display()
    );
}

/// The directory for compiled code where the user has not named one: `$OUTBOX_CACHE_DIR`, else below the
/// platform's cache directory. An empty `$OUTBOX_CACHE_DIR` means none.
pub fn default_cache_dir() -> Option<PathBuf> {
    let var = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(named) = std::env::var_os("OUTBOX_CACHE_DIR") {
        return (!named.is_empty()).then(|| PathBuf::from(named));
    }
    let platform = if cfg!(windows) {
        var("LOCALAPPDATA")
    } else if cfg!(target_os = "macos") {
        var("HOME").map(|home| home.join("Library").join("Caches"))
    } else {
        var("XDG_CACHE_HOME").or_else(|| var("HOME").map(|home| home.join(".cache")))
    };
    // A relative one would be another one in each directory.
    platform.map(|dir| dir.join("outbox")).filter(|dir| dir.is_absolute())
}

/// Moves the engine's epoch on while some guest runs; sleeps otherwise, so that an idle process is idle.
pub(crate) struct EpochClock {
    running: Arc<Running>,
}

#[derive(Default)]
struct Running {
    guests: Mutex<Guests>,
    changed: Condvar,
}

#[derive(Default)]
struct Guests {
    running: usize,
    /// The clock waits for one. Else nobody needs to be told, which would cost a system call per guest call.
    awaited: bool,
    /// None will ever run again: the clock may end.
    ended: bool,
}

impl Running {
    fn guests(&self) -> MutexGuard<'_, Guests> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// While this lives, the epoch moves.
pub(crate) struct EpochGuard(Arc<Running>);

impl EpochClock {
    fn start(engine: &Engine) -> std::io::Result<EpochClock> {
        let running = Arc::new(Running::default());
        let (weak, watched) = (engine.weak(), running.clone());
        let tick = move || {
            loop {
                let mut guests = watched.guests();
                guests.awaited = guests.running == 0;
                let idle = watched.changed.wait_while(guests, |guests| guests.running == 0 && !guests.ended);
                let mut guests = idle.unwrap_or_else(PoisonError::into_inner);
                guests.awaited = false;
                if guests.ended {
                    return;
                }
                drop(guests);
                std::thread::sleep(EPOCH);
                match weak.upgrade() {
                    Some(engine) => engine.increment_epoch(),
                    None => return,
                }
            }
        };
        std::thread::Builder::new().name("outbox-clock".into()).spawn(tick)?;
        Ok(EpochClock { running })
    }

    pub(crate) fn guard(&self) -> EpochGuard {
        let mut guests = self.running.guests();
        guests.running += 1;
        if guests.awaited {
            self.running.changed.notify_one();
        }
        drop(guests);
        EpochGuard(self.running.clone())
    }
}

impl Drop for EpochClock {
    fn drop(&mut self) {
        self.running.guests().ended = true;
        self.running.changed.notify_one();
    }
}

impl Drop for EpochGuard {
    fn drop(&mut self) {
        self.0.guests().running -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_ends_when_it_is_dropped() {
        let clock = EpochClock::start(&Engine::default()).unwrap();
        drop(clock.guard());
        let running = Arc::downgrade(&clock.running);
        drop(clock);
        let begun = std::time::Instant::now();
        while running.strong_count() > 0 {
            assert!(begun.elapsed() < Duration::from_secs(20), "its thread is still there");
            std::thread::yield_now();
        }
    }

    #[test]
    fn what_replaces_wasmtimes_own_stands_where_that_is_linked() {
        type Link = fn(&mut Linker<State>) -> wasmtime::Result<()>;
        let replacements: &[Link] = &[
            crate::ready::link,
            #[cfg(unix)]
            crate::listing::link,
        ];
        let mut linker = Linker::new(&Engine::default());
        wasmtime_wasi::p2::add_to_linker_async(&mut linker).unwrap();
        for link in replacements {
            let twice =
                link(&mut linker).expect_err("wasmtime links another version by now: INTERFACE must follow");
            assert!(format!("{twice:#}").contains("defined twice"), "{twice:#}");
        }
    }
}
