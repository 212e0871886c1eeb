//! The loop that owns a [`Core`] and performs its outputs over gRPC.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use proffer_types::command::Ack;
use proffer_wire::scheduler::v1::scheduler_service_client::SchedulerServiceClient;
use proffer_wire::{from_proto, to_proto};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tonic::transport::Channel;

use crate::channel::{self, RECEIVE_BYTES_MAX};
use crate::convert;
use crate::core::{
    CallError, Core, DialId, Ended, Event, Failure, Header, Heard, Output, Reply, Request, Subscribe, Ticket,
};
use crate::failure::failure;
use crate::scheduler::Identity;

/// Events queued for a slow author; above this nothing more is read from the master, who then cuts the stream.
const BACKLOG_MAX: usize = 1_024;
/// Messages between a stream's reader and the loop.
const MESSAGES_WAITING: usize = 16;
/// A call without an answer for so long is lost: the connection answers pings, but nobody works behind it.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// What the author's side asks of the loop.
#[derive(Debug)]
pub(crate) enum Command {
    /// A call, and where its answer goes.
    Call(Request, oneshot::Sender<Result<Reply, CallError>>),
    /// A status was dealt with.
    Handed(Ack),
    /// Why there is no leader.
    Report(oneshot::Sender<Vec<(String, String)>>),
}

/// What the loop hands to the author's side.
#[allow(clippy::large_enum_variant, reason = "there is one End in the life of a stream")]
#[derive(Debug)]
pub(crate) enum Delivered {
    Event { event: Event, ack: Option<Ack> },
    End(Ended),
}

type StreamItem = (DialId, Result<Vec<Heard>, Failure>);
type CallEnd = (DialId, Ticket, Result<Reply, Failure>);

/// What the loop waits for.
enum Happening {
    Asked(Option<Command>),
    Heard(DialId, Result<Vec<Heard>, Failure>),
    Answered(DialId, Ticket, Result<Reply, Failure>),
    Due,
}

pub(crate) struct Driver {
    core: Core,
    began: Instant,
    commands: mpsc::Receiver<Command>,
    events: mpsc::Sender<Delivered>,
    identity: watch::Sender<Option<Identity>>,
    streams: mpsc::Receiver<StreamItem>,
    streams_in: mpsc::Sender<StreamItem>,
    replies: mpsc::UnboundedReceiver<CallEnd>,
    replies_in: mpsc::UnboundedSender<CallEnd>,
    dials: BTreeMap<DialId, AbortHandle>,
    channels: BTreeMap<String, Channel>,
    waiting: BTreeMap<Ticket, oneshot::Sender<Result<Reply, CallError>>>,
    backlog: VecDeque<Delivered>,
    over: bool,
}

impl Driver {
    pub(crate) fn new(
        core: Core,
        commands: mpsc::Receiver<Command>,
        events: mpsc::Sender<Delivered>,
        identity: watch::Sender<Option<Identity>>,
    ) -> Self {
        let (streams_in, streams) = mpsc::channel(MESSAGES_WAITING);
        // Bounded by the core's window of open calls.
        let (replies_in, replies) = mpsc::unbounded_channel();
        Self {
            core,
            began: Instant::now(),
            commands,
            events,
            identity,
            streams,
            streams_in,
            replies,
            replies_in,
            dials: BTreeMap::new(),
            channels: BTreeMap::new(),
            waiting: BTreeMap::new(),
            backlog: VecDeque::new(),
            over: false,
        }
    }

    pub(crate) async fn run(mut self) {
        self.core.on_time(self.now());
        loop {
            self.perform();
            if self.over && self.backlog.is_empty() {
                return self.answer_the_rest().await;
            }
            let paused = self.backlog.len() >= BACKLOG_MAX;
            let deadline = self.core.next_deadline().map(|at| self.began + Duration::from_millis(at));
            let happening = tokio::select! {
                command = self.commands.recv() => Happening::Asked(command),
                Some((dial, item)) = self.streams.recv(), if !paused => Happening::Heard(dial, item),
                Some((dial, ticket, result)) = self.replies.recv() => Happening::Answered(dial, ticket, result),
                permit = self.events.reserve(), if !self.backlog.is_empty() => {
                    match permit {
                        Ok(permit) => if let Some(item) = self.backlog.pop_front() { permit.send(item) },
                        // The author listens no more; what he was not told stays unacknowledged.
                        Err(_) => self.backlog.clear(),
                    }
                    continue;
                }
                () = sleep_until(deadline) => Happening::Due,
            };
            self.on_happening(happening, paused);
        }
    }

