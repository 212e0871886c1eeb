//! What operators see: rows of lists and the cluster at a glance. The master makes them of its records, the tools of
//! what they receive.

use std::collections::{BTreeMap, BTreeSet};

use proffer_types::event::Group;
use proffer_types::{
    AgentId, AttributeValue, ClusterId, ClusterTime, FrameworkId, FrameworkInfo, LaunchId, MasterId,
    Resources, Role, Status, TaskId, TaskState,
};

/// The state that an answer was read from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ViewStamp {
    /// The log index.
    pub index: u64,
    /// The cluster's time.
    pub time: ClusterTime,
    /// The cluster.
    pub cluster: ClusterId,
}

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadOptions {
    /// The state must include this log index.
    pub min_index: u64,
    /// The state must include everything acknowledged before the call.
    pub linearizable: bool,
}

/// Which rows of a list are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// Most rows, at least 1.
    pub size: usize,
    /// Where the page before ended.
    pub after: Option<PageToken>,
}

/// Where a page ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageToken {
    /// The log index of the view it was read from.
    pub index: u64,
    /// The key of its last row.
    pub last: u64,
}

impl PageToken {
    /// The text that clients give back.
    pub fn text(self) -> String {
        format!("{:x}.{:x}", self.index, self.last)
    }

    /// Reads the text.
    pub fn parse(text: &str) -> Option<Self> {
        let (index, last) = text.split_once('.')?;
        let number = |digits: &str| {
            (digits.len() <= 16 && digits.bytes().all(|b| b.is_ascii_hexdigit())).then_some(())?;
            u64::from_str_radix(digits, 16).ok()
        };
        Some(Self { index: number(index)?, last: number(last)? })
    }
}

/// Which tasks are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskFilter {
    /// Only of this framework.
    pub framework: Option<FrameworkId>,
    /// Only on this agent.
    pub agent: Option<AgentId>,
    /// Only in these states; empty for all.
    pub states: BTreeSet<TaskState>,
    /// Only with this id.
    pub task_id: Option<TaskId>,
}

/// A task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskRow {
    /// The framework's name for it.
    pub task_id: TaskId,
    /// Whose.
    pub framework: FrameworkId,
    /// Where.
    pub agent: AgentId,
    /// For display.
    pub name: String,
    /// In which role.
    pub role: Role,
    /// Its newest status.
    pub status: Status,
    /// What it holds, or held.
    pub resources: Resources,
    /// Wall time of the acceptance (milliseconds since 1970).
    pub created_ms: u64,
    /// Wall time of the first RUNNING.
    pub started_ms: Option<u64>,
    /// Wall time of the end.
    pub finished_ms: Option<u64>,
    /// Unique for ever.
    pub launch: LaunchId,
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// The Unix user it was asked to run as; empty for `nobody`.
    pub user: String,
    /// The agent's host.
    pub hostname: String,
    /// Whether it is terminal and acknowledged.
    pub retired: bool,
    /// The group it starts and ends with.
    pub group: Option<Group>,
    /// The executor that runs it; empty if it is a command.
    pub executor: String,
    /// Whether it has a terminal.
    pub terminal: bool,
}

/// An executor of a framework on an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecutorRow {
    /// The framework's name for it.
    pub executor: String,
    /// Whose.
    pub framework: FrameworkId,
    /// Where.
    pub agent: AgentId,
    /// Unique for ever.
    pub launch: LaunchId,
    /// In which role.
    pub role: Role,
    /// Its newest status.
    pub status: Status,
    /// What it holds, or held, besides its tasks.
    pub resources: Resources,
    /// Wall time of the acceptance (milliseconds since 1970).
    pub created_ms: u64,
    /// Wall time of the first RUNNING.
    pub started_ms: Option<u64>,
    /// Wall time of the end.
    pub finished_ms: Option<u64>,
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// The Unix user it was asked to run as; empty for `nobody`.
    pub user: String,
    /// The agent's host.
    pub hostname: String,
    /// Its tasks that are not terminal.
    pub live_tasks: u64,
}

