//! What a launch asks for, checked, and what is kept of it for as long as it runs.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use proffer_launcher::seccomp::Program;
use proffer_launcher::{self as launcher, Limit as RawLimit, Mount, Sandbox, UserNamespace, WindowSize};
use proffer_wire::supervisor::v1::{Descriptor, Group, Isolation, Launch as Request, LimitKind, LogSettings};

use crate::checks::Watch;
use crate::logs::LogTo;
use crate::pump_protocol::Rotation;
use crate::users::Users;

const FILE_BYTES_DEFAULT: u64 = 10 * 1024 * 1024;
const FILES_DEFAULT: u32 = 2;
const BYTES_PER_SECOND_DEFAULT: u64 = 32 * 1024 * 1024;
/// The most v1 hierarchies of one launch.
const CGROUP_PROCS_MAX: usize = 12;
/// The most launches of a group.
const GROUP_MAX: u32 = 256;

/// A `Launch` with its descriptors sorted and its numbers checked.
pub(crate) struct Checked {
    pub(crate) id: u64,
    pub(crate) argv: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) hostname: String,
    pub(crate) log_to: Option<LogTo>,
    pub(crate) kept: Box<Kept>,
    pub(crate) watches: Vec<Watch>,
    pub(crate) group: Option<Group>,
    pub(crate) executor: bool,
    pub(crate) terminal: Option<WindowSize>,
    pub(crate) max_completion_ms: u64,
    cgroups: Cgroups,
    sandbox: Option<(Descriptor, OwnedFd)>,
    mounts: Vec<(OwnedFd, String, bool)>,
}

/// What a process that joins the container needs to be like it.
pub(crate) struct Kept {
    pub(crate) linux: bool,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) env: Packed,
    pub(crate) working_directory: String,
    pub(crate) limits: Vec<RawLimit>,
    pub(crate) seccomp: Rc<[Program]>,
    pub(crate) user_namespace: Option<UserNamespace>,
    /// Nothing but that task was ever in it, and the default filter let it make no keys there.
    pub(crate) leaves_namespace_clean: bool,
    /// Of a plain process, which reaches it by descriptor.
    pub(crate) sandbox: Option<OwnedFd>,
    /// Kept open for checks alone.
    pub(crate) cgroups: Option<Cgroups>,
    /// The grace of kills that are decided here.
    pub(crate) kill_grace_ms: u64,
}

/// An environment in one piece: a node has many tasks and few that are looked into.
pub(crate) struct Packed(Box<str>);

impl Packed {
    fn of(env: &[String]) -> Self {
        // What holds a NUL itself is not launched.
        Packed(env.join("\0").into())
    }

    pub(crate) fn unpack(&self) -> Vec<String> {
        self.0.split('\0').filter(|pair| !pair.is_empty()).map(str::to_owned).collect()
    }
}

impl Kept {
    /// Its user as the host numbers them.
    pub(crate) fn host_ids(&self) -> (u32, u32) {
        let host = |id| self.user_namespace.as_ref().and_then(|users| users.host_id(id)).unwrap_or(id);
        (host(self.uid), host(self.gid))
    }
}

/// What a process enters a container's cgroups by.
#[derive(Default)]
pub(crate) struct Cgroups {
    dir: Option<OwnedFd>,
    procs: Vec<OwnedFd>,
}

impl Cgroups {
    /// Takes a descriptor, if it is of a kind that belongs here.
    fn take(&mut self, role: Descriptor, fd: OwnedFd) -> Result<(), OwnedFd> {
        match role {
            Descriptor::CgroupDir => self.dir = Some(fd),
            Descriptor::CgroupProcs => self.procs.push(fd),
            _ => return Err(fd),
        }
        Ok(())
    }

    /// Those of an `Exec`.
    pub(crate) fn of(roles: &[i32], descriptors: Vec<OwnedFd>) -> Result<Self, String> {
        if roles.len() != descriptors.len() {
            return Err(format!("{} descriptors came, {} are named", descriptors.len(), roles.len()));
        }
        let mut cgroups = Cgroups::default();
        for (role, fd) in roles.iter().zip(descriptors) {
            let role = Descriptor::try_from(*role).unwrap_or_default();
            cgroups.take(role, fd).map_err(|_| "a descriptor that is no cgroup's".to_owned())?;
        }
        Ok(cgroups)
    }

