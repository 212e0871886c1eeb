//! A containerizer for tests: deterministic, driven by hand, without a process.
//!
//! A [`Node`] is the machine: its containers live on whatever becomes of the agent. A [`Fake`] is one life of the
//! agent's containerizer on it; dropping it and making another one is an agent's restart. Nothing happens by itself:
//! the test decides when a launch starts, ends or is lost, and events wait in order until they are taken.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use proffer_types::{FrameworkId, LaunchId, Reason};

use crate::{
    Answer, Cause, CheckKind, ContainerSpec, Containerizer, End, Event, ExecEvent, ExecId, ExecSink,
    ExecSpec, GcPolicy, InstanceId, KillCause, KillSent, Known, LogReader, NotThere, Oom, Stdio, Usage,
    resize,
};

/// What [`Fake::isolation`](Containerizer::isolation) says.
pub const ISOLATION: &str = "fake";

/// The machine. Clones are the same machine.
#[derive(Clone, Debug, Default)]
pub struct Node(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Counts agent lives: a [`Fake`] of an earlier one does nothing any more.
    life: u64,
    instances_made: u64,
    current: BTreeMap<FrameworkId, InstanceId>,
    /// Instances whose supervisor is gone.
    dead: BTreeSet<InstanceId>,
    containers: BTreeMap<LaunchId, Container>,
    events: VecDeque<Event>,
    /// How often each launch id's payload was started.
    starts: BTreeMap<LaunchId, u64>,
    collected: u64,
    /// Launches start as soon as they are delivered.
    starts_at_once: bool,
    /// Kills end a container as soon as they are given.
    kills_at_once: bool,
    now_ms: u64,
    /// Counts programs that were run in containers.
    execs_made: u64,
    execs: BTreeMap<ExecId, Exec>,
    /// The listening sockets of executors.
    listeners: BTreeMap<LaunchId, OwnedFd>,
}

/// A program that was run in a container.
struct Exec {
    launch: LaunchId,
    sink: ExecSink,
    program: Option<ExecProgram>,
    signals: Vec<i32>,
}

impl fmt::Debug for Exec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exec").field("launch", &self.launch).finish_non_exhaustive()
    }
}

/// The ends that a program which was run in a container has in its hands.
#[derive(Debug)]
pub struct ExecProgram {
    /// What it runs.
    pub spec: ExecSpec,
    /// With a terminal, all three are that.
    pub stdin: File,
    /// See `stdin`.
    pub stdout: File,
    /// See `stdin`.
    pub stderr: File,
}

#[derive(Clone, Debug)]
struct Container {
    spec: ContainerSpec,
    phase: Phase,
    kill: Option<u64>,
    kill_cause: KillCause,
    /// The first member of its group.
    group: Option<LaunchId>,
    forget: bool,
    started_ms: u64,
    stdout: Arc<Vec<u8>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    /// With its supervisor, not yet started.
    Delivered,
    Running,
    /// Ended; the event that says so.
    Ended(Event),
}

impl Node {
    /// A machine without containers, whose containers start and die as soon as they are told to.
    pub fn new() -> Self {
        let node = Self::default();
        node.start_at_once(true);
        node.kill_at_once(true);
        node
    }

    /// Whether launches start by themselves; if not, by [`start`](Self::start).
    pub fn start_at_once(&self, yes: bool) {
        self.state().starts_at_once = yes;
    }

    /// Whether a kill ends a container by itself (by SIGTERM, or with no grace by SIGKILL); if not, by
    /// [`exit`](Self::exit) or [`signal`](Self::signal).
    pub fn kill_at_once(&self, yes: bool) {
        self.state().kills_at_once = yes;
    }

    /// Sets the wall clock that events carry.
    pub fn set_time(&self, now_ms: u64) {
        self.state().now_ms = now_ms;
    }

