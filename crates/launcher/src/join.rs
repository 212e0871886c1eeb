//! A program in a container that already runs.

use std::cell::{Cell, RefCell};
use std::ffi::c_ulong;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;

use crate::child::{RECORD_EXEC_FAILED, RECORD_SETUP_FAILED, run_joined};
use crate::container::{Container, Event, Received, Signalled, decode, receive};
use crate::error::{Error, Step};
use crate::request::{Call, Extra, Isolation, Prepared, Request, Sandbox, prepare};
use crate::spawn::{clone, errno_of, open_gate, own_pidfd, status_socket};
use crate::sys;

/// Runs a program, or `call`, in the running `container`: a child of this process in the container's namespaces, with what
/// `request` says of user, user namespace, limits, filters and cgroups, which should be what the container was
/// launched with. Its `isolation` must be the container's; its host name, mounts and template are not used. A plain
/// container has nothing to enter: the program is then a process like it. Never waits for the child.
///
/// The program ends with the container. The caller ends it sooner with [`Joined::kill`].
pub fn join(container: &Container, request: &Request<'_>, call: Option<Call<'_>>) -> Result<Joined, Error> {
    let linux = matches!(request.isolation, Isolation::Linux(_));
    if linux != container.is_linux() {
        return Err(Error::at(Step::Join, "another isolation", libc::EINVAL));
    }
    reap_dropped();
    let (own, childs) = status_socket()?;
    let sandbox = match request.sandbox {
        Some(Sandbox::Dir(dir)) if !linux => Some(dir.as_raw_fd()),
        _ => None,
    };
    let join = Some(container.pidfd().as_raw_fd());
    let status = childs.as_raw_fd();
    // What joins a container of namespaces ends with its init.
    let own_pidfd = if linux { None } else { Some(own_pidfd()?) };
    let parent = own_pidfd.as_ref().map(AsRawFd::as_raw_fd);
    let prepared = prepare(request, &Extra { status, parent, sandbox, join, call, ..Extra::default() })?;
    let (pid, pidfd) = if linux {
        clone_inside(container, request, &prepared)?
    } else {
        clone(request, 0, run_joined, &prepared)?
    };
    drop((prepared, childs));
    let joined = Joined {
        pid,
        pidfd,
        status: own,
        said: Cell::new(false),
        ended: Cell::new(false),
        reaped: Cell::new(false),
        terminal: RefCell::new(None),
    };
    // Dropping it kills a child that is not let go on.
    open_gate(joined.status.as_fd())?;
    Ok(joined)
}

/// Clones into the container's pid namespace, which only a new process can be in. The child must be born undumpable:
/// what is in the container sees it from then on (CVE-2016-9962).
fn clone_inside(
    container: &Container,
    request: &Request<'_>,
    prepared: &Prepared,
) -> Result<(i32, OwnedFd), Error> {
    let failed = |errno| Error::new(Step::Join, errno);
    let own = fs::File::open("/proc/self/ns/pid").map_err(|error| failed(errno_of(&error)))?;
    let dumpable = sys::prctl(libc::PR_GET_DUMPABLE, 0).map_err(failed)?;
    sys::prctl(libc::PR_SET_DUMPABLE, 0).map_err(failed)?;
    let result =
        sys::setns(container.pidfd().as_raw_fd(), libc::CLONE_NEWPID).map_err(failed).and_then(|()| {
            let result = clone(request, 0, run_joined, prepared);
            if sys::setns(own.as_raw_fd(), libc::CLONE_NEWPID).is_err() {
                // Every later container would be born in this one and end with it.
                std::process::abort();
            }
            result
        });
    // 2 cannot be set.
    if dumpable == 1 {
        sys::prctl(libc::PR_SET_DUMPABLE, dumpable as c_ulong).map_err(failed)?;
    }
    result
}

/// A program in a container, as its supervisor holds it: dropping it kills one that has not been reaped.
#[derive(Debug)]
pub struct Joined {
    pid: i32,
    pidfd: OwnedFd,
    status: OwnedFd,
    /// A failure, or the start, was told.
    said: Cell<bool>,
    ended: Cell<bool>,
    reaped: Cell<bool>,
    terminal: RefCell<Option<OwnedFd>>,
}

