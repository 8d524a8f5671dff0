//! How an outbox is configured.

use crate::Error;
use crate::credential::Credential;
use crate::dir::OUTBOX_DIR;
use crate::disk::Disk;
use crate::egress::{Egress, Origin, UpstreamUrl};
use crate::outbox::Outbox;
use crate::pool::{Ca, Dial};
use crate::recipe::Recipe;
use crate::root;
use crate::runtime::{Runtime, RuntimeOptions, default_cache_dir};
use crate::sandbox::Limits;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// What a guest takes.
const MAX_CONCURRENCY: usize = 256;
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

/// The component starts with 17 pages of 64 KiB, and takes some more for whatever it does.
const MIN_MEMORY: usize = 2 * 1024 * 1024;

/// Whether an enqueue that returned survives a power failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// Body, metadata and directories are synced first.
    #[default]
    Full,
    /// Nothing is: for tests and scratch.
    None,
}

/// What becomes of writes that the server refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Refused {
    /// They are kept: in `rejected/`, or in the queue while credentials are wanting.
    #[default]
    Keep,
    /// They are removed, as the original does.
    Drop,
}

/// What becomes of a POST or PATCH when it is not known what the server did with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ambiguous {
    /// It is sent again, with the same Idempotency-Key.
    #[default]
    Retry,
    /// It is kept until somebody says what to do.
    Hold,
}

/// Whom an outbox takes after.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Profile {
    /// Itself: docs/semantics.md.
    #[default]
    Outbox,
    /// The Go original, but for following redirects and letting a URI choose the host: docs/original.md.
    Original,
}

/// In which order entries are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// In queue order per resource; independent ones at once.
    #[default]
    Path,
    /// The whole queue in one line.
    Strict,
}

/// Configures an outbox. `start` replays in the background; `open` only when asked to.
#[derive(Debug, Clone)]
#[must_use]
pub struct Builder {
    root: PathBuf,
    create: bool,
    upstream: Option<UpstreamUrl>,
    credential: Option<Credential>,
    ca: Option<PathBuf>,
    concurrency: usize,
    order: Order,
    durability: Durability,
    max_body: u64,
    max_bytes: Option<u64>,
    max_entries: Option<u64>,
    rejected: Option<Refused>,
    auth: Option<Refused>,
    ambiguous: Ambiguous,
    expect_header: Option<String>,
    coalesce: bool,
    profile: Profile,
    connect_timeout: Duration,
    idle_timeout: Duration,
    limits: Limits,
    watch: bool,
    runtime: Option<Runtime>,
    runtime_options: RuntimeOptions,
}

impl Builder {
    pub(crate) fn new(root: &Path) -> Builder {
        Builder {
            root: root.into(),
            create: true,
            upstream: None,
            credential: None,
            ca: None,
            concurrency: 4,
            order: Order::default(),
            durability: Durability::default(),
            max_body: 256 * 1024 * 1024,
            max_bytes: None,
            max_entries: None,
            rejected: None,
            auth: None,
            ambiguous: Ambiguous::default(),
            expect_header: None,
            coalesce: false,
            profile: Profile::default(),
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            limits: Limits::default(),
            watch: true,
            runtime: None,
            runtime_options: RuntimeOptions { component: None, cache_dir: default_cache_dir() },
        }
    }

    /// Whether the outbox is made where there is none; it is. Without that, [`Error::Root`] says that there is none.
    pub fn create(mut self, create: bool) -> Self {
        self.create = create;
        self
    }

    /// Where to replay to: `http(s)://host[:port][/prefix]`. Nothing else is reachable from the sandbox.
    pub fn upstream(mut self, url: impl Into<String>) -> Self {
        self.upstream = Some(UpstreamUrl(url.into()));
        self
    }

    /// What to put into the Authorization header of every request.
    pub fn credential(mut self, credential: Credential) -> Self {
        self.credential = Some(credential);
        self
    }

    /// Certificates, in PEM, to trust besides the platform's.
    pub fn ca(mut self, file: impl Into<PathBuf>) -> Self {
        self.ca = Some(file.into());
        self
    }

    /// Requests in flight at once, 1 to 256; 4.
    pub fn concurrency(mut self, requests: usize) -> Self {
        self.concurrency = requests;
        self
    }

    /// In which order entries are sent.
    pub fn order(mut self, order: Order) -> Self {
        self.order = order;
        self
    }

    /// Whether an enqueue that returned survives a power failure; it does.
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// The longest body in bytes; 256 MiB.
    pub fn max_body(mut self, bytes: u64) -> Self {
        self.max_body = bytes;
        self
    }

    /// Bytes on disk that the outbox may take, pending and set aside, from 1; no limit. Files and directories count
    /// in whole blocks of 4 KiB, about as `du` shows them. At the limit new writes are refused with
    /// [`Error::QueueFull`]; nothing old is dropped. Several who queue at once may overrun it by what they have in
    /// flight.
    pub fn max_bytes(mut self, bytes: impl Into<Option<u64>>) -> Self {
        self.max_bytes = bytes.into();
        self
    }

