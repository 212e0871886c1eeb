//! Calls of frameworks and operators: executed once, answered as often as they are repeated.

use proffer_types::command::{Ack, AdminId, Answer, CallId, CompletionReason, Refusal, Rejection};
use proffer_types::limits::{ADMIN_ANSWER_MS, OPEN_CALLS_MAX};
use proffer_types::{AgentId, ExecutorId, FrameworkId, LaunchId, Reason, RequestId, TaskId};

use super::Step;
use crate::Change;
use crate::state::AdminAnswer;

/// What a call came to.
#[derive(Default)]
pub(super) struct Reply {
    pub(super) first_launch: LaunchId,
    pub(super) outcomes: Vec<Option<Refusal>>,
    pub(super) rejected: Option<Rejection>,
}

impl From<Result<(), Rejection>> for Reply {
    fn from(result: Result<(), Rejection>) -> Self {
        Self { rejected: result.err(), ..Self::default() }
    }
}

/// What is known of a call before it is executed.
enum Admission {
    New,
    Repeated(Answer),
}

impl Step<'_> {
    /// Executes a framework's call once and keeps the answer for as long as it may be repeated.
    pub(super) fn call<R: Into<Reply>>(&mut self, call: &CallId, execute: impl FnOnce(&mut Self) -> R) {
        let reply = match self.admit(call) {
            Ok(Admission::Repeated(answer)) => return self.tell(Change::Answered { answer, repeated: true }),
            Ok(Admission::New) => execute(self).into(),
            Err(rejection) => {
                let answer = self.answer(call.content, Err(rejection).into());
                return self.tell(Change::Answered { answer, repeated: false });
            }
        };
        let answer = self.answer(call.content, reply);
        if call.seq > 0
            && let Some(session) = self.state.sessions.get_mut(&call.session)
        {
            session.answers.insert(call.seq, answer.clone());
        }
        self.tell(Change::Answered { answer, repeated: false });
    }

    /// The stored answer comes before anything else: whatever happened since, the call was executed.
    fn admit(&mut self, call: &CallId) -> Result<Admission, Rejection> {
        let framework = self.state.framework(call.framework).ok_or(Rejection::UnknownFramework)?;
        let completed = framework.is_completed();
        if framework.session != call.session {
            return Err(if completed { Rejection::FrameworkCompleted } else { Rejection::SessionFenced });
        }
        let session = self.state.sessions.get(&call.session).ok_or(Rejection::SessionFenced)?;
        let stored = session.answers.get(&call.seq).cloned();
        // A client cannot have seen the answer of the call that it makes.
        let done_below = if call.seq > 0 { call.done_below.min(call.seq) } else { call.done_below };
        if done_below > session.done_below {
            self.forget_answers(call, done_below);
        }
        if let Some(answer) = stored {
            return match answer.content == call.content {
                true => Ok(Admission::Repeated(answer)),
                false => Err(Rejection::ContentDiffers),
            };
        }
        if completed {
            return Err(Rejection::FrameworkCompleted);
        }
        let session = self.state.sessions.get(&call.session).ok_or(Rejection::SessionFenced)?;
        if call.seq > 0 && call.seq < session.done_below {
            // Its answer was seen, so this is an old copy of a call that was executed.
            return Err(Rejection::Stale);
        }
        if call.seq > 0 && session.answers.len() >= OPEN_CALLS_MAX {
            return Err(Rejection::TooManyOpen);
        }
        Ok(Admission::New)
    }

    fn forget_answers(&mut self, call: &CallId, done_below: u64) {
        let Some(session) = self.state.sessions.get_mut(&call.session) else { return };
        session.done_below = done_below;
        while let Some((&seq, _)) = session.answers.first().filter(|(seq, _)| **seq < done_below) {
            session.answers.remove(&seq);
        }
    }

    fn answer(&self, content: u64, reply: Reply) -> Answer {
        let Reply { first_launch, outcomes, rejected } = reply;
        Answer { index: self.index, content, first_launch, outcomes, rejected }
    }

    pub(super) fn kill(
        &mut self,
        framework: FrameworkId,
        task: &TaskId,
        grace_ms: Option<u64>,
    ) -> Result<(), Rejection> {
        let launch = self.state.task_by_name(framework, task).ok_or(Rejection::UnknownTask)?.launch_id;
        self.order_kill(launch, grace_ms, Reason::KillRequested);
        Ok(())
    }

    /// Its tasks end with it.
    pub(super) fn shutdown_executor(
        &mut self,
        framework: FrameworkId,
        agent: AgentId,
        executor: &ExecutorId,
    ) -> Result<(), Rejection> {
        let executor = self.state.executor(framework, agent, executor).ok_or(Rejection::UnknownExecutor)?;
        self.order_kill(executor.launch_id, None, Reason::KillRequested);
        Ok(())
    }

    /// Positions are cumulative; of a launch that is not the framework's or has no record nothing happens.
    pub(super) fn acknowledge(&mut self, framework: FrameworkId, acks: &[Ack]) -> Result<(), Rejection> {
        for ack in acks {
            let launch = ack.launch;
            let Some(task) = self.state.task(launch).filter(|task| task.framework == framework) else {
                continue;
            };
            let seen = |position| position <= (ack.master_seq, ack.task_seq);
            if !task.pending.first().is_some_and(|status| seen(status.position())) {
                continue;
            }
            let Some(task) = self.state.tasks.get_mut(&launch) else { continue };
            task.pending.retain(|status| !seen(status.position()));
            let retire = task.is_terminal() && task.pending.is_empty();
            self.tell(Change::Acknowledged { launch, framework });
            if retire {
                self.retire(launch);
            }
        }
        Ok(())
    }

    pub(super) fn teardown(&mut self, framework: FrameworkId) -> Result<(), Rejection> {
        self.complete(framework, CompletionReason::Teardown);
        Ok(())
    }

    /// Executes an operator's call once, and keeps the answer until a repetition would be refused for its age.
    pub(super) fn admin_call(
        &mut self,
        call: &AdminId,
        execute: impl FnOnce(&mut Self) -> Result<(), Rejection>,
    ) {
        let protected = call.request != RequestId::default();
        if let Some(answer) = self.state.admin_answer(call.request).filter(|_| protected).cloned() {
            return self.tell(Change::Answered { answer, repeated: true });
        }
        let now = self.now();
        let result = match protected {
            true if call.time.plus_ms(ADMIN_ANSWER_MS) < now => Err(Rejection::TooOld),
            // From a future that no answer of this cluster has told of.
            true if now.plus_ms(ADMIN_ANSWER_MS) < call.time => Err(Rejection::Stale),
            _ => {
                let result = execute(self);
                if protected {
                    let answer = self.answer(0, result.into());
                    let until = now.max(call.time).plus_ms(ADMIN_ANSWER_MS);
                    self.state.index.admin_until.insert((until, call.request));
                    self.state.admin_answers.insert(call.request, AdminAnswer { until, answer });
                }
                result
            }
        };
        let answer = self.answer(0, result.into());
        self.tell(Change::Answered { answer, repeated: false });
    }

    pub(super) fn drop_old_admin_answers(&mut self) {
        let now = self.now();
        while let Some(&(until, request)) =
            self.state.index.admin_until.first().filter(|(until, _)| *until < now)
        {
            self.state.index.admin_until.remove(&(until, request));
            self.state.admin_answers.remove(&request);
        }
    }

    pub(super) fn admin_kill(
        &mut self,
        framework: FrameworkId,
        task: &TaskId,
        grace_ms: Option<u64>,
    ) -> Result<(), Rejection> {
        self.state.framework(framework).ok_or(Rejection::UnknownFramework)?;
        let launch = self.state.task_by_name(framework, task).ok_or(Rejection::UnknownTask)?.launch_id;
        self.order_kill(launch, grace_ms, Reason::KilledByOperator);
        Ok(())
    }

    /// Of a completed framework this is done already.
    pub(super) fn admin_teardown(&mut self, framework: FrameworkId) -> Result<(), Rejection> {
        self.state.framework(framework).ok_or(Rejection::UnknownFramework)?;
        self.complete(framework, CompletionReason::TeardownByOperator);
        Ok(())
    }
}
