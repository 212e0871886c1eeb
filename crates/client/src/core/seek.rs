//! Finding the leader: which master to dial when.

use std::collections::BTreeMap;

use super::value::DialId;

/// First pause before a master is dialled again; doubles up to [`PAUSE_MAX_MS`], full jitter.
const PAUSE_MIN_MS: u64 = 50;
/// Longest pause between two dials of one master.
const PAUSE_MAX_MS: u64 = 2_000;
/// One second to connect and one for the first answer; doubles while a master keeps silent, because a slow disk must
/// not keep a framework out for ever.
const PATIENCE_MS: u64 = 2_000;
/// Longest wait for a first answer.
const PATIENCE_MAX_MS: u64 = 16_000;
/// A master that went silent while it led is left alone this long, unless another names it as the leader.
const SUSPICION_MS: u64 = 5_000;
/// Redirections that are followed at once; further ones wait for their master's pause.
const HOPS_MAX: u32 = 3;

/// One master, while there is no leader.
#[derive(Clone, Debug)]
struct Seat {
    /// The attempt under way, and when to give it up.
    dial: Option<(DialId, u64)>,
    /// Not before this, if no attempt is under way.
    next_at: u64,
    /// Failures in a row.
    failures: u32,
    /// Failures in a row to say anything.
    silences: u32,
    /// Known by configuration, not only by hearsay.
    configured: bool,
    /// Why the last attempt failed.
    why: String,
}

/// All masters that are known, and the attempts under way.
#[derive(Clone, Debug)]
pub(super) struct Seek {
    seats: BTreeMap<String, Seat>,
    hops: u32,
    random: u64,
}

impl Seek {
    pub(super) fn new(masters: &[String], seed: u64) -> Self {
        let mut seek = Self { seats: BTreeMap::new(), hops: 0, random: seed };
        for master in masters {
            seek.seat(master).configured = true;
        }
        seek
    }

    /// The search begins: every master may be dialled now but the one that was just lost.
    pub(super) fn begin(&mut self, now: u64, suspect: Option<&str>) {
        self.hops = 0;
        let others = self.seats.values().filter(|seat| seat.configured).count() > 1;
        self.seats.retain(|master, seat| seat.configured || Some(master.as_str()) == suspect);
        for (master, seat) in &mut self.seats {
            let suspected = Some(master.as_str()) == suspect && others;
            seat.next_at = if suspected { now + SUSPICION_MS } else { now };
            (seat.failures, seat.silences) = (0, 0);
        }
    }

    /// Waits at least until `at` with every master.
    pub(super) fn pause_until(&mut self, at: u64) {
        for seat in self.seats.values_mut() {
            seat.next_at = seat.next_at.max(at);
        }
    }

    /// The masters to dial now.
    pub(super) fn due(&self, now: u64) -> Vec<String> {
        let due = self.seats.iter().filter(|(_, seat)| seat.dial.is_none() && seat.next_at <= now);
        due.map(|(master, _)| master.clone()).collect()
    }

    pub(super) fn dialled(&mut self, now: u64, master: &str, dial: DialId) {
        let seat = self.seat(master);
        let patience = (PATIENCE_MS << seat.silences.min(3)).min(PATIENCE_MAX_MS);
        seat.dial = Some((dial, now + patience));
    }

    /// Attempts that have had no answer for too long.
    pub(super) fn overdue(&self, now: u64) -> Vec<DialId> {
        self.seats
            .values()
            .filter_map(|seat| seat.dial)
            .filter(|(_, until)| *until <= now)
            .map(|(dial, _)| dial)
            .collect()
    }

    /// Which master an attempt under way is at.
    pub(super) fn master_of(&self, dial: DialId) -> Option<&str> {
        let seat = self.seats.iter().find(|(_, seat)| seat.dial.is_some_and(|(id, _)| id == dial));
        seat.map(|(master, _)| master.as_str())
    }

    /// An attempt failed; the master is dialled again after its pause.
    pub(super) fn failed(&mut self, now: u64, dial: DialId, silent: bool, pause_ms: u64, why: String) {
        let Some(master) = self.master_of(dial).map(str::to_owned) else { return };
        let longest = {
            let seat = self.seat(&master);
            seat.dial = None;
            seat.why = why;
            seat.failures = seat.failures.saturating_add(1);
            seat.silences = if silent { seat.silences.saturating_add(1) } else { 0 };
            (PAUSE_MIN_MS << seat.failures.min(6)).min(PAUSE_MAX_MS)
        };
        let pause = self.below(longest).max(1).max(pause_ms);
        self.seat(&master).next_at = now + pause;
    }

    /// Another master says that `master` leads: it is dialled at once, unless the hops are used up.
    pub(super) fn named(&mut self, now: u64, master: &str) {
        let hop = self.hops < HOPS_MAX;
        let seat = self.seat(master);
        if seat.dial.is_none() && seat.next_at > now && hop {
            seat.next_at = now;
            self.hops += 1;
        }
    }

    /// There is a leader: all other attempts are over. Returns them.
    pub(super) fn end(&mut self, winner: DialId) -> Vec<DialId> {
        let dials = self.seats.values_mut().filter_map(|seat| seat.dial.take()).map(|(dial, _)| dial);
        dials.filter(|dial| *dial != winner).collect()
    }

    /// When there is something to do next.
    pub(super) fn next_at(&self) -> Option<u64> {
        self.seats.values().map(|seat| seat.dial.map_or(seat.next_at, |(_, until)| until)).min()
    }

    /// Why there is no leader yet, per master.
    pub(super) fn report(&self) -> Vec<(String, String)> {
        let why =
            |seat: &Seat| if seat.why.is_empty() { "no answer yet".to_owned() } else { seat.why.clone() };
        self.seats.iter().map(|(master, seat)| (master.clone(), why(seat))).collect()
    }

    /// A number below `n` from the seeded generator (splitmix64).
    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n.max(1)
    }

    fn seat(&mut self, master: &str) -> &mut Seat {
        self.seats.entry(master.to_owned()).or_insert_with(|| Seat {
            dial: None,
            next_at: 0,
            failures: 0,
            silences: 0,
            configured: false,
            why: String::new(),
        })
    }
}
