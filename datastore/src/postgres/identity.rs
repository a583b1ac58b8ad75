//! Join tokens and revoked names.

use protoplex_wire::proto::{
    JoinRefusal, JoinToken, RedeemJoinTokenReply, RedeemJoinTokenRequest, Revocation, RevokeJoinTokenRequest,
};
use sqlx::postgres::PgRow;
use sqlx::{PgPool, Row};

use super::{Named, PgStore, leases, lock};
use crate::join_token::{
    self, KNOWN_AS, MAX_TOKENS, REMEMBERED_MS, check_key, check_subject, joined, parted,
};
use crate::store::{StoreError, StoreResult};

const SELECT: &str =
    "SELECT id, secret_sha256, kind, pools, uses, expires_at_ms, created_at_ms, created_by, revoked,
    (SELECT count(*) FROM join_token_uses WHERE token = id) AS uses_taken FROM join_tokens";

/// See [`crate::store::Store::put_join_token`].
pub(super) async fn put_token(store: &PgStore, token: &JoinToken, now_ms: i64) -> StoreResult<()> {
    join_token::check(token)?;
    let mut change = store.change().await?;
    leases::fence(&mut change, token.term).await?;
    sqlx::query("DELETE FROM join_tokens WHERE expires_at_ms < $1")
        .bind(now_ms - REMEMBERED_MS)
        .execute(&mut *change)
        .await?;
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM join_tokens").fetch_one(&mut *change).await?;
    if count >= MAX_TOKENS {
        return Err(StoreError::TooMany(format!("there are {count} join tokens, and more are not kept")));
    }
    sqlx::query(
        "INSERT INTO join_tokens (id, secret_sha256, kind, pools, uses, expires_at_ms, created_at_ms, created_by)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (id) DO NOTHING",
    )
    .bind(&token.id)
    .bind(&token.secret_sha256)
    .bind(&token.kind)
    .bind(joined(&token.pools))
    .bind(i64::from(token.uses))
    .bind(token.expires_at_ms)
    .bind(now_ms)
    .bind(&token.created_by)
    .execute(&mut *change)
    .await?;
    Ok(change.commit().await?)
}

/// See [`crate::store::Store::list_join_tokens`].
pub(super) async fn tokens(pool: &PgPool) -> StoreResult<Vec<JoinToken>> {
    let query = format!("{SELECT} ORDER BY created_at_ms DESC, id");
    Ok(sqlx::query(sqlx::AssertSqlSafe(query)).try_map(read).fetch_all(pool).await?)
}

/// See [`crate::store::Store::revoke_join_token`].
pub(super) async fn revoke_token(store: &PgStore, request: &RevokeJoinTokenRequest) -> StoreResult<()> {
    let mut change = store.change().await?;
    leases::fence(&mut change, request.term).await?;
    let revoked = sqlx::query("UPDATE join_tokens SET revoked = true WHERE id = $1")
        .bind(&request.id)
        .execute(&mut *change)
        .await?;
    if revoked.rows_affected() == 0 {
        return Err(StoreError::NotFound(format!("there is no join token {:?}", request.id)));
    }
    Ok(change.commit().await?)
}

/// See [`crate::store::Store::redeem_join_token`].
pub(super) async fn redeem(
    store: &PgStore,
    request: &RedeemJoinTokenRequest,
    now_ms: i64,
) -> StoreResult<RedeemJoinTokenReply> {
    check_subject(&request.node)?;
    check_key(&request.key_sha256)?;
    let mut change = store.change().await?;
    leases::fence(&mut change, request.term).await?;
    lock(&mut change, Named::JoinToken, &request.id).await?;
    let find = format!("{SELECT} WHERE id = $1");
    let kept = sqlx::query(sqlx::AssertSqlSafe(find)).bind(&request.id).try_map(read);
    let kept = kept.fetch_optional(&mut *change).await?;
    let again =
        sqlx::query("SELECT 1 FROM join_token_uses WHERE token = $1 AND node = $2 AND key_sha256 = $3")
            .bind(&request.id)
            .bind(&request.node)
            .bind(&request.key_sha256)
            .fetch_optional(&mut *change)
            .await?
            .is_some();
    let known_as = sqlx::query_scalar(KNOWN_AS)
        .bind(&request.node)
        .bind(&request.kind)
        .fetch_optional(&mut *change)
        .await?;
    let reply = join_token::judge(kept.as_ref(), again, known_as, request, now_ms);
    if reply.refusal() == JoinRefusal::None && !again && !request.peek {
        sqlx::query(
            "INSERT INTO join_token_uses (token, node, key_sha256, used_at_ms) VALUES ($1, $2, $3, $4)",
        )
        .bind(&request.id)
        .bind(&request.node)
        .bind(&request.key_sha256)
        .bind(now_ms)
        .execute(&mut *change)
        .await?;
        change.commit().await?;
    }
    Ok(reply)
}

/// See [`crate::store::Store::change_revocation`].
pub(super) async fn change(store: &PgStore, wanted: &Revocation, now_ms: i64) -> StoreResult<()> {
    check_subject(&wanted.name)?;
    let mut change = store.change().await?;
    leases::fence(&mut change, wanted.term).await?;
    let query = if wanted.revoked {
        sqlx::query("INSERT INTO revocations (name, operator, at_ms) VALUES ($1, $2, $3) ON CONFLICT (name) DO NOTHING")
            .bind(&wanted.name)
            .bind(&wanted.operator)
            .bind(now_ms)
    } else {
        sqlx::query("DELETE FROM revocations WHERE name = $1").bind(&wanted.name)
    };
    query.execute(&mut *change).await?;
    Ok(change.commit().await?)
}

/// See [`crate::store::Store::list_revocations`].
pub(super) async fn revocations(pool: &PgPool) -> StoreResult<Vec<Revocation>> {
    let read = |row: PgRow| {
        Ok(Revocation {
            name: row.try_get("name")?,
            revoked: true,
            operator: row.try_get("operator")?,
            at_ms: row.try_get("at_ms")?,
            term: 0,
            ..Revocation::default()
        })
    };
    let query = sqlx::query("SELECT name, operator, at_ms FROM revocations ORDER BY name");
    Ok(query.try_map(read).fetch_all(pool).await?)
}

fn read(row: PgRow) -> Result<JoinToken, sqlx::Error> {
    Ok(JoinToken {
        id: row.try_get("id")?,
        secret_sha256: row.try_get("secret_sha256")?,
        kind: row.try_get("kind")?,
        pools: parted(row.try_get("pools")?),
        uses: number(&row, "uses")?,
        expires_at_ms: row.try_get("expires_at_ms")?,
        created_at_ms: row.try_get("created_at_ms")?,
        created_by: row.try_get("created_by")?,
        revoked: row.try_get("revoked")?,
        uses_taken: number(&row, "uses_taken")?,
        term: 0,
    })
}

fn number(row: &PgRow, column: &str) -> Result<u32, sqlx::Error> {
    Ok(u32::try_from(row.try_get::<i64, _>(column)?).unwrap_or(u32::MAX))
}
