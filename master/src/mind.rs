//! What a master thinks, without a clock, a thread or a socket: the registry that every master has, the broker that
//! only a leader has, and the passage between them through the log. The simulator runs this very code.

use std::collections::VecDeque;

use bytes::Bytes;
use proffer_broker::{Broker, Effect, Lost, Settings, Tag};
use proffer_raft::{Entry as LogEntry, Outcome, Role as RaftRole, RoleChange};
use proffer_registry::Registry;
use proffer_types::call::{Call, ConnectionId, ReplyId};
use proffer_types::command::{Command, Entry};
use proffer_types::event::{Refused, StreamEnd};
use proffer_types::{Caller, ClusterId, ClusterTime, Epoch, MasterId};

use crate::events::{self, Event};

/// What time it is here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds of a steady clock of this process.
    pub mono_ms: u64,
    /// Milliseconds since 1970, for display only.
    pub wall_ms: u64,
}

/// One thing the shell must do.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Propose an entry.
    Propose {
        /// For which term.
        term: u64,
        /// Comes back with the outcome.
        tag: u64,
        /// The entry.
        data: Bytes,
    },
    /// Do what the broker says; never a proposal.
    Effect(Effect),
    /// Tell whoever watches.
    Told {
        /// The index up to which everything is applied.
        applied: u64,
        /// What became true; may be nothing.
        events: Vec<Event>,
    },
    /// This master leads from now on.
    Leads {
        /// The leadership.
        epoch: Epoch,
    },
    /// This master does not lead any more.
    Follows,
    /// The log holds something that this program cannot read: stop, leaving all files as they are.
    Fatal {
        /// What.
        message: String,
    },
}

/// What only a leader has.
struct Leadership {
    broker: Broker,
    term: u64,
    /// The cluster's time when the leadership began, and the process's.
    cluster_ms: u64,
    mono_ms: u64,
    /// Tags of the proposals that are on their way, in the order of the log.
    queue: VecDeque<Tag>,
}

impl Leadership {
    fn time(&self, now: Now) -> ClusterTime {
        ClusterTime(self.cluster_ms + now.mono_ms.saturating_sub(self.mono_ms))
    }
}

/// See the module.
pub struct Mind {
    settings: Settings,
    registry: Registry,
    role: RoleChange,
    leader_address: Option<String>,
    leadership: Option<Leadership>,
    /// The cluster and its founding masters, until they are in the registry.
    founding: Option<(ClusterId, Vec<(MasterId, String)>)>,
    tags_used: u64,
    outputs: Vec<Output>,
}

