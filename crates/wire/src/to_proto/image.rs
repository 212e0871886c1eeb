//! Segments of snapshots.

use bytes::Bytes;
use proffer_types::command::Answer;
use proffer_types::event::LaunchKind;
use proffer_types::image::{Segment, TaskImage};
use proffer_types::task::KillOrder;
use proffer_types::{Agent, AgentState, Framework, FrameworkState};
use prost::Message;

use super::records::{
    agent_info, caller, framework_info, resources, sixteen, spec_is_newer, status, status_is_newer, task_spec,
};
use crate::log::v1 as pb;
use pb::segment::Body;

const SPECS: u32 = 22;
const TASKS: u32 = 23;
const FINISHED: u32 = 24;

/// The canonical encoding of a segment.
pub fn segment(segment: &Segment) -> Vec<u8> {
    let body = body(segment);
    pb::Segment { kind: kind(&body), version: version(segment), body: Some(body) }.encode_to_vec()
}

/// The kind of a body: its field number.
pub(crate) fn kind(body: &Body) -> u32 {
    match body {
        Body::Meta(_) => 16,
        Body::Agents(_) => 17,
        Body::Frameworks(_) => 18,
        Body::Sessions(_) => 19,
        Body::Answers(_) => 20,
        Body::AdminAnswers(_) => 21,
        Body::Specs(_) => SPECS,
        Body::Tasks(_) => TASKS,
        Body::Finished(_) => FINISHED,
    }
}

/// The last version of each kind; `None` for a kind that does not exist.
pub(crate) fn known_version(kind: u32) -> Option<u32> {
    match kind {
        SPECS | TASKS | FINISHED => Some(2),
        16..=24 => Some(1),
        _ => None,
    }
}

/// The version that a segment needs: the lowest that has all it uses, as with the log's entries.
pub(crate) fn version(segment: &Segment) -> u32 {
    let newer = match segment {
        Segment::Specs(specs) => specs.iter().any(|image| spec_is_newer(&image.spec)),
        Segment::Tasks(tasks) => tasks.iter().any(task_is_newer),
        Segment::Finished(tasks) => tasks.iter().any(|finished| task_is_newer(&finished.task)),
        _ => false,
    };
    if newer { 2 } else { 1 }
}

fn task_is_newer(task: &TaskImage) -> bool {
    let mut statuses = task.agent_status.iter().chain(&task.pending).chain([&task.status]);
    task.group.is_some() || task.kind != LaunchKind::Task || statuses.any(status_is_newer)
}

fn body(segment: &Segment) -> Body {
    match segment {
        Segment::Meta(meta) => Body::Meta(pb::Meta {
            state_version: meta.state_version,
            cluster: meta.cluster.map(super::cluster_id).unwrap_or_default(),
            masters: meta.masters.iter().map(|(id, a)| pb::Master { id: id.0, address: a.clone() }).collect(),
            time_ms: meta.time.0,
            applied: meta.applied,
            last_id: meta.last_id,
            last_finished: meta.last_finished,
        }),
        Segment::Agents(agents) => Body::Agents(pb::Agents { records: agents.iter().map(agent).collect() }),
        Segment::Frameworks(frameworks) => {
            Body::Frameworks(pb::Frameworks { records: frameworks.iter().map(framework).collect() })
        }
        Segment::Sessions(sessions) => Body::Sessions(pb::Sessions {
            records: sessions
                .iter()
                .map(|s| pb::Session {
                    session: s.session.0,
                    framework: s.framework.0,
                    origin: sixteen(s.origin.0),
                    done_below: s.done_below,
                })
                .collect(),
        }),
        Segment::Answers(answers) => Body::Answers(pb::Answers {
            records: answers
                .iter()
                .map(|a| pb::StoredAnswer {
                    session: a.session.0,
                    seq: a.seq,
                    answer: Some(answer(&a.answer)),
                })
                .collect(),
        }),
        Segment::AdminAnswers(answers) => Body::AdminAnswers(pb::AdminAnswers {
            records: answers
                .iter()
                .map(|a| pb::StoredAdminAnswer {
                    request: sixteen(a.request.0),
                    until_ms: a.until.0,
                    answer: Some(answer(&a.answer)),
                })
                .collect(),
        }),
        Segment::Specs(specs) => Body::Specs(pb::Specs {
            records: specs
                .iter()
                .map(|s| pb::StoredSpec { framework: s.framework.0, spec: Some(task_spec(&s.spec)) })
                .collect(),
        }),
        Segment::Tasks(tasks) => Body::Tasks(pb::Tasks { records: tasks.iter().map(task).collect() }),
        Segment::Finished(tasks) => Body::Finished(pb::FinishedTasks {
            records: tasks
                .iter()
                .map(|f| pb::Finished { number: f.number, task: Some(task(&f.task)) })
                .collect(),
        }),
    }
}

