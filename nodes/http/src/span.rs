//! What a collector of traces is told of an exchange that has ended: a span of ours, and one for asking an upstream. By the
//! semantic conventions of OpenTelemetry for HTTP; what a query says is left out, since it may be a secret.

use std::time::SystemTime;

use http::{Method, StatusCode, Version};
use protoplex_runtime::telemetry::trace::{Exporter, Kind, Span, Value};
use tokio::time::Instant;

use crate::clock;
use crate::exchange::Exchange;

/// Of a text; what is longer is cut.
const MAX_TEXT_BYTES: usize = 1024;

type Attributes = Vec<(&'static str, Value)>;

/// Gives the spans of an exchange that has ended now to the exporter.
pub(crate) fn export(exchange: &Exchange, exporter: &Exporter, now: Instant) {
    let wall = clock::wall(now);
    let at = |moment: Instant| wall.checked_sub(now - moment).unwrap_or(wall);
    if let Some(asked) = asked(exchange, at, now) {
        exporter.push(asked);
    }
    exporter.push(answered(exchange, at(exchange.started), wall));
}

/// Our own.
fn answered(exchange: &Exchange, start: SystemTime, end: SystemTime) -> Span {
    let (head, status) = (&exchange.head, exchange.status.get());
    let mut attributes = Attributes::with_capacity(12);
    push_method(&mut attributes, &head.method);
    attributes.push(("url.scheme", Value::Word(exchange.scheme.as_str())));
    push_text(&mut attributes, "url.path", head.path());
    if let Some(host) = head.host() {
        push_host(&mut attributes, host);
    }
    push_text(&mut attributes, "client.address", &exchange.client_text());
    attributes.push(("network.protocol.version", Value::Word(version(head.version))));
    push_status(&mut attributes, status);
    push_text(&mut attributes, "protoplex.request_id", &exchange.request_id);
    if let Some(key) = &*exchange.key.borrow() {
        push_text(&mut attributes, "protoplex.key", key);
    }
    if let Some(upstream) = &*exchange.upstream.borrow() {
        push_text(&mut attributes, "protoplex.upstream", upstream);
    }
    let trace = &exchange.trace;
    Span {
        trace: *trace.id(),
        id: trace.span(),
        parent: trace.parent(),
        kind: Kind::Server,
        name: name(&head.method),
        start,
        end,
        failed: status.is_server_error(),
        attributes,
    }
}

/// That of the last question to an upstream, if there was one.
fn asked(exchange: &Exchange, at: impl Fn(Instant) -> SystemTime, now: Instant) -> Option<Span> {
    let (asked, method) = (&exchange.asked, &exchange.head.method);
    let (origin, began) = (asked.origin.get()?, asked.began.get()?);
    let mut attributes = Attributes::with_capacity(8);
    push_method(&mut attributes, method);
    push_text(&mut attributes, "url.full", &format!("http://{origin}{}", exchange.head.path()));
    attributes.push(("server.address", Value::Text(origin.ip().to_string())));
    attributes.push(("server.port", Value::Number(origin.port().into())));
    let status = asked.status.get();
    match status {
        Some(status) => push_status(&mut attributes, status),
        None if asked.over.get().is_some() => attributes.push(("error.type", Value::Word("no_answer"))),
        None => {}
    }
    if let Some(upstream) = &*exchange.upstream.borrow() {
        push_text(&mut attributes, "protoplex.upstream", upstream);
    }
    let trace = &exchange.trace;
    Some(Span {
        trace: *trace.id(),
        id: trace.asking_span(),
        parent: Some(trace.span()),
        kind: Kind::Client,
        name: name(method),
        start: at(began),
        end: at(asked.over.get().unwrap_or(now)),
        // Without an answer it has failed, unless the client did not wait for it.
        failed: match status {
            Some(status) => status.is_client_error() || status.is_server_error(),
            None => asked.over.get().is_some(),
        },
        attributes,
    })
}

/// Methods are names of spans, of which there must not be too many.
fn name(method: &Method) -> &'static str {
    known(method).unwrap_or("HTTP")
}

fn push_method(attributes: &mut Attributes, method: &Method) {
    attributes.push(("http.request.method", Value::Word(known(method).unwrap_or("_OTHER"))));
}

fn known(method: &Method) -> Option<&'static str> {
    ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE"]
        .into_iter()
        .find(|known| method.as_str() == *known)
}

fn push_status(attributes: &mut Attributes, status: StatusCode) {
    attributes.push(("http.response.status_code", Value::Number(status.as_u16().into())));
}

/// A host is told without its port.
fn push_host(attributes: &mut Attributes, host: &str) {
    let port = host.rfind(':').filter(|at| !host[*at..].contains(']'));
    let (name, port) = port.map_or((host, ""), |at| (&host[..at], &host[at + 1..]));
    push_text(attributes, "server.address", name);
    if let Ok(port) = port.parse::<u16>() {
        attributes.push(("server.port", Value::Number(port.into())));
    }
}

fn push_text(attributes: &mut Attributes, name: &'static str, text: &str) {
    attributes.push((name, Value::Text(text[..text.floor_char_boundary(MAX_TEXT_BYTES)].to_owned())));
}

fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        _ => "1.1",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_told_without_its_port_and_no_text_is_long() {
        let told = |host: &str| {
            let mut attributes = Vec::new();
            push_host(&mut attributes, host);
            format!("{attributes:?}")
        };
        for (host, name, port) in [
            ("a.example", "a.example", None),
            ("a.example:81", "a.example", Some(81)),
            ("[::1]", "[::1]", None),
            ("[::1]:81", "[::1]", Some(81)),
            ("a:", "a", None),
            ("a:99999", "a", None),
        ] {
            let told = told(host);
            assert!(told.contains(&format!("Text({name:?})")), "{told}");
            assert_eq!(told.contains("server.port"), port.is_some(), "{told}");
            assert!(port.is_none_or(|port: u16| told.contains(&format!("Number({port})"))), "{told}");
        }
        let mut attributes = Vec::new();
        push_text(&mut attributes, "long", &"é".repeat(MAX_TEXT_BYTES));
        assert!(matches!(&attributes[0].1, Value::Text(text) if text.len() == MAX_TEXT_BYTES));
        push_text(&mut attributes, "long", &format!("x{}", "é".repeat(MAX_TEXT_BYTES)));
        assert!(matches!(&attributes[1].1, Value::Text(text) if text.len() == MAX_TEXT_BYTES - 1));
    }
}
