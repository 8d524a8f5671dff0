//! An entry's id: 16 lower-case hex digits of Unix nanoseconds, `-`, 6 random hex digits.

use std::fmt;

/// An entry's id. Ordered as its text is, and small: a queue of a million fits in 16 MB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId {
    nanos: u64,
    random: u32,
}

/// The random part has 24 bits.
const RANDOM_MASK: u32 = 0x00ff_ffff;

impl EntryId {
    /// The id for `now` (Unix nanoseconds) with these random bits, moved past `newest`, the greatest id
    /// there is: the clock may have been set back.
    pub fn after(newest: Option<EntryId>, now: u64, random: u32) -> EntryId {
        let random = random & RANDOM_MASK;
        match newest.filter(|newest| newest.nanos >= now) {
            None => EntryId { nanos: now, random },
            Some(newest) => match newest.nanos.checked_add(1) {
                Some(nanos) => EntryId { nanos, random },
                // No clock says that, but a name may.
                None => EntryId { nanos: u64::MAX, random: (newest.random + 1).min(RANDOM_MASK) },
            },
        }
    }

    /// Reads an id's text; none unless it is exactly one.
    pub fn parse(text: &str) -> Option<EntryId> {
        let (nanos, rest) = text.as_bytes().split_at_checked(16)?;
        let (dash, random) = rest.split_first()?;
        if *dash != b'-' || random.len() != 6 {
            return None;
        }
        Some(EntryId { nanos: lower_hex(nanos)?, random: u32::try_from(lower_hex(random)?).ok()? })
    }

    /// When it was given out, in Unix nanoseconds (later than the clock said, where that had been set back).
    pub fn nanos(self) -> u64 {
        self.nanos
    }
}

/// At most 16 lower-case hex digits.
fn lower_hex(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0, |number: u64, digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u64::from(value))
    })
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [b'-'; 23];
        let (nanos, rest) = text.split_at_mut(16);
        let (_, random) = rest.split_at_mut(1);
        let [_, low @ ..] = self.random.to_be_bytes();
        let written = hex::encode_to_slice(self.nanos.to_be_bytes(), nanos)
            .and_then(|()| hex::encode_to_slice(low, random));
        written.map_err(|_| fmt::Error)?;
        f.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_greater_than_every_earlier_one_also_when_the_clock_went_back() {
        let first = EntryId::after(None, 1_000, 0xffff_ffff);
        assert_eq!(first.to_string(), "00000000000003e8-ffffff");
        let second = EntryId::after(Some(first), 10, 0);
        assert!(second > first && second.to_string() > first.to_string());
        assert_eq!(EntryId::after(Some(first), 2_000, 1).nanos(), 2_000);
    }

    #[test]
    fn only_the_exact_form_is_an_id() {
        for text in ["18ea4ba277c322d7-873e00", "ffffffffffffffff-000000"] {
            assert_eq!(EntryId::parse(text).unwrap().to_string(), text);
        }
        for text in
            ["", "18ea4ba277c322d7873e00", "+8ea4ba277c322d7-873e00", "18ea4ba277c322d7-873e0", "../x-873e00"]
        {
            assert_eq!(EntryId::parse(text), None, "{text}");
        }
    }
}
