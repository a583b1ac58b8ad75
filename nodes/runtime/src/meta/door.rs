//! The meta port's connections. Where other machines reach it they speak TLS: the port shows the certificate of the cluster's
//! nodes, or one that is configured, and asks for the caller's. So nothing secret passes in the clear, and who is of the
//! cluster needs nothing else. Plain HTTP is told so; it gets the pages that are for everybody, which balancers ask for.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use protoplex_wire::identity::{Certificate, Identity, Kind, SERVER_NAME};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;
use tower_service::Service;
use tracing::{debug, warn};

use super::patience::Patient;
use crate::config::Problems;

/// So many at a time.
const CONNECTIONS: usize = 256;
/// From the connection to the end of its handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// For the head of a request, from the end of the one before.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// For a caller that takes nothing of its answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// For the head of a request.
const BUFFER_BYTES: usize = 64 << 10;
/// After the system had no connection to give for want of something.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The first byte of every TLS connection (RFC 8446 section 5.1).
const HANDSHAKE: u8 = 22;

/// The section `[meta.tls]`: what counts besides the cluster's own certificates.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsSettings {
    /// Shown, with its key, to whoever doesn't ask for a node of the cluster by the name that those have among themselves.
    pub certificate: Option<PathBuf>,
    /// Of the certificate.
    pub key: Option<PathBuf>,
    /// Whoever has a certificate of one of these authorities may read without a token.
    pub client_ca: Option<PathBuf>,
}

/// A file of [`TlsSettings`], or of the cluster's identity, that is of no use.
#[derive(Debug, Error)]
#[error("{what}: {reason}")]
pub struct MetaTlsError {
    what: String,
    reason: String,
}

impl TlsSettings {
    /// What is wrong goes to `problems`, for the section `[meta.tls]`.
    pub fn check(&self, problems: &mut Problems) {
        match (&self.certificate, &self.key) {
            (Some(_), None) => problems.add("meta.tls.key", "is missing, of meta.tls.certificate"),
            (None, Some(_)) => problems.add("meta.tls.certificate", "is missing, of meta.tls.key"),
            _ => {}
        }
    }

    /// How a port that other machines reach speaks TLS. Blocking.
    pub(super) fn load(&self, identity: &Identity) -> Result<Tls, MetaTlsError> {
        let mut files = Vec::new();
        let mut read = |what: &str, file: &Path| {
            let bytes =
                fs::read(file).map_err(|error| wrong(&format!("{what}: {}", file.display()), &error))?;
            files.push(bytes.clone());
            Ok::<_, MetaTlsError>(bytes)
        };
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        trust(&mut roots, "the cluster's authority", identity.ca_pem().as_bytes())?;
        let members =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots.clone()), Arc::clone(&provider))
                .build()
                .map_err(|error| wrong("the cluster's authority", &error))?;
        if let Some(file) = &self.client_ca {
            trust(&mut roots, "meta.tls.client_ca", &read("meta.tls.client_ca", file)?)?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .map_err(|error| wrong("meta.tls.client_ca", &error))?;
        let own = match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => {
                let what = "meta.tls.certificate";
                let (certificate, key) = (read(what, certificate)?, read("meta.tls.key", key)?);
                Some(certified(what, &certificate, &key, &provider)?)
            }
            _ => None,
        };
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong("meta.tls", &error))?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(Shown { cluster: identity.clone(), own }));
        Ok(Tls { acceptor: TlsAcceptor::from(Arc::new(config)), members, files })
    }
}

/// How the port speaks TLS: the same where it is of the same files.
#[derive(Clone)]
pub(crate) struct Tls {
    acceptor: TlsAcceptor,
    /// Knows the cluster's own certificates.
    members: Arc<dyn ClientCertVerifier>,
    files: Vec<Vec<u8>>,
}

impl Tls {
    /// Who has shown these, of which it is known already that they count.
    fn caller(&self, certificates: Option<&[CertificateDer<'_>]>) -> Caller {
        let Some((own, above)) = certificates.and_then(<[_]>::split_first) else { return Caller::Stranger };
        if self.members.verify_client_cert(own, above, UnixTime::now()).is_err() {
            return Caller::Reader;
        }
        // Of the cluster's own only operators command nodes, and servers of the user's own are told nothing.
        match Certificate::parse(own).map(|certificate| certificate.peer.kind) {
            Some(Kind::Operator) => Caller::Member,
            Some(kind) if kind.is_node() => Caller::Reader,
            _ => Caller::Stranger,
        }
    }
}

impl PartialEq for Tls {
    fn eq(&self, other: &Self) -> bool {
        self.files == other.files
    }
}

fn wrong(what: &str, reason: &dyn ToString) -> MetaTlsError {
    MetaTlsError { what: what.to_owned(), reason: reason.to_string() }
}

fn certificates(what: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, MetaTlsError> {
    let found: Vec<_> =
        CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|error| wrong(what, &error))?;
    if found.is_empty() { Err(wrong(what, &"there is no certificate in it (PEM)")) } else { Ok(found) }
}

fn trust(roots: &mut RootCertStore, what: &str, pem: &[u8]) -> Result<(), MetaTlsError> {
    let found = certificates(what, pem)?;
    found.into_iter().try_for_each(|one| roots.add(one)).map_err(|error| wrong(what, &error))
}

fn certified(
    what: &str,
    certificate: &[u8],
    key: &[u8],
    provider: &CryptoProvider,
) -> Result<Arc<CertifiedKey>, MetaTlsError> {
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| wrong(what, &error))?;
    let made = CertifiedKey::from_der(certificates(what, certificate)?, key, provider);
    made.map(Arc::new).map_err(|error| wrong(what, &error))
}

