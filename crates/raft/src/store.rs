//! What a node keeps on disk, and how its state is read back from it.
//!
//! One thread owns the [`Store`] and performs [`Write`]s in the order of their numbers. The simulator does the
//! same with a [`proffer_wal::SimDisk`].

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proffer_wal::{Disk, Log, Manifest, NewRecord, SegmentRef, SnapshotStore, SyncPolicy};

use crate::record::{self, APPEND, INSTALLED, Installed, VERSION};
use crate::types::{Entry, HardState, Snapshot};

/// Something to make durable. Performed in order; the core is told the highest number that is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// Consecutive from 1 per process.
    pub number: u64,
    /// What to do.
    pub op: WriteOp,
}

/// A kind of [`Write`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WriteOp {
    /// Append entries (replacing what lies at their indexes and behind) and remember the hard state.
    Append {
        /// The hard state as of these entries.
        hard_state: HardState,
        /// A fetched snapshot that takes the place of the whole log, before the entries.
        install: Option<Snapshot>,
        /// Term of the entry before the first.
        previous_term: u64,
        /// The entries.
        entries: Vec<Entry>,
    },
    /// Make this image of the state machine the current snapshot. Its segments are stored already.
    Publish(Snapshot),
    /// Entries up to this index are not needed any more.
    Compact {
        /// The last index not needed.
        index: u64,
        /// The newest hard state, to be kept.
        hard_state: HardState,
    },
}

/// How a node's files are kept.
#[derive(Debug, Clone, Copy)]
pub struct StoreOptions {
    /// Size of a log segment in bytes.
    pub segment_bytes: u64,
}

impl Default for StoreOptions {
    fn default() -> StoreOptions {
        StoreOptions { segment_bytes: 16 << 20 }
    }
}

/// A node's state as read from its disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Its promises.
    pub hard_state: HardState,
    /// Index before the first entry.
    pub base_index: u64,
    /// Term of the entry there.
    pub base_term: u64,
    /// The log.
    pub entries: Vec<Entry>,
    /// The current snapshot, if there is one. Its index is within the log or is its base.
    pub snapshot: Option<Snapshot>,
}

impl Recovered {
    fn term(&self, index: u64) -> Option<u64> {
        match index.checked_sub(self.base_index)? {
            0 => Some(self.base_term),
            n => self.entries.get(n as usize - 1).map(|entry| entry.term),
        }
    }

    fn last_index(&self) -> u64 {
        self.base_index + self.entries.len() as u64
    }

    fn reset(&mut self, index: u64, term: u64) {
        self.base_index = index;
        self.base_term = term;
        self.entries.clear();
    }

    /// Replays one record of entries.
    fn append(&mut self, fresh: bool, previous_term: u64, entries: Vec<Entry>) -> Result<(), String> {
        let Some(first) = entries.first() else { return Ok(()) };
        let before = first.index.checked_sub(1).ok_or("an entry has index 0")?;
        // The oldest record that is left, and one that replaces all before it, say where the log begins.
        if fresh || before < self.base_index {
            self.reset(before, previous_term);
        }
        if self.term(before) != Some(previous_term) {
            return Err(format!("entry {} does not continue the log", first.index));
        }
        self.entries.truncate((before - self.base_index) as usize);
        self.entries.extend(entries);
        Ok(())
    }
}

/// The open files of a node. See the module.
pub struct Store {
    log: Log,
    snapshots: SnapshotStore,
    dir: PathBuf,
    /// For each record of entries: the last index in it and its number, oldest first.
    records: VecDeque<(u64, u64)>,
}

