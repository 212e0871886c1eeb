//! When to stand for election: the jitter of the ordinary timeout, and the fast path once the leader's
//! process is known to be gone.

/// splitmix64's finisher.
fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The election timeout in ticks, in `election_ticks .. 2 * election_ticks`: a pure function of the node, the
/// term and how many of its timeouts have fired. raft-rs draws its own from the thread's generator at each
/// change of role; this one is set over it before every tick.
pub(super) fn election_timeout(seed: u64, id: u64, term: u64, fired: u64, election_ticks: usize) -> usize {
    let drawn = mix(mix(mix(mix(seed) ^ id) ^ term) ^ fired);
    election_ticks + (drawn % election_ticks as u64) as usize
}

/// Pauses between attempts, in milliseconds: a pre-vote that reaches a peer before that peer has seen the
/// leader's connection close is ignored without an answer, so it is worth repeating soon.
const PAUSES_MS: [u64; 6] = [2, 2, 3, 5, 8, 45];
/// Nodes take turns, by rank among the survivors, this far apart; one that hears a candidate of a smaller id
/// steps back by as much. Else votes split.
pub(super) const RANK_MS: u64 = 20;
/// Then the ordinary timeout takes over.
const ATTEMPTS_MAX: usize = 12;

/// The fast path, from the news that the leader's process is gone until there is a leader.
#[derive(Debug, Clone, Copy)]
pub(super) struct FastCampaign {
    next_ms: u64,
    attempts: usize,
}

impl FastCampaign {
    /// `rank` is the number of surviving voters with a smaller id.
    pub(super) fn new(now_ms: u64, rank: u64) -> FastCampaign {
        FastCampaign { next_ms: now_ms + rank * RANK_MS, attempts: 0 }
    }

    pub(super) fn next_ms(&self) -> u64 {
        self.next_ms
    }

    pub(super) fn step_back(&mut self, now_ms: u64) {
        self.next_ms = self.next_ms.max(now_ms + RANK_MS);
    }

    /// Counts an attempt made (or skipped) now; `false` when there shall be no more.
    pub(super) fn attempted(&mut self, now_ms: u64) -> bool {
        let pause = PAUSES_MS.get(self.attempts).or(PAUSES_MS.last()).expect("there are pauses");
        self.attempts += 1;
        self.next_ms = now_ms + pause;
        self.attempts < ATTEMPTS_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_is_pure_spread_and_in_range() {
        let mut seen = std::collections::BTreeSet::new();
        for term in 0..50 {
            for fired in 0..5 {
                let ticks = election_timeout(1, 2, term, fired, 20);
                assert!((20..40).contains(&ticks));
                assert_eq!(ticks, election_timeout(1, 2, term, fired, 20));
                seen.insert(ticks);
            }
        }
        assert_eq!(seen.len(), 20, "every value occurs");
        assert!((0..9).any(|k| election_timeout(1, 2, 3, k, 20) != election_timeout(1, 3, 3, k, 20)));
    }

    #[test]
    fn attempts_follow_the_pauses_and_end() {
        let mut campaign = FastCampaign::new(100, 1);
        let mut at = Vec::new();
        loop {
            at.push(campaign.next_ms() - 100);
            if !campaign.attempted(campaign.next_ms()) {
                break;
            }
        }
        assert_eq!(at[..7], [20, 22, 24, 27, 32, 40, 85]);
        assert_eq!(at.len(), ATTEMPTS_MAX);
        let mut campaign = FastCampaign::new(100, 0);
        campaign.step_back(101);
        assert_eq!(campaign.next_ms(), 121);
    }
}
