//! Rules of one state.

use std::collections::{BTreeMap, BTreeSet};

use proffer_types::event::LaunchKind;
use proffer_types::limits::{
    COMPLETED_FRAMEWORKS_MAX, FINISHED_TASKS_MAX, FINISHED_TASKS_PER_FRAMEWORK, OPEN_CALLS_MAX,
    PENDING_STATUSES_MAX,
};
use proffer_types::{Agent, AgentId, Framework, FrameworkState, Resources, Status, Task, TaskState};

use super::{Violation, ensure};
use crate::Registry;
use crate::state::{Counts, Index, agent_task_seq};

/// Ids count from here within a recovery generation; there is only the first.
const IDS_END: u64 = 1 << 48;

impl Registry {
    /// Whether the state is one that can be. Reads the whole state.
    pub fn check(&self) -> Result<(), Violation> {
        self.check_ids()?;
        let mut on_agent: BTreeMap<AgentId, Vec<&Task>> = BTreeMap::new();
        for task in self.launches() {
            on_agent.entry(task.agent).or_default().push(task);
        }
        for agent in self.agents() {
            check_agent(agent, on_agent.get(&agent.id).map_or(&[], Vec::as_slice))?;
        }
        for task in self.launches() {
            self.check_task(task)?;
            self.check_kind(task)?;
        }
        for framework in self.frameworks() {
            self.check_framework(framework)?;
        }
        self.check_specs()?;
        self.check_sessions()?;
        self.check_history()?;
        self.check_index()
    }

    /// All ids come from one counter.
    fn check_ids(&self) -> Result<(), Violation> {
        let mut seen = BTreeSet::new();
        let agents = self.agents.iter().map(|(id, agent)| (id.0, agent.id.0));
        let frameworks = self.frameworks.iter().map(|(id, framework)| (id.0, framework.id.0));
        let sessions = self.sessions.iter().map(|(id, _)| (id.0, id.0));
        let tasks = self.tasks.iter().map(|(id, task)| (id.0, task.launch_id.0));
        let finished = self.finished.values().map(|task| (task.launch_id.0, task.launch_id.0));
        for (key, id) in agents.chain(frameworks).chain(sessions).chain(tasks).chain(finished) {
            ensure("a record lies under its id", key == id, || format!("{id:x} under {key:x}"))?;
            ensure("an id is minted once", seen.insert(id), || format!("{id:x}"))?;
            ensure("the counter is at or above every id", id > 0 && id <= self.meta.last_id, || {
                format!("{id:x}")
            })?;
        }
        ensure("the counter stays in its generation", self.meta.last_id < IDS_END, || {
            self.meta.last_id.to_string()
        })
    }

    fn check_task(&self, task: &Task) -> Result<(), Violation> {
        let id = task.launch_id;
        ensure("a live task has an agent", task.is_terminal() || self.agents.contains(&task.agent), || {
            format!("{id:?} on {:?}", task.agent)
        })?;
        ensure("a task has a framework", self.frameworks.contains(&task.framework), || {
            format!("{id:?} of {:?}", task.framework)
        })?;
        ensure("a task holds what its spec says", task.resources == task.spec.resources, || {
            format!("{id:?}")
        })?;
        ensure(
            "a kill comes after its launch",
            task.kill.is_none_or(|kill| kill.agent_seq > task.agent_seq),
            || format!("{id:?}"),
        )?;
        let in_order = task.pending.windows(2).all(|two| two[0].position() < two[1].position());
        ensure("pending statuses are in order", in_order, || format!("{id:?}"))?;
        let replaced =
            |two: &[Status]| two[0].is_check() && two[1].is_check() && two[0].state == two[1].state;
        let kept = task.pending.windows(2).any(replaced);
        ensure("of what checks say the last is kept", !kept, || format!("{id:?}"))?;
        let newest = task.pending.last().is_none_or(|last| *last == task.status);
        ensure("the newest status is the last pending one", newest, || format!("{id:?}"))?;
        let early = task.pending.iter().rev().skip(1).any(|status| status.state.is_terminal());
        ensure("nothing follows a terminal status", !early, || format!("{id:?}"))?;
        ensure("pending statuses are few", task.pending.len() <= PENDING_STATUSES_MAX, || format!("{id:?}"))?;
        ensure("a status counts the agent's statuses", agent_task_seq(task) <= task.status.task_seq, || {
            format!("{id:?}")
        })?;
        let over = task.is_terminal() && task.pending.is_empty();
        ensure("a task that is terminal and acknowledged is history", !over, || format!("{id:?}"))?;
        let acknowledged = task.is_executor() || self.acknowledges_for(task.framework);
        ensure(
            "nothing is pending where the cluster acknowledges",
            !acknowledged || task.pending.is_empty(),
            || format!("{id:?}"),
        )
    }

