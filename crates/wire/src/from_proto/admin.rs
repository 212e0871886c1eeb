//! What operators ask and see.

use std::collections::BTreeMap;

use proffer_types::call::Call;
use proffer_types::command::AdminId;
use proffer_types::event::Group;
use proffer_types::limits::PAGE_ROWS_MAX;
use proffer_types::resources::Resources;
use proffer_types::{AgentId, ClusterTime, FrameworkId, LaunchId, MasterId, TaskId};

use super::agents::attributes;
use super::frameworks::framework_info;
use super::resources::{Attributions, resources};
use super::tasks::{kill_grace, status, task_id, task_state};
use super::{cluster_id, id, request_id, role};
use crate::admin::v1 as pb;
use crate::common::v1 as common;
use crate::malformed::{Malformed, Path, Problems, parse};
use crate::rows::{
    AgentRow, ExecutorRow, FrameworkRow, MasterRow, OfferRow, PageRequest, PageToken, ReadOptions,
    StatusSummary, TaskFilter, TaskRow, ViewStamp,
};
use crate::told::{LogRange, LogStream};

const ROOT: Path<'static> = Path::Root;

/// How fresh a read must be.
pub fn read_options(options: Option<pb::ReadOptions>) -> ReadOptions {
    options.map_or_else(ReadOptions::default, |o| ReadOptions {
        min_index: o.min_index,
        linearizable: o.linearizable,
    })
}

/// Which page.
pub fn page(given: Option<pb::Page>) -> Result<PageRequest, Malformed> {
    parse(|problems| page_at(given, problems))
}

fn page_at(given: Option<pb::Page>, problems: &mut Problems) -> Option<PageRequest> {
    let at = ROOT.field("page");
    let page = given.unwrap_or_default();
    let size = match page.size as usize {
        0 => PAGE_ROWS_MAX,
        size if size > PAGE_ROWS_MAX => {
            return problems.invalid(at.field("size"), format_args!("must be at most {PAGE_ROWS_MAX}"));
        }
        size => size,
    };
    let after = match page.token.as_str() {
        "" => None,
        text => match PageToken::parse(text) {
            Some(token) => Some(token),
            None => return problems.invalid(at.field("token"), "is no token of a page before"),
        },
    };
    Some(PageRequest { size, after })
}

/// A list of agents that is asked for.
pub fn list_agents(request: pb::ListAgentsRequest) -> Result<(ReadOptions, PageRequest), Malformed> {
    Ok((read_options(request.read), page(request.page)?))
}

/// A list of frameworks that is asked for, and whether completed ones are wanted.
pub fn list_frameworks(
    request: pb::ListFrameworksRequest,
) -> Result<(ReadOptions, PageRequest, bool), Malformed> {
    Ok((read_options(request.read), page(request.page)?, request.completed))
}

/// A list of tasks that is asked for.
pub fn list_tasks(
    request: pb::ListTasksRequest,
) -> Result<(ReadOptions, PageRequest, TaskFilter), Malformed> {
    parse(|problems| {
        let read = read_options(request.read);
        let page = page_at(request.page, problems);
        let mut filter = TaskFilter {
            framework: (request.framework_id > 0).then_some(FrameworkId(request.framework_id)),
            agent: (request.agent_id > 0).then_some(AgentId(request.agent_id)),
            ..TaskFilter::default()
        };
        for (i, number) in request.states.into_iter().enumerate() {
            match task_state(number, ROOT.item("states", i), problems)? {
                Some(state) => drop(filter.states.insert(state)),
                None => return problems.invalid(ROOT.item("states", i), "no task is in the state UNKNOWN"),
            }
        }
        if !request.task_id.is_empty() {
            filter.task_id = Some(task_id(&request.task_id, ROOT.field("task_id"), problems)?);
        }
        Some((read, page?, filter))
    })
}

/// A task that is named.
pub fn named_task(framework: u64, task: &str) -> Result<(FrameworkId, TaskId), Malformed> {
    parse(|problems| {
        let framework = id(framework, ROOT.field("framework_id"), problems);
        let task = task_id(task, ROOT.field("task_id"), problems);
        Some((FrameworkId(framework?), task?))
    })
}

