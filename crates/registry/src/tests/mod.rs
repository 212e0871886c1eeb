//! The rules of the state machine, one by one, in stories and in random histories.

mod accept;
mod agents;
mod attach;
mod calls;
mod executors;
mod frameworks;
mod groups;
mod image;
mod nodes;
mod random;
mod stories;
mod tasks;

use std::sync::Arc;

use proffer_types::command::{
    AcceptPart, Ack, AdminId, Answer, Attach, CallId, Command, CompletionReason, Entry, Held, Launch, Member,
    Operation, Refusal, Rejection,
};
use proffer_types::container::ExecutorSpec;
use proffer_types::image::Segment;
use proffer_types::{
    Agent, AgentId, AgentInfo, BootId, Caller, ClusterId, ClusterTime, ExecutorId, Framework, FrameworkId,
    FrameworkInfo, FrameworkState, LaunchId, MasterId, Reason, RequestId, Resources, Role, SessionId, Source,
    Status, Task, TaskId, TaskLaunch, TaskSpec, TaskState,
};

use crate::{Change, Order, Registry};

const TERM: u64 = 3;

/// A registry in which every command is followed by all checks.
#[derive(Default)]
struct Lab {
    registry: Registry,
    index: u64,
    time: u64,
    log: Vec<Entry>,
    seq: u64,
    random: u128,
}

impl Lab {
    fn run(&mut self, command: Command) -> Vec<Change> {
        self.run_as(Caller::anonymous(), command)
    }

    fn run_as(&mut self, caller: Caller, command: Command) -> Vec<Change> {
        self.index += 1;
        let wall_ms = self.time.saturating_add(1_700_000_000_000);
        let entry = Entry { term: TERM, time: ClusterTime(self.time), wall_ms, caller, command };
        let before = self.registry.clone();
        let changes = self.registry.apply(self.index, TERM, &entry);
        if let Err(violation) =
            self.registry.check().and_then(|()| Registry::check_step(&before, &self.registry))
        {
            panic!("{violation}\nafter {entry:?}\nwhich gave {changes:?}");
        }
        if let [Change::Rejected { .. }] = changes[..] {
            assert!(
                contents(&before) == contents(&self.registry),
                "{entry:?} was rejected and changed something"
            );
        }
        self.log.push(entry);
        changes
    }

    fn fresh(&mut self) -> RequestId {
        self.random += 1;
        RequestId(self.random << 64 | 0xf00d)
    }

    // Agents.

    fn register(&mut self, resources: &str) -> AgentId {
        let instance = self.fresh();
        let info = agent_info(resources);
        let changes = self.run(Command::RegisterAgent { instance, info, boot_id: BootId(1) });
        let [Change::AgentRegistered { agent, repeated: false }] = changes[..] else { panic!("{changes:?}") };
        agent
    }

    /// A registered and attached agent.
    fn agent(&mut self, resources: &str) -> AgentId {
        let agent = self.register(resources);
        let changes = self.attach(agent);
        assert!(matches!(changes[..], [Change::AgentAttached { returned: false, .. }]), "{changes:?}");
        agent
    }

    fn agent_record(&self, agent: AgentId) -> &Agent {
        self.registry.agent(agent).expect("the agent is registered")
    }

    /// What an agent that has seen everything would open with.
    fn opening(&self, agent: AgentId) -> Attach {
        let record = self.agent_record(agent);
        Attach {
            agent,
            instance: record.instance,
            info: record.info.clone(),
            boot_id: record.boot_id,
            last_seq: record.last_seq,
            digest: self.registry.digest_of_agent(agent, record.last_seq),
            held: None,
        }
    }

    fn attach(&mut self, agent: AgentId) -> Vec<Change> {
        let attach = self.opening(agent);
        self.run(Command::AttachAgent(attach))
    }

    fn attach_with(&mut self, agent: AgentId, change: impl FnOnce(&mut Attach)) -> Vec<Change> {
        let mut attach = self.opening(agent);
        change(&mut attach);
        self.run(Command::AttachAgent(attach))
    }

    /// Attaches with a listing and a digest that is wrong on purpose.
    fn attach_listing(&mut self, agent: AgentId, last_seq: u64, held: Vec<Held>) -> Vec<Change> {
        self.attach_with(agent, |attach| {
            (attach.last_seq, attach.held) = (last_seq, Some(held));
            attach.digest ^= 1;
        })
    }

    fn lose(&mut self, agent: AgentId) -> Vec<Change> {
        let attachment = self.agent_record(agent).attachment;
        self.run(Command::MarkUnreachable { agent, attachment })
    }

