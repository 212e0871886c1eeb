//! Random histories of every command, sense and nonsense mixed, on three replicas: one that applies, one that applies
//! what a snapshot gave it, one that applies the whole log at the end.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// SplitMix64.
pub(super) struct Rng(pub(super) u64);

impl Rng {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub(super) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub(super) fn pick<T: Clone>(&mut self, of: &[T]) -> Option<T> {
        (!of.is_empty()).then(|| of[self.below(of.len() as u64) as usize].clone())
    }

    /// Mostly one of those there are, sometimes one that cannot be.
    fn id(&mut self, there: Vec<u64>) -> u64 {
        let strange = [0, 1, u64::MAX, self.next()];
        match self.pick(&there) {
            Some(id) if self.chance(95) => id,
            _ => strange[self.below(4) as usize],
        }
    }
}

const NAMES: [&str; 16] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p"];
const SHAPES: [&str; 6] =
    ["cpus:1", "cpus:2;mem:1GiB", "cpus:0.1;ports:[1-2]", "mem:1GiB", "cpus:1;ports:[2-4]", ""];

struct World<'a> {
    rng: &'a mut Rng,
    registry: &'a Registry,
}

impl World<'_> {
    fn agent(&mut self) -> AgentId {
        AgentId(self.rng.id(self.registry.agents().map(|a| a.id.0).collect()))
    }

    fn framework(&mut self) -> FrameworkId {
        let active = self.registry.frameworks().filter(|f| !f.is_completed()).map(|f| f.id.0).collect();
        let all = self.registry.frameworks().map(|f| f.id.0).collect();
        FrameworkId(if self.rng.chance(90) { self.rng.id(active) } else { self.rng.id(all) })
    }

    fn session(&mut self, framework: FrameworkId) -> SessionId {
        let session = self.registry.framework(framework).map(|f| f.session.0).into_iter().collect();
        SessionId(self.rng.id(session))
    }

    fn launch(&mut self, agent: Option<AgentId>) -> LaunchId {
        let tasks = self.registry.launches().filter(|t| agent.is_none_or(|a| a == t.agent));
        LaunchId(self.rng.id(tasks.map(|t| t.launch_id.0).collect()))
    }

    fn name(&mut self) -> TaskId {
        task_id(self.rng.pick(&NAMES).expect("there are names"))
    }

    /// Mostly one that a task has.
    fn task(&mut self, framework: FrameworkId) -> TaskId {
        let tasks: Vec<TaskId> =
            self.registry.tasks_of_framework(framework).map(|t| t.task_id.clone()).collect();
        self.rng.pick(&tasks).filter(|_| self.rng.chance(80)).unwrap_or_else(|| self.name())
    }

    fn shape(&mut self) -> Resources {
        r(self.rng.pick(&SHAPES).expect("there are shapes"))
    }

    fn call(&mut self) -> CallId {
        let framework = self.framework();
        let session = self.session(framework);
        let done = self.registry.sessions.get(&session).map_or(0, |s| s.done_below);
        let seq = if self.rng.chance(10) { 0 } else { done.saturating_add(self.rng.below(30)) };
        let done_below = match self.rng.below(400) {
            0 => u64::MAX,
            1..300 => 0,
            _ => done.saturating_add(self.rng.below(10)),
        };
        CallId { framework, session, seq, done_below, content: self.rng.below(20) / 19 }
    }

    fn admin(&mut self) -> AdminId {
        let now = self.registry.time().0;
        let time =
            [now, now.saturating_sub(self.rng.below(1_000_000)), 0, u64::MAX][self.rng.below(4) as usize];
        AdminId { request: RequestId(self.rng.below(20).into()), time: ClusterTime(time) }
    }

    fn status(&mut self) -> Status {
        let state = self.rng.pick(TaskState::ALL).expect("there are states");
        let states =
            [TaskState::Starting, TaskState::Running, TaskState::Running, TaskState::Finished, state];
        let state = self.rng.pick(&states).expect("there are states");
        let task_seq = if self.rng.chance(2) { u32::MAX - 1 } else { self.rng.below(12) as u32 };
        let master_seq = self.rng.below(3) as u32;
        let healthy = self.rng.chance(40).then(|| self.rng.chance(50));
        let reason = if healthy.is_some() { Reason::CheckChanged } else { Reason::None };
        Status { master_seq, task_seq, healthy, ..Status::new(state, reason, Source::Agent) }
    }

    fn info(&mut self) -> FrameworkInfo {
        FrameworkInfo {
            failover_timeout_ms: if self.rng.chance(10) { 0 } else { 5_000 },
            ends_with_tasks: self.rng.chance(30),
            user: if self.rng.chance(5) { "root".into() } else { String::new() },
            ..framework_info()
        }
    }

    fn node(&mut self) -> AgentInfo {
        let sizes = ["cpus:8;mem:8GiB;ports:[1-9]", "cpus:8;mem:8GiB;ports:[1-9]", "cpus:2;ports:[2-3]"];
        agent_info(self.rng.pick(&sizes).expect("there are sizes"))
    }

    fn attach(&mut self) -> Attach {
        let agent = self.agent();
        let record = self.registry.agent(agent);
        let max = record.map_or(0, |a| a.last_seq);
        let last_seq = if self.rng.chance(70) { max } else { self.rng.below(max + 2) };
        let instance = record.map_or(RequestId(1), |a| a.instance);
        let held = self.rng.chance(50).then(|| {
            let live: Vec<LaunchId> = self.registry.launches_on_agent(agent).map(|t| t.launch_id).collect();
            let mut held: Vec<Held> = Vec::new();
            for launch in live {
                if self.rng.chance(80) {
                    let newest = self.registry.task(launch).and_then(|t| t.agent_status.clone());
                    let status = newest.filter(|_| self.rng.chance(60)).unwrap_or_else(|| self.status());
                    held.push(Held { launch, status });
                }
            }
            if self.rng.chance(30) {
                held.push(Held { launch: self.launch(None), status: self.status() });
            }
            held
        });
        let digest = self.registry.digest_of_agent(agent, last_seq);
        Attach {
            agent,
            instance: if self.rng.chance(97) { instance } else { RequestId(0) },
            info: record.map_or_else(AgentInfo::default, |a| a.info.clone()),
            boot_id: record.map_or(BootId(0), |a| BootId(a.boot_id.0 + u128::from(self.rng.chance(5)))),
            last_seq,
            digest: if self.rng.chance(80) { digest } else { 0 },
            held,
        }
    }

    fn parts(&mut self) -> Vec<AcceptPart> {
        let parts = 1 + self.rng.below(2);
        (0..parts)
            .map(|_| {
                let agent = self.agent();
                let offered = match self.registry.agent(agent).and_then(|a| a.free()) {
                    Some(free) if self.rng.chance(80) => free,
                    _ => r("cpus:9;mem:9GiB;ports:[1-20]"),
                };
                let launches = 1 + self.rng.below(2);
                let operations = (0..launches).map(|_| self.operation()).collect();
                AcceptPart { agent, role: Role::star(), offered, operations }
            })
            .collect()
    }

    fn operation(&mut self) -> Operation {
        let mut launch = self.launch_of();
        if self.rng.chance(35) {
            let executor = self.rng.pick(&["cpus:1", "cpus:0.5;mem:1GiB", "cpus:1", ""]).expect("shapes");
            let name = self.rng.pick(&["x", "y"]).expect("names");
            launch.spec = Arc::new(TaskSpec {
                resources: launch.spec.resources.clone(),
                ..run_by(executor, name, "cpus:1")
            });
        }
        if self.rng.chance(25) {
            let first = Ok(TaskLaunch { task_id: self.name(), ..named("x") });
            let members = std::iter::once(first).chain(launch.tasks);
            let member = |task| Member { spec: launch.spec.clone(), task };
            return Operation::LaunchGroup(members.map(member).collect());
        }
        Operation::Launch(launch)
    }

    fn launch_of(&mut self) -> Launch {
        let needs = if self.rng.chance(5) { vec!["wings".to_owned()] } else { vec![] };
        let resources = self.shape();
        let tasks = self.rng.below(4);
        let tasks = (0..tasks).map(|_| match self.rng.chance(95) {
            true => Ok(TaskLaunch { task_id: self.name(), ..named("x") }),
            false => Err(Refusal::InvalidTaskId),
        });
        let tasks = tasks.collect();
        Launch { spec: Arc::new(TaskSpec { needs, resources, ..spec("cpus:1") }), tasks }
    }

    fn command(&mut self) -> Command {
        let grace_ms = self.rng.chance(50).then(|| self.rng.below(10_000));
        match self.rng.below(100) {
            0 => Command::Form { cluster: ClusterId([1; 16]), masters: vec![] },
            1 => Command::Tick,
            2..=4 => {
                // At most six agents and their repetitions at a time.
                let instance = RequestId(self.rng.below(6).into());
                Command::RegisterAgent { instance, info: self.node(), boot_id: BootId(1) }
            }
            5..=14 => Command::AttachAgent(self.attach()),
            15..=17 => {
                let agent = self.agent();
                let attachment = self.registry.agent(agent).map_or(0, |a| a.attachment);
                Command::MarkUnreachable {
                    agent,
                    attachment: attachment - u64::from(attachment > 0 && self.rng.chance(5)),
                }
            }
            18 => Command::RemoveAgent { agent: self.agent() },
            19..=23 => {
                let framework = self.rng.chance(60).then(|| self.framework());
                Command::OpenSession {
                    framework,
                    origin: RequestId(self.rng.below(40).into()),
                    info: self.info(),
                }
            }
            24..=25 => {
                let framework = self.framework();
                Command::Reconnect { framework, session: self.session(framework) }
            }
            26..=28 => {
                let framework = self.framework();
                Command::Disconnect { framework, session: self.session(framework) }
            }
            29..=45 => {
                let atomic = self.rng.chance(10);
                Command::Accept { call: self.call(), atomic, parts: self.parts() }
            }
            46..=51 => {
                let call = self.call();
                Command::Kill { call, task: self.task(call.framework), grace_ms }
            }
            52..=67 => {
                let call = self.call();
                let acks = self.rng.below(6);
                let acks = (0..acks).map(|_| {
                    let launch = self.launch(None);
                    let (master_seq, task_seq) =
                        self.registry.task(launch).map_or((1, 1), |t| t.status.position());
                    Ack { launch, master_seq, task_seq: task_seq.saturating_sub(self.rng.below(2) as u32) }
                });
                let acks = acks.collect();
                Command::Acknowledge { call, acks }
            }
            68 if self.rng.chance(40) => Command::UpdateFramework { call: self.call(), info: self.info() },
            68 if self.rng.chance(70) => Command::Tick,
            68 => Command::Teardown { call: self.call() },
            69..=71 => {
                let (call, framework) = (self.admin(), self.framework());
                Command::AdminKill { call, framework, task: self.task(framework), grace_ms }
            }
            72 if self.rng.chance(80) => {
                let call = self.call();
                let there: Vec<(AgentId, TaskId)> = (self.registry.executors())
                    .filter(|executor| executor.framework == call.framework)
                    .map(|executor| (executor.agent, executor.task_id.clone()))
                    .collect();
                let (agent, name) = self.rng.pick(&there).unwrap_or_else(|| (self.agent(), task_id("x")));
                let executor = ExecutorId::new(name.as_str()).expect("a name");
                Command::ShutdownExecutor { call, agent, executor }
            }
            72 => Command::AdminTeardown { call: self.admin(), framework: self.framework() },
            73..=75 => {
                let framework = self.framework();
                let reason = self.rng.pick(&CompletionReason::ALL).expect("there are reasons");
                Command::Complete { framework, session: self.session(framework), reason }
            }
            _ => {
                let agent = self.agent();
                let attachment = self.registry.agent(agent).map_or(0, |a| a.attachment);
                let attachment = attachment.saturating_sub(u64::from(self.rng.chance(5)));
                let statuses = self.rng.below(6);
                let statuses = (0..statuses).map(|_| (self.launch(Some(agent)), self.status())).collect();
                Command::Statuses { agent, attachment, statuses }
            }
        }
    }
}

