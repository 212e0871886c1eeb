//! Random histories against a model of the master and of the containerizer, with a crash after any effect.

use std::collections::{BTreeMap, BTreeSet};

use proffer_containerizer::{Event, InstanceId, KillSent};
use proffer_types::event::{AgentOrder, AgentRefusal, AgentReport};
use proffer_types::{LaunchId, RequestId, Status};
use proptest::prelude::*;

use super::stories::{config, end, epoch, kill, order, welcome};
use super::*;

/// One thing that happens. Numbers pick among what is there.
#[derive(Clone, Debug)]
enum Step {
    /// The master commits a launch and sends it.
    Launch,
    /// The master orders the end of a launch.
    Kill(u8, u16),
    /// The network delivers an old message once more, under its old leadership.
    Replay(u8),
    /// The network delivers the messages that wait in another order.
    Confirm(u8, bool),
    Forget(u8),
    /// The containerizer goes on with a launch.
    Progress(u8, u8),
    /// The stream breaks and is made again, perhaps to a new leader.
    Reconnect(bool),
    /// The agent's process dies after this many of the next effects.
    Crash(u8),
    Listing,
    Refused,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => Just(Step::Launch),
        3 => (any::<u8>(), 0..9_000u16).prop_map(|(n, grace)| Step::Kill(n, grace)),
        4 => any::<u8>().prop_map(Step::Replay),
        4 => (any::<u8>(), any::<bool>()).prop_map(|(n, all)| Step::Confirm(n, all)),
        1 => any::<u8>().prop_map(Step::Forget),
        12 => (any::<u8>(), any::<u8>()).prop_map(|(n, how)| Step::Progress(n, how)),
        2 => any::<bool>().prop_map(Step::Reconnect),
        4 => (0..8u8).prop_map(Step::Crash),
        1 => Just(Step::Listing),
        1 => Just(Step::Refused),
    ]
}

/// What has become of a container.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Container {
    /// Delivered, not begun.
    Delivered,
    Running,
    Ended {
        killed: bool,
    },
}

#[derive(Default)]
struct World {
    identity: Option<Identity>,
    records: Vec<Record>,
    containers: BTreeMap<LaunchId, Container>,
    /// How often each launch's program was begun.
    begun: BTreeMap<LaunchId, u32>,
    /// Delivered more often than the containerizer allowed.
    allowed: BTreeMap<LaunchId, i32>,
    /// Every status ever sent, by launch and number.
    said: BTreeMap<(LaunchId, u32), Status>,
    forgotten: BTreeSet<LaunchId>,
    /// What the master has sent, for replays.
    sent: Vec<(u64, AgentOrder)>,
    term: u64,
    next_seq: u64,
    next_launch: u64,
    crash_after: Option<u8>,
    instances: u64,
}

impl World {
    /// Performs effects until a crash; whether the process is still there.
    fn perform(&mut self, core: &mut Core) -> bool {
        loop {
            let instances = &mut self.instances;
            let effects = core.take_effects(&mut |_| {
                *instances += 1;
                InstanceId(*instances)
            });
            if effects.is_empty() {
                return true;
            }
            for effect in effects {
                if let Some(left) = &mut self.crash_after {
                    if *left == 0 {
                        self.crash_after = None;
                        return false;
                    }
                    *left -= 1;
                }
                self.effect(core, effect);
            }
        }
    }

