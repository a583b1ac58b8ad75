//! The syntax of handlers: host patterns, path patterns and key templates, read alike by the seed and by proxies.
//!
//! | | forms |
//! | --- | --- |
//! | host | `example.com`, `*.example.com` (one label or more before it), `*` |
//! | path | matchit's: `/room/{room}`, `/img/{name}.png`, `/files/{*rest}`; one capture a segment |
//! | key | text with `{capture}` of the path, `{host}` `{path}` `{client_ip}`, `{header.x}` `{cookie.x}` `{query.x}` `{form.x}`; `{query.x\|form.x}` takes the first that the request has |

use std::cmp::Ordering;
use std::net::{IpAddr, Ipv6Addr};

use thiserror::Error;

/// The longest name of a handler, a pool or a capture.
pub const MAX_NAME_BYTES: usize = 63;
/// The longest host pattern (RFC 1035 section 2.3.4).
pub const MAX_HOST_BYTES: usize = 253;
/// The longest path pattern.
pub const MAX_PATH_BYTES: usize = 1024;
/// The longest key that can be owned, and the longest template of keys.
pub const MAX_KEY_BYTES: usize = 1024;

/// Key names that are not captures of the path, so that no capture may have them.
const BUILT_IN: [&str; 3] = ["host", "path", "client_ip"];

/// Why a text is no pattern, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PatternError {
    /// Not a name.
    #[error(
        "{what} {text:?}: use 1 to {MAX_NAME_BYTES} of a-z, 0-9, '-', '_' and '.', beginning with a letter or digit"
    )]
    Name {
        /// "handler name", "pool".
        what: &'static str,
        /// As given.
        text: String,
    },
    /// Not a host pattern.
    #[error("host {text:?}: {problem}; write \"example.com\", \"*.example.com\" or \"*\"")]
    Host {
        /// As given.
        text: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Not a path pattern.
    #[error("path {text:?}: {problem}; write for example \"/room/{{room}}/{{*rest}}\"")]
    Path {
        /// As given.
        text: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Not a key template.
    #[error("key {text:?}: {problem}")]
    Key {
        /// As given.
        text: String,
        /// What is wrong with it, and what to write instead.
        problem: String,
    },
}

/// Checks the name of a handler or of a pool; `what` is for the error.
pub fn check_name(what: &'static str, text: &str) -> Result<(), PatternError> {
    let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let inner = |c: u8| plain(c) || matches!(c, b'-' | b'_' | b'.');
    let good =
        text.len() <= MAX_NAME_BYTES && text.bytes().next().is_some_and(plain) && text.bytes().all(inner);
    if good { Ok(()) } else { Err(PatternError::Name { what, text: text.into() }) }
}

/// Which hosts a handler is for. Ordered as they are tried: exact hosts, then the longest suffixes, then the rest.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HostPattern {
    /// This host alone, in lower case.
    Exact(String),
    /// Every host that ends with this, which begins with a dot.
    Below(String),
    /// Every host.
    Any,
}

impl HostPattern {
    /// Reads a pattern, in any case.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let fail = |problem| Err(PatternError::Host { text: text.into(), problem });
        let lower = text.to_ascii_lowercase();
        if lower == "*" {
            return Ok(Self::Any);
        }
        let (name, below) = match lower.strip_prefix("*.") {
            Some(rest) => (rest, true),
            None => (lower.as_str(), false),
        };
        if let Some(address) = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            let valid = !below && address.parse::<Ipv6Addr>().is_ok();
            return if valid { Ok(Self::Exact(lower)) } else { fail("that is no IPv6 address") };
        }
        match () {
            () if name.is_empty() => fail("it is empty"),
            () if name.len() > MAX_HOST_BYTES => fail("it is longer than 253 bytes"),
            () if name.contains(':') => {
                fail("leave out scheme and port (an IPv6 address stands in brackets)")
            }
            () if name.contains('*') => fail("a star stands alone as the first label only"),
            () if !name.is_ascii() => fail("write it in its ASCII form (xn--…)"),
            () if !name.split('.').all(is_label) => {
                fail("a label is 1 to 63 of letters, digits, '-' and '_'")
            }
            () if below && name.parse::<IpAddr>().is_ok() => fail("an address has no sub-domains"),
            () if below => Ok(Self::Below(format!(".{name}"))),
            () => Ok(Self::Exact(lower)),
        }
    }

    /// Is this host, in lower case and without port, one of those?
    #[must_use]
    pub fn matches(&self, host: &str) -> bool {
        match self {
            Self::Exact(name) => host == name,
            Self::Below(suffix) => host.len() > suffix.len() && host.ends_with(suffix.as_str()),
            Self::Any => true,
        }
    }
}

