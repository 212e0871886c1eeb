//! What became true, as operators watch it: every master keeps the last of it in a ring, fed from what it applies.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use proffer_registry::{Change, Registry};
use proffer_types::event::LaunchKind;
use proffer_types::{AgentId, CellTag, ExecutorId, FrameworkId, LaunchId, Reason, TaskId};
use proffer_wire::admin::v1 as pb;
use tokio::sync::watch;

/// Events that are kept: about 10 MiB.
const KEPT_MAX: usize = 32_768;

/// A place in the order of events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor {
    /// The log index.
    pub index: u64,
    /// The place among what became true at that index.
    pub ordinal: u32,
}

/// One thing that became true.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Its place.
    pub at: Cursor,
    /// Wall time at the leader, for display (milliseconds since 1970).
    pub wall_ms: u64,
    cell: CellTag,
    /// The task or executor it is about.
    subject: Option<Subject>,
    /// What its agent or framework calls itself.
    name: String,
    change: Change,
}

/// What a launch is.
#[derive(Clone, Debug, PartialEq)]
enum Subject {
    Task(TaskId),
    Executor(ExecutorId),
}

/// What an entry made true that operators are told of. `registry` is the state right after it.
pub fn of(registry: &Registry, index: u64, wall_ms: u64, changes: Vec<Change>) -> Vec<Event> {
    let cell = registry.cluster().unwrap_or_default().tag();
    let mut events = Vec::new();
    // An executor's record goes with the entry that ends it.
    let ended: BTreeMap<LaunchId, ExecutorId> = changes
        .iter()
        .filter_map(|change| match change {
            Change::ExecutorEnded { launch, executor, .. } => Some((*launch, executor.clone())),
            _ => None,
        })
        .collect();
    for (ordinal, change) in changes.into_iter().enumerate() {
        let subject = launch_of(&change).and_then(|launch| match ended.get(&launch) {
            Some(executor) => Some(Subject::Executor(executor.clone())),
            None => subject_of(registry, launch, &change),
        });
        if kind(&change, subject.as_ref()).is_none() {
            continue;
        }
        let at = Cursor { index, ordinal: u32::try_from(ordinal).unwrap_or(u32::MAX) };
        let name = name_of(registry, &change);
        events.push(Event { at, wall_ms, cell, subject, name, change });
    }
    events
}

/// The word for it; `None` for what is only bookkeeping.
fn kind(change: &Change, subject: Option<&Subject>) -> Option<&'static str> {
    let is_executor = matches!(subject, Some(Subject::Executor(_)));
    Some(match change {
        Change::Formed => "CLUSTER_FORMED",
        Change::AgentRegistered { repeated: false, .. } => "AGENT_REGISTERED",
        Change::AgentAttached { .. } => "AGENT_ATTACHED",
        Change::AgentUnreachable { .. } => "AGENT_UNREACHABLE",
        Change::AgentRemoved { .. } => "AGENT_REMOVED",
        Change::FrameworkAdded { .. } => "FRAMEWORK_REGISTERED",
        Change::SessionOpened { .. } => "FRAMEWORK_SESSION",
        Change::FrameworkReconnected { .. } => "FRAMEWORK_CONNECTED",
        Change::FrameworkDisconnected { .. } => "FRAMEWORK_DISCONNECTED",
        Change::FrameworkUpdated { .. } => "FRAMEWORK_UPDATED",
        Change::FrameworkCompleted { .. } => "FRAMEWORK_COMPLETED",
        Change::TaskLaunched { .. } if is_executor => "EXECUTOR_LAUNCHED",
        Change::KillOrdered { .. } if is_executor => "EXECUTOR_KILL_ORDERED",
        Change::StatusChanged { .. } if is_executor => "EXECUTOR_STATUS",
        Change::TaskLaunched { .. } => "TASK_LAUNCHED",
        Change::KillOrdered { .. } => "TASK_KILL_ORDERED",
        Change::StatusChanged { .. } => "TASK_STATUS",
        _ => return None,
    })
}

