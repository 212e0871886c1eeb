//! The supervisor's side of the logs: it holds a duplicate of every read end, so that a pump can die and be
//! replaced without a task noticing.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::CString;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::poll::PollFlags;
use proffer_launcher::seqpacket::{self, Receiver};

use crate::poller::{Poller, Token};
use crate::pump;
use crate::pump_protocol::{Add, Order, Position, Rotation, Told, Which};

/// A pump that dies is replaced at once, one that keeps dying after pauses that double up to this.
const PAUSE_MAX: Duration = Duration::from_secs(5);
const PAUSE_MIN: Duration = Duration::from_millis(50);

/// Where the streams of one launch go.
pub(crate) struct LogTo {
    pub(crate) dir: OwnedFd,
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

/// The streams of one launch.
struct Streams {
    launch_id: u64,
    to: LogTo,
    /// Those that are not at their end: stdout, stderr.
    streams: [Option<Stream>; 2],
    closing: bool,
    /// The pump is to write them.
    handed_over: bool,
    /// The pump that was told of them; 0 if none was.
    pump: u64,
}

struct Stream {
    pipe: OwnedFd,
    position: Position,
}

struct Pump {
    /// From 1 on.
    number: u64,
    pid: i32,
    pidfd: OwnedFd,
    control: OwnedFd,
    started: Instant,
    /// Streams of which it has not been told all yet.
    untold: VecDeque<u64>,
    /// Whether `control` is watched for room.
    waits_for_room: bool,
}

/// All streams of all launches, and the pump that writes them.
pub(crate) struct Logs {
    /// By the serial of their launch.
    streams: BTreeMap<u64, Streams>,
    pump: Option<Pump>,
    pumps: u64,
    restart_at: Option<Instant>,
    pause: Duration,
}

impl Logs {
    pub(crate) fn new() -> Self {
        Logs { streams: BTreeMap::new(), pump: None, pumps: 0, restart_at: None, pause: PAUSE_MIN }
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
        self.pumps += 1;
        let (number, started) = (self.pumps, Instant::now());
        let untold = self.streams.iter().filter(|(_, streams)| streams.handed_over);
        let untold = untold.map(|(&serial, _)| serial).collect();
        self.pump = Some(Pump { number, pid, pidfd, control, started, untold, waits_for_room: false });
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

    /// Takes up what a launch writes: the read ends of its stdout and stderr, or its terminal alone. Until it is handed
    /// over, it waits in the pipes.
    pub(crate) fn add(&mut self, serial: u64, launch_id: u64, to: LogTo, sources: [Option<OwnedFd>; 2]) {
        let stream = |pipe| Stream { pipe, position: Position::default() };
        let streams = sources.map(|source| source.map(stream));
        let streams = Streams { launch_id, to, streams, closing: false, handed_over: false, pump: 0 };
        self.streams.insert(serial, streams);
    }

    /// Has the pump write what a launch writes.
    pub(crate) fn hand_over(&mut self, serial: u64, poller: &Poller) {
        let Some(streams) = self.streams.get_mut(&serial).filter(|streams| !streams.handed_over) else {
            return;
        };
        streams.handed_over = true;
        self.tell_of(serial, poller);
    }

    /// A launch has ended: what it wrote is written, if there is something.
    pub(crate) fn on_end(&mut self, serial: u64, poller: &Poller) {
        let Some(streams) = self.streams.get_mut(&serial) else { return };
        if !streams.handed_over {
            let found = look(&streams.streams);
            for (stream, found) in streams.streams.iter_mut().zip(found) {
                stream.take_if(|_| found == PollFlags::POLLHUP);
            }
        }
        let mut left = streams.streams.iter().flatten().peekable();
        if left.peek().is_none() {
            self.streams.remove(&serial);
        } else if left.any(|stream| stream.pipe.is_terminal()) {
            // Nobody opens it again, which the pump cannot know.
            self.close(serial, poller);
        } else {
            self.hand_over(serial, poller);
        }
    }

    /// Nobody asks for a launch's logs any more: what is in its pipes is written, and then they are closed, whoever
    /// holds their other ends. A task may have handed its own to another.
    pub(crate) fn close(&mut self, serial: u64, poller: &Poller) {
        if let Some(streams) = self.streams.get_mut(&serial) {
            (streams.closing, streams.handed_over) = (true, true);
            self.tell_of(serial, poller);
        }
    }

    /// Whether a launch has a stream that is not at its end.
    pub(crate) fn pending(&self, serial: u64) -> bool {
        self.streams.contains_key(&serial)
    }

    /// Whether something was handed over of which no pump that lives was told: what is in a pipe would be lost with the
    /// supervisor.
    pub(crate) fn owes(&self) -> bool {
        match &self.pump {
            Some(pump) => pump.untold.iter().any(|serial| self.streams.contains_key(serial)),
            None => self.streams.values().any(|streams| streams.handed_over),
        }
    }

    /// Whether every stream of a launch that is not at its end has lost its last writer: what is missing of it is in
    /// the pipe, and will be written.
    pub(crate) fn only_the_pump_is_late(&self, serial: u64) -> bool {
        let Some(streams) = self.streams.get(&serial) else { return true };
        let found = look(&streams.streams).into_iter().zip(&streams.streams);
        found.filter(|(_, stream)| stream.is_some()).all(|(found, _)| found.contains(PollFlags::POLLHUP))
    }

    /// The control socket is ready: what became of streams.
    pub(crate) fn on_control(&mut self, receiver: &mut Receiver, poller: &Poller) -> Vec<Progress> {
        let mut heard = Vec::new();
        while let Some(pump) = &self.pump {
            match receiver.recv(pump.control.as_fd()) {
                Ok(Some(datagram)) => {
                    for told in Told::decode(datagram.body) {
                        heard.extend(on_told(&mut self.streams, told));
                    }
                }
                Err(seqpacket::Error::WouldBlock) => break,
                // One that cannot be spoken with writes nothing that is new; the next one is told of all.
                Ok(None) | Err(_) => {
                    poller.remove(&pump.control);
                    pump.kill();
                    break;
                }
            }
        }
        self.tell(poller);
        heard
    }

    /// The pump has ended: plans the next. Returns what to write to the diagnostics.
    pub(crate) fn on_exit(&mut self, poller: &Poller) -> Option<String> {
        let pump = self.pump.take()?;
        let mut status = 0;
        // SAFETY: our child, not yet reaped. One that is traced is not ours to reap yet.
        if unsafe { libc::waitpid(pump.pid, &mut status, libc::WNOHANG) } == 0 {
            self.pump = Some(pump);
            return None;
        }
        // A child that was cloned a moment ago may have both still: to close them here is not enough.
        poller.remove(&pump.control);
        poller.remove(&pump.pidfd);
        let lived = pump.started.elapsed();
        self.pause = if lived > PAUSE_MAX { PAUSE_MIN } else { (self.pause * 2).min(PAUSE_MAX) };
        let pause = if lived > PAUSE_MAX { Duration::ZERO } else { self.pause };
        self.restart_at = Some(Instant::now() + pause);
        Some(format!("the log pump ended with wait status {status} after {} ms", lived.as_millis()))
    }

    fn tell_of(&mut self, serial: u64, poller: &Poller) {
        if let Some(pump) = &mut self.pump {
            pump.untold.push_back(serial);
            self.tell(poller);
        }
    }

    /// Hands streams to the pump as far as its socket has room.
    fn tell(&mut self, poller: &Poller) {
        let Some(pump) = &mut self.pump else { return };
        while let Some(&serial) = pump.untold.front() {
            if let Some(streams) = self.streams.get_mut(&serial) {
                let sent = if streams.pump == pump.number {
                    seqpacket::send(pump.control.as_fd(), &Order::Close { logs: serial }.encode(), &[])
                } else {
                    let pipes = streams.streams.iter().flatten().map(|stream| stream.pipe.as_fd());
                    let descriptors = [streams.to.dir.as_fd()].into_iter().chain(pipes).collect::<Vec<_>>();
                    seqpacket::send(pump.control.as_fd(), &streams.order(serial).encode(), &descriptors)
                };
                match sent {
                    Ok(()) => streams.pump = pump.number,
                    Err(seqpacket::Error::WouldBlock) => break,
                    // It is dying, or has to: on a quiet node nothing would have this tried again, and the next one is
                    // told of all.
                    Err(_) => {
                        pump.kill();
                        return;
                    }
                }
            }
            pump.untold.pop_front();
        }
        let waits = !pump.untold.is_empty();
        if waits != pump.waits_for_room {
            let _ = poller.watch(&pump.control, Token::PumpControl, true, waits);
            pump.waits_for_room = waits;
        }
    }
}

impl Pump {
    /// Its exit is told by its pidfd.
    fn kill(&self) {
        let none = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: no pointer is read; one that has ended hears nothing.
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.pidfd.as_raw_fd(), libc::SIGKILL, none, 0) };
    }
}