    pub(crate) fn dir(&self) -> Option<BorrowedFd<'_>> {
        self.dir.as_ref().map(AsFd::as_fd)
    }

    pub(crate) fn procs(&self) -> Vec<BorrowedFd<'_>> {
        self.procs.iter().map(AsFd::as_fd).collect()
    }
}

impl Checked {
    /// Parses a request; the error is a sentence for `Refused`.
    pub(crate) fn parse(
        request: Request,
        descriptors: Vec<OwnedFd>,
        users: &mut Users,
    ) -> Result<Checked, String> {
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
        let mut sorted = Sorted::default();
        sorted.sort(&request, linux, descriptors)?;
        let watches = watches(&request)?;
        let given = sorted.user_namespace.take();
        let leaves_namespace_clean = given.is_none() && request.seccomp.is_empty();
        let user_namespace = user_namespace(&request, linux, given, users)?;
        let group = request.group.filter(|group| group.first != 0 && (2..=GROUP_MAX).contains(&group.size));
        if group.is_none() && request.group.is_some() {
            return Err(format!("a group has a first member and 2 to {GROUP_MAX} of them"));
        }
        let kept = Kept {
            linux,
            uid: request.uid,
            gid: request.gid,
            limits: limits(&request)?,
            seccomp: seccomp(&request, linux)?,
            user_namespace,
            leaves_namespace_clean,
            sandbox: None,
            cgroups: None,
            kill_grace_ms: request.kill_grace_ms,
            env: Packed::of(&request.env),
            working_directory: request.working_directory,
        };
        let size =
            |value: u32, default| if value == 0 { default } else { value.try_into().unwrap_or(u16::MAX) };
        let rotation = rotation(request.logs.as_ref());
        Ok(Checked {
            id: request.launch_id,
            argv: request.argv,
            env: request.env,
            hostname: request.hostname,
            log_to: sorted.log_dir.map(|dir| LogTo { dir, rotation }),
            kept: Box::new(kept),
            watches,
            group,
            executor: request.executor,
            terminal: request
                .tty
                .then(|| WindowSize { rows: size(request.rows, 24), columns: size(request.cols, 80) }),
            max_completion_ms: request.max_completion_ms,
            cgroups: sorted.cgroups,
            sandbox: sorted.sandbox,
            mounts: sorted.mounts,
        })
    }

    pub(crate) fn linux(&self) -> bool {
        self.kept.linux
    }

    pub(crate) fn sandbox(&self) -> Option<Sandbox<'_>> {
        self.sandbox.as_ref().map(|(role, fd)| match role {
            Descriptor::SandboxMount => Sandbox::Mount(fd.as_fd()),
            _ => Sandbox::Dir(fd.as_fd()),
        })
    }

    pub(crate) fn cgroups(&self) -> &Cgroups {
        &self.cgroups
    }

    /// What it is given beside its sandbox, and with `executor` that directory for its socket.
    pub(crate) fn mounts<'a>(&'a self, executor: Option<BorrowedFd<'a>>) -> Vec<Mount<'a>> {
        let given = self.mounts.iter().map(|(fd, target, read_only)| Mount {
            source: Sandbox::Dir(fd.as_fd()),
            target,
            read_only: *read_only,
        });
        let socket = executor.map(|dir| Mount {
            source: Sandbox::Dir(dir),
            target: launcher::EXECUTOR_PATH,
            read_only: true,
        });
        given.chain(socket).collect()
    }

    /// Gives up everything but what is kept while it runs.
    pub(crate) fn into_kept(self) -> (Box<Kept>, Vec<Watch>) {
        let mut kept = self.kept;
        if kept.linux && kept.working_directory.is_empty() && self.sandbox.is_some() {
            kept.working_directory = launcher::SANDBOX_PATH.to_owned();
        }
        kept.sandbox = self.sandbox.filter(|_| !kept.linux).map(|(_, fd)| fd);
        kept.cgroups = (!self.watches.is_empty()).then_some(self.cgroups);
        (kept, self.watches)
    }
}

