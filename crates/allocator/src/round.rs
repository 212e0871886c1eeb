//! Who gets the next offer.
//!
//! A round looks at the agents on which something may have changed: more is free, a refusal ended, somebody wants
//! offers who did not. For all others the last round's answer (nobody) still stands. Of each, what is free goes whole
//! to the first client in the order of service who may take it and has not refused it; the order on one agent is that
//! at its start, and the next agent sees the shares as this one's grants have left them.

use proffer_types::{AgentId, Resources, Role};

use crate::bits::Bits;
use crate::sorter::{Sorter, Step, Then};
use crate::{Agent, Allocator, Grant};

/// Who is given what on one agent.
pub(crate) enum Decision {
    /// Nobody wants what is free.
    Unwanted,
    /// Everything that is free goes to this client.
    All(u32),
    /// Parts go to different clients, because some is reserved.
    Parts(Vec<(u32, Resources)>),
}

impl Allocator {
    /// Grants what can be granted, looking at no more than `budget` agents; what is granted counts as offered at
    /// once. `seed` decides the order in which agents are looked at. If the budget was spent,
    /// [`Self::next_wakeup_ms`] is in the past: call again, with the same seed for the same result as with a larger
    /// budget.
    pub fn next(&mut self, now_ms: u64, seed: u64, budget: usize) -> Vec<Grant> {
        self.now_ms = self.now_ms.max(now_ms);
        self.end_refusals();
        self.sorter.settle();
        let mut grants = Vec::new();
        for at in self.next_agents(seed, budget) {
            self.dirty.remove(at);
            self.visits += 1;
            self.visit(at, &mut grants);
        }
        grants
    }

    /// When [`Self::next`] may yield something if no event comes before: not later than now if there is something to
    /// look at, else the end of the first filter or re-offer floor, else never.
    pub fn next_wakeup_ms(&self) -> Option<u64> {
        if !self.dirty.is_empty() {
            return Some(self.now_ms);
        }
        self.wheel.keys().next().copied()
    }

    /// Ends the refusals whose time has come.
    fn end_refusals(&mut self) {
        while let Some(entry) = self.wheel.first_entry().filter(|e| *e.key() <= self.now_ms) {
            entry.remove().for_each(|at| {
                // The agent may have gone since, and another have its number: looking at that one does no harm.
                let Some(agent) = &mut self.agents[at as usize] else { return };
                let clients = &mut self.clients;
                agent.layers.expire(self.now_ms, |client| {
                    clients[client as usize].as_mut().expect("layers are of live clients").filters -= 1;
                });
                if self.open.contains(at) {
                    self.dirty.insert(at);
                }
            });
        }
    }

    /// The agents to look at, in an order that depends on the seed and their ids alone, so that neither how many
    /// there are nor how the round is sliced changes which comes first.
    fn next_agents(&self, seed: u64, budget: usize) -> impl Iterator<Item = u32> + use<> {
        let dirty = self.dirty.iter();
        let mut agents: Vec<(u64, u32)> = dirty.map(|at| (shuffled(seed, self.agent(at).id), at)).collect();
        if budget < agents.len() {
            agents.select_nth_unstable(budget);
            agents.truncate(budget);
        }
        agents.sort_unstable();
        agents.into_iter().map(|(_, at)| at)
    }

    fn visit(&mut self, at: u32, grants: &mut Vec<Grant>) {
        let mut row = std::mem::take(&mut self.row);
        let decision = self.decide(&self.sorter, self.agent(at), self.now_ms, &mut row);
        self.row = row;
        match decision {
            Decision::Unwanted => self.visits_unwanted += 1,
            Decision::All(client) => {
                let all = std::mem::take(&mut self.agent_mut(at).free);
                grants.push(self.grant(at, client, all));
            }
            Decision::Parts(parts) => {
                for (client, part) in parts {
                    self.agent_mut(at).free.sub(&part).expect("parts are of what is free");
                    grants.push(self.grant(at, client, part));
                }
            }
        }
        let enough = self.policy.is_enough(&self.agent(at).free);
        self.open.set(at, enough);
    }

