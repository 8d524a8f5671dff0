//! The vendored WIT is that of the `wasi` crate that the component is built with.

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
