//! A request's path, decoded once and safe to use as a name: nothing in it can climb, hide a slash or end a string.

use std::fmt;

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

/// The longest path of a request, in bytes, before and therefore after decoding.
pub(crate) const PATH_MAX_BYTES: usize = 4096;

/// What is encoded again when a path becomes part of a URL (RFC 3986 section 3.3, and `%` itself).
const URL_PATH: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'[')
    .add(b'\\')
    .add(b']')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

/// An absolute path: it begins with `/`, is percent-decoded, and is valid UTF-8.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct FilePath(String);

/// Why a path is refused. The client's fault, each of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PathError {
    /// Over [`PATH_MAX_BYTES`].
    #[error("the path is longer than {PATH_MAX_BYTES} bytes")]
    TooLong,
    /// It does not begin with `/`.
    #[error("the path is not absolute")]
    Relative,
    /// `%` without two hex digits.
    #[error("the path has a broken percent-encoding")]
    Encoding,
    /// Not UTF-8 after decoding.
    #[error("the path is not UTF-8")]
    NotUtf8,
    /// `%2F`: a slash that would split differently before and after decoding.
    #[error("the path has an encoded slash")]
    EncodedSlash,
    /// `\`, encoded or not.
    #[error("the path has a backslash")]
    Backslash,
    /// NUL, CR, LF and the like, encoded or not.
    #[error("the path has a control character")]
    Control,
    /// A segment `.` or `..`.
    #[error("the path has a `.` or `..` segment")]
    Dots,
}

impl FilePath {
    /// Decodes the path of a request target (no query) once, and checks it.
    pub(crate) fn parse(raw: &str) -> Result<Self, PathError> {
        if raw.len() > PATH_MAX_BYTES {
            return Err(PathError::TooLong);
        }
        if !raw.starts_with('/') {
            return Err(PathError::Relative);
        }
        let path = String::from_utf8(decode(raw.as_bytes())?).map_err(|_| PathError::NotUtf8)?;
        if path.contains('\\') {
            return Err(PathError::Backslash);
        }
        if path.chars().any(char::is_control) {
            return Err(PathError::Control);
        }
        if path.split('/').any(|segment| segment == "." || segment == "..") {
            return Err(PathError::Dots);
        }
        Ok(Self(path))
    }

    /// The decoded path.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The path as it stands in a URL.
    pub(crate) fn to_url(&self) -> String {
        utf8_percent_encode(&self.0, URL_PATH).to_string()
    }
}

impl fmt::Display for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn decode(raw: &[u8]) -> Result<Vec<u8>, PathError> {
    let mut decoded = Vec::with_capacity(raw.len());
    let mut rest = raw.iter();
    while let Some(&byte) = rest.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|&d| char::from(d).to_digit(16));
        let (Some(high), Some(low)) = (digit(), digit()) else { return Err(PathError::Encoding) };
        match u8::try_from(high * 16 + low).map_err(|_| PathError::Encoding)? {
            b'/' => return Err(PathError::EncodedSlash),
            byte => decoded.push(byte),
        }
    }
    Ok(decoded)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn row_path_with_dots_slashes_nul_or_ten_thousand_characters() {
        let long = format!("/{}", "a".repeat(9_999));
        let table = [
            ("/../etc/passwd", PathError::Dots),
            ("/a/..", PathError::Dots),
            ("/a/./b", PathError::Dots),
            ("/%2e%2e/etc/passwd", PathError::Dots),
            ("/.%2E/etc/passwd", PathError::Dots),
            ("/a%2fb", PathError::EncodedSlash),
            ("/..%2Fetc", PathError::EncodedSlash),
            ("/a\\..\\b", PathError::Backslash),
            ("/a%5c..%5Cb", PathError::Backslash),
            ("/a%00b", PathError::Control),
            ("/a%0d%0aSet-Cookie:x", PathError::Control),
            ("/a%7f", PathError::Control),
            ("/a%c2%85", PathError::Control),
            ("/a%ff", PathError::NotUtf8),
            ("/a%c0%ae%c0%ae", PathError::NotUtf8),
            ("/a%", PathError::Encoding),
            ("/a%2", PathError::Encoding),
            ("/a%zz", PathError::Encoding),
            ("a", PathError::Relative),
            ("", PathError::Relative),
            ("*", PathError::Relative),
            (&long, PathError::TooLong),
        ];
        for (raw, error) in table {
            assert_eq!(FilePath::parse(raw), Err(error), "{raw}");
        }
    }

    #[test]
    fn paths_are_decoded_exactly_once() {
        let table = [
            ("/", "/"),
            ("/a%20b", "/a b"),
            ("/%C3%A9t%c3%a9", "/été"),
            ("/%252e%252e/x", "/%2e%2e/x"),
            ("/..a/b..", "/..a/b.."),
            ("/...", "/..."),
        ];
        for (raw, path) in table {
            assert_eq!(FilePath::parse(raw).unwrap().as_str(), path);
        }
    }

    proptest! {
        #[test]
        fn what_is_accepted_survives_a_round_trip_and_cannot_climb(raw in "/[ -~é]{0,40}") {
            if let Ok(path) = FilePath::parse(&raw) {
                prop_assert_eq!(FilePath::parse(&path.to_url()), Ok(path.clone()));
                prop_assert!(path.as_str().split('/').all(|s| s != ".." && s != "."));
                prop_assert!(!path.as_str().chars().any(|c| c.is_control() || c == '\\'));
            }
        }
    }
}
