//! Accept: tasks come to be.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proffer_types::command::{AcceptPart, CallId, Refusal, Rejection};
use proffer_types::limits::{LIVE_TASKS_PER_FRAMEWORK, SPEC_BYTES_MAX, SPEC_BYTES_PER_FRAMEWORK};
use proffer_types::{
    AgentId, ClusterTime, FrameworkId, FrameworkState, LaunchId, Reason, Resources, Source, SpecDigest,
    Status, Task, TaskId, TaskLaunch, TaskSpec, TaskState,
};

use super::Step;
use super::calls::Reply;
use crate::state::SpecUse;
use crate::{Change, Registry};

/// A spec with what follows from it.
struct Measured<'a> {
    spec: &'a Arc<TaskSpec>,
    digest: SpecDigest,
    bytes: u64,
}

impl<'a> Measured<'a> {
    fn of(spec: &'a Arc<TaskSpec>) -> Self {
        Self { spec, digest: spec.digest(), bytes: spec.encoded_bytes() }
    }
}

/// The call played through before anything is changed.
struct Plan<'a> {
    state: &'a Registry,
    framework: FrameworkId,
    /// What each reachable agent has free and what is used, after what was accepted so far.
    agents: BTreeMap<AgentId, (Resources, Resources)>,
    names: BTreeSet<&'a TaskId>,
    specs: BTreeSet<SpecDigest>,
    tasks: u64,
    spec_bytes: u64,
}

impl<'a> Plan<'a> {
    fn new(state: &'a Registry, framework: FrameworkId, parts: &[AcceptPart]) -> Self {
        let agents =
            parts.iter().filter_map(|part| state.agent(part.agent)).filter(|agent| agent.is_reachable());
        Self {
            state,
            framework,
            agents: agents
                .filter_map(|agent| Some((agent.id, (agent.free()?, agent.used.clone()))))
                .collect(),
            names: BTreeSet::new(),
            specs: BTreeSet::new(),
            tasks: state.counts(framework).tasks,
            spec_bytes: state.framework(framework).map_or(0, |f| f.spec_bytes),
        }
    }

    /// Counts the task in, or says why not.
    fn place(
        &mut self,
        part: &AcceptPart,
        remaining: &mut Resources,
        spec: &Measured<'_>,
        task: &'a TaskLaunch,
    ) -> Result<(), Refusal> {
        let wanted = &spec.spec.resources;
        if wanted.is_empty() || spec.bytes > SPEC_BYTES_MAX as u64 {
            return Err(Refusal::InvalidSpec);
        }
        let in_use = self.state.task_by_name(self.framework, &task.task_id).is_some();
        if in_use || self.names.contains(&task.task_id) {
            return Err(Refusal::TaskIdInUse);
        }
        let agent = self.state.agent(part.agent).ok_or(Refusal::AgentUnavailable)?;
        let (free, used) = self.agents.get_mut(&part.agent).ok_or(Refusal::AgentUnavailable)?;
        if !spec.spec.needs.iter().all(|feature| agent.info.features.contains(feature)) {
            return Err(Refusal::FeatureUnknown);
        }
        let left = remaining.checked_sub(wanted).map_err(|_| Refusal::NotOffered)?;
        let free_left = free.checked_sub(wanted).map_err(|_| Refusal::AgentUnavailable)?;
        let used_now = used.checked_add(wanted).map_err(|_| Refusal::AgentUnavailable)?;
        let is_new = |used: &SpecUse| used.tasks == 0;
        let new_spec = self.state.specs.get(&(self.framework, spec.digest)).is_none_or(is_new)
            && !self.specs.contains(&spec.digest);
        let spec_bytes = self.spec_bytes + if new_spec { spec.bytes } else { 0 };
        if self.tasks >= LIVE_TASKS_PER_FRAMEWORK as u64 || spec_bytes > SPEC_BYTES_PER_FRAMEWORK as u64 {
            return Err(Refusal::LimitReached);
        }
        (*remaining, *free, *used) = (left, free_left, used_now);
        self.names.insert(&task.task_id);
        self.specs.insert(spec.digest);
        self.tasks += 1;
        self.spec_bytes = spec_bytes;
        Ok(())
    }
}

