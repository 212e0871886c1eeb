//! Why somebody is offered something, or nothing.

use std::borrow::Cow;

use proffer_types::{AgentId, FrameworkId, Resources, Role};

use crate::bits::Bits;
use crate::round::{Decision, allocatable};
use crate::{Agent, Allocator, Reach};

/// Counts since the allocator was made, and gauges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Grants made.
    pub grants: u64,
    /// Agents looked at.
    pub visits: u64,
    /// … of which nobody wanted anything that had not refused it.
    pub visits_unwanted: u64,
    /// Declines and expiries.
    pub refusals: u64,
    /// Gauge: (framework, role) pairs that want offers now.
    pub clients_active: u64,
    /// Gauge: agents with enough left for an offer, reachable and not paused.
    pub agents_open: u64,
    /// Gauge: agents that wait to be looked at.
    pub agents_dirty: u64,
}

/// How one framework stands in one role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The role.
    pub role: Role,
    /// Whether it gets offers at all: connected, in the role, not suppressed.
    pub active: bool,
    /// Since when it is suppressed, if it is.
    pub suppressed_since_ms: Option<u64>,
    /// Its dominant share within the cluster, in millionths (rounded down; decisions use the exact value).
    pub share_millionths: u64,
    /// How many (agent, filter) pairs hold offers back from it now.
    pub filters: u64,
    /// The longest re-offer floor in force, in milliseconds; 0 for none.
    pub floor_ms: u64,
    /// Grants it got.
    pub grants: u64,
    /// When it got the last.
    pub last_grant_ms: Option<u64>,
    /// How many grants others got since.
    pub grants_to_others_since: u64,
}

/// What would happen to one framework in one role on one agent now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It would be offered this.
    Next(Resources),
    /// The framework is not connected.
    Disconnected,
    /// The framework is not in the role.
    NotInRole,
    /// It asked for no offers in this role.
    Suppressed {
        /// Since when.
        since_ms: u64,
    },
    /// The agent is disconnected or cleaning up.
    AgentPaused,
    /// The agent is unreachable.
    AgentLost,
    /// Nothing is free that the role may take.
    NothingFree,
    /// What is free is less than the smallest offer.
    BelowMinimum(Resources),
    /// It refused this, or more, lately.
    Filtered {
        /// What it refused.
        refused: Resources,
        /// Until when.
        until_ms: u64,
    },
    /// Someone with a lower share comes first and takes it.
    Behind {
        /// Who.
        framework: FrameworkId,
        /// In which role.
        role: Role,
    },
    /// There is no such agent.
    UnknownAgent,
}

impl Allocator {
    /// Counts and gauges.
    pub fn counters(&self) -> Counters {
        Counters {
            grants: self.grants,
            visits: self.visits,
            visits_unwanted: self.visits_unwanted,
            refusals: self.refusals,
            clients_active: self.active_count,
            agents_open: self.open.len() as u64,
            agents_dirty: self.dirty.len() as u64,
        }
    }

    /// How a framework stands, one entry per role it is in or holds something in; `None` if it is not known.
    pub fn explain(&self, framework: FrameworkId) -> Option<Vec<Standing>> {
        let clients = &self.frameworks.get(&framework)?.clients;
        let standing = |(role, at): (&Role, &u32)| {
            let client = self.client(*at);
            Standing {
                role: role.clone(),
                active: self.active.contains(*at),
                suppressed_since_ms: client.suppressed_since_ms,
                share_millionths: self.sorter.share(*at).millionths(),
                filters: client.filters,
                floor_ms: client.floors.longest_ms(self.now_ms),
                grants: client.grants,
                last_grant_ms: client.last_grant_ms,
                grants_to_others_since: self.grants - client.last_grant,
            }
        };
        Some(clients.iter().map(standing).collect())
    }

    /// Why a framework in a role is, or is not, the next to be offered what is free on an agent: looks at that agent
    /// as a round would.
    pub fn explain_on(&self, now_ms: u64, framework: FrameworkId, role: &Role, agent: AgentId) -> Verdict {
        let Some(known) = self.frameworks.get(&framework).filter(|f| f.known && f.connected) else {
            return Verdict::Disconnected;
        };
        let Some(number) = known.clients.get(role).copied().filter(|at| self.client(*at).subscribed) else {
            return Verdict::NotInRole;
        };
        if let Some(since_ms) = self.client(number).suppressed_since_ms {
            return Verdict::Suppressed { since_ms };
        }
        let Some(agent) = self.agent_numbers.get(&agent).map(|at| self.agent(*at)) else {
            return Verdict::UnknownAgent;
        };
        match agent.reach {
            Reach::Ready => {}
            Reach::Paused => return Verdict::AgentPaused,
            Reach::Lost => return Verdict::AgentLost,
        }
        let offer = allocatable(&agent.free, role);
        if offer.is_empty() {
            return Verdict::NothingFree;
        }
        if !self.policy.is_enough(&offer) {
            return Verdict::BelowMinimum(offer);
        }
        if let Some(layer) = agent.layers.longest(number, &offer, now_ms) {
            return Verdict::Filtered { refused: layer.shape.clone(), until_ms: layer.until_ms };
        }
        self.in_order(now_ms, number, agent, offer)
    }

    /// For a client that may take `offer`: whether somebody else comes first.
    fn in_order(&self, now_ms: u64, client: u32, agent: &Agent, offer: Resources) -> Verdict {
        let mut order = Cow::Borrowed(&self.sorter);
        if !order.is_settled() {
            order.to_mut().settle();
        }
        let behind = |other: u32| {
            let other = self.client(other);
            Verdict::Behind { framework: other.framework, role: other.role.clone() }
        };
        match self.decide(&order, agent, now_ms, &mut Bits::default()) {
            Decision::All(first) if first != client => behind(first),
            Decision::All(_) | Decision::Unwanted => Verdict::Next(offer),
            Decision::Parts(parts) => match parts.iter().find(|(who, _)| *who == client) {
                Some((_, part)) => Verdict::Next(part.clone()),
                None => behind(parts[0].0),
            },
        }
    }
}
