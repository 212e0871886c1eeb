//! A task's output, read across lost connections.

use std::time::Duration;

use proffer_types::{FrameworkId, TaskId};
use proffer_wire::admin::v1 as pb;
use proffer_wire::to_proto;
use proffer_wire::told::{LogChunk, LogRange, LogStream};
use tokio::time::Instant;
use tonic::Streaming;

use crate::admin::{AdminClient, Error};
use crate::core::{Failure, Refused, RefusedKind};
use crate::failure::failure;

const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// What to read.
#[derive(Clone, Debug)]
pub struct LogRequest {
    /// Whose task.
    pub framework: FrameworkId,
    /// Which task.
    pub task: TaskId,
    /// Which stream.
    pub stream: LogStream,
    /// From which byte; negative: that many bytes before the present end.
    pub offset: i64,
    /// Whether to go on until the task has ended.
    pub follow: bool,
    /// For how long to try again when nothing can be read (the agent may be restarting).
    pub patience: Duration,
}

/// Reads one stream of a task's output to its end, from where it was when a connection is lost.
#[derive(Debug)]
pub struct LogReader {
    client: AdminClient,
    request: LogRequest,
    /// And since when it is open.
    stream: Option<(Streaming<pb::ReadLogsResponse>, Instant)>,
    /// Since when nothing could be read.
    failing_since: Option<Instant>,
    pause: Duration,
}

/// A stream that was open for so long had reached its agent: what a master asks for one is good for less.
const STANDS: Duration = Duration::from_secs(20);

impl LogReader {
    /// A reader; nothing is asked yet.
    pub fn new(client: AdminClient, request: LogRequest) -> Self {
        Self { client, request, stream: None, failing_since: None, pause: PAUSE_MIN }
    }

    /// The next piece; `None` at the end of the output: with `follow` that is when the task has ended.
    pub async fn next(&mut self) -> Result<Option<LogChunk>, Error> {
        loop {
            let message = match &mut self.stream {
                Some((stream, _)) => stream.message().await,
                None => match self.client.open_logs(self.question()).await {
                    Ok(stream) => {
                        self.stream = Some((stream, Instant::now()));
                        continue;
                    }
                    Err(error @ (Error::Unavailable { .. } | Error::Refused { .. }))
                        if is_passing(&error) =>
                    {
                        self.rest(error).await?;
                        continue;
                    }
                    Err(error) => return Err(error),
                },
            };
            match message {
                Ok(Some(piece)) => {
                    (self.failing_since, self.pause) = (None, PAUSE_MIN);
                    self.request.offset =
                        (piece.offset + piece.data.len() as u64).try_into().unwrap_or(i64::MAX);
                    let (offset, data, lost) = (piece.offset, piece.data, piece.lost);
                    return Ok(Some(LogChunk { offset, data, lost, ..LogChunk::default() }));
                }
                Ok(None) => return Ok(None),
                Err(status) => {
                    let stood = self.stream.take().map_or(Duration::ZERO, |(_, since)| since.elapsed());
                    if stood >= STANDS.min(self.request.patience) {
                        // It was read, and had nothing to say.
                        (self.failing_since, self.pause) = (None, PAUSE_MIN);
                    }
                    let what = "read a task's output";
                    match failure(&status) {
                        Failure::Refused(refused) => {
                            let error = Error::Refused { what, refused };
                            if !is_passing(&error) {
                                return Err(error);
                            }
                            self.rest(error).await?;
                        }
                        other => {
                            let masters = vec![("leader".into(), format!("{other:?}"))];
                            let waited = self.failing_since.map_or(Duration::ZERO, |since| since.elapsed());
                            self.rest(Error::Unavailable { what, waited, masters }).await?;
                        }
                    }
                }
            }
        }
    }

    fn question(&self) -> pb::ReadLogsRequest {
        let LogRequest { framework, task, stream, offset, follow, .. } = &self.request;
        let range = LogRange { stream: *stream, offset: *offset, limit: 0, follow: *follow };
        to_proto::read_logs(*framework, task, range)
    }

    /// Waits before the next attempt, or gives up with `why`.
    async fn rest(&mut self, why: Error) -> Result<(), Error> {
        let since = *self.failing_since.get_or_insert_with(Instant::now);
        if since.elapsed() >= self.request.patience {
            return Err(why);
        }
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        Ok(())
    }
}

/// Whether the next attempt may go better: the agent is away, or the task has not begun.
fn is_passing(error: &Error) -> bool {
    match error {
        Error::Unavailable { .. } => true,
        // The framework and the task have words of their own; plain NOT_FOUND is the connection to the agent.
        Error::Refused { refused: Refused { kind, reason, .. }, .. } => {
            *kind == RefusedKind::Precondition || reason == "NOT_FOUND"
        }
        Error::Malformed { .. } | Error::Random(_) => false,
    }
}
