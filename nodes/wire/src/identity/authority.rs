//! The cluster's own certificate authority: made once, and the issuer of every certificate in the cluster.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SignatureAlgorithm,
};

use super::certificate::{Kind, Peer};
use super::files::{at, lock, private_folder, secret, write_private};
use super::{BACKDATED, CA, CA_KEY, IdentityError, LIVE_KEY, OLD_TOKEN, SECRET, SERVER_NAME, SERVICE_NAME};

/// How long the authority lasts, and how long before it was made it begins: a clock that was ahead then, and is put right,
/// would stop the cluster, and the beginning protects nothing.
const LIFE: Duration = Duration::from_hours(10 * 365 * 24);
const BEGUN_BEFORE: Duration = LIFE;
/// Held by whoever makes an authority.
const LOCK: &str = "ca.lock";
/// Bytes of a P-256 public key as an uncompressed point.
const POINT_BYTES: usize = 65;

/// Has the key of the cluster's authority.
pub(crate) struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Of its key, and the certificate that others know it by.
    pub(crate) fn new(pem: String, key: &str) -> Result<Self, rcgen::Error> {
        Ok(Self { pem, issuer: Issuer::new(params(), KeyPair::from_pem(key)?) })
    }

    /// A certificate for the owner of a key (an uncompressed point), from `now` on, as PEM with the authority's own behind
    /// it.
    pub(crate) fn issue(
        &self,
        peer: &Peer,
        public_key: &[u8],
        now: SystemTime,
        life: Duration,
    ) -> Result<String, rcgen::Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, peer.node.as_str());
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        for name in peer.names() {
            params.subject_alt_names.push(SanType::URI(name.as_str().try_into()?));
        }
        // So nobody who isn't one can be taken for a seed by those who connect to it.
        let servers = match peer.kind {
            Kind::Seed | Kind::Datastore => &[SERVER_NAME, SERVICE_NAME][..],
            kind if kind.is_node() => &[SERVER_NAME],
            _ => &[],
        };
        for name in servers {
            params.subject_alt_names.push(SanType::DnsName((*name).try_into()?));
        }
        if !servers.is_empty() {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        params.not_before = (now - BACKDATED).into();
        params.not_after = (now + life).into();
        let issued = params.signed_by(&Point(public_key), &self.issuer)?;
        Ok(format!("{}{}", issued.pem(), self.pem))
    }
}

/// A public key that came from elsewhere.
struct Point<'a>(&'a [u8]);

impl PublicKeyData for Point<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

/// Whether these bytes may be a public key. A point that isn't on the curve is of no use to whoever sends it.
#[must_use]
pub fn is_public_key(bytes: &[u8]) -> bool {
    bytes.len() == POINT_BYTES && bytes[0] == 4
}

fn params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "Protoplex cluster CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// Makes an authority and the cluster's shared secrets in a folder that has none; what a join that failed has left there is
/// no cluster. The authority's certificate comes last, so a crash here leaves nothing that is taken for one. False where
/// there is one, as another process was first.
pub(crate) fn create(folder: &Path) -> Result<bool, IdentityError> {
    private_folder(folder)?;
    // Processes that are started at the same time make one cluster.
    let _lock = lock(&folder.join(LOCK))?;
    if folder.join(CA).exists() {
        return Ok(false);
    }
    let mut params = params();
    let now = SystemTime::now();
    params.not_before = (now - BEGUN_BEFORE).into();
    params.not_after = (now + LIFE).into();
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let files =
        [(SECRET, secret()), (LIVE_KEY, secret()), (CA_KEY, ca.key().serialize_pem()), (CA, ca.pem())];
    for (name, text) in files {
        write_private(&folder.join(name), &text)?;
    }
    Ok(true)
}

/// Brings the folder of an earlier version to what this one needs: shared keys were made of a token that all nodes had.
/// What the earlier version needs stays, in case it is gone back to.
pub(crate) fn migrate(folder: &Path) -> Result<(), IdentityError> {
    let (secret, token) = (folder.join(SECRET), folder.join(OLD_TOKEN));
    if secret.exists() || !token.exists() {
        return Ok(());
    }
    let text = fs::read_to_string(&token).map_err(at(&token))?;
    write_private(&secret, text.trim())
}
