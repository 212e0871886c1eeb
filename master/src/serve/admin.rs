//! What operators ask. Everything is read from one view of the leader's state, which never changes under the reader.

use std::collections::BTreeMap;

use proffer_types::command::Rejection;
use proffer_types::event::{DataAction, LaunchKind};
use proffer_types::resources::{AMOUNT_MAX, Custom, Quantities, Resources, ScalarKind};
use proffer_types::{
    Agent, AgentId, AgentState, Framework, FrameworkId, FrameworkState, LaunchId, MasterId, Task, TaskId,
};
use proffer_wire::admin::v1 as pb;
use proffer_wire::admin::v1::admin_service_server::AdminService;
use proffer_wire::agent::v1::data_chunk::Answer;
use proffer_wire::agent::v1::data_request::Ask;
use proffer_wire::malformed::Malformed;
use proffer_wire::rows::{
    AgentRow, ExecutorRow, FrameworkRow, MasterRow, OfferRow, PageRequest, PageToken, ReadOptions,
    StatusSummary, TaskFilter, TaskRow, ViewStamp,
};
use proffer_wire::{from_proto, status, to_proto};
use prost::Message;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::pack::Outlet;
use super::relay::{self, Answers, Relay};
use super::scheduler::settle;
use super::{connection, watch};
use crate::driver::{DataOrder, Handle, Target, View};
use crate::events::Cursor;

/// A page's rows are below 1 MiB, the most that is sent in one message, with room for what is beside them.
const PAGE_BYTES: usize = 1_000_000;
/// What a row takes in a message beside itself: its tag and its length.
const ROW_HEAD_BYTES: usize = 8;

/// Serves operators.
#[derive(Clone)]
pub(crate) struct Admin {
    handle: Handle,
    relay: Relay,
}

impl Admin {
    pub(crate) fn new(handle: Handle) -> Self {
        let relay = Relay::new(handle.clone());
        Self { handle, relay }
    }

    async fn view(&self, read: ReadOptions) -> Result<View, Status> {
        let view = self.handle.view(read.linearizable, read.min_index).await;
        view.map_err(|refused| status::refused(&refused))
    }

    /// The state in which a page is read: not older than that of the page before.
    async fn page_view(&self, mut read: ReadOptions, page: &PageRequest) -> Result<View, Status> {
        if let Some(after) = page.after {
            read.min_index = read.min_index.max(after.index);
        }
        self.view(read).await
    }

    /// Makes a call that was parsed; the answer is the state after it.
    async fn ask<T>(
        &self,
        request: Request<T>,
        parse: impl FnOnce(T) -> Result<proffer_types::call::Call, Malformed>,
    ) -> Result<pb::View, Status> {
        let caller = connection(&request)?.caller().clone();
        let call = parsed(parse(request.into_inner()))?;
        let reply = self.handle.call(caller, call).await.map_err(|refused| status::refused(&refused))?;
        let min_index = settle(reply)?.index();
        let view = self.view(ReadOptions { min_index, linearizable: false }).await?;
        Ok(stamp(&view))
    }
}

fn parsed<T>(result: Result<T, Malformed>) -> Result<T, Status> {
    result.map_err(|error| status::malformed(&error))
}

fn stamp(view: &View) -> pb::View {
    to_proto::admin_view(&view_stamp(view))
}

fn view_stamp(view: &View) -> ViewStamp {
    let cluster = view.registry.cluster().unwrap_or_default();
    ViewStamp { index: view.registry.applied(), time: view.time, cluster }
}

/// Reads what may take some milliseconds, off the thread that serves heartbeats.
async fn read<T: Send + 'static>(reader: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
    tokio::task::spawn_blocking(reader)
        .await
        .map_err(|error| Status::internal(format!("a read failed: {error}")))
}

#[tonic::async_trait]
impl AdminService for Admin {
    type ReadLogsStream = Answers<pb::ReadLogsResponse>;
    type WatchEventsStream = Answers<pb::WatchEventsResponse>;
    type ExecStream = Answers<pb::ExecResponse>;
    type AttachStream = Answers<pb::AttachResponse>;
    type ReadFilesStream = Answers<pb::ReadFilesResponse>;
    type WatchUsageStream = Answers<pb::WatchUsageResponse>;

