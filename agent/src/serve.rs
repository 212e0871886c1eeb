//! Diagnostics for the node's own use: whether the agent is well, and what it holds.

use std::net::SocketAddr;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, HeaderName};
use axum::routing::get;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::driver::Handle;

/// Why diagnostics cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("listen on {address} (choose another port with --listen)")]
pub struct Error {
    address: SocketAddr,
    #[source]
    source: std::io::Error,
}

/// Takes the port: to be done early, so that a busy one is told before anything has begun.
pub async fn listen(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|source| Error { address, source })
}

/// Serves `/healthz` (200 while the driver answers) and `/state` until the process ends.
pub async fn serve(listener: TcpListener, handle: Handle) {
    let router = Router::new().route("/healthz", get(healthz)).route("/state", get(state)).with_state(handle);
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!(%error, "diagnostics are not served any more");
    }
}

async fn healthz(State(handle): State<Handle>) -> Answer {
    match handle.view().await {
        Some(view) => answer(StatusCode::OK, &json!({ "ok": true, "master": view.master })),
        None => answer(StatusCode::SERVICE_UNAVAILABLE, &json!({ "ok": false })),
    }
}

async fn state(State(handle): State<Handle>) -> Answer {
    match handle.view().await.map(serde_json::to_value) {
        Some(Ok(view)) => answer(StatusCode::OK, &view),
        Some(Err(_)) | None => answer(StatusCode::SERVICE_UNAVAILABLE, &Value::Null),
    }
}

/// JSON, one line.
type Answer = (StatusCode, [(HeaderName, &'static str); 1], String);

fn answer(status: StatusCode, body: &Value) -> Answer {
    (status, [(CONTENT_TYPE, "application/json")], format!("{body}\n"))
}
