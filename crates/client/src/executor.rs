//! The executor's side: a program that runs a framework's tasks on a node, in one container.
//!
//! An author implements [`Executor`] and hands it to [`run`], which finds the agent by the variables that it gives to
//! every executor, subscribes, subscribes again whenever the agent was replaced, and says each status until it is
//! written down.
//!
//! ```no_run
//! use proffer_client::executor::{Executor, ExecutorTask, Handle, Status, run};
//! use proffer_types::{LaunchId, TaskState};
//! use std::time::Duration;
//!
//! struct Instant;
//!
//! impl Executor for Instant {
//!     fn on_launch(&mut self, handle: &Handle, tasks: Vec<ExecutorTask>) {
//!         for task in tasks {
//!             let handle = handle.clone();
//!             tokio::spawn(async move { handle.update(task.launch, Status::new(TaskState::Finished)).await });
//!         }
//!     }
//!
//!     fn on_kill(&mut self, _: &Handle, _: LaunchId, _: Duration) {}
//!
//!     fn on_shutdown(&mut self, handle: &Handle, _: Duration) {
//!         handle.stop();
//!     }
//! }
//!
//! # async fn example() -> Result<(), proffer_client::executor::Ended> {
//! run(Instant).await
//! # }
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use proffer_types::executor::{ExecutorEvent, ExecutorUpdate};
use proffer_types::limits::{EXECUTOR_MESSAGE_BYTES_MAX, EXECUTOR_UPDATES_MAX, STATUS_DATA_BYTES_MAX};
use proffer_types::recent::Recent;
use proffer_types::{AgentId, ClusterId, ExecutorId, FrameworkId, LaunchId, TaskState};
use proffer_wire::executor::v1 as pb;
use proffer_wire::executor::v1::executor_service_client::ExecutorServiceClient;
use proffer_wire::status::Problem;
use proffer_wire::{from_proto, to_proto};
use tokio::net::UnixStream;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::sleep;
use tonic::transport::{Channel, Endpoint};

pub use proffer_types::executor::ExecutorTask;

/// Names the socket.
const SOCKET: &str = "PROFFER_EXECUTOR_SOCKET";
/// Largest message that the agent sends: the tasks of one group.
const RECEIVE_BYTES_MAX: usize = 16 << 20;
/// Asked for and not yet said.
const ASKED_MAX: usize = 1_024;
/// Launches of the past that are not taken for new ones, should they be handed over once more.
const DONE_MAX: usize = 16_384;
/// Most bytes of statuses in one message: the agent takes 256 KiB.
const UPDATE_BYTES: usize = 192 << 10;
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// When to come back to an agent that does not say when.
const RETRY: Duration = Duration::from_millis(100);
/// A call without an answer is made again, on another connection.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// What runs tasks. Its methods are called one after the other and must not block: work belongs into tasks or threads
/// of its own, which speak through the [`Handle`].
pub trait Executor: Send {
    /// The agent knows of this executor, for the first time or again.
    fn on_subscribed(&mut self, handle: &Handle, told: &Subscribed) {
        let _ = (handle, told);
    }

    /// Tasks to run; those of a group come together. No launch comes twice.
    fn on_launch(&mut self, handle: &Handle, tasks: Vec<ExecutorTask>);

    /// A task to end within `grace`. Comes again, perhaps with less time, also for a task that has ended meanwhile.
    fn on_kill(&mut self, handle: &Handle, launch: LaunchId, grace: Duration);

    /// Bytes from the framework's scheduler.
    fn on_message(&mut self, handle: &Handle, data: Vec<u8>) {
        let _ = (handle, data);
    }

    /// All tasks are to be ended within `grace`; then [`Handle::stop`]. What is left is killed.
    fn on_shutdown(&mut self, handle: &Handle, grace: Duration);
}

/// Who this executor is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscribed {
    /// The framework.
    pub framework: FrameworkId,
    /// The executor's name.
    pub executor: ExecutorId,
    /// Its own launch.
    pub launch: LaunchId,
    /// The agent.
    pub agent: AgentId,
    /// The node's name.
    pub hostname: String,
    /// The cluster.
    pub cluster: ClusterId,
}