    /// Starts a delivered launch; `false` if there is none.
    pub fn start(&self, launch: LaunchId) -> bool {
        let mut state = self.state();
        let waits = state.containers.get(&launch).is_some_and(|c| c.phase == Phase::Delivered);
        if waits {
            state.start(launch);
        }
        waits
    }

    /// The payload exits with a code; `false` if it does not run.
    pub fn exit(&self, launch: LaunchId, code: i32) -> bool {
        self.state().end(launch, |end| end.exit_code = Some(code))
    }

    /// A signal ends the payload; `false` if it does not run.
    pub fn signal(&self, launch: LaunchId, signal: i32) -> bool {
        self.state().end(launch, |end| end.signal = Some(signal))
    }

    /// The payload is killed for want of memory; `false` if it does not run.
    pub fn out_of_memory(&self, launch: LaunchId) -> bool {
        self.state().out_of_memory(launch)
    }

    /// A launch fails before its payload runs; `false` if none waits.
    pub fn fail(&self, launch: LaunchId, reason: Reason, message: &str) -> bool {
        let mut state = self.state();
        let waits = state.containers.get(&launch).is_some_and(|c| c.phase == Phase::Delivered);
        if waits {
            let message = message.to_owned();
            let group = state.containers.get(&launch).and_then(|c| c.group);
            state.finish(launch, Event::LaunchFailed { launch, reason, message, exit_code: None });
            let others = state
                .containers
                .iter()
                .filter(|(_, c)| group.is_some() && c.group == group && c.phase == Phase::Delivered);
            for launch in others.map(|(&other, _)| other).collect::<Vec<_>>() {
                let message = "another of its group could not be started".to_owned();
                let reason = Reason::GroupNotStarted;
                state.finish(launch, Event::LaunchFailed { launch, reason, message, exit_code: None });
            }
        }
        waits
    }

    /// The supervisor of an instance is killed: its running containers end, what it had not started never will.
    pub fn lose_supervisor(&self, instance: InstanceId) {
        let mut state = self.state();
        state.dead.insert(instance);
        state.current.retain(|_, current| *current != instance);
        let launches: Vec<_> = state
            .containers
            .iter()
            .filter(|(_, c)| c.spec.instance == instance)
            .map(|(&l, c)| (l, c.phase.clone()))
            .collect();
        for (launch, phase) in launches {
            match phase {
                Phase::Delivered => state.not_started(launch),
                Phase::Running => {
                    state.end(launch, |end| {
                        end.cause = Cause::SupervisorLost;
                        end.signal = Some(9);
                    });
                }
                Phase::Ended(_) => {}
            }
        }
    }

    /// The machine restarts: nothing runs any more and nobody is left to tell.
    pub fn reboot(&self) {
        let mut state = self.state();
        state.life += 1;
        state.containers.clear();
        state.current.clear();
        state.events.clear();
        let made = state.instances_made;
        state.dead.extend((1..=made).map(InstanceId));
    }

    /// What the payload wrote to its standard output.
    pub fn write_stdout(&self, launch: LaunchId, bytes: &[u8]) {
        if let Some(container) = self.state().containers.get_mut(&launch) {
            Arc::make_mut(&mut container.stdout).extend_from_slice(bytes);
        }
    }

    /// The launches whose payload runs, in ascending order.
    pub fn running(&self) -> Vec<LaunchId> {
        let state = self.state();
        state.containers.iter().filter(|(_, c)| c.phase == Phase::Running).map(|(&l, _)| l).collect()
    }

    /// A check of a running launch has a result; a health check that fails as often as it may ends the launch.
    pub fn check(&self, launch: LaunchId, kind: CheckKind, ok: bool, consecutive_failures: u32) {
        let mut state = self.state();
        let Some(container) = state.containers.get_mut(&launch).filter(|c| c.phase == Phase::Running) else {
            return;
        };
        let health = container.spec.supervision.health.as_ref();
        let most = health.filter(|_| kind == CheckKind::Health).map(|health| health.failures);
        let message = if ok { String::new() } else { "the check failed".to_owned() };
        state.events.push_back(Event::Checked { launch, kind, ok, consecutive_failures, message });
        if !ok && most.is_some_and(|most| consecutive_failures >= most) {
            state.kill_for(launch, KillCause::Health);
        }
    }