fn launch_of(change: &Change) -> Option<LaunchId> {
    match change {
        Change::TaskLaunched { launch, .. }
        | Change::KillOrdered { launch, .. }
        | Change::StatusChanged { launch, .. } => Some(*launch),
        _ => None,
    }
}

fn agent_of(change: &Change) -> Option<AgentId> {
    match change {
        Change::AgentRegistered { agent, .. }
        | Change::AgentAttached { agent, .. }
        | Change::AgentUnreachable { agent }
        | Change::AgentRemoved { agent }
        | Change::TaskLaunched { agent, .. }
        | Change::KillOrdered { agent, .. }
        | Change::StatusChanged { agent, .. } => Some(*agent),
        _ => None,
    }
}

fn framework_of(change: &Change) -> Option<FrameworkId> {
    match change {
        Change::FrameworkAdded { framework }
        | Change::SessionOpened { framework, .. }
        | Change::FrameworkReconnected { framework }
        | Change::FrameworkDisconnected { framework }
        | Change::FrameworkUpdated { framework }
        | Change::FrameworkCompleted { framework, .. }
        | Change::TaskLaunched { framework, .. }
        | Change::StatusChanged { framework, .. } => Some(*framework),
        _ => None,
    }
}

fn subject_of(registry: &Registry, launch: LaunchId, change: &Change) -> Option<Subject> {
    if let Some(task) = registry.task(launch) {
        return Some(match &task.kind {
            LaunchKind::Executor(executor) => Subject::Executor(executor.clone()),
            LaunchKind::Task | LaunchKind::TaskOf(_) => Subject::Task(task.task_id.clone()),
        });
    }
    // It was retired by the very same entry.
    let framework = framework_of(change)?;
    let task = registry.history_of_framework(framework).filter(|task| task.launch_id == launch).last()?;
    Some(Subject::Task(task.task_id.clone()))
}

fn name_of(registry: &Registry, change: &Change) -> String {
    match change {
        Change::AgentRegistered { agent, .. } | Change::AgentUnreachable { agent } => {
            registry.agent(*agent).map(|agent| agent.info.hostname.clone()).unwrap_or_default()
        }
        Change::FrameworkAdded { framework }
        | Change::FrameworkUpdated { framework }
        | Change::FrameworkCompleted { framework, .. } => {
            registry.framework(*framework).map(|framework| framework.info.name.clone()).unwrap_or_default()
        }
        _ => String::new(),
    }
}

impl Event {
    /// As operators are told.
    pub fn told(&self) -> pb::Event {
        let (state, reason) = match &self.change {
            Change::StatusChanged { status, .. } => (status.state.name(), status.reason.name().to_owned()),
            Change::FrameworkCompleted { reason, .. } => ("COMPLETED", reason.name().to_owned()),
            Change::TaskLaunched { .. } => ("STAGING", String::new()),
            _ => ("", String::new()),
        };
        let (task, executor) = match &self.subject {
            Some(Subject::Task(task)) => (task.to_string(), String::new()),
            Some(Subject::Executor(executor)) => (String::new(), executor.to_string()),
            None => Default::default(),
        };
        pb::Event {
            index: self.at.index,
            ordinal: self.at.ordinal,
            kind: kind(&self.change, self.subject.as_ref()).unwrap_or_default().into(),
            wall_ms: self.wall_ms,
            framework_id: framework_of(&self.change).unwrap_or_default().0,
            agent_id: agent_of(&self.change).unwrap_or_default().0,
            launch_id: launch_of(&self.change).unwrap_or_default().0,
            task_id: task,
            executor_id: executor,
            state: state.into(),
            reason,
            text: self.text(),
        }
    }

