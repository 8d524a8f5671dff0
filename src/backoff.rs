//! When to try again: an entry after a deferral, the upstream after an outage.

use crate::clock;
use std::time::{Duration, SystemTime};

/// An entry's first backoff.
const ENTRY_FIRST: Duration = Duration::from_secs(30);
/// An entry's longest backoff.
const ENTRY_LONGEST: Duration = Duration::from_secs(3600);
/// Between passes while entries wait, and the first pause of an outage.
pub const TICK: Duration = Duration::from_secs(30);
/// Between passes while nothing waits, and the longest pause of an outage.
pub const IDLE_TICK: Duration = Duration::from_secs(300);
/// The pause before a pass that is due.
pub const SOON: Duration = Duration::from_secs(1);
/// What a server may ask for with Retry-After.
const RETRY_AFTER: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(24 * 3600);

/// How long an entry waits after its `attempts`-th attempt: 30 s doubling to 1 h, of which `random` (the full
/// range of u32) takes any part. Full jitter spreads a fleet that failed together.
pub fn entry(attempts: u32, random: u32) -> Duration {
    let doublings = attempts.saturating_sub(1).min(16);
    let longest = ENTRY_FIRST.saturating_mul(1 << doublings).min(ENTRY_LONGEST);
    longest.mul_f64(f64::from(random) / f64::from(u32::MAX)).max(SOON)
}

/// The pause after the `outages`-th pass in a row without the upstream: 30 s doubling to 5 min.
pub fn outage(outages: u32) -> Duration {
    TICK.saturating_mul(1 << outages.saturating_sub(1).min(8)).min(IDLE_TICK)
}

/// Reads Retry-After in both forms (RFC 9110 section 10.2.3), clamped to 1 s .. 24 h.
pub fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    let wish = if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        // More digits than fit are as good as the longest wait.
        Duration::from_secs(value.parse().unwrap_or(u64::MAX))
    } else {
        clock::parse_http_date(value)?.duration_since(now).unwrap_or_default()
    };
    Some(wish.clamp(*RETRY_AFTER.start(), *RETRY_AFTER.end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entrys_backoff_doubles_to_an_hour_with_full_jitter() {
        assert_eq!(entry(1, u32::MAX), Duration::from_secs(30));
        assert_eq!(entry(2, u32::MAX), Duration::from_secs(60));
        assert_eq!(entry(8, u32::MAX), Duration::from_secs(3600));
        assert_eq!(entry(u32::MAX, u32::MAX), Duration::from_secs(3600));
        assert_eq!(entry(3, 0), SOON);
        assert_eq!(entry(0, u32::MAX), Duration::from_secs(30));
    }

    #[test]
    fn an_outage_doubles_to_five_minutes() {
        let seconds: Vec<u64> = (1..7).map(|n| outage(n).as_secs()).collect();
        assert_eq!(seconds, [30, 60, 120, 240, 300, 300]);
        assert_eq!(outage(u32::MAX), IDLE_TICK);
    }

    /// The most requests in one second of 1,000 agents, from the second attempt on, until each has met a server
    /// that recovered at `recovers`. `pause` says how long an agent waits after its n-th attempt.
    fn peak_of_a_fleet(recovers: f64, mut pause: impl FnMut(u32) -> Duration) -> u32 {
        let mut per_second = std::collections::HashMap::<u64, u32>::new();
        for _agent in 0..1_000 {
            let (mut now, mut attempts) = (0.0, 1);
            while now < recovers {
                now += pause(attempts).as_secs_f64();
                attempts += 1;
                *per_second.entry(now as u64).or_default() += 1;
            }
        }
        per_second.into_values().max().unwrap_or_default()
    }

    /// What a common outage of 20 minutes leads to: all 1,000 agents got 503 in the same second.
    #[test]
    fn jitter_spreads_a_fleet_that_failed_together() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u32
        };
        let without = peak_of_a_fleet(1_200.0, |attempts| entry(attempts, u32::MAX));
        let with = peak_of_a_fleet(1_200.0, |attempts| entry(attempts, random()));
        // Probes have no jitter of their own: agents that lost the server in the same second ask together.
        let probes = peak_of_a_fleet(1_200.0, outage);
        println!(
            "1,000 agents, peak requests a second: {without} without jitter, {with} with; probes {probes}"
        );
        assert_eq!(without, 1_000);
        assert!(with <= 100, "{with}");
    }

    #[test]
    fn retry_after_is_read_in_both_forms_and_clamped() {
        let now = clock::parse_http_date("Wed, 01 May 2024 08:00:00 GMT").unwrap();
        let read = |value| retry_after(value, now).map(|d| d.as_secs());
        assert_eq!(read("120"), Some(120));
        assert_eq!(read(" 0 "), Some(1));
        assert_eq!(read("99999999999999999999999"), Some(86_400));
        assert_eq!(read("Wed, 01 May 2024 08:02:00 GMT"), Some(120));
        assert_eq!(read("Wed, 01 May 2019 08:02:00 GMT"), Some(1));
        for bad in ["", "soon", "-5", "1.5", "+5"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
