//! From a request to a running init.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use crate::child;
use crate::container::Container;
use crate::error::{Error, Step};
use crate::request::{Descriptors, Isolation, Prepared, Request, Sandbox, prepare};
use crate::sys::{self, CloneArgs, Errno};

/// Drops every capability from this process's bounding set, for all containers to come. What the process has
/// it keeps, but what it executes from now on has none.
pub fn drop_bounding_set() -> Result<(), Error> {
    child::drop_bounding_set().map_err(|errno| Error::new(Step::BoundingSet, errno))
}

/// Clones the container's init, puts it into its cgroups and lets it go on. Never waits for it: whether the
/// set-up and the execve succeed is told by [`Container::event`].
///
/// The calling thread must live as long as the container: the kernel ends init when it does not.
pub fn spawn(request: &Request<'_>) -> Result<Container, Error> {
    let (own, childs) = status_socket()?;
    let mount = match (request.isolation, request.sandbox) {
        (Isolation::Linux(_), Some(Sandbox::Dir(dir))) => Some(sandbox_mount(dir.as_raw_fd())?),
        _ => None,
    };
    let sandbox = match (&mount, request.sandbox) {
        (Some(mount), _) => mount.as_raw_fd(),
        (None, Some(Sandbox::Mount(fd) | Sandbox::Dir(fd))) => fd.as_raw_fd(),
        (None, None) => -1,
    };
    let descriptors = Descriptors { status: childs.as_raw_fd(), sandbox };
    let prepared = prepare(request, &descriptors)?;
    let (pid, pidfd) = clone(request, &prepared)?;
    drop(prepared);
    drop(childs);
    let linux = matches!(request.isolation, Isolation::Linux(_));
    let container = Container::new(pid, pidfd, own, linux);
    for procs in request.cgroup_procs {
        if let Err(error) = nix::unistd::write(procs.as_fd(), pid.to_string().as_bytes()) {
            container.abandon();
            return Err(Error::new(Step::CgroupMove, error as i32));
        }
    }
    container.open_gate()?;
    Ok(container)
}

/// Our end is non-blocking and the child's is not. Both are moved to 3 or above: the payload's own stdin,
/// stdout and stderr go below.
fn status_socket() -> Result<(OwnedFd, OwnedFd), Error> {
    let failed = |error: nix::Error| Error::new(Step::StatusSocket, error as i32);
    let flags = SockFlag::SOCK_CLOEXEC;
    let (own, childs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).map_err(failed)?;
    let (own, childs) = (above_stdio(own)?, above_stdio(childs)?);
    nix::fcntl::fcntl(&own, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).map_err(failed)?;
    Ok((own, childs))
}

fn above_stdio(fd: OwnedFd) -> Result<OwnedFd, Error> {
    if fd.as_raw_fd() >= 3 {
        return Ok(fd);
    }
    let moved = nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(3))
        .map_err(|error| Error::new(Step::StatusSocket, error as i32))?;
    // SAFETY: just duplicated and owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(moved) })
}

/// The directory as a detached mount: the child, in another mount namespace, could not bind it.
fn sandbox_mount(dir: RawFd) -> Result<OwnedFd, Error> {
    let fd = sys::open_tree_clone(dir, c"", false).map_err(|errno| Error::new(Step::SandboxTree, errno))?;
    // SAFETY: just opened and owned by nobody else.
    let mount = unsafe { OwnedFd::from_raw_fd(fd) };
    sys::mount_setattr(fd, false, libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV)
        .map_err(|errno| Error::new(Step::SandboxAttr, errno))?;
    Ok(mount)
}

fn clone(request: &Request<'_>, prepared: &Prepared) -> Result<(i32, OwnedFd), Error> {
    let mut pidfd: RawFd = -1;
    let mut flags = libc::CLONE_PIDFD as u64;
    if matches!(request.isolation, Isolation::Linux(_)) {
        // Not the cgroup namespace, whose root would be this process's group, nor the mount namespace, which
        // is entered by the template's descriptor.
        flags |= (libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS) as u64;
    }
    let mut args = CloneArgs {
        pidfd: (&raw mut pidfd).addr() as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    if let Some(cgroup) = request.cgroup_dir {
        flags |= sys::CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    args.flags = flags;

    // Init must neither run a handler of this process nor miss a SIGTERM sent before it waits for signals.
    let mask = sys::block_all_signals();
    // SAFETY: the child only ever runs `child::run`, which touches its plan, its stack and statics.
    let result = unsafe {
        match sys::clone3(&args) {
            Ok(0) => child::run(prepared.plan()),
            other => other,
        }
    };
    sys::set_signal_mask(&mask);
    let pid = result.map_err(|errno: Errno| Error::new(Step::Clone, errno))?;
    // SAFETY: written by the kernel, owned by nobody else.
    Ok((pid, unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

/// An errno of an io::Error, EIO where it has none.
pub(crate) fn errno_of(error: &io::Error) -> Errno {
    error.raw_os_error().unwrap_or(libc::EIO)
}
