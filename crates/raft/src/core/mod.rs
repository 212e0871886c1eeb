//! One node as a synchronous state machine.
//!
//! Inputs are functions; after any number of them [`Core::poll`] gives what they lead to. Whoever drives the
//! core does with an [`Output`], in any order it likes: deliver `events` in order, send `messages`, hand
//! `writes` in order to the one owner of the [`Store`](crate::store::Store), start or stop the `fetch`, unpin
//! what is in `release`. It reports completed writes by [`Core::on_persisted`].
//!
//! All time comes in: [`Core::tick`] and [`Core::advance_clock`]. The same inputs give the same outputs, byte
//! for byte.
//!
//! Who drives it must step everything that has arrived before each tick, and must not make up for missed
//! ticks: a starved node would take its own starvation for the leader's silence.

mod campaign;
mod proposals;
mod reads;
#[cfg(test)]
mod sim;
mod snapshots;
#[cfg(test)]
mod tests;
mod view;

use std::collections::VecDeque;

use bytes::Bytes;
use proffer_wal::SegmentRef;
use raft::eraftpb::{self, EntryType, Message, MessageType};
use raft::{INVALID_ID, RawNode, ReadOnlyOption, StateRole};

use crate::message::{BadMessage, Decoded, decode, encode_raft};
use crate::store::{Recovered, Write, WriteOp};
use crate::types::{Entry, HardState, Outcome, Refused, Role, RoleChange, Snapshot};

use campaign::FastCampaign;
use proposals::Proposals;
use reads::Reads;
use snapshots::Snapshots;
use view::View;

/// Entries of about this many bytes share a message.
const MESSAGE_BYTES_MAX: u64 = 1 << 20;
/// Append messages under way to one follower; with the above 256 MiB at most, reached only by one far away.
const IN_FLIGHT_MAX: usize = 256;
/// Bytes proposed and not committed, and bytes delivered and not applied: what one leader may hold for others.
const BACKLOG_BYTES_MAX: u64 = 64 << 20;
/// Entries of about this many bytes are delivered together: raft-rs scans all that are committed and not
/// applied when a node stands for election, so that must stay little.
const DELIVERY_BYTES_MAX: u64 = 1 << 20;
/// The largest entry that can be proposed.
pub const ENTRY_BYTES_MAX: usize = 32 << 20;
/// An event that asks for a snapshot is repeated after this many ticks without one.
const SNAPSHOT_PATIENCE_TICKS: u64 = 1000;

/// The settings of a node.
#[derive(Debug, Clone)]
pub struct Config {
    /// This node, above 0.
    pub id: u64,
    /// All voters, this node among them.
    pub voters: Vec<u64>,
    /// Seed of the election jitter.
    pub seed: u64,
    /// Another value at each start of the node.
    pub incarnation: u64,
    /// Ticks without a leader before a node stands for election, at least; up to twice as many.
    pub election_ticks: usize,
    /// Ticks between a leader's heartbeats.
    pub heartbeat_ticks: usize,
    /// A snapshot is wanted after so many bytes of entries since the last one,
    pub snapshot_bytes: u64,
    /// or so many entries.
    pub snapshot_entries: u64,
    /// Of the entries that a snapshot covers at most so many bytes are kept,
    pub tail_bytes: u64,
    /// and so many entries: a short absence then needs no snapshot.
    pub tail_entries: u64,
    /// A follower that fetches a snapshot and gives no news for so many ticks is offered another.
    pub fetch_patience_ticks: u64,
}

impl Config {
    /// The defaults: for a tick of 10 ms an election timeout of 200 to 400 ms and a heartbeat every 30 ms.
    pub fn new(id: u64, voters: Vec<u64>) -> Config {
        Config {
            id,
            voters,
            seed: 0,
            incarnation: 0,
            election_ticks: 20,
            heartbeat_ticks: 3,
            snapshot_bytes: 64 << 20,
            snapshot_entries: 500_000,
            tail_bytes: 32 << 20,
            tail_entries: 250_000,
            fetch_patience_ticks: 1200,
        }
    }
}

