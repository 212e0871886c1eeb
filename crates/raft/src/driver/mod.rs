//! The core with threads, sockets and a clock.
//!
//! | thread | does |
//! |---|---|
//! | node | owns the core: drains its inbox, then at most one tick, then performs what the core says |
//! | log | owns the store: takes all writes that wait, one append, one fdatasync, reports the highest number |
//! | out, one per peer | dials, says hello, writes frames; dials again |
//! | in, one per connection | reads frames; when the connection ends, finds out whether the peer's process did |
//! | image, fetch | store images of the state machine; get segments of offered ones |
//!
//! Only the node thread touches raft. A panic there or in the log thread ends the process: a node that is
//! unsure of its own state must not go on speaking.

mod node;
mod pace;
mod peer;
mod segments;
#[cfg(test)]
mod tests;
mod wire;
mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};

use bytes::Bytes;
use proffer_wal::{Disk, FsDisk, SegmentRef, SnapshotStore};

use crate::bootstrap::{ClusterId, Formation, Hello, Identity, IdentityError, Nonce, Refusal};
use crate::core::{Config, CoreStatus};
use crate::store::{Store, StoreOptions};
use crate::types::{Entry, Outcome, RoleChange};

use node::Input;
use peer::Link;

/// How to open a node.
#[derive(Debug, Clone)]
pub struct Options {
    /// This master's id, above 0.
    pub id: u64,
    /// The other masters and where to dial them (`host:port`). This master may be listed too.
    pub peers: Vec<(u64, String)>,
    /// Where to keep the node's files. Made if missing; used by one process at a time.
    pub data_dir: PathBuf,
    /// Told to peers as it is; see [`PeerStatus::advertise`].
    pub advertise: String,
    /// Length of a tick in milliseconds.
    pub tick_ms: u64,
    /// Ticks without a leader before an election, at least; up to twice as many.
    pub election_ticks: usize,
    /// Ticks between heartbeats.
    pub heartbeat_ticks: usize,
    /// Seed of the election jitter.
    pub seed: u64,
    /// A snapshot is wanted after so many bytes of entries.
    pub snapshot_bytes: u64,
    /// A snapshot is wanted after so many entries.
    pub snapshot_entries: u64,
    /// Size of a log segment in bytes.
    pub segment_bytes: u64,
}

impl Options {
    /// The defaults for a master: tick 10 ms, election 20 to 40 ticks, heartbeat 3.
    pub fn new(id: u64, peers: Vec<(u64, String)>, data_dir: impl Into<PathBuf>) -> Options {
        let core = Config::new(id, Vec::new());
        Options {
            id,
            peers,
            data_dir: data_dir.into(),
            advertise: String::new(),
            tick_ms: 10,
            election_ticks: core.election_ticks,
            heartbeat_ticks: core.heartbeat_ticks,
            seed: id,
            snapshot_bytes: core.snapshot_bytes,
            snapshot_entries: core.snapshot_entries,
            segment_bytes: StoreOptions::default().segment_bytes,
        }
    }

    fn core_config(&self, incarnation: u64) -> Config {
        let voters: BTreeSet<u64> = self.voters();
        Config {
            seed: self.seed,
            incarnation,
            election_ticks: self.election_ticks,
            heartbeat_ticks: self.heartbeat_ticks,
            snapshot_bytes: self.snapshot_bytes,
            snapshot_entries: self.snapshot_entries,
            tail_bytes: self.snapshot_bytes / 2,
            tail_entries: self.snapshot_entries / 2,
            // 12 s: longer than any pause of a healthy receiver.
            fetch_patience_ticks: 12_000 / self.tick_ms,
            ..Config::new(self.id, voters.into_iter().collect())
        }
    }

    fn voters(&self) -> BTreeSet<u64> {
        self.peers.iter().map(|(id, _)| *id).chain([self.id]).collect()
    }

