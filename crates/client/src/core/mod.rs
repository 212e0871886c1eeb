//! The SDK's mind, without clock, sockets or threads: what a framework's session knows and what it must do next.
//!
//! ```text
//! Seeking ──Subscribed──► Live (snapshot) ──SnapshotEnd──► Live ──loss, NOT_LEADER, RESYNC──► Seeking
//!    └────────── fenced, completed, refused, torn down ──────────────┴────────────────────► Ended
//! ```
//!
//! The driver feeds it what masters say, how calls end and what time it is (milliseconds of any steady clock), and
//! performs the [`Output`]s in their order. Calls of the author are kept until the leader has decided them: when it is
//! lost they are repeated, in order, with the same sequence number at the next one.

mod seek;
mod tasks;
#[cfg(test)]
mod tests;
mod value;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use proffer_types::command::Ack;
use proffer_types::task::{Reason, Source};
use proffer_types::{
    AgentId, Epoch, FrameworkId, FrameworkInfo, OfferId, RequestId, Role, SessionId, Status, TaskId,
    TaskState, limits,
};

use seek::Seek;
use tasks::Tasks;
pub use value::*;

/// First pause after the master cut the stream because it fell behind, if that happens repeatedly.
const RESYNC_PAUSE_MIN_MS: u64 = 100;
/// Longest pause after a cut.
const RESYNC_PAUSE_MAX_MS: u64 = 5_000;
/// Attempts to subscribe that may be refused after later ones were begun.
const DIALS_REMEMBERED: u64 = 64;
/// A stream that lasted this long was not cut "repeatedly".
const RESYNC_CALM_MS: u64 = 60_000;
/// Protected calls in flight: below the cluster's limit of open answers, so that it is never reached.
const WINDOW: u64 = limits::OPEN_CALLS_MAX as u64 - 24;

/// What a core begins with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Addresses of masters, `host:port`; any subset will do.
    pub masters: Vec<String>,
    /// What the framework says of itself.
    pub info: FrameworkInfo,
    /// An existing framework to take over; a new session begins and fences any other.
    pub framework: Option<FrameworkId>,
    /// Roles in which no offers are wanted at first.
    pub suppressed: BTreeSet<Role>,
    /// Random; two frameworks with the same number would be taken for one.
    pub origin: RequestId,
    /// For jitter.
    pub seed: u64,
}

/// Where an open call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Not sent, or sent in vain.
    Parked,
    /// Sent on behalf of this subscription.
    Sent(DialId),
    /// The leader was too busy: send it again then.
    Resting(u64),
}

#[derive(Clone, Debug)]
struct OpenCall {
    seq: u64,
    request: Arc<Request>,
    stage: Stage,
    /// Made by the core itself: nobody waits for the answer.
    own: bool,
    /// For an Accept, the agent and role of each part's offers, as they were when it was asked.
    places: Vec<Option<(AgentId, Role)>>,
}

/// The subscription in force.
#[derive(Clone, Debug)]
struct Live {
    dial: DialId,
    master: String,
    since: u64,
    heard_at: u64,
    /// Silence after which the stream is dead (milliseconds).
    silence_ms: u64,
}

/// The state of one framework's session.
#[derive(Clone, Debug)]
pub struct Core {
    config: Config,
    framework: Option<FrameworkId>,
    session: Option<SessionId>,
    epoch: Epoch,
    seek: Seek,
    live: Option<Live>,
    ended: Option<Ended>,
    next_dial: u64,
    next_ticket: u64,
    next_seq: u64,
    open: BTreeMap<Ticket, OpenCall>,
    /// Whether an Acknowledge is under way.
    acking: bool,
    tasks: Tasks,
    offers: BTreeMap<OfferId, (AgentId, Role)>,
    /// Counts the subscriptions that were refused for what they said of the framework while that was being changed.
    infos_tried: usize,
    /// What the newest subscriptions said of the framework.
    infos_said: BTreeMap<DialId, FrameworkInfo>,
    /// What was refused since the last change was answered.
    infos_refused: Vec<FrameworkInfo>,
    /// The log index at which the info in `config` took effect; 0 for that of the first Subscribe.
    info_index: u64,
    suppressed: BTreeSet<Role>,
    resyncs: u32,
    outputs: VecDeque<Output>,
}

