//! What a container sees: the template, and over it what is its own. Everything here is done as root of the host,
//! by paths that lie in the template, which no task can change; nothing is resolved in a directory that a task
//! can write to (CVE-2021-30465, CVE-2024-45310).

use std::ffi::CStr;
use std::os::fd::RawFd;

use crate::child::{Failed, step};
use crate::error::Step;
use crate::request::{Placed, Plan};
use crate::sys::{self, Errno, check_int};

/// `SANDBOX_PATH` as the kernel reads it.
const SANDBOX_TARGET: &CStr = c"/mnt/proffer/sandbox";

/// Enters the view of a new container.
pub(crate) fn enter(plan: &Plan) -> Result<(), Failed> {
    // After the move into the cgroups: the namespace's root is the group of the moment (CVE-2022-0492).
    // SAFETY: integers only.
    step(Step::UnshareCgroup, check_int(unsafe { libc::unshare(libc::CLONE_NEWCGROUP) }))?;
    let shared = if plan.share >= 0 { share(plan.share)? } else { -1 };
    if !plan.hostname.is_null() {
        // SAFETY: a C string of the arena.
        let result = unsafe { libc::sethostname(plan.hostname, sys::strlen(plan.hostname)) };
        step(Step::Hostname, check_int(result))?;
    }
    step(Step::EnterTemplate, sys::setns(plan.template, libc::CLONE_NEWNS))?;
    // SAFETY: integers only. The template stays as it is: what follows is mounted in a copy of it.
    step(Step::UnshareMount, check_int(unsafe { libc::unshare(libc::CLONE_NEWNS) }))?;

    let quiet = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    // A new instance, on a directory of the host's root: never what an image or a volume has there
    // (CVE-2019-16884, CVE-2019-19921, CVE-2023-27561, CVE-2023-28642).
    let proc = sys::mount(Some(c"proc"), c"/proc", Some(c"proc"), quiet, Some(c"hidepid=invisible"));
    step(Step::MountProc, proc)?;
    step(Step::MaskProc, mask_proc(plan.uid == 0))?;
    let open = libc::MS_NOSUID | libc::MS_NODEV;
    let tmpfs = |path, flags| sys::mount(Some(c"tmpfs"), path, Some(c"tmpfs"), flags, Some(c"mode=1777"));
    step(Step::MountTmp, tmpfs(c"/tmp", open))?;
    if shared >= 0 {
        step(Step::MountShm, sys::move_mount(shared, c"/dev/shm"))?;
    } else {
        step(Step::MountShm, tmpfs(c"/dev/shm", quiet))?;
    }
    // The kernel has 3,072 terminals for all instances of devpts but the host's.
    let options = c"newinstance,ptmxmode=0666,mode=0620,max=64";
    let flags = libc::MS_NOSUID | libc::MS_NOEXEC;
    let pts = sys::mount(Some(c"devpts"), c"/dev/pts", Some(c"devpts"), flags, Some(options));
    step(Step::MountPts, pts)?;
    if plan.sandbox >= 0 {
        step(Step::MountSandbox, sys::move_mount(plan.sandbox, SANDBOX_TARGET))?;
    }
    for index in 0..plan.mount_count {
        // SAFETY: within the array that was copied with this length.
        let Placed { fd, target } = unsafe { &*plan.mounts.add(index) };
        // SAFETY: a C string of the arena.
        step(Step::MountSandbox, sys::move_mount(*fd, unsafe { CStr::from_ptr(*target) }))?;
    }
    if shared >= 0 {
        step(Step::CloseRange, sys::close(shared))?;
    }
    Ok(())
}

/// Enters the view of a container that runs.
pub(crate) fn join(plan: &Plan) -> Result<(), Failed> {
    let flags = libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWCGROUP;
    step(Step::Join, sys::setns(plan.join, flags))
}

/// Enters the IPC namespace of the container behind the pidfd, and brings its /dev/shm along as a detached mount.
fn share(container: RawFd) -> Result<RawFd, Failed> {
    step(Step::Share, sys::setns(container, libc::CLONE_NEWIPC | libc::CLONE_NEWNS))?;
    step(Step::Share, sys::open_tree_clone(libc::AT_FDCWD, c"/dev/shm", false))
}

/// What everyone may read, and nobody needs to: what keys there are, and when somebody types. A mask costs some 20 µs of a
/// launch, so that what the files' modes keep from other users is masked for user 0 alone.
const HIDDEN_FILES: [&CStr; 2] = [c"/proc/interrupts", c"/proc/keys"];
/// What belongs to the host's user 0, who without any capability still owns it: a writable core_pattern is a way out to
/// the host. User 0 of a user namespace is another user of the host's; it is masked all the same.
const ROOT_READ_ONLY: [&CStr; 8] = [
    c"/proc/sys",
    c"/proc/sysrq-trigger",
    c"/proc/irq",
    c"/proc/bus",
    c"/proc/fs",
    c"/proc/driver",
    c"/proc/dynamic_debug",
    c"/proc/mtrr",
];
const ROOT_HIDDEN_DIRS: [&CStr; 3] = [c"/proc/acpi", c"/proc/asound", c"/proc/scsi"];
const ROOT_HIDDEN_FILES: [&CStr; 5] =
    [c"/proc/kcore", c"/proc/kmsg", c"/proc/latency_stats", c"/proc/sched_debug", c"/proc/timer_list"];

/// Both sources are the template's own, read-only and made by root: nothing there can be exchanged for something else
/// while it is bound (CVE-2025-31133, CVE-2025-52881; in youki CVE-2025-62161 and CVE-2025-62596). Nothing has
/// run in this container yet.
fn mask_proc(root: bool) -> Result<(), Errno> {
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    let present = |result: Result<(), Errno>| match result {
        Err(libc::ENOENT) => Ok(false),
        other => other.map(|()| true),
    };
    let bind = |source, path| present(sys::mount(Some(source), path, None, libc::MS_BIND, None));
    for path in HIDDEN_FILES {
        bind(c"/dev/null", path)?;
    }
    if !root {
        return Ok(());
    }
    for path in ROOT_READ_ONLY {
        if bind(path, path)? {
            let again = libc::MS_BIND | libc::MS_REMOUNT | libc::MS_RDONLY | flags;
            sys::mount(None, path, None, again, None)?;
        }
    }
    for path in ROOT_HIDDEN_DIRS {
        bind(c"/run", path)?;
    }
    for path in ROOT_HIDDEN_FILES {
        bind(c"/dev/null", path)?;
    }
    Ok(())
}
