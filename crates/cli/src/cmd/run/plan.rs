//! What is left to launch, what runs, what came of it. Pure: the loop around it speaks to the cluster.

use std::collections::{BTreeMap, VecDeque};

use proffer_types::{Resources, Status, TaskId, TaskLaunch, TaskState};

/// Tasks whose output is not gathered yet: far below the finished tasks that the cluster remembers of a framework
/// (1,000), because the output of a forgotten task cannot be asked for.
const UNGATHERED_MAX: usize = 512;
/// Once there were that many, offers are wanted again when so few are left: not for every single one.
const UNGATHERED_FEW: usize = UNGATHERED_MAX / 2;
/// A task that was never started (DROPPED) is launched again this often.
const ATTEMPTS_MAX: u32 = 10;
/// Tasks in one call: the cluster's limit is 10,000, and offers seldom hold more.
const LAUNCH_MAX: usize = 1_000;

/// One of the N tasks, in one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Copy {
    /// From 1.
    pub(crate) index: u32,
    attempt: u32,
}

/// A copy that was given to the cluster.
#[derive(Clone, Debug)]
struct Given {
    copy: Copy,
    /// Whether the cluster has confirmed the launch.
    launched: bool,
    /// Whether its program may have run, so that there may be output.
    started: bool,
}

/// How one of the N ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct End {
    /// Its name in the last attempt.
    pub(crate) task: TaskId,
    /// Its last status; none if the cluster has forgotten it.
    pub(crate) status: Option<Status>,
}

/// What a status means for the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing to do.
    Nothing,
    /// Its output is there to be read.
    Gather,
    /// It will be launched again.
    Again,
}

/// The state of one `run`.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    name: String,
    /// Whether the tasks are numbered.
    array: bool,
    total: u32,
    waiting: VecDeque<Copy>,
    given: BTreeMap<TaskId, Given>,
    ended: BTreeMap<u32, End>,
    /// Outputs being read.
    gathering: usize,
    stopping: bool,
}

impl Plan {
    pub(crate) fn new(name: &str, array: Option<u32>) -> Self {
        let total = array.unwrap_or(1);
        Self {
            name: name.to_owned(),
            array: array.is_some(),
            total,
            waiting: (1..=total).map(|index| Copy { index, attempt: 1 }).collect(),
            given: BTreeMap::new(),
            ended: BTreeMap::new(),
            gathering: 0,
            stopping: false,
        }
    }

    pub(crate) fn total(&self) -> u32 {
        self.total
    }

    /// Takes as many copies as `offered` holds.
    pub(crate) fn take(&mut self, offered: &Resources, each: &Resources) -> Vec<Copy> {
        let mut left = offered.clone();
        let mut copies = Vec::new();
        while !self.stopping && copies.len() < LAUNCH_MAX && self.unsettled() + copies.len() < UNGATHERED_MAX
        {
            let Ok(rest) = left.checked_sub(each) else { break };
            let Some(copy) = self.waiting.pop_front() else { break };
            left = rest;
            copies.push(copy);
        }
        for copy in &copies {
            self.given.insert(self.task_id(*copy), Given { copy: *copy, launched: false, started: false });
        }
        copies
    }

    /// What to tell the cluster of a copy.
    pub(crate) fn launch(&self, copy: Copy) -> TaskLaunch {
        TaskLaunch {
            task_id: self.task_id(copy),
            name: self.name.clone(),
            env: BTreeMap::new(),
            array: self.array.then_some((copy.index, self.total)),
        }
    }

    /// The launch is committed.
    pub(crate) fn launched(&mut self, copy: Copy) {
        if let Some(given) = self.given.get_mut(&self.task_id(copy)) {
            given.launched = true;
        }
    }

    /// The launch was refused: it waits again, under another name if the name was the reason.
    pub(crate) fn refused(&mut self, copy: Copy, name_in_use: bool) {
        if self.given.remove(&self.task_id(copy)).is_some() && !self.stopping {
            self.waiting.push_front(Copy { attempt: copy.attempt + u32::from(name_in_use), ..copy });
        }
    }

