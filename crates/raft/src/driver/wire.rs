//! Bytes between peers: a magic byte, what the connection is for, a hello each way, then frames.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use bytes::Bytes;
use socket2::{SockRef, TcpKeepalive};

use crate::bootstrap::Hello;

/// The first byte of each connection between peers. No other protocol on the same port begins with it.
pub(super) const MAGIC: u8 = 0xB7;
/// The version of what follows; another one is refused.
const VERSION: u8 = 1;
/// A hello is small.
const HELLO_BYTES_MAX: usize = 64 << 10;
/// A frame holds at least one entry, which may be of [`crate::core::ENTRY_BYTES_MAX`].
const FRAME_BYTES_MAX: usize = 64 << 20;
/// Hellos must be over in this time.
const HELLO_TIMEOUT: Duration = Duration::from_secs(2);
/// A connection on which nothing sent is acknowledged for so long is dead. Without it TCP would go on
/// retrying, ever more rarely, long after a partition has healed.
const USER_TIMEOUT: Duration = Duration::from_secs(3);

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Raft messages, from the dialler to the listener.
    Messages,
    /// Segments of snapshots, asked for by the dialler.
    Segments,
    /// Is this process alive? Answered by one byte, without a hello.
    Probe,
}

impl Purpose {
    fn byte(self) -> u8 {
        match self {
            Purpose::Messages => 1,
            Purpose::Segments => 2,
            Purpose::Probe => 3,
        }
    }

    fn from_byte(byte: u8) -> io::Result<Purpose> {
        match byte {
            1 => Ok(Purpose::Messages),
            2 => Ok(Purpose::Segments),
            3 => Ok(Purpose::Probe),
            other => Err(io::Error::other(format!("connection for an unknown purpose {other}"))),
        }
    }
}

/// Connects to a peer, with time-outs set for the hello.
pub(super) fn dial(address: &str, timeout: Duration) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{address} has no address"));
    for candidate in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&candidate, timeout) {
            Ok(stream) => {
                prepare(&stream)?;
                return Ok(stream);
            }
            Err(e) => last = e,
        }
    }
    Err(last)
}

/// Options of every peer connection, dialled or accepted.
pub(super) fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(HELLO_TIMEOUT))?;
    stream.set_write_timeout(Some(HELLO_TIMEOUT))?;
    let socket = SockRef::from(stream);
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    socket
        .set_tcp_keepalive(&TcpKeepalive::new().with_time(USER_TIMEOUT).with_interval(Duration::from_secs(1)))
}

pub(super) fn write_preface(stream: &mut impl Write, purpose: Purpose) -> io::Result<()> {
    stream.write_all(&[MAGIC, VERSION, purpose.byte()])
}

pub(super) fn read_preface(stream: &mut impl Read) -> io::Result<Purpose> {
    let mut head = [0; 3];
    stream.read_exact(&mut head)?;
    if head[0] != MAGIC || head[1] != VERSION {
        let what =
            format!("connection begins with bytes {:#04x} {:#04x}: not of this version", head[0], head[1]);
        return Err(io::Error::other(what));
    }
    Purpose::from_byte(head[2])
}

pub(super) fn write_hello(stream: &mut impl Write, hello: &Hello) -> io::Result<()> {
    let mut out = Vec::new();
    put_frame(&mut out, &[&[ACCEPTED], &hello.encode()]);
    stream.write_all(&out)
}

pub(super) fn write_refusal(stream: &mut impl Write, reason: &str) -> io::Result<()> {
    let mut out = Vec::new();
    put_frame(&mut out, &[&[REFUSED], reason.as_bytes()]);
    stream.write_all(&out)
}

const ACCEPTED: u8 = 1;
const REFUSED: u8 = 2;

/// A hello, or the other side's reason not to speak with us.
pub(super) fn read_hello(stream: &mut impl Read) -> io::Result<Result<Hello, String>> {
    let frame = read_frame_of(stream, HELLO_BYTES_MAX)?;
    match frame.split_first() {
        Some((&ACCEPTED, rest)) => {
            Hello::decode(rest).map(Ok).ok_or_else(|| io::Error::other("a hello that is not decodable"))
        }
        Some((&REFUSED, reason)) => Ok(Err(String::from_utf8_lossy(reason).into_owned())),
        _ => Err(io::Error::other("neither a hello nor a refusal")),
    }
}

/// Appends a frame: length (4), CRC32 of the content (4), content.
pub(super) fn put_frame(out: &mut Vec<u8>, parts: &[&[u8]]) {
    let mut crc = crc32fast::Hasher::new();
    let len: usize = parts.iter().map(|part| part.len()).sum();
    debug_assert!(len <= FRAME_BYTES_MAX);
    parts.iter().for_each(|part| crc.update(part));
    out.extend_from_slice(&(len as u32).to_le_bytes());
    out.extend_from_slice(&crc.finalize().to_le_bytes());
    parts.iter().for_each(|part| out.extend_from_slice(part));
}

pub(super) fn read_frame(stream: &mut impl Read) -> io::Result<Bytes> {
    read_frame_of(stream, FRAME_BYTES_MAX)
}

fn read_frame_of(stream: &mut impl Read, max: usize) -> io::Result<Bytes> {
    let mut head = [0; 8];
    stream.read_exact(&mut head)?;
    let len = u32::from_le_bytes(head[..4].try_into().expect("four bytes")) as usize;
    if len > max {
        return Err(io::Error::other(format!("frame of {len} bytes, over the limit of {max}")));
    }
    // Grown as bytes arrive, so that a length alone costs nothing.
    let mut content = Vec::with_capacity(len.min(1 << 20));
    stream.take(len as u64).read_to_end(&mut content)?;
    if content.len() < len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if crc32fast::hash(&content).to_le_bytes() != head[4..] {
        return Err(io::Error::other("checksum of a frame differs"));
    }
    Ok(content.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_round_trip_and_damage_is_found() {
        let mut out = Vec::new();
        put_frame(&mut out, &[b"ab", b"", b"cde"]);
        assert_eq!(read_frame(&mut out.as_slice()).unwrap(), b"abcde"[..]);
        for at in 0..out.len() {
            let mut bad = out.clone();
            bad[at] ^= 0x40;
            assert!(read_frame(&mut bad.as_slice()).is_err(), "byte {at}");
        }
        assert!(read_frame(&mut &out[..out.len() - 1]).is_err());
    }

    #[test]
    fn prefaces_of_other_versions_and_purposes_are_refused() {
        let mut out = Vec::new();
        write_preface(&mut out, Purpose::Segments).unwrap();
        assert_eq!(read_preface(&mut out.as_slice()).unwrap(), Purpose::Segments);
        for bad in [[0x50, 1, 1], [MAGIC, 2, 1], [MAGIC, 1, 9]] {
            assert!(read_preface(&mut bad.as_slice()).is_err());
        }
    }

    #[test]
    fn a_refusal_carries_its_reason() {
        let mut out = Vec::new();
        write_refusal(&mut out, "because").unwrap();
        assert_eq!(read_hello(&mut out.as_slice()).unwrap(), Err("because".to_owned()));
    }
}
