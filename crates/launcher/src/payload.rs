//! The last steps before the task's own program, taken as its user. Nothing here allocates.

use std::ffi::{CStr, c_int, c_ulong, c_void};
use std::os::fd::RawFd;
use std::ptr;

use crate::child::{Failed, RECORD_TERMINAL, Record, report_with, step};
use crate::error::Step;
use crate::request::{ExecFailure, Plan};
use crate::sys::{self, Errno, check, check_int};

/// The payload of a new container, on init's memory until its execve.
pub(crate) extern "C" fn run(plan: *mut c_void) -> c_int {
    let plan = plan.cast::<Plan>();
    // SAFETY: init's plan; init itself is suspended.
    let Err((step, errno)) = start(unsafe { &*plan }) else { return 127 };
    // SAFETY: as above.
    unsafe {
        ptr::write_volatile(&raw mut (*plan).failure, ExecFailure { step: step as u32, errno });
    }
    sys::exit(127)
}

fn start(plan: &Plan) -> Result<(), Failed> {
    // SAFETY: no arguments.
    step(Step::Setsid, check_int(unsafe { libc::setsid() }))?;
    if !plan.linux {
        // Init may be killed alone; with a pid namespace the kernel ends the rest.
        step(Step::Pdeathsig, sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as c_ulong))?;
    }
    exec(plan)
}

/// Becomes the program; returns only with the reason why not.
pub(crate) fn exec(plan: &Plan) -> Result<(), Failed> {
    // Ignored signals survive an execve: Rust ignores SIGPIPE, nohup SIGHUP.
    for signal in (1..=64).filter(|signal| plan.ignored >> (signal - 1) & 1 == 1) {
        sys::default_action(signal);
    }
    // SAFETY: integers only.
    unsafe { libc::umask(0o022) };
    if plan.terminal.is_null() {
        for (target, &fd) in plan.stdio.iter().enumerate() {
            // SAFETY: every source is 3 or above, so that no target is one.
            step(Step::Stdio, check_int(unsafe { libc::dup2(fd, target as c_int) }))?;
        }
    } else {
        step(Step::Terminal, open_terminal(plan))?;
    }
    if !plan.linux && plan.sandbox >= 0 && plan.working_directory.is_null() {
        // SAFETY: integers only.
        step(Step::Chdir, check_int(unsafe { libc::fchdir(plan.sandbox) }))?;
    }
    // Before the chdir: a working directory of /proc/self/fd/N must find nothing (CVE-2024-21626). What joins a running
    // container keeps its status socket, which closes on exec.
    let status = plan.status as u32;
    if plan.join >= 0 {
        step(Step::CloseRange, sys::close_range(3, status - 1))?;
        step(Step::CloseRange, sys::close_range(status + 1, u32::MAX))?;
    } else {
        step(Step::CloseRange, sys::close_range(3, u32::MAX))?;
    }
    if !plan.working_directory.is_null() {
        // SAFETY: a C string of the arena.
        step(Step::Chdir, check_int(unsafe { libc::chdir(plan.working_directory) }))?;
    }
    if plan.linux {
        step(Step::Chdir, sys::inside_root())?;
    }
    for index in 0..plan.limit_count {
        // SAFETY: within the array that was copied with this length.
        let (resource, limit) = unsafe { &*plan.limits.add(index) };
        // SAFETY: `limit` is read only.
        step(Step::Rlimit, check_int(unsafe { libc::setrlimit64(*resource, limit) }))?;
    }
    // SAFETY: an empty set.
    sys::set_signal_mask(&unsafe { std::mem::zeroed() });
    // Last, so that a profile need not allow what is done above; the program's own start it must.
    for index in 0..plan.filter_count {
        // SAFETY: within the array that was copied with this length.
        step(Step::Seccomp, sys::install_filter(unsafe { &*plan.filters.add(index) }))?;
    }
    if let Some(call) = plan.call {
        // SAFETY: the input was copied into the arena with this length.
        let input = unsafe { std::slice::from_raw_parts(plan.input, plan.input_length) };
        // Says that the set-up is done.
        let _ = sys::close(plan.status);
        sys::exit(call(input));
    }
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

/// Opens a terminal of the container's own devpts, as the task's user so that it is the user's, makes it stdin, stdout,
/// stderr and the controlling terminal, and sends its other side to the supervisor.
fn open_terminal(plan: &Plan) -> Result<(), Errno> {
    let path: &CStr = if plan.linux { c"/dev/pts/ptmx" } else { c"/dev/ptmx" };
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: a C string; `stat` and `unlocked` are owned here; the ioctls take what they are given.
    unsafe {
        // 0 to 2 are free so far, and about to be taken.
        let above = |fd| check_int(libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3));
        let master = above(check_int(libc::open(path.as_ptr(), flags | libc::O_NOFOLLOW))?)?;
        let mut stat = std::mem::zeroed::<libc::statfs>();
        check_int(libc::fstatfs(master, &mut stat))?;
        // By what is open, never by what a name says; its other side is reached by descriptor too
        // (CVE-2025-52565).
        #[allow(clippy::unnecessary_cast, reason = "the types differ between C libraries")]
        let foreign = stat.f_type as i64 != libc::DEVPTS_SUPER_MAGIC as i64;
        if plan.linux && foreign {
            return Err(libc::ENOTTY);
        }
        let unlocked: c_int = 0;
        check_int(libc::ioctl(master, libc::TIOCSPTLCK, &raw const unlocked))?;
        let slave = above(check_int(libc::ioctl(master, libc::TIOCGPTPEER, flags))?)?;
        check_int(libc::ioctl(slave, libc::TIOCSWINSZ, plan.terminal))?;
        check_int(libc::ioctl(slave, libc::TIOCSCTTY, 0))?;
        for target in 0..3 {
            // Closes what was opened as one of these.
            check_int(libc::dup2(slave, target))?;
        }
        report_with(plan.status, Record { kind: RECORD_TERMINAL, step: 0, value: 0 }, master as RawFd)
    }
}
