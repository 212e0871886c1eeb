//! Frameworks: the SDK's core, and an author who takes offers, launches, kills, and sometimes dies.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use proffer_client::core::{
    Accepted, Config, Core, DialId, Ended, Event, Failure, Header, Heard, Launch, Member, Offer, Operation,
    Output, Part, RefusedKind, Reply as SdkReply, Request, SnapshotTask, Subscribe, TaskView, Ticket, Update,
};
use proffer_client::core::{Refused as SdkRefused, RefusedTask};
use proffer_registry::Registry;
use proffer_types::call::{AcceptCallPart, Call};
use proffer_types::command::{self, CallId, Rejection};
use proffer_types::container::{Check, ExecutorSpec, HealthCheck, Probe};
use proffer_types::event::{FrameworkEvent, Refused, Reply, StreamEnd};
use proffer_types::{
    Epoch, ExecutorId, FrameworkId, FrameworkInfo, RequestId, Resources, Role, Task, TaskId, TaskLaunch,
    TaskSpec, features, limits,
};

use super::links::Client;
use super::masters::{address, master_at};
use super::world::{Happening, Place, World};

/// Tasks of one framework that have not ended, at most.
const TASKS_MAX: usize = 12;

pub(crate) struct FrameworkNode {
    pub(crate) live: Option<LiveFramework>,
    /// Counts the lives of the process.
    pub(crate) life: u64,
    /// What a later life of the process knows of the earlier ones.
    pub(crate) id: Option<FrameworkId>,
    /// Counts the tasks of all lives.
    tasks: u64,
    /// Counts the messages of all lives to executors.
    messages: u64,
    /// It is over: completed, and nobody begins it anew.
    pub(crate) over: bool,
}

pub(crate) struct LiveFramework {
    pub(crate) core: Core,
    dials: BTreeMap<DialId, Option<u64>>,
    offers: VecDeque<Offer>,
    /// Newest position and finality of what the author was told, by launch.
    time_at: Option<u64>,
    suppressed: bool,
}

/// What a call's answer must be brought back to.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) to: AskedFor,
    shape: Vec<Vec<usize>>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum AskedFor {
    Subscribe(DialId),
    Call(DialId, Ticket),
}

#[derive(Clone, Debug)]
pub(crate) struct SentCall {
    dial: DialId,
    master: usize,
    ticket: Ticket,
    header: Header,
    request: Arc<Request>,
    again: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct SentDial {
    dial: DialId,
    master: usize,
    subscribe: Box<Subscribe>,
}

#[derive(Clone, Debug)]
pub(crate) struct SentReply {
    asked: Asked,
    result: Result<Reply, Failure>,
}

impl SentReply {
    pub(crate) fn new(asked: Asked, result: Result<Reply, Refused>) -> Self {
        Self { asked, result: result.map_err(failure) }
    }

    pub(crate) fn lost(asked: Asked) -> Self {
        Self { asked, result: Err(Failure::Transport("lost".into())) }
    }
}

impl FrameworkNode {
    pub(crate) fn new(_: usize) -> Self {
        Self { live: None, life: 0, id: None, tasks: 0, messages: 0, over: false }
    }
}

impl World {
    pub(crate) fn start_framework(&mut self, n: usize) {
        if self.frameworks[n].live.is_some() || self.frameworks[n].over {
            return;
        }
        let origin = RequestId(self.rng.wide());
        let seed = self.rng.next();
        let failover_timeout_ms = self.rng.one_of(&[0, 2_000, 10_000, 600_000]);
        let node = &mut self.frameworks[n];
        node.life += 1;
        let life = node.life;
        let info = FrameworkInfo {
            name: format!("framework{n}"),
            roles: vec![own_role(n)],
            failover_timeout_ms,
            ..FrameworkInfo::default()
        };
        let config = Config {
            masters: (0..self.masters.len()).map(address).collect(),
            info,
            framework: node.id,
            suppressed: Default::default(),
            origin,
            seed,
        };
        node.live = Some(LiveFramework {
            core: Core::new(config),
            dials: BTreeMap::new(),
            offers: VecDeque::new(),
            time_at: None,
            suppressed: false,
        });
        self.at(0, Happening::FrameworkTime { framework: n, life });
        self.at(50, Happening::FrameworkActs { framework: n, life });
    }

