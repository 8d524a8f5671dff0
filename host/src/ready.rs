//! A guest that asks whether something is ready gives the connections on its thread a turn. With one request at a time they
//! are there ([`crate::pool`]), and get on only while the guest waits; a request would stay where it is while the guest
//! goes on with its files.

use crate::sandbox::State;
use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource};
use wasmtime_wasi::WasiView;
use wasmtime_wasi::p2::DynPollable;
use wasmtime_wasi::p2::bindings::io::poll::HostPollable;

/// Where wasmtime links what is replaced. Under another version's name, nothing would be.
const INTERFACE: &str = "wasi:io/poll@0.2.12";

/// Replaces wasmtime's `pollable.ready` in a linker that allows shadowing.
pub(crate) fn link(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    linker.instance(INTERFACE)?.func_wrap_async(
        "[method]pollable.ready",
        |mut store: StoreContextMut<'_, State>, (pollable,): (Resource<DynPollable>,)| {
            Box::new(async move {
                tokio::task::yield_now().await;
                Ok((HostPollable::ready(store.data_mut().ctx().table, pollable).await?,))
            })
        },
    )
}
