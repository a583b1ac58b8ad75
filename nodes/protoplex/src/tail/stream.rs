//! The lines of one node, from its meta port, for as long as they are wanted.

use std::time::Duration;

use protoplex_runtime::telemetry::Record;
use protoplex_wire::backoff::Backoff;
use protoplex_wire::identity::Identity;
use reqwest::{Client, Response, StatusCode};
use tokio::sync::mpsc::Sender;
use tokio::time::sleep;

use crate::cli::{Common, Level, Tail};
use crate::cluster;
use crate::meta::{Meta, refusal};
use crate::nodes;
use crate::output;
use crate::settings::Settings;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A node says something every ten seconds.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(30);
/// Longer than any line.
const LINE_BYTES: usize = 2 << 20;
/// Lines that may have been missed while a node was away.
const MISSED_LINES: u32 = 10_000;

/// What is heard of a node.
pub(super) enum Heard {
    Line(Line),
    /// For the operator: it is away, or back.
    Told(String),
    /// It will never show its lines.
    Refused(String),
}

/// A line of a log.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) raw: String,
    pub(super) record: Record,
}

/// One node that is followed.
pub(super) struct Stream {
    common: Common,
    node: String,
    children: String,
    level: Level,
    lines: u32,
    follow: bool,
    identity: Option<Identity>,
    /// Of the last line.
    since: String,
    is_known: bool,
    told: Sender<Heard>,
}

/// How a connection ended.
enum End {
    /// All was said.
    Over,
    /// For this reason; later it may be there.
    Away(String),
    /// For this reason, which will not change by itself.
    Refused(String),
}

impl Stream {
    pub(super) fn new(
        common: &Common,
        command: &Tail,
        node: String,
        children: Vec<u32>,
        told: Sender<Heard>,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            common: common.clone(),
            node,
            children: children.iter().map(u32::to_string).collect::<Vec<_>>().join(","),
            level: command.level,
            lines: command.lines,
            follow: !command.no_follow,
            identity: cluster::identity(common, &Settings::load(common)?),
            since: String::new(),
            is_known: false,
            told,
        })
    }

    /// Tells of its lines until all was said, or for ever.
    pub(super) async fn keep(mut self) {
        let (mut backoff, mut is_away) = (Backoff::default(), false);
        loop {
            let end = match self.ask().await {
                Ok(answer) => {
                    if std::mem::take(&mut is_away) {
                        self.tell(Heard::Told(format!("protoplex: {} is back", self.node))).await;
                    }
                    backoff.reset();
                    self.read(answer).await
                }
                Err(end) => end,
            };
            match end {
                End::Over => return,
                End::Refused(reason) => {
                    return self.tell(Heard::Refused(format!("protoplex: {reason}"))).await;
                }
                End::Away(reason) if !self.follow => {
                    let reason = format!("protoplex: {} can't be reached: {reason}", self.node);
                    return self.tell(Heard::Refused(reason)).await;
                }
                End::Away(reason) if !is_away => {
                    is_away = true;
                    let note = format!("protoplex: {} is away, and is tried again: {reason}", self.node);
                    self.tell(Heard::Told(note)).await;
                }
                End::Away(_) => {}
            }
            sleep(backoff.next_delay()).await;
        }
    }

    async fn tell(&self, heard: Heard) {
        // Where nobody listens any more this task is about to be dropped.
        let _ = self.told.send(heard).await;
    }

    async fn ask(&mut self) -> Result<Response, End> {
        let meta = nodes::meta(&self.common, &self.node).await;
        let found = meta.ok_or_else(|| End::Away("it does not run".to_owned()))?;
        let refused =
            |error: anyhow::Error| End::Refused(format!("{}: {}", self.node, output::whole(&error)));
        let client = Client::builder().connect_timeout(CONNECT_TIMEOUT).read_timeout(SILENCE_TIMEOUT);
        let meta = Meta::of(&found, self.identity.as_ref(), client).map_err(refused)?;
        let lines = if self.is_known { MISSED_LINES } else { self.lines };
        let (lines, follow) = (lines.to_string(), self.follow.to_string());
        let mut query = vec![
            ("node", self.node.as_str()),
            ("level", self.level.name()),
            ("lines", &lines),
            ("since", &self.since),
            ("follow", &follow),
        ];
        if !self.children.is_empty() {
            query.push(("child", &self.children));
        }
        let url = meta.url("logs", &query);
        let answer = meta.client.get(url).send().await.map_err(|error| End::Away(why(&error)))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let body = answer.text().await.unwrap_or_default();
        let detail = format!("{}: {}", self.node, refusal(status, &body));
        match status {
            // While it is away another one may have got its port.
            StatusCode::NOT_FOUND if self.is_known => Err(End::Away(detail)),
            status if status.is_server_error() => Err(End::Away(detail)),
            _ => Err(End::Refused(detail)),
        }
    }

    async fn read(&mut self, mut answer: Response) -> End {
        self.is_known = true;
        let mut text = Vec::new();
        loop {
            match answer.chunk().await {
                Ok(Some(part)) => text.extend_from_slice(&part),
                Ok(None) if self.follow => return End::Away("it has ended".to_owned()),
                Ok(None) => return End::Over,
                Err(error) => return End::Away(why(&error)),
            }
            let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            for line in String::from_utf8_lossy(&text[..whole]).lines() {
                // Empty ones only show that it is there.
                if let Ok(record) = serde_json::from_str::<Record>(line) {
                    if record.time > self.since {
                        self.since.clone_from(&record.time);
                    }
                    self.tell(Heard::Line(Line { raw: line.to_owned(), record })).await;
                }
            }
            text.drain(..whole);
            if text.len() > LINE_BYTES {
                return End::Away("it sends a line without end".to_owned());
            }
        }
    }
}

/// The innermost cause says it in the fewest words.
fn why(error: &reqwest::Error) -> String {
    let causes = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    causes.last().map(ToString::to_string).unwrap_or_default()
}
