//! What the agent finds again after its own death.
//!
//! ```text
//! <work-dir>/
//!   lock           held by the running daemon: a second one on the same directory is refused
//!   identity       agent id, installation, cluster, greatest leadership, boot id; replaced durably (fsync) on change
//!   checkpoint/    what was ordered and said, in the order in which it was: a record log, written without fsync
//!     <first record's number>.log
//!   sandboxes/ logs/                 the containerizer's
//! <runtime-dir>/   the supervisors' sockets and records: gone with the host, as what they tell of
//! ```
//!
//! `write()` survives every process, and the host's own death is told by the boot id in `identity`: then the
//! checkpoint is removed unread, because any part of it may be missing and nothing it tells of is left.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use proffer_containerizer::InstanceId;
use proffer_types::event::{AgentOrder, AgentReport};
use proffer_types::task::KillOrder;
use proffer_types::{AgentId, BootId, ClusterId, Epoch, LaunchId, Reason, RequestId};
use proffer_wal::{Disk, Log, NewRecord, Options, SyncPolicy, read_sealed, write_sealed};
use proffer_wire::agent::v1 as pb;
use proffer_wire::{from_proto, to_proto};
use prost::Message;

use crate::core::{Identity, Record};

/// Names the identity file.
const IDENTITY_MAGIC: [u8; 4] = *b"PRai";
const IDENTITY_VERSION: u16 = 1;
/// 8 + 16 + 1 + 16 + 2 + 8 + 16.
const IDENTITY_BYTES: usize = 67;

/// About ten thousand launches with their statuses; a new segment costs two fsyncs.
const SEGMENT_BYTES: u64 = 4 << 20;
/// A checkpoint is rewritten when it has this many records more than are needed, so that one rewriting pays for
/// thousands of appends and a restart reads a bounded number.
const SURPLUS_MAX: u64 = 8_192;

mod kind {
    pub(super) const LAUNCH: u8 = 1;
    pub(super) const KILL: u8 = 2;
    pub(super) const SEEN: u8 = 3;
    pub(super) const STATUS: u8 = 4;
    pub(super) const FORGET: u8 = 5;
    pub(super) const FORGOTTEN: u8 = 6;
    pub(super) const ASSIGNED: u8 = 7;
    /// What follows, up to `REWRITTEN`, replaces all before.
    pub(super) const REWRITE: u8 = 8;
    pub(super) const REWRITTEN: u8 = 9;
    pub(super) const HANDED: u8 = 10;
    pub(super) const HEARD: u8 = 11;
    pub(super) const CONDEMNED: u8 = 12;
}

const KINDS: &[(u8, u8)] = &[
    (kind::LAUNCH, 1),
    (kind::KILL, 1),
    (kind::SEEN, 1),
    (kind::STATUS, 1),
    (kind::FORGET, 1),
    (kind::FORGOTTEN, 1),
    (kind::ASSIGNED, 1),
    (kind::REWRITE, 1),
    (kind::REWRITTEN, 1),
    (kind::HANDED, 1),
    (kind::HEARD, 1),
    (kind::CONDEMNED, 1),
];

