//! Who refused what lately.
//!
//! A refusal holds back, from one client (a framework in a role) on one agent, whatever is contained in the refused
//! amount. With thousands of clients on tens of thousands of agents there may be hundreds of millions of such pairs:
//! an agent keeps a few layers, each an amount and an expiry with the set of clients that it holds for.
//!
//! The re-offer floor is the shortest time that a refusal holds, even with a filter of 0 s. Its level is kept per
//! client and shape, not per agent, so that a client which refuses a thousand like agents does not raise it a thousand
//! times: at most once per period of its own length. What is held back is the refused agent only.

use proffer_types::{Quantities, Resources, limits};
use smallvec::SmallVec;

use crate::Policy;
use crate::bits::{Bits, Members};

/// One refused amount and expiry, for some clients.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    /// The first millisecond at which it holds no longer.
    pub(crate) until_ms: u64,
    pub(crate) shape: Resources,
    pub(crate) who: Members,
}

/// All that holds offers of one agent back.
#[derive(Clone, Debug, Default)]
pub(crate) struct Layers(Vec<Layer>);

/// When a refusal at `now_ms` for `duration_ms` ends: rounded up to a power of two of milliseconds that is at most a
/// quarter of the duration, so that refusals of about the same time share a layer.
pub(crate) fn refusal_ends_ms(now_ms: u64, duration_ms: u64) -> u64 {
    let duration_ms = duration_ms.min(limits::FILTER_MAX_MS);
    let step = (duration_ms / 4).checked_ilog2().map_or(1, |log| 1u64 << log);
    now_ms.saturating_add(duration_ms).div_ceil(step).saturating_mul(step)
}

impl Layers {
    /// Holds back from `client` what is contained in `shape`. `lost` is told of each client for whom a layer ends
    /// because there are too many of them, `gained` whether this one is held back by one layer more. Returns the
    /// expiry of a layer that is new.
    pub(crate) fn refuse(
        &mut self,
        client: u32,
        shape: &Resources,
        until_ms: u64,
        layers_max: usize,
        mut changed: impl FnMut(u32, i64),
    ) -> Option<u64> {
        if let Some(layer) = self.0.iter_mut().find(|l| l.until_ms == until_ms && l.shape == *shape) {
            if layer.who.insert(client) {
                changed(client, 1);
            }
            return None;
        }
        let mut who = Members::default();
        who.insert(client);
        changed(client, 1);
        self.0.push(Layer { until_ms, shape: shape.clone(), who });
        while self.0.len() > layers_max.max(1) {
            self.merge_two(&mut changed);
        }
        Some(until_ms)
    }

    /// Ends what is over; `ended` is told of each client and layer.
    pub(crate) fn expire(&mut self, now_ms: u64, mut ended: impl FnMut(u32)) {
        self.0.retain(|layer| {
            let over = layer.until_ms <= now_ms;
            if over {
                layer.who.for_each(&mut ended);
            }
            !over
        });
    }

