//! What frameworks are told. Whoever serves a stream adds what only it knows: the cluster, the leadership, an agent's
//! host.

use proffer_types::call::AcceptCallPart;
use proffer_types::command::{Answer, Operation};
use proffer_types::event::{StreamEnd, Update};
use proffer_types::{AgentId, AgentInfo, ExecutorId, LaunchId, Offer, OfferId, Status, Task};

use super::agents::attributes;
use super::{epoch, offer_id, resources, status, unknown_status};
use crate::scheduler::v1 as pb;
use crate::told::{EXECUTOR_ENDED, Subscribed, refusal_code};
use pb::event::Event;

/// A task of a snapshot.
pub type SnapshotTask = pb::Task;

fn event(event: Event) -> pb::Event {
    pb::Event { event: Some(event) }
}

/// The first event.
pub fn subscribed(subscribed: &Subscribed) -> pb::Event {
    event(Event::Subscribed(pb::Subscribed {
        framework_id: subscribed.framework.0,
        session: subscribed.session.0,
        heartbeat_ms: subscribed.heartbeat_ms,
        cluster_id: subscribed.cluster.to_string(),
        epoch: Some(epoch(subscribed.epoch)),
        last_seq: subscribed.last_seq,
    }))
}

/// A task as the framework's snapshot tells it.
pub fn snapshot_task(task: &Task) -> SnapshotTask {
    pb::Task {
        launch_id: task.launch_id.0,
        task_id: task.task_id.as_str().into(),
        agent_id: task.agent.0,
        role: task.role.as_str().into(),
        resources: resources(&task.resources),
        status: Some(status(&task.status)),
        unacknowledged: !task.pending.is_empty(),
    }
}

/// Some of the tasks of a snapshot.
pub fn snapshot(tasks: Vec<SnapshotTask>) -> pb::Event {
    event(Event::Snapshot(pb::Snapshot { tasks }))
}

/// The snapshot is complete.
pub fn snapshot_end(index: u64) -> pb::Event {
    event(Event::SnapshotEnd(pb::SnapshotEnd { index }))
}

/// New offers, each with what its agent says of itself.
pub fn offers<'a>(offers: impl IntoIterator<Item = (&'a Offer, &'a AgentInfo)>) -> pb::Event {
    let offer = |(offer, info): (&Offer, &AgentInfo)| pb::Offer {
        id: Some(offer_id(offer.id)),
        agent_id: offer.agent.0,
        role: offer.role.as_str().into(),
        resources: resources(&offer.resources),
        hostname: info.hostname.clone(),
        attributes: attributes(&info.attributes),
    };
    event(Event::Offers(pb::Offers { offers: offers.into_iter().map(offer).collect() }))
}

/// Offers that are no more.
pub fn rescind(offers: &[OfferId]) -> pb::Event {
    event(Event::Rescind(pb::Rescind { offer_ids: offers.iter().map(|offer| offer_id(*offer)).collect() }))
}

/// A task's status.
pub fn update(update: &Update) -> pb::Event {
    event(Event::Update(pb::Update {
        launch_id: update.launch.unwrap_or_default().0,
        task_id: update.task_id.as_str().into(),
        agent_id: update.agent.0,
        status: Some(update.status.as_ref().map_or_else(unknown_status, status)),
        no_acknowledgement: !update.acknowledge,
    }))
}

/// An agent is out of contact, or gone for good.
pub fn failure(agent: AgentId, removed: bool) -> pb::Event {
    let what = if removed { "removed" } else { "unreachable" };
    event(Event::Failure(pb::Failure { agent_id: agent.0, what: what.into(), ..Default::default() }))
}

/// An executor has ended.
pub fn executor_ended(agent: AgentId, executor: &ExecutorId, ended: &Status) -> pb::Event {
    event(Event::Failure(pb::Failure {
        agent_id: agent.0,
        what: EXECUTOR_ENDED.into(),
        executor_id: executor.as_str().into(),
        executor_status: Some(status(ended)),
    }))
}

/// Bytes from an executor.
pub fn message(agent: AgentId, executor: &ExecutorId, data: Vec<u8>) -> pb::Event {
    event(Event::Message(pb::Message {
        executor_id: executor.as_str().into(),
        agent_id: agent.0,
        data: data.into(),
    }))
}

/// The subscription ends.
pub fn error(end: StreamEnd) -> pb::Event {
    let message = match end {
        StreamEnd::SessionFenced => "a later session of this framework exists",
        StreamEnd::Replaced => "this session was resumed on another connection",
        StreamEnd::FrameworkCompleted => "the framework is completed",
        StreamEnd::NotLeader => "this master does not lead any more",
        StreamEnd::Resync => "the reader was too slow: subscribe again",
        StreamEnd::Silent => "nothing was heard for too long",
    };
    event(Event::Error(pb::Error { code: end.code().into(), message: message.into() }))
}

/// Nothing happened for a while.
pub fn heartbeat(index: u64) -> pb::Event {
    event(Event::Heartbeat(pb::Heartbeat { index }))
}

/// How many tasks each operation of each part has: an [`Answer`] tells its outcomes in this order, without gaps.
pub fn shape(parts: &[AcceptCallPart]) -> Vec<Vec<usize>> {
    let tasks = |operation: &Operation| operation.tasks().count();
    parts.iter().map(|part| part.operations.iter().map(tasks).collect()).collect()
}

/// What became of an Accept of this [`shape`].
pub fn accept_response(answer: &Answer, shape: &[Vec<usize>]) -> pb::AcceptResponse {
    let mut next = answer.first_launch;
    let mut outcomes = answer.outcomes.iter().map(|outcome| match outcome {
        None => {
            let launch_id = next.0;
            next = LaunchId(launch_id + 1);
            pb::TaskOutcome { launch_id, ..Default::default() }
        }
        Some(refusal) => pb::TaskOutcome {
            launch_id: 0,
            refused: refusal_code(*refusal).into(),
            message: refusal.text().into(),
        },
    });
    let mut parts = Vec::with_capacity(shape.len());
    for counts in shape {
        let mut operations = Vec::with_capacity(counts.len());
        for tasks in counts {
            operations.push(pb::OperationOutcome { tasks: outcomes.by_ref().take(*tasks).collect() });
        }
        parts.push(pb::PartOutcome { operations });
    }
    pb::AcceptResponse { index: answer.index, parts }
}
