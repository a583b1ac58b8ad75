//! What a proxy changes in a head that it passes on: hop-by-hop fields go, the story of the way comes (RFC
//! 9110 section 7.6).

mod way;

use std::net::IpAddr;

use http::header::TRAILER;
use http::{StatusCode, Version};

use crate::exchange::{Exchange, Scheme};
use crate::head::{Fields, Known, RequestHead, ResponseHead};
pub(crate) use way::client;

/// The head that an upstream gets in the place of a client's: without hop-by-hop fields (but with a requested upgrade,
/// except to h2c, and `TE: trailers`), with X-Forwarded-For, -Proto and -Host, Forwarded, X-Request-Id, traceparent and Via.
///
/// Where the client is itself a trusted proxy (see [`Fronts`](crate::Fronts)), its X-Forwarded-For, -Proto and -Host,
/// Forwarded and X-Real-IP are kept and continued. Anybody else can write anything there: what he says of his way
/// (`X-Forwarded-*`, `Forwarded`, `X-Real-IP`, `Protoplex-*`, with underscores too) is dropped.
pub fn request_head(exchange: &Exchange) -> RequestHead {
    let head = &exchange.head;
    let trusted = exchange.addresses.proxies.is_some();
    let mut sent = RequestHead::new(head.method.clone(), head.version, head.target_bytes());
    let named = named_by_connection(&head.fields);
    let keeps_state = exchange.trace.keeps_state(&head.fields);
    if head.host().is_none() {
        // HTTP/1.0 needs none, but the next hop does (RFC 9112 section 3.2).
        sent.fields.push_known(Known::Host, b"host", b"");
    }
    for field in head.fields.iter() {
        let kept = match field.known {
            // Written anew.
            Known::XForwardedFor | Known::Forwarded | Known::XRequestId | Known::TraceParent => false,
            Known::TraceState => keeps_state,
            Known::XForwardedProto | Known::XForwardedHost | Known::XRealIp => trusted,
            // What nobody but us may say: a proxy passes on what its clients say there.
            Known::Way | Known::Respelt => false,
            known => !is_of_this_hop(known) && !named.has(field.name, known),
        };
        if kept {
            sent.fields.push_copy(field);
        }
    }
    if head.fields.known(Known::Te).any(|te| has_token(te, "trailers")) {
        sent.fields.push_known(Known::Te, b"te", b"trailers");
        sent.fields.push_known(Known::Connection, b"connection", b"te");
    }
    if head.asks_upgrade()
        && let Some(protocol) = head.fields.known(Known::Upgrade).next()
    {
        push_upgrade(&mut sent.fields, protocol);
    }
    if trusted {
        continue_the_way(&mut sent.fields, exchange);
    } else {
        begin_the_way(&mut sent.fields, exchange);
    }
    tell_the_hop(&mut sent, exchange);
    sent
}

/// Makes of an upstream's head the one that the client gets: without hop-by-hop fields (but with a granted upgrade) and
/// without an X-Request-Id, which the server adds to every answer; with Via, in this hop's version.
pub fn answer_head(head: &mut ResponseHead) {
    let granted = head.status == StatusCode::SWITCHING_PROTOCOLS;
    let upgrade = head.fields.known(Known::Upgrade).next().filter(|_| granted).map(<[u8]>::to_vec);
    let via = via(head.version);
    // Ours, not the upstream's (RFC 9112 section 2.3); a client of an older one is answered in its own.
    head.version = Version::HTTP_11;
    let named = named_by_connection(&head.fields);
    head.fields.retain(|field| {
        let is_ours = field.known == Known::XRequestId || is_of_this_hop(field.known);
        !is_ours && !named.has(field.name, field.known)
    });
    if let Some(protocol) = upgrade {
        push_upgrade(&mut head.fields, &protocol);
    }
    head.fields.push_known(Known::Other, b"via", via);
}

/// The client is the first of whom anything is known.
fn begin_the_way(sent: &mut Fields, exchange: &Exchange) {
    sent.push_parts(Known::XForwardedFor, b"x-forwarded-for", &[exchange.addresses.ip().as_bytes()]);
    sent.push_parts(Known::Forwarded, b"forwarded", &element(exchange));
}

/// The client is a proxy that tells of others. X-Forwarded-For and Forwarded tell the same to whoever reads either: one
/// that it has not sent is made of the other, as far as that can be believed.
fn continue_the_way(sent: &mut Fields, exchange: &Exchange) {
    let said = &exchange.head.fields;
    let hops = way::hops(said);
    let believed = || way::believed(&hops);
    let (mut ips, mut elements) = (String::new(), String::new());
    let mut way: Vec<&[u8]> = said.known(Known::XForwardedFor).flat_map(|hops| [hops, b", "]).collect();
    if way.is_empty() {
        ips.extend(believed().map(|ip| format!("{ip}, ")));
        way.push(ips.as_bytes());
    }
    way.push(exchange.addresses.ip().as_bytes());
    sent.push_parts(Known::XForwardedFor, b"x-forwarded-for", &way);
    let sound = said.known(Known::Forwarded).filter(|field| way::elements(field).is_some());
    let mut way: Vec<&[u8]> = sound.flat_map(|elements| [elements, b", "]).collect();
    if way.is_empty() {
        elements.extend(believed().map(|ip| match ip {
            IpAddr::V4(ip) => format!("for={ip}, "),
            IpAddr::V6(ip) => format!("for=\"[{ip}]\", "),
        }));
        way.push(elements.as_bytes());
    }
    way.extend(element(exchange));
    sent.push_parts(Known::Forwarded, b"forwarded", &way);
}