impl Core {
    /// A core that begins to seek the leader with the first [`Core::on_time`].
    pub fn new(config: Config) -> Self {
        let mut seek = Seek::new(&config.masters, config.seed);
        seek.begin(0, None);
        Self {
            framework: config.framework,
            session: None,
            epoch: Epoch::default(),
            seek,
            live: None,
            ended: None,
            next_dial: 1,
            next_ticket: 1,
            next_seq: 1,
            open: BTreeMap::new(),
            acking: false,
            tasks: Tasks::default(),
            offers: BTreeMap::new(),
            infos_tried: 0,
            infos_said: BTreeMap::new(),
            infos_refused: Vec::new(),
            info_index: 0,
            suppressed: config.suppressed.clone(),
            resyncs: 0,
            outputs: VecDeque::new(),
            config,
        }
    }

    /// The next thing to do.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Core::on_time`] must be called at the latest.
    pub fn next_deadline(&self) -> Option<u64> {
        if self.ended.is_some() {
            return None;
        }
        let resting = self.open.values().filter_map(|call| match call.stage {
            Stage::Resting(until) => Some(until),
            _ => None,
        });
        match &self.live {
            None => self.seek.next_at(),
            Some(live) => resting.chain([live.heard_at + live.silence_ms]).min(),
        }
    }

    /// The framework, once a master has told its id.
    pub fn framework(&self) -> Option<FrameworkId> {
        self.framework
    }

    /// The tasks, as they are known now.
    pub fn tasks(&self) -> &BTreeMap<TaskId, TaskView> {
        self.tasks.views()
    }

    /// Whether there is a leader.
    pub fn is_live(&self) -> bool {
        self.live.is_some()
    }

    /// Why it is over, if it is.
    pub fn ended(&self) -> Option<&Ended> {
        self.ended.as_ref()
    }

    /// Why there is no leader yet: (master, reason).
    pub fn seek_report(&self) -> Vec<(String, String)> {
        self.seek.report()
    }

    /// The author asks for something. The answer carries the ticket.
    pub fn call(&mut self, now: u64, request: Request) -> Ticket {
        match &request {
            Request::Suppress(roles) => self.suppressed.extend(self.roles(roles)),
            Request::Revive(roles) => {
                let roles = self.roles(roles);
                self.suppressed.retain(|role| !roles.contains(role));
            }
            _ => {}
        }
        self.open_call(now, request, false)
    }

    /// The author has dealt with a status.
    pub fn handed(&mut self, now: u64, ack: Ack) {
        self.tasks.handed(ack);
        self.flush_acks(now);
    }

    /// Time passes.
    pub fn on_time(&mut self, now: u64) {
        if self.ended.is_some() {
            return;
        }
        if let Some(live) = &self.live {
            if live.heard_at + live.silence_ms <= now {
                let why = format!("no heartbeat for {} ms", now - live.heard_at);
                self.lose(now, Failure::Transport(why));
            } else {
                self.send_ready(now);
                return;
            }
        }
        for dial in self.seek.overdue(now) {
            self.seek.failed(now, dial, true, 0, "no answer in time".into());
            self.outputs.push_back(Output::Hang { dial });
        }
        for master in self.seek.due(now) {
            self.dial(now, master);
        }
    }

