//! Tasks: what frameworks run.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::container::{Burst, Check, Container, ExecutorSpec, HealthCheck};
use crate::event::{Group, LaunchKind};
use crate::{AgentId, ClusterTime, FrameworkId, LaunchId, Resources, Role, SpecDigest, TaskId, features};

/// What to run and with how much: shared by any number of tasks, identified by its digest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct TaskSpec {
    /// The program and its arguments; the program is looked up in `PATH` if it has no `/`.
    pub argv: Vec<String>,
    /// Added to the environment that every task gets.
    pub env: BTreeMap<String, String>,
    /// The Unix user; empty for the framework's, and `nobody` if that is empty too.
    pub user: String,
    /// What one task holds.
    pub resources: Resources,
    /// Time between SIGTERM and SIGKILL (milliseconds).
    pub kill_grace_ms: u64,
    /// Most processes and threads; 0 for the default.
    pub pids_max: u64,
    /// Features an agent must know to run this (see [`crate::AgentInfo::features`]), sorted.
    pub needs: Vec<String>,
    /// Anything, for display and search.
    pub labels: BTreeMap<String, String>,
    /// How its container differs from the default one.
    pub container: Container,
    /// What it may use above what it holds.
    pub burst: Burst,
    /// Ends the task when it fails.
    pub health: Option<HealthCheck>,
    /// Tells whether the task is ready to serve.
    pub readiness: Option<Check>,
    /// The task is ended when it has run for this long (milliseconds); 0 for never.
    pub max_completion_ms: u64,
    /// What runs the task instead of proffer; `argv` is then empty.
    pub executor: Option<ExecutorSpec>,
    /// Anything, for its executor.
    pub data: Vec<u8>,
}

impl TaskSpec {
    /// The features that an agent must know for the fields that this spec uses.
    pub fn implied_needs(&self) -> impl Iterator<Item = &'static str> {
        let checked = self.health.is_some() || self.readiness.is_some();
        [
            (self.container != Container::default() || self.burst != Burst::default(), features::CONTAINMENT),
            (checked, features::CHECKS),
            (self.max_completion_ms > 0, features::MAX_COMPLETION),
            (self.executor.is_some(), features::EXECUTOR),
        ]
        .into_iter()
        .filter_map(|(used, feature)| used.then_some(feature))
    }
}

/// One task of a launch: its name and what differs from the spec.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TaskLaunch {
    /// Unique among the framework's retained tasks.
    pub task_id: TaskId,
    /// For display; empty for the task id.
    pub name: String,
    /// Added to the spec's environment.
    pub env: BTreeMap<String, String>,
    /// Its place in an array, from 1, and the array's size.
    pub array: Option<(u32, u32)>,
}

named_enum!(
    /// A task's state.
    ///
    /// ```text
    /// STAGING ─► STARTING ─► RUNNING ─► KILLING ─┬─► FINISHED FAILED KILLED          (from the agent)
    ///    │          │           │          │     └─► DROPPED ERROR GONE_BY_OPERATOR  (from the master too)
    ///    └──────────┴───────────┴──────────┴──◄──► UNREACHABLE (its agent is out of contact)
    /// ```
    /// Any state before the terminal ones may be skipped; a terminal state is final.
    TaskState {
        /// Accepted and committed; not yet started.
        Staging = 1 "STAGING",
        /// The agent is setting it up.
        Starting = 2 "STARTING",
        /// Its program runs.
        Running = 3 "RUNNING",
        /// Told to end, and has not yet.
        Killing = 4 "KILLING",
        /// Its agent is out of contact; it may still run.
        Unreachable = 5 "UNREACHABLE",
        /// Ended by itself with exit code 0.
        Finished = 6 "FINISHED",
        /// Ended otherwise by itself, by a limit, or could not be started.
        Failed = 7 "FAILED",
        /// Ended because it was told to.
        Killed = 8 "KILLED",
        /// Its description is invalid.
        Error = 9 "ERROR",
        /// Never started, for a passing reason: launching it again is safe.
        Dropped = 10 "DROPPED",
        /// Its agent was removed; should that agent return, it ends the task first.
        GoneByOperator = 11 "GONE_BY_OPERATOR",
    }
);

impl TaskState {
    /// Whether a task stays in this state for ever.
    pub fn is_terminal(self) -> bool {
        match self {
            Self::Staging | Self::Starting | Self::Running | Self::Killing | Self::Unreachable => false,
            Self::Finished
            | Self::Failed
            | Self::Killed
            | Self::Error
            | Self::Dropped
            | Self::GoneByOperator => true,
        }
    }

