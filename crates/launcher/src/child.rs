//! A process of a container between clone and the program's execve: its init, or one that joins it. Nothing here
//! allocates: the heap may not even be mapped.
//!
//! In one pass: set up by descriptors, enter the view, mask, drop privileges, no new privileges, filter, close, exec.
//! Nothing of the task runs before that is done. Rules that answer a known escape name it where they stand.

use std::ffi::{c_int, c_ulong, c_void};
use std::os::fd::RawFd;
use std::ptr;

use crate::error::Step;
use crate::init;
use crate::payload;
use crate::request::Plan;
use crate::sys::{self, Errno, check_int};
use crate::view;

/// A failed step and its error number.
pub(crate) type Failed = (Step, Errno);

/// What init writes to its status socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Record {
    pub(crate) kind: u32,
    pub(crate) step: u32,
    /// An error number, or a wait status.
    pub(crate) value: i32,
}

pub(crate) const RECORD_STARTED: u32 = 1;
pub(crate) const RECORD_SETUP_FAILED: u32 = 2;
pub(crate) const RECORD_EXEC_FAILED: u32 = 3;
pub(crate) const RECORD_EXITED: u32 = 4;
/// Comes with a descriptor.
pub(crate) const RECORD_TERMINAL: u32 = 5;
pub(crate) const RECORD_READY: u32 = 6;

/// The last capability number to try; the kernel answers EINVAL beyond its own last.
const CAP_LAST: c_ulong = 63;

/// Becomes the container's init.
///
/// # Safety
/// Called once, in a child just cloned with all signals blocked; `plan` lies in memory of this process.
pub(crate) unsafe fn run(plan: *mut Plan) -> ! {
    // SAFETY: the plan was written before the clone, and this process has one thread.
    let fixed = unsafe { &*plan };
    if let Err((step, errno)) = set_up(fixed) {
        report(fixed.status, Record { kind: RECORD_SETUP_FAILED, step: step as u32, value: errno });
        sys::exit(1);
    }
    if fixed.hold {
        report(fixed.status, Record { kind: RECORD_READY, step: 0, value: 0 });
        wait_for_gate(fixed.status);
    }
    // SAFETY: until its execve the payload runs on this stack in this memory while this thread waits
    // (CLONE_VFORK), and it writes nothing of it but `failure`.
    let payload = unsafe {
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        check_int(libc::clone(payload::run, (*plan).stack_top.cast(), flags, plan.cast()))
    };
    let payload = match payload {
        Ok(pid) => pid,
        Err(errno) => {
            let step = Step::ForkPayload as u32;
            report(fixed.status, Record { kind: RECORD_SETUP_FAILED, step, value: errno });
            sys::exit(1);
        }
    };
    // SAFETY: read anew, because the payload wrote it behind the compiler's back.
    let failure = unsafe { ptr::read_volatile(&raw const (*plan).failure) };
    if failure.step != 0 {
        report(fixed.status, failed(failure.step, failure.errno));
        sys::exit(1);
    }
    // A task of user 0 can list /proc/1/fd although it cannot follow it: nothing is left there.
    let status = fixed.status as u32;
    let _ = sys::close_range(0, status - 1);
    let _ = sys::close_range(status + 1, u32::MAX);
    report(fixed.status, Record { kind: RECORD_STARTED, step: 0, value: 0 });
    init::wait(fixed.linux, fixed.parent_pid, payload, fixed.status)
}

/// Becomes a program in a running container.
///
/// # Safety
/// As [`run`]; the child was cloned into the container's pid namespace.
pub(crate) unsafe fn run_joined(plan: *mut Plan) -> ! {
    // SAFETY: the plan was written before the clone, and this process has one thread.
    let plan = unsafe { &*plan };
    if let Err((step, errno)) = set_up(plan).and_then(|()| payload::exec(plan)) {
        report(plan.status, failed(step as u32, errno));
    }
    sys::exit(127)
}