    fn on_happening(&mut self, happening: Happening, paused: bool) {
        let now = self.now();
        match happening {
            Happening::Asked(Some(command)) => self.on_command(command),
            Happening::Asked(None) => self.core.close(),
            Happening::Heard(dial, item) => self.on_stream(dial, item),
            Happening::Answered(dial, ticket, result) => self.core.on_reply(now, dial, ticket, result),
            Happening::Due => {
                if paused {
                    self.core.on_reading_paused(now);
                }
                self.core.on_time(now);
            }
        }
    }

    /// The subscription is over; whoever still asks is told so.
    async fn answer_the_rest(mut self) {
        for dial in std::mem::take(&mut self.dials).into_values() {
            dial.abort();
        }
        while let Some(command) = self.commands.recv().await {
            self.on_command(command);
            self.perform();
        }
    }

    fn now(&self) -> u64 {
        self.began.elapsed().as_millis().try_into().unwrap_or(u64::MAX)
    }

    fn on_command(&mut self, command: Command) {
        let now = self.now();
        match command {
            Command::Call(request, answer) => {
                let ticket = self.core.call(now, request);
                self.waiting.insert(ticket, answer);
            }
            Command::Handed(ack) => self.core.handed(now, ack),
            Command::Report(answer) => drop(answer.send(self.core.seek_report())),
        }
    }

    fn on_stream(&mut self, dial: DialId, item: Result<Vec<Heard>, Failure>) {
        let now = self.now();
        match item {
            Ok(list) => list.into_iter().for_each(|heard| self.core.on_heard(now, dial, heard)),
            Err(failure) => self.core.on_stream_end(now, dial, failure),
        }
    }

    fn perform(&mut self) {
        while let Some(output) = self.core.poll() {
            match output {
                Output::Dial { dial, master, subscribe } => {
                    tracing::debug!(%master, "subscribing");
                    let reader = tokio::spawn(read_stream(dial, master, subscribe, self.streams_in.clone()));
                    self.dials.insert(dial, reader.abort_handle());
                }
                Output::Hang { dial } => {
                    self.dials.remove(&dial).into_iter().for_each(|reader| reader.abort())
                }
                Output::Forget { master } => drop(self.channels.remove(&master)),
                Output::Send { dial, master, ticket, header, request } => {
                    self.send(dial, &master, ticket, header, request);
                }
                Output::Answer { ticket, result } => {
                    // Whoever asked may have stopped waiting.
                    self.waiting
                        .remove(&ticket)
                        .into_iter()
                        .for_each(|answer| drop(answer.send(result.clone())));
                }
                Output::Deliver { event, ack } => {
                    if let Event::Subscribed { framework, session, cluster, .. } = event {
                        self.identity.send_replace(Some(Identity { framework, session, cluster }));
                    }
                    self.backlog.push_back(Delivered::Event { event, ack });
                }
                Output::End(why) => {
                    self.over = true;
                    self.backlog.push_back(Delivered::End(why));
                }
            }
        }
    }

