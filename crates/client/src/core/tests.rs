//! Stories of one session, and a property: a framework on a lossy road to a small model of the cluster.

use std::collections::{BTreeMap, BTreeSet};

use proffer_types::{ClusterId, ExecutorId, LaunchId, Resources, TaskLaunch, TaskSpec};

use super::*;

fn config(masters: &[&str]) -> Config {
    Config {
        masters: masters.iter().map(|m| (*m).to_owned()).collect(),
        info: FrameworkInfo { name: "test".into(), roles: vec![Role::star()], ..FrameworkInfo::default() },
        framework: None,
        suppressed: BTreeSet::new(),
        origin: RequestId(7),
        seed: 1,
    }
}

fn drain(core: &mut Core) -> Vec<Output> {
    std::iter::from_fn(|| core.poll()).collect()
}

fn dials(outputs: &[Output]) -> BTreeMap<String, DialId> {
    let dial = |output: &Output| match output {
        Output::Dial { dial, master, .. } => Some((master.clone(), *dial)),
        _ => None,
    };
    outputs.iter().filter_map(dial).collect()
}

fn sends(outputs: &[Output]) -> Vec<(DialId, Ticket, Header, Request)> {
    let send = |output: &Output| match output {
        Output::Send { dial, ticket, header, request, .. } => {
            Some((*dial, *ticket, *header, (**request).clone()))
        }
        _ => None,
    };
    outputs.iter().filter_map(send).collect()
}

fn events(outputs: &[Output]) -> Vec<Event> {
    let event = |output: &Output| match output {
        Output::Deliver { event, .. } => Some(event.clone()),
        _ => None,
    };
    outputs.iter().filter_map(event).collect()
}

fn subscribed(term: u64) -> Heard {
    Heard::Subscribed {
        framework: FrameworkId(1),
        session: SessionId(2),
        heartbeat_ms: 15_000,
        cluster: ClusterId([0xab; 16]),
        epoch: Epoch { generation: 0, term },
        last_seq: 0,
    }
}

/// A core that is live at master `a` since time 0, with an empty snapshot.
fn live() -> (Core, DialId) {
    let mut core = Core::new(config(&["a"]));
    core.on_time(0);
    let dial = dials(&drain(&mut core))["a"];
    core.on_heard(0, dial, subscribed(1));
    core.on_heard(0, dial, Heard::SnapshotEnd { index: 10 });
    drain(&mut core);
    (core, dial)
}

/// Time goes on until there is a dial to `master`.
fn dial_again(core: &mut Core, now: &mut u64, master: &str) -> DialId {
    for _ in 0..100 {
        if let Some(dial) = dials(&drain(core)).remove(master) {
            return dial;
        }
        *now = (*now).max(core.next_deadline().expect("something is due"));
        core.on_time(*now);
    }
    panic!("never dialled {master}");
}

fn status(state: TaskState, master_seq: u32, task_seq: u32) -> Status {
    Status { master_seq, task_seq, ..Status::new(state, Reason::None, Source::Agent) }
}

fn update(launch: u64, state: TaskState, task_seq: u32) -> Update {
    let task = TaskId::new(&format!("t{launch}")).unwrap();
    Update { launch: LaunchId(launch), task, agent: AgentId(5), status: status(state, 0, task_seq) }
}

fn view(launch: u64, state: TaskState, task_seq: u32) -> TaskView {
    let Update { launch, task, agent, status } = update(launch, state, task_seq);
    TaskView { launch, task, agent, role: Some(Role::star()), resources: Some(Resources::new()), status }
}

fn ack(launch: u64, task_seq: u32) -> Ack {
    Ack { launch: LaunchId(launch), master_seq: 0, task_seq }
}

fn kill(task: &str) -> Request {
    Request::Kill { task: TaskId::new(task).unwrap(), grace_ms: None }
}

