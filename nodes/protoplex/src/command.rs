//! `protoplex start`, `stop`, `restart`, `drain`: what an operator tells running nodes, by their meta ports.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use protoplex_runtime::meta::OPERATOR;
use protoplex_runtime::running;
use reqwest::header::AUTHORIZATION;
use reqwest::{Client, StatusCode};
use serde::{Deserialize, Serialize};

use crate::cli::{Common, Target, Usage};
use crate::cluster::{self, Cluster};
use crate::output::print;
use crate::settings::Settings;

/// Beyond what a node may take for its drain. A node that says nothing for longer is lost.
const ANSWER_MARGIN: Duration = Duration::from_secs(60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// What nodes are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Start,
    Stop { now: bool },
    Restart,
    Reload,
    Drain,
}

impl Verb {
    fn path(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop { .. } => "stop",
            Self::Restart => "restart",
            Self::Reload => "reload",
            Self::Drain => "drain",
        }
    }

    /// What the target is once it is done, and what it is where there was nothing to do.
    fn done(self) -> [&'static str; 2] {
        match self {
            Self::Start => ["started", "already started"],
            Self::Stop { .. } => ["stopped", "already stopped"],
            Self::Restart => ["restarted", "restarted"],
            Self::Reload => ["reloaded", "unchanged"],
            Self::Drain => ["drained", "already drained"],
        }
    }
}

/// A node as commands reach it.
struct Found {
    node: String,
    kind: String,
    meta: String,
}

impl Found {
    /// Seed and datastore are one process each: they have no children to command.
    fn is_solo(&self) -> bool {
        matches!(self.kind.as_str(), "seed" | "datastore")
    }
}

/// What has come of it, for one target.
#[derive(Serialize)]
struct Row {
    target: String,
    ok: bool,
    changed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip)]
    words: String,
}

#[derive(Deserialize)]
struct Outcome {
    changed: bool,
}

#[derive(Deserialize)]
struct Problem {
    detail: String,
}

/// Runs the command: one target after the other, so that a mistake meets one at a time.
pub(crate) async fn run(common: &Common, verb: Verb, targets: &[Target]) -> anyhow::Result<ExitCode> {
    let settings = Settings::load(common)?;
    let pass = cluster::pass(common);
    let nodes = nodes(common, &settings).await?;
    let chosen = choose(&nodes, verb, targets)?;
    let client = Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(settings.drain.drain_grace() + settings.drain.drain_timeout() + ANSWER_MARGIN)
        .build()?;
    let mut rows = Vec::new();
    for (node, child) in chosen {
        rows.push(tell(&client, pass.as_deref(), verb, node, child).await);
    }
    let failed = rows.iter().any(|row| !row.ok);
    print(common.json, &rows, |rows| {
        rows.iter().map(|row| format!("{}: {}\n", row.target, row.words)).collect()
    })?;
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The nodes of this data directory, which need no seed to be found, then the others that the seed knows.
async fn nodes(common: &Common, settings: &Settings) -> anyhow::Result<Vec<Found>> {
    let local = running::list(&settings.data)
        .with_context(|| format!("can't see what runs in {}", settings.data.display()))?;
    let mut nodes: Vec<_> = local
        .into_iter()
        .filter_map(|node| {
            let meta = node.address(running::META)?.to_string();
            Some(Found { node: node.node, kind: node.kind, meta })
        })
        .collect();
    let told = match Cluster::find(common) {
        Ok(cluster) => cluster.status().await,
        Err(error) => Err(error),
    };
    match told {
        Ok(status) => {
            for hello in status.nodes.into_iter().filter_map(|node| node.node) {
                if nodes.iter().all(|known| known.node != hello.node) {
                    nodes.push(Found { node: hello.node, kind: hello.kind, meta: hello.meta });
                }
            }
        }
        Err(error) if nodes.is_empty() => return Err(error),
        // Without a seed the nodes of this machine can be commanded all the same.
        Err(_) => {}
    }
    nodes.sort_by(|one, other| one.node.cmp(&other.node));
    Ok(nodes)
}

/// What is meant: without a target every node that can do it.
fn choose<'a>(
    nodes: &'a [Found],
    verb: Verb,
    targets: &[Target],
) -> Result<Vec<(&'a Found, Option<u32>)>, Usage> {
    if targets.is_empty() {
        let able = |node: &&Found| verb == Verb::Drain || !node.is_solo();
        return Ok(nodes.iter().filter(able).map(|node| (node, None)).collect());
    }
    let find = |target: &Target| match nodes.iter().find(|node| node.node == target.node) {
        Some(node) => Ok((node, target.child)),
        None => {
            let names: Vec<_> = nodes.iter().map(|node| node.node.as_str()).collect();
            Err(Usage(format!("no node is called {:?}; there are {}", target.node, names.join(", "))))
        }
    };
    targets.iter().map(find).collect()
}

