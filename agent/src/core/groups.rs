//! Tasks that start together or not at all.

use std::collections::BTreeSet;

use proffer_containerizer::InstanceId;
use proffer_types::event::Group;
use proffer_types::{FrameworkId, LaunchId, Reason, Source, Status, TaskState};

use super::{Core, Effect, Phase, Record};

impl Core {
    /// Hands all members of a group over, or none. Members come together; what was written down of some of them only,
    /// or of whose group one has ended, never starts.
    pub(super) fn release_group(&mut self, group: Group, assign: &mut dyn FnMut(FrameworkId) -> InstanceId) {
        let phase = |launch: &LaunchId| self.held.get(launch).map(|task| task.phase);
        let members: Vec<LaunchId> = group.launches().collect();
        // Whoever is asked about it has not told of all yet.
        if members.iter().any(|member| matches!(phase(member), Some(Phase::Launching | Phase::Recovering))) {
            return;
        }
        let ready = members.iter().all(|member| {
            let staged = self.held.get(member).filter(|task| task.phase == Phase::Staged);
            staged.is_some_and(|task| task.kill.is_none() && !task.forget && self.unsupported(task).is_none())
        });
        if !ready {
            return self.end_group_unstarted(&members);
        }
        let first = &self.held[&group.first];
        if let Some(executor) = first.executor() {
            return self.hand(executor, &members);
        }
        let instance = assign(first.framework());
        let mut orders = Vec::with_capacity(members.len());
        for launch in members {
            let Some(task) = self.held.get_mut(&launch) else { continue };
            task.phase = Phase::Launching;
            task.instance = Some(instance);
            orders.extend(task.order.clone());
            self.effects.push(Effect::Checkpoint(Record::Assigned { launch, instance }));
        }
        self.effects.push(Effect::LaunchGroup { orders, instance });
    }

    /// An executor is handed a group when that is written down of all its members. If it is of some only, a crash came
    /// between, and none was handed over.
    pub(super) fn take_back_halves(&mut self) {
        let staged =
            self.held.values().filter(|task| task.phase == Phase::Staged && task.executor().is_some());
        let groups: BTreeSet<LaunchId> = staged.filter_map(|task| Some(task.group()?.first)).collect();
        for task in self.held.values_mut() {
            let half = task.group().is_some_and(|group| groups.contains(&group.first));
            if half && task.phase == Phase::Launching {
                task.phase = Phase::Staged;
            }
        }
    }

    /// One of a group has ended or is held no more: those that waited for what becomes of it wait no longer.
    pub(super) fn look_at(&mut self, group: Option<Group>) {
        let members = group.into_iter().flat_map(Group::launches);
        let waits = |launch: &LaunchId| self.held.get(launch).is_some_and(|task| task.phase == Phase::Staged);
        let waiting: Vec<LaunchId> = members.filter(waits).collect();
        self.staged.extend(waiting);
    }

    fn end_group_unstarted(&mut self, members: &[LaunchId]) {
        let killed = members.iter().any(|member| {
            let killed = |status: &Status| status.state == TaskState::Killed;
            let task = self.held.get(member);
            task.is_some_and(|task| task.kill.is_some() || task.updates.newest().is_some_and(killed))
        });
        for launch in members {
            let Some(task) = self.held.get(launch).filter(|task| task.phase == Phase::Staged) else {
                continue;
            };
            if task.forget {
                self.finish_forget(*launch);
                continue;
            }
            if let Some(status) = self.unsupported(task).filter(|_| task.kill.is_none()) {
                self.say(*launch, status);
                continue;
            }
            let (state, reason, message) = match (task.kill, killed) {
                (Some(kill), _) => (
                    TaskState::Killed,
                    Reason::KilledDuringLaunch,
                    format!("never started: its end was asked for first ({})", kill.reason),
                ),
                (None, true) => (
                    TaskState::Killed,
                    Reason::GroupNotStarted,
                    "never started: the end of another of its group was asked for first".to_owned(),
                ),
                (None, false) => (
                    TaskState::Dropped,
                    Reason::GroupNotStarted,
                    "never started: its group is not whole".to_owned(),
                ),
            };
            let mut status = Status::new(state, reason, Source::Agent);
            status.message = message;
            self.say(*launch, status);
        }
    }
}
