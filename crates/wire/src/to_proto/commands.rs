//! Entries of the replicated log. The rules of their encoding are in `log.proto`.

use proffer_types::command::{
    AcceptPart, AdminId, Attach, Command, CompletionReason, Entry, Held, Operation, Refusal,
};
use proffer_types::{TaskLaunch, TaskSpec};
use prost::Message;

use super::records::{
    agent_info, call_id, caller, framework_info, launch_status, resources, sixteen, spec_is_newer,
    status_is_newer, task_spec,
};
use crate::log::v1 as pb;
use pb::entry::Body;

const ATTACH_AGENT: u32 = 19;
const ACCEPT: u32 = 25;
const STATUSES: u32 = 32;

/// The canonical encoding of an entry.
pub fn entry(entry: &Entry) -> Vec<u8> {
    let body = body(&entry.command);
    pb::Entry {
        kind: kind(&body),
        version: version(&entry.command),
        term: entry.term,
        time_ms: entry.time.0,
        wall_ms: entry.wall_ms,
        caller: Some(caller(&entry.caller)),
        body: Some(body),
    }
    .encode_to_vec()
}

/// The kind of a body: its field number.
pub(crate) fn kind(body: &Body) -> u32 {
    match body {
        Body::Form(_) => 16,
        Body::Tick(_) => 17,
        Body::RegisterAgent(_) => 18,
        Body::AttachAgent(_) => ATTACH_AGENT,
        Body::MarkUnreachable(_) => 20,
        Body::RemoveAgent(_) => 21,
        Body::OpenSession(_) => 22,
        Body::Reconnect(_) => 23,
        Body::Disconnect(_) => 24,
        Body::Accept(_) => ACCEPT,
        Body::Kill(_) => 26,
        Body::Acknowledge(_) => 27,
        Body::Teardown(_) => 28,
        Body::AdminKill(_) => 29,
        Body::AdminTeardown(_) => 30,
        Body::Complete(_) => 31,
        Body::Statuses(_) => STATUSES,
        Body::UpdateFramework(_) => 33,
        Body::ShutdownExecutor(_) => 34,
    }
}

/// The last version of each kind; `None` for a kind that does not exist.
pub(crate) fn known_version(kind: u32) -> Option<u32> {
    match kind {
        ATTACH_AGENT | ACCEPT | STATUSES => Some(2),
        16..=34 => Some(1),
        _ => None,
    }
}

/// The version that a command's entry needs: the lowest that has all it uses. Masters of several versions live side by
/// side during an upgrade, and an older one goes on as long as nobody uses what it does not know.
pub(crate) fn version(command: &Command) -> u32 {
    let newer = match command {
        Command::Accept { parts, .. } => {
            let mut operations = parts.iter().flat_map(|part| &part.operations);
            operations.any(|operation| match operation {
                Operation::Launch(launch) => spec_is_newer(&launch.spec),
                Operation::LaunchGroup(_) => true,
            })
        }
        Command::Statuses { statuses, .. } => statuses.iter().any(|(_, status)| status_is_newer(status)),
        Command::AttachAgent(attach) => {
            attach.held.iter().flatten().any(|held| status_is_newer(&held.status))
        }
        _ => false,
    };
    if newer { 2 } else { 1 }
}

