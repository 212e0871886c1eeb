//! The project's verbs: `cargo xtask test`, `test-vm`, `dev`, `lint`, `ci`, `sim`, `bench`.
//!
//! This crate refuses to know what the product knows: it builds and runs the programs, and looks at the machine from
//! outside. It links none of the product's crates, so that it works while they do not compile.

#![allow(clippy::print_stdout, reason = "a command line tool speaks on standard output")]

mod bench;
mod dev;
mod interrupt;
mod lint;
mod process;
mod sim;
mod test;
mod tidy;
mod vm;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run every test: units, properties, stories, real clusters, the simulator.
    Test(test::Args),
    /// Run the tests of containers on pure cgroup v2, in a virtual machine.
    TestVm(vm::Args),
    /// Check format, lints and house rules.
    Lint,
    /// `lint`, then `test`.
    Ci,
    /// Start a local cluster of three masters and two agents and show what it does.
    Dev(dev::Args),
    /// Run the simulator over many seeds, or show that it catches planted bugs.
    Sim(sim::Args),
    /// Measure; one JSON object per figure.
    Bench(bench::Args),
}

fn main() -> ExitCode {
    let verb = Cli::parse().verb;
    interrupt::catch();
    let result = match verb {
        Verb::Test(args) => test::run(&args),
        Verb::TestVm(args) => vm::run(&args),
        Verb::Lint => lint::run(),
        Verb::Ci => lint::run().and_then(|clean| Ok(test::run(&test::Args::default())? && clean)),
        Verb::Dev(args) => dev::run(&args),
        Verb::Sim(args) => sim::run(&args),
        Verb::Bench(args) => bench::run(&args),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