/// Why what an earlier life left cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk, or what lies on it.
    #[error(transparent)]
    Wal(#[from] proffer_wal::Error),
    /// A directory cannot be made or removed.
    #[error("{operation} {}", path.display())]
    Directory {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Another agent runs on the directory.
    #[error("another agent runs on the work directory {}: stop it first, or choose another --work-dir", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// A record's checksum is right but its content is not.
    #[error("{}: record {seq} cannot be read ({why}); the files were left as they are", path.display())]
    Record {
        /// The checkpoint.
        path: PathBuf,
        /// The record's number.
        seq: u64,
        /// What is wrong.
        why: String,
    },
}

/// The work directory of a running agent.
pub struct Store {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    log: Log,
    /// Records in the log.
    appended: u64,
    /// How many of them the last rewriting found needed; 0 before the first.
    rewritten: u64,
    _lock: Box<dyn Send + Sync>,
}

/// What an earlier life of the agent left.
#[derive(Debug)]
pub struct Recovered {
    /// Who it is, if it ran here before.
    pub identity: Option<Identity>,
    /// What it had written down in this life of the host.
    pub records: Vec<Record>,
}

impl Store {
    /// Opens the work directory `dir`, making it if it is not there.
    pub fn open(disk: Arc<dyn Disk>, dir: &Path, boot_id: BootId) -> Result<(Self, Recovered), Error> {
        let directory = |operation, source| Error::Directory { operation, path: dir.into(), source };
        disk.create_dir_all(dir).map_err(|e| directory("make the work directory", e))?;
        let lock = disk.lock(&dir.join("lock")).map_err(|e| match e.kind() {
            std::io::ErrorKind::WouldBlock => Error::Locked { path: dir.into() },
            _ => directory("lock the work directory", e),
        })?;
        let sealed = read_sealed(disk.as_ref(), &dir.join("identity"), IDENTITY_MAGIC, IDENTITY_VERSION)?;
        let identity = match sealed {
            None => None,
            Some((_, body)) => Some(decode_identity(&body).ok_or_else(|| Error::Record {
                path: dir.join("identity"),
                seq: 0,
                why: format!("{} bytes where {IDENTITY_BYTES} are expected", body.len()),
            })?),
        };
        let checkpoint = dir.join("checkpoint");
        if identity.as_ref().is_none_or(|identity| identity.boot_id != boot_id) {
            discard(disk.as_ref(), &checkpoint)?;
        }
        let options = Options { segment_bytes: SEGMENT_BYTES, sync: SyncPolicy::Never, kinds: KINDS };
        let (log, read) = Log::open(disk.clone(), &checkpoint, options)?;
        let appended = read.len() as u64;
        let (records, cut_off) = decode_records(&checkpoint, read)?;
        let mut store = Self { disk, dir: dir.into(), log, appended, rewritten: 0, _lock: lock };
        if cut_off {
            // What comes next must not be taken for the rest of it.
            store.rewrite(&records)?;
        }
        Ok((store, Recovered { identity, records }))
    }

    /// Replaces the identity, durably.
    pub fn write_identity(&self, identity: &Identity) -> Result<(), Error> {
        let path = self.dir.join("identity");
        let body = encode_identity(identity);
        Ok(write_sealed(self.disk.as_ref(), &path, IDENTITY_MAGIC, IDENTITY_VERSION, &body)?)
    }

    /// Appends records in order, in one write.
    pub fn append(&mut self, records: &[Record]) -> Result<(), Error> {
        self.append_encoded(&records.iter().map(encode).collect::<Vec<_>>())
    }

    /// Whether the checkpoint has become so long that it should be rewritten: far longer than rewriting left it, or
    /// a node with many tasks would rewrite it with every step.
    pub fn wants_rewriting(&self) -> bool {
        self.appended > SURPLUS_MAX + 2 * self.rewritten
    }

    /// Replaces all records by `records`. A crash in the middle leaves the old ones in force.
    pub fn rewrite(&mut self, records: &[Record]) -> Result<(), Error> {
        let first = self.log.next_seq();
        let mut encoded = vec![(kind::REWRITE, Vec::new())];
        encoded.extend(records.iter().map(encode));
        encoded.push((kind::REWRITTEN, Vec::new()));
        self.appended = 0;
        self.append_encoded(&encoded)?;
        self.rewritten = self.appended;
        Ok(self.log.truncate_front(first)?)
    }

    fn append_encoded(&mut self, records: &[(u8, Vec<u8>)]) -> Result<(), Error> {
        let parts: Vec<[&[u8]; 1]> = records.iter().map(|(_, payload)| [payload.as_slice()]).collect();
        let batch: Vec<NewRecord<'_>> = records
            .iter()
            .zip(&parts)
            .map(|((kind, _), parts)| NewRecord { kind: *kind, version: 1, parts })
            .collect();
        self.log.append(&batch)?;
        self.appended += records.len() as u64;
        Ok(())
    }
}

/// Removes the checkpoint without reading it, newest segment first, so that a crash in the middle leaves something
/// that is discarded again and never something that looks whole.
fn discard(disk: &dyn Disk, checkpoint: &Path) -> Result<(), Error> {
    let failed = |operation, source| Error::Directory { operation, path: checkpoint.into(), source };
    let mut names = match disk.list(checkpoint) {
        Ok(names) => names,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed("list", e)),
    };
    names.sort();
    for name in names.iter().rev() {
        disk.remove(&checkpoint.join(name)).map_err(|e| failed("empty", e))?;
    }
    disk.sync_dir(checkpoint).map_err(|e| failed("sync", e))
}

