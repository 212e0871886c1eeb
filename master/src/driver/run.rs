//! The loop.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use proffer_broker::{Effect, LiveOffer, Settings};
use proffer_raft::{Event as RaftEvent, Role};
use proffer_registry::Registry;
use proffer_types::call::{Call, ConnectionId, ReplyId};
use proffer_types::event::{AgentOrder, DataAction, FrameworkEvent, Refused, Reply, StreamEnd};
use proffer_types::{AgentId, Caller, ClusterId, Epoch, LaunchId, MasterId, TaskState};
use tokio::sync::oneshot;
use tracing::{debug, info, warn};

use super::data::{CHUNKS_QUEUED, REQUESTS_QUEUED, TICKET_MS, TICKETS_MAX};
use super::outbox::Outbox;
use super::{
    Ask, DataLink, DataOrder, FrameworkItem, Handle, Inbox, MasterView, Notice, PendingData, Target, View,
    channel,
};
use crate::events::Feed;
use crate::mind::{Mind, Now, Output};

/// What a driver needs to know of its master.
#[derive(Clone, Debug)]
pub struct MasterSettings {
    /// Its id.
    pub id: u64,
    /// Where clients reach it.
    pub advertise: String,
    /// All masters and where they are reached, as configured.
    pub masters: Vec<(u64, String)>,
    /// The leader's patience.
    pub broker: Settings,
}

/// Notices and asks taken between two looks at the clock: a slice of some milliseconds.
const SLICE: usize = 1_024;

/// When to ask again for the data of an agent that has no session at the moment.
const DATA_RETRY_MS: u64 = 500;

/// When to send a message again for which there was no room.
const DELIVER_RETRY_MS: u64 = 50;

/// How long a read waits for its index. Whatever a leader has told of is applied at the next one within an election
/// and some commits.
const READ_PATIENCE: Duration = Duration::from_secs(10);

/// A ticket that waits for its agent.
struct Ticket {
    data: PendingData,
    expires: Instant,
}

/// What the broker holds, copied for readers once for as long as nothing happens.
struct Glance {
    offers: Arc<Vec<LiveOffer>>,
    connected: Arc<BTreeSet<AgentId>>,
}

/// A read that waits for its index.
struct WaitingView {
    min_index: u64,
    until: Instant,
    reply: oneshot::Sender<Result<View, Refused>>,
}

/// The loop and all that it owns.
pub struct Driver {
    settings: MasterSettings,
    mind: Mind,
    inbox: Inbox,
    raft: Option<proffer_raft::Handle>,
    started: Instant,
    frameworks: BTreeMap<ConnectionId, Arc<Outbox<FrameworkItem>>>,
    agents: BTreeMap<ConnectionId, Arc<Outbox<AgentOrder>>>,
    replies: BTreeMap<ReplyId, oneshot::Sender<Result<Reply, Refused>>>,
    next_reply: u64,
    reads: BTreeMap<u64, WaitingView>,
    /// Reads that are confirmed but ask for an index that is not applied yet.
    early: Vec<WaitingView>,
    next_read: u64,
    glance: Option<Glance>,
    tickets: BTreeMap<[u8; 16], Ticket>,
    feed: Feed,
    epoch: Epoch,
    /// Peers that are formed in another cluster.
    strangers: BTreeSet<u64>,
    /// What makes going on impossible.
    fault: Option<String>,
    stop: bool,
}

impl Driver {
    /// A driver and the handle to it. Raft's events go in through [`Handle::raft_events`]; Raft itself is given to
    /// [`Self::run`].
    pub fn new(settings: MasterSettings) -> (Handle, Self) {
        let (handle, inbox) = channel();
        let driver = Self {
            mind: Mind::new(settings.broker.clone()),
            settings,
            inbox,
            raft: None,
            started: Instant::now(),
            frameworks: BTreeMap::new(),
            agents: BTreeMap::new(),
            replies: BTreeMap::new(),
            next_reply: 0,
            reads: BTreeMap::new(),
            early: Vec::new(),
            next_read: 0,
            glance: None,
            tickets: BTreeMap::new(),
            feed: handle.feed().clone(),
            epoch: Epoch::default(),
            strangers: BTreeSet::new(),
            fault: None,
            stop: false,
        };
        (handle, driver)
    }

