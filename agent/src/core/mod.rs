//! The agent's mind: what it holds, what it has said of it, and whom it believes.
//!
//! It refuses to do anything itself: no clock, no randomness, no files, no sockets. Things that happen come in by the
//! `on_…` methods; what must be done about them comes out of [`Core::take_effects`] as one ordered list. Whoever
//! performs the list does so strictly in order and stops at the first failure, so that nothing is ever done before
//! the record that lets a later life of the agent know of it: a launch is checkpointed before it is handed to the
//! containerizer, a status before it is sent, a leadership before its orders are followed.
//!
//! After a crash [`Core::recover`] begins from the records written so far; each launch then waits for the
//! containerizer to say what has become of it.
//!
//! ```text
//! launch order ─► staged ─► launching ─► running ─► ended ─(terminal status confirmed)─► forgotten
//!                   │ crash     │ crash    │ crash
//!                   └───────────┴──────────┴─► recovering ─► launching (only if never begun), running, ended
//! ```

mod container;
mod executors;
mod groups;
mod session;
mod task;
mod updates;

#[cfg(test)]
mod model;
#[cfg(test)]
pub(crate) mod stories;

pub use container::{Place, container_spec, executor_task};
pub use executors::ExecutorRefusal;
pub use session::{Disconnect, Fatal, Identity};
pub use task::{HeldView, Phase};

use std::collections::{BTreeMap, BTreeSet};

use proffer_containerizer::{CheckKind, Event, InstanceId, Known};
use proffer_types::agent::holdings_digest;
use proffer_types::command::Held;
use proffer_types::event::{AgentOrder, AgentReport, DataAction, LaunchOrder};
use proffer_types::executor::ExecutorEvent;
use proffer_types::task::KillOrder;
use proffer_types::{
    AgentInfo, BootId, Epoch, FrameworkId, LaunchId, Reason, RequestId, Source, Status, TaskState,
};

use executors::Link;
use session::Session;
use task::Task;

/// What the agent knows of its node when it starts.
#[derive(Clone, Debug)]
pub struct Config {
    /// What it tells masters of the node.
    pub info: AgentInfo,
    /// The life of the host.
    pub boot_id: BootId,
    /// How long an executor may be without a stream (milliseconds).
    pub registration_ms: u64,
}

/// What is appended to the checkpoint, by `write()`: it survives the process, not the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A launch was ordered; counts its number as seen.
    Launch(Box<LaunchOrder>),
    /// The launch goes to this supervisor and to no other, unless the containerizer says that it never began it.
    Assigned {
        /// Which.
        launch: LaunchId,
        /// The supervisor's life.
        instance: InstanceId,
    },
    /// The end of a held launch was ordered; counts its number as seen.
    Kill {
        /// Which.
        launch: LaunchId,
        /// The order. With the shortest grace so far, and the first reason.
        order: KillOrder,
    },
    /// Orders up to this number count as seen.
    Seen(u64),
    /// A status was made.
    Status {
        /// Of which launch.
        launch: LaunchId,
        /// The status.
        status: Status,
    },
    /// The launch is to be ended and forgotten without a status.
    Forget(LaunchId),
    /// Nothing more is to be known of the launch.
    Forgotten(LaunchId),
    /// The task was handed to its executor.
    Handed(LaunchId),
    /// A task's executor was heard up to this number.
    Heard {
        /// Of which launch.
        launch: LaunchId,
        /// The executor's number of the status before.
        seq: u32,
    },
    /// An executor is ended for something that it did.
    Condemned {
        /// Which.
        launch: LaunchId,
        /// For what.
        reason: Reason,
    },
}

