//! What a supervisor does for a container besides starting it.

use std::fmt;
use std::os::fd::OwnedFd;

/// What a supervisor does for a container besides starting it. It goes on while there is no agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Supervision {
    /// Ends the container when it fails.
    pub health: Option<HealthCheck>,
    /// Tells whether it is ready.
    pub readiness: Option<Check>,
    /// It is killed, without grace, when it has run for this long (milliseconds); 0 for never.
    pub max_completion_ms: u64,
    /// The grace of kills that the supervisor decides itself (milliseconds).
    pub kill_grace_ms: u64,
    /// It is a custom executor, which finds its socket at
    /// [`executor_socket`](crate::Containerizer::executor_socket).
    pub executor: bool,
    /// Its standard input, output and error are a terminal of this size.
    pub terminal: Option<TerminalSize>,
}

/// A look at a running container, repeated: by a process in its namespaces and cgroup, as its user. Only the last
/// result is kept; each change is told by [`Event::Checked`](crate::Event::Checked).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What is tried.
    pub probe: Probe,
    /// From the start to the first try (milliseconds).
    pub delay_ms: u64,
    /// From the end of a try to the next (milliseconds); not 0.
    pub interval_ms: u64,
    /// A try that takes longer is ended and has failed (milliseconds); not 0.
    pub timeout_ms: u64,
}

/// What a check tries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// The program exits with 0; with the container's environment.
    Command(Vec<String>),
    /// An HTTP/1.1 GET to the loopback address is answered by 200 to 399.
    Http {
        /// Where.
        port: u16,
        /// With its leading `/`.
        path: String,
    },
    /// The loopback address can be connected to.
    Tcp {
        /// Where.
        port: u16,
    },
    /// `grpc.health.v1.Health/Check` over plaintext to the loopback address answers SERVING.
    Grpc {
        /// Where.
        port: u16,
        /// Empty for the server as a whole.
        service: String,
    },
}

/// A check that ends the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The check.
    pub check: Check,
    /// Failures this soon after the start do not count, until the first success (milliseconds).
    pub grace_ms: u64,
    /// Failures in a row that end the container; not 0.
    pub failures: u32,
}

/// Which of a container's two checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CheckKind {
    /// Ends the container.
    Health,
    /// Tells.
    Readiness,
}

/// The size of a terminal in characters; 0 for 24 rows of 80 columns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub cols: u16,
}

/// Names a program that was run in a container, in this life of the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExecId(pub u64);

/// A program to run in a running container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecSpec {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// The whole environment; none at all for the container's own.
    pub env: Vec<(String, String)>,
    /// Where it starts; empty for where the container's program did.
    pub working_directory: String,
    /// With a terminal of its own instead of three pipes.
    pub terminal: Option<TerminalSize>,
}

/// What becomes of a program that was run in a container.
#[derive(Debug)]
pub enum ExecEvent {
    /// It runs, and these are its other ends. When they are dropped it sees end of file, or its terminal hang up.
    Started(Stdio),
    /// It does not run. Nothing follows.
    Failed {
        /// Why, for people.
        message: String,
        /// 127 if the program was not found, 126 if it could not be executed; `None` if it was something else.
        exit_code: Option<i32>,
    },
    /// It ended. Nothing follows.
    Exited {
        /// Its exit code, if it exited.
        exit_code: Option<i32>,
        /// The signal that ended it, if one did.
        signal: Option<i32>,
    },
    /// What becomes of it will not be known: its supervisor was lost, or lost the agent, and ends it. Nothing follows.
    Lost,
}

/// The other ends of a program's standard input, output and error. All are blocking.
#[derive(Debug)]
pub enum Stdio {
    /// The master's side of its terminal.
    Terminal(OwnedFd),
    /// Pipes.
    Pipes {
        /// To write to.
        stdin: OwnedFd,
        /// To read from.
        stdout: OwnedFd,
        /// To read from.
        stderr: OwnedFd,
    },
}

/// Hears what becomes of a program, on a thread that must not be kept waiting; dropped after the last event.
pub type ExecSink = Box<dyn FnMut(ExecEvent) + Send>;

/// Hears the answer to a question, on a thread that must not be kept waiting.
pub type Answer<T> = Box<dyn FnOnce(Result<T, NotThere>) + Send>;

/// What was asked for is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotThere(pub String);

impl fmt::Display for NotThere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotThere {}

/// Sets the size of a terminal by its master's side; its programs are told by SIGWINCH.
pub fn resize(terminal: impl std::os::fd::AsFd, size: TerminalSize) -> std::io::Result<()> {
    use std::os::fd::AsRawFd;
    let TerminalSize { rows, cols } = size.or_default();
    let size = libc::winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the size is read only.
    match unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

impl TerminalSize {
    /// With the default for what is 0.
    pub(crate) fn or_default(self) -> Self {
        let or = |value, default| if value == 0 { default } else { value };
        Self { rows: or(self.rows, 24), cols: or(self.cols, 80) }
    }
}
