//! `cargo xtask test-vm`: the tests that run containers, on a machine that has nothing but cgroup v2.
//!
//! A host is on v1 or on v2, and half of the code for containers is for the other one. So these tests run a second time
//! in a small virtual machine: Debian's cloud kernel, booted by qemu from an image that is made here from the host's own
//! shell, tools and libraries. It is emulated in software, since a machine that is virtual itself seldom lends its
//! processor on; there everything takes several times as long.

mod image;
mod kernel;
mod run;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::test::output::{self, Report};
use crate::test::prerequisites::{self, Needed};
use crate::workspace::{self, Built};

/// The packages whose tests run in the machine, in order, and with which arguments: names of tests, if not all. Those
/// that hold many processes at once need the one emulated processor to themselves.
const TESTS: [(&str, &[&str]); 4] = [
    ("proffer-launcher", &[]),
    ("proffer-executor", &[]),
    ("proffer-containerizer", &["--test-threads=1"]),
    ("proffer-tests", STORIES_THERE),
];
/// The stories in which the version of cgroups, or what a container may do, is part; without one that wants an agent to
/// be too slow for an executor, which is as slow there.
const STORIES_THERE: &[&str] = &[
    "--test-threads=1",
    "--skip=who_floods_is_told_to_wait",
    "containers::",
    "escape",
    "checks::",
    "executors::",
    "files::a_hostile_sandbox",
    "files::files_are_listed",
    "ends::a_launch_that_a_stopped_supervisor",
];
/// Of the test programs of a package with stories, the one that has those above.
const STORIES: &str = "main";
/// The programs that tests start, with their packages.
const PRODUCTS: [(&str, &str); 6] = [
    ("proffer-executor", "proffer-executor"),
    ("proffer-agent", "proffer-agent"),
    ("proffer-master", "proffer-master"),
    ("proffer", "proffer-cli"),
    ("proffer-test-executor", "proffer-tests"),
    ("proffer-test-program", "proffer-tests"),
];
/// Of the whole machine, booting included.
const LIMIT: Duration = Duration::from_secs(30 * 60);
const BUILD_LIMIT: Duration = Duration::from_secs(20 * 60);

/// What making and running the machine takes.
const PROGRAMS: [Needed; 4] = [
    ("qemu-system-x86_64", "qemu-system-x86", "to emulate a machine with cgroup v2"),
    ("mke2fs", "e2fsprogs", "to make that machine's disk"),
    ("strip", "binutils", "to make the programs on it smaller"),
    ("ip", "iproute2", "to bring up that machine's loopback"),
];

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Stop the machine after so many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = LIMIT.as_secs())]
    limit: u64,
    /// Only the tests of these packages, as in `-p proffer-launcher`.
    #[arg(short, long, value_name = "PACKAGE")]
    package: Vec<String>,
    /// Only tests whose name contains one of these; more arguments for the test programs.
    #[arg(last = true)]
    filter: Vec<String>,
}

/// `cargo xtask test-vm`; whether nothing failed.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let asked = |name: &str| args.package.is_empty() || args.package.iter().any(|package| package == name);
    let packages: Vec<&str> = TESTS.into_iter().map(|(name, _)| name).filter(|name| asked(name)).collect();
    ensure!(!packages.is_empty(), "the machine has no tests of {}", args.package.join(", "));
    let mut flags = vec!["--bins", "--lib", "--tests"];
    packages.iter().for_each(|package| flags.extend(["-p", package]));
    // The containerizer's tests start the supervisor, the stories everything.
    let stories = packages.contains(&"proffer-tests");
    let products = &PRODUCTS[..if stories { PRODUCTS.len() } else { 1 }];
    products.iter().for_each(|(_, package)| flags.extend(["-p", package]));
    let built = workspace::build(&flags, BUILD_LIMIT)?;
    let mut programs = programs(&built);
    programs.retain(|program| packages.contains(&program.built.package.as_str()));
    if !args.filter.is_empty() {
        programs.iter_mut().for_each(|program| {
            program.args.retain(|arg| arg.starts_with("--"));
            program.args.extend(args.filter.iter().cloned());
        });
    }
    let mut report = Report::default();
    match prepare() {
        Ok(kernel) => {
            let machine = Machine { kernel, limit: Duration::from_secs(args.limit), show: true };
            machine.test(&programs, &mut report)?;
        }
        Err(why) => report.skip("cgroup v2 in a virtual machine", &format!("{why:#}")),
    }
    println!("\n{report}");
    Ok(report.failed == 0)
}

/// The same as the last part of `cargo xtask test`, with what was built for it.
pub(crate) fn add(built: &[Built], report: &mut Report) -> Result<()> {
    let programs = programs(built);
    if programs.is_empty() {
        return Ok(());
    }
    println!("cgroup v2, in a virtual machine");
    match prepare() {
        Ok(kernel) => Machine { kernel, limit: LIMIT, show: false }.test(&programs, report),
        Err(why) => {
            println!("skipped: {why:#}");
            for program in programs {
                report.skip(&format!("cgroup v2: {}", program.built.title()), &format!("{why:#}"));
            }
            Ok(())
        }
    }
}

/// A test program, and which of its tests run.
struct Program<'a> {
    built: &'a Built,
    args: Vec<String>,
}

/// The test programs that are run in the machine.
fn programs(built: &[Built]) -> Vec<Program<'_>> {
    let mut programs = Vec::new();
    for (package, args) in TESTS {
        let wanted = |built: &&Built| {
            let stories = package != "proffer-tests" || (built.kind == "test" && built.name == STORIES);
            built.test && built.package == package && stories
        };
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let mut of_it: Vec<&Built> = built.iter().filter(wanted).collect();
        of_it.sort_by_key(|built| (&built.kind, &built.name));
        programs.extend(of_it.into_iter().map(|built| Program { built, args: args.clone() }));
    }
    programs
}

/// The programs that tests start, where tests look for them: in the directory above their own.
fn products(programs: &[Program<'_>]) -> Vec<PathBuf> {
    let mut dirs: Vec<&Path> =
        programs.iter().filter_map(|program| program.built.program.ancestors().nth(2)).collect();
    dirs.sort_unstable();
    dirs.dedup();
    let places = dirs.into_iter().flat_map(|dir| PRODUCTS.map(|(name, _)| dir.join(name)));
    places.filter(|program| program.is_file()).collect()
}

/// What the machine needs of this one; an error is the reason why there can be none.
fn prepare() -> Result<kernel::Kernel> {
    prerequisites::need(&PROGRAMS)?;
    kernel::get()
}

struct Machine {
    kernel: kernel::Kernel,
    limit: Duration,
    /// Whether the tests' output goes to ours as it comes.
    show: bool,
}

impl Machine {
    fn test(&self, programs: &[Program<'_>], report: &mut Report) -> Result<()> {
        let image = image::make(programs, &products(programs))?;
        let outcome = run::machine(&self.kernel, &image, self.limit, self.show)?;
        println!(
            "booted in {:.1} s, ran for {:.1} s",
            outcome.boot.as_secs_f64(),
            outcome.took.as_secs_f64()
        );
        for (index, program) in programs.iter().enumerate() {
            let title = format!("cgroup v2: {}", program.built.title());
            let Some(ran) = outcome.ran.iter().find(|ran| ran.index == index) else {
                println!("{title}: never ended");
                report.add_one(&title, false);
                continue;
            };
            output::tell(&title, &ran.ended, &ran.text, report);
        }
        if let Some(why) = &outcome.failed {
            println!("the machine itself failed: {why}");
            report.add_one("the virtual machine", false);
        }
        Ok(())
    }
}
