//! The one port: accepts connections and tells by the first byte who comes. Masters are handed to Raft's runtime, all
//! others to HTTP.
//!
//! The loop is our own because a library's hides what a master in trouble needs: it goes on when descriptors run out,
//! closes what says nothing, and can end a single connection whose reader has stopped.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, warn};

use crate::serve::Server;

/// The first byte of a connection between masters. It starts no HTTP method, no HTTP/2 preface and no TLS record.
pub const RAFT_BYTE: u8 = 0xB7;
/// How long a connection may take to say its first byte, and then the rest of HTTP/2's preface.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(3);
/// The length of HTTP/2's preface: whoever has said less in [`PREFACE_TIMEOUT`] is not going to speak.
const PREFACE_BYTES: u64 = 24;
/// How long an HTTP/1 request's head may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// HTTP/2 pings find dead peers in the sum of both.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Calls in flight on one connection; more wait in the client.
const STREAMS_MAX: u32 = 256;
/// What a stream that is not read may hold here.
const SEND_BUFFER_BYTES: usize = 64 << 10;
/// Connections of one address: a host with many frameworks, or many hosts behind one address translator.
const PER_ADDRESS_MAX: usize = 1_024;
/// Descriptors that the log, the peers and the process need for themselves.
const OWN_DESCRIPTORS: usize = 128;
/// A master that has no descriptors left says so this often.
const WARNING_PAUSE: Duration = Duration::from_secs(10);
/// How long what is open may take to end once the master stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// Serves connections until `stop` becomes true, then lets what is open end for a moment. `to_raft` gets the
/// connections of other masters, nothing of them read yet.
pub async fn listen(
    listener: TcpListener,
    server: Server,
    to_raft: impl Fn(std::net::TcpStream) + Send + Sync + 'static,
    mut stop: watch::Receiver<bool>,
) {
    let mut reserve = std::fs::File::open("/dev/null").ok();
    let mut last_warning = None;
    let to_raft: Arc<dyn Fn(std::net::TcpStream) + Send + Sync> = Arc::new(to_raft);
    let crowd = Arc::new(Crowd::new(descriptors_max().saturating_sub(OWN_DESCRIPTORS).max(16)));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                let Some(place) = crowd.enter(peer.ip()) else {
                    debug!(peer = %peer, "too many connections: closed");
                    let _ = stream.set_zero_linger();
                    continue;
                };
                let (server, to_raft, stop) = (server.clone(), to_raft.clone(), stop.clone());
                tokio::spawn(async move { welcome(stream, place, server, to_raft, stop).await });
            }
            Err(error) if is_exhausted(&error) => {
                // The kernel keeps what cannot be accepted readable: without the reserve this loop would spin.
                drop(reserve.take());
                if let Ok(Ok((stream, _))) = timeout(Duration::from_millis(1), listener.accept()).await {
                    let _ = stream.set_zero_linger();
                }
                reserve = std::fs::File::open("/dev/null").ok();
                if last_warning.is_none_or(|at: Instant| at.elapsed() > WARNING_PAUSE) {
                    warn!("no descriptors left, connections are closed: raise the limit of open files");
                    last_warning = Some(Instant::now());
                }
                sleep(Duration::from_millis(5)).await;
            }
            Err(error)
                if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => {}
            Err(error) => {
                warn!(%error, "accept");
                sleep(Duration::from_millis(10)).await;
            }
        }
    }
    drop(listener);
    let emptied = async {
        while crowd.total.load(Ordering::Relaxed) > 0 {
            crowd.left.notified().await;
        }
    };
    let _ = timeout(DRAIN_TIMEOUT, emptied).await;
}

/// One connection, from its first byte to its end.
async fn welcome(
    stream: TcpStream,
    place: Place,
    server: Server,
    to_raft: Arc<dyn Fn(std::net::TcpStream) + Send + Sync>,
    stop: watch::Receiver<bool>,
) {
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let mut first = [0];
    // One byte decides. Waiting for more by peeking would spin: what was peeked stays readable.
    match timeout(PREFACE_TIMEOUT, stream.peek(&mut first)).await {
        Ok(Ok(1)) => {}
        _ => return,
    }
    if first[0] == RAFT_BYTE {
        // Masters do not count among the clients of their address.
        drop(place);
        match stream.into_std() {
            Ok(stream) => to_raft(stream),
            Err(error) => warn!(%error, "hand a connection to Raft"),
        }
        return;
    }
    serve(stream, server, stop).await;
    drop(place);
}

