//! What the leader tells frameworks and agents, and what agents tell the leader, without a protocol around it.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::command::{Answer, Held, Refusal, Rejection};
use crate::{
    AgentId, AgentInfo, BootId, ClusterId, Denied, Epoch, ExecutorId, FrameworkId, LaunchId, Offer, OfferId,
    Reason, RequestId, Resources, Role, SessionId, Status, TaskId, TaskSpec, TaskState,
};

/// To a framework, on its event stream.
#[derive(Clone, Debug, PartialEq)]
pub enum FrameworkEvent {
    /// The subscription is open; the framework's tasks follow as a snapshot, which whoever serves the stream reads
    /// from the registry as it is now.
    Subscribed {
        /// The framework.
        framework: FrameworkId,
        /// Its session.
        session: SessionId,
        /// The highest sequence number that the session is known to have used; 0 for none.
        last_seq: u64,
    },
    /// New offers.
    Offers(Vec<Offer>),
    /// Offers that are no more.
    Rescind(Vec<OfferId>),
    /// A task's status.
    Update(Update),
    /// An agent with tasks of the framework is out of contact, or gone for good.
    Failure {
        /// Which.
        agent: AgentId,
        /// Gone for good.
        removed: bool,
    },
    /// An executor of the framework has ended.
    ExecutorEnded {
        /// Where it was.
        agent: AgentId,
        /// Which.
        executor: ExecutorId,
        /// How.
        status: Box<Status>,
    },
    /// Bytes from an executor; may be lost.
    Message {
        /// Where it is.
        agent: AgentId,
        /// Which.
        executor: ExecutorId,
        /// The bytes.
        data: Vec<u8>,
    },
    /// The subscription ends.
    Error(StreamEnd),
    /// Nothing happened for a while.
    Heartbeat,
}

/// A task's status on its way to the framework.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    /// The launch; `None` in the answer to a reconciliation of an unknown task.
    pub launch: Option<LaunchId>,
    /// The task.
    pub task_id: TaskId,
    /// Where it runs.
    pub agent: AgentId,
    /// The status; `None`: no such task.
    pub status: Option<Status>,
    /// Whether it must be acknowledged.
    pub acknowledge: bool,
}

/// Why a stream ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StreamEnd {
    /// A later session of the framework exists. Final.
    SessionFenced,
    /// The same session was resumed on another connection.
    Replaced,
    /// The framework is completed. Final.
    FrameworkCompleted,
    /// This master does not lead (any more).
    NotLeader,
    /// The reader was too slow, or the state was replaced: subscribe again.
    Resync,
    /// Nothing was heard of the agent for its ping budget.
    Silent,
}

impl StreamEnd {
    /// The word in the protocol.
    pub fn code(self) -> &'static str {
        match self {
            Self::SessionFenced => "SESSION_FENCED",
            Self::Replaced => "REPLACED",
            Self::FrameworkCompleted => "FRAMEWORK_COMPLETED",
            Self::NotLeader => "NOT_LEADER",
            Self::Resync => "RESYNC",
            Self::Silent => "SILENT",
        }
    }
}

/// To an agent, on its session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentOrder {
    /// The session is open, or the agent has an id now.
    Welcome {
        /// The agent's id.
        agent: AgentId,
        /// The cluster.
        cluster: ClusterId,
        /// Time between pings (milliseconds).
        ping_ms: u64,
        /// Spread the next session's opening over this (milliseconds).
        reattach_spread_ms: u64,
        /// The last launch or kill that counts as seen.
        last_seq: u64,
    },
    /// List everything held.
    SendListing,
    /// Start a task, or an executor.
    Launch(Box<LaunchOrder>),
    /// Start these tasks of one [`Group`], all or none, if they are all there are in it: otherwise none of those that
    /// have not started may. They come in one message.
    LaunchGroup(Vec<LaunchOrder>),
    /// End a task.
    Kill {
        /// The order's number.
        agent_seq: u64,
        /// The launch.
        launch: LaunchId,
        /// Time between SIGTERM and SIGKILL (milliseconds).
        grace_ms: u64,
        /// What the final status gives as the reason.
        reason: Reason,
    },
    /// Statuses up to here are committed.
    Confirm {
        /// The launch.
        launch: LaunchId,
        /// Up to which.
        task_seq: u32,
    },
    /// End a launch if it runs, and forget it without a status.
    Forget {
        /// The launch.
        launch: LaunchId,
    },
    /// Bytes for an executor; lost if it cannot take them.
    Message {
        /// The executor's launch.
        launch: LaunchId,
        /// The bytes.
        data: Vec<u8>,
    },
    /// Say something.
    Ping {
        /// Counts.
        n: u64,
    },
    /// Open a connection for bulk data.
    OpenData {
        /// Names the request.
        ticket: [u8; 16],
        /// For whom.
        principal: String,
        /// What it is good for.
        action: DataAction,
        /// Which launch; 0 for the whole agent.
        launch: LaunchId,
        /// Void after this (milliseconds).
        expires_ms: u64,
    },
    /// The session cannot be.
    Refused(AgentRefusal),
}

