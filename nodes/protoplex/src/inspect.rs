//! `protoplex inspect`: what a node is, and what it can be asked for.

use std::time::Duration;

use reqwest::Client;
use serde::{Deserialize, Serialize};

use crate::cli::{Common, Inspect};
use crate::nodes::Nodes;
use crate::output::print;
use crate::rpc::{Caller, identity};

const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// As the node says it.
#[derive(Serialize, Deserialize)]
struct Interface {
    node: String,
    kind: String,
    version: String,
    pid: u32,
    methods: Vec<Method>,
}

#[derive(Serialize, Deserialize)]
struct Method {
    name: String,
    about: String,
    params: Vec<Param>,
    is_command: bool,
}

#[derive(Serialize, Deserialize)]
struct Param {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    is_required: bool,
    about: String,
}

/// Runs the command.
pub(crate) async fn run(common: &Common, command: Inspect) -> anyhow::Result<()> {
    let nodes = Nodes::find(common).await?;
    let identity = identity(common)?;
    let (mut interfaces, mut failure) = (Vec::new(), None);
    for node in nodes.alike(&command.node)? {
        let caller = Caller::of(node, identity.as_ref(), Client::builder().timeout(ANSWER_TIMEOUT))?;
        match caller.call("inspect", "", None).await {
            Ok(answer) => interfaces.push(serde_json::from_value::<Interface>(answer)?),
            Err(error) => drop(failure.get_or_insert(error)),
        }
    }
    if !interfaces.is_empty() {
        print(common.json, &interfaces, |all| all.iter().map(text).collect::<Vec<_>>().join("\n"))?;
    }
    failure.map_or(Ok(()), Err)
}

fn text(interface: &Interface) -> String {
    let Interface { node, kind, version, pid, methods } = interface;
    let mut text = format!("{node}: {kind}, protoplex {version}, pid {pid}\n");
    for method in methods {
        let params: Vec<_> = method.params.iter().map(parameter).collect();
        text.push_str(&format!(
            "\nrpc {node}.{}({})\n    {}\n",
            method.name,
            params.join(", "),
            method.about
        ));
        for param in &method.params {
            text.push_str(&format!("    {}: {}\n", param.name, param.about));
        }
    }
    text
}

fn parameter(param: &Param) -> String {
    let name = format!("{}: {}", param.name, param.kind);
    if param.is_required { name } else { format!("[{name}]") }
}
