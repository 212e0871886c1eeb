//! v1: holding a group still while it is killed. (v2 has cgroup.kill, which needs no holding.)

use std::fs;
use std::path::Path;

use crate::Error;

/// Stops every process of the group, in the kernel's own time. SIGKILL waits with them until they are let go.
pub(super) fn freeze(dir: &Path) -> Result<(), Error> {
    write(dir, "FROZEN")
}

/// Lets them go.
pub(super) fn thaw(dir: &Path) -> Result<(), Error> {
    write(dir, "THAWED")
}

fn write(dir: &Path, state: &str) -> Result<(), Error> {
    let path = dir.join("freezer.state");
    fs::write(&path, state).map_err(|source| Error::Path { operation: "write", path, source })
}
