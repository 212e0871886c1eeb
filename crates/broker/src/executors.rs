//! Executors of frameworks: their end, and what they and their frameworks say to one another.
//!
//! Messages are not replicated and not repeated: each is delivered once or not at all, in order.

use proffer_registry::Registry;
use proffer_types::call::{ConnectionId, ReplyId};
use proffer_types::command::{CallId, Command};
use proffer_types::event::{AgentOrder, FrameworkEvent, LaunchKind, Refused};
use proffer_types::{AgentId, Caller, ExecutorId, FrameworkId, LaunchId, SessionId, Status};

use crate::{Broker, Effect};

/// When to send a message again to an agent that is out of contact (milliseconds).
const RETRY_MS: u64 = 1_000;

impl Broker {
    pub(crate) fn shutdown_executor(
        &mut self,
        registry: &Registry,
        caller: Caller,
        reply: Option<ReplyId>,
        call: CallId,
        agent: AgentId,
        executor: ExecutorId,
    ) -> Result<(), Refused> {
        self.check_session(registry, call.framework, call.session)?;
        find(registry, call.framework, agent, &executor)?;
        self.propose_call(caller, reply, call, Command::ShutdownExecutor { call, agent, executor });
        Ok(())
    }

    /// Passes bytes on to the agent of an executor.
    pub(crate) fn send_message(
        &mut self,
        registry: &Registry,
        reply: Option<ReplyId>,
        (framework, session): (FrameworkId, SessionId),
        (agent, executor): (AgentId, &ExecutorId),
        data: Vec<u8>,
    ) -> Result<(), Refused> {
        self.check_session(registry, framework, session)?;
        let launch = find(registry, framework, agent, executor)?;
        let connection = self.agent_connection(agent).ok_or(Refused::Busy { retry_ms: RETRY_MS })?;
        let order = AgentOrder::Message { launch, data };
        self.effects.push(Effect::Deliver { reply, connection, order });
        Ok(())
    }

    /// Passes bytes on to the framework of an executor, if both are there.
    pub(crate) fn executor_message(
        &mut self,
        registry: &Registry,
        connection: ConnectionId,
        launch: LaunchId,
        data: Vec<u8>,
    ) {
        let Some((agent, _)) = self.agent_of(connection) else { return };
        let Some(task) = registry.task(launch).filter(|task| task.agent == agent) else { return };
        let LaunchKind::Executor(executor) = task.kind.clone() else { return };
        let event = FrameworkEvent::Message { agent, executor, data };
        self.tell_framework(task.framework, event);
    }

    pub(crate) fn executor_ended(
        &mut self,
        framework: FrameworkId,
        agent: AgentId,
        executor: &ExecutorId,
        status: &Status,
    ) {
        let (executor, status) = (executor.clone(), Box::new(status.clone()));
        self.tell_framework(framework, FrameworkEvent::ExecutorEnded { agent, executor, status });
    }

    fn tell_framework(&mut self, framework: FrameworkId, event: FrameworkEvent) {
        if let Some(connection) = self.subscribers.get(&framework).map(|s| s.connection) {
            self.effects.push(Effect::ToFramework { connection, event });
        }
    }
}

fn find(
    registry: &Registry,
    framework: FrameworkId,
    agent: AgentId,
    executor: &ExecutorId,
) -> Result<LaunchId, Refused> {
    match registry.executor(framework, agent, executor) {
        Some(found) => Ok(found.launch_id),
        None => Err(Refused::NotFound { what: format!("executor `{executor}` on this agent") }),
    }
}
