//! What a proxy changes in a head that it passes on: hop-by-hop fields go, the story of the way comes (RFC
//! 9110 section 7.6).

use http::header::{FORWARDED, TRAILER};
use http::{StatusCode, Version};

use crate::exchange::Exchange;
use crate::head::{Fields, Known, RequestHead, ResponseHead};

/// The head that an upstream gets in the place of a client's: without hop-by-hop fields (but with a requested upgrade,
/// except to h2c, and `TE: trailers`), with X-Forwarded-For, -Proto and -Host, X-Request-Id, traceparent and Via.
///
/// `trusted` says that the client is itself a proxy of ours: then its X-Forwarded fields are kept and continued.
/// Anybody else can write anything there: what he says of his way (`X-Forwarded-*`, `X-Real-IP`, `Protoplex-*`, with
/// underscores too) is dropped.
pub fn request_head(exchange: &Exchange, trusted: bool) -> RequestHead {
    let head = &exchange.head;
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
            Known::XForwardedFor | Known::XRequestId | Known::TraceParent => false,
            Known::TraceState => keeps_state,
            Known::XForwardedProto | Known::XForwardedHost | Known::Respelt => trusted,
            Known::Way => trusted && !field.is(&FORWARDED),
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
    tell_the_way(&mut sent, exchange, trusted);
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

fn tell_the_way(sent: &mut RequestHead, exchange: &Exchange, trusted: bool) {
    let head = &exchange.head;
    let peer = exchange.addresses.ip.as_bytes();
    let mut way: Vec<&[u8]> = Vec::new();
    if trusted {
        way.extend(head.fields.known(Known::XForwardedFor).flat_map(|hop| [hop, b", "]));
    }
    way.push(peer);
    sent.fields.push_parts(Known::XForwardedFor, b"x-forwarded-for", &way);
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
