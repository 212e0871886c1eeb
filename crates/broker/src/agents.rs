//! Agents' sessions.

use std::collections::BTreeSet;

use proffer_allocator::Event;
use proffer_registry::{Change, Order, Registry};
use proffer_types::call::ConnectionId;
use proffer_types::command::{Attach, Command, Held};
use proffer_types::event::{
    AgentOrder, AgentRefusal, FrameworkEvent, Hello, LaunchOrder, StreamEnd, grouped,
};
use proffer_types::{AgentId, Caller, ClusterTime, FrameworkId, LaunchId, Task};

use crate::timers::Timer;
use crate::{Broker, Effect, Peer, Then, Waiting};

/// Agents that may come back in one second after a failover: they spread themselves over agents ÷ this.
const REATTACH_PER_SECOND: u64 = 5_000;
/// The longest spread (milliseconds).
const REATTACH_SPREAD_MAX_MS: u64 = 10_000;

/// An agent as this leader sees it.
#[derive(Clone, Debug)]
pub(crate) struct AgentSession {
    /// When something was last heard of it, or when this leader began.
    pub(crate) heard_at: u64,
    /// Pings sent to it.
    pub(crate) pings: u64,
    connection: Option<ConnectionId>,
    /// The attachment under which it may be sent to; `None` until its opening is applied.
    attachment: Option<u64>,
    /// What it was told to forget and has not yet emptied: no offers of it until then.
    cleaning: BTreeSet<LaunchId>,
}

impl AgentSession {
    pub(crate) fn absent(now: u64) -> Self {
        Self { heard_at: now, pings: 0, connection: None, attachment: None, cleaning: BTreeSet::new() }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.attachment.is_some() && self.connection.is_some()
    }

    pub(crate) fn open_connection(&self) -> Option<ConnectionId> {
        self.connection.filter(|_| self.attachment.is_some())
    }
}

/// What became true of an agent by its attachment.
pub(crate) struct Attached<'a> {
    pub(crate) agent: AgentId,
    pub(crate) attachment: u64,
    pub(crate) forget: &'a [LaunchId],
    pub(crate) confirm: &'a [(LaunchId, u32)],
    pub(crate) info_changed: bool,
}

impl Broker {
    pub(crate) fn agent_hello(
        &mut self,
        registry: &Registry,
        caller: Caller,
        connection: ConnectionId,
        hello: Box<Hello>,
    ) {
        // First, because leaderships of two clusters cannot be compared.
        if hello.cluster.is_some() && hello.cluster != registry.cluster() {
            return self.refuse_agent(connection, AgentRefusal::WrongCluster);
        }
        if hello.epoch_seen > self.epoch {
            // The agent has obeyed a later leader than this one.
            return self.effects.push(Effect::Close { connection, end: StreamEnd::NotLeader });
        }
        let waiting = Waiting { replies: Vec::new(), then: Then::Agent { connection } };
        let Some(agent) = hello.agent else {
            let command = Command::RegisterAgent {
                instance: hello.instance,
                info: hello.info.clone(),
                boot_id: hello.boot_id,
            };
            self.greeting.insert(connection, hello);
            self.propose(caller, command, waiting);
            return;
        };
        let Some(record) = registry.agent(agent) else {
            return self.refuse_agent(connection, AgentRefusal::UnknownAgent);
        };
        if record.instance != hello.instance {
            return self.refuse_agent(connection, AgentRefusal::WrongInstance);
        }
        if let Some(old) = self.agents.get(&agent).and_then(|s| s.connection).filter(|old| *old != connection)
        {
            self.effects.push(Effect::Close { connection: old, end: StreamEnd::Replaced });
            self.drop_agent_connection(registry, old);
        }
        let open = self.agents.get(&agent).is_some_and(AgentSession::is_open);
        self.pause(registry, agent, open);
        let session = self.agents.entry(agent).or_insert_with(|| AgentSession::absent(self.now));
        session.heard_at = self.now;
        session.connection = Some(connection);
        session.attachment = None;
        self.watch(agent);
        self.peers.insert(connection, Peer::Agent(agent));
        let same = hello.boot_id == record.boot_id
            && hello.digest == registry.digest_of_agent(agent, hello.last_seq);
        if same {
            let attach = attach(agent, &hello, None);
            self.greeting.insert(connection, hello);
            self.propose(caller, Command::AttachAgent(attach), waiting);
        } else {
            self.greeting.insert(connection, hello);
            self.effects.push(Effect::ToAgent { connection, order: AgentOrder::SendListing });
        }
    }

