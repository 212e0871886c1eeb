//! Whether the books are right: everything that is kept up to date is computed again.

use std::collections::BTreeMap;

use proffer_types::Resources;

use crate::amounts::Amounts;
use crate::bits::Bits;
use crate::{Agent, Allocator, Reach};

/// What [`Allocator::check`] found wrong: a bug in this crate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the allocator contradicts itself: {0}")]
pub struct Violation(pub String);

impl Allocator {
    /// Computes everything again from what is held where, and compares: per agent total = free + offered + used,
    /// shares, order, filters, counts. O(everything): for tests and simulation.
    pub fn check(&self) -> Result<(), Violation> {
        let mut amounts: BTreeMap<u32, Amounts> = BTreeMap::new();
        let mut total = Amounts::default();
        let mut filters: BTreeMap<u32, u64> = BTreeMap::new();
        let mut holdings: BTreeMap<u32, u64> = BTreeMap::new();
        let agents = self.agents.iter().enumerate().filter_map(|(at, a)| Some((at as u32, a.as_ref()?)));
        for (at, agent) in agents {
            self.check_agent(at, agent)?;
            if agent.reach != Reach::Lost {
                total.add(&agent.total);
            }
            for (client, held) in &agent.holdings {
                *holdings.entry(*client).or_default() += 1;
                let sum = amounts.entry(*client).or_default();
                sum.add(&held.offered);
                if agent.reach != Reach::Lost {
                    sum.add(&held.used);
                }
            }
            agent
                .layers
                .iter()
                .for_each(|l| l.who.for_each(|client| *filters.entry(client).or_default() += 1));
        }
        self.sorter.check(&amounts, &total).map_err(Violation)?;
        self.check_clients(&holdings, &filters)
    }

    fn check_agent(&self, at: u32, agent: &Agent) -> Result<(), Violation> {
        let wrong = |why: String| Err(Violation(format!("agent {:?}: {why}", agent.id)));
        if self.agent_numbers.get(&agent.id) != Some(&at) {
            return wrong(format!("has not the number {at}"));
        }
        let mut columns = agent.holdings.iter().flat_map(|(_, h)| [&h.offered, &h.used]);
        let held = columns.try_fold(Resources::new(), |sum, more| sum.checked_add(more).ok());
        let left = held.as_ref().and_then(|held| agent.total.checked_sub(held).ok());
        if agent.overcommitted != left.is_none() || agent.free != left.unwrap_or_default() {
            return wrong(format!(
                "{} free, {:?} held of {}",
                agent.free,
                held.map(|h| h.to_string()),
                agent.total
            ));
        }
        if !agent.holdings.is_sorted_by(|a, b| a.0 < b.0) {
            return wrong("holdings are not sorted".into());
        }
        if agent.holdings.iter().any(|(_, h)| h.offered.is_empty() && h.used.is_empty()) {
            return wrong("an empty holding is kept".into());
        }
        if self.open.contains(at) != (agent.reach == Reach::Ready && self.policy.is_enough(&agent.free)) {
            return wrong("open or not is wrong".into());
        }
        if self.dirty.contains(at) && !self.open.contains(at) {
            return wrong("waits to be looked at though nothing can be offered".into());
        }
        let unwatched =
            agent.layers.iter().find(|l| !self.wheel.get(&l.until_ms).is_some_and(|a| a.contains(at)));
        if let Some(layer) = unwatched {
            return wrong(format!("nothing wakes it at {}", layer.until_ms));
        }
        if agent.layers.iter().any(|l| l.who.is_empty() || l.shape.is_empty()) {
            return wrong("an empty layer is kept".into());
        }
        self.check_nobody_waits(at, agent)
    }

    /// An open agent that nobody is to look at is one that nobody would be given anything of.
    fn check_nobody_waits(&self, at: u32, agent: &Agent) -> Result<(), Violation> {
        if self.dirty.contains(at) || !self.open.contains(at) {
            return Ok(());
        }
        for client in self.active.iter() {
            let offer = crate::round::allocatable(&agent.free, &self.client(client).role);
            // What ended before the latest event is told of at the next round.
            let ended = self.wheel.first_key_value().is_some_and(|(until_ms, _)| *until_ms <= self.now_ms);
            let held_back = agent.layers.longest(client, &offer, 0).is_some();
            if self.policy.is_enough(&offer) && !held_back && !ended {
                let (framework, role) = (self.client(client).framework, &self.client(client).role);
                return Err(Violation(format!("{framework:?} in {role} waits for {:?}", agent.id)));
            }
        }
        Ok(())
    }

    fn check_clients(
        &self,
        holdings: &BTreeMap<u32, u64>,
        filters: &BTreeMap<u32, u64>,
    ) -> Result<(), Violation> {
        let mut active = Bits::default();
        let mut listed = 0;
        for (id, framework) in &self.frameworks {
            if !framework.known && framework.clients.is_empty() {
                return Err(Violation(format!("framework {id:?} is kept for nothing")));
            }
            for (role, at) in &framework.clients {
                listed += 1;
                let client = self.client(*at);
                let wrong = |why: &str| Err(Violation(format!("{id:?} in {role}: {why}")));
                let counted = |counts: &BTreeMap<u32, u64>| counts.get(at).copied().unwrap_or(0);
                if (&client.framework, &client.role) != (id, role) {
                    return wrong("has somebody else's number");
                }
                if client.holdings != counted(holdings) {
                    return wrong("holdings are miscounted");
                }
                if client.filters != counted(filters) {
                    return wrong("filters are miscounted");
                }
                if !client.subscribed && client.holdings == 0 {
                    return wrong("is kept for nothing");
                }
                let suppressed = client.suppressed_since_ms.is_some();
                if framework.known && framework.connected && client.subscribed && !suppressed {
                    active.insert(*at);
                }
            }
        }
        if listed != self.clients.iter().flatten().count() {
            return Err(Violation("a client is not its framework's".into()));
        }
        if !active.iter().eq(self.active.iter()) || active.len() as u64 != self.active_count {
            return Err(Violation("active clients are miscounted".into()));
        }
        Ok(())
    }
}
