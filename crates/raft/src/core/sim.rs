//! A cluster of cores on simulated disks and a simulated network, from one seed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes};
use proffer_wal::{Disk, SegmentRef, SimDisk};

use super::{Config, Core, Event, Fetch, Output};
use crate::store::{Store, StoreOptions, Write};
use crate::types::{Outcome, Role, Snapshot};

const DIR: &str = "/node";

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    fn percent(&mut self, p: u64) -> bool {
        self.below(100) < p
    }
}

/// What happens at some time.
enum Happening {
    Tick(usize),
    Arrive { from: u64, to: usize, message: Bytes },
    Written { node: usize, incarnation: u64 },
    Reported { node: usize, incarnation: u64, number: u64 },
    Image { node: usize, incarnation: u64 },
    Fetched { node: usize, incarnation: u64, from: u64, snapshot: Snapshot, fails: bool },
    Gone { node: usize, peer: u64 },
    Clock { node: usize, incarnation: u64 },
    Crash(usize),
    Start(usize),
    Partition,
    Load,
}

struct Node {
    disk: SimDisk,
    live: Option<Live>,
    incarnation: u64,
}

struct Live {
    core: Core,
    store: Store,
    machine: Machine,
    waiting: Vec<Write>,
    writing: VecDeque<Write>,
    fetching: Vec<SegmentRef>,
    term: u64,
    /// Past what it says at its start.
    started: bool,
}

/// The replicated state: a hash chain over everything applied.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
struct Machine {
    index: u64,
    hash: u64,
}

impl Machine {
    fn apply(&mut self, index: u64, data: &[u8]) {
        assert_eq!(index, self.index + 1, "a gap or a repetition in what is delivered");
        self.index = index;
        self.hash = Rng(self.hash ^ u64::from(crc32fast::hash(data)) ^ (data.len() as u64) << 40).next();
    }

    fn image(&self) -> [Vec<u8>; 2] {
        let mut second = self.hash.to_le_bytes().to_vec();
        second.resize(3000, self.index as u8);
        [self.index.to_le_bytes().to_vec(), second]
    }

    fn from_image(parts: &[Bytes]) -> Machine {
        Machine { index: parts[0].as_ref().get_u64_le(), hash: parts[1].as_ref().get_u64_le() }
    }
}

/// What must hold over all nodes and all time.
#[derive(Default)]
struct Checker {
    /// By index: term and data, by whoever delivered it first.
    log: BTreeMap<u64, (u64, Bytes)>,
    states: BTreeMap<u64, u64>,
    leaders: BTreeMap<u64, usize>,
    committed_tags: BTreeSet<u64>,
    failed: BTreeSet<u64>,
    acknowledged: BTreeMap<u64, u64>,
    acknowledged_max: u64,
    /// By context: the newest index acknowledged to anyone when the read began.
    reads: BTreeMap<u64, u64>,
    counts: Counts,
}

/// How much of everything a seed saw.
#[derive(Default, Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) events: u64,
    pub(super) leaderships: u64,
    pub(super) crashes: u64,
    pub(super) lossy_crashes: u64,
    pub(super) acknowledged: u64,
    pub(super) failed: u64,
    pub(super) unknown: u64,
    pub(super) refused: u64,
    pub(super) reads: u64,
    pub(super) unread: u64,
    pub(super) images: u64,
    pub(super) installs: u64,
    pub(super) trace: u64,
}

impl Checker {
    fn on_delivered(&mut self, index: u64, term: u64, data: &Bytes) {
        let (first_term, first_data) = self.log.entry(index).or_insert_with(|| (term, data.clone()));
        assert_eq!((*first_term, &*first_data), (term, data), "two logs differ at entry {index}");
        if let Some(tag) = tag_of(data) {
            assert!(!self.failed.contains(&tag), "proposal {tag} was called failed, and is committed");
            self.committed_tags.insert(tag);
        }
    }

