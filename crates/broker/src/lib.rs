//! The leader's mind: sessions, offers, liveness, repetition of updates. Calls go in; proposals and effects come out.
//!
//! A [`Broker`] exists only while its master leads and its term's own entry is applied; it is dropped when that ends.
//! Nothing in it is replicated: it can be rebuilt from the registry at any time, and is. It refuses to change the
//! registry (only applied commands do), to know the wall clock, and to do any IO.

mod agents;
mod applied;
mod calls;
mod effect;
mod executors;
mod frameworks;
mod offers;
mod timers;

pub use applied::Lost;
pub use effect::{Effect, Tag};
pub use offers::LiveOffer;

use std::collections::{BTreeMap, BTreeSet};

use proffer_allocator::{Allocator, Event, Grant, Policy};
use proffer_registry::Registry;
use proffer_types::call::{ConnectionId, ReplyId};
use proffer_types::event::{Refused, StreamEnd};
use proffer_types::{
    AgentId, AgentState, Caller, ClusterTime, Epoch, FrameworkId, FrameworkState, LaunchId, OfferId,
    RequestId, SessionId, limits,
};

use agents::AgentSession;
use frameworks::Subscriber;
use timers::{Retry, Timer};

/// How long the leader waits for things, in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Period of pings to agents and heartbeats to frameworks.
    pub heartbeat_ms: u64,
    /// Unanswered pings after which an agent is unreachable.
    pub pings_missed_max: u32,
    /// An offer that is not answered is taken back after this.
    pub offer_timeout_ms: u64,
    /// How long a new leader counts frameworks that were connected as connected.
    pub reconnect_grace_ms: u64,
    /// An agent unreachable for longer is removed; 0 for never.
    pub agent_expiry_ms: u64,
    /// What the allocator goes by.
    pub policy: Policy,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            heartbeat_ms: limits::HEARTBEAT_MS,
            pings_missed_max: limits::PINGS_MISSED_MAX,
            offer_timeout_ms: limits::OFFER_TIMEOUT_MS,
            reconnect_grace_ms: limits::RECONNECT_GRACE_MS,
            agent_expiry_ms: limits::AGENT_EXPIRY_MS,
            policy: Policy::default(),
        }
    }
}

impl Settings {
    /// How long an agent may be silent.
    fn agent_silence_ms(&self) -> u64 {
        self.heartbeat_ms * u64::from(self.pings_missed_max)
    }
}

/// Proposals of the refusable kinds (launches, kills by operators, …) that may wait at once. A commit takes some
/// milliseconds, so this is far above what a healthy leader ever holds.
const WAITING_MAX: usize = 16_384;

/// Agents the allocator looks at between two looks at the inbox.
const OFFER_BUDGET: usize = 1_024;

/// What a connection turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peer {
    Framework(FrameworkId),
    Agent(AgentId),
}

/// A proposal on its way through the log.
#[derive(Clone, Debug)]
struct Waiting {
    /// Who waits for its answer; several, if the same call came more than once.
    replies: Vec<ReplyId>,
    /// What to do when it is applied, beside answering.
    then: Then,
}

#[derive(Clone, Debug)]
enum Then {
    /// Nothing.
    Answer,
    /// Offers are in its hands until then.
    Accept { offers: Vec<Vec<LiveOffer>>, filter_ms: u64, key: Option<(SessionId, u64)> },
    /// A call whose repetition must find it.
    Call { key: Option<(SessionId, u64)> },
    /// A framework's stream waits; without an id its origin tells whose.
    Subscribe {
        framework: Option<FrameworkId>,
        origin: RequestId,
        connection: ConnectionId,
        suppressed: Vec<proffer_types::Role>,
    },
    /// An agent's session depends on it: if it is void or lost, the agent comes again.
    Agent { connection: ConnectionId },
    /// Nobody waits, but if it is lost this timer must find out again what is to be done.
    Own { again: Timer },
}

/// A call on its way through the log, as its repetition finds it.
#[derive(Clone, Copy, Debug)]
struct OpenCall {
    tag: Tag,
    content: u64,
}

