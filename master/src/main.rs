//! The master's program: see `proffer-master --help`.

use std::process::ExitCode;

use clap::Parser;
use proffer_master::config::{Config, Flags};

fn main() -> ExitCode {
    let flags = Flags::parse();
    let config = match Config::load(&flags) {
        Ok(config) => config,
        Err(problems) => {
            eprintln!("proffer-master: {problems}");
            return ExitCode::from(2);
        }
    };
    match proffer_master::daemon::run(flags, &config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("proffer-master: {error:#}");
            ExitCode::FAILURE
        }
    }
}
