//! An HTTP/1.1 connection: the engine behind its gate, its deadlines, and how it ends.

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;

use http::Version;
use http::header::{CONNECTION, HeaderValue};
use http_body::Body as _;
use hyper::server::conn::http1::Builder;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, sleep_until, timeout};

use crate::body::Body;
use crate::exchange::{Client, End, Exchange, Handler, Response, Seat, Tunnel, normalise};
use crate::gate::Gate;
use crate::incoming::{Incoming, Source};
use crate::outgoing::Outgoing;
use crate::serve::Server;
use crate::socket::Socket;
use crate::upgrade::Upgraded;

/// What the answers on a connection leave behind for its end.
#[derive(Default)]
struct Outcome {
    /// The connection is to be used otherwise.
    tunnel: Option<(Tunnel, End)>,
    /// The end of the answer is the end of the connection (HTTP/1.0), so a good end would claim that it is
    /// whole.
    ends_with_connection: bool,
}

/// Serves the connection until it ends, its tunnel included.
pub(crate) async fn run<H: Handler>(socket: Socket, server: &Server<H>, client: Client) {
    let gate = Gate::new(socket, &server.limits);
    let outcome = RefCell::new(Outcome::default());
    let broke_off = run_engine(&gate, &outcome, server, client).await;
    let Some(socket) = gate.take_socket() else { return };
    let outcome = outcome.into_inner();
    if let Some((tunnel, end)) = outcome.tunnel {
        run_tunnel(tunnel, socket, server).await;
        drop(end);
    } else if broke_off && outcome.ends_with_connection {
        socket.reset();
    } else if gate.unread() {
        socket.linger(server.limits.linger_timeout, server.limits.linger_bytes).await;
    } else {
        socket.close(server.limits.linger_timeout).await;
    }
}

/// Runs the engine to its end; says whether that was the end of an answer that had only begun.
async fn run_engine<H: Handler>(
    gate: &Gate,
    outcome: &RefCell<Outcome>,
    server: &Server<H>,
    client: Client,
) -> bool {
    let service = service_fn(|request| answer(request, gate, outcome, server, client));
    let mut engine = pin!(
        Builder::new()
            .max_headers(server.limits.max_headers)
            .max_header_size(server.limits.max_head_bytes)
            .serve_connection(TokioIo::new(gate.clone()), service)
    );
    let mut drain = pin!(server.drain.started());
    let mut draining = false;
    let mut timer = pin!(sleep_until(Instant::now() + server.limits.idle_timeout));
    poll_fn(|cx| {
        if !draining && drain.as_mut().poll(cx).is_ready() {
            draining = true;
            gate.close_when_idle();
        }
        loop {
            if let Poll::Ready(result) = engine.as_mut().poll(cx) {
                return Poll::Ready(result.is_err());
            }
            if gate.take_news() {
                continue;
            }
            let Some(deadline) = gate.deadline(&server.limits) else {
                return Poll::Pending;
            };
            // A timer that goes off too early is moved then: cheaper than at each request.
            if timer.deadline() > deadline {
                timer.as_mut().reset(deadline);
            }
            while timer.as_mut().poll(cx).is_ready() && Instant::now() < deadline {
                timer.as_mut().reset(deadline);
            }
            if Instant::now() < deadline {
                return Poll::Pending;
            }
            gate.expire();
        }
    })
    .await
}

/// One request, step by step.
async fn answer<H: Handler>(
    request: http::Request<hyper::body::Incoming>,
    gate: &Gate,
    outcome: &RefCell<Outcome>,
    server: &Server<H>,
    client: Client,
) -> Result<http::Response<Outgoing>, Infallible> {
    let (mut head, body) = request.into_parts();
    let normalised = normalise(&mut head);
    let exchange = Rc::new(match gate.refused() {
        Some(rule) => Exchange::refused(client, rule),
        None => Exchange::of(client, &head),
    });
    let seat = Seat::Http1(gate.clone());
    let end = End { exchange: Rc::clone(&exchange), ledger: Rc::clone(&server.ledger), seat };
    let mut last = false;
    let answer = if let Some(rule) = exchange.fault.get() {
        rule.problem().into_response()
    } else if let Err(problem) = normalised {
        // Of CONNECT: what follows may be meant for somebody else.
        last = true;
        problem.into_response()
    } else {
        let body =
            Incoming::new(body, &exchange, Source::Http1(gate.clone()), server.limits.body_idle_timeout);
        let request = http::Request::from_parts(head, Body::incoming(body));
        server.handler.handle(request, &exchange).await
    };
    let tunnel = exchange.take_tunnel(&answer);
    let mut answer = exchange.settle(answer, tunnel.is_some());
    exchange.status.set(answer.status());
    if let Some(tunnel) = tunnel {
        outcome.borrow_mut().tunnel = Some((tunnel, end));
        return Ok(answer.map(|_| Outgoing::nothing()));
    }
    if last || !gate.request_ended() || server.drain.is_draining() {
        answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    outcome.borrow_mut().ends_with_connection = ends_with_connection(&exchange, &answer);
    Ok(answer.map(|body| Outgoing::new(body, end)))
}

fn ends_with_connection(exchange: &Exchange, answer: &Response) -> bool {
    exchange.version == Version::HTTP_10 && answer.body().size_hint().exact().is_none()
}

/// Runs what the connection was upgraded for. It may outlive the start of a drain, but not by much.
async fn run_tunnel<H>(tunnel: Tunnel, socket: Socket, server: &Server<H>) {
    let mut running = tunnel(Upgraded::new(socket));
    let mut drain = pin!(server.drain.started());
    let over = poll_fn(|cx| match Pin::new(&mut running).poll(cx) {
        Poll::Ready(()) => Poll::Ready(true),
        Poll::Pending => drain.as_mut().poll(cx).map(|()| false),
    })
    .await;
    if !over {
        let _ = timeout(server.limits.tunnel_drain_timeout, running).await;
    }
}
