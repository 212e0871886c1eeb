//! `cargo xtask bench`: figures, each as one JSON object with its parameters, beside the floor of the same minute.
//!
//! A bare figure says little: the same disk and the same two cores are several times slower a minute later. So the
//! floor, what the kernel itself takes, is measured in turn with what is measured.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::process::{self, Read};
use crate::{dev, workspace};

const LIMIT: Duration = Duration::from_secs(30 * 60);
/// Rounds of a bench that is measured in turn with its floor.
const ROUNDS: usize = 5;
/// Starts, appends and round trips of one measurement of the floor.
const SPAWNS: u32 = 500;
const SYNCS: u32 = 300;
const PINGS: u32 = 20_000;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// The allocator alone: full cycles, single events, rounds of declines.
    Allocator {
        /// The largest number of agents.
        #[arg(long, default_value_t = 50_000)]
        agents: u64,
        /// Repetitions of each figure.
        #[arg(long, default_value_t = 5)]
        iterations: u64,
    },
    /// What the kernel takes to start a process, to make an append durable, to send a message.
    Floor,
    /// Tasks from a framework through the masters to an agent and back, beside plain process starts.
    Launch {
        /// Tasks in each round.
        #[arg(long, default_value_t = 500)]
        tasks: u32,
        /// How many masters.
        #[arg(long, default_value_t = 1)]
        masters: u16,
        /// How tasks are kept apart.
        #[arg(long, default_value = "auto", value_name = "auto|linux|process")]
        containerizer: String,
        /// How the programs are built.
        #[arg(long, default_value = "release")]
        profile: String,
    },
}

/// Runs one bench.
pub(crate) fn run(args: &Args) -> Result<bool> {
    match &args.what {
        What::Allocator { agents, iterations } => {
            let mut command = workspace::cargo();
            command.args(["run", "--quiet", "--release", "-p", "proffer-allocator", "--example"]);
            command.args(["bench_allocator", "--", &iterations.to_string(), &agents.to_string()]);
            Ok(process::show(command, LIMIT)?.ok())
        }
        What::Floor => {
            let floor = Floor::build()?;
            for what in ["spawn", "fsync", "ping"] {
                println!("{}", floor.measure(what)?);
            }
            Ok(true)
        }
        What::Launch { tasks, masters, containerizer, profile } => {
            launch(*tasks, *masters, containerizer, profile)
        }
    }
}

fn launch(tasks: u32, masters: u16, containerizer: &str, profile: &str) -> Result<bool> {
    let floor = Floor::build()?;
    let programs = dev::build(profile)?;
    let range = format!("1-{tasks}");
    let mut ratios = Vec::new();
    let mut cluster = dev::Cluster::start(masters, 1, None, containerizer, programs)?;
    cluster.ready()?;
    for round in 1..=ROUNDS {
        let spawn = floor.measure("spawn")?;
        let start = Instant::now();
        let flags = ["run", "--cpus", "0.01", "--mem", "8MiB", "--array", &range, "--", "true"];
        let (ended, text) = process::text(cluster.proffer(&flags), LIMIT, Read::Both)?;
        ensure!(ended.ok(), "proffer {}: {}\n{text}", flags.join(" "), ended.how());
        let per_second = f64::from(tasks) / start.elapsed().as_secs_f64();
        let of_floor = per_second / spawn["per_second"].as_f64().context("the floor's rate")?;
        let figure = json!({
            "bench": "launch", "round": round, "tasks": tasks, "masters": masters, "agents": 1,
            "containerizer": containerizer, "profile": profile, "per_second": per_second, "of_spawn_floor": of_floor,
            "floor": spawn, "pids": cluster.pids(),
        });
        println!("{figure}");
        ratios.push(of_floor);
    }
    cluster.stop()?;
    cluster.remove();
    ratios.sort_by(f64::total_cmp);
    let median = ratios[ratios.len() / 2];
    println!(
        "{}",
        json!({ "bench": "launch", "rounds": ROUNDS, "tasks": tasks, "masters": masters, "median_of_spawn_floor": median })
    );
    Ok(true)
}

/// The program that measures the floor.
struct Floor {
    program: PathBuf,
}

impl Floor {
    fn build() -> Result<Self> {
        let program = workspace::scratch("floor")?;
        let source = workspace::root().join("crates/xtask/floor/floor.c");
        let mut command = Command::new("cc");
        command.args(["-O2", "-Wall", "-o"]).arg(&program).arg(source);
        let (ended, text) = process::text(command, LIMIT, Read::Both)?;
        if !ended.ok() {
            bail!("cc: {}\n{text}", ended.how());
        }
        Ok(Self { program })
    }

    fn measure(&self, what: &str) -> Result<Value> {
        let mut command = Command::new(&self.program);
        let n = match what {
            "spawn" => SPAWNS,
            "fsync" => SYNCS,
            _ => PINGS,
        };
        command.args([what, &n.to_string()]);
        if what == "fsync" {
            command.arg(workspace::scratch(&format!("floor-{}", std::process::id()))?);
        }
        let (ended, text) = process::text(command, LIMIT, Read::Out)?;
        ensure!(ended.ok(), "floor {what}: {}", ended.how());
        serde_json::from_str(&text).with_context(|| format!("floor {what}: {text}"))
    }
}
