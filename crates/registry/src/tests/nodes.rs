//! Agents that behave, over connections and hosts that do not: whatever is lost, both sides agree in the end, nothing
//! starts twice and nothing that runs is declared lost.

use std::collections::{BTreeMap, VecDeque};

use proffer_types::event::Group;

use super::random::Rng;
use super::*;

/// An agent as the protocol asks for it.
struct Node {
    instance: RequestId,
    boot_id: BootId,
    id: AgentId,
    /// The attachment of its connection, while it has one.
    attached: Option<u64>,
    last_seq: u64,
    held: BTreeMap<LaunchId, Holding>,
    /// Orders under way to it.
    orders: VecDeque<Order>,
}

#[derive(Default)]
struct Holding {
    /// The group that it waits for or has started with.
    group: Option<Group>,
    started: bool,
    /// Not confirmed yet, in order.
    statuses: Vec<Status>,
    newest: Option<Status>,
    told_to_end: bool,
}

impl Holding {
    fn newest(&self) -> Status {
        self.newest.clone().unwrap_or_else(|| status(0, TaskState::Staging))
    }
}

impl Node {
    fn digest(&self) -> u64 {
        let newest = |h: &Holding| h.newest.as_ref().map_or(0, |s| s.task_seq);
        proffer_types::agent::holdings_digest(self.held.iter().map(|(launch, h)| (*launch, newest(h))))
    }

    fn confirm(&mut self, launch: LaunchId, task_seq: u32) {
        let Some(holding) = self.held.get_mut(&launch) else { return };
        holding.statuses.retain(|s| s.task_seq > task_seq);
        if holding.newest().state.is_terminal() && holding.newest().task_seq <= task_seq {
            self.held.remove(&launch);
        }
    }
}

struct Net {
    rng: Rng,
    lab: Lab,
    nodes: Vec<Node>,
    framework: FrameworkId,
    starts: BTreeMap<LaunchId, u32>,
    groups: Vec<Group>,
    names: u64,
}

impl Net {
    fn new(seed: u64) -> Self {
        let mut lab = Lab::default();
        let framework = lab.framework();
        let nodes = Vec::new();
        let mut net = Self {
            rng: Rng(seed),
            lab,
            nodes,
            framework,
            starts: BTreeMap::new(),
            groups: Vec::new(),
            names: 0,
        };
        for _ in 0..3 {
            let node = net.register();
            net.nodes.push(node);
        }
        net
    }

    fn register(&mut self) -> Node {
        let id = self.lab.register("cpus:8");
        let instance = self.lab.agent_record(id).instance;
        Node {
            instance,
            boot_id: BootId(1),
            id,
            attached: None,
            last_seq: 0,
            held: BTreeMap::new(),
            orders: VecDeque::new(),
        }
    }

    /// Applies a command and lets the leader push what it gives.
    fn run(&mut self, command: Command) -> Vec<Change> {
        let changes = self.lab.run(command);
        for change in &changes {
            if let Change::StatusChanged { status, .. } = change {
                assert_ne!(status.reason, Reason::LaunchLost, "an agent that behaves loses nothing");
            }
            let (Change::TaskLaunched { launch, agent, .. } | Change::KillOrdered { launch, agent }) = change
            else {
                continue;
            };
            let task = self.lab.task(*launch);
            if matches!(change, Change::TaskLaunched { .. }) {
                self.groups.extend(task.group.filter(|group| group.first == *launch));
            }
            let order = match (change, task.kill) {
                (Change::KillOrdered { .. }, Some(kill)) => {
                    Order::Kill { agent_seq: kill.agent_seq, launch: *launch, grace_ms: kill.grace_ms }
                }
                _ => Order::Launch { agent_seq: task.agent_seq, launch: *launch },
            };
            for node in self.nodes.iter_mut().filter(|n| n.id == *agent && n.attached.is_some()) {
                node.orders.push_back(order);
            }
        }
        changes
    }

