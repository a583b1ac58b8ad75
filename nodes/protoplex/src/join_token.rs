//! `protoplex join-token create|list|revoke`.

use protoplex_wire::proto::{
    CreateJoinTokenRequest, JoinToken as Listed, ListJoinTokensRequest, RevokeJoinTokenRequest,
};
use serde::Serialize;
use serde_json::json;

use crate::cli::{Common, JoinToken, JoinTokenCreate};
use crate::cluster::{Cluster, unmade};
use crate::handler::operator;
use crate::output::{columns, print};
use crate::units::show_time;

#[derive(Serialize)]
struct Created {
    /// Shown once; the datastore keeps only a digest.
    token: String,
    id: String,
    kind: String,
    pools: Vec<String>,
    uses: u32,
    /// Unix time in milliseconds.
    expires_at_ms: i64,
}

/// Runs the command.
pub(crate) async fn run(common: &Common, command: JoinToken) -> anyhow::Result<()> {
    let cluster = Cluster::find(common)?;
    match command {
        JoinToken::Create(command) => create(common, &cluster, command).await,
        JoinToken::List => list(common, &cluster).await,
        JoinToken::Revoke { id } => {
            let request = RevokeJoinTokenRequest { id: id.clone(), term: 0 };
            let revoked = cluster.answer(cluster.operator().await?.revoke_join_token(request)).await;
            revoked.map_err(|error| unmade(error, "it was revoked (run it again)"))?;
            let text = format!("nobody joins with {id} any more");
            Ok(print(common.json, &json!({ "id": id, "revoked": true }), |_| text)?)
        }
    }
}

async fn create(common: &Common, cluster: &Cluster, command: JoinTokenCreate) -> anyhow::Result<()> {
    let JoinTokenCreate { kind, pools, expires, uses } = command;
    let request = CreateJoinTokenRequest {
        kind: kind.name().to_owned(),
        pools: pools.clone(),
        uses,
        life_s: u32::try_from(expires.as_secs()).unwrap_or(u32::MAX),
        operator: operator::name(),
    };
    let made = cluster.answer(cluster.operator().await?.create_join_token(request)).await;
    let made =
        made.map_err(|error| unmade(error, "there is a token of no use now (join-token list shows it)"))?;
    let created = Created {
        token: made.token,
        id: made.id,
        kind: kind.name().to_owned(),
        pools,
        uses,
        expires_at_ms: made.expires_at_ms,
    };
    // Alone on its line, so that TOKEN=$(protoplex join-token create …) works.
    Ok(print(common.json, &created, |created| created.token.clone())?)
}

async fn list(common: &Common, cluster: &Cluster) -> anyhow::Result<()> {
    let listed =
        cluster.answer(cluster.operator().await?.list_join_tokens(ListJoinTokensRequest {})).await?.tokens;
    let told: Vec<_> = listed
        .iter()
        .map(|token| {
            json!({
                "id": token.id,
                "kind": token.kind,
                "pools": token.pools,
                "uses": token.uses,
                "uses_taken": token.uses_taken,
                "expires_at_ms": token.expires_at_ms,
                "created_at_ms": token.created_at_ms,
                "created_by": token.created_by,
                "revoked": token.revoked,
            })
        })
        .collect();
    let head = ["ID", "KIND", "POOLS", "USED", "EXPIRES", "BY"].map(str::to_owned);
    let row = |token: &Listed| {
        let of = if token.uses == 0 { "any".to_owned() } else { token.uses.to_string() };
        let until = if token.revoked { "revoked".to_owned() } else { show_time(token.expires_at_ms) };
        let used = format!("{} of {of}", token.uses_taken);
        [token.id.clone(), token.kind.clone(), token.pools.join(" "), used, until, token.created_by.clone()]
    };
    let rows: Vec<_> = std::iter::once(head).chain(listed.iter().map(row)).collect();
    Ok(print(common.json, &told, |_| columns(&rows))?)
}
