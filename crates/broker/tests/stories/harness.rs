//! A broker and a registry with a log of one.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use proffer_broker::{Broker, Effect, Lost, Settings, Tag};
use proffer_registry::Registry;
use proffer_types::call::{AcceptCallPart, Call, ConnectionId, ReplyId};
use proffer_types::command::{CallId, Command, Entry, Launch, Operation};
use proffer_types::event::{AgentOrder, FrameworkEvent, Hello, Refused, Reply, StreamEnd, Update};
use proffer_types::{
    AgentId, AgentInfo, BootId, Caller, ClusterId, ClusterTime, Epoch, FrameworkId, FrameworkInfo, LaunchId,
    MasterId, Offer, OfferId, Reason, RequestId, Resources, Role, SessionId, Source, Status, TaskId,
    TaskLaunch, TaskSpec, TaskState,
};

/// Everything that was sent on one stream.
#[derive(Default)]
pub(crate) struct Stream {
    pub(crate) events: Vec<FrameworkEvent>,
    pub(crate) orders: Vec<AgentOrder>,
    pub(crate) end: Option<StreamEnd>,
}

pub(crate) struct Harness {
    pub(crate) registry: Registry,
    pub(crate) broker: Broker,
    pub(crate) now: u64,
    index: u64,
    term: u64,
    /// Proposals are held here while `hold`.
    pub(crate) held: VecDeque<(Tag, Caller, Command)>,
    pub(crate) hold: bool,
    pub(crate) streams: BTreeMap<ConnectionId, Stream>,
    pub(crate) answers: BTreeMap<ReplyId, Result<Reply, Refused>>,
    next: u64,
}

