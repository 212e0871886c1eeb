//! System calls that libc has no wrapper for, or whose wrapper must not be used after a raw clone: glibc's
//! setuid family signals every thread it believes to exist, and a cloned child has none of them.

use std::ffi::{CStr, c_char, c_int, c_long, c_ulong};
use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr;
use std::sync::OnceLock;

/// An error number.
pub(crate) type Errno = i32;

pub(crate) const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

pub(crate) fn errno() -> Errno {
    // SAFETY: the pointer is this thread's errno.
    unsafe { *libc::__errno_location() }
}

pub(crate) fn check(result: c_long) -> Result<c_long, Errno> {
    if result == -1 { Err(errno()) } else { Ok(result) }
}

pub(crate) fn check_int(result: c_int) -> Result<c_int, Errno> {
    if result == -1 { Err(errno()) } else { Ok(result) }
}

/// The second version of `struct clone_args`, with `cgroup`.
#[repr(C)]
#[derive(Default)]
pub(crate) struct CloneArgs {
    pub(crate) flags: u64,
    pub(crate) pidfd: u64,
    pub(crate) child_tid: u64,
    pub(crate) parent_tid: u64,
    pub(crate) exit_signal: u64,
    pub(crate) stack: u64,
    pub(crate) stack_size: u64,
    pub(crate) tls: u64,
    pub(crate) set_tid: u64,
    pub(crate) set_tid_size: u64,
    pub(crate) cgroup: u64,
}

/// # Safety
/// As fork: in the child (result 0) only what is safe after fork in a threaded process may be done.
pub(crate) unsafe fn clone3(args: &CloneArgs) -> Result<i32, Errno> {
    // SAFETY: `args` is a complete clone_args without CLONE_VM, so that the child returns on its own copy.
    let result = unsafe { libc::syscall(libc::SYS_clone3, ptr::from_ref(args), size_of::<CloneArgs>()) };
    check(result).map(|pid| pid as i32)
}

/// A descriptor of this process that a child may poll for its end.
pub(crate) fn own_pidfd() -> Result<OwnedFd, Errno> {
    // SAFETY: integers only; the descriptor is new and owned by nobody else.
    unsafe {
        let fd = check(libc::syscall(libc::SYS_pidfd_open, libc::getpid(), 0))?;
        Ok(OwnedFd::from_raw_fd(fd as c_int))
    }
}

#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Sets attributes on the mount behind `fd`, and on all below it if `recursive`; makes it private, and maps its
/// owners by a user namespace if one is given.
pub(crate) fn mount_setattr(
    fd: c_int,
    recursive: bool,
    set: u64,
    user_namespace: Option<c_int>,
) -> Result<(), Errno> {
    let attr = MountAttr {
        attr_set: set | if user_namespace.is_some() { libc::MOUNT_ATTR_IDMAP } else { 0 },
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: user_namespace.unwrap_or(0) as u64,
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a C string and `attr` is as long as said.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd,
            c"".as_ptr(),
            flags,
            ptr::from_ref(&attr),
            size_of::<MountAttr>(),
        )
    };
    check(result).map(drop)
}

/// A detached clone of the mount at `path` below `dir`.
pub(crate) fn open_tree_clone(dir: c_int, path: &CStr, recursive: bool) -> Result<c_int, Errno> {
    let mut flags = libc::OPEN_TREE_CLONE | libc::O_CLOEXEC as u32 | libc::AT_EMPTY_PATH as u32;
    if recursive {
        flags |= libc::AT_RECURSIVE as u32;
    }
    // SAFETY: `path` is a C string.
    check(unsafe { libc::syscall(libc::SYS_open_tree, dir, path.as_ptr(), flags) }).map(|fd| fd as c_int)
}

/// Moves the detached mount `fd` onto `target`.
pub(crate) fn move_mount(fd: c_int, target: &CStr) -> Result<(), Errno> {
    // SAFETY: both paths are C strings.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            fd,
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    check(result).map(drop)
}