    /// A task has a new status.
    pub(crate) fn on_status(&mut self, task: &TaskId, status: &Status) -> Step {
        let Some(given) = self.given.get_mut(task) else { return Step::Nothing };
        given.launched = true;
        let ran = matches!(status.state, TaskState::Running | TaskState::Killing)
            || status.exit_code.is_some()
            || status.signal.is_some();
        let gather = ran && !given.started;
        given.started |= ran;
        self.gathering += usize::from(gather);
        let copy = given.copy;
        if status.state.is_terminal() {
            self.given.remove(task);
            if status.state == TaskState::Dropped && copy.attempt < ATTEMPTS_MAX && !self.stopping {
                self.waiting.push_back(Copy { attempt: copy.attempt + 1, ..copy });
                return Step::Again;
            }
            self.ended.insert(copy.index, End { task: task.clone(), status: Some(status.clone()) });
        }
        if gather { Step::Gather } else { Step::Nothing }
    }

    /// The cluster retains the task no more, and nobody can tell how it ended.
    pub(crate) fn on_gone(&mut self, task: &TaskId) {
        if let Some(given) = self.given.remove(task) {
            self.ended.insert(given.copy.index, End { task: task.clone(), status: None });
        }
    }

    /// One output is complete.
    pub(crate) fn gathered(&mut self) {
        self.gathering -= 1;
    }

    /// Launches nothing more.
    pub(crate) fn stop(&mut self) {
        self.stopping = true;
        self.waiting.clear();
    }

    /// The tasks that the cluster has or may have.
    pub(crate) fn live(&self) -> impl Iterator<Item = &TaskId> {
        self.given.keys()
    }

    /// Whether offers are of use now; `wanted` is whether they were until now.
    pub(crate) fn wants_offers(&self, wanted: bool) -> bool {
        !self.waiting.is_empty() && self.unsettled() < if wanted { UNGATHERED_MAX } else { UNGATHERED_FEW }
    }

    /// Whether something waits while nothing runs.
    pub(crate) fn starves(&self) -> bool {
        !self.waiting.is_empty() && self.given.is_empty()
    }

    /// Whether everything is committed.
    pub(crate) fn all_launched(&self) -> bool {
        self.waiting.is_empty() && self.given.values().all(|given| given.launched)
    }

    /// Whether everything has ended and is told.
    pub(crate) fn is_over(&self) -> bool {
        self.waiting.is_empty() && self.given.is_empty() && self.gathering == 0
    }

    /// How the tasks ended, by index.
    pub(crate) fn ends(&self) -> &BTreeMap<u32, End> {
        &self.ended
    }

    fn unsettled(&self) -> usize {
        self.given.len().max(self.gathering)
    }

