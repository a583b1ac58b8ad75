//! Clients that misbehave in one way each, before a relay: what they get, what the upstream is sent of it, and that a
//! neighbour's request goes on.

use std::rc::Rc;
use std::time::Duration;

use protoplex_http::Limits;
use protoplex_http::upstream::Settings;
use tokio::io::AsyncReadExt;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, advance};

use crate::kit::{limits, run_with_a_still_clock, settle, within};
use crate::stage::{Client, Finish, Peer, Reading, Stage, in_the_clear_and_over_tls, pattern};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// Answers every request with its target.
async fn tell_target(mut peer: Peer) {
    while let Some(head) = peer.head().await {
        let target = head.split(' ').nth(1).unwrap().to_owned();
        peer.answer(target).await;
    }
}

/// Answers when it is told to.
async fn wait(mut peer: Peer, release: Rc<Notify>) {
    while let Some(head) = peer.head().await {
        if head.starts_with("GET /neighbour ") {
            peer.answer("neighbour").await;
            continue;
        }
        tokio::select! {
            () = release.notified() => peer.answer("late").await,
            () = peer.ended() => return,
        }
    }
}

/// A stage whose upstream answers when it is told to.
async fn waiting(tls: bool) -> (Stage, Rc<Notify>) {
    let release = Rc::new(Notify::new());
    let released = Rc::clone(&release);
    let stage = Stage::start(tls, async move |peer| wait(peer, Rc::clone(&released)).await).await;
    (stage, release)
}

