//! The deterministic simulator: the very component that ships, in a virtual world. A seed gives a plan
//! ([`plan`]), a plan gives a run ([`run`]), the same byte for byte whenever it is made, and the run is
//! judged by the properties of [`oracle`]. docs/testing.md tells how to use it and what it assumes.
//!
//! | module | concept |
//! |---|---|
//! | [`rng`], [`time`] | randomness and time, both virtual |
//! | [`tree`], [`durable`] | what was written, and what a power failure leaves of it |
//! | [`peer`], [`mood`] | the server and what it is disposed to |
//! | [`world`], [`ledger`] | all that there is; what the clients know |
//! | [`files`], [`clocks`], [`guest`] | the component's imports on that world; the component |
//! | [`plan`], [`damage`] | what is to happen, damage on the disk too |
//! | [`run`], [`act`], [`oracle`] | how it happens; one call; what must hold |
//! | [`view`], [`trace`], [`shrink`] | the queue's directory; what happened; smaller plans |
//! | [`campaign`], [`mutants`] | many seeds; proof that the properties bite |

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test kit that finds itself wrong must stop"
)]

pub mod act;
pub mod bindings;
pub mod campaign;
pub mod clocks;
pub mod damage;
pub mod durable;
pub mod files;
pub mod guest;
pub mod ledger;
pub mod mood;
pub mod mutants;
pub mod oracle;
pub mod peer;
pub mod plan;
pub mod rng;
pub mod run;
pub mod shrink;
pub mod time;
pub mod trace;
pub mod tree;
pub mod view;
pub mod world;
