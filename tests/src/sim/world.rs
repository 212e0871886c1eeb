//! Time, weather and faults.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proffer_raft::Snapshot;
use proffer_types::LaunchId;

use super::agents::AgentNode;
use super::check::{Checker, Counts};
use super::frameworks::FrameworkNode;
use super::links::Link;
use super::masters::MasterNode;
use super::rng::Rng;

/// Where something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    Master(usize),
    Agent(usize),
    Framework(usize),
}

/// What happens at some time.
pub(crate) enum Happening {
    Tick(usize),
    Arrive { from: usize, to: usize, message: Bytes },
    Written { master: usize, life: u64 },
    Reported { master: usize, life: u64, number: u64 },
    Image { master: usize, life: u64 },
    Fetched { master: usize, life: u64, from: u64, snapshot: Snapshot, fails: bool },
    ProcessGone { master: usize, peer: u64 },
    Clock { master: usize, life: u64 },
    Mind { master: usize, life: u64 },
    CrashMaster(usize),
    StartMaster(usize),
    FlowUp(u64),
    FlowDown(u64),
    LinkLost { link: u64, client: bool },
    SeekAgent { agent: usize, life: u64 },
    AgentTime { agent: usize, life: u64 },
    CrashAgent { agent: usize, reboot: bool },
    StartAgent(usize),
    ContainerEvent { agent: usize, life: u64, event: proffer_containerizer::Event },
    ContainerStarts { agent: usize, boot: u64, launch: LaunchId },
    ContainerEnds { agent: usize, boot: u64, launch: LaunchId, killed: bool },
    CheckSays { agent: usize, boot: u64, launch: LaunchId },
    ExecutorActs { agent: usize, boot: u64, launch: LaunchId },
    SupervisorDies { agent: usize },
    Replay { agent: usize },
    FrameworkTime { framework: usize, life: u64 },
    FrameworkActs { framework: usize, life: u64 },
    FrameworkCall { framework: usize, life: u64, call: Box<super::frameworks::SentCall> },
    FrameworkReply { framework: usize, life: u64, reply: Box<super::frameworks::SentReply> },
    DialArrives { framework: usize, life: u64, dial: Box<super::frameworks::SentDial> },
    CrashFramework(usize),
    StartFramework(usize),
    Weather,
}

/// How wild it is out there.
#[derive(Clone, Copy)]
pub(crate) struct Weather {
    pub(crate) loss: u64,
    pub(crate) duplicates: u64,
    pub(crate) slow: u64,
    pub(crate) stalls: u64,
}

const CALM: Weather = Weather { loss: 0, duplicates: 0, slow: 0, stalls: 0 };

