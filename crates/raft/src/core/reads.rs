//! Linearizable reads by ReadIndex: one round of heartbeats for all reads that wait together.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut};

/// Reads from the asking until every entry up to the confirmed index was delivered.
pub(super) struct Reads {
    node: u64,
    incarnation: u64,
    next_group: u64,
    queued: Vec<u64>,
    /// Asked: by group, the contexts and the tick of the asking.
    asked: BTreeMap<u64, (Vec<u64>, u64)>,
    /// Confirmed: contexts by index.
    confirmed: BTreeMap<u64, Vec<u64>>,
}

impl Reads {
    /// `incarnation` differs for every start of the node, so that a late answer to an earlier process
    /// cannot be taken for one to this.
    pub(super) fn new(node: u64, incarnation: u64) -> Reads {
        Reads {
            node,
            incarnation,
            next_group: 0,
            queued: Vec::new(),
            asked: BTreeMap::new(),
            confirmed: BTreeMap::new(),
        }
    }

    pub(super) fn queue(&mut self, ctx: u64) {
        self.queued.push(ctx);
    }

    /// Takes what waits as one group: the context to give raft-rs. `None` if nothing waits.
    pub(super) fn ask(&mut self, tick: u64) -> Option<Vec<u8>> {
        if self.queued.is_empty() {
            return None;
        }
        self.next_group += 1;
        self.asked.insert(self.next_group, (std::mem::take(&mut self.queued), tick));
        let mut out = Vec::with_capacity(24);
        out.put_u64_le(self.node);
        out.put_u64_le(self.incarnation);
        out.put_u64_le(self.next_group);
        Some(out)
    }

    /// raft-rs confirmed a group.
    pub(super) fn on_confirmed(&mut self, mut context: &[u8], index: u64) {
        if context.len() != 24
            || context.get_u64_le() != self.node
            || context.get_u64_le() != self.incarnation
        {
            return;
        }
        if let Some((ctxs, _)) = self.asked.remove(&context.get_u64_le()) {
            self.confirmed.entry(index).or_default().extend(ctxs);
        }
    }

    /// The reads whose index has been delivered.
    pub(super) fn take_due(&mut self, delivered: u64) -> Vec<(u64, u64)> {
        let later = self.confirmed.split_off(&(delivered + 1));
        let due = std::mem::replace(&mut self.confirmed, later);
        due.into_iter().flat_map(|(index, ctxs)| ctxs.into_iter().map(move |ctx| (ctx, index))).collect()
    }

    /// Gives up reads that nobody will confirm: those asked at or before `tick`, and the queued ones if
    /// there is nobody to ask.
    pub(super) fn give_up(&mut self, tick: u64, queued: bool) -> Vec<u64> {
        let mut out = if queued { std::mem::take(&mut self.queued) } else { Vec::new() };
        self.asked.retain(|_, (ctxs, asked)| {
            let keep = *asked > tick;
            if !keep {
                out.append(ctxs);
            }
            keep
        });
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_waits_for_its_index_and_ignores_another_incarnation() {
        let mut reads = Reads::new(1, 7);
        reads.queue(10);
        reads.queue(11);
        let context = reads.ask(3).unwrap();
        assert!(reads.ask(3).is_none());
        let mut old = Reads::new(1, 6);
        old.queue(99);
        reads.on_confirmed(&old.ask(1).unwrap(), 5);
        assert!(reads.take_due(100).is_empty());
        reads.on_confirmed(&context, 20);
        assert!(reads.take_due(19).is_empty());
        assert_eq!(reads.take_due(20), [(10, 20), (11, 20)]);
        reads.queue(12);
        let _ = reads.ask(5);
        reads.queue(13);
        assert_eq!(reads.give_up(4, false), [0u64; 0]);
        assert_eq!(reads.give_up(5, true), [13, 12]);
    }
}
