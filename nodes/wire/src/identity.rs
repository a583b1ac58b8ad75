//! Who a process is in its cluster: a certificate of the cluster's own authority, and the secrets that go with its kind.
//!
//! The folder `DATA/cluster` has, on the machine where the cluster began, the authority's key: processes there make their
//! certificates themselves. Elsewhere a node has joined with a token ([`crate::enrolment`]), and each has its own in
//! `nodes/NODE`. What a server of the user's own has, or a person, is a folder of the same files ([`Identity::credentials`]).
//!
//! | file | who has it |
//! | --- | --- |
//! | `ca.pem` | everybody |
//! | `ca.key` | seeds |
//! | `secret` | nodes but datastores |
//! | `live.key` | seeds, fileservers, live nodes, operators |
//! | `cert.pem`, `key.pem` | the one whose they are |
//! | `ca.lock` | where the cluster began: empty, and held by whoever makes the rest |

mod authority;
mod certificate;
mod credential;
mod dial;
mod error;
mod files;
mod foreign;
mod tls;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{KeyPair, PublicKeyData};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{ClientConfig, ServerConfig};
use tonic::transport::Channel;

pub use self::authority::is_public_key;
pub use self::certificate::{Certificate, FILES_POOL, Fingerprint, Kind, LIVE_POOL, Peer, fingerprint};
pub(crate) use self::dial::Dial;
pub use self::error::IdentityError;
pub use self::foreign::is_foreign;
pub(crate) use self::tls::{authority_der, channel, provider};

use self::authority::Authority;
use self::credential::{Credential, OWN_LIFE, Source};
use self::files::{is_there, private_folder, read, read_if_there, secret, write_new, write_private};
use self::tls::{client_config, no_authority};
use crate::clock::unix_ms;
use crate::proto::Credentials;

/// The name that every node's certificate carries, whatever address the node listens on.
pub const SERVER_NAME: &str = "node.protoplex.internal";
/// The name by which seeds and datastores are known to those who connect to them. No other kind has it.
const SERVICE_NAME: &str = "service.protoplex.internal";
/// Whom a node's token is for that registers with a live node, or invalidates there.
pub const REGISTRATIONS_AUDIENCE: &str = "protoplex:live:registrations";
/// How an operator is called who has the authority's key at hand.
pub const LOCAL_OPERATOR: &str = "local";
/// Bytes of randomness that tell processes of one name apart.
const INSTANCE_BYTES: usize = 16;
/// Clocks of other machines may be behind by so much: certificates begin before they are made.
const BACKDATED: Duration = Duration::from_mins(10);
/// How long the certificates of people last, who have to renew them themselves.
const OPERATOR_LIFE: Duration = Duration::from_hours(30 * 24);

const CA: &str = "ca.pem";
const CA_KEY: &str = "ca.key";
const SECRET: &str = "secret";
const LIVE_KEY: &str = "live.key";
const CERTIFICATE: &str = "cert.pem";
const KEY: &str = "key.pem";
/// What the nodes of a machine that has joined are below.
const NODES: &str = "nodes";
/// Of an earlier version.
const OLD_TOKEN: &str = "token";

/// A channel to another node, over mutual TLS.
pub type TrustedChannel = Channel;

/// Who this process is. Everything in it is secret but the authority's certificate.
#[derive(Clone)]
pub struct Identity {
    inner: Arc<Inner>,
}

#[derive(Clone)]
struct Inner {
    ca: String,
    fingerprint: Fingerprint,
    authority: Option<Arc<Authority>>,
    authority_key: Option<String>,
    credential: Arc<Credential>,
    secret: Option<String>,
    /// Random where it isn't known.
    node_key: Vec<u8>,
    live_key: Vec<u8>,
    knows_live_key: bool,
    client: Arc<ClientConfig>,
    /// Of certificates that it issues.
    life: Duration,
}

impl Identity {
    /// Whether there is one in `folder` (`DATA/cluster`): a folder alone is none, for a join that failed leaves one.
    pub fn is_there(folder: &Path) -> bool {
        // One that can't be read is there, too.
        is_there(&folder.join(CA))
    }