    pub(crate) fn agent_listing(&mut self, caller: Caller, connection: ConnectionId, held: Vec<Held>) {
        let (Some(hello), Some(Peer::Agent(agent))) =
            (self.greeting.get(&connection), self.peers.get(&connection))
        else {
            return;
        };
        let attach = attach(*agent, hello, Some(held));
        self.heard(connection);
        let waiting = Waiting { replies: Vec::new(), then: Then::Agent { connection } };
        self.propose(caller, Command::AttachAgent(attach), waiting);
    }

    fn refuse_agent(&mut self, connection: ConnectionId, refusal: AgentRefusal) {
        self.effects.push(Effect::ToAgent { connection, order: AgentOrder::Refused(refusal) });
    }

    /// Time goes on, in steps of at most a heartbeat while this leader runs. In a longer one it was not running (stopped,
    /// starved): that is no silence of the agents.
    pub(crate) fn advance(&mut self, now: ClusterTime) {
        let step = now.0.saturating_sub(self.now);
        self.now += step;
        if step > self.settings.heartbeat_ms {
            self.agents.values_mut().for_each(|session| session.heard_at += step);
        }
    }

    /// Whose session a connection is, if it may be listened to: open, and not replaced.
    pub(crate) fn agent_of(&self, connection: ConnectionId) -> Option<(AgentId, u64)> {
        let Some(Peer::Agent(agent)) = self.peers.get(&connection) else { return None };
        let session = self.agents.get(agent)?;
        let attachment = session.attachment?;
        (session.connection == Some(connection)).then_some((*agent, attachment))
    }

    pub(crate) fn heard(&mut self, connection: ConnectionId) {
        if let Some(Peer::Agent(agent)) = self.peers.get(&connection)
            && let Some(session) = self.agents.get_mut(agent)
            && session.connection == Some(connection)
        {
            session.heard_at = self.now;
        }
    }

    pub(crate) fn agent_cleaned(
        &mut self,
        registry: &Registry,
        connection: ConnectionId,
        launches: &[LaunchId],
    ) {
        let Some((agent, _)) = self.agent_of(connection) else { return };
        let Some(session) = self.agents.get_mut(&agent).filter(|s| !s.cleaning.is_empty()) else { return };
        for launch in launches {
            session.cleaning.remove(launch);
        }
        if session.cleaning.is_empty() && registry.agent(agent).is_some_and(|r| r.is_reachable()) {
            self.tell(Event::AgentResumed { agent });
        }
    }

    /// A connection of an agent is gone.
    pub(crate) fn drop_agent_connection(&mut self, registry: &Registry, connection: ConnectionId) {
        self.greeting.remove(&connection);
        let Some(Peer::Agent(agent)) = self.peers.get(&connection).copied() else { return };
        self.peers.remove(&connection);
        let Some(session) = self.agents.get_mut(&agent).filter(|s| s.connection == Some(connection)) else {
            return;
        };
        let open = session.is_open();
        session.connection = None;
        session.attachment = None;
        session.cleaning.clear();
        self.pause(registry, agent, open);
    }

    /// No offers of an agent that is not attached. Unless its session is `open` it has none: looking for them costs too
    /// much when all agents come back at once.
    fn pause(&mut self, registry: &Registry, agent: AgentId, open: bool) {
        if open {
            self.rescind_of_agent(agent);
        }
        if registry.agent(agent).is_some_and(|record| record.is_reachable()) {
            self.tell(Event::AgentPaused { agent });
        }
    }

    pub(crate) fn agent_registered(
        &mut self,
        registry: &Registry,
        agent: AgentId,
        connection: Option<ConnectionId>,
    ) {
        if !self.agents.contains_key(&agent) {
            if let Some(record) = registry.agent(agent) {
                let total = record.info.resources.clone();
                self.tell(Event::AgentAdded { agent, total });
                self.tell(Event::AgentPaused { agent });
            }
            self.agents.insert(agent, AgentSession::absent(self.now));
            self.watch(agent);
        }
        let Some(connection) = connection else { return };
        if self.greeting.remove(&connection).is_some() {
            self.welcome(registry, agent, connection, 0);
        }
    }

