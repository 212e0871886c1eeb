//! What operators ask and see.

use proffer_types::command::AdminId;
use proffer_types::{FrameworkId, TaskId};

use super::agents::attributes;
use super::tasks::{status, task_state};
use super::{framework_info, resources, sixteen};
use crate::admin::v1 as pb;
use crate::rows::{
    AgentRow, ExecutorRow, FrameworkRow, MasterRow, OfferRow, PageRequest, ReadOptions, StatusSummary,
    TaskFilter, TaskRow, ViewStamp,
};
use crate::told::LogRange;

/// How fresh a read must be.
pub fn read_options(read: ReadOptions) -> pb::ReadOptions {
    pb::ReadOptions { min_index: read.min_index, linearizable: read.linearizable }
}

/// Which page.
pub fn page(page: PageRequest) -> pb::Page {
    pb::Page { size: page.size as u32, token: page.after.map(|token| token.text()).unwrap_or_default() }
}

/// Asks for tasks; `token` is the `next` of the page before, empty for the first.
pub fn list_tasks(read: ReadOptions, token: &str, filter: &TaskFilter) -> pb::ListTasksRequest {
    pb::ListTasksRequest {
        read: Some(read_options(read)),
        page: Some(pb::Page { size: 0, token: token.into() }),
        framework_id: filter.framework.unwrap_or_default().0,
        agent_id: filter.agent.unwrap_or_default().0,
        states: filter.states.iter().map(|state| task_state(*state)).collect(),
        task_id: filter.task_id.as_ref().map(|id| id.as_str().to_owned()).unwrap_or_default(),
    }
}

fn admin_call(call: AdminId) -> pb::AdminCall {
    pb::AdminCall { request_id: sixteen(call.request.0), cluster_time_ms: call.time.0 }
}

/// Asks for the end of a task.
pub fn kill_task(
    call: AdminId,
    framework: FrameworkId,
    task: &TaskId,
    grace_ms: Option<u64>,
) -> pb::KillTaskRequest {
    pb::KillTaskRequest {
        call: Some(admin_call(call)),
        framework_id: framework.0,
        task_id: task.as_str().into(),
        grace_ms,
    }
}

/// Asks for the end of a framework.
pub fn teardown_framework(call: AdminId, framework: FrameworkId) -> pb::TeardownFrameworkRequest {
    pb::TeardownFrameworkRequest { call: Some(admin_call(call)), framework_id: framework.0 }
}

/// Asks for a task's output.
pub fn read_logs(framework: FrameworkId, task: &TaskId, range: LogRange) -> pb::ReadLogsRequest {
    pb::ReadLogsRequest {
        framework_id: framework.0,
        task_id: task.as_str().into(),
        stream: range.stream.name().into(),
        offset: range.offset,
        limit: range.limit,
        follow: range.follow,
    }
}

/// The state that an answer was read from.
pub fn admin_view(view: &ViewStamp) -> pb::View {
    pb::View { index: view.index, cluster_time_ms: view.time.0, cluster_id: view.cluster.to_string() }
}

/// A task.
pub fn task_row(task: &TaskRow) -> pb::Task {
    pb::Task {
        task_id: task.task_id.as_str().into(),
        framework_id: task.framework.0,
        agent_id: task.agent.0,
        name: task.name.clone(),
        role: task.role.as_str().into(),
        status: Some(status(&task.status)),
        resources: resources(&task.resources),
        created_ms: task.created_ms,
        started_ms: task.started_ms.unwrap_or(0),
        finished_ms: task.finished_ms.unwrap_or(0),
        launch_id: task.launch.0,
        argv: task.argv.clone(),
        user: task.user.clone(),
        hostname: task.hostname.clone(),
        retired: task.retired,
        group_first: task.group.map(|group| group.first.0).unwrap_or_default(),
        group_size: task.group.map(|group| group.size).unwrap_or_default(),
        executor_id: task.executor.clone(),
        terminal: task.terminal,
    }
}

/// An executor.
pub fn executor_row(executor: &ExecutorRow) -> pb::Executor {
    pb::Executor {
        executor_id: executor.executor.clone(),
        framework_id: executor.framework.0,
        agent_id: executor.agent.0,
        launch_id: executor.launch.0,
        role: executor.role.as_str().into(),
        status: Some(status(&executor.status)),
        resources: resources(&executor.resources),
        created_ms: executor.created_ms,
        started_ms: executor.started_ms.unwrap_or(0),
        finished_ms: executor.finished_ms.unwrap_or(0),
        argv: executor.argv.clone(),
        user: executor.user.clone(),
        hostname: executor.hostname.clone(),
        live_tasks: executor.live_tasks,
    }
}

/// An agent.
pub fn agent_row(agent: &AgentRow) -> pb::Agent {
    pb::Agent {
        agent_id: agent.id.0,
        hostname: agent.hostname.clone(),
        state: agent.state.clone(),
        connected: agent.connected,
        total: resources(&agent.total),
        used: resources(&agent.used),
        offered: resources(&agent.offered),
        attributes: attributes(&agent.attributes),
        isolation: agent.isolation.clone(),
        version: agent.version.clone(),
        registered_ms: agent.registered_ms,
        live_tasks: agent.live_tasks,
        features: agent.features.iter().cloned().collect(),
    }
}

/// A framework.
pub fn framework_row(framework: &FrameworkRow) -> pb::Framework {
    pb::Framework {
        framework_id: framework.id.0,
        info: Some(framework_info(&framework.info)),
        state: framework.state.clone(),
        principal: framework.principal.clone(),
        live_tasks: framework.live_tasks,
        used: resources(&framework.used),
        offered: resources(&framework.offered),
        registered_ms: framework.registered_ms,
        remaining_ms: framework.remaining_ms,
        completion_reason: framework.completion_reason.clone(),
    }
}

/// An outstanding offer.
pub fn offer_row(offer: &OfferRow) -> pb::Offer {
    pb::Offer {
        offer_id: offer.id.clone(),
        framework_id: offer.framework.0,
        agent_id: offer.agent.0,
        role: offer.role.as_str().into(),
        resources: resources(&offer.resources),
        age_ms: offer.age_ms,
    }
}

/// A master.
pub fn master_row(master: &MasterRow) -> pb::Master {
    pb::Master { id: master.id.0, addr: master.addr.clone(), role: master.role.clone(), index: master.index }
}

/// The cluster at a glance.
pub fn status_summary(view: &ViewStamp, summary: &StatusSummary) -> pb::GetStatusResponse {
    pb::GetStatusResponse {
        view: Some(admin_view(view)),
        leader: summary.leader.clone(),
        leader_id: summary.leader_id.0,
        term: summary.term,
        masters: summary.masters.iter().map(master_row).collect(),
        agents: Some(pb::get_status_response::AgentCounts {
            reachable: summary.agents_reachable,
            unreachable: summary.agents_unreachable,
        }),
        total: resources(&summary.total),
        used: resources(&summary.used),
        offered: resources(&summary.offered),
        free: resources(&summary.free),
        tasks: summary.tasks.clone(),
        frameworks: summary.frameworks.clone(),
    }
}
