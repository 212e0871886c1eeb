//! Keeping the books: what each event changes.

use proffer_types::{AgentId, FrameworkId, ResourceError, Resources, Role};

use crate::filters::{Floors, refusal_ends_ms};
use crate::{Agent, Allocator, Client, Event, Framework, Grant, Holding, Policy, Reach, Refused};

/// Which of a client's two columns on an agent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Column {
    Offered,
    Used,
}

impl Allocator {
    /// Takes note of an event. `now_ms` is cluster time; an earlier one than before counts as the latest.
    /// An event that contradicts earlier ones is refused and changes nothing.
    pub fn apply(&mut self, now_ms: u64, event: &Event) -> Result<(), Refused> {
        self.now_ms = self.now_ms.max(now_ms);
        match event {
            Event::AgentAdded { agent, total } => self.add_agent(*agent, total),
            Event::AgentChanged { agent, total } => self.change_agent(*agent, total),
            Event::AgentPaused { agent } => self.set_reach(*agent, Reach::Paused),
            Event::AgentLost { agent } => self.set_reach(*agent, Reach::Lost),
            Event::AgentResumed { agent } => self.set_reach(*agent, Reach::Ready),
            Event::AgentRemoved { agent } => self.remove_agent(*agent),
            Event::FrameworkAdded { framework, roles, suppressed } => {
                if self.frameworks.get(framework).is_some_and(|f| f.known) {
                    return Err(Refused::FrameworkKnown(*framework));
                }
                self.set_roles(*framework, roles, suppressed)
            }
            Event::FrameworkChanged { framework, roles, suppressed } => {
                self.known(*framework)?;
                self.set_roles(*framework, roles, suppressed)
            }
            Event::FrameworkActivated { framework } => self.set_connected(*framework, true),
            Event::FrameworkDeactivated { framework } => self.set_connected(*framework, false),
            Event::FrameworkRemoved { framework } => self.remove_framework(*framework),
            Event::Suppressed { framework, roles } => self.suppress(*framework, roles),
            Event::Revived { framework, roles } => self.revive(*framework, roles),
            Event::Launched(grant) => self.launch(grant),
            Event::Used(grant) => self.use_free(grant),
            Event::Returned(grant) => self.release(Column::Used, grant).map(drop),
            Event::Rescinded(grant) => self.release(Column::Offered, grant).map(drop),
            Event::Declined { grant, filter_ms } => self.refuse(grant, *filter_ms),
            Event::Expired(grant) => self.refuse(grant, 0),
            Event::WeightSet { role, weight_milli } => {
                if *weight_milli == 0 {
                    return Err(Refused::ZeroWeight(role.clone()));
                }
                self.sorter.set_weight(role, *weight_milli);
                Ok(())
            }
        }
    }

    // Agents.

    fn add_agent(&mut self, id: AgentId, total: &Resources) -> Result<(), Refused> {
        if self.agent_numbers.contains_key(&id) {
            return Err(Refused::AgentKnown(id));
        }
        let agent = Some(Agent {
            id,
            total: total.clone(),
            free: total.clone(),
            overcommitted: false,
            reach: Reach::Ready,
            holdings: Vec::new(),
            layers: Default::default(),
        });
        let at = match self.agents_vacant.pop() {
            Some(at) => {
                self.agents[at as usize] = agent;
                at
            }
            None => {
                self.agents.push(agent);
                self.agents.len() as u32 - 1
            }
        };
        self.agent_numbers.insert(id, at);
        self.sorter.grow_total(total);
        self.look_again(at);
        Ok(())
    }

    fn change_agent(&mut self, id: AgentId, total: &Resources) -> Result<(), Refused> {
        let at = self.agent_number(id)?;
        let agent = self.agent_mut(at);
        let counted = agent.reach != Reach::Lost;
        let old = std::mem::replace(&mut agent.total, total.clone());
        if old == *total {
            return Ok(());
        }
        if counted {
            self.sorter.shrink_total(&old);
            self.sorter.grow_total(total);
        }
        self.refit(at);
        Ok(())
    }

