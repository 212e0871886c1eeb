//! Rules of a step: what can follow what.

use std::collections::BTreeMap;

use proffer_types::limits::{FINISHED_TASKS_MAX, FINISHED_TASKS_PER_FRAMEWORK};
use proffer_types::{Agent, Framework, LaunchId, SessionId, Task};

use super::{Violation, ensure};
use crate::Registry;
use crate::state::Session;

impl Registry {
    /// Whether `after` can follow `before` by any number of entries: nothing goes back, nothing final changes, no
    /// unacknowledged task is lost, no id is used again.
    pub fn check_step(before: &Registry, after: &Registry) -> Result<(), Violation> {
        let (a, b) = (&before.meta, &after.meta);
        ensure("the index does not go back", a.applied <= b.applied, || {
            format!("{} to {}", a.applied, b.applied)
        })?;
        ensure("cluster time does not go back", a.time <= b.time, || {
            format!("{} to {}", a.time.0, b.time.0)
        })?;
        ensure("the id counter does not go back", a.last_id <= b.last_id, || format!("{:x}", b.last_id))?;
        ensure("the history's counter does not go back", a.last_finished <= b.last_finished, String::new)?;
        ensure("a cluster keeps its id", a.cluster.is_none() || a.cluster == b.cluster, String::new)?;
        let retired = retired_since(before, after);
        for task in before.launches() {
            match (after.task(task.launch_id), retired.get(&task.launch_id)) {
                (Some(now), None) => task_step(task, now)?,
                (None, Some(now)) => end_step(task, now)?,
                (None, None) => vanished(task, after)?,
                (Some(_), Some(_)) => {
                    ensure("a task is live or history", false, || format!("{:?}", task.launch_id))?
                }
            }
        }
        new_ids(before, after, &retired)?;
        for agent in before.agents() {
            after.agent(agent.id).map_or(Ok(()), |now| agent_step(agent, now))?;
        }
        for framework in before.frameworks() {
            after.framework(framework.id).map_or(Ok(()), |now| framework_step(framework, now))?;
        }
        for (id, session) in before.sessions.iter() {
            let Some(now) = after.sessions.get(id) else { continue };
            let completed = after.framework(session.framework).is_some_and(Framework::is_completed);
            session_step(*id, session, now, completed)?;
        }
        for (number, task) in after.finished.iter().filter(|(number, _)| **number <= a.last_finished) {
            ensure("history does not change", before.finished.get(number) == Some(task), || {
                format!("{number}")
            })?;
        }
        Ok(())
    }
}

fn retired_since<'a>(before: &Registry, after: &'a Registry) -> BTreeMap<LaunchId, &'a Task> {
    let numbers = before.meta.last_finished.saturating_add(1)..;
    after.finished.range(numbers).map(|(_, task)| (task.launch_id, task)).collect()
}

fn task_step(a: &Task, b: &Task) -> Result<(), Violation> {
    let id = a.launch_id;
    end_step(a, b)?;
    let grew = a.agent_status.as_ref().map(|s| s.task_seq) <= b.agent_status.as_ref().map(|s| s.task_seq);
    ensure("what the agent said is not forgotten", grew, || format!("{id:?}"))?;
    let kill = match (a.kill, b.kill) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(a), Some(b)) => a == b || (b.grace_ms < a.grace_ms && b.agent_seq > a.agent_seq),
    };
    ensure("a kill order stays, or gets shorter", kill, || format!("{id:?}: {:?} then {:?}", a.kill, b.kill))
}

