//! An Accept played through before anything is changed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proffer_types::command::{AcceptPart, Operation, Refusal};
use proffer_types::limits::{LIVE_TASKS_PER_FRAMEWORK, SPEC_BYTES_MAX, SPEC_BYTES_PER_FRAMEWORK};
use proffer_types::{
    AgentId, ExecutorId, FrameworkId, LaunchId, Resources, Role, SpecDigest, TaskId, TaskLaunch, TaskSpec,
    features,
};

use crate::Registry;
use crate::state::SpecUse;

/// A spec with what follows from it.
#[derive(Clone, Copy)]
pub(super) struct Measured<'a> {
    pub(super) spec: &'a Arc<TaskSpec>,
    pub(super) digest: SpecDigest,
    pub(super) bytes: u64,
}

impl<'a> Measured<'a> {
    fn of(spec: &'a Arc<TaskSpec>) -> Self {
        Self { spec, digest: spec.digest(), bytes: spec.encoded_bytes() }
    }
}

/// Tasks of one spec.
pub(super) struct Batch<'a> {
    pub(super) spec: Measured<'a>,
    executor: Option<(&'a ExecutorId, Measured<'a>)>,
    pub(super) tasks: &'a [Result<TaskLaunch, Refusal>],
}

impl<'a> Batch<'a> {
    fn of(spec: &'a Arc<TaskSpec>, tasks: &'a [Result<TaskLaunch, Refusal>]) -> Self {
        let executor = spec.executor.as_ref().map(|executor| (&executor.id, Measured::of(&executor.spec)));
        Self { spec: Measured::of(spec), executor, tasks }
    }

    fn executor_name(&self) -> Option<&'a ExecutorId> {
        self.executor.map(|(id, _)| id)
    }

    /// The tasks of an operation, in the order of their outcomes.
    pub(super) fn all(operation: &'a Operation) -> Vec<Self> {
        match operation {
            Operation::Launch(launch) => vec![Self::of(&launch.spec, &launch.tasks)],
            Operation::LaunchGroup(members) => {
                let one = std::slice::from_ref;
                members.iter().map(|member| Self::of(&member.spec, one(&member.task))).collect()
            }
        }
    }
}

/// What will run a task that was placed.
#[derive(Clone, Copy)]
pub(super) enum Runner {
    /// The agent itself.
    Agent,
    /// An executor that is there.
    Executor(LaunchId),
    /// The executor of this number in [`Plan::made`].
    Made(usize),
}

/// An executor that the call makes.
pub(super) struct Made<'a> {
    pub(super) agent: AgentId,
    pub(super) role: &'a Role,
    pub(super) id: &'a ExecutorId,
    pub(super) spec: Measured<'a>,
}

/// The call played through.
pub(super) struct Plan<'s, 'a> {
    state: &'s Registry,
    framework: FrameworkId,
    /// What each reachable agent has free and what is used, after what was accepted so far.
    agents: BTreeMap<AgentId, (Resources, Resources)>,
    names: BTreeSet<&'a TaskId>,
    specs: BTreeSet<SpecDigest>,
    tasks: u64,
    spec_bytes: u64,
    executors: BTreeMap<(AgentId, &'a ExecutorId), usize>,
    pub(super) made: Vec<Made<'a>>,
}

impl<'s, 'a> Plan<'s, 'a> {
    pub(super) fn new(state: &'s Registry, framework: FrameworkId, parts: &[AcceptPart]) -> Self {
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
            executors: BTreeMap::new(),
            made: Vec::new(),
        }
    }

