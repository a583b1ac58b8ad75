//! From a request's fields and what is on offer to the head of the answer, and to what of the body it takes: a pure
//! decision, the same for assets in memory and for stored bodies.

use std::ops::Range;
use std::time::SystemTime;

use bytes::Bytes;
use http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_SECURITY_POLICY,
    CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, LAST_MODIFIED, RANGE, VARY,
    X_CONTENT_TYPE_OPTIONS,
};
use http::{Method, Response, StatusCode};

use crate::conditional::{Validators, Verdict, evaluate, range_counts};
use crate::negotiate::{Coding, choose};
use crate::range::{Ranges, parse};

/// Parts boundaries are random, so that no body can contain one on purpose.
const BOUNDARY_BYTES: usize = 16;
/// The most raw bytes that are made and thrown away for the sake of a range, where a body is stored as gzip: some
/// seconds of one processor, less than proxies wait for.
pub(crate) const MAX_SKIP_BYTES: u64 = 1 << 30;
/// The most that is made and thrown away between the ranges of one request.
const MAX_GAP_BYTES: u64 = 1 << 20;

/// A file as it can be had.
#[derive(Debug)]
pub(crate) struct Offer<'a> {
    /// Names the raw bytes; other codings get a tag of their own made from it. Without quotes.
    pub(crate) tag: &'a str,
    pub(crate) modified: Option<SystemTime>,
    pub(crate) content_type: &'a str,
    pub(crate) cache_control: &'static str,
    /// Raw bytes.
    pub(crate) size: u64,
    /// The codings that are ready besides identity, the best first, and the size of each.
    pub(crate) coded: &'a [(Coding, u64)],
    /// Whether any raw byte can be read without those before it.
    pub(crate) seekable: bool,
    /// Whether a browser that shows it as a page is to run nothing of it, as it comes from whoever may upload.
    pub(crate) sandboxed: bool,
}

/// What of the body belongs to the answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Selection {
    /// Nothing: HEAD, 304, 412, 416.
    Nothing,
    /// All of it in this coding.
    Whole(Coding),
    /// Pieces of the raw bytes, ascending, with what stands between them.
    Pieces(Vec<Piece>),
}

/// A part of an answer's body.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// A delimiter of multipart/byteranges.
    Text(Bytes),
    /// These of the raw bytes.
    Span(Range<u64>),
}

impl Piece {
    pub(crate) fn length(&self) -> u64 {
        match self {
            Self::Text(text) => text.len() as u64,
            Self::Span(span) => span.end - span.start,
        }
    }
}

/// Answers a GET or HEAD.
///
/// Ranges are ranges of the raw bytes, whatever the client accepts: the same bytes whichever way the body is stored.
pub(crate) fn answer(method: &Method, headers: &HeaderMap, offer: &Offer) -> (Response<()>, Selection) {
    let ranged = *method == Method::GET && headers.contains_key(RANGE);
    let identity = validators(offer, Coding::Identity);
    let ranges = match headers.get(RANGE).map(HeaderValue::to_str) {
        Some(Ok(field)) if ranged && range_counts(headers, &identity) => parse(field, offer.size),
        _ => Ranges::Ignored,
    };
    let ranges = match ranges {
        // What would cost more than it is worth may be ignored (RFC 9110 section 14.2).
        Ranges::Satisfiable(ranges) if !offer.seekable && !is_near(&ranges) => Ranges::Ignored,
        ranges => ranges,
    };
    let present: Vec<Coding> = offer.coded.iter().map(|(coding, _)| *coding).collect();
    let coding = if ranges == Ranges::Ignored { choose(headers, &present) } else { Coding::Identity };
    let current = validators(offer, coding);

    let mut head = Response::new(());
    describe(head.headers_mut(), offer, &current);
    match evaluate(headers, &current) {
        Verdict::NotModified => {
            *head.status_mut() = StatusCode::NOT_MODIFIED;
            return (head, Selection::Nothing);
        }
        Verdict::Failed => return (refusal(StatusCode::PRECONDITION_FAILED), Selection::Nothing),
        Verdict::Proceed => {}
    }
    set(head.headers_mut(), CONTENT_TYPE, offer.content_type);
    match ranges {
        Ranges::Unsatisfiable => {
            let mut head = refusal(StatusCode::RANGE_NOT_SATISFIABLE);
            set(head.headers_mut(), CONTENT_RANGE, &format!("bytes */{}", offer.size));
            (head, Selection::Nothing)
        }
        Ranges::Satisfiable(ranges) => partial(head, offer, ranges),
        Ranges::Ignored => {
            if let Some(name) = coding.name() {
                set(head.headers_mut(), CONTENT_ENCODING, name);
            }
            let size =
                offer.coded.iter().find(|(ready, _)| *ready == coding).map_or(offer.size, |(_, size)| *size);
            head.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(size));
            let selection =
                if *method == Method::HEAD { Selection::Nothing } else { Selection::Whole(coding) };
            (head, selection)
        }
    }
}

