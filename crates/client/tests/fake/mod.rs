//! A master of a few lines: one framework, one agent, no log. It does what the protocol promises, and fails on demand.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use proffer_types::command::Rejection;
use proffer_types::event::{Refused, StreamEnd};
use proffer_types::{Reason, Source, Status as TaskStatus, TaskState};
use proffer_wire::admin::v1 as admin;
use proffer_wire::admin::v1::admin_service_server::{AdminService, AdminServiceServer};
use proffer_wire::common::v1 as common;
use proffer_wire::scheduler::v1 as pb;
use proffer_wire::scheduler::v1::event::Event;
use proffer_wire::scheduler::v1::scheduler_service_server::{SchedulerService, SchedulerServiceServer};
use proffer_wire::{status, to_proto};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tonic::{Request, Response, Status, Streaming};

const CLUSTER: &str = "abababababababababababababababab";

/// What the fake remembers.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) leads: bool,
    pub(crate) leader: Option<String>,
    pub(crate) tasks: BTreeMap<String, Task>,
    /// Answers to execute but not to give.
    pub(crate) lose_answers: u32,
    /// Accepts executed.
    pub(crate) executed: u32,
    pub(crate) subscriptions: u32,
    pub(crate) sessions: u64,
    pub(crate) admin_requests: BTreeMap<Vec<u8>, ()>,
    pub(crate) logs: String,
    pub(crate) cut_logs_after: Option<usize>,
    pub(crate) log_reads: u32,
    /// How often a reading of output says nothing for a while, and breaks off.
    pub(crate) silent_logs: u32,
    addr: String,
    session: u64,
    origins: BTreeMap<Vec<u8>, u64>,
    answers: BTreeMap<(u64, u64), pb::AcceptResponse>,
    stream: Option<mpsc::UnboundedSender<Result<pb::Events, Status>>>,
    launches: u64,
    term: u64,
}

/// How long such a reading says nothing.
pub(crate) const SILENCE: std::time::Duration = std::time::Duration::from_millis(100);

/// A task: its newest status waits for an acknowledgement if it is pending.
pub(crate) struct Task {
    launch: u64,
    status: TaskStatus,
    pending: Vec<TaskStatus>,
}

/// A master that listens.
#[derive(Clone)]
pub(crate) struct Fake(Arc<Mutex<State>>);

impl Fake {
    /// A leader, of a cluster of one.
    pub(crate) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("bound").to_string();
        let fake = Self(Arc::new(Mutex::new(State { leads: true, addr, term: 1, ..State::default() })));
        let server = tonic::transport::Server::builder()
            .add_service(SchedulerServiceServer::new(fake.clone()))
            .add_service(AdminServiceServer::new(fake.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        fake
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no test panics while it holds the state")
    }

    pub(crate) fn addr(&self) -> String {
        self.state().addr.clone()
    }

    /// Stops leading, if it did.
    pub(crate) fn follow(&self, leader: &Fake) {
        let addr = leader.addr();
        let mut state = self.state();
        (state.leads, state.leader) = (false, Some(addr.clone()));
        if let Some(stream) = state.stream.take() {
            drop(stream.send(Err(status::stream_end(StreamEnd::NotLeader, Some(&addr)))));
        }
    }

    /// Takes over what `old` knows, and leads.
    pub(crate) fn lead_after(&self, old: &Fake) {
        {
            let (mut new, before) = (self.state(), old.state());
            (new.leads, new.leader, new.term) = (true, None, before.term + 1);
            (new.session, new.origins) = (before.session, before.origins.clone());
        }
        old.follow(self);
    }

    /// A task's next status.
    pub(crate) fn status(&self, task: &str, next: TaskState) {
        let mut state = self.state();
        let found = state.tasks.get_mut(task).expect("launched");
        found.status = TaskStatus {
            task_seq: found.status.task_seq + 1,
            ..TaskStatus::new(next, Reason::None, Source::Agent)
        };
        found.pending.push(found.status.clone());
        let update = update(task, found.launch, &found.status);
        state.tell(update);
    }
}

impl State {
    fn tell(&self, event: Event) {
        if let Some(stream) = &self.stream {
            drop(stream.send(Ok(pb::Events { events: vec![pb::Event { event: Some(event) }] })));
        }
    }

    fn lead(&self) -> Result<(), Status> {
        let leader = self.leader.clone();
        if self.leads { Ok(()) } else { Err(status::refused(&Refused::NotLeader { leader })) }
    }

    fn check(&self, call: Option<pb::CallHeader>) -> Result<pb::CallHeader, Status> {
        self.lead()?;
        let call = call.expect("the SDK always sends a header");
        if call.session != self.session {
            return Err(status::rejected(Rejection::SessionFenced));
        }
        Ok(call)
    }