/// Something that happened, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Role, term, leader or gate changed.
    Role(RoleChange),
    /// The next entries of the log: committed, and stored here. Entries without data are to be counted and
    /// otherwise ignored.
    Committed(Vec<Entry>),
    /// What became of a proposal.
    Proposal {
        /// As given with the proposal.
        tag: u64,
        /// Its fate.
        outcome: Outcome,
    },
    /// A read. With an index: everything that anyone was told before the read began is among the entries
    /// delivered so far. `None`: not confirmed; ask again.
    Read {
        /// As given with the read.
        ctx: u64,
        /// The index confirmed.
        index: Option<u64>,
    },
    /// The state machine is to be replaced by this image, whose segments are all here. Entries behind it
    /// follow.
    Restore(Snapshot),
    /// An image of the state machine would be welcome, as of this index or later.
    SnapshotWanted {
        /// The last index delivered.
        index: u64,
    },
}

/// What to do about a snapshot that a leader offered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fetch {
    /// Get what is missing of its segments from `from` and pin them; then [`Core::snapshot_fetched`] or
    /// [`Core::snapshot_failed`]. Takes the place of an earlier one.
    Start {
        /// Who offered it.
        from: u64,
        /// What to get.
        snapshot: Snapshot,
    },
    /// Give up what is under way and unpin it.
    Stop,
}

/// What the inputs since the last poll lead to.
#[derive(Debug, Default)]
pub struct Output {
    /// What happened, in order.
    pub events: Vec<Event>,
    /// What to send, and to whom. May be lost, repeated and reordered.
    pub messages: Vec<(u64, Bytes)>,
    /// What to make durable, in order.
    pub writes: Vec<Write>,
    /// What to do about a snapshot on offer.
    pub fetch: Option<Fetch>,
    /// Segments given by [`Core::offer_snapshot`] that need no pin any more.
    pub release: Vec<Vec<SegmentRef>>,
}

impl Output {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
            && self.messages.is_empty()
            && self.writes.is_empty()
            && self.fetch.is_none()
            && self.release.is_empty()
    }
}

/// A node at a glance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CoreStatus {
    /// Role, term and leader.
    pub role: RoleChange,
    /// The first entry held.
    pub first_index: u64,
    /// The last entry held, stored or not.
    pub last_index: u64,
    /// The last entry known to be committed.
    pub commit: u64,
    /// The last entry delivered.
    pub delivered: u64,
    /// The last entry that the state machine says it applied.
    pub applied: u64,
    /// Index of the current snapshot; 0 if there is none.
    pub snapshot: u64,
    /// Bytes of the entries held.
    pub log_bytes: u64,
    /// Proposals whose fate is open.
    pub open_proposals: usize,
    /// On a leader: each other voter and the last entry it is known to hold.
    pub matched: Vec<(u64, u64)>,
}

/// See the module.
pub struct Core {
    config: Config,
    node: RawNode<View>,
    out: Output,
    /// Readys whose writes are not durable yet, oldest first.
    pending: VecDeque<Pending>,
    next_write: u64,
    /// The index of a snapshot that is being installed: given to the state machine, not yet durable.
    installing: Option<u64>,
    /// The term whose own first entry was applied while leading it.
    gate_term: u64,
    role: RoleChange,
    ticks: u64,
    now_ms: u64,
    /// How many election timeouts have fired.
    fired: u64,
    fast: Option<FastCampaign>,
    proposals: Proposals,
    reads: Reads,
    delivered: u64,
    applied: u64,
    /// Delivered and not yet applied: last index and bytes of each delivery.
    unapplied: VecDeque<(u64, u64)>,
    unapplied_bytes: u64,
    snapshots: Snapshots,
}