impl Step<'_> {
    /// Rechecks every task against the state as it is now; what the broker believed does not count.
    pub(super) fn accept(&mut self, call: &CallId, atomic: bool, parts: &[AcceptPart]) -> Reply {
        let framework = call.framework;
        let mut plan = Plan::new(self.state, framework, parts);
        let mut outcomes = Vec::new();
        let mut specs = Vec::new();
        for part in parts {
            let mut remaining = part.offered.clone();
            for launch in &part.launches {
                let spec = Measured::of(&launch.spec);
                for task in &launch.tasks {
                    let placed = match task {
                        Ok(task) => plan.place(part, &mut remaining, &spec, task),
                        Err(refusal) => Err(*refusal),
                    };
                    outcomes.push(placed.err());
                }
                specs.push(spec);
            }
        }
        if atomic && outcomes.iter().any(Option::is_some) {
            let outcomes = outcomes.into_iter().map(|outcome| outcome.or(Some(Refusal::Atomic))).collect();
            return Reply { first_launch: LaunchId(0), outcomes, rejected: Some(Rejection::Atomic) };
        }
        let mut first_launch = LaunchId(0);
        let mut accepted = outcomes.iter().map(Option::is_none);
        let launches = parts.iter().flat_map(|part| part.launches.iter().map(move |launch| (part, launch)));
        for ((part, launch), spec) in launches.zip(&specs) {
            for task in &launch.tasks {
                if accepted.next() == Some(true)
                    && let Ok(task) = task
                    && let Some(id) = self.launch(framework, part, spec, task)
                    && first_launch == LaunchId(0)
                {
                    first_launch = id;
                }
            }
        }
        Reply { first_launch, outcomes, rejected: None }
    }

    /// Makes the record of a task that the plan has placed.
    fn launch(
        &mut self,
        framework: FrameworkId,
        part: &AcceptPart,
        spec: &Measured<'_>,
        task: &TaskLaunch,
    ) -> Option<LaunchId> {
        let agent = part.agent;
        let resources = spec.spec.resources.clone();
        let agent_seq = self.next_agent_seq(agent)?;
        let record = self.state.agents.get_mut(&agent)?;
        record.used.add(&resources).expect("the plan has done this sum");
        let launch_id = LaunchId(self.mint());
        let spec = self.use_spec(framework, spec);
        let record = Task {
            launch_id,
            task_id: task.task_id.clone(),
            name: task.name.clone(),
            framework,
            agent,
            role: part.role.clone(),
            digest: spec.1,
            spec: spec.0,
            env: task.env.clone(),
            array: task.array,
            resources: resources.clone(),
            agent_seq,
            kill: None,
            status: Status::new(TaskState::Staging, Reason::None, Source::Master),
            agent_status: None,
            pending: Vec::new(),
            created_at: self.now(),
            created_wall_ms: self.entry.wall_ms,
            started_wall_ms: None,
            finished_wall_ms: None,
        };
        self.state.index_task(&record);
        self.state.tasks.insert(launch_id, record);
        let role = part.role.clone();
        self.tell(Change::TaskLaunched { launch: launch_id, framework, role, agent, resources });
        Some(launch_id)
    }

    /// Counts one more task that refers to the spec; equal specs of a framework are kept once.
    fn use_spec(&mut self, framework: FrameworkId, spec: &Measured<'_>) -> (Arc<TaskSpec>, SpecDigest) {
        let key = (framework, spec.digest);
        if !self.state.specs.contains(&key) {
            let used = SpecUse { spec: spec.spec.clone(), bytes: spec.bytes, tasks: 0, finished: 0 };
            self.state.specs.insert(key, used);
        }
        let mut new_bytes = 0;
        let mut shared = spec.spec.clone();
        if let Some(used) = self.state.specs.get_mut(&key) {
            if used.tasks == 0 {
                new_bytes = used.bytes;
            }
            used.tasks += 1;
            shared = used.spec.clone();
        }
        if let Some(record) = self.state.frameworks.get_mut(&framework) {
            record.launched = true;
            // It may have left since it asked; from its first launch on it waits for its tasks.
            if record.info.ends_with_tasks
                && let FrameworkState::Disconnected { deadline } = &mut record.state
            {
                *deadline = ClusterTime(u64::MAX);
            }
            record.live_tasks += 1;
            record.spec_bytes += new_bytes;
        }
        (shared, spec.digest)
    }
}