    /// A master said something on the stream of `dial`.
    pub fn on_heard(&mut self, now: u64, dial: DialId, heard: Heard) {
        if self.ended.is_some() {
            return;
        }
        if let Heard::End(failure) = heard {
            return self.on_stream_end(now, dial, failure);
        }
        if let Heard::Subscribed { framework, session, heartbeat_ms, cluster, epoch, last_seq } = heard {
            let Some(master) = self.seek.master_of(dial).map(str::to_owned) else { return };
            if epoch < self.epoch {
                // A leader that does not know yet that it has been replaced.
                self.outputs.push_back(Output::Hang { dial });
                return self.seek.failed(now, dial, false, 0, "leads under an older epoch".into());
            }
            let resumed = self.session == Some(session);
            (self.epoch, self.framework, self.session) = (epoch, Some(framework), Some(session));
            self.next_seq = self.next_seq.max(last_seq + 1);
            for other in self.seek.end(dial) {
                self.outputs.push_back(Output::Hang { dial: other });
            }
            let silence_ms = heartbeat_ms.max(1) * 5 / 2;
            self.live = Some(Live { dial, master, since: now, heard_at: now, silence_ms });
            self.tasks.begin_snapshot();
            self.deliver(Event::Subscribed { framework, session, cluster, resumed });
            return self.send_ready(now);
        }
        let Some(live) = self.live.as_mut().filter(|live| live.dial == dial) else { return };
        live.heard_at = now;
        self.on_event(now, heard);
    }

    /// The driver has stopped reading because the author is slow: silence means nothing meanwhile.
    pub fn on_reading_paused(&mut self, now: u64) {
        if let Some(live) = &mut self.live {
            live.heard_at = now;
        }
    }

    /// An attempt or a stream is over.
    pub fn on_stream_end(&mut self, now: u64, dial: DialId, failure: Failure) {
        if self.ended.is_some() {
            return;
        }
        if self.live.as_ref().is_some_and(|live| live.dial == dial) {
            return self.lose(now, failure);
        }
        let Some(master) = self.seek.master_of(dial).map(str::to_owned) else { return };
        let text = failure_text(&failure);
        match failure {
            Failure::Fenced => return self.end(Ended::Fenced),
            Failure::Completed(why) => return self.on_completed(now, why),
            // Whether a change took effect is not known until its answer comes, and that comes only to a subscriber.
            Failure::Refused(refused)
                if refused.kind == RefusedKind::Invalid && self.may_be_called_otherwise(dial) =>
            {
                self.infos_tried += 1;
                self.seek.failed(now, dial, false, 0, text);
            }
            Failure::Refused(refused) => return self.end(Ended::Refused(refused)),
            Failure::NotLeader { leader } => {
                self.seek.failed(now, dial, false, 0, text);
                if let Some(leader) = leader.filter(|leader| *leader != master) {
                    self.seek.named(now, &leader);
                }
            }
            Failure::Busy { retry_after_ms } => self.seek.failed(now, dial, false, retry_after_ms, text),
            Failure::Transport(_) => {
                self.seek.failed(now, dial, false, 0, text);
                self.outputs.push_back(Output::Forget { master });
            }
            Failure::OutcomeUnknown | Failure::Resync => self.seek.failed(now, dial, false, 0, text),
        }
        self.on_time(now);
    }

    /// A call that was sent on behalf of `dial` is over.
    pub fn on_reply(&mut self, now: u64, dial: DialId, ticket: Ticket, result: Result<Reply, Failure>) {
        let Some(call) = self.open.get(&ticket) else { return };
        let current = call.stage == Stage::Sent(dial);
        match result {
            // Done is done, whoever says so; a refusal counts only from the leader that was asked last.
            Ok(reply) => self.finish(now, ticket, Ok(reply)),
            Err(_) if !current || self.ended.is_some() => {}
            Err(Failure::Refused(refused)) => self.finish(now, ticket, Err(refused.into())),
            Err(Failure::Busy { retry_after_ms }) => {
                let rest = retry_after_ms.max(1) + self.seek.below(retry_after_ms.max(1) / 2 + 1);
                self.set_stage(ticket, Stage::Resting(now + rest));
            }
            Err(Failure::Fenced) => self.end(Ended::Fenced),
            Err(Failure::Completed(why)) => self.on_completed(now, why),
            Err(failure) => {
                let once = matches!(*call.request, Request::SendMessage { .. });
                match once {
                    true => self.finish(now, ticket, Err(CallError::Lost)),
                    false => self.set_stage(ticket, Stage::Parked),
                }
                self.lose(now, failure);
            }
        }
    }