    fn welcome(&mut self, registry: &Registry, agent: AgentId, connection: ConnectionId, last_seq: u64) {
        let Some(cluster) = registry.cluster() else { return };
        let spread = (self.agents.len() as u64 * 1_000 / REATTACH_PER_SECOND).min(REATTACH_SPREAD_MAX_MS);
        let order = AgentOrder::Welcome {
            agent,
            cluster,
            ping_ms: self.settings.heartbeat_ms,
            reattach_spread_ms: spread,
            last_seq,
        };
        self.effects.push(Effect::ToAgent { connection, order });
    }

    pub(crate) fn agent_attached(
        &mut self,
        registry: &Registry,
        what: &Attached<'_>,
        connection: Option<ConnectionId>,
    ) {
        let agent = what.agent;
        let Some(record) = registry.agent(agent) else { return };
        // Lost or paused before, it is at most paused now.
        self.tell(Event::AgentPaused { agent });
        if what.info_changed {
            self.rescind_of_agent(agent);
            self.tell(Event::AgentChanged { agent, total: record.info.resources.clone() });
        }
        let Some(session) = self.agents.get_mut(&agent) else { return };
        let Some(connection) = connection.filter(|c| session.connection == Some(*c)) else { return };
        // An agent that said hello twice is attached twice, and only once can it be told so.
        let Some(hello) = self.greeting.remove(&connection) else {
            return self.send_away(registry, connection);
        };
        session.attachment = Some(what.attachment);
        session.heard_at = self.now;
        session.cleaning = what.forget.iter().copied().collect();
        let clean = session.cleaning.is_empty();
        let seen = hello.last_seq;
        self.welcome(registry, agent, connection, seen);
        for launch in what.forget {
            self.effects.push(Effect::ToAgent { connection, order: AgentOrder::Forget { launch: *launch } });
        }
        for (launch, task_seq) in what.confirm {
            let order = AgentOrder::Confirm { launch: *launch, task_seq: *task_seq };
            self.effects.push(Effect::ToAgent { connection, order });
        }
        let orders = registry.orders_for(agent, seen);
        for order in grouped(orders.iter().filter_map(|order| agent_order(registry, order))) {
            self.effects.push(Effect::ToAgent { connection, order });
        }
        if clean {
            self.tell(Event::AgentResumed { agent });
        }
    }

    /// Sends a launch that was just committed; those of a group together, when the last one comes.
    pub(crate) fn send_launch(&mut self, registry: &Registry, agent: AgentId, launch: LaunchId) {
        let Some(connection) = self.agent_connection(agent) else { return };
        let Some(task) = registry.task(launch) else { return };
        let launches: Vec<LaunchId> = match task.group {
            None => vec![launch],
            Some(group) if group.launches().last() == Some(launch) => group.launches().collect(),
            Some(_) => return,
        };
        let tasks = launches.iter().filter_map(|launch| registry.task(*launch));
        for order in grouped(tasks.filter_map(|task| launch_order(registry, task))) {
            self.effects.push(Effect::ToAgent { connection, order });
        }
    }

    /// Sends a kill that was just committed.
    pub(crate) fn send_kill(&mut self, registry: &Registry, agent: AgentId, launch: LaunchId) {
        let Some(connection) = self.agent_connection(agent) else { return };
        if let Some(order) = registry.task(launch).and_then(kill_order) {
            self.effects.push(Effect::ToAgent { connection, order });
        }
    }

    pub(crate) fn send_confirm(&mut self, agent: AgentId, launch: LaunchId, task_seq: u32) {
        let Some(connection) = self.agent_connection(agent) else { return };
        self.effects.push(Effect::ToAgent { connection, order: AgentOrder::Confirm { launch, task_seq } });
    }

    /// The agent's record said something else when its attachment was applied: it must list what it holds.
    pub(crate) fn ask_for_listing(&mut self, connection: ConnectionId) {
        if self.greeting.contains_key(&connection) {
            self.effects.push(Effect::ToAgent { connection, order: AgentOrder::SendListing });
        }
    }