async fn serve(stream: TcpStream, server: Server, mut stop: watch::Receiver<bool>) {
    let hang_up = Arc::new(Notify::new());
    let connection = server.connection(hang_up.clone());
    let read = Arc::new(AtomicU64::new(0));
    let io = TokioIo::new(Counted { stream, read: read.clone() });
    let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
        server.call(request, connection.clone())
    });
    let builder = builder();
    let mut http = pin!(builder.serve_connection(io, service));
    let mut silence = pin!(sleep(PREFACE_TIMEOUT));
    let mut said_enough = false;
    let mut stopping = false;
    loop {
        tokio::select! {
            result = http.as_mut() => {
                if let Err(error) = result {
                    debug!(%error, "a connection ended");
                }
                return;
            }
            () = hang_up.notified() => return,
            () = silence.as_mut(), if !said_enough => {
                if read.load(Ordering::Relaxed) < PREFACE_BYTES {
                    return;
                }
                said_enough = true;
            }
            _ = stop.wait_for(|stop| *stop), if !stopping => {
                stopping = true;
                http.as_mut().graceful_shutdown();
            }
        }
    }
}

fn builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .max_concurrent_streams(STREAMS_MAX)
        .max_send_buf_size(SEND_BUFFER_BYTES);
    builder
}

fn is_exhausted(error: &io::Error) -> bool {
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    matches!(error.raw_os_error(), Some(ENFILE | EMFILE))
}

/// The soft limit of open files, as the kernel tells it.
fn descriptors_max() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(1_024)
}

/// Who is connected, by address.
struct Crowd {
    most: usize,
    total: AtomicUsize,
    left: Notify,
    by_address: Mutex<HashMap<IpAddr, usize>>,
}

impl Crowd {
    fn new(most: usize) -> Self {
        Self { most, total: AtomicUsize::new(0), left: Notify::new(), by_address: Mutex::default() }
    }

    /// A place for one more of this address, if there is one.
    fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        if self.total.load(Ordering::Relaxed) >= self.most {
            return None;
        }
        let mut by_address = self.by_address.lock().expect("nothing panics with the crowd in its hands");
        let count = by_address.entry(address).or_default();
        if *count >= PER_ADDRESS_MAX {
            return None;
        }
        *count += 1;
        self.total.fetch_add(1, Ordering::Relaxed);
        Some(Place { crowd: self.clone(), address })
    }
}

/// A connection's place among the others; it is free again when this is dropped.
struct Place {
    crowd: Arc<Crowd>,
    address: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut by_address =
            self.crowd.by_address.lock().expect("nothing panics with the crowd in its hands");
        if let Some(count) = by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                by_address.remove(&self.address);
            }
        }
        self.crowd.total.fetch_sub(1, Ordering::Relaxed);
        self.crowd.left.notify_one();
    }
}

/// A stream that counts what is read of it.
struct Counted {
    stream: TcpStream,
    read: Arc<AtomicU64>,
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.read.fetch_add((buf.filled().len() - before) as u64, Ordering::Relaxed);
        polled
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_so_many_places_and_the_port_has_so_many() {
        let crowd = Arc::new(Crowd::new(PER_ADDRESS_MAX + 10));
        let address = |n: u8| IpAddr::from([10, 0, 0, n]);
        let mut places: Vec<_> =
            (0..PER_ADDRESS_MAX).map(|_| crowd.enter(address(1)).expect("a place")).collect();
        assert!(crowd.enter(address(1)).is_none());
        places.extend((0..10).map(|_| crowd.enter(address(2)).expect("a place")));
        assert!(crowd.enter(address(3)).is_none());
        places.remove(0);
        assert!(crowd.enter(address(1)).is_some());
        drop(places);
        assert_eq!(crowd.total.load(Ordering::Relaxed), 0);
        assert!(crowd.by_address.lock().expect("whole").is_empty());
    }

    #[test]
    fn the_limit_of_open_files_is_known() {
        assert!(descriptors_max() >= 16);
    }
}