    /// Runs until told to stop.
    ///
    /// # Errors
    /// Something in the log that this program cannot read.
    pub fn run(mut self, raft: proffer_raft::Handle) -> anyhow::Result<()> {
        self.raft = Some(raft);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        runtime.block_on(async {
            while !self.stop {
                self.turn().await;
                if let Some(fault) = self.fault.take() {
                    anyhow::bail!("{fault}; all files are as they were");
                }
            }
            Ok(())
        })
    }

    async fn turn(&mut self) {
        let deadline = self.mind.next_deadline().map(|due| self.started + Duration::from_millis(due));
        let idle = Instant::now() + Duration::from_secs(1);
        let wake = tokio::time::Instant::from_std(deadline.map_or(idle, |d| d.min(idle)));
        let mut notices = Vec::new();
        let mut asks = Vec::new();
        tokio::select! {
            biased;
            n = self.inbox.notices.recv_many(&mut notices, SLICE) => self.stop = n == 0,
            n = self.inbox.asks.recv_many(&mut asks, SLICE) => self.stop = n == 0,
            () = tokio::time::sleep_until(wake) => {}
        }
        for notice in notices {
            self.on_notice(notice);
            self.perform();
        }
        for ask in asks {
            self.take(ask);
        }
        // Notices come first in the select; a flood of them must not keep the asks waiting, nor the other way round.
        for _ in 0..SLICE {
            let Ok(ask) = self.inbox.asks.try_recv() else { break };
            self.take(ask);
        }
        self.mind.on_time(self.now());
        self.perform();
        let now = Instant::now();
        self.tickets.retain(|_, ticket| ticket.expires > now && !ticket.data.chunks.is_closed());
        self.end_reads(now);
    }

    /// Does what is asked, after all that was noticed before it was: a call comes behind its stream's beginning, and
    /// a call whose stream has ended meanwhile must find that out.
    fn take(&mut self, ask: Ask) {
        for _ in 0..self.inbox.notices.len() {
            let Ok(notice) = self.inbox.notices.try_recv() else { break };
            self.on_notice(notice);
            self.perform();
        }
        self.on_ask(ask);
        self.perform();
    }

    fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { mono_ms: self.started.elapsed().as_millis() as u64, wall_ms: wall.as_millis() as u64 }
    }

    fn on_notice(&mut self, notice: Notice) {
        let now = self.now();
        match notice {
            Notice::Framework { connection, outbox } => drop(self.frameworks.insert(connection, outbox)),
            Notice::Agent { connection, outbox } => drop(self.agents.insert(connection, outbox)),
            Notice::FrameworkGone { connection } => {
                self.frameworks.remove(&connection);
                self.mind.on_call(Caller::master(), None, Call::SubscriberGone { connection }, now);
            }
            Notice::AgentGone { connection } => {
                self.agents.remove(&connection);
                self.mind.on_call(Caller::master(), None, Call::AgentGone { connection }, now);
            }
            Notice::Raft(event) => self.on_raft(event, now),
            Notice::Stop => self.stop = true,
        }
    }

    fn on_raft(&mut self, event: RaftEvent, now: Now) {
        match event {
            RaftEvent::Formed { cluster_id } => {
                let cluster = ClusterId(cluster_id.0);
                info!(cluster.id = %cluster, "the cluster is formed");
                let masters =
                    self.settings.masters.iter().map(|(id, at)| (MasterId(*id), at.clone())).collect();
                self.mind.on_formed(cluster, masters, now);
            }
            RaftEvent::Role(role) => {
                let known = role.leader.and_then(|id| self.address_of(id));
                self.mind.on_leader_address(known);
                debug!(raft.term = role.term, role = ?role.role, leader = ?role.leader, "role");
                self.mind.on_role(role, now);
            }
            RaftEvent::Committed(entries) => {
                let last = entries.last().map_or(0, |entry| entry.index);
                self.mind.on_committed(&entries, now);
                if let Some(raft) = &self.raft {
                    raft.applied(last);
                }
                self.answer_early();
            }
            RaftEvent::Proposal { tag, outcome } => self.mind.on_proposal(tag, outcome, now),
            RaftEvent::Read { ctx, index } => {
                let Some(mut waiting) = self.reads.remove(&ctx) else { return };
                match index {
                    Some(index) => {
                        waiting.min_index = waiting.min_index.max(index);
                        self.early.push(waiting);
                        self.answer_early();
                    }
                    None => drop(waiting.reply.send(Err(self.not_leader()))),
                }
            }
            RaftEvent::Restore { index, segments, .. } => self.restore(index, segments),
            RaftEvent::SnapshotWanted { .. } => self.snapshot(),
            RaftEvent::PeerRefused { peer, reason, other_cluster } => {
                self.peer_refused(peer, &reason, other_cluster)
            }
            RaftEvent::Fault { error } => self.fault = Some(error),
        }
    }

    /// One stranger among the peers is a mistake there; if all are strangers the mistake is here.
    fn peer_refused(&mut self, peer: u64, reason: &str, other_cluster: bool) {
        warn!(master.id = peer, reason, "a master is not spoken with");
        if !other_cluster {
            self.strangers.remove(&peer);
            return;
        }
        self.strangers.insert(peer);
        let peers = self.settings.masters.iter().filter(|(id, _)| *id != self.settings.id).count();
        if self.strangers.len() == peers {
            self.fault = Some(format!(
                "every other master belongs to another cluster than this one's data directory ({reason}): check \
                 --data-dir and --peers"
            ));
        }
    }

    fn restore(&mut self, index: u64, segments: proffer_raft::SegmentLoader) {
        let load = || -> anyhow::Result<Registry> {
            let mut decoded = Vec::with_capacity(segments.len());
            for bytes in segments.load() {
                decoded.push(proffer_wire::log::decode_segment(&bytes?)?);
            }
            Ok(Registry::from_image(decoded)?)
        };
        match load() {
            Ok(registry) => {
                info!(raft.index = index, "state restored from a snapshot");
                self.feed.restored(index, registry.cluster());
                self.mind.on_restore(registry);
            }
            Err(error) => self.fault = Some(format!("snapshot at index {index}: {error:#}")),
        }
    }

    fn snapshot(&mut self) {
        let Some(raft) = self.raft.clone() else { return };
        // A clone costs nothing; encoding it takes time that the loop does not have.
        let registry = self.mind.registry().clone();
        std::thread::spawn(move || {
            let segments =
                registry.image().map(|segment| proffer_wire::log::encode_segment(&segment)).collect();
            raft.provide_snapshot(registry.applied(), segments);
        });
    }

    fn on_ask(&mut self, ask: Ask) {
        let now = self.now();
        match ask {
            Ask::Call { call, .. } if self.is_late(&call) => {}
            Ask::Call { caller, call, reply } => {
                let reply = reply.map(|reply| {
                    self.next_reply += 1;
                    self.replies.insert(ReplyId(self.next_reply), reply);
                    ReplyId(self.next_reply)
                });
                self.mind.on_call(caller, reply, call, now);
            }
            Ask::View { linearizable, min_index, reply } => {
                if self.mind.broker().is_none() {
                    return drop(reply.send(Err(self.not_leader())));
                }
                let waiting = WaitingView { min_index, reply, until: Instant::now() + READ_PATIENCE };
                if linearizable && let Some(raft) = &self.raft {
                    self.next_read += 1;
                    self.reads.insert(self.next_read, waiting);
                    raft.read_index(self.next_read);
                } else {
                    self.early.push(waiting);
                    self.answer_early();
                }
            }
            Ask::Open { caller, order, reply } => {
                let result = self.open_data(&caller, *order);
                let _ = reply.send(result);
            }
            Ask::Data { ticket, reply } => {
                let _ = reply.send(self.tickets.remove(&ticket).map(|ticket| ticket.data));
            }
        }
    }

    /// Whether the stream that a call came on or asks for is over: nobody would hear of what it does.
    fn is_late(&self, call: &Call) -> bool {
        match call {
            Call::Subscribe { connection, .. } => !self.frameworks.contains_key(connection),
            Call::AgentHello { connection, .. }
            | Call::AgentListing { connection, .. }
            | Call::AgentStatuses { connection, .. }
            | Call::AgentAlive { connection }
            | Call::AgentMessage { connection, .. }
            | Call::AgentCleaned { connection, .. } => !self.agents.contains_key(connection),
            _ => false,
        }
    }

    /// Ends the waiting of reads whose index does not come, or whose reader is gone.
    fn end_reads(&mut self, now: Instant) {
        let applied = self.mind.registry().applied();
        for read in std::mem::take(&mut self.early) {
            if read.reply.is_closed() {
                continue;
            }
            if read.until > now {
                self.early.push(read);
                continue;
            }
            let _ = read.reply.send(Err(Refused::Invalid {
                field: "read.min_index".into(),
                reason: format!("{} is not reached: the leader is at {applied}", read.min_index),
            }));
        }
    }

    /// Answers reads whose index is applied.
    fn answer_early(&mut self) {
        let applied = self.mind.registry().applied();
        let (ready, waiting) =
            std::mem::take(&mut self.early).into_iter().partition(|w| w.min_index <= applied);
        self.early = waiting;
        let ready: Vec<WaitingView> = ready;
        if ready.is_empty() {
            return;
        }
        let view = self.view();
        for read in ready {
            let _ = read.reply.send(view.clone().ok_or_else(|| self.not_leader()));
        }
    }

    fn view(&mut self) -> Option<View> {
        let broker = self.mind.broker()?;
        let glance = self.glance.get_or_insert_with(|| Glance {
            offers: Arc::new(broker.offers().cloned().collect()),
            connected: Arc::new(broker.connected_agents().collect()),
        });
        let (offers, connected) = (glance.offers.clone(), glance.connected.clone());
        Some(View {
            registry: self.mind.registry().clone(),
            offers,
            connected,
            masters: Arc::new(self.masters()),
            leader_id: self.settings.id,
            leader: self.settings.advertise.clone(),
            epoch: self.epoch,
            time: self.mind.time(self.now()),
        })
    }

    fn masters(&self) -> Vec<MasterView> {
        let status = self.raft.as_ref().map(proffer_raft::Handle::status);
        self.settings
            .masters
            .iter()
            .map(|(id, configured)| {
                let own = *id == self.settings.id;
                let peer = status.as_ref().and_then(|s| s.peers.iter().find(|peer| peer.id == *id));
                MasterView {
                    id: *id,
                    address: self.address_of(*id).unwrap_or_else(|| configured.clone()),
                    leads: if own { Some(true) } else { peer.filter(|p| p.connected).map(|_| false) },
                    index: match (own, peer) {
                        (true, _) => status.as_ref().map_or(0, |s| s.last_index),
                        (false, peer) => peer.and_then(|p| p.matched).unwrap_or(0),
                    },
                }
            })
            .collect()
    }

    /// Where a master is reached: what it says itself goes before what is configured.
    fn address_of(&self, id: u64) -> Option<String> {
        if id == self.settings.id {
            return Some(self.settings.advertise.clone());
        }
        let status = self.raft.as_ref().map(proffer_raft::Handle::status);
        let said = status.and_then(|s| s.peers.into_iter().find(|p| p.id == id)).map(|p| p.advertise);
        let configured = || self.settings.masters.iter().find(|(m, _)| *m == id).map(|(_, at)| at.clone());
        said.filter(|address| !address.is_empty()).or_else(configured)
    }

    fn not_leader(&self) -> Refused {
        let leads = self.mind.role().role == Role::Leader;
        Refused::NotLeader { leader: self.mind.leader_address().filter(|_| !leads).map(str::to_owned) }
    }

    fn open_data(&mut self, caller: &Caller, order: DataOrder) -> Result<DataLink, Refused> {
        let Some(broker) = self.mind.broker() else { return Err(self.not_leader()) };
        let registry = self.mind.registry();
        let (launch, agent) = find_target(registry, &order)?;
        match registry.agent(agent) {
            None => {
                let what = "the task's agent, which was removed: what it kept is".into();
                return Err(Refused::NotFound { what });
            }
            Some(agent) if !agent.is_reachable() => {
                return Err(Refused::AgentUnreachable { agent: agent.id });
            }
            Some(_) => {}
        }
        // It may be on its way to this leader.
        let away = || Refused::Busy { retry_ms: DATA_RETRY_MS };
        let outbox = broker.agent_connection(agent).and_then(|at| self.agents.get(&at)).ok_or_else(away)?;
        if self.tickets.len() >= TICKETS_MAX {
            return Err(away());
        }
        let mut ticket = [0; 16];
        getrandom::fill(&mut ticket).map_err(|_| Refused::Busy { retry_ms: 1_000 })?;
        let (chunks, read) = tokio::sync::mpsc::channel(CHUNKS_QUEUED);
        let (say, requests) = tokio::sync::mpsc::channel(REQUESTS_QUEUED);
        outbox.push(AgentOrder::OpenData {
            ticket,
            principal: caller.principal.to_string(),
            action: order.action,
            launch,
            expires_ms: TICKET_MS,
        });
        let expires = Instant::now() + Duration::from_millis(TICKET_MS);
        let first = proffer_wire::agent::v1::DataRequest { launch_id: launch.0, ..order.first };
        self.tickets.insert(ticket, Ticket { data: PendingData { first, requests, chunks }, expires });
        Ok(DataLink { chunks: read, requests: say })
    }

    /// Does what the mind says.
    fn perform(&mut self) {
        let mut proposals: Vec<(u64, bytes::Bytes)> = Vec::new();
        let mut term = 0;
        let outputs = self.mind.take_outputs();
        if !outputs.is_empty() {
            self.glance = None;
        }
        for output in outputs {
            match output {
                Output::Propose { term: of, tag, data } => {
                    term = of;
                    proposals.push((tag, data));
                }
                Output::Effect(effect) => self.effect(effect),
                Output::Told { applied, events } => {
                    self.feed.push(applied, self.mind.registry().cluster(), events);
                }
                Output::Leads { epoch } => {
                    self.epoch = epoch;
                    info!(raft.term = epoch.term, "this master leads");
                }
                Output::Follows => {
                    info!("this master leads no more");
                    // Also those on which nothing was said yet: what they were opened under has ended.
                    let end = StreamEnd::NotLeader;
                    std::mem::take(&mut self.frameworks).into_values().for_each(|outbox| outbox.close(end));
                    std::mem::take(&mut self.agents).into_values().for_each(|outbox| outbox.close(end));
                    for (_, waiting) in std::mem::take(&mut self.reads) {
                        let _ = waiting.reply.send(Err(self.not_leader()));
                    }
                    for waiting in std::mem::take(&mut self.early) {
                        let _ = waiting.reply.send(Err(self.not_leader()));
                    }
                }
                Output::Fatal { message } => self.fault = Some(message),
            }
        }
        if !proposals.is_empty()
            && let Some(raft) = &self.raft
        {
            raft.propose(term, proposals);
        }
    }

    fn effect(&mut self, effect: Effect) {
        match effect {
            Effect::Propose { .. } => unreachable!("the mind turns proposals into entries"),
            Effect::Answer { reply, result } => {
                if let Some(waiting) = self.replies.remove(&reply) {
                    let _ = waiting.send(result.map_err(|refused| self.with_leader(refused)));
                }
            }
            Effect::ToFramework { connection, event } => {
                let item = match event {
                    FrameworkEvent::Subscribed { framework, session, last_seq } => match self.view() {
                        Some(view) => {
                            FrameworkItem::Open { framework, session, last_seq, view: Box::new(view) }
                        }
                        None => return,
                    },
                    event => FrameworkItem::Event(event),
                };
                if let Some(outbox) = self.frameworks.get(&connection) {
                    match item {
                        FrameworkItem::Event(FrameworkEvent::Message { .. }) => {
                            // At most once: lost if its framework reads too slowly.
                            let _ = outbox.push_if_room(item);
                        }
                        item => outbox.push(item),
                    }
                }
            }
            Effect::ToAgent { connection, order } => {
                if let Some(outbox) = self.agents.get(&connection) {
                    outbox.push(order);
                }
            }
            Effect::Deliver { reply, connection, order } => {
                let delivered = self.agents.get(&connection).is_some_and(|outbox| outbox.push_if_room(order));
                let index = self.mind.registry().applied();
                let result = match delivered {
                    true => Ok(Reply::Done { index }),
                    false => Err(Refused::Busy { retry_ms: DELIVER_RETRY_MS }),
                };
                if let Some(waiting) = reply.and_then(|reply| self.replies.remove(&reply)) {
                    let _ = waiting.send(result);
                }
            }
            Effect::Close { connection, end } => self.close(connection, end),
            Effect::Alarm { message } => warn!(alarm = message, "something that must not be"),
        }
    }

    fn close(&mut self, connection: ConnectionId, end: StreamEnd) {
        if let Some(outbox) = self.frameworks.remove(&connection) {
            outbox.close(end);
        }
        if let Some(outbox) = self.agents.remove(&connection) {
            outbox.close(end);
        }
    }

    /// The leader may have become known since.
    fn with_leader(&self, refused: Refused) -> Refused {
        match refused {
            Refused::NotLeader { leader: None } => self.not_leader(),
            other => other,
        }
    }
}

