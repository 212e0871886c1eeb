//! The log pump: a process of its own that copies the tasks' pipes to files.
//!
//! Writing to a disk may block for long, and may be killed: the supervisor does neither. The pump keeps no state
//! but the files' names and lengths, so that the next one goes on where this one ended; data moves by splice and
//! leaves a pipe only as it enters a file. It ends when its supervisor is gone and every stream at its end.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::process::ExitCode;

use nix::fcntl::{OFlag, openat};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::stat::Mode;
use proffer_launcher::seqpacket;

use crate::pump_protocol::{Add, encode_done};

/// The word after the program's name that makes it a pump.
pub const SUBCOMMAND: &str = "log-pump";
/// The descriptor of the control socket.
pub(crate) const CONTROL: RawFd = 3;

/// How much one stream may move before the others have their turn, in bytes.
const TURN_BYTES: u64 = 1024 * 1024;
/// What is read at once where splice does not work, or is thrown away.
const BUFFER_BYTES: usize = 64 * 1024;

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
    streams: BTreeMap<u64, Stream>,
    /// Ended streams of which the supervisor has not been told yet.
    done: VecDeque<u64>,
}

fn run(control: OwnedFd) -> io::Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(&control, EpollEvent::new(EpollFlags::EPOLLIN, CONTROL_TOKEN))?;
    let mut pump = Pump { epoll, control: Some(control), streams: BTreeMap::new(), done: VecDeque::new() };
    while pump.control.is_some() || !pump.streams.is_empty() {
        let mut events = [EpollEvent::empty(); 64];
        let count = match pump.epoll.wait(&mut events, EpollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => 0,
            other => other?,
        };
        for event in &events[..count] {
            match event.data() {
                CONTROL_TOKEN => pump.on_control()?,
                stream => pump.on_stream(stream),
            }
        }
        pump.tell();
    }
    Ok(())
}

impl Pump {
    fn on_control(&mut self) -> io::Result<()> {
        while let Some(control) = &self.control {
            match seqpacket::recv(control.as_fd()) {
                Ok(Some(datagram)) => {
                    if datagram.descriptors_lost {
                        // Passed over, the stream would never be read: the next pump is told of it again.
                        return Err(io::Error::other("no descriptor is free"));
                    }
                    let Some(add) = Add::decode(&datagram.body) else { continue };
                    let Ok([pipe, dir]) = <[OwnedFd; 2]>::try_from(datagram.descriptors) else { continue };
                    if let Some(stream) = self.streams.get_mut(&add.stream) {
                        stream.closing = add.closing;
                    } else {
                        self.epoll.add(&pipe, EpollEvent::new(EpollFlags::EPOLLIN, add.stream))?;
                        self.streams.insert(add.stream, Stream::open(add, pipe, dir));
                    }
                    if add.closing {
                        // An empty pipe that someone holds open has nothing to say by itself.
                        self.on_stream(add.stream);
                    }
                }
                Err(seqpacket::Error::WouldBlock) => break,
                Ok(None) => self.control = None,
                Err(error) => return Err(io::Error::other(error)),
            }
        }
        Ok(())
    }

    fn on_stream(&mut self, number: u64) {
        let Some(stream) = self.streams.get_mut(&number) else { return };
        if stream.turn() == Progress::Ended {
            let _ = self.epoll.delete(&stream.pipe);
            self.streams.remove(&number);
            self.done.push_back(number);
        }
    }

