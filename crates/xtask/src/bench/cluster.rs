//! The real programs as a cluster: masters, one agent, and the supervisors that it starts.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::look;
use crate::process::{self, Background, Read};
use crate::workspace;

const BUILD_LIMIT: Duration = Duration::from_secs(30 * 60);
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// Each cluster has this many ports to itself.
const PORTS: u16 = 20;
/// The agent listens so far above the first master.
const AGENT_ABOVE: u16 = 10;

/// Which programs are measured.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Which {
    /// How the programs are built.
    #[arg(long, default_value = "release")]
    profile: String,
    /// Measure the programs of this directory instead of building them.
    #[arg(long, value_name = "DIR", conflicts_with = "profile")]
    programs: Option<PathBuf>,
}

/// Where the programs are.
#[derive(Clone, Debug)]
pub(super) struct Programs {
    pub(super) master: PathBuf,
    pub(super) agent: PathBuf,
    pub(super) executor: PathBuf,
    pub(super) load: PathBuf,
    pub(super) profile: String,
}

impl Programs {
    /// Builds them, or takes those that are there.
    pub(super) fn find(which: &Which) -> Result<Self> {
        let Some(dir) = &which.programs else { return Self::build(&which.profile) };
        let dir = std::path::absolute(dir).context("resolve the programs' directory")?;
        let found = |name: &str| {
            let program = dir.join(name);
            ensure!(program.is_file(), "there is no {}", program.display());
            Ok(program)
        };
        Ok(Self {
            master: found("proffer-master")?,
            agent: found("proffer-agent")?,
            executor: found("proffer-executor")?,
            load: found("bench_launch")?,
            profile: "as given".to_owned(),
        })
    }

    fn build(profile: &str) -> Result<Self> {
        let mut flags = vec!["--profile", profile];
        for package in ["proffer-master", "proffer-agent", "proffer-executor", "proffer-client"] {
            flags.extend(["-p", package]);
        }
        flags.extend(["--bins", "--example", "bench_launch"]);
        let built = workspace::build(&flags, BUILD_LIMIT)?;
        let find = |name: &str| {
            let program = built.iter().find(|built| built.name == name).map(|built| built.program.clone());
            program.with_context(|| format!("cargo built no {name}"))
        };
        Ok(Self {
            master: find("proffer-master")?,
            agent: find("proffer-agent")?,
            executor: find("proffer-executor")?,
            load: find("bench_launch")?,
            profile: profile.to_owned(),
        })
    }

    pub(super) fn json(&self) -> Value {
        json!({ "master": self.master, "agent": self.agent, "executor": self.executor, "framework": self.load })
    }
}

/// What a cluster is to be.
#[derive(Clone, Debug)]
pub(super) struct Shape<'a> {
    pub(super) masters: u16,
    /// `linux` or `process`.
    pub(super) containerizer: &'a str,
    /// What the agent offers.
    pub(super) resources: &'a str,
}

/// A running cluster.
pub(super) struct Cluster {
    pub(super) programs: Programs,
    masters: Vec<Background>,
    agent: Option<Background>,
    /// How the agent is called.
    call: Vec<String>,
    /// All masters, as frameworks and agents name them.
    pub(super) addresses: String,
    dir: PathBuf,
    runtime: PathBuf,
    stopped: bool,
}

impl Cluster {
    pub(super) fn start(programs: &Programs, shape: &Shape<'_>) -> Result<Self> {
        // Supervisors outlive their agents, and become ours to be waited for.
        set_child_subreaper(true).context("become a subreaper")?;
        let port = free_ports()?;
        let mark = format!("proffer-bench-{}-{port}", std::process::id());
        let dir = std::env::temp_dir().join(&mark);
        // What is meant for a tmpfs shall be on one, also where /run is none.
        let tmpfs = Path::new("/dev/shm");
        let runtime = if tmpfs.is_dir() { tmpfs.join(&mark) } else { dir.join("run") };
        for made in [&dir, &dir.join("work"), &runtime] {
            fs::create_dir(made).with_context(|| format!("create {}", made.display()))?;
        }
        let listen: Vec<String> = (0..shape.masters).map(|n| format!("127.0.0.1:{}", port + n)).collect();
        let peers: Vec<String> = (1..).zip(&listen).map(|(id, at): (u16, _)| format!("{id}={at}")).collect();
        let mut masters = Vec::new();
        for (n, at) in listen.iter().enumerate() {
            let data = dir.join(format!("master-{}", n + 1));
            fs::create_dir(&data).with_context(|| format!("create {}", data.display()))?;
            let mut command = program(&programs.master);
            command.args(["--id", &(n + 1).to_string(), "--listen", at, "--data-dir"]).arg(&data);
            if shape.masters > 1 {
                command.args(["--peers", &peers.join(",")]);
            }
            // Offers at hand stay at hand while something else is measured.
            command.args(["--offer-timeout-ms", "3600000"]);
            masters.push(Background::start(command, &dir.join(format!("master-{}.log", n + 1)))?);
        }
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let call = vec![
            "--masters".into(),
            listen.join(","),
            "--listen".into(),
            format!("127.0.0.1:{}", port + AGENT_ABOVE),
            "--work-dir".into(),
            text(&dir.join("work")),
            "--runtime-dir".into(),
            text(&runtime),
            "--containerizer".into(),
            shape.containerizer.into(),
            "--resources".into(),
            shape.resources.into(),
        ];
        let addresses = listen.join(",");
        let programs = programs.clone();
        let mut cluster =
            Self { programs, masters, agent: None, call, addresses, dir, runtime, stopped: false };
        cluster.start_agent()?;
        Ok(cluster)
    }

