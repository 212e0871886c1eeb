//! The rules of the asynchronous path, one by one, on three cores without disks.

use bytes::Bytes;
use proffer_wal::{SegmentRef, hash_of};
use raft::Storage;

use super::*;
use crate::message::{Decoded, decode};

/// Three cores; messages arrive at once, writes are done at once unless that node's disk hangs.
struct Trio {
    cores: Vec<Core>,
    hangs: [bool; 3],
    /// The last write not done yet.
    undone: [Option<u64>; 3],
    cut: [bool; 3],
    events: [Vec<Event>; 3],
    fetches: [Vec<Fetch>; 3],
    /// Kinds of raft messages sent, with sender and receiver.
    sent: Vec<(u64, u64, MessageType)>,
    now_ms: u64,
}

impl Trio {
    fn new() -> Trio {
        let core = |id| Core::new(Config::new(id, vec![1, 2, 3]), Recovered::default()).unwrap();
        Trio {
            cores: (1..=3).map(core).collect(),
            hangs: [false; 3],
            undone: [None; 3],
            cut: [false; 3],
            events: Default::default(),
            fetches: Default::default(),
            sent: Vec::new(),
            now_ms: 0,
        }
    }

    /// Until nobody has anything to say.
    fn settle(&mut self) {
        loop {
            let mut quiet = true;
            for n in 0..3 {
                let output = self.cores[n].poll();
                quiet &= output.is_empty();
                self.events[n].extend(output.events);
                self.fetches[n].extend(output.fetch);
                if let Some(write) = output.writes.last() {
                    self.undone[n] = Some(write.number);
                }
                for (to, bytes) in output.messages {
                    self.carry(n as u64 + 1, to, &bytes);
                }
                if !self.hangs[n]
                    && let Some(number) = self.undone[n].take()
                {
                    self.cores[n].on_persisted(number);
                    quiet = false;
                }
            }
            if quiet {
                return;
            }
        }
    }

    fn carry(&mut self, from: u64, to: u64, bytes: &Bytes) {
        if let Ok(Decoded::Raft(message)) = decode(from, to, bytes) {
            self.sent.push((from, to, message.get_msg_type()));
        }
        if !self.cut[from as usize - 1] && !self.cut[to as usize - 1] {
            self.cores[to as usize - 1].step(from, bytes).unwrap();
        }
    }

    fn tick(&mut self, n: usize, times: usize) {
        for _ in 0..times {
            self.cores[n].tick();
            self.settle();
        }
    }

    fn tick_all(&mut self, times: usize) {
        for _ in 0..times {
            self.cores.iter_mut().for_each(Core::tick);
            self.settle();
        }
    }

    /// Makes node 0 the leader, with an open gate.
    fn led() -> Trio {
        let mut trio = Trio::new();
        trio.tick(0, 45);
        assert!(trio.cores[0].status().role.gate_open);
        trio.sent.clear();
        trio
    }

    fn propose(&mut self, n: usize, tags: std::ops::Range<u64>) {
        let term = self.cores[n].status().role.term;
        let batch = tags.map(|tag| (tag, Bytes::from(format!("{tag}")))).collect();
        self.cores[n].propose(term, batch);
        self.settle();
    }

    fn sent(&self, from: u64, kind: MessageType) -> usize {
        self.sent.iter().filter(|(sender, _, sent)| *sender == from && *sent == kind).count()
    }

    fn outcomes(&self, n: usize) -> Vec<(u64, Outcome)> {
        let outcome = |event: &Event| match event {
            Event::Proposal { tag, outcome } => Some((*tag, *outcome)),
            _ => None,
        };
        self.events[n].iter().filter_map(outcome).collect()
    }

    fn wake_disk(&mut self, n: usize) {
        self.hangs[n] = false;
        self.settle();
    }
}

#[test]
fn acknowledgements_and_votes_wait_for_the_disk() {
    let mut trio = Trio::led();
    trio.hangs[1] = true;
    trio.propose(0, 1..4);
    assert_eq!(trio.sent(2, MessageType::MsgAppendResponse), 0);
    assert_eq!(trio.outcomes(0).len(), 3, "the other follower is a majority with the leader");
    trio.wake_disk(1);
    assert!(trio.sent(2, MessageType::MsgAppendResponse) > 0);

    trio.cut[0] = true;
    trio.hangs[1] = true;
    trio.tick(1, 20);
    trio.sent.clear();
    trio.tick(2, 45);
    assert!(trio.sent(3, MessageType::MsgRequestVote) > 0, "the pre-vote was answered");
    assert_eq!(trio.sent(2, MessageType::MsgRequestVoteResponse), 0);
    trio.wake_disk(1);
    assert!(trio.sent(2, MessageType::MsgRequestVoteResponse) > 0);
    assert_eq!(trio.cores[2].status().role.role, Role::Leader);
}

