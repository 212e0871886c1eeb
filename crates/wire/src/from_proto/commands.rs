//! Entries of the replicated log.

use std::sync::Arc;

use proffer_types::command::{
    AcceptPart, Ack, Attach, Command, CompletionReason, Entry, Held, Launch, Member, Operation, Refusal,
};
use proffer_types::limits::GROUP_TASKS_MAX;
use proffer_types::{AgentId, ClusterTime, FrameworkId, LaunchId, SessionId, TaskLaunch, TaskSpec};
use prost::Message;

use super::records::{
    admin_id, agent_info, boot, call_id, caller, cluster, each, framework_info, launch_status, masters,
    request, resources, task_spec, there,
};
use super::role;
use super::tasks::{executor_id, task_id};
use crate::log::v1 as pb;
use crate::malformed::{Path, Problems, parse};
use crate::record::{RecordError, check};
use crate::to_proto::commands::{kind, known_version, version};
use pb::entry::Body;

const WHAT: &str = "log entry";
const ROOT: Path<'static> = Path::Root;

/// Reads an entry.
///
/// # Errors
/// Bytes that are no entry, a kind or version that is not known, anything in it that is not understood.
pub fn entry(bytes: &[u8]) -> Result<Entry, RecordError> {
    let given = pb::Entry::decode(bytes).map_err(|error| RecordError::Garbled { what: WHAT, error })?;
    let body = given.body.as_ref().map(kind);
    let named = (given.kind, given.version);
    check(WHAT, named, known_version(given.kind), body, bytes.len(), given.encoded_len())?;
    parse(|problems| {
        let caller = caller(given.caller, ROOT.field("caller"), problems)?;
        let body = there(given.body, ROOT.field("body"), problems)?;
        let command = command(body, problems)?;
        if version(&command) > named.1 {
            return problems.invalid(ROOT.field("version"), "has less than the record uses");
        }
        Some(Entry {
            term: given.term,
            time: ClusterTime(given.time_ms),
            wall_ms: given.wall_ms,
            caller,
            command,
        })
    })
    .map_err(|error| RecordError::Invalid { what: WHAT, kind: named.0, error })
}

fn command(body: Body, problems: &mut Problems) -> Option<Command> {
    Some(match body {
        Body::Form(given) => Command::Form {
            cluster: cluster(&given.cluster, ROOT.field("cluster"), problems)?,
            masters: masters(given.masters),
        },
        Body::Tick(pb::Tick {}) => Command::Tick,
        Body::RegisterAgent(given) => Command::RegisterAgent {
            instance: request(&given.instance, ROOT.field("instance"), problems)?,
            info: agent_info(given.info, ROOT.field("info"), problems)?,
            boot_id: boot(&given.boot_id, ROOT.field("boot_id"), problems)?,
        },
        Body::AttachAgent(given) => Command::AttachAgent(attach(given, problems)?),
        Body::MarkUnreachable(given) => {
            Command::MarkUnreachable { agent: AgentId(given.agent), attachment: given.attachment }
        }
        Body::RemoveAgent(given) => Command::RemoveAgent { agent: AgentId(given.agent) },
        Body::OpenSession(given) => Command::OpenSession {
            framework: given.framework.map(FrameworkId),
            origin: request(&given.origin, ROOT.field("origin"), problems)?,
            info: framework_info(given.info, ROOT.field("info"), problems)?,
        },
        Body::Reconnect(given) => {
            Command::Reconnect { framework: FrameworkId(given.framework), session: SessionId(given.session) }
        }
        Body::Disconnect(given) => {
            Command::Disconnect { framework: FrameworkId(given.framework), session: SessionId(given.session) }
        }
        Body::Accept(given) => Command::Accept {
            call: call_id(given.call, ROOT.field("call"), problems)?,
            atomic: given.atomic,
            parts: each(given.parts, &ROOT, "parts", problems, part)?,
        },
        Body::Kill(given) => Command::Kill {
            call: call_id(given.call, ROOT.field("call"), problems)?,
            task: task_id(&given.task, ROOT.field("task"), problems)?,
            grace_ms: given.grace_ms,
        },
        Body::Acknowledge(given) => {
            let ack = |ack: pb::acknowledge::Ack| Ack {
                launch: LaunchId(ack.launch),
                master_seq: ack.master_seq,
                task_seq: ack.task_seq,
            };
            let call = call_id(given.call, ROOT.field("call"), problems)?;
            Command::Acknowledge { call, acks: given.acks.into_iter().map(ack).collect() }
        }
        Body::Teardown(given) => {
            Command::Teardown { call: call_id(given.call, ROOT.field("call"), problems)? }
        }
        Body::AdminKill(given) => Command::AdminKill {
            call: admin_id(given.call, ROOT.field("call"), problems)?,
            framework: FrameworkId(given.framework),
            task: task_id(&given.task, ROOT.field("task"), problems)?,
            grace_ms: given.grace_ms,
        },
        Body::AdminTeardown(given) => Command::AdminTeardown {
            call: admin_id(given.call, ROOT.field("call"), problems)?,
            framework: FrameworkId(given.framework),
        },
        Body::Complete(given) => Command::Complete {
            framework: FrameworkId(given.framework),
            session: SessionId(given.session),
            reason: completion(given.reason, problems)?,
        },
        Body::UpdateFramework(given) => Command::UpdateFramework {
            call: call_id(given.call, ROOT.field("call"), problems)?,
            info: framework_info(given.info, ROOT.field("info"), problems)?,
        },
        Body::ShutdownExecutor(given) => Command::ShutdownExecutor {
            call: call_id(given.call, ROOT.field("call"), problems)?,
            agent: AgentId(given.agent),
            executor: executor_id(&given.executor, ROOT.field("executor"), problems)?,
        },
        Body::Statuses(given) => Command::Statuses {
            agent: AgentId(given.agent),
            attachment: given.attachment,
            statuses: each(given.statuses, &ROOT, "statuses", problems, launch_status)?,
        },
    })
}