    fn grant(&mut self, at: u32, client: u32, resources: Resources) -> Grant {
        self.give(at, client, &resources);
        let (agent, client) = (self.agent(at).id, self.client(client));
        Grant { framework: client.framework, role: client.role.clone(), agent, resources }
    }

    /// Who is next on an open agent. `order` must be settled; `row` is scratch space.
    pub(crate) fn decide(&self, order: &Sorter, agent: &Agent, now_ms: u64, row: &mut Bits) -> Decision {
        if agent.free.entries().iter().any(|e| e.attribution.role().is_some()) {
            return self.decide_parts(order, agent, now_ms);
        }
        let Some(first) = order.first() else { return Decision::Unwanted };
        if !agent.layers.any(&agent.free, now_ms) {
            return Decision::All(first);
        }
        row.copy_from(&self.active);
        agent.layers.take_from(row, &agent.free, now_ms);
        if row.contains(first) {
            return Decision::All(first);
        }
        // When few have not refused it, it takes less to compare these than to walk past all the others.
        let few = row.len() as u64;
        let next = if few * few <= 4 * self.active_count {
            row.iter().min_by(|a, b| order.compare(*a, *b))
        } else {
            let mut next = None;
            order.walk(&mut |step| match step {
                Step::Client(client) if row.contains(client) => {
                    next = Some(client);
                    Then::Stop
                }
                _ => Then::On,
            });
            next
        };
        next.map_or(Decision::Unwanted, Decision::All)
    }

    /// As [`Self::decide`], where some of what is free is reserved: what one may take, another may not.
    fn decide_parts(&self, order: &Sorter, agent: &Agent, now_ms: u64) -> Decision {
        let mut left = agent.free.clone();
        let mut parts = Vec::new();
        // What a role may take of what is left, for the role that was asked for last.
        let mut candidate: Option<(Role, Resources)> = None;
        order.walk(&mut |step| {
            let client = match step {
                Step::Role(role) => return if self.concerns(role, &left) { Then::On } else { Then::Skip },
                Step::Client(client) => client,
            };
            let role = &self.client(client).role;
            if candidate.as_ref().is_none_or(|(of, _)| of != role) {
                candidate = Some((role.clone(), allocatable(&left, role)));
            }
            let (_, offer) = candidate.as_ref().expect("just computed");
            if !self.policy.is_enough(offer) || agent.layers.longest(client, offer, now_ms).is_some() {
                return Then::On;
            }
            left.sub(offer).expect("an offer is part of what is left");
            parts.extend(candidate.take().map(|(_, offer)| (client, offer)));
            if self.policy.is_enough(&left) { Then::On } else { Then::Stop }
        });
        if parts.is_empty() { Decision::Unwanted } else { Decision::Parts(parts) }
    }

    /// Whether the role or one below it may take enough of what is left.
    fn concerns(&self, role: &Role, left: &Resources) -> bool {
        let related = |owner: &Role| role.is_within(owner) || owner.is_within(role);
        self.policy.is_enough(&left.filter(|attribution| attribution.role().is_none_or(related)))
    }
}

/// What frameworks in `role` may be offered: what is unreserved, or reserved to the role or one above it.
pub(crate) fn allocatable(free: &Resources, role: &Role) -> Resources {
    free.filter(|attribution| attribution.role().is_none_or(|owner| role.is_within(owner)))
}

/// A place in an order that differs from seed to seed; different for different agents. (The finisher of splitmix64,
/// which maps no two numbers to one.)
pub(crate) fn shuffled(seed: u64, agent: AgentId) -> u64 {
    let mix = |mut x: u64| {
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    };
    mix(agent.0.wrapping_add(mix(seed.wrapping_add(0x9e37_79b9_7f4a_7c15))))
}
