//! Reading everything and changing nothing.

use crate::bindings::exports::zddc::outbox::queue::Finding;
use crate::dir::{DescriptorType, kind_name};
use crate::enqueue::digest;
use crate::layout::{self, BODY, CORRUPT, Name, REASON, parse_aside};
use crate::queue::{Entry, Queue, Unloadable};
use crate::{Error, Result};
use xxhash_rust::xxh3::Xxh3;

/// What is not as it should be.
pub fn verify(queue: &Queue) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let mut found = |name: String, reason: String| findings.push(Finding { name, reason });
    queue.names(|name, kind| match layout::parse(name) {
        Name::Foreign => {
            found(name.into(), "it is neither an entry nor anything else of the outbox's".into())
        }
        Name::Conflict(..) if kind != DescriptorType::Directory => {
            found(name.into(), format!("it is no directory but a {}", kind_name(kind)));
        }
        _ => {}
    })?;
    for id in queue.ids()? {
        let name = id.to_string();
        match queue.load(id).and_then(|entry| check_body(queue, &entry)) {
            Ok(()) | Err(Unloadable::Gone | Unloadable::InProgress) => {}
            Err(Unloadable::Newer(format)) => {
                found(name, format!("it has format {format}; this program knows 1"));
            }
            Err(Unloadable::Damaged(reason)) => found(name, reason),
            Err(Unloadable::Io(error)) => found(name, crate::guest::describe(&error)),
        }
    }
    match queue.dir.open(CORRUPT) {
        Ok(corrupt) => {
            let mut names = Vec::new();
            corrupt.list(|name, _| names.extend(parse_aside(&name).is_some().then(|| name.clone())))?;
            names.sort();
            for name in names {
                let reason =
                    corrupt.read(&format!("{name}/{REASON}"), layout::MAX_RECORD).unwrap_or_default();
                found(format!("{CORRUPT}/{name}"), String::from_utf8_lossy(&reason).trim().to_owned());
            }
        }
        Err(fault) if fault.is_missing() => {}
        Err(fault) => return Err(fault.into()),
    }
    Ok(findings)
}

/// What is wrong with a body, if anything.
fn check_body(queue: &Queue, entry: &Entry) -> std::result::Result<(), Unloadable> {
    let (file, _) = queue.open_body(entry)?;
    let Some(expected) = entry.meta.known_digest() else { return Ok(()) };
    let mut hash = Xxh3::new();
    let mut offset = 0;
    loop {
        let (chunk, end) = file.read(offset).map_err(|code| {
            Unloadable::Io(Error::Io(format!("cannot read {}/{BODY}: {}", entry.id, code.name())))
        })?;
        hash.update(&chunk);
        offset += chunk.len() as u64;
        if end || chunk.is_empty() {
            break;
        }
    }
    match digest(&hash) {
        found if found == expected => Ok(()),
        found => {
            Err(Unloadable::Damaged(format!("body.bin has digest {found} where meta.json says {expected}")))
        }
    }
}
