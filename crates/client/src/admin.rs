//! What operators' tools ask: lists, one object, the end of tasks and frameworks, logs.
//!
//! Any master will do as an address: one that does not lead names the leader. Reads are repeated until the deadline;
//! changes too, under one request id, so that they happen once.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use proffer_types::command::AdminId;
use proffer_types::{AgentId, CellTag, ClusterId, ClusterTime, FrameworkId, RequestId, TaskId};
use proffer_wire::admin::v1 as pb;
use proffer_wire::admin::v1::admin_service_client::AdminServiceClient;
use proffer_wire::malformed::Malformed;
use proffer_wire::rows::{
    AgentRow, ExecutorRow, FrameworkRow, MasterRow, OfferRow, ReadOptions, StatusSummary, TaskFilter,
    TaskRow, ViewStamp,
};
use proffer_wire::{from_proto, to_proto};
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Response, Status};

use crate::channel::{self, RECEIVE_BYTES_MAX};
use crate::core::{Failure, Refused, RefusedKind};
use crate::failure::failure;

/// How long a call looks for a leader and an answer unless told otherwise.
pub const DEADLINE: Duration = Duration::from_secs(10);
/// A master that is silent for so long is left for another; doubles with each repetition.
const PATIENCE: Duration = Duration::from_secs(3);
/// A silent master is asked after the others for so long: a stopped one still accepts connections.
const SUSPICION: Duration = Duration::from_secs(5);
/// Redirections followed without a pause.
const HOPS_MAX: u32 = 3;
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Why an operator's call failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// No master decided it in time.
    #[error("{what}: no leader answered within {waited:?}: {}", masters.iter().map(|(m, why)| format!("{m}: {why}")).collect::<Vec<_>>().join("; "))]
    Unavailable {
        /// What was asked.
        what: &'static str,
        /// For how long.
        waited: Duration,
        /// What each master did last.
        masters: Vec<(String, String)>,
    },
    /// The leader said no.
    #[error("{what}: {refused}")]
    Refused {
        /// What was asked.
        what: &'static str,
        /// How it was refused.
        #[source]
        refused: Refused,
    },
    /// The answer cannot be read.
    #[error("{what}: the master's answer cannot be read: {why}")]
    Malformed {
        /// What was asked.
        what: &'static str,
        /// What is wrong with it.
        #[source]
        why: Malformed,
    },
    /// The system gave no random numbers.
    #[error("cannot draw a random number: {0}")]
    Random(String),
}

impl Error {
    /// The refusal, if it is one.
    pub fn refused(&self) -> Option<&Refused> {
        match self {
            Self::Refused { refused, .. } => Some(refused),
            _ => None,
        }
    }

    /// Whether the object does not exist.
    pub fn is_not_found(&self) -> bool {
        self.refused().is_some_and(|refused| refused.kind == RefusedKind::NotFound)
    }
}

/// A client for operators. Cheap to clone; clones share what they know of the masters.
#[derive(Clone, Debug)]
pub struct AdminClient {
    masters: Arc<[String]>,
    deadline: Duration,
    known: Arc<Mutex<Known>>,
}

/// What was learnt from answers.
#[derive(Debug, Default)]
struct Known {
    leader: Option<String>,
    channels: BTreeMap<String, Channel>,
    /// Masters that did not answer, until when they are asked last.
    suspects: BTreeMap<String, Instant>,
    time: Option<ClusterTime>,
    cell: Option<CellTag>,
}

impl Known {
    /// Where to begin: with the leader last known, and with suspects last.
    fn search(&mut self, masters: &[String]) -> Search {
        let now = Instant::now();
        self.suspects.retain(|_, until| *until > now);
        let (last, first): (Vec<_>, Vec<_>) =
            masters.iter().cloned().partition(|master| self.suspects.contains_key(master));
        Search::new(self.leader.clone(), first.into_iter().chain(last).collect())
    }

    fn suspect(&mut self, master: &str) {
        self.channels.remove(master);
        self.leader.take_if(|leader| leader == master);
        self.suspects.insert(master.to_owned(), Instant::now() + SUSPICION);
    }
}

impl AdminClient {
    /// A client of the cluster of `masters` (`host:port`, any subset); nothing is connected yet.
    pub fn new(masters: &[String]) -> Self {
        Self { masters: masters.into(), deadline: DEADLINE, known: Arc::default() }
    }

    /// The same client with another deadline per call.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The tag in the cluster's printed ids, known after the first answer.
    pub fn cell(&self) -> CellTag {
        self.known(|known| known.cell).unwrap_or_default()
    }