    async fn get_status(
        &self,
        request: Request<pb::GetStatusRequest>,
    ) -> Result<Response<pb::GetStatusResponse>, Status> {
        let view = self.view(from_proto::read_options(request.into_inner().read)).await?;
        let response = read(move || to_proto::status_summary(&view_stamp(&view), &summary(&view))).await?;
        Ok(Response::new(response))
    }

    async fn list_tasks(
        &self,
        request: Request<pb::ListTasksRequest>,
    ) -> Result<Response<pb::ListTasksResponse>, Status> {
        let (options, page, filter) = parsed(from_proto::list_tasks(request.into_inner()))?;
        let view = self.page_view(options, &page).await?;
        let response = read(move || {
            let rows = tasks_after(&view, &filter, page.after);
            let row = |(task, retired): (&Task, bool)| to_proto::task_row(&task_row(&view, task, retired));
            let (tasks, next) = cut(&view, &page, rows, |(task, _)| task.launch_id.0, row);
            pb::ListTasksResponse { view: Some(stamp(&view)), tasks, next }
        });
        Ok(Response::new(response.await?))
    }

    async fn get_task(
        &self,
        request: Request<pb::GetTaskRequest>,
    ) -> Result<Response<pb::GetTaskResponse>, Status> {
        let request = request.into_inner();
        let (framework, name) = parsed(from_proto::named_task(request.framework_id, &request.task_id))?;
        let view = self.view(from_proto::read_options(request.read)).await?;
        let (task, retired) = find_task(&view, framework, &name)?;
        let task = to_proto::task_row(&task_row(&view, task, retired));
        Ok(Response::new(pb::GetTaskResponse { view: Some(stamp(&view)), task: Some(task) }))
    }

    async fn list_agents(
        &self,
        request: Request<pb::ListAgentsRequest>,
    ) -> Result<Response<pb::ListAgentsResponse>, Status> {
        let (options, page) = parsed(from_proto::list_agents(request.into_inner()))?;
        let view = self.page_view(options, &page).await?;
        let response = read(move || {
            let after = page.after.map_or(0, |token| token.last);
            let offered = offered_by_agent(&view);
            let rows = view.registry.agents().filter(|a| a.id.0 > after);
            let row = |agent: &Agent| to_proto::agent_row(&agent_row(&view, agent, &offered));
            let (agents, next) = cut(&view, &page, rows, |a| a.id.0, row);
            pb::ListAgentsResponse { view: Some(stamp(&view)), agents, next }
        });
        Ok(Response::new(response.await?))
    }

    async fn get_agent(
        &self,
        request: Request<pb::GetAgentRequest>,
    ) -> Result<Response<pb::GetAgentResponse>, Status> {
        let request = request.into_inner();
        let id = AgentId(parsed(from_proto::given_id(request.agent_id, "agent_id"))?);
        let view = self.view(from_proto::read_options(request.read)).await?;
        let Some(agent) = view.registry.agent(id) else {
            return Err(status::rejected(Rejection::UnknownAgent));
        };
        let agent = to_proto::agent_row(&agent_row(&view, agent, &offered_by_agent(&view)));
        Ok(Response::new(pb::GetAgentResponse { view: Some(stamp(&view)), agent: Some(agent) }))
    }

    async fn list_frameworks(
        &self,
        request: Request<pb::ListFrameworksRequest>,
    ) -> Result<Response<pb::ListFrameworksResponse>, Status> {
        let (options, page, completed) = parsed(from_proto::list_frameworks(request.into_inner()))?;
        let view = self.page_view(options, &page).await?;
        let response = read(move || {
            let after = page.after.map_or(0, |token| token.last);
            let wanted = |f: &&Framework| f.id.0 > after && (completed || !f.is_completed());
            let row = |framework: &Framework| to_proto::framework_row(&framework_row(&view, framework));
            let rows = view.registry.frameworks().filter(wanted);
            let (frameworks, next) = cut(&view, &page, rows, |f| f.id.0, row);
            pb::ListFrameworksResponse { view: Some(stamp(&view)), frameworks, next }
        });
        Ok(Response::new(response.await?))
    }

