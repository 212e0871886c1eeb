//! Datagrams with descriptors over a SOCK_SEQPACKET path socket: what agent and supervisor speak through.
//!
//! Nothing here waits unless the descriptor it is given is a blocking one.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::socket::sockopt::{PeerCredentials, SndBuf};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind,
    connect as connect_socket, getsockopt, listen as listen_socket, sendmsg, setsockopt, socket,
};

/// The largest datagram, in bytes.
pub const DATAGRAM_MAX: usize = 256 * 1024;
/// The most descriptors in one datagram.
pub const DESCRIPTORS_MAX: usize = 16;
/// The longest path that fits a socket address, its NUL not counted.
const ADDRESS_MAX: usize = 107;

/// Why a datagram could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The message does not fit one datagram.
    #[error("a message of {size} bytes exceeds the {DATAGRAM_MAX} bytes of a datagram")]
    TooLarge {
        /// Its encoded size in bytes; of a received one at least this.
        size: usize,
    },
    /// More descriptors than a datagram may carry.
    #[error("{count} descriptors exceed the {DESCRIPTORS_MAX} of a datagram")]
    TooManyDescriptors {
        /// How many.
        count: usize,
    },
    /// The socket is full (sending) or empty (receiving) and not to be waited for.
    #[error("the socket is not ready")]
    WouldBlock,
    /// The system call failed.
    #[error("{operation} on a seqpacket socket")]
    Io {
        /// `sendmsg`, `recv` or `recvmsg`.
        operation: &'static str,
        /// Its error.
        #[source]
        source: io::Error,
    },
}

/// A received datagram.
#[derive(Debug)]
pub struct Datagram {
    /// Its bytes; never empty.
    pub body: Vec<u8>,
    /// Its descriptors, close-on-exec, in the order in which they were sent.
    pub descriptors: Vec<OwnedFd>,
    /// More were sent than this process could take: there were too many, or it may have no more open.
    pub descriptors_lost: bool,
}

/// The other end of a connection, as the kernel saw it when it connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its pid in this process's namespace.
    pub pid: i32,
    /// Its effective user.
    pub uid: u32,
}

/// Listens on a new non-blocking socket at `path`, which must not exist. Who may connect is decided by the
/// permissions of the directory and by [`peer`].
pub fn listen(path: &Path) -> io::Result<OwnedFd> {
    let socket = new_socket(SockFlag::SOCK_NONBLOCK)?;
    with_address(path, |address| bind(socket.as_raw_fd(), address))?;
    listen_socket(&socket, Backlog::new(64)?)?;
    Ok(socket)
}

/// Connects to `path`. The connection is non-blocking if asked.
pub fn connect(path: &Path, nonblocking: bool) -> io::Result<OwnedFd> {
    let flags = if nonblocking { SockFlag::SOCK_NONBLOCK } else { SockFlag::empty() };
    let socket = new_socket(flags)?;
    with_address(path, |address| connect_socket(socket.as_raw_fd(), address))?;
    enlarge(&socket)?;
    Ok(socket)
}

/// The next waiting connection as a non-blocking socket, if there is one.
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    match accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK) {
        Ok(fd) => {
            // SAFETY: just accepted and owned by nobody else.
            let socket = unsafe { OwnedFd::from_raw_fd(fd) };
            enlarge(&socket)?;
            Ok(Some(socket))
        }
        Err(Errno::EAGAIN | Errno::EINTR | Errno::ECONNABORTED) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Two connected non-blocking sockets.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let pair = nix::sys::socket::socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
    enlarge(&pair.0)?;
    enlarge(&pair.1)?;
    Ok(pair)
}

/// Who connected.
pub fn peer(connection: BorrowedFd<'_>) -> io::Result<Peer> {
    let credentials = getsockopt(&connection, PeerCredentials)?;
    Ok(Peer { pid: credentials.pid(), uid: credentials.uid() })
}

