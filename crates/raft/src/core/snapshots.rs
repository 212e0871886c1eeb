//! Snapshots by manifest: offered by a leader, fetched outside raft, stepped only when every byte is local
//! and durable. Until then the node is an ordinary lagging follower, which votes and answers heartbeats.

use std::collections::BTreeMap;

use proffer_wal::SegmentRef;
use raft::eraftpb::{Message, MessageType};
use raft::{ProgressState, Ready, SnapshotStatus, StateRole};

use super::{Core, Event, Fetch, SNAPSHOT_PATIENCE_TICKS};
use crate::message::{BadMessage, FetchNews, encode_news};
use crate::store::{WriteOp, decode_snapshot};
use crate::types::Snapshot;

/// New snapshots wait while a follower fetches the current one (its log must connect to it), unless the log
/// grows beyond this many times the size at which a snapshot is wanted.
const HOLD_FACTOR: u64 = 4;

#[derive(Default)]
pub(super) struct Snapshots {
    /// Delivered since the current snapshot.
    entries_since: u64,
    bytes_since: u64,
    /// raft-rs needed one that was not there.
    missed: bool,
    /// The tick at which one was last asked for.
    wanted: Option<u64>,
    /// An image of our own state machine, waiting to be published,
    offered: Option<Snapshot>,
    /// or on its way to the disk, with the number of its write.
    publishing: Option<(u64, Snapshot)>,
    /// Offered by a leader and not yet in raft.
    held: Option<Held>,
    /// As leader: who is fetching what, and the tick of the last news.
    sending: BTreeMap<u64, (u64, u64)>,
}

struct Held {
    message: Message,
    snapshot: Snapshot,
    from: u64,
    local: bool,
}

impl Snapshots {
    pub(super) fn on_delivered(&mut self, entries: u64, bytes: u64) {
        self.entries_since += entries;
        self.bytes_since += bytes;
    }

    pub(super) fn on_follower(&mut self) {
        self.sending.clear();
    }
}

impl Core {
    /// An image of the state machine as of `index`, which has been delivered; its segments are stored and
    /// pinned until they come back in [`super::Output::release`].
    pub fn offer_snapshot(&mut self, index: u64, segments: Vec<SegmentRef>) {
        self.snapshots.wanted = None;
        let view = self.node.store();
        let current = view.current().map_or(0, |snapshot| snapshot.index);
        let term = view.term_at(index).filter(|_| index > current && index <= self.delivered);
        let Some(term) = term else {
            self.out.release.push(segments);
            return;
        };
        let voters = self.config.voters.clone();
        let older = self.snapshots.offered.replace(Snapshot { index, term, voters, segments });
        self.out.release.extend(older.map(|older| older.segments));
        self.publish_offered();
    }

    fn publish_offered(&mut self) {
        let view = self.node.store();
        let held_back =
            !self.snapshots.sending.is_empty() && view.bytes() < HOLD_FACTOR * self.config.snapshot_bytes;
        if held_back || self.snapshots.publishing.is_some() || self.installing.is_some() {
            return;
        }
        let Some(snapshot) = self.snapshots.offered.take() else { return };
        if view.current().is_some_and(|current| current.index >= snapshot.index) {
            self.out.release.push(snapshot.segments);
            return;
        }
        let number = self.push_write(WriteOp::Publish(snapshot.clone()));
        self.snapshots.publishing = Some((number, snapshot));
    }

    /// Once the new manifest is durable, and only then, the log before it may go.
    pub(super) fn on_publish_durable(&mut self, number: u64) {
        let publishing = &mut self.snapshots.publishing;
        let Some((_, snapshot)) = publishing.take_if(|(write, _)| *write <= number) else { return };
        self.out.release.push(snapshot.segments.clone());
        let index = snapshot.index;
        let view = self.node.mut_store();
        // A fetched snapshot may have overtaken it.
        if view.current().is_none_or(|current| current.index < index) && view.term_at(index).is_some() {
            view.set_snapshot(snapshot);
            self.snapshots.missed = false;
            self.snapshots.bytes_since = view.bytes_between(index, self.delivered);
            self.snapshots.entries_since = self.delivered - index;
            let cut = view.tail_start(index, self.config.tail_entries, self.config.tail_bytes);
            view.compact(cut);
            let hard_state = self.hard_state();
            self.push_write(WriteOp::Compact { index: cut, hard_state });
        }
        self.publish_offered();
    }

    pub(super) fn want_snapshot(&mut self) {
        let snapshots = &mut self.snapshots;
        snapshots.missed |= self.node.store().take_snapshot_missed();
        let due = snapshots.missed
            || snapshots.bytes_since >= self.config.snapshot_bytes
            || snapshots.entries_since >= self.config.snapshot_entries;
        let asked = snapshots.wanted.is_some_and(|tick| self.ticks - tick < SNAPSHOT_PATIENCE_TICKS);
        let under_way = snapshots.offered.is_some() || snapshots.publishing.is_some();
        if due && !asked && !under_way && self.installing.is_none() && snapshots.entries_since > 0 {
            snapshots.wanted = Some(self.ticks);
            self.out.events.push(Event::SnapshotWanted { index: self.delivered });
        }
    }

