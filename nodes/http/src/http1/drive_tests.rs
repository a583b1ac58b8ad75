//! The drive of a connection under a scripted stream and a fake clock: whatever the peer does and wherever it does it, what
//! goes out is the same or breaks off, every exchange ends, and all memory is given back.

use std::cell::Cell;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use protoplex_runtime::drain::Drain;
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep, timeout};

use super::*;
use crate::exchange::Scheme;
use crate::limits::Limits;
use crate::script::{Read, Script, Write};
use crate::{AccessLog, buffer, head};

/// Answers with what was sent, or by the path otherwise.
struct Sample {
    begun: Cell<usize>,
    ended: Rc<Cell<usize>>,
}

struct Ended(Rc<Cell<usize>>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.set(self.0.get() + 1);
    }
}

impl Service for Sample {
    async fn answer(&self, exchange: &Rc<Exchange>, body: Body) -> Answer {
        self.begun.set(self.begun.get() + 1);
        exchange.hold(Ended(Rc::clone(&self.ended)));
        let body = match exchange.head.path() {
            "/echo" => match body.collect(1 << 20).await {
                Ok(bytes) => Body::full(bytes),
                Err(_) => Body::empty(),
            },
            "/large" => Body::full(vec![b'l'; 40_000]),
            "/chunks" => Body::stream(stream::iter([Ok(Bytes::from_static(b"one")), Ok("two".into())])),
            "/never" => std::future::pending().await,
            "/give-up" => {
                let mut body = body;
                let _ = timeout(Duration::from_millis(1), body.chunk()).await;
                drop(body);
                sleep(Duration::from_secs(1)).await;
                Body::empty()
            }
            _ => Body::empty(),
        };
        crate::Response::new(body).into()
    }
}

/// What came of a connection.
struct Story {
    /// Without what differs between any two runs.
    sent: String,
    calls: usize,
    lasted: Duration,
}

fn play(script: Script) -> Story {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let (sent, calls) = (Rc::clone(&script.sent), Rc::clone(&script.calls));
    let held = (buffer::held(), head::held());
    let lasted = LocalSet::new().block_on(&runtime, async {
        let ended = Rc::new(Cell::new(0));
        let handler = Rc::new(Sample { begun: Cell::new(0), ended: Rc::clone(&ended) });
        let (_trigger, drain) = Drain::new();
        let server = Server::new(Rc::clone(&handler), Limits::default(), AccessLog::off(), &drain.into());
        let client = Client::new("192.0.2.1:1".parse().unwrap(), Scheme::Http);
        let start = Instant::now();
        let wire = Wire::shared(Stream::Script(Box::new(script)), &[], &server.limits);
        run(&wire, &server, &client).await;
        assert_eq!(ended.get(), handler.begun.get(), "every exchange ends");
        start.elapsed()
    });
    assert_eq!((buffer::held(), head::held()), held, "all memory is given back");
    let sent = String::from_utf8(sent.take()).unwrap();
    let sent: Vec<&str> = sent.split("\r\n").filter(|line| !line.starts_with("date: ")).collect();
    Story { sent: sent.join("\n"), calls: calls.take(), lasted }
}

/// Their names are given, so that the answers are the same each time.
const REQUESTS: &[u8] = b"GET /a HTTP/1.1\r\nHost: a\r\nX-Request-Id: r\r\n\r\n\
    POST /echo HTTP/1.1\r\nHost: a\r\nX-Request-Id: r\r\nContent-Length: 5\r\n\r\nhello\
    POST /echo HTTP/1.1\r\nHost: a\r\nX-Request-Id: r\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nDigest: z\r\n\r\n\
    GET /chunks HTTP/1.1\r\nHost: a\r\nX-Request-Id: r\r\n\r\n\
    GET /large HTTP/1.1\r\nHost: a\r\nX-Request-Id: r\r\nConnection: close\r\n\r\n";

fn whole() -> Story {
    play(Script::new([Read::Bytes(REQUESTS.to_vec()), Read::End]))
}

#[test]
fn requests_are_answered_alike_wherever_their_bytes_are_cut() {
    let expected = whole().sent;
    assert_eq!(expected.matches("HTTP/1.1 200 OK").count(), 5, "{expected}");
    for at in 1..REQUESTS.len() {
        let (first, second) = REQUESTS.split_at(at);
        let reads = [Read::Bytes(first.to_vec()), Read::Block, Read::Bytes(second.to_vec()), Read::End];
        assert_eq!(play(Script::new(reads)).sent, expected, "cut at {at}");
    }
    let bytewise = REQUESTS.iter().flat_map(|byte| [Read::Bytes(vec![*byte]), Read::Block]);
    assert_eq!(play(Script::new(bytewise.chain([Read::End]))).sent, expected);
}