/// What becomes of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Its state: STARTING, RUNNING, KILLING, FINISHED, FAILED, KILLED or ERROR.
    pub state: TaskState,
    /// For people.
    pub message: String,
    /// The exit code, if something exited.
    pub exit_code: Option<i32>,
    /// The signal, if one ended something.
    pub signal: Option<i32>,
    /// Whether the task is well.
    pub healthy: Option<bool>,
    /// Whether it is ready to serve.
    pub ready: Option<bool>,
    /// Anything, for the framework; at most 4 KiB.
    pub data: Vec<u8>,
}

impl Status {
    /// Nothing but a state.
    pub fn new(state: TaskState) -> Self {
        let (message, data) = Default::default();
        Self { state, message, exit_code: None, signal: None, healthy: None, ready: None, data }
    }
}

/// Why the agent hears no more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    /// The agent did not say where it is: this program was not started as an executor.
    #[error("{SOCKET} is not set: this is started by a proffer agent, as the executor of a task")]
    NotAnExecutor,
    /// The agent says that the executor broke the protocol.
    #[error("the agent ends this executor: {0}")]
    Misbehaved(String),
    /// The agent ends the executor.
    #[error("the agent ends this executor")]
    Ending,
}

/// Why a status is not said.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpdateError {
    /// The executor does not have it, or has said its end.
    #[error("there is no launch {} here, or its end was said", .0.0)]
    UnknownLaunch(LaunchId),
    /// No task can be in that state, or not after the last.
    #[error("{next} cannot follow {}", before.map_or("nothing", TaskState::name))]
    Impossible {
        /// What was said last.
        before: Option<TaskState>,
        /// What was to be said.
        next: TaskState,
    },
    /// More than 4 KiB of data.
    #[error("the data is longer than {STATUS_DATA_BYTES_MAX} bytes")]
    TooLong,
    /// The agent hears no more.
    #[error("the executor has ended")]
    Ended,
}

/// Why bytes were not sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct MessageError(String);

/// Speaks for the executor. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    stop: std::sync::Arc<Notify>,
}

impl Handle {
    /// Says what becomes of a task; done when the agent has written it down. The order in which this is first polled
    /// is the order of the statuses.
    pub async fn update(&self, launch: LaunchId, status: Status) -> Result<(), UpdateError> {
        let (answer, result) = oneshot::channel();
        let command = Command::Update(launch, status, answer);
        self.commands.send(command).await.map_err(|_| UpdateError::Ended)?;
        result.await.unwrap_or(Err(UpdateError::Ended))
    }

    /// Sends at most 64 KiB to the framework's scheduler. Best effort: nothing is said of what becomes of them.
    pub async fn send_message(&self, data: Vec<u8>) -> Result<(), MessageError> {
        if data.len() > EXECUTOR_MESSAGE_BYTES_MAX {
            return Err(MessageError(format!("it is longer than {EXECUTOR_MESSAGE_BYTES_MAX} bytes")));
        }
        let (answer, result) = oneshot::channel();
        let gone = || MessageError("the executor has ended".into());
        self.commands.send(Command::Message(data, answer)).await.map_err(|_| gone())?;
        result.await.map_err(|_| gone())?
    }

    /// Ends the executor when everything that was asked for before has been said.
    pub fn stop(&self) {
        self.stop.notify_one();
    }
}

#[derive(Debug)]
enum Command {
    Update(LaunchId, Status, oneshot::Sender<Result<(), UpdateError>>),
    Message(Vec<u8>, oneshot::Sender<Result<(), MessageError>>),
}

/// Runs an executor under the agent that started this program, until it stops itself or is ended.
///
/// # Errors
/// If this program is no executor, or must not be one any more.
pub async fn run(executor: impl Executor) -> Result<(), Ended> {
    let socket = std::env::var_os(SOCKET).filter(|path| !path.is_empty()).ok_or(Ended::NotAnExecutor)?;
    run_at(&PathBuf::from(socket), executor).await
}

