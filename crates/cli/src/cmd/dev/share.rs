//! This machine's resources, in equal parts.

use std::path::Path;

use crate::fail::{Code, Failure};

/// The port range that agents offer by default.
const PORTS: (u64, u64) = (31_000, 32_000);
/// Kept back for the daemons and the machine itself, as a single agent would.
const RESERVE_CPUS_MILLI: u64 = 100;
const RESERVE_MEMORY_BYTES: u64 = 512 << 20;
/// A smaller part is of no use.
const LEAST_CPUS_MILLI: u64 = 10;
const LEAST_MEMORY_BYTES: u64 = 32 << 20;

/// What a machine has.
#[derive(Clone, Copy, Debug)]
struct Machine {
    cpus_milli: u64,
    memory_bytes: u64,
    disk_bytes: u64,
}

/// One `--resources` text per agent.
pub(super) fn split(dir: &Path, agents: u16) -> Result<Vec<String>, Failure> {
    parts(look(dir)?, agents.into())
}

fn look(dir: &Path) -> Result<Machine, Failure> {
    let failed =
        |what: &str, why: String| Failure::new(Code::Failed, format!("cannot find out {what}: {why}"));
    let cpus =
        std::thread::available_parallelism().map_err(|e| failed("how many cpus there are", e.to_string()))?;
    let meminfo = std::fs::read_to_string("/proc/meminfo")
        .map_err(|e| failed("how much memory there is", e.to_string()))?;
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib: Option<u64> = total.and_then(|text| text.trim().strip_suffix("kB")?.trim().parse().ok());
    let memory =
        kib.ok_or_else(|| failed("how much memory there is", "/proc/meminfo has no MemTotal".into()))? << 10;
    // In a container the machine's memory is not ours.
    let limits = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let limit = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let memory_bytes = limits.into_iter().filter_map(limit).fold(memory, u64::min);
    let stat = nix::sys::statvfs::statvfs(dir)
        .map_err(|e| failed("how much disk there is", format!("{}: {e}", dir.display())))?;
    let reserved = stat.blocks_free().saturating_sub(stat.blocks_available());
    let disk_bytes = stat.blocks().saturating_sub(reserved).saturating_mul(stat.fragment_size());
    Ok(Machine { cpus_milli: cpus.get() as u64 * 1_000, memory_bytes, disk_bytes })
}

fn parts(machine: Machine, agents: u64) -> Result<Vec<String>, Failure> {
    let reserve = RESERVE_MEMORY_BYTES.max(machine.memory_bytes / 10);
    let cpus = machine.cpus_milli.saturating_sub(RESERVE_CPUS_MILLI) / agents;
    let memory = (machine.memory_bytes.saturating_sub(reserve) / agents) & !((1 << 20) - 1);
    let disk = (machine.disk_bytes / agents) & !((1 << 20) - 1);
    if cpus < LEAST_CPUS_MILLI || memory < LEAST_MEMORY_BYTES {
        let what = format!(
            "this machine is too small for {agents} agents: each would have {cpus} thousandths of a cpu \
                            and {memory} bytes of memory"
        );
        return Err(Failure::new(Code::Failed, what).next("run fewer of them with --agents"));
    }
    let ports = (PORTS.1 - PORTS.0 + 1) / agents;
    let part = |n: u64| {
        let first = PORTS.0 + n * ports;
        let last = if n + 1 == agents { PORTS.1 } else { first + ports - 1 };
        let disk = if disk > 0 { format!(";disk:{disk}B") } else { String::new() };
        format!("cpus:{};mem:{memory}B{disk};ports:[{first}-{last}]", proffer_types::resources::milli(cpus))
    };
    Ok((0..agents).map(part).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proffer_types::Resources;

    #[test]
    fn parts_do_not_overlap_and_leave_the_reserve() {
        let machine = Machine { cpus_milli: 2_000, memory_bytes: 8 << 30, disk_bytes: 100 << 30 };
        for agents in [1, 2, 3, 7] {
            let parts = parts(machine, agents).unwrap();
            assert_eq!(parts.len() as u64, agents);
            let mut sum = Resources::new();
            for part in &parts {
                sum.add(&Resources::parse(part).unwrap()).expect("no port is in two parts");
            }
            assert!(sum.cpus_milli() <= 1_900 && sum.cpus_milli() > 1_900 - agents);
            assert!(sum.memory_bytes() <= (8 << 30) - (8 << 30) / 10);
            assert_eq!(sum.entries()[0].quantities.ports().count(), 1_001, "every port is in one");
        }
        assert!(parts(machine, 64).is_ok());
        assert_eq!(parts(machine, 1_000).unwrap_err().code, Code::Failed);
    }
}