    fn on_outcome(&mut self, tag: u64, outcome: Outcome) {
        match outcome {
            Outcome::Committed(index) => {
                let (_, data) = &self.log[&index];
                assert_eq!(tag_of(data), Some(tag), "another proposal is at entry {index}");
                self.acknowledged.insert(tag, index);
                self.acknowledged_max = self.acknowledged_max.max(index);
                self.counts.acknowledged += 1;
            }
            Outcome::Failed | Outcome::Refused(_) => {
                assert!(
                    !self.committed_tags.contains(&tag),
                    "proposal {tag} is committed, and called failed"
                );
                self.failed.insert(tag);
                match outcome {
                    Outcome::Failed => self.counts.failed += 1,
                    _ => self.counts.refused += 1,
                }
            }
            Outcome::Unknown => self.counts.unknown += 1,
        }
    }

    fn on_state(&mut self, machine: Machine) {
        let first = *self.states.entry(machine.index).or_insert(machine.hash);
        assert_eq!(first, machine.hash, "two state machines differ at entry {}", machine.index);
    }
}

fn tag_of(data: &Bytes) -> Option<u64> {
    data.as_ref().try_get_u64_le().ok()
}

/// How wild it is out there.
#[derive(Clone, Copy, Default)]
struct Weather {
    loss: u64,
    duplicates: u64,
    slow_messages: u64,
    stalls: u64,
}

struct Cluster {
    nodes: Vec<Node>,
    config: fn(u64, Vec<u64>) -> Config,
    rng: Rng,
    now: u64,
    agenda: BTreeMap<(u64, u64), Happening>,
    scheduled: u64,
    blocked: BTreeSet<(u64, u64)>,
    weather: Weather,
    calm: bool,
    next_tag: u64,
    checker: Checker,
    seed: u64,
}

fn small_config(id: u64, voters: Vec<u64>) -> Config {
    Config {
        snapshot_bytes: 20_000,
        snapshot_entries: 100,
        tail_bytes: 5_000,
        tail_entries: 20,
        fetch_patience_ticks: 300,
        ..Config::new(id, voters)
    }
}

impl Cluster {
    fn new(seed: u64, nodes: usize) -> Cluster {
        let mut cluster = Cluster {
            nodes: (0..nodes).map(|_| Node { disk: SimDisk::new(), live: None, incarnation: 0 }).collect(),
            config: small_config,
            rng: Rng(seed),
            now: 0,
            agenda: BTreeMap::new(),
            scheduled: 0,
            blocked: BTreeSet::new(),
            weather: Weather { loss: 3, duplicates: 2, slow_messages: 3, stalls: 4 },
            calm: false,
            next_tag: 1,
            checker: Checker::default(),
            seed,
        };
        for node in 0..nodes {
            cluster.nodes[node].disk.create_dir_all(Path::new(DIR)).unwrap();
            cluster.start(node);
            let phase = cluster.rng.below(10);
            cluster.at(phase, Happening::Tick(node));
        }
        cluster.at(1, Happening::Load);
        cluster.at(700, Happening::Partition);
        cluster
    }

    fn at(&mut self, delay: u64, what: Happening) {
        self.scheduled += 1;
        self.agenda.insert((self.now + delay, self.scheduled), what);
    }

    fn start(&mut self, n: usize) {
        let voters: Vec<u64> = (1..=self.nodes.len() as u64).collect();
        let node = &mut self.nodes[n];
        if node.live.is_some() {
            return;
        }
        node.incarnation += 1;
        let disk: Arc<dyn Disk> = Arc::new(node.disk.clone());
        let options = StoreOptions { segment_bytes: 8192 };
        let (store, recovered) = Store::open(&disk, Path::new(DIR), options)
            .unwrap_or_else(|e| panic!("seed {}: node {n} does not open: {e}", self.seed));
        let config =
            Config { seed: self.seed, incarnation: node.incarnation, ..(self.config)(n as u64 + 1, voters) };
        let core = Core::new(config, recovered).unwrap();
        node.live = Some(Live {
            core,
            store,
            machine: Machine::default(),
            waiting: Vec::new(),
            writing: VecDeque::new(),
            fetching: Vec::new(),
            term: 0,
            started: false,
        });
        self.pump(n);
        self.nodes[n].live.as_mut().expect("just started").started = true;
    }

