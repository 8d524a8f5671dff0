//! `wasi:clocks` on virtual time and `wasi:random` on the seed.

use crate::bindings::wasi::clocks::{monotonic_clock, wall_clock};
use crate::bindings::wasi::random::random;
use crate::guest::State;
use crate::time::Clock;
use std::time::Duration;
use wall_clock::Datetime;
use wasmtime::component::Resource;
use wasmtime_wasi::async_trait;
use wasmtime_wasi::p2::{DynPollable, Pollable, subscribe};

impl wall_clock::Host for State {
    async fn now(&mut self) -> wasmtime::Result<Datetime> {
        let now = self.world.lock().wall();
        Ok(Datetime { seconds: now / 1_000_000_000, nanoseconds: (now % 1_000_000_000) as u32 })
    }

    async fn resolution(&mut self) -> wasmtime::Result<Datetime> {
        Ok(Datetime { seconds: 0, nanoseconds: 1 })
    }
}

/// Becomes ready at a virtual time, and stays so.
struct Deadline {
    clock: Clock,
    at: u64,
}

#[async_trait]
impl Pollable for Deadline {
    async fn ready(&mut self) {
        // Others get a turn also where the time is over.
        tokio::task::yield_now().await;
        let left = self.at.saturating_sub(self.clock.now());
        self.clock.sleep(Duration::from_nanos(left)).await;
    }
}

impl State {
    fn deadline(&mut self, in_nanos: u64) -> wasmtime::Result<Resource<DynPollable>> {
        let clock = self.world.lock().clock.clone();
        let at = clock.now().saturating_add(in_nanos);
        let deadline = self.table.push(Deadline { clock, at })?;
        subscribe(&mut self.table, deadline)
    }

    fn monotonic(&self) -> u64 {
        let world = self.world.lock();
        world.clock.now() + world.monotonic_offset
    }
}

impl monotonic_clock::Host for State {
    async fn now(&mut self) -> wasmtime::Result<u64> {
        Ok(self.monotonic())
    }

    async fn resolution(&mut self) -> wasmtime::Result<u64> {
        Ok(1)
    }

    async fn subscribe_instant(&mut self, when: u64) -> wasmtime::Result<Resource<DynPollable>> {
        let left = when.saturating_sub(self.monotonic());
        self.deadline(left)
    }

    async fn subscribe_duration(&mut self, when: u64) -> wasmtime::Result<Resource<DynPollable>> {
        self.deadline(when)
    }
}

impl random::Host for State {
    async fn get_random_bytes(&mut self, len: u64) -> wasmtime::Result<Vec<u8>> {
        let len = usize::try_from(len)?;
        Ok(self.world.lock().rng.bytes(len))
    }

    async fn get_random_u64(&mut self) -> wasmtime::Result<u64> {
        Ok(self.world.lock().rng.word())
    }
}