/// The order in `on_persisted`: an answer may not come to a raft-rs that does not know its log is stored.
#[test]
fn raft_knows_of_the_disk_before_anyone_else_does() {
    let mut trio = Trio::led();
    trio.hangs[1] = true;
    trio.propose(0, 1..4);
    let core = &mut trio.cores[1];
    let (persisted, last) = (core.node.raft.raft_log.persisted, core.node.raft.raft_log.last_index());
    assert!(persisted < last && core.out.messages.is_empty());
    core.on_persisted(trio.undone[1].take().unwrap());
    assert_eq!(core.node.raft.raft_log.persisted, last);
    assert!(!core.out.messages.is_empty());
}

#[test]
fn heartbeats_are_answered_while_the_disk_hangs() {
    let mut trio = Trio::led();
    trio.hangs = [false, true, true];
    trio.propose(0, 1..4);
    trio.sent.clear();
    trio.tick(0, 200);
    assert!(trio.sent(2, MessageType::MsgHeartbeatResponse) > 20);
    assert_eq!(trio.sent(2, MessageType::MsgAppendResponse), 0);
    assert_eq!(trio.cores[0].status().role.role, Role::Leader, "two followers with one slow disk look alive");
    trio.wake_disk(1);
    assert_eq!(trio.outcomes(0).len(), 3);
}

#[test]
fn a_node_whose_disk_hangs_does_not_stand_but_lets_others() {
    let mut trio = Trio::led();
    trio.hangs[1] = true;
    trio.propose(0, 1..4);
    trio.cut[0] = true;
    trio.sent.clear();
    trio.tick(1, 200);
    assert_eq!(trio.sent(2, MessageType::MsgRequestPreVote), 0);
    assert_eq!(trio.cores[1].status().role.leader, None, "its lease for the lost leader is over");
    trio.tick(2, 45);
    assert!(trio.sent(2, MessageType::MsgRequestPreVoteResponse) > 0);
    trio.wake_disk(1);
    trio.tick(2, 45);
    assert_eq!(trio.cores[2].status().role.role, Role::Leader);
}

#[test]
fn one_alone_with_entries_not_stored_does_not_stand() {
    let mut core = Core::new(Config::new(1, vec![1]), Recovered::default()).unwrap();
    let mut last = core.poll().writes.last().unwrap().number;
    core.on_persisted(last);
    assert!(core.poll().events.iter().any(|e| matches!(e, Event::Role(role) if role.gate_open)));
    core.propose(1, vec![(1, Bytes::from_static(b"x"))]);
    last = core.poll().writes.last().unwrap().number;
    core.node.raft.become_follower(1, 0);
    for _ in 0..100 {
        core.tick();
        core.poll();
    }
    assert_eq!(core.status().role.role, Role::Follower);
    core.on_persisted(last);
    for _ in 0..40 {
        core.tick();
        core.poll();
    }
    assert_eq!(core.status().role.role, Role::Leader);
}

fn segment(content: &[u8]) -> SegmentRef {
    SegmentRef { hash: hash_of(content), bytes: content.len() as u64 }
}

/// Node 2 was away until its log no longer connects; it has the manifest, and asked for the segments.
fn behind_a_snapshot() -> Trio {
    let mut trio = Trio::led();
    for core in &mut trio.cores {
        core.config.tail_entries = 0;
    }
    trio.cut[2] = true;
    trio.propose(0, 1..50);
    let delivered = trio.cores[0].status().delivered;
    trio.cores[0].offer_snapshot(delivered, vec![segment(b"image")]);
    trio.settle();
    assert_eq!(trio.cores[0].status().first_index, delivered + 1);
    trio.cut[2] = false;
    trio.tick(0, 10);
    assert!(
        matches!(&trio.fetches[2][..], [Fetch::Start { from: 1, snapshot }] if snapshot.index == delivered)
    );
    trio
}