    /// The cluster has completed the framework. The end of the stream may overtake the answer to the very call that
    /// asked for it.
    fn on_completed(&mut self, now: u64, why: String) {
        let asked =
            self.open.iter().find(|(_, call)| *call.request == Request::Teardown).map(|(ticket, _)| *ticket);
        match asked {
            Some(ticket) => self.finish(now, ticket, Ok(Reply::Done { index: 0 })),
            None => self.end(Ended::Completed(why)),
        }
    }

    /// The author is gone: nothing more is wanted.
    pub fn close(&mut self) {
        self.end(Ended::Closed);
    }

    fn on_event(&mut self, now: u64, heard: Heard) {
        match heard {
            Heard::Snapshot(tasks) => self.tasks.add_snapshot(tasks),
            Heard::SnapshotEnd { index } => {
                let difference = self.tasks.end_snapshot(index);
                self.deliver(Event::Synced { changed: difference.changed, gone: difference.gone });
                self.flush_acks(now);
            }
            Heard::Offers(offers) => {
                self.offers.extend(offers.iter().map(|offer| (offer.id, (offer.agent, offer.role.clone()))));
                self.deliver(Event::Offers(offers));
            }
            Heard::Rescind(ids) => {
                ids.iter().for_each(|id| drop(self.offers.remove(id)));
                self.deliver(Event::Rescinded(ids));
            }
            Heard::Update(update) => {
                let (launch, (master_seq, task_seq)) = (update.launch, update.status.position());
                if let Some(view) = self.tasks.update(update) {
                    let ack = Some(Ack { launch, master_seq, task_seq });
                    self.outputs.push_back(Output::Deliver { event: Event::Update(view), ack });
                }
                self.flush_acks(now);
            }
            Heard::Reconciled { task, update } => {
                let known = self.tasks.views().get(&task);
                let view = update.map(|update| TaskView {
                    role: known.and_then(|view| view.role.clone()),
                    resources: known.and_then(|view| view.resources.clone()),
                    launch: update.launch,
                    task: update.task,
                    agent: update.agent,
                    status: update.status,
                });
                self.deliver(Event::Reconciled { task, view });
            }
            Heard::AgentLost { agent, removed } => self.deliver(Event::AgentLost { agent, removed }),
            Heard::ExecutorEnded { agent, executor, status } => {
                self.deliver(Event::ExecutorEnded { agent, executor, status });
            }
            Heard::Message { agent, executor, data } => {
                self.deliver(Event::Message { agent, executor, data });
            }
            Heard::Heartbeat | Heard::Subscribed { .. } | Heard::End(_) => {}
        }
    }

    /// The subscription is lost; what to do depends on why.
    fn lose(&mut self, now: u64, failure: Failure) {
        match failure {
            Failure::Fenced => return self.end(Ended::Fenced),
            Failure::Completed(why) => return self.on_completed(now, why),
            Failure::Refused(refused) => return self.end(Ended::Refused(refused)),
            _ => {}
        }
        let Some(live) = self.live.take() else { return };
        self.outputs.push_back(Output::Hang { dial: live.dial });
        let mut lost = Vec::new();
        for (ticket, call) in self.open.iter_mut().filter(|(_, call)| call.stage == Stage::Sent(live.dial)) {
            call.stage = Stage::Parked;
            lost.extend(matches!(*call.request, Request::SendMessage { .. }).then_some(*ticket));
        }
        lost.into_iter().for_each(|ticket| self.finish(now, ticket, Err(CallError::Lost)));
        self.deliver(Event::Disconnected);
        let offers: Vec<OfferId> = std::mem::take(&mut self.offers).into_keys().collect();
        if !offers.is_empty() {
            self.deliver(Event::Rescinded(offers));
        }
        let suspect = matches!(failure, Failure::Transport(_)).then_some(live.master.as_str());
        self.seek.begin(now, suspect);
        if suspect.is_some() {
            self.outputs.push_back(Output::Forget { master: live.master.clone() });
        }
        match failure {
            Failure::NotLeader { leader: Some(leader) } if leader != live.master => {
                self.seek.named(now, &leader)
            }
            Failure::Resync => {
                self.resyncs = if now - live.since > RESYNC_CALM_MS { 0 } else { self.resyncs + 1 };
                if self.resyncs > 1 {
                    let pause = (RESYNC_PAUSE_MIN_MS << (self.resyncs - 2).min(6)).min(RESYNC_PAUSE_MAX_MS);
                    self.seek.pause_until(now + pause);
                }
            }
            Failure::Busy { retry_after_ms } => self.seek.pause_until(now + retry_after_ms),
            _ => {}
        }
        self.on_time(now);
    }

