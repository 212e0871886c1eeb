//! The values that go in and out of the core.

use std::collections::BTreeMap;
use std::sync::Arc;

use proffer_types::command::Ack;
use proffer_types::{
    AgentId, AttributeValue, ClusterId, Epoch, ExecutorId, FrameworkId, FrameworkInfo, LaunchId, OfferId,
    RequestId, Resources, Role, SessionId, Status, TaskId, TaskLaunch, TaskSpec,
};

/// One attempt to open an event stream at one master.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct DialId(pub u64);

/// One call of the author, for as long as it is open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// What a Subscribe says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscribe {
    /// What the framework says of itself.
    pub info: FrameworkInfo,
    /// An existing framework.
    pub framework: Option<FrameworkId>,
    /// The session to resume.
    pub session: Option<SessionId>,
    /// The same in repetitions, so that a lost answer makes no second framework.
    pub origin: RequestId,
    /// Roles in which no offers are wanted now.
    pub suppressed: Vec<Role>,
}

/// What every call carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The framework.
    pub framework: FrameworkId,
    /// Its session.
    pub session: SessionId,
    /// Counts the session's protected calls from 1; 0 for calls that may be repeated freely.
    pub seq: u64,
    /// All calls below this are answered.
    pub done_below: u64,
}

/// Offers of one agent and one role, and what to do with them, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// The offers.
    pub offers: Vec<OfferId>,
    /// What to do.
    pub operations: Vec<Operation>,
}

/// What to do with offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Launch tasks, each for itself.
    Launch(Launch),
    /// Launch tasks that start together or not at all, and end together.
    LaunchGroup(Vec<Member>),
}

impl Operation {
    /// The tasks with what they run, in the order of their outcomes.
    pub fn tasks(&self) -> impl Iterator<Item = (&Arc<TaskSpec>, &TaskLaunch)> + '_ {
        let (launch, members) = match self {
            Self::Launch(launch) => (Some(launch), &[][..]),
            Self::LaunchGroup(members) => (None, members.as_slice()),
        };
        let alone = launch.into_iter().flat_map(|l| l.tasks.iter().map(move |task| (&l.spec, task)));
        alone.chain(members.iter().map(|member| (&member.spec, &member.task)))
    }
}

/// One task of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// What it runs.
    pub spec: Arc<TaskSpec>,
    /// The task.
    pub task: TaskLaunch,
}

/// One spec × N tasks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// What all of them run.
    pub spec: Arc<TaskSpec>,
    /// The tasks.
    pub tasks: Vec<TaskLaunch>,
}

/// What is asked of the leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Use offers.
    Accept {
        /// One part per agent and role.
        parts: Vec<Part>,
        /// Nothing at all if anything is refused.
        atomic: bool,
        /// How long what is not used is not offered again (milliseconds); `None` for the master's default.
        filter_ms: Option<u64>,
    },
    /// Give offers back.
    Decline {
        /// Which.
        offers: Vec<OfferId>,
        /// How long what they hold is not offered again (milliseconds); `None` for the master's default.
        filter_ms: Option<u64>,
    },
    /// No offers in these roles (empty: all) for now.
    Suppress(Vec<Role>),
    /// Offers again in these roles (empty: all), without filters.
    Revive(Vec<Role>),
    /// End a task.
    Kill {
        /// Which.
        task: TaskId,
        /// Grace instead of the task's own (milliseconds).
        grace_ms: Option<u64>,
    },
    /// End an executor, and with it its tasks.
    ShutdownExecutor {
        /// Where it is.
        agent: AgentId,
        /// Which.
        executor: ExecutorId,
    },
    /// Send bytes to an executor. Never repeated: at most once.
    SendMessage {
        /// Where it is.
        agent: AgentId,
        /// To which.
        executor: ExecutorId,
        /// The bytes.
        data: Vec<u8>,
    },
    /// Say something else of the framework.
    UpdateFramework(FrameworkInfo),
    /// Statuses were seen. The core makes these by itself.
    Acknowledge(Vec<Ack>),
    /// Tell the newest status of these tasks (empty: all).
    Reconcile(Vec<TaskId>),
    /// End the framework and all its tasks.
    Teardown,
}

impl Request {
    /// Whether executing it twice could do harm, so that it needs a sequence number.
    pub(super) fn is_protected(&self) -> bool {
        match self {
            Self::Accept { .. }
            | Self::Kill { .. }
            | Self::ShutdownExecutor { .. }
            | Self::UpdateFramework(_)
            | Self::Teardown => true,
            Self::SendMessage { .. }
            | Self::Decline { .. }
            | Self::Suppress(_)
            | Self::Revive(_)
            | Self::Acknowledge(_)
            | Self::Reconcile(_) => false,
        }
    }
}

