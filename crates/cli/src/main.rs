//! `proffer`: the cluster from a terminal. It sees only what an outside user sees.

mod args;
mod cmd;
mod fail;
mod ids;
mod parse;
mod render;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Verb};
use render::Out;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let out = Out::new(cli.output, cli.quiet);
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("proffer: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(dispatch(cli, &out));
    // What still waits for a connection must not keep the process.
    runtime.shutdown_background();
    match result {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::from(failure.code.number())
        }
    }
}

async fn dispatch(cli: Cli, out: &Out) -> Result<u8, fail::Failure> {
    let cluster = cmd::Cluster::new(&cli.master);
    match cli.verb {
        Verb::Dev(args) => return cmd::dev::dev(args, out).await,
        Verb::Run(args) => return cmd::run::run(&cluster, args, out).await,
        Verb::Status => cmd::status(&cluster, out).await?,
        Verb::Task(verb) => return cmd::task::task(&cluster, verb, out).await,
        Verb::Agent(verb) => cmd::agent::agent(&cluster, verb, out).await?,
        Verb::Framework(verb) => cmd::framework::framework(&cluster, verb, out).await?,
        Verb::Executor(verb) => cmd::executor::executor(&cluster, verb, out).await?,
        Verb::Offer(args::OfferVerb::List) => cmd::offers(&cluster, out).await?,
        Verb::Master(args::MasterVerb::List) => cmd::masters(&cluster, out).await?,
        Verb::Events { follow, from } => cmd::events::events(&cluster, follow, from, out).await?,
        Verb::Top(args) => cmd::top::top(&cluster, args, out).await?,
        Verb::Completions { shell } => out.text(cmd::complete::script(shell))?,
        Verb::Complete { words } => {
            let found = cmd::complete::candidates(&cluster.masters, &words).await;
            let lines: Vec<String> = found.iter().map(|(value, what)| format!("{value}\t{what}\n")).collect();
            out.text(&lines.concat())?;
        }
    }
    Ok(0)
}
