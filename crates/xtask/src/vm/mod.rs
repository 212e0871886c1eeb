//! `cargo xtask test-vm`: the tests that run containers, on a machine that has nothing but cgroup v2.
//!
//! A host is on v1 or on v2, and half of the code for containers is for the other one. So these tests run a second time
//! in a small virtual machine: Debian's cloud kernel, booted by qemu from an image that is made here from the host's own
//! shell, tools and libraries. It is emulated in software, since a machine that is virtual itself seldom lends its
//! processor on; there everything takes several times as long.

mod image;
mod kernel;
mod run;

use std::time::Duration;

use anyhow::Result;

use crate::test::output::{self, Report};
use crate::test::prerequisites::{self, Needed};
use crate::workspace::{self, Built};

/// The packages whose tests run in the machine: those that make containers by themselves.
pub(crate) const PACKAGES: [&str; 3] = ["proffer-launcher", "proffer-executor", "proffer-containerizer"];
/// Of the whole machine, booting included.
const LIMIT: Duration = Duration::from_secs(15 * 60);
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
    let packages: Vec<&str> = PACKAGES
        .into_iter()
        .filter(|name| args.package.is_empty() || args.package.iter().any(|package| package == name))
        .collect();
    anyhow::ensure!(!packages.is_empty(), "the machine runs the tests of {} only", PACKAGES.join(", "));
    let mut flags = vec!["--all-targets"];
    // The containerizer's tests start the supervisor.
    packages.iter().chain(&["proffer-executor"]).for_each(|package| flags.extend(["-p", package]));
    let built = workspace::build(&flags, BUILD_LIMIT)?;
    let wanted = |built: &&Built| packages.contains(&built.package.as_str());
    let programs: Vec<&Built> = programs(&built).filter(wanted).collect();
    let mut report = Report::default();
    match prepare() {
        Ok(kernel) => {
            let machine = Machine { kernel, limit: Duration::from_secs(args.limit), show: true };
            machine.test(&programs, &built, &args.filter, &mut report)?;
        }
        Err(why) => report.skip("cgroup v2 in a virtual machine", &format!("{why:#}")),
    }
    println!("\n{report}");
    Ok(report.failed == 0)
}

/// The same as the last part of `cargo xtask test`, with what was built for it.
pub(crate) fn add(built: &[Built], report: &mut Report) -> Result<()> {
    let programs: Vec<&Built> = programs(built).collect();
    if programs.is_empty() {
        return Ok(());
    }
    println!("cgroup v2, in a virtual machine");
    match prepare() {
        Ok(kernel) => Machine { kernel, limit: LIMIT, show: false }.test(&programs, built, &[], report),
        Err(why) => {
            println!("skipped: {why:#}");
            for program in programs {
                report.skip(&format!("cgroup v2: {}", program.title()), &format!("{why:#}"));
            }
            Ok(())
        }
    }
}

/// The test programs that are run in the machine.
fn programs(built: &[Built]) -> impl Iterator<Item = &Built> {
    let order = |built: &&Built| PACKAGES.iter().position(|package| *package == built.package);
    let mut programs: Vec<&Built> =
        built.iter().filter(|built| built.test && order(built).is_some()).collect();
    programs.sort_by_key(|built| (order(built), &built.kind, &built.name));
    programs.into_iter()
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
    fn test(
        &self,
        programs: &[&Built],
        built: &[Built],
        filter: &[String],
        report: &mut Report,
    ) -> Result<()> {
        let image = image::make(programs, built, filter)?;
        let outcome = run::machine(&self.kernel, &image, self.limit, self.show)?;
        println!(
            "booted in {:.1} s, ran for {:.1} s",
            outcome.boot.as_secs_f64(),
            outcome.took.as_secs_f64()
        );
        for (index, program) in programs.iter().enumerate() {
            let title = format!("cgroup v2: {}", program.title());
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
