//! One launch, from its request to the day it is forgotten.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use proffer_launcher::Container;
use proffer_wire::supervisor::v1::launch_info::End;
use proffer_wire::supervisor::v1::to_agent::Message;
use proffer_wire::supervisor::v1::{
    Exited, FailureKind, KillCause, KillSent, LaunchFailed, LaunchInfo, LaunchState, Launched,
};

use crate::checks::Watch;
use crate::logs::LogTo;
use crate::request::Kept;

/// What the launch is doing.
pub(crate) enum State {
    /// Cloned; init has not said that the program was executed.
    Starting,
    /// The program was executed.
    Running,
    /// The program has ended or was never executed. Waiting for the end of its logs, then reported.
    Ended {
        /// How.
        end: End,
        /// When.
        ended: Instant,
        /// Until when its logs are waited for; `None` once it is reported.
        logs_until: Option<Instant>,
    },
}

/// One launch.
pub(crate) struct Launch {
    pub(crate) id: u64,
    /// The number in this launch's poll tokens.
    pub(crate) serial: u64,
    pub(crate) state: State,
    /// Present until init is reaped.
    pub(crate) container: Option<Container>,
    /// What a process that joins it needs to be like it; until it ends.
    pub(crate) kept: Option<Box<Kept>>,
    pub(crate) init_pid: i32,
    pub(crate) kill: Killed,
    /// When SIGKILL follows.
    pub(crate) kill_at: Option<Instant>,
    /// How long it may run, and when that is over, once it does.
    pub(crate) complete_after: Option<Duration>,
    /// See `complete_after`.
    pub(crate) complete_at: Option<Instant>,
    /// When its output is the pump's.
    pub(crate) hand_over_at: Option<Instant>,
    pub(crate) started_unix_ms: u64,
    /// What init has said about the end, before it ended itself: it says no more.
    pub(crate) said: Option<Said>,
    /// Bytes of stdout and stderr that were thrown away so far.
    pub(crate) dropped: [u64; 2],
    pub(crate) watches: Vec<Watch>,
    /// The first member of its group.
    pub(crate) group: Option<u64>,
    /// It waits for the others of its group before it executes its program.
    pub(crate) held: bool,
    /// Where its terminal is logged, until it has one.
    pub(crate) terminal_log: Option<LogTo>,
    /// The master's side of its terminal.
    pub(crate) terminal: Option<OwnedFd>,
    /// What a custom executor connects to.
    pub(crate) listener: Option<OwnedFd>,
    /// When it is looked at next.
    pub(crate) armed: Option<Instant>,
}

/// What was done to end it, and why.
#[derive(Clone, Debug, Default)]
pub(crate) struct Killed {
    /// The strongest signal that was sent.
    pub(crate) sent: KillSent,
    /// Why the first was.
    pub(crate) cause: KillCause,
    /// More about that, for people.
    pub(crate) message: String,
}

/// What init said last.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Said {
    SetupFailed(proffer_launcher::Step, i32),
    ExecFailed(proffer_launcher::Step, i32),
    Exited(i32),
}

impl Launch {
    /// One of which nothing is there yet.
    pub(crate) fn new(id: u64, serial: u64) -> Self {
        Launch {
            id,
            serial,
            state: State::Starting,
            container: None,
            kept: None,
            init_pid: 0,
            kill: Killed::default(),
            kill_at: None,
            complete_after: None,
            complete_at: None,
            hand_over_at: None,
            started_unix_ms: 0,
            said: None,
            dropped: [0; 2],
            watches: Vec::new(),
            group: None,
            held: false,
            terminal_log: None,
            terminal: None,
            listener: None,
            armed: None,
        }
    }

