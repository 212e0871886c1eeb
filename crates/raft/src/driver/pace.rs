//! When to tick.

use std::time::{Duration, Instant};

/// Ticks at a fixed interval, but never makes up for those it missed: a node that was starved would otherwise
/// take its own starvation for the leader's silence, and stand for election after every pause of its machine.
#[derive(Debug)]
pub(super) struct Pace {
    interval: Duration,
    next: Instant,
    worst_lateness: Duration,
}

impl Pace {
    pub(super) fn new(now: Instant, interval: Duration) -> Pace {
        Pace { interval, next: now + interval, worst_lateness: Duration::ZERO }
    }

    pub(super) fn next(&self) -> Instant {
        self.next
    }

    /// Whether to tick now, once.
    pub(super) fn is_due(&mut self, now: Instant) -> bool {
        let Some(lateness) = now.checked_duration_since(self.next) else { return false };
        self.worst_lateness = self.worst_lateness.max(lateness);
        self.next = if lateness > self.interval { now } else { self.next } + self.interval;
        true
    }

    pub(super) fn worst_lateness(&self) -> Duration {
        self.worst_lateness
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missed_ticks_are_dropped() {
        let start = Instant::now();
        let ms = |n| start + Duration::from_millis(n);
        let mut pace = Pace::new(start, Duration::from_millis(10));
        assert!(!pace.is_due(ms(9)));
        assert!(pace.is_due(ms(12)));
        assert_eq!(pace.next(), ms(20), "a little late: the rhythm stays");
        assert!(pace.is_due(ms(520)));
        assert!(!pace.is_due(ms(520)) && !pace.is_due(ms(529)), "fifty ticks late is one tick");
        assert!(pace.is_due(ms(530)));
        assert_eq!(pace.worst_lateness(), Duration::from_millis(500));
    }
}
