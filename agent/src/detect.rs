//! What the node has: its resources, its name, the life of its host.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use proffer_types::resources::{Quantities, Ranges};
use proffer_types::{BootId, Resources};

/// Ports offered on every node unless said otherwise.
const PORTS: (u64, u64) = (31_000, 32_000);
/// Kept back of the detected memory, if that is more than a tenth of it.
const RESERVE_MEMORY_BYTES: u64 = 512 << 20;
/// Kept back of the detected cpus.
const RESERVE_CPUS_MILLI: u64 = 100;
/// The name of this life of the host.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Why the node could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the kernel's cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file of the kernel's says something else than expected.
    #[error("{}: {what}", path.display())]
    Unexpected {
        /// Which.
        path: PathBuf,
        /// What was missed.
        what: &'static str,
    },
    /// A system call failed.
    #[error("{operation}")]
    System {
        /// What was tried.
        operation: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Nothing is left to offer.
    #[error(
        "the node has {cpus_milli} milli-cpus and {memory_bytes} bytes of memory, which is not more than the agent \
         keeps for itself; say what to offer with --resources"
    )]
    TooSmall {
        /// Detected.
        cpus_milli: u64,
        /// Detected.
        memory_bytes: u64,
    },
}

/// What the node has in all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Totals {
    /// Milli-cpus that this process may use.
    pub cpus_milli: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Bytes that the work directory's file system holds for ordinary use.
    pub disk_bytes: u64,
}

impl Totals {
    /// Looks at the machine; `work_dir` must exist.
    pub fn detect(work_dir: &Path) -> Result<Self, Error> {
        // Counts what affinity and cgroup quota leave of the machine's processors.
        let cpus = std::thread::available_parallelism()
            .map_err(|source| Error::System { operation: "count the processors", source })?;
        let meminfo = Path::new("/proc/meminfo");
        let missing = || Error::Unexpected { path: meminfo.into(), what: "there is no MemTotal in kB" };
        let memory_bytes = memory_total(&read(meminfo)?).ok_or_else(missing)?;
        let memory_bytes = container_limits().fold(memory_bytes, u64::min);
        Ok(Self { cpus_milli: cpus.get() as u64 * 1_000, memory_bytes, disk_bytes: disk_bytes(work_dir)? })
    }

    /// The memory that is kept back for the agent, its supervisors and the host (bytes).
    pub fn reserve_bytes(self) -> u64 {
        RESERVE_MEMORY_BYTES.max(self.memory_bytes / 10)
    }

    /// What is offered of it: all but the agent's and the host's own share.
    pub fn offered(self) -> Result<Resources, Error> {
        let reserve = self.reserve_bytes();
        let cpus_milli = self.cpus_milli.saturating_sub(RESERVE_CPUS_MILLI);
        // Whole MiB, for people.
        let memory_bytes = self.memory_bytes.saturating_sub(reserve) & !((1 << 20) - 1);
        if cpus_milli == 0 || memory_bytes == 0 {
            return Err(Error::TooSmall { cpus_milli: self.cpus_milli, memory_bytes: self.memory_bytes });
        }
        let ports = Ranges::new("ports", [PORTS]).expect("one range that does not end before it begins");
        Ok(Quantities::scalars(cpus_milli, memory_bytes, self.disk_bytes & !((1 << 20) - 1), 0)
            .with_ports(ports)
            .into())
    }
}

/// The life of the host.
pub fn boot_id() -> Result<BootId, Error> {
    let path = Path::new(BOOT_ID);
    let hex: String = read(path)?.trim().chars().filter(|c| *c != '-').collect();
    match u128::from_str_radix(&hex, 16) {
        Ok(id) if hex.len() == 32 => Ok(BootId(id)),
        _ => Err(Error::Unexpected { path: path.into(), what: "not a boot id" }),
    }
}

/// The node's name.
pub fn hostname() -> Result<String, Error> {
    let name = nix::unistd::gethostname()
        .map_err(|errno| Error::System { operation: "ask for the host's name", source: errno.into() })?;
    Ok(name.to_string_lossy().into_owned())
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|source| Error::Read { path: path.into(), source })
}

fn memory_total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1 << 10)
}

/// The memory limits of the container that the agent itself is in, if any.
fn container_limits() -> impl Iterator<Item = u64> {
    ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
        .into_iter()
        .filter_map(|path| fs::read_to_string(path).ok()?.trim().parse().ok())
}

fn disk_bytes(dir: &Path) -> Result<u64, Error> {
    let stat = nix::sys::statvfs::statvfs(dir).map_err(|errno| Error::System {
        operation: "ask for the work directory's size",
        source: errno.into(),
    })?;
    // Blocks kept for root are not for tasks. The total and not what is free now: that would shrink with every restart.
    let reserved = stat.blocks_free().saturating_sub(stat.blocks_available());
    Ok(stat.blocks().saturating_sub(reserved).saturating_mul(stat.fragment_size()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_is_the_greater_of_a_tenth_and_half_a_gib() {
        let offered = |gib: u64| {
            let totals = Totals { cpus_milli: 4_000, memory_bytes: gib << 30, disk_bytes: (1 << 40) + 5 };
            totals.offered().unwrap().to_string()
        };
        assert_eq!(offered(1), "cpus:3.9;mem:512MiB;disk:1TiB;ports:[31000-32000]");
        assert_eq!(offered(10), "cpus:3.9;mem:9GiB;disk:1TiB;ports:[31000-32000]");
        let tiny = Totals { cpus_milli: 1_000, memory_bytes: 256 << 20, disk_bytes: 0 };
        assert!(matches!(tiny.offered(), Err(Error::TooSmall { .. })));
    }

    #[test]
    fn this_machine_can_be_looked_at() {
        let totals = Totals::detect(Path::new("/tmp")).unwrap();
        assert!(totals.cpus_milli >= 1_000 && totals.memory_bytes > 1 << 20 && totals.disk_bytes > 0);
        assert_ne!(boot_id().unwrap(), BootId(0));
        assert!(!hostname().unwrap().is_empty());
        assert_eq!(memory_total("MemTotal:       16 kB\nMemFree: 1 kB\n"), Some(16 << 10));
    }
}