    /// A leader offers a snapshot.
    pub(super) fn on_snapshot_offer(&mut self, from: u64, message: Message) -> Result<(), BadMessage> {
        let bad = |what| BadMessage { from, what };
        let snapshot =
            decode_snapshot(&message.get_snapshot().data).ok_or_else(|| bad("a broken manifest"))?;
        let metadata = message.get_snapshot().get_metadata();
        if (metadata.index, metadata.term) != (snapshot.index, snapshot.term)
            || metadata.get_conf_state().voters != snapshot.voters
        {
            return Err(bad("a manifest of another snapshot"));
        }
        if message.term < self.node.raft.term {
            return Ok(());
        }
        if snapshot.index <= self.node.raft.raft_log.committed {
            // raft-rs answers with what it has, which is more.
            self.step_raft(message);
            return Ok(());
        }
        if self.installing.is_some() {
            // The segments of the one on its way to the disk must stay pinned; the leader will see what this
            // node has then.
            let news = FetchNews { index: snapshot.index, failed: true };
            self.out.messages.push((from, encode_news(news)));
            return Ok(());
        }
        if let Some(held) = &mut self.snapshots.held
            && (held.snapshot.term, held.snapshot.index) >= (snapshot.term, snapshot.index)
        {
            if held.snapshot == snapshot && message.term > held.message.term {
                held.message = message;
            }
            return Ok(());
        }
        self.out.fetch = Some(Fetch::Start { from, snapshot: snapshot.clone() });
        self.snapshots.held = Some(Held { message, snapshot, from, local: false });
        Ok(())
    }

    /// All segments of the snapshot being fetched are here, verified and durable.
    pub fn snapshot_fetched(&mut self, index: u64, term: u64) {
        if let Some(held) = &mut self.snapshots.held
            && (held.snapshot.index, held.snapshot.term) == (index, term)
        {
            held.local = true;
            self.step_held();
        }
    }

    fn step_held(&mut self) {
        if self.installing.is_some() {
            return;
        }
        let Some(held) = self.snapshots.held.take_if(|held| held.local) else { return };
        self.step_raft(held.message);
        self.drain();
        // If the log has caught up meanwhile, or the term is over, there is nothing to install.
        if self.installing.is_none() {
            self.out.fetch = Some(Fetch::Stop);
        }
    }

    /// The fetch made progress: told to the leader, so that it goes on waiting.
    pub fn snapshot_progress(&mut self) {
        self.send_news(false);
    }

    /// The fetch will not be completed.
    pub fn snapshot_failed(&mut self, index: u64, term: u64) {
        let held = self.snapshots.held.as_ref();
        if held.is_some_and(|held| (held.snapshot.index, held.snapshot.term) == (index, term)) {
            self.send_news(true);
            self.drop_snapshot_offer();
        }
    }

    fn send_news(&mut self, failed: bool) {
        if let Some(held) = &self.snapshots.held {
            let news = FetchNews { index: held.snapshot.index, failed };
            self.out.messages.push((held.from, encode_news(news)));
        }
    }

    pub(super) fn drop_snapshot_offer(&mut self) {
        if self.snapshots.held.take().is_some() {
            self.out.fetch = Some(Fetch::Stop);
        }
    }

    /// Installs the snapshot of a Ready in the view and hands it to the state machine.
    pub(super) fn take_install(&mut self, ready: &Ready) -> Option<Snapshot> {
        if ready.snapshot().is_empty() {
            return None;
        }
        let snapshot = decode_snapshot(&ready.snapshot().data).expect("decoded before it was stepped");
        let index = snapshot.index;
        self.node.mut_store().install(snapshot.clone());
        self.installing = Some(index);
        self.delivered = index;
        self.unapplied.clear();
        self.unapplied_bytes = 0;
        self.snapshots.entries_since = 0;
        self.snapshots.bytes_since = 0;
        self.snapshots.missed = false;
        self.snapshots.wanted = None;
        let mut outcomes = Vec::new();
        self.proposals.on_installed(index, &mut outcomes);
        self.out.events.push(Event::Restore(snapshot.clone()));
        self.push_outcomes(outcomes);
        Some(snapshot)
    }

    pub(super) fn on_install_durable(&mut self) {
        if self.snapshots.held.is_none() {
            self.out.fetch = Some(Fetch::Stop);
        }
        self.step_held();
        self.publish_offered();
    }

    pub(super) fn on_snapshot_sent(&mut self, message: &Message) {
        debug_assert_eq!(message.get_msg_type(), MessageType::MsgSnapshot);
        let index = message.get_snapshot().get_metadata().index;
        self.snapshots.sending.insert(message.to, (index, self.ticks));
    }

    /// News of a follower's fetch. That a manifest was merely delivered is never reported as success: raft-rs
    /// would send appends that are rejected and then the snapshot again. Success shows in the follower's
    /// acknowledgement.
    pub(super) fn on_fetch_news(&mut self, from: u64, news: FetchNews) {
        let Some((index, tick)) = self.snapshots.sending.get_mut(&from) else { return };
        if *index != news.index {
            return;
        }
        *tick = self.ticks;
        if news.failed {
            self.fetch_lost(from);
        }
    }

    fn fetch_lost(&mut self, peer: u64) {
        self.snapshots.sending.remove(&peer);
        self.node.report_snapshot(peer, SnapshotStatus::Failure);
    }

    /// Without the watchdog a lost last acknowledgement would leave a follower waiting for ever.
    pub(super) fn tick_snapshots(&mut self) {
        if self.node.raft.state == StateRole::Leader && !self.snapshots.sending.is_empty() {
            let prs = self.node.raft.prs();
            let fetching =
                |peer: &u64| prs.get(*peer).is_some_and(|peer| peer.state == ProgressState::Snapshot);
            self.snapshots.sending.retain(|peer, _| fetching(peer));
            let patience = self.config.fetch_patience_ticks;
            let silent = |(_, (_, tick)): &(&u64, &(u64, u64))| self.ticks - *tick > patience;
            let lost: Vec<u64> =
                self.snapshots.sending.iter().filter(silent).map(|(peer, _)| *peer).collect();
            lost.into_iter().for_each(|peer| self.fetch_lost(peer));
        }
        self.publish_offered();
    }
}
