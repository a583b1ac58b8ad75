//! A real S3 server in the test's process (s3s-fs, signatures checked), behind a door that misbehaves on order.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

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
use tokio::sync::{Semaphore, oneshot};

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Answer = Response<BoxBody<Bytes, BoxError>>;

/// The one bucket that it has.
pub const BUCKET: &str = "bodies";
/// Who may use it.
pub const ACCESS_KEY: &str = "AKIAPROTOPLEXTEST";
/// And by which secret.
pub const SECRET_KEY: &str = "a secret that only this test knows";

/// What goes wrong with one request.
#[derive(Clone, Debug)]
pub enum Fault {
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

#[derive(Debug, Default)]
struct Orders {
    /// For the next requests of a method, first in, first out.
    next: Vec<(Method, Fault)>,
    /// For all requests that have none of `next`.
    always: Option<Fault>,
    seen: Vec<Method>,
}

/// The server, on a thread of its own; it ends when this is dropped.
#[derive(Debug)]
pub struct FaultS3 {
    address: SocketAddr,
    orders: Arc<Mutex<Orders>>,
    _running: oneshot::Sender<()>,
}

impl FaultS3 {
    /// Serves a bucket in `folder`.
    ///
    /// # Panics
    /// When the folder can't be written, or no port is free.
    pub fn start(folder: &Path) -> Self {
        std::fs::create_dir_all(folder.join(BUCKET)).expect("the folder can be written");
        let mut builder =
            S3ServiceBuilder::new(s3s_fs::FileSystem::new(folder).expect("the folder is there"));
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("a socket can be told so");
        let address = listener.local_addr().expect("it is bound");
        let orders: Arc<Mutex<Orders>> = Arc::default();
        let (running, ended) = oneshot::channel();
        let serving = serve(listener, builder.build(), Arc::clone(&orders));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = serving => {}
                    _ = ended => {}
                }
            });
        });
        Self { address, orders, _running: running }
    }

    /// `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Spoils the next request of this method that is not spoilt yet.
    pub fn spoil(&self, method: Method, fault: Fault) {
        orders(&self.orders).next.push((method, fault));
    }

    /// Spoils every request from now on, or none.
    pub fn spoil_all(&self, fault: Option<Fault>) {
        orders(&self.orders).always = fault;
    }

    /// How many requests of this method have come.
    pub fn count(&self, method: &Method) -> usize {
        orders(&self.orders).seen.iter().filter(|seen| *seen == method).count()
    }
}

fn orders(orders: &Mutex<Orders>) -> MutexGuard<'_, Orders> {
    orders.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(listener: std::net::TcpListener, service: S3Service, orders: Arc<Mutex<Orders>>) {
    let listener = TcpListener::from_std(listener).expect("it does not block");
    while let Ok((socket, _)) = listener.accept().await {
        let (service, orders) = (service.clone(), Arc::clone(&orders));
        let answer = service_fn(move |request| answer(service.clone(), Arc::clone(&orders), request));
        tokio::spawn(
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), answer),
        );
    }
}

async fn answer(
    service: S3Service,
    told: Arc<Mutex<Orders>>,
    request: Request<Incoming>,
) -> Result<Answer, Infallible> {
    let fault = {
        let mut orders = orders(&told);
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
    let bytes = BodyExt::collect(body).await.expect("it reads from a file").to_bytes();
    Ok(Response::from_parts(head, spoil(bytes, fault)))
}

fn refuse(status: u16) -> Answer {
    let body = "<Error><Code>ServiceUnavailable</Code><Message>as ordered</Message></Error>";
    let mut answer = Response::new(Full::new(Bytes::from(body)).map_err(BoxError::from).boxed());
    *answer.status_mut() = StatusCode::from_u16(status).expect("a status");
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
                gate.acquire().await.expect("the gate stays").forget();
                Ok(Frame::data(rest))
            };
            let first = future::ready(Ok(Frame::data(bytes)));
            BodyExt::boxed(StreamBody::new(stream::once(first).chain(stream::once(rest))))
        }
        _ => Full::new(bytes).map_err(BoxError::from).boxed(),
    }
}