/// The leader's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// It is done; the log index at which it took effect, 0 for calls that are not logged.
    Done {
        /// The index.
        index: u64,
    },
    /// What became of an Accept.
    Accepted(Accepted),
}

/// What became of an Accept that was not refused as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accepted {
    /// The log index at which it took effect.
    pub index: u64,
    /// Per part, per operation, per task.
    pub parts: Vec<Vec<Vec<Result<LaunchId, RefusedTask>>>>,
}

impl Accepted {
    /// All tasks' outcomes, in the order in which the tasks were given.
    pub fn tasks(&self) -> impl Iterator<Item = &Result<LaunchId, RefusedTask>> {
        self.parts.iter().flatten().flatten()
    }
}

/// Why one task was refused. It left no record, and no update will come.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct RefusedTask {
    /// A word such as `TASK_ID_IN_USE`.
    pub reason: String,
    /// For people.
    pub message: String,
}

/// A decided refusal of a whole call: repeating it would be refused again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}{}{}", if reason.is_empty() { "" } else { " " }, if reason.is_empty() { String::new() } else { format!("({reason})") })]
pub struct Refused {
    /// What sort of refusal.
    pub kind: RefusedKind,
    /// A word such as `INVALID_OFFER`; may be empty.
    pub reason: String,
    /// For people.
    pub message: String,
}

/// Sorts of refusals, one per status code that means "decided".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedKind {
    /// A field is wrong.
    Invalid,
    /// No such object.
    NotFound,
    /// The name is in use.
    AlreadyExists,
    /// The object is not in the state that the call needs.
    Precondition,
    /// Not allowed.
    Denied,
    /// This version cannot do it.
    Unimplemented,
    /// The message or a number is over its limit.
    OutOfRange,
}

/// Why a call or a stream failed, as far as the core needs to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The connection, or something on the way: nobody knows whether the call was executed.
    Transport(String),
    /// That master does not lead.
    NotLeader {
        /// Who does, if that master knows.
        leader: Option<String>,
    },
    /// The leader was lost while the call was on its way through the log: repeat it.
    OutcomeUnknown,
    /// A later session of the framework exists.
    Fenced,
    /// The framework is completed.
    Completed(String),
    /// The stream fell behind: subscribe again.
    Resync,
    /// Too busy.
    Busy {
        /// When to come back (milliseconds).
        retry_after_ms: u64,
    },
    /// Decided: the author must be told.
    Refused(Refused),
}

/// What a master says on the event stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// The subscription is open.
    Subscribed {
        /// The framework.
        framework: FrameworkId,
        /// The session for all calls.
        session: SessionId,
        /// Time between heartbeats (milliseconds).
        heartbeat_ms: u64,
        /// The cluster.
        cluster: ClusterId,
        /// The leadership.
        epoch: Epoch,
        /// The highest stored seq of the session.
        last_seq: u64,
    },
    /// Some of the framework's tasks.
    Snapshot(Vec<SnapshotTask>),
    /// All tasks were told.
    SnapshotEnd {
        /// The log index of the snapshot.
        index: u64,
    },
    /// New offers.
    Offers(Vec<Offer>),
    /// Offers that are no more.
    Rescind(Vec<OfferId>),
    /// A task's new status, to be acknowledged.
    Update(Update),
    /// An answer to Reconcile; no status if there is no such task.
    Reconciled {
        /// The task.
        task: TaskId,
        /// What is known of it.
        update: Option<Update>,
    },
    /// An agent is out of contact, or removed.
    AgentLost {
        /// Which.
        agent: AgentId,
        /// Whether it is removed for good.
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
        data: Vec<u8>,
    },
    /// Nothing happened.
    Heartbeat,
    /// The subscription ends.
    End(Failure),
}

/// A task in a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotTask {
    /// The task.
    pub view: TaskView,
    /// Whether its statuses will come (again) as updates.
    pub unacknowledged: bool,
}

/// A status on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    /// The launch.
    pub launch: LaunchId,
    /// The task.
    pub task: TaskId,
    /// Where.
    pub agent: AgentId,
    /// The status.
    pub status: Status,
}

/// A task as its framework knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskView {
    /// The launch.
    pub launch: LaunchId,
    /// The framework's name for it.
    pub task: TaskId,
    /// Where it runs.
    pub agent: AgentId,
    /// In which role; `None` while only an update told of the task.
    pub role: Option<Role>,
    /// What it holds; `None` while only an update told of the task.
    pub resources: Option<Resources>,
    /// Its status.
    pub status: Status,
}