/// Sends one datagram, whole or not at all. An empty body cannot be told from the end and is not sent.
pub fn send(connection: BorrowedFd<'_>, body: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<(), Error> {
    if body.len() > DATAGRAM_MAX {
        return Err(Error::TooLarge { size: body.len() });
    }
    if descriptors.len() > DESCRIPTORS_MAX {
        return Err(Error::TooManyDescriptors { count: descriptors.len() });
    }
    let raw = descriptors.iter().map(AsRawFd::as_raw_fd).collect::<Vec<RawFd>>();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    let flags = MsgFlags::MSG_NOSIGNAL;
    loop {
        match sendmsg::<()>(connection.as_raw_fd(), &[IoSlice::new(body)], control, flags, None) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Err(Error::WouldBlock),
            Err(error) => return Err(Error::Io { operation: "sendmsg", source: error.into() }),
        }
    }
}

/// Receives one datagram; `None` at the end of the connection. A datagram that is too large is consumed and
/// reported.
pub fn recv(connection: BorrowedFd<'_>) -> Result<Option<Datagram>, Error> {
    let Some(length) = next_length(connection)? else { return Ok(None) };
    // One that is too large is truncated, and so told.
    let length = length.min(DATAGRAM_MAX);
    let mut body = Vec::with_capacity(length);
    let received = recv_into(connection, &mut body.spare_capacity_mut()[..length])?;
    let Some(Received { body: received, descriptors, descriptors_lost }) = received else { return Ok(None) };
    let length = received.len();
    // SAFETY: so many bytes were received into it.
    unsafe { body.set_len(length) };
    Ok(Some(Datagram { body, descriptors, descriptors_lost }))
}

/// Receives datagrams one after the other into a buffer of its own, which takes no more memory than the largest of
/// them had: for who receives so many that asking for the length of each first would cost.
#[derive(Debug)]
pub struct Receiver {
    buffer: Box<[MaybeUninit<u8>]>,
}

/// What a [`Receiver`] received.
#[derive(Debug)]
pub struct Received<'a> {
    /// As of [`Datagram`].
    pub body: &'a [u8],
    /// As of [`Datagram`].
    pub descriptors: Vec<OwnedFd>,
    /// As of [`Datagram`].
    pub descriptors_lost: bool,
}

impl Default for Receiver {
    fn default() -> Self {
        // What nobody has written to is no memory; zeroes may be.
        Receiver { buffer: Box::new_uninit_slice(DATAGRAM_MAX) }
    }
}

impl Receiver {
    /// As [`recv`].
    pub fn recv(&mut self, connection: BorrowedFd<'_>) -> Result<Option<Received<'_>>, Error> {
        recv_into(connection, &mut self.buffer)
    }
}

fn recv_into<'a>(
    connection: BorrowedFd<'_>,
    buffer: &'a mut [MaybeUninit<u8>],
) -> Result<Option<Received<'a>>, Error> {
    let (length, flags, descriptors) = loop {
        match recv_message(connection, buffer) {
            Ok(received) => break received,
            // The peer closed with datagrams of ours unread, which is told once and before what it had sent
            // (sock_error in the kernel takes the error away): that comes next, and then the end.
            Err(Errno::EINTR | Errno::ECONNRESET) => {}
            Err(Errno::EAGAIN) => return Err(Error::WouldBlock),
            Err(error) => return Err(Error::Io { operation: "recvmsg", source: error.into() }),
        }
    };
    if flags & libc::MSG_TRUNC != 0 {
        return Err(Error::TooLarge { size: length });
    }
    if length == 0 {
        return Ok(None);
    }
    // SAFETY: the datagram was not truncated, so that all of its bytes were written here.
    let body = unsafe { buffer[..length].assume_init_ref() };
    Ok(Some(Received { body, descriptors, descriptors_lost: flags & libc::MSG_CTRUNC != 0 }))
}

/// recvmsg(2): the datagram's true length, its flags and its descriptors.
pub(crate) fn recv_with_descriptors(
    connection: BorrowedFd<'_>,
    body: &mut [u8],
) -> nix::Result<(usize, libc::c_int, Vec<OwnedFd>)> {
    // SAFETY: the same bytes, to which nothing but bytes are written.
    recv_message(connection, unsafe { &mut *(std::ptr::from_mut(body) as *mut [MaybeUninit<u8>]) })
}

