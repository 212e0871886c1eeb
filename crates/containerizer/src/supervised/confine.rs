//! What holds a container's processes together, apart from its supervisor.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use proffer_types::container::UserNamespace;
use proffer_types::{FrameworkId, LaunchId};
use proffer_wire::supervisor::v1::Descriptor;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::dirs::Dirs;
use crate::cgroup::{Counters, Entry, Extras, Limits, Room, Tree};
use crate::{ContainerSpec, Error, Usage, Users};

/// By isolation.
#[derive(Clone, Debug)]
pub(crate) enum Confinement {
    /// A cgroup each.
    Cgroups(Tree),
    /// Nothing. A process is taken for a container's own if its environment names the container's sandbox, which
    /// a task can deny: best effort, and said to be so.
    Nothing(Dirs),
}

impl Confinement {
    /// Makes what holds the container, before anything runs in it, and opens what its init enters it by. `ids` is the
    /// range of user ids that it gets.
    pub(crate) fn make(
        &self,
        spec: &ContainerSpec,
        ids: Option<u32>,
    ) -> Result<Vec<(Descriptor, Arc<OwnedFd>)>, Error> {
        let container = &spec.container;
        let extras = Extras { cpuset: &container.cpuset, io: &container.io, hugetlb: &container.hugetlb };
        let Self::Cgroups(tree) = self else {
            return if extras.is_empty() { Ok(Vec::new()) } else { Err(not_contained("container")) };
        };
        let limits = Limits {
            cpus_milli: spec.cpus_milli,
            cpus_milli_max: spec.cpu_limit(),
            memory_bytes: spec.memory_bytes,
            memory_bytes_max: spec.memory_limit(),
            pids_max: spec.pids_max,
        };
        tree.take((spec.launch, spec.framework), &limits, &extras, ids).map(named)
    }

    /// Opens what another process enters a container's groups by.
    pub(crate) fn entry(&self, launch: LaunchId) -> Result<Vec<(Descriptor, Arc<OwnedFd>)>, Error> {
        match self {
            Self::Cgroups(tree) => tree.entry(launch).map(named),
            Self::Nothing(_) => Ok(Vec::new()),
        }
    }

    /// The range of user ids of a container that is to have one: that of its `kin`, if they have one already.
    pub(crate) fn ids(
        &self,
        spec: &ContainerSpec,
        kin: &[LaunchId],
        users: &Users,
    ) -> Result<Option<u32>, Error> {
        let private = match spec.container.users {
            UserNamespace::Private => true,
            UserNamespace::Default => users.private,
            UserNamespace::Host => false,
        };
        let refused = |why: &str| Error::Refused { field: "container.users".into(), why: why.into() };
        match self {
            Self::Nothing(_) if spec.container.users == UserNamespace::Private => {
                Err(not_contained("container.users"))
            }
            Self::Nothing(_) => Ok(None),
            Self::Cgroups(_) if !private => Ok(None),
            Self::Cgroups(_) if users.ranges == 0 => Err(refused("this agent has no ranges of user ids")),
            Self::Cgroups(tree) => match tree.ids((spec.launch, spec.framework), kin, users) {
                Some(ids) => Ok(Some(ids)),
                None => Err(refused("all ranges of user ids of this agent are in use")),
            },
        }
    }

    /// Sets other limits, if the container has any. One that cannot be set is told in the log, once.
    pub(crate) fn resize(&self, launch: LaunchId, cpus_milli: u64, memory_bytes: u64) -> Room {
        let Self::Cgroups(tree) = self else { return Room::Made };
        match tree.resize(launch, cpus_milli, memory_bytes) {
            Ok(room) => room,
            // It has come to use more meanwhile.
            Err(Error::Path { source, .. }) if source.kind() == std::io::ErrorKind::ResourceBusy => {
                Room::None
            }
            Err(error) => {
                tracing::warn!(
                    launch.id = launch.0,
                    error = &error as &dyn std::error::Error,
                    "set another limit of a cgroup"
                );
                Room::Made
            }
        }
    }

    /// A framework has no supervisor any more: nothing is kept ready for it.
    pub(crate) fn remove_idle(&self, framework: FrameworkId) {
        if let Self::Cgroups(tree) = self {
            tree.remove_idle(framework);
        }
    }

    /// Whether an end that a living supervisor told may be believed to be everybody's: without cgroups its word is
    /// the best there is.
    pub(crate) fn trusts_supervisor(&self) -> bool {
        matches!(self, Self::Nothing(_))
    }

