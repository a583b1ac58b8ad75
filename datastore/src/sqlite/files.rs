//! Files by their storage reference, and the sites that show them.

use protoplex_wire::proto::{CompleteUploadRequest, ListFilesReply, ListFilesRequest, Site, StoredFile};
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row, Sqlite, SqliteConnection, SqliteExecutor, SqlitePool};

use super::events;
use crate::store::{StoreError, StoreResult, exact};
use crate::{announce, file};

/// Adds a file that is staged on its node. `false` where the content is there: it stays as it is.
pub(super) async fn insert(
    connection: &mut SqliteConnection,
    file: &StoredFile,
    now_ms: i64,
) -> StoreResult<bool> {
    let inserted = sqlx::query(
        "INSERT INTO files
             (reference, size, stored_size, encoding, content_type, stored, node, stored_sha256, created_at_ms)
         VALUES (?, ?, ?, ?, ?, 0, ?, ?, ?)
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
    connection: &mut SqliteConnection,
    upload: &CompleteUploadRequest,
    reference: &str,
    now_ms: i64,
) -> StoreResult<()> {
    file::check_site(upload)?;
    sqlx::query(
        "INSERT INTO sites (host, path, reference, content_type, updated_at_ms) VALUES (?, ?, ?, ?, ?)
         ON CONFLICT (host, path) DO UPDATE SET
             reference = excluded.reference,
             content_type = excluded.content_type,
             updated_at_ms = excluded.updated_at_ms",
    )
    .bind(&upload.host)
    .bind(&upload.path)
    .bind(reference)
    .bind(&upload.content_type)
    .bind(now_ms)
    .execute(connection)
    .await?;
    Ok(())
}

/// See [`crate::store::Store::mark_stored`].
pub(super) async fn mark_stored(writer: &SqlitePool, reference: &str, now_ms: i64) -> StoreResult<()> {
    let mut change = writer.begin_with("BEGIN IMMEDIATE").await?;
    let marked = sqlx::query("UPDATE files SET stored = 1 WHERE reference = ? AND stored = 0")
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
pub(super) async fn find(
    executor: impl SqliteExecutor<'_>,
    reference: &str,
) -> StoreResult<Option<StoredFile>> {
    let row = sqlx::query(
        "SELECT reference, size, stored_size, encoding, files.content_type AS file_type, created_at_ms, stored, node,
                stored_sha256
         FROM files WHERE reference = ?",
    )
    .bind(reference)
    .fetch_optional(executor)
    .await?;
    Ok(row.as_ref().map(stored_file).transpose()?)
}

/// See [`crate::store::Store::find_site`].
pub(super) async fn find_site(readers: &SqlitePool, host: &str, path: &str) -> StoreResult<Option<Site>> {
    let row = sqlx::query(
        "SELECT host, path, sites.content_type, updated_at_ms, reference, size, stored_size, encoding,
                files.content_type AS file_type, created_at_ms, stored, node, stored_sha256
         FROM sites JOIN files USING (reference)
         WHERE host = ? AND path = ?",
    )
    .bind(host)
    .bind(path)
    .fetch_optional(readers)
    .await?;
    Ok(row.as_ref().map(site).transpose()?)
}

/// See [`crate::store::Store::list_files`].
pub(super) async fn list(readers: &SqlitePool, request: &ListFilesRequest) -> StoreResult<ListFilesReply> {
    let rows = file::page_rows(request);
    // One row more than the page has tells whether another page follows.
    let sites = page(request, rows + 1)?
        .build()
        .fetch_all(readers)
        .await?
        .iter()
        .map(site)
        .collect::<Result<Vec<_>, _>>()?;
    Ok(file::cut_page(sites, rows))
}

/// The rows after the cursor, in their order.
pub(super) fn page(request: &ListFilesRequest, rows: usize) -> StoreResult<QueryBuilder<Sqlite>> {
    let mut query = QueryBuilder::new(
        "SELECT host, path, sites.content_type, updated_at_ms, reference, size, stored_size, encoding,
                files.content_type AS file_type, created_at_ms, stored, node, stored_sha256
         FROM sites JOIN files USING (reference)
         WHERE substr(path, 1, length(",
    );
    query.push_bind(&request.prefix).push(")) = ").push_bind(&request.prefix);
    if !request.host.is_empty() {
        // The order lets the index begin at the prefix.
        query.push(" AND host = ").push_bind(&request.host).push(" AND path >= ").push_bind(&request.prefix);
    }
    if !request.after.is_empty() {
        let (host, path) = file::parse_cursor(&request.after)?;
        query.push(" AND (host, path) > (").push_bind(host).push(", ").push_bind(path).push(")");
    }
    query.push(" ORDER BY host, path LIMIT ").push_bind(i64::try_from(rows).unwrap_or(i64::MAX));
    Ok(query)
}

fn site(row: &SqliteRow) -> Result<Site, sqlx::Error> {
    Ok(Site {
        host: row.try_get("host")?,
        path: row.try_get("path")?,
        content_type: row.try_get("content_type")?,
        file: Some(stored_file(row)?),
        updated_at_ms: row.try_get("updated_at_ms")?,
    })
}

fn stored_file(row: &SqliteRow) -> Result<StoredFile, sqlx::Error> {
    Ok(StoredFile {
        reference: row.try_get("reference")?,
        size: row.try_get("size")?,
        stored_size: row.try_get("stored_size")?,
        encoding: row.try_get("encoding")?,
        content_type: row.try_get("file_type")?,
        created_at_ms: row.try_get("created_at_ms")?,
        stored: row.try_get("stored")?,
        node: row.try_get("node")?,
        stored_sha256: row.try_get("stored_sha256")?,
    })
}
