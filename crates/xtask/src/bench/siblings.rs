//! `bench siblings`: how fast a task is ended while another one, under the same supervisor, misbehaves.

use anyhow::{Result, ensure};
use serde_json::json;

use super::cluster::{Cluster, Programs, Shape, Which};
use super::load::Load;
use super::{Medians, commit, go_on, number, tell};

/// The most that a neighbour may make of the time in which nearly all tasks are ended.
const AT_MOST: f64 = 2.0;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Kills in each turn.
    #[arg(long, default_value_t = 100)]
    kills: u32,
    /// Rounds, in each of which every kind of trouble has its turn after a quiet one.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How many masters.
    #[arg(long, default_value_t = 1)]
    masters: u16,
    /// How tasks are kept apart.
    #[arg(long, default_value = "linux", value_name = "linux|process")]
    containerizer: String,
    #[command(flatten)]
    which: Which,
}

/// Kinds of trouble: a name, and the words of what a neighbour runs; none for the quiet turns.
const TROUBLE: &[(&str, &[&str])] = &[
    ("quiet", &[]),
    // As much as the pipe takes, without end.
    ("writes without end", &["cat", "/dev/zero"]),
    // Puts links where it hopes that its logs are.
    (
        "links over its logs",
        &[
            "sh",
            "-c",
            "while :; do for at in logs ../logs ../../logs /var/log stdout.0 ../stdout.0; do \
             mv $at $at.old; ln -sfn /etc/passwd $at; done; echo line; done 2>/dev/null",
        ],
    ),
    // Forks all it may.
    ("forks without end", &["sh", "-c", "while :; do true & done 2>/dev/null"]),
];

/// What a victim runs; it is ended without grace.
const VICTIM: &str = "sleep 3600";

pub(super) fn run(args: &Args) -> Result<bool> {
    ensure!(args.rounds > 0 && args.kills > 0, "at least one round and one kill");
    let programs = Programs::find(&args.which)?;
    let slots = args.kills + 1;
    let resources = format!("cpus:{slots};mem:{}MiB", slots * 32);
    let shape = Shape { masters: args.masters, containerizer: &args.containerizer, resources: &resources };
    let cluster = Cluster::start(&programs, &shape)?;
    let mut load = Load::start(&cluster, 1, "cpus:1;mem:32MiB")?;
    let mut told = Medians::default();
    for round in 1..=args.rounds {
        let mut quiet = f64::NAN;
        for (name, words) in TROUBLE {
            go_on()?;
            if !words.is_empty() {
                load.order(&format!("hold\t1\t{}", words.join("\t")))?;
                load.order("park")?;
            }
            load.order(&format!("hold {} {VICTIM}", args.kills))?;
            let mut figure = load.order(&format!("kill {}", args.kills))?;
            let p99 = number(&figure, "gone_p99_us")?;
            if words.is_empty() {
                quiet = p99;
            } else {
                told.note(&format!("{name}: p99 of quiet"), p99 / quiet);
            }
            told.note(&format!("{name}: p50_us"), number(&figure, "gone_p50_us")?);
            told.note(&format!("{name}: p99_us"), p99);
            figure["bench"] = json!("siblings");
            figure["round"] = json!(round);
            figure["neighbour"] = json!(name);
            figure["containerizer"] = json!(args.containerizer);
            figure["masters"] = json!(args.masters);
            figure["pids"] = cluster.pids();
            tell(&figure);
            load.order("drop")?;
        }
    }
    let all = told.json();
    let of_quiet = all.as_object().into_iter().flatten().filter(|(name, _)| name.ends_with("of quiet"));
    let worst = of_quiet.filter_map(|(_, one)| one["median"].as_f64()).fold(0.0, f64::max);
    tell(&json!({
        "bench": "siblings", "what": "summary", "commit": commit(), "rounds": args.rounds, "kills": args.kills,
        "masters": args.masters, "containerizer": args.containerizer, "profile": programs.profile,
        "binaries": programs.json(), "kill_to_terminal": all, "worst_median_of_quiet": worst, "at_most": AT_MOST,
    }));
    load.stop()?;
    cluster.stop()?;
    Ok(worst <= AT_MOST)
}
