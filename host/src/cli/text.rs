//! How things are written for people.

use outbox_host::{Counts, Delivery, Entry, Health, Item, Outcome, Report};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::{self, Write};

/// A size: exact below 1 KiB, three digits above.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = "KiB";
    for next in UNITS.into_iter().skip(1) {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    format!("{value:.1} {unit}")
}

/// A table of pending entries.
pub fn entry_table(out: &mut impl Write, entries: &[Entry]) -> io::Result<()> {
    for e in entries {
        let size = e.body_len.map_or("no body".into(), size);
        line(out, format_args!("{}  {:<7} {:>10}  {}  {}", e.id, e.method, size, e.queued_at, e.raw_uri))?;
        if e.attempts > 0 {
            let why = e.last_error.as_deref().unwrap_or("no reason noted");
            let due = e.not_before.as_ref().map(|at| format!("; not before {at}")).unwrap_or_default();
            line(out, format_args!("    {}: {why}{due}", attempts(e.attempts)))?;
        }
    }
    Ok(())
}

/// So many attempts.
pub fn attempts(n: u32) -> String {
    if n == 1 { "1 attempt".into() } else { format!("{n} attempts") }
}

/// Everything about an entry.
pub fn item(out: &mut impl Write, item: &Item) -> io::Result<()> {
    line(out, &item.name)?;
    let mut line = |name: &str, value: &str| line(out, format_args!("  {name:<16} {value}"));
    match &item.since {
        Some(since) => line("place", &format!("{}, since {since}", item.place))?,
        None => line("place", &item.place.to_string())?,
    }
    if let Some(reason) = &item.reason {
        line("reason", reason)?;
    }
    if let Some(e) = &item.entry {
        line("request", &format!("{} {}", e.method, e.raw_uri))?;
        line("queued at", &e.queued_at)?;
        line("body", &e.body_len.map_or("missing".into(), size))?;
        let texts = [
            ("content type", &e.content_type),
            ("base etag", &e.base_etag),
            ("base mod time", &e.base_mod_time),
        ];
        for (name, value) in texts {
            if let Some(value) = value {
                line(name, value)?;
            }
        }
        if let Some(version) = &e.rebased {
            line("put on top of", version)?;
        }
        if e.create {
            line("create", "the resource must not exist yet")?;
        }
        for (name, value) in &e.headers {
            line("header", &format!("{name}: {value}"))?;
        }
        if e.attempts > 0 {
            line("attempts", &e.attempts.to_string())?;
        }
        for (name, value) in [("last error", &e.last_error), ("not before", &e.not_before)] {
            if let Some(value) = value {
                line(name, value)?;
            }
        }
    }
    if let Some(reply) = &item.reply {
        line("reply", &reply.status.to_string())?;
        for (name, value) in &reply.headers {
            line("reply header", &format!("{name}: {value}"))?;
        }
        for text in reply.body_start.lines().take(20) {
            line("reply body", text)?;
        }
    }
    if let Some(current) = &item.current {
        for text in current.body_start.lines().take(20) {
            line("server's content", text)?;
        }
    }
    match &item.validator {
        Some(validator) => line("server has", validator),
        None => Ok(()),
    }
}

/// Conflicts of one path, newest first. Beside each, the names of earlier ones that are the same write.
type Clashes = Vec<(Item, Vec<String>)>;

fn by_path(oldest_first: Vec<Item>) -> BTreeMap<String, Clashes> {
    let key = |item: &Item| {
        let entry = item.entry.as_ref()?;
        Some((entry.method.clone(), entry.raw_uri.clone(), entry.body_digest.clone()?))
    };
    let mut paths: BTreeMap<String, Clashes> = BTreeMap::new();
    for item in oldest_first.into_iter().rev() {
        let uri = item.entry.as_ref().map_or(&item.name, |entry| &entry.raw_uri);
        let path = uri.split_once('?').map_or(uri.as_str(), |(path, _)| path).to_owned();
        let clashes = paths.entry(path).or_default();
        match clashes.iter_mut().find(|(newer, _)| key(&item).is_some() && key(newer) == key(&item)) {
            Some((_, same)) => same.push(item.name),
            None => clashes.push((item, Vec::new())),
        }
    }
    paths
}

/// Conflicts, those of one path together.
pub fn conflicts(out: &mut impl Write, oldest_first: Vec<Item>) -> io::Result<()> {
    for (path, clashes) in by_path(oldest_first) {
        let count: usize = clashes.iter().map(|(_, same)| 1 + same.len()).sum();
        if count > 1 {
            line(out, format_args!("{path}: {count} conflicts, newest first"))?;
        }
        for (newest, same) in clashes {
            item(out, &newest)?;
            if !same.is_empty() {
                let (count, names) = (1 + same.len(), same.join(", "));
                line(out, format_args!("  {:<16} {count} times: also {names}", "the same write"))?;
            }
        }
    }
    Ok(())
}

/// A line. What a server said, and what is on disk, may hold what a terminal takes for commands.
pub fn line(out: &mut impl Write, text: impl Display) -> io::Result<()> {
    writeln!(out, "{}", printable(text))
}

fn printable(text: impl Display) -> String {
    text.to_string().chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}

/// One outcome.
pub fn delivery(d: &Delivery) -> String {
    let status = d.status.map(|s| format!(" {s}")).unwrap_or_default();
    let detail = d.detail.as_ref().map(|detail| format!(": {detail}")).unwrap_or_default();
    let timing =
        if d.outcome == Outcome::Delivered { format!(" in {} ms", d.elapsed_ms) } else { String::new() };
    // Of what cannot be read, neither is known.
    let request = if d.method.is_empty() { String::new() } else { format!("  {} {}", d.method, d.raw_uri) };
    printable(format_args!("{:<10} {}{request}{status}{timing}{detail}", d.outcome, d.id))
}

/// What was set aside, in words, and the commands that show it.
pub fn kept(counts: &Counts) -> [(u64, &'static str, &'static str); 3] {
    [
        (counts.conflicts, "in conflict", "conflicts"),
        (counts.rejected, "rejected", "rejected"),
        (counts.corrupt, "corrupt", "corrupt"),
    ]
}

/// What a pass did, in a line.
pub fn report(r: &Report) -> String {
    let mut parts = vec![format!("{} delivered", r.delivered)];
    let others = [
        (r.conflicts, "in conflict"),
        (r.rejected, "rejected"),
        (r.dropped, "dropped"),
        (r.corrupt, "corrupt"),
        (r.deferred, "deferred"),
        (r.held, "held"),
        (r.ambiguous, "ambiguous"),
        (r.superseded, "superseded"),
        (r.unprotected, "unprotected"),
    ];
    parts.extend(others.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")));
    parts.push(format!("{} remaining", r.remaining));
    let asked = match (r.asked(), r.sent(), r.remaining) {
        (false, _, 0) => return parts.join(", "),
        (false, 0, _) => "nothing was due, see 'outbox list'".into(),
        (false, ..) => "see 'outbox list'".into(),
        _ if r.upstream == Health::Auth => {
            "upstream wants other credentials (--bearer-file, --bearer-env)".into()
        }
        _ => format!("upstream {}", r.upstream),
    };
    format!("{}; {asked}", parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        let cases =
            [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (256 << 20, "256.0 MiB"), (3 << 40, "3.0 TiB")];
        for (bytes, text) in cases {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn a_servers_text_cannot_command_the_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\tc"), "a\u{fffd}[2Jb\tc");
    }
}
