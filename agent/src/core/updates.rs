//! The statuses of one launch: numbered, in order, each kept until its commit is confirmed.

use std::collections::VecDeque;

use proffer_types::limits::{MESSAGE_BYTES_MAX, PENDING_STATUSES_MAX};
use proffer_types::{Reason, Source, Status, TaskState};

/// The statuses of one launch. At most [`PENDING_STATUSES_MAX`] wait at once: who says more, with no master to hear
/// it, says the newest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Updates {
    newest: Option<Status>,
    unconfirmed: VecDeque<Status>,
}

impl Updates {
    /// The number of the newest status; 0 if there is none.
    pub(super) fn task_seq(&self) -> u32 {
        self.newest.as_ref().map_or(0, |s| s.task_seq)
    }

    /// The state in the newest status.
    pub(super) fn state(&self) -> Option<TaskState> {
        self.newest.as_ref().map(|s| s.state)
    }

    /// Whether more was said than that it waits to be set up.
    pub(super) fn has_started(&self) -> bool {
        self.state().is_some_and(|state| state != TaskState::Staging)
    }

    /// The newest status, if there is one.
    pub(super) fn newest(&self) -> Option<&Status> {
        self.newest.as_ref()
    }

    /// The newest status, or the one that is true before the first: it waits to be set up.
    pub(super) fn newest_or_staging(&self) -> Status {
        self.newest.clone().unwrap_or_else(|| Status::new(TaskState::Staging, Reason::None, Source::Agent))
    }

    /// Numbers a new status and keeps it. Nothing may follow a final one.
    pub(super) fn push(&mut self, mut status: Status) -> Status {
        assert!(
            self.state().is_none_or(|state| state.may_become(status.state)),
            "{} cannot follow {:?}: the caller looks at the phase first",
            status.state,
            self.state()
        );
        status.task_seq = self.task_seq() + 1;
        // True for the whole life of a launch, and asked for most when it is over.
        if status.isolation.is_none() {
            status.isolation = self.newest.as_ref().and_then(|newest| newest.isolation.clone());
        }
        if let Some(newest) = &self.newest {
            status.healthy = status.healthy.or(newest.healthy);
            status.ready = status.ready.or(newest.ready);
        }
        truncate(&mut status.message);
        // Only the last of many results of a check is worth telling.
        let check = |s: &Status| s.reason == Reason::CheckChanged && s.state == status.state;
        if check(&status) && self.unconfirmed.back().is_some_and(check) {
            self.unconfirmed.pop_back();
        }
        self.restore(status.clone());
        status
    }

    /// Takes back a status that was numbered in an earlier life.
    pub(super) fn restore(&mut self, status: Status) {
        self.newest = Some(status.clone());
        self.unconfirmed.push_back(status);
        // The first is never the final one, which is the last.
        while self.unconfirmed.len() > PENDING_STATUSES_MAX {
            self.unconfirmed.pop_front();
        }
    }

    /// Lets go of what is committed.
    pub(super) fn confirm(&mut self, task_seq: u32) {
        while self.unconfirmed.front().is_some_and(|s| s.task_seq <= task_seq) {
            self.unconfirmed.pop_front();
        }
    }

    /// Whether nothing waits for a confirmation.
    pub(super) fn is_confirmed(&self) -> bool {
        self.unconfirmed.is_empty()
    }

    /// What must be sent again to a new leader, in order.
    pub(super) fn unconfirmed(&self) -> impl Iterator<Item = &Status> {
        self.unconfirmed.iter()
    }

    /// What a rewritten checkpoint must hold: what waits, and the newest for its number.
    pub(super) fn kept(&self) -> impl Iterator<Item = &Status> {
        let newest = if self.unconfirmed.is_empty() { self.newest.as_ref() } else { None };
        self.unconfirmed.iter().chain(newest)
    }
}

fn truncate(message: &mut String) {
    if message.len() > MESSAGE_BYTES_MAX {
        let mut end = MESSAGE_BYTES_MAX - "…".len();
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        message.truncate(end);
        message.push('…');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_cut_at_a_character() {
        let mut updates = Updates::default();
        let mut status = Status::new(TaskState::Failed, Reason::ExitCode, Source::Task);
        status.message = "ä".repeat(MESSAGE_BYTES_MAX);
        let said = updates.push(status);
        assert!(said.message.len() <= MESSAGE_BYTES_MAX && said.message.ends_with("ä…"));
    }

    #[test]
    fn who_says_much_is_not_remembered_without_end() {
        let mut updates = Updates::default();
        let mut checked = |healthy, reason| {
            let mut status = Status::new(TaskState::Running, reason, Source::Agent);
            status.healthy = healthy;
            updates.push(status);
            updates.unconfirmed().map(|s| s.task_seq).collect::<Vec<_>>()
        };
        checked(None, Reason::None);
        checked(Some(true), Reason::CheckChanged);
        assert_eq!(checked(Some(false), Reason::CheckChanged), [1, 3]);
        for _ in 0..PENDING_STATUSES_MAX {
            checked(None, Reason::None);
        }
        let ended = updates.push(Status::new(TaskState::Failed, Reason::Unhealthy, Source::Agent));
        assert_eq!(ended.healthy, Some(false), "what was known stays known");
        let waiting: Vec<_> = updates.unconfirmed().collect();
        assert_eq!((waiting.len(), waiting.last().copied()), (PENDING_STATUSES_MAX, Some(&ended)));
    }

    #[test]
    fn the_isolation_is_told_to_the_end() {
        let mut updates = Updates::default();
        let mut running = Status::new(TaskState::Running, Reason::None, Source::Agent);
        running.isolation = Some("linux".into());
        updates.push(running);
        let ended = updates.push(Status::new(TaskState::Finished, Reason::None, Source::Task));
        assert_eq!(ended.isolation.as_deref(), Some("linux"));
    }

    #[test]
    fn confirmations_are_cumulative_and_repeatable() {
        let mut updates = Updates::default();
        for state in [TaskState::Running, TaskState::Killing, TaskState::Killed] {
            updates.push(Status::new(state, Reason::None, Source::Agent));
        }
        updates.confirm(2);
        updates.confirm(1);
        assert_eq!(updates.unconfirmed().map(|s| s.task_seq).collect::<Vec<_>>(), [3]);
        updates.confirm(3);
        assert!(updates.is_confirmed());
        assert_eq!(updates.task_seq(), 3);
    }
}