/// What the changes alone tell, as a leader would follow them.
#[derive(Default)]
struct Follower {
    used: BTreeMap<AgentId, Resources>,
    live: BTreeSet<LaunchId>,
    acked: BTreeMap<LaunchId, (u32, u32)>,
    kinds: BTreeMap<&'static str, usize>,
}

impl Follower {
    fn follow(&mut self, before: &Registry, after: &Registry, command: &Command, changes: &[Change]) {
        if let (Command::Acknowledge { acks, .. }, [.., Change::Answered { answer, repeated: false }]) =
            (command, changes)
            && answer.rejected.is_none()
        {
            for ack in acks {
                let seen = self.acked.entry(ack.launch).or_default();
                *seen = (*seen).max((ack.master_seq, ack.task_seq));
            }
        }
        for change in changes {
            *self.kinds.entry(kind(change)).or_default() += 1;
            match change {
                Change::TaskLaunched { launch, agent, resources, .. } => {
                    assert!(self.live.insert(*launch), "{launch:?} was launched twice");
                    self.used.entry(*agent).or_default().add(resources).unwrap();
                }
                Change::ResourcesReturned { launch, agent, resources, .. } => {
                    assert!(self.live.remove(launch), "{launch:?} returned its resources twice");
                    self.used.get_mut(agent).unwrap().sub(resources).unwrap();
                }
                Change::TaskRetired { launch, framework } => {
                    let task = before.task(*launch).unwrap_or_else(|| panic!("{launch:?} was not there"));
                    let ended = after.history().chain(after.executor_history());
                    let end = ended.chain(after.launches()).find(|t| t.launch_id == *launch);
                    let position = end.unwrap_or(task).status.position();
                    let seen = self.acked.get(launch).is_some_and(|seen| *seen >= position);
                    // Otherwise the cluster acknowledges, and did not have to ask.
                    let master =
                        after.framework(*framework).is_none_or(|f| f.state != FrameworkState::Connected)
                            || task.is_executor();
                    assert!(seen || master, "{launch:?} went without an acknowledgement");
                }
                _ => {}
            }
        }
        for agent in after.agents() {
            let used = self.used.get(&agent.id).cloned().unwrap_or_default();
            assert_eq!(used, agent.used, "the changes tell another use of {:?}", agent.id);
        }
        let live: BTreeSet<LaunchId> =
            after.launches().filter(|t| !t.is_terminal()).map(|t| t.launch_id).collect();
        assert_eq!(live, self.live);
    }
}

