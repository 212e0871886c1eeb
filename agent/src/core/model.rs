//! Random histories against a model of the master and of the containerizer, with a crash after any effect.

use std::collections::{BTreeMap, BTreeSet};

use proffer_containerizer::{Event, InstanceId, KillSent};
use proffer_types::event::{AgentOrder, AgentRefusal, AgentReport, Group, LaunchKind, LaunchOrder};
use proffer_types::executor::{ExecutorEvent, ExecutorUpdate};
use proffer_types::{LaunchId, RequestId, Source, Status, TaskState};
use proptest::prelude::*;

use super::stories::{config, end, epoch, kill, order, welcome};
use super::*;

/// One thing that happens. Numbers pick among what is there.
#[derive(Clone, Debug)]
enum Step {
    /// The master commits a launch and sends it.
    Launch,
    /// The same of a group of two or three, perhaps of an executor's tasks.
    Group(bool, u8),
    /// The same of an executor.
    Executor,
    /// The same of a task of one of the executors there ever were.
    Task(u8),
    /// An executor does something.
    Executing(u8, u8),
    /// So many milliseconds go by.
    Time(u16),
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
        2 => (any::<bool>(), any::<u8>()).prop_map(|(of, n)| Step::Group(of, n)),
        2 => Just(Step::Executor),
        4 => any::<u8>().prop_map(Step::Task),
        8 => (any::<u8>(), any::<u8>()).prop_map(|(n, how)| Step::Executing(n, how)),
        1 => (0..9_000u16).prop_map(Step::Time),
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

/// Much about a few executors.
fn executing() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => Just(Step::Executor),
        10 => any::<u8>().prop_map(Step::Task),
        2 => any::<u8>().prop_map(|n| Step::Group(true, n)),
        40 => (any::<u8>(), any::<u8>()).prop_map(|(n, how)| Step::Executing(n, how)),
        3 => (any::<u8>(), 0..9_000u16).prop_map(|(n, grace)| Step::Kill(n, grace)),
        4 => (any::<u8>(), any::<bool>()).prop_map(|(n, all)| Step::Confirm(n, all)),
        1 => any::<u8>().prop_map(Step::Forget),
        2 => (any::<u8>(), any::<u8>()).prop_map(|(n, how)| Step::Progress(n, how)),
        1 => any::<bool>().prop_map(Step::Reconnect),
        3 => (0..8u8).prop_map(Step::Crash),
        1 => any::<u8>().prop_map(Step::Replay),
        1 => (0..9_000u16).prop_map(Step::Time),
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

/// What an executor knows. It outlives the agent.
#[derive(Default)]
struct Executing {
    stream: Option<u64>,
    /// The number of the last status of each task that it has.
    tasks: BTreeMap<LaunchId, u32>,
    /// Tasks whose end was answered.
    done: BTreeSet<LaunchId>,
    /// Said, and not answered.
    unanswered: Vec<ExecutorUpdate>,
    /// Told off.
    over: bool,
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
    /// The members of each group, by each of them.
    groups: BTreeMap<LaunchId, Group>,
    /// Executors whose containers run.
    executing: BTreeMap<LaunchId, Executing>,
    /// All that were ever ordered, in order.
    executors: Vec<LaunchId>,
    /// Which executor each task is of.
    task_of: BTreeMap<LaunchId, LaunchId>,
    /// Waits for an answer.
    calling: Option<LaunchId>,
    streams: u64,
    now: u64,
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
                self.answer();
                return true;
            }
            for effect in effects {
                if let Some(left) = &mut self.crash_after {
                    if *left == 0 {
                        self.crash_after = None;
                        self.calling = None;
                        self.now = 0;
                        self.executing.values_mut().for_each(|executing| executing.stream = None);
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
                assert_eq!(order.group, None);
                self.deliver(&order, instance);
            }
            Effect::LaunchGroup { orders, instance } => {
                let group = orders[0].group.expect("of a group");
                assert!(orders.iter().map(|order| order.launch).eq(group.launches()), "half of {group:?}");
                orders.iter().for_each(|order| self.deliver(order, instance));
            }
            Effect::Hand { executor, orders } => {
                let group = orders[0].group;
                assert!(
                    group.is_none_or(|g| orders.iter().map(|o| o.launch).eq(g.launches())),
                    "half a group"
                );
                for order in orders {
                    let launch = order.launch;
                    assert!(
                        self.records.contains(&Record::Handed(launch)),
                        "handed before it was written down"
                    );
                    let Some(executing) = self.executing.get_mut(&executor) else { continue };
                    assert!(!executing.done.contains(&launch), "{launch:?} was over");
                    if executing.stream.is_some() && executing.tasks.insert(launch, 0).is_none() {
                        *self.begun.entry(launch).or_default() += 1;
                        assert_eq!(self.begun[&launch], 1, "{launch:?} ran twice");
                    }
                }
            }
            Effect::ToExecutor { executor, event } => self.tell(executor, event),
            Effect::Listen(_) | Effect::EndListening(_) | Effect::Resize { .. } => {}
            Effect::Kill { launch, .. } => match self.containers.get(&launch).copied() {
                // A group of which one is killed before it has begun never begins.
                Some(Container::Delivered) => {
                    let group = self.groups.get(&launch).copied();
                    let all = group.into_iter().flat_map(Group::launches).chain([launch]);
                    for launch in all.collect::<BTreeSet<_>>() {
                        if self.containers.get(&launch) == Some(&Container::Delivered) {
                            self.containers.insert(launch, Container::Ended { killed: true });
                            core.on_container_event(ended(launch, true));
                        }
                    }
                }
                Some(Container::Running) => self.end(core, launch, true),
                Some(Container::Ended { .. }) | None => {}
            },
            Effect::Forget(launch) => {
                self.forgotten.insert(launch);
                self.containers.remove(&launch);
            }
            Effect::Send(report) => self.report(report),
            Effect::Reconnect(_) | Effect::OpenData { .. } => {}
            Effect::Stop(fatal) => panic!("{fatal}"),
        }
    }

