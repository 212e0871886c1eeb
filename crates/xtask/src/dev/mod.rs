//! `cargo xtask dev`: the real programs as a small cluster, and a demonstration through the command line tool.

mod audit;
mod demo;

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::process::{self, Background, Read};
use crate::{interrupt, workspace};
use audit::Look;

const BUILD_LIMIT: Duration = Duration::from_secs(20 * 60);
const READY_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(60);
/// How long the kernel may take to let go of what has ended.
const SETTLE_LIMIT: Duration = Duration::from_secs(10);
/// Where the first master of a cluster listens that is there to be used.
const PORT: u16 = 5050;
/// Agents listen ten above the first master.
const AGENTS_ABOVE: u16 = 10;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Stop everything after the demonstration, and look for what was left behind.
    #[arg(long)]
    exit: bool,
    /// How many masters.
    #[arg(long, default_value_t = 3)]
    masters: u16,
    /// How many agents.
    #[arg(long, default_value_t = 2)]
    agents: u16,
    /// The first master's port [default: 5050; with --exit, one that is free]
    #[arg(long)]
    port: Option<u16>,
    /// How tasks are kept apart, as `proffer dev` has it.
    #[arg(long, default_value = "auto", value_name = "auto|linux|process")]
    containerizer: String,
}

/// A step that went wrong.
struct Failed {
    step: &'static str,
    why: anyhow::Error,
}

/// Names the step in which something goes wrong.
trait Step<T> {
    fn step(self, step: &'static str) -> Result<T, Failed>;
}

impl<T> Step<T> for Result<T> {
    fn step(self, step: &'static str) -> Result<T, Failed> {
        self.map_err(|why| Failed { step, why })
    }
}

/// The cluster under demonstration.
pub(crate) struct Cluster {
    /// `proffer` and the programs beside it.
    programs: Programs,
    /// `proffer dev`.
    dev: Background,
    /// When it was started.
    start: Instant,
    dir: PathBuf,
    /// All masters, as `--master` takes them.
    masters: String,
    mark: String,
}

/// Where the programs are.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    pub(crate) cli: PathBuf,
    pub(crate) first_offer: PathBuf,
}

/// Builds, starts, shows, and with `--exit` stops and audits.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let programs = build("dev")?;
    let before = Look::now();
    let result = show(args, programs, &before);
    match result {
        Ok(line) => {
            println!("{line}");
            Ok(true)
        }
        Err(Failed { step, why }) => {
            println!("proffer dev: FAILED {step}: {}", format!("{why:#}").replace('\n', " "));
            Ok(false)
        }
    }
}

/// Builds the programs in a profile.
pub(crate) fn build(profile: &str) -> Result<Programs> {
    let flags = ["--profile", profile, "--workspace", "--bins", "--example", "first_offer"];
    let built = workspace::build(&flags, BUILD_LIMIT)?;
    let find = |name: &str| {
        let program = built.iter().find(|built| built.name == name).map(|built| built.program.clone());
        program.with_context(|| format!("cargo built no {name}"))
    };
    ["proffer-master", "proffer-agent", "proffer-executor"]
        .iter()
        .try_for_each(|name| find(name).map(drop))?;
    Ok(Programs { cli: find("proffer")?, first_offer: find("first_offer")? })
}

fn show(args: &Args, programs: Programs, before: &Look) -> Result<String, Failed> {
    let port = args.port.or_else(|| (!args.exit).then_some(PORT));
    let started = Cluster::start(args.masters, args.agents, port, &args.containerizer, programs);
    let mut cluster = started.step("start")?;
    println!("started {} masters and {} agents, process {}", args.masters, args.agents, cluster.dev.pid());
    let shown = cluster.demonstrate();
    if shown.is_err() {
        println!("the cluster's log is {}", cluster.log().display());
        cluster.keep_log();
    }
    if !args.exit && shown.is_ok() {
        cluster.stay();
    }
    let groups = audit::agent_groups(&cluster.mark, &cluster.dir);
    let stopped = cluster.stop();
    let leaks = settle(before, &cluster, &groups);
    let numbers = shown?;
    stopped.step("stop")?;
    if !leaks.is_empty() {
        leaks.iter().for_each(|leak| println!("left behind: {leak}"));
        return Err(Failed {
            step: "audit",
            why: anyhow::anyhow!("leaks={}: {}", leaks.len(), leaks.join("; ")),
        });
    }
    Ok(format!("proffer dev: ok {numbers} leaks=0"))
}