    /// The cluster at a glance.
    pub async fn status(&self) -> Result<(ViewStamp, StatusSummary), Error> {
        let what = "read the cluster's status";
        let request = pb::GetStatusRequest { read: fresh() };
        let answer = self.ask(what, async |mut c| c.get_status(request).await).await?;
        let (view, summary) = self.parsed(what, from_proto::status_summary(answer))?;
        self.seen(&view);
        Ok((view, summary))
    }

    /// Tasks, all pages.
    pub async fn tasks(&self, filter: &TaskFilter) -> Result<Vec<TaskRow>, Error> {
        let what = "list tasks";
        self.pages(what, async |token| {
            let request = to_proto::list_tasks(FRESH, &token, filter);
            let answer = self.ask(what, async |mut c| c.list_tasks(request.clone()).await).await?;
            Ok((answer.view, answer.tasks, answer.next))
        })
        .await?
        .into_iter()
        .map(|task| self.parsed(what, from_proto::task_row(task)))
        .collect()
    }

    /// One task.
    pub async fn task(&self, framework: FrameworkId, task: &TaskId) -> Result<TaskRow, Error> {
        let what = "read a task";
        let request =
            pb::GetTaskRequest { read: fresh(), framework_id: framework.0, task_id: task.as_str().into() };
        let answer = self.ask(what, async |mut c| c.get_task(request.clone()).await).await?;
        self.seen_in(what, answer.view)?;
        self.parsed(what, from_proto::task_row(answer.task.unwrap_or_default()))
    }

    /// Agents, all pages.
    pub async fn agents(&self) -> Result<Vec<AgentRow>, Error> {
        let what = "list agents";
        self.pages(what, async |token| {
            let request = pb::ListAgentsRequest { read: fresh(), page: Some(pb::Page { size: 0, token }) };
            let answer = self.ask(what, async |mut c| c.list_agents(request.clone()).await).await?;
            Ok((answer.view, answer.agents, answer.next))
        })
        .await?
        .into_iter()
        .map(|agent| self.parsed(what, from_proto::agent_row(agent)))
        .collect()
    }

    /// One agent.
    pub async fn agent(&self, agent: AgentId) -> Result<AgentRow, Error> {
        let what = "read an agent";
        let request = pb::GetAgentRequest { read: fresh(), agent_id: agent.0 };
        let answer = self.ask(what, async |mut c| c.get_agent(request).await).await?;
        self.seen_in(what, answer.view)?;
        self.parsed(what, from_proto::agent_row(answer.agent.unwrap_or_default()))
    }

    /// Frameworks, all pages, completed ones too if wanted.
    pub async fn frameworks(&self, completed: bool) -> Result<Vec<FrameworkRow>, Error> {
        let what = "list frameworks";
        self.pages(what, async |token| {
            let page = Some(pb::Page { size: 0, token });
            let request = pb::ListFrameworksRequest { read: fresh(), page, completed };
            let answer = self.ask(what, async |mut c| c.list_frameworks(request.clone()).await).await?;
            Ok((answer.view, answer.frameworks, answer.next))
        })
        .await?
        .into_iter()
        .map(|framework| self.parsed(what, from_proto::framework_row(framework)))
        .collect()
    }

    /// One framework.
    pub async fn framework(&self, framework: FrameworkId) -> Result<FrameworkRow, Error> {
        let what = "read a framework";
        let request = pb::GetFrameworkRequest { read: fresh(), framework_id: framework.0 };
        let answer = self.ask(what, async |mut c| c.get_framework(request).await).await?;
        self.seen_in(what, answer.view)?;
        self.parsed(what, from_proto::framework_row(answer.framework.unwrap_or_default()))
    }

    /// Frameworks' own executors, all pages; ended ones that are remembered too if wanted.
    pub async fn executors(
        &self,
        framework: Option<FrameworkId>,
        ended: bool,
    ) -> Result<Vec<ExecutorRow>, Error> {
        let what = "list executors";
        self.pages(what, async |token| {
            let page = Some(pb::Page { size: 0, token });
            let framework_id = framework.unwrap_or_default().0;
            let request = pb::ListExecutorsRequest { read: fresh(), page, framework_id, ended };
            let answer = self.ask(what, async |mut c| c.list_executors(request.clone()).await).await?;
            Ok((answer.view, answer.executors, answer.next))
        })
        .await?
        .into_iter()
        .map(|executor| self.parsed(what, from_proto::executor_row(executor)))
        .collect()
    }

