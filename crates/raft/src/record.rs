//! The records of the raft log file.

use bytes::{Buf, BufMut, Bytes};

use crate::types::{Entry, HardState};

/// Entries (none, to store only a hard state) with the hard state they came with.
pub(crate) const APPEND: u8 = 1;
/// A snapshot took the place of the whole log.
pub(crate) const INSTALLED: u8 = 2;
/// Version of both.
pub(crate) const VERSION: u8 = 1;
/// What the log may hold.
pub(crate) const KINDS: &[(u8, u8)] = &[(APPEND, VERSION), (INSTALLED, VERSION)];

/// Entries of about this many bytes share a record.
const GROUP_BYTES: usize = 1 << 20;

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Append {
    pub(crate) hard_state: HardState,
    /// Term of the entry before the first: the chain of terms.
    pub(crate) previous_term: u64,
    pub(crate) entries: Vec<Entry>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Installed {
    pub(crate) hard_state: HardState,
    pub(crate) index: u64,
    pub(crate) term: u64,
}

/// Splits entries into groups that become one record each; one empty group if there are none.
pub(crate) fn groups(entries: &[Entry]) -> impl Iterator<Item = &[Entry]> {
    let mut rest = Some(entries);
    std::iter::from_fn(move || {
        let all = rest?;
        let mut bytes = 0;
        let fits = |entry: &&Entry| {
            bytes += entry.data.len();
            bytes <= GROUP_BYTES
        };
        let n = all.iter().take_while(fits).count().max(1).min(all.len());
        let (group, behind) = all.split_at(n);
        rest = (!behind.is_empty()).then_some(behind);
        Some(group)
    })
}

pub(crate) fn encode_append(hard_state: HardState, previous_term: u64, entries: &[Entry]) -> Vec<u8> {
    let bytes: usize = entries.iter().map(|entry| 12 + entry.data.len()).sum();
    let mut out = Vec::with_capacity(44 + bytes);
    put_hard_state(&mut out, hard_state);
    out.put_u64_le(previous_term);
    out.put_u64_le(entries.first().map_or(0, |entry| entry.index));
    out.put_u32_le(entries.len() as u32);
    for entry in entries {
        out.put_u64_le(entry.term);
        out.put_u32_le(entry.data.len() as u32);
        out.extend_from_slice(&entry.data);
    }
    out
}

pub(crate) fn decode_append(mut data: Bytes) -> Option<Append> {
    let hard_state = get_hard_state(&mut data)?;
    let previous_term = data.try_get_u64_le().ok()?;
    let first = data.try_get_u64_le().ok()?;
    let count = data.try_get_u32_le().ok()?;
    let mut entries = Vec::new();
    for n in 0..u64::from(count) {
        let term = data.try_get_u64_le().ok()?;
        let len = data.try_get_u32_le().ok()? as usize;
        if data.len() < len {
            return None;
        }
        entries.push(Entry { index: first.checked_add(n)?, term, data: data.split_to(len) });
    }
    data.is_empty().then_some(Append { hard_state, previous_term, entries })
}

pub(crate) fn encode_installed(installed: &Installed) -> Vec<u8> {
    let mut out = Vec::with_capacity(40);
    put_hard_state(&mut out, installed.hard_state);
    out.put_u64_le(installed.index);
    out.put_u64_le(installed.term);
    out
}

pub(crate) fn decode_installed(mut data: Bytes) -> Option<Installed> {
    let hard_state = get_hard_state(&mut data)?;
    let index = data.try_get_u64_le().ok()?;
    let term = data.try_get_u64_le().ok()?;
    data.is_empty().then_some(Installed { hard_state, index, term })
}

fn put_hard_state(out: &mut Vec<u8>, hard_state: HardState) {
    out.put_u64_le(hard_state.term);
    out.put_u64_le(hard_state.vote);
    out.put_u64_le(hard_state.commit);
}

fn get_hard_state(data: &mut Bytes) -> Option<HardState> {
    Some(HardState {
        term: data.try_get_u64_le().ok()?,
        vote: data.try_get_u64_le().ok()?,
        commit: data.try_get_u64_le().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_round_trip() {
        let hard_state = HardState { term: 4, vote: 2, commit: 9 };
        let entry = |index, term, len| Entry { index, term, data: Bytes::from(vec![7; len]) };
        for entries in [vec![], vec![entry(10, 3, 0)], vec![entry(10, 3, 5), entry(11, 4, 900)]] {
            let encoded = Bytes::from(encode_append(hard_state, 3, &entries));
            let decoded = decode_append(encoded.clone()).unwrap();
            assert_eq!(decoded, Append { hard_state, previous_term: 3, entries });
            assert!(decode_append(encoded.slice(..encoded.len() - 1)).is_none());
        }
        let installed = Installed { hard_state, index: 8, term: 4 };
        assert_eq!(decode_installed(encode_installed(&installed).into()).unwrap(), installed);
    }

    #[test]
    fn groups_keep_order_and_size() {
        assert_eq!(groups(&[]).collect::<Vec<_>>(), [&[] as &[Entry]]);
        let entries: Vec<Entry> = [GROUP_BYTES * 2, 10, 10, GROUP_BYTES - 10, 5]
            .iter()
            .zip(1..)
            .map(|(len, index)| Entry { index, term: 1, data: Bytes::from(vec![0; *len]) })
            .collect();
        let sizes: Vec<usize> = groups(&entries).map(<[Entry]>::len).collect();
        assert_eq!(sizes, [1, 2, 2]);
    }
}
