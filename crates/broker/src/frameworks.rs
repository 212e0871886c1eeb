//! Frameworks' event streams.

use proffer_allocator::Event;
use proffer_registry::Registry;
use proffer_types::call::{ConnectionId, ReplyId};
use proffer_types::command::{CallId, Command, Rejection};
use proffer_types::event::{FrameworkEvent, Refused, Reply, StreamEnd, Update};
use proffer_types::{
    Caller, FrameworkId, FrameworkInfo, FrameworkState, RequestId, Role, SessionId, Status, Task, TaskId,
    limits,
};

use crate::timers::Timer;
use crate::{Broker, Effect, Peer, Then, Waiting};

/// A framework's open stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subscriber {
    pub(crate) connection: ConnectionId,
    pub(crate) session: SessionId,
}

/// What a Subscribe brings.
pub(crate) struct Subscribe {
    pub(crate) connection: ConnectionId,
    pub(crate) framework: Option<FrameworkId>,
    pub(crate) session: Option<SessionId>,
    pub(crate) origin: RequestId,
    pub(crate) info: FrameworkInfo,
    pub(crate) suppressed: Vec<Role>,
}

impl Broker {
    pub(crate) fn subscribe(
        &mut self,
        registry: &Registry,
        caller: Caller,
        reply: Option<ReplyId>,
        ask: Subscribe,
    ) {
        let Subscribe { connection, framework, session, origin, info, suppressed } = ask;
        let then = Then::Subscribe { framework, origin, connection, suppressed: suppressed.clone() };
        let waiting = Waiting { replies: reply.into_iter().collect(), then };
        let (Some(framework), Some(session)) = (framework, session) else {
            let command = Command::OpenSession { framework, origin, info };
            self.propose(caller, command, waiting);
            return;
        };
        let refused = match registry.framework(framework) {
            None => Some(Rejection::UnknownFramework),
            Some(record) if record.is_completed() => Some(Rejection::FrameworkCompleted),
            Some(record) if record.session != session => Some(Rejection::SessionFenced),
            Some(_) => None,
        };
        if let Some(rejection) = refused {
            return self.answer(reply, Err(Refused::Rejected(rejection)));
        }
        if registry.framework(framework).is_some_and(|record| record.info != info) {
            let reason =
                "differs from what the session was opened with: leave `session` out to begin a new one";
            return self.answer(reply, Err(Refused::Invalid { field: "info".into(), reason: reason.into() }));
        }
        // Without a stream there may be a Disconnect on its way, which must be followed by the return.
        let connected = registry.framework(framework).is_some_and(|r| r.state == FrameworkState::Connected);
        if connected && self.subscribers.contains_key(&framework) {
            self.open_stream(registry, framework, session, connection, &suppressed);
            self.answer(reply, Ok(Reply::Done { index: registry.applied() }));
        } else {
            self.propose(caller, Command::Reconnect { framework, session }, waiting);
        }
    }

    /// From now on the framework's events go to `connection`.
    pub(crate) fn open_stream(
        &mut self,
        registry: &Registry,
        framework: FrameworkId,
        session: SessionId,
        connection: ConnectionId,
        suppressed: &[Role],
    ) {
        let Some(record) = registry.framework(framework) else { return };
        if let Some(old) = self.subscribers.remove(&framework) {
            let end = if old.session == session { StreamEnd::Replaced } else { StreamEnd::SessionFenced };
            self.end_stream(framework, old.connection, end);
        }
        let roles = record.info.roles.clone();
        let suppressed = suppressed.iter().filter(|role| roles.contains(role)).cloned().collect();
        self.tell(Event::FrameworkChanged { framework, roles, suppressed });
        self.tell(Event::FrameworkActivated { framework });
        self.subscribers.insert(framework, Subscriber { connection, session });
        self.peers.insert(connection, Peer::Framework(framework));
        let last_seq = registry.last_seq(session);
        let event = FrameworkEvent::Subscribed { framework, session, last_seq };
        self.effects.push(Effect::ToFramework { connection, event });
        let unacknowledged: Vec<_> = registry
            .tasks_of_framework(framework)
            .filter(|t| !t.pending.is_empty())
            .map(|t| t.launch_id)
            .collect();
        for launch in unacknowledged {
            self.arm_retry(launch, limits::UPDATE_RETRY_MIN_MS, 2 * limits::UPDATE_RETRY_MIN_MS);
        }
    }

    /// The framework has no stream any more; its offers are free, its filters forgotten.
    fn end_stream(&mut self, framework: FrameworkId, connection: ConnectionId, end: StreamEnd) {
        self.peers.remove(&connection);
        self.rescind_of_framework(framework);
        self.tell(Event::FrameworkDeactivated { framework });
        self.effects.push(Effect::Close { connection, end });
    }

