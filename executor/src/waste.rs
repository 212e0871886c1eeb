//! How fast a pump throws away what is not kept.
//!
//! Throwing away costs a processor as much as writing does: a task that writes as fast as it is read would have two of
//! them, one of which it does not pay for, and its neighbours would wait for both. So a pump throws away at most so much
//! in a while, for all its streams together, and then rests from those that it throws away from; the tasks that write
//! them wait for that long, the others do not.

use std::time::{Duration, Instant};

/// How much may be thrown away in a [`PERIOD`]: 1.3 GB a second.
const BYTES: u64 = 6_500_000;
/// Short enough for a task to notice nothing but that its output has a speed.
const PERIOD: Duration = Duration::from_millis(5);

/// The streams that wait, and what may still be thrown away.
#[derive(Debug)]
pub(crate) struct Waste {
    since: Instant,
    bytes: u64,
    resting: Vec<u64>,
}

impl Waste {
    pub(crate) fn new(now: Instant) -> Self {
        Self { since: now, bytes: 0, resting: Vec::new() }
    }

    /// So much of a stream was thrown away. Whether it is to rest.
    pub(crate) fn threw(&mut self, stream: u64, bytes: u64, now: Instant) -> bool {
        if bytes == 0 {
            return false;
        }
        if self.resting.is_empty() && now >= self.since + PERIOD {
            (self.since, self.bytes) = (now, 0);
        }
        self.bytes += bytes;
        let rests = self.bytes >= BYTES;
        if rests {
            self.resting.push(stream);
        }
        rests
    }

    /// When the streams that rest are to be read again.
    pub(crate) fn until(&self) -> Option<Instant> {
        (!self.resting.is_empty()).then(|| self.since + PERIOD)
    }

    /// The streams that have rested for long enough.
    pub(crate) fn rested(&mut self, now: Instant) -> Vec<u64> {
        if self.until().is_none_or(|until| now < until) {
            return Vec::new();
        }
        (self.since, self.bytes) = (now, 0);
        std::mem::take(&mut self.resting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_throws_too_much_away_rests() {
        let begun = Instant::now();
        let mut waste = Waste::new(begun);
        assert!(!waste.threw(1, BYTES - 1, begun));
        assert!(!waste.threw(2, 0, begun), "it throws nothing away");
        assert!(waste.threw(1, 1, begun));
        assert!(waste.threw(3, 1, begun + PERIOD), "nobody has looked at the clock yet");
        assert_eq!(waste.until(), Some(begun + PERIOD));
        assert!(waste.rested(begun + PERIOD / 2).is_empty());
        assert_eq!(waste.rested(begun + PERIOD), [1, 3]);
        assert_eq!((waste.until(), waste.rested(begun + PERIOD)), (None, vec![]));
        assert!(!waste.threw(1, BYTES - 1, begun + PERIOD));
        assert!(!waste.threw(1, 1, begun + 2 * PERIOD), "another period has begun");
    }
}
