//! What frameworks ask.

use std::collections::BTreeSet;

use std::sync::Arc;

use proffer_types::call::{AcceptCallPart, Call, ConnectionId};
use proffer_types::command::{Ack, CallId, Launch, Member, Operation};
use proffer_types::limits::{
    ACCEPT_TASKS_MAX, EXECUTOR_MESSAGE_BYTES_MAX, FILTER_DEFAULT_MS, FILTER_MAX_MS, GROUP_BYTES_MAX,
    GROUP_TASKS_MAX, SPEC_BYTES_MAX,
};
use proffer_types::{AgentId, FrameworkId, LaunchId, SessionId, TaskSpec};

use super::frameworks::{framework_info, roles};
use super::offers::offer_ids;
use super::resources::Attributions;
use super::tasks::{executor_id, kill_grace, task_id, task_launch, task_spec};
use super::{id, request_id};
use crate::content::content_hash;
use crate::malformed::{Malformed, Path, Problems, parse};
use crate::scheduler::v1 as pb;
use pb::operation::Operation as Given;

const ROOT: Path<'static> = Path::Root;

/// A framework's Subscribe, whose stream is `connection`.
pub fn subscribe(request: pb::SubscribeRequest, connection: ConnectionId) -> Result<Call, Malformed> {
    parse(|problems| {
        let info = framework_info(request.info, &ROOT.field("info"), problems);
        let framework = match request.framework_id {
            None => Some(None),
            Some(given) => id(given, ROOT.field("framework_id"), problems).map(|id| Some(FrameworkId(id))),
        };
        let session = match request.session {
            None => Some(None),
            Some(_) if request.framework_id.is_none() => {
                problems.invalid(ROOT.field("session"), "needs framework_id, whose session it is")
            }
            Some(given) => id(given, ROOT.field("session"), problems).map(|id| Some(SessionId(id))),
        };
        let origin = request_id(&request.origin, ROOT.field("origin"), problems);
        let suppressed = roles(request.suppressed_roles, &ROOT, "suppressed_roles", problems);
        let (info, suppressed) = (info?, suppressed?);
        if let Some(i) = suppressed.iter().position(|role| !info.roles.contains(role)) {
            problems.invalid::<()>(ROOT.item("suppressed_roles", i), "is none of info.roles");
        }
        Some(Call::Subscribe {
            connection,
            framework: framework?,
            session: session?,
            origin: origin?,
            info,
            suppressed,
        })
    })
}

/// Uses of offers.
pub fn accept(mut request: pb::AcceptRequest) -> Result<Call, Malformed> {
    parse(|problems| {
        let header = request.call.take();
        let content = content_hash(b"accept", &request);
        let call = call_id(header, content, problems);
        let filter_ms = filter(request.filter_ms, problems);
        if request.parts.is_empty() {
            problems.invalid::<()>(ROOT.field("parts"), "must not be empty");
        }
        let operations = request.parts.iter().flat_map(|part| &part.operations);
        let tasks: usize = operations
            .map(|operation| match &operation.operation {
                Some(Given::Launch(launch)) => launch.tasks.len(),
                Some(Given::LaunchGroup(group)) => group.members.len(),
                None => 0,
            })
            .sum();
        if tasks > ACCEPT_TASKS_MAX {
            return problems.invalid(
                ROOT.field("parts"),
                format_args!("hold {tasks} tasks, the limit of one call is {ACCEPT_TASKS_MAX}"),
            );
        }
        let mut seen = BTreeSet::new();
        let mut parts = Vec::with_capacity(request.parts.len());
        for (i, given) in request.parts.into_iter().enumerate() {
            parts.extend(part(given, &ROOT.item("parts", i), &mut seen, problems));
        }
        Some(Call::Accept { call: call?, atomic: request.atomic, parts, filter_ms: filter_ms? })
    })
}

fn part(
    given: pb::accept_request::Part,
    at: &Path<'_>,
    seen: &mut BTreeSet<proffer_types::OfferId>,
    problems: &mut Problems,
) -> Option<AcceptCallPart> {
    let offers = offer_ids(given.offer_ids, at, seen, problems);
    let mut operations = Vec::with_capacity(given.operations.len());
    for (i, operation) in given.operations.into_iter().enumerate() {
        let at = at.item("operations", i);
        operations.extend(match operation.operation {
            // A member that this version does not know is dropped as the message is decoded.
            None => problems
                .unsupported(at, "this operation is not known to this version; known: launch, launch_group"),
            Some(Given::Launch(given)) => launch(given, &at.field("launch"), problems).map(Operation::Launch),
            Some(Given::LaunchGroup(given)) => {
                group(given, &at.field("launch_group"), problems).map(Operation::LaunchGroup)
            }
        });
    }
    Some(AcceptCallPart { offers: offers?, operations })
}