/// Everything there is.
pub(crate) struct World {
    pub(crate) seed: u64,
    pub(crate) rng: Rng,
    pub(crate) now: u64,
    agenda: BTreeMap<(u64, u64), Happening>,
    scheduled: u64,
    pub(crate) masters: Vec<MasterNode>,
    pub(crate) agents: Vec<AgentNode>,
    pub(crate) frameworks: Vec<FrameworkNode>,
    pub(crate) links: BTreeMap<u64, Link>,
    pub(crate) last_link: u64,
    pub(crate) blocked: BTreeSet<(Place, Place)>,
    pub(crate) weather: Weather,
    pub(crate) calm: bool,
    pub(crate) checker: Checker,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Rng(seed);
        let masters = rng.one_of(&[1, 3, 3, 3, 5]);
        let agents = 1 + rng.below(4) as usize;
        let frameworks = 1 + rng.below(3) as usize;
        let mut world = Self {
            seed,
            now: 0,
            agenda: BTreeMap::new(),
            scheduled: 0,
            masters: Vec::new(),
            agents: Vec::new(),
            frameworks: Vec::new(),
            links: BTreeMap::new(),
            last_link: 0,
            blocked: BTreeSet::new(),
            weather: Weather { loss: 2, duplicates: 2, slow: 3, stalls: 3 },
            calm: false,
            checker: Checker::default(),
            rng,
        };
        world.masters = (0..masters).map(MasterNode::new).collect();
        for n in 0..masters {
            world.start_master(n);
            let phase = world.rng.below(10);
            world.at(phase, Happening::Tick(n));
        }
        for n in 0..agents {
            let node = AgentNode::new(n, &mut world.rng);
            world.agents.push(node);
            world.start_agent(n);
            let at = world.rng.below(5_000);
            world.at(at, Happening::Replay { agent: n });
        }
        for n in 0..frameworks {
            world.frameworks.push(FrameworkNode::new(n));
            world.at(n as u64, Happening::StartFramework(n));
        }
        world.at(1_500, Happening::Weather);
        world
    }

    pub(crate) fn at(&mut self, delay: u64, what: Happening) {
        self.scheduled += 1;
        self.agenda.insert((self.now + delay, self.scheduled), what);
    }

    /// How long a message takes.
    pub(crate) fn delay(&mut self) -> u64 {
        if self.rng.percent(self.weather.slow) { self.rng.below(300) } else { self.rng.below(4) }
    }

    pub(crate) fn run_until(&mut self, end: u64) {
        while let Some(entry) = self.agenda.first_entry() {
            if entry.key().0 > end {
                break;
            }
            let ((at, _), what) = entry.remove_entry();
            self.now = at;
            self.checker.counts.events += 1;
            self.happen(what);
        }
        self.now = end;
    }

    fn happen(&mut self, what: Happening) {
        match what {
            Happening::Tick(n) => self.tick_master(n),
            Happening::Arrive { from, to, message } => self.arrive(from, to, &message),
            Happening::Written { master, life } => self.written(master, life),
            Happening::Reported { master, life, number } => self.reported(master, life, number),
            Happening::Image { master, life } => self.image(master, life),
            Happening::Fetched { master, life, from, snapshot, fails } => {
                self.fetched(master, life, from, &snapshot, fails);
            }
            Happening::ProcessGone { master, peer } => self.process_gone(master, peer),
            Happening::Clock { master, life } => self.clock(master, life),
            Happening::Mind { master, life } => self.mind_time(master, life),
            Happening::CrashMaster(n) => self.crash_master(n),
            Happening::StartMaster(n) => self.start_master(n),
            Happening::FlowUp(link) => self.flow_up(link),
            Happening::FlowDown(link) => self.flow_down(link),
            Happening::LinkLost { link, client } => self.link_lost(link, client),
            Happening::SeekAgent { agent, life } => self.seek_agent(agent, life),
            Happening::AgentTime { agent, life } => self.agent_time(agent, life),
            Happening::CrashAgent { agent, reboot } => self.crash_agent(agent, reboot),
            Happening::StartAgent(n) => self.start_agent(n),
            Happening::ContainerEvent { agent, life, event } => self.container_event(agent, life, event),
            Happening::ContainerStarts { agent, boot, launch } => self.container_starts(agent, boot, launch),
            Happening::ContainerEnds { agent, boot, launch, killed } => {
                self.container_ends(agent, boot, launch, killed);
            }
            Happening::CheckSays { agent, boot, launch } => self.check_says(agent, boot, launch),
            Happening::ExecutorActs { agent, boot, launch } => self.executor_acts(agent, boot, launch),
            Happening::SupervisorDies { agent } => self.supervisor_dies(agent),
            Happening::Replay { agent } => self.replay(agent),
            Happening::FrameworkTime { framework, life } => self.framework_time(framework, life),
            Happening::FrameworkActs { framework, life } => self.framework_acts(framework, life),
            Happening::FrameworkCall { framework, life, call } => self.framework_call(framework, life, *call),
            Happening::FrameworkReply { framework, life, reply } => {
                self.framework_reply(framework, life, *reply)
            }
            Happening::DialArrives { framework, life, dial } => self.dial_arrives(framework, life, *dial),
            Happening::CrashFramework(n) => self.crash_framework(n),
            Happening::StartFramework(n) => self.start_framework(n),
            Happening::Weather => self.change_weather(),
        }
    }

    /// Partitions (one-way ones too), loss, delays, stalls, crashes and reboots come and go.
    fn change_weather(&mut self) {
        let delay = 300 + self.rng.below(2_500);
        self.at(delay, Happening::Weather);
        if self.calm {
            return;
        }
        self.blocked.clear();
        match self.rng.below(10) {
            0 => self.cut_off(),
            1 => {
                for _ in 0..2 {
                    let pair = (self.any_place(), self.any_place());
                    self.blocked.insert(pair);
                }
            }
            2 | 3 => {
                let master = self.rng.below(self.masters.len() as u64) as usize;
                self.crash_and_restart(master, 3_000);
            }
            4 => (0..self.masters.len()).for_each(|master| self.crash_and_restart(master, 500)),
            5 | 6 => {
                let agent = self.rng.below(self.agents.len() as u64) as usize;
                let (soon, later) = (self.rng.below(200), 300 + self.rng.below(6_000));
                let reboot = self.rng.percent(30);
                self.at(soon, Happening::CrashAgent { agent, reboot });
                self.at(later, Happening::StartAgent(agent));
            }
            7 => {
                let framework = self.rng.below(self.frameworks.len() as u64) as usize;
                let (soon, later) = (self.rng.below(200), 300 + self.rng.below(4_000));
                self.at(soon, Happening::CrashFramework(framework));
                self.at(later, Happening::StartFramework(framework));
            }
            8 => {
                let agent = self.rng.below(self.agents.len() as u64) as usize;
                self.at(0, Happening::SupervisorDies { agent });
                let links: Vec<u64> = self.links.keys().copied().collect();
                for link in links {
                    if self.rng.percent(40) {
                        self.break_link(link);
                    }
                }
            }
            _ => {}
        }
        self.weather = Weather {
            loss: self.rng.one_of(&[0, 2, 15]),
            duplicates: self.rng.one_of(&[0, 5]),
            slow: self.rng.one_of(&[0, 3, 20]),
            stalls: self.rng.one_of(&[0, 2, 10]),
        };
    }

    fn crash_and_restart(&mut self, master: usize, down_ms: u64) {
        let (soon, later) = (self.rng.below(100), 150 + self.rng.below(down_ms));
        self.at(soon, Happening::CrashMaster(master));
        self.at(later, Happening::StartMaster(master));
    }

    fn any_place(&mut self) -> Place {
        match self.rng.below(4) {
            0 | 1 => Place::Master(self.rng.below(self.masters.len() as u64) as usize),
            2 => Place::Agent(self.rng.below(self.agents.len() as u64) as usize),
            _ => Place::Framework(self.rng.below(self.frameworks.len() as u64) as usize),
        }
    }

    /// One place can reach none of the masters, or be reached by none, or both.
    fn cut_off(&mut self) {
        let place = self.any_place();
        let (to, from) = self.rng.one_of(&[(true, true), (true, false), (false, true)]);
        for master in 0..self.masters.len() {
            if to {
                self.blocked.insert((place, Place::Master(master)));
            }
            if from {
                self.blocked.insert((Place::Master(master), place));
            }
        }
        if self.rng.percent(50) && matches!(place, Place::Master(_)) {
            // … but agents and frameworks still reach it.
            return;
        }
        let others =
            (0..self.agents.len()).map(Place::Agent).chain((0..self.frameworks.len()).map(Place::Framework));
        for other in others.collect::<Vec<_>>() {
            self.blocked.insert((place, other));
        }
    }

    /// Whether the storm was worth its name: a change of leaders, a crash that lost unsynced writes, enough events.
    pub(crate) fn saw_enough(&self, events: u64) -> bool {
        let counts = &self.checker.counts;
        counts.events >= events && counts.leaderships >= 2 && counts.lossy_crashes >= 1
    }

    /// The faults end; then everything must come right in a bounded time.
    pub(crate) fn heal(&mut self) {
        self.calm = true;
        self.blocked.clear();
        self.weather = CALM;
        for n in 0..self.masters.len() {
            self.start_master(n);
        }
        for n in 0..self.agents.len() {
            self.start_agent(n);
            self.spare_agent(n);
        }
        for n in 0..self.frameworks.len() {
            self.start_framework(n);
        }
        let deadline = self.now + 90_000;
        while let Err(why) = self.has_settled() {
            assert!(self.now < deadline, "90 s after the last fault: {why}\n{}", self.glance());
            self.run_until(self.now + 250);
        }
        self.check_end();
    }

    /// Where everything stands, for whoever looks for a fault.
    fn glance(&self) -> String {
        let mut lines = Vec::new();
        for (n, master) in self.masters.iter().enumerate() {
            let Some(live) = &master.live else { continue };
            let leads = live.mind.broker().is_some();
            lines.push(format!("master {n}: applied {} leads {leads}", live.mind.registry().applied()));
            let Some(broker) = live.mind.broker() else { continue };
            let connected: Vec<_> = broker.connected_agents().collect();
            lines.push(format!("  connected {connected:?}"));
            for task in live.mind.registry().launches() {
                let state = task.status.state;
                lines.push(format!(
                    "  {:?} of {:?} on {:?} seq {} {state} kill {:?} {:?} {:?}",
                    task.launch_id,
                    task.framework,
                    task.agent,
                    task.agent_seq,
                    task.kill,
                    task.kind,
                    task.group
                ));
            }
            for agent in live.mind.registry().agents() {
                lines.push(format!(
                    "  {:?} {:?} attachment {} last seq {}",
                    agent.id, agent.state, agent.attachment, agent.last_seq
                ));
            }
        }
        for (n, agent) in self.agents.iter().enumerate() {
            let Some(live) = &agent.live else { continue };
            let held: Vec<_> = live.core.held().map(|held| format!("{held:?}")).collect();
            lines.push(format!(
                "agent {n} {:?}: last seq {} {held:#?}",
                agent.agent_id(),
                live.core.last_seq()
            ));
            lines.push(format!("  containers {:?}", agent.containers));
            lines.push(format!("  programs {:?}", agent.programs));
        }
        lines.join("\n")
    }

    pub(crate) fn counts(&self) -> Counts {
        self.checker.counts.clone()
    }
}
