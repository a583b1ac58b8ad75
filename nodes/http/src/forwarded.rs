//! What a proxy changes in a head that it passes on: hop-by-hop fields go, the story of the way comes (RFC
//! 9110 section 7.6).

use http::header::{
    CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE,
    TRAILER, TRANSFER_ENCODING, UPGRADE, VIA,
};
use http::{StatusCode, Version};

use crate::exchange::{Exchange, Request, Response};
use crate::reserved;
use crate::upgrade;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Meant for one connection only, whether `Connection` names them or not. `Trailer` is not among them:
/// trailers are relayed, and so must be their announcement.
const HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// `Connection` must not be used to remove these on their way: what they say is ours to say, or frames the message.
const KEPT: [HeaderName; 6] =
    [HOST, TRAILER, X_FORWARDED_FOR, X_FORWARDED_PROTO, X_FORWARDED_HOST, X_REQUEST_ID];

const MAX_REQUEST_ID_BYTES: usize = 64;

/// Prepares a client's request for an upstream: removes hop-by-hop fields (keeping a requested upgrade,
/// except to h2c, and `TE: trailers`), sets X-Forwarded-For, -Proto and -Host, X-Request-Id and Via.
///
/// `trusted` says that the client is itself a proxy of ours: then its X-Forwarded fields are kept and continued.
/// Anybody else can write anything there: what he says of his way (`X-Forwarded-*`, `X-Real-IP`, `Protoplex-*`, with
/// underscores too) is dropped.
pub fn request(request: &mut Request, exchange: &Exchange, trusted: bool) {
    let upgrade = upgrade::requested(request).then(|| request.headers().get(UPGRADE).cloned()).flatten();
    let version = request.version();
    let headers = request.headers_mut();
    let trailers = headers.get_all(TE).iter().any(|te| has_token(te, "trailers"));
    remove_hop_by_hop(headers);
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(CONNECTION, HeaderValue::from_name(TE));
    }
    if let Some(protocol) = upgrade {
        headers.insert(UPGRADE, protocol);
        headers.insert(CONNECTION, HeaderValue::from_name(UPGRADE));
    }
    if !trusted {
        reserved::drop_from_stranger(headers);
    }
    headers.remove(FORWARDED);
    let peer = exchange.peer.ip().to_canonical().to_string();
    let mut way: Vec<&str> =
        headers.get_all(X_FORWARDED_FOR).iter().filter_map(|hop| hop.to_str().ok()).collect();
    way.push(&peer);
    let way = way.join(", ");
    if let Ok(way) = HeaderValue::try_from(way) {
        headers.insert(X_FORWARDED_FOR, way);
    }
    if !headers.contains_key(X_FORWARDED_PROTO) {
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(exchange.scheme.as_str()));
    }
    if !headers.contains_key(X_FORWARDED_HOST)
        && let Some(host) = headers.get(HOST).cloned()
    {
        headers.insert(X_FORWARDED_HOST, host);
    }
    set_request_id(headers, exchange);
    headers.append(VIA, via(version));
}

/// Prepares an upstream's response for the client: removes hop-by-hop fields (keeping a granted upgrade),
/// adds Via and X-Request-Id, speaks in this hop's version.
pub fn response(response: &mut Response, exchange: &Exchange) {
    let granted = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let upgrade = response.headers().get(UPGRADE).filter(|_| granted).cloned();
    let version = response.version();
    // Ours, not the upstream's (RFC 9112 section 2.3); a client of an older one is answered in its own.
    *response.version_mut() = Version::HTTP_11;
    let headers = response.headers_mut();
    remove_hop_by_hop(headers);
    if let Some(protocol) = upgrade {
        headers.insert(UPGRADE, protocol);
        headers.insert(CONNECTION, HeaderValue::from_name(UPGRADE));
    }
    set_request_id(headers, exchange);
    headers.append(VIA, via(version));
}

/// Removes the fields that are meant for one connection only, and those that `Connection` names (RFC 9110
/// section 7.6.1).
pub fn remove_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
            .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
            .filter(|name| !KEPT.contains(name))
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

/// The request's own X-Request-Id if it is a sound one, else a new one of 32 hexadecimal digits.
pub(crate) fn request_id(headers: &HeaderMap) -> Box<str> {
    let mut given = headers.get_all(X_REQUEST_ID).iter();
    match (given.next(), given.next()) {
        (Some(id), None) if is_request_id(id.as_bytes()) => id.to_str().unwrap_or_default().into(),
        _ => format!("{:032x}", rand::random::<u128>()).into(),
    }
}

fn is_request_id(id: &[u8]) -> bool {
    (1..=MAX_REQUEST_ID_BYTES).contains(&id.len())
        && id.iter().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(byte))
}

fn set_request_id(headers: &mut HeaderMap, exchange: &Exchange) {
    if let Ok(id) = HeaderValue::from_str(&exchange.request_id) {
        headers.insert(X_REQUEST_ID, id);
    }
}

/// Whether a comma-separated list has a token, whatever its case. Parameters behind a semicolon are passed
/// over.
pub(crate) fn has_token(list: &HeaderValue, token: &str) -> bool {
    list.as_bytes().split(|byte| *byte == b',').any(|item| {
        let name = item.split(|byte| *byte == b';').next().unwrap_or_default();
        name.trim_ascii().eq_ignore_ascii_case(token.as_bytes())
    })
}

fn via(version: Version) -> HeaderValue {
    HeaderValue::from_static(match version {
        Version::HTTP_10 => "1.0 protoplex",
        Version::HTTP_2 => "2 protoplex",
        _ => "1.1 protoplex",
    })
}

#[cfg(test)]
mod tests;
