//! What the leader does when a command was applied, or will never be.

use std::collections::BTreeMap;

use proffer_allocator::Event;
use proffer_registry::{Change, Registry};
use proffer_types::command::Rejection;
use proffer_types::event::{AgentRefusal, Refused, Reply};
use proffer_types::{AgentId, ClusterTime, FrameworkState, Reason, Resources, Role, limits};

use crate::agents::Attached;
use crate::calls::reply_of;
use crate::offers::granted;
use crate::timers::{AGAIN_MS, Timer};
use crate::{Broker, LiveOffer, Tag, Then, Waiting, grant};

/// Why a proposal has no effect, or none that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// It is not in any log and never will be.
    Failed,
    /// It may be applied yet.
    Unknown,
}

impl Broker {
    /// An entry was applied: `changes` is what became true, `tag` tells whose proposal it was. What that frees is
    /// offered by the next [`Self::on_time`], once for all the entries of a batch.
    pub fn on_applied(
        &mut self,
        registry: &Registry,
        now: ClusterTime,
        tag: Option<Tag>,
        index: u64,
        changes: &[Change],
    ) {
        self.advance(now);
        self.last_applied_ms = self.now;
        let waiting = tag.and_then(|tag| self.take_waiting(tag));
        let then = waiting.as_ref().map(|w| &w.then);
        let agent_connection = match then {
            Some(Then::Agent { connection }) => Some(*connection),
            _ => None,
        };
        for change in changes {
            match change {
                Change::AgentRegistered { agent, .. } => {
                    self.agent_registered(registry, *agent, agent_connection)
                }
                Change::AgentAttached { agent, attachment, forget, confirm, info_changed, .. } => {
                    let what = Attached {
                        agent: *agent,
                        attachment: *attachment,
                        forget,
                        confirm,
                        info_changed: *info_changed,
                    };
                    self.agent_attached(registry, &what, agent_connection);
                }
                Change::Rejected { rejection } => {
                    if let Some(connection) = agent_connection {
                        match rejection {
                            Rejection::ListingNeeded => self.ask_for_listing(connection),
                            Rejection::WrongInstance => {
                                self.attach_refused(connection, AgentRefusal::WrongInstance)
                            }
                            Rejection::UnknownAgent => {
                                self.attach_refused(connection, AgentRefusal::UnknownAgent)
                            }
                            // Something came in between: the agent says hello again on a new connection.
                            _ => self.send_away(registry, connection),
                        }
                    }
                }
                other => self.on_change(registry, other, changes),
            }
        }
        if let Some(waiting) = waiting {
            self.settle(registry, index, waiting, changes);
        }
    }

    /// A proposal is lost.
    pub fn on_lost(&mut self, registry: &Registry, tag: Tag, lost: Lost) {
        let Some(waiting) = self.take_waiting(tag) else { return };
        match waiting.then {
            Then::Accept { offers, .. } => self.give_back(offers.into_iter().flatten()),
            Then::Agent { connection } => self.send_away(registry, connection),
            Then::Own { again } => self.at(self.now + AGAIN_MS, again),
            Then::Answer | Then::Call { .. } | Then::Subscribe { .. } => {}
        }
        for reply in waiting.replies {
            let refused = match lost {
                Lost::Failed => Refused::Busy { retry_ms: 50 },
                Lost::Unknown => Refused::OutcomeUnknown,
            };
            self.answer(Some(reply), Err(refused));
        }
    }

    fn take_waiting(&mut self, tag: Tag) -> Option<Waiting> {
        let waiting = self.waiting.remove(&tag)?;
        if let Then::Accept { key: Some(key), .. } | Then::Call { key: Some(key) } = &waiting.then {
            self.open_calls.remove(key);
        }
        Some(waiting)
    }

