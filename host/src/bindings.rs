//! The WIT world, generated; WASI's interfaces are those of wasmtime-wasi and wasmtime-wasi-http.

#![allow(
    missing_docs,
    unsafe_code,
    clippy::all,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    clippy::allow_attributes_without_reason,
    reason = "generated code; its documentation is in wit/outbox.wit"
)]

wasmtime::component::bindgen!({
    path: "../wit",
    world: "outbox",
    exports: { default: async },
    require_store_data_send: true,
    with: {
        "wasi:cli": wasmtime_wasi::p2::bindings::cli,
        "wasi:clocks": wasmtime_wasi::p2::bindings::clocks,
        "wasi:filesystem": wasmtime_wasi::p2::bindings::filesystem,
        "wasi:http": wasmtime_wasi_http::p2::bindings::http,
        "wasi:io": wasmtime_wasi::p2::bindings::io,
        "wasi:random": wasmtime_wasi::p2::bindings::random,
    },
});
