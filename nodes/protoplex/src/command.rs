//! `protoplex start`, `stop`, `restart`, `upgrade`, `drain`: what an operator tells running nodes, by their meta ports.

use std::fmt;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use protoplex_runtime::drain::Drained;
use protoplex_wire::identity::Identity;
use reqwest::{Client, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::time::{sleep, timeout};

use crate::cli::{Common, Usage};
use crate::cluster;
use crate::meta::{Meta, refusal};
use crate::nodes::{Found, Nodes, Target};
use crate::output::{self, print};
use crate::rpc::Caller;
use crate::settings::Settings;

/// Beyond what a node may take for its drain. A node that says nothing for longer is lost.
const ANSWER_MARGIN: Duration = Duration::from_secs(60);
/// Of a node whose restart is waited for to its end. A machine that is lost is noticed before.
const MOST_CHILDREN: u32 = 64;
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// How often it is looked whether a node that drains has ended.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// What nodes are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Start,
    Stop { now: bool },
    Restart,
    Reload,
    Upgrade,
    Drain,
}

impl Verb {
    /// The method that does it.
    fn method(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop { .. } => "stop",
            Self::Restart => "restart",
            Self::Reload => "reload",
            Self::Upgrade => "upgrade",
            Self::Drain => "drain",
        }
    }

    /// Whether a node of one process can do it, too.
    fn suits_solo(self) -> bool {
        matches!(self, Self::Reload | Self::Upgrade | Self::Drain)
    }

    /// What the target is once it is done, and what it is where there was nothing to do.
    fn done(self) -> [&'static str; 2] {
        match self {
            Self::Start => ["started", "already started"],
            Self::Stop { .. } => ["stopped", "already stopped"],
            Self::Restart => ["restarted", "restarted"],
            Self::Reload => ["reloaded", "unchanged"],
            Self::Upgrade => ["upgraded", "unchanged"],
            Self::Drain => ["drained", "already drained"],
        }
    }
}

/// What has come of it, for one target.
#[derive(Serialize)]
pub(crate) struct Row {
    target: String,
    ok: bool,
    changed: bool,
    #[serde(flatten)]
    details: Details,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip)]
    words: String,
}

/// What a node has done, where it could.
struct Done {
    changed: bool,
    words: String,
    details: Details,
}

/// What only some commands have to tell.
#[derive(Default, Serialize)]
struct Details {
    /// The versions of an upgrade.
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<String>,
    /// What became of the work of whom it ended.
    #[serde(skip_serializing_if = "Drained::is_empty")]
    drained: Drained,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.target, self.words)
    }
}

impl Row {
    fn of(target: &Target, told: anyhow::Result<Done>) -> Self {
        let target = match target.child {
            Some(child) => format!("{}:{child}", target.node),
            None => target.node.clone(),
        };
        match told {
            Ok(Done { changed, words, details }) => {
                Self { target, ok: true, changed, details, error: None, words }
            }
            Err(error) => {
                let error = output::whole(&error);
                let words = format!("FAILED: {error}");
                let details = Details::default();
                Self { target, ok: false, changed: false, details, error: Some(error), words }
            }
        }
    }

    /// Of one that was not told.
    fn left(target: &Target) -> Self {
        let words = "left as it is".to_owned();
        Self { words: words.clone(), ..Self::of(target, Err(anyhow::Error::msg(words))) }
    }
}

#[derive(Deserialize)]
struct Outcome {
    changed: bool,
    #[serde(default)]
    drained: Drained,
}

/// Runs the command.
pub(crate) async fn run(common: &Common, verb: Verb, targets: &[Target]) -> anyhow::Result<ExitCode> {
    let rows = carry_out(common, verb, targets).await?;
    let failed = rows.iter().any(|row| !row.ok);
    print(common.json, &rows, |rows| rows.iter().map(|row| format!("{row}\n")).collect())?;
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Tells one target after the other, so that a mistake meets one at a time.
pub(crate) async fn carry_out(common: &Common, verb: Verb, targets: &[Target]) -> anyhow::Result<Vec<Row>> {
    let settings = Settings::load(common)?;
    let identity = cluster::identity(common, &settings);
    let nodes = Nodes::find(common).await?;
    let mut chosen = choose(&nodes, verb, targets);
    if verb == Verb::Start {
        chosen = chosen.context("a node that has ended is started as it was at first: `protoplex KIND`, systemctl start, or under `up` kill -HUP and \
             the pid of `up`");
    }
    let chosen = chosen?;
    let drain = settings.drain.drain_grace() + settings.drain.drain_timeout();
    // Children that are replaced drain one after the other.
    let drains = if matches!(verb, Verb::Drain | Verb::Stop { .. }) { 1 } else { MOST_CHILDREN };
    let patience = drain * drains + ANSWER_MARGIN;
    if let Some((target, _)) =
        chosen.iter().find(|(target, _)| verb == Verb::Upgrade && target.child.is_some())
    {
        let node = &target.node;
        return Err(
            Usage(format!("{node} runs by one program, with all its children: upgrade {node}")).into()
        );
    }
    let commander = Commander { identity, verb, patience };
    let mut rows: Vec<Row> = Vec::new();
    for (target, node) in chosen {
        let has_failed = verb == Verb::Upgrade && rows.iter().any(|row| !row.ok);
        rows.push(if has_failed { Row::left(&target) } else { commander.tell(&target, node).await });
    }
    Ok(rows)
}

/// What is meant: without a target every node that can do it.
fn choose<'a>(nodes: &'a Nodes, verb: Verb, targets: &[Target]) -> anyhow::Result<Vec<(Target, &'a Found)>> {
    if targets.is_empty() {
        let able = nodes.all().filter(|(_, found)| !found.is_solo() || verb.suits_solo());
        return Ok(able
            .map(|(node, found)| (Target { node: node.to_owned(), child: None }, found))
            .collect());
    }
    targets.iter().map(|target| Ok((target.clone(), nodes.named(&target.node)?))).collect()
}