    /// A running launch has run for as long as it may.
    pub fn complete(&self, launch: LaunchId) {
        self.state().kill_for(launch, KillCause::MaxCompletion);
    }

    /// The programs that were run in containers and have not ended.
    pub fn execs(&self) -> Vec<ExecId> {
        self.state().execs.keys().copied().collect()
    }

    /// Takes what a program that was run in a container has in its hands, to act as it.
    pub fn exec_program(&self, exec: ExecId) -> Option<ExecProgram> {
        self.state().execs.get_mut(&exec)?.program.take()
    }

    /// The signals that were sent to it so far.
    pub fn exec_signals(&self, exec: ExecId) -> Vec<i32> {
        self.state().execs.get(&exec).map(|exec| exec.signals.clone()).unwrap_or_default()
    }

    /// Such a program ends; `false` if there is none.
    pub fn exec_exit(&self, exec: ExecId, exit_code: i32) -> bool {
        let Some(mut ended) = self.state().execs.remove(&exec) else { return false };
        ended.program = None;
        (ended.sink)(ExecEvent::Exited { exit_code: Some(exit_code), signal: None });
        true
    }

    /// What a launch that is known to the node runs.
    pub fn spec(&self, launch: LaunchId) -> Option<ContainerSpec> {
        self.state().containers.get(&launch).map(|c| c.spec.clone())
    }

    /// The grace of the last kill of a launch, if one was given.
    pub fn kill_grace_ms(&self, launch: LaunchId) -> Option<u64> {
        self.state().containers.get(&launch).and_then(|c| c.kill)
    }

    /// How often the payload of each launch was started, for ever: more than once is a broken promise.
    pub fn starts(&self) -> BTreeMap<LaunchId, u64> {
        self.state().starts.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no panic while the node is held")
    }
}

impl State {
    fn deliver(&mut self, spec: ContainerSpec, group: Option<LaunchId>) {
        let container = Container {
            phase: Phase::Delivered,
            kill: None,
            kill_cause: KillCause::Order,
            group,
            forget: false,
            started_ms: 0,
            stdout: Arc::default(),
            spec,
        };
        self.containers.insert(container.spec.launch, container);
    }

    fn start(&mut self, launch: LaunchId) {
        let now = self.now_ms;
        let Some(container) = self.containers.get_mut(&launch) else { return };
        container.phase = Phase::Running;
        container.started_ms = now;
        *self.starts.entry(launch).or_default() += 1;
        self.events.push_back(Event::Started { launch, isolation: ISOLATION, started_unix_ms: now });
    }

    fn end(&mut self, launch: LaunchId, how: impl FnOnce(&mut End)) -> bool {
        let now = self.now_ms;
        let Some(container) = self.containers.get(&launch).filter(|c| c.phase == Phase::Running) else {
            return false;
        };
        let kill_sent = match container.kill {
            None => KillSent::None,
            Some(0) => KillSent::Kill,
            Some(_) => KillSent::Term,
        };
        let kill_cause = if container.kill.is_some() { container.kill_cause } else { KillCause::None };
        let mut end = End {
            kill_sent,
            kill_cause,
            started_unix_ms: container.started_ms,
            finished_unix_ms: now,
            ..End::default()
        };
        how(&mut end);
        let well = end.exit_code == Some(0);
        self.finish(launch, Event::Ended { launch, end });
        if !well {
            self.end_group(launch);
        }
        true
    }