    async fn get_framework(
        &self,
        request: Request<pb::GetFrameworkRequest>,
    ) -> Result<Response<pb::GetFrameworkResponse>, Status> {
        let request = request.into_inner();
        let id = FrameworkId(parsed(from_proto::given_id(request.framework_id, "framework_id"))?);
        let view = self.view(from_proto::read_options(request.read)).await?;
        let Some(framework) = view.registry.framework(id) else {
            return Err(status::rejected(Rejection::UnknownFramework));
        };
        let framework = to_proto::framework_row(&framework_row(&view, framework));
        Ok(Response::new(pb::GetFrameworkResponse { view: Some(stamp(&view)), framework: Some(framework) }))
    }

    async fn list_offers(
        &self,
        _request: Request<pb::ListOffersRequest>,
    ) -> Result<Response<pb::ListOffersResponse>, Status> {
        let view = self.view(ReadOptions::default()).await?;
        let tag = view.registry.cluster().unwrap_or_default().tag();
        let offers = view.offers.iter().map(|live| {
            to_proto::offer_row(&OfferRow {
                id: live.offer.id.text(tag),
                framework: live.offer.framework,
                agent: live.offer.agent,
                role: live.offer.role.clone(),
                resources: live.offer.resources.clone(),
                age_ms: view.time.0.saturating_sub(live.made_at),
            })
        });
        Ok(Response::new(pb::ListOffersResponse { view: Some(stamp(&view)), offers: offers.collect() }))
    }

    async fn list_executors(
        &self,
        request: Request<pb::ListExecutorsRequest>,
    ) -> Result<Response<pb::ListExecutorsResponse>, Status> {
        let (options, page, framework, ended) = parsed(from_proto::list_executors(request.into_inner()))?;
        let view = self.page_view(options, &page).await?;
        let response = read(move || {
            let after = page.after.map_or(0, |token| token.last);
            let wanted = |e: &&Task| {
                e.launch_id.0 > after && framework.is_none_or(|framework| e.framework == framework)
            };
            let history = ended.then(|| view.registry.executor_history()).into_iter().flatten();
            let mut found: Vec<&Task> = view.registry.executors().chain(history).filter(wanted).collect();
            found.sort_unstable_by_key(|executor| executor.launch_id);
            let row = |executor: &Task| to_proto::executor_row(&executor_row(&view, executor));
            let (executors, next) = cut(&view, &page, found.into_iter(), |e| e.launch_id.0, row);
            pb::ListExecutorsResponse { view: Some(stamp(&view)), executors, next }
        });
        Ok(Response::new(response.await?))
    }

    async fn list_masters(
        &self,
        _request: Request<pb::ListMastersRequest>,
    ) -> Result<Response<pb::ListMastersResponse>, Status> {
        let view = self.view(ReadOptions::default()).await?;
        let masters = master_rows(&view).iter().map(to_proto::master_row).collect();
        Ok(Response::new(pb::ListMastersResponse { view: Some(stamp(&view)), masters }))
    }

    async fn kill_task(
        &self,
        request: Request<pb::KillTaskRequest>,
    ) -> Result<Response<pb::KillTaskResponse>, Status> {
        let view = self.ask(request, from_proto::kill_task).await?;
        Ok(Response::new(pb::KillTaskResponse { view: Some(view) }))
    }

    async fn teardown_framework(
        &self,
        request: Request<pb::TeardownFrameworkRequest>,
    ) -> Result<Response<pb::TeardownFrameworkResponse>, Status> {
        let view = self.ask(request, from_proto::teardown_framework).await?;
        Ok(Response::new(pb::TeardownFrameworkResponse { view: Some(view) }))
    }

