//! Connections that stop speaking HTTP: WebSockets relayed to their backend, and protocols of our own.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::StatusCode;
use http::header::{CONNECTION, HeaderValue, UPGRADE};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::body::Body;
use crate::exchange::{Answer, Exchange, Response, Tunnel};
use crate::forwarded::has_token;
use crate::head::{Fields, Known};
use crate::problem::Problem;
use crate::socket::Socket;
use crate::tunnel::Relay;

/// A connection after its upgrade: whatever bytes come and go, starting with the first that follow the HTTP
/// head.
pub struct Upgraded(Socket);

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
    exchange.set_tunnel(Tunnel::Own(Box::new(move |upgraded| Box::pin(serve(upgraded)))));
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static(protocol));
    response.headers_mut().insert(CONNECTION, HeaderValue::from_name(UPGRADE));
    response
}

/// Passes an upstream's 101 on, then relays both ways until both sides have ended, or nothing has moved for
/// `idle_timeout`. One side's end is passed on as such, so that the other may still finish. In a drain a WebSocket is
/// closed with 1001. Any other answer is returned as it is.
pub fn relay_answer(exchange: &Rc<Exchange>, answer: Answer, idle_timeout: Duration) -> Answer {
    let Answer { head, body } = answer;
    let upstream = match body.into_upgraded() {
        Ok(Upgraded(upstream)) => upstream,
        Err(body) => return Answer { head, body },
    };
    let speaks = |fields: &Fields| fields.known(Known::Upgrade).any(|list| has_token(list, "websocket"));
    let is_websocket = speaks(&exchange.head.fields) && speaks(&head.fields);
    exchange.set_tunnel(Tunnel::Relay(Box::new(move |client| {
        Relay::new(client, upstream, is_websocket, idle_timeout)
    })));
    Answer { head, body: Body::empty() }
}

/// The client's side: the connection that an upstream's 101 has opened. `None` for any other answer.
pub fn of_answer(answer: Response) -> Option<Upgraded> {
    answer.into_body().into_upgraded().ok()
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
