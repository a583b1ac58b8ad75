//! Upstreams that misbehave in one way each, behind a relay: what the client gets, that it can't be taken for more than it
//! is, whether the upstream's connection is used again, and that a neighbour's request goes on.

use std::rc::Rc;
use std::time::Duration;

use protoplex_http::upstream::Settings;
use tokio::sync::Notify;

use crate::kit::{limits, settle, within};
use crate::stage::{Finish, Peer, Stage, in_the_clear_and_over_tls};

/// What an upstream does in answer to a request.
#[derive(Clone)]
enum Act {
    Send(Vec<u8>),
    /// Lets everybody take note of what was sent.
    Pause,
    /// Sends it so many times, until nobody takes any more.
    Flood(&'static [u8], usize),
    End,
    Reset,
}

/// What becomes of the client's connection.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Client {
    Stays,
    /// As the answer says.
    Closes,
    /// Before the answer's end, so that the client sees that it is not whole.
    Cut,
    Reset,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Upstream {
    UsedAgain,
    Closed,
}
use Act::{End, Flood, Pause, Reset};
use Upstream::{Closed, UsedAgain};

fn send(bytes: impl AsRef<[u8]>) -> Act {
    Act::Send(bytes.as_ref().to_vec())
}

/// A request, what comes of it at the upstream, and what the client and the next request see.
struct Row {
    request: &'static str,
    acts: Vec<Act>,
    status: u16,
    /// `None` of a problem.
    body: Option<&'static str>,
    client: Client,
    upstream: Upstream,
}

const GET: &str = "GET /row HTTP/1.1\r\nHost: a\r\n\r\n";
const HEAD: &str = "HEAD /row HTTP/1.1\r\nHost: a\r\n\r\n";
const OLD: &str = "GET /row HTTP/1.0\r\nHost: a\r\n\r\n";
const OLD_KEPT: &str = "GET /row HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n";

async fn treat(mut peer: Peer, acts: Rc<Vec<Act>>, neighbour: Rc<Notify>) {
    while let Some(head) = peer.head().await {
        if head.starts_with("GET /neighbour ") {
            neighbour.notified().await;
            peer.answer("neighbour").await;
        } else if head.starts_with("GET /next ") {
            peer.answer(peer.at.to_string()).await;
        } else {
            for act in acts.iter() {
                match act {
                    Act::Send(bytes) => peer.send(bytes).await,
                    Pause => settle().await,
                    Flood(bytes, times) => {
                        for _ in 0..*times {
                            peer.send(bytes).await;
                        }
                    }
                    End => peer.end().await,
                    Reset => return peer.reset(),
                }
            }
        }
    }
}

fn check(row: impl Fn() -> Row) {
    in_the_clear_and_over_tls(async |tls| {
        let row = row();
        let (acts, release) = (Rc::new(row.acts), Rc::new(Notify::new()));
        let released = Rc::clone(&release);
        let stage =
            Stage::start(tls, async move |peer| treat(peer, Rc::clone(&acts), Rc::clone(&released)).await)
                .await;
        // The neighbour has the upstream's connection 0 until the end, the row has 1.
        let mut neighbour = stage.client().await;
        neighbour.send("GET /neighbour HTTP/1.1\r\nHost: a\r\n\r\n").await;
        stage.until_asked(1).await;
        let mut client = stage.client().await;
        client.send(row.request).await;
        let mut told = client.answer_to(row.request.as_bytes()).await;
        // Of a flood of hints some go on before it is given up.
        for _ in 0..100 {
            if told.status == 103 {
                told = client.answer_to(row.request.as_bytes()).await;
            }
        }
        assert_eq!(told.status, row.status, "{told:?}");
        match row.body {
            Some(body) => assert_eq!(told.text(), body, "{told:?}"),
            None => assert_eq!(told.problem(), "upstream"),
        }
        let finish = match row.client {
            Client::Stays | Client::Closes => Finish::Whole,
            Client::Cut => Finish::Cut,
            Client::Reset => Finish::Reset,
        };
        assert_eq!(told.finish, finish, "{told:?}");
        settle().await;
        let next = if row.client == Client::Stays {
            assert_ne!(told.header("connection"), Some("close"), "{told:?}");
            client.assert_stays("/next").await
        } else {
            assert!(row.client != Client::Closes || told.header("connection") == Some("close"), "{told:?}");
            if row.client != Client::Reset {
                client.assert_ended().await;
            }
            stage.client().await.assert_stays("/next").await
        };
        let used = if next.text() == "1" { UsedAgain } else { Closed };
        assert_eq!(used, row.upstream, "connection {}", next.text());
        if row.upstream == Closed {
            // The neighbour's and the next one's.
            stage.until_open(2).await;
        }
        release.notify_one();
        assert_eq!(neighbour.answer(false).await.text(), "neighbour");
    });
}

macro_rules! rows {
    ($($row:ident: $request:expr, [$($act:expr),*] => $status:literal $body:expr, $client:ident, $upstream:ident;)*) => {
        $(#[test] fn $row() {
            check(|| Row {
                request: $request,
                acts: vec![$($act),*],
                status: $status,
                body: $body,
                client: Client::$client,
                upstream: $upstream,
            });
        })*
    };
}

