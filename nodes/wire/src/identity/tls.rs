//! How TLS is spoken between nodes: 1.3 alone, with the cluster's authority and no other.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs};
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tonic::transport::{Channel, Endpoint};

use super::credential::Credential;
use super::dial::Dial;
use super::{CA, IdentityError};

/// A peer that doesn't answer a ping within [`KEEP_ALIVE_TIMEOUT`] is gone, whatever TCP still believes.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(2);

/// A channel that is made so.
pub(crate) fn channel(dial: Dial) -> Result<Channel, tonic::transport::Error> {
    // TLS is the connector's.
    let endpoint = Endpoint::from_shared(format!("http://{}", dial.address))?
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    Ok(endpoint.connect_with_connector_lazy(dial))
}

/// The authority's certificate in DER.
pub(crate) fn authority_der(pem: &str) -> Option<CertificateDer<'static>> {
    CertificateDer::from_pem_slice(pem.as_bytes()).ok()
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

pub(super) fn no_authority(path: &Path) -> IdentityError {
    IdentityError::Malformed(path.to_owned(), "there is no certificate in it (PEM)".to_owned())
}

fn roots(ca: &str) -> Result<Arc<RootCertStore>, IdentityError> {
    let mut roots = RootCertStore::empty();
    let der = authority_der(ca).ok_or_else(|| no_authority(Path::new(CA)))?;
    roots.add(der).map_err(|error| IdentityError::Malformed(CA.into(), error.to_string()))?;
    Ok(Arc::new(roots))
}

pub(super) fn client_config(
    ca: &str,
    credential: &Arc<Credential>,
) -> Result<Arc<ClientConfig>, IdentityError> {
    let unusable = |error: &dyn ToString| IdentityError::Malformed(CA.into(), error.to_string());
    let verifier = WebPkiServerVerifier::builder_with_provider(roots(ca)?, provider())
        .build()
        .map_err(|error| unusable(&error))?;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| unusable(&error))?
        .with_webpki_verifier(verifier)
        .with_client_cert_resolver(Arc::clone(credential) as _);
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

pub(super) fn server_config(
    ca: &str,
    credential: &Arc<Credential>,
) -> Result<Arc<ServerConfig>, IdentityError> {
    let unusable = |error: &dyn ToString| IdentityError::Malformed(CA.into(), error.to_string());
    let provider = provider();
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(ca)?, Arc::clone(&provider))
        .allow_unauthenticated()
        .build()
        .map_err(|error| unusable(&error))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| unusable(&error))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::clone(credential) as _);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // A resumed session would be that of a certificate which may be over by then.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(config))
}
