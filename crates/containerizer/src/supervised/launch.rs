//! One launch as the agent knows it, and what its end means.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use proffer_types::{LaunchId, Reason};
use proffer_wire::supervisor::v1::{self as pb, FailureKind};

use crate::cgroup::Counters;
use crate::{Cause, ContainerSpec, End, Event, InstanceId, KillCause, KillSent, Known, Oom};

/// How far it is.
#[derive(Debug)]
pub(super) enum Phase {
    /// To be sent.
    Queued,
    /// From the caller's records: its supervisor is to be asked.
    Asked,
    /// Sent, and not answered.
    Sent,
    /// Its program runs.
    Running,
    /// It has ended; what is left of its processes is being killed.
    Emptying(Emptying),
    /// Nothing of it runs, and its end has been told.
    Ended,
    /// Forgotten: what held it is being removed.
    Removing {
        /// How often that was tried.
        tries: u32,
    },
}

/// A container that is being emptied.
#[derive(Debug)]
pub(super) struct Emptying {
    pub(super) terminal: Terminal,
    pub(super) since: Instant,
    pub(super) tries: u32,
    pub(super) stuck_told: bool,
}

/// How it ended.
#[derive(Clone, Debug)]
pub(super) enum Terminal {
    /// The supervisor saw the payload end.
    Exited(pb::Exited),
    /// The supervisor saw the launch fail.
    Failed(pb::LaunchFailed),
    /// Nobody saw it.
    Lost(Cause),
    /// We killed it past its supervisor.
    Killed,
}

/// What a launch shares with others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) first: LaunchId,
    pub(super) size: u32,
}

/// One launch.
#[derive(Debug)]
pub(super) struct Launch {
    pub(super) instance: InstanceId,
    pub(super) memory_bytes: u64,
    /// Processor time (milli-cpus) and memory that it was to have, while more memory than that is in use.
    pub(super) resize_to: Option<(u64, u64)>,
    /// What to run, until it runs.
    pub(super) spec: Option<Box<ContainerSpec>>,
    pub(super) phase: Phase,
    pub(super) told_started: bool,
    /// The caller has its start on record.
    pub(super) was_started: bool,
    pub(super) started_unix_ms: u64,
    /// When SIGKILL is due, if it is to end.
    pub(super) kill_at: Option<Instant>,
    /// We killed its processes ourselves.
    pub(super) killed_past_supervisor: bool,
    pub(super) forget: bool,
    /// This life of the agent launched it.
    pub(super) own: bool,
    /// Its group, as far as this life of the agent launched it.
    pub(super) group: Option<Group>,
    /// It is ended because another of its group cannot be started.
    pub(super) group_failed: bool,
    /// Nobody has it on record.
    pub(super) orphan: bool,
    /// How often it was told that its supervisor does not answer.
    pub(super) told_unanswered: u8,
}

impl Launch {
    pub(super) fn new(instance: InstanceId, phase: Phase) -> Self {
        Self {
            instance,
            memory_bytes: 0,
            resize_to: None,
            spec: None,
            phase,
            told_started: false,
            was_started: false,
            started_unix_ms: 0,
            kill_at: None,
            killed_past_supervisor: false,
            forget: false,
            own: false,
            group: None,
            group_failed: false,
            orphan: false,
            told_unanswered: 0,
        }
    }

    pub(super) fn of_spec(spec: ContainerSpec) -> Self {
        let launch = Self::new(spec.instance, Phase::Queued);
        let memory_bytes = spec.memory_limit().unwrap_or(0);
        Self { memory_bytes, spec: Some(Box::new(spec)), own: true, ..launch }
    }

    pub(super) fn of_known(known: &Known) -> Self {
        let phase = if known.ended { Phase::Ended } else { Phase::Asked };
        Self {
            memory_bytes: known.memory_bytes,
            was_started: known.started,
            ..Self::new(known.instance, phase)
        }
    }

    pub(super) fn orphan(instance: InstanceId, phase: Phase) -> Self {
        Self { forget: true, orphan: true, ..Self::new(instance, phase) }
    }

    /// Whether its payload may run, or may come to.
    pub(super) fn is_open(&self) -> bool {
        match self.phase {
            Phase::Queued | Phase::Asked | Phase::Sent | Phase::Running => true,
            Phase::Emptying(_) | Phase::Ended | Phase::Removing { .. } => false,
        }
    }

    pub(super) fn empty(&mut self, terminal: Terminal) {
        let emptying = Emptying { terminal, since: Instant::now(), tries: 0, stuck_told: false };
        self.phase = Phase::Emptying(emptying);
    }