    fn out_of_memory(&mut self, launch: LaunchId) -> bool {
        let limit_bytes = self.containers.get(&launch).map_or(0, |c| c.spec.memory_bytes);
        self.end(launch, |end| {
            end.signal = Some(9);
            end.oom = Some(Oom { peak_bytes: limit_bytes, limit_bytes });
            end.oom_kills = 1;
            end.memory_peak_bytes = Some(limit_bytes);
        })
    }

    fn finish(&mut self, launch: LaunchId, event: Event) {
        let Some(container) = self.containers.get_mut(&launch) else { return };
        container.phase = Phase::Ended(event.clone());
        let forget = container.forget;
        self.events.push_back(event);
        self.listeners.remove(&launch);
        // What runs inside ends with it.
        let inside: Vec<_> =
            self.execs.iter().filter(|(_, e)| e.launch == launch).map(|(&id, _)| id).collect();
        for exec in inside {
            if let Some(mut exec) = self.execs.remove(&exec) {
                (exec.sink)(ExecEvent::Exited { exit_code: None, signal: Some(9) });
            }
        }
        if forget {
            self.containers.remove(&launch);
            self.events.push_back(Event::Gone { launch });
        }
    }

    fn not_started(&mut self, launch: LaunchId) {
        let Some(container) = self.containers.remove(&launch) else { return };
        if container.forget {
            self.events.push_back(Event::Gone { launch });
        } else {
            self.events.push_back(Event::NotStarted { launch });
        }
    }

    /// Another of its group ended otherwise than well.
    fn end_group(&mut self, launch: LaunchId) {
        let Some(first) = self.containers.get(&launch).and_then(|c| c.group) else { return };
        let others =
            self.containers.iter().filter(|(_, c)| c.group == Some(first) && c.phase == Phase::Running);
        for other in others.map(|(&other, _)| other).collect::<Vec<_>>() {
            self.kill_for(other, KillCause::Group);
        }
    }

    fn kill_for(&mut self, launch: LaunchId, cause: KillCause) {
        let Some(container) = self.containers.get_mut(&launch) else { return };
        if container.kill.is_none() {
            container.kill_cause = cause;
        }
        let grace = container.spec.supervision.kill_grace_ms;
        self.kill(launch, if cause == KillCause::MaxCompletion { 0 } else { grace });
    }

    fn kill(&mut self, launch: LaunchId, grace_ms: u64) {
        let at_once = self.kills_at_once;
        let Some(container) = self.containers.get_mut(&launch) else { return };
        match container.phase {
            Phase::Delivered => {
                let message = "killed before it was started".to_owned();
                let reason = Reason::KilledDuringLaunch;
                self.finish(launch, Event::LaunchFailed { launch, reason, message, exit_code: None });
            }
            Phase::Running => {
                let grace = container.kill.map_or(grace_ms, |before| before.min(grace_ms));
                container.kill = Some(grace);
                if at_once {
                    self.end(launch, |end| end.signal = Some(if grace == 0 { 9 } else { 15 }));
                }
            }
            Phase::Ended(_) => {}
        }
    }
}

/// Both sides of a program's standard input, output and error.
fn exec_ends(spec: ExecSpec) -> (ExecProgram, Stdio) {
    if let Some(size) = spec.terminal {
        let pty = nix::pty::openpty(None, None).expect("a terminal");
        resize(&pty.master, size).expect("a size");
        let end = || File::from(pty.slave.try_clone().expect("a duplicate"));
        let program = ExecProgram { spec, stdin: end(), stdout: end(), stderr: end() };
        return (program, Stdio::Terminal(pty.master));
    }
    let pipe = || nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).expect("a pipe");
    let ((stdin, to_stdin), (from_stdout, stdout), (from_stderr, stderr)) = (pipe(), pipe(), pipe());
    let program = ExecProgram { spec, stdin: stdin.into(), stdout: stdout.into(), stderr: stderr.into() };
    (program, Stdio::Pipes { stdin: to_stdin, stdout: from_stdout, stderr: from_stderr })
}

/// One life of the containerizer on a [`Node`].
#[derive(Debug)]
pub struct Fake {
    node: Node,
    life: u64,
}

