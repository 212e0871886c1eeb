//! A load of real tasks, told line by line what to do: the frameworks of `cargo xtask bench`.
//!
//! ```text
//! bench_launch MASTER[,MASTER…] FRAMEWORKS RESOURCES        RESOURCES of one task, as in cpus:1;mem:16MiB
//! ```
//!
//! Each line on stdin is done before the next is read, and answered by one JSON object on stdout:
//!
//! ```text
//! rate TASKS COMMAND…     all frameworks together run TASKS copies, as many at once as offers hold
//! single TASKS COMMAND…   the first framework runs TASKS copies one after the other, with the offer at hand before
//! hold TASKS COMMAND…     as rate, but returns when all run, and leaves them running
//! settle                  leaves the cluster alone until nobody speaks of what was just launched
//! kill COUNT              the first framework ends COUNT of its running tasks, one after the other, without grace
//! beside KIND COMMAND…    the first framework runs one task that kill does not take; KIND is one of
//!                         plain     nothing else
//!                         terminal  it has a terminal, on which an operator types without end and reads nothing
//!                         checked   one check of it never ends, another is cut short ten times a second
//! drop                    ends all that run, parked or not, without grace, all at once
//! count                   asks the leader about all that should run: how many do
//! ```
//!
//! Words are separated by spaces, or by tabs if there are any. `unasked` counts the tasks that ended while they were to
//! be held. `kill` tells each time too, in `gone_us`.
//!
//! `launch` is the time from before the Accept until RUNNING is with the framework's author, in microseconds; `gone`
//! the same from before the Kill until the terminal status.

#![allow(clippy::print_stdout, reason = "its output is its purpose")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use proffer_client::hands::WindowSize;
use proffer_client::{
    Accepted, AdminClient, CallError, Event, EventStream, Handle, Launch, Offer, Options, Scheduler,
};
use proffer_types::container::{Check, Container, HealthCheck, Probe};
use proffer_types::{FrameworkInfo, Resources, Role, TaskId, TaskLaunch, TaskSpec, TaskState};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Most tasks in one Accept: more would be one message of a size that says nothing about any other.
const ACCEPT_MAX: usize = 500;
/// Kills of `drop` that are under way at once.
const KILLS_AT_ONCE: usize = 256;
/// How long the cluster is left alone before a launch of `single`, and before a kill.
const QUIET: Duration = Duration::from_millis(5);
/// And by `settle`.
const SETTLE: Duration = Duration::from_millis(500);
/// How long one line may take.
const PATIENCE: Duration = Duration::from_secs(300);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [masters, frameworks, resources] = args.as_slice() else {
        return Err("usage: bench_launch MASTER[,MASTER…] FRAMEWORKS RESOURCES".into());
    };
    let masters: Vec<String> = masters.split(',').map(str::to_owned).collect();
    let resources = Resources::parse(resources)?;
    let mut load = Vec::new();
    let mut lives = JoinSet::new();
    for n in 1..=frameworks.parse::<u32>()? {
        let framework = Framework::connect(&masters, n, &resources).await?;
        let (orders, inbox) = mpsc::channel(1);
        lives.spawn(framework.live(inbox));
        load.push(orders);
    }
    println!("{{\"what\":\"ready\",\"frameworks\":{}}}", load.len());
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let words: Vec<&str> = match line.contains('\t') {
            true => line.split('\t').collect(),
            false => line.split_whitespace().collect(),
        };
        let work = tokio::time::timeout(PATIENCE, obey(&load, &words));
        let answer = tokio::select! {
            answer = work => answer.map_err(|_| format!("`{line}` took longer than {PATIENCE:?}"))??,
            Some(life) = lives.join_next() => return Err(life?.err().unwrap_or_else(|| "it ended".into())),
        };
        println!("{answer}");
    }
    drop(load);
    while let Some(life) = lives.join_next().await {
        life??;
    }
    Ok(())
}

/// What a framework is to do.
#[derive(Clone, Debug)]
enum Order {
    Run { tasks: usize, argv: Vec<String>, hold: bool },
    Single { tasks: usize, argv: Vec<String> },
    Beside { kind: Kind, argv: Vec<String> },
    Kill(usize),
    Drop,
    Count,
}

