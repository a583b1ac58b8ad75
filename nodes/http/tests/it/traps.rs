//! The traps that the engine's prototype fell into, or came near to, one test each.

use std::cell::Cell;
use std::io::{Read, Write};
use std::rc::Rc;
use std::time::Duration;

use protoplex_http::upstream::Settings;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::kit::{limits, settle, within};
use crate::stage::{
    Finish, Peer, Stage, assert_same, chunked, in_the_clear_and_over_tls, narrow_listener, pattern,
};

const MIB: usize = 1 << 20;

fn header(head: &str, name: &str) -> Option<String> {
    let head = head.to_lowercase();
    head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ").map(str::to_owned))
}

/// The body of a request with this head.
async fn body_of(peer: &mut Peer, head: &str) -> Option<Vec<u8>> {
    match header(head, "content-length") {
        Some(length) => {
            let length = length.parse().unwrap();
            Some(peer.body(length).await).filter(|body| body.len() == length)
        }
        None if header(head, "transfer-encoding").is_some() => peer.chunked_body().await,
        None => Some(Vec::new()),
    }
}

/// Sends a body back with its length, or, where the target says so, in chunks, with the connection's number in a field.
async fn echo(mut peer: Peer) {
    while let Some(head) = peer.head().await {
        let Some(body) = body_of(&mut peer, &head).await else { return };
        let at = format!("HTTP/1.1 200 OK\r\nX-At: {}\r\n", peer.at);
        if head.contains(" /chunked ") {
            peer.send(
                [at.as_bytes(), b"Transfer-Encoding: chunked\r\n\r\n", &chunked(&body, 10_000)].concat(),
            )
            .await;
        } else {
            let length = format!("Content-Length: {}\r\n\r\n", body.len());
            peer.send([at.as_bytes(), length.as_bytes(), &body].concat()).await;
        }
    }
}

#[test]
fn trap_1_a_large_post_behind_small_gets_on_the_same_connections() {
    in_the_clear_and_over_tls(async |tls| {
        let stage = Stage::start(tls, echo).await;
        let mut client = stage.client().await;
        let body = pattern(5 * MIB);
        for target in ["/", "/chunked"] {
            for _ in 0..10 {
                client.assert_stays(target).await;
            }
            for framed in [
                [format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes(), &body].concat(),
                [b"Transfer-Encoding: chunked\r\n\r\n", &chunked(&body, 70_000)[..]].concat(),
            ] {
                let head = format!("POST {target} HTTP/1.1\r\nHost: a\r\n");
                // The upstream answers when it has all of it, so nothing need be read meanwhile.
                client.send([head.as_bytes(), &framed].concat()).await;
                let answer = client.answer(false).await;
                assert_eq!((answer.status, answer.finish), (200, Finish::Whole));
                assert_same(&answer.body, &body);
                client.assert_stays(target).await;
            }
        }
        assert_eq!(stage.notes.connections.get(), 1);
    });
}

#[test]
fn trap_2_a_pooled_connection_behind_a_large_body_is_used_again_and_sound() {
    in_the_clear_and_over_tls(async |tls| {
        let stage = Stage::start(tls, async |mut peer| {
            while let Some(head) = peer.head().await {
                let size: usize = header(&head, "x-size").unwrap().parse().unwrap();
                peer.answer(pattern(size)).await;
            }
        })
        .await;
        let mut client = stage.client().await;
        // From what is sent as one to what goes by splice, and both sides of each limit.
        for size in [0, 1, 16_383, 16_384, 65_535, 65_536, 65_537, 131_072, MIB - 1, MIB, 3 * MIB, 10, MIB, 0]
        {
            client.send(format!("GET / HTTP/1.1\r\nHost: a\r\nX-Size: {size}\r\n\r\n")).await;
            let answer = client.answer(false).await;
            assert_eq!(answer.finish, Finish::Whole, "{size}");
            assert_same(&answer.body, &pattern(size));
            settle().await;
        }
        assert_eq!(stage.notes.connections.get(), 1);
    });
}

