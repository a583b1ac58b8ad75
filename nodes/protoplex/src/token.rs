//! `protoplex token create|live`.

use std::time::Duration;

use jsonwebtoken::{EncodingKey, Header, encode};
use protoplex_wire::clock::unix_ms_now;
use protoplex_wire::proto::CreateTokenRequest;
use serde::Serialize;

use crate::cli::{Common, TokenCreate, TokenLive};
use crate::cluster::Cluster;
use crate::output::print;

/// A token and what it opens.
#[derive(Serialize)]
pub(crate) struct Created {
    /// Shown once; the datastore keeps only its digest.
    pub token: String,
    /// Names it in lists and logs.
    pub id: String,
    /// Where it may upload.
    pub host: String,
    /// Below which path.
    pub path: String,
    /// Unix time in milliseconds.
    pub expires_at_ms: i64,
}

/// Runs the command.
pub(crate) async fn run(common: &Common, command: TokenCreate) -> anyhow::Result<()> {
    let cluster = Cluster::find(common)?;
    let created = create(&cluster, command).await?;
    // Alone on its line, so that TOKEN=$(protoplex token create …) works.
    print(common.json, &created, |created| created.token.clone())?;
    Ok(())
}

/// What [`live`] prints.
#[derive(Serialize)]
struct Signed {
    token: String,
    publish: Vec<String>,
    subscribe: Vec<String>,
    /// Unix time in milliseconds.
    expires_at_ms: i64,
}

/// The claims of a Mercure token (Mercure section 6).
#[derive(Serialize)]
struct Claims<'a> {
    mercure: Mercure<'a>,
    exp: i64,
}

#[derive(Serialize)]
struct Mercure<'a> {
    publish: &'a [String],
    subscribe: &'a [String],
}

/// Signs a token for channels with the cluster's key, which needs nothing but the data directory.
pub(crate) fn live(common: &Common, command: TokenLive) -> anyhow::Result<()> {
    let TokenLive { publish, subscribe, expires } = command;
    let cluster = Cluster::find(common)?;
    if !cluster.identity().knows_live_key() {
        anyhow::bail!("these credentials have no live.key: use those of an operator");
    }
    let expires_at_ms = unix_ms_now() + millis(expires);
    let mercure = Mercure { publish: &publish, subscribe: &subscribe };
    let claims = Claims { mercure, exp: expires_at_ms / 1000 };
    let key = EncodingKey::from_secret(cluster.identity().live_key());
    let token = encode(&Header::default(), &claims, &key)?;
    print(common.json, &Signed { token, publish, subscribe, expires_at_ms }, |signed| signed.token.clone())?;
    Ok(())
}

/// Creates a token at the datastore.
pub(crate) async fn create(cluster: &Cluster, wanted: TokenCreate) -> anyhow::Result<Created> {
    let expires_at_ms = unix_ms_now() + millis(wanted.expires);
    let request = CreateTokenRequest {
        host: wanted.host.clone(),
        path_prefix: wanted.path.clone(),
        max_bytes: wanted.max_size,
        quota_bytes: wanted.quota.unwrap_or(0),
        uses: wanted.uses.unwrap_or(0),
        expires_at_ms,
    };
    let reply = cluster.answer(cluster.datastore().await?.create_token(request)).await?;
    Ok(Created { token: reply.token, id: reply.id, host: wanted.host, path: wanted.path, expires_at_ms })
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX / 2)
}
