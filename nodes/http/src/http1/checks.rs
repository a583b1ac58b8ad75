//! What must hold of every head and every body, whatever its bytes are and however they were cut: for the fuzz targets
//! (`nodes/http/fuzz`) and for the tests. Each function panics where it does not hold.

use http::{HeaderMap, Method, Version};

use super::decoder::{Decoder, Found};
use super::write::{self, Framing};
use super::{Bounds, Content, Rule, Scan};
use crate::head::{Fields, Known};

/// Names and values, as they stand.
pub type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// A head as it was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The method, or the status in digits.
    pub start: String,
    /// Path and query of a request; nothing of an answer.
    pub target: String,
    /// Whether the version is HTTP/1.0.
    pub is_http_10: bool,
    /// Names and values.
    pub fields: Pairs,
    /// How many bytes the head has.
    pub length: usize,
    content: Content,
}

/// A body as it was understood: its data, then its trailers and its length in chunks, or the rule that it breaks.
#[derive(Debug, PartialEq, Eq)]
pub struct Read {
    /// All data, or what came before the verdict.
    pub data: Vec<u8>,
    /// The trailers, and how many bytes were the body's; `None` where it is not over.
    pub end: Option<(Pairs, usize)>,
    refused: Option<Rule>,
}

/// What is read of a head or a trailer section at most.
const BOUNDS: Bounds = Bounds { bytes: 4096, fields: 32 };
/// The same of what we have written, which may have a few fields and blanks more.
const WIDER: Bounds = Bounds { bytes: 8192, fields: 40 };

/// Reads a request's head, whole and in pieces that end at `cuts`, which must not decide; writes it as it is sent to an
/// upstream, and reads that. Returns it if it is sound and whole.
pub fn request_head(bytes: &[u8], cuts: &[usize]) -> Option<Head> {
    let whole = read_request(bytes, &[], BOUNDS);
    assert_eq!(
        whole.as_ref().map(told),
        read_request(bytes, cuts, BOUNDS).as_ref().map(told),
        "cut at {cuts:?}"
    );
    let (head, read) = whole.ok()??;
    let framing = match head.content {
        Content::Chunked => Framing::Chunked,
        Content::Fixed(length) => Framing::Exact(length),
        Content::UntilEnd => panic!("a request does not end with its connection"),
    };
    let mut written = Vec::new();
    write::request_head(&mut written, &read, framing);
    let has_host = read.fields.known(Known::Host).next().is_some();
    match read_request(&written, &[], WIDER) {
        Ok(Some((again, _))) => {
            assert_eq!(again.length, written.len(), "{}", written.escape_ascii());
            assert_eq!((&again.start, &again.target), (&head.start, &head.target));
            assert_eq!(unframed(&again.fields), unframed(&head.fields));
            assert_eq!(again.content, head.content, "{}", written.escape_ascii());
        }
        // HTTP/1.0 has requests without Host, which handlers must not pass on as they are.
        Err(Rule::MissingHost) if !has_host && head.is_http_10 => {}
        other => panic!("{} is {other:?}", written.escape_ascii()),
    }
    Some(head)
}

/// The same of an answer to a request with this method.
pub fn response_head(bytes: &[u8], cuts: &[usize], method: &Method) -> Option<Head> {
    let whole = read_response(bytes, &[], method, BOUNDS);
    let cut = read_response(bytes, cuts, method, BOUNDS);
    assert_eq!(whole.as_ref().map(told), cut.as_ref().map(told), "cut at {cuts:?}");
    let (head, read) = whole.ok()??;
    let mut written = Vec::new();
    if read.status.is_informational() {
        write::interim_head(&mut written, &read);
    } else {
        let framing = match head.content {
            Content::Chunked => Framing::Chunked,
            Content::Fixed(0) => Framing::Bodiless,
            Content::Fixed(length) => Framing::Exact(length),
            Content::UntilEnd => Framing::UntilEnd,
        };
        let version = if head.is_http_10 { Version::HTTP_10 } else { Version::HTTP_11 };
        write::response_head(&mut written, &read, version, framing, write::Persistence::Stays);
    }
    match read_response(&written, &[], method, WIDER) {
        Ok(Some((again, _))) => {
            assert_eq!(again.length, written.len(), "{}", written.escape_ascii());
            assert_eq!(again.start, head.start);
            assert_eq!(passed_on(&again.fields), passed_on(&head.fields), "{}", written.escape_ascii());
            let bodiless = head.content == Content::Fixed(0);
            assert!(again.content == head.content || bodiless, "{}", written.escape_ascii());
        }
        // What was chunked for us is told to be so, which HTTP/1.0 can't be.
        Err(Rule::BadTransferEncoding) if head.is_http_10 => {}
        other => panic!("{} is {other:?}", written.escape_ascii()),
    }
    Some(head)
}

