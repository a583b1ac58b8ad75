//! Leases: the rules are [`crate::lease`]'s, and no clock but this process' own is asked.
//!
//! The server's clock may step, and other datastores' are others, so the database keeps no deadline. Each grant and each
//! renewal makes a row that was never there before (`renewals` grows), and a datastore counts its whole time from the
//! moment at which it has first read it. That is never before the holder has asked, so a lease ends nowhere too early;
//! it ends later where a datastore sees it for the first time, after its start above all; so each looks at all of them
//! every [`LOOK_EVERY`], whether or not anybody asks, and is never further behind than that when it is asked. Which of two datastores grants
//! a lease, or ends it for good, the row decides, locked by name from before it is read.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use protoplex_wire::clock::BootTime;
use protoplex_wire::follow::SEED_LEASE;
use protoplex_wire::proto::{PeekLeaseReply, ReleaseLeaseRequest, TakeLeaseReply, TakeLeaseRequest};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, PgExecutor, PgPool, Row};

use super::{Named, PgStore, lock, unsigned};
use crate::lease::{self, Grant, Lease, milliseconds, peeked, reply};
use crate::store::{StoreResult, exact};

/// How often a datastore looks at all leases.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(500);

/// A lease's row.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Kept {
    grant: Grant,
    renewals: i64,
}

/// The rows that were seen last, by name, each with its end.
#[derive(Debug, Default)]
pub(super) struct Sightings(Mutex<HashMap<String, (Kept, Lease)>>);

impl Sightings {
    /// The lease of a row that was read before `now`: its time runs since it was first seen.
    fn see(&self, name: &str, kept: &Kept, now: BootTime) -> Lease {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((before, lease)) = seen.get(name)
            && before == kept
        {
            return lease.clone();
        }
        let lease = Lease::from(kept.grant.clone(), now);
        seen.insert(name.to_owned(), (kept.clone(), lease.clone()));
        lease
    }
}

/// See [`crate::store::Store::take_lease`].
pub(super) async fn take(store: &PgStore, request: &TakeLeaseRequest) -> StoreResult<TakeLeaseReply> {
    lease::check(request)?;
    let mut change = store.change().await?;
    lock(&mut change, Named::Lease, &request.name).await?;
    let kept = find(&mut *change, &request.name).await?;
    // Not before the row was read: it may have been renewed until then.
    let now = BootTime::now();
    let current = kept.as_ref().map(|kept| store.leases.see(&request.name, kept, now));
    let Some(taken) = Lease::take(current.as_ref(), request, now) else {
        return Ok(current.map_or_else(TakeLeaseReply::default, |lease| reply(false, &lease, now)));
    };
    let renewals = kept.map_or(0, |kept| kept.renewals) + 1;
    let granted = Kept { grant: taken.grant, renewals };
    save(&mut change, &request.name, &granted).await?;
    change.commit().await?;
    Ok(reply(true, &store.leases.see(&request.name, &granted, now), now))
}

/// See [`crate::store::Store::peek_lease`].
pub(super) async fn peek(store: &PgStore, name: &str) -> StoreResult<PeekLeaseReply> {
    let Some(kept) = find(&store.pool, name).await? else {
        return Ok(PeekLeaseReply::default());
    };
    let now = BootTime::now();
    let seen = peeked(&store.leases.see(name, &kept, now), now);
    if seen.held || kept.grant.ended { Ok(seen) } else { end(store, name).await }
}

/// Ends a lease that is over for good, unless it was granted meanwhile. Whoever asks may act on the answer, so it must
/// stay true, at every datastore.
async fn end(store: &PgStore, name: &str) -> StoreResult<PeekLeaseReply> {
    let mut change = store.change().await?;
    lock(&mut change, Named::Lease, name).await?;
    let Some(kept) = find(&mut *change, name).await? else {
        return Ok(PeekLeaseReply::default());
    };
    let now = BootTime::now();
    let seen = peeked(&store.leases.see(name, &kept, now), now);
    if !seen.held && !kept.grant.ended {
        let ended = Kept { grant: Grant { ended: true, ..kept.grant }, renewals: kept.renewals };
        save(&mut change, name, &ended).await?;
        change.commit().await?;
    }
    Ok(seen)
}

/// See [`crate::store::Store::release_lease`].
pub(super) async fn release(store: &PgStore, request: &ReleaseLeaseRequest) -> StoreResult<()> {
    let mut change = store.change().await?;
    lock(&mut change, Named::Lease, &request.name).await?;
    let kept = find(&mut *change, &request.name).await?;
    if let Some((kept, ended)) =
        kept.and_then(|kept| lease::released(&kept.grant, request).map(|it| (kept, it)))
    {
        save(&mut change, &request.name, &Kept { grant: ended, renewals: kept.renewals }).await?;
        change.commit().await?;
    }
    Ok(())
}

/// Refuses a change of a seed that leads no more. The row stays as it is until the change is made: whoever takes the lease
/// waits for it, and reads it then.
pub(super) async fn fence(change: &mut PgConnection, term: u64) -> StoreResult<()> {
    if term == 0 {
        return Ok(());
    }
    let newest = sqlx::query_scalar("SELECT term FROM leases WHERE name = $1 FOR SHARE").bind(SEED_LEASE);
    lease::fence(term, newest.fetch_optional(change).await?.map(unsigned))
}

/// Looks at all leases, so that each one's time is counted from its grant.
pub(super) async fn look(pool: &PgPool, sightings: &Sightings) -> StoreResult<()> {
    let all = sqlx::query("SELECT name, holder, term, ttl_ms, ended, renewals FROM leases");
    let named = |row: PgRow| Ok((row.try_get::<String, _>("name")?, kept(row)?));
    let all = all.try_map(named).fetch_all(pool).await?;
    let now = BootTime::now();
    for (name, kept) in all {
        sightings.see(&name, &kept, now);
    }
    Ok(())
}

async fn find(executor: impl PgExecutor<'_>, name: &str) -> StoreResult<Option<Kept>> {
    let query = sqlx::query("SELECT holder, term, ttl_ms, ended, renewals FROM leases WHERE name = $1");
    Ok(query.bind(name).try_map(kept).fetch_optional(executor).await?)
}

async fn save(connection: &mut PgConnection, name: &str, kept: &Kept) -> StoreResult<()> {
    sqlx::query(
        "INSERT INTO leases (name, holder, term, ttl_ms, ended, renewals) VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (name) DO UPDATE SET
             holder = excluded.holder, term = excluded.term, ttl_ms = excluded.ttl_ms, ended = excluded.ended,
             renewals = excluded.renewals",
    )
    .bind(name)
    .bind(&kept.grant.holder)
    .bind(exact("term", kept.grant.term)?)
    .bind(i64::from(milliseconds(kept.grant.ttl)))
    .bind(kept.grant.ended)
    .bind(kept.renewals)
    .execute(connection)
    .await?;
    Ok(())
}

fn kept(row: PgRow) -> Result<Kept, sqlx::Error> {
    Ok(Kept {
        grant: Grant {
            holder: row.try_get("holder")?,
            term: row.try_get("term").map(unsigned)?,
            ttl: Duration::from_millis(row.try_get("ttl_ms").map(unsigned)?),
            ended: row.try_get("ended")?,
        },
        renewals: row.try_get("renewals")?,
    })
}