#[test]
fn trap_2_bytes_behind_a_large_body_forbid_reuse() {
    for pauses in [false, true] {
        in_the_clear_and_over_tls(async |tls| {
            let stage = Stage::start(tls, async move |mut peer| {
                while peer.head().await.is_some() {
                    peer.answer(pattern(MIB)).await;
                    if pauses {
                        settle().await;
                    }
                    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfalse").await;
                }
            })
            .await;
            let mut client = stage.client().await;
            for connections in 1..4 {
                let answer = client.assert_stays("/").await;
                assert_same(&answer.body, &pattern(MIB));
                assert_eq!(stage.notes.connections.get(), connections);
                settle().await;
            }
        });
    }
}

#[test]
fn trap_2_an_end_behind_a_large_body_forbids_reuse() {
    in_the_clear_and_over_tls(async |tls| {
        let stage = Stage::start(tls, async move |mut peer| {
            if peer.head().await.is_some() {
                peer.answer(pattern(MIB)).await;
                peer.end().await;
                peer.ended().await;
            }
        })
        .await;
        let mut client = stage.client().await;
        for _ in 0..3 {
            assert_same(&client.assert_stays("/").await.body, &pattern(MIB));
            settle().await;
        }
        assert_eq!(stage.notes.connections.get(), 3);
        stage.until_open(0).await;
    });
}

#[test]
fn trap_3_a_request_in_one_flight_with_the_end_of_the_handshake() {
    crate::kit::run(async {
        let stage = Stage::start(true, echo).await;
        for requests in [1, 3] {
            let name = ServerName::try_from("127.0.0.1").unwrap();
            let mut tls = rustls::ClientConnection::new(stage.tls(), name).unwrap();
            let mut stream = TcpStream::connect(stage.relay).await.unwrap();
            let request = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello".repeat(requests);
            // Kept back by rustls until it may be sent.
            tls.writer().write_all(request.as_bytes()).unwrap();
            let mut plain = Vec::new();
            while plain.windows(5).filter(|bytes| bytes == b"hello").count() < requests {
                let mut flight = Vec::new();
                while tls.wants_write() {
                    tls.write_tls(&mut flight).unwrap();
                }
                stream.write_all(&flight).await.unwrap();
                let mut piece = vec![0; 1 << 14];
                let length = within(stream.read(&mut piece)).await.unwrap();
                assert!(length > 0, "the relay has ended the connection");
                let mut piece = &piece[..length];
                while !piece.is_empty() {
                    tls.read_tls(&mut piece).unwrap();
                    tls.process_new_packets().unwrap();
                }
                let mut piece = vec![0; 1 << 14];
                if let Ok(length) = tls.reader().read(&mut piece) {
                    plain.extend_from_slice(&piece[..length]);
                }
            }
        }
    });
}

#[test]
fn trap_4_an_end_together_with_the_last_data_is_read_after_it() {
    for body in [&b"hello"[..], &pattern(3 * MIB)] {
        in_the_clear_and_over_tls(async |tls| {
            let stage = Stage::start(tls, echo).await;
            for framed in [
                [format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes(), body].concat(),
                [b"Transfer-Encoding: chunked\r\n\r\n", &chunked(body, 100_000)[..]].concat(),
            ] {
                let mut client = stage.client().await;
                client.send([b"POST / HTTP/1.1\r\nHost: a\r\n", &framed[..]].concat()).await;
                client.half_close().await;
                let answer = client.answer(false).await;
                assert_eq!((answer.status, answer.finish), (200, Finish::Whole));
                assert_same(&answer.body, body);
                client.assert_ended().await;
            }
        });
    }
}

