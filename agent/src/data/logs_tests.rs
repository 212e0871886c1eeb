use std::sync::{Arc, Mutex};

use proffer_types::LaunchId;
use proffer_wire::agent::v1 as pb;
use tokio::sync::mpsc;

use super::*;
use crate::data::wake::Wakers;

/// A log that the test writes.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<(Vec<u8>, bool)>>);

impl Written {
    fn write(&self, bytes: &[u8]) {
        self.0.lock().unwrap().0.extend_from_slice(bytes);
    }

    fn finish(&self) {
        self.0.lock().unwrap().1 = true;
    }
}

impl Logs for Written {
    fn read(&self, _: Stream, offset: u64, max: usize) -> Result<Chunk, LogError> {
        let (bytes, ended) = &*self.0.lock().unwrap();
        // The first ten bytes are rotated away.
        let from = offset.max(10).min(bytes.len() as u64);
        let part: Vec<u8> = bytes.iter().skip(from as usize).take(max).copied().collect();
        let at_end = from as usize + part.len() == bytes.len();
        Ok(Chunk { offset: from, bytes: part, lost: from.saturating_sub(offset), ended: *ended && at_end })
    }

    fn end(&self, _: Stream) -> Result<u64, LogError> {
        Ok(self.0.lock().unwrap().0.len() as u64)
    }
}

fn wake() -> Wake {
    Wakers::new().subscribe(LaunchId(1), None)
}

fn range(offset: i64, limit: u64, follow: bool) -> LogRange {
    LogRange { stream: LogStream::Stdout, offset, limit, follow }
}

async fn all(logs: &Written, range: LogRange) -> Vec<pb::DataChunk> {
    let (chunks, mut read) = mpsc::channel(4);
    let logs = logs.clone();
    let copying =
        tokio::spawn(async move { copy(&logs, range, &wake(), &Outbound { chunks }).await.is_ok() });
    let mut list = Vec::new();
    while let Some(chunk) = read.recv().await {
        list.push(chunk);
    }
    assert!(copying.await.unwrap());
    list
}

fn text(chunks: &[pb::DataChunk]) -> String {
    String::from_utf8(chunks.iter().flat_map(|c| c.data.to_vec()).collect()).unwrap()
}

#[tokio::test]
async fn reads_by_offset_and_says_what_is_lost() {
    let logs = Written::default();
    logs.write(b"0123456789abcdefghij");
    let chunks = all(&logs, range(5, 0, false)).await;
    assert_eq!(text(&chunks), "abcdefghij");
    assert_eq!((chunks[0].offset, chunks[0].lost, chunks.last().unwrap().end), (10, 5, true));
    assert_eq!(text(&all(&logs, range(-3, 0, false)).await), "hij");
    assert_eq!(text(&all(&logs, range(12, 4, false)).await), "cdef");
    let beyond = all(&logs, range(99, 0, false)).await;
    assert_eq!((beyond.len(), beyond[0].end, beyond[0].data.len()), (1, true, 0));
}

#[tokio::test]
async fn large_output_comes_in_pieces() {
    let logs = Written::default();
    logs.write(&vec![b'x'; 3 * CHUNK_BYTES]);
    logs.finish();
    let chunks = all(&logs, range(10, 0, false)).await;
    assert_eq!(text(&chunks).len(), 3 * CHUNK_BYTES - 10);
    assert!(chunks.iter().all(|c| c.data.len() <= CHUNK_BYTES));
    assert_eq!(chunks.iter().filter(|c| c.end).count(), 1);
}

#[tokio::test]
async fn a_follower_goes_on_until_the_task_has_ended() {
    let logs = Written::default();
    logs.write(b"0123456789one ");
    let (chunks, mut read) = mpsc::channel(4);
    let copying = tokio::spawn({
        let logs = logs.clone();
        async move { copy(&logs, range(0, 0, true), &wake(), &Outbound { chunks }).await.is_ok() }
    });
    assert_eq!(read.recv().await.unwrap().data, "one ");
    logs.write(b"two ");
    assert_eq!(read.recv().await.unwrap().data, "two ");
    logs.write(b"three");
    logs.finish();
    let mut rest = Vec::new();
    while let Some(chunk) = read.recv().await {
        rest.push(chunk);
    }
    assert_eq!(text(&rest), "three");
    assert!(rest.last().unwrap().end);
    assert!(copying.await.unwrap());
}

#[tokio::test]
async fn a_reader_that_leaves_ends_the_reading() {
    let logs = Written::default();
    let (chunks, read) = mpsc::channel(4);
    logs.write(b"0123456789x");
    drop(read);
    assert!(copy(&logs, range(0, 0, true), &wake(), &Outbound { chunks }).await.is_err());
}
