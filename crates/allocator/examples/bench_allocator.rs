//! Times the allocator alone and prints one JSON object per figure.
//!
//! `bench_allocator [ITERATIONS] [AGENTS_MAX]`: 5 iterations and 50,000 agents unless told otherwise. Each agent has
//! 2 cpus, 1 GiB of memory, 4 GiB of disk and some ports; each framework is in one role.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::print_stdout,
    reason = "a stopwatch reads the clock and prints; the library does neither"
)]

use std::time::{Duration, Instant};

use proffer_allocator::{Allocator, Event, Grant, Policy};
use proffer_types::{AgentId, FrameworkId, Resources, Role};
use serde_json::json;

/// Agents, frameworks, and the longest a full cycle may take: what a release must keep, what would be excellent.
const SIZES: [(u64, u64, u64, u64); 4] = [
    (1_000, 100, 1_000, 200),
    (10_000, 1_000, 10_000, 2_000),
    (20_000, 2_000, 25_000, 4_000),
    (50_000, 6_000, 60_000, 10_000),
];
/// The longest that one event with its round may take, at any size (microseconds).
const EVENT_MUST_US: u64 = 20;
const EVENT_REACH_US: u64 = 2;
/// Events timed one by one.
const EVENTS: usize = 2_000;
/// Rounds in which everybody declines.
const DECLINE_ROUNDS: u64 = 20;

fn main() {
    let mut args = std::env::args().skip(1).map(|arg| arg.parse::<u64>());
    let number = |arg: Option<Result<u64, _>>, default| match arg {
        None => default,
        Some(Ok(number)) => number,
        Some(Err(_)) => {
            eprintln!("usage: bench_allocator [ITERATIONS] [AGENTS_MAX]");
            std::process::exit(2);
        }
    };
    let (iterations, agents_max) = (number(args.next(), 5).max(1), number(args.next(), 50_000));
    for (agents, frameworks, must_us, reach_us) in SIZES.into_iter().filter(|s| s.0 <= agents_max) {
        let size = Size { agents, frameworks, iterations };
        size.full_cycle("full_cycle", must_us, reach_us, |_| {});
        size.full_cycle("full_cycle_1_percent_unsuppressed", must_us, reach_us, |engine| {
            for n in (0..frameworks).filter(|n| n % 100 != 0) {
                let roles = Vec::new();
                apply(engine, 0, Event::Suppressed { framework: FrameworkId(n), roles });
            }
        });
        size.one_freed_agent();
        size.decline_rounds(must_us, reach_us);
    }
}

struct Size {
    agents: u64,
    frameworks: u64,
    iterations: u64,
}

fn apply(engine: &mut Allocator, now_ms: u64, event: Event) {
    engine.apply(now_ms, &event).expect("the bench's events make sense");
}

impl Size {
    fn cluster(&self) -> Allocator {
        let mut engine = Allocator::new(Policy::default());
        let total = Resources::parse("cpus:2;mem:1GiB;disk:4GiB;ports:[31000-32000]").expect("constant");
        for n in 0..self.agents {
            apply(&mut engine, 0, Event::AgentAdded { agent: AgentId(n), total: total.clone() });
        }
        for n in 0..self.frameworks {
            let framework = FrameworkId(n);
            apply(
                &mut engine,
                0,
                Event::FrameworkAdded { framework, roles: vec![Role::star()], suppressed: vec![] },
            );
            apply(&mut engine, 0, Event::FrameworkActivated { framework });
        }
        engine
    }

    /// Nothing is out: everything is granted in one round.
    fn full_cycle(&self, figure: &str, must_us: u64, reach_us: u64, prepare: impl Fn(&mut Allocator)) {
        let mut engine = self.cluster();
        prepare(&mut engine);
        let mut grants = 0;
        let times = (0..self.iterations).map(|seed| {
            let mut engine = engine.clone();
            let start = Instant::now();
            grants = engine.next(1, seed, usize::MAX).len();
            start.elapsed()
        });
        let times: Vec<Duration> = times.collect();
        self.print(figure, times, must_us, reach_us, json!({ "grants": grants }));
    }

    /// Everything is in use; one agent's share returns and is granted again.
    fn one_freed_agent(&self) {
        let mut engine = self.cluster();
        let grants = engine.next(1, 1, usize::MAX);
        grants.iter().for_each(|grant| apply(&mut engine, 1, Event::Launched(grant.clone())));
        let mut times = Vec::with_capacity(EVENTS);
        for (n, grant) in grants.iter().cycle().step_by(7).take(EVENTS.min(grants.len() / 7)).enumerate() {
            let returned = Event::Returned(grant.clone());
            let start = Instant::now();
            engine.apply(2, &returned).expect("it is in use");
            let again = engine.next(2, n as u64, usize::MAX);
            times.push(start.elapsed());
            assert_eq!(again.len(), 1, "what returns is granted at once");
        }
        self.print("one_freed_agent", times, EVENT_MUST_US, EVENT_REACH_US, json!({}));
    }

    /// Everybody declines everything for 5 s, and everything is granted to others, again and again.
    fn decline_rounds(&self, must_us: u64, reach_us: u64) {
        let mut engine = self.cluster();
        let mut grants = engine.next(1, 1, usize::MAX);
        let (mut declines, mut rounds, mut granted) = (Vec::new(), Vec::new(), 0);
        for round in 0..DECLINE_ROUNDS {
            let declined: Vec<Event> = grants.into_iter().map(decline).collect();
            let start = Instant::now();
            declined.iter().for_each(|event| engine.apply(round, event).expect("it is on offer"));
            let between = Instant::now();
            grants = engine.next(round, round, usize::MAX);
            rounds.push(between.elapsed());
            declines.push(between - start);
            granted += grants.len();
        }
        let parameters = json!({ "rounds": DECLINE_ROUNDS, "grants": granted });
        self.print("decline_round_events", declines, must_us, reach_us, parameters.clone());
        self.print("decline_round_grants", rounds, must_us, reach_us, parameters);
        let start = Instant::now();
        let grants = engine.next(20_000, 1, usize::MAX).len();
        let parameters = json!({ "filters": DECLINE_ROUNDS * self.agents, "grants": grants });
        self.print("filters_end_together", vec![start.elapsed()], must_us, reach_us, parameters);
    }

    fn print(
        &self,
        figure: &str,
        mut times: Vec<Duration>,
        must_us: u64,
        reach_us: u64,
        extra: serde_json::Value,
    ) {
        times.sort_unstable();
        let us = |at: usize| times[at.min(times.len() - 1)].as_nanos() as f64 / 1000.0;
        let (median, p99, max) = (us(times.len() / 2), us(times.len() * 99 / 100), us(times.len()));
        let line = json!({
            "bench": "allocator",
            "figure": figure,
            "agents": self.agents,
            "frameworks": self.frameworks,
            "samples": times.len(),
            "median_us": median,
            "p99_us": p99,
            "max_us": max,
            "must_us": must_us,
            "reach_us": reach_us,
            "parameters": extra,
            "optimised": !cfg!(debug_assertions),
            "pid": std::process::id(),
            "binary": std::env::current_exe().ok(),
        });
        println!("{line}");
    }
}

fn decline(grant: Grant) -> Event {
    Event::Declined { grant, filter_ms: 5_000 }
}
