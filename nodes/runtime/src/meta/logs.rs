//! `GET /logs`: the lines of this node and its children, the last ones and those to come, one JSON object a line.

use std::borrow::Cow;
use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Deserialize;
use thiserror::Error;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout};
use tracing::Level;

use crate::log_file::{Trail, TrailError, Verdict};
use crate::node::Node;
use crate::telemetry;

/// So many may follow at once.
static FOLLOWERS: Semaphore = Semaphore::const_new(32);
/// So many may be shown what there is at once; others wait for so long.
static READERS: Semaphore = Semaphore::const_new(8);
const READERS_PATIENCE: Duration = Duration::from_secs(2);
/// The most that may be asked for of what there is already.
const MAX_LINES: usize = 10_000;
/// Between two looks for new lines.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// After so much silence an empty line shows that the stream goes on.
const SILENCE: Duration = Duration::from_secs(10);
/// Lines of several processes are not quite in order of time: where so many are too old, all before them are.
const DISORDER_LINES: u32 = 1_000;

/// What is asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Wanted {
    /// Of whom lines are expected: on another machine, another node may listen here.
    node: Option<String>,
    /// Of these children alone: `0` or `0,2`.
    child: Option<String>,
    /// Of this level and graver.
    level: String,
    /// With so many of the last lines.
    lines: usize,
    /// Only lines of a later time than this.
    since: String,
    /// Go on with those to come.
    follow: bool,
}

impl Default for Wanted {
    fn default() -> Self {
        Self {
            node: None,
            child: None,
            level: "trace".to_owned(),
            lines: 10,
            since: String::new(),
            follow: false,
        }
    }
}

/// Why no lines are shown.
#[derive(Debug, Error)]
enum Refusal {
    #[error("the query can't be understood: {0}")]
    Query(String),
    #[error("this is {0}, and no other")]
    Stranger(String),
    #[error("{node} has {children} children, counted from 0")]
    Child { node: String, children: usize },
    #[error(
        "{0} keeps no lines that could be shown: it logs to standard error (see the journal), or as text; \
         set log.file, and leave log.format out"
    )]
    NotKept(String),
    #[error("too many read this log already")]
    Busy,
    #[error(transparent)]
    Trail(#[from] TrailError),
}

/// Answers with `application/x-ndjson`; empty lines mean nothing.
pub(super) async fn show(
    State(node): State<Arc<Node>>,
    query: Result<Query<Wanted>, QueryRejection>,
) -> Response {
    match begin(&node, query).await {
        Ok(following) => {
            let lines = stream::unfold(following, Following::next);
            ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
        }
        Err(refusal) => refusal.into_response(),
    }
}

async fn begin(node: &Node, query: Result<Query<Wanted>, QueryRejection>) -> Result<Following, Refusal> {
    let Query(wanted) = query.map_err(|rejection| Refusal::Query(rejection.body_text()))?;
    let filter = Filter::new(node, &wanted)?;
    let path = telemetry::kept().ok_or_else(|| Refusal::NotKept(node.name().to_owned()))?;
    let permit = match wanted.follow {
        true => FOLLOWERS.try_acquire().map_err(|_| Refusal::Busy)?,
        false => {
            let waited = timeout(READERS_PATIENCE, READERS.acquire()).await.map_err(|_| Refusal::Busy)?;
            // It is never closed.
            waited.map_err(|_| Refusal::Busy)?
        }
    };
    let opened = spawn_blocking(move || {
        let opened = Trail::open(&path, wanted.lines.min(MAX_LINES), |line| filter.judge(line));
        opened.map(|(trail, lines)| (filter, trail, lines))
    });
    // It is cancelled only with the runtime, and this with it.
    let (filter, trail, lines) = opened.await.map_err(|_| Refusal::Busy)??;
    Ok(Following { filter, trail, first: Some(lines), follow: wanted.follow, _permit: permit })
}

/// Which lines are wanted.
#[derive(Debug)]
struct Filter {
    node: String,
    children: Option<Vec<u32>>,
    level: Level,
    since: String,
    /// How many lines in a row were too old.
    old: Cell<u32>,
}