    /// Ends a node's process; in half of the cases its machine loses power too.
    fn crash(&mut self, n: usize) {
        let Some(mut live) = self.nodes[n].live.take() else { return };
        self.checker.counts.crashes += 1;
        let disk = self.nodes[n].disk.clone();
        let writing: Vec<Write> = live.writing.into_iter().collect();
        if !writing.is_empty() {
            // Death comes in the middle of the write.
            disk.stop_after(self.rng.below(6));
            let _ = live.store.write(&writing);
        }
        drop(live.store);
        let seed = self.rng.next();
        if self.rng.percent(60) {
            self.checker.counts.lossy_crashes += u64::from(disk.crash(seed) > 0);
        } else {
            disk.kill();
        }
        for peer in 0..self.nodes.len() {
            if peer != n && self.rng.percent(70) {
                let delay = 1 + self.rng.below(4);
                self.at(delay, Happening::Gone { node: peer, peer: n as u64 + 1 });
            }
        }
    }

    /// Polls a node until it is quiet, doing what it says.
    fn pump(&mut self, n: usize) {
        loop {
            let now = self.now;
            let Some(live) = &mut self.nodes[n].live else { return };
            live.core.advance_clock(now);
            let output = live.core.poll();
            if output.is_empty() {
                break;
            }
            self.perform(n, output);
        }
        self.start_write(n);
        let incarnation = self.nodes[n].incarnation;
        let deadline = self.nodes[n].live.as_ref().and_then(|live| live.core.next_deadline_ms());
        if let Some(deadline) = deadline {
            self.at(deadline.saturating_sub(self.now).max(1), Happening::Clock { node: n, incarnation });
        }
    }

    fn perform(&mut self, n: usize, output: Output) {
        let incarnation = self.nodes[n].incarnation;
        for event in output.events {
            self.on_event(n, event);
        }
        for (to, message) in output.messages {
            self.send(n as u64 + 1, to, message);
        }
        let live = self.nodes[n].live.as_mut().expect("it was polled");
        live.waiting.extend(output.writes);
        for segments in output.release {
            live.store.unpin(&segments);
        }
        match output.fetch {
            None => {}
            Some(Fetch::Stop) => {
                let fetching = std::mem::take(&mut live.fetching);
                live.store.unpin(&fetching);
            }
            Some(Fetch::Start { from, snapshot }) => {
                live.store.snapshots().pin(&snapshot.segments);
                let older = std::mem::replace(&mut live.fetching, snapshot.segments.clone());
                live.store.unpin(&older);
                let delay = if self.calm { 20 } else { self.rng.below(3000) };
                let fails = !self.calm && self.rng.percent(30);
                self.at(delay, Happening::Fetched { node: n, incarnation, from, snapshot, fails });
            }
        }
    }

    fn on_event(&mut self, n: usize, event: Event) {
        let incarnation = self.nodes[n].incarnation;
        let live = self.nodes[n].live.as_mut().expect("it was polled");
        match event {
            Event::Role(change) => {
                live.term = change.term;
                if change.role == Role::Leader {
                    let first = *self.checker.leaders.entry(change.term).or_insert(n);
                    assert_eq!(first, n, "term {} has two leaders", change.term);
                    self.checker.counts.leaderships += u64::from(!change.gate_open);
                }
            }
            Event::Committed(entries) => {
                for entry in entries {
                    self.checker.on_delivered(entry.index, entry.term, &entry.data);
                    live.machine.apply(entry.index, &entry.data);
                    self.checker.on_state(live.machine);
                }
                live.core.applied(live.machine.index);
            }
            Event::Proposal { tag, outcome } => self.checker.on_outcome(tag, outcome),
            Event::Read { ctx, index: Some(index) } => {
                let began = self.checker.reads[&ctx];
                assert!(index >= began, "read at {index} although {began} was acknowledged before it began");
                assert!(live.machine.index >= index, "a read was confirmed before its entries came");
                self.checker.counts.reads += 1;
            }
            Event::Read { index: None, .. } => self.checker.counts.unread += 1,
            Event::Restore(snapshot) => {
                let parts: Vec<Bytes> = (snapshot.segments.iter())
                    .map(|segment| live.store.snapshots().read(segment).expect("every segment is here"))
                    .collect();
                live.machine = Machine::from_image(&parts);
                assert_eq!(live.machine.index, snapshot.index);
                self.checker.on_state(live.machine);
                live.core.applied(snapshot.index);
                self.checker.counts.installs += u64::from(live.started);
            }
            Event::SnapshotWanted { .. } => {
                let delay = self.rng.below(300);
                self.at(delay, Happening::Image { node: n, incarnation });
            }
        }
    }

