//! Files by their storage reference, and the sites that show them.

use protoplex_wire::proto::{CompleteUploadRequest, ListFilesReply, ListFilesRequest, Site, StoredFile};
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row, Sqlite, SqliteConnection, SqliteExecutor, SqlitePool};

use super::exact;
use crate::store::{StoreError, StoreResult};

/// base64url of SHA-256 and Whirlpool, 96 bytes.
const REFERENCE_CHARACTERS: usize = 128;
/// Hex.
const SHA256_CHARACTERS: usize = 64;
/// The longest content type and node name, in bytes.
const MAX_TEXT_BYTES: usize = 255;
/// The most rows of a page, and how many it has where the request doesn't say.
const PAGE_ROWS: usize = 1_000;
/// A page ends early where its hosts and paths come to this: no reply is over gRPC's usual limit of 4 MiB.
const PAGE_BYTES: usize = 1 << 20;

/// Refuses a file that no fileserver could have made.
pub(super) fn check(file: &StoredFile) -> StoreResult<()> {
    let base64url = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    let fault = if file.reference.len() != REFERENCE_CHARACTERS || !file.reference.bytes().all(base64url) {
        format!("{:?} is no storage reference", file.reference)
    } else if file.stored_sha256.len() != SHA256_CHARACTERS || !file.stored_sha256.bytes().all(hex) {
        format!("stored_sha256 {:?} is no SHA-256 in hex", file.stored_sha256)
    } else if !matches!(file.encoding.as_str(), "identity" | "gzip") {
        format!("the encoding {:?} is neither identity nor gzip", file.encoding)
    } else if file.node.is_empty() || file.node.len().max(file.content_type.len()) > MAX_TEXT_BYTES {
        format!("a file has a node, and that and its content type have at most {MAX_TEXT_BYTES} bytes")
    } else {
        return Ok(());
    };
    Err(StoreError::Invalid(fault))
}

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
    if upload.content_type.len() > MAX_TEXT_BYTES {
        return Err(StoreError::Invalid(format!("the content type has over {MAX_TEXT_BYTES} bytes")));
    }
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
pub(super) async fn mark_stored(writer: &SqlitePool, reference: &str) -> StoreResult<()> {
    let marked = sqlx::query("UPDATE files SET stored = 1 WHERE reference = ?")
        .bind(reference)
        .execute(writer)
        .await?;
    if marked.rows_affected() == 0 {
        return Err(StoreError::NotFound(format!("there is no file {reference:?}")));
    }
    Ok(())
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
    Ok(row.as_ref().map(file).transpose()?)
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
    let rows = match request.limit {
        0 => PAGE_ROWS,
        limit => PAGE_ROWS.min(limit as usize),
    };
    // One row more than the page has tells whether another page follows.
    let mut sites = page(request, rows + 1)?
        .build()
        .fetch_all(readers)
        .await?
        .iter()
        .map(site)
        .collect::<Result<Vec<_>, _>>()?;
    let mut bytes = 0;
    let fitting = sites.iter().take_while(|site| {
        bytes += site.host.len() + site.path.len();
        bytes <= PAGE_BYTES
    });
    // A single row always fits.
    let kept = fitting.count().min(rows);
    let more = kept < sites.len();
    sites.truncate(kept);
    let next = sites.last().filter(|_| more).map(cursor).unwrap_or_default();
    Ok(ListFilesReply { sites, next })
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
        let (host, path) = parse_cursor(&request.after)?;
        query.push(" AND (host, path) > (").push_bind(host).push(", ").push_bind(path).push(")");
    }
    query.push(" ORDER BY host, path LIMIT ").push_bind(i64::try_from(rows).unwrap_or(i64::MAX));
    Ok(query)
}

/// Host and path: no host has a slash, and every path begins with one.
fn cursor(site: &Site) -> String {
    format!("{}{}", site.host, site.path)
}

fn parse_cursor(cursor: &str) -> StoreResult<(&str, &str)> {
    let slash = cursor.find('/').filter(|slash| *slash > 0);
    slash
        .map(|slash| cursor.split_at(slash))
        .ok_or_else(|| StoreError::Invalid(format!("{cursor:?} is no cursor: pass on the reply's `next`")))
}

fn site(row: &SqliteRow) -> Result<Site, sqlx::Error> {
    Ok(Site {
        host: row.try_get("host")?,
        path: row.try_get("path")?,
        content_type: row.try_get("content_type")?,
        file: Some(file(row)?),
        updated_at_ms: row.try_get("updated_at_ms")?,
    })
}

fn file(row: &SqliteRow) -> Result<StoredFile, sqlx::Error> {
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