#[test]
fn all_masters_are_dialled_and_the_first_subscribed_wins() {
    let mut core = Core::new(config(&["a", "b", "c"]));
    core.on_time(0);
    let out = drain(&mut core);
    let dials = dials(&out);
    assert_eq!(dials.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
    core.on_heard(1, dials["b"], subscribed(1));
    let out = drain(&mut core);
    let hung: Vec<_> = out.iter().filter(|o| matches!(o, Output::Hang { .. })).collect();
    assert_eq!(hung, [&Output::Hang { dial: dials["a"] }, &Output::Hang { dial: dials["c"] }]);
    assert!(matches!(events(&out)[..], [Event::Subscribed { resumed: false, .. }]));
    core.on_heard(2, dials["a"], subscribed(1));
    assert_eq!(drain(&mut core), [], "a late answer changes nothing");
}

#[test]
fn a_teardown_is_done_when_the_stream_says_so_first() {
    let (mut core, dial) = live();
    let ticket = core.call(1, Request::Teardown);
    drain(&mut core);
    core.on_stream_end(2, dial, Failure::Completed("it was torn down".into()));
    let out = drain(&mut core);
    let done = Output::Answer { ticket, result: Ok(Reply::Done { index: 0 }) };
    assert!(out.contains(&done) && out.last() == Some(&Output::End(Ended::TornDown)), "{out:?}");
    core.on_reply(3, dial, ticket, Ok(Reply::Done { index: 9 }));
    assert_eq!(drain(&mut core), []);
}

#[test]
fn a_named_leader_is_dialled_at_once_but_not_for_ever() {
    let mut core = Core::new(config(&["a"]));
    core.on_time(0);
    let mut dial = dials(&drain(&mut core))["a"];
    let mut hops = 0;
    for (here, there) in [("a", "z"), ("z", "a"), ("a", "z"), ("z", "a"), ("a", "z"), ("z", "a")] {
        core.on_stream_end(0, dial, Failure::NotLeader { leader: Some(there.into()) });
        let next = dials(&drain(&mut core));
        assert!(!next.contains_key(here));
        match next.get(there) {
            Some(next) => (dial, hops) = (*next, hops + 1),
            None => break,
        }
    }
    assert!((1..=4).contains(&hops), "{hops}");
    assert!(core.next_deadline().is_some_and(|at| at > 0), "then it waits");
}

#[test]
fn a_stale_leader_is_not_believed() {
    let mut core = Core::new(config(&["a", "b"]));
    core.on_time(0);
    let first = dials(&drain(&mut core));
    core.on_heard(0, first["a"], subscribed(5));
    core.on_stream_end(1, first["a"], Failure::NotLeader { leader: None });
    let again = dials(&drain(&mut core));
    core.on_heard(2, again["b"], subscribed(4));
    assert!(!core.is_live());
    core.on_heard(3, again["a"], subscribed(6));
    assert!(core.is_live());
}

#[test]
fn a_lost_call_is_repeated_with_the_same_number_and_in_order() {
    let (mut core, dial) = live();
    let first = core.call(1, kill("x"));
    let second = core.call(1, kill("y"));
    let sent = sends(&drain(&mut core));
    assert_eq!(
        sent.iter().map(|s| (s.1, s.2.seq, s.2.done_below)).collect::<Vec<_>>(),
        [(first, 1, 1), (second, 2, 1)]
    );
    core.on_reply(2, dial, second, Err(Failure::OutcomeUnknown));
    assert!(!core.is_live());
    let mut now = 2;
    let third = core.call(now, kill("z"));
    let dial2 = dial_again(&mut core, &mut now, "a");
    core.on_heard(now, dial2, subscribed(2));
    let sent = sends(&drain(&mut core));
    assert_eq!(
        sent.iter().map(|s| (s.1, s.2.seq)).collect::<Vec<_>>(),
        [(first, 1), (second, 2), (third, 3)]
    );
    // An answer of the old connection counts if it is a success, and not if it is a refusal.
    let refused = Refused { kind: RefusedKind::NotFound, reason: "x".into(), message: "y".into() };
    core.on_reply(now, dial, second, Err(Failure::Refused(refused)));
    assert_eq!(drain(&mut core), []);
    core.on_reply(now, dial, first, Ok(Reply::Done { index: 3 }));
    assert!(matches!(drain(&mut core)[..], [Output::Answer { ticket, result: Ok(_) }] if ticket == first));
    core.call(now, kill("w"));
    assert_eq!(
        sends(&drain(&mut core))[0].2,
        Header { framework: FrameworkId(1), session: SessionId(2), seq: 4, done_below: 2 }
    );
}

#[test]
fn bytes_for_an_executor_are_never_sent_twice() {
    let (mut core, dial) = live();
    let message = || Request::SendMessage {
        agent: AgentId(1),
        executor: ExecutorId::new("ex").unwrap(),
        data: vec![1],
    };
    let lost = core.call(1, message());
    let kept = core.call(1, kill("x"));
    assert_eq!(sends(&drain(&mut core)).len(), 2);
    core.on_stream_end(2, dial, Failure::NotLeader { leader: None });
    let answers: Vec<_> =
        drain(&mut core).into_iter().filter(|o| matches!(o, Output::Answer { .. })).collect();
    assert_eq!(answers, [Output::Answer { ticket: lost, result: Err(CallError::Lost) }]);
    // One that was not on its way yet waits for the next leader.
    let waits = core.call(3, message());
    let mut now = 3;
    let dial = dial_again(&mut core, &mut now, "a");
    core.on_heard(now, dial, subscribed(2));
    let sent: Vec<_> = sends(&drain(&mut core)).into_iter().map(|sent| sent.1).collect();
    assert_eq!(sent, [kept, waits]);
}

#[test]
fn a_subscription_in_the_middle_of_a_change_says_either() {
    let (mut core, dial) = live();
    let old = config(&["a"]).info;
    let new = FrameworkInfo { name: "renamed".into(), ..old.clone() };
    let change = core.call(1, Request::UpdateFramework(new.clone()));
    core.on_stream_end(2, dial, Failure::Transport("lost".into()));
    let mut now = 2;
    let mut said = Vec::new();
    let dial = loop {
        assert!(now < 100_000, "no more subscriptions after {said:?}");
        for output in drain(&mut core) {
            if let Output::Dial { dial, subscribe, .. } = output {
                said.push(subscribe.info.clone());
                if said.len() == 1 {
                    let refused = Refused {
                        kind: RefusedKind::Invalid,
                        reason: "INVALID_FIELD".into(),
                        message: "info differs".into(),
                    };
                    core.on_stream_end(now, dial, Failure::Refused(refused));
                }
            }
        }
        if said.len() == 2 {
            break DialId(core.next_dial - 1);
        }
        now += 10;
        core.on_time(now);
    };
    assert_eq!(said, [old, new.clone()]);
    core.on_heard(now, dial, subscribed(2));
    core.on_reply(now, dial, change, Ok(Reply::Done { index: 5 }));
    drain(&mut core);
    // From now on it is the new one, and a refusal of that is final.
    core.on_stream_end(now, dial, Failure::Transport("lost".into()));
    while core.ended().is_none() {
        assert!(now < 200_000, "it is refused");
        now += 10;
        core.on_time(now);
        for output in drain(&mut core) {
            if let Output::Dial { dial, subscribe, .. } = output {
                assert_eq!(subscribe.info, new);
                let (kind, reason) = (RefusedKind::Invalid, "INVALID_FIELD".into());
                let refused = Refused { kind, reason, message: "gone".into() };
                core.on_stream_end(now, dial, Failure::Refused(refused));
            }
        }
    }
}

#[test]
fn of_two_changes_the_one_that_took_effect_last_counts() {
    let (mut core, dial) = live();
    let info = |name: &str| FrameworkInfo { name: name.into(), ..config(&["a"]).info };
    let first = core.call(1, Request::UpdateFramework(info("first")));
    let second = core.call(1, Request::UpdateFramework(info("second")));
    core.on_reply(2, dial, second, Ok(Reply::Done { index: 5 }));
    core.on_reply(2, dial, first, Ok(Reply::Done { index: 4 }));
    drain(&mut core);
    core.on_stream_end(3, dial, Failure::Transport("lost".into()));
    let mut now = 3;
    let said = loop {
        assert!(now < 100_000, "no subscription");
        now += 10;
        core.on_time(now);
        let said = drain(&mut core).into_iter().find_map(|output| match output {
            Output::Dial { subscribe, .. } => Some(subscribe.info),
            _ => None,
        });
        if let Some(said) = said {
            break said;
        }
    };
    assert_eq!(said.name, "second");
}

#[test]
fn statuses_are_shown_once_and_acknowledged_when_dealt_with() {
    let (mut core, dial) = live();
    core.on_heard(1, dial, Heard::Update(update(9, TaskState::Running, 1)));
    let out = drain(&mut core);
    assert_eq!(events(&out).len(), 1);
    assert_eq!(sends(&out), [], "not before the author has seen it");
    core.on_heard(2, dial, Heard::Update(update(9, TaskState::Running, 1)));
    assert_eq!(drain(&mut core), [], "a repetition is hidden");
    core.handed(3, ack(9, 1));
    let sent = sends(&drain(&mut core));
    assert_eq!(sent[0].3, Request::Acknowledge(vec![ack(9, 1)]));
    // While that is under way, more come: they go together into the next one.
    core.on_heard(4, dial, Heard::Update(update(9, TaskState::Finished, 2)));
    core.on_heard(4, dial, Heard::Update(update(8, TaskState::Running, 1)));
    core.handed(5, ack(9, 2));
    core.handed(5, ack(8, 1));
    assert_eq!(sends(&drain(&mut core)), []);
    core.on_reply(6, dial, sent[0].1, Ok(Reply::Done { index: 20 }));
    let sent = sends(&drain(&mut core));
    assert_eq!(sent[0].3, Request::Acknowledge(vec![ack(8, 1), ack(9, 2)]));
    assert_eq!(core.tasks().len(), 2);
    core.on_reply(7, dial, sent[0].1, Ok(Reply::Done { index: 21 }));
    assert_eq!(
        core.tasks().keys().map(TaskId::as_str).collect::<Vec<_>>(),
        ["t8"],
        "what ended is retained no more"
    );
    // The last status comes late once more: hidden, and acknowledged.
    drain(&mut core);
    core.on_heard(8, dial, Heard::Update(update(9, TaskState::Finished, 2)));
    let out = drain(&mut core);
    assert_eq!(events(&out), []);
    assert_eq!(sends(&out)[0].3, Request::Acknowledge(vec![ack(9, 2)]));
}

#[test]
fn a_snapshot_is_merged() {
    let (mut core, dial) = live();
    for launch in [1, 2, 3] {
        core.on_heard(1, dial, Heard::Update(update(launch, TaskState::Running, 1)));
        core.handed(1, ack(launch, 1));
    }
    core.on_stream_end(2, dial, Failure::Resync);
    let out = drain(&mut core);
    assert!(events(&out).contains(&Event::Disconnected));
    let dial = dials(&out)["a"];
    core.on_heard(3, dial, subscribed(2));
    let unacknowledged = |view, unacknowledged| SnapshotTask { view, unacknowledged };
    core.on_heard(3, dial, Heard::Snapshot(vec![unacknowledged(view(1, TaskState::Running, 1), false)]));
    core.on_heard(
        3,
        dial,
        Heard::Snapshot(vec![
            unacknowledged(view(2, TaskState::Finished, 2), true),
            unacknowledged(view(4, TaskState::Running, 3), false),
        ]),
    );
    core.on_heard(3, dial, Heard::SnapshotEnd { index: 50 });
    let told = events(&drain(&mut core));
    let Some(Event::Synced { changed, gone }) = told.last() else { panic!("{told:?}") };
    assert_eq!(changed.iter().map(|v| v.launch.0).collect::<Vec<_>>(), [1, 2, 4], "1 has learnt its role");
    assert_eq!(gone.iter().map(|v| v.launch.0).collect::<Vec<_>>(), [3]);
    // 2 was not acknowledged: its status comes again and is shown; 4's was, in an earlier life: it is not.
    core.on_heard(4, dial, Heard::Update(update(2, TaskState::Finished, 2)));
    core.on_heard(4, dial, Heard::Update(update(4, TaskState::Running, 3)));
    let told = events(&drain(&mut core));
    assert!(matches!(&told[..], [Event::Update(v)] if v.launch.0 == 2), "{told:?}");
}

#[test]
fn an_older_snapshot_says_nothing_about_a_newer_launch() {
    let (mut core, dial) = live();
    let offer = OfferId { epoch: Epoch { generation: 0, term: 1 }, n: 1 };
    core.on_heard(
        1,
        dial,
        Heard::Offers(vec![Offer {
            id: offer,
            agent: AgentId(5),
            role: Role::star(),
            resources: Resources::new(),
            hostname: "h".into(),
            attributes: BTreeMap::new(),
        }]),
    );
    let task = TaskLaunch {
        task_id: TaskId::new("t7").unwrap(),
        name: String::new(),
        env: BTreeMap::new(),
        array: None,
    };
    let launch = Launch { spec: Arc::new(TaskSpec::default()), tasks: vec![task] };
    let parts = vec![Part { offers: vec![offer], operations: vec![Operation::Launch(launch)] }];
    let ticket = core.call(1, Request::Accept { parts, atomic: false, filter_ms: None });
    core.on_stream_end(2, dial, Failure::Resync);
    let out = drain(&mut core);
    assert!(events(&out).contains(&Event::Rescinded(vec![offer])));
    let dial = dials(&out)["a"];
    core.on_heard(3, dial, subscribed(2));
    let parts = vec![vec![vec![Ok(LaunchId(7))]]];
    core.on_reply(3, dial, ticket, Ok(Reply::Accepted(Accepted { index: 60, parts })));
    core.on_heard(3, dial, Heard::SnapshotEnd { index: 59 });
    assert_eq!(core.tasks().len(), 1, "launched after the snapshot was taken");
    assert_eq!(core.tasks().values().next().unwrap().agent, AgentId(5));
}

#[test]
fn silence_is_a_loss_and_the_silent_master_comes_last() {
    let mut core = Core::new(config(&["a", "b"]));
    core.on_time(0);
    let first = dials(&drain(&mut core));
    core.on_heard(0, first["a"], subscribed(1));
    drain(&mut core);
    core.on_heard(10_000, first["a"], Heard::Heartbeat);
    core.on_time(47_499);
    assert!(core.is_live());
    core.on_time(47_500);
    let out = drain(&mut core);
    assert!(out.contains(&Output::Forget { master: "a".into() }));
    assert_eq!(dials(&out).keys().collect::<Vec<_>>(), ["b"]);
    core.on_time(52_500);
    assert!(dials(&drain(&mut core)).contains_key("a"), "but not for ever");
}

#[test]
fn fencing_ends_everything() {
    let (mut core, dial) = live();
    let ticket = core.call(1, kill("x"));
    drain(&mut core);
    core.on_heard(2, dial, Heard::End(Failure::Fenced));
    let out = drain(&mut core);
    let failed = Output::Answer { ticket, result: Err(CallError::Ended(Ended::Fenced)) };
    assert!(out.contains(&failed) && out.last() == Some(&Output::End(Ended::Fenced)), "{out:?}");
    assert_eq!(core.next_deadline(), None);
    core.on_time(1_000_000);
    core.on_heard(1_000_000, dial, subscribed(9));
    assert_eq!(drain(&mut core), []);
    let late = core.call(3, kill("y"));
    assert!(matches!(drain(&mut core)[..], [Output::Answer { ticket, result: Err(_) }] if ticket == late));
}

#[test]
fn a_busy_leader_is_asked_again_on_the_same_connection() {
    let (mut core, dial) = live();
    let ticket = core.call(1, kill("x"));
    drain(&mut core);
    core.on_reply(2, dial, ticket, Err(Failure::Busy { retry_after_ms: 100 }));
    assert!(core.is_live() && drain(&mut core).is_empty());
    let at = core.next_deadline().unwrap();
    assert!((102..=153).contains(&at), "{at}");
    core.on_time(at);
    assert_eq!(sends(&drain(&mut core))[0].2.seq, 1);
}

/// The cluster, as far as a framework can see it: one log, several addresses, one of which leads.
#[derive(Default)]
struct Model {
    term: u64,
    leader: usize,
    index: u64,
    next_launch: u64,
    tasks: BTreeMap<LaunchId, ModelTask>,
    /// Per seq: how often it was executed, and the answer.
    answers: BTreeMap<u64, Reply>,
    executed: BTreeMap<u64, u32>,
    done_below: u64,
    /// Everything the framework must have been shown in the end: final statuses by launch.
    finals: BTreeMap<LaunchId, (u32, u32)>,
}

struct ModelTask {
    view: TaskView,
    pending: Vec<Status>,
}

impl Model {
    fn execute(&mut self, header: Header, request: &Request) -> Reply {
        assert!(header.done_below >= self.done_below || header.seq < self.done_below || header.seq == 0);
        self.done_below = self.done_below.max(header.done_below);
        if header.seq > 0 {
            assert!(header.seq < header.done_below + limits::OPEN_CALLS_MAX as u64);
            if let Some(answer) = self.answers.get(&header.seq) {
                return answer.clone();
            }
            *self.executed.entry(header.seq).or_default() += 1;
        }
        self.index += 1;
        let reply = match request {
            Request::Accept { parts, .. } => self.launch(parts),
            Request::Acknowledge(acks) => {
                for ack in acks {
                    let Some(task) = self.tasks.get_mut(&ack.launch) else { continue };
                    task.pending.retain(|s| s.position() > (ack.master_seq, ack.task_seq));
                    if task.pending.is_empty() && task.view.status.state.is_terminal() {
                        self.tasks.remove(&ack.launch);
                    }
                }
                Reply::Done { index: self.index }
            }
            _ => Reply::Done { index: self.index },
        };
        if header.seq > 0 {
            self.answers.insert(header.seq, reply.clone());
        }
        reply
    }

    fn launch(&mut self, parts: &[Part]) -> Reply {
        let mut outcomes = Vec::new();
        for (_, task) in parts.iter().flat_map(|p| &p.operations).flat_map(Operation::tasks) {
            self.next_launch += 1;
            let launch = LaunchId(self.next_launch);
            let status = status(TaskState::Staging, 0, 0);
            let view = TaskView {
                launch,
                task: task.task_id.clone(),
                agent: AgentId(1),
                role: Some(Role::star()),
                resources: Some(Resources::new()),
                status,
            };
            self.tasks.insert(launch, ModelTask { view, pending: Vec::new() });
            outcomes.push(Ok(launch));
        }
        Reply::Accepted(Accepted { index: self.index, parts: vec![vec![outcomes]] })
    }

    /// One more status for some live task; the update if there was one.
    fn advance(&mut self, random: &mut Seek) -> Option<Update> {
        let live: Vec<_> =
            self.tasks.iter().filter(|(_, t)| !t.view.status.state.is_terminal()).map(|(l, _)| *l).collect();
        let launch = *live.get(random.below(live.len().max(1) as u64) as usize)?;
        let task = self.tasks.get_mut(&launch)?;
        let seq = task.view.status.task_seq + 1;
        let next = if random.below(2) == 0 { TaskState::Running } else { TaskState::Finished };
        task.view.status = status(next, 0, seq);
        task.pending.push(task.view.status.clone());
        self.index += 1;
        if next.is_terminal() {
            self.finals.insert(launch, (0, seq));
        }
        Some(self.as_update(launch, &task_status(&self.tasks, launch)))
    }

    fn as_update(&self, launch: LaunchId, status: &Status) -> Update {
        let view = &self.tasks[&launch].view;
        Update { launch, task: view.task.clone(), agent: view.agent, status: status.clone() }
    }
}

fn task_status(tasks: &BTreeMap<LaunchId, ModelTask>, launch: LaunchId) -> Status {
    tasks[&launch].view.status.clone()
}

const MASTERS: [&str; 3] = ["m0", "m1", "m2"];

struct World {
    core: Core,
    model: Model,
    random: Seek,
    now: u64,
    /// (when, what) on their way to the core; the order among equal times is random by construction.
    inbox: Vec<(u64, Arrival)>,
    streams: BTreeMap<DialId, usize>,
    shown: BTreeMap<LaunchId, Vec<(u32, u32)>>,
    to_hand: Vec<Ack>,
    answered: BTreeSet<Ticket>,
    lossy: bool,
}

enum Arrival {
    Heard(DialId, Heard),
    End(DialId, Failure),
    Reply(DialId, Ticket, Result<Reply, Failure>),
}

impl World {
    fn new(seed: u64) -> Self {
        let mut config = config(&MASTERS);
        config.seed = seed;
        Self {
            core: Core::new(config),
            model: Model { term: 1, next_launch: 100, ..Model::default() },
            random: Seek::new(&[], seed ^ 0x5555),
            now: 0,
            inbox: Vec::new(),
            streams: BTreeMap::new(),
            shown: BTreeMap::new(),
            to_hand: Vec::new(),
            answered: BTreeSet::new(),
            lossy: true,
        }
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.lossy && self.random.below(n) == 0
    }

    fn post(&mut self, arrival: Arrival) {
        // A stream keeps its order: everything takes the same time.
        self.inbox.push((self.now + 3, arrival));
    }

    fn perform(&mut self) {
        while let Some(output) = self.core.poll() {
            match output {
                Output::Dial { dial, master, subscribe } => self.on_dial(dial, &master, &subscribe),
                Output::Hang { dial } => drop(self.streams.remove(&dial)),
                Output::Send { dial, master, ticket, header, request } => {
                    self.on_send(dial, &master, ticket, header, &request);
                }
                Output::Answer { ticket, result } => {
                    assert!(result.is_ok(), "{result:?}");
                    assert!(self.answered.insert(ticket), "answered twice");
                }
                Output::Deliver { event: Event::Update(view), ack } => {
                    let position = view.status.position();
                    let shown = self.shown.entry(view.launch).or_default();
                    assert!(shown.last().is_none_or(|last| *last < position), "{view:?} after {shown:?}");
                    shown.push(position);
                    self.to_hand.extend(ack);
                }
                Output::Deliver { .. } | Output::Forget { .. } => {}
                Output::End(why) => panic!("ended: {why}"),
            }
        }
    }

    fn on_dial(&mut self, dial: DialId, master: &str, subscribe: &Subscribe) {
        if self.one_in(6) {
            return self.post(Arrival::End(dial, Failure::Transport("refused".into())));
        }
        if self.one_in(10) {
            return; // silence
        }
        if MASTERS[self.model.leader] != master {
            let leader = (self.random.below(2) == 0).then(|| MASTERS[self.model.leader].to_owned());
            return self.post(Arrival::End(dial, Failure::NotLeader { leader }));
        }
        assert!(subscribe.session.is_none_or(|session| session == SessionId(2)));
        self.streams.insert(dial, self.model.leader);
        let last_seq = self.model.answers.keys().last().copied().unwrap_or(0);
        let mut hello = subscribed(self.model.term);
        if let Heard::Subscribed { last_seq: seq, .. } = &mut hello {
            *seq = last_seq;
        }
        self.post(Arrival::Heard(dial, hello));
        let snapshot = self.model.tasks.values();
        let snapshot =
            snapshot.map(|t| SnapshotTask { view: t.view.clone(), unacknowledged: !t.pending.is_empty() });
        let snapshot: Vec<_> = snapshot.collect();
        self.post(Arrival::Heard(dial, Heard::Snapshot(snapshot)));
        self.post(Arrival::Heard(dial, Heard::SnapshotEnd { index: self.model.index }));
        self.repeat_pending(dial);
    }

    fn repeat_pending(&mut self, dial: DialId) {
        let pending: Vec<Update> = self
            .model
            .tasks
            .iter()
            .flat_map(|(launch, task)| task.pending.iter().map(|s| self.model.as_update(*launch, s)))
            .collect();
        pending.into_iter().for_each(|update| self.post(Arrival::Heard(dial, Heard::Update(update))));
    }

    fn on_send(&mut self, dial: DialId, master: &str, ticket: Ticket, header: Header, request: &Request) {
        if self.one_in(8) {
            return self.post(Arrival::Reply(dial, ticket, Err(Failure::Transport("lost".into()))));
        }
        if MASTERS[self.model.leader] != master {
            return self.post(Arrival::Reply(dial, ticket, Err(Failure::NotLeader { leader: None })));
        }
        let reply = self.model.execute(header, request);
        let lost = self.one_in(8);
        self.post(Arrival::Reply(dial, ticket, if lost { Err(Failure::OutcomeUnknown) } else { Ok(reply) }));
    }

    fn step(&mut self) {
        self.now += 1 + self.random.below(20);
        if self.one_in(60) {
            // Another leader: its predecessor's streams end, soon.
            self.model.leader = self.random.below(3) as usize;
            self.model.term += 1;
            for dial in std::mem::take(&mut self.streams).into_keys() {
                self.post(Arrival::End(dial, Failure::NotLeader { leader: None }));
            }
        }
        if let Some(update) = self.model.advance(&mut self.random) {
            for dial in self.streams.keys().copied().collect::<Vec<_>>() {
                self.post(Arrival::Heard(dial, Heard::Update(update.clone())));
                if self.lossy && self.random.below(5) == 0 {
                    self.post(Arrival::Heard(dial, Heard::Update(update.clone())));
                }
            }
        }
        if self.random.below(30) == 0 || !self.lossy {
            for dial in self.streams.keys().copied().collect::<Vec<_>>() {
                self.post(Arrival::Heard(dial, Heard::Heartbeat));
                self.repeat_pending(dial);
            }
        }
        let due: Vec<Arrival> =
            self.inbox.extract_if(.., |(at, _)| *at <= self.now).map(|(_, arrival)| arrival).collect();
        for arrival in due {
            match arrival {
                Arrival::Heard(dial, heard) => self.core.on_heard(self.now, dial, heard),
                Arrival::End(dial, failure) => self.core.on_stream_end(self.now, dial, failure),
                Arrival::Reply(dial, ticket, result) => self.core.on_reply(self.now, dial, ticket, result),
            }
            self.perform();
        }
        if self.random.below(3) == 0 || !self.lossy {
            for ack in std::mem::take(&mut self.to_hand) {
                self.core.handed(self.now, ack);
            }
        }
        if self.core.next_deadline().is_some_and(|at| at <= self.now) {
            self.core.on_time(self.now);
        }
        self.perform();
    }
}

#[test]
fn whatever_is_lost_each_launch_happens_once_and_each_end_is_shown_once() {
    for seed in 0..200 {
        let mut world = World::new(seed);
        let mut asked = Vec::new();
        for step in 0..600 {
            if step % 20 == 0 {
                let n = asked.len();
                let tasks = (0..3).map(|i| TaskLaunch {
                    task_id: TaskId::new(&format!("task-{n}-{i}")).unwrap(),
                    name: String::new(),
                    env: BTreeMap::new(),
                    array: None,
                });
                let launch = Launch { spec: Arc::new(TaskSpec::default()), tasks: tasks.collect() };
                let parts = vec![Part { offers: Vec::new(), operations: vec![Operation::Launch(launch)] }];
                asked.push(
                    world.core.call(world.now, Request::Accept { parts, atomic: false, filter_ms: None }),
                );
            }
            world.step();
        }
        world.lossy = false;
        for _ in 0..2_000 {
            world.step();
            if world.model.tasks.is_empty()
                && world.answered.len() == asked.len()
                && world.core.tasks().is_empty()
            {
                break;
            }
        }
        assert_eq!(world.answered.len(), asked.len(), "seed {seed}: every call is answered");
        assert!(world.model.executed.values().all(|n| *n == 1), "seed {seed}: {:?}", world.model.executed);
        assert_eq!(world.model.next_launch - 100, 3 * asked.len() as u64, "seed {seed}");
        assert!(world.model.tasks.is_empty(), "seed {seed}: every status is acknowledged");
        assert!(world.core.tasks().is_empty(), "seed {seed}: {:?}", world.core.tasks());
        for (launch, end) in &world.model.finals {
            assert_eq!(world.shown[launch].last(), Some(end), "seed {seed}");
        }
        assert_eq!(world.model.finals.len(), 3 * asked.len(), "seed {seed}");
    }
}