/// What is special about a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Plain,
    Terminal,
    Checked,
}

/// The order, and where what was measured goes.
type Ordered = (Order, oneshot::Sender<Times>);

async fn obey(load: &[mpsc::Sender<Ordered>], words: &[&str]) -> Result<String, Failure> {
    let command = |rest: &[&str]| rest.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let first = &load[..load.len().min(1)];
    let start = Instant::now();
    let times = match words {
        [what @ ("rate" | "hold"), tasks, rest @ ..] => {
            let (tasks, hold, argv): (usize, _, _) = (tasks.parse()?, *what == "hold", command(rest));
            let share = |n: usize| tasks / load.len() + usize::from(n < tasks % load.len());
            ask(load, |n| Order::Run { tasks: share(n), argv: argv.clone(), hold }).await?
        }
        ["single", tasks, rest @ ..] => {
            let order = Order::Single { tasks: tasks.parse()?, argv: command(rest) };
            ask(first, |_| order.clone()).await?
        }
        ["kill", count] => {
            let order = Order::Kill(count.parse()?);
            ask(first, |_| order.clone()).await?
        }
        ["beside", kind, rest @ ..] => {
            let kind = match *kind {
                "plain" => Kind::Plain,
                "terminal" => Kind::Terminal,
                "checked" => Kind::Checked,
                other => return Err(format!("`{other}` is no kind of a task").into()),
            };
            let argv = command(rest);
            ask(first, |_| Order::Beside { kind, argv: argv.clone() }).await?
        }
        ["settle"] => {
            tokio::time::sleep(SETTLE).await;
            Times::default()
        }
        ["count"] => ask(load, |_| Order::Count).await?,
        ["drop"] => ask(load, |_| Order::Drop).await?,
        _ => return Err(format!("`{}` is not known", words.join(" ")).into()),
    };
    Ok(times.json(words[0], start.elapsed().as_secs_f64()))
}

/// Has frameworks do something, all at once.
async fn ask(load: &[mpsc::Sender<Ordered>], order: impl Fn(usize) -> Order) -> Result<Times, Failure> {
    let mut answers = Vec::new();
    for (n, orders) in load.iter().enumerate() {
        let (reply, answer) = oneshot::channel();
        orders.send((order(n), reply)).await.map_err(|_| "a framework has ended")?;
        answers.push(answer);
    }
    let mut times = Times::default();
    for answer in answers {
        times.add(answer.await?);
    }
    Ok(times)
}

/// What was measured.
#[derive(Default)]
struct Times {
    launch: Vec<u64>,
    gone: Vec<u64>,
    failed: u64,
    unasked: u64,
    running: Option<usize>,
}

impl Times {
    fn add(&mut self, other: Self) {
        self.launch.extend(other.launch);
        self.gone.extend(other.gone);
        self.failed += other.failed;
        self.unasked += other.unasked;
        if let Some(running) = other.running {
            *self.running.get_or_insert(0) += running;
        }
    }

    fn json(mut self, what: &str, seconds: f64) -> String {
        let tasks = self.launch.len().max(self.gone.len());
        let each = (what == "kill").then(|| self.gone.clone());
        let mut text = format!(
            "{{\"what\":\"{what}\",\"tasks\":{tasks},\"failed\":{},\"unasked\":{},\"seconds\":{seconds:.6},\"per_second\":{:.1}",
            self.failed,
            self.unasked,
            tasks as f64 / seconds
        );
        if let Some(running) = self.running {
            let _ = write!(text, ",\"running\":{running}");
        }
        for (name, list) in [("launch", &mut self.launch), ("gone", &mut self.gone)] {
            if list.is_empty() {
                continue;
            }
            list.sort_unstable();
            let at = |share: f64| list[((list.len() as f64 * share) as usize).min(list.len() - 1)];
            let last = list[list.len() - 1];
            let _ = write!(
                text,
                ",\"{name}_p50_us\":{},\"{name}_p90_us\":{},\"{name}_p99_us\":{},\"{name}_max_us\":{last}",
                at(0.5),
                at(0.9),
                at(0.99)
            );
        }
        if let Some(each) = each {
            let _ = write!(text, ",\"gone_us\":{each:?}");
        }
        text.push('}');
        text
    }
}

