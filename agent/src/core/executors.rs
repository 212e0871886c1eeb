//! Executors of frameworks: programs in containers, to which tasks are handed instead of being launched.
//!
//! An executor is a launch like any other, started and ended by its supervisor. While its container runs it holds a
//! stream; without one for too long it is ended. A task that is handed to it has no container: what becomes of it is
//! what the executor says, as far as that can be true, and when the executor's container is empty, so is the task's
//! place. What an executor must not say ends the executor and nothing else.
//!
//! ```text
//! container started ─► unsubscribed ◄──► subscribed ─► container ended ─► its tasks' ends, then its own
//!                          │ too long        │ a lie
//!                          └────► condemned ◄┘
//! ```

use proffer_types::container::Burst;
use proffer_types::event::LaunchKind;
use proffer_types::executor::{ExecutorEvent, ExecutorUpdate};
use proffer_types::limits::KILL_GRACE_MS;
use proffer_types::recent::Recent;
use proffer_types::resources::bytes;
use proffer_types::{LaunchId, Reason, Source, Status, TaskState};

use super::{Core, Effect, Phase, Record};

/// Ended launches that an executor may speak of once more, because the answer to its last word was lost. It says so at
/// once or at its next subscription.
const ENDED_MAX: usize = 16_384;

/// An executor whose container runs.
#[derive(Clone, Debug)]
pub(super) struct Link {
    /// The stream that is open.
    stream: Option<u64>,
    /// Whether it has had one in this life of the agent.
    subscribed: bool,
    /// When it must have a stream.
    subscribe_by: Option<u64>,
    /// When its container is killed, because it was told to shut down.
    kill_at: Option<u64>,
    /// Launches of it that are held no more.
    ended: Recent<LaunchId>,
    /// What its container was last allowed: processor time (milli) and memory (bytes).
    size: Option<(u64, u64)>,
}

impl Link {
    fn new(subscribe_by: u64) -> Self {
        Self {
            stream: None,
            subscribed: false,
            subscribe_by: Some(subscribe_by),
            kill_at: None,
            ended: Recent::new(ENDED_MAX),
            size: None,
        }
    }
}

/// Why an executor is not heard.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExecutorRefusal {
    /// It ends, or has ended.
    #[error("this executor is being ended")]
    Ending,
    /// It has not yet said what it has since this agent was started: what it says is not understood without.
    #[error("subscribe first: the agent was started anew")]
    Unsubscribed,
    /// It has just said what cannot be, and is ended for that.
    #[error("{0}: this executor is being ended")]
    Misbehaved(String),
}

impl Core {
    /// An executor has opened a stream; `launches` are those it says it has. The stream before that is void.
    ///
    /// # Errors
    /// If the executor does not run, or must not any more.
    pub fn on_executor_subscribed(
        &mut self,
        executor: LaunchId,
        stream: u64,
        launches: &[LaunchId],
    ) -> Result<(), ExecutorRefusal> {
        self.hears(executor)?;
        let handed: Vec<(LaunchId, Phase)> = self.tasks_of(executor).map(|(l, t)| (l, t.phase)).collect();
        let lost =
            |(launch, phase): &(LaunchId, Phase)| *phase == Phase::Running && !launches.contains(launch);
        if let Some((launch, _)) = handed.iter().find(|task| lost(task)) {
            let what = format!("it subscribed without launch {}, which it had said to run", launch.0);
            return Err(self.misbehaved(executor, what));
        }
        let Some(link) = self.links.get_mut(&executor) else { return Err(ExecutorRefusal::Ending) };
        link.stream = Some(stream);
        link.subscribed = true;
        link.subscribe_by = None;
        for launch in launches.iter().filter(|launch| !handed.iter().any(|(known, _)| known == *launch)) {
            link.ended.insert(*launch);
        }
        self.greet(executor);
        self.resize(executor);
        let again = handed.iter().filter(|(l, phase)| *phase == Phase::Launching && !launches.contains(l));
        let again: Vec<_> = again.filter_map(|(l, _)| self.held[l].order.clone()).collect();
        for together in again.chunk_by(|a, b| a.group.is_some() && a.group == b.group) {
            self.effects.push(Effect::Hand { executor, orders: together.to_vec() });
        }
        for (launch, phase) in handed {
            match phase {
                Phase::Staged => self.staged.push(launch),
                _ => self.enforce_kill(launch),
            }
        }
        self.enforce_kill(executor);
        Ok(())
    }

