//! Compiles the component for wasm32-wasip2, in a target directory of its own so that the two builds do not
//! wait for each other, and tells the crate where it is (`OUTBOX_WASM`).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

const TARGET: &str = "wasm32-wasip2";

fn main() {
    if let Err(message) = build() {
        println!("cargo::error={message}");
    }
}

fn build() -> Result<(), String> {
    let host = PathBuf::from(var("CARGO_MANIFEST_DIR")?);
    let root = host.parent().ok_or("the host crate is not inside the workspace")?;
    for input in ["src", "wit", "Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", root.join(input).display());
    }
    println!("cargo::rerun-if-env-changed=RUSTUP_TOOLCHAIN");

    require_target()?;
    let target_dir = PathBuf::from(var("OUT_DIR")?).join("component");
    let output = Command::new(var("CARGO")?)
        .args([
            "build",
            "--quiet",
            "--package",
            "outbox",
            "--lib",
            "--profile",
            "component",
            "--target",
            TARGET,
        ])
        .arg("--target-dir")
        .arg(&target_dir)
        .current_dir(root)
        // Flags meant for the host (coverage, -C target-cpu, a linker) are not the component's.
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_BUILD_TARGET")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .output()
        .map_err(|e| format!("cargo cannot be started: {e}"))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        for line in text.lines() {
            println!("cargo::warning={line}");
        }
        return Err("the component does not build; see the warnings".into());
    }
    let wasm = target_dir.join(TARGET).join("component").join("outbox.wasm");
    if !wasm.exists() {
        return Err(format!("the component's build left no {}", wasm.display()));
    }
    println!("cargo::rustc-env=OUTBOX_WASM={}", wasm.display());
    Ok(())
}

/// Asks the compiler where the target's libraries would be: rustup is not everywhere.
fn require_target() -> Result<(), String> {
    let output = Command::new(var("RUSTC")?)
        .args(["--print", "target-libdir", "--target", TARGET])
        .output()
        .map_err(|e| format!("rustc cannot be started: {e}"))?;
    let libdir = String::from_utf8_lossy(&output.stdout);
    let installed = fs::read_dir(Path::new(libdir.trim())).is_ok_and(|mut entries| entries.next().is_some());
    match installed {
        true => Ok(()),
        false => Err(format!("the Rust target {TARGET} is missing; run: rustup target add {TARGET}")),
    }
}

fn var(name: &str) -> Result<String, String> {
    env::var(name).map_err(|_| format!("cargo did not set {name}"))
}
