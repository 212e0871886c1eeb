//! One launch, from its request to the day it is forgotten.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Instant;

use proffer_launcher::{Container, Limit as RawLimit, Sandbox};
use proffer_wire::supervisor::v1::launch_info::End;
use proffer_wire::supervisor::v1::to_agent::Message;
use proffer_wire::supervisor::v1::{
    Descriptor, Exited, Isolation, KillSent, Launch as Request, LaunchFailed, LaunchInfo, LaunchState,
    Launched, LimitKind, LogSettings,
};

use crate::logs::Rotation;

const FILE_BYTES_DEFAULT: u64 = 10 * 1024 * 1024;
const FILES_DEFAULT: u32 = 2;
const BYTES_PER_SECOND_DEFAULT: u64 = 32 * 1024 * 1024;
/// The most v1 hierarchies of one launch.
const CGROUP_PROCS_MAX: usize = 8;

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
    pub(crate) init_pid: i32,
    pub(crate) init_start_ticks: u64,
    pub(crate) kill_sent: KillSent,
    /// When SIGKILL follows.
    pub(crate) kill_at: Option<Instant>,
    pub(crate) started_unix_ms: u64,
    /// What init has said about the end, before it ended itself.
    pub(crate) said: Option<Said>,
    /// Bytes of stdout and stderr that were thrown away so far.
    pub(crate) dropped: [u64; 2],
}

/// What init said last.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Said {
    SetupFailed(proffer_launcher::Step, i32),
    ExecFailed(proffer_launcher::Step, i32),
    Exited(i32),
}

impl Launch {
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
            init_start_ticks: self.init_start_ticks,
            started_unix_ms: self.started_unix_ms,
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
            init_start_ticks: self.init_start_ticks,
            kill_sent: self.kill_sent.into(),
            end,
            started_unix_ms: self.started_unix_ms,
            ..LaunchInfo::default()
        }
    }

    /// How it ended, given init's own wait status.
    pub(crate) fn end(&self, init_status: i32, finished_unix_ms: u64) -> End {
        use proffer_wire::supervisor::v1::FailureKind;
        let exited = |wait_status, init_died| {
            End::Exited(Exited {
                launch_id: self.id,
                wait_status,
                init_died,
                kill_sent: self.kill_sent.into(),
                started_unix_ms: self.started_unix_ms,
                finished_unix_ms,
                ..Exited::default()
            })
        };
        let failed = |kind, step: &str, errno, message| {
            let failure = failure(self.id, kind, step, errno, message);
            let kill_sent = self.kill_sent.into();
            End::LaunchFailed(LaunchFailed { kill_sent, finished_unix_ms, ..failure })
        };
        match self.said {
            Some(Said::Exited(status)) => exited(status, false),
            Some(Said::SetupFailed(step, errno)) => {
                failed(FailureKind::Setup, step.name(), errno, "the container could not be made".into())
            }
            Some(Said::ExecFailed(step, errno)) => {
                failed(FailureKind::Exec, step.name(), errno, "the program could not be executed".into())
            }
            None if matches!(self.state, State::Starting) => {
                let text = format!("init ended before the program was executed (wait status {init_status})");
                failed(FailureKind::Setup, "init", 0, text)
            }
            None => exited(init_status, true),
        }
    }
}

/// A `LaunchFailed` whose message ends with the error's own words.
pub(crate) fn failure(
    launch_id: u64,
    kind: proffer_wire::supervisor::v1::FailureKind,
    step: &str,
    errno: i32,
    message: String,
) -> LaunchFailed {
    let message = match errno {
        0 => message,
        _ => format!("{message}: {step}: {}", std::io::Error::from_raw_os_error(errno)),
    };
    LaunchFailed { launch_id, kind: kind.into(), step: step.to_owned(), errno, message, ..Default::default() }
}

/// An end as the message that reports it.
pub(crate) fn message(end: End) -> Message {
    match end {
        End::Exited(exited) => Message::Exited(exited),
        End::LaunchFailed(failed) => Message::LaunchFailed(failed),
    }
}

/// A `Launch` with its descriptors sorted and its numbers checked.
pub(crate) struct Checked {
    pub(crate) request: Request,
    pub(crate) linux: bool,
    pub(crate) limits: Vec<RawLimit>,
    pub(crate) rotation: Rotation,
    pub(crate) log_dir: Option<Rc<OwnedFd>>,
    cgroup_dir: Option<OwnedFd>,
    cgroup_procs: Vec<OwnedFd>,
    sandbox: Option<(Descriptor, OwnedFd)>,
}