    /// How many processes the container has; one, if that cannot be told, for it must not be taken to be empty.
    pub(crate) fn processes(&self, launch: LaunchId) -> usize {
        self.population(launch).unwrap_or(1)
    }

    /// How many processes the container has, if that can be told.
    pub(crate) fn population(&self, launch: LaunchId) -> Option<usize> {
        match self {
            Self::Cgroups(tree) => match tree.group(launch).population() {
                Ok(population) => Some(population),
                Err(error) => {
                    tracing::warn!(
                        launch.id = launch.0,
                        error = &error as &dyn std::error::Error,
                        "list a cgroup's processes"
                    );
                    None
                }
            },
            Self::Nothing(dirs) => Some(marked(dirs, launch).len()),
        }
    }

    /// Whether a process is one of the container's.
    pub(crate) fn holds(&self, launch: LaunchId, pid: i32) -> bool {
        match self {
            Self::Cgroups(tree) => {
                tree.group(launch).processes().is_ok_and(|processes| processes.contains(&pid))
            }
            Self::Nothing(dirs) => is_marked(dirs, launch, pid),
        }
    }

    /// Sends SIGKILL to them all, once.
    pub(crate) fn kill(&self, launch: LaunchId) {
        match self {
            Self::Cgroups(tree) => {
                tree.spoil(launch);
                if let Err(error) = tree.group(launch).kill() {
                    tracing::warn!(
                        launch.id = launch.0,
                        error = &error as &dyn std::error::Error,
                        "kill a cgroup"
                    );
                }
            }
            Self::Nothing(dirs) => {
                for raw in marked(dirs, launch) {
                    // Pinned, and looked at again, for the pid may be another process by now.
                    let pinned = Pid::from_raw(raw).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
                    if let Some(process) = pinned.filter(|_| is_marked(dirs, launch, raw)) {
                        let _ = pidfd_send_signal(&process, Signal::KILL);
                    }
                }
            }
        }
    }

    /// Removes what held the container; `false` while the kernel holds it busy.
    pub(crate) fn remove(&self, launch: LaunchId) -> bool {
        let Self::Cgroups(tree) = self else { return true };
        tree.release(launch).unwrap_or_else(|error| {
            tracing::warn!(launch.id = launch.0, error = &error as &dyn std::error::Error, "remove a cgroup");
            false
        })
    }

    /// What the kernel counted, if it did.
    pub(crate) fn counters(&self, launch: LaunchId) -> Counters {
        let Self::Cgroups(tree) = self else { return Counters::default() };
        tree.counters(launch).unwrap_or_else(|error| {
            tracing::warn!(
                launch.id = launch.0,
                error = &error as &dyn std::error::Error,
                "read a cgroup's counters"
            );
            Counters::default()
        })
    }

    pub(crate) fn usage(&self, launch: LaunchId) -> Option<Usage> {
        let Self::Cgroups(tree) = self else { return None };
        tree.usage(launch).ok()
    }

    /// The containers of which something is left.
    pub(crate) fn launches(&self) -> Vec<LaunchId> {
        match self {
            Self::Cgroups(tree) => tree.launches(),
            Self::Nothing(_) => Vec::new(),
        }
    }
}

fn named(entry: Entry) -> Vec<(Descriptor, Arc<OwnedFd>)> {
    match entry {
        Entry::Directory(dir) => vec![(Descriptor::CgroupDir, dir)],
        Entry::Tasks(files) => files.into_iter().map(|file| (Descriptor::CgroupProcs, file)).collect(),
    }
}

/// What a plain process cannot be given.
pub(crate) fn not_contained(field: &str) -> Error {
    let why = "this agent runs tasks as plain processes, which are not contained (--containerizer process)";
    Error::Refused { field: field.into(), why: why.into() }
}

fn marked(dirs: &Dirs, launch: LaunchId) -> BTreeSet<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return BTreeSet::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|&pid| is_marked(dirs, launch, pid)).collect()
}

fn is_marked(dirs: &Dirs, launch: LaunchId, pid: i32) -> bool {
    let sandbox = dirs.sandbox(launch);
    let sandbox = sandbox.as_os_str().as_bytes();
    // Processes of other users cannot be read, and are not ours.
    let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let mut values =
        environ.split(|&byte| byte == 0).filter_map(|pair| pair.splitn(2, |&byte| byte == b'=').nth(1));
    values.any(|value| value == sandbox)
}