    /// The outstanding offers.
    pub async fn offers(&self) -> Result<Vec<OfferRow>, Error> {
        let what = "list offers";
        let request = pb::ListOffersRequest {};
        let answer = self.ask(what, async |mut c| c.list_offers(request).await).await?;
        self.seen_in(what, answer.view)?;
        answer.offers.into_iter().map(|offer| self.parsed(what, from_proto::offer_row(offer))).collect()
    }

    /// The masters.
    pub async fn masters(&self) -> Result<Vec<MasterRow>, Error> {
        let what = "list masters";
        let request = pb::ListMastersRequest {};
        let answer = self.ask(what, async |mut c| c.list_masters(request).await).await?;
        self.seen_in(what, answer.view)?;
        Ok(answer.masters.into_iter().map(from_proto::master_row).collect())
    }

    /// Asks for a task's end; returns when that is committed.
    pub async fn kill_task(
        &self,
        framework: FrameworkId,
        task: &TaskId,
        grace: Option<Duration>,
    ) -> Result<(), Error> {
        let what = "kill a task";
        let grace_ms = grace.map(|grace| grace.as_millis().try_into().unwrap_or(u64::MAX));
        let request = to_proto::kill_task(self.new_call().await?, framework, task, grace_ms);
        let answer = self.ask(what, async |mut c| c.kill_task(request.clone()).await).await?;
        self.seen_in(what, answer.view)
    }

    /// Ends a framework and all its tasks; returns when that is committed.
    pub async fn teardown(&self, framework: FrameworkId) -> Result<(), Error> {
        let what = "tear down a framework";
        let request = to_proto::teardown_framework(self.new_call().await?, framework);
        let answer = self.ask(what, async |mut c| c.teardown_framework(request.clone()).await).await?;
        self.seen_in(what, answer.view)
    }

    /// Opens a stream of a task's output.
    pub(crate) async fn open_logs(
        &self,
        request: pb::ReadLogsRequest,
    ) -> Result<tonic::Streaming<pb::ReadLogsResponse>, Error> {
        self.ask("read a task's output", async |mut c| c.read_logs(request.clone()).await).await
    }

