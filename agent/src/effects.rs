//! Does what the core asks for, strictly in order.

use std::sync::Arc;
use std::time::Duration;

use proffer_containerizer::{Containerizer, InstanceId};
use proffer_types::event::{AgentReport, LaunchOrder};
use proffer_types::{CellTag, LaunchId};
use proffer_wire::agent::v1 as pb;
use proffer_wire::to_proto;
use prost::Message;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Instant;

use crate::core::{Core, Effect, Fatal, Place, Record, container_spec};
use crate::data::{self, Ticket};
use crate::recover::{self, Store};

/// Most reports in a message, and about most bytes: masters refuse messages over 256 KiB.
const REPORTS_MAX: usize = 256;
const MESSAGE_BYTES: usize = 128 << 10;
/// Readers of output that are served at once.
const READERS_MAX: usize = 64;

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
    readers: Arc<Semaphore>,
    /// Reports that wait for the end of the batch.
    reports: Vec<AgentReport>,
}

impl Hands {
    pub(crate) fn new(store: Store, containerizer: Box<dyn Containerizer>) -> Self {
        let readers = Arc::new(Semaphore::new(READERS_MAX));
        Self { store, containerizer, stream: None, readers, reports: Vec::new() }
    }

    /// Does everything that the core wants done by now. After an error nothing more may be done.
    pub(crate) fn perform(&mut self, core: &mut Core) -> Result<(), Error> {
        let containerizer = &mut self.containerizer;
        let effects = core.take_effects(&mut |framework| containerizer.assign(framework));
        let mut records: Vec<Record> = Vec::new();
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
        self.flush(core);
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
            Effect::Kill { launch, grace_ms } => {
                tracing::info!(launch.id = launch.0, grace_ms, "ending a task");
                self.containerizer.kill(launch, grace_ms);
            }
            Effect::Forget(launch) => self.containerizer.forget(launch),
            Effect::OpenData { ticket, principal, launch, expires_ms } => {
                self.open_data(ticket, &principal, launch, expires_ms);
            }
            Effect::Reconnect(why) => {
                self.flush(core);
                if let Some(stream) = self.stream.take() {
                    tracing::warn!(master = stream.address, %why, "ending the session");
                }
            }
            Effect::Stop(fatal) => return Err(fatal.into()),
        }
        Ok(())
    }

    fn launch(&mut self, core: &Core, order: &LaunchOrder, instance: InstanceId) {
        let identity = core.identity();
        let sandbox = self.containerizer.sandbox_path(order.launch);
        let place = Place {
            agent: identity.agent.unwrap_or_default(),
            cell: identity.cluster.map_or_else(CellTag::default, |cluster| cluster.tag()),
            sandbox: &sandbox,
        };
        tracing::info!(launch.id = order.launch.0, task.id = %order.task_id, "starting a task");
        self.containerizer.launch(container_spec(order, instance, place));
    }

    fn open_data(&mut self, ticket: [u8; 16], principal: &str, launch: LaunchId, expires_ms: u64) {
        let Some(stream) = &self.stream else { return };
        let Ok(permit) = Arc::clone(&self.readers).try_acquire_owned() else {
            tracing::warn!(principal, launch.id = launch.0, "too many readers: one more is not served");
            return;
        };
        tracing::debug!(principal, launch.id = launch.0, "bringing a task's output");
        let ticket = Ticket {
            ticket,
            launch,
            expires: Instant::now() + Duration::from_millis(expires_ms),
            master: stream.address.clone(),
            logs: self.containerizer.logs(launch),
        };
        tokio::spawn(async move {
            data::serve(ticket).await;
            drop(permit);
        });
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
        for message in messages {
            if let Err(error) = stream.outbound.try_send(message) {
                // Gone: its end is on the way. Full: the master does not read; what it missed is sent again.
                if matches!(error, mpsc::error::TrySendError::Full(_)) {
                    tracing::warn!(master = stream.address, "the master does not read: ending the session");
                    self.stream = None;
                    core.on_session_lost();
                }
                return;
            }
        }
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
