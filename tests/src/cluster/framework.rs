//! A framework as a test plays it: it launches what it is told to, and remembers every status.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proffer_client::{
    CallError, Event, EventStream, Handle, Launch, Member, Offer, Operation, Options, Part, RefusedTask,
    Scheduler,
};
use proffer_types::{
    AgentId, ExecutorId, FrameworkId, FrameworkInfo, LaunchId, Resources, Role, Status, TaskId, TaskLaunch,
    TaskSpec, TaskState,
};
use tokio::time::{Instant, timeout_at};

/// A framework called `name` that outlives its connection by a minute.
pub fn info(name: &str) -> FrameworkInfo {
    FrameworkInfo {
        name: name.into(),
        roles: vec![Role::star()],
        failover_timeout_ms: 60_000,
        ..FrameworkInfo::default()
    }
}

/// A task with these resources.
///
/// # Panics
/// If they cannot be read.
pub fn spec(resources: &str, argv: &[&str]) -> Arc<TaskSpec> {
    Arc::new(TaskSpec {
        argv: argv.iter().map(|word| (*word).to_owned()).collect(),
        resources: Resources::parse(resources).expect("resources"),
        kill_grace_ms: 1_000,
        ..TaskSpec::default()
    })
}

/// A shell script as a small task.
pub fn shell(script: &str) -> Arc<TaskSpec> {
    spec("cpus:0.1;mem:32MiB", &["/bin/sh", "-c", script])
}

/// A connected framework.
#[derive(Debug)]
pub struct Framework {
    /// For calls of its own.
    pub handle: Handle,
    /// Every status told, in order.
    pub told: Vec<(TaskId, LaunchId, Status)>,
    /// Agents told as lost.
    pub lost: Vec<AgentId>,
    /// The offers it holds.
    pub offers: Vec<Offer>,
    /// The newest status of each task, from updates and snapshots alike.
    pub newest: BTreeMap<TaskId, Status>,
    /// Executors that ended, and how.
    pub executors_ended: Vec<(ExecutorId, Status)>,
    /// What executors sent.
    pub messages: Vec<(ExecutorId, Vec<u8>)>,
    events: EventStream,
}

impl Framework {
    /// Subscribes.
    ///
    /// # Panics
    /// If no leader answers.
    pub async fn connect(masters: &[String], info: FrameworkInfo) -> Self {
        let options = Options { connect_timeout: super::READY_LIMIT, ..Options::default() };
        Self::connect_with(masters, info, options).await
    }

    /// Subscribes, as an existing framework perhaps.
    ///
    /// # Panics
    /// If no leader answers.
    pub async fn connect_with(masters: &[String], info: FrameworkInfo, options: Options) -> Self {
        let connected = Scheduler::connect(masters, info, options).await;
        let (handle, events) = connected.expect("a connected framework");
        let (told, lost, offers, newest, executors_ended, messages) = Default::default();
        Self { handle, told, lost, offers, newest, executors_ended, messages, events }
    }

    /// Its id.
    pub fn id(&self) -> FrameworkId {
        self.handle.identity().framework
    }

    /// Waits for an event and takes note of it.
    ///
    /// # Panics
    /// If none comes before `until`, or the subscription ends.
    pub async fn step(&mut self, what: &str, until: Instant) {
        let event = timeout_at(until, self.events.next()).await;
        let event = event.unwrap_or_else(|_| panic!("{what}: not in time; told so far: {:#?}", self.told));
        match event.unwrap_or_else(|ended| panic!("{what}: {ended}")) {
            Event::Offers(offers) => self.offers.extend(offers),
            Event::Rescinded(ids) => self.offers.retain(|offer| !ids.contains(&offer.id)),
            Event::Disconnected => self.offers.clear(),
            Event::Update(view) => {
                self.newest.insert(view.task.clone(), view.status.clone());
                self.told.push((view.task, view.launch, view.status));
            }
            Event::Synced { changed, .. } => {
                self.newest.extend(changed.into_iter().map(|view| (view.task, view.status)));
            }
            Event::AgentLost { agent, .. } => self.lost.push(agent),
            Event::ExecutorEnded { executor, status, .. } => self.executors_ended.push((executor, *status)),
            Event::Message { executor, data, .. } => self.messages.push((executor, data)),
            Event::Subscribed { .. } | Event::Reconciled { .. } => {}
        }
    }

    /// Goes on until `look` finds something.
    ///
    /// # Panics
    /// If it does not within `limit`.
    pub async fn until<T>(&mut self, what: &str, limit: Duration, look: impl Fn(&Self) -> Option<T>) -> T {
        let deadline = Instant::now() + limit;
        loop {
            match look(self) {
                Some(found) => return found,
                None => self.step(what, deadline).await,
            }
        }
    }

