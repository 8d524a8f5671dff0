//! Times as the formats spell them. Every function is total: a time that has no spelling becomes the epoch.

use std::time::{Duration, SystemTime, UNIX_EPOCH};
use time::OffsetDateTime;
use time::format_description::well_known::{Rfc2822, Rfc3339};

/// The time in Unix nanoseconds; 0 before 1970.
pub fn unix_nanos(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}

/// The time on the calendar, of which the formats know the years 0 to 9999. The crate's own conversion panics
/// beyond its range.
fn date(at: SystemTime) -> Option<OffsetDateTime> {
    let nanos = match at.duration_since(UNIX_EPOCH) {
        Ok(since) => i128::try_from(since.as_nanos()).ok()?,
        Err(before) => -i128::try_from(before.duration().as_nanos()).ok()?,
    };
    OffsetDateTime::from_unix_timestamp_nanos(nanos).ok().filter(|t| t.year() >= 0)
}

/// RFC 3339 in UTC, to the second.
pub fn rfc3339(at: SystemTime) -> String {
    date(at)
        .and_then(|t| t.replace_nanosecond(0).ok()?.format(&Rfc3339).ok())
        .unwrap_or_else(|| "1970-01-01T00:00:00Z".into())
}

/// RFC 3339 in UTC, to the second, rounded up: not before it.
pub fn rfc3339_up(at: SystemTime) -> String {
    rfc3339(at.checked_add(Duration::from_nanos(999_999_999)).unwrap_or(at))
}

/// `YYYYMMDDTHHMMSSZ`, for names of files.
pub fn compact(at: SystemTime) -> String {
    rfc3339(at).replace(['-', ':'], "")
}

/// Reads the time at the start of a quarantined entry's name and spells it as RFC 3339.
pub fn expand_compact(stamp: &str) -> Option<String> {
    let part = |from: usize, len: usize| stamp.get(from..from + len);
    let (year, month, day) = (part(0, 4)?, part(4, 2)?, part(6, 2)?);
    let (hour, minute, second) = (part(9, 2)?, part(11, 2)?, part(13, 2)?);
    let text = format!("{year}-{month}-{day}T{hour}:{minute}:{second}Z");
    OffsetDateTime::parse(&text, &Rfc3339).ok()?;
    stamp.starts_with(&text.replace(['-', ':'], "")).then_some(text)
}

/// Go's zero time, in Unix nanoseconds.
const ZERO: i128 = -62_135_596_800_000_000_000;

/// Reads RFC 3339 with any offset and fraction. Go's zero time, which its `omitempty` does not omit, is
/// the year 1's first second and reads as none.
pub fn parse_rfc3339(text: &str) -> Result<Option<SystemTime>, time::error::Parse> {
    let at = OffsetDateTime::parse(text, &Rfc3339)?;
    Ok((at.unix_timestamp_nanos() != ZERO).then(|| at.into()))
}

/// Spells an RFC 3339 time as Go reads it, which wants capital letters, a 'T' and no leap second; an entry
/// whose time the original cannot read would wait there for ever. Offset and nanoseconds stay.
pub fn respell_rfc3339(text: &str) -> Option<String> {
    OffsetDateTime::parse(text, &Rfc3339).ok()?.format(&Rfc3339).ok()
}

/// IMF-fixdate (RFC 9110 section 5.6.7), whole seconds, the fraction cut off.
pub fn http_date(at: SystemTime) -> String {
    // The years 0 to 9999 have four digits.
    let first = UNIX_EPOCH - Duration::from_secs(62_167_219_200);
    let last = UNIX_EPOCH + Duration::from_secs(253_402_300_799);
    let at = at.clamp(first, last);
    // The crate's formatting panics before 1970.
    if at >= UNIX_EPOCH {
        return httpdate::fmt_http_date(at);
    }
    let at = OffsetDateTime::from(at);
    let (weekday, month) = (at.weekday().to_string(), at.month().to_string());
    let (hour, minute, second) = at.to_hms();
    let (day, year) = (at.day(), at.year());
    format!("{weekday:.3}, {day:02} {month:.3} {year:04} {hour:02}:{minute:02}:{second:02} GMT")
}