    /// Entries that may wait at once, from 1; no limit. What was set aside does not count. Otherwise as
    /// [`Builder::max_bytes`].
    pub fn max_entries(mut self, entries: impl Into<Option<u64>>) -> Self {
        self.max_entries = entries.into();
        self
    }

    /// What becomes of writes that are refused for good; kept.
    pub fn rejected(mut self, refused: Refused) -> Self {
        self.rejected = Some(refused);
        self
    }

    /// What becomes of writes that are refused for want of credentials; kept in the queue.
    pub fn auth(mut self, refused: Refused) -> Self {
        self.auth = Some(refused);
        self
    }

    /// What becomes of a POST or PATCH when it is not known what the server did with it; sent again.
    pub fn ambiguous(mut self, ambiguous: Ambiguous) -> Self {
        self.ambiguous = ambiguous;
        self
    }

    /// A header field, `Name: value`, that every success must carry as a proof that the upstream answers and no
    /// captive portal does.
    pub fn expect_header(mut self, field: impl Into<String>) -> Self {
        self.expect_header = Some(field.into());
        self
    }

    /// Whether a PUT is left out that a later PUT or DELETE of the same path supersedes; it is not.
    pub fn coalesce(mut self, coalesce: bool) -> Self {
        self.coalesce = coalesce;
        self
    }

    /// Whom the outbox takes after.
    pub fn profile(mut self, profile: Profile) -> Self {
        self.profile = profile;
        self
    }

