//! `protoplex top`: what all nodes and their processes use, looked at again and again.

mod roster;
mod sample;
mod screen;
mod table;
mod width;

use std::collections::BTreeMap;
use std::io::{IsTerminal, stdout};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use protoplex_runtime::signals::StopSignals;
use protoplex_wire::identity::Identity;
use ratatui::crossterm::event::{self, Event};
use reqwest::Client;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::cli::{Common, Top};
use crate::nodes::Nodes;
use crate::output::print;
use crate::rpc::{Caller, identity};
use roster::Roster;
use sample::{MEASURES, Sample};
use screen::{Answer, Screen};
use table::{Absence, Overview, Table};

/// How long a node may take to answer; one that takes longer is shown as silent.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Nodes come and go; who they are is asked for this often.
const NODES_INTERVAL: Duration = Duration::from_secs(5);
/// How often it is looked for a key, so that the thread that waits for one ends with the rest.
const KEY_POLL: Duration = Duration::from_millis(100);

/// Runs the command until `q`, Ctrl-C or SIGTERM.
pub(crate) async fn run(common: &Common, command: Top) -> anyhow::Result<()> {
    let mut watch = Watch::begin(common, &command).await?;
    if command.once || common.json || !stdout().is_terminal() || is_dumb() {
        watch.look().await;
        sleep(command.interval).await;
        let mut table = watch.look().await;
        table.sort(command.sort, false);
        return Ok(print(common.json, &table, Table::text)?);
    }
    let mut stop = StopSignals::take()?;
    let mut terminal = ratatui::try_init()?;
    let shown = tokio::select! {
        shown = show(&mut terminal, &mut watch, &command) => shown,
        _ = stop.next() => Ok(()),
    };
    // The terminal is as it was, whatever is said next.
    ratatui::restore();
    shown
}

/// Whether the terminal has no cursor to be moved.
fn is_dumb() -> bool {
    std::env::var_os("TERM").is_some_and(|terminal| terminal == "dumb")
}

async fn show(
    terminal: &mut ratatui::DefaultTerminal,
    watch: &mut Watch<'_>,
    command: &Top,
) -> anyhow::Result<()> {
    let mut keys = keys();
    let mut screen = Screen::new(command.sort, command.interval);
    let mut ticks = interval(command.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        terminal.draw(|frame| screen.draw(frame))?;
        tokio::select! {
            // A key that comes meanwhile waits for the answers, at most `ANSWER_TIMEOUT`.
            _ = ticks.tick() => screen.update(watch.look().await),
            event = keys.recv() => match event {
                Some(event) if screen.take(&event) == Answer::Quit => return Ok(()),
                Some(_) => {}
                None => return Ok(()),
            },
        }
    }
}

/// What is typed, and when the window changes. The thread ends when nobody listens any more.
fn keys() -> mpsc::Receiver<Event> {
    let (told, keys) = mpsc::channel(16);
    spawn_blocking(move || {
        while !told.is_closed() {
            match event::poll(KEY_POLL) {
                Ok(false) => {}
                Ok(true) => {
                    let Ok(event) = event::read() else { return };
                    if told.blocking_send(event).is_err() {
                        return;
                    }
                }
                Err(_) => return,
            }
        }
    });
    keys
}

/// The nodes that are looked at, and what they said last.
struct Watch<'a> {
    common: &'a Common,
    identity: Option<Identity>,
    roster: Roster,
    callers: BTreeMap<String, Caller>,
    /// Who there is, being found out. Where no seed leads that takes a while, and the table goes on.
    finding: Option<JoinHandle<anyhow::Result<Nodes>>>,
    known_at: Instant,
    last: BTreeMap<String, Sample>,
    /// Of the seed that leads, as far as it is known; it need not be among those that are looked at.
    term: Option<u64>,
}

impl<'a> Watch<'a> {
    async fn begin(common: &'a Common, command: &Top) -> anyhow::Result<Self> {
        let nodes = Nodes::find(common).await?;
        for name in &command.nodes {
            // One that is lost is shown, too.
            if !nodes.lost.contains_key(name) {
                nodes.alike(name)?;
            }
        }
        let mut watch = Self {
            common,
            identity: identity(common)?,
            roster: Roster::new(&command.nodes),
            callers: BTreeMap::new(),
            finding: None,
            known_at: Instant::now(),
            last: BTreeMap::new(),
            term: None,
        };
        watch.take(&nodes)?;
        Ok(watch)
    }

    /// Goes by what is known now.
    fn take(&mut self, nodes: &Nodes) -> anyhow::Result<()> {
        let now = Instant::now();
        self.term = nodes.term;
        self.roster.take(nodes, now);
        let mut callers = BTreeMap::new();
        for (node, entry) in &self.roster.entries {
            let known = self.callers.remove(node).filter(|caller| caller.is_for(&entry.found));
            let client = || Client::builder().timeout(ANSWER_TIMEOUT);
            let caller = match known {
                Some(caller) => caller,
                None => Caller::of((node, &entry.found), self.identity.as_ref(), client())?,
            };
            callers.insert(node.clone(), caller);
        }
        (self.callers, self.known_at) = (callers, now);
        Ok(())
    }

    /// Finds out now and then who there is.
    async fn find(&mut self) {
        if let Some(finding) = self.finding.take_if(|finding| finding.is_finished()) {
            // Where nobody is found, those that were there are asked on.
            let nodes = finding.await.ok().and_then(Result::ok).unwrap_or_default();
            let _ = self.take(&nodes);
        }
        if self.finding.is_none() && self.known_at.elapsed() >= NODES_INTERVAL {
            let common = self.common.clone();
            self.finding = Some(tokio::spawn(async move { Nodes::find(&common).await }));
        }
    }

    /// Asks all nodes at once.
    async fn look(&mut self) -> Table {
        self.find().await;
        let arguments = json!({ "prefixes": MEASURES }).to_string();
        let asked = self.callers.iter().map(async |(node, caller)| {
            let answers = async {
                let status = caller.call("status", "{}", None).await.ok()?;
                let measures = caller.call("metrics", &arguments, None).await.ok()?;
                Sample::read(status, measures, Instant::now())
            };
            (node.clone(), answers.await)
        });
        let mut rows = Vec::new();
        let mut samples = BTreeMap::new();
        for (node, sample) in join_all(asked).await {
            let now = Instant::now();
            if sample.is_some() {
                self.roster.heard(&node, now);
            }
            let Some(entry) = self.roster.entries.get(&node) else { continue };
            let kind = &entry.found.kind;
            match sample {
                Some(sample) => {
                    rows.extend(table::rows(&node, kind, &sample, self.last.get(&node)));
                    samples.insert(node, sample);
                }
                None => {
                    let absence = Absence { standing: entry.standing, time: now - entry.heard };
                    rows.push(table::absent(&node, kind, absence));
                }
            }
        }
        let overview = Overview::of(&rows, self.callers.len(), &samples, self.term);
        self.last = samples;
        Table { overview, rows }
    }
}
