//! A framework's connection to its cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proffer_types::command::Ack;
use proffer_types::limits::OPEN_CALLS_MAX;
use proffer_types::{
    AgentId, ClusterId, ExecutorId, FrameworkId, FrameworkInfo, OfferId, RequestId, Role, SessionId, TaskId,
};
use tokio::sync::{mpsc, oneshot, watch};

use crate::core::{
    Accepted, CallError, Config, Core, Ended, Event, Launch, Member, Offer, Operation, Part, Reply, Request,
    TaskView,
};
use crate::driver::{Command, Delivered, Driver};

/// Events that wait for the author outside the driver.
const EVENTS_WAITING: usize = 64;

/// How to connect.
#[derive(Clone, Debug)]
pub struct Options {
    /// An existing framework to take over. A new session begins; another instance of the framework is fenced.
    pub framework: Option<FrameworkId>,
    /// Roles in which no offers are wanted at first.
    pub suppressed: BTreeSet<Role>,
    /// How long [`Scheduler::connect`] looks for a leader.
    pub connect_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { framework: None, suppressed: BTreeSet::new(), connect_timeout: Duration::from_secs(10) }
    }
}

/// Why there is no connection.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ConnectError {
    /// No address was given.
    #[error("no master's address was given")]
    NoMasters,
    /// Nobody answered as the leader in time.
    #[error("no leader found within {waited:?}: {}", masters.iter().map(|(m, why)| format!("{m}: {why}")).collect::<Vec<_>>().join("; "))]
    NoLeader {
        /// How long was waited.
        waited: Duration,
        /// What each master did.
        masters: Vec<(String, String)>,
    },
    /// The leader refused.
    #[error(transparent)]
    Ended(#[from] Ended),
    /// The system gave no random numbers.
    #[error("cannot draw a random number: {0}")]
    Random(String),
}

/// Who a framework is, as the cluster knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The framework.
    pub framework: FrameworkId,
    /// Its session.
    pub session: SessionId,
    /// The cluster.
    pub cluster: ClusterId,
}

/// Opens connections.
#[derive(Debug)]
pub struct Scheduler;

impl Scheduler {
    /// Subscribes with the first of `masters` (or whom they name) that leads. The first event is
    /// [`Event::Subscribed`].
    ///
    /// Must be called in a tokio runtime; the connection lives until it ends or both halves are dropped.
    pub async fn connect(
        masters: &[String],
        info: FrameworkInfo,
        options: Options,
    ) -> Result<(Handle, EventStream), ConnectError> {
        if masters.is_empty() {
            return Err(ConnectError::NoMasters);
        }
        let mut random = [0; 24];
        getrandom::fill(&mut random).map_err(|error| ConnectError::Random(error.to_string()))?;
        let number = |bytes: &[u8]| bytes.iter().fold(0u128, |n, byte| n << 8 | u128::from(*byte));
        let core = Core::new(Config {
            masters: masters.to_vec(),
            info,
            framework: options.framework,
            suppressed: options.suppressed,
            origin: RequestId(number(&random[..16]).max(1)),
            seed: number(&random[16..]) as u64,
        });
        let (commands, commands_in) = mpsc::channel(OPEN_CALLS_MAX);
        let (events_out, events) = mpsc::channel(EVENTS_WAITING);
        let (identity_out, mut identity) = watch::channel(None);
        tokio::spawn(Driver::new(core, commands_in, events_out, identity_out).run());

        let handle = Handle { commands: commands.clone(), identity: identity.clone() };
        let stream = EventStream { events, commands, waiting: None, tasks: BTreeMap::new(), ended: None };
        match tokio::time::timeout(options.connect_timeout, identity.wait_for(Option::is_some)).await {
            Ok(Ok(_)) => Ok((handle, stream)),
            Ok(Err(_)) => Err(stream.into_end().await.into()),
            Err(_) => {
                let masters = handle.seek_report().await;
                Err(ConnectError::NoLeader { waited: options.connect_timeout, masters })
            }
        }
    }
}

