//! Registrations with the live nodes: who caches an answer under a name is told when the answer is no longer so.
//!
//! Names are spread over a fixed number of shards, each a key that one live child owns, with one connection to that child
//! ([`shard`]). A registration stands until its name is invalidated or its connection is lost, to whatever cause; what
//! was cached under it counts no more from then on, but for as long as nobody can say better. So there is nothing to clean
//! up: a cache asks, and forgets.

mod shard;

use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{Either, select};
use http::header::{AUTHORIZATION, CONNECTION, HOST, UPGRADE};
use http::{HeaderName, StatusCode};
use protoplex_http::upgrade::{Upgraded, of_answer};
use protoplex_http::upstream::{Pool, SendError};
use protoplex_http::{Body, Request};
use protoplex_runtime::drain::{Drain, Tasks};
use protoplex_wire::follow::{Link, LocateError};
use protoplex_wire::identity::LIVE_POOL;
use protoplex_wire::owners::Owner;
use tokio::time::{sleep, timeout};

use shard::{Asked, Shard};
pub(crate) use shard::{Promise, Registration};

use crate::credential::Credentials;

/// Where a live child takes registrations.
const PATH: &str = "/.well-known/protoplex/registrations";
const PROTOCOL: &str = "protoplex-registrations";
const PROTOPLEX_KEY: HeaderName = HeaderName::from_static("protoplex-key");
const PROTOPLEX_EPOCH: HeaderName = HeaderName::from_static("protoplex-epoch");

/// Few enough that a scan of random names makes no keys at the seed; every cluster's nodes must agree on it.
const SHARDS: u64 = 64;
/// How long a request waits to be registered. Without it nothing is cached, that is all.
const REGISTER_TIMEOUT: Duration = Duration::from_millis(500);
/// How often a connection is checked to lead to the owner still.
const OWNER_INTERVAL: Duration = Duration::from_secs(1);

/// The key of the shard that a name belongs to.
pub(crate) fn shard(name: &str) -> String {
    key(number(name))
}

fn key(number: usize) -> String {
    format!("invalidate/{number}")
}

/// FNV-1a: it has to be the same in every build of every node.
fn number(name: &str) -> usize {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    usize::try_from(hash % SHARDS).unwrap_or_default()
}

/// One child's registrations.
pub(crate) struct Registrations {
    way: Way,
    shards: Vec<Rc<Shard>>,
    tasks: Tasks,
    drain: Drain,
}

/// How owners are found and reached.
#[derive(Clone)]
struct Way {
    link: Link,
    pool: Rc<Pool>,
    credentials: Rc<Credentials>,
}

/// Why there is no connection to a shard's owner.
#[derive(Debug, thiserror::Error)]
enum RegistrationError {
    #[error("no owner: {0}")]
    Locate(#[from] LocateError),
    #[error("live can't be reached: {0}")]
    Send(#[from] SendError),
    #[error("live answered {0}")]
    Status(StatusCode),
    #[error("the token can't be signed: {0}")]
    Sign(#[from] jsonwebtoken::errors::Error),
    #[error("the request can't be made: {0}")]
    Request(#[from] http::Error),
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    #[error("the shard has another owner")]
    Moved,
}

impl Registrations {
    pub(crate) fn new(
        link: Link,
        pool: Rc<Pool>,
        credentials: Rc<Credentials>,
        tasks: Tasks,
        drain: Drain,
    ) -> Rc<Self> {
        let shards = (0..SHARDS).map(|_| Rc::default()).collect();
        Rc::new(Self { way: Way { link, pool, credentials }, shards, tasks, drain })
    }

    /// Registers a name. To be called before the look-up whose answer is to be cached; none where nothing may be.
    pub(crate) async fn register(&self, name: &str) -> Option<Registration> {
        let number = number(name);
        let shard = self.shards.get(number)?;
        match shard.register(name) {
            Asked::Standing(registration) => Some(registration),
            Asked::Away => None,
            Asked::Waiting { answer, unconnected } => {
                if unconnected {
                    let hold = hold(Rc::clone(shard), self.way.clone(), key(number), self.drain.clone());
                    self.tasks.spawn(hold);
                }
                timeout(REGISTER_TIMEOUT, answer).await.ok()?.ok()
            }
        }
    }
}

/// Connects a shard and stays with it until the connection is lost.
async fn hold(shard: Rc<Shard>, way: Way, key: String, drain: Drain) {
    let talk = async {
        let (owner, stream) = way.connect(&key).await?;
        let talk = pin!(shard.attend(stream));
        match select(talk, pin!(way.moved(&key, &owner))).await {
            Either::Left((ended, _)) => Ok(ended?),
            Either::Right(((), _)) => Err(RegistrationError::Moved),
        }
    };
    match select(pin!(talk), pin!(drain.started())).await {
        Either::Left((Err(error), _)) => tracing::debug!(key, %error, "registrations are lost"),
        Either::Left((Ok(()), _)) => {
            tracing::debug!(key, "registrations are lost: live closed the connection")
        }
        Either::Right(_) => {}
    }
    shard.lose();
}

impl Way {
    /// Connects to the owner of a key; where it is the owner no more, once more to the new one.
    async fn connect(&self, key: &str) -> Result<(Owner, Upgraded), RegistrationError> {
        match self.connect_once(key).await {
            Err(RegistrationError::Status(StatusCode::MISDIRECTED_REQUEST)) => self.connect_once(key).await,
            connected => connected,
        }
    }

    async fn connect_once(&self, key: &str) -> Result<(Owner, Upgraded), RegistrationError> {
        let owner = self.link.locate(LIVE_POOL, key).await?;
        let request: Request = http::Request::get(PATH)
            .header(HOST, owner.address.to_string())
            .header(AUTHORIZATION, self.credentials.node()?)
            .header(CONNECTION, "upgrade")
            .header(UPGRADE, PROTOCOL)
            .header(PROTOPLEX_KEY, key)
            .header(PROTOPLEX_EPOCH, owner.epoch)
            .body(Body::empty())?;
        let answer = self.pool.send(owner.address, request).await?;
        let status = answer.status();
        if status == StatusCode::MISDIRECTED_REQUEST {
            self.link.refute(LIVE_POOL, key, owner.epoch);
        }
        let stream = of_answer(answer).ok_or(RegistrationError::Status(status))?;
        Ok((owner, stream))
    }

    /// Returns when the key has another owner, or none.
    async fn moved(&self, key: &str, owner: &Owner) {
        loop {
            sleep(OWNER_INTERVAL).await;
            if !matches!(self.link.locate(LIVE_POOL, key).await, Ok(now) if now.epoch == owner.epoch) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_spread_over_the_shards_and_keep_theirs() {
        assert_eq!(shard("site:example.com:/"), shard("site:example.com:/"));
        // The published vector of FNV-1a for "foobar", 0x85944171f73967e8.
        assert_eq!(shard("foobar"), "invalidate/40");
        let hit: std::collections::BTreeSet<_> = (0..2_000).map(|n| shard(&format!("file:{n}"))).collect();
        assert_eq!(hit.len(), 64);
    }
}
