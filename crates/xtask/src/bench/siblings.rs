//! `bench siblings`: how fast a task is ended while another one, under the same supervisor, misbehaves.
//!
//! Each kind of trouble is measured in turn with a quiet time just before it, and compared with that: what the machine
//! does meanwhile is the same for both. A 99th percentile is one of all the kills of a side together, and told with the
//! range in which it lies as far as so many kills can tell.

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::cluster::{Cluster, Programs, Shape, Which};
use super::load::Load;
use super::{commit, go_on, look, tell};

/// The most that a neighbour may make of the time in which nearly all tasks are ended.
const AT_MOST: f64 = 2.0;
/// Fewer kills have no 99th percentile.
const KILLS_MIN: usize = 300;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Kills in each turn.
    #[arg(long, default_value_t = 100)]
    kills: u32,
    /// Rounds, in each of which every kind of trouble has its turn after a quiet one.
    #[arg(long, default_value_t = 12)]
    rounds: usize,
    /// How many masters.
    #[arg(long, default_value_t = 1)]
    masters: u16,
    /// How tasks are kept apart.
    #[arg(long, default_value = "linux", value_name = "linux|process")]
    containerizer: String,
    /// Only the kinds of trouble in whose names this is.
    #[arg(long, default_value = "", hide_default_value = true, value_name = "WORD")]
    only: String,
    #[command(flatten)]
    which: Which,
}

/// Kinds of trouble: a name, what the frameworks are to make special of the task, and the words of what it runs.
const TROUBLE: &[(&str, &str, &[&str])] = &[
    // As much as the pipe takes, without end.
    ("writes without end", "plain", WRITER),
    // Bytes are passed on without waiting for a line, so that what waits to be read fills up.
    ("never reads its terminal", "terminal", &["sh", "-c", "stty -icanon; exec sleep 3600"]),
    ("checks that hang", "checked", &["sleep", "3600"]),
    // Puts links where it hopes that its logs are.
    (
        "links over its logs",
        "plain",
        // One process: what processes cost is another question.
        &[
            "perl",
            "-e",
            "$| = 1; while (1) { for (qw(logs ../logs ../../logs /var/log stdout.0 ../stdout.0)) { \
             rename $_, \"$_.old\"; unlink $_; symlink '/etc/passwd', $_ } print qq(line\\n) }",
        ],
    ),
    // Forks all it may: the inner shell ends when it may not, and so do those that it has left behind.
    (FORKS, "plain", &["sh", "-c", "while :; do sh -c 'while :; do true & done'; done 2>/dev/null"]),
];

/// Told with the others, and held to nothing: what it takes is what processes cost the kernel.
const FORKS: &str = "forks without end";

const WRITER: &[&str] = &["cat", "/dev/zero"];

/// What a victim runs; it is ended without grace.
const VICTIM: &str = "sleep 3600";

/// What was measured of one kind of trouble.
#[derive(Default)]
struct Sides {
    quiet: Vec<f64>,
    beside: Vec<f64>,
    /// Bytes a second that the writer got rid of, in each round.
    wrote: Vec<f64>,
}

pub(super) fn run(args: &Args) -> Result<bool> {
    ensure!(args.rounds > 0 && args.kills > 0, "at least one round and one kill");
    let each = args.rounds * args.kills as usize;
    if each < KILLS_MIN {
        eprintln!("{each} kills are too few for a 99th percentile: {KILLS_MIN} are not");
    }
    let programs = Programs::find(&args.which)?;
    let slots = args.kills + 1;
    let resources = format!("cpus:{slots};mem:{}MiB", slots * 32);
    let shape = Shape { masters: args.masters, containerizer: &args.containerizer, resources: &resources };
    let cluster = Cluster::start(&programs, &shape)?;
    let mut load = Load::start(&cluster, 1, "cpus:1;mem:32MiB")?;
    let begun = Instant::now();
    let kinds: Vec<_> = TROUBLE.iter().filter(|(name, ..)| name.contains(&args.only)).collect();
    ensure!(!kinds.is_empty(), "no kind of trouble is called `{}`", args.only);
    let mut all: Vec<Sides> = kinds.iter().map(|_| Sides::default()).collect();
    for round in 1..=args.rounds {
        for ((name, kind, words), sides) in kinds.iter().zip(&mut all) {
            let quiet = turn(&mut load, args.kills)?;
            load.order(&format!("beside\t{kind}\t{}", words.join("\t")))?;
            let wrote = Written::begin(&cluster, words);
            let beside = turn(&mut load, args.kills)?;
            if let Some(rate) = wrote.and_then(Written::rate) {
                sides.wrote.push(rate);
            }
            load.order("drop")?;
            tell(&json!({
                "bench": "siblings", "what": "turn", "round": round, "neighbour": name, "pids": cluster.pids(),
                "quiet": figures(&quiet), "beside": figures(&beside),
            }));
            sides.quiet.extend(quiet);
            sides.beside.extend(beside);
        }
    }
    let told: Vec<(&str, f64, Value)> =
        kinds.iter().zip(&all).map(|((name, ..), sides)| compared(name, sides)).collect();
    let worst =
        told.iter().filter(|(name, ..)| *name != FORKS).map(|(_, ratio, _)| *ratio).fold(0.0, f64::max);
    let neighbours: serde_json::Map<String, Value> =
        told.into_iter().map(|(name, _, figure)| (name.to_owned(), figure)).collect();
    tell(&json!({
        "bench": "siblings", "what": "summary", "commit": commit(), "rounds": args.rounds, "kills": args.kills,
        "masters": args.masters, "containerizer": args.containerizer, "profile": programs.profile,
        "binaries": programs.json(), "seconds": begun.elapsed().as_secs(), "neighbours": neighbours,
        "worst_p99_of_quiet": round_to(worst, 2), "at_most": AT_MOST,
    }));
    load.stop()?;
    cluster.stop()?;
    Ok(worst <= AT_MOST)
}