/// The records in force, and whether a rewriting was cut off by a crash: that one is void, because what it was to
/// replace is whole.
fn decode_records(checkpoint: &Path, read: Vec<proffer_wal::Record>) -> Result<(Vec<Record>, bool), Error> {
    let mut records = Vec::with_capacity(read.len());
    let mut rewriting: Option<Vec<Record>> = None;
    for raw in read {
        match raw.kind {
            kind::REWRITE => rewriting = Some(Vec::new()),
            kind::REWRITTEN => records = rewriting.take().unwrap_or_default(),
            _ => {
                let record = decode(raw.kind, &raw.data).map_err(|why| Error::Record {
                    path: checkpoint.into(),
                    seq: raw.seq,
                    why,
                })?;
                rewriting.as_mut().unwrap_or(&mut records).push(record);
            }
        }
    }
    Ok((records, rewriting.is_some()))
}

/// Launches and statuses are kept as the protocol has them, so that one decoder serves both; the rest are integers,
/// little-endian.
fn encode(record: &Record) -> (u8, Vec<u8>) {
    let numbers = |list: &[u64]| list.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>();
    match record {
        Record::Launch(order) => {
            let items = to_proto::agent_order(&AgentOrder::Launch(order.clone()));
            (kind::LAUNCH, to_proto::master_message(Epoch::default(), items).encode_to_vec())
        }
        Record::Kill { launch, order } => {
            let reason = u64::from(order.reason.number());
            (kind::KILL, numbers(&[launch.0, order.agent_seq, order.grace_ms, reason]))
        }
        Record::Seen(seq) => (kind::SEEN, numbers(&[*seq])),
        Record::Status { launch, status } => {
            let report = AgentReport::Status { launch: *launch, status: status.clone() };
            (kind::STATUS, to_proto::agent_message(None, None, &[report]).encode_to_vec())
        }
        Record::Forget(launch) => (kind::FORGET, numbers(&[launch.0])),
        Record::Forgotten(launch) => (kind::FORGOTTEN, numbers(&[launch.0])),
        Record::Assigned { launch, instance } => (kind::ASSIGNED, numbers(&[launch.0, instance.0])),
        Record::Handed(launch) => (kind::HANDED, numbers(&[launch.0])),
        Record::Heard { launch, seq } => (kind::HEARD, numbers(&[launch.0, (*seq).into()])),
        Record::Condemned { launch, reason } => {
            (kind::CONDEMNED, numbers(&[launch.0, u64::from(reason.number())]))
        }
    }
}

