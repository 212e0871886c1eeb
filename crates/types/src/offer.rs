//! Offers: resources of one agent, held out to one framework in one role.

use crate::{AgentId, FrameworkId, OfferId, Resources, Role};

/// An outstanding offer. Offers live in the leader only and die with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Its id.
    pub id: OfferId,
    /// To whom.
    pub framework: FrameworkId,
    /// In which role.
    pub role: Role,
    /// Of which agent.
    pub agent: AgentId,
    /// What.
    pub resources: Resources,
}
