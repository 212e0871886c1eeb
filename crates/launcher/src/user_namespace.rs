//! User namespaces: a range of the host's ids that are 0, 1, … inside a container, and mounts that show files as
//! theirs.

use std::ffi::{c_int, c_void};
use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::error::{Error, Step};
use crate::spawn::errno_of;
use crate::sys;

/// Consecutive ids of the host, of users and groups alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// The host's id of user and group 0.
    pub first: u32,
    /// How many.
    pub count: u32,
}

/// A user namespace, kept by its descriptor. It costs no process.
///
/// A container enters it only after everything is mounted: its other namespaces therefore belong to the host, and no
/// capability that a task might gain in here is good for any of them.
#[derive(Debug)]
pub struct UserNamespace {
    fd: OwnedFd,
    range: IdRange,
}

impl UserNamespace {
    /// Makes one. Needs root; may be called by a process with threads.
    pub fn new(range: IdRange) -> Result<Self, Error> {
        let failed = |object: &str, errno| Error::at(Step::UserNamespace, object, errno);
        if range.count == 0 || range.first == 0 || range.first.checked_add(range.count).is_none() {
            return Err(failed(&format!("{range:?}"), libc::EINVAL));
        }
        let holder = Holder::start().map_err(|errno| failed("clone", errno))?;
        let dir = format!("/proc/{}", holder.pid);
        let map = format!("0 {} {}", range.first, range.count);
        // Projects too: any process of the namespace may write that map once, which would outlive it.
        for file in ["uid_map", "gid_map", "projid_map"] {
            fs::write(format!("{dir}/{file}"), &map).map_err(|error| failed(file, errno_of(&error)))?;
        }
        let fd =
            fs::File::open(format!("{dir}/ns/user")).map_err(|error| failed("open", errno_of(&error)))?;
        Ok(UserNamespace { fd: fd.into(), range })
    }

    /// Takes one that somebody else made with this range.
    pub fn from_fd(fd: OwnedFd, range: IdRange) -> Self {
        UserNamespace { fd, range }
    }

    /// The namespace, as setns(2) and mount_setattr(2) take it.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Its ids.
    pub fn range(&self) -> IdRange {
        self.range
    }

    /// What the host calls this user or group of the namespace.
    pub fn host_id(&self, id: u32) -> Option<u32> {
        (id < self.range.count).then(|| self.range.first + id)
    }
}

/// A process that does nothing but be in the namespace until it has a descriptor.
struct Holder {
    pid: i32,
    _stack: Box<[u128]>,
}

impl Holder {
    fn start() -> Result<Self, sys::Errno> {
        extern "C" fn hold(parent: *mut c_void) -> c_int {
            // SAFETY: integers only. All signals are blocked, so that nothing here returns an error and touches the
            // errno that it shares with its parent.
            unsafe {
                // An orphan would stay for good, with copies of all that its parent had open.
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                if libc::getppid() as usize != parent.addr() {
                    libc::_exit(1);
                }
                loop {
                    libc::pause();
                }
            }
        }
        let mut stack = vec![0u128; 256].into_boxed_slice();
        let mask = sys::block_all_signals();
        // SAFETY: it shares this process's memory, of which it uses its own stack only, and is gone before that
        // is freed. Without an exit signal its end is nobody's business but ours.
        let pid = unsafe {
            let flags = libc::CLONE_NEWUSER | libc::CLONE_VM;
            let own = std::ptr::without_provenance_mut(libc::getpid() as usize);
            sys::check_int(libc::clone(hold, stack.as_mut_ptr_range().end.cast(), flags, own))
        };
        sys::set_signal_mask(&mask);
        Ok(Holder { pid: pid?, _stack: stack })
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // SAFETY: integers only; the pid is ours until it is waited for, and it dies at once.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            while libc::waitpid(self.pid, std::ptr::null_mut(), libc::__WALL) == -1
                && sys::errno() == libc::EINTR
            {}
        }
    }
}

/// A directory as a detached mount, nosuid and nodev: what a container can be given, since it cannot bind a directory
/// of another mount namespace. With a user namespace, files of user N on disk appear there as files of its
/// user N and are created as such, whatever the range. A file system that cannot do that answers EINVAL: then
/// the files themselves must be given to [`UserNamespace::host_id`].
pub fn detached_mount(
    dir: BorrowedFd<'_>,
    read_only: bool,
    user_namespace: Option<&UserNamespace>,
) -> Result<OwnedFd, Error> {
    let fd = sys::open_tree_clone(dir.as_raw_fd(), c"", false)
        .map_err(|errno| Error::new(Step::SandboxTree, errno))?;
    // SAFETY: just opened and owned by nobody else.
    let mount = unsafe { OwnedFd::from_raw_fd(fd) };
    let read_only = if read_only { libc::MOUNT_ATTR_RDONLY } else { 0 };
    let set = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | read_only;
    let idmap = user_namespace.map(|namespace| namespace.fd.as_raw_fd());
    sys::mount_setattr(fd, false, set, idmap).map_err(|errno| Error::new(Step::SandboxAttr, errno))?;
    Ok(mount)
}