/// Whether ranges can be reached from the start without throwing too much away.
fn is_near(ranges: &[Range<u64>]) -> bool {
    let gaps: u64 = ranges.windows(2).map(|pair| pair[1].start - pair[0].end).sum();
    ranges.first().is_none_or(|first| first.start <= MAX_SKIP_BYTES) && gaps <= MAX_GAP_BYTES
}

/// Fields that a 200 has and a 304 repeats (RFC 9110 section 15.4.5).
fn describe(headers: &mut HeaderMap, offer: &Offer, current: &Validators) {
    set(headers, ETAG, &current.tag);
    if let Some(modified) = offer.modified {
        set(headers, LAST_MODIFIED, &httpdate::fmt_http_date(modified));
    }
    if !offer.coded.is_empty() {
        set(headers, VARY, "Accept-Encoding");
    }
    set(headers, CACHE_CONTROL, offer.cache_control);
    set(headers, ACCEPT_RANGES, "bytes");
    set(headers, X_CONTENT_TYPE_OPTIONS, "nosniff");
    // Browsers show no PDF in a sandbox, and what is in one runs in their viewer, of no origin, in any case.
    if offer.sandboxed && !is_pdf(offer.content_type) {
        set(headers, CONTENT_SECURITY_POLICY, "sandbox");
    }
}

fn is_pdf(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default();
    essence.trim().eq_ignore_ascii_case("application/pdf")
}

/// The head of an answer that has no file, and must not live long.
fn refusal(status: StatusCode) -> Response<()> {
    let mut head = Response::new(());
    *head.status_mut() = status;
    set(head.headers_mut(), CACHE_CONTROL, "no-store");
    set(head.headers_mut(), ACCEPT_RANGES, "bytes");
    head.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(0));
    head
}

fn partial(mut head: Response<()>, offer: &Offer, ranges: Vec<Range<u64>>) -> (Response<()>, Selection) {
    *head.status_mut() = StatusCode::PARTIAL_CONTENT;
    let pieces = match &ranges[..] {
        [only] => {
            set(head.headers_mut(), CONTENT_RANGE, &content_range(only, offer.size));
            vec![Piece::Span(only.clone())]
        }
        several => {
            let boundary: String =
                (0..BOUNDARY_BYTES).map(|_| format!("{:02x}", rand::random::<u8>())).collect();
            set(head.headers_mut(), CONTENT_TYPE, &format!("multipart/byteranges; boundary={boundary}"));
            multipart(several, offer, &boundary)
        }
    };
    let length: u64 = pieces.iter().map(Piece::length).sum();
    head.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
    (head, Selection::Pieces(pieces))
}

/// RFC 9110 section 14.6.
fn multipart(ranges: &[Range<u64>], offer: &Offer, boundary: &str) -> Vec<Piece> {
    let mut pieces = Vec::with_capacity(ranges.len() * 2 + 1);
    for (number, range) in ranges.iter().enumerate() {
        let break_before = if number == 0 { "" } else { "\r\n" };
        let (content_type, place) = (offer.content_type, content_range(range, offer.size));
        let text = format!(
            "{break_before}--{boundary}\r\nContent-Type: {content_type}\r\nContent-Range: {place}\r\n\r\n"
        );
        pieces.push(Piece::Text(text.into()));
        pieces.push(Piece::Span(range.clone()));
    }
    pieces.push(Piece::Text(format!("\r\n--{boundary}--\r\n").into()));
    pieces
}

fn content_range(range: &Range<u64>, size: u64) -> String {
    format!("bytes {}-{}/{size}", range.start, range.end - 1)
}

fn validators(offer: &Offer, coding: Coding) -> Validators {
    let tag = match coding.name() {
        None => format!("\"{}\"", offer.tag),
        Some(name) => format!("\"{}-{name}\"", offer.tag),
    };
    Validators { tag, modified: offer.modified }
}

/// Our own values are valid; a stored content type that is none is left out.
fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests;