    fn validate(&self) -> Result<(), Error> {
        let mut problems = Vec::new();
        if self.id == 0 || self.peers.iter().any(|(id, _)| *id == 0) {
            problems.push("master ids begin at 1".to_owned());
        }
        let mut seen = BTreeSet::new();
        for (id, _) in &self.peers {
            if !seen.insert(id) {
                problems.push(format!("master {id} is listed twice in the peers"));
            }
        }
        if self.tick_ms == 0 || self.heartbeat_ticks == 0 || self.election_ticks < 3 * self.heartbeat_ticks {
            problems.push(
                "an election timeout is at least three heartbeats, and a tick at least 1 ms".to_owned(),
            );
        }
        if problems.is_empty() { Ok(()) } else { Err(Error::Options { what: problems.join("; ") }) }
    }
}

/// Why a node does not open.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Settings that contradict each other.
    #[error("raft options: {what}")]
    Options {
        /// All problems found.
        what: String,
    },
    /// The data directory is another's, incomplete, damaged or of a newer version; nothing in it was changed.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The log or the snapshot is damaged, of a newer version, in use or not accessible.
    #[error(transparent)]
    Disk(#[from] proffer_wal::Error),
    /// raft-rs does not accept the settings.
    #[error("start raft")]
    Raft(#[from] raft::Error),
    /// The system gives no thread or no random bytes.
    #[error("{op}")]
    System {
        /// What was tried.
        op: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

/// What a node tells its embedding, in order, from one thread. Handling it must not block.
#[derive(Debug)]
pub enum Event {
    /// The cluster is formed; comes once per start, before all that follows.
    Formed {
        /// The cluster.
        cluster_id: ClusterId,
    },
    /// Role, term, leader or gate changed.
    Role(RoleChange),
    /// The next entries: committed, and stored here. An entry without data is to be counted and otherwise
    /// ignored. After a start the tail behind the snapshot comes again.
    Committed(Vec<Entry>),
    /// What became of a proposal.
    Proposal {
        /// As given to [`Handle::propose`].
        tag: u64,
        /// Its fate.
        outcome: Outcome,
    },
    /// The answer to [`Handle::read_index`]. With an index: the entries delivered before this event contain
    /// all that anyone was told before the read began. `None`: could not be confirmed; ask again.
    Read {
        /// As given to [`Handle::read_index`].
        ctx: u64,
        /// The index confirmed.
        index: Option<u64>,
    },
    /// The state machine is to be replaced by this image.
    Restore {
        /// The last entry in it.
        index: u64,
        /// That entry's term.
        term: u64,
        /// The image.
        segments: SegmentLoader,
    },
    /// [`Handle::provide_snapshot`] would be welcome, as of this index or later.
    SnapshotWanted {
        /// The last entry delivered.
        index: u64,
    },
    /// A peer is not spoken with, or does not speak with this node. Said once until the reason changes.
    PeerRefused {
        /// The peer.
        peer: u64,
        /// Why, and what to do.
        reason: String,
        /// The peer is formed in another cluster than this node. If that is so of all peers that answer, this
        /// node has the wrong data directory or the wrong peers.
        other_cluster: bool,
    },
    /// The node has stopped after a fault of its disk, and nothing more comes: the process should end.
    Fault {
        /// What happened.
        error: String,
    },
}

/// The segments of an image. They stay on disk as long as this lives.
pub struct SegmentLoader {
    store: SnapshotStore,
    segments: Vec<SegmentRef>,
}

impl SegmentLoader {
    fn new(store: &SnapshotStore, segments: Vec<SegmentRef>) -> SegmentLoader {
        store.pin(&segments);
        SegmentLoader { store: store.clone(), segments }
    }

    /// How many segments there are.
    pub fn len(&self) -> usize {
        self.segments.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Reads them in order, each verified.
    pub fn load(&self) -> impl Iterator<Item = Result<Bytes, proffer_wal::Error>> + '_ {
        self.segments.iter().map(|segment| self.store.read(segment))
    }
}

impl Drop for SegmentLoader {
    fn drop(&mut self) {
        self.store.unpin(&self.segments);
    }
}

impl std::fmt::Debug for SegmentLoader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SegmentLoader").field("segments", &self.segments.len()).finish()
    }
}

/// A peer at a glance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerStatus {
    /// The peer.
    pub id: u64,
    /// Where it is dialled.
    pub address: String,
    /// What it told about itself in [`Options::advertise`]; empty before its first hello.
    pub advertise: String,
    /// Whether messages to it have a connection.
    pub connected: bool,
    /// On a leader: the last entry it is known to hold.
    pub matched: Option<u64>,
}

