//! What must hold whatever happens, and what must come right once the faults end.

use std::collections::{BTreeMap, BTreeSet};

use proffer_client::core::TaskView;
use proffer_raft::Entry as LogEntry;
use proffer_registry::Registry;
use proffer_types::event::{Group, LaunchKind, Reply};
use proffer_types::{AgentState, LaunchId, TaskState};

use super::world::World;

/// How much of everything a seed saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Things that happened.
    pub events: u64,
    /// Terms in which somebody led.
    pub leaderships: u64,
    /// Crashes of masters.
    pub crashes: u64,
    /// … that lost unsynced writes.
    pub lossy_crashes: u64,
    /// Crashes of agents' processes.
    pub agent_crashes: u64,
    /// Restarts of agents' hosts.
    pub reboots: u64,
    /// Crashes of frameworks.
    pub framework_crashes: u64,
    /// Entries applied, by whoever was first.
    pub entries: u64,
    /// Snapshots made.
    pub images: u64,
    /// Snapshots installed.
    pub installs: u64,
    /// Proposals that failed for certain.
    pub failed: u64,
    /// Old messages delivered once more.
    pub replays: u64,
    /// Tasks accepted.
    pub launched: u64,
    /// Tasks that ended.
    pub ended: u64,
    /// Updates that authors saw.
    pub updates: u64,
    /// Groups that were started.
    pub groups: u64,
    /// Executors that were started.
    pub executors: u64,
    /// Messages that arrived, in either direction.
    pub messages: u64,
    /// What checks said.
    pub checks: u64,
    /// Hash over the whole history.
    pub trace: u64,
}

/// The memory of everything that was promised.
#[derive(Default)]
pub(crate) struct Checker {
    pub(crate) counts: Counts,
    /// Term and hash of the data, by index, by whoever applied it first.
    log: BTreeMap<u64, (u64, u64)>,
    states: BTreeMap<u64, [u8; 32]>,
    leaders: BTreeMap<u64, usize>,
    /// The state after the newest entry that anyone applied.
    newest: Registry,
    /// Every launch that any entry made.
    launched: BTreeSet<LaunchId>,
    /// Launches that an author was told are accepted.
    told_launched: BTreeSet<LaunchId>,
    /// The terminal status that authors were told, and its position.
    told_terminal: BTreeMap<LaunchId, (TaskState, (u32, u32))>,
    /// The newest status that one life of one framework was told by an update.
    told: BTreeMap<(usize, u64, LaunchId), (u32, u32)>,
    /// How often the program of each launch was started.
    starts: BTreeMap<LaunchId, u32>,
    /// Exit codes of programs that ended by themselves; `None` if they were ended.
    ends: BTreeMap<LaunchId, Option<i32>>,
    /// Launches whose terminal status an author was told in an update.
    updated: BTreeSet<LaunchId>,
    /// The groups, by their first launches.
    groups: BTreeMap<LaunchId, Group>,
    /// The number of the last message of each executor that one life of one framework was told.
    messages: BTreeMap<(usize, u64, LaunchId), u64>,
}

impl Checker {
    pub(crate) fn on_leader(&mut self, term: u64, master: usize, gate_open: bool) {
        let first = *self.leaders.entry(term).or_insert(master);
        assert_eq!(first, master, "term {term} has two leaders");
        self.counts.leaderships += u64::from(gate_open);
    }

    /// A state was reached: at equal index all replicas are equal.
    pub(crate) fn on_state(&mut self, registry: &Registry) {
        let hash = registry.state_hash();
        let first = *self.states.entry(registry.applied()).or_insert(hash);
        assert_eq!(first, hash, "two states differ at entry {}", registry.applied());
        if registry.applied() > self.newest.applied() {
            self.newest = registry.clone();
        }
    }

    /// An author was told that a launch is accepted: it must be in the log.
    pub(crate) fn on_told_launched(&mut self, launch: LaunchId) {
        assert!(self.launched.contains(&launch), "{launch:?} was acknowledged, and no entry launched it");
        self.told_launched.insert(launch);
    }