impl Streams {
    fn order(&self, logs: u64) -> Order {
        let streams = self.streams.each_ref().map(|stream| stream.as_ref().map(|stream| stream.position));
        let (rotation, closing) = (self.to.rotation, self.closing);
        Order::Add(Add { logs, rotation, closing, new: self.pump == 0, streams })
    }
}

/// What each pipe has: data, a hang-up of its last writer, both or nothing.
fn look(streams: &[Option<Stream>; 2]) -> [PollFlags; 2] {
    let mut fds = [libc::pollfd { fd: -1, events: libc::POLLIN, revents: 0 }; 2];
    for (fd, stream) in fds.iter_mut().zip(streams) {
        // None is passed over.
        fd.fd = stream.as_ref().map_or(-1, |stream| stream.pipe.as_raw_fd());
    }
    // SAFETY: two of them are owned here.
    unsafe { libc::poll(fds.as_mut_ptr(), 2, 0) };
    fds.map(|fd| PollFlags::from_bits_truncate(fd.revents))
}

/// Takes in what the pump says of a stream; that of one that is at its end already says nothing new.
fn on_told(all: &mut BTreeMap<u64, Streams>, told: Told) -> Option<Progress> {
    let streams = all.get_mut(&told.logs)?;
    let stream = &mut streams.streams[usize::from(told.which == Which::Stderr)];
    // For the next pump: the files do not show what was lost at last.
    stream.as_mut()?.position = told.position;
    if told.ended {
        *stream = None;
    }
    let progress = Progress {
        launch_id: streams.launch_id,
        which: told.which,
        dropped: told.position.dropped,
        ended: told.ended,
    };
    if streams.streams.iter().all(Option::is_none) {
        all.remove(&told.logs);
    }
    Some(progress)
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

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// A child has every descriptor of every test until its program begins.
    static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

    /// Has a program that never reads what it is told be the pump.
    #[expect(clippy::zombie_processes, reason = "it is reaped as a pump is")]
    fn pump(logs: &mut Logs, poller: &Poller, control: OwnedFd) {
        // It reads from this process, and so ends with it.
        let mut command = std::process::Command::new("cat");
        command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::null());
        let mut child = command.spawn().expect("cat");
        std::mem::forget(child.stdin.take());
        let pid = child.id() as i32;
        // SAFETY: our child, not yet reaped; what is opened is owned by nobody else.
        let pidfd = unsafe { OwnedFd::from_raw_fd(libc::syscall(libc::SYS_pidfd_open, pid, 0) as RawFd) };
        poller.add(&pidfd, Token::PumpExit).expect("epoll");
        logs.pumps += 1;
        let (number, started, untold) = (logs.pumps, Instant::now(), VecDeque::new());
        logs.pump = Some(Pump { number, pid, pidfd, control, started, untold, waits_for_room: false });
    }

    fn kill(logs: &Logs) {
        let pid = logs.pump.as_ref().expect("a pump").pid;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL).expect("it lives");
    }

    fn ready(poller: &Poller) -> Vec<Token> {
        poller.wait(Some(Instant::now() + Duration::from_secs(20))).expect("epoll")
    }

    #[test]
    fn a_dead_pump_whose_descriptors_a_child_has_still_is_not_taken_for_the_next() {
        let _alone = ALONE.lock();
        let (mut logs, poller) = (Logs::new(), Poller::new().expect("epoll"));
        let (control, other) = seqpacket::pair().expect("pair");
        poller.add(&control, Token::PumpControl).expect("epoll");
        pump(&mut logs, &poller, control);
        // As a child has that was cloned and did not come to close them.
        let copy = |fd: &OwnedFd| fd.try_clone().expect("dup");
        let copies = logs.pump.as_ref().map(|pump| (copy(&pump.pidfd), copy(&pump.control)));
        kill(&logs);
        assert_eq!(ready(&poller), [Token::PumpExit]);
        assert!(logs.on_exit(&poller).is_some() && logs.pump.is_none());
        drop(other);
        assert_eq!(poller.wait(Some(Instant::now())).expect("epoll"), []);
        drop(copies);

        // One that lives is not waited for.
        pump(&mut logs, &poller, seqpacket::pair().expect("pair").0);
        assert!(logs.on_exit(&poller).is_none() && logs.pump.is_some());
        kill(&logs);
        assert_eq!(ready(&poller), [Token::PumpExit]);
        assert!(logs.on_exit(&poller).is_some());
    }

    #[test]
    fn a_pump_that_cannot_be_spoken_with_is_ended() {
        let _alone = ALONE.lock();
        let (mut logs, poller) = (Logs::new(), Poller::new().expect("epoll"));
        // Nothing can be sent to it, and not for want of room.
        let not_a_socket = std::fs::File::open("/dev/null").expect("null").into();
        pump(&mut logs, &poller, not_a_socket);
        let _ends = streams(&mut logs, 1);
        assert!(!logs.owes());
        logs.hand_over(1, &poller);
        assert!(logs.owes());
        assert_eq!(ready(&poller), [Token::PumpExit]);
        assert!(logs.on_exit(&poller).is_some() && logs.restart_at().is_some());
        assert!(logs.pending(1) && logs.owes(), "it is the next one's");

        let (control, other) = seqpacket::pair().expect("pair");
        poller.add(&control, Token::PumpControl).expect("epoll");
        pump(&mut logs, &poller, control);
        logs.tell_of(1, &poller);
        assert!(!logs.owes());
        drop(other);
        assert_eq!(ready(&poller), [Token::PumpControl]);
        logs.on_control(&mut Receiver::default(), &poller);
        assert_eq!(ready(&poller), [Token::PumpExit]);
        assert!(logs.on_exit(&poller).is_some());
    }

    fn streams(logs: &mut Logs, serial: u64) -> [std::fs::File; 2] {
        let pipe = || nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).expect("pipe");
        let pipes = [(); 2].map(|()| pipe());
        let dir = std::fs::File::open("/").expect("a directory").into();
        let rotation = Rotation { file_bytes: 1 << 20, files: 2, bytes_per_second: 1 << 20 };
        let [(out, to_out), (err, to_err)] = pipes;
        logs.add(serial, 7, LogTo { dir, rotation }, [Some(out), Some(err)]);
        [to_out.into(), to_err.into()]
    }

    #[test]
    fn what_ends_without_a_word_is_nothing_to_the_pump() {
        let _alone = ALONE.lock();
        let (mut logs, poller) = (Logs::new(), Poller::new().expect("epoll"));
        let ends = streams(&mut logs, 1);
        assert!(logs.pending(1) && !logs.only_the_pump_is_late(1));
        drop(ends);
        assert!(logs.only_the_pump_is_late(1));
        logs.on_end(1, &poller);
        assert!(!logs.pending(1));

        let [out, mut err] = streams(&mut logs, 2);
        err.write_all(b"a word").expect("room");
        drop((out, err));
        logs.on_end(2, &poller);
        let [None, Some(_)] = &logs.streams[&2].streams else { panic!("of one stream there is something") };
        assert!(logs.streams[&2].handed_over && logs.only_the_pump_is_late(2));

        // Somebody has it still.
        let [out, err] = streams(&mut logs, 3);
        drop(err);
        logs.on_end(3, &poller);
        assert!(logs.streams[&3].handed_over && !logs.only_the_pump_is_late(3));
        drop(out);
        // It is the pump's to say that it ends.
        logs.on_end(3, &poller);
        assert!(logs.pending(3));
    }
}
