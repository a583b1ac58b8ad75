//! The public ports of a node, HTTP and HTTPS: their sockets, their certificate, and why a child can't serve them.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use protoplex_runtime::config::{ConfigError, Problems};
use protoplex_runtime::context::{Context, Reconfigured};
use protoplex_wire::identity::IdentityError;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tracing::{error, info};

use crate::ports::{Given, Ports};
use crate::tls::{self, TlsConfig, TlsError};

/// Names of the sockets, for parent and children.
const HTTP: &str = "http";
const HTTPS: &str = "https";

/// Why a child can't serve.
#[derive(Debug, Error)]
pub enum ServeError {
    /// Ours: the parent and the child don't understand each other.
    #[error("what the parent said can't be understood: {0}")]
    Told(#[from] serde_json::Error),
    /// Ours: the parent should have refused it.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The operator's: there is no identity in the data directory, or it is unreadable.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The operator's: the certificate was changed since the parent read it.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The operator's: the seed's address is none.
    #[error("the seed's address can't be used: {0}")]
    Seed(String),
    /// The system's: a socket, the access log or the data directory can't be used.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The certificate of the HTTPS ports: the one that is configured, or one of a local authority.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Certificate {
    /// Chain and key.
    configured: Option<(PathBuf, PathBuf)>,
    /// Of what the files hold: the paths of a certificate that was renewed are the same.
    fingerprint: u64,
}

impl Certificate {
    /// Checks `tls_certificate` and `tls_key` of a section of the configuration; what is wrong goes to `problems`.
    /// Blocking: a configured certificate is read.
    pub fn resolve(
        certificate: Option<PathBuf>,
        key: Option<PathBuf>,
        section: &str,
        problems: &mut Problems,
    ) -> Self {
        let configured = match (certificate, key) {
            (None, None) => None,
            (Some(certificate), Some(key)) => {
                problems.check(&format!("{section}.tls_certificate"), tls::load(&certificate, &key));
                Some((certificate, key))
            }
            (Some(_), None) => {
                problems.add(&format!("{section}.tls_certificate"), "tls_key, its private key, is missing");
                None
            }
            (None, Some(_)) => {
                problems
                    .add(&format!("{section}.tls_key"), "tls_certificate, the certificate to it, is missing");
                None
            }
        };
        let mut hasher = DefaultHasher::new();
        for file in configured.iter().flat_map(|(certificate, key)| [certificate, key]) {
            // What can't be read was noted above.
            std::fs::read(file).ok().hash(&mut hasher);
        }
        Self { configured, fingerprint: hasher.finish() }
    }

    /// Chain and key, PEM. Local ones are made where they are missing. Blocking.
    ///
    /// # Errors
    /// The local ones can't be read or made.
    fn files(&self, data: &Path) -> Result<(PathBuf, PathBuf), TlsError> {
        match &self.configured {
            Some(configured) => Ok(configured.clone()),
            None => tls::ensure_local(&data.join("tls"), &[]).map(|local| (local.certificate, local.key)),
        }
    }
}

/// The sockets that the parent shall share among its children. Makes the local certificate where one is needed and
/// missing; blocking.
///
/// # Errors
/// The local certificate can't be read or made.
pub fn sockets(
    http: &[SocketAddr],
    https: &[SocketAddr],
    certificate: &Certificate,
    data: &Path,
) -> Result<Vec<(String, SocketAddr)>, TlsError> {
    if !https.is_empty() {
        certificate.files(data)?;
    }
    let http = http.iter().map(|&address| (HTTP.to_owned(), address));
    let https = https.iter().map(|&address| (HTTPS.to_owned(), address));
    Ok(http.chain(https).collect())
}

/// A child's part of those sockets, as it comes and goes.
pub fn ports(context: &Context) -> Ports {
    Ports { fixed: Vec::new(), given: Some(Given { context: context.clone(), encrypted: HTTPS }) }
}

/// Goes by each new configuration as it comes; one that can't be used leaves the old one in force. Never ends.
pub async fn adopt<C: DeserializeOwned>(
    mut reconfigured: Reconfigured,
    change: impl Fn(C) -> Result<(), ServeError>,
) {
    loop {
        match reconfigured.next().await.map_err(ServeError::from).and_then(&change) {
            Ok(()) => info!("goes by another configuration"),
            Err(error) => error!(%error, "the new configuration can't be used; the old one goes on"),
        }
    }
}

/// The certificate of the HTTPS ports; none where there are no such ports. Blocking.
///
/// # Errors
/// It can't be loaded.
pub fn tls(
    https: &[SocketAddr],
    certificate: &Certificate,
    data: &Path,
) -> Result<Option<TlsConfig>, TlsError> {
    if https.is_empty() {
        return Ok(None);
    }
    let (chain, key) = certificate.files(data)?;
    tls::load(&chain, &key).map(Some)
}