    /// Groups and executors.
    fn check_kind(&self, task: &Task) -> Result<(), Violation> {
        let id = task.launch_id;
        if let Some(group) = task.group {
            let place = id.0.wrapping_sub(group.first.0);
            let inside = place < u64::from(group.size) && !task.is_executor();
            ensure("a group is of tasks that follow one another", inside, || format!("{id:?}: {group:?}"))?;
            for other in group.launches().filter_map(|launch| self.task(launch)) {
                let same = (task.framework, task.agent, task.group, &task.kind)
                    == (other.framework, other.agent, other.group, &other.kind)
                    && task.agent_seq + other.launch_id.0 == other.agent_seq + id.0;
                ensure("a group is in one place", same, || format!("{id:?}, {:?}", other.launch_id))?;
            }
        }
        match &task.kind {
            LaunchKind::Task => {
                ensure("a task with an executor has one", task.spec.executor.is_none(), || format!("{id:?}"))
            }
            LaunchKind::Executor(name) => {
                let named = name.as_str() == task.task_id.as_str();
                ensure("an executor is named once", named, || format!("{id:?}"))
            }
            LaunchKind::TaskOf(executor) => {
                let Some(by) = self.task(*executor) else { return Ok(()) };
                let described = task.spec.executor.as_ref().is_some_and(|described| {
                    by.kind == LaunchKind::Executor(described.id.clone())
                        && by.digest == described.spec.digest()
                });
                let here = (task.framework, task.agent) == (by.framework, by.agent);
                ensure("a task's executor is the one it describes", described && here, || {
                    format!("{id:?} of {executor:?}")
                })?;
                let in_time = task.agent_seq > by.agent_seq
                    && by.kill.is_none_or(|kill| task.agent_seq < kill.agent_seq);
                ensure("a task is handed to an executor before that is told to end", in_time, || {
                    format!("{id:?} of {executor:?}")
                })
            }
        }
    }

    fn check_framework(&self, framework: &Framework) -> Result<(), Violation> {
        let id = framework.id;
        let live = self.tasks_of_framework(id).filter(|task| !task.is_terminal()).count() as u64;
        ensure("live tasks are counted", live == framework.live_tasks, || {
            format!("{id:?}: {} recorded, {live} there", framework.live_tasks)
        })?;
        let specs: BTreeMap<_, _> =
            self.launches_of_framework(id).map(|task| (task.digest, &task.spec)).collect();
        let bytes: u64 = specs.values().map(|spec| spec.encoded_bytes()).sum();
        ensure("spec bytes are counted", bytes == framework.spec_bytes, || {
            format!("{id:?}: {} recorded, {bytes} there", framework.spec_bytes)
        })?;
        ensure("whoever has tasks has launched", live == 0 || framework.launched, || format!("{id:?}"))?;
        let session = self.sessions.get(&framework.session);
        ensure("a framework has its session", session.is_some_and(|s| s.framework == id), || {
            format!("{id:?}")
        })?;
        let completed = framework.is_completed();
        ensure("completion has a reason", completed != framework.completion_reason.is_empty(), || {
            format!("{id:?}")
        })?;
        let alone = self.launches_of_framework(id).all(|task| task.kill.is_some());
        ensure("a completed framework's tasks are told to end", !completed || alone, || format!("{id:?}"))?;
        let ends = framework.info.ends_with_tasks && framework.launched && live == 0;
        let waits = matches!(framework.state, FrameworkState::Disconnected { .. });
        ensure("what ends with its tasks has ended with them", !(waits && ends), || format!("{id:?}"))
    }

    fn check_specs(&self) -> Result<(), Violation> {
        let mut uses: BTreeMap<_, (u64, u64)> = BTreeMap::new();
        for task in self.launches() {
            uses.entry((task.framework, task.digest)).or_default().0 += 1;
        }
        for task in self.finished.values() {
            uses.entry((task.framework, task.digest)).or_default().1 += 1;
        }
        let kept = self.specs.iter().map(|(key, used)| (*key, (used.tasks, used.finished)));
        ensure("specs are kept while something refers to them", kept.eq(uses), || "references differ".into())
    }

    fn check_sessions(&self) -> Result<(), Violation> {
        let (sessions, frameworks) = (self.sessions.len(), self.frameworks.len());
        ensure("a framework has one session", sessions == frameworks, || {
            format!("{sessions} of {frameworks}")
        })?;
        for (id, session) in self.sessions.iter() {
            let open = session.answers.len();
            ensure("a session's stored answers are few", open <= OPEN_CALLS_MAX, || {
                format!("{id:?}: {open}")
            })?;
            for (seq, answer) in session.answers.iter() {
                let fits = *seq >= session.done_below && *seq > 0 && answer.index <= self.meta.applied;
                ensure("an answer is kept until it was seen", fits, || format!("{id:?}: {seq}"))?;
            }
        }
        Ok(())
    }

