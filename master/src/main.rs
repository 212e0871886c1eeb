//! The `proffer-master` binary.

use std::process::ExitCode;

use proffer_master::config::Config;
use proffer_telemetry::Format;

fn main() -> ExitCode {
    let config: Config = proffer_settings::parse_or_exit();
    let mut problems = config.problems();
    let format = if config.log_json { Format::Json } else { Format::Text };
    if let Err(error) = proffer_telemetry::init(format, &config.log) {
        problems.push(format!("log: {error}"));
    }
    if !problems.is_empty() {
        eprintln!("proffer-master: the settings cannot be used:");
        problems.iter().for_each(|problem| eprintln!("  {problem}"));
        return ExitCode::from(2);
    }
    match proffer_master::daemon::run(&config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("proffer-master: {error:#}");
            ExitCode::FAILURE
        }
    }
}
