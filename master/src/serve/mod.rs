//! What clients reach: the gRPC services, health and reflection. Handlers only decode, convert, call the driver's
//! handle and wait; what may be called by whom, how large and how often, is decided once for all of them here.

mod admin;
mod agent;
mod body;
mod pack;
mod relay;
mod rpc;
mod scheduler;
#[cfg(test)]
mod tests;
mod until;
mod watch;

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, Request, StatusCode, header};
use hyper::body::Incoming;
use proffer_types::event::Refused;
use proffer_types::{Caller, authorise};
use proffer_wire::admin::v1::admin_service_server::AdminServiceServer;
use proffer_wire::agent::v1::agent_service_server::AgentServiceServer;
use proffer_wire::scheduler::v1::scheduler_service_server::SchedulerServiceServer;
use proffer_wire::status;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;
use tonic::server::NamedService as _;
use tonic::service::Routes;
use tonic::{Code, Status};
use tonic_health::pb::health_server::{Health, HealthServer};
use tower::ServiceExt;

use crate::driver::Handle;
use body::{Budget, Limited};
pub use rpc::{Class, Rpc};
use until::Until;

/// Reads that may be under way. A read of a long list takes some milliseconds of a core.
const READS_MAX: usize = 256;
/// Launches and operators' changes that may be under way: as many as fit into some log batches.
const WRITES_MAX: usize = 2_048;
/// When whoever was refused for that may come again (milliseconds).
const RETRY_MS: u64 = 200;

/// A client's connection, as handlers see it.
#[derive(Clone)]
pub(crate) struct Connection {
    caller: Caller,
    budget: Budget,
    hang_up: Arc<Notify>,
}

impl Connection {
    /// Who is at its other end.
    pub(crate) fn caller(&self) -> &Caller {
        &self.caller
    }

    /// What ends the whole connection: nothing less reaches a client that does not read.
    pub(crate) fn hang_up(&self) -> Arc<Notify> {
        self.hang_up.clone()
    }
}

/// Everything that is served. Cheap to clone.
#[derive(Clone)]
pub struct Server {
    routes: axum::Router,
    budget: Budget,
    reads: Arc<Semaphore>,
    writes: Arc<Semaphore>,
}

impl Server {
    /// Serves what `handle` leads to. `heartbeat_ms` is what subscribers are told to expect.
    pub async fn new(handle: Handle, heartbeat_ms: u64) -> Self {
        let scheduler = scheduler::Scheduler::new(handle.clone(), heartbeat_ms);
        let agent = agent::Agents::new(handle.clone());
        let admin = admin::Admin::new(handle);
        let most = Rpc::ALL.iter().map(|rpc| rpc.bytes_max()).max().unwrap_or_default();
        let routes = Routes::new(health().await)
            .add_service(SchedulerServiceServer::new(scheduler).max_decoding_message_size(most))
            .add_service(AgentServiceServer::new(agent).max_decoding_message_size(most))
            .add_service(AdminServiceServer::new(admin).max_decoding_message_size(most))
            .add_service(reflection().build_v1().expect("our descriptors are valid"))
            .add_service(reflection().build_v1alpha().expect("our descriptors are valid"))
            .into_axum_router()
            .reset_fallback()
            .fallback(async || (StatusCode::NOT_FOUND, "nothing here: this port speaks gRPC\n"));
        Self {
            routes: routes.with_state(()),
            budget: Budget::new(),
            reads: Arc::new(Semaphore::new(READS_MAX)),
            writes: Arc::new(Semaphore::new(WRITES_MAX)),
        }
    }

    /// A new connection, which has proved nothing. `hang_up` ends it.
    pub(crate) fn connection(&self, hang_up: Arc<Notify>) -> Connection {
        Connection { caller: Caller::anonymous(), budget: self.budget.for_connection(), hang_up }
    }

    /// Answers a request.
    pub(crate) fn call(
        &self,
        request: Request<Incoming>,
        connection: Connection,
    ) -> Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>> {
        let Some(rpc) = Rpc::of(request.uri().path()) else {
            let response = if is_grpc(request.headers()) {
                let path = request.uri().path();
                let what =
                    format!("{} is not served by this version", path.chars().take(200).collect::<String>());
                Some(status::unsupported(&what).into_http())
            } else {
                None
            };
            let routes = self.routes.clone();
            return Box::pin(async move {
                match response {
                    Some(response) => Ok(response),
                    None => routes.oneshot(request).await,
                }
            });
        };
        let server = self.clone();
        Box::pin(async move {
            Ok(server.serve(rpc, request, connection).await.unwrap_or_else(|status| status.into_http()))
        })
    }

