//! What operators and agents say to each other through this master. Nothing is kept but a few pieces on their way: a
//! side that is slow slows the other, and nobody else.

use std::sync::Arc;
use std::time::Duration;

use proffer_types::event::DataAction;
use proffer_types::{AgentId, Caller, FrameworkId, TaskId};
use proffer_wire::admin::v1 as pb;
use proffer_wire::agent::v1 as agent_pb;
use proffer_wire::agent::v1::data_chunk::Answer;
use proffer_wire::agent::v1::data_request::Ask;
use proffer_wire::{from_proto, status};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::driver::{DataLink, DataOrder, Handle, PendingData, Target};

/// How long a caller may take to say what it wants.
const FIRST_MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// When to come again to an agent, or a master, that serves as many as it may (milliseconds).
const RETRY_MS: u64 = 1_000;
/// Connections between operators and agents that this master carries at once: with some 600 KiB in the queues of each,
/// if nobody reads, 300 MiB.
const LINKS_MAX: usize = 512;

/// A stream to an operator.
pub(super) type Answers<T> = ReceiverStream<Result<T, Status>>;

/// The first message of a stream.
pub(super) async fn first<T>(inbound: &mut Streaming<T>) -> Result<T, Status> {
    let first = timeout(FIRST_MESSAGE_TIMEOUT, inbound.message()).await;
    let first = first.map_err(|_| status::deadline("no first message came".into()))??;
    first.ok_or_else(|| out_of_place("the stream ended before its first message"))
}

pub(super) fn out_of_place(text: &str) -> Status {
    status::status(Code::InvalidArgument, "OUT_OF_PLACE", text.to_owned(), &[])
}

/// The task that a message names.
pub(super) fn task(framework: u64, task: &str) -> Result<Target, Status> {
    let (framework, task): (FrameworkId, TaskId) =
        from_proto::named_task(framework, task).map_err(|error| status::malformed(&error))?;
    Ok(Target::Task { framework, task })
}

/// The agent that a message names.
pub(super) fn agent(id: u64) -> Result<Target, Status> {
    let id = from_proto::given_id(id, "agent_id").map_err(|error| status::malformed(&error))?;
    Ok(Target::Agent(AgentId(id)))
}

/// Opens connections between operators and agents, and counts them.
#[derive(Clone)]
pub(super) struct Relay {
    handle: Handle,
    places: Arc<Semaphore>,
}

/// A connection that is counted.
pub(super) struct Link {
    pub(super) chunks: mpsc::Receiver<agent_pb::DataChunk>,
    pub(super) requests: mpsc::Sender<agent_pb::DataRequest>,
    pub(super) place: OwnedSemaphorePermit,
}

impl Relay {
    pub(super) fn new(handle: Handle) -> Self {
        Self { handle, places: Arc::new(Semaphore::new(LINKS_MAX)) }
    }

    /// Asks an agent; `ask` is what it is told first.
    pub(super) async fn open(
        &self,
        caller: Caller,
        target: Target,
        action: DataAction,
        ask: Ask,
    ) -> Result<Link, Status> {
        let first = agent_pb::DataRequest { ask: Some(ask), ..agent_pb::DataRequest::default() };
        self.open_with(caller, DataOrder { target, action, first }).await
    }

    /// The same, told in full.
    pub(super) async fn open_with(&self, caller: Caller, order: DataOrder) -> Result<Link, Status> {
        let full = |_| {
            let text = format!("this master carries {LINKS_MAX} connections to agents already");
            status::busy("BUSY", text, RETRY_MS)
        };
        let place = self.places.clone().try_acquire_owned().map_err(full)?;
        let opened = self.handle.open_data(caller, order).await;
        let DataLink { chunks, requests } = opened.map_err(|refused| status::refused(&refused))?;
        Ok(Link { chunks, requests, place })
    }
}

/// Passes on what an operator goes on to say; `end` is said at the end of its half, if that means something.
pub(super) fn pass_on<T: Send + 'static>(
    mut inbound: Streaming<T>,
    link: &Link,
    ask: fn(T) -> Ask,
    end: Option<Ask>,
) {
    let requests = link.requests.clone();
    let said = |ask| agent_pb::DataRequest { ask: Some(ask), ..agent_pb::DataRequest::default() };
    tokio::spawn(async move {
        loop {
            let message = tokio::select! {
                message = inbound.message() => message,
                () = requests.closed() => return,
            };
            match message {
                Ok(Some(message)) => {
                    if requests.send(said(ask(message))).await.is_err() {
                        return;
                    }
                }
                Ok(None) => {
                    if let Some(end) = end {
                        let _ = requests.send(said(end)).await;
                    }
                    return;
                }
                // The operator is gone: its other half tells the agent.
                Err(_) => return,
            }
        }
    });
}