const FIVE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
const TEN: &str = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n";
const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
const FALSE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfalse";

fn five(body: &str) -> Act {
    send(format!("{FIVE}{body}"))
}

fn ten(body: &str) -> Act {
    send(format!("{TEN}{body}"))
}

fn chunked(chunks: &str) -> Act {
    send(format!("{CHUNKED}{chunks}"))
}

/// A head with this behind its status line.
fn fields(fields: &str) -> Act {
    send(format!("HTTP/1.1 200 OK\r\n{fields}"))
}

// Answers that are as they should be, so that the rows below mean something.
rows! {
    an_answer_with_a_length: GET, [five("hello")] => 200 Some("hello"), Stays, UsedAgain;
    an_answer_in_chunks: GET, [chunked("5\r\nhello\r\n0\r\n\r\n")] => 200 Some("hello"), Stays, UsedAgain;
    an_answer_until_the_end: GET, [fields("\r\nhello"), Pause, End] => 200 Some("hello"), Stays, Closed;
    an_answer_without_a_body: GET, [fields("Content-Length: 0\r\n\r\n")] => 200 Some(""), Stays, UsedAgain;
    an_answer_to_head: HEAD, [send(FIVE)] => 200 Some(""), Stays, UsedAgain;
    an_answer_to_head_in_chunks: HEAD, [send(CHUNKED)] => 200 Some(""), Stays, UsedAgain;
    an_answer_to_head_of_no_length: HEAD, [fields("\r\n")] => 200 Some(""), Stays, UsedAgain;
    an_answer_that_closes:
        GET, [fields("Content-Length: 5\r\nConnection: close\r\n\r\nhello")] => 200 Some("hello"), Stays, Closed;
    an_answer_that_closes_among_other_things:
        GET, [fields("Connection: x, Close\r\nContent-Length: 5\r\n\r\nhello")] => 200 Some("hello"), Stays, Closed;
    an_answer_without_a_reason:
        GET, [send("HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello")] => 200 Some("hello"), Stays, UsedAgain;
    an_answer_of_http_10_closes:
        GET, [send("HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello")] => 200 Some("hello"), Stays, Closed;
    an_answer_of_http_10_that_keeps_alive:
        GET, [send("HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: Keep-Alive\r\n\r\nhello")]
        => 200 Some("hello"), Stays, UsedAgain;
}