    pub(crate) fn crash_framework(&mut self, n: usize) {
        if self.calm || self.frameworks[n].live.take().is_none() {
            return;
        }
        self.checker.counts.framework_crashes += 1;
        self.break_links(|link| matches!(link.client, Client::Framework { framework, .. } if framework == n));
        for link in self.links.values_mut() {
            if matches!(link.client, Client::Framework { framework, .. } if framework == n) {
                link.client_open = false;
            }
        }
    }

    fn framework_live(&mut self, n: usize, life: u64) -> Option<&mut LiveFramework> {
        let node = &mut self.frameworks[n];
        node.live.as_mut().filter(|_| node.life == life)
    }

    pub(crate) fn framework_time(&mut self, n: usize, life: u64) {
        let now = self.now;
        if let Some(live) = self.framework_live(n, life) {
            live.time_at = None;
            live.core.on_time(now);
            self.flush_framework(n);
        }
    }

    pub(crate) fn framework_heard(&mut self, client: Client, heard: Vec<Heard>) {
        let Client::Framework { framework: n, life, dial } = client else { return };
        let now = self.now;
        for heard in heard {
            let Some(live) = self.framework_live(n, life) else { return };
            live.core.on_heard(now, dial, heard);
            self.flush_framework(n);
        }
    }

    pub(crate) fn framework_stream_end(&mut self, client: Client, failure: Failure) {
        let Client::Framework { framework: n, life, dial } = client else { return };
        let now = self.now;
        if let Some(live) = self.framework_live(n, life) {
            live.dials.remove(&dial);
            live.core.on_stream_end(now, dial, failure);
            self.flush_framework(n);
        }
    }

    pub(crate) fn framework_reply(&mut self, n: usize, life: u64, reply: SentReply) {
        let now = self.now;
        let Some(live) = self.framework_live(n, life) else { return };
        match (reply.asked.to, reply.result) {
            (AskedFor::Subscribe(_), Ok(_)) => {}
            (AskedFor::Subscribe(dial), Err(failure)) => {
                let link = live.dials.remove(&dial).flatten();
                live.core.on_stream_end(now, dial, failure);
                if let Some(link) = link {
                    self.client_closes(link);
                }
            }
            (AskedFor::Call(dial, ticket), result) => {
                let result = result.map(|reply_| sdk_reply(reply_, &reply.asked.shape));
                live.core.on_reply(now, dial, ticket, result);
            }
        }
        self.flush_framework(n);
    }

    /// A Subscribe reaches its master.
    pub(crate) fn dial_arrives(&mut self, n: usize, life: u64, sent: SentDial) {
        let SentDial { dial, master, subscribe } = sent;
        let (here, there) = (Place::Framework(n), Place::Master(master));
        let reachable = self.masters.get(master).is_some_and(super::masters::MasterNode::is_up)
            && !self.blocked.contains(&(here, there))
            && !self.blocked.contains(&(there, here));
        let Some(live) = self.framework_live(n, life).filter(|live| live.dials.contains_key(&dial)) else {
            return;
        };
        if !reachable {
            live.dials.remove(&dial);
            let now = self.now;
            let live = self.frameworks[n].live.as_mut().expect("it dials");
            live.core.on_stream_end(now, dial, Failure::Transport("refused".into()));
            return self.flush_framework(n);
        }
        let connection = self.open_link(Client::Framework { framework: n, life, dial }, master);
        let live = self.frameworks[n].live.as_mut().expect("it dials");
        live.dials.insert(dial, Some(connection.0));
        let Subscribe { info, framework, session, origin, suppressed } = *subscribe;
        let call = Call::Subscribe { connection, framework, session, origin, info, suppressed };
        let asked = Asked { to: AskedFor::Subscribe(dial), shape: Vec::new() };
        self.master_call(master, Some((n, life, asked)), call);
    }