    fn statuses(&mut self, agent: AgentId, statuses: Vec<(LaunchId, Status)>) -> Vec<Change> {
        let attachment = self.agent_record(agent).attachment;
        self.run(Command::Statuses { agent, attachment, statuses })
    }

    fn report(&mut self, launch: LaunchId, task_seq: u32, state: TaskState) -> Vec<Change> {
        let agent = self.task(launch).agent;
        self.statuses(agent, vec![(launch, status(task_seq, state))])
    }

    // Frameworks.

    fn framework(&mut self) -> FrameworkId {
        self.framework_with(framework_info())
    }

    fn framework_with(&mut self, info: FrameworkInfo) -> FrameworkId {
        let origin = self.fresh();
        let changes = self.run(Command::OpenSession { framework: None, origin, info });
        let [Change::FrameworkAdded { framework }, Change::SessionOpened { .. }] = changes[..] else {
            panic!("{changes:?}")
        };
        framework
    }

    fn fw(&self, framework: FrameworkId) -> &Framework {
        self.registry.framework(framework).expect("the framework is there")
    }

    fn session(&self, framework: FrameworkId) -> SessionId {
        self.fw(framework).session
    }

    fn call(&mut self, framework: FrameworkId) -> CallId {
        self.seq += 1;
        let session = self.registry.framework(framework).map_or(SessionId(0), |f| f.session);
        CallId { framework, session, seq: self.seq, done_below: 0, content: self.seq * 1000 }
    }

    fn disconnect(&mut self, framework: FrameworkId) -> Vec<Change> {
        let session = self.session(framework);
        self.run(Command::Disconnect { framework, session })
    }

    fn teardown(&mut self, framework: FrameworkId) -> Vec<Change> {
        let call = self.call(framework);
        self.run(Command::Teardown { call })
    }

    // Tasks.

    fn accept(&mut self, framework: FrameworkId, parts: Vec<AcceptPart>) -> Vec<Change> {
        let call = self.call(framework);
        self.run(Command::Accept { call, atomic: false, parts })
    }

    /// Launches one task that must be accepted.
    fn launch(&mut self, framework: FrameworkId, agent: AgentId, name: &str, resources: &str) -> LaunchId {
        let changes = self.accept(framework, vec![part(agent, resources, vec![one(spec(resources), name)])]);
        let answer = answer(&changes);
        assert_eq!(answer.outcomes, [None], "{name} was refused");
        answer.first_launch
    }

    /// Launches one task that reports RUNNING (task_seq 1).
    fn running(&mut self, framework: FrameworkId, agent: AgentId, name: &str, resources: &str) -> LaunchId {
        let launch = self.launch(framework, agent, name, resources);
        self.report(launch, 1, TaskState::Running);
        launch
    }

    fn task(&self, launch: LaunchId) -> &Task {
        self.registry.task(launch).expect("the task is there")
    }

    fn kill(&mut self, framework: FrameworkId, name: &str, grace_ms: Option<u64>) -> Vec<Change> {
        let call = self.call(framework);
        self.run(Command::Kill { call, task: task_id(name), grace_ms })
    }

    fn ack(&mut self, launch: LaunchId, master_seq: u32, task_seq: u32) -> Vec<Change> {
        let call = self.call(self.task(launch).framework);
        self.run(Command::Acknowledge { call, acks: vec![Ack { launch, master_seq, task_seq }] })
    }

    /// Acknowledges the newest status.
    fn ack_all(&mut self, launch: LaunchId) -> Vec<Change> {
        let (master_seq, task_seq) = self.task(launch).status.position();
        self.ack(launch, master_seq, task_seq)
    }
}

fn agent_info(resources: &str) -> AgentInfo {
    AgentInfo {
        hostname: "node".into(),
        resources: r(resources),
        features: ["limits", "task_group", "executor"].map(str::to_owned).into(),
        ..AgentInfo::default()
    }
}

fn framework_info() -> FrameworkInfo {
    FrameworkInfo { roles: vec![Role::star()], failover_timeout_ms: 1_000, ..FrameworkInfo::default() }
}

fn r(text: &str) -> Resources {
    Resources::parse(text).expect(text)
}

fn task_id(name: &str) -> TaskId {
    TaskId::new(name).expect(name)
}

fn spec(resources: &str) -> TaskSpec {
    TaskSpec {
        argv: vec!["true".into()],
        resources: r(resources),
        kill_grace_ms: 5_000,
        ..TaskSpec::default()
    }
}

