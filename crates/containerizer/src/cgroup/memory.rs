//! Memory: a limit without swap, the peak, and whether the kernel killed for want of it.

use std::fs;
use std::io;
use std::path::Path;

use cgroups_rs::fs::memory::MemController;

use super::{read_keyed, read_number};
use crate::Error;

/// Sets the limit (bytes), for swap too.
pub(super) fn set_limit(dir: &Path, bytes: u64, v2: bool) -> Result<(), Error> {
    let bytes = bytes.min(i64::MAX as u64);
    let memory = MemController::new(dir.to_owned(), dir.to_owned(), v2);
    let failed = |what| move |source| Error::Limit { what, value: bytes, path: dir.to_owned(), source };
    memory.set_limit(bytes as i64).map_err(failed("memory limit"))?;
    if v2 {
        // A container without one of its processes is seldom of use: they are killed together.
        let path = dir.join("memory.oom.group");
        fs::write(&path, "1").map_err(|source| Error::Path { operation: "write", path, source })?;
        // A kernel without swap has no such file.
        if dir.join("memory.swap.max").exists() {
            memory.set_memswap_limit(0).map_err(failed("swap limit"))?;
        }
    } else if dir.join("memory.memsw.limit_in_bytes").exists() {
        // On v1 memory and swap are limited together, and never below memory alone: after it.
        memory.set_memswap_limit(bytes as i64).map_err(failed("memory and swap limit"))?;
    } else if dir.join("memory.swappiness").exists() {
        // A kernel that does not count swap: then nothing of the group goes there, or its limit would be none.
        memory.set_swappiness(0).map_err(failed("swappiness"))?;
    }
    Ok(())
}

/// How many processes of the group the kernel has killed for want of memory.
pub(super) fn oom_kills(dir: &Path, v2: bool) -> Result<u64, Error> {
    // With memory.oom.group `oom_kill` counts each process of the container; on v1 there is only that.
    let file = if v2 { "memory.events" } else { "memory.oom_control" };
    Ok(read_keyed(dir.join(file), "oom_kill")?.unwrap_or(0))
}

/// Memory now (bytes).
pub(super) fn current(dir: &Path, v2: bool) -> Result<u64, Error> {
    read_number(dir.join(if v2 { "memory.current" } else { "memory.usage_in_bytes" }))
}

/// The most memory so far (bytes); `None` on a v2 kernel that does not count it.
pub(super) fn peak(dir: &Path, v2: bool) -> Result<Option<u64>, Error> {
    match read_number(dir.join(if v2 { "memory.peak" } else { "memory.max_usage_in_bytes" })) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(Error::Path { source, .. }) if v2 && source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
