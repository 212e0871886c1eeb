//! Executors' programs: they subscribe to their agent, run what they are handed and say what becomes of it, and go on
//! while the agent's process is away. Some never subscribe, and some lie.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proffer_types::event::LaunchOrder;
use proffer_types::executor::{ExecutorEvent, ExecutorUpdate};
use proffer_types::{LaunchId, TaskState};

use super::world::{Happening, World};

/// What sort of program it is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Nature {
    Good,
    /// Never subscribes.
    Deaf,
    /// Says at some time what cannot be.
    Liar,
}

/// The program of an executor whose container runs.
#[derive(Debug)]
pub(crate) struct Program {
    nature: Nature,
    /// The stream from its agent.
    stream: Option<u64>,
    streams: u64,
    inbox: VecDeque<Said>,
    /// Tasks of which something is to be said yet.
    tasks: BTreeMap<LaunchId, Run>,
    /// Every task that it ever was handed.
    known: BTreeSet<LaunchId>,
    /// Messages that it was told; none may come twice.
    heard: BTreeSet<Vec<u8>>,
    /// Counts the messages that it sends.
    sent: u64,
    /// It was told to end.
    ends: bool,
}

/// What it hears on its stream.
#[derive(Debug)]
enum Said {
    Hand(Vec<LaunchOrder>),
    Event(ExecutorEvent),
}

/// A task that it was handed.
#[derive(Debug)]
struct Run {
    state: TaskState,
    seq: u32,
    unsaid: Vec<ExecutorUpdate>,
}

impl Run {
    fn say(&mut self, launch: LaunchId, state: TaskState, change: impl FnOnce(&mut ExecutorUpdate)) {
        self.seq += 1;
        self.state = state;
        let mut update = ExecutorUpdate::new(launch, self.seq, state);
        change(&mut update);
        self.unsaid.push(update);
    }
}

impl Program {
    fn new(nature: Nature) -> Self {
        Self {
            nature,
            stream: None,
            streams: 0,
            inbox: VecDeque::new(),
            tasks: BTreeMap::new(),
            known: BTreeSet::new(),
            heard: BTreeSet::new(),
            sent: 0,
            ends: false,
        }
    }

    /// Its stream is gone, with what was not read of it.
    pub(crate) fn hang_up(&mut self) {
        self.stream = None;
        self.inbox.clear();
    }

    /// Whether it is at a task now.
    pub(crate) fn runs(&self, launch: LaunchId) -> bool {
        self.tasks.get(&launch).is_some_and(|run| !run.state.is_terminal())
    }
}

impl World {
    pub(crate) fn begin_program(&mut self, n: usize, launch: LaunchId) {
        let nature = match self.rng.below(20) {
            0 if !self.calm => Nature::Deaf,
            1 if !self.calm => Nature::Liar,
            _ => Nature::Good,
        };
        self.checker.counts.executors += 1;
        let node = &mut self.agents[n];
        node.programs.insert(launch, Program::new(nature));
        let boot = node.boot;
        self.at(1, Happening::ExecutorActs { agent: n, boot, launch });
    }

    /// Its container is over: what it was at is over too.
    pub(crate) fn end_program(&mut self, n: usize, launch: LaunchId) {
        let Some(program) = self.agents[n].programs.remove(&launch) else { return };
        for (task, run) in program.tasks {
            if !run.state.is_terminal() {
                self.checker.on_ended(task, None);
            }
        }
    }

    pub(crate) fn hand_to_executor(&mut self, n: usize, executor: LaunchId, orders: Vec<LaunchOrder>) {
        if let Some(group) = orders[0].group {
            let launches = orders.iter().map(|order| order.launch);
            assert!(launches.eq(group.launches()), "agent {n} hands over a part of {group:?}");
        }
        self.put_in(n, executor, Said::Hand(orders));
    }

    pub(crate) fn tell_executor(&mut self, n: usize, executor: LaunchId, event: ExecutorEvent) {
        self.put_in(n, executor, Said::Event(event));
    }

    fn put_in(&mut self, n: usize, executor: LaunchId, said: Said) {
        if let Some(program) = self.agents[n].programs.get_mut(&executor)
            && program.stream.is_some()
        {
            program.inbox.push_back(said);
        }
    }

    /// The program does something.
    pub(crate) fn executor_acts(&mut self, n: usize, boot: u64, launch: LaunchId) {
        if self.agents[n].boot != boot || !self.agents[n].programs.contains_key(&launch) {
            return;
        }
        let delay = 10 + self.rng.below(120);
        self.at(delay, Happening::ExecutorActs { agent: n, boot, launch });
        self.executor_reads(n, launch);
        self.executor_works(n, launch);
        let exits = !self.calm && self.rng.below(400) == 0;
        let leaves = !self.calm && self.rng.percent(3);
        let speaks = self.rng.percent(10);
        let Some(program) = self.agents[n].programs.get_mut(&launch) else { return };
        if program.ends || exits {
            // Some take their time, and are ended.
            if self.rng.percent(60) {
                self.container_ends(n, boot, launch, false);
            }
            return;
        }
        match program.stream {
            None => self.executor_subscribes(n, launch),
            Some(stream) if leaves => {
                program.hang_up();
                if let Some(live) = &mut self.agents[n].live {
                    live.core.on_executor_lost(launch, stream);
                    self.flush_agent(n);
                }
            }
            Some(_) => {
                self.executor_says(n, launch);
                if speaks {
                    self.executor_sends(n, launch);
                }
            }
        }
    }

