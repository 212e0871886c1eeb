//! The stream to the leader: finding it, opening the session, carrying messages both ways, and beginning again.
//!
//! One worker does all of it for the life of the agent. It knows no order's meaning: what comes in goes to the driver,
//! and the driver decides when a stream is to be closed, by dropping its end.

use std::time::Duration;

use proffer_types::event::AgentOrder;
use proffer_types::{Epoch, LaunchId};
use proffer_wire::agent::v1 as pb;
use proffer_wire::agent::v1::agent_service_client::AgentServiceClient;
use proffer_wire::from_proto;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

/// The trailer in which a master that does not lead names the one that does.
const LEADER_TRAILER: &str = "proffer-leader";
/// A master that does not accept a connection in this time is passed over.
const CONNECT: Duration = Duration::from_secs(1);
/// A stopped process still completes TCP handshakes; a master answers an opening, or refuses it, well within this.
const FIRST_ANSWER: Duration = Duration::from_secs(5);
/// A connection whose other end does not answer a ping is dead. Each ping costs the master about 30 µs, and it has
/// tens of thousands of agents.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Masters that name each other in a circle are not followed for ever.
const HOPS_MAX: u32 = 3;
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// A leader that is not found is complained about this often.
const COMPLAIN: Duration = Duration::from_secs(60);
/// Messages that wait for the stream. The driver never waits: a stream that takes no more is given up, and what was
/// not sent is sent again on the next.
const OUTBOUND_MESSAGES: usize = 1_024;
/// Largest message that masters send: we accept as much as stock clients do.
const INBOUND_BYTES_MAX: usize = 4 << 20;

/// What the worker tells the driver.
#[derive(Debug)]
pub(crate) enum Event {
    /// A connection stands: say Hello on `outbound`. Dropping `guard` closes the stream.
    Connected {
        stream: u64,
        address: String,
        outbound: mpsc::Sender<pb::AgentMessage>,
        guard: oneshot::Sender<()>,
    },
    /// The master said something.
    Orders { stream: u64, epoch: Epoch, orders: Vec<Order> },
    /// The stream is gone.
    Lost { stream: u64, why: String },
}

/// An order, or the number of a launch that could not be read.
#[derive(Debug)]
pub(crate) enum Order {
    Known(AgentOrder),
    UnreadableLaunch { agent_seq: u64, launch: LaunchId, why: String },
}

/// Seeks a leader and serves sessions until the driver is gone.
pub(crate) struct Worker {
    masters: Vec<String>,
    next: usize,
    streams: u64,
    backoff: Duration,
    /// Over how long the next attempt is spread, so that not all agents come to a new leader at once.
    spread_ms: u64,
    /// When it was last said that there is no leader.
    complained: Option<Instant>,
    events: mpsc::Sender<Event>,
    wanted: watch::Receiver<bool>,
}

/// How an attempt ended.
enum Outcome {
    /// It led to this master, which is said to lead.
    Redirect(String),
    /// It led nowhere.
    Nowhere,
    /// A session was held, and is over.
    Served,
    /// The driver is gone.
    DriverGone,
}

impl Worker {
    /// A worker that seeks while `wanted` is true.
    pub(crate) fn new(
        masters: Vec<String>,
        events: mpsc::Sender<Event>,
        wanted: watch::Receiver<bool>,
    ) -> Self {
        Self {
            masters,
            next: 0,
            streams: 0,
            backoff: BACKOFF_MIN,
            spread_ms: 0,
            complained: None,
            events,
            wanted,
        }
    }

    /// Runs until the driver is gone.
    pub(crate) async fn run(mut self) {
        loop {
            if self.wanted.wait_for(|wanted| *wanted).await.is_err() {
                return;
            }
            pause(std::mem::take(&mut self.spread_ms)).await;
            if self.seek().await.is_none() {
                return;
            }
        }
    }

    /// Tries every master once, following hints, then pauses. `None` if the driver is gone.
    async fn seek(&mut self) -> Option<()> {
        for _ in 0..self.masters.len() {
            let mut address = self.masters[self.next].clone();
            for hop in 0..=HOPS_MAX {
                if !*self.wanted.borrow() {
                    return Some(());
                }
                match self.attempt(&address).await {
                    Outcome::Redirect(leader) if hop < HOPS_MAX => address = leader,
                    Outcome::Redirect(_) | Outcome::Nowhere => break,
                    Outcome::Served => {
                        self.backoff = BACKOFF_MIN;
                        self.complained = None;
                        return Some(());
                    }
                    Outcome::DriverGone => return None,
                }
            }
            self.next = (self.next + 1) % self.masters.len();
        }
        if self.complained.is_none_or(|at| at.elapsed() >= COMPLAIN) {
            self.complained = Some(Instant::now());
            tracing::warn!(masters = self.masters.join(","), "no leader is found; going on seeking");
        }
        // Full jitter: agents that lost the same leader do not come back in step.
        pause(self.backoff.as_millis() as u64).await;
        self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
        Some(())
    }

