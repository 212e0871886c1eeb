//! What someone outside asks of the leader, after the protocol has been parsed.

use crate::command::{Ack, AdminId, CallId, Held, Operation};
use crate::event::Hello;
use crate::{
    AgentId, ExecutorId, FrameworkId, FrameworkInfo, LaunchId, OfferId, RequestId, Role, SessionId, Status,
    TaskId,
};

/// A connection of a framework or an agent to this master, told apart by the shell that owns it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// An answer that the shell waits for, told apart by the shell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplyId(pub u64);

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// A framework wants its event stream on `connection`.
    Subscribe {
        /// The stream.
        connection: ConnectionId,
        /// An existing framework.
        framework: Option<FrameworkId>,
        /// Its session, to resume it; without one a new session begins and fences the old.
        session: Option<SessionId>,
        /// Random, the same in repetitions.
        origin: RequestId,
        /// What the framework says of itself.
        info: FrameworkInfo,
        /// Roles in which it wants no offers for now.
        suppressed: Vec<Role>,
    },
    /// A framework's stream is gone.
    SubscriberGone {
        /// The stream.
        connection: ConnectionId,
    },
    /// Use offers.
    Accept {
        /// The call.
        call: CallId,
        /// All or nothing.
        atomic: bool,
        /// One part per agent.
        parts: Vec<AcceptCallPart>,
        /// How long what is not used is not offered again (milliseconds).
        filter_ms: u64,
    },
    /// Give offers back.
    Decline {
        /// Who.
        framework: FrameworkId,
        /// Its session.
        session: SessionId,
        /// Which; unknown ones are ignored.
        offers: Vec<OfferId>,
        /// How long what they hold is not offered again (milliseconds).
        filter_ms: u64,
    },
    /// No offers in these roles (empty: all) for now.
    Suppress {
        /// Who.
        framework: FrameworkId,
        /// Its session.
        session: SessionId,
        /// Which roles.
        roles: Vec<Role>,
    },
    /// Offers again in these roles (empty: all), without filters.
    Revive {
        /// Who.
        framework: FrameworkId,
        /// Its session.
        session: SessionId,
        /// Which roles.
        roles: Vec<Role>,
    },
    /// End a task.
    Kill {
        /// The call.
        call: CallId,
        /// Which.
        task: TaskId,
        /// Grace instead of the task's own (milliseconds).
        grace_ms: Option<u64>,
    },
    /// Statuses were seen.
    Acknowledge {
        /// The call.
        call: CallId,
        /// Up to where, per launch.
        acks: Vec<Ack>,
    },
    /// Send the newest status of these tasks (empty: all) again.
    Reconcile {
        /// Who.
        framework: FrameworkId,
        /// Its session.
        session: SessionId,
        /// Which tasks.
        tasks: Vec<TaskId>,
    },
    /// End an executor.
    ShutdownExecutor {
        /// The call.
        call: CallId,
        /// Where it is.
        agent: AgentId,
        /// Which.
        executor: ExecutorId,
    },
    /// Bytes for an executor.
    SendMessage {
        /// Who.
        framework: FrameworkId,
        /// Its session.
        session: SessionId,
        /// Where the executor is.
        agent: AgentId,
        /// Which.
        executor: ExecutorId,
        /// The bytes.
        data: Vec<u8>,
    },
    /// Something else to say of the framework.
    UpdateFramework {
        /// The call.
        call: CallId,
        /// What it says now.
        info: FrameworkInfo,
    },
    /// End the framework.
    Teardown {
        /// The call.
        call: CallId,
    },
    /// An operator ends a task.
    AdminKill {
        /// The call.
        call: AdminId,
        /// Whose.
        framework: FrameworkId,
        /// Which.
        task: TaskId,
        /// Grace instead of the task's own (milliseconds).
        grace_ms: Option<u64>,
    },
    /// An operator ends a framework.
    AdminTeardown {
        /// The call.
        call: AdminId,
        /// Which.
        framework: FrameworkId,
    },
    /// An agent opens its session: registers if it has no id, attaches if it has.
    AgentHello {
        /// The stream.
        connection: ConnectionId,
        /// What it brings.
        hello: Box<Hello>,
    },
    /// An agent lists everything it holds, because it was asked.
    AgentListing {
        /// The stream.
        connection: ConnectionId,
        /// Sorted by launch.
        held: Vec<Held>,
    },
    /// An agent's statuses.
    AgentStatuses {
        /// The stream.
        connection: ConnectionId,
        /// (launch, status), in the agent's order.
        statuses: Vec<(LaunchId, Status)>,
    },
    /// An agent answered a ping (or said anything at all).
    AgentAlive {
        /// The stream.
        connection: ConnectionId,
    },
    /// An agent has emptied the containers that it was told to forget.
    AgentCleaned {
        /// The stream.
        connection: ConnectionId,
        /// The launches that are gone.
        launches: Vec<LaunchId>,
    },
    /// An executor's bytes for its framework.
    AgentMessage {
        /// The stream.
        connection: ConnectionId,
        /// The executor's launch.
        launch: LaunchId,
        /// The bytes.
        data: Vec<u8>,
    },
    /// An agent's stream is gone.
    AgentGone {
        /// The stream.
        connection: ConnectionId,
    },
}

/// One agent's part of an Accept call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceptCallPart {
    /// Offers of one agent and one role.
    pub offers: Vec<OfferId>,
    /// What to do with them, in order.
    pub operations: Vec<Operation>,
}