fn decode(kind: u8, payload: &[u8]) -> Result<Record, String> {
    match kind {
        kind::LAUNCH => {
            let message = pb::MasterMessage::decode(payload).map_err(|e| e.to_string())?;
            let (_, mut orders) = from_proto::master_message(message).map_err(|e| e.to_string())?;
            match (orders.pop(), orders.pop()) {
                (Some(AgentOrder::Launch(order)), None) => Ok(Record::Launch(order)),
                // Each member of a group has a record of its own.
                (Some(AgentOrder::LaunchGroup(mut orders)), None) if orders.len() == 1 => {
                    Ok(Record::Launch(Box::new(orders.remove(0))))
                }
                _ => Err("not a launch".into()),
            }
        }
        kind::STATUS => {
            let message = pb::AgentMessage::decode(payload).map_err(|e| e.to_string())?;
            let mut reports = from_proto::agent_message(message).map_err(|e| e.to_string())?.reports;
            match (reports.pop(), reports.pop()) {
                (Some(AgentReport::Status { launch, status }), None) => Ok(Record::Status { launch, status }),
                _ => Err("not a status".into()),
            }
        }
        kind::KILL => {
            let [launch, agent_seq, grace_ms, reason] = numbers(payload)?;
            let reason = self::reason(reason)?;
            Ok(Record::Kill { launch: LaunchId(launch), order: KillOrder { grace_ms, agent_seq, reason } })
        }
        kind::SEEN => numbers(payload).map(|[seq]| Record::Seen(seq)),
        kind::FORGET => numbers(payload).map(|[launch]| Record::Forget(LaunchId(launch))),
        kind::FORGOTTEN => numbers(payload).map(|[launch]| Record::Forgotten(LaunchId(launch))),
        kind::ASSIGNED => numbers(payload).map(|[launch, instance]| Record::Assigned {
            launch: LaunchId(launch),
            instance: InstanceId(instance),
        }),
        kind::HANDED => numbers(payload).map(|[launch]| Record::Handed(LaunchId(launch))),
        kind::HEARD => {
            let [launch, seq] = numbers(payload)?;
            let seq = u32::try_from(seq).map_err(|_| "a number too large".to_owned())?;
            Ok(Record::Heard { launch: LaunchId(launch), seq })
        }
        kind::CONDEMNED => {
            let [launch, reason] = numbers(payload)?;
            Ok(Record::Condemned { launch: LaunchId(launch), reason: self::reason(reason)? })
        }
        _ => Err(format!("kind {kind} is not known")),
    }
}

fn reason(number: u64) -> Result<Reason, String> {
    i32::try_from(number).ok().and_then(Reason::from_number).ok_or_else(|| "no such reason".to_owned())
}

fn numbers<const N: usize>(payload: &[u8]) -> Result<[u64; N], String> {
    if payload.len() != 8 * N {
        return Err(format!("{} bytes where {} are expected", payload.len(), 8 * N));
    }
    let mut out = [0; N];
    for (number, bytes) in out.iter_mut().zip(payload.chunks_exact(8)) {
        *number = u64::from_le_bytes(bytes.try_into().expect("chunks of eight"));
    }
    Ok(out)
}

fn encode_identity(identity: &Identity) -> Vec<u8> {
    let mut out = Vec::with_capacity(IDENTITY_BYTES);
    out.extend(identity.agent.unwrap_or_default().0.to_le_bytes());
    out.extend(identity.instance.0.to_le_bytes());
    out.push(identity.cluster.is_some().into());
    out.extend(identity.cluster.unwrap_or_default().0);
    out.extend(identity.epoch.generation.to_le_bytes());
    out.extend(identity.epoch.term.to_le_bytes());
    out.extend(identity.boot_id.0.to_le_bytes());
    out
}

fn decode_identity(body: &[u8]) -> Option<Identity> {
    let mut rest = body;
    let agent = u64::from_le_bytes(take(&mut rest)?);
    let instance = u128::from_le_bytes(take(&mut rest)?);
    let [joined] = take::<1>(&mut rest)?;
    let cluster: [u8; 16] = take(&mut rest)?;
    let generation = u16::from_le_bytes(take(&mut rest)?);
    let term = u64::from_le_bytes(take(&mut rest)?);
    let boot_id = u128::from_le_bytes(take(&mut rest)?);
    rest.is_empty().then(|| Identity {
        agent: (agent != 0).then_some(AgentId(agent)),
        instance: RequestId(instance),
        cluster: (joined != 0).then_some(ClusterId(cluster)),
        epoch: Epoch { generation, term },
        boot_id: BootId(boot_id),
    })
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk::<N>()?;
    *rest = tail;
    Some(*head)
}

#[cfg(test)]
#[path = "recover_tests.rs"]
mod tests;