/// This hop's element of `Forwarded` (RFC 7239 section 4), without the address that it came to: that is ours, and often
/// nobody else's business. A host with a port, or an address, stands in quotes.
fn element(exchange: &Exchange) -> [&[u8]; 7] {
    let ip = exchange.addresses.ip();
    let (before, behind): (&[u8], &[u8]) = match ip.contains(':') {
        true => (b"for=\"[", b"]\""),
        false => (b"for=", b""),
    };
    let scheme: &[u8] = match exchange.scheme {
        Scheme::Http => b";proto=http",
        Scheme::Https => b";proto=https",
    };
    let host = exchange.head.host().unwrap_or_default();
    let (begin, end): (&[u8], &[u8]) = match host {
        "" => (b"", b""),
        _ if host.contains(':') => (b";host=\"", b"\""),
        _ => (b";host=", b""),
    };
    [before, ip.as_bytes(), behind, scheme, begin, host.as_bytes(), end]
}

fn tell_the_hop(sent: &mut RequestHead, exchange: &Exchange) {
    let head = &exchange.head;
    if sent.fields.known(Known::XForwardedProto).next().is_none() {
        let scheme = exchange.scheme.as_str().as_bytes();
        sent.fields.push_known(Known::XForwardedProto, b"x-forwarded-proto", scheme);
    }
    if sent.fields.known(Known::XForwardedHost).next().is_none()
        && let Some(host) = head.host()
    {
        sent.fields.push_known(Known::XForwardedHost, b"x-forwarded-host", host.as_bytes());
    }
    sent.fields.push_known(Known::XRequestId, b"x-request-id", exchange.request_id.as_bytes());
    sent.fields.push_known(Known::TraceParent, b"traceparent", &exchange.trace.traceparent());
    sent.fields.push_known(Known::Other, b"via", via(head.version));
}

fn push_upgrade(fields: &mut Fields, protocol: &[u8]) {
    fields.push_known(Known::Upgrade, b"upgrade", protocol);
    fields.push_known(Known::Connection, b"connection", b"upgrade");
}

/// Meant for one connection only, whether `Connection` names it or not. `Trailer` is not among them: trailers are
/// relayed, and so must be their announcement.
fn is_of_this_hop(known: Known) -> bool {
    matches!(
        known,
        Known::Connection | Known::Te | Known::TransferEncoding | Known::Upgrade | Known::HopByHop
    )
}

/// The fields that `Connection` names, which go no further (RFC 9110 section 7.6.1).
struct Named(Vec<Vec<u8>>);

fn named_by_connection(fields: &Fields) -> Named {
    let lists = fields.known(Known::Connection);
    let tokens = lists.flat_map(|list| list.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
    // What nearly all of them say names no field.
    let names = |token: &&[u8]| {
        !["close", "keep-alive", "upgrade", "te", ""]
            .iter()
            .any(|other| token.eq_ignore_ascii_case(other.as_bytes()))
    };
    Named(tokens.filter(names).map(<[u8]>::to_vec).collect())
}

impl Named {
    fn has(&self, name: &[u8], known: Known) -> bool {
        // `Connection` must not be used to remove these on their way: what they say is ours to say, or frames the message.
        let removable = !matches!(
            known,
            Known::Host
                | Known::XForwardedFor
                | Known::XForwardedProto
                | Known::XForwardedHost
                | Known::Forwarded
                | Known::XRequestId
        ) && !name.eq_ignore_ascii_case(TRAILER.as_str().as_bytes());
        removable && self.0.iter().any(|other| other.eq_ignore_ascii_case(name))
    }
}

/// Whether a comma-separated list has a token, whatever its case. Parameters behind a semicolon are passed
/// over.
pub(crate) fn has_token(list: &[u8], token: &str) -> bool {
    list.split(|byte| *byte == b',').any(|item| {
        let name = item.split(|byte| *byte == b';').next().unwrap_or_default();
        name.trim_ascii().eq_ignore_ascii_case(token.as_bytes())
    })
}

fn via(version: Version) -> &'static [u8] {
    match version {
        Version::HTTP_10 => b"1.0 protoplex",
        Version::HTTP_2 => b"2 protoplex",
        _ => b"1.1 protoplex",
    }
}

#[cfg(test)]
mod tests;
