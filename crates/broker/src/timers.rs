//! What happens because time goes on.

use proffer_registry::Registry;
use proffer_types::command::{Command, CompletionReason};
use proffer_types::event::{AgentOrder, FrameworkEvent, StreamEnd};
use proffer_types::{
    AgentId, AgentState, Caller, ClusterTime, FrameworkId, FrameworkState, LaunchId, OfferId, limits,
};

use crate::frameworks::GONE;
use crate::{Broker, Effect, Then, Waiting};

/// Updates repeated at one firing of a framework's timers; the rest follow a second later, so that a framework which
/// was away is not flooded faster than it reads.
const REPEATS_AT_ONCE: usize = 512;

/// When to look again at what could not be decided or proposed (milliseconds).
pub(crate) const AGAIN_MS: u64 = 1_000;

/// Something that waits for its time. Whether it still applies is looked up when the time comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// A framework that was connected under the leader before has not come.
    Reconnect(FrameworkId),
    /// A framework's failover timeout ends.
    Complete(FrameworkId),
    /// An offer was not answered.
    Offer(OfferId),
    /// A status was not acknowledged.
    Retry(LaunchId),
    /// Nothing was heard of an agent.
    Silence(AgentId),
    /// An agent was unreachable for too long.
    Expiry(AgentId),
    /// Ping agents, let frameworks know.
    Heartbeat,
    /// Commit the time if nothing else did.
    Tick,
}

/// The repetition of a launch's unacknowledged statuses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Retry {
    /// When it is due.
    pub(crate) due: u64,
    /// The pause that follows.
    pub(crate) pause: u64,
}

impl Broker {
    /// When [`Self::on_time`] has something to do, in cluster time.
    pub fn next_deadline(&self) -> Option<ClusterTime> {
        let timer = self.timers.first().map(|(due, _)| *due);
        let offers = self.allocator.next_wakeup_ms();
        timer.into_iter().chain(offers).min().map(ClusterTime)
    }

    /// Time goes on: what is due happens, and what can be offered is.
    pub fn on_time(&mut self, registry: &Registry, now: ClusterTime) {
        self.advance(now);
        let mut repeats = std::collections::BTreeMap::new();
        while let Some(&(due, timer)) = self.timers.first().filter(|(due, _)| *due <= self.now) {
            self.timers.remove(&(due, timer));
            self.on_timer(registry, due, timer, &mut repeats);
        }
        self.make_offers(registry);
    }

    /// At the far end of time nothing happens: that is the deadline of a framework that ends with its tasks.
    pub(crate) fn at(&mut self, due: u64, timer: Timer) {
        if due < u64::MAX {
            self.timers.insert((due, timer));
        }
    }

    fn on_timer(
        &mut self,
        registry: &Registry,
        due: u64,
        timer: Timer,
        repeats: &mut std::collections::BTreeMap<FrameworkId, usize>,
    ) {
        match timer {
            Timer::Reconnect(framework) => self.give_up_on(registry, framework),
            Timer::Complete(framework) => self.complete_overdue(registry, framework),
            Timer::Offer(offer) => self.expire_offer(offer),
            Timer::Retry(launch) => self.repeat_statuses(registry, due, launch, repeats),
            Timer::Silence(agent) => self.check_silence(registry, agent),
            Timer::Expiry(agent) => self.remove_expired(registry, agent),
            Timer::Heartbeat => self.beat(),
            Timer::Tick => {
                let due = self.last_applied_ms + limits::TICK_MS;
                if due > self.now {
                    return self.at(due, Timer::Tick);
                }
                let again = self.now + limits::TICK_MS;
                self.propose_own(Command::Tick, Timer::Tick);
                self.at(again, Timer::Tick);
            }
        }
    }

    /// Proposes something that nobody waits for. If it is lost, `again` comes once more.
    pub(crate) fn propose_own(&mut self, command: Command, again: Timer) {
        let waiting = Waiting { replies: Vec::new(), then: Then::Own { again } };
        self.propose(Caller::master(), command, waiting);
    }

    /// A framework that counts as connected and has no stream is disconnected; but not while it subscribes, or the
    /// end of its old stream would be applied to the new one.
    pub(crate) fn give_up_on(&mut self, registry: &Registry, framework: FrameworkId) {
        let Some(record) = registry.framework(framework) else { return };
        if record.state != FrameworkState::Connected || self.subscribers.contains_key(&framework) {
            return;
        }
        let subscribes = self.waiting.values().any(|waiting| match &waiting.then {
            Then::Subscribe { framework: whose, origin, connection, .. } => {
                let same = whose.map_or(*origin == record.origin, |whose| whose == framework);
                same && *connection != GONE
            }
            _ => false,
        });
        let again = Timer::Reconnect(framework);
        if subscribes {
            return self.at(self.now + AGAIN_MS, again);
        }
        self.propose_own(Command::Disconnect { framework, session: record.session }, again);
    }

