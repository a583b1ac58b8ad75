//! Requests that break a rule, in the clear and over TLS, by HTTP/1.1 and where it applies by HTTP/2: which answer, that
//! it can be read, that the connection ends, that no handler saw it, and that a backend behind a relay was sent nothing.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::frames::{Frames, Outcome};
use crate::kit::{Raw, Watched, echo, limits, run, settle, start, text};

/// Sends the bytes and, behind them, more than any buffer holds: the answer must arrive all the same.
fn refused_head(bytes: &[u8], status: u16, problem: &str) {
    run(async move {
        let seen = Rc::new(Cell::new(0));
        let counter = Rc::clone(&seen);
        let server = start(limits(), move |_, _| {
            counter.set(counter.get() + 1);
            async { text("seen") }
        });
        refused(Raw::connect(server.address).await, bytes, status, problem).await;
        assert_eq!(seen.get(), 0);
        let watched = Watched::start().await;
        refused(Raw::connect(watched.plain.address).await, bytes, status, problem).await;
        refused(Raw(watched.connect_tls("http/1.1").await), bytes, status, problem).await;
        settle().await;
        assert_eq!(watched.seen(), [""; 0], "the backend was even connected to");
    });
}

async fn refused<S>(mut client: Raw<S>, bytes: &[u8], status: u16, problem: &str)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    client.send(bytes).await;
    client.send(vec![b'x'; 1 << 20]).await;
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.problem().as_str()), (status, problem));
    assert_eq!(answer.header("connection"), Some("close"));
    assert_eq!(client.rest().await, b"");
}

macro_rules! refused_heads {
    ($($row:ident: $bytes:expr => $status:literal $problem:literal;)*) => {
        $(#[test] fn $row() { refused_head(&$bytes[..], $status, $problem); })*
    };
}

refused_heads! {
    head_too_large_is_431:
        [b"GET / HTTP/1.1\r\nHost: a\r\nX: ", &[b'x'; 33 * 1024][..]].concat() => 431 "head-too-large";
    target_too_large_is_431: [b"GET /", &[b'x'; 33 * 1024][..]].concat() => 431 "head-too-large";
    too_many_headers_are_431:
        [b"GET / HTTP/1.1\r\nHost: a\r\n", &b"X: y\r\n".repeat(100)[..], b"\r\n"].concat() => 431 "too-many-headers";
    two_content_lengths_are_400:
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc" => 400 "content-length-twice";
    two_differing_content_lengths_are_400:
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc" => 400 "content-length-twice";
    content_length_list_is_400:
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 3\r\n\r\nabc" => 400 "bad-content-length";
    content_length_with_transfer_encoding_is_400:
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            => 400 "content-length-with-transfer-encoding";
    transfer_encoding_with_content_length_is_400:
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n"
            => 400 "content-length-with-transfer-encoding";
    transfer_encoding_gzip_chunked_is_400:
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n" => 400 "bad-transfer-encoding";
    transfer_encoding_in_http_10_is_400:
        b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" => 400 "bad-transfer-encoding";
    bare_lf_is_400: b"GET / HTTP/1.1\nHost: a\n\n" => 400 "bare-lf";
    bare_lf_after_a_header_is_400: b"GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n" => 400 "bare-lf";
    bare_cr_is_400: b"GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n" => 400 "bare-cr";
    folded_line_is_400: b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n" => 400 "folded-line";
    space_before_colon_is_400: b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length : 3\r\n\r\n" => 400 "space-before-colon";
    nul_in_a_header_is_400: b"GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n" => 400 "bad-field-value";
    nul_in_the_target_is_400: b"GET /a\0b HTTP/1.1\r\nHost: a\r\n\r\n" => 400 "bad-target";
    invalid_method_is_400: b"G(T / HTTP/1.1\r\nHost: a\r\n\r\n" => 400 "bad-method";
    tls_on_the_plain_port_is_400: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" => 400 "bad-method";
    invalid_target_is_400: b"GET a/b HTTP/1.1\r\nHost: a\r\n\r\n" => 400 "bad-target";
    invalid_version_is_400: b"GET / HTTX/1.1\r\nHost: a\r\n\r\n" => 400 "bad-version";
    http_09_is_400: b"GET /\r\n" => 400 "bad-version";
    http_2_in_http_1_syntax_is_505: b"GET / HTTP/2.0\r\nHost: a\r\n\r\n" => 505 "unsupported-version";
    broken_http_2_preface_is_400: b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n" => 400 "bad-target";
    missing_host_is_400: b"GET / HTTP/1.1\r\n\r\n" => 400 "missing-host";
    two_hosts_are_400: b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n" => 400 "host-twice";
    invalid_host_is_400: b"GET / HTTP/1.1\r\nHost: a/../b\r\n\r\n" => 400 "bad-host";
    connect_is_501: b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n" => 501 "connect-not-supported";
}

/// A handler that has begun to read is told that the body is broken, and what it answers then is not what the
/// client gets.
fn refused_body(chunks: &[u8], problem: &str) {
    run(async move {
        let (ends, mut ended) = mpsc::unbounded_channel();
        let server = start(limits(), move |request, _| {
            let ends = ends.clone();
            async move {
                let answer = echo(request).await;
                let _ = ends.send(answer.status().as_u16());
                answer
            }
        });
        let mut client = Raw::connect(server.address).await;
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n").await;
        client.send(chunks).await;
        client.send(vec![b'x'; 1 << 20]).await;
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.problem().as_str()), (400, problem));
        assert_eq!(answer.header("connection"), Some("close"));
        assert_eq!(client.rest().await, b"");
        assert_eq!(ended.recv().await, Some(418));
        let watched = Watched::start().await;
        refused_midway(Raw::connect(watched.plain.address).await, chunks, problem, &watched, 1).await;
        refused_midway(Raw(watched.connect_tls("http/1.1").await), chunks, problem, &watched, 2).await;
    });
}

