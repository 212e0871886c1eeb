//! What is known of the framework's tasks, what the author was shown, and what is to be acknowledged.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proffer_types::command::Ack;
use proffer_types::{LaunchId, TaskId};

use super::value::{SnapshotTask, TaskView, Update};

/// Ended and acknowledged launches that are remembered, so that a late repetition of their last status is hidden: the
/// master repeats after 10 s at the earliest, and 65,536 entries are 2 MiB.
const ENDED_MAX: usize = 65_536;
/// Acknowledgements in one call: 20 bytes each, far below the receive limit of 256 KiB.
const ACKS_PER_CALL: usize = 4_096;

/// In place of a log index: an update of the present stream told of the launch, so its snapshot may not know it.
const TOLD_BY_UPDATE: u64 = u64::MAX;

type Position = (u32, u32);

/// Where one launch stands.
#[derive(Clone, Debug)]
struct Seen {
    task: TaskId,
    /// The greatest status that was queued for the author.
    shown: Option<Position>,
    /// The greatest status that the author has dealt with.
    handed: Option<Position>,
    /// The log index at which the launch became known; an older snapshot says nothing about it.
    index: u64,
}

/// Tasks, what was shown of them, and acknowledgements to send.
#[derive(Clone, Debug, Default)]
pub(super) struct Tasks {
    views: BTreeMap<TaskId, TaskView>,
    launches: BTreeMap<LaunchId, Seen>,
    acks: BTreeMap<LaunchId, Position>,
    ended: BTreeMap<LaunchId, Position>,
    ended_order: VecDeque<LaunchId>,
    snapshot: Vec<SnapshotTask>,
}

/// What a finished snapshot changed.
#[derive(Debug, Default)]
pub(super) struct Difference {
    pub(super) changed: Vec<TaskView>,
    pub(super) gone: Vec<TaskView>,
}

impl Tasks {
    pub(super) fn views(&self) -> &BTreeMap<TaskId, TaskView> {
        &self.views
    }

    /// A snapshot begins. It is newer than anything an earlier stream told.
    pub(super) fn begin_snapshot(&mut self) {
        self.snapshot.clear();
        for seen in self.launches.values_mut().filter(|seen| seen.index == TOLD_BY_UPDATE) {
            seen.index = 0;
        }
    }

    pub(super) fn add_snapshot(&mut self, tasks: Vec<SnapshotTask>) {
        self.snapshot.extend(tasks);
    }

    /// Merges the snapshot taken at `index` into what is known.
    pub(super) fn end_snapshot(&mut self, index: u64) -> Difference {
        let mut difference = Difference::default();
        let mut told = BTreeSet::new();
        for SnapshotTask { view, unacknowledged } in std::mem::take(&mut self.snapshot) {
            told.insert(view.launch);
            if self.ended.get(&view.launch).is_some_and(|end| *end >= view.status.position()) {
                continue;
            }
            let seen = self.launches.entry(view.launch).or_insert_with(|| Seen {
                task: view.task.clone(),
                shown: None,
                handed: None,
                index,
            });
            // What an earlier life of this framework acknowledged is shown by this very difference; what nobody
            // acknowledged comes as updates, one by one.
            if !unacknowledged {
                seen.shown = seen.shown.max(Some(view.status.position()));
                seen.handed = seen.handed.max(Some(view.status.position()));
            }
            match self.views.get(&view.task) {
                Some(known) if known.launch > view.launch => {}
                Some(known)
                    if known.launch == view.launch && known.status.position() > view.status.position() => {}
                Some(known) if *known == view => {}
                _ => {
                    difference.changed.push(view.clone());
                    self.views.insert(view.task.clone(), view);
                }
            }
        }
        let gone: Vec<LaunchId> = self
            .launches
            .iter()
            .filter(|(launch, seen)| seen.index <= index && !told.contains(launch))
            .map(|(launch, _)| *launch)
            .collect();
        for launch in gone {
            if let Some(view) = self.forget(launch) {
                difference.gone.push(view);
            }
        }
        difference
    }