    /// Until a connection must be there, at most a day; 10 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// The longest pause of a transfer without a byte either way, at most a day; 60 s.
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.idle_timeout = timeout;
        self
    }

    /// What the guest may use.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Whether entries that other processes queue wake the driver; they do. Without it, they are seen at
    /// the next tick.
    pub fn watch(mut self, watch: bool) -> Self {
        self.watch = watch;
        self
    }

    /// Shares engine, component and connections with other outboxes.
    pub fn runtime(mut self, runtime: Runtime) -> Self {
        self.runtime = Some(runtime);
        self
    }

    /// Where the component comes from and where its compiled code is kept, unless a runtime is shared.
    pub fn runtime_options(mut self, options: RuntimeOptions) -> Self {
        self.runtime_options = options;
        self
    }

    /// Opens the outbox: entries can be queued, looked at and replayed on demand. Must be called within a
    /// tokio runtime.
    pub fn open(self) -> Result<Outbox, Error> {
        let origin = self.upstream.as_ref().map(|url| Origin::of_upstream(&url.0)).transpose()?;
        self.check()?;
        let root = root::prepare(&self.root, self.create)?;
        let runtime = match self.runtime {
            Some(ref runtime) => runtime.clone(),
            None => Runtime::new(&self.runtime_options)?,
        };
        let in_line = self.order == Order::Strict || self.profile == Profile::Original;
        let many = self.concurrency > 1 && !in_line;
        let egress = match &origin {
            None => Egress::default(),
            Some(origin) => {
                let dial = Dial {
                    tls: origin.is_https(),
                    ca: self.ca.as_deref().map(Ca::read).transpose()?,
                    connect_timeout: self.connect_timeout,
                    idle_timeout: self.idle_timeout,
                    many,
                };
                Egress::to(origin.clone(), self.credential.clone(), runtime.0.pool.client(&dial)?)
            }
        };
        let env = Arc::new(self.env());
        let disk = if self.durability == Durability::Full { Disk::of(&root.join(OUTBOX_DIR)) } else { None };
        let recipe = Recipe { runtime, root, env, egress, limits: self.limits, many, watch: self.watch };
        Ok(Outbox::of(recipe, disk))
    }

    /// Opens the outbox and starts it: [`Outbox::start`].
    pub fn start(self) -> Result<Outbox, Error> {
        let outbox = self.open()?;
        outbox.start()?;
        Ok(outbox)
    }

    /// Refuses what no guest could be started with.
    fn check(&self) -> Result<(), Error> {
        let refuse =
            |what: &str, value: u64, reason: &str| Err(Error::invalid(what, &value.to_string(), reason));
        if !(1..=MAX_CONCURRENCY).contains(&self.concurrency) {
            return refuse("concurrency", self.concurrency as u64, "it is from 1 to 256 requests at once");
        }
        if self.limits.memory < MIN_MEMORY {
            return refuse("memory", self.limits.memory as u64, "the component needs 2097152 bytes (2 MiB)");
        }
        for (what, limit) in [("max_bytes", self.max_bytes), ("max_entries", self.max_entries)] {
            if limit == Some(0) {
                return refuse(what, 0, "nothing could be queued; give 1 or more, or none for no limit");
            }
        }
        for (what, time) in [
            ("connect_timeout", self.connect_timeout),
            ("idle_timeout", self.idle_timeout),
            ("deadline", self.limits.deadline),
        ] {
            if time.is_zero() {
                return refuse(what, 0, "nothing can be done in no time; give more");
            }
        }
        for (what, time) in [("connect_timeout", self.connect_timeout), ("idle_timeout", self.idle_timeout)] {
            if time > MAX_TIMEOUT {
                return Err(Error::invalid(what, &format!("{time:?}"), "it is more than a day; give less"));
            }
        }
        if let Some(field) = self.expect_header.as_ref().filter(|field| !is_field(field)) {
            let reason = "it is not of the form 'Name: value'; leave it out to expect none";
            return Err(Error::invalid("--expect-header", field, reason));
        }
        Ok(())
    }

    /// The guest's configuration.
    fn env(&self) -> Vec<(String, String)> {
        let word =
            |refused, keep: &str| if refused == Refused::Keep { keep.into() } else { "drop".to_owned() };
        let millis = |timeout: Duration| timeout.as_millis().max(1).to_string();
        let order = if self.order == Order::Strict { "strict" } else { "path" };
        let durability = if self.durability == Durability::Full { "full" } else { "none" };
        let mut env = vec![
            ("OUTBOX_DURABILITY", durability.to_owned()),
            ("OUTBOX_MAX_BODY", self.max_body.to_string()),
            ("OUTBOX_CONCURRENCY", self.concurrency.to_string()),
            ("OUTBOX_ORDER", order.to_owned()),
            // This host has a lock; see `root::Lock`.
            ("OUTBOX_LEASE", "none".to_owned()),
            ("OUTBOX_CONNECT_TIMEOUT_MS", millis(self.connect_timeout)),
            ("OUTBOX_IDLE_TIMEOUT_MS", millis(self.idle_timeout)),
        ];
        env.extend(self.max_bytes.iter().map(|bytes| ("OUTBOX_MAX_BYTES", bytes.to_string())));
        env.extend(self.max_entries.iter().map(|entries| ("OUTBOX_MAX_ENTRIES", entries.to_string())));
        env.extend(self.rejected.map(|refused| ("OUTBOX_REJECTED", word(refused, "keep"))));
        env.extend(self.auth.map(|refused| ("OUTBOX_AUTH", word(refused, "hold"))));
        env.extend(self.expect_header.iter().map(|field| ("OUTBOX_EXPECT_HEADER", field.clone())));
        let mut set = |wanted: bool, name, value: &str| env.extend(wanted.then(|| (name, value.to_owned())));
        set(self.ambiguous == Ambiguous::Hold, "OUTBOX_AMBIGUOUS", "hold");
        set(self.coalesce, "OUTBOX_COALESCE", "on");
        set(self.profile == Profile::Original, "OUTBOX_PROFILE", "original");
        env.extend(self.upstream.iter().map(|url| ("OUTBOX_UPSTREAM", url.0.clone())));
        // Linux says it. Elsewhere, each instance looks through the names in the queue before it gives out an id.
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok();
        env.extend(boot.map(|boot| ("OUTBOX_BOOT", boot.trim().to_owned())));
        env.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

/// Whether this is a header field that a reply can have.
fn is_field(text: &str) -> bool {
    text.split_once(':').is_some_and(|(name, value)| {
        http::HeaderName::from_bytes(name.trim().as_bytes()).is_ok()
            && !value.trim().is_empty()
            && http::HeaderValue::from_str(value.trim()).is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use outbox::config::Config;

    /// The component reads its environment, so each reading is a process: this test's own, started anew.
    #[test]
    fn who_sets_nothing_gets_the_components_own_defaults() {
        const ALONE: &str = "HOST_TEST_ALONE";
        if std::env::var_os(ALONE).is_some() {
            return println!("<{:?}>", Config::from_env().unwrap());
        }
        let read = |env: Vec<(String, String)>| {
            let name = "builder::tests::who_sets_nothing_gets_the_components_own_defaults";
            let mut itself = std::process::Command::new(std::env::current_exe().unwrap());
            let done =
                itself.args(["--exact", name, "--nocapture"]).env_clear().envs(env).env(ALONE, "1").output();
            let said = String::from_utf8(done.unwrap().stdout).unwrap();
            let (start, end) = (said.find('<').unwrap(), said.rfind('>').unwrap());
            said[start..end].to_owned()
        };
        let mut env = Builder::new(Path::new("root")).env();
        // What only a host can know or see to.
        env.retain(|(name, _)| !matches!(name.as_str(), "OUTBOX_LEASE" | "OUTBOX_BOOT"));
        let defaults = read(Vec::new());
        assert!(defaults.contains("max_body: 268435456"), "{defaults}");
        assert_eq!(read(env), defaults);
    }
}
