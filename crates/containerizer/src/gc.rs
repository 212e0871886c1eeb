//! Removing the sandboxes and logs of forgotten launches.
//!
//! What a task left is hostile: it may nest directories deeper than a stack is, and link to anything. Nothing is
//! followed, and depth is cut by moving deep directories up.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use proffer_types::LaunchId;

use crate::GcPolicy;
use crate::cgroup::{name, parse};

/// How deep is descended before a directory is moved up.
const DEPTH_MAX: usize = 64;

/// Removes what `policy` says below a work directory.
pub(crate) fn collect(work: &Path, policy: GcPolicy) {
    let now = SystemTime::now();
    for (forgotten_at, launch) in forgotten(work) {
        let age = now.duration_since(forgotten_at).unwrap_or_default();
        if age < policy.retention && !is_short(work, policy.free_percent_min) {
            // They come oldest first.
            break;
        }
        tracing::info!(launch.id = launch.0, age_s = age.as_secs(), "removes a sandbox and its logs");
        if let Err(error) = remove(work, launch) {
            tracing::warn!(launch.id = launch.0, %error, "a sandbox cannot be removed");
        }
    }
}

/// The mark of a forgotten launch, on the directory of its logs: the sticky bit, which means nothing else there. A task
/// reaches that directory by no way. The time of the mark is that of the directory's last change.
pub(crate) const FORGOTTEN: u32 = 0o1000;

/// Whether the metadata of a launch's logs bear the mark.
pub(crate) fn is_marked(logs: &fs::Metadata) -> bool {
    logs.is_dir() && logs.mode() & FORGOTTEN != 0
}

/// The forgotten launches, the one forgotten longest ago first.
fn forgotten(work: &Path) -> Vec<(SystemTime, LaunchId)> {
    let Ok(entries) = fs::read_dir(work.join("logs")) else { return Vec::new() };
    let mut found: Vec<_> = entries
        .flatten()
        .filter_map(|entry| {
            let launch = parse(entry.file_name().to_str()?)?;
            let logs = entry.metadata().ok().filter(is_marked)?;
            let since = Duration::new(logs.ctime().try_into().ok()?, logs.ctime_nsec().try_into().ok()?);
            Some((SystemTime::UNIX_EPOCH + since, launch))
        })
        .collect();
    found.sort_unstable();
    found
}

fn is_short(work: &Path, free_percent_min: u8) -> bool {
    // What cannot be asked is not short: sandboxes are not removed on a doubt.
    rustix::fs::statvfs(work).is_ok_and(|fs| {
        let usable = fs.f_bavail + (fs.f_blocks - fs.f_bfree);
        usable > 0 && fs.f_bavail * 100 / usable < u64::from(free_percent_min)
    })
}

fn remove(work: &Path, launch: LaunchId) -> io::Result<()> {
    // The one with the mark last: whoever is interrupted before begins again.
    ["sandboxes", "groups", "logs"].iter().try_for_each(|part| remove_tree(&work.join(part), &name(launch)))
}

/// Removes `parent/name` and all below it; not there is as good.
fn remove_tree(parent: &Path, name: &str) -> io::Result<()> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let parent = match nix::fcntl::open(parent, flags, Mode::empty()) {
        Err(Errno::ENOENT) => return Ok(()),
        opened => opened?,
    };
    let top = match open_dir(parent.as_fd(), name) {
        Ok(top) => top,
        Err(Errno::ENOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let mut moved = 0;
    // Each round removes at least DEPTH_MAX levels and ends when a round has moved nothing up.
    loop {
        let before = moved;
        empty(top.as_fd(), top.as_fd(), 0, &mut moved)?;
        if moved == before {
            break;
        }
    }
    drop(top);
    Ok(unlinkat(&parent, name, UnlinkatFlags::RemoveDir)?)
}

fn empty(top: BorrowedFd<'_>, dir: BorrowedFd<'_>, depth: usize, moved: &mut u64) -> nix::Result<()> {
    // A descriptor of its own: reading moves the position of the one given.
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut listing = Dir::openat(dir, ".", flags, Mode::empty())?;
    let names: Vec<_> = listing.iter().flatten().map(|entry| entry.file_name().to_owned()).collect();
    for name in
        names.iter().map(|name| name.as_c_str()).filter(|name| !matches!(name.to_bytes(), b"." | b".."))
    {
        let is_dir = match fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR,
            Err(Errno::ENOENT) => continue,
            Err(error) => return Err(error),
        };
        if !is_dir {
            unlinkat(dir, name, UnlinkatFlags::NoRemoveDir)?;
        } else if depth >= DEPTH_MAX {
            move_up(top, dir, name, moved)?;
        } else {
            let below = open_dir(dir, name)?;
            empty(top, below.as_fd(), depth + 1, moved)?;
            drop(below);
            unlinkat(dir, name, UnlinkatFlags::RemoveDir)?;
        }
    }
    Ok(())
}

