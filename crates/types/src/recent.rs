//! A set of which only the newest members are kept.

use std::collections::{BTreeSet, VecDeque};

/// A set that forgets its oldest members: those that came first, whatever their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recent<T> {
    members: BTreeSet<T>,
    /// As they came.
    came: VecDeque<T>,
    most: usize,
}

impl<T: Copy + Ord> Recent<T> {
    /// An empty set that will have `most` members at most.
    pub fn new(most: usize) -> Self {
        Self { members: BTreeSet::new(), came: VecDeque::new(), most }
    }

    /// Adds a member. One that is there already does not become newer.
    pub fn insert(&mut self, member: T) {
        if !self.members.insert(member) {
            return;
        }
        self.came.push_back(member);
        if self.came.len() > self.most {
            let oldest = self.came.pop_front();
            oldest.iter().for_each(|oldest| _ = self.members.remove(oldest));
        }
    }

    /// Whether it is among the newest.
    pub fn contains(&self, member: &T) -> bool {
        self.members.contains(member)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_forgotten_whatever_its_value() {
        let mut recent = Recent::new(2);
        [7, 9, 1, 9].into_iter().for_each(|n| recent.insert(n));
        assert!(!recent.contains(&7));
        assert!(recent.contains(&9) && recent.contains(&1));
        recent.insert(8);
        assert!(!recent.contains(&9) && recent.contains(&1) && recent.contains(&8));
    }
}