    /// Loses the answer of a call that was executed, and with it the leadership for a moment.
    fn answer<T>(&mut self, answer: T) -> Result<Response<T>, Status> {
        if self.lose_answers > 0 {
            self.lose_answers -= 1;
            return Err(Status::unknown("transport error"));
        }
        Ok(Response::new(answer))
    }

    fn view(&self) -> Option<admin::View> {
        Some(admin::View { index: 1, cluster_time_ms: 5, cluster_id: CLUSTER.into() })
    }
}

fn update(task: &str, launch: u64, status: &TaskStatus) -> Event {
    Event::Update(pb::Update {
        launch_id: launch,
        task_id: task.into(),
        agent_id: 5,
        status: Some(to_proto::status(status)),
        no_acknowledgement: false,
    })
}

type Stream<T> = UnboundedReceiverStream<Result<T, Status>>;
type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl SchedulerService for Fake {
    type SubscribeStream = Stream<pb::Events>;

    async fn subscribe(&self, request: Request<pb::SubscribeRequest>) -> Answer<Self::SubscribeStream> {
        let request = request.into_inner();
        let mut state = self.state();
        state.lead()?;
        state.subscriptions += 1;
        match request.session {
            Some(session) if session != state.session => {
                return Err(status::rejected(Rejection::SessionFenced));
            }
            Some(_) => {}
            None => {
                if let Some(old) = state.stream.take() {
                    drop(old.send(Err(status::stream_end(StreamEnd::SessionFenced, None))));
                }
                let next = state.session + 1;
                state.session = *state.origins.entry(request.origin.to_vec()).or_insert(next);
                state.sessions += 1;
            }
        }
        let (out, stream) = mpsc::unbounded_channel();
        state.stream = Some(out);
        let epoch = Some(common::Epoch { generation: 0, term: state.term });
        state.tell(Event::Subscribed(pb::Subscribed {
            framework_id: 1,
            session: state.session,
            heartbeat_ms: 15_000,
            cluster_id: CLUSTER.into(),
            epoch,
            last_seq: 0,
        }));
        let known = |(name, task): (&String, &Task)| pb::Task {
            launch_id: task.launch,
            task_id: name.clone(),
            agent_id: 5,
            role: "*".into(),
            resources: Vec::new(),
            status: Some(to_proto::status(&task.status)),
            unacknowledged: !task.pending.is_empty(),
        };
        state.tell(Event::Snapshot(pb::Snapshot { tasks: state.tasks.iter().map(known).collect() }));
        state.tell(Event::SnapshotEnd(pb::SnapshotEnd { index: state.launches }));
        for (name, task) in &state.tasks {
            task.pending.iter().for_each(|status| state.tell(update(name, task.launch, status)));
        }
        let id = pb::OfferId { epoch, n: u64::from(state.subscriptions) };
        let resources =
            to_proto::resources(&proffer_types::Resources::parse("cpus:4;mem:1GiB").expect("valid"));
        let offer = pb::Offer {
            id: Some(id),
            agent_id: 5,
            role: "*".into(),
            resources,
            hostname: "here".into(),
            attributes: Vec::new(),
        };
        state.tell(Event::Offers(pb::Offers { offers: vec![offer] }));
        Ok(Response::new(UnboundedReceiverStream::new(stream)))
    }

    async fn accept(&self, request: Request<pb::AcceptRequest>) -> Answer<pb::AcceptResponse> {
        let request = request.into_inner();
        let mut state = self.state();
        let call = state.check(request.call)?;
        if let Some(stored) = state.answers.get(&(call.session, call.seq)).cloned() {
            return state.answer(stored);
        }
        state.executed += 1;
        let mut tasks = Vec::new();
        for operation in request.parts.into_iter().flat_map(|part| part.operations) {
            let Some(pb::operation::Operation::Launch(launch)) = operation.operation else { continue };
            for task in launch.tasks {
                state.launches += 1;
                let id = state.launches;
                let status = TaskStatus::new(TaskState::Staging, Reason::None, Source::Master);
                state.tasks.insert(task.task_id, Task { launch: id, status, pending: Vec::new() });
                tasks.push(pb::TaskOutcome { launch_id: id, ..pb::TaskOutcome::default() });
            }
        }
        let parts = vec![pb::PartOutcome { operations: vec![pb::OperationOutcome { tasks }] }];
        let answer = pb::AcceptResponse { index: state.launches, parts };
        state.answers.insert((call.session, call.seq), answer.clone());
        state.answer(answer)
    }

    async fn decline(&self, request: Request<pb::DeclineRequest>) -> Answer<pb::DeclineResponse> {
        let mut state = self.state();
        state.check(request.into_inner().call)?;
        state.answer(pb::DeclineResponse {})
    }

    async fn suppress(&self, request: Request<pb::SuppressRequest>) -> Answer<pb::SuppressResponse> {
        let mut state = self.state();
        state.check(request.into_inner().call)?;
        state.answer(pb::SuppressResponse {})
    }

    async fn revive(&self, request: Request<pb::ReviveRequest>) -> Answer<pb::ReviveResponse> {
        let mut state = self.state();
        state.check(request.into_inner().call)?;
        state.answer(pb::ReviveResponse {})
    }

    async fn kill(&self, request: Request<pb::KillRequest>) -> Answer<pb::KillResponse> {
        let request = request.into_inner();
        let mut state = self.state();
        state.check(request.call)?;
        if !state.tasks.contains_key(&request.task_id) {
            return Err(status::rejected(Rejection::UnknownTask));
        }
        state.answer(pb::KillResponse { index: 1 })
    }

    async fn acknowledge(&self, request: Request<pb::AcknowledgeRequest>) -> Answer<pb::AcknowledgeResponse> {
        let request = request.into_inner();
        let mut state = self.state();
        state.check(request.call)?;
        for ack in request.acks {
            for task in state.tasks.values_mut().filter(|task| task.launch == ack.launch_id) {
                task.pending.retain(|status| status.position() > (ack.master_seq, ack.task_seq));
            }
        }
        state.tasks.retain(|_, task| !task.pending.is_empty() || !task.status.state.is_terminal());
        state.answer(pb::AcknowledgeResponse { index: 1 })
    }

    async fn reconcile(&self, request: Request<pb::ReconcileRequest>) -> Answer<pb::ReconcileResponse> {
        let mut state = self.state();
        state.check(request.into_inner().call)?;
        state.answer(pb::ReconcileResponse {})
    }

    async fn shutdown_executor(
        &self,
        _: Request<pb::ShutdownExecutorRequest>,
    ) -> Answer<pb::ShutdownExecutorResponse> {
        Err(status::unsupported("ShutdownExecutor"))
    }

    async fn send_message(&self, _: Request<pb::SendMessageRequest>) -> Answer<pb::SendMessageResponse> {
        Err(status::unsupported("SendMessage"))
    }

    async fn update_framework(
        &self,
        _: Request<pb::UpdateFrameworkRequest>,
    ) -> Answer<pb::UpdateFrameworkResponse> {
        Err(status::unsupported("UpdateFramework"))
    }

    async fn teardown(&self, request: Request<pb::TeardownRequest>) -> Answer<pb::TeardownResponse> {
        let mut state = self.state();
        state.check(request.into_inner().call)?;
        state.answer(pb::TeardownResponse { index: 1 })
    }
}

#[tonic::async_trait]
impl AdminService for Fake {
    type ReadLogsStream = Stream<admin::ReadLogsResponse>;
    type WatchEventsStream = Stream<admin::WatchEventsResponse>;
    type ReadFilesStream = Stream<admin::ReadFilesResponse>;
    type WatchUsageStream = Stream<admin::WatchUsageResponse>;
    type ExecStream = Stream<admin::ExecResponse>;
    type AttachStream = Stream<admin::AttachResponse>;

