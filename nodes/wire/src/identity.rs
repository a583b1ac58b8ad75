//! The cluster's identity on disk: its CA, the certificate that its nodes serve with, its token and its live key.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use thiserror::Error;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, ServerTlsConfig};
use tonic::{Request, Status};

/// The name that every node's certificate carries, whatever address the node listens on.
pub const SERVER_NAME: &str = "node.protoplex.internal";
/// Whom a node's token is for that registers with a live node, or invalidates there.
pub const REGISTRATIONS_AUDIENCE: &str = "protoplex:live:registrations";
/// Bytes of randomness in the cluster token and in the live key.
const SECRET_BYTES: usize = 32;
/// Bytes of randomness that tell processes of one name apart.
const INSTANCE_BYTES: usize = 16;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A peer that doesn't answer a ping within [`KEEP_ALIVE_TIMEOUT`] is gone, whatever TCP still believes.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(2);

/// A channel to another node that carries the cluster token with every call.
pub type TrustedChannel = InterceptedService<Channel, Authorize>;

/// Why the identity could not be read or made.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// A file of the identity is missing, unreadable or can't be written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is no identity in the folder.
    #[error(
        "no cluster identity in {0}: start the cluster there first, or copy its `cluster` folder to this machine"
    )]
    Absent(PathBuf),
    /// The certificates could not be made.
    #[error("cannot make the cluster's certificates: {0}")]
    Certificate(#[from] rcgen::Error),
    /// A secret's file holds something else.
    #[error("{0}: not a token of this cluster; remove the `cluster` folder to have a new identity made")]
    Malformed(PathBuf),
}

/// Who this cluster is. Everything in it is secret but the CA's certificate.
#[derive(Clone)]
pub struct Identity {
    inner: Arc<Inner>,
}

struct Inner {
    ca: String,
    node: String,
    node_key: String,
    token: String,
    live_key: Vec<u8>,
}

impl Identity {
    /// Reads the identity in `folder` (`DATA/cluster`), or makes one where the folder doesn't exist.
    ///
    /// The folder appears whole or not at all, so a crash here leaves nothing half-made.
    pub fn open_or_create(folder: &Path) -> Result<Self, IdentityError> {
        if !folder.exists() {
            create(folder)?;
        }
        Self::open(folder)
    }

    /// Reads the identity in `folder`.
    pub fn open(folder: &Path) -> Result<Self, IdentityError> {
        if !folder.exists() {
            return Err(IdentityError::Absent(folder.to_owned()));
        }
        let text = |name: &str| -> Result<String, IdentityError> {
            let path = folder.join(name);
            fs::read_to_string(&path).map_err(|source| IdentityError::File { path, source })
        };
        let token = text("token")?.trim().to_owned();
        let live_key = URL_SAFE_NO_PAD
            .decode(text("live.key")?.trim())
            .map_err(|_| IdentityError::Malformed(folder.join("live.key")))?;
        if authorization(&token).is_none() || token.is_empty() {
            return Err(IdentityError::Malformed(folder.join("token")));
        }
        let inner = Inner {
            ca: text("ca.pem")?,
            node: text("node.pem")?,
            node_key: text("node.key")?,
            token,
            live_key,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// How a node of this cluster serves its gRPC port.
    pub fn server_tls(&self) -> ServerTlsConfig {
        let (certificate, key) = self.node_pem();
        ServerTlsConfig::new().identity(tonic::transport::Identity::from_pem(certificate, key))
    }

    /// Refuses every call that doesn't carry the cluster token.
    pub fn guard(&self) -> Guard {
        Guard { expected: format!("Bearer {}", self.inner.token).into() }
    }

    /// A channel to the node at `address` ("host:port"), which connects when it is first used and again whenever it
    /// broke, accepts only this cluster's CA, and carries the cluster token.
    pub fn channel(&self, address: &str) -> Result<TrustedChannel, tonic::transport::Error> {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(self.ca_pem()))
            .domain_name(SERVER_NAME);
        let channel = Endpoint::from_shared(format!("https://{address}"))?
            .tls_config(tls)?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .tcp_nodelay(true)
            .connect_lazy();
        // `open` made sure that the token is a valid header value.
        Ok(InterceptedService::new(channel, Authorize { value: authorization(&self.inner.token) }))
    }

    /// The certificate of the cluster's own authority, as PEM.
    pub fn ca_pem(&self) -> &str {
        &self.inner.ca
    }

    /// The certificate that all nodes have, by which they and the cluster's operators know each other, and its key, as PEM.
    pub fn node_pem(&self) -> (&str, &str) {
        (&self.inner.node, &self.inner.node_key)
    }

    /// The HS256 key of the JWTs that publish and subscribe at live nodes. Apps have it too, where they publish.
    pub fn live_key(&self) -> &[u8] {
        &self.inner.live_key
    }

    /// The HS256 key of the short-lived JWTs by which nodes know each other where there is no TLS between them. Only who
    /// has the cluster token has it, and nothing that is signed with it gives the token away.
    pub fn node_key(&self) -> Vec<u8> {
        format!("protoplex node {}", self.inner.token).into_bytes()
    }
}

/// A new id for a process, or for a data directory: see `instance` of [`crate::proto::Member`].
#[must_use]
pub fn new_instance() -> String {
    URL_SAFE_NO_PAD.encode(rand::random::<[u8; INSTANCE_BYTES]>())
}

/// Adds the cluster token to each call.
#[derive(Clone)]
pub struct Authorize {
    value: Option<MetadataValue<Ascii>>,
}

impl Interceptor for Authorize {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = self.value.clone() {
            request.metadata_mut().insert("authorization", value);
        }
        Ok(request)
    }
}