    /// What to tell of a terminal, once nothing of the container runs.
    pub(super) fn event(&self, id: LaunchId, terminal: &Terminal, counters: Counters) -> Event {
        let mut end = End {
            oom_kills: counters.oom_kills,
            memory_peak_bytes: counters.memory_peak_bytes,
            started_unix_ms: self.started_unix_ms,
            finished_unix_ms: unix_ms(),
            ..End::default()
        };
        match terminal {
            Terminal::Failed(failed) => return self.failed(id, failed, counters),
            Terminal::Exited(exited) => {
                let status = exited.wait_status;
                if libc::WIFSIGNALED(status) {
                    end.signal = Some(libc::WTERMSIG(status));
                } else {
                    end.exit_code = Some(libc::WEXITSTATUS(status));
                }
                end.kill_sent = kill_sent(exited.kill_sent());
                end.kill_cause = kill_cause(exited.kill_cause(), end.kill_sent);
                end.kill_message.clone_from(&exited.kill_message);
                end.stdout_dropped_bytes = exited.stdout_dropped_bytes;
                end.stderr_dropped_bytes = exited.stderr_dropped_bytes;
                end.started_unix_ms = exited.started_unix_ms;
                end.finished_unix_ms = exited.finished_unix_ms;
            }
            Terminal::Lost(cause) => {
                end.cause = *cause;
                end.signal = Some(libc::SIGKILL);
            }
            Terminal::Killed => end.signal = Some(libc::SIGKILL),
        }
        if self.killed_past_supervisor && self.kill_at.is_some() {
            end.kill_sent = KillSent::Kill;
            if end.kill_cause == KillCause::None {
                end.kill_cause = KillCause::Order;
            }
        }
        // The counter alone does not say that it was the payload: a child that was killed for want of memory raises
        // it too, and the payload may go on. And a SIGKILL of ours is no want of memory.
        let ours =
            end.kill_sent == KillSent::Kill || self.killed_past_supervisor || end.cause != Cause::Exited;
        if end.signal == Some(libc::SIGKILL) && counters.oom_kills > 0 && !ours {
            let peak_bytes = counters.memory_peak_bytes.unwrap_or(self.memory_bytes);
            end.oom = Some(Oom { peak_bytes, limit_bytes: self.memory_bytes });
        }
        Event::Ended { launch: id, end }
    }

    fn failed(&self, id: LaunchId, failed: &pb::LaunchFailed, counters: Counters) -> Event {
        let killed = self.kill_at.is_some() || failed.kill_sent() > pb::KillSent::None;
        let (reason, exit_code) = match failed.kind() {
            _ if self.group_failed || failed.kill_cause() == pb::KillCause::Group => {
                (Reason::GroupNotStarted, None)
            }
            _ if killed => (Reason::KilledDuringLaunch, None),
            FailureKind::Exec if failed.errno == libc::ENOENT => (Reason::ExecFailed, Some(127)),
            FailureKind::Exec => (Reason::ExecFailed, Some(126)),
            FailureKind::Setup | FailureKind::Unspecified => (Reason::LaunchFailed, None),
        };
        let mut message = failed.message.clone();
        if counters.oom_kills > 0 && !killed {
            message.push_str(&format!(
                "; the kernel killed it for want of memory: its limit of {} bytes is too small to start it in",
                self.memory_bytes
            ));
        }
        Event::LaunchFailed { launch: id, reason, message, exit_code }
    }

    /// How long a kill has left.
    pub(super) fn grace_left(&self, now: Instant) -> Option<Duration> {
        self.kill_at.map(|at| at.saturating_duration_since(now))
    }
}

fn kill_sent(sent: pb::KillSent) -> KillSent {
    match sent {
        pb::KillSent::None => KillSent::None,
        pb::KillSent::Term => KillSent::Term,
        pb::KillSent::Kill => KillSent::Kill,
    }
}

fn kill_cause(cause: pb::KillCause, sent: KillSent) -> KillCause {
    match cause {
        // A supervisor of the first release kills for one cause only.
        pb::KillCause::None if sent > KillSent::None => KillCause::Order,
        pb::KillCause::None => KillCause::None,
        pb::KillCause::Order => KillCause::Order,
        pb::KillCause::Health => KillCause::Health,
        pb::KillCause::MaxCompletion => KillCause::MaxCompletion,
        pb::KillCause::Group => KillCause::Group,
    }
}

/// Wall time for display.
pub(super) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(wait_status: i32, sent: pb::KillSent, oom_kills: u64) -> End {
        let mut launch = Launch::new(InstanceId(1), Phase::Running);
        launch.memory_bytes = 64;
        let exited = pb::Exited { wait_status, kill_sent: sent.into(), ..Default::default() };
        let counters = Counters { oom_kills, memory_peak_bytes: Some(60) };
        match launch.event(LaunchId(1), &Terminal::Exited(exited), counters) {
            Event::Ended { end, .. } => end,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn want_of_memory_needs_signal_counter_and_no_kill_of_ours() {
        let oom = Some(Oom { peak_bytes: 60, limit_bytes: 64 });
        assert_eq!(ended(9, pb::KillSent::None, 1).oom, oom);
        assert_eq!(ended(9, pb::KillSent::Term, 1).oom, oom);
        assert_eq!(ended(9, pb::KillSent::Kill, 1).oom, None);
        assert_eq!(ended(9, pb::KillSent::None, 0).oom, None);
        let survived = ended(0, pb::KillSent::None, 1);
        assert_eq!((survived.oom, survived.exit_code, survived.oom_kills), (None, Some(0), 1));
        assert_eq!(ended(7 << 8, pb::KillSent::None, 0).exit_code, Some(7));
    }

    #[test]
    fn a_program_that_is_not_there_is_127() {
        let launch = Launch::new(InstanceId(1), Phase::Sent);
        let failed = |kind: FailureKind, errno| {
            let failed = pb::LaunchFailed { kind: kind.into(), errno, ..Default::default() };
            match launch.event(LaunchId(1), &Terminal::Failed(failed), Counters::default()) {
                Event::LaunchFailed { reason, exit_code, .. } => (reason, exit_code),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(failed(FailureKind::Exec, libc::ENOENT), (Reason::ExecFailed, Some(127)));
        assert_eq!(failed(FailureKind::Exec, libc::EACCES), (Reason::ExecFailed, Some(126)));
        assert_eq!(failed(FailureKind::Setup, libc::ENOENT), (Reason::LaunchFailed, None));
    }
}