    fn send(&mut self, dial: DialId, master: &str, ticket: Ticket, header: Header, request: Arc<Request>) {
        let replies = self.replies_in.clone();
        let channel = match self.channels.get(master) {
            Some(channel) => Ok(channel.clone()),
            None => channel::lazy(master),
        };
        match channel {
            Ok(channel) => {
                self.channels.insert(master.to_owned(), channel.clone());
                tokio::spawn(async move {
                    let result =
                        match tokio::time::timeout(CALL_TIMEOUT, call(channel, header, &request)).await {
                            Ok(result) => result.map_err(|status| failure(&status)),
                            Err(_) => Err(Failure::Transport(format!("no answer within {CALL_TIMEOUT:?}"))),
                        };
                    drop(replies.send((dial, ticket, result)));
                });
            }
            Err(why) => drop(replies.send((dial, ticket, Err(Failure::Transport(why))))),
        }
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Opens an event stream on a connection of its own (a slow reader's connection is cut as a whole) and passes on what
/// comes of it.
async fn read_stream(dial: DialId, master: String, subscribe: Box<Subscribe>, out: mpsc::Sender<StreamItem>) {
    let end = match read(dial, &master, &subscribe, &out).await {
        Ok(()) => Failure::Transport("the stream ended".into()),
        Err(failure) => failure,
    };
    drop(out.send((dial, Err(end))).await);
}

async fn read(
    dial: DialId,
    master: &str,
    subscribe: &Subscribe,
    out: &mpsc::Sender<StreamItem>,
) -> Result<(), Failure> {
    let channel = channel::connect(master).await.map_err(Failure::Transport)?;
    let mut client = SchedulerServiceClient::new(channel).max_decoding_message_size(RECEIVE_BYTES_MAX);
    let Subscribe { info, framework, session, origin, suppressed } = subscribe;
    let request = to_proto::subscribe(info, *framework, *session, *origin, suppressed);
    let mut stream = client.subscribe(request).await.map_err(|status| failure(&status))?.into_inner();
    while let Some(message) = stream.message().await.map_err(|status| failure(&status))? {
        let told = from_proto::events(message);
        let told =
            told.map_err(|error| Failure::Transport(format!("{master} sent a malformed event: {error}")))?;
        let heard = told.into_iter().filter_map(convert::heard).collect();
        if out.send((dial, Ok(heard))).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

async fn call(channel: Channel, header: Header, request: &Request) -> Result<Reply, tonic::Status> {
    let mut client = SchedulerServiceClient::new(channel).max_decoding_message_size(RECEIVE_BYTES_MAX);
    let id = convert::call_id(header);
    let unlogged = Reply::Done { index: 0 };
    Ok(match request {
        Request::Accept { parts, atomic, filter_ms } => {
            let request = to_proto::accept(&id, *atomic, &convert::parts(parts), *filter_ms);
            let response = client.accept(request).await?.into_inner();
            Reply::Accepted(convert::accepted(from_proto::accept_response(response)))
        }
        Request::Decline { offers, filter_ms } => {
            client.decline(to_proto::decline(&id, offers, *filter_ms)).await.map(|_| unlogged)?
        }
        Request::Suppress(roles) => {
            client.suppress(to_proto::suppress(&id, roles)).await.map(|_| unlogged)?
        }
        Request::Revive(roles) => client.revive(to_proto::revive(&id, roles)).await.map(|_| unlogged)?,
        Request::Kill { task, grace_ms } => {
            let response = client.kill(to_proto::kill(&id, task, *grace_ms)).await?.into_inner();
            Reply::Done { index: response.index }
        }
        Request::ShutdownExecutor { agent, executor } => {
            let request = to_proto::shutdown_executor(&id, *agent, executor);
            let response = client.shutdown_executor(request).await?.into_inner();
            Reply::Done { index: response.index }
        }
        Request::SendMessage { agent, executor, data } => {
            let data = bytes::Bytes::copy_from_slice(data);
            let request = to_proto::send_message(&id, *agent, executor, data);
            client.send_message(request).await.map(|_| unlogged)?
        }
        Request::UpdateFramework(info) => {
            let request = to_proto::update_framework(&id, info);
            let response = client.update_framework(request).await?.into_inner();
            Reply::Done { index: response.index }
        }
        Request::Acknowledge(acks) => {
            let response = client.acknowledge(to_proto::acknowledge(&id, acks)).await?.into_inner();
            Reply::Done { index: response.index }
        }
        Request::Reconcile(tasks) => {
            client.reconcile(to_proto::reconcile(&id, tasks)).await.map(|_| unlogged)?
        }
        Request::Teardown => {
            let response = client.teardown(to_proto::teardown(&id)).await?.into_inner();
            Reply::Done { index: response.index }
        }
    })
}