/// Reads a chunked body, whole and in pieces; writes it with one chunk, and reads that.
pub fn chunked_body(bytes: &[u8], cuts: &[usize]) -> Read {
    let whole = read_body(bytes, &[], BOUNDS);
    assert_eq!(whole, read_body(bytes, cuts, BOUNDS), "cut at {cuts:?}");
    if let Some((trailers, _)) = &whole.end {
        let mut map = Fields::new();
        trailers.iter().for_each(|(name, value)| map.push(name, value));
        let map: HeaderMap = map.to_map();
        let mut written = Vec::new();
        if !whole.data.is_empty() {
            write::chunk_size(&mut written, whole.data.len());
            written.extend_from_slice(&whole.data);
            written.extend_from_slice(write::CHUNK_END);
        }
        write::trailers(&mut written, &map);
        let again = read_body(&written, &[], WIDER);
        let (kept, length) = again.end.expect("what we write is sound");
        assert_eq!((&again.data, length), (&whole.data, written.len()));
        let mut fields = Fields::new();
        kept.iter().for_each(|(name, value)| fields.push(name, value));
        assert_eq!(fields.to_map(), map);
    }
    whole
}

fn told<T>(read: &Option<(Head, T)>) -> Option<&Head> {
    read.as_ref().map(|(head, _)| head)
}

/// The pieces that end at `cuts`, and then all.
fn ends(bytes: &[u8], cuts: &[usize]) -> Vec<usize> {
    let mut ends: Vec<usize> = cuts.iter().map(|cut| *cut.min(&bytes.len())).collect();
    ends.push(bytes.len());
    ends.sort_unstable();
    ends
}

fn scan(mut scan: Scan, bytes: &[u8], cuts: &[usize], bounds: Bounds) -> Result<Option<(usize, Scan)>, Rule> {
    for end in ends(bytes, cuts) {
        if let Some(length) = scan.advance(&bytes[..end], bounds)? {
            return Ok(Some((length, scan)));
        }
    }
    Ok(None)
}

type Request = Option<(Head, crate::RequestHead)>;
type Response = Option<(Head, crate::ResponseHead)>;

fn read_request(bytes: &[u8], cuts: &[usize], bounds: Bounds) -> Result<Request, Rule> {
    let Some((length, scan)) = scan(Scan::request(), bytes, cuts, bounds)? else { return Ok(None) };
    let (head, content) = scan.into_request()?;
    let read = Head {
        start: head.method().to_string(),
        target: head.target().to_owned(),
        is_http_10: head.version() == Version::HTTP_10,
        fields: pairs(head.fields()),
        length,
        content,
    };
    Ok(Some((read, head)))
}

fn read_response(bytes: &[u8], cuts: &[usize], method: &Method, bounds: Bounds) -> Result<Response, Rule> {
    let Some((length, scan)) = scan(Scan::response(), bytes, cuts, bounds)? else { return Ok(None) };
    let (head, content) = scan.into_response(method)?;
    let read = Head {
        start: head.status().as_str().to_owned(),
        target: String::new(),
        is_http_10: head.version == Version::HTTP_10,
        fields: pairs(head.fields()),
        length,
        content,
    };
    Ok(Some((read, head)))
}

fn read_body(bytes: &[u8], cuts: &[usize], bounds: Bounds) -> Read {
    let mut decoder = Decoder::new(Content::Chunked, bounds);
    let mut read = Read { data: Vec::new(), end: None, refused: None };
    let mut at = 0;
    for end in ends(bytes, cuts) {
        loop {
            let step = match decoder.step(&bytes[at..end]) {
                Ok(step) => step,
                Err(rule) => {
                    read.refused = Some(rule);
                    return read;
                }
            };
            let consumed = step.consumed;
            match step.found {
                Found::Data(range) => {
                    assert_eq!(range.end, consumed, "data is the last of what is consumed");
                    read.data.extend_from_slice(&bytes[at..end][range]);
                }
                Found::End(trailers) => {
                    assert!(decoder.has_ended());
                    let trailers = trailers.map_or_else(Vec::new, |fields| pairs(&fields));
                    read.end = Some((trailers, at + consumed));
                    return read;
                }
                Found::More if consumed == 0 => break,
                Found::More => {}
            }
            at += consumed;
        }
    }
    read
}

fn pairs(fields: &Fields) -> Pairs {
    fields.iter().map(|field| (field.name.to_vec(), field.value.to_vec())).collect()
}

/// The fields that say where a body ends are told by its framing.
fn unframed(fields: &[(Vec<u8>, Vec<u8>)]) -> Vec<&(Vec<u8>, Vec<u8>)> {
    let framing = |name| matches!(Known::of(name), Known::ContentLength | Known::TransferEncoding);
    fields.iter().filter(|(name, _)| !framing(name)).collect()
}

/// The fields of an answer that are its own rather than the connection's.
fn passed_on(fields: &[(Vec<u8>, Vec<u8>)]) -> Vec<&(Vec<u8>, Vec<u8>)> {
    let kept = |name: &[u8]| {
        !matches!(
            Known::of(name),
            Known::Connection
                | Known::TransferEncoding
                | Known::ContentLength
                | Known::HopByHop
                | Known::Upgrade
                | Known::Date
        )
    };
    fields.iter().filter(|(name, _)| kept(name)).collect()
}
