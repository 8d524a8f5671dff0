//! The component's configuration: environment variables, so that stock hosts can set it too.

use crate::limits::Limits;
use crate::upstream::Upstream;
use crate::{Error, Invalid, Result};
use std::collections::HashMap;
use std::str::FromStr;
use std::time::Duration;

/// What becomes of an entry that the server refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// It is kept: in `rejected/`, or in the queue while credentials are wanting.
    Keep,
    /// It is removed, as the original does.
    Drop,
}

/// All of it, with its defaults.
#[derive(Debug)]
pub struct Config {
    /// `OUTBOX_UPSTREAM`: where to replay to; not needed for queueing.
    upstream: Option<String>,
    /// `OUTBOX_DURABILITY`: `full` (the default) syncs, `none` does not.
    pub sync: bool,
    /// `OUTBOX_MAX_BODY`: the longest body in bytes; 256 MiB, as in the original.
    pub max_body: u64,
    /// `OUTBOX_MAX_ENTRIES`, `OUTBOX_MAX_BYTES`: what the outbox may hold; no limits.
    pub limits: Limits,
    /// `OUTBOX_CONCURRENCY`: requests in flight at once; 4.
    pub concurrency: usize,
    /// `OUTBOX_ORDER`: `path` (the default) or `strict`, the whole queue in one line.
    pub strict_order: bool,
    /// `OUTBOX_REJECTED`: `keep` (the default) or `drop`.
    pub rejected: Refused,
    /// `OUTBOX_AUTH`: `hold` (the default) or `drop`.
    pub auth: Refused,
    /// `OUTBOX_LEASE`: `hold` takes a lease for replaying, `none` does not. Where neither is said, commands take
    /// one, and calls of the replayer do not: whoever calls it sees to it that there is only one.
    pub lease: Option<bool>,
    /// `OUTBOX_AMBIGUOUS`: `retry` (the default) sends a POST or PATCH again when it is not known what the server
    /// did with it; `hold` keeps it until somebody says so.
    pub hold_ambiguous: bool,
    /// `OUTBOX_EXPECT_HEADER`: `Name: value` that every success must carry, as a proof that it is the upstream
    /// that answers and no captive portal.
    pub expect_header: Option<(String, String)>,
    /// `OUTBOX_COALESCE`: `off` (the default) or `on`: a PUT that a later one of the same path supersedes is not
    /// sent. The original sends all.
    pub coalesce: bool,
    /// `OUTBOX_PROFILE`: `outbox` (the default) or `original`: as the Go original does, but for following
    /// redirects and letting a URI choose the host.
    pub original: bool,
    /// `OUTBOX_BOOT`: names the machine's last start, where the host can tell; it changes with each power failure. Then
    /// the first write of each instance is as quick in a long queue as in an empty one.
    pub boot: Option<String>,
    /// `OUTBOX_CONNECT_TIMEOUT_MS`: until a connection is there; 10 s.
    pub connect_timeout: Duration,
    /// `OUTBOX_IDLE_TIMEOUT_MS`: the longest pause without a byte either way; 60 s.
    pub idle_timeout: Duration,
}

/// Above this, more requests in flight only cost memory: each holds a chunk of its body.
const MAX_CONCURRENCY: usize = 256;

impl Config {
    /// Reads the environment.
    pub fn from_env() -> Result<Config> {
        Config::from_vars(std::env::vars())
    }

    fn from_vars(vars: impl Iterator<Item = (String, String)>) -> Result<Config> {
        let vars: HashMap<String, String> =
            vars.filter(|(name, value)| name.starts_with("OUTBOX_") && !value.is_empty()).collect();
        let var = |name: &str| vars.get(name).map(String::as_str);
        let original =
            choice("OUTBOX_PROFILE", var("OUTBOX_PROFILE"), [("outbox", false), ("original", true)])?;
        let refused = if original { Refused::Drop } else { Refused::Keep };
        Ok(Config {
            upstream: var("OUTBOX_UPSTREAM").map(Into::into),
            sync: choice("OUTBOX_DURABILITY", var("OUTBOX_DURABILITY"), [("full", true), ("none", false)])?,
            max_body: number("OUTBOX_MAX_BODY", var("OUTBOX_MAX_BODY"), 256 * 1024 * 1024, 0..=u64::MAX)?,
            limits: Limits {
                entries: limit("OUTBOX_MAX_ENTRIES", var("OUTBOX_MAX_ENTRIES"))?,
                bytes: limit("OUTBOX_MAX_BYTES", var("OUTBOX_MAX_BYTES"))?,
            },
            lease: optional("OUTBOX_LEASE", var("OUTBOX_LEASE"), [("hold", true), ("none", false)])?,
            concurrency: match original {
                true => 1,
                false => number("OUTBOX_CONCURRENCY", var("OUTBOX_CONCURRENCY"), 4, 1..=MAX_CONCURRENCY)?,
            },
            strict_order: choice("OUTBOX_ORDER", var("OUTBOX_ORDER"), [("path", false), ("strict", true)])?,
            rejected: match var("OUTBOX_REJECTED") {
                None => refused,
                word => choice("OUTBOX_REJECTED", word, [("keep", Refused::Keep), ("drop", Refused::Drop)])?,
            },
            auth: match var("OUTBOX_AUTH") {
                None => refused,
                word => choice("OUTBOX_AUTH", word, [("hold", Refused::Keep), ("drop", Refused::Drop)])?,
            },
            hold_ambiguous: choice(
                "OUTBOX_AMBIGUOUS",
                var("OUTBOX_AMBIGUOUS"),
                [("retry", false), ("hold", true)],
            )?,
            expect_header: var("OUTBOX_EXPECT_HEADER").map(expected_header).transpose()?,
            coalesce: choice("OUTBOX_COALESCE", var("OUTBOX_COALESCE"), [("off", false), ("on", true)])?
                && !original,
            original,
            boot: var("OUTBOX_BOOT").map(Into::into),
            connect_timeout: millis("OUTBOX_CONNECT_TIMEOUT_MS", var("OUTBOX_CONNECT_TIMEOUT_MS"), 10_000)?,
            idle_timeout: millis("OUTBOX_IDLE_TIMEOUT_MS", var("OUTBOX_IDLE_TIMEOUT_MS"), 60_000)?,
        })
    }