    fn greet(&mut self, executor: LaunchId) {
        let task = &self.held[&executor];
        let Some(order) = &task.order else { return };
        let LaunchKind::Executor(name) = &order.kind else { return };
        let event = ExecutorEvent::Subscribed {
            framework: order.framework,
            executor: name.clone(),
            launch: executor,
            agent: self.identity.agent.unwrap_or_default(),
            hostname: self.info.hostname.clone(),
            cluster: self.identity.cluster.unwrap_or_default(),
        };
        let first = task.updates.state().is_none_or(|state| state == TaskState::Starting);
        self.effects.push(Effect::ToExecutor { executor, event });
        if first && !task.forget {
            self.say(executor, Status::new(TaskState::Running, Reason::None, Source::Agent));
        }
    }

    /// An executor's stream has ended.
    pub fn on_executor_lost(&mut self, executor: LaunchId, stream: u64) {
        let timeout = self.registration_ms;
        let now = self.now_ms;
        if let Some(link) = self.links.get_mut(&executor).filter(|link| link.stream == Some(stream)) {
            link.stream = None;
            link.subscribe_by = Some(now.saturating_add(timeout));
        }
    }

    /// An executor says what becomes of its tasks. What it says before it says something wrong holds.
    ///
    /// # Errors
    /// If the executor must not speak any more.
    pub fn on_executor_updates(
        &mut self,
        executor: LaunchId,
        updates: Vec<ExecutorUpdate>,
    ) -> Result<(), ExecutorRefusal> {
        self.hears(executor)?;
        // It may repeat the end of a task that was confirmed and forgotten before an agent's restart: whose that was is
        // known from the list of launches that it subscribes with.
        if self.links.get(&executor).is_none_or(|link| !link.subscribed) {
            return Err(ExecutorRefusal::Unsubscribed);
        }
        let ends = updates.iter().any(|update| update.state.is_terminal());
        for update in updates {
            if let Err(what) = self.on_executor_update(executor, update) {
                return Err(self.misbehaved(executor, what));
            }
        }
        if ends {
            self.resize(executor);
        }
        Ok(())
    }

    fn on_executor_update(&mut self, executor: LaunchId, update: ExecutorUpdate) -> Result<(), String> {
        let ExecutorUpdate { launch, seq, state, .. } = update;
        let held = self.held.get_mut(&launch).filter(|task| task.executor() == Some(executor));
        let Some(task) = held.filter(|task| task.phase != Phase::Staged) else {
            let ended = self.links.get(&executor).is_some_and(|link| link.ended.contains(&launch));
            return if ended {
                Ok(())
            } else {
                Err(format!("it spoke of launch {}, which is not its", launch.0))
            };
        };
        if seq <= task.heard {
            return Ok(());
        }
        match state {
            TaskState::Starting | TaskState::Running | TaskState::Killing => {}
            TaskState::Finished | TaskState::Failed | TaskState::Killed | TaskState::Error => {}
            TaskState::Staging | TaskState::Unreachable | TaskState::Dropped | TaskState::GoneByOperator => {
                return Err(format!(
                    "it said {state} of launch {}, which is not for executors to say",
                    launch.0
                ));
            }
        }
        let before = task.updates.state();
        if state.is_terminal() && before == Some(state) {
            // Written down by an earlier life of the agent, which did not come to count it.
            task.heard = seq;
            self.effects.push(Effect::Checkpoint(Record::Heard { launch, seq }));
            return Ok(());
        }
        // That it is being killed was said by the agent; that it runs was true when the executor said so.
        let late =
            before == Some(TaskState::Killing) && matches!(state, TaskState::Starting | TaskState::Running);
        if !late && before.is_some_and(|before| !before.may_become(state)) {
            let before = before.map(TaskState::name).unwrap_or_default();
            return Err(format!("it said {state} of launch {} after {before}", launch.0));
        }
        task.heard = seq;
        if task.phase == Phase::Launching {
            task.phase = Phase::Running;
        }
        let heard = Record::Heard { launch, seq };
        if task.forget {
            // One record says that it is over. Were its number written first, a crash in between would have the final
            // word taken for one that was heard before, and its launch handed over again.
            if state.is_terminal() {
                self.finish_forget(launch);
            } else {
                self.effects.push(Effect::Checkpoint(heard));
            }
            return Ok(());
        }
        let state = if late { TaskState::Killing } else { state };
        let status = task.told_by_executor(ExecutorUpdate { state, ..update });
        self.say(launch, status);
        self.effects.push(Effect::Checkpoint(heard));
        Ok(())
    }