#[test]
fn a_snapshot_counts_as_applied_only_when_it_is_durable_and_nothing_ticks_meanwhile() {
    let mut trio = behind_a_snapshot();
    let index = trio.cores[0].status().snapshot;
    trio.sent.clear();
    trio.tick(0, 20);
    assert_eq!(trio.cores[2].status().snapshot, 0, "until it is here the node is an ordinary one behind");
    assert!(trio.sent(3, MessageType::MsgHeartbeatResponse) > 0);

    trio.hangs[2] = true;
    let term = trio.cores[0].node.store().term(index).unwrap();
    trio.cores[2].snapshot_fetched(index, term);
    trio.settle();
    assert!(trio.events[2].iter().any(|event| matches!(event, Event::Restore(s) if s.index == index)));
    assert!(trio.cores[2].node.raft.raft_log.applied < index);
    trio.sent.clear();
    trio.cut[0] = true;
    trio.tick(2, 200);
    trio.cores[2].peer_process_gone(1);
    trio.cores[2].advance_clock(10_000);
    trio.settle();
    assert_eq!(trio.sent(3, MessageType::MsgRequestPreVote), 0, "no campaign while a snapshot is installed");
    trio.cut[0] = false;
    trio.wake_disk(2);
    assert_eq!(trio.cores[2].node.raft.raft_log.applied, index);
    assert!(matches!(trio.fetches[2].last(), Some(Fetch::Stop)));
    trio.propose(0, 50..60);
    trio.tick_all(10);
    assert_eq!(trio.cores[2].status().delivered, trio.cores[0].status().delivered);
}

#[test]
fn a_failed_or_silent_fetch_is_offered_again() {
    let mut trio = behind_a_snapshot();
    let snapshot = trio.cores[0].status().snapshot;
    let term = trio.cores[0].node.store().term(snapshot).unwrap();
    trio.cores[2].snapshot_failed(snapshot, term);
    trio.settle();
    trio.tick(0, 10);
    assert_eq!(trio.fetches[2].len(), 3, "stopped, and started anew: {:?}", trio.fetches[2]);
    // No news at all, as when the last acknowledgement was lost.
    trio.sent.clear();
    trio.tick(0, 600);
    assert_eq!(trio.sent(1, MessageType::MsgSnapshot), 0);
    trio.cores[2].snapshot_progress();
    trio.tick(0, 1100);
    assert_eq!(trio.sent(1, MessageType::MsgSnapshot), 0, "news prolong the patience");
    trio.tick(0, 200);
    assert!(trio.sent(1, MessageType::MsgSnapshot) > 0);
}

#[test]
fn what_is_delivered_together_is_limited_and_counts_as_applied() {
    let mut trio = Trio::led();
    let term = trio.cores[0].status().role.term;
    let half = Bytes::from(vec![1; DELIVERY_BYTES_MAX as usize / 2]);
    trio.cores[0].propose(term, (0..20).map(|tag| (tag, half.clone())).collect());
    trio.settle();
    for event in &trio.events[0] {
        if let Event::Committed(entries) = event {
            let bytes: usize = entries.iter().map(|entry| entry.data.len()).sum();
            assert!(bytes as u64 <= DELIVERY_BYTES_MAX);
        }
    }
    let core = &trio.cores[0];
    assert_eq!(core.node.raft.raft_log.applied, core.delivered);
    assert_eq!(trio.outcomes(0).len(), 20);
}

/// A leader that knows better what this node acknowledged proves that its disk lost it.
#[test]
#[should_panic(expected = "to_commit")]
fn a_disk_that_lost_acknowledged_entries_stops_the_node() {
    let mut trio = Trio::led();
    trio.propose(0, 1..10);
    trio.tick_all(4);
    trio.cores[1] = Core::new(Config::new(2, vec![1, 2, 3]), Recovered::default()).unwrap();
    trio.tick(0, 4);
}

#[test]
fn proposals_are_taken_only_by_a_leader_of_that_term() {
    let mut trio = Trio::led();
    let propose = |trio: &mut Trio, n: usize, term: u64, data: Bytes| {
        trio.events[n].clear();
        trio.cores[n].propose(term, vec![(9, data)]);
        trio.settle();
        trio.outcomes(n)
    };
    let refused = |reason| vec![(9, Outcome::Refused(reason))];
    let x = || Bytes::from_static(b"x");
    let term = trio.cores[0].status().role.term;
    assert_eq!(propose(&mut trio, 1, term, x()), refused(Refused::NotLeader));
    assert_eq!(propose(&mut trio, 0, term - 1, x()), refused(Refused::OtherTerm));
    assert_eq!(propose(&mut trio, 0, term, Bytes::new()), refused(Refused::Empty));
    let huge = Bytes::from(vec![0; ENTRY_BYTES_MAX + 1]);
    assert_eq!(propose(&mut trio, 0, term, huge), refused(Refused::TooLarge));
    assert_eq!(trio.sent(2, MessageType::MsgPropose), 0);
}