/// What must be done, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Write the identity file durably before anything that follows.
    PersistIdentity(Identity),
    /// Append to the checkpoint before anything that follows.
    Checkpoint(Record),
    /// Say this to the master, if the session is still there.
    Send(AgentReport),
    /// Let the containerizer take up what an earlier life of the agent left. Comes once, before everything that the
    /// containerizer is told.
    Recover(Vec<Known>),
    /// Start a container.
    Launch {
        /// What to start.
        order: Box<LaunchOrder>,
        /// By whom.
        instance: InstanceId,
    },
    /// Start the containers of a group, all or none.
    LaunchGroup {
        /// What to start.
        orders: Vec<LaunchOrder>,
        /// By whom.
        instance: InstanceId,
    },
    /// Serve an executor: its container runs.
    Listen(LaunchId),
    /// Serve an executor no more: it has ended.
    EndListening(LaunchId),
    /// Hand tasks, one or a group, to an executor.
    Hand {
        /// To which.
        executor: LaunchId,
        /// What.
        orders: Vec<LaunchOrder>,
    },
    /// Say this to an executor, if its stream is still there.
    ToExecutor {
        /// To which.
        executor: LaunchId,
        /// What.
        event: ExecutorEvent,
    },
    /// Give a container other limits.
    Resize {
        /// Which.
        launch: LaunchId,
        /// Processor time (milli).
        cpus_milli: u64,
        /// Memory (bytes).
        memory_bytes: u64,
    },
    /// End a container. Repeated orders may only shorten the grace.
    Kill {
        /// Which.
        launch: LaunchId,
        /// Time between SIGTERM and SIGKILL (milliseconds).
        grace_ms: u64,
    },
    /// Remove what is left of an ended container.
    Forget(LaunchId),
    /// Open a connection for bulk data.
    OpenData {
        /// Names the request.
        ticket: [u8; 16],
        /// For whom.
        principal: String,
        /// What it is good for.
        action: DataAction,
        /// Which launch; 0 for the whole agent.
        launch: LaunchId,
        /// Void after this (milliseconds).
        expires_ms: u64,
    },
    /// Close the stream and, if [`Core::wants_session`], seek a leader.
    Reconnect(Disconnect),
    /// Nothing can go on: tell the operator and end. Tasks go on.
    Stop(Fatal),
}

/// The agent's mind. See the module's documentation.
#[derive(Clone, Debug)]
pub struct Core {
    info: AgentInfo,
    identity: Identity,
    session: Session,
    held: BTreeMap<LaunchId, Task>,
    /// The executors whose containers run.
    links: BTreeMap<LaunchId, Link>,
    /// The held tasks of each executor, which may be gone.
    tasks_of: BTreeMap<LaunchId, BTreeSet<LaunchId>>,
    /// How long an executor may be without a stream (milliseconds).
    registration_ms: u64,
    /// The number of the last launch or kill that counts as seen.
    last_seq: u64,
    /// Launches that came since the last [`Core::take_effects`], in their order: a kill may still overtake them.
    staged: Vec<LaunchId>,
    /// The cluster has no record of this agent: everything must be gone before it registers anew.
    starting_anew: bool,
    /// The containerizer has said what became of everything that an earlier life left.
    recovered: bool,
    /// A random number for a new identity, should one be needed.
    fresh: RequestId,
    now_ms: u64,
    wall_ms: u64,
    effects: Vec<Effect>,
}

impl Core {
    /// Begins from what an earlier life of the agent left: its identity and, if the host has not restarted since, the
    /// records of its checkpoint. `instance` is a fresh random number, used if there is no identity.
    ///
    /// Records of an earlier life of the host must not be given: what they tell of is gone.
    pub fn recover(
        config: Config,
        identity: Option<Identity>,
        records: impl IntoIterator<Item = Record>,
        instance: RequestId,
    ) -> Self {
        let known = identity.clone();
        let mut now = identity.unwrap_or_else(|| Identity::new(instance, config.boot_id));
        let rebooted = now.boot_id != config.boot_id;
        now.boot_id = config.boot_id;
        let mut core = Self {
            info: config.info,
            identity: now,
            session: Session::Closed,
            held: BTreeMap::new(),
            links: BTreeMap::new(),
            tasks_of: BTreeMap::new(),
            registration_ms: config.registration_ms,
            last_seq: 0,
            staged: Vec::new(),
            starting_anew: false,
            recovered: false,
            fresh: instance,
            now_ms: 0,
            wall_ms: 0,
            effects: Vec::new(),
        };
        if known.as_ref() != Some(&core.identity) {
            core.persist_identity();
        }
        if !rebooted && known.is_some() {
            records.into_iter().for_each(|record| core.restore(record));
        }
        core.take_back_halves();
        // What was never handed over has nobody to ask about.
        core.staged = core.held.iter().filter(|(_, t)| t.phase == Phase::Staged).map(|(l, _)| *l).collect();
        let known = core.held.iter().filter_map(|(launch, task)| task.known(*launch)).collect();
        core.effects.push(Effect::Recover(known));
        core
    }

