//! Our own HTTP/1.1 engine.
//!
//! | layer | modules |
//! | --- | --- |
//! | grammar and framing, no I/O | `grammar`, `scan` (heads), `chunk`, `decoder` (bodies), `rule`, `write` |
//! | bodies in and out, for both sides | `intake`, `framer` |
//! | one connection of a client | this file (its steps), `wire`, `incoming` (the request's body), `send` |
//!
//! The other side, requests to upstreams, is [`crate::upstream`]; it shares the first two layers.

#[cfg(any(test, fuzzing))]
pub(crate) mod checks;
mod chunk;
mod decoder;
mod framer;
mod grammar;
mod incoming;
mod intake;
mod rule;
mod scan;
mod send;
mod wire;
mod write;

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use http::{Method, Version};
use protoplex_runtime::telemetry::within_trace;
use tokio::task;
use tokio::time::{Instant, timeout_at};

use crate::body::Body;
use crate::clock;
use crate::drain::{Bearer, Draining, Kind, What};
use crate::event_stream;
use crate::exchange::{Answer, Client, End, Exchange, Service, Tunnel};
use crate::forwarded::has_token;
use crate::head::{Known, RequestHead};
use crate::problem;
use crate::serve::Server;
use crate::socket::{Socket, Stream};
use crate::tunnel::Outcome;
use crate::upgrade::Upgraded;
pub(crate) use framer::Framer;
pub(crate) use grammar::{TOKEN, is_host};
pub(crate) use incoming::Incoming;
pub(crate) use intake::{Intake, Read, Taken};
pub(crate) use rule::Rule;
pub(crate) use scan::{Bounds, Content, Scan, may_trail};
use send::{Sent, send};
use wire::Next;
pub(crate) use wire::{LAST_WORD, Wire};
use write::Persistence;
pub(crate) use write::{Framing, request_head};

/// What becomes of a connection after an exchange.
enum After {
    /// The next request.
    Next,
    /// Its end in good order.
    Close,
    /// An end that can't be taken for a good one.
    Reset,
    /// The protocol that it was upgraded to.
    Tunnel(Tunnel, End),
}

/// Serves the connection until it ends, its tunnel included.
pub(crate) async fn run<S: Service>(wire: &Rc<RefCell<Wire>>, server: &Server<S>, client: &Client) {
    let after = serve_requests(wire, server, client).await;
    // Boxed, so that a connection that has not come to its end is small.
    Box::pin(end(wire, server, after)).await;
}

/// What follows the last exchange.
async fn end<S>(wire: &RefCell<Wire>, server: &Server<S>, after: After) {
    // Bytes that nobody has read would have the system break off what was sent last.
    poll_fn(|cx| {
        wire.borrow_mut().look(cx);
        Poll::Ready(())
    })
    .await;
    let (socket, unread) = take_apart(wire, server);
    match after {
        After::Tunnel(tunnel, end) => {
            run_tunnel(tunnel, socket, server, &end.exchange).await;
            drop(end);
        }
        After::Reset => socket.reset(),
        _ if unread => socket.linger(server.limits.linger_timeout, server.limits.linger_bytes).await,
        _ => socket.close(server.limits.linger_timeout).await,
    }
}

/// The socket, with everything that was read and belongs to no request; and whether the client may still be sending.
fn take_apart<S>(wire: &RefCell<Wire>, server: &Server<S>) -> (Socket, bool) {
    let mut wire = wire.borrow_mut();
    let unread = wire.is_unread();
    let stream = std::mem::replace(&mut wire.stream, Stream::Closed);
    let mut socket = Socket::new(stream, server.limits.write_timeout);
    socket.unread(std::mem::take(&mut wire.intake.unread).into_bytes());
    wire.out.clear();
    (socket, unread)
}

/// One request after the other, until there is to be none any more.
async fn serve_requests<S: Service>(wire: &Rc<RefCell<Wire>>, server: &Server<S>, client: &Client) -> After {
    loop {
        let next = poll_fn(|cx| wire.borrow_mut().poll_next(cx, &server.limits, server.drain.since()));
        // Boxed, so that a connection that is idle is small.
        let step: LocalBoxFuture<'_, After> = match next.await {
            Next::Request { head, begun } => Box::pin(exchange(wire, server, client, head, begun)),
            Next::Refused(rule) => Box::pin(refuse(wire, server, client, rule)),
            Next::End => {
                server.idle_ends();
                return After::Close;
            }
        };
        match step.await {
            After::Next => wire.borrow_mut().rest(),
            after => return after,
        }
    }
}

