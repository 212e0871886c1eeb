//! Processor time: a share when the machine is busy, and a limit.

use std::path::Path;

use cgroups_rs::fs::cpu::CpuController;

use super::group::Group;
use crate::Error;

/// The period of the limit, in microseconds. A smaller limit than 1 ms per period is refused by the kernel, so that
/// very small ones need the longer period.
const PERIOD_US: u64 = 100_000;
const PERIOD_LONG_US: u64 = 1_000_000;
/// The kernel takes no larger quota, in microseconds (`MAX_BW`).
const QUOTA_MAX_US: u64 = (1 << 44) - 1;

/// Sets what the group weighs against its siblings: in proportion to its cpus (milli).
pub(super) fn set_share(dir: &Path, cpus_milli: u64, v2: bool) -> Result<(), Error> {
    // v1: 1024 per cpu, from 2 to 262,144. v2: 100 per cpu, from 1 to 10,000; cgroups-rs writes either as it is given.
    let (what, share) = if v2 {
        ("cpu.weight", (cpus_milli / 10).clamp(1, 10_000))
    } else {
        ("cpu.shares", (cpus_milli.saturating_mul(1024) / 1000).clamp(2, 262_144))
    };
    let set = controller(dir, v2).set_shares(share);
    set.map_err(|source| Error::Limit { what, value: share, path: dir.to_owned(), source })
}

/// Sets the most processor time the group may use (milli-cpus); `None` for no limit.
pub(super) fn set_limit(dir: &Path, cpus_milli: Option<u64>, v2: bool) -> Result<(), Error> {
    let period = if cpus_milli.is_some_and(|cpus| cpus < 10) { PERIOD_LONG_US } else { PERIOD_US };
    let quota = cpus_milli.map(|cpus| cpus.max(1).saturating_mul(period / 1000).min(QUOTA_MAX_US));
    let cpu = controller(dir, v2);
    let failed = |source| Error::Limit {
        what: "cpu quota",
        value: quota.unwrap_or(u64::MAX),
        path: dir.to_owned(),
        source,
    };
    let quota = quota.map_or(-1, |quota| quota as i64);
    if v2 {
        // cgroups-rs writes no limit as the number that v1 has for it.
        if quota < 0 {
            return super::write(&dir.join("cpu.max"), "max");
        }
        return cpu.set_cfs_quota_and_period(Some(quota), Some(period)).map_err(failed);
    }
    // Without a limit any period will do; with one the period comes first, for the quota is checked against it. A
    // group that had another limit before is without one in between, and empty.
    if quota >= 0 {
        cpu.set_cfs_quota(-1).map_err(failed)?;
        cpu.set_cfs_period(period).map_err(failed)?;
    }
    cpu.set_cfs_quota(quota).map_err(failed)
}

/// Processor time so far (microseconds); 0 on v1 without cpuacct.
pub(super) fn used_usec(group: &Group) -> Result<u64, Error> {
    if group.is_v2() {
        return Ok(group.dir("cpu").keyed("cpu.stat", "usage_usec")?.unwrap_or(0));
    }
    match group.dir_if_any("cpuacct") {
        Some(dir) => Ok(dir.number("cpuacct.usage")? / 1000),
        None => Ok(0),
    }
}

fn controller(dir: &Path, v2: bool) -> CpuController {
    CpuController::new(dir.to_owned(), dir.to_owned(), v2)
}