    fn tell(&mut self) {
        let Some(control) = &self.control else { return };
        let waited = !self.done.is_empty();
        while let Some(&stream) = self.done.front() {
            match seqpacket::send(control.as_fd(), &encode_done(stream), &[]) {
                Ok(()) => {
                    self.done.pop_front();
                }
                Err(seqpacket::Error::WouldBlock) => break,
                Err(_) => {
                    self.control = None;
                    return;
                }
            }
        }
        if waited {
            let room = if self.done.is_empty() { EpollFlags::empty() } else { EpollFlags::EPOLLOUT };
            let mut event = EpollEvent::new(EpollFlags::EPOLLIN | room, CONTROL_TOKEN);
            let _ = self.epoll.modify(control, &mut event);
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Waiting,
    Ended,
}

/// One stream and the file it is at.
struct Stream {
    pipe: OwnedFd,
    files: Result<Files, io::Error>,
    /// Whoever still holds the other end has nothing more to say here.
    closing: bool,
}

impl Stream {
    fn open(add: Add, pipe: OwnedFd, dir: OwnedFd) -> Self {
        Stream { pipe, files: Files::open(add, dir), closing: add.closing }
    }

    /// Moves what there is, up to a turn's worth, which is as much as a pipe may hold.
    fn turn(&mut self) -> Progress {
        match self.take_turn() {
            Progress::Waiting if self.closing => Progress::Ended,
            progress => progress,
        }
    }

    fn take_turn(&mut self) -> Progress {
        let mut moved = 0;
        while moved < TURN_BYTES {
            // Asked before a file is begun: at the end of the stream none must be, for the oldest would go.
            match ready(&self.pipe) {
                Ready::Data => {}
                Ready::Nothing => return Progress::Waiting,
                Ready::End => return Progress::Ended,
            }
            let written = match &mut self.files {
                Ok(files) => files.take_from(&self.pipe),
                Err(_) => Err(io::ErrorKind::NotFound.into()),
            };
            let bytes = match written {
                Ok(bytes) => bytes,
                // A full disk must not stop the task: what cannot be kept is thrown away.
                Err(_) => discard(&self.pipe),
            };
            if bytes == 0 {
                break;
            }
            moved += bytes;
        }
        Progress::Waiting
    }
}

enum Ready {
    Data,
    Nothing,
    End,
}

fn ready(pipe: &OwnedFd) -> Ready {
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

fn discard(pipe: &OwnedFd) -> u64 {
    let mut buffer = [0; BUFFER_BYTES];
    nix::unistd::read(pipe, &mut buffer).unwrap_or(0) as u64
}

/// The chain of files `<stream>.<start_offset>`.
struct Files {
    add: Add,
    dir: OwnedFd,
    file: File,
    /// The start offsets of the files there are, ascending; the last one's is that of `file`.
    starts: VecDeque<u64>,
    length: u64,
    splice: bool,
}

impl Files {
    /// Goes on with the newest file in the directory, or begins the first.
    fn open(add: Add, dir: OwnedFd) -> io::Result<Self> {
        let mut starts = existing(&dir, add.which.name())?;
        let start = starts.back().copied().unwrap_or(0);
        let file = open_file(&dir, add, start)?;
        let length = file.metadata()?.len();
        if starts.is_empty() {
            starts.push_back(start);
        }
        Ok(Files { add, dir, file, starts, length, splice: true })
    }

    /// Moves bytes from a pipe that has some.
    fn take_from(&mut self, pipe: &OwnedFd) -> io::Result<u64> {
        if self.length >= self.add.file_bytes {
            self.rotate()?;
        }
        let room = (self.add.file_bytes - self.length).min(TURN_BYTES) as usize;
        let bytes = if self.splice { self.splice(pipe, room) } else { self.copy(pipe, room) }?;
        self.length += bytes;
        Ok(bytes)
    }

    fn splice(&mut self, pipe: &OwnedFd, room: usize) -> io::Result<u64> {
        let mut offset = i64::try_from(self.length).map_err(io::Error::other)?;
        // SAFETY: both descriptors and the offset are owned here.
        let result = unsafe {
            let flags = libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK;
            libc::splice(
                pipe.as_raw_fd(),
                std::ptr::null_mut(),
                self.file.as_raw_fd(),
                &mut offset,
                room,
                flags,
            )
        };
        match u64::try_from(result) {
            Ok(bytes) => Ok(bytes),
            Err(_) => match io::Error::last_os_error() {
                // A file system that does not know how.
                error if error.raw_os_error() == Some(libc::EINVAL) => {
                    self.splice = false;
                    self.copy(pipe, room)
                }
                error if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
                error => Err(error),
            },
        }
    }

    fn copy(&mut self, pipe: &OwnedFd, room: usize) -> io::Result<u64> {
        let mut buffer = [0; BUFFER_BYTES];
        let room = room.min(BUFFER_BYTES);
        let bytes = File::from(pipe.try_clone()?).read(&mut buffer[..room])?;
        self.file.write_all_at(&buffer[..bytes], self.length)?;
        Ok(bytes as u64)
    }

    fn rotate(&mut self) -> io::Result<()> {
        let last = self.starts.back().copied().unwrap_or(0);
        let start = last + self.length;
        self.file = open_file(&self.dir, self.add, start)?;
        self.length = 0;
        self.starts.push_back(start);
        while self.starts.len() > self.add.files as usize {
            if let Some(oldest) = self.starts.pop_front() {
                let name = file_name(self.add, oldest);
                let flags = nix::unistd::UnlinkatFlags::NoRemoveDir;
                let _ = nix::unistd::unlinkat(&self.dir, name.as_str(), flags);
            }
        }
        Ok(())
    }
}

fn file_name(add: Add, start: u64) -> String {
    format!("{}.{start}", add.which.name())
}

fn open_file(dir: &OwnedFd, add: Add, start: u64) -> io::Result<File> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mode = Mode::from_bits_truncate(0o640);
    Ok(openat(dir, file_name(add, start).as_str(), flags, mode)?.into())
}

/// The start offsets of a stream's files.
fn existing(dir: &OwnedFd, stream: &str) -> io::Result<VecDeque<u64>> {
    // A description of its own: reading moves the position.
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut entries = nix::dir::Dir::openat(dir, ".", flags, Mode::empty())?;
    let mut starts = Vec::new();
    for entry in entries.iter() {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy();
        let start = name.strip_prefix(stream).and_then(|rest| rest.strip_prefix('.'));
        starts.extend(start.and_then(|start| start.parse::<u64>().ok()));
    }
    starts.sort_unstable();
    Ok(starts.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pump_protocol::Which;
    use std::io::Write;

    struct Fixture {
        dir: tempfile::TempDir,
        stream: Stream,
        write: Option<File>,
    }

    fn fixture(file_bytes: u64, splice: bool) -> Fixture {
        let dir = tempfile::Builder::new().prefix("proffer-pump").tempdir().expect("temp dir");
        let (pipe, write) = nix::unistd::pipe().expect("pipe");
        let mut fixture = Fixture { stream: reopen(&dir, pipe, file_bytes), dir, write: Some(write.into()) };
        fixture.stream.files.as_mut().expect("opened").splice = splice;
        fixture
    }

    fn reopen(dir: &tempfile::TempDir, pipe: OwnedFd, file_bytes: u64) -> Stream {
        let dir = File::open(dir.path()).expect("directory").into();
        Stream::open(Add { stream: 1, which: Which::Stdout, file_bytes, files: 2, closing: false }, pipe, dir)
    }

    impl Fixture {
        fn write(&mut self, text: &[u8]) {
            self.write.as_mut().expect("open").write_all(text).expect("room in the pipe");
            assert_eq!(self.stream.turn(), Progress::Waiting);
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
            assert_eq!(fixture.files(), files(&[("stdout.0", "")]));
            fixture.write(b"abcdef");
            assert_eq!(fixture.files(), files(&[("stdout.0", "abcd"), ("stdout.4", "ef")]));
            fixture.write(b"ghi");
            assert_eq!(fixture.files(), files(&[("stdout.4", "efgh"), ("stdout.8", "i")]));
            fixture.write(b"jkl");
            fixture.write = None;
            // The end of a stream begins no file, although the last one is full.
            assert_eq!(fixture.stream.turn(), Progress::Ended);
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
    fn a_stream_that_cannot_be_written_is_drained_all_the_same() {
        let mut fixture = fixture(4, true);
        fixture.stream.files = Err(io::ErrorKind::PermissionDenied.into());
        fixture.write(b"abcdef");
        fixture.write = None;
        assert_eq!(fixture.stream.turn(), Progress::Ended);
        assert_eq!(fixture.files(), files(&[("stdout.0", "")]));
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
}
