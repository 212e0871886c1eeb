//! Connections between peers. Each side dials the other: messages go out on the connection one dialled and
//! come in on the one the other did.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::node::Input;
use super::wire::{self, Purpose};
use super::{Error, PeerStatus, Shared, lock, segments};
use crate::bootstrap::{Hello, Refusal};

/// Bytes that wait for one peer; beyond them messages are dropped, which raft expects of a network.
const QUEUE_BYTES_MAX: usize = 64 << 20;
/// Bytes from one connection that wait for the node thread; beyond them the reader waits.
const INBOX_BYTES_MAX: usize = 64 << 20;
/// Frames of about this many bytes share a write.
const WRITE_BYTES: usize = 1 << 20;
/// Between attempts to connect: the first pause, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(250));
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// Incoming connections that have not said hello yet; each has two seconds for it.
const GREETING_MAX: usize = 64;
/// Different refusals remembered per peer, so that each is told once.
const REFUSALS_MAX: usize = 8;
/// When a connection has ended, the peer's port is tried at these times: a dying process may still listen
/// for a moment after its connections were closed.
const PROBES_MS: [u64; 4] = [0, 2, 6, 14];

/// The way to a peer.
pub(super) struct Link {
    address: String,
    advertise: Mutex<String>,
    connected: AtomicBool,
    queued: AtomicUsize,
    queue: Sender<Bytes>,
    outgoing: Mutex<Option<Receiver<Bytes>>>,
    refusals: Mutex<BTreeSet<String>>,
    /// The socket on which its messages come in.
    incoming: Mutex<Option<u64>>,
}

impl Link {
    pub(super) fn new(address: String) -> Link {
        let (queue, outgoing) = mpsc::channel();
        Link {
            address,
            advertise: Mutex::default(),
            connected: AtomicBool::new(false),
            queued: AtomicUsize::new(0),
            queue,
            outgoing: Mutex::new(Some(outgoing)),
            refusals: Mutex::default(),
            incoming: Mutex::default(),
        }
    }

    /// Queues a message; `false` if it is dropped.
    pub(super) fn send(&self, message: Bytes) -> bool {
        let len = message.len();
        if !self.connected.load(Ordering::Acquire) || self.queued.load(Ordering::Relaxed) > QUEUE_BYTES_MAX {
            return false;
        }
        self.queued.fetch_add(len, Ordering::Relaxed);
        self.queue.send(message).is_ok()
    }

    /// The connection is gone: the writer, if it waits for messages, wakes and dials anew.
    fn disconnected(&self) {
        self.connected.store(false, Ordering::Release);
        let _ = self.queue.send(Bytes::new());
    }

    pub(super) fn set_advertise(&self, advertise: &str) {
        advertise.clone_into(&mut lock(&self.advertise));
    }

    pub(super) fn is_new_refusal(&self, reason: &str) -> bool {
        let mut known = lock(&self.refusals);
        if known.len() == REFUSALS_MAX {
            known.clear();
        }
        known.insert(reason.to_owned())
    }

    pub(super) fn status(&self, id: u64, matched: Option<u64>) -> PeerStatus {
        PeerStatus {
            id,
            address: self.address.clone(),
            advertise: lock(&self.advertise).clone(),
            connected: self.connected.load(Ordering::Acquire),
            matched,
        }
    }
}

/// Starts the thread that dials a peer and writes to it.
pub(super) fn start_out(shared: &Arc<Shared>, peer: u64) -> Result<(), Error> {
    let outgoing = lock(&shared.links[&peer].outgoing).take().expect("a link is started once");
    shared.spawn(&format!("out-{peer}"), move |shared| {
        let mut pause = BACKOFF.0;
        while !shared.is_stopping() {
            match connect(shared, peer, Purpose::Messages) {
                Ok(stream) => {
                    pause = BACKOFF.0;
                    if let Err(error) = write_messages(shared, peer, stream, &outgoing) {
                        tracing::debug!(peer, %error, "connection to a peer ended");
                    }
                    shared.links[&peer].connected.store(false, Ordering::Release);
                }
                Err(error) => tracing::trace!(peer, %error, "cannot connect to a peer"),
            }
            if !shared.is_stopping() {
                wait(shared, pause);
            }
            pause = (pause * 2).min(BACKOFF.1);
        }
    })
}

/// A pause that the end of the node cuts short.
fn wait(shared: &Shared, pause: Duration) {
    let end = Instant::now() + pause;
    while !shared.is_stopping() {
        let Some(rest) = end.checked_duration_since(Instant::now()) else { return };
        thread::sleep(rest.min(Duration::from_millis(20)));
    }
}