    fn check_history(&self) -> Result<(), Violation> {
        ensure("the history is a ring", self.finished.len() <= FINISHED_TASKS_MAX, || {
            self.finished.len().to_string()
        })?;
        for (number, task) in self.finished.iter() {
            let id = task.launch_id;
            let over = task.is_terminal() && task.pending.is_empty();
            ensure("history is of finished tasks", over, || format!("{id:?}"))?;
            ensure("history is numbered", *number <= self.meta.last_finished, || format!("{number}"))?;
            ensure("history belongs to a framework", self.frameworks.contains(&task.framework), || {
                format!("{id:?}")
            })?;
        }
        for framework in self.frameworks() {
            let finished = self.history_of_framework(framework.id).count();
            ensure("a framework's history is a ring", finished <= FINISHED_TASKS_PER_FRAMEWORK, || {
                format!("{:?}: {finished}", framework.id)
            })?;
        }
        let completed = self.index.completed.len();
        let room = completed <= COMPLETED_FRAMEWORKS_MAX || self.index.settled.len() == 0;
        ensure("completed frameworks are few", room, || completed.to_string())
    }

    /// The indexes are what they would be if they were made anew.
    fn check_index(&self) -> Result<(), Violation> {
        let mut anew = Self { index: Index::default(), ..self.clone() };
        for agent in self.agents() {
            let first = anew.index.instances.insert(agent.instance, agent.id);
            ensure("an instance number is of one agent", first, || format!("{:?}", agent.id))?;
        }
        self.frameworks().for_each(|framework| anew.index_framework(framework));
        for task in self.launches() {
            let unique = task.is_executor() || anew.task_by_name(task.framework, &task.task_id).is_none();
            ensure("a task's name is its framework's only one", unique, || format!("{:?}", task.launch_id))?;
            anew.index_task(task);
        }
        anew.index_settled();
        self.finished.iter().for_each(|(number, task)| anew.index_finished(*number, task));
        for (request, stored) in self.admin_answers.iter() {
            anew.index.admin_until.insert((stored.until, *request));
        }
        let (a, b) = (&self.index, &anew.index);
        let some = |counts: &Counts| *counts != Counts::default();
        let same = [
            ("instances", a.instances.iter().eq(b.instances.iter())),
            ("origins", a.origins.iter().eq(b.origins.iter())),
            ("names", a.names.iter().eq(b.names.iter())),
            ("of_framework", a.of_framework.iter().eq(b.of_framework.iter())),
            ("executors", a.executors.iter().eq(b.executors.iter())),
            ("live_on_agent", a.live_on_agent.iter().eq(b.live_on_agent.iter())),
            ("finished_of_framework", a.finished_of_framework.iter().eq(b.finished_of_framework.iter())),
            ("counts", a.counts.iter().filter(|c| some(&c.1)).eq(b.counts.iter().filter(|c| some(&c.1)))),
            ("completed", a.completed.iter().eq(b.completed.iter())),
            ("settled", a.settled.iter().eq(b.settled.iter())),
            ("admin_until", a.admin_until.iter().eq(b.admin_until.iter())),
        ];
        same.into_iter()
            .try_for_each(|(name, same)| ensure("an index follows its table", same, || name.into()))
    }
}

/// Resources are conserved: what an agent's live tasks hold adds up to its use; amounts fit, and no port or other
/// single thing is held twice (or the sum would fail).
fn check_agent(agent: &Agent, tasks: &[&Task]) -> Result<(), Violation> {
    let mut sum = Resources::new();
    for task in tasks.iter().filter(|task| !task.is_terminal()) {
        let added = sum.add(&task.resources);
        ensure("no two tasks hold the same thing", added.is_ok(), || {
            format!("{:?}: {added:?}", task.launch_id)
        })?;
        let lost = task.status.state == TaskState::Unreachable;
        ensure("tasks are UNREACHABLE with their agent", lost != agent.is_reachable(), || {
            format!("{:?} is {} on {:?} {:?}", task.launch_id, task.status.state, agent.id, agent.state)
        })?;
    }
    ensure("an agent's use is the sum of its live tasks", sum == agent.used, || {
        format!("{:?}: {} recorded, {sum} in tasks", agent.id, agent.used)
    })?;
    let mut numbers = BTreeSet::new();
    for task in tasks {
        for number in [Some(task.agent_seq), task.kill.map(|kill| kill.agent_seq)].into_iter().flatten() {
            let new = number > 0 && number <= agent.last_seq && numbers.insert(number);
            ensure("an agent's orders have numbers of their own", new, || {
                format!("{:?}: {number} of {:?}", agent.id, task.launch_id)
            })?;
        }
    }
    Ok(())
}
