use proffer_types::{Reason, Source, Status, TaskState};
use proffer_wal::FsDisk;

use super::*;
use crate::core::stories::order;

const BOOT: BootId = BootId(1);

fn open(dir: &Path, boot: BootId) -> Result<(Store, Recovered), Error> {
    Store::open(Arc::new(FsDisk), dir, boot)
}

fn identity() -> Identity {
    Identity {
        agent: Some(AgentId(9)),
        instance: RequestId(77),
        cluster: Some(ClusterId([3; 16])),
        epoch: Epoch { generation: 2, term: 40 },
        boot_id: BOOT,
    }
}

fn records() -> Vec<Record> {
    let mut status = Status::new(TaskState::Failed, Reason::ExitCode, Source::Task);
    (status.task_seq, status.exit_code, status.wall_ms) = (2, Some(7), 5);
    status.message = "so".into();
    let launch = LaunchId(100);
    let kill = KillOrder { grace_ms: 5, agent_seq: 2, reason: Reason::KilledByOperator };
    vec![
        Record::Launch(Box::new(order(1, 100))),
        Record::Assigned { launch, instance: InstanceId(4) },
        Record::Kill { launch, order: kill },
        Record::Status { launch, status },
        Record::Forget(launch),
        Record::Forgotten(launch),
        Record::Seen(8),
    ]
}

#[test]
fn what_was_written_is_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, found) = open(dir.path(), BOOT).unwrap();
    assert!(found.identity.is_none() && found.records.is_empty());
    store.write_identity(&identity()).unwrap();
    for record in records() {
        store.append(&[record]).unwrap();
    }
    drop(store);
    let (_store, found) = open(dir.path(), BOOT).unwrap();
    assert_eq!(found.identity, Some(identity()));
    assert_eq!(found.records, records());
}

/// Its files as the first release wrote them, for ever: an upgraded agent takes up what it left.
#[test]
fn what_the_first_release_wrote_is_found_again() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("checkpoint")).unwrap();
    // A segment is made at its full length, of zeros.
    let mut segment = include_bytes!("../tests/golden/first_release.checkpoint").to_vec();
    segment.resize(SEGMENT_BYTES as usize, 0);
    for (name, bytes) in [
        ("identity", &include_bytes!("../tests/golden/first_release.identity")[..]),
        ("checkpoint/settled", include_bytes!("../tests/golden/first_release.settled")),
        ("checkpoint/0000000000000001.log", &segment),
    ] {
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    let (_store, found) = open(dir.path(), BOOT).unwrap();
    assert_eq!(found.identity, Some(identity()));
    let written = records();
    assert_eq!(found.records, written[..found.records.len()]);
    assert_eq!(found.records.len(), 7, "all that it wrote");
}

#[test]
fn a_second_agent_on_the_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path(), BOOT).unwrap();
    let error = open(dir.path(), BOOT).err().expect("locked").to_string();
    assert!(error.contains(dir.path().to_str().unwrap()), "{error}");
    drop(first);
    assert!(open(dir.path(), BOOT).is_ok());
}

#[test]
fn after_a_reboot_the_checkpoint_is_discarded_unread() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = open(dir.path(), BOOT).unwrap();
    store.write_identity(&identity()).unwrap();
    store.append(&records()).unwrap();
    drop(store);
    // It could not even be read.
    for entry in std::fs::read_dir(dir.path().join("checkpoint")).unwrap() {
        std::fs::write(entry.unwrap().path(), b"what the disk had kept of it").unwrap();
    }
    assert!(open(dir.path(), BOOT).is_err());
    let (_store, found) = open(dir.path(), BootId(2)).unwrap();
    assert_eq!((found.identity, found.records), (Some(identity()), Vec::new()));
}

#[test]
fn a_rewritten_checkpoint_replaces_what_was_before() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = open(dir.path(), BOOT).unwrap();
    store.write_identity(&identity()).unwrap();
    for n in 0..SURPLUS_MAX {
        assert!(!store.wants_rewriting());
        store.append(&[Record::Seen(n)]).unwrap();
    }
    store.append(&[Record::Seen(0)]).unwrap();
    assert!(store.wants_rewriting());
    store.rewrite(&records()).unwrap();
    assert!(!store.wants_rewriting());
    store.append(&[Record::Seen(9)]).unwrap();
    drop(store);
    let (_store, found) = open(dir.path(), BOOT).unwrap();
    let mut expected = records();
    expected.push(Record::Seen(9));
    assert_eq!(found.records, expected);
}

#[test]
fn a_long_list_of_what_is_needed_is_not_rewritten_again_and_again() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = open(dir.path(), BOOT).unwrap();
    store.write_identity(&identity()).unwrap();
    let needed: Vec<Record> = (0..4 * SURPLUS_MAX).map(Record::Seen).collect();
    store.append(&needed).unwrap();
    assert!(store.wants_rewriting());
    store.rewrite(&needed).unwrap();
    for record in &needed {
        assert!(!store.wants_rewriting(), "one rewriting pays for thousands of records");
        store.append(std::slice::from_ref(record)).unwrap();
    }
}

#[test]
fn nobody_else_may_read_what_tasks_are_given() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = open(dir.path(), BOOT).unwrap();
    store.append(&records()).unwrap();
    let files: Vec<_> = std::fs::read_dir(dir.path().join("checkpoint")).unwrap().flatten().collect();
    assert!(!files.is_empty());
    for file in files {
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o077, 0, "{:?}", file.path());
    }
}

#[test]
fn a_rewriting_that_was_cut_off_is_void() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = open(dir.path(), BOOT).unwrap();
    store.write_identity(&identity()).unwrap();
    store.append(&records()).unwrap();
    store.append_encoded(&[(kind::REWRITE, Vec::new()), encode(&Record::Seen(1))]).unwrap();
    drop(store);
    let (mut store, found) = open(dir.path(), BOOT).unwrap();
    assert_eq!(found.records, records());
    store.append(&[Record::Seen(10)]).unwrap();
    drop(store);
    let (_store, found) = open(dir.path(), BOOT).unwrap();
    assert_eq!(found.records.last(), Some(&Record::Seen(10)));
    assert_eq!(found.records.len(), records().len() + 1);
}