impl Ord for HostPattern {
    fn cmp(&self, other: &Self) -> Ordering {
        let rank = |pattern: &Self| match pattern {
            Self::Exact(_) => (0, 0),
            Self::Below(suffix) => (1, MAX_HOST_BYTES.saturating_sub(suffix.len())),
            Self::Any => (2, 0),
        };
        let text = |pattern: &Self| match pattern {
            Self::Exact(text) | Self::Below(text) => text.clone(),
            Self::Any => String::new(),
        };
        rank(self).cmp(&rank(other)).then_with(|| text(self).cmp(&text(other)))
    }
}

impl PartialOrd for HostPattern {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

fn is_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && label.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_'))
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// A path pattern that matchit takes, with the names of its captures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathPattern {
    text: String,
    captures: Vec<String>,
}

impl PathPattern {
    /// Reads a pattern. Whether two of them conflict, matchit says.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let fail = |problem: String| PatternError::Path { text: text.into(), problem };
        if text.len() > MAX_PATH_BYTES {
            return Err(fail(format!("it is longer than {MAX_PATH_BYTES} bytes")));
        }
        let Some(rest) = text.strip_prefix('/') else {
            return Err(fail("it begins with no slash".into()));
        };
        if !text.bytes().all(|c| c.is_ascii_graphic()) || text.contains(['?', '#']) {
            return Err(fail("a path is visible ASCII without '?' and '#'; percent-encode the rest".into()));
        }
        let mut captures = Vec::new();
        let mut segments = rest.split('/').peekable();
        while let Some(segment) = segments.next() {
            let Some(name) = capture(segment).map_err(fail)? else {
                continue;
            };
            let plain = match name.strip_prefix('*') {
                Some(_) if segments.peek().is_some() || segment.len() != name.len() + 2 => {
                    return Err(fail(format!("{{{name}}} must be the whole last segment")));
                }
                Some(plain) => plain,
                None => name,
            };
            check_capture(plain, &captures).map_err(fail)?;
            captures.push(plain.to_owned());
        }
        Ok(Self { text: text.to_owned(), captures })
    }

    /// As matchit takes it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The captures' names, without braces and stars, in their order.
    #[must_use]
    pub fn captures(&self) -> &[String] {
        &self.captures
    }
}

/// What stands in the braces of a segment.
fn capture(segment: &str) -> Result<Option<&str>, String> {
    let Some((before, rest)) = segment.split_once('{') else {
        return if segment.contains('}') { Err("'}' without '{'".into()) } else { Ok(None) };
    };
    let Some((name, after)) = rest.split_once('}') else {
        return Err("'{' without '}'".into());
    };
    if before.contains('}') || name.contains('{') {
        return Err("unbalanced braces (a brace of the path itself is written %7B or %7D)".into());
    }
    if after.contains(['{', '}']) {
        return Err("only one capture stands between two slashes".into());
    }
    Ok(Some(name))
}

fn check_capture(name: &str, others: &[String]) -> Result<(), String> {
    let good = name.len() <= MAX_NAME_BYTES
        && name.bytes().next().is_some_and(|c| c.is_ascii_alphabetic() || c == b'_')
        && name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_');
    if !good {
        return Err(format!("the capture name {name:?} is not of letters, digits and '_'"));
    }
    if BUILT_IN.contains(&name) {
        return Err(format!("{{{name}}} already means something in keys; name the capture otherwise"));
    }
    if others.iter().any(|other| other == name) {
        return Err(format!("{{{name}}} stands in it twice"));
    }
    Ok(())
}

