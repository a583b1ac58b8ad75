//! The meta port's connections. Where other machines reach it they speak TLS: the port shows the certificate of the cluster's
//! nodes, or one that is configured, and asks for the caller's. So nothing secret passes in the clear, and who is of the
//! cluster needs nothing else. Plain HTTP is told so; it gets the pages that are for everybody, which balancers ask for.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use protoplex_wire::identity::{Identity, SERVER_NAME};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;
use tracing::{debug, warn};

use crate::config::Problems;

/// Connections whose TLS has not begun yet; any more wait in the socket's queue.
const SHAKING: usize = 64;
/// From the connection to the end of its handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
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
    /// Whoever has a certificate of one of these authorities needs no token.
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
    pub(crate) fn acceptor(&self, identity: &Identity) -> Result<TlsAcceptor, MetaTlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        trust(&mut roots, "the cluster's authority", identity.ca_pem().as_bytes())?;
        if let Some(file) = &self.client_ca {
            trust(&mut roots, "meta.tls.client_ca", &read("meta.tls.client_ca", file)?)?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .map_err(|error| wrong("meta.tls.client_ca", &error))?;
        let (certificate, key) = identity.node_pem();
        let cluster =
            certified("the cluster's certificate", certificate.as_bytes(), key.as_bytes(), &provider)?;
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
            .with_cert_resolver(Arc::new(Shown { cluster, own }));
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

fn wrong(what: &str, reason: &dyn ToString) -> MetaTlsError {
    MetaTlsError { what: what.to_owned(), reason: reason.to_string() }
}

fn read(what: &str, file: &Path) -> Result<Vec<u8>, MetaTlsError> {
    fs::read(file).map_err(|error| wrong(&format!("{what}: {}", file.display()), &error))
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
#[derive(Debug)]
struct Shown {
    cluster: Arc<CertifiedKey>,
    own: Option<Arc<CertifiedKey>>,
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let own = self.own.as_ref().filter(|_| hello.server_name() != Some(SERVER_NAME));
        Some(Arc::clone(own.unwrap_or(&self.cluster)))
    }
}

/// How much is known of who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    /// It speaks plain HTTP.
    Plain,
    /// It has shown no certificate.
    Stranger,
    /// It has shown one of an authority that counts here.
    Known,
}

impl Connected<IncomingStream<'_, Door>> for Caller {
    fn connect_info(stream: IncomingStream<'_, Door>) -> Self {
        *stream.remote_addr()
    }
}

type Connection = Either<TcpStream, TlsStream<TcpStream>>;

/// The socket, and those who have come but not said yet who they are.
pub(crate) struct Door {
    socket: TcpListener,
    /// Otherwise whoever comes waits in the socket.
    open: watch::Receiver<bool>,
    tls: Option<TlsAcceptor>,
    shaking: JoinSet<Option<(Connection, Caller)>>,
}

impl Door {
    /// One that speaks TLS, where it is given how.
    pub(crate) fn new(socket: TcpListener, tls: Option<TlsAcceptor>, open: watch::Receiver<bool>) -> Self {
        Self { socket, open, tls, shaking: JoinSet::new() }
    }
}

impl Listener for Door {
    type Io = Connection;
    type Addr = Caller;

    async fn accept(&mut self) -> (Connection, Caller) {
        loop {
            let accepts = self.shaking.len() < SHAKING && *self.open.borrow_and_update();
            // Every arm is cancel-safe.
            tokio::select! {
                Ok(()) = self.open.changed() => {}
                accepted = self.socket.accept(), if accepts => match (accepted, &self.tls) {
                    (Ok((stream, _)), None) => return (Either::Left(stream), Caller::Plain),
                    (Ok((stream, _)), Some(tls)) => drop(self.shaking.spawn(greet(stream, tls.clone()))),
                    (Err(error), _) => {
                        warn!(%error, "the meta port can't accept a connection");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(greeted) = self.shaking.join_next() => if let Ok(Some(greeted)) = greeted {
                    return greeted;
                },
            }
        }
    }

    fn local_addr(&self) -> io::Result<Caller> {
        Ok(Caller::Plain)
    }
}

/// Finds out whether it is TLS that comes, and does the handshake.
async fn greet(stream: TcpStream, tls: TlsAcceptor) -> Option<(Connection, Caller)> {
    let greeting = async {
        let mut first = [0];
        if stream.peek(&mut first).await? == 0 || first != [HANDSHAKE] {
            return Ok((Either::Left(stream), Caller::Plain));
        }
        let stream = tls.accept(stream).await?;
        let is_known = stream.get_ref().1.peer_certificates().is_some();
        let caller = if is_known { Caller::Known } else { Caller::Stranger };
        Ok::<_, io::Error>((Either::Right(stream), caller))
    };
    match timeout(HANDSHAKE_TIMEOUT, greeting).await {
        Ok(Ok(greeted)) => Some(greeted),
        Ok(Err(error)) => {
            debug!(%error, "a caller of the meta port is refused");
            None
        }
        Err(_) => None,
    }
}
