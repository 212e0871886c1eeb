//! Masters: Raft's core on a simulated disk, and the mind on top of it.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use proffer_allocator::Policy;
use proffer_broker::{Effect, Settings};
use proffer_master::mind::{Mind, Now, Output as MindOutput};
use proffer_raft::core::{Config, Core, Event, Fetch, Output};
use proffer_raft::store::{Store, StoreOptions, Write};
use proffer_raft::{Outcome, Role, Snapshot};
use proffer_registry::Registry;
use proffer_types::call::{Call, ConnectionId, ReplyId};
use proffer_types::event::{FrameworkEvent, Refused, Reply};
use proffer_types::{Caller, ClusterId, Epoch, MasterId};
use proffer_wal::{Disk, SegmentRef, SimDisk};

use super::frameworks::{self, SentReply};
use super::links::{Client, Down};
use super::world::{Happening, Place, World};

const DIR: &str = "/master";

/// The cluster that the masters found.
pub(crate) const CLUSTER: ClusterId = ClusterId([0x5e; 16]);

pub(crate) struct MasterNode {
    disk: SimDisk,
    pub(crate) live: Option<Live>,
    /// Counts the lives of the process.
    pub(crate) life: u64,
    /// What its steady clock shows at time 0.
    offset: u64,
}

pub(crate) struct Live {
    core: Core,
    store: Store,
    pub(crate) mind: Mind,
    waiting: Vec<Write>,
    writing: VecDeque<Write>,
    fetching: Vec<SegmentRef>,
    replies: BTreeMap<ReplyId, (usize, u64, frameworks::Asked)>,
    next_reply: u64,
    epoch: Epoch,
    clock_at: Option<u64>,
    mind_at: Option<u64>,
}

impl MasterNode {
    pub(crate) fn new(n: usize) -> Self {
        Self { disk: SimDisk::new(), live: None, life: 0, offset: 1_000 * n as u64 }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.live.is_some()
    }
}

pub(crate) fn address(n: usize) -> String {
    format!("m{n}")
}

pub(crate) fn master_at(address: &str) -> Option<usize> {
    address.strip_prefix('m')?.parse().ok()
}

/// Patience in proportion to the length of a run.
pub(crate) fn settings() -> Settings {
    Settings {
        heartbeat_ms: 1_000,
        pings_missed_max: 5,
        offer_timeout_ms: 4_000,
        reconnect_grace_ms: 8_000,
        agent_expiry_ms: 30_000,
        policy: Policy::default(),
    }
}

fn raft_config(id: u64, voters: Vec<u64>) -> Config {
    Config {
        snapshot_bytes: 60_000,
        snapshot_entries: 150,
        tail_bytes: 20_000,
        tail_entries: 40,
        fetch_patience_ticks: 300,
        ..Config::new(id, voters)
    }
}

impl World {
    pub(crate) fn start_master(&mut self, n: usize) {
        if self.masters[n].is_up() {
            return;
        }
        let voters: Vec<u64> = (1..=self.masters.len() as u64).collect();
        let founding = voters.iter().map(|id| (MasterId(*id), address(*id as usize - 1))).collect();
        let seed = self.seed;
        let node = &mut self.masters[n];
        node.life += 1;
        node.disk.create_dir_all(Path::new(DIR)).expect("the disk has no faults");
        let disk: Arc<dyn Disk> = Arc::new(node.disk.clone());
        let (store, recovered) = Store::open(&disk, Path::new(DIR), StoreOptions { segment_bytes: 16_384 })
            .unwrap_or_else(|error| panic!("master {n} does not open: {error}"));
        let config = Config { seed, incarnation: node.life, ..raft_config(n as u64 + 1, voters) };
        let core = Core::new(config, recovered).expect("the settings are good");
        node.live = Some(Live {
            core,
            store,
            mind: Mind::new(settings()),
            waiting: Vec::new(),
            writing: VecDeque::new(),
            fetching: Vec::new(),
            replies: BTreeMap::new(),
            next_reply: 0,
            epoch: Epoch::default(),
            clock_at: None,
            mind_at: None,
        });
        let now = self.master_now(n);
        if let Some(live) = &mut self.masters[n].live {
            live.mind.on_formed(CLUSTER, founding, now);
        }
        self.pump(n);
    }

    fn master_now(&self, n: usize) -> Now {
        Now { mono_ms: self.now + self.masters[n].offset, wall_ms: 1_000_000 + self.now }
    }

