//! The supervisor's side of the logs: it holds a duplicate of every read end, so that a pump can die and be
//! replaced without a task noticing.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use proffer_launcher::seqpacket;

use crate::poller::{Poller, Token};
use crate::pump;
use crate::pump_protocol::{Add, Told, Which};

/// A pump that dies is replaced at once, one that keeps dying after pauses that double up to this.
const PAUSE_MAX: Duration = Duration::from_secs(5);
const PAUSE_MIN: Duration = Duration::from_millis(50);

/// How the streams of one launch are kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rotation {
    pub(crate) file_bytes: u64,
    pub(crate) files: u32,
    pub(crate) bytes_per_second: u64,
}

/// Where the streams of one launch go.
#[derive(Clone)]
pub(crate) struct LogTo {
    pub(crate) dir: Rc<OwnedFd>,
    pub(crate) rotation: Rotation,
}

/// What the pump said of a launch's stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Progress {
    pub(crate) launch_id: u64,
    pub(crate) which: Which,
    /// Bytes thrown away so far.
    pub(crate) dropped: u64,
    pub(crate) ended: bool,
}

struct Stream {
    launch_id: u64,
    add: Add,
    pipe: OwnedFd,
    dir: Rc<OwnedFd>,
}

struct Pump {
    pid: i32,
    pidfd: OwnedFd,
    control: OwnedFd,
    started: Instant,
    /// Streams it has not been told of yet.
    untold: VecDeque<u64>,
}

/// All streams of all launches, and the pump that writes them.
pub(crate) struct Logs {
    streams: BTreeMap<u64, Stream>,
    next: u64,
    pump: Option<Pump>,
    restart_at: Option<Instant>,
    pause: Duration,
}

impl Logs {
    pub(crate) fn new() -> Self {
        Logs { streams: BTreeMap::new(), next: 1, pump: None, restart_at: None, pause: PAUSE_MIN }
    }