/// An agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentRow {
    /// Its id.
    pub id: AgentId,
    /// Its host.
    pub hostname: String,
    /// `REACHABLE` or `UNREACHABLE`.
    pub state: String,
    /// Whether it has a session with the leader.
    pub connected: bool,
    /// Everything it has.
    pub total: Resources,
    /// What tasks hold.
    pub used: Resources,
    /// What is held out in offers.
    pub offered: Resources,
    /// Facts about it.
    pub attributes: BTreeMap<String, AttributeValue>,
    /// The isolation it gives.
    pub isolation: String,
    /// The program's version.
    pub version: String,
    /// Wall time of its registration (milliseconds since 1970).
    pub registered_ms: u64,
    /// Its tasks that are not terminal.
    pub live_tasks: u64,
    /// Features it understands.
    pub features: BTreeSet<String>,
}

/// A framework.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameworkRow {
    /// Its id.
    pub id: FrameworkId,
    /// What it says of itself.
    pub info: FrameworkInfo,
    /// `CONNECTED`, `DISCONNECTED` or `COMPLETED`.
    pub state: String,
    /// Who registered it.
    pub principal: String,
    /// Its tasks that are not terminal.
    pub live_tasks: u64,
    /// What they hold.
    pub used: Resources,
    /// What is held out to it.
    pub offered: Resources,
    /// Wall time of its registration (milliseconds since 1970).
    pub registered_ms: u64,
    /// If disconnected: how long until it is completed (milliseconds of cluster time).
    pub remaining_ms: Option<u64>,
    /// If completed: why.
    pub completion_reason: String,
}

/// An outstanding offer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfferRow {
    /// Its id, as text.
    pub id: String,
    /// To whom.
    pub framework: FrameworkId,
    /// Of which agent.
    pub agent: AgentId,
    /// In which role.
    pub role: Role,
    /// What.
    pub resources: Resources,
    /// How long it has been out (milliseconds).
    pub age_ms: u64,
}

/// A master.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MasterRow {
    /// Its id.
    pub id: MasterId,
    /// Where clients reach it.
    pub addr: String,
    /// `leader`, `follower` or `unknown`.
    pub role: String,
    /// The last log index it is known to have.
    pub index: u64,
}

/// The cluster at a glance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatusSummary {
    /// The leader's address.
    pub leader: String,
    /// The leader's id.
    pub leader_id: MasterId,
    /// The Raft term.
    pub term: u64,
    /// The masters.
    pub masters: Vec<MasterRow>,
    /// Agents in contact.
    pub agents_reachable: u32,
    /// Agents out of contact.
    pub agents_unreachable: u32,
    /// What reachable agents have.
    pub total: Resources,
    /// What tasks hold of it.
    pub used: Resources,
    /// What is held out in offers.
    pub offered: Resources,
    /// What is neither.
    pub free: Resources,
    /// Tasks by the name of their state.
    pub tasks: BTreeMap<String, u64>,
    /// Frameworks by the name of their state.
    pub frameworks: BTreeMap<String, u64>,
}

/// Something became true.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventRow {
    /// The log index at which it did.
    pub index: u64,
    /// Its place among what became true at that index.
    pub ordinal: u32,
    /// What, as a word.
    pub kind: String,
    /// Wall time at the leader (milliseconds since 1970).
    pub wall_ms: u64,
    /// The framework it is about.
    pub framework: Option<FrameworkId>,
    /// The agent it is about.
    pub agent: Option<AgentId>,
    /// The launch it is about.
    pub launch: Option<LaunchId>,
    /// The task it is about; empty for none.
    pub task_id: String,
    /// The executor it is about; empty for none.
    pub executor_id: String,
    /// The new state, as a word; empty if none changed.
    pub state: String,
    /// Why, as a word; empty for no reason.
    pub reason: String,
    /// For people.
    pub text: String,
}
