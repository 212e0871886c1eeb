//! Memory: a limit without swap, what is kept for the group, the peak, and whether the kernel killed for want of it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use super::files::Dir;
use super::{read_from, write};
use crate::Error;

/// No limit, as both versions read it.
const V1_NONE: &str = "-1";
const V2_NONE: &str = "max";
/// v1: says the most memory so far, and takes a 0 to begin anew.
pub(super) const V1_PEAK: &str = "memory.max_usage_in_bytes";

/// Sets the limit (bytes), for swap too; `None` for no limit. `fresh` says that nothing was set before.
pub(super) fn set_limit(dir: &Path, bytes: Option<u64>, v2: bool, fresh: bool) -> Result<(), Error> {
    let text = bytes.map(|bytes| bytes.min(i64::MAX as u64).to_string());
    if v2 {
        if fresh {
            // A container without one of its processes is seldom of use: they are killed together.
            write(&dir.join("memory.oom.group"), "1")?;
            // A kernel without swap has no such file.
            write_if_there(&dir.join("memory.swap.max"), "0")?;
        }
        return write(&dir.join("memory.max"), text.as_deref().unwrap_or(V2_NONE));
    }
    let text = text.as_deref().unwrap_or(V1_NONE);
    // On v1 memory and swap are limited together, and never below memory alone: that is lowered after, and raised
    // before.
    let (limit, both) = (dir.join("memory.limit_in_bytes"), dir.join("memory.memsw.limit_in_bytes"));
    if !fresh {
        write_if_there(&both, V1_NONE)?;
    }
    if let Err(error) = write(&limit, text) {
        // What it is goes for swap again.
        if let Ok(bytes) = fs::read_to_string(&limit) {
            let _ = write_if_there(&both, bytes.trim());
        }
        return Err(error);
    }
    if !write_if_there(&both, text)? && fresh {
        // A kernel that does not count swap: then nothing of the group goes there, or its limit would be none.
        write_if_there(&dir.join("memory.swappiness"), "0")?;
    }
    Ok(())
}

/// Has the kernel take back what it can of what the group uses above so much (bytes), which is cache for the most part:
/// nothing is killed for it. Takes some 40 ms for 256 MiB.
pub(super) fn reclaim_to(dir: &Path, bytes: u64, v2: bool) -> Result<(), Error> {
    let text = bytes.min(i64::MAX as u64).to_string();
    if !v2 {
        // A limit that cannot be had is refused once it was tried.
        return match write(&dir.join("memory.limit_in_bytes"), &text) {
            Err(Error::Path { source, .. }) if source.kind() == io::ErrorKind::ResourceBusy => Ok(()),
            written => written,
        };
    }
    let high = dir.join("memory.high");
    let reclaimed = write(&high, &text);
    write(&high, V2_NONE).and(reclaimed)
}

/// Says how much of the group's memory is to be left alone while others' can be had (bytes); 0 for none.
pub(super) fn set_kept(dir: &Path, bytes: u64, v2: bool) -> Result<(), Error> {
    let text = bytes.min(i64::MAX as u64).to_string();
    if v2 {
        return write(&dir.join("memory.low"), &text);
    }
    // v1 has it the other way round: what is above may be taken first. No limit takes nothing.
    let text = if bytes == 0 { V1_NONE.to_owned() } else { text };
    write(&dir.join("memory.soft_limit_in_bytes"), &text)
}

/// How many processes of the group the kernel has killed for want of memory.
pub(super) fn oom_kills(dir: &Dir<'_>, v2: bool) -> Result<u64, Error> {
    // With memory.oom.group `oom_kill` counts each process of the container; on v1 there is only that.
    let file = if v2 { "memory.events" } else { "memory.oom_control" };
    Ok(dir.keyed(file, "oom_kill")?.unwrap_or(0))
}

/// Memory now (bytes).
pub(super) fn current(dir: &Dir<'_>, v2: bool) -> Result<u64, Error> {
    dir.number(if v2 { "memory.current" } else { "memory.usage_in_bytes" })
}

/// The most memory so far (bytes); `None` on a v2 kernel that does not count it.
pub(super) fn peak(dir: &Dir<'_>, v2: bool) -> Result<Option<u64>, Error> {
    match dir.number(if v2 { "memory.peak" } else { V1_PEAK }) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(Error::Path { source, .. }) if v2 && source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Begins the peak anew. On v2 (Linux 6.12) it does so for the descriptor that is given back and for no other, which
/// may be the one of `before`.
pub(super) fn reset_peak(
    dir: &Dir<'_>,
    before: Option<Arc<File>>,
    v2: bool,
) -> Result<Option<Arc<File>>, Error> {
    if !v2 {
        dir.reset(V1_PEAK)?;
        return Ok(None);
    }
    let path = dir.path().join("memory.peak");
    let reset = || -> io::Result<Arc<File>> {
        let file = match before {
            Some(file) => file,
            None => Arc::new(OpenOptions::new().read(true).write(true).open(&path)?),
        };
        file.write_at(b"0", 0)?;
        Ok(file)
    };
    match reset() {
        Ok(file) => Ok(Some(file)),
        Err(source) => Err(Error::Path { operation: "reset", path, source }),
    }
}

/// What such a descriptor says (bytes).
pub(super) fn peak_of(peak: &File) -> Option<u64> {
    read_from(peak).ok()?.trim().parse().ok()
}

/// Writes a file that not every kernel has; whether it is there.
fn write_if_there(path: &Path, text: &str) -> Result<bool, Error> {
    match write(path, text) {
        Err(Error::Path { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(false),
        written => written.map(|()| true),
    }
}