/// The record of a failed step. What the task's own settings make fail is told from what the node does.
fn failed(step: u32, errno: Errno) -> Record {
    let own = step == Step::Chdir as u32 || step == Step::Execve as u32;
    Record { kind: if own { RECORD_EXEC_FAILED } else { RECORD_SETUP_FAILED }, step, value: errno }
}

/// Sends a record with a descriptor.
pub(crate) fn report_with(status: c_int, record: Record, fd: RawFd) -> Result<(), Errno> {
    // SAFETY: plain arithmetic.
    const SPACE: usize = unsafe { libc::CMSG_SPACE(size_of::<RawFd>() as u32) } as usize;
    let mut space = [0u64; SPACE.div_ceil(8)];
    let mut slice =
        libc::iovec { iov_base: ptr::from_ref(&record).cast_mut().cast(), iov_len: size_of::<Record>() };
    // SAFETY: everything that the message points to is owned here and as long as it says; the control buffer has
    // room for one header with one descriptor.
    let sent = unsafe {
        let mut message = std::mem::zeroed::<libc::msghdr>();
        message.msg_iov = &mut slice;
        message.msg_iovlen = 1;
        message.msg_control = space.as_mut_ptr().cast();
        message.msg_controllen = SPACE as _;
        let header = libc::CMSG_FIRSTHDR(&message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(size_of::<RawFd>() as u32) as _;
        libc::CMSG_DATA(header).cast::<RawFd>().write_unaligned(fd);
        libc::sendmsg(status, &message, libc::MSG_NOSIGNAL)
    };
    sys::check(sent as _).map(drop)
}

pub(crate) fn report(status: c_int, record: Record) {
    // SAFETY: the record is plain data. A supervisor that is gone is found by PDEATHSIG, not here.
    unsafe {
        libc::send(status, ptr::from_ref(&record).cast(), size_of::<Record>(), libc::MSG_NOSIGNAL);
    }
}

pub(crate) fn step<T>(step: Step, result: Result<T, Errno>) -> Result<T, Failed> {
    result.map_err(|errno| (step, errno))
}

fn set_up(plan: &Plan) -> Result<(), Failed> {
    // First of all: no one may trace this process while it holds the supervisor's descriptors (CVE-2016-9962), and then
    // it holds no more than it needs (CVE-2024-21626).
    step(Step::Dumpable, sys::prctl(libc::PR_SET_DUMPABLE, 0))?;
    enter_groups(plan)?;
    // SAFETY: the array was copied with this length.
    close_all_but(unsafe { std::slice::from_raw_parts(plan.keep, plan.keep_count) })?;
    if plan.join >= 0 {
        // Of a new container only the payload has a session of its own: each is a group of the scheduler's too, and not
        // for nothing.
        // SAFETY: no arguments.
        step(Step::Setsid, check_int(unsafe { libc::setsid() }))?;
    }
    // An ignored SIGCHLD would be inherited and take the payload's status away.
    sys::default_action(libc::SIGCHLD);
    if plan.spared {
        // While there is the host's /proc.
        step(Step::OomScore, sys::reset_oom_score())?;
    }
    wait_for_gate(plan.status);
    if plan.linux {
        if plan.join >= 0 {
            view::join(plan)?
        } else {
            view::enter(plan)?
        }
        // As root, whose keys are counted apart from the task's user's.
        step(Step::Keyring, sys::new_session_keyring())?;
    }
    drop_privileges(plan)?;
    step(Step::NoNewPrivs, sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1))?;
    if plan.linux && plan.join >= 0 {
        // The container's init has a parent to die with, and this process dies with init.
        return Ok(());
    }
    die_with_parent(plan)
}

/// Moves itself into its v1 groups. A parent that moved it would first wait until no process of the machine is being
/// started or ended, and have all of them wait meanwhile: milliseconds. Nobody waits for a thread that moves itself.
fn enter_groups(plan: &Plan) -> Result<(), Failed> {
    // SAFETY: the array was copied with this length, and the descriptors are this process's own copies.
    for &group in unsafe { std::slice::from_raw_parts(plan.groups, plan.group_count) } {
        // SAFETY: one byte of static memory.
        let written = unsafe { libc::write(group, c"0".as_ptr().cast(), 1) };
        step(Step::CgroupMove, sys::check(written as libc::c_long))?;
    }
    Ok(())
}

