//! The component's world, generated. Files, clocks and randomness are the simulator's own; the rest of WASI is
//! that of wasmtime-wasi and wasmtime-wasi-http.

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
    path: "../../wit",
    world: "outbox",
    imports: { default: async | trappable },
    exports: { default: async },
    require_store_data_send: true,
    with: {
        "wasi:cli": wasmtime_wasi::p2::bindings::cli,
        "wasi:http": wasmtime_wasi_http::p2::bindings::http,
        "wasi:io": wasmtime_wasi::p2::bindings::io,
        "wasi:filesystem/types.descriptor": crate::files::Descriptor,
        "wasi:filesystem/types.directory-entry-stream": crate::files::Listing,
    },
});