/// A Ready on its way to the disk.
struct Pending {
    ready: u64,
    /// The write it waits for; `None` if it wrote nothing but follows one that did.
    write: Option<u64>,
    /// Votes and acknowledgements, to be sent when the above is durable.
    messages: Vec<Message>,
    installs: Option<u64>,
    tick: u64,
}

impl Core {
    /// A node with what was found on its disk ([`Recovered::default`] for a new one).
    ///
    /// # Errors
    /// Settings that contradict each other, in raft-rs's words.
    pub fn new(config: Config, recovered: Recovered) -> Result<Core, raft::Error> {
        let applied = recovered.snapshot.as_ref().map_or(0, |snapshot| snapshot.index);
        let raft_config = raft::Config {
            id: config.id,
            election_tick: config.election_ticks,
            heartbeat_tick: config.heartbeat_ticks,
            applied,
            max_size_per_msg: MESSAGE_BYTES_MAX,
            max_inflight_msgs: IN_FLIGHT_MAX,
            check_quorum: true,
            pre_vote: true,
            // A lease would answer reads on a leader that was just cut off.
            read_only_option: ReadOnlyOption::Safe,
            max_uncommitted_size: BACKLOG_BYTES_MAX,
            max_committed_size_per_ready: DELIVERY_BYTES_MAX,
            ..raft::Config::default()
        };
        let mut voters = config.voters.clone();
        voters.sort_unstable();
        let restore = recovered.snapshot.clone();
        let view = View::new(recovered, voters);
        let node = RawNode::new(&raft_config, view, &crate::logger::bridge())?;
        let role = RoleChange { term: 0, role: Role::Follower, leader: None, gate_open: false };
        let mut core = Core {
            reads: Reads::new(config.id, config.incarnation),
            config,
            node,
            out: Output::default(),
            pending: VecDeque::new(),
            next_write: 0,
            installing: None,
            gate_term: 0,
            role,
            ticks: 0,
            now_ms: 0,
            fired: 0,
            fast: None,
            proposals: Proposals::default(),
            delivered: applied,
            applied: 0,
            unapplied: VecDeque::new(),
            unapplied_bytes: 0,
            snapshots: Snapshots::default(),
        };
        core.out.events.extend(restore.map(Event::Restore));
        if core.is_alone() {
            // Nobody else can lead, so there is nothing to wait for.
            let _ = core.node.campaign();
        }
        Ok(core)
    }

    /// A message from the voter `from`.
    ///
    /// # Errors
    /// A message that was not processed; never the end of the node.
    ///
    /// # Panics
    /// If the leader proves that this node's disk has lost entries it had acknowledged (raft-rs: `to_commit
    /// is out of range`). It must not go on under its id.
    pub fn step(&mut self, from: u64, message: &Bytes) -> Result<(), BadMessage> {
        if from == self.config.id || !self.config.voters.contains(&from) {
            return Err(BadMessage { from, what: "from one that is not another voter" });
        }
        match decode(from, self.config.id, message)? {
            Decoded::FetchNews(news) => self.on_fetch_news(from, news),
            Decoded::Raft(message) => match message.get_msg_type() {
                MessageType::MsgSnapshot => self.on_snapshot_offer(from, message)?,
                // raft-rs would pass it on, in the asker's name.
                MessageType::MsgReadIndex if self.node.raft.state != StateRole::Leader => {}
                kind => {
                    let vote = [MessageType::MsgRequestPreVote, MessageType::MsgRequestVote].contains(&kind);
                    if vote
                        && from < self.config.id
                        && let Some(fast) = &mut self.fast
                    {
                        fast.step_back(self.now_ms);
                    }
                    self.step_raft(message);
                }
            },
        }
        Ok(())
    }

    /// raft-rs's errors here are messages that come too late to mean anything.
    fn step_raft(&mut self, message: Message) {
        if let Err(error) = self.node.step(message) {
            tracing::trace!(%error, "message ignored");
        }
    }

