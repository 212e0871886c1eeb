//! Tasks' output, from agents that are asked to bring it.

use proffer_types::{FrameworkId, LaunchId, TaskId};
use proffer_wire::agent::v1 as pb;
use tokio::sync::mpsc;

/// Chunks (of at most 64 KiB) that may be between an agent and a reader.
pub(crate) const CHUNKS_QUEUED: usize = 8;
/// How long an agent has to bring the data (milliseconds).
pub(crate) const TICKET_MS: u64 = 10_000;

/// What to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRequest {
    /// Whose task.
    pub framework: FrameworkId,
    /// Which.
    pub task: TaskId,
    /// Standard output or standard error.
    pub stream: pb::Stream,
    /// From which byte; negative: that many before the present end.
    pub offset: i64,
    /// Most bytes; 0 for all.
    pub limit: u64,
    /// Whether to go on until the task has ended.
    pub follow: bool,
}

/// The output as it comes. It ends when the sender is gone; an orderly end has a last chunk with `end` or an error.
pub type LogChunks = mpsc::Receiver<pb::DataChunk>;

/// What an agent with a ticket is asked for, and where it goes.
#[derive(Debug)]
pub struct PendingData {
    /// The launch.
    pub launch: LaunchId,
    /// What to read.
    pub request: LogRequest,
    /// Where the chunks go; closed when nobody reads any more.
    pub chunks: mpsc::Sender<pb::DataChunk>,
}