    /// Bytes from an executor for its framework; they are lost if nobody leads now.
    ///
    /// # Errors
    /// If the executor must not speak any more.
    pub fn on_executor_message(&mut self, executor: LaunchId, data: Vec<u8>) -> Result<(), ExecutorRefusal> {
        self.hears(executor)?;
        self.send(proffer_types::event::AgentReport::Message { launch: executor, data });
        Ok(())
    }

    /// Bytes for an executor; they are lost if it does not listen.
    pub(super) fn on_message(&mut self, executor: LaunchId, data: Vec<u8>) {
        if self.links.get(&executor).is_some_and(|link| link.stream.is_some()) {
            self.effects.push(Effect::ToExecutor { executor, event: ExecutorEvent::Message(data) });
        }
    }

    /// Whether an executor may speak.
    fn hears(&self, executor: LaunchId) -> Result<(), ExecutorRefusal> {
        let there = self.links.contains_key(&executor)
            && self.held.get(&executor).is_some_and(|task| task.condemned.is_none());
        if there { Ok(()) } else { Err(ExecutorRefusal::Ending) }
    }

    /// An executor's container runs.
    pub(super) fn on_executor_started(&mut self, executor: LaunchId) {
        let subscribe_by = self.now_ms.saturating_add(self.registration_ms);
        self.links.insert(executor, Link::new(subscribe_by));
        self.effects.push(Effect::Listen(executor));
        if self.held[&executor].condemned.is_some() {
            self.effects.push(Effect::Kill { launch: executor, grace_ms: 0 });
        }
    }

    /// Ends the executors that have had their time.
    pub(super) fn on_executors_time(&mut self) {
        let now = self.now_ms;
        let due = |at: Option<u64>| at.is_some_and(|at| at <= now);
        let late = self.links.iter().filter(|(_, link)| due(link.subscribe_by) || due(link.kill_at));
        for executor in late.map(|(executor, _)| *executor).collect::<Vec<_>>() {
            let Some(link) = self.links.get_mut(&executor) else { continue };
            if due(link.kill_at) {
                link.kill_at = None;
                self.effects.push(Effect::Kill { launch: executor, grace_ms: 0 });
            }
            let Some(link) = self.links.get_mut(&executor) else { continue };
            if due(link.subscribe_by) {
                link.subscribe_by = None;
                self.condemn(executor, Reason::ExecutorUnregistered, String::new());
            }
        }
    }

    pub(super) fn executors_deadline_ms(&self) -> Option<u64> {
        self.links.values().flat_map(|link| link.subscribe_by.into_iter().chain(link.kill_at)).min()
    }

