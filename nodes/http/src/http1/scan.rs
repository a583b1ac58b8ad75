//! Reads the head of a message, or a trailer section, and remembers where it stopped (RFC 9112 sections 2 to 6).
//!
//! Each rule is decided at the first byte that breaks it, so that a verdict depends on the bytes alone, never on how they
//! were cut on the way. What is sound goes into the compact head, line by line.

use std::ops::Range;

use http::uri::{Authority, Uri};
use http::{Method, StatusCode, Version};

use super::grammar::{PATH, QUERY, TOKEN, VALUE, is_host, trimmed};
use super::rule::Rule;
use crate::decimal;
use crate::head::{Fields, Known, MAX_NAME_BYTES, RequestHead, ResponseHead, line_bytes};
use crate::reserved;

/// How a message goes on after its head (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// So many bytes; most often none.
    Fixed(u64),
    Chunked,
    /// All that comes until the connection ends. Answers only.
    UntilEnd,
}

/// The most of a section that is read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) bytes: usize,
    pub(crate) fields: usize,
}

/// A section on its way. All positions count from its first byte.
#[derive(Debug)]
pub(crate) struct Scan {
    /// How many bytes have been read.
    at: usize,
    place: Place,
    /// Where the element that is being read begins.
    start: usize,
    /// Where the name of the field that is being read ends.
    name_end: usize,
    count: usize,
    section: Section,
    fields: Fields,
    http_10: bool,
    hosts: u8,
    length: Option<u64>,
    chunked: bool,
}

#[derive(Debug)]
enum Section {
    Request { method: Method, target: Range<usize>, form: Form },
    Response { status: u16 },
    Trailers,
}

/// The forms of a target (RFC 9112 section 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// A path, or `*`.
    Origin,
    /// A whole URL.
    Absolute,
    /// Of CONNECT.
    Authority,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    /// Before the request line. One empty line is passed over (RFC 9112 section 2.2).
    Start,
    EmptyLineLf,
    Method,
    Path,
    Query,
    /// The version of a request line.
    Version,
    /// The version of a status line, and the blank behind it.
    StatusVersion,
    Status,
    Reason,
    FirstLineLf,
    LineStart,
    Name,
    Value,
    ValueLf,
    EndLf,
}

/// What `http::Uri` can hold.
const MAX_TARGET_BYTES: usize = u16::MAX as usize - 1;
/// More names in `Connection` only make work.
const MAX_CONNECTION_NAMES: usize = 32;
const VERSION: &[u8; 8] = b"HTTP/1.1";

impl Scan {
    pub(crate) fn request() -> Self {
        let request = Section::Request { method: Method::GET, target: 0..0, form: Form::Origin };
        Self::new(Place::Start, request)
    }

    pub(crate) fn response() -> Self {
        Self::new(Place::StatusVersion, Section::Response { status: 0 })
    }

    pub(crate) fn trailers() -> Self {
        Self::new(Place::LineStart, Section::Trailers)
    }

    fn new(place: Place, section: Section) -> Self {
        Self {
            at: 0,
            place,
            start: 0,
            name_end: 0,
            count: 0,
            section,
            fields: Fields::new(),
            http_10: false,
            hosts: 0,
            length: None,
            chunked: false,
        }
    }

    /// Reads on in `bytes`, of which the first that it knows must come again. Returns the length of the section once it
    /// is whole.
    pub(crate) fn advance(&mut self, bytes: &[u8], bounds: Bounds) -> Result<Option<usize>, Rule> {
        let readable = &bytes[..bytes.len().min(bounds.bytes)];
        while let Some(&byte) = readable.get(self.at) {
            self.place = match self.place {
                Place::Name => {
                    self.at += TOKEN.run(&readable[self.at..]);
                    let Some(&byte) = readable.get(self.at) else { break };
                    self.after_name(byte)?
                }
                Place::Value => {
                    self.at += VALUE.run(&readable[self.at..]);
                    let Some(&byte) = readable.get(self.at) else { break };
                    self.after_value(byte)?
                }
                Place::ValueLf => self.end_of_line(byte, readable)?,
                Place::LineStart => self.line_start(byte, bounds.fields)?,
                Place::EndLf if byte == b'\n' => return Ok(Some(self.at + 1)),
                Place::EndLf => return Err(Rule::BareCr),
                Place::Start | Place::EmptyLineLf | Place::Method => self.before_target(byte, readable)?,
                Place::Path | Place::Query => self.target(byte, readable)?,
                Place::Version => self.request_version(byte)?,
                Place::StatusVersion => self.status_version(byte)?,
                Place::Status | Place::Reason => self.status(byte)?,
                Place::FirstLineLf if byte == b'\n' => Place::LineStart,
                Place::FirstLineLf => return Err(Rule::BareCr),
            };
            self.at += 1;
        }
        if self.at >= bounds.bytes { Err(Rule::HeadTooLarge) } else { Ok(None) }
    }