fn launch(given: pb::Launch, at: &Path<'_>, problems: &mut Problems) -> Option<Launch> {
    let spec = kept_spec(given.spec, at, problems);
    if given.tasks.is_empty() {
        problems.invalid::<()>(at.field("tasks"), "must not be empty");
    }
    let mut tasks = Vec::with_capacity(given.tasks.len());
    for (i, task) in given.tasks.into_iter().enumerate() {
        tasks.extend(task_launch(task, &at.item("tasks", i), problems).map(Ok));
    }
    Some(Launch { spec: spec?, tasks })
}

fn group(given: pb::LaunchGroup, at: &Path<'_>, problems: &mut Problems) -> Option<Vec<Member>> {
    let size = given.members.len();
    if size == 0 || size > GROUP_TASKS_MAX {
        let text = format_args!("must be 1 to {GROUP_TASKS_MAX}, and are {size}");
        return problems.invalid(at.field("members"), text);
    }
    let mut members = Vec::with_capacity(size);
    let mut bytes = 0;
    for (i, member) in given.members.into_iter().enumerate() {
        let at = at.item("members", i);
        let spec = kept_spec(member.spec, &at, problems);
        let task = match member.task {
            Some(task) => task_launch(task, &at.field("task"), problems),
            None => problems.invalid(at.field("task"), "must be given"),
        };
        let (Some(spec), Some(task)) = (spec, task) else { continue };
        let first: Option<&Member> = members.first();
        if first.is_some_and(|first| first.spec.executor != spec.executor) {
            let text = "must be that of members[0]: only who runs them all can start them together";
            problems.invalid::<()>(at.field("spec").field("executor"), text);
        }
        bytes += spec.encoded_bytes();
        bytes += task.env.iter().map(|(name, value)| (name.len() + value.len()) as u64).sum::<u64>();
        members.push(Member { spec, task: Ok(task) });
    }
    if bytes > GROUP_BYTES_MAX as u64 {
        let text = format_args!("take {bytes} bytes together, the limit is {GROUP_BYTES_MAX}");
        return problems.invalid(at.field("members"), text);
    }
    (members.len() == size).then_some(members)
}

/// A spec, if it is small enough to be kept.
fn kept_spec(
    given: Option<crate::common::v1::TaskSpec>,
    at: &Path<'_>,
    problems: &mut Problems,
) -> Option<Arc<TaskSpec>> {
    let spec = task_spec(given, &at.field("spec"), Attributions::Refused, problems)?;
    // As it is kept each text and list has its length before it: many short ones are larger there than here.
    let kept = spec.encoded_bytes();
    if kept > SPEC_BYTES_MAX as u64 {
        let text = format_args!("takes {kept} bytes where it is kept, the limit is {SPEC_BYTES_MAX}");
        return problems.invalid(at.field("spec"), text);
    }
    Some(spec)
}

/// Offers given back.
pub fn decline(request: pb::DeclineRequest) -> Result<Call, Malformed> {
    parse(|problems| {
        let sender = sender(request.call, problems);
        let offers = offer_ids(request.offer_ids, &ROOT, &mut BTreeSet::new(), problems);
        let filter_ms = filter(request.filter_ms, problems);
        let (framework, session) = sender?;
        Some(Call::Decline { framework, session, offers: offers?, filter_ms: filter_ms? })
    })
}

/// No offers in some roles.
pub fn suppress(request: pb::SuppressRequest) -> Result<Call, Malformed> {
    parse(|problems| {
        let sender = sender(request.call, problems);
        let roles = roles(request.roles, &ROOT, "roles", problems);
        let (framework, session) = sender?;
        Some(Call::Suppress { framework, session, roles: roles? })
    })
}

/// Offers again in some roles.
pub fn revive(request: pb::ReviveRequest) -> Result<Call, Malformed> {
    parse(|problems| {
        let sender = sender(request.call, problems);
        let roles = roles(request.roles, &ROOT, "roles", problems);
        let (framework, session) = sender?;
        Some(Call::Revive { framework, session, roles: roles? })
    })
}

/// The end of a task.
pub fn kill(mut request: pb::KillRequest) -> Result<Call, Malformed> {
    parse(|problems| {
        let header = request.call.take();
        let call = call_id(header, content_hash(b"kill", &request), problems);
        let task = task_id(&request.task_id, ROOT.field("task_id"), problems);
        let grace_ms = kill_grace(request.grace_ms, ROOT.field("grace_ms"), problems);
        Some(Call::Kill { call: call?, task: task?, grace_ms: grace_ms? })
    })
}

