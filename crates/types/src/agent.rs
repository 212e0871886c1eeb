//! Agents: the nodes of the cluster.

use std::collections::{BTreeMap, BTreeSet};

use crate::{AgentId, BootId, ClusterTime, LaunchId, RequestId, Resources};

/// The value of an agent's attribute.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AttributeValue {
    /// Any text.
    Text(String),
    /// A number in thousandths.
    Milli(i64),
}

/// What an agent says of its node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct AgentInfo {
    /// For display and for frameworks' own placement rules.
    pub hostname: String,
    /// Everything the node offers.
    pub resources: Resources,
    /// Facts about the node, for placement.
    pub attributes: BTreeMap<String, AttributeValue>,
    /// Names of the task features that this agent understands; it is not offered for specs that need others.
    pub features: BTreeSet<String>,
    /// The isolation it gives by default: `linux` or `process`.
    pub isolation: String,
    /// The program version, for display.
    pub version: String,
}

/// Where an agent is in its life.
///
/// ```text
/// register ─► Reachable ◄──► Unreachable ──(expiry)──► removed (no record)
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AgentState {
    /// Answers pings, or did until a moment ago.
    Reachable,
    /// Missed its ping budget. Its tasks may still run.
    Unreachable {
        /// When it was marked.
        since: ClusterTime,
    },
}

/// An agent's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    /// Its id.
    pub id: AgentId,
    /// What it last said of itself.
    pub info: AgentInfo,
    /// Its random instance number, by which a repeated registration is recognised.
    pub instance: RequestId,
    /// The host's life in which it last attached.
    pub boot_id: BootId,
    /// Where it is in its life.
    pub state: AgentState,
    /// The number of the last launch or kill assigned to it. Numbers of one agent rise by one.
    pub last_seq: u64,
    /// What its non-terminal tasks hold.
    pub used: Resources,
    /// Rises with each attachment; a message of an older attachment is void.
    pub attachment: u64,
    /// When it registered.
    pub registered_at: ClusterTime,
    /// Wall time of the registration, for display (milliseconds since 1970).
    pub registered_wall_ms: u64,
}

impl Agent {
    /// Whether tasks can be sent to it, as far as the replicated state knows.
    pub fn is_reachable(&self) -> bool {
        self.state == AgentState::Reachable
    }

    /// What is neither used nor, as the record knows, promised; `None` if more is used than there is.
    pub fn free(&self) -> Option<Resources> {
        self.info.resources.checked_sub(&self.used).ok()
    }
}

/// Hash of what an agent holds: its launches in ascending order, each with the newest `task_seq` that the agent gave
/// a status of it (0 for none yet). Agent and registry compute it alike, and list the launches only if it differs.
///
/// It is FNV-1a (64 bits) over the little-endian bytes of each id and number, stirred at the end; it guards against
/// loss, not against a liar.
pub fn holdings_digest(holdings: impl IntoIterator<Item = (LaunchId, u32)>) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for (launch, task_seq) in holdings {
        for byte in launch.0.to_le_bytes().into_iter().chain(task_seq.to_le_bytes()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holdings_differ_by_launch_and_by_status() {
        let of = |items: &[(u64, u32)]| holdings_digest(items.iter().map(|(l, s)| (LaunchId(*l), *s)));
        let all = [of(&[]), of(&[(1, 0)]), of(&[(1, 1)]), of(&[(2, 0)]), of(&[(1, 0), (2, 0)])];
        for (i, a) in all.iter().enumerate() {
            assert!(!all[i + 1..].contains(a));
        }
        // Agents and masters of different versions must agree.
        assert_eq!(of(&[(1, 2), (3, 4)]), 0xd634_8142_45f0_394e);
    }
}