    fn before_target(&mut self, byte: u8, bytes: &[u8]) -> Result<Place, Rule> {
        match (self.place, byte) {
            (Place::Start, b'\r') if self.at == 0 => Ok(Place::EmptyLineLf),
            (Place::Start, _) if TOKEN.has(byte) => {
                self.start = self.at;
                Ok(Place::Method)
            }
            (Place::EmptyLineLf, b'\n') => Ok(Place::Start),
            (Place::EmptyLineLf, _) => Err(Rule::BareCr),
            (Place::Method, _) if TOKEN.has(byte) => Ok(Place::Method),
            (Place::Method, b' ') => {
                let name = &bytes[self.start..self.at];
                if let Section::Request { method, .. } = &mut self.section {
                    *method = Method::from_bytes(name).map_err(|_| Rule::BadMethod)?;
                }
                self.start = self.at + 1;
                Ok(Place::Path)
            }
            (_, b'\n') => Err(Rule::BareLf),
            _ => Err(Rule::BadMethod),
        }
    }

    fn target(&mut self, byte: u8, bytes: &[u8]) -> Result<Place, Rule> {
        match (self.place, byte) {
            (_, b' ') => {
                let whole = self.start..self.at;
                if whole.len() > MAX_TARGET_BYTES {
                    return Err(Rule::HeadTooLarge);
                }
                if let Section::Request { method, target, form } = &mut self.section {
                    *form = target_form(method, &bytes[whole.clone()])?;
                    *target = whole.clone();
                }
                self.fields.lead(&bytes[whole]);
                self.start = self.at + 1;
                Ok(Place::Version)
            }
            (Place::Path, b'?') => Ok(Place::Query),
            (Place::Path, _) if PATH.has(byte) => {
                self.at += PATH.run(&bytes[self.at..]) - 1;
                Ok(Place::Path)
            }
            (Place::Query, _) if QUERY.has(byte) => {
                self.at += QUERY.run(&bytes[self.at..]) - 1;
                Ok(Place::Query)
            }
            (_, b'\n') => Err(Rule::BareLf),
            (_, b'\r') => Err(Rule::BadVersion),
            _ => Err(Rule::BadTarget),
        }
    }

    fn request_version(&mut self, byte: u8) -> Result<Place, Rule> {
        match (self.at - self.start, byte) {
            (8, b'\r') => Ok(Place::FirstLineLf),
            (_, b'\n') => Err(Rule::BareLf),
            _ => self.version(byte).map(|()| Place::Version),
        }
    }

    fn status_version(&mut self, byte: u8) -> Result<Place, Rule> {
        if self.at < VERSION.len() {
            return self.version(byte).map(|()| Place::StatusVersion);
        }
        self.start = self.at + 1;
        if byte == b' ' { Ok(Place::Status) } else { Err(Rule::BadVersion) }
    }

    fn version(&mut self, byte: u8) -> Result<(), Rule> {
        match (self.at - self.start, byte) {
            (5 | 7, b'0'..=b'9') => {
                self.http_10 = byte == b'0';
                let known = byte == b'1' || (self.at - self.start == 7 && byte == b'0');
                if known { Ok(()) } else { Err(Rule::UnsupportedVersion) }
            }
            (at, _) if VERSION.get(at) == Some(&byte) => Ok(()),
            _ => Err(Rule::BadVersion),
        }
    }

