//! One line, written without a detour: a request's share of it is as long as the rest of its way through us.

use std::cell::RefCell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::Version;
use tokio::time::Instant;

use super::Format;
use crate::clock;
use crate::exchange::Exchange;

/// Writes the line of an exchange that has ended now behind what `out` has, without its end.
pub(super) fn write(out: &mut String, exchange: &Exchange, format: Format, now: Instant) {
    let (key, upstream) = (exchange.key.borrow(), exchange.upstream.borrow());
    let duration = u64::try_from((now - exchange.started).as_micros()).unwrap_or(u64::MAX);
    let head = &exchange.head;
    let mut line = Line { out, format, begun: false };
    line.name("time");
    line.quoted(matches!(format, Format::Json), |out| time(out, clock::wall(now)));
    line.text("client", &exchange.addresses.peer);
    line.plain("scheme", exchange.scheme.as_str());
    line.plain("protocol", protocol(head.version));
    line.plain("method", head.method.as_str());
    line.text("host", head.host().unwrap_or_default());
    line.text("path", head.target());
    line.number("status", exchange.status.get().as_u16().into());
    line.number("bytes_in", exchange.bytes_in.get());
    line.number("bytes_out", exchange.bytes_out.get());
    line.number("duration_us", duration);
    if let Some(key) = &*key {
        line.text("key", key);
    }
    if let Some(upstream) = &*upstream {
        line.text("upstream", upstream);
    }
    if let Some(rule) = exchange.fault.get() {
        line.plain("refused", rule.kind());
    }
    line.plain("request_id", &exchange.request_id);
    if format == Format::Json {
        line.out.push('}');
    }
}

struct Line<'a> {
    out: &'a mut String,
    format: Format,
    begun: bool,
}

impl Line<'_> {
    /// What stands before a field's value.
    fn name(&mut self, name: &str) {
        match (self.format, self.begun) {
            (Format::Json, begun) => {
                self.out.push_str(if begun { ",\"" } else { "{\"" });
                self.out.push_str(name);
                self.out.push_str("\":");
            }
            // The time stands for itself.
            (Format::Text, false) => {}
            (Format::Text, true) => {
                self.out.push(' ');
                self.out.push_str(name);
                self.out.push('=');
            }
        }
        self.begun = true;
    }

    fn quoted(&mut self, quoted: bool, write: impl FnOnce(&mut String)) {
        if quoted {
            self.out.push('"');
        }
        write(self.out);
        if quoted {
            self.out.push('"');
        }
    }

    fn number(&mut self, name: &str, number: u64) {
        self.name(name);
        decimal(self.out, number, 1);
    }

    /// A word that needs no quotes and no escapes.
    fn plain(&mut self, name: &str, word: &str) {
        self.name(name);
        self.quoted(self.format == Format::Json, |out| out.push_str(word));
    }

    /// Anything that a client wrote.
    fn text(&mut self, name: &str, text: &str) {
        self.name(name);
        let is_word = || !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"');
        self.quoted(self.format == Format::Json || !is_word(), |out| escape(out, text));
    }
}

/// What a client wrote must not look like a line's or a field's end: quotes, backslashes and everything that
/// is not plain text is escaped, as JSON does it.
fn escape(out: &mut String, text: &str) {
    if text.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\') {
        return out.push_str(text);
    }
    for character in text.chars() {
        match character {
            '"' | '\\' => out.extend(['\\', character]),
            _ if character.is_control() || matches!(character, '\u{2028}' | '\u{2029}') => {
                out.push_str(&format!("\\u{:04x}", u32::from(character)));
            }
            _ => out.push(character),
        }
    }
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        _ => "1.1",
    }
}

/// A number of at least so many digits.
fn decimal(out: &mut String, number: u64, digits: usize) {
    let mut reversed = [b'0'; 20];
    let (mut length, mut rest) = (0, number);
    while rest > 0 {
        reversed[length] = b'0' + (rest % 10) as u8;
        rest /= 10;
        length += 1;
    }
    out.extend(reversed[..length.max(digits)].iter().rev().map(|digit| char::from(*digit)));
}

thread_local! {
    /// The second that the text is of, up to its milliseconds.
    static SECOND: RefCell<(u64, String)> = const { RefCell::new((u64::MAX, String::new())) };
}

/// A time as RFC 3339 writes it, in UTC, to the millisecond.
fn time(out: &mut String, time: SystemTime) {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    SECOND.with_borrow_mut(|(second, text)| {
        if *second != since.as_secs() {
            (*second, *text) = (since.as_secs(), date_and_time(since));
        }
        out.push_str(text);
    });
    decimal(out, since.subsec_millis().into(), 3);
    out.push('Z');
}

fn date_and_time(since: Duration) -> String {
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.")
}

/// The date of a day since 1970-01-01 (Howard Hinnant, "chrono-compatible low-level date algorithms").
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_rfc_3339_has_it() {
        for (milliseconds, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_007, "2000-02-29T00:00:00.007Z"),
            (1_795_305_599_999, "2026-11-21T23:59:59.999Z"),
        ] {
            let mut text = String::new();
            time(&mut text, UNIX_EPOCH + Duration::from_millis(milliseconds));
            assert_eq!(text, expected);
        }
    }

    #[test]
    fn numbers_keep_their_zeros() {
        let mut text = String::new();
        for (number, digits) in [(0, 1), (7, 3), (1234, 3), (u64::MAX, 1)] {
            decimal(&mut text, number, digits);
            text.push(' ');
        }
        assert_eq!(text, "0 007 1234 18446744073709551615 ");
    }
}