/// Nothing but what was sound is sent to the backend, and it sees that this was not all.
async fn refused_midway<S>(
    mut client: Raw<S>,
    chunks: &[u8],
    problem: &str,
    watched: &Watched,
    connections: usize,
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n").await;
    client.send(chunks).await;
    client.send(vec![b'x'; 1 << 20]).await;
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.problem().as_str()), (400, problem));
    assert_eq!(client.rest().await, b"");
    watched.until_broken_off(connections).await;
    let seen = watched.seen().pop().unwrap();
    let (head, body) = seen.split_once("\r\n\r\n").unwrap_or((&seen, ""));
    assert!(head.is_empty() || head.starts_with("POST / HTTP/1.1\r\n"), "{seen:?}");
    // Chunks that come together go on as one.
    let sound = ["3\r\nabc\r\n3\r\nabc\r\n", "6\r\nabcabc\r\n"];
    assert!(sound.iter().any(|sound| sound.starts_with(body)), "{seen:?}");
}

macro_rules! refused_bodies {
    ($($row:ident: $bytes:expr => $problem:literal;)*) => {
        $(#[test] fn $row() { refused_body($bytes, $problem); })*
    };
}

refused_bodies! {
    bad_chunk_size_is_400: b"xyz\r\n" => "bad-chunk-size";
    signed_chunk_size_is_400: b"+3\r\nabc\r\n" => "bad-chunk-size";
    overflowing_chunk_size_is_400: b"10000000000000003\r\nabc\r\n" => "bad-chunk-size";
    bare_lf_after_a_chunk_size_is_400: b"3\nabc\r\n" => "bare-lf";
    bad_chunk_extension_is_400: b"3;a b\r\nabc\r\n" => "bad-chunk-extension";
    missing_crlf_after_a_chunk_is_400: b"3\r\nabcd\r\n" => "chunk-not-ended";
    bad_trailer_is_400: b"0\r\nContent-Length: 3\r\n\r\n" => "bad-trailer";
    bare_lf_in_the_trailers_is_400: b"0\r\nDigest: x\n\r\n" => "bare-lf";
    a_key_in_the_trailers_is_400: b"0\r\nProtoplex-Key: x\r\n\r\n" => "bad-trailer";
    a_way_in_the_trailers_is_400: b"0\r\nX_Forwarded_For: x\r\n\r\n" => "bad-trailer";
}

const GET: [(&str, &[u8]); 3] = [(":method", b"GET"), (":scheme", b"http"), (":path", b"/")];
const POST: [(&str, &[u8]); 4] =
    [(":method", b"POST"), (":scheme", b"http"), (":path", b"/"), (":authority", b"a")];

/// Sends the frames of one request in the clear and over TLS. It must be refused, by an answer or without one, before
/// the backend is sent anything.
fn refused_over_http_2(fields: &[(&str, &[u8])]) {
    run(async {
        let watched = Watched::start().await;
        let plain = TcpStream::connect(watched.plain.address).await.unwrap();
        let told = ask(plain, fields).await;
        assert_eq!(ask(watched.connect_tls("h2").await, fields).await, told);
        assert!(matches!(told, Outcome::BrokenOff | Outcome::Status(400 | 501)), "{told:?}");
        settle().await;
        assert_eq!(watched.seen(), [""; 0], "the backend was even connected to");
    });
}

async fn ask<S: AsyncRead + AsyncWrite + Unpin>(stream: S, fields: &[(&str, &[u8])]) -> Outcome {
    let mut frames = Frames::open(stream).await;
    frames.headers(fields, true).await;
    frames.outcome().await
}

macro_rules! refused_over_http_2 {
    ($($row:ident: $start:expr, $($name:literal: $value:literal),*;)*) => {
        $(#[test] fn $row() {
            let more: &[(&str, &[u8])] = &[$(($name, &$value[..])),*];
            refused_over_http_2(&[&$start[..], more].concat());
        })*
    };
}