    /// Reads the identity in `folder` (`DATA/cluster`), or makes a cluster's where there is none. As [`Self::open`].
    pub fn open_or_create(folder: &Path) -> Result<Self, IdentityError> {
        if !Self::is_there(folder) {
            authority::create(folder)?;
        }
        Self::open(folder)
    }

    /// Makes a cluster's identity where there is none.
    pub fn create(folder: &Path) -> Result<Self, IdentityError> {
        if Self::is_there(folder) || !authority::create(folder)? {
            return Err(IdentityError::Exists(folder.to_owned()));
        }
        Self::open(folder)
    }

    /// That of an operator who has the authority's key in `folder` (`DATA/cluster`).
    pub fn open(folder: &Path) -> Result<Self, IdentityError> {
        let shared = Shared::read(folder)?;
        let Some(authority) = &shared.authority else {
            return Err(IdentityError::NoOperator(folder.to_owned()));
        };
        let peer = shared.peer(Kind::Operator, LOCAL_OPERATOR);
        let key = Box::new(KeyPair::generate()?);
        let source = Source::Authority { authority: Arc::clone(authority), peer, key };
        shared.identity(source)
    }

    /// That of a node of the data directory whose folder `cluster` this is: made here where the authority's key is, else
    /// what it got when it joined.
    pub fn of_node(folder: &Path, kind: Kind, node: &str) -> Result<Self, IdentityError> {
        let shared = Shared::read(folder)?;
        if let Some(authority) = &shared.authority {
            let (peer, key) = (shared.peer(kind, node), Box::new(KeyPair::generate()?));
            let source = Source::Authority { authority: Arc::clone(authority), peer, key };
            return shared.identity(source);
        }
        let own = node_folder(folder, node);
        if !is_there(&own.join(CERTIFICATE)) {
            return Err(IdentityError::NotJoined(folder.to_owned(), node.to_owned()));
        }
        let identity = shared.identity(files_of(&own))?;
        let peer = identity.certificate().peer;
        if peer.kind != kind {
            return Err(IdentityError::WrongKind(own, peer.node, peer.kind));
        }
        Ok(identity)
    }

    /// What `protoplex enrol` or `protoplex operator create` has written to a folder.
    pub fn credentials(folder: &Path) -> Result<Self, IdentityError> {
        if [CA, CERTIFICATE, KEY].iter().any(|name| !is_there(&folder.join(name))) {
            return Err(IdentityError::NoCredentials(folder.to_owned()));
        }
        Shared::read(folder)?.identity(files_of(folder))
    }

    /// The same cluster's, of somebody else. Only where the authority's key is.
    pub fn issue(&self, kind: Kind, node: &str) -> Result<Self, IdentityError> {
        let Some(authority) = &self.inner.authority else {
            return Err(IdentityError::NoAuthority(PathBuf::from(CA_KEY)));
        };
        let peer = Peer { kind, node: node.to_owned(), pools: Vec::new(), cluster: self.cluster() };
        let key = Box::new(KeyPair::generate()?);
        let source = Source::Authority { authority: Arc::clone(authority), peer, key };
        let credential = Arc::new(Credential::load(source)?);
        let client = client_config(&self.inner.ca, &credential)?;
        Ok(Self { inner: Arc::new(Inner { credential, client, ..(*self.inner).clone() }) })
    }

