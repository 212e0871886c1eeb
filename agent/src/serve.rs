//! Diagnostics for the node's own use: whether the agent is well, and what it holds.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, HeaderName};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};

use crate::driver::Handle;

/// Connections at once; more wait to be accepted.
const CONNECTIONS_MAX: usize = 32;
/// How long a connection may last.
const CONNECTION_MAX: Duration = Duration::from_secs(10);
/// Between two attempts to accept where one has failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a busy port is tried: a predecessor that was killed while it started a process leaves the port to that for
/// the moment until its execve.
pub(crate) const BUSY: Duration = Duration::from_secs(1);
/// Between two of those attempts.
pub(crate) const BUSY_PAUSE: Duration = Duration::from_millis(20);

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
    let given_up = Instant::now() + BUSY;
    loop {
        match TcpListener::bind(address).await {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < given_up => {
                sleep(BUSY_PAUSE).await;
            }
            bound => return bound.map_err(|source| Error { address, source }),
        }
    }
}

/// Serves `/healthz` (200 while the driver answers) and `/state` until the process ends. A task reaches this port: it
/// must not be able to take all descriptors of the agent.
pub async fn serve(listener: TcpListener, handle: Handle) {
    let router = Router::new().route("/healthz", get(healthz)).route("/state", get(state)).with_state(handle);
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = Arc::clone(&room).acquire_owned().await.expect("the semaphore is never closed");
        let connection = match listener.accept().await {
            Ok((connection, _)) => TokioIo::new(connection),
            Err(error) => {
                tracing::debug!(%error, "accept on the diagnostics port");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let service = TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            let served = http1::Builder::new().serve_connection(connection, service);
            // Whatever became of it: it was one question.
            let _ = timeout(CONNECTION_MAX, served).await;
            drop(place);
        });
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_that_is_let_go_soon_is_taken() {
        let held = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let mut listening = std::pin::pin!(listen(held.local_addr().expect("its address")));
        let early = std::future::poll_fn(|context| std::task::Poll::Ready(listening.as_mut().poll(context)));
        assert!(early.await.is_pending(), "the first attempt fails and is not the last");
        drop(held);
        listening.await.expect("free now");
    }
}