impl Harness {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::new();
        let form = Entry {
            term: 1,
            time: ClusterTime(0),
            wall_ms: 0,
            caller: Caller::master(),
            command: Command::Form {
                cluster: ClusterId([7; 16]),
                masters: vec![(MasterId(1), "a:1".into())],
            },
        };
        registry.apply(1, 1, &form);
        let broker = Broker::begin(Settings::default(), epoch(1), 0, ClusterTime(0), &registry);
        Self {
            registry,
            broker,
            now: 0,
            index: 1,
            term: 1,
            held: VecDeque::new(),
            hold: false,
            streams: BTreeMap::new(),
            answers: BTreeMap::new(),
            next: 0,
        }
    }

    /// Another leader takes over with the same log.
    pub(crate) fn new_leader(&mut self) {
        self.term += 1;
        self.held.clear();
        let next =
            Broker::begin(Settings::default(), epoch(self.term), 0, self.registry.time(), &self.registry);
        let old = std::mem::replace(&mut self.broker, next);
        for effect in old.end() {
            self.effect(effect);
        }
        self.now = self.registry.time().0;
    }

    pub(crate) fn call(&mut self, call: Call) -> ReplyId {
        self.next += 1;
        let reply = ReplyId(self.next);
        self.broker.on_call(&self.registry, ClusterTime(self.now), Caller::anonymous(), Some(reply), call);
        self.settle();
        reply
    }

    pub(crate) fn tell(&mut self, call: Call) {
        self.broker.on_call(&self.registry, ClusterTime(self.now), Caller::anonymous(), None, call);
        self.settle();
    }

    /// Lets time go on by `ms`, stopping at every deadline.
    pub(crate) fn pass(&mut self, ms: u64) {
        let end = self.now + ms;
        while self.now < end {
            let due = self.broker.next_deadline().map_or(end, |due| due.0).clamp(self.now + 1, end);
            self.now = due;
            self.broker.on_time(&self.registry, ClusterTime(self.now));
            self.settle();
        }
    }

    pub(crate) fn settle(&mut self) {
        loop {
            for effect in self.broker.take_effects() {
                self.effect(effect);
            }
            if self.hold || self.held.is_empty() {
                break;
            }
            self.apply_one();
        }
        self.broker.on_time(&self.registry, ClusterTime(self.now));
        for effect in self.broker.take_effects() {
            self.effect(effect);
        }
        if !self.hold {
            self.broker.check(&self.registry).expect("broker and registry agree");
            self.registry.check().expect("the registry is sound");
        }
    }

    pub(crate) fn apply_one(&mut self) {
        let Some((tag, caller, command)) = self.held.pop_front() else { return };
        self.index += 1;
        let entry = Entry {
            term: self.term,
            time: ClusterTime(self.now),
            wall_ms: 1_000 + self.now,
            caller,
            command,
        };
        let changes = self.registry.apply(self.index, self.term, &entry);
        self.broker.on_applied(&self.registry, ClusterTime(self.now), Some(tag), self.index, &changes);
    }

    pub(crate) fn lose_one(&mut self, lost: Lost) {
        let (tag, ..) = self.held.pop_front().expect("a proposal");
        self.broker.on_lost(&self.registry, tag, lost);
        for effect in self.broker.take_effects() {
            self.effect(effect);
        }
    }

    fn effect(&mut self, effect: Effect) {
        match effect {
            Effect::Propose { tag, caller, command } => self.held.push_back((tag, caller, *command)),
            Effect::Answer { reply, result } => {
                assert!(self.answers.insert(reply, result).is_none(), "a call is answered once");
            }
            Effect::ToFramework { connection, event } => {
                self.streams.entry(connection).or_default().events.push(event);
            }
            Effect::ToAgent { connection, order } => {
                self.streams.entry(connection).or_default().orders.push(order)
            }
            Effect::Deliver { reply, connection, order } => {
                self.streams.entry(connection).or_default().orders.push(order);
                if let Some(reply) = reply {
                    let done = Reply::Done { index: self.registry.applied() };
                    assert!(self.answers.insert(reply, Ok(done)).is_none(), "a call is answered once");
                }
            }
            Effect::Close { connection, end } => self.streams.entry(connection).or_default().end = Some(end),
            Effect::Alarm { message } => panic!("alarm: {message}"),
        }
    }

    pub(crate) fn connection(&mut self) -> ConnectionId {
        self.next += 1;
        ConnectionId(self.next)
    }

    /// A new agent with an open session.
    pub(crate) fn agent(&mut self, resources: &str) -> TestAgent {
        let connection = self.connection();
        let instance = RequestId(u128::from(self.next));
        let mut agent = TestAgent {
            id: AgentId(0),
            connection,
            instance,
            resources: Resources::parse(resources).expect(resources),
            last_seq: 0,
        };
        self.tell(Call::AgentHello { connection, hello: agent.hello(None) });
        agent.id = match self.orders(connection).as_slice() {
            [AgentOrder::Welcome { agent, .. }] => *agent,
            other => panic!("expected a welcome, not {other:?}"),
        };
        self.attach(&mut agent);
        agent
    }

    /// Opens the agent's session anew, holding nothing.
    pub(crate) fn attach(&mut self, agent: &mut TestAgent) -> Vec<AgentOrder> {
        agent.connection = self.connection();
        let hello = agent.hello(Some(agent.id));
        self.tell(Call::AgentHello { connection: agent.connection, hello });
        self.orders(agent.connection)
    }

    /// Opens the agent's session anew on `agent.connection`, listing what it holds.
    pub(crate) fn attach_listing(&mut self, agent: &mut TestAgent, held: Vec<proffer_types::command::Held>) {
        let mut hello = agent.hello(Some(agent.id));
        hello.digest =
            proffer_types::agent::holdings_digest(held.iter().map(|h| (h.launch, h.status.task_seq)));
        hello.digest ^= 1;
        let connection = agent.connection;
        self.tell(Call::AgentHello { connection, hello });
        assert_eq!(self.orders(connection), [AgentOrder::SendListing]);
        self.tell(Call::AgentListing { connection, held });
    }

    /// Subscribes while proposals are held.
    pub(crate) fn framework_held(&mut self, roles: &[&str]) -> TestFramework {
        let connection = self.connection();
        let roles = roles.iter().map(|role| Role::new(role).expect(role)).collect();
        let info = FrameworkInfo { roles, failover_timeout_ms: 60_000, ..FrameworkInfo::default() };
        let origin = RequestId(u128::from(self.next));
        let framework =
            TestFramework { id: FrameworkId(0), session: SessionId(0), connection, seq: 0, info, origin };
        self.call(framework.subscribe(None, None));
        framework
    }

    pub(crate) fn framework(&mut self, roles: &[&str]) -> TestFramework {
        self.framework_with(roles, |_| {})
    }

    pub(crate) fn framework_with(
        &mut self,
        roles: &[&str],
        with: impl FnOnce(&mut FrameworkInfo),
    ) -> TestFramework {
        let connection = self.connection();
        let mut info = FrameworkInfo {
            name: "test".into(),
            roles: roles.iter().map(|role| Role::new(role).expect(role)).collect(),
            failover_timeout_ms: 60_000,
            ..FrameworkInfo::default()
        };
        with(&mut info);
        let origin = RequestId(u128::from(self.next));
        let mut framework =
            TestFramework { id: FrameworkId(0), session: SessionId(0), connection, seq: 0, info, origin };
        self.call(framework.subscribe(None, None));
        self.subscribed(&mut framework);
        framework
    }

    /// Takes what Subscribed says.
    pub(crate) fn subscribed(&mut self, framework: &mut TestFramework) {
        let events = &self.streams[&framework.connection].events;
        let (id, session) = events
            .iter()
            .find_map(|event| match event {
                FrameworkEvent::Subscribed { framework, session, .. } => Some((*framework, *session)),
                _ => None,
            })
            .expect("subscribed");
        (framework.id, framework.session) = (id, session);
    }

    /// Takes all offers that were sent on the framework's stream.
    pub(crate) fn offers(&mut self, framework: &TestFramework) -> Vec<Offer> {
        let mut offers = Vec::new();
        for event in self.take_events(framework) {
            if let FrameworkEvent::Offers(more) = event {
                offers.extend(more);
            }
        }
        offers
    }

    pub(crate) fn updates(&mut self, framework: &TestFramework) -> Vec<Update> {
        let events = self.take_events(framework).into_iter();
        events
            .filter_map(|e| if let FrameworkEvent::Update(update) = e { Some(update) } else { None })
            .collect()
    }

    pub(crate) fn take_events(&mut self, framework: &TestFramework) -> Vec<FrameworkEvent> {
        self.streams.get_mut(&framework.connection).map(|s| std::mem::take(&mut s.events)).unwrap_or_default()
    }

    pub(crate) fn orders(&mut self, connection: ConnectionId) -> Vec<AgentOrder> {
        self.streams.get_mut(&connection).map(|s| std::mem::take(&mut s.orders)).unwrap_or_default()
    }

    /// Launches one task; returns its launch id.
    pub(crate) fn launch(
        &mut self,
        framework: &mut TestFramework,
        offer: &Offer,
        name: &str,
        resources: &str,
    ) -> LaunchId {
        let reply = self.call(framework.accept(&[offer.id], &[(name, resources)], 5_000));
        match &self.answers[&reply] {
            Ok(Reply::Accepted(answer)) if answer.outcomes == [None] => answer.first_launch,
            other => panic!("not accepted: {other:?}"),
        }
    }

    pub(crate) fn status(&mut self, agent: &TestAgent, launch: LaunchId, task_seq: u32, state: TaskState) {
        let status = Status { task_seq, ..Status::new(state, Reason::None, Source::Agent) };
        self.tell(Call::AgentStatuses { connection: agent.connection, statuses: vec![(launch, status)] });
    }
}

