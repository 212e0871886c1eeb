//! The state, and what can be asked of it.

use std::sync::Arc;

use proffer_types::agent::holdings_digest;
use proffer_types::command::Answer;
use proffer_types::event::Group;
use proffer_types::image::{Meta, STATE_VERSION};
use proffer_types::{
    Agent, AgentId, Caller, ClusterId, ClusterTime, ExecutorId, Framework, FrameworkId, LaunchId, MasterId,
    RequestId, SessionId, SpecDigest, Task, TaskId, TaskSpec,
};

use crate::table::{Keys, Lookup, Table};

/// The replicated state of a cluster: the same on every master that has applied the same entries.
///
/// A clone costs nothing, never changes and may be read on another thread while this one goes on: it is the view
/// that snapshots, reads and hashes are taken of.
#[derive(Clone)]
pub struct Registry {
    pub(crate) meta: Meta,
    pub(crate) agents: Table<AgentId, Agent>,
    pub(crate) frameworks: Table<FrameworkId, Framework>,
    /// The current session of each framework.
    pub(crate) sessions: Table<SessionId, Session>,
    pub(crate) admin_answers: Table<RequestId, AdminAnswer>,
    pub(crate) specs: Table<(FrameworkId, SpecDigest), SpecUse>,
    /// Tasks which are not both terminal and acknowledged, and executors which are not terminal.
    pub(crate) tasks: Table<LaunchId, Task>,
    /// The history, by the order of retirement.
    pub(crate) finished: Table<u64, Task>,
    pub(crate) index: Index,
}

/// A framework's session with the answers that are kept for repeated calls.
#[derive(Clone)]
pub(crate) struct Session {
    pub(crate) framework: FrameworkId,
    pub(crate) origin: RequestId,
    pub(crate) done_below: u64,
    pub(crate) answers: Table<u64, Answer>,
}

/// An answer kept for a repeated call of an operator.
#[derive(Clone, Debug)]
pub(crate) struct AdminAnswer {
    pub(crate) until: ClusterTime,
    pub(crate) answer: Answer,
}

/// A spec in use by one framework.
#[derive(Clone, Debug)]
pub(crate) struct SpecUse {
    pub(crate) spec: Arc<TaskSpec>,
    /// Size of its encoding, which counts towards the framework's limit while a task refers to it.
    pub(crate) bytes: u64,
    /// How many tasks refer to it.
    pub(crate) tasks: u64,
    /// How many finished tasks refer to it.
    pub(crate) finished: u64,
}

/// What follows from the tables: found faster, never in a snapshot or a hash.
#[derive(Clone, Default)]
pub(crate) struct Index {
    pub(crate) instances: Lookup<RequestId, AgentId>,
    pub(crate) origins: Lookup<(Caller, RequestId), FrameworkId>,
    pub(crate) names: Lookup<(FrameworkId, TaskId), LaunchId>,
    pub(crate) of_framework: Keys<(FrameworkId, LaunchId)>,
    /// Executors which are not terminal.
    pub(crate) executors: Keys<(FrameworkId, AgentId, ExecutorId, LaunchId)>,
    /// Tasks and executors which are not terminal.
    pub(crate) live_on_agent: Keys<(AgentId, LaunchId)>,
    pub(crate) finished_of_framework: Keys<(FrameworkId, u64)>,
    pub(crate) counts: Lookup<FrameworkId, Counts>,
    /// Completed frameworks, the oldest first.
    pub(crate) completed: Keys<(ClusterTime, FrameworkId)>,
    /// Those of them that have no task left.
    pub(crate) settled: Keys<(ClusterTime, FrameworkId)>,
    pub(crate) admin_until: Keys<(ClusterTime, RequestId)>,
}

/// Of one framework.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) tasks: u64,
    pub(crate) finished: u64,
}

/// What an agent must be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// Start a task or an executor; everything about it is in its record.
    Launch {
        /// The number of the order at its agent.
        agent_seq: u64,
        /// Which.
        launch: LaunchId,
    },
    /// End a task.
    Kill {
        /// The number of the order at its agent.
        agent_seq: u64,
        /// Which.
        launch: LaunchId,
        /// Time between SIGTERM and SIGKILL (milliseconds).
        grace_ms: u64,
    },
}

impl Order {
    /// The number of the order at its agent.
    pub fn agent_seq(&self) -> u64 {
        match self {
            Self::Launch { agent_seq, .. } | Self::Kill { agent_seq, .. } => *agent_seq,
        }
    }
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let meta = &self.meta;
        f.debug_struct("Registry")
            .field("applied", &meta.applied)
            .field("time", &meta.time)
            .field("agents", &self.agents.len())
            .field("frameworks", &self.frameworks.len())
            .field("tasks", &self.tasks.len())
            .field("finished", &self.finished.len())
            .finish_non_exhaustive()
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            meta: Meta { state_version: STATE_VERSION, ..Meta::default() },
            agents: Table::default(),
            frameworks: Table::default(),
            sessions: Table::default(),
            admin_answers: Table::default(),
            specs: Table::default(),
            tasks: Table::default(),
            finished: Table::default(),
            index: Index::default(),
        }
    }
}