fn end_step(a: &Task, b: &Task) -> Result<(), Violation> {
    let id = a.launch_id;
    let same = a.task_id == b.task_id
        && (a.framework, a.agent, a.digest, a.agent_seq) == (b.framework, b.agent, b.digest, b.agent_seq)
        && (&a.resources, a.group, &a.kind) == (&b.resources, b.group, &b.kind)
        && a.created_at == b.created_at;
    ensure("what a task is does not change", same, || format!("{id:?}"))?;
    let (from, to) = (&a.status, &b.status);
    ensure("a terminal state is final", !from.state.is_terminal() || from == to, || {
        format!("{id:?}: {} then {}", from.state, to.state)
    })?;
    let later = from == to || from.position() < to.position();
    ensure("statuses rise", later, || format!("{id:?}: {:?} then {:?}", from.position(), to.position()))?;
    let along = from == to || from.state.may_become(to.state);
    ensure("states follow the diagram", along, || format!("{id:?}: {} then {}", from.state, to.state))
}

/// A task without any trace: its place in the history must have been needed, or its framework's.
fn vanished(task: &Task, after: &Registry) -> Result<(), Violation> {
    let full = after.counts(task.framework).finished >= FINISHED_TASKS_PER_FRAMEWORK as u64
        || after.finished.len() >= FINISHED_TASKS_MAX
        || after.framework(task.framework).is_none();
    ensure("no task vanishes", full, || format!("{:?} of {:?}", task.launch_id, task.framework))
}

fn new_ids(
    before: &Registry,
    after: &Registry,
    retired: &BTreeMap<LaunchId, &Task>,
) -> Result<(), Violation> {
    let tasks = after.launches().map(|t| t.launch_id).chain(retired.keys().copied());
    let tasks = tasks.filter(|id| before.task(*id).is_none()).map(|id| id.0);
    let agents = after.agents().map(|a| a.id).filter(|id| before.agent(*id).is_none()).map(|id| id.0);
    let frameworks =
        after.frameworks().map(|f| f.id).filter(|id| before.framework(*id).is_none()).map(|id| id.0);
    let sessions =
        after.sessions.iter().map(|(id, _)| *id).filter(|id| !before.sessions.contains(id)).map(|id| id.0);
    for id in tasks.chain(agents).chain(frameworks).chain(sessions) {
        ensure("an id is never used again", id > before.meta.last_id, || format!("{id:x}"))?;
    }
    Ok(())
}

fn agent_step(a: &Agent, b: &Agent) -> Result<(), Violation> {
    let id = a.id;
    ensure("an agent keeps its instance", a.instance == b.instance, || format!("{id:?}"))?;
    let rises = a.last_seq <= b.last_seq && a.attachment <= b.attachment;
    ensure("an agent's numbers rise", rises, || format!("{id:?}"))?;
    // More may be used than there is only because the agent came back with less; then nothing is added.
    let over = b.free().is_none();
    let came_back = a.attachment != b.attachment;
    ensure("no command uses more than there is", !over || came_back || a.used.contains(&b.used), || {
        format!("{id:?}: {} of {}", b.used, b.info.resources)
    })
}

fn framework_step(a: &Framework, b: &Framework) -> Result<(), Violation> {
    let id = a.id;
    let same = (&a.owner, a.origin, &a.info.user, a.registered_at)
        == (&b.owner, b.origin, &b.info.user, b.registered_at);
    ensure("what a framework is does not change", same, || format!("{id:?}"))?;
    let last = !a.is_completed() || (a.state == b.state && a.completion_reason == b.completion_reason);
    ensure("completion is final", last, || format!("{id:?}"))?;
    ensure("sessions rise", a.session <= b.session, || format!("{id:?}"))?;
    ensure("a launch is not forgotten", !a.launched || b.launched, || format!("{id:?}"))
}

fn session_step(id: SessionId, a: &Session, b: &Session, completed: bool) -> Result<(), Violation> {
    ensure("a session's mark rises", a.done_below <= b.done_below, || format!("{id:?}"))?;
    for (seq, answer) in a.answers.iter() {
        let kept = match b.answers.get(seq) {
            Some(now) => now == answer,
            None => *seq < b.done_below || completed,
        };
        ensure("an answer stays until it was seen", kept, || format!("{id:?}: {seq}"))?;
    }
    Ok(())
}
