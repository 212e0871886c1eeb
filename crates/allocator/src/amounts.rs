//! Sums of scalar resources, and exact shares of them.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use proffer_types::Resources;

/// Scalars summed over attributions, agents or tasks. Ports, other ranges and sets have no share and are left out.
/// 128 bits: no number of agents that fits in memory overflows the sum of 63-bit amounts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Amounts {
    /// In the order of `ScalarKind::ALL`.
    known: [u128; 4],
    custom: BTreeMap<String, u128>,
}

impl Amounts {
    pub(crate) fn add(&mut self, resources: &Resources) {
        for entry in resources.entries() {
            for (sum, amount) in self.known.iter_mut().zip(entry.quantities.scalar_array()) {
                *sum += u128::from(amount);
            }
            for (kind, amount) in entry.quantities.custom().iter().flat_map(|c| &c.scalars) {
                *self.custom.entry(kind.clone()).or_default() += u128::from(*amount);
            }
        }
    }

    /// Takes away what was added before.
    pub(crate) fn sub(&mut self, resources: &Resources) {
        const ADDED: &str = "only what was added is taken away";
        for entry in resources.entries() {
            for (sum, amount) in self.known.iter_mut().zip(entry.quantities.scalar_array()) {
                *sum = sum.checked_sub(u128::from(amount)).expect(ADDED);
            }
            for (kind, amount) in entry.quantities.custom().iter().flat_map(|c| &c.scalars) {
                let sum = self.custom.get_mut(kind).expect(ADDED);
                *sum = sum.checked_sub(u128::from(*amount)).expect(ADDED);
                if *sum == 0 {
                    self.custom.remove(kind);
                }
            }
        }
    }

    /// Adds another sum.
    pub(crate) fn merge(&mut self, other: &Amounts) {
        for (sum, amount) in self.known.iter_mut().zip(other.known) {
            *sum += amount;
        }
        for (kind, amount) in &other.custom {
            *self.custom.entry(kind.clone()).or_default() += amount;
        }
    }

    /// The dominant share: the greatest part that `self` is of any kind there is in `total`; 0/1 for nothing.
    pub(crate) fn dominant(&self, total: &Amounts) -> Fraction {
        let known = self.known.iter().zip(&total.known);
        let custom = self.custom.iter().map(|(kind, part)| (part, total.custom.get(kind).unwrap_or(&0)));
        known.chain(custom).filter(|(part, whole)| **part > 0 && **whole > 0).fold(
            Fraction::ZERO,
            |most, (part, whole)| {
                let this = Fraction::new(*part, *whole);
                if this.cmp(&most) == Ordering::Greater { this } else { most }
            },
        )
    }
}

/// A share before weights: `part / whole`, both below 2^63.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fraction {
    part: u128,
    whole: u128,
}

impl Fraction {
    const ZERO: Self = Self { part: 0, whole: 1 };

    /// Exact while both are below 2^63 (8 EiB of memory in the cluster); beyond that low bits of both are dropped.
    fn new(part: u128, whole: u128) -> Self {
        let bits = 128 - part.max(whole).leading_zeros();
        let drop = bits.saturating_sub(63);
        Self { part: part >> drop, whole: (whole >> drop).max(1) }
    }

    /// Exact: products of 63-bit numbers.
    fn cmp(&self, other: &Self) -> Ordering {
        (self.part * other.whole).cmp(&(other.part * self.whole))
    }

    /// The share divided by a weight, in units of 2^-54, rounded down. Equal rationals give equal values, so ties are
    /// ties; shares that differ by less than 2^-54 are taken for ties too. 63 + 54 + 10 bits do not overflow.
    pub(crate) fn weighted(&self, weight_milli: u32) -> u128 {
        if self.part == 0 {
            return 0;
        }
        ((self.part << 54) * 1000) / (self.whole * u128::from(weight_milli))
    }

    /// For display.
    pub(crate) fn millionths(&self) -> u64 {
        (self.part * 1_000_000 / self.whole) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amounts(text: &str) -> Amounts {
        let mut amounts = Amounts::default();
        amounts.add(&Resources::parse(text).expect(text));
        amounts
    }

    #[test]
    fn equal_shares_of_different_kinds_tie() {
        let total = amounts("cpus:9;mem:18GiB");
        let (a, b) =
            (amounts("cpus:3;mem:12GiB").dominant(&total), amounts("cpus:6;mem:2GiB").dominant(&total));
        assert_eq!(a.weighted(1000), b.weighted(1000));
        assert_eq!(a.millionths(), 666_666);
        assert_eq!(a.weighted(3000), amounts("cpus:2").dominant(&total).weighted(1000));
        assert!(
            amounts("mem:12GiB").dominant(&total).weighted(1000)
                > amounts("mem:11GiB").dominant(&total).weighted(1000)
        );
    }

    #[test]
    fn custom_kinds_have_shares_and_absent_ones_have_none() {
        let total = amounts("cpus:10;fpga:4");
        assert_eq!(amounts("cpus:1;fpga:3").dominant(&total).millionths(), 750_000);
        assert_eq!(amounts("gpus:1").dominant(&total).millionths(), 0);
    }

    #[test]
    fn the_largest_amounts_do_not_overflow() {
        let one = Resources::parse("mem:8388607TiB").unwrap();
        let mut total = Amounts::default();
        (0..1000).for_each(|_| total.add(&one));
        let mut part = Amounts::default();
        (0..250).for_each(|_| part.add(&one));
        assert_eq!(part.dominant(&total).millionths(), 250_000);
        assert!(part.dominant(&total).weighted(1) > 0);
        assert!(part.dominant(&total).weighted(u32::MAX) > 0);
    }
}
