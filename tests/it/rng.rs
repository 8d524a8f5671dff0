//! Random numbers from a seed that is printed: a run that failed is repeated by setting the variable to it.

/// The simulator's generator, with a seed that can be given.
#[derive(Debug, Clone)]
pub struct Rng(outbox_sim::rng::Rng);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(outbox_sim::rng::Rng::new(seed))
    }

    /// From the variable's seed, or a fresh one. What it is shows where a test fails.
    pub fn seeded(variable: &str) -> Rng {
        let seed = match std::env::var(variable) {
            Ok(text) => text.parse().unwrap_or_else(|e| panic!("{variable}={text}: {e}")),
            Err(_) => std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64,
        };
        eprintln!("{variable}={seed}");
        Rng(outbox_sim::rng::Rng::new(seed))
    }

    /// Another generator, for a thread of its own.
    pub fn fork(&mut self) -> Rng {
        Rng::new(self.next())
    }

    pub fn next(&mut self) -> u64 {
        self.0.word()
    }

    /// Below this.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    /// Once in so many times.
    pub fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// One of these.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// Bytes that no compression, zeros or shift would go unnoticed in.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).collect();
        bytes.truncate(len);
        bytes
    }
}