    /// Takes an update; returns what to show, or `None` if the author has been shown this or more.
    pub(super) fn update(&mut self, update: Update) -> Option<TaskView> {
        let position = update.status.position();
        if self.ended.get(&update.launch).is_some_and(|end| *end >= position) {
            self.acks.insert(update.launch, position);
            return None;
        }
        let seen = self.launches.entry(update.launch).or_insert_with(|| Seen {
            task: update.task.clone(),
            shown: None,
            handed: None,
            index: TOLD_BY_UPDATE,
        });
        if seen.shown >= Some(position) {
            // Cumulative: if the author has not yet dealt with it, the acknowledgement follows when he has.
            if let Some(handed) = seen.handed.filter(|handed| *handed >= position) {
                self.acks.insert(update.launch, handed);
            }
            return None;
        }
        seen.shown = Some(position);
        let Update { launch, task, agent, status } = update;
        let mut view = TaskView { launch, task, agent, role: None, resources: None, status };
        match self.views.get_mut(&view.task) {
            Some(known) if known.launch > launch => {}
            Some(known) if known.launch == launch => {
                view.role.clone_from(&known.role);
                view.resources.clone_from(&known.resources);
                if known.status.position() <= position {
                    known.status = view.status.clone();
                    known.agent = agent;
                }
            }
            _ => drop(self.views.insert(view.task.clone(), view.clone())),
        }
        Some(view)
    }

    /// Takes what an Accept launched at `index`; returns what to show unless an update came first.
    pub(super) fn launched(&mut self, view: TaskView, index: u64) -> Option<TaskView> {
        if self.ended.contains_key(&view.launch) {
            return None;
        }
        if let Some(seen) = self.launches.get_mut(&view.launch) {
            seen.index = seen.index.min(index);
            if let Some(known) = self.views.get_mut(&view.task).filter(|known| known.launch == view.launch) {
                known.role = view.role;
                known.resources = view.resources;
            }
            return None;
        }
        let seen = Seen { task: view.task.clone(), shown: None, handed: None, index };
        self.launches.insert(view.launch, seen);
        self.views.insert(view.task.clone(), view.clone());
        Some(view)
    }

    /// The author has dealt with a status.
    pub(super) fn handed(&mut self, ack: Ack) {
        let position = (ack.master_seq, ack.task_seq);
        if let Some(seen) = self.launches.get_mut(&ack.launch) {
            seen.handed = seen.handed.max(Some(position));
        }
        let pending = self.acks.entry(ack.launch).or_insert(position);
        *pending = position.max(*pending);
    }

    /// Takes a batch of acknowledgements to send.
    pub(super) fn take_acks(&mut self) -> Vec<Ack> {
        let mut batch = Vec::with_capacity(self.acks.len().min(ACKS_PER_CALL));
        while batch.len() < ACKS_PER_CALL {
            let Some((launch, (master_seq, task_seq))) = self.acks.pop_first() else { break };
            batch.push(Ack { launch, master_seq, task_seq });
        }
        batch
    }

    /// Acknowledgements were committed: what has ended is retained no more.
    pub(super) fn acknowledged(&mut self, acks: &[Ack]) {
        for ack in acks {
            let Some(seen) = self.launches.get(&ack.launch) else { continue };
            let ended = self.views.get(&seen.task).is_some_and(|view| {
                view.launch > ack.launch
                    || (view.launch == ack.launch
                        && view.status.state.is_terminal()
                        && view.status.position() <= (ack.master_seq, ack.task_seq))
            });
            if ended {
                self.forget(ack.launch);
            }
        }
    }

    /// Removes a launch; returns its view if the author has not seen its end.
    fn forget(&mut self, launch: LaunchId) -> Option<TaskView> {
        let seen = self.launches.remove(&launch)?;
        self.acks.remove(&launch);
        if let Some(shown) = seen.shown {
            if self.ended.insert(launch, shown).is_none() {
                self.ended_order.push_back(launch);
            }
            while self.ended_order.len() > ENDED_MAX {
                let oldest = self.ended_order.pop_front();
                oldest.map(|launch| self.ended.remove(&launch));
            }
        }
        let view = self.views.get(&seen.task).filter(|view| view.launch == launch).cloned()?;
        self.views.remove(&seen.task);
        let end_shown = view.status.state.is_terminal() && seen.shown >= Some(view.status.position());
        (!end_shown).then_some(view)
    }
}