/// Asks the leader for things. Cheap to clone; each call returns when the leader has decided it, however many leaders
/// that takes, so give a deadline of your own (`tokio::time::timeout`) where you need one: the call itself goes on.
#[derive(Clone, Debug)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    identity: watch::Receiver<Option<Identity>>,
}

impl Handle {
    /// Who this framework is.
    pub fn identity(&self) -> Identity {
        self.identity.borrow().expect("connect returns a handle only after the first Subscribed")
    }

    /// Uses offers. What they hold and the launches do not use is given back and not offered again for `filter` (the
    /// master's default without one). With `atomic` nothing happens if anything is refused.
    pub async fn accept(
        &self,
        parts: Vec<Part>,
        atomic: bool,
        filter: Option<Duration>,
    ) -> Result<Accepted, CallError> {
        match self.call(Request::Accept { parts, atomic, filter_ms: filter.map(milliseconds) }).await? {
            Reply::Accepted(accepted) => Ok(accepted),
            Reply::Done { index } => Ok(Accepted { index, parts: Vec::new() }),
        }
    }

    /// Launches on one offer: [`Handle::accept`] with a single part.
    pub async fn launch(
        &self,
        offer: &Offer,
        launch: Launch,
        filter: Option<Duration>,
    ) -> Result<Accepted, CallError> {
        let operations = vec![Operation::Launch(launch)];
        self.accept(vec![Part { offers: vec![offer.id], operations }], false, filter).await
    }

    /// Launches on one offer tasks that start together or not at all: if one is refused, so are the others.
    pub async fn launch_group(
        &self,
        offer: &Offer,
        members: Vec<Member>,
        filter: Option<Duration>,
    ) -> Result<Accepted, CallError> {
        let operations = vec![Operation::LaunchGroup(members)];
        self.accept(vec![Part { offers: vec![offer.id], operations }], false, filter).await
    }

    /// Gives offers back.
    pub async fn decline(&self, offers: Vec<OfferId>, filter: Option<Duration>) -> Result<(), CallError> {
        self.call(Request::Decline { offers, filter_ms: filter.map(milliseconds) }).await.map(drop)
    }

    /// No offers in these roles (empty: all) for now.
    pub async fn suppress(&self, roles: Vec<Role>) -> Result<(), CallError> {
        self.call(Request::Suppress(roles)).await.map(drop)
    }

    /// Offers again in these roles (empty: all), without filters.
    pub async fn revive(&self, roles: Vec<Role>) -> Result<(), CallError> {
        self.call(Request::Revive(roles)).await.map(drop)
    }

    /// Ends a task. Returns when that is committed; the end itself is an update. `grace` replaces the task's own time
    /// between SIGTERM and SIGKILL; a repetition can only shorten it.
    pub async fn kill(&self, task: &TaskId, grace: Option<Duration>) -> Result<(), CallError> {
        self.call(Request::Kill { task: task.clone(), grace_ms: grace.map(milliseconds) }).await.map(drop)
    }

    /// Ends an executor: it has its kill grace to end its tasks and itself. Returns when that is committed.
    pub async fn shutdown_executor(&self, agent: AgentId, executor: &ExecutorId) -> Result<(), CallError> {
        self.call(Request::ShutdownExecutor { agent, executor: executor.clone() }).await.map(drop)
    }

    /// Sends at most 64 KiB to an executor, at most once: [`CallError::Lost`] says that they may or may not arrive, and
    /// `Ok` that they are on their way.
    pub async fn send_message(
        &self,
        agent: AgentId,
        executor: &ExecutorId,
        data: Vec<u8>,
    ) -> Result<(), CallError> {
        self.call(Request::SendMessage { agent, executor: executor.clone(), data }).await.map(drop)
    }

    /// Replaces what the cluster knows of the framework; all but its user can change.
    pub async fn update_framework(&self, info: FrameworkInfo) -> Result<(), CallError> {
        self.call(Request::UpdateFramework(info)).await.map(drop)
    }

    /// Asks for the newest status of tasks (empty: all) as [`Event::Reconciled`]. Hardly ever needed: the snapshot at
    /// each subscription does it.
    pub async fn reconcile(&self, tasks: Vec<TaskId>) -> Result<(), CallError> {
        self.call(Request::Reconcile(tasks)).await.map(drop)
    }