/// Dials a peer and says hello. An error, too, while one of the two is not formed yet: each has then learned
/// of the other, and that was the purpose.
pub(super) fn connect(shared: &Arc<Shared>, peer: u64, purpose: Purpose) -> io::Result<TcpStream> {
    let link = &shared.links[&peer];
    let mut stream = wire::dial(&link.address, CONNECT_TIMEOUT)?;
    let _registered = shared.register(&stream)?;
    wire::write_preface(&mut stream, purpose)?;
    wire::write_hello(&mut stream, &shared.hello_to(peer))?;
    let hello = match wire::read_hello(&mut stream)? {
        Ok(hello) => hello,
        Err(reason) => {
            let dir = shared.options.data_dir.display();
            let what = format!("master {peer} refuses this one (data directory {dir}): {reason}");
            shared.note_refusal(peer, what, false);
            return Err(io::Error::other(reason));
        }
    };
    if hello.id != peer {
        let what =
            format!("{} is the address of master {}, not of {peer}: check --peers", link.address, hello.id);
        shared.note_refusal(peer, what.clone(), false);
        return Err(io::Error::other(what));
    }
    learn(shared, &hello)?;
    if !(shared.is_formed() && hello.cluster.is_some()) {
        return Err(io::Error::other("the cluster is not formed yet"));
    }
    lock(&link.refusals).clear();
    Ok(stream)
}

fn learn(shared: &Shared, hello: &Hello) -> io::Result<()> {
    shared.learn(hello).map_err(|refusal| {
        let dir = shared.options.data_dir.display();
        let other_cluster = matches!(refusal, Refusal::OtherCluster { .. });
        shared.note_refusal(
            hello.id,
            format!("{refusal} (this master's data directory is {dir})"),
            other_cluster,
        );
        io::Error::other(refusal)
    })
}

fn write_messages(
    shared: &Arc<Shared>,
    peer: u64,
    mut stream: TcpStream,
    outgoing: &Receiver<Bytes>,
) -> io::Result<()> {
    let link = &shared.links[&peer];
    let registered = shared.register(&stream)?;
    watch(shared, peer, &stream, registered)?;
    // What was queued for an earlier connection is lost, as raft was told.
    for stale in outgoing.try_iter() {
        link.queued.fetch_sub(stale.len(), Ordering::Relaxed);
    }
    link.connected.store(true, Ordering::Release);
    let mut buffer = Vec::new();
    loop {
        let first = match outgoing.recv_timeout(Duration::from_millis(200)) {
            Ok(first) => Some(first),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        };
        if shared.is_stopping() || !link.connected.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut next = first;
        buffer.clear();
        while let Some(message) = next {
            link.queued.fetch_sub(message.len(), Ordering::Relaxed);
            if !message.is_empty() {
                wire::put_frame(&mut buffer, &[&message]);
            }
            next = if buffer.len() < WRITE_BYTES { outgoing.try_recv().ok() } else { None };
        }
        stream.write_all(&buffer)?;
    }
}

/// The other side says nothing on a connection for messages, so a read ends only with the connection. It is
/// noticed at once this way, and not by the loss of the first messages after it.
fn watch(
    shared: &Arc<Shared>,
    peer: u64,
    stream: &TcpStream,
    registered: super::Registered,
) -> io::Result<()> {
    let mut stream = stream.try_clone()?;
    stream.set_read_timeout(None)?;
    let spawned = shared.spawn(&format!("watch-{peer}"), move |shared| {
        let _registered = registered;
        let _ = stream.read(&mut [0]);
        let _ = stream.shutdown(Shutdown::Both);
        shared.links[&peer].disconnected();
    });
    spawned.map_err(io::Error::other)
}

/// Greets a connection on a thread of its own.
pub(super) fn incoming(shared: &Arc<Shared>, stream: TcpStream) {
    {
        let mut greeting = lock(&shared.greeting);
        if *greeting == GREETING_MAX || shared.is_stopping() {
            return;
        }
        *greeting += 1;
    }
    let spawned = shared.spawn("in", move |shared| {
        let greeted = greet(shared, stream);
        *lock(&shared.greeting) -= 1;
        let result = greeted.and_then(|greeted| greeted.map_or(Ok(()), |accepted| accepted.serve(shared)));
        if let Err(error) = result {
            tracing::debug!(%error, "incoming peer connection ended");
        }
    });
    if let Err(error) = spawned {
        *lock(&shared.greeting) -= 1;
        tracing::warn!(%error, "cannot greet a peer");
    }
}

