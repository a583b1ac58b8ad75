//! Event streams and requests that are relayed when the drain starts.

use std::time::Duration;

use protoplex_http::{AccessLog, Limits};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::kit::{
    Metrics, Raw, Server, curl, limits, pass, run, run_with_a_still_clock, settle, start_relay_under, until,
    within,
};

pub(crate) const EVENTS: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n";
pub(crate) const CHUNKED: &str = "Transfer-Encoding: chunked\r\n\r\n";

fn under_limits() -> Limits {
    Limits {
        request_drain_timeout: Some(Duration::from_secs(15)),
        event_stream_drain_timeout: Duration::from_secs(10),
        ..limits()
    }
}

/// A request that waits at the test, which is its backend.
async fn ask(limits: Limits, request: &str) -> (Server, Raw, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let relay = start_relay_under(limits, None, AccessLog::off(), listener.local_addr().unwrap());
    let mut client = Raw::connect(relay.address).await;
    client.send(request).await;
    (relay, client, take(&listener).await)
}

/// The next request of a backend, whose head is thrown away.
pub(crate) async fn take(listener: &TcpListener) -> TcpStream {
    let (mut backend, _) = listener.accept().await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(within(backend.read_u8()).await.unwrap());
    }
    backend
}

pub(crate) async fn say(backend: &mut TcpStream, chunk: &str) {
    backend.write_all(format!("{:x}\r\n{chunk}\r\n", chunk.len()).as_bytes()).await.unwrap();
    settle().await;
}

fn drained(metrics: &Metrics, what: &str) -> u64 {
    metrics.counter(&format!("protoplex_http_drained_total{{what={what:?}}}"))
}

pub(crate) fn assert_parted(body: &str, events: &str) {
    let retry = body.strip_prefix(events).and_then(|rest| rest.strip_prefix("retry: ")).expect(body);
    let retry: u64 = retry.strip_suffix("\n\n").expect(body).parse().expect(body);
    assert!((200..2_000).contains(&retry), "{body}");
}

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

#[test]
fn an_event_stream_ends_behind_an_event_with_a_retry() {
    let metrics = Metrics::default();
    let _kept = metrics.keep();
    for end in ["\n", "\r\n", "\r"] {
        run_with_a_still_clock(async {
            let (relay, mut client, mut backend) = ask(under_limits(), GET).await;
            backend.write_all(format!("{EVENTS}{CHUNKED}").as_bytes()).await.unwrap();
            say(&mut backend, &format!("data: 1{end}{end}data:")).await;
            relay.trigger.pull();
            settle().await;
            pass(Duration::from_millis(7_600)).await;
            say(&mut backend, &format!(" 2{end}")).await;
            say(&mut backend, &format!("id: 2{end}{end}data: 3{end}{end}")).await;
            let answer = client.answer().await;
            assert_parted(&answer.body, &format!("data: 1{end}{end}data: 2{end}id: 2{end}{end}"));
            assert_eq!(client.rest().await, b"");
            within(relay.task).await.unwrap();
        });
    }
    assert_eq!((drained(&metrics, "event_streams_ended"), drained(&metrics, "requests_finished")), (3, 0));
}

/// By which many show that a stream lives: Mercure's hub, for one.
#[test]
fn comments_are_no_events_and_do_not_keep_a_stream_from_its_end() {
    let metrics = Metrics::default();
    let _kept = metrics.keep();
    for (comments, end) in [(":\n", ""), (": still there\r\n:\r\n", ""), (":", "\n")] {
        run_with_a_still_clock(async {
            let (relay, mut client, mut backend) = ask(under_limits(), GET).await;
            backend.write_all(format!("{EVENTS}{CHUNKED}").as_bytes()).await.unwrap();
            say(&mut backend, &format!("data: 1\n\n{comments}")).await;
            relay.trigger.pull();
            settle().await;
            pass(Duration::from_millis(10_100)).await;
            let answer = client.answer().await;
            assert_parted(&answer.body, &format!("data: 1\n\n{comments}{end}"));
            within(relay.task).await.unwrap();
        });
    }
    assert_eq!((drained(&metrics, "event_streams_ended"), drained(&metrics, "event_streams_cut")), (3, 0));
}

/// The answer of a language model, say: nobody comes back for the rest of it.
#[test]
fn events_that_answer_a_post_are_a_request_and_end_by_themselves() {
    let metrics = Metrics::default();
    let _kept = metrics.keep();
    run_with_a_still_clock(async {
        let post = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n";
        let (relay, mut client, mut backend) = ask(under_limits(), post).await;
        backend.write_all(format!("{EVENTS}{CHUNKED}").as_bytes()).await.unwrap();
        say(&mut backend, "data: 1\n\n").await;
        relay.trigger.pull();
        settle().await;
        pass(Duration::from_millis(12_000)).await;
        say(&mut backend, "data: [DONE]\n\n").await;
        backend.write_all(b"0\r\n\r\n").await.unwrap();
        assert_eq!(client.answer().await.body, "data: 1\n\ndata: [DONE]\n\n");
        within(relay.task).await.unwrap();
    });
    assert_eq!((drained(&metrics, "requests_finished"), drained(&metrics, "event_streams_ended")), (1, 0));
}