    /// Forgets a client; returns from how many layers.
    pub(crate) fn forget(&mut self, client: u32) -> u64 {
        let mut from = 0;
        self.0.retain_mut(|layer| {
            from += u64::from(layer.who.remove(client));
            !layer.who.is_empty()
        });
        from
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Layer> {
        self.0.iter()
    }

    /// Whether something holds `candidate` back from somebody.
    pub(crate) fn any(&self, candidate: &Resources, now_ms: u64) -> bool {
        self.holding(candidate, now_ms).next().is_some()
    }

    /// Takes those out of `clients` from whom `candidate` is held back.
    pub(crate) fn take_from(&self, clients: &mut Bits, candidate: &Resources, now_ms: u64) {
        self.holding(candidate, now_ms).for_each(|layer| layer.who.take_from(clients));
    }

    /// The layer that holds `candidate` back from `client` longest.
    pub(crate) fn longest<'a>(
        &'a self,
        client: u32,
        candidate: &'a Resources,
        now_ms: u64,
    ) -> Option<&'a Layer> {
        let mine = self.holding(candidate, now_ms).filter(|layer| layer.who.contains(client));
        mine.max_by_key(|layer| layer.until_ms)
    }

    fn holding<'a>(&'a self, candidate: &'a Resources, now_ms: u64) -> impl Iterator<Item = &'a Layer> {
        self.0.iter().filter(move |layer| now_ms < layer.until_ms && layer.shape.contains(candidate))
    }

    /// Makes one layer of two so that less is held back, never more: of two with the same shape those closest in time,
    /// else the two that last longest. Those that end soonest include the re-offer floor, which must hold.
    fn merge_two(&mut self, changed: &mut impl FnMut(u32, i64)) {
        self.0.sort_by_key(|layer| layer.until_ms);
        let mut best: Option<(u64, usize, usize)> = None;
        for later in 1..self.0.len() {
            let earlier = (0..later).rev().find(|e| self.0[*e].shape == self.0[later].shape);
            if let Some(earlier) = earlier {
                let gap = self.0[later].until_ms - self.0[earlier].until_ms;
                if best.is_none_or(|(least, ..)| gap < least) {
                    best = Some((gap, earlier, later));
                }
            }
        }
        let last = self.0.len() - 1;
        let (_, earlier, later) = best.unwrap_or((0, last - 1, last));
        let gone = self.0.remove(later);
        let kept = &mut self.0[earlier];
        kept.shape = common_part(&kept.shape, &gone.shape);
        gone.who.for_each(|client| {
            if !kept.who.insert(client) {
                changed(client, -1);
            }
        });
        if kept.shape.is_empty() {
            kept.who.for_each(|client| changed(client, -1));
            self.0.remove(earlier);
        }
    }
}

/// An amount that both contain: unreserved scalars, and ports where one has all of the other's.
fn common_part(a: &Resources, b: &Resources) -> Resources {
    if a.contains(b) {
        return b.clone();
    }
    if b.contains(a) {
        return a.clone();
    }
    let (Some(a), Some(b)) = (a.unreserved_part(), b.unreserved_part()) else { return Resources::new() };
    let mut least = a.scalar_array();
    least.iter_mut().zip(b.scalar_array()).for_each(|(a, b)| *a = b.min(*a));
    let [cpus_milli, memory_bytes, disk_bytes, gpus_milli] = least;
    let both = Quantities::scalars(cpus_milli, memory_bytes, disk_bytes, gpus_milli);
    let ports = if a.ports().contains(b.ports()) {
        b.ports().clone()
    } else if b.ports().contains(a.ports()) {
        a.ports().clone()
    } else {
        Default::default()
    };
    Resources::unreserved(both.with_ports(ports))
}

/// How long refusals of one shape hold at least.
#[derive(Clone, Copy, Debug)]
struct Level {
    /// The scalars of the refused amount: of two like agents with other port ranges the shape is the same.
    shape: [u64; 4],
    level_ms: u64,
    /// A refusal from then on raises the level.
    ends_ms: u64,
}

/// Shapes remembered per client; the one refused longest ago makes room.
const LEVELS_MAX: usize = 8;

/// A client's re-offer floors, those refused last at the end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Floors(SmallVec<[Level; 1]>);