/// One framework, and with it one supervisor per agent.
struct Framework {
    handle: Handle,
    admin: AdminClient,
    events: EventStream,
    resources: Resources,
    offers: Vec<Offer>,
    /// Tasks were named up to here.
    named: u64,
    /// Accepts under way.
    open: BTreeMap<TaskId, Instant>,
    running: BTreeSet<TaskId>,
    parked: BTreeSet<TaskId>,
    /// Tasks whose end was asked for.
    asked: BTreeSet<TaskId>,
    unasked: u64,
    /// What the leader says of those that it was asked about.
    told: Vec<Option<TaskState>>,
}

type Answers = JoinSet<(Vec<TaskId>, Result<Accepted, CallError>)>;

impl Framework {
    async fn connect(masters: &[String], number: u32, resources: &Resources) -> Result<Self, Failure> {
        let info = FrameworkInfo {
            name: format!("bench-{number}"),
            roles: vec![Role::star()],
            failover_timeout_ms: 10_000,
            ..FrameworkInfo::default()
        };
        let (handle, events) = Scheduler::connect(masters, info, Options::default()).await?;
        handle.suppress(Vec::new()).await?;
        Ok(Self {
            handle,
            events,
            admin: AdminClient::new(masters),
            resources: resources.clone(),
            offers: Vec::new(),
            named: 0,
            open: BTreeMap::new(),
            running: BTreeSet::new(),
            parked: BTreeSet::new(),
            asked: BTreeSet::new(),
            unasked: 0,
            told: Vec::new(),
        })
    }

    /// Does what it is told; in between it gives back at once what it is still offered.
    async fn live(mut self, mut inbox: mpsc::Receiver<Ordered>) -> Result<(), Failure> {
        loop {
            tokio::select! {
                ordered = inbox.recv() => {
                    let Some((order, reply)) = ordered else { break };
                    let mut times = Times::default();
                    self.obey(order, &mut times).await?;
                    times.unasked = self.unasked;
                    // Whoever asked has given up.
                    let _ = reply.send(times);
                }
                event = self.events.next() => {
                    self.learn(event?, true, &mut Times::default());
                    self.give_back().await?;
                }
            }
        }
        // The stream's end, which is what was asked for, may overtake the answer.
        let _ = self.handle.teardown().await;
        Ok(())
    }

    async fn obey(&mut self, order: Order, times: &mut Times) -> Result<(), Failure> {
        match order {
            Order::Run { tasks, argv, hold } => self.run(tasks, self.spec(argv), hold, times).await,
            Order::Single { tasks, argv } => self.single(tasks, argv, times).await,
            Order::Beside { kind, argv } => self.beside(kind, argv, times).await,
            Order::Kill(count) => self.kill(count, times).await,
            Order::Drop => self.drop_all(times).await,
            Order::Count => self.count(times).await,
        }
    }

    fn spec(&self, argv: Vec<String>) -> Arc<TaskSpec> {
        let resources = self.resources.clone();
        Arc::new(TaskSpec { argv, resources, kill_grace_ms: 5_000, ..TaskSpec::default() })
    }

    /// Runs one task that no kill takes.
    async fn beside(&mut self, kind: Kind, argv: Vec<String>, times: &mut Times) -> Result<(), Failure> {
        let mut spec = (*self.spec(argv)).clone();
        if kind == Kind::Terminal {
            spec.container = Container { terminal: true, ..Container::default() };
        }
        if kind == Kind::Checked {
            let hangs = ["sh", "-c", "trap '' TERM; while :; do sleep 1000; done"];
            let hangs = |timeout_ms| Check {
                probe: Probe::Command(hangs.map(str::to_owned).into()),
                delay_ms: 0,
                interval_ms: 100,
                timeout_ms,
            };
            spec.readiness = Some(hangs(PATIENCE.as_millis().try_into().unwrap_or(u64::MAX)));
            spec.health = Some(HealthCheck { check: hangs(100), grace_ms: 0, failures: u32::MAX });
        }
        let others = std::mem::take(&mut self.running);
        self.run(1, Arc::new(spec), true, times).await?;
        let made = std::mem::replace(&mut self.running, others);
        let task = made.first().cloned().ok_or("it ended as soon as it ran")?;
        self.parked.extend(made);
        if kind != Kind::Terminal {
            return Ok(());
        }
        let size = WindowSize { rows: 24, cols: 80 };
        let (hand, output) = self.admin.attach(self.handle.identity().framework, &task, Some(size)).await?;
        tokio::spawn(async move {
            // Held, so that the operator is there, and not read.
            let _output = output;
            while hand.input(Bytes::from_static(&[b'x'; 16 << 10])).await {}
        });
        Ok(())
    }