fn move_up(
    top: BorrowedFd<'_>,
    dir: BorrowedFd<'_>,
    name: &std::ffi::CStr,
    moved: &mut u64,
) -> nix::Result<()> {
    loop {
        *moved += 1;
        let target = format!("proffer-moved-{moved}");
        let result =
            rustix::fs::renameat_with(dir, name, top, target.as_str(), rustix::fs::RenameFlags::NOREPLACE);
        match result {
            Ok(()) => return Ok(()),
            // The task may have had the same idea of a name.
            Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(Errno::from_raw(error.raw_os_error())),
        }
    }
}

/// Opens a directory, made readable first where its owner took the right away and we are its owner.
fn open_dir<N: nix::NixPath + ?Sized>(parent: BorrowedFd<'_>, name: &N) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match openat(parent, name, flags, Mode::empty()) {
        Err(Errno::EACCES) => {
            fchmodat(parent, name, Mode::S_IRWXU, FchmodatFlags::NoFollowSymlink)?;
            openat(parent, name, flags, Mode::empty())
        }
        opened => opened,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work(test: &str) -> std::path::PathBuf {
        let dir = std::env::temp_dir().join(format!("proffer-gc-{test}-{}", std::process::id()));
        for part in ["sandboxes", "logs"] {
            fs::create_dir_all(dir.join(part)).unwrap();
        }
        dir
    }

    fn forget(work: &Path, launch: LaunchId) {
        let logs = work.join("logs").join(name(launch));
        fs::create_dir(&logs).unwrap();
        fs::set_permissions(&logs, std::os::unix::fs::PermissionsExt::from_mode(FORGOTTEN | 0o700)).unwrap();
        fs::create_dir(work.join("sandboxes").join(name(launch))).unwrap();
    }

    #[test]
    fn only_what_was_forgotten_long_ago_goes() {
        let work = work("old");
        forget(&work, LaunchId(1));
        for part in ["sandboxes", "logs"] {
            fs::create_dir(work.join(part).join(name(LaunchId(2)))).unwrap();
        }
        collect(&work, GcPolicy { retention: Duration::from_secs(3600), free_percent_min: 0 });
        assert!(work.join("sandboxes").join(name(LaunchId(1))).exists());
        collect(&work, GcPolicy { retention: Duration::ZERO, free_percent_min: 0 });
        assert!(!work.join("sandboxes").join(name(LaunchId(1))).exists());
        assert!(!work.join("logs").join(name(LaunchId(1))).exists());
        assert!(work.join("sandboxes").join(name(LaunchId(2))).exists(), "a task that is not forgotten");
        assert!(forgotten(&work).is_empty());
        fs::remove_dir_all(&work).unwrap();
    }

    #[test]
    fn a_full_disk_costs_the_oldest_first() {
        let work = work("full");
        forget(&work, LaunchId(1));
        // 101 per cent free there never is.
        collect(&work, GcPolicy { retention: Duration::from_secs(3600), free_percent_min: 101 });
        assert!(forgotten(&work).is_empty());
        fs::remove_dir_all(&work).unwrap();
    }

    #[test]
    fn deep_trees_and_links_do_no_harm() {
        let work = work("deep");
        forget(&work, LaunchId(1));
        let outside = work.join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), b"x").unwrap();
        let sandbox = work.join("sandboxes").join(name(LaunchId(1)));
        std::os::unix::fs::symlink(&outside, sandbox.join("link")).unwrap();
        fs::create_dir(sandbox.join("proffer-moved-1")).unwrap();
        // Deeper than a path may be long.
        let mut dir = open_dir(nix::fcntl::AT_FDCWD, &sandbox).unwrap();
        for _ in 0..2100 {
            nix::sys::stat::mkdirat(&dir, "d", Mode::S_IRWXU).unwrap();
            dir = open_dir(dir.as_fd(), "d").unwrap();
        }
        drop(dir);
        collect(&work, GcPolicy { retention: Duration::ZERO, free_percent_min: 0 });
        assert!(!sandbox.exists());
        assert!(outside.join("kept").exists());
        fs::remove_dir_all(&work).unwrap();
    }
}
