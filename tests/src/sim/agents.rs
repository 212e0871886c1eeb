//! Agents: the core of the agent on a simulated host, whose containers outlive the agent's process but not the host.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proffer_agent::core::{Config, Core, Effect, Identity, Record};
use proffer_containerizer::{Event, InstanceId};
use proffer_types::call::{Call, ConnectionId};
use proffer_types::event::{AgentOrder, AgentReport};
use proffer_types::{AgentId, AgentInfo, BootId, Epoch, LaunchId, RequestId, Resources, features};
use proffer_wire::agent::v1 as pb;
use proffer_wire::{from_proto, to_proto};
use prost::Message;

use super::containers::{Container, State};
use super::executors::Program;
use super::links::{Client, Up};
use super::masters::master_at;
use super::rng::Rng;
use super::world::{Happening, World};

/// How long an executor may be without a stream (milliseconds).
const REGISTRATION_MS: u64 = 3_000;

pub(crate) struct AgentNode {
    pub(crate) live: Option<LiveAgent>,
    /// Counts the lives of the process.
    pub(crate) life: u64,
    /// Counts the lives of the host.
    pub(crate) boot: u64,
    boot_id: BootId,
    resources: Resources,
    identity: Option<Identity>,
    records: Vec<Record>,
    pub(crate) containers: BTreeMap<LaunchId, Container>,
    /// The executors' programs, by their launches.
    pub(crate) programs: BTreeMap<LaunchId, Program>,
    instances: u64,
    /// What masters said lately, to be said again.
    heard: VecDeque<(Epoch, AgentOrder)>,
}

pub(crate) struct LiveAgent {
    pub(crate) core: Core,
    /// The executors that it serves.
    pub(crate) listens: BTreeSet<LaunchId>,
    link: Option<u64>,
    /// The process dies before this many more effects.
    dies_after: Option<u64>,
    hint: Option<usize>,
    seeking: bool,
    /// The greatest leadership whose orders were followed.
    epoch: Epoch,
}

impl AgentNode {
    pub(crate) fn new(n: usize, rng: &mut Rng) -> Self {
        let cpus = 2 + rng.below(7);
        Self {
            live: None,
            life: 0,
            boot: 0,
            boot_id: BootId(rng.wide()),
            resources: Resources::parse(&format!("cpus:{cpus};mem:{}GiB;ports:[31000-31009]", cpus * 2))
                .unwrap_or_else(|error| panic!("agent {n}: {error}")),
            identity: None,
            records: Vec::new(),
            containers: BTreeMap::new(),
            programs: BTreeMap::new(),
            instances: 0,
            heard: VecDeque::new(),
        }
    }

    /// Whether a program of the launch runs on the host now, or an executor is at it.
    pub(crate) fn runs(&self, launch: LaunchId) -> bool {
        self.containers.get(&launch).is_some_and(|container| container.state == State::Running)
            || self.programs.values().any(|program| program.runs(launch))
    }

    /// As whom the agent speaks now.
    fn said_as(&self) -> Option<AgentId> {
        self.live.as_ref().and_then(|live| live.core.identity().agent)
    }

    pub(crate) fn agent_id(&self) -> Option<AgentId> {
        self.identity.as_ref().and_then(|identity| identity.agent)
    }
}

impl World {
    pub(crate) fn start_agent(&mut self, n: usize) {
        if self.agents[n].live.is_some() {
            return;
        }
        let instance = RequestId(self.rng.wide());
        let node = &mut self.agents[n];
        node.life += 1;
        let info = AgentInfo {
            hostname: format!("host{n}"),
            resources: node.resources.clone(),
            isolation: "linux".into(),
            features: [features::TASK_GROUP, features::EXECUTOR, features::CHECKS].map(str::to_owned).into(),
            ..AgentInfo::default()
        };
        let config = Config { info, boot_id: node.boot_id, registration_ms: REGISTRATION_MS };
        let core = Core::recover(config, node.identity.clone(), node.records.clone(), instance);
        // A compaction now and then, as the shell does it at a start.
        node.records = core.records();
        let epoch = core.identity().epoch;
        let listens = BTreeSet::new();
        node.live = Some(LiveAgent {
            core,
            listens,
            link: None,
            dies_after: None,
            hint: None,
            seeking: false,
            epoch,
        });
        self.flush_agent(n);
    }