    pub(crate) fn attach_refused(&mut self, connection: ConnectionId, refusal: AgentRefusal) {
        if self.greeting.remove(&connection).is_some() {
            self.refuse_agent(connection, refusal);
        }
    }

    /// Looks after the agent when it has been silent for its ping budget. Several watches of one agent fall together.
    pub(crate) fn watch(&mut self, agent: AgentId) {
        let due = self.now + self.settings.agent_silence_ms();
        self.at(due, Timer::Silence(agent));
    }

    /// Ends an agent's connection; it comes back on a new one.
    pub(crate) fn send_away(&mut self, registry: &Registry, connection: ConnectionId) {
        self.drop_agent_connection(registry, connection);
        self.effects.push(Effect::Close { connection, end: StreamEnd::Resync });
    }

    pub(crate) fn agent_lost(
        &mut self,
        agent: AgentId,
        since: proffer_types::ClusterTime,
        changes: &[Change],
    ) {
        self.rescind_of_agent(agent);
        self.tell(Event::AgentLost { agent });
        self.arm_expiry(agent, since);
        self.tell_frameworks_of(agent, false, changes);
    }

    pub(crate) fn agent_removed(&mut self, agent: AgentId, changes: &[Change]) {
        self.rescind_of_agent(agent);
        for waiting in self.waiting.values_mut() {
            if let Then::Accept { offers, .. } = &mut waiting.then {
                offers.iter_mut().for_each(|part| part.retain(|live| live.offer.agent != agent));
            }
        }
        self.tell(Event::AgentRemoved { agent });
        if let Some(connection) = self.agents.remove(&agent).and_then(|session| session.connection) {
            self.peers.remove(&connection);
            self.greeting.remove(&connection);
            self.refuse_agent(connection, AgentRefusal::UnknownAgent);
        }
        self.tell_frameworks_of(agent, true, changes);
    }

    fn tell_frameworks_of(&mut self, agent: AgentId, removed: bool, changes: &[Change]) {
        let frameworks: BTreeSet<FrameworkId> = changes
            .iter()
            .filter_map(|change| match change {
                Change::StatusChanged { framework, agent: at, .. } if *at == agent => Some(*framework),
                _ => None,
            })
            .collect();
        for framework in frameworks {
            if let Some(connection) = self.subscribers.get(&framework).map(|s| s.connection) {
                let event = FrameworkEvent::Failure { agent, removed };
                self.effects.push(Effect::ToFramework { connection, event });
            }
        }
    }
}

fn attach(agent: AgentId, hello: &Hello, held: Option<Vec<Held>>) -> Attach {
    Attach {
        agent,
        instance: hello.instance,
        info: hello.info.clone(),
        boot_id: hello.boot_id,
        last_seq: hello.last_seq,
        digest: hello.digest,
        held,
    }
}

fn agent_order(registry: &Registry, order: &Order) -> Option<AgentOrder> {
    match order {
        Order::Launch { launch, .. } => launch_order(registry, registry.task(*launch)?),
        Order::Kill { launch, .. } => kill_order(registry.task(*launch)?),
    }
}

fn launch_order(registry: &Registry, task: &Task) -> Option<AgentOrder> {
    if task.is_terminal() {
        return None;
    }
    let framework_user = registry.framework(task.framework).map(|f| f.info.user.clone()).unwrap_or_default();
    Some(AgentOrder::Launch(Box::new(LaunchOrder {
        agent_seq: task.agent_seq,
        launch: task.launch_id,
        framework: task.framework,
        task_id: task.task_id.clone(),
        role: task.role.clone(),
        spec: task.spec.clone(),
        framework_user,
        resources: task.resources.clone(),
        env: task.env.clone(),
        array: task.array,
        group: task.group,
        kind: task.kind.clone(),
    })))
}

fn kill_order(task: &Task) -> Option<AgentOrder> {
    let kill = task.kill.filter(|_| !task.is_terminal())?;
    Some(AgentOrder::Kill {
        agent_seq: kill.agent_seq,
        launch: task.launch_id,
        grace_ms: kill.grace_ms,
        reason: kill.reason,
    })
}