    /// A master answers a call: what it says must have been applied.
    pub(crate) fn on_answer(&mut self, reply: &Reply) {
        if let Reply::Accepted(answer) = reply {
            assert!(
                answer.index <= self.newest.applied(),
                "an answer of entry {}, and only {} are applied",
                answer.index,
                self.newest.applied()
            );
        }
    }

    /// A life of a framework is told of a task. A later life may hear again what an earlier one did not acknowledge.
    pub(crate) fn on_told(&mut self, framework: usize, life: u64, view: &TaskView, update: bool) {
        self.counts.updates += u64::from(update);
        let (state, position) = (view.status.state, view.status.position());
        if update {
            let before = self.told.insert((framework, life, view.launch), position);
            let grows = before.is_none_or(|before| before < position);
            assert!(grows, "{:?} was told at {before:?}, then at {position:?}", view.launch);
        }
        if let Some((end, at)) = self.told_terminal.get(&view.launch) {
            let consistent =
                if position == *at { state == *end } else { position < *at && !state.is_terminal() };
            assert!(
                consistent,
                "{:?} was told to be {end} at {at:?}, and now {state} at {position:?}",
                view.launch
            );
        }
        if !state.is_terminal() {
            return;
        }
        self.told_terminal.insert(view.launch, (state, position));
        if update {
            self.updated.insert(view.launch);
        }
        if state == TaskState::Finished || view.status.exit_code.is_some() {
            let truth = self.ends.get(&view.launch).copied().flatten();
            assert_eq!(view.status.exit_code, truth, "{:?} is told to have ended so", view.launch);
        }
    }

    /// A life of a framework hears from an executor: in order, and nothing twice.
    pub(crate) fn on_message(&mut self, framework: usize, life: u64, data: &[u8]) {
        self.counts.messages += 1;
        let word = |at: usize| u64::from_le_bytes(data[at..at + 8].try_into().expect("eight bytes"));
        let (executor, number) = (LaunchId(word(0)), word(8));
        let before = self.messages.insert((framework, life, executor), number);
        assert!(before.is_none_or(|before| before < number), "{executor:?} says {number} after {before:?}");
    }

    pub(crate) fn on_started(&mut self, launch: LaunchId) {
        let starts = self.starts.entry(launch).or_default();
        *starts += 1;
        assert!(*starts == 1, "{launch:?} was started {starts} times");
        assert!(self.launched.contains(&launch), "{launch:?} was started, and no entry launched it");
    }

    pub(crate) fn on_ended(&mut self, launch: LaunchId, code: Option<i32>) {
        self.ends.insert(launch, code);
        self.counts.ended += 1;
    }

    fn mix(&mut self, word: u64) {
        self.counts.trace = super::rng::Rng(self.counts.trace ^ word).next();
    }
}

