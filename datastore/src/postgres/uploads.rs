//! Upload tokens, and the uploads that they open: reserved, then completed or aborted. The states are those of
//! `sqlite/uploads.rs`.
//!
//! A token's row is locked from before its terms are read until what they allow is taken, so that no two uploads take
//! the same.

use protoplex_wire::proto::{
    BeginUploadReply, BeginUploadRequest, CompleteUploadReply, CompleteUploadRequest, CreateTokenReply,
    CreateTokenRequest, StoredFile, TokenRefusal,
};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, PgPool, Row};

use super::{Named, PgStore, events, files, lock, unsigned};
use crate::store::{StoreError, StoreResult, UPLOAD_LIFE_MS, integer};
use crate::token::{self, Presented, Refused, SecretDigest, Terms};
use crate::upload::{Completable, SWEPT_AT_ONCE, State, Upload, check_id, forged, granted, refusal};
use crate::{announce, file, scope};

/// See [`crate::store::Store::create_token`].
pub(super) async fn create_token(
    pool: &PgPool,
    request: &CreateTokenRequest,
    now_ms: i64,
) -> StoreResult<CreateTokenReply> {
    let terms = Terms::parse(request)?;
    let new = token::New::draw();
    sqlx::query(
        "INSERT INTO tokens
             (id, secret_sha256, host, path_prefix, max_bytes, quota_bytes, uses, expires_at_ms, created_at_ms)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(&new.id)
    .bind(&new.secret_sha256[..])
    .bind(&terms.host)
    .bind(&terms.path_prefix)
    .bind(integer(terms.max_bytes))
    .bind(integer(terms.quota_bytes))
    .bind(i64::from(terms.uses))
    .bind(terms.expires_at_ms)
    .bind(now_ms)
    .execute(pool)
    .await?;
    Ok(CreateTokenReply { token: new.token, id: new.id })
}

/// See [`crate::store::Store::check_upload`].
pub(super) async fn check(
    pool: &PgPool,
    request: &BeginUploadRequest,
    now_ms: i64,
) -> StoreResult<BeginUploadReply> {
    scope::check_place(&request.host, &request.path)?;
    let Some(token) = authenticate(pool, &request.token).await? else { return Ok(forged()) };
    let mut connection = pool.acquire().await?;
    let terms = sqlx::query(
        "SELECT host, path_prefix, max_bytes, quota_bytes, uses, expires_at_ms, uses_taken, bytes_taken
         FROM tokens WHERE id = $1",
    );
    let terms = terms.bind(&token).try_map(read_terms).fetch_one(&mut *connection).await?;
    let mut request = request.clone();
    if request.path.ends_with('/') && terms.path_prefix.starts_with(&request.path) {
        request.path.clone_from(&terms.path_prefix);
    }
    match admit(&mut connection, &terms, &request, &token, now_ms).await? {
        Ok(bytes) => Ok(granted(token, &terms, bytes)),
        Err(refused) => Ok(refusal(token, refused)),
    }
}

/// See [`crate::store::Store::begin_upload`].
pub(super) async fn begin(
    store: &PgStore,
    request: &BeginUploadRequest,
    now_ms: i64,
) -> StoreResult<BeginUploadReply> {
    check_id(&request.upload)?;
    scope::check_place(&request.host, &request.path)?;
    // Whoever guesses tokens locks nothing.
    let Some(token) = authenticate(&store.pool, &request.token).await? else { return Ok(forged()) };
    sweep(&store.pool, now_ms).await?;
    let mut change = store.change().await?;
    lock(&mut change, Named::Upload, &request.upload).await?;
    if !request.watch.is_empty() {
        // Two tokens may ask for one public id at once, and neither sees the other's row yet.
        lock(&mut change, Named::Watch, &request.watch).await?;
    }
    let terms = locked_terms(&mut change, &token).await?;
    let reply = match find(&mut change, &request.upload).await? {
        Some(upload) => {
            upload.check_granted_before(request, &token)?;
            granted(token, &terms, upload.reserved_bytes)
        }
        None => match admit(&mut change, &terms, request, &token, now_ms).await? {
            Ok(bytes) => {
                reserve(&mut change, request, &token, bytes, now_ms).await?;
                granted(token, &terms, bytes)
            }
            Err(refused) => refusal(token, refused),
        },
    };
    change.commit().await?;
    Ok(reply)
}

/// See [`crate::store::Store::abort_upload`].
pub(super) async fn abort(store: &PgStore, id: &str, now_ms: i64) -> StoreResult<()> {
    check_id(id)?;
    let mut change = store.change().await?;
    lock(&mut change, Named::Upload, id).await?;
    match find(&mut change, id).await? {
        Some(upload) if upload.state == State::Open => {
            give_back(&mut change, &upload).await?;
            sqlx::query("UPDATE uploads SET state = 'aborted' WHERE id = $1")
                .bind(id)
                .execute(&mut *change)
                .await?;
        }
        Some(_) => {}
        None => {
            sqlx::query(
                "INSERT INTO uploads (id, state, host, path, reserved_bytes, begun_at_ms)
                 VALUES ($1, 'aborted', '', '', 0, $2)",
            )
            .bind(id)
            .bind(now_ms)
            .execute(&mut *change)
            .await?;
        }
    }
    Ok(change.commit().await?)
}

/// See [`crate::store::Store::complete_upload`].
pub(super) async fn complete(
    store: &PgStore,
    request: &CompleteUploadRequest,
    now_ms: i64,
) -> StoreResult<CompleteUploadReply> {
    let file =
        request.file.as_ref().ok_or_else(|| StoreError::Invalid("an upload without a file".to_owned()))?;
    file::check(file)?;
    let mut change = store.change().await?;
    lock(&mut change, Named::Upload, &request.upload).await?;
    let upload = find(&mut change, &request.upload)
        .await?
        .ok_or_else(|| StoreError::NotFound(format!("no upload {:?} has begun", request.upload)))?;
    let existed = match upload.completable(request, file)? {
        Completable::Before { existed } => existed,
        Completable::Now => {
            let existed = !files::insert(&mut change, file, now_ms).await?;
            files::put_site(&mut change, request, &file.reference, now_ms).await?;
            settle(&mut change, &upload, file, existed).await?;
            let told = announce::upload_finished(request, file, existed, &upload.watch);
            events::postpone(&mut change, &told, now_ms).await?;
            existed
        }
    };
    let file = files::find(&mut *change, &file.reference).await?;
    change.commit().await?;
    Ok(CompleteUploadReply { file, existed })
}

/// The token's terms, and that the public id is not another token's.
async fn admit(
    connection: &mut PgConnection,
    terms: &Terms,
    request: &BeginUploadRequest,
    token: &str,
    now_ms: i64,
) -> StoreResult<Result<u64, Refused>> {
    let bytes = match terms.admit(request, now_ms) {
        Ok(bytes) if !request.watch.is_empty() => bytes,
        admitted => return Ok(admitted),
    };
    let another: Option<i32> =
        sqlx::query_scalar("SELECT 1 FROM uploads WHERE watch = $1 AND watch <> '' AND token <> $2 LIMIT 1")
            .bind(&request.watch)
            .bind(token)
            .fetch_optional(connection)
            .await?;
    Ok(match another {
        Some(_) => Err(Refused { refusal: TokenRefusal::WatchTaken, limit_bytes: 0 }),
        None => Ok(bytes),
    })
}

/// The id of the token, where its secret is right.
async fn authenticate(pool: &PgPool, token: &str) -> StoreResult<Option<String>> {
    // No token of ours has a NUL, and PostgreSQL takes none.
    let Some(presented) = Presented::parse(token).filter(|presented| !presented.id.contains('\0')) else {
        return Ok(None);
    };
    let kept: Option<Vec<u8>> = sqlx::query_scalar("SELECT secret_sha256 FROM tokens WHERE id = $1")
        .bind(presented.id)
        .fetch_optional(pool)
        .await?;
    let kept = kept.and_then(|kept| SecretDigest::try_from(kept).ok());
    Ok(kept.filter(|kept| presented.proves(kept)).map(|_| presented.id.to_owned()))
}

/// Nobody else takes of the token until the transaction ends. References to it aren't kept waiting.
async fn locked_terms(connection: &mut PgConnection, token: &str) -> StoreResult<Terms> {
    let terms = sqlx::query(
        "SELECT host, path_prefix, max_bytes, quota_bytes, uses, expires_at_ms, uses_taken, bytes_taken
         FROM tokens WHERE id = $1 FOR NO KEY UPDATE",
    );
    Ok(terms.bind(token).try_map(read_terms).fetch_one(connection).await?)
}

fn read_terms(row: PgRow) -> Result<Terms, sqlx::Error> {
    let number = |column| row.try_get(column).map(unsigned);
    let uses = |column| number(column).map(|uses| u32::try_from(uses).unwrap_or(u32::MAX));
    Ok(Terms {
        host: row.try_get("host")?,
        path_prefix: row.try_get("path_prefix")?,
        max_bytes: number("max_bytes")?,
        quota_bytes: number("quota_bytes")?,
        uses: uses("uses")?,
        expires_at_ms: row.try_get("expires_at_ms")?,
        uses_taken: uses("uses_taken")?,
        bytes_taken: number("bytes_taken")?,
    })
}

async fn reserve(
    connection: &mut PgConnection,
    request: &BeginUploadRequest,
    token: &str,
    bytes: u64,
    now_ms: i64,
) -> StoreResult<()> {
    let bytes = integer(bytes);
    sqlx::query(
        "UPDATE tokens SET uses_taken = uses_taken + 1, bytes_taken = bytes_taken + $1 WHERE id = $2",
    )
    .bind(bytes)
    .bind(token)
    .execute(&mut *connection)
    .await?;
    sqlx::query(
        "INSERT INTO uploads (id, state, token, host, path, reserved_bytes, begun_at_ms, watch)
         VALUES ($1, 'open', $2, $3, $4, $5, $6, $7)",
    )
    .bind(&request.upload)
    .bind(token)
    .bind(&request.host)
    .bind(&request.path)
    .bind(bytes)
    .bind(now_ms)
    .bind(&request.watch)
    .execute(connection)
    .await?;
    Ok(())
}

async fn give_back(connection: &mut PgConnection, upload: &Upload) -> StoreResult<()> {
    sqlx::query(
        "UPDATE tokens SET uses_taken = uses_taken - 1, bytes_taken = bytes_taken - $1 WHERE id = $2",
    )
    .bind(integer(upload.reserved_bytes))
    .bind(&upload.token)
    .execute(connection)
    .await?;
    Ok(())
}

/// Charges what the file has in place of what was reserved.
async fn settle(
    connection: &mut PgConnection,
    upload: &Upload,
    file: &StoredFile,
    existed: bool,
) -> StoreResult<()> {
    sqlx::query("UPDATE tokens SET bytes_taken = bytes_taken - $1 + $2 WHERE id = $3")
        .bind(integer(upload.reserved_bytes))
        .bind(integer(file.size))
        .bind(&upload.token)
        .execute(&mut *connection)
        .await?;
    sqlx::query("UPDATE uploads SET state = 'completed', reference = $1, existed = $2 WHERE id = $3")
        .bind(&file.reference)
        .bind(existed)
        .bind(&upload.id)
        .execute(connection)
        .await?;
    Ok(())
}

/// Removes uploads that are over their life, and gives back what was still reserved. In one statement, so that it costs
/// an upload one question; those that somebody else is at are left to the next sweep.
async fn sweep(pool: &PgPool, now_ms: i64) -> StoreResult<()> {
    let abandoned: Vec<(String, i64)> = sqlx::query_as(
        "WITH old AS (
             SELECT id, state, token, reserved_bytes FROM uploads WHERE begun_at_ms < $1
             ORDER BY begun_at_ms LIMIT $2 FOR UPDATE SKIP LOCKED
         ), removed AS (
             DELETE FROM uploads USING old WHERE uploads.id = old.id
         ), abandoned AS (
             SELECT token, count(*) AS uses, sum(reserved_bytes)::bigint AS bytes FROM old
             WHERE state = 'open' GROUP BY token
         ), given_back AS (
             UPDATE tokens SET uses_taken = uses_taken - abandoned.uses, bytes_taken = bytes_taken - abandoned.bytes
             FROM abandoned WHERE tokens.id = abandoned.token
         )
         SELECT id, reserved_bytes FROM old WHERE state = 'open'",
    )
    .bind(now_ms.saturating_sub(UPLOAD_LIFE_MS))
    .bind(SWEPT_AT_ONCE)
    .fetch_all(pool)
    .await?;
    for (upload, bytes) in abandoned {
        tracing::warn!(upload, bytes, "an abandoned upload gave its reservation back");
    }
    Ok(())
}

/// Locked until the transaction ends, against the sweep.
async fn find(connection: &mut PgConnection, id: &str) -> StoreResult<Option<Upload>> {
    let query = sqlx::query_as(
        "SELECT id, state, token, host, path, reserved_bytes, reference, existed, watch
         FROM uploads WHERE id = $1 FOR NO KEY UPDATE",
    );
    Ok(query.bind(id).fetch_optional(connection).await?)
}