/// The launch and the agent that an order is about.
fn find_target(registry: &Registry, order: &DataOrder) -> Result<(LaunchId, AgentId), Refused> {
    let (framework, name) = match &order.target {
        Target::Agent(agent) if registry.agent(*agent).is_some() => return Ok((LaunchId(0), *agent)),
        Target::Agent(_) => return Err(Refused::NotFound { what: "the agent".into() }),
        Target::Task { framework, task } => (*framework, task),
    };
    let live = registry.task_by_name(framework, name);
    // Of several finished tasks of one name the last one is meant.
    let finished = || registry.history_of_framework(framework).filter(|t| t.task_id == *name).last();
    let task = live.or_else(finished).ok_or_else(|| Refused::NotFound { what: format!("task `{name}`") })?;
    let needs_it_running = matches!(order.action, DataAction::Exec | DataAction::Attach);
    let state = task.status.state;
    if needs_it_running && (state.is_terminal() || matches!(state, TaskState::Staging | TaskState::Starting))
    {
        return Err(Refused::TaskNotRunning { state });
    }
    Ok((task.launch_id, task.agent))
}

#[cfg(test)]
mod tests {
    use proffer_raft::{Entry as LogEntry, RoleChange};
    use proffer_types::command::{Command, Entry};
    use proffer_types::{ClusterTime, FrameworkInfo, RequestId, Role as FrameworkRole};

