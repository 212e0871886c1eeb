//! What became true by applying one entry: all that the leader's mind needs to know.

use proffer_types::command::{Answer, CompletionReason, Rejection};
use proffer_types::{
    AgentId, ExecutorId, FrameworkId, LaunchId, RequestId, Resources, Role, SessionId, Status, TaskState,
};

/// One thing that became true.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The command changed nothing.
    Rejected {
        /// Why.
        rejection: Rejection,
    },
    /// The cluster has an id.
    Formed,
    /// An agent was registered, or its registration was repeated.
    AgentRegistered {
        /// Its id.
        agent: AgentId,
        /// Whether the record was there before.
        repeated: bool,
    },
    /// An agent's session is open under a new attachment number (see the record). What it must be sent now is in
    /// [`crate::Registry::orders_for`]; statuses that changed by the attachment follow as [`Change::StatusChanged`].
    AgentAttached {
        /// Which agent.
        agent: AgentId,
        /// Its new attachment number.
        attachment: u64,
        /// Launches the agent holds which it must end (if they run) and forget: no offers of it until it has.
        forget: Vec<LaunchId>,
        /// Launches whose newest status is committed already: the agent may drop them up to this `task_seq`.
        confirm: Vec<(LaunchId, u32)>,
        /// Whether the agent's total resources or attributes differ from before.
        info_changed: bool,
        /// Whether it was unreachable.
        returned: bool,
    },
    /// An agent is unreachable now.
    AgentUnreachable {
        /// Which.
        agent: AgentId,
    },
    /// An agent has no record any more.
    AgentRemoved {
        /// Which.
        agent: AgentId,
    },
    /// A framework is known; follows from the first session.
    FrameworkAdded {
        /// Which.
        framework: FrameworkId,
    },
    /// A framework's session was opened (or the same Subscribe repeated): older sessions are fenced.
    SessionOpened {
        /// Which framework.
        framework: FrameworkId,
        /// The session.
        session: SessionId,
        /// The random number of the Subscribe.
        origin: RequestId,
    },
    /// A framework counts as connected again.
    FrameworkReconnected {
        /// Which.
        framework: FrameworkId,
    },
    /// A framework's failover timeout runs.
    FrameworkDisconnected {
        /// Which.
        framework: FrameworkId,
    },
    /// A framework is completed; its live tasks have kill orders now (each told by [`Change::KillOrdered`]).
    FrameworkCompleted {
        /// Which.
        framework: FrameworkId,
        /// Why.
        reason: CompletionReason,
    },
    /// A framework says something else of itself; its roles may have changed, and if it is disconnected its deadline.
    FrameworkUpdated {
        /// Which.
        framework: FrameworkId,
    },
    /// A framework's record is gone.
    FrameworkForgotten {
        /// Which.
        framework: FrameworkId,
    },
    /// A call took effect, was refused, or its stored answer was found.
    Answered {
        /// The answer.
        answer: Answer,
        /// Whether it was stored before: nothing happened now.
        repeated: bool,
    },
    /// A task or an executor exists; its resources are used from now on.
    TaskLaunched {
        /// The launch.
        launch: LaunchId,
        /// Whose.
        framework: FrameworkId,
        /// In which role.
        role: Role,
        /// Where.
        agent: AgentId,
        /// What it holds.
        resources: Resources,
    },
    /// A task has a kill order, new or with a shorter grace, under a new number of its agent.
    KillOrdered {
        /// The launch.
        launch: LaunchId,
        /// Where.
        agent: AgentId,
    },
    /// A task has a new status, which its framework must see and acknowledge; or an executor, of which it must not.
    StatusChanged {
        /// The launch.
        launch: LaunchId,
        /// Whose.
        framework: FrameworkId,
        /// Where.
        agent: AgentId,
        /// The state before.
        from: TaskState,
        /// The status.
        status: Status,
    },
    /// An agent's status is committed (or was before): the agent may forget it, and the launch with a terminal one.
    StatusConfirmed {
        /// The launch.
        launch: LaunchId,
        /// Where.
        agent: AgentId,
        /// Up to which of the agent's statuses.
        task_seq: u32,
    },
    /// A task ended for good: its resources are free from now on. Comes once per launch, after its
    /// [`Change::StatusChanged`].
    ResourcesReturned {
        /// The launch.
        launch: LaunchId,
        /// Whose.
        framework: FrameworkId,
        /// In which role.
        role: Role,
        /// Where.
        agent: AgentId,
        /// What it held.
        resources: Resources,
    },
    /// An executor ended for good. Comes once per executor, after its [`Change::StatusChanged`].
    ExecutorEnded {
        /// Its launch.
        launch: LaunchId,
        /// Its name.
        executor: ExecutorId,
        /// Whose.
        framework: FrameworkId,
        /// Where.
        agent: AgentId,
        /// How.
        status: Status,
    },
    /// A framework acknowledged up to here; what is pending still is in the record.
    Acknowledged {
        /// The launch.
        launch: LaunchId,
        /// Whose.
        framework: FrameworkId,
    },
    /// A task's record went to the history: it is terminal and acknowledged.
    TaskRetired {
        /// The launch.
        launch: LaunchId,
        /// Whose.
        framework: FrameworkId,
    },
}