// Bytes where none should be.
rows! {
    a_body_behind_heads_answer: HEAD, [five("hello")] => 200 Some(""), Stays, Closed;
    a_body_a_moment_behind_heads_answer: HEAD, [send(FIVE), Pause, send("hello")] => 200 Some(""), Stays, Closed;
    chunks_behind_heads_answer: HEAD, [chunked("5\r\nhello\r\n0\r\n\r\n")] => 200 Some(""), Stays, Closed;
    two_answers_at_once: GET, [send(format!("{FIVE}hello{FALSE}"))] => 200 Some("hello"), Stays, Closed;
    two_answers_one_after_the_other: GET, [five("hello"), Pause, send(FALSE)] => 200 Some("hello"), Stays, Closed;
    two_answers_the_first_in_chunks:
        GET, [chunked("5\r\nhello\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfalse")]
        => 200 Some("hello"), Stays, Closed;
    a_second_answer_with_the_end_of_the_first:
        GET, [five("hel"), Pause, send(format!("lo{FALSE}"))] => 200 Some("hello"), Stays, Closed;
    a_body_longer_than_its_length: GET, [five("hello!")] => 200 Some("hello"), Stays, Closed;
    a_body_longer_than_its_length_bit_by_bit:
        GET, [five("hel"), Pause, send("lo"), Pause, send("!")] => 200 Some("hello"), Stays, Closed;
    garbage_behind_a_body: GET, [five("hello\0\0\0")] => 200 Some("hello"), Stays, Closed;
    garbage_behind_the_last_chunk: GET, [chunked("5\r\nhello\r\n0\r\n\r\n\0")] => 200 Some("hello"), Stays, Closed;
    a_line_end_behind_a_body: GET, [five("hello\r\n")] => 200 Some("hello"), Stays, Closed;
    a_204_with_a_length:
        GET, [send("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello")] => 204 Some(""), Stays, Closed;
    a_204_with_a_body: GET, [send("HTTP/1.1 204 No Content\r\n\r\nhello")] => 204 Some(""), Stays, Closed;
    a_204_with_a_body_a_moment_later:
        GET, [send("HTTP/1.1 204 No Content\r\n\r\n"), Pause, send("hello")] => 204 Some(""), Stays, Closed;
    a_204_with_chunks:
        GET, [send("HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")]
        => 204 Some(""), Stays, Closed;
    a_304_with_a_length:
        GET, [send("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n")] => 304 Some(""), Stays, UsedAgain;
    a_304_with_a_body:
        GET, [send("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\nhello")] => 304 Some(""), Stays, Closed;
    a_304_with_a_body_a_moment_later:
        GET, [send("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"), Pause, send("hello")]
        => 304 Some(""), Stays, Closed;
}

// Answers that end too early, or with their connection.
rows! {
    a_body_shorter_than_its_length: GET, [ten("hello"), End] => 200 Some("hello"), Cut, Closed;
    a_body_shorter_than_its_length_a_moment_later:
        GET, [send(TEN), Pause, send("hello"), Pause, End] => 200 Some("hello"), Cut, Closed;
    a_body_that_does_not_begin: GET, [send(TEN), Pause, End] => 200 Some(""), Cut, Closed;
    a_reset_between_head_and_body: GET, [send(TEN), Pause, Reset] => 200 Some(""), Cut, Closed;
    a_reset_between_head_and_chunks: GET, [send(CHUNKED), Pause, Reset] => 200 Some(""), Cut, Closed;
    a_reset_in_a_body_without_a_length: GET, [fields("\r\nhello"), Pause, Reset] => 200 Some("hello"), Cut, Closed;
    a_reset_in_a_body: GET, [ten("hello"), Pause, Reset] => 200 Some("hello"), Cut, Closed;
    an_end_in_a_chunk: GET, [chunked("a\r\nhello"), Pause, End] => 200 Some("hello"), Cut, Closed;
    an_end_between_chunks: GET, [chunked("5\r\nhello\r\n"), Pause, End] => 200 Some("hello"), Cut, Closed;
    an_end_in_the_last_chunk: GET, [chunked("5\r\nhello\r\n0\r\n"), Pause, End] => 200 Some("hello"), Cut, Closed;
    an_end_in_the_trailers:
        GET, [chunked("5\r\nhello\r\n0\r\nDigest: x\r\n"), Pause, End] => 200 Some("hello"), Cut, Closed;
    an_end_with_the_last_data: GET, [five("hello"), End] => 200 Some("hello"), Stays, Closed;
    an_end_with_the_last_chunk: GET, [chunked("5\r\nhello\r\n0\r\n\r\n"), End] => 200 Some("hello"), Stays, Closed;
    an_end_with_all_of_a_body_without_a_length: GET, [fields("\r\nhello"), End] => 200 Some("hello"), Stays, Closed;
    an_end_with_heads_answer: HEAD, [send(FIVE), End] => 200 Some(""), Stays, Closed;
    a_reset_behind_a_whole_answer: GET, [five("hello"), Pause, Reset] => 200 Some("hello"), Stays, Closed;
    an_end_before_the_head: GET, [End] => 502 None, Stays, Closed;
    a_reset_before_the_head: GET, [Reset] => 502 None, Stays, Closed;
    an_end_in_the_head: GET, [send("HTTP/1.1 200 OK\r\nContent-Le"), Pause, End] => 502 None, Stays, Closed;
    a_reset_in_the_head: GET, [send("HTTP/1.1 200 OK\r\nContent-Le"), Pause, Reset] => 502 None, Stays, Closed;
    an_end_in_the_status_line: GET, [send("HTTP/1.1 2"), End] => 502 None, Stays, Closed;
    an_end_behind_an_early_hint:
        GET, [send("HTTP/1.1 100 Continue\r\n\r\n"), Pause, End] => 502 None, Stays, Closed;
}

