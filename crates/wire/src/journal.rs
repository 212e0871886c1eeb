//! The file in which a supervisor records launches and their ends: [`JournalEntry`]s in the order in which they became
//! true, each with its length before it.
//!
//! One process appends, and what it wrote is there for as long as the machine runs: the file is on a tmpfs. So nothing
//! but the last entry can be cut short, by the end of that process, and a checksum would find nothing that a length
//! does not.

use std::collections::BTreeMap;

use prost::Message;

use crate::supervisor::v1::journal_entry::Entry;
use crate::supervisor::v1::to_agent::Message as Told;
use crate::supervisor::v1::{JournalEntry, LaunchRecord, ToAgent};

/// What a journal says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Journal {
    /// The launches that are not forgotten, by id.
    pub launches: BTreeMap<u64, Recorded>,
    /// How many bytes its whole entries take. What follows was never written.
    pub length: usize,
}

/// What a journal says of a launch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recorded {
    /// That it was begun: missing if it was ended before that.
    pub begun: Option<LaunchRecord>,
    /// How it ended.
    pub end: Option<Told>,
}

/// Appends an entry to the bytes of a journal.
pub fn append(bytes: &mut Vec<u8>, entry: Entry) {
    let entry = JournalEntry { entry: Some(entry) };
    bytes.reserve(entry.encoded_len() + prost::length_delimiter_len(entry.encoded_len()));
    entry.encode_length_delimited(bytes).expect("there is room in a vector");
}

impl Journal {
    /// Reads a journal as far as it is whole. Entries of a kind that is not known say nothing.
    pub fn read(bytes: &[u8]) -> Self {
        let mut journal = Journal::default();
        let mut rest = bytes;
        while !rest.is_empty() {
            let Ok(JournalEntry { entry }) = JournalEntry::decode_length_delimited(&mut rest) else { break };
            journal.length = bytes.len() - rest.len();
            match entry {
                Some(Entry::Launch(launch)) => {
                    journal.launches.entry(launch.launch_id).or_default().begun = Some(launch);
                }
                Some(Entry::End(ToAgent { message: Some(end) })) => {
                    if let Some(id) = launch_of(&end) {
                        journal.launches.entry(id).or_default().end = Some(end);
                    }
                }
                Some(Entry::Forgotten(id)) => drop(journal.launches.remove(&id)),
                Some(Entry::End(ToAgent { message: None })) | None => {}
            }
        }
        journal
    }

    /// The shortest journal that says the same.
    pub fn compact(self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for recorded in self.launches.into_values() {
            recorded.begun.into_iter().for_each(|begun| append(&mut bytes, Entry::Launch(begun)));
            let ends = recorded.end.into_iter().map(|end| ToAgent { message: Some(end) });
            ends.for_each(|end| append(&mut bytes, Entry::End(end)));
        }
        bytes
    }
}

/// Of which launch this is the end.
fn launch_of(end: &Told) -> Option<u64> {
    match end {
        Told::Exited(exited) => Some(exited.launch_id),
        Told::LaunchFailed(failed) => Some(failed.launch_id),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::v1::{Exited, LaunchFailed};

    fn launch(launch_id: u64) -> Entry {
        Entry::Launch(LaunchRecord { launch_id, unix_ms: 1_800_000_000_000 })
    }

    fn exited(launch_id: u64) -> Told {
        let kill_message = "x".repeat(300);
        Told::Exited(Exited { launch_id, wait_status: 7 << 8, kill_message, ..Exited::default() })
    }

    fn end(told: Told) -> Entry {
        Entry::End(ToAgent { message: Some(told) })
    }

    fn written(entries: impl IntoIterator<Item = Entry>) -> Vec<u8> {
        let mut bytes = Vec::new();
        entries.into_iter().for_each(|entry| append(&mut bytes, entry));
        bytes
    }

    #[test]
    fn what_was_written_last_holds() {
        let failed = Told::LaunchFailed(LaunchFailed { launch_id: 4, ..LaunchFailed::default() });
        let entries = [
            launch(1),
            launch(2),
            end(exited(1)),
            launch(u64::MAX),
            Entry::Forgotten(1),
            end(exited(2)),
            end(failed.clone()),
            Entry::Forgotten(9),
        ];
        let bytes = written(entries);
        let journal = Journal::read(&bytes);
        let ids: Vec<u64> = journal.launches.keys().copied().collect();
        assert_eq!((ids, journal.length), (vec![2, 4, u64::MAX], bytes.len()));
        assert_eq!(journal.launches[&2].end, Some(exited(2)));
        assert_eq!(journal.launches[&4], Recorded { begun: None, end: Some(failed) });
        assert!(journal.launches[&u64::MAX].begun.is_some() && journal.launches[&u64::MAX].end.is_none());
        let short = journal.clone().compact();
        assert!(short.len() < bytes.len());
        assert_eq!(Journal { length: bytes.len(), ..Journal::read(&short) }, journal);
        assert_eq!(Journal::read(b""), Journal::default());
    }

    #[test]
    fn an_entry_that_was_cut_short_was_not_written() {
        let first = written([launch(1), end(exited(1))]);
        let all = [&first[..], &written([end(exited(2))])].concat();
        for cut in first.len()..all.len() {
            let journal = Journal::read(&all[..cut]);
            assert_eq!((journal.length, journal.launches.len()), (first.len(), 1), "at {cut}");
        }
        assert_eq!(Journal::read(&all).launches.len(), 2);
    }

    #[test]
    fn entries_of_a_later_release_are_passed_over() {
        // Field 15, which there is not: a varint.
        let later = [2, 0x78, 1];
        let bytes =
            [&written([launch(1)])[..], &later, &[0], &written([Entry::Forgotten(1), launch(2)])].concat();
        let journal = Journal::read(&bytes);
        assert_eq!((journal.length, journal.launches.keys().next()), (bytes.len(), Some(&2)));
    }
}