fn kind(change: &Change) -> &'static str {
    match change {
        Change::Rejected { .. } => "rejected",
        Change::Formed => "formed",
        Change::AgentRegistered { .. } => "agent registered",
        Change::AgentAttached { .. } => "agent attached",
        Change::AgentUnreachable { .. } => "agent unreachable",
        Change::AgentRemoved { .. } => "agent removed",
        Change::FrameworkAdded { .. } => "framework added",
        Change::SessionOpened { .. } => "session opened",
        Change::FrameworkReconnected { .. } => "framework reconnected",
        Change::FrameworkDisconnected { .. } => "framework disconnected",
        Change::FrameworkCompleted { .. } => "framework completed",
        Change::FrameworkUpdated { .. } => "framework updated",
        Change::FrameworkForgotten { .. } => "framework forgotten",
        Change::Answered { repeated: false, .. } => "answered",
        Change::Answered { repeated: true, .. } => "answered again",
        Change::TaskLaunched { .. } => "task launched",
        Change::KillOrdered { .. } => "kill ordered",
        Change::StatusChanged { .. } => "status changed",
        Change::StatusConfirmed { .. } => "status confirmed",
        Change::ResourcesReturned { .. } => "resources returned",
        Change::ExecutorEnded { .. } => "executor ended",
        Change::Acknowledged { .. } => "acknowledged",
        Change::TaskRetired { .. } => "task retired",
    }
}