    /// Ends a master's process; in most cases its machine loses power too.
    pub(crate) fn crash_master(&mut self, n: usize) {
        if self.calm {
            return;
        }
        let Some(mut live) = self.masters[n].live.take() else { return };
        self.checker.counts.crashes += 1;
        let disk = self.masters[n].disk.clone();
        let writing: Vec<Write> = live.writing.into_iter().collect();
        if !writing.is_empty() {
            // Death comes in the middle of the write.
            disk.stop_after(self.rng.below(6));
            let _ = live.store.write(&writing);
        }
        drop(live.store);
        let seed = self.rng.next();
        if self.rng.percent(70) {
            self.checker.counts.lossy_crashes += u64::from(disk.crash(seed) > 0);
        } else {
            disk.kill();
        }
        for peer in 0..self.masters.len() {
            if peer != n && self.rng.percent(70) {
                let delay = 1 + self.rng.below(4);
                self.at(delay, Happening::ProcessGone { master: peer, peer: n as u64 + 1 });
            }
        }
        for (framework, life, asked) in live.replies.into_values() {
            let delay = self.delay();
            let reply = SentReply::lost(asked);
            self.at(delay, Happening::FrameworkReply { framework, life, reply: Box::new(reply) });
        }
        self.break_links(|link| link.master == n && link.client_open);
    }

    fn live(&mut self, n: usize, life: u64) -> Option<&mut Live> {
        let node = &mut self.masters[n];
        node.live.as_mut().filter(|_| node.life == life)
    }

    pub(crate) fn tick_master(&mut self, n: usize) {
        self.at(10, Happening::Tick(n));
        if let Some(live) = &mut self.masters[n].live {
            live.core.tick();
            self.pump(n);
        }
    }

    pub(crate) fn arrive(&mut self, from: usize, to: usize, message: &Bytes) {
        if self.blocked.contains(&(Place::Master(from), Place::Master(to))) {
            return;
        }
        let Some(live) = &mut self.masters[to].live else { return };
        live.core.step(from as u64 + 1, message).expect("our own messages are good");
        self.pump(to);
    }

    pub(crate) fn written(&mut self, n: usize, life: u64) {
        let Some(live) = self.live(n, life) else { return };
        let writes: Vec<Write> = std::mem::take(&mut live.writing).into();
        let number = live.store.write(&writes).expect("the disk has no faults").expect("not empty");
        let delay = self.rng.below(2);
        self.at(delay, Happening::Reported { master: n, life, number });
        self.pump(n);
    }

    pub(crate) fn reported(&mut self, n: usize, life: u64, number: u64) {
        let Some(live) = self.live(n, life) else { return };
        live.core.on_persisted(number);
        self.pump(n);
    }

    pub(crate) fn image(&mut self, n: usize, life: u64) {
        let Some(live) = self.live(n, life) else { return };
        let registry = live.mind.registry().clone();
        let store = live.store.snapshots();
        let segments = registry
            .image()
            .map(|segment| {
                store.put(&proffer_wire::log::encode_segment(&segment)).expect("the disk has no faults")
            })
            .collect();
        live.core.offer_snapshot(registry.applied(), segments);
        self.checker.counts.images += 1;
        self.pump(n);
    }

    pub(crate) fn process_gone(&mut self, n: usize, peer: u64) {
        if let Some(live) = &mut self.masters[n].live {
            live.core.peer_process_gone(peer);
            self.pump(n);
        }
    }

    pub(crate) fn clock(&mut self, n: usize, life: u64) {
        if let Some(live) = self.live(n, life) {
            live.clock_at = None;
            self.pump(n);
        }
    }

    pub(crate) fn mind_time(&mut self, n: usize, life: u64) {
        let now = self.master_now(n);
        if let Some(live) = self.live(n, life) {
            live.mind_at = None;
            live.mind.on_time(now);
            self.pump(n);
        }
    }

    /// A call reaches a master.
    pub(crate) fn master_call(
        &mut self,
        n: usize,
        asked: Option<(usize, u64, frameworks::Asked)>,
        call: Call,
    ) {
        let now = self.master_now(n);
        let Some(live) = &mut self.masters[n].live else { return };
        let reply = asked.map(|asked| {
            live.next_reply += 1;
            live.replies.insert(ReplyId(live.next_reply), asked);
            ReplyId(live.next_reply)
        });
        live.mind.on_call(Caller::anonymous(), reply, call, now);
        self.pump(n);
    }

