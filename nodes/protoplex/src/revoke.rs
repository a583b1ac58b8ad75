//! `protoplex node revoke|readmit|revoked`: who is refused whatever certificate it has.

use protoplex_wire::proto::{ListRevocationsRequest, Revocation};
use serde_json::json;

use crate::cli::{Common, Node};
use crate::cluster::{Cluster, unmade};
use crate::handler::operator;
use crate::output::{columns, print};
use crate::units::show_time;

/// What is not undone by it.
const KEYS: &str = "
What it got to know when it joined still opens what it opens: operators, live nodes, fileservers and seeds have
cluster/live.key, nodes but datastores cluster/secret. Put others in their place on each machine, and restart its nodes";

/// Runs the command.
pub(crate) async fn run(common: &Common, command: Node) -> anyhow::Result<()> {
    match command {
        Node::Revoke { node } => change(common, &node, true).await,
        Node::Readmit { node } => change(common, &node, false).await,
        Node::Revoked => list(common).await,
    }
}

/// Revokes a name, or readmits it.
pub(crate) async fn change(common: &Common, name: &str, revoked: bool) -> anyhow::Result<()> {
    let cluster = Cluster::find(common)?;
    let was = all(&cluster).await?.iter().any(|it| it.name == name);
    if !revoked && !was {
        // A name that there is not may be a slip.
        let told = json!({ "name": name, "revoked": false, "changed": false });
        return Ok(print(common.json, &told, |_| format!("{name} was not revoked: nothing was changed"))?);
    }
    let wanted =
        Revocation { name: name.to_owned(), revoked, operator: operator::name(), ..Revocation::default() };
    let changed = cluster.answer(cluster.operator().await?.change_revocation(wanted)).await;
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