    /// Runs `tasks` copies to their end, or with `hold` until all are running.
    async fn run(
        &mut self,
        tasks: usize,
        spec: Arc<TaskSpec>,
        hold: bool,
        times: &mut Times,
    ) -> Result<(), Failure> {
        if tasks == 0 {
            return Ok(());
        }
        let (mut waiting, mut done) = (tasks, 0);
        let mut answers = Answers::new();
        self.handle.revive(Vec::new()).await?;
        while done < tasks {
            while waiting > 0 && self.accept(&spec, &mut waiting, &mut answers)? {}
            tokio::select! {
                event = self.events.next() => done += self.learn(event?, hold, times),
                Some(answer) = answers.join_next() => waiting += self.answered(answer?)?,
            }
        }
        self.rest().await
    }

    /// Uses the last offer for as many tasks as it holds; whether there was one.
    fn accept(
        &mut self,
        spec: &Arc<TaskSpec>,
        waiting: &mut usize,
        answers: &mut Answers,
    ) -> Result<bool, Failure> {
        let Some(offer) = self.offers.pop() else { return Ok(false) };
        let mut left = offer.resources.clone();
        let mut tasks = Vec::new();
        while let (true, Ok(rest)) =
            (tasks.len() < (*waiting).min(ACCEPT_MAX), left.checked_sub(&spec.resources))
        {
            self.named += 1;
            tasks.push(TaskLaunch {
                task_id: TaskId::new(&format!("t{}", self.named))?,
                name: String::new(),
                env: BTreeMap::new(),
                array: None,
            });
            left = rest;
        }
        *waiting -= tasks.len();
        let names: Vec<TaskId> = tasks.iter().map(|task| task.task_id.clone()).collect();
        let now = Instant::now();
        self.open.extend(names.iter().map(|name| (name.clone(), now)));
        let handle = self.handle.clone();
        let launch = Launch { spec: spec.clone(), tasks };
        answers.spawn(async move {
            let answer = handle.launch(&offer, launch, Some(Duration::ZERO)).await;
            (names, answer)
        });
        Ok(true)
    }

