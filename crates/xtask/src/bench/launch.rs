//! `bench launch`: how many tasks a second, and how soon one runs, beside the floor and beside others.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::cluster::{Cluster, Programs, Shape, Which};
use super::floor::{Floor, Kind};
use super::load::Load;
use super::{Medians, commit, go_on, look, number, peers, tell};

/// What tasks run: what the floor's processes run.
const TRUE: &str = "/bin/true";
/// What tasks run while the memory of a node is looked at.
const HELD: &str = "/bin/sleep 3600";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Tasks in each round.
    #[arg(long, default_value_t = 400)]
    tasks: u32,
    /// Tasks that run at once: what the agent offers is so many times what one holds.
    #[arg(long, default_value_t = 64)]
    slots: u32,
    /// Launches one after the other in each round, on an idle cluster.
    #[arg(long, default_value_t = 100)]
    singles: u32,
    /// Rounds, in each of which everything is measured in turn.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How many masters, for each a cluster.
    #[arg(long, default_value = "1,3", value_delimiter = ',')]
    masters: Vec<u16>,
    /// How tasks are kept apart, for each a cluster.
    #[arg(long, default_value = "process,linux", value_delimiter = ',')]
    containerizers: Vec<String>,
    /// How many frameworks at once, which is how many supervisors.
    #[arg(long, default_value = "1,8", value_delimiter = ',')]
    frameworks: Vec<u32>,
    /// On how many processors, everything together: masters, agent, supervisors, tasks and frameworks.
    #[arg(long, default_value = "1,2", value_delimiter = ',')]
    cores: Vec<u32>,
    /// Tasks that are left running while memory is looked at; 0 for none.
    #[arg(long, default_value_t = 200)]
    held: u32,
    /// Measure other people's programs too, where they are installed: crun, Slurm.
    #[arg(long)]
    peers: bool,
    /// Another program of the floor's modes, in C: measured in turn with ours.
    #[arg(long, value_name = "PATH")]
    floor_c: Option<PathBuf>,
    #[command(flatten)]
    which: Which,
}

/// One cluster and its frameworks, in the order of their number.
struct Subject {
    cluster: Cluster,
    loads: Vec<Load>,
    masters: u16,
    containerizer: String,
}

impl Subject {
    fn name(&self, frameworks: u32, cores: &str, payload: &str) -> String {
        let cores = cores.split(',').count();
        let masters = self.masters;
        format!(
            "{} masters={masters} frameworks={frameworks} cores={cores} payload={payload}",
            self.containerizer
        )
    }

    fn pin(&self, cores: &str) {
        self.cluster.pin(cores);
        self.loads.iter().for_each(|load| look::pin(&[load.pid()], cores));
    }
}

pub(super) fn run(args: &Args) -> Result<bool> {
    ensure!(args.rounds > 0 && args.tasks > 0 && args.slots > 0, "tasks, slots and rounds must be above 0");
    let floor = Floor::build(args.floor_c.as_deref())?;
    let programs = Programs::find(&args.which)?;
    let crun = if args.peers { peers::Crun::find()? } else { None };
    let all_cores = cores(2);
    let mut subjects = Vec::new();
    for containerizer in &args.containerizers {
        for &masters in &args.masters {
            subjects.push(subject(args, &programs, containerizer, masters)?);
        }
    }
    let mut idle = Vec::new();
    for subject in &subjects {
        idle.push(memory(&subject.cluster));
    }
    let mut told = Summary::default();
    for round in 1..=args.rounds {
        for &count in &args.cores {
            let cores = cores(count);
            let floors = floors(&floor, &cores, &mut told)?;
            for subject in &mut subjects {
                subject.pin(&cores);
                for at in 0..subject.loads.len() {
                    go_on()?;
                    rate(args, subject, at, ("dynamic", TRUE), round, &cores, &floors, &mut told)?;
                    if subject.containerizer == "linux" {
                        // What the floor's containers run is linked statically, which spares them a third.
                        let payload = ("static", floor.idle()?);
                        rate(args, subject, at, payload, round, &cores, &floors, &mut told)?;
                    }
                }
                subject.pin(&all_cores);
            }
            if let Some(crun) = &crun {
                let figure = crun.measure(&cores, round)?;
                told.note(&format!("crun cores={count}"), number(&figure, "per_second")?, &floors);
                tell(&figure);
            }
        }
        for subject in &mut subjects {
            single(args, subject, &floor, round, &mut told)?;
        }
    }
    if args.peers
        && let Some(figures) = peers::slurm()?
    {
        figures.iter().for_each(tell);
    }
    for (subject, idle) in subjects.iter_mut().zip(&idle) {
        if args.held > 0 {
            held(args, subject, idle)?;
        }
    }
    let summary = json!({
        "bench": "launch", "what": "summary", "commit": commit(), "rounds": args.rounds, "tasks": args.tasks,
        "slots": args.slots, "profile": programs.profile, "binaries": programs.json(),
        "per_second": told.rates.json(), "of_spawn_floor": told.of_spawn.json(),
        "of_nscg_floor": told.of_container.json(), "of_other_nscg_floor": told.of_other_container.json(), "cpu": told.cpu.json(), "launch": told.latency.json(),
    });
    tell(&summary);
    for subject in subjects {
        for load in subject.loads {
            load.stop()?;
        }
        subject.cluster.stop()?;
    }
    Ok(true)
}

