//! The settings of an allocator.

use proffer_types::limits;

/// What an operator may set, and what a test may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Nothing is offered with less cpu than this (milli) …
    pub min_cpus_milli: u64,
    /// … and less memory than this (bytes): one of the two must be reached.
    pub min_memory_bytes: u64,
    /// The shortest time before an agent's refused shape is offered again to who refused it (milliseconds) …
    pub floor_min_ms: u64,
    /// … which doubles up to this while the same shape is refused.
    pub floor_max_ms: u64,
    /// A shape that was not refused for this long after its floor ended starts at the shortest floor again. Longer
    /// than an offer may stay out, or offers that always expire would never double it.
    pub floor_memory_ms: u64,
    /// Most filter layers (distinct refused amount and expiry) per agent. Each costs a bit per framework and role;
    /// beyond the limit two are merged so that less is withheld, never more.
    pub layers_max: usize,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            min_cpus_milli: limits::MIN_ALLOCATABLE_CPUS_MILLI,
            min_memory_bytes: limits::MIN_ALLOCATABLE_MEMORY_BYTES,
            floor_min_ms: limits::REOFFER_FLOOR_MIN_MS,
            floor_max_ms: limits::REOFFER_FLOOR_MAX_MS,
            floor_memory_ms: 2 * limits::OFFER_TIMEOUT_MS,
            layers_max: 10,
        }
    }
}
