//! Which exit code says what became of a task.

use proffer_types::{Reason, Status, TaskState};

/// Proffer could not start the task.
pub(crate) const NOT_STARTED: u8 = 125;
/// The user interrupted.
pub(crate) const INTERRUPTED: u8 = 130;
/// Nobody reads stdout any more: what a program that died of SIGPIPE leaves.
pub(crate) const BROKEN_PIPE: u8 = 141;
/// SIGTERM.
pub(crate) const TERMINATED: u8 = 143;

/// The code of a task's final status: its own, 128+n after signal n, 137 for want of memory, 125 if it was never
/// started, 126 or 127 as in sh, else 1.
pub(crate) fn code(status: &Status) -> u8 {
    if status.state == TaskState::Finished {
        return 0;
    }
    let own = status.exit_code.and_then(|code| u8::try_from(code).ok()).filter(|code| *code != 0);
    let signal = status
        .signal
        .and_then(|signal| u8::try_from(signal).ok())
        .filter(|signal| (1..=127).contains(signal));
    match status.reason {
        Reason::OutOfMemory => 137,
        Reason::ExecFailed => own.unwrap_or(127),
        Reason::LaunchFailed
        | Reason::LaunchInterrupted
        | Reason::UserRefused
        | Reason::Unsupported
        | Reason::ContainerRefused
        | Reason::GroupNotStarted
        | Reason::ExecutorUnregistered
        | Reason::AgentUnreachable
        | Reason::KilledDuringLaunch => NOT_STARTED,
        // As timeout(1) says it.
        Reason::MaxCompletion => 124,
        _ if matches!(status.state, TaskState::Dropped | TaskState::Error) => NOT_STARTED,
        Reason::None
        | Reason::ExitCode
        | Reason::Signal
        | Reason::LaunchLost
        | Reason::SupervisorLost
        | Reason::HostRebooted
        | Reason::AgentLost
        | Reason::AgentExpired
        | Reason::AgentReturned
        | Reason::KillRequested
        | Reason::KilledByOperator
        | Reason::FrameworkRemoved
        | Reason::Unhealthy
        | Reason::CheckChanged
        | Reason::GroupEnded
        | Reason::ExecutorEnded
        | Reason::ExecutorMisbehaved
        | Reason::Reconciliation => match (own, signal) {
            (Some(code), _) => code,
            (None, Some(signal)) => 128 + signal,
            (None, None) if status.state == TaskState::Killed => TERMINATED,
            (None, None) => 1,
        },
    }
}

/// What became of a task, in words; empty if its exit code says it all.
pub(crate) fn words(status: &Status) -> String {
    let why = match (status.reason, status.exit_code, status.signal) {
        (Reason::ExitCode | Reason::None, Some(code), _) => format!("exit code {code}"),
        (Reason::Signal | Reason::None, _, Some(signal)) => format!("signal {signal}"),
        (Reason::None, None, None) => String::new(),
        (reason, _, _) => reason.name().to_owned(),
    };
    let parts = [status.state.name().to_owned(), why, crate::render::text::clean(&status.message)];
    let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    parts.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proffer_types::Source;

    fn status(state: TaskState, reason: Reason, exit_code: Option<i32>, signal: Option<i32>) -> Status {
        Status { exit_code, signal, ..Status::new(state, reason, Source::Task) }
    }

    #[test]
    fn codes_are_those_of_the_shell() {
        let cases = [
            (status(TaskState::Finished, Reason::None, Some(0), None), 0),
            (status(TaskState::Failed, Reason::ExitCode, Some(7), None), 7),
            (status(TaskState::Failed, Reason::ExitCode, Some(255), None), 255),
            (status(TaskState::Failed, Reason::Signal, None, Some(11)), 139),
            (status(TaskState::Failed, Reason::OutOfMemory, None, Some(9)), 137),
            (status(TaskState::Failed, Reason::OutOfMemory, Some(1), None), 137),
            (status(TaskState::Failed, Reason::LaunchFailed, None, None), 125),
            (status(TaskState::Failed, Reason::UserRefused, None, None), 125),
            (status(TaskState::Failed, Reason::ExecFailed, Some(126), None), 126),
            (status(TaskState::Failed, Reason::ExecFailed, None, None), 127),
            (status(TaskState::Dropped, Reason::AgentUnreachable, None, None), 125),
            (status(TaskState::Error, Reason::None, None, None), 125),
            (status(TaskState::Killed, Reason::KilledByOperator, None, Some(15)), 143),
            (status(TaskState::Killed, Reason::KilledByOperator, None, Some(9)), 137),
            (status(TaskState::Killed, Reason::KillRequested, None, None), 143),
            (status(TaskState::Killed, Reason::KilledByOperator, Some(3), None), 3),
            (status(TaskState::Failed, Reason::SupervisorLost, None, None), 1),
            (status(TaskState::GoneByOperator, Reason::AgentExpired, None, None), 1),
        ];
        for (status, expected) in cases {
            assert_eq!(code(&status), expected, "{status:?}");
        }
    }
}
