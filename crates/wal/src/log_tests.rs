use super::*;
use crate::{Fault, FsDisk, SimDisk};

const DIR: &str = "/node/log";

fn options(sync: SyncPolicy) -> Options {
    Options { segment_bytes: 4096, sync, kinds: &[(1, 1)] }
}

fn open(disk: &SimDisk) -> Result<(Log, Vec<Record>), Error> {
    Log::open(Arc::new(disk.clone()), Path::new(DIR), options(SyncPolicy::Always))
}

fn fresh() -> (SimDisk, Log) {
    let disk = SimDisk::new();
    disk.create_dir_all(Path::new("/node")).unwrap();
    let (log, records) = open(&disk).unwrap();
    assert!(records.is_empty());
    (disk, log)
}

/// Appends `n` records in one batch; record number s carries s and a length that varies with s.
fn append(log: &mut Log, n: u64) -> Result<u64, Error> {
    let first = log.next_seq();
    let payloads: Vec<Vec<u8>> = (first..first + n).map(payload).collect();
    let parts: Vec<[&[u8]; 1]> = payloads.iter().map(|p| [p.as_slice()]).collect();
    let batch: Vec<NewRecord<'_>> =
        parts.iter().map(|parts| NewRecord { kind: 1, version: 1, parts }).collect();
    log.append(&batch)
}

fn payload(seq: u64) -> Vec<u8> {
    let mut out = seq.to_le_bytes().to_vec();
    out.resize(8 + (seq as usize * 37) % 700, seq as u8);
    out
}

fn check_records(records: &[Record], first: u64, last: u64) {
    assert_eq!(records.iter().map(|r| r.seq).collect::<Vec<_>>(), (first..=last).collect::<Vec<_>>());
    for record in records {
        assert_eq!(record.data, payload(record.seq));
    }
}

#[test]
fn reads_back_across_segments_and_restarts() {
    let (disk, mut log) = fresh();
    for _ in 0..30 {
        append(&mut log, 3).unwrap();
    }
    assert!(log.segment_count() > 5);
    drop(log);
    disk.kill();
    let (mut log, records) = open(&disk).unwrap();
    check_records(&records, 1, 90);
    assert_eq!(append(&mut log, 1).unwrap(), 91);
    drop(log);
    check_records(&open(&disk).unwrap().1, 1, 91);
}

#[test]
fn a_batch_is_one_sync() {
    let (disk, mut log) = fresh();
    let before = disk.syncs();
    append(&mut log, 5).unwrap();
    assert_eq!(disk.syncs() - before, 1);
    assert_eq!(append(&mut log, 0).unwrap(), 5);
    assert_eq!(disk.syncs() - before, 1, "an empty batch needs no sync");
}

#[test]
fn a_batch_larger_than_a_segment_fits() {
    let (disk, mut log) = fresh();
    append(&mut log, 50).unwrap();
    append(&mut log, 1).unwrap();
    drop(log);
    check_records(&open(&disk).unwrap().1, 1, 51);
}

/// What a killed process wrote and did not sync is read by the next, and stays even when power is lost then.
#[test]
fn what_was_read_once_is_there_for_good() {
    for seed in 0..300 {
        let (disk, mut log) = fresh();
        append(&mut log, 2).unwrap();
        disk.stop_after(1 + seed % 8);
        while append(&mut log, 3).is_ok() {}
        drop(log);
        disk.kill();
        let (_, first) = open(&disk).unwrap();
        disk.crash(seed);
        let (_, second) = open(&disk).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        assert_eq!(first, second, "seed {seed}");
    }
}

#[test]
fn a_segment_too_small_for_its_first_batch_is_replaced() {
    let (disk, mut log) = fresh();
    append(&mut log, 50).unwrap();
    append(&mut log, 50).unwrap();
    assert_eq!(log.segment_count(), 2);
    log.truncate_front(100).unwrap();
    append(&mut log, 1).unwrap();
    drop(log);
    check_records(&open(&disk).unwrap().1, 51, 101);
}

/// Whatever a crash leaves of an unacknowledged batch, the log opens, everything acknowledged is there, and
/// it goes on.
#[test]
fn a_crash_loses_nothing_acknowledged_and_never_blocks_the_opening() {
    let (mut torn, mut longer) = (0, 0);
    for seed in 0..3000u64 {
        let (disk, mut log) = fresh();
        let mut acknowledged = 0;
        for round in 0..3 {
            disk.stop_after((seed >> round) % 9);
            while let Ok(last) = append(&mut log, 1 + seed % 5) {
                acknowledged = last;
                if last > 60 {
                    break;
                }
            }
            drop(log);
            disk.crash(seed * 3 + round);
            let (reopened, records) =
                open(&disk).unwrap_or_else(|e| panic!("seed {seed} round {round}: {e}"));
            let last = records.last().map_or(0, |r| r.seq);
            assert!(last >= acknowledged, "seed {seed}: {acknowledged} were acknowledged, {last} found");
            torn += u64::from(last > acknowledged && !last.is_multiple_of(1 + seed % 5));
            longer += u64::from(last > acknowledged);
            check_records(&records, 1, last);
            log = reopened;
        }
        append(&mut log, 1).unwrap();
    }
    assert!(torn > 20 && longer > 100, "the test does not test: {torn} {longer}");
}

