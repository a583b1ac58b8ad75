//! Files by their storage reference, and the sites that show them.
//!
//! A path can be longer than an index takes, so a site is found by the digest of its path, and pages follow an index of
//! its first characters. Both orders are one: where the first characters differ they decide, byte by byte.

use protoplex_wire::proto::{CompleteUploadRequest, ListFilesReply, ListFilesRequest, Site, StoredFile};
use sha2::{Digest, Sha256};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, PgExecutor, PgPool, Postgres, QueryBuilder, Row};

use super::{PgStore, events, unsigned};
use crate::store::{StoreError, StoreResult, exact};
use crate::{announce, file};

/// What a path is found by.
pub(super) fn path_digest(path: &str) -> Vec<u8> {
    Sha256::digest(path).to_vec()
}

/// Adds a file that is staged on its node. `false` where the content is there: it stays as it is. Waits for whoever is
/// just adding the same content.
pub(super) async fn insert(
    connection: &mut PgConnection,
    file: &StoredFile,
    now_ms: i64,
) -> StoreResult<bool> {
    let inserted = sqlx::query(
        "INSERT INTO files
             (reference, size, stored_size, encoding, content_type, stored, node, stored_sha256, created_at_ms)
         VALUES ($1, $2, $3, $4, $5, false, $6, $7, $8)
         ON CONFLICT (reference) DO NOTHING",
    )
    .bind(&file.reference)
    .bind(exact("size", file.size)?)
    .bind(exact("stored_size", file.stored_size)?)
    .bind(&file.encoding)
    .bind(&file.content_type)
    .bind(&file.node)
    .bind(&file.stored_sha256)
    .bind(now_ms)
    .execute(connection)
    .await?;
    Ok(inserted.rows_affected() == 1)
}

/// Shows the file where the upload wants it, in place of what was there.
pub(super) async fn put_site(
    connection: &mut PgConnection,
    upload: &CompleteUploadRequest,
    reference: &str,
    now_ms: i64,
) -> StoreResult<()> {
    file::check_site(upload)?;
    sqlx::query(
        "INSERT INTO sites (host, path, path_sha256, reference, content_type, updated_at_ms)
         VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (host, path_sha256) DO UPDATE SET
             reference = excluded.reference,
             content_type = excluded.content_type,
             updated_at_ms = excluded.updated_at_ms",
    )
    .bind(&upload.host)
    .bind(&upload.path)
    .bind(path_digest(&upload.path))
    .bind(reference)
    .bind(&upload.content_type)
    .bind(now_ms)
    .execute(connection)
    .await?;
    Ok(())
}

/// See [`crate::store::Store::mark_stored`].
pub(super) async fn mark_stored(store: &PgStore, reference: &str, now_ms: i64) -> StoreResult<()> {
    let mut change = store.change().await?;
    let marked = sqlx::query("UPDATE files SET stored = true WHERE reference = $1 AND NOT stored")
        .bind(reference)
        .execute(&mut *change)
        .await?;
    let Some(file) = find(&mut *change, reference).await? else {
        return Err(StoreError::NotFound(format!("there is no file {reference:?}")));
    };
    if marked.rows_affected() > 0 {
        events::postpone(&mut change, &announce::file_stored(&file), now_ms).await?;
    }
    Ok(change.commit().await?)
}

/// See [`crate::store::Store::find_file`].
pub(super) async fn find(executor: impl PgExecutor<'_>, reference: &str) -> StoreResult<Option<StoredFile>> {
    let row = sqlx::query(
        "SELECT reference, size, stored_size, encoding, files.content_type AS file_type, created_at_ms, stored, node,
                stored_sha256
         FROM files WHERE reference = $1",
    )
    .bind(reference)
    .fetch_optional(executor)
    .await?;
    Ok(row.as_ref().map(stored_file).transpose()?)
}

