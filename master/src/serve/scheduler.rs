//! What frameworks call, and the stream on which they are told.

use std::time::{Duration, Instant};

use proffer_types::call::Call;
use proffer_types::event::{FrameworkEvent, Reply, StreamEnd, Update};
use proffer_types::{AgentInfo, FrameworkId, LaunchId, Offer, SessionId};
use proffer_wire::malformed::Malformed;
use proffer_wire::scheduler::v1 as pb;
use proffer_wire::scheduler::v1::scheduler_service_server::SchedulerService;
use proffer_wire::told::Subscribed;
use proffer_wire::{from_proto, status, to_proto};
use prost::Message;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::pack::{Gone, ITEMS_MAX, MESSAGE_BYTES, Outlet, Packer};
use super::{connection, leader};
use crate::driver::{FrameworkItem, FrameworkStream, Handle, View};

/// How old an agent's host name and attributes may be that go with an offer.
const HOSTS_AGE_MAX: Duration = Duration::from_secs(1);

/// Serves frameworks.
#[derive(Clone)]
pub(crate) struct Scheduler {
    handle: Handle,
    heartbeat_ms: u64,
}

impl Scheduler {
    pub(crate) fn new(handle: Handle, heartbeat_ms: u64) -> Self {
        Self { handle, heartbeat_ms }
    }

    /// Makes a call that was parsed, and waits for its answer.
    async fn ask<T>(
        &self,
        request: Request<T>,
        parse: impl FnOnce(T) -> Result<Call, Malformed>,
    ) -> Result<Reply, Status> {
        let caller = connection(&request)?.caller().clone();
        let call = parse(request.into_inner()).map_err(|error| status::malformed(&error))?;
        settle(self.handle.call(caller, call).await.map_err(|refused| status::refused(&refused))?)
    }
}

/// An answer, unless it says that the call as a whole was rejected.
pub(crate) fn settle(reply: Reply) -> Result<Reply, Status> {
    match reply {
        Reply::Accepted(answer) => match answer.rejected {
            Some(rejection) => Err(status::rejected(rejection)),
            None => Ok(Reply::Accepted(answer)),
        },
        done => Ok(done),
    }
}

#[tonic::async_trait]
impl SchedulerService for Scheduler {
    type SubscribeStream = ReceiverStream<Result<pb::Events, Status>>;

    async fn subscribe(
        &self,
        request: Request<pb::SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let client = connection(&request)?;
        let (id, stream) = self.handle.open_framework();
        self.ask(request, |request| from_proto::subscribe(request, id)).await?;
        let (outlet, events) = Outlet::new(client.hang_up());
        let teller = Teller {
            handle: self.handle.clone(),
            heartbeat_ms: self.heartbeat_ms,
            stream,
            outlet,
            packer: Packer::new(),
            hosts: None,
        };
        tokio::spawn(teller.run());
        Ok(Response::new(ReceiverStream::new(events)))
    }

    async fn accept(
        &self,
        request: Request<pb::AcceptRequest>,
    ) -> Result<Response<pb::AcceptResponse>, Status> {
        let mut shape = Vec::new();
        let reply = self
            .ask(request, |request| {
                let call = from_proto::accept(request)?;
                if let Call::Accept { parts, .. } = &call {
                    shape = to_proto::shape(parts);
                }
                Ok(call)
            })
            .await?;
        match reply {
            Reply::Accepted(answer) => Ok(Response::new(to_proto::accept_response(&answer, &shape))),
            // Nothing was launched, so nothing had to be agreed on.
            Reply::Done { index } => {
                let operations =
                    |launches: &Vec<usize>| vec![pb::OperationOutcome::default(); launches.len()];
                let parts = shape.iter().map(|launches| pb::PartOutcome { operations: operations(launches) });
                Ok(Response::new(pb::AcceptResponse { index, parts: parts.collect() }))
            }
        }
    }

    async fn decline(
        &self,
        request: Request<pb::DeclineRequest>,
    ) -> Result<Response<pb::DeclineResponse>, Status> {
        self.ask(request, from_proto::decline).await?;
        Ok(Response::new(pb::DeclineResponse {}))
    }

    async fn suppress(
        &self,
        request: Request<pb::SuppressRequest>,
    ) -> Result<Response<pb::SuppressResponse>, Status> {
        self.ask(request, from_proto::suppress).await?;
        Ok(Response::new(pb::SuppressResponse {}))
    }

