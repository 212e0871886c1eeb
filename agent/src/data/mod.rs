//! Bulk data, brought to the master that asked for it over a connection of its own: output, programs run inside a
//! task, terminals, files, measurements.
//!
//! None of it shares the session's stream. The master names the request by a ticket on the session, and says what the
//! ticket is good for; the agent dials back, shows the ticket in its first message, and is told the rest. What goes
//! either way waits in short queues: a slow operator slows this connection and nothing else.

mod attach;
mod exec;
mod files;
mod grant;
mod logs;
mod sandbox;
mod usage;
mod wake;

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use proffer_types::LaunchId;
use proffer_types::event::DataAction;
use proffer_wire::admin::v1 as admin;
use proffer_wire::agent::v1 as pb;
use proffer_wire::agent::v1::agent_service_client::AgentServiceClient;
use proffer_wire::agent::v1::data_chunk::Answer;
use proffer_wire::agent::v1::data_request::Ask;
use proffer_wire::from_proto;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::session::{chain, dial};

pub(crate) use grant::{container_of, grant, place_of};
pub(crate) use logs::Logs;
pub(crate) use usage::Measured;
pub(crate) use wake::Wakers;

/// Read and sent at once: large enough for the disk, small beside every message limit.
const CHUNK_BYTES: usize = 64 << 10;
/// Chunks on their way: 256 KiB at most for a connection.
const CHUNKS_QUEUED: usize = 4;
/// How long the master may take to read the last chunks and end its side.
const LINGER: Duration = Duration::from_secs(30);

/// What a connection needs of the driver, which alone speaks to the containerizer.
pub(crate) enum Wish {
    /// Run a program in a container.
    Exec {
        launch: LaunchId,
        command: proffer_wire::told::ExecCommand,
        /// Hears what becomes of it: two events at most.
        events: mpsc::UnboundedSender<proffer_containerizer::ExecEvent>,
        /// The program's name; dropped if there is no such launch.
        reply: tokio::sync::oneshot::Sender<proffer_containerizer::ExecId>,
    },
    /// Send a signal to such a program.
    Signal { exec: proffer_containerizer::ExecId, signal: i32 },
    /// Bring a container's terminal.
    Terminal {
        launch: LaunchId,
        reply: tokio::sync::oneshot::Sender<Result<std::os::fd::OwnedFd, proffer_containerizer::NotThere>>,
    },
    /// Measure some running containers, those after a launch.
    Usage {
        after: LaunchId,
        max: usize,
        /// What was measured, and after which launch to go on if there are more.
        reply: tokio::sync::oneshot::Sender<(Vec<Measured>, Option<LaunchId>)>,
    },
}

/// What serves a ticket.
pub(crate) struct Tools<L> {
    /// The container that the launch is in: its own, or that of the executor which runs it.
    pub(crate) container: LaunchId,
    /// The launch's output.
    pub(crate) logs: L,
    /// Where the launch's output lies, if it lies in files.
    pub(crate) logs_dir: Option<PathBuf>,
    /// Where the launch's sandbox lies.
    pub(crate) sandbox: Option<PathBuf>,
    /// Wakes whoever waits for output.
    pub(crate) wakers: Wakers,
    /// The way to the driver.
    pub(crate) wishes: mpsc::Sender<Wish>,
}

/// A request of the master, by its ticket.
pub(crate) struct Ticket<L> {
    pub(crate) ticket: [u8; 16],
    /// What it is good for.
    pub(crate) action: DataAction,
    /// Of which launch; 0 for the whole agent.
    pub(crate) launch: LaunchId,
    /// Void after this.
    pub(crate) expires: Instant,
    /// The leader that made it.
    pub(crate) master: String,
    /// What serves it; or why it is not served.
    pub(crate) tools: Result<Tools<L>, Refusal>,
}

/// Why something is not done, in a word for programs and a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) code: &'static str,
    pub(crate) message: String,
}

impl Refusal {
    pub(crate) fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// Why a ticket was not served to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The time was up before the master said what to do.
    #[error("the ticket expired")]
    Expired,
    /// No connection.
    #[error("dial the master")]
    Dial(#[source] tonic::transport::Error),
    /// The master refused, or is gone.
    #[error("the data connection: {}: {}", .0.code(), .0.message())]
    Refused(Box<tonic::Status>),
}

/// The other side does not listen any more.
struct Gone;

/// The way to the master on a data connection.
#[derive(Clone)]
struct Outbound {
    chunks: mpsc::Sender<pb::DataChunk>,
}

impl Outbound {
    async fn send(&self, chunk: pb::DataChunk) -> Result<(), Gone> {
        self.chunks.send(chunk).await.map_err(|_| Gone)
    }

    /// Waits for room.
    async fn room(&self) -> Result<mpsc::Permit<'_, pb::DataChunk>, Gone> {
        self.chunks.reserve().await.map_err(|_| Gone)
    }

    async fn answer(&self, answer: Answer, end: bool) -> Result<(), Gone> {
        self.send(pb::DataChunk { answer: Some(answer), end, ..pb::DataChunk::default() }).await
    }

    /// The same, from a thread that may wait.
    fn answer_blocking(&self, answer: Answer, end: bool) -> Result<(), Gone> {
        let chunk = pb::DataChunk { answer: Some(answer), end, ..pb::DataChunk::default() };
        self.chunks.blocking_send(chunk).map_err(|_| Gone)
    }