impl Store {
    /// Opens (or makes) the directories `log` and `snapshot` in `dir`, and reads the state in them.
    ///
    /// # Errors
    /// Damage, records of an unknown kind and a log without its beginning are refused, the files untouched.
    pub fn open(
        disk: &Arc<dyn Disk>,
        dir: &Path,
        options: StoreOptions,
    ) -> Result<(Store, Recovered), proffer_wal::Error> {
        let (snapshots, manifest) = SnapshotStore::open(Arc::clone(disk), &dir.join("snapshot"))?;
        let log_dir = dir.join("log");
        let log_options = proffer_wal::Options {
            segment_bytes: options.segment_bytes,
            sync: SyncPolicy::Always,
            kinds: record::KINDS,
        };
        let (log, found) = Log::open(Arc::clone(disk), &log_dir, log_options)?;
        let corrupt = |what: String| proffer_wal::Error::Corrupt { path: log_dir.clone(), offset: 0, what };
        let mut recovered = Recovered::default();
        let mut records = VecDeque::new();
        let mut fresh = true;
        for raw in found {
            let unreadable = || corrupt(format!("record {} is not readable", raw.seq));
            if raw.kind == INSTALLED {
                let installed = record::decode_installed(raw.data.clone()).ok_or_else(unreadable)?;
                recovered.hard_state = installed.hard_state;
                recovered.reset(installed.index, installed.term);
                fresh = false;
            } else {
                let append = record::decode_append(raw.data.clone()).ok_or_else(unreadable)?;
                recovered.hard_state = append.hard_state;
                if let Some(last) = append.entries.last() {
                    records.push_back((last.index, raw.seq));
                    recovered.append(fresh, append.previous_term, append.entries).map_err(&corrupt)?;
                    fresh = false;
                }
            }
        }
        if let Some(manifest) = manifest {
            let what = || corrupt("the snapshot's manifest does not say what it is a snapshot of".into());
            adopt(&mut recovered, Snapshot::from_manifest(manifest).ok_or_else(what)?).map_err(&corrupt)?;
        } else if recovered.base_index > 0 {
            let first = recovered.base_index + 1;
            return Err(corrupt(format!(
                "the log begins at entry {first}, and there is no snapshot before it"
            )));
        }
        snapshots.clean_up()?;
        let store = Store { log, snapshots, dir: dir.to_owned(), records };
        Ok((store, recovered))
    }

    /// The snapshots' segments, for those who fetch, serve and read them.
    pub fn snapshots(&self) -> &SnapshotStore {
        &self.snapshots
    }

    /// Performs writes, with one fdatasync for any run of appends, and returns the number of the last: all
    /// up to it are durable.
    ///
    /// # Errors
    /// After an error nothing more may be written; the node must stop.
    pub fn write(&mut self, writes: &[Write]) -> Result<Option<u64>, proffer_wal::Error> {
        let mut batch = Batch::default();
        for write in writes {
            match &write.op {
                WriteOp::Append { hard_state, install, previous_term, entries } => {
                    let mut previous_term = *previous_term;
                    if let Some(snapshot) = install {
                        self.flush(&mut batch)?;
                        // The manifest first: should only it survive, opening resets the log to it.
                        self.snapshots.publish(&snapshot.to_manifest())?;
                        batch.installed(*hard_state, snapshot);
                        if entries.is_empty() {
                            continue;
                        }
                    }
                    for group in record::groups(entries) {
                        batch.append(*hard_state, previous_term, group);
                        previous_term = group.last().map_or(previous_term, |entry| entry.term);
                    }
                }
                WriteOp::Publish(snapshot) => {
                    self.flush(&mut batch)?;
                    self.snapshots.publish(&snapshot.to_manifest())?;
                }
                WriteOp::Compact { index, hard_state } => {
                    // What stays must hold the hard state, even if that is all.
                    batch.append(*hard_state, 0, &[]);
                    self.flush(&mut batch)?;
                    self.compact(*index)?;
                }
            }
        }
        self.flush(&mut batch)?;
        Ok(writes.last().map(|write| write.number))
    }

    fn flush(&mut self, batch: &mut Batch) -> Result<(), proffer_wal::Error> {
        let parts: Vec<[&[u8]; 1]> = batch.records.iter().map(|record| [record.payload.as_slice()]).collect();
        let new: Vec<NewRecord<'_>> = (batch.records.iter().zip(&parts))
            .map(|(record, parts)| NewRecord { kind: record.kind, version: VERSION, parts })
            .collect();
        let first = self.log.next_seq();
        self.log.append(&new)?;
        for (record, seq) in batch.records.drain(..).zip(first..) {
            if let Some(last) = record.last_index {
                self.records.push_back((last, seq));
            }
        }
        Ok(())
    }

    /// Drops whole segments of records in which no entry behind `index` lies.
    fn compact(&mut self, index: u64) -> Result<(), proffer_wal::Error> {
        while self.records.front().is_some_and(|(last, _)| *last <= index) {
            self.records.pop_front();
        }
        // The record just written, with the hard state, at least.
        let newest = self.log.next_seq() - 1;
        let keep = self.records.front().map_or(newest, |(_, seq)| *seq);
        self.log.truncate_front(keep.min(newest))
    }