/// Like [`run`], with the agent at this socket.
///
/// # Errors
/// If the executor must not be one any more.
pub async fn run_at(socket: &Path, mut executor: impl Executor) -> Result<(), Ended> {
    let (to_driver, commands) = mpsc::channel(ASKED_MAX);
    let handle = Handle { commands: to_driver, stop: std::sync::Arc::default() };
    let mut driver = Driver { handle, commands, tasks: Tasks::default(), stopping: false };
    let mut backoff = BACKOFF_MIN;
    loop {
        match driver.session(socket, &mut executor).await {
            Ok(()) => return Ok(()),
            Err(Lost::Over(ended)) => return Err(ended),
            Err(Lost::Session { served, why }) => {
                tracing::debug!(why, "the agent is not there");
                backoff = if served { BACKOFF_MIN } else { (backoff * 2).min(BACKOFF_MAX) };
                sleep(backoff).await;
            }
        }
    }
}

/// What the executor has, and what it has to say.
#[derive(Debug)]
struct Tasks {
    live: BTreeMap<LaunchId, Said>,
    done: Recent<LaunchId>,
    /// Not yet answered, in order.
    queue: VecDeque<(ExecutorUpdate, oneshot::Sender<Result<(), UpdateError>>)>,
}

/// What was said of a task.
#[derive(Debug, Default)]
struct Said {
    seq: u32,
    state: Option<TaskState>,
}

impl Default for Tasks {
    fn default() -> Self {
        Self { live: BTreeMap::new(), done: Recent::new(DONE_MAX), queue: VecDeque::new() }
    }
}

impl Tasks {
    /// Takes the new ones of these tasks.
    fn take_new(&mut self, tasks: Vec<ExecutorTask>) -> Vec<ExecutorTask> {
        let mut new = Vec::with_capacity(tasks.len());
        for task in tasks {
            if self.done.contains(&task.launch) || self.live.contains_key(&task.launch) {
                continue;
            }
            self.live.insert(task.launch, Said::default());
            new.push(task);
        }
        new
    }

    fn say(&mut self, launch: LaunchId, status: Status, answer: oneshot::Sender<Result<(), UpdateError>>) {
        match self.number(launch, status) {
            Ok(update) => self.queue.push_back((update, answer)),
            // Whoever asked may have stopped waiting.
            Err(why) => drop(answer.send(Err(why))),
        }
    }

    fn number(&mut self, launch: LaunchId, status: Status) -> Result<ExecutorUpdate, UpdateError> {
        let Status { state, message, exit_code, signal, healthy, ready, data } = status;
        let said = self.live.get_mut(&launch).ok_or(UpdateError::UnknownLaunch(launch))?;
        let sayable = !matches!(
            state,
            TaskState::Staging | TaskState::Unreachable | TaskState::Dropped | TaskState::GoneByOperator
        );
        if !sayable || said.state.is_some_and(|before| !before.may_become(state)) {
            return Err(UpdateError::Impossible { before: said.state, next: state });
        }
        if data.len() > STATUS_DATA_BYTES_MAX {
            return Err(UpdateError::TooLong);
        }
        said.seq += 1;
        said.state = Some(state);
        Ok(ExecutorUpdate { launch, seq: said.seq, state, message, exit_code, signal, healthy, ready, data })
    }

    /// The first statuses that wait, as many as go into one message.
    fn next(&self) -> Vec<ExecutorUpdate> {
        let mut bytes = 0;
        let fits = |(update, _): &&(ExecutorUpdate, _)| {
            bytes += update.message.len() + update.data.len() + 64;
            bytes <= UPDATE_BYTES
        };
        let first = self.queue.iter().take(EXECUTOR_UPDATES_MAX).take_while(fits);
        first.map(|(update, _)| update.clone()).collect()
    }

    /// The first `count` statuses are written down.
    fn written(&mut self, count: usize) {
        for (update, answer) in self.queue.drain(..count) {
            let _ = answer.send(Ok(()));
            if update.state.is_terminal() {
                self.live.remove(&update.launch);
                self.done.insert(update.launch);
            }
        }
    }
}

/// How a session ended.
enum Lost {
    /// For now.
    Session { served: bool, why: String },
    /// For good.
    Over(Ended),
}

struct Driver {
    handle: Handle,
    commands: mpsc::Receiver<Command>,
    tasks: Tasks,
    stopping: bool,
}

