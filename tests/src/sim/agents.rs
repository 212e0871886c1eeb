//! Agents: the core of the agent on a simulated host, whose containers outlive the agent's process but not the host.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proffer_agent::core::{Config, Core, Effect, Identity, Record};
use proffer_containerizer::{Cause, End, Event, InstanceId, KillSent, Known};
use proffer_types::call::{Call, ConnectionId};
use proffer_types::event::{AgentOrder, AgentReport, LaunchOrder};
use proffer_types::limits;
use proffer_types::{AgentId, AgentInfo, BootId, Epoch, FrameworkId, LaunchId, Reason, RequestId, Resources};
use proffer_wire::agent::v1 as pb;
use proffer_wire::{from_proto, to_proto};
use prost::Message;

use super::links::{Client, Up};
use super::masters::master_at;
use super::rng::Rng;
use super::world::{Happening, World};

/// What has become of a container.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Container {
    /// Delivered to its supervisor, not begun.
    Delivered,
    Running,
    /// Ended in one way or the other, and not forgotten.
    Over(Event),
}

pub(crate) struct AgentNode {
    pub(crate) live: Option<LiveAgent>,
    /// Counts the lives of the process.
    pub(crate) life: u64,
    /// Counts the lives of the host.
    boot: u64,
    boot_id: BootId,
    resources: Resources,
    identity: Option<Identity>,
    records: Vec<Record>,
    /// Which framework each container belongs to, and its state.
    pub(crate) containers: BTreeMap<LaunchId, (FrameworkId, Container)>,
    instances: u64,
    /// What masters said lately, to be said again.
    heard: VecDeque<(Epoch, AgentOrder)>,
}