    fn executor_subscribes(&mut self, n: usize, launch: LaunchId) {
        let Some(program) = self.agents[n].programs.get_mut(&launch) else { return };
        let launches: Vec<LaunchId> = program.tasks.keys().copied().collect();
        program.streams += 1;
        let stream = program.streams;
        let deaf = program.nature == Nature::Deaf;
        let Some(live) = self.agents[n].live.as_mut().filter(|live| live.listens.contains(&launch)) else {
            return;
        };
        if deaf {
            return;
        }
        if live.core.on_executor_subscribed(launch, stream, &launches).is_ok()
            && let Some(program) = self.agents[n].programs.get_mut(&launch)
        {
            program.stream = Some(stream);
        }
        self.flush_agent(n);
    }

    /// Takes what it was told.
    fn executor_reads(&mut self, n: usize, launch: LaunchId) {
        let Some(program) = self.agents[n].programs.get_mut(&launch) else { return };
        let mut started = Vec::new();
        let mut over = Vec::new();
        while let Some(said) = program.inbox.pop_front() {
            match said {
                Said::Hand(orders) => {
                    for order in orders.into_iter().filter(|order| program.known.insert(order.launch)) {
                        let mut run = Run { state: TaskState::Staging, seq: 0, unsaid: Vec::new() };
                        run.say(order.launch, TaskState::Running, |_| {});
                        program.tasks.insert(order.launch, run);
                        started.push(order.launch);
                    }
                }
                Said::Event(ExecutorEvent::Kill { launch, .. }) => {
                    let run = program.tasks.get_mut(&launch).filter(|run| !run.state.is_terminal());
                    if let Some(run) = run {
                        run.say(launch, TaskState::Killed, |_| {});
                        over.push(launch);
                    }
                }
                Said::Event(ExecutorEvent::Message(data)) => {
                    assert!(program.heard.insert(data), "a message came to {launch:?} twice");
                    self.checker.counts.messages += 1;
                }
                Said::Event(ExecutorEvent::Shutdown { .. }) => program.ends = true,
                Said::Event(ExecutorEvent::Error { message }) => {
                    assert!(program.nature == Nature::Liar, "{launch:?} is accused: {message}");
                }
                Said::Event(ExecutorEvent::Subscribed { .. } | ExecutorEvent::Launch(_)) => {}
            }
        }
        started.into_iter().for_each(|task| self.checker.on_started(task));
        over.into_iter().for_each(|task| self.checker.on_ended(task, None));
    }

    /// Its tasks go on.
    fn executor_works(&mut self, n: usize, launch: LaunchId) {
        let dice: Vec<u64> = (0..16).map(|_| self.rng.below(100)).collect();
        let Some(program) = self.agents[n].programs.get_mut(&launch) else { return };
        let mut over = Vec::new();
        for ((task, run), dice) in program.tasks.iter_mut().zip(dice.iter().cycle()) {
            match dice {
                _ if run.state.is_terminal() => {}
                0..=2 => {
                    let code = i32::from(*dice == 0);
                    let state = if code == 0 { TaskState::Finished } else { TaskState::Failed };
                    run.say(*task, state, |update| update.exit_code = Some(code));
                    over.push((*task, Some(code)));
                }
                3..=20 => run.say(*task, TaskState::Running, |update| update.healthy = Some(dice % 2 == 0)),
                _ => {}
            }
        }
        over.into_iter().for_each(|(task, code)| self.checker.on_ended(task, code));
    }

    /// Says what has become of its tasks, until it is answered.
    fn executor_says(&mut self, n: usize, launch: LaunchId) {
        let (lies, lost) = (!self.calm && self.rng.percent(2), !self.calm && self.rng.percent(5));
        let Some(program) = self.agents[n].programs.get_mut(&launch) else { return };
        let mut updates: Vec<ExecutorUpdate> =
            program.tasks.values().flat_map(|run| run.unsaid.iter().cloned()).collect();
        if program.nature == Nature::Liar && lies {
            updates.push(ExecutorUpdate::new(LaunchId(1), 1, TaskState::Running));
        }
        let said: Vec<(LaunchId, u32)> = updates.iter().map(|update| (update.launch, update.seq)).collect();
        let life = self.agents[n].life;
        let Some(live) = &mut self.agents[n].live else { return };
        let result = live.core.on_executor_updates(launch, updates);
        self.flush_agent(n);
        // It is answered when all is written down; the answer may be lost.
        let answered = self.agents[n].live.is_some() && self.agents[n].life == life && result.is_ok();
        let Some(program) = self.agents[n].programs.get_mut(&launch).filter(|_| answered && !lost) else {
            return;
        };
        for (task, seq) in said {
            let Some(run) = program.tasks.get_mut(&task) else { continue };
            run.unsaid.retain(|update| update.seq > seq);
            if run.unsaid.is_empty() && run.state.is_terminal() {
                program.tasks.remove(&task);
            }
        }
    }

    fn executor_sends(&mut self, n: usize, launch: LaunchId) {
        let Some(program) = self.agents[n].programs.get_mut(&launch) else { return };
        program.sent += 1;
        let data = [launch.0, program.sent].iter().flat_map(|word| word.to_le_bytes()).collect();
        if let Some(live) = &mut self.agents[n].live {
            let _ = live.core.on_executor_message(launch, data);
            self.flush_agent(n);
        }
    }
}
