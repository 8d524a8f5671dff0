//! Watching outboxes' directories for entries that other processes queue, and for their wishes to wake. One watcher
//! serves all outboxes of a runtime: Linux gives a user 128 of them.

use crate::dir::OUTBOX_DIR;
use crate::root::WAKE;
use notify::event::{CreateKind, Event, EventKind, ModifyKind, RenameMode};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// The directories that are watched.
#[derive(Clone, Default)]
pub(crate) struct Watches(Arc<Mutex<Watched>>);

#[derive(Default)]
struct Watched {
    /// Made for the first directory.
    watcher: Option<RecommendedWatcher>,
    wakes: Arc<Mutex<HashMap<PathBuf, Arc<Notify>>>>,
}

/// A directory is watched while this lives.
pub(crate) struct Watch {
    watches: Watches,
    dir: PathBuf,
}

impl Watches {
    /// Wakes on events of interest. Our own removals are none. The outbox's lock keeps others from watching the same one.
    pub(crate) fn watch(&self, root: &Path, wake: Arc<Notify>) -> notify::Result<Watch> {
        let dir = root.join(OUTBOX_DIR);
        let mut watched = self.watched();
        let wakes = watched.wakes.clone();
        let watcher = match &mut watched.watcher {
            Some(watcher) => watcher,
            none => {
                let told = wakes.clone();
                none.insert(notify::recommended_watcher(move |event| tell(&told, event))?)
            }
        };
        // Before the first event can come.
        lock(&wakes).insert(dir.clone(), wake);
        // One whose thread could not be started does not say so, and panics from then on, also when it is dropped.
        let begun = catch_unwind(AssertUnwindSafe(|| watcher.watch(&dir, RecursiveMode::NonRecursive)));
        let begun = begun.unwrap_or_else(|_| {
            std::mem::forget(watched.watcher.take());
            Err(notify::Error::generic("its thread has ended, or could not be started"))
        });
        if let Err(error) = begun {
            lock(&wakes).remove(&dir);
            return Err(error);
        }
        drop(watched);
        Ok(Watch { watches: self.clone(), dir })
    }

    fn watched(&self) -> MutexGuard<'_, Watched> {
        lock(&self.0)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut watched = self.watches.watched();
        if let Some(watcher) = &mut watched.watcher {
            // It panics where its thread has ended.
            let _ = catch_unwind(AssertUnwindSafe(|| watcher.unwatch(&self.dir)));
        }
        lock(&watched.wakes).remove(&self.dir);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn tell(wakes: &Mutex<HashMap<PathBuf, Arc<Notify>>>, event: notify::Result<Event>) {
    let wakes = lock(wakes);
    match event {
        // So many events came that some were lost; better a pass too many.
        Ok(event) if event.need_rescan() => wakes.values().for_each(|wake| wake.notify_one()),
        Ok(event) if appears(&event.kind) => {
            // Of a rename, the first path is what it was called: our own conflicts were entries.
            let paths = match event.kind {
                EventKind::Modify(ModifyKind::Name(RenameMode::Both)) => {
                    event.paths.get(1..).unwrap_or_default()
                }
                _ => &event.paths,
            };
            let matter = paths.iter().filter(|path| path.file_name().is_some_and(matters));
            let dirs = matter.filter_map(|path| wakes.get(path.parent()?));
            dirs.for_each(|wake| wake.notify_one());
        }
        Ok(_) => {}
        Err(_) => wakes.values().for_each(|wake| wake.notify_one()),
    }
}

/// Something new has this name, or was moved here. Platforms differ in how exactly they say it.
fn appears(kind: &EventKind) -> bool {
    match kind {
        EventKind::Create(CreateKind::Any | CreateKind::File | CreateKind::Folder | CreateKind::Other) => {
            true
        }
        EventKind::Modify(ModifyKind::Name(mode)) => *mode != RenameMode::From,
        EventKind::Modify(ModifyKind::Data(_) | ModifyKind::Any) | EventKind::Any | EventKind::Other => true,
        _ => false,
    }
}

/// An entry's id, or the file that asks for a pass. An id is 16 hex digits, `-` and 6 more.
fn matters(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else { return false };
    let id = || {
        name.len() == 23
            && name.bytes().enumerate().all(|(i, b)| if i == 16 { b == b'-' } else { b.is_ascii_hexdigit() })
    };
    name == WAKE || id()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_that_is_set_aside_wakes_nobody_and_one_that_is_put_back_does() {
        let (id, conflict) = ("18ea4ba277c322d7-873e00", "18ea4ba277c322d7-873e00.conflict-20261122T065602Z");
        for (from, to, wakes) in [(id, conflict, false), (conflict, id, true)] {
            let (dir, wake) = (Path::new("outbox"), Arc::new(Notify::new()));
            let known = Mutex::new(HashMap::from([(dir.to_owned(), wake.clone())]));
            let renamed = EventKind::Modify(ModifyKind::Name(RenameMode::Both));
            tell(&known, Ok(Event::new(renamed).add_path(dir.join(from)).add_path(dir.join(to))));
            let woken = tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
                tokio::select! {
                    biased;
                    () = wake.notified() => true,
                    () = std::future::ready(()) => false,
                }
            });
            assert_eq!(woken, wakes, "{from} -> {to}");
        }
    }

    #[test]
    fn only_entries_and_wishes_matter() {
        for name in ["18ea4ba277c322d7-873e00", ".wake"] {
            assert!(matters(OsStr::new(name)), "{name}");
        }
        for name in [
            ".staging",
            ".lock",
            "rejected",
            "18ea4ba277c322d7-873e00.conflict-20261122T065602Z",
            "18ea4ba277c322d7x873e00",
        ] {
            assert!(!matters(OsStr::new(name)), "{name}");
        }
    }
}