/// An id that must be given, in the field of this name.
pub fn given_id(number: u64, field: &'static str) -> Result<u64, Malformed> {
    parse(|problems| id(number, ROOT.field(field), problems))
}

/// An operator ends a task.
pub fn kill_task(request: pb::KillTaskRequest) -> Result<Call, Malformed> {
    parse(|problems| {
        let call = admin_id(request.call, problems);
        let framework = id(request.framework_id, ROOT.field("framework_id"), problems);
        let task = task_id(&request.task_id, ROOT.field("task_id"), problems);
        let grace_ms = kill_grace(request.grace_ms, ROOT.field("grace_ms"), problems);
        Some(Call::AdminKill {
            call: call?,
            framework: FrameworkId(framework?),
            task: task?,
            grace_ms: grace_ms?,
        })
    })
}

/// An operator ends a framework.
pub fn teardown_framework(request: pb::TeardownFrameworkRequest) -> Result<Call, Malformed> {
    parse(|problems| {
        let call = admin_id(request.call, problems);
        let framework = id(request.framework_id, ROOT.field("framework_id"), problems);
        Some(Call::AdminTeardown { call: call?, framework: FrameworkId(framework?) })
    })
}

fn admin_id(call: Option<pb::AdminCall>, problems: &mut Problems) -> Option<AdminId> {
    let at = ROOT.field("call");
    let Some(call) = call else { return problems.invalid(at, "must be given") };
    let request = request_id(&call.request_id, at.field("request_id"), problems)?;
    Some(AdminId { request, time: ClusterTime(call.cluster_time_ms) })
}

/// A task's output that is asked for.
pub fn read_logs(request: pb::ReadLogsRequest) -> Result<(FrameworkId, TaskId, LogRange), Malformed> {
    parse(|problems| {
        let framework = id(request.framework_id, ROOT.field("framework_id"), problems);
        let task = task_id(&request.task_id, ROOT.field("task_id"), problems);
        let stream = match request.stream.as_str() {
            "stdout" => Some(LogStream::Stdout),
            "stderr" => Some(LogStream::Stderr),
            _ => problems.invalid(ROOT.field("stream"), "must be `stdout` or `stderr`"),
        };
        let range = LogRange {
            stream: stream?,
            offset: request.offset,
            limit: request.limit,
            follow: request.follow,
        };
        Some((FrameworkId(framework?), task?, range))
    })
}

/// The state that an answer was read from.
pub fn admin_view(view: Option<pb::View>) -> Result<ViewStamp, Malformed> {
    parse(|problems| {
        let at = ROOT.field("view");
        let Some(view) = view else { return problems.invalid(at, "must be given") };
        let cluster = cluster_id(&view.cluster_id, at.field("cluster_id"), problems)?;
        Some(ViewStamp { index: view.index, time: ClusterTime(view.cluster_time_ms), cluster })
    })
}

fn amounts(list: Vec<common::Resource>, name: &'static str, problems: &mut Problems) -> Option<Resources> {
    resources(list, &ROOT, name, Attributions::Allowed, problems)
}

/// A task.
pub fn task_row(task: pb::Task) -> Result<TaskRow, Malformed> {
    parse(|problems| {
        Some(TaskRow {
            task_id: task_id(&task.task_id, ROOT.field("task_id"), problems)?,
            framework: FrameworkId(task.framework_id),
            agent: AgentId(task.agent_id),
            name: task.name,
            role: role(&task.role, ROOT.field("role"), problems)?,
            status: status(task.status, &ROOT.field("status"), problems)?,
            resources: amounts(task.resources, "resources", problems)?,
            created_ms: task.created_ms,
            started_ms: (task.started_ms > 0).then_some(task.started_ms),
            finished_ms: (task.finished_ms > 0).then_some(task.finished_ms),
            launch: LaunchId(task.launch_id),
            argv: task.argv,
            user: task.user,
            hostname: task.hostname,
            retired: task.retired,
            group: (task.group_first > 0)
                .then_some(Group { first: LaunchId(task.group_first), size: task.group_size }),
            executor: task.executor_id,
            terminal: task.terminal,
        })
    })
}

