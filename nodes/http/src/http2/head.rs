//! Makes of an HTTP/2 request's head the one that handlers are to see.

use http::header::{CONTENT_LENGTH, COOKIE, HOST, HeaderMap, HeaderValue};
use http::uri::Uri;
use http::{Method, request};

use crate::decimal;
use crate::http1::{Rule, is_host};
use crate::problem::{self, Problem};

/// `:authority` (RFC 9113 section 8.3.1) ends up in `Host`, several cookies in one field, and what the framing check
/// refuses of HTTP/1.1 is refused here, where the engine lets it pass.
pub(super) fn normalise(head: &mut request::Parts) -> Result<(), Problem> {
    if head.method == Method::CONNECT {
        return Err(problem::connect_not_supported());
    }
    check_target(&head.uri).and_then(|()| check_length(&head.headers)).map_err(Rule::problem)?;
    join_cookies(&mut head.headers);
    if let Some(authority) = head.uri.authority() {
        let host = authority.as_str();
        let same =
            host_fields(&head.headers).all(|other| other.as_bytes().eq_ignore_ascii_case(host.as_bytes()));
        if !is_host(host.as_bytes()) || !same {
            return Err(Rule::BadHost.problem());
        }
        let host = HeaderValue::from_str(host).map_err(|_| Rule::BadHost.problem())?;
        head.headers.insert(HOST, host);
    } else {
        let mut hosts = host_fields(&head.headers);
        match (hosts.next(), hosts.next()) {
            (Some(host), None) if is_host(host.as_bytes()) => {}
            (None, _) => return Err(Rule::MissingHost.problem()),
            (Some(_), Some(_)) => return Err(Rule::HostTwice.problem()),
            _ => return Err(Rule::BadHost.problem()),
        }
    }
    Ok(())
}

/// The engine takes text of any kind for a path.
fn check_target(uri: &Uri) -> Result<(), Rule> {
    let target = uri.path_and_query().map_or("", |target| target.as_str());
    if target.bytes().all(|byte| byte.is_ascii_graphic()) { Ok(()) } else { Err(Rule::BadTarget) }
}

/// The engine takes one length that is said twice.
fn check_length(headers: &HeaderMap) -> Result<(), Rule> {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    match (lengths.next(), lengths.next()) {
        (Some(_), Some(_)) => Err(Rule::ContentLengthTwice),
        (Some(length), None) if decimal::read(length.as_bytes()).is_none() => Err(Rule::BadContentLength),
        _ => Ok(()),
    }
}

/// HTTP/2 may split cookies over several fields, of which an HTTP/1.1 server would read the first (RFC 9113
/// section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let crumbs: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    // Of sound values, with a sound separator: it can't fail.
    if let Ok(cookies) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
        headers.insert(COOKIE, cookies);
    }
}

fn host_fields(headers: &HeaderMap) -> impl Iterator<Item = &HeaderValue> {
    headers.get_all(HOST).into_iter()
}
