//! Bounded queues from the mind to the served streams. The mind never waits for a reader: one that is too slow loses
//! its stream, and begins again with a snapshot.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use proffer_types::call::ConnectionId;
use proffer_types::event::{AgentOrder, FrameworkEvent, StreamEnd};
use proffer_types::{FrameworkId, SessionId};
use tokio::sync::{Notify, mpsc};

use super::{Notice, View};

/// Items that a stream may be behind while its reader takes nothing. An event is some hundred bytes, a launch at most
/// a spec (64 KiB, shared by its tasks), so such a stream holds a few megabytes.
const OUTBOX_ITEMS: usize = 8_192;
/// How long a reader may take nothing before that counts.
const PATIENCE: Duration = Duration::from_secs(5);
/// Items that a stream may be behind in any case. One Accept has up to 10,000 launches, one loss of an agent as many
/// updates as it had tasks: what comes at once must fit in, or a stream that begins with it would never last.
const OUTBOX_ITEMS_MAX: usize = 131_072;

/// Items behind which a message from or to an executor is not queued any more. Such a message has up to 64 KiB, so the
/// messages of a stream whose reader stands still are at most 8 MiB.
const ROOM_ITEMS: usize = 128;

/// To whoever serves a framework's stream.
#[derive(Clone, Debug)]
pub enum FrameworkItem {
    /// The subscription is open. What follows for the framework is read from `view`: its tasks as a snapshot, then
    /// every status that waits for an acknowledgement; then come the events.
    Open {
        /// The framework.
        framework: FrameworkId,
        /// Its session.
        session: SessionId,
        /// The highest sequence number that is known to have been used.
        last_seq: u64,
        /// The state.
        view: Box<View>,
    },
    /// An event.
    Event(FrameworkEvent),
}

struct Queue<T> {
    items: VecDeque<T>,
    end: Option<StreamEnd>,
    /// When the reader last took something, or found nothing to take.
    taken_at: Instant,
}

/// A queue with one writer, the driver, and one reader.
pub(crate) struct Outbox<T> {
    queue: Mutex<Queue<T>>,
    readable: Notify,
}

impl<T> Outbox<T> {
    pub(crate) fn new() -> Self {
        let queue = Queue { items: VecDeque::new(), end: None, taken_at: Instant::now() };
        Self { queue: Mutex::new(queue), readable: Notify::new() }
    }

    /// Puts an item in; a reader that is too far behind loses everything and its stream.
    pub(crate) fn push(&self, item: T) {
        let mut queue = self.lock();
        if queue.end.is_none() {
            let behind = queue.items.len();
            if behind == 0 {
                queue.taken_at = Instant::now();
            }
            let stopped = behind >= OUTBOX_ITEMS && queue.taken_at.elapsed() > PATIENCE;
            if stopped || behind >= OUTBOX_ITEMS_MAX {
                queue.items = VecDeque::new();
                queue.end = Some(StreamEnd::Resync);
            } else {
                queue.items.push_back(item);
            }
        }
        drop(queue);
        self.readable.notify_one();
    }

    /// Puts an item in that may be lost, and tells whether it did: only if few wait.
    pub(crate) fn push_if_room(&self, item: T) -> bool {
        let room = {
            let queue = self.lock();
            queue.end.is_none() && queue.items.len() < ROOM_ITEMS
        };
        if room {
            self.push(item);
        }
        room
    }

    /// Ends the stream behind what is queued.
    pub(crate) fn close(&self, end: StreamEnd) {
        self.lock().end.get_or_insert(end);
        self.readable.notify_one();
    }

    async fn next(&self, max: usize) -> Result<Vec<T>, StreamEnd> {
        loop {
            {
                let mut queue = self.lock();
                if !queue.items.is_empty() {
                    queue.taken_at = Instant::now();
                    let count = queue.items.len().min(max);
                    let some = queue.items.drain(..count).collect();
                    if queue.items.is_empty() && queue.items.capacity() > OUTBOX_ITEMS {
                        queue.items = VecDeque::new();
                    }
                    return Ok(some);
                }
                if let Some(end) = queue.end {
                    return Err(end);
                }
            }
            self.readable.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue<T>> {
        self.queue.lock().expect("nothing panics with the queue in its hands")
    }
}

macro_rules! stream {
    ($(#[$doc:meta])* $name:ident, $item:ty, $gone:ident) => {
        $(#[$doc])*
        pub struct $name {
            outbox: Arc<Outbox<$item>>,
            connection: ConnectionId,
            notices: mpsc::UnboundedSender<Notice>,
        }

        impl $name {
            pub(crate) fn new(
                outbox: Arc<Outbox<$item>>,
                connection: ConnectionId,
                notices: mpsc::UnboundedSender<Notice>,
            ) -> Self {
                Self { outbox, connection, notices }
            }

            /// What waits, at most `max` items, in order; waits until there is something.
            ///
            /// # Errors
            /// The stream has ended, and why.
            pub async fn next(&mut self, max: usize) -> Result<Vec<$item>, StreamEnd> {
                self.outbox.next(max).await
            }

            /// Why the stream is over, if it is. A reader that is too slow may not see its end: the transport delivers
            /// nothing to a stream without window.
            pub fn ended(&self) -> Option<StreamEnd> {
                self.outbox.lock().end
            }
        }

        impl Drop for $name {
            fn drop(&mut self) {
                let _ = self.notices.send(Notice::$gone { connection: self.connection });
            }
        }
    };
}

stream!(
    /// Events for a framework.
    FrameworkStream, FrameworkItem, FrameworkGone
);
stream!(
    /// Orders for an agent.
    AgentStream, AgentOrder, AgentGone
);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_slow_reader_is_cut_and_told_so() {
        let outbox = Outbox::new();
        (0..=OUTBOX_ITEMS_MAX).for_each(|n| outbox.push(n));
        assert_eq!(outbox.next(10).await, Err(StreamEnd::Resync));
        let outbox = Outbox::new();
        (0..OUTBOX_ITEMS).for_each(|n| outbox.push(n));
        let long_ago =
            Instant::now().checked_sub(2 * PATIENCE).expect("the machine has run for some seconds");
        outbox.lock().taken_at = long_ago;
        outbox.push(0);
        assert_eq!(outbox.next(10).await, Err(StreamEnd::Resync));
    }

    #[tokio::test]
    async fn a_reader_that_reads_is_not_cut_for_much_at_once() {
        let outbox = Outbox::new();
        (0..10 * OUTBOX_ITEMS).for_each(|n| outbox.push(n));
        assert_eq!(outbox.next(usize::MAX).await.map(|items| items.len()), Ok(10 * OUTBOX_ITEMS));
    }

    #[tokio::test]
    async fn what_may_be_lost_is_not_queued_behind_much() {
        let outbox = Outbox::new();
        (0..ROOM_ITEMS).for_each(|n| assert!(outbox.push_if_room(n)));
        assert!(!outbox.push_if_room(0));
        // What must not be lost still is.
        outbox.push(7);
        assert_eq!(outbox.next(usize::MAX).await.map(|items| items.last().copied()), Ok(Some(7)));
        assert!(outbox.push_if_room(0));
        outbox.close(StreamEnd::NotLeader);
        assert!(!outbox.push_if_room(1));
    }

    #[tokio::test]
    async fn what_was_queued_comes_before_the_end() {
        let outbox = Outbox::new();
        outbox.push(1);
        outbox.close(StreamEnd::NotLeader);
        outbox.push(2);
        assert_eq!(outbox.next(10).await, Ok(vec![1]));
        assert_eq!(outbox.next(10).await, Err(StreamEnd::NotLeader));
    }
}
