//! What the containerizer is given.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use proffer_types::container::{Burst, Container};
use proffer_types::{FrameworkId, LaunchId};

use crate::{SeccompProfiles, Supervision};

/// Names one life of a supervisor, for ever.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceId(pub u64);

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InstanceId({self})")
    }
}

impl std::str::FromStr for InstanceId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(text, 16).map(Self)
    }
}

/// How containers are separated from the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// Cgroups, namespaces, a read-only view of the host's root. Needs root.
    Linux,
    /// Plain processes: limits are not enforced, and their end is best effort.
    Process,
}

impl Isolation {
    /// As shown to people and as `proffer-executor` reads it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Linux => "linux",
            Self::Process => "process",
        }
    }
}

/// How a containerizer is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// How containers are separated.
    pub isolation: Isolation,
    /// Names this agent among those of the machine, the same after a restart: 1 to 64 of `a-z 0-9 -`. Cgroups are
    /// made under `proffer/<agent_instance>` and nowhere else.
    pub agent_instance: String,
    /// Where the cgroup hierarchies are mounted; found by itself if absent.
    pub cgroup_root: Option<PathBuf>,
    /// Survives a restart of the host: `sandboxes/` and `logs/` are made in it.
    pub work_dir: PathBuf,
    /// On a tmpfs: `supervisors/` is made in it. Must exist or be creatable.
    pub runtime_dir: PathBuf,
    /// The `proffer-executor` program.
    pub executor: PathBuf,
    /// Directories that tasks must not see, besides `work_dir` and `runtime_dir`.
    pub covers: Vec<PathBuf>,
    /// Users that tasks may run as beside `nobody`; `*` for all but root.
    pub task_users: BTreeSet<String>,
    /// A supervisor without launches is told to end after this.
    pub supervisor_idle: Duration,
    /// How long a supervisor that lives may answer nothing. Then the next launches go to another one, and it is ended if
    /// no container runs under it.
    pub supervisor_answers: Duration,
    /// How often it is looked for unix sockets of the host that were bound where containers of the running supervisors
    /// can reach them (`linux` only). New launches then go to new supervisors.
    pub socket_look: Duration,
    /// The most memory of all supervisors and their log pumps together (bytes, `linux` only); 0 for no limit.
    pub supervisors_memory_bytes: u64,
    /// The user ids of containers.
    pub users: Users,
    /// The profiles of system calls that tasks may name.
    pub seccomp: SeccompProfiles,
    /// The [`LogLimits::bytes_per_second`] of containers that do not say; 0 for 32 MiB.
    pub log_bytes_per_second: u64,
}

/// Ranges of user ids for containers: the first is `base` to `base + 65535`, each other follows the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Users {
    /// Whether a container that does not say has a range of its own.
    pub private: bool,
    /// The first id of the first range. None of the ranges may hold ids of anyone else.
    pub base: u32,
    /// How many ranges there are; 0 if containers cannot have one.
    pub ranges: u32,
}

impl Users {
    /// Ids in a range.
    pub const RANGE: u32 = 1 << 16;

    /// Whether all ranges are ids that the kernel has; its last one stands for none.
    pub fn fits(&self) -> bool {
        self.base >= Self::RANGE
            && u64::from(self.base) + u64::from(self.ranges) * u64::from(Self::RANGE) < u64::from(u32::MAX)
    }

    /// The first id of a range.
    pub(crate) fn first(&self, range: u32) -> u32 {
        self.base + range * Self::RANGE
    }

    /// The range of which an id is the first.
    pub(crate) fn range_of(&self, first: u32) -> Option<u32> {
        let offset = first.checked_sub(self.base)?;
        let range = offset / Self::RANGE;
        (offset % Self::RANGE == 0 && range < self.ranges).then_some(range)
    }
}

impl Default for Users {
    /// 4,096 ranges from 1,048,576, for those that ask.
    fn default() -> Self {
        Self { private: false, base: 1 << 20, ranges: 4096 }
    }
}

