//! What became of proposals, told only when it is certain.

use std::collections::BTreeMap;

use crate::types::Outcome;

/// Proposals that raft-rs took and whose fate is open.
#[derive(Default)]
pub(super) struct Proposals {
    /// By (index, term); an index may be proposed at again in a later term.
    open: BTreeMap<(u64, u64), u64>,
    newest_applied_term: u64,
}

impl Proposals {
    pub(super) fn insert(&mut self, index: u64, term: u64, tag: u64) {
        self.open.insert((index, term), tag);
    }

    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    /// An entry was applied. Its own proposal is committed; with the first entry of a higher term every
    /// open proposal of a lower term has failed for certain, since terms only grow along a log.
    pub(super) fn on_applied(&mut self, index: u64, term: u64, out: &mut Vec<(u64, Outcome)>) {
        if let Some(tag) = self.open.remove(&(index, term)) {
            out.push((tag, Outcome::Committed(index)));
        }
        if term > self.newest_applied_term {
            self.newest_applied_term = term;
            self.open.retain(|(_, open_term), tag| {
                let live = *open_term >= term;
                if !live {
                    out.push((*tag, Outcome::Failed));
                }
                live
            });
        }
    }

    /// A snapshot took the place of the log up to `index`: whether those proposals are in it nobody here
    /// can know.
    pub(super) fn on_installed(&mut self, index: u64, out: &mut Vec<(u64, Outcome)>) {
        let behind = self.open.split_off(&(index + 1, 0));
        let covered = std::mem::replace(&mut self.open, behind);
        out.extend(covered.into_values().map(|tag| (tag, Outcome::Unknown)));
    }

    /// The node stops.
    pub(super) fn on_stop(&mut self, out: &mut Vec<(u64, Outcome)>) {
        out.extend(std::mem::take(&mut self.open).into_values().map(|tag| (tag, Outcome::Unknown)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_is_said_only_when_a_later_term_is_applied() {
        let mut proposals = Proposals::default();
        let mut out = Vec::new();
        proposals.insert(5, 2, 50);
        proposals.insert(6, 2, 60);
        proposals.insert(6, 4, 64);
        proposals.on_applied(4, 1, &mut out);
        assert!(out.is_empty());
        proposals.on_applied(5, 2, &mut out);
        assert_eq!(std::mem::take(&mut out), [(50, Outcome::Committed(5))]);
        proposals.on_applied(6, 3, &mut out);
        assert_eq!(std::mem::take(&mut out), [(60, Outcome::Failed)]);
        proposals.on_installed(6, &mut out);
        assert_eq!(out, [(64, Outcome::Unknown)]);
        assert_eq!(proposals.len(), 0);
    }
}