impl Mind {
    /// A master with nothing in its registry yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            registry: Registry::new(),
            role: RoleChange { term: 0, role: RaftRole::Follower, leader: None, gate_open: false },
            leader_address: None,
            leadership: None,
            founding: None,
            tags_used: 0,
            outputs: Vec::new(),
        }
    }

    /// The replicated state as far as it is applied here.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The leader's broker, while this master leads.
    pub fn broker(&self) -> Option<&Broker> {
        self.leadership.as_ref().map(|l| &l.broker)
    }

    /// The cluster's time, if this master leads; else as of the last entry.
    pub fn time(&self, now: Now) -> ClusterTime {
        self.leadership
            .as_ref()
            .map_or_else(|| self.registry.time(), |l| l.time(now).max(self.registry.time()))
    }

    /// What Raft says of this master.
    pub fn role(&self) -> RoleChange {
        self.role
    }

    /// Where the leader is reached, if known.
    pub fn leader_address(&self) -> Option<&str> {
        self.leader_address.as_deref()
    }

    /// Takes what is to be done, in order.
    pub fn take_outputs(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.outputs)
    }

    /// Milliseconds of the steady clock at which [`Self::on_time`] has something to do.
    pub fn next_deadline(&self) -> Option<u64> {
        let leadership = self.leadership.as_ref()?;
        let due = leadership.broker.next_deadline()?;
        Some(leadership.mono_ms + due.0.saturating_sub(leadership.cluster_ms))
    }

    /// The cluster has been formed by these masters.
    pub fn on_formed(&mut self, cluster: ClusterId, masters: Vec<(MasterId, String)>, now: Now) {
        self.founding = Some((cluster, masters));
        self.found(now);
    }

    /// Where the leader is reached has become known.
    pub fn on_leader_address(&mut self, address: Option<String>) {
        self.leader_address = address;
    }

    /// Raft's role changed.
    pub fn on_role(&mut self, role: RoleChange, now: Now) {
        self.role = role;
        let lost = self.leadership.as_ref().is_some_and(|l| !role.gate_open || l.term != role.term);
        if lost && let Some(leadership) = self.leadership.take() {
            self.tags_used = leadership.broker.tags_end();
            let effects = leadership.broker.end();
            self.outputs.extend(effects.into_iter().map(Output::Effect));
            self.outputs.push(Output::Follows);
        }
        if role.gate_open && self.leadership.is_none() {
            let epoch = Epoch { generation: 0, term: role.term };
            let cluster_ms = self.registry.time().0;
            let broker = Broker::begin(
                self.settings.clone(),
                epoch,
                self.tags_used,
                ClusterTime(cluster_ms),
                &self.registry,
            );
            self.leadership = Some(Leadership {
                broker,
                term: role.term,
                cluster_ms,
                mono_ms: now.mono_ms,
                queue: VecDeque::new(),
            });
            self.outputs.push(Output::Leads { epoch });
            self.found(now);
            self.flush(now);
        }
    }

    /// Proposes the cluster's beginning, if this leader is the first.
    fn found(&mut self, now: Now) {
        let Some((cluster, masters)) = self.founding.clone() else { return };
        if self.registry.cluster().is_some() {
            self.founding = None;
            return;
        }
        let Some(leadership) = &mut self.leadership else { return };
        let time = leadership.time(now).max(self.registry.time());
        let entry = Entry {
            term: leadership.term,
            time,
            wall_ms: now.wall_ms,
            caller: Caller::master(),
            command: Command::Form { cluster, masters },
        };
        // A tag that the broker does not know: nobody waits for it.
        leadership.queue.push_back(Tag(FOUNDING_TAG));
        let data = proffer_wire::log::encode_entry(&entry);
        self.outputs.push(Output::Propose { term: leadership.term, tag: FOUNDING_TAG, data });
    }

    /// Entries are committed.
    pub fn on_committed(&mut self, entries: &[LogEntry], now: Now) {
        let mut told = Vec::new();
        for entry in entries {
            if entry.data.is_empty() {
                continue;
            }
            let decoded = match proffer_wire::log::decode_entry(&entry.data) {
                Ok(decoded) => decoded,
                Err(error) => {
                    let message = format!("log entry {}: {error}", entry.index);
                    self.outputs.push(Output::Fatal { message });
                    return;
                }
            };
            let changes = self.registry.apply(entry.index, entry.term, &decoded);
            if let Some(leadership) = &mut self.leadership {
                let own = entry.term == leadership.term;
                let tag =
                    if own { leadership.queue.pop_front().filter(|tag| tag.0 != FOUNDING_TAG) } else { None };
                let time = leadership.time(now).max(self.registry.time());
                leadership.broker.on_applied(&self.registry, time, tag, entry.index, &changes);
            }
            told.append(&mut events::of(&self.registry, entry.index, decoded.wall_ms, changes));
        }
        if let Some(last) = entries.last() {
            self.outputs.push(Output::Told { applied: last.index, events: told });
        }
        self.flush(now);
    }

    /// What became of a proposal. That it is committed was seen when its entry was applied.
    pub fn on_proposal(&mut self, tag: u64, outcome: Outcome, now: Now) {
        let Some(leadership) = &mut self.leadership else { return };
        let lost = match outcome {
            Outcome::Committed(_) => return,
            Outcome::Refused(_) | Outcome::Failed => Lost::Failed,
            Outcome::Unknown => Lost::Unknown,
        };
        leadership.queue.retain(|waiting| waiting.0 != tag);
        if tag != FOUNDING_TAG {
            leadership.broker.on_lost(&self.registry, Tag(tag), lost);
        }
        self.flush(now);
    }

    /// The state is replaced by a snapshot's. Only a follower receives one.
    pub fn on_restore(&mut self, registry: Registry) {
        self.registry = registry;
    }

    /// A call from outside.
    pub fn on_call(&mut self, caller: Caller, reply: Option<ReplyId>, call: Call, now: Now) {
        match &mut self.leadership {
            Some(leadership) if self.registry.cluster().is_some() => {
                let time = leadership.time(now).max(self.registry.time());
                leadership.broker.on_call(&self.registry, time, caller, reply, call);
                self.flush(now);
            }
            _ => {
                let leader = self.leader_address.clone().filter(|_| self.leadership.is_none());
                if let Some(connection) = connection_of(&call) {
                    self.outputs
                        .push(Output::Effect(Effect::Close { connection, end: StreamEnd::NotLeader }));
                }
                if let Some(reply) = reply {
                    let result = Err(Refused::NotLeader { leader });
                    self.outputs.push(Output::Effect(Effect::Answer { reply, result }));
                }
            }
        }
    }

    /// Time goes on.
    pub fn on_time(&mut self, now: Now) {
        if let Some(leadership) = &mut self.leadership {
            let time = leadership.time(now).max(self.registry.time());
            leadership.broker.on_time(&self.registry, time);
            self.flush(now);
        }
    }

    /// Turns the broker's proposals into entries.
    fn flush(&mut self, now: Now) {
        let Some(leadership) = &mut self.leadership else { return };
        let time = leadership.time(now).max(self.registry.time());
        for effect in leadership.broker.take_effects() {
            match effect {
                Effect::Propose { tag, caller, command } => {
                    let entry = Entry {
                        term: leadership.term,
                        time,
                        wall_ms: now.wall_ms,
                        caller,
                        command: *command,
                    };
                    let data = proffer_wire::log::encode_entry(&entry);
                    leadership.queue.push_back(tag);
                    self.outputs.push(Output::Propose { term: leadership.term, tag: tag.0, data });
                }
                other => self.outputs.push(Output::Effect(other)),
            }
        }
    }
}

/// The tag of the entry that begins the cluster; the broker counts its own from 1.
const FOUNDING_TAG: u64 = u64::MAX;

/// The stream on which a call came, if it is one that opens or uses a session.
fn connection_of(call: &Call) -> Option<ConnectionId> {
    match call {
        Call::AgentHello { connection, .. }
        | Call::AgentListing { connection, .. }
        | Call::AgentStatuses { connection, .. }
        | Call::AgentAlive { connection }
        | Call::AgentCleaned { connection, .. }
        | Call::AgentMessage { connection, .. }
        | Call::Subscribe { connection, .. } => Some(*connection),
        _ => None,
    }
}
