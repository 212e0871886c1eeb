//! Files of a group that stay open while one container after the other uses it: to open one costs several times what
//! to read it does.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::{Entry, memory, not_understood, read_from};
use crate::Error;

/// The files of one group that are open. Those that only some container needs are opened when one does.
#[derive(Debug, Default)]
pub(super) struct Open {
    files: Mutex<Vec<(&'static str, Arc<File>)>>,
    /// What a process is put into the group by.
    pub(super) entry: OnceLock<Entry>,
}

impl Open {
    /// Most files of a group that are open at once: what reading and resetting takes, and one of each hierarchy.
    pub(super) const FILES_MAX: u64 = 12;
}

/// A group's directory in one hierarchy.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dir<'a> {
    pub(super) root: &'a Path,
    pub(super) group: &'a Path,
    /// None of a group that is not used again.
    pub(super) open: Option<&'a Open>,
}

impl Dir<'_> {
    pub(super) fn path(&self) -> PathBuf {
        self.root.join(self.group)
    }

    /// The number in a file.
    pub(super) fn number(&self, file: &'static str) -> Result<u64, Error> {
        let text = self.text(file)?;
        text.trim().parse().map_err(|_| not_understood(self.path().join(file), &text))
    }

    /// The number behind `key` in a file of `key number` lines; `None` if there is no such line.
    pub(super) fn keyed(&self, file: &'static str, key: &str) -> Result<Option<u64>, Error> {
        let text = self.text(file)?;
        let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        value
            .map(|value| value.trim().parse().map_err(|_| not_understood(self.path().join(file), value)))
            .transpose()
    }

    /// Writes 0 to the file that says the peak of a v1 group's memory.
    pub(super) fn reset(&self, file: &'static str) -> Result<(), Error> {
        let reset = self.open(file).and_then(|open| open.write_at(b"0", 0));
        reset.map(drop).map_err(|source| self.failed("write", file, source))
    }

    fn text(&self, file: &'static str) -> Result<String, Error> {
        self.open(file).and_then(|open| read_from(&open)).map_err(|source| self.failed("read", file, source))
    }

    fn open(&self, file: &'static str) -> io::Result<Arc<File>> {
        let write = file == memory::V1_PEAK;
        let open = || OpenOptions::new().read(true).write(write).open(self.path().join(file)).map(Arc::new);
        let Some(kept) = self.open else { return open() };
        let mut files = kept.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, opened)) = files.iter().find(|(name, _)| *name == file) {
            return Ok(opened.clone());
        }
        let opened = open()?;
        files.push((file, opened.clone()));
        Ok(opened)
    }

    fn failed(&self, operation: &'static str, file: &str, source: io::Error) -> Error {
        Error::Path { operation, path: self.path().join(file), source }
    }
}
