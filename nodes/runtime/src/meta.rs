//! The meta port: `/healthz`, `/readyz`, `/metrics`, `/status` and `/logs` of a node and its children.

mod logs;

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use tokio::net::TcpListener;
use tracing::error;

use crate::node::Node;

/// The media type of Prometheus's text format.
const EXPOSITION: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Answers until it is dropped.
pub(crate) async fn serve(socket: TcpListener, node: Arc<Node>) {
    let pages = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/status", get(status))
        .route("/logs", get(logs::show))
        .with_state(node);
    if let Err(error) = axum::serve(socket, pages).await {
        error!(%error, "the meta port is lost");
    }
}

async fn ready(State(node): State<Arc<Node>>) -> Response {
    if node.is_ready() {
        "ready\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n").into_response()
    }
}

async fn metrics(State(node): State<Arc<Node>>) -> Response {
    ([(header::CONTENT_TYPE, EXPOSITION)], node.metrics().await).into_response()
}

async fn status(State(node): State<Arc<Node>>) -> Response {
    Json(node.page()).into_response()
}