/// What to run. Complete: nothing is inherited and nothing added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerSpec {
    /// Unique for ever; not 0.
    pub launch: LaunchId,
    /// Whose it is.
    pub framework: FrameworkId,
    /// As [`assign`](crate::Containerizer::assign)ed and written down.
    pub instance: InstanceId,
    /// The program and its arguments; a program without `/` is looked up in the `PATH` of `env`.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// The user to run as; empty for `nobody` (with `process` and without root: the agent's own).
    pub user: String,
    /// Cpu share and, but for `burst`, cpu limit (milli).
    pub cpus_milli: u64,
    /// Memory that it is promised and, but for `burst`, its limit (bytes); 0 for no limit.
    pub memory_bytes: u64,
    /// What it may use above both.
    pub burst: Burst,
    /// Most processes and threads.
    pub pids_max: u64,
    /// How it differs from the default one. What this machine cannot do of it, or not with the isolation in force, is
    /// answered with `ContainerRefused`. Its `terminal` is not looked at: see `supervision`.
    pub container: Container,
    /// How much of each log stream is kept.
    pub logs: LogLimits,
    /// What its supervisor does besides.
    pub supervision: Supervision,
}

impl ContainerSpec {
    /// The most memory it may use (bytes); `None` for no limit.
    pub fn memory_limit(&self) -> Option<u64> {
        most(self.memory_bytes, self.burst.memory_bytes).filter(|_| self.memory_bytes > 0)
    }

    /// The most processor time it may use (milli-cpus); `None` for no limit.
    pub fn cpu_limit(&self) -> Option<u64> {
        most(self.cpus_milli, self.burst.cpus_milli)
    }
}

/// What is promised, or what a burst goes to, which is never less.
fn most(promised: u64, burst: Option<u64>) -> Option<u64> {
    match burst {
        None => Some(promised),
        Some(0) => None,
        Some(burst) => Some(burst.max(promised)),
    }
}

/// How much of each log stream is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogLimits {
    /// The size at which a file is closed and the next one begun (bytes).
    pub file_bytes: u64,
    /// How many files are kept, the one being written included.
    pub files: u32,
    /// How many bytes of a stream are kept in any second; what is written beyond is thrown away and counted, so that no
    /// task can make its neighbours wait for the disk. 0 for what [`Options`] say.
    pub bytes_per_second: u64,
}

impl Default for LogLimits {
    /// 2 × 10 MiB per stream.
    fn default() -> Self {
        Self { file_bytes: 10 << 20, files: 2, bytes_per_second: 0 }
    }
}

/// A launch that the caller has on record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// The launch.
    pub launch: LaunchId,
    /// Whose it is.
    pub framework: FrameworkId,
    /// As written down before it was launched.
    pub instance: InstanceId,
    /// Its memory limit (bytes, 0 for none), to report with an end for want of memory.
    pub memory_bytes: u64,
    /// Its start is on the caller's record: whatever becomes of its supervisor, it cannot begin any more.
    pub started: bool,
    /// Its end is on the caller's record: it is not told again, and waits to be forgotten.
    pub ended: bool,
}

/// What a container uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processor time so far (microseconds).
    pub cpu_usec: u64,
    /// Memory now (bytes).
    pub memory_bytes: u64,
    /// The most memory so far (bytes); on cgroup v2 only where the kernel counts it (5.19).
    pub memory_peak_bytes: Option<u64>,
    /// Processes and threads now.
    pub pids: u64,
}

/// What [`gc`](crate::Containerizer::gc) removes.
#[derive(Clone, Copy, Debug)]
pub struct GcPolicy {
    /// Sandboxes and logs forgotten longer ago than this are removed.
    pub retention: Duration,
    /// While the work directory's file system has less than this many per cent free, the ones forgotten longest ago
    /// are removed too.
    pub free_percent_min: u8,
}

impl Default for GcPolicy {
    /// 7 days; 10 %.
    fn default() -> Self {
        Self { retention: Duration::from_secs(7 * 24 * 3600), free_percent_min: 10 }
    }
}
