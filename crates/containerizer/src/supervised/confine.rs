//! What holds a container's processes together, apart from its supervisor.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

use proffer_types::LaunchId;
use proffer_wire::supervisor::v1::Descriptor;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::dirs::Dirs;
use crate::cgroup::{Counters, Entry, Limits, Tree};
use crate::{ContainerSpec, Error, Usage};

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
    /// Makes what holds the container, before anything runs in it, and opens what its init enters it by.
    pub(crate) fn make(&self, spec: &ContainerSpec) -> Result<Vec<(Descriptor, OwnedFd)>, Error> {
        let Self::Cgroups(tree) = self else { return Ok(Vec::new()) };
        let group = tree.group(spec.launch);
        group.create(Limits {
            cpus_milli: spec.cpus_milli,
            memory_bytes: spec.memory_bytes,
            pids_max: spec.pids_max,
        })?;
        Ok(match group.entry()? {
            Entry::Directory(dir) => vec![(Descriptor::CgroupDir, dir)],
            Entry::Procs(files) => files.into_iter().map(|file| (Descriptor::CgroupProcs, file)).collect(),
        })
    }

    /// Whether an end that a living supervisor told may be believed to be everybody's: without cgroups its word is
    /// the best there is.
    pub(crate) fn trusts_supervisor(&self) -> bool {
        matches!(self, Self::Nothing(_))
    }

    /// How many processes the container has; one, if that cannot be told, for it must not be taken to be empty.
    pub(crate) fn processes(&self, launch: LaunchId) -> usize {
        match self {
            Self::Cgroups(tree) => match tree.group(launch).processes() {
                Ok(processes) => processes.len(),
                Err(error) => {
                    tracing::warn!(
                        launch.id = launch.0,
                        error = &error as &dyn std::error::Error,
                        "list a cgroup's processes"
                    );
                    1
                }
            },
            Self::Nothing(dirs) => marked(dirs, launch).len(),
        }
    }

    /// Sends SIGKILL to them all, once.
    pub(crate) fn kill(&self, launch: LaunchId) {
        match self {
            Self::Cgroups(tree) => {
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
        tree.group(launch).remove().unwrap_or_else(|error| {
            tracing::warn!(launch.id = launch.0, error = &error as &dyn std::error::Error, "remove a cgroup");
            false
        })
    }

    /// What the kernel counted, if it did.
    pub(crate) fn counters(&self, launch: LaunchId) -> Counters {
        let Self::Cgroups(tree) = self else { return Counters::default() };
        let group = tree.group(launch);
        if !group.exists() {
            return Counters::default();
        }
        group.counters().unwrap_or_else(|error| {
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
        tree.group(launch).usage().ok()
    }

    /// The containers of which something is left.
    pub(crate) fn launches(&self) -> Vec<LaunchId> {
        match self {
            Self::Cgroups(tree) => tree.launches(),
            Self::Nothing(_) => Vec::new(),
        }
    }
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
