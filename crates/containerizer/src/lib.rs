//! The agent's side of containers: sandboxes, logs, cgroups, supervisors, and finding all of it again after a
//! restart.
//!
//! This crate refuses to decide what should run, to speak to a master and to clone: a container is started by its
//! framework's supervisor (`proffer-executor`), which outlives the agent, and this crate starts, watches and
//! instructs the supervisors. [`open`] gives the real thing, with cgroups and namespaces or, for machines without
//! root, plain processes; [`fake`] is a deterministic stand-in for tests. All pass the same contract test.
//!
//! # Order of a launch
//! The caller checkpoints the launch with the instance that [`Containerizer::assign`] named, then calls
//! [`Containerizer::launch`]. The cgroup is made, the launch is sent to that instance and to no other, and the
//! supervisor records it before it clones. Whatever dies in between, at most one payload is ever started for a
//! launch id: an instance that might have begun it is asked, or judged by its records, before
//! [`Event::NotStarted`] allows another.

// System calls on raw descriptors (pre-exec moves, openat2, pidfds) have no safe form.
#![allow(unsafe_code)]

mod cgroup;
mod error;
mod event;
pub mod fake;
mod gc;
mod logs;
mod seccomp;
mod spec;
mod supervised;
mod supervision;

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use proffer_types::{FrameworkId, LaunchId};

pub use error::{Error, LogError};
pub use event::{Cause, End, Event, KillCause, KillSent, Oom};
pub use logs::{Chunk, LogReader, Stream};
pub use seccomp::{ProfilesError, SeccompProfiles};
pub use spec::{ContainerSpec, GcPolicy, InstanceId, Isolation, Known, LogLimits, Options, Usage, Users};
pub use supervised::{Supervised, linux_unavailable, open, remove_all, user_namespaces_unavailable};
pub use supervision::{
    Answer, Check, CheckKind, ExecEvent, ExecId, ExecSink, ExecSpec, HealthCheck, NotThere, Probe, Stdio,
    Supervision, TerminalSize, resize,
};

/// Runs containers on this node.
///
/// No call blocks: work is done on a thread of the containerizer's own and told by [`Event`]s through the sink that
/// it was opened with. Events of one launch arrive in order. Dropping a containerizer ends no container.
///
/// A launch goes through
/// ```text
/// launch ─► (Started ─►) LaunchFailed | Ended ─► forget ─► Gone
///    └────► NotStarted ─► assign, checkpoint, launch again
/// ```
/// and is known from [`launch`](Self::launch) (or [`recover`](Self::recover)) until [`Event::Gone`].
pub trait Containerizer: Send {
    /// The supervisor instance that new launches of the framework are to be sent to: the current one, or the name of
    /// one that the first launch will start. The caller writes it down with the launch before it launches.
    fn assign(&mut self, framework: FrameworkId) -> InstanceId;

    /// Takes up what an earlier containerizer with the same options left: to be called once, before the first
    /// launch, with every launch the caller has on record and has not seen [`Event::Gone`] of.
    ///
    /// Each launch that is not `ended` is told again by `Started`, `Ended`, `LaunchFailed` or `NotStarted`, whatever
    /// happened meanwhile, and a true exit status is reported where a payload ended. Everything under our own
    /// directories and cgroups that belongs to none of `known` is ended and removed, each with
    /// [`Event::OrphanRemoved`]. [`Event::Recovered`] follows when every instance was heard or judged and no orphan
    /// is left. An instance that lives and does not answer is waited for a while only: what became of its launches is
    /// told when it does, and [`kill`](Self::kill) ends them without it.
    fn recover(&mut self, known: Vec<Known>);

    /// Starts a container. Idempotent by launch id: of a known one nothing happens. `spec.instance` must come from
    /// [`assign`](Self::assign) or from the record of an earlier delivery; the launch is delivered to that instance
    /// or, if that is gone without a trace of it, answered [`Event::NotStarted`].
    fn launch(&mut self, spec: ContainerSpec);

