//! What frameworks ask.

use bytes::Bytes;
use proffer_types::call::AcceptCallPart;
use proffer_types::command::{Ack, CallId, Operation};
use proffer_types::{
    AgentId, ExecutorId, FrameworkId, FrameworkInfo, OfferId, RequestId, Role, SessionId, TaskId,
};

use super::{framework_info, offer_id, sixteen, task_launch, task_spec};
use crate::scheduler::v1 as pb;
use pb::operation::Operation as Given;

/// What every call carries.
pub fn call_header(call: &CallId) -> pb::CallHeader {
    pb::CallHeader {
        framework_id: call.framework.0,
        session: call.session.0,
        seq: call.seq,
        done_below: call.done_below,
    }
}

fn header(call: &CallId) -> Option<pb::CallHeader> {
    Some(call_header(call))
}

/// Asks for the event stream.
pub fn subscribe(
    info: &FrameworkInfo,
    framework: Option<FrameworkId>,
    session: Option<SessionId>,
    origin: RequestId,
    suppressed: &[Role],
) -> pb::SubscribeRequest {
    pb::SubscribeRequest {
        info: Some(framework_info(info)),
        framework_id: framework.map(|id| id.0),
        session: session.map(|id| id.0),
        origin: sixteen(origin.0),
        suppressed_roles: texts(suppressed),
    }
}

/// Uses offers. A task that is refused already is left out: the caller knows of it.
pub fn accept(
    call: &CallId,
    atomic: bool,
    parts: &[AcceptCallPart],
    filter_ms: Option<u64>,
) -> pb::AcceptRequest {
    let operation = |operation: &Operation| pb::Operation {
        operation: Some(match operation {
            Operation::Launch(launch) => Given::Launch(pb::Launch {
                spec: Some(task_spec(&launch.spec)),
                tasks: launch.tasks.iter().flatten().map(task_launch).collect(),
            }),
            Operation::LaunchGroup(members) => Given::LaunchGroup(pb::LaunchGroup {
                members: members
                    .iter()
                    .map(|member| pb::launch_group::Member {
                        spec: Some(task_spec(&member.spec)),
                        task: member.task.as_ref().ok().map(task_launch),
                    })
                    .collect(),
            }),
        }),
    };
    let part = |part: &AcceptCallPart| pb::accept_request::Part {
        offer_ids: offer_ids(&part.offers),
        operations: part.operations.iter().map(operation).collect(),
    };
    pb::AcceptRequest { call: header(call), parts: parts.iter().map(part).collect(), atomic, filter_ms }
}

/// Gives offers back.
pub fn decline(call: &CallId, offers: &[OfferId], filter_ms: Option<u64>) -> pb::DeclineRequest {
    pb::DeclineRequest { call: header(call), offer_ids: offer_ids(offers), filter_ms }
}

/// Asks for no offers.
pub fn suppress(call: &CallId, roles: &[Role]) -> pb::SuppressRequest {
    pb::SuppressRequest { call: header(call), roles: texts(roles) }
}

/// Asks for offers again.
pub fn revive(call: &CallId, roles: &[Role]) -> pb::ReviveRequest {
    pb::ReviveRequest { call: header(call), roles: texts(roles) }
}

/// Asks for the end of a task.
pub fn kill(call: &CallId, task: &TaskId, grace_ms: Option<u64>) -> pb::KillRequest {
    pb::KillRequest { call: header(call), task_id: task.as_str().into(), grace_ms }
}

/// Asks for the end of an executor.
pub fn shutdown_executor(
    call: &CallId,
    agent: AgentId,
    executor: &ExecutorId,
) -> pb::ShutdownExecutorRequest {
    pb::ShutdownExecutorRequest {
        call: header(call),
        agent_id: agent.0,
        executor_id: executor.as_str().into(),
    }
}

/// Sends bytes to an executor.
pub fn send_message(
    call: &CallId,
    agent: AgentId,
    executor: &ExecutorId,
    data: Bytes,
) -> pb::SendMessageRequest {
    pb::SendMessageRequest {
        call: header(call),
        agent_id: agent.0,
        executor_id: executor.as_str().into(),
        data,
    }
}

/// Says something else of the framework.
pub fn update_framework(call: &CallId, info: &FrameworkInfo) -> pb::UpdateFrameworkRequest {
    pb::UpdateFrameworkRequest { call: header(call), info: Some(framework_info(info)) }
}

/// Says which statuses were seen.
pub fn acknowledge(call: &CallId, acks: &[Ack]) -> pb::AcknowledgeRequest {
    let ack = |ack: &Ack| pb::acknowledge_request::Ack {
        launch_id: ack.launch.0,
        master_seq: ack.master_seq,
        task_seq: ack.task_seq,
    };
    pb::AcknowledgeRequest { call: header(call), acks: acks.iter().map(ack).collect() }
}

/// Asks for statuses.
pub fn reconcile(call: &CallId, tasks: &[TaskId]) -> pb::ReconcileRequest {
    pb::ReconcileRequest {
        call: header(call),
        task_ids: tasks.iter().map(|task| task.as_str().into()).collect(),
    }
}

/// Ends the framework.
pub fn teardown(call: &CallId) -> pb::TeardownRequest {
    pb::TeardownRequest { call: header(call) }
}

fn offer_ids(offers: &[OfferId]) -> Vec<pb::OfferId> {
    offers.iter().map(|offer| offer_id(*offer)).collect()
}

fn texts(roles: &[Role]) -> Vec<String> {
    roles.iter().map(|role| role.as_str().into()).collect()
}
