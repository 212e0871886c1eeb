//! Streams whose output gathers in their pipes for a while.
//!
//! A task that writes a line at a time would have its pump woken for each: moving the line takes less than being woken
//! for it, and its neighbours would pay for both. So a stream that has little again and again is left alone for a
//! while. Who writes once is heard at once. Who writes so much that its pipe would fill up meanwhile is left alone
//! seldom, and who writes to a terminal never: that holds too little.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};

/// For so long.
const WHILE: Duration = Duration::from_millis(2);
/// And not within so long after it was found with much.
const BUSY: Duration = Duration::from_millis(20);

/// The streams that are left alone.
#[derive(Debug, Default)]
pub(crate) struct Gather {
    until: Option<Instant>,
    resting: Vec<u64>,
}

/// How a stream was found of late.
#[derive(Debug, Default)]
pub(crate) struct Talk {
    /// Less than this is little, in bytes.
    little: u64,
    /// When it was found with little, or had rested, last.
    last: Option<Instant>,
    busy_until: Option<Instant>,
}

impl Talk {
    /// Of a pipe: a quarter of what that holds is little. Nothing is, of anything else.
    pub(crate) fn of(pipe: impl AsFd) -> Self {
        let holds = fcntl(pipe, FcntlArg::F_GETPIPE_SZ).unwrap_or(0);
        Self { little: u64::try_from(holds).unwrap_or(0) / 4, ..Self::default() }
    }

    /// It is looked at again.
    pub(crate) fn rested(&mut self, now: Instant) {
        self.last = Some(now);
    }

    /// So many bytes were moved. Whether that is little, and is so again and again.
    fn is_little_again(&mut self, bytes: u64, now: Instant) -> bool {
        if bytes >= self.little.max(1) {
            self.busy_until = Some(now + BUSY);
        }
        let little = bytes > 0 && self.busy_until.is_none_or(|until| now >= until);
        let again = self.last.is_some_and(|last| now.saturating_duration_since(last) < WHILE);
        self.last = little.then_some(now);
        little && again
    }
}

impl Gather {
    /// So many bytes of a stream were moved. Whether it is to rest.
    pub(crate) fn moved(&mut self, stream: u64, talk: &mut Talk, bytes: u64, now: Instant) -> bool {
        let rests = talk.is_little_again(bytes, now);
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

    fn talk() -> Talk {
        Talk { little: 100, ..Talk::default() }
    }

    #[test]
    fn what_comes_again_and_again_gathers() {
        let begun = Instant::now();
        let (mut gather, mut first, mut second) = (Gather::default(), talk(), talk());
        assert!(!gather.moved(1, &mut first, 5, begun), "it is heard at once");
        assert!(!gather.moved(2, &mut second, 5, begun), "and so is another");
        assert!(gather.moved(1, &mut first, 5, begun));
        assert!(gather.moved(2, &mut second, 5, begun + WHILE / 2));
        assert_eq!(gather.until(), Some(begun + WHILE));
        assert!(gather.rested(begun + WHILE / 2).is_empty());
        let late = begun + 3 * WHILE;
        assert_eq!(gather.rested(late), [1, 2]);
        assert_eq!((gather.until(), gather.rested(late)), (None, vec![]));
        for talk in [&mut first, &mut second] {
            talk.rested(late);
        }
        assert!(gather.moved(1, &mut first, 50, late), "and so on");
        assert!(!gather.moved(2, &mut second, 5, late + WHILE), "it had fallen silent");
    }

    #[test]
    fn a_line_now_and_then_does_not_wait() {
        let begun = Instant::now();
        let (mut gather, mut talk) = (Gather::default(), talk());
        assert!((0..9).all(|n| !gather.moved(1, &mut talk, 5, begun + n * WHILE)));
    }

    #[test]
    fn much_does_not_wait() {
        let begun = Instant::now();
        let (mut gather, mut talk) = (Gather::default(), talk());
        assert!(!gather.moved(1, &mut talk, 5, begun));
        assert!(!gather.moved(1, &mut talk, 100, begun));
        assert!(!gather.moved(1, &mut talk, 5, begun), "nor does what is left of it");
        assert!(!gather.moved(1, &mut talk, 5, begun + BUSY / 2));
        assert!(!gather.moved(1, &mut talk, 5, begun + BUSY));
        assert!(gather.moved(1, &mut talk, 5, begun + BUSY));
    }

    #[test]
    fn terminals_do_not_wait() {
        let begun = Instant::now();
        let pty = nix::pty::openpty(None, None).expect("a terminal");
        let (mut gather, mut talk) = (Gather::default(), Talk::of(&pty.master));
        assert!((0..9).all(|_| !gather.moved(1, &mut talk, 5, begun)));
        let (pipe, _write) = nix::unistd::pipe().expect("a pipe");
        assert!(Talk::of(&pipe).little >= 1024);
    }
}
