//! The spans of relayed requests, as a collector gets them.

use std::cell::RefCell;
use std::net::TcpListener;
use std::rc::Rc;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use protoplex_http::{Body, Response};
use protoplex_runtime::telemetry::trace::{self, Settings};

use crate::kit::{Raw, Server, limits, run, start, start_relay, text, until, within};

const SERVER: i32 = 2;
const CLIENT: i32 = 3;
const FAILED: i32 = 2;

type Taken = Rc<RefCell<Vec<Span>>>;

/// Keeps what it takes.
fn collector(taken: &Taken) -> Server {
    let taken = Rc::clone(taken);
    start(limits(), move |request, _| {
        let taken = Rc::clone(&taken);
        async move {
            assert_eq!(request.uri().path(), "/v1/traces");
            let body = request.into_body().collect(1 << 20).await.unwrap();
            let request = ExportTraceServiceRequest::decode(body).unwrap();
            let scopes = request.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
            taken.borrow_mut().extend(scopes.flat_map(|scope| scope.spans));
            Response::new(Body::empty())
        }
    })
}

fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The value of an attribute; empty where there is none.
fn told(span: &Span, name: &str) -> String {
    let value = span.attributes.iter().find(|attribute| attribute.key == name);
    match value.and_then(|attribute| attribute.value.clone()?.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        None => String::new(),
        other => panic!("{name}: {other:?}"),
    }
}

/// Sends a request within a trace, and returns what the upstream was told of it.
async fn ask(relay: &Server, trace: &str, flags: &str) -> String {
    let mut client = Raw::connect(relay.address).await;
    let parent = format!("00-{trace}-00f067aa0ba902b7-{flags}");
    client
        .send(format!("GET /x?secret=1 HTTP/1.1\r\nHost: a.example:81\r\nTraceparent: {parent}\r\n\r\n"))
        .await;
    client.answer().await.body
}

/// The spans of a trace by the kind of span, as soon as there are so many.
async fn spans(taken: &Taken, trace: &str, count: usize) -> Vec<Span> {
    let of_trace = || -> Vec<Span> {
        taken.borrow().iter().filter(|span| hex(&span.trace_id) == trace).cloned().collect()
    };
    within(until(|| of_trace().len() >= count)).await;
    of_trace()
}

#[test]
fn a_sampled_request_is_told_to_the_collector_and_joins_up_from_hop_to_hop() {
    run(async {
        let taken = Taken::default();
        let collector = collector(&taken);
        // Those of the collector itself would never end.
        let settings = Settings {
            otlp: Some(format!("http://{}", collector.address)),
            sample: 0.0,
            trust_parent: true,
            ..Settings::default()
        };
        trace::start(&settings, "proxy-1", 0, b"secret").unwrap();
        let origin = start(limits(), |request, exchange| async move {
            exchange.note_key("room:1");
            text(request.headers()["traceparent"].to_str().unwrap())
        });
        let relay = start_relay(origin.address);
        let (sampled, unsampled) = ("4bf92f3577b34da6a3ce929d0e0e4736", "4bf92f3577b34da6a3ce929d0e0e4737");
        assert!(ask(&relay, unsampled, "00").await.ends_with("-00"));
        let told_upstream = ask(&relay, sampled, "01").await;
        assert!(told_upstream.ends_with("-01"), "{told_upstream}");

        let spans = spans(&taken, sampled, 3).await;
        let of = |kind: i32, parent: &str| {
            let found = spans.iter().find(|span| span.kind == kind && hex(&span.parent_span_id) == parent);
            found.unwrap_or_else(|| panic!("no span of {kind} in {parent}: {spans:?}"))
        };
        let relayed = of(SERVER, "00f067aa0ba902b7");
        let asking = of(CLIENT, &hex(&relayed.span_id));
        assert_eq!(told_upstream[36..52], hex(&asking.span_id));
        let answered = of(SERVER, &told_upstream[36..52]);
        assert_eq!(spans.len(), 3, "{spans:?}");

        for (span, attributes) in [
            (
                relayed,
                &[
                    ("http.request.method", "GET"),
                    ("url.scheme", "http"),
                    ("url.path", "/x"),
                    ("server.address", "a.example"),
                    ("server.port", "81"),
                    ("client.address", "127.0.0.1"),
                    ("network.protocol.version", "1.1"),
                    ("http.response.status_code", "200"),
                    ("protoplex.key", ""),
                ][..],
            ),
            (
                asking,
                &[
                    ("http.request.method", "GET"),
                    ("url.full", &format!("http://{}/x", origin.address)),
                    ("server.address", "127.0.0.1"),
                    ("server.port", &origin.address.port().to_string()),
                    ("http.response.status_code", "200"),
                    ("error.type", ""),
                ],
            ),
            (answered, &[("protoplex.key", "room:1")]),
        ] {
            assert_eq!(span.name, "GET");
            assert_eq!(span.status.as_ref().map_or(0, |status| status.code), 0);
            for (name, value) in attributes {
                assert_eq!(told(span, name), *value, "{name} of {span:?}");
            }
            assert!(!format!("{span:?}").contains("secret"), "{span:?}");
        }
        assert!(relayed.start_time_unix_nano <= asking.start_time_unix_nano);
        assert!(asking.start_time_unix_nano < asking.end_time_unix_nano);
        assert!(asking.end_time_unix_nano <= relayed.end_time_unix_nano);
        // It was asked before the others, and what is exported goes in order.
        assert!(taken.borrow().iter().all(|span| hex(&span.trace_id) != unsampled));
        nobody_answers(&taken).await;
    });
}

/// Part of the one test, since a process has one exporter.
async fn nobody_answers(taken: &Taken) {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let relay = start_relay(nobody);
    let trace = "4bf92f3577b34da6a3ce929d0e0e4738";
    ask(&relay, trace, "01").await;
    let spans = spans(taken, trace, 2).await;
    for span in &spans {
        assert_eq!(span.status.as_ref().unwrap().code, FAILED, "{span:?}");
        match span.kind {
            SERVER => assert_eq!(told(span, "http.response.status_code"), "502"),
            _ => assert_eq!(told(span, "error.type"), "no_answer"),
        }
    }
    assert_eq!(spans.len(), 2);
}