impl Fake {
    /// A new life: a [`Fake`] of an earlier one does nothing any more, and its untaken events are lost.
    pub fn new(node: &Node) -> Self {
        let mut state = node.state();
        state.life += 1;
        state.events.clear();
        let life = state.life;
        drop(state);
        Self { node: node.clone(), life }
    }

    /// The events since they were last taken, in order.
    pub fn take_events(&mut self) -> Vec<Event> {
        self.alive().map(|mut state| state.events.drain(..).collect()).unwrap_or_default()
    }

    fn alive(&self) -> Option<MutexGuard<'_, State>> {
        let state = self.node.state();
        (state.life == self.life).then_some(state)
    }
}

impl Containerizer for Fake {
    fn assign(&mut self, framework: FrameworkId) -> InstanceId {
        let mut state = self.node.state();
        if let Some(&current) = state.current.get(&framework) {
            return current;
        }
        state.instances_made += 1;
        let instance = InstanceId(state.instances_made);
        state.current.insert(framework, instance);
        instance
    }

    fn recover(&mut self, known: Vec<Known>) {
        let Some(mut state) = self.alive() else { return };
        let known: BTreeMap<_, _> = known.into_iter().map(|known| (known.launch, known)).collect();
        for (&launch, known) in &known {
            let Some(container) = state.containers.get(&launch) else {
                if !known.ended {
                    state.events.push_back(Event::NotStarted { launch });
                }
                continue;
            };
            let started_unix_ms = container.started_ms;
            match container.phase.clone() {
                Phase::Ended(event) if !known.ended => state.events.push_back(event),
                Phase::Running => {
                    state.events.push_back(Event::Started { launch, isolation: ISOLATION, started_unix_ms })
                }
                Phase::Ended(_) | Phase::Delivered => {}
            }
        }
        let orphans: Vec<_> =
            state.containers.keys().filter(|launch| !known.contains_key(launch)).copied().collect();
        for launch in orphans {
            state.containers.remove(&launch);
            state.events.push_back(Event::OrphanRemoved { launch });
        }
        state.events.push_back(Event::Recovered);
    }

    fn launch(&mut self, spec: ContainerSpec) {
        let Some(mut state) = self.alive() else { return };
        let launch = spec.launch;
        if state.containers.contains_key(&launch) {
            return;
        }
        if state.dead.contains(&spec.instance) {
            state.events.push_back(Event::NotStarted { launch });
            return;
        }
        state.deliver(spec, None);
        if state.starts_at_once {
            state.start(launch);
        }
    }

    fn launch_group(&mut self, members: Vec<ContainerSpec>) {
        let Some(mut state) = self.alive() else { return };
        let launches: Vec<_> = members.iter().map(|member| member.launch).collect();
        if launches.iter().any(|launch| state.containers.contains_key(launch)) {
            return;
        }
        if members.iter().any(|member| state.dead.contains(&member.instance)) {
            state.events.extend(launches.into_iter().map(|launch| Event::NotStarted { launch }));
            return;
        }
        members.into_iter().for_each(|member| state.deliver(member, launches.first().copied()));
        if state.starts_at_once {
            launches.into_iter().for_each(|launch| state.start(launch));
        }
    }

    fn kill(&mut self, launch: LaunchId, grace_ms: u64) {
        if let Some(mut state) = self.alive() {
            state.kill(launch, grace_ms);
        }
    }

    fn holds(&self, launch: LaunchId, _: i32) -> bool {
        // Whoever acts for it.
        self.alive().is_some_and(|state| state.containers.contains_key(&launch))
    }

    fn resize(&mut self, launch: LaunchId, cpus_milli: u64, memory_bytes: u64) {
        // Nothing here is limited, and so nothing is larger or smaller.
        let _ = (launch, cpus_milli, memory_bytes);
    }

