//! Segments of snapshots.

use proffer_types::command::{Answer, Rejection};
use proffer_types::event::{Group, LaunchKind};
use proffer_types::image::{
    AdminAnswerImage, AnswerImage, FinishedImage, Meta, Segment, SessionImage, SpecImage, TaskImage,
};
use proffer_types::task::KillOrder;
use proffer_types::{
    Agent, AgentId, AgentState, ClusterTime, Framework, FrameworkId, FrameworkState, LaunchId, SessionId,
    SpecDigest,
};
use prost::Message;

use super::commands::refusal;
use super::records::{
    agent_info, boot, caller, cluster, each, framework_info, masters, reason, request, resources, status,
    task_spec, there,
};
use super::role;
use super::tasks::{executor_id, task_id};
use crate::log::v1 as pb;
use crate::malformed::{Path, Problems, parse};
use crate::record::{RecordError, check};
use crate::to_proto::image::{kind, known_version, version};
use pb::segment::Body;

const WHAT: &str = "snapshot segment";
const ROOT: Path<'static> = Path::Root;

/// Reads a segment.
///
/// # Errors
/// Bytes that are no segment, a kind or version that is not known, anything in it that is not understood.
pub fn segment(bytes: &[u8]) -> Result<Segment, RecordError> {
    let given = pb::Segment::decode(bytes).map_err(|error| RecordError::Garbled { what: WHAT, error })?;
    let body = given.body.as_ref().map(kind);
    let named = (given.kind, given.version);
    check(WHAT, named, known_version(given.kind), body, bytes.len(), given.encoded_len())?;
    parse(|problems| {
        let segment = records(there(given.body, ROOT.field("body"), problems)?, problems)?;
        if version(&segment) > named.1 {
            return problems.invalid(ROOT.field("version"), "has less than the record uses");
        }
        Some(segment)
    })
    .map_err(|error| RecordError::Invalid { what: WHAT, kind: named.0, error })
}

fn records(body: Body, problems: &mut Problems) -> Option<Segment> {
    const NAME: &str = "records";
    Some(match body {
        Body::Meta(given) => Segment::Meta(meta(given, problems)?),
        Body::Agents(given) => Segment::Agents(each(given.records, &ROOT, NAME, problems, agent)?),
        Body::Frameworks(given) => {
            Segment::Frameworks(each(given.records, &ROOT, NAME, problems, framework)?)
        }
        Body::Sessions(given) => Segment::Sessions(each(given.records, &ROOT, NAME, problems, session)?),
        Body::Answers(given) => Segment::Answers(each(given.records, &ROOT, NAME, problems, stored_answer)?),
        Body::AdminAnswers(given) => {
            Segment::AdminAnswers(each(given.records, &ROOT, NAME, problems, stored_admin_answer)?)
        }
        Body::Specs(given) => {
            Segment::Specs(each(given.records, &ROOT, NAME, problems, |given, at, problems| {
                let spec = task_spec(given.spec, at.field("spec"), problems)?;
                Some(SpecImage { framework: FrameworkId(given.framework), spec })
            })?)
        }
        Body::Tasks(given) => Segment::Tasks(each(given.records, &ROOT, NAME, problems, task)?),
        Body::Finished(given) => Segment::Finished(each(given.records, &ROOT, NAME, problems, finished)?),
    })
}

fn meta(given: pb::Meta, problems: &mut Problems) -> Option<Meta> {
    let cluster = match given.cluster.len() {
        0 => None,
        _ => Some(cluster(&given.cluster, ROOT.field("cluster"), problems)?),
    };
    Some(Meta {
        state_version: given.state_version,
        cluster,
        masters: masters(given.masters),
        time: ClusterTime(given.time_ms),
        applied: given.applied,
        last_id: given.last_id,
        last_finished: given.last_finished,
    })
}

fn agent(given: pb::Agent, at: &Path<'_>, problems: &mut Problems) -> Option<Agent> {
    Some(Agent {
        id: AgentId(given.id),
        info: agent_info(given.info, at.field("info"), problems)?,
        instance: request(&given.instance, at.field("instance"), problems)?,
        boot_id: boot(&given.boot_id, at.field("boot_id"), problems)?,
        state: match given.unreachable_since_ms {
            None => AgentState::Reachable,
            Some(since) => AgentState::Unreachable { since: ClusterTime(since) },
        },
        last_seq: given.last_seq,
        used: resources(given.used, at.field("used"), problems)?,
        attachment: given.attachment,
        registered_at: ClusterTime(given.registered_at_ms),
        registered_wall_ms: given.registered_wall_ms,
    })
}