async fn assert_neighbour_is_served(stage: &Stage) {
    let answer = stage.ask(b"GET /neighbour HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!((answer.status, answer.finish), (200, Finish::Whole), "{answer:?}");
}

fn told(reading: &Reading) -> (u16, &str, Finish) {
    (reading.status, reading.text(), reading.finish)
}

#[test]
fn pipelined_requests_are_answered_up_to_the_first_bad_one_and_the_rest_goes_nowhere() {
    for bad in [
        "GET /bad HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "GET /bad HTTP/1.1\nHost: a\r\n\r\n",
        "POST /bad HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST /bad HTTP/1.1\r\nHost: a\r\nConnection: content-length\r\nContent-Length: 3\r\n\r\nabc",
    ] {
        in_the_clear_and_over_tls(async |tls| {
            let stage = Stage::start(tls, tell_target).await;
            let mut client = stage.client().await;
            client
                .send(format!(
                    "GET /a HTTP/1.1\r\nHost: a\r\n\r\nHEAD /b HTTP/1.1\r\nHost: a\r\n\r\n\
                     GET /c HTTP/1.1\r\nHost: a\r\n\r\n{bad}GET /never HTTP/1.1\r\nHost: a\r\n\r\n"
                ))
                .await;
            assert_eq!(told(&client.answer(false).await), (200, "/a", Finish::Whole));
            assert_eq!(told(&client.answer(true).await), (200, "", Finish::Whole));
            assert_eq!(told(&client.answer(false).await), (200, "/c", Finish::Whole));
            let refused = client.answer(false).await;
            assert_eq!((refused.status, refused.header("connection")), (400, Some("close")));
            client.assert_ended().await;
            assert_neighbour_is_served(&stage).await;
            let heads = stage.notes.heads.borrow();
            let targets: Vec<_> = heads.iter().map(|(_, head)| head.split(' ').nth(1).unwrap()).collect();
            assert_eq!(targets, ["/a", "/b", "/c", "/neighbour"]);
        });
    }
}

#[test]
fn a_bad_body_in_the_middle_of_a_pipeline_ends_it() {
    in_the_clear_and_over_tls(async |tls| {
        let stage = Stage::start(tls, async |mut peer| {
            while let Some(head) = peer.head().await {
                if head.starts_with("POST ") && peer.chunked_body().await.is_none() {
                    return;
                }
                peer.answer("fine").await;
            }
        })
        .await;
        let mut client = stage.client().await;
        let post = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n";
        client.send(format!("{GET}{post}0\r\n\r\n{post}x\r\n{GET}{GET}")).await;
        for _ in 0..2 {
            assert_eq!(told(&client.answer(false).await), (200, "fine", Finish::Whole));
        }
        let refused = client.answer(false).await;
        assert_eq!((refused.status, refused.problem().as_str()), (400, "bad-chunk-size"));
        client.assert_ended().await;
        assert_neighbour_is_served(&stage).await;
        assert!(stage.notes.heads.borrow().len() <= 4);
    });
}

/// What is said of the connection must not take away what frames or routes the message.
fn refused_connection(value: &str, more: &str) {
    in_the_clear_and_over_tls(async |tls| {
        let stage = Stage::start(tls, tell_target).await;
        for lines in [format!("{more}Connection: {value}\r\n"), format!("Connection: {value}\r\n{more}")] {
            let mut client = stage.client().await;
            client.send(format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n")).await;
            let refused = client.answer(false).await;
            assert_eq!((refused.status, refused.problem().as_str()), (400, "bad-connection"), "{lines:?}");
            client.assert_ended().await;
        }
        assert_eq!(stage.notes.connections.get(), 0);
        assert_neighbour_is_served(&stage).await;
    });
}

macro_rules! refused_connections {
    ($($row:ident: $value:literal, $more:literal;)*) => {
        $(#[test] fn $row() { refused_connection($value, $more); })*
    };
}

refused_connections! {
    connection_that_names_host: "Host", "";
    connection_that_names_host_in_capitals_among_others: "close,  HOST\t, x", "";
    connection_that_names_content_length: "content-length", "Content-Length: 3\r\n";
    connection_that_names_a_content_length_that_is_not_there: "Content-Length", "";
    connection_that_names_transfer_encoding: "Transfer-Encoding", "Transfer-Encoding: chunked\r\n";
    second_connection_that_names_transfer_encoding: "keep-alive, transfer-encoding", "Connection: x\r\n";
}

#[test]
fn a_head_cut_at_every_byte_is_relayed_alike() {
    in_the_clear_and_over_tls(async |tls| {
        let stage = Stage::start(tls, async |mut peer| {
            while let Some(head) = peer.head().await {
                let body = peer.body(if head.starts_with("POST ") { 3 } else { 0 }).await;
                peer.answer(body).await;
            }
        })
        .await;
        let request =
            "POST /x?y=z HTTP/1.1\r\nHost: a.example:80\r\nX-Own:  b \r\nContent-Length: 3\r\n\r\nabc";
        let mut client = stage.client().await;
        for at in 1..request.len() {
            let (first, second) = request.split_at(at);
            client.send(first).await;
            settle().await;
            client.send(second).await;
            assert_eq!(told(&client.answer(false).await), (200, "abc", Finish::Whole), "cut at {at}");
        }
        let told: Vec<String> = stage.notes.heads.borrow().iter().map(|(_, head)| own(head)).collect();
        assert!(told.iter().all(|head| *head == told[0]), "{told:?}");
        assert!(
            told[0].starts_with("POST /x?y=z HTTP/1.1\r\nHost: a.example:80\r\nX-Own: b\r\n"),
            "{}",
            told[0]
        );
        assert_eq!(stage.notes.connections.get(), 1);
    });
}

/// A head without what differs from request to request.
fn own(head: &str) -> String {
    let varies = |line: &str| ["x-request-id", "traceparent"].iter().any(|name| line.starts_with(name));
    head.split_inclusive("\r\n").filter(|line| !varies(&line.to_lowercase())).collect()
}

#[test]
fn a_head_byte_by_byte_is_relayed() {
    in_the_clear_and_over_tls(async |tls| {
        let stage = Stage::start(tls, tell_target).await;
        let mut client = stage.client().await;
        for byte in GET.as_bytes() {
            client.send([*byte]).await;
            settle().await;
        }
        assert_eq!(told(&client.answer(false).await), (200, "/", Finish::Whole));
    });
}

#[test]
fn a_client_that_half_closes_is_still_answered() {
    in_the_clear_and_over_tls(async |tls| {
        let (stage, release) = waiting(tls).await;
        let mut client = stage.client().await;
        client.send(GET).await;
        client.half_close().await;
        stage.until_asked(1).await;
        tokio::time::sleep(Duration::from_millis(150)).await;
        assert_neighbour_is_served(&stage).await;
        release.notify_one();
        assert_eq!(told(&client.answer(false).await), (200, "late", Finish::Whole));
        client.assert_ended().await;
    });
}

#[test]
fn all_that_a_client_has_asked_for_before_it_half_closed_is_answered() {
    in_the_clear_and_over_tls(async |tls| {
        let stage = Stage::start(tls, tell_target).await;
        let mut client = stage.client().await;
        client.send(GET.repeat(5)).await;
        client.half_close().await;
        for _ in 0..5 {
            assert_eq!(told(&client.answer(false).await), (200, "/", Finish::Whole));
        }
        client.assert_ended().await;
    });
}

#[test]
fn a_client_that_half_closes_gets_a_large_answer_whole() {
    in_the_clear_and_over_tls(async |tls| {
        let stage = Stage::start(tls, async |mut peer| {
            while peer.head().await.is_some() {
                peer.answer(pattern(1 << 20)).await;
            }
        })
        .await;
        let mut client = stage.client().await;
        client.send(GET).await;
        client.half_close().await;
        let answer = client.answer(false).await;
        assert_eq!(answer.finish, Finish::Whole);
        crate::stage::assert_same(&answer.body, &pattern(1 << 20));
        client.assert_ended().await;
    });
}

#[test]
fn the_request_of_a_client_that_has_half_closed_is_dropped_after_a_second() {
    in_the_clear_and_over_tls(async |tls| {
        let (stage, _release) = waiting(tls).await;
        let mut client = stage.client().await;
        client.send(GET).await;
        stage.until_asked(1).await;
        let then = Instant::now();
        client.half_close().await;
        stage.until_open(0).await;
        let after = then.elapsed().as_millis();
        assert!((900..2500).contains(&after), "{after} ms");
        client.assert_ended().await;
        assert_neighbour_is_served(&stage).await;
    });
}

#[test]
fn a_client_that_half_closes_in_its_head_is_closed_without_a_word() {
    for part in ["G", "GET / HTTP/1.1\r\nHos", "GET / HTTP/1.1\r\nHost: a\r\n"] {
        in_the_clear_and_over_tls(async |tls| {
            let stage = Stage::start(tls, tell_target).await;
            let mut client = stage.client().await;
            client.send(part).await;
            client.half_close().await;
            client.assert_ended().await;
            assert_eq!(stage.notes.connections.get(), 0);
        });
    }
}

#[test]
fn a_client_that_ends_or_resets_in_its_body_breaks_the_request_off() {
    for head in ["Content-Length: 10\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"] {
        for resets in [false, true] {
            in_the_clear_and_over_tls(async |tls| {
                let (stage, _release) = waiting(tls).await;
                let mut client = stage.client().await;
                client.send(format!("POST / HTTP/1.1\r\nHost: a\r\n{head}")).await;
                stage.until_asked(1).await;
                if resets {
                    client.reset();
                } else {
                    client.half_close().await;
                    client.rest(&mut Vec::new()).await;
                }
                stage.until_open(0).await;
                assert_neighbour_is_served(&stage).await;
            });
        }
    }
}

/// How a client breaks its body off.
#[derive(Clone, Copy, Debug)]
enum Break {
    Ends,
    Resets,
    Stops,
    BreaksARule,
}

/// The upstream's answer has begun when the body breaks off, and goes on.
fn broken_off_behind_an_early_answer(how: Break, framing: &'static str, begun: &'static str) {
    for tls in [false, true] {
        run_with_a_still_clock(async {
            let limits = Limits { body_idle_timeout: Duration::from_secs(2), ..limits() };
            let (go, (tell, mut told)) = (Rc::new(Notify::new()), mpsc::unbounded_channel());
            let goes = Rc::clone(&go);
            let stage = Stage::start_with(tls, limits, Settings::default(), async move |mut peer: Peer| {
                while let Some(head) = peer.head().await {
                    if head.starts_with("GET ") {
                        peer.answer(peer.at.to_string()).await;
                        continue;
                    }
                    let mut body = peer.body(begun.len()).await;
                    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello").await;
                    goes.notified().await;
                    peer.send("world").await;
                    // Until the connection ends.
                    body.extend(peer.body(usize::MAX).await);
                    return tell.send(String::from_utf8(body).unwrap()).unwrap();
                }
            })
            .await;
            let mut client = stage.client().await;
            client.send(format!("POST / HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n{begun}")).await;
            let head = client.head().await;
            assert!(head.starts_with("http/1.1 200 ok\r\n"), "{head}");
            match how {
                Break::Ends => client.half_close().await,
                Break::BreaksARule => client.send("x\r\n").await,
                Break::Stops => {}
                Break::Resets => std::mem::replace(&mut client, stage.client().await).reset(),
            }
            // Whatever the relay waits for is over then.
            settle().await;
            advance(Duration::from_secs(3)).await;
            settle().await;
            go.notify_one();
            if matches!(how, Break::Stops | Break::BreaksARule) {
                // The relay is done with the upstream's connection then, and must not keep it for another request.
                let mut body = [0; 10];
                within(client.0.read_exact(&mut body)).await.unwrap();
                assert_eq!(&body, b"helloworld");
            }
            assert_eq!(stage.client().await.assert_stays("/").await.text(), "1");
            assert_eq!(within(told.recv()).await.as_deref(), Some(begun), "{how:?} {framing}");
        });
    }
}

macro_rules! broken_off_behind_an_early_answer {
    ($($row:ident: $how:ident, $framing:literal, $begun:literal;)*) => {
        $(#[test] fn $row() { broken_off_behind_an_early_answer(Break::$how, $framing, $begun); })*
    };
}

broken_off_behind_an_early_answer! {
    an_end_in_a_body_that_is_answered_already: Ends, "Content-Length: 10", "hello";
    an_end_in_chunks_that_are_answered_already: Ends, "Transfer-Encoding: chunked", "5\r\nhello\r\n";
    a_reset_in_a_body_that_is_answered_already: Resets, "Content-Length: 10", "hello";
    a_reset_in_chunks_that_are_answered_already: Resets, "Transfer-Encoding: chunked", "5\r\nhello\r\n";
    a_stop_in_a_body_that_is_answered_already: Stops, "Content-Length: 10", "hello";
    a_stop_in_chunks_that_are_answered_already: Stops, "Transfer-Encoding: chunked", "5\r\nhello\r\n";
    a_bad_chunk_of_a_body_that_is_answered_already: BreaksARule, "Transfer-Encoding: chunked", "5\r\nhello\r\n";
}

#[test]
fn a_client_that_resets_takes_its_request_along_at_once() {
    in_the_clear_and_over_tls(async |tls| {
        let (stage, _release) = waiting(tls).await;
        let client = {
            let mut client = stage.client().await;
            client.send(GET).await;
            client
        };
        stage.until_asked(1).await;
        let then = Instant::now();
        client.reset();
        stage.until_open(0).await;
        assert!(then.elapsed() < Duration::from_millis(800), "{:?}", then.elapsed());
        assert_neighbour_is_served(&stage).await;
    });
}

#[test]
fn a_client_that_resets_while_its_answer_comes_frees_the_upstream() {
    in_the_clear_and_over_tls(async |tls| {
        let stage = Stage::start(tls, async |mut peer| {
            while let Some(head) = peer.head().await {
                if head.starts_with("GET /neighbour ") {
                    peer.answer("").await;
                    continue;
                }
                peer.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello").await;
                return peer.ended().await;
            }
        })
        .await;
        let mut client = stage.client().await;
        client.send(GET).await;
        client.head().await;
        client.reset();
        stage.until_open(0).await;
        assert_neighbour_is_served(&stage).await;
    });
}

#[test]
fn an_upload_that_waits_for_the_upstream_in_vain_is_over_in_its_time() {
    in_the_clear_and_over_tls(async |tls| {
        // While nobody reads, nobody sees the client leave: the upstream's own time is what ends it.
        let settings = Settings { first_byte_timeout: Duration::from_millis(500), ..Settings::default() };
        let stage = Stage::start_with(tls, limits(), settings, async |mut peer: Peer| {
            let head = peer.head().await.unwrap();
            if head.starts_with("GET ") {
                return peer.answer("").await;
            }
            // Reads nothing.
            std::future::pending::<()>().await;
        })
        .await;
        let mut client = stage.client().await;
        client.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", 256 << 20)).await;
        let piece = vec![b'x'; 1 << 16];
        let sending =
            async { while tokio::io::AsyncWriteExt::write_all(&mut client.0, &piece).await.is_ok() {} };
        assert!(tokio::time::timeout(Duration::from_millis(200), sending).await.is_err());
        client.reset();
        stage.until_at_rest().await;
        assert_neighbour_is_served(&stage).await;
    });
}

#[test]
fn a_client_that_stops_reading_is_given_up_and_costs_no_more_than_the_way_holds() {
    for head in ["Content-Length: 268435456\r\n\r\n", "\r\n"] {
        in_the_clear_and_over_tls(async |tls| {
            let limits = Limits { write_timeout: Duration::from_millis(300), ..limits() };
            let sent = Rc::new(std::cell::Cell::new(0));
            let count = Rc::clone(&sent);
            let stage = Stage::start_with(tls, limits, Settings::default(), async move |mut peer: Peer| {
                let asked = peer.head().await.unwrap();
                if asked.starts_with("GET /neighbour ") {
                    return peer.answer("").await;
                }
                peer.send(format!("HTTP/1.1 200 OK\r\n{head}")).await;
                let piece = [b'x'; 1 << 16];
                while tokio::io::AsyncWriteExt::write_all(&mut peer.stream, &piece).await.is_ok() {
                    count.set(count.get() + piece.len());
                }
            })
            .await;
            let mut client = stage.client().await;
            client.send(GET).await;
            client.head().await;
            assert_neighbour_is_served(&stage).await;
            stage.until_open(0).await;
            assert!(sent.get() < 64 << 20, "{}", sent.get());
            // What it finds later is no whole answer.
            let mut rest = Vec::new();
            let sound = client.rest(&mut rest).await;
            assert!(!sound || (head != "\r\n" && rest.len() < 268_435_456) || !rest.ends_with(b"0\r\n\r\n"));
        });
    }
}

#[test]
fn a_head_of_one_byte_now_and_then_is_408_when_its_time_is_over() {
    in_the_clear_and_over_tls(async |tls| {
        let limits = Limits { head_timeout: Duration::from_millis(400), ..limits() };
        let stage = Stage::start_with(tls, limits, Settings::default(), tell_target).await;
        let mut client = stage.client().await;
        let then = Instant::now();
        let refused = trickle(&mut client, GET.as_bytes()).await;
        assert!(then.elapsed() < Duration::from_millis(1200), "{:?}", then.elapsed());
        assert_eq!((refused.status, refused.problem().as_str()), (408, "head-too-slow"));
        client.assert_ended().await;
        assert_eq!(stage.notes.connections.get(), 0);
        assert_neighbour_is_served(&stage).await;
    });
}

/// Sends a byte every 50 ms until there is an answer.
async fn trickle(client: &mut Client, bytes: &[u8]) -> Reading {
    let mut first = [0];
    for byte in bytes {
        client.send([*byte]).await;
        let wait = tokio::time::timeout(Duration::from_millis(50), client.0.read(&mut first));
        if let Ok(read) = wait.await {
            assert_eq!((read.unwrap(), first), (1, *b"H"));
            break;
        }
    }
    client.answer(false).await
}

#[test]
fn a_second_head_has_its_own_time() {
    in_the_clear_and_over_tls(async |tls| {
        let limits = Limits { head_timeout: Duration::from_millis(200), ..limits() };
        let stage = Stage::start_with(tls, limits, Settings::default(), tell_target).await;
        let mut client = stage.client().await;
        for _ in 0..3 {
            // Idle for longer than a head may take.
            client.assert_stays("/").await;
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        client.send("GET / HT").await;
        assert_eq!(client.answer(false).await.status, 408);
    });
}

#[test]
fn a_body_of_one_byte_now_and_then_is_taken_as_long_as_it_moves() {
    in_the_clear_and_over_tls(async |tls| {
        let limits = Limits { body_idle_timeout: Duration::from_millis(200), ..limits() };
        // Nor is it the upstream's fault.
        let settings = Settings { first_byte_timeout: Duration::from_millis(200), ..Settings::default() };
        let stage = Stage::start_with(tls, limits, settings, async |mut peer: Peer| {
            while let Some(head) = peer.head().await {
                let body = peer.body(if head.starts_with("POST ") { 10 } else { 0 }).await;
                peer.answer(body).await;
            }
        })
        .await;
        let mut client = stage.client().await;
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n").await;
        for byte in b"helloworld" {
            client.send([*byte]).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(told(&client.answer(false).await), (200, "helloworld", Finish::Whole));
        client.assert_stays("/").await;
    });
}

#[test]
fn a_body_that_stops_is_408_and_the_upstream_sees_it_break_off() {
    for head in ["Content-Length: 10\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"] {
        in_the_clear_and_over_tls(async |tls| {
            let limits = Limits { body_idle_timeout: Duration::from_millis(200), ..limits() };
            let stage = Stage::start_with(tls, limits, Settings::default(), async |mut peer: Peer| {
                peer.head().await;
                peer.ended().await;
            })
            .await;
            let mut client = stage.client().await;
            client.send(format!("POST / HTTP/1.1\r\nHost: a\r\n{head}")).await;
            let refused = client.answer(false).await;
            assert_eq!((refused.status, refused.problem().as_str()), (408, "body-too-slow"));
            client.assert_ended().await;
            stage.until_open(0).await;
        });
    }
}

#[test]
fn an_answer_read_in_small_pieces_is_whole_as_long_as_it_moves() {
    in_the_clear_and_over_tls(async |tls| {
        let limits = Limits { write_timeout: Duration::from_millis(300), ..limits() };
        let body = pattern(24 << 20);
        let expected = body.clone();
        let stage = Stage::start_with(tls, limits, Settings::default(), async move |mut peer: Peer| {
            peer.head().await;
            peer.answer(&body).await;
        })
        .await;
        let mut client = stage.client().await;
        client.send(GET).await;
        client.head().await;
        let mut read = Vec::new();
        // Slower than the limit as a whole, but never still for so long.
        for _ in 0..12 {
            let mut piece = vec![0; 2 << 20];
            within(client.0.read_exact(&mut piece)).await.unwrap();
            read.extend_from_slice(&piece);
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
        crate::stage::assert_same(&read, &expected);
    });
}

#[test]
fn a_client_of_http_10_is_kept_only_where_it_asks_for_it() {
    in_the_clear_and_over_tls(async |tls| {
        let stage = Stage::start(tls, tell_target).await;
        let mut client = stage.client().await;
        for _ in 0..3 {
            client.send("GET / HTTP/1.0\r\nHost: a\r\nConnection: Keep-Alive\r\n\r\n").await;
            let answer = client.answer(false).await;
            assert!(answer.head.starts_with("http/1.0 200 ok\r\n"), "{answer:?}");
            assert_eq!((answer.text(), answer.header("connection")), ("/", Some("keep-alive")));
        }
        client.send("GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive, close\r\n\r\n").await;
        assert_eq!(client.answer(false).await.header("connection"), Some("close"));
        client.assert_ended().await;
        let mut client = stage.client().await;
        client.send("GET / HTTP/1.0\r\nHost: a\r\n\r\nGET /never HTTP/1.0\r\n\r\n").await;
        assert_eq!(client.answer(false).await.header("connection"), Some("close"));
        client.assert_ended().await;
        assert!(!stage.notes.heads.borrow().iter().any(|(_, head)| head.contains("never")));
    });
}

#[test]
fn a_request_of_http_10_without_host_is_relayed_as_one_that_http_11_allows() {
    in_the_clear_and_over_tls(async |tls| {
        let stage = Stage::start(tls, tell_target).await;
        let answer = stage.ask(b"GET / HTTP/1.0\r\n\r\n").await;
        assert_eq!(told(&answer), (200, "/", Finish::Whole));
        let head = stage.notes.heads.borrow()[0].1.to_lowercase();
        // RFC 9112 section 3.2: an HTTP/1.1 request has a Host, and be it empty.
        assert!(head.contains("\r\nhost:"), "{head:?}");
    });
}

#[test]
fn a_client_that_closes_as_it_asks_is_closed() {
    in_the_clear_and_over_tls(async |tls| {
        let stage = Stage::start(tls, tell_target).await;
        let mut client = stage.client().await;
        client.send(format!("GET /a HTTP/1.1\r\nHost: a\r\nConnection: x, Close\r\n\r\n{GET}")).await;
        let answer = client.answer(false).await;
        assert_eq!((answer.text(), answer.header("connection")), ("/a", Some("close")));
        client.assert_ended().await;
        assert_eq!(stage.notes.heads.borrow().len(), 1);
        assert!(!stage.notes.heads.borrow()[0].1.to_lowercase().contains("connection"));
    });
}