    fn effect(&mut self, core: &mut Core, effect: Effect) {
        match effect {
            Effect::PersistIdentity(identity) => {
                assert!(self.identity.as_ref().is_none_or(|old| old.epoch <= identity.epoch));
                self.identity = Some(identity);
            }
            Effect::Checkpoint(record) => self.records.push(record),
            Effect::Recover(known) => {
                for known in &known {
                    let event = match self.containers.get(&known.launch) {
                        None => Some(Event::NotStarted { launch: known.launch }),
                        Some(Container::Delivered) => {
                            // The supervisor is gone and had not begun.
                            self.containers.remove(&known.launch);
                            Some(Event::NotStarted { launch: known.launch })
                        }
                        Some(_) if known.ended => None,
                        Some(Container::Running) => Some(started(known.launch)),
                        Some(Container::Ended { killed }) => Some(ended(known.launch, *killed)),
                    };
                    if let Some(event) = event.filter(|_| !known.ended) {
                        if matches!(event, Event::NotStarted { .. }) {
                            *self.allowed.entry(known.launch).or_default() += 1;
                        }
                        core.on_container_event(event);
                    }
                }
                let known: BTreeSet<_> = known.iter().map(|k| k.launch).collect();
                self.containers.retain(|launch, _| known.contains(launch));
                core.on_container_event(Event::Recovered);
            }
            Effect::Launch { order, instance } => {
                let launch = order.launch;
                let recorded = self.records.iter().rev().find_map(|r| match r {
                    Record::Assigned { launch: l, instance } if *l == launch => Some(*instance),
                    _ => None,
                });
                assert_eq!(recorded, Some(instance), "launched before it was written down");
                let allowed = self.allowed.entry(launch).or_insert(1);
                *allowed -= 1;
                assert!(
                    *allowed >= 0,
                    "{launch:?} delivered again though it was never said not to have started"
                );
                assert!(!self.forgotten.contains(&launch), "{launch:?} launched after it was forgotten");
                self.containers.insert(launch, Container::Delivered);
            }
            Effect::Kill { launch, .. } => match self.containers.get(&launch).copied() {
                Some(Container::Delivered | Container::Running) => {
                    self.containers.insert(launch, Container::Ended { killed: true });
                    core.on_container_event(ended(launch, true));
                }
                Some(Container::Ended { .. }) | None => {}
            },
            Effect::Forget(launch) => {
                self.forgotten.insert(launch);
                self.containers.remove(&launch);
            }
            Effect::Send(report) => self.report(report),
            Effect::Reconnect(_) | Effect::OpenData { .. } => {}
            Effect::LaunchGroup { .. }
            | Effect::Listen(_)
            | Effect::EndListening(_)
            | Effect::Hand { .. }
            | Effect::ToExecutor { .. }
            | Effect::Resize { .. } => unreachable!("no groups and no executors here"),
            Effect::Stop(fatal) => panic!("{fatal}"),
        }
    }

    fn report(&mut self, report: AgentReport) {
        let AgentReport::Status { launch, status } = report else { return };
        let written = self
            .records
            .iter()
            .any(|r| matches!(r, Record::Status { launch: l, status: s } if *l == launch && *s == status));
        assert!(written, "sent before it was written down: {launch:?} {status:?}");
        if let Some(before) = self.said.insert((launch, status.task_seq), status.clone()) {
            assert_eq!(before, status, "task_seq used twice");
        }
        for ((_, seq), other) in self.said.range((launch, 0)..=(launch, u32::MAX)) {
            if other.state.is_terminal() {
                assert!(*seq >= status.task_seq, "{launch:?}: {status:?} after the final {other:?}");
            }
            if *seq < status.task_seq {
                assert!(other.state.may_become(status.state), "{launch:?}: {other:?} then {status:?}");
            }
        }
    }

    fn pick(&self, core: &Core, n: u8) -> Option<LaunchId> {
        let held: Vec<LaunchId> = core.held().map(|h| h.launch).collect();
        (!held.is_empty()).then(|| held[usize::from(n) % held.len()])
    }

    fn send(&mut self, core: &mut Core, order: AgentOrder) {
        self.sent.push((self.term, order.clone()));
        core.on_orders(epoch(self.term), vec![order]);
    }

    fn connect(&mut self, core: &mut Core) {
        if !core.wants_session() {
            return;
        }
        core.on_connected(RequestId(u128::from(self.term) + 100));
        let last_seq = core.last_seq();
        // A registration is welcomed twice: with its id, and when it opens the session with it.
        core.on_orders(epoch(self.term), vec![welcome(last_seq)]);
        core.on_orders(epoch(self.term), vec![welcome(last_seq)]);
        self.next_seq = self.next_seq.max(core.last_seq());
    }

