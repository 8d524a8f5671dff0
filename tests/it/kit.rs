//! What every test needs: a root of its own, a shared runtime, an outbox on it, and a look at the directory.

use outbox_host::{Builder, Delivery, Event, Outbox, Report, Runtime, RuntimeOptions, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;
use tempfile::TempDir;

/// The outbox's directory in a root.
pub const OUTBOX_DIR: &str = ".zddc-outbox";

/// One compiled component for all tests.
pub fn runtime() -> Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    let options = || RuntimeOptions { component: None, cache_dir: Some(cache_dir()) };
    RUNTIME.get_or_init(|| Runtime::new(&options()).unwrap()).clone()
}

/// Compiled code is kept beside the tests' other artifacts.
pub fn cache_dir() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("compiled")
}

/// A fresh root.
pub fn root() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// A builder with the shared runtime.
pub fn builder(root: &Path) -> Builder {
    Outbox::builder(root).runtime(runtime()).connect_timeout(Duration::from_secs(5))
}

/// An outbox that replays on demand only.
pub fn open(root: &Path, upstream: &str) -> Outbox {
    builder(root).upstream(upstream).open().unwrap()
}

/// Queues a write without headers.
pub async fn send(outbox: &Outbox, method: &str, uri: &str, body: &'static str) -> String {
    outbox.enqueue_write(Write::new(method, uri), body.into()).await.unwrap()
}

/// What the author of a write had seen.
#[derive(Debug, Clone)]
pub enum Base {
    Nothing,
    Etag(String),
    /// A date, in seconds since 1970.
    Date(u64),
    Absent,
}

/// A write on top of a version.
pub fn write_on(base: &Base, method: &str, uri: &str) -> Write {
    let mut write = Write::new(method, uri);
    match base {
        Base::Nothing => {}
        Base::Etag(tag) => write.base_etag = Some(tag.clone()),
        Base::Date(at) => {
            let at = std::time::UNIX_EPOCH + Duration::from_secs(*at);
            write.base_mod_time = Some(humantime::format_rfc3339_seconds(at).to_string());
        }
        Base::Absent => write.create = true,
    }
    write
}

/// Queues a write on top of a version.
pub async fn send_on(outbox: &Outbox, base: &Base, method: &str, uri: &str, body: &'static str) -> String {
    outbox.enqueue_write(write_on(base, method, uri), body.into()).await.unwrap()
}

/// One pass and what it did to each entry, in order.
pub async fn replay(outbox: &Outbox) -> (Report, Vec<Delivery>) {
    let mut events = outbox.subscribe();
    let report = outbox.replay().await.unwrap();
    let mut deliveries = Vec::new();
    while let Ok(event) = events.try_recv() {
        if let Event::Delivery(delivery) = event {
            deliveries.push(delivery);
        }
    }
    (report, deliveries)
}

/// All paths below the outbox's directory, sorted, without bookkeeping (dot-names). Times and ids are as they are.
pub fn tree(root: &Path) -> Vec<String> {
    fn walk(dir: &Path, prefix: &str, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            if prefix.is_empty() && name.starts_with('.') {
                continue;
            }
            let path = format!("{prefix}{name}");
            if entry.file_type().unwrap().is_dir() {
                walk(&entry.path(), &format!("{path}/"), found);
            }
            found.push(path);
        }
    }
    let mut found = Vec::new();
    walk(&root.join(OUTBOX_DIR), "", &mut found);
    found.sort();
    found
}

/// The path of something in the outbox's directory.
pub fn path(root: &Path, name: &str) -> PathBuf {
    root.join(OUTBOX_DIR).join(name)
}

/// The path of the only conflict, rejected or corrupt entry of this id; `place` is "", "rejected" or "corrupt".
pub fn set_aside(root: &Path, place: &str, id: &str) -> PathBuf {
    let dir = root.join(OUTBOX_DIR).join(place);
    let found: Vec<PathBuf> = std::fs::read_dir(&dir)
        .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            name.starts_with(&format!("{id}."))
        })
        .collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found[0].clone()
}

/// Reads JSON from a file.
pub fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Changes an entry's meta.json on disk, as damage or another program would.
pub fn edit_meta(root: &Path, id: &str, edit: impl FnOnce(&mut serde_json::Value)) {
    let file = path(root, &format!("{id}/meta.json"));
    let mut meta = json(&file);
    edit(&mut meta);
    std::fs::write(&file, serde_json::to_vec(&meta).unwrap()).unwrap();
}

/// Awaits something that must happen soon.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_secs(30), future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not happen within 30 s"),
    }
}