    async fn read_logs(
        &self,
        request: Request<pb::ReadLogsRequest>,
    ) -> Result<Response<Self::ReadLogsStream>, Status> {
        let caller = connection(&request)?.caller().clone();
        let (framework, task, range) = parsed(from_proto::read_logs(request.into_inner()))?;
        // The launch is filled in where the task is looked up.
        let first = to_proto::data_request(LaunchId(0), range);
        let target = Target::Task { framework, task };
        let order = DataOrder { target, action: DataAction::ReadLogs, first };
        let link = self.relay.open_with(caller, order).await?;
        Ok(Response::new(relay::show(link, relay::logs_response)))
    }

    async fn watch_events(
        &self,
        request: Request<pb::WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let (outlet, messages) = Outlet::new(connection(&request)?.hang_up());
        let request = request.into_inner();
        let after = request.after.map(|at| Cursor { index: at.index, ordinal: at.ordinal });
        let feed = self.handle.feed().clone();
        // At once, so that a call and not only its stream fails.
        feed.read(after, 0).map_err(|lost| watch::resync(&lost))?;
        tokio::spawn(watch::tell(feed, after, request.follow, outlet));
        Ok(Response::new(ReceiverStream::new(messages)))
    }

    async fn exec(
        &self,
        request: Request<Streaming<pb::ExecRequest>>,
    ) -> Result<Response<Self::ExecStream>, Status> {
        let caller = connection(&request)?.caller().clone();
        let mut inbound = request.into_inner();
        let first = relay::first(&mut inbound).await?;
        let Some(pb::exec_request::Message::Start(start)) = &first.message else {
            return Err(relay::out_of_place("an exec begins with `start`"));
        };
        let target = relay::task(start.framework_id, &start.task_id)?;
        parsed(from_proto::exec_start(start))?;
        let link = self.relay.open(caller, target, DataAction::Exec, Ask::Exec(first)).await?;
        let end = pb::ExecRequest { message: Some(pb::exec_request::Message::InputEnd(pb::InputEnd {})) };
        relay::pass_on(inbound, &link, Ask::Exec, Some(Ask::Exec(end)));
        Ok(Response::new(relay::show(link, relay::exec_response)))
    }

    async fn attach(
        &self,
        request: Request<Streaming<pb::AttachRequest>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let caller = connection(&request)?.caller().clone();
        let mut inbound = request.into_inner();
        let first = relay::first(&mut inbound).await?;
        let Some(pb::attach_request::Message::Start(start)) = &first.message else {
            return Err(relay::out_of_place("an attach begins with `start`"));
        };
        let target = relay::task(start.framework_id, &start.task_id)?;
        let link = self.relay.open(caller, target, DataAction::Attach, Ask::Attach(first)).await?;
        relay::pass_on(inbound, &link, Ask::Attach, None);
        Ok(Response::new(relay::show(link, relay::attach_response)))
    }

    async fn list_files(
        &self,
        request: Request<pb::ListFilesRequest>,
    ) -> Result<Response<pb::ListFilesResponse>, Status> {
        let caller = connection(&request)?.caller().clone();
        let request = request.into_inner();
        let target = relay::task(request.framework_id, &request.task_id)?;
        parsed(from_proto::sandbox_path(&request.path, "path"))?;
        let ask = Ask::ListFiles(request);
        let link = self.relay.open(caller, target, DataAction::ReadFiles, ask).await?;
        let pick = |answer| if let Answer::ListFiles(list) = answer { Some(list) } else { None };
        Ok(Response::new(relay::answer(link, pick).await?))
    }

    async fn read_files(
        &self,
        request: Request<pb::ReadFilesRequest>,
    ) -> Result<Response<Self::ReadFilesStream>, Status> {
        let caller = connection(&request)?.caller().clone();
        let request = request.into_inner();
        let target = relay::task(request.framework_id, &request.task_id)?;
        parsed(from_proto::sandbox_path(&request.path, "path"))?;
        let ask = Ask::ReadFiles(request);
        let link = self.relay.open(caller, target, DataAction::ReadFiles, ask).await?;
        Ok(Response::new(relay::show(link, relay::files_response)))
    }