    fn set_reach(&mut self, id: AgentId, reach: Reach) -> Result<(), Refused> {
        let at = self.agent_number(id)?;
        let agent = self.agents[at as usize].as_mut().expect("its number is known");
        let old = std::mem::replace(&mut agent.reach, reach);
        match (old == Reach::Lost, reach == Reach::Lost) {
            (false, true) => {
                self.sorter.shrink_total(&agent.total);
                agent.holdings.iter().for_each(|(client, held)| self.sorter.discharge(*client, &held.used));
            }
            (true, false) => {
                self.sorter.grow_total(&agent.total);
                agent
                    .holdings
                    .iter()
                    .for_each(|(client, held)| self.sorter.charge(*client, &held.used, false));
            }
            _ => {}
        }
        self.look_again(at);
        Ok(())
    }

    fn remove_agent(&mut self, id: AgentId) -> Result<(), Refused> {
        let at = self.agent_number(id)?;
        let agent = self.agents[at as usize].take().expect("its number is known");
        self.agent_numbers.remove(&id);
        self.agents_vacant.push(at);
        self.open.remove(at);
        self.dirty.remove(at);
        for layer in agent.layers.iter() {
            layer.who.for_each(|client| self.client_mut(client).filters -= 1);
        }
        if agent.reach != Reach::Lost {
            self.sorter.shrink_total(&agent.total);
        }
        for (client, held) in &agent.holdings {
            self.sorter.discharge(*client, &held.offered);
            if agent.reach != Reach::Lost {
                self.sorter.discharge(*client, &held.used);
            }
            self.client_mut(*client).holdings -= 1;
            self.drop_if_done(*client);
        }
        Ok(())
    }

    fn agent_number(&self, id: AgentId) -> Result<u32, Refused> {
        self.agent_numbers.get(&id).copied().ok_or(Refused::UnknownAgent(id))
    }

    /// Computes what is free from what there is and what is held.
    fn refit(&mut self, at: u32) {
        let agent = self.agent_mut(at);
        let mut left = Some(agent.total.clone());
        for (_, held) in &agent.holdings {
            left = left.and_then(|left| left.checked_sub(&held.offered).ok()?.checked_sub(&held.used).ok());
        }
        agent.overcommitted = left.is_none();
        agent.free = left.unwrap_or_default();
        self.look_again(at);
    }

    /// What is free on an agent, or whether it may be offered, has changed.
    fn look_again(&mut self, at: u32) {
        let agent = self.agent(at);
        let open = agent.reach == Reach::Ready && self.policy.is_enough(&agent.free);
        self.open.set(at, open);
        self.dirty.set(at, open);
    }

    // Frameworks and their clients.

    fn known(&self, id: FrameworkId) -> Result<&Framework, Refused> {
        self.frameworks.get(&id).filter(|f| f.known).ok_or(Refused::UnknownFramework(id))
    }

    fn set_roles(&mut self, id: FrameworkId, roles: &[Role], suppressed: &[Role]) -> Result<(), Refused> {
        if let Some(role) = suppressed.iter().find(|role| !roles.contains(role)) {
            return Err(Refused::UnknownRole { framework: id, role: role.clone() });
        }
        self.frameworks.entry(id).or_default().known = true;
        for role in roles {
            let at = self.client_number(id, role);
            let now_ms = self.now_ms;
            let client = self.client_mut(at);
            client.subscribed = true;
            client.suppressed_since_ms =
                suppressed.contains(role).then(|| client.suppressed_since_ms.unwrap_or(now_ms));
            self.refresh_active(at);
        }
        let left: Vec<u32> = self.frameworks[&id]
            .clients
            .iter()
            .filter(|(role, _)| !roles.contains(role))
            .map(|(_, at)| *at)
            .collect();
        left.into_iter().for_each(|at| self.unsubscribe(at));
        Ok(())
    }

