//! Sets of integers as sorted, disjoint, inclusive ranges.

use std::fmt;

use super::ResourceError;

/// Inclusive ranges in canonical form: sorted, disjoint, not adjacent.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    /// Checks and sorts; overlapping or inverted ranges are refused, adjacent ones are joined.
    pub fn new(kind: &str, ranges: impl IntoIterator<Item = (u64, u64)>) -> Result<Self, ResourceError> {
        let mut sorted: Vec<_> = ranges.into_iter().collect();
        sorted.sort_unstable();
        let mut joined: Vec<(u64, u64)> = Vec::with_capacity(sorted.len());
        for (first, last) in sorted {
            if last < first {
                return Err(ResourceError::Inverted { first, last });
            }
            match joined.last_mut() {
                Some(before) if before.1 >= first => {
                    return Err(ResourceError::Overlap { kind: kind.into(), what: format!("{first}") });
                }
                Some(before) if before.1 + 1 == first => before.1 = last,
                _ => joined.push((first, last)),
            }
        }
        Ok(Self(joined))
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The ranges, sorted.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.0.iter().copied()
    }

    /// How many integers there are.
    pub fn count(&self) -> u64 {
        self.iter().map(|(first, last)| (last - first).saturating_add(1)).fold(0, u64::saturating_add)
    }

    /// The integers, ascending.
    pub fn values(&self) -> impl Iterator<Item = u64> + '_ {
        self.iter().flat_map(|(first, last)| first..=last)
    }

    /// The `n` smallest integers, `None` if there are fewer.
    pub fn take_first(&self, n: u64) -> Option<Self> {
        let mut left = n;
        let mut taken = Vec::new();
        for (first, last) in self.iter() {
            if left == 0 {
                break;
            }
            let size = (last - first).saturating_add(1).min(left);
            taken.push((first, first + size - 1));
            left -= size;
        }
        (left == 0).then_some(Self(taken))
    }

    /// Whether every integer of `other` is in `self`.
    pub fn contains(&self, other: &Self) -> bool {
        other.iter().all(|(first, last)| {
            let at = self.0.partition_point(|r| r.1 < first);
            self.0.get(at).is_some_and(|r| r.0 <= first && last <= r.1)
        })
    }

    /// Adds integers none of which is there yet.
    pub fn add(&mut self, kind: &str, other: &Self) -> Result<(), ResourceError> {
        *self = Self::new(kind, self.iter().chain(other.iter()))?;
        Ok(())
    }

    /// Takes integers away, all of which must be there.
    pub fn sub(&mut self, kind: &str, other: &Self) -> Result<(), ResourceError> {
        if !self.contains(other) {
            return Err(ResourceError::Insufficient {
                kind: kind.into(),
                have: self.to_string(),
                want: other.to_string(),
            });
        }
        let mut left = Vec::with_capacity(self.0.len() + other.0.len());
        let mut taken = other.0.iter().peekable();
        for &(mut first, last) in &self.0 {
            let mut whole = true;
            while let Some(&&(from, to)) = taken.peek().filter(|t| t.1 <= last) {
                if from > first {
                    left.push((first, from - 1));
                }
                whole = to < last;
                first = to.saturating_add(1);
                taken.next();
            }
            if whole {
                left.push((first, last));
            }
        }
        self.0 = left;
        Ok(())
    }
}

impl fmt::Display for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (i, (first, last)) in self.iter().enumerate() {
            write!(f, "{}{first}-{last}", if i > 0 { "," } else { "" })?;
        }
        f.write_str("]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// All subsets of 0..8 against a plain set.
    #[test]
    fn agrees_with_a_set_of_integers() {
        let set = |bits: u32| (0..8u64).filter(|i| bits >> i & 1 == 1).collect::<BTreeSet<_>>();
        let ranges = |bits| Ranges::new("ports", set(bits).into_iter().map(|i| (i, i))).unwrap();
        for a in 0..256 {
            for b in 0..256 {
                let (ra, rb) = (ranges(a), ranges(b));
                assert_eq!(ra.contains(&rb), a & b == b);
                let mut sum = ra.clone();
                assert_eq!(sum.add("ports", &rb).is_ok(), a & b == 0);
                if a & b == 0 {
                    assert_eq!(sum, ranges(a | b));
                }
                let mut difference = ra.clone();
                assert_eq!(difference.sub("ports", &rb).is_ok(), a & b == b);
                if a & b == b {
                    assert_eq!(difference, ranges(a & !b), "{a:b} - {b:b}");
                }
            }
        }
    }

    #[test]
    fn the_ends_of_the_integers_are_safe() {
        let all = Ranges::new("x", [(0, u64::MAX)]).unwrap();
        let mut rest = all.clone();
        rest.sub("x", &Ranges::new("x", [(u64::MAX, u64::MAX)]).unwrap()).unwrap();
        assert_eq!(rest, Ranges::new("x", [(0, u64::MAX - 1)]).unwrap());
        assert!(Ranges::new("x", [(0, u64::MAX), (u64::MAX, u64::MAX)]).is_err());
    }
}
