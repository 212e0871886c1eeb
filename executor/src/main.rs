//! `proffer-executor`: the supervisor of one framework's containers on a node.

use std::process::ExitCode;

use clap::Parser;
use proffer_executor::config::Config;
use proffer_executor::{daemon, pump};

fn main() -> ExitCode {
    // A file that a container's first process runs from must not be within its reach. Where it cannot be kept from it
    // (an old kernel), only user 0 of the host could write to it anyway.
    if let Err(error) = proffer_launcher::execute_read_only() {
        eprintln!("proffer-executor: {error}; going on");
    }
    // The supervisor starts its log pump from its own file; it is not for people to call.
    if std::env::args_os().nth(1).is_some_and(|word| word == pump::SUBCOMMAND) {
        return pump::main();
    }
    daemon::main(Config::parse())
}