    async fn write_files(
        &self,
        request: Request<Streaming<pb::WriteFilesRequest>>,
    ) -> Result<Response<pb::WriteFilesResponse>, Status> {
        let caller = connection(&request)?.caller().clone();
        let mut inbound = request.into_inner();
        let first = relay::first(&mut inbound).await?;
        let Some(start) = &first.start else {
            return Err(relay::out_of_place("a writing of files begins with `start`"));
        };
        let target = relay::task(start.framework_id, &start.task_id)?;
        parsed(from_proto::sandbox_path(&start.path, "start.path"))?;
        parsed(from_proto::file_name(&start.name, "start.name"))?;
        let ask = Ask::WriteFiles(first);
        let link = self.relay.open(caller, target, DataAction::WriteFiles, ask).await?;
        // Of no effect behind an end, and refused without one, which the agent would wait for.
        let nothing = pb::WriteFilesRequest { start: None, items: vec![pb::FileItem { item: None }] };
        relay::pass_on(inbound, &link, Ask::WriteFiles, Some(Ask::WriteFiles(nothing)));
        let pick = |answer| if let Answer::WriteFiles(done) = answer { Some(done) } else { None };
        Ok(Response::new(relay::answer(link, pick).await?))
    }

    async fn watch_usage(
        &self,
        request: Request<pb::WatchUsageRequest>,
    ) -> Result<Response<Self::WatchUsageStream>, Status> {
        let caller = connection(&request)?.caller().clone();
        let request = request.into_inner();
        let target = relay::agent(request.agent_id)?;
        parsed(from_proto::usage_interval(request.interval_ms))?;
        let ask = Ask::WatchUsage(request);
        let link = self.relay.open(caller, target, DataAction::WatchUsage, ask).await?;
        Ok(Response::new(relay::show(link, relay::usage_response)))
    }
}

/// The rows of a page, and the token of the next one if there is more. A page ends early where its message would be
/// larger than what is sent to anyone.
fn cut<T: Copy, M: Message>(
    view: &View,
    page: &PageRequest,
    rows: impl Iterator<Item = T>,
    key: impl Fn(T) -> u64,
    message: impl Fn(T) -> M,
) -> (Vec<M>, String) {
    let mut messages = Vec::new();
    let (mut bytes, mut last) = (0, 0);
    for row in rows {
        if messages.len() == page.size {
            return (messages, PageToken { index: view.registry.applied(), last }.text());
        }
        let next = message(row);
        bytes += next.encoded_len() + ROW_HEAD_BYTES;
        if bytes > PAGE_BYTES && !messages.is_empty() {
            return (messages, PageToken { index: view.registry.applied(), last }.text());
        }
        messages.push(next);
        last = key(row);
    }
    (messages, String::new())
}

