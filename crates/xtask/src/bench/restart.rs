//! `bench agent-restart`: how long an agent that was killed needs until its running tasks are in hand again.

use std::time::Instant;

use anyhow::{Result, ensure};
use serde_json::json;

use super::cluster::{Cluster, Programs, Shape, Which};
use super::load::Load;
use super::{Medians, commit, go_on, look, number, tell};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Containers that run meanwhile.
    #[arg(long, default_value_t = 1_000)]
    containers: u32,
    /// How many times the agent is killed.
    #[arg(long, default_value_t = 100)]
    restarts: u32,
    /// How many masters.
    #[arg(long, default_value_t = 3)]
    masters: u16,
    /// How tasks are kept apart.
    #[arg(long, default_value = "linux", value_name = "linux|process")]
    containerizer: String,
    #[command(flatten)]
    which: Which,
}

/// Kills the agent, starts it, and asks for the end of one task: when its terminal status is with the framework,
/// everything was recovered and updates flow. The task is replaced, and at the end every one is asked about.
pub(super) fn run(args: &Args) -> Result<bool> {
    ensure!(args.containers > 1 && args.restarts > 0, "at least two containers and one restart");
    let programs = Programs::find(&args.which)?;
    let resources = format!("cpus:{0};mem:{0}MiB", args.containers);
    let shape = Shape { masters: args.masters, containerizer: &args.containerizer, resources: &resources };
    let mut cluster = Cluster::start(&programs, &shape)?;
    let mut load = Load::start(&cluster, 1, "cpus:1;mem:1MiB")?;
    let hold = load.order(&format!("hold {} sleep 3600", args.containers))?;
    let mut told = Medians::default();
    let rss = look::rss_kib(cluster.agent()?);
    for restart in 1..=args.restarts {
        go_on()?;
        cluster.kill_agent()?;
        let start = Instant::now();
        cluster.start_agent()?;
        let gone = load.order("kill 1")?;
        let seconds = start.elapsed().as_secs_f64();
        told.note("seconds", seconds);
        load.order("hold 1 sleep 3600")?;
        tell(&json!({
            "bench": "agent-restart", "restart": restart, "containers": args.containers,
            "containerizer": args.containerizer, "masters": args.masters, "seconds": seconds,
            "ended_unasked": gone["unasked"], "agent_rss_kib": look::rss_kib(cluster.agent()?),
            "pids": cluster.pids(),
        }));
    }
    let count = load.order("count")?;
    let running = number(&count, "running")?;
    let lost = f64::from(args.containers) - running;
    tell(&json!({
        "bench": "agent-restart", "what": "summary", "commit": commit(), "containers": args.containers,
        "restarts": args.restarts, "masters": args.masters, "containerizer": args.containerizer,
        "profile": programs.profile, "binaries": programs.json(), "launched_in": hold["seconds"],
        "recovered_and_updates_flowing": told.json(), "running": running, "lost": lost,
        "ended_unasked": count["unasked"], "agent_rss_kib_before": rss,
        "agent_rss_kib_after": look::rss_kib(cluster.agent()?),
    }));
    load.order("drop")?;
    load.stop()?;
    cluster.stop()?;
    Ok(lost == 0.0)
}
