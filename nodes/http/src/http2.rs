//! An HTTP/2 connection: its streams, its sleep, and the clients that only want to make work.

mod head;
mod incoming;
mod outgoing;

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::rt::Executor;
use hyper::server::conn::http2::Builder;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use protoplex_runtime::telemetry::within_trace;
use tokio::task::{self, Id, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};

use crate::body::Body;
use crate::drain::Bearer;
use crate::event_stream;
use crate::exchange::{Client, End, Exchange, Service};
use crate::head::RequestHead;
use crate::problem;
use crate::serve::Server;
use crate::socket::Socket;
use head::normalise;
pub(crate) use incoming::Incoming;
use outgoing::Outgoing;

/// What is going on on a connection.
struct Streams {
    open: Rc<Cell<usize>>,
    /// When the last stream ended.
    since: Cell<Instant>,
    /// How many streams the client has reset before their answer, less those that it let be answered.
    resets: Cell<u32>,
    /// A stream was refused for want of memory.
    shed: Cell<bool>,
    /// The connection's task.
    connection: Option<Id>,
}

/// A stream, from its request to the end of its answer.
pub(crate) struct Stream(Rc<Streams>);

impl Stream {
    fn open(streams: &Rc<Streams>) -> Self {
        streams.open.set(streams.open.get() + 1);
        Self(Rc::clone(streams))
    }

    /// Ends it, `answered` or reset before.
    pub(crate) fn over(&self, answered: bool) {
        let streams = &self.0;
        streams.open.set(streams.open.get() - 1);
        streams.since.set(Instant::now());
        let resets = streams.resets.get();
        streams.resets.set(if answered { resets.saturating_sub(1) } else { resets + 1 });
    }
}

/// Runs the streams of one connection; what is left of them ends with it.
#[derive(Clone, Default)]
struct Tasks(Rc<RefCell<JoinSet<()>>>);

impl<F: Future<Output = ()> + 'static> Executor<F> for Tasks {
    fn execute(&self, task: F) {
        let mut tasks = self.0.borrow_mut();
        while tasks.try_join_next().is_some() {}
        tasks.spawn_local(task);
    }
}

/// Where to what is left of a request's body once nobody wants it. Refusing it at once would be the end of
/// the stream for many clients, before they have looked at the answer: so it is read and thrown away for a
/// while.
pub(crate) struct Discard {
    tasks: Weak<RefCell<JoinSet<()>>>,
    limit: Duration,
    limit_bytes: u64,
}

impl Discard {
    pub(crate) fn start(&self, mut body: hyper::body::Incoming) {
        let Some(tasks) = self.tasks.upgrade() else { return };
        let (limit, mut left) = (self.limit, self.limit_bytes);
        let reading = async move {
            while let Some(Ok(frame)) = body.frame().await {
                left = left.saturating_sub(frame.data_ref().map_or(0, |data| data.len() as u64));
                if left == 0 {
                    break;
                }
            }
        };
        tasks.borrow_mut().spawn_local(async move {
            // Read to the end or not: the stream is over.
            let _ = timeout(limit, reading).await;
        });
    }
}

/// Serves the connection until it ends.
pub(crate) async fn run<S: Service + 'static>(socket: Socket, server: &Rc<Server<S>>, client: Client) {
    let client = Rc::new(client);
    let streams = Rc::new(Streams {
        open: Rc::default(),
        since: Cell::new(Instant::now()),
        resets: Cell::new(0),
        shed: Cell::new(false),
        connection: task::try_id(),
    });
    let tasks = Tasks::default();
    let service = service_fn({
        let (streams, server, tasks) = (Rc::clone(&streams), Rc::clone(server), Rc::downgrade(&tasks.0));
        move |request| {
            let (limit, limit_bytes) = (server.limits.linger_timeout, server.limits.linger_bytes);
            let discard = Discard { tasks: Weak::clone(&tasks), limit, limit_bytes };
            answer(request, Rc::clone(&streams), Rc::clone(&server), Rc::clone(&client), discard)
        }
    });
    let limits = &server.limits.http2;
    let mut engine = pin!(
        Builder::new(tasks)
            .timer(TokioTimer::new())
            .max_concurrent_streams(limits.max_concurrent_streams)
            .max_header_list_size(limits.max_header_list_bytes)
            .keep_alive_interval(limits.keep_alive_interval)
            .keep_alive_timeout(limits.keep_alive_timeout)
            .serve_connection(TokioIo::new(socket), service)
    );
    let mut drain = pin!(server.drain.started());
    let mut timer = pin!(sleep_until(Instant::now() + server.limits.idle_timeout));
    let mut leaving = false;
    poll_fn(|cx| {
        if !leaving {
            let idle_until = streams.since.get() + server.limits.idle_timeout;
            let mut idle = streams.open.get() == 0;
            while idle && timer.as_mut().poll(cx).is_ready() && Instant::now() < idle_until {
                timer.as_mut().reset(idle_until);
            }
            idle &= Instant::now() >= idle_until;
            let abused = streams.resets.get() > limits.max_resets;
            let drains = drain.as_mut().poll(cx).is_ready();
            if drains && streams.open.get() == 0 {
                server.idle_ends();
            }
            if idle || abused || streams.shed.get() || drains {
                leaving = true;
                engine.as_mut().graceful_shutdown();
            }
        }
        // How it ends is between the client and the engine; there is nobody to tell.
        engine.as_mut().poll(cx).map(|_| ())
    })
    .await;
}

/// One request, step by step.
async fn answer<S: Service>(
    request: http::Request<hyper::body::Incoming>,
    streams: Rc<Streams>,
    server: Rc<Server<S>>,
    client: Rc<Client>,
    discard: Discard,
) -> Result<http::Response<Outgoing>, Infallible> {
    let stream = Some(Stream::open(&streams));
    let (mut parts, body) = request.into_parts();
    let normalised = normalise(&mut parts);
    let exchange = Rc::new(Exchange::of(&client, RequestHead::of_parts(&parts)));
    let end = End::of(&exchange, &server.ledger, stream);
    let answer = match normalised {
        _ if server.sheds() => {
            // As `Connection: close` would have it.
            streams.shed.set(true);
            problem::overloaded().into()
        }
        Err(problem) => problem.into(),
        Ok(()) => {
            let incoming = Incoming::new(body, &exchange, discard, server.limits.body_idle_timeout);
            let mut answer = pin!(server.handler.answer(&exchange, Body::http2(incoming)));
            poll_fn(|cx| within_trace(exchange.trace.id(), || answer.as_mut().poll(cx))).await
        }
    };
    let mut answer = exchange.settle(answer, false);
    event_stream::attend(&mut answer, &server, &exchange, || {
        Some(Bearer { task: streams.connection?, open: Some(Rc::clone(&streams.open)) })
    });
    exchange.status.set(answer.head.status);
    let mut parts = answer.head.to_parts();
    parts.version = http::Version::HTTP_2;
    Ok(http::Response::from_parts(parts, Outgoing::new(answer.body, end)))
}