/// Any flipped bit in an acknowledged record, header or payload, is found, also in the newest batch, and the
/// files stay as they are.
#[test]
fn a_flipped_bit_in_an_acknowledged_record_refuses_and_touches_nothing() {
    let (disk, mut log) = fresh();
    for _ in 0..10 {
        append(&mut log, 2).unwrap();
    }
    drop(log);
    let dir = Path::new(DIR);
    let names = disk.list(dir).unwrap();
    let segments: Vec<PathBuf> =
        names.iter().filter(|name| name.ends_with(".log")).map(|n| dir.join(n)).collect();
    assert!(segments.len() >= 2);
    for path in &segments {
        let content = Bytes::from(disk.content(path).unwrap());
        let chain = segment::decode_header(path, &content).unwrap();
        let end = segment::scan(&content, chain).records.last().unwrap().payload.end;
        for offset in 0..end {
            // Padding between records carries nothing.
            let mut flipped = content.to_vec();
            flipped[offset] ^= 1;
            let flipped = Bytes::from(flipped);
            let harmless = segment::decode_header(path, &flipped).is_ok()
                && segment::scan(&flipped, chain).chain == segment::scan(&content, chain).chain;
            disk.flip_bit(path, offset, 0);
            let before = disk.files();
            match open(&disk).map(|_| ()) {
                Err(Error::Corrupt { path: named, .. }) => {
                    assert!(named.starts_with(DIR));
                    assert_eq!(before, disk.files(), "a refused log was changed");
                }
                Ok(()) if harmless => {}
                other => panic!("{} offset {offset}: {other:?}", path.display()),
            }
            disk.flip_bit(path, offset, 0);
        }
    }
    open(&disk).unwrap();
}

#[test]
fn a_missing_segment_refuses() {
    let (disk, mut log) = fresh();
    for _ in 0..20 {
        append(&mut log, 2).unwrap();
    }
    let middle = log.segments[2].path.clone();
    let last = log.segments.back().unwrap().path.clone();
    drop(log);
    for gone in [middle, last] {
        let copy = disk.content(&gone).unwrap();
        disk.remove(&gone).unwrap();
        assert!(matches!(open(&disk), Err(Error::Corrupt { .. })));
        disk.create(&gone).unwrap().write_at(0, &copy).unwrap();
        open(&disk).unwrap();
    }
}

#[test]
fn an_unknown_kind_or_version_refuses_and_touches_nothing() {
    for (kind, version) in [(2, 1), (1, 2)] {
        let (disk, mut log) = fresh();
        append(&mut log, 2).unwrap();
        log.append(&[NewRecord { kind, version, parts: &[b"new"] }]).unwrap();
        append(&mut log, 1).unwrap();
        drop(log);
        let before = disk.files();
        let refused = open(&disk).map(|_| ()).unwrap_err();
        assert!(matches!(&refused, Error::Unknown { what, .. } if what.contains(&format!("kind {kind}"))));
        assert_eq!(before, disk.files());
    }
}

#[test]
fn front_truncation_keeps_the_rest_and_survives_crashes() {
    for seed in 0..200u64 {
        let (disk, mut log) = fresh();
        for _ in 0..40 {
            append(&mut log, 2).unwrap();
        }
        disk.stop_after(seed % 12);
        let _ = log.truncate_front(50);
        drop(log);
        disk.crash(seed);
        let (mut log, records) = open(&disk).unwrap();
        let first = records[0].seq;
        assert!(first <= 50, "seed {seed}: record 50 is gone");
        check_records(&records, first, 80);
        log.truncate_front(50).unwrap();
        append(&mut log, 1).unwrap();
    }
}

#[test]
fn a_failed_write_or_sync_is_final_until_reopened() {
    for (op, fault) in [("sync", Fault::Eio), ("write", Fault::Enospc), ("preallocate", Fault::Enospc)] {
        let (disk, mut log) = fresh();
        append(&mut log, 2).unwrap();
        disk.fail(op, 0, fault);
        let mut last = 2;
        let failed = loop {
            match append(&mut log, 2) {
                Ok(seq) => last = seq,
                Err(e) => break e,
            }
        };
        assert!(matches!(failed, Error::Io { .. }), "{failed}");
        assert!(matches!(append(&mut log, 1), Err(Error::Poisoned { .. })));
        assert!(matches!(log.sync(), Err(Error::Poisoned { .. })));
        drop(log);
        disk.crash(7);
        let (mut log, records) = open(&disk).unwrap();
        assert!(records.len() as u64 >= last);
        append(&mut log, 1).unwrap();
    }
}

#[test]
fn without_sync_a_killed_process_loses_nothing_and_damage_is_found() {
    let disk = SimDisk::new();
    disk.create_dir_all(Path::new("/node")).unwrap();
    let open = || Log::open(Arc::new(disk.clone()), Path::new(DIR), options(SyncPolicy::Never));
    let (mut log, _) = open().unwrap();
    let syncs = disk.syncs();
    for _ in 0..4 {
        append(&mut log, 1).unwrap();
    }
    assert_eq!(disk.syncs(), syncs);
    drop(log);
    disk.kill();
    let (log, records) = open().unwrap();
    check_records(&records, 1, 4);
    let path = log.segments[0].path.clone();
    let end = log.end as usize;
    drop(log);
    disk.flip_bit(&path, end - 9, 0);
    assert!(matches!(open(), Err(Error::Corrupt { .. })));
}

#[test]
fn works_on_the_real_file_system() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("log");
    let disk: Arc<dyn Disk> = Arc::new(FsDisk);
    let open = || Log::open(Arc::clone(&disk), &dir, options(SyncPolicy::Always));
    let (mut log, _) = open().unwrap();
    for _ in 0..30 {
        append(&mut log, 2).unwrap();
    }
    log.truncate_front(20).unwrap();
    drop(log);
    let (log, records) = open().unwrap();
    check_records(&records, records[0].seq, 60);
    assert!(records[0].seq > 1 && records[0].seq <= 20);
    drop(log);
    let _lock = disk.lock(&temp.path().join("lock")).unwrap();
    assert_eq!(disk.lock(&temp.path().join("lock")).err().map(|e| e.kind()), Some(io::ErrorKind::WouldBlock));
}
