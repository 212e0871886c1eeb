//! What the cluster agrees on: the entries of the replicated log.
//!
//! A command is validated completely before it is proposed, and rechecked when it is applied. Times, random numbers
//! and the caller are fields; minted ids come from the replicated counter as the command is applied, so that every
//! replica mints the same and none is ever skipped or doubled by a lost proposal.

use std::sync::Arc;

use crate::caller::Caller;
use crate::{
    AgentId, AgentInfo, BootId, ClusterId, ClusterTime, ExecutorId, FrameworkId, FrameworkInfo, LaunchId,
    MasterId, Reason, RequestId, Resources, Role, SessionId, Status, TaskId, TaskLaunch, TaskSpec,
};

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The term of the leader that proposed it. An entry of another term is rejected as it is applied.
    pub term: u64,
    /// The leader's cluster time.
    pub time: ClusterTime,
    /// The leader's wall clock, for display only (milliseconds since 1970).
    pub wall_ms: u64,
    /// Who asked for it.
    pub caller: Caller,
    /// What shall become true.
    pub command: Command,
}

/// What a framework's mutating call carries, so that its repetition is answered and not executed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CallId {
    /// The framework.
    pub framework: FrameworkId,
    /// Its session.
    pub session: SessionId,
    /// Counts the session's calls from 1; 0 means no protection against repetition.
    pub seq: u64,
    /// The client has seen the answers of all calls below this.
    pub done_below: u64,
    /// Hash of the call's content: the same `seq` with another hash is refused.
    pub content: u64,
}

/// What an operator's mutating call carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct AdminId {
    /// Random.
    pub request: RequestId,
    /// The cluster time of any answer the operator's client got.
    pub time: ClusterTime,
}

/// One agent's part of an Accept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceptPart {
    /// The agent whose offers the part uses.
    pub agent: AgentId,
    /// The role of the offers.
    pub role: Role,
    /// What the offers hold together: the part may not use more.
    pub offered: Resources,
    /// What to do, in order, each against what the ones before have left.
    pub operations: Vec<Operation>,
}

/// What to do with offered resources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Launch tasks of one spec, each for itself.
    Launch(Launch),
    /// Launch tasks that start together or not at all, and end together.
    LaunchGroup(Vec<Member>),
}

impl Operation {
    /// The tasks with what they run, in the order of their outcomes.
    pub fn tasks(&self) -> impl Iterator<Item = (&Arc<TaskSpec>, &Result<TaskLaunch, Refusal>)> + '_ {
        let (launch, members) = match self {
            Self::Launch(launch) => (Some(launch), &[][..]),
            Self::LaunchGroup(members) => (None, members.as_slice()),
        };
        let alone = launch.into_iter().flat_map(|l| l.tasks.iter().map(move |task| (&l.spec, task)));
        alone.chain(members.iter().map(|member| (&member.spec, &member.task)))
    }
}

/// One spec × N tasks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// What all of them run.
    pub spec: Arc<TaskSpec>,
    /// The tasks; one that was refused before the proposal keeps its place so that outcomes line up.
    pub tasks: Vec<Result<TaskLaunch, Refusal>>,
}

/// One task of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// What it runs.
    pub spec: Arc<TaskSpec>,
    /// The task, or why it was refused before the proposal.
    pub task: Result<TaskLaunch, Refusal>,
}

/// Why one task of an Accept was refused. A refused task leaves no record and no update.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Refusal {
    /// The task id is no valid name.
    InvalidTaskId = 1,
    /// A retained task of the framework has this id.
    TaskIdInUse = 2,
    /// The spec or the task's own fields are invalid.
    InvalidSpec = 3,
    /// The offers do not hold that much any more.
    NotOffered = 4,
    /// The agent has less free than the offer promised, or is not reachable.
    AgentUnavailable = 5,
    /// The framework has as many tasks or specs as it may.
    LimitReached = 6,
    /// The agent does not know a feature that the spec needs.
    FeatureUnknown = 7,
    /// Another task of the same `atomic` Accept was refused.
    Atomic = 8,
    /// Another task of the same group was refused.
    Group = 9,
    /// On the agent is an executor of this name with another description.
    ExecutorDiffers = 10,
}

impl Refusal {
    /// Every refusal.
    pub const ALL: [Self; 10] = [
        Self::InvalidTaskId,
        Self::TaskIdInUse,
        Self::InvalidSpec,
        Self::NotOffered,
        Self::AgentUnavailable,
        Self::LimitReached,
        Self::FeatureUnknown,
        Self::Atomic,
        Self::Group,
        Self::ExecutorDiffers,
    ];

