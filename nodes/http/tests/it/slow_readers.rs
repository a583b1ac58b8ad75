//! Clients that read slowly but go on: they get all of an answer, wherever it comes from and however long they take.
//!
//! The clock is the test's own. It goes on behind each piece that the client has read, and a piece is more than the two
//! sockets hold: the server has sent something since the clock went on last.

use std::io::Write;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream;
use protoplex_http::upstream::{Pool, Settings};
use protoplex_http::{AccessLog, Body, Exchange, Limits, Response, upgrade};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::advance;

use crate::kit::{limits, run_with_a_still_clock, settle, start, start_on, within};
use crate::stage::{
    Client, Finish, Stage, assert_same, certificates, chunked, narrow_connection, narrow_listener, pattern,
};

/// Enough for an upstream's body to go by splice.
const BODY_BYTES: usize = 1 << 20;
const CHUNK_BYTES: usize = 100_000;
/// More than the sockets hold, and a fourth of what is sealed at a time.
const PIECE_BYTES: usize = 16 * 1024;
/// From one piece to the next.
const PAUSE: Duration = Duration::from_millis(100);
/// Never over where each piece counts, and long over before what is sealed at a time has gone.
const WRITE_TIMEOUT: Duration = Duration::from_millis(250);
/// Whom to ask for an upstream's body.
#[derive(Clone)]
struct Ask {
    pool: Rc<Pool>,
    origin: SocketAddr,
}

/// Where an answer's body comes from.
#[derive(Clone, Copy)]
enum Source {
    Memory,
    Chunks,
    File,
    Upstream,
    /// What the connection was upgraded to.
    Tunnel,
}

async fn answer(source: Source, exchange: Rc<Exchange>, ask: Ask) -> Response {
    Response::new(match source {
        Source::Memory => Body::full(pattern(BODY_BYTES)),
        Source::Chunks => {
            let chunks = pattern(BODY_BYTES);
            Body::stream(stream::iter(
                chunks.chunks(CHUNK_BYTES).map(|chunk| Ok(chunk.to_vec().into())).collect::<Vec<_>>(),
            ))
        }
        Source::File => {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&pattern(BODY_BYTES)).unwrap();
            Body::file(Arc::new(file), 0..BODY_BYTES as u64)
        }
        Source::Upstream => {
            let request = http::Request::get("/").header("host", "a").body(Body::empty()).unwrap();
            return ask.pool.send(ask.origin, request).await.unwrap();
        }
        Source::Tunnel => {
            return upgrade::accept(&exchange, "bytes", |mut upgraded| async move {
                upgraded.write_all(&pattern(BODY_BYTES)).await.unwrap();
                upgraded.shutdown().await.unwrap();
            });
        }
    })
}

async fn read_slowly(source: Source, tls: bool) {
    let origin = start(limits(), |_, _| async { Response::new(Body::full(pattern(BODY_BYTES))) });
    let ask = Ask { pool: Pool::new(Settings::default()), origin: origin.address };
    let (server_tls, client_tls) = if tls { certificates() } else { (None, None) };
    let limits = Limits { write_timeout: WRITE_TIMEOUT, ..limits() };
    let server = start_on(narrow_listener(), limits, server_tls, AccessLog::off(), move |_, exchange| {
        answer(source, exchange, ask.clone())
    });
    let mut client = Client::over(narrow_connection(server.address).await, client_tls.as_ref()).await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: bytes\r\n\r\n").await;
    client.head().await;
    let expected = match source {
        Source::Chunks => chunked(&pattern(BODY_BYTES), CHUNK_BYTES),
        _ => pattern(BODY_BYTES),
    };
    let mut read = vec![0; expected.len()];
    for (at, piece) in read.chunks_mut(PIECE_BYTES).enumerate() {
        let read = within(client.0.read_exact(piece)).await;
        assert!(read.is_ok(), "piece {at} does not come: {read:?}");
        advance(PAUSE).await;
    }
    assert_same(&read, &expected);
}

macro_rules! slow_readers {
    ($($row:ident: $source:ident, $tls:literal;)*) => {
        $(#[test] fn $row() { run_with_a_still_clock(read_slowly(Source::$source, $tls)); })*
    };
}

slow_readers! {
    a_body_in_memory: Memory, false;
    a_body_in_memory_over_tls: Memory, true;
    a_body_in_chunks: Chunks, false;
    a_body_in_chunks_over_tls: Chunks, true;
    a_file: File, false;
    a_file_over_tls: File, true;
    an_upstreams_body: Upstream, false;
    an_upstreams_body_over_tls: Upstream, true;
    a_tunnel: Tunnel, false;
    a_tunnel_over_tls: Tunnel, true;
}

/// A client that sends its request slowly, reads nothing before it has sent all of that, and gets an answer meanwhile
/// that the connection can't hold.
async fn read_once_all_is_sent(tls: bool) {
    let limits = Limits { write_timeout: WRITE_TIMEOUT, ..limits() };
    let stage = Stage::start_on(narrow_listener(), tls, limits, Settings::default(), async |mut peer| {
        peer.head().await;
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {BODY_BYTES}\r\n\r\n");
        let body = pattern(BODY_BYTES);
        let read = peer.body_while_answering(BODY_BYTES, &[head.as_bytes(), &body[..]].concat()).await;
        assert_same(&read, &body);
        peer.ended().await;
    })
    .await;
    let mut client = stage.narrow_client().await;
    let body = pattern(BODY_BYTES);
    client.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {BODY_BYTES}\r\n\r\n")).await;
    for piece in body.chunks(PIECE_BYTES) {
        client.send(piece).await;
        settle().await;
        advance(PAUSE).await;
    }
    let answer = client.answer(false).await;
    assert_eq!((answer.status, answer.finish), (200, Finish::Whole));
    assert_same(&answer.body, &body);
}

#[test]
fn a_client_that_reads_once_all_is_sent() {
    run_with_a_still_clock(read_once_all_is_sent(false));
}

#[test]
fn a_client_that_reads_once_all_is_sent_over_tls() {
    run_with_a_still_clock(read_once_all_is_sent(true));
}