/// A list of executors that is asked for: of which framework, and whether ended ones are wanted.
pub fn list_executors(
    request: pb::ListExecutorsRequest,
) -> Result<(ReadOptions, PageRequest, Option<FrameworkId>, bool), Malformed> {
    let framework = (request.framework_id > 0).then_some(FrameworkId(request.framework_id));
    Ok((read_options(request.read), page(request.page)?, framework, request.ended))
}

/// An executor.
pub fn executor_row(executor: pb::Executor) -> Result<ExecutorRow, Malformed> {
    parse(|problems| {
        Some(ExecutorRow {
            executor: executor.executor_id,
            framework: FrameworkId(executor.framework_id),
            agent: AgentId(executor.agent_id),
            launch: LaunchId(executor.launch_id),
            role: role(&executor.role, ROOT.field("role"), problems)?,
            status: status(executor.status, &ROOT.field("status"), problems)?,
            resources: amounts(executor.resources, "resources", problems)?,
            created_ms: executor.created_ms,
            started_ms: (executor.started_ms > 0).then_some(executor.started_ms),
            finished_ms: (executor.finished_ms > 0).then_some(executor.finished_ms),
            argv: executor.argv,
            user: executor.user,
            hostname: executor.hostname,
            live_tasks: executor.live_tasks,
        })
    })
}

/// An agent.
pub fn agent_row(agent: pb::Agent) -> Result<AgentRow, Malformed> {
    parse(|problems| {
        Some(AgentRow {
            id: AgentId(agent.agent_id),
            hostname: agent.hostname,
            state: agent.state,
            connected: agent.connected,
            total: amounts(agent.total, "total", problems)?,
            used: amounts(agent.used, "used", problems)?,
            offered: amounts(agent.offered, "offered", problems)?,
            attributes: attributes(agent.attributes, &ROOT, problems)?,
            isolation: agent.isolation,
            version: agent.version,
            registered_ms: agent.registered_ms,
            live_tasks: agent.live_tasks,
            features: agent.features.into_iter().collect(),
        })
    })
}

/// A framework.
pub fn framework_row(framework: pb::Framework) -> Result<FrameworkRow, Malformed> {
    parse(|problems| {
        Some(FrameworkRow {
            id: FrameworkId(framework.framework_id),
            info: framework_info(framework.info, &ROOT.field("info"), problems)?,
            state: framework.state,
            principal: framework.principal,
            live_tasks: framework.live_tasks,
            used: amounts(framework.used, "used", problems)?,
            offered: amounts(framework.offered, "offered", problems)?,
            registered_ms: framework.registered_ms,
            remaining_ms: framework.remaining_ms,
            completion_reason: framework.completion_reason,
        })
    })
}

/// An outstanding offer.
pub fn offer_row(offer: pb::Offer) -> Result<OfferRow, Malformed> {
    parse(|problems| {
        Some(OfferRow {
            id: offer.offer_id,
            framework: FrameworkId(offer.framework_id),
            agent: AgentId(offer.agent_id),
            role: role(&offer.role, ROOT.field("role"), problems)?,
            resources: amounts(offer.resources, "resources", problems)?,
            age_ms: offer.age_ms,
        })
    })
}

/// A master.
pub fn master_row(master: pb::Master) -> MasterRow {
    MasterRow { id: MasterId(master.id), addr: master.addr, role: master.role, index: master.index }
}

/// The cluster at a glance.
pub fn status_summary(response: pb::GetStatusResponse) -> Result<(ViewStamp, StatusSummary), Malformed> {
    let view = admin_view(response.view.clone())?;
    parse(|problems| {
        let agents = response.agents.unwrap_or_default();
        let summary = StatusSummary {
            leader: response.leader,
            leader_id: MasterId(response.leader_id),
            term: response.term,
            masters: response.masters.into_iter().map(master_row).collect(),
            agents_reachable: agents.reachable,
            agents_unreachable: agents.unreachable,
            total: amounts(response.total, "total", problems)?,
            used: amounts(response.used, "used", problems)?,
            offered: amounts(response.offered, "offered", problems)?,
            free: amounts(response.free, "free", problems)?,
            tasks: response.tasks.into_iter().collect::<BTreeMap<_, _>>(),
            frameworks: response.frameworks,
        };
        Some((view, summary))
    })
}
