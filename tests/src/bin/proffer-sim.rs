//! Runs seeds of the simulator: `proffer-sim --seeds N [--seed S] [--fail-fast]`.

#![allow(clippy::print_stdout, reason = "its output is for people and for xtask")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use clap::Parser;
use proffer_tests::sim::{Counts, run};

/// Simulates whole clusters, one per seed, and checks every promise after every step.
#[derive(Parser)]
struct Args {
    /// How many seeds.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Stop at the first failure.
    #[arg(long)]
    fail_fast: bool,
    /// Threads; each runs whole seeds.
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let message = Arc::new(Mutex::new(std::collections::HashMap::new()));
    let sink = message.clone();
    std::panic::set_hook(Box::new(move |info| {
        let text = info.payload_as_str().unwrap_or("a panic without words").to_owned();
        let place = info.location().map(|l| format!(" ({}:{})", l.file(), l.line())).unwrap_or_default();
        let backtrace =
            std::env::var_os("PROFFER_SIM_BACKTRACE").map(|_| std::backtrace::Backtrace::force_capture());
        let backtrace = backtrace.map(|b| format!("\n{b}")).unwrap_or_default();
        sink.lock()
            .expect("no panic in here")
            .insert(std::thread::current().id(), format!("{text}{place}{backtrace}"));
    }));
    let next = AtomicU64::new(args.seed);
    let end = args.seed + args.seeds;
    let results = Mutex::new(std::collections::BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..args.threads.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    let result = catch_unwind(AssertUnwindSafe(|| run(seed))).map_err(|_| {
                        let said =
                            message.lock().expect("no panic in here").remove(&std::thread::current().id());
                        said.unwrap_or_default()
                    });
                    if result.is_err() && args.fail_fast {
                        next.store(end, Ordering::Relaxed);
                    }
                    results.lock().expect("no panic in here").insert(seed, result);
                }
            });
        }
    });
    report(&results.into_inner().expect("no panic in here"))
}

/// A line of the report, and what it counts.
type Column = (&'static str, fn(&Counts) -> u64);

fn report(results: &std::collections::BTreeMap<u64, Result<Counts, String>>) -> ExitCode {
    let mut failed = 0;
    for (seed, result) in results {
        if let Err(why) = result {
            failed += 1;
            println!("seed {seed}: {why}");
        }
    }
    let good: Vec<&Counts> = results.values().filter_map(|r| r.as_ref().ok()).collect();
    let columns: [Column; 19] = [
        ("events", |c| c.events),
        ("leaderships", |c| c.leaderships),
        ("master crashes", |c| c.crashes),
        ("… losing writes", |c| c.lossy_crashes),
        ("agent crashes", |c| c.agent_crashes),
        ("host reboots", |c| c.reboots),
        ("framework crashes", |c| c.framework_crashes),
        ("entries", |c| c.entries),
        ("snapshots made", |c| c.images),
        ("… installed", |c| c.installs),
        ("failed proposals", |c| c.failed),
        ("old messages", |c| c.replays),
        ("tasks launched", |c| c.launched),
        ("tasks ended", |c| c.ended),
        ("updates seen", |c| c.updates),
        ("groups started", |c| c.groups),
        ("executors started", |c| c.executors),
        ("messages", |c| c.messages),
        ("check results", |c| c.checks),
    ];
    println!("{:<20}{:>12}{:>12}{:>12}{:>14}", "per seed", "min", "median", "max", "sum");
    for (name, column) in columns {
        let mut values: Vec<u64> = good.iter().map(|c| column(c)).collect();
        values.sort_unstable();
        let at = |i: usize| values.get(i).copied().unwrap_or(0);
        let (min, median, max) = (at(0), at(values.len() / 2), at(values.len().saturating_sub(1)));
        println!("{name:<20}{min:>12}{median:>12}{max:>12}{:>14}", values.iter().sum::<u64>());
    }
    let trace = good.iter().fold(0u64, |sum, counts| sum.rotate_left(1) ^ counts.trace);
    println!("trace {trace:016x}");
    println!("{} seeds green, {failed} failed", good.len());
    if failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