/// Shows an operator what an agent brings.
pub(super) fn show<T: Send + 'static>(link: Link, pick: fn(agent_pb::DataChunk) -> Option<T>) -> Answers<T> {
    let (responses, stream) = mpsc::channel(1);
    let Link { mut chunks, requests, place } = link;
    tokio::spawn(async move {
        let _both = (requests, place);
        loop {
            let chunk = tokio::select! {
                chunk = chunks.recv() => chunk,
                () = responses.closed() => return,
            };
            let chunk = match chunk.ok_or_else(agent_lost).and_then(faultless) {
                Ok(chunk) => chunk,
                Err(status) => return drop(responses.send(Err(status)).await),
            };
            let end = chunk.end;
            if let Some(response) = pick(chunk)
                && responses.send(Ok(response)).await.is_err()
            {
                return;
            }
            if end {
                return;
            }
        }
    });
    ReceiverStream::new(stream)
}

/// The one answer that an agent brings.
pub(super) async fn answer<T>(mut link: Link, pick: fn(Answer) -> Option<T>) -> Result<T, Status> {
    let chunk = link.chunks.recv().await.ok_or_else(agent_lost).and_then(faultless)?;
    chunk.answer.and_then(pick).ok_or_else(|| Status::internal("the agent answered something else"))
}

fn agent_lost() -> Status {
    let text = "the connection to the agent was lost, or never made: try again".to_owned();
    status::status(Code::Unavailable, "AGENT_LOST", text, &[])
}

/// The chunk, unless it tells why there is none.
fn faultless(chunk: agent_pb::DataChunk) -> Result<agent_pb::DataChunk, Status> {
    if chunk.error.is_empty() {
        return Ok(chunk);
    }
    let (code, reason) = match chunk.error_code.as_str() {
        "" => (Code::FailedPrecondition, "LOGS_UNREADABLE"),
        "BUSY" => return Err(status::busy("BUSY", chunk.error, RETRY_MS)),
        "NO_SUCH_FILE" => (Code::NotFound, "NO_SUCH_FILE"),
        "INVALID" => (Code::InvalidArgument, "INVALID_FIELD"),
        "UNSUPPORTED" => (Code::Unimplemented, "UNSUPPORTED"),
        word => (Code::FailedPrecondition, word),
    };
    Err(status::status(code, reason, chunk.error, &[]))
}

/// Carries what an agent brings to whoever asked for it, and back. Dropping `to_agent` tells the agent that it is
/// enough.
pub(super) async fn carry(
    mut inbound: Streaming<agent_pb::DataChunk>,
    data: PendingData,
    to_agent: mpsc::Sender<Result<agent_pb::DataRequest, Status>>,
) {
    let PendingData { first, mut requests, chunks } = data;
    let down = async {
        loop {
            let chunk = tokio::select! {
                chunk = inbound.message() => chunk,
                () = chunks.closed() => return,
            };
            let Ok(Some(chunk)) = chunk else { return };
            let last = chunk.end || !chunk.error.is_empty();
            if chunks.send(chunk).await.is_err() || last {
                return;
            }
        }
    };
    let up = async {
        if to_agent.send(Ok(first)).await.is_ok() {
            while let Some(request) = requests.recv().await {
                if to_agent.send(Ok(request)).await.is_err() {
                    break;
                }
            }
        }
        // The operator has said everything; the agent may not have.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = down => {}
        () = up => {}
    }
}

/// From an exec.
pub(super) fn exec_response(chunk: agent_pb::DataChunk) -> Option<pb::ExecResponse> {
    chunk.answer.and_then(|answer| if let Answer::Exec(exec) = answer { Some(exec) } else { None })
}

/// From an attach.
pub(super) fn attach_response(chunk: agent_pb::DataChunk) -> Option<pb::AttachResponse> {
    chunk.answer.and_then(|answer| if let Answer::Attach(attach) = answer { Some(attach) } else { None })
}

/// From a reading of files.
pub(super) fn files_response(chunk: agent_pb::DataChunk) -> Option<pb::ReadFilesResponse> {
    chunk.answer.and_then(|answer| if let Answer::ReadFiles(files) = answer { Some(files) } else { None })
}

/// From a measurement.
pub(super) fn usage_response(chunk: agent_pb::DataChunk) -> Option<pb::WatchUsageResponse> {
    chunk.answer.and_then(|answer| if let Answer::WatchUsage(usage) = answer { Some(usage) } else { None })
}

/// Output.
pub(super) fn logs_response(chunk: agent_pb::DataChunk) -> Option<pb::ReadLogsResponse> {
    (!chunk.data.is_empty() || chunk.lost > 0).then_some(pb::ReadLogsResponse {
        offset: chunk.offset,
        data: chunk.data,
        lost: chunk.lost,
    })
}