    fn text(&self) -> String {
        let framework = framework_of(&self.change).map(|id| id.text(self.cell)).unwrap_or_default();
        let agent = agent_of(&self.change).map(|id| id.text(self.cell)).unwrap_or_default();
        let (what, name) = match &self.subject {
            Some(Subject::Task(task)) => ("task", task.as_str()),
            Some(Subject::Executor(executor)) => ("executor", executor.as_str()),
            None => ("task", "?"),
        };
        match &self.change {
            Change::Formed => "the cluster is formed".into(),
            Change::AgentRegistered { .. } => format!("agent {agent} on {} registered", self.name),
            Change::AgentAttached { returned: true, .. } => format!("agent {agent} is back"),
            Change::AgentAttached { .. } => format!("agent {agent} opened its session"),
            Change::AgentUnreachable { .. } => {
                format!("agent {agent} on {} is out of contact", self.name)
            }
            Change::AgentRemoved { .. } => format!("agent {agent} is removed"),
            Change::FrameworkAdded { .. } => format!("framework {framework} `{}` registered", self.name),
            Change::SessionOpened { .. } => format!("framework {framework} opened a session"),
            Change::FrameworkReconnected { .. } => format!("framework {framework} is connected again"),
            Change::FrameworkDisconnected { .. } => {
                format!("framework {framework} is disconnected: its failover timeout runs")
            }
            Change::FrameworkUpdated { .. } => {
                format!("framework {framework} `{}` was updated", self.name)
            }
            Change::FrameworkCompleted { reason, .. } => {
                format!("framework {framework} `{}` is completed: {}", self.name, reason.name())
            }
            Change::TaskLaunched { resources, .. } => {
                format!("{what} {framework}/{name} is launched on {agent} with {resources}")
            }
            Change::KillOrdered { .. } => format!("{what} {name} on {agent} is to end"),
            Change::StatusChanged { from, status, .. } => {
                let mut text = format!("{what} {framework}/{name}: {} after {}", status.state, from);
                if status.reason != Reason::None {
                    text.push_str(&format!(", {}", status.reason));
                }
                if !status.message.is_empty() {
                    text.push_str(&format!(": {}", status.message));
                }
                text
            }
            _ => String::new(),
        }
    }
}

/// The last events. Cheap to clone: clones share them.
#[derive(Clone)]
pub struct Feed {
    ring: Arc<Mutex<Ring>>,
    /// Counts what was done to the ring.
    changed: watch::Sender<u64>,
}

struct Ring {
    events: VecDeque<Arc<Event>>,
    /// Nothing up to here is kept.
    floor: Cursor,
    /// Everything up to this index is in, as far as it is kept.
    applied: u64,
    cell: Option<proffer_types::ClusterId>,
}

/// The events that were asked for are kept no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("events up to index {} are kept no more: begin after it, or without a place to begin", floor.index)]
pub struct Lost {
    /// Where what is kept begins.
    pub floor: Cursor,
}

/// Some events.
#[derive(Debug, Default)]
pub struct Batch {
    /// In order.
    pub events: Vec<Arc<Event>>,
    /// Everything up to here was told.
    pub cursor: Cursor,
    /// The cluster, once it is known.
    pub cluster: Option<proffer_types::ClusterId>,
    /// There are no more at the moment.
    pub last: bool,
}

impl Default for Feed {
    fn default() -> Self {
        let ring = Ring { events: VecDeque::new(), floor: Cursor::default(), applied: 0, cell: None };
        Self { ring: Arc::new(Mutex::new(ring)), changed: watch::Sender::new(0) }
    }
}

impl Feed {
    /// Takes what became true, in order; `applied` is the index that the master has come to.
    pub(crate) fn push(&self, applied: u64, cluster: Option<proffer_types::ClusterId>, events: Vec<Event>) {
        let mut ring = self.lock();
        for event in events {
            if ring.events.len() == KEPT_MAX
                && let Some(oldest) = ring.events.pop_front()
            {
                ring.floor = oldest.at;
            }
            ring.events.push_back(Arc::new(event));
        }
        ring.applied = ring.applied.max(applied);
        ring.cell = cluster.or(ring.cell);
        drop(ring);
        self.changed.send_modify(|count| *count += 1);
    }

