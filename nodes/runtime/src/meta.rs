//! The meta port of a node and its children: `/healthz`, `/readyz`, `/metrics`, `/status`, `/config` and `/logs` to read, and
//! by POST the commands `/start`, `/stop`, `/restart`, `/drain`, `/reload`, `/upgrade` and
//! `/log-level`. All of that can be asked for by name and in JSON, too: `/rpc`.

mod access;
mod door;
mod guard;
mod logs;
mod patience;
mod rpc;

use std::io;
use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, Query, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpListener;
use tracing::{error, info};

use crate::children::ChildError;
use crate::commands::{CommandError, Outcome};
use crate::node::Node;
use crate::telemetry;

use door::{Caller, Door};

pub(crate) use access::Access;
pub use door::{MetaTlsError, TlsSettings};
pub use guard::Tokens;
pub(crate) use rpc::PassingLevel;
pub use rpc::is_command_method;

/// The media type of Prometheus's text format.
const EXPOSITION: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The media type of a problem (RFC 9457).
const PROBLEM: &str = "application/problem+json";

/// Who gives a command. Every command needs this field: a page in some browser can't send it without our leave, so it can't
/// command the nodes of the machine that it is looked at on.
pub const OPERATOR: &str = "protoplex-operator";

/// Answers until it is dropped.
pub(crate) async fn serve(node: Arc<Node>) {
    let served = async {
        let socket = TcpListener::from_std(node.estate().meta.try_clone()?)?;
        let door = Door::new(socket, node.access().tls(), node.upgrades().open());
        door.serve(pages(Arc::clone(&node))).await;
        io::Result::Ok(())
    };
    if let Err(error) = served.await {
        error!(%error, "the meta port is lost");
    }
}

fn pages(node: Arc<Node>) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/status", get(status))
        .route("/start", post(start))
        .route("/stop", post(stop))
        .route("/restart", post(restart))
        .route("/drain", post(drain))
        .route("/reload", post(reload))
        .route("/upgrade", post(upgrade))
        .route("/config", get(config))
        .route("/log-level", get(log_level).post(set_log_level))
        .route("/logs", get(logs::show))
        .route("/rpc", get(rpc::inspect))
        .route("/rpc/{method}", post(rpc::call))
        .layer(DefaultBodyLimit::max(rpc::MAX_ARGUMENTS_BYTES))
        .layer(from_fn(admit))
        .layer(from_fn_with_state(Arc::clone(&node), check))
        .with_state(node)
}

async fn ready(State(node): State<Arc<Node>>) -> Response {
    let lines = |words: Option<String>| words.map_or_else(String::new, |words| words + "\n");
    let seedless = lines(node.seedless());
    if node.is_ready() {
        format!("ready\n{seedless}").into_response()
    } else {
        let why = lines(node.hindrance());
        (StatusCode::SERVICE_UNAVAILABLE, format!("not ready\n{why}{seedless}")).into_response()
    }
}

async fn metrics(State(node): State<Arc<Node>>) -> Response {
    ([(header::CONTENT_TYPE, EXPOSITION)], node.metrics().await).into_response()
}

/// Refuses whoever is not known where that is needed.
async fn check(
    State(node): State<Arc<Node>>,
    Extension(caller): Extension<Caller>,
    request: Request,
    next: Next,
) -> Response {
    let is_command = is_command(&request);
    match node.access().guard.admit(request.uri().path(), is_command, request.headers(), caller) {
        Ok(()) => next.run(request).await,
        Err(refusal) => {
            let mut answer = problem(refusal.status(), refusal.detail());
            if refusal.status() == StatusCode::UNAUTHORIZED {
                answer.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            answer
        }
    }
}

async fn config(State(node): State<Arc<Node>>) -> Response {
    Json(node.configuration()).into_response()
}

/// Whether it may change anything.
fn is_command(request: &Request) -> bool {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    !reads && !rpc::only_reads(request.uri().path())
}

/// Notes who gives a command, and refuses those of nobody.
async fn admit(request: Request, next: Next) -> Response {
    if !is_command(&request) {
        return next.run(request).await;
    }
    let operator = request.headers().get(OPERATOR).and_then(|name| name.to_str().ok());
    match operator.map(str::to_owned) {
        Some(operator) => {
            info!(operator, command = %request.uri(), "told by an operator");
            next.run(request).await
        }
        None => problem(StatusCode::FORBIDDEN, "A command has to name its operator, in Protoplex-Operator."),
    }
}

/// What a command is for: `?child=0`, or without it the whole node.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Target {
    /// Whom the operator means: on another machine another node may have this address.
    node: Option<String>,
    child: Option<u32>,
    /// Without letting anything finish.
    #[serde(default)]
    now: bool,
}

