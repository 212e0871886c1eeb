//! Frameworks: the programs that decide what runs.

use std::collections::BTreeMap;

use crate::caller::Caller;
use crate::{ClusterTime, FrameworkId, RequestId, Role, SessionId};

/// What a framework says of itself when it subscribes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct FrameworkInfo {
    /// For display; need not be unique.
    pub name: String,
    /// The Unix user its tasks run as unless they say otherwise; empty for `nobody`. Cannot change.
    pub user: String,
    /// The roles in which it wants offers; at least one, no duplicates.
    pub roles: Vec<Role>,
    /// How long its tasks live on after it disconnects (milliseconds); 0 ends them at once.
    pub failover_timeout_ms: u64,
    /// Whether the cluster acknowledges for it and completes it once it is disconnected and all its tasks, at least
    /// one, are terminal.
    pub ends_with_tasks: bool,
    /// The host it runs on, for display.
    pub hostname: String,
    /// Anything, for display and search.
    pub labels: BTreeMap<String, String>,
}

/// Where a framework is in its life.
///
/// ```text
/// subscribe ─► Connected ◄──► Disconnected ──(deadline, teardown)──► Completed ──(history full)──► no record
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FrameworkState {
    /// Has an event stream, as far as is known.
    Connected,
    /// Has none.
    Disconnected {
        /// When it is completed unless it returns.
        deadline: ClusterTime,
    },
    /// Gone for good; the record goes with its last task.
    Completed {
        /// When it was completed.
        at: ClusterTime,
    },
}

/// A framework's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Framework {
    /// Its id.
    pub id: FrameworkId,
    /// What it last said of itself.
    pub info: FrameworkInfo,
    /// Who registered it; cannot change.
    pub owner: Caller,
    /// The random number of the Subscribe that made it: a repetition finds it instead of making another.
    pub origin: RequestId,
    /// The session whose calls are obeyed.
    pub session: SessionId,
    /// Where it is in its life.
    pub state: FrameworkState,
    /// Why it was completed, empty before.
    pub completion_reason: String,
    /// Whether it ever launched a task.
    pub launched: bool,
    /// How many of its tasks are not terminal.
    pub live_tasks: u64,
    /// Bytes of the distinct specs its tasks refer to.
    pub spec_bytes: u64,
    /// When it registered.
    pub registered_at: ClusterTime,
    /// Wall time of the registration, for display (milliseconds since 1970).
    pub registered_wall_ms: u64,
}

impl Framework {
    /// Whether it is gone for good.
    pub fn is_completed(&self) -> bool {
        matches!(self.state, FrameworkState::Completed { .. })
    }
}