    /// Three digits and perhaps a reason. The blank before an empty one is left out by many.
    fn status(&mut self, byte: u8) -> Result<Place, Rule> {
        let Section::Response { status } = &mut self.section else { return Err(Rule::BadVersion) };
        match (self.place, self.at - self.start, byte) {
            (Place::Status, 0..=2, b'0'..=b'9') => {
                *status = *status * 10 + u16::from(byte - b'0');
                Ok(Place::Status)
            }
            (Place::Status, 3, b' ') => Ok(Place::Reason),
            (Place::Status, 3, b'\r') | (Place::Reason, _, b'\r') => Ok(Place::FirstLineLf),
            (Place::Reason, ..) if VALUE.has(byte) => Ok(Place::Reason),
            (_, _, b'\n') => Err(Rule::BareLf),
            _ => Err(Rule::BadStatus),
        }
    }

    fn line_start(&mut self, byte: u8, max_fields: usize) -> Result<Place, Rule> {
        match byte {
            b'\r' => Ok(Place::EndLf),
            b' ' | b'\t' => Err(Rule::ObsFold),
            _ if TOKEN.has(byte) => {
                self.start = self.at;
                self.count += 1;
                if self.count > max_fields { Err(Rule::TooManyHeaders) } else { Ok(Place::Name) }
            }
            b'\n' => Err(Rule::BareLf),
            _ => Err(Rule::BadFieldName),
        }
    }

    fn after_name(&mut self, byte: u8) -> Result<Place, Rule> {
        match byte {
            b':' if self.at - self.start <= MAX_NAME_BYTES => {
                self.name_end = self.at;
                Ok(Place::Value)
            }
            b':' => Err(Rule::HeadTooLarge),
            b' ' | b'\t' => Err(Rule::SpaceBeforeColon),
            b'\n' => Err(Rule::BareLf),
            _ => Err(Rule::BadFieldName),
        }
    }

    fn after_value(&self, byte: u8) -> Result<Place, Rule> {
        match byte {
            b'\r' => Ok(Place::ValueLf),
            b'\n' => Err(Rule::BareLf),
            _ => Err(Rule::BadFieldValue),
        }
    }

    fn end_of_line(&mut self, byte: u8, bytes: &[u8]) -> Result<Place, Rule> {
        if byte != b'\n' {
            return Err(Rule::BareCr);
        }
        let name = &bytes[self.start..self.name_end];
        let value = trimmed(&bytes[self.name_end + 1..self.at - 1]);
        let known = Known::of(name);
        if let Section::Trailers = self.section {
            if !may_trail(name) {
                return Err(Rule::BadTrailer);
            }
        } else {
            self.check(known, value)?;
        }
        // Nearly all lines come as they are sent on: one copy.
        let line = &bytes[self.start..=self.at];
        if bytes[self.name_end + 1] == b' ' && line.len() == line_bytes(name, value) {
            self.fields.push_line(known, line, name.len());
        } else {
            self.fields.push_known(known, name, value);
        }
        Ok(Place::LineStart)
    }

