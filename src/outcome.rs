//! What a final status code means for an entry: the table of docs/semantics.md.

/// What to do with an entry after a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The server took it.
    Delivered,
    /// 412: the resource is not in the state that the author had seen (RFC 9110 section 15.5.13).
    Conflict,
    /// The server wants other credentials; nothing is wrong with the entry.
    Held,
    /// Not now.
    Deferred,
    /// Refused for good.
    Rejected,
}

/// Reads a status code in reply to a method.
///
/// Redirects are deferred, not followed: they come from captive portals and from servers that moved, and
/// both are for a person to look at. 408, 423, 425 and 429 say themselves that a later attempt may succeed
/// (RFC 9110 section 15.5.9, RFC 4918 section 11.3, RFC 8470 section 5.2, RFC 6585 section 4). 511 is the
/// captive portal's own status (RFC 6585 section 6).
pub fn verdict(method: &str, status: u16) -> Verdict {
    match status {
        // Part of it was not done, or it is told by 201 or 204 (RFC 4918 sections 9.6.1, 9.8.5, 9.9.4).
        207 if matches!(method, "DELETE" | "COPY" | "MOVE") => Verdict::Rejected,
        200..=299 => Verdict::Delivered,
        // What was to be deleted is not there: that was the wish.
        404 | 410 if method == "DELETE" => Verdict::Delivered,
        412 => Verdict::Conflict,
        401 | 403 | 407 | 511 => Verdict::Held,
        408 | 423 | 425 | 429 => Verdict::Deferred,
        400..=499 => Verdict::Rejected,
        _ => Verdict::Deferred,
    }
}

/// The same as the Go original reads it: every 4xx but 412 ends an entry, and everything else is tried again.
pub fn originals(status: u16) -> Verdict {
    match status {
        200..=299 => Verdict::Delivered,
        412 => Verdict::Conflict,
        400..=499 => Verdict::Rejected,
        _ => Verdict::Deferred,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_has_its_row() {
        for status in 0..=999 {
            let expected = match status {
                200..=299 => Verdict::Delivered,
                412 => Verdict::Conflict,
                401 | 403 | 407 | 511 => Verdict::Held,
                408 | 423 | 425 | 429 => Verdict::Deferred,
                400..=499 => Verdict::Rejected,
                _ => Verdict::Deferred,
            };
            assert_eq!(verdict("PUT", status), expected, "{status}");
        }
        assert_eq!(verdict("DELETE", 404), Verdict::Delivered);
        assert_eq!(verdict("DELETE", 410), Verdict::Delivered);
        assert_eq!(verdict("POST", 404), Verdict::Rejected);
        assert_eq!(verdict("DELETE", 207), Verdict::Rejected);
    }
}