    /// Counts in the tasks of an operation that fit, each by itself.
    pub(super) fn place_each(
        &mut self,
        part: &'a AcceptPart,
        remaining: &mut Resources,
        batches: &[Batch<'a>],
        outcomes: &mut Vec<Result<Runner, Refusal>>,
    ) {
        for batch in batches {
            for task in batch.tasks {
                outcomes.push(match task {
                    Ok(task) => self.place(part, remaining, batch, task),
                    Err(refusal) => Err(*refusal),
                });
            }
        }
    }

    /// Counts in the tasks of a group, or none of them.
    pub(super) fn place_all(
        &mut self,
        part: &'a AcceptPart,
        remaining: &mut Resources,
        batches: &[Batch<'a>],
        outcomes: &mut Vec<Result<Runner, Refusal>>,
    ) {
        let before = (remaining.clone(), self.agents.get(&part.agent).cloned(), self.tasks, self.spec_bytes);
        let made = self.made.len();
        let knows_groups =
            self.state.agent(part.agent).is_none_or(|agent| knows(agent, features::TASK_GROUP));
        let mut group: Vec<Result<Runner, Refusal>> = Vec::with_capacity(batches.len());
        let mut new_specs = Vec::new();
        for batch in batches {
            let new_spec = !self.specs.contains(&batch.spec.digest);
            for task in batch.tasks {
                group.push(match task {
                    Err(refusal) => Err(*refusal),
                    Ok(_) if !knows_groups => Err(Refusal::FeatureUnknown),
                    // Only who runs them all can start them together.
                    Ok(_) if batch.executor_name() != batches[0].executor_name() => Err(Refusal::InvalidSpec),
                    Ok(task) => self.place(part, remaining, batch, task),
                });
            }
            if new_spec {
                new_specs.push(batch.spec.digest);
            }
        }
        if group.iter().any(Result::is_err) {
            let (remaining_before, agent, tasks, spec_bytes) = before;
            *remaining = remaining_before;
            if let Some(agent) = agent {
                self.agents.insert(part.agent, agent);
            }
            (self.tasks, self.spec_bytes) = (tasks, spec_bytes);
            if let Some(executor) = self.made.drain(made..).next() {
                self.executors.remove(&(executor.agent, executor.id));
                new_specs.push(executor.spec.digest);
            }
            self.specs.retain(|digest| !new_specs.contains(digest));
            let tasks = batches.iter().flat_map(|batch| batch.tasks);
            for (outcome, task) in group.iter_mut().zip(tasks) {
                if let (Ok(_), Ok(task)) = (&*outcome, task) {
                    self.names.remove(&task.task_id);
                    *outcome = Err(Refusal::Group);
                }
            }
        }
        outcomes.extend(group);
    }

    /// Counts the task in, with the executor that it needs if that is not there, or says why not.
    fn place(
        &mut self,
        part: &'a AcceptPart,
        remaining: &mut Resources,
        batch: &Batch<'a>,
        task: &'a TaskLaunch,
    ) -> Result<Runner, Refusal> {
        let spec = &batch.spec;
        if spec.spec.resources.is_empty() || spec.bytes > SPEC_BYTES_MAX as u64 {
            return Err(Refusal::InvalidSpec);
        }
        let in_use = self.state.task_by_name(self.framework, &task.task_id).is_some();
        if in_use || self.names.contains(&task.task_id) {
            return Err(Refusal::TaskIdInUse);
        }
        let agent = self.state.agent(part.agent).ok_or(Refusal::AgentUnavailable)?;
        let (runner, new) = self.runner(part, batch)?;
        let specs = || [Some(spec), new.as_ref().map(|made| &made.spec)].into_iter().flatten();
        if !specs().flat_map(|measured| &measured.spec.needs).all(|feature| knows(agent, feature)) {
            return Err(Refusal::FeatureUnknown);
        }
        let (free, used) = self.agents.get(&part.agent).ok_or(Refusal::AgentUnavailable)?;
        let (mut left, mut free, mut used) = (remaining.clone(), free.clone(), used.clone());
        for wanted in specs().map(|measured| &measured.spec.resources) {
            left.sub(wanted).map_err(|_| Refusal::NotOffered)?;
            free.sub(wanted).map_err(|_| Refusal::AgentUnavailable)?;
            used.add(wanted).map_err(|_| Refusal::AgentUnavailable)?;
        }
        let spec_bytes = self.spec_bytes + specs().map(|measured| self.new_bytes(measured)).sum::<u64>();
        let tasks = self.tasks + specs().count() as u64;
        if tasks > LIVE_TASKS_PER_FRAMEWORK as u64 || spec_bytes > SPEC_BYTES_PER_FRAMEWORK as u64 {
            return Err(Refusal::LimitReached);
        }
        self.specs.extend(specs().map(|measured| measured.digest));
        *remaining = left;
        self.agents.insert(part.agent, (free, used));
        self.names.insert(&task.task_id);
        (self.tasks, self.spec_bytes) = (tasks, spec_bytes);
        if let Some(made) = new {
            self.executors.insert((made.agent, made.id), self.made.len());
            self.made.push(made);
        }
        Ok(runner)
    }

    /// Who will run the task, and what is to be made for it.
    fn runner(&self, part: &'a AcceptPart, batch: &Batch<'a>) -> Result<(Runner, Option<Made<'a>>), Refusal> {
        let Some((id, spec)) = batch.executor else { return Ok((Runner::Agent, None)) };
        let same = |digest| if digest == spec.digest { Ok(()) } else { Err(Refusal::ExecutorDiffers) };
        if let Some(number) = self.executors.get(&(part.agent, id)) {
            same(self.made[*number].spec.digest)?;
            return Ok((Runner::Made(*number), None));
        }
        let there = self.state.executor(self.framework, part.agent, id);
        if let Some(there) = there.filter(|executor| executor.kill.is_none()) {
            same(there.digest)?;
            return Ok((Runner::Executor(there.launch_id), None));
        }
        if spec.spec.resources.is_empty() || spec.spec.executor.is_some() {
            return Err(Refusal::InvalidSpec);
        }
        let made = Made { agent: part.agent, role: &part.role, id, spec };
        Ok((Runner::Made(self.made.len()), Some(made)))
    }

    /// What the spec adds to those that the framework has in use.
    fn new_bytes(&self, spec: &Measured<'_>) -> u64 {
        let is_new = |used: &SpecUse| used.tasks == 0;
        let new = self.state.specs.get(&(self.framework, spec.digest)).is_none_or(is_new)
            && !self.specs.contains(&spec.digest);
        if new { spec.bytes } else { 0 }
    }
}

fn knows(agent: &proffer_types::Agent, feature: &str) -> bool {
    agent.info.features.contains(feature)
}
