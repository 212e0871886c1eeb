//! The log in memory, as raft-rs reads it. The file behind it is written elsewhere; what is here is shown
//! before it is durable, as the asynchronous path of raft-rs needs it.

use std::cell::Cell;
use std::collections::VecDeque;

use raft::eraftpb::{ConfState, Entry, Snapshot as RaftSnapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

use crate::store::{Recovered, encode_snapshot};
use crate::types::{HardState, Snapshot};

/// What an entry costs beside its data, in memory and on the wire.
const ENTRY_OVERHEAD: u64 = 24;

pub(super) struct View {
    hard_state: HardState,
    voters: Vec<u64>,
    base: (u64, u64),
    entries: VecDeque<Entry>,
    bytes: u64,
    snapshot: Option<Snapshot>,
    /// raft-rs asked for a snapshot that is not there.
    snapshot_missed: Cell<bool>,
}

impl View {
    pub(super) fn new(recovered: Recovered, voters: Vec<u64>) -> View {
        let mut view = View {
            hard_state: recovered.hard_state,
            voters,
            base: (recovered.base_index, recovered.base_term),
            entries: VecDeque::new(),
            bytes: 0,
            snapshot: recovered.snapshot,
            snapshot_missed: Cell::new(false),
        };
        view.hard_state.commit =
            view.hard_state.commit.min(recovered.base_index + recovered.entries.len() as u64);
        let entries = recovered.entries.into_iter().map(|entry| Entry {
            index: entry.index,
            term: entry.term,
            data: entry.data,
            ..Entry::default()
        });
        view.append(entries.collect());
        view
    }

    pub(super) fn last(&self) -> u64 {
        self.base.0 + self.entries.len() as u64
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn term_at(&self, index: u64) -> Option<u64> {
        match index.checked_sub(self.base.0)? {
            0 => Some(self.base.1),
            n => self.entries.get(n as usize - 1).map(|entry| entry.term),
        }
    }

    pub(super) fn current(&self) -> Option<&Snapshot> {
        self.snapshot.as_ref()
    }

    pub(super) fn set_snapshot(&mut self, snapshot: Snapshot) {
        self.snapshot = Some(snapshot);
    }

    /// Whether raft-rs has asked in vain for a snapshot since this was last called.
    pub(super) fn take_snapshot_missed(&self) -> bool {
        self.snapshot_missed.take()
    }

    /// Appends entries, dropping what lies at and behind the first one's index.
    pub(super) fn append(&mut self, entries: Vec<Entry>) {
        let Some(first) = entries.first() else { return };
        let keep = first.index.checked_sub(self.base.0 + 1).expect("entries begin behind the base");
        assert!(keep as usize <= self.entries.len(), "entries would leave a hole at {}", first.index);
        for old in self.entries.drain(keep as usize..) {
            self.bytes -= size(&old);
        }
        self.bytes += entries.iter().map(size).sum::<u64>();
        self.entries.extend(entries);
    }

    /// A snapshot takes the place of the whole log.
    pub(super) fn install(&mut self, snapshot: Snapshot) {
        self.base = (snapshot.index, snapshot.term);
        self.entries.clear();
        self.bytes = 0;
        self.voters.clone_from(&snapshot.voters);
        self.snapshot = Some(snapshot);
    }

    /// Where to cut so that behind the cut, up to `index`, at most so many entries and bytes remain.
    pub(super) fn tail_start(&self, index: u64, entries_max: u64, bytes_max: u64) -> u64 {
        let (mut at, mut bytes) = (index, 0);
        while at > self.base.0 && index - at < entries_max && bytes < bytes_max {
            bytes += size(&self.entries[(at - self.base.0) as usize - 1]);
            at -= 1;
        }
        at
    }

    /// Forgets the entries up to `index`.
    pub(super) fn compact(&mut self, index: u64) {
        let Some(n) = index.checked_sub(self.base.0).filter(|&n| n > 0) else { return };
        let term = self.term_at(index).expect("compaction stays within the log");
        for old in self.entries.drain(..n as usize) {
            self.bytes -= size(&old);
        }
        self.base = (index, term);
    }

    /// Bytes of the entries behind `index`, up to and with `to`.
    pub(super) fn bytes_between(&self, index: u64, to: u64) -> u64 {
        let from = index.saturating_sub(self.base.0) as usize;
        let to = (to.saturating_sub(self.base.0) as usize).min(self.entries.len());
        if from >= to { 0 } else { self.entries.range(from..to).map(size).sum() }
    }
}

pub(super) fn size(entry: &Entry) -> u64 {
    entry.data.len() as u64 + ENTRY_OVERHEAD
}

impl Storage for View {
    /// raft-rs asks only at the start.
    fn initial_state(&self) -> raft::Result<RaftState> {
        let conf_state = ConfState { voters: self.voters.clone(), ..ConfState::default() };
        let HardState { term, vote, commit } = self.hard_state;
        Ok(RaftState::new(raft::eraftpb::HardState { term, vote, commit, ..Default::default() }, conf_state))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        let Some(from) = low.checked_sub(self.base.0 + 1) else {
            return Err(StorageError::Compacted.into());
        };
        let to = (high - self.base.0 - 1) as usize;
        assert!(to <= self.entries.len(), "entries up to {high} asked, last is {}", self.last());
        let limit = max_size.into().unwrap_or(u64::MAX);
        let mut bytes = 0u64;
        let mut out = Vec::new();
        for entry in self.entries.range(from as usize..to) {
            bytes = bytes.saturating_add(size(entry));
            if !out.is_empty() && bytes > limit {
                break;
            }
            out.push(entry.clone());
        }
        Ok(out)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        match self.term_at(index) {
            Some(term) => Ok(term),
            None if index < self.base.0 => Err(StorageError::Compacted.into()),
            None => Err(StorageError::Unavailable.into()),
        }
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.base.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    /// The current snapshot, if it helps `to`: one whose members lack `to` would be ignored there and sent
    /// again for ever; one that ends before the log begins would leave a gap.
    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<RaftSnapshot> {
        let fits = |snapshot: &&Snapshot| {
            snapshot.index >= request_index && snapshot.index >= self.base.0 && snapshot.voters.contains(&to)
        };
        let Some(snapshot) = self.snapshot.as_ref().filter(fits) else {
            self.snapshot_missed.set(true);
            return Err(StorageError::SnapshotTemporarilyUnavailable.into());
        };
        Ok(to_raft(snapshot))
    }
}

pub(super) fn to_raft(snapshot: &Snapshot) -> RaftSnapshot {
    let mut out = RaftSnapshot { data: encode_snapshot(snapshot).into(), ..RaftSnapshot::default() };
    let metadata = out.mut_metadata();
    metadata.index = snapshot.index;
    metadata.term = snapshot.term;
    metadata.mut_conf_state().voters.clone_from(&snapshot.voters);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn entry(index: u64, term: u64) -> Entry {
        Entry { index, term, data: Bytes::from(vec![0; 76]), ..Entry::default() }
    }

    fn view() -> View {
        let mut view = View::new(Recovered { base_index: 10, base_term: 2, ..Recovered::default() }, vec![1]);
        view.append((11..=20).map(|index| entry(index, 3)).collect());
        view
    }

    fn snapshot(index: u64, voters: &[u64]) -> Snapshot {
        Snapshot { index, term: 3, voters: voters.to_vec(), segments: Vec::new() }
    }

    #[test]
    fn append_replaces_the_tail_and_keeps_count() {
        let mut view = view();
        assert_eq!(view.bytes(), 1000);
        view.append(vec![entry(15, 4)]);
        assert_eq!((view.last(), view.bytes()), (15, 500));
        assert_eq!((view.term_at(10), view.term_at(14), view.term_at(15)), (Some(2), Some(3), Some(4)));
        assert_eq!((view.term_at(9), view.term_at(16)), (None, None));
        view.compact(12);
        assert_eq!((view.first_index().unwrap(), view.term_at(12), view.bytes()), (13, Some(3), 300));
    }

    #[test]
    fn entries_obey_the_size_but_give_at_least_one() {
        let view = view();
        let get = |max| view.entries(12, 18, max, GetEntriesContext::empty(false)).unwrap().len();
        assert_eq!((get(Some(0)), get(Some(250)), get(None)), (1, 2, 6));
        assert!(view.entries(10, 12, None, GetEntriesContext::empty(false)).is_err());
    }

    #[test]
    fn a_snapshot_is_given_only_to_one_it_helps() {
        let mut view = view();
        assert!(view.snapshot(0, 1).is_err() && view.take_snapshot_missed());
        view.set_snapshot(snapshot(15, &[1, 2]));
        assert!(view.snapshot(0, 2).is_ok() && !view.take_snapshot_missed());
        assert!(view.snapshot(16, 2).is_err(), "older than asked for");
        assert!(view.snapshot(0, 3).is_err(), "does not know its receiver");
        view.compact(16);
        assert!(view.snapshot(0, 2).is_err(), "ends before the log begins");
        assert!(view.take_snapshot_missed());
    }

    #[test]
    fn the_tail_is_limited_by_entries_and_bytes() {
        let view = view();
        assert_eq!(view.tail_start(18, 3, u64::MAX), 15);
        assert_eq!(view.tail_start(18, 100, 250), 15);
        assert_eq!(view.tail_start(18, 100, u64::MAX), 10);
        assert_eq!(view.tail_start(18, 0, u64::MAX), 18);
        assert_eq!(view.bytes_between(12, 15), 300);
    }
}