    fn set_connected(&mut self, id: FrameworkId, connected: bool) -> Result<(), Refused> {
        self.known(id)?;
        let framework = self.frameworks.get_mut(&id).expect("it is known");
        framework.connected = connected;
        let clients: Vec<u32> = framework.clients.values().copied().collect();
        for at in clients {
            self.refresh_active(at);
            if !connected {
                self.forget_refusals(at);
            }
        }
        Ok(())
    }

    fn remove_framework(&mut self, id: FrameworkId) -> Result<(), Refused> {
        self.known(id)?;
        let framework = self.frameworks.get_mut(&id).expect("it is known");
        (framework.known, framework.connected) = (false, false);
        let clients: Vec<u32> = framework.clients.values().copied().collect();
        if clients.is_empty() {
            self.frameworks.remove(&id);
        }
        clients.into_iter().for_each(|at| self.unsubscribe(at));
        Ok(())
    }

    fn suppress(&mut self, id: FrameworkId, roles: &[Role]) -> Result<(), Refused> {
        let now_ms = self.now_ms;
        for at in self.subscribed(id, roles)? {
            self.client_mut(at).suppressed_since_ms.get_or_insert(now_ms);
            self.refresh_active(at);
        }
        Ok(())
    }

    fn revive(&mut self, id: FrameworkId, roles: &[Role]) -> Result<(), Refused> {
        for at in self.subscribed(id, roles)? {
            self.client_mut(at).suppressed_since_ms = None;
            self.forget_refusals(at);
            self.refresh_active(at);
        }
        Ok(())
    }

    /// The clients of a framework in `roles`, all of which must be its own; in all its roles if there are none.
    fn subscribed(&self, id: FrameworkId, roles: &[Role]) -> Result<Vec<u32>, Refused> {
        let clients = &self.known(id)?.clients;
        if roles.is_empty() {
            return Ok(clients.values().copied().filter(|at| self.client(*at).subscribed).collect());
        }
        let own = |role: &Role| {
            let at = clients.get(role).copied().filter(|at| self.client(*at).subscribed);
            at.ok_or_else(|| Refused::UnknownRole { framework: id, role: role.clone() })
        };
        roles.iter().map(own).collect()
    }

    /// The number of a client, which is made if it is new.
    fn client_number(&mut self, framework: FrameworkId, role: &Role) -> u32 {
        if let Some(at) = self.frameworks.get(&framework).and_then(|f| f.clients.get(role)) {
            return *at;
        }
        let client = Some(Client {
            framework,
            role: role.clone(),
            subscribed: false,
            suppressed_since_ms: None,
            holdings: 0,
            filters: 0,
            floors: Floors::default(),
            grants: 0,
            last_grant_ms: None,
            last_grant: self.grants,
        });
        let at = match self.clients_vacant.pop() {
            Some(at) => {
                self.clients[at as usize] = client;
                at
            }
            None => {
                self.clients.push(client);
                self.clients.len() as u32 - 1
            }
        };
        self.frameworks.entry(framework).or_default().clients.insert(role.clone(), at);
        self.sorter.add_client(at, role, framework);
        at
    }

    fn unsubscribe(&mut self, at: u32) {
        let client = self.client_mut(at);
        client.subscribed = false;
        client.suppressed_since_ms = None;
        self.refresh_active(at);
        self.forget_refusals(at);
        self.drop_if_done(at);
    }

    /// Forgets a client that is in no role and holds nothing.
    fn drop_if_done(&mut self, at: u32) {
        let client = self.client(at);
        if client.subscribed || client.holdings > 0 {
            return;
        }
        let client = self.clients[at as usize].take().expect("its number is known");
        self.clients_vacant.push(at);
        self.sorter.remove_client(at);
        let framework = self.frameworks.get_mut(&client.framework).expect("its clients are known");
        framework.clients.remove(&client.role);
        if !framework.known && framework.clients.is_empty() {
            self.frameworks.remove(&client.framework);
        }
    }

