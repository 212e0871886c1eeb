//! The container's init between clone and the payload's execve. Nothing here allocates: the heap may not even
//! be mapped.

use std::ffi::{CStr, c_int, c_ulong, c_void};
use std::ptr;

use crate::error::Step;
use crate::init;
use crate::request::{ExecFailure, Plan};
use crate::sys::{self, Errno, check, check_int};

/// A failed step and its error number.
type Failed = (Step, Errno);

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
    // SAFETY: until its execve the payload runs on this stack in this memory while this thread waits
    // (CLONE_VFORK), and it writes nothing of it but `failure`.
    let payload = unsafe {
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        check_int(libc::clone(payload, (*plan).stack_top.cast(), flags, plan.cast()))
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
        let kind = RECORD_EXEC_FAILED;
        report(fixed.status, Record { kind, step: failure.step, value: failure.errno });
        sys::exit(1);
    }
    // A task of user 0 can list /proc/1/fd although it cannot follow it: nothing is left there.
    let status = fixed.status as u32;
    let _ = sys::close_range(0, status - 1);
    let _ = sys::close_range(status + 1, u32::MAX);
    report(fixed.status, Record { kind: RECORD_STARTED, step: 0, value: 0 });
    init::wait(fixed.linux, fixed.parent_pid, payload, fixed.status)
}

pub(crate) fn report(status: c_int, record: Record) {
    // SAFETY: the record is plain data. A supervisor that is gone is found by PDEATHSIG, not here.
    unsafe {
        libc::send(status, ptr::from_ref(&record).cast(), size_of::<Record>(), libc::MSG_NOSIGNAL);
    }
}

fn step<T>(step: Step, result: Result<T, Errno>) -> Result<T, Failed> {
    result.map_err(|errno| (step, errno))
}

fn set_up(plan: &Plan) -> Result<(), Failed> {
    // First of all: no one may trace this process while it holds the supervisor's descriptors.
    step(Step::Dumpable, sys::prctl(libc::PR_SET_DUMPABLE, 0))?;
    close_all_but(&plan.keep[..plan.keep_count])?;
    // SAFETY: no arguments.
    step(Step::Setsid, check_int(unsafe { libc::setsid() }))?;
    // An ignored SIGCHLD would be inherited and take the payload's status away.
    sys::default_action(libc::SIGCHLD);
    if plan.spared {
        // While there is the host's /proc.
        step(Step::OomScore, sys::reset_oom_score())?;
    }
    wait_for_gate(plan.status);
    if plan.linux {
        enter_view(plan)?;
        // As root, whose keys are counted apart from the task's user's.
        step(Step::Keyring, sys::new_session_keyring())?;
    }
    drop_privileges(plan)?;
    for index in 0..plan.limit_count {
        // SAFETY: within the array that was copied with this length.
        let (resource, limit) = unsafe { &*plan.limits.add(index) };
        // SAFETY: `limit` is read only.
        step(Step::Rlimit, check_int(unsafe { libc::setrlimit64(*resource, limit) }))?;
    }
    step(Step::NoNewPrivs, sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1))?;
    die_with_parent(plan)
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

/// Waits for the byte that says that this process is in its cgroups; a closed socket means that nobody will
/// ever say so.
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

fn enter_view(plan: &Plan) -> Result<(), Failed> {
    // After the move into the cgroups: the namespace's root is the group of the moment.
    // SAFETY: integers only.
    step(Step::UnshareCgroup, check_int(unsafe { libc::unshare(libc::CLONE_NEWCGROUP) }))?;
    if !plan.hostname.is_null() {
        // SAFETY: a C string of the arena.
        let result = unsafe { libc::sethostname(plan.hostname, sys::strlen(plan.hostname)) };
        step(Step::Hostname, check_int(result))?;
    }
    // SAFETY: integers only.
    step(Step::EnterTemplate, check_int(unsafe { libc::setns(plan.template, libc::CLONE_NEWNS) }))?;
    // SAFETY: integers only. The template stays as it is: what follows is mounted in a copy of it.
    step(Step::UnshareMount, check_int(unsafe { libc::unshare(libc::CLONE_NEWNS) }))?;

    let quiet = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    let proc = sys::mount(Some(c"proc"), c"/proc", Some(c"proc"), quiet, Some(c"hidepid=invisible"));
    step(Step::MountProc, proc)?;
    if plan.uid == 0 {
        step(Step::MaskProc, mask_proc())?;
    }
    let open = libc::MS_NOSUID | libc::MS_NODEV;
    let tmpfs = |path, flags| sys::mount(Some(c"tmpfs"), path, Some(c"tmpfs"), flags, Some(c"mode=1777"));
    step(Step::MountTmp, tmpfs(c"/tmp", open))?;
    step(Step::MountShm, tmpfs(c"/dev/shm", quiet))?;
    let options = c"newinstance,ptmxmode=0666,mode=0620";
    let flags = libc::MS_NOSUID | libc::MS_NOEXEC;
    let pts = sys::mount(Some(c"devpts"), c"/dev/pts", Some(c"devpts"), flags, Some(options));
    step(Step::MountPts, pts)?;
    if plan.sandbox >= 0 {
        step(Step::MountSandbox, sys::move_mount(plan.sandbox, SANDBOX_TARGET))?;
    }
    Ok(())
}

/// `SANDBOX_PATH` as the kernel reads it.
const SANDBOX_TARGET: &CStr = c"/mnt/proffer/sandbox";