/// The leader's mind.
#[derive(Debug)]
pub struct Broker {
    settings: Settings,
    epoch: Epoch,
    now: u64,
    allocator: Allocator,
    /// Makes each round's order of agents differ, the same in every run.
    rounds: u64,
    subscribers: BTreeMap<FrameworkId, Subscriber>,
    agents: BTreeMap<AgentId, AgentSession>,
    peers: BTreeMap<ConnectionId, Peer>,
    /// Agents that said hello and have no id yet, or whose hello is not applied yet.
    greeting: BTreeMap<ConnectionId, Box<proffer_types::event::Hello>>,
    offers: BTreeMap<OfferId, LiveOffer>,
    offers_made: u64,
    waiting: BTreeMap<Tag, Waiting>,
    open_calls: BTreeMap<(SessionId, u64), OpenCall>,
    tags: u64,
    retries: BTreeMap<LaunchId, Retry>,
    timers: BTreeSet<(u64, Timer)>,
    last_applied_ms: u64,
    effects: Vec<Effect>,
}

impl Broker {
    /// The mind of a leader that has just applied its own term's first entry. `tags_from` must be above every tag an
    /// earlier leadership of this process used.
    pub fn begin(
        settings: Settings,
        epoch: Epoch,
        tags_from: u64,
        now: ClusterTime,
        registry: &Registry,
    ) -> Self {
        let mut broker = Self {
            allocator: Allocator::new(settings.policy.clone()),
            settings,
            epoch,
            now: now.0,
            rounds: 0,
            subscribers: BTreeMap::new(),
            agents: BTreeMap::new(),
            peers: BTreeMap::new(),
            greeting: BTreeMap::new(),
            offers: BTreeMap::new(),
            offers_made: 0,
            waiting: BTreeMap::new(),
            open_calls: BTreeMap::new(),
            tags: tags_from,
            retries: BTreeMap::new(),
            timers: BTreeSet::new(),
            last_applied_ms: now.0,
            effects: Vec::new(),
        };
        broker.load(registry);
        broker
    }

    /// Tells the allocator and the timers what the registry knows.
    fn load(&mut self, registry: &Registry) {
        for agent in registry.agents() {
            self.tell(Event::AgentAdded { agent: agent.id, total: agent.info.resources.clone() });
        }
        for framework in registry.frameworks().filter(|f| !f.is_completed()) {
            let roles = framework.info.roles.clone();
            self.tell(Event::FrameworkAdded { framework: framework.id, roles, suppressed: Vec::new() });
            match framework.state {
                FrameworkState::Connected => {
                    self.at(self.now + self.settings.reconnect_grace_ms, Timer::Reconnect(framework.id));
                }
                FrameworkState::Disconnected { deadline } => {
                    self.at(deadline.0, Timer::Complete(framework.id))
                }
                FrameworkState::Completed { .. } => {}
            }
        }
        for task in registry.launches().filter(|t| !t.is_terminal()) {
            self.tell(Event::Used(grant(task.framework, &task.role, task.agent, &task.resources)));
        }
        for agent in registry.agents() {
            match agent.state {
                AgentState::Reachable => self.tell(Event::AgentPaused { agent: agent.id }),
                AgentState::Unreachable { since } => {
                    self.tell(Event::AgentLost { agent: agent.id });
                    self.arm_expiry(agent.id, since);
                }
            }
            self.agents.insert(agent.id, AgentSession::absent(self.now));
            self.watch(agent.id);
        }
        self.at(self.now + self.settings.heartbeat_ms, Timer::Heartbeat);
        self.at(self.now + limits::TICK_MS, Timer::Tick);
    }

    /// Takes what is to be done, in order.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// The outstanding offers.
    pub fn offers(&self) -> impl Iterator<Item = &LiveOffer> {
        self.offers.values()
    }