/// Reads any of the three HTTP dates.
pub fn parse_http_date(text: &str) -> Option<SystemTime> {
    let text = text.trim();
    let before_1970 = || {
        let at = text.ends_with(" GMT").then(|| OffsetDateTime::parse(text, &Rfc2822).ok())??;
        Some(at.into())
    };
    httpdate::parse_http_date(text).ok().or_else(before_1970)
}

/// How long ago something was modified, by the wall clock; zero where that is in the future.
pub fn age(modified: Option<wasi::clocks::wall_clock::Datetime>) -> Option<Duration> {
    let modified = modified?;
    let now = unix_nanos(SystemTime::now());
    let then = modified.seconds.saturating_mul(1_000_000_000).saturating_add(modified.nanoseconds.into());
    Some(Duration::from_nanos(now.saturating_sub(then)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_before_1970_is_no_other() {
        let at = parse_rfc3339("1965-01-31T01:02:03.5+02:00").unwrap().unwrap();
        let date = "Sat, 30 Jan 1965 23:02:03 GMT";
        assert_eq!(http_date(at), date);
        assert_eq!(http_date(parse_http_date(date).unwrap()), date);
        assert!(parse_rfc3339("0001-01-01T00:00:00Z").unwrap().is_none());
        assert!(parse_rfc3339("0001-01-01T02:00:00+02:00").unwrap().is_none());
        let first = parse_rfc3339("0001-06-01T00:00:00Z").unwrap().unwrap();
        assert_eq!(http_date(first), "Fri, 01 Jun 0001 00:00:00 GMT");
        let first = parse_rfc3339("0000-01-01T00:00:00+02:00").unwrap().unwrap();
        assert_eq!(http_date(first), "Sat, 01 Jan 0000 00:00:00 GMT");
    }

    #[test]
    fn a_base_time_of_the_original_keeps_its_second_across_offsets() {
        let at = parse_rfc3339("2024-05-01T10:00:00.123456789+02:00").unwrap().unwrap();
        assert_eq!(http_date(at), "Wed, 01 May 2024 08:00:00 GMT");
        assert_eq!(compact(at), "20240501T080000Z");
        assert_eq!(rfc3339(at), "2024-05-01T08:00:00Z");
        assert_eq!(expand_compact("20240501T080000Z-ab12").as_deref(), Some("2024-05-01T08:00:00Z"));
        assert_eq!(expand_compact("10661014T090000Z").as_deref(), Some("1066-10-14T09:00:00Z"));
        for none in [
            "",
            "20240501T080000",
            "20240501X080000Z",
            "20240532T080000Z",
            "2024-501T080000Z",
            "ä0240501T080000Z",
        ] {
            assert_eq!(expand_compact(none), None, "{none}");
        }
    }

    #[test]
    fn a_time_is_respelled_as_go_reads_it() {
        for (text, expected) in [
            ("2024-05-01T10:00:00.123456789+02:00", "2024-05-01T10:00:00.123456789+02:00"),
            ("2024-05-01t10:00:00z", "2024-05-01T10:00:00Z"),
            ("2024-05-01 10:00:00.50-00:00", "2024-05-01T10:00:00.5Z"),
            ("2016-12-31T23:59:60Z", "2016-12-31T23:59:59.999999999Z"),
        ] {
            assert_eq!(respell_rfc3339(text).as_deref(), Some(expected));
        }
        assert_eq!(respell_rfc3339("yesterday"), None);
    }

    #[test]
    fn gos_zero_time_is_no_time() {
        assert_eq!(parse_rfc3339("0001-01-01T00:00:00Z"), Ok(None));
        assert!(parse_rfc3339("yesterday").is_err());
        assert!(parse_rfc3339("2024-05-01").is_err());
    }

    #[test]
    fn times_out_of_range_do_not_panic() {
        let early = parse_rfc3339("1066-10-14T09:00:00Z").unwrap().unwrap();
        assert_eq!(http_date(early), "Sun, 14 Oct 1066 09:00:00 GMT");
        assert_eq!(unix_nanos(early), 0);
    }
}