async fn start(State(node): State<Arc<Node>>, Query(target): Query<Target>) -> Response {
    carry_out(node, target, |node, target| async move { node.start(target.child).await }).await
}

async fn stop(State(node): State<Arc<Node>>, Query(target): Query<Target>) -> Response {
    carry_out(node, target, |node, target| async move { node.stop(target.child, target.now).await }).await
}

async fn restart(State(node): State<Arc<Node>>, Query(target): Query<Target>) -> Response {
    carry_out(node, target, |node, target| async move { node.restart(target.child).await }).await
}

async fn drain(State(node): State<Arc<Node>>, Query(target): Query<Target>) -> Response {
    carry_out(node, target, |node, target| async move { node.drain(target.child).await }).await
}

async fn reload(State(node): State<Arc<Node>>, Query(target): Query<Target>) -> Response {
    carry_out(node, target, |node, _| async move { node.reload().await }).await
}

async fn upgrade(State(node): State<Arc<Node>>, Query(target): Query<Target>) -> Response {
    carry_out(node, target, |node, _| async move { node.upgrade().await }).await
}

async fn log_level() -> Response {
    Json(json!({ "level": telemetry::level() })).into_response()
}

/// `?level=debug`, or per module as in `info,protoplex_proxy=debug`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LogLevel {
    level: String,
}

async fn set_log_level(State(node): State<Arc<Node>>, Query(wanted): Query<LogLevel>) -> Response {
    answer(node.set_log_level(&wanted.level))
}

/// Carries a command out, to its end even where its operator goes away.
async fn carry_out<F>(
    node: Arc<Node>,
    target: Target,
    command: impl FnOnce(Arc<Node>, Target) -> F,
) -> Response
where
    F: Future<Output = Result<Outcome, CommandError>> + Send + 'static,
{
    if let Some(meant) = target.node.as_ref().filter(|meant| **meant != node.name()) {
        return misdirected(&node, meant);
    }
    match tokio::spawn(command(node, target)).await {
        Ok(outcome) => answer(outcome),
        Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

/// To who means another node.
fn misdirected(node: &Node, meant: &str) -> Response {
    let detail =
        format!("This is {}, not {meant}: its meta port is not reached at this address.", node.name());
    problem(StatusCode::MISDIRECTED_REQUEST, &detail)
}

/// `{"changed": true}`, or a problem (RFC 9457) that says why not.
fn answer(outcome: Result<Outcome, CommandError>) -> Response {
    let error = match outcome {
        Ok(outcome) => return Json(outcome).into_response(),
        Err(error) => error,
    };
    let status = match &error {
        CommandError::Child(ChildError::Unknown { .. }) => StatusCode::NOT_FOUND,
        CommandError::Child(ChildError::NotReady { .. }) => StatusCode::INTERNAL_SERVER_ERROR,
        CommandError::Child(_) | CommandError::Solo(_) | CommandError::Upgrading => StatusCode::CONFLICT,
        CommandError::Upgrade(_) => StatusCode::UNPROCESSABLE_ENTITY,
        CommandError::Level(_) => StatusCode::BAD_REQUEST,
        CommandError::Configuration(_) | CommandError::Fixed(_) => StatusCode::UNPROCESSABLE_ENTITY,
    };
    problem(status, &error.to_string())
}

fn problem(status: StatusCode, detail: &str) -> Response {
    let problem = json!({ "status": status.as_u16(), "detail": detail });
    (status, [(header::CONTENT_TYPE, PROBLEM)], problem.to_string()).into_response()
}

async fn status(State(node): State<Arc<Node>>) -> Response {
    Json(node.page()).into_response()
}
