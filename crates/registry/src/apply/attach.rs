//! How an agent and its record come to agree when it opens its session.

use std::collections::{BTreeMap, BTreeSet};

use proffer_types::command::{Attach, Rejection};
use proffer_types::{AgentState, LaunchId, Reason, Status, Task, TaskState};

use super::Step;
use super::tasks::is_news;
use crate::state::agent_task_seq;
use crate::{Change, Registry};

/// What becomes of a task whose agent attaches.
enum Fate {
    /// The agent's newer status is taken.
    News(Status),
    /// It was UNREACHABLE and runs: its last state is said again.
    Returned,
    /// It ends so.
    End(TaskState, Reason),
}

/// What an attachment changes.
#[derive(Default)]
struct Resolution {
    fates: Vec<(LaunchId, Fate)>,
    forget: Vec<LaunchId>,
    confirm: Vec<(LaunchId, u32)>,
}

impl Step<'_> {
    pub(super) fn attach_agent(&mut self, attach: &Attach) -> Result<(), Rejection> {
        let record = self.state.agent(attach.agent).ok_or(Rejection::UnknownAgent)?;
        if record.instance != attach.instance {
            return Err(Rejection::WrongInstance);
        }
        let rebooted = record.boot_id != attach.boot_id;
        if !rebooted {
            // It has seen orders that this cluster never gave: it is not the agent of this record.
            if attach.last_seq > record.last_seq {
                return Err(Rejection::WrongInstance);
            }
            if attach.held.is_none()
                && attach.digest != self.state.digest_of_agent(attach.agent, attach.last_seq)
            {
                return Err(Rejection::ListingNeeded);
            }
        }
        let returned = !record.is_reachable();
        let (before, after) = (&record.info, &attach.info);
        let info_changed = before.resources != after.resources || before.attributes != after.attributes;
        let resolution = resolve(self.state, attach, rebooted, returned);

        let Some(record) = self.state.agents.get_mut(&attach.agent) else {
            return Err(Rejection::UnknownAgent);
        };
        record.info = attach.info.clone();
        record.boot_id = attach.boot_id;
        record.state = AgentState::Reachable;
        record.attachment += 1;
        let (agent, attachment) = (record.id, record.attachment);
        let Resolution { fates, forget, confirm } = resolution;
        self.tell(Change::AgentAttached { agent, attachment, forget, confirm, info_changed, returned });
        let mut broken = BTreeMap::new();
        for (launch, fate) in fates {
            match fate {
                Fate::News(status) => self.agent_status(launch, &status),
                Fate::Returned => self.repeat_agent_status(launch),
                Fate::End(state, reason) => {
                    if let Some(group) = self.state.task(launch).and_then(|task| task.group) {
                        broken.insert(group.first, (group, state));
                    }
                    self.master_status(launch, state, reason);
                }
            }
        }
        // A group that has lost a member here must not start, or go on, without it.
        for (group, state) in broken.into_values() {
            let started = state != TaskState::Dropped;
            let reason = if started { Reason::GroupEnded } else { Reason::GroupNotStarted };
            group.launches().for_each(|launch| self.order_kill(launch, None, reason));
        }
        Ok(())
    }
}

/// Compares what the agent holds with what the record says it should.
fn resolve(state: &Registry, attach: &Attach, rebooted: bool, returned: bool) -> Resolution {
    let mut resolution = Resolution::default();
    let held = attach.held.as_ref().map(|list| newest(list));
    let mut expected = BTreeSet::new();
    for task in state.launches_on_agent(attach.agent) {
        let launch = task.launch_id;
        if rebooted {
            // The host's earlier life took everything with it, seen or not yet seen.
            resolution.fates.push((launch, Fate::End(TaskState::Failed, Reason::HostRebooted)));
            continue;
        }
        expected.insert(launch);
        let (seen, status) = match &held {
            Some(held) => (held.contains_key(&launch), held.get(&launch).copied()),
            // Without a listing the digests agree: it holds exactly what it was sent.
            None => (task.agent_seq <= attach.last_seq, None),
        };
        if let Some(fate) = fate(task, seen, status, attach.last_seq, returned) {
            resolution.fates.push((launch, fate));
        }
        let task_seq = status.map_or_else(|| agent_task_seq(task), |status| status.task_seq);
        if seen && task_seq > 0 {
            resolution.confirm.push((launch, task_seq));
        }
    }
    for (launch, status) in held.into_iter().flatten().filter(|(launch, _)| !expected.contains(launch)) {
        // Nothing of a terminal task is left on the agent, so there is nothing to end: it may drop the record.
        match status.state.is_terminal() {
            true => resolution.confirm.push((launch, status.task_seq)),
            false => resolution.forget.push(launch),
        }
    }
    resolution
}

fn fate(task: &Task, seen: bool, status: Option<&Status>, last_seq: u64, returned: bool) -> Option<Fate> {
    if let Some(status) = status.filter(|status| is_news(task, status)) {
        return Some(Fate::News(status.clone()));
    }
    if seen {
        return (task.status.state == TaskState::Unreachable).then_some(Fate::Returned);
    }
    if task.agent_seq <= last_seq {
        return Some(Fate::End(TaskState::Failed, Reason::LaunchLost));
    }
    // Not sent yet. After an absence it is not started any more: its framework was told UNREACHABLE and may have
    // started a replacement.
    returned.then_some(Fate::End(TaskState::Dropped, Reason::AgentUnreachable))
}

/// The newest status of each launch; the list should be sorted without doubles, but nothing depends on it.
fn newest(list: &[proffer_types::command::Held]) -> BTreeMap<LaunchId, &Status> {
    let mut held: BTreeMap<LaunchId, &Status> = BTreeMap::new();
    for item in list {
        let known = held.entry(item.launch).or_insert(&item.status);
        if item.status.task_seq > known.task_seq {
            *known = &item.status;
        }
    }
    held
}