    /// Signs a certificate for somebody of this cluster who has the key of this point, with what its kind gets besides.
    /// It lasts for `life`, or as long as those of its kind do. Nothing where the authority's key isn't here.
    #[must_use]
    pub fn sign(
        &self,
        peer: &Peer,
        public_key: &[u8],
        life: Option<Duration>,
    ) -> Option<Result<Credentials, IdentityError>> {
        let authority = self.inner.authority.as_ref()?;
        if let Err(refused) = peer.check_issuable() {
            return Some(Err(refused));
        }
        let usual = if peer.kind == Kind::Operator { OPERATOR_LIFE } else { self.inner.life };
        let life = life.unwrap_or(usual);
        let now = SystemTime::now();
        let expires_at_ms = unix_ms(now + life);
        let keyed = matches!(peer.kind, Kind::Seed | Kind::Fileserver | Kind::Live);
        let inner = &self.inner;
        let given = |given: bool, text: &Option<String>| match (given, text) {
            (true, Some(text)) => text.clone(),
            _ => String::new(),
        };
        let live_key = URL_SAFE_NO_PAD.encode(&inner.live_key);
        Some(authority.issue(peer, public_key, now, life).map_err(Into::into).map(|certificate| {
            Credentials {
                certificate,
                authority: inner.ca.clone(),
                kind: peer.kind.name().to_owned(),
                expires_at_ms,
                secret: given(keyed || peer.kind == Kind::Proxy, &inner.secret),
                live_key: given(keyed || peer.kind == Kind::Operator, &Some(live_key)),
                authority_key: given(peer.kind == Kind::Seed, &inner.authority_key),
            }
        }))
    }

    /// Signs the next certificate for whoever shows this one: for the same name and key. A person's lasts as long as this
    /// one did, so that one which was made short stays so, and no longer than is usual; others have no life of their own.
    /// Nothing where the authority's key isn't here.
    #[must_use]
    pub fn sign_next(&self, shown: &Certificate) -> Option<Result<Credentials, IdentityError>> {
        let life = (shown.peer.kind == Kind::Operator).then(|| shown.life().min(OPERATOR_LIFE));
        self.sign(&shown.peer, &shown.public_key, life)
    }

    /// The same, whose certificates for others last for this long.
    #[must_use]
    pub fn issuing_for(&self, life: Duration) -> Self {
        Self { inner: Arc::new(Inner { life, ..(*self.inner).clone() }) }
    }

    /// A channel to the seed or datastore at `address` ("host:port"), which connects when it is first used and again
    /// whenever it broke, accepts only this cluster's authority, and shows this process's certificate.
    pub fn channel(&self, address: &str) -> Result<TrustedChannel, tonic::transport::Error> {
        let credential = Some(Arc::clone(&self.inner.credential));
        channel(Dial { address: address.to_owned(), tls: Arc::clone(&self.inner.client), credential })
    }

    /// How a node of this cluster serves gRPC, and HTTP/1.1 beside it. Who shows no certificate is let in, and told so.
    pub(crate) fn server_config(&self) -> Result<Arc<ServerConfig>, IdentityError> {
        tls::server_config(&self.inner.ca, &self.inner.credential)
    }

    /// The certificate of the cluster's own authority, as PEM.
    pub fn ca_pem(&self) -> &str {
        &self.inner.ca
    }

    /// SHA-256 of that certificate.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.inner.fingerprint
    }

    /// How the cluster is called in certificates.
    pub fn cluster(&self) -> String {
        certificate::cluster(&self.inner.fingerprint)
    }

    /// The certificate that this process shows now, with its authority's behind it, and its key, as PEM.
    pub fn pem(&self) -> Arc<(String, String)> {
        self.inner.credential.pem()
    }

    /// The same, for TLS.
    pub fn certified(&self) -> Arc<CertifiedKey> {
        self.inner.credential.certified()
    }

    /// What that certificate says.
    pub fn certificate(&self) -> Certificate {
        self.inner.credential.certificate()
    }

    /// Whether it is over.
    pub fn expired(&self) -> Option<IdentityError> {
        self.inner.credential.expired()
    }

    /// Whether it doesn't count yet: a clock was ahead when it was made, or is behind now.
    pub fn not_yet(&self) -> Option<IdentityError> {
        self.inner.credential.not_yet()
    }

    /// When its certificate is to be replaced, a random moment around two thirds of its life, and now where it doesn't
    /// count yet; nothing where this process makes them itself.
    pub(crate) fn renewal_due(&self, earlier: f64, now: SystemTime) -> Option<SystemTime> {
        self.inner.authority.is_none().then(|| credential::renewal(&self.certificate(), earlier, now))
    }

    /// Looks for the next certificate now.
    pub(crate) fn refresh(&self) -> Result<(), IdentityError> {
        self.inner.credential.refresh()
    }

    /// Whether it can issue certificates.
    pub fn has_authority(&self) -> bool {
        self.inner.authority.is_some()
    }

    /// The HS256 key of the JWTs that publish and subscribe at live nodes. Apps have it too, where they publish.
    pub fn live_key(&self) -> &[u8] {
        &self.inner.live_key
    }

    /// Whether that is the cluster's. Kinds that need none aren't told it, and have a random one.
    pub fn knows_live_key(&self) -> bool {
        self.inner.knows_live_key
    }

    /// The HS256 key of the short-lived JWTs by which nodes know each other where there is no TLS between them. Only who
    /// has the cluster's secret has it, and nothing that is signed with it gives the secret away.
    pub fn node_key(&self) -> Vec<u8> {
        self.inner.node_key.clone()
    }
}

