//! The loop that owns the mind, on a thread of its own: takes what comes from Raft and from the served connections,
//! and does what the mind says. Everyone else holds a [`Handle`].

mod data;
mod outbox;
mod run;

pub use data::{DataLink, DataOrder, PendingData, Target};
pub use outbox::{AgentStream, FrameworkItem, FrameworkStream};
pub use run::{Driver, MasterSettings};

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use proffer_broker::LiveOffer;
use proffer_registry::Registry;
use proffer_types::call::{Call, ConnectionId};
use proffer_types::event::{Refused, Reply};
use proffer_types::{AgentId, Caller, ClusterTime, Epoch};
use tokio::sync::{mpsc, oneshot};

use crate::events::Feed;
use outbox::Outbox;

/// Calls that may wait for the mind before callers do. One takes some microseconds.
const INBOX_CALLS: usize = 4_096;

/// A master of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MasterView {
    /// Its id.
    pub id: u64,
    /// Where clients reach it.
    pub address: String,
    /// Whether it leads; `None` if there is no contact.
    pub leads: Option<bool>,
    /// The last log index it is known to have.
    pub index: u64,
}

/// The state at one moment. Cheap to make and to keep; it never changes.
#[derive(Clone, Debug)]
pub struct View {
    /// The replicated state.
    pub registry: Registry,
    /// The outstanding offers.
    pub offers: Arc<Vec<LiveOffer>>,
    /// Agents with an open session.
    pub connected: Arc<std::collections::BTreeSet<AgentId>>,
    /// The masters.
    pub masters: Arc<Vec<MasterView>>,
    /// The leader's id.
    pub leader_id: u64,
    /// Where the leader is reached.
    pub leader: String,
    /// The leadership.
    pub epoch: Epoch,
    /// The cluster's time.
    pub time: ClusterTime,
}

/// What others ask of the driver.
#[allow(clippy::large_enum_variant, reason = "most are the large one, and each is moved twice")]
pub(crate) enum Ask {
    /// A call, and who waits for its answer.
    Call { caller: Caller, call: Call, reply: Option<oneshot::Sender<Result<Reply, Refused>>> },
    /// The state.
    View { linearizable: bool, min_index: u64, reply: oneshot::Sender<Result<View, Refused>> },
    /// Bulk data of an agent.
    Open { caller: Caller, order: Box<DataOrder>, reply: oneshot::Sender<Result<DataLink, Refused>> },
    /// An agent brings the data of a ticket.
    Data { ticket: [u8; 16], reply: oneshot::Sender<Option<PendingData>> },
}

/// What must not wait for room: new streams, and the end of streams.
pub(crate) enum Notice {
    Framework { connection: ConnectionId, outbox: Arc<Outbox<FrameworkItem>> },
    Agent { connection: ConnectionId, outbox: Arc<Outbox<proffer_types::event::AgentOrder>> },
    FrameworkGone { connection: ConnectionId },
    AgentGone { connection: ConnectionId },
    Raft(proffer_raft::Event),
    Stop,
}

/// The way to the driver. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    asks: mpsc::Sender<Ask>,
    notices: mpsc::UnboundedSender<Notice>,
    connections: Arc<AtomicU64>,
    feed: Feed,
}

impl Handle {
    /// Makes a call and waits for its answer.
    pub async fn call(&self, caller: Caller, call: Call) -> Result<Reply, Refused> {
        let (reply, answer) = oneshot::channel();
        self.ask(Ask::Call { caller, call, reply: Some(reply) }).await?;
        answer.await.unwrap_or(Err(Refused::OutcomeUnknown))
    }

    /// Makes a call that has no answer; waits only for room.
    pub async fn tell(&self, caller: Caller, call: Call) -> Result<(), Refused> {
        self.ask(Ask::Call { caller, call, reply: None }).await
    }

    /// A new stream to a framework, to be named in its Subscribe. Dropping it tells the driver that it is gone.
    pub fn open_framework(&self) -> (ConnectionId, FrameworkStream) {
        let connection = self.next_connection();
        let outbox = Arc::new(Outbox::new());
        let _ = self.notices.send(Notice::Framework { connection, outbox: outbox.clone() });
        (connection, FrameworkStream::new(outbox, connection, self.notices.clone()))
    }

    /// A new session of an agent, to be named in its messages. Dropping it tells the driver that it is gone.
    pub fn open_agent(&self) -> (ConnectionId, AgentStream) {
        let connection = self.next_connection();
        let outbox = Arc::new(Outbox::new());
        let _ = self.notices.send(Notice::Agent { connection, outbox: outbox.clone() });
        (connection, AgentStream::new(outbox, connection, self.notices.clone()))
    }

    /// The state, from the leader: `linearizable` includes everything that anyone was told before the call.
    pub async fn view(&self, linearizable: bool, min_index: u64) -> Result<View, Refused> {
        let (reply, answer) = oneshot::channel();
        self.ask(Ask::View { linearizable, min_index, reply }).await?;
        answer.await.unwrap_or(Err(Refused::OutcomeUnknown))
    }

    /// Asks an agent to dial for bulk data. Returns before it has.
    pub async fn open_data(&self, caller: Caller, order: DataOrder) -> Result<DataLink, Refused> {
        let (reply, answer) = oneshot::channel();
        self.ask(Ask::Open { caller, order: Box::new(order), reply }).await?;
        answer.await.unwrap_or(Err(Refused::OutcomeUnknown))
    }

    /// What became true lately, on this master, whether it leads or not.
    pub fn feed(&self) -> &Feed {
        &self.feed
    }

    /// What an agent that came with `ticket` was asked for; `None` if the ticket is void. A ticket works once.
    pub async fn data_connection(&self, ticket: [u8; 16]) -> Option<PendingData> {
        let (reply, answer) = oneshot::channel();
        self.ask(Ask::Data { ticket, reply }).await.ok()?;
        answer.await.ok().flatten()
    }

    /// What Raft tells goes to the mind, in order.
    pub fn raft_events(&self) -> impl Fn(proffer_raft::Event) + Send + 'static {
        let notices = self.notices.clone();
        move |event| drop(notices.send(Notice::Raft(event)))
    }

    /// Ends the driver's loop.
    pub fn stop(&self) {
        let _ = self.notices.send(Notice::Stop);
    }

    async fn ask(&self, ask: Ask) -> Result<(), Refused> {
        self.asks.send(ask).await.map_err(|_| Refused::NotLeader { leader: None })
    }

    fn next_connection(&self) -> ConnectionId {
        ConnectionId(self.connections.fetch_add(1, Ordering::Relaxed))
    }
}

/// The two ends: the handle for everyone, the inbox for the driver.
pub(crate) struct Inbox {
    pub(crate) asks: mpsc::Receiver<Ask>,
    pub(crate) notices: mpsc::UnboundedReceiver<Notice>,
}

/// A handle and what comes out at its other end.
pub(crate) fn channel() -> (Handle, Inbox) {
    let (asks, asks_out) = mpsc::channel(INBOX_CALLS);
    let (notices, notices_out) = mpsc::unbounded_channel();
    let handle = Handle { asks, notices, connections: Arc::new(AtomicU64::new(1)), feed: Feed::default() };
    (handle, Inbox { asks: asks_out, notices: notices_out })
}
