//! How fast a pump throws away what is not kept.
//!
//! Throwing away costs a processor as much as writing does: a task that writes as fast as it is read would have two of
//! them, one of which it does not pay for, and its neighbours would wait for both. So a pump throws away at most so much
//! in a while, for all its streams together, and for at most half of that while, and then rests from those that it
//! throws away from; the tasks that write them wait for that long, the others do not.

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
    /// How long it took to throw them away.
    took: Duration,
    resting: Vec<u64>,
}

impl Waste {
    pub(crate) fn new(now: Instant) -> Self {
        Self { since: now, bytes: 0, took: Duration::ZERO, resting: Vec::new() }
    }

    /// A stream has what would be thrown away. Whether it is to rest without a turn, because others do.
    pub(crate) fn rests(&mut self, stream: u64) -> bool {
        let rests = !self.resting.is_empty();
        if rests {
            self.resting.push(stream);
        }
        rests
    }

    /// So much of a stream was thrown away from `now` on, in so long. Whether it is to rest.
    pub(crate) fn threw(&mut self, stream: u64, bytes: u64, took: Duration, now: Instant) -> bool {
        if bytes == 0 {
            return false;
        }
        if self.resting.is_empty() && now >= self.since + PERIOD {
            self.begin(now);
        }
        self.bytes += bytes;
        // A process that was stopped did not work for all that time.
        self.took += took.min(PERIOD);
        let rests = self.bytes >= BYTES || self.took >= PERIOD / 2;
        if rests {
            self.resting.push(stream);
        }
        rests
    }

    /// When the streams that rest are to be read again: later, the more was thrown away in this period and the longer
    /// that took.
    pub(crate) fn until(&self) -> Option<Instant> {
        let bytes = Duration::from_nanos(PERIOD.as_nanos() as u64 * self.bytes / BYTES);
        (!self.resting.is_empty()).then(|| self.since + PERIOD.max(bytes).max(2 * self.took))
    }

    fn begin(&mut self, now: Instant) {
        (self.since, self.bytes, self.took) = (now, 0, Duration::ZERO);
    }

    /// The streams that have rested for long enough.
    pub(crate) fn rested(&mut self, now: Instant) -> Vec<u64> {
        if self.until().is_none_or(|until| now < until) {
            return Vec::new();
        }
        self.begin(now);
        std::mem::take(&mut self.resting)
    }
}

#[cfg(test)]
impl Waste {
    /// How much may have been thrown away in such a time: it may begin with the end of a period.
    pub(crate) fn most_in(time: Duration) -> u64 {
        2 * BYTES + BYTES * time.as_micros() as u64 / PERIOD.as_micros() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::ZERO;

    #[test]
    fn who_throws_too_much_away_rests() {
        let begun = Instant::now();
        let mut waste = Waste::new(begun);
        assert!(!waste.threw(1, BYTES - 1, SHORT, begun));
        assert!(!waste.threw(2, 0, SHORT, begun), "it throws nothing away");
        assert!(!waste.rests(2), "there is something left");
        assert!(waste.threw(1, 1, SHORT, begun));
        assert!(waste.rests(2), "without a turn");
        assert_eq!(waste.until(), Some(begun + PERIOD));
        // It had something to keep as well.
        assert!(waste.threw(3, BYTES / 2, SHORT, begun + PERIOD), "nobody has looked at the clock yet");
        assert_eq!(waste.until(), Some(begun + PERIOD * 3 / 2));
        assert!(waste.rested(begun + PERIOD).is_empty());
        let next = begun + PERIOD * 3 / 2;
        assert_eq!(waste.rested(next), [1, 2, 3]);
        assert_eq!((waste.until(), waste.rested(next)), (None, vec![]));
        assert!(!waste.threw(1, BYTES - 1, SHORT, next));
        assert!(!waste.threw(1, 1, SHORT, next + PERIOD), "another period has begun");
    }

    #[test]
    fn throwing_away_takes_half_of_a_processor_at_most() {
        let begun = Instant::now();
        let mut waste = Waste::new(begun);
        assert!(!waste.threw(1, 1, PERIOD / 4, begun));
        assert!(waste.threw(1, 1, PERIOD * 3 / 4, begun));
        assert_eq!(waste.until(), Some(begun + 2 * PERIOD));
        assert_eq!(waste.rested(begun + 2 * PERIOD), [1]);
        // The process was stopped.
        assert!(waste.threw(1, 1, 1000 * PERIOD, begun + 2 * PERIOD));
        assert_eq!(waste.until(), Some(begun + 4 * PERIOD));
    }
}