named_enum!(
    /// What a data connection between an agent and a master is for.
    DataAction {
        /// A task's output is read.
        ReadLogs = 1 "read_logs",
        /// A program is run in a task's container.
        Exec = 2 "exec",
        /// A task is joined.
        Attach = 3 "attach",
        /// Files of a sandbox are listed or read.
        ReadFiles = 4 "read_files",
        /// Files are put into a sandbox.
        WriteFiles = 5 "write_files",
        /// What the agent's tasks use is measured.
        WatchUsage = 6 "watch_usage",
    }
);

/// Why an agent's session cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AgentRefusal {
    /// It has no record: it must end everything and register anew.
    UnknownAgent,
    /// Its record belongs to another installation.
    WrongInstance,
    /// It belongs to another cluster.
    WrongCluster,
}

impl AgentRefusal {
    /// The word in the protocol.
    pub fn code(self) -> &'static str {
        match self {
            Self::UnknownAgent => "UNKNOWN_AGENT",
            Self::WrongInstance => "WRONG_INSTANCE",
            Self::WrongCluster => "WRONG_CLUSTER",
        }
    }
}

/// Everything an agent needs to start a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaunchOrder {
    /// The order's number.
    pub agent_seq: u64,
    /// The launch.
    pub launch: LaunchId,
    /// Whose.
    pub framework: FrameworkId,
    /// The framework's name for it.
    pub task_id: TaskId,
    /// In which role.
    pub role: Role,
    /// What it runs; the user is the spec's, or the framework's if that is empty.
    pub spec: Arc<TaskSpec>,
    /// The framework's user, for a spec without one.
    pub framework_user: String,
    /// What it holds.
    pub resources: Resources,
    /// Added to the spec's environment.
    pub env: BTreeMap<String, String>,
    /// Its place in an array, from 1, and the array's size.
    pub array: Option<(u32, u32)>,
    /// The group that it starts and ends with. All orders of a group are sent together.
    pub group: Option<Group>,
    /// What sort of launch it is.
    pub kind: LaunchKind,
}

/// Tasks that start together or not at all, and end together. Their launches and the numbers of their orders follow
/// one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Group {
    /// The launch of its first member; the others' follow by one each.
    pub first: LaunchId,
    /// How many members it has.
    pub size: u32,
}

/// Puts the launches of each group, which follow one another, together.
pub fn grouped(orders: impl IntoIterator<Item = AgentOrder>) -> Vec<AgentOrder> {
    let mut all = Vec::new();
    for order in orders {
        match order {
            AgentOrder::Launch(launch) if launch.group.is_some() => match all.last_mut() {
                Some(AgentOrder::LaunchGroup(before)) if before[0].group == launch.group => {
                    before.push(*launch)
                }
                _ => all.push(AgentOrder::LaunchGroup(vec![*launch])),
            },
            other => all.push(other),
        }
    }
    all
}

impl Group {
    /// The launches of its members.
    pub fn launches(self) -> impl Iterator<Item = LaunchId> {
        (self.first.0..self.first.0.saturating_add(self.size.into())).map(LaunchId)
    }
}

