//! The certificate that one process shows, and its key: replaced by the next one while it runs.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rcgen::{KeyPair, PublicKeyData};
use tokio_rustls::rustls::client::ResolvesClientCert;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{Error as TlsError, SignatureScheme};

use super::IdentityError;
use super::authority::Authority;
use super::certificate::{Certificate, Peer};
use super::files::read;

/// How long a certificate lasts that a process makes itself of the authority's key.
pub(super) const OWN_LIFE: Duration = Duration::from_hours(24);
/// Between two looks for the next certificate, once it is due.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// Where the next certificate comes from.
pub(super) enum Source {
    /// Files, which this process's parent or the operator replaces.
    Files { certificate: PathBuf, key: PathBuf },
    /// The authority, whose key is here.
    Authority { authority: Arc<Authority>, peer: Peer, key: Box<KeyPair> },
}

/// See the module. Shared by all connections of a process; each handshake shows what is newest.
pub(crate) struct Credential {
    source: Source,
    loaded: Mutex<Loaded>,
}

struct Loaded {
    certified: Arc<CertifiedKey>,
    certificate: Certificate,
    /// Chain and key.
    pem: Arc<(String, String)>,
    looked: Instant,
}

impl Credential {
    pub(super) fn load(source: Source) -> Result<Self, IdentityError> {
        Self::load_at(source, SystemTime::now())
    }

    /// The same, by a clock that says this.
    pub(super) fn load_at(source: Source, now: SystemTime) -> Result<Self, IdentityError> {
        Ok(Self { loaded: Mutex::new(source.load(now)?), source })
    }

    /// Has what is newest handed to `take`.
    fn with<T>(&self, take: impl FnOnce(&Loaded) -> T) -> T {
        // What is in it is whole at any time.
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let now = SystemTime::now();
        if now >= renewal(&loaded.certificate, 0.0, now) && loaded.looked.elapsed() >= LOOK_INTERVAL {
            loaded.looked = Instant::now();
            match self.source.load(now) {
                Ok(next) => *loaded = next,
                Err(error) => tracing::debug!(%error, "the next certificate can't be read"),
            }
        }
        take(&loaded)
    }

    /// Looks for the next certificate now.
    pub(super) fn refresh(&self) -> Result<(), IdentityError> {
        *self.loaded.lock().unwrap_or_else(PoisonError::into_inner) = self.source.load(SystemTime::now())?;
        Ok(())
    }

    pub(super) fn certified(&self) -> Arc<CertifiedKey> {
        self.with(|loaded| Arc::clone(&loaded.certified))
    }

    pub(super) fn certificate(&self) -> Certificate {
        self.with(|loaded| loaded.certificate.clone())
    }

    pub(super) fn pem(&self) -> Arc<(String, String)> {
        self.with(|loaded| Arc::clone(&loaded.pem))
    }

    /// Why it can't be shown any more, where it has ended.
    pub(crate) fn expired(&self) -> Option<IdentityError> {
        let certificate = self.certificate();
        let over = SystemTime::now().duration_since(certificate.not_after).ok()?;
        Some(IdentityError::Expired { name: certificate.peer.name(), ago_s: over.as_secs() })
    }

    /// Why it can't be shown yet, where a clock was ahead when it was made.
    pub(super) fn not_yet(&self) -> Option<IdentityError> {
        let certificate = self.certificate();
        let left = certificate.not_before.duration_since(SystemTime::now()).ok()?;
        Some(IdentityError::NotYet { name: certificate.peer.name(), in_s: left.as_secs() })
    }
}

/// When a certificate is to be replaced: after two thirds of its life, and earlier by that share of a tenth of it. At once
/// where it doesn't count yet, which is so when a clock that was ahead is put right.
pub(super) fn renewal(certificate: &Certificate, earlier: f64, now: SystemTime) -> SystemTime {
    if now < certificate.not_before {
        return now;
    }
    certificate.issued() + certificate.life().mul_f64(2.0 / 3.0 - earlier / 10.0)
}

impl Source {
    fn load(&self, now: SystemTime) -> Result<Loaded, IdentityError> {
        let (pem, what) = match self {
            Self::Files { certificate, key } => ((read(certificate)?, read(key)?), certificate.clone()),
            Self::Authority { authority, peer, key } => {
                let chain = authority.issue(peer, key.der_bytes(), now, OWN_LIFE)?;
                ((chain, key.serialize_pem()), PathBuf::from("the certificate just made"))
            }
        };
        let malformed = |reason: &dyn ToString| IdentityError::Malformed(what.clone(), reason.to_string());
        let chain: Vec<_> = CertificateDer::pem_slice_iter(pem.0.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|error| malformed(&error))?;
        let certificate = chain.first().and_then(|own| Certificate::parse(own));
        let certificate =
            certificate.ok_or_else(|| malformed(&"there is no certificate of a cluster in it (PEM)"))?;
        let key = PrivateKeyDer::from_pem_slice(pem.1.as_bytes()).map_err(|error| malformed(&error))?;
        let certified = CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider());
        let certified = certified.map_err(|error: TlsError| malformed(&error))?;
        Ok(Loaded { certified: Arc::new(certified), certificate, pem: Arc::new(pem), looked: Instant::now() })
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential")
    }
}

impl ResolvesServerCert for Credential {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.certified())
    }
}

impl ResolvesClientCert for Credential {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.certified())
    }

    fn has_certs(&self) -> bool {
        true
    }
}
