//! Writes heads and the lines of chunks: what the receiver is to go by, after what the head says by itself.

use std::cell::RefCell;
use std::time::{Duration, UNIX_EPOCH};

use http::{HeaderMap, Method, StatusCode, Version};

use crate::clock;
use crate::decimal;
use crate::head::{Known, RequestHead, ResponseHead};

/// How a receiver is told where a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// There is no body, and none could be.
    Bodiless,
    /// Content-Length.
    Exact(u64),
    Chunked,
    /// By the end of the connection. Answers only.
    UntilEnd,
}

/// What is said of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Persistence {
    /// Nothing: it stays, as HTTP/1.1 has it.
    Stays,
    /// It stays although the client speaks HTTP/1.0.
    KeptAlive,
    Closes,
}

/// Behind the data of a chunk.
pub(crate) const CHUNK_END: &[u8] = b"\r\n";
/// Behind the data of the last chunk, where no trailers follow.
pub(crate) const CHUNK_AND_BODY_END: &[u8] = b"\r\n0\r\n\r\n";
/// Behind all chunks, where no trailers follow.
pub(crate) const BODY_END: &[u8] = b"0\r\n\r\n";
/// Asks for a body that the client has kept back (RFC 9110 section 10.1.1).
pub(crate) const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// An answer's head. Content-Length stays where there is no body to count: of HEAD, and of 304.
pub(crate) fn response_head(
    out: &mut Vec<u8>,
    head: &ResponseHead,
    version: Version,
    framing: Framing,
    persistence: Persistence,
) {
    status_line(out, head.status, version);
    let may_have_length = framing == Framing::Bodiless && head.status != StatusCode::NO_CONTENT;
    head.fields.write(out, |known| match known {
        Known::Connection | Known::TransferEncoding | Known::HopByHop => false,
        Known::ContentLength => may_have_length,
        // A switch that was granted has a writer of its own.
        Known::Upgrade => head.status == StatusCode::UPGRADE_REQUIRED,
        _ => true,
    });
    if head.fields.known(Known::Date).next().is_none() {
        date(out);
    }
    match persistence {
        Persistence::Stays if head.status == StatusCode::UPGRADE_REQUIRED => {
            out.extend_from_slice(b"connection: upgrade\r\n");
        }
        Persistence::Stays => {}
        Persistence::KeptAlive => out.extend_from_slice(b"connection: keep-alive\r\n"),
        Persistence::Closes => out.extend_from_slice(b"connection: close\r\n"),
    }
    frame(out, framing);
}

/// The head of an answer that is not the final one, or of a switch of protocols.
pub(crate) fn interim_head(out: &mut Vec<u8>, head: &ResponseHead) {
    status_line(out, head.status, Version::HTTP_11);
    let switches = head.status == StatusCode::SWITCHING_PROTOCOLS;
    head.fields.write(out, |known| match known {
        Known::Connection | Known::Upgrade => switches,
        Known::ContentLength | Known::TransferEncoding | Known::HopByHop => false,
        _ => true,
    });
    out.extend_from_slice(b"\r\n");
}

