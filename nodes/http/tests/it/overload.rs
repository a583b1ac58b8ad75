//! Memory that runs out: what is refused, what goes on, and that it ends.

use std::cell::Cell;
use std::rc::Rc;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2::handshake;
use hyper_util::rt::TokioIo;
use protoplex_http::{AccessLog, Fronts, Limits, Listener, Surroundings};
use protoplex_runtime::memory::Sample;
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::http2::Local;
use crate::kit::{Answer, Metrics, Raw, Server, limits, run, settle, start_listener, text, until, within};

const REQUEST: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const PLENTY: u64 = 1 << 30;
const LITTLE: u64 = 1 << 20;

/// A server whose memory is what the test says.
struct Stage {
    server: Server,
    available: Rc<Cell<u64>>,
    /// Lets the handler go on that was asked for `/slow`.
    go: Rc<Notify>,
    begun: Rc<Cell<u32>>,
    metrics: Metrics,
}

impl Stage {
    fn start(metrics: &Metrics) -> Self {
        let (available, go, begun) =
            (Rc::new(Cell::new(PLENTY)), Rc::new(Notify::new()), Rc::new(Cell::new(0)));
        let (left, gate, begin) = (Rc::clone(&available), Rc::clone(&go), Rc::clone(&begun));
        let surroundings = |drain| {
            Surroundings::from(drain)
                .with_memory(move || Sample { resident_bytes: LITTLE, available_bytes: left.get() })
        };
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let listener = Listener { socket, tls: None, fronts: Fronts::default() };
        let limits = Limits { shed_below_available_bytes: 64 << 20, ..limits() };
        let server = start_listener(listener, limits, surroundings, AccessLog::off(), move |request, _| {
            let gate = Rc::clone(&gate);
            begin.set(begin.get() + 1);
            async move {
                if request.uri().path() == "/slow" {
                    gate.notified().await;
                }
                text("served")
            }
        });
        Self { server, available, go, begun, metrics: metrics.clone() }
    }

    /// Leaves so much memory, and waits until that is noticed.
    async fn leave(&self, available: u64, shedding: f64) {
        self.available.set(available);
        within(until(|| self.metrics.gauge("protoplex_http_shedding") == shedding)).await;
    }

    fn shed(&self) -> u64 {
        self.metrics.counter("protoplex_http_requests_shed_total")
    }

    async fn connect(&self) -> Raw {
        Raw::connect(self.server.address).await
    }
}

fn assert_refused(answer: &Answer) {
    assert_eq!((answer.status, answer.problem().as_str()), (503, "overloaded"));
    assert_eq!((answer.header("retry-after"), answer.header("connection")), (Some("1"), Some("close")));
}

#[test]
fn new_requests_are_refused_those_in_flight_are_answered_and_it_ends() {
    run(async {
        let metrics = Metrics::default();
        let _kept = metrics.keep();
        let stage = Stage::start(&metrics);
        let (mut slow, mut idle) = (stage.connect().await, stage.connect().await);
        idle.send(REQUEST).await;
        assert_eq!(idle.answer().await.body, "served");
        slow.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await;
        within(until(|| stage.begun.get() == 2)).await;

        stage.leave(LITTLE, 1.0).await;
        idle.send(REQUEST).await;
        assert_refused(&idle.answer().await);
        assert_eq!(idle.rest().await, b"");
        let mut new = stage.connect().await;
        // Its body is not waited for, and the answer arrives all the same.
        new.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3000000\r\n\r\n").await;
        new.send(vec![b'x'; 1 << 20]).await;
        assert_refused(&new.answer().await);
        assert_eq!((stage.shed(), stage.begun.get()), (2, 2), "no handler was asked");
        stage.go.notify_one();
        let answer = slow.answer().await;
        assert_eq!((answer.body.as_str(), answer.header("connection")), ("served", None));

        // Not much more than the limit is not enough, and plenty is.
        stage.available.set(70 << 20);
        slow.send(REQUEST).await;
        assert_refused(&slow.answer().await);
        stage.leave(PLENTY, 0.0).await;
        let mut again = stage.connect().await;
        again.send(REQUEST).await;
        assert_eq!(again.answer().await.body, "served");
        assert_eq!(stage.shed(), 3);
    });
}

#[test]
fn over_http_2_the_connection_is_left_in_good_order() {
    run(async {
        let metrics = Metrics::default();
        let _kept = metrics.keep();
        let stage = Stage::start(&metrics);
        let stream = TcpStream::connect(stage.server.address).await.unwrap();
        let (mut client, connection) =
            handshake::<_, _, Empty<Bytes>>(Local, TokioIo::new(stream)).await.unwrap();
        let connection = tokio::task::spawn_local(connection);
        let get = |path: &str| http::Request::get(format!("http://a{path}")).body(Empty::new()).unwrap();
        let slow = tokio::task::spawn_local(client.send_request(get("/slow")));
        within(until(|| stage.begun.get() == 1)).await;
        stage.leave(LITTLE, 1.0).await;
        let refused = within(client.send_request(get("/"))).await.unwrap();
        assert_eq!(
            (refused.status().as_u16(), &refused.headers()["retry-after"]),
            (503, &"1".parse().unwrap())
        );
        let problem = refused.into_body().collect().await.unwrap().to_bytes();
        assert!(problem.windows(10).any(|part| part == b"overloaded"), "{problem:?}");
        assert_eq!((stage.shed(), stage.begun.get()), (1, 1));
        stage.go.notify_one();
        let answer = within(slow).await.unwrap().unwrap();
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "served");
        // GOAWAY, as `Connection: close` would have it.
        within(connection).await.unwrap().unwrap();
    });
}

#[test]
fn a_flood_of_connections_waits_outside() {
    run(async {
        let metrics = Metrics::default();
        let _kept = metrics.keep();
        let stage = Stage::start(&metrics);
        let held = stage.connect().await;
        let accepted = || metrics.counter("protoplex_http_connections_total");
        within(until(|| accepted() == 1)).await;
        stage.leave(LITTLE, 1.0).await;
        let mut flood = Vec::new();
        for _ in 0..60 {
            flood.push(stage.connect().await);
        }
        for client in &mut flood {
            client.send(REQUEST).await;
        }
        // One that was being waited for before, and sixteen more; each that is refused makes room for another.
        within(until(|| stage.shed() >= 17)).await;
        settle().await;
        let open = || metrics.gauge("protoplex_http_connections");
        assert!(open() <= 18.0, "{}", open());
        for client in &mut flood {
            assert_refused(&client.answer().await);
            assert!(open() <= 18.0, "{}", open());
        }
        stage.leave(PLENTY, 0.0).await;
        let mut new = stage.connect().await;
        new.send(REQUEST).await;
        assert_eq!(new.answer().await.body, "served");
        drop(held);
    });
}