fn named(name: &str) -> TaskLaunch {
    TaskLaunch { task_id: task_id(name), name: String::new(), env: Default::default(), array: None }
}

fn one(spec: TaskSpec, name: &str) -> Launch {
    Launch { spec: Arc::new(spec), tasks: vec![Ok(named(name))] }
}

fn many(spec: TaskSpec, names: &[&str]) -> Launch {
    Launch { spec: Arc::new(spec), tasks: names.iter().map(|name| Ok(named(name))).collect() }
}

fn group(members: Vec<(TaskSpec, &str)>) -> Operation {
    let member = |(spec, name)| Member { spec: Arc::new(spec), task: Ok(named(name)) };
    Operation::LaunchGroup(members.into_iter().map(member).collect())
}

/// A task for an executor, which holds `executor`.
fn run_by(executor: &str, name: &str, resources: &str) -> TaskSpec {
    let executor = ExecutorSpec { id: ExecutorId::new(name).expect(name), spec: Arc::new(spec(executor)) };
    TaskSpec { argv: Vec::new(), executor: Some(executor), needs: vec!["executor".into()], ..spec(resources) }
}

fn part(agent: AgentId, offered: &str, launches: Vec<Launch>) -> AcceptPart {
    let operations = launches.into_iter().map(Operation::Launch).collect();
    AcceptPart { agent, role: Role::star(), offered: r(offered), operations }
}

fn status(task_seq: u32, state: TaskState) -> Status {
    Status { task_seq, ..Status::new(state, Reason::None, Source::Agent) }
}

fn held(launch: LaunchId, task_seq: u32, state: TaskState) -> Held {
    Held { launch, status: status(task_seq, state) }
}

fn answer(changes: &[Change]) -> &Answer {
    let Some(Change::Answered { answer, .. }) = changes.last() else {
        panic!("no answer at the end of {changes:?}")
    };
    answer
}

fn rejected(changes: &[Change]) -> Rejection {
    match changes {
        [Change::Rejected { rejection }] => *rejection,
        [Change::Answered { answer: Answer { rejected: Some(rejection), .. }, .. }] => *rejection,
        _ => panic!("not rejected: {changes:?}"),
    }
}

/// The state without the index and the clock, which rise with every entry, and without the answers to operators, which
/// leave with the clock alone.
fn contents(registry: &Registry) -> Vec<Segment> {
    registry.image().filter(|s| !matches!(s, Segment::Meta(_) | Segment::AdminAnswers(_))).collect()
}

#[test]
fn an_entry_of_another_term_changes_nothing() {
    let mut lab = Lab::default();
    let cluster = ClusterId([7; 16]);
    let masters =
        vec![(MasterId(2), "b".to_owned()), (MasterId(1), "a".to_owned()), (MasterId(1), "c".to_owned())];
    let form = Command::Form { cluster, masters };
    let entry =
        Entry { term: 2, time: ClusterTime(9), wall_ms: 0, caller: Caller::master(), command: form.clone() };
    let changes = lab.registry.apply(1, 3, &entry);
    assert_eq!(rejected(&changes), Rejection::WrongTerm);
    assert_eq!(
        (lab.registry.applied(), lab.registry.time(), lab.registry.cluster()),
        (1, ClusterTime(0), None)
    );
    lab.index = 1;
    assert_eq!(lab.run(form.clone()), [Change::Formed]);
    assert_eq!(lab.registry.cluster(), Some(cluster));
    assert_eq!(lab.registry.masters(), [(MasterId(1), "a".to_owned()), (MasterId(2), "b".to_owned())]);
    assert_eq!(rejected(&lab.run(form)), Rejection::AlreadyFormed);
}

#[test]
fn an_index_is_applied_once_and_time_never_goes_back() {
    let mut lab = Lab { time: 500, ..Lab::default() };
    assert_eq!(lab.run(Command::Tick), []);
    lab.time = 100;
    lab.run(Command::Tick);
    assert_eq!(lab.registry.time(), ClusterTime(500));
    lab.index = 1;
    let changes = lab.run(Command::RegisterAgent {
        instance: RequestId(1),
        info: agent_info("cpus:1"),
        boot_id: BootId(1),
    });
    assert_eq!(rejected(&changes), Rejection::Stale);
    assert_eq!(lab.registry.applied(), 2);
    lab.registry.pass(7);
    lab.registry.pass(3);
    assert_eq!(lab.registry.applied(), 7);
}