    /// The node's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Releases segments pinned when they were stored or fetched.
    pub fn unpin(&self, segments: &[SegmentRef]) {
        self.snapshots.unpin(segments);
    }
}

/// Brings log and snapshot together. The log may still be that of before an installed snapshot, when a
/// crash fell between the two writes: its tail cannot be committed then, unless it contains the snapshot's
/// last entry.
fn adopt(recovered: &mut Recovered, snapshot: Snapshot) -> Result<(), String> {
    if snapshot.index < recovered.base_index {
        let (first, index) = (recovered.base_index + 1, snapshot.index);
        return Err(format!("the log begins at entry {first}, but the snapshot ends at entry {index}"));
    }
    if recovered.term(snapshot.index) != Some(snapshot.term) {
        recovered.reset(snapshot.index, snapshot.term);
    }
    if recovered.hard_state.term < snapshot.term {
        recovered.hard_state.term = snapshot.term;
        recovered.hard_state.vote = 0;
    }
    let commit = recovered.hard_state.commit;
    recovered.hard_state.commit = commit.clamp(snapshot.index, recovered.last_index());
    recovered.snapshot = Some(snapshot);
    Ok(())
}

/// The manifest of a snapshot in the form in which it travels.
pub(crate) fn encode_snapshot(snapshot: &Snapshot) -> Vec<u8> {
    snapshot.to_manifest().encode()
}

pub(crate) fn decode_snapshot(bytes: &[u8]) -> Option<Snapshot> {
    Snapshot::from_manifest(Manifest::decode(bytes)?)
}

#[derive(Default)]
struct Batch {
    records: Vec<Pending>,
}

struct Pending {
    kind: u8,
    payload: Vec<u8>,
    last_index: Option<u64>,
}

impl Batch {
    fn append(&mut self, hard_state: HardState, previous_term: u64, entries: &[Entry]) {
        self.records.push(Pending {
            kind: APPEND,
            payload: record::encode_append(hard_state, previous_term, entries),
            last_index: entries.last().map(|entry| entry.index),
        });
    }

