//! What a certificate of the cluster says: who its owner is, and until when.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{BACKDATED, IdentityError, LOCAL_OPERATOR};
use crate::proto::Member;

/// What the names in certificates begin with.
const SCHEME: &str = "protoplex://";
/// Stands in the place of a kind before the name of a pool. No kind is called so.
const POOL: &str = "pool";
/// Bytes of the authority's fingerprint that name the cluster.
const CLUSTER_BYTES: usize = 8;

/// Channels are keys of this pool, and uploads that are under way.
pub const LIVE_POOL: &str = "live";
/// Fileservers have no keys: any of them answers.
pub const FILES_POOL: &str = "files";

/// What somebody is, and so what it may do (see [`crate::permissions`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Has the authority's key, and so could be anybody.
    Seed,
    /// All structured data.
    Datastore,
    /// Brings requests to members.
    Proxy,
    /// Files and uploads.
    Fileserver,
    /// Channels.
    Live,
    /// A server of the user's own, or its side-car: a member of the pools that its certificate names.
    Backend,
    /// A person, or a script of one.
    Operator,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Seed,
        Self::Datastore,
        Self::Proxy,
        Self::Fileserver,
        Self::Live,
        Self::Backend,
        Self::Operator,
    ];

    /// As in commands, hellos and certificates.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Seed => "seed",
            Self::Datastore => "datastore",
            Self::Proxy => "proxy",
            Self::Fileserver => "fileserver",
            Self::Live => "live",
            Self::Backend => "backend",
            Self::Operator => "operator",
        }
    }

    /// The pool that nodes of this kind are members of.
    #[must_use]
    pub const fn pool(self) -> Option<&'static str> {
        match self {
            Self::Live => Some(LIVE_POOL),
            Self::Fileserver => Some(FILES_POOL),
            _ => None,
        }
    }

    /// One of it, in a sentence.
    #[must_use]
    pub const fn one(self) -> &'static str {
        match self {
            Self::Seed => "a seed",
            Self::Datastore => "a datastore",
            Self::Proxy => "a proxy",
            Self::Fileserver => "a fileserver",
            Self::Live => "a live node",
            Self::Backend => "a backend",
            Self::Operator => "an operator",
        }
    }

    /// Whether others connect to it as a node of the cluster.
    #[must_use]
    pub const fn is_node(self) -> bool {
        !matches!(self, Self::Backend | Self::Operator)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| {
            let all = Self::ALL.map(Self::name).join(", ");
            format!("{name:?} is no kind: it is one of {all}")
        })
    }
}

/// Who somebody is, as a certificate says, in names like `protoplex://CLUSTER/KIND/NODE` (one, first) and
/// `protoplex://CLUSTER/pool/POOL` (any number).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Of its authority.
    pub cluster: String,
    /// What it is.
    pub kind: Kind,
    /// Its name; of an operator, the person's.
    pub node: String,
    /// Of a backend: the pools that it may be a member of.
    pub pools: Vec<String>,
}

impl Peer {
    /// The names that stand in its certificate.
    pub(crate) fn names(&self) -> Vec<String> {
        let own = format!("{SCHEME}{}/{}/{}", self.cluster, self.kind, self.node);
        let pools = self.pools.iter().map(|pool| format!("{SCHEME}{}/{POOL}/{pool}", self.cluster));
        std::iter::once(own).chain(pools).collect()
    }

    /// Reads those names; `None` where they are no such names.
    fn parse(names: &[&str]) -> Option<Self> {
        let part = |name: &&str| -> Option<(String, String, String)> {
            let mut parts = name.strip_prefix(SCHEME)?.splitn(3, '/').map(str::to_owned);
            Some((parts.next()?, parts.next()?, parts.next()?))
        };
        let (cluster, kind, node) = part(names.first()?)?;
        let pools = names[1..].iter().map(part).map(|pool| {
            let (of, pool, name) = pool?;
            (of == cluster && pool == POOL).then_some(name)
        });
        let pools = pools.collect::<Option<_>>()?;
        Some(Self { kind: kind.parse().ok()?, cluster, node, pools })
    }