    /// Polls a master until it is quiet, doing what it says.
    fn pump(&mut self, n: usize) {
        loop {
            let now = self.now;
            let Some(live) = &mut self.masters[n].live else { return };
            live.core.advance_clock(now);
            let outputs = live.mind.take_outputs();
            if !outputs.is_empty() {
                self.perform_mind(n, outputs);
                continue;
            }
            let output = live.core.poll();
            if output.is_empty() {
                break;
            }
            self.perform_raft(n, output);
        }
        self.check_leader(n);
        self.start_write(n);
        self.arm(n);
    }

    fn arm(&mut self, n: usize) {
        let life = self.masters[n].life;
        let offset = self.masters[n].offset;
        let now = self.now;
        let Some(live) = &mut self.masters[n].live else { return };
        let clock = live.core.next_deadline_ms().filter(|due| live.clock_at.is_none_or(|at| *due < at));
        let mind = live.mind.next_deadline().map(|due| due.saturating_sub(offset));
        let mind = mind.filter(|due| live.mind_at.is_none_or(|at| *due < at));
        live.clock_at = clock.or(live.clock_at);
        live.mind_at = mind.or(live.mind_at);
        if let Some(due) = clock {
            self.at(due.saturating_sub(now).max(1), Happening::Clock { master: n, life });
        }
        if let Some(due) = mind {
            self.at(due.saturating_sub(now).max(1), Happening::Mind { master: n, life });
        }
    }