#[test]
fn answers_are_the_same_however_little_is_taken_at_a_time() {
    let expected = whole().sent;
    for size in [1, 2, 7, 100, 3000] {
        let mut script = Script::new([Read::Bytes(REQUESTS.to_vec()), Read::End]);
        script.writes = (0..60_000).flat_map(|_| [Write::Take(size), Write::Block]).collect();
        assert_eq!(play(script).sent, expected, "{size} at a time");
    }
}

#[test]
fn a_reset_at_any_call_ends_everything() {
    let whole = whole();
    for at in 1..=whole.calls {
        let mut script = Script::new([Read::Bytes(REQUESTS.to_vec()), Read::End]);
        script.reset_at = Some(at);
        let story = play(script);
        assert!(whole.sent.starts_with(&story.sent), "reset at call {at}: {:?}", story.sent);
    }
}

#[test]
fn an_end_or_a_reset_after_any_byte_ends_everything() {
    for last in [Read::End, Read::Reset] {
        for at in 0..REQUESTS.len() {
            let story = play(Script::new([Read::Bytes(REQUESTS[..at].to_vec()), last.clone()]));
            assert!(story.lasted <= Duration::from_secs(6), "after byte {at} it took {:?}", story.lasted);
        }
    }
}

#[test]
fn each_phase_has_its_deadline() {
    let limits = Limits::default();
    let read = |bytes: &[u8]| Script::new([Read::Bytes(bytes.to_vec())]);
    // Beyond it, time only passes while what the client may still send is thrown away.
    let within = |story: &Story, limit: Duration| {
        assert!(
            (limit..=limit + limits.linger_timeout + Duration::from_secs(1)).contains(&story.lasted),
            "{:?} instead of {limit:?}",
            story.lasted
        );
    };
    within(&play(Script::new([])), limits.idle_timeout);
    within(&play(read(b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n")), limits.idle_timeout);
    let head = play(read(b"GET /a HTTP/1.1\r\nHo"));
    within(&head, limits.head_timeout);
    assert!(head.sent.starts_with("HTTP/1.1 408 "), "{}", head.sent);
    let body = play(read(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhel"));
    within(&body, limits.body_idle_timeout);
    assert!(body.sent.starts_with("HTTP/1.1 408 "), "{}", body.sent);
    let mut stuck = read(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n");
    stuck.writes = [Write::Take(100)].into();
    stuck.writes.extend(std::iter::repeat_n(Write::Never, 1));
    within(&play(stuck), limits.write_timeout);
}

#[test]
fn short_answers_to_pipelined_requests_go_out_together() {
    let requests = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n".repeat(3);
    let mut script = Script::new([Read::Bytes(requests), Read::Wait(Duration::from_secs(1)), Read::End]);
    script.writes = [Write::Take(usize::MAX), Write::Never].into();
    assert_eq!(play(script).sent.matches("HTTP/1.1 200 OK").count(), 3);
}

#[test]
fn an_answer_does_not_wait_for_the_next_one() {
    let requests = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\nGET /never HTTP/1.1\r\nHost: a\r\n\r\n".to_vec();
    let story =
        play(Script::new([Read::Bytes(requests.clone()), Read::Wait(Duration::from_secs(5)), Read::Reset]));
    assert_eq!(story.sent.matches("HTTP/1.1 200 OK").count(), 1);
    // Nor is it lost with the next one, where the client has ended its side and takes its time.
    let mut script = Script::new([Read::Bytes(requests), Read::End]);
    script.writes = [Write::Wait(Duration::from_secs(5))].into();
    assert_eq!(play(script).sent.matches("HTTP/1.1 200 OK").count(), 1);
}

#[test]
fn patience_with_one_body_is_none_with_the_next() {
    let head = |path| format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n").into_bytes();
    let nearly = Limits::default().body_idle_timeout - Duration::from_millis(500);
    let reads = [
        Read::Bytes(head("/give-up")),
        Read::Wait(Duration::from_millis(500)),
        Read::Bytes(b"hello".to_vec()),
        Read::Wait(Duration::from_secs(3)),
        Read::Bytes(head("/echo")),
        Read::Wait(nearly),
        Read::Bytes(b"hello".to_vec()),
        Read::End,
    ];
    let sent = play(Script::new(reads)).sent;
    assert_eq!(sent.matches("HTTP/1.1 200 OK").count(), 2, "{sent}");
}

#[test]
fn a_client_that_has_ended_its_side_is_served_for_a_second() {
    let request = b"GET /never HTTP/1.1\r\nHost: a\r\n\r\n".to_vec();
    let story = play(Script::new([Read::Bytes(request), Read::End]));
    assert_eq!((story.sent.as_str(), story.lasted.as_secs()), ("", 1));
    let answered = b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n".to_vec();
    let story = play(Script::new([Read::Bytes(answered), Read::End]));
    assert!(story.sent.len() > 40_000 && story.lasted.as_secs() == 0);
}
