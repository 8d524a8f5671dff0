//! The component under the bundled host, against real HTTP servers on port 0. One binary; a module a concern.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that finds something else than expected must stop"
)]

mod ambiguous;
mod arrivals;
mod bodies;
mod cached;
mod chain;
mod cli;
mod cli_bad;
mod cli_inspect;
mod cli_options;
mod cli_replay;
mod cli_run;
mod cli_send;
mod coalesce;
mod connections;
mod costs;
mod damage;
mod durable;
mod fixtures;
mod full_disk;
mod fuzz;
mod heirs;
mod http2;
mod kill;
mod kit;
mod lease;
mod lifecycle;
mod limits;
mod many;
mod order;
mod outage;
mod outcomes;
mod plain_host;
mod portal;
mod profile;
mod question;
mod readme;
mod recovery;
mod replayer;
mod resolve;
mod resources;
mod rng;
mod sandbox;
mod simulation;
mod smoke;
mod stock;
mod strace;
mod traps;
mod upstream;
mod verify;
mod wire;
mod wit;
