//! The container's init after the payload has started: it forwards SIGTERM, reaps, and reports.

use std::ffi::c_int;
use std::ptr;

use crate::child::{RECORD_EXITED, Record, report};
use crate::sys;
use crate::tree;

/// Rounds of killing what is left of a plain process tree: new children may appear between two looks.
const KILL_ROUNDS: usize = 200;

/// Waits until the payload has ended, reports its wait status, and ends. With `linux` the kernel then kills
/// the pid namespace; without, this process kills its descendants first.
pub(crate) fn wait(linux: bool, parent: i32, payload: i32, status: c_int) -> ! {
    // Signals from outside the pid namespace show no sender; without one the sender is the supervisor.
    let outside = if linux { 0 } else { parent };
    // SAFETY: an owned set and owned signal information throughout.
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&mut set);
        for signal in [libc::SIGCHLD, libc::SIGTERM, libc::SIGUSR1] {
            libc::sigaddset(&mut set, signal);
        }
        loop {
            let mut info = std::mem::zeroed::<libc::siginfo_t>();
            match libc::sigwaitinfo(&set, &mut info) {
                libc::SIGTERM if info.si_pid() == outside => terminate(linux),
                libc::SIGUSR1 if !linux && info.si_pid() == outside => {
                    finish(linux, status, kill_tree(payload));
                }
                libc::SIGCHLD => {
                    if let Some(ended) = reap(payload) {
                        finish(linux, status, Some(ended));
                    }
                }
                _ => {}
            }
        }
    }
}

fn finish(linux: bool, status: c_int, ended: Option<c_int>) -> ! {
    if !linux {
        kill_tree(0);
    }
    if let Some(value) = ended {
        report(status, Record { kind: RECORD_EXITED, step: 0, value });
    }
    sys::exit(0)
}

fn terminate(linux: bool) {
    if linux {
        // Pid 1 reaches every other process of its namespace and nothing else.
        // SAFETY: integers only.
        unsafe { libc::kill(-1, libc::SIGTERM) };
    } else {
        tree::signal_descendants(libc::SIGTERM);
    }
}

/// Reaps what has ended; the payload's status if it is among them.
fn reap(payload: i32) -> Option<c_int> {
    let mut found = None;
    loop {
        let mut status = 0;
        // SAFETY: `status` is owned here.
        let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) };
        if pid <= 0 {
            return found;
        }
        if pid == payload {
            found = Some(status);
        }
    }
}

/// Kills every descendant until none is left, as far as that can be done without a namespace; the payload's
/// status if it was reaped here.
fn kill_tree(payload: i32) -> Option<c_int> {
    let mut found = None;
    for _ in 0..KILL_ROUNDS {
        found = reap(payload).or(found);
        // Every descendant whose ancestors have ended is a child of this process: no child, no descendant.
        // SAFETY: no status is written, and WNOWAIT leaves what has ended for `reap`.
        let none = unsafe {
            let mut info = std::mem::zeroed::<libc::siginfo_t>();
            libc::waitid(libc::P_ALL, 0, &mut info, libc::WEXITED | libc::WNOHANG | libc::WNOWAIT) == -1
        };
        if none {
            break;
        }
        tree::signal_descendants(libc::SIGKILL);
        let pause = libc::timespec { tv_sec: 0, tv_nsec: 1_000_000 };
        // SAFETY: `pause` is owned here.
        unsafe { libc::nanosleep(&pause, ptr::null_mut()) };
    }
    found
}