/// mount(2).
pub(crate) fn mount(
    source: Option<&CStr>,
    target: &CStr,
    kind: Option<&CStr>,
    flags: c_ulong,
    data: Option<&CStr>,
) -> Result<(), Errno> {
    let text = |text: Option<&CStr>| text.map_or(ptr::null(), CStr::as_ptr);
    // SAFETY: every pointer is null or a C string.
    let result = unsafe { libc::mount(text(source), target.as_ptr(), text(kind), flags, text(data).cast()) };
    check_int(result).map(drop)
}

pub(crate) fn close_range(first: u32, last: u32) -> Result<(), Errno> {
    if first > last {
        return Ok(());
    }
    // SAFETY: plain integers; the caller owns what it closes.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0u32) }).map(drop)
}

pub(crate) fn close(fd: c_int) -> Result<(), Errno> {
    // SAFETY: the caller owns what it closes.
    check_int(unsafe { libc::close(fd) }).map(drop)
}

/// setns(2): into a namespace by its own descriptor, or into several of a process by its pidfd.
pub(crate) fn setns(fd: c_int, kinds: c_int) -> Result<(), Errno> {
    // SAFETY: integers only.
    check_int(unsafe { libc::setns(fd, kinds) }).map(drop)
}

/// Whether the working directory lies below the root: what does not, the kernel calls unreachable
/// (CVE-2024-21626).
pub(crate) fn inside_root() -> Result<(), Errno> {
    let mut path = [0u8; libc::PATH_MAX as usize];
    // SAFETY: the buffer is as long as said.
    match check(unsafe { libc::syscall(libc::SYS_getcwd, path.as_mut_ptr(), path.len()) }) {
        Ok(_) if path[0] == b'/' => Ok(()),
        // Deeper than a path can say; it was reached by a path, from within.
        Err(libc::ERANGE | libc::ENAMETOOLONG) => Ok(()),
        Ok(_) => Err(libc::ENOENT),
        Err(errno) => Err(errno),
    }
}

/// Installs a seccomp filter, for good.
pub(crate) fn install_filter(filter: &libc::sock_fprog) -> Result<(), Errno> {
    let mode = libc::SECCOMP_SET_MODE_FILTER;
    // SAFETY: the filter's instructions are as many as it says.
    check(unsafe { libc::syscall(libc::SYS_seccomp, mode, 0u32, ptr::from_ref(filter)) }).map(drop)
}

pub(crate) fn prctl(option: c_int, value: c_ulong) -> Result<c_int, Errno> {
    // SAFETY: the options used here take integers only.
    check_int(unsafe { libc::prctl(option, value, 0 as c_ulong, 0 as c_ulong, 0 as c_ulong) })
}

pub(crate) fn ambient_clear() -> Result<(), Errno> {
    let clear = libc::PR_CAP_AMBIENT_CLEAR_ALL as c_ulong;
    // SAFETY: integers only.
    let result =
        unsafe { libc::prctl(libc::PR_CAP_AMBIENT, clear, 0 as c_ulong, 0 as c_ulong, 0 as c_ulong) };
    check_int(result).map(drop)
}

/// Empties the effective, permitted and inheritable sets of this thread.
pub(crate) fn capset_empty() -> Result<(), Errno> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    const VERSION_3: u32 = 0x2008_0522;
    let header = Header { version: VERSION_3, pid: 0 };
    let sets = [0u32; 6];
    // SAFETY: version 3 takes two triples of 32-bit words.
    check(unsafe { libc::syscall(libc::SYS_capset, ptr::from_ref(&header), sets.as_ptr()) }).map(drop)
}

/// Gives this process a new, empty session keyring in place of the inherited one, whose keys it would possess
/// whatever its user.
pub(crate) fn new_session_keyring() -> Result<(), Errno> {
    const KEYCTL_JOIN_SESSION_KEYRING: c_int = 1;
    let anonymous = ptr::null::<c_char>();
    // SAFETY: a null name is an anonymous keyring.
    match check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, anonymous) }) {
        // A kernel without keys, or a filter around all of us that denies them: to the container too.
        Err(libc::ENOSYS | libc::EPERM) => Ok(()),
        joined => joined.map(drop),
    }
}

