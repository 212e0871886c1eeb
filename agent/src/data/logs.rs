//! A task's output.

use std::time::Duration;

use bytes::Bytes;
use proffer_containerizer::{Chunk, LogError, LogReader, Stream};
use proffer_wire::agent::v1 as pb;
use proffer_wire::to_proto;
use proffer_wire::told::{LogChunk, LogRange, LogStream};

use super::wake::Wake;
use super::{CHUNK_BYTES, Gone, Outbound};
use crate::session::chain;

/// How often a followed log is looked at while nothing comes, at first and at most, where nothing wakes its reader.
const POLL_MIN: Duration = Duration::from_millis(50);
const POLL_MAX: Duration = Duration::from_millis(500);
/// And where something does: in case it does not.
const POLL_WOKEN: Duration = Duration::from_secs(2);

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

/// Reads a range and sends it in pieces; the last one says that nothing follows.
pub(super) async fn copy<L: Logs>(
    logs: &L,
    range: LogRange,
    wake: &Wake,
    outbound: &Outbound,
) -> Result<(), Gone> {
    let stream = range.stream;
    copy_as(logs, range, wake, outbound, |chunk| Some(to_proto::data_chunk(Bytes::new(), stream, chunk)))
        .await
}

/// The same, for whoever makes something else of each piece.
pub(super) async fn copy_as<L: Logs>(
    logs: &L,
    range: LogRange,
    wake: &Wake,
    outbound: &Outbound,
    told: impl Fn(LogChunk) -> Option<pb::DataChunk>,
) -> Result<(), Gone> {
    let LogRange { stream, offset, limit, follow } = range;
    let mut left = if limit == 0 { u64::MAX } else { limit };
    let mut at = match start(logs, stream, offset).await {
        Ok(at) => at,
        Err(error) => return send(told(failure(0, &error)), outbound).await,
    };
    let mut pause = POLL_MIN;
    loop {
        // What comes after this wakes us, even if it comes before we sleep.
        let woken = wake.notified();
        let max = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK_BYTES);
        let chunk = match blocking(logs, move |logs| logs.read(side(stream), at, max)).await {
            Ok(chunk) => chunk,
            Err(error) => return send(told(failure(at, &error)), outbound).await,
        };
        let bytes = chunk.bytes.len() as u64;
        at = chunk.offset + bytes;
        left -= bytes;
        // Reading up to the present end is done when there is nothing; a follower waits for the task's end.
        let end = chunk.ended || left == 0 || (bytes == 0 && !follow);
        if end || bytes > 0 || chunk.lost > 0 {
            let lost = chunk.lost;
            let piece = LogChunk { offset: chunk.offset, data: chunk.bytes.into(), end, lost, error: None };
            send(told(piece), outbound).await?;
        }
        if end {
            return Ok(());
        }
        if bytes == 0 {
            let patience = if wake.is_watching() { POLL_WOKEN } else { pause };
            let _ = tokio::time::timeout(patience, woken).await;
            pause = (pause * 2).min(POLL_MAX);
        } else {
            pause = POLL_MIN;
        }
    }
}

async fn send(chunk: Option<pb::DataChunk>, outbound: &Outbound) -> Result<(), Gone> {
    match chunk {
        Some(chunk) => outbound.send(chunk).await,
        None => Ok(()),
    }
}

/// The offset after what there is now; the beginning if that cannot be read.
pub(super) async fn end<L: Logs>(logs: &L, stream: LogStream) -> u64 {
    blocking(logs, move |logs| logs.end(side(stream))).await.unwrap_or(0)
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
    super::blocking(move || read(&logs)).await
}

#[cfg(test)]
#[path = "logs_tests.rs"]
mod tests;
