//! Balancers that announce clients by PROXY headers, proxies that tell of them in fields, and those who only pretend to.

use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use protoplex_http::access_log::{Format, Target};
use protoplex_http::tls::{ensure_local, load};
use protoplex_http::{
    AccessLog, Exchange, Fronts, Limits, Listener, RawProxyProtocol, Request, Response, Surroundings,
    forwarded,
};
use protoplex_runtime::config::Problems;
use protoplex_runtime::log_file::Rotation;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::kit::{
    Metrics, Raw, Server, curl, limits, run, start_behind, start_listener, text, tls_over, within,
};

/// Every address that a test can come from, or none.
const HERE: &str = "127.0.0.0/8";
const ELSEWHERE: &str = "10.0.0.0/8";
const REQUEST: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const V1: &str = "PROXY TCP4 192.0.2.7 198.51.100.1 4000 443\r\n";
const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

fn fronts(from: &str, required: bool, trusted: &[&str]) -> Fronts {
    let raw = RawProxyProtocol { from: vec![from.to_owned()], required };
    let trusted: Vec<String> = trusted.iter().copied().map(Into::into).collect();
    let mut problems = Problems::default();
    let fronts = Fronts::resolve(Some(&raw), &trusted, "proxy", &mut problems);
    problems.finish().unwrap();
    fronts
}

/// Answers with who the client is, to us and to whoever we would relay to.
async fn who(_: Request, exchange: Rc<Exchange>) -> Response {
    let head = forwarded::request_head(&exchange);
    let told = head.fields().get_named(b"x-forwarded-for").unwrap_or_default();
    text(format!("{} {} {}", exchange.peer, exchange.client_ip(), String::from_utf8_lossy(told)))
}

fn start(from: &str, required: bool) -> Server {
    start_behind(fronts(from, required, &[]), limits(), who)
}

/// A header of version 2 for TCP over IPv4 from 192.0.2.7:4000, with more behind its addresses.
fn v2(command: u8, more: &[u8]) -> Vec<u8> {
    let block = [&[192, 0, 2, 7, 198, 51, 100, 1, 0x0f, 0xa0, 0x01, 0xbb], more].concat();
    let length = u16::try_from(block.len()).unwrap().to_be_bytes();
    [V2_SIGNATURE, &[0x20 | command, 0x11], &length, &block].concat()
}

/// Of the header with the values below, by another program.
const CHECKSUM: [u8; 4] = 0xA606_4589_u32.to_be_bytes();

/// What is answered to a request behind these bytes.
async fn ask(server: &Server, header: impl AsRef<[u8]>) -> String {
    let mut client = Raw::connect(server.address).await;
    client.send([header.as_ref(), REQUEST.as_bytes()].concat()).await;
    let first = client.answer().await.body;
    client.send(REQUEST).await;
    assert_eq!(client.answer().await.body, first, "it is the same for the next request");
    first
}

/// Waits until a connection is ended, or broken off, without a byte.
async fn closed(mut client: Raw) {
    let mut rest = Vec::new();
    let _ = within(client.0.read_to_end(&mut rest)).await;
    assert_eq!(rest, b"", "{}", rest.escape_ascii());
}

#[test]
fn a_balancer_tells_whose_connection_it_is() {
    run(async {
        for required in [true, false] {
            let server = start(HERE, required);
            let known = "192.0.2.7:4000 192.0.2.7 192.0.2.7";
            assert_eq!(ask(&server, V1).await, known);
            assert_eq!(ask(&server, v2(1, &[])).await, known);
            // A checksum that is right, behind a value that is passed over.
            let values = [&[0x20, 0, 1, 9][..], &[0x03, 0, 4], &CHECKSUM].concat();
            assert_eq!(ask(&server, v2(1, &values)).await, known);
        }
    });
}

#[test]
fn a_connection_of_the_balancer_s_own_keeps_its_address() {
    run(async {
        let server = start(HERE, true);
        for header in [v2(0, &[]), b"PROXY UNKNOWN\r\n".to_vec()] {
            let answer = ask(&server, header).await;
            assert!(answer.starts_with("127.0.0.1:") && answer.ends_with(" 127.0.0.1 127.0.0.1"), "{answer}");
        }
    });
}

#[test]
fn a_header_may_come_byte_by_byte_and_what_is_behind_it_is_read_once() {
    run(async {
        for required in [true, false] {
            let server = start(HERE, required);
            for header in [V1.as_bytes().to_vec(), v2(1, &[0x04, 0, 3, 1, 2, 3])] {
                let mut client = Raw::connect(server.address).await;
                for byte in [&header, REQUEST.as_bytes()].concat() {
                    client.send([byte]).await;
                    tokio::task::yield_now().await;
                }
                assert_eq!(client.answer().await.body, "192.0.2.7:4000 192.0.2.7 192.0.2.7");
            }
        }
    });
}