    fn send(&mut self, from: u64, to: u64, message: Bytes) {
        let node = to as usize - 1;
        let copies = 1 + u64::from(self.rng.percent(self.weather.duplicates));
        for _ in 0..copies {
            if self.rng.percent(self.weather.loss) {
                continue;
            }
            let slow = self.rng.percent(self.weather.slow_messages);
            let delay = if slow { self.rng.below(250) } else { self.rng.below(4) };
            self.at(delay, Happening::Arrive { from, to: node, message: message.clone() });
        }
    }

    /// The log writer: takes all that waits, one append, one sync, some time later.
    fn start_write(&mut self, n: usize) {
        let stall = self.rng.percent(self.weather.stalls);
        let delay = if stall { self.rng.below(1000) } else { self.rng.below(3) };
        let incarnation = self.nodes[n].incarnation;
        let Some(live) = &mut self.nodes[n].live else { return };
        if live.writing.is_empty() && !live.waiting.is_empty() {
            live.writing = std::mem::take(&mut live.waiting).into();
            self.at(delay, Happening::Written { node: n, incarnation });
        }
    }

    fn live(&mut self, n: usize, incarnation: u64) -> Option<&mut Live> {
        let node = &mut self.nodes[n];
        node.live.as_mut().filter(|_| node.incarnation == incarnation)
    }

    fn run_until(&mut self, end: u64) {
        while let Some(entry) = self.agenda.first_entry() {
            if entry.key().0 > end {
                break;
            }
            let ((at, _), what) = entry.remove_entry();
            self.now = at;
            self.checker.counts.events += 1;
            self.happen(what);
        }
        self.now = end;
    }

    fn happen(&mut self, what: Happening) {
        let node = match what {
            Happening::Tick(n) => {
                self.at(10, Happening::Tick(n));
                if let Some(live) = &mut self.nodes[n].live {
                    live.core.tick();
                }
                n
            }
            Happening::Arrive { from, to, message } => {
                if self.blocked.contains(&(from, to as u64 + 1)) {
                    return;
                }
                let Some(live) = &mut self.nodes[to].live else { return };
                let trace = &mut self.checker.counts.trace;
                *trace = Rng(*trace ^ u64::from(crc32fast::hash(&message)) ^ self.now << 32).next();
                live.core.step(from, &message).expect("our own messages are good");
                to
            }
            Happening::Written { node, incarnation } => {
                let Some(live) = self.live(node, incarnation) else { return };
                let writes: Vec<Write> = std::mem::take(&mut live.writing).into();
                let number = live.store.write(&writes).expect("the disk has no faults").expect("not empty");
                let delay = self.rng.below(2);
                self.at(delay, Happening::Reported { node, incarnation, number });
                node
            }
            Happening::Reported { node, incarnation, number } => {
                let Some(live) = self.live(node, incarnation) else { return };
                live.core.on_persisted(number);
                node
            }
            Happening::Image { node, incarnation } => {
                let Some(live) = self.live(node, incarnation) else { return };
                let machine = live.machine;
                let put = |part: Vec<u8>| live.store.snapshots().put(&part).unwrap();
                let segments = machine.image().into_iter().map(put).collect();
                live.core.offer_snapshot(machine.index, segments);
                self.checker.counts.images += 1;
                node
            }
            Happening::Fetched { node, incarnation, from, snapshot, fails } => {
                self.on_fetched(node, incarnation, from, &snapshot, fails);
                node
            }
            Happening::Gone { node, peer } => {
                let Some(live) = &mut self.nodes[node].live else { return };
                live.core.peer_process_gone(peer);
                node
            }
            Happening::Clock { node, incarnation } => {
                if self.live(node, incarnation).is_none() {
                    return;
                }
                node
            }
            Happening::Crash(n) => {
                if !self.calm {
                    self.crash(n);
                }
                return;
            }
            Happening::Start(n) => {
                self.start(n);
                return;
            }
            Happening::Partition => {
                self.change_weather();
                return;
            }
            Happening::Load => {
                self.load();
                return;
            }
        };
        self.pump(node);
    }