/// A connection whose other side is known.
struct Accepted {
    peer: u64,
    purpose: Purpose,
    stream: TcpStream,
    registered: super::Registered,
}

fn greet(shared: &Arc<Shared>, mut stream: TcpStream) -> io::Result<Option<Accepted>> {
    wire::prepare(&stream)?;
    let registered = shared.register(&stream)?;
    let purpose = wire::read_preface(&mut stream)?;
    if purpose == Purpose::Probe {
        stream.write_all(&[wire::MAGIC])?;
        return Ok(None);
    }
    let hello = match wire::read_hello(&mut stream)? {
        Ok(hello) => hello,
        Err(_) => return Err(io::Error::other("a refusal where a hello belongs")),
    };
    if let Err(error) = learn(shared, &hello) {
        wire::write_refusal(&mut stream, &error.to_string())?;
        return Err(error);
    }
    wire::write_hello(&mut stream, &shared.hello_to(hello.id))?;
    if !(shared.is_formed() && hello.cluster.is_some()) {
        return Ok(None);
    }
    Ok(Some(Accepted { peer: hello.id, purpose, stream, registered }))
}

impl Accepted {
    fn serve(mut self, shared: &Arc<Shared>) -> io::Result<()> {
        match self.purpose {
            Purpose::Messages => self.read_messages(shared),
            Purpose::Segments => {
                // A receiver stores what it got before it asks for more.
                self.stream.set_read_timeout(Some(Duration::from_secs(30)))?;
                let store = lock(&shared.snapshots).clone();
                store.map_or(Ok(()), |store| segments::serve(&store, &mut self.stream))
            }
            Purpose::Probe => Ok(()),
        }
    }

    fn read_messages(mut self, shared: &Arc<Shared>) -> io::Result<()> {
        let (peer, link) = (self.peer, &shared.links[&self.peer]);
        self.stream.set_read_timeout(None)?;
        let key = self.registered.key;
        if let Some(older) = lock(&link.incoming).replace(key) {
            shared.close_socket(older);
        }
        let budget = Arc::new(Budget::default());
        let ended = loop {
            match wire::read_frame(&mut self.stream) {
                Ok(message) => {
                    let permit = budget.take(message.len());
                    shared.tell(Input::Message { from: peer, message, _permit: permit });
                }
                Err(error) => break error,
            }
        };
        let newest = lock(&link.incoming).take_if(|newest| *newest == key).is_some();
        if newest && !shared.is_stopping() && is_gone(&link.address) {
            shared.tell(Input::Gone { peer });
        }
        Err(ended)
    }
}

/// Whether nobody listens at an address any more. A process that lives accepts, however busy it is, and is
/// then given the benefit of the doubt: a connection alone may end for many reasons.
fn is_gone(address: &str) -> bool {
    let start = Instant::now();
    for (n, at) in PROBES_MS.iter().enumerate() {
        thread::sleep((start + Duration::from_millis(*at)).saturating_duration_since(Instant::now()));
        let next = PROBES_MS.get(n + 1).map_or(8, |next| next - at);
        match probe(address, Duration::from_millis(next)) {
            Ok(Probe::Alive) => return false,
            Ok(Probe::Silent) => {}
            Err(error) => match error.kind() {
                io::ErrorKind::ConnectionRefused
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::BrokenPipe => {
                    return true;
                }
                _ => {}
            },
        }
    }
    false
}

enum Probe {
    Alive,
    Silent,
}

fn probe(address: &str, patience: Duration) -> io::Result<Probe> {
    let mut stream = wire::dial(address, Duration::from_millis(50))?;
    wire::write_preface(&mut stream, Purpose::Probe)?;
    stream.set_read_timeout(Some(patience))?;
    match stream.read(&mut [0]) {
        Ok(1) => Ok(Probe::Alive),
        Ok(_) => Ok(Probe::Silent),
        Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
            Ok(Probe::Silent)
        }
        Err(e) => Err(e),
    }
}

/// Bytes that one connection may have waiting in the inbox.
#[derive(Default)]
struct Budget {
    used: Mutex<usize>,
    freed: Condvar,
}

impl Budget {
    fn take(self: &Arc<Budget>, bytes: usize) -> Permit {
        let mut used = lock(&self.used);
        while *used > INBOX_BYTES_MAX {
            used = self.freed.wait(used).expect("no holder of a lock panics");
        }
        *used += bytes;
        Permit { budget: Arc::clone(self), bytes }
    }
}

/// Given back when the message has been processed.
pub(super) struct Permit {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Drop for Permit {
    fn drop(&mut self) {
        *lock(&self.budget.used) -= self.bytes;
        self.budget.freed.notify_one();
    }
}