#[test]
fn curl_is_announced_over_every_protocol() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let local = ensure_local(dir.path(), &[]).unwrap();
        let tls = load(&local.certificate, &local.key).unwrap();
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let listener = Listener { socket, tls: Some(tls), fronts: fronts(HERE, true, &[]) };
        let secure = start_listener(listener, limits(), Surroundings::from, AccessLog::off(), who);
        let plain = start(HERE, true);
        let (http, https) = (format!("http://{}/", plain.address), format!("https://{}/", secure.address));
        let authority = local.authority.to_str().unwrap();
        for (version, url) in [
            ("--http1.1", &http),
            ("--http2-prior-knowledge", &http),
            ("--http1.1", &https),
            ("--http2", &https),
        ] {
            let announce = ["--haproxy-protocol", "--cacert", authority];
            let (fine, told) = curl(&[&announce[..], &[version, url.as_str()]].concat()).await;
            assert!(fine && told.ends_with(" 127.0.0.1 127.0.0.1"), "{version} {url}: {told}");
        }
        let mut stream = TcpStream::connect(secure.address).await.unwrap();
        stream.write_all(&v2(1, &[])).await.unwrap();
        let mut client = Raw(tls_over(stream, &local.authority).await);
        client.send(REQUEST).await;
        assert_eq!(client.answer().await.body, "192.0.2.7:4000 192.0.2.7 192.0.2.7");
    });
}

#[test]
fn without_a_header_one_that_is_not_required_is_served_as_it_is() {
    run(async {
        let server = start(HERE, false);
        let own = " 127.0.0.1 127.0.0.1";
        assert!(ask(&server, "").await.ends_with(own));
        // They begin as a header might.
        for request in
            ["POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", "PROXX / HTTP/1.1\r\nHost: a\r\n\r\n"]
        {
            let mut client = Raw::connect(server.address).await;
            for byte in request.bytes() {
                client.send([byte]).await;
                tokio::task::yield_now().await;
            }
            assert!(client.answer().await.body.ends_with(own));
        }
        let url = format!("http://{}/", server.address);
        let (fine, told) = curl(&["--http2-prior-knowledge", &url]).await;
        assert!(fine && told.ends_with(own), "{told}");
    });
}

#[test]
fn row_from_elsewhere_a_header_is_none() {
    run(async {
        for server in
            [start(ELSEWHERE, true), start(ELSEWHERE, false), start_behind(Fronts::default(), limits(), who)]
        {
            let mut neighbour = Raw::connect(server.address).await;
            for (header, problem) in [(V1.as_bytes(), "bad-target"), (&v2(1, &[]), "bad-method")] {
                let mut client = Raw::connect(server.address).await;
                client.send([header, REQUEST.as_bytes()].concat()).await;
                let answer = client.answer().await;
                assert_eq!((answer.status, answer.problem().as_str()), (400, problem));
                assert_eq!(client.rest().await, b"");
            }
            neighbour.send(REQUEST).await;
            assert!(neighbour.answer().await.body.ends_with(" 127.0.0.1"));
        }
    });
}

/// Nothing is answered, the reason is counted, and a neighbour's requests are answered before, meanwhile and after.
fn refused(sent: &[u8], ends: bool, limits: Limits, reason: &'static str) {
    run(async move {
        let metrics = Metrics::default();
        let _kept = metrics.keep();
        // A neighbour's request is in flight, unless that would be too slow itself.
        let in_flight = if limits.head_timeout > Duration::from_secs(1) { 9 } else { 0 };
        let server = start_behind(fronts(HERE, true, &[]), limits, who);
        let mut neighbour = Raw::connect(server.address).await;
        neighbour.send([V1, REQUEST].concat()).await;
        assert_eq!(neighbour.answer().await.status, 200);
        let (half, rest) = REQUEST.split_at(in_flight);
        neighbour.send(half).await;
        let mut client = Raw::connect(server.address).await;
        client.send(sent).await;
        if ends {
            client.0.shutdown().await.unwrap();
        }
        closed(client).await;
        neighbour.send(rest).await;
        assert_eq!(neighbour.answer().await.body, "192.0.2.7:4000 192.0.2.7 192.0.2.7");
        let name = format!("protoplex_http_proxy_headers_refused_total{{reason={reason:?}}}");
        assert_eq!(metrics.counter(&name), 1);
    });
}