    /// A container is handed over.
    fn deliver(&mut self, order: &LaunchOrder, instance: InstanceId) {
        let launch = order.launch;
        let recorded = self.records.iter().rev().find_map(|r| match r {
            Record::Assigned { launch: l, instance } if *l == launch => Some(*instance),
            _ => None,
        });
        assert_eq!(recorded, Some(instance), "launched before it was written down");
        let allowed = self.allowed.entry(launch).or_insert(1);
        *allowed -= 1;
        assert!(*allowed >= 0, "{launch:?} delivered again though it was never said not to have started");
        assert!(!self.forgotten.contains(&launch), "{launch:?} launched after it was forgotten");
        self.containers.insert(launch, Container::Delivered);
    }

    /// A running container ends.
    fn end(&mut self, core: &mut Core, launch: LaunchId, killed: bool) {
        self.containers.insert(launch, Container::Ended { killed });
        self.executing.remove(&launch);
        core.on_container_event(ended(launch, killed));
    }

    fn tell(&mut self, executor: LaunchId, event: ExecutorEvent) {
        let Some(executing) = self.executing.get_mut(&executor).filter(|e| e.stream.is_some()) else {
            return;
        };
        match event {
            ExecutorEvent::Kill { launch, .. } => executing.say(launch, TaskState::Killed),
            ExecutorEvent::Error { .. } => (executing.stream, executing.over) = (None, true),
            ExecutorEvent::Subscribed { .. }
            | ExecutorEvent::Launch(_)
            | ExecutorEvent::Message(_)
            | ExecutorEvent::Shutdown { .. } => {}
        }
    }

    /// What an executor has said is written down.
    fn answer(&mut self) {
        let Some(executing) = self.calling.take().and_then(|e| self.executing.get_mut(&e)) else { return };
        for update in executing.unanswered.drain(..).filter(|update| update.state.is_terminal()) {
            executing.tasks.remove(&update.launch);
            executing.done.insert(update.launch);
        }
    }

