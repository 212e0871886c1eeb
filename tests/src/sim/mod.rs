//! A whole cluster on one thread, from one seed: masters, agents and frameworks run the code of the binaries; the
//! disks, the network, the clocks and the kernel are simulated, and fail.
//!
//! Safety is checked after every step, whatever the faults. Then the faults end, and everything must come right in a
//! bounded time. The same seed gives the same run, byte for byte.

mod agents;
mod check;
mod frameworks;
mod links;
mod masters;
mod rng;
mod world;

pub use check::Counts;

use world::World;

/// Simulated time under faults (milliseconds).
const STORM_MS: u64 = 40_000;

/// Runs one seed and tells what it saw.
///
/// # Panics
/// If anything is violated; the message says what.
pub fn run(seed: u64) -> Counts {
    let mut world = World::new(seed);
    world.run_until(STORM_MS);
    world.heal();
    world.counts()
}
