//! Huge pages: none but what a task asks for.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::write;
use crate::Error;

/// Where the kernel says which sizes there are, and how many pages.
const POOLS: &str = "/sys/kernel/mm/hugepages";

/// The sizes of this machine's huge pages (bytes).
pub(super) fn sizes() -> Vec<u64> {
    let Ok(entries) = fs::read_dir(POOLS) else { return Vec::new() };
    let mut sizes: Vec<u64> = entries.flatten().filter_map(|entry| size_of(&entry.path())).collect();
    sizes.sort_unstable();
    sizes
}

/// Whether the machine has any huge page, or may make some on demand.
pub(super) fn any() -> bool {
    let Ok(entries) = fs::read_dir(POOLS) else { return false };
    entries.flatten().any(|entry| {
        ["nr_hugepages", "nr_overcommit_hugepages"].iter().any(|file| {
            let text = fs::read_to_string(entry.path().join(file)).unwrap_or_default();
            text.trim() != "0" && !text.is_empty()
        })
    })
}

fn size_of(pool: &Path) -> Option<u64> {
    let kib: u64 =
        pool.file_name()?.to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
    kib.checked_mul(1024)
}

/// Sets the most bytes by size of page; none of what is not listed.
pub(super) fn set(
    dir: &Path,
    sizes: &[u64],
    most: &BTreeMap<u64, u64>,
    speaks_v2: bool,
) -> Result<(), Error> {
    check(sizes, most)?;
    for size in sizes {
        let bytes = most.get(size).copied().unwrap_or(0).to_string();
        let (limit, reserved) = files(dir, *size, speaks_v2);
        write(&limit, &bytes)?;
        // What is reserved is refused at mmap, where a page beyond the limit is a SIGBUS later. Since Linux 5.7.
        match write(&reserved, &bytes) {
            Err(Error::Path { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            written => written?,
        }
    }
    Ok(())
}

/// Whether pages of these sizes exist.
pub(super) fn check(sizes: &[u64], most: &BTreeMap<u64, u64>) -> Result<(), Error> {
    match most.iter().find(|(size, bytes)| **bytes > 0 && !sizes.contains(size)) {
        None => Ok(()),
        Some((size, _)) => {
            let why = format!("this agent has no huge pages of {size} bytes; its sizes are {sizes:?}");
            Err(Error::Refused { field: format!("container.hugetlb[{size}]"), why })
        }
    }
}

fn files(dir: &Path, size: u64, speaks_v2: bool) -> (PathBuf, PathBuf) {
    let name = match size {
        size if size >= 1 << 30 => format!("{}GB", size >> 30),
        size if size >= 1 << 20 => format!("{}MB", size >> 20),
        size => format!("{}KB", size >> 10),
    };
    let most = if speaks_v2 { "max" } else { "limit_in_bytes" };
    (dir.join(format!("hugetlb.{name}.{most}")), dir.join(format!("hugetlb.{name}.rsvd.{most}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_named_by_size() {
        let dir = Path::new("/x");
        assert_eq!(files(dir, 2 << 20, true).0, Path::new("/x/hugetlb.2MB.max"));
        assert_eq!(files(dir, 1 << 30, false).1, Path::new("/x/hugetlb.1GB.rsvd.limit_in_bytes"));
        assert_eq!(files(dir, 64 << 10, true).0, Path::new("/x/hugetlb.64KB.max"));
    }
}
