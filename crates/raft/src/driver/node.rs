//! The node thread: the only one that touches raft.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use bytes::Bytes;
use proffer_wal::{SegmentRef, SnapshotStore};

use super::pace::Pace;
use super::peer::Permit;
use super::segments::{self, FetchOrder, ImageOrder};
use super::{AbortOnPanic, Error, Event, SegmentLoader, Shared, lock, writer};
use crate::core::{Core, CoreStatus, Event as CoreEvent, Fetch, Output};
use crate::store::{Recovered, Store, Write};
use crate::types::{Outcome, Refused, Role, RoleChange, Snapshot};

/// What the node thread is told.
pub(super) enum Input {
    Message { from: u64, message: Bytes, _permit: Permit },
    Persisted { number: u64 },
    Propose { term: u64, batch: Vec<(u64, Bytes)> },
    Read { ctx: u64 },
    Applied { index: u64 },
    Image { index: u64, segments: Vec<Bytes> },
    ImageStored { index: u64, segments: Vec<SegmentRef> },
    Fetched { snapshot: Snapshot },
    FetchProgress,
    FetchFailed { snapshot: Snapshot },
    Gone { peer: u64 },
    Formed,
    Refused { peer: u64, reason: String, other_cluster: bool },
    Fault { error: Error },
    Stop,
}

/// Inputs taken in one pass at most, so that ticks are not late for long under any load.
const PASS_INPUTS_MAX: usize = 20_000;

pub(super) type OnEvent = Box<dyn Fn(Event) + Send>;

pub(super) fn start(
    shared: &Arc<Shared>,
    inputs: Receiver<Input>,
    incarnation: u64,
    opened: Option<(Store, Recovered)>,
    on_event: OnEvent,
) -> Result<(), Error> {
    shared.spawn("node", move |shared| {
        let _abort = AbortOnPanic(Arc::clone(shared));
        let outcome = match opened {
            Some(opened) => Ok(Some(opened)),
            None => wait_until_formed(shared, &inputs, &on_event),
        };
        let outcome = outcome.and_then(|opened| match opened {
            Some(opened) => Node::new(shared, incarnation, opened, &on_event)?.run(&inputs),
            None => Ok(()),
        });
        if let Err(error) = outcome {
            let error = chain(&error);
            tracing::error!(error, "the node stops");
            shared.stopping.store(true, Ordering::SeqCst);
            shared.close_sockets();
            on_event(Event::Fault { error });
        }
    })
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut out = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        out = format!("{out}: {cause}");
        source = cause.source();
    }
    out
}

/// Before the cluster is formed there is no raft: nobody votes, stands or answers. `None` if the node is
/// stopped meanwhile.
fn wait_until_formed(
    shared: &Arc<Shared>,
    inputs: &Receiver<Input>,
    on_event: &OnEvent,
) -> Result<Option<(Store, Recovered)>, Error> {
    let waits_for = lock(&shared.formation).waits_for();
    tracing::info!(?waits_for, "waiting for the other masters to form a cluster");
    while let Ok(input) = inputs.recv() {
        match input {
            Input::Formed => {
                let options = shared.options.store_options();
                return Ok(Some(Store::open(&shared.disk, &shared.options.data_dir, options)?));
            }
            Input::Fault { error } => return Err(error),
            Input::Stop => return Ok(None),
            Input::Refused { peer, reason, other_cluster } => {
                on_event(Event::PeerRefused { peer, reason, other_cluster });
            }
            Input::Propose { batch, .. } => {
                let outcome = Outcome::Refused(Refused::NotLeader);
                batch.into_iter().for_each(|(tag, _)| on_event(Event::Proposal { tag, outcome }));
            }
            Input::Read { ctx } => on_event(Event::Read { ctx, index: None }),
            _ => {}
        }
    }
    Ok(None)
}

pub(super) fn status_before_formation() -> CoreStatus {
    CoreStatus {
        role: RoleChange { term: 0, role: Role::Follower, leader: None, gate_open: false },
        first_index: 1,
        last_index: 0,
        commit: 0,
        delivered: 0,
        applied: 0,
        snapshot: 0,
        log_bytes: 0,
        open_proposals: 0,
        matched: Vec::new(),
    }
}

struct Node<'a> {
    shared: &'a Arc<Shared>,
    core: Core,
    snapshots: SnapshotStore,
    writes: Sender<Vec<Write>>,
    images: Sender<ImageOrder>,
    fetches: Sender<FetchOrder>,
    on_event: &'a OnEvent,
    pace: Pace,
    start: Instant,
}

/// What a pass leads to.
enum Next {
    Go,
    Stop,
}

