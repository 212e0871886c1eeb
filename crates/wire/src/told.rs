//! What the protocol tells beyond the vocabulary of `proffer-types`: how an offer, a subscription, an Accept's outcome
//! and a task's output look to whoever receives them.

use std::collections::BTreeMap;

use bytes::Bytes;
use proffer_types::command::Refusal;
use proffer_types::event::{AgentReport, StreamEnd, Update};
use proffer_types::{
    AgentId, AttributeValue, ClusterId, Epoch, ExecutorId, FrameworkId, LaunchId, OfferId, Resources, Role,
    SessionId, Status, TaskId,
};

/// What a Failure event says when an executor has ended.
pub(crate) const EXECUTOR_ENDED: &str = "executor_ended";

/// An event as a framework receives it.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The subscription is open.
    Subscribed(Subscribed),
    /// Some of the framework's tasks.
    Snapshot(Vec<KnownTask>),
    /// All tasks were told.
    SnapshotEnd {
        /// The log index of the snapshot.
        index: u64,
    },
    /// New offers.
    Offers(Vec<HostOffer>),
    /// Offers that are no more.
    Rescind(Vec<OfferId>),
    /// A task's status.
    Update(Update),
    /// An agent is out of contact, or gone for good.
    Failure {
        /// Which.
        agent: AgentId,
        /// Gone for good.
        removed: bool,
    },
    /// An executor has ended.
    ExecutorEnded {
        /// Where it was.
        agent: AgentId,
        /// Which.
        executor: ExecutorId,
        /// How.
        status: Box<Status>,
    },
    /// Bytes from an executor.
    Message {
        /// Where it is.
        agent: AgentId,
        /// Which.
        executor: ExecutorId,
        /// The bytes.
        data: Bytes,
    },
    /// The subscription ends.
    Error {
        /// Why, if this version knows the word.
        end: Option<StreamEnd>,
        /// The word.
        code: String,
        /// For people.
        message: String,
    },
    /// Nothing happened for a while.
    Heartbeat {
        /// The log index applied.
        index: u64,
    },
    /// Something that a later version tells.
    Other,
}

/// The first event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscribed {
    /// The framework.
    pub framework: FrameworkId,
    /// Its session.
    pub session: SessionId,
    /// Time between heartbeats (milliseconds).
    pub heartbeat_ms: u64,
    /// The cluster.
    pub cluster: ClusterId,
    /// The leadership.
    pub epoch: Epoch,
    /// The highest sequence number that the session is known to have used; 0 for none.
    pub last_seq: u64,
}

/// A task of a framework's snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownTask {
    /// Unique for ever.
    pub launch: LaunchId,
    /// The framework's name for it.
    pub task_id: TaskId,
    /// Where it runs.
    pub agent: AgentId,
    /// In which role.
    pub role: Role,
    /// What it holds.
    pub resources: Resources,
    /// Its newest status.
    pub status: Status,
    /// Whether that status comes again as an Update.
    pub unacknowledged: bool,
}

/// An offer with what placement needs to know of its agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostOffer {
    /// Its id.
    pub id: OfferId,
    /// Of which agent.
    pub agent: AgentId,
    /// In which role.
    pub role: Role,
    /// What.
    pub resources: Resources,
    /// The agent's host.
    pub hostname: String,
    /// Facts about it.
    pub attributes: BTreeMap<String, AttributeValue>,
}

/// What became of an Accept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The log index at which it took effect.
    pub index: u64,
    /// Per part, operation and task.
    pub parts: Vec<Vec<Vec<Result<LaunchId, TaskRefused>>>>,
}

/// Why a task of an Accept was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct TaskRefused {
    /// A word such as `TASK_ID_IN_USE`.
    pub code: String,
    /// For people.
    pub message: String,
}

/// The word for a refusal in the protocol.
pub fn refusal_code(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::InvalidTaskId => "INVALID_TASK_ID",
        Refusal::TaskIdInUse => "TASK_ID_IN_USE",
        Refusal::InvalidSpec => "INVALID_SPEC",
        Refusal::NotOffered => "NOT_OFFERED",
        Refusal::AgentUnavailable => "AGENT_UNAVAILABLE",
        Refusal::LimitReached => "LIMIT_REACHED",
        Refusal::FeatureUnknown => "FEATURE_UNKNOWN",
        Refusal::Atomic => "ATOMIC",
        Refusal::Group => "GROUP",
        Refusal::ExecutorDiffers => "EXECUTOR_DIFFERS",
    }
}

/// A message of an agent's session.
#[derive(Clone, Debug, PartialEq)]
pub struct AgentMessage {
    /// Who; `None` if it has no id yet.
    pub agent: Option<AgentId>,
    /// The leadership it believes in; `None` in its hello.
    pub epoch: Option<Epoch>,
    /// What it says.
    pub reports: Vec<AgentReport>,
}

/// A stream of a task's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl LogStream {
    /// The name in texts.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// What to read of an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogRange {
    /// Which stream.
    pub stream: LogStream,
    /// From which byte; negative: that many bytes before the present end.
    pub offset: i64,
    /// Most bytes; 0 for all there are.
    pub limit: u64,
    /// Whether to go on until the task has ended.
    pub follow: bool,
}

/// A piece of an output on its way from the agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogChunk {
    /// Where it begins, in bytes from the stream's start.
    pub offset: u64,
    /// The bytes.
    pub data: Bytes,
    /// Nothing follows.
    pub end: bool,
    /// Bytes before `offset` that were asked for and are kept no more.
    pub lost: u64,
    /// Why nothing can be read.
    pub error: Option<String>,
}

/// A program to run in a task's container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecCommand {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// Added to the task's environment.
    pub env: BTreeMap<String, String>,
    /// Where it starts; empty for where the task's own program did.
    pub working_directory: String,
    /// With a terminal of this size instead of three pipes.
    pub terminal: Option<WindowSize>,
}

/// A terminal's size in characters; 0 for the default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub cols: u16,
}
