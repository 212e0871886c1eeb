//! Tasks: their statuses, their end, their kill orders and their retirement.

use proffer_types::event::LaunchKind;
use proffer_types::limits::{
    FINISHED_TASKS_MAX, FINISHED_TASKS_PER_FRAMEWORK, KILL_GRACE_MAX_MS, MESSAGE_BYTES_MAX,
    PENDING_STATUSES_MAX,
};
use proffer_types::task::KillOrder;
use proffer_types::{AgentId, FrameworkId, LaunchId, Reason, Source, Status, Task, TaskState};

use super::Step;
use crate::Change;
use crate::state::{Counts, agent_task_seq};

/// Whether a status that an agent gives of its task says something new. What it may become counts from the last state
/// the agent itself gave while the record says UNREACHABLE, and there are states only a master can know.
pub(super) fn is_news(task: &Task, status: &Status) -> bool {
    let from = match task.status.state {
        TaskState::Unreachable => task.agent_status.as_ref().map_or(TaskState::Staging, |s| s.state),
        state => state,
    };
    status.task_seq > agent_task_seq(task)
        && from.may_become(status.state)
        && !matches!(status.state, TaskState::Unreachable | TaskState::GoneByOperator)
}

impl Step<'_> {
    /// A status that the master makes.
    pub(super) fn master_status(&mut self, launch: LaunchId, state: TaskState, reason: Reason) {
        let Some(task) = self.state.task(launch) else { return };
        let status = Status {
            master_seq: task.status.master_seq.saturating_add(1),
            task_seq: task.status.task_seq,
            wall_ms: self.entry.wall_ms,
            ..Status::new(state, reason, Source::Master)
        };
        self.put_status(launch, status);
    }

    /// A status that the task's agent made and that [`is_news`]. On the way back from UNREACHABLE the master's number
    /// rises, so that what comes now is greater than what was said meanwhile.
    pub(super) fn agent_status(&mut self, launch: LaunchId, status: &Status) {
        let Some(task) = self.state.tasks.get_mut(&launch) else { return };
        let mut status = status.clone();
        let returned = task.status.state == TaskState::Unreachable;
        status.master_seq = task.status.master_seq.saturating_add(u32::from(returned));
        if status.source == Source::Master {
            status.source = Source::Agent;
        }
        if status.message.len() > MESSAGE_BYTES_MAX {
            status.message.truncate(status.message.floor_char_boundary(MESSAGE_BYTES_MAX));
        }
        task.agent_status = Some(status.clone());
        if returned && status.reason == Reason::None && !status.state.is_terminal() {
            status.reason = Reason::AgentReturned;
        }
        self.put_status(launch, status);
    }

    /// Says again, under a new number, what the agent last said of a task that was UNREACHABLE.
    pub(super) fn repeat_agent_status(&mut self, launch: LaunchId) {
        let Some(task) = self.state.task(launch) else { return };
        let nothing = || Status::new(TaskState::Staging, Reason::None, Source::Master);
        let last = task.agent_status.clone().unwrap_or_else(nothing);
        let status = Status {
            master_seq: task.status.master_seq.saturating_add(1),
            reason: Reason::AgentReturned,
            wall_ms: self.entry.wall_ms,
            ..last
        };
        self.put_status(launch, status);
    }

    fn put_status(&mut self, launch: LaunchId, status: Status) {
        let Some(task) = self.state.task(launch) else { return };
        let framework = task.framework;
        // Of an executor its framework hears by its end and by what becomes of its tasks.
        let acknowledged = task.is_executor() || self.state.acknowledges_for(framework);
        let wall_ms = if status.wall_ms > 0 { status.wall_ms } else { self.entry.wall_ms };
        let Some(task) = self.state.tasks.get_mut(&launch) else { return };
        let (from, agent) = (task.status.state, task.agent);
        task.status = status.clone();
        if status.state == TaskState::Running {
            task.started_wall_ms.get_or_insert(wall_ms);
        }
        if !acknowledged {
            let latest_check =
                |last: &Status| last.is_check() && status.is_check() && last.state == status.state;
            if task.pending.last().is_some_and(latest_check) {
                task.pending.pop();
            }
            task.pending.push(status.clone());
            if task.pending.len() > PENDING_STATUSES_MAX {
                // The oldest is never the terminal one, which is always the last.
                task.pending.remove(0);
            }
        }
        let terminal = status.state.is_terminal();
        if terminal {
            task.finished_wall_ms = Some(wall_ms);
        }
        self.tell(Change::StatusChanged { launch, framework, agent, from, status });
        if terminal {
            self.finish(launch, acknowledged);
        }
    }

    /// The task has just become terminal: what it held is free.
    fn finish(&mut self, launch: LaunchId, acknowledged: bool) {
        let Some(task) = self.state.task(launch) else { return };
        let (framework, agent) = (task.framework, task.agent);
        let (role, resources) = (task.role.clone(), task.resources.clone());
        let executor = match &task.kind {
            LaunchKind::Executor(id) => Some((id.clone(), task.status.clone())),
            LaunchKind::Task | LaunchKind::TaskOf(_) => None,
        };
        self.state.index.live_on_agent.remove(&(agent, launch));
        if let Some(record) = self.state.agents.get_mut(&agent) {
            let left = record.used.checked_sub(&resources);
            record.used = left.expect("what an agent's live tasks hold was added to its use at launch");
        }
        if executor.is_none()
            && let Some(record) = self.state.frameworks.get_mut(&framework)
        {
            record.live_tasks -= 1;
        }
        self.tell(Change::ResourcesReturned { launch, framework, role, agent, resources });
        if let Some((executor, status)) = executor {
            self.state.index.executors.remove(&(framework, agent, executor.clone(), launch));
            self.tell(Change::ExecutorEnded { launch, executor, framework, agent, status });
        }
        if acknowledged {
            self.retire(launch);
        }
        self.after_task_end(framework);
    }

    /// Puts a task that is terminal and acknowledged into the history, or an executor that is terminal.
    pub(super) fn retire(&mut self, launch: LaunchId) {
        let Some(mut task) = self.state.tasks.remove(&launch) else { return };
        let framework = task.framework;
        // The history shows how it ended, nothing else.
        task.agent_status = None;
        task.pending = Vec::new();
        let index = &mut self.state.index;
        if !task.is_executor() {
            index.names.remove(&(framework, task.task_id.clone()));
        }
        index.of_framework.remove(&(framework, launch));
        let Counts { tasks, finished } = self.state.counts(framework);
        self.state.index.counts.insert(framework, Counts { tasks: tasks - 1, finished });
        if let Some(used) = self.state.specs.get_mut(&(framework, task.digest)) {
            used.tasks -= 1;
            used.finished += 1;
            if used.tasks == 0
                && let Some(record) = self.state.frameworks.get_mut(&framework)
            {
                record.spec_bytes -= used.bytes;
            }
        }
        self.state.meta.last_finished += 1;
        let number = self.state.meta.last_finished;
        self.state.index_finished(number, &task);
        self.state.finished.insert(number, task);
        self.tell(Change::TaskRetired { launch, framework });
        self.trim_history(framework);
    }

    fn trim_history(&mut self, framework: FrameworkId) {
        while self.state.counts(framework).finished > FINISHED_TASKS_PER_FRAMEWORK as u64 {
            let keys = (framework, 0)..=(framework, u64::MAX);
            let Some(&(_, oldest)) = self.state.index.finished_of_framework.range(keys).next() else { break };
            self.drop_finished(oldest);
        }
        while self.state.finished.len() > FINISHED_TASKS_MAX {
            let Some((&oldest, _)) = self.state.finished.first() else { break };
            self.drop_finished(oldest);
        }
    }

    /// Forgets a finished task, and its spec if that was the last reference.
    pub(super) fn drop_finished(&mut self, number: u64) {
        let Some(task) = self.state.finished.remove(&number) else { return };
        let framework = task.framework;
        self.state.index.finished_of_framework.remove(&(framework, number));
        let Counts { tasks, finished } = self.state.counts(framework);
        self.state.index.counts.insert(framework, Counts { tasks, finished: finished - 1 });
        let key = (framework, task.digest);
        if let Some(used) = self.state.specs.get_mut(&key) {
            used.finished -= 1;
            if used.tasks == 0 && used.finished == 0 {
                self.state.specs.remove(&key);
            }
        }
    }

    /// Counts everything of a framework as acknowledged.
    pub(super) fn acknowledge_all(&mut self, framework: FrameworkId) {
        let pending: Vec<(LaunchId, bool)> = (self.state.tasks_of_framework(framework))
            .filter(|task| !task.pending.is_empty())
            .map(|task| (task.launch_id, task.is_terminal()))
            .collect();
        for (launch, terminal) in pending {
            if let Some(task) = self.state.tasks.get_mut(&launch) {
                task.pending = Vec::new();
            }
            if terminal {
                self.retire(launch);
            }
        }
    }

    /// Records that a task's end is asked for. A repeat may only shorten the grace, and leaves the reason. Of a
    /// terminal task nothing happens.
    pub(super) fn order_kill(&mut self, launch: LaunchId, grace_ms: Option<u64>, reason: Reason) {
        let Some(task) = self.state.task(launch).filter(|task| !task.is_terminal()) else { return };
        let grace_ms = grace_ms.unwrap_or(task.spec.kill_grace_ms).min(KILL_GRACE_MAX_MS);
        let (agent, before) = (task.agent, task.kill);
        if before.is_some_and(|order| order.grace_ms <= grace_ms) {
            return;
        }
        let reason = before.map_or(reason, |order| order.reason);
        let Some(agent_seq) = self.next_agent_seq(agent) else { return };
        if let Some(task) = self.state.tasks.get_mut(&launch) {
            task.kill = Some(KillOrder { grace_ms, agent_seq, reason });
        }
        self.tell(Change::KillOrdered { launch, agent });
    }

    pub(super) fn next_agent_seq(&mut self, agent: AgentId) -> Option<u64> {
        let record = self.state.agents.get_mut(&agent)?;
        record.last_seq += 1;
        Some(record.last_seq)
    }
}