/// By hand, because nix keeps back the descriptors of a message that lost some, which would stay open for good.
fn recv_message(
    connection: BorrowedFd<'_>,
    body: &mut [MaybeUninit<u8>],
) -> nix::Result<(usize, libc::c_int, Vec<OwnedFd>)> {
    // SAFETY: plain arithmetic.
    const SPACE: usize = unsafe { libc::CMSG_SPACE((DESCRIPTORS_MAX * size_of::<RawFd>()) as u32) } as usize;
    // Of words, for the alignment of a header.
    let mut space = [0u64; SPACE.div_ceil(8)];
    let mut slice = libc::iovec { iov_base: body.as_mut_ptr().cast(), iov_len: body.len() };
    // SAFETY: a msghdr of zeroes is an empty one.
    let mut message = unsafe { std::mem::zeroed::<libc::msghdr>() };
    message.msg_iov = &mut slice;
    message.msg_iovlen = 1;
    message.msg_control = space.as_mut_ptr().cast();
    message.msg_controllen = SPACE as _;
    let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_TRUNC;
    // SAFETY: everything that `message` points to is owned here and as long as it says.
    let length = unsafe { libc::recvmsg(connection.as_raw_fd(), &mut message, flags) };
    let length = Errno::result(length)? as usize;
    let mut descriptors = Vec::new();
    // SAFETY: the kernel has filled in `message`; what it installed for this process is owned by nobody else.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&message);
        while let Some(control) = header.as_ref() {
            if (control.cmsg_level, control.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
                #[allow(clippy::unnecessary_cast, reason = "the type differs between C libraries")]
                let bytes = control.cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                let first = libc::CMSG_DATA(header).cast::<RawFd>();
                let numbers = (0..bytes / size_of::<RawFd>()).map(|index| first.add(index).read_unaligned());
                descriptors.extend(numbers.map(|fd| OwnedFd::from_raw_fd(fd)));
            }
            header = libc::CMSG_NXTHDR(&message, header);
        }
    }
    Ok((length, message.msg_flags, descriptors))
}

/// The length of the datagram that waits, so that no more is allocated than it takes; `None` at the end.
fn next_length(connection: BorrowedFd<'_>) -> Result<Option<usize>, Error> {
    loop {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC;
        match nix::sys::socket::recv(connection.as_raw_fd(), &mut [], flags) {
            Ok(0) => return Ok(None),
            Ok(length) => return Ok(Some(length)),
            // As above.
            Err(Errno::EINTR | Errno::ECONNRESET) => {}
            Err(Errno::EAGAIN) => return Err(Error::WouldBlock),
            Err(error) => return Err(Error::Io { operation: "recv", source: error.into() }),
        }
    }
}

fn new_socket(flags: SockFlag) -> io::Result<OwnedFd> {
    let flags = flags | SockFlag::SOCK_CLOEXEC;
    Ok(socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?)
}

/// A datagram must fit the send buffer, whose default is smaller than ours may be.
fn enlarge(socket: &OwnedFd) -> io::Result<()> {
    Ok(setsockopt(socket, SndBuf, &(2 * DATAGRAM_MAX))?)
}

