//! What happened, for people; recorded only when somebody wants to see it, since it costs more than the run.

/// Lines of a run.
#[derive(Debug, Default)]
pub struct Trace {
    on: bool,
    lines: Vec<String>,
}

impl Trace {
    /// A trace that records, or does not.
    pub fn new(on: bool) -> Trace {
        Trace { on, lines: Vec::new() }
    }

    /// Adds a line, with the virtual time.
    pub fn say(&mut self, now: u64, text: impl FnOnce() -> String) {
        if self.on {
            let (seconds, millis) = (now / 1_000_000_000, now / 1_000_000 % 1000);
            self.lines.push(format!("{seconds:>7}.{millis:03}  {}", text()));
        }
    }

    /// All of it.
    pub fn take(&mut self) -> Vec<String> {
        std::mem::take(&mut self.lines)
    }
}
