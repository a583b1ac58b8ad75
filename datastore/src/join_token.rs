//! Join tokens: what may be kept as one, and whom one lets join.

use protoplex_wire::identity::Kind;
use protoplex_wire::pattern::check_name;
use protoplex_wire::proto::{JoinRefusal, JoinToken, RedeemJoinTokenReply, RedeemJoinTokenRequest};

use crate::store::{StoreError, StoreResult};

/// Tokens that are kept at once.
pub(crate) const MAX_TOKENS: i64 = 10_000;
/// A token is forgotten so long after its end: until then lists tell why it opens nothing.
pub(crate) const REMEMBERED_MS: i64 = 7 * 24 * 3600 * 1000;
/// Pools of one token.
const MAX_POOLS: usize = 32;
/// Names and ids.
const MAX_TEXT_BYTES: usize = 255;
/// Between the names of pools in a database; no name has one.
const BETWEEN: char = ' ';

/// Refuses what no token can be.
pub(crate) fn check(token: &JoinToken) -> StoreResult<()> {
    let invalid = |why: String| Err(StoreError::Invalid(why));
    let kind: Kind = token.kind.parse().map_err(StoreError::Invalid)?;
    if token.id.is_empty() || token.id.len() > MAX_TEXT_BYTES || token.secret_sha256.len() != 32 {
        return invalid("a join token has an id and a digest of 32 bytes".to_owned());
    }
    for pool in &token.pools {
        check_name("pool", pool).map_err(|error| StoreError::Invalid(error.to_string()))?;
    }
    match (kind, token.pools.len()) {
        (Kind::Backend, 0) => invalid("a backend joins pools: name at least one".to_owned()),
        (Kind::Backend, many) if many > MAX_POOLS => {
            invalid(format!("{many} pools are more than the {MAX_POOLS} that a token may have"))
        }
        (kind, many) if kind != Kind::Backend && many > 0 => {
            invalid(format!("{} is a member of its own pools: name none", kind.one()))
        }
        _ => Ok(()),
    }
}

/// Refuses what is no name to join with, or to revoke.
pub(crate) fn check_subject(name: &str) -> StoreResult<()> {
    if name.is_empty() || name.len() > MAX_TEXT_BYTES || name.chars().any(char::is_control) {
        return Err(StoreError::Invalid(format!("{name:?} is no name")));
    }
    Ok(())
}

/// Refuses what is no digest of a key. There is none from a seed of an earlier version.
pub(crate) fn check_key(key_sha256: &[u8]) -> StoreResult<()> {
    if matches!(key_sha256.len(), 0 | 32) {
        return Ok(());
    }
    Err(StoreError::Invalid("the digest of a key has 32 bytes".to_owned()))
}

/// How a database keeps the pools.
pub(crate) fn joined(pools: &[String]) -> String {
    pools.join(&BETWEEN.to_string())
}

/// The same, read.
pub(crate) fn parted(pools: &str) -> Vec<String> {
    pools.split(BETWEEN).filter(|pool| !pool.is_empty()).map(ToOwned::to_owned).collect()
}

/// Whether a token lets this name join, that has (`again`) or hasn't joined with it before, with the same key: whoever
/// brings another key under that name may be anybody who has seen the token. A name that a token has let in as another
/// kind (`known_as`) stays that kind's, be its owner here or away. The order of the checks is the protocol's.
pub(crate) fn judge(
    kept: Option<&JoinToken>,
    again: bool,
    known_as: Option<String>,
    request: &RedeemJoinTokenRequest,
    now_ms: i64,
) -> RedeemJoinTokenReply {
    let refused =
        |refusal: JoinRefusal| RedeemJoinTokenReply { refusal: refusal.into(), ..Default::default() };
    let proven = |kept: &&JoinToken| constant_time_eq(&kept.secret_sha256, &request.secret_sha256);
    let Some(kept) = kept.filter(proven) else { return refused(JoinRefusal::Unknown) };
    let refusal = if kept.revoked {
        JoinRefusal::Revoked
    } else if now_ms >= kept.expires_at_ms {
        JoinRefusal::Expired
    } else if request.kind != kept.kind {
        JoinRefusal::WrongKind
    } else if kept.uses != 0 && kept.uses_taken >= kept.uses && !again {
        JoinRefusal::UsedUp
    } else if known_as.is_some() && !again {
        JoinRefusal::OtherKind
    } else {
        JoinRefusal::None
    };
    RedeemJoinTokenReply {
        refusal: refusal.into(),
        kind: kept.kind.clone(),
        pools: kept.pools.clone(),
        expires_at_ms: kept.expires_at_ms,
        uses: kept.uses,
        known_as: known_as.filter(|_| refusal == JoinRefusal::OtherKind).unwrap_or_default(),
    }
}

/// Finds the kind, other than the second parameter, as which a token has let in the name of the first one.
pub(crate) const KNOWN_AS: &str = "SELECT kind FROM join_token_uses JOIN join_tokens ON id = token
    WHERE node = $1 AND kind <> $2 LIMIT 1";

/// Compares without telling by its duration where two digests differ.
fn constant_time_eq(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (x, y)| difference | (x ^ y)) == 0
}
