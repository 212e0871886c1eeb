//! From flags to a running agent, and its orderly end.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use proffer_containerizer::{
    Cause, End, Event, InstanceId, Isolation, KillSent, Options, SeccompProfiles, Users, remove_all,
};
use proffer_telemetry::Level;
use proffer_types::{AgentInfo, BootId, LaunchId, features};
use proffer_wal::FsDisk;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sha2::{Digest, Sha256};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use crate::config::{Config, Containerizer, Flags};
use crate::core::{self, Core, Effect, Phase, Record};
use crate::detect::{self, Totals};
use crate::driver::{Driver, Handle, fresh_instance, wall_ms};
use crate::recover::{self, Recovered, Store};
use crate::serve;

/// The supervisor's program, beside the agent's own.
const EXECUTOR: &str = "proffer-executor";
/// A supervisor that has nothing to do ends after this.
const SUPERVISOR_IDLE: Duration = Duration::from_secs(60);
/// How long a supervisor that lives may answer nothing before others do without it.
const SUPERVISOR_ANSWERS: Duration = Duration::from_secs(15);
/// How soon a socket that is bound on the host is out of reach for the next containers.
const SOCKET_LOOK: Duration = Duration::from_secs(30);
/// Where profiles of system calls are looked for.
const SECCOMP_PROFILES: &str = "/etc/proffer/seccomp";
/// How long the end of what an agent has left may take.
const CLEAN_UP: Duration = Duration::from_secs(30);
/// What tasks must not see, where it exists, besides the agent's own directories.
const COVERS: &[&str] = &["/etc/proffer", "/var/lib/proffer"];

/// Runs the agent until SIGTERM or SIGINT. Tasks and their supervisors go on.
///
/// # Errors
/// Whatever keeps it from starting or going on, for people.
pub async fn run(flags: Flags, config: Config) -> Result<()> {
    let level = proffer_telemetry::init(config.log_format, &config.log)?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), ?config, "proffer-agent starts");
    allow_descriptors();
    let listener = serve::listen(config.listen).await?;
    let boot_id = detect::boot_id()?;
    let (store, found) = open_store(&config.work_dir, boot_id).await?;
    let (to_driver, container) = mpsc::unbounded_channel();
    let containerizer = open_containerizer(&config, to_driver)?;
    let resources = match &config.resources {
        Some(given) => given.clone(),
        None => Totals::detect(&config.work_dir)?.offered()?,
    };
    let info = AgentInfo {
        hostname: detect::hostname()?,
        resources,
        attributes: config.attributes.clone(),
        features: features(containerizer.isolation()),
        isolation: containerizer.isolation().to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    tracing::info!(resources = %info.resources, isolation = info.isolation, "offering");
    let core_config = core::Config { info, boot_id, registration_ms: config.executor_registration_ms };
    let core = Core::recover(core_config, found.identity, found.records, fresh_instance());
    let (driver, handle) = Driver::new(core, store, containerizer, container, config.masters.clone());
    tokio::spawn(serve::serve(listener, handle.clone()));
    tokio::spawn(watch_signals(handle, flags, level));
    driver.run().await?;
    tracing::info!("proffer-agent ends; its tasks go on");
    Ok(())
}

/// Opens the work directory, whose lock a predecessor may leave to a process that it was starting, like its port.
async fn open_store(dir: &Path, boot_id: BootId) -> Result<(Store, Recovered), recover::Error> {
    let given_up = Instant::now() + serve::BUSY;
    loop {
        match Store::open(Arc::new(FsDisk), dir, boot_id) {
            Err(recover::Error::Locked { .. }) if Instant::now() < given_up => {
                sleep(serve::BUSY_PAUSE).await;
            }
            opened => return opened,
        }
    }
}

/// Takes as many descriptors as the agent may have: connections, executors and the files of cgroups need some each, and
/// nothing here passes descriptors to select(2), for whose sake the usual limit is low.
fn allow_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, "the agent may have no more descriptors than it was started with");
    }
}