/// Which process the kernel prefers to kill when the host has no memory; from -1000 (none) to 1000.
pub(crate) const OOM_SCORE_ADJ: &str = "/proc/self/oom_score_adj";

/// Makes this process as likely to be killed as any other.
pub(crate) fn reset_oom_score() -> Result<(), Errno> {
    // `OOM_SCORE_ADJ` as the kernel reads it.
    let path = c"/proc/self/oom_score_adj";
    // SAFETY: a C string, and one byte of static memory; the descriptor is closed where it was opened.
    unsafe {
        let fd = check_int(libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC))?;
        let written = check(libc::write(fd, c"0".as_ptr().cast(), 1) as c_long);
        libc::close(fd);
        written.map(drop)
    }
}

pub(crate) fn setgroups_empty() -> Result<(), Errno> {
    // SAFETY: zero groups are read.
    check(unsafe { libc::syscall(libc::SYS_setgroups, 0usize, ptr::null::<u32>()) }).map(drop)
}

pub(crate) fn setresgid(gid: u32) -> Result<(), Errno> {
    // SAFETY: integers only.
    check(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) }).map(drop)
}

pub(crate) fn setresuid(uid: u32) -> Result<(), Errno> {
    // SAFETY: integers only.
    check(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) }).map(drop)
}

/// Resets the action of `signal`, those that glibc keeps to itself included.
pub(crate) fn default_action(signal: c_int) {
    // The kernel's sigaction is at most four words, and all zeroes is SIG_DFL. SIGKILL and SIGSTOP answer
    // EINVAL, which is as good.
    let action = [0usize; 4];
    // SAFETY: `action` is as large as the kernel reads.
    unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, action.as_ptr(), ptr::null::<u8>(), 8usize) };
}

/// The signals that this process ignores, 1 << (number - 1) each; as they were at the first call, because asking takes
/// as many system calls as there are signals.
pub(crate) fn ignored_signals() -> u64 {
    static IGNORED: OnceLock<u64> = OnceLock::new();
    *IGNORED.get_or_init(|| {
        let ignored = |signal: &c_int| {
            let mut action = [0usize; 4];
            // SAFETY: `action` is as large as the kernel writes.
            let result = unsafe {
                let none = ptr::null::<u8>();
                libc::syscall(libc::SYS_rt_sigaction, *signal, none, action.as_mut_ptr(), 8usize)
            };
            result == 0 && action[0] == libc::SIG_IGN
        };
        (1..=64).filter(ignored).fold(0, |mask, signal| mask | 1 << (signal - 1))
    })
}

/// Blocks every signal and returns what was blocked before.
pub(crate) fn block_all_signals() -> libc::sigset_t {
    // SAFETY: both sets are owned here.
    unsafe {
        let mut all = std::mem::zeroed::<libc::sigset_t>();
        let mut before = std::mem::zeroed::<libc::sigset_t>();
        libc::sigfillset(&mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &all, &mut before);
        before
    }
}

pub(crate) fn set_signal_mask(mask: &libc::sigset_t) {
    // SAFETY: `mask` is a valid set.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, mask, ptr::null_mut()) };
}

pub(crate) fn exit(code: c_int) -> ! {
    // SAFETY: ends the process without running anything of the parent's.
    unsafe { libc::_exit(code) }
}

pub(crate) fn strlen(text: *const c_char) -> usize {
    // SAFETY: callers pass C strings of the arena.
    unsafe { libc::strlen(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oom_score_becomes_the_usual_one() {
        let score = || std::fs::read_to_string(OOM_SCORE_ADJ).expect("own score");
        std::fs::write(OOM_SCORE_ADJ, "300").expect("anyone may raise it");
        assert_eq!(score(), "300\n");
        reset_oom_score().expect("written");
        assert_eq!(score(), "0\n");
    }
}