fn completion(number: u32, problems: &mut Problems) -> Option<CompletionReason> {
    match number {
        1 => Some(CompletionReason::Teardown),
        2 => Some(CompletionReason::TeardownByOperator),
        3 => Some(CompletionReason::FailoverTimeout),
        4 => Some(CompletionReason::EndsWithTasks),
        _ => problems.invalid(ROOT.field("reason"), format_args!("{number} is not known to this version")),
    }
}

fn attach(given: pb::AttachAgent, problems: &mut Problems) -> Option<Attach> {
    let held = match given.held {
        None => None,
        Some(held) => {
            Some(each(held.launches, &ROOT.field("held"), "launches", problems, |given, at, problems| {
                launch_status(given, at, problems).map(|(launch, status)| Held { launch, status })
            })?)
        }
    };
    Some(Attach {
        agent: AgentId(given.agent),
        instance: request(&given.instance, ROOT.field("instance"), problems)?,
        info: agent_info(given.info, ROOT.field("info"), problems)?,
        boot_id: boot(&given.boot_id, ROOT.field("boot_id"), problems)?,
        last_seq: given.last_seq,
        digest: given.digest,
        held,
    })
}

fn part(given: pb::accept::Part, at: &Path<'_>, problems: &mut Problems) -> Option<AcceptPart> {
    Some(AcceptPart {
        agent: AgentId(given.agent),
        role: role(&given.role, at.field("role"), problems)?,
        offered: resources(given.offered, at.field("offered"), problems)?,
        operations: operations(given.launches, at, problems)?,
    })
}

fn operations(
    given: Vec<pb::accept::Launch>,
    at: &Path<'_>,
    problems: &mut Problems,
) -> Option<Vec<Operation>> {
    let mut operations = Vec::with_capacity(given.len());
    let mut given = given.into_iter().enumerate();
    while let Some((i, first)) = given.next() {
        let at_first = at.item("launches", i);
        let size = first.group_size as usize;
        let (spec, tasks) = launch(first, &at_first, problems)?;
        if size == 0 {
            operations.push(Operation::Launch(Launch { spec, tasks }));
            continue;
        }
        let mut launches = vec![(spec, tasks)];
        for (i, next) in given.by_ref().take(size - 1) {
            let at = at.item("launches", i);
            if next.group_size > 0 {
                return problems.invalid(at.field("group_size"), "a group begins inside another");
            }
            launches.push(launch(next, &at, problems)?);
        }
        let mut members = Vec::with_capacity(size.min(GROUP_TASKS_MAX));
        for (spec, tasks) in launches {
            let Ok([task]) = <[_; 1]>::try_from(tasks) else {
                return problems.invalid(at_first.field("group_size"), "a member of a group is not one task");
            };
            members.push(Member { spec, task });
        }
        if members.len() != size {
            return problems.invalid(at_first.field("group_size"), "there are fewer launches");
        }
        operations.push(Operation::LaunchGroup(members));
    }
    Some(operations)
}

type Tasks = Vec<Result<TaskLaunch, Refusal>>;

fn launch(
    given: pb::accept::Launch,
    at: &Path<'_>,
    problems: &mut Problems,
) -> Option<(Arc<TaskSpec>, Tasks)> {
    Some((
        task_spec(given.spec, at.field("spec"), problems)?,
        each(given.tasks, at, "tasks", problems, task)?,
    ))
}

fn task(
    given: pb::LaunchTask,
    at: &Path<'_>,
    problems: &mut Problems,
) -> Option<Result<TaskLaunch, Refusal>> {
    if given.refused > 0 {
        return refusal(given.refused, at.field("refused"), problems).map(Err);
    }
    Some(Ok(TaskLaunch {
        task_id: task_id(&given.task_id, at.field("task_id"), problems)?,
        name: given.name,
        env: given.env,
        array: given.array_index.map(|index| (index, given.array_count)),
    }))
}

pub(crate) fn refusal(number: u32, at: Path<'_>, problems: &mut Problems) -> Option<Refusal> {
    match u8::try_from(number).ok().and_then(Refusal::from_number) {
        Some(refusal) => Some(refusal),
        None => problems.invalid(at, format_args!("{number} is not known to this version")),
    }
}
