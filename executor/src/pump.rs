//! The log pump: a process of its own that copies the tasks' pipes to files.
//!
//! Writing to a disk may block for long, and may be killed: the supervisor does neither. The pump keeps no state
//! but the files' names and lengths, so that the next one goes on where this one ended; data moves by splice and
//! leaves a pipe only as it enters a file. It ends when its supervisor is gone and every stream at its end.
//!
//! A task never waits for the disk of others: what a stream carries beyond its budget, and what cannot be written, is
//! thrown away, counted, and left out of the files in such a way that offsets stay true. Thrown away unreported is
//! at most what was dropped in the last second of a pump that was killed.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use proffer_launcher::seqpacket::{self, Receiver};

use crate::files::{Files, Kept};
use crate::gather::{Gather, Talk};
use crate::pump_protocol::{Add, Order, Position, Rotation, TOLD_MAX, Told, Which};
use crate::waste::Waste;

/// The word after the program's name that makes it a pump.
pub const SUBCOMMAND: &str = "log-pump";
/// The descriptor of the control socket.
pub(crate) const CONTROL: RawFd = 3;

/// How much one stream may move before the others have their turn, in bytes: what takes a fraction of a millisecond.
const TURN_BYTES: u64 = 256 * 1024;
/// What a task may make its pipe hold, unless the host's limit (fs.pipe-max-size) was raised, in bytes.
const PIPE_BYTES_MAX: u64 = 1024 * 1024;
/// What is read at once where splice does not work.
pub(crate) const BUFFER_BYTES: usize = 64 * 1024;
/// What a budget is for, and how often losses are told.
const WINDOW: Duration = Duration::from_secs(1);

const CONTROL_TOKEN: u64 = 0;