    /// How it is called where it is revoked, and in texts: "proxy-1", "operator/ada".
    #[must_use]
    pub fn name(&self) -> String {
        match self.kind {
            Kind::Operator => format!("{}/{}", self.kind, self.node),
            _ => self.node.clone(),
        }
    }

    /// Refuses who can't be told from the operator who has the authority's key.
    ///
    /// # Errors
    /// [`IdentityError::Local`].
    pub(super) fn check_issuable(&self) -> Result<(), IdentityError> {
        let is_local = self.kind == Kind::Operator && self.node == LOCAL_OPERATOR;
        if is_local { Err(IdentityError::Local) } else { Ok(()) }
    }

    /// Whether it may say that it is this node, of this kind. Operators may be side-cars, for any pool.
    ///
    /// # Errors
    /// A sentence that says who it is instead.
    pub fn check_node(&self, node: &str, kind: &str) -> Result<(), String> {
        let is_side_car = self.kind == Kind::Operator && kind == Kind::Backend.name();
        if is_side_car || (self.node == node && self.kind.name() == kind) {
            return Ok(());
        }
        let said = match kind.parse::<Kind>() {
            Ok(kind) => format!(", {}", kind.one()),
            Err(_) if kind.is_empty() => String::new(),
            Err(_) => format!(", a {kind:?}"),
        };
        Err(format!(
            "it says that it is {node:?}{said}, and its certificate that it is {:?}, {}",
            self.node,
            self.kind.one()
        ))
    }

    /// Whether it may be this member: one of its own name or of a part of it ("live-1:0", "rooms-1/127.0.0.1:3000"), in one
    /// of its pools.
    ///
    /// # Errors
    /// A sentence that says what it may be.
    pub fn check_member(&self, member: &Member) -> Result<(), String> {
        if self.kind == Kind::Operator {
            return Ok(());
        }
        let rest = member.id.strip_prefix(&self.node);
        if !rest.is_some_and(|rest| rest.is_empty() || rest.starts_with([':', '/'])) {
            return Err(format!(
                "the member's id is {:?}; by its certificate it is {node:?} or begins with {node}: or {node}/",
                member.id,
                node = self.node
            ));
        }
        let pools: Vec<_> =
            self.kind.pool().into_iter().chain(self.pools.iter().map(String::as_str)).collect();
        if pools.contains(&&*member.pool) {
            return Ok(());
        }
        let why = match &pools[..] {
            [] => format!("{} is a member of none", self.kind.one()),
            pools => format!("its certificate is for {}", pools.join(", ")),
        };
        Err(format!("it may not be a member of pool {:?}: {why}", member.pool))
    }

    /// Whether it may ask for keys of this pool: a backend only of its own.
    ///
    /// # Errors
    /// A sentence that says of which it may.
    pub fn check_pool(&self, pool: &str) -> Result<(), String> {
        if self.kind != Kind::Backend || self.pools.iter().any(|own| own == pool) {
            return Ok(());
        }
        let own = self.pools.join(", ");
        Err(format!("it may not ask about pool {pool:?}: its certificate is for {own}"))
    }
}

/// What is read of a certificate.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// Whose it is.
    pub peer: Peer,
    /// When it was made, or a little before.
    pub not_before: SystemTime,
    /// Its end.
    pub not_after: SystemTime,
    /// P-256, as an uncompressed point.
    pub public_key: Vec<u8>,
}

impl Certificate {
    /// Reads one; `None` where it isn't one of a cluster. Whether its authority is the right one is not looked at.
    #[must_use]
    pub fn parse(der: &[u8]) -> Option<Self> {
        let (_, read) = X509Certificate::from_der(der).ok()?;
        let names = read.subject_alternative_name().ok()??;
        let names: Vec<&str> = names.value.general_names.iter().filter_map(uri).collect();
        Some(Self {
            peer: Peer::parse(&names)?,
            not_before: time(read.validity().not_before.timestamp()),
            not_after: time(read.validity().not_after.timestamp()),
            public_key: read.public_key().subject_public_key.data.to_vec(),
        })
    }