    async fn revive(
        &self,
        request: Request<pb::ReviveRequest>,
    ) -> Result<Response<pb::ReviveResponse>, Status> {
        self.ask(request, from_proto::revive).await?;
        Ok(Response::new(pb::ReviveResponse {}))
    }

    async fn kill(&self, request: Request<pb::KillRequest>) -> Result<Response<pb::KillResponse>, Status> {
        let index = self.ask(request, from_proto::kill).await?.index();
        Ok(Response::new(pb::KillResponse { index }))
    }

    async fn acknowledge(
        &self,
        request: Request<pb::AcknowledgeRequest>,
    ) -> Result<Response<pb::AcknowledgeResponse>, Status> {
        let index = self.ask(request, from_proto::acknowledge).await?.index();
        Ok(Response::new(pb::AcknowledgeResponse { index }))
    }

    async fn reconcile(
        &self,
        request: Request<pb::ReconcileRequest>,
    ) -> Result<Response<pb::ReconcileResponse>, Status> {
        self.ask(request, from_proto::reconcile).await?;
        Ok(Response::new(pb::ReconcileResponse {}))
    }

    async fn shutdown_executor(
        &self,
        request: Request<pb::ShutdownExecutorRequest>,
    ) -> Result<Response<pb::ShutdownExecutorResponse>, Status> {
        let index = self.ask(request, from_proto::shutdown_executor).await?.index();
        Ok(Response::new(pb::ShutdownExecutorResponse { index }))
    }

    async fn send_message(
        &self,
        request: Request<pb::SendMessageRequest>,
    ) -> Result<Response<pb::SendMessageResponse>, Status> {
        self.ask(request, from_proto::send_message).await?;
        Ok(Response::new(pb::SendMessageResponse {}))
    }

    async fn update_framework(
        &self,
        request: Request<pb::UpdateFrameworkRequest>,
    ) -> Result<Response<pb::UpdateFrameworkResponse>, Status> {
        let index = self.ask(request, from_proto::update_framework).await?.index();
        Ok(Response::new(pb::UpdateFrameworkResponse { index }))
    }

    async fn teardown(
        &self,
        request: Request<pb::TeardownRequest>,
    ) -> Result<Response<pb::TeardownResponse>, Status> {
        let index = self.ask(request, from_proto::teardown).await?.index();
        Ok(Response::new(pb::TeardownResponse { index }))
    }
}

/// Tells one framework what the driver has for it.
struct Teller {
    handle: Handle,
    heartbeat_ms: u64,
    stream: FrameworkStream,
    outlet: Outlet<pb::Events>,
    packer: Packer<pb::Event>,
    /// The state from which offers take what their agents say of themselves, and when it was read.
    hosts: Option<(Box<View>, Instant)>,
}

impl Teller {
    async fn run(mut self) {
        let end = loop {
            let items = tokio::select! {
                items = self.stream.next(ITEMS_MAX) => items,
                () = self.outlet.closed() => return,
            };
            let items = match items {
                Ok(items) => items,
                Err(end) => break end,
            };
            for item in items {
                if self.tell(item).await.is_err() {
                    return;
                }
            }
            if self.flush().await.is_err() {
                return;
            }
            // A state that is kept keeps all that has been replaced since: no longer than to the next heartbeat.
            if self.hosts.as_ref().is_some_and(|(_, read_at)| read_at.elapsed() > HOSTS_AGE_MAX) {
                self.hosts = None;
            }
        };
        let leader = match end {
            StreamEnd::NotLeader => leader(&self.handle).await,
            _ => None,
        };
        let last = pb::Events { events: vec![to_proto::error(end)] };
        self.outlet.end(Some(last), status::stream_end(end, leader.as_deref())).await;
    }

    async fn tell(&mut self, item: FrameworkItem) -> Result<(), Gone> {
        match item {
            FrameworkItem::Open { framework, session, last_seq, view } => {
                self.open(framework, session, last_seq, view).await
            }
            FrameworkItem::Event(FrameworkEvent::Offers(offers)) => self.offers(offers).await,
            FrameworkItem::Event(event) => {
                let event = match event {
                    FrameworkEvent::Rescind(offers) => to_proto::rescind(&offers),
                    FrameworkEvent::Update(update) => to_proto::update(&update),
                    FrameworkEvent::Failure { agent, removed } => to_proto::failure(agent, removed),
                    FrameworkEvent::ExecutorEnded { agent, executor, status } => {
                        to_proto::executor_ended(agent, &executor, &status)
                    }
                    FrameworkEvent::Message { agent, executor, data } => {
                        to_proto::message(agent, &executor, data)
                    }
                    FrameworkEvent::Error(end) => to_proto::error(end),
                    FrameworkEvent::Heartbeat => to_proto::heartbeat(self.applied().await),
                    // The driver turns the one into `Open`; the other is told above.
                    FrameworkEvent::Subscribed { .. } | FrameworkEvent::Offers(_) => return Ok(()),
                };
                self.push(event).await
            }
        }
    }