/// A node at a glance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// This node.
    pub id: u64,
    /// Its cluster, once formed.
    pub cluster_id: Option<ClusterId>,
    /// Before that: the peers whose hello is missing.
    pub waits_for: Vec<u64>,
    /// Role, term, leader and gate.
    pub role: RoleChange,
    /// The last entry held, stored or not.
    pub last_index: u64,
    /// The last entry known to be committed.
    pub commit: u64,
    /// The last entry delivered.
    pub delivered: u64,
    /// The last entry that the state machine says it applied.
    pub applied: u64,
    /// The first entry held.
    pub first_index: u64,
    /// Index of the current snapshot; 0 if there is none.
    pub snapshot: u64,
    /// Bytes of the entries held.
    pub log_bytes: u64,
    /// The other masters.
    pub peers: Vec<PeerStatus>,
    /// How late the node's thread ever was for a tick. The election timeout should be three times that.
    pub worst_lateness_ms: u64,
}

/// Opens nodes.
#[derive(Debug)]
pub struct Raft;

impl Raft {
    /// Opens the node in `options.data_dir` and starts its threads. Events come on one of them.
    ///
    /// # Errors
    /// See [`Error`]; after one, every file is as it was.
    pub fn open(options: Options, on_event: impl Fn(Event) + Send + 'static) -> Result<Handle, Error> {
        Raft::open_on(Arc::new(FsDisk), options, on_event)
    }

    fn open_on(
        disk: Arc<dyn Disk>,
        options: Options,
        on_event: impl Fn(Event) + Send + 'static,
    ) -> Result<Handle, Error> {
        options.validate()?;
        let lock = lock_dir(disk.as_ref(), &options)?;
        let mut random = [0; 24];
        getrandom::fill(&mut random)
            .map_err(|e| Error::System { op: "draw random bytes", source: io::Error::other(e) })?;
        let nonce = Nonce(random[..16].try_into().expect("16 bytes"));
        let incarnation = u64::from_le_bytes(random[16..].try_into().expect("8 bytes"));
        let voters = options.voters();
        let identity = Identity::open(disk.as_ref(), &options.data_dir, options.id, &voters, nonce)?;
        let was_formed = identity.cluster.is_some();
        let formation = Formation::new(identity, voters);
        if formation.cluster_id().is_some() && !was_formed {
            formation.identity().store(disk.as_ref(), &options.data_dir)?;
        }
        // An existing log is read before anyone is spoken to, so that damage is found here.
        let opened = match formation.cluster_id() {
            Some(_) => Some(Store::open(&disk, &options.data_dir, options.store_options())?),
            None => None,
        };
        let (inbox, inputs) = mpsc::channel();
        let shared = Shared::new(options, disk, lock, formation, inbox);
        node::start(&shared, inputs, incarnation, opened, Box::new(on_event))?;
        for id in shared.links.keys() {
            peer::start_out(&shared, *id)?;
        }
        Ok(Handle { shared })
    }
}

impl Options {
    fn store_options(&self) -> StoreOptions {
        StoreOptions { segment_bytes: self.segment_bytes }
    }
}

fn lock_dir(disk: &dyn Disk, options: &Options) -> Result<Box<dyn Send + Sync>, Error> {
    let dir = &options.data_dir;
    let fault = |op, path: &PathBuf, source| proffer_wal::Error::Io { op, path: path.clone(), source };
    disk.create_dir_all(dir).map_err(|e| fault("create directory", dir, e))?;
    let path = dir.join("lock");
    match disk.lock(&path) {
        Ok(lock) => Ok(lock),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Err(proffer_wal::Error::Locked { path }.into()),
        Err(e) => Err(fault("lock", &path, e).into()),
    }
}

