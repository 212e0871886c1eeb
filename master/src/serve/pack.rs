//! Streams to clients: what waits is put into one message up to a size, and a reader that has stopped is let go.

use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep_until};
use tonic::Status;

/// A message is sent once it has this many bytes. A single item may be larger (an agent's launch by its spec), and so
/// may items that belong together (the launches of a group).
pub(crate) const MESSAGE_BYTES: usize = 64 << 10;
/// Items that are taken at once from what waits.
pub(crate) const ITEMS_MAX: usize = 256;
/// How long a reader that was cut, or whose stream has ended, may take to hear of it.
const GRACE: Duration = Duration::from_secs(5);
/// How often a reader that does not read is looked at within that time.
const LOOKS: u32 = 5;

/// Nobody reads any more.
pub(crate) struct Gone;

/// The writing end of a stream to a client. The transport takes a message when the client has room for it, and one
/// more waits here.
pub(crate) struct Outlet<T> {
    to_client: mpsc::Sender<Result<T, Status>>,
    hang_up: Arc<Notify>,
    grace: Duration,
}

impl<T> Outlet<T> {
    /// A stream and its writing end. `hang_up` ends its connection.
    pub(crate) fn new(hang_up: Arc<Notify>) -> (Self, mpsc::Receiver<Result<T, Status>>) {
        let (to_client, stream) = mpsc::channel(1);
        (Self { to_client, hang_up, grace: GRACE }, stream)
    }

    /// Waits until the client is gone.
    pub(crate) async fn closed(&self) {
        self.to_client.closed().await;
    }

    /// Sends a message once there is room. If `is_cut` says that the stream is over, it has
    /// [`GRACE`] to begin reading again; then its whole connection ends, because nothing less reaches it.
    pub(crate) async fn send(&self, message: T, is_cut: impl Fn() -> bool) -> Result<(), Gone> {
        let mut cut_at = None;
        let mut look = Instant::now() + self.grace / LOOKS;
        loop {
            tokio::select! {
                room = self.to_client.reserve() => {
                    room.map_err(|_| Gone)?.send(Ok(message));
                    return Ok(());
                }
                () = sleep_until(look) => {
                    look += self.grace / LOOKS;
                    if is_cut() && *cut_at.get_or_insert(look) + self.grace <= look {
                        self.hang_up.notify_one();
                        return Err(Gone);
                    }
                }
            }
        }
    }

    /// Ends the stream with `status`, behind `last` if there is one. A client that does not take it in time loses its
    /// connection.
    pub(crate) async fn end(self, last: Option<T>, status: Status) {
        let sent = async {
            if let Some(last) = last {
                self.to_client.send(Ok(last)).await?;
            }
            self.to_client.send(Err(status)).await?;
            // The status has left when the transport has taken it.
            self.to_client.reserve().await.map(drop).map_err(|_| mpsc::error::SendError(Err(Status::ok(""))))
        };
        if tokio::time::timeout(self.grace, sent).await.is_err() {
            self.hang_up.notify_one();
        }
    }
}

/// Gathers items until they fill a message.
pub(crate) struct Packer<I> {
    items: Vec<I>,
    bytes: usize,
}

impl<I: Message> Packer<I> {
    pub(crate) fn new() -> Self {
        Self { items: Vec::new(), bytes: 0 }
    }

    /// Puts an item in; returns the items before it if it would not fit beside them.
    pub(crate) fn push(&mut self, item: I) -> Option<Vec<I>> {
        self.push_together([item])
    }

    /// Puts items in that must come in one message; returns the items before them if they would not fit beside those.
    pub(crate) fn push_together(&mut self, items: impl IntoIterator<Item = I>) -> Option<Vec<I>> {
        let items: Vec<I> = items.into_iter().collect();
        let bytes: usize = items.iter().map(Message::encoded_len).sum();
        let full = (!self.items.is_empty() && self.bytes + bytes > MESSAGE_BYTES).then(|| self.take());
        self.items.extend(items);
        self.bytes += bytes;
        full
    }

    /// What was gathered; may be nothing.
    pub(crate) fn take(&mut self) -> Vec<I> {
        self.bytes = 0;
        std::mem::take(&mut self.items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proffer_wire::common::v1::Set;

    fn item(bytes: usize) -> Set {
        Set { items: vec!["x".repeat(bytes)] }
    }

    #[test]
    fn messages_are_full_but_not_too_large() {
        let mut packer = Packer::new();
        let mut sent = Vec::new();
        for bytes in [100, 40_000, 20_000, 30_000, 200_000, 5] {
            sent.extend(packer.push(item(bytes)));
        }
        sent.push(packer.take());
        let sizes: Vec<usize> = sent.iter().map(Vec::len).collect();
        assert_eq!(sizes, [3, 1, 1, 1]);
    }

    #[test]
    fn what_belongs_together_comes_in_one_message() {
        let mut packer = Packer::new();
        let mut sent = Vec::new();
        sent.extend(packer.push(item(10_000)));
        sent.extend(packer.push_together([item(30_000), item(30_000), item(30_000)]));
        sent.extend(packer.push_together([item(5), item(5)]));
        sent.push(packer.take());
        let sizes: Vec<usize> = sent.iter().map(Vec::len).collect();
        assert_eq!(sizes, [1, 3, 2]);
    }

    const SHORT: Duration = Duration::from_millis(100);

    fn impatient(hang_up: Arc<Notify>) -> (Outlet<u32>, mpsc::Receiver<Result<u32, Status>>) {
        let (outlet, stream) = Outlet::new(hang_up);
        (Outlet { grace: SHORT, ..outlet }, stream)
    }

    #[tokio::test]
    async fn a_reader_that_was_cut_and_does_not_read_loses_its_connection() {
        let hang_up = Arc::new(Notify::new());
        let (outlet, mut stream) = impatient(hang_up.clone());
        assert!(outlet.send(1, || true).await.is_ok());
        let began = Instant::now();
        assert!(outlet.send(2, || true).await.is_err());
        assert!(began.elapsed() >= SHORT);
        hang_up.notified().await;
        assert!(matches!(stream.recv().await, Some(Ok(1))));
    }

    #[tokio::test]
    async fn a_reader_that_is_only_slow_keeps_it() {
        let (outlet, mut stream) = impatient(Arc::new(Notify::new()));
        assert!(outlet.send(1, || false).await.is_ok());
        let slow = tokio::spawn(async move {
            tokio::time::sleep(5 * SHORT).await;
            [stream.recv().await, stream.recv().await].map(|message| message.and_then(Result::ok))
        });
        assert!(outlet.send(2, || false).await.is_ok());
        assert_eq!(slow.await.expect("the reader"), [Some(1), Some(2)]);
    }

    #[tokio::test]
    async fn an_end_that_nobody_takes_ends_the_connection() {
        let hang_up = Arc::new(Notify::new());
        let (outlet, _stream) = impatient(hang_up.clone());
        assert!(outlet.send(1, || false).await.is_ok());
        outlet.end(None, Status::aborted("x")).await;
        hang_up.notified().await;
    }
}