    /// The number in the protocol and in the log; never reused.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// The refusal with this number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|r| r.number() == number)
    }

    /// For people.
    pub fn text(self) -> &'static str {
        match self {
            Self::InvalidTaskId => "the task id is not a valid name",
            Self::TaskIdInUse => "a task of this framework has this id already",
            Self::InvalidSpec => "the description is invalid",
            Self::NotOffered => "the offers do not hold that much",
            Self::AgentUnavailable => "the agent is not available any more",
            Self::LimitReached => "the framework has as many tasks or specs as it may",
            Self::FeatureUnknown => "the agent does not know a feature that the task needs",
            Self::Atomic => "another part of the same atomic call was refused",
            Self::Group => "another task of the same group was refused",
            Self::ExecutorDiffers => {
                "the framework has an executor of this name, described differently, on the agent"
            }
        }
    }
}

/// A position up to which a framework has seen the statuses of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ack {
    /// The launch.
    pub launch: LaunchId,
    /// The status's `master_seq`.
    pub master_seq: u32,
    /// The status's `task_seq`.
    pub task_seq: u32,
}

/// What an agent holds of one launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The launch.
    pub launch: LaunchId,
    /// Its newest status.
    pub status: Status,
}

/// How an agent opens its session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attach {
    /// Which agent.
    pub agent: AgentId,
    /// Its instance number, which must be the registered one.
    pub instance: RequestId,
    /// What it says of itself now.
    pub info: AgentInfo,
    /// The life of its host.
    pub boot_id: BootId,
    /// The last launch or kill it has seen.
    pub last_seq: u64,
    /// Hash of its sorted (launch id, newest task_seq).
    pub digest: u64,
    /// What it holds, sorted by launch; `None` if the digest shall be enough.
    pub held: Option<Vec<Held>>,
}

/// Why a framework is completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum CompletionReason {
    /// It asked for it.
    Teardown = 1,
    /// An operator asked for it.
    TeardownByOperator = 2,
    /// It was away for longer than its failover timeout.
    FailoverTimeout = 3,
    /// All its tasks had ended, and it had asked to end with them.
    EndsWithTasks = 4,
}

impl CompletionReason {
    /// Every reason.
    pub const ALL: [Self; 4] =
        [Self::Teardown, Self::TeardownByOperator, Self::FailoverTimeout, Self::EndsWithTasks];

    /// For people, and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Teardown => "teardown",
            Self::TeardownByOperator => "teardown_by_operator",
            Self::FailoverTimeout => "failover_timeout",
            Self::EndsWithTasks => "ends_with_tasks",
        }
    }
}

/// What shall become true.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// The cluster begins: its id and founding masters. Rejected once there is an id.
    Form {
        /// The cluster's id.
        cluster: ClusterId,
        /// The masters and their addresses.
        masters: Vec<(MasterId, String)>,
    },
    /// Time goes on; nothing else.
    Tick,
    /// A new agent, or the repetition of its registration.
    RegisterAgent {
        /// Its random number, by which a repetition is recognised.
        instance: RequestId,
        /// What it says of itself.
        info: AgentInfo,
        /// The life of its host.
        boot_id: BootId,
    },
    /// An agent opens its session; differences between it and the record are resolved.
    AttachAgent(Attach),
    /// An agent missed its ping budget.
    MarkUnreachable {
        /// Which.
        agent: AgentId,
        /// The attachment that went silent; a later one makes this void.
        attachment: u64,
    },
    /// An agent is removed, its tasks with it.
    RemoveAgent {
        /// Which.
        agent: AgentId,
    },
    /// A framework begins a session: a new framework if there is no id.
    OpenSession {
        /// An existing framework.
        framework: Option<FrameworkId>,
        /// The random number of this Subscribe; a repetition gets the same session.
        origin: RequestId,
        /// What it says of itself.
        info: FrameworkInfo,
    },
    /// A framework resumed its session while it counted as disconnected.
    Reconnect {
        /// Which.
        framework: FrameworkId,
        /// Its session.
        session: SessionId,
    },
    /// A framework's stream ended: its failover timeout begins.
    Disconnect {
        /// Which.
        framework: FrameworkId,
        /// The session that ended; a later one makes this void.
        session: SessionId,
    },
    /// A framework uses offers.
    Accept {
        /// The call.
        call: CallId,
        /// Whether everything is void if anything is refused.
        atomic: bool,
        /// One part per agent.
        parts: Vec<AcceptPart>,
    },
    /// A framework asks for the end of a task.
    Kill {
        /// The call.
        call: CallId,
        /// Which task.
        task: TaskId,
        /// Grace instead of the task's own (milliseconds).
        grace_ms: Option<u64>,
    },
    /// A framework has seen statuses.
    Acknowledge {
        /// The call.
        call: CallId,
        /// Up to where, per launch.
        acks: Vec<Ack>,
    },
    /// A framework asks for its own end.
    Teardown {
        /// The call.
        call: CallId,
    },
    /// An operator asks for the end of a task.
    AdminKill {
        /// The call.
        call: AdminId,
        /// Whose task.
        framework: FrameworkId,
        /// Which task.
        task: TaskId,
        /// Grace instead of the task's own (milliseconds).
        grace_ms: Option<u64>,
    },
    /// An operator asks for the end of a framework.
    AdminTeardown {
        /// The call.
        call: AdminId,
        /// Which.
        framework: FrameworkId,
    },
    /// The master completes a framework whose time has come.
    Complete {
        /// Which.
        framework: FrameworkId,
        /// The session it had when that was decided; a later one makes this void.
        session: SessionId,
        /// Why.
        reason: CompletionReason,
    },
    /// A framework says something else of itself.
    UpdateFramework {
        /// The call.
        call: CallId,
        /// What it says now; its user is the old one.
        info: FrameworkInfo,
    },
    /// A framework asks for the end of an executor.
    ShutdownExecutor {
        /// The call.
        call: CallId,
        /// Where it is.
        agent: AgentId,
        /// Which.
        executor: ExecutorId,
    },
    /// Statuses from an agent.
    Statuses {
        /// Which agent.
        agent: AgentId,
        /// Its attachment; statuses of an older one are void.
        attachment: u64,
        /// (launch, status), in the agent's order.
        statuses: Vec<(LaunchId, Status)>,
    },
}

