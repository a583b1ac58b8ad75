//! One line, written without a detour: a request's share of it is as long as the rest of its way through us.

use std::cell::RefCell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::Version;
use tokio::time::Instant;

use super::Format;
use crate::clock;
use crate::decimal;
use crate::exchange::Exchange;
use crate::head::Known;

/// Writes the line of an exchange that has ended now behind what `out` has, without its end.
pub(super) fn write(out: &mut Vec<u8>, exchange: &Exchange, format: Format, now: Instant) {
    let (key, upstream) = (exchange.key.borrow(), exchange.upstream.borrow());
    let duration = u64::try_from((now - exchange.started).as_micros()).unwrap_or(u64::MAX);
    let head = &exchange.head;
    let is_json = format == Format::Json;
    let mut line = Line { out, is_json };
    // The first, which stands for itself among people.
    line.put(if is_json { "{\"time\":\"" } else { "" });
    time(line.out, clock::wall(now));
    line.put(if is_json { "\"" } else { "" });
    match exchange.brought {
        None => line.text(name!("client"), exchange.addresses.peer().as_bytes()),
        Some(ip) => line.text(name!("client"), ip.to_string().as_bytes()),
    }
    line.word(name!("scheme"), exchange.scheme.as_str().as_bytes());
    line.word(name!("protocol"), protocol(head.version).as_bytes());
    line.word(name!("method"), head.method.as_str().as_bytes());
    line.text(name!("host"), head.fields.known(Known::Host).next().unwrap_or_default());
    line.text(name!("path"), head.target_bytes());
    line.number(name!("status"), exchange.status.get().as_u16().into());
    line.number(name!("bytes_in"), exchange.bytes_in.get());
    line.number(name!("bytes_out"), exchange.bytes_out.get());
    line.number(name!("duration_us"), duration);
    if let Some(key) = &*key {
        line.text(name!("key"), key.as_bytes());
    }
    if let Some(upstream) = &*upstream {
        line.text(name!("upstream"), upstream.as_bytes());
    }
    if let Some(rule) = exchange.fault.get() {
        line.word(name!("refused"), rule.kind().as_bytes());
    }
    line.word(name!("request_id"), exchange.request_id.as_bytes());
    line.put(if is_json { "}" } else { "" });
}

/// What stands before a field's value.
struct Name {
    json: &'static str,
    text: &'static str,
}

macro_rules! name {
    ($name:literal) => {
        Name { json: concat!(",\"", $name, "\":"), text: concat!(" ", $name, "=") }
    };
}
use name;

struct Line<'a> {
    out: &'a mut Vec<u8>,
    is_json: bool,
}

impl Line<'_> {
    fn put(&mut self, text: &str) {
        self.out.extend_from_slice(text.as_bytes());
    }

    fn name(&mut self, name: Name) {
        self.put(if self.is_json { name.json } else { name.text });
    }

    fn number(&mut self, name: Name, number: u64) {
        self.name(name);
        decimal::write(self.out, number, 1);
    }

    /// One that needs no quotes among people, and no escapes.
    fn word(&mut self, name: Name, word: &[u8]) {
        self.name(name);
        self.quoted(self.is_json, |out| out.extend_from_slice(word));
    }

    /// Anything that a client wrote.
    fn text(&mut self, name: Name, text: &[u8]) {
        self.name(name);
        let is_word = || !text.is_empty() && text.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'"');
        self.quoted(self.is_json || !is_word(), |out| escape(out, text));
    }

    fn quoted(&mut self, quoted: bool, write: impl FnOnce(&mut Vec<u8>)) {
        if quoted {
            self.out.push(b'"');
        }
        write(self.out);
        if quoted {
            self.out.push(b'"');
        }
    }
}

/// What a client wrote must not look like a line's or a field's end: quotes, backslashes and everything that
/// is not plain text is escaped, as JSON does it.
fn escape(out: &mut Vec<u8>, text: &[u8]) {
    if text.iter().all(|byte| matches!(byte, b' '..=b'~') && *byte != b'"' && *byte != b'\\') {
        return out.extend_from_slice(text);
    }
    for character in String::from_utf8_lossy(text).chars() {
        match character {
            '"' | '\\' => out.extend([b'\\', character as u8]),
            _ if character.is_control() || matches!(character, '\u{2028}' | '\u{2029}') => {
                out.extend_from_slice(format!("\\u{:04x}", u32::from(character)).as_bytes());
            }
            _ => out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
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

thread_local! {
    /// The second that the text is of, up to its milliseconds.
    static SECOND: RefCell<(u64, String)> = const { RefCell::new((u64::MAX, String::new())) };
}

/// A time as RFC 3339 writes it, in UTC, to the millisecond.
fn time(out: &mut Vec<u8>, time: SystemTime) {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    SECOND.with_borrow_mut(|(second, text)| {
        if *second != since.as_secs() {
            (*second, *text) = (since.as_secs(), date_and_time(since));
        }
        out.extend_from_slice(text.as_bytes());
    });
    decimal::write(out, since.subsec_millis().into(), 3);
    out.push(b'Z');
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
            let mut text = Vec::new();
            time(&mut text, UNIX_EPOCH + Duration::from_millis(milliseconds));
            assert_eq!(text, expected.as_bytes());
        }
    }
}