    async fn get_status(&self, _: Request<admin::GetStatusRequest>) -> Answer<admin::GetStatusResponse> {
        let mut state = self.state();
        state.lead()?;
        let (view, leader) = (state.view(), state.addr.clone());
        state.answer(admin::GetStatusResponse {
            view,
            leader,
            leader_id: 1,
            ..admin::GetStatusResponse::default()
        })
    }

    async fn list_tasks(&self, _: Request<admin::ListTasksRequest>) -> Answer<admin::ListTasksResponse> {
        let mut state = self.state();
        state.lead()?;
        let view = state.view();
        state.answer(admin::ListTasksResponse { view, ..admin::ListTasksResponse::default() })
    }

    async fn get_task(&self, _: Request<admin::GetTaskRequest>) -> Answer<admin::GetTaskResponse> {
        self.state().lead()?;
        Err(status::rejected(Rejection::UnknownTask))
    }

    async fn list_agents(&self, _: Request<admin::ListAgentsRequest>) -> Answer<admin::ListAgentsResponse> {
        let mut state = self.state();
        let view = state.view();
        state.answer(admin::ListAgentsResponse { view, ..admin::ListAgentsResponse::default() })
    }

    async fn get_agent(&self, _: Request<admin::GetAgentRequest>) -> Answer<admin::GetAgentResponse> {
        Err(status::rejected(Rejection::UnknownAgent))
    }