    /// The beginning: who the framework is, all its tasks, and every status that it has not acknowledged.
    async fn open(
        &mut self,
        framework: FrameworkId,
        session: SessionId,
        last_seq: u64,
        view: Box<View>,
    ) -> Result<(), Gone> {
        let subscribed = Subscribed {
            framework,
            session,
            heartbeat_ms: self.heartbeat_ms,
            cluster: view.registry.cluster().unwrap_or_default(),
            epoch: view.epoch,
            last_seq,
        };
        self.push(to_proto::subscribed(&subscribed)).await?;
        self.flush().await?;
        let launches: Vec<LaunchId> =
            view.registry.tasks_of_framework(framework).map(|task| task.launch_id).collect();
        let mut tasks: Packer<to_proto::SnapshotTask> = Packer::new();
        for launch in &launches {
            let Some(task) = view.registry.task(*launch) else { continue };
            if let Some(full) = tasks.push(to_proto::snapshot_task(task)) {
                self.push(to_proto::snapshot(full)).await?;
            }
        }
        let rest = tasks.take();
        if !rest.is_empty() {
            self.push(to_proto::snapshot(rest)).await?;
        }
        self.push(to_proto::snapshot_end(view.registry.applied())).await?;
        for launch in &launches {
            let Some(task) = view.registry.task(*launch) else { continue };
            for status in &task.pending {
                let update = Update {
                    launch: Some(task.launch_id),
                    task_id: task.task_id.clone(),
                    agent: task.agent,
                    status: Some(status.clone()),
                    acknowledge: true,
                };
                self.push(to_proto::update(&update)).await?;
            }
        }
        self.hosts = Some((view, Instant::now()));
        self.flush().await
    }

    async fn offers(&mut self, offers: Vec<Offer>) -> Result<(), Gone> {
        let stale = |hosts: &(Box<View>, Instant)| {
            hosts.1.elapsed() > HOSTS_AGE_MAX
                || offers.iter().any(|o| hosts.0.registry.agent(o.agent).is_none())
        };
        if self.hosts.as_ref().is_none_or(stale)
            && let Ok(view) = self.handle.view(false, 0).await
        {
            self.hosts = Some((Box::new(view), Instant::now()));
        }
        let Some((view, _)) = &self.hosts else { return Ok(()) };
        let mut events = Vec::new();
        let mut some: Vec<(&Offer, &AgentInfo)> = Vec::new();
        let mut bytes = 0;
        for offer in &offers {
            // An agent that is gone by now has taken its offers with it: their end is on its way.
            let Some(agent) = view.registry.agent(offer.agent) else { continue };
            let size = to_proto::offers([(offer, &agent.info)]).encoded_len();
            if bytes + size > MESSAGE_BYTES && !some.is_empty() {
                events.push(to_proto::offers(some.drain(..)));
                bytes = 0;
            }
            some.push((offer, &agent.info));
            bytes += size;
        }
        if !some.is_empty() {
            events.push(to_proto::offers(some));
        }
        for event in events {
            self.push(event).await?;
        }
        Ok(())
    }

    async fn applied(&mut self) -> u64 {
        self.handle.view(false, 0).await.map_or(0, |view| view.registry.applied())
    }

    async fn push(&mut self, event: pb::Event) -> Result<(), Gone> {
        match self.packer.push(event) {
            Some(full) => self.send(full).await,
            None => Ok(()),
        }
    }

    async fn flush(&mut self) -> Result<(), Gone> {
        let events = self.packer.take();
        if events.is_empty() { Ok(()) } else { self.send(events).await }
    }

    async fn send(&self, events: Vec<pb::Event>) -> Result<(), Gone> {
        self.outlet.send(pb::Events { events }, || self.stream.ended().is_some()).await
    }
}
