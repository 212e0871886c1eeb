//! User namespaces: a range of the host's ids that are 0, 1, … inside a container, and mounts that show files as
//! theirs.

use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::fcntl::OFlag;

use crate::error::{Error, Step};
use crate::spawn::errno_of;
use crate::sys::{self, CloneArgs};

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
        let holder = Holder::start(range.first).map_err(|errno| failed("make", errno))?;
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
}

impl Holder {
    /// Makes the namespace as this user and group of the host's. What the processes of a namespace take of what the
    /// kernel counts by user (inotify, pending signals, message queues, locked memory) it counts for the namespace's
    /// maker as well (ucounts, Linux 5.14): made by root, they would take it from root, and so from each other.
    fn start(owner: u32) -> Result<Self, sys::Errno> {
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|errno| errno as i32)?;
        let mask = sys::block_all_signals();
        let parent = std::process::id();
        // A copy, and not `CLONE_VM`: a change of user makes all who share the memory undumpable. Without an exit signal
        // its end is nobody's business but ours.
        // SAFETY: the child makes system calls only.
        let cloned = unsafe { sys::clone3(&CloneArgs::default()) };
        if cloned == Ok(0) {
            hold(parent, owner, write.as_raw_fd());
        }
        sys::set_signal_mask(&mask);
        let holder = Holder { pid: cloned? };
        drop(write);
        let mut errno = [0; 4];
        fs::File::from(read).read_exact(&mut errno).map_err(|_| libc::ESRCH)?;
        match i32::from_ne_bytes(errno) {
            0 => Ok(holder),
            errno => Err(errno),
        }
    }
}

/// The holder's life. It says by `ready` that it is in its namespace, or why it is not.
fn hold(parent: u32, owner: u32, ready: RawFd) -> ! {
    let errno = own_namespace(parent, owner).err().unwrap_or(0).to_ne_bytes();
    // SAFETY: four bytes of this stack; the rest takes integers.
    unsafe {
        libc::write(ready, errno.as_ptr().cast(), errno.len());
        loop {
            libc::pause();
        }
    }
}

fn own_namespace(parent: u32, owner: u32) -> Result<(), sys::Errno> {
    let all = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // How many processes its maker may have is how many a namespace may, and for root that was no limit: containers
    // have one of their own. Without CAP_SYS_RESOURCE it is left at what this process has, which is what the host allows
    // every user.
    // SAFETY: one rlimit.
    unsafe { libc::setrlimit(libc::RLIMIT_NPROC, &all) };
    // It keeps its capabilities, for where others may not make user namespaces.
    sys::prctl(libc::PR_SET_SECUREBITS, libc::SECBIT_NO_SETUID_FIXUP as libc::c_ulong)?;
    sys::setresgid(owner)?;
    sys::setresuid(owner)?;
    // SAFETY: integers only.
    sys::check_int(unsafe { libc::unshare(libc::CLONE_NEWUSER) })?;
    sys::prctl(libc::PR_SET_DUMPABLE, 0)?;
    // After the change of user, which clears it. An orphan would stay for good, with copies of all that its parent had
    // open.
    sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong)?;
    // SAFETY: takes nothing.
    if unsafe { libc::getppid() } as u32 != parent {
        sys::exit(1);
    }
    Ok(())
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
