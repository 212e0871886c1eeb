//! The words that the core, the store and the driver share.

use bytes::{Buf, BufMut, Bytes};
use proffer_wal::{Manifest, SegmentRef};

/// An entry of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its place, from 1.
    pub index: u64,
    /// The term of the leader that proposed it.
    pub term: u64,
    /// What was proposed. Empty for the entry with which each leadership begins: it means nothing, but it
    /// has an index.
    pub data: Bytes,
}

/// What a node must remember of its promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HardState {
    /// The newest term seen.
    pub term: u64,
    /// The candidate voted for in that term; 0 for none.
    pub vote: u64,
    /// An index known to be committed. May be old: a newer one needs no write of its own.
    pub commit: u64,
}

/// What a node is at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Follows, or knows no leader.
    Follower,
    /// Tries to become leader.
    Candidate,
    /// Leads, in name: see [`RoleChange::gate_open`].
    Leader,
}

/// A change of role, term or leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoleChange {
    /// The node's term.
    pub term: u64,
    /// Its role.
    pub role: Role,
    /// The leader of that term, if the node knows one.
    pub leader: Option<u64>,
    /// Whether the node leads and has applied the first entry of its own term, hence everything that any
    /// earlier leader can have acknowledged. Only then are proposals taken and reads confirmed.
    pub gate_open: bool,
}

/// Why a proposal was not taken. Such a proposal is in no log, for certain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// This node does not lead.
    #[error("this node does not lead")]
    NotLeader,
    /// This node has just been elected and has not yet applied the first entry of its term.
    #[error("this leader has not yet applied the first entry of its term")]
    GateClosed,
    /// The proposal was made for another term than the node's.
    #[error("the proposal was made for another term")]
    OtherTerm,
    /// Too many bytes wait to be committed or applied.
    #[error("too many bytes wait to be committed or applied")]
    Busy,
    /// An entry must not be empty: it would look like the first one of a leadership.
    #[error("an entry must not be empty")]
    Empty,
    /// The entry is over [`crate::core::ENTRY_BYTES_MAX`].
    #[error("the entry is too large")]
    TooLarge,
}

/// What became of a proposal. Losing the leadership is *not* an outcome: the next leader may hold the entry
/// and commit it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Not taken; in no log.
    Refused(Refused),
    /// Committed at this index.
    Committed(u64),
    /// Never to be committed: an entry of a later term was applied while it was open, and terms only grow
    /// along a log.
    Failed,
    /// Nobody here can know: a snapshot covers its index, or the node stops.
    Unknown,
}

/// A snapshot of the state machine: what it is of, and the segments it consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The last entry it contains.
    pub index: u64,
    /// That entry's term.
    pub term: u64,
    /// The voters as of that entry, sorted.
    pub voters: Vec<u64>,
    /// The segments, in order.
    pub segments: Vec<SegmentRef>,
}

impl Snapshot {
    /// As a manifest whose `meta` is index (8), term (8), number of voters (4) and the voters (8 each).
    pub fn to_manifest(&self) -> Manifest {
        let mut meta = Vec::with_capacity(20 + 8 * self.voters.len());
        meta.put_u64_le(self.index);
        meta.put_u64_le(self.term);
        meta.put_u32_le(self.voters.len() as u32);
        self.voters.iter().for_each(|voter| meta.put_u64_le(*voter));
        Manifest { meta: meta.into(), segments: self.segments.clone() }
    }

    /// From such a manifest; `None` if it is not one.
    pub fn from_manifest(manifest: Manifest) -> Option<Snapshot> {
        let mut meta = manifest.meta.as_ref();
        let index = meta.try_get_u64_le().ok()?;
        let term = meta.try_get_u64_le().ok()?;
        let count = meta.try_get_u32_le().ok()?;
        if meta.len() != count as usize * 8 {
            return None;
        }
        let voters = (0..count).map(|_| meta.get_u64_le()).collect();
        Some(Snapshot { index, term, voters, segments: manifest.segments })
    }

    /// The sum of the segments' lengths.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }
}