pub(crate) struct TestAgent {
    pub(crate) id: AgentId,
    pub(crate) connection: ConnectionId,
    instance: RequestId,
    pub(crate) resources: Resources,
    pub(crate) last_seq: u64,
}

impl TestAgent {
    pub(crate) fn hello(&self, agent: Option<AgentId>) -> Box<Hello> {
        Box::new(Hello {
            agent,
            instance: self.instance,
            info: AgentInfo {
                resources: self.resources.clone(),
                features: ["task_group", "executor"].map(str::to_owned).into(),
                ..AgentInfo::default()
            },
            boot_id: BootId(1),
            last_seq: self.last_seq,
            digest: proffer_types::agent::holdings_digest([]),
            epoch_seen: Epoch::default(),
            cluster: None,
        })
    }
}

pub(crate) struct TestFramework {
    pub(crate) id: FrameworkId,
    pub(crate) session: SessionId,
    pub(crate) connection: ConnectionId,
    pub(crate) seq: u64,
    pub(crate) info: FrameworkInfo,
    origin: RequestId,
}

impl TestFramework {
    pub(crate) fn subscribe(&self, framework: Option<FrameworkId>, session: Option<SessionId>) -> Call {
        Call::Subscribe {
            connection: self.connection,
            framework,
            session,
            origin: self.origin,
            info: self.info.clone(),
            suppressed: Vec::new(),
        }
    }

    /// Another process of the same framework, which knows nothing but its id.
    pub(crate) fn successor(&self, connection: ConnectionId) -> Self {
        let origin = RequestId(u128::from(connection.0) << 64);
        Self { id: self.id, session: SessionId(0), connection, seq: 0, info: self.info.clone(), origin }
    }

    pub(crate) fn call_id(&mut self) -> CallId {
        self.seq += 1;
        CallId {
            framework: self.id,
            session: self.session,
            seq: self.seq,
            done_below: self.seq,
            content: self.seq,
        }
    }

    pub(crate) fn accept(&mut self, offers: &[OfferId], tasks: &[(&str, &str)], filter_ms: u64) -> Call {
        let launches = tasks.iter().map(|(name, resources)| {
            Operation::Launch(Launch { spec: Arc::new(spec(resources)), tasks: vec![Ok(task(name))] })
        });
        self.operate(offers, launches.collect(), filter_ms)
    }

    pub(crate) fn operate(&mut self, offers: &[OfferId], operations: Vec<Operation>, filter_ms: u64) -> Call {
        let parts = vec![AcceptCallPart { offers: offers.to_vec(), operations }];
        Call::Accept { call: self.call_id(), atomic: false, parts, filter_ms }
    }

    pub(crate) fn decline(&self, offers: &[Offer], filter_ms: u64) -> Call {
        let offers = offers.iter().map(|offer| offer.id).collect();
        Call::Decline { framework: self.id, session: self.session, offers, filter_ms }
    }
}

pub(crate) fn spec(resources: &str) -> TaskSpec {
    TaskSpec {
        argv: vec!["true".into()],
        resources: Resources::parse(resources).expect(resources),
        kill_grace_ms: 5_000,
        ..TaskSpec::default()
    }
}

pub(crate) fn task(name: &str) -> TaskLaunch {
    TaskLaunch {
        task_id: TaskId::new(name).expect(name),
        name: String::new(),
        env: BTreeMap::new(),
        array: None,
    }
}

fn epoch(term: u64) -> Epoch {
    Epoch { generation: 0, term }
}