    /// Whether a task in state `self` may be said to be in state `next`. Repeating a state is allowed: a status may
    /// add facts to it.
    pub fn may_become(self, next: Self) -> bool {
        match self {
            _ if self.is_terminal() => false,
            Self::Unreachable => true,
            Self::Killing => matches!(next, Self::Killing | Self::Unreachable) || next.is_terminal(),
            Self::Running => {
                matches!(next, Self::Running | Self::Killing | Self::Unreachable) || next.is_terminal()
            }
            Self::Starting => next != Self::Staging,
            _ => true,
        }
    }
}

named_enum!(
    /// Who made a status.
    Source {
        /// The master.
        Master = 1 "MASTER",
        /// The agent.
        Agent = 2 "AGENT",
        /// The task itself, by how it ended.
        Task = 3 "TASK",
    }
);

named_enum!(
    /// Why a task is in its state.
    Reason {
        /// Nothing more to say than the state does.
        None = 0 "",
        /// The program exited with a code other than 0.
        ExitCode = 1 "exit_code",
        /// The program was ended by a signal that proffer did not send.
        Signal = 2 "signal",
        /// The kernel ended it for want of memory inside its limit.
        OutOfMemory = 3 "oom",
        /// The container could not be set up.
        LaunchFailed = 4 "launch_failed",
        /// The program could not be executed.
        ExecFailed = 5 "exec_failed",
        /// Whoever was starting it was lost between "about to" and "did".
        LaunchInterrupted = 6 "launch_interrupted",
        /// The agent does not know a launch that it had seen.
        LaunchLost = 7 "launch_lost",
        /// The process that watched it was lost, and the task was ended for that.
        SupervisorLost = 8 "supervisor_lost",
        /// The host restarted.
        HostRebooted = 9 "host_rebooted",
        /// The agent was out of contact when the launch would have been sent.
        AgentUnreachable = 10 "agent_unreachable",
        /// The agent missed its ping budget.
        AgentLost = 11 "agent_lost",
        /// The agent was unreachable for so long that it was removed.
        AgentExpired = 12 "agent_expired",
        /// The agent is back in contact.
        AgentReturned = 13 "agent_returned",
        /// Its framework asked for its end.
        KillRequested = 14 "kill_requested",
        /// An operator asked for its end.
        KilledByOperator = 15 "killed_by_operator",
        /// Its end was asked for before it had started.
        KilledDuringLaunch = 16 "killed_during_launch",
        /// Its framework was removed.
        FrameworkRemoved = 17 "framework_removed",
        /// The agent cannot run such a task.
        Unsupported = 18 "unsupported",
        /// An answer to a reconciliation.
        Reconciliation = 19 "reconciliation",
        /// The user it shall run as is not known or not allowed on the agent.
        UserRefused = 20 "user_refused",
        /// It ran for as long as it may.
        MaxCompletion = 21 "max_completion_time",
        /// Its health check failed as often as it may.
        Unhealthy = 22 "unhealthy",
        /// A check's result changed.
        CheckChanged = 23 "check_changed",
        /// Another task of its group ended otherwise than well.
        GroupEnded = 24 "group_ended",
        /// Another task of its group could not be started, and so none was.
        GroupNotStarted = 25 "group_not_started",
        /// Its executor ended.
        ExecutorEnded = 26 "executor_ended",
        /// Its executor did not register in time.
        ExecutorUnregistered = 27 "executor_registration_timeout",
        /// Its executor broke the protocol, and was ended for it.
        ExecutorMisbehaved = 28 "executor_misbehaved",
        /// What it asks of its container cannot be had on the agent.
        ContainerRefused = 29 "container_refused",
    }
);

/// What is known of a task at one moment. Statuses of a launch are ordered by (`master_seq`, `task_seq`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Status {
    /// Rises with each status that the master makes.
    pub master_seq: u32,
    /// Rises with each status that the agent makes; 0 before the first.
    pub task_seq: u32,
    /// The state.
    pub state: TaskState,
    /// Why.
    pub reason: Reason,
    /// Who says so.
    pub source: Source,
    /// For people; at most [`crate::limits::MESSAGE_BYTES_MAX`] bytes.
    pub message: String,
    /// The program's exit code, if it exited.
    pub exit_code: Option<i32>,
    /// The signal that ended the program, if one did.
    pub signal: Option<i32>,
    /// The most memory the task held at once, if known (bytes).
    pub memory_peak_bytes: Option<u64>,
    /// The isolation in force, once started.
    pub isolation: Option<String>,
    /// Wall time at its maker, for display (milliseconds since 1970).
    pub wall_ms: u64,
    /// What its health check says, if it has one and that was heard of.
    pub healthy: Option<bool>,
    /// What its readiness check says, if it has one.
    pub ready: Option<bool>,
    /// Bytes of its output that were thrown away unread (for want of room, or because it wrote too fast), at its end.
    pub output_dropped_bytes: Option<u64>,
    /// Anything, from its executor; at most [`crate::limits::STATUS_DATA_BYTES_MAX`].
    pub data: Vec<u8>,
}