    /// A request id, with the cluster's time: without that a repetition could not be told from a replay of old.
    async fn new_call(&self) -> Result<AdminId, Error> {
        if self.known(|known| known.time).is_none() {
            self.status().await?;
        }
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|error| Error::Random(error.to_string()))?;
        let request = RequestId(u128::from_be_bytes(random).max(1));
        Ok(AdminId { request, time: self.known(|known| known.time).unwrap_or_default() })
    }

    async fn pages<T>(
        &self,
        what: &'static str,
        fetch: impl AsyncFn(String) -> Result<(Option<pb::View>, Vec<T>, String), Error>,
    ) -> Result<Vec<T>, Error> {
        let mut all = Vec::new();
        let mut token = String::new();
        loop {
            match fetch(token.clone()).await {
                Ok((view, rows, next)) => {
                    self.seen_in(what, view)?;
                    all.extend(rows);
                    if next.is_empty() {
                        return Ok(all);
                    }
                    token = next;
                }
                // The view of the earlier pages is kept no more: all over again.
                Err(Error::Refused { refused, .. }) if refused.reason == "RESYNC" && !token.is_empty() => {
                    all.clear();
                    token.clear();
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn parsed<T>(&self, what: &'static str, result: Result<T, Malformed>) -> Result<T, Error> {
        result.map_err(|why| Error::Malformed { what, why })
    }

    fn seen_in(&self, what: &'static str, view: Option<pb::View>) -> Result<(), Error> {
        self.parsed(what, from_proto::admin_view(view)).map(|view| self.seen(&view))
    }

    fn seen(&self, view: &ViewStamp) {
        self.known(|known| {
            known.time = known.time.max(Some(view.time));
            known.cell = Some(view.cluster.tag());
        });
    }

    fn known<T>(&self, with: impl FnOnce(&mut Known) -> T) -> T {
        with(&mut self.known.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The leader, as far as it is known.
    pub(crate) fn leader(&self) -> Option<String> {
        self.known(|known| known.leader.clone())
    }

    /// The cluster that a stream told of.
    pub(crate) fn seen_cluster(&self, cluster: &str) {
        if let Ok(cluster) = cluster.parse::<ClusterId>() {
            self.known(|known| known.cell = Some(cluster.tag()));
        }
    }

    pub(crate) fn client(&self, master: &str) -> Result<AdminServiceClient<Channel>, String> {
        let channel = self.known(|known| known.channels.get(master).cloned());
        let channel = match channel {
            Some(channel) => channel,
            None => channel::lazy(master)?,
        };
        self.known(|known| known.channels.insert(master.to_owned(), channel.clone()));
        Ok(AdminServiceClient::new(channel).max_decoding_message_size(RECEIVE_BYTES_MAX))
    }

    /// Calls the leader, wherever it is, until it decides or time is up.
    pub(crate) async fn ask<T, F>(
        &self,
        what: &'static str,
        call: impl Fn(AdminServiceClient<Channel>) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let until = Instant::now() + self.deadline;
        let mut search = self.known(|known| known.search(&self.masters));
        loop {
            let master = search.next(until).await;
            let left = until.saturating_duration_since(Instant::now());
            let Some(master) = master.filter(|_| !left.is_zero()) else {
                return Err(Error::Unavailable { what, waited: self.deadline, masters: search.report() });
            };
            let outcome = match self.client(&master) {
                Ok(client) => match tokio::time::timeout(search.patience.min(left), call(client)).await {
                    Ok(Ok(response)) => {
                        self.known(|known| {
                            known.suspects.remove(&master);
                            known.leader = Some(master);
                        });
                        return Ok(response.into_inner());
                    }
                    Ok(Err(status)) => failure(&status),
                    Err(_) => Failure::Transport(format!("no answer within {:?}", search.patience.min(left))),
                },
                Err(why) => Failure::Transport(why),
            };
            match outcome {
                Failure::Refused(refused) => return Err(Error::Refused { what, refused }),
                Failure::Fenced | Failure::Completed(_) | Failure::Resync => {
                    let (reason, message) = match outcome {
                        Failure::Resync => ("RESYNC", "the page is of a view that is kept no more"),
                        _ => ("FRAMEWORK_COMPLETED", "the framework is completed"),
                    };
                    let (reason, message) = (reason.into(), message.into());
                    let refused = Refused { kind: RefusedKind::Precondition, reason, message };
                    return Err(Error::Refused { what, refused });
                }
                Failure::NotLeader { leader } => search.redirected(master, leader),
                Failure::Busy { retry_after_ms } => {
                    search.busy(master, Duration::from_millis(retry_after_ms))
                }
                Failure::OutcomeUnknown => search.failed(master, "lost its leadership".into()),
                Failure::Transport(why) => {
                    self.known(|known| known.suspect(&master));
                    search.failed(master, why);
                }
            }
        }
    }
}

const FRESH: ReadOptions = ReadOptions { min_index: 0, linearizable: true };

fn fresh() -> Option<pb::ReadOptions> {
    Some(to_proto::read_options(FRESH))
}

/// Which master to ask next.
struct Search {
    order: VecDeque<String>,
    /// To be asked at once, before the order goes on.
    named: Option<String>,
    hops: u32,
    /// Masters to ask before a pause is due.
    until_pause: usize,
    pause: Duration,
    rest: Duration,
    patience: Duration,
    why: BTreeMap<String, String>,
}

impl Search {
    fn new(leader: Option<String>, order: VecDeque<String>) -> Self {
        let until_pause = order.len();
        Self {
            order,
            named: leader,
            hops: 0,
            until_pause,
            pause: PAUSE_MIN,
            rest: Duration::ZERO,
            patience: PATIENCE,
            why: BTreeMap::new(),
        }
    }

    async fn next(&mut self, until: Instant) -> Option<String> {
        if !self.rest.is_zero() {
            tokio::time::sleep_until((Instant::now() + self.rest).min(until)).await;
            self.rest = Duration::ZERO;
        }
        if let Some(named) = self.named.take() {
            return Some(named);
        }
        if self.until_pause == 0 {
            tokio::time::sleep_until((Instant::now() + self.pause).min(until)).await;
            self.pause = (self.pause * 2).min(PAUSE_MAX);
            self.patience *= 2;
            (self.until_pause, self.hops) = (self.order.len(), 0);
        }
        self.until_pause -= 1;
        let master = self.order.pop_front()?;
        self.order.push_back(master.clone());
        Some(master)
    }

    fn redirected(&mut self, from: String, leader: Option<String>) {
        let why = match &leader {
            Some(leader) => format!("does not lead; names {leader}"),
            None => "does not lead and knows no leader".into(),
        };
        if leader.as_ref() != Some(&from) && self.hops < HOPS_MAX {
            self.hops += 1;
            self.named = leader;
        }
        self.why.insert(from, why);
    }

    fn busy(&mut self, master: String, rest: Duration) {
        self.rest = rest;
        self.why.insert(master.clone(), "busy".into());
        self.named = Some(master);
    }

    fn failed(&mut self, master: String, why: String) {
        self.why.insert(master, why);
    }

    fn report(self) -> Vec<(String, String)> {
        self.why.into_iter().collect()
    }
}
