//! `POST /rpc/METHOD`: an object of JSON in, any JSON out. `GET /rpc` tells which methods there are.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};
use tracing::{debug, info};

use super::{answer, problem};
use crate::commands::{CommandError, Outcome};
use crate::interface::{Call, Method, methods, named};
use crate::node::{Body, Node};
use crate::telemetry::{self, within_trace};

/// Where methods are, before their names.
const PATH: &str = "/rpc/";
/// How large what a call brings may be, in bytes.
pub(super) const MAX_ARGUMENTS_BYTES: usize = 1 << 20;

/// Whether a request to this path is one of a method that changes nothing.
pub(super) fn only_reads(path: &str) -> bool {
    let method = path.strip_prefix(PATH).and_then(|name| named(name).ok());
    method.is_some_and(|method| !method.is_command)
}

/// Whether a method of this name changes something; of one that there is not, no.
pub fn is_command_method(name: &str) -> bool {
    named(name).is_ok_and(|method| method.is_command)
}

/// Whom the caller means: on another machine another node may have this address.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Meant {
    node: Option<String>,
}

/// What the node is, and what it can be asked for.
pub(super) async fn inspect(State(node): State<Arc<Node>>) -> Response {
    Json(description(&node)).into_response()
}

pub(super) async fn call(
    State(node): State<Arc<Node>>,
    Path(method): Path<String>,
    Query(meant): Query<Meant>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    if let Some(meant) = meant.node.filter(|meant| *meant != node.name()) {
        return super::misdirected(&node, &meant);
    }
    let method = match named(&method) {
        Ok(method) => method,
        Err(detail) => return problem(StatusCode::NOT_FOUND, &detail),
    };
    let arguments = match method.arguments(&body) {
        Ok(arguments) => arguments,
        Err(detail) => return problem(StatusCode::BAD_REQUEST, &detail),
    };
    let began = Instant::now();
    // To its end, even where its caller goes away.
    let called = tokio::spawn(carry_out(Arc::clone(&node), method, arguments)).await;
    let response =
        called.unwrap_or_else(|error| problem(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()));
    let (duration_us, status) = (began.elapsed().as_micros() as u64, response.status().as_u16());
    match trace(&headers) {
        Some(id) => within_trace(&id, || info!(method = method.name, status, duration_us, "was asked")),
        None => debug!(method = method.name, status, duration_us, "was asked"),
    }
    response
}

async fn carry_out(node: Arc<Node>, method: &'static Method, arguments: Map<String, Value>) -> Response {
    let child = arguments.get("child").and_then(Value::as_u64).and_then(|child| u32::try_from(child).ok());
    let flag = |name: &str| arguments.get(name).and_then(Value::as_bool).unwrap_or_default();
    let text = |name: &str| arguments.get(name).and_then(Value::as_str).unwrap_or_default();
    match method.call {
        Call::Ping => Json(arguments.get("payload").cloned().unwrap_or_default()).into_response(),
        Call::Status => Json(node.page()).into_response(),
        Call::Inspect => Json(description(&node)).into_response(),
        Call::Metrics => {
            let prefixes = arguments.get("prefixes").and_then(Value::as_array).into_iter().flatten();
            let prefixes: Vec<_> = prefixes.filter_map(Value::as_str).collect();
            Json(node.measures(&prefixes).await).into_response()
        }
        Call::Config => Json(node.configuration()).into_response(),
        Call::ChangeLogLevel => {
            let period = arguments.get("for_s").and_then(Value::as_u64).map(Duration::from_secs);
            answer(change_log_level(&node, text("level"), period))
        }
        Call::Reload => answer(node.reload().await),
        Call::Restart => answer(node.restart(child).await),
        Call::Start => answer(node.start(child).await),
        Call::Stop => answer(node.stop(child, flag("now")).await),
        Call::Drain => answer(node.drain(child).await),
        Call::Upgrade => answer(node.upgrade().await),
    }
}

fn description(node: &Node) -> Value {
    let about = node.running();
    json!({
        "node": about.node,
        "kind": about.kind,
        "version": about.version,
        "pid": about.pid,
        "methods": methods(matches!(node.body(), Body::Solo(_))),
    })
}

/// For a while only, if that is wanted: then it is as it was before all that is for a while, unless somebody has changed it
/// otherwise.
fn change_log_level(
    node: &Arc<Node>,
    level: &str,
    period: Option<Duration>,
) -> Result<Outcome, CommandError> {
    let mut passing = node.passing_level();
    let now = telemetry::level();
    let before = passing.take().filter(|passing| Some(&passing.level) == now.as_ref());
    let before = before.map(|passing| passing.before.clone()).or(now);
    let outcome = node.set_log_level(level)?;
    if let (Some(period), Some(before)) = (period, before) {
        let (node, level) = (Arc::clone(node), level.to_owned());
        let timer = tokio::spawn(async move {
            sleep(period).await;
            if let Some(passing) = node.passing_level().take()
                && telemetry::level().as_ref() == Some(&passing.level)
                && node.set_log_level(&passing.before).is_ok()
            {
                info!(became = passing.before, "logs as before");
            }
        });
        *passing = Some(PassingLevel { level, before, timer: timer.abort_handle() });
    }
    Ok(outcome)
}

/// A level that is for a while only.
#[derive(Debug)]
pub(crate) struct PassingLevel {
    level: String,
    before: String,
    timer: AbortHandle,
}

impl Drop for PassingLevel {
    fn drop(&mut self) {
        self.timer.abort();
    }
}

/// The trace that the caller names (W3C Trace Context, section 3.2), if it is one.
fn trace(headers: &HeaderMap) -> Option<[u8; 32]> {
    let mut parts = headers.get("traceparent")?.to_str().ok()?.split('-');
    let id: [u8; 32] = parts.nth(1)?.as_bytes().try_into().ok()?;
    let is_hex = id.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    (is_hex && id != [b'0'; 32]).then_some(id)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn only_methods_that_read_are_for_readers() {
        let reads = ["ping", "status", "inspect", "metrics", "config"];
        for method in methods(false) {
            assert_eq!(only_reads(&format!("{PATH}{}", method.name)), reads.contains(&method.name));
        }
        assert!(!only_reads("/rpc/nothing") && !only_reads("/status") && !only_reads("/rpc/"));
    }

    #[test]
    fn a_trace_is_taken_where_it_is_one() {
        let of = |text: &str| {
            let headers = HeaderMap::from_iter([(
                axum::http::HeaderName::from_static("traceparent"),
                HeaderValue::from_str(text).unwrap(),
            )]);
            trace(&headers).map(|id| String::from_utf8(id.to_vec()).unwrap())
        };
        let id = "0af7651916cd43dd8448eb211c80319c";
        assert_eq!(of(&format!("00-{id}-b7ad6b7169203331-01")).as_deref(), Some(id));
        for wrong in ["", "00", "00-0af7", "00-00000000000000000000000000000000-b7ad6b7169203331-01"] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }
}
