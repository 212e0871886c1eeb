//! `bench many`: a thousand containers at once, and ten thousand one after the other.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::cluster::{Cluster, Programs, Shape, Which};
use super::load::Load;
use super::{commit, go_on, look, number, tell};
use crate::process;

/// How long the node may take to let go of what has ended.
const SETTLE: Duration = Duration::from_secs(30);

/// As many looks without a change are taken for the end of changes.
const QUIET_LOOKS: u32 = 10;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Containers at once.
    #[arg(long, default_value_t = 1_000)]
    containers: u32,
    /// How often they are launched and destroyed.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Tasks that run to their end, in ten parts after each of which the node is looked at; 0 for none.
    #[arg(long, default_value_t = 10_000)]
    launches: u32,
    /// How many masters.
    #[arg(long, default_value_t = 1)]
    masters: u16,
    /// How tasks are kept apart.
    #[arg(long, default_value = "linux", value_name = "linux|process")]
    containerizer: String,
    #[command(flatten)]
    which: Which,
}

pub(super) fn run(args: &Args) -> Result<bool> {
    ensure!(args.containers > 0 && args.rounds > 0, "at least one container and one round");
    let programs = Programs::find(&args.which)?;
    let resources = format!("cpus:{};mem:{}MiB", args.containers, args.containers * 16);
    let shape = Shape { masters: args.masters, containerizer: &args.containerizer, resources: &resources };
    let cluster = Cluster::start(&programs, &shape)?;
    let mut load = Load::start(&cluster, 1, "cpus:1;mem:16MiB")?;
    // Node and supervisor keep for the next launches what the first have made, up to a bound.
    load.order(&format!("hold {} sleep 3600", args.containers))?;
    load.order("drop")?;
    let base = settled(&cluster, None)?;
    for round in 1..=args.rounds {
        go_on()?;
        let launched = load.order(&format!("hold {} sleep 3600", args.containers))?;
        let with = snapshot(&cluster);
        let destroyed = load.order("drop")?;
        let after = settled(&cluster, Some(&base))?;
        tell(&json!({
            "bench": "many", "what": "at once", "round": round, "containers": args.containers,
            "containerizer": args.containerizer, "masters": args.masters,
            "launched_seconds": launched["seconds"], "destroyed_seconds": destroyed["seconds"],
            "before": base, "with": with, "after": after, "pids": cluster.pids(),
        }));
    }
    let mut rss = Vec::new();
    let part = args.launches.div_ceil(10);
    let base = snapshot(&cluster);
    for tenth in 1..=10 {
        if part == 0 {
            break;
        }
        go_on()?;
        let done = load.order(&format!("rate {part} true"))?;
        let after = settled(&cluster, Some(&base))?;
        rss.push((number(&after["agent"], "rss_kib")?, number(&after["supervisor"], "rss_kib")?));
        tell(&json!({
            "bench": "many", "what": "one after the other", "launches": tenth * part,
            "per_second": done["per_second"], "containerizer": args.containerizer, "after": after,
        }));
    }
    let middle = rss.len() / 2;
    let grown = rss.last().zip(rss.get(middle)).map(|(last, middle)| (last.0 - middle.0, last.1 - middle.1));
    tell(&json!({
        "bench": "many", "what": "summary", "commit": commit(), "profile": programs.profile,
        "binaries": programs.json(), "launches": part * 10, "before": base, "after": snapshot(&cluster),
        "agent_rss_kib_grown_in_second_half": grown.map(|grown| grown.0),
        "supervisor_rss_kib_grown_in_second_half": grown.map(|grown| grown.1),
    }));
    load.stop()?;
    cluster.stop()?;
    Ok(true)
}

/// What the node holds now.
fn snapshot(cluster: &Cluster) -> Value {
    let first = |pids: Vec<u32>| pids.first().map(|&pid| look::process(pid));
    let supervisors = cluster.supervisors();
    let groups = supervisors.first().map(|&pid| look::groups_beside(pid)).unwrap_or_default();
    json!({
        "agent": cluster.agent().ok().map(look::process), "supervisor": first(supervisors),
        "pump": first(cluster.pumps()), "cgroups": groups, "mounts": look::mounts(),
        "namespaces": look::namespaces(), "directories": cluster.left_on_disk(),
    })
}

/// Waits until mounts, namespaces and descriptors are no more than at first, and no cgroup goes any more: an agent keeps
/// some for the next launches. Directories are collected later, by age.
fn settled(cluster: &Cluster, base: Option<&Value>) -> Result<Value> {
    let (mut last, mut same) = (Value::Null, 0);
    let back = process::until("the node to let go of what has ended", SETTLE, || {
        let now = snapshot(cluster);
        let value = |of: &Value, at: &str| of.pointer(at).and_then(Value::as_u64);
        let all =
            ["/mounts", "/namespaces", "/agent/descriptors", "/supervisor/descriptors", "/pump/descriptors"];
        let back = base.is_none_or(|base| all.iter().all(|at| value(&now, at) <= value(base, at)));
        same = if last["cgroups"] == now["cgroups"] { same + 1 } else { 0 };
        last = now;
        Ok((back && same >= QUIET_LOOKS).then(|| last.clone()))
    });
    Ok(back.unwrap_or(last))
}
