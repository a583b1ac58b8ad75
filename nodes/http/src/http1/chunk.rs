//! The line before each chunk: its size and its extensions (RFC 9112 section 7.1).

use super::grammar::TOKEN;
use super::rule::Rule;

/// The longest line: extensions are hardly ever used, except to make a server work for nothing.
const MAX_LINE_BYTES: usize = 256;
/// 60 bits of size: no body is longer, and nothing can overflow.
const MAX_DIGITS: usize = 15;

/// What a look at the start of a chunk has shown.
pub(super) enum Line {
    Incomplete,
    Complete { length: usize, size: u64 },
}

#[derive(Clone, Copy)]
enum Place {
    Size,
    /// Behind a semicolon.
    NameStart,
    Name,
    /// Behind an equals sign.
    ValueStart,
    Value,
    Quoted,
    QuotedPair,
    /// Behind a closing quote.
    Closed,
    Lf,
}

/// Reads a size line from the start of `bytes`. Blanks around size and extensions, which the RFC would have a
/// recipient tolerate, are refused.
pub(super) fn size_line(bytes: &[u8]) -> Result<Line, Rule> {
    let mut size = 0_u64;
    let mut digits = 0;
    let mut place = Place::Size;
    for (at, &byte) in bytes.iter().enumerate().take(MAX_LINE_BYTES) {
        place = match (place, byte) {
            (Place::Size, _) if byte.is_ascii_hexdigit() && digits < MAX_DIGITS => {
                digits += 1;
                size = size << 4 | u64::from((byte as char).to_digit(16).unwrap_or(0));
                Place::Size
            }
            (Place::Size, b';') if digits > 0 => Place::NameStart,
            (Place::Size, b'\r') if digits > 0 => Place::Lf,
            (Place::Size, b'\n') if digits > 0 => return Err(Rule::BareLf),
            (Place::Size, _) => return Err(Rule::BadChunkSize),
            (Place::NameStart | Place::Name, _) if TOKEN.has(byte) => Place::Name,
            (Place::Name, b'=') => Place::ValueStart,
            (Place::ValueStart, b'"') => Place::Quoted,
            (Place::ValueStart | Place::Value, _) if TOKEN.has(byte) => Place::Value,
            (Place::Name | Place::Value | Place::Closed, b';') => Place::NameStart,
            (Place::Name | Place::Value | Place::Closed, b'\r') => Place::Lf,
            (Place::Quoted, b'"') => Place::Closed,
            (Place::Quoted, b'\\') => Place::QuotedPair,
            (Place::Quoted | Place::QuotedPair, b'\t' | b' '..=b'~' | 0x80..) => Place::Quoted,
            (Place::Lf, b'\n') => return Ok(Line::Complete { length: at + 1, size }),
            (Place::Lf, _) => return Err(Rule::BareCr),
            _ => return Err(Rule::BadChunkExtension),
        };
    }
    if bytes.len() < MAX_LINE_BYTES { Ok(Line::Incomplete) } else { Err(Rule::BadChunkExtension) }
}