    use super::*;

    /// A driver that leads a formed cluster; its proposals go nowhere.
    fn leader() -> (Handle, Driver) {
        let settings = MasterSettings {
            id: 1,
            advertise: "a:1".into(),
            masters: Vec::new(),
            broker: Settings::default(),
        };
        let (handle, mut driver) = Driver::new(settings);
        let form = Entry {
            term: 1,
            time: ClusterTime(0),
            wall_ms: 0,
            caller: Caller::master(),
            command: Command::Form {
                cluster: ClusterId([7; 16]),
                masters: vec![(MasterId(1), "a:1".into())],
            },
        };
        let data = proffer_wire::log::encode_entry(&form);
        let now = driver.now();
        driver.on_raft(RaftEvent::Committed(vec![LogEntry { index: 1, term: 1, data }]), now);
        let role = RoleChange { term: 2, role: Role::Leader, leader: Some(1), gate_open: true };
        driver.on_raft(RaftEvent::Role(role), now);
        driver.perform();
        (handle, driver)
    }

    fn subscribe(connection: ConnectionId) -> Call {
        let info = FrameworkInfo { roles: vec![FrameworkRole::star()], ..FrameworkInfo::default() };
        let origin = RequestId(5);
        Call::Subscribe { connection, framework: None, session: None, origin, info, suppressed: Vec::new() }
    }