/// What sort of launch it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum LaunchKind {
    /// Runs the spec's command.
    #[default]
    Task,
    /// Runs the spec's command as an executor, to which tasks are handed.
    Executor(ExecutorId),
    /// Hands the task to the executor that this launch runs, on the same agent.
    TaskOf(LaunchId),
}

/// From an agent, on its session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentReport {
    /// Opens the session.
    Hello(Box<Hello>),
    /// Everything held, sorted by launch.
    Listing(Vec<Held>),
    /// A new status.
    Status {
        /// The launch.
        launch: LaunchId,
        /// The status.
        status: Status,
    },
    /// Answer to a ping.
    Pong {
        /// The ping's number.
        n: u64,
    },
    /// Launches it was told to forget, of which nothing is left.
    Cleaned(Vec<LaunchId>),
    /// Bytes from an executor for its framework; may be lost.
    Message {
        /// The executor's launch.
        launch: LaunchId,
        /// The bytes.
        data: Vec<u8>,
    },
}

/// How an agent opens its session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Its id, if it has one.
    pub agent: Option<AgentId>,
    /// Random, of this installation.
    pub instance: RequestId,
    /// What the node offers.
    pub info: AgentInfo,
    /// The life of its host.
    pub boot_id: BootId,
    /// The last launch or kill it has seen.
    pub last_seq: u64,
    /// Hash of its sorted (launch, newest task_seq).
    pub digest: u64,
    /// The greatest leadership it has seen.
    pub epoch_seen: Epoch,
    /// The cluster it belongs to, if any yet.
    pub cluster: Option<ClusterId>,
}

/// What a unary call is answered with.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// A call took effect whose answer is stored; an Accept's has outcomes.
    Accepted(Answer),
    /// The call took effect.
    Done {
        /// At this log index; for calls that leave no entry, the index applied.
        index: u64,
    },
}

impl Reply {
    /// The log index at which the call took effect.
    pub fn index(&self) -> u64 {
        match self {
            Self::Accepted(answer) => answer.index,
            Self::Done { index } => *index,
        }
    }
}

/// Why a call is refused, or has no answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refused {
    /// This master does not lead.
    #[error("this master is not the leader{}", leader.as_ref().map(|l| format!("; {l} is")).unwrap_or_default())]
    NotLeader {
        /// Who does, if known.
        leader: Option<String>,
    },
    /// The leader was lost before the outcome was known: repeat with the same sequence number.
    #[error("the outcome is not known: repeat the call with the same seq")]
    OutcomeUnknown,
    /// Too much waits.
    #[error("the master is busy: try again in {retry_ms} ms")]
    Busy {
        /// When to try again (milliseconds).
        retry_ms: u64,
    },
    /// An offer that does not exist, or not for this framework.
    #[error("offer {} is not valid: {why}", offer.n)]
    InvalidOffer {
        /// Which.
        offer: OfferId,
        /// Why.
        why: &'static str,
    },
    /// A field that contradicts another.
    #[error("{field}: {reason}")]
    Invalid {
        /// Its path.
        field: String,
        /// What is wrong.
        reason: String,
    },
    /// The state says no.
    #[error("{0}")]
    Rejected(Rejection),
    /// Nothing of an atomic Accept happened, because of some of its tasks.
    #[error(
        "nothing of the atomic call happened: its task {task} (counted from 0 over all operations) was refused: {}{}",
        refusal.text(),
        if *more > 0 { format!("; and {more} more") } else { String::new() }
    )]
    Atomic {
        /// The first that was refused for a reason of its own.
        task: usize,
        /// Why.
        refusal: Refusal,
        /// How many others were.
        more: usize,
    },
    /// The caller may not.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// Only in a running task can anything be done.
    #[error("the task does not run: it is {state}")]
    TaskNotRunning {
        /// Its state.
        state: TaskState,
    },
    /// The agent cannot be asked.
    #[error("the task's agent is out of contact: try again when it is back")]
    AgentUnreachable {
        /// Which.
        agent: AgentId,
    },
    /// Nothing of this name.
    #[error("{what} not found")]
    NotFound {
        /// What.
        what: String,
    },
}