    /// One tick of the clock has passed.
    pub fn tick(&mut self) {
        self.ticks += 1;
        self.tick_snapshots();
        let patience = 2 * self.config.election_ticks as u64;
        let given_up = self.reads.give_up(self.ticks.saturating_sub(patience), false);
        self.out.events.extend(given_up.into_iter().map(|ctx| Event::Read { ctx, index: None }));
        // An election reads the log behind what is applied, and of a snapshot that is just being installed
        // the view holds nothing there.
        if self.installing.is_some() {
            return;
        }
        let may_campaign = self.may_campaign();
        let Config { seed, id, election_ticks, .. } = self.config;
        let raft = &mut self.node.raft;
        let timeout = campaign::election_timeout(seed, id, raft.term, self.fired, election_ticks);
        raft.set_randomized_election_timeout(timeout);
        let leads = raft.state == StateRole::Leader;
        if !leads && !may_campaign && raft.election_elapsed + 1 >= timeout {
            // What a candidacy would do but stand for election: no leader is recognised any more, so that
            // others may be voted for.
            raft.election_elapsed = 0;
            if raft.state == StateRole::Follower {
                raft.leader_id = INVALID_ID;
            }
            return;
        }
        if self.node.tick() && !leads {
            self.fired += 1;
        }
    }

    /// The time, in milliseconds of any steady clock. To be told before other inputs where it is at hand, and
    /// at [`Core::next_deadline_ms`].
    pub fn advance_clock(&mut self, now_ms: u64) {
        self.now_ms = self.now_ms.max(now_ms);
        let Some(mut fast) = self.fast.filter(|fast| fast.next_ms() <= self.now_ms) else { return };
        let raft = &self.node.raft;
        if raft.state == StateRole::Leader || raft.leader_id != INVALID_ID {
            self.fast = None;
            return;
        }
        if raft.state != StateRole::Candidate && self.may_campaign() {
            let _ = self.node.campaign();
        }
        self.fast = fast.attempted(self.now_ms).then_some(fast);
    }