/// Lets only those calls through that carry the cluster token.
#[derive(Clone)]
pub struct Guard {
    expected: Arc<str>,
}

impl Interceptor for Guard {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let presented = request.metadata().get("authorization").map_or(&b""[..], |value| value.as_bytes());
        if constant_time_eq(presented, self.expected.as_bytes()) {
            Ok(request)
        } else {
            Err(Status::unauthenticated("the cluster token is missing or is another cluster's"))
        }
    }
}

/// Compares without telling by its duration where two equally long texts differ.
fn constant_time_eq(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (x, y)| difference | (x ^ y)) == 0
}

fn authorization(token: &str) -> Option<MetadataValue<Ascii>> {
    let mut value: MetadataValue<Ascii> = format!("Bearer {token}").parse().ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn create(folder: &Path) -> Result<(), IdentityError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| IdentityError::File { path, source }
    };
    let making = folder.with_extension(format!("new-{}", std::process::id()));
    match fs::remove_dir_all(&making) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&making)(error)),
        _ => {}
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&making).map_err(at(&making))?;

    let certificates = Certificates::make()?;
    let files = [
        ("ca.pem", certificates.ca),
        ("ca.key", certificates.ca_key),
        ("node.pem", certificates.node),
        ("node.key", certificates.node_key),
        ("token", secret()),
        ("live.key", secret()),
    ];
    for (name, text) in files {
        let path = making.join(name);
        write_private(&path, &text).map_err(at(&path))?;
    }
    match fs::rename(&making, folder) {
        // Another process that was started at the same time was first: then its is the cluster's.
        Err(error)
            if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists) =>
        {
            fs::remove_dir_all(&making).map_err(at(&making))
        }
        made => made.map_err(at(folder)),
    }
}

struct Certificates {
    ca: String,
    ca_key: String,
    node: String,
    node_key: String,
}

impl Certificates {
    fn make() -> Result<Self, rcgen::Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "Protoplex cluster CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;

        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![SERVER_NAME.to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, SERVER_NAME);
        let node = params.signed_by(&key, &ca)?;
        Ok(Self {
            ca: ca.pem(),
            ca_key: ca.key().serialize_pem(),
            node: node.pem(),
            node_key: key.serialize_pem(),
        })
    }
}

fn secret() -> String {
    URL_SAFE_NO_PAD.encode(rand::random::<[u8; SECRET_BYTES]>())
}

fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn is_made_once_private_and_read_back() {
        let data = tempfile::tempdir().unwrap();
        let folder = data.path().join("cluster");
        let made = Identity::open_or_create(&folder).unwrap();
        let read = Identity::open_or_create(&folder).unwrap();
        assert_eq!(made.inner.token, read.inner.token);
        assert_eq!(made.live_key(), read.live_key());
        assert_eq!(made.live_key().len(), SECRET_BYTES);
        assert_eq!(made.node_key(), read.node_key());
        assert_ne!(made.node_key(), made.live_key());
        for entry in fs::read_dir(&folder).unwrap() {
            let mode = entry.unwrap().metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0, "readable by others");
        }
    }

    #[test]
    fn who_comes_second_takes_what_the_first_has_made() {
        let data = tempfile::tempdir().unwrap();
        let folder = data.path().join("cluster");
        let first = Identity::open_or_create(&folder).unwrap();
        // As if the folder had not been there when it was looked for.
        create(&folder).unwrap();
        assert_eq!(Identity::open(&folder).unwrap().inner.token, first.inner.token);
        assert_eq!(fs::read_dir(data.path()).unwrap().count(), 1, "nothing is left of the second");
    }

    #[test]
    fn absent_says_what_to_do() {
        let data = tempfile::tempdir().unwrap();
        let error = Identity::open(&data.path().join("cluster")).err().unwrap().to_string();
        assert!(error.contains("start the cluster there first"), "{error}");
    }

    #[test]
    fn guard_lets_only_the_token_through() {
        let data = tempfile::tempdir().unwrap();
        let identity = Identity::open_or_create(&data.path().join("cluster")).unwrap();
        let call = |value: Option<&str>| {
            let mut request = Request::new(());
            if let Some(value) = value {
                request.metadata_mut().insert("authorization", value.parse().unwrap());
            }
            identity.guard().call(request).is_ok()
        };
        assert!(call(Some(&format!("Bearer {}", identity.inner.token))));
        assert!(!call(None));
        assert!(!call(Some("Bearer ")));
        assert!(!call(Some(&format!("Bearer {}x", identity.inner.token))));
    }
}
