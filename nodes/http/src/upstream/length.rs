//! Whether an answer says in one way only where its body ends (RFC 9112 section 6.3).

use http::header::{CONTENT_LENGTH, HeaderMap, TRANSFER_ENCODING};

/// What is wrong with the fields that frame an answer's body.
///
/// The engine has decided by them already, but passes them on as they came: to it, Transfer-Encoding outdoes
/// Content-Length, and a body of an unknown coding ends with its connection. Somebody behind us may decide
/// otherwise, so whoever answers so is not relayed.
pub(super) fn fault(headers: &HeaderMap) -> Option<&'static str> {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let mut encodings = headers.get_all(TRANSFER_ENCODING).iter();
    match (lengths.next(), encodings.next()) {
        (None, None) => None,
        (Some(_), Some(_)) => Some("it has both Content-Length and Transfer-Encoding"),
        (Some(length), None) => {
            let digits = !length.is_empty() && length.as_bytes().iter().all(u8::is_ascii_digit);
            (!digits || lengths.next().is_some()).then_some("its Content-Length is not one number")
        }
        (None, Some(encoding)) => {
            let chunked = encoding.as_bytes().eq_ignore_ascii_case(b"chunked");
            (!chunked || encodings.next().is_some())
                .then_some("its Transfer-Encoding is not just \"chunked\"")
        }
    }
}
