//! Sets of dense numbers.

use smallvec::SmallVec;

/// A set of dense numbers as a bitmap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bits {
    words: Vec<u64>,
}

impl Bits {
    /// Whether it was not there.
    pub(crate) fn insert(&mut self, n: u32) -> bool {
        let (word, bit) = (n as usize / 64, 1 << (n % 64));
        if self.words.len() <= word {
            self.words.resize(word + 1, 0);
        }
        let new = self.words[word] & bit == 0;
        self.words[word] |= bit;
        new
    }

    /// Whether it was there.
    pub(crate) fn remove(&mut self, n: u32) -> bool {
        let bit = 1 << (n % 64);
        let Some(word) = self.words.get_mut(n as usize / 64) else { return false };
        let there = *word & bit != 0;
        *word &= !bit;
        there
    }

    pub(crate) fn set(&mut self, n: u32, there: bool) {
        if there {
            self.insert(n);
        } else {
            self.remove(n);
        }
    }

    pub(crate) fn contains(&self, n: u32) -> bool {
        self.words.get(n as usize / 64).is_some_and(|word| word >> (n % 64) & 1 == 1)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.words.iter().all(|w| *w == 0)
    }

    pub(crate) fn len(&self) -> usize {
        self.words.iter().map(|w| w.count_ones() as usize).sum()
    }

    /// Ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.words.iter().enumerate().flat_map(|(at, word)| {
            let mut left = *word;
            std::iter::from_fn(move || {
                let bit = (left != 0).then(|| left.trailing_zeros())?;
                left &= left - 1;
                Some(at as u32 * 64 + bit)
            })
        })
    }

    /// Becomes a copy of `other`, in the memory it has.
    pub(crate) fn copy_from(&mut self, other: &Bits) {
        self.words.clone_from(&other.words);
    }

    pub(crate) fn add_all(&mut self, other: &Bits) {
        if self.words.len() < other.words.len() {
            self.words.resize(other.words.len(), 0);
        }
        for (word, more) in self.words.iter_mut().zip(&other.words) {
            *word |= more;
        }
    }

    pub(crate) fn remove_all(&mut self, other: &Bits) {
        for (word, less) in self.words.iter_mut().zip(&other.words) {
            *word &= !less;
        }
    }
}

/// Above this a sorted list is longer to search than a bitmap of the thousands of clients of a large cluster is to
/// keep.
const FEW_MAX: usize = 16;

/// A set of dense numbers that is a short list while it is small.
#[derive(Clone, Debug)]
pub(crate) enum Members {
    /// Sorted.
    Few(SmallVec<[u32; 4]>),
    Many(Bits),
}

impl Default for Members {
    fn default() -> Self {
        Self::Few(SmallVec::new())
    }
}

impl Members {
    /// Whether it was not there.
    pub(crate) fn insert(&mut self, n: u32) -> bool {
        match self {
            Self::Few(list) => match list.binary_search(&n) {
                Ok(_) => false,
                Err(at) if list.len() < FEW_MAX => {
                    list.insert(at, n);
                    true
                }
                Err(_) => {
                    let mut bits = Bits::default();
                    for member in list.iter().chain([&n]) {
                        bits.insert(*member);
                    }
                    *self = Self::Many(bits);
                    true
                }
            },
            Self::Many(bits) => bits.insert(n),
        }
    }

    /// Whether it was there.
    pub(crate) fn remove(&mut self, n: u32) -> bool {
        match self {
            Self::Few(list) => list.binary_search(&n).map(|at| list.remove(at)).is_ok(),
            Self::Many(bits) => bits.remove(n),
        }
    }

    pub(crate) fn contains(&self, n: u32) -> bool {
        match self {
            Self::Few(list) => list.binary_search(&n).is_ok(),
            Self::Many(bits) => bits.contains(n),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Self::Few(list) => list.is_empty(),
            Self::Many(bits) => bits.is_empty(),
        }
    }

    pub(crate) fn for_each(&self, mut f: impl FnMut(u32)) {
        match self {
            Self::Few(list) => list.iter().for_each(|n| f(*n)),
            Self::Many(bits) => bits.iter().for_each(f),
        }
    }

    /// Takes the members out of `bits`.
    pub(crate) fn take_from(&self, bits: &mut Bits) {
        match self {
            Self::Few(list) => list.iter().for_each(|n| {
                bits.remove(*n);
            }),
            Self::Many(mine) => bits.remove_all(mine),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn sets_agree_with_a_plain_set() {
        let (mut bits, mut members, mut plain) = (Bits::default(), Members::default(), BTreeSet::new());
        let mut x = 1u32;
        for step in 0..4000 {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let n = (x >> 16) % 300;
            // Grows first, then shrinks.
            if (x >> 8) % 4000 > step {
                let new = plain.insert(n);
                assert_eq!((bits.insert(n), members.insert(n)), (new, new));
            } else {
                let there = plain.remove(&n);
                assert_eq!((bits.remove(n), members.remove(n)), (there, there));
            }
            assert_eq!((bits.contains(n), members.contains(n)), (plain.contains(&n), plain.contains(&n)));
            assert_eq!(
                (bits.len(), bits.is_empty(), members.is_empty()),
                (plain.len(), plain.is_empty(), plain.is_empty())
            );
        }
        assert!(bits.iter().eq(plain.iter().copied()));
        let mut listed = Vec::new();
        members.for_each(|n| listed.push(n));
        assert!(listed.iter().eq(plain.iter()));
        let mut left = bits.clone();
        members.take_from(&mut left);
        assert!(left.is_empty());
    }
}