/// The tasks that a filter lets through, live and finished ones, by launch, and whether each is retired.
fn tasks_after<'a>(
    view: &'a View,
    filter: &'a TaskFilter,
    after: Option<PageToken>,
) -> impl Iterator<Item = (&'a Task, bool)> + 'a {
    let after = after.map_or(0, |token| token.last);
    let wanted = move |task: &&Task| {
        task.launch_id.0 > after
            && filter.agent.is_none_or(|agent| task.agent == agent)
            && (filter.states.is_empty() || filter.states.contains(&task.status.state))
            && filter.task_id.as_ref().is_none_or(|id| *id == task.task_id)
    };
    let (mut live, mut finished): (Box<dyn Iterator<Item = &Task> + 'a>, Vec<&Task>) = match filter.framework
    {
        Some(framework) => (
            Box::new(view.registry.tasks_of_framework(framework).filter(wanted)),
            view.registry.history_of_framework(framework).filter(wanted).collect(),
        ),
        None => {
            (Box::new(view.registry.tasks().filter(wanted)), view.registry.history().filter(wanted).collect())
        }
    };
    finished.sort_unstable_by_key(|task| task.launch_id);
    let mut finished = finished.into_iter().peekable();
    let mut next_live = live.next();
    std::iter::from_fn(move || match (next_live, finished.peek()) {
        (Some(task), retired) if retired.is_none_or(|r| task.launch_id < r.launch_id) => {
            next_live = live.next();
            Some((task, false))
        }
        _ => finished.next().map(|task| (task, true)),
    })
}

/// A framework's task of this name: the retained one, or the last finished one.
fn find_task<'a>(view: &'a View, framework: FrameworkId, name: &TaskId) -> Result<(&'a Task, bool), Status> {
    let registry = &view.registry;
    if let Some(task) = registry.task_by_name(framework, name) {
        return Ok((task, false));
    }
    let mut finished = registry.history_of_framework(framework).filter(|task| task.task_id == *name);
    match finished.next().map(|first| finished.last().unwrap_or(first)) {
        Some(task) => Ok((task, true)),
        None if registry.framework(framework).is_none() => Err(status::rejected(Rejection::UnknownFramework)),
        None => Err(status::rejected(Rejection::UnknownTask)),
    }
}

fn task_row(view: &View, task: &Task, retired: bool) -> TaskRow {
    TaskRow {
        task_id: task.task_id.clone(),
        framework: task.framework,
        agent: task.agent,
        name: if task.name.is_empty() { task.task_id.as_str().to_owned() } else { task.name.clone() },
        role: task.role.clone(),
        status: task.status.clone(),
        resources: task.resources.clone(),
        created_ms: task.created_wall_ms,
        started_ms: task.started_wall_ms,
        finished_ms: task.finished_wall_ms,
        launch: task.launch_id,
        argv: task.spec.argv.clone(),
        user: task.spec.user.clone(),
        hostname: hostname(view, task.agent),
        retired,
        group: task.group,
        executor: task.spec.executor.as_ref().map(|executor| executor.id.to_string()).unwrap_or_default(),
        terminal: task.spec.container.terminal,
    }
}

fn hostname(view: &View, agent: AgentId) -> String {
    view.registry.agent(agent).map(|agent| agent.info.hostname.clone()).unwrap_or_default()
}

fn executor_row(view: &View, executor: &Task) -> ExecutorRow {
    let own = LaunchKind::TaskOf(executor.launch_id);
    ExecutorRow {
        executor: executor.task_id.to_string(),
        framework: executor.framework,
        agent: executor.agent,
        launch: executor.launch_id,
        role: executor.role.clone(),
        status: executor.status.clone(),
        resources: executor.resources.clone(),
        created_ms: executor.created_wall_ms,
        started_ms: executor.started_wall_ms,
        finished_ms: executor.finished_wall_ms,
        argv: executor.spec.argv.clone(),
        user: executor.spec.user.clone(),
        hostname: hostname(view, executor.agent),
        live_tasks: view.registry.tasks_on_agent(executor.agent).filter(|task| task.kind == own).count()
            as u64,
    }
}

fn offered_by_agent(view: &View) -> BTreeMap<AgentId, Resources> {
    let mut offered: BTreeMap<AgentId, Resources> = BTreeMap::new();
    for live in view.offers.iter() {
        let sum = offered.entry(live.offer.agent).or_default();
        // Offers of one agent are parts of what it has: their sum exists.
        let _ = sum.add(&live.offer.resources);
    }
    offered
}

fn agent_row(view: &View, agent: &Agent, offered: &BTreeMap<AgentId, Resources>) -> AgentRow {
    AgentRow {
        id: agent.id,
        hostname: agent.info.hostname.clone(),
        state: match agent.state {
            AgentState::Reachable => "REACHABLE",
            AgentState::Unreachable { .. } => "UNREACHABLE",
        }
        .into(),
        connected: view.connected.contains(&agent.id),
        total: agent.info.resources.clone(),
        used: agent.used.clone(),
        offered: offered.get(&agent.id).cloned().unwrap_or_default(),
        attributes: agent.info.attributes.clone(),
        isolation: agent.info.isolation.clone(),
        version: agent.info.version.clone(),
        registered_ms: agent.registered_wall_ms,
        live_tasks: view.registry.tasks_on_agent(agent.id).count() as u64,
        features: agent.info.features.clone(),
    }
}

fn framework_state(framework: &Framework) -> &'static str {
    match framework.state {
        FrameworkState::Connected => "CONNECTED",
        FrameworkState::Disconnected { .. } => "DISCONNECTED",
        FrameworkState::Completed { .. } => "COMPLETED",
    }
}