    fn on_fetched(&mut self, node: usize, incarnation: u64, from: u64, snapshot: &Snapshot, fails: bool) {
        let source = self.nodes[from as usize - 1].live.as_ref().map(|live| live.store.snapshots().clone());
        let Some(live) = self.live(node, incarnation) else { return };
        if live.fetching != snapshot.segments {
            return;
        }
        let store = live.store.snapshots().clone();
        let whole = !fails
            && source.is_some_and(|source| {
                snapshot.segments.iter().all(|segment| {
                    store.has(segment)
                        || source.read_chunk(segment.hash, 0, segment.bytes as usize).unwrap().is_some_and(
                            |bytes| {
                                store.extend_partial(segment.hash, 0, &bytes).unwrap();
                                store.finish_partial(segment).unwrap()
                            },
                        )
                })
            });
        if whole {
            live.core.snapshot_fetched(snapshot.index, snapshot.term);
        } else {
            live.core.snapshot_progress();
            live.core.snapshot_failed(snapshot.index, snapshot.term);
        }
    }

    /// Partitions (one-way ones too), loss, and crashes come and go.
    fn change_weather(&mut self) {
        let delay = 200 + self.rng.below(1200);
        self.at(delay, Happening::Partition);
        if self.calm {
            return;
        }
        self.blocked.clear();
        let nodes = self.nodes.len() as u64;
        match self.rng.below(6) {
            0 => {
                let cut = 1 + self.rng.below(nodes);
                for peer in 1..=nodes {
                    self.blocked.insert((cut, peer));
                    self.blocked.insert((peer, cut));
                }
            }
            1 => {
                for _ in 0..2 {
                    let pair = (1 + self.rng.below(nodes), 1 + self.rng.below(nodes));
                    self.blocked.insert(pair);
                }
            }
            2 | 3 => {
                let node = self.rng.below(nodes) as usize;
                let (soon, later) = (self.rng.below(100), 150 + self.rng.below(4000));
                self.at(soon, Happening::Crash(node));
                self.at(later, Happening::Start(node));
            }
            4 => {
                // All at once.
                for node in 0..self.nodes.len() {
                    let (soon, later) = (self.rng.below(5), 100 + self.rng.below(400));
                    self.at(soon, Happening::Crash(node));
                    self.at(later, Happening::Start(node));
                }
            }
            _ => {}
        }
        self.weather = Weather {
            loss: [0, 2, 15][self.rng.below(3) as usize],
            duplicates: [0, 5][self.rng.below(2) as usize],
            slow_messages: [0, 3, 20][self.rng.below(3) as usize],
            stalls: [0, 2, 10][self.rng.below(3) as usize],
        };
    }

    fn load(&mut self) {
        let delay = 2 + self.rng.below(20);
        self.at(delay, Happening::Load);
        let any = self.rng.below(self.nodes.len() as u64) as usize;
        let leads = |node: &Node| node.live.as_ref().is_some_and(|live| live.core.status().role.gate_open);
        let leader = self.nodes.iter().position(leads).filter(|_| self.rng.percent(80));
        let n = leader.unwrap_or(any);
        let Some(live) = &mut self.nodes[n].live else { return };
        for _ in 0..1 + self.rng.below(4) {
            let tag = self.next_tag;
            self.next_tag += 1;
            let mut data = Vec::new();
            data.put_u64_le(tag);
            data.resize(8 + self.rng.below(200) as usize, tag as u8);
            // Mostly with the right term.
            let term = live.term - u64::from(live.term > 0 && self.rng.percent(2));
            live.core.propose(term, vec![(tag, data.into())]);
        }
        if self.rng.percent(50) {
            let ctx = self.next_tag;
            self.next_tag += 1;
            self.checker.reads.insert(ctx, self.checker.acknowledged_max);
            live.core.read_index(ctx);
        }
        self.pump(n);
    }