    fn attach(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        (node.attached, node.orders) = (None, VecDeque::new());
        let mut attach = Attach {
            agent: node.id,
            instance: node.instance,
            info: agent_info("cpus:8"),
            boot_id: node.boot_id,
            last_seq: node.last_seq,
            digest: node.digest(),
            held: None,
        };
        let list = node.held.iter().map(|(launch, h)| Held { launch: *launch, status: h.newest() });
        let list: Vec<Held> = list.collect();
        let mut changes = self.run(Command::AttachAgent(attach.clone()));
        if let [Change::Rejected { rejection }] = changes[..] {
            match rejection {
                Rejection::ListingNeeded => {
                    attach.held = Some(list);
                    changes = self.run(Command::AttachAgent(attach));
                }
                Rejection::UnknownAgent => {
                    // It was removed: it ends everything and begins anew.
                    self.nodes[n] = self.register();
                    return;
                }
                other => panic!("{other:?}"),
            }
        }
        let Some(Change::AgentAttached { attachment, forget, confirm, .. }) = changes.first() else {
            panic!("{changes:?}")
        };
        assert_eq!(forget[..], [], "an agent that behaves holds nothing that it should not");
        if self.rng.chance(10) {
            return; // The answer is lost.
        }
        let node = &mut self.nodes[n];
        node.attached = Some(*attachment);
        confirm.iter().for_each(|(launch, task_seq)| node.confirm(*launch, *task_seq));
        // What it holds was confirmed up to the digest or the listing.
        node.orders = self.lab.registry.orders_for(node.id, node.last_seq).into();
    }

    /// One order arrives.
    fn deliver(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        let Some(order) = node.orders.pop_front() else { return };
        match order {
            Order::Launch { agent_seq, launch } => {
                let group = self.lab.registry.task(launch).and_then(|task| task.group);
                let mut batch = vec![(agent_seq, launch)];
                // All of a group come in one message, and the node may die while it writes them down.
                while let Some(Order::Launch { agent_seq, launch }) = node.orders.front().copied()
                    && group.is_some_and(|group| group.launches().any(|member| member == launch))
                {
                    node.orders.pop_front();
                    batch.push((agent_seq, launch));
                }
                let dies = group.is_some() && self.rng.chance(20);
                let written = if dies { self.rng.below(batch.len() as u64) as usize } else { batch.len() };
                for (agent_seq, launch) in batch.into_iter().take(written) {
                    if agent_seq > node.last_seq {
                        node.held.insert(launch, Holding { group, ..Holding::default() });
                        node.last_seq = agent_seq;
                    }
                }
                if dies {
                    (node.attached, node.orders) = (None, VecDeque::new());
                    return;
                }
                self.start(n);
                return;
            }
            Order::Kill { launch, .. } => {
                if let Some(holding) = node.held.get_mut(&launch) {
                    holding.told_to_end = true;
                }
            }
        }
        node.last_seq = node.last_seq.max(order.agent_seq());
    }

    /// Starts what was not, each group whole or not at all.
    fn start(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        let waiting = |held: &BTreeMap<LaunchId, Holding>, launch| {
            held.get(&launch).is_some_and(|h| !h.started && !h.told_to_end && h.newest.is_none())
        };
        for launch in node.held.keys().copied().collect::<Vec<_>>() {
            if !waiting(&node.held, launch) {
                continue;
            }
            let group = node.held[&launch].group;
            let together: Vec<LaunchId> =
                group.map_or_else(|| vec![launch], |group| group.launches().collect());
            let whole = together.iter().all(|member| waiting(&node.held, *member));
            for member in together {
                let Some(holding) = node.held.get_mut(&member).filter(|h| !h.started) else { continue };
                holding.started = whole;
                if whole {
                    *self.starts.entry(member).or_default() += 1;
                } else if holding.newest.is_none() {
                    let dropped = status(1, TaskState::Dropped);
                    holding.newest = Some(dropped.clone());
                    holding.statuses.push(dropped);
                }
            }
        }
    }

    /// Some task goes on.
    fn progress(&mut self, n: usize) {
        let launches: Vec<LaunchId> = self.nodes[n].held.keys().copied().collect();
        let Some(launch) = self.rng.pick(&launches) else { return };
        let Some(holding) = self.nodes[n].held.get_mut(&launch) else { return };
        let newest = holding.newest();
        let next = match newest.state {
            state if state.is_terminal() => return,
            _ if holding.told_to_end => TaskState::Killed,
            // It waits for the rest of its group.
            _ if !holding.started => return,
            TaskState::Staging => TaskState::Starting,
            TaskState::Starting => TaskState::Running,
            _ => TaskState::Finished,
        };
        let next = status(newest.task_seq + 1, next);
        holding.newest = Some(next.clone());
        holding.statuses.push(next);
    }

    /// Sends everything that is not confirmed; the message or its answer may be lost.
    fn send(&mut self, n: usize, loss: u64) {
        let node = &self.nodes[n];
        let Some(attachment) = node.attached else { return };
        let all = node.held.iter().flat_map(|(launch, h)| h.statuses.iter().map(|s| (*launch, s.clone())));
        let (agent, statuses) = (node.id, all.collect());
        let changes = self.run(Command::Statuses { agent, attachment, statuses });
        if let [Change::Rejected { .. }] = changes[..] {
            // Its session is over, whatever it thinks.
            self.nodes[n].attached = None;
            return;
        }
        if self.rng.chance(loss) {
            self.nodes[n].attached = None;
            return;
        }
        for change in changes {
            if let Change::StatusConfirmed { launch, task_seq, .. } = change {
                self.nodes[n].confirm(launch, task_seq);
            }
        }
    }