    fn task_id(&self, copy: Copy) -> TaskId {
        let mut id = self.name.clone();
        if self.array {
            id = format!("{id}.{}", copy.index);
        }
        if copy.attempt > 1 {
            id = format!("{id}-{}", copy.attempt);
        }
        TaskId::new(&id).expect("the name was checked with room for the longest suffix")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proffer_types::{Reason, Source};

    fn r(text: &str) -> Resources {
        Resources::parse(text).unwrap()
    }

    fn status(state: TaskState) -> Status {
        Status::new(state, Reason::None, Source::Agent)
    }

    fn id(plan: &Plan, copy: Copy) -> TaskId {
        plan.launch(copy).task_id
    }

    #[test]
    fn an_offer_is_filled_and_no_more() {
        let mut plan = Plan::new("x", Some(100));
        let each = r("cpus:0.1;mem:64MiB");
        assert_eq!(plan.take(&r("cpus:1.9;mem:1GiB"), &each).len(), 16, "memory is the limit");
        assert_eq!(plan.take(&r("cpus:0.05;mem:1GiB"), &each).len(), 0);
        assert_eq!(plan.take(&r("cpus:100;mem:100GiB"), &each).len(), 84);
        assert!(!plan.wants_offers(true) && !plan.all_launched());
    }

    #[test]
    fn output_that_is_not_gathered_holds_launches_back() {
        let mut plan = Plan::new("x", Some(2_000));
        let (offer, each) = (r("cpus:1000"), r("cpus:0.1"));
        let copies = plan.take(&offer, &each);
        assert_eq!(copies.len(), UNGATHERED_MAX);
        assert!(!plan.wants_offers(true) && plan.take(&offer, &each).is_empty());
        for copy in &copies {
            assert_eq!(plan.on_status(&id(&plan, *copy), &status(TaskState::Running)), Step::Gather);
            assert_eq!(plan.on_status(&id(&plan, *copy), &status(TaskState::Finished)), Step::Nothing);
        }
        assert!(!plan.wants_offers(true), "all have ended, no output is read");
        plan.gathered();
        assert!(
            plan.wants_offers(true) && !plan.wants_offers(false),
            "one is not worth asking for offers again"
        );
        assert_eq!(plan.take(&offer, &each).len(), 1);
        (0..UNGATHERED_FEW).for_each(|_| plan.gathered());
        assert!(plan.wants_offers(false));
    }

    #[test]
    fn what_never_started_is_launched_again_under_another_name() {
        let mut plan = Plan::new("x", None);
        let each = r("cpus:1");
        for attempt in 1..ATTEMPTS_MAX {
            let copy = plan.take(&each, &each)[0];
            let name = if attempt == 1 { "x".to_owned() } else { format!("x-{attempt}") };
            assert_eq!(id(&plan, copy).as_str(), name);
            assert_eq!(plan.on_status(&id(&plan, copy), &status(TaskState::Dropped)), Step::Again);
        }
        let copy = plan.take(&each, &each)[0];
        assert_eq!(plan.on_status(&id(&plan, copy), &status(TaskState::Dropped)), Step::Nothing);
        assert!(plan.is_over(), "but not for ever");
        assert_eq!(plan.ends()[&1].status.as_ref().unwrap().state, TaskState::Dropped);
    }

    #[test]
    fn a_refused_launch_waits_again() {
        let mut plan = Plan::new("x", Some(3));
        let each = r("cpus:1");
        let copies = plan.take(&r("cpus:3"), &each);
        plan.launched(copies[0]);
        plan.refused(copies[1], false);
        plan.refused(copies[2], true);
        assert!(plan.wants_offers(true) && !plan.all_launched());
        let names: Vec<_> =
            plan.take(&r("cpus:3"), &each).into_iter().map(|copy| id(&plan, copy).to_string()).collect();
        assert_eq!(names, ["x.3-2", "x.2"]);
    }

    #[test]
    fn nothing_is_launched_once_it_stops() {
        let mut plan = Plan::new("x", Some(3));
        let each = r("cpus:1");
        let copies = plan.take(&r("cpus:2"), &each);
        plan.stop();
        plan.refused(copies[1], false);
        assert_eq!(plan.live().count(), 1);
        assert!(plan.take(&r("cpus:9"), &each).is_empty() && !plan.is_over());
        plan.on_status(&id(&plan, copies[0]), &status(TaskState::Killed));
        assert!(plan.is_over());
    }

    #[test]
    fn output_is_gathered_of_whatever_ran_however_late_that_is_told() {
        let mut plan = Plan::new("x", Some(2));
        let each = r("cpus:1");
        let copies = plan.take(&r("cpus:2"), &each);
        let exited = Status { exit_code: Some(7), ..status(TaskState::Failed) };
        assert_eq!(plan.on_status(&id(&plan, copies[0]), &exited), Step::Gather);
        assert_eq!(plan.on_status(&id(&plan, copies[1]), &status(TaskState::Failed)), Step::Nothing);
        assert!(!plan.is_over());
        plan.gathered();
        assert!(plan.is_over());
    }
}
