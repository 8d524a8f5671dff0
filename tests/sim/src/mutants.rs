//! Proof that the properties bite: copies of the component with one thing wrong each. All are in one copy of its
//! source, below the target directory, each behind `OUTBOX_MUTANT=name` in the guest's environment, so that one
//! build serves them all. `mutants/` has one file each; a patch that does not apply is an error that names it.
//!
//! ```text
//! What is wrong, in a sentence or two.
//! seeds: 300                 caught within so many seeds
//! file: src/enqueue.rs       and then any number of hunks; `$MUTANT` is true where the mutant is on
//! <<<<
//! text that occurs exactly once
//! ====
//! what stands there instead
//! >>>>
//! ```

use crate::campaign::{Campaign, Failure};
use crate::guest::{Guest, scratch};
use crate::plan::Plan;
use crate::run::run;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Something wrong with the component.
#[derive(Debug, Clone)]
pub struct Mutant {
    /// The file's name without its ending.
    pub name: String,
    /// What is wrong.
    pub about: String,
    /// Seeds within which it is to be caught.
    pub seeds: u64,
    hunks: Vec<Hunk>,
}

#[derive(Debug, Clone)]
struct Hunk {
    file: String,
    before: String,
    after: String,
}

/// What the copy of the component calls to find out which mutant is on.
const SWITCH: &str = r#"
/// Whether this mutant is on.
pub fn mutant(name: &str) -> bool {
    std::env::var("OUTBOX_MUTANT").is_ok_and(|on| on == name)
}
"#;

/// All mutants, by name.
pub fn all() -> Result<Vec<Mutant>, String> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("mutants");
    let mut mutants = Vec::new();
    for entry in fs::read_dir(&dir).map_err(|e| format!("{}: {e}", dir.display()))? {
        let path = entry.map_err(|e| e.to_string())?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        mutants.push(parse(&name, &text).map_err(|e| format!("mutant {name}: {e}"))?);
    }
    mutants.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(mutants)
}

fn parse(name: &str, text: &str) -> Result<Mutant, String> {
    let mut mutant = Mutant { name: name.to_owned(), about: String::new(), seeds: 0, hunks: Vec::new() };
    let mut file = None;
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(path) = line.strip_prefix("file: ") {
            file = Some(path.trim().to_owned());
        } else if let Some(count) = line.strip_prefix("seeds: ") {
            mutant.seeds = count.trim().parse().map_err(|e| format!("seeds: {e}"))?;
        } else if line == "<<<<" {
            let mut until = |end: &str| -> Vec<&str> { lines.by_ref().take_while(|l| *l != end).collect() };
            let before = until("====").join("\n");
            let after = until(">>>>").join("\n").replace("$MUTANT", &format!("crate::mutant(\"{name}\")"));
            let file = file.clone().ok_or("a hunk before any file")?;
            mutant.hunks.push(Hunk { file, before, after });
        } else if file.is_none() && !line.is_empty() {
            mutant.about += if mutant.about.is_empty() { "" } else { " " };
            mutant.about += line;
        }
    }
    match mutant.hunks.is_empty() || mutant.seeds == 0 {
        true => Err("it changes nothing, or does not say within how many seeds it is caught".into()),
        false => Ok(mutant),
    }
}

