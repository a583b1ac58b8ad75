//! The meta port of a node and its children: `/healthz`, `/readyz`, `/metrics`, `/status`, `/config` and `/logs` to read, and
//! `/rpc`, by which a node is asked and commanded by name and in JSON.

mod access;
mod door;
mod guard;
mod logs;
mod patience;
mod rpc;

use std::io;
use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use rustix::process::geteuid;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::spawn_blocking;
use tracing::{error, info};

use crate::children::ChildError;
use crate::commands::{CommandError, Outcome};
use crate::node::Node;
use crate::procfs;

use door::{Caller, Door, Ends};

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
        .route("/config", get(config))
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
    Extension(ends): Extension<Option<Ends>>,
    request: Request,
    next: Next,
) -> Response {
    let (path, is_command) = (request.uri().path(), is_command(&request));
    let guard = &node.access().guard;
    let is_owner = guard.is_for_owners(path, is_command) && is_owner(ends).await;
    let caller = if is_owner { Caller::Owner } else { caller };
    match guard.admit(path, is_command, request.headers(), caller) {
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

/// Whether it is root who asks, or the user that this process runs as: they could do it all without asking.
async fn is_owner(ends: Option<Ends>) -> bool {
    let Some(ends) = ends else { return false };
    let owner = spawn_blocking(move || procfs::owner(ends.client, ends.server)).await;
    owner.ok().flatten().is_some_and(|uid| uid == 0 || uid == geteuid().as_raw())
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