    /// The faults end; then everything must come right in a bounded time.
    fn heal(&mut self) {
        self.calm = true;
        self.blocked.clear();
        self.weather = Weather::default();
        for node in 0..self.nodes.len() {
            self.start(node);
        }
        let deadline = self.now + 20_000;
        while !self.has_converged() {
            assert!(self.now < deadline, "seed {}: not converged: {:?}", self.seed, self.statuses());
            self.run_until(self.now + 200);
        }
        for (tag, index) in &self.checker.acknowledged {
            assert_eq!(tag_of(&self.checker.log[index].1), Some(*tag), "an acknowledged entry is lost");
        }
    }

    /// All nodes are up, follow one leader, and have applied all but the newest few entries.
    fn has_converged(&self) -> bool {
        let newest = self.checker.acknowledged_max;
        self.nodes.iter().all(|node| {
            node.live.as_ref().is_some_and(|live| {
                let status = live.core.status();
                status.role.leader.is_some() && live.machine.index + 40 >= newest && live.machine.index > 0
            })
        })
    }

    fn statuses(&self) -> Vec<Option<super::CoreStatus>> {
        self.nodes.iter().map(|node| node.live.as_ref().map(|live| live.core.status())).collect()
    }
}

fn run(seed: u64) -> Counts {
    let nodes = [3, 3, 5, 3, 1][seed as usize % 5];
    let mut cluster = Cluster::new(seed, nodes);
    cluster.run_until(12_000);
    cluster.heal();
    let before = cluster.checker.counts.acknowledged;
    // A stall of the disk may still be under way.
    cluster.run_until(cluster.now + 2000);
    assert!(
        cluster.checker.counts.acknowledged > before,
        "seed {seed}: nothing is committed after the faults"
    );
    cluster.checker.counts
}

fn seeds() -> u64 {
    std::env::var("PROFFER_RAFT_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(20)
}

/// Log matching, one leader per term, equal state machines, no false "failed", nothing acknowledged lost,
/// linearizable reads; and progress once the faults end.
#[test]
fn safe_under_faults_and_live_after_them() {
    let mut sum = Counts::default();
    let first = std::env::var("PROFFER_RAFT_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    for seed in first..first + seeds() {
        let counts = std::panic::catch_unwind(|| run(seed)).unwrap_or_else(|cause| {
            eprintln!("replay with PROFFER_RAFT_SEED={seed} PROFFER_RAFT_SEEDS=1");
            std::panic::resume_unwind(cause)
        });
        sum.events += counts.events;
        sum.leaderships += counts.leaderships;
        sum.crashes += counts.crashes;
        sum.lossy_crashes += counts.lossy_crashes;
        sum.acknowledged += counts.acknowledged;
        sum.failed += counts.failed;
        sum.unknown += counts.unknown;
        sum.refused += counts.refused;
        sum.reads += counts.reads;
        sum.unread += counts.unread;
        sum.images += counts.images;
        sum.installs += counts.installs;
    }
    eprintln!("{} seeds: {sum:?}", seeds());
    if seeds() >= 10 {
        assert!(sum.leaderships > 3 * seeds() && sum.lossy_crashes > seeds() && sum.failed > 0, "{sum:?}");
        assert!(sum.reads > 100 && sum.installs > seeds() / 2 && sum.images > seeds(), "{sum:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let (one, again, other) = (run(3), run(3), run(8));
    assert_eq!(one, again);
    assert_ne!(one.trace, other.trace);
}