    /// One connection to one master, from dialling to its end.
    async fn attempt(&mut self, address: &str) -> Outcome {
        let channel = match dial(address).await {
            Ok(channel) => channel,
            Err(error) => {
                tracing::debug!(master = address, error = %chain(&error), "cannot reach the master");
                return Outcome::Nowhere;
            }
        };
        let mut client = AgentServiceClient::new(channel).max_decoding_message_size(INBOUND_BYTES_MAX);
        self.streams += 1;
        let stream = self.streams;
        let (outbound, from_driver) = mpsc::channel(OUTBOUND_MESSAGES);
        let (guard, mut closed) = oneshot::channel();
        let connected = Event::Connected { stream, address: address.to_owned(), outbound, guard };
        if self.events.send(connected).await.is_err() {
            return Outcome::DriverGone;
        }
        // The answer comes after the Hello, which the driver sends meanwhile.
        let opened = tokio::select! {
            opened = timeout(FIRST_ANSWER, client.session(ReceiverStream::new(from_driver))) => opened,
            _ = &mut closed => return Outcome::Nowhere,
        };
        let (outcome, why) = match opened {
            Err(_) => (Outcome::Nowhere, "no answer".to_owned()),
            Ok(Err(status)) => refused(&status),
            Ok(Ok(response)) => self.serve(stream, response.into_inner(), closed).await,
        };
        match self.events.send(Event::Lost { stream, why }).await {
            Ok(()) => outcome,
            Err(_) => Outcome::DriverGone,
        }
    }

    /// Carries what the master says to the driver until either ends the stream.
    async fn serve(
        &mut self,
        stream: u64,
        mut inbound: tonic::Streaming<pb::MasterMessage>,
        mut closed: oneshot::Receiver<()>,
    ) -> (Outcome, String) {
        let mut served = false;
        let over = |served| if served { Outcome::Served } else { Outcome::Nowhere };
        loop {
            let message = tokio::select! {
                message = inbound.message() => message,
                _ = &mut closed => return (over(served), "closed by the agent".into()),
            };
            match message {
                Ok(Some(message)) => {
                    let Some((epoch, orders)) = read(message) else {
                        return (Outcome::Nowhere, "it sent a message without a leadership".into());
                    };
                    self.note(&orders, &mut served);
                    if self.events.send(Event::Orders { stream, epoch, orders }).await.is_err() {
                        return (Outcome::DriverGone, String::new());
                    }
                }
                Ok(None) => return (over(served), "it ended the stream".into()),
                Err(status) => {
                    let (outcome, why) = refused(&status);
                    return (if matches!(outcome, Outcome::Nowhere) { over(served) } else { outcome }, why);
                }
            }
        }
    }

    fn note(&mut self, orders: &[Order], served: &mut bool) {
        for order in orders {
            if let Order::Known(AgentOrder::Welcome { reattach_spread_ms, .. }) = order {
                self.spread_ms = *reattach_spread_ms;
                *served = true;
            }
        }
    }
}

/// A connection to a master.
pub(crate) async fn dial(address: &str) -> Result<Channel, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(CONNECT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    endpoint.connect().await
}

/// Reads a message item by item, so that a launch that cannot be read can be refused by its number instead of being
/// lost with the whole message. `None` without a leadership.
fn read(message: pb::MasterMessage) -> Option<(Epoch, Vec<Order>)> {
    let given = message.epoch?;
    let leadership = pb::MasterMessage { epoch: Some(given), items: Vec::new() };
    let (epoch, _) = from_proto::master_message(leadership).ok()?;
    let mut orders = Vec::with_capacity(message.items.len());
    for item in message.items {
        let launch = match &item.item {
            Some(pb::master_item::Item::Launch(launch)) => {
                Some((launch.agent_seq, LaunchId(launch.launch_id)))
            }
            _ => None,
        };
        match (
            from_proto::master_message(pb::MasterMessage { epoch: Some(given), items: vec![item] }),
            launch,
        ) {
            (Ok((_, known)), _) => orders.extend(known.into_iter().map(Order::Known)),
            (Err(error), Some((agent_seq, launch))) => {
                orders.push(Order::UnreadableLaunch { agent_seq, launch, why: error.to_string() });
            }
            (Err(error), None) => tracing::warn!(%error, "the master said something that is not understood"),
        }
    }
    Some((epoch, orders))
}

/// Where a refusal leads.
fn refused(status: &Status) -> (Outcome, String) {
    let leader = status.metadata().get(LEADER_TRAILER).and_then(|value| value.to_str().ok());
    match leader.filter(|leader| !leader.is_empty()) {
        Some(leader) => (Outcome::Redirect(leader.to_owned()), format!("{leader} leads")),
        None => (Outcome::Nowhere, format!("{}: {}", status.code(), status.message())),
    }
}

/// Sleeps a random time below `most_ms`.
async fn pause(most_ms: u64) {
    if most_ms > 0 {
        let random = getrandom::u64().expect("the system's random numbers never run out");
        sleep(Duration::from_millis(random % most_ms.saturating_add(1))).await;
    }
}

/// An error with its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