    fn wants_offers(&self, client: &Client) -> bool {
        let connected = self.frameworks.get(&client.framework).is_some_and(|f| f.known && f.connected);
        connected && client.subscribed && client.suppressed_since_ms.is_none()
    }

    fn refresh_active(&mut self, at: u32) {
        let active = self.wants_offers(self.client(at));
        if active == self.active.contains(at) {
            return;
        }
        self.active.set(at, active);
        self.sorter.set_active(at, active);
        if active {
            self.active_count += 1;
            self.dirty.add_all(&self.open);
        } else {
            self.active_count -= 1;
        }
    }

    /// Ends everything that holds offers back from a client. O(agents) if there is anything.
    fn forget_refusals(&mut self, at: u32) {
        let client = self.client_mut(at);
        client.floors.clear();
        let mut left = std::mem::take(&mut client.filters);
        for (number, agent) in self.agents.iter_mut().enumerate() {
            if left == 0 {
                return;
            }
            let Some(agent) = agent else { continue };
            let forgotten = agent.layers.forget(at);
            left -= forgotten;
            if forgotten > 0 && self.open.contains(number as u32) {
                self.dirty.insert(number as u32);
            }
        }
    }

    // Who holds what.

    /// From free to offered.
    pub(crate) fn give(&mut self, at: u32, client: u32, resources: &Resources) {
        self.add_to(at, client, Column::Offered, resources).expect("what is free adds up with what is held");
        self.sorter.charge(client, resources, true);
        self.grants += 1;
        let (grants, now_ms) = (self.grants, self.now_ms);
        let client = self.client_mut(client);
        client.grants += 1;
        (client.last_grant, client.last_grant_ms) = (grants, Some(now_ms));
    }

    fn use_free(&mut self, grant: &Grant) -> Result<(), Refused> {
        let at = self.agent_number(grant.agent)?;
        if grant.resources.is_empty() {
            return Ok(());
        }
        let client = self.client_number(grant.framework, &grant.role);
        if let Err(source) = self.add_to(at, client, Column::Used, &grant.resources) {
            self.drop_if_done(client);
            return Err(Refused::Sum { agent: grant.agent, source });
        }
        if self.agent(at).reach != Reach::Lost {
            self.sorter.charge(client, &grant.resources, true);
        }
        match self.agent_mut(at).free.sub(&grant.resources) {
            Ok(()) => self.look_again(at),
            Err(_) => self.refit(at),
        }
        Ok(())
    }

    fn launch(&mut self, grant: &Grant) -> Result<(), Refused> {
        let Some((at, client)) = self.take_from(Column::Offered, grant)? else { return Ok(()) };
        self.add_to(at, client, Column::Used, &grant.resources)
            .expect("what was held adds up with what is held");
        self.settle_holding(at, client);
        if self.agent(at).reach == Reach::Lost {
            self.sorter.discharge(client, &grant.resources);
        }
        self.client_mut(client).floors.clear();
        Ok(())
    }

    /// From offered or used to free; `None` if it is nothing, else the agent and the client, if it is still there.
    fn release(&mut self, column: Column, grant: &Grant) -> Result<Option<(u32, u32)>, Refused> {
        let Some((at, client)) = self.take_from(column, grant)? else { return Ok(None) };
        self.settle_holding(at, client);
        if column == Column::Offered || self.agent(at).reach != Reach::Lost {
            self.sorter.discharge(client, &grant.resources);
        }
        let agent = self.agent_mut(at);
        if agent.overcommitted {
            self.refit(at);
        } else {
            agent.free.add(&grant.resources).expect("what was part of the total adds up");
            self.look_again(at);
        }
        self.drop_if_done(client);
        Ok(Some((at, client)))
    }