    /// The records from which [`Core::recover`] makes the present state: for rewriting the checkpoint.
    pub fn records(&self) -> Vec<Record> {
        let mut records = Vec::new();
        for (&launch, task) in &self.held {
            task.records(launch, &mut records);
        }
        // Last, because the records of launches and kills count their own numbers.
        records.push(Record::Seen(self.last_seq));
        records
    }

    /// What must be done about everything that came in so far, in order. Launches are released here and not before:
    /// one whose kill came in the same batch is never started. `assign` is the containerizer's
    /// [`assign`](proffer_containerizer::Containerizer::assign).
    pub fn take_effects(&mut self, assign: &mut dyn FnMut(FrameworkId) -> InstanceId) -> Vec<Effect> {
        while !self.staged.is_empty() {
            for launch in std::mem::take(&mut self.staged) {
                self.release(launch, assign);
            }
        }
        self.finish_starting_anew();
        std::mem::take(&mut self.effects)
    }

    /// Time goes on: monotonic milliseconds from any beginning, and wall milliseconds since 1970 for display.
    pub fn on_time(&mut self, now_ms: u64, wall_ms: u64) {
        self.now_ms = self.now_ms.max(now_ms);
        self.wall_ms = wall_ms;
        if self.session.is_silent(self.now_ms) {
            self.disconnect(Disconnect::Silent);
        }
        self.on_executors_time();
    }

    /// When [`Core::on_time`] has something to do at the latest, in its milliseconds.
    pub fn deadline_ms(&self) -> Option<u64> {
        self.session.deadline_ms().into_iter().chain(self.executors_deadline_ms()).min()
    }

    /// Whether a master should be sought.
    pub fn wants_session(&self) -> bool {
        self.session == Session::Closed && !self.starting_anew && self.recovered
    }

    /// The agent's identity.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// What it tells masters of its node.
    pub fn info(&self) -> &AgentInfo {
        &self.info
    }

    /// The leadership whose session is open.
    pub fn session_epoch(&self) -> Option<Epoch> {
        match self.session {
            Session::Open { epoch, .. } => Some(epoch),
            Session::Closed | Session::Opening { .. } => None,
        }
    }

    /// The number of the last launch or kill that counts as seen.
    pub fn last_seq(&self) -> u64 {
        self.last_seq
    }