    async fn serve(
        self,
        rpc: Rpc,
        request: Request<Incoming>,
        connection: Connection,
    ) -> Result<Response, Status> {
        authorise(&connection.caller, rpc.action(), rpc.path()).map_err(|denied| status::denied(&denied))?;
        let room = match rpc.class() {
            Class::Vital => None,
            Class::Write => Some(self.writes),
            Class::Read => Some(self.reads),
        };
        let _place = match room.map(Semaphore::try_acquire_owned) {
            None => None,
            Some(Ok(place)) => Some(place),
            Some(Err(_)) => {
                let text = format!("too many calls like {} are under way", rpc.path());
                return Err(status::busy("BUSY", text, RETRY_MS));
            }
        };
        let deadline = grpc_timeout(request.headers())?;
        let budget = connection.budget.clone();
        let mut request = request.map(|body| Body::new(Limited::new(body, rpc, budget)));
        request.extensions_mut().insert(connection);
        let answer = self.routes.oneshot(request);
        let Some(patience) = deadline else { return answer.await.map_err(|never| match never {}) };
        let deadline = Instant::now() + patience;
        match tokio::time::timeout_at(deadline, answer).await {
            Err(_) => Err(late(rpc, patience)),
            Ok(Ok(response)) if rpc.gives_stream() => {
                Ok(response.map(|body| Body::new(Until::new(body, deadline, late(rpc, patience)))))
            }
            Ok(Ok(response)) => Ok(response),
            Ok(Err(never)) => match never {},
        }
    }
}

/// A call whose caller's deadline has passed. What was proposed goes on, and its answer is kept by its seq.
fn late(rpc: Rpc, patience: Duration) -> Status {
    let text = format!("{}: the caller's {} ms are over", rpc.path(), patience.as_millis());
    if rpc.mutates() {
        return status::status(Code::DeadlineExceeded, "OUTCOME_UNKNOWN", text, &[]);
    }
    status::deadline(text)
}

fn is_grpc(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    content_type.is_some_and(|value| value.starts_with("application/grpc"))
}

/// The caller's deadline: at most eight digits and a unit.
fn grpc_timeout(headers: &HeaderMap) -> Result<Option<Duration>, Status> {
    let Some(value) = headers.get("grpc-timeout") else { return Ok(None) };
    let wrong = || {
        let text = "grpc-timeout: expected up to eight digits and one of H M S m u n".to_owned();
        status::status(Code::InvalidArgument, "INVALID_FIELD", text, &[])
    };
    let text = value.to_str().map_err(|_| wrong())?;
    let unit = text.chars().last().ok_or_else(wrong)?;
    let digits = &text[..text.len() - unit.len_utf8()];
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(wrong());
    }
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    Ok(Some(match unit {
        'H' => Duration::from_secs(number * 3_600),
        'M' => Duration::from_secs(number * 60),
        'S' => Duration::from_secs(number),
        'm' => Duration::from_millis(number),
        'u' => Duration::from_micros(number),
        'n' => Duration::from_nanos(number),
        _ => return Err(wrong()),
    }))
}

async fn health() -> HealthServer<impl Health> {
    let (reporter, server) = tonic_health::server::health_reporter();
    reporter.set_serving::<SchedulerServiceServer<scheduler::Scheduler>>().await;
    reporter.set_serving::<AgentServiceServer<agent::Agents>>().await;
    reporter.set_serving::<AdminServiceServer<admin::Admin>>().await;
    server
}

/// Says what this port serves: the descriptors know of services elsewhere too.
fn reflection() -> tonic_reflection::server::Builder<'static> {
    let served = [
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        SchedulerServiceServer::<scheduler::Scheduler>::NAME,
        AgentServiceServer::<agent::Agents>::NAME,
        AdminServiceServer::<admin::Admin>::NAME,
    ];
    let builder = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proffer_wire::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
    served.into_iter().fold(builder, |builder, name| builder.with_service_name(name))
}

/// Who calls. The layer above has put it there; without it nobody is served.
fn connection<T>(request: &tonic::Request<T>) -> Result<Connection, Status> {
    let missing = || Status::internal("a request without a connection");
    request.extensions().get::<Connection>().cloned().ok_or_else(missing)
}

/// Where the leader is, if this master has heard of one.
async fn leader(handle: &Handle) -> Option<String> {
    match handle.view(false, 0).await {
        Err(Refused::NotLeader { leader }) => leader,
        _ => None,
    }
}
