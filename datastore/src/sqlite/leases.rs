//! Leases: the rules are [`crate::lease`]'s; what they decide is on the disk before anybody is told.

use std::collections::HashMap;
use std::time::Duration;

use protoplex_wire::clock::BootTime;
use protoplex_wire::follow::SEED_LEASE;
use protoplex_wire::proto::{PeekLeaseReply, ReleaseLeaseRequest, TakeLeaseReply, TakeLeaseRequest};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection, SqlitePool};

use super::SqliteStore;
use crate::lease::{self, Grant, Lease, milliseconds, peeked, reply};
use crate::store::{StoreError, StoreResult, exact};

/// The leases of an earlier process: all that were not ended for good are held for one whole life from now.
pub(super) async fn load(readers: &SqlitePool, now: BootTime) -> Result<HashMap<String, Lease>, sqlx::Error> {
    let leases = sqlx::query("SELECT name, holder, term, ttl_ms, ended FROM leases")
        .try_map(grant)
        .fetch_all(readers)
        .await?;
    Ok(leases.into_iter().map(|(name, grant)| (name, Lease::from(grant, now))).collect())
}

/// See [`crate::store::Store::take_lease`].
pub(super) async fn take(store: &SqliteStore, request: &TakeLeaseRequest) -> StoreResult<TakeLeaseReply> {
    lease::check(request)?;
    let mut leases = store.leases.lock().await;
    let now = BootTime::now();
    let current = leases.get(&request.name);
    let Some(taken) = Lease::take(current, request, now) else {
        return Ok(current.map_or_else(TakeLeaseReply::default, |lease| reply(false, lease, now)));
    };
    // A renewal moves only the end, which isn't kept: it costs no write.
    if current.is_none_or(|lease| lease.grant != taken.grant) {
        save(&store.writer, &request.name, &taken.grant).await?;
    }
    let reply = reply(true, &taken, now);
    leases.insert(request.name.clone(), taken);
    Ok(reply)
}

/// See [`crate::store::Store::peek_lease`].
pub(super) async fn peek(store: &SqliteStore, name: &str) -> StoreResult<PeekLeaseReply> {
    let mut leases = store.leases.lock().await;
    let Some(lease) = leases.get_mut(name) else {
        return Ok(PeekLeaseReply::default());
    };
    let seen = peeked(lease, BootTime::now());
    if !seen.held && !lease.grant.ended {
        // Whoever asks may act on the answer, so it must stay true. On a full disk it does for as long as this process lives:
        // beyond that its holder would have to take the row up again after its own clock has told it not to.
        let ended = Grant { ended: true, ..lease.grant.clone() };
        match save(&store.writer, name, &ended).await {
            Ok(()) | Err(StoreError::Full) => lease.grant = ended,
            Err(error) => return Err(error),
        }
    }
    Ok(seen)
}

/// See [`crate::store::Store::release_lease`].
pub(super) async fn release(store: &SqliteStore, request: &ReleaseLeaseRequest) -> StoreResult<()> {
    let mut leases = store.leases.lock().await;
    let Some(lease) = leases.get_mut(&request.name) else { return Ok(()) };
    if let Some(ended) = lease::released(&lease.grant, request) {
        save(&store.writer, &request.name, &ended).await?;
        lease.grant = ended;
    }
    Ok(())
}

/// Refuses a change of a seed that leads no more. The one writer makes it and the next grant one after the other.
pub(super) async fn fence(change: &mut SqliteConnection, term: u64) -> StoreResult<()> {
    let newest = sqlx::query_scalar("SELECT term FROM leases WHERE name = ?").bind(SEED_LEASE);
    lease::fence(term, newest.fetch_optional(change).await?)
}

async fn save(writer: &SqlitePool, name: &str, grant: &Grant) -> StoreResult<()> {
    sqlx::query(
        "INSERT INTO leases (name, holder, term, ttl_ms, ended) VALUES (?, ?, ?, ?, ?)
         ON CONFLICT (name) DO UPDATE SET
             holder = excluded.holder, term = excluded.term, ttl_ms = excluded.ttl_ms, ended = excluded.ended",
    )
    .bind(name)
    .bind(&grant.holder)
    .bind(exact("term", grant.term)?)
    .bind(milliseconds(grant.ttl))
    .bind(grant.ended)
    .execute(writer)
    .await?;
    Ok(())
}

fn grant(row: SqliteRow) -> Result<(String, Grant), sqlx::Error> {
    let grant = Grant {
        holder: row.try_get("holder")?,
        term: row.try_get("term")?,
        ttl: Duration::from_millis(row.try_get("ttl_ms")?),
        ended: row.try_get("ended")?,
    };
    Ok((row.try_get("name")?, grant))
}