    /// Ends the framework and all its tasks. The event stream then ends with [`Ended::TornDown`].
    pub async fn teardown(&self) -> Result<(), CallError> {
        self.call(Request::Teardown).await.map(drop)
    }

    /// While there is no leader: what each master did when it was last asked.
    pub async fn seek_report(&self) -> Vec<(String, String)> {
        let (answer, report) = oneshot::channel();
        match self.commands.send(Command::Report(answer)).await {
            Ok(()) => report.await.unwrap_or_default(),
            Err(_) => Vec::new(),
        }
    }

    async fn call(&self, request: Request) -> Result<Reply, CallError> {
        let (answer, reply) = oneshot::channel();
        let gone = || CallError::Ended(Ended::Closed);
        self.commands.send(Command::Call(request, answer)).await.map_err(|_| gone())?;
        reply.await.unwrap_or_else(|_| Err(gone()))
    }
}

/// What happens to a framework.
#[derive(Debug)]
pub struct EventStream {
    events: mpsc::Receiver<Delivered>,
    commands: mpsc::Sender<Command>,
    /// What the author was given last, and has dealt with when he asks for more.
    waiting: Option<(Option<Ack>, Option<TaskId>)>,
    tasks: BTreeMap<TaskId, TaskView>,
    ended: Option<Ended>,
}

impl EventStream {
    /// The next event. Asking for it says that the one before is dealt with: its status is acknowledged then, so an
    /// author who dies while he deals with it is told again. May be dropped before it is done (as in `select!`).
    pub async fn next(&mut self) -> Result<Event, Ended> {
        self.settle().await;
        if let Some(ended) = &self.ended {
            return Err(ended.clone());
        }
        match self.events.recv().await {
            Some(Delivered::Event { event, ack }) => {
                let ended_task = self.learn(&event);
                self.waiting = Some((ack, ended_task));
                Ok(event)
            }
            Some(Delivered::End(why)) => Err(self.ended.insert(why).clone()),
            None => Err(self.ended.insert(Ended::Closed).clone()),
        }
    }

    /// The framework's tasks that are not finished and dealt with, as of the last event.
    pub fn tasks(&self) -> &BTreeMap<TaskId, TaskView> {
        &self.tasks
    }

    /// Acknowledges what was given last. Nothing is lost if the caller stops waiting in between.
    async fn settle(&mut self) {
        let Some((ack, _)) = &self.waiting else { return };
        if let Some(ack) = *ack {
            // If the driver is gone there is nobody left who could acknowledge.
            if let Ok(permit) = self.commands.reserve().await {
                permit.send(Command::Handed(ack));
            }
        }
        if let Some((_, Some(ended_task))) = self.waiting.take() {
            self.tasks.remove(&ended_task);
        }
    }

    /// Keeps the map right; returns a task that leaves it once its end is dealt with.
    fn learn(&mut self, event: &Event) -> Option<TaskId> {
        match event {
            Event::Synced { changed, gone } => {
                for view in gone {
                    if self.tasks.get(&view.task).is_some_and(|known| known.launch == view.launch) {
                        self.tasks.remove(&view.task);
                    }
                }
                self.tasks.extend(changed.iter().map(|view| (view.task.clone(), view.clone())));
                None
            }
            Event::Update(view) => {
                let newer = |known: &TaskView| {
                    (known.launch, known.status.position()) > (view.launch, view.status.position())
                };
                if !self.tasks.get(&view.task).is_some_and(newer) {
                    self.tasks.insert(view.task.clone(), view.clone());
                }
                view.status.state.is_terminal().then(|| view.task.clone())
            }
            _ => None,
        }
    }

    /// Why it ended, skipping what comes before.
    async fn into_end(mut self) -> Ended {
        loop {
            if let Err(ended) = self.next().await {
                return ended;
            }
        }
    }
}

fn milliseconds(duration: Duration) -> u64 {
    duration.as_millis().try_into().unwrap_or(u64::MAX)
}