    fn refuse(&mut self, grant: &Grant, filter_ms: u64) -> Result<(), Refused> {
        let Some((at, number)) = self.release(Column::Offered, grant)? else { return Ok(()) };
        self.refusals += 1;
        let connected = self.frameworks.get(&grant.framework).is_some_and(|f| f.known && f.connected);
        let Some(client) = self.clients[number as usize].as_mut().filter(|c| c.subscribed && connected)
        else {
            // Filters of who is gone or disconnected are forgotten.
            return Ok(());
        };
        let floor_ms = client.floors.refuse(&self.policy, self.now_ms, &grant.resources);
        let until_ms = refusal_ends_ms(self.now_ms, filter_ms.max(floor_ms));
        let agent = self.agents[at as usize].as_mut().expect("its number is known");
        let clients = &mut self.clients;
        let changed = |client: u32, by: i64| {
            let client = clients[client as usize].as_mut().expect("layers are of live clients");
            client.filters = client.filters.checked_add_signed(by).expect("filters are counted");
        };
        let new = agent.layers.refuse(number, &grant.resources, until_ms, self.policy.layers_max, changed);
        if let Some(until_ms) = new {
            self.wheel.entry(until_ms).or_default().insert(at);
        }
        Ok(())
    }

    /// Adds to a column of the holding, which is made if there is none; on error nothing has changed.
    fn add_to(
        &mut self,
        at: u32,
        client: u32,
        column: Column,
        more: &Resources,
    ) -> Result<(), ResourceError> {
        let holdings = &mut self.agent_mut(at).holdings;
        match holdings.binary_search_by_key(&client, |h| h.0) {
            Ok(found) => holdings[found].1.column(column).add(more),
            Err(place) => {
                let mut holding = Holding::default();
                *holding.column(column) = more.clone();
                holdings.insert(place, (client, holding));
                self.client_mut(client).holdings += 1;
                Ok(())
            }
        }
    }

    /// Takes out of a column of the holding; `None` if it is nothing. On error nothing has changed.
    fn take_from(&mut self, column: Column, grant: &Grant) -> Result<Option<(u32, u32)>, Refused> {
        let at = self.agent_number(grant.agent)?;
        if grant.resources.is_empty() {
            return Ok(None);
        }
        let not_held = |source| Refused::NotHeld {
            what: if column == Column::Offered { "offered" } else { "used" },
            framework: grant.framework,
            role: grant.role.clone(),
            agent: grant.agent,
            source,
        };
        let client = self.frameworks.get(&grant.framework).and_then(|f| f.clients.get(&grant.role)).copied();
        let holdings = &mut self.agents[at as usize].as_mut().expect("its number is known").holdings;
        let found = client.and_then(|c| Some((c, holdings.binary_search_by_key(&c, |h| h.0).ok()?)));
        let Some((client, found)) = found else {
            let none =
                Resources::new().sub(&grant.resources).expect_err("nothing does not contain something");
            return Err(not_held(none));
        };
        holdings[found].1.column(column).sub(&grant.resources).map_err(not_held)?;
        Ok(Some((at, client)))
    }

    /// Removes a holding in which nothing is left.
    fn settle_holding(&mut self, at: u32, client: u32) {
        let holdings = &mut self.agent_mut(at).holdings;
        let found = holdings.binary_search_by_key(&client, |h| h.0).expect("it was just changed");
        if holdings[found].1.offered.is_empty() && holdings[found].1.used.is_empty() {
            holdings.remove(found);
            self.client_mut(client).holdings -= 1;
        }
    }
}

impl Holding {
    fn column(&mut self, column: Column) -> &mut Resources {
        match column {
            Column::Offered => &mut self.offered,
            Column::Used => &mut self.used,
        }
    }
}

impl Policy {
    /// Whether this much is worth an offer.
    pub(crate) fn is_enough(&self, resources: &Resources) -> bool {
        resources.cpus_milli() >= self.min_cpus_milli || resources.memory_bytes() >= self.min_memory_bytes
    }
}
