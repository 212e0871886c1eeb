//! Accept: tasks come to be, and the executors that they need.

use std::sync::Arc;

use proffer_types::command::{AcceptPart, CallId, Operation, Refusal, Rejection};
use proffer_types::event::{Group, LaunchKind};
use proffer_types::{
    AgentId, ClusterTime, FrameworkId, FrameworkState, LaunchId, Reason, Role, Source, SpecDigest, Status,
    Task, TaskId, TaskLaunch, TaskSpec, TaskState,
};

use super::Step;
use super::calls::Reply;
use super::plan::{Batch, Made, Measured, Plan, Runner};
use crate::Change;
use crate::state::SpecUse;

/// What the records of one launch's tasks have in common.
struct Common<'a> {
    framework: FrameworkId,
    agent: AgentId,
    role: &'a Role,
    spec: &'a Measured<'a>,
}

impl Step<'_> {
    /// Rechecks every task against the state as it is now; what the broker believed does not count.
    pub(super) fn accept(&mut self, call: &CallId, atomic: bool, parts: &[AcceptPart]) -> Reply {
        let framework = call.framework;
        let mut plan = Plan::new(self.state, framework, parts);
        let mut placed = Vec::new();
        let mut operations = Vec::new();
        for part in parts {
            let mut remaining = part.offered.clone();
            for operation in &part.operations {
                let batches = Batch::all(operation);
                match operation {
                    Operation::Launch(_) => plan.place_each(part, &mut remaining, &batches, &mut placed),
                    Operation::LaunchGroup(_) => plan.place_all(part, &mut remaining, &batches, &mut placed),
                }
                operations.push((part, operation, batches));
            }
        }
        let made = plan.made;
        let outcomes: Vec<Option<Refusal>> = placed.iter().map(|placed| placed.err()).collect();
        if atomic && outcomes.iter().any(Option::is_some) {
            let outcomes = outcomes.into_iter().map(|outcome| outcome.or(Some(Refusal::Atomic))).collect();
            return Reply { first_launch: LaunchId(0), outcomes, rejected: Some(Rejection::Atomic) };
        }
        // Before the tasks that they run, and so that the launches of all tasks follow one another.
        let made: Vec<Option<LaunchId>> =
            made.iter().map(|made| self.launch_executor(framework, made)).collect();
        let mut first_launch = LaunchId(0);
        let mut placed = placed.into_iter();
        for (part, operation, batches) in &operations {
            let first = LaunchId(self.state.meta.last_id + 1);
            let group = match operation {
                Operation::Launch(_) => None,
                Operation::LaunchGroup(members) => Some(Group { first, size: members.len() as u32 }),
            };
            for batch in batches {
                let common = Common { framework, agent: part.agent, role: &part.role, spec: &batch.spec };
                for task in batch.tasks {
                    let (Some(Ok(runner)), Ok(task)) = (placed.next(), task) else { continue };
                    let kind = match runner {
                        Runner::Agent => LaunchKind::Task,
                        Runner::Executor(launch) => LaunchKind::TaskOf(launch),
                        Runner::Made(number) => LaunchKind::TaskOf(made[number].unwrap_or_default()),
                    };
                    let launch = self.launch(&common, task, group, kind);
                    if first_launch == LaunchId(0) {
                        first_launch = launch.unwrap_or_default();
                    }
                }
            }
        }
        Reply { first_launch, outcomes, rejected: None }
    }

    fn launch_executor(&mut self, framework: FrameworkId, made: &Made<'_>) -> Option<LaunchId> {
        let task_id =
            TaskId::new(made.id.as_str()).expect("names of tasks and executors have the same rules");
        let task = TaskLaunch { task_id, name: String::new(), env: Default::default(), array: None };
        let common = Common { framework, agent: made.agent, role: made.role, spec: &made.spec };
        self.launch(&common, &task, None, LaunchKind::Executor(made.id.clone()))
    }

    /// Makes the record of a task or executor that the plan has placed.
    fn launch(
        &mut self,
        common: &Common<'_>,
        task: &TaskLaunch,
        group: Option<Group>,
        kind: LaunchKind,
    ) -> Option<LaunchId> {
        let Common { framework, agent, role, spec } = *common;
        let resources = spec.spec.resources.clone();
        let agent_seq = self.next_agent_seq(agent)?;
        let record = self.state.agents.get_mut(&agent)?;
        record.used.add(&resources).expect("the plan has done this sum");
        let launch_id = LaunchId(self.mint());
        let (spec, digest) = self.use_spec(framework, spec);
        let record = Task {
            launch_id,
            task_id: task.task_id.clone(),
            name: task.name.clone(),
            framework,
            agent,
            role: role.clone(),
            digest,
            spec,
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
            group,
            kind,
        };
        if !record.is_executor()
            && let Some(framework) = self.state.frameworks.get_mut(&framework)
        {
            framework.live_tasks += 1;
        }
        self.state.index_task(&record);
        self.state.tasks.insert(launch_id, record);
        self.tell(Change::TaskLaunched {
            launch: launch_id,
            framework,
            role: role.clone(),
            agent,
            resources,
        });
        Some(launch_id)
    }

    /// Counts one more launch that refers to the spec; equal specs of a framework are kept once.
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
            record.spec_bytes += new_bytes;
        }
        (shared, spec.digest)
    }
}
