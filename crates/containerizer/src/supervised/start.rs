//! Starting a supervisor's process.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

use proffer_types::FrameworkId;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::dirs::Dirs;
use crate::{Error, InstanceId, Options};

/// How long a supervisor may take until it listens.
const START_MAX: Duration = Duration::from_secs(30);
/// How much of its complaint is kept.
const COMPLAINT_MAX: usize = 2048;

/// A supervisor on its way. The process started here ends as soon as the supervisor, its child in a session of its
/// own, listens: so the supervisor is nobody's child, neither waited for nor lost with the agent.
#[derive(Debug)]
pub(crate) struct Starting {
    child: Child,
    stderr: Option<ChildStderr>,
    pidfd: OwnedFd,
    pub(crate) deadline: Instant,
}

impl Starting {
    /// Starts it inside the group whose `cgroup.procs` are `entries`.
    pub(crate) fn spawn(
        options: &Options,
        dirs: &Dirs,
        instance: InstanceId,
        framework: FrameworkId,
        entries: Vec<File>,
    ) -> Result<Self, Error> {
        let mut command = Command::new(&options.executor);
        command.arg("--socket").arg(dirs.socket(instance)).arg("--runtime-dir").arg(dirs.instance(instance));
        command.args(["--instance", &instance.to_string(), "--framework", &format!("{:016x}", framework.0)]);
        command.args(["--isolation", options.isolation.name()]);
        for cover in [&dirs.work, &dirs.runtime].into_iter().chain(&options.covers) {
            command.arg("--cover").arg(cover);
        }
        command
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        // SAFETY: only write(2) and close_range(2) are called between fork and exec, on descriptors that live as
        // long as the closure.
        unsafe { command.pre_exec(move || enter(&entries)) };
        let failed = |source| Error::Path { operation: "start", path: options.executor.clone(), source };
        let mut child = command.spawn().map_err(failed)?;
        let stderr = child.stderr.take();
        let pid = Pid::from_child(&child);
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Self { child, stderr, pidfd, deadline: Instant::now() + START_MAX }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(failed(error.into()))
            }
        }
    }

    /// Readable when [`outcome`](Self::outcome) has something to say.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// `Ok(true)` once it listens; why not, if it will not.
    pub(crate) fn outcome(&mut self) -> Result<bool, String> {
        match self.child.try_wait() {
            Ok(Some(status)) if status.success() => Ok(true),
            Ok(Some(status)) => Err(format!("it ended with {status}: {}", self.complaint())),
            Ok(None) if Instant::now() < self.deadline => Ok(false),
            Ok(None) => Err(format!("it did not listen within {} s", START_MAX.as_secs())),
            Err(error) => Err(format!("it cannot be waited for: {error}")),
        }
    }

    /// What it wrote, without waiting for more.
    fn complaint(&mut self) -> String {
        let Some(mut stderr) = self.stderr.take() else { return String::new() };
        // Its own children may hold the pipe open.
        let _ = rustix::io::ioctl_fionbio(&stderr, true);
        let mut text = vec![0; COMPLAINT_MAX];
        let length = stderr.read(&mut text).unwrap_or(0);
        String::from_utf8_lossy(&text[..length]).trim().to_owned()
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        // A starter that has ended is reaped; one that hangs is ended first.
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Between fork and exec: enters the group, and lets nothing but the standard streams through.
fn enter(entries: &[File]) -> io::Result<()> {
    for entry in entries {
        // SAFETY: one byte of static memory; `0` is whoever writes it.
        if unsafe { libc::write(entry.as_raw_fd(), c"0".as_ptr().cast(), 1) } != 1 {
            return Err(io::Error::last_os_error());
        }
    }
    // Marked only: the pipe that tells of a failed exec is among them.
    // SAFETY: integers only.
    match unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
