//! What can be written on the command line.

use clap::{Args, Parser, Subcommand, ValueEnum};
use outbox_host::{Ambiguous, Builder, Credential, Durability, Error, Order, Profile, Refused};
use std::path::PathBuf;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  outbox demo
  outbox send PUT /notes/today.txt --body today.txt --content-type text/plain
  outbox list
  outbox replay --upstream https://example.org
  outbox run --upstream https://example.org --bearer-file token

Exit codes:
  0 done   1 error   2 usage   3 entries remain ('replay', 'status')
  4 conflicts, rejected or corrupt entries need somebody (these and 'verify')";

/// A crash-safe offline-write queue for HTTP.
///
/// Writes are put on disk and replayed when the server is back: in order, never lost, never over somebody else's newer version.
#[derive(Debug, Parser)]
#[command(name = "outbox", version, after_help = EXAMPLES, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes.
#[derive(Debug, Args)]
pub struct Global {
    /// The directory that the outbox lives in
    #[arg(long, global = true, env = "OUTBOX_ROOT", value_name = "DIR", default_value = "./outbox-data")]
    pub root: PathBuf,
    /// Run this component instead of the built-in one
    #[arg(long, global = true, value_name = "FILE")]
    pub component: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Keep running and replay: at the start, at ticks, and whenever something is queued
    #[command(after_help = "\
Ends on Ctrl-C or SIGTERM, after the request in flight or 10 s. SIGHUP and 'outbox wake' make a pass at once.

Example:
  outbox run --upstream https://example.org --bearer-env TOKEN --log json")]
    Run(RunArgs),
    /// Make one pass through the queue now
    #[command(after_help = "\
Exit code 3: entries remain; 4: conflicts, rejected or corrupt entries need somebody.

Example:
  outbox replay --upstream https://example.org --json | tail -n 1")]
    Replay(ReplayArgs),
    /// Queue a write; needs no upstream and no daemon
    #[command(after_help = "\
Examples:
  outbox send PUT /notes/a.txt --body a.txt --content-type text/plain
  echo hello | outbox send POST /messages --body -
  outbox send DELETE /notes/old.txt --base-etag '\"v7\"'
  outbox send PUT /new.txt --body new.txt --create")]
    Send(SendArgs),
    /// Print the entries that wait, in queue order
    List(OutputArgs),
    /// Print everything about one entry
    #[command(after_help = "\
Examples:
  outbox show 18ea4ba277c322d7-873e00
  outbox show 18ea4ba277c322d7-873e00 --body > body")]
    Show(ShowArgs),
    /// Print the writes that clashed with a newer version
    Conflicts(OutputArgs),
    /// Print the writes that the server refused for good
    Rejected(OutputArgs),
    /// Print what was found damaged and set aside
    Corrupt(OutputArgs),
    /// End a conflict: queue your write on top of the server's version, or drop it
    #[command(after_help = "\
Examples:
  outbox resolve 18ea4ba277c322d7-873e00 --keep mine
  outbox resolve 18ea4ba277c322d7-873e00 --keep merged.txt")]
    Resolve(ResolveArgs),
    /// Try entries again now: clear a backoff, or put conflicts and rejected writes back into the queue
    Retry(NamesArgs),
    /// Remove entries for good
    Drop(NamesArgs),
    /// Check every entry, bodies too; change nothing
    Verify(OutputArgs),
    /// Print how many entries are where, what they take up, and who replays
    Status(StatusArgs),
    /// Ask the running outbox for a pass now
    Wake(OutputArgs),
    /// Show the whole story in this terminal, with a server of its own
    Demo(DemoArgs),
    /// Print a completion script for a shell
    #[command(after_help = "\
Example:
  outbox completions bash > ~/.local/share/bash-completion/completions/outbox")]
    Completions { shell: clap_complete::Shell },
}

#[derive(Debug, Args)]
pub struct OutputArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    pub limits: LimitArgs,
    /// Look at every entry, also where there are more than 10,000: bytes on disk, and entries of a newer outbox
    #[arg(long)]
    pub full: bool,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, Args)]
pub struct SendArgs {
    /// PUT, POST, PATCH, DELETE or a WebDAV write
    pub method: String,
    /// Path and query, starting with '/'
    pub uri: String,
    /// The body: a file, or - for stdin; without it the body is empty
    #[arg(long, value_name = "FILE|-")]
    pub body: Option<PathBuf>,
    /// The body's Content-Type
    #[arg(long, value_name = "TYPE")]
    pub content_type: Option<String>,
    /// A further request header; may be given more than once
    #[arg(long = "header", value_name = "'Name: value'")]
    pub headers: Vec<String>,
    /// The Last-Modified of the version that you changed, as the server sent it or in RFC 3339; a newer one on the
    /// server is then a conflict
    #[arg(long, value_name = "TIME")]
    pub base_mod_time: Option<String>,
    /// The ETag of the version that you changed, with its quotes
    #[arg(long, value_name = "ETAG")]
    pub base_etag: Option<String>,
    /// The resource must not exist yet
    #[arg(long, conflicts_with_all = ["base_mod_time", "base_etag"])]
    pub create: bool,
    #[command(flatten)]
    pub storage: StorageArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, Args)]