    fn misbehaved(&mut self, executor: LaunchId, what: String) -> ExecutorRefusal {
        let event = ExecutorEvent::Error { message: what.clone() };
        self.effects.push(Effect::ToExecutor { executor, event });
        self.condemn(executor, Reason::ExecutorMisbehaved, what.clone());
        ExecutorRefusal::Misbehaved(what)
    }

    fn condemn(&mut self, executor: LaunchId, reason: Reason, message: String) {
        let Some(task) = self.held.get_mut(&executor).filter(|task| task.condemned.is_none()) else { return };
        task.condemned = Some(reason);
        let forget = task.forget;
        let grace_ms = task.order.as_ref().map_or(0, |order| order.spec.kill_grace_ms).min(KILL_GRACE_MS);
        self.effects.push(Effect::Checkpoint(Record::Condemned { launch: executor, reason }));
        if !forget {
            let mut status = Status::new(TaskState::Killing, reason, Source::Agent);
            status.message = message;
            self.say(executor, status);
        }
        self.effects.push(Effect::Kill { launch: executor, grace_ms });
    }

    /// Tells a running executor to end, if it listens; whether it does.
    pub(super) fn shut_down(&mut self, executor: LaunchId, grace_ms: u64) -> bool {
        let now = self.now_ms;
        let Some(link) = self.links.get_mut(&executor).filter(|link| link.stream.is_some()) else {
            return false;
        };
        let at = now.saturating_add(grace_ms);
        link.kill_at = Some(link.kill_at.unwrap_or(at).min(at));
        self.effects.push(Effect::ToExecutor { executor, event: ExecutorEvent::Shutdown { grace_ms } });
        true
    }

    /// Hands staged tasks, one or the members of a group, to their executor, if it listens.
    pub(super) fn hand(&mut self, executor: LaunchId, launches: &[LaunchId]) {
        let there = self.held.get(&executor).filter(|task| task.is_executor() && task.phase != Phase::Ended);
        if there.is_none_or(|task| task.forget) {
            for launch in launches {
                let mut status = Status::new(TaskState::Dropped, Reason::ExecutorEnded, Source::Agent);
                status.message = "its executor had ended before it came".into();
                self.say(*launch, status);
            }
            return;
        }
        let ending = there.is_some_and(|task| task.kill.is_some() || task.condemned.is_some());
        if ending || self.links.get(&executor).is_none_or(|link| link.stream.is_none()) {
            // They are looked at again when it subscribes, and when it ends.
            return;
        }
        let mut orders = Vec::with_capacity(launches.len());
        for launch in launches {
            let Some(task) = self.held.get_mut(launch) else { continue };
            task.phase = Phase::Launching;
            orders.extend(task.order.clone());
            self.effects.push(Effect::Checkpoint(Record::Handed(*launch)));
        }
        self.resize(executor);
        self.effects.push(Effect::Hand { executor, orders });
    }

    /// Tells an executor to end a task that it was handed. If it does not listen now it is told when it does.
    pub(super) fn tell_to_kill(&mut self, executor: LaunchId, launch: LaunchId, grace_ms: u64) {
        if self.links.get(&executor).is_some_and(|link| link.stream.is_some()) {
            self.effects
                .push(Effect::ToExecutor { executor, event: ExecutorEvent::Kill { launch, grace_ms } });
        }
    }

    /// Makes the executor's container as large as it and its tasks are.
    fn resize(&mut self, executor: LaunchId) {
        let Some(own) = self.held.get(&executor).and_then(|task| task.order.as_ref()) else { return };
        if own.spec.burst != Burst::default() {
            // What it may use was said once and for all.
            return;
        }
        let mut cpus_milli = own.resources.cpus_milli();
        let mut memory_bytes = super::container::memory_promised(own);
        for (_, task) in self.tasks_of(executor).filter(|(_, task)| task.has_been_handed()) {
            let Some(order) = &task.order else { continue };
            cpus_milli = cpus_milli.saturating_add(order.resources.cpus_milli());
            memory_bytes = memory_bytes.saturating_add(order.resources.memory_bytes());
        }
        let size = Some((cpus_milli, memory_bytes));
        if let Some(link) = self.links.get_mut(&executor).filter(|link| link.size != size) {
            link.size = size;
            self.effects.push(Effect::Resize { launch: executor, cpus_milli, memory_bytes });
        }
    }

