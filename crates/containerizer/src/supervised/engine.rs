//! The thread: what is ready, what is due, and what was asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, TryRecvError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use proffer_launcher::seqpacket::Receiver;
use proffer_types::{LaunchId, Reason};
use proffer_wire::supervisor::v1::to_supervisor::Message as Order;
use proffer_wire::supervisor::v1::{Kill, Shutdown};

use super::Shared;
use super::ask::{Asked, Thing};
use super::confine::Confinement;
use super::dirs::Dirs;
use super::launch::{Group, Launch, Phase};
use super::recover::Recovering;
use super::start::Starting;
use super::supervisor::{Out, Stage, Supervisor, pin};
use super::user::Accounts;
use crate::cgroup::Room;
use crate::{
    Answer, ContainerSpec, Event, ExecId, ExecSink, ExecSpec, GcPolicy, InstanceId, Known, Options, gc,
};

/// How long after the end of its grace a container is killed past its supervisor.
pub(super) const ESCALATE_AFTER: Duration = Duration::from_secs(5);
/// How many messages of one supervisor are read before another has its turn.
const TURN_MESSAGES: usize = 256;

/// Most events that wait for the end of a turn, which may be long.
const TOLD_MAX: usize = 32;

/// What the handle asks for.
pub(super) enum Command {
    Recover(Vec<Known>),
    Launch(Box<ContainerSpec>),
    LaunchGroup(Vec<ContainerSpec>),
    Exec(LaunchId, ExecId, ExecSpec, ExecSink),
    SignalExec(ExecId, i32),
    Ask(LaunchId, Thing, Answer<OwnedFd>),
    Kill(LaunchId, u64),
    Resize(LaunchId, u64, u64),
    Forget(LaunchId),
    Gc(GcPolicy),
    Stop,
}

/// A descriptor that has something to say.
#[derive(Clone, Copy, Debug)]
enum Ready {
    Wake,
    Starter(InstanceId),
    Readable(InstanceId),
    Writable(InstanceId),
    Process(InstanceId),
}

/// Everything that the thread owns.
pub(super) struct Engine {
    pub(super) options: Options,
    pub(super) dirs: Dirs,
    pub(super) confinement: Confinement,
    pub(super) shared: Arc<Shared>,
    commands: mpsc::Receiver<Command>,
    wake: Arc<OwnedFd>,
    sink: Box<dyn FnMut(Event) + Send>,
    /// What is to be told at the end of the turn: whoever hears it is woken once.
    told: Vec<Event>,
    pub(super) supervisors: BTreeMap<InstanceId, Supervisor>,
    pub(super) launches: BTreeMap<LaunchId, Launch>,
    /// When launches want to be looked at; one too many does no harm.
    timers: BTreeSet<(Instant, LaunchId)>,
    pub(super) recovering: Option<Recovering>,
    collecting: Arc<AtomicBool>,
    pub(super) accounts: Accounts,
    /// When it is looked for new sockets.
    pub(super) look_at: Instant,
    pub(super) asked: Asked,
    pub(super) receiver: Receiver,
}

impl Engine {
    pub(super) fn new(
        options: Options,
        dirs: Dirs,
        confinement: Confinement,
        shared: Arc<Shared>,
        (commands, wake): (mpsc::Receiver<Command>, Arc<OwnedFd>),
        sink: Box<dyn FnMut(Event) + Send>,
    ) -> Self {
        Self {
            options,
            dirs,
            confinement,
            shared,
            commands,
            wake,
            sink,
            told: Vec::new(),
            supervisors: BTreeMap::new(),
            launches: BTreeMap::new(),
            timers: BTreeSet::new(),
            recovering: None,
            collecting: Arc::default(),
            accounts: Accounts::default(),
            look_at: Instant::now(),
            asked: Asked::default(),
            receiver: Receiver::default(),
        }
    }

    /// Until the handle is dropped.
    pub(super) fn run(mut self) {
        loop {
            for ready in self.wait() {
                match ready {
                    Ready::Wake => {
                        if !self.on_wake() {
                            return self.tell();
                        }
                    }
                    Ready::Starter(instance) => self.on_starter(instance),
                    Ready::Readable(instance) => self.on_readable(instance),
                    Ready::Writable(instance) => {
                        if let Some(supervisor) = self.supervisors.get_mut(&instance) {
                            supervisor.blocked = false;
                        }
                        self.flush(instance);
                    }
                    Ready::Process(instance) => self.on_dead(instance),
                }
            }
            self.on_time(Instant::now());
            self.tell();
        }
    }