pub(crate) struct LiveAgent {
    pub(crate) core: Core,
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
            instances: 0,
            heard: VecDeque::new(),
        }
    }

    /// Whether a program of the launch runs on the host now.
    pub(crate) fn runs(&self, launch: LaunchId) -> bool {
        matches!(self.containers.get(&launch), Some((_, Container::Running)))
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
            ..AgentInfo::default()
        };
        let registration_ms = limits::EXECUTOR_REGISTRATION_MS;
        let config = Config { info, boot_id: node.boot_id, registration_ms };
        let core = Core::recover(config, node.identity.clone(), node.records.clone(), instance);
        // A compaction now and then, as the shell does it at a start.
        node.records = core.records();
        let epoch = core.identity().epoch;
        node.live = Some(LiveAgent { core, link: None, dies_after: None, hint: None, seeking: false, epoch });
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
        heard.extend(orders.into_iter().map(|order| (epoch, order)));
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
    fn flush_agent(&mut self, n: usize) {
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
            Effect::Launch { order, .. } => self.deliver_container(n, &order),
            Effect::LaunchGroup { orders, .. } => {
                orders.iter().for_each(|order| self.deliver_container(n, order));
            }
            // No framework here has an executor.
            Effect::Listen(_)
            | Effect::EndListening(_)
            | Effect::Hand { .. }
            | Effect::ToExecutor { .. }
            | Effect::Resize { .. } => {}
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

    fn deliver_container(&mut self, n: usize, order: &LaunchOrder) {
        let fresh = (order.framework, Container::Delivered);
        let launch = order.launch;
        if self.agents[n].containers.insert(launch, fresh).is_none() {
            let delay = 1 + self.rng.below(30);
            let boot = self.agents[n].boot;
            self.at(delay, Happening::ContainerStarts { agent: n, boot, launch });
        }
    }

    /// Tells what became of everything an earlier life of the agent left, and ends what nobody knows.
    fn recover_containers(&mut self, n: usize, known: &[Known]) {
        let names: BTreeSet<LaunchId> = known.iter().map(|k| k.launch).collect();
        let node = &mut self.agents[n];
        node.containers.retain(|launch, _| names.contains(launch));
        let mut events = Vec::new();
        for known in known.iter().filter(|k| !k.ended) {
            let launch = known.launch;
            match node.containers.get(&launch) {
                None => events.push(Event::NotStarted { launch }),
                Some((_, Container::Delivered)) => {}
                Some((_, Container::Running)) => events.push(started(launch)),
                Some((_, Container::Over(event))) => events.push(event.clone()),
            }
        }
        events.push(Event::Recovered);
        for event in events {
            self.tell_agent(n, event);
        }
    }

    fn tell_agent(&mut self, n: usize, event: Event) {
        let life = self.agents[n].life;
        if self.agents[n].live.is_some() {
            self.at(1, Happening::ContainerEvent { agent: n, life, event });
        }
    }

    fn forget_container(&mut self, n: usize, launch: LaunchId) {
        if let Some((_, container)) = self.agents[n].containers.remove(&launch)
            && container == Container::Running
        {
            self.tell_agent(n, ended(launch, None, true));
        }
        self.tell_agent(n, Event::Gone { launch });
    }

    pub(crate) fn container_starts(&mut self, n: usize, boot: u64, launch: LaunchId) {
        let fails = self.rng.percent(3);
        let runs_for = if self.rng.percent(30) { self.rng.below(50) } else { self.rng.below(8_000) };
        let node = &mut self.agents[n];
        if node.boot != boot || !matches!(node.containers.get(&launch), Some((_, Container::Delivered))) {
            return;
        }
        let framework = node.containers[&launch].0;
        if fails {
            let event = Event::LaunchFailed {
                launch,
                reason: Reason::LaunchFailed,
                message: "no luck".into(),
                exit_code: None,
            };
            node.containers.insert(launch, (framework, Container::Over(event.clone())));
            return self.tell_agent(n, event);
        }
        node.containers.insert(launch, (framework, Container::Running));
        self.checker.on_started(launch);
        self.tell_agent(n, started(launch));
        self.at(runs_for, Happening::ContainerEnds { agent: n, boot, launch, killed: false });
    }

    pub(crate) fn container_ends(&mut self, n: usize, boot: u64, launch: LaunchId, killed: bool) {
        let code = if self.rng.percent(20) { 7 } else { 0 };
        let node = &mut self.agents[n];
        if node.boot != boot {
            return;
        }
        let Some((framework, container)) = node.containers.get(&launch).cloned() else { return };
        let event = match container {
            Container::Over(_) => return,
            Container::Delivered if !killed => return,
            Container::Delivered => Event::LaunchFailed {
                launch,
                reason: Reason::KilledDuringLaunch,
                message: String::new(),
                exit_code: None,
            },
            Container::Running => ended(launch, (!killed).then_some(code), killed),
        };
        node.containers.insert(launch, (framework, Container::Over(event.clone())));
        self.checker.on_ended(launch, (!killed).then_some(code));
        self.tell_agent(n, event);
    }

    /// A supervisor is lost, and the containers of its framework with it.
    pub(crate) fn supervisor_dies(&mut self, n: usize) {
        let pick = self.rng.next();
        let node = &mut self.agents[n];
        let frameworks: BTreeSet<FrameworkId> =
            node.containers.values().map(|(framework, _)| *framework).collect();
        let Some(victim) = frameworks.iter().nth(pick as usize % frameworks.len().max(1)).copied() else {
            return;
        };
        let mut events = Vec::new();
        for (launch, (framework, container)) in &mut node.containers {
            if *framework != victim || !matches!(container, Container::Running | Container::Delivered) {
                continue;
            }
            let mut event = ended(*launch, None, false);
            if let Event::Ended { end, .. } = &mut event {
                end.cause =
                    if *container == Container::Running { Cause::SupervisorLost } else { Cause::Interrupted };
            }
            *container = Container::Over(event.clone());
            events.push((*launch, event));
        }
        for (launch, event) in events {
            self.checker.on_ended(launch, None);
            self.tell_agent(n, event);
        }
    }
}

/// What arrives of reports after they were encoded and read.
fn through_the_wire(agent: Option<AgentId>, reports: &[AgentReport]) -> Vec<AgentReport> {
    let bytes = to_proto::agent_message(agent, None, reports).encode_to_vec();
    let message = pb::AgentMessage::decode(&bytes[..]).expect("our own messages are good");
    from_proto::agent_message(message).expect("our own messages are good").reports
}

fn started(launch: LaunchId) -> Event {
    Event::Started { launch, isolation: "linux", started_unix_ms: 1 }
}

fn ended(launch: LaunchId, code: Option<i32>, killed: bool) -> Event {
    let end = End {
        cause: Cause::Exited,
        exit_code: code,
        signal: killed.then_some(15),
        oom: None,
        oom_kills: 0,
        memory_peak_bytes: None,
        kill_sent: if killed { KillSent::Term } else { KillSent::None },
        started_unix_ms: 1,
        finished_unix_ms: 2,
        ..End::default()
    };
    Event::Ended { launch, end }
}