#[test]
fn trap_6_pipelined_bytes_left_over_are_the_next_request() {
    in_the_clear_and_over_tls(async |tls| {
        let stage = Stage::start(tls, echo).await;
        let mut client = stage.client().await;
        let body = pattern(100_000);
        let mut requests = Vec::new();
        for size in [0, 1, 20_000, 100_000, 3] {
            write!(requests, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n").unwrap();
            requests.extend_from_slice(&body[..size]);
            requests.extend_from_slice(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
            requests.extend_from_slice(&chunked(&body[..size], 5000));
        }
        client.send(requests).await;
        for size in [0, 1, 20_000, 100_000, 3] {
            for _ in 0..2 {
                assert_same(&client.answer(false).await.body, &body[..size]);
            }
        }
        assert_eq!(stage.notes.connections.get(), 1);
    });
}

/// What an upstream does with the second request of a connection.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stale {
    EndsBefore,
    ResetsBefore,
    Ends,
    Resets,
    EndsIn(&'static str),
}

/// How often the upstream was asked, and what the client got.
fn stale(stale: Stale, request: &'static str, asked: usize, status: u16) {
    in_the_clear_and_over_tls(async |tls| {
        let first = Rc::new(Cell::new(true));
        let (go, gone) = (Rc::new(Notify::new()), Rc::new(Notify::new()));
        let (goes, is_gone) = (Rc::clone(&go), Rc::clone(&gone));
        let stage = Stage::start(tls, async move |mut peer| {
            let before = matches!(stale, Stale::EndsBefore | Stale::ResetsBefore);
            let is_first = first.replace(false);
            while let Some(head) = peer.head().await {
                let Some(_) = body_of(&mut peer, &head).await else { return };
                if !is_first {
                    peer.answer("fresh").await;
                } else if head.starts_with("GET /first ") {
                    peer.answer("first").await;
                    if before {
                        goes.notified().await;
                        if stale == Stale::ResetsBefore {
                            peer.stream.set_zero_linger().unwrap();
                        }
                        drop(peer);
                        return is_gone.notify_one();
                    }
                } else {
                    match stale {
                        Stale::Resets => return peer.reset(),
                        Stale::EndsIn(part) => peer.send(part).await,
                        _ => {}
                    }
                    return;
                }
            }
        })
        .await;
        let mut client = stage.client().await;
        client.send("GET /first HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(client.answer(false).await.text(), "first");
        if matches!(stale, Stale::EndsBefore | Stale::ResetsBefore) {
            go.notify_one();
            // Not a turn of the loop more than it takes: the relay may know, or may not.
            gone.notified().await;
        }
        client.send(request).await;
        let mut answer = client.answer_to(request.as_bytes()).await;
        while answer.status < 200 {
            answer = client.answer_to(request.as_bytes()).await;
        }
        assert_eq!((answer.status, answer.finish), (status, Finish::Whole), "{answer:?}");
        let heads = stage.notes.heads.borrow().len() - 1;
        assert_eq!(heads, asked, "so often the request was sent");
        assert_eq!(stage.ask(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.text(), "fresh");
    });
}

macro_rules! stale_connections {
    ($($row:ident: $stale:expr, $request:expr => $asked:literal, $status:literal;)*) => {
        $(#[test] fn $row() { stale($stale, $request, $asked, $status); })*
    };
}

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello";
const EMPTY_POST: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n";
const PUT: &str = "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello";
const DELETE: &str = "DELETE / HTTP/1.1\r\nHost: a\r\n\r\n";
const PATCH: &str = "PATCH / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n";

// Trap 7: asked once more is only what is idempotent, is there as it was, and of whose answer nothing was seen.
stale_connections! {
    trap_7_an_end_before_a_get: Stale::EndsBefore, GET => 1, 200;
    trap_7_an_end_before_a_post: Stale::EndsBefore, POST => 1, 200;
    trap_7_a_reset_before_a_get: Stale::ResetsBefore, GET => 1, 200;
    trap_7_a_reset_before_a_post: Stale::ResetsBefore, POST => 1, 200;
    trap_7_an_end_in_answer_to_a_get: Stale::Ends, GET => 2, 200;
    trap_7_an_end_in_answer_to_a_delete: Stale::Ends, DELETE => 2, 200;
    trap_7_a_reset_in_answer_to_a_get: Stale::Resets, GET => 2, 200;
    trap_7_an_end_in_answer_to_a_post: Stale::Ends, POST => 1, 502;
    trap_7_an_end_in_answer_to_an_empty_post: Stale::Ends, EMPTY_POST => 1, 502;
    trap_7_an_end_in_answer_to_a_patch: Stale::Ends, PATCH => 1, 502;
    trap_7_a_reset_in_answer_to_a_post: Stale::Resets, POST => 1, 502;
    trap_7_an_end_in_answer_to_a_put_whose_body_is_gone: Stale::Ends, PUT => 1, 502;
    trap_7_an_end_in_an_answers_first_byte: Stale::EndsIn("H"), GET => 1, 502;
    trap_7_an_end_in_an_answers_head: Stale::EndsIn("HTTP/1.1 200 OK\r\nContent-Le"), GET => 1, 502;
    trap_7_an_end_behind_a_hint: Stale::EndsIn("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"), GET => 1, 502;
    trap_7_an_end_behind_a_continue: Stale::EndsIn("HTTP/1.1 100 Continue\r\n\r\n"), GET => 1, 502;
}

#[test]
fn trap_7_several_stale_connections_cost_one_attempt_at_most() {
    in_the_clear_and_over_tls(async |tls| {
        let hold = Rc::new(Notify::new());
        let held = Rc::clone(&hold);
        let stage = Stage::start(tls, async move |mut peer| {
            while let Some(head) = peer.head().await {
                if head.starts_with("GET /held ") {
                    held.notified().await;
                    peer.answer("held").await;
                } else if peer.at < 3 {
                    return;
                } else {
                    peer.answer("fresh").await;
                }
            }
        })
        .await;
        let mut clients = Vec::new();
        for _ in 0..3 {
            let mut client = stage.client().await;
            client.send("GET /held HTTP/1.1\r\nHost: a\r\n\r\n").await;
            clients.push(client);
        }
        stage.until_asked(3).await;
        hold.notify_waiters();
        for client in &mut clients {
            assert_eq!(client.answer(false).await.text(), "held");
        }
        // All of them die as they are asked: the second attempt is on a connection of its own.
        assert_eq!(clients[0].assert_stays("/").await.text(), "fresh");
    });
}

/// How the bodies of a row are framed, and how fast they are taken.
#[derive(Clone, Copy, Debug)]
struct Way {
    in_chunks: bool,
    out_chunks: bool,
    slow_client: bool,
    slow_upstream: bool,
}

/// Reads so many bytes a bit at a time.
async fn read_slowly(stream: &mut (impl tokio::io::AsyncRead + Unpin), bytes: &mut Vec<u8>, length: usize) {
    while bytes.len() < length {
        let mut piece = vec![0; 7919.min(length - bytes.len())];
        let read = within(stream.read(&mut piece)).await.unwrap();
        assert!(read > 0, "it ends after {}", bytes.len());
        bytes.extend_from_slice(&piece[..read]);
        sleep(Duration::from_micros(200)).await;
    }
}

fn every_byte(way: Way) {
    in_the_clear_and_over_tls(async |tls| {
        let stage = Stage::start(tls, async move |mut peer| {
            while let Some(head) = peer.head().await {
                if way.slow_upstream {
                    settle().await;
                }
                let Some(body) = body_of(&mut peer, &head).await else { return };
                let framed = match way.out_chunks {
                    true => [b"Transfer-Encoding: chunked\r\n\r\n", &chunked(&body, 33_333)[..]].concat(),
                    false => [format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes(), &body].concat(),
                };
                peer.send("HTTP/1.1 200 OK\r\n").await;
                for piece in framed.chunks(if way.slow_upstream { 9973 } else { MIB }) {
                    peer.send(piece).await;
                    if way.slow_upstream {
                        sleep(Duration::from_micros(200)).await;
                    }
                }
            }
        })
        .await;
        let body = pattern(MIB);
        let framed = match way.in_chunks {
            true => [b"Transfer-Encoding: chunked\r\n\r\n", &chunked(&body, 12_345)[..]].concat(),
            false => [format!("Content-Length: {MIB}\r\n\r\n").as_bytes(), &body].concat(),
        };
        let mut client = stage.client().await;
        for _ in 0..2 {
            client.send("POST / HTTP/1.1\r\nHost: a\r\n").await;
            for piece in framed.chunks(if way.slow_client { 7919 } else { MIB }) {
                client.send(piece).await;
                if way.slow_client {
                    sleep(Duration::from_micros(200)).await;
                }
            }
            if way.slow_client && !way.out_chunks {
                let head = client.head().await;
                assert_eq!(header(&head, "content-length"), Some(MIB.to_string()));
                let mut read = Vec::new();
                read_slowly(&mut client.0, &mut read, MIB).await;
                assert_same(&read, &body);
            } else {
                let answer = client.answer(false).await;
                assert_eq!((answer.status, answer.finish), (200, Finish::Whole));
                assert_same(&answer.body, &body);
            }
        }
        assert_eq!(stage.notes.connections.get(), 1, "{way:?}");
    });
}

macro_rules! every_byte_is_right {
    ($($row:ident: $in:literal $out:literal $client:literal $upstream:literal;)*) => {
        $(#[test] fn $row() {
            every_byte(Way { in_chunks: $in, out_chunks: $out, slow_client: $client, slow_upstream: $upstream });
        })*
    };
}

every_byte_is_right! {
    every_byte_with_lengths: false false false false;
    every_byte_with_lengths_a_slow_client: false false true false;
    every_byte_with_lengths_a_slow_upstream: false false false true;
    every_byte_with_lengths_both_slow: false false true true;
    every_byte_in_chunks: true true false false;
    every_byte_in_chunks_a_slow_client: true true true false;
    every_byte_in_chunks_a_slow_upstream: true true false true;
    every_byte_of_chunks_for_a_length: true false true true;
    every_byte_of_a_length_for_chunks: false true true true;
}

#[test]
fn a_body_without_a_length_has_every_byte_for_old_and_new_clients() {
    in_the_clear_and_over_tls(async |tls| {
        let stage = Stage::start(tls, async |mut peer| {
            while peer.head().await.is_some() {
                peer.send([b"HTTP/1.1 200 OK\r\n\r\n", &pattern(MIB)[..]].concat()).await;
                peer.end().await;
            }
        })
        .await;
        for version in ["1.0", "1.1"] {
            let answer = stage.ask(format!("GET / HTTP/{version}\r\nHost: a\r\n\r\n").as_bytes()).await;
            assert_eq!(answer.finish, Finish::Whole);
            assert_same(&answer.body, &pattern(MIB));
        }
    });
}

#[test]
fn large_bodies_both_ways_at_once_hold_nobody_up() {
    in_the_clear_and_over_tls(async |tls| {
        let stage = Stage::start(tls, async |mut peer| {
            while peer.head().await.is_some() {
                peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 8 * MIB)).await;
                for _ in 0..512 {
                    let piece = peer.body(16_384).await;
                    peer.send(piece).await;
                }
            }
        })
        .await;
        let client = stage.client().await;
        let (mut reads, mut writes) = tokio::io::split(client.0);
        let body = pattern(8 * MIB);
        for _ in 0..2 {
            let send = async {
                let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len());
                writes.write_all(head.as_bytes()).await.unwrap();
                writes.write_all(&body).await.unwrap();
                writes.flush().await.unwrap();
            };
            let receive = async {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(reads.read_u8().await.unwrap());
                }
                let mut read = vec![0; body.len()];
                reads.read_exact(&mut read).await.unwrap();
                assert_same(&read, &body);
                // What an early head says of the connection depends on how much of the body has come by then.
                String::from_utf8(head).unwrap().contains("connection: close")
            };
            let ((), closes) = within(futures_util::future::join(send, receive)).await;
            if closes {
                break;
            }
        }
    });
}