/// Which certificate is shown to whom.
struct Shown {
    cluster: Identity,
    own: Option<Arc<CertifiedKey>>,
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shown")
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let own = self.own.as_ref().filter(|_| hello.server_name() != Some(SERVER_NAME));
        Some(own.map_or_else(|| self.cluster.certified(), Arc::clone))
    }
}

/// How much is known of who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    /// It speaks plain HTTP.
    Plain,
    /// Likewise, from this machine, as the user that the node runs as or as root.
    Owner,
    /// It has shown no certificate.
    Stranger,
    /// It has shown one of an authority that counts for readers, or that of a node.
    Reader,
    /// It has shown one of an operator of the cluster.
    Member,
}

/// The ends of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends {
    pub(super) client: SocketAddr,
    pub(super) server: SocketAddr,
}

/// The socket, and those who have come.
pub(super) struct Door {
    socket: TcpListener,
    /// Otherwise whoever comes waits in the socket.
    open: watch::Receiver<bool>,
    tls: watch::Receiver<Option<Tls>>,
    /// The one that came first before the others.
    guests: VecDeque<Guest>,
    attending: JoinSet<()>,
}

/// A connection.
struct Guest {
    task: AbortHandle,
    /// Of which it is kept.
    busy: Busy,
}

/// How many answers are on their way on a connection.
#[derive(Clone, Default)]
struct Busy(Arc<()>);

impl Busy {
    /// One more, until this is dropped.
    fn begin(&self) -> Self {
        self.clone()
    }

    /// Whether there is none, where the connection itself has one, and its [`Guest`].
    fn is_idle(&self) -> bool {
        Arc::strong_count(&self.0) <= 2
    }
}

impl Door {
    /// One that speaks TLS while it is told how.
    pub(super) fn new(
        socket: TcpListener,
        tls: watch::Receiver<Option<Tls>>,
        open: watch::Receiver<bool>,
    ) -> Self {
        Self { socket, open, tls, guests: VecDeque::new(), attending: JoinSet::new() }
    }

    /// Shows the pages to whoever comes. Never ends.
    pub(super) async fn serve(mut self, pages: Router) {
        let mut fails = false;
        loop {
            let accepts = *self.open.borrow_and_update();
            // Every arm is cancel-safe.
            tokio::select! {
                Ok(()) = self.open.changed() => {}
                accepted = self.socket.accept(), if accepts => match accepted {
                    Ok((stream, _)) => {
                        fails = false;
                        self.admit(stream, &pages);
                    }
                    Err(error) => {
                        if !std::mem::replace(&mut fails, true) {
                            warn!(%error, "the meta port can't accept connections, trying again");
                        }
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(_) = self.attending.join_next() => {}
            }
        }
    }

    /// Attends to one more, for whom somebody has to go where there are too many: the one who came first of those for whom
    /// nothing is done. So those who say nothing don't keep the others out.
    fn admit(&mut self, stream: TcpStream, pages: &Router) {
        self.guests.retain(|guest| !guest.task.is_finished());
        if self.guests.len() >= CONNECTIONS {
            let Some(idle) = self.guests.iter().position(|guest| guest.busy.is_idle()) else {
                return warn!(
                    CONNECTIONS,
                    "the meta port closes a new connection: all that it may have are busy"
                );
            };
            self.guests.remove(idle).into_iter().for_each(|guest| guest.task.abort());
        }
        let (tls, busy) = (self.tls.borrow().clone(), Busy::default());
        let task = self.attending.spawn(attend(stream, tls, pages.clone(), busy.clone()));
        self.guests.push_back(Guest { task, busy });
    }
}

/// Sees one connection through.
async fn attend(stream: TcpStream, tls: Option<Tls>, pages: Router, busy: Busy) {
    let ends = stream.peer_addr().and_then(|client| Ok(Ends { client, server: stream.local_addr()? })).ok();
    let greeted = match tls {
        None => Ok((Either::Left(stream), Caller::Plain)),
        Some(tls) => timeout(HANDSHAKE_TIMEOUT, greet(stream, tls))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())),
    };
    let (stream, caller) = match greeted {
        Ok(greeted) => greeted,
        Err(error) => return debug!(%error, "a caller of the meta port is refused"),
    };
    let show = service_fn(move |request: hyper::Request<Incoming>| {
        let (mut pages, busy) = (pages.clone(), busy.begin());
        async move {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(caller);
            request.extensions_mut().insert(ends);
            let answer = pages.call(request).await?;
            Ok::<_, Infallible>(answer.map(|body| {
                // For as long as anything of it is on its way.
                let kept = move |frame| {
                    let _busy = &busy;
                    frame
                };
                body.map_frame(kept)
            }))
        }
    });
    let stream = TokioIo::new(Patient::new(stream, WRITE_TIMEOUT));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_TIMEOUT)
        .max_buf_size(BUFFER_BYTES)
        .serve_connection(stream, show);
    if let Err(error) = served.await {
        debug!(%error, "a connection to the meta port is cut");
    }
}

/// Finds out whether it is TLS that comes, and does the handshake.
async fn greet(stream: TcpStream, tls: Tls) -> io::Result<(Either<TcpStream, TlsStream<TcpStream>>, Caller)> {
    let mut first = [0];
    if stream.peek(&mut first).await? == 0 || first != [HANDSHAKE] {
        return Ok((Either::Left(stream), Caller::Plain));
    }
    let stream = tls.acceptor.accept(stream).await?;
    let caller = tls.caller(stream.get_ref().1.peer_certificates());
    Ok((Either::Right(stream), caller))
}
