//! Does what the core asks for, strictly in order.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use proffer_containerizer::{Containerizer, InstanceId};
use proffer_types::event::{AgentReport, DataAction, LaunchKind, LaunchOrder};
use proffer_types::executor::ExecutorEvent;
use proffer_types::{CellTag, LaunchId};
use proffer_wire::agent::v1 as pb;
use proffer_wire::to_proto;
use prost::Message;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Instant;

use crate::core::{Core, Effect, Fatal, Place, Record, container_spec, executor_task};
use crate::data::{self, Ticket, Wakers, Wish};
use crate::executors::Served;
use crate::pace::Pace;
use crate::recover::{self, Store};

/// Most reports in a message, and about most bytes: masters refuse messages over 256 KiB.
const REPORTS_MAX: usize = 256;
const MESSAGE_BYTES: usize = 128 << 10;
/// Operators that are served at once, readers of output among them.
const READERS_MAX: usize = 128;
/// And those that are told that there are too many.
const REFUSALS_MAX: usize = 8;
/// What data connections ask of the driver before they wait.
const WISHES_QUEUED: usize = 64;

/// Why the agent ends.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cluster and this agent cannot agree.
    #[error(transparent)]
    Fatal(#[from] Fatal),
    /// What must be remembered cannot be written: nothing that depends on it may be done.
    #[error("write down what must survive a crash")]
    Store(#[from] recover::Error),
}

/// The open stream to a master.
pub(crate) struct Stream {
    pub(crate) number: u64,
    pub(crate) address: String,
    pub(crate) outbound: mpsc::Sender<pb::AgentMessage>,
    /// Closes the stream when it is dropped.
    pub(crate) _guard: oneshot::Sender<()>,
}

/// What acts: disk, containers, stream.
pub(crate) struct Hands {
    pub(crate) store: Store,
    pub(crate) containerizer: Box<dyn Containerizer>,
    pub(crate) stream: Option<Stream>,
    /// The executors that are served.
    pub(crate) served: Served,
    readers: Arc<Semaphore>,
    refusals: Arc<Semaphore>,
    /// Wakes readers of output.
    pub(crate) wakers: Wakers,
    wishes: mpsc::Sender<Wish>,
    /// Reports that wait for the end of the batch, or for those before them.
    reports: Vec<AgentReport>,
    pace: Pace,
    /// When what waits is sent at the latest.
    pub(crate) send_at: Option<Instant>,
}

impl Hands {
    pub(crate) fn new(
        store: Store,
        containerizer: Box<dyn Containerizer>,
        served: Served,
    ) -> (Self, mpsc::Receiver<Wish>) {
        let (wishes, wished) = mpsc::channel(WISHES_QUEUED);
        let hands = Self {
            store,
            containerizer,
            stream: None,
            served,
            readers: Arc::new(Semaphore::new(READERS_MAX)),
            refusals: Arc::new(Semaphore::new(REFUSALS_MAX)),
            wakers: Wakers::new(),
            wishes,
            reports: Vec::new(),
            pace: Pace::default(),
            send_at: None,
        };
        (hands, wished)
    }

    /// Opens a stream to a master.
    pub(crate) fn open_stream(&mut self, stream: Stream) {
        self.close_stream();
        self.stream = Some(stream);
    }

    /// Closes the stream. What waits to be sent on it is not for another one: the next session asks for it.
    pub(crate) fn close_stream(&mut self) -> Option<Stream> {
        self.reports.clear();
        self.pace = Pace::default();
        self.stream.take()
    }

    /// The master has committed statuses of a launch up to a number.
    pub(crate) fn confirmed(&mut self, launch: LaunchId, task_seq: u32) {
        self.pace.confirmed(launch, task_seq);
    }

    /// Whether the master has room for what may be lost: what must not be lost comes first.
    pub(crate) fn has_room(&self) -> bool {
        let half = |stream: &Stream| stream.outbound.capacity() > stream.outbound.max_capacity() / 2;
        self.stream.as_ref().is_none_or(half) && self.reports.len() < REPORTS_MAX
    }

    /// Does everything that the core wants done by now. After an error nothing more may be done.
    pub(crate) fn perform(&mut self, core: &mut Core) -> Result<(), Error> {
        let containerizer = &mut self.containerizer;
        let effects = core.take_effects(&mut |framework| containerizer.assign(framework));
        let mut records: Vec<Record> = Vec::new();
        say_what_starts(&effects);
        for effect in effects {
            // Neighbouring records are one write.
            if let Effect::Checkpoint(record) = effect {
                records.push(record);
                continue;
            }
            self.write(&mut records)?;
            self.act(core, effect)?;
        }
        self.write(&mut records)?;
        self.send_at = self.pace.holds(&self.reports, REPORTS_MAX, Instant::now());
        if self.send_at.is_none() {
            self.flush(core);
        }
        if self.store.wants_rewriting() {
            self.store.rewrite(&core.records())?;
        }
        Ok(())
    }

    fn write(&mut self, records: &mut Vec<Record>) -> Result<(), Error> {
        if !records.is_empty() {
            self.store.append(records)?;
            records.clear();
        }
        Ok(())
    }

    fn act(&mut self, core: &mut Core, effect: Effect) -> Result<(), Error> {
        match effect {
            Effect::Checkpoint(_) => unreachable!("gathered by the caller"),
            Effect::PersistIdentity(identity) => self.store.write_identity(&identity)?,
            Effect::Send(report) => self.reports.push(report),
            Effect::Recover(known) => {
                tracing::info!(launches = known.len(), "taking up what an earlier life left");
                self.containerizer.recover(known);
            }
            Effect::Launch { order, instance } => self.launch(core, &order, instance),
            Effect::LaunchGroup { orders, instance } => self.launch_group(core, &orders, instance),
            Effect::Listen(executor) => self.served.listen(executor, self.containerizer.as_mut()),
            Effect::EndListening(executor) => self.served.end(executor),
            Effect::Hand { executor, orders } => self.hand(core, executor, &orders),
            Effect::ToExecutor { executor, event } => self.served.tell(executor, &event),
            Effect::Resize { launch, cpus_milli, memory_bytes } => {
                self.containerizer.resize(launch, cpus_milli, memory_bytes);
            }
            Effect::Kill { launch, grace_ms } => {
                tracing::info!(launch.id = launch.0, grace_ms, "ending a task");
                self.containerizer.kill(launch, grace_ms);
            }
            Effect::Forget(launch) => self.containerizer.forget(launch),
            Effect::OpenData { ticket, principal, action, launch, expires_ms } => {
                self.open_data(core, ticket, &principal, action, launch, expires_ms);
            }
            Effect::Reconnect(why) => {
                self.flush(core);
                if let Some(stream) = self.close_stream() {
                    tracing::warn!(master = stream.address, %why, "ending the session");
                }
            }
            Effect::Stop(fatal) => return Err(fatal.into()),
        }
        Ok(())
    }

    fn launch(&mut self, core: &Core, order: &LaunchOrder, instance: InstanceId) {
        tracing::debug!(launch.id = order.launch.0, task.id = %order.task_id, "launch");
        let spec = self.in_place(core, order, Some(instance), |place| container_spec(order, instance, place));
        self.containerizer.launch(spec);
    }

    fn launch_group(&mut self, core: &Core, orders: &[LaunchOrder], instance: InstanceId) {
        let spec = |order: &LaunchOrder| {
            self.in_place(core, order, Some(instance), |place| container_spec(order, instance, place))
        };
        let specs = orders.iter().map(spec).collect();
        if let Some(first) = orders.first() {
            tracing::info!(launch.id = first.launch.0, tasks = orders.len(), "starting a group of tasks");
        }
        self.containerizer.launch_group(specs);
    }

    fn hand(&mut self, core: &Core, executor: LaunchId, orders: &[LaunchOrder]) {
        let task =
            |order: &LaunchOrder| self.in_place(core, order, None, |place| executor_task(order, place));
        let tasks = orders.iter().map(task).collect();
        tracing::info!(launch.id = executor.0, tasks = orders.len(), "handing tasks to an executor");
        self.served.tell(executor, &ExecutorEvent::Launch(tasks));
    }

    /// Says of the place where a launch runs what it must know of it.
    fn in_place<T>(
        &self,
        core: &Core,
        order: &LaunchOrder,
        instance: Option<InstanceId>,
        of: impl FnOnce(Place<'_>) -> T,
    ) -> T {
        let identity = core.identity();
        let container = match order.kind {
            LaunchKind::TaskOf(executor) => executor,
            LaunchKind::Task | LaunchKind::Executor(_) => order.launch,
        };
        let sandbox = self.containerizer.sandbox_path(container);
        let own = instance.filter(|_| matches!(order.kind, LaunchKind::Executor(_)));
        let socket = own.map(|instance| self.containerizer.executor_socket(order.launch, instance));
        let grouped = order.group.filter(|_| instance.is_some());
        let group = grouped.map(|group| self.containerizer.group_path(group.first));
        of(Place {
            agent: identity.agent.unwrap_or_default(),
            cell: identity.cluster.map_or_else(CellTag::default, |cluster| cluster.tag()),
            sandbox: &sandbox,
            group: group.as_deref(),
            executor_socket: socket.as_deref(),
        })
    }

    fn open_data(
        &self,
        core: &Core,
        ticket: [u8; 16],
        principal: &str,
        action: DataAction,
        launch: LaunchId,
        expires_ms: u64,
    ) {
        let Some(stream) = &self.stream else { return };
        let (permit, full) = match Arc::clone(&self.readers).try_acquire_owned() {
            Ok(permit) => (permit, false),
            // To be told so is worth a connection, but not any number of them.
            Err(_) => match Arc::clone(&self.refusals).try_acquire_owned() {
                Ok(permit) => (permit, true),
                Err(_) => {
                    return tracing::warn!(principal, launch.id = launch.0, %action, "too many ask at once");
                }
            },
        };
        tracing::debug!(principal, launch.id = launch.0, %action, "dialling for an operator");
        let container = data::place_of(core, launch);
        let logs = self.containerizer.logs(container);
        let tools = data::Tools {
            container,
            logs_dir: logs.dir().map(Path::to_owned),
            logs,
            sandbox: self.containerizer.sandbox_dir(container),
            wakers: self.wakers.clone(),
            wishes: self.wishes.clone(),
        };
        let busy = || data::Refusal::new("BUSY", format!("the agent serves {READERS_MAX} others: try again"));
        let ticket = Ticket {
            ticket,
            action,
            launch,
            expires: Instant::now() + Duration::from_millis(expires_ms),
            master: stream.address.clone(),
            tools: if full { Err(busy()) } else { Ok(tools) },
        };
        tokio::spawn(async move {
            data::serve(ticket).await;
            drop(permit);
        });
    }

    /// Does what a data connection asks for.
    pub(crate) fn grant(&mut self, core: &Core, wish: Wish) {
        let environment = core
            .launch(match &wish {
                Wish::Exec { launch, .. } => data::container_of(core, *launch),
                _ => LaunchId(0),
            })
            .and_then(|held| held.order)
            .map(|order| {
                self.in_place(core, order, Some(InstanceId(0)), |place| {
                    container_spec(order, InstanceId(0), place).env
                })
            });
        data::grant(wish, core, self.containerizer.as_mut(), environment);
    }

    /// Sends what waits, in few messages. A Hello goes alone, because it names no leadership.
    fn flush(&mut self, core: &mut Core) {
        let reports = std::mem::take(&mut self.reports);
        let Some(stream) = &self.stream else { return };
        let agent = core.identity().agent;
        let epoch = core.session_epoch();
        let mut messages = Vec::new();
        let mut message = to_proto::agent_message(agent, epoch, &[]);
        let mut bytes = 0;
        for report in &reports {
            if let AgentReport::Hello(hello) = report {
                push(&mut messages, &mut message, &mut bytes);
                messages.push(to_proto::agent_message(hello.agent, None, std::slice::from_ref(report)));
                continue;
            }
            let item = to_proto::agent_report(report);
            bytes += item.encoded_len();
            message.items.push(item);
            if message.items.len() >= REPORTS_MAX || bytes >= MESSAGE_BYTES {
                push(&mut messages, &mut message, &mut bytes);
            }
        }
        push(&mut messages, &mut message, &mut bytes);
        self.pace.sent(&reports, Instant::now());
        for message in messages {
            if let Err(error) = stream.outbound.try_send(message) {
                // Gone: its end is on the way. Full: the master does not read; what it missed is sent again.
                if matches!(error, mpsc::error::TrySendError::Full(_)) {
                    tracing::warn!(master = stream.address, "the master does not read: ending the session");
                    self.close_stream();
                    core.on_session_lost();
                }
                return;
            }
        }
    }
}

/// A line for each task would cost a busy node more than a small part of what starting it does.
fn say_what_starts(effects: &[Effect]) {
    let mut starting = effects.iter().filter_map(|effect| match effect {
        Effect::Launch { order, .. } => Some(order),
        _ => None,
    });
    match (starting.next(), starting.next_back()) {
        (Some(order), None) => {
            tracing::info!(launch.id = order.launch.0, task.id = %order.task_id, "starting a task");
        }
        (Some(first), Some(last)) => {
            let tasks = 2 + starting.count();
            tracing::info!(tasks, first = first.launch.0, last = last.launch.0, "starting tasks");
        }
        (None, _) => {}
    }
}

/// Moves a message that has items to `messages` and begins the next one.
fn push(messages: &mut Vec<pb::AgentMessage>, message: &mut pb::AgentMessage, bytes: &mut usize) {
    if !message.items.is_empty() {
        let next = pb::AgentMessage { items: Vec::new(), ..message.clone() };
        messages.push(std::mem::replace(message, next));
        *bytes = 0;
    }
}
