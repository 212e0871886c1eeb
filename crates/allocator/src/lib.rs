//! Who is offered what.
//!
//! [`Allocator::apply`] takes deltas (agents, frameworks, uses, refusals, demand), [`Allocator::next`] yields grants:
//! hierarchical dominant resource fairness over the role tree with weights, filters and a re-offer floor. Only what
//! changed is looked at again. This crate refuses to know the time, to draw lots, to keep offer ids or deadlines, and
//! to do any IO: the same events, times and seeds give the same grants.
//!
//! | file | decides |
//! |---|---|
//! | `round.rs` | who gets the next offer: which agents are looked at, and who is given what is free there |
//! | `sorter.rs`, `amounts.rs` | who comes before whom: the role tree, shares, ties |
//! | `filters.rs` | who refused what: filters and the re-offer floor |
//! | `books.rs` | what events change: agents, frameworks, who holds what |
//! | `explain.rs`, `check.rs` | why; and whether the books are right |

mod amounts;
mod bits;
mod books;
mod check;
mod event;
mod explain;
mod filters;
mod policy;
mod round;
mod sorter;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use proffer_types::{AgentId, FrameworkId, Resources, Role};

pub use check::Violation;
pub use event::{Event, Grant, Refused};
pub use explain::{Counters, Standing, Verdict};
pub use policy::Policy;

use bits::{Bits, Members};
use filters::{Floors, Layers};
use sorter::Sorter;

/// The engine. Agents and clients (a framework in a role) have dense numbers inside; these are reused and decide
/// nothing.
#[derive(Clone, Debug)]
pub struct Allocator {
    policy: Policy,
    now_ms: u64,
    sorter: Sorter,
    agents: Vec<Option<Agent>>,
    agents_vacant: Vec<u32>,
    agent_numbers: BTreeMap<AgentId, u32>,
    frameworks: BTreeMap<FrameworkId, Framework>,
    clients: Vec<Option<Client>>,
    clients_vacant: Vec<u32>,
    /// Clients that want offers.
    active: Bits,
    active_count: u64,
    /// Agents of which something may be offered: reachable, not paused, with at least the smallest offer free.
    open: Bits,
    /// Open agents that a round would not find as the last one left them.
    dirty: Bits,
    /// Agents on which a filter layer ends, by when.
    wheel: BTreeMap<u64, Members>,
    /// Scratch space of a round.
    row: Bits,
    grants: u64,
    visits: u64,
    visits_unwanted: u64,
    refusals: u64,
}

#[derive(Clone, Debug)]
struct Agent {
    id: AgentId,
    total: Resources,
    /// What is neither offered nor used; nothing while less is there than is held.
    free: Resources,
    overcommitted: bool,
    reach: Reach,
    /// Who holds something, sorted by the client's number.
    holdings: Vec<(u32, Holding)>,
    layers: Layers,
}

/// Whether an agent is offered and counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    Ready,
    Paused,
    Lost,
}

/// What one client holds on one agent.
#[derive(Clone, Debug, Default)]
struct Holding {
    offered: Resources,
    used: Resources,
}

#[derive(Clone, Debug, Default)]
struct Framework {
    /// Added and not removed; else only its uses are left.
    known: bool,
    connected: bool,
    clients: BTreeMap<Role, u32>,
}

#[derive(Clone, Debug)]
struct Client {
    framework: FrameworkId,
    role: Role,
    /// Whether the role is among the framework's; else only what it holds is left.
    subscribed: bool,
    suppressed_since_ms: Option<u64>,
    /// Agents on which it holds something.
    holdings: u64,
    /// Filter layers that it is in, over all agents.
    filters: u64,
    floors: Floors,
    grants: u64,
    last_grant_ms: Option<u64>,
    /// How many grants there were in all at its last.
    last_grant: u64,
}

impl Allocator {
    /// An allocator that knows of nothing.
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            now_ms: 0,
            sorter: Sorter::default(),
            agents: Vec::new(),
            agents_vacant: Vec::new(),
            agent_numbers: BTreeMap::new(),
            frameworks: BTreeMap::new(),
            clients: Vec::new(),
            clients_vacant: Vec::new(),
            active: Bits::default(),
            active_count: 0,
            open: Bits::default(),
            dirty: Bits::default(),
            wheel: BTreeMap::new(),
            row: Bits::default(),
            grants: 0,
            visits: 0,
            visits_unwanted: 0,
            refusals: 0,
        }
    }

    /// What is free on an agent (neither offered nor used); `None` if there is no such agent.
    pub fn free(&self, agent: AgentId) -> Option<&Resources> {
        self.agent_numbers.get(&agent).map(|at| &self.agent(*at).free)
    }

    fn agent(&self, at: u32) -> &Agent {
        self.agents[at as usize].as_ref().expect("numbers in the books are of live agents")
    }

    fn agent_mut(&mut self, at: u32) -> &mut Agent {
        self.agents[at as usize].as_mut().expect("numbers in the books are of live agents")
    }

    fn client(&self, at: u32) -> &Client {
        self.clients[at as usize].as_ref().expect("numbers in the books are of live clients")
    }

    fn client_mut(&mut self, at: u32) -> &mut Client {
        self.clients[at as usize].as_mut().expect("numbers in the books are of live clients")
    }
}
