//! The allocator as one would write it without caring for speed: plain maps, every agent looked at every time, every
//! share computed from what is held, compared as exact rationals.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use proffer_types::resources::ScalarKind;
use proffer_types::{AgentId, FrameworkId, Resources, Role};

use crate::filters::refusal_ends_ms;
use crate::round::shuffled;
use crate::{Event, Grant, Policy};

type Client = (FrameworkId, Role);

#[derive(Clone, Copy, PartialEq)]
enum Reach {
    Ready,
    Paused,
    Lost,
}

#[derive(Clone)]
struct Agent {
    total: Resources,
    reach: Reach,
    offered: BTreeMap<Client, Resources>,
    used: BTreeMap<Client, Resources>,
}

#[derive(Clone, Default)]
struct Framework {
    connected: bool,
    /// Whether suppressed.
    roles: BTreeMap<Role, bool>,
}

#[derive(Clone)]
struct Filter {
    client: Client,
    agent: AgentId,
    refused: Resources,
    until_ms: u64,
}

/// Shape, level, end; the one refused last at the end.
type Floors = Vec<([u64; 4], u64, u64)>;

#[derive(Clone)]
pub(super) struct Reference {
    policy: Policy,
    now_ms: u64,
    agents: BTreeMap<AgentId, Agent>,
    frameworks: BTreeMap<FrameworkId, Framework>,
    weights: BTreeMap<String, u32>,
    filters: Vec<Filter>,
    floors: BTreeMap<Client, Floors>,
    /// Grants counted per path of the tree: role components, `.`, the framework.
    counts: BTreeMap<Vec<String>, u64>,
    /// How often a filter was the reason that nothing was offered.
    pub(super) held_back: u64,
}

fn path(client: &Client) -> Vec<String> {
    let mut path: Vec<String> = client.1.components().map(str::to_owned).collect();
    path.push(".".into());
    path.push(format!("{:020}", client.0.0));
    path
}

impl Agent {
    fn free(&self) -> Option<Resources> {
        let mut free = self.total.clone();
        for held in self.offered.values().chain(self.used.values()) {
            free.sub(held).ok()?;
        }
        Some(free)
    }
}

fn take(column: &mut BTreeMap<Client, Resources>, client: &Client, resources: &Resources) -> bool {
    let Some(held) = column.get_mut(client) else { return false };
    if held.sub(resources).is_err() {
        return false;
    }
    if held.is_empty() {
        column.remove(client);
    }
    true
}

impl Reference {
    pub(super) fn new(policy: Policy) -> Self {
        Self {
            policy,
            now_ms: 0,
            agents: BTreeMap::new(),
            frameworks: BTreeMap::new(),
            weights: BTreeMap::new(),
            filters: Vec::new(),
            floors: BTreeMap::new(),
            counts: BTreeMap::new(),
            held_back: 0,
        }
    }

    pub(super) fn free(&self, agent: AgentId) -> Option<Resources> {
        self.agents.get(&agent).map(|a| a.free().unwrap_or_default())
    }

    /// Whether the event was taken.
    pub(super) fn apply(&mut self, now_ms: u64, event: &Event) -> bool {
        self.now_ms = self.now_ms.max(now_ms);
        let taken = self.take_event(event);
        self.forget();
        taken
    }

