//! epoll with tokens that name what is ready.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// What became ready. Numbers are serial, never reused: a late event of something closed finds nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    /// A connection waits.
    Listener,
    /// A connection has a datagram, or room for one.
    Connection(u64),
    /// An init's status socket.
    Status(u64),
    /// An init has ended.
    Exit(u64),
    /// The status socket of a process that joined a container.
    InsideStatus(u64),
    /// Such a process has ended.
    InsideExit(u64),
    /// The pump's control socket.
    PumpControl,
    /// The pump has ended.
    PumpExit,
}

const KIND_SHIFT: u32 = 56;

impl Token {
    fn encode(self) -> u64 {
        let (kind, serial) = match self {
            Token::Listener => (0, 0),
            Token::Connection(serial) => (1, serial),
            Token::Status(serial) => (2, serial),
            Token::Exit(serial) => (3, serial),
            Token::InsideStatus(serial) => (6, serial),
            Token::InsideExit(serial) => (7, serial),
            Token::PumpControl => (4, 0),
            Token::PumpExit => (5, 0),
        };
        (kind << KIND_SHIFT) | serial
    }

    fn decode(data: u64) -> Option<Token> {
        let serial = data & ((1 << KIND_SHIFT) - 1);
        Some(match data >> KIND_SHIFT {
            0 => Token::Listener,
            1 => Token::Connection(serial),
            2 => Token::Status(serial),
            3 => Token::Exit(serial),
            4 => Token::PumpControl,
            5 => Token::PumpExit,
            6 => Token::InsideStatus(serial),
            7 => Token::InsideExit(serial),
            _ => return None,
        })
    }
}

/// The one thing that is waited on.
pub(crate) struct Poller {
    epoll: Epoll,
}

impl Poller {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Poller { epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)? })
    }

    /// Watches `fd` for input.
    pub(crate) fn add(&self, fd: impl AsFd, token: Token) -> io::Result<()> {
        Ok(self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, token.encode()))?)
    }

    /// Watches `fd`, and tells each time that something comes: for who then reads all of it. It needs not be removed
    /// before it is closed, even if a child that was cloned a moment ago has it still: nothing will come any more.
    pub(crate) fn add_edge(&self, fd: impl AsFd, token: Token) -> io::Result<()> {
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        Ok(self.epoll.add(fd, EpollEvent::new(flags, token.encode()))?)
    }

    /// Watches `fd` until it is ready, and no longer: it needs not be removed either.
    pub(crate) fn add_once(&self, fd: impl AsFd, token: Token) -> io::Result<()> {
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLONESHOT;
        Ok(self.epoll.add(fd, EpollEvent::new(flags, token.encode()))?)
    }

    /// Changes what `fd`, which is watched already, is watched for.
    pub(crate) fn watch(&self, fd: impl AsFd, token: Token, input: bool, room: bool) -> io::Result<()> {
        let mut flags = EpollFlags::empty();
        flags.set(EpollFlags::EPOLLIN, input);
        flags.set(EpollFlags::EPOLLOUT, room);
        Ok(self.epoll.modify(fd, &mut EpollEvent::new(flags, token.encode()))?)
    }

    /// Stops watching `fd`.
    pub(crate) fn remove(&self, fd: impl AsFd) {
        let _ = self.epoll.delete(fd);
    }

    /// Waits until something is ready or `deadline` has come.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> io::Result<Vec<Token>> {
        let timeout = deadline.map_or(EpollTimeout::NONE, |deadline| {
            // Rounded up, or the last millisecond would be spent spinning.
            let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
            EpollTimeout::try_from(left).unwrap_or(EpollTimeout::MAX)
        });
        let mut events = [EpollEvent::empty(); 64];
        match self.epoll.wait(&mut events, timeout) {
            Ok(count) => Ok(events[..count].iter().filter_map(|event| Token::decode(event.data())).collect()),
            Err(nix::errno::Errno::EINTR) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }
}
