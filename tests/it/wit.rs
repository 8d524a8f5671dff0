//! The vendored WIT is that of the `wasi` crate that the component is built with, and the component asks its host for no
//! more than it is to have.

use std::path::Path;
use std::process::Command;

#[test]
fn the_vendored_wit_is_that_of_the_wasi_crate() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let run = |command: &mut Command| {
        let output = command.current_dir(root).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    let host = run(Command::new("rustc").args(["--print", "host-tuple"]));
    let host = String::from_utf8(host).unwrap();
    // What only other systems need may never have been downloaded.
    let here =
        ["metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform", host.trim()];
    let metadata: serde_json::Value =
        serde_json::from_slice(&run(Command::new(env!("CARGO")).args(here))).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    // Other crates may bring another version; the one with WASI 0.2 in it is ours.
    let wasip2 =
        packages.iter().find(|p| p["name"] == "wasip2" && p["version"].as_str().unwrap().contains("0.2.12"));
    let manifest = wasip2.expect("wasip2 for WASI 0.2.12 is a dependency")["manifest_path"].as_str().unwrap();
    let original = Path::new(manifest).parent().unwrap().join("wit/deps");
    for name in ["cli", "clocks", "filesystem", "http", "io", "random", "sockets"] {
        let file = format!("{name}.wit");
        let read = |dir: &Path| std::fs::read_to_string(dir.join(&file)).unwrap();
        assert_eq!(
            read(&root.join("wit/deps")),
            read(&original),
            "{file}: copy it from the wasip2 crate again"
        );
    }
}

#[test]
fn the_component_asks_its_host_for_nothing_new() {
    let imports = crate::plain_host::imports();
    let mut names: Vec<&str> = Vec::new();
    for import in &imports {
        let (name, version) = import.split_once('@').unwrap();
        assert!(version.starts_with("0.2.") || !name.starts_with("wasi:"), "{import}");
        names.push(name);
    }
    names.sort_unstable();
    // Terminals and the exit are what Rust's standard library wants with the rest of wasi:cli.
    let expected = [
        "wasi:cli/environment",
        "wasi:cli/exit",
        "wasi:cli/stderr",
        "wasi:cli/stdin",
        "wasi:cli/stdout",
        "wasi:cli/terminal-input",
        "wasi:cli/terminal-output",
        "wasi:cli/terminal-stderr",
        "wasi:cli/terminal-stdin",
        "wasi:cli/terminal-stdout",
        "wasi:clocks/monotonic-clock",
        "wasi:clocks/wall-clock",
        "wasi:filesystem/preopens",
        "wasi:filesystem/types",
        "wasi:http/outgoing-handler",
        "wasi:http/types",
        "wasi:io/error",
        "wasi:io/poll",
        "wasi:io/streams",
        "wasi:random/insecure-seed",
        "wasi:random/random",
        // Types only, no functions.
        "zddc:outbox/types",
    ];
    assert_eq!(names, expected);
}
