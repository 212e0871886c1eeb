//! When statuses leave: at once on a quiet node, together on a busy one.

use proffer_types::LaunchId;
use proffer_types::event::AgentReport;
use tokio::time::{Duration, Instant};

/// How long statuses wait at most for the confirmation of those before them.
const PATIENCE: Duration = Duration::from_millis(5);
/// How far apart messages are on a busy node.
const GAP: Duration = Duration::from_millis(8);
/// A node is busy that says more than one status in this time …
const SHARE: Duration = Duration::from_millis(2);
/// … for so many of them.
const BUSY: f64 = 16.0;
/// And one that has said fewer than these of late has nothing to gain by waiting: what it says alone is all that there is.
const QUIET: f64 = 8.0;

/// Holds statuses back while others are on their way. Each that travels alone costs the masters an entry in their
/// logs, the framework an update, and what it does about that another entry; those that wait for the one before them,
/// which is a commit, cost it together. A node on which nothing else happens waits for nothing.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// The last status that was sent, and until when others wait for its confirmation.
    on_its_way: Option<(LaunchId, u32, Instant)>,
    /// When something was sent last.
    last: Option<Instant>,
    /// How many statuses had been sent then, less one for each `SHARE` of time.
    level: f64,
}

impl Pace {
    /// Until when `reports` wait; `None` if they are to be sent now. Only statuses wait, and only few.
    pub(crate) fn holds(&self, reports: &[AgentReport], most: usize, now: Instant) -> Option<Instant> {
        let level = self.level_at(now);
        if level < QUIET {
            return None;
        }
        let apart = self.last.filter(|_| level > BUSY).map(|last| last + GAP);
        let until = self.on_its_way.map(|(_, _, until)| until).max(apart).filter(|until| *until > now)?;
        let patient = |report: &AgentReport| matches!(report, AgentReport::Status { .. });
        (!reports.is_empty() && reports.len() < most && reports.iter().all(patient)).then_some(until)
    }

    /// These are sent.
    pub(crate) fn sent(&mut self, reports: &[AgentReport], now: Instant) {
        let mut statuses = reports.iter().filter_map(|report| match report {
            AgentReport::Status { launch, status } => Some((*launch, status.task_seq)),
            _ => None,
        });
        let count = statuses.clone().count();
        if let Some((launch, task_seq)) = statuses.next_back() {
            self.on_its_way = Some((launch, task_seq, now + PATIENCE));
            self.level = self.level_at(now) + count as f64;
            self.last = Some(now);
        }
    }

    fn level_at(&self, now: Instant) -> f64 {
        let quiet = self.last.map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
        (self.level - quiet.as_secs_f64() / SHARE.as_secs_f64()).max(0.0)
    }

    /// Statuses of a launch are committed up to a number. Confirmations come in the order of the statuses.
    pub(crate) fn confirmed(&mut self, launch: LaunchId, up_to: u32) {
        self.on_its_way.take_if(|(awaited, task_seq, _)| *awaited == launch && *task_seq <= up_to);
    }
}

#[cfg(test)]
mod tests {
    use proffer_types::{Reason, Source, Status, TaskState};

    use super::*;

    fn status(launch: u64, task_seq: u32) -> AgentReport {
        let mut status = Status::new(TaskState::Running, Reason::None, Source::Agent);
        status.task_seq = task_seq;
        AgentReport::Status { launch: LaunchId(launch), status }
    }

    #[test]
    fn on_a_quiet_node_nothing_waits() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        // Of a task that is ended: the second comes before the first is confirmed.
        let (killing, killed) = ([status(1, 2)], [status(1, 3)]);
        pace.sent(&killing, now);
        assert_eq!(pace.holds(&killed, 9, now), None);
        pace.sent(&killed, now);
        // Many tasks that end together are another thing.
        let many: Vec<AgentReport> = (2..8).map(|launch| status(launch, 2)).collect();
        pace.sent(&many, now);
        assert_eq!(pace.holds(&killed, 9, now), Some(now + PATIENCE));
        assert_eq!(pace.holds(&killed, 9, now + SHARE), None, "quiet again");
    }

    #[test]
    fn statuses_wait_for_the_confirmation_of_those_before_them() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        let (first, second) = ([status(1, 1), status(2, 4)], [status(1, 2)]);
        for n in 10..18 {
            pace.sent(&[status(n, 1)], now);
            pace.confirmed(LaunchId(n), 1);
        }
        assert_eq!(pace.holds(&first, 9, now), None, "nothing is on its way");
        pace.sent(&first, now);
        assert_eq!(pace.holds(&second, 9, now), Some(now + PATIENCE));
        assert_eq!(pace.holds(&second, 1, now), None, "as many as fit a message");
        assert_eq!(pace.holds(&[], 9, now), None);
        assert_eq!(pace.holds(&[status(1, 2), AgentReport::Pong { n: 1 }], 9, now), None);
        pace.confirmed(LaunchId(1), 9);
        pace.confirmed(LaunchId(2), 3);
        assert!(pace.holds(&second, 9, now).is_some(), "the last one is not confirmed");
        pace.confirmed(LaunchId(2), 4);
        assert_eq!(pace.holds(&second, 9, now), None);
        pace.sent(&second, now);
        assert_eq!(pace.holds(&first, 9, now + PATIENCE), None, "nobody confirms");
    }

    #[test]
    fn messages_of_a_busy_node_are_apart() {
        let (mut pace, mut now) = (Pace::default(), Instant::now());
        for n in 0..20 {
            pace.sent(&[status(n, 1)], now);
            pace.confirmed(LaunchId(n), 1);
        }
        let next = [status(20, 1)];
        assert_eq!(pace.holds(&next, 9, now), Some(now + GAP), "confirmed, and yet");
        now += SHARE * 10;
        pace.sent(&next, now);
        pace.confirmed(LaunchId(20), 1);
        assert_eq!(pace.holds(&next, 9, now), None, "it was quiet for a while");
    }
}