    /// What is held, by launch.
    pub fn held(&self) -> impl Iterator<Item = HeldView<'_>> {
        self.held.iter().map(|(launch, task)| task.view(*launch))
    }

    /// One held launch.
    pub fn launch(&self, launch: LaunchId) -> Option<HeldView<'_>> {
        self.held.get(&launch).map(|task| task.view(launch))
    }

    fn on_launch(&mut self, order: LaunchOrder) {
        // A number that counts as seen is never acted on again: its launch may have ended and been forgotten.
        if order.agent_seq <= self.last_seq || self.held.contains_key(&order.launch) {
            return self.count_seen(order.agent_seq);
        }
        let launch = order.launch;
        self.last_seq = order.agent_seq;
        self.effects.push(Effect::Checkpoint(Record::Launch(Box::new(order.clone()))));
        self.hold(order);
        self.staged.push(launch);
    }

    /// The end of a launch that needs what this agent does not know; it may have known when it was ordered.
    fn unsupported(&self, task: &Task) -> Option<Status> {
        let needs = task.order.iter().flat_map(|order| &order.spec.needs).map(String::as_str);
        let missing: Vec<&str> = needs.filter(|need| !self.info.features.contains(*need)).collect();
        if missing.is_empty() {
            return None;
        }
        let mut status = Status::new(TaskState::Dropped, Reason::Unsupported, Source::Agent);
        status.message = format!("this agent does not know what the task needs: {}", missing.join(", "));
        Some(status)
    }

    /// A launch that this version cannot read was ordered: it is refused, and its number counts as seen.
    pub fn on_unreadable_launch(&mut self, epoch: Epoch, agent_seq: u64, launch: LaunchId, why: &str) {
        if !self.follows(epoch) {
            return;
        }
        if agent_seq > self.last_seq && !self.held.contains_key(&launch) {
            let mut status = Status::new(TaskState::Dropped, Reason::Unsupported, Source::Agent);
            status.message = format!("this agent cannot read the launch: {why}");
            self.held.insert(launch, Task::new(None, Phase::Staged));
            self.say(launch, status);
        }
        self.count_seen(agent_seq);
    }

    fn on_kill(&mut self, launch: LaunchId, order: KillOrder) {
        let seen = order.agent_seq;
        let Some(task) = self.held.get_mut(&launch) else { return self.count_seen(seen) };
        let Some(order) = task.accept_kill(order) else { return self.count_seen(seen) };
        self.last_seq = self.last_seq.max(seen);
        self.effects.push(Effect::Checkpoint(Record::Kill { launch, order }));
        self.enforce_kill(launch);
    }

    /// Does what a kill order asks for in the launch's present phase.
    fn enforce_kill(&mut self, launch: LaunchId) {
        let Some(task) = self.held.get(&launch) else { return };
        let Some(kill) = task.kill else { return };
        let (phase, executor, is_executor) = (task.phase, task.executor(), task.is_executor());
        match phase {
            // Decided when it would be released: one that waits for its group or its executor is looked at again.
            Phase::Staged => return self.staged.push(launch),
            Phase::Ended => return,
            // Nobody knows yet: decided when the containerizer says.
            Phase::Recovering if !self.recovered => return,
            // Once recovered, it is still this one's supervisor that does not answer: it is ended without.
            Phase::Recovering | Phase::Launching => {}
            Phase::Running => {
                let said = task.updates.state() == Some(TaskState::Killing);
                if !said && !task.forget {
                    self.say(launch, Status::new(TaskState::Killing, kill.reason, Source::Agent));
                }
            }
        }
        if let Some(executor) = executor {
            return self.tell_to_kill(executor, launch, kill.grace_ms);
        }
        if is_executor && phase == Phase::Running && self.shut_down(launch, kill.grace_ms) {
            return;
        }
        self.effects.push(Effect::Kill { launch, grace_ms: kill.grace_ms });
    }

    fn on_confirm(&mut self, launch: LaunchId, task_seq: u32) {
        let Some(task) = self.held.get_mut(&launch) else { return };
        task.updates.confirm(task_seq);
        if task.phase == Phase::Ended && task.updates.is_confirmed() {
            self.drop_launch(launch);
        }
    }

    fn on_forget(&mut self, launch: LaunchId) {
        let Some(task) = self.held.get(&launch) else {
            return self.send(AgentReport::Cleaned(vec![launch]));
        };
        if task.phase == Phase::Ended {
            self.drop_launch(launch);
            return self.send(AgentReport::Cleaned(vec![launch]));
        }
        self.end_unsaid(launch);
    }

    /// Ends a launch of which no status will ever be made.
    fn end_unsaid(&mut self, launch: LaunchId) {
        let Some(task) = self.held.get_mut(&launch) else { return };
        if !task.forget {
            task.forget = true;
            self.effects.push(Effect::Checkpoint(Record::Forget(launch)));
        }
        task.accept_kill_unsaid();
        self.enforce_kill(launch);
    }

    /// The containerizer says something. Repetitions are harmless.
    pub fn on_container_event(&mut self, event: Event) {
        if event == Event::Recovered {
            self.recovered = true;
            let unheard = self.held.iter().filter(|(_, task)| task.phase == Phase::Recovering);
            let unheard = unheard.map(|(launch, task)| (*launch, task.condemned.is_some()));
            for (launch, condemned) in unheard.collect::<Vec<_>>() {
                if condemned {
                    self.effects.push(Effect::Kill { launch, grace_ms: 0 });
                }
                self.enforce_kill(launch);
            }
        }
        let Some(launch) = event.launch() else { return };
        let Some(task) = self.held.get(&launch) else { return self.on_stray_event(launch, &event) };
        match event {
            Event::Started { isolation, started_unix_ms, .. } => {
                self.on_started(launch, isolation, started_unix_ms);
            }
            Event::Ended { end, .. } => {
                let status = task.ended(&end);
                self.on_ended(launch, status);
            }
            Event::LaunchFailed { reason, message, exit_code, .. } => {
                let status = task.launch_failed(reason, message, exit_code);
                self.on_ended(launch, status);
            }
            Event::NotStarted { .. } => self.on_not_started(launch),
            Event::StuckKill { processes, .. } => self.on_stuck(launch, processes),
            Event::Unanswered { .. } => self.on_unanswered(launch),
            Event::Checked { kind, ok, message, .. } => self.on_checked(launch, kind, ok, message),
            Event::Gone { .. } | Event::OrphanRemoved { .. } | Event::Recovered => {}
        }
    }

    /// Of a launch that is forgotten here but not there: a crash came in between.
    fn on_stray_event(&mut self, launch: LaunchId, event: &Event) {
        match event {
            Event::Started { .. } | Event::Ended { .. } | Event::LaunchFailed { .. } => {
                self.effects.push(Effect::Forget(launch));
            }
            Event::NotStarted { .. }
            | Event::Checked { .. }
            | Event::StuckKill { .. }
            | Event::Unanswered { .. }
            | Event::Gone { .. }
            | Event::OrphanRemoved { .. }
            | Event::Recovered => {}
        }
    }

    fn on_started(&mut self, launch: LaunchId, isolation: &str, wall_ms: u64) {
        let Some(task) = self.held.get_mut(&launch) else { return };
        match task.phase {
            Phase::Running | Phase::Ended => return,
            Phase::Staged | Phase::Launching | Phase::Recovering => task.phase = Phase::Running,
        }
        let said = task.updates.has_started();
        let is_executor = task.is_executor();
        if !said && !task.forget {
            // An executor runs when it has subscribed.
            let state = if is_executor { TaskState::Starting } else { TaskState::Running };
            let mut status = Status::new(state, Reason::None, Source::Agent);
            status.isolation = Some(isolation.into());
            status.wall_ms = wall_ms;
            self.say(launch, status);
        }
        if is_executor {
            self.on_executor_started(launch);
        }
        self.enforce_kill(launch);
    }

    /// A check says something else than before, or has failed once more.
    fn on_checked(&mut self, launch: LaunchId, kind: CheckKind, ok: bool, message: String) {
        let Some(task) = self.held.get(&launch).filter(|task| task.phase == Phase::Running) else { return };
        let Some(newest) = task.updates.newest().filter(|_| !task.forget) else { return };
        let mut status = Status::new(newest.state, Reason::CheckChanged, Source::Agent);
        let (said, says) = match kind {
            CheckKind::Health => (newest.healthy, &mut status.healthy),
            CheckKind::Readiness => (newest.ready, &mut status.ready),
        };
        if said == Some(ok) {
            return;
        }
        *says = Some(ok);
        status.message = message;
        self.say(launch, status);
    }

    fn on_ended(&mut self, launch: LaunchId, status: Status) {
        let Some(task) = self.held.get(&launch) else { return };
        match task.phase {
            // Told again after a recovery: what was said stays.
            Phase::Ended => {}
            _ => self.conclude(launch, status),
        }
    }

    fn on_not_started(&mut self, launch: LaunchId) {
        let Some(task) = self.held.get_mut(&launch) else { return };
        match task.phase {
            Phase::Staged | Phase::Ended => {}
            Phase::Recovering | Phase::Launching | Phase::Running if task.updates.has_started() => {
                // It did start once, so it is not started again, whatever made the containerizer forget it.
                let message = "the containerizer lost it after it had started".to_owned();
                let status = task.launch_failed(Reason::SupervisorLost, message, None);
                self.on_ended(launch, status);
            }
            Phase::Recovering | Phase::Launching | Phase::Running => {
                task.phase = Phase::Staged;
                self.staged.push(launch);
            }
        }
    }

    fn on_stuck(&mut self, launch: LaunchId, processes: usize) {
        let Some(task) = self.held.get(&launch) else { return };
        let Some(kill) = task.kill.filter(|_| task.phase == Phase::Running && !task.forget) else { return };
        let mut status = Status::new(TaskState::Killing, kill.reason, Source::Agent);
        status.message =
            format!("{processes} of its processes survive SIGKILL; what it holds stays taken until they end");
        self.say(launch, status);
    }

    /// Nobody knows whether a launch was begun. It stays as it is, and that is said.
    fn on_unanswered(&mut self, launch: LaunchId) {
        let Some(task) = self.held.get(&launch).filter(|task| !task.forget) else { return };
        let waits = matches!(task.phase, Phase::Launching | Phase::Recovering);
        if !waits || task.updates.has_started() {
            return;
        }
        let mut status = Status::new(TaskState::Staging, Reason::None, Source::Agent);
        let ends = if task.kill.is_some() { "; it is ended as soon as that is known" } else { "" };
        status.message = format!(
            "its supervisor lives and does not answer, and other tasks run under that: whether it was started is not \
             known{ends}"
        );
        self.say(launch, status);
    }

    /// Hands a staged launch to the containerizer, unless its end was asked for first.
    fn release(&mut self, launch: LaunchId, assign: &mut dyn FnMut(FrameworkId) -> InstanceId) {
        let Some(task) = self.held.get(&launch).filter(|task| task.phase == Phase::Staged) else { return };
        if let Some(group) = task.group() {
            return self.release_group(group, assign);
        }
        // Also of one that is to be forgotten, of which nothing is said: an executor's tasks end with it.
        if let Some(kill) = task.kill {
            let mut status = Status::new(TaskState::Killed, Reason::KilledDuringLaunch, Source::Agent);
            status.message = format!("never started: its end was asked for first ({})", kill.reason);
            return self.conclude(launch, status);
        }
        if let Some(status) = self.unsupported(task) {
            return self.conclude(launch, status);
        }
        if let Some(executor) = task.executor() {
            return self.hand(executor, &[launch]);
        }
        let Some(task) = self.held.get_mut(&launch) else { return };
        let instance = assign(task.framework());
        let order = task.order.clone().expect("only a launch that could be read is staged");
        task.phase = Phase::Launching;
        task.instance = Some(instance);
        self.effects.push(Effect::Checkpoint(Record::Assigned { launch, instance }));
        self.effects.push(Effect::Launch { order: Box::new(order), instance });
    }

    /// Says the final status of a launch of which nothing runs any more, after those of the tasks that it was to run.
    fn conclude(&mut self, launch: LaunchId, status: Status) {
        let Some(task) = self.held.get(&launch) else { return };
        let forget = task.forget;
        if task.is_executor() {
            self.end_tasks_of(launch, &status);
        }
        if forget { self.finish_forget(launch) } else { self.say(launch, status) }
    }

    /// Makes a status: checkpoints it, then sends it.
    fn say(&mut self, launch: LaunchId, mut status: Status) {
        let Some(task) = self.held.get_mut(&launch) else { return };
        if status.wall_ms == 0 {
            status.wall_ms = self.wall_ms;
        }
        let ends = status.state.is_terminal();
        if ends {
            task.phase = Phase::Ended;
        }
        let (group, status) = (task.group().filter(|_| ends), task.updates.push(status));
        self.look_at(group);
        self.effects.push(Effect::Checkpoint(Record::Status { launch, status: status.clone() }));
        self.send(AgentReport::Status { launch, status });
    }

    fn hold(&mut self, order: LaunchOrder) {
        let launch = order.launch;
        let task = Task::new(Some(order), Phase::Staged);
        if let Some(executor) = task.executor() {
            self.tasks_of.entry(executor).or_default().insert(launch);
        }
        self.held.insert(launch, task);
    }

    /// Lets go of a launch; the executor that it was handed to, if it was one's.
    fn let_go(&mut self, launch: LaunchId) -> Option<LaunchId> {
        let task = self.held.remove(&launch)?;
        self.look_at(task.group());
        let executor = task.executor()?;
        if let Some(tasks) = self.tasks_of.get_mut(&executor) {
            tasks.remove(&launch);
            if tasks.is_empty() {
                self.tasks_of.remove(&executor);
            }
        }
        Some(executor)
    }

    fn finish_forget(&mut self, launch: LaunchId) {
        self.drop_launch(launch);
        self.send(AgentReport::Cleaned(vec![launch]));
    }

    fn drop_launch(&mut self, launch: LaunchId) {
        let executor = self.let_go(launch);
        self.effects.push(Effect::Checkpoint(Record::Forgotten(launch)));
        match executor {
            // It has no container.
            Some(executor) => self.remember_ended(executor, launch),
            None => self.effects.push(Effect::Forget(launch)),
        }
    }

    fn count_seen(&mut self, seq: u64) {
        if seq > self.last_seq {
            self.set_seen(seq);
        }
    }

    fn set_seen(&mut self, seq: u64) {
        if seq != self.last_seq {
            self.last_seq = seq;
            self.effects.push(Effect::Checkpoint(Record::Seen(seq)));
        }
    }

    fn send(&mut self, report: AgentReport) {
        if matches!(self.session, Session::Open { .. }) {
            self.effects.push(Effect::Send(report));
        }
    }

    fn listing(&self) -> Vec<Held> {
        self.held
            .iter()
            .map(|(&launch, task)| Held { launch, status: task.updates.newest_or_staging() })
            .collect()
    }

    fn digest(&self) -> u64 {
        holdings_digest(self.held.iter().map(|(launch, task)| (*launch, task.updates.task_seq())))
    }

    fn restore(&mut self, record: Record) {
        match record {
            Record::Launch(order) => {
                self.last_seq = self.last_seq.max(order.agent_seq);
                self.hold(*order);
            }
            Record::Assigned { launch, instance } => {
                if let Some(task) = self.held.get_mut(&launch) {
                    task.instance = Some(instance);
                    task.phase = Phase::Recovering;
                }
            }
            Record::Kill { launch, order } => {
                self.last_seq = self.last_seq.max(order.agent_seq);
                if let Some(task) = self.held.get_mut(&launch) {
                    task.kill = Some(order);
                }
            }
            Record::Seen(seq) => self.last_seq = seq,
            Record::Status { launch, status } => {
                let task = self.held.entry(launch).or_insert_with(|| Task::new(None, Phase::Ended));
                if status.state.is_terminal() {
                    task.phase = Phase::Ended;
                } else if task.executor().is_some() {
                    task.phase = Phase::Running;
                }
                task.updates.restore(status);
            }
            Record::Forget(launch) => {
                if let Some(task) = self.held.get_mut(&launch) {
                    task.forget = true;
                    task.accept_kill_unsaid();
                }
            }
            Record::Forgotten(launch) => drop(self.let_go(launch)),
            Record::Handed(launch) => {
                if let Some(task) = self.held.get_mut(&launch) {
                    task.phase = Phase::Launching;
                }
            }
            Record::Heard { launch, seq } => {
                if let Some(task) = self.held.get_mut(&launch) {
                    task.heard = seq;
                    if task.phase == Phase::Launching {
                        task.phase = Phase::Running;
                    }
                }
            }
            Record::Condemned { launch, reason } => {
                if let Some(task) = self.held.get_mut(&launch) {
                    task.condemned = Some(reason);
                }
            }
        }
    }

    fn persist_identity(&mut self) {
        self.effects.push(Effect::PersistIdentity(self.identity.clone()));
    }
}