// Chunks.
rows! {
    a_chunk_extension_is_dropped:
        GET, [chunked("5;a=b;c=\"d\\\"\"\r\nhello\r\n0;e\r\n\r\n")] => 200 Some("hello"), Stays, UsedAgain;
    trailers_are_taken: GET, [chunked("5\r\nhello\r\n0\r\nDigest: x\r\n\r\n")] => 200 Some("hello"), Stays, UsedAgain;
    leading_zeros_and_capitals: GET, [chunked("00A\r\nhellohello\r\n000\r\n\r\n")] => 200 Some("hellohello"), Stays, UsedAgain;
    a_bad_chunk_size: GET, [chunked("5\r\nhello\r\nx\r\n")] => 200 Some("hello"), Cut, Closed;
    a_bad_first_chunk_size: GET, [send(CHUNKED), Pause, send("x\r\n")] => 200 Some(""), Cut, Closed;
    a_negative_chunk_size: GET, [chunked("5\r\nhello\r\n-1\r\n")] => 200 Some("hello"), Cut, Closed;
    a_chunk_size_with_a_prefix: GET, [chunked("5\r\nhello\r\n0x5\r\nhello\r\n0\r\n\r\n")] => 200 Some("hello"), Cut, Closed;
    an_overflowing_chunk_size:
        GET, [chunked("5\r\nhello\r\n10000000000000005\r\nhello\r\n0\r\n\r\n")] => 200 Some("hello"), Cut, Closed;
    a_blank_before_a_chunk_size: GET, [chunked("5\r\nhello\r\n 5\r\nhello\r\n0\r\n\r\n")] => 200 Some("hello"), Cut, Closed;
    a_chunk_longer_than_its_size: GET, [chunked("5\r\nhello!\r\n0\r\n\r\n")] => 200 Some("hello"), Cut, Closed;
    a_chunk_ended_by_a_bare_lf: GET, [chunked("5\r\nhello\n0\r\n\r\n")] => 200 Some("hello"), Cut, Closed;
    a_chunk_size_ended_by_a_bare_lf: GET, [chunked("5\r\nhello\r\n5\nhello\r\n0\r\n\r\n")] => 200 Some("hello"), Cut, Closed;
    a_bad_chunk_extension: GET, [chunked("5\r\nhello\r\n5;a b\r\nhello\r\n0\r\n\r\n")] => 200 Some("hello"), Cut, Closed;
    a_lf_in_a_quoted_extension:
        GET, [chunked("5\r\nhello\r\n5;a=\"\n\"\r\nhello\r\n0\r\n\r\n")] => 200 Some("hello"), Cut, Closed;
    an_endless_chunk_extension:
        GET, [chunked("5\r\nhello\r\n5;"), Flood(b"xxxxxxxxxxxxxxxx", 4096)] => 200 Some("hello"), Cut, Closed;
    a_trailer_that_frames: GET, [chunked("5\r\nhello\r\n0\r\nContent-Length: 5\r\n\r\n")] => 200 Some("hello"), Cut, Closed;
    a_trailer_that_frames_by_chunks:
        GET, [chunked("5\r\nhello\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n")] => 200 Some("hello"), Cut, Closed;
    a_trailer_ended_by_a_bare_lf: GET, [chunked("5\r\nhello\r\n0\r\nDigest: x\n\r\n")] => 200 Some("hello"), Cut, Closed;
    trailers_ended_by_a_bare_lf: GET, [chunked("5\r\nhello\r\n0\r\n\n")] => 200 Some("hello"), Cut, Closed;
    a_folded_trailer: GET, [chunked("5\r\nhello\r\n0\r\nDigest: x\r\n y\r\n\r\n")] => 200 Some("hello"), Cut, Closed;
    a_nul_in_a_trailer: GET, [chunked("5\r\nhello\r\n0\r\nDigest: \0\r\n\r\n")] => 200 Some("hello"), Cut, Closed;
    a_trailer_without_a_colon: GET, [chunked("5\r\nhello\r\n0\r\nDigest\r\n\r\n")] => 200 Some("hello"), Cut, Closed;
    endless_trailers:
        GET, [chunked("5\r\nhello\r\n0\r\n"), Flood(b"X: yyyyyyyyyyyyyyyyyyyyyyyy\r\n", 10_000)]
        => 200 Some("hello"), Cut, Closed;
}