    /// Starts containers that live together: all of them or none, in one IPC namespace (and with one /dev/shm, where
    /// containers have one), with a directory that all see at [`group_path`](Self::group_path). When one ends otherwise
    /// than by exit code 0, or is killed, the others are killed. At least two, of one framework and one instance, each
    /// with the promises of [`launch`](Self::launch); the first names the group.
    ///
    /// If the group is not begun, either each member is told [`Event::NotStarted`], or each [`Event::LaunchFailed`], one
    /// with the reason and the others with `GroupNotStarted`.
    fn launch_group(&mut self, members: Vec<ContainerSpec>);

    /// Ends a container: SIGTERM to all its processes now, SIGKILL to the whole tree after the grace. A repeat may
    /// only bring the end nearer. A launch that was not yet delivered fails with `KilledDuringLaunch`. Of an ended or
    /// unknown launch nothing happens.
    fn kill(&mut self, launch: LaunchId, grace_ms: u64);

    /// Makes a container larger or smaller than it was launched: its cpu share and limit (milli) and its memory limit
    /// (bytes). Memory that it uses is not taken away: the limit is then what it uses. Of one that has ended or is
    /// unknown nothing happens, and nothing where limits are not enforced.
    fn resize(&mut self, launch: LaunchId, cpus_milli: u64, memory_bytes: u64);

    /// Lets go of a launch; one that still runs is killed first (and its end is told). Its cgroup is removed and its
    /// supervisor told to remove its records, then [`Event::Gone`] is told, also for an unknown launch. Sandbox and
    /// logs stay until [`gc`](Self::gc). The caller must not launch the id again.
    fn forget(&mut self, launch: LaunchId);

    /// The task's sandbox as the task itself sees it, for its environment.
    fn sandbox_path(&self, launch: LaunchId) -> PathBuf;

    /// Where the sandbox lies on the host, for whoever looks into it; its owner is the task's user. Nothing if there are
    /// no files. It may not be there yet, or any more, and a running task may change anything in it at any moment.
    fn sandbox_dir(&self, launch: LaunchId) -> Option<PathBuf>;

    /// Where the members of the group that `first` names find the directory they share.
    fn group_path(&self, first: LaunchId) -> PathBuf;

    /// Where a custom executor finds the unix stream socket by which it reaches the agent.
    fn executor_socket(&self, launch: LaunchId, instance: InstanceId) -> PathBuf;

    /// Asks for the listening end of that socket, non-blocking. Its supervisor keeps it too: who connects while there is
    /// no agent is in its queue.
    fn listener(&mut self, launch: LaunchId, answer: Answer<OwnedFd>);

    /// Whether a process is one of a container's. With plain processes this is best effort: a task can deny its own.
    fn holds(&self, launch: LaunchId, pid: i32) -> bool;

    /// Asks for the master's side of the terminal of a container that was given one, to write to and to
    /// [`resize`](crate::resize), non-blocking. What the container writes to it is in its logs, as standard output: who
    /// reads here takes that away.
    fn terminal(&mut self, launch: LaunchId, answer: Answer<OwnedFd>);

    /// Runs a program in a running container: in its namespaces and cgroup, as its user, under its filters. It ends with
    /// the container, and with this life of the agent. `sink` hears what becomes of it.
    fn exec(&mut self, launch: LaunchId, spec: ExecSpec, sink: ExecSink) -> ExecId;

    /// Sends a signal to such a program's process group, or to what has its terminal's foreground. Of one that has ended
    /// nothing happens.
    fn signal_exec(&mut self, exec: ExecId, signal: i32);

    /// A reader of the launch's logs. Its calls read files: not for a thread that must not block. It stays valid
    /// until the logs are collected.
    fn logs(&self, launch: LaunchId) -> LogReader;

    /// What the container uses now, if that is measured and the container is there.
    fn usage(&self, launch: LaunchId) -> Option<Usage>;

    /// Removes sandboxes and logs of forgotten launches, in the background: those older than the retention, and
    /// under disk pressure the oldest ones too.
    fn gc(&mut self, policy: GcPolicy);

    /// How containers are separated: `linux` or `process`, as shown to people.
    fn isolation(&self) -> &'static str;
}
