//! What frameworks are told.

use proffer_types::event::{StreamEnd, Update};
use proffer_types::{AgentId, FrameworkId, LaunchId, SessionId};

use super::offers::{host_offer, offer_id};
use super::resources::{Attributions, resources};
use super::tasks::{executor_id, status, status_or_unknown, task_id};
use super::{cluster_id, epoch, id, role};
use crate::malformed::{Malformed, Path, Problems, parse};
use crate::scheduler::v1 as pb;
use crate::told::{Accepted, EXECUTOR_ENDED, Event, KnownTask, Subscribed, TaskRefused};

/// A list of events.
pub fn events(list: pb::Events) -> Result<Vec<Event>, Malformed> {
    parse(|problems| {
        let mut events = Vec::with_capacity(list.events.len());
        for (i, given) in list.events.into_iter().enumerate() {
            events.push(event(given, &Path::Root.item("events", i), problems)?);
        }
        Some(events)
    })
}

fn event(given: pb::Event, at: &Path<'_>, problems: &mut Problems) -> Option<Event> {
    use pb::event::Event as Given;
    Some(match given.event {
        None => Event::Other,
        Some(Given::Subscribed(given)) => {
            Event::Subscribed(subscribed(given, &at.field("subscribed"), problems)?)
        }
        Some(Given::Snapshot(given)) => {
            let at = at.field("snapshot");
            let tasks = given.tasks.into_iter().enumerate();
            Event::Snapshot(
                tasks.map(|(i, t)| known_task(t, &at.item("tasks", i), problems)).collect::<Option<_>>()?,
            )
        }
        Some(Given::SnapshotEnd(given)) => Event::SnapshotEnd { index: given.index },
        Some(Given::Offers(given)) => {
            let at = at.field("offers");
            let offers = given.offers.into_iter().enumerate();
            Event::Offers(
                offers.map(|(i, o)| host_offer(o, &at.item("offers", i), problems)).collect::<Option<_>>()?,
            )
        }
        Some(Given::Rescind(given)) => {
            let at = at.field("rescind");
            let ids = given.offer_ids.into_iter().enumerate();
            Event::Rescind(
                ids.map(|(i, o)| offer_id(Some(o), at.item("offer_ids", i), problems))
                    .collect::<Option<_>>()?,
            )
        }
        Some(Given::Update(given)) => Event::Update(update(given, &at.field("update"), problems)?),
        Some(Given::Failure(given)) => failure(given, &at.field("failure"), problems)?,
        Some(Given::Message(given)) => {
            let at = at.field("message");
            Event::Message {
                agent: AgentId(id(given.agent_id, at.field("agent_id"), problems)?),
                executor: executor_id(&given.executor_id, at.field("executor_id"), problems)?,
                data: given.data,
            }
        }
        Some(Given::Error(given)) => {
            let all = [
                StreamEnd::SessionFenced,
                StreamEnd::Replaced,
                StreamEnd::FrameworkCompleted,
                StreamEnd::NotLeader,
                StreamEnd::Resync,
                StreamEnd::Silent,
            ];
            let end = all.into_iter().find(|end| end.code() == given.code);
            Event::Error { end, code: given.code, message: given.message }
        }
        Some(Given::Heartbeat(given)) => Event::Heartbeat { index: given.index },
    })
}

fn failure(given: pb::Failure, at: &Path<'_>, problems: &mut Problems) -> Option<Event> {
    let agent = AgentId(id(given.agent_id, at.field("agent_id"), problems)?);
    Some(match given.what.as_str() {
        "unreachable" => Event::Failure { agent, removed: false },
        "removed" => Event::Failure { agent, removed: true },
        EXECUTOR_ENDED => Event::ExecutorEnded {
            agent,
            executor: executor_id(&given.executor_id, at.field("executor_id"), problems)?,
            status: Box::new(status(given.executor_status, &at.field("executor_status"), problems)?),
        },
        // The word of a later version.
        _ => Event::Other,
    })
}

fn subscribed(given: pb::Subscribed, at: &Path<'_>, problems: &mut Problems) -> Option<Subscribed> {
    Some(Subscribed {
        framework: FrameworkId(id(given.framework_id, at.field("framework_id"), problems)?),
        session: SessionId(id(given.session, at.field("session"), problems)?),
        heartbeat_ms: id(given.heartbeat_ms, at.field("heartbeat_ms"), problems)?,
        cluster: cluster_id(&given.cluster_id, at.field("cluster_id"), problems)?,
        epoch: epoch(given.epoch, at.field("epoch"), problems)?,
        last_seq: given.last_seq,
    })
}

fn known_task(given: pb::Task, at: &Path<'_>, problems: &mut Problems) -> Option<KnownTask> {
    Some(KnownTask {
        launch: LaunchId(id(given.launch_id, at.field("launch_id"), problems)?),
        task_id: task_id(&given.task_id, at.field("task_id"), problems)?,
        agent: AgentId(given.agent_id),
        role: role(&given.role, at.field("role"), problems)?,
        resources: resources(given.resources, at, "resources", Attributions::Allowed, problems)?,
        status: status(given.status, &at.field("status"), problems)?,
        unacknowledged: given.unacknowledged,
    })
}

fn update(given: pb::Update, at: &Path<'_>, problems: &mut Problems) -> Option<Update> {
    Some(Update {
        launch: (given.launch_id > 0).then_some(LaunchId(given.launch_id)),
        task_id: task_id(&given.task_id, at.field("task_id"), problems)?,
        agent: AgentId(given.agent_id),
        status: status_or_unknown(given.status, &at.field("status"), problems)?,
        acknowledge: !given.no_acknowledgement,
    })
}

/// What became of an Accept.
pub fn accept_response(response: pb::AcceptResponse) -> Accepted {
    let task = |task: pb::TaskOutcome| match task.refused.as_str() {
        "" => Ok(LaunchId(task.launch_id)),
        _ => Err(TaskRefused { code: task.refused, message: task.message }),
    };
    let operation = |operation: pb::OperationOutcome| operation.tasks.into_iter().map(task).collect();
    let part = |part: pb::PartOutcome| part.operations.into_iter().map(operation).collect();
    Accepted { index: response.index, parts: response.parts.into_iter().map(part).collect() }
}
