//! Whom the agent believes: its identity, the session with a leader, and what ends it.

use proffer_types::event::{AgentOrder, AgentRefusal, AgentReport, Hello};
use proffer_types::limits::HEARTBEAT_MS;
use proffer_types::{AgentId, BootId, ClusterId, Epoch, LaunchId, RequestId};

use super::{Core, Effect, Phase};

/// How long the answer to a Hello may take (milliseconds). It waits for a commit, on a busy cluster behind thousands
/// of others.
const OPENING_MS: u64 = 10_000;

/// What the agent is, kept in a durable file of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its id, once the cluster has given it one.
    pub agent: Option<AgentId>,
    /// Random, of this installation.
    pub instance: RequestId,
    /// The cluster it belongs to, once it has joined one.
    pub cluster: Option<ClusterId>,
    /// The greatest leadership it has followed.
    pub epoch: Epoch,
    /// The life of the host in which it last ran.
    pub boot_id: BootId,
}

impl Identity {
    /// Of an installation that no cluster knows yet.
    pub fn new(instance: RequestId, boot_id: BootId) -> Self {
        Self { agent: None, instance, cluster: None, epoch: Epoch::default(), boot_id }
    }
}

/// Why the agent ends a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disconnect {
    /// Nothing was heard for two and a half pings.
    Silent,
    /// The master is of a leadership below the greatest that was followed.
    OldLeader,
    /// The leadership changed in the middle of the stream.
    LeaderChanged,
    /// The master said something that has no place before the session is open, or spoke to another agent.
    Confused,
    /// The cluster has no record of the agent: it ends everything, then registers anew.
    UnknownAgent,
}

impl std::fmt::Display for Disconnect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Silent => "nothing was heard from the master for two and a half pings",
            Self::OldLeader => "the master's leadership is older than one already followed",
            Self::LeaderChanged => "the leadership changed within the session",
            Self::Confused => "the master's message has no place here",
            Self::UnknownAgent => "the cluster has no record of this agent",
        })
    }
}

/// Why the agent cannot go on at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fatal {
    /// The masters are of another cluster.
    #[error(
        "this work directory belongs to cluster {mine}, the masters {}: correct --masters, or give the agent another \
         --work-dir to join the other cluster",
        theirs.map_or("say they are another".to_owned(), |c| format!("to cluster {c}"))
    )]
    WrongCluster {
        /// The agent's.
        mine: ClusterId,
        /// The master's, if it said so.
        theirs: Option<ClusterId>,
    },
    /// The agent's id belongs to another installation.
    #[error(
        "the id in this work directory belongs to another installation: it is a copy of that agent's; give this agent \
         an empty --work-dir"
    )]
    WrongInstance,
}

/// The stream to a master.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Session {
    /// There is none.
    Closed,
    /// Hello was said.
    Opening {
        /// The leadership that answers, once anything was heard.
        epoch: Option<Epoch>,
        /// When anything was last heard, or when it began.
        heard_ms: u64,
    },
    /// Welcome was heard.
    Open {
        /// The leadership.
        epoch: Epoch,
        /// When anything was last heard.
        heard_ms: u64,
        /// How long silence may last.
        silence_ms: u64,
    },
}

impl Session {
    pub(super) fn deadline_ms(&self) -> Option<u64> {
        match *self {
            Self::Closed => None,
            Self::Opening { heard_ms, .. } => Some(heard_ms.saturating_add(OPENING_MS)),
            Self::Open { heard_ms, silence_ms, .. } => Some(heard_ms.saturating_add(silence_ms)),
        }
    }

    pub(super) fn is_silent(&self, now_ms: u64) -> bool {
        self.deadline_ms().is_some_and(|deadline| now_ms > deadline)
    }

    fn epoch(&self) -> Option<Epoch> {
        match *self {
            Self::Closed => None,
            Self::Opening { epoch, .. } => epoch,
            Self::Open { epoch, .. } => Some(epoch),
        }
    }

    fn heard(&mut self, epoch: Epoch, now_ms: u64) {
        match self {
            Self::Closed => {}
            Self::Opening { epoch: of, heard_ms } => {
                *of = Some(epoch);
                *heard_ms = now_ms;
            }
            Self::Open { heard_ms, .. } => *heard_ms = now_ms,
        }
    }
}

impl Core {
    /// A stream to a master that may lead is there. `fresh` is a random number for a new identity, should the
    /// cluster have no record of this one.
    pub fn on_connected(&mut self, fresh: RequestId) {
        if self.starting_anew {
            return;
        }
        self.fresh = fresh;
        self.session = Session::Opening { epoch: None, heard_ms: self.now_ms };
        self.say_hello();
    }

    /// The stream ended.
    pub fn on_session_lost(&mut self) {
        self.session = Session::Closed;
    }

    /// What a master said in one message.
    pub fn on_orders(&mut self, epoch: Epoch, orders: Vec<AgentOrder>) {
        for order in orders {
            let early = matches!(
                order,
                AgentOrder::Welcome { .. }
                    | AgentOrder::SendListing
                    | AgentOrder::Ping { .. }
                    | AgentOrder::Refused(_)
            );
            // Leaderships of two clusters cannot be compared: who speaks for another one is heard before that.
            let stranger = order == AgentOrder::Refused(AgentRefusal::WrongCluster);
            let heard = stranger && self.session != Session::Closed;
            if !heard && !self.admits(epoch) {
                return;
            }
            if !early && !matches!(self.session, Session::Open { .. }) {
                return self.disconnect(Disconnect::Confused);
            }
            self.on_order(order);
        }
        // A message without orders is a sign of life too.
        self.admits(epoch);
    }

