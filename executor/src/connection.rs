//! One agent connection and what waits to be sent on it.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use proffer_launcher::seqpacket::{self, Receiver};
use proffer_wire::supervisor::v1::ToAgent;
use prost::Message;

/// An agent that does not read is cut off after this many messages; it learns all of it anew from `List`.
const WAITING_MAX: usize = 65_536;

/// A connected agent, or one that has not said `Hello` yet.
pub(crate) struct Connection {
    socket: OwnedFd,
    waiting: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    /// What it is watched for: room, or datagrams.
    pub(crate) watched_for_room: bool,
    /// Said `Hello` and was welcomed.
    pub(crate) welcomed: bool,
}

/// The connection is of no more use.
#[derive(Debug)]
pub(crate) struct Lost(pub(crate) String);

impl Connection {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Connection { socket, waiting: VecDeque::new(), watched_for_room: false, welcomed: false }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether something waits for room.
    pub(crate) fn is_full(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Sends, or keeps for when there is room.
    pub(crate) fn send(&mut self, message: &ToAgent, descriptors: Vec<OwnedFd>) -> Result<(), Lost> {
        if self.waiting.len() >= WAITING_MAX {
            return Err(Lost(format!("{WAITING_MAX} messages wait to be read")));
        }
        self.waiting.push_back((message.encode_to_vec(), descriptors));
        if self.waiting.len() == 1 { self.flush() } else { Ok(()) }
    }

    /// Sends what waits, as far as there is room.
    pub(crate) fn flush(&mut self) -> Result<(), Lost> {
        while let Some((body, descriptors)) = self.waiting.front() {
            let descriptors = descriptors.iter().map(AsFd::as_fd).collect::<Vec<_>>();
            match seqpacket::send(self.socket.as_fd(), body, &descriptors) {
                Ok(()) => {
                    self.waiting.pop_front();
                }
                Err(seqpacket::Error::WouldBlock) => return Ok(()),
                Err(error) => return Err(Lost(error.to_string())),
            }
        }
        Ok(())
    }

    /// The next datagram; `None` when there is none for now.
    pub(crate) fn recv<'a>(
        &self,
        receiver: &'a mut Receiver,
    ) -> Result<Option<seqpacket::Received<'a>>, Received> {
        match receiver.recv(self.socket.as_fd()) {
            Ok(Some(datagram)) => Ok(Some(datagram)),
            Ok(None) => Err(Received::End),
            Err(seqpacket::Error::WouldBlock) => Ok(None),
            Err(error @ seqpacket::Error::TooLarge { .. }) => Err(Received::Refused(error.to_string())),
            Err(error) => Err(Received::Broken(error.to_string())),
        }
    }
}

/// Why there is no datagram.
#[derive(Debug)]
pub(crate) enum Received {
    /// The agent closed.
    End,
    /// There was one, but not one to read; the connection goes on.
    Refused(String),
    /// The connection failed.
    Broken(String),
}