/// Runs the pump on descriptor 3.
pub fn main() -> ExitCode {
    // SAFETY: the supervisor passes it, and nothing else in this process knows of it.
    let control = unsafe { OwnedFd::from_raw_fd(CONTROL) };
    match run(control) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

struct Pump {
    epoll: Epoll,
    control: Option<OwnedFd>,
    /// Whether `control` is watched for room.
    waits_for_room: bool,
    receiver: Receiver,
    /// Where it is thrown.
    null: OwnedFd,
    /// By their tokens.
    streams: BTreeMap<u64, Stream>,
    /// What the supervisor has not been told yet.
    untold: VecDeque<Told>,
    /// When the streams are to be asked for losses, at the earliest.
    losses_due: Option<Instant>,
    waste: Waste,
    gather: Gather,
}

fn run(control: OwnedFd) -> io::Result<()> {
    let mut pump = Pump::new(control)?;
    while pump.control.is_some() || !pump.streams.is_empty() {
        pump.round()?;
    }
    Ok(())
}

/// The token of a stream. Those of a launch are neighbours, and none is that of the control socket.
fn token(logs: u64, which: Which) -> u64 {
    logs * 2 + u64::from(which == Which::Stderr)
}

impl Pump {
    fn new(control: OwnedFd) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&control, EpollEvent::new(EpollFlags::EPOLLIN, CONTROL_TOKEN))?;
        let null = File::options().write(true).open("/dev/null")?.into();
        Ok(Pump {
            epoll,
            control: Some(control),
            waits_for_room: false,
            receiver: Receiver::default(),
            null,
            streams: BTreeMap::new(),
            untold: VecDeque::new(),
            losses_due: None,
            waste: Waste::new(Instant::now()),
            gather: Gather::default(),
        })
    }

    /// Waits until there is something to do, and does it.
    fn round(&mut self) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); 64];
        let count = match self.epoll.wait(&mut events, self.timeout()) {
            Err(Errno::EINTR) => 0,
            other => other?,
        };
        for event in &events[..count] {
            match event.data() {
                CONTROL_TOKEN => self.on_control()?,
                stream => self.on_stream(stream, Some(Ready::of_event(event.events())))?,
            }
        }
        self.wake()?;
        self.find_losses(Instant::now());
        self.tell()
    }

    fn on_control(&mut self) -> io::Result<()> {
        while let Some(control) = &self.control {
            match self.receiver.recv(control.as_fd()) {
                Ok(Some(datagram)) => {
                    if datagram.descriptors_lost {
                        // Passed over, the stream would never be read: the next pump is told of it again.
                        return Err(io::Error::other("no descriptor is free"));
                    }
                    let (order, descriptors) = (Order::decode(datagram.body), datagram.descriptors);
                    match order {
                        Some(Order::Add(add)) => self.on_add(add, descriptors)?,
                        Some(Order::Close { logs }) => {
                            for token in Which::BOTH.map(|which| token(logs, which)) {
                                self.close(token)?;
                            }
                        }
                        None => {}
                    }
                }
                Err(seqpacket::Error::WouldBlock) => break,
                Ok(None) => self.control = None,
                Err(error) => return Err(io::Error::other(error)),
            }
        }
        if self.control.is_none() {
            let hung_up = self.streams.iter().filter(|(_, stream)| stream.watched == Watched::Edge);
            for token in hung_up.map(|(token, _)| *token).collect::<Vec<_>>() {
                self.close(token)?;
            }
        }
        Ok(())
    }

    fn on_add(&mut self, add: Add, descriptors: Vec<OwnedFd>) -> io::Result<()> {
        let mut descriptors = descriptors.into_iter();
        let Some(dir) = descriptors.next().map(Rc::new) else { return Ok(()) };
        let streams = Which::BOTH.into_iter().zip(add.streams);
        let streams = streams.filter_map(|(which, position)| Some((which, position?)));
        for ((which, position), pipe) in streams.zip(descriptors) {
            let token = token(add.logs, which);
            self.streams.insert(token, Stream::open(add, which, position, pipe, Rc::clone(&dir)));
            // It was most likely added because it has something, and often that is all it will ever have.
            self.on_stream(token, None)?;
        }
        Ok(())
    }

    fn close(&mut self, token: u64) -> io::Result<()> {
        let Some(stream) = self.streams.get_mut(&token) else { return Ok(()) };
        stream.closing = true;
        // An empty pipe that someone holds open has nothing to say by itself.
        self.on_stream(token, None)
    }

    /// A stream is `ready`, or to be looked at.
    fn on_stream(&mut self, token: u64, ready: Option<Ready>) -> io::Result<()> {
        let Some(stream) = self.streams.get_mut(&token) else { return Ok(()) };
        let now = Instant::now();
        // Kept or not, what it has takes a turn; what would only be thrown away waits for its time. Its end does not.
        let throws = stream.budget.left(now) == 0;
        if throws && !stream.closing && ready != Some(Ready::End) && self.waste.rests(token) {
            return self.watch(token, Watched::No);
        }
        let (before, offset) = (stream.dropped, stream.files.offset());
        let progress = stream.turn(ready, &self.null, now);
        if progress == Progress::HungUp && self.control.is_none() {
            // Nobody will say that it is over.
            return self.close(token);
        }
        let ended = progress == Progress::Ended;
        let moved = stream.files.offset() - offset;
        if ended || stream.loss_is_due(now) {
            self.untold.push_back(stream.told(ended, now));
        }
        self.losses_due = earlier(self.losses_due, stream.loss_due());
        // What was written as well may have waited for a disk.
        let took = if throws { now.elapsed() } else { Duration::ZERO };
        let rests = progress == Progress::Waiting
            && (self.waste.threw(token, stream.dropped - before, took, now)
                || self.gather.moved(token, &mut stream.talk, moved, now));
        // Closing would not do: the supervisor has the pipe too. And watched for nothing, one that rests would still wake
        // us for its end, again and again.
        let how = match () {
            () if ended || rests => Watched::No,
            // Its hang-up is no news, and what is written after that is.
            () if progress == Progress::HungUp => Watched::Edge,
            () => Watched::Level,
        };
        self.watch(token, how)?;
        if ended {
            self.streams.remove(&token);
        }
        Ok(())
    }

    /// Watches a stream like this from now on.
    fn watch(&mut self, token: u64, how: Watched) -> io::Result<()> {
        let Some(stream) = self.streams.get_mut(&token) else { return Ok(()) };
        let edge = if how == Watched::Edge { EpollFlags::EPOLLET } else { EpollFlags::empty() };
        let mut event = EpollEvent::new(EpollFlags::EPOLLIN | edge, token);
        match (stream.watched, how) {
            (before, now) if before == now => {}
            (Watched::No, _) => self.epoll.add(&stream.pipe, event)?,
            (_, Watched::No) => self.epoll.delete(&stream.pipe)?,
            _ => self.epoll.modify(&stream.pipe, &mut event)?,
        }
        stream.watched = how;
        Ok(())
    }

    /// Until streams that rest are to be read again or losses to be told, rounded up.
    fn timeout(&self) -> EpollTimeout {
        let rested = earlier(self.waste.until(), self.gather.until());
        earlier(rested, self.losses_due).map_or(EpollTimeout::NONE, |until| {
            let left = until.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
            EpollTimeout::try_from(left).unwrap_or(EpollTimeout::ZERO)
        })
    }

    /// Takes up the losses whose time has come: their streams may be silent from now on.
    fn find_losses(&mut self, now: Instant) {
        if self.losses_due.is_none_or(|due| now < due) {
            return;
        }
        self.losses_due = None;
        for stream in self.streams.values_mut() {
            if stream.loss_is_due(now) {
                self.untold.push_back(stream.told(false, now));
            }
            self.losses_due = earlier(self.losses_due, stream.loss_due());
        }
    }

    /// Reads those again that have rested.
    fn wake(&mut self) -> io::Result<()> {
        let now = Instant::now();
        for token in self.waste.rested(now).into_iter().chain(self.gather.rested(now)) {
            if let Some(stream) = self.streams.get_mut(&token) {
                stream.talk.rested(now);
            }
            self.watch(token, Watched::Level)?;
        }
        Ok(())
    }

    /// Tells the supervisor what it does not know yet, as far as its socket has room.
    fn tell(&mut self) -> io::Result<()> {
        let Some(control) = &self.control else {
            self.untold.clear();
            return Ok(());
        };
        while !self.untold.is_empty() {
            let told = self.untold.iter().copied();
            match seqpacket::send(control.as_fd(), &Told::encode(told), &[]) {
                Ok(()) => drop(self.untold.drain(..TOLD_MAX.min(self.untold.len()))),
                Err(seqpacket::Error::WouldBlock) => break,
                Err(seqpacket::Error::Io { source, .. })
                    if matches!(
                        source.kind(),
                        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
                    ) =>
                {
                    // Nobody is there to hear it. What was sent before that is read yet, to its end.
                    self.untold.clear();
                    return Ok(());
                }
                // A supervisor that is there waits for this process to end before it starts another, which is told
                // of every stream: without a control socket this one would be told of no more.
                Err(error) => return Err(io::Error::other(error)),
            }
        }
        let waits = !self.untold.is_empty();
        if waits != self.waits_for_room {
            let room = if waits { EpollFlags::EPOLLOUT } else { EpollFlags::empty() };
            let mut event = EpollEvent::new(EpollFlags::EPOLLIN | room, CONTROL_TOKEN);
            let _ = self.epoll.modify(control, &mut event);
            self.waits_for_room = waits;
        }
        Ok(())
    }
}