    fn perform_raft(&mut self, n: usize, output: Output) {
        let life = self.masters[n].life;
        for event in output.events {
            self.on_raft_event(n, event);
        }
        for (to, message) in output.messages {
            self.send_raft(n, to as usize - 1, message);
        }
        let live = self.masters[n].live.as_mut().expect("it was polled");
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
                let delay = if self.calm { 20 } else { self.rng.below(2_000) };
                let fails = !self.calm && self.rng.percent(30);
                self.at(delay, Happening::Fetched { master: n, life, from, snapshot, fails });
            }
        }
    }

    fn on_raft_event(&mut self, n: usize, event: Event) {
        let life = self.masters[n].life;
        let now = self.master_now(n);
        match event {
            Event::Role(role) => {
                if role.role == Role::Leader {
                    self.checker.on_leader(role.term, n, role.gate_open);
                }
                let live = self.masters[n].live.as_mut().expect("it was polled");
                live.mind.on_leader_address(role.leader.map(|id| address(id as usize - 1)));
                live.mind.on_role(role, now);
            }
            Event::Committed(entries) => {
                for entry in &entries {
                    let live = self.masters[n].live.as_mut().expect("it was polled");
                    let before = live.mind.registry().clone();
                    live.mind.on_committed(std::slice::from_ref(entry), now);
                    let after = live.mind.registry().clone();
                    self.on_applied(entry, &before, &after);
                }
                let live = self.masters[n].live.as_mut().expect("it was polled");
                if let Some(last) = entries.last() {
                    live.core.applied(last.index);
                }
            }
            Event::Proposal { tag, outcome } => {
                if outcome == Outcome::Failed {
                    self.checker.counts.failed += 1;
                }
                let live = self.masters[n].live.as_mut().expect("it was polled");
                live.mind.on_proposal(tag, outcome, now);
            }
            Event::Read { .. } => {}
            Event::Restore(snapshot) => {
                let live = self.masters[n].live.as_mut().expect("it was polled");
                let segments = snapshot.segments.iter().map(|segment| {
                    let bytes = live.store.snapshots().read(segment).expect("every segment is here");
                    proffer_wire::log::decode_segment(&bytes).expect("our own segments are good")
                });
                let registry =
                    Registry::from_image(segments.collect::<Vec<_>>()).expect("our own image is good");
                live.mind.on_restore(registry.clone());
                live.core.applied(snapshot.index);
                self.checker.counts.installs += 1;
                self.checker.on_state(&registry);
            }
            Event::SnapshotWanted { .. } => {
                let delay = self.rng.below(300);
                self.at(delay, Happening::Image { master: n, life });
            }
        }
    }

    fn send_raft(&mut self, from: usize, to: usize, message: Bytes) {
        let copies = 1 + u64::from(self.rng.percent(self.weather.duplicates));
        for _ in 0..copies {
            if self.rng.percent(self.weather.loss) {
                continue;
            }
            let delay = self.delay();
            self.at(delay, Happening::Arrive { from, to, message: message.clone() });
        }
    }

    /// The log writer: takes all that waits, one append, one sync, some time later.
    fn start_write(&mut self, n: usize) {
        let stall = self.rng.percent(self.weather.stalls);
        let delay = if stall { self.rng.below(800) } else { self.rng.below(3) };
        let life = self.masters[n].life;
        let Some(live) = &mut self.masters[n].live else { return };
        if live.writing.is_empty() && !live.waiting.is_empty() {
            live.writing = std::mem::take(&mut live.waiting).into();
            self.at(delay, Happening::Written { master: n, life });
        }
    }

    pub(crate) fn fetched(&mut self, n: usize, life: u64, from: u64, snapshot: &Snapshot, fails: bool) {
        let source = self.masters[from as usize - 1].live.as_ref().map(|live| live.store.snapshots().clone());
        let Some(live) = self.live(n, life) else { return };
        if live.fetching != snapshot.segments {
            return;
        }
        let store = live.store.snapshots().clone();
        let get = |segment: &SegmentRef| {
            if store.has(segment) {
                return true;
            }
            let chunk = source.as_ref().and_then(|source| {
                source.read_chunk(segment.hash, 0, segment.bytes as usize).expect("the disk has no faults")
            });
            chunk.is_some_and(|bytes| {
                store.extend_partial(segment.hash, 0, &bytes).expect("the disk has no faults");
                store.finish_partial(segment).expect("the disk has no faults")
            })
        };
        if !fails && snapshot.segments.iter().all(get) {
            live.core.snapshot_fetched(snapshot.index, snapshot.term);
        } else {
            live.core.snapshot_progress();
            live.core.snapshot_failed(snapshot.index, snapshot.term);
        }
        self.pump(n);
    }

    fn perform_mind(&mut self, n: usize, outputs: Vec<MindOutput>) {
        for output in outputs {
            let live = self.masters[n].live.as_mut().expect("it was polled");
            match output {
                MindOutput::Propose { term, tag, data } => live.core.propose(term, vec![(tag, data)]),
                MindOutput::Leads { epoch } => live.epoch = epoch,
                // Nobody here watches what is told of the log.
                MindOutput::Told { .. } | MindOutput::Follows => {}
                MindOutput::Fatal { message } => panic!("master {n}: {message}"),
                MindOutput::Effect(effect) => self.effect(n, effect),
            }
        }
    }

    fn effect(&mut self, n: usize, effect: Effect) {
        let live = self.masters[n].live.as_mut().expect("it was polled");
        let leader = live.mind.leader_address().map(str::to_owned);
        match effect {
            Effect::Propose { .. } => unreachable!("the mind makes entries of proposals"),
            Effect::Answer { reply, result } => {
                if let Some((framework, life, asked)) = live.replies.remove(&reply) {
                    self.answer(framework, life, asked, result);
                }
            }
            Effect::ToAgent { connection, order } => {
                let epoch = live.epoch;
                self.send_down(connection.0, Down::Orders { epoch, orders: vec![order] });
            }
            Effect::Deliver { reply, connection, order } => {
                let epoch = live.epoch;
                let index = live.mind.registry().applied();
                let asked = reply.and_then(|reply| live.replies.remove(&reply));
                self.send_down(connection.0, Down::Orders { epoch, orders: vec![order] });
                if let Some((framework, life, asked)) = asked {
                    self.answer(framework, life, asked, Ok(Reply::Done { index }));
                }
            }
            Effect::ToFramework { connection, event } => self.tell_framework(n, connection, event),
            Effect::Close { connection, end } => self.master_closes(connection.0, end, leader),
            Effect::Alarm { message } => panic!("master {n}: alarm: {message}"),
        }
    }

    fn answer(
        &mut self,
        framework: usize,
        life: u64,
        asked: frameworks::Asked,
        result: Result<Reply, Refused>,
    ) {
        if let Ok(reply) = &result {
            self.checker.on_answer(reply);
        }
        let delay = self.delay();
        let reply = Box::new(SentReply::new(asked, result));
        self.at(delay, Happening::FrameworkReply { framework, life, reply });
    }

    fn tell_framework(&mut self, n: usize, connection: ConnectionId, event: FrameworkEvent) {
        let live = self.masters[n].live.as_ref().expect("it was polled");
        let heard = frameworks::heard(event, live.mind.registry(), live.epoch);
        let is_framework =
            self.links.get(&connection.0).is_some_and(|l| matches!(l.client, Client::Framework { .. }));
        if is_framework && !heard.is_empty() {
            self.send_down(connection.0, Down::Heard(heard));
        }
    }
}