/// See [`crate::store::Store::find_site`].
pub(super) async fn find_site(pool: &PgPool, host: &str, path: &str) -> StoreResult<Option<Site>> {
    let row = sqlx::query(
        "SELECT host, path, sites.content_type, updated_at_ms, reference, size, stored_size, encoding,
                files.content_type AS file_type, created_at_ms, stored, node, stored_sha256
         FROM sites JOIN files USING (reference)
         WHERE host = $1 AND path_sha256 = $2",
    )
    .bind(host)
    .bind(path_digest(path))
    .fetch_optional(pool)
    .await?;
    Ok(row.as_ref().map(site).transpose()?)
}

/// See [`crate::store::Store::list_files`].
pub(super) async fn list(pool: &PgPool, request: &ListFilesRequest) -> StoreResult<ListFilesReply> {
    let rows = file::page_rows(request);
    // One row more than the page has tells whether another page follows.
    let sites = page(request, rows + 1)?
        .build()
        .fetch_all(pool)
        .await?
        .iter()
        .map(site)
        .collect::<Result<Vec<_>, _>>()?;
    Ok(file::cut_page(sites, rows))
}

/// The rows after the cursor, in their order.
pub(super) fn page(request: &ListFilesRequest, rows: usize) -> StoreResult<QueryBuilder<Postgres>> {
    let mut query = QueryBuilder::new(
        "SELECT host, path, sites.content_type, updated_at_ms, reference, size, stored_size, encoding,
                files.content_type AS file_type, created_at_ms, stored, node, stored_sha256
         FROM sites JOIN files USING (reference)
         WHERE starts_with(path, ",
    );
    query.push_bind(request.prefix.clone()).push(")");
    let cursor = (!request.after.is_empty()).then(|| file::parse_cursor(&request.after)).transpose()?;
    match cursor {
        Some((host, path)) if host == request.host => {
            page_of_host(&mut query, host, path.max(&request.prefix));
            query.push(" AND path > ").push_bind(path.to_owned());
        }
        Some((host, path)) => {
            if !request.host.is_empty() {
                page_of_host(&mut query, &request.host, &request.prefix);
            }
            // Rather than (host, path) > …, which PostgreSQL takes for hardly any rows where there are few hosts.
            query.push(" AND (host, left(path, 500)) >= (").push_bind(host.to_owned());
            query.push(", left(").push_bind(path.to_owned()).push(", 500)) AND (host > ");
            query.push_bind(host.to_owned()).push(" OR path > ").push_bind(path.to_owned()).push(")");
        }
        None if !request.host.is_empty() => page_of_host(&mut query, &request.host, &request.prefix),
        None => {}
    }
    query.push(" ORDER BY host, left(path, 500), path LIMIT ");
    query.push_bind(i64::try_from(rows).unwrap_or(i64::MAX));
    Ok(query)
}

/// The index begins at the path.
fn page_of_host(query: &mut QueryBuilder<Postgres>, host: &str, path: &str) {
    query.push(" AND host = ").push_bind(host.to_owned());
    query.push(" AND left(path, 500) >= left(").push_bind(path.to_owned()).push(", 500)");
}

fn site(row: &PgRow) -> Result<Site, sqlx::Error> {
    Ok(Site {
        host: row.try_get("host")?,
        path: row.try_get("path")?,
        content_type: row.try_get("content_type")?,
        file: Some(stored_file(row)?),
        updated_at_ms: row.try_get("updated_at_ms")?,
    })
}

fn stored_file(row: &PgRow) -> Result<StoredFile, sqlx::Error> {
    Ok(StoredFile {
        reference: row.try_get("reference")?,
        size: row.try_get("size").map(unsigned)?,
        stored_size: row.try_get("stored_size").map(unsigned)?,
        encoding: row.try_get("encoding")?,
        content_type: row.try_get("file_type")?,
        created_at_ms: row.try_get("created_at_ms")?,
        stored: row.try_get("stored")?,
        node: row.try_get("node")?,
        stored_sha256: row.try_get("stored_sha256")?,
    })
}
