//! The agent's program: see `proffer-agent --help`.

use std::process::ExitCode;

use clap::Parser;
use proffer_agent::config::{Config, Flags};
use proffer_agent::start;

fn main() -> ExitCode {
    let flags = Flags::parse();
    let config = match Config::load(&flags) {
        Ok(config) => config,
        Err(problems) => {
            eprintln!("proffer-agent: {problems}");
            return ExitCode::from(2);
        }
    };
    if flags.clean_up {
        return exit(start::clean_up(&config));
    }
    // One for the driver, one for streams and diagnostics; output is read on threads of its own.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let ended = match runtime {
        Ok(runtime) => runtime.block_on(start::run(flags, config)),
        Err(error) => Err(error.into()),
    };
    exit(ended)
}

fn exit(ended: anyhow::Result<()>) -> ExitCode {
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("proffer-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}
