//! Agents: registration, loss, removal, and the statuses they send.

use proffer_types::command::Rejection;
use proffer_types::{
    Agent, AgentId, AgentInfo, AgentState, BootId, LaunchId, Reason, RequestId, Resources, Status, TaskState,
};

use super::Step;
use super::tasks::is_news;
use crate::Change;

impl Step<'_> {
    pub(super) fn register_agent(
        &mut self,
        instance: RequestId,
        info: &AgentInfo,
        boot_id: BootId,
    ) -> Result<(), Rejection> {
        // Zero means "none": two agents without a number must not become one.
        if instance == RequestId::default() {
            return Err(Rejection::WrongInstance);
        }
        if let Some(agent) = self.state.index.instances.get(&instance) {
            self.tell(Change::AgentRegistered { agent, repeated: true });
            return Ok(());
        }
        let id = AgentId(self.mint());
        let agent = Agent {
            id,
            info: info.clone(),
            instance,
            boot_id,
            state: AgentState::Reachable,
            last_seq: 0,
            used: Resources::new(),
            attachment: 0,
            registered_at: self.now(),
            registered_wall_ms: self.entry.wall_ms,
        };
        self.state.agents.insert(id, agent);
        self.state.index.instances.insert(instance, id);
        self.tell(Change::AgentRegistered { agent: id, repeated: false });
        Ok(())
    }

    pub(super) fn mark_unreachable(&mut self, agent: AgentId, attachment: u64) -> Result<(), Rejection> {
        let since = self.now();
        let record = self.state.agents.get_mut(&agent).ok_or(Rejection::UnknownAgent)?;
        if record.attachment != attachment || !record.is_reachable() {
            return Err(Rejection::Stale);
        }
        record.state = AgentState::Unreachable { since };
        self.tell(Change::AgentUnreachable { agent });
        for launch in self.live_on(agent) {
            self.master_status(launch, TaskState::Unreachable, Reason::AgentLost);
        }
        Ok(())
    }

    /// Only an agent that is unreachable can be removed: one that came back meanwhile stays.
    pub(super) fn remove_agent(&mut self, agent: AgentId) -> Result<(), Rejection> {
        let record = self.state.agent(agent).ok_or(Rejection::UnknownAgent)?;
        if record.is_reachable() {
            return Err(Rejection::Stale);
        }
        let instance = record.instance;
        for launch in self.live_on(agent) {
            self.master_status(launch, TaskState::GoneByOperator, Reason::AgentExpired);
        }
        self.state.agents.remove(&agent);
        self.state.index.instances.remove(&instance);
        self.tell(Change::AgentRemoved { agent });
        Ok(())
    }

    /// Statuses count only if they come with the agent's current attachment and before it was given up: what an agent
    /// says after that, it says again as it attaches.
    pub(super) fn statuses(
        &mut self,
        agent: AgentId,
        attachment: u64,
        statuses: &[(LaunchId, Status)],
    ) -> Result<(), Rejection> {
        let record = self.state.agent(agent).ok_or(Rejection::UnknownAgent)?;
        if record.attachment != attachment || !record.is_reachable() {
            return Err(Rejection::Stale);
        }
        for (launch, status) in statuses {
            let task = self.state.task(*launch);
            if task.is_some_and(|task| task.agent == agent && is_news(task, status)) {
                self.agent_status(*launch, status);
            }
            // Also if it was known, or the task is retired or was never here: the agent shall stop repeating it.
            self.tell(Change::StatusConfirmed { launch: *launch, agent, task_seq: status.task_seq });
        }
        Ok(())
    }

    pub(super) fn live_on(&self, agent: AgentId) -> Vec<LaunchId> {
        self.state.launches_on_agent(agent).map(|task| task.launch_id).collect()
    }
}
