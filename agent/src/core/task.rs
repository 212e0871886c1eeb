//! One launch, from its order to its confirmed end.

use proffer_containerizer::{Cause, End, InstanceId, KillCause, KillSent, Known};
use proffer_types::event::{Group, LaunchKind, LaunchOrder};
use proffer_types::executor::ExecutorUpdate;
use proffer_types::limits::KILL_GRACE_MS;
use proffer_types::resources::bytes;
use proffer_types::task::KillOrder;
use proffer_types::{FrameworkId, LaunchId, Reason, Source, Status, TaskState};

use super::Record;
use super::updates::Updates;

/// Where a launch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not handed to the containerizer, or to its executor.
    Staged,
    /// Handed over by an earlier life of the agent; the containerizer has not yet said what became of it.
    Recovering,
    /// Handed to the containerizer, or to its executor.
    Launching,
    /// Its program runs.
    Running,
    /// Its final status is made. Nothing of it runs.
    Ended,
}

impl Phase {
    /// For display.
    pub fn name(self) -> &'static str {
        match self {
            Self::Staged => "staged",
            Self::Recovering => "recovering",
            Self::Launching => "launching",
            Self::Running => "running",
            Self::Ended => "ended",
        }
    }
}

/// What can be seen of a held launch.
#[derive(Clone, Copy, Debug)]
pub struct HeldView<'a> {
    /// The launch.
    pub launch: LaunchId,
    /// What was ordered; `None` if it could not be read.
    pub order: Option<&'a LaunchOrder>,
    /// Where it is.
    pub phase: Phase,
    /// The newest status, if there is one.
    pub status: Option<&'a Status>,
    /// How many statuses wait for their confirmation.
    pub unconfirmed: usize,
    /// The order to end it, if one was given.
    pub kill: Option<KillOrder>,
    /// It ends without a status.
    pub forget: bool,
}

/// One held launch.
#[derive(Clone, Debug)]
pub(super) struct Task {
    /// `None` if it could not be read: then it has ended.
    pub(super) order: Option<LaunchOrder>,
    /// The supervisor it was assigned to last.
    pub(super) instance: Option<InstanceId>,
    pub(super) phase: Phase,
    pub(super) kill: Option<KillOrder>,
    /// To be ended without any further status.
    pub(super) forget: bool,
    pub(super) updates: Updates,
    /// The number of the last status that was heard of its executor; 0 if it has none.
    pub(super) heard: u32,
    /// Why its end was decided here, of an executor.
    pub(super) condemned: Option<Reason>,
}

impl Task {
    pub(super) fn new(order: Option<LaunchOrder>, phase: Phase) -> Self {
        let updates = Updates::default();
        Self { order, instance: None, phase, kill: None, forget: false, updates, heard: 0, condemned: None }
    }

    /// The executor that runs it, if one does.
    pub(super) fn executor(&self) -> Option<LaunchId> {
        match self.order.as_ref()?.kind {
            LaunchKind::TaskOf(executor) => Some(executor),
            LaunchKind::Task | LaunchKind::Executor(_) => None,
        }
    }

    /// The group it starts and ends with.
    pub(super) fn group(&self) -> Option<Group> {
        self.order.as_ref()?.group
    }

    /// Whether its executor has it.
    pub(super) fn has_been_handed(&self) -> bool {
        self.executor().is_some() && matches!(self.phase, Phase::Launching | Phase::Running)
    }

    /// A status that its executor says.
    pub(super) fn told_by_executor(&self, update: ExecutorUpdate) -> Status {
        let reason = match update.state {
            TaskState::Killing | TaskState::Killed => self.kill.map_or(Reason::None, |kill| kill.reason),
            TaskState::Failed if update.exit_code.is_some_and(|code| code != 0) => Reason::ExitCode,
            TaskState::Failed if update.signal.is_some() => Reason::Signal,
            _ => Reason::None,
        };
        let mut status = Status::new(update.state, reason, Source::Task);
        status.message = update.message;
        status.exit_code = update.exit_code;
        status.signal = update.signal;
        status.healthy = update.healthy;
        status.ready = update.ready;
        status.data = update.data;
        status
    }

    /// Whether it is an executor.
    pub(super) fn is_executor(&self) -> bool {
        self.order.as_ref().is_some_and(|order| matches!(order.kind, LaunchKind::Executor(_)))
    }

    /// Takes a kill order if it changes anything: the first one, or one with a shorter grace (which keeps the first
    /// one's reason). Returns what holds now.
    pub(super) fn accept_kill(&mut self, order: KillOrder) -> Option<KillOrder> {
        let held = match self.kill {
            _ if self.phase == Phase::Ended => return None,
            Some(held) if held.grace_ms <= order.grace_ms => return None,
            Some(held) => KillOrder { reason: held.reason, ..order },
            None => order,
        };
        self.kill = Some(held);
        self.kill
    }

    /// Orders the end of a launch of which no status will be made: with its own grace, but no more than usual.
    pub(super) fn accept_kill_unsaid(&mut self) {
        let grace_ms = self.order.as_ref().map_or(0, |o| o.spec.kill_grace_ms).min(KILL_GRACE_MS);
        self.accept_kill(KillOrder { grace_ms, agent_seq: 0, reason: Reason::None });
    }

