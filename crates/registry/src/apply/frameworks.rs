//! Frameworks: sessions, absence, completion.

use proffer_types::command::{CompletionReason, Rejection, TEARDOWN_REASON};
use proffer_types::limits::COMPLETED_FRAMEWORKS_MAX;
use proffer_types::{
    ClusterTime, Framework, FrameworkId, FrameworkInfo, FrameworkState, LaunchId, RequestId, SessionId,
};

use super::Step;
use crate::Change;
use crate::state::Session;
use crate::table::Table;

impl Step<'_> {
    pub(super) fn open_session(
        &mut self,
        framework: Option<FrameworkId>,
        origin: RequestId,
        info: &FrameworkInfo,
    ) -> Result<(), Rejection> {
        let caller = &self.entry.caller;
        let known = match framework {
            Some(id) => Some(self.state.framework(id).ok_or(Rejection::UnknownFramework)?),
            None => self.state.framework_by_origin(caller, origin),
        };
        let Some(known) = known else {
            self.add_framework(origin, info);
            return Ok(());
        };
        if known.is_completed() {
            return Err(Rejection::FrameworkCompleted);
        }
        if known.owner != *caller || known.info.user != info.user {
            return Err(Rejection::Immutable);
        }
        let (id, session) = (known.id, known.session);
        let same = origin != RequestId::default() && self.state.session_origin(session) == Some(origin);
        if same {
            // What it says of itself is what it said then; an UpdateFramework may have come since.
            self.connect(id, session, origin, None);
        } else if framework.is_some() {
            // Whoever opens a session knows nothing of the calls of the one before.
            self.state.sessions.remove(&session);
            let session = self.new_session(id, origin);
            self.connect(id, session, origin, Some(info));
        } else {
            // A late repetition of the first Subscribe, after another session was opened.
            return Err(Rejection::SessionFenced);
        }
        Ok(())
    }

    fn add_framework(&mut self, origin: RequestId, info: &FrameworkInfo) {
        let id = FrameworkId(self.mint());
        let session = self.new_session(id, origin);
        let framework = Framework {
            id,
            info: info.clone(),
            owner: self.entry.caller.clone(),
            origin,
            session,
            state: FrameworkState::Connected,
            completion_reason: String::new(),
            launched: false,
            live_tasks: 0,
            spec_bytes: 0,
            registered_at: self.now(),
            registered_wall_ms: self.entry.wall_ms,
        };
        self.state.index_framework(&framework);
        self.state.frameworks.insert(id, framework);
        self.tell(Change::FrameworkAdded { framework: id });
        self.tell(Change::SessionOpened { framework: id, session, origin });
    }

    fn new_session(&mut self, framework: FrameworkId, origin: RequestId) -> SessionId {
        let session = SessionId(self.mint());
        self.state
            .sessions
            .insert(session, Session { framework, origin, done_below: 0, answers: Table::default() });
        session
    }

    fn connect(
        &mut self,
        id: FrameworkId,
        session: SessionId,
        origin: RequestId,
        info: Option<&FrameworkInfo>,
    ) {
        if let Some(framework) = self.state.frameworks.get_mut(&id) {
            framework.session = session;
            if let Some(info) = info {
                framework.info = info.clone();
            }
            framework.state = FrameworkState::Connected;
        }
        self.tell(Change::SessionOpened { framework: id, session, origin });
    }

    pub(super) fn reconnect(&mut self, id: FrameworkId, session: SessionId) -> Result<(), Rejection> {
        let framework = self.state.frameworks.get_mut(&id).ok_or(Rejection::UnknownFramework)?;
        if framework.is_completed() {
            return Err(Rejection::FrameworkCompleted);
        }
        if framework.session != session {
            return Err(Rejection::SessionFenced);
        }
        framework.state = FrameworkState::Connected;
        self.tell(Change::FrameworkReconnected { framework: id });
        Ok(())
    }

    pub(super) fn disconnect(&mut self, id: FrameworkId, session: SessionId) -> Result<(), Rejection> {
        let now = self.now();
        let framework = self.state.frameworks.get_mut(&id).ok_or(Rejection::UnknownFramework)?;
        if framework.session != session || framework.state != FrameworkState::Connected {
            return Err(Rejection::Stale);
        }
        framework.state = FrameworkState::Disconnected { deadline: deadline(framework, now) };
        self.tell(Change::FrameworkDisconnected { framework: id });
        self.without_stream(id);
        Ok(())
    }

    /// What follows from being disconnected, by what the framework says of itself.
    fn without_stream(&mut self, id: FrameworkId) {
        if self.state.acknowledges_for(id) {
            self.acknowledge_all(id);
        }
        self.after_task_end(id);
        let state = self.state.framework(id).map(|f| f.state);
        if matches!(state, Some(FrameworkState::Disconnected { deadline }) if deadline <= self.now()) {
            self.complete(id, CompletionReason::FailoverTimeout);
        }
    }

    /// If the framework is disconnected, its deadline begins anew.
    pub(super) fn update_framework(
        &mut self,
        id: FrameworkId,
        info: &FrameworkInfo,
    ) -> Result<(), Rejection> {
        let now = self.now();
        let framework = self.state.frameworks.get_mut(&id).ok_or(Rejection::UnknownFramework)?;
        if framework.info.user != info.user {
            return Err(Rejection::Immutable);
        }
        framework.info = info.clone();
        let disconnected = matches!(framework.state, FrameworkState::Disconnected { .. });
        if disconnected {
            framework.state = FrameworkState::Disconnected { deadline: deadline(framework, now) };
        }
        self.tell(Change::FrameworkUpdated { framework: id });
        if disconnected {
            self.without_stream(id);
        }
        Ok(())
    }

    pub(super) fn time_out(
        &mut self,
        id: FrameworkId,
        session: SessionId,
        reason: CompletionReason,
    ) -> Result<(), Rejection> {
        let framework = self.state.framework(id).ok_or(Rejection::UnknownFramework)?;
        let over = match framework.state {
            FrameworkState::Connected => false,
            FrameworkState::Disconnected { deadline } => deadline <= self.now(),
            FrameworkState::Completed { .. } => return Err(Rejection::FrameworkCompleted),
        };
        // The other reasons have their own ways here and are never due by a clock.
        if framework.session != session || !over || reason != CompletionReason::FailoverTimeout {
            return Err(Rejection::Stale);
        }
        self.complete(id, reason);
        Ok(())
    }

    /// Ends a framework: it is listed as completed at once; its tasks are told to end, and acknowledged for it.
    pub(super) fn complete(&mut self, id: FrameworkId, reason: CompletionReason) {
        let at = self.now();
        let Some(framework) = self.state.frameworks.get_mut(&id).filter(|f| !f.is_completed()) else {
            return;
        };
        framework.state = FrameworkState::Completed { at };
        framework.completion_reason = reason.name().to_owned();
        let session = framework.session;
        if let Some(session) = self.state.sessions.get_mut(&session) {
            session.answers = Table::default();
        }
        self.state.index.completed.insert((at, id));
        self.tell(Change::FrameworkCompleted { framework: id, reason });
        self.acknowledge_all(id);
        let live: Vec<LaunchId> = self.state.launches_of_framework(id).map(|task| task.launch_id).collect();
        for launch in &live {
            self.order_kill(*launch, None, TEARDOWN_REASON);
        }
        match live.is_empty() {
            true => self.settle(at, id),
            false => self.trim_completed(),
        }
    }

    /// A task of the framework has ended, or something else that makes it end with its tasks.
    pub(super) fn after_task_end(&mut self, id: FrameworkId) {
        let Some(framework) = self.state.framework(id).filter(|f| f.live_tasks == 0) else { return };
        match framework.state {
            FrameworkState::Connected => {}
            FrameworkState::Disconnected { .. } => {
                if framework.info.ends_with_tasks && framework.launched {
                    self.complete(id, CompletionReason::EndsWithTasks);
                }
            }
            FrameworkState::Completed { at } => {
                // Executors may have outlived the last task.
                if self.state.counts(id).tasks == 0 {
                    self.settle(at, id);
                }
            }
        }
    }

    /// A completed framework has no task any more: its record may go when there are too many.
    fn settle(&mut self, at: ClusterTime, id: FrameworkId) {
        self.state.index.settled.insert((at, id));
        self.trim_completed();
    }

    fn trim_completed(&mut self) {
        while self.state.index.completed.len() > COMPLETED_FRAMEWORKS_MAX {
            let Some(&(at, oldest)) = self.state.index.settled.first() else { break };
            self.forget(at, oldest);
        }
    }

    fn forget(&mut self, at: ClusterTime, id: FrameworkId) {
        let keys = (id, 0)..=(id, u64::MAX);
        let history: Vec<u64> = self.state.index.finished_of_framework.range(keys).map(|(_, n)| *n).collect();
        history.into_iter().for_each(|number| self.drop_finished(number));
        if let Some(framework) = self.state.frameworks.remove(&id) {
            self.state.sessions.remove(&framework.session);
            self.state.index.origins.remove(&(framework.owner, framework.origin));
        }
        self.state.index.counts.remove(&id);
        self.state.index.completed.remove(&(at, id));
        self.state.index.settled.remove(&(at, id));
        self.tell(Change::FrameworkForgotten { framework: id });
    }
}

/// When a framework that is disconnected now is completed. One that ends with its tasks waits for them, however long
/// they take.
fn deadline(framework: &Framework, now: ClusterTime) -> ClusterTime {
    match framework.info.ends_with_tasks && framework.launched {
        true => ClusterTime(u64::MAX),
        false => now.plus_ms(framework.info.failover_timeout_ms),
    }
}
