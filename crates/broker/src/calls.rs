//! Calls from outside: checked, then proposed.

use proffer_allocator::Event;
use proffer_registry::Registry;
use proffer_types::call::{AcceptCallPart, Call, ReplyId};
use proffer_types::command::{AcceptPart, AdminId, Answer, CallId, Command, Refusal, Rejection};
use proffer_types::event::{Refused, Reply};
use proffer_types::{Caller, ClusterTime, FrameworkId, OfferId, Resources, SessionId, TaskId};

use crate::frameworks::Subscribe;
use crate::offers::granted;
use crate::{Broker, LiveOffer, OpenCall, Then, WAITING_MAX, Waiting};

impl Broker {
    /// A call has come. `reply`, if any, is answered exactly once, now or later.
    pub fn on_call(
        &mut self,
        registry: &Registry,
        now: ClusterTime,
        caller: Caller,
        reply: Option<ReplyId>,
        call: Call,
    ) {
        self.advance(now);
        match call {
            Call::Subscribe { connection, framework, session, origin, info, suppressed } => {
                let ask = Subscribe { connection, framework, session, origin, info, suppressed };
                self.subscribe(registry, caller, reply, ask);
            }
            Call::SubscriberGone { connection } => self.subscriber_gone(registry, connection),
            Call::Accept { call, atomic, parts, filter_ms } => {
                if !self.answered(registry, reply, &call) {
                    let result = self.accept(registry, caller, reply, call, atomic, parts, filter_ms);
                    self.answer_refusal(reply, result);
                }
            }
            Call::Decline { framework, session, offers, filter_ms } => {
                let result = self.check_session(registry, framework, session);
                if result.is_ok() {
                    self.decline(framework, &offers, filter_ms);
                }
                self.answer_done(registry, reply, result);
            }
            Call::Suppress { framework, session, roles } => {
                let result = self.check_roles(registry, framework, session, &roles);
                if result.is_ok() {
                    self.tell(Event::Suppressed { framework, roles });
                }
                self.answer_done(registry, reply, result);
            }
            Call::Revive { framework, session, roles } => {
                let result = self.check_roles(registry, framework, session, &roles);
                if result.is_ok() {
                    self.tell(Event::Revived { framework, roles });
                }
                self.answer_done(registry, reply, result);
            }
            Call::Kill { call, task, grace_ms } => {
                if !self.answered(registry, reply, &call) {
                    let result = self.kill(registry, caller, reply, call, task, grace_ms);
                    self.answer_refusal(reply, result);
                }
            }
            Call::Acknowledge { call, acks } => {
                if !self.answered(registry, reply, &call) {
                    let result = self.check_session(registry, call.framework, call.session);
                    if result.is_ok() {
                        self.propose_call(caller, reply, call, Command::Acknowledge { call, acks });
                    }
                    self.answer_refusal(reply, result);
                }
            }
            Call::Reconcile { framework, session, tasks } => {
                let result = self.check_session(registry, framework, session);
                if result.is_ok() {
                    self.reconcile(registry, framework, &tasks);
                }
                self.answer_done(registry, reply, result);
            }
            Call::ShutdownExecutor { call, agent, executor } => {
                if !self.answered(registry, reply, &call) {
                    let result = self.shutdown_executor(registry, caller, reply, call, agent, executor);
                    self.answer_refusal(reply, result);
                }
            }
            Call::SendMessage { framework, session, agent, executor, data } => {
                let (sender, to) = ((framework, session), (agent, &executor));
                let result = self.send_message(registry, reply, sender, to, data);
                self.answer_refusal(reply, result);
            }
            Call::UpdateFramework { call, info } => {
                if !self.answered(registry, reply, &call) {
                    let result = self.update_framework(registry, caller, reply, call, info);
                    self.answer_refusal(reply, result);
                }
            }
            Call::Teardown { call } => {
                if !self.answered(registry, reply, &call) {
                    let result = self.check_session(registry, call.framework, call.session);
                    if result.is_ok() {
                        self.propose_call(caller, reply, call, Command::Teardown { call });
                    }
                    self.answer_refusal(reply, result);
                }
            }
            Call::AdminKill { call, framework, task, grace_ms } => {
                let result = self.admin_kill(registry, caller, reply, call, framework, task, grace_ms);
                self.answer_refusal(reply, result);
            }
            Call::AdminTeardown { call, framework } => {
                let result = self.admin_teardown(registry, caller, reply, call, framework);
                self.answer_refusal(reply, result);
            }
            Call::AgentHello { connection, hello } => self.agent_hello(registry, caller, connection, hello),
            Call::AgentListing { connection, held } => self.agent_listing(caller, connection, held),
            Call::AgentStatuses { connection, statuses } => {
                self.heard(connection);
                if let Some((agent, attachment)) = self.agent_of(connection) {
                    // The agent says a status once per session: if this is void or lost it must attach again.
                    let waiting = Waiting { replies: Vec::new(), then: Then::Agent { connection } };
                    self.propose(caller, Command::Statuses { agent, attachment, statuses }, waiting);
                }
            }
            Call::AgentAlive { connection } => self.heard(connection),
            Call::AgentCleaned { connection, launches } => {
                self.heard(connection);
                self.agent_cleaned(registry, connection, &launches);
            }
            Call::AgentMessage { connection, launch, data } => {
                self.heard(connection);
                self.executor_message(registry, connection, launch, data);
            }
            Call::AgentGone { connection } => self.drop_agent_connection(registry, connection),
        }
    }