/// A running node. Cheap to clone; the node runs until [`Handle::shutdown`].
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

impl Handle {
    /// Proposes entries made for `term`, each with a tag for its [`Event::Proposal`]. Tags should not be used
    /// again while one is open.
    pub fn propose(&self, term: u64, batch: Vec<(u64, Bytes)>) {
        self.shared.tell(Input::Propose { term, batch });
    }

    /// Begins a linearizable read, on any node; see [`Event::Read`].
    pub fn read_index(&self, ctx: u64) {
        self.shared.tell(Input::Read { ctx });
    }

    /// Gives the image of the state machine as of `index`. It becomes the node's snapshot, and the log before
    /// it, but for a tail, goes.
    pub fn provide_snapshot(&self, index: u64, segments: Vec<Bytes>) {
        self.shared.tell(Input::Image { index, segments });
    }

    /// The state machine has applied all entries up to this one.
    pub fn applied(&self, index: u64) {
        self.shared.tell(Input::Applied { index });
    }

    /// A connection that the embedding accepted and whose first byte, still unread in the socket, is `0xB7`.
    /// Dropped if too many others are being greeted.
    pub fn incoming(&self, stream: TcpStream) {
        peer::incoming(&self.shared, stream);
    }

    /// The node at a glance.
    pub fn status(&self) -> Status {
        self.shared.status()
    }

    /// Stops the node: open proposals end UNKNOWN, connections are closed, and all threads but the caller's
    /// have ended when this returns. Must not be called from the event callback.
    pub fn shutdown(&self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        self.shared.tell(Input::Stop);
        self.shared.close_sockets();
        loop {
            let threads = std::mem::take(&mut *lock(&self.shared.threads));
            if threads.is_empty() {
                break;
            }
            for thread in threads {
                // A node thread that panicked has ended the process.
                let _ = thread.join();
            }
            self.shared.close_sockets();
        }
        *lock(&self.shared.dir_lock) = None;
    }
}

/// What the node's threads share.
struct Shared {
    options: Options,
    disk: Arc<dyn Disk>,
    dir_lock: Mutex<Option<Box<dyn Send + Sync>>>,
    formation: Mutex<Formation>,
    links: BTreeMap<u64, Link>,
    inbox: Sender<Input>,
    /// As published by the node thread.
    glance: Mutex<Glance>,
    snapshots: Mutex<Option<SnapshotStore>>,
    stopping: AtomicBool,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Every open socket, to close them at the end and before a panic's abort.
    sockets: Mutex<BTreeMap<u64, TcpStream>>,
    next_socket: Mutex<u64>,
    greeting: Mutex<usize>,
    /// Why one that is no peer was refused last.
    stranger: Mutex<String>,
}

#[derive(Default)]
struct Glance {
    core: Option<CoreStatus>,
    worst_lateness_ms: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder of a lock panics")
}

impl Shared {
    fn new(
        options: Options,
        disk: Arc<dyn Disk>,
        dir_lock: Box<dyn Send + Sync>,
        formation: Formation,
        inbox: Sender<Input>,
    ) -> Arc<Shared> {
        let others = options.peers.iter().filter(|(id, _)| *id != options.id);
        let links = others.map(|(id, address)| (*id, Link::new(address.clone()))).collect();
        Arc::new(Shared {
            options,
            disk,
            dir_lock: Mutex::new(Some(dir_lock)),
            formation: Mutex::new(formation),
            links,
            inbox,
            glance: Mutex::default(),
            snapshots: Mutex::default(),
            stopping: AtomicBool::new(false),
            threads: Mutex::default(),
            sockets: Mutex::default(),
            next_socket: Mutex::default(),
            greeting: Mutex::default(),
            stranger: Mutex::default(),
        })
    }

