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

#[derive(PartialEq, Serialize, Deserialize)]
struct Method {
    name: String,
    about: String,
    params: Vec<Param>,
    is_command: bool,
}

#[derive(PartialEq, Serialize, Deserialize)]
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
        print(common.json, &interfaces, |all| text(all))?;
    }
    failure.map_or(Ok(()), Err)
}

/// Those that are asked for the same things are told of together.
fn text(all: &[Interface]) -> String {
    let mut groups: Vec<Vec<&Interface>> = Vec::new();
    for one in all {
        match groups.iter_mut().find(|group| (&group[0].kind, &group[0].methods) == (&one.kind, &one.methods))
        {
            Some(group) => group.push(one),
            None => groups.push(vec![one]),
        }
    }
    groups.iter().map(|group| group_text(group)).collect::<Vec<_>>().join("\n")
}

fn group_text(group: &[&Interface]) -> String {
    let mut text = String::new();
    for Interface { node, kind, version, pid, .. } in group {
        text.push_str(&format!("{node}: {kind}, protoplex {version}, pid {pid}\n"));
    }
    // By its kind any of them answers.
    let name = if let [one] = group { &one.node } else { &group[0].kind };
    for method in &group[0].methods {
        let params: Vec<_> = method.params.iter().map(parameter).collect();
        text.push_str(&format!(
            "\nrpc {name}.{}({})\n    {}\n",
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_several_have_in_common_is_told_once() {
        let one = |node: &str, method: &str| Interface {
            node: node.to_owned(),
            kind: "seed".to_owned(),
            version: "1".to_owned(),
            pid: 7,
            methods: vec![Method {
                name: method.to_owned(),
                about: "Answers.".to_owned(),
                params: Vec::new(),
                is_command: false,
            }],
        };
        let all = [one("seed-1", "ping"), one("seed-2", "ping"), one("seed-3", "pong")];
        assert_eq!(
            text(&all),
            "seed-1: seed, protoplex 1, pid 7\nseed-2: seed, protoplex 1, pid 7\n\nrpc seed.ping()\n    Answers.\n\n\
             seed-3: seed, protoplex 1, pid 7\n\nrpc seed-3.pong()\n    Answers.\n"
        );
    }
}
