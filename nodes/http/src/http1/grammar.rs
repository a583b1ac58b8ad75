//! Which characters may stand where (RFC 9110 section 5, RFC 9112 sections 2 to 5, RFC 3986).

/// Where a character may stand, as bits of [`CLASS`].
#[derive(Clone, Copy)]
pub(crate) struct Class(u8);

/// A token (RFC 9110 section 5.6.2): methods, names of fields.
pub(crate) const TOKEN: Class = Class(1);
/// A field's value (RFC 9110 section 5.5): no control characters but the tabulator.
pub(crate) const VALUE: Class = Class(2);
/// A target before its query. The same characters that `http::Uri` takes.
pub(crate) const PATH: Class = Class(4);
/// A target's query, likewise.
pub(crate) const QUERY: Class = Class(8);

impl Class {
    pub(crate) fn has(self, byte: u8) -> bool {
        CLASS[usize::from(byte)] & self.0 != 0
    }

    /// How many of the first bytes are of this class.
    pub(crate) fn run(self, bytes: &[u8]) -> usize {
        bytes.iter().position(|byte| !self.has(*byte)).unwrap_or(bytes.len())
    }
}

const CLASS: [u8; 256] = {
    let mut table = [0; 256];
    let mut at = 0;
    while at < 256 {
        let byte = at as u8;
        if byte.is_ascii_alphanumeric() {
            table[at] |= TOKEN.0;
        }
        if matches!(byte, b'\t' | b' '..=b'~' | 0x80..) {
            table[at] |= VALUE.0;
        }
        if matches!(byte, 0x21..=0x22 | 0x24..=0x3B | 0x3D | 0x40..=0x5F | 0x61..=0x7E) {
            table[at] |= PATH.0;
        }
        if matches!(byte, 0x21 | 0x24..=0x3B | 0x3D | 0x3F..=0x7E) {
            table[at] |= QUERY.0;
        }
        at += 1;
    }
    let punctuation = b"!#$%&'*+-.^_`|~";
    let mut at = 0;
    while at < punctuation.len() {
        table[punctuation[at] as usize] |= TOKEN.0;
        at += 1;
    }
    table
};

/// Host names, addresses and ports (RFC 9110 section 7.2), by their characters. Percent-encoding and the
/// stranger sub-delimiters are left out: no name that is in use has them, and routing compares names as they
/// are written.
pub(crate) fn is_host(value: &[u8]) -> bool {
    let (host, port) = match value {
        [b'[', rest @ ..] => match rest.iter().position(|byte| *byte == b']') {
            Some(end) => {
                let inside = rest[..end].iter().all(|byte| byte.is_ascii_hexdigit() || b":.".contains(byte));
                if !inside || end == 0 {
                    return false;
                }
                match &rest[end + 1..] {
                    [] => return true,
                    [b':', port @ ..] => return is_port(port),
                    _ => return false,
                }
            }
            None => return false,
        },
        _ => match value.iter().position(|byte| *byte == b':') {
            Some(colon) => (&value[..colon], &value[colon + 1..]),
            None => (value, &b""[..]),
        },
    };
    !host.is_empty()
        && host.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(byte))
        && is_port(port)
}

fn is_port(port: &[u8]) -> bool {
    port.len() <= 5 && port.iter().all(u8::is_ascii_digit)
}

/// Without the blanks around it (RFC 9110 section 5.6.3).
pub(crate) fn trimmed(value: &[u8]) -> &[u8] {
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let start = value.iter().position(|byte| !blank(byte)).unwrap_or(value.len());
    let end = value.iter().rposition(|byte| !blank(byte)).map_or(start, |last| last + 1);
    &value[start..end]
}