    pub(crate) fn subscriber_gone(&mut self, registry: &Registry, connection: ConnectionId) {
        for waiting in self.waiting.values_mut() {
            // Nobody is there when the session opens: it is then told so at once.
            if let Then::Subscribe { connection: waits, .. } = &mut waiting.then
                && *waits == connection
            {
                *waits = GONE;
            }
        }
        let Some(Peer::Framework(framework)) = self.peers.get(&connection).copied() else { return };
        self.peers.remove(&connection);
        let Some(subscriber) = self.subscribers.get(&framework).copied() else { return };
        if subscriber.connection != connection {
            return;
        }
        self.subscribers.remove(&framework);
        self.rescind_of_framework(framework);
        self.tell(Event::FrameworkDeactivated { framework });
        self.give_up_on(registry, framework);
    }

    /// A session was opened, or resumed after a disconnect.
    pub(crate) fn session_opened(
        &mut self,
        registry: &Registry,
        framework: FrameworkId,
        connection: ConnectionId,
        suppressed: &[Role],
    ) {
        let Some(session) = registry.framework(framework).map(|record| record.session) else { return };
        if connection == GONE {
            // The session is fenced all the same.
            if let Some(old) = self.subscribers.get(&framework).copied().filter(|old| old.session != session)
            {
                self.subscribers.remove(&framework);
                self.end_stream(framework, old.connection, StreamEnd::SessionFenced);
            }
            return self.give_up_on(registry, framework);
        }
        self.open_stream(registry, framework, session, connection, suppressed);
    }

    pub(crate) fn update_framework(
        &mut self,
        registry: &Registry,
        caller: Caller,
        reply: Option<ReplyId>,
        call: CallId,
        info: FrameworkInfo,
    ) -> Result<(), Refused> {
        self.check_session(registry, call.framework, call.session)?;
        if registry.framework(call.framework).is_some_and(|record| record.info.user != info.user) {
            let reason = "cannot change: tasks of the framework run as it".to_owned();
            return Err(Refused::Invalid { field: "info.user".into(), reason });
        }
        self.propose_call(caller, reply, call, Command::UpdateFramework { call, info });
        Ok(())
    }

    /// A framework says something else of itself: of roles that it has left it is offered nothing, and what it did not
    /// want of the others it does not want now.
    pub(crate) fn framework_updated(&mut self, registry: &Registry, framework: FrameworkId) {
        let Some(record) = registry.framework(framework) else { return };
        let roles = record.info.roles.clone();
        self.rescind(|offer| offer.framework == framework && !roles.contains(&offer.role));
        let standings = self.allocator.explain(framework).unwrap_or_default();
        let suppressed = standings.into_iter().filter(|s| s.suppressed_since_ms.is_some()).map(|s| s.role);
        let suppressed = suppressed.filter(|role| roles.contains(role)).collect();
        self.tell(Event::FrameworkChanged { framework, roles, suppressed });
        if let FrameworkState::Disconnected { deadline } = record.state {
            self.at(deadline.0, Timer::Complete(framework));
        }
    }

    pub(crate) fn framework_completed(&mut self, framework: FrameworkId) {
        if let Some(subscriber) = self.subscribers.remove(&framework) {
            self.end_stream(framework, subscriber.connection, StreamEnd::FrameworkCompleted);
        } else {
            self.rescind_of_framework(framework);
        }
        self.tell(Event::FrameworkRemoved { framework });
    }

    /// The session of a call must be the framework's newest.
    pub(crate) fn check_session(
        &self,
        registry: &Registry,
        framework: FrameworkId,
        session: SessionId,
    ) -> Result<(), Refused> {
        let rejection = match registry.framework(framework) {
            None => Rejection::UnknownFramework,
            Some(record) if record.is_completed() => Rejection::FrameworkCompleted,
            Some(record) if record.session != session => Rejection::SessionFenced,
            Some(_) => return Ok(()),
        };
        Err(Refused::Rejected(rejection))
    }

    pub(crate) fn send_update(&mut self, connection: ConnectionId, task: &Task, status: Status) {
        let update = Update {
            launch: Some(task.launch_id),
            task_id: task.task_id.clone(),
            agent: task.agent,
            status: Some(status),
            acknowledge: true,
        };
        self.effects.push(Effect::ToFramework { connection, event: FrameworkEvent::Update(update) });
    }

    pub(crate) fn reconcile(&mut self, registry: &Registry, framework: FrameworkId, tasks: &[TaskId]) {
        let Some(connection) = self.subscribers.get(&framework).map(|s| s.connection) else { return };
        let known: Vec<Task> = if tasks.is_empty() {
            registry.tasks_of_framework(framework).cloned().collect()
        } else {
            tasks.iter().filter_map(|name| registry.task_by_name(framework, name)).cloned().collect()
        };
        let mut updates: Vec<Update> = known
            .into_iter()
            .map(|task| Update {
                launch: Some(task.launch_id),
                task_id: task.task_id,
                agent: task.agent,
                status: Some(task.status),
                acknowledge: false,
            })
            .collect();
        for name in tasks.iter().filter(|name| registry.task_by_name(framework, name).is_none()) {
            updates.push(Update {
                launch: None,
                task_id: name.clone(),
                agent: Default::default(),
                status: None,
                acknowledge: false,
            });
        }
        for update in updates {
            self.effects.push(Effect::ToFramework { connection, event: FrameworkEvent::Update(update) });
        }
    }
}

/// Stands for a stream that ended before its session was open.
pub(crate) const GONE: ConnectionId = ConnectionId(u64::MAX);