refused_over_http_2! {
    h2_two_content_lengths: POST, "content-length": b"0", "content-length": b"0";
    h2_two_differing_content_lengths: POST, "content-length": b"0", "content-length": b"4";
    h2_content_length_list: POST, "content-length": b"0, 0";
    h2_signed_content_length: POST, "content-length": b"+0";
    h2_content_length_without_a_body: POST, "content-length": b"3";
    h2_transfer_encoding: POST, "transfer-encoding": b"chunked";
    h2_content_length_with_transfer_encoding: POST, "content-length": b"0", "transfer-encoding": b"chunked";
    h2_connection: POST, "connection": b"close";
    h2_upgrade: POST, "upgrade": b"websocket";
    h2_te: POST, "te": b"gzip";
    h2_upper_case_name: POST, "Content-Length": b"0";
    h2_blank_in_a_name: POST, "content-length ": b"0";
    h2_colon_in_a_name: POST, "x:y": b"0";
    h2_empty_name: POST, "": b"0";
    h2_line_end_in_a_name: POST, "x\r\ny": b"0";
    h2_nul_in_a_value: POST, "x": b"a\0b";
    h2_line_feed_in_a_value: POST, "x": b"a\nTransfer-Encoding: chunked";
    h2_line_end_in_a_value: POST, "x": b"a\r\n\r\nGET / HTTP/1.1";
    h2_missing_host: GET,;
    h2_empty_host: GET, ":authority": b"";
    h2_invalid_authority: GET, ":authority": b"a/../b";
    h2_user_in_the_authority: GET, ":authority": b"user@a";
    h2_line_end_in_the_authority: GET, ":authority": b"a\r\nX: y";
    h2_invalid_host: GET, "host": b"a b";
    h2_two_hosts: GET, "host": b"a", "host": b"b";
    h2_another_host_than_the_authority: GET, ":authority": b"a", "host": b"b";
    h2_two_authorities: GET, ":authority": b"a", ":authority": b"b";
    h2_pseudo_field_behind_a_field: GET, "x": b"y", ":authority": b"a";
    h2_unknown_pseudo_field: GET, ":authority": b"a", ":x": b"y";
    h2_status_in_a_request: GET, ":authority": b"a", ":status": b"200";
    h2_missing_path: [(":method", &b"GET"[..]), (":scheme", b"http")], ":authority": b"a";
    h2_empty_path: GET[..2], ":path": b"", ":authority": b"a";
    h2_blank_in_the_path: GET[..2], ":path": b"/ HTTP/1.1", ":authority": b"a";
    h2_line_end_in_the_path: GET[..2], ":path": b"/ HTTP/1.1\r\nX: y", ":authority": b"a";
    h2_nul_in_the_path: GET[..2], ":path": b"/a\0b", ":authority": b"a";
    h2_del_in_the_path: GET[..2], ":path": b"/a\x7fb", ":authority": b"a";
    h2_raw_utf_8_in_the_path: GET[..2], ":path": b"/zo\xc3\xab", ":authority": b"a";
    h2_raw_utf_8_in_the_query: GET[..2], ":path": b"/?zo\xc3\xab", ":authority": b"a";
    h2_relative_path: GET[..2], ":path": b"a/b", ":authority": b"a";
    h2_invalid_method: [(":method", &b"G T"[..]), (":scheme", b"http"), (":path", b"/")], ":authority": b"a";
    h2_connect: [(":method", &b"CONNECT"[..])], ":authority": b"a:443";
}