impl Core {
    fn on_order(&mut self, order: AgentOrder) {
        match order {
            AgentOrder::Launch(order) => self.on_launch(*order),
            AgentOrder::LaunchGroup(orders) => orders.into_iter().for_each(|order| self.on_launch(order)),
            AgentOrder::Message { launch, data } => self.on_message(launch, data),
            AgentOrder::Kill { agent_seq, launch, grace_ms, reason } => {
                self.on_kill(launch, KillOrder { grace_ms, agent_seq, reason });
            }
            AgentOrder::Confirm { launch, task_seq } => self.on_confirm(launch, task_seq),
            AgentOrder::Forget { launch } => self.on_forget(launch),
            AgentOrder::OpenData { ticket, principal, action, launch, expires_ms } => {
                self.effects.push(Effect::OpenData { ticket, principal, action, launch, expires_ms });
            }
            AgentOrder::Ping { n } => self.effects.push(Effect::Send(AgentReport::Pong { n })),
            AgentOrder::SendListing => {
                let held = self.listing();
                self.effects.push(Effect::Send(AgentReport::Listing(held)));
            }
            // The spread of the next session's beginning is for whoever dials.
            AgentOrder::Welcome { agent, cluster, ping_ms, reattach_spread_ms: _, last_seq } => {
                self.on_welcome(agent, cluster, ping_ms, last_seq);
            }
            AgentOrder::Refused(refusal) => self.on_refused(refusal),
        }
    }
}