    fn complete_overdue(&mut self, registry: &Registry, framework: FrameworkId) {
        let Some(record) = registry.framework(framework) else { return };
        let FrameworkState::Disconnected { deadline } = record.state else { return };
        if deadline.0 > self.now {
            return self.at(deadline.0, Timer::Complete(framework));
        }
        let command = Command::Complete {
            framework,
            session: record.session,
            reason: CompletionReason::FailoverTimeout,
        };
        self.propose_own(command, Timer::Complete(framework));
    }

    fn repeat_statuses(
        &mut self,
        registry: &Registry,
        due: u64,
        launch: LaunchId,
        repeats: &mut std::collections::BTreeMap<FrameworkId, usize>,
    ) {
        let Some(retry) = self.retries.get(&launch).copied().filter(|retry| retry.due == due) else { return };
        let Some(task) = registry.task(launch).filter(|task| !task.pending.is_empty()) else {
            self.retries.remove(&launch);
            return;
        };
        let Some(connection) = self.subscribers.get(&task.framework).map(|s| s.connection) else {
            self.retries.remove(&launch);
            return;
        };
        let sent = repeats.entry(task.framework).or_default();
        if *sent >= REPEATS_AT_ONCE {
            return self.arm_retry(launch, 1_000, retry.pause);
        }
        *sent += task.pending.len();
        for status in task.pending.clone() {
            self.send_update(connection, task, status);
        }
        let pause = (retry.pause * 2).min(limits::UPDATE_RETRY_MAX_MS);
        self.arm_retry(launch, retry.pause, pause);
    }

    /// Repeats a launch's unacknowledged statuses after `wait` milliseconds, and then after `pause`.
    pub(crate) fn arm_retry(&mut self, launch: LaunchId, wait: u64, pause: u64) {
        let due = self.now + wait;
        if let Some(before) = self.retries.insert(launch, Retry { due, pause }) {
            self.timers.remove(&(before.due, Timer::Retry(launch)));
        }
        self.at(due, Timer::Retry(launch));
    }

    pub(crate) fn disarm_retry(&mut self, launch: LaunchId) {
        if let Some(before) = self.retries.remove(&launch) {
            self.timers.remove(&(before.due, Timer::Retry(launch)));
        }
    }

    fn check_silence(&mut self, registry: &Registry, agent: AgentId) {
        let Some(session) = self.agents.get(&agent) else { return };
        let due = session.heard_at + self.settings.agent_silence_ms();
        if due > self.now {
            return self.at(due, Timer::Silence(agent));
        }
        if let Some(connection) = session.open_connection() {
            self.effects.push(Effect::Close { connection, end: StreamEnd::Silent });
            self.drop_agent_connection(registry, connection);
        }
        if let Some(record) = registry.agent(agent).filter(|record| record.is_reachable()) {
            let command = Command::MarkUnreachable { agent, attachment: record.attachment };
            self.propose_own(command, Timer::Silence(agent));
        }
    }

    pub(crate) fn arm_expiry(&mut self, agent: AgentId, since: ClusterTime) {
        if self.settings.agent_expiry_ms > 0 {
            self.at(since.plus_ms(self.settings.agent_expiry_ms).0, Timer::Expiry(agent));
        }
    }

    fn remove_expired(&mut self, registry: &Registry, agent: AgentId) {
        let Some(AgentState::Unreachable { since }) = registry.agent(agent).map(|record| record.state) else {
            return;
        };
        if since.plus_ms(self.settings.agent_expiry_ms).0 <= self.now {
            self.propose_own(Command::RemoveAgent { agent }, Timer::Expiry(agent));
        }
    }

    fn beat(&mut self) {
        for subscriber in self.subscribers.values() {
            let connection = subscriber.connection;
            self.effects.push(Effect::ToFramework { connection, event: FrameworkEvent::Heartbeat });
        }
        for session in self.agents.values_mut() {
            if let Some(connection) = session.open_connection() {
                session.pings += 1;
                self.effects
                    .push(Effect::ToAgent { connection, order: AgentOrder::Ping { n: session.pings } });
            }
        }
        self.at(self.now + self.settings.heartbeat_ms, Timer::Heartbeat);
    }
}