    /// A call reaches its master.
    pub(crate) fn framework_call(&mut self, n: usize, life: u64, sent: SentCall) {
        let SentCall { dial, master, ticket, header, request, again } = sent;
        let shape = match &*request {
            Request::Accept { parts, .. } => parts
                .iter()
                .map(|part| part.operations.iter().map(|operation| operation.tasks().count()).collect())
                .collect(),
            _ => Vec::new(),
        };
        let asked = Asked { to: AskedFor::Call(dial, ticket), shape };
        let (here, there) = (Place::Framework(n), Place::Master(master));
        let up = self.masters.get(master).is_some_and(super::masters::MasterNode::is_up);
        if !up || self.blocked.contains(&(here, there)) {
            let wait = if up { 2_000 } else { 5 };
            let reply = Box::new(SentReply::lost(asked));
            return self.at(wait, Happening::FrameworkReply { framework: n, life, reply });
        }
        let call = call_of(&header, &request);
        let asked = (!again).then_some((n, life, asked));
        self.master_call(master, asked, call);
    }

    /// Does what the SDK says; the author hears what it delivers.
    fn flush_framework(&mut self, n: usize) {
        let life = self.frameworks[n].life;
        loop {
            let Some(live) = &mut self.frameworks[n].live else { return };
            let Some(output) = live.core.poll() else { break };
            match output {
                Output::Dial { dial, master, subscribe } => {
                    live.dials.insert(dial, None);
                    let master = master_at(&master).expect("a master's address");
                    let delay = self.delay();
                    let dial = Box::new(SentDial { dial, master, subscribe });
                    self.at(delay, Happening::DialArrives { framework: n, life, dial });
                }
                Output::Hang { dial } => {
                    if let Some(Some(link)) = live.dials.remove(&dial) {
                        self.client_closes(link);
                    }
                }
                Output::Forget { .. } => {}
                Output::Send { dial, master, ticket, header, request } => {
                    let master = master_at(&master).expect("a master's address");
                    let call = SentCall { dial, master, ticket, header, request, again: false };
                    self.send_call(n, life, call);
                }
                Output::Answer { ticket, result } => {
                    if let Ok(SdkReply::Accepted(accepted)) = &result {
                        for launch in accepted.tasks().flatten() {
                            self.checker.on_told_launched(*launch);
                        }
                    }
                    let _ = ticket;
                }
                Output::Deliver { event, ack } => {
                    self.deliver(n, event);
                    let now = self.now;
                    if let Some(ack) = ack
                        && let Some(live) = &mut self.frameworks[n].live
                    {
                        live.core.handed(now, ack);
                    }
                }
                Output::End(ended) => return self.framework_ended(n, &ended),
            }
        }
        let now = self.now;
        let Some(live) = &mut self.frameworks[n].live else { return };
        if let Some(due) = live.core.next_deadline().filter(|due| live.time_at.is_none_or(|at| *due < at)) {
            live.time_at = Some(due);
            self.at(due.saturating_sub(now).max(1), Happening::FrameworkTime { framework: n, life });
        }
    }

    fn send_call(&mut self, n: usize, life: u64, call: SentCall) {
        let delay = self.delay();
        if call.header.seq > 0 && self.rng.percent(self.weather.duplicates) {
            let again = SentCall { again: true, ..call.clone() };
            let later = delay + self.rng.below(2_000);
            self.at(later, Happening::FrameworkCall { framework: n, life, call: Box::new(again) });
        }
        self.at(delay, Happening::FrameworkCall { framework: n, life, call: Box::new(call) });
    }