    fn reboot(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        node.boot_id = BootId(node.boot_id.0 + 1);
        (node.attached, node.last_seq) = (None, 0);
        node.held = BTreeMap::new();
        node.orders = VecDeque::new();
    }

    fn framework_acts(&mut self) {
        let framework = self.framework;
        let agent = self.nodes[self.rng.below(3) as usize].id;
        let call = self.lab.call(framework);
        match self.rng.below(5) {
            4 => {
                let names: Vec<String> = (0..3).map(|n| format!("t{}", self.names + n)).collect();
                self.names += 3;
                let operations = vec![group(names.iter().map(|n| (spec("cpus:1"), n.as_str())).collect())];
                let part = AcceptPart { agent, role: Role::star(), offered: r("cpus:3"), operations };
                self.run(Command::Accept { call, atomic: false, parts: vec![part] });
            }
            0 | 1 => {
                self.names += 1;
                let launch = one(spec("cpus:1"), &format!("t{}", self.names));
                self.run(Command::Accept {
                    call,
                    atomic: false,
                    parts: vec![part(agent, "cpus:1", vec![launch])],
                });
            }
            2 => {
                let names: Vec<TaskId> = self.lab.registry.tasks().map(|t| t.task_id.clone()).collect();
                let Some(task) = self.rng.pick(&names) else { return };
                self.run(Command::Kill { call, task, grace_ms: None });
            }
            _ => {
                let acks = self
                    .lab
                    .registry
                    .tasks()
                    .flat_map(|t| t.pending.last().map(|s| (t.launch_id, s.position())));
                let acks = acks.map(|(launch, (master_seq, task_seq))| Ack { launch, master_seq, task_seq });
                let acks = acks.collect();
                let done_below = call.seq;
                self.run(Command::Acknowledge { call: CallId { done_below, ..call }, acks });
            }
        }
    }

    fn step(&mut self) {
        let n = self.rng.below(3) as usize;
        match self.rng.below(100) {
            0..=24 => self.framework_acts(),
            25..=44 => self.deliver(n),
            45..=64 => self.progress(n),
            65..=79 => self.send(n, 15),
            80..=92 => self.attach(n),
            93..=94 => self.nodes[n].attached = None,
            95 => self.reboot(n),
            96..=98 => {
                let agent = self.nodes[n].id;
                if let Some(attachment) = self.lab.registry.agent(agent).map(|a| a.attachment) {
                    self.run(Command::MarkUnreachable { agent, attachment });
                }
            }
            _ => {
                let agent = self.nodes[n].id;
                self.run(Command::RemoveAgent { agent });
            }
        }
    }

    /// Everything arrives.
    fn settle(&mut self) {
        for n in 0..3 {
            while self.nodes[n].attached.is_none() {
                self.attach(n);
            }
            while !self.nodes[n].orders.is_empty() {
                self.deliver(n);
            }
            self.send(n, 0);
            if self.nodes[n].attached.is_none() {
                return self.settle();
            }
        }
    }
}

#[test]
fn agents_and_registry_agree_in_the_end() {
    let mut launched = 0;
    for seed in 0..6 {
        let mut net = Net::new(seed);
        for round in 0..12 {
            (0..200).for_each(|_| net.step());
            net.settle();
            for node in &net.nodes {
                let tasks: BTreeMap<LaunchId, u32> = (net.lab.registry.tasks_on_agent(node.id))
                    .map(|task| (task.launch_id, crate::state::agent_task_seq(task)))
                    .collect();
                let held: BTreeMap<LaunchId, u32> =
                    node.held.iter().map(|(launch, h)| (*launch, h.newest().task_seq)).collect();
                assert_eq!(tasks, held, "seed {seed} round {round}");
                assert_eq!(net.lab.registry.digest_of_agent(node.id, node.last_seq), node.digest());
            }
        }
        assert!(net.starts.values().all(|n| *n == 1), "seed {seed}: {:?}", net.starts);
        let mut groups = 0;
        for group in &net.groups {
            let started = group.launches().filter(|launch| net.starts.contains_key(launch)).count() as u32;
            assert!(started == 0 || started == group.size, "seed {seed}: {started} of {group:?}");
            groups += u32::from(started > 0);
        }
        assert!(groups > 5, "seed {seed}: only {groups} groups ran");
        launched += net.starts.len();
    }
    assert!(launched > 500, "only {launched} tasks ran");
}