    /// The upstream; an error that says how to set it where there is none.
    pub fn upstream(&self) -> Result<Upstream> {
        match &self.upstream {
            Some(url) => Upstream::parse(url),
            None => {
                refuse("OUTBOX_UPSTREAM", "", "no upstream is set; give its URL, such as https://example.org")
            }
        }
    }
}

fn refuse<T>(what: &str, value: &str, reason: impl Into<String>) -> Result<T> {
    Err(Error::Configuration(Invalid { what: what.into(), value: value.into(), reason: reason.into() }))
}

/// One of two words, the first of which is the default.
fn choice<T: Copy>(name: &str, value: Option<&str>, words: [(&str, T); 2]) -> Result<T> {
    let [(_, default), _] = words;
    optional(name, value, words).map(|found| found.unwrap_or(default))
}

/// One of two words, if any.
fn optional<T: Copy>(name: &str, value: Option<&str>, words: [(&str, T); 2]) -> Result<Option<T>> {
    let [(first, one), (second, other)] = words;
    match value {
        None => Ok(None),
        Some(word) if word == first => Ok(Some(one)),
        Some(word) if word == second => Ok(Some(other)),
        Some(word) => refuse(name, word, format!("it is neither '{first}' nor '{second}'")),
    }
}

/// A limit, if any. None at all is no limit but a standstill.
fn limit(name: &str, value: Option<&str>) -> Result<Option<u64>> {
    value.map(|_| number(name, value, 0, 1..=u64::MAX)).transpose()
}

fn expected_header(text: &str) -> Result<(String, String)> {
    let malformed = || refuse("OUTBOX_EXPECT_HEADER", text, "it is not of the form 'Name: value'");
    let Some((name, value)) = text.split_once(':') else { return malformed() };
    let (name, value) = (name.trim(), value.trim());
    match name.is_empty()
        || name.contains(char::is_whitespace)
        || value.is_empty()
        || value.contains(char::is_control)
    {
        true => malformed(),
        false => Ok((name.into(), value.into())),
    }
}

fn number<T: FromStr + PartialOrd + std::fmt::Display>(
    name: &str,
    value: Option<&str>,
    default: T,
    range: std::ops::RangeInclusive<T>,
) -> Result<T> {
    let Some(text) = value else { return Ok(default) };
    match text.parse() {
        Ok(number) if range.contains(&number) => Ok(number),
        _ => refuse(name, text, format!("it is no whole number from {} to {}", range.start(), range.end())),
    }
}

fn millis(name: &str, value: Option<&str>, default: u64) -> Result<Duration> {
    // A day: longer than any wait that makes sense, and far from overflow in nanoseconds.
    number(name, value, default, 1..=86_400_000).map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(vars: &[(&str, &str)]) -> Result<Config> {
        Config::from_vars(vars.iter().map(|(n, v)| ((*n).into(), (*v).into())))
    }

    #[test]
    fn defaults_are_those_of_the_contract() {
        let config = read(&[("PATH", "/bin"), ("OUTBOX_ORDER", "")]).unwrap();
        assert!(config.sync && !config.strict_order);
        assert_eq!((config.max_body, config.concurrency), (268_435_456, 4));
        assert!(config.upstream().is_err());
        assert_eq!((config.limits.entries, config.limits.bytes, config.lease), (None, None, None));
    }

    #[test]
    fn the_originals_profile_sets_its_defaults() {
        let config = read(&[("OUTBOX_PROFILE", "original"), ("OUTBOX_CONCURRENCY", "8")]).unwrap();
        assert_eq!((config.concurrency, config.rejected, config.auth), (1, Refused::Drop, Refused::Drop));
        let kept = read(&[("OUTBOX_PROFILE", "original"), ("OUTBOX_REJECTED", "keep")]).unwrap();
        assert_eq!(kept.rejected, Refused::Keep);
    }

    #[test]
    fn a_value_that_means_nothing_is_named() {
        for (name, value) in [
            ("OUTBOX_DURABILITY", "some"),
            ("OUTBOX_MAX_BODY", "1 MiB"),
            ("OUTBOX_MAX_BYTES", "1G"),
            ("OUTBOX_MAX_ENTRIES", "0"),
            ("OUTBOX_LEASE", "1"),
            ("OUTBOX_CONCURRENCY", "0"),
            ("OUTBOX_AUTH", "keep"),
            ("OUTBOX_EXPECT_HEADER", "X-Served-By"),
            ("OUTBOX_PROFILE", "go"),
            ("OUTBOX_IDLE_TIMEOUT_MS", "-1"),
        ] {
            match read(&[(name, value)]) {
                Err(Error::Configuration(invalid)) => {
                    assert_eq!((invalid.what.as_str(), invalid.value.as_str()), (name, value))
                }
                other => panic!("{name}: {other:?}"),
            }
        }
    }
}