    /// Whether orders of this leadership are followed now.
    pub(super) fn follows(&mut self, epoch: Epoch) -> bool {
        self.admits(epoch) && matches!(self.session, Session::Open { .. })
    }

    /// Checks the leadership of a message. An older one is refused; so is a change within the stream, because what
    /// the two leaders know of this session differs.
    fn admits(&mut self, epoch: Epoch) -> bool {
        if self.session == Session::Closed {
            return false;
        }
        if epoch < self.identity.epoch {
            self.disconnect(Disconnect::OldLeader);
            return false;
        }
        if self.session.epoch().is_some_and(|of| of != epoch) {
            self.disconnect(Disconnect::LeaderChanged);
            return false;
        }
        self.session.heard(epoch, self.now_ms);
        true
    }

    pub(super) fn on_welcome(&mut self, agent: AgentId, cluster: ClusterId, ping_ms: u64, last_seq: u64) {
        let Session::Opening { epoch: Some(epoch), heard_ms } = self.session else { return };
        if let Some(mine) = self.identity.cluster.filter(|mine| *mine != cluster) {
            self.session = Session::Closed;
            return self.effects.push(Effect::Stop(Fatal::WrongCluster { mine, theirs: Some(cluster) }));
        }
        if self.identity.agent.is_some_and(|mine| mine != agent) {
            return self.disconnect(Disconnect::Confused);
        }
        let registered = self.identity.agent.is_none();
        // Numbers lost with the end of a log are given out again under the next recovery generation.
        let recovered = epoch.generation > self.identity.epoch.generation;
        let identity =
            super::Identity { agent: Some(agent), cluster: Some(cluster), epoch, ..self.identity.clone() };
        // Before the generation is: once that is written down, nothing tells any more that the number is too high.
        if !registered {
            self.set_seen(if recovered { last_seq } else { last_seq.max(self.last_seq) });
        }
        if identity != self.identity {
            self.identity = identity;
            self.persist_identity();
        }
        if registered {
            return self.say_hello();
        }
        let ping_ms = if ping_ms == 0 { HEARTBEAT_MS } else { ping_ms };
        let silence_ms = ping_ms.saturating_mul(5) / 2;
        self.session = Session::Open { epoch, heard_ms, silence_ms };
        let unconfirmed: Vec<_> = self
            .held
            .iter()
            .flat_map(|(&launch, task)| task.updates.unconfirmed().map(move |s| (launch, s.clone())))
            .collect();
        for (launch, status) in unconfirmed {
            self.effects.push(Effect::Send(AgentReport::Status { launch, status }));
        }
    }

    pub(super) fn on_refused(&mut self, refusal: AgentRefusal) {
        match refusal {
            AgentRefusal::UnknownAgent => self.start_anew(),
            AgentRefusal::WrongInstance => {
                self.session = Session::Closed;
                self.effects.push(Effect::Stop(Fatal::WrongInstance));
            }
            AgentRefusal::WrongCluster => {
                let Some(mine) = self.identity.cluster else { return self.disconnect(Disconnect::Confused) };
                self.session = Session::Closed;
                self.effects.push(Effect::Stop(Fatal::WrongCluster { mine, theirs: None }));
            }
        }
    }

    /// The cluster has removed this agent. What runs here holds resources that nobody accounts for: it is ended, and
    /// only an empty agent registers.
    fn start_anew(&mut self) {
        let Some(epoch) = self.session.epoch() else { return };
        if self.identity.agent.is_none() {
            return self.disconnect(Disconnect::Confused);
        }
        if epoch > self.identity.epoch {
            self.identity.epoch = epoch;
            self.persist_identity();
        }
        self.disconnect(Disconnect::UnknownAgent);
        self.starting_anew = true;
        let held: Vec<LaunchId> = self.held.keys().copied().collect();
        for launch in held {
            if self.held[&launch].phase == Phase::Ended {
                self.drop_launch(launch);
            } else {
                self.end_unsaid(launch);
            }
        }
    }

    /// Becomes a new agent once nothing is held. A crash before the identity is written only means that the cluster
    /// refuses the old one again.
    pub(super) fn finish_starting_anew(&mut self) {
        if !self.starting_anew || !self.held.is_empty() {
            return;
        }
        self.starting_anew = false;
        // First, because a new agent's orders are numbered from 1.
        self.set_seen(0);
        self.identity.agent = None;
        self.identity.instance = self.fresh;
        self.persist_identity();
    }

    pub(super) fn disconnect(&mut self, why: Disconnect) {
        self.session = Session::Closed;
        self.effects.push(Effect::Reconnect(why));
    }

    fn say_hello(&mut self) {
        let hello = Hello {
            agent: self.identity.agent,
            instance: self.identity.instance,
            info: self.info.clone(),
            boot_id: self.identity.boot_id,
            last_seq: self.last_seq,
            digest: self.digest(),
            epoch_seen: self.identity.epoch,
            cluster: self.identity.cluster,
        };
        self.effects.push(Effect::Send(AgentReport::Hello(Box::new(hello))));
    }
}
