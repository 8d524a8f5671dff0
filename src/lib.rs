//! Outbox: a crash-safe offline-write queue for HTTP, as one WASI 0.2 component.
//!
//! The component is handed one directory and the right to send HTTP requests. It puts writes on disk
//! ([`enqueue`]), and replays them to the upstream when that answers ([`pass`]): in order per resource, never
//! lost, never over a version that the author had not seen. What it exports is described in `wit/outbox.wit`;
//! [`guest`] is the glue. Where to find what:
//!
//! | module | concept |
//! |---|---|
//! | [`layout`] | names on disk and what they mean: the format, once |
//! | [`id`], [`meta`], [`state`] | an entry's name, what to send, what happened so far |
//! | [`request`] | what may be queued |
//! | [`dir`] | files and directories over `wasi:filesystem` |
//! | [`queue`], [`listing`], [`sweep`] | the queue on disk |
//! | [`entry`], [`unloadable`], [`quarantine`], [`response`] | reading an entry, and setting it aside |
//! | [`locate`], [`inspect`], [`verify`], [`resolve`], [`retry`], [`mod@drop`] | what an operator sees of it and does to it |
//! | [`enqueue`], [`batch`], [`staged`] | queueing one, several at once, and with half of the work done ahead |
//! | [`limits`], [`lease`] | how much may be kept; who may replay where there is no lock |
//! | [`upstream`], [`headers`], [`exchange`], [`failure`] | where requests go; what they say; one request and its reply, or why there is none |
//! | [`precondition`], [`chain`] | which version a write is based on; several edits of one resource |
//! | [`outcome`], [`backoff`] | what a reply means; when to try again |
//! | [`key`], [`schedule`], [`ahead`], [`pass`], [`removal`] | which entry waits for which; what is read ahead; the replay; taking out what was delivered |
//! | [`cached`] | the locally cached file that a delivery makes stale |
//! | [`config`], [`command`] | the environment; the command line for stock hosts |
//!
//! Nothing here panics on what it finds on disk or on the wire: a panic in a guest is a trap.

pub mod ahead;
pub mod backoff;
pub mod batch;
pub mod cached;
pub mod chain;
pub mod clock;
pub mod command;
pub mod config;
pub mod dir;
pub mod drop;
pub mod enqueue;
pub mod entry;
pub mod error;
pub mod exchange;
pub mod failure;
pub mod guest;
pub mod headers;
pub mod id;
pub mod inspect;
pub mod key;
pub mod layout;
pub mod lease;
pub mod limits;
pub mod listing;
pub mod locate;
pub mod meta;
pub mod outcome;
pub mod pass;
pub mod precondition;
pub mod quarantine;
pub mod queue;
pub mod removal;
pub mod request;
pub mod resolve;
pub mod response;
pub mod retry;
pub mod schedule;
pub mod staged;
pub mod state;
pub mod sweep;
pub mod unloadable;
pub mod upstream;
pub mod verify;

/// The WIT world, generated. The interfaces of WASI are those of the `wasi` crate.
#[allow(
    missing_docs,
    unsafe_code,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "generated code; its documentation is in wit/outbox.wit"
)]
pub mod bindings {
    wit_bindgen::generate!({
        path: "wit",
        world: "outbox",
        pub_export_macro: true,
        additional_derives: [PartialEq],
        with: {
            "wasi:cli/environment@0.2.12": ::wasi::cli::environment,
            "wasi:cli/stdin@0.2.12": ::wasi::cli::stdin,
            "wasi:cli/stdout@0.2.12": ::wasi::cli::stdout,
            "wasi:cli/stderr@0.2.12": ::wasi::cli::stderr,
            "wasi:clocks/monotonic-clock@0.2.12": ::wasi::clocks::monotonic_clock,
            "wasi:clocks/wall-clock@0.2.12": ::wasi::clocks::wall_clock,
            "wasi:filesystem/types@0.2.12": ::wasi::filesystem::types,
            "wasi:filesystem/preopens@0.2.12": ::wasi::filesystem::preopens,
            "wasi:http/types@0.2.12": ::wasi::http::types,
            "wasi:http/outgoing-handler@0.2.12": ::wasi::http::outgoing_handler,
            "wasi:io/error@0.2.12": ::wasi::io::error,
            "wasi:io/poll@0.2.12": ::wasi::io::poll,
            "wasi:io/streams@0.2.12": ::wasi::io::streams,
            "wasi:random/random@0.2.12": ::wasi::random::random,
        },
    });
    pub use zddc::outbox::types;
}

pub use bindings::types::{Error, Invalid};

/// What most functions here return; the error is the one that crosses the WIT.
pub type Result<T, E = Error> = std::result::Result<T, E>;

// Natively, as in `cargo test`, the export's symbols would not link: their names have ':' and '#' in them.
#[cfg(target_family = "wasm")]
#[allow(unsafe_code, reason = "generated code")]
mod export {
    use crate::guest::Guest;
    crate::bindings::export!(Guest with_types_in crate::bindings);
}
