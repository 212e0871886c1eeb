//! Serves the frameworks' own executors, each on a socket of its own.
//!
//! It knows no order's meaning: what an executor says goes to the driver, which answers when it is written down; what
//! the core has for it goes into its stream. An executor is a stranger: what it may have open, say in a second and
//! leave unread is bounded, and it is told when it is too much.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use proffer_containerizer::{Containerizer, NotThere};
use proffer_types::LaunchId;
use proffer_types::executor::{ExecutorEvent, ExecutorUpdate};
use proffer_wire::executor::v1 as pb;
use proffer_wire::executor::v1::executor_service_server::{ExecutorService, ExecutorServiceServer};
use proffer_wire::{from_proto, status, to_proto};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::core::ExecutorRefusal;

/// Connections of one executor at once, and calls on each: with the largest message they bound what it makes the agent
/// hold to 16 MiB.
const CONNECTIONS_MAX: usize = 4;
const CALLS_MAX: u32 = 16;
/// Largest message of an executor.
const MESSAGE_BYTES_MAX: usize = 256 << 10;
/// A connection whose other end does not answer a ping is dead: its process is stopped, or somebody holds a copy of it.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// What waits for an executor. One that reads no further loses its stream, and learns the rest from the next.
const EVENTS_WAITING: usize = 1_024;
/// While so many wait, bytes from schedulers are thrown away.
const EVENTS_WAITING_FOR_BYTES: usize = 32;
/// Events in a message: with the largest ones 1 MiB.
const EVENTS_PER_MESSAGE: usize = 16;
/// What executors said that waits for the driver.
const SAID_WAITING: usize = 64;
/// Before a socket that is not there is asked for again, and after a failed accept.
const PAUSE: Duration = Duration::from_millis(200);
/// How long the connections of an executor that has ended are kept.
const LINGER: Duration = Duration::from_secs(1);
/// What an executor may say in a second, and at once after a while of silence. A status is a record of the checkpoint
/// and an entry of the masters' log.
const STATUSES: Rate = Rate { per_second: 1_000.0, most: 5_000.0 };
const MESSAGES: Rate = Rate { per_second: 100.0, most: 500.0 };
const BYTES: Rate = Rate { per_second: 1_048_576.0, most: 4_194_304.0 };
const STREAMS: Rate = Rate { per_second: 1.0, most: 20.0 };

/// What the driver is asked, or told.
pub(crate) enum Said {
    /// A stream is wanted.
    Subscribe {
        executor: LaunchId,
        launches: Vec<LaunchId>,
        events: mpsc::Sender<pb::Event>,
        answer: Answer<u64>,
    },
    /// What became of tasks.
    Updates { executor: LaunchId, updates: Vec<ExecutorUpdate>, answer: Answer<()> },
    /// Bytes for the scheduler.
    Message { executor: LaunchId, data: Vec<u8>, answer: Answer<()> },
    /// Somebody connects: is it of the container?
    Peer { executor: LaunchId, pid: i32, answer: oneshot::Sender<bool> },
    /// The socket was not there: it is to be asked for again.
    Listen(LaunchId),
}

/// Where an answer goes. Nobody waits for it if the executor has hung up.
pub(crate) type Answer<T> = oneshot::Sender<Result<T, Refusal>>;

/// Why an executor is refused.
#[derive(Clone, Debug)]
pub(crate) enum Refusal {
    /// By the core.
    Core(ExecutorRefusal),
    /// There is no room on the way to the masters.
    Full,
}

/// The ends that the driver keeps.
pub(crate) struct Ears {
    /// What executors say.
    pub(crate) said: mpsc::Receiver<Said>,
    /// Streams that ended. Bounded by the rate of their beginnings.
    pub(crate) lost: mpsc::UnboundedReceiver<(LaunchId, u64)>,
}

/// The executors that are served.
pub(crate) struct Served {
    executors: BTreeMap<LaunchId, Serving>,
    streams: u64,
    mouth: Mouth,
}