    /// When it was made, by its issuer's clock.
    pub(super) fn issued(&self) -> SystemTime {
        self.not_before + BACKDATED
    }

    /// How long it was made for.
    pub(super) fn life(&self) -> Duration {
        self.not_after.duration_since(self.issued()).unwrap_or_default()
    }
}

fn uri<'a>(name: &GeneralName<'a>) -> Option<&'a str> {
    match name {
        GeneralName::URI(uri) => Some(uri),
        _ => None,
    }
}

fn time(unix_s: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(unix_s).unwrap_or_default())
}

/// SHA-256 of an authority's certificate in DER: by it a token says which authority is meant.
pub type Fingerprint = [u8; 32];

/// The fingerprint of an authority.
#[must_use]
pub fn fingerprint(authority: &[u8]) -> Fingerprint {
    Sha256::digest(authority).into()
}

/// How the cluster of an authority is called.
pub(crate) fn cluster(fingerprint: &Fingerprint) -> String {
    fingerprint[..CLUSTER_BYTES].iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(kind: Kind, node: &str, pools: &[&str]) -> Peer {
        let pools = pools.iter().map(|pool| (*pool).to_owned()).collect();
        Peer { cluster: "c".to_owned(), kind, node: node.to_owned(), pools }
    }

    #[test]
    fn names_are_read_back() {
        for one in [peer(Kind::Proxy, "proxy-1", &[]), peer(Kind::Backend, "b/c", &["rooms", "chat"])] {
            let names = one.names();
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            assert_eq!(Peer::parse(&names), Some(one));
        }
        for none in [
            &[][..],
            &["protoplex://c/proxy"],
            &["https://c/proxy/a"],
            &["protoplex://c/king/a"],
            &["protoplex://c/pool/rooms"],
            &["protoplex://c/backend/a", "protoplex://d/pool/rooms"],
            &["protoplex://c/backend/a", "protoplex://c/proxy/b"],
        ] {
            assert_eq!(Peer::parse(none), None, "{none:?}");
        }
    }

    #[test]
    fn nobody_is_what_its_certificate_does_not_say() {
        let live = peer(Kind::Live, "live-1", &[]);
        assert!(live.check_node("live-1", "live").is_ok());
        let why = live.check_node("live-2", "live").unwrap_err();
        assert_eq!(
            why,
            "it says that it is \"live-2\", a live node, and its certificate that it is \"live-1\", a live node"
        );
        assert!(live.check_node("live-1", "proxy").is_err());
        let member = |id: &str, pool: &str| Member { id: id.into(), pool: pool.into(), ..Default::default() };
        assert!(live.check_member(&member("live-1:0", "live")).is_ok());
        assert!(live.check_member(&member("live-10", "live")).is_err());
        assert!(live.check_member(&member("live-1:0", "rooms")).is_err());
        assert!(peer(Kind::Fileserver, "files-1", &[]).check_member(&member("files-1:0", "files")).is_ok());
        for kind in [Kind::Proxy, Kind::Seed, Kind::Datastore] {
            let why = peer(kind, "n", &[]).check_member(&member("n:0", "files")).unwrap_err();
            assert!(why.contains("is a member of none"), "{why}");
        }
        assert!(live.check_pool("rooms").is_ok(), "who publishes asks for other nodes' keys");
        let backend = peer(Kind::Backend, "rooms-1", &["rooms"]);
        assert!(backend.check_pool("rooms").is_ok());
        assert!(backend.check_pool("live").unwrap_err().contains("is for rooms"));
        assert!(backend.check_member(&member("rooms-1", "rooms")).is_ok());
        assert!(backend.check_member(&member("rooms-1/10.0.0.1:80", "rooms")).is_ok());
        let why = backend.check_member(&member("rooms-1", "chat")).unwrap_err();
        assert_eq!(why, "it may not be a member of pool \"chat\": its certificate is for rooms");
        let ada = peer(Kind::Operator, "ada", &[]);
        assert!(ada.check_node("join-1", "backend").is_ok() && ada.check_node("ada", "proxy").is_err());
        assert_eq!((ada.name().as_str(), live.name().as_str()), ("operator/ada", "live-1"));
    }
}