impl Checked {
    /// Parses a request; the error is a sentence for `Refused`.
    pub(crate) fn parse(request: Request, descriptors: Vec<OwnedFd>) -> Result<Checked, String> {
        if request.launch_id == 0 {
            return Err("launch_id is 0".into());
        }
        if request.argv.is_empty() {
            return Err("argv is empty".into());
        }
        if let Some(pair) = request.env.iter().find(|pair| pair.find('=').is_none_or(|at| at == 0)) {
            return Err(format!("env {pair:?} is not NAME=value"));
        }
        let linux = match request.isolation() {
            Isolation::Linux => true,
            Isolation::Process => false,
            Isolation::Unspecified => return Err("isolation is not set, or not known here".into()),
        };
        let mut checked = Checked {
            limits: limits(&request)?,
            rotation: rotation(request.logs.as_ref()),
            linux,
            log_dir: None,
            cgroup_dir: None,
            cgroup_procs: Vec::new(),
            sandbox: None,
            request,
        };
        checked.sort(descriptors)?;
        Ok(checked)
    }

    fn sort(&mut self, descriptors: Vec<OwnedFd>) -> Result<(), String> {
        let roles = self.request.descriptors().collect::<Vec<_>>();
        if roles.len() != descriptors.len() || roles.len() != self.request.descriptors.len() {
            return Err(format!("{} descriptors came, {} are named", descriptors.len(), roles.len()));
        }
        let mut seen = BTreeMap::<Descriptor, usize>::new();
        for (role, fd) in roles.into_iter().zip(descriptors) {
            let count = seen.entry(role).or_default();
            *count += 1;
            let most = if role == Descriptor::CgroupProcs { CGROUP_PROCS_MAX } else { 1 };
            if *count > most {
                return Err(format!("more than {most} of {}", role.as_str_name()));
            }
            match role {
                Descriptor::Unspecified => return Err("a descriptor of a kind not known here".into()),
                Descriptor::CgroupDir => self.cgroup_dir = Some(fd),
                Descriptor::CgroupProcs => self.cgroup_procs.push(fd),
                Descriptor::LogDir => self.log_dir = Some(Rc::new(fd)),
                Descriptor::SandboxDir | Descriptor::SandboxMount if self.sandbox.is_some() => {
                    return Err("two sandboxes".into());
                }
                Descriptor::MountDir => return Err("mounts are not known here".into()),
                Descriptor::SandboxMount if !self.linux => {
                    return Err("a sandbox mount is of no use to a plain process".into());
                }
                Descriptor::SandboxDir | Descriptor::SandboxMount => self.sandbox = Some((role, fd)),
            }
        }
        Ok(())
    }

    pub(crate) fn sandbox(&self) -> Option<Sandbox<'_>> {
        self.sandbox.as_ref().map(|(role, fd)| match role {
            Descriptor::SandboxMount => Sandbox::Mount(fd.as_fd()),
            _ => Sandbox::Dir(fd.as_fd()),
        })
    }

    pub(crate) fn cgroup_dir(&self) -> Option<BorrowedFd<'_>> {
        self.cgroup_dir.as_ref().map(AsFd::as_fd)
    }

    pub(crate) fn cgroup_procs(&self) -> Vec<BorrowedFd<'_>> {
        self.cgroup_procs.iter().map(AsFd::as_fd).collect()
    }
}

fn rotation(settings: Option<&LogSettings>) -> Rotation {
    let LogSettings { file_bytes, files, bytes_per_second } = settings.copied().unwrap_or_default();
    let or = |value: u64, default| if value == 0 { default } else { value };
    Rotation {
        file_bytes: or(file_bytes, FILE_BYTES_DEFAULT),
        files: if files == 0 { FILES_DEFAULT } else { files },
        bytes_per_second: or(bytes_per_second, BYTES_PER_SECOND_DEFAULT),
    }
}

fn limits(request: &Request) -> Result<Vec<RawLimit>, String> {
    let raw = |limit: &proffer_wire::supervisor::v1::Limit| {
        let resource = match limit.kind() {
            LimitKind::Core => libc::RLIMIT_CORE,
            LimitKind::Cpu => libc::RLIMIT_CPU,
            LimitKind::Data => libc::RLIMIT_DATA,
            LimitKind::Fsize => libc::RLIMIT_FSIZE,
            LimitKind::Memlock => libc::RLIMIT_MEMLOCK,
            LimitKind::Nofile => libc::RLIMIT_NOFILE,
            LimitKind::Nproc => libc::RLIMIT_NPROC,
            LimitKind::Stack => libc::RLIMIT_STACK,
            LimitKind::Unspecified => return Err("a limit of a kind not known here".to_owned()),
        };
        Ok(RawLimit { resource, soft: limit.soft, hard: limit.hard })
    };
    request.limits.iter().map(raw).collect()
}