    pub(super) fn emit(&mut self, event: Event) {
        tracing::debug!(?event, "container event");
        self.told.push(event);
        if self.told.len() >= TOLD_MAX {
            self.tell();
        }
    }

    fn tell(&mut self) {
        self.told.drain(..).for_each(&mut self.sink);
    }

    /// Has [`advance`](Self::advance) called for the launch at a time.
    pub(super) fn arm(&mut self, at: Instant, id: LaunchId) {
        self.timers.insert((at, id));
    }

    fn wait(&self) -> Vec<Ready> {
        let mut sources = vec![Ready::Wake];
        let mut fds = vec![PollFd::new(self.wake.as_fd(), PollFlags::POLLIN)];
        for (&instance, supervisor) in &self.supervisors {
            let mut add = |source, fd, flags| {
                sources.push(source);
                fds.push(PollFd::new(fd, flags));
            };
            if let Stage::Starting(starting) = &supervisor.stage {
                add(Ready::Starter(instance), starting.fd(), PollFlags::POLLIN);
            }
            if let Some(connection) = supervisor.connection() {
                add(Ready::Readable(instance), connection, PollFlags::POLLIN);
                if supervisor.blocked {
                    add(Ready::Writable(instance), connection, PollFlags::POLLOUT);
                }
            }
            // After the connection: what was said before the death is heard first.
            if let Some(process) = supervisor.process.as_ref().filter(|_| !supervisor.is_dead()) {
                add(Ready::Process(instance), process.as_fd(), PollFlags::POLLIN);
            }
        }
        let timeout = self.next_deadline().map_or(PollTimeout::NONE, |at| {
            // Rounded up: a loop that wakes a little early would spin until the time has come.
            let left = at.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut fds, timeout) {
            Ok(_) => {
                let ready = fds.iter().zip(sources).filter(|(fd, _)| fd.any().unwrap_or(true));
                ready.map(|(_, source)| source).collect()
            }
            // A signal, or a moment without memory: the next round looks again.
            Err(_) => Vec::new(),
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let idle = self.options.supervisor_idle;
        let supervisors = self.supervisors.values().filter_map(|supervisor| supervisor.deadline(idle));
        let timers = self.timers.first().map(|(at, _)| *at);
        let more = [self.answers_due(), self.look_due(), self.silence_due()];
        supervisors.chain(timers).chain(more.into_iter().flatten()).min()
    }

    fn on_time(&mut self, now: Instant) {
        if self.look_due().is_some_and(|at| at <= now) {
            self.look_for_sockets();
        }
        if self.answers_due().is_some_and(|at| at <= now) {
            self.wait_no_longer();
        }
        while let Some(&(at, id)) = self.timers.first().filter(|(at, _)| *at <= now) {
            self.timers.remove(&(at, id));
            self.advance(id);
        }
        let idle = self.options.supervisor_idle;
        let due = self.supervisors.values().filter(|s| s.deadline(idle).is_some_and(|at| at <= now));
        for instance in due.map(|supervisor| supervisor.instance).collect::<Vec<_>>() {
            let Some(supervisor) = self.supervisors.get_mut(&instance) else { continue };
            match supervisor.stage {
                Stage::Starting(_) => self.on_starter(instance),
                Stage::Away { .. } => {
                    supervisor.connect(&self.dirs.socket(instance));
                    self.look_at_exits(instance);
                }
                Stage::Up { .. } => self.drain(instance),
                _ => {}
            }
        }
        // Last: what was sent just now is to be answered too, and nothing else may wake this thread.
        self.look_at_the_silent(now);
    }

    fn on_wake(&mut self) -> bool {
        // Emptied before the commands are taken, so that none is slept over.
        let _ = rustix::io::read(&*self.wake, &mut [0u8; 8]);
        self.shared.awake.swap(false, Ordering::AcqRel);
        loop {
            match self.commands.try_recv() {
                Ok(Command::Recover(known)) => self.on_recover(known),
                Ok(Command::Launch(spec)) => self.on_launch(*spec, None),
                Ok(Command::LaunchGroup(members)) => self.on_launch_group(members),
                Ok(Command::Exec(id, exec, spec, sink)) => self.on_exec(id, exec, spec, sink),
                Ok(Command::SignalExec(exec, signal)) => self.on_exec_signal(exec, signal),
                Ok(Command::Ask(id, thing, answer)) => self.on_ask(id, thing, answer),
                Ok(Command::Kill(id, grace_ms)) => self.on_kill(id, grace_ms),
                Ok(Command::Resize(id, cpus_milli, memory_bytes)) => {
                    self.on_resize(id, cpus_milli, memory_bytes);
                }
                Ok(Command::Forget(id)) => self.on_forget(id),
                Ok(Command::Gc(policy)) => self.on_gc(policy),
                Err(TryRecvError::Empty) => return true,
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// The members are sent one after the other; their supervisor holds them back until it has all.
    fn on_launch_group(&mut self, members: Vec<ContainerSpec>) {
        let (Some(first), Ok(size)) = (members.first(), u32::try_from(members.len())) else { return };
        if members.iter().any(|member| self.launches.contains_key(&member.launch)) {
            return;
        }
        let group = Group { first: first.launch, size };
        for member in members {
            self.on_launch(member, Some(group));
        }
    }

    fn on_launch(&mut self, spec: ContainerSpec, group: Option<Group>) {
        let (id, instance, framework) = (spec.launch, spec.instance, spec.framework);
        if self.launches.contains_key(&id) {
            return;
        }
        self.shared.writes(id);
        self.launches.insert(id, Launch { group, ..Launch::of_spec(spec) });
        let current = self.shared.current().get(&framework) == Some(&instance);
        match self.supervisors.get_mut(&instance) {
            Some(supervisor) if supervisor.is_dead() => self.judge(id),
            Some(supervisor) if supervisor.draining => self.not_started(id),
            Some(supervisor) if supervisor.silence.is_given_up() => self.not_started(id),
            Some(supervisor) => {
                supervisor.launches.insert(id);
                supervisor.idle_since = None;
                // Before it is up, the list of what it knows decides what is sent.
                if supervisor.is_up() {
                    supervisor.out.push_back(Out::Launch(id));
                    self.flush(instance);
                }
            }
            None if current && !self.dirs.instance(instance).exists() => self.start(instance, id),
            None => self.judge(id),
        }
    }

    fn start(&mut self, instance: InstanceId, first: LaunchId) {
        let Some(framework) =
            self.launches.get(&first).and_then(|l| l.spec.as_ref()).map(|spec| spec.framework)
        else {
            return;
        };
        let entries = match &self.confinement {
            Confinement::Cgroups(tree) => tree.supervisor_entries(),
            Confinement::Nothing(_) => Ok(Vec::new()),
        };
        let starting = entries.and_then(|entries| self.note_sockets(instance).map(|()| entries));
        let starting = starting
            .and_then(|entries| Starting::spawn(&self.options, &self.dirs, instance, framework, entries));
        match starting {
            Ok(starting) => {
                let mut supervisor = Supervisor::new(instance, framework, Stage::Starting(starting));
                supervisor.launches.insert(first);
                self.supervisors.insert(instance, supervisor);
            }
            Err(error) => {
                // Named anew, the next launch tries again.
                self.shared.current().retain(|_, current| *current != instance);
                self.fail(
                    first,
                    Reason::LaunchFailed,
                    format!("its supervisor cannot be started: {}", chain(&error)),
                );
            }
        }
    }

    fn on_starter(&mut self, instance: InstanceId) {
        let Some(supervisor) = self.supervisors.get_mut(&instance) else { return };
        let Stage::Starting(starting) = &mut supervisor.stage else { return };
        let outcome = match starting.outcome() {
            Ok(false) => return,
            Ok(true) => match self.dirs.living(instance).and_then(pin) {
                Some(process) => Ok(process),
                None => Err("it ended as soon as it had started".to_owned()),
            },
            Err(complaint) => Err(complaint),
        };
        match outcome {
            Ok(process) => {
                let launches = std::mem::take(&mut supervisor.launches);
                *supervisor =
                    Supervisor { launches, ..Supervisor::living(instance, supervisor.framework, process) };
                supervisor.connect(&self.dirs.socket(instance));
            }
            Err(complaint) => {
                tracing::error!(%instance, complaint, "a supervisor did not start");
                supervisor.complaint = Some(complaint);
                self.on_dead(instance);
            }
        }
    }

    pub(super) fn on_readable(&mut self, instance: InstanceId) {
        for _ in 0..TURN_MESSAGES {
            // Looked up each time: a message may change everything.
            let Some(supervisor) = self.supervisors.get_mut(&instance) else { return };
            match supervisor.recv(&mut self.receiver) {
                Ok(Some((told, descriptors))) => {
                    supervisor.silence.spoke(instance);
                    self.on_told(instance, told, descriptors);
                }
                Ok(None) => return,
                Err(_) => {
                    tracing::info!(%instance, "the connection to a supervisor ended");
                    supervisor.disconnected();
                    return self.lost_answers(instance);
                }
            }
        }
    }

    fn on_kill(&mut self, id: LaunchId, grace_ms: u64) {
        let Some(launch) = self.launches.get_mut(&id).filter(|launch| launch.is_open()) else { return };
        // A grace beyond what a clock can tell has no end.
        let Some(at) = Instant::now().checked_add(Duration::from_millis(grace_ms)) else { return };
        if launch.kill_at.is_some_and(|before| before <= at) {
            return;
        }
        launch.kill_at = Some(at);
        let instance = launch.instance;
        match launch.phase {
            Phase::Queued => {
                self.fail(id, Reason::KilledDuringLaunch, "killed before it was started".to_owned())
            }
            _ => {
                self.arm(at + ESCALATE_AFTER, id);
                self.order(instance, Order::Kill(Kill { launch_id: id.0, grace_ms }));
                if self.supervisors.get(&instance).is_some_and(|it| it.silence.is_given_up()) {
                    self.tell_unanswered(id);
                }
            }
        }
    }

    fn on_resize(&mut self, id: LaunchId, cpus_milli: u64, memory_bytes: u64) {
        let Some(launch) = self.launches.get_mut(&id).filter(|launch| launch.is_open()) else { return };
        launch.memory_bytes = memory_bytes;
        if let Some(spec) = &mut launch.spec {
            // It may not have been made yet.
            (spec.cpus_milli, spec.memory_bytes) = (cpus_milli, memory_bytes);
        }
        launch.resize_to = Some((cpus_milli, memory_bytes));
        self.go_on_resizing(id);
    }

    /// A limit below what is in use is come to in time.
    pub(super) fn go_on_resizing(&mut self, id: LaunchId) {
        let Some(launch) = self.launches.get_mut(&id) else { return };
        let Some((cpus_milli, memory_bytes)) = launch.resize_to else { return };
        let pause = match self.confinement.resize(id, cpus_milli, memory_bytes) {
            Room::Made => {
                launch.resize_to = None;
                return;
            }
            Room::InParts => Duration::from_millis(100),
            Room::None => Duration::from_secs(2),
        };
        self.arm(Instant::now() + pause, id);
    }

    fn on_forget(&mut self, id: LaunchId) {
        let Some(launch) = self.launches.get_mut(&id) else {
            return self.emit(Event::Gone { launch: id });
        };
        launch.forget = true;
        match launch.phase {
            Phase::Ended => self.remove(id),
            _ => self.on_kill(id, 0),
        }
    }

    fn drain(&mut self, instance: InstanceId) {
        let Some(supervisor) = self.supervisors.get_mut(&instance) else { return };
        if !supervisor.launches.is_empty() {
            supervisor.idle_since = None;
            return;
        }
        self.retire(instance);
    }

    /// Has a supervisor end with its last launch, and sends it no new ones.
    pub(super) fn retire(&mut self, instance: InstanceId) {
        let Some(supervisor) = self.supervisors.get_mut(&instance) else { return };
        supervisor.draining = true;
        self.shared.current().retain(|_, current| *current != instance);
        self.order(instance, Order::Shutdown(Shutdown {}));
    }

    fn on_gc(&mut self, policy: GcPolicy) {
        if self.collecting.swap(true, Ordering::AcqRel) {
            return;
        }
        let (dirs, collecting) = (self.dirs.clone(), self.collecting.clone());
        let spawned = std::thread::Builder::new().name("collect".into()).spawn(move || {
            gc::collect(&dirs.work, policy);
            collecting.store(false, Ordering::Release);
        });
        if let Err(error) = spawned {
            tracing::warn!(%error, "old sandboxes are not collected: no thread");
            self.collecting.store(false, Ordering::Release);
        }
    }
}

/// An error with what caused it, on one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