    fn execute(&mut self, core: &mut Core, n: u8, how: u8) {
        let all: Vec<LaunchId> = self.executing.keys().copied().collect();
        let Some(&executor) = all.get(usize::from(n) % all.len().max(1)) else { return };
        let Some(executing) = self.executing.get_mut(&executor) else { return };
        let tasks: Vec<LaunchId> = executing.tasks.keys().copied().collect();
        let some = tasks.get(usize::from(how / 8) % tasks.len().max(1)).copied();
        match how % 8 {
            0 | 1 => {
                self.streams += 1;
                executing.stream = Some(self.streams);
                let taken = core.on_executor_subscribed(executor, self.streams, &tasks);
                assert!(
                    taken.is_ok()
                        || executing.over
                        || core.launch(executor).is_none_or(|h| {
                            h.phase != Phase::Running
                                || h.status.is_some_and(|s| s.state == TaskState::Killing)
                        })
                );
            }
            2 => {
                if let Some(stream) = executing.stream.take() {
                    core.on_executor_lost(executor, stream);
                }
            }
            3 if how > 240 => {
                let lie = ExecutorUpdate::new(LaunchId(u64::MAX), 1, TaskState::Running);
                core.on_executor_updates(executor, vec![lie]).expect_err("a lie");
                executing.over = true;
            }
            3 | 4 => some.into_iter().for_each(|launch| executing.say(launch, TaskState::Running)),
            5 => some.into_iter().for_each(|launch| executing.say(launch, TaskState::Finished)),
            // It may not know yet that the agent is another one.
            _ => {
                let taken = core.on_executor_updates(executor, executing.unanswered.clone());
                self.calling = taken.is_ok().then_some(executor);
            }
        }
    }

    fn report(&mut self, report: AgentReport) {
        let AgentReport::Status { launch, status } = report else { return };
        if let Some(executor) = self.task_of.get(&launch).filter(|_| status.source == Source::Agent) {
            let runs = self.containers.get(executor) == Some(&Container::Running);
            let begun = self.begun.contains_key(&launch);
            assert!(!(runs && begun && status.state.is_terminal()), "{launch:?}: {status:?} while it runs");
        }
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
            Step::Group(of_executor, n) => {
                let size = 2 + u32::from(n % 2);
                let group = Group { first: LaunchId(self.next_launch + 1), size };
                let executor = self.executors.get(usize::from(n) % self.executors.len().max(1));
                let executor = executor.copied().filter(|_| of_executor);
                let orders = group.launches().map(|launch| {
                    self.next_seq += 1;
                    self.groups.insert(launch, group);
                    let kind = executor.map_or(LaunchKind::Task, LaunchKind::TaskOf);
                    LaunchOrder { group: Some(group), kind, ..order(self.next_seq, launch.0) }
                });
                let orders: Vec<LaunchOrder> = orders.collect();
                self.next_launch += u64::from(size);
                self.task_of.extend(executor.into_iter().flat_map(|e| group.launches().map(move |l| (l, e))));
                self.send(core, AgentOrder::LaunchGroup(orders));
            }
            Step::Executor => {
                self.next_seq += 1;
                self.next_launch += 1;
                self.executors.push(LaunchId(self.next_launch));
                let kind = LaunchKind::Executor(proffer_types::ExecutorId::new("ex").unwrap());
                let order = LaunchOrder { kind, ..order(self.next_seq, self.next_launch) };
                self.send(core, AgentOrder::Launch(Box::new(order)));
            }
            Step::Task(n) => {
                let executor = self.executors.get(usize::from(n) % self.executors.len().max(1));
                let Some(&executor) = executor else { return };
                self.next_seq += 1;
                self.next_launch += 1;
                self.task_of.insert(LaunchId(self.next_launch), executor);
                let kind = LaunchKind::TaskOf(executor);
                let order = LaunchOrder { kind, ..order(self.next_seq, self.next_launch) };
                self.send(core, AgentOrder::Launch(Box::new(order)));
            }
            Step::Executing(n, how) => self.execute(core, n, how),
            Step::Time(ms) => {
                self.now += u64::from(ms);
                core.on_time(self.now, 0);
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
            (Container::Delivered, 2) => core.on_container_event(Event::Unanswered { launch }),
            (Container::Delivered, how) => {
                let group = self.groups.get(&launch).copied();
                let all = group.into_iter().flat_map(Group::launches).chain([launch]);
                for launch in all.collect::<BTreeSet<_>>() {
                    assert_eq!(self.containers.get(&launch), Some(&Container::Delivered), "half a group");
                    if how == 0 {
                        self.containers.remove(&launch);
                        *self.allowed.entry(launch).or_default() += 1;
                        core.on_container_event(Event::NotStarted { launch });
                        continue;
                    }
                    let begun = self.begun.entry(launch).or_default();
                    *begun += 1;
                    assert_eq!(*begun, 1, "{launch:?} ran twice");
                    self.containers.insert(launch, Container::Running);
                    if self.executors.contains(&launch) {
                        self.executing.insert(launch, Executing::default());
                    }
                    core.on_container_event(started(launch));
                }
            }
            (Container::Running, 0) => core.on_container_event(started(launch)),
            (Container::Running, _) => self.end(core, launch, false),
            (Container::Ended { killed }, _) => core.on_container_event(ended(launch, killed)),
        }
    }
}