#[test]
fn a_silent_event_stream_is_ended_over_http_2_too() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let limits = Limits { event_stream_drain_timeout: Duration::from_secs(1), ..limits() };
        let relay = start_relay_under(limits, None, AccessLog::off(), listener.local_addr().unwrap());
        let url = format!("http://{}/", relay.address);
        let request =
            tokio::task::spawn_local(
                async move { curl(&["--no-buffer", "--http2-prior-knowledge", &url]).await },
            );
        let mut backend = take(&listener).await;
        backend.write_all(format!("{EVENTS}{CHUNKED}").as_bytes()).await.unwrap();
        say(&mut backend, "data: 1\n\n").await;
        relay.trigger.pull();
        let (content, body) = within(request).await.unwrap();
        assert!(content, "{body}");
        assert_parted(&body, "data: 1\n\n");
        within(relay.task).await.unwrap();
    });
}

#[test]
fn an_event_stream_that_stays_within_an_event_is_cut_visibly() {
    let metrics = Metrics::default();
    let _kept = metrics.keep();
    run_with_a_still_clock(async {
        let (relay, mut client, mut backend) = ask(under_limits(), GET).await;
        backend.write_all(format!("{EVENTS}{CHUNKED}").as_bytes()).await.unwrap();
        say(&mut backend, "data: 1\n").await;
        relay.trigger.pull();
        settle().await;
        pass(Duration::from_millis(7_600)).await;
        settle().await;
        assert!(!relay.task.is_finished());
        pass(Duration::from_millis(2_500)).await;
        let rest = String::from_utf8(client.rest().await).unwrap();
        assert!(rest.ends_with("data: 1\n\r\n"), "no last chunk: {rest:?}");
        within(relay.task).await.unwrap();
        assert_eq!(
            (drained(&metrics, "event_streams_cut"), drained(&metrics, "event_streams_ended")),
            (1, 0)
        );
    });
}

/// A client that reads nothing has no say in how long it takes.
#[test]
fn an_event_stream_whose_client_reads_nothing_is_cut() {
    let metrics = Metrics::default();
    let _kept = metrics.keep();
    run_with_a_still_clock(async {
        let (relay, client, mut backend) = ask(under_limits(), GET).await;
        backend.write_all(format!("{EVENTS}{CHUNKED}").as_bytes()).await.unwrap();
        let flood = tokio::task::spawn_local(async move {
            while backend.write_all(b"9\r\ndata: 1\n\n\r\n".repeat(1000).as_slice()).await.is_ok() {}
        });
        client.0.readable().await.unwrap();
        // Until every buffer on the way is full.
        for _ in 0..100 {
            settle().await;
        }
        relay.trigger.pull();
        settle().await;
        pass(Duration::from_millis(10_300)).await;
        within(relay.task).await.unwrap();
        assert_eq!(drained(&metrics, "event_streams_cut"), 1);
        within(flood).await.unwrap();
    });
}

#[test]
fn event_streams_that_nothing_can_be_added_to_are_requests() {
    let metrics = Metrics::default();
    let _kept = metrics.keep();
    for fields in [
        "Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n",
        "Content-Length: 20\r\n\r\ndata: 1\n\n",
    ] {
        run_with_a_still_clock(async {
            let (relay, mut client, mut backend) = ask(under_limits(), GET).await;
            backend.write_all(format!("{EVENTS}{fields}").as_bytes()).await.unwrap();
            settle().await;
            relay.trigger.pull();
            settle().await;
            pass(Duration::from_millis(14_900)).await;
            settle().await;
            assert!(!relay.task.is_finished());
            pass(Duration::from_millis(200)).await;
            let mut rest = Vec::new();
            // Broken off, so that a reset is as good as an end.
            let _ = within(client.0.read_to_end(&mut rest)).await;
            assert!(!String::from_utf8_lossy(&rest).contains("retry"));
            within(relay.task).await.unwrap();
        });
    }
    assert_eq!(drained(&metrics, "requests_cut"), 2);
}

/// A drain that never ends: a backend that never answers.
#[test]
fn a_request_that_is_never_answered_is_cut_when_its_time_is_over() {
    let metrics = Metrics::default();
    let _kept = metrics.keep();
    run_with_a_still_clock(async {
        let (relay, mut client, _backend) = ask(under_limits(), GET).await;
        let mut idle = Raw::connect(relay.address).await;
        settle().await;
        relay.trigger.pull();
        settle().await;
        pass(Duration::from_millis(1_100)).await;
        assert_eq!(idle.rest().await, b"");
        pass(Duration::from_millis(13_800)).await;
        settle().await;
        assert!(!relay.task.is_finished());
        pass(Duration::from_millis(200)).await;
        let _ = within(client.0.read_to_end(&mut Vec::new())).await;
        within(relay.task).await.unwrap();
        assert_eq!((drained(&metrics, "requests_cut"), drained(&metrics, "connections_closed_idle")), (1, 1));
    });
}

#[test]
fn what_is_cut_with_the_process_is_counted() {
    let metrics = Metrics::default();
    let _kept = metrics.keep();
    run(async {
        let (relay, _client, _backend) = ask(limits(), GET).await;
        relay.trigger.pull();
        settle().await;
        relay.task.abort();
        within(until(|| drained(&metrics, "requests_cut") == 1)).await;
        assert_eq!(drained(&metrics, "requests_finished"), 0);
    });
}