/// User 0 without capabilities still owns these files: a writable core_pattern is a way out to the host.
fn mask_proc() -> Result<(), Errno> {
    const READ_ONLY: [&CStr; 5] =
        [c"/proc/sys", c"/proc/sysrq-trigger", c"/proc/irq", c"/proc/bus", c"/proc/fs"];
    const HIDDEN_DIRS: [&CStr; 3] = [c"/proc/acpi", c"/proc/asound", c"/proc/scsi"];
    const HIDDEN_FILES: [&CStr; 6] = [
        c"/proc/kcore",
        c"/proc/keys",
        c"/proc/kmsg",
        c"/proc/latency_stats",
        c"/proc/sched_debug",
        c"/proc/timer_list",
    ];
    let present = |result: Result<(), Errno>| match result {
        Err(libc::ENOENT) => Ok(false),
        other => other.map(|()| true),
    };
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    for path in READ_ONLY {
        if present(sys::mount(Some(path), path, None, libc::MS_BIND, None))? {
            let again = libc::MS_BIND | libc::MS_REMOUNT | libc::MS_RDONLY | flags;
            sys::mount(None, path, None, again, None)?;
        }
    }
    // Both sources are the template's own, read-only and made by root: nothing there can be exchanged.
    for path in HIDDEN_DIRS {
        present(sys::mount(Some(c"/run"), path, None, libc::MS_BIND, None))?;
    }
    for path in HIDDEN_FILES {
        present(sys::mount(Some(c"/dev/null"), path, None, libc::MS_BIND, None))?;
    }
    Ok(())
}

fn drop_privileges(plan: &Plan) -> Result<(), Failed> {
    if plan.drop_bounding {
        step(Step::BoundingSet, drop_bounding_set())?;
    }
    step(Step::Ambient, sys::ambient_clear())?;
    if plan.privileged {
        // Groups while there is still the capability to set them.
        step(Step::Setgroups, sys::setgroups_empty())?;
        step(Step::Setresgid, sys::setresgid(plan.gid))?;
        step(Step::Setresuid, sys::setresuid(plan.uid))?;
    }
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
    let signal = if plan.linux { libc::SIGKILL } else { libc::SIGUSR1 };
    step(Step::Pdeathsig, sys::prctl(libc::PR_SET_PDEATHSIG, signal as c_ulong))?;
    if !plan.linux {
        step(Step::Subreaper, sys::prctl(libc::PR_SET_CHILD_SUBREAPER, 1))?;
    }
    // A parent that died before this is seen by the closed socket: in a new pid namespace getppid is 0
    // whether it lives or not.
    let mut poll = libc::pollfd { fd: plan.status, events: 0, revents: 0 };
    // SAFETY: one entry.
    unsafe { libc::poll(&mut poll, 1, 0) };
    if poll.revents & libc::POLLHUP != 0 {
        sys::exit(1);
    }
    Ok(())
}

/// The payload, on init's memory until its execve.
extern "C" fn payload(plan: *mut c_void) -> c_int {
    let plan = plan.cast::<Plan>();
    // SAFETY: init's plan; init itself is suspended.
    let Err((step, errno)) = exec(unsafe { &*plan }) else { return 127 };
    // SAFETY: as above.
    unsafe {
        ptr::write_volatile(&raw mut (*plan).failure, ExecFailure { step: step as u32, errno });
    }
    sys::exit(127)
}

fn exec(plan: &Plan) -> Result<(), Failed> {
    // SAFETY: integers only, here and below.
    step(Step::Setsid, check_int(unsafe { libc::setsid() }))?;
    // Ignored signals survive an execve: Rust ignores SIGPIPE, nohup SIGHUP.
    for signal in 1..=64 {
        sys::default_action(signal);
    }
    if !plan.linux {
        // Init may be killed alone; with a pid namespace the kernel ends the rest.
        step(Step::Pdeathsig, sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as c_ulong))?;
    }
    // SAFETY: integers only.
    unsafe { libc::umask(0o022) };
    for (target, &fd) in plan.stdio.iter().enumerate() {
        // SAFETY: every source is 3 or above, so that no target is one.
        step(Step::Stdio, check_int(unsafe { libc::dup2(fd, target as c_int) }))?;
    }
    if !plan.linux && plan.sandbox >= 0 && plan.working_directory.is_null() {
        // SAFETY: integers only.
        step(Step::Chdir, check_int(unsafe { libc::fchdir(plan.sandbox) }))?;
    }
    // Before the chdir: a working directory of /proc/self/fd/N must find nothing.
    step(Step::CloseRange, sys::close_range(3, u32::MAX))?;
    if !plan.working_directory.is_null() {
        // SAFETY: a C string of the arena.
        step(Step::Chdir, check_int(unsafe { libc::chdir(plan.working_directory) }))?;
    }
    // SAFETY: an empty set.
    sys::set_signal_mask(&unsafe { std::mem::zeroed() });
    Err((Step::Execve, exec_first(plan)))
}

/// Tries the programs in order, as execvp does, and returns why none ran.
fn exec_first(plan: &Plan) -> Errno {
    let mut denied = false;
    let mut index = 0;
    loop {
        // SAFETY: the array ends with a null pointer.
        let program = unsafe { *plan.programs.add(index) };
        if program.is_null() {
            return if denied { libc::EACCES } else { libc::ENOENT };
        }
        // SAFETY: C strings and null-terminated arrays of the arena.
        let result = unsafe { libc::execve(program, plan.argv, plan.envp) };
        match check(result.into()).err() {
            Some(libc::EACCES) => denied = true,
            Some(libc::ENOENT | libc::ENOTDIR) => {}
            Some(errno) => return errno,
            None => {}
        }
        index += 1;
    }
}
