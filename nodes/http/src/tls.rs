//! Certificates of the public ports: a local authority for a first start, and loading whatever is configured.

use std::fmt;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{RootCertStore, ServerConfig};

/// What a TLS port needs: a certificate with its key, TLS 1.2 and 1.3, ALPN `h2` and `http/1.1`. Cheap to
/// clone.
#[derive(Clone)]
pub struct TlsConfig(pub(crate) Arc<ServerConfig>);

impl fmt::Debug for TlsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsConfig")
    }
}

/// Where [`ensure_local`] keeps its files, all PEM.
#[derive(Clone, Debug)]
pub struct Local {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authority's certificate, for clients to trust (`curl --cacert`).
    pub authority: PathBuf,
    /// The authority's private key, from which the certificate is renewed.
    authority_key: PathBuf,
}

/// Why a certificate could not be made or loaded. Names the file and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TlsError(String);

/// The protocol that ALPN calls HTTP/2 over TLS (RFC 9113 section 3.2).
pub(crate) const HTTP2: &[u8] = b"h2";

/// Names that every local certificate has.
const LOCAL_NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];
/// As long as browsers allow for.
const CERTIFICATE_LIFE: Duration = Duration::from_secs(397 * 86_400);
/// Renewed at the first start after it has less than this left.
const RENEW_BEFORE: Duration = Duration::from_secs(30 * 86_400);
const AUTHORITY_LIFE: Duration = Duration::from_secs(3650 * 86_400);
/// Clocks differ.
const BACKDATE: Duration = Duration::from_secs(3600);

/// Makes a local authority and a certificate for `localhost`, `127.0.0.1`, `::1` and the given names in
/// `dir`, unless a good one is there already. An authority that is there is kept, so that whoever trusts it
/// need not do so again. Blocking; meant for the parent, before it starts children.
///
/// # Errors
/// A name is not one, or the files can't be read or written.
pub fn ensure_local(dir: &Path, names: &[String]) -> Result<Local, TlsError> {
    let local = Local {
        certificate: dir.join("cert.pem"),
        key: dir.join("key.pem"),
        authority: dir.join("ca.pem"),
        authority_key: dir.join("ca.key"),
    };
    let mut names: Vec<String> =
        LOCAL_NAMES.iter().map(ToString::to_string).chain(names.iter().cloned()).collect();
    names.sort();
    names.dedup();
    if !is_good(&local, &names) {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(|error| at(dir, "can't be made", &error))?;
        let issuer = authority(&local)?;
        certificate(&local, &names, &issuer)?;
    }
    Ok(local)
}

/// Loads a certificate chain and its private key, both PEM. Blocking.
///
/// # Errors
/// A file can't be read, has nothing fitting in it, or the two don't belong together.
pub fn load(certificate: &Path, key: &Path) -> Result<TlsConfig, TlsError> {
    let chain = read_chain(certificate)?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| {
        at(key, "is not readable as a PEM private key; give the key that belongs to the certificate", &error)
    })?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError(format!("no TLS versions: {error}")))?
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .map_err(|error| {
            let what = format!(
                "does not fit the certificate {}; give the two that were made together",
                certificate.display()
            );
            at(key, &what, &error)
        })?;
    config.alpn_protocols = vec![HTTP2.to_vec(), b"http/1.1".to_vec()];
    Ok(TlsConfig(Arc::new(config)))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn at(path: &Path, what: &str, error: &dyn fmt::Display) -> TlsError {
    TlsError(format!("{} {what}: {error}", path.display()))
}

fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let chain = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain = chain
        .map_err(|error| at(path, "is not readable as PEM certificates; give a file that is", &error))?;
    if chain.is_empty() {
        return Err(TlsError(format!(
            "{} has no certificate in it; give a PEM file that has",
            path.display()
        )));
    }
    Ok(chain)
}

/// Whether a client that trusts the authority would take the certificate for each of the names, now and for a
/// while.
fn is_good(local: &Local, names: &[String]) -> bool {
    let check = || -> Option<()> {
        load(&local.certificate, &local.key).ok()?;
        let chain = read_chain(&local.certificate).ok()?;
        let mut roots = RootCertStore::empty();
        roots.add(read_chain(&local.authority).ok()?.pop()?).ok()?;
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build().ok()?;
        let when = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()? + RENEW_BEFORE;
        for name in names {
            let name = ServerName::try_from(name.as_str()).ok()?;
            let (leaf, rest) = chain.split_first()?;
            verifier.verify_server_cert(leaf, rest, &name, &[], UnixTime::since_unix_epoch(when)).ok()?;
        }
        Some(())
    };
    check().is_some()
}

/// The authority that is there, or a new one.
fn authority(local: &Local) -> Result<Issuer<'static, KeyPair>, TlsError> {
    let failed = |error: rcgen::Error| TlsError(format!("can't make a local certificate authority: {error}"));
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "Protoplex local authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = (SystemTime::now() - BACKDATE).into();
    params.not_after = (SystemTime::now() + AUTHORITY_LIFE).into();
    if local.authority.exists() && local.authority_key.exists() {
        let pem = fs::read_to_string(&local.authority_key)
            .map_err(|error| at(&local.authority_key, "can't be read", &error))?;
        let key = KeyPair::from_pem(&pem).map_err(|error| {
            at(
                &local.authority_key,
                "is not a PEM private key; remove it and ca.pem to have both made anew",
                &error,
            )
        })?;
        return Ok(Issuer::new(params, key));
    }
    let key = KeyPair::generate().map_err(failed)?;
    let certificate = params.self_signed(&key).map_err(failed)?;
    write(&local.authority_key, &key.serialize_pem())?;
    write(&local.authority, &certificate.pem())?;
    Ok(Issuer::new(params, key))
}

fn certificate(local: &Local, names: &[String], issuer: &Issuer<'_, KeyPair>) -> Result<(), TlsError> {
    let failed =
        |error: rcgen::Error| TlsError(format!("can't make a certificate for {}: {error}", names.join(", ")));
    let mut params = CertificateParams::new(names.to_vec()).map_err(failed)?;
    let title = names.iter().find(|name| name.parse::<IpAddr>().is_err()).map_or("localhost", String::as_str);
    params.distinguished_name.push(DnType::CommonName, title);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    params.not_before = (SystemTime::now() - BACKDATE).into();
    params.not_after = (SystemTime::now() + CERTIFICATE_LIFE).into();
    let key = KeyPair::generate().map_err(failed)?;
    let certificate = params.signed_by(&key, issuer).map_err(failed)?;
    // A crash in between leaves two that don't fit, and that is found out and mended at the next start.
    write(&local.key, &key.serialize_pem())?;
    write(&local.certificate, &certificate.pem())
}

/// Puts a file in place whole, readable by its owner alone.
fn write(path: &Path, text: &str) -> Result<(), TlsError> {
    let part = path.with_extension("part");
    let put = || -> io::Result<()> {
        let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&part)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&part, path)
    };
    put().map_err(|error| at(path, "can't be written", &error))
}

#[cfg(test)]
mod tests;
