//! The cluster's own clock.

/// Milliseconds of cluster time: replicated, advanced only by the leader's monotonic clock, never by a wall clock.
/// All deadlines are in it. It never goes backwards; it stands still while there is no leader.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterTime(pub u64);

impl ClusterTime {
    /// `self` plus `ms` milliseconds; the far end of time instead of an overflow.
    pub fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// Milliseconds since `earlier`, 0 if that is later than `self`.
    pub fn since_ms(self, earlier: ClusterTime) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}
