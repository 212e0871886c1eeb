//! One supervisor as the agent knows it: its process, the connection to it, and what is to be said on that.

use std::collections::{BTreeSet, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proffer_launcher::seqpacket::{self, Receiver};
use proffer_types::{FrameworkId, LaunchId};
use proffer_wire::supervisor::v1::to_agent::Message as Told;
use proffer_wire::supervisor::v1::to_supervisor::Message as Order;
use proffer_wire::supervisor::v1::{Hello, LaunchInfo, List, ToAgent, ToSupervisor};
use prost::Message as _;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::dirs::Identity;
use super::silence::Silence;
use super::start::Starting;
use crate::InstanceId;

/// The protocol version spoken here. From 2 on we read journals.
const PROTOCOL: u32 = 2;
/// A lost connection is made anew at once, then after pauses that double up to this.
const PAUSE_MAX: Duration = Duration::from_secs(1);
const PAUSE_MIN: Duration = Duration::from_millis(10);

/// How far it is.
#[derive(Debug)]
pub(super) enum Stage {
    /// Its process is on its way.
    Starting(Starting),
    /// It lives, and there is no connection.
    Away { retry_at: Instant, pause: Duration },
    /// Connected; `Hello` is sent.
    Greeting { connection: OwnedFd, pause: Duration },
    /// Welcomed; what it knows is coming in parts.
    Listing { connection: OwnedFd, launches: Vec<LaunchInfo> },
    /// What it knows and what we know agree; orders go out.
    Up { connection: OwnedFd },
    /// Its process is gone. It is kept while launches of it are.
    Dead,
}

/// What is to be sent once there is room.
#[derive(Debug)]
pub(super) enum Out {
    /// A launch, looked up and prepared when its turn has come.
    Launch(LaunchId),
    /// As the peer reads it.
    Ready { body: Vec<u8>, descriptors: Vec<Arc<OwnedFd>>, launch: Option<LaunchId> },
}

impl Out {
    pub(super) fn order(order: Order) -> Self {
        let body = ToSupervisor { message: Some(order) }.encode_to_vec();
        Self::Ready { body, descriptors: Vec::new(), launch: None }
    }
}

/// One supervisor.
#[derive(Debug)]
pub(super) struct Supervisor {
    pub(super) instance: InstanceId,
    pub(super) framework: FrameworkId,
    pub(super) stage: Stage,
    /// Its process, once it is known.
    pub(super) process: Option<OwnedFd>,
    pub(super) out: VecDeque<Out>,
    /// The connection had no room for the first of `out`.
    pub(super) blocked: bool,
    /// Told to end, or about to be: nothing new is sent to it.
    pub(super) draining: bool,
    /// Names the program that it runs; empty of the first release, or before it has said so.
    pub(super) build: String,
    /// That is not the one that new supervisors run.
    pub(super) outdated: bool,
    /// It has been up in this life of the agent, or in an earlier one.
    pub(super) seen_up: bool,
    /// The launches that it is to be asked about.
    pub(super) launches: BTreeSet<LaunchId>,
    /// Since when it has none.
    pub(super) idle_since: Option<Instant>,
    /// The places of sockets that its containers cannot reach; nothing if it is not known yet.
    pub(super) seen: Option<BTreeSet<PathBuf>>,
    /// Why the process did not start.
    pub(super) complaint: Option<String>,
    /// Whether it answers.
    pub(super) silence: Silence,
}

/// Reading came to an end.
#[derive(Debug)]
pub(super) struct Closed;

impl Supervisor {
    pub(super) fn new(instance: InstanceId, framework: FrameworkId, stage: Stage) -> Self {
        Self {
            instance,
            framework,
            stage,
            process: None,
            out: VecDeque::new(),
            blocked: false,
            draining: false,
            build: String::new(),
            outdated: false,
            seen_up: false,
            launches: BTreeSet::new(),
            idle_since: None,
            seen: None,
            complaint: None,
            silence: Silence::default(),
        }
    }

    /// One whose process lives and that is to be connected to.
    pub(super) fn living(instance: InstanceId, framework: FrameworkId, process: OwnedFd) -> Self {
        let stage = Stage::Away { retry_at: Instant::now(), pause: PAUSE_MIN };
        Self { process: Some(process), ..Self::new(instance, framework, stage) }
    }

    pub(super) fn is_dead(&self) -> bool {
        matches!(self.stage, Stage::Dead)
    }

    pub(super) fn is_up(&self) -> bool {
        matches!(self.stage, Stage::Up { .. })
    }

    pub(super) fn connection(&self) -> Option<BorrowedFd<'_>> {
        match &self.stage {
            Stage::Greeting { connection, .. }
            | Stage::Listing { connection, .. }
            | Stage::Up { connection } => Some(connection.as_fd()),
            Stage::Starting(_) | Stage::Away { .. } | Stage::Dead => None,
        }
    }

    /// When it wants to be looked at, whatever its descriptors say.
    pub(super) fn deadline(&self, idle_max: Duration) -> Option<Instant> {
        match &self.stage {
            Stage::Starting(starting) => Some(starting.deadline),
            Stage::Away { retry_at, .. } => Some(*retry_at),
            Stage::Up { .. } if !self.draining => self.idle_since.map(|since| since + idle_max),
            _ => None,
        }
    }

    /// Connects and greets; a failure is tried again later, for it is the process that tells whether it lives.
    pub(super) fn connect(&mut self, socket: &Path) {
        let Stage::Away { pause, .. } = self.stage else { return };
        let again = (pause * 2).min(PAUSE_MAX);
        let greeted =
            seqpacket::connect(socket, true).map_err(|error| error.to_string()).and_then(|connection| {
                let hello = ToSupervisor { message: Some(Order::Hello(Hello { protocol: PROTOCOL })) };
                let sent = seqpacket::send(connection.as_fd(), &hello.encode_to_vec(), &[]);
                sent.map(|()| connection).map_err(|error| error.to_string())
            });
        self.stage = match greeted {
            Ok(connection) => Stage::Greeting { connection, pause: again },
            Err(error) => {
                tracing::debug!(instance = %self.instance, %error, "a supervisor cannot be connected to");
                Stage::Away { retry_at: Instant::now() + pause, pause: again }
            }
        };
    }

    /// The greeting was answered: asks for all it knows.
    pub(super) fn list(&mut self) -> Result<(), Closed> {
        let Stage::Greeting { .. } = self.stage else { return Ok(()) };
        let Stage::Greeting { connection, .. } = std::mem::replace(&mut self.stage, Stage::Dead) else {
            return Ok(());
        };
        let list = ToSupervisor { message: Some(Order::List(List {})) };
        let sent = seqpacket::send(connection.as_fd(), &list.encode_to_vec(), &[]);
        self.stage = Stage::Listing { connection, launches: Vec::new() };
        sent.map_err(|_| Closed)
    }

    /// A part of what it knows; all of it with the last part.
    pub(super) fn listed(&mut self, part: Vec<LaunchInfo>, more: bool) -> Option<Vec<LaunchInfo>> {
        let Stage::Listing { launches, .. } = &mut self.stage else { return None };
        launches.extend(part);
        if more {
            return None;
        }
        let Stage::Listing { connection, launches } = std::mem::replace(&mut self.stage, Stage::Dead) else {
            return None;
        };
        self.stage = Stage::Up { connection };
        self.seen_up = true;
        Some(launches)
    }

    /// The connection is of no more use; what waits to be sent is worked out anew with the next one.
    pub(super) fn disconnected(&mut self) {
        let pause = match self.stage {
            Stage::Greeting { pause, .. } => pause,
            _ => PAUSE_MIN,
        };
        self.stage = Stage::Away { retry_at: Instant::now() + pause, pause };
        self.out.clear();
        self.blocked = false;
    }

    /// The next message with its descriptors; `None` when there is none for now.
    pub(super) fn recv(&self, receiver: &mut Receiver) -> Result<Option<(Told, Vec<OwnedFd>)>, Closed> {
        let Some(connection) = self.connection() else { return Ok(None) };
        loop {
            match receiver.recv(connection) {
                Ok(Some(datagram)) => match ToAgent::decode(datagram.body) {
                    Ok(ToAgent { message: Some(told) }) => return Ok(Some((told, datagram.descriptors))),
                    // A newer supervisor says something that we do not know, and need not.
                    Ok(ToAgent { message: None }) => {}
                    Err(error) => {
                        tracing::error!(instance = %self.instance, %error, "a supervisor's message is not readable");
                        return Err(Closed);
                    }
                },
                Ok(None) => return Err(Closed),
                Err(seqpacket::Error::WouldBlock) => return Ok(None),
                Err(error) => {
                    tracing::warn!(instance = %self.instance, %error, "receive from a supervisor");
                    return Err(Closed);
                }
            }
        }
    }
}

/// Pins a supervisor's process, if it is still the one that is meant.
pub(super) fn pin(identity: Identity) -> Option<OwnedFd> {
    let process = pidfd_open(Pid::from_raw(identity.pid)?, PidfdFlags::empty()).ok()?;
    // Looked at after it was pinned: now the pid cannot become another one's unseen.
    let same =
        proffer_launcher::proc::start_ticks(identity.pid).is_ok_and(|ticks| ticks == identity.start_ticks);
    same.then_some(process)
}