fn cores(count: u32) -> String {
    (0..count).map(|core| core.to_string()).collect::<Vec<_>>().join(",")
}

fn subject(args: &Args, programs: &Programs, containerizer: &str, masters: u16) -> Result<Subject> {
    // A whole processor each, because less would be a limit that slows the start of the task down as well.
    let task = "cpus:1;mem:16MiB";
    let resources = format!("cpus:{};mem:{}MiB", args.slots, args.slots * 16);
    let shape = Shape { masters, containerizer, resources: &resources };
    let cluster = Cluster::start(programs, &shape)?;
    let loads = args.frameworks.iter().map(|&count| Load::start(&cluster, count, task));
    let loads = loads.collect::<Result<Vec<_>>>()?;
    Ok(Subject { cluster, loads, masters, containerizer: containerizer.to_owned() })
}

/// The floors of one set of processors in one round (per second), many at once.
struct Floors {
    spawn: f64,
    container: f64,
    /// The other program's.
    other_container: Option<f64>,
    /// Processor time of a launch (microseconds).
    spawn_cpu_us: f64,
    container_cpu_us: f64,
    json: Value,
}

fn floors(floor: &Floor, cores: &str, told: &mut Summary) -> Result<Floors> {
    let mut all = serde_json::Map::new();
    let mut rate = |kind: Kind| -> Result<(f64, f64)> {
        let figure = floor.launches(kind, 8, cores)?;
        let rate = (number(&figure, "per_second")?, number(&figure, "cpu_us_each")?);
        told.rates.note(&format!("floor {} cores={}", kind.name(), cores.split(',').count()), rate.0);
        all.insert(kind.name().to_owned(), figure);
        Ok(rate)
    };
    let other_container = floor.other(Kind::Container, 8, cores)?;
    let (spawn, _, container) = (rate(Kind::Spawn)?, rate(Kind::Cgroups)?, rate(Kind::Container)?);
    let json = Value::Object(all);
    Ok(Floors {
        spawn: spawn.0,
        container: container.0,
        other_container,
        spawn_cpu_us: spawn.1,
        container_cpu_us: container.1,
        json,
    })
}

#[derive(Default)]
struct Summary {
    rates: Medians,
    of_spawn: Medians,
    of_container: Medians,
    of_other_container: Medians,
    cpu: Medians,
    latency: Medians,
}

impl Summary {
    fn note(&mut self, name: &str, rate: f64, floors: &Floors) {
        self.rates.note(name, rate);
        self.of_spawn.note(name, rate / floors.spawn);
        self.of_container.note(name, rate / floors.container);
        if let Some(other) = floors.other_container {
            self.of_other_container.note(name, rate / other);
        }
    }
}

/// Many tasks, as many at once as there are slots.
#[allow(clippy::too_many_arguments, reason = "each is a parameter of the figure")]
fn rate(
    args: &Args,
    subject: &mut Subject,
    at: usize,
    (payload, command): (&str, &str),
    round: usize,
    cores: &str,
    floors: &Floors,
    told: &mut Summary,
) -> Result<()> {
    let frameworks = subject.loads[at].frameworks;
    let name = subject.name(frameworks, cores, payload);
    if round == 1 {
        // Starts the supervisors; what only happens once is not what is measured.
        subject.loads[at].order(&format!("rate {} {command}", 8 * frameworks))?;
        subject.pin(cores);
    }
    let before = parts_cpu(subject, at);
    let mut figure = subject.loads[at].order(&format!("rate {} {command}", args.tasks))?;
    let after = parts_cpu(subject, at);
    let rate = number(&figure, "per_second")?;
    told.note(&name, rate, floors);
    let spent: Vec<(String, f64)> = after
        .into_iter()
        .map(|(part, ms)| {
            let before = before.iter().find(|(name, _)| *name == part).map_or(0.0, |(_, ms)| *ms);
            (part.to_owned(), ((ms - before) / f64::from(args.tasks) * 1_000.0).round())
        })
        .collect();
    let all: f64 = spent.iter().map(|(_, us)| us).sum();
    told.cpu.note(&format!("{name}: cpu_us"), all);
    told.cpu.note(&format!("{name}: spawn floor's cpu of ours"), floors.spawn_cpu_us / all);
    told.cpu.note(&format!("{name}: nscg floor's cpu of ours"), floors.container_cpu_us / all);
    figure["bench"] = json!("launch");
    figure["round"] = json!(round);
    figure["containerizer"] = json!(subject.containerizer);
    figure["masters"] = json!(subject.masters);
    figure["frameworks"] = json!(frameworks);
    figure["cores"] = json!(cores);
    figure["slots"] = json!(args.slots);
    figure["payload"] = json!(command);
    figure["cpu_us_per_task"] = json!(spent.into_iter().collect::<std::collections::BTreeMap<_, _>>());
    figure["of_spawn_floor"] = json!(rate / floors.spawn);
    figure["of_nscg_floor"] = json!(rate / floors.container);
    figure["floor"] = floors.json.clone();
    figure["pids"] = subject.cluster.pids();
    tell(&figure);
    Ok(())
}

