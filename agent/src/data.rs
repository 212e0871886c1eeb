//! A task's output, brought to the master that asked for it over a connection of its own.
//!
//! Bulk data never shares the session's stream. The master names the request by a ticket on the session; the agent
//! dials back, shows the ticket in its first message, and is told what to read. What is read waits in a short queue:
//! a slow reader slows this connection and nothing else.

use std::time::Duration;

use bytes::Bytes;
use proffer_containerizer::{Chunk, LogError, LogReader, Stream};
use proffer_types::LaunchId;
use proffer_wire::agent::v1 as pb;
use proffer_wire::agent::v1::agent_service_client::AgentServiceClient;
use proffer_wire::told::{LogChunk, LogRange, LogStream};
use proffer_wire::{from_proto, to_proto};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_stream::wrappers::ReceiverStream;

use crate::session::{chain, dial};

/// Read and sent at once: large enough for the disk, small beside every message limit.
const CHUNK_BYTES: usize = 64 << 10;
/// Chunks on their way: 256 KiB at most for a connection.
const CHUNKS_QUEUED: usize = 4;
/// How often a followed log is looked at while nothing comes, at first and at most.
const POLL_MIN: Duration = Duration::from_millis(50);
const POLL_MAX: Duration = Duration::from_millis(500);

/// How long the master may take to read the last chunks and end its side.
const LINGER: Duration = Duration::from_secs(30);

/// Where output is read. Its calls may block on a disk.
pub(crate) trait Logs: Clone + Send + Sync + 'static {
    /// At most `max` bytes from `offset` on.
    fn read(&self, stream: Stream, offset: u64, max: usize) -> Result<Chunk, LogError>;
    /// The offset after the last byte so far.
    fn end(&self, stream: Stream) -> Result<u64, LogError>;
}

impl Logs for LogReader {
    fn read(&self, stream: Stream, offset: u64, max: usize) -> Result<Chunk, LogError> {
        Self::read(self, stream, offset, max)
    }

    fn end(&self, stream: Stream) -> Result<u64, LogError> {
        Self::end(self, stream)
    }
}

/// A request of the master, by its ticket.
#[derive(Debug)]
pub(crate) struct Ticket<L> {
    pub(crate) ticket: [u8; 16],
    pub(crate) launch: LaunchId,
    /// Void after this.
    pub(crate) expires: Instant,
    /// The leader that made it.
    pub(crate) master: String,
    pub(crate) logs: L,
}

/// Why a ticket was not served to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The time was up before the master said what to read.
    #[error("the ticket expired")]
    Expired,
    /// No connection.
    #[error("dial the master")]
    Dial(#[source] tonic::transport::Error),
    /// The master refused, or is gone.
    #[error("the data connection: {}: {}", .0.code(), .0.message())]
    Refused(Box<tonic::Status>),
    /// What it wants cannot be read.
    #[error("the master's request: {0}")]
    Malformed(#[source] proffer_wire::Malformed),
}

/// Dials the master that made the ticket and brings what it asks for, until either side has enough.
pub(crate) async fn serve<L: Logs>(ticket: Ticket<L>) {
    let (launch, master) = (ticket.launch, ticket.master.clone());
    if let Err(error) = bring(ticket).await {
        tracing::warn!(?launch, master, error = %chain(&error), "output could not be brought");
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
    let (launch, range) = from_proto::data_request(request).map_err(Error::Malformed)?;
    if launch == ticket.launch {
        // The end of the master's side, or anything else it says, ends the reading.
        tokio::select! {
            _ = copy(&ticket.logs, range, &chunks) => {}
            _ = requests.message() => return Ok(()),
        }
    } else {
        let error = Some("the ticket is for another launch".to_owned());
        let chunk = LogChunk { error, end: true, ..LogChunk::default() };
        let _ = chunks.send(to_proto::data_chunk(Bytes::new(), range.stream, chunk)).await;
    }
    // The last chunk must leave before the connection does.
    drop(chunks);
    let _ = tokio::time::timeout(LINGER, requests.message()).await;
    Ok(())
}

/// The master does not listen any more.
struct Gone;

/// Reads a range and sends it in pieces; the last one says that nothing follows.
async fn copy<L: Logs>(logs: &L, range: LogRange, chunks: &mpsc::Sender<pb::DataChunk>) -> Result<(), Gone> {
    let LogRange { stream, offset, limit, follow } = range;
    let send =
        async |chunk| chunks.send(to_proto::data_chunk(Bytes::new(), stream, chunk)).await.map_err(|_| Gone);
    let mut left = if limit == 0 { u64::MAX } else { limit };
    let mut at = match start(logs, stream, offset).await {
        Ok(at) => at,
        Err(error) => return send(failure(0, &error)).await,
    };
    let mut pause = POLL_MIN;
    loop {
        let max = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK_BYTES);
        let chunk = match blocking(logs, move |logs| logs.read(side(stream), at, max)).await {
            Ok(chunk) => chunk,
            Err(error) => return send(failure(at, &error)).await,
        };
        let bytes = chunk.bytes.len() as u64;
        at = chunk.offset + bytes;
        left -= bytes;
        // Reading up to the present end is done when there is nothing; a follower waits for the task's end.
        let end = chunk.ended || left == 0 || (bytes == 0 && !follow);
        if end || bytes > 0 || chunk.lost > 0 {
            let lost = chunk.lost;
            send(LogChunk { offset: chunk.offset, data: chunk.bytes.into(), end, lost, error: None }).await?;
        }
        if end {
            return Ok(());
        }
        if bytes == 0 {
            sleep(pause).await;
            pause = (pause * 2).min(POLL_MAX);
        } else {
            pause = POLL_MIN;
        }
    }
}

/// Where a reading begins: `offset`, or that many bytes before the present end if it is negative.
async fn start<L: Logs>(logs: &L, stream: LogStream, offset: i64) -> Result<u64, LogError> {
    match u64::try_from(offset) {
        Ok(offset) => Ok(offset),
        Err(_) => {
            let end = blocking(logs, move |logs| logs.end(side(stream))).await?;
            Ok(end.saturating_sub(offset.unsigned_abs()))
        }
    }
}

fn failure(offset: u64, error: &LogError) -> LogChunk {
    LogChunk { offset, error: Some(chain(error)), end: true, ..LogChunk::default() }
}

fn side(stream: LogStream) -> Stream {
    match stream {
        LogStream::Stdout => Stream::Stdout,
        LogStream::Stderr => Stream::Stderr,
    }
}

/// Reads on a thread that may wait for the disk.
async fn blocking<L: Logs, T: Send + 'static>(logs: &L, read: impl FnOnce(&L) -> T + Send + 'static) -> T {
    let logs = logs.clone();
    match tokio::task::spawn_blocking(move || read(&logs)).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

#[cfg(test)]
#[path = "data_tests.rs"]
mod tests;