impl Status {
    /// A status with nothing but a state and why.
    pub fn new(state: TaskState, reason: Reason, source: Source) -> Self {
        Self {
            master_seq: 0,
            task_seq: 0,
            state,
            reason,
            source,
            message: String::new(),
            exit_code: None,
            signal: None,
            memory_peak_bytes: None,
            isolation: None,
            wall_ms: 0,
            healthy: None,
            ready: None,
            output_dropped_bytes: None,
            data: Vec::new(),
        }
    }

    /// The position in the launch's order of statuses.
    pub fn position(&self) -> (u32, u32) {
        (self.master_seq, self.task_seq)
    }

    /// Whether all it says is what a check says now.
    pub fn is_check(&self) -> bool {
        self.reason == Reason::CheckChanged && !self.state.is_terminal()
    }
}

/// That a task's end was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KillOrder {
    /// Time between SIGTERM and SIGKILL (milliseconds).
    pub grace_ms: u64,
    /// The number of this order at the task's agent.
    pub agent_seq: u64,
    /// What the final status gives as the reason.
    pub reason: Reason,
}

/// A task's record: kept until it is terminal and its framework has acknowledged that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// Unique for ever.
    pub launch_id: LaunchId,
    /// Its name.
    pub task_id: TaskId,
    /// For display; empty for the task id.
    pub name: String,
    /// Whose it is.
    pub framework: FrameworkId,
    /// Where it runs.
    pub agent: AgentId,
    /// In which role its resources are counted.
    pub role: Role,
    /// What it runs.
    pub spec: Arc<TaskSpec>,
    /// The spec's digest.
    pub digest: SpecDigest,
    /// Added to the spec's environment.
    pub env: BTreeMap<String, String>,
    /// Its place in an array, from 1, and the array's size.
    pub array: Option<(u32, u32)>,
    /// What it holds: the spec's amounts, with the very ports it was given.
    pub resources: Resources,
    /// The number of its launch at its agent.
    pub agent_seq: u64,
    /// That its end was asked for.
    pub kill: Option<KillOrder>,
    /// The newest status.
    pub status: Status,
    /// The newest status that the agent itself made, shown again when the agent returns.
    pub agent_status: Option<Status>,
    /// Statuses the framework has not acknowledged, in order; the last one is the newest.
    pub pending: Vec<Status>,
    /// When it was accepted.
    pub created_at: ClusterTime,
    /// Wall time of the acceptance, for display (milliseconds since 1970).
    pub created_wall_ms: u64,
    /// Wall time of the first RUNNING, for display.
    pub started_wall_ms: Option<u64>,
    /// Wall time of the end, for display.
    pub finished_wall_ms: Option<u64>,
    /// The group it starts and ends with.
    pub group: Option<Group>,
    /// Whether it is a task, by itself or of an executor, or an executor. An executor is a launch like any other, with
    /// its executor id as its `task_id`, but its framework knows it as no task: nothing of it is pending.
    pub kind: LaunchKind,
}

impl Task {
    /// Whether it is an executor.
    pub fn is_executor(&self) -> bool {
        matches!(self.kind, LaunchKind::Executor(_))
    }

    /// Whether it has ended for good.
    pub fn is_terminal(&self) -> bool {
        self.status.state.is_terminal()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_states_are_final() {
        for &from in TaskState::ALL {
            for &to in TaskState::ALL {
                assert!(!(from.is_terminal() && from.may_become(to)), "{from} -> {to}");
            }
        }
        assert!(!TaskState::Running.may_become(TaskState::Starting));
        assert!(TaskState::Unreachable.may_become(TaskState::Running));
    }

    #[test]
    fn numbers_and_names_are_unique() {
        let numbers: std::collections::BTreeSet<_> = Reason::ALL.iter().map(|r| r.number()).collect();
        let names: std::collections::BTreeSet<_> = Reason::ALL.iter().map(|r| r.name()).collect();
        assert_eq!((numbers.len(), names.len()), (Reason::ALL.len(), Reason::ALL.len()));
        for &state in TaskState::ALL {
            assert_eq!(TaskState::from_number(state.number().into()), Some(state));
        }
    }
}
