//! Agents' sessions, and the data that they bring.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use proffer_types::call::{Call, ConnectionId};
use proffer_types::event::{AgentOrder, AgentReport, Refused, StreamEnd};
use proffer_types::{AgentId, Caller, Epoch, LaunchId, Status as TaskStatus};
use proffer_wire::agent::v1 as pb;
use proffer_wire::agent::v1::agent_service_server::AgentService;
use proffer_wire::{from_proto, status, to_proto};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use super::pack::{Gone, ITEMS_MAX, Outlet, Packer};
use super::relay::carry;
use super::{connection, leader};
use crate::driver::{AgentStream, Handle};

/// How long a new session or data connection may take to say who it is.
const FIRST_MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a session may take to open: the agent's listing, and a commit on a slow disk.
const OPENING_TIMEOUT: Duration = Duration::from_secs(60);
/// Sessions that may be opening at once: each costs about 130 µs of a core, so this is a quarter of a second.
const OPENINGS_MAX: usize = 2_000;
/// When an agent that was refused for that may come again (milliseconds).
const RETRY_MS: u64 = 1_000;

/// Serves agents.
#[derive(Clone)]
pub(crate) struct Agents {
    handle: Handle,
    openings: Arc<AtomicUsize>,
}

impl Agents {
    pub(crate) fn new(handle: Handle) -> Self {
        Self { handle, openings: Arc::default() }
    }
}

