//! A request's way through a cluster, as it is told to a collector of traces.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;

use crate::{get, plan};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// A collector's address, and what it is told. It ends with the process.
fn collector() -> (String, Receiver<ExportTraceServiceRequest>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (sender, requests) = channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let mut length = 0;
            loop {
                let mut line = String::new();
                stream.read_line(&mut line).unwrap();
                let line = line.trim().to_ascii_lowercase();
                if let Some(value) = line.strip_prefix("content-length: ") {
                    length = value.parse().unwrap();
                }
                if line.is_empty() {
                    break;
                }
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).unwrap();
            let told = ExportTraceServiceRequest::decode(&body[..]).unwrap();
            // Before the answer: whoever has it may end.
            if sender.send(told).is_err() {
                return;
            }
            stream.get_mut().write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
        }
    });
    (address, requests)
}

fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// How many values a histogram has of all children together, by its last buckets.
fn counted(metrics: &str, name: &str) -> u64 {
    let buckets = metrics.lines().filter(|line| {
        line.starts_with(&format!("{name}_bucket{{child=\"")) && line.contains(",le=\"+Inf\"}")
    });
    buckets.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

#[test]
fn a_request_is_one_trace_from_the_client_to_the_member_and_the_end_loses_none_of_it() {
    let (address, requests) = collector();
    let mut cluster = plan()
        .set(&format!("trace.otlp=http://{address}"))
        .set("trace.sample=1")
        .set("trace.service_name=edge")
        .start();
    let page = get(
        &format!("{}/", cluster.http()),
        &["-H", &format!("traceparent: 00-{TRACE}-{PARENT}-00"), "-H", "X-Request-Id: mine-1"],
    );
    assert_eq!((page.status, page.header("x-request-id")), (200, Some("mine-1")), "{page:?}");
    let metrics = get(&format!("http://{}/metrics", cluster.node("proxy-1")["meta"].as_str().unwrap()), &[]);
    for name in ["request", "upstream_first_byte"] {
        assert!(counted(&metrics.text(), &format!("protoplex_http_{name}_seconds")) > 0, "{name}");
    }
    cluster.stop();
    let log = std::fs::read_dir(cluster.data().join("log")).unwrap().flatten();
    let log: String = log
        .filter(|file| file.file_name().to_string_lossy().contains("access"))
        .map(|file| std::fs::read_to_string(file.path()).unwrap())
        .collect();
    assert!(log.contains(&format!("\"request_id\":\"mine-1\",\"trace_id\":\"{TRACE}\"")), "{log}");

    // Whoever told it, its kind, its parent and its own id.
    let mut told = Vec::new();
    for resource in requests.try_iter().flat_map(|request| request.resource_spans) {
        let by = format!("{:?}", resource.resource);
        assert!(by.contains("\"edge\""), "{by}");
        for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            if hex(&span.trace_id) == TRACE {
                let node = ["proxy-1", "fileserver-1"].into_iter().find(|node| by.contains(node));
                told.push((node, span.kind, hex(&span.parent_span_id), hex(&span.span_id)));
            }
        }
    }
    let id_of = |node, kind, parent: &str| {
        let found =
            told.iter().find(|(by, of, within, _)| *by == Some(node) && *of == kind && within == parent);
        found.map(|(.., id)| id.clone()).unwrap_or_else(|| panic!("no span of {node} in {parent}: {told:?}"))
    };
    let (server, client) = (2, 3);
    let proxy = id_of("proxy-1", server, PARENT);
    let asking = id_of("proxy-1", client, &proxy);
    id_of("fileserver-1", server, &asking);
    assert_eq!(told.len(), 3, "{told:?}");
}

#[test]
fn row_bad_trace_settings_are_told_together() {
    let told = std::process::Command::new(env!("CARGO_BIN_EXE_protoplex"))
        .args([
            "--set",
            "trace.otlp=127.0.0.1:4318",
            "--set",
            "trace.sample=2",
            "--set",
            "trace.rate=1",
            "check",
        ])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&told.stderr);
    assert_eq!(told.status.code(), Some(2), "{text}");
    for key in ["trace.otlp", "trace.sample", "rate"] {
        assert!(text.contains(key), "{key} in {text}");
    }
}

#[test]
fn all_nodes_choose_the_same_traces() {
    let (address, requests) = collector();
    let mut cluster = plan().set(&format!("trace.otlp=http://{address}")).set("trace.sample=0.5").start();
    let traces: Vec<_> = (1..=40).map(|number| format!("{number:032x}")).collect();
    for trace in &traces {
        let parent = format!("traceparent: 00-{trace}-{PARENT}-01");
        assert_eq!(get(&format!("{}/", cluster.http()), &["-H", &parent]).status, 200);
    }
    cluster.stop();
    let resources = requests.try_iter().flat_map(|request| request.resource_spans);
    let spans = resources.flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans);
    let told: Vec<_> = spans.map(|span| hex(&span.trace_id)).collect();
    let counts = traces.iter().map(|trace| told.iter().filter(|told| *told == trace).count());
    // Of each trace all of it or nothing; that one of the two does not occur happens once in 2^39 runs.
    let counts: std::collections::BTreeSet<_> = counts.collect();
    assert_eq!(counts, [0, 3].into());
}
