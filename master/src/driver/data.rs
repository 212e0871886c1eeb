//! Bulk data between operators and agents: an agent is asked for it by a ticket on its session, and dials back.

use proffer_types::event::DataAction;
use proffer_types::{AgentId, FrameworkId, TaskId};
use proffer_wire::agent::v1 as pb;
use tokio::sync::mpsc;

/// Chunks (of at most 64 KiB) that may be between an agent and a reader.
pub(crate) const CHUNKS_QUEUED: usize = 4;
/// What an operator has said (at most 256 KiB each, and 64 KiB where there is much of it) that may be on its way to the
/// agent.
pub(crate) const REQUESTS_QUEUED: usize = 4;
/// How long an agent has to dial (milliseconds).
pub(crate) const TICKET_MS: u64 = 10_000;
/// Tickets that may wait for their agents.
pub(crate) const TICKETS_MAX: usize = 4_096;

/// What is wanted of an agent.
#[derive(Clone, Debug, PartialEq)]
pub struct DataOrder {
    /// Of which.
    pub target: Target,
    /// What the connection is for.
    pub action: DataAction,
    /// What the agent is told first; the launch is filled in.
    pub first: pb::DataRequest,
}

/// Whom an order is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A task, and so its agent.
    Task {
        /// Whose.
        framework: FrameworkId,
        /// Which.
        task: TaskId,
    },
    /// An agent as a whole.
    Agent(AgentId),
}

/// The operator's end of a data connection.
#[derive(Debug)]
pub struct DataLink {
    /// What the agent brings. It ends when the sender is gone; an orderly end has a last chunk with `end` or an error.
    /// Dropping it tells the agent that it is enough.
    pub chunks: mpsc::Receiver<pb::DataChunk>,
    /// What the operator goes on to say.
    pub requests: mpsc::Sender<pb::DataRequest>,
}

/// What an agent with a ticket is asked for, and where it goes.
#[derive(Debug)]
pub struct PendingData {
    /// What it is told first.
    pub first: pb::DataRequest,
    /// What it is told then.
    pub requests: mpsc::Receiver<pb::DataRequest>,
    /// Where the chunks go; closed when nobody reads any more.
    pub chunks: mpsc::Sender<pb::DataChunk>,
}
