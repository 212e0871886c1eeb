//! The journal of this instance's launches, which an agent judges a dead supervisor by: see
//! [`proffer_wire::journal`].

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use proffer_wire::journal::{self, Journal as Read};
use proffer_wire::supervisor::v1::journal_entry::Entry;

/// A journal that is shorter is not made shorter still, in bytes: what four hundred launches write.
const COMPACT_MIN: u64 = 16 * 1024;

/// The journal, open for writing.
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    /// What it is long, in bytes.
    length: u64,
    /// There is more in the file, of something that could not be written whole.
    torn: bool,
    /// The length at which it is made shorter, if it can be.
    compact_at: u64,
    /// Holds what is about to be written.
    bytes: Vec<u8>,
}

impl Journal {
    /// Makes an empty one, which must not be there.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let file = File::options().append(true).create_new(true).open(path)?;
        let (length, compact_at) = (0, COMPACT_MIN);
        Ok(Journal { path: path.to_owned(), file, length, torn: false, compact_at, bytes: Vec::new() })
    }

    /// Writes all of the entries or none.
    pub(crate) fn write(&mut self, entries: impl IntoIterator<Item = Entry>) -> io::Result<()> {
        if self.torn {
            // It would hide all that follows.
            self.file.set_len(self.length)?;
            self.torn = false;
        }
        self.bytes.clear();
        entries.into_iter().for_each(|entry| journal::append(&mut self.bytes, entry));
        if let Err(error) = self.file.write_all(&self.bytes) {
            self.torn = self.file.set_len(self.length).is_err();
            return Err(error);
        }
        self.length += self.bytes.len() as u64;
        Ok(())
    }

    /// Replaces the journal by one without what is forgotten, if it is long.
    pub(crate) fn compact_if_long(&mut self) -> io::Result<()> {
        if self.length < self.compact_at {
            return Ok(());
        }
        // If it fails, and if little was forgotten, it is not tried again soon.
        self.compact_at = self.length * 2;
        let mut bytes = fs::read(&self.path)?;
        // What follows was not written whole.
        bytes.truncate(self.length as usize);
        let read = Read::read(&bytes);
        if read.length as u64 != self.length {
            // A later program may read it; what is left out here nobody can.
            let text = format!("the journal is not readable after {} of {} bytes", read.length, self.length);
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let bytes = read.compact();
        let new = self.path.with_extension("new");
        let replaced: io::Result<File> = (|| {
            let mut file = File::options().append(true).create(true).open(&new)?;
            file.set_len(0)?;
            file.write_all(&bytes)?;
            fs::rename(&new, &self.path)?;
            Ok(file)
        })();
        if replaced.is_err() {
            // A part of it would take the room that was wanting.
            let _ = fs::remove_file(&new);
        }
        (self.file, self.length, self.torn) = (replaced?, bytes.len() as u64, false);
        self.compact_at = COMPACT_MIN.max(self.length * 2);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use proffer_wire::supervisor::v1::to_agent::Message as Told;
    use proffer_wire::supervisor::v1::{Exited, LaunchRecord, ToAgent};

    fn begun(launch_id: u64) -> Entry {
        Entry::Launch(LaunchRecord { launch_id, unix_ms: 1 })
    }

    fn ended(launch_id: u64) -> Entry {
        let exited = Told::Exited(Exited { launch_id, wait_status: 9, ..Exited::default() });
        Entry::End(ToAgent { message: Some(exited) })
    }

    fn read(path: &Path) -> Read {
        Read::read(&fs::read(path).expect("a journal"))
    }

    #[test]
    fn it_stays_short_and_forgets_nothing_else() {
        let dir = tempfile::Builder::new().prefix("proffer-journal").tempdir().expect("temp dir");
        let path = dir.path().join("journal");
        let mut journal = Journal::create(&path).expect("new");
        assert!(Journal::create(&path).is_err(), "another's is not taken");
        journal.write([begun(1), begun(2), ended(2)]).expect("room");
        let mut longest = 0;
        let mut shortened = 0;
        for id in 3..10_000 {
            journal.write([begun(id)]).expect("room");
            journal.write([ended(id)]).expect("room");
            let before = journal.length;
            journal.write([Entry::Forgotten(id)]).expect("room");
            journal.compact_if_long().expect("shorter");
            shortened += u32::from(journal.length < before);
            assert_eq!(journal.length, fs::metadata(&path).expect("there").len());
            longest = longest.max(journal.length);
        }
        assert!(longest < COMPACT_MIN + 64 && shortened > 5, "{longest} bytes, {shortened} times");
        let said = read(&path);
        assert_eq!(said.launches.keys().copied().collect::<Vec<_>>(), [1, 2]);
        assert!(said.launches[&1].end.is_none() && said.launches[&2].end.is_some());
        assert_eq!(fs::read_dir(dir.path()).expect("directory").count(), 1, "nothing lies beside it");

        // What all is needed of is not written anew at each turn.
        let mut files = std::collections::BTreeSet::new();
        for id in 10_000..20_000 {
            journal.write([begun(id)]).expect("room");
            journal.compact_if_long().expect("as long");
            files.insert(fs::metadata(&path).expect("there").ino());
        }
        assert!(files.len() < 8, "{files:?}");
        assert_eq!(read(&path).launches.len(), 10_002);
    }

    #[test]
    fn what_cannot_be_read_is_not_left_out() {
        let dir = tempfile::Builder::new().prefix("proffer-journal").tempdir().expect("temp dir");
        let path = dir.path().join("journal");
        let mut journal = Journal::create(&path).expect("new");
        journal.write([begun(1)]).expect("room");
        // An entry of one byte, which is the beginning of a field.
        File::options().append(true).open(&path).and_then(|mut file| file.write_all(&[1, 8])).expect("room");
        journal.length += 2;
        journal.write([begun(2)]).expect("room");
        journal.compact_at = 0;
        let before = fs::read(&path).expect("there");
        assert!(journal.compact_if_long().is_err());
        assert_eq!(fs::read(&path).expect("there"), before);
    }

    #[test]
    fn what_is_not_written_whole_leaves_nothing() {
        let dir = tempfile::Builder::new().prefix("proffer-journal").tempdir().expect("temp dir");
        let path = dir.path().join("journal");
        let mut journal = Journal::create(&path).expect("new");
        journal.write([begun(1)]).expect("room");
        // As on a full file system, where a part may be written, and be in the way of what follows.
        let good = std::mem::replace(&mut journal.file, File::open(&path).expect("for reading"));
        File::options()
            .append(true)
            .open(&path)
            .and_then(|mut file| file.write_all(&[200, 1, 2]))
            .expect("room");
        assert!(journal.write([begun(2)]).is_err());
        assert_eq!(read(&path).launches.len(), 1);
        journal.file = good;
        journal.write([begun(3), ended(3)]).expect("room");
        assert_eq!(read(&path).launches.keys().copied().collect::<Vec<_>>(), [1, 3]);
    }
}