impl World {
    /// A master applied an entry.
    pub(crate) fn on_applied(&mut self, entry: &LogEntry, before: &Registry, after: &Registry) {
        let hash = entry
            .data
            .iter()
            .fold(0u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
        let checker = &mut self.checker;
        let first = checker.log.insert(entry.index, (entry.term, hash));
        if let Some(first) = first {
            assert_eq!(first, (entry.term, hash), "two logs differ at entry {}", entry.index);
        }
        if entry.data.is_empty() {
            return;
        }
        if let Err(violation) = after.check() {
            panic!("after entry {}: {violation}", entry.index);
        }
        if let Err(violation) = Registry::check_step(before, after) {
            panic!("entry {}: {violation}", entry.index);
        }
        checker.on_state(after);
        if first.is_none() {
            checker.counts.entries += 1;
            checker.mix(hash ^ self.now);
            self.on_first_applied(before, after);
        }
    }

    /// Nobody had applied this entry before.
    fn on_first_applied(&mut self, before: &Registry, after: &Registry) {
        for task in after.launches().filter(|task| before.task(task.launch_id).is_none()) {
            if let Some(group) = task.group {
                self.checker.groups.insert(group.first, group);
            }
            if let LaunchKind::TaskOf(executor) = task.kind {
                let by = before
                    .task(executor)
                    .or_else(|| after.task(executor))
                    .expect("it is made with its first task");
                let ends = by.kill.is_some() || by.is_terminal();
                assert!(!ends, "{:?} is for {executor:?}, which ends", task.launch_id);
            }
            assert!(self.checker.launched.insert(task.launch_id), "{:?} was launched twice", task.launch_id);
            self.checker.counts.launched += 1;
        }
        for task in before.launches().filter(|task| !task.is_terminal()) {
            let ended = after.task(task.launch_id).is_none_or(|now| now.is_terminal());
            let returned = ended && after.agent(task.agent).is_some();
            // Resources come back only when nothing of the task runs any more.
            if returned {
                let host = self.agents.iter().find(|agent| agent.agent_id() == Some(task.agent));
                let runs = host.is_some_and(|agent| agent.runs(task.launch_id));
                assert!(!runs, "{:?} runs, and its resources are free", task.launch_id);
            }
        }
    }

    /// A leader's broker and the state agree.
    pub(crate) fn check_leader(&self, n: usize) {
        let Some(live) = &self.masters[n].live else { return };
        if let Some(broker) = live.mind.broker()
            && let Err(why) = broker.check(live.mind.registry())
        {
            panic!("master {n}: {why}");
        }
    }

    /// Whether everything has come right.
    pub(crate) fn has_settled(&self) -> Result<(), String> {
        let leaders: Vec<_> = self.masters.iter().filter_map(|m| m.live.as_ref()).collect();
        let leader = leaders.iter().find(|live| live.mind.broker().is_some()).ok_or("nobody leads")?;
        let registry = leader.mind.registry();
        let broker = leader.mind.broker().ok_or("nobody leads")?;
        for (n, master) in self.masters.iter().enumerate() {
            let applied = master.live.as_ref().map_or(0, |live| live.mind.registry().applied());
            if applied + 50 < registry.applied() {
                return Err(format!("master {n} is at {applied} of {}", registry.applied()));
            }
        }
        let connected: BTreeSet<_> = broker.connected_agents().collect();
        for (n, agent) in self.agents.iter().enumerate() {
            if agent.agent_id().is_none_or(|id| !connected.contains(&id)) {
                return Err(format!("agent {n} has no session"));
            }
        }
        for (n, framework) in self.frameworks.iter().enumerate() {
            let live = framework.live.as_ref().is_some_and(|live| live.core.is_live());
            if !live && !framework.over {
                return Err(format!("framework {n} has no stream"));
            }
        }
        for task in registry.launches() {
            let age = registry.time().since_ms(task.created_at);
            let stuck = matches!(
                task.status.state,
                TaskState::Staging | TaskState::Starting | TaskState::Unreachable
            );
            let record = registry.agent(task.agent);
            let waits = record.is_some_and(|a| matches!(a.state, AgentState::Unreachable { .. }));
            if stuck && !waits && age > 10_000 {
                return Err(format!("task {:?} is {} for {age} ms", task.launch_id, task.status.state));
            }
            let ours = self.frameworks.iter().any(|f| f.id == Some(task.framework) && f.live.is_some());
            if ours && task.is_terminal() && age > 30_000 {
                return Err(format!("the end of {:?} is not acknowledged", task.launch_id));
            }
        }
        Ok(())
    }

    /// At the end everything that was promised is there.
    pub(crate) fn check_end(&self) {
        let checker = &self.checker;
        for group in checker.groups.values() {
            let started = group.launches().filter(|launch| checker.starts.contains_key(launch)).count();
            assert!(started == 0 || started == group.size as usize, "{started} of {group:?} were started");
        }
        for launch in &checker.told_launched {
            assert!(checker.launched.contains(launch), "{launch:?} was acknowledged and is lost");
        }
        // What was retired had been told, or its framework is gone.
        for task in checker.newest.history() {
            let told = checker.updated.contains(&task.launch_id)
                || checker.told_terminal.contains_key(&task.launch_id);
            let lives = checker.newest.framework(task.framework).is_some_and(|f| !f.is_completed());
            assert!(told || !lives, "the end of {:?} was never told", task.launch_id);
        }
    }
}
