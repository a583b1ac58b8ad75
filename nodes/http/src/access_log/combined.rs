//! One line in the "combined" format: `IP - - [TIME] "REQUEST" STATUS BYTES "REFERER" "USER AGENT"`.

use http::Version;
use http::header::{REFERER, USER_AGENT};
use tokio::time::Instant;

use super::time;
use crate::clock;
use crate::decimal;
use crate::exchange::Exchange;

/// What stands for a field that isn't there.
const NOTHING: &[u8] = b"-";

/// Writes the line of an exchange that has ended now behind what `out` has, without its end.
pub(super) fn write(out: &mut Vec<u8>, exchange: &Exchange, now: Instant) {
    let head = &exchange.head;
    out.extend_from_slice(exchange.client_text().as_bytes());
    out.extend_from_slice(b" - - [");
    time::common(out, clock::wall(now));
    out.extend_from_slice(b"] \"");
    if head.is_unknown() {
        out.extend_from_slice(NOTHING);
    } else {
        escape(out, head.method.as_str().as_bytes());
        out.push(b' ');
        escape(out, head.target_bytes());
        out.push(b' ');
        out.extend_from_slice(protocol(head.version));
    }
    out.extend_from_slice(b"\" ");
    decimal::write(out, exchange.status.get().as_u16().into(), 3);
    out.push(b' ');
    decimal::write(out, exchange.bytes_out.get(), 1);
    for name in [&REFERER, &USER_AGENT] {
        out.extend_from_slice(b" \"");
        escape(out, head.fields.get(name).unwrap_or(NOTHING));
        out.push(b'"');
    }
}

/// As nginx does it: quotes, backslashes and all that is not plain text in hexadecimal digits.
fn escape(out: &mut Vec<u8>, text: &[u8]) {
    for &byte in text {
        match byte {
            b'"' | b'\\' | ..b' ' | 0x7f.. => {
                let digit = |bits: u8| b"0123456789ABCDEF"[usize::from(bits)];
                out.extend([b'\\', b'x', digit(byte >> 4), digit(byte & 15)]);
            }
            _ => out.push(byte),
        }
    }
}

fn protocol(version: Version) -> &'static [u8] {
    match version {
        Version::HTTP_10 => b"HTTP/1.0",
        Version::HTTP_2 => b"HTTP/2.0",
        _ => b"HTTP/1.1",
    }
}