/// Closes the gaps between the descriptors to keep: which numbers are in use is not to be guessed.
fn close_all_but(keep: &[c_int]) -> Result<(), Failed> {
    let mut first = 0u32;
    for &fd in keep {
        let fd = fd as u32;
        if fd > first {
            step(Step::CloseRange, sys::close_range(first, fd - 1))?;
        }
        first = fd + 1;
    }
    step(Step::CloseRange, sys::close_range(first, u32::MAX))
}

/// Waits for the byte that says that this process is known to its parent; a closed socket means that nobody will ever
/// say so.
fn wait_for_gate(status: c_int) {
    let mut byte = 0u8;
    loop {
        // SAFETY: one byte is owned here.
        let read = unsafe { libc::recv(status, (&raw mut byte).cast::<c_void>(), 1, 0) };
        match read {
            1 => return,
            -1 if sys::errno() == libc::EINTR => {}
            _ => sys::exit(1),
        }
    }
}

fn drop_privileges(plan: &Plan) -> Result<(), Failed> {
    if plan.privileged {
        // Groups while there is still the capability to set them.
        step(Step::Setgroups, sys::setgroups_empty())?;
    }
    if plan.user_namespace >= 0 {
        // Only now that everything is mounted: the other namespaces stay the host's, which is stricter, and the template
        // may be entered, which from inside a user namespace it may not.
        step(Step::EnterUser, sys::setns(plan.user_namespace, libc::CLONE_NEWUSER))?;
    }
    if plan.drop_bounding {
        step(Step::BoundingSet, drop_bounding_set())?;
    }
    step(Step::Ambient, sys::ambient_clear())?;
    if plan.privileged {
        step(Step::Setresgid, sys::setresgid(plan.gid))?;
        step(Step::Setresuid, sys::setresuid(plan.uid))?;
    }
    // The inheritable set too (CVE-2022-29162).
    step(Step::Capset, sys::capset_empty())?;
    // A change of user makes the process as dumpable as the system's default says.
    step(Step::Dumpable, sys::prctl(libc::PR_SET_DUMPABLE, 0)).map(drop)
}

pub(crate) fn drop_bounding_set() -> Result<(), Errno> {
    for capability in 0..=CAP_LAST {
        match sys::prctl(libc::PR_CAPBSET_DROP, capability) {
            Ok(_) => {}
            Err(libc::EINVAL) => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn die_with_parent(plan: &Plan) -> Result<(), Failed> {
    // After the last change of user, which clears it. A plain process gets a signal it can act on: its
    // descendants would outlive it.
    let signal = if plan.linux || plan.join >= 0 { libc::SIGKILL } else { libc::SIGUSR1 };
    step(Step::Pdeathsig, sys::prctl(libc::PR_SET_PDEATHSIG, signal as c_ulong))?;
    if !plan.linux && plan.join < 0 {
        step(Step::Subreaper, sys::prctl(libc::PR_SET_CHILD_SUBREAPER, 1))?;
    }
    // A parent that died before this is not told. In a new pid namespace getppid is 0 whether it lives or not, and what
    // was cloned after this process may have a copy of the other end of the socket. The kernel looks for whom to
    // tell of a death, and makes it visible, under one lock, which looking for children of our own takes: so whoever
    // is not seen to be dead now will tell.
    let mut poll = libc::pollfd { fd: plan.parent, events: libc::POLLIN, revents: 0 };
    // SAFETY: no status is written; one entry.
    unsafe {
        libc::waitpid(-1, ptr::null_mut(), libc::WNOHANG);
        libc::poll(&mut poll, 1, 0);
    }
    if poll.revents != 0 {
        sys::exit(1);
    }
    Ok(())
}