fn body(command: &Command) -> Body {
    match command {
        Command::Form { cluster, masters } => Body::Form(pb::Form {
            cluster: super::cluster_id(*cluster),
            masters: masters
                .iter()
                .map(|(id, address)| pb::Master { id: id.0, address: address.clone() })
                .collect(),
        }),
        Command::Tick => Body::Tick(pb::Tick {}),
        Command::RegisterAgent { instance, info, boot_id } => Body::RegisterAgent(pb::RegisterAgent {
            instance: sixteen(instance.0),
            info: Some(agent_info(info)),
            boot_id: sixteen(boot_id.0),
        }),
        Command::AttachAgent(given) => Body::AttachAgent(attach(given)),
        Command::MarkUnreachable { agent, attachment } => {
            Body::MarkUnreachable(pb::MarkUnreachable { agent: agent.0, attachment: *attachment })
        }
        Command::RemoveAgent { agent } => Body::RemoveAgent(pb::RemoveAgent { agent: agent.0 }),
        Command::OpenSession { framework, origin, info } => Body::OpenSession(pb::OpenSession {
            framework: framework.map(|id| id.0),
            origin: sixteen(origin.0),
            info: Some(framework_info(info)),
        }),
        Command::Reconnect { framework, session } => {
            Body::Reconnect(pb::Reconnect { framework: framework.0, session: session.0 })
        }
        Command::Disconnect { framework, session } => {
            Body::Disconnect(pb::Disconnect { framework: framework.0, session: session.0 })
        }
        Command::Accept { call, atomic, parts } => Body::Accept(pb::Accept {
            call: Some(call_id(call)),
            atomic: *atomic,
            parts: parts.iter().map(part).collect(),
        }),
        Command::Kill { call, task, grace_ms } => Body::Kill(pb::Kill {
            call: Some(call_id(call)),
            task: task.as_str().into(),
            grace_ms: *grace_ms,
        }),
        Command::Acknowledge { call, acks } => {
            let ack = |ack: &proffer_types::command::Ack| pb::acknowledge::Ack {
                launch: ack.launch.0,
                master_seq: ack.master_seq,
                task_seq: ack.task_seq,
            };
            Body::Acknowledge(pb::Acknowledge {
                call: Some(call_id(call)),
                acks: acks.iter().map(ack).collect(),
            })
        }
        Command::Teardown { call } => Body::Teardown(pb::Teardown { call: Some(call_id(call)) }),
        Command::AdminKill { call, framework, task, grace_ms } => Body::AdminKill(pb::AdminKill {
            call: Some(admin_id(call)),
            framework: framework.0,
            task: task.as_str().into(),
            grace_ms: *grace_ms,
        }),
        Command::AdminTeardown { call, framework } => {
            Body::AdminTeardown(pb::AdminTeardown { call: Some(admin_id(call)), framework: framework.0 })
        }
        Command::Complete { framework, session, reason } => Body::Complete(pb::Complete {
            framework: framework.0,
            session: session.0,
            reason: completion(*reason),
        }),
        Command::UpdateFramework { call, info } => Body::UpdateFramework(pb::UpdateFramework {
            call: Some(call_id(call)),
            info: Some(framework_info(info)),
        }),
        Command::ShutdownExecutor { call, agent, executor } => Body::ShutdownExecutor(pb::ShutdownExecutor {
            call: Some(call_id(call)),
            agent: agent.0,
            executor: executor.as_str().into(),
        }),
        Command::Statuses { agent, attachment, statuses } => Body::Statuses(pb::Statuses {
            agent: agent.0,
            attachment: *attachment,
            statuses: statuses.iter().map(|(launch, status)| launch_status(*launch, status)).collect(),
        }),
    }
}

fn admin_id(call: &AdminId) -> pb::AdminId {
    pb::AdminId { request: sixteen(call.request.0), time_ms: call.time.0 }
}

fn completion(reason: CompletionReason) -> u32 {
    match reason {
        CompletionReason::Teardown => 1,
        CompletionReason::TeardownByOperator => 2,
        CompletionReason::FailoverTimeout => 3,
        CompletionReason::EndsWithTasks => 4,
    }
}

fn attach(attach: &Attach) -> pb::AttachAgent {
    let held = |held: &Vec<Held>| pb::attach_agent::Held {
        launches: held.iter().map(|held| launch_status(held.launch, &held.status)).collect(),
    };
    pb::AttachAgent {
        agent: attach.agent.0,
        instance: sixteen(attach.instance.0),
        info: Some(agent_info(&attach.info)),
        boot_id: sixteen(attach.boot_id.0),
        last_seq: attach.last_seq,
        digest: attach.digest,
        held: attach.held.as_ref().map(held),
    }
}

fn part(part: &AcceptPart) -> pb::accept::Part {
    pb::accept::Part {
        agent: part.agent.0,
        role: part.role.as_str().into(),
        offered: Some(resources(&part.offered)),
        launches: part.operations.iter().flat_map(launches).collect(),
    }
}

/// A group's members become a launch each.
fn launches(operation: &Operation) -> Vec<pb::accept::Launch> {
    let one = |spec: &TaskSpec, tasks, group_size| pb::accept::Launch {
        spec: Some(task_spec(spec)),
        tasks,
        group_size,
    };
    match operation {
        Operation::Launch(launch) => {
            vec![one(&launch.spec, launch.tasks.iter().map(task).collect(), 0)]
        }
        Operation::LaunchGroup(members) => {
            let sizes = std::iter::once(members.len() as u32).chain(std::iter::repeat(0));
            let members = members.iter().zip(sizes);
            members.map(|(m, size)| one(&m.spec, vec![task(&m.task)], size)).collect()
        }
    }
}

fn task(task: &Result<TaskLaunch, Refusal>) -> pb::LaunchTask {
    match task {
        Ok(task) => pb::LaunchTask {
            refused: 0,
            task_id: task.task_id.as_str().into(),
            name: task.name.clone(),
            env: task.env.clone(),
            array_index: task.array.map(|(index, _)| index),
            array_count: task.array.map_or(0, |(_, count)| count),
        },
        Err(refusal) => pb::LaunchTask { refused: refusal.number().into(), ..Default::default() },
    }
}