#[test]
fn the_gate_opens_with_the_first_entry_of_the_own_term() {
    let mut trio = Trio::new();
    trio.hangs = [true; 3];
    trio.tick(0, 45);
    for n in 0..3 {
        // The vote, but not the first entry, gets through the disks.
        let number = trio.undone[n].take();
        number.into_iter().for_each(|number| trio.cores[n].on_persisted(number));
        trio.settle();
    }
    let status = trio.cores[0].status();
    assert_eq!((status.role.role, status.role.gate_open), (Role::Leader, false));
    trio.cores[0].propose(status.role.term, vec![(1, Bytes::from_static(b"x"))]);
    trio.cores[0].read_index(1);
    trio.settle();
    assert_eq!(trio.outcomes(0), [(1, Outcome::Refused(Refused::GateClosed))]);
    assert!(trio.events[0].contains(&Event::Read { ctx: 1, index: None }));
    trio.hangs = [false; 3];
    trio.settle();
    assert!(trio.cores[0].status().role.gate_open);
}

#[test]
fn a_leader_without_followers_refuses_once_its_memory_is_full() {
    let mut trio = Trio::led();
    trio.cut = [false, true, true];
    let term = trio.cores[0].status().role.term;
    let large = Bytes::from(vec![0; 8 << 20]);
    trio.cores[0].propose(term, (0..10).map(|tag| (tag, large.clone())).collect());
    trio.settle();
    let refused = trio.outcomes(0);
    assert!(refused.iter().all(|(_, outcome)| *outcome == Outcome::Refused(Refused::Busy)));
    assert_eq!(refused.len(), 2, "8 x 8 MiB fit");
}

#[test]
fn open_proposals_of_a_deposed_leader_fail_only_with_the_next_leaders_entry() {
    let mut trio = Trio::led();
    trio.cut[0] = true;
    trio.propose(0, 1..3);
    trio.tick(0, 60);
    assert_eq!(trio.cores[0].status().role.role, Role::Follower, "a leader without a majority steps down");
    assert_eq!(trio.outcomes(0), [], "which is no answer");
    trio.tick(1, 60);
    trio.tick(2, 60);
    trio.cut[0] = false;
    trio.tick_all(50);
    assert_eq!(trio.outcomes(0), [(1, Outcome::Failed), (2, Outcome::Failed)]);
}

#[test]
fn the_death_of_the_leader_needs_no_timeout() {
    let mut trio = Trio::led();
    trio.tick_all(4);
    trio.cut[0] = true;
    // The news reaches node 2 first: node 1 still believes in the leader and ignores the first pre-votes.
    trio.cores[2].peer_process_gone(1);
    for ms in 1..100 {
        trio.now_ms = ms;
        if ms == 30 {
            trio.cores[1].peer_process_gone(1);
        }
        trio.cores.iter_mut().for_each(|core| core.advance_clock(ms));
        trio.settle();
    }
    let roles: Vec<RoleChange> = trio.cores[1..].iter().map(|core| core.status().role).collect();
    assert!(roles.iter().any(|role| role.gate_open), "{roles:?}");
    assert_eq!(trio.cores[1].next_deadline_ms(), None);
}

#[test]
fn a_false_alarm_changes_nothing() {
    let mut trio = Trio::led();
    let term = trio.cores[0].status().role.term;
    trio.cores[2].peer_process_gone(2);
    assert_eq!(trio.cores[2].next_deadline_ms(), None, "not its leader");
    trio.cores[2].peer_process_gone(1);
    for ms in 1..300 {
        trio.cores.iter_mut().for_each(|core| core.advance_clock(ms));
        if ms % 10 == 0 {
            trio.cores.iter_mut().for_each(Core::tick);
        }
        trio.settle();
    }
    let role = trio.cores[0].status().role;
    assert_eq!((role.term, role.gate_open), (term, true), "the others are in lease");
}

#[test]
fn a_read_is_confirmed_on_every_node_and_not_by_a_leader_cut_off() {
    let mut trio = Trio::led();
    trio.propose(0, 1..10);
    trio.tick_all(4);
    let commit = trio.cores[0].status().commit;
    for n in 0..3 {
        trio.cores[n].read_index(7);
        trio.settle();
        assert!(trio.events[n].contains(&Event::Read { ctx: 7, index: Some(commit) }));
    }
    trio.cut[0] = true;
    trio.events[0].clear();
    trio.cores[0].read_index(8);
    trio.settle();
    assert!(!trio.events[0].iter().any(|event| matches!(event, Event::Read { .. })));
    trio.tick(0, 60);
    assert!(trio.events[0].contains(&Event::Read { ctx: 8, index: None }));
}

#[test]
fn messages_from_strangers_are_dropped() {
    let mut trio = Trio::led();
    let heartbeat = {
        trio.cores[0].tick();
        trio.cores[0].tick();
        trio.cores[0].tick();
        trio.cores[0].poll().messages.remove(0).1
    };
    assert!(trio.cores[1].step(9, &heartbeat).is_err());
    assert!(trio.cores[1].step(3, &heartbeat).is_err());
    assert!(trio.cores[1].step(1, &heartbeat).is_ok());
}