    fn forget(&mut self, launch: LaunchId) {
        let Some(mut state) = self.alive() else { return };
        match state.containers.get_mut(&launch) {
            None => state.events.push_back(Event::Gone { launch }),
            Some(container) if matches!(container.phase, Phase::Ended(_)) => {
                state.containers.remove(&launch);
                state.events.push_back(Event::Gone { launch });
            }
            Some(container) => {
                container.forget = true;
                state.kill(launch, 0);
            }
        }
    }

    fn sandbox_path(&self, launch: LaunchId) -> PathBuf {
        PathBuf::from("/fake").join(crate::cgroup::name(launch))
    }

    fn sandbox_dir(&self, _launch: LaunchId) -> Option<PathBuf> {
        None
    }

    fn group_path(&self, first: LaunchId) -> PathBuf {
        PathBuf::from("/fake/group").join(crate::cgroup::name(first))
    }

    fn executor_socket(&self, launch: LaunchId, _instance: InstanceId) -> PathBuf {
        std::env::temp_dir().join(format!("proffer-fake-{}-{:x}.sock", std::process::id(), launch.0))
    }

    /// A real socket at [`executor_socket`](Containerizer::executor_socket), which the test removes.
    fn listener(&mut self, launch: LaunchId, answer: Answer<OwnedFd>) {
        let path = self.executor_socket(launch, InstanceId(0));
        let Some(mut state) = self.alive() else { return };
        let executor = state.containers.get(&launch).is_some_and(|c| c.spec.supervision.executor);
        let given = if executor {
            let listener = state.listeners.entry(launch).or_insert_with(|| {
                let listener = std::os::unix::net::UnixListener::bind(path).expect("a new socket");
                listener.set_nonblocking(true).expect("non-blocking");
                listener.into()
            });
            listener.try_clone().map_err(|error| NotThere(error.to_string()))
        } else {
            Err(NotThere("it is no executor".to_owned()))
        };
        drop(state);
        answer(given);
    }

    fn terminal(&mut self, _launch: LaunchId, answer: Answer<OwnedFd>) {
        answer(Err(NotThere("it has no terminal".to_owned())));
    }

    fn exec(&mut self, launch: LaunchId, spec: ExecSpec, mut sink: ExecSink) -> ExecId {
        let mut state = self.node.state();
        state.execs_made += 1;
        let exec = ExecId(state.execs_made);
        let runs = state.containers.get(&launch).is_some_and(|c| c.phase == Phase::Running);
        if !runs {
            drop(state);
            let message = "it does not run".to_owned();
            sink(ExecEvent::Failed { message, exit_code: None });
            return exec;
        }
        drop(state);
        let (program, stdio) = exec_ends(spec);
        // Without the node in hand, which it may look at.
        sink(ExecEvent::Started(stdio));
        let running = Exec { launch, sink, program: Some(program), signals: Vec::new() };
        self.node.state().execs.insert(exec, running);
        exec
    }

    fn signal_exec(&mut self, exec: ExecId, signal: i32) {
        if let Some(exec) = self.node.state().execs.get_mut(&exec) {
            exec.signals.push(signal);
        }
    }

    fn logs(&self, launch: LaunchId) -> LogReader {
        let state = self.node.state();
        let container = state.containers.get(&launch);
        let stdout = container.map(|c| c.stdout.clone()).unwrap_or_default();
        let ended = container.is_none_or(|c| matches!(c.phase, Phase::Ended(_)));
        LogReader::memory(launch, stdout, Arc::default(), ended)
    }

    fn usage(&self, launch: LaunchId) -> Option<Usage> {
        let state = self.node.state();
        let runs = state.containers.get(&launch).is_some_and(|c| c.phase == Phase::Running);
        runs.then_some(Usage { pids: 1, ..Usage::default() })
    }

    fn gc(&mut self, _policy: GcPolicy) {
        self.node.state().collected += 1;
    }

    fn isolation(&self) -> &'static str {
        ISOLATION
    }
}