fn agent(agent: &Agent) -> pb::Agent {
    pb::Agent {
        id: agent.id.0,
        info: Some(agent_info(&agent.info)),
        instance: sixteen(agent.instance.0),
        boot_id: sixteen(agent.boot_id.0),
        unreachable_since_ms: match agent.state {
            AgentState::Reachable => None,
            AgentState::Unreachable { since } => Some(since.0),
        },
        last_seq: agent.last_seq,
        used: Some(resources(&agent.used)),
        attachment: agent.attachment,
        registered_at_ms: agent.registered_at.0,
        registered_wall_ms: agent.registered_wall_ms,
    }
}

fn framework(framework: &Framework) -> pb::Framework {
    use pb::framework::State;
    pb::Framework {
        id: framework.id.0,
        info: Some(framework_info(&framework.info)),
        owner: Some(caller(&framework.owner)),
        origin: sixteen(framework.origin.0),
        session: framework.session.0,
        state: match framework.state {
            FrameworkState::Connected => None,
            FrameworkState::Disconnected { deadline } => Some(State::DeadlineMs(deadline.0)),
            FrameworkState::Completed { at } => Some(State::CompletedMs(at.0)),
        },
        completion_reason: framework.completion_reason.clone(),
        launched: framework.launched,
        live_tasks: framework.live_tasks,
        spec_bytes: framework.spec_bytes,
        registered_at_ms: framework.registered_at.0,
        registered_wall_ms: framework.registered_wall_ms,
    }
}

fn answer(answer: &Answer) -> pb::Answer {
    pb::Answer {
        index: answer.index,
        content: answer.content,
        first_launch: answer.first_launch.0,
        outcomes: answer.outcomes.iter().map(|o| o.map_or(0, |refusal| refusal.number().into())).collect(),
        rejected: answer.rejected.map_or(0, |rejection| rejection.number().into()),
    }
}

fn task(task: &TaskImage) -> pb::Task {
    let kill = |kill: &KillOrder| pb::KillOrder {
        grace_ms: kill.grace_ms,
        agent_seq: kill.agent_seq,
        reason: kill.reason.number().into(),
    };
    pb::Task {
        launch: task.launch_id.0,
        task_id: task.task_id.as_str().into(),
        name: task.name.clone(),
        framework: task.framework.0,
        agent: task.agent.0,
        role: task.role.as_str().into(),
        digest: Bytes::copy_from_slice(&task.digest.0),
        env: task.env.clone(),
        array_index: task.array.map(|(index, _)| index),
        array_count: task.array.map_or(0, |(_, count)| count),
        resources: Some(resources(&task.resources)),
        agent_seq: task.agent_seq,
        kill: task.kill.as_ref().map(kill),
        status: Some(status(&task.status)),
        agent_status: task.agent_status.as_ref().map(status),
        pending: task.pending.iter().map(status).collect(),
        created_at_ms: task.created_at.0,
        created_wall_ms: task.created_wall_ms,
        started_wall_ms: task.started_wall_ms,
        finished_wall_ms: task.finished_wall_ms,
        group_first: task.group.map_or(0, |group| group.first.0),
        group_size: task.group.map_or(0, |group| group.size),
        executor: matches!(task.kind, LaunchKind::Executor(_)),
        executor_launch: match task.kind {
            LaunchKind::TaskOf(launch) => launch.0,
            LaunchKind::Task | LaunchKind::Executor(_) => 0,
        },
    }
}