fn framework(given: pb::Framework, at: &Path<'_>, problems: &mut Problems) -> Option<Framework> {
    use pb::framework::State;
    Some(Framework {
        id: FrameworkId(given.id),
        info: framework_info(given.info, at.field("info"), problems)?,
        owner: caller(given.owner, at.field("owner"), problems)?,
        origin: request(&given.origin, at.field("origin"), problems)?,
        session: SessionId(given.session),
        state: match given.state {
            None => FrameworkState::Connected,
            Some(State::DeadlineMs(deadline)) => {
                FrameworkState::Disconnected { deadline: ClusterTime(deadline) }
            }
            Some(State::CompletedMs(at)) => FrameworkState::Completed { at: ClusterTime(at) },
        },
        completion_reason: given.completion_reason,
        launched: given.launched,
        live_tasks: given.live_tasks,
        spec_bytes: given.spec_bytes,
        registered_at: ClusterTime(given.registered_at_ms),
        registered_wall_ms: given.registered_wall_ms,
    })
}

fn session(given: pb::Session, at: &Path<'_>, problems: &mut Problems) -> Option<SessionImage> {
    Some(SessionImage {
        session: SessionId(given.session),
        framework: FrameworkId(given.framework),
        origin: request(&given.origin, at.field("origin"), problems)?,
        done_below: given.done_below,
    })
}

fn stored_answer(given: pb::StoredAnswer, at: &Path<'_>, problems: &mut Problems) -> Option<AnswerImage> {
    let answer = answer(given.answer, &at.field("answer"), problems)?;
    Some(AnswerImage { session: SessionId(given.session), seq: given.seq, answer })
}

fn stored_admin_answer(
    given: pb::StoredAdminAnswer,
    at: &Path<'_>,
    problems: &mut Problems,
) -> Option<AdminAnswerImage> {
    Some(AdminAnswerImage {
        request: request(&given.request, at.field("request"), problems)?,
        until: ClusterTime(given.until_ms),
        answer: answer(given.answer, &at.field("answer"), problems)?,
    })
}

fn answer(given: Option<pb::Answer>, at: &Path<'_>, problems: &mut Problems) -> Option<Answer> {
    let given = there(given, *at, problems)?;
    let outcome = |number: u32, at: &Path<'_>, problems: &mut Problems| match number {
        0 => Some(None),
        number => refusal(number, *at, problems).map(Some),
    };
    Some(Answer {
        index: given.index,
        content: given.content,
        first_launch: LaunchId(given.first_launch),
        outcomes: each(given.outcomes, at, "outcomes", problems, outcome)?,
        rejected: match given.rejected {
            0 => None,
            number => match u8::try_from(number).ok().and_then(Rejection::from_number) {
                Some(rejection) => Some(rejection),
                None => return problems.invalid(at.field("rejected"), format_args!("{number} is not known")),
            },
        },
    })
}

fn digest(bytes: &[u8], at: Path<'_>, problems: &mut Problems) -> Option<SpecDigest> {
    match bytes.try_into() {
        Ok(digest) => Some(SpecDigest(digest)),
        Err(_) => problems.invalid(at, "must be 32 bytes"),
    }
}

fn task(given: pb::Task, at: &Path<'_>, problems: &mut Problems) -> Option<TaskImage> {
    let kill = match given.kill {
        None => None,
        Some(kill) => Some(KillOrder {
            grace_ms: kill.grace_ms,
            agent_seq: kill.agent_seq,
            reason: reason(kill.reason, at.field("kill"), problems)?,
        }),
    };
    let agent_status = match given.agent_status {
        None => None,
        given => Some(status(given, at.field("agent_status"), problems)?),
    };
    Some(TaskImage {
        launch_id: LaunchId(given.launch),
        task_id: task_id(&given.task_id, at.field("task_id"), problems)?,
        name: given.name,
        framework: FrameworkId(given.framework),
        agent: AgentId(given.agent),
        role: role(&given.role, at.field("role"), problems)?,
        digest: digest(&given.digest, at.field("digest"), problems)?,
        env: given.env,
        array: given.array_index.map(|index| (index, given.array_count)),
        resources: resources(given.resources, at.field("resources"), problems)?,
        agent_seq: given.agent_seq,
        kill,
        status: status(given.status, at.field("status"), problems)?,
        agent_status,
        pending: each(given.pending, at, "pending", problems, |given, at, problems| {
            status(Some(given), *at, problems)
        })?,
        created_at: ClusterTime(given.created_at_ms),
        created_wall_ms: given.created_wall_ms,
        started_wall_ms: given.started_wall_ms,
        finished_wall_ms: given.finished_wall_ms,
        group: match (given.group_first, given.group_size) {
            (0, 0) => None,
            (first, size) if first > 0 && size > 0 => Some(Group { first: LaunchId(first), size }),
            _ => return problems.invalid(at.field("group_first"), "must be given with group_size"),
        },
        kind: match (given.executor, given.executor_launch) {
            (false, 0) => LaunchKind::Task,
            (false, launch) => LaunchKind::TaskOf(LaunchId(launch)),
            (true, 0) => LaunchKind::Executor(executor_id(&given.task_id, at.field("task_id"), problems)?),
            (true, _) => return problems.invalid(at.field("executor_launch"), "an executor has no executor"),
        },
    })
}

fn finished(given: pb::Finished, at: &Path<'_>, problems: &mut Problems) -> Option<FinishedImage> {
    let record = there(given.task, at.field("task"), problems)?;
    Some(FinishedImage { number: given.number, task: task(record, &at.field("task"), problems)? })
}