/// The end of an executor.
pub fn shutdown_executor(mut request: pb::ShutdownExecutorRequest) -> Result<Call, Malformed> {
    parse(|problems| {
        let header = request.call.take();
        let call = call_id(header, content_hash(b"shutdown_executor", &request), problems);
        let agent = id(request.agent_id, ROOT.field("agent_id"), problems);
        let executor = executor_id(&request.executor_id, ROOT.field("executor_id"), problems);
        Some(Call::ShutdownExecutor { call: call?, agent: AgentId(agent?), executor: executor? })
    })
}

/// Bytes for an executor.
pub fn send_message(request: pb::SendMessageRequest) -> Result<Call, Malformed> {
    parse(|problems| {
        let sender = sender(request.call, problems);
        let agent = id(request.agent_id, ROOT.field("agent_id"), problems);
        let executor = executor_id(&request.executor_id, ROOT.field("executor_id"), problems);
        let bytes = request.data.len();
        if bytes > EXECUTOR_MESSAGE_BYTES_MAX {
            let text = format_args!("has {bytes} bytes, the limit is {EXECUTOR_MESSAGE_BYTES_MAX}");
            return problems.invalid(ROOT.field("data"), text);
        }
        let (framework, session) = sender?;
        let (agent, executor) = (AgentId(agent?), executor?);
        Some(Call::SendMessage { framework, session, agent, executor, data: request.data.into() })
    })
}

/// Something else to say of a framework.
pub fn update_framework(mut request: pb::UpdateFrameworkRequest) -> Result<Call, Malformed> {
    parse(|problems| {
        let header = request.call.take();
        let call = call_id(header, content_hash(b"update_framework", &request), problems);
        let info = framework_info(request.info, &ROOT.field("info"), problems);
        Some(Call::UpdateFramework { call: call?, info: info? })
    })
}

/// Statuses that were seen.
pub fn acknowledge(mut request: pb::AcknowledgeRequest) -> Result<Call, Malformed> {
    parse(|problems| {
        let header = request.call.take();
        let call = call_id(header, content_hash(b"acknowledge", &request), problems);
        let mut acks = Vec::with_capacity(request.acks.len());
        for (i, ack) in request.acks.into_iter().enumerate() {
            let launch = id(ack.launch_id, ROOT.item("acks", i).field("launch_id"), problems);
            acks.extend(launch.map(|launch| Ack {
                launch: LaunchId(launch),
                master_seq: ack.master_seq,
                task_seq: ack.task_seq,
            }));
        }
        Some(Call::Acknowledge { call: call?, acks })
    })
}

/// Statuses that are wanted again.
pub fn reconcile(request: pb::ReconcileRequest) -> Result<Call, Malformed> {
    parse(|problems| {
        let sender = sender(request.call, problems);
        let mut tasks = Vec::with_capacity(request.task_ids.len());
        for (i, name) in request.task_ids.iter().enumerate() {
            tasks.extend(task_id(name, ROOT.item("task_ids", i), problems));
        }
        let (framework, session) = sender?;
        Some(Call::Reconcile { framework, session, tasks })
    })
}

/// The end of a framework.
pub fn teardown(mut request: pb::TeardownRequest) -> Result<Call, Malformed> {
    parse(|problems| {
        let header = request.call.take();
        let call = call_id(header, content_hash(b"teardown", &request), problems);
        Some(Call::Teardown { call: call? })
    })
}

fn call_id(header: Option<pb::CallHeader>, content: u64, problems: &mut Problems) -> Option<CallId> {
    let seq = header.map(|h| (h.seq, h.done_below)).unwrap_or_default();
    let (framework, session) = sender(header, problems)?;
    let (seq, done_below) = seq;
    if seq > 0 && done_below > seq {
        let at = ROOT.field("call");
        return problems
            .invalid(at.field("done_below"), "must not exceed seq, whose answer is not there yet");
    }
    Some(CallId { framework, session, seq, done_below, content })
}

fn sender(header: Option<pb::CallHeader>, problems: &mut Problems) -> Option<(FrameworkId, SessionId)> {
    let at = ROOT.field("call");
    let Some(header) = header else { return problems.invalid(at, "must be given") };
    let framework = id(header.framework_id, at.field("framework_id"), problems);
    let session = id(header.session, at.field("session"), problems);
    Some((FrameworkId(framework?), SessionId(session?)))
}

fn filter(filter_ms: Option<u64>, problems: &mut Problems) -> Option<u64> {
    match filter_ms {
        Some(ms) if ms > FILTER_MAX_MS => problems
            .invalid(ROOT.field("filter_ms"), format_args!("must be at most {FILTER_MAX_MS} (365 days)")),
        filter_ms => Some(filter_ms.unwrap_or(FILTER_DEFAULT_MS)),
    }
}
