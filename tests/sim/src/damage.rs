//! Damage on the disk, as bit rot, other programs and hands do it. What is damaged is noted: only that may be found
//! damaged afterwards.

use crate::plan::Damage;
use crate::tree::{Kind, ROOT};
use crate::view::{self, Place, QUEUE};
use crate::world::World;
use std::collections::BTreeMap;

/// What becomes of a file.
enum Change {
    /// It is gone.
    Gone,
    /// It is this.
    To(Kind),
    /// Its bytes are edited, somewhere.
    Edit(fn(&mut Vec<u8>, usize)),
}

fn garbage(bytes: &[u8]) -> Change {
    Change::To(Kind::File(bytes.to_vec()))
}

fn directory() -> Change {
    Change::To(Kind::Dir(BTreeMap::new()))
}

/// Damages something, durably.
pub fn plant(world: &mut World, damage: Damage) {
    use Damage::*;
    world.tree.now = world.wall();
    let (pick, file, change) = match damage {
        StrayFile => return stray(world, "notes.txt"),
        StrayInStaging => return stray(world, ".staging/left"),
        BodyShort(pick) => (pick, "/body.bin", Change::Edit(|bytes, at| bytes.truncate(at))),
        BodyFlipped(pick) => (pick, "/body.bin", Change::Edit(|bytes, at| bytes[at] ^= 1)),
        BodyGone(pick) => (pick, "/body.bin", Change::Gone),
        BodyDirectory(pick) => (pick, "/body.bin", directory()),
        MetaGone(pick) => (pick, "/meta.json", Change::Gone),
        MetaEmpty(pick) => (pick, "/meta.json", garbage(b"")),
        MetaGarbage(pick) => (pick, "/meta.json", garbage(b"{\"id\":\xff\xfe")),
        MetaNested(pick) => (pick, "/meta.json", garbage(&[b'['; 100_000])),
        MetaDirectory(pick) => (pick, "/meta.json", directory()),
        StateGarbage(pick) => (pick, "/state.json", garbage(b"\0\0\0\0")),
        EntryFile(pick) => (pick, "", garbage(b"a file")),
        EntryLink(pick) => (pick, "", Change::To(Kind::Link("/etc".into()))),
    };
    let entries = view::entries(&world.tree);
    let pending: Vec<_> = entries.into_iter().filter(|e| e.place == Place::Pending).collect();
    let Some(index) = pick.checked_rem(pending.len() as u64) else { return };
    let entry = &pending[index as usize];
    let path = format!("{QUEUE}/{}{file}", entry.name);
    let kind = match change {
        Change::Gone => None,
        Change::To(kind) => Some(kind),
        Change::Edit(edit) => {
            let mut bytes = view::file(&world.tree, entry, "body.bin").unwrap_or_default().to_vec();
            let Some(at) = (pick as usize).checked_rem(bytes.len()) else { return };
            edit(&mut bytes, at);
            Some(Kind::File(bytes))
        }
    };
    let done = match kind {
        Some(kind) => world.tree.plant(ROOT, &path, kind),
        None => world.tree.remove_all(ROOT, &path).map(|()| world.tree.settle()),
    };
    if done.is_ok() {
        let event = world.event();
        world.ledger.planted.entry(entry.id.clone()).or_insert(event);
    }
}

/// Puts something into the queue's directory that is none of the queue's.
fn stray(world: &mut World, name: &str) {
    let content = Kind::File(b"somebody's".to_vec());
    if world.tree.plant(ROOT, &format!("{QUEUE}/{name}"), content).is_ok() {
        world.ledger.foreign.insert(name.into());
    }
}
