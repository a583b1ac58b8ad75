//! Certificates and configurations for both sides.

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};

pub(crate) const VERSIONS: [&SupportedProtocolVersion; 2] =
    [&rustls::version::TLS12, &rustls::version::TLS13];

/// A server's certificate for `localhost`, which its clients trust.
pub(crate) struct Keys {
    pub(crate) certificate: CertificateDer<'static>,
    key: PrivatePkcs8KeyDer<'static>,
}

impl Keys {
    pub(crate) fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["localhost".into()]).unwrap();
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self { certificate, key: key.serialize_der().into() }
    }

    pub(crate) fn server(&self) -> ServerConfig {
        self.server_with(aws_lc_rs::default_provider())
    }

    pub(crate) fn server_with(&self, provider: CryptoProvider) -> ServerConfig {
        self.build(provider, vec![self.certificate.clone()])
    }

    pub(crate) fn server_with_chain(&self, chain: Vec<CertificateDer<'static>>) -> ServerConfig {
        self.build(aws_lc_rs::default_provider(), chain)
    }

    fn build(&self, provider: CryptoProvider, chain: Vec<CertificateDer<'static>>) -> ServerConfig {
        ServerConfig::builder_with_provider(Arc::new(provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, PrivateKeyDer::from(self.key.clone_key()))
            .unwrap()
    }

    pub(crate) fn client(&self, version: &'static SupportedProtocolVersion) -> ClientConfig {
        self.client_with(version, aws_lc_rs::default_provider())
    }

    pub(crate) fn client_with(
        &self,
        version: &'static SupportedProtocolVersion,
        provider: CryptoProvider,
    ) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth()
    }
}

/// With one key exchange that makes for a short first message.
pub(crate) fn short_provider() -> CryptoProvider {
    CryptoProvider { kx_groups: vec![aws_lc_rs::kx_group::X25519], ..aws_lc_rs::default_provider() }
}

/// Bytes that tell their place.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251) as u8).collect()
}
