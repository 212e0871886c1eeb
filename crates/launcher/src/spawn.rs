//! From a request to a running init.

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use crate::child;
use crate::container::Container;
use crate::error::{Error, Step};
use crate::request::{Extra, Isolation, Plan, Prepared, Request, Sandbox, prepare};
use crate::sys::{self, CloneArgs, Errno};
use crate::user_namespace::{UserNamespace, detached_mount};

/// Drops every capability from this process's bounding set, for all containers to come. What the process has
/// it keeps, but what it executes from now on has none.
pub fn drop_bounding_set() -> Result<(), Error> {
    child::drop_bounding_set().map_err(|errno| Error::new(Step::BoundingSet, errno))
}

/// Clones the container's init, which enters its cgroups, and lets it go on. Never waits for it: whether the
/// set-up and the execve succeed is told by [`Container::event`].
///
/// Which signals this process ignores must not change after the first call: the payload's are reset by what they were.
///
/// The calling thread must live as long as the container: the kernel ends init when it does not.
pub fn spawn(request: &Request<'_>) -> Result<Container, Error> {
    let (own, childs) = status_socket()?;
    let parent = own_pidfd()?;
    let linux = matches!(request.isolation, Isolation::Linux(_));
    // Those made here, which the child has copies of by the time they are dropped.
    let mut made = Vec::new();
    let mut place = |source, read_only| match source {
        Sandbox::Dir(dir) if linux => {
            made.push(place_of(dir, read_only, request.user_namespace)?);
            Ok(made[made.len() - 1].as_raw_fd())
        }
        Sandbox::Mount(fd) | Sandbox::Dir(fd) => Ok(fd.as_raw_fd()),
    };
    let sandbox = request.sandbox.map(|source| place(source, false)).transpose()?;
    let mounts = request.mounts.iter().map(|mount| place(mount.source, mount.read_only));
    let mounts = mounts.collect::<Result<Vec<_>, _>>()?;
    let extra = Extra {
        status: childs.as_raw_fd(),
        parent: Some(parent.as_raw_fd()),
        sandbox,
        mounts,
        ..Extra::default()
    };
    let prepared = prepare(request, &extra)?;
    let mut flags = 0;
    if linux {
        // Not the cgroup namespace, whose root would be this process's group, nor the mount namespace, which
        // is entered by the template's descriptor.
        flags |= libc::CLONE_NEWPID | libc::CLONE_NEWUTS;
        flags |= if request.share.is_some() { 0 } else { libc::CLONE_NEWIPC };
    }
    let (pid, pidfd) = clone(request, flags, child::run, &prepared)?;
    drop((prepared, childs, made));
    let container = Container::new(pid, pidfd, own, linux, request.hold);
    if let Err(error) = open_gate(container.status_fd()) {
        container.abandon();
        return Err(error);
    }
    Ok(container)
}

/// A directory as it is given to a container. In a user namespace its files appear as those of the namespace's users; where
/// the file system cannot show them so, the directory itself is given to the one that its owner is there, and what it
/// already holds stays what it is.
fn place_of(
    dir: BorrowedFd<'_>,
    read_only: bool,
    namespace: Option<&UserNamespace>,
) -> Result<OwnedFd, Error> {
    let Some(namespace) = namespace else { return detached_mount(dir, read_only, None) };
    match detached_mount(dir, read_only, Some(namespace)) {
        Err(error) if matches!(error.errno, libc::EINVAL | libc::EOPNOTSUPP) => {
            let failed = |errno: nix::Error| Error::new(Step::SandboxAttr, errno as i32);
            let stat = nix::sys::stat::fstat(dir).map_err(failed)?;
            // One that is given already has an owner beyond the namespace's own numbers.
            if let (Some(uid), Some(gid)) = (namespace.host_id(stat.st_uid), namespace.host_id(stat.st_gid)) {
                nix::unistd::fchown(dir, Some(uid.into()), Some(gid.into())).map_err(failed)?;
            }
            detached_mount(dir, read_only, None)
        }
        mounted => mounted,
    }
}

/// Lets the child go on. One that is already gone shows by its status.
pub(crate) fn open_gate(status: BorrowedFd<'_>) -> Result<(), Error> {
    let byte = 1u8;
    // SAFETY: one byte is read.
    let sent = unsafe { libc::send(status.as_raw_fd(), (&raw const byte).cast(), 1, libc::MSG_NOSIGNAL) };
    match sys::check(sent as libc::c_long) {
        Ok(_) | Err(libc::EPIPE | libc::ECONNRESET) => Ok(()),
        Err(errno) => Err(Error::new(Step::Gate, errno)),
    }
}

/// Our end is non-blocking and the child's is not. Both are moved to 3 or above: the payload's own stdin,
/// stdout and stderr go below.
pub(crate) fn status_socket() -> Result<(OwnedFd, OwnedFd), Error> {
    let failed = |error: nix::Error| Error::new(Step::StatusSocket, error as i32);
    let flags = SockFlag::SOCK_CLOEXEC;
    let (own, childs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).map_err(failed)?;
    let (own, childs) = (above_stdio(own)?, above_stdio(childs)?);
    nix::fcntl::fcntl(&own, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).map_err(failed)?;
    Ok((own, childs))
}

/// A pidfd of this process, 3 or above.
pub(crate) fn own_pidfd() -> Result<OwnedFd, Error> {
    above_stdio(sys::own_pidfd().map_err(|errno| Error::new(Step::Pdeathsig, errno))?)
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

/// What a child does with its plan, for good; safe once, in a process that was just cloned with signals blocked.
pub(crate) type Entry = unsafe fn(*mut Plan) -> !;

/// Clones a process with a pidfd, in the request's v2 group, that runs `child`.
pub(crate) fn clone(
    request: &Request<'_>,
    flags: c_int,
    child: Entry,
    prepared: &Prepared,
) -> Result<(i32, OwnedFd), Error> {
    let mut pidfd: RawFd = -1;
    let mut args = CloneArgs {
        flags: (flags | libc::CLONE_PIDFD) as u64,
        pidfd: (&raw mut pidfd).addr() as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    if let Some(cgroup) = request.cgroup_dir {
        args.flags |= sys::CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // The child must neither run a handler of this process nor miss a SIGTERM sent before it waits for signals.
    let mask = sys::block_all_signals();
    // SAFETY: the child only ever runs `child`, which touches its plan, its stack and statics.
    let result = unsafe {
        match sys::clone3(&args) {
            Ok(0) => child(prepared.plan()),
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