    /// Launches one task on the first offer that is large enough (and of `agent`, if one is named).
    ///
    /// # Panics
    /// If there is no such offer within `limit`, or the launch is refused.
    pub async fn launch(
        &mut self,
        limit: Duration,
        task: &str,
        spec: &Arc<TaskSpec>,
        agent: Option<AgentId>,
    ) {
        let deadline = Instant::now() + limit;
        // Its executor may not be there yet.
        let executor = spec.executor.as_ref().map(|executor| &executor.spec.resources);
        let needed = executor.map_or(Ok(spec.resources.clone()), |own| own.checked_add(&spec.resources));
        let needed = needed.expect("no more than can be");
        loop {
            let fits = |offer: &Offer| {
                agent.is_none_or(|agent| agent == offer.agent) && offer.resources.checked_sub(&needed).is_ok()
            };
            let Some(at) = self.offers.iter().position(fits) else {
                self.step("an offer", deadline).await;
                continue;
            };
            let offer = self.offers.swap_remove(at);
            let launch = Launch { spec: spec.clone(), tasks: vec![named(task)] };
            match self.handle.launch(&offer, launch, Some(Duration::ZERO)).await {
                Ok(accepted) => {
                    let outcome = accepted.tasks().next().expect("one task").clone();
                    outcome.unwrap_or_else(|refused| panic!("{task}: {refused}"));
                    return;
                }
                // The offer is gone with its leader.
                Err(CallError::Refused(refused)) if refused.reason == "INVALID_OFFER" => {}
                Err(error) => panic!("{task}: {error}"),
            }
        }
    }

    /// Does something with the first offer that holds at least `needed` (and is of `agent`, if one is named).
    ///
    /// # Panics
    /// If there is no such offer within `limit`, or the call fails.
    pub async fn operate(
        &mut self,
        limit: Duration,
        needed: &str,
        operation: Operation,
        agent: Option<AgentId>,
    ) -> Vec<Result<LaunchId, RefusedTask>> {
        let needed = Resources::parse(needed).expect("resources");
        let deadline = Instant::now() + limit;
        loop {
            let fits = |offer: &Offer| {
                agent.is_none_or(|agent| agent == offer.agent) && offer.resources.checked_sub(&needed).is_ok()
            };
            let Some(at) = self.offers.iter().position(fits) else {
                self.step("an offer", deadline).await;
                continue;
            };
            let offer = self.offers.swap_remove(at);
            let parts = vec![Part { offers: vec![offer.id], operations: vec![operation.clone()] }];
            match self.handle.accept(parts, false, Some(Duration::ZERO)).await {
                Ok(accepted) => return accepted.tasks().cloned().collect(),
                // The offer is gone with its leader.
                Err(CallError::Refused(refused)) if refused.reason == "INVALID_OFFER" => {}
                Err(error) => panic!("{operation:?}: {error}"),
            }
        }
    }

    /// Launches tasks as a group.
    ///
    /// # Panics
    /// If one is refused.
    pub async fn launch_group(&mut self, limit: Duration, needed: &str, members: &[(&str, Arc<TaskSpec>)]) {
        let member = |(task, spec): &(&str, Arc<TaskSpec>)| Member { spec: spec.clone(), task: named(task) };
        let operation = Operation::LaunchGroup(members.iter().map(member).collect());
        for outcome in self.operate(limit, needed, operation, None).await {
            outcome.unwrap_or_else(|refused| panic!("{refused}"));
        }
    }

    /// Asks for a task's end, with its own grace.
    ///
    /// # Panics
    /// If that is not committed.
    pub async fn kill(&self, task: &str) {
        let id = TaskId::new(task).expect("a task's name");
        self.handle.kill(&id, None).await.unwrap_or_else(|error| panic!("kill {task}: {error}"));
    }

    /// Gives all offers back, not to be seen again for a while.
    ///
    /// # Panics
    /// If the call fails.
    pub async fn decline_all(&mut self, filter: Duration) {
        let ids: Vec<_> = self.offers.drain(..).map(|offer| offer.id).collect();
        if ids.is_empty() {
            return;
        }
        self.handle.decline(ids, Some(filter)).await.expect("declined");
    }

    /// The newest status of a task.
    pub fn status(&self, task: &str) -> Option<&Status> {
        self.newest.get(&TaskId::new(task).ok()?)
    }

    /// Waits until a task is in this state.
    ///
    /// # Panics
    /// If it is not within `limit`, or if it can be no more.
    pub async fn state(&mut self, limit: Duration, task: &str, state: TaskState) -> Status {
        let what = format!("{task} becomes {state}");
        let deadline = Instant::now() + limit;
        loop {
            match self.status(task) {
                Some(status) if status.state == state => return status.clone(),
                Some(status) if status.state.is_terminal() => panic!("{what}: it is {status:?}"),
                _ => self.step(&what, deadline).await,
            }
        }
    }

    /// Waits until a task has ended.
    ///
    /// # Panics
    /// If it has not within `limit`.
    pub async fn end_of(&mut self, limit: Duration, task: &str) -> Status {
        let ended = |this: &Self| this.status(task).filter(|status| status.state.is_terminal()).cloned();
        self.until(&format!("the end of {task}"), limit, ended).await
    }
}

/// A task of this name with nothing of its own.
///
/// # Panics
/// If that is no name.
pub fn named(task: &str) -> TaskLaunch {
    TaskLaunch {
        task_id: TaskId::new(task).expect("a task's name"),
        name: String::new(),
        env: BTreeMap::new(),
        array: None,
    }
}