/// One request, step by step.
async fn exchange<S: Service>(
    wire: &Rc<RefCell<Wire>>,
    server: &Server<S>,
    client: &Client,
    head: RequestHead,
    begun: Option<Instant>,
) -> After {
    let exchange = Rc::new(Exchange::of(client, head));
    exchange.head_took.set(Some(begun.map_or(Duration::ZERO, |begun| exchange.started - begun)));
    let end = End::of(&exchange, &server.ledger, None);
    let connects = exchange.head.method == Method::CONNECT;
    let sheds = server.sheds();
    let answer = if sheds {
        problem::overloaded().into()
    } else if connects {
        problem::connect_not_supported().into()
    } else {
        let has_body = wire.borrow().has_body();
        let body = match has_body {
            true => Body::client(Incoming::new(wire, &exchange)),
            false => Body::empty(),
        };
        // Held in one place only, since it may be large, and moving it about would be.
        let mut answer = pin!(server.handler.answer(&exchange, body));
        let mut waited = false;
        let answered = poll_fn(|cx| poll_answer(wire, &exchange, answer.as_mut(), &mut waited, cx)).await;
        if waited {
            clock::now();
        }
        match answered {
            Some(answer) => answer,
            // Nobody is there to be answered, unless it has only ended its side, and still reads the answers before.
            None => {
                let _ = poll_fn(|cx| wire.borrow_mut().poll_flush(cx)).await;
                return After::Close;
            }
        }
    };
    let tunnel = exchange.take_tunnel(answer.head.status);
    let mut answer = exchange.settle(answer, tunnel.is_some());
    exchange.status.set(answer.head.status);
    event_stream::attend(&mut answer, server, &exchange, bearer);
    if let Some(tunnel) = tunnel {
        return switch(wire, answer, tunnel, end).await;
    }
    let ended = wire.borrow_mut().begin_answer();
    // Of CONNECT: what follows may be meant for somebody else.
    let stays = ended && !sheds && !connects && !server.drain.is_draining();
    let persistence = persistence(&exchange.head, stays);
    let sent = send(wire, &exchange, answer, persistence).await;
    drop(end);
    match sent {
        Sent::Whole if persistence != Persistence::Closes => After::Next,
        Sent::Whole | Sent::Last | Sent::Short => After::Close,
        Sent::Unframed => After::Reset,
    }
}

/// Answers in the place of a handler that must not see the request.
async fn refuse<S: Service>(
    wire: &Rc<RefCell<Wire>>,
    server: &Server<S>,
    client: &Client,
    rule: Rule,
) -> After {
    let exchange = Rc::new(Exchange::refused(client, rule));
    let end = End::of(&exchange, &server.ledger, None);
    exchange.status.set(rule.status());
    let answer = exchange.settle(rule.problem().into(), false);
    send(wire, &exchange, answer, Persistence::Closes).await;
    drop(end);
    After::Close
}

/// The handler's answer, unless the client leaves before; on the way, answers before the final one are sent.
fn poll_answer(
    wire: &RefCell<Wire>,
    exchange: &Exchange,
    answer: Pin<&mut impl Future<Output = Answer>>,
    waited: &mut bool,
    cx: &mut Context<'_>,
) -> Poll<Option<Answer>> {
    let answer = within_trace(exchange.trace.id(), || answer.poll(cx));
    inform(wire, exchange);
    if let Poll::Ready(answer) = answer {
        return Poll::Ready(Some(answer));
    }
    *waited = true;
    let mut wire = wire.borrow_mut();
    if wire.has_unsent() {
        // The answers before must not wait for this one. What can't be sent now goes before it, and a failure shows there.
        let _ = wire.poll_flush(cx);
    }
    wire.poll_gone(cx).map(|()| None)
}

fn inform(wire: &RefCell<Wire>, exchange: &Exchange) {
    for head in exchange.take_interim() {
        write::interim_head(wire.borrow_mut().out.head(), &head);
    }
}

/// Sends the 101, behind which the connection is the tunnel's.
async fn switch(wire: &RefCell<Wire>, answer: Answer, tunnel: Tunnel, end: End) -> After {
    write::interim_head(wire.borrow_mut().out.head(), &answer.head);
    match poll_fn(|cx| wire.borrow_mut().poll_flush(cx)).await {
        Ok(()) => After::Tunnel(tunnel, end),
        Err(_) => After::Close,
    }
}

/// What the client is told of the connection (RFC 9112 section 9.3).
fn persistence(head: &RequestHead, stays: bool) -> Persistence {
    let says = |token| head.fields.known(Known::Connection).any(|list| has_token(list, token));
    match head.version {
        _ if !stays || says("close") => Persistence::Closes,
        Version::HTTP_10 if says("keep-alive") => Persistence::KeptAlive,
        Version::HTTP_10 => Persistence::Closes,
        _ => Persistence::Stays,
    }
}

/// This connection, which has one exchange at a time.
fn bearer() -> Option<Bearer> {
    Some(Bearer { task: task::try_id()?, open: None })
}

/// Runs what the connection was upgraded for. It may outlive the start of a drain, but not by much.
async fn run_tunnel<S>(tunnel: Tunnel, socket: Socket, server: &Server<S>, exchange: &Exchange) {
    let lasting = server.lasting(Kind::Tunnel, bearer());
    let outcome = match tunnel {
        Tunnel::Own(serve) => run_own(serve(Upgraded::new(socket)), &server.drain).await,
        Tunnel::Relay(relay) => relay(socket).run(&server.drain, exchange).await,
    };
    match outcome {
        Outcome::Over => {}
        Outcome::Closed => lasting.became(What::WebsocketsClosed),
        Outcome::Cut => lasting.became(What::TunnelsCut),
    }
}

async fn run_own(mut running: LocalBoxFuture<'static, ()>, drain: &Draining) -> Outcome {
    let mut started = pin!(drain.started());
    let over = poll_fn(|cx| match Pin::new(&mut running).poll(cx) {
        Poll::Ready(()) => Poll::Ready(true),
        Poll::Pending => started.as_mut().poll(cx).map(|()| false),
    })
    .await;
    let until = drain.parting(Kind::Tunnel).map(|parting| parting.until).filter(|_| !over);
    match until {
        None => Outcome::Over,
        Some(until) => timeout_at(until, running).await.map_or(Outcome::Cut, |()| Outcome::Over),
    }
}

#[cfg(test)]
mod drive_tests;
#[cfg(test)]
mod tests;
