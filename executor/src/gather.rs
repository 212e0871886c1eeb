//! Streams whose output gathers in their pipes for a while.
//!
//! A task that writes a line at a time would have its pump woken for each: moving the line takes less than being woken
//! for it, and its neighbours would pay for both. So a stream that has had little again and again is left alone for a
//! while. Who writes once is heard at once, and who writes much does not wait: a pipe would fill up.

use std::time::{Duration, Instant};

/// For so long.
const WHILE: Duration = Duration::from_millis(2);
/// This much fills a part of a pipe in that while (they hold 64 KiB), in bytes.
const LITTLE: u64 = 16 * 1024;

/// The streams that are left alone.
#[derive(Debug, Default)]
pub(crate) struct Gather {
    until: Option<Instant>,
    resting: Vec<u64>,
}

impl Gather {
    /// So many bytes of a stream were moved, which had little `last`. Whether it is to rest.
    pub(crate) fn moved(
        &mut self,
        stream: u64,
        last: &mut Option<Instant>,
        bytes: u64,
        now: Instant,
    ) -> bool {
        let little = (1..LITTLE).contains(&bytes);
        // One that rested is looked at some time after its while.
        let rests = little && last.is_some_and(|last| now.saturating_duration_since(last) < 3 * WHILE);
        *last = little.then_some(now);
        if rests {
            self.until.get_or_insert(now + WHILE);
            self.resting.push(stream);
        }
        rests
    }

    /// When they are to be looked at again: all at once, for each time costs the same.
    pub(crate) fn until(&self) -> Option<Instant> {
        self.until
    }

    /// The streams that have rested for long enough.
    pub(crate) fn rested(&mut self, now: Instant) -> Vec<u64> {
        if self.until.is_none_or(|until| now < until) {
            return Vec::new();
        }
        self.until = None;
        std::mem::take(&mut self.resting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_again_and_again_gathers() {
        let begun = Instant::now();
        let (mut gather, mut first, mut second) = (Gather::default(), None, None);
        assert!(!gather.moved(1, &mut first, 5, begun), "it is heard at once");
        assert!(!gather.moved(2, &mut second, 5, begun), "and so is another");
        assert!(gather.moved(1, &mut first, 5, begun));
        assert!(gather.moved(2, &mut second, 5, begun + WHILE / 2));
        assert_eq!(gather.until(), Some(begun + WHILE));
        assert!(gather.rested(begun + WHILE / 2).is_empty());
        assert_eq!(gather.rested(begun + WHILE), [1, 2]);
        assert_eq!((gather.until(), gather.rested(begun + WHILE)), (None, vec![]));
        assert!(gather.moved(1, &mut first, 50, begun + 2 * WHILE), "and so on");
        assert!(!gather.moved(2, &mut second, 5, begun + 4 * WHILE), "it had fallen silent");
    }

    #[test]
    fn much_does_not_wait() {
        let begun = Instant::now();
        let (mut gather, mut last) = (Gather::default(), None);
        assert!(!gather.moved(1, &mut last, 5, begun));
        assert!(!gather.moved(1, &mut last, LITTLE, begun));
        assert!(!gather.moved(1, &mut last, 5, begun), "nor does what is left of it");
        assert!(gather.moved(1, &mut last, 5, begun));
    }
}
