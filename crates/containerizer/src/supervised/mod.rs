//! The real containerizer: supervisors do the work, this keeps them and their launches.
//!
//! A [`Supervised`] is a handle; everything happens on one thread, which waits on the supervisors' sockets and
//! processes and on the handle's commands, and never on a task.

mod ask;
mod asked;
mod confine;
mod dirs;
mod end;
mod engine;
mod launch;
mod records;
mod recover;
mod remove;
mod silence;
mod sockets;
mod start;
mod supervisor;
mod talk;
mod user;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use proffer_types::{FrameworkId, LaunchId};
use rustix::event::{EventfdFlags, eventfd};

use crate::cgroup::{Tree, detect};
use crate::logs::Writing;
use crate::{
    Answer, ContainerSpec, Containerizer, Error, Event, ExecId, ExecSink, ExecSpec, GcPolicy, InstanceId,
    Isolation, Known, LogReader, Options, Usage, Users,
};
use ask::Thing;
use confine::Confinement;
use dirs::Dirs;
use engine::{Command, Engine};

pub use remove::remove_all;

/// Where the sandbox is inside a container of `linux`.
const SANDBOX_INSIDE: &str = proffer_launcher::SANDBOX_PATH;

/// Where the directory of a group is inside a container of `linux`.
const GROUP_INSIDE: &str = "/mnt/proffer/group";
/// Where a custom executor's socket is inside a container of `linux`.
const EXECUTOR_INSIDE: &str = "/mnt/proffer/executor/socket";

/// What handle and thread both touch.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// The instance that each framework's next launch goes to.
    current: Mutex<BTreeMap<FrameworkId, InstanceId>>,
    /// The launches that may still write logs.
    writing: Writing,
    /// The thread has been woken and will look for commands after it has said otherwise.
    awake: AtomicBool,
}

impl Shared {
    fn current(&self) -> std::sync::MutexGuard<'_, BTreeMap<FrameworkId, InstanceId>> {
        self.current.lock().expect("no panic while it is held")
    }

    fn writes(&self, launch: LaunchId) {
        self.writing.write().expect("no panic while it is held").insert(launch);
    }

    fn writes_no_more(&self, launch: LaunchId) {
        self.writing.write().expect("no panic while it is held").remove(&launch);
    }
}

/// Containers under supervisors.
#[derive(Debug)]
pub struct Supervised {
    isolation: Isolation,
    dirs: Dirs,
    confinement: Confinement,
    shared: Arc<Shared>,
    commands: Sender<Command>,
    wake: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
    execs_made: u64,
}

/// Opens the containerizer: makes its directories and cgroups and starts its thread. Events go to `sink`, on that
/// thread: it must not wait for anything.
pub fn open(options: Options, sink: impl FnMut(Event) + Send + 'static) -> Result<Supervised, Error> {
    let dirs = dirs(&options)?;
    dirs.create(options.isolation)?;
    let confinement = confinement(&options, &dirs, true)?;
    if let Confinement::Cgroups(tree) = &confinement {
        tree.lacks().iter().for_each(|lacking| tracing::warn!("{lacking}"));
        // What the supervisors will do for each framework, done once to see that it can be: a node on which every
        // launch fails must not be offered.
        let covers =
            [&dirs.work, &dirs.runtime].into_iter().chain(&options.covers).cloned().collect::<Vec<_>>();
        proffer_launcher::Template::build(&covers).map_err(|error| Error::System {
            operation: "prepare the view of containers",
            source: error.into(),
        })?;
    }
    let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
    let wake = Arc::new(wake.map_err(|error| Error::System { operation: "eventfd", source: error.into() })?);
    let shared = Arc::new(Shared::default());
    let (commands, receiver) = mpsc::channel();
    let isolation = options.isolation;
    let engine = Engine::new(
        options,
        dirs.clone(),
        confinement.clone(),
        shared.clone(),
        (receiver, wake.clone()),
        Box::new(sink),
    );
    let thread = std::thread::Builder::new().name("containers".into()).spawn(move || engine.run());
    let thread = thread.map_err(|source| Error::System { operation: "start a thread", source })?;
    Ok(Supervised {
        isolation,
        dirs,
        confinement,
        shared,
        commands,
        wake,
        thread: Some(thread),
        execs_made: 0,
    })
}

/// Why `linux` containers cannot be made here; `None` if they can.
pub fn linux_unavailable(cgroup_root: Option<&std::path::Path>) -> Option<Error> {
    if !rustix::process::geteuid().is_root() {
        return Some(Error::NotRoot);
    }
    detect(cgroup_root).err()
}

/// Why containers cannot have user ids of their own here; `None` if they can.
pub fn user_namespaces_unavailable(users: &Users) -> Option<Error> {
    if users.ranges == 0 {
        return None;
    }
    let range = proffer_launcher::IdRange { first: users.first(0), count: Users::RANGE };
    let made = proffer_launcher::UserNamespace::new(range);
    made.err().map(|error| Error::System { operation: "make a user namespace", source: error.into() })
}

