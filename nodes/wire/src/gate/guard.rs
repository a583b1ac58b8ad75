//! Looks at each call of a gRPC port before it is answered.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Response, StatusCode};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use tonic::body::Body;
use tonic::codegen::{self, Bytes};
use tonic::{Code, Status};
use tower_layer::Layer;
use tower_service::Service;

use super::timely::Timely;
use super::{Arrival, Gate};
use crate::identity::Certificate;
use crate::permissions::{Access, access, has_one_message};

/// Of the body of a call that is refused so much is read, and for so long.
const MAX_UNWANTED_BYTES: usize = 64 << 10;
const UNWANTED_TIMEOUT: Duration = Duration::from_millis(250);

/// Puts a [`Guarded`] around all services of a port.
#[derive(Clone)]
pub struct GuardLayer {
    gate: Gate,
}

impl GuardLayer {
    pub(super) fn new(gate: Gate) -> Self {
        Self { gate }
    }
}

impl<S> Layer<S> for GuardLayer {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { gate: self.gate.clone(), inner }
    }
}

/// Passes on what its caller may call, with its [`Peer`](super::Peer), its `Arc<Certificate>` and its
/// [`Origin`](super::Origin) among the request's extensions.
#[derive(Clone)]
pub struct Guarded<S> {
    gate: Gate,
    inner: S,
}

impl<S> Service<Request<Body>> for Guarded<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let arrival = request.extensions().get::<Arrival>().cloned();
        let shown = arrival.as_ref().and_then(|arrival| arrival.shown.clone());
        let path = request.uri().path();
        let turn = check(&self.gate, path, shown.as_deref()).and_then(|()| turn(arrival.as_ref()));
        let turn = match turn {
            Ok(turn) => turn,
            Err(refusal) => return refuse(request, refusal),
        };
        let (is_timely, patience) = (has_one_message(path), self.gate.shared.room.body_timeout);
        if let Some(arrival) = arrival {
            request.extensions_mut().insert(arrival.origin);
        }
        if let Some(certificate) = shown {
            request.extensions_mut().insert(certificate.peer.clone());
            request.extensions_mut().insert::<Arc<Certificate>>(certificate);
        }
        if is_timely {
            request = request.map(|body| Body::new(Timely::new(body, patience)));
        }
        let answered = self.inner.call(request);
        Box::pin(async move {
            let answer = answered.await;
            drop(turn);
            answer
        })
    }
}

/// A stranger's turn, for as long as its call takes; nothing for all others.
fn turn(arrival: Option<&Arrival>) -> Result<Option<OwnedSemaphorePermit>, Status> {
    let Some(stranger) = arrival.filter(|arrival| arrival.shown.is_none()) else { return Ok(None) };
    let busy = |_| Status::resource_exhausted("one call after the other, please, without a certificate");
    Arc::clone(&stranger.calls).try_acquire_owned().map(Some).map_err(busy)
}

fn refuse<E: Send + 'static>(
    request: Request<Body>,
    refusal: Status,
) -> Pin<Box<dyn Future<Output = Result<Response<Body>, E>> + Send>> {
    let kind = request.headers().get(CONTENT_TYPE);
    let is_grpc = kind.is_some_and(|it| it.as_bytes().starts_with(b"application/grpc"));
    let answer = if is_grpc { refusal.into_http() } else { problem(&refusal) };
    Box::pin(async move {
        pass_over(request.into_body()).await;
        Ok(answer)
    })
}

/// Reads a little of a body that nobody wants: some clients (curl) see no answer that comes while they send.
pub async fn pass_over(mut body: impl codegen::Body<Data = Bytes> + Unpin) {
    let read = async {
        let mut read = 0;
        while let Some(Ok(frame)) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
            read += frame.data_ref().map_or(0, Bytes::len);
            if read > MAX_UNWANTED_BYTES {
                return;
            }
        }
    };
    let _ = timeout(UNWANTED_TIMEOUT, read).await;
}

/// Whether whoever shows this may call the method of this path.
pub(super) fn check(gate: &Gate, path: &str, shown: Option<&Certificate>) -> Result<(), Status> {
    let wanted = access(path);
    if wanted == Some(Access::Anybody) {
        return Ok(());
    }
    let Some(Certificate { peer, .. }) = shown else {
        return Err(Status::unauthenticated(
            "no certificate of this cluster was shown: join with a token, or name your credentials",
        ));
    };
    let name = peer.name();
    if gate.is_revoked(&name) {
        let readmit = "an operator may readmit it";
        return Err(Status::permission_denied(format!("{name} is revoked; {readmit}")));
    }
    let Some(wanted) = wanted else {
        return Err(Status::unimplemented(format!("there is no method {path}")));
    };
    if wanted.includes(peer.kind) {
        return Ok(());
    }
    let method = path.rsplit(['/', '.']).take(2).collect::<Vec<_>>();
    let method =
        if path.starts_with("/protoplex.") { method.into_iter().rev().collect() } else { vec![path] };
    let method = method.join(".");
    Err(Status::permission_denied(format!("{name} is {}, and such may not call {method}", peer.kind.one())))
}

/// The same for who speaks plain HTTP (RFC 9457).
fn problem(refusal: &Status) -> Response<Body> {
    let status = match refusal.code() {
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        _ => StatusCode::NOT_FOUND,
    };
    let problem = serde_json::json!({
        "title": status.canonical_reason(),
        "status": status.as_u16(),
        "detail": refusal.message(),
    });
    let mut answer = Response::new(Body::new(problem.to_string()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    answer
}