    fn tell(&self, input: Input) {
        // After the end nobody listens, and nobody needs to.
        let _ = self.inbox.send(input);
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// What a peer said about itself. Whoever completes the formation stores it before the lock is released,
    /// hence before anyone can speak or act as a member.
    fn learn(&self, hello: &Hello) -> Result<(), Refusal> {
        let mut formation = lock(&self.formation);
        if formation.on_hello(hello)? {
            let stored = formation.identity().store(self.disk.as_ref(), &self.options.data_dir);
            self.tell(match stored {
                Ok(()) => Input::Formed,
                Err(error) => Input::Fault { error: error.into() },
            });
        }
        drop(formation);
        if let Some(link) = self.links.get(&hello.id) {
            link.set_advertise(&hello.advertise);
        }
        Ok(())
    }

    fn is_formed(&self) -> bool {
        lock(&self.formation).cluster_id().is_some()
    }

    fn hello_to(&self, peer: u64) -> Hello {
        lock(&self.formation).hello(peer, &self.options.advertise)
    }

    /// Tells of a refusal, once until its reason changes.
    fn note_refusal(&self, peer: u64, reason: String, other_cluster: bool) {
        let stranger = || std::mem::replace(&mut *lock(&self.stranger), reason.clone()) != reason;
        if self.links.get(&peer).map_or_else(stranger, |link| link.is_new_refusal(&reason)) {
            tracing::warn!(peer, reason, "peer refused");
            self.tell(Input::Refused { peer, reason, other_cluster });
        }
    }

    fn spawn(
        self: &Arc<Shared>,
        name: &str,
        work: impl FnOnce(&Arc<Shared>) + Send + 'static,
    ) -> Result<(), Error> {
        let shared = Arc::clone(self);
        let thread = thread::Builder::new()
            .name(format!("raft-{name}"))
            .spawn(move || work(&shared))
            .map_err(|source| Error::System { op: "start a thread", source })?;
        let mut threads = lock(&self.threads);
        threads.retain(|thread| !thread.is_finished());
        threads.push(thread);
        Ok(())
    }

    /// Keeps a socket closable by others until the returned value is dropped.
    fn register(self: &Arc<Shared>, stream: &TcpStream) -> io::Result<Registered> {
        let clone = stream.try_clone()?;
        let mut next = lock(&self.next_socket);
        *next += 1;
        lock(&self.sockets).insert(*next, clone);
        let registered = Registered { shared: Arc::clone(self), key: *next };
        if self.is_stopping() {
            self.close_sockets();
        }
        Ok(registered)
    }

    fn close_sockets(&self) {
        for socket in lock(&self.sockets).values() {
            // One that is closed already is closed.
            let _ = socket.shutdown(std::net::Shutdown::Both);
        }
    }

    fn close_socket(&self, key: u64) {
        if let Some(socket) = lock(&self.sockets).get(&key) {
            let _ = socket.shutdown(std::net::Shutdown::Both);
        }
    }

    fn status(&self) -> Status {
        let (cluster_id, waits_for) = {
            let formation = lock(&self.formation);
            (formation.cluster_id(), formation.waits_for())
        };
        let glance = lock(&self.glance);
        let core = glance.core.clone().unwrap_or_else(node::status_before_formation);
        let matched = |id| core.matched.iter().find(|(peer, _)| *peer == id).map(|(_, index)| *index);
        let peers = self.links.iter().map(|(id, link)| link.status(*id, matched(*id))).collect();
        Status {
            id: self.options.id,
            waits_for: if cluster_id.is_some() { Vec::new() } else { waits_for },
            cluster_id,
            role: core.role,
            last_index: core.last_index,
            commit: core.commit,
            delivered: core.delivered,
            applied: core.applied,
            first_index: core.first_index,
            snapshot: core.snapshot,
            log_bytes: core.log_bytes,
            peers,
            worst_lateness_ms: glance.worst_lateness_ms,
        }
    }
}

struct Registered {
    shared: Arc<Shared>,
    key: u64,
}

impl Drop for Registered {
    fn drop(&mut self) {
        lock(&self.shared.sockets).remove(&self.key);
    }
}

/// Ends the process when its thread panics, after closing the peers' connections: they then elect another
/// leader at once instead of after a timeout, and after all the memory has been torn down.
struct AbortOnPanic(Arc<Shared>);

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.close_sockets();
            std::process::abort();
        }
    }
}
