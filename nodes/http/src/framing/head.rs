//! Reads a request head, or a trailer section, byte by byte and remembers where it stopped (RFC 9112 sections
//! 2 to 6).

use std::ops::Range;

use http::uri::{Authority, Uri};

use super::rule::Rule;
use crate::reserved;

/// How a message goes on after its head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// So many bytes; most often none.
    Fixed(u64),
    Chunked,
}

/// A head or trailer section on its way. All positions count from its first byte.
#[derive(Debug)]
pub(super) struct Scan {
    /// How many bytes have been read.
    at: usize,
    place: Place,
    /// Where the element that is being read begins.
    start: usize,
    /// Where the name of the field that is being read ends.
    name_end: usize,
    fields: usize,
    trailers: bool,
    method: Method,
    http_10: bool,
    hosts: u8,
    length: Option<u64>,
    chunked: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    Connect,
    Options,
    Other,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    /// Before the request line. One empty line is passed over (RFC 9112 section 2.2).
    Start,
    EmptyLineLf,
    Method,
    Path,
    Query,
    Version,
    RequestLineLf,
    LineStart,
    Name,
    Value,
    ValueLf,
    EndLf,
}

const VERSION: &[u8; 8] = b"HTTP/1.1";

impl Scan {
    pub(super) fn head() -> Self {
        Self {
            at: 0,
            place: Place::Start,
            start: 0,
            name_end: 0,
            fields: 0,
            trailers: false,
            method: Method::Other,
            http_10: false,
            hosts: 0,
            length: None,
            chunked: false,
        }
    }

    pub(super) fn trailers() -> Self {
        Self { place: Place::LineStart, trailers: true, ..Self::head() }
    }

    /// Reads on in `bytes`, of which the first `self.at` are known. Returns the length of the section once it
    /// is whole.
    pub(super) fn advance(
        &mut self,
        bytes: &[u8],
        max_bytes: usize,
        max_fields: usize,
    ) -> Result<Option<usize>, Rule> {
        let readable = &bytes[..bytes.len().min(max_bytes)];
        while let Some(&byte) = readable.get(self.at) {
            if let Place::EndLf = self.place {
                return if byte == b'\n' { Ok(Some(self.at + 1)) } else { Err(Rule::BareCr) };
            }
            self.place = match self.place {
                Place::Start | Place::EmptyLineLf | Place::Method => self.before_target(byte, readable)?,
                Place::Path | Place::Query => self.target(byte, readable)?,
                Place::Version | Place::RequestLineLf => self.version(byte)?,
                _ => self.field_line(byte, readable, max_fields)?,
            };
            self.at += 1;
        }
        if self.at == max_bytes { Err(Rule::HeadTooLarge) } else { Ok(None) }
    }

    fn before_target(&mut self, byte: u8, bytes: &[u8]) -> Result<Place, Rule> {
        match (self.place, byte) {
            (Place::Start, b'\r') if self.at == 0 => Ok(Place::EmptyLineLf),
            (Place::Start, _) if is_token(byte) => {
                self.start = self.at;
                Ok(Place::Method)
            }
            (Place::EmptyLineLf, b'\n') => Ok(Place::Start),
            (Place::EmptyLineLf, _) => Err(Rule::BareCr),
            (Place::Method, _) if is_token(byte) => Ok(Place::Method),
            (Place::Method, b' ') => {
                self.method = match &bytes[self.start..self.at] {
                    b"CONNECT" => Method::Connect,
                    b"OPTIONS" => Method::Options,
                    _ => Method::Other,
                };
                self.start = self.at + 1;
                Ok(Place::Path)
            }
            (_, b'\n') => Err(Rule::BareLf),
            _ => Err(Rule::BadMethod),
        }
    }

    fn target(&mut self, byte: u8, bytes: &[u8]) -> Result<Place, Rule> {
        // The same characters that `http::Uri` takes: neither more, since the engine would refuse them
        // silently, nor less.
        match (self.place, byte) {
            (_, b' ') => {
                self.check_target(&bytes[self.start..self.at])?;
                self.start = self.at + 1;
                Ok(Place::Version)
            }
            (Place::Path, b'?') => Ok(Place::Query),
            (Place::Path, 0x21..=0x22 | 0x24..=0x3B | 0x3D | 0x40..=0x5F | 0x61..=0x7E) => Ok(Place::Path),
            (Place::Query, 0x21 | 0x24..=0x3B | 0x3D | 0x3F..=0x7E) => Ok(Place::Query),
            (_, b'\n') => Err(Rule::BareLf),
            (_, b'\r') => Err(Rule::BadVersion),
            _ => Err(Rule::BadTarget),
        }
    }

    /// The four forms of RFC 9112 section 3.2.
    fn check_target(&self, target: &[u8]) -> Result<(), Rule> {
        let sound = match (self.method, target) {
            (Method::Connect, _) => {
                Authority::try_from(target).is_ok_and(|authority| authority.port_u16().is_some())
            }
            (_, [b'/', ..]) | (Method::Options, b"*") => true,
            _ => Uri::try_from(target).is_ok_and(|uri| {
                matches!(uri.scheme_str(), Some("http" | "https"))
                    && uri.authority().is_some_and(|authority| is_host(authority.as_str().as_bytes()))
            }),
        };
        if sound { Ok(()) } else { Err(Rule::BadTarget) }
    }

