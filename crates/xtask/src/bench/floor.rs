//! The floor: what the kernel itself takes.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::{LIMIT, Medians, go_on, middle, number, tell};
use crate::process::{self, Read};
use crate::workspace;

/// Appends and round trips of one measurement.
const SYNCS: u32 = 300;
const PINGS: u32 = 20_000;
/// Launches of one measurement.
const LAUNCHES: u32 = 480;
/// Rounds in which two floors are compared.
const ROUNDS: usize = 5;
/// The least that ours may reach of another's rate: below, ours would flatter whatever is compared with it.
const AT_LEAST: f64 = 0.95;

/// A launch on the floor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A process.
    Spawn,
    /// A process in cgroups of its own.
    Cgroups,
    /// A process in cgroups and namespaces of its own, with a root on a tmpfs.
    Container,
}

impl Kind {
    pub(super) const ALL: [Self; 3] = [Self::Spawn, Self::Cgroups, Self::Container];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Spawn => "spawn",
            Self::Cgroups => "cg",
            Self::Container => "nscg",
        }
    }
}

/// The program that measures the floor, and the static program that its containers execute.
pub(super) struct Floor {
    program: PathBuf,
    idle: PathBuf,
    other: Option<PathBuf>,
}

impl Floor {
    /// Compiles it, and with it another program that knows `spawn`, `cg` and `nscg`.
    pub(super) fn build(other: Option<&Path>) -> Result<Self> {
        let source = workspace::root().join("crates/xtask/floor/floor.c");
        let program = compile(&source, "floor", &["-O2", "-Wall"])?;
        let idle = workspace::scratch("idle.c")?;
        std::fs::write(&idle, "int main(void) { return 0; }\n").context("write idle.c")?;
        let idle = compile(&idle, "idle", &["-O2", "-static"])?;
        let other = other.map(|source| compile(source, "floor-other", &["-O2", "-w"])).transpose()?;
        Ok(Self { program, idle, other })
    }

    /// The static program that its containers execute, for others to execute as well.
    pub(super) fn idle(&self) -> Result<&str> {
        self.idle.to_str().context("the target directory's name is not UTF-8")
    }

    /// Measures launches, so many at once, on these processors.
    pub(super) fn launches(&self, kind: Kind, at_once: u32, cores: &str) -> Result<Value> {
        let mut command = pinned(cores, &self.program);
        command.args([kind.name(), &LAUNCHES.to_string(), &at_once.to_string()]);
        if kind == Kind::Container {
            let dir = std::env::temp_dir().join(format!("proffer-floor-{}", std::process::id()));
            command.arg(dir).arg(&self.idle);
        }
        let mut figure = output(command, kind.name())?;
        figure["cores"] = json!(cores);
        Ok(figure)
    }

    /// The same by the other program, if there is one and it knows how: its rate.
    pub(super) fn other(&self, kind: Kind, at_once: u32, cores: &str) -> Result<Option<f64>> {
        let Some(other) = &self.other else { return Ok(None) };
        let mut command = pinned(cores, other);
        command.args([kind.name(), &LAUNCHES.to_string(), &at_once.to_string()]);
        // Its containers' roots on a tmpfs, as ours.
        command.env("FLOOR_TMPFS", "1");
        let (ended, text) = process::text(command, LIMIT, Read::Out)?;
        ensure!(ended.ok(), "the other floor, {}: {}", kind.name(), ended.how());
        let words: Vec<&str> = text.split_whitespace().collect();
        let rate = words.iter().position(|word| *word == "/s").and_then(|at| words[at - 1].parse().ok());
        rate.map(Some).with_context(|| format!("the other floor says no rate: {text}"))
    }

    /// Measures how long an append of 4 KiB takes to be durable, where benches keep their data.
    pub(super) fn fsync(&self) -> Result<Value> {
        let file = std::env::temp_dir().join(format!("proffer-floor-{}.fsync", std::process::id()));
        let mut command = Command::new(&self.program);
        command.args(["fsync", &SYNCS.to_string()]).arg(file);
        output(command, "fsync")
    }

    fn ping(&self) -> Result<Value> {
        let mut command = Command::new(&self.program);
        command.args(["ping", &PINGS.to_string()]);
        output(command, "ping")
    }
}

/// Prints the whole floor; beside another program's, if there is one, of which it must reach nearly all.
pub(super) fn run(other: Option<&Path>) -> Result<bool> {
    let floor = Floor::build(other)?;
    tell(&floor.fsync()?);
    tell(&floor.ping()?);
    let (mut rates, mut others) = (Medians::default(), Medians::default());
    for round in 0..ROUNDS {
        for kind in Kind::ALL {
            for (at_once, cores) in [(1, "0"), (8, "0"), (8, "0,1")] {
                go_on()?;
                let name = format!("{} x{at_once} on {cores}", kind.name());
                // Each is first in turn: what comes later finds the machine as the first has left it.
                let early = if round % 2 == 0 { floor.other(kind, at_once, cores)? } else { None };
                let figure = floor.launches(kind, at_once, cores)?;
                tell(&figure);
                rates.note(&name, number(&figure, "per_second")?);
                let late = if round % 2 == 1 { floor.other(kind, at_once, cores)? } else { None };
                if let Some(other) = early.or(late) {
                    others.note(&name, other);
                }
            }
        }
    }
    tell(&json!({ "bench": "floor", "rounds": ROUNDS, "per_second": rates.json() }));
    if others.0.is_empty() {
        return Ok(true);
    }
    let ratio =
        |(name, list): (&String, &Vec<f64>)| Some((name.clone(), rates.median(name)? / middle(list)?));
    let of_other: std::collections::BTreeMap<String, f64> = others.0.iter().filter_map(ratio).collect();
    let least = of_other.values().copied().fold(f64::INFINITY, f64::min);
    tell(&json!({
        "bench": "floor", "of_other": of_other, "other_per_second": others.json(), "least": least,
        "at_least": AT_LEAST, "ok": least >= AT_LEAST,
    }));
    Ok(least >= AT_LEAST)
}

fn compile(source: &Path, name: &str, flags: &[&str]) -> Result<PathBuf> {
    let program = workspace::scratch(name)?;
    let mut command = Command::new("cc");
    command.args(flags).arg("-o").arg(&program).arg(source);
    let (ended, text) = process::text(command, LIMIT, Read::Both)?;
    if !ended.ok() {
        bail!("cc {}: {}\n{text}", source.display(), ended.how());
    }
    Ok(program)
}

fn output(command: Command, what: &str) -> Result<Value> {
    let (ended, text) = process::text(command, LIMIT, Read::Out)?;
    ensure!(ended.ok(), "floor {what}: {}", ended.how());
    serde_json::from_str(&text).with_context(|| format!("floor {what}: {text}"))
}

/// A command that may use only these processors.
pub(super) fn pinned(cores: &str, program: &Path) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", cores]).arg(program);
    command
}