    fn answer_refusal(&mut self, reply: Option<ReplyId>, result: Result<(), Refused>) {
        if let Err(refused) = result {
            self.answer(reply, Err(refused));
        }
    }

    fn answer_done(&mut self, registry: &Registry, reply: Option<ReplyId>, result: Result<(), Refused>) {
        self.answer(reply, result.map(|()| Reply::Done { index: registry.applied() }));
    }

    /// Answers the repetition of a call from what is stored, or makes it wait for the first one's outcome.
    fn answered(&mut self, registry: &Registry, reply: Option<ReplyId>, call: &CallId) -> bool {
        // A completed framework's session still answers for what completed it.
        let current = registry.framework(call.framework).is_some_and(|record| record.session == call.session);
        if call.seq == 0 || !current {
            return false;
        }
        let differs = || Err(Refused::Rejected(Rejection::ContentDiffers));
        if let Some(answer) = registry.answer(call.session, call.seq) {
            let result = if answer.content == call.content { reply_of(answer) } else { differs() };
            self.answer(reply, result);
            return true;
        }
        let Some(open) = self.open_calls.get(&(call.session, call.seq)) else { return false };
        if open.content != call.content {
            self.answer(reply, differs());
            return true;
        }
        let Some(waiting) = self.waiting.get_mut(&open.tag) else { return false };
        waiting.replies.extend(reply);
        true
    }

    pub(crate) fn propose_call(
        &mut self,
        caller: Caller,
        reply: Option<ReplyId>,
        call: CallId,
        command: Command,
    ) {
        let key = (call.seq > 0).then_some((call.session, call.seq));
        let waiting = Waiting { replies: reply.into_iter().collect(), then: Then::Call { key } };
        let tag = self.propose(caller, command, waiting);
        if let Some(key) = key {
            self.open_calls.insert(key, OpenCall { tag, content: call.content });
        }
    }