fn framework_row(view: &View, framework: &Framework) -> FrameworkRow {
    let mut used = Totals::default();
    for task in view.registry.tasks_of_framework(framework.id).filter(|task| !task.is_terminal()) {
        used.add(&task.resources);
    }
    let mut offered = Totals::default();
    for live in view.offers.iter().filter(|live| live.offer.framework == framework.id) {
        offered.add(&live.offer.resources);
    }
    FrameworkRow {
        id: framework.id,
        info: framework.info.clone(),
        state: framework_state(framework).into(),
        principal: framework.owner.principal.to_string(),
        live_tasks: framework.live_tasks,
        used: used.resources(),
        offered: offered.resources(),
        registered_ms: framework.registered_wall_ms,
        remaining_ms: match framework.state {
            FrameworkState::Disconnected { deadline } => Some(deadline.since_ms(view.time)),
            FrameworkState::Connected | FrameworkState::Completed { .. } => None,
        },
        completion_reason: framework.completion_reason.clone(),
    }
}

fn master_rows(view: &View) -> Vec<MasterRow> {
    let row = |master: &crate::driver::MasterView| MasterRow {
        id: MasterId(master.id),
        addr: master.address.clone(),
        role: match master.leads {
            Some(true) => "leader",
            Some(false) => "follower",
            None => "unknown",
        }
        .into(),
        index: master.index,
    };
    view.masters.iter().map(row).collect()
}

fn summary(view: &View) -> StatusSummary {
    let mut summary = StatusSummary {
        leader: view.leader.clone(),
        leader_id: MasterId(view.leader_id),
        term: view.epoch.term,
        masters: master_rows(view),
        ..StatusSummary::default()
    };
    let (mut total, mut used, mut offered) = (Totals::default(), Totals::default(), Totals::default());
    for agent in view.registry.agents() {
        if agent.is_reachable() {
            summary.agents_reachable += 1;
            total.add(&agent.info.resources);
            used.add(&agent.used);
        } else {
            summary.agents_unreachable += 1;
        }
    }
    for live in view.offers.iter() {
        offered.add(&live.offer.resources);
    }
    for task in view.registry.tasks().chain(view.registry.history()) {
        *summary.tasks.entry(task.status.state.name().to_owned()).or_default() += 1;
    }
    for framework in view.registry.frameworks() {
        *summary.frameworks.entry(framework_state(framework).to_owned()).or_default() += 1;
    }
    summary.free = total.clone().less(&used).less(&offered).resources();
    summary.total = total.resources();
    summary.used = used.resources();
    summary.offered = offered.resources();
    summary
}

/// Sums over many agents. Only amounts have one: the same port of two agents is two ports, not one.
#[derive(Clone, Debug, Default)]
struct Totals {
    scalars: [u64; 4],
    custom: BTreeMap<String, u64>,
}

impl Totals {
    fn add(&mut self, resources: &Resources) {
        for kind in ScalarKind::ALL {
            let sum = &mut self.scalars[kind as usize];
            *sum = sum.saturating_add(resources.scalar(kind)).min(AMOUNT_MAX);
        }
        for custom in resources.entries().iter().filter_map(|entry| entry.quantities.custom()) {
            for (kind, amount) in &custom.scalars {
                let sum = self.custom.entry(kind.clone()).or_default();
                *sum = sum.saturating_add(*amount).min(AMOUNT_MAX);
            }
        }
    }

    fn less(mut self, other: &Self) -> Self {
        for (have, taken) in self.scalars.iter_mut().zip(other.scalars) {
            *have = have.saturating_sub(taken);
        }
        for (kind, have) in &mut self.custom {
            *have = have.saturating_sub(other.custom.get(kind).copied().unwrap_or(0));
        }
        self
    }

    fn resources(&self) -> Resources {
        let [cpus, memory, disk, gpus] = self.scalars;
        let custom = Custom { scalars: self.custom.clone(), ..Custom::default() };
        Resources::unreserved(Quantities::scalars(cpus, memory, disk, gpus).with_custom(custom))
    }
}
