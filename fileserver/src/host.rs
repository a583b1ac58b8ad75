//! The virtual host of a request: what its client asked for, without port, in lower case.

use std::fmt;

use http::header::HOST;
use http::request::Parts;

/// The longest name that DNS allows, in bytes (RFC 1035 section 2.3.4).
const HOST_MAX_BYTES: usize = 253;

/// A virtual host, e.g. `files.example.com`, `127.0.0.1` or `[::1]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct VirtualHost(String);

impl VirtualHost {
    /// The host of a request, from its target where that has one (HTTP/2, absolute form), else from its `Host`.
    /// `None` where there is none, or none that could be a name.
    pub(crate) fn of(request: &Parts) -> Option<Self> {
        match request.uri.authority() {
            Some(authority) => Self::parse(authority.as_str()),
            None => Self::parse(request.headers.get(HOST)?.to_str().ok()?),
        }
    }

    /// Reads `name`, `name:port`, or the same with an IPv6 address in brackets.
    pub(crate) fn parse(authority: &str) -> Option<Self> {
        let name = match authority.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
            _ => authority,
        };
        let valid = match name.strip_prefix('[') {
            Some(rest) => {
                rest.strip_suffix(']')?.bytes().all(|b| b.is_ascii_hexdigit() || matches!(b, b':' | b'.'))
            }
            None => name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_')),
        };
        let name = name.strip_suffix('.').unwrap_or(name);
        (valid && !name.is_empty() && name.len() <= HOST_MAX_BYTES).then(|| Self(name.to_ascii_lowercase()))
    }

    /// The name.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a pattern covers this host: the name itself, `*.example.com` for what is below `example.com`, `*` for all.
    pub(crate) fn matches(&self, pattern: &str) -> bool {
        match pattern.strip_prefix('*') {
            Some("") => true,
            Some(suffix) => {
                self.0.len() > suffix.len() && suffix.starts_with('.') && self.0.ends_with(suffix)
            }
            None => self.0 == pattern,
        }
    }
}

impl fmt::Display for VirtualHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_lose_port_case_and_final_dot() {
        let table = [
            ("Example.COM", Some("example.com")),
            ("example.com:8080", Some("example.com")),
            ("example.com.", Some("example.com")),
            ("[::1]:8080", Some("[::1]")),
            ("[::1]", Some("[::1]")),
            ("127.0.0.1:80", Some("127.0.0.1")),
            ("", None),
            (":80", None),
            ("[::1", None),
            ("a/b", None),
            ("user@host", None),
            ("a b", None),
            ("..%2f", None),
        ];
        for (authority, host) in table {
            assert_eq!(VirtualHost::parse(authority).as_ref().map(VirtualHost::as_str), host, "{authority}");
        }
        assert_eq!(VirtualHost::parse(&"a".repeat(254)), None);
    }

    #[test]
    fn patterns_cover_names() {
        let host = VirtualHost::parse("a.example.com").unwrap();
        assert!(host.matches("a.example.com") && host.matches("*.example.com") && host.matches("*"));
        assert!(
            !host.matches("example.com") && !host.matches("*.ample.com") && !host.matches("*a.example.com")
        );
    }
}