    /// The final status of a container that ended.
    pub(super) fn ended(&self, end: &End) -> Status {
        let (state, reason, source) = self.verdict(end);
        let mut status = Status::new(state, reason, source);
        status.exit_code = end.exit_code;
        status.signal = end.signal;
        status.memory_peak_bytes = end.oom.map(|oom| oom.peak_bytes).or(end.memory_peak_bytes);
        status.output_dropped_bytes = Some(end.stdout_dropped_bytes.saturating_add(end.stderr_dropped_bytes));
        status.healthy = (reason == Reason::Unhealthy).then_some(false);
        status.wall_ms = end.finished_unix_ms;
        status.message = match reason {
            Reason::OutOfMemory => end.oom.map_or_else(String::new, |oom| {
                format!("held {} at its peak, its limit is {}", bytes(oom.peak_bytes), bytes(oom.limit_bytes))
            }),
            Reason::SupervisorLost => "its supervisor was lost, and it was ended for that".into(),
            Reason::LaunchInterrupted => {
                "its supervisor was lost while it was being started; whether the program ran is not known"
                    .into()
            }
            Reason::Signal => end.signal.map_or_else(String::new, |signal| {
                format!("ended by signal {signal}, which was not sent by the agent")
            }),
            Reason::ExecutorUnregistered => {
                "it did not subscribe with its agent in time, and was ended for that".into()
            }
            Reason::ExecutorMisbehaved => {
                let why = self.updates.newest().map_or("", |newest| newest.message.as_str());
                format!("it broke the protocol, and was ended for that: {why}")
            }
            Reason::Unhealthy | Reason::MaxCompletion | Reason::GroupEnded => end.kill_message.clone(),
            _ => String::new(),
        };
        if end.oom_kills > 0 && reason != Reason::OutOfMemory {
            let first = if status.message.is_empty() { "" } else { "; " };
            let note =
                format!("{first}the kernel killed {} of its processes for want of memory", end.oom_kills);
            status.message.push_str(&note);
        }
        status
    }

    fn verdict(&self, end: &End) -> (TaskState, Reason, Source) {
        if let Some(reason) = self.condemned {
            return (TaskState::Failed, reason, Source::Agent);
        }
        match end.kill_cause {
            _ if end.kill_sent == KillSent::None => {}
            KillCause::Health => return (TaskState::Failed, Reason::Unhealthy, Source::Agent),
            KillCause::MaxCompletion => return (TaskState::Failed, Reason::MaxCompletion, Source::Agent),
            KillCause::Group => return (TaskState::Killed, Reason::GroupEnded, Source::Agent),
            KillCause::None | KillCause::Order => {}
        }
        if let Some(kill) = self.kill.filter(|_| end.kill_sent > KillSent::None) {
            return (TaskState::Killed, kill.reason, Source::Agent);
        }
        if end.oom.is_some() {
            return (TaskState::Failed, Reason::OutOfMemory, Source::Task);
        }
        match end.cause {
            Cause::SupervisorLost => (TaskState::Failed, Reason::SupervisorLost, Source::Agent),
            Cause::Interrupted => (TaskState::Failed, Reason::LaunchInterrupted, Source::Agent),
            Cause::Exited if end.exit_code == Some(0) => (TaskState::Finished, Reason::None, Source::Task),
            Cause::Exited if end.exit_code.is_some() => (TaskState::Failed, Reason::ExitCode, Source::Task),
            Cause::Exited => (TaskState::Failed, Reason::Signal, Source::Task),
        }
    }

    /// The final status of a container that could not be made, or whose program could not be executed.
    pub(super) fn launch_failed(&self, reason: Reason, message: String, exit_code: Option<i32>) -> Status {
        let state = if reason == Reason::KilledDuringLaunch { TaskState::Killed } else { TaskState::Failed };
        let mut status = Status::new(state, reason, Source::Agent);
        status.message = message;
        status.exit_code = exit_code;
        status
    }

    /// What the containerizer must be told of it after a restart; `None` if it was never handed over.
    pub(super) fn known(&self, launch: LaunchId) -> Option<Known> {
        let (order, instance) = (self.order.as_ref()?, self.instance?);
        Some(Known {
            launch,
            framework: order.framework,
            instance,
            memory_bytes: super::container::memory_limit(order),
            started: self.updates.has_started(),
            ended: self.phase == Phase::Ended,
        })
    }

    pub(super) fn framework(&self) -> FrameworkId {
        self.order.as_ref().map_or_else(FrameworkId::default, |order| order.framework)
    }

    /// The records from which the present state can be made.
    pub(super) fn records(&self, launch: LaunchId, out: &mut Vec<Record>) {
        out.extend(self.order.clone().map(|order| Record::Launch(Box::new(order))));
        out.extend(self.instance.map(|instance| Record::Assigned { launch, instance }));
        out.extend(self.kill.map(|order| Record::Kill { launch, order }));
        out.extend(self.forget.then_some(Record::Forget(launch)));
        out.extend(self.has_been_handed().then_some(Record::Handed(launch)));
        out.extend(self.updates.kept().map(|status| Record::Status { launch, status: status.clone() }));
        out.extend((self.heard > 0).then_some(Record::Heard { launch, seq: self.heard }));
        out.extend(self.condemned.map(|reason| Record::Condemned { launch, reason }));
    }

    pub(super) fn view(&self, launch: LaunchId) -> HeldView<'_> {
        HeldView {
            launch,
            order: self.order.as_ref(),
            phase: self.phase,
            status: self.updates.newest(),
            unconfirmed: self.updates.unconfirmed().count(),
            kill: self.kill,
            forget: self.forget,
        }
    }
}
