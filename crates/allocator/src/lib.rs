//! Who is offered what.
//!
//! [`Allocator::apply`] takes deltas (agents, frameworks, uses, refusals, demand), [`Allocator::next`] yields grants:
//! hierarchical dominant resource fairness over the role tree with weights, filters and a re-offer floor. Only what
//! changed is looked at again. This crate refuses to know the time, to draw lots, to keep offer ids or deadlines, and
//! to do any IO: the same events, times and seeds give the same grants.

mod event;
mod explain;
mod policy;

pub use event::{Event, Grant, Refused};
pub use explain::{Counters, Standing, Verdict};
pub use policy::Policy;

use proffer_types::{AgentId, FrameworkId, Resources, Role};

/// What [`Allocator::check`] found wrong: a bug in this crate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the allocator contradicts itself: {0}")]
pub struct Violation(pub String);

/// The engine.
#[derive(Clone, Debug)]
pub struct Allocator {
    policy: Policy,
}

impl Allocator {
    /// An allocator that knows of nothing.
    pub fn new(policy: Policy) -> Self {
        Self { policy }
    }

    /// Takes note of an event. `now_ms` is cluster time; an earlier one than before counts as the latest.
    /// An event that contradicts earlier ones is refused and changes nothing.
    pub fn apply(&mut self, now_ms: u64, event: &Event) -> Result<(), Refused> {
        todo!("{now_ms} {event:?} {:?}", self.policy)
    }

    /// Grants what can be granted, at most `budget` agents' worth of looking; what is granted counts as offered at
    /// once. `seed` decides the order in which agents are looked at. If the budget was spent,
    /// [`Self::next_wakeup_ms`] is in the past.
    pub fn next(&mut self, now_ms: u64, seed: u64, budget: usize) -> Vec<Grant> {
        todo!("{now_ms} {seed} {budget}")
    }

    /// When [`Self::next`] may yield something if no event comes before: not later than now if there is something to
    /// look at, else the end of the first filter or re-offer floor, else never.
    pub fn next_wakeup_ms(&self) -> Option<u64> {
        todo!()
    }

    /// What is free on an agent (neither offered nor used).
    pub fn free(&self, agent: AgentId) -> Option<&Resources> {
        todo!("{agent:?}")
    }

    /// Counts and gauges.
    pub fn counters(&self) -> Counters {
        todo!()
    }

    /// How a framework stands, one entry per role it is in or holds something in; `None` if it is not known.
    pub fn explain(&self, framework: FrameworkId) -> Option<Vec<Standing>> {
        todo!("{framework:?}")
    }

    /// Why a framework in a role is, or is not, the next to be offered what is free on an agent.
    pub fn explain_on(&self, now_ms: u64, framework: FrameworkId, role: &Role, agent: AgentId) -> Verdict {
        todo!("{now_ms} {framework:?} {role} {agent:?}")
    }

    /// Computes everything again from what is held where, and compares: per agent total = free + offered + used,
    /// shares, order, filters, counts. O(everything): for tests and simulation.
    pub fn check(&self) -> Result<(), Violation> {
        todo!()
    }
}
