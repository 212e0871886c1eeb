//! Why somebody is offered something, or nothing.

use proffer_types::{AgentId, FrameworkId, Resources, Role};

/// Counts since the allocator was made, and gauges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Grants made.
    pub grants: u64,
    /// Agents looked at.
    pub visits: u64,
    /// … of which had less left than the smallest offer.
    pub visits_below_minimum: u64,
    /// … of which had enough left, and nobody who wanted it and had not refused it.
    pub visits_unwanted: u64,
    /// Declines and expiries.
    pub refusals: u64,
    /// Gauge: (framework, role) pairs that want offers now.
    pub clients_active: u64,
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
    UnknownAgent(AgentId),
}
