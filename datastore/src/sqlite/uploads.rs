//! Upload tokens, and the uploads that they open: reserved, then completed or aborted.
//!
//! | state     | came from         | of the token are taken        | goes to              |
//! | --------- | ----------------- | ----------------------------- | -------------------- |
//! | open      | begin             | a use, the bytes reserved     | completed, aborted   |
//! | completed | complete          | a use, the bytes of the file  | removed after a week |
//! | aborted   | abort, or no word for a week | nothing            | removed after a week |

use protoplex_wire::proto::{
    BeginUploadReply, BeginUploadRequest, CompleteUploadReply, CompleteUploadRequest, CreateTokenReply,
    CreateTokenRequest, StoredFile, TokenRefusal,
};
use sqlx::{Row, SqliteConnection, SqlitePool};

use super::{SqliteStore, events, files};
use crate::store::{StoreError, StoreResult, UPLOAD_LIFE_MS, integer};
use crate::token::{self, Presented, Refused, SecretDigest, Terms};
use crate::upload::{Completable, SWEPT_AT_ONCE, State, Upload, check_id, forged, granted, refusal};
use crate::{announce, file, scope};

/// See [`crate::store::Store::create_token`].
pub(super) async fn create_token(
    writer: &SqlitePool,
    request: &CreateTokenRequest,
    now_ms: i64,
) -> StoreResult<CreateTokenReply> {
    let terms = Terms::parse(request)?;
    let new = token::New::draw();
    sqlx::query(
        "INSERT INTO tokens
             (id, secret_sha256, host, path_prefix, max_bytes, quota_bytes, uses, expires_at_ms, created_at_ms)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(&new.id)
    .bind(&new.secret_sha256[..])
    .bind(&terms.host)
    .bind(&terms.path_prefix)
    .bind(integer(terms.max_bytes))
    .bind(integer(terms.quota_bytes))
    .bind(terms.uses)
    .bind(terms.expires_at_ms)
    .bind(now_ms)
    .execute(writer)
    .await?;
    Ok(CreateTokenReply { token: new.token, id: new.id })
}

/// See [`crate::store::Store::check_upload`].
pub(super) async fn check(
    readers: &SqlitePool,
    request: &BeginUploadRequest,
    now_ms: i64,
) -> StoreResult<BeginUploadReply> {
    scope::check_place(&request.host, &request.path)?;
    let Some(token) = authenticate(readers, &request.token).await? else { return Ok(forged()) };
    let mut connection = readers.acquire().await?;
    let terms = terms(&mut connection, &token).await?;
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
    store: &SqliteStore,
    request: &BeginUploadRequest,
    now_ms: i64,
) -> StoreResult<BeginUploadReply> {
    check_id(&request.upload)?;
    scope::check_place(&request.host, &request.path)?;
    // Whoever guesses tokens keeps readers busy, but never the writer.
    let Some(token) = authenticate(&store.readers, &request.token).await? else { return Ok(forged()) };
    let mut change = store.change().await?;
    sweep(&mut change, now_ms).await?;
    let terms = terms(&mut change, &token).await?;
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
pub(super) async fn abort(store: &SqliteStore, id: &str, now_ms: i64) -> StoreResult<()> {
    check_id(id)?;
    let mut change = store.change().await?;
    match find(&mut change, id).await? {
        Some(upload) if upload.state == State::Open => {
            give_back(&mut change, &upload).await?;
            sqlx::query("UPDATE uploads SET state = 'aborted' WHERE id = ?")
                .bind(id)
                .execute(&mut *change)
                .await?;
        }
        Some(_) => {}
        None => {
            sqlx::query(
                "INSERT INTO uploads (id, state, host, path, reserved_bytes, begun_at_ms)
                 VALUES (?, 'aborted', '', '', 0, ?)",
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
    store: &SqliteStore,
    request: &CompleteUploadRequest,
    now_ms: i64,
) -> StoreResult<CompleteUploadReply> {
    let file =
        request.file.as_ref().ok_or_else(|| StoreError::Invalid("an upload without a file".to_owned()))?;
    file::check(file)?;
    let mut change = store.change().await?;
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
    connection: &mut SqliteConnection,
    terms: &Terms,
    request: &BeginUploadRequest,
    token: &str,
    now_ms: i64,
) -> StoreResult<Result<u64, Refused>> {
    let bytes = match terms.admit(request, now_ms) {
        Ok(bytes) if !request.watch.is_empty() => bytes,
        admitted => return Ok(admitted),
    };
    let another: Option<i64> =
        sqlx::query_scalar("SELECT 1 FROM uploads WHERE watch = ? AND watch <> '' AND token <> ? LIMIT 1")
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
async fn authenticate(readers: &SqlitePool, token: &str) -> StoreResult<Option<String>> {
    let Some(presented) = Presented::parse(token) else {
        return Ok(None);
    };
    let kept: Option<Vec<u8>> = sqlx::query_scalar("SELECT secret_sha256 FROM tokens WHERE id = ?")
        .bind(presented.id)
        .fetch_optional(readers)
        .await?;
    let kept = kept.and_then(|kept| SecretDigest::try_from(kept).ok());
    Ok(kept.filter(|kept| presented.proves(kept)).map(|_| presented.id.to_owned()))
}

async fn terms(connection: &mut SqliteConnection, token: &str) -> StoreResult<Terms> {
    let row = sqlx::query(
        "SELECT host, path_prefix, max_bytes, quota_bytes, uses, expires_at_ms, uses_taken, bytes_taken
         FROM tokens WHERE id = ?",
    )
    .bind(token)
    .fetch_one(connection)
    .await?;
    Ok(Terms {
        host: row.try_get(0)?,
        path_prefix: row.try_get(1)?,
        max_bytes: row.try_get(2)?,
        quota_bytes: row.try_get(3)?,
        uses: row.try_get(4)?,
        expires_at_ms: row.try_get(5)?,
        uses_taken: row.try_get(6)?,
        bytes_taken: row.try_get(7)?,
    })
}

async fn reserve(
    connection: &mut SqliteConnection,
    request: &BeginUploadRequest,
    token: &str,
    bytes: u64,
    now_ms: i64,
) -> StoreResult<()> {
    let bytes = integer(bytes);
    sqlx::query("UPDATE tokens SET uses_taken = uses_taken + 1, bytes_taken = bytes_taken + ? WHERE id = ?")
        .bind(bytes)
        .bind(token)
        .execute(&mut *connection)
        .await?;
    sqlx::query(
        "INSERT INTO uploads (id, state, token, host, path, reserved_bytes, begun_at_ms, watch)
         VALUES (?, 'open', ?, ?, ?, ?, ?, ?)",
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

async fn give_back(connection: &mut SqliteConnection, upload: &Upload) -> StoreResult<()> {
    sqlx::query("UPDATE tokens SET uses_taken = uses_taken - 1, bytes_taken = bytes_taken - ? WHERE id = ?")
        .bind(integer(upload.reserved_bytes))
        .bind(&upload.token)
        .execute(connection)
        .await?;
    Ok(())
}

/// Charges what the file has in place of what was reserved.
async fn settle(
    connection: &mut SqliteConnection,
    upload: &Upload,
    file: &StoredFile,
    existed: bool,
) -> StoreResult<()> {
    sqlx::query("UPDATE tokens SET bytes_taken = bytes_taken - ? + ? WHERE id = ?")
        .bind(integer(upload.reserved_bytes))
        .bind(integer(file.size))
        .bind(&upload.token)
        .execute(&mut *connection)
        .await?;
    sqlx::query("UPDATE uploads SET state = 'completed', reference = ?, existed = ? WHERE id = ?")
        .bind(&file.reference)
        .bind(existed)
        .bind(&upload.id)
        .execute(connection)
        .await?;
    Ok(())
}

/// Removes uploads that are over their life, and gives back what was still reserved.
async fn sweep(connection: &mut SqliteConnection, now_ms: i64) -> StoreResult<()> {
    let ids: Vec<String> =
        sqlx::query_scalar("SELECT id FROM uploads WHERE begun_at_ms < ? ORDER BY begun_at_ms LIMIT ?")
            .bind(now_ms.saturating_sub(UPLOAD_LIFE_MS))
            .bind(SWEPT_AT_ONCE)
            .fetch_all(&mut *connection)
            .await?;
    for id in ids {
        if let Some(upload) = find(connection, &id).await?.filter(|upload| upload.state == State::Open) {
            tracing::warn!(
                upload = id,
                bytes = upload.reserved_bytes,
                "an abandoned upload gave its reservation back"
            );
            give_back(connection, &upload).await?;
        }
        sqlx::query("DELETE FROM uploads WHERE id = ?").bind(id).execute(&mut *connection).await?;
    }
    Ok(())
}

async fn find(connection: &mut SqliteConnection, id: &str) -> StoreResult<Option<Upload>> {
    let query = sqlx::query_as(
        "SELECT id, state, token, host, path, reserved_bytes, reference, existed, watch
         FROM uploads WHERE id = ?",
    );
    Ok(query.bind(id).fetch_optional(connection).await?)
}