    fn take_event(&mut self, event: &Event) -> bool {
        match event {
            Event::AgentAdded { agent, total } => {
                let new = Agent {
                    total: total.clone(),
                    reach: Reach::Ready,
                    offered: BTreeMap::new(),
                    used: BTreeMap::new(),
                };
                !self.agents.contains_key(agent) && self.agents.insert(*agent, new).is_none()
            }
            Event::AgentChanged { agent, total } => {
                self.agents.get_mut(agent).map(|a| a.total = total.clone()).is_some()
            }
            Event::AgentPaused { agent } => self.set_reach(agent, Reach::Paused),
            Event::AgentLost { agent } => self.set_reach(agent, Reach::Lost),
            Event::AgentResumed { agent } => self.set_reach(agent, Reach::Ready),
            Event::AgentRemoved { agent } => {
                self.filters.retain(|f| f.agent != *agent);
                self.agents.remove(agent).is_some()
            }
            Event::FrameworkAdded { framework, roles, suppressed } => {
                !self.frameworks.contains_key(framework) && self.set_roles(framework, roles, suppressed)
            }
            Event::FrameworkChanged { framework, roles, suppressed } => {
                self.frameworks.contains_key(framework) && self.set_roles(framework, roles, suppressed)
            }
            Event::FrameworkActivated { framework } => {
                self.frameworks.get_mut(framework).map(|f| f.connected = true).is_some()
            }
            Event::FrameworkDeactivated { framework } => {
                self.forgive(|client| client.0 == *framework);
                self.frameworks.get_mut(framework).map(|f| f.connected = false).is_some()
            }
            Event::FrameworkRemoved { framework } => {
                self.forgive(|client| client.0 == *framework);
                self.frameworks.remove(framework).is_some()
            }
            Event::Suppressed { framework, roles } => self.suppress(framework, roles, true),
            Event::Revived { framework, roles } => {
                let taken = self.suppress(framework, roles, false);
                if taken {
                    self.forgive(|c| c.0 == *framework && (roles.is_empty() || roles.contains(&c.1)));
                }
                taken
            }
            Event::Launched(grant) => self.launch(grant),
            Event::Used(grant) => self.use_free(grant),
            Event::Returned(grant) => self.release(grant, true),
            Event::Rescinded(grant) => self.release(grant, false),
            Event::Expired(grant) => self.release(grant, false) && self.refuse(grant, 0),
            Event::Declined { grant, filter_ms } => {
                self.release(grant, false) && self.refuse(grant, *filter_ms)
            }
            Event::WeightSet { role, weight_milli } => {
                *weight_milli > 0 && {
                    self.weights.insert(role.as_str().into(), *weight_milli);
                    true
                }
            }
        }
    }

    fn set_reach(&mut self, agent: &AgentId, reach: Reach) -> bool {
        self.agents.get_mut(agent).map(|a| a.reach = reach).is_some()
    }

    fn set_roles(&mut self, id: &FrameworkId, roles: &[Role], suppressed: &[Role]) -> bool {
        if suppressed.iter().any(|role| !roles.contains(role)) {
            return false;
        }
        self.forgive(|client| client.0 == *id && !roles.contains(&client.1));
        let framework = self.frameworks.entry(*id).or_default();
        framework.roles = roles.iter().map(|role| (role.clone(), suppressed.contains(role))).collect();
        true
    }

    fn suppress(&mut self, id: &FrameworkId, roles: &[Role], suppressed: bool) -> bool {
        let Some(framework) = self.frameworks.get_mut(id) else { return false };
        if roles.iter().any(|role| !framework.roles.contains_key(role)) {
            return false;
        }
        let meant = framework.roles.iter_mut().filter(|(role, _)| roles.is_empty() || roles.contains(role));
        meant.for_each(|(_, is)| *is = suppressed);
        true
    }

    fn forgive(&mut self, whom: impl Fn(&Client) -> bool) {
        self.filters.retain(|f| !whom(&f.client));
        self.floors.retain(|client, _| !whom(client));
    }

    fn launch(&mut self, grant: &Grant) -> bool {
        let client = (grant.framework, grant.role.clone());
        let Some(agent) = self.agents.get_mut(&grant.agent) else { return false };
        if grant.resources.is_empty() {
            return true;
        }
        if !take(&mut agent.offered, &client, &grant.resources) {
            return false;
        }
        agent.used.entry(client.clone()).or_default().add(&grant.resources).unwrap();
        self.floors.remove(&client);
        true
    }

    fn use_free(&mut self, grant: &Grant) -> bool {
        let client = (grant.framework, grant.role.clone());
        let Some(agent) = self.agents.get_mut(&grant.agent) else { return false };
        if grant.resources.is_empty() {
            return true;
        }
        let used = agent.used.get(&client).cloned().unwrap_or_default();
        let Ok(sum) = used.checked_add(&grant.resources) else { return false };
        agent.used.insert(client.clone(), sum);
        if agent.reach != Reach::Lost {
            self.count(&client);
        } else {
            // The nodes come to be, with nothing counted.
            self.count_by(&client, 0);
        }
        true
    }