    pub(crate) fn crash_agent(&mut self, n: usize, reboot: bool) {
        if self.calm {
            return;
        }
        if !reboot && self.agents[n].live.is_some() && self.rng.percent(50) {
            // It dies in the middle of doing something.
            let after = self.rng.below(8);
            if let Some(live) = &mut self.agents[n].live {
                live.dies_after = Some(after);
            }
            return;
        }
        self.end_agent(n);
        if reboot {
            self.checker.counts.reboots += 1;
            let boot_id = BootId(self.rng.wide());
            let node = &mut self.agents[n];
            node.boot += 1;
            node.boot_id = boot_id;
            node.containers.clear();
            node.programs.clear();
            node.records.clear();
            node.heard.clear();
        }
    }

    /// A death that was to come does not.
    pub(crate) fn spare_agent(&mut self, n: usize) {
        if let Some(live) = &mut self.agents[n].live {
            live.dies_after = None;
        }
    }

    fn end_agent(&mut self, n: usize) {
        if self.agents[n].live.take().is_none() {
            return;
        }
        self.checker.counts.agent_crashes += 1;
        self.agents[n].programs.values_mut().for_each(Program::hang_up);
        self.break_links(|link| matches!(link.client, Client::Agent { agent, .. } if agent == n));
        for link in self.links.values_mut() {
            if matches!(link.client, Client::Agent { agent, .. } if agent == n) {
                link.client_open = false;
            }
        }
    }

    fn agent_live(&mut self, n: usize, life: u64) -> Option<&mut LiveAgent> {
        let node = &mut self.agents[n];
        node.live.as_mut().filter(|_| node.life == life)
    }

    pub(crate) fn seek_agent(&mut self, n: usize, life: u64) {
        let masters = self.masters.len();
        let any = self.rng.below(masters as u64) as usize;
        let fresh = RequestId(self.rng.wide());
        let Some(live) = self.agent_live(n, life) else { return };
        live.seeking = false;
        if !live.core.wants_session() {
            return;
        }
        let master = live.hint.take().filter(|m| *m < masters).unwrap_or(any);
        let here = super::world::Place::Agent(n);
        let there = super::world::Place::Master(master);
        let reachable = self.masters[master].is_up()
            && !self.blocked.contains(&(here, there))
            && !self.blocked.contains(&(there, here));
        if !reachable {
            return self.seek_later(n);
        }
        let link = self.open_link(Client::Agent { agent: n, life }, master).0;
        let live = self.agents[n].live.as_mut().expect("it seeks");
        live.link = Some(link);
        live.core.on_connected(fresh);
        self.flush_agent(n);
    }

    fn seek_later(&mut self, n: usize) {
        let delay = 30 + self.rng.below(400);
        let life = self.agents[n].life;
        if let Some(live) = &mut self.agents[n].live
            && !live.seeking
        {
            live.seeking = true;
            self.at(delay, Happening::SeekAgent { agent: n, life });
        }
    }

    pub(crate) fn agent_time(&mut self, n: usize, life: u64) {
        let now = self.now;
        if let Some(live) = self.agent_live(n, life) {
            live.core.on_time(now, 1_000_000 + now);
            self.flush_agent(n);
        }
    }

