//! Clusters of the real programs, on loopback addresses of their own or in network namespaces.
//!
//! Nothing here touches a process, cgroup, mount or file that the cluster did not make, and nothing stays when a
//! [`Cluster`] is dropped. When that happens because a test has failed, the logs are printed.

#![allow(clippy::print_stdout, reason = "what a failed test prints is what there is to go by")]

pub mod audit;
mod daemon;
mod framework;
pub mod net;
mod programs;
mod wait;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use proffer_client::AdminClient;
use proffer_client::rows::{AgentRow, StatusSummary};
use tempfile::TempDir;

pub use daemon::Daemon;
pub use framework::{Framework, info, named, shell, spec};
pub use programs::{Visible, program};
pub use wait::{until, until_true};

/// How long a cluster may take to begin, on a busy machine.
pub const READY_LIMIT: Duration = Duration::from_secs(30);
/// One look at the cluster.
const LOOK_LIMIT: Duration = Duration::from_secs(2);
/// How much of a log is printed when a test fails.
const LOG_LINES: usize = 60;
/// Where ports begin.
const PORT: u16 = 5050;

/// The shape of a cluster.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many masters: 1 or 3.
    pub masters: usize,
    /// How many agents.
    pub agents: usize,
    /// `linux` or `process`.
    pub containerizer: &'static str,
    /// What each agent offers.
    pub resources: &'static str,
    /// The masters' `--heartbeat-ms`.
    pub heartbeat_ms: u64,
    /// The masters' `--offer-timeout-ms`.
    pub offer_timeout_ms: u64,
    /// Further flags of the agents.
    pub agent_flags: &'static [&'static str],
}

impl Default for Options {
    /// One master and one agent that runs plain processes.
    fn default() -> Self {
        Self {
            masters: 1,
            agents: 1,
            containerizer: "process",
            resources: "cpus:4;mem:4GiB",
            heartbeat_ms: 15_000,
            offer_timeout_ms: 30_000,
            agent_flags: &[],
        }
    }
}

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    /// The masters.
    pub masters: Vec<Daemon>,
    /// The agents.
    pub agents: Vec<Daemon>,
    net: Option<net::Net>,
    dir: Option<TempDir>,
}

/// Where a daemon listens: on loopback addresses that nobody else uses, so that a port is still free after a restart.
fn own_address() -> String {
    static NODES: AtomicU32 = AtomicU32::new(0);
    let (pid, n) = (std::process::id(), NODES.fetch_add(1, Ordering::Relaxed));
    let ip = format!("127.{}.{}.{}", 1 + (pid >> 8) % 250, pid % 256, 1 + n % 250);
    let free = |port: &u16| TcpListener::bind(format!("{ip}:{port}")).is_ok();
    let port = (PORT..PORT + 100).find(free).expect("a free port");
    format!("{ip}:{port}")
}

/// A directory that tasks' users can pass through.
fn own_dir() -> TempDir {
    let dir = tempfile::Builder::new().prefix("proffer-").tempdir().expect("a temporary directory");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("its owner may");
    dir
}

impl Cluster {
    /// Starts a cluster and waits until all agents are connected to a leader.
    ///
    /// # Panics
    /// If that does not come to pass.
    pub async fn start(options: Options) -> Self {
        let mut cluster = Self::prepare(&options);
        cluster.masters.iter_mut().chain(&mut cluster.agents).for_each(Daemon::start);
        cluster.ready(READY_LIMIT).await;
        cluster
    }

    /// A cluster of which nothing is started.
    pub fn prepare(options: &Options) -> Self {
        Self::build(options, None).expect("nothing that could be missing")
    }

    /// A cluster with each daemon in a network namespace of its own; nothing is started.
    ///
    /// # Errors
    /// What this machine lacks.
    pub fn prepare_in_namespaces(options: &Options) -> Result<Self, String> {
        Self::build(options, Some(net::Net::new()?))
    }

