//! The `proffer-master` binary.

use std::process::ExitCode;

use proffer_master::config::Config;

fn main() -> ExitCode {
    let config: Config = proffer_settings::parse_or_exit();
    let problems = config.problems();
    if !problems.is_empty() {
        eprintln!("proffer-master: the settings cannot be used:");
        problems.iter().for_each(|problem| eprintln!("  {problem}"));
        return ExitCode::from(2);
    }
    proffer_telemetry::init(config.log_json);
    match proffer_master::serve(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("proffer-master: {error:#}");
            ExitCode::FAILURE
        }
    }
}
