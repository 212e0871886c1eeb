//! What a check over the network does: one connection to the loopback address, in the container, as its user.
//!
//! The trying half ([`try_it`]) runs in a child of a process whose heap it does not have: it uses its stack and system
//! calls, and waits as long as it takes, for it is killed when its time is over. What it finds wrong it writes to its
//! standard output. The making half ([`Probe::input`]) prepares all that is sent.

use std::ffi::c_int;

const TCP: u8 = 1;
const HTTP: u8 = 2;
const GRPC: u8 = 3;

/// What is tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Probe {
    /// A program, which is executed as any other.
    Command(Vec<String>),
    /// The input of [`try_it`].
    Network(Vec<u8>),
}

impl Probe {
    /// A connection.
    pub(crate) fn tcp(port: u16) -> Self {
        Self::input(TCP, port, &[])
    }

    /// A GET of `path`.
    pub(crate) fn http(port: u16, path: &str) -> Self {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUser-Agent: proffer\r\nAccept: */*\r\n\
             Connection: close\r\n\r\n"
        );
        Self::input(HTTP, port, request.as_bytes())
    }

    /// `grpc.health.v1.Health/Check` of `service`, below 120 bytes.
    pub(crate) fn grpc(port: u16, service: &str) -> Self {
        Self::input(GRPC, port, &grpc_request(port, service))
    }

    fn input(kind: u8, port: u16, request: &[u8]) -> Self {
        let [high, low] = port.to_be_bytes();
        Self::Network([&[kind, high, low], request].concat())
    }
}

/// The preface of HTTP/2, settings, and one request of a stream: as the kernel is to send it.
fn grpc_request(port: u16, service: &str) -> Vec<u8> {
    fn text(block: &mut Vec<u8>, text: &str) {
        // Below 127 a length is one byte; without the first bit it is not Huffman-coded.
        block.push(text.len() as u8);
        block.extend(text.as_bytes());
    }
    fn frame(all: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, body: &[u8]) {
        all.extend(&(body.len() as u32).to_be_bytes()[1..]);
        all.extend([kind, flags]);
        all.extend(stream.to_be_bytes());
        all.extend(body);
    }
    // Fields of the static table, or literals that are not to be remembered (RFC 7541).
    let mut headers = vec![0x83, 0x86, 0x04];
    text(&mut headers, "/grpc.health.v1.Health/Check");
    headers.push(0x01);
    text(&mut headers, &format!("127.0.0.1:{port}"));
    headers.extend([0x0f, 0x10]);
    text(&mut headers, "application/grpc");
    headers.push(0x00);
    text(&mut headers, "te");
    text(&mut headers, "trailers");
    // HealthCheckRequest: the service is field 1; it is not said if it is empty.
    let mut message = Vec::new();
    if !service.is_empty() {
        message.extend([0x0a, service.len() as u8]);
        message.extend(service.as_bytes());
    }
    let mut body = vec![0];
    body.extend((message.len() as u32).to_be_bytes());
    body.extend(message);

    let mut all = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    frame(&mut all, FRAME_SETTINGS, 0, 0, &[]);
    frame(&mut all, FRAME_HEADERS, END_HEADERS, 1, &headers);
    frame(&mut all, FRAME_DATA, END_STREAM, 1, &body);
    all
}

const FRAME_DATA: u8 = 0;
const FRAME_HEADERS: u8 = 1;
const FRAME_RST_STREAM: u8 = 3;
const FRAME_SETTINGS: u8 = 4;
const FRAME_PING: u8 = 6;
const FRAME_GOAWAY: u8 = 7;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;

/// Why a try failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failed {
    /// A system call, by its error number.
    Call(&'static str, c_int),
    /// Something else, with a number that says more.
    Said(&'static str, Option<u32>),
}

/// Tries what [`Probe::input`] made: 0 if it went well, else 1 and a sentence on descriptor 1.
pub(crate) fn try_it(input: &[u8]) -> i32 {
    match attempt(input) {
        Ok(()) => 0,
        Err(failed) => {
            say(failed);
            1
        }
    }
}

fn attempt(input: &[u8]) -> Result<(), Failed> {
    let Some((&[kind, high, low], request)) = input.split_first_chunk::<3>() else {
        return Err(Failed::Said("no probe", None));
    };
    let connection = Connection::open(u16::from_be_bytes([high, low]))?;
    match kind {
        TCP => Ok(()),
        HTTP => connection.send(request).and_then(|()| http_answer(&connection)),
        _ => connection.send(request).and_then(|()| grpc_answer(&connection)),
    }
}

/// HTTP/1.x and a code, whatever follows.
fn http_answer(connection: &Connection) -> Result<(), Failed> {
    let mut line = [0; 12];
    connection.fill(&mut line)?;
    let code = match line {
        [b'H', b'T', b'T', b'P', b'/', b'1', b'.', _, b' ', a, b, c]
            if [a, b, c].iter().all(u8::is_ascii_digit) =>
        {
            [a, b, c].iter().fold(0, |code, digit| code * 10 + u32::from(digit - b'0'))
        }
        _ => return Err(Failed::Said("the answer is not HTTP", None)),
    };
    if (200..400).contains(&code) { Ok(()) } else { Err(Failed::Said("HTTP status", Some(code))) }
}

/// The message of the first stream, as far as it matters.
fn grpc_answer(connection: &Connection) -> Result<(), Failed> {
    // Its prefix of five bytes, and a field of two.
    let mut message = [0; 16];
    let mut known = 0;
    loop {
        let mut head = [0; 9];
        connection.fill(&mut head)?;
        let [a, b, c, kind, flags, s3, s2, s1, s0] = head;
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        let stream = u32::from_be_bytes([s3, s2, s1, s0]) & 0x7fff_ffff;
        let ended = flags & END_STREAM != 0 && stream == 1;
        match kind {
            FRAME_DATA if stream == 1 => {
                let mut left = length;
                let mut padding = 0;
                if flags & PADDED != 0 && left > 0 {
                    let mut byte = [0];
                    connection.fill(&mut byte)?;
                    left -= 1;
                    padding = usize::from(byte[0]).min(left);
                }
                let take = (left - padding).min(message.len() - known);
                if let Some(part) = message.get_mut(known..known + take) {
                    connection.fill(part)?;
                }
                known += take;
                connection.skip(left - take)?;
                if ended || complete(&message, known) {
                    return serving(&message, known);
                }
            }
            FRAME_SETTINGS if flags & ACK == 0 => {
                connection.skip(length)?;
                connection.send(&[0, 0, 0, FRAME_SETTINGS, ACK, 0, 0, 0, 0])?;
            }
            FRAME_PING if flags & ACK == 0 && length == 8 => {
                let mut echo = [0, 0, 8, FRAME_PING, ACK, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
                if let Some((_, body)) = echo.split_first_chunk_mut::<9>() {
                    connection.fill(body)?;
                }
                connection.send(&echo)?;
            }
            FRAME_RST_STREAM if stream == 1 => return Err(Failed::Said("the call was refused", None)),
            FRAME_GOAWAY => return Err(Failed::Said("the server goes away", None)),
            _ => {
                connection.skip(length)?;
                if kind == FRAME_HEADERS && ended {
                    return Err(Failed::Said("the server has no such health service", None));
                }
            }
        }
    }
}

/// Whether the whole message is there, by the length before it.
fn complete(message: &[u8; 16], known: usize) -> bool {
    let &[_, a, b, c, d, ..] = message;
    known >= message.len() || (known >= 5 && known - 5 >= u32::from_be_bytes([a, b, c, d]) as usize)
}

/// HealthCheckResponse: field 1 is the status, 1 of which is SERVING.
fn serving(message: &[u8; 16], known: usize) -> Result<(), Failed> {
    match message.get(..known) {
        Some([0, 0, 0, 0, 2, 0x08, 1, ..]) => Ok(()),
        Some([0, 0, 0, 0, 2, 0x08, 2, ..]) => Err(Failed::Said("the service is NOT_SERVING", None)),
        Some([0, 0, 0, 0, 2, 0x08, status, ..]) => {
            Err(Failed::Said("the service's status is", Some((*status).into())))
        }
        Some([0, 0, 0, 0, 0, ..]) => Err(Failed::Said("the service's status is UNKNOWN", None)),
        _ => Err(Failed::Said("the answer is no health status", None)),
    }
}

struct Connection(c_int);

impl Connection {
    fn open(port: u16) -> Result<Self, Failed> {
        // SAFETY: the address is owned here and as long as it says.
        unsafe {
            let socket = libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
            if socket < 0 {
                return Err(Failed::Call("socket", errno()));
            }
            let connection = Connection(socket);
            let address = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: port.to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes([127, 0, 0, 1]) },
                sin_zero: [0; 8],
            };
            let length = size_of::<libc::sockaddr_in>() as libc::socklen_t;
            loop {
                if libc::connect(socket, (&raw const address).cast(), length) == 0 {
                    return Ok(connection);
                }
                match errno() {
                    libc::EINTR => {}
                    errno => return Err(Failed::Call("connect", errno)),
                }
            }
        }
    }

    fn send(&self, mut bytes: &[u8]) -> Result<(), Failed> {
        while !bytes.is_empty() {
            // SAFETY: the bytes are the caller's.
            let sent = unsafe { libc::send(self.0, bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL) };
            match usize::try_from(sent) {
                Ok(sent) => bytes = bytes.get(sent..).unwrap_or_default(),
                Err(_) if errno() == libc::EINTR => {}
                Err(_) => return Err(Failed::Call("send", errno())),
            }
        }
        Ok(())
    }

    /// Reads until the buffer is full.
    fn fill(&self, mut buffer: &mut [u8]) -> Result<(), Failed> {
        while !buffer.is_empty() {
            // SAFETY: the buffer is the caller's.
            let read = unsafe { libc::recv(self.0, buffer.as_mut_ptr().cast(), buffer.len(), 0) };
            match usize::try_from(read) {
                Ok(0) => return Err(Failed::Said("the connection was closed without an answer", None)),
                Ok(read) => buffer = buffer.get_mut(read..).unwrap_or_default(),
                Err(_) if errno() == libc::EINTR => {}
                Err(_) => return Err(Failed::Call("receive", errno())),
            }
        }
        Ok(())
    }

    fn skip(&self, mut length: usize) -> Result<(), Failed> {
        let mut buffer = [0; 512];
        while length > 0 {
            let part = length.min(buffer.len());
            if let Some(buffer) = buffer.get_mut(..part) {
                self.fill(buffer)?;
            }
            length -= part;
        }
        Ok(())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // SAFETY: opened here and closed once.
        unsafe { libc::close(self.0) };
    }
}

fn errno() -> c_int {
    // SAFETY: this thread's own.
    unsafe { *libc::__errno_location() }
}

/// Writes a sentence without allocating.
fn say(failed: Failed) {
    let mut text = [0u8; 96];
    let mut length = 0;
    let mut push = |bytes: &[u8]| {
        for &byte in bytes {
            if let Some(place) = text.get_mut(length) {
                *place = byte;
                length += 1;
            }
        }
    };
    let mut digits = [0u8; 10];
    match failed {
        Failed::Call(call, libc::ECONNREFUSED) => {
            push(call.as_bytes());
            push(b": connection refused");
        }
        Failed::Call(call, errno) => {
            push(call.as_bytes());
            push(b": error ");
            push(decimal(errno.unsigned_abs(), &mut digits));
        }
        Failed::Said(what, number) => {
            push(what.as_bytes());
            if let Some(number) = number {
                push(b" ");
                push(decimal(number, &mut digits));
            }
        }
    }
    // SAFETY: within the text.
    unsafe { libc::write(1, text.as_ptr().cast(), length.min(text.len())) };
}

fn decimal(mut number: u32, digits: &mut [u8; 10]) -> &[u8] {
    let mut at = digits.len();
    loop {
        at -= 1;
        if let Some(place) = digits.get_mut(at) {
            *place = b'0' + (number % 10) as u8;
        }
        number /= 10;
        if number == 0 || at == 0 {
            return digits.get(at..).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    fn input(probe: &Probe) -> &[u8] {
        match probe {
            Probe::Network(input) => input,
            Probe::Command(_) => panic!("a program"),
        }
    }

    /// What the probe says of a server that answers with `answer` and closes.
    fn against(answer: &'static [u8], probe: impl Fn(u16) -> Probe) -> (Result<(), Failed>, Vec<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let probe = probe(listener.local_addr().expect("address").port());
        let server = std::thread::spawn(move || {
            let (mut connection, _) = listener.accept().expect("a connection");
            let mut request = vec![0; 400];
            let length = connection.read(&mut request).unwrap_or(0);
            let _ = connection.write_all(answer);
            let _ = connection.shutdown(std::net::Shutdown::Write);
            let _ = connection.read_to_end(&mut Vec::new());
            request.truncate(length);
            request
        });
        let result = attempt(input(&probe));
        (result, server.join().expect("a server"))
    }

    #[test]
    fn a_port_is_open_or_not() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("address").port();
        assert_eq!(attempt(input(&Probe::tcp(port))), Ok(()));
        drop(listener);
        assert_eq!(attempt(input(&Probe::tcp(port))), Err(Failed::Call("connect", libc::ECONNREFUSED)));
    }

    #[test]
    fn http_goes_by_the_code() {
        let get = |answer| against(answer, |port| Probe::http(port, "/healthy?x=1"));
        let (result, request) = get(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
        assert_eq!(result, Ok(()));
        assert!(request.starts_with(b"GET /healthy?x=1 HTTP/1.1\r\nHost: 127.0.0.1:"), "{request:?}");
        assert_eq!(get(b"HTTP/1.0 399 Hm\r\n").0, Ok(()));
        assert_eq!(get(b"HTTP/1.1 503 Busy\r\n\r\n").0, Err(Failed::Said("HTTP status", Some(503))));
        assert_eq!(get(b"HTTP/1.1 199").0, Err(Failed::Said("HTTP status", Some(199))));
        for nonsense in [&b"SSH-2.0-OpenSSH_9"[..], b"HTTP/1.1 2x0 OK\r\n", b"HTTP/2.0 200 OK"] {
            assert_eq!(get(nonsense).0, Err(Failed::Said("the answer is not HTTP", None)));
        }
        let closed = Err(Failed::Said("the connection was closed without an answer", None));
        assert_eq!((get(b"HTTP/1.1").0, get(b"").0), (closed, closed));
    }

    fn frame(kind: u8, flags: u8, stream: u8, body: &[u8]) -> Vec<u8> {
        [&[0, 0, body.len() as u8, kind, flags, 0, 0, 0, stream], body].concat()
    }

    #[test]
    fn grpc_goes_by_the_status() {
        let ask =
            |frames: &[Vec<u8>]| against(frames.concat().leak(), |port| Probe::grpc(port, "a.Service")).0;
        let settings = frame(FRAME_SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100]);
        let headers = frame(FRAME_HEADERS, END_HEADERS, 1, &[0x88]);
        let data = |body: &[u8]| frame(FRAME_DATA, 0, 1, body);
        let ping = frame(FRAME_PING, 0, 0, &[1, 2, 3, 4, 5, 6, 7, 8]);
        let head = [settings.clone(), ping, headers.clone()];
        let with = |last: Vec<Vec<u8>>| ask(&[&head[..], &last].concat());
        assert_eq!(with(vec![data(&[0, 0, 0, 0, 2, 8, 1])]), Ok(()));
        // In pieces, and padded.
        let padded = frame(FRAME_DATA, PADDED, 1, &[3, 0, 0, 0, 0, 2, 8, 1, 9, 9, 9]);
        assert_eq!(with(vec![padded]), Ok(()));
        assert_eq!(with(vec![data(&[0, 0, 0]), data(&[0, 2]), data(&[8, 1])]), Ok(()));
        let not = Err(Failed::Said("the service is NOT_SERVING", None));
        assert_eq!(with(vec![data(&[0, 0, 0, 0, 2, 8, 2])]), not);
        let unknown = Err(Failed::Said("the service's status is UNKNOWN", None));
        assert_eq!(with(vec![data(&[0, 0, 0, 0, 0])]), unknown);
        let none = Err(Failed::Said("the server has no such health service", None));
        let trailers = frame(FRAME_HEADERS, END_HEADERS | END_STREAM, 1, &[0x88, 0x40]);
        assert_eq!(ask(&[settings.clone(), trailers]), none);
        let refused = Err(Failed::Said("the call was refused", None));
        assert_eq!(ask(&[frame(FRAME_RST_STREAM, 0, 1, &[0, 0, 0, 7])]), refused);
        assert!(ask(&[frame(FRAME_GOAWAY, 0, 0, &[0; 8])]).is_err());
        assert!(ask(&[b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()]).is_err());
        assert!(with(vec![data(&[1, 0, 0, 0, 2, 8, 1])]).is_err(), "compressed");
    }

    #[test]
    fn sentences_are_written_without_a_heap() {
        let mut digits = [0; 10];
        assert_eq!(decimal(0, &mut digits), b"0");
        assert_eq!(decimal(u32::MAX, &mut digits), b"4294967295");
    }

    #[test]
    fn a_real_server_understands_the_request() {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let (port, reporter) = runtime.block_on(async {
            let (reporter, service) = tonic_health::server::health_reporter();
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let port = listener.local_addr().expect("address").port();
            let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
            let server = tonic::transport::Server::builder().add_service(service);
            tokio::spawn(server.serve_with_incoming(incoming));
            (port, reporter)
        });
        assert_eq!(attempt(input(&Probe::grpc(port, ""))), Ok(()));
        let unknown = attempt(input(&Probe::grpc(port, "a.Service")));
        assert_eq!(unknown, Err(Failed::Said("the server has no such health service", None)));
        for (status, result) in [
            (tonic_health::ServingStatus::Serving, Ok(())),
            (tonic_health::ServingStatus::NotServing, Err(Failed::Said("the service is NOT_SERVING", None))),
        ] {
            runtime.block_on(reporter.set_service_status("a.Service", status));
            assert_eq!(attempt(input(&Probe::grpc(port, "a.Service"))), result);
        }
    }
}
