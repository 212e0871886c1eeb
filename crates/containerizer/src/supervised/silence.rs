//! Supervisors that live and do not answer.
//!
//! A launch that was sent to one may be in its hands or unread on its socket: until it answers or is dead nobody can say
//! whether it was begun, and so nothing is said of it that would let another be started in its place. What was not sent,
//! and what comes next, goes to another supervisor. One under which no container runs is of no use to anybody and is
//! killed, by which all its launches have an outcome. One under which containers run is spared, for they run on.

use std::collections::BTreeMap;
use std::time::Instant;

use proffer_types::LaunchId;
use proffer_wire::supervisor::v1::List;
use proffer_wire::supervisor::v1::to_supervisor::Message as Order;
use rustix::process::{Signal, pidfd_send_signal};

use super::engine::Engine;
use super::launch::{Group, Launch, Phase};
use super::records::Record;
use super::supervisor::{Out, Stage, Supervisor};
use crate::{Event, InstanceId};

/// How often in a row a supervisor must be found silent. More than once: after a pause of the whole machine its answer
/// may be on the way.
const LOOKS: u32 = 5;

/// Whether a supervisor answers.
#[derive(Debug, Default)]
pub(super) struct Silence {
    /// When it is looked at, if it owes an answer.
    look_at: Option<Instant>,
    /// A launch was sent since it was looked at last.
    sent: bool,
    /// It was heard since then.
    spoke: bool,
    /// How often in a row it was not.
    looks: u32,
}

impl Silence {
    /// It was sent a launch.
    pub(super) fn sent(&mut self) {
        self.sent = true;
    }

    /// It says something, whatever that is.
    pub(super) fn spoke(&mut self, instance: InstanceId) {
        if self.is_given_up() {
            tracing::info!(%instance, "a supervisor answers again");
        }
        (self.spoke, self.looks) = (true, 0);
    }

    /// It has not answered for as long as it may.
    pub(super) fn is_given_up(&self) -> bool {
        self.looks >= LOOKS
    }
}

impl Supervisor {
    /// Whether it owes an answer, as far as its connection tells.
    fn owes(&self) -> bool {
        match self.stage {
            Stage::Away { .. } => !self.launches.is_empty(),
            Stage::Greeting { .. } | Stage::Listing { .. } => true,
            // Its end is what it owes when it was sent away.
            Stage::Up { .. } => self.blocked || (self.draining && self.launches.is_empty()),
            Stage::Starting(_) | Stage::Dead => false,
        }
    }
}

impl Engine {
    /// When a supervisor that owes an answer is looked at.
    pub(super) fn silence_due(&self) -> Option<Instant> {
        self.supervisors.values().filter_map(|supervisor| supervisor.silence.look_at).min()
    }

    /// Looks at the supervisors that owe answers.
    pub(super) fn look_at_the_silent(&mut self, now: Instant) {
        let again = now + self.options.supervisor_answers / LOOKS;
        let mut due = Vec::new();
        for (&instance, supervisor) in &mut self.supervisors {
            match supervisor.silence.look_at {
                Some(at) if at <= now => due.push(instance),
                Some(_) => {}
                None if supervisor.silence.sent || supervisor.owes() => {
                    supervisor.silence.look_at = Some(again);
                    supervisor.silence.spoke = false;
                }
                None => {}
            }
        }
        for instance in due {
            self.look_at_silence(instance, again);
        }
    }

    fn look_at_silence(&mut self, instance: InstanceId, again: Instant) {
        let Some(supervisor) = self.supervisors.get_mut(&instance) else { return };
        let is_sent = |id| self.launches.get(id).is_some_and(|launch| matches!(launch.phase, Phase::Sent));
        if !supervisor.owes() && !supervisor.launches.iter().any(is_sent) {
            supervisor.silence = Silence::default();
            return;
        }
        let silence = &mut supervisor.silence;
        silence.look_at = Some(again);
        silence.sent = false;
        if std::mem::take(&mut silence.spoke) {
            return;
        }
        silence.looks = silence.looks.saturating_add(1);
        match silence.looks {
            // It may have nothing to say of a launch that takes its time. This it can answer at once.
            1 => self.order(instance, Order::List(List {})),
            looks if looks >= LOOKS => self.go_on_without(instance, looks == LOOKS),
            _ => {}
        }
    }

