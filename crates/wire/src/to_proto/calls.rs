//! What frameworks ask.

use proffer_types::call::AcceptCallPart;
use proffer_types::command::{Ack, CallId};
use proffer_types::{FrameworkId, FrameworkInfo, OfferId, RequestId, Role, SessionId, TaskId};

use super::{framework_info, offer_id, sixteen, task_launch, task_spec};
use crate::scheduler::v1 as pb;

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
    let launch = |launch: &proffer_types::call::LaunchCall| pb::Operation {
        operation: Some(pb::operation::Operation::Launch(pb::Launch {
            spec: Some(task_spec(&launch.spec)),
            tasks: launch.tasks.iter().flatten().map(task_launch).collect(),
        })),
    };
    let part = |part: &AcceptCallPart| pb::accept_request::Part {
        offer_ids: offer_ids(&part.offers),
        operations: part.launches.iter().map(launch).collect(),
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