/// Builds the component with all mutants in it: its bytes.
pub fn build(mutants: &[Mutant]) -> Result<Vec<u8>, String> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let workspace = manifest.ancestors().nth(2).ok_or("the crate is not inside the workspace")?;
    let copy = scratch().join("mutants");
    let mut files = BTreeMap::new();
    read_all(workspace, Path::new("src"), &mut files)?;
    read_all(workspace, Path::new("wit"), &mut files)?;
    for name in ["Cargo.toml", "Cargo.lock"] {
        let text = fs::read_to_string(workspace.join(name)).map_err(|e| format!("{name}: {e}"))?;
        files.insert(PathBuf::from(name), text);
    }
    for mutant in mutants {
        for hunk in &mutant.hunks {
            let wrong =
                |what: &str| format!("mutant {} does not apply to {}: {what}", mutant.name, hunk.file);
            let text = files.get_mut(Path::new(&hunk.file)).ok_or_else(|| wrong("there is no such file"))?;
            match text.matches(&hunk.before).count() {
                1 => *text = text.replacen(&hunk.before, &hunk.after, 1),
                n => return Err(wrong(&format!("its text is there {n} times:\n{}", hunk.before))),
            }
        }
    }
    if let Some(lib) = files.get_mut(Path::new("src/lib.rs")) {
        lib.push_str(SWITCH);
    }
    if let Some(cargo) = files.get_mut(Path::new("Cargo.toml")) {
        *cargo = alone(cargo);
    }
    for (path, text) in files {
        let path = copy.join(path);
        // What has not changed keeps its time, so that cargo builds only what has.
        if fs::read_to_string(&path).is_ok_and(|old| old == text) {
            continue;
        }
        let made = path.parent().map_or(Ok(()), fs::create_dir_all);
        made.and_then(|()| fs::write(&path, text)).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    compile(&copy)
}

/// The workspace's manifest, for the component alone.
fn alone(manifest: &str) -> String {
    let line = |line: &str| match line.split_once(" = ") {
        Some((key @ ("members" | "default-members"), _)) => format!("{key} = [\".\"]\n"),
        _ => format!("{line}\n"),
    };
    manifest.lines().map(line).collect()
}

fn read_all(root: &Path, dir: &Path, files: &mut BTreeMap<PathBuf, String>) -> Result<(), String> {
    let wrong = |e: std::io::Error| format!("{}: {e}", dir.display());
    for entry in fs::read_dir(root.join(dir)).map_err(wrong)? {
        let entry = entry.map_err(wrong)?;
        let path = dir.join(entry.file_name());
        match entry.file_type().map_err(wrong)?.is_dir() {
            true => read_all(root, &path, files)?,
            false => {
                let text = fs::read_to_string(entry.path()).map_err(wrong)?;
                files.insert(path, text);
            }
        }
    }
    Ok(())
}

fn compile(copy: &Path) -> Result<Vec<u8>, String> {
    let target = scratch().join("mutants-target");
    let output = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()))
        .args(["build", "--quiet", "--package", "outbox", "--lib", "--profile", "component"])
        .args(["--target", "wasm32-wasip2", "--target-dir"])
        .arg(&target)
        .current_dir(copy)
        // It need not be fast or small, and is built for every change of a patch.
        .envs([("CARGO_PROFILE_COMPONENT_LTO", "off"), ("CARGO_PROFILE_COMPONENT_CODEGEN_UNITS", "16")])
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_BUILD_TARGET")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .output()
        .map_err(|e| format!("cargo cannot be started: {e}"))?;
    if !output.status.success() {
        return Err(format!("the mutants do not build:\n{}", String::from_utf8_lossy(&output.stderr)));
    }
    let wasm = target.join("wasm32-wasip2").join("component").join("outbox.wasm");
    fs::read(&wasm).map_err(|e| format!("{}: {e}", wasm.display()))
}

/// How a mutant was caught.
#[derive(Debug, Clone)]
pub struct Caught {
    /// By what.
    pub failure: Failure,
    /// After so many seeds.
    pub seeds: u64,
}

/// Looks for a seed from `from` on that tells a mutant from the component without it.
pub fn catch(guest: &Guest, mutant: &Mutant, from: u64, threads: usize) -> Option<Caught> {
    let mutated = guest.with_env("OUTBOX_MUTANT", &mutant.name);
    let mut start = from;
    let end = from + mutant.seeds;
    while start < end {
        let campaign = Campaign { threads, ..Campaign::new(start, end - start) };
        let failure = campaign.run(&mutated).failures.into_iter().next()?;
        start = failure.seed + 1;
        // It must be the mutant's doing.
        if run(guest, &Plan::new(failure.seed), false).violations.is_empty() {
            return Some(Caught { seeds: failure.seed - from + 1, failure });
        }
    }
    None
}
