//! Times as lines have them, in UTC, most of whose text is made once a second.

use std::cell::RefCell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use time::UtcDateTime;

use crate::decimal;

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// A second since 1970, and its text.
type Second = RefCell<(u64, String)>;

thread_local! {
    static PRECISE: Second = const { RefCell::new((u64::MAX, String::new())) };
    static COMMON: Second = const { RefCell::new((u64::MAX, String::new())) };
}

/// As RFC 3339 writes it, to the millisecond.
pub(super) fn precise(out: &mut Vec<u8>, time: SystemTime) {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    PRECISE.with(|second| write(out, second, since, rfc_3339));
    decimal::write(out, since.subsec_millis().into(), 3);
    out.push(b'Z');
}

/// As the Common Log Format has it.
pub(super) fn common(out: &mut Vec<u8>, time: SystemTime) {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    COMMON.with(|second| write(out, second, since, common_log));
}

fn write(out: &mut Vec<u8>, second: &Second, since: Duration, text: fn(u64) -> String) {
    let mut second = second.borrow_mut();
    if second.0 != since.as_secs() {
        *second = (since.as_secs(), text(since.as_secs()));
    }
    out.extend_from_slice(second.1.as_bytes());
}

fn rfc_3339(seconds: u64) -> String {
    let time = utc(seconds);
    let (year, month, day) = (time.year(), u8::from(time.month()), time.day());
    let (hour, minute, second) = time.as_hms();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.")
}

fn common_log(seconds: u64) -> String {
    let time = utc(seconds);
    let (year, month, day) = (time.year(), MONTHS[usize::from(u8::from(time.month())) - 1], time.day());
    let (hour, minute, second) = time.as_hms();
    format!("{day:02}/{month}/{year:04}:{hour:02}:{minute:02}:{second:02} +0000")
}

/// A clock that is beyond any calendar is taken for one that was never set.
fn utc(seconds: u64) -> UtcDateTime {
    let time = i64::try_from(seconds).ok().and_then(|seconds| UtcDateTime::from_unix_timestamp(seconds).ok());
    time.unwrap_or(UtcDateTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_rfc_3339_and_the_common_log_format_have_them() {
        for (milliseconds, expected, expected_common) in [
            (0, "1970-01-01T00:00:00.000Z", "01/Jan/1970:00:00:00 +0000"),
            (951_782_400_007, "2000-02-29T00:00:00.007Z", "29/Feb/2000:00:00:00 +0000"),
            (1_795_305_599_999, "2026-11-21T23:59:59.999Z", "21/Nov/2026:23:59:59 +0000"),
            (1_798_761_599_000, "2026-12-31T23:59:59.000Z", "31/Dec/2026:23:59:59 +0000"),
        ] {
            let time = UNIX_EPOCH + Duration::from_millis(milliseconds);
            let (mut text, mut common_text) = (Vec::new(), Vec::new());
            precise(&mut text, time);
            common(&mut common_text, time);
            assert_eq!(text, expected.as_bytes());
            assert_eq!(common_text, expected_common.as_bytes());
        }
    }
}