/// Looks for leaks until there are none or the time is up, then removes the cluster's directory.
fn settle(before: &Look, cluster: &Cluster, groups: &BTreeSet<String>) -> Vec<String> {
    let deadline = Instant::now() + SETTLE_LIMIT;
    let leaks = loop {
        let leaks = audit::leaks(before, &cluster.mark, &cluster.dir, groups);
        if leaks.is_empty() || Instant::now() > deadline {
            break leaks;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    cluster.remove();
    leaks
}

/// A first port such that all that are needed are free now.
fn free_port(masters: u16, agents: u16) -> Result<u16> {
    let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let fits = |first: &u16| {
        let above = first + AGENTS_ABOVE;
        (*first..first + masters).chain(above..above + agents).all(free)
    };
    // Below where the kernel takes the ports of outgoing connections from, on its usual settings.
    let start = 20_000 + u16::try_from(std::process::id() % 100).expect("below 100") * 100;
    (start..32_000).step_by(100).find(fits).context("no free ports between 20000 and 32000")
}

impl Cluster {
    /// Starts a cluster, on a free port unless one is given.
    ///
    /// # Errors
    /// If there is no free port, or it cannot be started.
    pub(crate) fn start(
        masters: u16,
        agents: u16,
        port: Option<u16>,
        containerizer: &str,
        programs: Programs,
    ) -> Result<Self> {
        let port = port.map_or_else(|| free_port(masters, agents), Ok)?;
        let mark = format!("{}-{port}", std::process::id());
        let dir = std::env::temp_dir().join(format!("proffer-xtask-{mark}"));
        std::fs::create_dir(&dir).with_context(|| format!("create {}", dir.display()))?;
        let mut command = Command::new(&programs.cli);
        command.env(audit::MARK, &mark).arg("dev").arg("--dir").arg(dir.join("cluster"));
        command.args(["--masters", &masters.to_string(), "--agents", &agents.to_string()]);
        command.args(["--port", &port.to_string(), "--containerizer", containerizer]);
        let addresses: Vec<String> = (port..port + masters).map(|port| format!("127.0.0.1:{port}")).collect();
        let start = Instant::now();
        let dev = Background::start(command, &dir.join("dev.log"))?;
        Ok(Self { programs, dev, start, dir, masters: addresses.join(","), mark })
    }

    /// Removes its files.
    pub(crate) fn remove(&self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }

    fn log(&self) -> PathBuf {
        self.dir.join("dev.log")
    }

    /// Keeps the logs of a cluster that failed, where they do not look like something left behind.
    fn keep_log(&self) {
        if let Ok(to) = workspace::scratch("dev-failed.log") {
            let mut all = std::fs::read_to_string(self.log()).unwrap_or_default();
            for dir in std::fs::read_dir(self.dir.join("cluster")).into_iter().flatten().flatten() {
                let log = dir.path().join("log");
                if let Ok(text) = std::fs::read_to_string(&log) {
                    all.push_str(&format!("==> {} <==\n{text}\n", log.display()));
                }
            }
            if std::fs::write(&to, all).is_ok() {
                println!("logs: {}", to.display());
            }
        }
    }

    /// Waits for the line that says that masters lead and agents are there.
    pub(crate) fn ready(&mut self) -> Result<u128> {
        process::until("the ready line of `proffer dev`", READY_LIMIT, || {
            let log = std::fs::read_to_string(self.dir.join("dev.log")).unwrap_or_default();
            if log.lines().any(|line| line.starts_with("ready ")) {
                return Ok(Some(self.start.elapsed().as_millis()));
            }
            match self.dev.ended() {
                Some(status) => bail!("`proffer dev` ended with {status}: {}", log.trim()),
                None => Ok(None),
            }
        })
    }

    /// Calls `proffer` with all masters.
    pub(crate) fn proffer(&self, args: &[&str]) -> Command {
        self.proffer_at(&self.masters, args)
    }

    /// Calls `proffer` with these masters only.
    fn proffer_at(&self, masters: &str, args: &[&str]) -> Command {
        let mut command = Command::new(&self.programs.cli);
        command.env(audit::MARK, &self.mark).args(["--master", masters]).args(args);
        command
    }

    /// The demonstration; the numbers of the closing line.
    fn demonstrate(&mut self) -> Result<String, Failed> {
        demo::run(self)
    }

    /// Says where things are, and waits for Ctrl-C.
    fn stay(&mut self) {
        println!("\nThe cluster runs until Ctrl-C.");
        println!("  masters   {}", self.masters);
        println!("  state     {}", self.dir.join("cluster").display());
        println!("  log       {}", self.log().display());
        println!("  try       {} --master {} status", self.programs.cli.display(), self.masters);
        while !interrupt::asked() && self.dev.ended().is_none() {
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Stops it as Ctrl-C does.
    pub(crate) fn stop(&mut self) -> Result<()> {
        match self.dev.stop(STOP_LIMIT) {
            None => bail!("`proffer dev` did not end within {} s of SIGINT", STOP_LIMIT.as_secs()),
            Some(status) if status.success() || status.code() == Some(130) => Ok(()),
            Some(status) => bail!("`proffer dev` ended with {status}"),
        }
    }
}

/// Runs a command of the tool; its standard output if it ended with 0.
fn output(mut command: Command, limit: Duration) -> Result<String> {
    let words: Vec<String> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
    command.stderr(std::process::Stdio::inherit());
    let (ended, text) = process::text(command, limit, Read::Out)?;
    if !ended.ok() {
        bail!("proffer {}: {}", words.join(" "), ended.how());
    }
    Ok(text)
}
