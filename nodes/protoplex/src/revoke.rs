//! `protoplex node revoke|readmit|revoked`: who is refused whatever certificate it has.

use protoplex_wire::proto::{ListRevocationsRequest, Revocation};
use serde_json::json;
use tonic::Code;

use crate::cli::{Common, Node};
use crate::cluster::{Cluster, unmade};
use crate::handler::{operator, similar};
use crate::output::{columns, print};
use crate::units::show_time;

/// What is not undone by it.
const KEYS: &str = "
What it got to know when it joined still opens what it opens: operators, live nodes, fileservers and seeds have
cluster/live.key, nodes but datastores cluster/secret. Put others in their place on each machine, and restart its nodes";

/// What is to become of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// `force`: be it known or not.
    Revoke {
        force: bool,
    },
    Readmit,
}

/// Runs the command.
pub(crate) async fn run(common: &Common, command: Node) -> anyhow::Result<()> {
    match command {
        Node::Revoke { node, force } => change(common, &node, Change::Revoke { force }).await,
        Node::Readmit { node } => change(common, &node, Change::Readmit).await,
        Node::Revoked => list(common).await,
    }
}

/// Revokes a name, or readmits it.
pub(crate) async fn change(common: &Common, name: &str, change: Change) -> anyhow::Result<()> {
    let revoked = change != Change::Readmit;
    let cluster = Cluster::find(common)?;
    let was = all(&cluster).await?.iter().any(|it| it.name == name);
    if !revoked && !was {
        // A name that there is not may be a slip.
        let told = json!({ "name": name, "revoked": false, "changed": false });
        return Ok(print(common.json, &told, |_| format!("{name} was not revoked: nothing was changed"))?);
    }
    let wanted = Revocation {
        name: name.to_owned(),
        revoked,
        operator: operator::name(),
        only_known: change == Change::Revoke { force: false } && !was,
        ..Revocation::default()
    };
    let mut seed = cluster.operator().await?;
    let mut is_unknown = false;
    let changed = cluster.answer(async {
        let answer = seed.change_revocation(wanted).await;
        is_unknown = answer.as_ref().is_err_and(|status| status.code() == Code::NotFound);
        answer
    });
    let changed = changed.await;
    if is_unknown && let Err(error) = &changed {
        let meant = meant(&cluster, name).await.map_or_else(String::new, |it| format!(". Do you mean {it}?"));
        anyhow::bail!("{error}{meant} (--force revokes the name also of one that is away)");
    }
    let here = changed.map_err(|error| unmade(error, "that was done (run it again)"))?.here;
    // Operators come and go, and nobody keeps a list of them.
    let is_operator = name.starts_with("operator/");
    let text = match (revoked, here) {
        (false, _) => "may be in the cluster again",
        (true, true) => "is refused from now on",
        (true, false) if is_operator => {
            "is refused from now on. Who has credentials is not known: look at the name once more"
        }
        (true, false) => "is refused from now on. Nobody of that name is here",
    };
    let here = (!is_operator).then_some(here);
    let told = json!({ "name": name, "revoked": revoked, "changed": was != revoked, "here": here });
    let keys = if revoked { KEYS } else { "" };
    Ok(print(common.json, &told, |_| format!("{name} {text}{keys}"))?)
}

/// Which node that is known now may have been meant.
async fn meant(cluster: &Cluster, name: &str) -> Option<String> {
    let status = cluster.status().await.ok()?;
    let nodes = status.nodes.into_iter().chain(status.lost).filter_map(|status| Some(status.node?.node));
    let members = status.pools.into_iter().flat_map(|pool| pool.members);
    let ids = members.filter_map(|status| Some(status.member?.id));
    let servers = ids.map(|id| id.split(':').next().unwrap_or_default().to_owned());
    let known: Vec<_> = nodes.chain(servers).collect();
    similar(name, known.iter().map(String::as_str)).map(str::to_owned)
}

async fn all(cluster: &Cluster) -> anyhow::Result<Vec<Revocation>> {
    let mut seed = cluster.operator().await?;
    Ok(cluster.answer(seed.list_revocations(ListRevocationsRequest {})).await?.revocations)
}

async fn list(common: &Common) -> anyhow::Result<()> {
    let cluster = Cluster::find(common)?;
    let listed = all(&cluster).await?;
    let told: Vec<_> = listed
        .iter()
        .map(|it| json!({ "name": it.name, "operator": it.operator, "at_ms": it.at_ms }))
        .collect();
    let rows: Vec<_> =
        listed.iter().map(|it| [it.name.clone(), show_time(it.at_ms), it.operator.clone()]).collect();
    Ok(print(common.json, &told, |_| columns(&rows))?)
}
