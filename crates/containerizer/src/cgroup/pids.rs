//! How many processes and threads there may be.

use std::path::Path;

use cgroups_rs::fs::MaxValue;
use cgroups_rs::fs::pid::PidController;

use super::files::Dir;
use crate::Error;

/// The kernel has no more (`PID_MAX_LIMIT`), and refuses a limit above.
const MOST: u64 = 1 << 22;

/// Sets the limit; none above what there can be.
pub(super) fn set_limit(dir: &Path, most: u64, v2: bool) -> Result<(), Error> {
    let pids = PidController::new(dir.to_owned(), dir.to_owned(), v2);
    let value = if most <= MOST { MaxValue::Value(most as i64) } else { MaxValue::Max };
    pids.set_pid_max(value).map_err(|source| Error::Limit {
        what: "pids.max",
        value: most,
        path: dir.to_owned(),
        source,
    })
}

/// How many there are; one that has ended and was not waited for is still one.
pub(super) fn current(dir: &Dir<'_>) -> Result<u64, Error> {
    dir.number("pids.current")
}