fn history(seed: u64, steps: usize) -> BTreeMap<&'static str, usize> {
    let mut rng = Rng(seed);
    let mut lab = Lab::default();
    let mut follower = Follower::default();
    let mut replica = Registry::new();
    for step in 0..steps {
        lab.time += rng.below(200);
        if rng.chance(1) {
            // Another leader's clock may lag; and an hour may pass.
            lab.time = if rng.chance(50) { lab.time.saturating_sub(500) } else { lab.time + 700_000 };
        }
        let before = lab.registry.clone();
        let command = World { rng: &mut rng, registry: &before }.command();
        let changes = lab.run(command.clone());
        follower.follow(&before, &lab.registry, &command, &changes);
        let entry = lab.log.last().expect("it was just applied");
        assert_eq!(
            replica.apply(lab.index, TERM, entry),
            changes,
            "seed {seed} step {step}: replicas differ"
        );
        if rng.chance(2) {
            let hash = lab.registry.state_hash();
            assert_eq!(replica.state_hash(), hash, "seed {seed} step {step}");
            replica = Registry::from_image(lab.registry.image()).expect("an image of a good state is good");
            assert_eq!(replica.state_hash(), hash, "seed {seed} step {step}");
        }
    }
    let mut late = Registry::new();
    for (n, entry) in lab.log.iter().enumerate() {
        late.apply(n as u64 + 1, TERM, entry);
    }
    assert_eq!(late.state_hash(), lab.registry.state_hash(), "seed {seed}");
    follower.kinds
}

#[test]
fn random_histories_keep_every_rule() {
    let mut kinds: BTreeMap<&'static str, usize> = BTreeMap::new();
    for seed in 0..5 {
        for (kind, n) in history(seed, 1_500) {
            *kinds.entry(kind).or_default() += n;
        }
    }
    // Histories that never reach something prove nothing of it. Forgetting needs a thousand frameworks.
    for (kind, n) in &kinds {
        assert!(*n >= 5, "{kind} happened {n} times");
    }
    assert_eq!(kinds.len(), 22, "{kinds:?}");
}
