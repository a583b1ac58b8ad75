//! One line, written without a detour: a request's share of it is as long as the rest of its way through us.

use std::time::Duration;

use http::Version;
use tokio::time::Instant;

use super::time;
use crate::clock;
use crate::decimal;
use crate::exchange::Exchange;
use crate::head::Known;

/// Writes the line of an exchange that has ended now, as JSON or for people, behind what `out` has, without its end.
pub(super) fn write(out: &mut Vec<u8>, exchange: &Exchange, is_json: bool, now: Instant) {
    let (key, upstream) = (exchange.key.borrow(), exchange.upstream.borrow());
    let (head, asked) = (&exchange.head, &exchange.asked);
    let mut line = Line { out, is_json };
    // The first, which stands for itself among people.
    line.put(if is_json { "{\"time\":\"" } else { "" });
    time::precise(line.out, clock::wall(now));
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
    line.time(name!("duration_us"), Some(now - exchange.started));
    line.time(name!("head_us"), exchange.head_took.get());
    line.time(name!("upstream_connect_us"), asked.connect.get());
    line.time(name!("upstream_first_byte_us"), asked.first_byte.get());
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
    line.word(name!("trace_id"), exchange.trace.id());
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

    /// In microseconds, if it is known.
    fn time(&mut self, name: Name, time: Option<Duration>) {
        if let Some(time) = time {
            self.number(name, u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
        }
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
