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
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use proffer_launcher::seqpacket::{self, Receiver};

use crate::files::{Files, Kept};
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
            return self.watch(token, false);
        }
        let before = stream.dropped;
        let ended = stream.turn(ready, &self.null, now) == Progress::Ended;
        if ended || stream.loss_is_due(now) {
            self.untold.push_back(stream.told(ended, now));
        }
        self.losses_due = earlier(self.losses_due, stream.loss_due());
        // What was written as well may have waited for a disk.
        let took = if throws { now.elapsed() } else { Duration::ZERO };
        let rests = !ended && self.waste.threw(token, stream.dropped - before, took, now);
        // Closing would not do: the supervisor has the pipe too. And watched for nothing, one that rests would still wake
        // us for its end, again and again.
        self.watch(token, !ended && !rests)?;
        if ended {
            self.streams.remove(&token);
        }
        Ok(())
    }

    /// Watches a stream from now on, or no longer.
    fn watch(&mut self, token: u64, watched: bool) -> io::Result<()> {
        let Some(stream) = self.streams.get_mut(&token) else { return Ok(()) };
        match (stream.watched, watched) {
            (false, true) => self.epoll.add(&stream.pipe, EpollEvent::new(EpollFlags::EPOLLIN, token))?,
            (true, false) => self.epoll.delete(&stream.pipe)?,
            _ => {}
        }
        stream.watched = watched;
        Ok(())
    }

    /// Until streams that rest are to be read again or losses to be told, rounded up.
    fn timeout(&self) -> EpollTimeout {
        earlier(self.waste.until(), self.losses_due).map_or(EpollTimeout::NONE, |until| {
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
        for token in self.waste.rested(Instant::now()) {
            self.watch(token, true)?;
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
                    self.control = None;
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
    Ended,
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
    /// By epoll.
    watched: bool,
    files: Files,
    budget: Budget,
    /// Bytes thrown away since the stream began, by this pump and those before it.
    dropped: u64,
    /// How many of them were told, and when.
    dropped_told: u64,
    told_at: Option<Instant>,
    /// Whoever still holds the other end has nothing more to say here.
    closing: bool,
}

impl Stream {
    fn open(add: Add, which: Which, position: Position, pipe: OwnedFd, dir: Rc<OwnedFd>) -> Self {
        let Rotation { bytes_per_second, .. } = add.rotation;
        Stream {
            logs: add.logs,
            which,
            pipe,
            watched: false,
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
mod tests {
    use super::*;
    use std::io::Write;

    struct Fixture {
        dir: tempfile::TempDir,
        stream: Stream,
        write: Option<File>,
    }

    fn fixture(file_bytes: u64, splice: bool) -> Fixture {
        let dir = tempfile::Builder::new().prefix("proffer-pump").tempdir().expect("temp dir");
        let (pipe, write) = nix::unistd::pipe().expect("pipe");
        let stream = open(&dir, pipe, Add { new: true, ..add(file_bytes) }, Position::default());
        let mut fixture = Fixture { stream, dir, write: Some(write.into()) };
        fixture.stream.files.use_splice(splice);
        fixture
    }

    fn add(file_bytes: u64) -> Add {
        let rotation = Rotation { file_bytes, files: 2, bytes_per_second: 1 << 30 };
        Add { logs: 1, rotation, closing: false, new: false, streams: [None, None] }
    }

    fn open(dir: &tempfile::TempDir, pipe: OwnedFd, add: Add, position: Position) -> Stream {
        let dir = File::open(dir.path()).expect("directory").into();
        Stream::open(add, Which::Stdout, position, pipe, Rc::new(dir))
    }

    fn null() -> OwnedFd {
        File::options().write(true).open("/dev/null").expect("/dev/null").into()
    }

    fn reopen(dir: &tempfile::TempDir, pipe: OwnedFd, file_bytes: u64) -> Stream {
        open(dir, pipe, add(file_bytes), Position::default())
    }

    impl Fixture {
        fn write(&mut self, text: &[u8]) {
            self.write_at(text, Instant::now());
        }

        fn write_at(&mut self, text: &[u8], now: Instant) {
            self.write.as_mut().expect("open").write_all(text).expect("room in the pipe");
            assert_eq!(self.stream.turn(None, &null(), now), Progress::Waiting);
        }

        fn end(&mut self) {
            self.write = None;
            assert_eq!(self.stream.turn(None, &null(), Instant::now()), Progress::Ended);
        }

        fn files(&self) -> Vec<(String, String)> {
            let entries = std::fs::read_dir(self.dir.path()).expect("directory").map(|entry| {
                let entry = entry.expect("entry");
                let text = std::fs::read_to_string(entry.path()).expect("text");
                (entry.file_name().into_string().expect("text"), text)
            });
            let mut files = entries.collect::<Vec<_>>();
            files.sort();
            files
        }
    }

    fn files(files: &[(&str, &str)]) -> Vec<(String, String)> {
        files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
    }

    #[test]
    fn rotation_keeps_two_files_named_by_their_offset() {
        for splice in [true, false] {
            let mut fixture = fixture(4, splice);
            assert_eq!(fixture.files(), files(&[]), "none before the first byte");
            fixture.write(b"abcdef");
            assert_eq!(fixture.files(), files(&[("stdout.0", "abcd"), ("stdout.4", "ef")]));
            fixture.write(b"ghi");
            assert_eq!(fixture.files(), files(&[("stdout.4", "efgh"), ("stdout.8", "i")]));
            fixture.write(b"jkl");
            // The end of a stream begins no file, although the last one is full.
            fixture.end();
            assert_eq!(fixture.files(), files(&[("stdout.4", "efgh"), ("stdout.8", "ijkl")]));
        }
    }

    #[test]
    fn the_next_pump_goes_on_where_this_one_ended() {
        let mut fixture = fixture(4, true);
        fixture.write(b"abcdef");
        let pipe = fixture.stream.pipe.try_clone().expect("duplicate");
        fixture.stream = reopen(&fixture.dir, pipe, 4);
        fixture.write(b"gh");
        fixture.write(b"i");
        assert_eq!(fixture.files(), files(&[("stdout.4", "efgh"), ("stdout.8", "i")]));
    }

    #[test]
    fn a_stream_without_a_byte_leaves_no_file() {
        let mut silent = fixture(4, true);
        silent.end();
        assert_eq!(silent.files(), []);
        // Nor if it was another pump's before.
        let mut handed = fixture(4, true);
        let pipe = handed.stream.pipe.try_clone().expect("duplicate");
        handed.stream = reopen(&handed.dir, pipe, 4);
        assert_eq!(handed.files(), []);
        handed.end();
        assert_eq!(handed.files(), []);
    }

    #[test]
    fn a_new_stream_does_not_write_over_what_should_not_be_there() {
        let mut fixture = fixture(8, true);
        std::fs::write(fixture.dir.path().join("stdout.0"), "old").expect("written");
        fixture.write(b"new");
        assert_eq!(fixture.files(), files(&[("stdout.0", "oldnew")]));
    }

    #[test]
    fn what_is_beyond_the_budget_is_thrown_away_and_counted() {
        for splice in [true, false] {
            let mut fixture = fixture(100, splice);
            let begun = fixture.stream.budget.since;
            fixture.stream.budget.per_second = 6;
            fixture.write_at(b"abcdefgh", begun);
            fixture.write_at(b"ij", begun + WINDOW / 2);
            assert_eq!(fixture.files(), files(&[("stdout.0", "abcdef")]));
            assert_eq!((fixture.stream.dropped, fixture.stream.files.offset()), (4, 10));
            assert!(fixture.stream.loss_is_due(begun));
            assert_eq!(fixture.stream.told(false, begun).position.dropped, 4);
            fixture.write_at(b"klm", begun + WINDOW);
            // The next second goes on at the true offset.
            assert_eq!(fixture.files(), files(&[("stdout.0", "abcdef"), ("stdout.10", "klm")]));
            assert!(!fixture.stream.loss_is_due(begun + 2 * WINDOW));
            fixture.write_at(b"nopqrst", begun + WINDOW);
            // A loss at the end is told by an empty file.
            fixture.end();
            let all = [("stdout.0", "abcdef"), ("stdout.10", "klmnop"), ("stdout.20", "")];
            assert_eq!((fixture.files(), fixture.stream.dropped), (files(&all), 8));
        }
    }

    #[test]
    fn files_cut_short_are_kept_for_their_bytes() {
        let mut fixture = fixture(6, true);
        let begun = fixture.stream.budget.since;
        fixture.stream.budget.per_second = 3;
        for second in 0..4 {
            fixture.write_at(b"abc-", begun + second * WINDOW);
        }
        // Two full files hold six bytes beside the newest.
        assert_eq!(fixture.files(), files(&[("stdout.12", "abc"), ("stdout.4", "abc"), ("stdout.8", "abc")]));
    }

    #[test]
    fn a_stream_that_cannot_be_written_is_drained_all_the_same() {
        let full = File::options().write(true).open("/dev/full").expect("/dev/full");
        for splice in [true, false] {
            let mut fixture = fixture(100, splice);
            let begun = fixture.stream.budget.since;
            fixture.write_at(b"ab", begun);
            fixture.stream.files.write_to(full.try_clone().expect("duplicate"));
            fixture.write_at(b"cdef", begun);
            fixture.write_at(b"gh", begun);
            assert_eq!((fixture.stream.dropped, fixture.stream.files.offset()), (6, 8));
            // It is tried again, with a file of its own.
            fixture.write_at(b"ij", begun + WINDOW);
            fixture.end();
            assert_eq!(fixture.files(), files(&[("stdout.0", "ab"), ("stdout.8", "ij")]));
        }
    }

    #[test]
    fn what_cannot_be_looked_at_is_not_written_over() {
        let mut fixture = fixture(100, true);
        fixture.write(b"ab");
        let begun = Instant::now();
        let pipe = fixture.stream.pipe.try_clone().expect("duplicate");
        // No directory, at first.
        let file = File::open(fixture.dir.path().join("stdout.0")).expect("a file");
        fixture.stream =
            Stream::open(add(100), Which::Stdout, Position::default(), pipe, Rc::new(file.into()));
        fixture.write_at(b"cd", begun);
        assert_eq!((fixture.stream.dropped, fixture.files()), (2, files(&[("stdout.0", "ab")])));
        fixture.stream.files.look_at(File::open(fixture.dir.path()).expect("directory").into());
        fixture.write_at(b"ef", begun + 2 * WINDOW);
        assert_eq!(fixture.files(), files(&[("stdout.0", "abef")]));
    }

    #[test]
    fn losses_of_a_pump_that_died_stay_counted() {
        let mut fixture = fixture(100, true);
        fixture.write(b"ab");
        let pipe = fixture.stream.pipe.try_clone().expect("duplicate");
        fixture.stream = open(&fixture.dir, pipe, add(100), Position { offset: 9, dropped: 7 });
        fixture.write(b"cd");
        assert_eq!(fixture.files(), files(&[("stdout.0", "ab"), ("stdout.9", "cd")]));
        fixture.end();
        assert_eq!(fixture.stream.told(true, Instant::now()).position.dropped, 7);
    }

    #[test]
    fn a_stream_that_is_closed_leaves_nothing_in_its_pipe() {
        let mut fixture = fixture(2 << 20, true);
        let size = nix::fcntl::FcntlArg::F_SETPIPE_SZ(PIPE_BYTES_MAX as i32);
        let write = fixture.write.as_mut().expect("open");
        nix::fcntl::fcntl(&*write, size).expect("a larger pipe");
        write.write_all(&vec![b'x'; PIPE_BYTES_MAX as usize]).expect("room in the pipe");
        // Its writer holds it open.
        fixture.stream.closing = true;
        assert_eq!(fixture.stream.turn(None, &null(), Instant::now()), Progress::Ended);
        assert_eq!(fixture.stream.files.offset(), PIPE_BYTES_MAX);
    }

    #[test]
    fn a_terminal_is_read_to_its_end() {
        let mut fixture = fixture(100, true);
        let pty = nix::pty::openpty(None, None).expect("a terminal");
        fixture.stream = reopen(&fixture.dir, pty.master, 100);
        fixture.write = Some(pty.slave.into());
        fixture.write(b"hello\n");
        fixture.end();
        assert_eq!(fixture.files(), files(&[("stdout.0", "hello\r\n")]));
    }

    #[test]
    fn a_terminal_that_has_nothing_is_not_at_its_end() {
        let pty = nix::pty::openpty(None, None).expect("a terminal");
        let flags = nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK);
        nix::fcntl::fcntl(&pty.master, flags).expect("no waiting");
        assert_eq!(discard(&pty.master, &null()).expect("no end"), 0);
        File::from(pty.slave).write_all(b"hello\n").expect("room");
        assert_eq!(discard(&pty.master, &null()).expect("no end"), 7);
        // The other side is closed.
        discard(&pty.master, &null()).expect_err("the end");
    }

    #[test]
    fn a_link_in_the_place_of_a_log_is_not_followed() {
        let mut fixture = fixture(4, true);
        let target = fixture.dir.path().join("target");
        std::fs::write(&target, "").expect("file");
        std::os::unix::fs::symlink(&target, fixture.dir.path().join("stdout.4")).expect("link");
        fixture.write(b"abcdef");
        assert_eq!(std::fs::read_to_string(&target).expect("text"), "");
    }

    #[test]
    fn a_pump_that_cannot_tell_its_supervisor_ends() {
        let told = Told { logs: 1, which: Which::Stdout, ended: true, position: Position::default() };
        let (supervisor, control) = seqpacket::pair().expect("sockets");
        let mut pump = Pump::new(control).expect("a pump");
        pump.untold.push_back(told);
        pump.tell().expect("told");
        assert!(seqpacket::recv(supervisor.as_fd()).expect("told").is_some() && pump.untold.is_empty());
        // Nobody is there to start another: it goes on.
        drop(supervisor);
        pump.untold.push_back(told);
        pump.tell().expect("goes on");
        assert!(pump.control.is_none());
        pump.tell().expect("goes on");
        assert!(pump.untold.is_empty(), "nobody asks for it any more");
        // Somebody may be.
        let (_read, write) = nix::unistd::pipe().expect("pipe");
        pump.control = Some(write);
        pump.untold.push_back(told);
        pump.tell().expect_err("not a socket");
    }

    #[test]
    fn what_nobody_will_see_is_thrown_away_at_a_bounded_speed() {
        let dir = tempfile::Builder::new().prefix("proffer-pump").tempdir().expect("temp dir");
        let (control, pumps) = seqpacket::pair().expect("sockets");
        let pump = std::thread::spawn(move || run(pumps));
        let pipes = [(); 2].map(|()| nix::unistd::pipe().expect("pipe"));
        let rotation = Rotation { file_bytes: 1 << 20, files: 2, bytes_per_second: 1 << 10 };
        let streams = [Some(Position::default()); 2];
        let order = Order::Add(Add { logs: 1, rotation, closing: false, new: true, streams });
        let at = File::open(dir.path()).expect("directory");
        let [(out, mut floods), (err, speaks)] = pipes.map(|(pipe, write)| (pipe, File::from(write)));
        seqpacket::send(control.as_fd(), &order.encode(), &[at.as_fd(), out.as_fd(), err.as_fd()])
            .expect("room");
        let begun = Instant::now();
        let flood = vec![b'x'; 65_000_000];
        floods.write_all(&flood).expect("a pump");
        // Ten periods' worth, of which the first costs none.
        assert!(begun.elapsed() >= Duration::from_millis(40), "{:?}", begun.elapsed());
        (&speaks).write_all(b"hello").expect("a pump");
        drop((floods, speaks, control));
        // It ends, so that both streams were at their ends.
        pump.join().expect("no panic").expect("no error");
        assert_eq!(std::fs::read(dir.path().join("stderr.0")).expect("text"), b"hello");
        assert!(std::fs::exists(dir.path().join("stdout.65000000")).expect("a directory"));
    }
    #[test]
    fn many_streams_together_are_thrown_away_at_a_bounded_speed() {
        let dir = tempfile::Builder::new().prefix("proffer-pump").tempdir().expect("temp dir");
        let (_supervisor, control) = seqpacket::pair().expect("sockets");
        let mut pump = Pump::new(control).expect("a pump");
        let rotation = Rotation { file_bytes: 1 << 20, files: 2, bytes_per_second: 0 };
        let full = (0..60).map(|_| {
            let (pipe, write) = nix::unistd::pipe().expect("pipe");
            let size = nix::fcntl::FcntlArg::F_SETPIPE_SZ(TURN_BYTES as i32);
            nix::fcntl::fcntl(&write, size).expect("a larger pipe");
            File::from(write).write_all(&[b'x'; TURN_BYTES as usize]).expect("room in the pipe");
            pipe
        });
        let full = full.collect::<Vec<_>>();
        let begun = Instant::now();
        for (logs, pipe) in (1..).zip(full) {
            let streams = [Some(Position::default()), None];
            let add = Add { logs, rotation, closing: false, new: true, streams };
            let at = File::open(dir.path()).expect("directory");
            pump.on_add(add, vec![at.into(), pipe]).expect("added");
        }
        let thrown: u64 = pump.streams.values().map(|stream| stream.dropped).sum();
        let most = Waste::most_in(begun.elapsed()) + TURN_BYTES;
        assert!(thrown <= most, "{thrown} bytes, at most {most}");
        // Those that rested are read to their ends.
        while !pump.streams.is_empty() {
            pump.round().expect("a round");
        }
        let most = Waste::most_in(begun.elapsed()) + TURN_BYTES;
        assert!(60 * TURN_BYTES <= most, "at most {most}");
    }
    #[test]
    fn a_loss_is_told_although_nothing_more_comes() {
        let mut fixture = fixture(100, true);
        let (supervisor, control) = seqpacket::pair().expect("sockets");
        let mut pump = Pump::new(control).expect("a pump");
        let token = token(fixture.stream.logs, Which::Stdout);
        fixture.stream.budget.per_second = 0;
        pump.streams.insert(token, fixture.stream);
        let write = fixture.write.as_mut().expect("open");
        // The second is lost too early to be told at once, and then the pipe is held open in silence.
        for word in [b"one", b"two"] {
            write.write_all(word).expect("room in the pipe");
            pump.on_stream(token, None).expect("a turn");
        }
        let mut dropped = 0;
        let deadline = Instant::now() + 5 * WINDOW;
        while dropped < 6 {
            assert!(Instant::now() < deadline, "{dropped} bytes were told");
            // Its socket wakes it, if nothing else does.
            assert_ne!(pump.timeout(), EpollTimeout::NONE, "{dropped} bytes were told");
            pump.round().expect("a round");
            while let Ok(Some(datagram)) = seqpacket::recv(supervisor.as_fd()) {
                dropped = Told::decode(&datagram.body).last().expect("told").position.dropped;
            }
        }
        assert_eq!(pump.timeout(), EpollTimeout::NONE, "there is nothing more to tell");
    }
}
