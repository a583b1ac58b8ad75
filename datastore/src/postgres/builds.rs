//! App builds. Assets are written one by one as they come, and seen once the build is complete.
//!
//! So no memory is held while a slow client sends: each asset is a short transaction of its own, and only the last one,
//! which makes the build complete and removes the oldest, decides. What is held all the time is the name of the
//! deployment, over all datastores of the database, by a transaction that does nothing else: its connection's end frees
//! it, whatever became of the process. Where that connection is lost first, another deployment may begin and remove
//! this one's assets, which then fails, for its build is gone.

use futures_util::{Stream, StreamExt};
use protoplex_wire::clock::unix_ms_now;
use protoplex_wire::proto::{Asset, Build};
use sqlx::{PgPool, Postgres, Row, Transaction};

use super::files::path_digest;
use super::{Named, PgStore, events, leases, lock, routes};
use crate::announce;
use crate::builds::{KEPT_BUILDS, Manifest, Sum};
use crate::scope;
use crate::store::{StoreError, StoreResult, exact, integer};

/// See [`crate::store::Store::put_build`].
pub(super) async fn put(
    store: &PgStore,
    host: &str,
    term: u64,
    assets: impl Stream<Item = StoreResult<Asset>> + Send + Unpin,
) -> StoreResult<Build> {
    let host = scope::parse_pattern(host)?;
    let _deploying = store.deploying.lock().await;
    // Without a deadline: one build at a time comes in, and others wait.
    let turn = store.reach.guard(turn(store)).await?;
    // What a deployment left whose call was dropped.
    store.call(|| drop_unfinished(&store.pool)).await?;
    let build = receive(store, &host, term, assets).await;
    if build.is_err() {
        // The error of the build tells more than that of this.
        let _ = store.call(|| drop_unfinished(&store.pool)).await;
    }
    // It has changed nothing; where its connection is gone it has ended.
    let _ = turn.rollback().await;
    build
}

/// See [`crate::store::Store::next_asset`].
pub(super) async fn next_asset(pool: &PgPool, version: u64, path: &str) -> StoreResult<Option<Asset>> {
    let row = sqlx::query(
        "SELECT path, content_type, identity, gzip, brotli
         FROM builds LEFT JOIN assets
             ON build = version AND left(path, 500) >= left($1, 500) AND path > $1
         WHERE version = $2 AND complete
         ORDER BY left(path, 500), path LIMIT 1",
    )
    .bind(path)
    .bind(exact("version", version)?)
    .fetch_optional(pool)
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

/// Nobody else deploys until this transaction ends.
async fn turn(store: &PgStore) -> StoreResult<Transaction<'_, Postgres>> {
    let mut turn = store.change().await?;
    sqlx::query("SET LOCAL lock_timeout = 0").execute(&mut *turn).await?;
    lock(&mut turn, Named::Deployment, "").await?;
    Ok(turn)
}

/// Removes what was not completed. Only while no build comes in.
async fn drop_unfinished(pool: &PgPool) -> StoreResult<()> {
    sqlx::query("DELETE FROM builds WHERE NOT complete").execute(pool).await?;
    Ok(())
}

async fn receive(
    store: &PgStore,
    host: &str,
    term: u64,
    mut assets: impl Stream<Item = StoreResult<Asset>> + Send + Unpin,
) -> StoreResult<Build> {
    let version = store.call(|| begin(&store.pool, host)).await?;
    let mut manifest = Manifest::default();
    while let Some(asset) = assets.next().await {
        let asset = asset?;
        manifest.add(&asset)?;
        store.call(|| insert(&store.pool, version, &asset)).await?;
    }
    let sum = manifest.finish()?;
    store.call(|| publish(store, host, term, version, &sum)).await
}

async fn begin(pool: &PgPool, host: &str) -> StoreResult<i64> {
    let query = sqlx::query_scalar("INSERT INTO builds (host) VALUES ($1) RETURNING version");
    Ok(query.bind(host).fetch_one(pool).await?)
}

async fn insert(pool: &PgPool, version: i64, asset: &Asset) -> StoreResult<()> {
    sqlx::query(
        "INSERT INTO assets (build, path, path_sha256, content_type, identity, gzip, brotli)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(version)
    .bind(&asset.path)
    .bind(path_digest(&asset.path))
    .bind(&asset.content_type)
    .bind(&asset.identity)
    .bind(&asset.gzip)
    .bind(&asset.brotli)
    .execute(pool)
    .await?;
    Ok(())
}

/// Makes the build the current one of its host, and removes those that are too old to be kept.
async fn publish(store: &PgStore, host: &str, term: u64, version: i64, sum: &Sum) -> StoreResult<Build> {
    let now_ms = unix_ms_now();
    let mut change = store.change().await?;
    leases::fence(&mut change, term).await?;
    let row = sqlx::query(
        "UPDATE builds SET complete = true, digest = $1, assets = $2, bytes = $3, deployed_at_ms = $4
         WHERE version = $5
         RETURNING host, version, digest, assets, bytes, deployed_at_ms",
    )
    .bind(&sum.digest)
    .bind(i64::from(sum.assets))
    .bind(integer(sum.bytes))
    .bind(now_ms)
    .bind(version)
    .fetch_optional(&mut *change)
    .await?
    .ok_or_else(|| StoreError::Interrupted("another deployment took its place".to_owned()))?;
    sqlx::query(
        "DELETE FROM builds WHERE host = $1 AND version NOT IN
             (SELECT version FROM builds WHERE host = $1 ORDER BY version DESC LIMIT $2)",
    )
    .bind(host)
    .bind(i64::from(KEPT_BUILDS))
    .execute(&mut *change)
    .await?;
    let build = routes::build(&row)?;
    events::postpone(&mut change, &announce::build_deployed(&build), now_ms).await?;
    change.commit().await?;
    Ok(build)
}