    /// The end of a stream overtakes the call that was made on it.
    #[tokio::test]
    async fn a_call_of_a_stream_that_is_gone_does_nothing() {
        let (handle, mut driver) = leader();
        for stays in [true, false] {
            let (connection, stream) = handle.open_framework();
            handle.tell(Caller::anonymous(), subscribe(connection)).await.expect("room");
            let _stream = stays.then_some(stream);
            let ask = driver.inbox.asks.try_recv().expect("the call");
            for _ in 0..driver.inbox.notices.len() {
                let notice = driver.inbox.notices.try_recv().expect("a notice");
                driver.on_notice(notice);
            }
            driver.on_ask(ask);
            let proposed = driver.mind.take_outputs().iter().any(|o| matches!(o, Output::Propose { .. }));
            assert_eq!(proposed, stays);
        }
    }

    #[tokio::test]
    async fn a_call_finds_its_stream() {
        let (handle, mut driver) = leader();
        let (connection, _stream) = handle.open_framework();
        handle.tell(Caller::anonymous(), subscribe(connection)).await.expect("room");
        let ask = driver.inbox.asks.try_recv().expect("the call");
        driver.take(ask);
        assert!(driver.frameworks.contains_key(&connection));
    }

    /// An agent's session is labelled with the leadership under which it was opened, and must not reach the next one.
    #[test]
    fn no_stream_outlives_its_leadership() {
        let (handle, mut driver) = leader();
        let ((_, agent), (_, framework)) = (handle.open_agent(), handle.open_framework());
        while let Ok(notice) = driver.inbox.notices.try_recv() {
            driver.on_notice(notice);
        }
        let now = driver.now();
        let role = RoleChange { term: 3, role: Role::Follower, leader: None, gate_open: false };
        driver.on_raft(RaftEvent::Role(role), now);
        driver.perform();
        assert_eq!([agent.ended(), framework.ended()], [Some(StreamEnd::NotLeader); 2]);
    }

    #[test]
    fn a_read_does_not_wait_for_ever() {
        let (_handle, mut driver) = leader();
        let mut read = |min_index| {
            let (reply, answer) = oneshot::channel();
            driver.on_ask(Ask::View { linearizable: false, min_index, reply });
            (driver.early.len(), answer)
        };
        let (waiting, mut answer) = read(1);
        assert_eq!((waiting, answer.try_recv().expect("an answer").is_ok()), (0, true));
        let (waiting, mut patient) = read(9);
        assert_eq!(waiting, 1);
        let (_, gone) = read(9);
        drop(gone);
        driver.end_reads(Instant::now());
        assert_eq!(driver.early.len(), 1);
        driver.end_reads(Instant::now() + READ_PATIENCE);
        assert!(matches!(patient.try_recv().expect("an answer"), Err(Refused::Invalid { .. })));
    }
}