    fn version(&mut self, byte: u8) -> Result<Place, Rule> {
        if let Place::RequestLineLf = self.place {
            return if byte == b'\n' { Ok(Place::LineStart) } else { Err(Rule::BareCr) };
        }
        match (self.at - self.start, byte) {
            (5 | 7, b'0'..=b'9') => {
                self.http_10 = byte == b'0';
                let known = byte == b'1' || (self.at - self.start == 7 && byte == b'0');
                if known { Ok(Place::Version) } else { Err(Rule::UnsupportedVersion) }
            }
            (at, _) if VERSION.get(at) == Some(&byte) => Ok(Place::Version),
            (8, b'\r') => Ok(Place::RequestLineLf),
            (_, b'\n') => Err(Rule::BareLf),
            _ => Err(Rule::BadVersion),
        }
    }

    fn field_line(&mut self, byte: u8, bytes: &[u8], max_fields: usize) -> Result<Place, Rule> {
        match (self.place, byte) {
            (Place::LineStart, b'\r') => Ok(Place::EndLf),
            (Place::LineStart, b' ' | b'\t') => Err(Rule::ObsFold),
            (Place::LineStart, _) if is_token(byte) => {
                self.start = self.at;
                self.fields += 1;
                if self.fields > max_fields { Err(Rule::TooManyHeaders) } else { Ok(Place::Name) }
            }
            (Place::Name, _) if is_token(byte) => Ok(Place::Name),
            (Place::Name, b':') => {
                self.name_end = self.at;
                Ok(Place::Value)
            }
            (Place::Name, b' ' | b'\t') => Err(Rule::SpaceBeforeColon),
            (Place::Value, b'\t' | b' '..=b'~' | 0x80..) => Ok(Place::Value),
            (Place::Value, b'\r') => Ok(Place::ValueLf),
            (Place::ValueLf, b'\n') => {
                self.field(&bytes[self.start..self.name_end], &bytes[self.value()])?;
                Ok(Place::LineStart)
            }
            (Place::ValueLf, _) => Err(Rule::BareCr),
            (_, b'\n') => Err(Rule::BareLf),
            (Place::Value, _) => Err(Rule::BadFieldValue),
            _ => Err(Rule::BadFieldName),
        }
    }

    /// The value of the field whose CR has just been read.
    fn value(&self) -> Range<usize> {
        self.name_end + 1..self.at - 1
    }

    fn field(&mut self, name: &[u8], value: &[u8]) -> Result<(), Rule> {
        if self.trailers {
            return if may_trail(name) { Ok(()) } else { Err(Rule::BadTrailer) };
        }
        let value = value.trim_ascii();
        if name.eq_ignore_ascii_case(b"host") {
            self.hosts += 1;
            match self.hosts {
                1 if is_host(value) => Ok(()),
                1 => Err(Rule::BadHost),
                _ => Err(Rule::HostTwice),
            }
        } else if name.eq_ignore_ascii_case(b"content-length") {
            if self.length.is_some() {
                return Err(Rule::ContentLengthTwice);
            }
            self.length = Some(decimal(value).ok_or(Rule::BadContentLength)?);
            self.check_framing()
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if self.chunked || self.http_10 || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Rule::BadTransferEncoding);
            }
            self.chunked = true;
            self.check_framing()
        } else {
            Ok(())
        }
    }

    fn check_framing(&self) -> Result<(), Rule> {
        match (self.length, self.chunked) {
            (Some(_), true) => Err(Rule::LengthAndEncoding),
            (None, false) | (Some(0), false) => Ok(()),
            _ if self.method == Method::Connect => Err(Rule::ConnectWithBody),
            _ => Ok(()),
        }
    }

    /// How the message goes on after the head, which is whole.
    pub(super) fn content(&self) -> Result<Content, Rule> {
        if self.hosts == 0 && !self.http_10 {
            return Err(Rule::MissingHost);
        }
        Ok(if self.chunked { Content::Chunked } else { Content::Fixed(self.length.unwrap_or(0)) })
    }
}

/// What must not come after the body, because it would have to be known before (RFC 9110 section 6.5.1).
const NOT_IN_TRAILERS: [&[u8]; 13] = [
    b"authorization",
    b"connection",
    b"content-encoding",
    b"content-length",
    b"content-range",
    b"content-type",
    b"cookie",
    b"expect",
    b"host",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
];

/// Whether a field may come after the body: not what frames or routes a message, nor what tells of its way.
pub(crate) fn may_trail(name: &[u8]) -> bool {
    !NOT_IN_TRAILERS.iter().any(|other| name.eq_ignore_ascii_case(other)) && !reserved::tells_the_way(name)
}

/// A character of a token (RFC 9110 section 5.6.2).
pub(super) fn is_token(byte: u8) -> bool {
    TOKEN[usize::from(byte)]
}

const TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 128 {
        table[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let punctuation = b"!#$%&'*+-.^_`|~";
    let mut at = 0;
    while at < punctuation.len() {
        table[punctuation[at] as usize] = true;
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

/// At most 18 digits: no body is longer, and nothing can overflow.
pub(crate) fn decimal(digits: &[u8]) -> Option<u64> {
    if !(1..=18).contains(&digits.len()) {
        return None;
    }
    digits
        .iter()
        .try_fold(0_u64, |value, digit| digit.is_ascii_digit().then(|| value * 10 + u64::from(digit - b'0')))
}
