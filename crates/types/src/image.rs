//! A snapshot of the replicated state as plain data, cut into segments.
//!
//! Segments come in the order of the variants of [`Segment`], the records of one kind in the order of their ids, each
//! segment small (about a thousand records at most). From all of them the state is rebuilt with the same hash; what is
//! not here (indexes, counts) follows from what is.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::canonical::{Canonical, Sink};
use crate::command::Answer;
use crate::event::{Group, LaunchKind};
use crate::task::KillOrder;
use crate::{
    Agent, AgentId, ClusterId, ClusterTime, Framework, FrameworkId, LaunchId, MasterId, RequestId, Resources,
    Role, SessionId, SpecDigest, Status, Task, TaskId, TaskSpec,
};

/// One piece of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    /// Exactly one, the first.
    Meta(Meta),
    /// Agents, by id.
    Agents(Vec<Agent>),
    /// Frameworks, by id.
    Frameworks(Vec<Framework>),
    /// The session of each framework, by session id.
    Sessions(Vec<SessionImage>),
    /// Stored answers, by (session, seq).
    Answers(Vec<AnswerImage>),
    /// Answers to operators, by request id.
    AdminAnswers(Vec<AdminAnswerImage>),
    /// Task specs, by (framework, digest): everything that tasks and finished tasks refer to.
    Specs(Vec<SpecImage>),
    /// Tasks that are not both terminal and acknowledged, by launch id.
    Tasks(Vec<TaskImage>),
    /// Finished tasks that are remembered, by the order in which they were retired.
    Finished(Vec<FinishedImage>),
}

/// What there is once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// The meaning of the state; [`crate::image::STATE_VERSION`] in this version of the program.
    pub state_version: u32,
    /// The cluster's id, once it has begun.
    pub cluster: Option<ClusterId>,
    /// The masters and their addresses, by id.
    pub masters: Vec<(MasterId, String)>,
    /// The cluster's clock.
    pub time: ClusterTime,
    /// The log index of the last entry applied.
    pub applied: u64,
    /// The last id minted.
    pub last_id: u64,
    /// The number of the last finished task.
    pub last_finished: u64,
}

/// The only meaning of the state that this version of the program knows.
pub const STATE_VERSION: u32 = 1;

/// A framework's session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionImage {
    /// The session.
    pub session: SessionId,
    /// Whose.
    pub framework: FrameworkId,
    /// The random number of the Subscribe that opened it.
    pub origin: RequestId,
    /// The client has seen the answers of all calls below this.
    pub done_below: u64,
}

/// A stored answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnswerImage {
    /// In which session.
    pub session: SessionId,
    /// To which call.
    pub seq: u64,
    /// The answer.
    pub answer: Answer,
}

/// A stored answer to an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminAnswerImage {
    /// To which request.
    pub request: RequestId,
    /// Until when it is kept.
    pub until: ClusterTime,
    /// The answer.
    pub answer: Answer,
}

/// A task spec in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecImage {
    /// By whom.
    pub framework: FrameworkId,
    /// The spec; its digest follows from it.
    pub spec: Arc<TaskSpec>,
}

/// A task's record with the digest in place of its spec. The fields are those of [`Task`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "documented at Task")]
pub struct TaskImage {
    pub launch_id: LaunchId,
    pub task_id: TaskId,
    pub name: String,
    pub framework: FrameworkId,
    pub agent: AgentId,
    pub role: Role,
    pub digest: SpecDigest,
    pub env: BTreeMap<String, String>,
    pub array: Option<(u32, u32)>,
    pub resources: Resources,
    pub agent_seq: u64,
    pub kill: Option<KillOrder>,
    pub status: Status,
    pub agent_status: Option<Status>,
    pub pending: Vec<Status>,
    pub created_at: ClusterTime,
    pub created_wall_ms: u64,
    pub started_wall_ms: Option<u64>,
    pub finished_wall_ms: Option<u64>,
    pub group: Option<Group>,
    pub kind: LaunchKind,
}

/// A finished task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FinishedImage {
    /// Counts the cluster's finished tasks in the order of their retirement.
    pub number: u64,
    /// The task; nothing of it is pending any more.
    pub task: TaskImage,
}

impl From<&Task> for TaskImage {
    fn from(task: &Task) -> Self {
        let task = task.clone();
        Self {
            launch_id: task.launch_id,
            task_id: task.task_id,
            name: task.name,
            framework: task.framework,
            agent: task.agent,
            role: task.role,
            digest: task.digest,
            env: task.env,
            array: task.array,
            resources: task.resources,
            agent_seq: task.agent_seq,
            kill: task.kill,
            status: task.status,
            agent_status: task.agent_status,
            pending: task.pending,
            created_at: task.created_at,
            created_wall_ms: task.created_wall_ms,
            started_wall_ms: task.started_wall_ms,
            finished_wall_ms: task.finished_wall_ms,
            group: task.group,
            kind: task.kind,
        }
    }
}

impl TaskImage {
    /// The record, with the spec that the digest names.
    pub fn into_task(self, spec: Arc<TaskSpec>) -> Task {
        Task {
            launch_id: self.launch_id,
            task_id: self.task_id,
            name: self.name,
            framework: self.framework,
            agent: self.agent,
            role: self.role,
            spec,
            digest: self.digest,
            env: self.env,
            array: self.array,
            resources: self.resources,
            agent_seq: self.agent_seq,
            kill: self.kill,
            status: self.status,
            agent_status: self.agent_status,
            pending: self.pending,
            created_at: self.created_at,
            created_wall_ms: self.created_wall_ms,
            started_wall_ms: self.started_wall_ms,
            finished_wall_ms: self.finished_wall_ms,
            group: self.group,
            kind: self.kind,
        }
    }
}

macro_rules! in_order {
    ($($name:ty { $($field:ident),* $(,)? })*) => {
        $(impl Canonical for $name {
            fn encode(&self, out: &mut dyn Sink) {
                $(self.$field.encode(out);)*
            }
        })*
    };
}

in_order! {
    Meta { state_version, cluster, masters, time, applied, last_id, last_finished }
    SessionImage { session, framework, origin, done_below }
}

// The spec of a task is hashed as its digest, once per task, and whole once per framework that uses it.
impl Canonical for Task {
    fn encode(&self, out: &mut dyn Sink) {
        let Self { launch_id, task_id, name, framework, agent, role, digest, env, array, .. } = self;
        (launch_id, task_id).encode(out);
        (name, framework).encode(out);
        (agent, role).encode(out);
        (digest, (env, array)).encode(out);
        let Self { resources, agent_seq, kill, status, agent_status, pending, .. } = self;
        (resources, agent_seq).encode(out);
        (kill, status).encode(out);
        (agent_status, pending).encode(out);
        let Self { created_at, created_wall_ms, started_wall_ms, finished_wall_ms, group, kind, .. } = self;
        (created_at, created_wall_ms).encode(out);
        (started_wall_ms, finished_wall_ms).encode(out);
        if let Some(Group { first, size }) = group {
            (1u8, (first, size)).encode(out);
        }
        match kind {
            LaunchKind::Task => {}
            LaunchKind::Executor(id) => (2u8, id).encode(out),
            LaunchKind::TaskOf(executor) => (3u8, executor).encode(out),
        }
    }
}
