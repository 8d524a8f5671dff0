//! The host of the outbox component: a wasmtime sandbox around it, a loop that replays, and a handle.
//!
//! ```no_run
//! use outbox_host::{Body, Outbox};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let outbox = Outbox::builder("./outbox-data").upstream("https://example.org").start()?;
//! let write = http::Request::put("/notes/today.txt")
//!     .header("If-Match", "\"v1\"")
//!     .body(Body::from("buy milk"))?;
//! let id = outbox.enqueue(write).await?; // On disk, synced. Now it may take a week.
//! println!("queued {id}");
//! outbox.shutdown().await;
//! # Ok(())
//! # }
//! ```
//!
//! Everything the binary `outbox` does goes through this library. docs/embedding.md has more.

mod bindings;
mod body;
mod builder;
mod credential;
mod dir;
mod disk;
mod driver;
mod egress;
mod error;
mod gather;
mod instances;
mod lease;
#[cfg(unix)]
mod listing;
mod model;
mod outbox;
mod pace;
mod pass;
mod pool;
mod ready;
mod recipe;
mod root;
mod runtime;
mod sandbox;
mod sweep;
mod watch;
mod worker;
mod write;

pub use body::Body;
pub use builder::{Ambiguous, Builder, Durability, Order, Profile, Refused};
pub use credential::Credential;
pub use error::{Error, Measure};
pub use model::{
    Counts, Delivery, Entry, Event, Finding, Health, Item, Outcome, Place, Reply, Report, Usage,
};
pub use outbox::{Keep, Outbox, Status};
pub use runtime::{Runtime, RuntimeOptions, default_cache_dir};
pub use sandbox::Limits;
pub use write::Write;