/// An offer: resources of one agent, in one role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Its id.
    pub id: OfferId,
    /// Whose resources.
    pub agent: AgentId,
    /// In which role.
    pub role: Role,
    /// What.
    pub resources: Resources,
    /// The agent's host.
    pub hostname: String,
    /// The agent's facts.
    pub attributes: BTreeMap<String, AttributeValue>,
}

/// What the author is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The subscription is open, for the first time or again.
    Subscribed {
        /// The framework.
        framework: FrameworkId,
        /// Its session.
        session: SessionId,
        /// The cluster.
        cluster: ClusterId,
        /// Whether this session was open before.
        resumed: bool,
    },
    /// The tasks are as the leader knows them. Statuses that were never acknowledged follow as updates.
    Synced {
        /// Tasks that are new or differ from what was known.
        changed: Vec<TaskView>,
        /// Tasks that the leader retains no more, as they were last known.
        gone: Vec<TaskView>,
    },
    /// New offers.
    Offers(Vec<Offer>),
    /// Offers that are no more.
    Rescinded(Vec<OfferId>),
    /// A task's new status. Acknowledged when the author asks for the next event.
    Update(TaskView),
    /// An answer to `reconcile`: what is known of the task, or that it is not known.
    Reconciled {
        /// The task.
        task: TaskId,
        /// What is known.
        view: Option<TaskView>,
    },
    /// An agent with tasks of the framework is out of contact, or removed.
    AgentLost {
        /// Which.
        agent: AgentId,
        /// Whether it is removed for good.
        removed: bool,
    },
    /// An executor of the framework has ended. Told at most once: what counts are the statuses of its tasks.
    ExecutorEnded {
        /// Where it was.
        agent: AgentId,
        /// Which.
        executor: ExecutorId,
        /// How.
        status: Box<Status>,
    },
    /// Bytes from an executor. Best effort.
    Message {
        /// Where it is.
        agent: AgentId,
        /// From which.
        executor: ExecutorId,
        /// The bytes.
        data: Vec<u8>,
    },
    /// The connection to the leader is lost; calls wait until there is one again. All offers are void.
    Disconnected,
}

/// Why the subscription is over for good.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    /// Somebody else opened a later session of the framework.
    #[error("another instance of this framework has taken over (SESSION_FENCED): this one must stop")]
    Fenced,
    /// The framework is completed.
    #[error("the framework is completed: {0}")]
    Completed(String),
    /// The subscription was refused.
    #[error("the subscription was refused: {0}")]
    Refused(#[source] Refused),
    /// `teardown` was called.
    #[error("the framework was torn down")]
    TornDown,
    /// The last handle was dropped.
    #[error("the connection was closed by this process")]
    Closed,
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The leader decided against it.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// There is no subscription any more. Whether the call was executed is not known.
    #[error("the subscription is over: {0}")]
    Ended(#[source] Ended),
    /// The leader was lost before it answered, and the call is none that is repeated. Whether it was executed is not
    /// known.
    #[error("the leader was lost before it answered")]
    Lost,
}

/// What the driver must do.
#[allow(clippy::large_enum_variant, reason = "each is moved once, and most are the large one")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Open an event stream.
    Dial {
        /// The attempt; all that comes of it carries this.
        dial: DialId,
        /// Where, `host:port`.
        master: String,
        /// What to say.
        subscribe: Box<Subscribe>,
    },
    /// Drop an event stream, or the attempt.
    Hang {
        /// Which.
        dial: DialId,
    },
    /// Drop connections to a master: it is under suspicion.
    Forget {
        /// Which.
        master: String,
    },
    /// Make a call.
    Send {
        /// The subscription on whose behalf.
        dial: DialId,
        /// Where, `host:port`.
        master: String,
        /// The call.
        ticket: Ticket,
        /// Its header.
        header: Header,
        /// What is asked.
        request: Arc<Request>,
    },
    /// A call of the author is over.
    Answer {
        /// Which.
        ticket: Ticket,
        /// How.
        result: Result<Reply, CallError>,
    },
    /// Hand this to the author; then call [`super::Core::handed`] if there is something to acknowledge.
    Deliver {
        /// What.
        event: Event,
        /// The status that it carries, if that wants an acknowledgement.
        ack: Option<Ack>,
    },
    /// It is over: nothing will follow.
    End(Ended),
}
