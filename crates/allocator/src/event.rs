//! What goes into the allocator and what comes out.

use proffer_types::{AgentId, FrameworkId, ResourceError, Resources, Role};

/// Resources of one agent in the hands of one framework in one role: an offer or part of one, or what tasks use.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Grant {
    /// Whose.
    pub framework: FrameworkId,
    /// In which of its roles.
    pub role: Role,
    /// Where.
    pub agent: AgentId,
    /// What.
    pub resources: Resources,
}

/// Something that changes who may be offered what.
///
/// A leader that takes over sends, in any order that names things before it uses them: the weights, each agent, each
/// framework, then what live tasks use ([`Event::Used`]), then which agents are lost or paused. It calls
/// [`Allocator::next`](crate::Allocator::next) only after that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A new agent, with nothing used on it, ready for offers.
    AgentAdded {
        /// Which.
        agent: AgentId,
        /// Everything it has.
        total: Resources,
    },
    /// An agent came back with other totals. Offers of it should have been rescinded before. If less is there than is
    /// in use, nothing of it is offered until enough has been returned.
    AgentChanged {
        /// Which.
        agent: AgentId,
        /// Everything it has now.
        total: Resources,
    },
    /// No offers of this agent for now (disconnected, or cleaning up). Its totals and uses count as before. Offers of
    /// it that are out must be rescinded by their own events.
    AgentPaused {
        /// Which.
        agent: AgentId,
    },
    /// The agent is UNREACHABLE: no offers of it, and what is used on it leaves its users' shares as its totals leave
    /// the cluster's. Nothing is freed: the uses still count on the agent.
    AgentLost {
        /// Which.
        agent: AgentId,
    },
    /// A paused or lost agent is as it was before that.
    AgentResumed {
        /// Which.
        agent: AgentId,
    },
    /// The agent is gone for good, and with it every offer and use of it: no further event may name it.
    AgentRemoved {
        /// Which.
        agent: AgentId,
    },

    /// A framework that was not known. No offers before [`Event::FrameworkActivated`].
    FrameworkAdded {
        /// Which.
        framework: FrameworkId,
        /// The roles in which it wants offers.
        roles: Vec<Role>,
        /// Those of `roles` in which it wants none now.
        suppressed: Vec<Role>,
    },
    /// A framework restated its roles and which of them are suppressed (Subscribe, UpdateFramework). What it uses or
    /// has been offered in a role that it left stays counted there.
    FrameworkChanged {
        /// Which.
        framework: FrameworkId,
        /// The roles in which it wants offers.
        roles: Vec<Role>,
        /// Those of `roles` in which it wants none now.
        suppressed: Vec<Role>,
    },
    /// A framework is connected. No-op if it was.
    FrameworkActivated {
        /// Which.
        framework: FrameworkId,
    },
    /// A framework is not connected: no offers, its filters are forgotten, its uses still count. Its offers that are
    /// out must be rescinded by their own events. No-op if it was not.
    FrameworkDeactivated {
        /// Which.
        framework: FrameworkId,
    },
    /// A framework is completed. Its uses count until each is returned; its offers that are out must be rescinded by
    /// their own events, before or after this.
    FrameworkRemoved {
        /// Which.
        framework: FrameworkId,
    },
    /// A framework wants no offers in some roles. Filters and offers stay.
    Suppressed {
        /// Which.
        framework: FrameworkId,
        /// In which of its roles; empty for all.
        roles: Vec<Role>,
    },
    /// A framework wants offers in some roles again; its filters and re-offer floors there are forgotten.
    Revived {
        /// Which.
        framework: FrameworkId,
        /// In which of its roles; empty for all.
        roles: Vec<Role>,
    },

    /// Part of an offer was accepted: from offered to used. Ends the doubling of the re-offer floor.
    Launched(Grant),
    /// Live tasks use this (told once at the start, or for tasks that an agent restates): from free to used. The
    /// framework need not be known: tasks of a completed one still hold resources.
    Used(Grant),
    /// A task ended: from used to free, offerable at once.
    Returned(Grant),
    /// Part of an offer, or all of it, was refused: from offered to free. For `filter_ms` nothing that is contained in
    /// the refused amount is offered to this framework in this role from this agent; at least the re-offer floor
    /// applies. Others may be offered it at once. Empty resources are a no-op.
    Declined {
        /// What was refused.
        grant: Grant,
        /// Milliseconds; 0 for none; more than 365 days count as 365 days.
        filter_ms: u64,
    },
    /// An offer was taken back by the cluster: from offered to free, without filter or floor.
    Rescinded(Grant),
    /// An offer was not answered in time: from offered to free, without filter, but the re-offer floor applies.
    Expired(Grant),

    /// A role's weight among its siblings: 1000 unless set.
    WeightSet {
        /// Which role; it need not have frameworks.
        role: Role,
        /// Thousandths, not 0.
        weight_milli: u32,
    },
}

/// Why an event was not applied: it contradicts what the allocator was told before. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// An event of an agent that was not added, or was removed.
    #[error("agent {0:?} is not known")]
    UnknownAgent(AgentId),
    /// A second addition.
    #[error("agent {0:?} is known already")]
    AgentKnown(AgentId),
    /// An event of a framework that was not added, or was removed.
    #[error("framework {0:?} is not known")]
    UnknownFramework(FrameworkId),
    /// A second addition.
    #[error("framework {0:?} is known already")]
    FrameworkKnown(FrameworkId),
    /// A role that is not among the framework's.
    #[error("framework {framework:?} is not in role {role}")]
    UnknownRole {
        /// The framework.
        framework: FrameworkId,
        /// The role.
        role: Role,
    },
    /// Less is offered to, or used by, this framework in this role on this agent.
    #[error("{what} of framework {framework:?} in role {role} on agent {agent:?}")]
    NotHeld {
        /// `offered` or `used`.
        what: &'static str,
        /// The framework.
        framework: FrameworkId,
        /// The role.
        role: Role,
        /// The agent.
        agent: AgentId,
        /// What is missing.
        #[source]
        source: ResourceError,
    },
    /// The amounts cannot be added up.
    #[error("uses on agent {agent:?} do not add up")]
    Sum {
        /// The agent.
        agent: AgentId,
        /// Why.
        #[source]
        source: ResourceError,
    },
    /// A weight of nothing.
    #[error("the weight of role {0} must be at least 0.001")]
    ZeroWeight(Role),
}