/// The ends by which executors reach the driver.
#[derive(Clone)]
struct Mouth {
    said: mpsc::Sender<Said>,
    lost: mpsc::UnboundedSender<(LaunchId, u64)>,
}

#[derive(Default)]
struct Serving {
    /// Ends with this.
    worker: JoinSet<()>,
    stream: Option<(u64, mpsc::Sender<pb::Event>)>,
}

impl Served {
    pub(crate) fn new() -> (Self, Ears) {
        let (to_driver, said) = mpsc::channel(SAID_WAITING);
        let (lose, lost) = mpsc::unbounded_channel();
        let mouth = Mouth { said: to_driver, lost: lose };
        (Self { executors: BTreeMap::new(), streams: 0, mouth }, Ears { said, lost })
    }

    /// Begins to serve an executor.
    pub(crate) fn listen(&mut self, executor: LaunchId, containerizer: &mut dyn Containerizer) {
        let serving = self.executors.entry(executor).or_default();
        let (answer, listener) = oneshot::channel();
        containerizer.listener(executor, Box::new(move |result| drop(answer.send(result))));
        serving.worker.abort_all();
        serving.worker.spawn(serve(executor, listener, self.mouth.clone()));
    }

    /// The same again, unless it has ended meanwhile.
    pub(crate) fn listen_again(&mut self, executor: LaunchId, containerizer: &mut dyn Containerizer) {
        if self.executors.contains_key(&executor) {
            self.listen(executor, containerizer);
        }
    }

    /// Serves an executor no more.
    pub(crate) fn end(&mut self, executor: LaunchId) {
        if let Some(Serving { worker, stream }) = self.executors.remove(&executor) {
            drop(stream);
            // What was said to it may still be on its way.
            tokio::spawn(async move {
                sleep(LINGER).await;
                drop(worker);
            });
        }
    }

    /// An executor has a new stream; its number.
    pub(crate) fn open(&mut self, executor: LaunchId, events: mpsc::Sender<pb::Event>) -> u64 {
        self.streams += 1;
        if let Some(serving) = self.executors.get_mut(&executor) {
            serving.stream = Some((self.streams, events));
        }
        self.streams
    }

    /// A stream was refused.
    pub(crate) fn close(&mut self, executor: LaunchId, number: u64) {
        if let Some(serving) = self.executors.get_mut(&executor) {
            serving.stream.take_if(|(open, _)| *open == number);
        }
    }

    /// Says something to an executor. What it cannot take it learns when it subscribes again.
    pub(crate) fn tell(&mut self, executor: LaunchId, event: &ExecutorEvent) {
        let Some(serving) = self.executors.get_mut(&executor) else { return };
        let Some((number, events)) = &serving.stream else { return };
        let waiting = events.max_capacity() - events.capacity();
        if matches!(event, ExecutorEvent::Message(_)) && waiting >= EVENTS_WAITING_FOR_BYTES {
            tracing::debug!(launch.id = executor.0, "an executor does not read: bytes for it are lost");
            return;
        }
        let full = events.try_send(to_proto::executor_event(event)).is_err();
        if full {
            tracing::warn!(launch.id = executor.0, "an executor does not read: its stream ends");
            // The driver holds the other end for as long as it lives.
            let _ = self.mouth.lost.send((executor, *number));
        }
        if full || matches!(event, ExecutorEvent::Error { .. }) {
            serving.stream = None;
        }
    }
}