/// The processor time of each part (ms). A supervisor's holds that of the tasks it has waited for.
fn parts_cpu(subject: &Subject, at: usize) -> Vec<(&'static str, f64)> {
    let mut parts = subject.cluster.parts();
    parts.insert("frameworks", vec![subject.loads[at].pid()]);
    parts.into_iter().map(|(name, pids)| (name, look::cpu_ms(&pids).values().sum())).collect()
}

/// One task after the other on an otherwise idle cluster.
fn single(args: &Args, subject: &mut Subject, floor: &Floor, round: usize, told: &mut Summary) -> Result<()> {
    if args.singles == 0 {
        return Ok(());
    }
    let cores = cores(2);
    let fsync = floor.fsync()?;
    let container = floor.launches(Kind::Container, 1, &cores)?;
    let mut figure = subject.loads[0].order(&format!("single {} {TRUE}", args.singles))?;
    let name = format!("{} masters={}", subject.containerizer, subject.masters);
    for key in ["launch_p50_us", "launch_p99_us", "launch_max_us"] {
        told.latency.note(&format!("{name} {key}"), number(&figure, key)?);
    }
    let allowed = number(&container, "p50_us")? + 4.0 * number(&fsync, "p50_us")?;
    told.latency.note(&format!("{name} nscg_p50+4*fsync_p50_us"), allowed);
    figure["bench"] = json!("launch");
    figure["round"] = json!(round);
    figure["containerizer"] = json!(subject.containerizer);
    figure["masters"] = json!(subject.masters);
    figure["cores"] = json!(cores);
    figure["floor"] = json!({ "fsync": fsync, "nscg": container });
    figure["pids"] = subject.cluster.pids();
    tell(&figure);
    Ok(())
}

/// The memory of agent, supervisors and pumps.
fn memory(cluster: &Cluster) -> Value {
    let parts = cluster.parts().into_iter().map(|(name, pids)| {
        (name.to_owned(), Value::from(pids.into_iter().map(look::process).collect::<Vec<_>>()))
    });
    parts.collect::<serde_json::Map<_, _>>().into()
}

/// What a node takes for tasks that run.
fn held(args: &Args, subject: &mut Subject, idle: &Value) -> Result<()> {
    let count = args.held.min(args.slots);
    let without = memory(&subject.cluster);
    let started = subject.loads[0].order(&format!("hold {count} {HELD}"))?;
    let with = memory(&subject.cluster);
    // Without containers there are no groups of our own to look at.
    let supervisors =
        if subject.containerizer == "linux" { subject.cluster.supervisors() } else { Vec::new() };
    let mut charged: Vec<u64> = supervisors.first().map(|&pid| look::charged_beside(pid)).unwrap_or_default();
    charged.sort_unstable();
    let rss = |look: &Value, part: &str| -> f64 {
        let all = look[part].as_array().into_iter().flatten();
        all.filter_map(|process| process["rss_kib"].as_f64()).sum()
    };
    let grown = ["agent", "supervisors", "pumps"].map(|part| rss(&with, part) - rss(&without, part));
    tell(&json!({
        "bench": "launch", "what": "memory", "containerizer": subject.containerizer, "masters": subject.masters,
        "held": count, "held_seconds": started["seconds"], "idle": idle, "without": without, "with": with,
        "rss_kib_per_task": grown.iter().sum::<f64>() / f64::from(count.max(1)),
        "charged_bytes_per_task": { "groups": charged.len(), "median": charged.get(charged.len() / 2) },
        "pids": subject.cluster.pids(),
    }));
    subject.loads[0].order("drop")?;
    Ok(())
}