impl Registry {
    /// The state before the first entry.
    pub fn new() -> Self {
        Self::default()
    }

    /// The cluster's id, once it has begun.
    pub fn cluster(&self) -> Option<ClusterId> {
        self.meta.cluster
    }

    /// The founding masters and their addresses, by id.
    pub fn masters(&self) -> &[(MasterId, String)] {
        &self.meta.masters
    }

    /// The cluster's clock, as of the last entry applied.
    pub fn time(&self) -> ClusterTime {
        self.meta.time
    }

    /// The log index of the last entry applied.
    pub fn applied(&self) -> u64 {
        self.meta.applied
    }

    /// The last id that was minted; no id above it exists.
    pub fn last_id(&self) -> u64 {
        self.meta.last_id
    }

    /// One agent.
    pub fn agent(&self, id: AgentId) -> Option<&Agent> {
        self.agents.get(&id)
    }

    /// All agents, by id.
    pub fn agents(&self) -> impl Iterator<Item = &Agent> + '_ {
        self.agents.values()
    }

    /// How many agents there are.
    pub fn agents_len(&self) -> usize {
        self.agents.len()
    }

    /// The agent that registered with this instance number.
    pub fn agent_by_instance(&self, instance: RequestId) -> Option<&Agent> {
        self.agent(self.index.instances.get(&instance)?)
    }

    /// One framework, completed ones among them.
    pub fn framework(&self, id: FrameworkId) -> Option<&Framework> {
        self.frameworks.get(&id)
    }

    /// All frameworks, by id, completed ones among them.
    pub fn frameworks(&self) -> impl Iterator<Item = &Framework> + '_ {
        self.frameworks.values()
    }

    /// The framework that `owner` registered with a Subscribe of this random number.
    pub fn framework_by_origin(&self, owner: &Caller, origin: RequestId) -> Option<&Framework> {
        self.framework(self.index.origins.get(&(owner.clone(), origin))?)
    }

    /// Completed frameworks, the one completed first at first.
    pub fn completed_frameworks(&self) -> impl Iterator<Item = &Framework> + '_ {
        self.index.completed.iter().filter_map(|(_, id)| self.framework(*id))
    }

    /// The random number of the Subscribe that opened a current session.
    pub fn session_origin(&self, session: SessionId) -> Option<RequestId> {
        self.sessions.get(&session).map(|s| s.origin)
    }

    /// One task that is not both terminal and acknowledged, or executor that is not terminal.
    pub fn task(&self, launch: LaunchId) -> Option<&Task> {
        self.tasks.get(&launch)
    }

    /// All tasks that are not both terminal and acknowledged, and executors that are not terminal, by launch.
    pub fn launches(&self) -> impl Iterator<Item = &Task> + '_ {
        self.tasks.values()
    }

    /// All tasks that are not both terminal and acknowledged, by launch.
    pub fn tasks(&self) -> impl Iterator<Item = &Task> + '_ {
        self.launches().filter(|task| !task.is_executor())
    }

    /// All executors that are not terminal, by launch.
    pub fn executors(&self) -> impl Iterator<Item = &Task> + '_ {
        self.index.executors.iter().filter_map(|(.., launch)| self.task(*launch))
    }

    /// How many launches there are: tasks that are not both terminal and acknowledged, and executors that are not
    /// terminal.
    pub fn tasks_len(&self) -> usize {
        self.tasks.len()
    }

    /// The framework's retained task of this name.
    pub fn task_by_name(&self, framework: FrameworkId, task: &TaskId) -> Option<&Task> {
        self.task(self.index.names.get(&(framework, task.clone()))?)
    }

    /// The framework's newest executor of this name on the agent that is not terminal. One that was told to end is not
    /// handed tasks any more; another of its name may then be made beside it.
    pub fn executor(&self, framework: FrameworkId, agent: AgentId, executor: &ExecutorId) -> Option<&Task> {
        let key = |launch| (framework, agent, executor.clone(), LaunchId(launch));
        let (.., launch) = self.index.executors.range(key(0)..=key(u64::MAX)).last()?;
        self.task(*launch)
    }

    /// The launches of a framework, tasks and executors, by launch.
    pub fn launches_of_framework(&self, framework: FrameworkId) -> impl Iterator<Item = &Task> + '_ {
        let keys = (framework, LaunchId(0))..=(framework, LaunchId(u64::MAX));
        self.index.of_framework.range(keys).filter_map(|(_, launch)| self.task(*launch))
    }

    /// A framework's tasks that are not both terminal and acknowledged, by launch.
    pub fn tasks_of_framework(&self, framework: FrameworkId) -> impl Iterator<Item = &Task> + '_ {
        self.launches_of_framework(framework).filter(|task| !task.is_executor())
    }

    /// An agent's tasks and executors that are not terminal, by launch: those that use its resources.
    pub fn launches_on_agent(&self, agent: AgentId) -> impl Iterator<Item = &Task> + '_ {
        let keys = (agent, LaunchId(0))..=(agent, LaunchId(u64::MAX));
        self.index.live_on_agent.range(keys).filter_map(|(_, launch)| self.task(*launch))
    }

    /// An agent's tasks that are not terminal, by launch.
    pub fn tasks_on_agent(&self, agent: AgentId) -> impl Iterator<Item = &Task> + '_ {
        self.launches_on_agent(agent).filter(|task| !task.is_executor())
    }

    /// All finished tasks that are remembered, the one retired first at first.
    pub fn history(&self) -> impl Iterator<Item = &Task> + '_ {
        self.finished.values().filter(|task| !task.is_executor())
    }

    /// All ended executors that are remembered, the one that ended first at first.
    pub fn executor_history(&self) -> impl Iterator<Item = &Task> + '_ {
        self.finished.values().filter(|task| task.is_executor())
    }

    /// A framework's finished tasks that are remembered, the one retired first at first.
    pub fn history_of_framework(&self, framework: FrameworkId) -> impl Iterator<Item = &Task> + '_ {
        let keys = (framework, 0)..=(framework, u64::MAX);
        let numbers = self.index.finished_of_framework.range(keys);
        let tasks = numbers.filter_map(|(_, number)| self.finished.get(number));
        tasks.filter(|task| !task.is_executor())
    }

    /// The stored answer to a call of a current session.
    pub fn answer(&self, session: SessionId, seq: u64) -> Option<&Answer> {
        self.sessions.get(&session)?.answers.get(&seq)
    }

    /// The highest sequence number that a current session is known to have used, by a stored answer or by one that its
    /// client has seen; 0 for none. A call with a lower number that is not stored would be refused as an old copy.
    pub fn last_seq(&self, session: SessionId) -> u64 {
        let Some(session) = self.sessions.get(&session) else { return 0 };
        let stored = session.answers.iter().map(|(seq, _)| *seq).last().unwrap_or(0);
        stored.max(session.done_below.saturating_sub(1))
    }

    /// The stored answer to an operator's request.
    pub fn admin_answer(&self, request: RequestId) -> Option<&Answer> {
        self.admin_answers.get(&request).map(|stored| &stored.answer)
    }

    /// What an agent that has seen its orders up to `last_seq` holds, if it and the record agree: the digest of its
    /// tasks that are not terminal, each with the newest `task_seq` of the agent itself.
    pub fn digest_of_agent(&self, agent: AgentId, last_seq: u64) -> u64 {
        let seen = self.launches_on_agent(agent).filter(|task| task.agent_seq <= last_seq);
        holdings_digest(seen.map(|task| (task.launch_id, agent_task_seq(task))))
    }

    /// What an agent must be sent when it has seen its orders up to `after_seq`, by number: the launches after it, with
    /// all of the group of each, and every kill order of a task that is not terminal, seen or not.
    pub fn orders_for(&self, agent: AgentId, after_seq: u64) -> Vec<Order> {
        let mut orders = Vec::new();
        for task in self.launches_on_agent(agent) {
            // The numbers of a group's members follow one another as their launches do.
            let last_of_group = |group: Group| {
                task.agent_seq + (group.first.0 + u64::from(group.size) - 1) - task.launch_id.0
            };
            if task.group.map_or(task.agent_seq, last_of_group) > after_seq {
                orders.push(Order::Launch { agent_seq: task.agent_seq, launch: task.launch_id });
            }
            if let Some(kill) = task.kill {
                let (agent_seq, grace_ms) = (kill.agent_seq, kill.grace_ms);
                orders.push(Order::Kill { agent_seq, launch: task.launch_id, grace_ms });
            }
        }
        orders.sort_by_key(Order::agent_seq);
        orders
    }

    /// Whether the cluster acknowledges in the framework's place: it is completed, or it asked to end with its tasks
    /// and is not connected.
    pub fn acknowledges_for(&self, framework: FrameworkId) -> bool {
        use proffer_types::FrameworkState as S;
        self.framework(framework).is_none_or(|f| match f.state {
            S::Connected => false,
            S::Disconnected { .. } => f.info.ends_with_tasks,
            S::Completed { .. } => true,
        })
    }

    pub(crate) fn counts(&self, framework: FrameworkId) -> Counts {
        self.index.counts.get(&framework).unwrap_or_default()
    }
}

/// The newest `task_seq` of the task's agent, 0 if it has given none.
pub(crate) fn agent_task_seq(task: &Task) -> u32 {
    task.agent_status.as_ref().map_or(0, |status| status.task_seq)
}
