//! The key of a request, by its handler's template: what of it says who shall have it.

use std::borrow::Cow;
use std::net::IpAddr;
use std::slice;
use std::str;

use http::header::COOKIE;
use matchit::Params;
use percent_encoding::percent_decode_str;
pub use protoplex_http::Fields;
use protoplex_wire::pattern::{KeyPart, KeyTemplate};
use thiserror::Error;

/// What a key is made of: the request, as far as templates can see it.
pub struct Facts<'a> {
    /// Lower case, without port.
    pub host: &'a str,
    /// Percent-encoded, as it was sent.
    pub path: &'a str,
    /// What the handler's path pattern captured of `path`.
    pub captures: &'a Params<'a, 'a>,
    /// Without the `?`.
    pub query: &'a str,
    /// The body, where it is an `application/x-www-form-urlencoded` form.
    pub form: &'a [u8],
    /// The request's headers.
    pub headers: &'a Fields,
    /// Who sent it.
    pub client_ip: IpAddr,
}

/// Why a request has no key. Always the client's doing.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum KeyError {
    /// What the key is made of is not in the request; an empty value counts as none.
    #[error("the request has no {0}")]
    Missing(String),
    /// A part holds what can't stand in a key.
    #[error("{0} is not UTF-8 text without control characters")]
    NotText(String),
    /// The key would be empty, or blank at one of its ends, which no header could carry.
    #[error("the key is empty, or begins or ends with a space")]
    Blank,
    /// The key would be longer than it may be.
    #[error("the key is longer than {max_bytes} bytes, as much as one with an owner may have")]
    TooLong {
        /// How long it may be.
        max_bytes: usize,
    },
}

/// Whether a form in the body may have a part of the key, so that the body has to be read first.
pub fn reads_form(template: &KeyTemplate) -> bool {
    template.parts().iter().flat_map(alternatives).any(|part| matches!(part, KeyPart::Form(_)))
}

/// The key of a request, of at most `max_bytes`.
///
/// # Errors
/// See [`KeyError`].
pub fn key(template: &KeyTemplate, facts: &Facts<'_>, max_bytes: usize) -> Result<String, KeyError> {
    let mut key = String::with_capacity(64);
    for part in template.parts() {
        key.push_str(&first_of(alternatives(part), facts)?);
        if key.len() > max_bytes {
            return Err(KeyError::TooLong { max_bytes });
        }
    }
    if key.is_empty() || key.starts_with(' ') || key.ends_with(' ') {
        return Err(KeyError::Blank);
    }
    Ok(key)
}

fn alternatives(part: &KeyPart) -> &[KeyPart] {
    match part {
        KeyPart::FirstOf(parts) => parts,
        _ => slice::from_ref(part),
    }
}

fn first_of<'a>(parts: &'a [KeyPart], facts: &'a Facts<'a>) -> Result<Cow<'a, str>, KeyError> {
    for part in parts {
        if let Some(value) = value(part, facts)? {
            let fit = !value.chars().any(char::is_control);
            return if fit { Ok(value) } else { Err(KeyError::NotText(name(part))) };
        }
    }
    let names: Vec<String> = parts.iter().map(name).collect();
    Err(KeyError::Missing(names.join(" and no ")))
}

/// The part's value, `None` where the request has none.
fn value<'a>(part: &'a KeyPart, facts: &'a Facts<'a>) -> Result<Option<Cow<'a, str>>, KeyError> {
    let not_text = |_| KeyError::NotText(name(part));
    let decoded = |text: &'a str| decoded(text).map_err(not_text);
    let text = |bytes: &'a [u8]| str::from_utf8(bytes).map(Cow::Borrowed).map_err(not_text);
    let value = match part {
        KeyPart::Text(text) => Some(text.into()),
        // A catch-all that caught nothing is empty, not absent: the path matched.
        KeyPart::Capture(name) => return decoded(facts.captures.get(name).unwrap_or_default()).map(Some),
        KeyPart::Path => Some(decoded(facts.path)?),
        KeyPart::Host => Some(facts.host.into()),
        KeyPart::ClientIp => Some(facts.client_ip.to_canonical().to_string().into()),
        KeyPart::Query(field) => form_field(facts.query.as_bytes(), field),
        KeyPart::Form(field) => form_field(facts.form, field),
        KeyPart::Header(name) => facts.headers.get_named(name.as_bytes()).map(text).transpose()?,
        KeyPart::Cookie(name) => cookie(facts.headers, name).map(text).transpose()?,
        KeyPart::FirstOf(parts) => Some(first_of(parts, facts)?),
    };
    Ok(value.filter(|text| !text.is_empty()))
}

/// Percent-decoded, but for `%2F`, which, as for patterns and members, is no slash between two segments, and for `%25`, so
/// that two paths that mean different things never have one key.
fn decoded(path: &str) -> Result<Cow<'_, str>, str::Utf8Error> {
    let decode = |piece| percent_decode_str(piece).decode_utf8();
    let kept = |at: usize| {
        let digits = path.as_bytes().get(at + 1..at + 3)?;
        ["%2F", "%25"].into_iter().find(|kept| kept.as_bytes()[1..].eq_ignore_ascii_case(digits))
    };
    let (mut whole, mut from) = (String::new(), 0);
    for (at, kept) in path.match_indices('%').filter_map(|(at, _)| Some((at, kept(at)?))) {
        whole.push_str(&decode(&path[from..at])?);
        whole.push_str(kept);
        from = at + 3;
    }
    let last = decode(&path[from..])?;
    if from == 0 {
        return Ok(last);
    }
    whole.push_str(&last);
    Ok(whole.into())
}

/// The part as a template names it.
fn name(part: &KeyPart) -> String {
    match part {
        KeyPart::Text(text) | KeyPart::Capture(text) => text.clone(),
        KeyPart::Host => "host".to_owned(),
        KeyPart::Path => "path".to_owned(),
        KeyPart::ClientIp => "client_ip".to_owned(),
        KeyPart::Header(name) => format!("header.{name}"),
        KeyPart::Cookie(name) => format!("cookie.{name}"),
        KeyPart::Query(name) => format!("query.{name}"),
        KeyPart::Form(name) => format!("form.{name}"),
        KeyPart::FirstOf(parts) => parts.iter().map(name).collect::<Vec<_>>().join("|"),
    }
}

/// The first field of that name. What is not UTF-8 in it becomes U+FFFD, as the URL standard has it.
fn form_field<'a>(encoded: &'a [u8], field: &str) -> Option<Cow<'a, str>> {
    form_urlencoded::parse(encoded).find(|(name, _)| name == field).map(|(_, value)| value)
}

/// The first cookie of that name (RFC 6265, 5.4), without the quotes that may surround it.
fn cookie<'a>(headers: &'a Fields, name: &str) -> Option<&'a [u8]> {
    let pairs = headers.get_all(&COOKIE).flat_map(|line| line.split(|&byte| byte == b';'));
    for pair in pairs.map(<[u8]>::trim_ascii) {
        if let Some(value) = pair.strip_prefix(name.as_bytes()).and_then(|rest| rest.strip_prefix(b"=")) {
            let unquoted = value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\""));
            return Some(unquoted.unwrap_or(value));
        }
    }
    None
}

#[cfg(test)]
mod tests;