/// The earlier of two times that may never come.
fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    a.into_iter().chain(b).min()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Waiting,
    /// Nobody has the other side of a terminal, which a task may open again by its name.
    HungUp,
    Ended,
}

/// How epoll watches a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Watched {
    No,
    /// Woken for as long as there is something.
    Level,
    /// Woken when something comes.
    Edge,
}

/// How much of a stream may be kept. A second's worth is kept in one piece and then nothing until the next second: a
/// budget that refilled byte by byte would cut the files into crumbs.
struct Budget {
    per_second: u64,
    since: Instant,
    kept: u64,
}

impl Budget {
    fn left(&mut self, now: Instant) -> u64 {
        if now.saturating_duration_since(self.since) >= WINDOW {
            self.since = now;
            self.kept = 0;
        }
        self.per_second - self.kept
    }

    fn keep(&mut self, bytes: u64) {
        self.kept = (self.kept + bytes).min(self.per_second);
    }

    /// Nothing more in this second.
    fn exhaust(&mut self) {
        self.kept = self.per_second;
    }
}

/// One stream and its files.
struct Stream {
    logs: u64,
    which: Which,
    pipe: OwnedFd,
    watched: Watched,
    terminal: bool,
    files: Files,
    budget: Budget,
    /// Bytes thrown away since the stream began, by this pump and those before it.
    dropped: u64,
    /// How many of them were told, and when.
    dropped_told: u64,
    told_at: Option<Instant>,
    talk: Talk,
    /// Whoever still holds the other end has nothing more to say here.
    closing: bool,
}

impl Stream {
    fn open(add: Add, which: Which, position: Position, pipe: OwnedFd, dir: Rc<OwnedFd>) -> Self {
        let Rotation { bytes_per_second, .. } = add.rotation;
        Stream {
            logs: add.logs,
            which,
            talk: Talk::of(&pipe),
            terminal: pipe.is_terminal(),
            pipe,
            watched: Watched::No,
            files: Files::new(which, add.rotation, dir, position.offset, add.new),
            budget: Budget { per_second: bytes_per_second, since: Instant::now(), kept: 0 },
            dropped: position.dropped,
            dropped_told: position.dropped,
            told_at: None,
            closing: add.closing,
        }
    }

