//! What the containerizer tells.

use proffer_types::{LaunchId, Reason};

use crate::CheckKind;

/// Something became true. Events of one launch come in the order in which it did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The payload's program runs. Told once per containerizer: again after a recovery.
    Started {
        /// The launch.
        launch: LaunchId,
        /// The isolation in force: `linux` or `process`.
        isolation: &'static str,
        /// Wall time of the start, for display (milliseconds since 1970).
        started_unix_ms: u64,
    },
    /// The container could not be made, or its program not executed. Nothing of it runs. Terminal.
    LaunchFailed {
        /// The launch.
        launch: LaunchId,
        /// `LaunchFailed`, `ExecFailed`, `UserRefused`, `ContainerRefused`, `LaunchInterrupted`, `KilledDuringLaunch`,
        /// or `GroupNotStarted` of one whose group could not be.
        reason: Reason,
        /// For people.
        message: String,
        /// 127 if the program was not found and 126 if it could not be executed, as a shell would say.
        exit_code: Option<i32>,
    },
    /// The launch was never begun, and the instance it was assigned to never will begin it: it may be assigned anew
    /// and launched again. The launch is unknown to the containerizer again.
    NotStarted {
        /// The launch.
        launch: LaunchId,
    },
    /// A check said something else than before, or the health check failed once more. Told once per containerizer of a
    /// container that had a result before a recovery.
    Checked {
        /// The launch.
        launch: LaunchId,
        /// Which check.
        kind: CheckKind,
        /// Whether it succeeded.
        ok: bool,
        /// Failures in a row that count; 0 if `ok`.
        consecutive_failures: u32,
        /// Why it failed, for people.
        message: String,
    },
    /// The payload ended and no process of the container is left. Terminal.
    Ended {
        /// The launch.
        launch: LaunchId,
        /// How.
        end: End,
    },
    /// A forgotten launch: its cgroup is gone, and its runtime records are, or will be when its supervisor hears it.
    Gone {
        /// The launch.
        launch: LaunchId,
    },
    /// A container has processes that survive SIGKILL (in uninterruptible sleep, say). It stays known, and `Ended`
    /// comes when they are gone. Told once per container.
    StuckKill {
        /// The launch.
        launch: LaunchId,
        /// How many processes.
        processes: usize,
    },
    /// The launch, or another of its group, was delivered to an instance that lives and has answered nothing for a while, and that is spared
    /// because other containers run under it. Whether it was begun is told when the instance answers or dies. Told once,
    /// and once more if its end is asked for meanwhile.
    Unanswered {
        /// The launch.
        launch: LaunchId,
    },
    /// During recovery: something unknown to the caller was ended, and nothing of it is left.
    OrphanRemoved {
        /// The launch.
        launch: LaunchId,
    },
    /// Recovery is complete.
    Recovered,
}

impl Event {
    /// The launch it is about, if it is about one.
    pub fn launch(&self) -> Option<LaunchId> {
        match self {
            Self::Started { launch, .. }
            | Self::LaunchFailed { launch, .. }
            | Self::NotStarted { launch }
            | Self::Checked { launch, .. }
            | Self::Ended { launch, .. }
            | Self::Gone { launch }
            | Self::StuckKill { launch, .. }
            | Self::Unanswered { launch }
            | Self::OrphanRemoved { launch } => Some(*launch),
            Self::Recovered => None,
        }
    }
}

/// How a container ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct End {
    /// How far the end is known.
    pub cause: Cause,
    /// The payload's exit code, if it exited.
    pub exit_code: Option<i32>,
    /// The signal that ended it, if one did.
    pub signal: Option<i32>,
    /// The kernel ended it for want of memory inside its limit.
    pub oom: Option<Oom>,
    /// Processes of the container that the kernel killed for want of memory, whatever became of the payload.
    pub oom_kills: u64,
    /// The most memory that it held at once (bytes), if measured.
    pub memory_peak_bytes: Option<u64>,
    /// The strongest signal that was sent because of a kill.
    pub kill_sent: KillSent,
    /// Why it was killed, if it was.
    pub kill_cause: KillCause,
    /// More about that, for people; empty if there is no more.
    pub kill_message: String,
    /// Bytes of its standard output that were thrown away: it wrote too fast, or the disk was full.
    pub stdout_dropped_bytes: u64,
    /// The same of its standard error.
    pub stderr_dropped_bytes: u64,
    /// Wall time of the start, for display (milliseconds since 1970); 0 if unknown.
    pub started_unix_ms: u64,
    /// Wall time of the end, for display (milliseconds since 1970).
    pub finished_unix_ms: u64,
}

/// How far a container's end is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cause {
    /// The payload's status is known.
    #[default]
    Exited,
    /// Its supervisor was lost while it ran; what was left of it was killed, and its own status is not known.
    SupervisorLost,
    /// Its supervisor was lost while it was being started; whether the payload ran is not known.
    Interrupted,
}

/// An end for want of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Oom {
    /// The most memory that it held at once (bytes).
    pub peak_bytes: u64,
    /// Its limit (bytes).
    pub limit_bytes: u64,
}

/// Why a container was first sent a signal to end it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum KillCause {
    /// It was not.
    #[default]
    None,
    /// By [`kill`](crate::Containerizer::kill) or [`forget`](crate::Containerizer::forget).
    Order,
    /// Its health check failed.
    Health,
    /// It ran for as long as it may.
    MaxCompletion,
    /// Another container of its group ended otherwise than by exit code 0, or was not started.
    Group,
}

/// The strongest signal that was sent to a container because of a kill.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum KillSent {
    /// None.
    #[default]
    None,
    /// SIGTERM.
    Term,
    /// SIGKILL.
    Kill,
}