/// Ends everything that an agent with these settings has left, and writes down that it has ended, so that the next
/// start tells the masters and starts nothing of it again.
///
/// # Errors
/// If an agent runs, or something cannot be ended.
pub fn clean_up(config: &Config) -> Result<()> {
    let boot_id = detect::boot_id()?;
    let (mut store, found) = Store::open(Arc::new(FsDisk), &config.work_dir, boot_id)?;
    remove_all(&options(config)?, CLEAN_UP)?;
    let Some(identity) = found.identity else { return Ok(()) };
    let registration_ms = config.executor_registration_ms;
    let core_config = core::Config { info: AgentInfo::default(), boot_id, registration_ms };
    let mut core = Core::recover(core_config, Some(identity), found.records, fresh_instance());
    let begun: Vec<LaunchId> =
        core.held().filter(|h| h.phase == Phase::Recovering).map(|h| h.launch).collect();
    for launch in begun {
        let end = End {
            cause: Cause::SupervisorLost,
            exit_code: None,
            signal: None,
            oom: None,
            oom_kills: 0,
            memory_peak_bytes: None,
            kill_sent: KillSent::None,
            started_unix_ms: 0,
            finished_unix_ms: wall_ms(),
            ..End::default()
        };
        core.on_container_event(Event::Ended { launch, end });
    }
    // Everything else is for a containerizer or for a master.
    for effect in core.take_effects(&mut |_| InstanceId(0)) {
        match effect {
            Effect::Checkpoint(Record::Assigned { .. }) => {}
            Effect::Checkpoint(record) => store.append(&[record])?,
            Effect::PersistIdentity(identity) => store.write_identity(&identity)?,
            _ => {}
        }
    }
    Ok(())
}

fn open_containerizer(
    config: &Config,
    events: mpsc::UnboundedSender<Event>,
) -> Result<Box<dyn proffer_containerizer::Containerizer>> {
    // The driver is gone only when the process ends.
    let opened = proffer_containerizer::open(options(config)?, move |event| drop(events.send(event)));
    match opened {
        Ok(containerizer) => Ok(Box::new(containerizer)),
        Err(error) if config.containerizer == Containerizer::Auto && !is_of_own_dirs(&error, config) => Err(error).context(
            "this node cannot separate tasks from each other and from itself; to run them as plain processes all the \
             same, without limits, say `--containerizer process`",
        ),
        Err(error) => Err(error).context("open the containerizer"),
    }
}

/// What this agent can do with a task beyond running a command. Plain processes are not contained.
fn features(isolation: &str) -> BTreeSet<String> {
    let contained = isolation == Isolation::Linux.name();
    let always = [features::CHECKS, features::MAX_COMPLETION, features::TASK_GROUP, features::EXECUTOR];
    let contained = [features::CONTAINMENT].into_iter().filter(|_| contained);
    always.into_iter().chain(contained).map(str::to_owned).collect()
}

/// Whether it is a directory of ours that cannot be made, which has nothing to do with how tasks are separated.
fn is_of_own_dirs(error: &proffer_containerizer::Error, config: &Config) -> bool {
    let proffer_containerizer::Error::Path { path, .. } = error else { return false };
    path.starts_with(&config.work_dir) || path.starts_with(&config.runtime_dir)
}

fn options(config: &Config) -> Result<Options> {
    let isolation = match config.containerizer {
        Containerizer::Auto | Containerizer::Linux => Isolation::Linux,
        Containerizer::Process => Isolation::Process,
    };
    Ok(Options {
        isolation,
        agent_instance: instance_name(&config.work_dir)?,
        cgroup_root: config.cgroup_root.clone(),
        work_dir: config.work_dir.clone(),
        runtime_dir: config.runtime_dir.clone(),
        executor: executor(config)?,
        covers: COVERS.iter().map(PathBuf::from).filter(|dir| dir.is_dir()).collect(),
        task_users: config.task_users.clone(),
        supervisor_idle: SUPERVISOR_IDLE,
        supervisor_answers: SUPERVISOR_ANSWERS,
        socket_look: SOCKET_LOOK,
        // What supervisors take above it would be a task's, or the host's.
        supervisors_memory_bytes: Totals::detect(&config.work_dir)?.reserve_bytes(),
        log_bytes_per_second: config.task_log_rate,
        users: users(config, isolation)?,
        seccomp: seccomp_profiles(config)?,
    })
}