macro_rules! refused_headers {
    ($($row:ident: $sent:expr => $reason:literal;)*) => {
        $(#[test] fn $row() { refused(&$sent[..], false, limits(), $reason); })*
    };
}

refused_headers! {
    row_a_malformed_proxy_header_is_closed: b"PROXY TCP4 192.0.2.7 x 4000 443\r\nGET / HTTP/1.1\r\n" => "malformed";
    row_a_malformed_binary_proxy_header_is_closed: v2(2, b"GET / HTTP/1.1\r\n") => "malformed";
    row_a_proxy_header_that_is_too_long_is_closed: [b"PROXY TCP4 ", &[b'1'; 500][..]].concat() => "too-long";
    row_a_binary_proxy_header_that_is_too_long_is_closed: v2(1, &[0; 5000]) => "too-long";
    row_a_proxy_header_with_a_wrong_checksum_is_closed: v2(1, &[0x03, 0, 4, 1, 2, 3, 4]) => "bad-checksum";
    row_a_request_without_the_proxy_header_is_closed: REQUEST.as_bytes() => "missing";
    row_tls_without_the_proxy_header_is_closed: b"\x16\x03\x01\x02\x00\x01\x00" => "missing";
}

#[test]
fn row_a_truncated_proxy_header_is_closed() {
    refused(b"PROXY TCP4 192.0.2.7 ", true, limits(), "truncated");
    refused(&v2(1, &[])[..20], true, limits(), "truncated");
}

#[test]
fn row_a_proxy_header_that_comes_too_slowly_is_closed() {
    let limits = || Limits { head_timeout: Duration::from_millis(300), ..limits() };
    refused(&v2(1, &[])[..20], false, limits(), "too-slow");
    // Nothing at all, where a header is required.
    refused(b"", false, limits(), "too-slow");
}

#[test]
fn a_balancer_that_only_connects_is_no_fault_and_holds_nothing_up() {
    run(async {
        let metrics = Metrics::default();
        let _kept = metrics.keep();
        let server = start(HERE, true);
        drop(Raw::connect(server.address).await);
        let silent = Raw::connect(server.address).await;
        ask(&server, V1).await;
        server.trigger.pull();
        within(server.task).await.unwrap();
        closed(silent).await;
        let total =
            ["missing", "malformed", "too-long", "bad-checksum", "truncated", "too-slow"].map(|reason| {
                metrics.counter(&format!("protoplex_http_proxy_headers_refused_total{{reason={reason:?}}}"))
            });
        assert_eq!(total, [0; 6]);
    });
}

/// A connection from another address of this machine.
async fn connect_from(ip: [u8; 4], to: SocketAddr) -> Raw {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((Ipv4Addr::from(ip), 0).into()).unwrap();
    let stream: TcpStream = socket.connect(to).await.unwrap();
    Raw(stream)
}

#[test]
fn a_trusted_proxy_tells_of_its_clients_and_a_stranger_of_nobody() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log");
        let log = AccessLog::open(&Target::File(path.clone()), Format::Json, Rotation::default()).unwrap();
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        // The balancer at 127.0.0.2 announces connections, of which those of 192.0.2.7 are a proxy's.
        let fronts = fronts("127.0.0.2", true, &["192.0.2.7", "127.0.0.3"]);
        let listener = Listener { socket, tls: None, fronts };
        let server = start_listener(listener, limits(), Surroundings::from, log, who);
        let told =
            "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 198.51.100.1, 203.0.113.9, 192.0.2.7\r\n\r\n";
        let way = "198.51.100.1, 203.0.113.9, 192.0.2.7, ";
        for (ip, header, client, way) in [
            ([127, 0, 0, 2], V1, "203.0.113.9", format!("{way}192.0.2.7")),
            ([127, 0, 0, 3], "", "203.0.113.9", format!("{way}127.0.0.3")),
            ([127, 0, 0, 4], "", "127.0.0.4", "127.0.0.4".to_owned()),
        ] {
            let mut connection = connect_from(ip, server.address).await;
            connection.send([header, told].concat()).await;
            let answer = connection.answer().await.body;
            assert!(answer.ends_with(&format!(" {client} {way}")), "{answer}");
        }
        server.trigger.pull();
        within(server.task).await.unwrap();
        let lines = std::fs::read_to_string(&path).unwrap();
        let clients: Vec<String> = lines
            .lines()
            .map(|line| {
                serde_json::from_str::<serde_json::Value>(line).unwrap()["client"]
                    .as_str()
                    .unwrap()
                    .to_owned()
            })
            .collect();
        assert_eq!(clients[..2], ["203.0.113.9", "203.0.113.9"]);
        assert!(clients[2].starts_with("127.0.0.4:"), "{clients:?}");
    });
}
