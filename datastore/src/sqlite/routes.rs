//! Members, and what a seed loads of all that when it starts.

use protoplex_wire::proto::{Build, LoadRoutesReply, Member, PutMemberRequest, RemoveMemberRequest};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqlitePool};

use super::{SqliteStore, handlers, leases};
use crate::store::{StoreError, StoreResult, exact};

/// See [`crate::store::Store::put_member`].
pub(super) async fn put_member(store: &SqliteStore, request: &PutMemberRequest) -> StoreResult<()> {
    let Some(member) =
        request.member.as_ref().filter(|member| !member.pool.is_empty() && !member.id.is_empty())
    else {
        return Err(StoreError::Invalid("a member needs a pool and an id".to_owned()));
    };
    let mut change = store.change().await?;
    leases::fence(&mut change, request.term).await?;
    sqlx::query(
        "INSERT INTO members (pool, id, address, zone, instance, revision) VALUES (?, ?, ?, ?, ?, ?)
         ON CONFLICT (pool, id) DO UPDATE SET
             address = excluded.address, zone = excluded.zone, instance = excluded.instance,
             revision = excluded.revision
         WHERE revision <= excluded.revision",
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
pub(super) async fn remove_member(store: &SqliteStore, request: &RemoveMemberRequest) -> StoreResult<()> {
    let mut change = store.change().await?;
    leases::fence(&mut change, request.term).await?;
    sqlx::query("DELETE FROM members WHERE pool = ? AND id = ? AND revision <= ?")
        .bind(&request.pool)
        .bind(&request.id)
        .bind(exact("revision", request.revision)?)
        .execute(&mut *change)
        .await?;
    Ok(change.commit().await?)
}

/// See [`crate::store::Store::load_routes`].
pub(super) async fn load(readers: &SqlitePool) -> StoreResult<LoadRoutesReply> {
    // One transaction reads one state.
    let mut snapshot = readers.begin().await?;
    let table_version =
        sqlx::query_scalar("SELECT version FROM table_version").fetch_one(&mut *snapshot).await?;
    let handlers = handlers::current(&mut snapshot).await?;
    let builds = sqlx::query(
        "SELECT host, max(version) AS version, digest, assets, bytes, deployed_at_ms
         FROM builds WHERE complete = 1 GROUP BY host ORDER BY host",
    )
    .try_map(|row: SqliteRow| build(&row))
    .fetch_all(&mut *snapshot)
    .await?;
    let members = sqlx::query("SELECT pool, id, address, zone, instance FROM members ORDER BY pool, id")
        .try_map(member)
        .fetch_all(&mut *snapshot)
        .await?;
    Ok(LoadRoutesReply { table_version, handlers, builds, members })
}

fn member(row: SqliteRow) -> Result<Member, sqlx::Error> {
    Ok(Member {
        id: row.try_get("id")?,
        pool: row.try_get("pool")?,
        address: row.try_get("address")?,
        zone: row.try_get("zone")?,
        instance: row.try_get("instance")?,
    })
}

pub(super) fn build(row: &SqliteRow) -> Result<Build, sqlx::Error> {
    Ok(Build {
        host: row.try_get("host")?,
        version: row.try_get("version")?,
        digest: row.try_get("digest")?,
        assets: row.try_get("assets")?,
        bytes: row.try_get("bytes")?,
        deployed_at_ms: row.try_get("deployed_at_ms")?,
    })
}
