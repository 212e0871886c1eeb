//! What an agent and a framework's own executor tell each other, without a protocol around it.

use std::collections::BTreeMap;

use crate::event::Group;
use crate::{AgentId, ClusterId, ExecutorId, FrameworkId, LaunchId, Resources, Role, TaskId, TaskState};

/// To an executor, on its event stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecutorEvent {
    /// The subscription is open.
    Subscribed {
        /// The framework.
        framework: FrameworkId,
        /// The executor's name.
        executor: ExecutorId,
        /// The executor's own launch.
        launch: LaunchId,
        /// The agent.
        agent: AgentId,
        /// The node's name.
        hostname: String,
        /// The cluster.
        cluster: ClusterId,
    },
    /// Tasks to run. Those of a group come together.
    Launch(Vec<ExecutorTask>),
    /// A task to end.
    Kill {
        /// Which.
        launch: LaunchId,
        /// How long it may take (milliseconds).
        grace_ms: u64,
    },
    /// Bytes from the framework's scheduler.
    Message(Vec<u8>),
    /// The executor is to end.
    Shutdown {
        /// How long it may take (milliseconds).
        grace_ms: u64,
    },
    /// The executor broke the protocol and is being ended.
    Error {
        /// What it did.
        message: String,
    },
}

/// A task that is handed to an executor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecutorTask {
    /// Unique for ever.
    pub launch: LaunchId,
    /// The framework's name for it.
    pub task_id: TaskId,
    /// In which role.
    pub role: Role,
    /// What it holds.
    pub resources: Resources,
    /// What to do, as its framework put it.
    pub data: Vec<u8>,
    /// The whole environment that it would have as a command.
    pub env: BTreeMap<String, String>,
    /// As in its spec.
    pub labels: BTreeMap<String, String>,
    /// Time between a kill and the end unless the kill says otherwise (milliseconds).
    pub kill_grace_ms: u64,
    /// The group that it starts and ends with.
    pub group: Option<Group>,
}

/// A status of a task, as its executor says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecutorUpdate {
    /// The launch.
    pub launch: LaunchId,
    /// Counts the statuses of the launch from 1, as the executor makes them.
    pub seq: u32,
    /// The state.
    pub state: TaskState,
    /// For people.
    pub message: String,
    /// The exit code, if something exited.
    pub exit_code: Option<i32>,
    /// The signal, if one ended something.
    pub signal: Option<i32>,
    /// Whether the task is well.
    pub healthy: Option<bool>,
    /// Whether it is ready to serve.
    pub ready: Option<bool>,
    /// Anything, for the framework; at most [`crate::limits::STATUS_DATA_BYTES_MAX`].
    pub data: Vec<u8>,
}

impl ExecutorUpdate {
    /// A status with nothing but a state.
    pub fn new(launch: LaunchId, seq: u32, state: TaskState) -> Self {
        Self {
            launch,
            seq,
            state,
            message: String::new(),
            exit_code: None,
            signal: None,
            healthy: None,
            ready: None,
            data: Vec::new(),
        }
    }
}
