//! `protoplex top`: what all nodes and their processes use, looked at again and again.

mod sample;
mod screen;
mod table;

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
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::cli::{Common, Top};
use crate::nodes::Nodes;
use crate::output::print;
use crate::rpc::{Caller, identity};
use sample::{MEASURES, Sample};
use screen::{Answer, Screen};
use table::{Overview, Table};

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
    wanted: &'a [String],
    identity: Option<Identity>,
    callers: BTreeMap<String, (String, Caller)>,
    known_at: Instant,
    last: BTreeMap<String, Sample>,
}

impl<'a> Watch<'a> {
    async fn begin(common: &'a Common, command: &'a Top) -> anyhow::Result<Self> {
        let mut watch = Self {
            common,
            wanted: &command.nodes,
            identity: identity(common)?,
            callers: BTreeMap::new(),
            known_at: Instant::now(),
            last: BTreeMap::new(),
        };
        watch.find().await?;
        Ok(watch)
    }

    async fn find(&mut self) -> anyhow::Result<()> {
        let nodes = Nodes::find(self.common).await?;
        let mut wanted: BTreeMap<_, _> = BTreeMap::new();
        for name in self.wanted {
            wanted.extend(nodes.alike(name)?);
        }
        if self.wanted.is_empty() {
            wanted.extend(nodes.all());
        }
        let mut callers = BTreeMap::new();
        for (node, found) in wanted {
            let known = self.callers.remove(node).filter(|(_, caller)| caller.is_for(found));
            let caller = match known {
                Some((_, caller)) => caller,
                None => {
                    let client = Client::builder().timeout(ANSWER_TIMEOUT);
                    Caller::of((node, found), self.identity.as_ref(), client)?
                }
            };
            callers.insert(node.to_owned(), (found.kind.clone(), caller));
        }
        (self.callers, self.known_at) = (callers, Instant::now());
        Ok(())
    }

    /// Asks all nodes at once.
    async fn look(&mut self) -> Table {
        if self.known_at.elapsed() >= NODES_INTERVAL {
            // Those that were there are asked on where nobody knows better.
            let _ = self.find().await;
        }
        let arguments = json!({ "prefixes": MEASURES }).to_string();
        let asked = self.callers.iter().map(async |(node, (kind, caller))| {
            let answers = async {
                let status = caller.call("status", "{}", None).await.ok()?;
                let measures = caller.call("metrics", &arguments, None).await.ok()?;
                Sample::read(status, measures, Instant::now())
            };
            (node.clone(), kind.clone(), answers.await)
        });
        let mut rows = Vec::new();
        let mut samples = BTreeMap::new();
        for (node, kind, sample) in join_all(asked).await {
            let before = self.last.get(&node);
            rows.extend(table::rows(&node, &kind, sample.as_ref(), before));
            samples.extend(sample.map(|sample| (node, sample)));
        }
        let overview = Overview::of(&rows, self.callers.len(), &samples);
        self.last = samples;
        Table { overview, rows }
    }
}