    /// Agents with an open session.
    pub fn connected_agents(&self) -> impl Iterator<Item = AgentId> + '_ {
        self.agents.iter().filter(|(_, session)| session.is_open()).map(|(id, _)| *id)
    }

    /// The connection of an agent's open session.
    pub fn agent_connection(&self, agent: AgentId) -> Option<ConnectionId> {
        self.agents.get(&agent).and_then(AgentSession::open_connection)
    }

    /// The first tag that was not used.
    pub fn tags_end(&self) -> u64 {
        self.tags
    }

    /// Leadership is lost: every stream ends, every call that waits has an unknown outcome.
    pub fn end(mut self) -> Vec<Effect> {
        for connection in self.peers.keys().chain(self.greeting.keys()).copied().collect::<BTreeSet<_>>() {
            self.effects.push(Effect::Close { connection, end: StreamEnd::NotLeader });
        }
        for waiting in std::mem::take(&mut self.waiting).into_values() {
            if let Then::Subscribe { connection, .. } = waiting.then {
                self.effects.push(Effect::Close { connection, end: StreamEnd::NotLeader });
            }
            for reply in waiting.replies {
                self.effects.push(Effect::Answer { reply, result: Err(Refused::OutcomeUnknown) });
            }
        }
        self.effects
    }

    /// Checks what must hold between the broker and the registry: per agent, use and offers fit in the total, and
    /// every offer is the allocator's. For tests and simulation.
    pub fn check(&self, registry: &Registry) -> Result<(), String> {
        self.allocator.check().map_err(|violation| violation.to_string())?;
        let mut held: BTreeMap<AgentId, proffer_types::Resources> = BTreeMap::new();
        for offer in self.offers.values().chain(self.in_flight()) {
            let sum = held.entry(offer.offer.agent).or_default();
            sum.add(&offer.offer.resources).map_err(|e| format!("offers of {:?}: {e}", offer.offer.agent))?;
        }
        for (agent, offered) in &held {
            let record = registry.agent(*agent).ok_or_else(|| format!("offer of unknown {agent:?}"))?;
            let sum = record.used.checked_add(offered).map_err(|e| format!("{agent:?}: {e}"))?;
            // An Accept that is applied in the registry but not yet told to the broker counts on both sides; the
            // caller checks only when everything applied was told.
            if !record.info.resources.contains(&sum) {
                return Err(format!(
                    "{agent:?}: used {} + offered {offered} > {}",
                    record.used, record.info.resources
                ));
            }
        }
        for agent in registry.agents() {
            let free =
                self.allocator.free(agent.id).ok_or_else(|| format!("allocator lacks {:?}", agent.id))?;
            let offered = held.get(&agent.id).cloned().unwrap_or_default();
            let all = free
                .checked_add(&offered)
                .and_then(|s| s.checked_add(&agent.used))
                .map_err(|e| e.to_string())?;
            if all != agent.info.resources && agent.free().is_some_and(|f| f.contains(&offered)) {
                return Err(format!(
                    "{:?}: free {free} + offered {offered} + used {} != total",
                    agent.id, agent.used
                ));
            }
        }
        Ok(())
    }

    fn in_flight(&self) -> impl Iterator<Item = &LiveOffer> {
        self.waiting.values().flat_map(|waiting| match &waiting.then {
            Then::Accept { offers, .. } => offers.iter().flatten().collect::<Vec<_>>(),
            _ => Vec::new(),
        })
    }

    fn tell(&mut self, event: Event) {
        if let Err(refused) = self.allocator.apply(self.now, &event) {
            debug_assert!(false, "allocator refused {event:?}: {refused}");
            self.alarm(format!("allocator refused {event:?}: {refused}"));
        }
    }

    fn alarm(&mut self, message: String) {
        self.effects.push(Effect::Alarm { message });
    }

    fn propose(&mut self, caller: Caller, command: proffer_types::command::Command, waiting: Waiting) -> Tag {
        self.tags += 1;
        let tag = Tag(self.tags);
        self.waiting.insert(tag, waiting);
        self.effects.push(Effect::Propose { tag, caller, command: Box::new(command) });
        tag
    }

    fn answer(&mut self, reply: Option<ReplyId>, result: Result<proffer_types::event::Reply, Refused>) {
        if let Some(reply) = reply {
            self.effects.push(Effect::Answer { reply, result });
        }
    }
}

fn grant(
    framework: FrameworkId,
    role: &proffer_types::Role,
    agent: AgentId,
    resources: &proffer_types::Resources,
) -> Grant {
    Grant { framework, role: role.clone(), agent, resources: resources.clone() }
}