/// What a repeated call is answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The log index at which the call took effect.
    pub index: u64,
    /// The call's content hash.
    pub content: u64,
    /// The first launch id that an Accept minted for a task; they follow one another.
    pub first_launch: LaunchId,
    /// For an Accept: per task in order of parts, operations and tasks, `None` if launched. For other calls: empty.
    pub outcomes: Vec<Option<Refusal>>,
    /// Why the call as a whole was refused.
    pub rejected: Option<Rejection>,
}

/// Why a command changed nothing (or, for a call, why it is refused).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Rejection {
    /// The entry's term is not its proposer's.
    WrongTerm = 1,
    /// No such framework.
    UnknownFramework = 2,
    /// The framework is completed.
    FrameworkCompleted = 3,
    /// A later session exists.
    SessionFenced = 4,
    /// No such task.
    UnknownTask = 5,
    /// No such agent.
    UnknownAgent = 6,
    /// The agent's instance number is another.
    WrongInstance = 7,
    /// The agent must list what it holds.
    ListingNeeded = 8,
    /// A later attachment, session or state made it void.
    Stale = 9,
    /// The same sequence number was used with other content.
    ContentDiffers = 10,
    /// The session has as many unanswered calls as it may.
    TooManyOpen = 11,
    /// A repeated admin call is too old to be recognised.
    TooOld = 12,
    /// A field that cannot change would change.
    Immutable = 13,
    /// The cluster has begun already.
    AlreadyFormed = 14,
    /// Part of an `atomic` Accept was refused.
    Atomic = 15,
    /// No such executor.
    UnknownExecutor = 16,
}

impl Rejection {
    /// Every rejection.
    pub const ALL: [Self; 16] = [
        Self::WrongTerm,
        Self::UnknownFramework,
        Self::FrameworkCompleted,
        Self::SessionFenced,
        Self::UnknownTask,
        Self::UnknownAgent,
        Self::WrongInstance,
        Self::ListingNeeded,
        Self::Stale,
        Self::ContentDiffers,
        Self::TooManyOpen,
        Self::TooOld,
        Self::Immutable,
        Self::AlreadyFormed,
        Self::Atomic,
        Self::UnknownExecutor,
    ];

    /// The number in snapshots; never reused.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// The rejection with this number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|r| r.number() == number)
    }
}

/// The reason that kills of a completed framework's tasks carry.
pub const TEARDOWN_REASON: Reason = Reason::FrameworkRemoved;

impl std::fmt::Display for Rejection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::WrongTerm => "the entry is of another term",
            Self::UnknownFramework => "no such framework",
            Self::FrameworkCompleted => {
                "the framework is completed: subscribe without an id to begin a new one"
            }
            Self::SessionFenced => "a later session of this framework exists",
            Self::UnknownTask => "no such task",
            Self::UnknownAgent => "no such agent",
            Self::WrongInstance => "the agent's record belongs to another installation",
            Self::ListingNeeded => "the agent must list what it holds",
            Self::Stale => "something later has made this void",
            Self::ContentDiffers => "this seq was used for a call with other content",
            Self::TooManyOpen => "too many calls of this session are open: raise done_below",
            Self::TooOld => {
                "the request is too old to be told from a repetition: read the state, then decide"
            }
            Self::Immutable => "the framework's user and owner cannot change",
            Self::AlreadyFormed => "the cluster has begun already",
            Self::Atomic => "a part of the atomic call was refused, so nothing happened",
            Self::UnknownExecutor => "no such executor",
        })
    }
}