/// The descriptors of a launch by what they are.
#[derive(Default)]
struct Sorted {
    log_dir: Option<OwnedFd>,
    cgroups: Cgroups,
    sandbox: Option<(Descriptor, OwnedFd)>,
    mounts: Vec<(OwnedFd, String, bool)>,
    user_namespace: Option<OwnedFd>,
}

impl Sorted {
    fn sort(&mut self, request: &Request, linux: bool, descriptors: Vec<OwnedFd>) -> Result<(), String> {
        let roles = request.descriptors().collect::<Vec<_>>();
        if roles.len() != descriptors.len() || roles.len() != request.descriptors.len() {
            return Err(format!("{} descriptors came, {} are named", descriptors.len(), roles.len()));
        }
        let mut targets = request.mounts.iter();
        let mut seen = BTreeMap::<Descriptor, usize>::new();
        for (role, fd) in roles.into_iter().zip(descriptors) {
            let count = seen.entry(role).or_default();
            *count += 1;
            let most = match role {
                Descriptor::CgroupProcs => CGROUP_PROCS_MAX,
                Descriptor::MountDir => launcher::MOUNTS_MAX,
                _ => 1,
            };
            if *count > most {
                return Err(format!("more than {most} of {}", role.as_str_name()));
            }
            let only_linux =
                matches!(role, Descriptor::SandboxMount | Descriptor::MountDir | Descriptor::UserNamespace);
            if only_linux && !linux {
                return Err(format!("{} is of no use to a plain process", role.as_str_name()));
            }
            let Err(fd) = self.cgroups.take(role, fd) else { continue };
            match role {
                Descriptor::Unspecified => return Err("a descriptor of a kind not known here".into()),
                Descriptor::LogDir => self.log_dir = Some(fd),
                Descriptor::SandboxDir | Descriptor::SandboxMount if self.sandbox.is_some() => {
                    return Err("two sandboxes".into());
                }
                Descriptor::SandboxDir | Descriptor::SandboxMount => self.sandbox = Some((role, fd)),
                Descriptor::MountDir => {
                    let mount = targets.next().ok_or("a mount without a target")?;
                    self.mounts.push((fd, mount.target.clone(), mount.read_only));
                }
                Descriptor::UserNamespace => self.user_namespace = Some(fd),
                Descriptor::CgroupDir | Descriptor::CgroupProcs => {}
            }
        }
        if targets.next().is_some() { Err("a mount without a directory".into()) } else { Ok(()) }
    }
}

fn watches(request: &Request) -> Result<Vec<Watch>, String> {
    let mut watches = Vec::new();
    for check in &request.checks {
        let watch = Watch::parse(request.launch_id, check)?;
        if watches.iter().any(|other: &Watch| other.kind() == watch.kind()) {
            return Err("two checks of one kind".into());
        }
        watches.push(watch);
    }
    Ok(watches)
}

fn user_namespace(
    request: &Request,
    linux: bool,
    given: Option<OwnedFd>,
    users: &mut Users,
) -> Result<Option<UserNamespace>, String> {
    let Some(range) = request.user_namespace else {
        return if given.is_none() { Ok(None) } else { Err("a user namespace without its ids".into()) };
    };
    if !linux {
        return Err("a plain process has no user namespace".into());
    }
    let range = launcher::IdRange { first: range.first, count: range.count };
    match given {
        Some(fd) => Ok(Some(UserNamespace::from_fd(fd, range))),
        None => users.take(range).map(Some).map_err(|error| error.to_string()),
    }
}

fn seccomp(request: &Request, linux: bool) -> Result<Rc<[Program]>, String> {
    if !linux && !request.seccomp.is_empty() {
        return Err("a plain process has no seccomp filter".into());
    }
    let programs = request.seccomp.iter().map(|bytes| Program::from_bytes(bytes));
    let programs = programs.collect::<Result<Vec<_>, _>>();
    programs.map(Into::into).map_err(|error| format!("a seccomp filter: {error}"))
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