/// [`Identity::node_key`] of a node of the data directory whose folder `cluster` this is.
pub fn node_key(folder: &Path) -> Result<Vec<u8>, IdentityError> {
    Ok(derived(&Shared::read(folder)?.secret.unwrap_or_else(secret)))
}

fn derived(secret: &str) -> Vec<u8> {
    format!("protoplex node {secret}").into_bytes()
}

/// What is the same for all of one folder.
struct Shared {
    folder: PathBuf,
    ca: String,
    fingerprint: Fingerprint,
    authority: Option<Arc<Authority>>,
    authority_key: Option<String>,
    secret: Option<String>,
    live_key: Option<Vec<u8>>,
}

impl Shared {
    fn read(folder: &Path) -> Result<Self, IdentityError> {
        if !Identity::is_there(folder) {
            return Err(IdentityError::Absent(folder.to_owned()));
        }
        let ca = read(&folder.join(CA))?;
        let der = authority_der(&ca).ok_or_else(|| no_authority(&folder.join(CA)))?;
        let authority_key = read_if_there(&folder.join(CA_KEY))?;
        let authority = authority_key.as_deref().map(|key| Authority::new(ca.clone(), key)).transpose()?;
        if authority.is_some() {
            authority::migrate(folder)?;
        }
        let decode = |text: String| {
            let path = folder.join(LIVE_KEY);
            let decoded = URL_SAFE_NO_PAD.decode(text.trim());
            decoded.map_err(|_| IdentityError::Malformed(path, "is no key in base64url".to_owned()))
        };
        Ok(Self {
            folder: folder.to_owned(),
            fingerprint: fingerprint(&der),
            ca,
            authority: authority.map(Arc::new),
            authority_key,
            secret: read_if_there(&folder.join(SECRET))?.map(|text| text.trim().to_owned()),
            live_key: read_if_there(&folder.join(LIVE_KEY))?.map(decode).transpose()?,
        })
    }

    fn peer(&self, kind: Kind, node: &str) -> Peer {
        let cluster = certificate::cluster(&self.fingerprint);
        Peer { cluster, kind, node: node.to_owned(), pools: Vec::new() }
    }

    fn identity(self, source: Source) -> Result<Identity, IdentityError> {
        let credential = Arc::new(Credential::load(source)?);
        let of = credential.certificate().peer;
        if of.cluster != certificate::cluster(&self.fingerprint) {
            let reason = format!("is not the authority of the certificate of {}", of.name());
            return Err(IdentityError::Malformed(self.folder.join(CA), reason));
        }
        let client = client_config(&self.ca, &credential)?;
        let node_key = derived(&self.secret.clone().unwrap_or_else(secret));
        let knows_live_key = self.live_key.is_some();
        let live_key = self.live_key.unwrap_or_else(|| secret().into_bytes());
        let Self { ca, fingerprint, authority, authority_key, secret, .. } = self;
        let inner = Inner {
            ca,
            fingerprint,
            authority,
            authority_key,
            credential,
            secret,
            node_key,
            live_key,
            knows_live_key,
            client,
            life: OWN_LIFE,
        };
        Ok(Identity { inner: Arc::new(inner) })
    }
}