    /// Starts the agent, for the first time or again.
    pub(super) fn start_agent(&mut self) -> Result<()> {
        let mut command = program(&self.programs.agent);
        command.args(&self.call);
        self.agent = Some(Background::start(command, &self.dir.join("agent.log"))?);
        Ok(())
    }

    /// SIGKILL to the agent.
    pub(super) fn kill_agent(&mut self) -> Result<()> {
        let mut agent = self.agent.take().context("the agent is not running")?;
        let pid = i32::try_from(agent.pid()).context("a process id")?;
        kill(Pid::from_raw(pid), Signal::SIGKILL).context("kill the agent")?;
        process::until("the agent's end", STOP_LIMIT, || Ok(agent.ended().map(drop)))
    }

    /// The agent's process.
    pub(super) fn agent(&self) -> Result<u32> {
        self.agent.as_ref().map(Background::pid).context("the agent is not running")
    }

    /// The supervisors: those that name our runtime directory, without the containers' inits, which look alike.
    pub(super) fn supervisors(&self) -> Vec<u32> {
        let socket = format!("--socket {}/", self.runtime.display());
        let alike: Vec<u32> =
            look::pids().into_iter().filter(|&pid| look::command_line(pid).contains(&socket)).collect();
        let of_alike = |pid: &u32| look::parent(*pid).is_some_and(|parent| alike.contains(&parent));
        alike.iter().copied().filter(|pid| !of_alike(pid)).collect()
    }

    /// The supervisors' log pumps.
    pub(super) fn pumps(&self) -> Vec<u32> {
        let supervisors = self.supervisors();
        let pump = |&pid: &u32| {
            look::parent(pid).is_some_and(|parent| supervisors.contains(&parent))
                && look::command_line(pid).ends_with("log-pump")
        };
        look::pids().into_iter().filter(pump).collect()
    }

    /// All processes by what they are.
    pub(super) fn parts(&self) -> BTreeMap<&'static str, Vec<u32>> {
        BTreeMap::from([
            ("masters", self.masters.iter().map(Background::pid).collect()),
            ("agent", self.agent.iter().map(Background::pid).collect()),
            ("supervisors", self.supervisors()),
            ("pumps", self.pumps()),
        ])
    }

    /// Everything of this cluster may use these processors only.
    pub(super) fn pin(&self, cores: &str) {
        self.parts().values().for_each(|pids| look::pin(pids, cores));
    }

    /// The process ids, for the figures.
    pub(super) fn pids(&self) -> Value {
        json!(self.parts())
    }

    /// What is below the agent's directories and in its cgroups: paths, without those that are there for as long as an
    /// agent is.
    pub(super) fn left_on_disk(&self) -> BTreeMap<&'static str, usize> {
        let entries = |dir: PathBuf| fs::read_dir(dir).map(|dir| dir.count()).unwrap_or(0);
        BTreeMap::from([
            ("sandboxes", entries(self.dir.join("work/sandboxes"))),
            ("logs", entries(self.dir.join("work/logs"))),
        ])
    }

    /// Ends it all and removes every trace.
    pub(super) fn stop(mut self) -> Result<()> {
        self.end()?;
        for dir in [&self.dir, &self.runtime] {
            if dir.exists() {
                fs::remove_dir_all(dir).with_context(|| format!("remove {}", dir.display()))?;
            }
        }
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        self.stopped = true;
        let supervisors = self.supervisors();
        if let Some(mut agent) = self.agent.take() {
            ensure!(agent.stop(STOP_LIMIT).is_some(), "the agent did not end in time");
        }
        let mut clean_up = program(&self.programs.agent);
        clean_up.args(&self.call).arg("--clean-up");
        let (ended, text) = process::text(clean_up, STOP_LIMIT * 2, Read::Both)?;
        if !ended.ok() {
            bail!("proffer-agent --clean-up: {}\n{text}", ended.how());
        }
        for pid in supervisors.iter().filter_map(|&pid| i32::try_from(pid).ok()) {
            let _ = waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG));
        }
        for master in &mut self.masters {
            ensure!(master.stop(STOP_LIMIT).is_some(), "a master did not end in time");
        }
        Ok(())
    }

    /// Where the programs' own words are.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !self.stopped {
            // What failed before is what is told; the logs stay.
            let _ = self.end();
        }
    }
}

/// One of the programs, as it is without this machine's configuration.
fn program(path: &Path) -> Command {
    let mut command = Command::new(path);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PROFFER_") {
            command.env_remove(name);
        }
    }
    command.args(["--config", "/dev/null"]);
    command
}

/// A first port such that all that are needed are free now; below where the kernel takes the ports of outgoing
/// connections from, on its usual settings.
fn free_ports() -> Result<u16> {
    let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let start = 22_000 + u16::try_from(std::process::id() % 200).context("below 200")? * PORTS;
    (start..32_000)
        .step_by(usize::from(PORTS))
        .find(|first| (*first..first + PORTS).all(free))
        .context("no free ports between 22000 and 32000")
}