    fn framework_ended(&mut self, n: usize, ended: &Ended) {
        let node = &mut self.frameworks[n];
        node.live = None;
        match ended {
            // Its time was up, or it ended itself: the next life is another framework.
            Ended::Completed(_) | Ended::TornDown => node.id = None,
            Ended::Refused(refused) if refused.kind == RefusedKind::NotFound => node.id = None,
            Ended::Fenced | Ended::Closed => {}
            Ended::Refused(refused) => panic!("framework {n} is refused: {refused}"),
        }
        let delay = 100 + self.rng.below(1_000);
        self.at(delay, Happening::StartFramework(n));
    }

    fn deliver(&mut self, n: usize, event: Event) {
        let node = &mut self.frameworks[n];
        let life = node.life;
        let Some(live) = &mut node.live else { return };
        match event {
            Event::Subscribed { framework, .. } => node.id = Some(framework),
            Event::Synced { changed, .. } => {
                for view in changed {
                    self.checker.on_told(n, life, &view, false);
                }
            }
            Event::Offers(offers) => live.offers.extend(offers),
            Event::Rescinded(ids) => live.offers.retain(|offer| !ids.contains(&offer.id)),
            Event::Update(view) => self.checker.on_told(n, life, &view, true),
            Event::Message { data, .. } => self.checker.on_message(n, life, &data),
            Event::Reconciled { .. } | Event::AgentLost { .. } | Event::ExecutorEnded { .. } => {}
            Event::Disconnected => live.offers.clear(),
        }
    }

    /// The author's own moves.
    pub(crate) fn framework_acts(&mut self, n: usize, life: u64) {
        let delay = 20 + self.rng.below(400);
        if self.framework_live(n, life).is_none() {
            return;
        }
        self.at(delay, Happening::FrameworkActs { framework: n, life });
        let dice = self.rng.below(100);
        let pick = self.rng.next();
        let now = self.now;
        let calm = self.calm;
        let node = &mut self.frameworks[n];
        let live = node.live.as_mut().expect("it acts");
        let mut running: Vec<TaskView> =
            live.core.tasks().values().filter(|task| !task.status.state.is_terminal()).cloned().collect();
        if live.core.is_live() && dice < 8 && !running.is_empty() {
            let victim = running.swap_remove(pick as usize % running.len());
            let grace_ms = (pick.is_multiple_of(3)).then_some(pick % 1_000);
            live.core.call(now, Request::Kill { task: victim.task, grace_ms });
        } else if live.core.is_live() && dice < 11 {
            let request =
                if live.suppressed { Request::Revive(Vec::new()) } else { Request::Suppress(Vec::new()) };
            live.suppressed = !live.suppressed;
            live.core.call(now, request);
        } else if live.core.is_live() && dice < 13 {
            live.core.call(now, Request::Reconcile(Vec::new()));
        } else if live.core.is_live() && (14..20).contains(&dice) && !running.is_empty() {
            let (agent, executor) = (running[pick as usize % running.len()].agent, executor_id(pick));
            node.messages += 1;
            let data = [n as u64, node.messages].iter().flat_map(|word| word.to_le_bytes()).collect();
            live.core.call(now, Request::SendMessage { agent, executor, data });
        } else if live.core.is_live() && dice == 20 && !running.is_empty() {
            let (agent, executor) = (running[pick as usize % running.len()].agent, executor_id(pick));
            live.core.call(now, Request::ShutdownExecutor { agent, executor });
        } else if live.core.is_live() && dice == 21 {
            let other = [Role::new("other").expect("a role")];
            let roles =
                std::iter::once(own_role(n)).chain(other.into_iter().filter(|_| pick.is_multiple_of(2)));
            let info = FrameworkInfo {
                name: format!("framework{n} of {now}"),
                roles: roles.collect(),
                failover_timeout_ms: [2_000, 10_000, 600_000][pick as usize % 3],
                ..FrameworkInfo::default()
            };
            live.core.call(now, Request::UpdateFramework(info));
        } else if live.core.is_live() && dice == 13 && !calm && pick.is_multiple_of(10) {
            live.core.call(now, Request::Teardown);
        }
        self.use_offers(n, running.len());
        self.flush_framework(n);
    }