/// Where a node that has joined has its certificate, in the cluster's folder.
#[must_use]
pub fn node_folder(folder: &Path, node: &str) -> PathBuf {
    folder.join(NODES).join(node)
}

fn files_of(folder: &Path) -> Source {
    Source::Files { certificate: folder.join(CERTIFICATE), key: folder.join(KEY) }
}

/// Refuses a folder of another cluster than that of this authority. One that has none is nobody's yet.
pub fn check_cluster(folder: &Path, authority: &Fingerprint) -> Result<(), IdentityError> {
    let path = folder.join(CA);
    let Some(pem) = read_if_there(&path)? else { return Ok(()) };
    let der = authority_der(&pem).ok_or_else(|| no_authority(&path))?;
    if fingerprint(&der) == *authority { Ok(()) } else { Err(IdentityError::OtherCluster(folder.to_owned())) }
}

/// Refuses somebody's credentials where a cluster has its authority's key.
pub(crate) fn check_own(folder: &Path) -> Result<(), IdentityError> {
    if folder.join(CA_KEY).exists() { Err(IdentityError::Authority(folder.to_owned())) } else { Ok(()) }
}

/// The key of a folder of credentials, made where there is none: as PEM, and its public half.
pub(crate) fn own_key(folder: &Path) -> Result<(String, Vec<u8>), IdentityError> {
    private_folder(folder)?;
    let path = folder.join(KEY);
    if !path.exists() {
        write_new(&path, &KeyPair::generate()?.serialize_pem())?;
    }
    let pem = read(&path)?;
    let point = KeyPair::from_pem(&pem)?.der_bytes().to_vec();
    Ok((pem, point))
}

/// Writes what a seed has issued: what all of a cluster share to `shared`, and the certificate, last, to `own`. Nothing
/// where there is another cluster's already.
pub fn keep(shared: &Path, own: &Path, issued: &Credentials) -> Result<(), IdentityError> {
    if !issued.authority.is_empty() {
        let malformed =
            || IdentityError::Malformed("what the seed has sent".into(), "has no authority".into());
        check_cluster(shared, &fingerprint(&authority_der(&issued.authority).ok_or_else(malformed)?))?;
    }
    private_folder(shared)?;
    private_folder(own)?;
    let texts = [
        (SECRET, &issued.secret),
        (LIVE_KEY, &issued.live_key),
        (CA, &issued.authority),
        (CA_KEY, &issued.authority_key),
    ];
    for (name, text) in texts.into_iter().filter(|(_, text)| !text.is_empty()) {
        let path = shared.join(name);
        if read_if_there(&path)?.as_ref() != Some(text) {
            write_private(&path, text)?;
        }
    }
    write_private(&own.join(CERTIFICATE), &issued.certificate)
}

/// Makes credentials in a folder that has none, where the authority's key is at hand.
pub fn make_credentials(
    identity: &Identity,
    folder: &Path,
    peer: &Peer,
    life: Duration,
) -> Result<Credentials, IdentityError> {
    if folder.join(CERTIFICATE).exists() {
        return Err(IdentityError::Exists(folder.join(CERTIFICATE)));
    }
    peer.check_issuable()?;
    check_own(folder)?;
    check_cluster(folder, identity.fingerprint())?;
    let (_, point) = own_key(folder)?;
    let issued = identity.sign(peer, &point, Some(life));
    let mut issued = issued.ok_or_else(|| IdentityError::NoAuthority(PathBuf::from("this folder")))??;
    if peer.kind == Kind::Operator {
        issued.secret.clear();
    }
    keep(folder, folder, &issued)?;
    Ok(issued)
}

/// A new id for a process, or for a data directory: see `instance` of [`crate::proto::Member`].
#[must_use]
pub fn new_instance() -> String {
    URL_SAFE_NO_PAD.encode(rand::random::<[u8; INSTANCE_BYTES]>())
}

#[cfg(test)]
mod tests;