    fn end(&mut self, why: Ended) {
        if self.ended.is_some() {
            return;
        }
        let live = self.live.take().map(|live| live.dial);
        let dials = self.seek.end(DialId(0)).into_iter().chain(live);
        self.outputs.extend(dials.map(|dial| Output::Hang { dial }));
        for (ticket, call) in std::mem::take(&mut self.open) {
            if !call.own {
                let result = Err(CallError::Ended(why.clone()));
                self.outputs.push_back(Output::Answer { ticket, result });
            }
        }
        self.ended = Some(why.clone());
        self.outputs.push_back(Output::End(why));
    }

    fn dial(&mut self, now: u64, master: String) {
        let dial = DialId(self.next_dial);
        self.next_dial += 1;
        self.seek.dialled(now, &master, dial);
        let count = self.infos().count();
        let info = self.infos().nth(self.infos_tried % count).unwrap_or(&self.config.info).clone();
        self.infos_said.retain(|before, _| before.0 + DIALS_REMEMBERED > dial.0);
        self.infos_said.insert(dial, info.clone());
        let subscribe = Box::new(Subscribe {
            info,
            framework: self.framework,
            session: self.session,
            origin: self.config.origin,
            suppressed: self.suppressed.iter().cloned().collect(),
        });
        self.outputs.push_back(Output::Dial { dial, master, subscribe });
    }

    /// Whether a subscription that was refused may have been so for its info only, and there is another to try.
    fn may_be_called_otherwise(&mut self, dial: DialId) -> bool {
        self.infos_refused.extend(self.infos_said.remove(&dial));
        self.infos().any(|info| !self.infos_refused.contains(info))
    }

    /// What the cluster may know of the framework: what it was told last, and what it is being told.
    fn infos(&self) -> impl Iterator<Item = &FrameworkInfo> {
        let changes = self.open.values().filter_map(|call| match &*call.request {
            Request::UpdateFramework(info) => Some(info),
            _ => None,
        });
        std::iter::once(&self.config.info).chain(changes)
    }