    /// A supervisor has not answered for as long as it may, and lives.
    fn go_on_without(&mut self, instance: InstanceId, first: bool) {
        // After a pause of this process, what it said meanwhile may not have been read.
        self.on_readable(instance);
        if !self.supervisors.get(&instance).is_some_and(|supervisor| supervisor.silence.is_given_up()) {
            return;
        }
        let Some(supervisor) = self.supervisors.get(&instance) else { return };
        let runs = supervisor.launches.iter().any(|id| self.runs(*id));
        if first {
            let launches = supervisor.launches.len();
            tracing::error!(%instance, launches, spared = runs, "a supervisor lives and does not answer");
        }
        self.shared.current().retain(|_, current| *current != instance);
        if !runs {
            if let Some(process) = &supervisor.process {
                // Its end is told by its process. One that does not even die is tried again.
                let _ = pidfd_send_signal(process, Signal::KILL);
            }
            return;
        }
        self.look_at_exits(instance);
        self.take_back_unsent(instance);
        let Some(supervisor) = self.supervisors.get(&instance) else { return };
        for id in supervisor.launches.clone() {
            self.tell_unanswered(id);
        }
    }

    /// What was never sent to a supervisor is not begun by it. A group of which some was sent stays.
    fn take_back_unsent(&mut self, instance: InstanceId) {
        let is_queued = |launch: &&Launch| matches!(launch.phase, Phase::Queued);
        let mut queued = BTreeMap::<LaunchId, u32>::new();
        for group in self.launches.values().filter(is_queued).filter_map(|launch| launch.group) {
            *queued.entry(group.first).or_default() += 1;
        }
        let Some(supervisor) = self.supervisors.get_mut(&instance) else { return };
        let is_whole = |group: Group| queued.get(&group.first) == Some(&group.size);
        let unsent = |id: &LaunchId| {
            let launch = self.launches.get(id).filter(is_queued);
            launch.is_some_and(|launch| launch.group.is_none_or(is_whole))
        };
        let unsent: Vec<LaunchId> = supervisor.launches.iter().copied().filter(unsent).collect();
        supervisor.out.retain(|out| match out {
            Out::Launch(id) | Out::Ready { launch: Some(id), .. } => !unsent.contains(id),
            Out::Ready { launch: None, .. } => true,
        });
        for id in unsent {
            // One that is to end ends its group.
            if self.launches.get(&id).is_some_and(|launch| matches!(launch.phase, Phase::Queued)) {
                self.not_started(id);
            }
        }
    }

    /// Whether a container runs, or has ended in a way that only its supervisor can tell and that is still asked for.
    fn runs(&self, id: LaunchId) -> bool {
        let Some(launch) = self.launches.get(&id) else { return false };
        match launch.phase {
            Phase::Running => true,
            Phase::Asked => {
                self.dirs.record(launch.instance, id) == Record::Begun
                    && (launch.kill_at.is_none() || self.confinement.processes(id) > 0)
            }
            // It may hang between a start and what it has to say of that.
            Phase::Sent => {
                self.dirs.record(launch.instance, id) == Record::Begun && self.confinement.processes(id) > 0
            }
            _ => false,
        }
    }

    /// Whether a launch of which nothing runs could be begun yet, by a supervisor that has not said what it did.
    pub(super) fn may_still_begin(&self, id: LaunchId) -> bool {
        let Some(launch) = self.launches.get(&id) else { return false };
        matches!(launch.phase, Phase::Sent | Phase::Asked)
            && !launch.killed_past_supervisor
            && !launch.was_started
            && self.supervisors.get(&launch.instance).is_some_and(|supervisor| !supervisor.is_dead())
            && !matches!(self.dirs.record(launch.instance, id), Record::Ended(_))
    }

    /// Says of a launch that nobody knows whether it was begun.
    pub(super) fn tell_unanswered(&mut self, id: LaunchId) {
        let Some(launch) = self.launches.get_mut(&id) else { return };
        let times = 1 + u8::from(launch.kill_at.is_some());
        let is_open = match launch.phase {
            Phase::Sent | Phase::Asked => !launch.orphan && !launch.was_started,
            // Others of its group were sent.
            Phase::Queued => launch.group.is_some(),
            _ => false,
        };
        if is_open && launch.told_unanswered < times {
            launch.told_unanswered = times;
            self.emit(Event::Unanswered { launch: id });
        }
    }
}