/// What of a line is looked at.
#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    time: Cow<'a, str>,
    #[serde(borrow)]
    level: Cow<'a, str>,
    #[serde(borrow)]
    node: Cow<'a, str>,
    child: Option<u32>,
}

impl Filter {
    fn new(node: &Node, wanted: &Wanted) -> Result<Self, Refusal> {
        let (name, children) = (node.name(), node.child_count());
        if wanted.node.as_ref().is_some_and(|asked| *asked != name) {
            return Err(Refusal::Stranger(name));
        }
        let level = wanted.level.parse();
        let level = level.map_err(|_| Refusal::Query(format!("{:?} is no level", wanted.level)))?;
        let numbers = |text: &String| text.split(',').map(str::parse).collect::<Result<Vec<u32>, _>>();
        let numbers = wanted.child.as_ref().map(numbers).transpose();
        let numbers = numbers.map_err(|error| Refusal::Query(format!("child: {error}")))?;
        if numbers.iter().flatten().any(|child| *child as usize >= children) {
            return Err(Refusal::Child { node: name, children });
        }
        Ok(Self { node: name, children: numbers, level, since: wanted.since.clone(), old: Cell::new(0) })
    }

    fn judge(&self, line: &[u8]) -> Verdict {
        // What is no line of ours is shown to nobody.
        let Ok(head) = serde_json::from_slice::<Head<'_>>(line) else { return Verdict::Skip };
        if *head.time <= *self.since {
            self.old.set(self.old.get() + 1);
            return if self.old.get() < DISORDER_LINES { Verdict::Skip } else { Verdict::Stop };
        }
        self.old.set(0);
        let of_child = |children: &Vec<u32>| head.child.is_some_and(|child| children.contains(&child));
        let is_grave = || head.level.parse::<Level>().is_ok_and(|level| level <= self.level);
        let is_wanted = head.node == self.node && self.children.as_ref().is_none_or(of_child) && is_grave();
        if is_wanted { Verdict::Take } else { Verdict::Skip }
    }
}

/// An answer on its way.
struct Following {
    filter: Filter,
    trail: Trail,
    first: Option<Vec<u8>>,
    follow: bool,
    _permit: SemaphorePermit<'static>,
}

impl Following {
    /// Some lines, and what is to follow them.
    async fn next(mut self) -> Option<(Result<Vec<u8>, TrailError>, Self)> {
        match self.first.take() {
            Some(lines) if !lines.is_empty() => return Some((Ok(lines), self)),
            _ if !self.follow => return None,
            // An answer that begins at once tells that all is well.
            Some(_) => return Some((Ok(b"\n".to_vec()), self)),
            None => {}
        }
        let asked = Instant::now();
        loop {
            let looked = spawn_blocking(move || {
                let looked = self.trail.read(|line| self.filter.judge(line));
                (looked, self)
            });
            // It is cancelled only with the runtime.
            let (looked, following) = looked.await.ok()?;
            self = following;
            match looked {
                Ok((lines, _)) if !lines.is_empty() => return Some((Ok(lines), self)),
                Ok(_) if asked.elapsed() > SILENCE => return Some((Ok(b"\n".to_vec()), self)),
                Ok((_, true)) => {}
                Ok(_) => sleep(POLL_INTERVAL).await,
                Err(error) => return Some((Err(error), self)),
            }
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, kind) = match self {
            Self::Query(_) => (StatusCode::BAD_REQUEST, "bad-query"),
            Self::Stranger(_) => (StatusCode::NOT_FOUND, "another-node"),
            Self::Child { .. } => (StatusCode::NOT_FOUND, "no-such-child"),
            Self::NotKept(_) => (StatusCode::CONFLICT, "log-not-kept"),
            Self::Busy => (StatusCode::SERVICE_UNAVAILABLE, "too-many-followers"),
            Self::Trail(_) => (StatusCode::INTERNAL_SERVER_ERROR, "log-unreadable"),
        };
        let problem = serde_json::json!({
            "type": format!("urn:protoplex:problem:{kind}"),
            "title": status.canonical_reason(),
            "status": status.as_u16(),
            "detail": self.to_string(),
        });
        (status, [(header::CONTENT_TYPE, "application/problem+json")], Json(problem)).into_response()
    }
}