/// Some tasks are run and ended: from each Kill until its terminal status (microseconds).
fn turn(load: &mut Load, kills: u32) -> Result<Vec<f64>> {
    go_on()?;
    load.order(&format!("hold {kills} {VICTIM}"))?;
    load.order("settle")?;
    let figure = load.order(&format!("kill {kills}"))?;
    let each = figure["gone_us"].as_array().context("the frameworks tell each kill")?;
    ensure!(each.len() == kills as usize, "{} of {kills} kills were told", each.len());
    Ok(each.iter().filter_map(Value::as_f64).collect())
}

/// One kind of trouble beside its quiet turns: its name, the ratio of the 99th percentiles, and the figures.
fn compared<'a>(name: &'a str, sides: &Sides) -> (&'a str, f64, Value) {
    let ratio = |share: f64| at(&sides.beside, share) / at(&sides.quiet, share);
    let p99 = ratio(0.99);
    let mut figure = json!({
        "quiet": figures(&sides.quiet), "beside": figures(&sides.beside),
        "p50_of_quiet": round_to(ratio(0.5), 2), "p99_of_quiet": round_to(p99, 2),
    });
    if !sides.wrote.is_empty() {
        let least = sides.wrote.iter().copied().fold(f64::INFINITY, f64::min);
        figure["wrote_mb_per_second"] =
            json!({ "median": round_to(at(&sides.wrote, 0.5) / 1e6, 0), "min": round_to(least / 1e6, 0) });
    }
    (name, p99, figure)
}

/// Kills of one side.
fn figures(times: &[f64]) -> Value {
    // Of so many draws, how many lie above the true 99th percentile is known but for twice its deviation.
    let spread = 2.0 * (0.01 * 0.99 / times.len() as f64).sqrt();
    json!({
        "kills": times.len(), "p50_us": at(times, 0.5), "p90_us": at(times, 0.9), "p99_us": at(times, 0.99),
        "p99_between_us": [at(times, 0.99 - spread), at(times, (0.99 + spread).min(1.0))], "max_us": at(times, 1.0),
    })
}

/// The one below which such a share lies.
fn at(times: &[f64], share: f64) -> f64 {
    let mut times = times.to_vec();
    times.sort_by(f64::total_cmp);
    let place = (times.len() as f64 * share) as usize;
    times.get(place.min(times.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

fn round_to(value: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}

/// What a writer had written at a time.
struct Written {
    pid: u32,
    bytes: f64,
    since: Instant,
}

impl Written {
    /// Finds the writer among the supervisors' grandchildren: their children are the containers' inits.
    fn begin(cluster: &Cluster, words: &[&str]) -> Option<Self> {
        if words != WRITER {
            return None;
        }
        let (line, supervisors) = (words.join(" "), cluster.supervisors());
        let above = |pid: u32| look::parent(pid).and_then(look::parent);
        let ours = |&pid: &u32| above(pid).is_some_and(|pid| supervisors.contains(&pid));
        let pid = look::pids().into_iter().filter(|&pid| look::command_line(pid) == line).find(ours)?;
        Some(Self { pid, bytes: written(pid)?, since: Instant::now() })
    }

    /// Bytes a second since then.
    fn rate(self) -> Option<f64> {
        Some((written(self.pid)? - self.bytes) / self.since.elapsed().as_secs_f64())
    }
}

/// Bytes that a process has written, to whatever it was.
fn written(pid: u32) -> Option<f64> {
    let io = fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
    io.lines().find_map(|line| line.strip_prefix("wchar: ")?.parse().ok())
}