/// Of a body that breaks a rule the backend is sent what was sound, and then sees it break off.
fn body_refused_over_http_2(length: Option<&'static [u8]>, end: bool, trailers: Option<&'static str>) {
    run(async {
        let watched = Watched::start().await;
        let plain = TcpStream::connect(watched.plain.address).await.unwrap();
        body_refused(plain, &watched, 1, length, end, trailers).await;
        body_refused(watched.connect_tls("h2").await, &watched, 2, length, end, trailers).await;
    });
}

async fn body_refused<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    watched: &Watched,
    connections: usize,
    length: Option<&[u8]>,
    end: bool,
    trailers: Option<&str>,
) {
    let mut frames = Frames::open(stream).await;
    let length = length.map(|length| ("content-length", length));
    frames.headers(&POST.into_iter().chain(length).collect::<Vec<_>>(), false).await;
    // What is refused with its first byte need not have been begun.
    crate::kit::until(|| watched.seen().len() == connections).await;
    frames.data(b"abc", end).await;
    if let Some(name) = trailers {
        frames.headers(&[(name, b"x")], true).await;
    }
    let told = frames.outcome().await;
    assert!(matches!(told, Outcome::BrokenOff | Outcome::Status(400)), "{told:?}");
    watched.until_broken_off(connections).await;
    let seen = watched.seen().pop().unwrap();
    assert!(!seen.contains("0\r\n\r\n"), "{seen:?} looks whole");
}

#[test]
fn h2_less_data_than_its_content_length() {
    body_refused_over_http_2(Some(b"7"), true, None);
}

#[test]
fn h2_more_data_than_its_content_length() {
    body_refused_over_http_2(Some(b"2"), false, None);
}

#[test]
fn h2_trailers_that_frame_route_or_tell_of_the_way() {
    for name in ["content-length", "host", "protoplex-key", "x-forwarded-for", "x_real_ip", "forwarded"] {
        body_refused_over_http_2(None, false, Some(name));
    }
}

#[test]
fn head_too_slow_is_408() {
    run(async {
        let limits = protoplex_http::Limits { head_timeout: Duration::from_millis(150), ..limits() };
        let server = start(limits, |_, _| async { text("seen") });
        let mut client = Raw::connect(server.address).await;
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n").await;
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.problem().as_str()), (408, "head-too-slow"));
        assert_eq!(client.rest().await, b"");
    });
}

#[test]
fn body_too_slow_is_408() {
    run(async {
        let limits = protoplex_http::Limits { body_idle_timeout: Duration::from_millis(150), ..limits() };
        let server = start(limits, |request, _| echo(request));
        let mut client = Raw::connect(server.address).await;
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc").await;
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.problem().as_str()), (408, "body-too-slow"));
        assert_eq!(client.rest().await, b"");
    });
}

#[test]
fn idle_connections_are_closed_without_a_word() {
    run(async {
        let limits = protoplex_http::Limits { idle_timeout: Duration::from_millis(150), ..limits() };
        let server = start(limits, |_, _| async { text("seen") });
        let mut fresh = Raw::connect(server.address).await;
        let mut used = Raw::connect(server.address).await;
        used.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(used.answer().await.body, "seen");
        assert_eq!(fresh.rest().await, b"");
        assert_eq!(used.rest().await, b"");
    });
}

#[test]
fn a_bad_chunk_is_never_forwarded() {
    run(async {
        let (ends, mut ended) = mpsc::unbounded_channel();
        let origin = start(limits(), move |request, _| {
            let ends = ends.clone();
            async move {
                let answer = echo(request).await;
                let _ = ends.send(answer.status().as_u16());
                answer
            }
        });
        let relay = crate::kit::start_relay(origin.address);
        let mut client = Raw::connect(relay.address).await;
        client
            .send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nnonsense\r\n")
            .await;
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.problem().as_str()), (400, "bad-chunk-size"));
        assert_eq!(ended.recv().await, Some(418), "the upstream must see the body break off");
    });
}

#[test]
fn a_bad_head_is_answered_alike_however_it_is_cut() {
    run(async {
        let server = start(limits(), |_, _| async { text("seen") });
        let heads: [(&[u8], u16); 4] = [
            (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 200),
            (b"GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n", 400),
            (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
            (b"P / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n", 400),
        ];
        for (head, status) in heads {
            for at in 0..=head.len() {
                let mut client = Raw::connect(server.address).await;
                client.send(&head[..at]).await;
                settle().await;
                client.send(&head[at..]).await;
                assert_eq!(
                    client.answer().await.status,
                    status,
                    "{:?} cut at {at}",
                    String::from_utf8_lossy(head)
                );
            }
        }
    });
}