    async fn list_frameworks(
        &self,
        _: Request<admin::ListFrameworksRequest>,
    ) -> Answer<admin::ListFrameworksResponse> {
        let mut state = self.state();
        let view = state.view();
        state.answer(admin::ListFrameworksResponse { view, ..admin::ListFrameworksResponse::default() })
    }

    async fn get_framework(
        &self,
        _: Request<admin::GetFrameworkRequest>,
    ) -> Answer<admin::GetFrameworkResponse> {
        Err(status::rejected(Rejection::UnknownFramework))
    }

    async fn list_offers(&self, _: Request<admin::ListOffersRequest>) -> Answer<admin::ListOffersResponse> {
        let mut state = self.state();
        let view = state.view();
        state.answer(admin::ListOffersResponse { view, ..admin::ListOffersResponse::default() })
    }

    async fn list_masters(
        &self,
        _: Request<admin::ListMastersRequest>,
    ) -> Answer<admin::ListMastersResponse> {
        let mut state = self.state();
        let view = state.view();
        state.answer(admin::ListMastersResponse { view, ..admin::ListMastersResponse::default() })
    }

    async fn kill_task(&self, request: Request<admin::KillTaskRequest>) -> Answer<admin::KillTaskResponse> {
        let mut state = self.state();
        state.lead()?;
        let call = request.into_inner().call.expect("the client always sends one");
        assert_eq!(call.cluster_time_ms, 5);
        state.admin_requests.insert(call.request_id.to_vec(), ());
        let view = state.view();
        state.answer(admin::KillTaskResponse { view })
    }

    async fn teardown_framework(
        &self,
        _: Request<admin::TeardownFrameworkRequest>,
    ) -> Answer<admin::TeardownFrameworkResponse> {
        let mut state = self.state();
        let view = state.view();
        state.answer(admin::TeardownFrameworkResponse { view })
    }

    async fn list_executors(
        &self,
        _: Request<admin::ListExecutorsRequest>,
    ) -> Answer<admin::ListExecutorsResponse> {
        Err(status::unsupported("ListExecutors"))
    }

    async fn list_files(&self, _: Request<admin::ListFilesRequest>) -> Answer<admin::ListFilesResponse> {
        Err(status::unsupported("ListFiles"))
    }

    async fn write_files(
        &self,
        _: Request<Streaming<admin::WriteFilesRequest>>,
    ) -> Answer<admin::WriteFilesResponse> {
        Err(status::unsupported("WriteFiles"))
    }

    async fn watch_events(&self, _: Request<admin::WatchEventsRequest>) -> Answer<Self::WatchEventsStream> {
        Err(status::unsupported("WatchEvents"))
    }

    async fn read_files(&self, _: Request<admin::ReadFilesRequest>) -> Answer<Self::ReadFilesStream> {
        Err(status::unsupported("ReadFiles"))
    }

    async fn watch_usage(&self, _: Request<admin::WatchUsageRequest>) -> Answer<Self::WatchUsageStream> {
        Err(status::unsupported("WatchUsage"))
    }

    async fn exec(&self, _: Request<Streaming<admin::ExecRequest>>) -> Answer<Self::ExecStream> {
        Err(status::unsupported("Exec"))
    }

    async fn attach(&self, _: Request<Streaming<admin::AttachRequest>>) -> Answer<Self::AttachStream> {
        Err(status::unsupported("Attach"))
    }

    async fn read_logs(&self, request: Request<admin::ReadLogsRequest>) -> Answer<Self::ReadLogsStream> {
        let mut state = self.state();
        state.lead()?;
        state.log_reads += 1;
        let (out, stream) = mpsc::unbounded_channel();
        if state.silent_logs > 0 {
            state.silent_logs -= 1;
            tokio::spawn(async move {
                tokio::time::sleep(SILENCE).await;
                drop(out.send(Err(Status::unavailable("the agent went away"))));
            });
            return Ok(Response::new(UnboundedReceiverStream::new(stream)));
        }
        let from = request.into_inner().offset as usize;
        let to = state.cut_logs_after.map_or(state.logs.len(), |cut| state.logs.len().min(from + cut));
        let data = state.logs[from..to].to_owned().into();
        drop(out.send(Ok(admin::ReadLogsResponse { offset: from as u64, data, lost: 0 })));
        if to < state.logs.len() {
            drop(out.send(Err(Status::unavailable("the agent went away"))));
        }
        Ok(Response::new(UnboundedReceiverStream::new(stream)))
    }
}
