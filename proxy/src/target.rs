//! Which paths are passed on: those in which every server sees the same segments.
//!
//! Handlers match the path as it was sent, and a member gets it as it was sent. A member that then resolves dot segments,
//! or takes a backslash for a slash, would serve another path than the one whose handler chose it: `/public/..%2fadmin`
//! by the rules of `/public/`. So such paths are refused, whoever the member is.
//!
//! `%2F` alone stays as it is: for us it is a character of its segment, here, in patterns and in keys. A member that
//! takes it for a slash can't be led upwards by it, since dot segments are looked for on both sides of it.

use thiserror::Error;

/// Why a path is refused. Always the client's doing.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum TargetError {
    /// `.` or `..` between two slashes, encoded or not, perhaps with parameters (`..;x`).
    #[error("the path has a segment \".\" or \"..\": resolve it before you send the request")]
    Dots,
    /// `\`, encoded or not.
    #[error("the path has a backslash, which some servers take for a slash")]
    Backslash,
    /// NUL, CR, LF and the like, encoded or not.
    #[error("the path has a control character")]
    Control,
    /// `%` without two hexadecimal digits.
    #[error("the path has a \"%\" that is not followed by two hexadecimal digits: write it as %25")]
    Encoding,
}

/// What has been seen of a segment.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Segment {
    /// So many dots and nothing else.
    Dots(usize),
    /// A name.
    Name,
}

/// Checks a path, percent-encoded as it was sent.
///
/// # Errors
/// See [`TargetError`].
pub fn check(path: &str) -> Result<(), TargetError> {
    let mut segment = Segment::Dots(0);
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        let byte = if byte == b'%' { encoded(&mut bytes)? } else { byte };
        segment = match (segment, byte) {
            (_, 0..=0x1F | 0x7F) => return Err(TargetError::Control),
            (_, b'\\') => return Err(TargetError::Backslash),
            (Segment::Dots(1 | 2), b'/' | b';') => return Err(TargetError::Dots),
            (_, b'/') => Segment::Dots(0),
            (Segment::Dots(dots), b'.') => Segment::Dots(dots + 1),
            _ => Segment::Name,
        };
    }
    if matches!(segment, Segment::Dots(1 | 2)) { Err(TargetError::Dots) } else { Ok(()) }
}

/// The byte whose `%` has just been read.
fn encoded(bytes: &mut impl Iterator<Item = u8>) -> Result<u8, TargetError> {
    let mut digit = || bytes.next().and_then(|digit| char::from(digit).to_digit(16));
    let (Some(high), Some(low)) = (digit(), digit()) else { return Err(TargetError::Encoding) };
    u8::try_from(high << 4 | low).map_err(|_| TargetError::Encoding)
}

#[cfg(test)]
mod tests {
    use percent_encoding::percent_decode_str;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_servers_read_differently_is_refused() {
        for (refused, paths) in [
            (
                TargetError::Dots,
                &[
                    "/..",
                    "/.",
                    "/../",
                    "/a/../b",
                    "/a/./b",
                    "/a/..",
                    "/%2e%2e/a",
                    "/.%2E/a",
                    "/a/%2e",
                    "/..%2fa",
                    "/a%2F..%2fb",
                    "/a%2f..",
                    "/..;x/a",
                    "/.;",
                    "/%2e%2e%3bx/a",
                    "..",
                    "/a//../b",
                ][..],
            ),
            (TargetError::Backslash, &["/a\\b", "/..\\b", "/a%5cb", "/..%5Cb", "/%5c"]),
            (TargetError::Control, &["/a%00", "/%0d%0ab", "/%1f", "/%7f", "/%09", "/a\u{7f}"]),
            (TargetError::Encoding, &["/%", "/%2", "/%zz", "/%%41", "/a%2/b", "/%u002e", "/%+1"]),
        ] {
            for path in paths {
                assert_eq!(check(path), Err(refused), "{path}");
            }
        }
    }

    #[test]
    fn what_every_server_reads_alike_passes() {
        for path in [
            "*",
            "/",
            "//",
            "/a/b",
            "/...",
            "/..a",
            "/a..",
            "/.well-known/x",
            "/a.b/",
            "/a%2Fb",
            "/%2f",
            "/zo%C3%AB",
            "/%252e",
            "/%ff",
            "/a;b=..",
            "/;..",
            "/a%20b",
            "/{x}|\"^`",
            "/a/....;",
        ] {
            assert_eq!(check(path), Ok(()), "{path}");
        }
    }

    proptest! {
        #[test]
        fn no_decoding_of_what_passes_has_a_dot_segment(path in "(/|%2[fF]|\\.|%2[eE]|a|;|%3b|%5c|%){0,12}") {
            if check(&path).is_ok() {
                let decoded = percent_decode_str(&path).decode_utf8_lossy();
                for segment in decoded.split('/') {
                    let name = segment.split(';').next().unwrap();
                    prop_assert!(name != "." && name != "..", "{}", path);
                }
            }
        }
    }
}