    async fn refuse(&self, refusal: Refusal) -> Result<(), Gone> {
        self.send(refused(refusal)).await
    }

    /// Waits until nobody listens.
    async fn closed(&self) {
        self.chunks.closed().await;
    }
}

fn refused(refusal: Refusal) -> pb::DataChunk {
    pb::DataChunk {
        error: refusal.message,
        error_code: refusal.code.into(),
        end: true,
        ..pb::DataChunk::default()
    }
}

/// Dials the master that made the ticket and does what it asks for, until either side has enough.
pub(crate) async fn serve<L: Logs>(ticket: Ticket<L>) {
    let (launch, action, master) = (ticket.launch, ticket.action, ticket.master.clone());
    if let Err(error) = bring(ticket).await {
        tracing::warn!(launch.id = launch.0, %action, master, error = %chain(&error), "data could not be brought");
    }
}

async fn bring<L: Logs>(ticket: Ticket<L>) -> Result<(), Error> {
    let expires = ticket.expires;
    let dialled = timeout_at(expires, dial(&ticket.master)).await.map_err(|_| Error::Expired)?;
    let channel = dialled.map_err(Error::Dial)?;
    let (chunks, outbound) = mpsc::channel(CHUNKS_QUEUED);
    let greeting =
        pb::DataChunk { ticket: Bytes::copy_from_slice(&ticket.ticket), ..pb::DataChunk::default() };
    // The queue is empty and its other end is held here: this cannot fail.
    let _ = chunks.send(greeting).await;
    let mut client = AgentServiceClient::new(channel);
    let refused = |status| Error::Refused(Box::new(status));
    let opened =
        timeout_at(expires, client.data(ReceiverStream::new(outbound))).await.map_err(|_| Error::Expired)?;
    let mut requests = opened.map_err(refused)?.into_inner();
    let first = timeout_at(expires, requests.message()).await.map_err(|_| Error::Expired)?;
    let Some(request) = first.map_err(refused)? else { return Ok(()) };
    let outbound = Outbound { chunks };
    // That the master's side ends is no failure: its operator has enough.
    let _ = act(ticket, request, &outbound, &mut requests).await;
    // The last chunk must leave before the connection does.
    drop(outbound);
    let _ = tokio::time::timeout(LINGER, async { while let Ok(Some(_)) = requests.message().await {} }).await;
    Ok(())
}

/// Does what is asked, if the ticket is good for it.
async fn act<L: Logs>(
    ticket: Ticket<L>,
    request: pb::DataRequest,
    outbound: &Outbound,
    requests: &mut Streaming<pb::DataRequest>,
) -> Result<(), Gone> {
    let launch = ticket.launch;
    let tools = match ticket.tools {
        Ok(tools) => tools,
        Err(refusal) => return outbound.refuse(refusal).await,
    };
    if request.launch_id != launch.0 {
        return outbound.refuse(Refusal::new("INVALID", "the ticket is for another launch")).await;
    }
    match (ticket.action, request.ask.clone()) {
        (DataAction::ReadLogs, None) => {
            let range = match from_proto::data_request(request) {
                Ok((_, range)) => range,
                Err(error) => return outbound.refuse(Refusal::new("INVALID", error.to_string())).await,
            };
            let wake = tools.wakers.subscribe(tools.container, tools.logs_dir.as_deref());
            // The end of the master's side, or anything else it says, ends the reading.
            tokio::select! {
                copied = logs::copy(&tools.logs, range, &wake, outbound) => copied,
                _ = requests.message() => Err(Gone),
            }
        }
        (DataAction::Exec, Some(Ask::Exec(first))) => {
            exec::run(launch, first, &tools.wishes, outbound, requests).await
        }
        (DataAction::Attach, Some(Ask::Attach(first))) => {
            attach::run(launch, first, &tools, outbound, requests).await
        }
        (DataAction::ReadFiles, Some(Ask::ListFiles(list))) => {
            files::list(tools.sandbox, list, outbound).await
        }
        (DataAction::ReadFiles, Some(Ask::ReadFiles(read))) => tokio::select! {
            read = files::read(tools.sandbox, read, outbound) => read,
            _ = requests.message() => Err(Gone),
        },
        (DataAction::WriteFiles, Some(Ask::WriteFiles(first))) => {
            files::write(tools.sandbox, first, outbound, requests).await
        }
        (DataAction::WatchUsage, Some(Ask::WatchUsage(watch))) => tokio::select! {
            told = usage::watch(watch, &tools.wishes, outbound) => told,
            _ = requests.message() => Err(Gone),
        },
        _ => outbound.refuse(Refusal::new("INVALID", "the ticket is not good for that")).await,
    }
}

/// The next thing that an operator says in an exec; `None` when it is gone.
async fn next_ask(requests: &mut Streaming<pb::DataRequest>) -> Option<Ask> {
    loop {
        let request = requests.message().await.ok().flatten()?;
        // What a later version says is not understood, and left out.
        if let Some(ask) = request.ask {
            return Some(ask);
        }
    }
}

/// Runs what may wait for a disk on a thread that may.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// A terminal's size as the containerizer has it.
fn terminal_size(size: &admin::TerminalSize) -> proffer_containerizer::TerminalSize {
    engine_size(from_proto::window_size(size))
}

fn engine_size(size: proffer_wire::told::WindowSize) -> proffer_containerizer::TerminalSize {
    proffer_containerizer::TerminalSize { rows: size.rows, cols: size.cols }
}