    /// Orders arrive on a link.
    pub(crate) fn agent_orders(&mut self, client: Client, epoch: Epoch, orders: Vec<AgentOrder>) {
        let Client::Agent { agent: n, life } = client else { return };
        let now = self.now;
        let Some(live) = self.agent_live(n, life) else { return };
        live.core.on_time(now, 1_000_000 + now);
        live.core.on_orders(epoch, orders.clone());
        let followed = live.core.session_epoch();
        live.epoch = live.epoch.max(followed.unwrap_or_default());
        let heard = &mut self.agents[n].heard;
        // A message is delivered at most once because nothing says it twice.
        let orders = orders.into_iter().filter(|order| !matches!(order, AgentOrder::Message { .. }));
        heard.extend(orders.map(|order| (epoch, order)));
        while heard.len() > 30 {
            heard.pop_front();
        }
        self.flush_agent(n);
    }

    /// An old message comes once more: of an old leadership it must be ignored, of this one be harmless.
    pub(crate) fn replay(&mut self, n: usize) {
        let delay = 500 + self.rng.below(3_000);
        self.at(delay, Happening::Replay { agent: n });
        let pick = self.rng.next();
        let node = &mut self.agents[n];
        if node.heard.is_empty() {
            return;
        }
        let (epoch, order) = node.heard[pick as usize % node.heard.len()].clone();
        let Some(live) = &mut node.live else { return };
        let stale = epoch < live.epoch;
        // The containerizer's word on a launch of an old life is not repeated by the network.
        if live.core.session_epoch().is_none()
            || matches!(order, AgentOrder::Welcome { .. } | AgentOrder::Refused(_))
        {
            return;
        }
        live.core.on_orders(epoch, vec![order.clone()]);
        if stale {
            let greatest = live.epoch;
            for effect in live.core.take_effects(&mut |_| InstanceId(0)) {
                let harmless = matches!(effect, Effect::Reconnect(_));
                assert!(harmless, "agent {n} of {greatest:?} follows {order:?} of {epoch:?}: {effect:?}");
                self.agent_effect(n, effect);
            }
        }
        self.checker.counts.replays += 1;
        self.flush_agent(n);
    }

    /// The agent's link is gone.
    pub(crate) fn agent_lost(&mut self, client: Client, leader: Option<String>) {
        let Client::Agent { agent: n, life } = client else { return };
        let Some(live) = self.agent_live(n, life) else { return };
        live.link = None;
        live.hint = leader.as_deref().and_then(master_at);
        live.core.on_session_lost();
        self.flush_agent(n);
    }

    pub(crate) fn container_event(&mut self, n: usize, life: u64, event: Event) {
        if let Some(live) = self.agent_live(n, life) {
            live.core.on_container_event(event);
            self.flush_agent(n);
        }
    }

    /// Does what the core says, in order, until it dies or is quiet.
    pub(crate) fn flush_agent(&mut self, n: usize) {
        loop {
            let node = &mut self.agents[n];
            let Some(live) = &mut node.live else { return };
            let instances = &mut node.instances;
            let effects = live.core.take_effects(&mut |_| {
                *instances += 1;
                InstanceId(*instances)
            });
            if effects.is_empty() {
                break;
            }
            let mut reports = Vec::new();
            for effect in effects {
                if let Some(left) = self.agents[n].live.as_mut().and_then(|live| live.dies_after.as_mut()) {
                    if *left == 0 {
                        self.end_agent(n);
                        let later = 300 + self.rng.below(4_000);
                        return self.at(later, Happening::StartAgent(n));
                    }
                    *left -= 1;
                }
                match effect {
                    Effect::Send(report) => reports.push(report),
                    effect => {
                        self.send_reports(n, std::mem::take(&mut reports));
                        self.agent_effect(n, effect);
                    }
                }
            }
            self.send_reports(n, reports);
        }
        let life = self.agents[n].life;
        let Some(live) = &self.agents[n].live else { return };
        let wants = live.core.wants_session() && live.link.is_none();
        if let Some(due) = live.core.deadline_ms() {
            self.at(due.saturating_sub(self.now).max(1), Happening::AgentTime { agent: n, life });
        }
        if wants {
            self.seek_later(n);
        }
    }