#[test]
fn an_upload_goes_on_while_nobody_reads_the_answer() {
    for in_chunks in [false, true] {
        in_the_clear_and_over_tls(async |tls| {
            // More than the way to the relay holds; of the answer next to nothing is taken by the way back.
            let (body, answer) = (pattern(16 * MIB), pattern(3 * MIB));
            let framed = match in_chunks {
                true => [b"Transfer-Encoding: chunked\r\n\r\n", &chunked(&answer, 100_000)[..]].concat(),
                false => [format!("Content-Length: {}\r\n\r\n", answer.len()).as_bytes(), &answer].concat(),
            };
            let (sent, early) = (body.clone(), [b"HTTP/1.1 200 OK\r\n", &framed[..]].concat());
            let settings = Settings::default();
            let stage = Stage::start_on(narrow_listener(), tls, limits(), settings, async move |mut peer| {
                peer.head().await;
                let body = peer.body_while_answering(sent.len(), &early).await;
                assert_same(&body, &sent);
                peer.ended().await;
            })
            .await;
            let mut client = stage.narrow_client().await;
            client
                .send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len()))
                .await;
            within(client.send(&body)).await;
            let read = client.answer(false).await;
            assert_eq!((read.status, read.finish), (200, Finish::Whole));
            assert_same(&read.body, &answer);
        });
    }
}
