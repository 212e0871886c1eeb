//! What a task may ask of its container, and what watches it there, beyond command and resources.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::names::ExecutorId;
use crate::{Ranges, TaskSpec};

/// How a container differs from the default one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Container {
    /// Where the program starts; empty for the sandbox, to which a relative path is relative.
    pub working_directory: String,
    /// The host name inside; empty keeps the node's.
    pub hostname: String,
    /// Whether standard input, output and error are a terminal.
    pub terminal: bool,
    /// Which system calls are allowed.
    pub seccomp: Seccomp,
    /// Whose user ids the container's are.
    pub users: UserNamespace,
    /// Resource limits of getrlimit(2), at most those of the agent.
    pub rlimits: BTreeMap<Rlimit, RlimitValue>,
    /// The processors it may run on; empty for all of the agent's.
    pub cpuset: Ranges,
    /// Its share of the disks, and its limits on them.
    pub io: Io,
    /// Most bytes in huge pages, by the size of a page; none of a size that is not listed.
    pub hugetlb: BTreeMap<u64, u64>,
}

/// Which system calls a container may make.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Seccomp {
    /// The name of a profile that the node's operator has installed; empty for the default one.
    pub profile: String,
    /// A profile in JSON that holds in addition: it can only forbid more. Empty for none.
    pub also: String,
}

named_enum!(
    /// Whose user ids a container's are.
    #[derive(Default)]
    UserNamespace {
        /// As the agent is set up.
        #[default]
        Default = 0 "default",
        /// A range of 65,536 ids that no other task has: user 0 inside is nobody outside.
        Private = 1 "private",
        /// The node's own.
        Host = 2 "host",
    }
);

named_enum!(
    /// A resource of getrlimit(2).
    Rlimit {
        /// RLIMIT_CORE, bytes.
        Core = 1 "core",
        /// RLIMIT_CPU, seconds.
        Cpu = 2 "cpu",
        /// RLIMIT_DATA, bytes.
        Data = 3 "data",
        /// RLIMIT_FSIZE, bytes.
        Fsize = 4 "fsize",
        /// RLIMIT_MEMLOCK, bytes.
        Memlock = 5 "memlock",
        /// RLIMIT_NOFILE, descriptors.
        Nofile = 6 "nofile",
        /// RLIMIT_NPROC, processes of the user.
        Nproc = 7 "nproc",
        /// RLIMIT_STACK, bytes.
        Stack = 8 "stack",
    }
);

/// The value of a resource limit; `u64::MAX` is infinite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RlimitValue {
    /// The limit in force.
    pub soft: u64,
    /// What the task may raise it to; `None` leaves the agent's.
    pub hard: Option<u64>,
}

/// A container's share of the disks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Io {
    /// Its weight among the containers of the node, 1 to 10,000; 0 for the default of 100.
    pub weight: u32,
    /// Its limits, by the block device as `MAJOR:MINOR`.
    pub limits: BTreeMap<String, IoLimit>,
}

/// Most of a block device's bandwidth; 0 for no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct IoLimit {
    /// Bytes read per second.
    pub read_bytes: u64,
    /// Bytes written per second.
    pub write_bytes: u64,
    /// Reads per second.
    pub read_ops: u64,
    /// Writes per second.
    pub write_ops: u64,
}

/// What a task may use above what it holds, while nobody else wants it; never less than it holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Burst {
    /// Processor time (milli-cpus); `None` for what it holds, 0 for all that there is.
    pub cpus_milli: Option<u64>,
    /// Memory (bytes); `None` for what it holds, 0 for no limit.
    pub memory_bytes: Option<u64>,
}

/// A look at a running task, repeated.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Check {
    /// What is tried.
    pub probe: Probe,
    /// From the start of the task to the first try (milliseconds).
    pub delay_ms: u64,
    /// From the end of a try to the next (milliseconds).
    pub interval_ms: u64,
    /// A try that takes longer has failed (milliseconds).
    pub timeout_ms: u64,
}

/// What a check tries, inside the task's container and as its user.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Probe {
    /// A program: 0 is success.
    Command(Vec<String>),
    /// GET over plain HTTP/1.1 to the loopback address: 200 to 399 is success.
    Http {
        /// Where.
        port: ProbePort,
        /// With a leading `/`.
        path: String,
    },
    /// A connection to the loopback address.
    Tcp {
        /// Where.
        port: ProbePort,
    },
    /// `grpc.health.v1.Health/Check` over plaintext to the loopback address: SERVING is success.
    Grpc {
        /// Where.
        port: ProbePort,
        /// The service asked about; empty for the server as a whole.
        service: String,
    },
}

/// Which port a check goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProbePort {
    /// This one.
    Number(u16),
    /// The task's port of this place: 0 is `PORT0`.
    Index(u32),
}

/// A check that ends the task when it fails.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HealthCheck {
    /// The check.
    pub check: Check,
    /// Failures this soon after the start do not count, until the first success (milliseconds).
    pub grace_ms: u64,
    /// Consecutive failures after which the task is killed.
    pub failures: u32,
}

/// A program of the framework that runs its tasks on a node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ExecutorSpec {
    /// Its name: one executor of it per framework and agent.
    pub id: ExecutorId,
    /// What it runs and holds; it has no executor itself. Its kill grace is how long it has to shut down.
    pub spec: Arc<TaskSpec>,
}