impl Executing {
    /// A task has another state; what comes after its end is kept to itself.
    fn say(&mut self, launch: LaunchId, state: TaskState) {
        let over = self.unanswered.iter().any(|u| u.launch == launch && u.state.is_terminal());
        let Some(seq) = self.tasks.get_mut(&launch).filter(|_| !over) else { return };
        *seq += 1;
        self.unanswered.push(ExecutorUpdate::new(launch, *seq, state));
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
            for group in world.groups.values() {
                let begun = group.launches().filter(|launch| world.begun.contains_key(launch)).count();
                assert!(begun == 0 || begun == group.size as usize, "half of {group:?}");
            }
            return;
        }
    }
    panic!("still held: {:?}; containers: {:?}", core.held().collect::<Vec<_>>(), world.containers);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// At most one delivery per launch and permission, every status written before it is sent, no number used twice,
    /// nothing after a final status, and all of it comes to an end.
    #[test]
    fn no_history_runs_a_launch_twice_or_contradicts_itself(steps in prop::collection::vec(step(), 1..120)) {
        run(steps);
    }

    /// The same where most of it is about executors.
    #[test]
    fn no_history_of_executors_does_either(steps in prop::collection::vec(executing(), 1..160)) {
        run_of_executors(steps);
    }
}

fn run_of_executors(steps: Vec<Step>) {
    let begin = [Step::Executor, Step::Progress(0, 1), Step::Executing(0, 0)];
    run(begin.into_iter().chain(steps).collect());
}

/// Found by chance: a crash between the checkpoints of a batch and what came before them in it.
#[test]
fn what_is_over_is_not_handed_again() {
    use Step::*;
    run_of_executors(vec![
        Task(0),
        Task(0),
        Task(0),
        Task(0),
        Executor,
        Executing(0, 163),
        Executing(0, 179),
        Forget(74),
        Crash(5),
        Executing(0, 22),
        Executing(0, 200),
        Executing(0, 22),
        Executing(0, 24),
    ]);
}

/// Found by chance: a crash between the number of the final word of a forgotten task and that it is over.
#[test]
fn what_is_over_and_forgotten_is_not_handed_again() {
    use Step::*;
    run_of_executors(vec![
        Task(0),
        Executing(0, 123),
        Executing(0, 67),
        Executing(0, 40),
        Task(0),
        Task(0),
        Executing(0, 10),
        Task(0),
        Executor,
        Executing(0, 22),
        Executing(0, 22),
        Executor,
        Executing(0, 48),
        Forget(218),
        Crash(3),
        Executing(0, 62),
        Executing(0, 24),
        Executing(0, 38),
        Executing(0, 248),
    ]);
}
