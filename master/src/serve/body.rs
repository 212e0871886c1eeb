//! Bodies of requests under limits. A message may be large, slow or never end; what is held of it is counted, and so
//! is the time it takes.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use proffer_wire::status;
use tokio::time::{Sleep, sleep};
use tonic::Status;

use super::rpc::Rpc;

/// How long a message may take to arrive.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of incomplete messages on one connection: two of the largest.
const CONNECTION_BYTES_MAX: usize = 32 << 20;
/// Bytes of incomplete messages on all connections.
const TOTAL_BYTES_MAX: usize = 256 << 20;
/// When to come again if there is no room (milliseconds).
const RETRY_MS: u64 = 500;
/// The head of a gRPC message: a flag and its length.
const HEAD_BYTES: usize = 5;

/// Counts what is held of incomplete messages.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    own: Arc<AtomicUsize>,
    total: Arc<AtomicUsize>,
}

impl Budget {
    /// For all connections of a server.
    pub(crate) fn new() -> Self {
        Self { own: Arc::default(), total: Arc::default() }
    }

    /// For one more connection of the same server.
    pub(crate) fn for_connection(&self) -> Self {
        Self { own: Arc::default(), total: self.total.clone() }
    }

    fn take(&self, bytes: usize) -> bool {
        let own = self.own.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let total = self.total.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if own > CONNECTION_BYTES_MAX || total > TOTAL_BYTES_MAX {
            self.give(bytes);
            return false;
        }
        true
    }

    fn give(&self, bytes: usize) {
        self.own.fetch_sub(bytes, Ordering::Relaxed);
        self.total.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// A request's body that ends with a status where a limit is passed.
pub(crate) struct Limited {
    inner: Incoming,
    rpc: Rpc,
    budget: Budget,
    message: Progress,
    /// Held of the present message, counted in the budget.
    held: usize,
    deadline: Option<Pin<Box<Sleep>>>,
}

/// How far the present message has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Progress {
    head: [u8; HEAD_BYTES],
    /// Bytes of the head that are there.
    head_bytes: usize,
    /// Bytes of the body that are missing, once the head is complete.
    missing: usize,
}

/// What some bytes did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Step {
    /// A message came to its end.
    completed: bool,
    /// How many of them belong to a message that is not complete yet.
    held: usize,
}

impl Progress {
    const START: Self = Self { head: [0; HEAD_BYTES], head_bytes: 0, missing: 0 };

    /// Takes bytes as they come. An error is the length of a message that is too long.
    fn advance(&mut self, mut data: &[u8], most: usize) -> Result<Step, usize> {
        let mut step = Step::default();
        while data.has_remaining() {
            if self.head_bytes < HEAD_BYTES {
                let take = data.len().min(HEAD_BYTES - self.head_bytes);
                data.copy_to_slice(&mut self.head[self.head_bytes..self.head_bytes + take]);
                self.head_bytes += take;
                step.held += take;
                if self.head_bytes < HEAD_BYTES {
                    break;
                }
                let [_, length @ ..] = self.head;
                self.missing = u32::from_be_bytes(length) as usize;
                if self.missing > most {
                    return Err(self.missing);
                }
            }
            let take = data.len().min(self.missing);
            data.advance(take);
            self.missing -= take;
            step.held += take;
            if self.missing == 0 {
                *self = Self::START;
                step = Step { completed: true, held: 0 };
            }
        }
        Ok(step)
    }

    fn is_between_messages(&self) -> bool {
        *self == Self::START
    }
}

impl Limited {
    pub(crate) fn new(inner: Incoming, rpc: Rpc, budget: Budget) -> Self {
        Self { inner, rpc, budget, message: Progress::START, held: 0, deadline: None }
    }

    fn check(&mut self, data: &Bytes) -> Result<(), Status> {
        let most = self.rpc.bytes_max();
        let step = self.message.advance(data, most).map_err(|found| {
            let path = self.rpc.path();
            status::too_large(format!("{path}: a message has {found} bytes, the limit is {most} bytes"))
        })?;
        if step.completed {
            self.budget.give(std::mem::take(&mut self.held));
            self.deadline = None;
        }
        if step.held > 0 {
            if !self.budget.take(step.held) {
                return Err(status::busy(
                    "BUSY",
                    "too many large messages are on their way".into(),
                    RETRY_MS,
                ));
            }
            self.held += step.held;
        }
        Ok(())
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        self.budget.give(self.held);
    }
}

impl Body for Limited {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match Pin::new(&mut self.inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    let data = data.clone();
                    if let Err(status) = self.check(&data) {
                        return Poll::Ready(Some(Err(status)));
                    }
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(Status::from_error(Box::new(error))))),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => {
                if self.rpc.takes_stream() && self.message.is_between_messages() {
                    return Poll::Pending;
                }
                let deadline = self.deadline.get_or_insert_with(|| Box::pin(sleep(MESSAGE_TIMEOUT)));
                match deadline.as_mut().poll(cx) {
                    Poll::Pending => Poll::Pending,
                    Poll::Ready(()) => {
                        let text =
                            format!("the message did not arrive within {} s", MESSAGE_TIMEOUT.as_secs());
                        Poll::Ready(Some(Err(status::deadline(text))))
                    }
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(length: usize) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend_from_slice(&(length as u32).to_be_bytes());
        bytes.resize(HEAD_BYTES + length, 7);
        bytes
    }

    #[test]
    fn messages_are_followed_whatever_the_pieces() {
        let stream = [message(0), message(3), message(100), message(1)].concat();
        for piece in 1..stream.len() {
            let mut progress = Progress::START;
            let mut completed = false;
            for data in stream.chunks(piece) {
                let step = progress.advance(data, 100).expect("within the limit");
                assert!(step.held <= data.len());
                assert_eq!(step.held == 0, progress.is_between_messages(), "piece {piece}");
                completed |= step.completed;
            }
            assert!(completed, "piece {piece}");
            assert!(progress.is_between_messages(), "piece {piece}");
        }
    }

    #[test]
    fn a_message_over_the_limit_is_found_by_its_head() {
        let mut progress = Progress::START;
        assert_eq!(progress.advance(&message(3)[..], 100), Ok(Step { completed: true, held: 0 }));
        assert_eq!(progress.advance(&message(101)[..HEAD_BYTES], 100), Err(101));
    }

    #[test]
    fn a_budget_is_for_one_connection_and_for_all() {
        let all = Budget::new();
        let one = all.for_connection();
        assert!(one.take(CONNECTION_BYTES_MAX));
        assert!(!one.take(1));
        let others: Vec<_> =
            (0..TOTAL_BYTES_MAX / CONNECTION_BYTES_MAX - 1).map(|_| all.for_connection()).collect();
        assert!(others.iter().all(|other| other.take(CONNECTION_BYTES_MAX)));
        assert!(!all.for_connection().take(1));
        one.give(CONNECTION_BYTES_MAX);
        assert!(all.for_connection().take(1));
    }
}