pub struct DurabilityArgs {
    /// Whether to sync to the disk before acknowledging
    #[arg(long, env = "OUTBOX_DURABILITY", value_name = "LEVEL", default_value = "full")]
    pub durability: DurabilityArg,
}

#[derive(Debug, Args)]
pub struct StorageArgs {
    #[command(flatten)]
    pub durability: DurabilityArgs,
    /// The longest body, in bytes
    #[arg(long, env = "OUTBOX_MAX_BODY", value_name = "BYTES", default_value = "268435456", value_parser = bytes)]
    pub max_body: u64,
    #[command(flatten)]
    pub limits: LimitArgs,
}

#[derive(Debug, Args)]
pub struct LimitArgs {
    /// Refuse new writes once the outbox takes so many bytes on disk, set-aside entries included
    #[arg(long, env = "OUTBOX_MAX_BYTES", value_name = "BYTES", value_parser = some_bytes)]
    pub max_bytes: Option<u64>,
    /// Refuse new writes once so many wait
    #[arg(long, env = "OUTBOX_MAX_ENTRIES", value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub max_entries: Option<u64>,
}

fn bytes(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| "give a number of bytes, such as 1073741824".into())
}

fn some_bytes(text: &str) -> Result<u64, String> {
    match bytes(text)? {
        0 => Err("give at least 1".into()),
        some => Ok(some),
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum DurabilityArg {
    Full,
    None,
}

impl DurabilityArgs {
    pub fn apply(&self, builder: Builder) -> Builder {
        builder.durability(match self.durability {
            DurabilityArg::Full => Durability::Full,
            DurabilityArg::None => Durability::None,
        })
    }
}

impl StorageArgs {
    pub fn apply(&self, builder: Builder) -> Builder {
        let LimitArgs { max_bytes, max_entries } = self.limits;
        let builder = self.durability.apply(builder);
        builder.max_body(self.max_body).max_bytes(max_bytes).max_entries(max_entries)
    }
}

#[derive(Debug, Args)]
pub struct UpstreamArgs {
    /// Where to replay to: http(s)://host[:port][/prefix]
    #[arg(long, env = "OUTBOX_UPSTREAM", value_name = "URL")]
    pub upstream: Option<String>,
    /// Take the bearer token from this environment variable
    #[arg(long, value_name = "VAR", conflicts_with = "bearer_file")]
    pub bearer_env: Option<String>,
    /// Take the bearer token from this file, again whenever the server refuses it
    #[arg(long, value_name = "FILE")]
    pub bearer_file: Option<PathBuf>,
    /// Trust these certificates too (PEM)
    #[arg(long, env = "OUTBOX_CA", value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Requests in flight at once
    #[arg(long, env = "OUTBOX_CONCURRENCY", value_name = "N", default_value_t = 4,
          value_parser = clap::value_parser!(u16).range(1..=256))]
    pub concurrency: u16,
    /// In queue order per path, or the whole queue in one line
    #[arg(long, env = "OUTBOX_ORDER", value_name = "ORDER", default_value = "path")]
    pub order: OrderArg,
    /// What becomes of writes that the server refuses for good [default: keep]
    #[arg(long, env = "OUTBOX_REJECTED", value_name = "WHAT")]
    pub rejected: Option<RejectedArg>,
    /// What becomes of writes that the server refuses for want of credentials [default: hold]
    #[arg(long, env = "OUTBOX_AUTH", value_name = "WHAT")]
    pub auth: Option<AuthArg>,
    /// What becomes of a POST or PATCH when it is not known what the server did with it
    #[arg(long, env = "OUTBOX_AMBIGUOUS", value_name = "WHAT", default_value = "retry")]
    pub ambiguous: AmbiguousArg,
    /// A header that every success must carry; a captive portal's 200 then counts as 'not now'
    #[arg(long, env = "OUTBOX_EXPECT_HEADER", value_name = "'Name: value'")]
    pub expect_header: Option<String>,
    /// Leave out a PUT that a later PUT or DELETE of the same path supersedes
    #[arg(long, env = "OUTBOX_COALESCE", action = clap::ArgAction::SetTrue,
          value_parser = clap::builder::BoolishValueParser::new())]
    pub coalesce: bool,
    /// Behave as the Go original did (docs/original.md)
    #[arg(long, env = "OUTBOX_PROFILE", value_name = "WHOSE", default_value = "outbox")]
    pub profile: ProfileArg,
    /// Seconds until a connection must be there
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0, value_parser = seconds)]
    pub connect_timeout: f64,
    /// Seconds that a transfer may pause without a byte either way
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0, value_parser = seconds)]
    pub idle_timeout: f64,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum OrderArg {
    Path,
    Strict,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum RejectedArg {
    Keep,
    Drop,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum AuthArg {
    Hold,
    Drop,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum AmbiguousArg {
    Retry,
    Hold,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ProfileArg {
    Outbox,
    Original,
}

/// A time-out: more than nothing, at most a day.
fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.001..=86_400.0).contains(&seconds) => Ok(seconds),
        _ => Err("it is no number of seconds from 0.001 to 86400".into()),
    }
}

impl UpstreamArgs {
    pub fn apply(&self, builder: Builder) -> Result<Builder, Error> {
        let mut builder = builder
            // Without one, the empty URL is refused.
            .upstream(self.upstream.as_deref().unwrap_or_default())
            .concurrency(self.concurrency.into())
            .order(match self.order {
                OrderArg::Path => Order::Path,
                OrderArg::Strict => Order::Strict,
            })
            .ambiguous(match self.ambiguous {
                AmbiguousArg::Retry => Ambiguous::Retry,
                AmbiguousArg::Hold => Ambiguous::Hold,
            })
            .coalesce(self.coalesce)
            .profile(match self.profile {
                ProfileArg::Outbox => Profile::Outbox,
                ProfileArg::Original => Profile::Original,
            })
            .connect_timeout(Duration::from_secs_f64(self.connect_timeout))
            .idle_timeout(Duration::from_secs_f64(self.idle_timeout));
        if let Some(what) = self.rejected {
            builder = builder.rejected(match what {
                RejectedArg::Keep => Refused::Keep,
                RejectedArg::Drop => Refused::Drop,
            });
        }
        if let Some(what) = self.auth {
            builder = builder.auth(match what {
                AuthArg::Hold => Refused::Keep,
                AuthArg::Drop => Refused::Drop,
            });
        }
        if let Some(field) = &self.expect_header {
            builder = builder.expect_header(field);
        }
        if let Some(name) = &self.bearer_env {
            builder = builder.credential(Credential::from_env(name)?);
        }
        if let Some(path) = &self.bearer_file {
            builder = builder.credential(Credential::from_file(path)?);
        }
        if let Some(path) = &self.ca {
            builder = builder.ca(path);
        }
        Ok(builder)
    }
}

#[derive(Debug, Args)]
pub struct ReplayArgs {
    #[command(flatten)]
    pub upstream: UpstreamArgs,
    #[command(flatten)]
    pub durability: DurabilityArgs,
    /// Print one JSON object per outcome and, last, one for the pass
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub upstream: UpstreamArgs,
    #[command(flatten)]
    pub durability: DurabilityArgs,
    /// How to write the log
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log: LogFormat,
    /// How much to log
    #[arg(long, env = "OUTBOX_LOG_LEVEL", value_name = "LEVEL", default_value = "info")]
    pub log_level: LogLevel,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
}

#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The entry's id, or its name where it was set aside
    #[arg(value_name = "ID")]
    pub name: String,
    /// Write the body to stdout, and nothing else
    #[arg(long, conflicts_with = "json")]
    pub body: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ResolveArgs {
    /// The entry's id, or the conflict's name
    #[arg(value_name = "ID")]
    pub name: String,
    /// mine: queue it again on top of the server's version; theirs: drop it; a file: queue that body, merged
    /// from both, on top of the server's version (./mine for a file of that name)
    #[arg(long, value_name = "mine|theirs|FILE", value_parser = keep)]
    pub keep: KeepArg,
    #[command(flatten)]
    pub storage: StorageArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone)]
pub enum KeepArg {
    Mine,
    Theirs,
    Merged(PathBuf),
}

fn keep(text: &str) -> Result<KeepArg, String> {
    match text {
        "mine" => Ok(KeepArg::Mine),
        "theirs" => Ok(KeepArg::Theirs),
        "-" => Ok(KeepArg::Merged("-".into())),
        file if std::path::Path::new(file).exists() => Ok(KeepArg::Merged(file.into())),
        _ => Err("it is neither 'mine' nor 'theirs' nor a file that is there".into()),
    }
}

#[derive(Debug, Args)]
pub struct NamesArgs {
    /// The entries' ids, or their names where they were set aside
    #[arg(value_name = "ID", required_unless_present = "all", conflicts_with = "all")]
    pub names: Vec<String>,
    /// All rejected writes
    #[arg(long)]
    pub all: bool,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Leave the directory there
    #[arg(long)]
    pub keep: bool,
}
