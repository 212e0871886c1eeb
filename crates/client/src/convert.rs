//! Between the protocol's values and the core's.

use proffer_types::call::AcceptCallPart;
use proffer_types::command::{self, CallId};
use proffer_types::event::StreamEnd;
use proffer_wire::told;

use crate::core::{
    Accepted, Failure, Header, Heard, Member, Offer, Operation, Part, Refused, RefusedKind, RefusedTask,
    SnapshotTask, TaskView, Update,
};
use crate::failure::COMPLETED;

/// What the core hears; `None` for what it need not.
pub(crate) fn heard(event: told::Event) -> Option<Heard> {
    Some(match event {
        told::Event::Subscribed(told) => Heard::Subscribed {
            framework: told.framework,
            session: told.session,
            heartbeat_ms: told.heartbeat_ms,
            cluster: told.cluster,
            epoch: told.epoch,
            last_seq: told.last_seq,
        },
        told::Event::Snapshot(tasks) => Heard::Snapshot(tasks.into_iter().map(snapshot_task).collect()),
        told::Event::SnapshotEnd { index } => Heard::SnapshotEnd { index },
        told::Event::Offers(offers) => Heard::Offers(offers.into_iter().map(offer).collect()),
        told::Event::Rescind(offers) => Heard::Rescind(offers),
        told::Event::Update(told) => {
            let update = match (told.launch, told.status) {
                (Some(launch), Some(status)) => {
                    Some(Update { launch, task: told.task_id.clone(), agent: told.agent, status })
                }
                _ => None,
            };
            match update {
                Some(update) if told.acknowledge => Heard::Update(update),
                update => Heard::Reconciled { task: told.task_id, update },
            }
        }
        told::Event::Failure { agent, removed } => Heard::AgentLost { agent, removed },
        told::Event::Error { end, code, message } => Heard::End(stream_end(end, code, message)),
        told::Event::Heartbeat { .. } => Heard::Heartbeat,
        told::Event::ExecutorEnded { agent, executor, status } => {
            Heard::ExecutorEnded { agent, executor, status }
        }
        told::Event::Message { agent, executor, data } => {
            Heard::Message { agent, executor, data: data.into() }
        }
        told::Event::Other => return None,
    })
}

fn stream_end(end: Option<StreamEnd>, code: String, message: String) -> Failure {
    match end {
        Some(StreamEnd::SessionFenced) => Failure::Fenced,
        Some(StreamEnd::FrameworkCompleted) => Failure::Completed(COMPLETED.into()),
        Some(StreamEnd::NotLeader) => Failure::NotLeader { leader: None },
        Some(StreamEnd::Resync) => Failure::Resync,
        Some(StreamEnd::Replaced | StreamEnd::Silent) => Failure::Transport(format!("{code}: {message}")),
        // A later version's way to end a stream: not ours to overrule.
        None => Failure::Refused(Refused { kind: RefusedKind::Precondition, reason: code, message }),
    }
}

fn snapshot_task(task: told::KnownTask) -> SnapshotTask {
    let view = TaskView {
        launch: task.launch,
        task: task.task_id,
        agent: task.agent,
        role: Some(task.role),
        resources: Some(task.resources),
        status: task.status,
    };
    SnapshotTask { view, unacknowledged: task.unacknowledged }
}

fn offer(offer: told::HostOffer) -> Offer {
    Offer {
        id: offer.id,
        agent: offer.agent,
        role: offer.role,
        resources: offer.resources,
        hostname: offer.hostname,
        attributes: offer.attributes,
    }
}

/// The protocol's header.
pub(crate) fn call_id(header: Header) -> CallId {
    let Header { framework, session, seq, done_below } = header;
    CallId { framework, session, seq, done_below, content: 0 }
}

/// The protocol's parts.
pub(crate) fn parts(parts: &[Part]) -> Vec<AcceptCallPart> {
    let member =
        |member: &Member| command::Member { spec: member.spec.clone(), task: Ok(member.task.clone()) };
    let operation = |operation: &Operation| match operation {
        Operation::Launch(launch) => command::Operation::Launch(command::Launch {
            spec: launch.spec.clone(),
            tasks: launch.tasks.iter().cloned().map(Ok).collect(),
        }),
        Operation::LaunchGroup(members) => {
            command::Operation::LaunchGroup(members.iter().map(member).collect())
        }
    };
    let part = |part: &Part| AcceptCallPart {
        offers: part.offers.clone(),
        operations: part.operations.iter().map(operation).collect(),
    };
    parts.iter().map(part).collect()
}

/// What became of an Accept.
pub(crate) fn accepted(told: told::Accepted) -> Accepted {
    let task = |outcome: Result<_, told::TaskRefused>| {
        outcome.map_err(|refused| RefusedTask { reason: refused.code, message: refused.message })
    };
    let launch = |launch: Vec<_>| launch.into_iter().map(task).collect();
    let part = |part: Vec<_>| part.into_iter().map(launch).collect();
    Accepted { index: told.index, parts: told.parts.into_iter().map(part).collect() }
}
