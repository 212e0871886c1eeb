//! Whole nodes with threads and sockets on loopback.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError};

use std::io::Write;
use std::time::{Duration, Instant};

use proffer_wal::{Fault, SimDisk};

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

/// What the state machine of a node shows.
#[derive(Default, Clone)]
struct Seen {
    index: u64,
    data: Vec<Bytes>,
    outcomes: BTreeMap<u64, Outcome>,
    reads: BTreeMap<u64, Option<u64>>,
    restored: u64,
    refused: Vec<String>,
    fault: Option<String>,
}

struct Node {
    address: SocketAddr,
    handle: Handle,
    seen: Arc<Mutex<Seen>>,
    closing: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Node {
    fn start(listener: TcpListener, options: Options) -> Result<Node, Error> {
        Node::start_on(Arc::new(FsDisk), listener, options)
    }

    fn start_on(disk: Arc<dyn Disk>, listener: TcpListener, options: Options) -> Result<Node, Error> {
        let address = listener.local_addr().unwrap();
        let (events, queue) = mpsc::channel();
        let handle = Raft::open_on(disk, options, move |event| {
            let _ = events.send(event);
        })?;
        let seen = Arc::new(Mutex::new(Seen::default()));
        let closing = Arc::new(AtomicBool::new(false));
        let accepting = {
            let (handle, closing) = (handle.clone(), Arc::clone(&closing));
            thread::spawn(move || {
                while let Ok((stream, _)) = listener.accept() {
                    if closing.load(Ordering::SeqCst) {
                        return;
                    }
                    handle.incoming(stream);
                }
            })
        };
        let machine = {
            let (handle, seen, closing) = (handle.clone(), Arc::clone(&seen), Arc::clone(&closing));
            thread::spawn(move || run_machine(&handle, &seen, &closing, &queue))
        };
        Ok(Node { address, handle, seen, closing, threads: vec![accepting, machine] })
    }

    fn seen(&self) -> Seen {
        lock(&self.seen).clone()
    }

    /// As the death of the process looks from outside: the port closes, then all connections.
    fn kill(self) {
        self.closing.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        self.handle.shutdown();
        for thread in self.threads {
            thread.join().unwrap();
        }
    }

    fn is_leader(&self) -> bool {
        self.handle.status().role.gate_open
    }

    fn propose(&self, tags: std::ops::Range<u64>) {
        let term = self.handle.status().role.term;
        let batch = tags.map(|tag| (tag, Bytes::from(format!("entry {tag}")))).collect();
        self.handle.propose(term, batch);
    }
}

fn run_machine(handle: &Handle, seen: &Mutex<Seen>, closing: &AtomicBool, queue: &Receiver<Event>) {
    loop {
        let event = match queue.recv_timeout(Duration::from_millis(20)) {
            Ok(event) => event,
            Err(RecvTimeoutError::Timeout) if !closing.load(Ordering::SeqCst) => continue,
            Err(_) => return,
        };
        let mut seen = lock(seen);
        match event {
            Event::Committed(entries) => {
                for entry in entries {
                    assert_eq!(entry.index, seen.index + 1);
                    seen.index = entry.index;
                    if !entry.data.is_empty() {
                        seen.data.push(entry.data);
                    }
                }
                handle.applied(seen.index);
            }
            Event::Restore { index, segments, .. } => {
                let image: Vec<u8> = segments.load().flat_map(|segment| segment.unwrap().to_vec()).collect();
                seen.data = image.split(|&b| b == b'\n').map(Bytes::copy_from_slice).collect();
                seen.index = index;
                seen.restored += 1;
                handle.applied(index);
            }
            Event::SnapshotWanted { .. } => {
                let image = seen.data.join(&b"\n"[..]);
                let segments = image.chunks(1000).map(Bytes::copy_from_slice).collect();
                handle.provide_snapshot(seen.index, segments);
            }
            Event::Proposal { tag, outcome } => drop(seen.outcomes.insert(tag, outcome)),
            Event::Read { ctx, index } => drop(seen.reads.insert(ctx, index)),
            Event::PeerRefused { reason, .. } => seen.refused.push(reason),
            Event::Fault { error } => seen.fault = Some(error),
            Event::Formed { .. } | Event::Role(_) => {}
        }
    }
}

fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "in vain: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Three nodes in a temporary directory; any of them may be down.
struct Cluster {
    dir: tempfile::TempDir,
    addresses: Vec<SocketAddr>,
    nodes: Vec<Option<Node>>,
}

impl Cluster {
    fn new(count: usize) -> Cluster {
        let dir = tempfile::Builder::new().prefix("proffer-raft-").tempdir().unwrap();
        let listeners: Vec<TcpListener> =
            (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let addresses = listeners.iter().map(|listener| listener.local_addr().unwrap()).collect();
        let mut cluster = Cluster { dir, addresses, nodes: (0..count).map(|_| None).collect() };
        for (n, listener) in listeners.into_iter().enumerate() {
            cluster.nodes[n] = Some(Node::start(listener, cluster.options(n)).unwrap());
        }
        cluster
    }

    fn options(&self, n: usize) -> Options {
        let peers = self.addresses.iter().zip(1..).map(|(address, id)| (id, address.to_string())).collect();
        let dir = self.dir.path().join(format!("node-{}", n + 1));
        Options {
            advertise: format!("advertised-{}", n + 1),
            segment_bytes: 64 << 10,
            snapshot_entries: 200,
            ..Options::new(n as u64 + 1, peers, dir)
        }
    }

    fn start(&mut self, n: usize) {
        let listener = until("the port is free again", || TcpListener::bind(self.addresses[n]).ok());
        self.nodes[n] = Some(Node::start(listener, self.options(n)).unwrap());
    }

    fn kill(&mut self, n: usize) {
        self.nodes[n].take().unwrap().kill();
    }

    fn live(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().flatten()
    }

    fn leader(&self) -> usize {
        until("a leader", || self.nodes.iter().position(|n| n.as_ref().is_some_and(Node::is_leader)))
    }

    fn node(&self, n: usize) -> &Node {
        self.nodes[n].as_ref().unwrap()
    }

    /// Proposes at the leader, whoever that is by then, until all are committed.
    fn commit(&self, tags: std::ops::Range<u64>) {
        for at in tags.clone().step_by(50) {
            let chunk = at..(at + 50).min(tags.end);
            until("the proposals are committed", || {
                let leader = self.node(self.leader());
                leader.propose(chunk.clone());
                let deadline = Instant::now() + Duration::from_secs(2);
                loop {
                    let outcomes = leader.seen().outcomes;
                    let mut known = chunk.clone().filter_map(|tag| outcomes.get(&tag));
                    if known.clone().count() as u64 == chunk.end - chunk.start {
                        return known.all(|o| matches!(o, Outcome::Committed(_))).then_some(());
                    }
                    if Instant::now() > deadline {
                        return None;
                    }
                    thread::sleep(Duration::from_millis(1));
                }
            });
        }
    }

    /// Waits until all live nodes show the same state, with at least `count` entries in it.
    fn agree(&self, count: usize) -> Vec<Bytes> {
        until("all nodes agree", || {
            let mut states = self.live().map(|node| node.seen().data);
            let first = states.next()?;
            (first.len() >= count && states.all(|state| state == first)).then_some(first)
        })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in self.nodes.iter_mut().filter_map(Option::take) {
            node.kill();
        }
    }
}

#[test]
fn three_nodes_form_commit_and_survive_their_leader() {
    let mut cluster = Cluster::new(3);
    cluster.commit(0..100);
    let state = cluster.agree(100);
    assert_eq!(state[7], "entry 7");
    let leader = cluster.leader();
    let status = cluster.node(leader).handle.status();
    assert!(status.peers.iter().all(|peer| peer.advertise == format!("advertised-{}", peer.id)));
    let cluster_id = status.cluster_id.unwrap();

    let died = Instant::now();
    cluster.kill(leader);
    let successor = cluster.leader();
    eprintln!("a new leader {} ms after the death of the old one began", died.elapsed().as_millis());
    assert_ne!(successor, leader);
    cluster.commit(100..200);
    cluster.start(leader);
    cluster.agree(200);
    assert_eq!(cluster.node(leader).handle.status().cluster_id, Some(cluster_id));

    for n in 0..3 {
        cluster.kill(n);
    }
    for n in 0..3 {
        cluster.start(n);
    }
    cluster.commit(200..201);
    cluster.agree(201);
}

#[test]
fn a_follower_reads_what_was_acknowledged_and_refuses_proposals() {
    let cluster = Cluster::new(3);
    cluster.commit(0..10);
    let leader = cluster.leader();
    let follower = cluster.node((leader + 1) % 3);
    until("a confirmed read", || {
        follower.handle.read_index(1);
        until("an answer", || follower.seen().reads.get(&1).copied())
    });
    assert!(follower.seen().data.len() >= 10);
    follower.propose(500..501);
    let outcome = until("an outcome", || follower.seen().outcomes.get(&500).copied());
    assert_eq!(outcome, Outcome::Refused(crate::Refused::NotLeader));
}

#[test]
fn one_that_was_away_for_long_catches_up_by_snapshot() {
    let mut cluster = Cluster::new(3);
    cluster.commit(0..20);
    let away = (cluster.leader() + 1) % 3;
    cluster.kill(away);
    cluster.commit(20..1000);
    until("the log is compacted", || {
        cluster.live().all(|node| node.handle.status().first_index > 100).then_some(())
    });
    cluster.start(away);
    cluster.agree(1000);
    assert!(cluster.node(away).seen().restored > 0, "it was not by snapshot");
    cluster.commit(1000..1010);
    cluster.agree(1010);
    // And a start from the snapshot just fetched.
    cluster.kill(away);
    cluster.start(away);
    cluster.agree(1010);
}

#[test]
fn a_wiped_node_waits_and_says_so() {
    let mut cluster = Cluster::new(3);
    cluster.commit(0..10);
    let wiped = (cluster.leader() + 1) % 3;
    cluster.kill(wiped);
    fs::remove_dir_all(cluster.options(wiped).data_dir).unwrap();
    cluster.start(wiped);
    until("it says why it waits", || {
        let refused = cluster.node(wiped).seen().refused;
        refused.iter().any(|reason| reason.contains("is empty") && reason.contains("waiting")).then_some(())
    });
    cluster.commit(10..20);
    let leader = cluster.leader();
    let said = until("the others say so too", || {
        let said = cluster.node(leader).seen().refused;
        said.into_iter().find(|reason| reason.contains("was emptied or replaced"))
    });
    assert!(said.contains(&format!("master {}", wiped + 1)));
    let status = cluster.node(wiped).handle.status();
    assert_eq!((status.cluster_id, status.last_index, status.role.term), (None, 0, 0));
}

fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut out = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            out.extend(files(&path));
        } else {
            out.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    out
}

#[test]
fn a_node_alone_keeps_its_log_and_refuses_a_damaged_one() {
    let mut cluster = Cluster::new(1);
    cluster.commit(0..50);
    cluster.kill(0);
    cluster.start(0);
    cluster.agree(50);
    let second = Raft::open(cluster.options(0), |_| {});
    assert!(matches!(second, Err(Error::Disk(proffer_wal::Error::Locked { .. }))));
    cluster.kill(0);

    let options = cluster.options(0);
    let log = fs::read_dir(options.data_dir.join("log")).unwrap().map(|entry| entry.unwrap().path());
    let segment = log.filter(|path| path.extension().is_some_and(|e| e == "log")).min().unwrap();
    let good = fs::read(&segment).unwrap();
    let at = good.windows(8).position(|bytes| bytes == b"entry 20").unwrap();
    let mut bad = good.clone();
    bad[at] ^= 4;
    fs::write(&segment, &bad).unwrap();
    let before = files(&options.data_dir);
    let refused = Raft::open(options.clone(), |_| {}).map(|_| ()).unwrap_err().to_string();
    assert!(refused.contains(segment.to_str().unwrap()) && refused.contains("at byte"), "{refused}");
    assert_eq!(before, files(&options.data_dir));
    let other = Options { id: 2, ..options.clone() };
    let refused = Raft::open(other, |_| {}).map(|_| ()).unwrap_err().to_string();
    assert!(refused.contains("belongs to master 1"), "{refused}");
    assert_eq!(before, files(&options.data_dir));
    fs::write(&segment, &good).unwrap();
    cluster.start(0);
    cluster.agree(50);
}

#[test]
fn a_node_whose_disk_fails_says_so_and_stops_and_the_others_go_on() {
    let mut cluster = Cluster::new(3);
    cluster.commit(0..10);
    let failing = cluster.leader();
    cluster.kill(failing);
    // The same master, on a disk that can be broken: it fetches or is sent all it needs.
    let disk = SimDisk::new();
    copy_to(&disk, &cluster.options(failing).data_dir);
    let listener = until("the port is free again", || TcpListener::bind(cluster.addresses[failing]).ok());
    let node = Node::start_on(Arc::new(disk.clone()), listener, cluster.options(failing)).unwrap();
    cluster.nodes[failing] = Some(node);
    cluster.commit(10..20);
    cluster.agree(20);
    disk.fail("sync", 0, Fault::Eio);
    cluster.commit(20..30);
    let fault = until("the fault", || cluster.node(failing).seen().fault);
    assert!(fault.contains("sync") && fault.contains("node-"), "{fault}");
    cluster.kill(failing);
    cluster.commit(30..40);
    cluster.agree(40);
}

fn copy_to(disk: &SimDisk, dir: &Path) {
    for (path, content) in files(dir) {
        disk.create_dir_all(path.parent().unwrap()).unwrap();
        disk.create(&path).unwrap().write_at(0, &content).unwrap();
        disk.sync_dir(path.parent().unwrap()).unwrap();
    }
}

#[test]
fn a_data_directory_of_another_cluster_is_refused_by_name() {
    let mut cluster = Cluster::new(3);
    cluster.commit(0..10);
    let stray = (cluster.leader() + 1) % 3;
    let other = Cluster::new(3);
    other.commit(0..1);
    let theirs = other.options(stray).data_dir;
    let ours = cluster.options(stray).data_dir;
    cluster.kill(stray);
    fs::remove_dir_all(&ours).unwrap();
    copy_dir(&theirs, &ours);
    drop(other);
    cluster.start(stray);
    let said = until("a refusal that names the directory", || {
        let said = cluster.node(stray).seen().refused;
        said.into_iter().find(|reason| reason.contains(ours.to_str().unwrap()))
    });
    assert!(said.contains("belongs to cluster"), "{said}");
    cluster.commit(10..20);
}

fn copy_dir(from: &Path, to: &Path) {
    for (path, content) in files(from) {
        let path = to.join(path.strip_prefix(from).unwrap());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

#[test]
fn garbage_and_half_open_connections_harm_nobody() {
    let cluster = Cluster::new(3);
    cluster.commit(0..10);
    let mut open = Vec::new();
    for address in cluster.addresses.iter().cycle().take(300) {
        let mut stream = TcpStream::connect(address).unwrap();
        let garbage: &[u8] = match open.len() % 4 {
            0 => &[wire::MAGIC],
            1 => &[wire::MAGIC, 1, 1, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0],
            2 => &[wire::MAGIC, 9, 9, 9],
            _ => b"GET / HTTP/1.1\r\n\r\n",
        };
        let _ = stream.write_all(garbage);
        open.push(stream);
    }
    cluster.commit(10..60);
    cluster.agree(60);
}

/// Runs itself as a child whose node thread panics: the process must end.
#[test]
fn a_panic_of_the_node_thread_ends_the_process() {
    const CHILD: &str = "PROFFER_RAFT_TEST_PANIC_DIR";
    if let Ok(dir) = std::env::var(CHILD) {
        let _handle = Raft::open(Options::new(1, Vec::new(), dir), |_| panic!("on purpose"));
        thread::sleep(PATIENCE);
        return;
    }
    let dir = tempfile::Builder::new().prefix("proffer-raft-").tempdir().unwrap();
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "driver::tests::a_panic_of_the_node_thread_ends_the_process"])
        .env(CHILD, dir.path())
        .output()
        .unwrap();
    assert_eq!(output.status.signal(), Some(6), "{output:?}");
}