impl Joined {
    /// Its pid as this process sees it.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Readable when [`event`](Self::event) has something to say.
    pub fn status_fd(&self) -> BorrowedFd<'_> {
        self.status.as_fd()
    }

    /// Readable when [`reap`](Self::reap) will succeed.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// The next event, if there is one. Never waits. [`Event::Exited`] is not among them: see [`reap`](Self::reap).
    /// A child that is killed before its program starts may be told as started.
    pub fn event(&self) -> Option<Event> {
        if self.ended.get() {
            return Some(Event::Closed);
        }
        match receive(self.status.as_fd())? {
            Received::Record(record) => {
                self.said.set(matches!(record.kind, RECORD_SETUP_FAILED | RECORD_EXEC_FAILED));
                Some(decode(record))
            }
            Received::Terminal(fd) => {
                self.terminal.replace(Some(fd));
                Some(Event::Terminal)
            }
            // Closed by the execve.
            Received::End => {
                self.ended.set(true);
                Some(if self.said.replace(true) { Event::Closed } else { Event::Started })
            }
        }
    }

    /// The other side of the program's terminal, once it has been told of.
    pub fn take_terminal(&self) -> Option<OwnedFd> {
        self.terminal.take()
    }

    /// Sends a signal to the program alone.
    pub fn signal(&self, signal: i32) -> Signalled {
        if self.reaped.get() {
            return Signalled::Gone;
        }
        // SAFETY: no signal information is passed.
        let result = unsafe {
            let none = std::ptr::null::<libc::siginfo_t>();
            libc::syscall(libc::SYS_pidfd_send_signal, self.pidfd.as_raw_fd(), signal, none, 0)
        };
        if result == 0 { Signalled::Sent } else { Signalled::Gone }
    }

    /// Sends a signal to the program and what it started in its own process group.
    pub fn signal_group(&self, signal: i32) -> Signalled {
        // SAFETY: integers only; it is not reaped, so that the number is still its own.
        let sent = !self.reaped.get() && unsafe { libc::kill(-self.pid, signal) } == 0;
        if sent { Signalled::Sent } else { self.signal(signal) }
    }

    /// Kills the program and what it started in its own process group. What has left that group ends with the container.
    pub fn kill(&self) -> Signalled {
        if !self.reaped.get() {
            // SAFETY: integers only; it is not reaped, so that the number is still its own. It leads its group, or is
            // about to and has started nothing.
            unsafe { libc::kill(-self.pid, libc::SIGKILL) };
        }
        self.signal(libc::SIGKILL)
    }

    /// Its wait status once it has ended. Never waits, and succeeds once. Of one that a process of the container traces
    /// (which the default filter does not let it) there is none, though it has ended, until that lets go of it: whoever
    /// waits for [`pidfd`](Self::pidfd) must then ask again later, not at once.
    pub fn reap(&self) -> io::Result<Option<i32>> {
        let mut status = 0;
        // SAFETY: `status` is owned here; the pid is ours until it is reaped.
        match unsafe { libc::waitpid(self.pid, &mut status, libc::WNOHANG) } {
            0 => Ok(None),
            -1 => Err(io::Error::last_os_error()),
            _ => {
                self.reaped.set(true);
                Ok(Some(status))
            }
        }
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        if !self.reaped.get() {
            self.kill();
            // Not waited for: while something in the container traces it, that would be without end.
            if let Ok(mut unreaped) = UNREAPED.lock() {
                unreaped.push(self.pid);
            }
            reap_dropped();
        }
    }
}

/// Those that were dropped before they could be reaped.
static UNREAPED: Mutex<Vec<i32>> = Mutex::new(Vec::new());

/// Reaps those that were dropped before they had ended, whose containers cannot end before. Never waits; whether some have
/// not ended yet. Each [`join`] does it as well.
pub fn reap_dropped() -> bool {
    UNREAPED.lock().is_ok_and(|mut unreaped| {
        // SAFETY: no status is written. The pids are ours until they are reaped here.
        unreaped.retain(|&pid| unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::WNOHANG) } == 0);
        !unreaped.is_empty()
    })
}