impl Driver {
    /// One stream, from its beginning to its end; `Ok` if the executor has stopped.
    async fn session(&mut self, socket: &Path, executor: &mut impl Executor) -> Result<(), Lost> {
        let lost = |served| move |why: String| Lost::Session { served, why };
        let channel = connect(socket).await.map_err(lost(false))?;
        let mut client = ExecutorServiceClient::new(channel).max_decoding_message_size(RECEIVE_BYTES_MAX);
        let request = to_proto::executor_subscribe(self.tasks.live.keys().copied());
        let mut stream = client.subscribe(request).await.map_err(|s| ended(&s, false))?.into_inner();
        let mut saying: Option<Saying> = None;
        loop {
            if saying.is_none() && !self.tasks.queue.is_empty() {
                saying = Some(Saying::begin(&client, self.tasks.next()));
            }
            if self.stopping && self.tasks.queue.is_empty() && self.commands.is_empty() {
                return Ok(());
            }
            tokio::select! {
                // What was asked for before a stop is said before it.
                biased;
                said = Saying::wait(&mut saying) => {
                    saying = None;
                    match said {
                        Ok(count) => self.tasks.written(count),
                        Err(status) => match Problem::from_status(&status) {
                            Problem::Busy { retry_ms, .. } => {
                                let wait = Duration::from_millis(retry_ms).max(RETRY);
                                saying = Some(Saying::begin_after(wait, &client, self.tasks.next()));
                            }
                            _ => return Err(ended(&status, true)),
                        },
                    }
                }
                Some(command) = self.commands.recv() => self.on_command(command, &client),
                message = stream.message() => match message {
                    Ok(Some(events)) => {
                        let events = from_proto::executor_events(events)
                            .map_err(|error| lost(true)(format!("a malformed event: {error}")))?;
                        for event in events {
                            self.on_event(event, executor)?;
                        }
                    }
                    Ok(None) => return Err(lost(true)("the stream ended".into())),
                    Err(status) => return Err(ended(&status, true)),
                },
                () = self.handle.stop.notified() => self.stopping = true,
            }
        }
    }

    fn on_command(&mut self, command: Command, client: &ExecutorServiceClient<Channel>) {
        match command {
            Command::Update(launch, status, answer) => self.tasks.say(launch, status, answer),
            Command::Message(data, answer) => {
                let mut client = client.clone();
                tokio::spawn(async move {
                    let sent = client.send_message(pb::SendMessageRequest { data: data.into() }).await;
                    let sent = sent.map(drop).map_err(|status| MessageError(status.message().to_owned()));
                    let _ = answer.send(sent);
                });
            }
        }
    }

    fn on_event(&mut self, event: ExecutorEvent, executor: &mut impl Executor) -> Result<(), Lost> {
        let handle = &self.handle;
        match event {
            ExecutorEvent::Subscribed { framework, executor: name, launch, agent, hostname, cluster } => {
                let told = Subscribed { framework, executor: name, launch, agent, hostname, cluster };
                executor.on_subscribed(handle, &told);
            }
            ExecutorEvent::Launch(tasks) => {
                let new = self.tasks.take_new(tasks);
                if !new.is_empty() {
                    executor.on_launch(handle, new);
                }
            }
            ExecutorEvent::Kill { launch, grace_ms } => {
                executor.on_kill(handle, launch, Duration::from_millis(grace_ms));
            }
            ExecutorEvent::Message(data) => executor.on_message(handle, data),
            ExecutorEvent::Shutdown { grace_ms } => {
                executor.on_shutdown(handle, Duration::from_millis(grace_ms));
            }
            ExecutorEvent::Error { message } => return Err(Lost::Over(Ended::Misbehaved(message))),
        }
        Ok(())
    }
}

/// A call that says statuses.
struct Saying {
    count: usize,
    call: tokio::task::JoinHandle<Result<(), tonic::Status>>,
}

impl Saying {
    fn begin(client: &ExecutorServiceClient<Channel>, updates: Vec<ExecutorUpdate>) -> Self {
        Self::begin_after(Duration::ZERO, client, updates)
    }

    fn begin_after(
        wait: Duration,
        client: &ExecutorServiceClient<Channel>,
        updates: Vec<ExecutorUpdate>,
    ) -> Self {
        let (count, mut client) = (updates.len(), client.clone());
        let call = tokio::spawn(async move {
            sleep(wait).await;
            let call = client.update(to_proto::executor_updates(&updates));
            match tokio::time::timeout(CALL_TIMEOUT, call).await {
                Ok(answered) => answered.map(drop),
                Err(_) => Err(tonic::Status::unavailable("no answer")),
            }
        });
        Self { count, call }
    }