async fn tell(client: &Client, pass: Option<&str>, verb: Verb, node: &Found, child: Option<u32>) -> Row {
    let target = match child {
        Some(child) => format!("{}:{child}", node.node),
        None => node.node.clone(),
    };
    match ask(client, pass, verb, node, child).await {
        Ok(changed) => {
            let [done, nothing] = verb.done();
            let words = if changed { done } else { nothing }.to_owned();
            Row { target, ok: true, changed, error: None, words }
        }
        Err(error) => {
            let words = format!("{error:#}");
            Row {
                target,
                ok: false,
                changed: false,
                error: Some(words.clone()),
                words: format!("FAILED: {words}"),
            }
        }
    }
}

async fn ask(
    client: &Client,
    pass: Option<&str>,
    verb: Verb,
    node: &Found,
    child: Option<u32>,
) -> anyhow::Result<bool> {
    let mut query: Vec<_> = child.map(|child| format!("child={child}")).into_iter().collect();
    query.extend((verb == Verb::Stop { now: true }).then(|| "now=true".to_owned()));
    let url = format!("http://{}/{}?{}", node.meta, verb.path(), query.join("&"));
    let mut request = client.post(url).header(OPERATOR, operator());
    if let Some(pass) = pass {
        request = request.header(AUTHORIZATION, pass);
    }
    let answer =
        request.send().await.with_context(|| format!("its meta port {} does not answer", node.meta))?;
    let (status, body) = (answer.status(), answer.bytes().await?);
    if status == StatusCode::OK {
        return Ok(serde_json::from_slice::<Outcome>(&body)?.changed);
    }
    let said = serde_json::from_slice::<Problem>(&body).map(|problem| problem.detail);
    anyhow::bail!(said.unwrap_or_else(|_| format!("its meta port answers {status}")))
}

/// Who gives the command, for the node's log.
fn operator() -> String {
    let name = std::env::var("SUDO_USER").or_else(|_| std::env::var("USER")).unwrap_or_default();
    let plain = name.chars().filter(|c| c.is_ascii_graphic()).take(64).collect::<String>();
    if plain.is_empty() { "unknown".to_owned() } else { plain }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(node: &str, kind: &str) -> Found {
        Found { node: node.to_owned(), kind: kind.to_owned(), meta: String::new() }
    }

    #[test]
    fn without_a_target_all_that_have_children_are_meant() {
        let nodes = [found("live-1", "live"), found("seed-1", "seed")];
        let names = |verb| {
            choose(&nodes, verb, &[]).unwrap().iter().map(|(node, _)| node.node.clone()).collect::<Vec<_>>()
        };
        assert_eq!(names(Verb::Restart), ["live-1"]);
        assert_eq!(names(Verb::Drain), ["live-1", "seed-1"]);
    }

    #[test]
    fn a_target_is_a_node_or_one_child_of_it() {
        let nodes = [found("live-1", "live"), found("seed-1", "seed")];
        let targets = ["live-1:1".parse().unwrap(), "seed-1".parse().unwrap()];
        let chosen = choose(&nodes, Verb::Start, &targets).unwrap();
        assert_eq!(
            chosen.iter().map(|(node, child)| (node.node.as_str(), *child)).collect::<Vec<_>>(),
            [("live-1", Some(1)), ("seed-1", None)]
        );
        let Err(Usage(error)) = choose(&nodes, Verb::Start, &["life-1".parse().unwrap()]) else { panic!() };
        assert_eq!(error, "no node is called \"life-1\"; there are live-1, seed-1");
        assert!("live-1:x".parse::<Target>().is_err() && "".parse::<Target>().is_err());
    }
}
