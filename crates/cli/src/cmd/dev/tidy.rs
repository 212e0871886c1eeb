//! What a cluster leaves on the machine when its processes are gone. Only what lies under its own directory is touched;
//! cgroups are the agents' own business (`proffer-agent --clean-up`).

use std::fs;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};

/// Unmounts whatever is mounted below `dir`.
pub(super) fn unmount_below(dir: &Path) {
    let Ok(mounts) = fs::read_to_string("/proc/self/mountinfo") else { return };
    // The youngest first: mounts lie on mounts.
    for point in mounts_below(&mounts, dir).into_iter().rev() {
        if let Err(errno) = umount2(&point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            eprintln!("proffer dev: cannot unmount {}: {errno}", point.display());
        }
    }
}

fn mounts_below(mountinfo: &str, dir: &Path) -> Vec<PathBuf> {
    mountinfo.lines().filter_map(point).filter(|point| point.starts_with(dir) && point != dir).collect()
}

/// A line's mount point, with its octal escapes read.
fn point(line: &str) -> Option<PathBuf> {
    let text = line.split(' ').nth(4)?;
    let mut path = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        let code = rest.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok())?;
        path.push_str(&rest[..at]);
        path.push(code.into());
        rest = &rest[at + 4..];
    }
    path.push_str(rest);
    Some(path.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mounts_of_ours_are_found() {
        let mounts = "\
23 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
50 23 8:1 /x /tmp/a\\040b/agent-1/work/x rw - ext4 /dev/sda1 rw
51 23 8:1 /y /tmp/abc rw - ext4 /dev/sda1 rw
";
        assert_eq!(mounts_below(mounts, Path::new("/tmp/a b")), [Path::new("/tmp/a b/agent-1/work/x")]);
        assert_eq!(mounts_below(mounts, Path::new("/tmp/abc")), [] as [&Path; 0]);
    }
}