    /// Waits for the call that is under way, for ever without one.
    async fn wait(saying: &mut Option<Self>) -> Result<usize, tonic::Status> {
        let Some(saying) = saying else { return std::future::pending().await };
        match (&mut saying.call).await {
            Ok(result) => result.map(|()| saying.count),
            Err(_) => Err(tonic::Status::unavailable("the call was given up")),
        }
    }
}

impl Drop for Saying {
    fn drop(&mut self) {
        self.call.abort();
    }
}

async fn connect(socket: &Path) -> Result<Channel, String> {
    let path = socket.to_owned();
    // The name is for the form: the connector knows where to go.
    let endpoint = Endpoint::from_static("http://agent");
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    endpoint.connect_with_connector(connector).await.map_err(|error| crate::channel::chain(&error))
}

fn ended(status: &tonic::Status, served: bool) -> Lost {
    match Problem::from_status(status) {
        Problem::Refused { reason, .. } if reason == "EXECUTOR_ENDING" => Lost::Over(Ended::Ending),
        problem => Lost::Session { served, why: problem.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use proffer_types::{Resources, Role, TaskId};

    use super::*;

    fn task(launch: u64) -> ExecutorTask {
        ExecutorTask {
            launch: LaunchId(launch),
            task_id: TaskId::new("t").unwrap(),
            role: Role::star(),
            resources: Resources::default(),
            data: Vec::new(),
            env: BTreeMap::new(),
            labels: BTreeMap::new(),
            kill_grace_ms: 0,
            group: None,
        }
    }

    /// Whether it was refused at once, and how.
    fn say(tasks: &mut Tasks, launch: u64, status: Status) -> Result<(), UpdateError> {
        let (answer, mut result) = oneshot::channel();
        tasks.say(LaunchId(launch), status, answer);
        result.try_recv().unwrap_or(Ok(()))
    }

    #[test]
    fn what_cannot_be_is_not_said() {
        let mut tasks = Tasks::default();
        assert_eq!(tasks.take_new(vec![task(1), task(2)]).len(), 2);
        assert!(tasks.take_new(vec![task(1)]).is_empty(), "handed over once more");
        let unknown = say(&mut tasks, 9, Status::new(TaskState::Running));
        assert_eq!(unknown, Err(UpdateError::UnknownLaunch(LaunchId(9))));
        say(&mut tasks, 1, Status::new(TaskState::Finished)).unwrap();
        let after = say(&mut tasks, 1, Status::new(TaskState::Running));
        assert!(matches!(after, Err(UpdateError::Impossible { before: Some(TaskState::Finished), .. })));
        assert!(say(&mut tasks, 2, Status::new(TaskState::Dropped)).is_err());
        let data = vec![0; STATUS_DATA_BYTES_MAX + 1];
        let long = Status { data, ..Status::new(TaskState::Running) };
        assert_eq!(say(&mut tasks, 2, long), Err(UpdateError::TooLong));
        say(&mut tasks, 2, Status::new(TaskState::Running)).unwrap();
        let numbers: Vec<_> = tasks.next().iter().map(|update| (update.launch.0, update.seq)).collect();
        assert_eq!(numbers, [(1, 1), (2, 1)]);
        tasks.written(2);
        assert_eq!(tasks.live.keys().collect::<Vec<_>>(), [&LaunchId(2)]);
        assert!(tasks.take_new(vec![task(1)]).is_empty(), "its end was said");
    }

    #[test]
    fn a_message_takes_what_goes_into_it() {
        let mut tasks = Tasks::default();
        tasks.take_new(vec![task(1)]);
        for _ in 0..100 {
            let data = vec![0; STATUS_DATA_BYTES_MAX];
            say(&mut tasks, 1, Status { data, ..Status::new(TaskState::Running) }).unwrap();
        }
        let first = tasks.next().len();
        assert!(first > 10 && first < 100, "{first}");
        tasks.written(first);
        assert_eq!(tasks.next()[0].seq, first as u32 + 1);
    }
}