    /// Moves what there is, up to a turn's worth; all that a pipe may hold, if it is the last turn. If it is not known
    /// that it is `ready`, it is asked.
    fn turn(&mut self, mut ready: Option<Ready>, null: &OwnedFd, now: Instant) -> Progress {
        let turns = if self.closing { PIPE_BYTES_MAX.div_ceil(TURN_BYTES) } else { 1 };
        let ended = (0..turns).any(|_| self.take_turn(ready.take(), null, now) == Progress::Ended);
        if ended && self.terminal && !self.closing {
            return Progress::HungUp;
        }
        if ended || self.closing {
            self.files.end();
            return Progress::Ended;
        }
        Progress::Waiting
    }

    fn take_turn(&mut self, mut ready: Option<Ready>, null: &OwnedFd, now: Instant) -> Progress {
        let mut moved = 0;
        while moved < TURN_BYTES {
            // Asked before a file is begun: at the end of the stream none must be.
            match ready.take().unwrap_or_else(|| Ready::of(&self.pipe)) {
                Ready::Data => {}
                Ready::Nothing => return Progress::Waiting,
                Ready::End => return Progress::Ended,
            }
            let room = self.budget.left(now).min(TURN_BYTES - moved);
            let bytes = match room {
                0 => match discard(&self.pipe, null) {
                    Ok(bytes) => self.lose(bytes),
                    Err(_) => return Progress::Ended,
                },
                room => match self.files.keep(&self.pipe, room) {
                    Kept::Bytes(bytes) => {
                        self.budget.keep(bytes);
                        bytes
                    }
                    Kept::Lost(bytes) => {
                        // A full disk must not stop the task, nor be asked again for each piece.
                        self.budget.exhaust();
                        self.lose(bytes);
                        // What stayed in the pipe is thrown away next.
                        continue;
                    }
                    Kept::Ended => return Progress::Ended,
                },
            };
            if bytes == 0 {
                break;
            }
            moved += bytes;
        }
        Progress::Waiting
    }

    fn lose(&mut self, bytes: u64) -> u64 {
        self.dropped += bytes;
        self.files.skip(bytes);
        bytes
    }

    fn loss_is_due(&self, now: Instant) -> bool {
        let late = self.told_at.is_none_or(|at| now.saturating_duration_since(at) >= WINDOW);
        self.dropped > self.dropped_told && late
    }

    /// When a loss is to be told that came too early after the last one to be told at once.
    fn loss_due(&self) -> Option<Instant> {
        self.told_at.filter(|_| self.dropped > self.dropped_told).map(|at| at + WINDOW)
    }

    fn told(&mut self, ended: bool, now: Instant) -> Told {
        self.dropped_told = self.dropped;
        self.told_at = Some(now);
        let position = Position { offset: self.files.offset(), dropped: self.dropped };
        Told { logs: self.logs, which: self.which, ended, position }
    }
}

/// What a pipe has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ready {
    Data,
    Nothing,
    End,
}

impl Ready {
    fn of(pipe: &OwnedFd) -> Self {
        let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
        let flags = match poll(&mut fds, PollTimeout::ZERO) {
            Ok(_) => fds[0].revents().unwrap_or(PollFlags::empty()),
            Err(_) => PollFlags::empty(),
        };
        if flags.contains(PollFlags::POLLIN) {
            Ready::Data
        } else if flags.intersects(PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL) {
            Ready::End
        } else {
            Ready::Nothing
        }
    }

    /// What epoll says of it: always something.
    fn of_event(flags: EpollFlags) -> Self {
        if flags.contains(EpollFlags::EPOLLIN) { Ready::Data } else { Ready::End }
    }
}

/// Throws away what is there, up to a turn's worth. Spliced into /dev/null, pages are let go without a copy.
fn discard(pipe: &OwnedFd, null: &OwnedFd) -> io::Result<u64> {
    // SAFETY: both descriptors are owned by the caller; no offsets are passed.
    let spliced = unsafe {
        let flags = libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK;
        let none = std::ptr::null_mut();
        libc::splice(pipe.as_raw_fd(), none, null.as_raw_fd(), none, TURN_BYTES as usize, flags)
    };
    if let Ok(bytes) = u64::try_from(spliced) {
        return Ok(bytes);
    }
    match Errno::last() {
        // A terminal.
        Errno::EINVAL => {
            let mut buffer = [0; BUFFER_BYTES];
            nix::unistd::read(pipe, &mut buffer).map(|bytes| bytes as u64).or_else(nothing_yet)
        }
        error => nothing_yet(error),
    }
}

/// What an error says of a stream: that there is nothing yet, or that it is at its end.
fn nothing_yet(error: Errno) -> io::Result<u64> {
    match error {
        Errno::EAGAIN | Errno::EINTR => Ok(0),
        error => Err(error.into()),
    }
}

#[cfg(test)]
mod tests;