// Heads.
rows! {
    a_head_byte_by_byte:
        GET, [send("HTTP"), Pause, send("/1.1 2"), Pause, send("00 OK\r"), Pause, send("\nContent-Length"), Pause,
            send(": 5\r\n\r"), Pause, send("\nhello")] => 200 Some("hello"), Stays, UsedAgain;
    an_endless_head:
        GET, [send("HTTP/1.1 200 OK\r\nX: "), Flood(&[b'x'; 4096], 1000)] => 502 None, Stays, Closed;
    an_endless_name: GET, [send("HTTP/1.1 200 OK\r\n"), Flood(&[b'x'; 4096], 1000)] => 502 None, Stays, Closed;
    an_endless_reason: GET, [send("HTTP/1.1 200 "), Flood(&[b'x'; 4096], 1000)] => 502 None, Stays, Closed;
    fields_without_end: GET, [send("HTTP/1.1 200 OK\r\n"), Flood(b"a: b\r\n", 100_000)] => 502 None, Stays, Closed;
    ten_thousand_interim_answers:
        GET, [Flood(b"HTTP/1.1 103 Early Hints\r\n\r\n", 10_000), five("hello")] => 502 None, Stays, Closed;
    ten_thousand_continues:
        GET, [Flood(b"HTTP/1.1 100 Continue\r\n\r\n", 10_000), five("hello")] => 502 None, Stays, Closed;
    a_continue_unasked:
        GET, [send("HTTP/1.1 100 Continue\r\n\r\n"), five("hello")] => 200 Some("hello"), Stays, UsedAgain;
    an_interim_answer_with_a_length:
        GET, [send("HTTP/1.1 100 Continue\r\nContent-Length: 5\r\n\r\nhello"), five("hello")] => 502 None, Stays, Closed;
    a_switch_unasked:
        GET, [send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")]
        => 502 None, Stays, Closed;
    a_bare_lf_behind_the_status_line: GET, [send("HTTP/1.1 200 OK\nContent-Length: 5\r\n\r\nhello")] => 502 None, Stays, Closed;
    a_bare_lf_behind_a_field: GET, [fields("Content-Length: 5\n\r\nhello")] => 502 None, Stays, Closed;
    a_bare_lf_at_the_heads_end: GET, [fields("Content-Length: 5\r\n\nhello")] => 502 None, Stays, Closed;
    a_bare_cr_in_a_field: GET, [fields("X: a\rb\r\nContent-Length: 5\r\n\r\nhello")] => 502 None, Stays, Closed;
    a_bare_cr_behind_the_status_line: GET, [send("HTTP/1.1 200 OK\rContent-Length: 5\r\n\r\nhello")] => 502 None, Stays, Closed;
    a_folded_line: GET, [fields("X: a\r\n b\r\nContent-Length: 5\r\n\r\nhello")] => 502 None, Stays, Closed;
    a_folded_first_line: GET, [fields(" X: a\r\nContent-Length: 5\r\n\r\nhello")] => 502 None, Stays, Closed;
    a_nul_in_a_value: GET, [fields("X: a\0b\r\nContent-Length: 5\r\n\r\nhello")] => 502 None, Stays, Closed;
    a_nul_in_a_name: GET, [fields("X\0: a\r\nContent-Length: 5\r\n\r\nhello")] => 502 None, Stays, Closed;
    a_nul_in_the_reason: GET, [send("HTTP/1.1 200 O\0K\r\nContent-Length: 5\r\n\r\nhello")] => 502 None, Stays, Closed;
    a_space_before_a_colon: GET, [fields("Content-Length : 5\r\n\r\nhello")] => 502 None, Stays, Closed;
    a_tab_before_a_colon: GET, [fields("Transfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n")] => 502 None, Stays, Closed;
    two_content_lengths: GET, [fields("Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello")] => 502 None, Stays, Closed;
    two_differing_content_lengths: GET, [fields("Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!")] => 502 None, Stays, Closed;
    a_content_length_with_a_sign: GET, [fields("Content-Length: +5\r\n\r\nhello")] => 502 None, Stays, Closed;
    content_length_with_transfer_encoding:
        GET, [fields("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")] => 502 None, Stays, Closed;
    transfer_encoding_with_content_length:
        GET, [fields("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n")] => 502 None, Stays, Closed;
    transfer_encoding_over_http_10:
        GET, [send("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")] => 502 None, Stays, Closed;
    another_transfer_encoding: GET, [fields("Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n")] => 502 None, Stays, Closed;
    a_connection_that_names_the_length:
        GET, [fields("Content-Length: 5\r\nConnection: content-length\r\n\r\nhello")] => 502 None, Stays, Closed;
    a_status_of_two_digits: GET, [send("HTTP/1.1 20 OK\r\nContent-Length: 5\r\n\r\nhello")] => 502 None, Stays, Closed;
    a_status_of_four_digits: GET, [send("HTTP/1.1 2000 OK\r\nContent-Length: 5\r\n\r\nhello")] => 502 None, Stays, Closed;
    a_status_of_letters: GET, [send("HTTP/1.1 abc OK\r\nContent-Length: 5\r\n\r\nhello")] => 502 None, Stays, Closed;
    a_status_below_all: GET, [send("HTTP/1.1 099 OK\r\nContent-Length: 5\r\n\r\nhello")] => 502 None, Stays, Closed;
    a_status_above_all: GET, [send("HTTP/1.1 600 OK\r\nContent-Length: 5\r\n\r\nhello")] => 502 None, Stays, Closed;
    http_2_in_http_1_syntax: GET, [send("HTTP/2.0 200 OK\r\nContent-Length: 5\r\n\r\nhello")] => 502 None, Stays, Closed;
    http_09: GET, [send("hello")] => 502 None, Stays, Closed;
    another_protocol: GET, [send("220 mail.example ESMTP\r\n")] => 502 None, Stays, Closed;
    an_empty_line_first: GET, [send("\r\n"), five("hello")] => 502 None, Stays, Closed;
}

// Clients of HTTP/1.0.
rows! {
    old_clients_get_a_length: OLD, [five("hello")] => 200 Some("hello"), Closes, UsedAgain;
    old_clients_are_kept_by_a_length: OLD_KEPT, [five("hello")] => 200 Some("hello"), Stays, UsedAgain;
    old_clients_get_chunks_as_one_body:
        OLD, [chunked("5\r\nhello\r\n5\r\nhello\r\n0\r\nDigest: x\r\n\r\n")] => 200 Some("hellohello"), Closes, UsedAgain;
    old_clients_are_not_kept_by_chunks:
        OLD_KEPT, [chunked("5\r\nhello\r\n0\r\n\r\n")] => 200 Some("hello"), Closes, UsedAgain;
    old_clients_are_not_kept_by_an_end: OLD_KEPT, [fields("\r\nhello"), Pause, End] => 200 Some("hello"), Closes, Closed;
    old_clients_get_no_hints:
        OLD, [send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"), Pause, five("hello")]
        => 200 Some("hello"), Closes, UsedAgain;
    old_clients_see_a_bad_chunk: OLD, [chunked("5\r\nhello\r\nx\r\n")] => 200 Some("hello"), Reset, Closed;
    old_clients_see_a_missing_end: OLD, [chunked("5\r\nhello\r\n"), Pause, End] => 200 Some("hello"), Reset, Closed;
    old_clients_see_a_short_body: OLD, [ten("hello"), Pause, End] => 200 Some("hello"), Cut, Closed;
    old_clients_see_a_reset: OLD, [fields("\r\nhello"), Pause, Reset] => 200 Some("hello"), Reset, Closed;
}

#[test]
fn early_hints_are_relayed_before_the_answer_and_only_once() {
    in_the_clear_and_over_tls(async |tls| {
        let stage = Stage::start(tls, async |mut peer| {
            while peer.head().await.is_some() {
                for hint in ["a", "b"] {
                    let hint = format!("HTTP/1.1 103 Early Hints\r\nLink: </{hint}>; rel=preload\r\n\r\n");
                    peer.send(hint).await;
                    settle().await;
                }
                // Not what the client has asked for.
                peer.send("HTTP/1.1 100 Continue\r\n\r\n").await;
                peer.answer("hello").await;
            }
        })
        .await;
        let mut client = stage.client().await;
        for _ in 0..2 {
            client.send(GET).await;
            for link in ["</a>; rel=preload", "</b>; rel=preload"] {
                let hint = client.answer(false).await;
                assert_eq!((hint.status, hint.header("link")), (103, Some(link)), "{hint:?}");
            }
            let answer = client.answer(false).await;
            assert_eq!((answer.status, answer.text()), (200, "hello"));
        }
        assert_eq!(stage.notes.connections.get(), 1);
    });
}

#[test]
fn early_hints_that_come_together_with_the_answer_are_relayed_too() {
    in_the_clear_and_over_tls(async |tls| {
        let stage = Stage::start(tls, async |mut peer| {
            while peer.head().await.is_some() {
                peer.send(format!("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n{FIVE}hello")).await;
            }
        })
        .await;
        let mut client = stage.client().await;
        for _ in 0..2 {
            client.send(GET).await;
            let hint = client.answer(false).await;
            assert_eq!((hint.status, hint.header("link")), (103, Some("</a>")), "{hint:?}");
            assert!(hint.header("x-request-id").is_some(), "{hint:?}");
            assert_eq!(client.answer(false).await.text(), "hello");
        }
    });
}

#[test]
fn early_hints_reach_the_client_while_the_answer_is_still_awaited() {
    in_the_clear_and_over_tls(async |tls| {
        let go = Rc::new(Notify::new());
        let goes = Rc::clone(&go);
        let stage = Stage::start(tls, async move |mut peer| {
            while peer.head().await.is_some() {
                for link in ["a", "b"] {
                    peer.send(format!("HTTP/1.1 103 Early Hints\r\nLink: </{link}>\r\n\r\n")).await;
                    goes.notified().await;
                }
                peer.answer("hello").await;
            }
        })
        .await;
        let mut client = stage.client().await;
        for _ in 0..2 {
            client.send(GET).await;
            for link in ["</a>", "</b>"] {
                // The upstream says nothing more before the client has this.
                let hint = client.answer(false).await;
                assert_eq!((hint.status, hint.header("link")), (103, Some(link)), "{hint:?}");
                go.notify_one();
            }
            assert_eq!(client.answer(false).await.text(), "hello");
        }
    });
}

#[test]
fn a_continue_reaches_the_client_while_the_answer_is_still_awaited() {
    in_the_clear_and_over_tls(async |tls| {
        let stage = Stage::start(tls, async |mut peer| {
            while peer.head().await.is_some() {
                peer.send("HTTP/1.1 100 Continue\r\n\r\n").await;
                let body = peer.body(5).await;
                peer.answer(body).await;
            }
        })
        .await;
        let mut client = stage.client().await;
        for _ in 0..2 {
            client
                .send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
                .await;
            assert_eq!(client.answer(false).await.status, 100);
            client.send("hello").await;
            assert_eq!(client.answer(false).await.text(), "hello");
        }
    });
}

/// Sends an answer to a request of whose body half has come; and keeps the connection open, or ends it.
fn answered_early(ends: bool) {
    in_the_clear_and_over_tls(async |tls| {
        let stage = Stage::start(tls, async move |mut peer| {
            while let Some(head) = peer.head().await {
                if head.starts_with("GET ") {
                    peer.answer(peer.at.to_string()).await;
                    continue;
                }
                peer.body(5).await;
                peer.send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno").await;
                if ends {
                    peer.end().await;
                }
                return peer.ended().await;
            }
        })
        .await;
        let mut client = stage.client().await;
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello").await;
        let answer = client.answer(false).await;
        assert_eq!((answer.status, answer.text(), answer.finish), (413, "no", Finish::Whole));
        assert_eq!(answer.header("connection"), Some("close"));
        // What still comes of the body is no request.
        client.send("worldGET /planted HTTP/1.1\r\nHost: a\r\n\r\n").await;
        client.assert_ended().await;
        stage.until_open(0).await;
        assert_eq!(stage.client().await.assert_stays("/").await.text(), "1");
        assert!(!stage.notes.heads.borrow().iter().any(|(_, head)| head.contains("planted")));
    });
}

#[test]
fn an_early_answer_closes_both_sides() {
    answered_early(false);
}

#[test]
fn an_early_answer_with_an_end_closes_both_sides() {
    answered_early(true);
}

#[test]
fn an_early_answer_to_a_body_that_then_comes_whole_is_told_apart_from_the_next_one() {
    in_the_clear_and_over_tls(async |tls| {
        let stage = Stage::start(tls, async |mut peer| {
            while let Some(head) = peer.head().await {
                if head.starts_with("POST ") {
                    // The answer's body waits for the request's.
                    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n").await;
                    let body = peer.body(10).await;
                    peer.send(body).await;
                } else {
                    peer.answer(peer.at.to_string()).await;
                }
            }
        })
        .await;
        let mut client = stage.client().await;
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello").await;
        let head = client.head().await;
        assert!(head.starts_with("http/1.1 200 ok\r\n"), "{head}");
        client.send("world").await;
        let mut body = vec![0; 10];
        within(tokio::io::AsyncReadExt::read_exact(&mut client.0, &mut body)).await.unwrap();
        assert_eq!(body, b"helloworld");
        if head.contains("\r\nconnection: close\r\n") {
            client.assert_ended().await;
        } else {
            client.assert_stays("/").await;
        }
        stage.client().await.assert_stays("/").await;
    });
}

#[test]
fn an_upstream_that_stops_reading_is_given_up_with_504() {
    in_the_clear_and_over_tls(async |tls| {
        let settings = Settings { first_byte_timeout: Duration::from_millis(300), ..Settings::default() };
        let stage = Stage::start_with(tls, limits(), settings, async |mut peer: Peer| {
            let head = peer.head().await.unwrap();
            if head.starts_with("GET ") {
                peer.answer("neighbour").await;
            }
            // Neither reads on nor answers.
            std::future::pending::<()>().await;
        })
        .await;
        let mut client = stage.client().await;
        client.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", 64 << 20)).await;
        let piece = vec![b'x'; 1 << 16];
        let sending =
            async { while tokio::io::AsyncWriteExt::write_all(&mut client.0, &piece).await.is_ok() {} };
        // The relay takes no more than the way holds.
        assert!(tokio::time::timeout(Duration::from_millis(200), sending).await.is_err());
        assert_eq!(stage.client().await.assert_stays("/").await.text(), "neighbour");
        let answer = client.answer(false).await;
        assert_eq!((answer.status, answer.problem().as_str()), (504, "upstream"));
        assert_eq!(answer.header("connection"), Some("close"));
    });
}

#[test]
fn an_upstream_that_stops_in_its_head_is_given_up_with_504() {
    for part in ["", "HTTP/1.1 200 OK\r\nX: ", "HTTP/1.1 103 Early Hints\r\n\r\n"] {
        in_the_clear_and_over_tls(async |tls| {
            let settings = Settings { first_byte_timeout: Duration::from_millis(200), ..Settings::default() };
            let stage = Stage::start_with(tls, limits(), settings, async move |mut peer: Peer| {
                peer.head().await;
                peer.send(part).await;
                peer.ended().await;
            })
            .await;
            let mut client = stage.client().await;
            client.send(GET).await;
            let mut answer = client.answer(false).await;
            if answer.status == 103 {
                answer = client.answer(false).await;
            }
            // An end of file would have been asked once more; a timeout is not.
            assert_eq!((answer.status, stage.notes.connections.get()), (504, 1), "{part:?}: {answer:?}");
            stage.until_open(0).await;
        });
    }
}

#[test]
fn a_pooled_upstream_that_stops_answering_is_not_asked_once_more() {
    in_the_clear_and_over_tls(async |tls| {
        let settings = Settings { first_byte_timeout: Duration::from_millis(200), ..Settings::default() };
        let stage = Stage::start_with(tls, limits(), settings, async move |mut peer: Peer| {
            peer.head().await;
            peer.answer("first").await;
            peer.head().await;
            peer.ended().await;
        })
        .await;
        let mut client = stage.client().await;
        client.assert_stays("/").await;
        client.send(GET).await;
        assert_eq!(client.answer(false).await.status, 504);
        stage.until_open(0).await;
        assert_eq!((stage.notes.connections.get(), stage.notes.heads.borrow().len()), (1, 2));
    });
}

#[test]
fn an_upstream_that_stops_in_its_body_is_cut() {
    for head in [TEN, CHUNKED, "HTTP/1.1 200 OK\r\n\r\n"] {
        in_the_clear_and_over_tls(async |tls| {
            let settings = Settings { body_idle_timeout: Duration::from_millis(200), ..Settings::default() };
            let stage = Stage::start_with(tls, limits(), settings, async move |mut peer: Peer| {
                peer.head().await;
                peer.send(head).await;
                peer.ended().await;
            })
            .await;
            let answer = stage.ask(GET.as_bytes()).await;
            assert_eq!((answer.status, answer.text(), answer.finish), (200, "", Finish::Cut), "{head:?}");
            stage.until_open(0).await;
        });
    }
}