/// Calls `operation` with the address of `path`; a path too long for an address is reached through its
/// directory's descriptor.
fn with_address<T>(path: &Path, operation: impl FnOnce(&UnixAddr) -> nix::Result<T>) -> io::Result<T> {
    if path.as_os_str().as_bytes().len() <= ADDRESS_MAX {
        return Ok(operation(&UnixAddr::new(path)?)?);
    }
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let parent = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let dir = std::fs::File::open(parent)?;
    let short = Path::new("/proc/self/fd").join(dir.as_fd().as_raw_fd().to_string()).join(name);
    Ok(operation(&UnixAddr::new(&short)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_datagram_arrives_whole_with_its_descriptors() {
        let dir = std::env::temp_dir().join(format!("proffer-seqpacket-{}", std::process::id()));
        let long = dir.join("x".repeat(120));
        std::fs::create_dir_all(&long).expect("temp dir");
        for path in [dir.join("short"), long.join("long")] {
            let listener = listen(&path).expect("listen");
            let client = connect(&path, true).expect("connect");
            let server = accept(listener.as_fd()).expect("accept").expect("a connection");
            // SAFETY: cannot fail.
            assert_eq!(peer(server.as_fd()).expect("peer").uid, unsafe { libc::geteuid() });
            let (read, write) = nix::unistd::pipe().expect("pipe");
            let body = vec![7; DATAGRAM_MAX];
            send(client.as_fd(), &body, &[write.as_fd()]).expect("send");
            drop(write);
            let got = recv(server.as_fd()).expect("recv").expect("a datagram");
            assert_eq!(got.body, body);
            assert_eq!(nix::unistd::write(&got.descriptors[0], b"x"), Ok(1));
            assert_eq!(nix::unistd::read(&read, &mut [0; 4]), Ok(1));
            assert!(matches!(recv(server.as_fd()), Err(Error::WouldBlock)));
            drop(client);
            assert!(matches!(recv(server.as_fd()), Ok(None)));
        }
        std::fs::remove_dir_all(&dir).expect("removed");
    }

    #[test]
    fn what_is_too_large_is_refused_on_both_sides() {
        let (a, b) = pair().expect("pair");
        let large = vec![1; DATAGRAM_MAX + 1];
        assert!(matches!(send(a.as_fd(), &large, &[]), Err(Error::TooLarge { .. })));
        assert_eq!(nix::unistd::write(&a, &large), Ok(large.len()));
        assert!(matches!(recv(b.as_fd()), Err(Error::TooLarge { .. })));
        send(a.as_fd(), b"next", &[]).expect("send");
        assert_eq!(recv(b.as_fd()).expect("recv").expect("a datagram").body, b"next");
    }

    #[test]
    fn a_receiver_receives_the_same() {
        let (a, b) = pair().expect("pair");
        let mut receiver = Receiver::default();
        assert!(matches!(receiver.recv(b.as_fd()), Err(Error::WouldBlock)));
        let bodies = [vec![7; DATAGRAM_MAX], vec![8; 3]];
        for body in &bodies {
            send(a.as_fd(), body, &[a.as_fd()]).expect("send");
            let got = receiver.recv(b.as_fd()).expect("recv").expect("a datagram");
            assert_eq!((got.body, got.descriptors.len(), got.descriptors_lost), (&body[..], 1, false));
        }
        assert_eq!(nix::unistd::write(&a, &vec![1; DATAGRAM_MAX + 1]), Ok(DATAGRAM_MAX + 1));
        assert!(matches!(receiver.recv(b.as_fd()), Err(Error::TooLarge { .. })));
        drop(a);
        assert!(matches!(receiver.recv(b.as_fd()), Ok(None)));
    }

    #[test]
    fn what_comes_of_lost_descriptors_is_told_and_not_leaked() {
        let (a, b) = pair().expect("pair");
        let (read, write) = nix::unistd::pipe().expect("pipe");
        let raw = vec![write.as_raw_fd(); DESCRIPTORS_MAX + 4];
        let (body, rights) = ([IoSlice::new(b"body")], [ControlMessage::ScmRights(&raw)]);
        sendmsg::<()>(a.as_raw_fd(), &body, &rights, MsgFlags::empty(), None).expect("sendmsg");
        drop(write);
        let got = recv(b.as_fd()).expect("recv").expect("a datagram");
        assert!(got.descriptors_lost && got.body == b"body");
        assert_eq!(got.descriptors.len(), DESCRIPTORS_MAX);
        drop(got);
        assert_eq!(nix::unistd::read(&read, &mut [0; 1]), Ok(0), "nobody holds the other end any more");
    }
}
