//! The README's shell blocks do what they say. Those that call cargo or rustup are run by .ci/run.

use crate::kit::{cache_dir, root};
use crate::upstream::Upstream;
use std::path::Path;
use std::process::Command;

#[test]
fn the_readmes_shell_blocks_run() {
    let root = root();
    std::fs::write(root.path().join("today.txt"), "buy milk").unwrap();
    let server = Upstream::start(|_| 201);
    let mut ran = 0;
    for block in shell_blocks("README.md") {
        if block.starts_with("rustup") {
            continue;
        }
        let script = block.replace("https://example.org", &server.url());
        let bin = Path::new(env!("CARGO_BIN_EXE_outbox")).parent().unwrap();
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        let output = Command::new("sh")
            .args(["-euc", &script])
            .current_dir(root.path())
            .env("PATH", path)
            .env("OUTBOX_CACHE_DIR", cache_dir())
            .output()
            .unwrap();
        assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
        ran += 1;
    }
    assert_eq!(ran, 1);
    assert_eq!(server.lines(), ["PUT /notes/today.txt", "PUT /notes/new.txt"]);
    assert_eq!(server.seen()[1].header("if-none-match"), Some("*"));
}

#[test]
fn ci_finds_the_readmes_commands() {
    let commands: Vec<String> =
        shell_blocks("README.md").into_iter().filter(|block| block.starts_with("rustup")).collect();
    let setup = "rustup target add wasm32-wasip2 && cargo";
    assert_eq!(commands, [format!("{setup} run -- demo\n"), format!("{setup} test\n")]);
}

fn shell_blocks(name: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(name);
    let text = std::fs::read_to_string(path).unwrap();
    let mut blocks = Vec::new();
    let mut rest = text.as_str();
    while let Some((_, after)) = rest.split_once("```sh\n") {
        let (block, after) = after.split_once("```").unwrap();
        blocks.push(block.to_owned());
        rest = after;
    }
    blocks
}
