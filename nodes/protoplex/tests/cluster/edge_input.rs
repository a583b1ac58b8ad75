//! The rows of bad input that concern heads, framing and routing, from the outside.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use protoplex_testkit::cluster::Cluster;
use protoplex_testkit::until;

use crate::{get, start};

/// What the proxy answers to these bytes until it closes the connection.
fn exchange(cluster: &Cluster, bytes: &[u8]) -> String {
    let mut client = TcpStream::connect(cluster.http().strip_prefix("http://").unwrap()).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    client.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).expect("the connection is closed in good order");
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn row_malformed_heads_and_framing_are_refused_closed_and_never_forwarded() {
    let cluster = start();
    let large = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(100_000));
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(500));
    let cases: [(&str, &[u8], u16); 13] = [
        ("head too large", large.as_bytes(), 431),
        ("too many headers", many.as_bytes(), 431),
        (
            "two Content-Length",
            b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
            400,
        ),
        (
            "Content-Length with Transfer-Encoding",
            b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        ("bare LF", b"GET / HTTP/1.1\nHost: a\n\n", 400),
        ("bare LF in a header", b"GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n", 400),
        ("bare CR", b"GET / HTTP/1.1\r\nHost: a\rb\r\n\r\n", 400),
        ("bad chunk", b"PUT /files/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        ("space before the colon", b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400),
        ("obs-fold", b"GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n", 400),
        ("no Host", b"GET / HTTP/1.1\r\n\r\n", 400),
        ("two Hosts", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        ("NUL", b"GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n", 400),
    ];
    for (name, bytes, status) in cases {
        let answer = exchange(&cluster, bytes);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{name}: {answer}");
        assert!(!answer.contains("\nHTTP/1."), "{name}: one answer, not {answer}");
    }
}

#[test]
fn row_a_head_that_comes_too_slowly_is_408() {
    let cluster = crate::plan().set("proxy.limits.head_timeout_ms=300").start();
    let answer = exchange(&cluster, b"GET / HTTP/1.1\r\nHost: loc");
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
}

#[test]
fn row_behind_a_balancer_only_announced_connections_are_answered() {
    let cluster = crate::plan()
        .set(r#"proxy.proxy_protocol={from=["127.0.0.0/8"],required=true}"#)
        .set(r#"proxy.access_log={file="access.log"}"#)
        .start();
    let address = cluster.http().strip_prefix("http://").unwrap();
    let mut stranger = TcpStream::connect(address).unwrap();
    stranger.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stranger.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    // Closed in good order or not, it has no answer.
    let mut answer = Vec::new();
    let _ = stranger.read_to_end(&mut answer);
    assert_eq!(answer, b"");
    let request = b"PROXY TCP4 192.0.2.7 198.51.100.1 4000 80\r\n\
        GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let answer = exchange(&cluster, request);
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let log = cluster.folder().join("access.log");
    let line = until("the request is logged", || {
        std::fs::read_to_string(&log).ok().filter(|text| text.ends_with('\n'))
    });
    assert!(line.lines().count() == 1 && line.contains(r#""client":"192.0.2.7:4000""#), "{line}");
}

#[test]
fn row_a_request_without_handler_is_404_and_a_pool_without_members_503() {
    let cluster = start();
    cluster.json(&["handler", "add", "void", "--path", "/void/{id}", "--key", "{id}", "--pool", "void"]);
    let empty = get(&format!("{}/void/1", cluster.http()), &[]);
    assert_eq!(empty.status, 503, "{empty:?}");
    assert!(empty.header("retry-after").is_some());
    cluster.json(&["handler", "remove", "files"]);
    let none = get(&format!("{}/anything", cluster.http()), &[]);
    assert_eq!(none.status, 404, "{none:?}");
    assert!(none.text().contains("handler"), "{}", none.text());
}