fn dirs(options: &Options) -> Result<Dirs, Error> {
    let named = &options.agent_instance;
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if named.is_empty() || named.len() > 64 || !named.chars().all(plain) {
        let expected = "1 to 64 of a-z, 0-9 and -";
        return Err(Error::Option { name: "agent instance", value: named.clone(), expected });
    }
    let absolute = |path: &PathBuf| {
        std::path::absolute(path).map_err(|source| Error::Path {
            operation: "resolve",
            path: path.clone(),
            source,
        })
    };
    let (work, runtime) = (absolute(&options.work_dir)?, absolute(&options.runtime_dir)?);
    Ok(Dirs { work, runtime, journals: records::Journals::default() })
}

fn confinement(options: &Options, dirs: &Dirs, create: bool) -> Result<Confinement, Error> {
    match options.isolation {
        Isolation::Process => Ok(Confinement::Nothing(dirs.clone())),
        Isolation::Linux if !rustix::process::geteuid().is_root() => Err(Error::NotRoot),
        Isolation::Linux => {
            let layout = detect(options.cgroup_root.as_deref())?;
            let (instance, held) = (&options.agent_instance, dirs.held());
            let tree = if create {
                Tree::create(layout, instance, &held, options.supervisors_memory_bytes)?
            } else {
                Tree::existing(layout, instance, &held)?
            };
            Ok(Confinement::Cgroups(tree))
        }
    }
}

impl Supervised {
    fn command(&self, command: Command) {
        // The thread ends with the handle and not before, but for a panic, which its owner sees.
        if self.commands.send(command).is_ok() && !self.shared.awake.swap(true, Ordering::AcqRel) {
            let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
        }
    }
}

impl Containerizer for Supervised {
    fn assign(&mut self, framework: FrameworkId) -> InstanceId {
        *self.shared.current().entry(framework).or_insert_with(|| {
            // Never 0, which stands for no instance.
            InstanceId(getrandom::u64().expect("the kernel has random numbers").max(1))
        })
    }

    fn recover(&mut self, known: Vec<Known>) {
        known.iter().filter(|known| !known.ended).for_each(|known| self.shared.writes(known.launch));
        self.command(Command::Recover(known));
    }

    fn launch(&mut self, spec: ContainerSpec) {
        self.command(Command::Launch(Box::new(spec)));
    }

    fn launch_group(&mut self, members: Vec<ContainerSpec>) {
        self.command(Command::LaunchGroup(members));
    }

    fn kill(&mut self, launch: LaunchId, grace_ms: u64) {
        self.command(Command::Kill(launch, grace_ms));
    }

    fn resize(&mut self, launch: LaunchId, cpus_milli: u64, memory_bytes: u64) {
        self.command(Command::Resize(launch, cpus_milli, memory_bytes));
    }

    fn forget(&mut self, launch: LaunchId) {
        self.command(Command::Forget(launch));
    }

    fn sandbox_path(&self, launch: LaunchId) -> PathBuf {
        match self.isolation {
            Isolation::Linux => PathBuf::from(SANDBOX_INSIDE),
            Isolation::Process => self.dirs.sandbox(launch),
        }
    }

    fn sandbox_dir(&self, launch: LaunchId) -> Option<PathBuf> {
        Some(self.dirs.sandbox(launch))
    }

    fn group_path(&self, first: LaunchId) -> PathBuf {
        match self.isolation {
            Isolation::Linux => PathBuf::from(GROUP_INSIDE),
            Isolation::Process => self.dirs.group(first),
        }
    }

    fn executor_socket(&self, launch: LaunchId, instance: InstanceId) -> PathBuf {
        match self.isolation {
            Isolation::Linux => PathBuf::from(EXECUTOR_INSIDE),
            Isolation::Process => self.dirs.executor_socket(instance, launch),
        }
    }

    fn listener(&mut self, launch: LaunchId, answer: Answer<OwnedFd>) {
        self.command(Command::Ask(launch, Thing::Listener, answer));
    }

    fn holds(&self, launch: LaunchId, pid: i32) -> bool {
        self.confinement.holds(launch, pid)
    }

    fn terminal(&mut self, launch: LaunchId, answer: Answer<OwnedFd>) {
        self.command(Command::Ask(launch, Thing::Terminal, answer));
    }

    fn exec(&mut self, launch: LaunchId, spec: ExecSpec, sink: ExecSink) -> ExecId {
        self.execs_made += 1;
        let exec = ExecId(self.execs_made);
        self.command(Command::Exec(launch, exec, spec, sink));
        exec
    }

    fn signal_exec(&mut self, exec: ExecId, signal: i32) {
        self.command(Command::SignalExec(exec, signal));
    }

    fn logs(&self, launch: LaunchId) -> LogReader {
        LogReader::files(launch, self.dirs.logs(launch), self.shared.writing.clone())
    }

    fn usage(&self, launch: LaunchId) -> Option<Usage> {
        self.confinement.usage(launch)
    }

    fn gc(&mut self, policy: GcPolicy) {
        self.command(Command::Gc(policy));
    }

    fn isolation(&self) -> &'static str {
        self.isolation.name()
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        self.command(Command::Stop);
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed there.
            let _ = thread.join();
        }
    }
}