    fn build(options: &Options, mut net: Option<net::Net>) -> Result<Self, String> {
        let dir = own_dir();
        let mut place = || match &mut net {
            None => Ok((own_address(), None)),
            Some(net) => {
                let (node, ip) = net.add()?;
                Ok::<_, String>((format!("{ip}:{PORT}"), Some(net.namespace(node))))
            }
        };
        let masters: Vec<_> = (0..options.masters).map(|_| place()).collect::<Result<_, _>>()?;
        let agents: Vec<_> = (0..options.agents).map(|_| place()).collect::<Result<_, _>>()?;
        let addresses: Vec<String> = masters.iter().map(|(address, _)| address.clone()).collect();
        let peers: Vec<String> =
            addresses.iter().enumerate().map(|(i, address)| format!("{}={address}", i + 1)).collect();
        let insecure = net.is_some().then_some("--insecure");
        let text = |path: PathBuf| path.to_string_lossy().into_owned();

        let master = |(i, (address, namespace)): (usize, (String, Option<String>))| {
            let home = dir.path().join(format!("master-{}", i + 1));
            let data = home.join("data");
            let mut args: Vec<String> =
                ["--id", &(i + 1).to_string(), "--listen", &address].map(str::to_owned).into();
            args.extend(["--data-dir".into(), text(data.clone())]);
            if options.masters > 1 {
                args.extend(["--peers".into(), peers.join(",")]);
            }
            args.extend(["--heartbeat-ms".into(), options.heartbeat_ms.to_string()]);
            args.extend(["--offer-timeout-ms".into(), options.offer_timeout_ms.to_string()]);
            daemon("proffer-master", i, address, namespace, &home, data, args, insecure)
        };
        let agent = |(i, (address, namespace)): (usize, (String, Option<String>))| {
            let home = dir.path().join(format!("agent-{}", i + 1));
            let work = home.join("work");
            let mut args =
                vec!["--masters".to_owned(), addresses.join(","), "--listen".into(), address.clone()];
            args.extend([
                "--work-dir".into(),
                text(work.clone()),
                "--runtime-dir".into(),
                text(home.join("run")),
            ]);
            args.extend(["--containerizer".into(), options.containerizer.into()]);
            args.extend(["--resources".into(), options.resources.into()]);
            args.extend(options.agent_flags.iter().map(|flag| (*flag).to_owned()));
            daemon("proffer-agent", i, address, namespace, &home, work, args, insecure)
        };
        let masters = masters.into_iter().enumerate().map(master).collect();
        let agents = agents.into_iter().enumerate().map(agent).collect();
        Ok(Self { masters, agents, net, dir: Some(dir) })
    }

    /// Everything that the cluster keeps lies below it.
    ///
    /// # Panics
    /// Never.
    pub fn dir(&self) -> &Path {
        self.dir.as_ref().expect("it lives as long as the cluster").path()
    }

    /// The masters' addresses.
    pub fn addresses(&self) -> Vec<String> {
        self.masters.iter().map(|master| master.address.clone()).collect()
    }

    /// An operator's client that knows all masters.
    pub fn admin(&self) -> AdminClient {
        AdminClient::new(&self.addresses())
    }

    /// Waits until a leader serves and every agent that runs is connected to it.
    ///
    /// # Panics
    /// If that takes too long.
    pub async fn ready(&mut self, limit: Duration) {
        let wanted = self.agents.iter().filter(|agent| agent.child.is_some()).count();
        let admin = self.admin().with_deadline(LOOK_LIMIT);
        until("a leader with all agents", limit, async || {
            for daemon in self.masters.iter_mut().chain(&mut self.agents) {
                if let Some(status) = daemon.poll() {
                    panic!("{} has ended with {status}", daemon.name);
                }
            }
            let connected = admin.agents().await.ok()?.iter().filter(|agent| agent.connected).count();
            (connected >= wanted).then_some(())
        })
        .await;
    }

    /// Which master leads.
    ///
    /// # Panics
    /// If none does for too long.
    pub async fn leader(&self) -> usize {
        let admin = self.admin().with_deadline(LOOK_LIMIT);
        until("a leader", READY_LIMIT, async || {
            let (_, status) = admin.status().await.ok()?;
            self.masters.iter().position(|master| master.address == status.leader)
        })
        .await
    }

    /// A master that does not lead.
    ///
    /// # Panics
    /// If there is no leader, or no other master.
    pub async fn follower(&self) -> usize {
        let leader = self.leader().await;
        (0..self.masters.len()).find(|i| *i != leader).expect("more than one master")
    }

    /// The cluster at a glance.
    ///
    /// # Panics
    /// If nobody answers.
    pub async fn status(&self) -> StatusSummary {
        self.admin().status().await.expect("the cluster's status").1
    }

    /// The agents, as the leader knows them.
    ///
    /// # Panics
    /// If nobody answers.
    pub async fn agent_rows(&self) -> Vec<AgentRow> {
        self.admin().agents().await.expect("the list of agents")
    }

    /// Waits until no agent's resource is held by a task.
    ///
    /// # Panics
    /// If that takes too long.
    pub async fn all_free(&self, limit: Duration) {
        let admin = self.admin();
        until("all resources are free", limit, async || {
            let agents = admin.agents().await.ok()?;
            agents.iter().all(|agent| agent.used.is_empty() && agent.live_tasks == 0).then_some(())
        })
        .await;
    }

    /// `proffer --master …` with these arguments, killed when dropped.
    pub fn proffer(&self, masters: &[String], args: &[&str]) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(program("proffer"));
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", self.dir());
        command.arg("--master").arg(masters.join(",")).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    /// Runs `proffer` with all masters to its end.
    ///
    /// # Panics
    /// If it takes longer than `limit`.
    pub async fn run(&self, limit: Duration, args: &[&str]) -> Ran {
        ran(self.proffer(&self.addresses(), args), limit).await
    }

