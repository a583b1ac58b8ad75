//! How this node shows live nodes that it may: short-lived tokens (RFC 7519), each for one purpose. They pass over plain
//! HTTP, so none of them is worth much to who sees it.

use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::errors::Error;
use jsonwebtoken::{EncodingKey, Header, encode};
use protoplex_wire::identity::{Identity, REGISTRATIONS_AUDIENCE};
use serde::Serialize;

/// How long a token is good: enough for clocks that differ.
const LIFE: Duration = Duration::from_secs(300);

/// The keys of a node.
pub(crate) struct Credentials {
    live: EncodingKey,
    node: EncodingKey,
}

/// The claims of a Mercure publisher (Mercure section 6).
#[derive(Serialize)]
struct Publisher<'a> {
    mercure: Mercure<'a>,
    exp: u64,
}

#[derive(Serialize)]
struct Mercure<'a> {
    publish: [&'a str; 1],
}

/// The claims of a node.
#[derive(Serialize)]
struct Node {
    aud: &'static str,
    exp: u64,
}

impl Credentials {
    pub(crate) fn new(identity: &Identity) -> Rc<Self> {
        let live = EncodingKey::from_secret(identity.live_key());
        Rc::new(Self { live, node: EncodingKey::from_secret(&identity.node_key()) })
    }

    /// Publishes to one topic: the value of an `Authorization` header, as the next.
    pub(crate) fn publisher(&self, topic: &str) -> Result<String, Error> {
        bearer(&Publisher { mercure: Mercure { publish: [topic] }, exp: expiry() }, &self.live)
    }

    /// Registers and invalidates.
    pub(crate) fn node(&self) -> Result<String, Error> {
        bearer(&Node { aud: REGISTRATIONS_AUDIENCE, exp: expiry() }, &self.node)
    }
}

fn bearer(claims: &impl Serialize, key: &EncodingKey) -> Result<String, Error> {
    Ok(format!("Bearer {}", encode(&Header::default(), claims, key)?))
}

fn expiry() -> u64 {
    (SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + LIFE).as_secs()
}