/// Of a node's status page.
#[derive(Deserialize)]
struct Page {
    version: String,
    upgrade: Option<Upgrade>,
}

#[derive(Deserialize)]
struct Upgrade {
    progress: String,
    from: String,
    error: Option<String>,
}

/// Gives the command to one target after the other.
struct Commander {
    identity: Option<Identity>,
    verb: Verb,
    /// With each of them.
    patience: Duration,
}

impl Commander {
    async fn tell(&self, target: &Target, node: &Found) -> Row {
        Row::of(target, self.ask(target, node).await)
    }

    async fn ask(&self, target: &Target, node: &Found) -> anyhow::Result<Done> {
        let mut arguments = Map::new();
        arguments.extend(target.child.map(|child| ("child".to_owned(), child.into())));
        arguments.extend((self.verb == Verb::Stop { now: true }).then(|| ("now".to_owned(), true.into())));
        let arguments = Value::Object(arguments).to_string();
        let client = Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(self.patience)
            .tcp_keepalive(KEEP_ALIVE);
        let caller = Caller::of((&target.node, node), self.identity.as_ref(), client)?;
        let meta = caller.meta();
        let ends = self.verb == Verb::Drain && target.child.is_none();
        let answer = async || caller.send(self.verb.method(), &arguments, None).await;
        let is_cut = |error: &reqwest::Error| !error.is_connect() && !error.is_timeout();
        let answered = match answer().await {
            // It was ended at once meanwhile.
            Err(error) if ends && is_cut(&error) => {
                self.end_of(meta).await?;
                return Ok(self.done(Outcome { changed: true, drained: Drained::default() }));
            }
            // The node goes on as another program meanwhile, which does it to its end: to ask again changes nothing.
            Err(error) if matches!(self.verb, Verb::Stop { .. } | Verb::Drain) && is_cut(&error) => {
                sleep(LOOK_INTERVAL).await;
                answer().await
            }
            answered => answered,
        };
        let (status, body) =
            answered.with_context(|| format!("its meta port {} does not answer", node.meta))?;
        if status == StatusCode::OK {
            let outcome = serde_json::from_str(&body)?;
            if ends {
                self.end_of(meta).await?;
            }
            if self.verb == Verb::Upgrade {
                return self.upgraded(meta).await;
            }
            return Ok(self.done(outcome));
        }
        anyhow::bail!(refusal(status, &body))
    }

    fn done(&self, Outcome { changed, drained }: Outcome) -> Done {
        let [done, nothing] = self.verb.done();
        let words = match changed {
            true if drained.is_empty() => done.to_owned(),
            true => format!("{done}: {drained}"),
            false => nothing.to_owned(),
        };
        Done { changed, words, details: Details { drained, ..Details::default() } }
    }

    /// Waits until a node goes on as another program, and says which.
    async fn upgraded(&self, meta: &Meta) -> anyhow::Result<Done> {
        let status = meta.url("status", &[]);
        let page = async || -> anyhow::Result<Page> {
            let answer = meta.client.get(status.clone()).send().await?;
            Ok(serde_json::from_slice(&answer.bytes().await?)?)
        };
        let over = async {
            loop {
                sleep(LOOK_INTERVAL).await;
                // While one program follows the other its connections end.
                if let Ok(Page { version, upgrade: Some(upgrade) }) = page().await
                    && upgrade.progress != "under_way"
                {
                    return (version, upgrade);
                }
            }
        };
        let (version, upgrade) =
            timeout(self.patience, over).await.context("the upgrade goes on, but has not ended in time")?;
        if let Some(error) = upgrade.error {
            anyhow::bail!("{error}; it goes on as {version}");
        }
        let words = match upgrade.from == version {
            true => format!("runs its program anew, of version {version}"),
            false => format!("upgraded from {} to {version}", upgrade.from),
        };
        let details = Details { from: Some(upgrade.from), to: Some(version), ..Details::default() };
        Ok(Done { changed: true, words, details })
    }

    /// Waits until a node that drains has ended.
    async fn end_of(&self, meta: &Meta) -> anyhow::Result<()> {
        let health = meta.url("healthz", &[]);
        let gone = async {
            while meta.client.get(health.clone()).send().await.is_ok() {
                sleep(LOOK_INTERVAL).await;
            }
        };
        timeout(self.patience, gone).await.context("it drains, but has not ended in time")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_target_all_that_can_do_it_are_meant() {
        let nodes = Nodes::sample();
        let names = |verb, targets: &[Target]| {
            let chosen = choose(&nodes, verb, targets).unwrap();
            chosen.into_iter().map(|(target, _)| target.node).collect::<Vec<_>>()
        };
        assert_eq!(names(Verb::Restart, &[]), ["live-1", "proxy-1"]);
        assert_eq!(names(Verb::Reload, &[]), ["live-1", "proxy-1", "seed-1"]);
        assert_eq!(names(Verb::Drain, &[]), ["live-1", "proxy-1", "seed-1"]);
        assert_eq!(names(Verb::Stop { now: false }, &["seed-1".parse().unwrap()]), ["seed-1"]);
    }
}