/// Serves one executor until it has ended.
async fn serve(executor: LaunchId, listener: oneshot::Receiver<Result<OwnedFd, NotThere>>, mouth: Mouth) {
    let listener = match listener.await {
        Ok(Ok(socket)) => UnixListener::from_std(socket.into()).map_err(|error| error.to_string()),
        Ok(Err(why)) => Err(why.to_string()),
        Err(_) => Err("nobody answered".to_owned()),
    };
    let listener = match listener {
        Ok(listener) => listener,
        Err(why) => {
            tracing::debug!(launch.id = executor.0, why, "an executor's socket is not there");
            sleep(PAUSE).await;
            drop(mouth.said.send(Said::Listen(executor)).await);
            return;
        }
    };
    let service = Service { executor, mouth, budget: Arc::default() };
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let place = Arc::clone(&room).acquire_owned().await.expect("the semaphore is never closed");
        while connections.try_join_next().is_some() {}
        let connection = match listener.accept().await {
            Ok((connection, _)) => connection,
            Err(error) => {
                tracing::debug!(launch.id = executor.0, %error, "accept on an executor's socket");
                sleep(PAUSE).await;
                continue;
            }
        };
        let service = service.clone();
        connections.spawn(async move {
            service.serve(connection).await;
            drop(place);
        });
    }
}

/// What one executor reaches.
#[derive(Clone)]
struct Service {
    executor: LaunchId,
    mouth: Mouth,
    budget: Arc<Mutex<Budget>>,
}

impl Service {
    async fn serve(self, connection: UnixStream) {
        let pid = connection.peer_cred().ok().and_then(|peer| peer.pid());
        let (answer, inside) = oneshot::channel();
        let question = pid.map(|pid| Said::Peer { executor: self.executor, pid, answer });
        let asked = match question {
            Some(question) => self.mouth.said.send(question).await.is_ok(),
            None => false,
        };
        if !asked || !inside.await.unwrap_or(false) {
            tracing::warn!(launch.id = self.executor.0, pid, "refused a stranger on an executor's socket");
            return;
        }
        let executor = self.executor;
        let server = ExecutorServiceServer::new(self).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let served = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .max_concurrent_streams(CALLS_MAX)
            .max_send_buf_size(64 << 10)
            .serve_connection(TokioIo::new(connection), TowerToHyperService::new(server))
            .await;
        if let Err(error) = served {
            tracing::debug!(launch.id = executor.0, %error, "an executor's connection");
        }
    }

    /// Takes from what it may say now.
    fn spend(&self, of: impl FnOnce(&mut Budget, Instant) -> Result<(), Duration>) -> Result<(), Status> {
        let mut budget = self.budget.lock().expect("no panic while it is held");
        of(&mut budget, Instant::now())
            .map_err(|wait| busy(wait, "this executor says more than is taken from it"))
    }

    async fn ask<T>(&self, question: impl FnOnce(Answer<T>) -> Said) -> Result<T, Status> {
        let (answer, reply) = oneshot::channel();
        let gone = || Status::unavailable("the agent is ending: subscribe with the next one");
        self.mouth.said.send(question(answer)).await.map_err(|_| gone())?;
        reply.await.map_err(|_| gone())?.map_err(|refusal| refused(&refusal))
    }
}

#[tonic::async_trait]
impl ExecutorService for Service {
    type SubscribeStream = Events;

    async fn subscribe(&self, request: Request<pb::SubscribeRequest>) -> Result<Response<Events>, Status> {
        self.spend(|budget, now| budget.streams.take(STREAMS, 1.0, now))?;
        let launches =
            from_proto::executor_subscribe(request.into_inner()).map_err(|e| status::malformed(&e))?;
        let (events, waiting) = mpsc::channel(EVENTS_WAITING);
        let executor = self.executor;
        let number = self.ask(|answer| Said::Subscribe { executor, launches, events, answer }).await?;
        Ok(Response::new(Events { waiting, executor, number, lost: self.mouth.lost.clone() }))
    }

    async fn update(
        &self,
        request: Request<pb::UpdateRequest>,
    ) -> Result<Response<pb::UpdateResponse>, Status> {
        let updates =
            from_proto::executor_updates(request.into_inner()).map_err(|e| status::malformed(&e))?;
        self.spend(|budget, now| budget.statuses.take(STATUSES, updates.len() as f64, now))?;
        let executor = self.executor;
        self.ask(|answer| Said::Updates { executor, updates, answer }).await?;
        Ok(Response::new(pb::UpdateResponse {}))
    }

