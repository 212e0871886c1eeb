//! Bulk data of snapshots: storing images of our own state machine, serving segments, fetching them.

use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use proffer_wal::{Hash, SegmentRef, SnapshotStore};

use super::node::Input;
use super::wire::{self, Purpose};
use super::{Error, Shared, peer};
use crate::types::Snapshot;

/// Bytes asked for at a time.
const CHUNK_BYTES: usize = 1 << 20;
/// A fetch ends after so many connections in a row that brought nothing.
const FRUITLESS_MAX: u32 = 10;
/// The leader is told of progress this often: well within its patience.
const NEWS_INTERVAL: Duration = Duration::from_secs(1);

const FOUND: u8 = 1;
const ABSENT: u8 = 2;

/// An image to store.
pub(super) struct ImageOrder {
    pub(super) index: u64,
    pub(super) segments: Vec<Bytes>,
}

/// Starts the thread that stores images, so that their fsyncs hold up nobody.
pub(super) fn start_images(shared: &Arc<Shared>, store: SnapshotStore) -> Result<Sender<ImageOrder>, Error> {
    let (orders, queue) = mpsc::channel::<ImageOrder>();
    shared.spawn("image", move |shared| {
        while let Ok(ImageOrder { index, segments }) = queue.recv() {
            match segments.iter().map(|segment| store.put(segment)).collect() {
                Ok(segments) => shared.tell(Input::ImageStored { index, segments }),
                // The log goes on without it; the node will ask for another image.
                Err(error) => tracing::error!(index, %error, "cannot store a snapshot"),
            }
        }
    })?;
    Ok(orders)
}

/// What to fetch.
pub(super) enum FetchOrder {
    Start { from: u64, snapshot: Snapshot },
    Stop,
}

/// Starts the thread that fetches; a newer order ends the one under way.
pub(super) fn start_fetches(shared: &Arc<Shared>, store: SnapshotStore) -> Result<Sender<FetchOrder>, Error> {
    let (orders, queue) = mpsc::channel();
    shared.spawn("fetch", move |shared| {
        let mut pinned: Vec<SegmentRef> = Vec::new();
        let mut next = queue.recv().ok();
        while let Some(order) = next.take() {
            let FetchOrder::Start { from, snapshot } = order else {
                store.unpin(&std::mem::take(&mut pinned));
                next = queue.recv().ok();
                continue;
            };
            store.pin(&snapshot.segments);
            store.unpin(&std::mem::replace(&mut pinned, snapshot.segments.clone()));
            tracing::info!(from, index = snapshot.index, bytes = snapshot.bytes(), "fetching a snapshot");
            let fetch = FetchJob { shared, store: &store, queue: &queue, from };
            next = match fetch.run(&snapshot) {
                Fetching::Whole => {
                    shared.tell(Input::Fetched { snapshot });
                    queue.recv().ok()
                }
                Fetching::Failed(error) => {
                    tracing::warn!(from, index = snapshot.index, %error, "cannot fetch a snapshot");
                    shared.tell(Input::FetchFailed { snapshot });
                    queue.recv().ok()
                }
                Fetching::Replaced(order) => Some(order),
                Fetching::Ended => None,
            };
        }
        store.unpin(&pinned);
    })?;
    Ok(orders)
}

struct FetchJob<'a> {
    shared: &'a Arc<Shared>,
    store: &'a SnapshotStore,
    queue: &'a Receiver<FetchOrder>,
    from: u64,
}

enum Fetching {
    Whole,
    Failed(io::Error),
    Replaced(FetchOrder),
    Ended,
}

impl FetchJob<'_> {
    fn run(&self, snapshot: &Snapshot) -> Fetching {
        let mut fruitless = 0;
        let mut news = Instant::now();
        loop {
            let mut progressed = false;
            let error = match self.one_connection(snapshot, &mut news, &mut progressed) {
                Ok(None) => return Fetching::Whole,
                Ok(Some(replaced)) => return replaced,
                Err(error) => error,
            };
            fruitless = if progressed { 0 } else { fruitless + 1 };
            if fruitless == FRUITLESS_MAX || error.kind() == io::ErrorKind::NotFound {
                return Fetching::Failed(error);
            }
            // A pause that a newer order ends.
            if let Some(replaced) = self.replaced(Duration::from_millis(100)) {
                return replaced;
            }
        }
    }

    fn replaced(&self, wait: Duration) -> Option<Fetching> {
        match self.queue.recv_timeout(wait) {
            Ok(order) => Some(Fetching::Replaced(order)),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Fetching::Ended),
        }
    }

    /// Gets what is missing over one connection, going on where the last one ended.
    fn one_connection(
        &self,
        snapshot: &Snapshot,
        news: &mut Instant,
        progressed: &mut bool,
    ) -> io::Result<Option<Fetching>> {
        let mut stream = peer::connect(self.shared, self.from, Purpose::Segments)?;
        let _registered = self.shared.register(&stream)?;
        for segment in &snapshot.segments {
            while !self.store.has(segment) {
                if let Some(replaced) = self.replaced(Duration::ZERO) {
                    return Ok(Some(replaced));
                }
                let offset = self.store.partial_len(segment.hash);
                if offset < segment.bytes {
                    let chunk = request(&mut stream, segment.hash, offset)?;
                    if chunk.is_empty() {
                        return Err(io::Error::other(format!("segment {} ends too early", segment.hash)));
                    }
                    let room = (segment.bytes - offset).min(chunk.len() as u64) as usize;
                    let stored = self.store.extend_partial(segment.hash, offset, &chunk[..room]);
                    stored.map_err(io::Error::other)?;
                    *progressed = true;
                } else if !self.store.finish_partial(segment).map_err(io::Error::other)? {
                    return Err(io::Error::other(format!("segment {} arrived damaged", segment.hash)));
                }
                if news.elapsed() >= NEWS_INTERVAL {
                    *news = Instant::now();
                    self.shared.tell(Input::FetchProgress);
                }
            }
        }
        Ok(None)
    }
}

fn request(stream: &mut TcpStream, hash: Hash, offset: u64) -> io::Result<Bytes> {
    let mut out = Vec::new();
    let (at, max) = (offset.to_le_bytes(), (CHUNK_BYTES as u32).to_le_bytes());
    wire::put_frame(&mut out, &[&hash.0, &at, &max]);
    io::Write::write_all(stream, &out)?;
    let mut answer = wire::read_frame(stream)?;
    match answer.try_get_u8() {
        Ok(FOUND) => Ok(answer),
        Ok(ABSENT) => {
            Err(io::Error::new(io::ErrorKind::NotFound, format!("the peer has no segment {hash} any more")))
        }
        _ => Err(io::Error::other("an answer of an unknown kind")),
    }
}

/// Serves segments until the other side has enough.
pub(super) fn serve(store: &SnapshotStore, stream: &mut TcpStream) -> io::Result<()> {
    loop {
        let mut asked = wire::read_frame(stream)?;
        let mut hash = [0; 32];
        let broken = |_| io::Error::other("a request that is not decodable");
        asked.try_copy_to_slice(&mut hash).map_err(broken)?;
        let offset = asked.try_get_u64_le().map_err(broken)?;
        let max = (asked.try_get_u32_le().map_err(broken)? as usize).min(CHUNK_BYTES);
        let mut out = Vec::new();
        match store.read_chunk(Hash(hash), offset, max).map_err(io::Error::other)? {
            Some(chunk) => wire::put_frame(&mut out, &[&[FOUND], &chunk]),
            None => wire::put_frame(&mut out, &[&[ABSENT]]),
        }
        io::Write::write_all(stream, &out)?;
    }
}
