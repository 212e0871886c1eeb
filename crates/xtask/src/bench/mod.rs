//! `cargo xtask bench`: figures, each as one JSON object with its parameters, beside the floor of the same minute.
//!
//! A bare figure says little: the same disk and the same two cores are several times slower a minute later. So the
//! floor, what the kernel itself takes, and other people's programs are measured in turn with what is measured, and a
//! figure is told as a ratio too. Everything is done with the real programs, built as they are delivered.

mod cluster;
mod floor;
mod launch;
mod load;
mod look;
mod many;
mod peers;
mod restart;
mod siblings;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::{interrupt, process, workspace};

/// How long one program of a bench may take.
const LIMIT: Duration = Duration::from_secs(30 * 60);

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
    /// What the kernel takes to start a process, a container, to make an append durable, to send a message.
    Floor {
        /// Another program of the same modes, in C: measured in turn with ours.
        #[arg(long, value_name = "PATH")]
        floor_c: Option<PathBuf>,
    },
    /// Tasks from frameworks through the masters to an agent and back.
    Launch(launch::Args),
    /// An agent with running containers is killed and started again, many times.
    AgentRestart(restart::Args),
    /// Many containers at once, and many one after the other: how fast, how large, and what is left.
    Many(many::Args),
    /// How fast a task is ended while its neighbours misbehave.
    Siblings(siblings::Args),
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
        What::Floor { floor_c } => floor::run(floor_c.as_deref()),
        What::Launch(args) => launch::run(args),
        What::AgentRestart(args) => restart::run(args),
        What::Many(args) => many::run(args),
        What::Siblings(args) => siblings::run(args),
    }
}

/// Figures of repeated rounds, of which the middle ones are told.
#[derive(Default)]
struct Medians(std::collections::BTreeMap<String, Vec<f64>>);

impl Medians {
    fn note(&mut self, name: &str, value: f64) {
        self.0.entry(name.to_owned()).or_default().push(value);
    }

    fn median(&self, name: &str) -> Option<f64> {
        middle(self.0.get(name)?)
    }

    /// Median, least and greatest of each.
    fn json(&self) -> Value {
        let told = |list: &Vec<f64>| {
            let mut list = list.clone();
            list.sort_by(f64::total_cmp);
            let round = |value: f64| (value * 1_000.0).round() / 1_000.0;
            json!({
                "median": round(list[list.len() / 2]), "min": round(list[0]),
                "max": round(list[list.len() - 1]), "of": list.len(),
            })
        };
        self.0.iter().map(|(name, list)| (name.clone(), told(list))).collect()
    }
}

/// The middle one.
fn middle(list: &[f64]) -> Option<f64> {
    let mut list = list.to_vec();
    list.sort_by(f64::total_cmp);
    list.get(list.len() / 2).copied()
}

/// A number that a program's JSON must have.
fn number(value: &Value, key: &str) -> Result<f64> {
    value[key].as_f64().ok_or_else(|| anyhow::anyhow!("there is no number `{key}` in {value}"))
}

/// Prints one figure.
fn tell(figure: &Value) {
    println!("{figure}");
}

/// Between two measurements: whether somebody wants us to stop.
fn go_on() -> Result<()> {
    ensure!(!interrupt::asked(), "interrupted");
    Ok(())
}

/// The commit of what is measured, and whether there are changes on top.
fn commit() -> String {
    let git = |args: &[&str]| {
        let output = std::process::Command::new("git").current_dir(workspace::root()).args(args).output();
        output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
    };
    let changed = if git(&["status", "--porcelain", "--untracked-files=no"]).is_empty() { "" } else { "+" };
    format!("{}{changed}", git(&["rev-parse", "--short", "HEAD"]))
}