impl<'a> Node<'a> {
    fn new(
        shared: &'a Arc<Shared>,
        incarnation: u64,
        (store, recovered): (Store, Recovered),
        on_event: &'a OnEvent,
    ) -> Result<Node<'a>, Error> {
        let core = Core::new(shared.options.core_config(incarnation), recovered)?;
        let snapshots = store.snapshots().clone();
        *lock(&shared.snapshots) = Some(snapshots.clone());
        let (writes, queue) = mpsc::channel();
        writer::start(shared, store, queue)?;
        let images = segments::start_images(shared, snapshots.clone())?;
        let fetches = segments::start_fetches(shared, snapshots.clone())?;
        let cluster_id = lock(&shared.formation).cluster_id().expect("a node begins when formed");
        tracing::info!(%cluster_id, id = shared.options.id, "raft begins");
        on_event(Event::Formed { cluster_id });
        let start = Instant::now();
        let pace = Pace::new(start, Duration::from_millis(shared.options.tick_ms));
        Ok(Node { shared, core, snapshots, writes, images, fetches, on_event, pace, start })
    }

    fn run(mut self, inputs: &Receiver<Input>) -> Result<(), Error> {
        let output = self.core.poll();
        self.perform(output);
        loop {
            let next = self.pass(inputs)?;
            let output = match next {
                Next::Go => self.core.poll(),
                Next::Stop => self.core.stop(),
            };
            self.perform(output);
            self.publish_status();
            if let Next::Stop = next {
                return Ok(());
            }
        }
    }

    /// Waits for something, takes all that has come, and then ticks at most once.
    fn pass(&mut self, inputs: &Receiver<Input>) -> Result<Next, Error> {
        let deadline = self.core.next_deadline_ms().map(|ms| self.start + Duration::from_millis(ms));
        let tick = self.pace.next();
        let wake = deadline.map_or(tick, |deadline| deadline.min(tick));
        let first = inputs.recv_timeout(wake.saturating_duration_since(Instant::now()));
        self.core.advance_clock(self.start.elapsed().as_millis() as u64);
        match first {
            Ok(first) => {
                for input in std::iter::once(first).chain(inputs.try_iter()).take(PASS_INPUTS_MAX) {
                    if let Next::Stop = self.take(input)? {
                        return Ok(Next::Stop);
                    }
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(Next::Stop),
        }
        if self.pace.is_due(Instant::now()) {
            self.core.tick();
        }
        Ok(Next::Go)
    }

    fn take(&mut self, input: Input) -> Result<Next, Error> {
        match input {
            Input::Message { from, message, .. } => {
                if let Err(bad) = self.core.step(from, &message) {
                    tracing::warn!("{bad}");
                }
            }
            Input::Persisted { number } => self.core.on_persisted(number),
            Input::Propose { term, batch } => self.core.propose(term, batch),
            Input::Read { ctx } => self.core.read_index(ctx),
            Input::Applied { index } => self.core.applied(index),
            Input::Image { index, segments } => {
                let _ = self.images.send(ImageOrder { index, segments });
            }
            Input::ImageStored { index, segments } => self.core.offer_snapshot(index, segments),
            Input::Fetched { snapshot } => self.core.snapshot_fetched(snapshot.index, snapshot.term),
            Input::FetchProgress => self.core.snapshot_progress(),
            Input::FetchFailed { snapshot } => self.core.snapshot_failed(snapshot.index, snapshot.term),
            Input::Gone { peer } => {
                tracing::info!(peer, "the process of a peer is gone");
                self.core.peer_process_gone(peer);
            }
            Input::Refused { peer, reason, other_cluster } => {
                (self.on_event)(Event::PeerRefused { peer, reason, other_cluster });
            }
            Input::Fault { error } => return Err(error),
            Input::Formed => {}
            Input::Stop => return Ok(Next::Stop),
        }
        Ok(Next::Go)
    }

    fn perform(&mut self, output: Output) {
        for event in output.events {
            self.deliver(event);
        }
        for (to, message) in output.messages {
            let sent = self.shared.links.get(&to).is_some_and(|link| link.send(message));
            if !sent {
                self.core.peer_unreachable(to);
            }
        }
        if !output.writes.is_empty() {
            // If the log thread is gone, its fault is in the inbox.
            let _ = self.writes.send(output.writes);
        }
        if let Some(fetch) = output.fetch {
            let _ = self.fetches.send(match fetch {
                Fetch::Start { from, snapshot } => FetchOrder::Start { from, snapshot },
                Fetch::Stop => FetchOrder::Stop,
            });
        }
        for segments in output.release {
            self.snapshots.unpin(&segments);
        }
    }

    fn deliver(&self, event: CoreEvent) {
        (self.on_event)(match event {
            CoreEvent::Role(change) => {
                tracing::info!(
                    term = change.term, role = ?change.role, leader = change.leader, gate = change.gate_open,
                    "role"
                );
                Event::Role(change)
            }
            CoreEvent::Committed(entries) => Event::Committed(entries),
            CoreEvent::Proposal { tag, outcome } => Event::Proposal { tag, outcome },
            CoreEvent::Read { ctx, index } => Event::Read { ctx, index },
            CoreEvent::Restore(Snapshot { index, term, segments, .. }) => {
                tracing::info!(index, term, segments = segments.len(), "restoring the state machine");
                Event::Restore { index, term, segments: SegmentLoader::new(&self.snapshots, segments) }
            }
            CoreEvent::SnapshotWanted { index } => Event::SnapshotWanted { index },
        });
    }

    fn publish_status(&self) {
        let mut glance = lock(&self.shared.glance);
        glance.core = Some(self.core.status());
        glance.worst_lateness_ms = self.pace.worst_lateness().as_millis() as u64;
    }
}
