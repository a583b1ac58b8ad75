//! App builds. Assets are written one by one as they come, and seen once the build is complete.
//!
//! So neither memory nor the writer is held while a slow client sends: each asset is a short transaction of its own, and
//! only the last one, which makes the build complete and removes the oldest, decides.

use futures_util::{Stream, StreamExt};
use protoplex_wire::clock::unix_ms_now;
use protoplex_wire::proto::{Asset, Build};
use sqlx::{Row, SqlitePool};

use super::{SqliteStore, events, leases, routes};
use crate::announce;
use crate::builds::{KEPT_BUILDS, Manifest, Sum};
use crate::scope;
use crate::store::{StoreError, StoreResult, exact, integer};

/// See [`crate::store::Store::put_build`].
pub(super) async fn put(
    store: &SqliteStore,
    host: &str,
    term: u64,
    assets: impl Stream<Item = StoreResult<Asset>> + Send + Unpin,
) -> StoreResult<Build> {
    let host = scope::parse_pattern(host)?;
    let _deploying = store.deploying.lock().await;
    // What a deployment left whose call was dropped.
    drop_unfinished(&store.writer).await?;
    let build = receive(store, &host, term, assets).await;
    if build.is_err() {
        drop_unfinished(&store.writer).await?;
    }
    build
}

/// See [`crate::store::Store::next_asset`].
pub(super) async fn next_asset(readers: &SqlitePool, version: u64, path: &str) -> StoreResult<Option<Asset>> {
    let row = sqlx::query(
        "SELECT path, content_type, identity, gzip, brotli
         FROM builds LEFT JOIN assets ON build = version AND path > ?
         WHERE version = ? AND complete = 1
         ORDER BY path LIMIT 1",
    )
    .bind(path)
    .bind(exact("version", version)?)
    .fetch_optional(readers)
    .await?
    .ok_or_else(|| StoreError::NotFound(format!("build {version} is not kept")))?;
    let Some(path) = row.try_get("path")? else {
        return Ok(None);
    };
    Ok(Some(Asset {
        path,
        content_type: row.try_get("content_type")?,
        identity: row.try_get("identity")?,
        gzip: row.try_get("gzip")?,
        brotli: row.try_get("brotli")?,
    }))
}

/// Removes what was not completed. Only while no build comes in.
pub(super) async fn drop_unfinished(writer: &SqlitePool) -> Result<(), sqlx::Error> {
    sqlx::query("DELETE FROM builds WHERE complete = 0").execute(writer).await?;
    Ok(())
}

async fn receive(
    store: &SqliteStore,
    host: &str,
    term: u64,
    mut assets: impl Stream<Item = StoreResult<Asset>> + Send + Unpin,
) -> StoreResult<Build> {
    let version: i64 = sqlx::query_scalar("INSERT INTO builds (host) VALUES (?) RETURNING version")
        .bind(host)
        .fetch_one(&store.writer)
        .await?;
    let mut manifest = Manifest::default();
    while let Some(asset) = assets.next().await {
        let asset = asset?;
        manifest.add(&asset)?;
        sqlx::query(
            "INSERT INTO assets (build, path, content_type, identity, gzip, brotli) VALUES (?, ?, ?, ?, ?, ?)",
        )
        .bind(version)
        .bind(asset.path)
        .bind(asset.content_type)
        .bind(asset.identity)
        .bind(asset.gzip)
        .bind(asset.brotli)
        .execute(&store.writer)
        .await?;
    }
    publish(store, host, term, version, &manifest.finish()?).await
}

/// Makes the build the current one of its host, and removes those that are too old to be kept.
async fn publish(store: &SqliteStore, host: &str, term: u64, version: i64, sum: &Sum) -> StoreResult<Build> {
    let now_ms = unix_ms_now();
    let mut change = store.change().await?;
    leases::fence(&mut change, term).await?;
    let row = sqlx::query(
        "UPDATE builds SET complete = 1, digest = ?, assets = ?, bytes = ?, deployed_at_ms = ? WHERE version = ?
         RETURNING host, version, digest, assets, bytes, deployed_at_ms",
    )
    .bind(&sum.digest)
    .bind(sum.assets)
    .bind(integer(sum.bytes))
    .bind(now_ms)
    .bind(version)
    .fetch_one(&mut *change)
    .await?;
    sqlx::query(
        "DELETE FROM builds WHERE host = ?1 AND version NOT IN
             (SELECT version FROM builds WHERE host = ?1 ORDER BY version DESC LIMIT ?2)",
    )
    .bind(host)
    .bind(KEPT_BUILDS)
    .execute(&mut *change)
    .await?;
    let build = routes::build(&row)?;
    events::postpone(&mut change, &announce::build_deployed(&build), now_ms).await?;
    change.commit().await?;
    Ok(build)
}