    /// Starts a pump, and tells it of every stream.
    pub(crate) fn start_pump(&mut self, poller: &Poller) -> io::Result<()> {
        self.restart_at = None;
        let (control, pumps) = seqpacket::pair()?;
        let pid = spawn_pump(pumps.as_fd())?;
        drop(pumps);
        // SAFETY: our child, not yet reaped, so the pid is its own.
        let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        if pidfd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just opened and owned by nobody else.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd as RawFd) };
        poller.add(&control, Token::PumpControl)?;
        poller.add(&pidfd, Token::PumpExit)?;
        let untold = self.streams.keys().copied().collect();
        self.pump = Some(Pump { pid, pidfd, control, started: Instant::now(), untold });
        self.tell(poller);
        Ok(())
    }

    /// When [`start_pump`](Self::start_pump) is to be called again.
    pub(crate) fn restart_at(&self) -> Option<Instant> {
        self.restart_at
    }

    /// Tries again later after a failed start.
    pub(crate) fn start_failed(&mut self) {
        self.restart_at = Some(Instant::now() + PAUSE_MAX);
    }

    /// Makes the pipe of a new stream and returns its write end, which the caller closes after the clone.
    pub(crate) fn add(
        &mut self,
        launch_id: u64,
        which: Which,
        to: &LogTo,
        poller: &Poller,
    ) -> io::Result<OwnedFd> {
        let (pipe, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        self.add_source(launch_id, which, to, pipe, poller);
        Ok(write)
    }

    /// Takes up a stream that is read from `pipe`, or from a terminal.
    pub(crate) fn add_source(
        &mut self,
        launch_id: u64,
        which: Which,
        to: &LogTo,
        pipe: OwnedFd,
        poller: &Poller,
    ) {
        let stream = self.next;
        self.next += 1;
        let Rotation { file_bytes, files, bytes_per_second } = to.rotation;
        let add =
            Add { stream, which, file_bytes, files, bytes_per_second, offset: 0, dropped: 0, closing: false };
        self.streams.insert(stream, Stream { launch_id, add, pipe, dir: Rc::clone(&to.dir) });
        if let Some(pump) = &mut self.pump {
            pump.untold.push_back(stream);
        }
        self.tell(poller);
    }

    /// Nobody asks for a launch's logs any more: what is in its pipes is written, and then they are closed, whoever
    /// holds their other ends. A task may have handed its own to another.
    pub(crate) fn close(&mut self, launch_id: u64, poller: &Poller) {
        for (number, stream) in self.streams.iter_mut().filter(|(_, stream)| stream.launch_id == launch_id) {
            stream.add.closing = true;
            if let Some(pump) = &mut self.pump {
                pump.untold.push_back(*number);
            }
        }
        self.tell(poller);
    }

    /// Whether a launch has a stream that is not at its end.
    pub(crate) fn pending(&self, launch_id: u64) -> bool {
        self.streams.values().any(|stream| stream.launch_id == launch_id)
    }

    /// Whether every stream of a launch that is not at its end has lost its last writer: what is missing of it is in
    /// the pipe, and will be written.
    pub(crate) fn only_the_pump_is_late(&self, launch_id: u64) -> bool {
        self.streams.values().filter(|stream| stream.launch_id == launch_id).all(|stream| {
            let mut fds = [PollFd::new(stream.pipe.as_fd(), PollFlags::empty())];
            // A hang-up is told whether it is asked for or not.
            poll(&mut fds, PollTimeout::ZERO).is_ok() && fds[0].any().unwrap_or(false)
        })
    }

    /// The control socket is ready: what became of streams.
    pub(crate) fn on_control(&mut self, poller: &Poller) -> Vec<Progress> {
        let mut heard = Vec::new();
        while let Some(pump) = &self.pump {
            match seqpacket::recv(pump.control.as_fd()) {
                Ok(Some(datagram)) => {
                    let Some(told) = Told::decode(&datagram.body) else { continue };
                    let Some(stream) = self.streams.get_mut(&told.stream) else { continue };
                    // For the next pump: the files do not show what was lost at last.
                    (stream.add.offset, stream.add.dropped) = (told.offset, told.dropped);
                    heard.push(Progress {
                        launch_id: stream.launch_id,
                        which: stream.add.which,
                        dropped: told.dropped,
                        ended: told.ended,
                    });
                    if told.ended {
                        self.streams.remove(&told.stream);
                    }
                }
                Err(seqpacket::Error::WouldBlock) => break,
                // Its exit is told by its pidfd.
                Ok(None) | Err(_) => {
                    poller.remove(&pump.control);
                    break;
                }
            }
        }
        self.tell(poller);
        heard
    }

    /// The pump has ended: plans the next. Returns what to write to the diagnostics.
    pub(crate) fn on_exit(&mut self) -> Option<String> {
        let pump = self.pump.take()?;
        let mut status = 0;
        // SAFETY: our child; its pidfd says that it has ended.
        unsafe { libc::waitpid(pump.pid, &mut status, 0) };
        let lived = pump.started.elapsed();
        self.pause = if lived > PAUSE_MAX { PAUSE_MIN } else { (self.pause * 2).min(PAUSE_MAX) };
        let pause = if lived > PAUSE_MAX { Duration::ZERO } else { self.pause };
        self.restart_at = Some(Instant::now() + pause);
        drop(pump.pidfd);
        Some(format!("the log pump ended with wait status {status} after {} ms", lived.as_millis()))
    }

    /// Hands streams to the pump as far as its socket has room.
    fn tell(&mut self, poller: &Poller) {
        let Some(pump) = &mut self.pump else { return };
        while let Some(stream) = pump.untold.front() {
            if let Some(stream) = self.streams.get(stream) {
                let descriptors: [BorrowedFd<'_>; 2] = [stream.pipe.as_fd(), stream.dir.as_fd()];
                match seqpacket::send(pump.control.as_fd(), &stream.add.encode(), &descriptors) {
                    Ok(()) => {}
                    Err(seqpacket::Error::WouldBlock) => break,
                    // It is dying; the next one is told of all.
                    Err(_) => return,
                }
            }
            pump.untold.pop_front();
        }
        let _ = poller.watch(&pump.control, Token::PumpControl, true, !pump.untold.is_empty());
    }
}

/// Executes this very file as a pump, with `control` as its descriptor [`pump::CONTROL`]. posix_spawn shares
/// memory with the child until its exec: the heap, kept out of forked children, is there.
fn spawn_pump(control: BorrowedFd<'_>) -> io::Result<i32> {
    let name = c"proffer-executor";
    let word = CString::new(pump::SUBCOMMAND)?;
    let argv = [name.as_ptr().cast_mut(), word.as_ptr().cast_mut(), std::ptr::null_mut()];
    let env = [std::ptr::null_mut()];
    let mut pid = 0;
    // SAFETY: the actions are initialised, used and destroyed here; both arrays end with a null pointer. Where
    // the descriptor has the right number already, the action only clears its close-on-exec mark.
    let result = unsafe {
        let mut actions = std::mem::zeroed::<libc::posix_spawn_file_actions_t>();
        libc::posix_spawn_file_actions_init(&mut actions);
        libc::posix_spawn_file_actions_adddup2(&mut actions, control.as_raw_fd(), pump::CONTROL);
        let path = c"/proc/self/exe".as_ptr();
        let result =
            libc::posix_spawn(&mut pid, path, &actions, std::ptr::null(), argv.as_ptr(), env.as_ptr());
        libc::posix_spawn_file_actions_destroy(&mut actions);
        result
    };
    if result == 0 { Ok(pid) } else { Err(io::Error::from_raw_os_error(result)) }
}
