//! The one loop that owns the core: things happen, the core says what to do about them, it is done.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use proffer_containerizer::{self as containers, Containerizer, GcPolicy};
use proffer_types::RequestId;
use proffer_types::event::AgentOrder;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use crate::core::{Core, ExecutorRefusal};
use crate::data::Wish;
use crate::effects::{Error, Hands, Stream};
use crate::executors::{Answer, Ears, Refusal, Said, Served};
use crate::recover::Store;
use crate::session::{self, Order};

/// Messages of the master that wait for the driver: the stream is read no faster than the driver follows.
const MESSAGES_QUEUED: usize = 64;
/// Questions that wait for the driver.
const QUESTIONS_QUEUED: usize = 16;
/// What is read together before anything is done about it, so that a launch whose kill is on its heels is never
/// started; and no more, so that a long replay does not delay the first launches.
const BATCH: usize = 256;
/// How often old sandboxes and logs are looked for.
const GC_PERIOD: Duration = Duration::from_secs(600);

/// What comes from outside the session and the containers.
enum Question {
    View(oneshot::Sender<View>),
    Stop,
}

/// Speaks to a running driver. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    questions: mpsc::Sender<Question>,
}

impl Handle {
    /// What the agent holds now; `None` if it has ended.
    pub async fn view(&self) -> Option<View> {
        let (reply, answer) = oneshot::channel();
        self.questions.send(Question::View(reply)).await.ok()?;
        answer.await.ok()
    }

    /// Ends the driver. Tasks and their supervisors go on.
    pub async fn stop(&self) {
        let _ = self.questions.send(Question::Stop).await;
    }
}

/// What the agent holds, for diagnostics.
#[derive(Clone, Debug, Serialize)]
pub struct View {
    /// Its id, once it has one.
    pub agent_id: Option<String>,
    /// Its cluster, once it has joined one.
    pub cluster_id: Option<String>,
    /// The master whose session is open.
    pub master: Option<String>,
    /// The Raft term of that session.
    pub term: Option<u64>,
    /// The node's name.
    pub hostname: String,
    /// The isolation of tasks.
    pub isolation: String,
    /// What is offered.
    pub resources: String,
    /// The number of the last order seen.
    pub last_seq: u64,
    /// What is held, by launch.
    pub launches: Vec<LaunchView>,
}

/// A held launch, for diagnostics.
#[derive(Clone, Debug, Serialize)]
pub struct LaunchView {
    /// The launch.
    pub launch_id: String,
    /// The framework's name for it.
    pub task_id: String,
    /// Whose.
    pub framework_id: String,
    /// Where it is on this agent.
    pub phase: &'static str,
    /// The newest state that was said.
    pub state: Option<&'static str>,
    /// Why.
    pub reason: Option<&'static str>,
    /// Statuses that wait for their confirmation.
    pub unconfirmed: usize,
}

/// The driver's parts before it runs.
pub struct Driver {
    core: Core,
    hands: Hands,
    session: mpsc::Receiver<session::Event>,
    container: mpsc::UnboundedReceiver<containers::Event>,
    questions: mpsc::Receiver<Question>,
    /// What data connections ask for.
    wished: mpsc::Receiver<Wish>,
    executors: Ears,
    /// Answers to executors that wait until what they depend on is written down.
    answers: Vec<(Answer<()>, Result<(), Refusal>)>,
    wanted: watch::Sender<bool>,
    begun: Instant,
}

impl Driver {
    /// A driver for `core`, which seeks a leader among `masters` and hears of containers through `container`. That
    /// channel needs no bound: there are a few events per launch, and launches are bounded by resources.
    pub fn new(
        core: Core,
        store: Store,
        containerizer: Box<dyn Containerizer>,
        container: mpsc::UnboundedReceiver<containers::Event>,
        masters: Vec<String>,
    ) -> (Self, Handle) {
        let (to_driver, session) = mpsc::channel(MESSAGES_QUEUED);
        let (wanted, wish) = watch::channel(false);
        tokio::spawn(session::Worker::new(masters, to_driver, wish).run());
        let (ask, questions) = mpsc::channel(QUESTIONS_QUEUED);
        let (served, executors) = Served::new();
        let (hands, wished) = Hands::new(store, containerizer, served);
        let begun = Instant::now();
        let answers = Vec::new();
        let driver =
            Self { core, hands, session, container, questions, wished, executors, answers, wanted, begun };
        (driver, Handle { questions: ask })
    }

