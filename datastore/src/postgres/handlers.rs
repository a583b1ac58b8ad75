//! The table of handlers: changed in one step, and kept as it was before.

use protoplex_wire::proto::{ChangeHandlersRequest, Handler, HandlerVersion};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, PgPool, Row};

use super::{PgStore, events, leases, unsigned};
use crate::store::{HANDLER_VERSIONS, StoreResult, exact};
use crate::{announce, handlers};

/// See [`crate::store::Store::change_handlers`].
pub(super) async fn change(
    store: &PgStore,
    request: &ChangeHandlersRequest,
    now_ms: i64,
) -> StoreResult<u64> {
    handlers::check(request)?;
    let mut change = store.change().await?;
    leases::fence(&mut change, request.term).await?;
    // Held until the end: changes come one after the other.
    let version: i64 =
        sqlx::query_scalar("SELECT version FROM table_version FOR UPDATE").fetch_one(&mut *change).await?;
    let version = exact("version", handlers::next_version(request, unsigned(version))?)?;
    // First all goes that is removed or replaced, so that handlers may swap their places.
    for name in &request.remove {
        if !retire(&mut change, name, version).await? {
            return Err(handlers::unknown(name));
        }
    }
    for handler in &request.put {
        retire(&mut change, &handler.name, version).await?;
    }
    for handler in &request.put {
        put(&mut change, handler, version).await?;
    }
    sqlx::query("UPDATE table_version SET version = $1").bind(version).execute(&mut *change).await?;
    sqlx::query(
        "INSERT INTO handler_versions (version, changed_at_ms, operator, what) VALUES ($1, $2, $3, $4)",
    )
    .bind(version)
    .bind(now_ms)
    .bind(&request.operator)
    .bind(&request.what)
    .execute(&mut *change)
    .await?;
    forget(&mut change, version - HANDLER_VERSIONS.cast_signed()).await?;
    events::postpone(&mut change, &announce::handlers_changed(request, version), now_ms).await?;
    change.commit().await?;
    Ok(version.cast_unsigned())
}

/// See [`crate::store::Store::handler_history`].
pub(super) async fn history(pool: &PgPool) -> StoreResult<Vec<HandlerVersion>> {
    let query = sqlx::query(
        "SELECT version, changed_at_ms, operator, what FROM handler_versions ORDER BY version DESC",
    );
    Ok(query.try_map(version).fetch_all(pool).await?)
}

/// See [`crate::store::Store::handlers_at`].
pub(super) async fn at(pool: &PgPool, version: u64) -> StoreResult<Vec<Handler>> {
    let version = exact("version", version)?;
    // One transaction reads one state.
    let mut snapshot = pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    let kept: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM handler_versions WHERE version = $1)")
        .bind(version)
        .fetch_one(&mut *snapshot)
        .await?;
    if !kept {
        let kept = sqlx::query_as("SELECT min(version), max(version) FROM handler_versions")
            .fetch_one(&mut *snapshot)
            .await?;
        return Err(handlers::not_kept(version, kept));
    }
    let query = sqlx::query(
        "SELECT name, host, path, key, pool, placement, disabled, since FROM handlers WHERE since <= $1
         UNION ALL
         SELECT name, host, path, key, pool, placement, disabled, since FROM former_handlers
         WHERE since <= $1 AND until > $1
         ORDER BY name",
    );
    Ok(query.bind(version).try_map(handler).fetch_all(&mut *snapshot).await?)
}

/// The handlers as they are now, by name.
pub(super) async fn current(connection: &mut PgConnection) -> StoreResult<Vec<Handler>> {
    let query = sqlx::query(
        "SELECT name, host, path, key, pool, placement, disabled, since FROM handlers ORDER BY name",
    );
    Ok(query.try_map(handler).fetch_all(connection).await?)
}

/// Moves a handler, where there is one of that name, to those of former versions.
async fn retire(change: &mut PgConnection, name: &str, version: i64) -> StoreResult<bool> {
    sqlx::query(
        "INSERT INTO former_handlers (name, since, until, host, path, key, pool, placement, disabled)
         SELECT name, since, $2, host, path, key, pool, placement, disabled FROM handlers WHERE name = $1",
    )
    .bind(name)
    .bind(version)
    .execute(&mut *change)
    .await?;
    let removed = sqlx::query("DELETE FROM handlers WHERE name = $1").bind(name).execute(change).await?;
    Ok(removed.rows_affected() > 0)
}

async fn put(change: &mut PgConnection, handler: &Handler, version: i64) -> StoreResult<()> {
    let put = sqlx::query(
        "INSERT INTO handlers (name, host, path, key, pool, placement, disabled, since)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (host, path) DO NOTHING",
    )
    .bind(&handler.name)
    .bind(&handler.host)
    .bind(&handler.path)
    .bind(&handler.key)
    .bind(&handler.pool)
    .bind(handler.placement)
    .bind(handler.disabled)
    .bind(version)
    .execute(&mut *change)
    .await?;
    if put.rows_affected() > 0 {
        return Ok(());
    }
    let other: String = sqlx::query_scalar("SELECT name FROM handlers WHERE host = $1 AND path = $2")
        .bind(&handler.host)
        .bind(&handler.path)
        .fetch_one(change)
        .await?;
    Err(handlers::taken(handler, &other))
}

/// Forgets the versions up to this one, and the rows that no later version shows.
async fn forget(change: &mut PgConnection, version: i64) -> StoreResult<()> {
    sqlx::query("DELETE FROM handler_versions WHERE version <= $1")
        .bind(version)
        .execute(&mut *change)
        .await?;
    sqlx::query("DELETE FROM former_handlers WHERE until <= $1").bind(version + 1).execute(change).await?;
    Ok(())
}

fn handler(row: PgRow) -> Result<Handler, sqlx::Error> {
    Ok(Handler {
        name: row.try_get("name")?,
        host: row.try_get("host")?,
        path: row.try_get("path")?,
        key: row.try_get("key")?,
        pool: row.try_get("pool")?,
        placement: row.try_get("placement")?,
        disabled: row.try_get("disabled")?,
        since: row.try_get("since").map(unsigned)?,
    })
}

fn version(row: PgRow) -> Result<HandlerVersion, sqlx::Error> {
    Ok(HandlerVersion {
        version: row.try_get("version").map(unsigned)?,
        changed_at_ms: row.try_get("changed_at_ms")?,
        operator: row.try_get("operator")?,
        what: row.try_get("what")?,
    })
}