    /// When [`Core::advance_clock`] has something to do.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        self.fast.map(|fast| fast.next_ms())
    }

    /// The process of a peer is gone for certain. If it was the leader, its successor need not wait for the
    /// timeout.
    pub fn peer_process_gone(&mut self, peer: u64) {
        let raft = &mut self.node.raft;
        if raft.state != StateRole::Follower || !raft.promotable() || raft.leader_id != peer {
            return;
        }
        // Enough to end the lease in which votes for others are refused.
        raft.leader_id = INVALID_ID;
        let rank = self.config.voters.iter().filter(|&&v| v != peer && v < self.config.id).count();
        self.fast = Some(FastCampaign::new(self.now_ms, rank as u64));
        self.advance_clock(self.now_ms);
    }

    /// Messages to a peer were lost.
    pub fn peer_unreachable(&mut self, peer: u64) {
        self.node.report_unreachable(peer);
    }

    /// Proposes entries made for `term`, each with a tag for its [`Event::Proposal`]. Only a leader with an
    /// open gate takes them; nothing is ever forwarded to another node.
    pub fn propose(&mut self, term: u64, batch: Vec<(u64, Bytes)>) {
        let refused = self.refuse_all(term);
        let mut chunk: Vec<(u64, Bytes)> = Vec::new();
        let mut bytes = 0;
        for (tag, data) in batch {
            let refused = refused.or(match data.len() {
                0 => Some(Refused::Empty),
                len if len > ENTRY_BYTES_MAX => Some(Refused::TooLarge),
                _ => None,
            });
            if let Some(reason) = refused {
                self.push_refused(tag, reason);
                continue;
            }
            bytes += data.len() as u64;
            chunk.push((tag, data));
            if bytes >= MESSAGE_BYTES_MAX {
                self.propose_chunk(std::mem::take(&mut chunk));
                bytes = 0;
            }
        }
        if !chunk.is_empty() {
            self.propose_chunk(chunk);
        }
    }

    fn refuse_all(&self, term: u64) -> Option<Refused> {
        let raft = &self.node.raft;
        if raft.state != StateRole::Leader {
            Some(Refused::NotLeader)
        } else if raft.term != term {
            Some(Refused::OtherTerm)
        } else if self.gate_term != raft.term {
            Some(Refused::GateClosed)
        } else if self.unapplied_bytes > BACKLOG_BYTES_MAX {
            Some(Refused::Busy)
        } else {
            None
        }
    }

    fn propose_chunk(&mut self, chunk: Vec<(u64, Bytes)>) {
        let mut message = Message { from: self.config.id, ..Message::default() };
        message.set_msg_type(MessageType::MsgPropose);
        let entry = |data: &Bytes| eraftpb::Entry { data: data.clone(), ..eraftpb::Entry::default() };
        message.set_entries(chunk.iter().map(|(_, data)| entry(data)).collect());
        // Past RawNode's own function, which takes one entry and copies it.
        match self.node.raft.step(message) {
            Ok(()) => {
                let term = self.node.raft.term;
                let first = self.node.raft.raft_log.last_index() + 1 - chunk.len() as u64;
                for ((tag, _), index) in chunk.into_iter().zip(first..) {
                    self.proposals.insert(index, term, tag);
                }
            }
            Err(_) => chunk.into_iter().for_each(|(tag, _)| self.push_refused(tag, Refused::Busy)),
        }
    }

    fn push_refused(&mut self, tag: u64, reason: Refused) {
        self.out.events.push(Event::Proposal { tag, outcome: Outcome::Refused(reason) });
    }

    /// Begins a linearizable read, on any node; all that begin before the next poll share one round.
    pub fn read_index(&mut self, ctx: u64) {
        self.reads.queue(ctx);
    }

    /// The state machine has applied all entries up to this one.
    pub fn applied(&mut self, index: u64) {
        self.applied = self.applied.max(index);
        while let Some((_, bytes)) = self.unapplied.pop_front_if(|(last, _)| *last <= index) {
            self.unapplied_bytes -= bytes;
        }
    }

    /// All writes up to this number are durable.
    pub fn on_persisted(&mut self, number: u64) {
        let mut last_ready = None;
        let mut messages = Vec::new();
        let mut installed = None;
        while let Some(done) = self.pending.pop_front_if(|p| p.write.is_none_or(|write| write <= number)) {
            last_ready = Some(done.ready);
            messages.extend(done.messages);
            installed = done.installs.or(installed);
        }
        if let Some(ready) = last_ready {
            // raft-rs first, then the messages: an answer to one of them must not find raft-rs unaware that
            // its own log is stored.
            self.node.on_persist_ready(ready);
            if let Some(index) = installed {
                self.node.advance_apply_to(index);
                self.installing = None;
            }
            self.send(messages);
            if installed.is_some() {
                self.on_install_durable();
            }
        }
        self.on_publish_durable(number);
    }

    /// What all inputs since the last call lead to.
    pub fn poll(&mut self) -> Output {
        self.ask_reads();
        self.drain();
        self.note_role();
        let due = self.reads.take_due(self.delivered);
        self.out.events.extend(due.into_iter().map(|(ctx, index)| Event::Read { ctx, index: Some(index) }));
        self.want_snapshot();
        std::mem::take(&mut self.out)
    }

    /// The node stops: proposals and reads that are open get their last word.
    pub fn stop(&mut self) -> Output {
        let mut outcomes = Vec::new();
        self.proposals.on_stop(&mut outcomes);
        self.push_outcomes(outcomes);
        let given_up = self.reads.give_up(u64::MAX, true);
        self.out.events.extend(given_up.into_iter().map(|ctx| Event::Read { ctx, index: None }));
        std::mem::take(&mut self.out)
    }

    /// The node at a glance.
    pub fn status(&self) -> CoreStatus {
        let raft = &self.node.raft;
        let view = self.node.store();
        let leads = raft.state == StateRole::Leader;
        let others = self.config.voters.iter().filter(|&&voter| leads && voter != self.config.id);
        CoreStatus {
            role: self.role_now(),
            first_index: raft.raft_log.first_index(),
            last_index: raft.raft_log.last_index(),
            commit: raft.raft_log.committed,
            delivered: self.delivered,
            applied: self.applied,
            snapshot: view.current().map_or(0, |snapshot| snapshot.index),
            log_bytes: view.bytes(),
            open_proposals: self.proposals.len(),
            matched: others.map(|&id| (id, raft.prs().get(id).map_or(0, |peer| peer.matched))).collect(),
        }
    }

    fn is_alone(&self) -> bool {
        self.config.voters.len() == 1
    }

    /// Not while a snapshot is being installed; not while the disk hangs (the votes could not be asked for
    /// before it goes on); not alone with entries that are not stored (it would win at once, and a leader's
    /// log must be).
    fn may_campaign(&self) -> bool {
        let half = self.config.election_ticks as u64 / 2;
        let hangs = self.pending.front().is_some_and(|oldest| self.ticks - oldest.tick > half);
        self.installing.is_none() && !hangs && (!self.is_alone() || self.pending.is_empty())
    }

    /// Takes Readys until there is none. Between a `ready()` and its `advance_append_async` nothing may be
    /// stepped, proposed or ticked.
    fn drain(&mut self) {
        while self.node.has_ready() {
            let mut ready = self.node.ready();
            self.note_role();
            let leads = self.node.raft.state == StateRole::Leader;
            let at_once = ready.take_messages();
            assert!(leads || at_once.is_empty(), "only a leader sends before its disk has answered");
            self.send(at_once);
            for state in ready.take_read_states() {
                self.reads.on_confirmed(&state.request_ctx, state.index);
            }
            let install = self.take_install(&ready);
            let entries = ready.take_entries();
            let previous_term = entries.first().map_or(0, |first| self.term_before(first));
            let stored = entries.iter().map(from_raft).collect();
            self.node.mut_store().append(entries);
            self.deliver(ready.take_committed_entries());
            let (early, kept) = split_early(ready.take_persisted_messages());
            self.send(early);
            let (number, must_sync) = (ready.number(), ready.must_sync());
            self.node.advance_append_async(ready);
            let installs = install.as_ref().map(|snapshot| snapshot.index);
            let write = must_sync.then(|| {
                let hard_state = self.hard_state();
                self.push_write(WriteOp::Append { hard_state, install, previous_term, entries: stored })
            });
            if write.is_none() && self.pending.is_empty() {
                self.node.on_persist_ready(number);
                self.send(kept);
            } else {
                let tick = self.ticks;
                self.pending.push_back(Pending { ready: number, write, messages: kept, installs, tick });
            }
            if self.installing.is_none() && self.delivered > self.node.raft.raft_log.applied {
                // Never `advance_apply`: it counts a snapshot of this Ready as applied.
                self.node.advance_apply_to(self.delivered);
            }
        }
    }

    fn term_before(&self, first: &eraftpb::Entry) -> u64 {
        self.node.store().term_at(first.index - 1).expect("entries continue the log")
    }

    fn push_write(&mut self, op: WriteOp) -> u64 {
        self.next_write += 1;
        self.out.writes.push(Write { number: self.next_write, op });
        self.next_write
    }

    fn hard_state(&self) -> HardState {
        let eraftpb::HardState { term, vote, commit, .. } = self.node.raft.hard_state();
        HardState { term, vote, commit }
    }

    fn deliver(&mut self, committed: Vec<eraftpb::Entry>) {
        let Some(last) = committed.last() else { return };
        let (last, bytes) = (last.index, committed.iter().map(view::size).sum::<u64>());
        let mut outcomes = Vec::new();
        let mut entries = Vec::with_capacity(committed.len());
        for entry in &committed {
            assert_eq!(entry.index, self.delivered + 1, "entries are delivered in order and once");
            self.delivered = entry.index;
            let raft = &self.node.raft;
            if entry.data.is_empty() && raft.state == StateRole::Leader && entry.term == raft.term {
                self.gate_term = entry.term;
            }
            self.proposals.on_applied(entry.index, entry.term, &mut outcomes);
            entries.push(from_raft(entry));
        }
        self.snapshots.on_delivered(entries.len() as u64, bytes);
        self.unapplied.push_back((last, bytes));
        self.unapplied_bytes += bytes;
        self.out.events.push(Event::Committed(entries));
        self.push_outcomes(outcomes);
        self.note_role();
    }

    fn push_outcomes(&mut self, outcomes: Vec<(u64, Outcome)>) {
        self.out.events.extend(outcomes.into_iter().map(|(tag, outcome)| Event::Proposal { tag, outcome }));
    }

    fn send(&mut self, messages: Vec<Message>) {
        for message in messages {
            match message.get_msg_type() {
                // A follower's forwarding: the author would be told one thing and the log another.
                MessageType::MsgPropose => continue,
                MessageType::MsgSnapshot => self.on_snapshot_sent(&message),
                _ => {}
            }
            self.out.messages.push((message.to, encode_raft(&message)));
        }
    }

    fn ask_reads(&mut self) {
        let now = self.role_now();
        if now.leader.is_none() || (now.role == Role::Leader && !now.gate_open) {
            // raft-rs would drop them without a word.
            let given_up = self.reads.give_up(0, true);
            self.out.events.extend(given_up.into_iter().map(|ctx| Event::Read { ctx, index: None }));
        } else if let Some(context) = self.reads.ask(self.ticks) {
            self.node.read_index(context);
        }
    }

    fn role_now(&self) -> RoleChange {
        let raft = &self.node.raft;
        let role = match raft.state {
            StateRole::Follower => Role::Follower,
            StateRole::Candidate | StateRole::PreCandidate => Role::Candidate,
            StateRole::Leader => Role::Leader,
        };
        let leader = (raft.leader_id != INVALID_ID).then_some(raft.leader_id);
        let gate_open = role == Role::Leader && self.gate_term == raft.term;
        RoleChange { term: raft.term, role, leader, gate_open }
    }

    fn note_role(&mut self) {
        let now = self.role_now();
        if now == self.role {
            return;
        }
        if (now.term, now.leader) != (self.role.term, self.role.leader) {
            // Whoever was asked may not answer any more.
            let given_up = self.reads.give_up(self.ticks, false);
            self.out.events.extend(given_up.into_iter().map(|ctx| Event::Read { ctx, index: None }));
        }
        if now.role == Role::Leader && self.role.role != Role::Leader {
            self.drop_snapshot_offer();
        }
        if now.role != Role::Leader {
            self.snapshots.on_follower();
        }
        self.role = now;
        self.out.events.push(Event::Role(now));
    }
}

fn from_raft(entry: &eraftpb::Entry) -> Entry {
    assert_eq!(entry.get_entry_type(), EntryType::EntryNormal, "no other kind enters the log");
    Entry { index: entry.index, term: entry.term, data: entry.data.clone() }
}

/// Messages that promise nothing about the disk go out at once: behind a stalled fsync a follower that
/// answers no heartbeat would look dead.
fn split_early(messages: Vec<Message>) -> (Vec<Message>, Vec<Message>) {
    messages.into_iter().partition(|message| {
        matches!(
            message.get_msg_type(),
            MessageType::MsgHeartbeatResponse
                | MessageType::MsgRequestPreVote
                | MessageType::MsgRequestPreVoteResponse
                | MessageType::MsgReadIndex
        )
    })
}
