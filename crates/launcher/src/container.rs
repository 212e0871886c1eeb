//! A running container, as its supervisor holds it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::child::{RECORD_EXEC_FAILED, RECORD_EXITED, RECORD_SETUP_FAILED, RECORD_STARTED, Record};
use crate::error::{Error, Step};
use crate::sys::check;

/// What init said, in the order in which it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The payload's program was executed.
    Started,
    /// The container could not be made. Init ends.
    SetupFailed {
        /// Where.
        step: Step,
        /// Why.
        errno: i32,
    },
    /// The container stood but the program was not executed. Init ends.
    ExecFailed {
        /// Where.
        step: Step,
        /// Why; ENOENT is "not found" of the program (or of the working directory, by the step).
        errno: i32,
    },
    /// The payload ended with this status of wait(2). Init ends, and with it every process of a pid namespace.
    Exited(i32),
    /// Init is ending or gone and has nothing more to say.
    Closed,
}

/// Whether a signal reached init.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signalled {
    /// It did.
    Sent,
    /// Init is gone already.
    Gone,
}

/// A container's init: dropping it kills a container that has not been reaped.
#[derive(Debug)]
pub struct Container {
    pid: i32,
    pidfd: OwnedFd,
    status: OwnedFd,
    linux: bool,
    reaped: std::cell::Cell<bool>,
}

impl Container {
    pub(crate) fn new(pid: i32, pidfd: OwnedFd, status: OwnedFd, linux: bool) -> Self {
        Container { pid, pidfd, status, linux, reaped: false.into() }
    }

    /// Init's pid as this process sees it.
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

    /// The next event, if there is one. Never waits.
    pub fn event(&self) -> Option<Event> {
        let mut record = Record { kind: 0, step: 0, value: 0 };
        // SAFETY: the record is plain data of this size.
        let read =
            unsafe { libc::recv(self.status.as_raw_fd(), (&raw mut record).cast(), size_of::<Record>(), 0) };
        match check(read as libc::c_long) {
            Err(libc::EAGAIN | libc::EINTR) => None,
            Ok(length) if length as usize == size_of::<Record>() => Some(decode(record)),
            // End of file, or a reset by an init that was killed.
            _ => Some(Event::Closed),
        }
    }

    /// Has init send SIGTERM to every other process of the container.
    pub fn terminate(&self) -> Signalled {
        self.signal(libc::SIGTERM)
    }

    /// Ends the container: kills init, with which the pid namespace ends, or has a plain init kill its
    /// descendants and end.
    pub fn kill(&self) -> Signalled {
        self.signal(if self.linux { libc::SIGKILL } else { libc::SIGUSR1 })
    }

    /// Init's own wait status once it has ended. Never waits, and succeeds once.
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

    pub(crate) fn open_gate(&self) -> Result<(), Error> {
        // SAFETY: one byte is read. An init that is already gone shows by its status.
        let sent = unsafe {
            let byte = 1u8;
            libc::send(self.status.as_raw_fd(), (&raw const byte).cast(), 1, libc::MSG_NOSIGNAL)
        };
        match check(sent as libc::c_long) {
            Ok(_) | Err(libc::EPIPE | libc::ECONNRESET) => Ok(()),
            Err(errno) => {
                self.abandon();
                Err(Error::new(Step::Gate, errno))
            }
        }
    }

    /// Kills and reaps an init that was never let through the gate.
    pub(crate) fn abandon(&self) {
        if self.reaped.get() {
            return;
        }
        self.signal(libc::SIGKILL);
        // SAFETY: no status is written. Init has been sent a SIGKILL, so that this ends.
        unsafe { libc::waitpid(self.pid, std::ptr::null_mut(), 0) };
        self.reaped.set(true);
    }

    fn signal(&self, signal: i32) -> Signalled {
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
}

impl Drop for Container {
    fn drop(&mut self) {
        self.abandon();
    }
}

fn decode(record: Record) -> Event {
    let step = Step::from_number(record.step).unwrap_or(Step::Request);
    match record.kind {
        RECORD_STARTED => Event::Started,
        RECORD_SETUP_FAILED => Event::SetupFailed { step, errno: record.value },
        RECORD_EXEC_FAILED => Event::ExecFailed { step, errno: record.value },
        RECORD_EXITED => Event::Exited(record.value),
        _ => Event::Closed,
    }
}