/// A request's head, which must be in origin form. Where it has no body, its method tells whether that has to be said.
pub(crate) fn request_head(out: &mut Vec<u8>, head: &RequestHead, framing: Framing) {
    out.extend_from_slice(head.method.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(head.target_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    head.fields.write(out, |known| !matches!(known, Known::ContentLength | Known::TransferEncoding));
    let expects_body = [Method::POST, Method::PUT, Method::PATCH].contains(&head.method)
        || head.fields.known(Known::ContentLength).next().is_some();
    match framing {
        Framing::Exact(0) if !expects_body => frame(out, Framing::Bodiless),
        framing => frame(out, framing),
    }
}

/// The line before a chunk's data.
pub(crate) fn chunk_size(out: &mut Vec<u8>, size: usize) {
    let digits = (usize::BITS - size.leading_zeros()).div_ceil(4).max(1);
    for digit in (0..digits).rev() {
        out.push(b"0123456789abcdef"[size >> (4 * digit) & 15]);
    }
    out.extend_from_slice(b"\r\n");
}

/// The end of a chunked body, with its trailers.
pub(crate) fn trailers(out: &mut Vec<u8>, trailers: &HeaderMap) {
    out.extend_from_slice(b"0\r\n");
    for (name, value) in trailers {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            out.extend_from_slice(part);
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// The last field, and the end of the head.
fn frame(out: &mut Vec<u8>, framing: Framing) {
    match framing {
        Framing::Exact(length) => {
            out.extend_from_slice(b"content-length: ");
            decimal::write(out, length, 1);
            out.extend_from_slice(b"\r\n\r\n");
        }
        Framing::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n\r\n"),
        Framing::Bodiless | Framing::UntilEnd => out.extend_from_slice(b"\r\n"),
    }
}

fn status_line(out: &mut Vec<u8>, status: StatusCode, version: Version) {
    let version: &[u8] = if version == Version::HTTP_10 { b"HTTP/1.0 " } else { b"HTTP/1.1 " };
    out.extend_from_slice(version);
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(status.canonical_reason().unwrap_or("Unknown").as_bytes());
    out.extend_from_slice(b"\r\n");
}

thread_local! {
    /// The second that the text is of.
    static DATE: RefCell<(u64, String)> = const { RefCell::new((0, String::new())) };
}

/// `Date` (RFC 9110 section 6.6.1), written once a second.
fn date(out: &mut Vec<u8>) {
    let now = clock::wall(clock::recent()).duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    DATE.with_borrow_mut(|(second, text)| {
        if *second != now {
            let time = UNIX_EPOCH + Duration::from_secs(now);
            (*second, *text) = (now, format!("date: {}\r\n", httpdate::fmt_http_date(time)));
        }
        out.extend_from_slice(text.as_bytes());
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn numbers_are_written_as_they_are_read() {
        for number in [0, 1, 9, 10, 15, 16, 255, 256, 4095, 65_536, usize::MAX] {
            assert_eq!(text(|out| chunk_size(out, number)), format!("{number:x}\r\n"));
        }
    }

    #[test]
    fn the_engine_alone_says_where_a_body_ends_and_whether_the_connection_does() {
        let mut head = ResponseHead::new(StatusCode::OK);
        for (name, value) in [
            ("Content-Length", "7"),
            ("transfer-encoding", "x"),
            ("connection", "x"),
            ("keep-alive", "x"),
            ("a", "b"),
        ] {
            head.fields.push(name.as_bytes(), value.as_bytes());
        }
        let written = |head: &ResponseHead, framing, persistence| {
            let text = text(|out| response_head(out, head, Version::HTTP_11, framing, persistence));
            text.lines().filter(|line| !line.starts_with("date: ")).collect::<Vec<_>>().join("|")
        };
        let rows = [
            (Framing::Exact(3), Persistence::Stays, "a: b|content-length: 3|"),
            (Framing::Chunked, Persistence::Stays, "a: b|transfer-encoding: chunked|"),
            (Framing::UntilEnd, Persistence::Closes, "a: b|connection: close|"),
            (Framing::Bodiless, Persistence::KeptAlive, "Content-Length: 7|a: b|connection: keep-alive|"),
        ];
        for (framing, persistence, expected) in rows {
            assert_eq!(written(&head, framing, persistence), format!("HTTP/1.1 200 OK|{expected}"));
        }
        head.status = StatusCode::NO_CONTENT;
        assert_eq!(written(&head, Framing::Bodiless, Persistence::Stays), "HTTP/1.1 204 No Content|a: b|");
    }

    #[test]
    fn a_request_without_a_body_says_so_only_where_one_is_expected() {
        let written = |method: Method, framing| {
            let head = RequestHead::new(method, Version::HTTP_11, b"/");
            text(|out| request_head(out, &head, framing))
        };
        assert_eq!(written(Method::GET, Framing::Exact(0)), "GET / HTTP/1.1\r\n\r\n");
        assert_eq!(written(Method::POST, Framing::Exact(0)), "POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n");
        assert_eq!(
            written(Method::GET, Framing::Chunked),
            "GET / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n"
        );
    }
}