    /// When it wants to be looked at.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let watches = self.watches.iter().filter_map(Watch::deadline).min();
        let times = match self.state {
            State::Starting => [self.kill_at, None, None, None],
            State::Running => [self.kill_at, self.complete_at, self.hand_over_at, watches],
            State::Ended { logs_until, .. } => [logs_until, None, None, None],
        };
        times.into_iter().flatten().min()
    }

    /// The answer to a repeated `Launch`, if there is one yet.
    pub(crate) fn answer(&self) -> Option<Message> {
        match &self.state {
            State::Starting => None,
            State::Running => Some(self.launched()),
            State::Ended { end, logs_until: None, .. } => Some(message(end.clone())),
            // It ran, and how it ended is told soon.
            State::Ended { end: End::Exited(_), .. } => Some(self.launched()),
            State::Ended { .. } => None,
        }
    }

    pub(crate) fn launched(&self) -> Message {
        Message::Launched(Launched {
            launch_id: self.id,
            init_pid: self.init_pid,
            started_unix_ms: self.started_unix_ms,
            ..Launched::default()
        })
    }

    pub(crate) fn info(&self) -> LaunchInfo {
        let (state, end) = match &self.state {
            State::Starting => (LaunchState::Starting, None),
            State::Ended { end, logs_until: None, .. } => (LaunchState::Ended, Some(end.clone())),
            State::Ended { end: End::LaunchFailed(_), .. } => (LaunchState::Starting, None),
            State::Running | State::Ended { .. } => (LaunchState::Running, None),
        };
        LaunchInfo {
            launch_id: self.id,
            state: state.into(),
            init_pid: self.init_pid,
            kill_sent: self.kill.sent.into(),
            end,
            started_unix_ms: self.started_unix_ms,
            checks: self.watches.iter().filter_map(|watch| watch.last.clone()).collect(),
            ..LaunchInfo::default()
        }
    }

    /// How it ended, given init's own wait status.
    pub(crate) fn end(&self, init_status: i32, finished_unix_ms: u64) -> End {
        let exited = |wait_status, init_died| {
            End::Exited(Exited {
                launch_id: self.id,
                wait_status,
                init_died,
                kill_sent: self.kill.sent.into(),
                kill_cause: self.kill.cause.into(),
                kill_message: self.kill.message.clone(),
                started_unix_ms: self.started_unix_ms,
                finished_unix_ms,
                ..Exited::default()
            })
        };
        let failed = |kind, step: &str, errno, message| {
            let failure = failure(self.id, kind, step, errno, message);
            let (kill_sent, kill_cause) = (self.kill.sent.into(), self.kill.cause.into());
            End::LaunchFailed(LaunchFailed { kill_sent, kill_cause, finished_unix_ms, ..failure })
        };
        match self.said {
            Some(Said::Exited(status)) => exited(status, false),
            Some(Said::SetupFailed(step, errno)) => {
                failed(FailureKind::Setup, step.name(), errno, "the container could not be made".into())
            }
            Some(Said::ExecFailed(step, errno)) => {
                failed(FailureKind::Exec, step.name(), errno, "the program could not be executed".into())
            }
            None if matches!(self.state, State::Starting) && !self.kill.message.is_empty() => {
                failed(FailureKind::Setup, "init", 0, self.kill.message.clone())
            }
            None if matches!(self.state, State::Starting) => {
                let text = format!("init ended before the program was executed (wait status {init_status})");
                failed(FailureKind::Setup, "init", 0, text)
            }
            None => exited(init_status, true),
        }
    }
}

/// The longest sentence about a failure, in bytes.
const MESSAGE_MAX: usize = 1024;

/// A `LaunchFailed` whose message ends with the error's own words.
pub(crate) fn failure(
    launch_id: u64,
    kind: FailureKind,
    step: &str,
    errno: i32,
    message: String,
) -> LaunchFailed {
    let mut message = match errno {
        0 => message,
        _ => format!("{message}: {step}: {}", std::io::Error::from_raw_os_error(errno)),
    };
    // It may quote what was asked for.
    let end = message.floor_char_boundary(MESSAGE_MAX);
    message.truncate(end);
    LaunchFailed { launch_id, kind: kind.into(), step: step.to_owned(), errno, message, ..Default::default() }
}

/// An end as the message that reports it.
pub(crate) fn message(end: End) -> Message {
    match end {
        End::Exited(exited) => Message::Exited(exited),
        End::LaunchFailed(failed) => Message::LaunchFailed(failed),
    }
}

/// Whether it is the end of a program that did what it was to do.
pub(crate) fn is_well(end: &End) -> bool {
    matches!(end, End::Exited(exited) if exited.wait_status == 0)
}