    async fn send_message(
        &self,
        request: Request<pb::SendMessageRequest>,
    ) -> Result<Response<pb::SendMessageResponse>, Status> {
        let data = from_proto::executor_message(request.into_inner()).map_err(|e| status::malformed(&e))?;
        self.spend(|budget, now| {
            budget.messages.take(MESSAGES, 1.0, now)?;
            budget.bytes.take(BYTES, data.len() as f64, now)
        })?;
        let executor = self.executor;
        self.ask(|answer| Said::Message { executor, data, answer }).await?;
        Ok(Response::new(pb::SendMessageResponse {}))
    }
}

/// An executor's event stream. Its end is told to the driver.
struct Events {
    waiting: mpsc::Receiver<pb::Event>,
    executor: LaunchId,
    number: u64,
    lost: mpsc::UnboundedSender<(LaunchId, u64)>,
}

impl tokio_stream::Stream for Events {
    type Item = Result<pb::Events, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut events = Vec::new();
        match self.waiting.poll_recv_many(cx, &mut events, EVENTS_PER_MESSAGE) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(0) => Poll::Ready(None),
            Poll::Ready(_) => Poll::Ready(Some(Ok(pb::Events { events }))),
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        // Without a driver there is nobody to tell.
        let _ = self.lost.send((self.executor, self.number));
    }
}

fn refused(refusal: &Refusal) -> Status {
    match refusal {
        Refusal::Core(why @ ExecutorRefusal::Unsubscribed) => Status::unavailable(why.to_string()),
        Refusal::Core(why) => {
            let details = ErrorDetails::with_error_info("EXECUTOR_ENDING", status::DOMAIN, []);
            Status::with_error_details(Code::FailedPrecondition, why.to_string(), details)
        }
        Refusal::Full => busy(PAUSE, "too much waits on the way to the masters"),
    }
}

fn busy(wait: Duration, why: &str) -> Status {
    let mut details = ErrorDetails::with_error_info("BUSY", status::DOMAIN, []);
    details.set_retry_info(Some(wait));
    Status::with_error_details(Code::ResourceExhausted, why, details)
}

/// How much in a second, and at once.
#[derive(Clone, Copy, Debug)]
struct Rate {
    per_second: f64,
    most: f64,
}

/// What is left of what an executor may say.
#[derive(Debug, Default)]
struct Budget {
    statuses: Bucket,
    messages: Bucket,
    bytes: Bucket,
    streams: Bucket,
}

/// How much was taken, and when that was reckoned.
#[derive(Debug, Default)]
struct Bucket {
    taken: f64,
    at: Option<Instant>,
}

impl Bucket {
    /// Takes so much if it is there, or says how long to wait for it.
    fn take(&mut self, rate: Rate, amount: f64, now: Instant) -> Result<(), Duration> {
        let since = self.at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.taken = (self.taken - since.as_secs_f64() * rate.per_second).max(0.0);
        self.at = Some(now);
        let lacking = self.taken + amount - rate.most;
        if lacking > 0.0 {
            return Err(Duration::from_secs_f64(lacking / rate.per_second).max(Duration::from_millis(1)));
        }
        self.taken += amount;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_much_and_no_more() {
        let rate = Rate { per_second: 10.0, most: 100.0 };
        let (mut bucket, begin) = (Bucket::default(), Instant::now());
        bucket.take(rate, 100.0, begin).expect("at once");
        assert_eq!(bucket.take(rate, 5.0, begin), Err(Duration::from_millis(500)));
        let later = begin + Duration::from_millis(500);
        bucket.take(rate, 5.0, later).expect("when it was said to be there");
        bucket.take(rate, 1.0, later).expect_err("and not more");
        let much_later = begin + Duration::from_secs(3_600);
        bucket.take(rate, 100.0, much_later).expect("silence is worth no more than at once");
        bucket.take(rate, 1.0, much_later).expect_err("nothing is saved beyond");
    }
}