    fn release(&mut self, grant: &Grant, used: bool) -> bool {
        let client = (grant.framework, grant.role.clone());
        let Some(agent) = self.agents.get_mut(&grant.agent) else { return false };
        let column = if used { &mut agent.used } else { &mut agent.offered };
        grant.resources.is_empty() || take(column, &client, &grant.resources)
    }

    fn refuse(&mut self, grant: &Grant, filter_ms: u64) -> bool {
        let client = (grant.framework, grant.role.clone());
        let remembered = self
            .frameworks
            .get(&grant.framework)
            .is_some_and(|f| f.connected && f.roles.contains_key(&grant.role));
        if !remembered || grant.resources.is_empty() {
            return true;
        }
        let shape = ScalarKind::ALL.map(|kind| grant.resources.scalar(kind));
        let (least, most) = (self.policy.floor_min_ms, self.policy.floor_max_ms);
        let floors = self.floors.entry(client.clone()).or_default();
        let old = floors.iter().position(|(s, ..)| *s == shape).map(|at| floors.remove(at));
        let (level, ends) = match old {
            Some((_, level, ends)) if self.now_ms < ends => (level, ends),
            Some((_, level, ends)) if self.now_ms < ends + self.policy.floor_memory_ms => {
                let level = (level * 2).min(most);
                (level, self.now_ms + level)
            }
            _ => (least, self.now_ms + least),
        };
        floors.push((shape, level, ends));
        if floors.len() > 8 {
            floors.remove(0);
        }
        let until_ms = refusal_ends_ms(self.now_ms, level.max(filter_ms));
        self.filters.push(Filter { client, agent: grant.agent, refused: grant.resources.clone(), until_ms });
        true
    }

    fn count(&mut self, client: &Client) {
        self.count_by(client, 1);
    }

    fn count_by(&mut self, client: &Client, by: u64) {
        let path = path(client);
        (1..=path.len()).for_each(|n| *self.counts.entry(path[..n].to_vec()).or_default() += by);
    }

    /// Everyone who is in a role or holds something.
    fn clients(&self) -> Vec<Client> {
        let mut clients: Vec<Client> = Vec::new();
        for (id, framework) in &self.frameworks {
            clients.extend(framework.roles.keys().map(|role| (*id, role.clone())));
        }
        for agent in self.agents.values() {
            clients.extend(agent.offered.keys().chain(agent.used.keys()).cloned());
        }
        clients.sort();
        clients.dedup();
        clients
    }

    /// A part of the tree that nobody is in any more is forgotten with its count.
    fn forget(&mut self) {
        let mut live = BTreeSet::new();
        for path in self.clients().iter().map(path) {
            live.extend((1..=path.len()).map(|n| path[..n].to_vec()));
        }
        self.counts.retain(|at, _| live.contains(at));
    }

    /// Looks at every agent; `filters` that are over are dropped.
    pub(super) fn allocate(&mut self, now_ms: u64, seed: u64) -> Vec<Grant> {
        self.now_ms = self.now_ms.max(now_ms);
        let now_ms = self.now_ms;
        self.filters.retain(|f| now_ms < f.until_ms);
        let mut agents: Vec<AgentId> = self.agents.keys().copied().collect();
        agents.sort_by_key(|id| shuffled(seed, *id));
        agents.into_iter().flat_map(|agent| self.allocate_on(agent)).collect()
    }

    fn allocate_on(&mut self, id: AgentId) -> Vec<Grant> {
        let mut grants = Vec::new();
        if self.agents[&id].reach != Reach::Ready {
            return grants;
        }
        if self.agents[&id].free().is_none_or(|free| free.is_empty()) {
            return grants;
        }
        for client in self.order() {
            let free = self.agents[&id].free().unwrap();
            let mine = |owner: &Role| client.1 == *owner || client.1.is_within(owner);
            let offer = free.filter(|attribution| attribution.role().is_none_or(mine));
            let enough = offer.cpus_milli() >= self.policy.min_cpus_milli
                || offer.memory_bytes() >= self.policy.min_memory_bytes;
            if !enough {
                continue;
            }
            let refused = |f: &Filter| f.client == client && f.agent == id && f.refused.contains(&offer);
            if self.filters.iter().any(refused) {
                self.held_back += 1;
                continue;
            }
            let agent = self.agents.get_mut(&id).unwrap();
            agent.offered.entry(client.clone()).or_default().add(&offer).unwrap();
            grants.push(Grant { framework: client.0, role: client.1, agent: id, resources: offer });
        }
        for grant in &grants {
            self.count(&(grant.framework, grant.role.clone()));
        }
        grants
    }

