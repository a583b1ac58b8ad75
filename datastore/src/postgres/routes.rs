//! Members, and what a seed loads of all that when it starts.

use protoplex_wire::proto::{Build, LoadRoutesReply, Member, PutMemberRequest, RemoveMemberRequest};
use sqlx::postgres::PgRow;
use sqlx::{PgPool, Row};

use super::{PgStore, handlers, leases, unsigned};
use crate::store::{StoreError, StoreResult, exact};

/// See [`crate::store::Store::put_member`].
pub(super) async fn put_member(store: &PgStore, request: &PutMemberRequest) -> StoreResult<()> {
    let Some(member) =
        request.member.as_ref().filter(|member| !member.pool.is_empty() && !member.id.is_empty())
    else {
        return Err(StoreError::Invalid("a member needs a pool and an id".to_owned()));
    };
    let mut change = store.change().await?;
    leases::fence(&mut change, request.term).await?;
    sqlx::query(
        "INSERT INTO members (pool, id, address, zone, instance, revision) VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (pool, id) DO UPDATE SET
             address = excluded.address, zone = excluded.zone, instance = excluded.instance,
             revision = excluded.revision
         WHERE members.revision <= excluded.revision",
    )
    .bind(&member.pool)
    .bind(&member.id)
    .bind(&member.address)
    .bind(&member.zone)
    .bind(&member.instance)
    .bind(exact("revision", request.revision)?)
    .execute(&mut *change)
    .await?;
    Ok(change.commit().await?)
}

/// See [`crate::store::Store::remove_member`].
pub(super) async fn remove_member(store: &PgStore, request: &RemoveMemberRequest) -> StoreResult<()> {
    let mut change = store.change().await?;
    leases::fence(&mut change, request.term).await?;
    sqlx::query("DELETE FROM members WHERE pool = $1 AND id = $2 AND revision <= $3")
        .bind(&request.pool)
        .bind(&request.id)
        .bind(exact("revision", request.revision)?)
        .execute(&mut *change)
        .await?;
    Ok(change.commit().await?)
}

/// See [`crate::store::Store::load_routes`].
pub(super) async fn load(pool: &PgPool) -> StoreResult<LoadRoutesReply> {
    // All of its statements read one state.
    let mut snapshot = pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    let table_version: i64 =
        sqlx::query_scalar("SELECT version FROM table_version").fetch_one(&mut *snapshot).await?;
    let handlers = handlers::current(&mut snapshot).await?;
    let builds = sqlx::query(
        "SELECT DISTINCT ON (host) host, version, digest, assets, bytes, deployed_at_ms
         FROM builds WHERE complete ORDER BY host, version DESC",
    )
    .try_map(|row: PgRow| build(&row))
    .fetch_all(&mut *snapshot)
    .await?;
    let members = sqlx::query("SELECT pool, id, address, zone, instance FROM members ORDER BY pool, id")
        .try_map(member)
        .fetch_all(&mut *snapshot)
        .await?;
    snapshot.commit().await?;
    Ok(LoadRoutesReply { table_version: unsigned(table_version), handlers, builds, members })
}

fn member(row: PgRow) -> Result<Member, sqlx::Error> {
    Ok(Member {
        id: row.try_get("id")?,
        pool: row.try_get("pool")?,
        address: row.try_get("address")?,
        zone: row.try_get("zone")?,
        instance: row.try_get("instance")?,
    })
}

pub(super) fn build(row: &PgRow) -> Result<Build, sqlx::Error> {
    let assets: i64 = row.try_get("assets")?;
    Ok(Build {
        host: row.try_get("host")?,
        version: row.try_get("version").map(unsigned)?,
        digest: row.try_get("digest")?,
        assets: u32::try_from(assets).unwrap_or_default(),
        bytes: row.try_get("bytes").map(unsigned)?,
        deployed_at_ms: row.try_get("deployed_at_ms")?,
    })
}