    fn open_call(&mut self, now: u64, request: Request, own: bool) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        if let Some(ended) = &self.ended {
            let result = Err(CallError::Ended(ended.clone()));
            self.outputs.push_back(Output::Answer { ticket, result });
            return ticket;
        }
        let seq = if request.is_protected() { self.next_seq } else { 0 };
        self.next_seq += u64::from(seq > 0);
        let places = match &request {
            Request::Accept { parts, .. } => parts
                .iter()
                .map(|part| part.offers.first().and_then(|id| self.offers.get(id)).cloned())
                .collect(),
            _ => Vec::new(),
        };
        self.acking |= own;
        self.open
            .insert(ticket, OpenCall { seq, request: Arc::new(request), stage: Stage::Parked, own, places });
        self.send_ready(now);
        ticket
    }

    /// Sends what waits, in the order in which it was asked.
    fn send_ready(&mut self, now: u64) {
        let (Some(live), Some(framework), Some(session)) = (&self.live, self.framework, self.session) else {
            return;
        };
        let done_below =
            self.open.values().map(|call| call.seq).filter(|seq| *seq > 0).min().unwrap_or(self.next_seq);
        for (ticket, call) in &mut self.open {
            let waits = match call.stage {
                Stage::Parked => true,
                Stage::Resting(until) => until <= now,
                Stage::Sent(_) => false,
            };
            if !waits || call.seq >= done_below + WINDOW {
                continue;
            }
            call.stage = Stage::Sent(live.dial);
            let header = Header { framework, session, seq: call.seq, done_below };
            self.outputs.push_back(Output::Send {
                dial: live.dial,
                master: live.master.clone(),
                ticket: *ticket,
                header,
                request: call.request.clone(),
            });
        }
    }

    fn finish(&mut self, now: u64, ticket: Ticket, result: Result<Reply, CallError>) {
        let Some(call) = self.open.remove(&ticket) else { return };
        if let Ok(Reply::Accepted(accepted)) = &result {
            self.on_accepted(&call, accepted);
        }
        // A malformed call leaves its offers alive.
        let malformed =
            matches!(&result, Err(CallError::Refused(refused)) if refused.kind == RefusedKind::Invalid);
        match &*call.request {
            Request::Accept { parts, .. } if !malformed => {
                parts.iter().flat_map(|part| &part.offers).for_each(|id| drop(self.offers.remove(id)));
            }
            Request::Decline { offers, .. } if !malformed => {
                offers.iter().for_each(|id| drop(self.offers.remove(id)));
            }
            Request::Acknowledge(acks) if result.is_ok() => self.tasks.acknowledged(acks),
            Request::UpdateFramework(info) => {
                // Two that were asked at once may take effect, and be answered, in any order.
                if let Ok(Reply::Done { index }) = result
                    && index > self.info_index
                {
                    self.info_index = index;
                    self.config.info.clone_from(info);
                }
                self.infos_tried = 0;
                self.infos_refused.clear();
            }
            _ => {}
        }
        self.acking &= !call.own;
        let torn_down = *call.request == Request::Teardown && result.is_ok();
        if !call.own {
            self.outputs.push_back(Output::Answer { ticket, result });
        }
        if torn_down {
            return self.end(Ended::TornDown);
        }
        self.flush_acks(now);
        self.send_ready(now);
    }

    fn on_accepted(&mut self, call: &OpenCall, accepted: &Accepted) {
        let Request::Accept { parts, .. } = &*call.request else { return };
        for ((part, place), outcomes) in parts.iter().zip(&call.places).zip(&accepted.parts) {
            let Some((agent, role)) = place else { continue };
            for (operation, outcomes) in part.operations.iter().zip(outcomes) {
                for ((spec, task), outcome) in operation.tasks().zip(outcomes) {
                    let Ok(id) = outcome else { continue };
                    let view = TaskView {
                        launch: *id,
                        task: task.task_id.clone(),
                        agent: *agent,
                        role: Some(role.clone()),
                        resources: Some(spec.resources.clone()),
                        status: Status::new(TaskState::Staging, Reason::None, Source::Master),
                    };
                    if let Some(view) = self.tasks.launched(view, accepted.index) {
                        self.deliver(Event::Update(view));
                    }
                }
            }
        }
    }

    /// One Acknowledge is under way at a time: what comes meanwhile goes together into the next.
    fn flush_acks(&mut self, now: u64) {
        if self.live.is_none() || self.acking {
            return;
        }
        let acks = self.tasks.take_acks();
        if !acks.is_empty() {
            self.open_call(now, Request::Acknowledge(acks), true);
        }
    }

    fn deliver(&mut self, event: Event) {
        self.outputs.push_back(Output::Deliver { event, ack: None });
    }

    fn set_stage(&mut self, ticket: Ticket, stage: Stage) {
        if let Some(call) = self.open.get_mut(&ticket) {
            call.stage = stage;
        }
    }

    fn roles(&self, asked: &[Role]) -> Vec<Role> {
        if asked.is_empty() { self.config.info.roles.clone() } else { asked.to_vec() }
    }
}

fn failure_text(failure: &Failure) -> String {
    match failure {
        Failure::Transport(why) => why.clone(),
        Failure::NotLeader { leader: Some(leader) } => format!("does not lead; names {leader}"),
        Failure::NotLeader { leader: None } => "does not lead and knows no leader".into(),
        Failure::OutcomeUnknown => "lost its leadership".into(),
        Failure::Fenced => "SESSION_FENCED".into(),
        Failure::Completed(why) => format!("the framework is completed: {why}"),
        Failure::Resync => "cut a slow reader".into(),
        Failure::Busy { retry_after_ms } => format!("busy, asks to come back after {retry_after_ms} ms"),
        Failure::Refused(refused) => refused.to_string(),
    }
}
