//! The component under the bundled host, against real HTTP servers on port 0. One binary; a module a concern.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that finds something else than expected must stop"
)]

mod cached;
mod cli;
mod cli_bad;
mod cli_inspect;
mod cli_replay;
mod cli_run;
mod cli_send;
mod connections;
mod damage;
mod durable;
mod fixtures;
mod kit;
mod order;
mod outcomes;
mod readme;
mod resources;
mod sandbox;
mod smoke;
mod stock;
mod upstream;
mod wire;
mod wit;
