//! A running container, as its supervisor holds it.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;

use crate::child::{
    RECORD_EXEC_FAILED, RECORD_EXITED, RECORD_READY, RECORD_SETUP_FAILED, RECORD_STARTED, RECORD_TERMINAL,
    Record,
};
use crate::error::{Error, Step};
use crate::seqpacket;
use crate::spawn::open_gate;

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
    /// The payload has a terminal, whose other side [`Container::take_terminal`] or [`Joined::take_terminal`] gives.
    ///
    /// [`Joined::take_terminal`]: crate::Joined::take_terminal
    Terminal,
    /// A container that is held is complete, and waits for [`Container::release`].
    Ready,
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
    reaped: Cell<bool>,
    terminal: RefCell<Option<OwnedFd>>,
    held: Cell<bool>,
}

impl Container {
    pub(crate) fn new(pid: i32, pidfd: OwnedFd, status: OwnedFd, linux: bool, held: bool) -> Self {
        let (reaped, terminal) = (Cell::new(false), RefCell::new(None));
        Container { pid, pidfd, status, linux, reaped, terminal, held: Cell::new(held) }
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
        match receive(self.status.as_fd())? {
            Received::Record(record) => Some(decode(record)),
            Received::Terminal(fd) => {
                self.terminal.replace(Some(fd));
                Some(Event::Terminal)
            }
            // End of file, or a reset by an init that was killed.
            Received::End => Some(Event::Closed),
        }
    }

    /// The other side of the payload's terminal, once it has been told of.
    pub fn take_terminal(&self) -> Option<OwnedFd> {
        self.terminal.take()
    }

    pub(crate) fn is_linux(&self) -> bool {
        self.linux
    }

    /// Lets a container that was held execute its program. One that is already gone shows by its events.
    pub fn release(&self) -> Result<(), Error> {
        if self.held.replace(false) { open_gate(self.status.as_fd()) } else { Ok(()) }
    }

    /// Has init send SIGTERM to every other process of the container.
    pub fn terminate(&self) -> Signalled {
        self.signal(libc::SIGTERM)
    }

    /// Ends the container: kills init, with which the pid namespace ends, or has a plain init kill its
    /// descendants and end.
    pub fn kill(&self) -> Signalled {
        // One that is held has no descendants yet, and heeds no other signal.
        self.signal(if self.linux || self.held.get() { libc::SIGKILL } else { libc::SIGUSR1 })
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

/// What came through a status socket.
pub(crate) enum Received {
    Record(Record),
    Terminal(OwnedFd),
    End,
}

/// The next record, if there is one. Never waits.
pub(crate) fn receive(status: BorrowedFd<'_>) -> Option<Received> {
    let mut bytes = [0u8; size_of::<Record>()];
    match seqpacket::recv_with_descriptors(status, &mut bytes) {
        Err(Errno::EAGAIN | Errno::EINTR) => None,
        Ok((length, _, mut descriptors)) if length == bytes.len() => {
            // SAFETY: the record is plain data of this size, for which every value is valid.
            let record = unsafe { bytes.as_ptr().cast::<Record>().read_unaligned() };
            match descriptors.pop() {
                Some(fd) if record.kind == RECORD_TERMINAL => Some(Received::Terminal(fd)),
                _ => Some(Received::Record(record)),
            }
        }
        _ => Some(Received::End),
    }
}

pub(crate) fn decode(record: Record) -> Event {
    let step = Step::from_number(record.step).unwrap_or(Step::Request);
    match record.kind {
        RECORD_STARTED => Event::Started,
        RECORD_READY => Event::Ready,
        // Its descriptor was lost for want of a free one.
        RECORD_TERMINAL => Event::Terminal,
        RECORD_SETUP_FAILED => Event::SetupFailed { step, errno: record.value },
        RECORD_EXEC_FAILED => Event::ExecFailed { step, errno: record.value },
        RECORD_EXITED => Event::Exited(record.value),
        _ => Event::Closed,
    }
}
