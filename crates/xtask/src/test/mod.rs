//! `cargo xtask test`: every test, counted.
//!
//! Everything is built once, in one profile. Then each test program runs alone, with a limit of its own, so that one
//! that hangs fails by itself and the rest still runs. A test that cannot run here says so with a line
//! `SKIPPED: <test>: <reason>` and is counted as skipped. A test that ran a container says on which version of
//! cgroups with a line `RAN: cgroup v1` or `RAN: cgroup v2`. Last, the tests of containers run again on pure cgroup v2
//! in a virtual machine (`vm`).

pub(crate) mod output;
pub(crate) mod prerequisites;

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::process::{self, Read};
use crate::workspace::{self, Built};
use crate::{sim, vm};
use output::Report;
pub(crate) use prerequisites::cargo_has;

/// From cold on two slow cores.
const BUILD_LIMIT: Duration = Duration::from_secs(20 * 60);
/// One test program.
const PROGRAM_LIMIT: Duration = Duration::from_secs(5 * 60);
/// The test programs with whole clusters.
const STORIES_LIMIT: Duration = Duration::from_secs(12 * 60);
const DOCS_LIMIT: Duration = Duration::from_secs(6 * 60);
const SIM_LIMIT: Duration = Duration::from_secs(8 * 60);
/// Simulated seeds: as many as an unoptimised build gets through in the time of a coffee.
const SEEDS: u64 = 40;
const STORIES: &str = "proffer-tests";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How many seeds the simulator runs.
    #[arg(long, default_value_t = SEEDS)]
    seeds: u64,
    /// Also plant each known bug and see it caught: builds once more per bug.
    #[arg(long)]
    planted: bool,
    /// Only the tests of these packages, as in `-p proffer-wal`; without the simulator.
    #[arg(short, long, value_name = "PACKAGE")]
    package: Vec<String>,
}

impl Default for Args {
    fn default() -> Self {
        Self { seeds: SEEDS, planted: false, package: Vec::new() }
    }
}

/// Runs everything; whether nothing failed.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let start = Instant::now();
    prerequisites::check()?;
    println!("building everything, tests included");
    let mut flags = vec!["--all-targets"];
    if args.package.is_empty() {
        flags.push("--workspace");
    }
    args.package.iter().for_each(|package| flags.extend(["-p", package]));
    let built = workspace::build(&flags, BUILD_LIMIT)?;
    println!("built in {} s", start.elapsed().as_secs());

    let mut report = Report::default();
    for program in in_order(&built) {
        run_program(program, &mut report)?;
    }
    run_docs(args, &built, &mut report)?;
    if args.package.is_empty() {
        run_sim(args.seeds, &built, &mut report)?;
        if args.planted {
            let caught = sim::plant_all(sim::PLANT_SEEDS)?;
            report.add_one("planted bugs", caught);
        }
    }
    vm::add(&built, &mut report)?;
    println!("\n{report}");
    Ok(report.failed == 0)
}

/// The test programs, those of whole clusters last.
fn in_order(built: &[Built]) -> Vec<&Built> {
    let mut programs: Vec<&Built> = built.iter().filter(|built| built.test).collect();
    programs.sort_by_key(|built| (built.package == STORIES, &built.package, &built.kind, &built.name));
    programs
}

fn run_program(built: &Built, report: &mut Report) -> Result<()> {
    let title = built.title();
    let mut command = Command::new(&built.program);
    // As cargo does it: in the package's directory.
    command.current_dir(&built.dir).env("CARGO_MANIFEST_DIR", &built.dir).arg("--show-output");
    let stories = built.package == STORIES && built.kind == "test";
    let limit = if stories { STORIES_LIMIT } else { PROGRAM_LIMIT };
    let (ended, text) = process::text(command, limit, Read::Both)?;
    output::tell(&title, &ended, &text, report);
    Ok(())
}

/// Examples in the documentation of libraries; cargo refuses to look for them in a package that has none.
fn run_docs(args: &Args, built: &[Built], report: &mut Report) -> Result<()> {
    let mut command = workspace::cargo();
    command.args(["test", "--doc", "--no-fail-fast"]);
    if args.package.is_empty() {
        command.arg("--workspace");
    } else {
        let mut libraries = built.iter().filter(|built| built.test && built.kind == "lib").peekable();
        if libraries.peek().is_none() {
            return Ok(());
        }
        libraries.for_each(|library| {
            command.args(["-p", &library.package]);
        });
    }
    let (ended, text) = process::text(command, DOCS_LIMIT, Read::Both)?;
    output::tell("examples in the documentation", &ended, &text, report);
    Ok(())
}

fn run_sim(seeds: u64, built: &[Built], report: &mut Report) -> Result<()> {
    let Some(program) = built.iter().find(|built| built.name == sim::PROGRAM && !built.test) else {
        println!("the simulator was not built");
        report.add_one("simulator", false);
        return Ok(());
    };
    println!("simulator, {seeds} seeds");
    let ended = process::show(sim::command(&program.program, 1, seeds), SIM_LIMIT)?;
    println!("simulator: {} ({:.1} s)", ended.how(), ended.took.as_secs_f64());
    report.add_one("simulator", ended.ok());
    Ok(())
}
