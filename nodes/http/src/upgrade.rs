//! Connections that stop speaking HTTP: WebSockets relayed to their backend, and protocols of our own.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::{Either, select, try_join};
use http::StatusCode;
use http::header::{CONNECTION, HeaderValue, UPGRADE};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf, ReadHalf, WriteHalf, split};
use tokio::time::{Instant, sleep_until};

use crate::body::Body;
use crate::exchange::{Answer, Exchange, Response};
use crate::forwarded::has_token;
use crate::head::Known;
use crate::problem::Problem;
use crate::socket::Socket;

/// A connection after its upgrade: whatever bytes come and go, starting with the first that follow the HTTP
/// head.
pub struct Upgraded(Socket);

/// One direction's buffer of a relayed connection.
const RELAY_BUFFER_BYTES: usize = 16 * 1024;

/// Switches to a protocol of our own: answers 101, then runs `serve` on the connection, as a part of the
/// connection's own task: a drain waits for it, up to `tunnel_drain_timeout`. Answers 426 where the request
/// doesn't ask for `protocol`.
pub fn accept<F, T>(exchange: &Rc<Exchange>, protocol: &'static str, serve: F) -> Response
where
    F: FnOnce(Upgraded) -> T + 'static,
    T: Future<Output = ()> + 'static,
{
    let head = &exchange.head;
    if !head.asks_upgrade() || !head.fields.known(Known::Upgrade).any(|list| has_token(list, protocol)) {
        let detail = format!("This is spoken over connections that are upgraded to {protocol} only.");
        return Problem::new(StatusCode::UPGRADE_REQUIRED, "upgrade-required", detail)
            .header(UPGRADE, HeaderValue::from_static(protocol))
            .header(CONNECTION, HeaderValue::from_name(UPGRADE))
            .into_response();
    }
    exchange.set_tunnel(Box::new(move |upgraded| Box::pin(serve(upgraded))));
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static(protocol));
    response.headers_mut().insert(CONNECTION, HeaderValue::from_name(UPGRADE));
    response
}

/// Passes an upstream's 101 on, then relays both ways until both sides have ended, or nothing has moved for
/// `idle_timeout`. One side's end is passed on as such, so that the other may still finish. Any other answer is returned
/// as it is.
pub fn relay_answer(exchange: &Rc<Exchange>, answer: Answer, idle_timeout: Duration) -> Answer {
    let Answer { head, body } = answer;
    let upstream = match body.into_upgraded() {
        Ok(upstream) => upstream,
        Err(body) => return Answer { head, body },
    };
    let counted = Rc::clone(exchange);
    exchange.set_tunnel(Box::new(move |client| {
        Box::pin(async move { relay_both_ways(client, upstream, idle_timeout, &counted).await })
    }));
    Answer { head, body: Body::empty() }
}

/// The client's side: the connection that an upstream's 101 has opened. `None` for any other answer.
pub fn of_answer(answer: Response) -> Option<Upgraded> {
    answer.into_body().into_upgraded().ok()
}

async fn relay_both_ways(client: Upgraded, upstream: Upgraded, idle_timeout: Duration, exchange: &Exchange) {
    let (from_client, to_client) = split(client);
    let (from_upstream, to_upstream) = split(upstream);
    let moved = Cell::new(Instant::now());
    let both = pin!(try_join(
        pipe(from_client, to_upstream, &exchange.bytes_in, &moved),
        pipe(from_upstream, to_client, &exchange.bytes_out, &moved),
    ));
    let idle = pin!(async {
        let mut deadline = moved.get() + idle_timeout;
        while Instant::now() < deadline {
            sleep_until(deadline).await;
            deadline = moved.get() + idle_timeout;
        }
    });
    // An error on either side leaves nothing to relay to or from: both connections are dropped.
    match select(both, idle).await {
        Either::Left(_) | Either::Right(_) => {}
    }
}

/// Moves bytes one way until they end, then says so to the receiver.
async fn pipe(
    mut from: ReadHalf<Upgraded>,
    mut to: WriteHalf<Upgraded>,
    bytes: &Cell<u64>,
    moved: &Cell<Instant>,
) -> io::Result<()> {
    let mut buffer = vec![0; RELAY_BUFFER_BYTES];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..length]).await?;
        to.flush().await?;
        bytes.set(bytes.get() + length as u64);
        moved.set(Instant::now());
    }
}

impl Upgraded {
    pub(crate) fn new(socket: Socket) -> Self {
        Self(socket)
    }
}

impl fmt::Debug for Upgraded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Upgraded")
    }
}

impl AsyncRead for Upgraded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        space: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, space)
    }
}

impl AsyncWrite for Upgraded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