    /// The supervisors of an agent.
    ///
    /// # Panics
    /// Never: the agent's directory is below the cluster's.
    pub fn supervisors(&self, agent: usize) -> Vec<audit::RawPid> {
        let home = self.agents[agent].dir.parent().expect("below the cluster's directory");
        let runs = |pid: &audit::RawPid| {
            audit::arguments(*pid).first().is_some_and(|program| program.ends_with("proffer-executor"))
                && audit::stat(*pid).is_some_and(|stat| stat.state != 'Z')
        };
        let found: Vec<audit::RawPid> = audit::processes(home).into_iter().filter(runs).collect();
        // A supervisor's children, the log pump and the containers' inits, are of the same program.
        let parent = |pid: audit::RawPid| audit::stat(pid).map(|stat| stat.parent);
        found
            .iter()
            .copied()
            .filter(|&pid| parent(pid).is_some_and(|parent| !found.contains(&parent)))
            .collect()
    }

    /// The network, if the cluster has one.
    ///
    /// # Panics
    /// If it has none.
    pub fn net(&self) -> &net::Net {
        self.net.as_ref().expect("the cluster is in namespaces")
    }

    /// The number of a master's namespace.
    pub fn master_node(&self, master: usize) -> u8 {
        u8::try_from(master + 1).expect("few masters")
    }

    /// The number of an agent's namespace.
    pub fn agent_node(&self, agent: usize) -> u8 {
        u8::try_from(self.masters.len() + agent + 1).expect("few agents")
    }

    /// Ends everything, and tells what is left of it on the machine: nothing, if all is well.
    pub fn end(mut self) -> Vec<String> {
        self.clean()
    }

    fn clean(&mut self) -> Vec<String> {
        let Some(dir) = self.dir.take() else { return Vec::new() };
        let mut left = Vec::new();
        self.agents.iter_mut().for_each(Daemon::put_down);
        let instances: Vec<String> = self.agents.iter().map(|agent| audit::instance(&agent.dir)).collect();
        for agent in self.agents.iter().filter(|agent| agent.dir.is_dir()) {
            match agent.command(&["--clean-up"]).output() {
                Ok(output) if output.status.success() => {}
                Ok(output) => left.push(format!(
                    "{}: --clean-up: {} {}",
                    agent.name,
                    output.status,
                    String::from_utf8_lossy(&output.stderr).trim()
                )),
                Err(error) => left.push(format!("{}: --clean-up: {error}", agent.name)),
            }
        }
        self.masters.iter_mut().for_each(Daemon::put_down);
        for top in audit::hierarchies() {
            // Only goes if no other agent has groups there.
            let _ = fs::remove_dir(top.join("proffer"));
        }
        let path = dir.path().to_owned();
        if let Err(error) = dir.close() {
            left.push(format!("{}: {error}", path.display()));
        }
        self.net = None;
        left.extend(audit::left(&path, &instances));
        left
    }

    fn print_logs(&self) {
        for daemon in self.masters.iter().chain(&self.agents) {
            let text = daemon.log_text();
            let lines: Vec<&str> = text.lines().collect();
            println!("==> {} at {}, {} lines <==", daemon.name, daemon.address, lines.len());
            lines.iter().skip(lines.len().saturating_sub(LOG_LINES)).for_each(|line| println!("{line}"));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() && self.dir.is_some() {
            self.print_logs();
        }
        let left = self.clean();
        if !left.is_empty() && !std::thread::panicking() {
            panic!("left behind: {left:#?}");
        }
    }
}

#[allow(clippy::too_many_arguments, reason = "all of them say what a daemon is")]
fn daemon(
    program_name: &str,
    i: usize,
    address: String,
    namespace: Option<String>,
    home: &Path,
    dir: PathBuf,
    mut args: Vec<String>,
    insecure: Option<&str>,
) -> Daemon {
    fs::create_dir_all(&dir).expect("a directory in our own");
    // The machine's own configuration is about its own cluster.
    args.extend(["--config".into(), "/dev/null".into()]);
    args.extend(insecure.map(str::to_owned));
    Daemon {
        name: format!("{program_name} {}", i + 1),
        address,
        log: home.join("log"),
        dir,
        program: program(program_name),
        args,
        namespace,
        child: None,
    }
}

/// What a program came to.
#[derive(Clone, Debug)]
pub struct Ran {
    /// Its exit code, if it had one.
    pub code: Option<i32>,
    /// What it wrote.
    pub stdout: String,
    /// And what to standard error.
    pub stderr: String,
}

/// Runs a program to its end.
///
/// # Panics
/// If it cannot be started, or takes longer than `limit`.
pub async fn ran(mut command: tokio::process::Command, limit: Duration) -> Ran {
    let what = format!("{:?}", command.as_std());
    let output = tokio::time::timeout(limit, command.output()).await;
    let output = output.unwrap_or_else(|_| panic!("{what}: not within {limit:?}"));
    let output = output.unwrap_or_else(|error| panic!("{what}: {error}"));
    Ran {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Whether this process is root; if not, says that `test` is skipped.
pub fn is_root(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("SKIPPED: {test}: needs root");
    }
    root
}