    /// The clients that want offers, in the order of service.
    fn order(&self) -> Vec<Client> {
        let wants = |client: &Client| {
            let framework = self.frameworks.get(&client.0).filter(|f| f.connected);
            framework.and_then(|f| f.roles.get(&client.1)).is_some_and(|suppressed| !suppressed)
        };
        let clients = self.clients();
        let shares = self.shares(&clients);
        let mut active: Vec<(Client, Vec<String>)> =
            clients.into_iter().filter(wants).map(|client| (client.clone(), path(&client))).collect();
        // Where their paths part, the nodes there decide.
        active.sort_by(|(_, a), (_, b)| {
            let fork = a.iter().zip(b).position(|(a, b)| a != b);
            fork.map_or(Ordering::Equal, |n| self.compare(&shares, &a[..=n], &b[..=n]))
        });
        active.into_iter().map(|(client, _)| client).collect()
    }

    fn compare(&self, shares: &BTreeMap<Vec<String>, (u128, u128)>, a: &[String], b: &[String]) -> Ordering {
        let count = |path: &[String]| self.counts.get(path).copied().unwrap_or(0);
        let ((a_part, a_whole), (b_part, b_whole)) = (shares[a], shares[b]);
        (a_part * b_whole)
            .cmp(&(b_part * a_whole))
            .then_with(|| count(a).cmp(&count(b)))
            .then_with(|| a.last().cmp(&b.last()))
    }

    /// The weighted dominant share of every node of the tree.
    fn shares(&self, clients: &[Client]) -> BTreeMap<Vec<String>, (u128, u128)> {
        let mut total = [0; 5];
        let mut held: BTreeMap<Vec<String>, [u128; 5]> = BTreeMap::new();
        for agent in self.agents.values().filter(|a| a.reach != Reach::Lost) {
            add(&mut total, &agent.total);
        }
        for client in clients {
            let mut mine = [0; 5];
            for agent in self.agents.values() {
                agent.offered.get(client).into_iter().for_each(|held| add(&mut mine, held));
                let used = agent.used.get(client).filter(|_| agent.reach != Reach::Lost);
                used.into_iter().for_each(|held| add(&mut mine, held));
            }
            let path = path(client);
            for n in 1..=path.len() {
                let node = held.entry(path[..n].to_vec()).or_default();
                node.iter_mut().zip(mine).for_each(|(sum, more)| *sum += more);
            }
        }
        let share = |(path, held): (Vec<String>, [u128; 5])| {
            let weight = u128::from(self.weights.get(&path.join("/")).copied().unwrap_or(1000));
            let mut most = (0, 1);
            for (part, whole) in held.into_iter().zip(total) {
                if whole > 0 && part * most.1 > most.0 * whole {
                    most = (part, whole);
                }
            }
            (path, (most.0 * 1000, most.1 * weight))
        };
        held.into_iter().map(share).collect()
    }
}

/// Milli-cpus, memory and disk in MiB (so that products of three stay exact), milli-gpus, and the custom kind `fpga`.
fn add(sums: &mut [u128; 5], resources: &Resources) {
    for entry in resources.entries() {
        let [cpus, mem, disk, gpus] = entry.quantities.scalar_array();
        let fpga = entry.quantities.custom().and_then(|c| c.scalars.get("fpga")).copied().unwrap_or(0);
        let amounts = [cpus, mem >> 20, disk >> 20, gpus, fpga];
        sums.iter_mut().zip(amounts).for_each(|(sum, more)| *sum += u128::from(more));
    }
}