    /// The state was replaced by one that includes `index`: what happened up to there is not known.
    pub(crate) fn restored(&self, index: u64, cluster: Option<proffer_types::ClusterId>) {
        let mut ring = self.lock();
        ring.events = VecDeque::new();
        ring.floor = Cursor { index, ordinal: u32::MAX };
        ring.applied = index;
        ring.cell = cluster;
        drop(ring);
        self.changed.send_modify(|count| *count += 1);
    }

    /// At most `max` events after `after`, or from the oldest on.
    ///
    /// # Errors
    /// They are kept no more.
    pub fn read(&self, after: Option<Cursor>, max: usize) -> Result<Batch, Lost> {
        let ring = self.lock();
        let after = after.unwrap_or(ring.floor);
        if after < ring.floor {
            return Err(Lost { floor: ring.floor });
        }
        let first = ring.events.partition_point(|event| event.at <= after);
        let events: Vec<_> = ring.events.iter().skip(first).take(max).cloned().collect();
        let last = first + events.len() == ring.events.len();
        let end = match events.last() {
            Some(event) if !last => event.at,
            // The next entry has a higher index.
            _ => Cursor { index: ring.applied, ordinal: u32::MAX },
        };
        Ok(Batch { events, cursor: end.max(after), cluster: ring.cell, last })
    }

    /// Whether what comes after `after` is kept no more.
    pub fn has_lost(&self, after: Cursor) -> bool {
        after < self.lock().floor
    }

    /// Sees what is done to the feed from now on.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(index: u64, ordinal: u32) -> Event {
        Event {
            at: Cursor { index, ordinal },
            wall_ms: 0,
            cell: CellTag(1),
            subject: None,
            name: String::new(),
            change: Change::Formed,
        }
    }

    fn places(batch: &Batch) -> Vec<(u64, u32)> {
        batch.events.iter().map(|event| (event.at.index, event.at.ordinal)).collect()
    }

    #[test]
    fn events_are_read_after_a_place() {
        let feed = Feed::default();
        feed.push(7, None, vec![event(3, 0), event(3, 2), event(5, 0)]);
        let batch = feed.read(None, 2).expect("all is kept");
        assert_eq!(
            (places(&batch), batch.cursor, batch.last),
            (vec![(3, 0), (3, 2)], Cursor { index: 3, ordinal: 2 }, false)
        );
        let batch = feed.read(Some(batch.cursor), 2).expect("all is kept");
        assert_eq!((places(&batch), batch.last), (vec![(5, 0)], true));
        assert_eq!(batch.cursor, Cursor { index: 7, ordinal: u32::MAX });
        // A place that another master has come to already.
        let ahead = Cursor { index: 9, ordinal: 1 };
        let batch = feed.read(Some(ahead), 2).expect("nothing is lost");
        assert_eq!((places(&batch), batch.cursor), (vec![], ahead));
    }

    #[test]
    fn what_is_kept_no_more_is_said() {
        let feed = Feed::default();
        feed.push(1, None, (0..KEPT_MAX as u32 + 10).map(|n| event(1, n)).collect());
        let first = Cursor { index: 1, ordinal: 8 };
        assert_eq!(feed.read(Some(first), 1).unwrap_err().floor, Cursor { index: 1, ordinal: 9 });
        assert!(feed.has_lost(first));
        assert_eq!(places(&feed.read(Some(Cursor { index: 1, ordinal: 9 }), 1).unwrap()), [(1, 10)]);
        assert_eq!(places(&feed.read(None, 1).unwrap()), [(1, 10)]);
        // A snapshot: whoever has not come so far has missed something.
        feed.restored(50, None);
        assert!(feed.has_lost(Cursor { index: 49, ordinal: 7 }));
        assert!(feed.read(None, 1).unwrap().events.is_empty());
        feed.push(51, None, vec![event(51, 0)]);
        assert_eq!(places(&feed.read(None, 9).unwrap()), [(51, 0)]);
    }

    #[tokio::test]
    async fn a_watcher_is_woken() {
        let feed = Feed::default();
        let mut watch = feed.watch();
        feed.push(1, None, vec![event(1, 0)]);
        watch.changed().await.expect("the feed is there");
    }
}