/// The user ids of tasks: their own where that was asked for, or can be had and was not declined.
fn users(config: &Config, isolation: Isolation) -> Result<Users> {
    if isolation == Isolation::Process || config.user_namespaces == Some(false) {
        return Ok(Users { private: false, ..config.users });
    }
    let private =
        match (proffer_containerizer::user_namespaces_unavailable(&config.users), config.user_namespaces) {
            (None, _) => config.users.ranges > 0,
            (Some(why), Some(true)) => {
                return Err(why)
                    .context("tasks cannot have user ids of their own here; say `--user-namespaces off`");
            }
            (Some(why), _) => {
                let why: &dyn std::error::Error = &why;
                tracing::warn!(
                    error = why,
                    "tasks have the node's user ids, for this kernel gives them none of their own"
                );
                false
            }
        };
    Ok(Users { private, ..config.users })
}

fn seccomp_profiles(config: &Config) -> Result<SeccompProfiles> {
    let usual = Path::new(SECCOMP_PROFILES);
    let dir = match &config.seccomp_profiles {
        Some(dir) => dir,
        None if usual.is_dir() => usual,
        None => return Ok(SeccompProfiles::default()),
    };
    let profiles = SeccompProfiles::load(dir).context("read the seccomp profiles")?;
    tracing::info!(dir = %dir.display(), profiles = ?profiles.names().collect::<Vec<_>>(), "seccomp profiles");
    Ok(profiles)
}

/// Names this agent among those of the machine by its work directory: the same after a restart, and after the
/// directory was emptied, so that what an earlier one left is found.
fn instance_name(work_dir: &Path) -> Result<String> {
    let path = std::fs::canonicalize(work_dir).with_context(|| format!("resolve {}", work_dir.display()))?;
    let digest = Sha256::digest(path.as_os_str().as_encoded_bytes());
    Ok(digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect())
}

fn executor(config: &Config) -> Result<PathBuf> {
    let path = match &config.executor {
        Some(path) => path.clone(),
        None => std::env::current_exe().context("find this program's own file")?.with_file_name(EXECUTOR),
    };
    if !path.is_file() {
        bail!(
            "the supervisor's program {} is not there: install it, or name it with --executor",
            path.display()
        );
    }
    Ok(path)
}

/// SIGTERM and SIGINT end the agent; SIGHUP takes the log filter from the configuration file anew.
async fn watch_signals(handle: Handle, flags: Flags, level: Level) {
    let listen = |kind| signal(kind).expect("handlers for the standard signals can be set");
    let mut terminate = listen(SignalKind::terminate());
    let mut interrupt = listen(SignalKind::interrupt());
    let mut hangup = listen(SignalKind::hangup());
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => match Config::load(&flags) {
                Ok(config) => match level.set(&config.log) {
                    Ok(()) => tracing::info!(log = config.log, "log filter taken anew"),
                    Err(error) => tracing::warn!(%error, "the log filter stays as it is"),
                },
                Err(problems) => tracing::warn!(%problems, "the log filter stays as it is"),
            },
        }
    }
    handle.stop().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_directory_that_is_let_go_soon_is_opened() {
        let dir = tempfile::Builder::new().prefix("proffer-agent").tempdir().expect("a directory");
        let held = Store::open(Arc::new(FsDisk), dir.path(), BootId(1)).expect("free");
        let mut opening = std::pin::pin!(open_store(dir.path(), BootId(1)));
        let early = std::future::poll_fn(|context| std::task::Poll::Ready(opening.as_mut().poll(context)));
        assert!(early.await.is_pending(), "the first attempt fails and is not the last");
        drop(held);
        opening.await.expect("free now");
    }
}