#[tonic::async_trait]
impl AgentService for Agents {
    type SessionStream = ReceiverStream<Result<pb::MasterMessage, Status>>;
    type DataStream = ReceiverStream<Result<pb::DataRequest, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<pb::AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let opening = Opening::begin(&self.openings)
            .ok_or_else(|| status::busy("BUSY", "too many agents are opening sessions".into(), RETRY_MS))?;
        let client = connection(&request)?;
        // Only a leader has sessions, and a session belongs to one leadership.
        let view = self.handle.view(false, 0).await.map_err(|refused| status::refused(&refused))?;
        let (id, stream) = self.handle.open_agent();
        let (outlet, messages) = Outlet::new(client.hang_up());
        let (failed, failure) = watch::channel(None);
        let listener = Listener {
            handle: self.handle.clone(),
            caller: client.caller().clone(),
            connection: id,
            epoch: view.epoch,
            agent: None,
            greeted: false,
            inbound: request.into_inner(),
        };
        tokio::spawn(listener.run(failed));
        let teller = Teller { handle: self.handle.clone(), epoch: view.epoch, stream, outlet, failure };
        tokio::spawn(teller.run(opening));
        Ok(Response::new(ReceiverStream::new(messages)))
    }

    async fn data(
        &self,
        request: Request<Streaming<pb::DataChunk>>,
    ) -> Result<Response<Self::DataStream>, Status> {
        let mut inbound = request.into_inner();
        let first = timeout(FIRST_MESSAGE_TIMEOUT, inbound.message()).await;
        let first = first.map_err(|_| status::deadline("no ticket came".into()))??;
        let (ticket, _) = from_proto::data_chunk(first.unwrap_or_default());
        let void = || {
            status::status(Code::NotFound, "UNKNOWN_TICKET", "the ticket is void, or was used".into(), &[])
        };
        let ticket: [u8; 16] = ticket.as_ref().try_into().map_err(|_| void())?;
        let data = self.handle.data_connection(ticket).await.ok_or_else(void)?;
        let (requests, stream) = mpsc::channel(1);
        tokio::spawn(carry(inbound, data, requests));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// A session that is not open yet.
struct Opening(Arc<AtomicUsize>);

impl Opening {
    fn begin(openings: &Arc<AtomicUsize>) -> Option<Self> {
        let opening = Self(openings.clone());
        (openings.fetch_add(1, Ordering::Relaxed) < OPENINGS_MAX).then_some(opening)
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Hears what an agent says.
struct Listener {
    handle: Handle,
    caller: Caller,
    connection: ConnectionId,
    epoch: Epoch,
    /// Who it said it is, once it has an id.
    agent: Option<AgentId>,
    greeted: bool,
    inbound: Streaming<pb::AgentMessage>,
}

impl Listener {
    async fn run(mut self, failed: watch::Sender<Option<Status>>) {
        let result = loop {
            let message = tokio::select! {
                message = self.message() => message,
                // The teller is gone, and the session with it.
                () = failed.closed() => return,
            };
            let outcome = match message {
                Ok(Some(message)) => self.hear(message).await,
                Ok(None) => break Status::ok(""),
                Err(status) => Err(status),
            };
            if let Err(status) = outcome {
                break status;
            }
        };
        let _ = failed.send(Some(result));
    }

    async fn message(&mut self) -> Result<Option<pb::AgentMessage>, Status> {
        if self.greeted {
            return self.inbound.message().await;
        }
        let first = timeout(FIRST_MESSAGE_TIMEOUT, self.inbound.message()).await;
        first.map_err(|_| status::deadline("no hello came".into()))?
    }

    async fn hear(&mut self, message: pb::AgentMessage) -> Result<(), Status> {
        let message = from_proto::agent_message(message).map_err(|error| status::malformed(&error))?;
        let opens = matches!(message.reports.first(), Some(AgentReport::Hello(_)));
        if !self.greeted && !opens {
            return Err(out_of_place("a session begins with a hello"));
        }
        // A hello and the listing that answers it come before the agent follows this leadership.
        let opening = opens || matches!(message.reports.first(), Some(AgentReport::Listing(_)));
        if message.epoch.map_or(!opening, |epoch| epoch != self.epoch) {
            return Err(out_of_place("the message is for another leadership"));
        }
        // An agent gets its id within its first session, and keeps it.
        if self.agent.is_some() && message.agent != self.agent {
            return Err(out_of_place("the message is of another agent"));
        }
        self.agent = message.agent;
        self.greeted = true;
        let connection = self.connection;
        let mut statuses: Vec<(LaunchId, TaskStatus)> = Vec::new();
        for report in message.reports {
            let call = match report {
                AgentReport::Status { launch, status } => {
                    statuses.push((launch, status));
                    continue;
                }
                AgentReport::Hello(hello) => Call::AgentHello { connection, hello },
                AgentReport::Listing(held) => Call::AgentListing { connection, held },
                AgentReport::Pong { .. } => Call::AgentAlive { connection },
                AgentReport::Cleaned(launches) => Call::AgentCleaned { connection, launches },
                AgentReport::Message { launch, data } => Call::AgentMessage { connection, launch, data },
            };
            self.tell_statuses(&mut statuses).await?;
            self.tell(call).await?;
        }
        self.tell_statuses(&mut statuses).await
    }

    async fn tell_statuses(&self, statuses: &mut Vec<(LaunchId, TaskStatus)>) -> Result<(), Status> {
        if statuses.is_empty() {
            return Ok(());
        }
        let statuses = std::mem::take(statuses);
        self.tell(Call::AgentStatuses { connection: self.connection, statuses }).await
    }

    async fn tell(&self, call: Call) -> Result<(), Status> {
        self.handle
            .tell(self.caller.clone(), call)
            .await
            .map_err(|refused: Refused| status::refused(&refused))
    }
}

fn out_of_place(text: &str) -> Status {
    status::status(Code::FailedPrecondition, "OUT_OF_PLACE", text.to_owned(), &[])
}

/// Tells an agent what the driver has for it.
struct Teller {
    handle: Handle,
    epoch: Epoch,
    stream: AgentStream,
    outlet: Outlet<pb::MasterMessage>,
    /// What the listener met with.
    failure: watch::Receiver<Option<Status>>,
}

impl Teller {
    async fn run(mut self, opening: Opening) {
        let mut opening = Some(opening);
        let late = tokio::time::sleep(OPENING_TIMEOUT);
        tokio::pin!(late);
        let status = loop {
            let orders = tokio::select! {
                orders = self.stream.next(ITEMS_MAX) => orders,
                () = late.as_mut(), if opening.is_some() => {
                    let text = format!("the session did not open within {} s", OPENING_TIMEOUT.as_secs());
                    break status::deadline(text);
                }
                () = self.outlet.closed() => return,
                failure = self.failure.wait_for(Option::is_some) => {
                    // The agent has ended its half, or the listener has reason to end the session.
                    match failure.ok().and_then(|failure| failure.clone()) {
                        Some(status) if status.code() != Code::Ok => break status,
                        _ => return,
                    }
                }
            };
            match orders {
                Ok(orders) => {
                    if orders
                        .iter()
                        .any(|order| matches!(order, AgentOrder::Welcome { .. } | AgentOrder::Refused(_)))
                    {
                        opening = None;
                    }
                    if self.tell(orders).await.is_err() {
                        return;
                    }
                }
                Err(StreamEnd::NotLeader) => {
                    let leader = leader(&self.handle).await;
                    break status::stream_end(StreamEnd::NotLeader, leader.as_deref());
                }
                Err(end) => break status::stream_end(end, None),
            }
        };
        drop(opening);
        self.outlet.end(None, status).await;
    }

    async fn tell(&self, orders: Vec<AgentOrder>) -> Result<(), Gone> {
        let mut packer = Packer::new();
        for order in &orders {
            // The launches of a group go in one message.
            if let Some(full) = packer.push_together(to_proto::agent_order(order)) {
                self.send(full).await?;
            }
        }
        self.send(packer.take()).await
    }

    async fn send(&self, items: Vec<pb::MasterItem>) -> Result<(), Gone> {
        self.outlet.send(to_proto::master_message(self.epoch, items), || self.stream.ended().is_some()).await
    }
}