    /// Runs until it is told to stop, or until it cannot go on.
    pub async fn run(mut self) -> Result<(), Error> {
        let mut gc = interval(GC_PERIOD);
        gc.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.look_at_the_clock();
            self.hands.perform(&mut self.core)?;
            for (answer, result) in self.answers.drain(..) {
                let _ = answer.send(result);
            }
            // A stream that the core has given up is closed before another is sought.
            let wanted = self.core.wants_session() || self.hands.stream.is_some();
            self.wanted.send_if_modified(|before| std::mem::replace(before, wanted) != wanted);
            let deadline = self.core.deadline_ms().map(|ms| self.begun + Duration::from_millis(ms + 1));
            let deadline = deadline.into_iter().chain(self.hands.send_at).min();
            tokio::select! {
                Some(event) = self.session.recv() => {
                    self.look_at_the_clock();
                    self.on_session(event);
                    for _ in 1..BATCH {
                        let Ok(event) = self.session.try_recv() else { break };
                        self.on_session(event);
                    }
                }
                Some(event) = self.container.recv() => {
                    self.on_container(event);
                    for _ in 1..BATCH {
                        let Ok(event) = self.container.try_recv() else { break };
                        self.on_container(event);
                    }
                }
                Some(said) = self.executors.said.recv() => {
                    self.look_at_the_clock();
                    self.on_said(said);
                    for _ in 1..BATCH {
                        let Ok(said) = self.executors.said.try_recv() else { break };
                        self.on_said(said);
                    }
                }
                Some((executor, stream)) = self.executors.lost.recv() => {
                    self.look_at_the_clock();
                    tracing::debug!(launch.id = executor.0, "an executor's stream has ended");
                    self.hands.served.close(executor, stream);
                    self.core.on_executor_lost(executor, stream);
                }
                Some(wish) = self.wished.recv() => self.hands.grant(&self.core, wish),
                Some(question) = self.questions.recv() => match question {
                    Question::View(reply) => drop(reply.send(self.view())),
                    Question::Stop => return Ok(()),
                },
                () = sleep_until(deadline.unwrap_or(self.begun)), if deadline.is_some() => {}
                _ = gc.tick() => self.hands.containerizer.gc(GcPolicy::default()),
            }
        }
    }

    fn look_at_the_clock(&mut self) {
        let now_ms = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.core.on_time(now_ms, wall_ms());
    }

    fn on_session(&mut self, event: session::Event) {
        match event {
            session::Event::Connected { stream: number, address, outbound, guard } => {
                if !self.core.wants_session() {
                    // Dropping the guard closes it again.
                    return;
                }
                self.hands.open_stream(Stream { number, address, outbound, _guard: guard });
                self.core.on_connected(fresh_instance());
            }
            session::Event::Orders { stream, epoch, orders } => {
                if self.hands.stream.as_ref().is_none_or(|open| open.number != stream) {
                    return;
                }
                let was_open = self.core.session_epoch().is_some();
                let mut known = Vec::with_capacity(orders.len());
                for order in orders {
                    match order {
                        Order::Known(order) => {
                            if let AgentOrder::Confirm { launch, task_seq } = order {
                                self.hands.confirmed(launch, task_seq);
                            }
                            known.push(order);
                        }
                        Order::UnreadableLaunch { agent_seq, launch, why } => {
                            self.core.on_orders(epoch, std::mem::take(&mut known));
                            self.core.on_unreadable_launch(epoch, agent_seq, launch, &why);
                        }
                    }
                }
                self.core.on_orders(epoch, known);
                if let (false, Some(epoch), Some(stream)) =
                    (was_open, self.core.session_epoch(), &self.hands.stream)
                {
                    tracing::info!(master = stream.address, raft.term = epoch.term, "session open");
                }
            }
            session::Event::Lost { stream, why } => {
                let ours = self.hands.stream.as_ref().is_some_and(|open| open.number == stream);
                if let Some(lost) = ours.then(|| self.hands.close_stream()).flatten() {
                    if self.core.session_epoch().is_some() {
                        tracing::warn!(master = lost.address, why, "session lost");
                    } else {
                        tracing::debug!(master = lost.address, why, "no session");
                    }
                    self.core.on_session_lost();
                }
            }
        }
    }

    fn on_container(&mut self, event: containers::Event) {
        match &event {
            containers::Event::Ended { launch, .. } | containers::Event::LaunchFailed { launch, .. } => {
                self.hands.wakers.ended(*launch);
            }
            containers::Event::Recovered => {
                tracing::info!("everything an earlier life left is accounted for")
            }
            containers::Event::OrphanRemoved { launch } => {
                tracing::warn!(launch.id = launch.0, "ended a container that nobody knows");
            }
            containers::Event::StuckKill { launch, processes } => {
                tracing::error!(launch.id = launch.0, processes, "processes survive SIGKILL");
            }
            _ => {}
        }
        self.core.on_container_event(event);
    }

    fn on_said(&mut self, said: Said) {
        match said {
            Said::Subscribe { executor, launches, events, answer } => {
                let stream = self.hands.served.open(executor, events);
                let taken = self.core.on_executor_subscribed(executor, stream, &launches);
                tracing::info!(
                    launch.id = executor.0,
                    launches = launches.len(),
                    ?taken,
                    "an executor subscribes"
                );
                if taken.is_err() {
                    self.hands.served.close(executor, stream);
                }
                // What is to be in the stream is put there when it is written down; that it is open may be said now.
                let _ = answer.send(taken.map(|()| stream).map_err(Refusal::Core));
            }
            Said::Updates { executor, updates, answer } => {
                let taken = self.core.on_executor_updates(executor, updates);
                if let Err(why @ ExecutorRefusal::Misbehaved(_)) = &taken {
                    tracing::warn!(launch.id = executor.0, %why, "an executor breaks the protocol");
                }
                self.answers.push((answer, taken.map_err(Refusal::Core)));
            }
            Said::Message { executor, data, answer } => {
                let taken = match self.hands.has_room() {
                    true => self.core.on_executor_message(executor, data).map_err(Refusal::Core),
                    false => Err(Refusal::Full),
                };
                self.answers.push((answer, taken));
            }
            Said::Peer { executor, pid, answer } => {
                let _ = answer.send(self.hands.containerizer.holds(executor, pid));
            }
            Said::Listen(executor) => {
                let containerizer = self.hands.containerizer.as_mut();
                self.hands.served.listen_again(executor, containerizer);
            }
        }
    }

    fn view(&self) -> View {
        let identity = self.core.identity();
        let cell = identity.cluster.map(|c| c.tag()).unwrap_or_default();
        let info = self.core.info();
        let launches = self.core.held().map(|held| LaunchView {
            launch_id: held.launch.text(cell),
            task_id: held.order.map_or_else(String::new, |order| order.task_id.to_string()),
            framework_id: held.order.map_or_else(String::new, |order| order.framework.text(cell)),
            phase: held.phase.name(),
            state: held.status.map(|status| status.state.name()),
            reason: held.status.map(|status| status.reason.name()).filter(|reason| !reason.is_empty()),
            unconfirmed: held.unconfirmed,
        });
        View {
            agent_id: identity.agent.map(|agent| agent.text(cell)),
            cluster_id: identity.cluster.map(|cluster| cluster.to_string()),
            master: self.hands.stream.as_ref().map(|stream| stream.address.clone()),
            term: self.core.session_epoch().map(|epoch| epoch.term),
            hostname: info.hostname.clone(),
            isolation: info.isolation.clone(),
            resources: info.resources.to_string(),
            last_seq: self.core.last_seq(),
            launches: launches.collect(),
        }
    }
}

/// The wall clock, for display (milliseconds since 1970).
pub(crate) fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A random number for a new installation.
pub fn fresh_instance() -> RequestId {
    let (high, low) = (random(), random());
    RequestId(u128::from(high) << 64 | u128::from(low))
}

fn random() -> u64 {
    getrandom::u64().expect("the system's random numbers never run out")
}