    fn send_reports(&mut self, n: usize, reports: Vec<AgentReport>) {
        let Some(link) = self.agents[n].live.as_ref().and_then(|live| live.link) else { return };
        let connection = ConnectionId(link);
        let mut statuses = Vec::new();
        for report in through_the_wire(self.agents[n].said_as(), &reports) {
            let call = match report {
                AgentReport::Status { launch, status } => {
                    statuses.push((launch, status));
                    continue;
                }
                AgentReport::Hello(hello) => Call::AgentHello { connection, hello },
                AgentReport::Listing(held) => Call::AgentListing { connection, held },
                AgentReport::Pong { .. } => Call::AgentAlive { connection },
                AgentReport::Cleaned(launches) => Call::AgentCleaned { connection, launches },
                AgentReport::Message { launch, data } => Call::AgentMessage { connection, launch, data },
            };
            if !statuses.is_empty() {
                let statuses = std::mem::take(&mut statuses);
                self.send_up(link, Up::Call(Box::new(Call::AgentStatuses { connection, statuses })));
            }
            self.send_up(link, Up::Call(Box::new(call)));
        }
        if !statuses.is_empty() {
            self.send_up(link, Up::Call(Box::new(Call::AgentStatuses { connection, statuses })));
        }
    }

    fn agent_effect(&mut self, n: usize, effect: Effect) {
        match effect {
            Effect::PersistIdentity(identity) => self.agents[n].identity = Some(identity),
            Effect::Checkpoint(record) => self.agents[n].records.push(record),
            Effect::Send(_) => unreachable!("sent in batches"),
            Effect::Recover(known) => self.recover_containers(n, &known),
            Effect::Launch { order, .. } => {
                assert!(order.group.is_none(), "agent {n} starts {:?} without its group", order.launch);
                self.deliver_containers(n, &[*order]);
            }
            Effect::LaunchGroup { orders, .. } => {
                let group = orders[0].group.expect("a group");
                let launches = orders.iter().map(|order| order.launch);
                assert!(launches.eq(group.launches()), "agent {n} starts a part of {group:?}");
                self.checker.counts.groups += 1;
                self.deliver_containers(n, &orders);
            }
            Effect::Listen(executor) => {
                let live = self.agents[n].live.as_mut().expect("it acts");
                live.listens.insert(executor);
            }
            Effect::EndListening(executor) => {
                let live = self.agents[n].live.as_mut().expect("it acts");
                live.listens.remove(&executor);
            }
            Effect::Hand { executor, orders } => self.hand_to_executor(n, executor, orders),
            Effect::ToExecutor { executor, event } => self.tell_executor(n, executor, event),
            Effect::Resize { .. } => {}
            Effect::Kill { launch, grace_ms } => {
                let delay = if self.rng.percent(50) { self.rng.below(20) } else { grace_ms.min(3_000) };
                let boot = self.agents[n].boot;
                self.at(delay, Happening::ContainerEnds { agent: n, boot, launch, killed: true });
            }
            Effect::Forget(launch) => self.forget_container(n, launch),
            Effect::OpenData { .. } => {}
            Effect::Reconnect(_) => {
                let live = self.agents[n].live.as_mut().expect("it acts");
                if let Some(link) = live.link.take() {
                    live.core.on_session_lost();
                    self.client_closes(link);
                }
            }
            Effect::Stop(fatal) => panic!("agent {n} stops: {fatal}"),
        }
    }
}

/// What arrives of reports after they were encoded and read.
fn through_the_wire(agent: Option<AgentId>, reports: &[AgentReport]) -> Vec<AgentReport> {
    let bytes = to_proto::agent_message(agent, None, reports).encode_to_vec();
    let message = pb::AgentMessage::decode(&bytes[..]).expect("our own messages are good");
    from_proto::agent_message(message).expect("our own messages are good").reports
}