    fn on_change(&mut self, registry: &Registry, change: &Change, all: &[Change]) {
        match change {
            Change::AgentUnreachable { agent } => self.agent_lost(*agent, registry.time(), all),
            Change::AgentRemoved { agent } => self.agent_removed(*agent, all),
            Change::FrameworkAdded { framework } => {
                let roles = registry.framework(*framework).map(|f| f.info.roles.clone()).unwrap_or_default();
                self.tell(Event::FrameworkAdded { framework: *framework, roles, suppressed: Vec::new() });
            }
            Change::FrameworkDisconnected { framework } => {
                if let Some(FrameworkState::Disconnected { deadline }) =
                    registry.framework(*framework).map(|f| f.state)
                {
                    self.at(deadline.0, Timer::Complete(*framework));
                }
            }
            Change::FrameworkUpdated { framework } => self.framework_updated(registry, *framework),
            Change::ExecutorEnded { framework, agent, executor, status, .. } => {
                self.executor_ended(*framework, *agent, executor, status)
            }
            Change::FrameworkCompleted { framework, .. } => self.framework_completed(*framework),
            Change::TaskLaunched { launch, framework, role, agent, resources } => {
                self.tell(Event::Launched(grant(*framework, role, *agent, resources)));
                self.send_launch(registry, *agent, *launch);
            }
            Change::KillOrdered { launch, agent } => self.send_kill(registry, *agent, *launch),
            Change::StatusChanged { launch, framework, agent, status, .. } => {
                if status.reason == Reason::LaunchLost {
                    self.alarm(format!("{launch:?} was delivered to {agent:?}, which knows nothing of it"));
                }
                let subscriber = self.subscribers.get(framework).copied();
                let task = registry.task(*launch).filter(|task| !task.pending.is_empty());
                if let (Some(subscriber), Some(task)) = (subscriber, task) {
                    self.send_update(subscriber.connection, task, status.clone());
                    self.arm_retry(*launch, limits::UPDATE_RETRY_MIN_MS, 2 * limits::UPDATE_RETRY_MIN_MS);
                }
            }
            Change::StatusConfirmed { launch, agent, task_seq } => {
                self.send_confirm(*agent, *launch, *task_seq)
            }
            Change::ResourcesReturned { framework, role, agent, resources, .. } => {
                // A removed agent took its uses with it.
                if self.agents.contains_key(agent) && registry.agent(*agent).is_some() {
                    self.tell(Event::Returned(grant(*framework, role, *agent, resources)));
                }
            }
            Change::Acknowledged { launch, .. } => {
                if registry.task(*launch).is_none_or(|task| task.pending.is_empty()) {
                    self.disarm_retry(*launch);
                }
            }
            Change::TaskRetired { launch, .. } => self.disarm_retry(*launch),
            Change::Rejected { .. }
            | Change::Formed
            | Change::AgentRegistered { .. }
            | Change::AgentAttached { .. }
            | Change::SessionOpened { .. }
            | Change::FrameworkReconnected { .. }
            | Change::FrameworkForgotten { .. }
            | Change::Answered { .. } => {}
        }
    }

    /// Finishes what waited for this entry.
    fn settle(&mut self, registry: &Registry, index: u64, waiting: Waiting, changes: &[Change]) {
        let mut result = outcome(index, changes);
        match waiting.then {
            Then::Accept { offers, filter_ms, .. } => self.settle_offers(offers, filter_ms, changes),
            Then::Subscribe { connection, suppressed, .. } => {
                let opened = changes.iter().find_map(|change| match change {
                    Change::SessionOpened { framework, .. } | Change::FrameworkReconnected { framework } => {
                        Some(*framework)
                    }
                    _ => None,
                });
                match opened {
                    Some(framework) => self.session_opened(registry, framework, connection, &suppressed),
                    None if result.is_ok() => result = Err(Refused::Rejected(Rejection::Stale)),
                    None => {}
                }
            }
            Then::Answer | Then::Call { .. } | Then::Agent { .. } | Then::Own { .. } => {}
        }
        for reply in waiting.replies {
            self.answer(Some(reply), result.clone());
        }
    }

    /// What an Accept did not use is declined; if it had no effect at all, the offers' resources are simply free.
    fn settle_offers(&mut self, offers: Vec<Vec<LiveOffer>>, filter_ms: u64, changes: &[Change]) {
        let effective = changes.iter().any(
            |change| matches!(change, Change::Answered { answer, repeated: false } if answer.rejected.is_none()),
        );
        if !effective {
            return self.give_back(offers.into_iter().flatten());
        }
        let mut used: BTreeMap<(AgentId, Role), Vec<Resources>> = BTreeMap::new();
        for change in changes {
            if let Change::TaskLaunched { role, agent, resources, .. } = change {
                used.entry((*agent, role.clone())).or_default().push(resources.clone());
            }
        }
        let mut left: BTreeMap<(AgentId, Role), (Resources, proffer_types::FrameworkId)> = BTreeMap::new();
        for live in offers.iter().flatten() {
            let key = (live.offer.agent, live.offer.role.clone());
            let (sum, _) = left.entry(key).or_insert_with(|| (Resources::new(), live.offer.framework));
            sum.add(&granted(&live.offer).resources).expect("offers of one agent are parts of its total");
        }
        for ((agent, role), (mut rest, framework)) in left {
            if let Some(taken) = used.remove(&(agent, role.clone())) {
                rest.sub(&sum(taken)).expect("launches fit in what was offered");
            }
            self.tell(Event::Declined { grant: grant(framework, &role, agent, &rest), filter_ms });
        }
    }
}

/// The sum of what launches of one Accept hold, by pairs: what is added to a sum of many port ranges costs as much as
/// these are.
fn sum(mut all: Vec<Resources>) -> Resources {
    while all.len() > 1 {
        let mut pairs = Vec::with_capacity(all.len().div_ceil(2));
        let mut rest = all.into_iter();
        while let Some(mut one) = rest.next() {
            if let Some(other) = rest.next() {
                one.add(&other).expect("launches fit in what was offered");
            }
            pairs.push(one);
        }
        all = pairs;
    }
    all.pop().unwrap_or_default()
}

/// What the caller is told.
fn outcome(index: u64, changes: &[Change]) -> Result<Reply, Refused> {
    for change in changes {
        match change {
            Change::Rejected { rejection } => return Err(Refused::Rejected(*rejection)),
            Change::Answered { answer, .. } => return reply_of(answer),
            _ => {}
        }
    }
    Ok(Reply::Done { index })
}
