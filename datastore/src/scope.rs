//! Where an upload may go: host patterns and path prefixes, and the shape of hosts and paths.

use crate::store::{StoreError, StoreResult};

/// The longest host name that DNS allows, in bytes (RFC 1035 section 2.3.4).
const MAX_HOST_BYTES: usize = 253;
/// The longest path of a site or an asset, in bytes.
const MAX_PATH_BYTES: usize = 4096;

/// Whether a pattern (`example.com`, `*.example.com` for all that is below it, `*`) covers a host in lower case.
pub(crate) fn host_matches(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix('*') {
        Some(suffix) => host.len() > suffix.len() && host.ends_with(suffix),
        None => pattern == host,
    }
}

/// Whether a normalised path is the prefix itself or below it: `/files` covers `/files/a` but not `/filesystem`.
pub(crate) fn path_matches(prefix: &str, path: &str) -> bool {
    path.strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || prefix.ends_with('/') || rest.starts_with('/'))
}

/// A host pattern in lower case, or why it is none.
pub(crate) fn parse_pattern(pattern: &str) -> StoreResult<String> {
    let pattern = pattern.to_ascii_lowercase();
    let host = match pattern.strip_prefix('*') {
        Some("") => return Ok(pattern),
        Some(suffix) => suffix.strip_prefix('.'),
        None => Some(pattern.as_str()),
    };
    if host.is_some_and(is_host) {
        Ok(pattern)
    } else {
        Err(StoreError::Invalid(format!(
            "{pattern:?} is no host pattern: write example.com, *.example.com or *"
        )))
    }
}

/// Refuses what no fileserver sends: a host that isn't in lower case without port, or a path that isn't normalised.
pub(crate) fn check_place(host: &str, path: &str) -> StoreResult<()> {
    if !is_host(host) {
        return Err(StoreError::Invalid(format!("{host:?} is no host in lower case without port")));
    }
    check_path(path)
}

/// Refuses a path that isn't absolute and normalised.
pub(crate) fn check_path(path: &str) -> StoreResult<()> {
    let fault = if path.len() > MAX_PATH_BYTES {
        format!("a path has more than {MAX_PATH_BYTES} bytes")
    } else if !path.starts_with('/') {
        format!("the path {path:?} doesn't begin with a slash")
    } else if path.chars().any(char::is_control) || path.split('/').any(|s| s == "." || s == "..") {
        format!("the path {path:?} isn't normalised")
    } else {
        return Ok(());
    };
    Err(StoreError::Invalid(fault))
}

/// A name or an address, IPv6 in brackets.
fn is_host(host: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.:[]".contains(&b);
    (1..=MAX_HOST_BYTES).contains(&host.len()) && !host.starts_with('.') && host.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_cover_hosts() {
        let table = [
            ("example.com", "example.com", true),
            ("example.com", "a.example.com", false),
            ("*.example.com", "a.example.com", true),
            ("*.example.com", "a.b.example.com", true),
            ("*.example.com", "example.com", false),
            ("*.example.com", ".example.com", false),
            ("*.example.com", "badexample.com", false),
            ("*", "example.com", true),
            ("*", "[::1]", true),
        ];
        for (pattern, host, covered) in table {
            assert_eq!(host_matches(pattern, host), covered, "{pattern} {host}");
        }
    }

    #[test]
    fn prefixes_end_at_a_segment() {
        let table = [
            ("/", "/a", true),
            ("/files/", "/files/a", true),
            ("/files/", "/files", false),
            ("/files", "/files", true),
            ("/files", "/files/a", true),
            ("/files", "/filesystem", false),
            ("/files", "/a/files", false),
        ];
        for (prefix, path, covered) in table {
            assert_eq!(path_matches(prefix, path), covered, "{prefix} {path}");
        }
    }

    #[test]
    fn patterns_are_checked_and_lowered() {
        for (pattern, lowered) in
            [("Example.COM", "example.com"), ("*.Example.com", "*.example.com"), ("*", "*")]
        {
            assert_eq!(parse_pattern(pattern).unwrap(), lowered);
        }
        let long = "a".repeat(254);
        for pattern in
            ["", "*.", "*..", "*example.com", "**", "a.*.com", "exa mple.com", "example.com/x", &long]
        {
            assert!(matches!(parse_pattern(pattern), Err(StoreError::Invalid(_))), "{pattern}");
        }
    }

    #[test]
    fn places_are_normalised() {
        let long = format!("/{}", "a".repeat(4096));
        for path in ["/", "/a b/é", "/..a/b.."] {
            check_place("[::1]", path).unwrap();
        }
        for path in ["", "a", "/a/../b", "/.", "/a\0", "/a\n", &long] {
            assert!(matches!(check_place("example.com", path), Err(StoreError::Invalid(_))), "{path:?}");
        }
        for host in ["", "Example.com", "example.com/", "*"] {
            assert!(matches!(check_place(host, "/"), Err(StoreError::Invalid(_))), "{host}");
        }
    }
}