    /// Says the end of all tasks of an executor of which this is the final status. Nothing of them runs.
    pub(super) fn end_tasks_of(&mut self, executor: LaunchId, end: &Status) {
        if self.links.remove(&executor).is_some() {
            self.effects.push(Effect::EndListening(executor));
        }
        let tasks = self.tasks_of(executor).filter(|(_, task)| task.phase != Phase::Ended);
        for launch in tasks.map(|(launch, _)| launch).collect::<Vec<_>>() {
            let task = &self.held[&launch];
            if task.forget {
                self.finish_forget(launch);
                continue;
            }
            let status = match task.kill {
                Some(kill) => {
                    let staged = task.phase == Phase::Staged;
                    let reason = if staged { Reason::KilledDuringLaunch } else { kill.reason };
                    let mut status = Status::new(TaskState::Killed, reason, Source::Agent);
                    status.message = "its executor has ended".into();
                    status
                }
                // Launched after the order to shut down: it never was that executor's.
                None if task.phase == Phase::Staged && end.state == TaskState::Killed => {
                    end_with(TaskState::Dropped, Reason::ExecutorEnded, end)
                }
                None => {
                    let (state, reason) = verdict_on_tasks(end);
                    end_with(state, reason, end)
                }
            };
            self.say(launch, status);
        }
    }

    /// Nothing more is to be known of a task of an executor.
    pub(super) fn remember_ended(&mut self, executor: LaunchId, launch: LaunchId) {
        if let Some(link) = self.links.get_mut(&executor) {
            link.ended.insert(launch);
        }
    }

    /// The executor that has run a task which is held no more, as long as it lives and so few have ended since.
    pub fn has_run(&self, launch: LaunchId) -> Option<LaunchId> {
        self.links.iter().find(|(_, link)| link.ended.contains(&launch)).map(|(executor, _)| *executor)
    }

    fn tasks_of(&self, executor: LaunchId) -> impl Iterator<Item = (LaunchId, &super::task::Task)> {
        let launches = self.tasks_of.get(&executor).into_iter().flatten();
        launches.filter_map(|launch| Some((*launch, self.held.get(launch)?)))
    }
}

/// What the end of an executor makes of its tasks.
fn verdict_on_tasks(executor: &Status) -> (TaskState, Reason) {
    match (executor.state, executor.reason) {
        (state @ (TaskState::Dropped | TaskState::Killed), reason) => (state, reason),
        (
            _,
            reason @ (Reason::LaunchFailed
            | Reason::ExecFailed
            | Reason::LaunchInterrupted
            | Reason::UserRefused
            | Reason::ContainerRefused
            | Reason::ExecutorUnregistered
            | Reason::ExecutorMisbehaved),
        ) => (TaskState::Failed, reason),
        _ => (TaskState::Failed, Reason::ExecutorEnded),
    }
}

/// The final status of a task whose executor has ended like this.
fn end_with(state: TaskState, reason: Reason, executor: &Status) -> Status {
    let mut status = Status::new(state, reason, Source::Agent);
    let how = match (executor.exit_code, executor.signal) {
        (Some(code), _) => format!("it exited with code {code}"),
        (None, Some(signal)) => format!("it was ended by signal {signal}"),
        (None, None) => String::new(),
    };
    let parts = [how, executor.message.clone()];
    let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    status.message = match parts.as_slice() {
        [] => "its executor has ended".into(),
        parts => format!("its executor has ended: {}", parts.join("; ")),
    };
    if let Some(peak) = executor.memory_peak_bytes.filter(|_| executor.reason == Reason::OutOfMemory) {
        status.message.push_str(&format!(" ({} at its peak)", bytes(peak)));
    }
    status
}