    fn check_room(&self) -> Result<(), Refused> {
        if self.waiting.len() < WAITING_MAX { Ok(()) } else { Err(Refused::Busy { retry_ms: 100 }) }
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one call")]
    fn accept(
        &mut self,
        registry: &Registry,
        caller: Caller,
        reply: Option<ReplyId>,
        call: CallId,
        atomic: bool,
        parts: Vec<AcceptCallPart>,
        filter_ms: u64,
    ) -> Result<(), Refused> {
        self.check_session(registry, call.framework, call.session)?;
        self.check_room()?;
        self.check_offers(call.framework, &parts)?;
        let mut offers = Vec::with_capacity(parts.len());
        let mut command_parts = Vec::with_capacity(parts.len());
        for part in parts {
            let taken: Vec<LiveOffer> = part.offers.iter().filter_map(|id| self.remove_offer(*id)).collect();
            let first = &taken[0].offer;
            let mut offered = Resources::new();
            for live in &taken {
                offered.add(&live.offer.resources).expect("offers of one agent are parts of its total");
            }
            command_parts.push(AcceptPart {
                agent: first.agent,
                role: first.role.clone(),
                offered,
                operations: part.operations,
            });
            offers.push(taken);
        }
        let key = (call.seq > 0).then_some((call.session, call.seq));
        let waiting =
            Waiting { replies: reply.into_iter().collect(), then: Then::Accept { offers, filter_ms, key } };
        let tag = self.propose(caller, Command::Accept { call, atomic, parts: command_parts }, waiting);
        if let Some(key) = key {
            self.open_calls.insert(key, OpenCall { tag, content: call.content });
        }
        Ok(())
    }

    /// Malformed: nothing changes. A dead offer: the live ones of its part are given back without filter.
    fn check_offers(&mut self, framework: FrameworkId, parts: &[AcceptCallPart]) -> Result<(), Refused> {
        let invalid = |field: String, reason: &str| Err(Refused::Invalid { field, reason: reason.into() });
        if parts.is_empty() {
            return invalid("parts".into(), "must not be empty");
        }
        let mut seen = std::collections::BTreeSet::new();
        for (i, part) in parts.iter().enumerate() {
            if part.offers.is_empty() {
                return invalid(format!("parts[{i}].offer_ids"), "must not be empty");
            }
            for (j, id) in part.offers.iter().enumerate() {
                if !seen.insert(*id) {
                    return invalid(format!("parts[{i}].offer_ids[{j}]"), "this offer is named twice");
                }
            }
            let mut live = part
                .offers
                .iter()
                .filter_map(|id| self.offers.get(id).filter(|live| live.offer.framework == framework))
                .map(|o| (o.offer.agent, &o.offer.role));
            if let Some(first) = live.next()
                && live.any(|other| other != first)
            {
                return invalid(
                    format!("parts[{i}].offer_ids"),
                    "the offers of a part must be of one agent and one role",
                );
            }
        }
        for part in parts {
            for id in &part.offers {
                let why = match self.offers.get(id) {
                    None => "it was used, declined, rescinded or has expired",
                    Some(live) if live.offer.framework != framework => "it is another framework's",
                    Some(_) => continue,
                };
                self.give_back_part(framework, part);
                return Err(Refused::InvalidOffer { offer: *id, why });
            }
        }
        Ok(())
    }

    fn give_back_part(&mut self, framework: FrameworkId, part: &AcceptCallPart) {
        let own: Vec<OfferId> = part
            .offers
            .iter()
            .filter(|id| self.offers.get(id).is_some_and(|live| live.offer.framework == framework))
            .copied()
            .collect();
        for id in own {
            if let Some(live) = self.remove_offer(id) {
                self.give_back([live]);
            }
        }
    }

    fn decline(&mut self, framework: FrameworkId, offers: &[OfferId], filter_ms: u64) {
        for id in offers {
            if self.offers.get(id).is_some_and(|live| live.offer.framework == framework)
                && let Some(live) = self.remove_offer(*id)
            {
                self.tell(Event::Declined { grant: granted(&live.offer), filter_ms });
            }
        }
    }

    fn check_roles(
        &self,
        registry: &Registry,
        framework: FrameworkId,
        session: SessionId,
        roles: &[proffer_types::Role],
    ) -> Result<(), Refused> {
        self.check_session(registry, framework, session)?;
        let known = registry.framework(framework).map(|f| f.info.roles.as_slice()).unwrap_or_default();
        match roles.iter().position(|role| !known.contains(role)) {
            None => Ok(()),
            Some(i) => Err(Refused::Invalid {
                field: format!("roles[{i}]"),
                reason: format!("the framework is not in role `{}`", roles[i]),
            }),
        }
    }

    fn kill(
        &mut self,
        registry: &Registry,
        caller: Caller,
        reply: Option<ReplyId>,
        call: CallId,
        task: TaskId,
        grace_ms: Option<u64>,
    ) -> Result<(), Refused> {
        self.check_session(registry, call.framework, call.session)?;
        if registry.task_by_name(call.framework, &task).is_none() {
            return Err(Refused::NotFound { what: format!("task `{task}`") });
        }
        self.propose_call(caller, reply, call, Command::Kill { call, task, grace_ms });
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one call")]
    fn admin_kill(
        &mut self,
        registry: &Registry,
        caller: Caller,
        reply: Option<ReplyId>,
        call: AdminId,
        framework: FrameworkId,
        task: TaskId,
        grace_ms: Option<u64>,
    ) -> Result<(), Refused> {
        if let Some(answer) = registry.admin_answer(call.request) {
            self.answer(reply, reply_of(answer));
            return Ok(());
        }
        self.check_room()?;
        if registry.framework(framework).is_none() {
            return Err(Refused::Rejected(Rejection::UnknownFramework));
        }
        if registry.task_by_name(framework, &task).is_none() {
            return Err(Refused::NotFound { what: format!("task `{task}`") });
        }
        let waiting = Waiting { replies: reply.into_iter().collect(), then: Then::Answer };
        self.propose(caller, Command::AdminKill { call, framework, task, grace_ms }, waiting);
        Ok(())
    }

    fn admin_teardown(
        &mut self,
        registry: &Registry,
        caller: Caller,
        reply: Option<ReplyId>,
        call: AdminId,
        framework: FrameworkId,
    ) -> Result<(), Refused> {
        if let Some(answer) = registry.admin_answer(call.request) {
            self.answer(reply, reply_of(answer));
            return Ok(());
        }
        self.check_room()?;
        if registry.framework(framework).is_none() {
            return Err(Refused::Rejected(Rejection::UnknownFramework));
        }
        let waiting = Waiting { replies: reply.into_iter().collect(), then: Then::Answer };
        self.propose(caller, Command::AdminTeardown { call, framework }, waiting);
        Ok(())
    }
}

/// What a stored answer says to the caller.
pub(crate) fn reply_of(answer: &Answer) -> Result<Reply, Refused> {
    match answer.rejected {
        Some(rejection) => Err(atomic(answer).unwrap_or(Refused::Rejected(rejection))),
        None => Ok(Reply::Accepted(answer.clone())),
    }
}

/// Why nothing of an atomic Accept happened.
fn atomic(answer: &Answer) -> Option<Refused> {
    let own = |(task, outcome): (usize, &Option<Refusal>)| {
        outcome
            .filter(|refusal| !matches!(refusal, Refusal::Atomic | Refusal::Group))
            .map(|refusal| (task, refusal))
    };
    let mut reasons = answer.outcomes.iter().enumerate().filter_map(own);
    let (task, refusal) = reasons.next()?;
    Some(Refused::Atomic { task, refusal, more: reasons.count() })
}
