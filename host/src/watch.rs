//! Watching the outbox's directory for entries that other processes queue, and for their wishes to wake.

use crate::root::{OUTBOX_DIR, WAKE};
use notify::event::{CreateKind, EventKind, ModifyKind, RenameMode};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use std::ffi::OsStr;
use std::path::Path;

/// Calls `wake` on events of interest while the watcher lives. Our own removals are none.
pub(crate) fn watch(root: &Path, wake: impl Fn() + Send + 'static) -> notify::Result<RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| match event {
        Ok(event)
            if appears(&event.kind) && event.paths.iter().filter_map(|p| p.file_name()).any(matters) =>
        {
            wake()
        }
        Ok(_) => {}
        // Events were lost; better a pass too many.
        Err(_) => wake(),
    })?;
    watcher.watch(&root.join(OUTBOX_DIR), RecursiveMode::NonRecursive)?;
    Ok(watcher)
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