    /// How many of an Accept's tasks are to be launched again, because their offer was gone.
    fn answered(
        &mut self,
        (names, answer): (Vec<TaskId>, Result<Accepted, CallError>),
    ) -> Result<usize, Failure> {
        match answer {
            Ok(accepted) => match accepted.tasks().find_map(|outcome| outcome.as_ref().err()) {
                Some(refused) => Err(format!("a task was refused: {refused}").into()),
                None => Ok(0),
            },
            Err(CallError::Refused(refused)) if refused.reason == "INVALID_OFFER" => {
                for name in &names {
                    self.open.remove(name);
                }
                Ok(names.len())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// How many tasks are done by this event: ended, or with `hold` running.
    fn learn(&mut self, event: Event, hold: bool, times: &mut Times) -> usize {
        match event {
            Event::Offers(offers) => self.offers.extend(offers),
            Event::Rescinded(gone) => self.offers.retain(|offer| !gone.contains(&offer.id)),
            Event::Disconnected => self.offers.clear(),
            Event::Update(view) => {
                let state = view.status.state;
                let mut began = false;
                if (state == TaskState::Running || state.is_terminal())
                    && let Some(since) = self.open.remove(&view.task)
                {
                    began = true;
                    times.launch.push(micros(since));
                }
                if state.is_terminal() {
                    let held = self.running.remove(&view.task) || self.parked.remove(&view.task);
                    self.unasked += u64::from(held && !self.asked.remove(&view.task));
                    times.failed += u64::from(state != TaskState::Finished && !hold);
                } else if began && hold {
                    self.running.insert(view.task);
                }
                return usize::from(if hold { began } else { state.is_terminal() });
            }
            Event::Reconciled { view, .. } => self.told.push(view.map(|view| view.status.state)),
            _ => {}
        }
        0
    }

    /// Wants no more offers, and gives back those at hand.
    async fn rest(&mut self) -> Result<(), Failure> {
        self.handle.suppress(Vec::new()).await?;
        self.give_back().await
    }

    async fn give_back(&mut self) -> Result<(), Failure> {
        let offers: Vec<_> = self.offers.drain(..).map(|offer| offer.id).collect();
        if !offers.is_empty() {
            self.handle.decline(offers, Some(Duration::ZERO)).await?;
        }
        Ok(())
    }

    /// One after the other, on an idle cluster.
    async fn single(&mut self, tasks: usize, argv: Vec<String>, times: &mut Times) -> Result<(), Failure> {
        let spec = self.spec(argv);
        for _ in 0..tasks {
            // What the last launch left over is not held back for the usual time.
            self.handle.revive(Vec::new()).await?;
            while self.offers.is_empty() {
                let event = self.events.next().await?;
                self.learn(event, false, times);
            }
            tokio::time::sleep(QUIET).await;
            let (mut waiting, mut done) = (1, 0);
            let mut answers = Answers::new();
            while done == 0 {
                while waiting > 0 && self.accept(&spec, &mut waiting, &mut answers)? {}
                tokio::select! {
                    event = self.events.next() => done += self.learn(event?, false, times),
                    Some(answer) = answers.join_next() => waiting += self.answered(answer?)?,
                }
            }
        }
        self.rest().await
    }

    /// Ends running tasks one after the other. Apart, because an agent that has much to say says it together.
    async fn kill(&mut self, count: usize, times: &mut Times) -> Result<(), Failure> {
        for _ in 0..count {
            tokio::time::sleep(QUIET).await;
            let task = self.running.first().cloned().ok_or("no task is running")?;
            let start = Instant::now();
            self.asked.insert(task.clone());
            self.handle.kill(&task, Some(Duration::ZERO)).await?;
            while self.running.contains(&task) {
                let event = self.events.next().await?;
                self.learn(event, true, times);
            }
            times.gone.push(micros(start));
        }
        Ok(())
    }

    /// How many of those that should run the leader has as running.
    async fn count(&mut self, times: &mut Times) -> Result<(), Failure> {
        let all: Vec<TaskId> = self.running.union(&self.parked).cloned().collect();
        self.told.clear();
        let asked = all.len();
        if asked > 0 {
            self.handle.reconcile(all).await?;
        }
        while self.told.len() < asked {
            let event = self.events.next().await?;
            self.learn(event, true, times);
        }
        let running = self.told.iter().filter(|state| **state == Some(TaskState::Running)).count();
        times.running = Some(running);
        Ok(())
    }

    /// Ends all running tasks at once.
    async fn drop_all(&mut self, times: &mut Times) -> Result<(), Failure> {
        self.running.append(&mut self.parked);
        self.asked.extend(self.running.iter().cloned());
        let mut left: Vec<TaskId> = self.running.iter().cloned().collect();
        let start = Instant::now();
        let mut kills = JoinSet::new();
        while !self.running.is_empty() {
            while kills.len() < KILLS_AT_ONCE
                && let Some(task) = left.pop()
            {
                let handle = self.handle.clone();
                kills.spawn(async move { handle.kill(&task, Some(Duration::ZERO)).await });
            }
            tokio::select! {
                event = self.events.next() => {
                    let before = self.running.len();
                    self.learn(event?, true, times);
                    times.gone.extend((self.running.len()..before).map(|_| micros(start)));
                }
                Some(killed) = kills.join_next() => killed??,
            }
        }
        Ok(())
    }
}

fn micros(since: Instant) -> u64 {
    since.elapsed().as_micros().try_into().unwrap_or(u64::MAX)
}