    /// What frames or routes the message.
    fn check(&mut self, known: Known, value: &[u8]) -> Result<(), Rule> {
        match known {
            Known::Host if matches!(self.section, Section::Request { .. }) => {
                self.hosts += 1;
                match self.hosts {
                    1 if is_host(value) => Ok(()),
                    1 => Err(Rule::BadHost),
                    _ => Err(Rule::HostTwice),
                }
            }
            Known::Connection if names_framing(value) || lists_too_many(value) => Err(Rule::BadConnection),
            Known::ContentLength if self.length.is_some() => Err(Rule::ContentLengthTwice),
            Known::ContentLength => {
                self.length = Some(decimal::read(value).ok_or(Rule::BadContentLength)?);
                self.check_framing()
            }
            Known::TransferEncoding => {
                if self.chunked || self.http_10 || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Rule::BadTransferEncoding);
                }
                self.chunked = true;
                self.check_framing()
            }
            _ => Ok(()),
        }
    }

    fn check_framing(&self) -> Result<(), Rule> {
        let connect = matches!(&self.section, Section::Request { form: Form::Authority, .. });
        match (self.length, self.chunked) {
            (Some(_), true) => Err(Rule::LengthAndEncoding),
            (None, false) | (Some(0), false) => Ok(()),
            _ if connect => Err(Rule::ConnectWithBody),
            _ => Ok(()),
        }
    }

    /// The request whose head is whole, in origin form whatever its form was, and how it goes on.
    pub(crate) fn into_request(self) -> Result<(RequestHead, Content), Rule> {
        if self.hosts == 0 && !self.http_10 {
            return Err(Rule::MissingHost);
        }
        let Section::Request { method, target, form } = self.section else { return Err(Rule::BadMethod) };
        let version = if self.http_10 { Version::HTTP_10 } else { Version::HTTP_11 };
        let content = if self.chunked { Content::Chunked } else { Content::Fixed(self.length.unwrap_or(0)) };
        let head = RequestHead::from_fields(method, version, self.fields, target.len());
        let head = if form == Form::Absolute { in_origin_form(&head)? } else { head };
        Ok((head, content))
    }

    /// The answer whose head is whole, and how it goes on if it is one to a request with this method.
    pub(crate) fn into_response(self, method: &Method) -> Result<(ResponseHead, Content), Rule> {
        let Section::Response { status } = self.section else { return Err(Rule::BadStatus) };
        let status =
            StatusCode::from_u16(status).ok().filter(|code| code.as_u16() < 600).ok_or(Rule::BadStatus)?;
        let bodiless = status.is_informational()
            || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
            || *method == Method::HEAD;
        let content = match (bodiless, self.chunked, self.length) {
            (true, ..) => Content::Fixed(0),
            (_, true, _) => Content::Chunked,
            (.., Some(length)) => Content::Fixed(length),
            _ => Content::UntilEnd,
        };
        let version = if self.http_10 { Version::HTTP_10 } else { Version::HTTP_11 };
        Ok((ResponseHead { status, version, fields: self.fields }, content))
    }

    /// The trailers, which are whole.
    pub(crate) fn into_trailers(self) -> Fields {
        self.fields
    }
}

/// To remove one of these on the way would be to change where a message ends, or whose it is.
fn names_framing(connection: &[u8]) -> bool {
    let framing =
        |name: &[u8]| matches!(Known::of(name), Known::Host | Known::ContentLength | Known::TransferEncoding);
    connection.split(|byte| *byte == b',').any(|name| framing(name.trim_ascii()))
}

fn lists_too_many(connection: &[u8]) -> bool {
    connection.split(|byte| *byte == b',').count() > MAX_CONNECTION_NAMES
}

fn target_form(method: &Method, target: &[u8]) -> Result<Form, Rule> {
    match target {
        _ if *method == Method::CONNECT => {
            let named = Authority::try_from(target).is_ok_and(|authority| authority.port_u16().is_some());
            if named { Ok(Form::Authority) } else { Err(Rule::BadTarget) }
        }
        [b'/', ..] => Ok(Form::Origin),
        b"*" if *method == Method::OPTIONS => Ok(Form::Origin),
        _ => {
            let sound = Uri::try_from(target).is_ok_and(|uri| {
                matches!(uri.scheme_str(), Some("http" | "https"))
                    && uri.authority().is_some_and(|authority| is_host(authority.as_str().as_bytes()))
            });
            if sound { Ok(Form::Absolute) } else { Err(Rule::BadTarget) }
        }
    }
}

/// The authority of a whole URL counts, not `Host` (RFC 9112 section 3.2.2).
fn in_origin_form(head: &RequestHead) -> Result<RequestHead, Rule> {
    let uri = Uri::try_from(head.target()).map_err(|_| Rule::BadTarget)?;
    let authority = uri.authority().ok_or(Rule::BadTarget)?.as_str();
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    let after_authority = head.target().split("://").nth(1).unwrap_or_default().strip_prefix(authority);
    let target = match target {
        // A URL without a path asks OPTIONS of the server as a whole (RFC 9112 section 3.2.4).
        _ if head.method == Method::OPTIONS && after_authority == Some("") => "*".to_owned(),
        _ if target.starts_with('?') => format!("/{target}"),
        _ => target.to_owned(),
    };
    let mut origin = RequestHead::new(head.method.clone(), head.version, target.as_bytes());
    for field in head.fields.iter() {
        origin.fields.push_copy(field);
    }
    origin.set_host(authority.as_bytes());
    Ok(origin)
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
    let ours = matches!(
        Known::of(name),
        Known::XRequestId | Known::TraceParent | Known::TraceState | Known::Respelt | Known::HopByHop
    );
    !ours
        && !NOT_IN_TRAILERS.iter().any(|other| name.eq_ignore_ascii_case(other))
        && !reserved::tells_the_way(name)
}
