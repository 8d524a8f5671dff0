//! The component under the bundled host, against real HTTP servers on port 0. One binary; a module a concern.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that finds something else than expected must stop"
)]

mod cli;
mod cli_bad;
mod cli_send;
mod kit;
mod outcomes;
mod smoke;
mod upstream;
