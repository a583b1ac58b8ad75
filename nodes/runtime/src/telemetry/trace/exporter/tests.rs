//! An exporter before collectors that take what they get, that are away, and that never answer.

use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc::{Sender, channel};
use std::time::{Instant, SystemTime};

use axum::Router;
use axum::body::Bytes;
use axum::http::HeaderMap;
use axum::routing::post;
use metrics::with_local_recorder;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;

use super::*;
use crate::telemetry::recorder::Recorder;

const TRACE: &[u8; 32] = b"4bf92f3577b34da6a3ce929d0e0e4736";

/// An exporter and what it counts.
fn start(address: SocketAddr) -> (Exporter, Recorder) {
    let otlp = Some(format!("http://{address}/"));
    let settings = Settings { otlp, ..Settings::default() };
    let recorder = Recorder::default();
    let exporter = with_local_recorder(&recorder, || Exporter::start(&settings, "proxy-1", 3, b"secret"));
    (exporter.unwrap().unwrap(), recorder)
}

fn counted(recorder: &Recorder, name: &str) -> u64 {
    let families = recorder.gather();
    let family = families.iter().find(|family| family.name == name).unwrap();
    family.samples[0].value.parse().unwrap()
}

fn span(kind: Kind) -> Span {
    let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    Span {
        trace: *TRACE,
        id: *b"00f067aa0ba902b7",
        parent: (kind == Kind::Client).then_some(*b"b7ad6b7169203331"),
        kind,
        name: "GET",
        start,
        end: start + Duration::from_micros(1_500),
        failed: kind == Kind::Client,
        attributes: vec![
            ("http.request.method", Value::Word("GET")),
            ("url.path", Value::Text("/x".to_owned())),
            ("http.response.status_code", Value::Number(502)),
        ],
    }
}

/// A collector that hands on what it takes. It ends with the process.
fn collector(taken: Sender<(HeaderMap, ExportTraceServiceRequest)>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    let taken = Mutex::new(taken);
    let taken = Arc::new(taken);
    thread::spawn(move || {
        Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            let take = async move |headers: HeaderMap, body: Bytes| {
                let request = ExportTraceServiceRequest::decode(body).unwrap();
                taken.lock().unwrap().send((headers, request)).unwrap();
            };
            let router = Router::new().route("/v1/traces", post(take));
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            axum::serve(listener, router).await.unwrap();
        });
    });
    address
}

#[test]
fn a_collector_is_told_all_of_a_span_by_the_end_at_the_latest() {
    let (taken, requests) = channel();
    let (exporter, recorder) = start(collector(taken));
    exporter.push(span(Kind::Server));
    exporter.push(span(Kind::Client));
    exporter.finish();
    let (headers, request) = requests.recv_timeout(Duration::from_secs(10)).unwrap();
    assert_eq!(headers["content-type"], "application/x-protobuf");
    let [resource] = &request.resource_spans[..] else { panic!("{request:?}") };
    let shown = format!("{:?}", resource.resource);
    for known in ["service.name", "protoplex", "service.instance.id", "proxy-1:3"] {
        assert!(shown.contains(&format!("{known:?}")), "{known} in {shown}");
    }
    let [scope] = &resource.scope_spans[..] else { panic!("{request:?}") };
    let [server, client] = &scope.spans[..] else { panic!("{request:?}") };
    let hex = |id: &[u8]| id.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    for (span, kind, parent, status) in [(server, 2, "", 0), (client, 3, "b7ad6b7169203331", 2)] {
        assert_eq!(
            (hex(&span.trace_id).as_bytes(), hex(&span.span_id).as_str()),
            (&TRACE[..], "00f067aa0ba902b7")
        );
        assert_eq!((span.kind, hex(&span.parent_span_id).as_str()), (kind, parent));
        assert_eq!(span.status.as_ref().map_or(0, |status| status.code), status);
        assert_eq!(span.start_time_unix_nano, 1_800_000_000_000_000_000);
        assert_eq!(span.end_time_unix_nano - span.start_time_unix_nano, 1_500_000);
        assert_eq!((span.name.as_str(), span.attributes.len()), ("GET", 3));
    }
    assert_eq!((counted(&recorder, EXPORTED), counted(&recorder, DROPPED)), (2, 0));
}

#[test]
fn a_collector_that_is_away_costs_the_spans_and_no_time() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (exporter, recorder) = start(nobody);
    for _ in 0..10 {
        exporter.push(span(Kind::Server));
    }
    let began = Instant::now();
    exporter.finish();
    while counted(&recorder, DROPPED) < 10 {
        assert!(began.elapsed() < EXPORT_TIMEOUT, "{} were dropped", counted(&recorder, DROPPED));
        thread::yield_now();
    }
    assert_eq!((counted(&recorder, EXPORTED), counted(&recorder, DROPPED)), (0, 10));
}

#[test]
fn a_collector_that_never_answers_holds_nobody_up_and_a_full_queue_is_counted() {
    // It takes connections, by its queue alone, and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let (exporter, recorder) = start(silent.local_addr().unwrap());
    // The first batch is being sent from here on.
    for _ in 0..BATCH {
        exporter.push(span(Kind::Server));
    }
    let (_connection, _) = silent.accept().unwrap();
    let (room, more) = (QUEUE - exporter.shared.waiting.load(Ordering::Relaxed), 100);
    for _ in 0..room + more {
        exporter.push(span(Kind::Server));
    }
    assert_eq!(counted(&recorder, DROPPED), more as u64);
    let began = Instant::now();
    exporter.finish();
    // It has waited as long as it may, and no longer; the thread goes on for a while.
    assert!((FINISH_TIMEOUT..EXPORT_TIMEOUT).contains(&began.elapsed()), "{:?}", began.elapsed());
}