/// How the key of a request is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyTemplate {
    parts: Vec<KeyPart>,
}

/// One part of a key template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyPart {
    /// Text as it stands.
    Text(String),
    /// The path's capture of this name.
    Capture(String),
    /// `Host` without port, in lower case.
    Host,
    /// The whole path.
    Path,
    /// The client's address.
    ClientIp,
    /// The header of this name, which is in lower case.
    Header(String),
    /// The cookie of this name.
    Cookie(String),
    /// The query parameter of this name.
    Query(String),
    /// The form field of this name.
    Form(String),
    /// Of these, the first that the request has.
    FirstOf(Vec<KeyPart>),
}

impl KeyTemplate {
    /// Reads a template for requests of this path.
    pub fn parse(text: &str, path: &PathPattern) -> Result<Self, PatternError> {
        let fail = |problem: String| PatternError::Key { text: text.into(), problem };
        if text.is_empty() {
            return Err(fail(
                "it is empty; write what identifies the room, document or user, e.g. \"{path}\"".into(),
            ));
        }
        if text.len() > MAX_KEY_BYTES {
            return Err(fail(format!("it is longer than {MAX_KEY_BYTES} bytes")));
        }
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            let Some((name, tail)) = after.split_once('}') else {
                return Err(fail("'{' without '}'".into()));
            };
            push_text(&mut parts, before).map_err(fail)?;
            let part = match name.contains('|') {
                true => name
                    .split('|')
                    .map(|name| key_part(name, path))
                    .collect::<Result<_, _>>()
                    .map(KeyPart::FirstOf),
                false => key_part(name, path),
            };
            parts.push(part.map_err(fail)?);
            rest = tail;
        }
        push_text(&mut parts, rest).map_err(fail)?;
        Ok(Self { parts })
    }

    /// The parts in their order.
    #[must_use]
    pub fn parts(&self) -> &[KeyPart] {
        &self.parts
    }
}

fn push_text(parts: &mut Vec<KeyPart>, text: &str) -> Result<(), String> {
    if text.contains('}') {
        return Err("'}' without '{'".into());
    }
    if text.chars().any(char::is_control) {
        return Err("a key has no control characters".into());
    }
    if !text.is_empty() {
        parts.push(KeyPart::Text(text.to_owned()));
    }
    Ok(())
}

fn key_part(name: &str, path: &PathPattern) -> Result<KeyPart, String> {
    match name {
        "host" => return Ok(KeyPart::Host),
        "path" => return Ok(KeyPart::Path),
        "client_ip" => return Ok(KeyPart::ClientIp),
        _ => {}
    }
    if let Some((source, field)) = name.split_once('.') {
        let token = |c: u8| c.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&c);
        if field.is_empty() || !field.bytes().all(token) {
            return Err(format!("{{{name}}} names no {source} field"));
        }
        return match source {
            "header" => Ok(KeyPart::Header(field.to_ascii_lowercase())),
            "cookie" => Ok(KeyPart::Cookie(field.to_owned())),
            "query" => Ok(KeyPart::Query(field.to_owned())),
            "form" => Ok(KeyPart::Form(field.to_owned())),
            _ => Err(format!("{{{name}}}: use {{header.…}}, {{cookie.…}}, {{query.…}} or {{form.…}}")),
        };
    }
    if path.captures.iter().any(|capture| capture == name) {
        return Ok(KeyPart::Capture(name.to_owned()));
    }
    let captures: Vec<_> = path.captures.iter().map(|capture| format!("{{{capture}}}")).collect();
    let captures = if captures.is_empty() { "none".to_owned() } else { captures.join(" ") };
    Err(format!(
        "{{{name}}} is no capture of the path (it has {captures}); other names are {{host}} {{path}} {{client_ip}} \
         {{header.x}} {{cookie.x}} {{query.x}} {{form.x}}"
    ))
}

#[cfg(test)]
mod tests;