    fn step(&mut self, core: &mut Core, step: Step) {
        match step {
            Step::Launch => {
                self.next_seq += 1;
                self.next_launch += 1;
                let order = order(self.next_seq, self.next_launch);
                self.send(core, AgentOrder::Launch(Box::new(order)));
            }
            Step::Kill(n, grace) => {
                let Some(launch) = self.pick(core, n) else { return };
                self.next_seq += 1;
                self.send(core, kill(self.next_seq, launch.0, grace.into()));
            }
            Step::Replay(n) => {
                if !self.sent.is_empty() {
                    let (term, order) = self.sent[usize::from(n) % self.sent.len()].clone();
                    core.on_orders(epoch(term), vec![order]);
                }
            }
            Step::Confirm(n, all) => {
                let Some(launch) = self.pick(core, n) else { return };
                let newest = core.launch(launch).and_then(|h| h.status).map_or(0, |s| s.task_seq);
                // Only what was sent can be confirmed.
                let task_seq =
                    (0..=newest).rev().find(|s| self.said.contains_key(&(launch, *s))).unwrap_or(0);
                let task_seq = if all { task_seq } else { task_seq.saturating_sub(1) };
                self.send(core, AgentOrder::Confirm { launch, task_seq });
            }
            Step::Forget(n) => {
                if let Some(launch) = self.pick(core, n) {
                    self.send(core, AgentOrder::Forget { launch });
                }
            }
            Step::Progress(n, how) => self.progress(core, n, how),
            Step::Reconnect(new_leader) => {
                core.on_session_lost();
                self.term += u64::from(new_leader);
                self.connect(core);
            }
            Step::Crash(after) => self.crash_after = Some(after),
            Step::Listing => core.on_orders(epoch(self.term), vec![AgentOrder::SendListing]),
            Step::Refused => {
                core.on_orders(epoch(self.term), vec![AgentOrder::Refused(AgentRefusal::UnknownAgent)]);
                if core.identity().agent.is_some() && !core.wants_session() {
                    // The new agent's orders are numbered from 1; ids go on.
                    self.next_seq = 0;
                    self.sent.clear();
                }
            }
        }
    }

    fn progress(&mut self, core: &mut Core, n: u8, how: u8) {
        let live: Vec<LaunchId> = self.containers.keys().copied().collect();
        let Some(&launch) = live.get(usize::from(n) % live.len().max(1)) else { return };
        match (self.containers[&launch], how % 4) {
            (Container::Delivered, 0) => {
                self.containers.remove(&launch);
                *self.allowed.entry(launch).or_default() += 1;
                core.on_container_event(Event::NotStarted { launch });
            }
            (Container::Delivered, _) => {
                let begun = self.begun.entry(launch).or_default();
                *begun += 1;
                assert_eq!(*begun, 1, "{launch:?} ran twice");
                self.containers.insert(launch, Container::Running);
                core.on_container_event(started(launch));
            }
            (Container::Running, 0) => core.on_container_event(started(launch)),
            (Container::Running, _) => {
                self.containers.insert(launch, Container::Ended { killed: false });
                core.on_container_event(ended(launch, false));
            }
            (Container::Ended { killed }, _) => core.on_container_event(ended(launch, killed)),
        }
    }
}

fn started(launch: LaunchId) -> Event {
    Event::Started { launch, isolation: "process", started_unix_ms: 1 }
}

fn ended(launch: LaunchId, killed: bool) -> Event {
    let mut end = if killed { end(None, Some(15)) } else { end(Some(3), None) };
    end.kill_sent = if killed { KillSent::Term } else { KillSent::None };
    Event::Ended { launch, end }
}

fn run(steps: Vec<Step>) {
    let mut world = World { term: 1, ..World::default() };
    let mut core = Core::recover(config(1), None, [], RequestId(1));
    let mut crash_count = 0u128;
    let mut steps = steps.into_iter();
    loop {
        while !world.perform(&mut core) {
            crash_count += 1;
            core = Core::recover(
                config(1),
                world.identity.clone(),
                world.records.clone(),
                RequestId(crash_count),
            );
        }
        world.connect(&mut core);
        if core.session_epoch().is_none() && core.wants_session() {
            continue;
        }
        let Some(step) = steps.next() else { break };
        world.step(&mut core, step);
    }
    finish(&mut world, &mut core);
}

/// With everything delivered and confirmed, nothing is left and nothing was forgotten.
fn finish(world: &mut World, core: &mut Core) {
    world.crash_after = None;
    for _ in 0..100 {
        assert!(world.perform(core));
        world.connect(core);
        let live: Vec<LaunchId> = world.containers.keys().copied().collect();
        for n in 0..live.len() {
            world.progress(core, n as u8, 1);
        }
        let held: Vec<(LaunchId, u32)> =
            core.held().map(|h| (h.launch, h.status.map_or(0, |s| s.task_seq))).collect();
        assert!(world.perform(core));
        for (launch, task_seq) in held {
            world.send(core, AgentOrder::Confirm { launch, task_seq });
        }
        if core.held().count() == 0 && world.containers.is_empty() {
            return;
        }
    }
    panic!("still held: {:?}; containers: {:?}", core.held().collect::<Vec<_>>(), world.containers);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    /// At most one delivery per launch and permission, every status written before it is sent, no number used twice,
    /// nothing after a final status, and all of it comes to an end.
    #[test]
    fn no_history_runs_a_launch_twice_or_contradicts_itself(steps in prop::collection::vec(step(), 1..120)) {
        run(steps);
    }
}
