//! A real S3 server in this process (s3s-fs, signatures checked), behind a door that misbehaves on order.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::{StreamExt, future, stream};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::s3::{RawS3, S3};

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Answer = Response<BoxBody<Bytes, BoxError>>;

const BUCKET: &str = "bodies";
const ACCESS_KEY: &str = "AKIAPROTOPLEXTEST";
const SECRET_KEY: &str = "a secret that only this test knows";

/// What goes wrong with one request.
#[derive(Clone)]
pub(crate) enum Fault {
    /// Answered with this status before the server sees it.
    Status(u16),
    /// Never answered.
    Hang,
    /// The connection breaks after so many bytes of the body.
    Cut(usize),
    /// One bit of the body is wrong.
    Corrupt,
    /// After so many bytes the body waits until the gate has a permit.
    Gate(usize, Arc<Semaphore>),
}

#[derive(Default)]
struct Orders {
    /// For the next requests of a method, first in, first out.
    next: Vec<(Method, Fault)>,
    /// For all requests that have none of `next`.
    always: Option<Fault>,
    seen: Vec<Method>,
}

/// The server; it ends with the test's runtime.
pub(crate) struct FaultS3 {
    address: SocketAddr,
    orders: Arc<Mutex<Orders>>,
}

impl FaultS3 {
    /// Serves a bucket in `folder`.
    pub(crate) async fn start(folder: &Path) -> Self {
        std::fs::create_dir_all(folder.join(BUCKET)).unwrap();
        let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(folder).unwrap());
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let service = builder.build();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self { address: listener.local_addr().unwrap(), orders: Arc::default() };
        let orders = Arc::clone(&server.orders);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (service, orders) = (service.clone(), Arc::clone(&orders));
                let answer = service_fn(move |request| answer(service.clone(), Arc::clone(&orders), request));
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), answer),
                );
            }
        });
        server
    }

    /// Settings, to be changed before they are resolved. They have no key prefix: s3s-fs makes file
    /// names of keys, and one of a multipart upload would become too long.
    pub(crate) fn settings(&self) -> RawS3 {
        RawS3 {
            bucket: BUCKET.into(),
            region: "us-east-1".into(),
            endpoint: format!("http://{}", self.address),
            path_style: true,
            access_key: ACCESS_KEY.into(),
            secret_key: SECRET_KEY.into(),
            max_attempts: 2,
            ..RawS3::default()
        }
    }

    /// A client with [`FaultS3::settings`].
    pub(crate) async fn client(&self) -> S3 {
        client(self.settings()).await
    }

    /// A client that soon takes a slow server for one that never answers.
    pub(crate) async fn hasty_client(&self) -> S3 {
        client(RawS3 { read_timeout_ms: 500, body_idle_timeout_ms: 500, ..self.settings() }).await
    }

    /// Spoils the next request of this method that is not spoilt yet.
    pub(crate) fn spoil(&self, method: Method, fault: Fault) {
        self.orders.lock().unwrap().next.push((method, fault));
    }

    /// Spoils every request from now on, or none.
    pub(crate) fn spoil_all(&self, fault: Option<Fault>) {
        self.orders.lock().unwrap().always = fault;
    }

    /// How many requests of this method have come.
    pub(crate) fn count(&self, method: &Method) -> usize {
        self.orders.lock().unwrap().seen.iter().filter(|seen| *seen == method).count()
    }
}

async fn client(settings: RawS3) -> S3 {
    let mut problems = protoplex_runtime::config::Problems::default();
    let settings = settings.resolve(&mut problems);
    problems.finish().unwrap();
    S3::new(&settings).await
}

async fn answer(
    service: S3Service,
    orders: Arc<Mutex<Orders>>,
    request: Request<Incoming>,
) -> Result<Answer, Infallible> {
    let fault = {
        let mut orders = orders.lock().unwrap();
        orders.seen.push(request.method().clone());
        match orders.next.iter().position(|(method, _)| method == request.method()) {
            Some(position) => Some(orders.next.remove(position).1),
            None => orders.always.clone(),
        }
    };
    match fault {
        Some(Fault::Status(status)) => return Ok(refuse(status)),
        Some(Fault::Hang) => future::pending().await,
        _ => {}
    }
    let Ok(answer) = service.call(request.map(s3s::Body::from)).await else { return Ok(refuse(500)) };
    let (head, body) = answer.into_parts();
    let bytes = BodyExt::collect(body).await.unwrap().to_bytes();
    Ok(Response::from_parts(head, spoil(bytes, fault)))
}

fn refuse(status: u16) -> Answer {
    let body = "<Error><Code>ServiceUnavailable</Code><Message>as ordered</Message></Error>";
    let mut answer = Response::new(Full::new(Bytes::from(body)).map_err(BoxError::from).boxed());
    *answer.status_mut() = StatusCode::from_u16(status).unwrap();
    answer
}

fn spoil(mut bytes: Bytes, fault: Option<Fault>) -> BoxBody<Bytes, BoxError> {
    match fault {
        Some(Fault::Cut(length)) => {
            bytes.truncate(length);
            let cut = async {
                // The head and the first piece are flushed while this waits.
                tokio::task::yield_now().await;
                Err(BoxError::from("cut, as ordered"))
            };
            let first = future::ready(Ok(Frame::data(bytes)));
            BodyExt::boxed(StreamBody::new(stream::once(first).chain(stream::once(cut))))
        }
        Some(Fault::Corrupt) => {
            let mut wrong = bytes.to_vec();
            let middle = wrong.len() / 2;
            wrong[middle] ^= 1;
            Full::new(Bytes::from(wrong)).map_err(BoxError::from).boxed()
        }
        Some(Fault::Gate(length, gate)) => {
            let rest = bytes.split_off(length);
            let rest = async move {
                gate.acquire().await.unwrap().forget();
                Ok(Frame::data(rest))
            };
            let first = future::ready(Ok(Frame::data(bytes)));
            BodyExt::boxed(StreamBody::new(stream::once(first).chain(stream::once(rest))))
        }
        _ => Full::new(bytes).map_err(BoxError::from).boxed(),
    }
}
