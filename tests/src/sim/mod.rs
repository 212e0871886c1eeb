//! A whole cluster on one thread, from one seed: masters, agents and frameworks run the code of the binaries; the
//! disks, the network, the clocks and the kernel are simulated, and fail.
//!
//! Safety is checked after every step, whatever the faults. Then the faults end, and everything must come right in a
//! bounded time. The same seed gives the same run, byte for byte.

mod agents;
mod check;
mod containers;
mod executors;
mod frameworks;
mod links;
mod masters;
mod rng;
mod world;

pub use check::Counts;

use world::World;

/// Simulated time under faults (milliseconds), at least.
const STORM_MS: u64 = 40_000;
/// The storm goes on until so much has happened, …
const EVENTS_MIN: u64 = 10_000;
/// … but no longer than this.
const STORM_MAX_MS: u64 = 1_200_000;

/// Runs one seed and tells what it saw.
///
/// # Panics
/// If anything is violated; the message says what.
pub fn run(seed: u64) -> Counts {
    let mut world = World::new(seed);
    let mut end = STORM_MS;
    world.run_until(end);
    while !world.saw_enough(EVENTS_MIN) && end < STORM_MAX_MS {
        end += 5_000;
        world.run_until(end);
    }
    world.heal();
    world.counts()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Replaying a seed is only worth something if it is the same run.
    #[test]
    fn the_same_seed_gives_the_same_run() {
        let (one, again, other) = (run(3), run(3), run(4));
        assert_eq!(one, again);
        assert_ne!(one.trace, other.trace);
    }
}