    fn installed(&mut self, hard_state: HardState, snapshot: &Snapshot) {
        let installed = Installed { hard_state, index: snapshot.index, term: snapshot.term };
        let payload = record::encode_installed(&installed);
        // Counted with the entries, so that it stays as long as a later record needs it as the base.
        self.records.push(Pending { kind: INSTALLED, payload, last_index: Some(snapshot.index) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proffer_wal::{Error, SimDisk};

    const DIR: &str = "/node";

    struct Files {
        disk: SimDisk,
        store: Store,
        number: u64,
    }

    fn open(disk: &SimDisk) -> Result<(Store, Recovered), Error> {
        let disk: Arc<dyn Disk> = Arc::new(disk.clone());
        Store::open(&disk, Path::new(DIR), StoreOptions { segment_bytes: 2048 })
    }

    fn files() -> Files {
        let disk = SimDisk::new();
        disk.create_dir_all(Path::new(DIR)).unwrap();
        let (store, recovered) = open(&disk).unwrap();
        assert_eq!(recovered, Recovered::default());
        Files { disk, store, number: 0 }
    }

    fn hard_state(term: u64, commit: u64) -> HardState {
        HardState { term, vote: 2, commit }
    }

    fn entries(indexes: std::ops::RangeInclusive<u64>, term: u64) -> Vec<Entry> {
        indexes.map(|index| Entry { index, term, data: Bytes::from(vec![index as u8; 100]) }).collect()
    }

    impl Files {
        fn write(&mut self, ops: Vec<WriteOp>) -> Result<(), Error> {
            let writes = ops.into_iter().map(|op| {
                self.number += 1;
                Write { number: self.number, op }
            });
            let writes: Vec<Write> = writes.collect();
            let done = self.store.write(&writes)?;
            assert_eq!(done, Some(self.number));
            Ok(())
        }

        fn append(&mut self, previous_term: u64, entries: Vec<Entry>, hard_state: HardState) {
            self.write(vec![WriteOp::Append { hard_state, install: None, previous_term, entries }]).unwrap();
        }

        fn snapshot(&self, index: u64, term: u64) -> Snapshot {
            let segments = vec![self.store.snapshots().put(&index.to_le_bytes()).unwrap()];
            Snapshot { index, term, voters: vec![1, 2, 3], segments }
        }

        fn reopen(&mut self) -> Recovered {
            self.disk.kill();
            let (store, recovered) = open(&self.disk).unwrap();
            self.store = store;
            recovered
        }
    }

    #[test]
    fn later_entries_replace_earlier_ones_and_a_batch_is_one_sync() {
        let mut files = files();
        files.append(0, entries(1..=9, 1), hard_state(1, 3));
        files.append(1, entries(5..=6, 2), hard_state(2, 4));
        let recovered = files.reopen();
        let expected: Vec<Entry> = entries(1..=4, 1).into_iter().chain(entries(5..=6, 2)).collect();
        assert_eq!(recovered.entries, expected);
        assert_eq!(recovered.hard_state, hard_state(2, 4));
        let syncs = files.disk.syncs();
        let append = |index| WriteOp::Append {
            hard_state: hard_state(2, 4),
            install: None,
            previous_term: 2,
            entries: entries(index..=index, 2),
        };
        files.write((7..=8).map(append).collect()).unwrap();
        assert_eq!(files.disk.syncs() - syncs, 1);
    }

    #[test]
    fn compaction_keeps_the_tail_and_the_hard_state() {
        for (index, tail) in [(100, 40), (100, 0)] {
            let mut files = files();
            for at in (1..=100).step_by(4) {
                files.append(u64::from(at > 1), entries(at..=at + 3, 1), hard_state(1, at));
            }
            let snapshot = files.snapshot(index, 1);
            let before = files.disk.files().len();
            let cut = WriteOp::Compact { index: index - tail, hard_state: hard_state(7, 100) };
            files.write(vec![WriteOp::Publish(snapshot.clone()), cut]).unwrap();
            assert!(files.disk.files().len() < before, "segments went");
            let recovered = files.reopen();
            assert_eq!(recovered.hard_state, hard_state(7, 100));
            assert_eq!(recovered.snapshot, Some(snapshot));
            assert!(recovered.base_index <= index - tail && recovered.base_index + 60 > index - tail);
            assert_eq!(recovered.last_index(), 100);
        }
    }

    /// The manifest and the record that empties the log are two writes; a crash may fall between them.
    #[test]
    fn an_installed_snapshot_replaces_the_log_wherever_a_crash_falls() {
        let (mut old, mut new) = (0, 0);
        for seed in 0..400 {
            let mut files = files();
            files.append(0, entries(1..=9, 1), hard_state(1, 5));
            let snapshot = files.snapshot(50, 3);
            files.disk.stop_after(seed % 12);
            let done = files.write(vec![WriteOp::Append {
                hard_state: hard_state(3, 50),
                install: Some(snapshot.clone()),
                previous_term: 3,
                entries: entries(51..=52, 3),
            }]);
            files.disk.crash(seed);
            let (_, recovered) = open(&files.disk).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
            match recovered.snapshot.clone() {
                Some(found) => {
                    assert_eq!((found, recovered.base_index, recovered.base_term), (snapshot, 50, 3));
                    assert!(recovered.hard_state.term == 3 && recovered.hard_state.commit == 50);
                    assert!(done.is_err() || recovered.last_index() == 52);
                    new += 1;
                }
                None => {
                    assert!(done.is_err(), "seed {seed}: an acknowledged snapshot is lost");
                    assert_eq!(recovered.entries, entries(1..=9, 1));
                    old += 1;
                }
            }
        }
        assert!(old > 50 && new > 50, "{old} {new}");
    }

    #[test]
    fn a_log_without_its_beginning_is_refused() {
        let mut files = files();
        for at in (1..=100).step_by(4) {
            files.append(u64::from(at > 1), entries(at..=at + 3, 1), hard_state(1, at));
        }
        let snapshot = files.snapshot(60, 1);
        let cut = WriteOp::Compact { index: 50, hard_state: hard_state(1, 97) };
        files.write(vec![WriteOp::Publish(snapshot), cut]).unwrap();
        files.disk.kill();
        let manifest = Path::new(DIR).join("snapshot/manifest");
        files.disk.remove(&manifest).unwrap();
        let before = files.disk.files();
        let refused = open(&files.disk).map(|_| ()).unwrap_err();
        assert!(matches!(&refused, Error::Corrupt { what, .. } if what.contains("no snapshot")), "{refused}");
        assert_eq!(before, files.disk.files());
    }
}
