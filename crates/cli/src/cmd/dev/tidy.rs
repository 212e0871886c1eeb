//! What a cluster leaves on the machine when its processes are gone: cgroups and mounts. Only what lies under names of
//! its own is touched.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use sha2::{Digest, Sha256};

use super::layout::Layout;

/// A cgroup whose last process has just died is busy for a moment.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);

pub(super) fn tidy(layout: &Layout) {
    let Ok(mounts) = fs::read_to_string("/proc/self/mountinfo") else { return };
    for work_dir in layout.work_dirs() {
        let instance = instance(&work_dir);
        for hierarchy in cgroup_mounts(&mounts) {
            let top = hierarchy.join("proffer");
            remove_cgroup(&top.join(&instance));
            // Only succeeds when no other agent has groups there.
            let _ = fs::remove_dir(top);
        }
    }
    // The youngest first: mounts lie on mounts.
    for point in mounts_below(&mounts, layout.dir()).into_iter().rev() {
        let _ = umount2(&point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
    }
}

/// An agent names its cgroups after its work directory: the first eight bytes of the path's SHA-256.
fn instance(work_dir: &Path) -> String {
    let digest = Sha256::digest(work_dir.as_os_str().as_encoded_bytes());
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Removes a cgroup and those below it. Their processes are gone; what still holds one stays and is told.
fn remove_cgroup(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    let below = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    below.for_each(|entry| remove_cgroup(&entry.path()));
    let until = Instant::now() + BUSY_TIMEOUT;
    loop {
        match fs::remove_dir(dir) {
            Err(error) if error.kind() == ErrorKind::ResourceBusy && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) if error.kind() != ErrorKind::NotFound => {
                eprintln!("proffer dev: cannot remove the cgroup {}: {error}", dir.display());
                return;
            }
            _ => return,
        }
    }
}

fn cgroup_mounts(mountinfo: &str) -> Vec<PathBuf> {
    let cgroup = |line: &&str| line.split_once(" - ").is_some_and(|(_, kind)| kind.starts_with("cgroup"));
    mountinfo.lines().filter(cgroup).filter_map(point).collect()
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

    const MOUNTS: &str = "\
23 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
50 23 8:1 /x /tmp/a\\040b/agent-1/work/x rw - ext4 /dev/sda1 rw
51 23 8:1 /y /tmp/abc rw - ext4 /dev/sda1 rw
";

    #[test]
    fn only_cgroups_and_mounts_of_ours_are_found() {
        let cgroups = cgroup_mounts(MOUNTS);
        assert_eq!(cgroups, [Path::new("/sys/fs/cgroup/cpu"), Path::new("/sys/fs/cgroup/unified")]);
        assert_eq!(mounts_below(MOUNTS, Path::new("/tmp/a b")), [Path::new("/tmp/a b/agent-1/work/x")]);
        assert_eq!(mounts_below(MOUNTS, Path::new("/tmp/abc")), [] as [&Path; 0]);
    }

    #[test]
    fn the_instance_is_the_agent_s() {
        assert_eq!(instance(Path::new("/var/lib/proffer/agent")).len(), 16);
        assert_ne!(instance(Path::new("/a")), instance(Path::new("/b")));
    }
}