    fn use_offers(&mut self, n: usize, running: usize) {
        let mut room = TASKS_MAX.saturating_sub(running);
        if self.calm {
            room = room.min(2);
        }
        while let Some(offer) = self.frameworks[n].live.as_mut().and_then(|live| live.offers.pop_front()) {
            let now = self.now;
            let (hold, decline, count) = (self.rng.percent(5), self.rng.percent(15), self.rng.below(4));
            if hold {
                // Never answered: it must expire.
                continue;
            }
            let filter_ms = Some(self.rng.one_of(&[0, 200, 1_000]));
            let (size, grace) =
                (self.rng.one_of(&["cpus:1;mem:512MiB", "cpus:0.5;mem:1GiB"]), self.rng.below(2_000));
            let atomic = self.rng.percent(10);
            let (together, run_by) = (self.rng.percent(25), self.rng.percent(30).then(|| self.rng.next()));
            let checked = self.rng.percent(30);
            let node = &mut self.frameworks[n];
            let live = node.live.as_mut().expect("it has offers");
            let count = count.min(room as u64);
            if decline || count == 0 {
                live.core.call(now, Request::Decline { offers: vec![offer.id], filter_ms });
                continue;
            }
            room -= count as usize;
            let resources = Resources::parse(size).expect("resources");
            let plain = TaskSpec { resources, kill_grace_ms: grace, ..TaskSpec::default() };
            let argv = vec!["true".to_owned()];
            let spec = Arc::new(match run_by {
                Some(pick) => TaskSpec {
                    executor: Some(executor(pick)),
                    needs: vec![features::EXECUTOR.into()],
                    ..plain
                },
                None if checked => {
                    let needs = vec![features::CHECKS.into()];
                    TaskSpec { argv, health: Some(health()), needs, ..plain }
                }
                None => TaskSpec { argv, ..plain },
            });
            let tasks = (0..count).map(|_| {
                node.tasks += 1;
                TaskLaunch {
                    task_id: TaskId::new(&format!("t{}", node.tasks)).expect("a name"),
                    name: String::new(),
                    env: BTreeMap::new(),
                    array: None,
                }
            });
            let operation = match together {
                true => {
                    Operation::LaunchGroup(tasks.map(|task| Member { spec: spec.clone(), task }).collect())
                }
                false => Operation::Launch(Launch { spec: spec.clone(), tasks: tasks.collect() }),
            };
            let parts = vec![Part { offers: vec![offer.id], operations: vec![operation] }];
            live.core.call(now, Request::Accept { parts, atomic, filter_ms });
        }
    }
}

fn own_role(n: usize) -> Role {
    Role::new(&format!("role{}", n % 2)).expect("a role")
}

fn executor_id(pick: u64) -> ExecutorId {
    ExecutorId::new(["x", "y"][pick as usize % 2]).expect("a name")
}

/// One of two executors; now and then one is described otherwise than before.
fn executor(pick: u64) -> ExecutorSpec {
    let size = if pick.is_multiple_of(10) { "cpus:0.5;mem:128MiB" } else { "cpus:0.5;mem:256MiB" };
    let spec = TaskSpec {
        argv: vec!["executor".into()],
        resources: Resources::parse(size).expect("resources"),
        kill_grace_ms: 500,
        ..TaskSpec::default()
    };
    ExecutorSpec { id: executor_id(pick / 10), spec: Arc::new(spec) }
}

fn health() -> HealthCheck {
    let probe = Probe::Command(vec!["true".into()]);
    let check = Check { probe, delay_ms: 100, interval_ms: 100, timeout_ms: 100 };
    HealthCheck { check, grace_ms: 0, failures: 3 }
}

fn content(request: &Request) -> u64 {
    let mut hasher = DefaultHasher::new();
    format!("{request:?}").hash(&mut hasher);
    hasher.finish()
}

fn call_of(header: &Header, request: &Request) -> Call {
    let Header { framework, session, seq, done_below } = *header;
    let call = CallId { framework, session, seq, done_below, content: content(request) };
    match request.clone() {
        Request::Accept { parts, atomic, filter_ms } => Call::Accept {
            call,
            atomic,
            parts: parts
                .into_iter()
                .map(|part| AcceptCallPart {
                    offers: part.offers,
                    operations: part.operations.into_iter().map(operation_of).collect(),
                })
                .collect(),
            filter_ms: filter_ms.unwrap_or(limits::FILTER_DEFAULT_MS),
        },
        Request::Decline { offers, filter_ms } => Call::Decline {
            framework,
            session,
            offers,
            filter_ms: filter_ms.unwrap_or(limits::FILTER_DEFAULT_MS),
        },
        Request::Suppress(roles) => Call::Suppress { framework, session, roles },
        Request::Revive(roles) => Call::Revive { framework, session, roles },
        Request::Kill { task, grace_ms } => Call::Kill { call, task, grace_ms },
        Request::ShutdownExecutor { agent, executor } => Call::ShutdownExecutor { call, agent, executor },
        Request::SendMessage { agent, executor, data } => {
            Call::SendMessage { framework, session, agent, executor, data }
        }
        Request::UpdateFramework(info) => Call::UpdateFramework { call, info },
        Request::Acknowledge(acks) => Call::Acknowledge { call, acks },
        Request::Reconcile(tasks) => Call::Reconcile { framework, session, tasks },
        Request::Teardown => Call::Teardown { call },
    }
}

fn operation_of(operation: Operation) -> command::Operation {
    let member = |member: Member| command::Member { spec: member.spec, task: Ok(member.task) };
    match operation {
        Operation::Launch(Launch { spec, tasks }) => {
            command::Operation::Launch(command::Launch { spec, tasks: tasks.into_iter().map(Ok).collect() })
        }
        Operation::LaunchGroup(members) => {
            command::Operation::LaunchGroup(members.into_iter().map(member).collect())
        }
    }
}

/// What the protocol makes of a refusal, on its way to the SDK.
fn failure(refused: Refused) -> Failure {
    let (kind, reason) = match &refused {
        Refused::NotLeader { leader } => return Failure::NotLeader { leader: leader.clone() },
        Refused::OutcomeUnknown => return Failure::OutcomeUnknown,
        Refused::Busy { retry_ms } => return Failure::Busy { retry_after_ms: *retry_ms },
        Refused::Rejected(Rejection::SessionFenced) => return Failure::Fenced,
        Refused::Rejected(Rejection::FrameworkCompleted) => return Failure::Completed(refused.to_string()),
        Refused::Rejected(Rejection::UnknownFramework) | Refused::NotFound { .. } => {
            (RefusedKind::NotFound, "")
        }
        Refused::Rejected(Rejection::ContentDiffers) | Refused::Invalid { .. } => (RefusedKind::Invalid, ""),
        Refused::InvalidOffer { .. } => (RefusedKind::Precondition, "INVALID_OFFER"),
        Refused::Atomic { .. }
        | Refused::TaskNotRunning { .. }
        | Refused::AgentUnreachable { .. }
        | Refused::Rejected(_) => (RefusedKind::Precondition, ""),
        Refused::Denied(_) => (RefusedKind::Denied, ""),
    };
    Failure::Refused(SdkRefused { kind, reason: reason.into(), message: refused.to_string() })
}

fn sdk_reply(reply: Reply, shape: &[Vec<usize>]) -> SdkReply {
    let Reply::Accepted(answer) = reply else { return SdkReply::Done { index: reply.index() } };
    if shape.is_empty() {
        return SdkReply::Done { index: answer.index };
    }
    let mut launch = answer.first_launch.0;
    let mut outcomes = answer.outcomes.iter();
    let mut next = || match outcomes.next().copied().flatten() {
        None => {
            launch += 1;
            Ok(proffer_types::LaunchId(launch - 1))
        }
        Some(refusal) => Err(RefusedTask { reason: format!("{refusal:?}"), message: refusal.text().into() }),
    };
    let parts =
        shape.iter().map(|part| part.iter().map(|count| (0..*count).map(|_| next()).collect()).collect());
    SdkReply::Accepted(Accepted { index: answer.index, parts: parts.collect() })
}

/// What the protocol makes of an event, on its way to the SDK.
pub(crate) fn heard(event: FrameworkEvent, registry: &Registry, epoch: Epoch) -> Vec<Heard> {
    match event {
        FrameworkEvent::Subscribed { framework, session, last_seq } => {
            let cluster = registry.cluster().expect("the cluster is formed");
            let mut heard =
                vec![Heard::Subscribed { framework, session, heartbeat_ms: 1_000, cluster, epoch, last_seq }];
            let tasks: Vec<&Task> = registry.tasks_of_framework(framework).collect();
            heard.push(Heard::Snapshot(tasks.iter().map(|task| snapshot_task(task)).collect()));
            heard.push(Heard::SnapshotEnd { index: registry.applied() });
            for task in tasks {
                heard.extend(task.pending.iter().map(|status| {
                    Heard::Update(Update {
                        launch: task.launch_id,
                        task: task.task_id.clone(),
                        agent: task.agent,
                        status: status.clone(),
                    })
                }));
            }
            heard
        }
        FrameworkEvent::Offers(offers) => vec![Heard::Offers(
            offers
                .into_iter()
                .map(|offer| Offer {
                    id: offer.id,
                    agent: offer.agent,
                    role: offer.role,
                    resources: offer.resources,
                    hostname: String::new(),
                    attributes: BTreeMap::new(),
                })
                .collect(),
        )],
        FrameworkEvent::Rescind(ids) => vec![Heard::Rescind(ids)],
        FrameworkEvent::Update(update) => {
            let full = update.launch.zip(update.status).map(|(launch, status)| Update {
                launch,
                task: update.task_id.clone(),
                agent: update.agent,
                status,
            });
            match full {
                Some(full) if update.acknowledge => vec![Heard::Update(full)],
                full => vec![Heard::Reconciled { task: update.task_id, update: full }],
            }
        }
        FrameworkEvent::Failure { agent, removed } => vec![Heard::AgentLost { agent, removed }],
        FrameworkEvent::ExecutorEnded { agent, executor, status } => {
            vec![Heard::ExecutorEnded { agent, executor, status }]
        }
        FrameworkEvent::Message { agent, executor, data } => vec![Heard::Message { agent, executor, data }],
        FrameworkEvent::Heartbeat => vec![Heard::Heartbeat],
        FrameworkEvent::Error(end) => vec![Heard::End(match end {
            StreamEnd::SessionFenced => Failure::Fenced,
            StreamEnd::FrameworkCompleted => Failure::Completed(String::new()),
            StreamEnd::NotLeader => Failure::NotLeader { leader: None },
            StreamEnd::Resync | StreamEnd::Replaced | StreamEnd::Silent => Failure::Resync,
        })],
    }
}

fn snapshot_task(task: &Task) -> SnapshotTask {
    SnapshotTask {
        view: TaskView {
            launch: task.launch_id,
            task: task.task_id.clone(),
            agent: task.agent,
            role: Some(task.role.clone()),
            resources: Some(task.resources.clone()),
            status: task.status.clone(),
        },
        unacknowledged: !task.pending.is_empty(),
    }
}