impl Floors {
    /// Notes a refusal; returns for how long it holds at least.
    pub(crate) fn refuse(&mut self, policy: &Policy, now_ms: u64, shape: &Resources) -> u64 {
        let shape = proffer_types::resources::ScalarKind::ALL.map(|kind| shape.scalar(kind));
        let first = Level {
            shape,
            level_ms: policy.floor_min_ms,
            ends_ms: now_ms.saturating_add(policy.floor_min_ms),
        };
        let known = self.0.iter().position(|l| l.shape == shape).map(|at| self.0.remove(at));
        let level = match known {
            None => first,
            Some(known) if now_ms < known.ends_ms => known,
            Some(known) if now_ms - known.ends_ms >= policy.floor_memory_ms => first,
            Some(known) => {
                let level_ms = known.level_ms.saturating_mul(2).min(policy.floor_max_ms);
                Level { level_ms, ends_ms: now_ms.saturating_add(level_ms), ..known }
            }
        };
        if self.0.len() == LEVELS_MAX {
            self.0.remove(0);
        }
        self.0.push(level);
        level.level_ms
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// The longest in force.
    pub(crate) fn longest_ms(&self, now_ms: u64) -> u64 {
        self.0.iter().filter(|l| now_ms < l.ends_ms).map(|l| l.level_ms).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn r(text: &str) -> Resources {
        Resources::parse(text).expect(text)
    }

    #[test]
    fn a_refusal_ends_a_little_late_never_early() {
        for duration in [0, 1, 3, 100, 5_000, 86_400_000, u64::MAX] {
            for now in [0, 1, 999, 12_345_678] {
                let asked = now + duration.min(limits::FILTER_MAX_MS);
                let ends = refusal_ends_ms(now, duration);
                assert!(
                    asked <= ends && ends <= asked + duration.min(limits::FILTER_MAX_MS) / 4,
                    "{now} {duration}"
                );
            }
        }
        assert_eq!(refusal_ends_ms(u64::MAX, 5_000), u64::MAX);
        assert_eq!(refusal_ends_ms(0, 5_000), 5_120);
        assert_eq!(refusal_ends_ms(100, 5_000), 5_120);
    }

    /// Whatever is merged, nobody is held back whom their own refusals do not hold back.
    #[test]
    fn merging_holds_back_less_never_more() {
        let shapes =
            ["cpus:1", "cpus:2", "cpus:2;mem:1GiB", "cpus:1;mem:2GiB", "ports:[1-2]", "cpus:4;ports:[1-9]"];
        let mut x = 7u32;
        let mut dice = |sides: u32| {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (x >> 8) % sides
        };
        for _ in 0..300 {
            let mut layers = Layers::default();
            let mut held = [0i64; 30];
            let mut refused = Vec::new();
            for _ in 0..60 {
                let (client, until) = (dice(30), u64::from(dice(8)) * 100);
                let shape = r(shapes[dice(shapes.len() as u32) as usize]);
                layers.refuse(client, &shape, until, 4, |client, by| held[client as usize] += by);
                refused.push((client, shape, until));
            }
            assert!(layers.iter().count() <= 4);
            for client in 0..30 {
                let layers_of = layers.iter().filter(|l| l.who.contains(client)).count();
                assert_eq!(held[client as usize], layers_of as i64);
                for (now, shape) in (0..8).flat_map(|t| shapes.map(|s| (t * 100, r(s)))) {
                    let mut left = Bits::default();
                    left.insert(client);
                    layers.take_from(&mut left, &shape, now);
                    let own = refused
                        .iter()
                        .any(|(c, s, until)| *c == client && now < *until && s.contains(&shape));
                    assert!(own || left.contains(client), "{client} is held back from {shape} at {now}");
                }
            }
        }
    }

    #[test]
    fn floors_double_once_per_period_and_are_forgotten() {
        let (policy, mut floors) = (Policy::default(), Floors::default());
        let shape = r("cpus:4;mem:8GiB;ports:[1-10]");
        assert_eq!(floors.refuse(&policy, 0, &shape), 100);
        assert_eq!(
            floors.refuse(&policy, 99, &r("cpus:4;mem:8GiB;ports:[11-20]")),
            100,
            "the same burst, a like agent"
        );
        assert_eq!(floors.refuse(&policy, 100, &r("cpus:3;mem:8GiB")), 100, "another shape");
        let mut now = 100;
        for level in [200, 400, 800, 1_600, 3_200, 5_000, 5_000] {
            assert_eq!(floors.refuse(&policy, now, &shape), level);
            assert_eq!(floors.longest_ms(now), level);
            now += level;
        }
        assert_eq!(floors.longest_ms(now), 0);
        assert_eq!(floors.refuse(&policy, now + 59_999, &shape), 5_000, "offers may be out for 30 s");
        assert_eq!(floors.refuse(&policy, now + 59_999 + 65_000, &shape), 100);
    }
}
